"""The plan of an update: rank 0 splits samples into optimiser steps, packs them for all ranks, and distributes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from accelerate import Accelerator

import rlvr.control as control
from rlvr.config.recipe import LearnerConfig
from rlvr.learn.objective import Objective
from rlvr.learn.texts import GivenTexts, TextLikelihood
from rlvr.records import MicroBatch, TrainingSample


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """One rank's share of an update: micro-batches for each optimiser step, the same number on every rank."""

    steps: tuple[tuple[MicroBatch, ...], ...]
    over_limit: int
    """Samples longer than the limit, each in a micro-batch of its own (all ranks)."""
    keep: tuple[Mapping[int, int], ...]
    """For each optimiser step the samples to keep log-probabilities of: index in the step -> index in the batch."""
    texts: tuple[tuple[MicroBatch, ...], ...]
    """For each optimiser step of each epoch the given texts; empty where the objective has none."""


class Planner:
    """Makes plans on rank 0 and gives each rank its own; draws nothing and remembers nothing."""

    def __init__(
        self, config: LearnerConfig, accelerator: Accelerator, texts: GivenTexts | None,
        text_objective: TextLikelihood | None,
    ) -> None:  # fmt: skip
        """``texts`` are the rows of ``algorithm.given_text``, on rank 0."""
        self._config, self._accelerator = config, accelerator
        self._texts, self._text_objective = texts, text_objective

    def share(
        self, samples: Sequence[TrainingSample] | None, objective: Objective, *, keep: Collection[int], updates: int,
        with_texts: bool,
    ) -> Plan:  # fmt: skip
        """This rank's plan; all ranks call it, rank 0 passes the samples. ``updates`` is the number of optimiser steps
        that the run has made; ``with_texts`` plans the given texts besides.

        If rank 0 raises, the others are told before it does, and raise `RuntimeError`.
        """
        plans: list[Plan] | None = None
        try:
            if self._accelerator.is_main_process:
                if samples is None:
                    raise ValueError("rank 0 must pass the samples of an update")
                texts = self._plan_texts(objective, updates) if with_texts else []
                plans = self._plan(samples, objective, keep, texts)
        finally:
            plan = control.scatter(plans)
        if plan is None:
            raise RuntimeError("rank 0 could not prepare this update and stopped; its message says why")
        return plan

    def _plan(
        self, samples: Sequence[TrainingSample], objective: Objective, keep: Collection[int],
        texts: list[list[list[MicroBatch]]],
    ) -> list[Plan]:  # fmt: skip
        """For each rank the micro-batches of each optimiser step of an epoch; a step is an equal share of groups."""
        groups = sorted({sample.group for sample in samples})
        share = math.ceil(len(groups) / objective.updates) if groups else 0
        per_step: list[list[list[MicroBatch]]] = []
        kept: list[dict[int, int]] = []
        limit, ranks = self._config.micro_batch_tokens, self._accelerator.num_processes
        for step in range(objective.updates):
            step_groups = set(groups[step * share : (step + 1) * share])
            chosen = [index for index, sample in enumerate(samples) if sample.group in step_groups]
            kept.append({place: index for place, index in enumerate(chosen) if index in keep})
            per_step.append(
                objective.pack([samples[index] for index in chosen], limit, self._config.packing, ranks=ranks)
            )
        over = sum(1 for sample in samples if sample.trained_tokens and len(sample.ids) - 1 > limit)
        return [
            Plan(
                tuple(tuple(packed[rank]) for packed in per_step), over, tuple(kept),
                tuple(tuple(packed[rank]) for packed in texts),
            )
            for rank in range(ranks)
        ]  # fmt: skip

    def _plan_texts(self, objective: Objective, updates: int) -> list[list[list[MicroBatch]]]:
        """For each optimiser step, each rank's given texts; the number of the step decides which rows it has."""
        if self._texts is None or self._text_objective is None:
            return []
        limit, ranks = self._config.micro_batch_tokens, self._accelerator.num_processes
        return [
            self._text_objective.pack(self._texts.of_update(update), limit, self._config.packing, ranks=ranks)
            for update in range(updates, updates + objective.updates * objective.epochs)
        ]
