"""Accumulates sums and maxima of per-token quantities, reduces them once over ranks, and makes metrics of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from rlvr.learn.flops import update_flops
from rlvr.records import MicroBatch


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


_PER_TOKEN = (
    "clip_low", "clip_high", "ratio_limited", "off_policy_masked", "top_entropy", "covariant", "kl", "kl_in_reward",
    "teacher_kl",
)  # fmt: skip
"""Sums that are logged as means over trained tokens."""


def update_metrics(total: dict[str, float], outcomes: list[dict[str, float]]) -> dict[str, float]:
    """An update's metrics from its sums: means are over trained tokens, the loss and norm over optimiser steps."""
    done = [outcome for outcome in outcomes if "loss" in outcome]
    tokens, first = max(1.0, total.get("n", 0.0)), max(1.0, total.get("mismatch_n", 0.0))
    metrics = {
        "update/lr": outcomes[-1]["lr"],
        "update/count": float(len(done)),
        "update/empty": sum(outcome.get("empty", 0.0) for outcome in outcomes),
        "update/non_finite": sum(outcome.get("non_finite", 0.0) for outcome in outcomes),
    }
    if done:
        metrics["update/loss"] = sum(outcome["loss"] for outcome in done) / len(done)
        metrics["update/grad_norm"] = sum(outcome["grad_norm"] for outcome in done) / len(done)
        metrics["update/grad_norm_max"] = max(outcome["grad_norm"] for outcome in done)
    if "entropy" in total:
        metrics["policy/entropy"] = total["entropy"] / tokens
    if "ratio" in total:
        metrics["policy/ratio_max"] = total["ratio"]
    if "clip_low" in total:
        metrics["policy/clip_fraction"] = (total["clip_low"] + total["clip_high"]) / tokens
    for name in _PER_TOKEN:
        if name in total:
            metrics[f"policy/{name}"] = total[name] / tokens
    if "positive" in total:
        metrics["policy/positive_nll"] = total["positive_nll"] / max(1.0, total["positive"])
    if "text_n" in total:
        metrics["policy/text_nll"] = total["text_nll"] / max(1.0, total["text_n"])
        metrics["tokens/given"] = total["text_n"]
    if "mismatch_n" in total:
        metrics["mismatch/abs"] = total["mismatch_abs"] / first
        metrics["mismatch/kl"] = total["mismatch_k3"] / first
        metrics["mismatch/ratio_max"] = total["mismatch_rho"]
        squares = total["mismatch_squares"]
        metrics["mismatch/ess"] = total["mismatch_sum"] ** 2 / (first * squares) if squares else 1.0
    for source, name in (("mismatch_truncated", "mismatch/truncated"), ("mismatch_masked", "mismatch/masked")):
        if source in total:
            metrics[name] = total[source] / first
    metrics |= {name: total[name] / max(1.0, total["pairs"]) for name in total if name.startswith("dpo/")}
    return metrics


def size_metrics(
    model: PreTrainedModel, steps: Sequence[Sequence[MicroBatch]], texts: Sequence[Sequence[MicroBatch]],
    over_limit: int, epochs: int, device: torch.device,
) -> dict[str, float]:  # fmt: skip
    """Size of an update over all ranks; given texts count only towards the operations."""
    meter = Meter(device)
    for prefix, parts in (("", steps), ("text_", texts)):
        batches = [batch for step in parts for batch in step]
        meter.add(f"{prefix}micro_batches", float(len(batches)))
        meter.add(f"{prefix}positions", float(sum(batch.tokens for batch in batches)))
        filled = sum(int((batch.sequence >= 0).sum()) for batch in batches if batch.index)
        meter.add(f"{prefix}filled", float(filled))
        meter.add(f"{prefix}trained", float(sum(int(batch.loss_mask.sum()) for batch in batches)))
    total = meter.totals()
    flops = update_flops(
        model, total["filled"] * epochs + total["text_filled"], total["trained"] * epochs + total["text_trained"]
    )
    return {
        "tokens/trained": total["trained"],
        "tokens/computed": total["positions"],
        **({} if flops is None else {"update/flops": flops}),
        "tokens/padding_share": 1.0 - total["filled"] / total["positions"] if total["positions"] else 0.0,
        "update/micro_batches": total["micro_batches"],
        "update/over_limit": float(over_limit),
    }
