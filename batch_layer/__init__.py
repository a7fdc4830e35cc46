"""Batch layer: archive, ingest, prepare, train, tune, publish, gate, recompute."""
