"""What the processes of a run say to each other beside tensors, and where they wait for rank 0.

Rank 0 samples, grades and evaluates for minutes to hours while the others have nothing to do. They wait in a group of
their own, over gloo, with the long timeout of ``run.process_timeout``: in one of NCCL's collectives a waiting process
would keep a core and a kernel on its GPU busy, and only a timeout of hours there would let it live, so that a real
hang would be noticed after hours.

Every function is a collective: all ranks call it in the same order. With one process each gives back its argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

COLLECTIVE_SECONDS = 600
"""How long a collective on GPUs, in which nobody waits for rank 0 to sample, may take before it counts as a hang."""

T = TypeVar("T")

_groups: dict[Any, Any] = {}
"""Of each default group, which lives as long as the process, its group for waiting."""


def open_group(seconds: float = 7200) -> None:
    """Make the group in which the ranks of the default group wait for each other, at most `seconds`."""
    if _is_alone() or dist.group.WORLD in _groups:
        return
    _groups[dist.group.WORLD] = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))


def wait() -> None:
    """Until every rank is here."""
    any_rank(False)


def any_rank(flag: bool) -> bool:
    """True on every rank if it is true on one."""
    if _is_alone():
        return flag
    found = torch.tensor(float(flag))
    dist.all_reduce(found, group=_group())
    return bool(found.item() > 0)


def from_main(value: T) -> T:
    """Rank 0's value on every rank; it is pickled."""
    if _is_alone():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_group())
    return box[0]


def scatter(values: Sequence[T] | None) -> T | None:
    """To each rank its element of rank 0's list, whose length is the number of ranks; None on every rank if rank 0
    passes None."""
    if _is_alone():
        return values[0] if values else None
    mine: list[T | None] = [None]
    everyone = values if values is not None else [None] * dist.get_world_size()
    dist.scatter_object_list(mine, list(everyone) if dist.get_rank() == 0 else None, src=0, group=_group())
    return mine[0]


def _is_alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def _group() -> Any:
    open_group()
    return _groups[dist.group.WORLD]
