"""The learner: training samples in, a better policy out.

    samples -> split into optimiser steps -> pack for all ranks -> scatter                    `Planner` (rank 0 decides)
            -> log-probabilities before the first step, if a ratio needs them                 (all ranks)
            -> reference log-probabilities, if a KL term needs them; the teacher's, if there is one
            -> numbers over all tokens of a step, if the loss needs them
            -> for each optimiser step: forward, loss, backward per micro-batch; clip; step   `OptimiserStep`
            -> metrics, reduced over ranks                                                    `Meter`
    policy  -> parameters by name for engines, a folder for checkpoints                       `PolicyWeights`

Denominators are over all micro-batches of all ranks of one optimiser step, fixed when packing. Nothing here draws a
random number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

import rlvr.control as control
from rlvr.config.algorithm import Algorithm, GivenTextLikelihood
from rlvr.config.recipe import LearnerConfig, Model
from rlvr.learn.backend import Backend
from rlvr.learn.device_clock import Clock, DeviceClock
from rlvr.learn.distill import load_teacher
from rlvr.learn.forward import forward, sequence_logprobs
from rlvr.learn.logged_logprobs import LoggedLogprobs, gather_logged_logprobs
from rlvr.learn.lora import base_policy
from rlvr.learn.lr_schedule import learning_rate
from rlvr.learn.meter import Meter, size_metrics, update_metrics
from rlvr.learn.objective import NegativeLogLikelihood, Objective, PolicyGradient
from rlvr.learn.optimiser_step import OptimiserStep, StepInputs
from rlvr.learn.plan import Planner
from rlvr.learn.policy import Policy
from rlvr.learn.policy_weights import PolicyWeights
from rlvr.learn.preference import DirectPreference
from rlvr.learn.random_states import random_states, set_random_states
from rlvr.learn.reference import ReferencePolicy
from rlvr.learn.texts import GivenTexts, TextLikelihood
from rlvr.records import MicroBatch, TrainingSample


class Learner:
    """The policy, its optimizer and how they are updated; every public method is called by all ranks.

    ``total_updates`` is the number of optimiser steps of the whole run (steps * updates_per_batch * epochs), for the
    learning rate's schedule; ``temperature`` is the one that rollouts are sampled at.
    """

    def __init__(
        self,
        model: Model,
        learner: LearnerConfig,
        algorithm: Algorithm,
        *,
        total_updates: int,
        temperature: float,
        accelerator: Accelerator,
        texts: GivenTexts | None = None,
    ) -> None:
        """``texts`` are the rows of ``algorithm.given_text``, on rank 0."""
        self.config, self.total_updates, self.accelerator = learner, total_updates, accelerator
        self.objective = PolicyGradient(algorithm, temperature)
        given, self._texts = algorithm.given_text, texts
        self.text_objective = TextLikelihood(given.coefficient) if isinstance(given, GivenTextLikelihood) else None
        if accelerator.is_main_process and (texts is None) != (self.text_objective is None):
            raise ValueError("texts go with algorithm.given_text: nll, and only with it")
        self.policy = Policy.load(model, head_chunk=learner.head_chunk)
        self.policy.check_packing(learner.packing)
        self.reference: ReferencePolicy | None = None
        kl = self.objective.kl
        on_base = model.lora is not None and kl is not None and kl.reference.type == "fixed"
        if kl is not None and not on_base:
            self.reference = ReferencePolicy(model, kl, head_chunk=learner.head_chunk, accelerator=accelerator)
        self.teacher: Policy | None = None
        if self.objective.teacher is not None:
            self.teacher = load_teacher(model, self.objective.teacher.path, self.policy).requires_grad_(False)
            self.teacher = accelerator.prepare_model(self.teacher, device_placement=True, evaluation_mode=True)
        self.backend = Backend(accelerator, self.policy, learner)
        self._reference_module: Any = self.reference.module if self.reference is not None else None
        if on_base:
            self._reference_module = base_policy(self.policy.model, self.backend.module)
        self.weights = PolicyWeights(self.policy, self.backend, accelerator, model.lora)
        self._planner = Planner(learner, accelerator, texts, self.text_objective)
        self._step = OptimiserStep(self.policy, self.backend, learner, accelerator)
        self.updates = 0
        """Optimiser steps taken or left out so far: the schedule's clock."""
        self.logged_logprobs: LoggedLogprobs = {}
        """Rank 0, after an update: what it was asked to keep; see `update`."""

    # -------------------------------------------------------------------------------------------------------- update

    def update(
        self, samples: Sequence[TrainingSample] | None, *, clock: Clock | None = None, keep: Collection[int] = ()
    ) -> dict[str, float]:
        """Train on one batch of rollouts; rank 0 passes the samples, all ranks get the metrics.

        For the samples whose indices rank 0 passes in ``keep``, `logged_logprobs` then holds the log-probabilities of
        their trained tokens before the first optimiser step on this batch, wherever those were computed.

        ``clock`` is told the phases pack, old_logprobs, ref_logprobs, teacher_logprobs, forward_backward and
        optimizer.

        Raises `NonFiniteError` as ``learner.non_finite`` says, `ValueError` for samples that cannot be trained, and on
        all other ranks `RuntimeError` if rank 0 raised.
        """
        before = self.updates
        if self.objective.algorithm.reset_optimizer:
            self.backend.load_optimizer_state({})
        metrics = self._run(samples, self.objective, clock, keep)
        metrics |= self.objective.observe(metrics)
        if self.reference is not None:
            followed = self.reference.follow(self.policy, before=before, after=self.updates)
            metrics["update/reference_moved"] = float(followed)
        return metrics

    def sft_update(self, samples: Sequence[TrainingSample] | None) -> dict[str, float]:
        """One optimiser step of supervised fine-tuning: the mean negative log-likelihood of the trained tokens."""
        return self._run(samples, NegativeLogLikelihood())

    def preference_update(
        self, samples: Sequence[TrainingSample] | None, objective: DirectPreference
    ) -> dict[str, float]:
        """One optimiser step of direct preference optimisation on pairs, as `rlvr.run.dpo` makes them."""
        return self._run(samples, objective)

    def _run(
        self,
        samples: Sequence[TrainingSample] | None,
        objective: Objective,
        clock: Clock | None = None,
        keep: Collection[int] = (),
    ) -> dict[str, float]:
        device = self.accelerator.device
        clock = DeviceClock(clock, device)
        with clock.phase("pack"):
            plan = self._planner.share(
                samples, objective, keep=keep, updates=self.updates, with_texts=objective is self.objective
            )
            steps = [[batch.to(device) for batch in step] for step in plan.steps]
            texts = [[batch.to(device) for batch in step] for step in plan.texts]
        for needed, field, module in (
            (objective.needs_old, "old_logprobs", self.backend.module),
            (objective.needs_ref, "ref_logprobs", self._reference_module),
            (objective.needs_teacher, "teacher_logprobs", self.teacher),
        ):
            if needed:
                with clock.phase(field):
                    steps = [[self._with(batch, field, module, objective) for batch in step] for step in steps]
        for place, step in enumerate(steps):
            numbers = objective.statistics(step, self.updates + place) if step else None
            if numbers is not None:
                steps[place] = [dataclasses.replace(batch, statistics=numbers) for batch in step]
        meter, logged = Meter(device), LoggedLogprobs()
        outcomes = []
        for epoch in range(objective.epochs):
            for place, step in enumerate(steps):
                lr = learning_rate(self.updates, self.total_updates, self.config.lr, self.config.schedule)
                self.updates += 1
                inputs = StepInputs(
                    number=self.updates, lr=lr, batches=step, objective=objective,
                    texts=texts[epoch * len(steps) + place] if texts else (), text_objective=self.text_objective,
                    is_first=epoch == 0 and (objective.needs_old or place == 0), keep=plan.keep[place],
                )  # fmt: skip
                outcomes.append(self._step.run(inputs, meter, logged, clock))
        if device.type == "cuda":
            self.backend.drop_gradients()
        self.logged_logprobs = gather_logged_logprobs(logged) if any(plan.keep) else {}
        return {
            **update_metrics(meter.totals(), outcomes),
            **size_metrics(self.policy.model, steps, texts, plan.over_limit, objective.epochs, device),
        }

    @torch.no_grad()
    def _with(self, batch: MicroBatch, field: str, module: Any, objective: Objective) -> MicroBatch:
        """The micro-batch with another model's log-probabilities filled in."""
        logprobs, entropy = forward(module, batch, objective.temperature)
        filled: dict[str, Any] = {field: logprobs} | ({"old_entropy": entropy} if field == "old_logprobs" else {})
        return dataclasses.replace(batch, **filled)

    # ----------------------------------------------------------------------------------------- weights, logprobs, state

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `PolicyWeights.named`."""
        return self.weights.named()

    def policy_writer(self, copy: bool) -> Callable[[Path], None]:
        """See `PolicyWeights.writer`."""
        return self.weights.writer(copy)

    def save_policy(self, folder: Path) -> None:
        """See `PolicyWeights.save`."""
        self.weights.save(folder)

    def load_policy(self, folder: Path) -> None:
        """See `PolicyWeights.load`; the reference stays as it is."""
        self.weights.load(folder)

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token given those before it, temperature 1; the first of a sequence is 0.0.

        Every rank passes the same sequences and gets the same result.
        """
        return sequence_logprobs(self.backend.module, sequences, self.config, self.accelerator.device)

    def state_dict(self) -> dict[str, Any]:
        """What, beside the policy's folder, decides the future: optimizer, schedule, random states of every rank.

        All ranks call it, rank 0's result is the one to save, or to copy, before the next update: those of others have
        shapes in place of large tensors.
        """
        rng = random_states(self.accelerator.device)
        everyone: list[Any] = [rng]
        if self.accelerator.num_processes > 1:
            everyone = [None] * self.accelerator.num_processes
            dist.all_gather_object(everyone, rng)
        return {
            "updates": self.updates,
            "optimizer": self.backend.optimizer_state(),
            "random": everyone,
            "objective": self.objective.state_dict(),
            "reference": self.reference.state_dict() if self.reference is not None else {},
            "texts": self._texts.fingerprint() if self._texts is not None else "",
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned on rank 0; of tensors other ranks need only the shapes.

        Random states are those of ranks: another number of ranks than before keeps its own (the learner draws nothing).
        """
        if self._texts is not None and self._texts.fingerprint() != state["texts"]:
            raise ValueError(
                "algorithm.given_text: the rows are not those of the checkpoint (the file, the template or run.seed "
                "changed); put them back, or start a new run"
            )
        self.updates = state["updates"]
        self.backend.load_optimizer_state(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])
        random = control.from_main(state["random"])
        if len(random) == self.accelerator.num_processes:
            set_random_states(random[self.accelerator.process_index], self.accelerator.device)
