"""Runs the platform: on this machine (`local`) and in containers. The only package that names the layers."""
