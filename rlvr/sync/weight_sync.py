"""Sends weights to the engine and checks that they arrived: all ranks gather, rank 0 sends and compares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

import rlvr.control as control
from rlvr.engines.protocol import EngineError
from rlvr.learn.update import Learner
from rlvr.rollout.rollouts import Rollouts
from rlvr.sync.freshness import Probe, self_test

PROBE_TOKENS = 128
"""Most tokens of a probe sequence: enough to tell, little to compute."""


class _Weights:
    """The learner's weights, read each time they are asked for, as long as they are those that were sent."""

    def __init__(self, learner: Learner) -> None:
        self._learner, self._updates = learner, learner.updates

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        if self._learner.updates != self._updates:
            raise EngineError("the engine died while the learner was changing the weights that it served")
        return self._learner.named_weights()


class WeightSync:
    """Sends the policy's weights and watches that engine and learner move together; stateful, every rank has one."""

    def __init__(
        self, learner: Learner, accelerator: Accelerator, rollouts: Rollouts | None, probes: Sequence[Sequence[int]],
        *, keeps_copy: bool = False,
    ) -> None:  # fmt: skip
        """`probes` are the token ids whose log-probabilities are compared; rank 0's count, none turns comparing off.
        `keeps_copy` holds what was sent in memory, for an engine that may die while the learner changes the weights."""
        self._learner, self._rollouts, self._probe, self._keeps_copy = learner, rollouts, Probe(), keeps_copy
        self._observed: int | None = None
        self._sequences = control.from_main([tuple(ids[:PROBE_TOKENS]) for ids in probes if len(ids) > 1])

    def prove(self, version: int) -> str:
        """The self-test of every group of parameters, which ends with the true weights as `version`; what it found, in
        a sentence. Raises `EngineError` for a group that the engine does not follow."""
        proofs = self_test(
            engine=self._rollouts,
            parameters=dict(self._learner.policy.model.named_parameters()),
            weights=self._learner.named_weights,
            logprobs=self._logprobs,
            sequences=self._sequences,
            version=version,
        )
        worst = max(proof.mismatch for proof in proofs)
        unproved = [proof.group for proof in proofs if not proof.is_visible]
        return f"{len(proofs)} groups of parameters, at most {worst:.1e} nats apart" + (
            f"; the learner moved too little to prove it of {', '.join(unproved)}" if unproved else ""
        )

    def send(self, version: int) -> dict[str, float]:
        """Send the weights as `version` and compare the probes; metrics on rank 0. Raises `EngineError` if the engine
        has other weights than the learner."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the engine needs memory for the new weights, beside its share
        if self._rollouts is None:
            for _ in self._learner.named_weights():  # gathering a sharded weight takes all ranks
                pass
        else:
            self._rollouts.load_weights(self._weights(), version)
        if not self._sequences:
            return {}
        ours = self._logprobs(self._sequences)
        if self._rollouts is None:
            return {}
        before = self._probe.state_dict()
        reading = self._probe.observe(ours, self._rollouts.logprobs(self._sequences))
        if version == self._observed:  # a resumed run starts: its window holds this version already
            self._probe.load_state_dict(before)
        self._observed = version
        metrics = {"sync/mismatch": reading.mismatch, "sync/learner_change": reading.learner_change}
        if reading.followed is not None:
            metrics["sync/followed"] = reading.followed
        return metrics

    def _logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """The learner's, once rank 0 is done with the engine: sharded layers are gathered from all ranks."""
        control.wait()
        return self._learner.logprobs(sequences)

    def _weights(self) -> Iterable[tuple[str, Tensor]]:
        """Weights that can be read again after the engine has died: copies if reading is collective, or if the learner
        may have moved on."""
        if self._keeps_copy or any(
            isinstance(parameter, DTensor) for parameter in self._learner.policy.model.parameters()
        ):
            return [(name, tensor.to("cpu", copy=True)) for name, tensor in self._learner.named_weights()]
        return _Weights(self._learner)

    def state_dict(self) -> dict[str, Any]:
        """The probe's window, and the last version in it."""
        return {"probe": self._probe.state_dict(), "observed": self._observed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the probe's window."""
        self._probe.load_state_dict(state["probe"])
        self._observed = state["observed"]
