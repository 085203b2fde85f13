"""Sampling completions: engines, weight synchronisation, collection of groups."""
