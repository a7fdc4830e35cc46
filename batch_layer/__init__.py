"""Batch layer: ingest, archive, prepare, train, publish, judge, recompute."""
