"""A finding of the doctor: the same record before a run, while it runs, and from its files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Grade(StrEnum):
    """How much a finding matters."""

    STOPS = "stops learning"
    SLOWS = "slows learning"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, or worth knowing, with what shows it and what to do about it."""

    rule: str
    """Name of the rule that fired, in snake_case; the same name in the console, in stop rules and in the docs."""
    grade: Grade
    message: str
    """What is so, with its numbers, in one sentence."""
    advice: str
    """What to change: the recipe key and a value, where there is one."""
    evidence: tuple[str, ...] = ()
    """Where to look, most telling first: ``step 12: clip/share 0.61``, ``rollout 40/gsm8k:17/3``, a text's start."""
