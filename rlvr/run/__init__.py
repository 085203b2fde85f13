"""A run from recipe to end: set-up, training loop, signals, errors."""
