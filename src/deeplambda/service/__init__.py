"""What every long-running process of the platform needs."""
