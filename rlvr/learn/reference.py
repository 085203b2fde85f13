"""The reference policy of a KL term: frozen, refreshed from the policy every so often, or its running average."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

from rlvr.config.losses import AveragedReference, FixedReference, KLPenalty
from rlvr.config.recipe import Model
from rlvr.learn.policy import Policy
from rlvr.learn.sharding import on_main, reshard, spread, whole


class ReferencePolicy:
    """The starting policy; ``module`` gives log-probabilities.

    A fixed one is not saved: it is the recipe's model. One that changes is state. All ranks call every method.
    """

    def __init__(self, model: Model, kl: KLPenalty, *, head_chunk: int, accelerator: Accelerator) -> None:
        self.config = kl.reference
        self._policy = Policy.load(model, head_chunk=head_chunk).requires_grad_(False)
        # asked for, because under FSDP accelerate would leave it on the CPU
        self.module = accelerator.prepare_model(self._policy, device_placement=True, evaluation_mode=True)

    @torch.no_grad()
    def follow(self, policy: Policy, *, before: int, after: int) -> bool:
        """Take over or move towards the policy if a multiple of ``every`` lies among the optimiser steps
        ``before < n <= after``; says whether it did."""
        config = self.config
        if isinstance(config, FixedReference) or before // config.every == after // config.every:
            return False
        alpha = config.alpha if isinstance(config, AveragedReference) else 1.0
        reshard(policy)
        reshard(self._policy)
        theirs = dict(policy.model.named_parameters())
        for name, parameter in self._policy.model.named_parameters():
            theirs_now = _laid_out_like(theirs[name].detach(), parameter)
            if alpha == 1.0:
                parameter.copy_(theirs_now)
            else:
                parameter.lerp_(theirs_now.to(parameter.dtype), alpha)
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """Whole weights on the CPU, by name, which may be the reference's own; on all ranks but 0 their shapes alone.
        Nothing for a fixed reference."""
        if isinstance(self.config, FixedReference):
            return {}
        reshard(self._policy)
        return {name: on_main(p) for name, p in self._policy.model.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned on each rank."""
        if isinstance(self.config, FixedReference):
            return
        if not state:
            raise ValueError(
                f"algorithm.kl.reference is {self.config.type!r}, but the checkpoint holds no reference: it was "
                "written with another recipe; resume with the recipe that wrote it"
            )
        reshard(self._policy)
        for name, parameter in self._policy.model.named_parameters():
            parameter.copy_(spread(state[name], parameter))


def _laid_out_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A sharded value whole where the reference is whole on every rank, as accelerate leaves it in evaluation mode."""
    return value if isinstance(parameter, DTensor) else whole(value)
