"""Everything that decides a run's future, named; checkpoints of it, and going on from one."""
