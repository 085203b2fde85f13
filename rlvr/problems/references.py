"""Checks before the run that every reference can be graded against."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.pool import GradingPool
from rlvr.config import RewardTerm
from rlvr.problems.rows import ProblemError, raise_broken
from rlvr.records import Problem


def check_references(
    problems: Sequence[Problem], pool: GradingPool, terms: Sequence[RewardTerm], *, eval_set: str | None = None
) -> None:
    """Let every verifier check the reference of every problem that it will grade, in the pool's processes.

    The pool holds the verifiers under the terms' names; `eval_set` names the set that the problems
    are. Raises `ProblemError` that lists the first broken rows by file and line and counts all, or that
    names a problem whose `verifiers` no term has.
    """
    names = [term.name for term in terms]
    for problem in problems:
        for name in problem.verifiers or ():
            if name not in names:
                where = problem.source or problem.id
                raise ProblemError(f"{where}: no reward term is named {name!r}; terms: {', '.join(names)}")
    wanted = [
        (problem, name)
        for problem in problems
        for name in names
        if problem.verifiers is None or name in problem.verifiers
    ]
    reasons = pool.check_references((name, problem.reference) for problem, name in wanted)
    broken = [
        f"{problem.source or problem.id}: {name}: {reason}"
        for (problem, name), reason in zip(wanted, reasons, strict=True)
        if reason is not None
    ]
    whose = "" if eval_set is None else f" of eval set {eval_set!r}"
    fix = "" if eval_set is None else "; give it terms of its own (problems.eval.N.terms) or leave it out"
    fix += " (problems.eval=[] leaves all out)" if fix else ""
    raise_broken(
        broken, f"{len(broken)} of {len(wanted)} references{whose} cannot be graded against{fix}",
        rule="reference_unusable",
    )  # fmt: skip
