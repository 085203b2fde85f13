"""Runs learners as one rank of several, for the tests of data parallel and sharded training.

    python -m torch.distributed.run --nproc-per-node 2 -m tests.learn.ranks FOLDER

Reads FOLDER/tied and FOLDER/untied; rank 0 writes what each scenario ends with to FOLDER/MODEL_SCENARIO.pt.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule

from rlvr.config.algorithm import Algorithm
from rlvr.config.recipe import LearnerConfig, Model
from rlvr.learn.texts import GivenTexts
from rlvr.learn.update import Learner
from rlvr.records import TrainingSample
from tests.learn.conftest import samples_of_groups

ALGORITHM = Algorithm.model_validate(
    {
        "updates_per_batch": 2,
        "kl": {"type": "k3", "coefficient": 0.05, "reference": {"type": "average", "every": 3, "alpha": 0.5}},
        "correction": {"type": "truncate"},
        "aggregation": {"type": "prompt_mean"},
        "surrogate": {"type": "clip_cov", "share": 0.1, "cov_low": -9.0, "cov_high": 9.0},
        "top_entropy": 0.6,  # a selection: rounding decides about a token on its border
        "positive_nll": 0.1,
        "entropy": {"type": "fixed", "coefficient": 0.01},
        "given_text": {"type": "nll", "path": "unread", "coefficient": 0.1, "rows": 3},
    }
)
ADAPTED = Algorithm.model_validate({"kl": {"type": "k3", "coefficient": 0.05}, "updates_per_batch": 2})
"""Of adapters: its reference is the policy without them."""
LORA = {"rank": 3, "alpha": 6.0}
STEPS = 5


def make_learner(
    model: str, accelerator: Accelerator, algorithm: Algorithm = ALGORITHM, *, lora: bool = False, **settings: Any
) -> Learner:
    """A learner over a tiny model; micro-batches are small, so that each rank has several, and not the same number."""
    config = LearnerConfig.model_validate({"lr": 3e-3, "epsilon": 1e-3, "micro_batch_tokens": 48, **settings})
    texts = None
    if accelerator.is_main_process and not lora:
        texts = GivenTexts(samples_of_groups(7, seed=99), rows=3, seed=0)
    return Learner(
        Model.model_validate({"path": model, "lora": LORA if lora else None}),
        config, ADAPTED if lora else algorithm, total_updates=2 * STEPS, temperature=0.8, accelerator=accelerator,
        texts=texts,
    )  # fmt: skip


def run_steps(learner: Learner) -> dict[str, Any]:
    """Five updates, one of them with a batch that leaves a rank of two without samples; then all that can be seen."""
    metrics = [
        learner.update(
            samples_of_groups(1 if step == 3 else 9, seed=step) if learner.accelerator.is_main_process else None
        )
        for step in range(STEPS)
    ]
    return {
        "weights": {name: tensor.clone() for name, tensor in learner.named_weights()},
        "metrics": metrics,
        "logprobs": learner.logprobs([[5, 6, 7], [8, 9, 10, 11, 12]]),
    }


def shard(accelerator: Accelerator) -> Accelerator:
    """Sharded training on CPUs, which accelerate itself offers on accelerators only: from here on it takes the same way
    through `prepare`, its FSDP2 wrapping and torch's `fully_shard` as on GPUs."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    accelerator.state.fsdp_plugin = plugin
    accelerator.state._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type = DistributedType.FSDP
    return accelerator


def failure(accelerator: Accelerator, model: str) -> list[str]:
    """Rank 0 is given a sample that cannot be trained: how each rank ends."""
    bad = samples_of_groups(4)
    object.__setattr__(bad[2], "advantage", float("nan"))
    return ending(make_learner(model, accelerator), bad)


def non_finite(accelerator: Accelerator, model: str) -> list[str]:
    """Rank 1 alone computes with a weight that is not finite: how each rank ends."""
    learner = make_learner(model, accelerator)
    if not accelerator.is_main_process:
        with torch.no_grad():
            learner.policy.model.get_parameter("model.norm.weight")[0] = float("nan")
    return ending(learner, samples_of_groups(8))


def ending(learner: Learner, samples: list[TrainingSample]) -> list[str]:
    """The error of each rank's update."""
    try:
        learner.update(samples if learner.accelerator.is_main_process else None)
        result = "no error"
    except (ValueError, RuntimeError, FloatingPointError) as error:
        result = f"{type(error).__name__}: {error}"
    everyone: list[Any] = [None] * learner.accelerator.num_processes
    dist.all_gather_object(everyone, result)
    return everyone


def training(accelerator: Accelerator, scenario: str, model: str) -> dict[str, Any]:
    """Five steps, then saving and restoring."""
    packing = "packed" if scenario == "packed" else "shared"
    learner = make_learner(model, accelerator, lora=scenario.startswith("adapters"), packing=packing)
    result = run_steps(learner)
    learner.save_policy(Path(f"{model}_{scenario}"))
    state = copy.deepcopy(learner.state_dict())
    held: list[Any] = [None] * accelerator.num_processes
    dist.all_gather_object(held, bytes_of({key: state[key] for key in ("optimizer", "reference")}))
    samples = samples_of_groups(6, seed=9) if accelerator.is_main_process else None
    expected = learner.update(samples)
    learner.load_policy(Path(f"{model}_{scenario}" if accelerator.is_main_process else "/not/there"))
    learner.load_state_dict(state)
    result |= {"held": held, "expected": expected, "again": learner.update(samples)}
    if scenario.endswith("sharded"):
        result["local"] = sum(p.to_local().numel() for p in learner.policy.parameters())
        result["whole"] = sum(p.numel() for p in learner.policy.parameters())
        result["gradients"] = held_gradients(learner)
    return result


def bytes_of(state: Any) -> int:
    """What the tensors in a state take in memory."""
    if isinstance(state, torch.Tensor):
        return 0 if state.is_meta else state.nbytes
    return sum(map(bytes_of, state.values())) if isinstance(state, dict) else 0


def held_gradients(learner: Learner) -> dict[str, int]:
    """Numbers of gradients that this rank holds after a micro-batch which is not the last: in whole, and in shards."""
    module = learner.backend.module
    shard(learner.accelerator)
    ids = torch.arange(2, 12)[None]
    with learner.backend.accumulate(last=False):
        logprobs, _ = module(ids[:, :-1], torch.arange(9)[None], ids[:, 1:], torch.ones(1, 9), 1.0)
        learner.backend.backward(logprobs.sum())
    groups = [part._get_fsdp_state()._fsdp_param_group for part in module.modules() if isinstance(part, FSDPModule)]
    whole = [
        gradient
        for group in groups
        for parameter in (group.fsdp_params if group is not None else ())
        for gradient in (parameter.unsharded_accumulated_grad, parameter._unsharded_param.grad)
        if gradient is not None
    ]
    shards = [p.grad.to_local() for p in learner.policy.parameters() if p.grad is not None]
    learner.backend.prepare_step(lr=0.0)
    return {"whole": sum(map(torch.Tensor.numel, whole)), "shards": sum(map(torch.Tensor.numel, shards))}


SCENARIOS = ("data_parallel", "packed", "failure", "non_finite", "adapters", "sharded", "adapters_sharded")
"""The sharded ones last: they change the accelerator."""
MODELS = ("tied", "untied")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # as `rlvr.run.build.make_accelerator`
    accelerator = Accelerator(cpu=True, kwargs_handlers=[buckets])
    for scenario in SCENARIOS:
        for name in MODELS:
            if scenario.endswith("sharded"):
                accelerator = shard(accelerator)  # for each learner: accelerate's optimizer resets it
            model = str(folder / name)
            if scenario == "failure":
                result: Any = failure(accelerator, model)
            elif scenario == "non_finite":
                result = non_finite(accelerator, model)
            else:
                result = training(accelerator, scenario, model)
            if accelerator.is_main_process:
                torch.save(result, folder / f"{name}_{scenario}.pt")
    accelerator.wait_for_everyone()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
