"""Sends new weights to the engine, and proves that they arrived."""
