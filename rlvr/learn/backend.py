"""The backend: the policy wrapped for one process, DDP or FSDP2, and its optimizer, behind eight methods.

| accelerate launched | gradients are                       |
|---------------------|-------------------------------------|
| one process         | whole                               |
| DDP                 | reduced with the last backward pass |
| FSDP2               | sharded with each backward pass     |

Wrappers average gradients over ranks, while a step's loss is a sum over ranks (its denominators are global):
`Backend.backward` therefore multiplies the loss by the number of ranks.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import rlvr.control as control
from rlvr.config.recipe import LearnerConfig
from rlvr.errors import InputError
from rlvr.learn.policy import Policy
from rlvr.learn.sharding import on_main, reshard, spread, whole

_QUANTISED = "__bnb_optimizer_quant_state__"
"""Where bitsandbytes keeps the moments in its state, both those in 8 bits and the small ones in float32."""


def make_optimizer(policy: Policy, config: LearnerConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; vectors (norms, biases) do not decay.

    In 8 bits by bitsandbytes, which has kernels for CPUs and GPUs; torchao's AdamW8bit compiles itself at its first
    step (28 s on a CPU), and its states are tensors of its own class, which no checkpoint of plain tensors holds.
    """
    parameters = [p for p in policy.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.epsilon, fused=True)
    from bitsandbytes.optim import AdamW8bit  # an extra, and slow to import

    return AdamW8bit(groups, lr=config.lr, betas=config.betas, eps=config.epsilon)


class LaunchError(InputError, ValueError):
    """accelerate was launched for something that cannot train the recipe; the message says what to change."""


def check_launch(accelerator: Accelerator, config: LearnerConfig) -> None:
    """Raise `LaunchError` unless there is a backend for what accelerate was launched for; loads nothing."""
    kind = accelerator.distributed_type
    if accelerator.mixed_precision != "no":
        raise LaunchError(
            f"accelerate was launched with mixed_precision {accelerator.mixed_precision!r}, which must be 'no': "
            "the recipe's model.dtype and model.autocast decide"
        )
    if config.optimizer == "adamw_8bit":
        if kind == DistributedType.FSDP:
            raise LaunchError(
                "learner.optimizer must be adamw where weights are sharded, got 'adamw_8bit': bitsandbytes takes whole "
                f"tensors, and accelerate was launched for {kind.value}; launch one process or DDP for 8 bits"
            )
        if importlib.util.find_spec("bitsandbytes") is None:
            raise LaunchError("learner.optimizer: 'adamw_8bit' needs bitsandbytes; pip install 'rlvr[adamw-8bit]'")
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise LaunchError("accelerate was launched with FSDP version 1; set fsdp_version: 2 in its config")
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
    if kind not in known:
        raise LaunchError(
            f"accelerate was launched for {kind.value}; supported are one process, DDP and FSDP2 (launch/fsdp2.yaml)"
        )


class Backend:
    """The wrapped policy and torch's own optimizer on whole or sharded parameters; all ranks make every call."""

    module: nn.Module
    """The wrapped policy: call this."""

    def __init__(self, accelerator: Accelerator, policy: Policy, config: LearnerConfig) -> None:
        """Raises `LaunchError` for a launch that cannot train here."""
        check_launch(accelerator, config)
        self._accelerator, self._max_norm = accelerator, config.max_grad_norm
        self._quantised = config.optimizer == "adamw_8bit"
        self.module, self._optimizer = accelerator.prepare(policy, make_optimizer(policy, config))

    def accumulate(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Surrounds forward and backward pass of one micro-batch.

        Under DDP ranks exchange gradients only in the last. Under FSDP2 they do in each: a rank that waited would hold
        the gradient of the whole model, 4 bytes a parameter, where its share is 4 divided by the number of ranks.
        """
        if last or isinstance(self.module, FSDPModule):
            return contextlib.nullcontext()
        without: contextlib.AbstractContextManager[Any] = self._accelerator.no_sync(self.module)
        return without

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's part of the loss."""
        (loss * self._accelerator.num_processes).backward()

    def clip(self) -> float:
        """Norm of the gradient over all parameters and ranks, before it is clipped to the recipe's maximum."""
        return clip_gradients([p.grad for p in self.module.parameters() if p.grad is not None], self._max_norm)

    def prepare_step(self, *, lr: float) -> None:
        """Start an optimiser step: no gradients, and the learning rate that it will use."""
        self._optimizer.zero_grad()
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def step(self) -> None:
        """Update the weights."""
        self._optimizer.step()

    def drop_gradients(self) -> None:
        """Forget the gradients, whose memory the engine can use until the next update."""
        self._optimizer.zero_grad()

    def full_parameters(self, policy: Policy) -> Iterator[tuple[str, Tensor]]:
        """Each parameter of ``policy.model``, whole, one at a time."""
        reshard(self.module)
        for name, parameter in policy.model.named_parameters():
            yield name, whole(parameter.detach())

    @torch.no_grad()
    def load_parameters(self, policy: Policy, values: Mapping[str, Tensor]) -> None:
        """Overwrite parameters of ``policy.model`` with the whole tensors of their names, those of rank 0; what other
        ranks pass is not looked at."""
        reshard(self.module)
        parameters = dict(policy.model.named_parameters())
        for name in control.from_main(list(values)):
            parameter = parameters[name]
            value = values[name] if self._accelerator.is_main_process else _shape_of(parameter)
            parameter.copy_(spread(value.to(parameter.dtype), parameter))

    def optimizer_state(self) -> dict[int, dict[str, Any]]:
        """The optimizer's state with whole tensors on the CPU, which may be the optimizer's own; on all ranks but 0
        with their shapes alone (device meta)."""
        state = self._optimizer.state_dict()
        return {index: {key: _saved(value) for key, value in entry.items()} for index, entry in state["state"].items()}

    def load_optimizer_state(self, state: dict[int, dict[str, Any]]) -> None:
        """Take over what `optimizer_state` returned on each rank."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        keys = {key for entry in state.values() for key in entry}
        if keys and (_QUANTISED in keys) != self._quantised:
            raise ValueError("the optimizer's state is that of another learner.optimizer")
        values = {
            index: {key: _spread(value, parameters[index]) for key, value in entry.items()}
            for index, entry in state.items()
        }
        # Settings (decay, moments) are the recipe's, not the checkpoint's
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": values, "param_groups": groups})


def clip_gradients(gradients: Iterable[Tensor], max_norm: float) -> float:
    """Scale ``gradients`` in place to a norm of at most ``max_norm`` together; the norm before, summed in float32."""
    gradients = list(gradients)
    norm = float(whole(torch.linalg.vector_norm(torch.stack([_norm(g) for g in gradients]))))
    if norm > max_norm:
        torch._foreach_mul_(gradients, max_norm / norm)
    return norm


def _norm(gradient: Tensor) -> Tensor:
    """On a CPU in parts: there torch's own norm converts a 16-bit gradient whole, takes twice as long, and adds the
    squares up so plainly that that of 28 million normal numbers is 0.15 % too small; a sum is by halves."""
    wide = _wide(gradient)
    if gradient.device.type != "cpu" or isinstance(gradient, DTensor):
        norm: Tensor = torch.linalg.vector_norm(gradient, dtype=wide)
        return norm
    return torch.stack([part.to(wide).square().sum() for part in gradient.flatten().split(1 << 20)]).sum().sqrt()


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _shape_of(parameter: Tensor) -> Tensor:
    """A whole parameter without its data."""
    return torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")


def _saved(value: Any) -> Any:
    """A value of the optimizer's state, its tensors `on_main`; bitsandbytes has tensors in a dict."""
    if isinstance(value, dict):
        return {key: _saved(inner) for key, inner in value.items()}
    return on_main(value) if isinstance(value, Tensor) else value


def _spread(value: Any, parameter: Tensor) -> Any:
    """A value of the optimizer's state as `_saved` made it, laid out as the optimizer has it."""
    if isinstance(value, dict):
        return {key: _spread(inner, parameter) for key, inner in value.items()}
    return spread(value, parameter) if isinstance(value, Tensor) else value
