"""Graders of model output: usable alone, without torch and without rlvr."""

from rewards.verdict import BadReference, Outcome, Verdict, Verifier

__all__ = ["BadReference", "Outcome", "Verdict", "Verifier"]
