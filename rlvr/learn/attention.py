"""Causal attention for CPUs in 16 bits, whose backward pass is made of matrix products.

torch's fused attention is quick forward on a CPU, but its backward pass in bfloat16 does not use the processor's
matrix units: it takes 10 to 15 times the forward pass (measured for 20 x 9 heads x 100 positions x 64), more than all
linear layers of a small model. Here the forward pass is torch's, and the backward pass recomputes the probabilities in
blocks of queries, so that memory stays bounded (FlashAttention, 2205.14135, algorithm 4):

    P = softmax(scale Q K^T)    dV = P^T dO    dP = dO V^T    dS = P (dP - rowsum(P dP))
    dQ = scale dS K             dK = scale dS^T Q

It registers itself with transformers as attention ``causal_cpu``; whatever it is not for goes to transformers' sdpa.
Micro-batches with shared prompts come through here on every device, and see whole sequences.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlvr.learn.shared_prompts import to_compact, to_rows
from rlvr.records import SharedPrompts

NAME = "causal_cpu"
_SCORES = 1 << 22
"""Attention scores that exist at the same time in the backward pass: 16 MiB in float32."""


class _CausalAttention(torch.autograd.Function):
    """Self-attention over whole sequences: query t sees keys 0 .. t; several query heads may share a key head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        shared = query.shape[1] != key.shape[1]
        output = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=shared
        )
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        batch, heads, length, width = query.shape
        groups = heads // key.shape[1]
        wide = torch.promote_types(query.dtype, torch.float32)
        # The query heads of one key head become rows of one matrix: their sums for keys and values come by themselves
        queries, gradients = (_fold(one, groups) for one in (query, grads[0].to(query.dtype)))
        keys, values = key.flatten(0, 1), value.flatten(0, 1)
        wide_keys, wide_values = keys.to(wide), values.to(wide)
        query_grad = torch.empty_like(queries)
        key_grad, value_grad = torch.zeros_like(wide_keys), torch.zeros_like(wide_values)
        rows = max(1, min(length, _SCORES // (batch * heads * length)))
        for start in range(0, length, rows):
            end = min(start + rows, length)
            q, g = (one[:, :, start:end].flatten(1, 2) for one in (queries, gradients))
            future = torch.full((end - start, end), float("-inf"), dtype=wide, device=q.device).triu(start + 1)
            # Scores and dP in float32: the first are exponents, the second nearly cancel within a row
            scores = torch.baddbmm(future.repeat(groups, 1), q.to(wide), wide_keys[:, :end].mT, alpha=ctx.scale)
            p = torch.softmax(scores, dim=-1)
            dp = torch.bmm(g.to(wide), wide_values[:, :end].mT)
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, wide).to(q.dtype)
            query_grad[:, :, start:end] = torch.bmm(ds, keys[:, :end]).view(-1, groups, end - start, width)
            key_grad[:, :end] += torch.bmm(ds.mT, q)
            value_grad[:, :end] += torch.bmm(p.to(q.dtype).mT, g)
        return (
            query_grad.mul_(ctx.scale).view(query.shape),
            key_grad.mul_(ctx.scale).to(key.dtype).view(key.shape),
            value_grad.to(value.dtype).view(value.shape),
            None,
        )


def _fold(tensor: Tensor, groups: int) -> Tensor:
    """[B H L D] -> [B * H / groups, groups, L, D]."""
    batch, heads, length, width = tensor.shape
    return tensor.reshape(batch * heads // groups, groups, length, width)


def causal_attention(
    query: Float[Tensor, "B H L D"], key: Float[Tensor, "B K L D"], value: Float[Tensor, "B K L D"], scale: float
) -> Float[Tensor, "B H L D"]:
    """softmax(scale Q K^T + causal mask) V; H is a multiple of K, heads h of one group lie together."""
    return _CausalAttention.apply(query, key, value, scale)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The interface of transformers' attention functions; the result is [B L H D]."""
    layout: SharedPrompts | None = rest.pop("shared_prompts", None)
    if layout is not None:
        query, key, value = (to_rows(one, layout) for one in (query, key, value))
        output, _ = _attention(module, query, key, value, None, dropout, scaling, is_causal, **rest)
        return to_compact(output, layout), None
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    plain = attention_mask is None and causal and dropout == 0.0 and query.shape[2] == key.shape[2]
    plain = plain and key.shape == value.shape and rest.get("position_bias") is None and rest.get("cache") is None
    ours = plain and device == "cpu" and dtype == torch.bfloat16 and torch.is_grad_enabled()
    if not ours:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **rest
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(device, enabled=False):
        output = causal_attention(query.to(dtype), key.to(dtype), value.to(dtype), scale)
    return output.transpose(1, 2).contiguous(), None


def keep_from_compiler() -> None:
    """Leave attention as it is when the layers around it are compiled: shared prompts are no tensors."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, torch.compiler.disable(_attention))


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
