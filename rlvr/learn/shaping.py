"""Shaping: what is added to the rewards of a group before the baseline.

Each formula is a pure function over the group's lengths; `shape` applies a recipe's list. A rollout that was not
scored (None) stays so, and takes no part in a group's shortest and longest completion.

A plug-in is ``f(rewards_G, rollouts_G, step, **args) -> list[float]``: what to add for each scored rollout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import assert_never

from rlvr.config.base import PlugIn
from rlvr.config.groups import CosineLength, KimiLength, Repetition, RepetitionStopped, Shaping, SoftOverlong
from rlvr.plugins import load_plugin
from rlvr.records import Rollout


def kimi_length(lengths_G: Sequence[int], is_correct_G: Sequence[bool]) -> list[float]:
    """Kimi k1.5's length reward (2501.12599, 2.3.3): 0.5 for the shortest to -0.5 for the longest completion of a
    group, and at most 0 for a wrong one; 0 for all where lengths are equal."""
    if not lengths_G or max(lengths_G) == min(lengths_G):
        return [0.0] * len(lengths_G)
    shortest, longest = min(lengths_G), max(lengths_G)
    lambdas = [0.5 - (length - shortest) / (longest - shortest) for length in lengths_G]
    return [lam if correct else min(0.0, lam) for lam, correct in zip(lambdas, is_correct_G, strict=True)]


def soft_overlong(length: int, max_tokens: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (2503.14476, eq. 13): 0 up to ``max_tokens - buffer`` tokens, then linearly down
    to -1 at ``max_tokens`` and beyond."""
    if length <= max_tokens - buffer:
        return 0.0
    if length <= max_tokens:
        return ((max_tokens - buffer) - length) / buffer
    return -1.0


def cosine_length(length: int, max_tokens: int, ends: tuple[float, float]) -> float:
    """Cosine length reward (2502.03373): from ``ends[0]`` for an empty completion to ``ends[1]`` at ``max_tokens`` and
    beyond, ends[1] + (ends[0] - ends[1]) (1 + cos(pi length / max_tokens)) / 2."""
    short, long = ends
    return long + (short - long) * (1.0 + math.cos(math.pi * min(length, max_tokens) / max_tokens)) / 2.0


def repetition(ids: Sequence[int], loss_mask: Sequence[int], ngram: int) -> float:
    """Repetition penalty (2502.03373 by way of open-r1): -(1 - different n-grams / n-grams) over the n-grams of token
    ids that the policy wrote in a row; 0 where there is none."""
    windows = zip(*(ids[start:] for start in range(ngram)), strict=False)
    whole = zip(*(loss_mask[start:] for start in range(ngram)), strict=False)
    written = [window for window, mask in zip(windows, whole, strict=True) if all(mask)]
    return len(set(written)) / len(written) - 1.0 if written else 0.0


def shape(rollouts_G: Sequence[Rollout], shapings: Sequence[Shaping], step: int) -> list[float]:
    """Shaped rewards of a group's scored rollouts at a training step (1 is the first).

    Each shaping sees the rewards as graded, and their terms are added up.

    Raises `ValueError` for a rollout without a reward and for a plug-in that returns another number of terms.
    """
    graded_G = [rollout.reward for rollout in rollouts_G]
    if any(reward is None for reward in graded_G):
        raise ValueError("only scored rollouts can be shaped: one without a reward was passed")
    rewards_G = [float(reward) for reward in graded_G if reward is not None]
    shaped_G = list(rewards_G)
    for shaping in shapings:
        terms_G = _terms(shaping, rewards_G, rollouts_G, step)
        if len(terms_G) != len(rewards_G):
            raise ValueError(f"shaping {shaping.type!r} returned {len(terms_G)} terms for {len(rewards_G)} rollouts")
        shaped_G = [reward + term for reward, term in zip(shaped_G, terms_G, strict=True)]
    return shaped_G


def _terms(shaping: Shaping, rewards_G: list[float], rollouts_G: Sequence[Rollout], step: int) -> list[float]:
    """The amounts that one shaping adds to each rollout of a group."""
    lengths_G = [len(rollout.ids) for rollout in rollouts_G]
    match shaping:
        case KimiLength():
            if step <= shaping.warmup_steps:
                return [0.0] * len(rollouts_G)
            terms_G = kimi_length(lengths_G, [rollout.is_correct is True for rollout in rollouts_G])
            return [shaping.weight * term for term in terms_G]
        case SoftOverlong():
            return [shaping.weight * soft_overlong(n, shaping.max_tokens, shaping.buffer) for n in lengths_G]
        case CosineLength():
            return [_cosine_term(rollout, shaping) for rollout in rollouts_G]
        case Repetition():
            return [
                shaping.weight * repetition(rollout.ids, rollout.loss_mask, shaping.ngram) for rollout in rollouts_G
            ]
        case RepetitionStopped():
            return [-shaping.penalty if rollout.finish_reason == "repetition" else 0.0 for rollout in rollouts_G]
        case PlugIn():
            plugged = load_plugin(shaping.type, shaping.args, positional=3)
            return [float(term) for term in plugged(rewards_G, rollouts_G, step)]
        case _:
            assert_never(shaping)


def _cosine_term(rollout: Rollout, config: CosineLength) -> float:
    length = len(rollout.ids)
    if config.exceeded is not None and length >= config.max_tokens:
        return config.exceeded
    return cosine_length(length, config.max_tokens, config.correct if rollout.is_correct is True else config.wrong)
