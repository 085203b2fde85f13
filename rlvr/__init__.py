"""Reinforcement learning of language models on verified outcome rewards."""
