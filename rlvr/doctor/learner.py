"""Compares engine and learner on the same tokens: how far they differ, and what an update costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from rlvr.config import Recipe
from rlvr.config.algorithm import TokenMean
from rlvr.learn.packing import pack
from rlvr.learn.policy import Policy
from rlvr.records import RolloutGroup, TrainingSample
from rlvr.rules.finding import Finding, Grade
from rlvr.rules.rule import Rule
from rlvr.runlog.glossary import find

APART = 1.0
"""Mean |difference| in nats from which engine and learner are two models."""
MOST_SAMPLES = 64


def _healthy(key: str) -> float:
    metric = find(key)
    assert metric is not None
    assert metric.healthy is not None
    assert metric.healthy[1] is not None
    return metric.healthy[1]


ABS, K3 = _healthy("mismatch/abs"), _healthy("mismatch/kl")

MISMATCH = Rule(
    "engine_learner_mismatch", Grade.STOPS,
    f"log-probabilities of sampled tokens differ by {APART:g} nat or more on average between engine and learner; "
    f"from a mean of {ABS:g} or a mean k3 of {K3:g} on it slows learning (the glossary's healthy ranges)",
    "set rollout.engine.dtype and model.dtype or autocast to the same type, model.head_dtype: float32, or correct "
    "by algorithm.correction: {type: truncate}; several tenths are no rounding: look for other weights or settings "
    "in rollout.engine.extra",
)  # fmt: skip
LEARNER_RULES = (MISMATCH,)


@dataclass(frozen=True, slots=True)
class Compared:
    """Engine and learner over the same sampled tokens."""

    tokens: int
    mean_abs: float
    """Mean |log pi - log mu| a token, in nats."""
    k3: float
    """Mean of rho - log rho - 1, rho = pi / mu (as mismatch/kl)."""
    largest: float
    seconds_per_token: float
    """Of a forward and a backward pass, per position."""


def compare(recipe: Recipe, groups: Sequence[RolloutGroup], device: torch.device) -> Compared:
    """Load the learner's model and compute the sampled tokens again, as an update would. Raises `PolicyError`."""
    rollouts = [rollout for group in groups for rollout in group.rollouts if any(rollout.loss_mask)]
    chosen = rollouts[:: max(1, len(rollouts) // MOST_SAMPLES)][:MOST_SAMPLES]
    place = {id(rollout): index for index, group in enumerate(groups) for rollout in group.rollouts}
    samples = [
        TrainingSample(
            ids=rollout.prompt_ids + rollout.ids,
            loss_mask=(0,) * len(rollout.prompt_ids) + rollout.loss_mask,
            behaviour_logprobs=(0.0,) * len(rollout.prompt_ids) + rollout.behaviour_logprobs,
            advantage=1.0,
            group=place[id(rollout)],
        )
        for rollout in chosen
    ]
    policy = Policy.load(recipe.model, head_chunk=recipe.learner.head_chunk)
    policy.check_packing(recipe.learner.packing)
    policy.to(device)
    batches = pack(samples, TokenMean(), recipe.learner.micro_batch_tokens, recipe.learner.packing)
    apart = []
    seconds = 0.0
    for number, batch in enumerate(batch.to(device) for batch in batches):
        with torch.set_grad_enabled(number == 0):  # one backward pass tells what it takes
            started = time.perf_counter()
            logprobs, _ = policy(
                batch.ids, batch.positions, batch.targets, batch.loss_mask, recipe.rollout.temperature, batch.layout
            )
            if number == 0:
                logprobs.sum().backward()
                seconds = (time.perf_counter() - started) / batch.tokens
        apart.append((logprobs.detach() - batch.behaviour_logprobs)[batch.loss_mask.bool()].float().cpu())
    delta = torch.cat(apart)
    return Compared(
        tokens=delta.numel(),
        mean_abs=delta.abs().mean().item(),
        k3=(delta.exp() - delta - 1).mean().item(),
        largest=delta.abs().max().item(),
        seconds_per_token=seconds,
    )


def check_mismatch(recipe: Recipe, compared: Compared) -> Iterator[Finding]:
    """A finding where the two differ by more than rounding."""
    corrected = recipe.algorithm.correction.type != "none" or recipe.algorithm.ratio.against == "behaviour"
    if compared.mean_abs < ABS and compared.k3 < K3:
        return
    dtypes = (
        f"engine in {recipe.rollout.engine.dtype}, learner in {recipe.model.dtype}, autocast {recipe.model.autocast}"
    )
    if compared.mean_abs >= APART:
        grade = Grade.STOPS
    else:
        grade = Grade.NOTE if corrected and compared.mean_abs < 2 * ABS else Grade.SLOWS
    yield MISMATCH.finding(
        f"over {compared.tokens} sampled tokens engine and learner differ by {compared.mean_abs:.3g} nat on average, "
        f"by at most {compared.largest:.3g}; k3 {compared.k3:.2g} ({dtypes})",
        grade=grade,
    )
