"""Loads the problems of a recipe's source."""

from __future__ import annotations

from collections import Counter

from rlvr.config.problems import Arithmetic, Benchmark, Countdown, HubDataset, JsonLinesConfig, ReasoningGym
from rlvr.problems.arithmetic import generate_arithmetic
from rlvr.problems.benchmarks import load_benchmark
from rlvr.problems.countdown import generate_countdown
from rlvr.problems.files import load_hub_dataset, load_jsonl
from rlvr.problems.gym import generate_gym
from rlvr.problems.rows import ProblemError
from rlvr.records import Problem


def load_problems(
    source: JsonLinesConfig | HubDataset | Arithmetic | Countdown | ReasoningGym | Benchmark,
) -> list[Problem]:
    """The problems of a source, in its own order, ids unique. Raises `ProblemError` naming what is wrong and where."""
    match source:
        case JsonLinesConfig():
            problems = load_jsonl(source)
        case HubDataset():
            problems = load_hub_dataset(source)
        case Arithmetic():
            problems = generate_arithmetic(source)
        case Countdown():
            problems = generate_countdown(source)
        case ReasoningGym():
            problems = generate_gym(source)
        case Benchmark():
            problems = load_benchmark(source)
    twice = [name for name, count in Counter(problem.id for problem in problems).items() if count > 1]
    if twice:
        raise ProblemError(f"problem ids must be unique, got {twice[0]!r} more than once")
    return problems
