"""Which devices engines get on this host, and what cannot work there: found out before anything is started.

| ``rollout.engine.devices`` | engines                                                                               |
|----------------------------|---------------------------------------------------------------------------------------|
| ``first``                  | one, on the device of rank 0 (and the next ones, where `tensor_parallel` asks)         |
| ``each``                   | one on the device of each rank; `tensor_parallel` neighbours share one                |
| ``[6, 7]``                 | one on each of these devices, or on each `tensor_parallel` of them in turn            |

Devices are numbers among those that CUDA_VISIBLE_DEVICES shows; rank r of this node trains on device r. On a CPU a
device is only a place for an engine; all of them share its cores.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from rlvr.config import RecipeError, VllmEngineConfig, VllmServersConfig

Devices = Literal["first", "each"] | Sequence[int]
SHARED_SHARE, OWN_SHARE = 0.4, 0.9
"""vLLM's share of a GPU's memory where the recipe names none: beside a learner, and alone."""
SPARE_SHARE = 0.05
"""Of a GPU's memory, for the CUDA contexts of learner and engine and for the engine's layers as they are replaced."""
_PARALLEL = ("tensor_parallel_size", "data_parallel_size", "pipeline_parallel_size")
"""Arguments of vLLM that put one engine on several devices."""
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The devices of the host that starts the engines."""

    gpus: int = 0
    """Devices that this process sees; 0 is a CPU."""
    ranks: int = 1
    """Processes of the whole run."""
    ranks_here: int = 1
    """Those on this host, each on a device of its own."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls) -> Host:
        """This host, as the launcher set it up."""
        ranks, ranks_here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return cls(gpus=torch.cuda.device_count(), ranks=ranks, ranks_here=ranks_here, environment=os.environ)


@dataclass(frozen=True, slots=True)
class Place:
    """The devices of one engine."""

    devices: tuple[int, ...]
    is_shared: bool
    """With ranks that train there."""

    @property
    def memory_share(self) -> float:
        """Share of each GPU's memory that the engine may take unless the recipe says otherwise."""
        return SHARED_SHARE if self.is_shared else OWN_SHARE


def place(devices: Devices, tensor_parallel: int, host: Host) -> list[Place]:
    """The places of this host's engines, in order. Raises `RecipeError`, with the arithmetic, if there are none."""
    size = tensor_parallel if host.gpus else 1  # on a CPU an engine's workers share the cores anyway
    if devices == "first":
        chosen: Sequence[int] = range(size)
    elif devices == "each":
        if host.ranks != host.ranks_here:
            raise RecipeError(
                "rollout.engine.devices: each starts engines on one node, and this launch has "
                f"{host.ranks - host.ranks_here} of its {host.ranks} ranks on others; start an engine there by `rlvr "
                "serve` and name it in rollout.engine {type: vllm_servers, urls: [...]}"
            )
        chosen = range(host.ranks_here)
    else:
        chosen = list(devices)
    shown = devices if isinstance(devices, str) else list(devices)
    if len(chosen) % size:
        raise RecipeError(
            f"rollout.engine.devices: {shown} is {len(chosen)} devices, which engines of tensor_parallel = {size} "
            f"cannot share out: {len(chosen)} = {len(chosen) // size} x {size} + {len(chosen) % size}"
        )
    if host.gpus and (missing := [device for device in chosen if device >= host.gpus]):
        raise RecipeError(
            f"rollout.engine.devices: {shown} with tensor_parallel = {size} asks for GPU {missing[0]}, and this node "
            f"shows {host.gpus}: 0 to {host.gpus - 1} (CUDA_VISIBLE_DEVICES)"
        )
    groups = [tuple(chosen[start : start + size]) for start in range(0, len(chosen), size)]
    return [Place(group, is_shared=any(device < host.ranks_here for device in group)) for group in groups]


def is_in_process(places: Sequence[Place]) -> bool:
    """Whether the engine is one of rank 0's own process, on its device; all others are servers."""
    return [here.devices for here in places] == [(0,)]


def engine_places(engine: object, host: Host) -> list[Place]:
    """Where the engines of a recipe run that the run itself starts.

    Raises `RecipeError` for an engine that could not be started on this host, or not take weights.
    """
    if not isinstance(engine, VllmEngineConfig | VllmServersConfig):
        return []
    places = [] if engine.devices is None else place(engine.devices, engine.tensor_parallel, host)
    takes_file = not is_in_process(places) if isinstance(engine, VllmEngineConfig) else engine.transfer == "file"
    if isinstance(engine, VllmEngineConfig):
        _check_in_process(engine, host) if is_in_process(places) else _check_servers(engine)
    if (takes_file or not host.gpus) and "quantization" in engine.extra:
        raise RecipeError(
            f"rollout.engine.extra.quantization must be left out where weights travel through a file, got "
            f"{engine.extra['quantization']!r}: the engine makes scales of its own, which the file cannot set; use "
            "type vllm with devices: first on a GPU, or type vllm_servers with transfer: nccl"
        )
    return places


def learner_share(engine: object, places: Sequence[Place], local_rank: int) -> float | None:
    """The share of its GPU that the learner's allocator may fill, where an engine runs on it too: that engine would be
    the one to run out of memory, at the next sync. None without a bound: no engine there, or one that sleeps."""
    if not isinstance(engine, VllmEngineConfig | VllmServersConfig):
        return None
    if isinstance(engine, VllmEngineConfig) and engine.sleep:
        return None
    taken = [engine.gpu_memory_share or here.memory_share for here in places if local_rank in here.devices]
    return 1.0 - sum(taken) - SPARE_SHARE if taken else None


def _check_in_process(engine: VllmEngineConfig, host: Host) -> None:
    if not host.gpus:
        return
    for key in _PARALLEL:
        if engine.extra.get(key, 1) != 1:
            raise RecipeError(
                f"rollout.engine.extra.{key} must be 1 on a GPU, got {engine.extra[key]}: the engine in the run's own "
                "process takes weights on that process's device alone; use rollout.engine.tensor_parallel, or devices "
                "for several engines"
            )
    for name in _ALLOCATOR:
        if "expandable_segments:true" in host.environment.get(name, "").lower().replace(" ", ""):
            raise RecipeError(
                f"{name} must not have expandable_segments:True with rollout.engine.type vllm on a GPU, got "
                f"{host.environment[name]!r}: another process cannot open memory of such segments by CUDA IPC, by "
                "which weights reach the engine; unset it, or give the engine other devices"
            )


def _check_servers(engine: VllmEngineConfig) -> None:
    for key, value in (("sleep", engine.sleep), ("stats", engine.stats)):
        if value:
            raise RecipeError(
                f"rollout.engine.{key} must be false with rollout.engine.devices: {engine.devices} and "
                f"tensor_parallel: {engine.tensor_parallel}, got true: it belongs to an engine in rank 0's own "
                "process, and this one is to be a process of its own; leave it out, or set devices: first"
            )
