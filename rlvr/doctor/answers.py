"""The latest answers of a run: read from the end of its file, and shown as evidence of what a rule says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlvr.config import Recipe
from rlvr.rules.history import UNREADABLE

Answer = dict[str, Any]
"""A line of ``rollouts.jsonl``."""

TAIL = 64 << 20
"""Bytes read from the end of the file: some ten thousand answers, a second's work."""
SHOWN = 2
EXCERPT = 120


def read_latest(path: Path, limit: int = TAIL) -> list[Answer]:
    """The last whole lines of the file, at most `limit` bytes of them, oldest first; greedy answers left out."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - limit))
        lines = file.read(limit).split(b"\n")
    lines = lines[1:-1] if size > limit else lines[:-1]  # the first may be torn by the limit, the last by a crash
    return [answer for line in lines if (answer := json.loads(line))["sample"] >= 0]


def place(answer: Answer) -> str:
    """Where people find it: step, problem and sample."""
    return f"rollout {answer['step']}/{answer['problem_id']}/{answer['sample']}"


def shown(answer: Answer, *, end: bool = False) -> str:
    """The place and a piece of the text, its beginning or its end, with what it was compared with."""
    text = answer["text"]
    piece = repr(text) if len(text) <= EXCERPT else repr(text[-EXCERPT:]) if end else repr(text[:EXCERPT])
    dots = ("..." if end else "", "" if end else "...") if len(text) > EXCERPT else ("", "")
    return f"{place(answer)}: {dots[0]}{piece}{dots[1]}, reference {answer['reference']!r}, reward {answer['reward']}"


def first_outcome(answer: Answer) -> str:
    """Outcome of the first term that judged the answer, as its verdicts stand."""
    return next((verdict["outcome"] for verdict in answer["verdicts"].values()), "")


def _has(*outcomes: str) -> Callable[[Answer], bool]:
    wanted = {outcome.upper() for outcome in outcomes}
    return lambda answer: any(verdict["outcome"] in wanted for verdict in answer["verdicts"].values())


_WANTED: dict[str, Callable[[Answer], bool]] = {
    "verifier_timeouts": _has("timeout"),
    "verifier_crashes": _has("crashed"),
    "unscored": _has("error", "bad_reference"),
    "all_truncated": lambda answer: answer["finish_reason"] == "length",
    "often_truncated": lambda answer: answer["finish_reason"] == "length",
    "length_exploding": lambda answer: answer["finish_reason"] == "length",
    "no_answer": lambda answer: first_outcome(answer).lower() in UNREADABLE,
    "dead_term": lambda answer: True,
    "always_right": lambda answer: True,
    "all_wrong": lambda answer: first_outcome(answer) == "WRONG",
    "constant_reward": lambda answer: True,
    "learning_rate_too_large": lambda answer: True,
    "reward_collapsed": lambda answer: True,
    "length_collapsing": lambda answer: True,
    "entropy_gone": lambda answer: True,
    "entropy_exploding": lambda answer: True,
    "no_variance": lambda answer: True,
    "reward_without_eval": lambda answer: first_outcome(answer) == "CORRECT",
    "too_good_too_soon": lambda answer: first_outcome(answer) == "CORRECT",
}
"""Which answers show what a rule says."""
_BY_THE_END = ("all_truncated", "often_truncated", "length_exploding")


def examples(rule: str, answers: Sequence[Answer], recipe: Recipe) -> list[str]:
    """A few of the latest answers that show what a rule says, of different problems; none where none would help."""
    wanted = _WANTED.get(rule)
    found: dict[str, Answer] = {}
    for answer in reversed(answers if wanted is not None else ()):
        if len(found) < SHOWN and wanted is not None and wanted(answer):
            found.setdefault(answer["problem_id"], answer)
    details = [_error(answer) for answer in found.values()] if rule == "unscored" else []
    return [*(shown(answer, end=rule in _BY_THE_END) for answer in found.values()), *filter(None, details)]


def _error(answer: Answer) -> str:
    """What the verifier said of an answer that it could not score."""
    for name, verdict in answer["verdicts"].items():
        if verdict["score"] is None:
            return f"term {name!r} said {verdict['outcome']}: {str(verdict['detail'])[:300]}"
    return ""
