"""Sampling answers: engines, weight synchronisation, collection of groups."""
