"""What MySQL holds the truth of: tables, model registry, outbox, horizon."""
