"""What the three layers agree on: the application contract, events, settings, the model registry, the horizon."""
