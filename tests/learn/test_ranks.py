"""Two processes on gloo make the same policy as one: data parallel and sharded, even and uneven, tied and untied."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.learn.conftest import tiny_llama
from tests.learn.ranks import MODELS, SCENARIOS, make_learner, run_steps

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have left what they end with in each scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in MODELS:
        tiny_llama(tied=name == "tied").save_pretrained(folder / name)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.learn.ranks", str(folder)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module", params=MODELS)
def results(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    """What two ranks end with in each scenario, and what one process ends with."""
    found = {name: torch.load(folder / f"{request.param}_{name}.pt", weights_only=False) for name in SCENARIOS}
    found["model"] = str(folder / request.param)
    for name, lora in (("alone", False), ("alone_adapters", True)):
        found[name] = run_steps(make_learner(found["model"], Accelerator(cpu=True), lora=lora))
    return found


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.parametrize("scenario", ["data_parallel", "packed", "sharded", "adapters", "adapters_sharded"])
def test_two_ranks_end_with_the_weights_of_one(results: dict[str, Any], scenario: str) -> None:
    """After 5 batches of 2 updates, with unequal numbers of micro-batches and one batch that leaves a rank without any:
    the same weights to float32 rounding, the same logprobs, the same metrics."""
    one, two = results["alone_adapters" if "adapters" in scenario else "alone"], results[scenario]
    assert difference(two["weights"], one["weights"]) < 2e-5
    torch.testing.assert_close(two["logprobs"], one["logprobs"], rtol=0, atol=1e-4)
    for ours, theirs in zip(two["metrics"], one["metrics"], strict=True):
        for key, value in theirs.items():
            if key not in ("tokens/computed", "tokens/padding_share", "update/micro_batches", "update/flops"):
                assert ours[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key


def test_training_changed_the_weights(results: dict[str, Any]) -> None:
    """The theorem above is about something."""
    start = dict(AutoModelForCausalLM.from_pretrained(results["model"]).named_parameters())
    for alone in ("alone", "alone_adapters"):
        assert difference(results[alone]["weights"], start) > 1e-2


def test_shards_are_shards(results: dict[str, Any]) -> None:
    """Each of two ranks holds half of the numbers, but for the odd row of the embedding."""
    for scenario in ("sharded", "adapters_sharded"):
        assert 0.5 <= results[scenario]["local"] / results[scenario]["whole"] < 0.52


def test_between_micro_batches_a_rank_holds_its_shard_of_the_gradient(results: dict[str, Any]) -> None:
    """Not the gradient of the whole model, as it would if ranks exchanged gradients in the last micro-batch alone."""
    assert results["sharded"]["gradients"] == {"whole": 0, "shards": results["sharded"]["local"]}


@pytest.mark.parametrize("scenario", ["data_parallel", "sharded", "adapters", "adapters_sharded"])
def test_ranks_restore_what_they_saved(results: dict[str, Any], scenario: str) -> None:
    """Policy and state written, an update, both read back, the same update: the same metrics to the last bit."""
    assert results[scenario]["again"] == results[scenario]["expected"]
    saved = dict(AutoModelForCausalLM.from_pretrained(f"{results['model']}_{scenario}").named_parameters())
    assert difference(results[scenario]["weights"], {name: p.detach() for name, p in saved.items()}) == 0.0


@pytest.mark.parametrize("scenario", ["data_parallel", "sharded", "adapters", "adapters_sharded"])
def test_rank_0_alone_holds_what_a_checkpoint_gathers(results: dict[str, Any], scenario: str) -> None:
    """Optimizer and reference, whole: AdamW's two moments, 8 bytes a parameter. (The test above restored them, and the
    weights from a folder that the other rank does not have.)"""
    first, second = results[scenario]["held"]
    trained = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(results["model"]).parameters())
    assert second == 0
    assert first > (0 if "adapters" in scenario else (8 + 4) * trained)


def test_all_ranks_stop_when_rank_0_cannot_prepare_an_update(results: dict[str, Any]) -> None:
    """The error has its name on rank 0, and the other rank does not wait for ever."""
    first, second = results["failure"]
    assert "advantage is nan" in first
    assert first.startswith("ValueError")
    assert second == "RuntimeError: rank 0 could not prepare this update and stopped; its message says why"


def test_all_ranks_stop_when_a_loss_on_one_is_not_finite(results: dict[str, Any]) -> None:
    """The weights that one rank alone has broken: both see the same loss and stop at the same step."""
    first, second = results["non_finite"]
    assert first.startswith("NonFiniteError: optimiser step 1: loss is nan")
    assert second.startswith("NonFiniteError: optimiser step 1: loss is nan")
