"""A run from its recipe to its end: set-up, the loop, signals, errors."""
