"""Applies the doctor's rules during training: warns when one fires, and stops where the recipe asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlvr.config import Recipe
from rlvr.rules.finding import Finding, Grade
from rlvr.rules.history import History
from rlvr.rules.rules import causes_of, look


class Watch:
    """Sees each step's metrics; stateful, rank 0 has it."""

    def __init__(self, recipe: Recipe, warn: Callable[[str, str], None]) -> None:
        self._recipe, self._warn, self._history = recipe, warn, History(recipe)

    def see(self, step: int, metrics: Mapping[str, float]) -> Finding | None:
        """Warn of every cause that the rules name now, notes aside. Returns the first that ``run.stop_on`` lists."""
        self._history.add(step, metrics)
        findings = look(self._history)
        for finding in causes_of(findings):
            if finding.grade is not Grade.NOTE:
                self._warn(finding.rule, f"{finding.message}. {finding.advice}")
        return next((finding for finding in findings if finding.rule in self._recipe.run.stop_on), None)

    def state_dict(self) -> dict[str, Any]:
        """The history that the rules look at."""
        return {"history": self._history.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what they knew."""
        self._history.load_state_dict(state["history"])
