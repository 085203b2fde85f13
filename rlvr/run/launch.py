"""Decides how a run uses the machine's devices, from the launcher and the recipe, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate.utils import str_to_bool

from rlvr.learn.backend import LaunchError

DRIVER = Path("/proc/driver/nvidia/version")
"""There wherever NVIDIA's driver is loaded."""
_SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


def check_gpus(environment: Mapping[str, str], *, cuda: bool, driver: bool) -> None:
    """Raise `LaunchError` where GPUs were asked for, or are here, and torch sees none: it would train on the CPU.

    `cuda` says whether torch sees a GPU, `driver` whether the machine has NVIDIA's driver.
    """
    if cuda:
        return
    build = torch.version.cuda
    reason = f"this torch ({torch.__version__}) was built for " + (f"CUDA {build}" if build else "CPUs")
    mend = (
        "install torch's CUDA build and a driver that it takes (CUDA 13.0 wants 580 or newer), or train on the CPU by "
        "CUDA_VISIBLE_DEVICES= (empty) and launch/cpu.yaml"
    )
    if _is(environment, "ACCELERATE_USE_FSDP") or _is(environment, "ACCELERATE_USE_CPU", wanted=False):
        raise LaunchError(f"accelerate was launched for GPUs (use_cpu: false), but torch sees none: {reason}; {mend}")
    if driver and environment.get("CUDA_VISIBLE_DEVICES") != "" and not _is(environment, "ACCELERATE_USE_CPU"):
        raise LaunchError(f"this machine has an NVIDIA driver, but torch sees no GPU: {reason}; {mend}")


def _is(environment: Mapping[str, str], name: str, *, wanted: bool = True) -> bool:
    value = environment.get(name)
    return value is not None and bool(str_to_bool(value)) is wanted


def shutdown_seconds(environment: Mapping[str, str]) -> float | None:
    """Seconds that torch's launcher leaves its processes between SIGTERM and SIGKILL; None without a launcher."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    return float(environment.get(_SHUTDOWN, "30"))


def describe(processes: int, device: str, gpus: int, environment: Mapping[str, str] = os.environ) -> str:
    """The first screen's words on processes: how many, on what, which GPUs stay idle, and how long their launcher
    waits for a checkpoint when it is told to stop."""
    text = f"{processes} on {device}"
    local = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if gpus > local:
        text += f", {local} of the {gpus} GPUs here (launch/ddp.yaml and launch/fsdp2.yaml take all)"
    if (seconds := shutdown_seconds(environment)) is not None:
        text += f"; killed {seconds:g} s after SIGTERM ({_SHUTDOWN})"
    return text
