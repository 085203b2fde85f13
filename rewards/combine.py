"""One reward out of several verdicts: weights, and gates that make one score depend on another's full marks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewards.verdict import Outcome, Verdict


@dataclass(frozen=True, slots=True)
class Term:
    """One verifier's part in the reward.

    Example: ``[Term("format", 0.1), Term("math", 1.0, gate="format")]``: accuracy counts only if the format holds.
    """

    name: str
    """The verifier's name."""
    weight: float = 1.0
    """What its score is multiplied with."""
    gate: str | None = None
    """The name of a verifier that must say CORRECT, or this term counts 0; None: it always counts."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight: {self.weight!r} of the term {self.name!r} must be a finite number")
        if self.gate == self.name:
            raise ValueError(f"gate: the term {self.name!r} cannot be its own gate")


def combine(verdicts: Mapping[str, Verdict], terms: Sequence[Term]) -> float | None:
    """The weighted sum of the scores whose gates are open; None where a verdict that it needs has no score.

    A gate that was not scored leaves open whether the term counts, so the sum is None then as well; the verdict
    behind a closed gate is not needed. Gates may be verifiers that are no terms themselves.
    Raises `ValueError` for terms that are empty or repeated and for verdicts that are missing.
    """
    names = [term.name for term in terms]
    if not names:
        raise ValueError("terms: a reward needs at least one term, got none")
    if len(set(names)) < len(names):
        raise ValueError(f"terms: {', '.join(names)} name a verifier twice; give it one weight")
    total = 0.0
    for term in terms:
        if term.gate is not None:
            gate = _verdict(verdicts, term.gate)
            if gate.score is None:
                return None
            if gate.outcome is not Outcome.CORRECT:
                continue
        score = _verdict(verdicts, term.name).score
        if score is None:
            return None
        total += term.weight * score
    return total


def _verdict(verdicts: Mapping[str, Verdict], name: str) -> Verdict:
    if name not in verdicts:
        raise ValueError(f"verdicts: there is none of {name!r}; there are: {', '.join(verdicts) or 'none'}")
    return verdicts[name]
