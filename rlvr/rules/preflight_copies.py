"""The rule about answers that need no work: what is copied from a problem's own text must not be right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rewards.combine import Term
from rewards.pool import GradingPool
from rewards.without_work import measure
from rlvr.config import Recipe
from rlvr.records import Problem
from rlvr.rules.finding import Finding, Grade
from rlvr.rules.preflight_data import Prompts
from rlvr.rules.rule import Rule

MATHEMATICS = "rewards.math_answers:MathVerifier"
"""The verifier that reads formulas, so that a formula of the problem can be right; copies of others cost too much."""
TRIED = 40
"""Problems whose text is tried."""
NOTED, SLOWING, STOPPING = 0.005, 0.02, 0.2

COPIED = Rule(
    "answers_copied", Grade.STOPS,
    f"a formula copied from the problem's text gets full marks on {STOPPING:.0%} of the first {TRIED} problems; from "
    f"{SLOWING:.0%} on it slows learning, below it is a note",
    "set args.form of MathVerifier to evaluated (the default): an answer must be worked out as far as the reference; "
    "`python -m rewards check --problems FILE` measures all of the data",
)  # fmt: skip
COPY_RULES = (COPIED,)


def check_copies(recipe: Recipe, seen: Prompts, pool: GradingPool, terms: Sequence[Term]) -> Iterator[Finding]:
    """The finding for each mathematical verifier that takes copies, over the first problems."""
    mathematical = {term.name for term in recipe.rewards.terms if term.verifier == MATHEMATICS}
    for term in terms:
        if term.name not in mathematical:
            continue
        tried = [
            (_question(problem), problem.reference)
            for problem in seen.problems[:TRIED]
            if isinstance(problem.reference, str | int | float)
            and (problem.verifiers is None or term.name in problem.verifiers)
        ]
        found = measure(pool, term.name, tried)
        solved = len(found.copied) + found.echoed
        if not tried or solved <= NOTED * len(tried):
            continue
        share = solved / len(tried)
        yield COPIED.finding(
            f"reward term {term.name!r} gives full marks to what is copied from the text of {solved} of {len(tried)} "
            "problems",
            evidence=[f"{copy!r:.60} for {reference!r:.40}" for reference, copy in found.copied[:3]],
            grade=Grade.STOPS if share >= STOPPING else Grade.SLOWS if share >= SLOWING else Grade.NOTE,
        )


def _question(problem: Problem) -> str:
    if isinstance(problem.prompt, str):
        return problem.prompt
    return "\n".join(message["content"] for message in problem.prompt)
