"""Serving layer: Hive gateway, views, query service."""
