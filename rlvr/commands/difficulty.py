"""Measures how hard problems are: the starting policy's pass rate, and how often it guesses right without reasoning."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlvr.config import RecipeError
from rlvr.problems.data import Data
from rlvr.problems.templates import Renderer, check_fits
from rlvr.records import Problem, RolloutGroup
from rlvr.rollout.evaluate import problem_result
from rlvr.rollout.rollouts import Rollouts

BATCH = 256
"""Problems that are sampled together and written down before the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """How completions without reasoning are tried (Kimi k1.5's easy-to-hack filter, 2501.12599, 2.1)."""

    tries: int
    begin: str | None
    """What each completion begins with, so that nothing but the answer can follow; None takes `answer_at_once`."""
    max_new_tokens: int


def answer_at_once(template: str, prefill: str) -> str:
    """The beginning of a completion that leaves no room for reasoning, after the template's own prefill."""
    is_thinking = prefill.rstrip().endswith("<think>")
    if template in ("r1_zero", "r1_zero_think"):
        return " </think> <answer>" if is_thinking else " <think> </think> <answer>"
    return ("\n</think>\n\n" if is_thinking else "" if template in ("chat", "qwen_math") else "\n") + (
        "The answer is \\boxed{"
    )


def measure(
    rollouts: Rollouts, data: Data, problems: Sequence[Problem], samples: int, guess: Guess | None, template: str
) -> Iterator[tuple[list[RolloutGroup], list[dict[str, Any]]]]:
    """For each batch of problems its groups and its lines for `rlvr.problems.difficulty`.

    Raises `RecipeError` before anything is sampled where the guessing prompts do not fit the engine.
    """
    begin = "" if guess is None else _begin(data.renderer, problems, guess, template)
    if guess is not None:
        with data.renderer.beginning(begin):
            prompts = [data.renderer.render(problem) for problem in problems]
        check_fits(prompts, guess.max_new_tokens, rollouts.engine.model_len)
    for start in range(0, len(problems), BATCH):
        batch = problems[start : start + BATCH]
        groups = rollouts.sample([(problem, 0) for problem in batch], samples, rollouts.sampling)
        lines = [line_of(group) for group in groups]
        if guess is not None:
            sampling = dataclasses.replace(rollouts.sampling, max_new_tokens=guess.max_new_tokens)
            with data.renderer.beginning(begin):
                guessed = rollouts.sample([(problem, 1) for problem in batch], guess.tries, sampling)
            lines = [line | guesses_of(group) for line, group in zip(lines, guessed, strict=True)]
        yield groups, lines


def _begin(renderer: Renderer, problems: Sequence[Problem], guess: Guess, template: str) -> str:
    if guess.begin is None:
        return answer_at_once(template, renderer.render(problems[0]).prefill)
    if not guess.begin.strip():
        raise RecipeError("--guess-begin: an empty beginning would leave room for reasoning; give one, or leave it out")
    return guess.begin


def line_of(group: RolloutGroup) -> dict[str, Any]:
    """Pass rate and mean length of a group, as a line of the difficulty file."""
    correct = problem_result(group).correct
    return {
        "id": group.problem.id,
        "key": group.problem.key,
        "pass_rate": sum(correct) / len(correct) if correct else None,
        "samples": len(correct),
        "mean_length": statistics.fmean(len(rollout.ids) for rollout in group.rollouts) if correct else None,
    }


def guesses_of(group: RolloutGroup) -> dict[str, Any]:
    """The fields of a line about a group that was sampled without reasoning."""
    correct = problem_result(group).correct
    return {"guess_rate": sum(correct) / len(correct) if correct else None, "guesses": len(correct)}
