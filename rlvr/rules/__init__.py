"""Rules that say why a run does not learn, from its metrics and rollouts, while it runs or afterwards."""
