"""Parameters that FSDP2 keeps in shards: whole tensors out of them and into them. All ranks make every call."""

from __future__ import annotations

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


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor of a sharded parameter's shape, sharded as that is; any other as it is."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value
