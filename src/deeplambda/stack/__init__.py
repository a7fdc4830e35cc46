"""Runs the platform: on this machine (`local`) and in containers. The only room that names the layers."""
