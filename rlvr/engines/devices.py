"""Which devices engines get on this host, and what cannot work there: found out before anything is started.

| engine                  | on GPUs gets                                    | and is refused where                  |
|-------------------------|-------------------------------------------------|---------------------------------------|
| `vllm`                  | the device of the run's first process           | it would need more than that one      |
| `vllm_servers`, `spawn` | the devices behind those of the run's processes | too few are left                      |
| `vllm_servers`, `urls`  | what `rlvr serve` was given                     |                                       |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rlvr.config import RecipeError, VllmEngineConfig, VllmServersConfig

_PARALLEL = ("tensor_parallel_size", "data_parallel_size", "pipeline_parallel_size")
"""Arguments of vLLM that put one engine on several devices."""
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What engines find on the host of the process that starts them."""

    gpus: int
    """Devices that this process sees."""
    processes: int
    """Processes of the run on this host, each on a device of its own."""
    environment: Mapping[str, str]

    @classmethod
    def here(cls) -> Host:
        """This host, as the launcher set it up."""
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return cls(gpus=torch.cuda.device_count(), processes=processes, environment=os.environ)


def check_devices(engine: object, host: Host) -> None:
    """Raise `RecipeError` for an engine of a recipe that could not be started on this host, or not take weights."""
    if isinstance(engine, VllmEngineConfig) and host.gpus:
        _check_one_device(engine, host)
    if isinstance(engine, VllmServersConfig):
        server_devices(engine, host)
    if isinstance(engine, VllmEngineConfig | VllmServersConfig) and "quantization" in engine.extra:
        if isinstance(engine, VllmServersConfig) and engine.transfer == "nccl":
            return
        if isinstance(engine, VllmServersConfig) or not host.gpus:
            raise RecipeError(
                f"rollout.engine.extra.quantization must be left out where weights travel through a file, got "
                f"{engine.extra['quantization']!r}: the engine makes scales of its own, which the file cannot set; use "
                "type vllm on a GPU, or transfer: nccl"
            )


def _check_one_device(engine: VllmEngineConfig, host: Host) -> None:
    parallel = {"tensor_parallel": engine.tensor_parallel}
    parallel |= {f"extra.{key}": engine.extra[key] for key in _PARALLEL if key in engine.extra}
    for key, value in parallel.items():
        if value != 1:
            raise RecipeError(
                f"rollout.engine.{key} must be 1 with type vllm on a GPU, got {value}: the engine in the run's own "
                "process takes weights on that process's device alone; use type vllm_servers with spawn: 1 and "
                f"tensor_parallel: {value}, on devices beside the learner's"
            )
    for name in _ALLOCATOR:
        if "expandable_segments:true" in host.environment.get(name, "").lower().replace(" ", ""):
            raise RecipeError(
                f"{name} must not have expandable_segments:True with rollout.engine.type vllm on a GPU, got "
                f"{host.environment[name]!r}: another process cannot open memory of such segments by CUDA IPC, by "
                "which weights reach the engine; unset it, or use type vllm_servers on other devices"
            )


def server_devices(engine: VllmServersConfig, host: Host) -> list[str | None]:
    """vLLM's ``--device-ids`` for each server that the run starts, among the devices that it sees; None without GPUs.

    Raises `RecipeError` if there are too few.
    """
    if not host.gpus:
        return [None] * engine.spawn
    wanted = engine.spawn * engine.tensor_parallel
    if wanted > host.gpus - host.processes:
        raise RecipeError(
            f"rollout.engine.spawn must fit beside the learner, got {engine.spawn} servers of {engine.tensor_parallel} "
            f"GPUs, {wanted} in all: of the {host.gpus} GPUs here {host.processes} belong to the run's processes, so "
            f"that {max(0, host.gpus - host.processes)} are left; start fewer servers or fewer processes "
            "(accelerate launch --num_processes), or use type vllm, which shares the first process's GPU"
        )
    size = engine.tensor_parallel
    starts = range(host.processes, host.processes + wanted, size)
    return [",".join(str(device) for device in range(start, start + size)) for start in starts]
