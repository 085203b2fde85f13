"""New weights to the engine, with proof that they arrived."""
