"""Grade texts from Python, in worker processes that are killed when a verifier hangs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.pool import GradingPool, VerifierSpec
from rewards.verdict import Verdict
from rlvr.api.terms import make_terms


def grade(
    completions: Sequence[str],
    references: Sequence[Any],
    verifier: Any = "math",
    *,
    args: Mapping[str, Any] | None = None,
    workers: int = 1,
    timeout: float = 2.0,
    memory_mb: int = 1024,
) -> list[Verdict]:
    """The verdict on each completion against the reference at its place: ``grade([r"\\boxed{4}"], ["4"])``.

    Args: verifier: anything that `rlvr.train` takes as a reward, with `args` as its arguments; workers: processes;
    timeout: seconds for one completion, after which its worker is killed and the verdict is TIMEOUT; memory_mb: what a
    worker may allocate. Raises `ValueError` for lists of different lengths, `RecipeError` and `WorkerStartError` for a
    verifier that cannot be built.
    """
    if isinstance(completions, str) or len(completions) != len(references):
        raise ValueError(
            f"grade takes as many references as completions, got {len(references)} for "
            + ("one text; write [text]" if isinstance(completions, str) else str(len(completions)))
        )
    with tempfile.TemporaryDirectory(prefix="rlvr-") as folder:
        (term,) = make_terms([{"verifier": verifier, "args": dict(args or {})}], Path(folder))
        spec = VerifierSpec(term["verifier"], term["args"])
        with GradingPool({"verifier": spec}, workers=workers, timeout=timeout, memory_mb=memory_mb) as pool:
            pairs = zip(completions, references, strict=True)
            return pool.grade_many(("verifier", completion, reference) for completion, reference in pairs)
