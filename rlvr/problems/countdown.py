"""Generated Countdown games: reach a target from given numbers, each used once. Solvable by construction."""

from __future__ import annotations

import random

from rlvr.config.problems import Countdown
from rlvr.problems.held_out import is_held_out, rank
from rlvr.problems.keys import countdown_key
from rlvr.problems.rows import ProblemError
from rlvr.records import Problem

QUESTION = (
    "Using the numbers {numbers}, create an equation that equals {target}. You can use basic arithmetic operations "
    "(+, -, *, /) and parentheses, and each number must be used exactly once. Return the final expression in "
    "<answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
)
"""After TinyZero's wording (github.com/Jiayi-Pan/TinyZero, examples/data_preprocess/countdown.py)."""

PATIENCE = 2000
"""Draws in a row without a new game, for a split that holds every game, after which the settings are held to be
exhausted; a split that holds a share of the games has as many more."""


def generate_countdown(source: Countdown) -> list[Problem]:
    """`size` different games of the split, the same for the same settings.

    A game belongs to the split ``eval`` by a hash of its key alone, so that train and eval stay apart whatever their
    sizes are, as long as seed and held_out agree. Raises `ProblemError` when the settings hold fewer games than `size`.
    """
    smallest, largest = source.numbers
    if not 2 <= smallest <= largest <= 8:
        raise ProblemError(f"countdown: numbers must be [fewest, most], 2 <= fewest <= most <= 8, got {source.numbers}")
    if source.high < source.low:
        raise ProblemError(f"countdown: high must be at least low = {source.low}, got {source.high}")
    if source.split != "all" and not 0.0 < source.held_out < 1.0:
        raise ProblemError(f"countdown: split {source.split!r} needs held_out between 0 and 1, got {source.held_out}")
    share = {"all": 1.0, "train": 1.0 - source.held_out, "eval": source.held_out}[source.split]
    draws = random.Random(rank(source.seed, "countdown"))
    games: dict[str, Problem] = {}
    misses = 0
    while len(games) < source.size:
        numbers = [draws.randint(source.low, source.high) for _ in range(draws.randint(smallest, largest))]
        target, solution = _combine(numbers, draws)
        if misses * share >= PATIENCE:
            raise ProblemError(
                f"countdown: found {len(games)} different games of split {source.split!r}, size asks for "
                f"{source.size}: widen numbers, low..high or target_high, or lower size"
            )
        misses += 1
        if not 1 <= target <= source.target_high:
            continue
        key = countdown_key(numbers, target)
        if key in games or not _in_split(source, key):
            continue
        misses = 0
        games[key] = _problem(numbers, target, key, solution)
    return list(games.values())


def _in_split(source: Countdown, key: str) -> bool:
    return source.split == "all" or is_held_out(source.seed, key, source.held_out) == (source.split == "eval")


def _combine(numbers: list[int], draws: random.Random) -> tuple[int, str]:
    """The value of a random expression that uses each number once, dividing only without remainder; the expression."""
    parts = [(number, str(number)) for number in numbers]
    while len(parts) > 1:
        a, left = parts.pop(draws.randrange(len(parts)))
        b, right = parts.pop(draws.randrange(len(parts)))
        sign = draws.choice("+-*/" if b and a % b == 0 else "+-*")
        value = {"+": a + b, "-": a - b, "*": a * b}[sign] if sign != "/" else a // b
        parts.append((value, f"({left} {sign} {right})"))
    value, expression = parts[0]
    return value, expression[1:-1]


def _problem(numbers: list[int], target: int, key: str, solution: str) -> Problem:
    name = f"countdown/{'_'.join(map(str, numbers))}_to_{target}"
    return Problem(
        id=name,
        prompt=QUESTION.format(numbers=numbers, target=target),
        reference={"numbers": list(numbers), "target": target},
        key=key,
        source=name,
        meta={"solution": solution},
    )
