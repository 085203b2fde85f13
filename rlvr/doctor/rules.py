"""All rules of the doctor, and the page that lists them: ``python -m rlvr.doctor.rules > docs/doctor.md``."""

from __future__ import annotations

from rlvr.doctor import run as after
from rlvr.doctor.cost import COST_RULES
from rlvr.doctor.learner import LEARNER_RULES
from rlvr.doctor.recipe import ENGINE_RULES
from rlvr.doctor.sampled import SAMPLED_RULES
from rlvr.rules import rules as running
from rlvr.rules.preflight import BEFORE_RULES
from rlvr.rules.rule import Rule, rules_table

SECTIONS: tuple[tuple[str, str, tuple[Rule, ...]], ...] = (
    (
        "Before a run, without an engine",
        "Settings, data, template and verifiers; `rlvr train` looks at these each time and refuses what cannot learn, "
        "unless `run.force` is true.",
        BEFORE_RULES,
    ),
    (
        "Before a run, with its engine",
        "A few groups are sampled, graded twice, and computed again by the learner.",
        (*ENGINE_RULES, *SAMPLED_RULES, *LEARNER_RULES, *COST_RULES),
    ),
    (
        "While a run goes on, and over its files",
        "Rules over metrics: a warning the first time one fires, the end of the run where `run.stop_on` names it, and "
        "findings of `rlvr doctor RUN`. What each threshold is stands in docs/metrics.md.",
        running.RULES,
    ),
    ("Over a run's files alone", "Rollouts, suspects and how the run ended.", after.RULES),
)
"""Title, sentence and rules of each part of the page."""


def markdown() -> str:
    """The rules as a page."""
    lines = [
        "# The doctor's rules",
        "",
        "`rlvr doctor RECIPE [section.key=value ...]` looks at a recipe, `rlvr doctor RUN` at a run's folder. A",
        "finding has the name of its rule, a grade, what is so with its numbers, where to look, and what to change.",
        "The exit status is 1 if anything stops learning; `--json` prints the same for programs. The grade in the",
        "tables is a rule's worst. This page is made by `python -m rlvr.doctor.rules > docs/doctor.md`.",
    ]
    for title, sentence, rules in SECTIONS:
        lines += ["", f"## {title}", "", sentence, "", rules_table(rules).rstrip()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
