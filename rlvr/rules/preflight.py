"""The checks of a recipe before its engine starts: the cheap half of ``rlvr doctor``, also made by ``rlvr train``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rewards.combine import Term
from rewards.pool import GradingPool
from rlvr.config import Recipe, RecipeError
from rlvr.problems.templates import Renderer
from rlvr.records import Problem
from rlvr.rules.finding import Finding, Grade
from rlvr.rules.preflight_copies import COPY_RULES, check_copies
from rlvr.rules.preflight_data import DATA_RULES, Prompts, check_data, check_template
from rlvr.rules.preflight_settings import SETTINGS_RULES, check_settings
from rlvr.rules.preflight_verifiers import GRADER_RULES, PATIENCE, check_graders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEEN = 100
"""Problems whose prompts and references are looked at one by one."""

BEFORE_RULES = (*SETTINGS_RULES, *DATA_RULES, *GRADER_RULES, *COPY_RULES)
"""All rules of this half."""


def first_prompts(problems: Sequence[Problem], renderer: Renderer, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """The prompts of the first problems."""
    first = problems[:SEEN]
    return Prompts(first, [renderer.render(problem) for problem in first], renderer, tokenizer)


def examine_cheaply(
    recipe: Recipe,
    problems: Sequence[Problem],
    seen: Prompts,
    pool: GradingPool,
    terms: Sequence[Term],
    *,
    weights: int | None,
    patience: float = PATIENCE,
) -> list[Finding]:
    """Findings over settings, data, template and verifiers, the worst first; `weights` is the model's size."""
    findings = [
        *check_settings(recipe, weights),
        *check_data(recipe, problems),
        *check_template(recipe, seen),
        *check_graders(recipe, seen, pool, terms, patience=patience),
        *check_copies(recipe, seen, pool, terms),
    ]
    return worst_first(findings)


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """By grade, and within a grade as they came."""
    return sorted(findings, key=lambda finding: list(Grade).index(finding.grade))


def lines(findings: Sequence[Finding]) -> list[str]:
    """For each finding the message, the evidence and the advice."""
    return [
        line
        for finding in findings
        for line in (f"{finding.grade}: {finding.rule}: {finding.message}", *_details(finding, "  "))
    ]


def _details(finding: Finding, indent: str) -> list[str]:
    return [*(f"{indent}{shown}" for shown in finding.evidence[:2]), f"{indent}-> {finding.advice}"]


def refuse(recipe: Recipe, findings: Sequence[Finding]) -> None:
    """Raise `RecipeError` for a recipe that cannot learn, unless ``run.force`` is true."""
    stops = [finding for finding in findings if finding.grade is Grade.STOPS]
    if stops and not recipe.run.force:
        reasons = "\n".join(
            line for finding in stops for line in (f"  {finding.rule}: {finding.message}", *_details(finding, "    "))
        )
        raise RecipeError(
            f"this recipe cannot learn:\n{reasons}\nset run.force=true to train all the same; `rlvr doctor` says more"
        )
