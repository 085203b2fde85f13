"""The self-test names the group that an engine keeps old; the probe tells a stale engine from rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlvr.engines.hf import HfEngine
from rlvr.engines.protocol import EngineError
from rlvr.rollout.background import Background
from rlvr.sync.freshness import Probe, distance, parameter_groups, self_test
from tests.engine_sides import Learner, Sync

SEQUENCES = [[3 + (11 * i + j * j) % 96 for j in range(24)] for i in range(4)]


class Forgetful(Sync):
    """An engine that keeps the old copy of some parameters at each sync."""

    def __init__(self, engine: HfEngine, background: Background, kept: Iterable[str], old: dict[str, Tensor]) -> None:
        super().__init__(engine, background)
        self.kept, self.old = set(kept), old

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        super().load_weights(((n, self.old[n] if n in self.kept else t) for n, t in tensors), version)


@pytest.fixture(scope="module", params=["tied", "untied"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def learner(kind: str, tied_learner: Learner, untied_learner: Learner) -> Learner:
    return tied_learner if kind == "tied" else untied_learner


@pytest.fixture(scope="module")
def engine(kind: str, tiny_tied: Path, tiny_untied: Path, background: Background) -> Iterator[HfEngine]:
    engine = HfEngine(tiny_tied if kind == "tied" else tiny_untied)
    background.wait(engine.start())
    yield engine
    background.wait(engine.close())


def run(engine: Sync | None, learner: Learner, version: int = 7) -> list:
    return self_test(
        engine=engine,
        parameters=learner.parameters,
        weights=learner.weights,
        logprobs=learner.logprobs,
        sequences=SEQUENCES,
        version=version,
    )


@pytest.mark.slow
def test_a_right_engine_passes_and_has_the_true_weights_afterwards(
    engine: HfEngine, learner: Learner, background: Background
) -> None:
    proofs = run(Sync(engine, background), learner)
    assert {proof.group for proof in proofs} == set(parameter_groups(learner.parameters))
    assert all(proof.change >= 1.0 and proof.mismatch <= 1e-3 for proof in proofs)
    assert engine.version == 7
    assert distance(Sync(engine, background).logprobs(SEQUENCES), learner.logprobs(SEQUENCES)) <= 1e-4
    assert all(torch.equal(tensor, learner.start[name]) for name, tensor in learner.parameters.items())


@pytest.mark.parametrize("group", ["embedding", "head", "norms", "qkv", "o", "mlp"])
def test_each_group_that_stays_old_is_named(
    engine: HfEngine, learner: Learner, background: Background, group: str
) -> None:
    names = parameter_groups(learner.parameters).get(group)
    if names is None:
        assert group == "head"  # a tied model has none of its own
        return
    forgetful = Forgetful(engine, background, names, learner.start)
    with pytest.raises(EngineError, match=f"parameter group '{group}'"):
        run(forgetful, learner)
    assert all(torch.equal(tensor, learner.start[name]) for name, tensor in learner.parameters.items())


def test_a_tied_head_that_stays_old_is_named(
    engine: HfEngine, learner: Learner, background: Background, kind: str
) -> None:
    """The trap of packed heads: embedding fresh, its copy in the head old."""
    if kind == "untied":
        return
    head = engine._policy.lm_head
    shared = head.weight
    head.weight = torch.nn.Parameter(learner.start["lm_head.weight"].clone(), requires_grad=False)
    try:
        with pytest.raises(EngineError, match="parameter group 'embedding'"):
            run(Sync(engine, background), learner)
    finally:
        head.weight = shared


def test_a_rank_without_the_engine_gives_its_part_and_is_restored(learner: Learner) -> None:
    sent = []

    def weights() -> Iterator[tuple[str, Tensor]]:
        sent.append(1)
        yield from learner.weights()

    proofs = self_test(
        engine=None,
        parameters=learner.parameters,
        weights=weights,
        logprobs=learner.logprobs,
        sequences=SEQUENCES,
        version=7,
    )
    assert len(sent) == len(proofs) + 1
    assert all(torch.equal(tensor, learner.start[name]) for name, tensor in learner.parameters.items())


def test_groups_of_common_architectures() -> None:
    names = [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.0.surprise",
    ]
    assert parameter_groups(names) == {
        "embedding": names[:1],
        "qkv": names[1:3],
        "norms": [names[3], names[6], names[7]],
        "o": [names[4]],
        "mlp": [names[5]],
        "head": [names[8]],
        "other": [names[9]],
    }


def simulated(steps: int, follows: float, step_size: float, noise: float) -> Iterator[tuple[list, list]]:
    """Log-probabilities of 4 x 64 tokens: the learner moves by `step_size` a step, the engine by `follows` times that;
    engine and learner differ by independent rounding `noise` each time, as in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    start = -3 * torch.rand(4, 65, generator=generator)
    walk = torch.zeros(4, 65)
    for _ in range(steps):
        rounding = noise * torch.randn(4, 65, generator=generator)
        yield (start + walk).tolist(), (start + follows * walk + rounding).tolist()
        walk = walk + step_size * torch.randn(4, 65, generator=generator)


def test_the_probe_passes_an_engine_that_follows_within_rounding() -> None:
    probe = Probe()
    readings = [probe.observe(*pair) for pair in simulated(200, follows=1.0, step_size=0.04, noise=0.03)]
    conclusive = [reading.followed for reading in readings if reading.followed is not None]
    assert len(conclusive) >= 90
    assert all(0.65 < followed < 1.35 for followed in conclusive)
    assert readings[0].followed is None
    assert readings[0].learner_change == 0.0


@pytest.mark.parametrize("noise", [0.03, 1e-6])
def test_the_probe_stops_a_run_whose_engine_stays_behind(noise: float) -> None:
    """No single step shows it in bfloat16 (0.03 nat a step under 0.03 of rounding), the window of syncs does."""
    probe = Probe()
    pairs = simulated(120, follows=0.0, step_size=0.03, noise=noise)
    with pytest.raises(EngineError, match="does not follow the learner: over the last"):
        [probe.observe(*pair) for pair in pairs]


def test_the_probe_says_nothing_before_the_change_is_visible() -> None:
    probe = Probe()
    readings = [probe.observe(*pair) for pair in simulated(40, follows=0.0, step_size=1e-5, noise=0.03)]
    assert all(reading.followed is None for reading in readings)


def test_rounding_that_all_tokens_share_stops_no_run() -> None:
    """Theorem: an engine that follows is within sqrt(2)/8 of slope 1 even where one rounding error hits every token
    (the same prompt template in each sequence) and points against the change."""
    probe = Probe()
    readings = []
    for step in range(40):
        walk, rounding = 0.03 * step, 0.1 * (-1) ** step
        readings.append(probe.observe([[0.0] + [-1.0 - walk] * 64], [[0.0] + [-1.0 - walk + rounding] * 64]))
    conclusive = [reading.followed for reading in readings if reading.followed is not None]
    assert readings[26].followed is None
    assert readings[27].followed is not None  # 27 x 0.03 is above 8 x 0.1
    assert readings[27].syncs == 27
    assert all(0.75 < followed < 1.25 for followed in conclusive)  # the rounding turns round: twice 0.1 apart


def test_a_resumed_probe_reads_as_an_uninterrupted_one() -> None:
    pairs = list(simulated(20, follows=1.0, step_size=0.05, noise=0.01))
    whole, first = Probe(window=4), Probe(window=4)
    readings = [whole.observe(*pair) for pair in pairs]
    for pair in pairs[:9]:
        first.observe(*pair)
    second = Probe(window=4)
    second.load_state_dict(first.state_dict())
    assert [second.observe(*pair) for pair in pairs[9:]] == readings[9:]


def test_rank_0_decides_how_far_parameters_are_moved(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another rank, whose numbers may differ in the last bit: it makes as many passes as rank 0 says."""
    passes: list[int] = []

    def logprobs(sequences: list[list[int]]) -> list[list[float]]:
        passes.append(1)
        return learner.logprobs(sequences)

    decisions = iter([False, False, True] * 20)
    monkeypatch.setattr("rlvr.control.from_main", lambda mine: next(decisions))
    proofs = self_test(
        engine=None, parameters=learner.parameters, weights=learner.weights, logprobs=logprobs, sequences=SEQUENCES,
        version=7,
    )  # fmt: skip
    assert len(passes) == 1 + 3 * len(proofs)
