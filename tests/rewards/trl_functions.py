"""Reward functions as people write them for TRL, for the tests of the adapter."""

from __future__ import annotations

from typing import Any


def exact(prompts: list[Any], completions: list[Any], solution: list[str], **kwargs: Any) -> list[float]:
    return [1.0 if text == right else 0.0 for text, right in zip(completions, solution, strict=True)]


def chat_length(completions: list[Any], **kwargs: Any) -> list[float]:
    return [min(1.0, len(completion[0]["content"]) / 10) for completion in completions]


async def asynchronous(prompts: list[Any], completions: list[Any], solution: list[str]) -> list[float | None]:
    return [None if right == "" else float(right in text) for text, right in zip(completions, solution, strict=True)]


def broken(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float("nan")]


def flat(completions: list[Any], **kwargs: Any) -> float:
    return 1.0


def inside_only(completions: list[Any], completion_ids: list[Any]) -> list[float]:
    return [0.0]
