"""Optimizers and their state."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from rlvr.config.recipe import LearnerConfig
from rlvr.learn.backend import LaunchError, check_launch, clip_gradients
from rlvr.learn.update import Learner
from rlvr.state.register import StateRegister
from tests.helpers import make_tiny_model
from tests.learn.conftest import random_samples
from tests.learn.test_update import make, weights

BLOCK, SMALL = 256, 4096
"""Numbers with a scale of their own; tensors of fewer numbers than SMALL keep float32 moments (bitsandbytes)."""


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A model some of whose tensors are large enough for 8 bits."""
    return str(make_tiny_model(tmp_path / "model"))


def moments(learner: Learner) -> list[dict[str, Any]]:
    return [entry["__bnb_optimizer_quant_state__"] for entry in learner.backend.optimizer_state().values()]


def test_moments_take_a_byte_each(folder: str) -> None:
    """A tensor of n >= 4096 numbers: n bytes for each of two moments, and a float32 scale a block of 256 numbers."""
    learner = make(folder, optimizer="adamw_8bit")
    learner.update(random_samples(6))
    parameters = [p for p in learner.policy.parameters() if p.dim() >= 2]
    large = [p for p in parameters if p.numel() >= SMALL]
    assert len(large) > 5
    for entry, parameter in zip(moments(learner), parameters, strict=False):
        is_large = parameter.numel() >= SMALL
        for one, scale in (("state1", "absmax1"), ("state2", "absmax2")):
            assert entry[one].dtype == (torch.uint8 if is_large else torch.float32)
            assert entry[one].nbytes == parameter.numel() * (1 if is_large else 4)
            if is_large:
                assert entry[scale].nbytes == 4 * -(-parameter.numel() // BLOCK)


@pytest.mark.slow
def test_in_8_bits_it_learns_as_in_float32(folder: str) -> None:
    """Forty steps on the same six completions: the same loss to a twentieth, which is a tenth of that at the start."""
    ends = {}
    for optimizer in ("adamw", "adamw_8bit"):
        learner = make(folder, total=40, optimizer=optimizer, lr=3e-3, epsilon=1e-8)
        losses = [learner.sft_update(random_samples(6, longest=8))["update/loss"] for _ in range(40)]
        ends[optimizer] = losses[-1]
        assert losses[-1] < 0.1 * losses[0]
    assert ends["adamw_8bit"] == pytest.approx(ends["adamw"], abs=0.05 * losses[0])
    assert ends["adamw_8bit"] != ends["adamw"]


@pytest.mark.slow
def test_moments_in_8_bits_resume_bit_by_bit(folder: str, tmp_path: Path) -> None:
    """4 updates = 2, a checkpoint through files, and 2 more; an optimizer that is reset forgets all."""
    whole, first = make(folder, optimizer="adamw_8bit"), make(folder, optimizer="adamw_8bit")
    samples = [random_samples(6, seed=step) for step in range(4)]
    for one in samples:
        whole.update(one)
    for one in samples[:2]:
        first.update(one)
    first.save_policy(tmp_path / "policy")
    register = StateRegister()
    register.add("learner", first)
    torch.save(register.state_dict(), tmp_path / "state.pt")
    kept = {name: tensor.clone() for name, tensor in moments(first)[0].items()}
    first.update(samples[3])
    second = make(folder, optimizer="adamw_8bit")
    second.load_policy(tmp_path / "policy")
    register = StateRegister()
    register.add("learner", second)
    register.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in moments(second)[0].items())
    for one in samples[2:]:
        second.update(one)
    ours, theirs = weights(whole), weights(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    second.backend.load_optimizer_state({})  # as algorithm.reset_optimizer does
    assert second.backend.optimizer_state() == {}


def test_a_state_of_the_other_optimizer_is_refused(folder: str) -> None:
    plain, small = make(folder), make(folder, optimizer="adamw_8bit")
    for learner in (plain, small):
        learner.update(random_samples(6))
    for one, other in ((plain, small), (small, plain)):
        with pytest.raises(ValueError, match=r"that of another learner\.optimizer"):
            one.backend.load_optimizer_state(other.backend.optimizer_state())


def test_where_8_bits_cannot_work_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, settings = Accelerator(cpu=True), LearnerConfig(lr=1.0, optimizer="adamw_8bit")
    check_launch(accelerator, settings)
    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
        with pytest.raises(LaunchError, match=r"must be adamw where weights are sharded, got 'adamw_8bit'"):
            check_launch(accelerator, settings)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(LaunchError, match=r"pip install 'rlvr\[adamw-8bit\]'"):
        check_launch(accelerator, settings)


def test_gradients_are_scaled_together() -> None:
    """|(3, 4, 12)| = 13: to a norm of 6.5 at most each is halved; to one of 13 nothing changes."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        gradients = [torch.tensor([[3.0], [4.0]], dtype=dtype), torch.tensor([12.0], dtype=dtype)]
        assert clip_gradients(gradients, 13.0) == 13.0
        assert gradients[1].item() == 12.0
        assert clip_gradients(gradients, 6.5) == 13.0
        assert torch.cat([one.flatten() for one in gradients]).tolist() == [1.5, 2.0, 6.0]


def test_the_norm_of_many_16_bit_numbers_is_that_of_all_of_them() -> None:
    """An embedding has tens of millions; torch's own norm in float32 of these is 0.04 % off."""
    gradient = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = gradient.double().norm().item()
    assert clip_gradients([gradient], 1e9) == pytest.approx(exact, rel=1e-6)
