"""The learner: training samples in, a better policy out.

    samples -> split into optimiser steps -> pack for all ranks -> scatter                    (rank 0 decides)
            -> log-probabilities before the first step, if a ratio needs them                 (all ranks)
            -> reference log-probabilities, if a KL term needs them; the teacher's, if there is one
            -> numbers over all tokens of a step, if the loss needs them
            -> for each optimiser step: forward, loss, backward per micro-batch; clip; step
            -> metrics, reduced over ranks

Denominators are over all micro-batches of all ranks of one optimiser step, fixed when packing. Nothing here draws a
random number.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from rlvr.config.algorithm import Algorithm, GivenTextLikelihood, TokenMean
from rlvr.config.recipe import LearnerConfig, Model
from rlvr.errors import RlvrError
from rlvr.learn.backend import Backend
from rlvr.learn.distill import load_teacher
from rlvr.learn.flops import update_flops
from rlvr.learn.kept import Kept, gather_kept, kept_of
from rlvr.learn.lora import base_policy, is_adapter, load_adapters, merged, save_adapters
from rlvr.learn.meter import Meter, update_metrics
from rlvr.learn.objective import NegativeLogLikelihood, Objective, PolicyGradient, TokenBatch
from rlvr.learn.packing import pack
from rlvr.learn.policy import Policy
from rlvr.learn.preference import DirectPreference
from rlvr.learn.random_states import random_states, set_random_states
from rlvr.learn.reference import ReferencePolicy
from rlvr.learn.schedule import learning_rate
from rlvr.learn.texts import GivenTexts, TextLikelihood
from rlvr.records import MicroBatch, TrainingSample

_MALLOC_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""None where the C library is not glibc."""


class NonFiniteError(RlvrError, FloatingPointError):
    """A loss or gradient is not finite; the message says which, where, and what to do. Raised on every rank."""

    def __init__(
        self, message: str, batches: Sequence[MicroBatch], texts: Sequence[MicroBatch] = (), *, first: bool
    ) -> None:
        """``batches`` and ``texts`` are this rank's of the optimiser step; ``first`` as `TokenBatch.is_first`."""
        super().__init__(message)
        self.batches, self.texts, self.first = tuple(batches), tuple(texts), first


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


class Clock(Protocol):
    """What measures the phases of an update."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Counts the time inside the block."""


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
        self.config, self.total_updates, self.accelerator, self.lora = learner, total_updates, accelerator, model.lora
        self.objective = PolicyGradient(algorithm, temperature)
        given, self._texts = algorithm.given_text, texts
        self.text_objective = TextLikelihood(given.coefficient) if isinstance(given, GivenTextLikelihood) else None
        if accelerator.is_main_process and (texts is None) != (self.text_objective is None):
            raise ValueError("texts go with algorithm.given_text: nll, and only with it")
        self.policy = Policy.load(model, head_chunk=learner.head_chunk)
        self.policy.check_packing(learner.packing)
        self.reference: ReferencePolicy | None = None
        kl = self.objective.kl
        on_base = self.lora is not None and kl is not None and kl.reference.type == "fixed"
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
        self.updates = 0
        """Optimiser steps taken or left out so far: the schedule's clock."""
        self.kept: Kept = {}
        """Rank 0, after an update: what it was asked to keep; see `update`."""

    # -------------------------------------------------------------------------------------------------------- update

    def update(
        self, samples: Sequence[TrainingSample] | None, *, clock: Clock | None = None, keep: Collection[int] = ()
    ) -> dict[str, float]:
        """Train on one batch of rollouts; rank 0 passes the samples, all ranks get the metrics.

        For the samples whose indices rank 0 passes in ``keep``, `kept` then holds the log-probabilities of their
        trained tokens before the first optimiser step on this batch, wherever those were computed.

        ``clock`` is told the phases pack, old_logprobs, ref_logprobs, teacher_logprobs, forward_backward and
        optimizer.

        Raises `NonFiniteError` as ``learner.non_finite`` says, `ValueError` for samples that cannot be trained, and on
        all other ranks `RuntimeError` if rank 0 raised.
        """
        before = self.updates
        if self.objective.algorithm.reset_optimizer:
            self.backend.load_optimizer_state({})
        metrics = self._run(samples, self.objective, clock or _NoClock(), keep)
        metrics |= self.objective.observe(metrics)
        if self.reference is not None:
            followed = self.reference.follow(self.policy, before=before, after=self.updates)
            metrics["update/reference_moved"] = float(followed)
        return metrics

    def sft_update(self, samples: Sequence[TrainingSample] | None) -> dict[str, float]:
        """One optimiser step of supervised fine-tuning: the mean negative log-likelihood of the trained tokens."""
        return self._run(samples, NegativeLogLikelihood(), _NoClock())

    def preference_update(
        self, samples: Sequence[TrainingSample] | None, objective: DirectPreference
    ) -> dict[str, float]:
        """One optimiser step of direct preference optimisation on pairs, as `rlvr.run.dpo` makes them."""
        return self._run(samples, objective, _NoClock())

    def _run(
        self,
        samples: Sequence[TrainingSample] | None,
        objective: Objective,
        clock: Clock,
        keep: Collection[int] = (),
    ) -> dict[str, float]:
        with clock.phase("pack"):
            plan = self._share(samples, objective, keep)
            steps = [[batch.to(self.accelerator.device) for batch in step] for step in plan.steps]
            texts = [[batch.to(self.accelerator.device) for batch in step] for step in plan.texts]
        for needed, field, module in (
            (objective.needs_old, "old_logprobs", self.backend.module),
            (objective.needs_ref, "ref_logprobs", self._reference_module),
            (objective.needs_teacher, "teacher_logprobs", self.teacher),
        ):
            if needed:
                with self._phase(clock, field):
                    steps = [[self._with(batch, field, module, objective) for batch in step] for step in steps]
        for place, step in enumerate(steps):
            numbers = objective.statistics(step, self.updates + place) if step else None
            if numbers is not None:
                steps[place] = [dataclasses.replace(batch, statistics=numbers) for batch in step]
        meter, kept = Meter(self.accelerator.device), Kept()
        outcomes = []
        for epoch in range(objective.epochs):
            for place, step in enumerate(steps):
                first = epoch == 0 and (objective.needs_old or place == 0)
                given = texts[epoch * len(steps) + place] if texts else []
                outcomes.append(
                    self._step(step, given, objective, meter, clock, kept, first=first, keep=plan.keep[place])
                )
        self.kept = gather_kept(kept) if any(plan.keep) else {}
        return {
            **update_metrics(meter.totals(), outcomes),
            **self._sizes(steps, texts, plan.over_limit, objective.epochs),
        }

    def _step(
        self, batches: Sequence[MicroBatch], texts: Sequence[MicroBatch], objective: Objective, meter: Meter,
        clock: Clock, kept: Kept, *, first: bool, keep: Mapping[int, int],
    ) -> dict[str, float]:  # fmt: skip
        """One optimiser step over this rank's micro-batches and given texts; says what it did."""
        lr = learning_rate(self.updates, self.total_updates, self.config.lr, self.config.schedule)
        self.updates += 1
        parts: list[tuple[MicroBatch, Objective]] = [(batch, objective) for batch in batches]
        if self.text_objective is not None:
            parts += [(batch, self.text_objective) for batch in texts]
        if not parts:
            return {"lr": lr, "empty": 1.0}
        self.backend.prepare_step(lr=lr)
        total = torch.zeros((), device=self.accelerator.device, dtype=torch.float64)
        with self._phase(clock, "forward_backward"):
            for place, (batch, one) in enumerate(parts):
                if _MALLOC_TRIM is not None and self.accelerator.device.type == "cpu":
                    # Every micro-batch has other sizes; the C library would keep the holes that the last one left
                    _MALLOC_TRIM(0)
                with self.backend.accumulate(last=place == len(parts) - 1):
                    logprobs, entropy = _logprobs(self.backend.module, batch, one.temperature)
                    tokens = TokenBatch(batch=batch, logprobs=logprobs, entropy=entropy, is_first=first)
                    loss = one.loss(tokens, meter)
                    self.backend.backward(loss)
                if first and keep and one is objective:
                    old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
                    kept |= kept_of(batch, old, keep)
                total += loss.detach()
        with self._phase(clock, "optimizer"):
            if dist.is_initialized():
                dist.all_reduce(total)
            outcome = {"lr": lr, "loss": float(total), "grad_norm": self.backend.clip()}
            bad = [f"{name} is {outcome[name]}" for name in ("loss", "grad_norm") if not math.isfinite(outcome[name])]
            if not bad:
                self.backend.step()
            elif self.config.non_finite == "stop":
                raise NonFiniteError(self._explain(bad), batches, texts, first=first)
            else:
                outcome = {"lr": lr, "non_finite": 1.0}
        return outcome

    @contextmanager
    def _phase(self, clock: Clock, name: str) -> Iterator[None]:
        """A phase of the clock that ends when the device has done its work: time is charged to who caused it."""
        with clock.phase(name):
            yield
            if self.accelerator.device.type == "cuda":
                torch.cuda.synchronize(self.accelerator.device)

    def _explain(self, bad: list[str]) -> str:
        """What was not finite, in words; all ranks see the same loss and norm and stop together."""
        names = [
            name
            for name, parameter in self.policy.model.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ]
        weights = [n for n, p in self.policy.model.named_parameters() if not bool(torch.isfinite(p).all())]
        return (
            f"optimiser step {self.updates}: {' and '.join(bad)}; gradients that are not finite: "
            f"{', '.join(names[:5]) or 'none'}{' and others' if len(names) > 5 else ''}; weights that are not finite: "
            f"{', '.join(weights[:5]) or 'none'}. The weights were not changed. Lower learner.lr, use float32 weights, "
            "or set learner.non_finite: skip to leave such updates out"
        )

    # -------------------------------------------------------------------------------------------------- rank 0 decides

    def _share(self, samples: Sequence[TrainingSample] | None, objective: Objective, keep: Collection[int]) -> Plan:
        """Rank 0 plans, every rank gets its share. If rank 0 raises, the others are told before it does."""
        plans: list[Plan] | None = None
        try:
            if self.accelerator.is_main_process:
                if samples is None:
                    raise ValueError("rank 0 must pass the samples of an update")
                plans = self._plan(samples, objective, keep)
        finally:
            plan = self._scatter(plans)
        if plan is None:
            raise RuntimeError("rank 0 could not prepare this update and stopped; its message says why")
        return plan

    def _scatter(self, plans: list[Plan] | None) -> Plan | None:
        """This rank's plan, or None where rank 0 has none to give."""
        ranks = self.accelerator.num_processes
        if ranks == 1:
            return plans[0] if plans else None
        received: list[Plan | None] = [None]
        dist.scatter_object_list(received, (plans or [None] * ranks) if self.accelerator.is_main_process else None)
        return received[0]

    def _plan(self, samples: Sequence[TrainingSample], objective: Objective, keep: Collection[int]) -> list[Plan]:
        """For each rank the micro-batches of each optimiser step of an epoch; a step is an equal share of groups."""
        groups = sorted({sample.group for sample in samples})
        share = math.ceil(len(groups) / objective.updates) if groups else 0
        per_step: list[list[list[MicroBatch]]] = []
        kept: list[dict[int, int]] = []
        limit, ranks = self.config.micro_batch_tokens, self.accelerator.num_processes
        for place in range(objective.updates):
            mine = set(groups[place * share : (place + 1) * share])
            chosen = [index for index, sample in enumerate(samples) if sample.group in mine]
            kept.append({place: index for place, index in enumerate(chosen) if index in keep})
            per_step.append(
                objective.pack([samples[index] for index in chosen], limit, self.config.packing, ranks=ranks)
            )
        over = sum(1 for sample in samples if sample.trained_tokens and len(sample.ids) - 1 > limit)
        texts = self._plan_texts(objective)
        return [
            Plan(
                tuple(tuple(packed[rank]) for packed in per_step), over, tuple(kept),
                tuple(tuple(packed[rank]) for packed in texts),
            )
            for rank in range(ranks)
        ]  # fmt: skip

    def _plan_texts(self, objective: Objective) -> list[list[list[MicroBatch]]]:
        """For each optimiser step, each rank's given texts; the number of the step decides which rows it has."""
        if self._texts is None or self.text_objective is None or objective is not self.objective:
            return []
        limit, ranks = self.config.micro_batch_tokens, self.accelerator.num_processes
        return [
            self.text_objective.pack(self._texts.of_update(update), limit, self.config.packing, ranks=ranks)
            for update in range(self.updates, self.updates + objective.updates * objective.epochs)
        ]

    @torch.no_grad()
    def _with(self, batch: MicroBatch, field: str, module: Any, objective: Objective) -> MicroBatch:
        """The micro-batch with another model's log-probabilities filled in."""
        logprobs, entropy = _logprobs(module, batch, objective.temperature)
        found: dict[str, Any] = {field: logprobs} | ({"old_entropy": entropy} if field == "old_logprobs" else {})
        return dataclasses.replace(batch, **found)

    def _sizes(
        self, steps: Sequence[Sequence[MicroBatch]], texts: Sequence[Sequence[MicroBatch]], over_limit: int, epochs: int
    ) -> dict[str, float]:
        """How much was computed, over all ranks; given texts count in the operations alone."""
        meter = Meter(self.accelerator.device)
        for prefix, parts in (("", steps), ("text_", texts)):
            batches = [batch for step in parts for batch in step]
            meter.add(f"{prefix}micro_batches", float(len(batches)))
            meter.add(f"{prefix}positions", float(sum(batch.tokens for batch in batches)))
            filled = sum(int((batch.sequence >= 0).sum()) for batch in batches if batch.index)
            meter.add(f"{prefix}filled", float(filled))
            meter.add(f"{prefix}trained", float(sum(int(batch.loss_mask.sum()) for batch in batches)))
        total = meter.totals()
        flops = update_flops(
            self.policy.model, total["filled"] * epochs + total["text_filled"],
            total["trained"] * epochs + total["text_trained"],
        )  # fmt: skip
        return {
            "tokens/trained": total["trained"],
            "tokens/computed": total["positions"],
            **({} if flops is None else {"update/flops": flops}),
            "tokens/padding_share": 1.0 - total["filled"] / total["positions"] if total["positions"] else 0.0,
            "update/micro_batches": total["micro_batches"],
            "update/over_limit": float(over_limit),
        }

    # ----------------------------------------------------------------------------------------- weights, logprobs, state

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Each weight by its name in a Hugging Face checkpoint, whole, one at a time; a tied head comes once, as the
        embedding. Collective where parameters are sharded: every rank must run through it."""
        for name, tensor in self._plain_parameters():
            yield from revert_weight_conversion(self.policy.model, {name: tensor}).items()

    @torch.no_grad()
    def _plain_parameters(self, adapters: dict[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Each parameter whole, adapters merged into their layers; ``adapters`` collects those of rank 0 besides."""
        stream = self.backend.full_parameters(self.policy)
        if self.lora is None:
            return stream
        return merged(self._collecting(stream, {} if adapters is None else adapters), self.lora)

    def _collecting(
        self, stream: Iterator[tuple[str, Tensor]], adapters: dict[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in stream:
            if is_adapter(name) and self.accelerator.is_main_process:
                adapters[name] = tensor.to("cpu", copy=True)
            yield name, tensor

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token given those before it, temperature 1; the first of a sequence is 0.0.

        Every rank passes the same sequences and gets the same result.
        """
        samples = [
            TrainingSample(
                ids=tuple(ids), loss_mask=(0, *[1] * len(ids))[: len(ids)], behaviour_logprobs=(0.0,) * len(ids),
                advantage=0.0, group=index,
            )
            for index, ids in enumerate(sequences)
        ]  # fmt: skip
        logprobs = [[0.0] * len(ids) for ids in sequences]
        for batch in pack(samples, TokenMean(), self.config.micro_batch_tokens, self.config.packing):
            there = batch.to(self.accelerator.device)
            packed, _ = _logprobs(self.backend.module, there, 1.0)
            for place, index in enumerate(batch.index):
                logprobs[index][1:] = packed[there.sequence == place].tolist()
        return logprobs

    def policy_writer(self, copy: bool) -> Callable[[Path], None]:
        """What writes the policy as it is now and the tokenizer into an empty folder, as a plain Hugging Face model
        with its adapters, if it has any, in a folder inside: on rank 0, with ``copy`` at any later time, without it
        before the next update, from the weights themselves. All ranks call this."""
        state: dict[str, Tensor] = {}
        adapters: dict[str, Tensor] = {}
        for name, tensor in self._plain_parameters(adapters):
            if self.accelerator.is_main_process:
                state[name] = tensor.to("cpu", copy=copy)
        if self.accelerator.is_main_process:
            saved = self.policy.model.state_dict().keys()
            state |= {n: b.to("cpu", copy=copy) for n, b in self.policy.model.named_buffers() if n in saved}

        def write(folder: Path) -> None:
            self.policy.save(folder, state)
            if adapters:
                save_adapters(self.policy.model, adapters, folder)

        return write

    def save_policy(self, folder: Path) -> None:
        """Write the policy as a plain Hugging Face folder, with its tokenizer; rank 0 writes, all ranks call."""
        write = self.policy_writer(copy=False)
        try:
            if self.accelerator.is_main_process:
                write(folder)
        finally:  # a disk that is full for rank 0 must not leave the others waiting
            self.accelerator.wait_for_everyone()

    def load_policy(self, folder: Path) -> None:
        """Take over the weights that `save_policy` wrote; rank 0 reads them. The reference stays as it is."""
        values: dict[str, Tensor] = {}
        if self.accelerator.is_main_process and self.lora is not None:
            values = load_adapters(self.policy.model, folder)
        elif self.accelerator.is_main_process:
            saved = type(self.policy.model).from_pretrained(folder, dtype=next(self.policy.model.parameters()).dtype)
            values = dict(saved.named_parameters())
        self.backend.load_parameters(self.policy, values)

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
        random = [state["random"]]
        if self.accelerator.num_processes > 1:
            dist.broadcast_object_list(random)
        if len(random[0]) == self.accelerator.num_processes:
            set_random_states(random[0][self.accelerator.process_index], self.accelerator.device)


def _logprobs(module: Any, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [B L] of a micro-batch; `module` is a policy as its backend wraps it."""
    found: tuple[Tensor, Tensor] = module(
        batch.ids, batch.positions, batch.targets, batch.loss_mask, temperature, batch.layout
    )
    return found


class _NoClock:
    """Measures nothing."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()
