"""Measured difficulty: the file that `rlvr generate --difficulty` writes, joined to problems by their key.

One JSON object per line: ``id`` and ``key`` of the problem, ``pass_rate`` over its ``samples`` scored completions,
``mean_length`` in tokens and, if measured, ``guess_rate`` over ``guesses`` completions without reasoning.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr.config import nearest
from rlvr.problems.files import parse_line, read_lines
from rlvr.problems.rows import SHOWN, ProblemError, Row, raise_broken
from rlvr.records import Problem

WEIGHED_BY = {"pass_rate": "samples", "mean_length": "samples", "guess_rate": "guesses"}
"""Means, and the column that says over how many completions each was taken; they become columns of the problem."""


def add_difficulty(problems: Sequence[Problem], path: str) -> list[Problem]:
    """The problems with the measured columns in their `meta`, found by canonical key; lines with one key are one
    measurement. Raises `ProblemError` for broken lines and for problems that the file does not know."""
    rows_of: dict[str, list[Row]] = {}
    broken = []
    for number, line in read_lines(Path(path)):
        row = parse_line(Path(path), number, line)
        if fault := _fault(row.data):
            broken.append(f"{row.source}: {fault}")
        else:
            rows_of.setdefault(row.data["key"], []).append(row)
    raise_broken(broken, f"problems.difficulty {path}: {len(broken)} lines cannot be used")
    missing = [problem for problem in problems if problem.key not in rows_of]
    if missing:
        raise ProblemError(
            f"problems.difficulty {path} does not know {len(missing)} of {len(problems)} training problems, the first "
            f"is {missing[0].source or missing[0].id}; measure them too: rlvr generate RECIPE --difficulty FILE"
        )
    measured = {key: _merged([row.data for row in rows]) for key, rows in rows_of.items()}
    return [dataclasses.replace(problem, meta={**problem.meta, **measured[problem.key]}) for problem in problems]


def _fault(data: Mapping[str, Any]) -> str:
    """Describes what is wrong with a line; empty if nothing is."""
    if not isinstance(data.get("key"), str):
        return f"key must be a problem's key, got {data.get('key')!r}"
    for name, count in WEIGHED_BY.items():
        if name not in data:
            continue
        if not isinstance(data.get(count), int) or isinstance(data[count], bool) or data[count] < 0:
            return f"{count} must be a whole number of 0 or more beside {name}, got {data.get(count)!r}"
        value = data[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if (not is_number or value < 0) if data[count] else value is not None:
            rule = "a finite number of 0 or more" if data[count] else "null where no completion was scored"
            return f"{name} must be {rule}, got {value!r}"
    return ""


def _merged(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over all completions of several measurements; None for what has no scored completion."""
    result: dict[str, float | None] = {}
    for name, count in WEIGHED_BY.items():
        known = [row for row in rows if name in row]
        if known:
            total = sum(row[count] for row in known)
            result[name] = math.fsum(row[name] * row[count] for row in known if row[count]) / total if total else None
    return result


def keep_in_range(
    problems: Sequence[Problem], ranges: Mapping[str, tuple[float | None, float | None]]
) -> tuple[list[Problem], list[str]]:
    """The problems whose columns lie in the ranges, ends included, and a line for each range that left some out.

    A None column (nothing was scored) lies in no range. Raises `ProblemError` for a column that is not there or holds
    no number, and where nothing would remain.
    """
    kept, notes = list(problems), []
    for name, (low, high) in ranges.items():
        values = [_number(problem, name) for problem in kept]
        inside = [problem for problem, value in zip(kept, values, strict=True) if _lies(value, low, high)]
        shown = f"problems.keep.{name} [{'' if low is None else f'{low:g}'}, {'' if high is None else f'{high:g}'}]"
        if len(inside) < len(kept):
            unknown = sum(value is None for value in values)
            more = f", {unknown} of them because nothing is known of them" if unknown else ""
            notes.append(f"{len(kept) - len(inside)} of {len(kept)} training problems left out by {shown}{more}")
        if not inside:
            first = ", ".join(f"{value:g}" for value in values[:SHOWN] if value is not None)
            raise ProblemError(f"{shown} keeps none of {len(kept)} training problems; the first have {first or 'none'}")
        kept = inside
    return kept, notes


def _lies(value: float | None, low: float | None, high: float | None) -> bool:
    return value is not None and (low is None or value >= low) and (high is None or value <= high)


def _number(problem: Problem, name: str) -> float | None:
    where = f"{problem.source or problem.id}: problems.keep names a column"
    if name not in problem.meta:
        near = nearest(name, problem.meta)
        raise ProblemError(f"{where} {name!r} that is not there{near}; columns: {', '.join(problem.meta) or 'none'}")
    value = problem.meta[name]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value)):
        raise ProblemError(f"{where} {name!r} that must hold a number, got {value!r}")
    return None if value is None else float(value)
