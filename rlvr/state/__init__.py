"""The state of a run: what it consists of, checkpoints, and resuming."""
