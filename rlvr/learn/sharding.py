"""FSDP2 sharded parameters: gathering whole tensors and scattering them back. Every call is collective."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def reshard(module: nn.Module) -> None:
    """Free the whole copies that FSDP2's root keeps after a forward pass without backward: they are not the
    parameters, and what is written to them is lost."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from its ranks; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_main(tensor: Tensor) -> Tensor:
    """A tensor whole and on the CPU on rank 0, which may be the tensor itself; on other ranks its shape, without data
    (device meta), so that a state costs memory once and not on every rank of a node."""
    complete = whole(tensor).detach()
    return complete.to("cpu") if _rank() == 0 else torch.empty_like(complete, device="meta")


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor of rank 0, of which other ranks may have the shape alone, on the device of the parameter ``like``:
    sharded as that is if it has its shape, else whole on every rank. The inverse of `on_main`."""
    complete = torch.empty_like(value, device=like.device) if value.is_meta else value.to(like.device)
    complete = complete.contiguous()
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(complete, like.device_mesh, like.placements)  # scatters the values of rank 0
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(complete, src=0)
    return complete


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
