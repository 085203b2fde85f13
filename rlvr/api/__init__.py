"""What a script or notebook uses: train, evaluate, grade, and what came of it."""
