"""Proof that the engine samples from the weights that the learner trains.

| call            | when         | proves                                                         | costs            |
|-----------------|--------------|----------------------------------------------------------------|------------------|
| `self_test`     | at the start | each group of parameters reaches the engine and is in use there| a sync a group   |
| `Probe.observe` | at each sync | over the last syncs the engine moved as the learner did        | two short passes |

A group of which the engine keeps the old copy leaves the engine's log-probabilities where they were, while the
learner's have moved: the two are compared by how far they are apart relative to how far the learner moved.
"""

from __future__ import annotations

import logging
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

import rlvr.control as control
from rlvr.engines.agreement import FOLLOWS, Logprobs, distance
from rlvr.engines.protocol import EngineError

log = logging.getLogger(__name__)

VISIBLE = 1.0
"""Mean change of a log-probability, in nats, that a perturbation has to make; bfloat16 mismatches reach 0.1."""
CLEAR = 8.0
"""The learner's change counts as visible from this many times the rounding between engine and learner at the start;
that rounding was seen to grow to 2.5 times itself while a bfloat16 policy became sure of its completions."""
_AMPLITUDES = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
_FIRST_TEST_VERSION = -2
_PATTERNS = (
    ("embedding", r"embed_tokens\.|\bwte\.|\bwpe\."),
    ("head", r"^lm_head\."),
    ("norms", r"norm|\bln_\w+\."),
    ("qkv", r"\.(q|k|v|qkv)_proj\.|\.c_attn\.|query_key_value"),
    ("o", r"\.o_proj\.|attn\.c_proj\."),
    ("mlp", r"\.mlp\.|feed_forward|\.experts\."),
)


class StaleEngineError(EngineError):
    """The engine keeps weights that the learner has left."""


class EngineMismatchError(EngineError):
    """Engine and learner compute other log-probabilities from the same weights."""


class EngineSide(Protocol):
    """The verbs of an engine that are needed here, as plain calls."""

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None: ...

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]: ...


@dataclass(frozen=True, slots=True)
class GroupProof:
    """The result of the self-test for one group of parameters."""

    group: str
    parameters: int
    """Number of tensors in it."""
    change: float
    """Mean absolute change of the learner's log-probabilities, in nats."""
    mismatch: float
    """Mean absolute difference of engine and learner afterwards, in nats; nan on ranks without the engine."""

    @property
    def is_visible(self) -> bool:
        """False where no perturbation moved the learner: the group has no say in the output and proves nothing."""
        return self.change >= VISIBLE


def parameter_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by what they do in the model (Llama, Qwen2, Qwen3 and the like); what fits no pattern is in ``other``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        group = next((group for group, pattern in _PATTERNS if re.search(pattern, name)), "other")
        groups.setdefault(group, []).append(name)
    return groups


def self_test(
    *,
    engine: EngineSide | None,
    parameters: Mapping[str, Tensor],
    weights: Callable[[], Iterable[tuple[str, Tensor]]],
    logprobs: Callable[[Sequence[Sequence[int]]], Logprobs],
    sequences: Sequence[Sequence[int]],
    version: int,
) -> list[GroupProof]:
    """Perturb each group in the learner, see the engine follow, send the true weights back as `version`.

    `parameters` are the learner's own, by name: changed in place, restored to the last bit. `weights` gives what is
    sent, `logprobs` the learner's log-probabilities of `sequences`. Where parameters are sharded every rank calls this,
    with `engine` None on all but the one that has it. Raises `EngineError` naming the group that did not arrive.
    """
    if any(_local(parameter).numel() == 0 for parameter in parameters.values()):
        raise EngineError("the self-test needs a part of each parameter on every rank; set rollout.self_test: false")
    truth = logprobs(sequences)
    proofs = []
    for i, (group, names) in enumerate(parameter_groups(parameters).items()):
        tensors = {name: _local(parameters[name]) for name in names}
        saved = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        try:
            moved = _perturb_visibly(tensors, saved, lambda: logprobs(sequences), truth)
            _send(engine, weights, _FIRST_TEST_VERSION - i)
            mismatch = distance(engine.logprobs(sequences), moved) if engine is not None else math.nan
        finally:
            _restore(tensors, saved)
        proof = GroupProof(group, len(names), distance(moved, truth), mismatch)
        if engine is not None and proof.is_visible and not mismatch <= FOLLOWS * proof.change:
            raise StaleEngineError(
                f"the engine does not follow the learner: after a change of the parameter group {group!r} "
                f"({len(names)} tensors, {names[0]} ...) that moves the learner's log-probabilities by "
                f"{proof.change:.2f} nats on average, engine and learner are {mismatch:.2f} nats apart"
            )
        if not proof.is_visible:
            log.warning("self-test: no change of the group %r moves the learner's output, it is not proved", group)
        proofs.append(proof)
    _send(engine, weights, version)
    if engine is not None and not (apart := distance(engine.logprobs(sequences), truth)) <= FOLLOWS * VISIBLE:
        raise EngineMismatchError(
            f"engine and learner disagree on the same weights: their log-probabilities are {apart:.2f} nats apart on "
            "average; the two load the model differently (dtype, attention, rope scaling?)"
        )
    return proofs


def _send(engine: EngineSide | None, weights: Callable[[], Iterable[tuple[str, Tensor]]], version: int) -> None:
    if engine is not None:
        engine.load_weights(weights(), version)
    else:
        for _ in weights():  # gathering a sharded parameter takes all ranks
            pass


@torch.no_grad()
def _perturb_visibly(
    tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor], logprobs: Callable[[], Logprobs], truth: Logprobs
) -> Logprobs:
    """Add noise of growing size until the learner's log-probabilities have visibly moved; returns where to."""
    moved = truth
    block = torch.randn(65537, generator=torch.Generator().manual_seed(0))  # repeated: a fresh draw would take longer
    for amplitude in _AMPLITUDES:
        for name, tensor in tensors.items():
            size = max(float(saved[name].float().pow(2).mean().sqrt()), 1e-2)  # biases may start at 0
            noise = block.repeat(-(-tensor.numel() // len(block)))[: tensor.numel()].view(tensor.shape)
            tensor.copy_(torch.add(saved[name].float(), noise, alpha=amplitude * size))
        moved = logprobs()
        # rank 0 decides: the last bit differs among GPUs, and a rank that makes one pass more waits for ever
        if control.from_main(distance(moved, truth) >= VISIBLE):
            break
    return moved


@torch.no_grad()
def _restore(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(saved[name])


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


@dataclass(frozen=True, slots=True)
class ProbeReading:
    """One sync as the probe saw it; log-probabilities in nats."""

    mismatch: float
    """Mean absolute difference of engine and learner now."""
    syncs: int
    """Over how many syncs the changes are taken: since the one from which the learner has moved most."""
    learner_change: float
    """Root mean square of the learner's change over them."""
    engine_change: float
    """The same of the engine."""
    followed: float | None
    """Engine's change over learner's (regression through 0): 1 follows, 0 is stale; None until it is visible."""


class Probe:
    """Compares the change of a few log-probabilities in engine and learner, over the last syncs.

    In bfloat16 one step moves less than engine and learner differ, and most weights not at all. So the change is taken
    since that sync, among `window`, from which the learner has moved most, and counts once it is `CLEAR` times that
    difference. For an engine that follows, the two changes differ by the rounding of two readings, r, at most, whatever
    the roundings of the tokens have to do with each other: by Cauchy-Schwarz the slope is within r / change of 1, which
    is sqrt(2) / CLEAR = 0.18 while the rounding is as at the start. A stale engine's slope is 0.
    """

    def __init__(self, window: int = 64) -> None:
        self._learner: deque[list[float]] = deque(maxlen=window + 1)
        self._engine: deque[list[float]] = deque(maxlen=window + 1)
        self._noise: float | None = None

    def observe(self, learner: Logprobs, engine: Logprobs) -> ProbeReading:
        """Note log-probabilities of the same tokens after a sync. Raises `EngineError` if the engine stays behind."""
        learner_values, engine_values = (_flat(logprobs) for logprobs in (learner, engine))
        if self._noise is None:
            self._noise = max(_rms(_minus(engine_values, learner_values)), 1e-5)
        self._learner.append(learner_values)
        self._engine.append(engine_values)
        reading = self._read()
        if reading.followed is not None and not 0.5 <= reading.followed <= 2:
            raise StaleEngineError(
                f"the engine does not follow the learner: over the last {reading.syncs} syncs the learner's "
                f"log-probabilities moved by {reading.learner_change:.2g} nats, the engine's by "
                f"{reading.engine_change:.2g}, {reading.followed:.2f} times as far in the same direction (should be 1)"
            )
        return reading

    def _read(self) -> ProbeReading:
        assert self._noise is not None
        now = len(self._learner) - 1
        changes = [_minus(self._learner[now], then) for then in self._learner]
        then = max(range(now + 1), key=lambda sync: _rms(changes[sync]))
        ours = changes[then]
        visible = _rms(ours) >= CLEAR * self._noise
        engine_change = _minus(self._engine[now], self._engine[then])
        apart = _minus(self._engine[now], self._learner[now])
        slope = (
            sum(x * y for x, y in zip(ours, engine_change, strict=True)) / sum(x * x for x in ours) if visible else None
        )
        return ProbeReading(
            mismatch=sum(map(abs, apart)) / len(apart),
            syncs=now - then,
            learner_change=_rms(ours),
            engine_change=_rms(engine_change),
            followed=slope,
        )

    def state_dict(self) -> dict[str, Any]:
        """The state that the next measurement depends on."""
        return {"learner": list(self._learner), "engine": list(self._engine), "noise": self._noise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as if not interrupted."""
        for measured, stored in ((self._learner, state["learner"]), (self._engine, state["engine"])):
            measured.clear()
            measured.extend(list(values) for values in stored)
        self._noise = state["noise"]


def _flat(logprobs: Logprobs) -> list[float]:
    return [value for sequence in logprobs for value in sequence[1:]]


def _minus(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(left, right, strict=True)]


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))
