"""A rule of the doctor: name, grade, what fires it and what to do, in one place for code and docs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlvr.rules.finding import Finding, Grade


@dataclass(frozen=True, slots=True)
class Rule:
    """The description of a rule; the code that decides is next to it and calls `finding`."""

    name: str
    """In snake_case; the finding's `rule`."""
    grade: Grade
    fires: str
    """What fires it, with its threshold, as docs/doctor.md prints it."""
    advice: str
    """What to change: the recipe key and a value, where there is one."""

    def finding(
        self, message: str, *, evidence: Sequence[str] = (), advice: str | None = None, grade: Grade | None = None
    ) -> Finding:
        """The finding of this rule; None takes the rule's own `advice` and its `grade`, which is the worst."""
        return Finding(
            rule=self.name, grade=grade or self.grade, message=message, advice=advice or self.advice,
            evidence=tuple(evidence),
        )  # fmt: skip


def rules_table(rules: Sequence[Rule]) -> str:
    """The rules as a Markdown table, worst grade first, else in the order given."""
    worst_first = sorted(rules, key=lambda rule: list(Grade).index(rule.grade))
    rows = [(f"`{rule.name}`", rule.grade.value, rule.fires, rule.advice) for rule in worst_first]
    lines = ["| rule | grade | what fires it | what to do |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
