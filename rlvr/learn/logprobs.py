"""Log-probabilities without logits: the head and its log-softmax in pieces, recomputed in the backward pass.

For N predicted tokens and a vocabulary of V no tensor of N x V numbers exists at any time. Both passes go through the
vocabulary in blocks of rows of the head. The forward pass keeps a running largest logit m, sum of exponentials and sum
of exponentials times logits per token, which are rescaled where m grows (Milakov and Gimelshein 2018, arXiv 1805.02867,
algorithm 3; the second sum in the same way),

    s = sum_v exp(l_v - m),   w = sum_v exp(l_v - m) (l_v - m),   lse = m + log s,   H = log s - w / s,

and saves only lse and H, [N]. With them known, each block's softmax is complete on its own in the backward pass,

    d logits[n, v] = g[n] / temperature * (1[v = target n] - exp(logits[n, v] - lse[n])),

for the log-probabilities, and for the entropies, where a loss uses them,

    d logits[n, v] = -h[n] / temperature * p[n, v] * (log p[n, v] + H[n]),

so that the gradient of each block of head rows is one matrix product, written once, and only the small gradient of the
hidden states [N H] is summed over blocks, in float32. A block of the head that is computed in another type than it is
stored in is cast when its turn comes: no second copy of the head exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _ChunkedLogprobs(torch.autograd.Function):
    """See the module's docstring; arguments as in `chunked_logprobs`, the matrix products in the type of `hidden`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk: int,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        ctx.temperature, ctx.chunk, ctx.compiled = temperature, chunk, compiled
        fold_in = _compiled(_fold_in) if compiled else _fold_in
        top = torch.full(hidden.shape[:1], torch.finfo(wide).min, dtype=wide, device=hidden.device)
        total, weighted, picked = (torch.zeros_like(top) for _ in range(3))
        for piece in _blocks(hidden, weight, chunk):
            bias_block = None if bias is None else bias[piece]
            raw = _product(hidden, weight[piece].to(hidden.dtype), None if compiled else wide)
            place, inside = _within(targets, piece)
            picked = torch.where(inside, _at(raw, bias_block, place, temperature, wide).squeeze(1), picked)
            top, total, weighted = fold_in(raw, bias_block, temperature, top, total, weighted)
            del raw  # before the next block's exist
        log_total = total.log()
        logprobs, entropy = picked - top - log_total, log_total - weighted / total
        ctx.save_for_backward(hidden, weight, bias, targets, top + log_total, entropy)
        ctx.set_materialize_grads(False)  # a loss that does not use the entropy does not pay for its gradient
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
        grad, entropy_grad = (None if g is None else (g / ctx.temperature)[:, None] for g in grads)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.zeros_like(hidden, dtype=lse.dtype) if need_hidden else None
        weight_grad = torch.empty_like(weight) if need_weight else None
        bias_grad = torch.empty_like(bias) if need_bias else None
        slope = _compiled(_slope) if ctx.compiled else _slope
        known = (lse[:, None], entropy[:, None], grad, entropy_grad)
        token = torch.arange(len(hidden), device=hidden.device)[:, None]
        for piece in _blocks(hidden, weight, ctx.chunk):
            rows, bias_block = weight[piece].to(hidden.dtype), None if bias is None else bias[piece]
            raw = _product(hidden, rows, None if ctx.compiled else lse.dtype)
            place, inside = _within(targets, piece)
            at_target = _slope(_at(raw, bias_block, place, ctx.temperature, lse.dtype), None, 1.0, *known, lse.dtype)
            delta = slope(raw, bias_block, ctx.temperature, *known, hidden.dtype)
            if grad is not None:
                rounded = (at_target + grad).to(delta.dtype)
                # not scatter_, which copies the whole block twice on a CPU in 16 bits
                delta[token, place] = torch.where(inside[:, None], rounded, delta[token, place])
            if bias_grad is not None:
                bias_grad[piece] = delta.sum(0, dtype=lse.dtype)
            if hidden_grad is not None:
                hidden_grad += delta @ rows
            if weight_grad is not None and weight_grad.dtype == delta.dtype:
                torch.mm(delta.t(), hidden, out=weight_grad[piece])
            elif weight_grad is not None:
                weight_grad[piece] = delta.t() @ hidden
            del raw, delta, rows  # before the next block's exist
        hidden_grad_cast = None if hidden_grad is None else hidden_grad.to(hidden.dtype)
        return hidden_grad_cast, weight_grad, bias_grad, None, None, None, None


def _fold_in(
    raw: Tensor, bias: Tensor | None, temperature: float, top: Tensor, total: Tensor, weighted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """m, s and w after a block; ``raw`` [N block] is the product alone, and may be overwritten."""
    logits = _logits(raw, bias, temperature, top.dtype)
    highest = torch.maximum(top, logits.amax(-1))
    # centred by their largest, or large logits would cancel badly in the entropy
    logits -= highest[:, None]
    p, shift = logits.exp(), top - highest
    weighted = shift.exp() * (weighted + shift * total)
    total = shift.exp() * total + p.sum(-1)
    weighted += p.mul_(logits).sum(-1)
    return highest, total, weighted


def _slope(
    raw: Tensor,
    bias: Tensor | None,
    temperature: float,
    lse: Tensor,
    entropy: Tensor,
    grad: Tensor | None,
    entropy_grad: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient of a block's logits, in ``dtype``, but for the 1 at the target; ``raw`` may be overwritten."""
    delta = _logits(raw, bias, temperature, lse.dtype).sub_(lse)
    wanted = None if entropy_grad is None else delta.exp().mul_(delta + entropy).mul_(-entropy_grad)
    if grad is None:
        delta.zero_()
    else:
        delta.exp_().mul_(-grad)
    if wanted is not None:
        delta += wanted
    return delta.to(dtype)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """One or two passes over a block, where operators of their own make seven forward and five backward."""
    return torch.compile(function, dynamic=True)


def _blocks(hidden: Tensor, weight: Tensor, chunk: int) -> Iterator[slice]:
    """Rows of the head, so many at a time that their logits are as many numbers as those of ``chunk`` tokens."""
    vocabulary = weight.shape[0]
    block = max(1, min(vocabulary, chunk * vocabulary // max(1, hidden.shape[0])))
    for start in range(0, vocabulary, block):
        yield slice(start, min(start + block, vocabulary))


def _within(targets: Tensor, piece: slice) -> tuple[Tensor, Tensor]:
    """Column [N 1] of each target in a block, any for one that is not in it, and which are [N]; without waiting for a
    device, as selecting by a mask would."""
    inside = (targets >= piece.start) & (targets < piece.stop)
    return torch.where(inside, targets - piece.start, 0)[:, None], inside


def _product(hidden: Tensor, rows: Tensor, dtype: torch.dtype | None) -> Tensor:
    """[N block] in ``dtype``, or as it comes for what is compiled, which reads it once and widens it on the way."""
    product = hidden @ rows.t()
    return product if dtype is None else product.to(dtype)


def _logits(raw: Tensor, bias: Tensor | None, temperature: float, wide: torch.dtype) -> Tensor:
    """Logits of a block from its product, in a type wide enough for a softmax."""
    logits = raw.to(wide)
    if bias is not None:
        logits += bias
    return logits if temperature == 1.0 else logits.div_(temperature)


def _at(raw: Tensor, bias: Tensor | None, place: Tensor, temperature: float, wide: torch.dtype) -> Tensor:
    """The logits [N 1] in the columns ``place`` of a block."""
    return _logits(raw.gather(1, place), None if bias is None else bias[place], temperature, wide)


def chunked_logprobs(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, " N"],
    *,
    temperature: float,
    chunk: int,
    head_dtype: torch.dtype | None = None,
    compiled: bool = False,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probability of each target, and the entropy of each prediction, both in nats and differentiable.

    They are those of softmax((hidden weight^T + bias) / temperature), in float32 or wider; as many logits exist at the
    same time as ``chunk`` tokens have. Under autocast the matrix products run in its type, as a linear layer's would;
    ``head_dtype`` makes them run in that type, or in that of ``hidden`` if it is wider (float32: ScaleRL, arXiv
    2510.13786, section 3.2; MiniMax-M1, arXiv 2506.13585, section 3.2). ``compiled`` lets torch compile what is done
    with each block. The temperature of the run is applied here and nowhere else.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if head_dtype is not None:
        dtype = torch.promote_types(hidden.dtype, head_dtype)
    with torch.autocast(device, enabled=False):
        result: tuple[Tensor, Tensor] = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]  # torch's
            hidden.to(dtype), weight, bias, targets, temperature, chunk, compiled
        )
        return result
