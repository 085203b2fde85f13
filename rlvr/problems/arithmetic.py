"""Generated arithmetic questions with two operands; some are held out and never trained on."""

from __future__ import annotations

import operator
import string

from rlvr.config.problems import Arithmetic
from rlvr.problems.held_out import rank
from rlvr.problems.keys import arithmetic_key
from rlvr.problems.rows import ProblemError
from rlvr.records import Problem

MOST = 1_000_000
"""Problems that one source may make: each is held in memory."""

COMPUTE = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def generate_arithmetic(source: Arithmetic) -> list[Problem]:
    """Every ordered pair of operands in the split, a after b; 3*7 and 7*3 are two questions with one key.

    ``held_out`` is a share of the keys, rounded to a whole number of them; which ones, a hash of seed and key says.
    Raises `ProblemError` when the question cannot be filled in or a split would be empty.
    """
    span = source.high - source.low + 1
    if span * span > MOST:
        raise ProblemError(
            f"arithmetic: operands {source.low} to {source.high} make {span * span} problems, at most {MOST}: "
            "narrow low..high"
        )
    _check_question(source.question)
    operands = range(source.low, source.high + 1)
    pairs = [(a, b, arithmetic_key(a, source.operator, b)) for a in operands for b in operands]
    keys = sorted({key for _, _, key in pairs}, key=lambda key: rank(source.seed, key))
    held_out = set(keys[: round(source.held_out * len(keys))])
    if source.split != "all":
        if len(held_out) in (0, len(keys)):
            raise ProblemError(
                f"arithmetic: held_out {source.held_out} of {len(keys)} different problems gives {len(held_out)} to "
                f"eval and {len(keys) - len(held_out)} to train: each split needs at least one"
            )
        pairs = [pair for pair in pairs if (pair[2] in held_out) == (source.split == "eval")]
    return [_problem(source, a, b, key) for a, b, key in pairs]


def _problem(source: Arithmetic, a: int, b: int, key: str) -> Problem:
    second = str(b) if b >= 0 else f"({b})"  # 3--7 would read badly
    name = f"arithmetic/{a}{source.operator}{b}"
    return Problem(
        id=name,
        prompt=source.question.format(a=a, b=second, op=source.operator),
        reference=str(COMPUTE[source.operator](a, b)),
        key=key,
        source=name,
        meta={"a": a, "b": b, "operator": source.operator},
    )


def _check_question(question: str) -> None:
    """Raise `ProblemError` unless the format string has the fields a and b, and no others than a, b and op."""
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(question) if name is not None}
        question.format(a=1, b="2", op="*")
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise ProblemError(
            f"arithmetic: question {question!r} is no format string of a, b and op "
            f"({type(error).__name__}: {error}); a literal brace is written twice"
        ) from None
    if not {"a", "b"} <= fields:
        raise ProblemError(f"arithmetic: question {question!r} needs the fields {{a}} and {{b}}, or all would be alike")
