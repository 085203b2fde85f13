"""Sums and maxima of per-token quantities, reduced once over all micro-batches and ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Meter:
    """Collects on the device, reads once: `totals` is the only place that waits for it.

    All ranks must have added the same names, with empty micro-batches if need be.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor | float) -> None:
        """Add to a sum."""
        value = torch.as_tensor(value, dtype=torch.float64, device=self._device).detach()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def maximum(self, name: str, value: Tensor | float) -> None:
        """Raise a maximum."""
        value = torch.as_tensor(value, dtype=torch.float64, device=self._device).detach()
        self._maxima[name] = torch.maximum(self._maxima[name], value) if name in self._maxima else value

    def totals(self) -> dict[str, float]:
        """Sums and maxima over all ranks."""
        result: dict[str, float] = {}
        for values, how in ((self._sums, dist.ReduceOp.SUM), (self._maxima, dist.ReduceOp.MAX)):
            if not values:
                continue
            names = sorted(values)
            stacked = torch.stack([values[name] for name in names])
            if dist.is_initialized():
                dist.all_reduce(stacked, op=how)
            result.update(zip(names, stacked.tolist(), strict=True))
        return result
