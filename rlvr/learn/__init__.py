"""From scored groups to a better policy: shaping, advantages, losses, log-probabilities, updates."""
