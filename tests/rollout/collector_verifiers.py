"""The verifier of the collector's tests, in a module that grading processes import in no time."""

from __future__ import annotations

from typing import Any

from rewards import Outcome, Verdict


class Words:
    """Right if the reference stands in the completion; a mistake of its own at ``raise``."""

    def check_reference(self, reference: Any) -> None:
        pass

    def grade(self, completion: str, reference: Any) -> Verdict:
        if "raise" in completion:
            raise KeyError("nobody thought of this")
        if reference in completion:
            return Verdict(1.0, Outcome.CORRECT)
        return Verdict(0.0, Outcome.WRONG)
