"""Queries on one run's rollouts: filtered and searched lists, single rollouts, groups, problems.

Every response is bounded: one page of a list, one group, one line of the file.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from rlvr.view.index import Index, clean

PAGE = 50
"""Rows of a list that are sent at once."""
COUNTED = 10_000
"""A list says how long it is up to here, and "more" above."""
PROBLEM_ORDERS = ("variable", "never", "always", "reward", "name")
"""What a list of problems can be ordered by."""
EXCERPT = 160
"""Characters of a completion in a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which rollouts a list shows; None asks for nothing."""

    search: str = ""
    """Words that must all stand in the completion; in "double quotes" next to each other, with * at its end a
    beginning."""
    term: str | None = None
    outcome: str | None = None
    """Outcome of `term`, or of the first term."""
    reward_min: float | None = None
    reward_max: float | None = None
    tokens_min: int | None = None
    tokens_max: int | None = None
    finish: str | None = None
    step_min: int | None = None
    step_max: int | None = None
    problem: str | None = None
    content: int | None = None
    """Mark of a text: rollouts with exactly this one."""
    disagree: str | None = None
    """A term whose verdict differs from the first's on whether the answer is right."""


def match_expression(search: str) -> str | None:
    """FTS5's expression for what a person typed: nothing in it is an operator. None if it holds no word."""
    parts = []
    for quoted, star, word in re.findall(r'"([^"]*)"(\*?)|(\S+)', search.replace("\0", " ")):
        text, prefix = (quoted, star == "*") if not word else (word.rstrip("*"), word.endswith("*"))
        if any(letter.isalnum() for letter in text):
            parts.append('"' + text.replace('"', '""') + '"' + ("*" if prefix else ""))
    return " AND ".join(parts) or None


class NotThere(LookupError):
    """The run holds no such thing; the message says what it holds."""


class Rollouts:
    """Questions to the index of one run."""

    def __init__(self, index: Index) -> None:
        self.index = index

    # --------------------------------------------------------------------------------------------------------- lists

    def search(self, wanted: Filter, *, after: int | None = None, newest_first: bool = False) -> dict[str, Any]:
        """A page of rollouts in the order of the file after rollout `after`, and how many there are.

        ``{"rows": [...], "more": bool, "count": n, "counted": bool}``; `counted` is False where `COUNTED` is a floor.
        """
        expression = match_expression(wanted.search)
        if wanted.search.strip() and expression is None:
            return {"rows": [], "more": False, "count": 0, "counted": True, "note": "nothing to search for: no letters"}
        with self.index.reading() as database:
            conditions, values = _conditions(database, wanted)
            source = "rollout"
            if expression is not None:
                # CROSS: words first, in the order of their numbers, so that a page stops as soon as it is full
                source = "words CROSS JOIN rollout ON rollout.id = words.rowid"
                conditions, values = ["words MATCH ?", *conditions], [expression, *values]
            key = "words.rowid" if expression is not None else "rollout.id"
            paged, arguments = list(conditions), list(values)
            if after is not None:
                paged.append(f"{key} {'<' if newest_first else '>'} ?")
                arguments.append(after)
            rows = database.execute(
                f"SELECT rollout.* FROM {source} WHERE {' AND '.join(paged) or '1'} "
                f"ORDER BY {key} {'DESC' if newest_first else 'ASC'} LIMIT {PAGE + 1}",
                arguments,
            ).fetchall()
            (count,) = database.execute(
                f"SELECT count(*) FROM (SELECT 1 FROM {source} WHERE {' AND '.join(conditions) or '1'} "
                f"LIMIT {COUNTED + 1})",
                values,
            ).fetchone()
            listed = self.rows(database, rows[:PAGE], wanted.search)
        return {
            "rows": listed, "more": len(rows) > PAGE, "count": min(count, COUNTED), "counted": count <= COUNTED,
        }  # fmt: skip

    def rows(self, database: sqlite3.Connection, rows: Sequence[sqlite3.Row], search: str = "") -> list[dict[str, Any]]:
        """Rollouts as lists show them: numbers of the index and a piece of the text."""
        outcomes = {row["id"]: json.loads(row["outcomes"]) for row in database.execute("SELECT * FROM combo")}
        names = dict(_names(database, {row["problem"] for row in rows}))
        result = []
        for row, record in zip(rows, self._records(rows), strict=True):
            result.append({
                "id": row["id"], "step": row["step"], "group": row["grp"], "sample": row["sample"],
                "problem": names[row["problem"]], "reward": row["reward"], "advantage": row["advantage"],
                "outcomes": outcomes[row["combo"]], "finish": row["finish"], "tokens": row["tokens"],
                "excerpt": excerpt(record["text"], search),
            })  # fmt: skip
        return result

    # ----------------------------------------------------------------------------------------------- one of something

    def overview(self) -> dict[str, Any]:
        """Overview of a run: first and last step, terms and their outcomes, finish reasons."""
        with self.index.reading() as database:
            first, last, count = database.execute("SELECT min(step), max(step), count(*) FROM step").fetchone()
            (rollouts,) = database.execute("SELECT coalesce(sum(n), 0) FROM step_combo").fetchone()
            combos = [json.loads(row["outcomes"]) for row in database.execute("SELECT outcomes FROM combo ORDER BY id")]
        terms: dict[str, list[str]] = {}
        for name, outcome in chain.from_iterable(combo.items() for combo in combos):
            if outcome not in terms.setdefault(name, []):
                terms[name].append(outcome)
        return {"first": first, "last": last, "steps": count, "rollouts": rollouts, "terms": terms}

    def step(self, step: int | None) -> dict[str, Any]:
        """The groups of a step (the last, for None) with their completions as numbers, and the steps beside it."""
        with self.index.reading() as database:
            if step is None:
                (step,) = database.execute("SELECT max(step) FROM step").fetchone()
            rows = database.execute(
                "SELECT rollout.*, combo.first FROM rollout JOIN combo ON combo.id = rollout.combo WHERE step = ? "
                "ORDER BY grp, rollout.id", (step,),
            ).fetchall()  # fmt: skip
            (before,) = database.execute("SELECT max(step) FROM step WHERE step < ?", (step,)).fetchone()
            (behind,) = database.execute("SELECT min(step) FROM step WHERE step > ?", (step,)).fetchone()
            names = dict(_names(database, {row["problem"] for row in rows}))
        groups: dict[int, dict[str, Any]] = {}
        for row in rows:
            group = groups.setdefault(
                row["grp"], {"group": row["grp"], "problem": names[row["problem"]], "samples": []}
            )
            group["samples"].append({
                "id": row["id"], "sample": row["sample"], "reward": row["reward"], "advantage": row["advantage"],
                "outcome": row["first"], "finish": row["finish"], "tokens": row["tokens"],
            })  # fmt: skip
        return {"step": step, "before": before, "behind": behind, "groups": list(groups.values())}

    def rollout(self, step: int, group: int, sample: int) -> dict[str, Any]:
        """The line of one rollout. Raises `NotThere`."""
        with self.index.reading() as database:
            row = database.execute(
                "SELECT * FROM rollout WHERE step = ? AND grp = ? AND sample = ?", (step, group, sample)
            ).fetchone()
        if row is None:
            raise NotThere(f"step {step} has no rollout with group {group} and sample {sample}")
        (record,) = self._records([row])
        return record | {"id": row["id"], "content": str(row["content"])}

    # ------------------------------------------------------------------------------------------------------- problems

    def problems(self, order: str, search: str, offset: int) -> dict[str, Any]:
        """A page of problems: ``never`` solved, ``always`` solved, most ``variable``, by ``reward`` from the lowest, or
        by ``name``.

        ``through`` of a row holds the success rate of each visit; in a run with partial marks, which is ``graded``, its
        mean reward, all of which lie between ``low`` and ``high``.
        """
        having, by = {
            "never": ("sum(correct) = 0", "n DESC, name"),
            "always": ("sum(correct) = sum(judged)", "n DESC, name"),
            "variable": ("1", "spread DESC, abs(1.0 * correct / judged - 0.5), n DESC, name"),
            "reward": ("1", "reward IS NULL, reward, n DESC, name"),
            "name": ("1", "name"),
        }[order]
        with self.index.reading() as database:
            is_graded = _is_graded(database)
            low, high = _reward_range(database) if is_graded else (0.0, 1.0)
        # variance of the visits' success rates, E[x^2] - E[x]^2: what changed from visit to visit
        rate = "reward / nullif(scored, 0)" if is_graded else "1.0 * correct / judged"
        each = (
            "SELECT problem, sum(n) AS n, sum(judged) AS judged, sum(correct) AS correct, "
            "sum(reward) / sum(scored) AS reward, count(*) AS visits, min(step) AS first, max(step) AS last, "
            f"avg({rate} * {rate}) - avg({rate}) * avg({rate}) AS spread "
            f"FROM grp WHERE judged > 0 GROUP BY problem HAVING {having}"
        )
        like = "%" + re.sub(r"([\\%_])", r"\\\1", search) + "%"
        with self.index.reading() as database:
            rows = database.execute(
                f"SELECT each.*, name, count(*) OVER () AS every FROM ({each}) AS each "
                "JOIN problem ON problem.id = each.problem WHERE name LIKE ? ESCAPE '\\' "
                f"ORDER BY {by} LIMIT {PAGE} OFFSET ?", (like, offset),
            ).fetchall()  # fmt: skip
            count = rows[0]["every"] if rows else 0
            numbers = [row["problem"] for row in rows]
            visits: dict[int, list[list[float]]] = {number: [] for number in numbers}
            for row in database.execute(
                f"SELECT problem, step, {rate} AS rate FROM grp WHERE problem IN ({','.join('?' * len(numbers))}) "
                "AND judged > 0 ORDER BY step", numbers,
            ):  # fmt: skip
                if row["rate"] is not None:
                    visits[row["problem"]].append([row["step"], row["rate"]])
        return {
            "count": count,
            "offset": offset,
            "graded": is_graded,
            "low": low,
            "high": high,
            "rows": [
                {"problem": row["name"], "n": row["n"], "rate": row["correct"] / row["judged"], "reward": row["reward"],
                 "visits": row["visits"], "first": row["first"], "last": row["last"],
                 "through": _thin(visits[row["problem"]], 60)}
                for row in rows
            ],
        }  # fmt: skip

    def solved(self) -> dict[str, Any]:
        """For each step how many of its groups were solved never, sometimes, always; at most 400 points.

        In a run with partial marks: how many have their mean reward in each quarter of its range in the run, the
        lowest first, under ``quarters`` with the ``bounds`` of these.
        """
        with self.index.reading() as database:
            if _is_graded(database):
                return _quarters(database)
            rows = database.execute(
                "SELECT step, sum(correct = 0) AS none, sum(correct > 0 AND correct < judged) AS some, "
                "sum(correct = judged) AS every FROM grp WHERE judged > 0 GROUP BY step ORDER BY step"
            ).fetchall()
        points = _thin([[row["step"], row["none"], row["some"], row["every"]] for row in rows], 400)
        return {"steps": [p[0] for p in points], "none": [p[1] for p in points], "some": [p[2] for p in points],
                "every": [p[3] for p in points]}  # fmt: skip

    def problem(self, name: str) -> dict[str, Any]:
        """All visits of one problem, with its prompt and reference. Raises `NotThere`."""
        with self.index.reading() as database:
            rows = database.execute(
                "SELECT grp.* FROM grp JOIN problem ON problem.id = grp.problem WHERE name = ? ORDER BY step",
                (clean(name),),
            ).fetchall()
            if not rows:
                raise NotThere(f"no rollout of this run is of problem {name!r}")
            line = database.execute("SELECT * FROM rollout WHERE id = ?", (rows[-1]["first"],)).fetchone()
        (record,) = self._records([line])
        return {
            "problem": name, "prompt": record["prompt"], "reference": record["reference"], "source": record["source"],
            "visits": [
                {"step": row["step"], "group": row["grp"], "visit": row["visit"], "n": row["n"],
                 "judged": row["judged"], "correct": row["correct"],
                 "reward": row["reward"] / row["scored"] if row["scored"] else None}
                for row in rows
            ],
        }  # fmt: skip

    def completions(self, name: str, steps: Sequence[int], sample: int) -> list[dict[str, Any]]:
        """One completion to a problem in each of a few steps: the `sample`-th of its group, whole."""
        with self.index.reading() as database:
            rows = [
                database.execute(
                    "SELECT rollout.* FROM rollout JOIN problem ON problem.id = rollout.problem "
                    "WHERE name = ? AND step = ? ORDER BY abs(sample - ?) LIMIT 1", (clean(name), step, sample),
                ).fetchone()
                for step in steps[:8]
            ]  # fmt: skip
        return list(self._records([row for row in rows if row is not None]))

    # ---------------------------------------------------------------------------------------------------------- lines

    def _records(self, rows: Sequence[sqlite3.Row]) -> Iterator[dict[str, Any]]:
        """Lines of the file; an index may be a moment behind a file that was truncated, which `NotThere` says."""
        with self.index.rollouts.open("rb") as file:
            for row in rows:
                try:
                    record = json.loads(os.pread(file.fileno(), row["length"], row["place"]))
                except ValueError:
                    raise NotThere("the run is writing these steps anew: look again in a moment") from None
                yield record


def excerpt(text: str, search: str) -> str:
    """A piece of a text around the first word that was searched for, its end where nothing was."""
    words = re.findall(r"\w+", search)
    wanted = (r"\W+".join(words), "|".join(words)) if words else ()
    match = next(filter(None, (re.search(rf"\b(?:{word})", text, re.IGNORECASE) for word in wanted)), None)
    start = max(0, match.start() - EXCERPT // 3) if match else max(0, len(text) - EXCERPT)
    piece = text[start : start + EXCERPT]
    return ("…" if start else "") + piece + ("…" if start + EXCERPT < len(text) else "")


def _conditions(database: sqlite3.Connection, wanted: Filter) -> tuple[list[str], list[Any]]:
    """SQL of a filter's fields, but for its search."""
    conditions: list[str] = []
    values: list[Any] = []
    for column, sign, value in (
        ("reward", ">=", wanted.reward_min), ("reward", "<=", wanted.reward_max), ("tokens", ">=", wanted.tokens_min),
        ("tokens", "<=", wanted.tokens_max), ("step", ">=", wanted.step_min), ("step", "<=", wanted.step_max),
        ("finish", "=", wanted.finish), ("content", "=", wanted.content),
    ):  # fmt: skip
        if value is not None:
            conditions.append(f"+rollout.{column} {sign} ?")  # +: a page in the order of the file needs no other index
            values.append(value)
    if wanted.problem is not None:
        conditions.append("rollout.problem = (SELECT id FROM problem WHERE name = ?)")
        values.append(clean(wanted.problem))
    if wanted.outcome is not None or wanted.disagree is not None:
        fitting = []
        for row in database.execute("SELECT id, outcomes, first FROM combo"):
            outcomes = json.loads(row["outcomes"])
            if wanted.outcome is not None and outcomes.get(wanted.term, None if wanted.term else row["first"]) != (
                wanted.outcome
            ):
                continue
            second = outcomes.get(wanted.disagree)
            if wanted.disagree is not None and (second is None or (second == "CORRECT") == (row["first"] == "CORRECT")):
                continue
            fitting.append(row["id"])
        conditions.append(f"rollout.combo IN ({','.join(map(str, fitting))})")
    return conditions, values


def _names(database: sqlite3.Connection, numbers: set[int]) -> Iterator[tuple[int, str]]:
    for number in numbers:
        yield number, database.execute("SELECT name FROM problem WHERE id = ?", (number,)).fetchone()["name"]


def _is_graded(database: sqlite3.Connection) -> bool:
    """True if the first term gives partial marks, so that "right" says too little."""
    return database.execute("SELECT 1 FROM combo WHERE first = 'PARTIAL' LIMIT 1").fetchone() is not None


def _reward_range(database: sqlite3.Connection) -> tuple[float, float]:
    """The least and the greatest mean reward of a group."""
    low, high = database.execute(
        "SELECT min(reward / scored), max(reward / scored) FROM grp WHERE scored > 0"
    ).fetchone()
    return low or 0.0, high or 0.0


def _quarters(database: sqlite3.Connection) -> dict[str, Any]:
    """`Rollouts.solved` for a run with partial marks."""
    low, high = _reward_range(database)
    bounds = [*(low + (high - low) * quarter / 4 for quarter in range(4)), high]
    mean = "reward / scored"
    each = [f"sum({mean} {'>=' if place == 0 else '>'} ? AND {mean} <= ?) AS quarter{place}" for place in range(4)]
    ends = [end for place in range(4) for end in bounds[place : place + 2]]
    rows = database.execute(
        f"SELECT step, {', '.join(each)} FROM grp WHERE scored > 0 GROUP BY step ORDER BY step", ends
    ).fetchall()
    points = _thin([list(row) for row in rows], 400)
    return {"steps": [point[0] for point in points], "bounds": bounds,
            "quarters": [[point[place + 1] for point in points] for place in range(4)]}  # fmt: skip


def _thin(points: list[list[float]], limit: int) -> list[list[float]]:
    """At most `limit` of the points, evenly, the last always."""
    if len(points) <= limit:
        return points
    return [points[round(place * (len(points) - 1) / (limit - 1))] for place in range(limit)]
