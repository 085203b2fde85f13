"""Rules that say why a run does not learn, over its metrics and rollouts: while it runs, and afterwards."""
