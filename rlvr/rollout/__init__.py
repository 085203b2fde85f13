"""Rollouts: scheduling, sampling and grading of groups."""
