"""One optimiser step: forward, loss, backward over the rank's micro-batches; clip; step, or report non-finite values.

All ranks see the same loss and gradient norm, and so step, skip or stop together.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from accelerate import Accelerator

from rlvr.config.recipe import LearnerConfig
from rlvr.errors import RlvrError
from rlvr.learn.backend import Backend
from rlvr.learn.device_clock import Clock
from rlvr.learn.forward import forward
from rlvr.learn.logged_logprobs import LoggedLogprobs, logged_logprobs
from rlvr.learn.meter import Meter
from rlvr.learn.objective import Objective, TokenBatch
from rlvr.learn.policy import Policy
from rlvr.records import MicroBatch

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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """One rank's inputs to an optimiser step."""

    number: int
    """Of the step, 1 for the first of the run; for messages."""
    lr: float
    batches: Sequence[MicroBatch]
    objective: Objective
    texts: Sequence[MicroBatch] = ()
    """Given texts that are trained besides."""
    text_objective: Objective | None = None
    is_first: bool
    """As `TokenBatch.is_first`."""
    keep: Mapping[int, int] = dataclasses.field(default_factory=dict)
    """The samples to keep log-probabilities of: index in the step -> index in the batch."""


class OptimiserStep:
    """Does optimiser steps on one policy; all ranks make every call."""

    def __init__(self, policy: Policy, backend: Backend, config: LearnerConfig, accelerator: Accelerator) -> None:
        self._policy, self._backend, self._config, self._device = policy, backend, config, accelerator.device

    def run(self, inputs: StepInputs, meter: Meter, logged: LoggedLogprobs, clock: Clock) -> dict[str, float]:
        """Do one step; what is measured goes to ``meter``, what `StepInputs.keep` asks for to ``logged``.

        Returns ``lr`` and either ``loss`` and ``grad_norm`` (before clipping), or ``empty`` or ``non_finite``, 1.0 for
        a step that changed nothing. Raises `NonFiniteError` under ``learner.non_finite: stop``.
        """
        parts = [(batch, inputs.objective) for batch in inputs.batches]
        if inputs.text_objective is not None:
            parts += [(batch, inputs.text_objective) for batch in inputs.texts]
        if not parts:
            return {"lr": inputs.lr, "empty": 1.0}
        self._backend.prepare_step(lr=inputs.lr)
        total = torch.zeros((), device=self._device, dtype=torch.float64)
        with clock.phase("forward_backward"):
            for place, (batch, objective) in enumerate(parts):
                if _MALLOC_TRIM is not None and self._device.type == "cpu":
                    # Every micro-batch has other sizes; the C library would keep the holes that the last one left
                    _MALLOC_TRIM(0)
                with self._backend.accumulate(last=place == len(parts) - 1):
                    logprobs, entropy = forward(self._backend.module, batch, objective.temperature)
                    tokens = TokenBatch(batch=batch, logprobs=logprobs, entropy=entropy, is_first=inputs.is_first)
                    loss = objective.loss(tokens, meter)
                    self._backend.backward(loss)
                if inputs.is_first and inputs.keep and objective is inputs.objective:
                    old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
                    logged |= logged_logprobs(batch, old, inputs.keep)
                total += loss.detach()
        with clock.phase("optimizer"):
            if dist.is_initialized():
                dist.all_reduce(total)
            outcome = {"lr": inputs.lr, "loss": float(total), "grad_norm": self._backend.clip()}
            bad = [f"{name} is {outcome[name]}" for name in ("loss", "grad_norm") if not math.isfinite(outcome[name])]
            if not bad:
                self._backend.step()
            elif self._config.non_finite == "stop":
                raise NonFiniteError(
                    self._explain(inputs.number, bad), inputs.batches, inputs.texts, first=inputs.is_first
                )
            else:
                outcome = {"lr": inputs.lr, "non_finite": 1.0}
        return outcome

    def _explain(self, number: int, bad: list[str]) -> str:
        """Describes what was not finite."""
        names = [
            name
            for name, parameter in self._policy.model.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ]
        weights = [n for n, p in self._policy.model.named_parameters() if not bool(torch.isfinite(p).all())]
        return (
            f"optimiser step {number}: {' and '.join(bad)}; gradients that are not finite: "
            f"{', '.join(names[:5]) or 'none'}{' and others' if len(names) > 5 else ''}; weights that are not finite: "
            f"{', '.join(weights[:5]) or 'none'}. The weights were not changed. Lower learner.lr, use float32 weights, "
            "or set learner.non_finite: skip to leave such updates out"
        )
