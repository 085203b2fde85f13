"""Completions of a run that may have fooled the verifier, as `rlvr.rules.suspects` defines them, over the whole run.

One rule is of this page alone: *disagreeing*, where the first verdict says right and another term's says no, while the
reward rises from the first third of the run to the last and the two terms' agreement falls.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from rlvr.rules.suspects import REFERENCES, high_reward, short_limits, unreasoned_limit
from rlvr.view.queries import PAGE, Rollouts

GROUPS = 16
"""Groups of each step whose completions' lengths count, which bounds the work."""
RISES, FALLS = 0.02, 0.05
"""Reward must rise by this share of its range, agreement fall by this much, for the two to part."""
POINTS = 300


def suspects(rollouts: Rollouts) -> list[dict[str, Any]]:
    """For each rule its name, what it found in words, how many, and the first page of rollouts."""
    with rollouts.index.reading() as database:
        (count,) = database.execute("SELECT count(*) FROM rollout WHERE reward IS NOT NULL").fetchone()
        if not count:
            return []
        low, top = database.execute("SELECT min(reward), max(reward) FROM rollout").fetchone()
        if low == top:
            return [
                {
                    "rule": "none",
                    "title": "Every reward is the same",
                    "count": 0,
                    "rows": [],
                    "text": f"All {count} scored completions have the reward {top:g}: none is higher than the others.",
                }
            ]
        high = high_reward(low, top)
        return [
            _short(rollouts, database, high),
            _repeated(rollouts, database, high),
            _unreasoned(rollouts, database, high),
            *_disagreeing(rollouts, database),
        ]


def _short(rollouts: Rollouts, database: sqlite3.Connection, high: float) -> dict[str, Any]:
    lengths: dict[int, list[int]] = {}
    for row in database.execute("SELECT step, tokens FROM rollout WHERE grp < ?", (GROUPS,)):
        lengths.setdefault(row["step"], []).append(row["tokens"])
    limits = short_limits(lengths)
    database.execute("CREATE TEMP TABLE short_limit (step INTEGER PRIMARY KEY, most INTEGER)")
    database.executemany("INSERT INTO short_limit VALUES (?, ?)", limits.items())
    where = (
        "FROM rollout JOIN short_limit ON short_limit.step = rollout.step "
        "WHERE rollout.tokens <= ? AND rollout.tokens <= short_limit.most AND reward >= ?"
    )
    values = (max(limits.values(), default=0), high)
    shortest = database.execute(f"SELECT rollout.* {where} ORDER BY tokens, id LIMIT {PAGE}", values).fetchall()
    (count,) = database.execute(f"SELECT count(*) {where}", values).fetchone()
    lowest, highest = min(limits.values(), default=0), max(limits.values(), default=0)
    return {
        "rule": "short", "title": "Very short", "count": count, "rows": rollouts.rows(database, shortest),
        "text": f"Reward of at least {high:g} with at most a quarter of the median length of its step and the ten "
        f"before: {lowest if lowest == highest else f'{lowest} to {highest}'} tokens.",
    }  # fmt: skip


def _repeated(rollouts: Rollouts, database: sqlite3.Connection, high: float) -> dict[str, Any]:
    groups = database.execute(
        "SELECT min(rollout.id) AS first, count(*) AS n, count(DISTINCT problem) AS problems, "
        "count(DISTINCT reference) AS refs FROM rollout JOIN problem ON problem.id = rollout.problem "
        "WHERE content IN (SELECT content FROM rollout WHERE reward >= ? GROUP BY content HAVING count(*) >= ?) "
        "AND reward >= ? GROUP BY content HAVING refs >= ? ORDER BY refs DESC, n DESC",
        (high, REFERENCES, high, REFERENCES),
    ).fetchall()
    examples = [
        database.execute("SELECT * FROM rollout WHERE id = ?", (row["first"],)).fetchone() for row in groups[:PAGE]
    ]
    rows = rollouts.rows(database, examples)
    for row, rollout, group in zip(rows, examples, groups, strict=False):
        row["content"] = str(rollout["content"])
        row["why"] = f"{group['n']} times, for {group['problems']} problems with {group['refs']} references"
    return {
        "rule": "repeated", "title": "The same text for different problems", "count": len(groups), "rows": rows,
        "text": f"One text, to the letter, has a reward of at least {high:g} under {REFERENCES} or more references.",
    }  # fmt: skip


def _unreasoned(rollouts: Rollouts, database: sqlite3.Connection, high: float) -> dict[str, Any]:
    result: dict[str, Any] = {"rule": "unreasoned", "title": "No reasoning before the answer", "count": 0, "rows": []}
    (known,) = database.execute("SELECT count(*) FROM rollout WHERE before IS NOT NULL").fetchone()
    if not known:
        return result | {"text": "No completion of this run bears a sign (<answer>, \\boxed, ####) of where it begins."}
    median = _median(database, "before")
    if (limit := unreasoned_limit(median)) is None:
        return result | {"text": f"The median answer begins after {median:g} words: reasoning is not this run's habit."}
    result["text"] = (
        f"Reward of at least {high:g}, and the answer begins within {limit} words; the median begins after {median:g}."
    )
    where = "FROM rollout WHERE before <= ? AND reward >= ?"
    hasty = database.execute(f"SELECT * {where} ORDER BY before, id LIMIT {PAGE}", (limit, high)).fetchall()
    (result["count"],) = database.execute(f"SELECT count(*) {where}", (limit, high)).fetchone()
    result["rows"] = rollouts.rows(database, hasty)
    return result


def _disagreeing(rollouts: Rollouts, database: sqlite3.Connection) -> list[dict[str, Any]]:
    """One finding for each term but the first."""
    combos = {row["id"]: json.loads(row["outcomes"]) for row in database.execute("SELECT id, outcomes FROM combo")}
    terms = list(dict.fromkeys(name for outcomes in combos.values() for name in outcomes))
    rewards = dict(
        database.execute("SELECT step, sum(reward) / sum(scored) FROM grp GROUP BY step HAVING sum(scored) > 0")
    )
    counts = database.execute("SELECT step, combo, n FROM step_combo ORDER BY step").fetchall()
    results = []
    for second in terms[1:]:
        agreement: dict[int, list[int]] = {}
        for row in counts:
            outcomes = combos[row["combo"]]
            if second in outcomes and terms[0] in outcomes and row["step"] in rewards:
                same = (outcomes[second] == "CORRECT") == (outcomes[terms[0]] == "CORRECT")
                sums = agreement.setdefault(row["step"], [0, 0])
                sums[0], sums[1] = sums[0] + same * row["n"], sums[1] + row["n"]
        steps = sorted(agreement)
        if len(steps) < 3:
            continue
        share = [agreement[step][0] / agreement[step][1] for step in steps]
        reward = [rewards[step] for step in steps]
        third = len(steps) // 3
        change = [sum(values[-third:]) / third - sum(values[:third]) / third for values in (reward, share)]
        spread = (max(reward) - min(reward)) or 1.0
        parted = change[0] > RISES * spread and change[1] < -FALLS
        ids = [combo for combo, outcomes in combos.items() if outcomes.get(terms[0]) == "CORRECT"
               and outcomes.get(second, "CORRECT") != "CORRECT"]  # fmt: skip
        where = f"FROM rollout WHERE combo IN ({','.join(map(str, ids))})"
        latest = database.execute(f"SELECT * {where} ORDER BY id DESC LIMIT {PAGE}").fetchall() if parted else []
        (count,) = database.execute(f"SELECT count(*) {where}").fetchone() if parted else (0,)
        every = max(1, len(steps) // POINTS)
        results.append({
            "rule": "disagreeing", "title": f"{terms[0]} says right, {second} does not", "count": count,
            "rows": rollouts.rows(database, latest), "term": second,
            "text": f"From the first third of the run to the last: reward {change[0]:+.3f}, agreement of {terms[0]} "
            f"and {second} {change[1]:+.3f}. " + ("Reward grows where the second verifier no longer follows."
                                                if parted else "They do not part."),
            "chart": {"x": steps[::every], "reward": reward[::every], "agreement": share[::every]},
        })  # fmt: skip
    return results


def _median(database: sqlite3.Connection, column: str) -> float:
    (count,) = database.execute(f"SELECT count({column}) FROM rollout").fetchone()
    (value,) = database.execute(
        f"SELECT {column} FROM rollout WHERE {column} IS NOT NULL ORDER BY {column} LIMIT 1 OFFSET ?", (count // 2,)
    ).fetchone()
    return float(value)
