"""Serves each application's champion over HTTP: raw events or feature tensors in, predictions out."""
