"""The Python API: train, evaluate, grade, and read the results."""
