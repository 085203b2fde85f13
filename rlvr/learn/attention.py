"""Causal attention made of matrix products, for CPUs in 16 bits and for prompts that are computed once.

torch's fused attention is quick forward on a CPU, but its backward pass in bfloat16 does not use the processor's
matrix units: it takes 10 to 15 times the forward pass (measured for 20 x 9 heads x 100 positions x 64), more than all
linear layers of a small model. Here the backward pass recomputes the probabilities in blocks, so that memory stays
bounded (FlashAttention, 2205.14135, algorithm 4):

    P = softmax(scale Q K^T)    dV = P^T dO    dP = dO V^T    dS = P (dP - rowsum(P dP))
    dQ = scale dS K             dK = scale dS^T Q

It registers itself with transformers as attention ``causal_cpu``; inputs it does not handle go to transformers' sdpa.
Micro-batches with shared prompts come through here in every type and on every device: a completion's own queries see
its prompt's keys and its own, and the prompt's queries are computed once. Of them the compact queries, keys and values
are kept for the backward pass, not the rows that are made of them.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlvr.learn.shared_prompts import gathered, to_compact, to_owners, to_rows
from rlvr.records import SharedPrompts

NAME = "causal_cpu"
_SCORES = 1 << 20
"""Attention scores that exist at the same time: 4 MiB in float32, which stay near the processor."""


def _backward(
    query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, shared: int, groups: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of attention where query t of a row sees its keys 0 .. shared + t.

    Query and gradient are [B (T groups) D], because the query heads of one key head lie together: their sums for keys
    and values come by themselves. Key and value are [B L D].
    """
    block_rows = max(1, _SCORES // (query.shape[1] * key.shape[1]))
    rows = zip(
        query.split(block_rows), key.split(block_rows), value.split(block_rows), gradient.split(block_rows), strict=True
    )
    parts = [_backward_of_rows(*block, shared, groups, scale) for block in rows]
    if len(parts) == 1:
        return parts[0]  # the usual case, and joining one would copy it
    query_grad, key_grad, value_grad = (torch.cat(grads) for grads in zip(*parts, strict=True))
    return query_grad, key_grad, value_grad


def _backward_of_rows(
    query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, shared: int, groups: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`_backward` in blocks of queries."""
    wide = torch.promote_types(query.dtype, torch.float32)
    wide_key, wide_value = key.to(wide), value.to(wide)
    queries = query.shape[1] // groups
    step = max(1, min(queries, _SCORES // (len(query) * groups * key.shape[1])))
    query_grad = torch.empty_like(query)
    sums: list[Tensor] = []
    # From the end, so that the first block has all the keys
    for start in reversed(range(0, queries, step)):
        end = min(start + step, queries)
        seen, block = shared + end, slice(start * groups, end * groups)
        q, g = query[:, block], gradient[:, block]
        mask = _future(wide_key, end - start, seen).repeat_interleave(groups, 0)
        # Scores and dP in float32: the first are exponents, the second nearly cancel within a row
        p = torch.baddbmm(mask, q.to(wide), wide_key[:, :seen].mT, alpha=scale).softmax(-1)
        dp = torch.bmm(g.to(wide), wide_value[:, :seen].mT)
        ds = torch.ops.aten._softmax_backward_data(dp, p, -1, wide).to(q.dtype)
        query_grad[:, block].baddbmm_(ds, key[:, :seen], beta=0, alpha=scale)
        parts = torch.bmm(ds.mT, q), torch.bmm(p.to(q.dtype).mT, g)
        if not sums:
            sums = list(parts)
            continue
        sums = [total.to(wide) for total in sums]
        for total, part in zip(sums, parts, strict=True):
            total[:, :seen] += part
    return query_grad, sums[0].mul_(scale).to(key.dtype), sums[1].to(value.dtype)


def _future(like: Tensor, queries: int, keys: int) -> Tensor:
    """[queries keys] -inf on what a query does not see, if the last query sees all keys, and 0 elsewhere."""
    return like.new_full((queries, keys), float("-inf")).triu_(keys - queries + 1)


def _fold(rows: Tensor, width: int) -> Tensor:
    """[B T K W] -> [(B K) (T groups) D], where W = groups D."""
    return rows.transpose(1, 2).reshape(len(rows) * rows.shape[2], -1, width)


def _unfold(folded: Tensor, like: Tensor) -> Tensor:
    """The reverse of `_fold` for what has the shape of ``like`` [B T K W]."""
    return folded.view(len(like), like.shape[2], like.shape[1], -1).transpose(1, 2)


@torch.library.custom_op("rlvr::causal_attention", mutates_args=())
def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale Q K^T + causal mask) V over whole sequences: query [B H L D], key and value [B K L D] -> [B H L D].

    H is a multiple of K; the query heads of one key head lie together.
    """
    several = query.shape[1] != key.shape[1]
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=several)


@torch.library.custom_op("rlvr::causal_attention_backward", mutates_args=())
def _causal_backward(
    query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    width, heads = query.shape[3], key.shape[1]
    # [B H L D] -> [B L K W]
    q, g = (tensor.transpose(1, 2).unflatten(2, (heads, -1)).flatten(3) for tensor in (query, gradient))
    k, v = key.transpose(1, 2), value.transpose(1, 2)
    folded = (_fold(q, width), _fold(k, width), _fold(v, width), _fold(g, width))
    parts = _backward(*folded, shared=0, groups=query.shape[1] // heads, scale=scale)
    dq, dk, dv = (_unfold(grad, like) for grad, like in zip(parts, (q, k, v), strict=True))
    dq = dq.unflatten(3, (-1, width)).flatten(2, 3).transpose(1, 2)
    return dq.contiguous(), dk.transpose(1, 2).contiguous(), dv.transpose(1, 2).contiguous()


@torch.library.custom_op("rlvr::shared_attention", mutates_args=())
def _shared_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, owners: Tensor, blocks: Tensor, scale: float
) -> Tensor:
    layout, width, heads = SharedPrompts(rows, owners, blocks), query.shape[3], key.shape[1]
    q, k, v = (to_rows(tensor, layout, heads) for tensor in (query, key, value))
    output = q.new_empty(*q.shape[:3], q.shape[3] // width * v.shape[3])
    several = query.shape[1] != heads
    for first, end, _, shared, length in blocks.tolist():
        own = q[first:end, shared:length].unflatten(3, (-1, width)).flatten(2, 3).transpose(1, 2)
        keys, values = (tensor[first:end, :length].transpose(1, 2) for tensor in (k, v))
        future = _future(q, length - shared, length) if shared else None
        done = functional.scaled_dot_product_attention(
            own, keys, values, attn_mask=future, is_causal=not shared, scale=scale, enable_gqa=several
        )
        output[first:end, shared:length] = done.transpose(1, 2).reshape(end - first, length - shared, heads, -1)
    return to_compact(output, layout, v.shape[3])


@torch.library.custom_op("rlvr::shared_attention_backward", mutates_args=())
def _shared_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gradient: Tensor,
    rows: Tensor,
    owners: Tensor,
    blocks: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    layout, width, heads = SharedPrompts(rows, owners, blocks), query.shape[3], key.shape[1]
    q, k, v = (to_rows(tensor, layout, heads) for tensor in (query, key, value))
    g = to_owners(gradient, layout, heads)
    grads = [torch.empty_like(tensor) for tensor in (q, k, v)]
    for first, end, _, shared, length in blocks.tolist():
        own, seen = (slice(first, end), slice(shared, length)), (slice(first, end), slice(length))
        folded = _fold(q[own], width), _fold(k[seen], width), _fold(v[seen], v.shape[3]), _fold(g[own], v.shape[3])
        parts = _backward(*folded, shared=shared, groups=query.shape[1] // heads, scale=scale)
        for into, part, place in zip(grads, parts, (own, seen, seen), strict=True):
            into[place] = _unfold(part, into[place])
    return to_compact(grads[0], layout, width).transpose(1, 2), gathered(grads[1], layout), gathered(grads[2], layout)


def _register() -> None:
    """Tell torch what it must know of the operators to differentiate and to compile through them."""

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    def backward_by(operator: Any) -> Any:
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
            query, key, value, *rest = ctx.saved_tensors
            grads = operator(query, key, value, gradient.to(query.dtype), *rest, ctx.scale)
            return (*grads, *[None] * (len(rest) + 1))

        return backward

    causal_attention.register_fake(lambda query, *_: torch.empty_like(query))
    _causal_backward.register_fake(lambda *inputs: tuple(tensor.new_empty(tensor.shape) for tensor in inputs[:3]))
    _shared_attention.register_fake(
        lambda query, _, value, *__: query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    )
    _shared_backward.register_fake(
        lambda *inputs: tuple(tensor.new_empty(tensor.transpose(1, 2).shape).transpose(1, 2) for tensor in inputs[:3])
    )
    # torch's compiler keeps, of what it could compute again, what costs the most for its size. An operation of this
    # attention takes 10 to 20 times as long as one of a linear layer (SmolLM2-135M, completions of 50 tokens)
    register_flop_formula(torch.ops.rlvr.causal_attention)(lambda query, *_, **__: 20 * prod(query) * query[2])
    register_flop_formula(torch.ops.rlvr.shared_attention)(
        lambda query, key, value, rows, *_, **__: 20 * prod(rows) * rows[1] * query[1] * query[3]
    )
    causal_attention.register_autograd(backward_by(_causal_backward), setup_context=keep)
    _shared_attention.register_autograd(backward_by(_shared_backward), setup_context=keep)


_register()


def shared_attention(
    query: Float[Tensor, "1 H N D"],
    key: Float[Tensor, "1 K N D"],
    value: Float[Tensor, "1 K N D"],
    layout: SharedPrompts,
    scale: float,
) -> Float[Tensor, "1 N H D"]:
    """`causal_attention` of the samples that ``layout`` describes, each position once."""
    output: Tensor = _shared_attention(query, key, value, layout.rows, layout.owners, layout.blocks, scale)
    return output


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
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layout is not None:
        with torch.autocast(device, enabled=False):
            return shared_attention(query.to(dtype), key.to(dtype), value.to(dtype), layout, scale), None
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = attention_mask is None and causal and dropout == 0.0 and query.shape[2] == key.shape[2]
    plain = plain and key.shape == value.shape and rest.get("position_bias") is None and rest.get("cache") is None
    ours = plain and device == "cpu" and dtype == torch.bfloat16 and torch.is_grad_enabled()
    if not ours:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **rest
        )
    with torch.autocast(device, enabled=False):
        output = causal_attention(query.to(dtype), key.to(dtype), value.to(dtype), scale)
    return output.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
