"""Saves a batch whose loss or gradient was not finite, with the weights at that time, for ``rlvr replay`` to examine.

FOLDER/non_finite/step_000012/   the policy at that step, in Hugging Face format
    recipe.yaml                  the run's recipe
    batch.pt                     the micro-batches of the optimiser step, of all ranks
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor

from rlvr.config import Recipe, RecipeError, load_recipe
from rlvr.config.algorithm import GivenTextLikelihood
from rlvr.learn.forward import forward
from rlvr.learn.meter import Meter
from rlvr.learn.objective import Objective, PolicyGradient, TokenBatch
from rlvr.learn.optimiser_step import NonFiniteError
from rlvr.learn.policy import Policy
from rlvr.learn.texts import TextLikelihood
from rlvr.learn.update import Learner
from rlvr.records import MicroBatch, SharedPrompts, StepStatistics

_BATCH, _RECIPE = "batch.pt", "recipe.yaml"


@dataclasses.dataclass(frozen=True, slots=True)
class SampleReport:
    """The loss and gradient of one sample of a saved batch under the saved weights."""

    rank: int
    micro_batch: int
    sample: int
    """Its place in the step's list of samples, or of given texts, whose micro-batches come last."""
    tokens: int
    """Trained ones."""
    loss: float
    """Its part of the step's loss."""
    least_logprob: float
    """The least log-probability of a trained token, in nats; nan if one is."""
    grad_norm: float
    """Norm of the gradient of the whole micro-batch that it stands in."""

    @property
    def is_finite(self) -> bool:
        """False for a sample to look at."""
        return all(map(math.isfinite, (self.loss, self.least_logprob, self.grad_norm)))


def keep_batch(folder: Path, step: int, error: NonFiniteError, learner: Learner, recipe: Recipe) -> Path:
    """Write what `replay` reads, into the run's `folder`; all ranks call it, rank 0 writes.

    Raises `OSError` if the disk does not take it.
    """
    target = folder / "non_finite" / f"step_{step:06d}"
    own: dict[str, Any] = {"first": error.first, "batches": [_to_plain(batch) for batch in error.batches],
                            "texts": [_to_plain(batch) for batch in error.texts]}  # fmt: skip
    ranks = [own]
    if learner.accelerator.num_processes > 1:
        ranks = [{} for _ in range(learner.accelerator.num_processes)]
        dist.all_gather_object(ranks, own)
    if learner.accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        torch.save(ranks, target / _BATCH)
        text = yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
        (target / _RECIPE).write_text(text, encoding="utf-8")
    learner.save_policy(target)
    return target


def replay(folder: Path, *, run_plugins: bool = False) -> Iterator[SampleReport]:
    """Compute each micro-batch of a kept batch again, forward and backward, and say what each sample does.

    Raises `RecipeError` if `folder` holds no kept batch, and for a recipe that names plug-ins unless `run_plugins`:
    the folder may be somebody else's, and a plug-in is any function that can be imported.
    """
    if not (folder / _BATCH).is_file():
        raise RecipeError(f"{folder} holds no {_BATCH}: a run that stops because a loss is not finite writes one")
    recipe = load_recipe(folder / _RECIPE)
    if not run_plugins and (named := sorted(_plugins(recipe.algorithm.model_dump()))):
        raise RecipeError(
            f"{folder / _RECIPE} names {', '.join(named)}, which replay would import and run; if the folder and these "
            "are yours, add --run-plugins"
        )
    model = recipe.model.model_copy(update={"path": str(folder)})
    policy = Policy.load(model, head_chunk=recipe.learner.head_chunk)
    objective, given = PolicyGradient(recipe.algorithm, recipe.rollout.temperature), recipe.algorithm.given_text
    texts = TextLikelihood(given.coefficient) if isinstance(given, GivenTextLikelihood) else None
    for rank, kept in enumerate(torch.load(folder / _BATCH, weights_only=True)):
        parts: list[tuple[dict[str, Any], Objective]] = [(values, objective) for values in kept["batches"]]
        if texts is not None:
            parts += [(values, texts) for values in kept["texts"]]
        for place, (values, batch_objective) in enumerate(parts):
            yield from _look_at(_from_plain(values), policy, batch_objective, rank, place, first=kept["first"])


def _look_at(
    batch: MicroBatch, policy: Policy, objective: Objective, rank: int, place: int, *, first: bool
) -> Iterator[SampleReport]:
    policy.zero_grad()
    logprobs, entropy = forward(policy, batch, objective.temperature)
    tokens = TokenBatch(batch=batch, logprobs=logprobs, entropy=entropy, is_first=first)
    loss = objective.loss(tokens, Meter(batch.ids.device))
    loss.backward()
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
    for row, sample in enumerate(batch.index):
        trained = (batch.sequence == row) & batch.loss_mask.bool()
        if not bool(trained.any()):
            continue
        alone = dataclasses.replace(batch, token_weight=batch.token_weight * trained)
        with torch.no_grad():
            tokens = TokenBatch(batch=alone, logprobs=logprobs.detach(), entropy=entropy, is_first=first)
            part = objective.loss(tokens, Meter(batch.ids.device))
        least_logprob = float(logprobs.detach()[trained].min())
        yield SampleReport(rank, place, sample, int(trained.sum()), float(part), least_logprob, norm)


def _plugins(values: Any) -> Iterator[str]:
    """The import paths in a part of a recipe, as a plain value."""
    if isinstance(values, dict):
        if ":" in str(values.get("type", "")):
            yield values["type"]
        for value in values.values():
            yield from _plugins(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _plugins(value)


def _to_plain(record: Any) -> Any:
    """A record of tensors as a dictionary, on the CPU."""
    if isinstance(record, MicroBatch | SharedPrompts | StepStatistics):
        return {field.name: _to_plain(getattr(record, field.name)) for field in dataclasses.fields(record)}
    return record.detach().cpu() if isinstance(record, Tensor) else record


def _from_plain(values: dict[str, Any]) -> MicroBatch:
    kinds = {"layout": SharedPrompts, "statistics": StepStatistics}
    inner = {name: kind(**values[name]) for name, kind in kinds.items() if values[name] is not None}
    return MicroBatch(**values | inner)
