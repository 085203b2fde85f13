"""A run's latest rollouts, read from the end of its file, as examples for what a rule reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlvr.config import Recipe
from rlvr.rules.history import UNREADABLE

LoggedRollout = dict[str, Any]
"""A line of ``rollouts.jsonl``."""

TAIL = 64 << 20
"""Bytes read from the end of the file: some ten thousand completions, a second's work."""
SHOWN = 2
EXCERPT = 120


def read_latest(path: Path, limit: int = TAIL) -> list[LoggedRollout]:
    """The last whole lines of the file, at most `limit` bytes of them, oldest first; greedy completions left out."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - limit))
        lines = file.read(limit).split(b"\n")
    lines = lines[1:-1] if size > limit else lines[:-1]  # the first may be torn by the limit, the last by a crash
    return [rollout for line in lines if (rollout := json.loads(line))["sample"] >= 0]


def place(rollout: LoggedRollout) -> str:
    """How people find it: step, problem and sample."""
    return f"rollout {rollout['step']}/{rollout['problem_id']}/{rollout['sample']}"


def shown(rollout: LoggedRollout, *, end: bool = False) -> str:
    """Its place, the beginning or end of its text, its reference and its reward."""
    text = rollout["text"]
    piece = repr(text) if len(text) <= EXCERPT else repr(text[-EXCERPT:]) if end else repr(text[:EXCERPT])
    dots = ("..." if end else "", "" if end else "...") if len(text) > EXCERPT else ("", "")
    return (
        f"{place(rollout)}: {dots[0]}{piece}{dots[1]}, reference {rollout['reference']!r}, reward {rollout['reward']}"
    )


def first_outcome(rollout: LoggedRollout) -> str:
    """Outcome of the first term that judged the completion, as its verdicts stand."""
    return next((verdict["outcome"] for verdict in rollout["verdicts"].values()), "")


def _has(*outcomes: str) -> Callable[[LoggedRollout], bool]:
    wanted = {outcome.upper() for outcome in outcomes}
    return lambda rollout: any(verdict["outcome"] in wanted for verdict in rollout["verdicts"].values())


_WANTED: dict[str, Callable[[LoggedRollout], bool]] = {
    "verifier_timeouts": _has("timeout"),
    "verifier_crashes": _has("crashed"),
    "unscored": _has("error", "bad_reference"),
    "all_truncated": lambda rollout: rollout["finish_reason"] == "length",
    "often_truncated": lambda rollout: rollout["finish_reason"] == "length",
    "length_exploding": lambda rollout: rollout["finish_reason"] == "length",
    "no_answer": lambda rollout: first_outcome(rollout).lower() in UNREADABLE,
    "dead_term": lambda rollout: True,
    "always_right": lambda rollout: True,
    "all_wrong": lambda rollout: first_outcome(rollout) == "WRONG",
    "constant_reward": lambda rollout: True,
    "learning_rate_too_large": lambda rollout: True,
    "reward_collapsed": lambda rollout: True,
    "length_collapsing": lambda rollout: True,
    "entropy_gone": lambda rollout: True,
    "entropy_exploding": lambda rollout: True,
    "no_variance": lambda rollout: True,
    "reward_without_eval": lambda rollout: first_outcome(rollout) == "CORRECT",
    "too_good_too_soon": lambda rollout: first_outcome(rollout) == "CORRECT",
}
"""Which completions show what a rule says."""
_BY_THE_END = ("all_truncated", "often_truncated", "length_exploding")


def examples(rule: str, rollouts: Sequence[LoggedRollout], recipe: Recipe) -> list[str]:
    """A few of the latest completions that show what a rule says, of different problems; none where none would help."""
    wanted = _WANTED.get(rule)
    chosen: dict[str, LoggedRollout] = {}
    for rollout in reversed(rollouts if wanted is not None else ()):
        if len(chosen) < SHOWN and wanted is not None and wanted(rollout):
            chosen.setdefault(rollout["problem_id"], rollout)
    details = [_error(rollout) for rollout in chosen.values()] if rule == "unscored" else []
    return [*(shown(rollout, end=rule in _BY_THE_END) for rollout in chosen.values()), *filter(None, details)]


def _error(rollout: LoggedRollout) -> str:
    """The verifier's error for a completion that it could not score."""
    for name, verdict in rollout["verdicts"].items():
        if verdict["score"] is None:
            return f"term {name!r} said {verdict['outcome']}: {str(verdict['detail'])[:300]}"
    return ""
