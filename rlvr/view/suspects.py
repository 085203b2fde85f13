"""Completions that may have fooled the verifier: a high reward with a text that does not look like its neighbours'.

| rule        | a completion of high reward whose ...                                                  |
|-------------|----------------------------------------------------------------------------------------|
| short       | tokens are at most a quarter of the median of its step and the ten before              |
| repeated    | text, to the letter, has a high reward under three or more different references        |
| unreasoned  | answer begins at once, where the median completion reasons for ten words or more       |
| disagreeing | first verdict says right and another term's says no, while the reward rises from the   |
|             | first third of the run to the last and the two terms' agreement falls                  |

High is what stands at or above nine tenths of the way from the run's least reward to its greatest. A rule looks at
the whole run; its thresholds stand here. A suspect is a text to read, not a verdict.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
from collections import deque
from itertools import chain
from typing import Any

from rlvr.view.queries import PAGE, Rollouts

HIGH = 0.9
SHORT = 0.25
STEPS, GROUPS = 10, 16
"""Earlier steps whose lengths count, and groups of each step that are looked at for them."""
REFERENCES = 3
REASONED = 10
"""Words before the answer that the median completion must have for the rule to say anything."""
UNREASONED = 0.1
"""Share of that median up to which an answer begins at once."""
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
        high = low + HIGH * (top - low)
        return [
            _short(rollouts, database, high),
            _repeated(rollouts, database, high),
            _unreasoned(rollouts, database, high),
            *_disagreeing(rollouts, database),
        ]


def _short(rollouts: Rollouts, database: sqlite3.Connection, high: float) -> dict[str, Any]:
    """Against the completions of the time: a policy that learns to be brief is no suspect, one that jumps there is."""
    limits = {step: int(SHORT * median) for step, median in _recent_medians(database).items()}
    database.execute("CREATE TEMP TABLE short_limit (step INTEGER PRIMARY KEY, most INTEGER)")
    database.executemany("INSERT INTO short_limit VALUES (?, ?)", limits.items())
    where = (
        "FROM rollout JOIN short_limit ON short_limit.step = rollout.step "
        "WHERE rollout.tokens <= ? AND rollout.tokens <= short_limit.most AND reward >= ?"
    )
    values = (max(limits.values(), default=0), high)
    found = database.execute(f"SELECT rollout.* {where} ORDER BY tokens, id LIMIT {PAGE}", values).fetchall()
    (count,) = database.execute(f"SELECT count(*) {where}", values).fetchone()
    least, most = min(limits.values(), default=0), max(limits.values(), default=0)
    return {
        "rule": "short", "title": "Very short", "count": count, "rows": rollouts.rows(database, found),
        "text": f"Reward of at least {high:g} with at most a quarter of the median length of its step and the ten "
        f"before: {least if least == most else f'{least} to {most}'} tokens.",
    }  # fmt: skip


def _recent_medians(database: sqlite3.Connection) -> dict[int, float]:
    """For each step the median length of the completions of it and the ten before; of the first groups of each, which
    bounds the work."""
    lengths: dict[int, list[int]] = {}
    for row in database.execute("SELECT step, tokens FROM rollout WHERE grp < ?", (GROUPS,)):
        lengths.setdefault(row["step"], []).append(row["tokens"])
    recent: deque[list[int]] = deque(maxlen=STEPS + 1)
    medians = {}
    for step in sorted(lengths):
        recent.append(lengths[step])
        medians[step] = statistics.median(chain.from_iterable(recent))
    return medians


def _repeated(rollouts: Rollouts, database: sqlite3.Connection, high: float) -> dict[str, Any]:
    groups = database.execute(
        "SELECT min(rollout.id) AS first, count(*) AS n, count(DISTINCT problem) AS problems, "
        "count(DISTINCT reference) AS refs FROM rollout JOIN problem ON problem.id = rollout.problem "
        "WHERE content IN (SELECT content FROM rollout WHERE reward >= ? GROUP BY content HAVING count(*) >= ?) "
        "AND reward >= ? GROUP BY content HAVING refs >= ? ORDER BY refs DESC, n DESC",
        (high, REFERENCES, high, REFERENCES),
    ).fetchall()
    found = [
        database.execute("SELECT * FROM rollout WHERE id = ?", (row["first"],)).fetchone() for row in groups[:PAGE]
    ]
    rows = rollouts.rows(database, found)
    for row, one, group in zip(rows, found, groups, strict=False):
        row["content"] = str(one["content"])
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
    if median < REASONED:
        return result | {"text": f"The median answer begins after {median:g} words: reasoning is not this run's habit."}
    limit = int(UNREASONED * median)
    result["text"] = (
        f"Reward of at least {high:g}, and the answer begins within {limit} words; the median begins after {median:g}."
    )
    where = "FROM rollout WHERE before <= ? AND reward >= ?"
    found = database.execute(f"SELECT * {where} ORDER BY before, id LIMIT {PAGE}", (limit, high)).fetchall()
    (result["count"],) = database.execute(f"SELECT count(*) {where}", (limit, high)).fetchone()
    result["rows"] = rollouts.rows(database, found)
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
    for other in terms[1:]:
        agreement: dict[int, list[int]] = {}
        for row in counts:
            outcomes = combos[row["combo"]]
            if other in outcomes and terms[0] in outcomes and row["step"] in rewards:
                same = (outcomes[other] == "CORRECT") == (outcomes[terms[0]] == "CORRECT")
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
        ids = [one for one, outcomes in combos.items() if outcomes.get(terms[0]) == "CORRECT"
               and outcomes.get(other, "CORRECT") != "CORRECT"]  # fmt: skip
        where = f"FROM rollout WHERE combo IN ({','.join(map(str, ids))})"
        found = database.execute(f"SELECT * {where} ORDER BY id DESC LIMIT {PAGE}").fetchall() if parted else []
        (count,) = database.execute(f"SELECT count(*) {where}").fetchone() if parted else (0,)
        every = max(1, len(steps) // POINTS)
        results.append({
            "rule": "disagreeing", "title": f"{terms[0]} says right, {other} does not", "count": count,
            "rows": rollouts.rows(database, found), "term": other,
            "text": f"From the first third of the run to the last: reward {change[0]:+.3f}, agreement of {terms[0]} "
            f"and {other} {change[1]:+.3f}. " + ("Reward grows where the second verifier no longer follows."
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
