"""What a checkpoint costs the run: SmolLM2-135M's shape with AdamW's moments, saved beside the learner's updates.

    PYTHONPATH=. python benchmarks/checkpoint_cost.py [--updates 10] [--step SECONDS]

Prints one JSON line: seconds of an update without a write beside it and with one, seconds that the run stands still for
the copy, seconds of the write, and the share of ten steps that the two cost together. --step is the time of a whole
step of the recipe (sampling included); without it an update alone counts as a step, which overstates the share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks.learner_step import smollm2_135m
from rlvr.config import Algorithm, RunConfig
from rlvr.config.recipe import LearnerConfig, Model
from rlvr.learn.update import Learner
from rlvr.records import TrainingSample
from rlvr.state.register import StateRegister
from rlvr.state.saver import Saver


def samples(count: int = 64, prompt: int = 40, completion: int = 48) -> list[TrainingSample]:
    """A batch of the recipe r1_zero_smollm2's size: 8 groups of 8."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 49152, (count, prompt + completion), generator=generator).tolist()
    mask, logprobs = (0,) * prompt + (1,) * completion, (0.0,) * prompt + (-10.0,) * completion
    return [
        TrainingSample(
            ids=tuple(row), loss_mask=mask, behaviour_logprobs=logprobs, advantage=1.0 - 2.0 * (index % 2),
            group=index // 8,
        )
        for index, row in enumerate(ids)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--step", type=float)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="checkpoint_cost_") as place:
        accelerator = Accelerator(cpu=True)
        learner = Learner(
            Model(path=smollm2_135m(f"{place}/model"), autocast="bfloat16"),
            LearnerConfig(lr=1e-6, micro_batch_tokens=1600, head_chunk=256),
            Algorithm(), total_updates=1000, temperature=1.0, accelerator=accelerator,
        )  # fmt: skip
        register = StateRegister()
        register.add("learner", learner)
        saver = Saver(
            Path(place),
            register,
            accelerator,
            RunConfig(steps=arguments.updates + 1, keep=1),
            lambda name, text: print(name, text),
        )
        batch = samples()
        seconds: dict[bool, list[float]] = {True: [], False: []}
        stops: list[float] = []
        writes: list[float] = []
        learner.update(batch)
        for number in range(arguments.updates):
            began = time.perf_counter()
            beside = number % 2 == 1
            if beside:
                saver.save(number, learner.policy_writer, {})
                stops.append(time.perf_counter() - began)
            pending, begun = saver._pending, time.perf_counter()
            if pending is not None:
                pending.add_done_callback(lambda _, begun=begun: writes.append(time.perf_counter() - begun))
            learner.update(batch)
            seconds[beside].append(time.perf_counter() - began)
            saver.wait()  # so that the next update has nothing beside it
        saver.close()
        alone, beside_it = (statistics.median(seconds[one]) for one in (False, True))
        step = arguments.step or alone
        size = sum(one.stat().st_size for one in (Path(place) / "checkpoints/latest/").resolve().iterdir())
        print(json.dumps({
            "checkpoint_gib": round(size / 2**30, 2),
            "update": round(alone, 2), "update_with_a_save": round(beside_it, 2),
            "stands_still": round(statistics.median(stops), 2), "write": round(statistics.median(writes), 2),
            "share_of_ten_steps": round((beside_it - alone) / (10 * step), 4), "step": round(step, 2),
            "threads": torch.get_num_threads(),
        }))  # fmt: skip


if __name__ == "__main__":
    main()
