"""Log-probabilities without logits: the head and its log-softmax in pieces, recomputed in the backward pass.

For N predicted tokens and a vocabulary of V no tensor of N x V numbers exists at any time. The forward pass goes
through the tokens in chunks and keeps only log sum exp, [N]. The backward pass goes through the vocabulary in blocks
of the same size in numbers: with log sum exp known, each block's softmax is complete on its own,

    d logits[n, v] = g[n] / temperature * (1[v = target n] - exp(logits[n, v] - lse[n])),

for the log-probabilities, and with log p = logits - lse for the entropies H, where a loss uses them,

    d logits[n, v] = -h[n] / temperature * p[n, v] * (log p[n, v] + H[n]),

so that the gradient of each block of head rows is one matrix product, summed in float32 by it and written once, and
only the small gradient of the hidden states [N H] is summed over blocks, in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _ChunkedLogprobs(torch.autograd.Function):
    """See the module's docstring; arguments as in `chunked_logprobs`, all of one floating type."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
        lse, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits = _logits(hidden[rows], weight, bias, temperature, wide)
            top = logits.amax(-1)
            logits -= top[:, None]
            picked = logits.gather(1, targets[rows, None]).squeeze(1)
            p = logits.exp()
            total = p.sum(-1)
            log_total = total.log()
            lse[rows], logprobs[rows] = top + log_total, picked - log_total
            # the logits are centred by their largest, or bfloat16-sized ones would cancel badly here
            entropy[rows] = log_total - p.mul_(logits).sum(-1) / total
        ctx.save_for_backward(hidden, weight, bias, targets, lse, entropy)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)  # a loss that does not use the entropy does not pay for its gradient
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
        grad, entropy_grad = (None if g is None else (g / ctx.temperature)[:, None] for g in grads)
        vocabulary, rows = weight.shape[0], torch.arange(hidden.shape[0], device=hidden.device)
        # As many numbers a block as a chunk of the forward pass has
        block = max(1, min(vocabulary, ctx.chunk * vocabulary // max(1, hidden.shape[0])))
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.zeros_like(hidden, dtype=lse.dtype) if need_hidden else None
        weight_grad = torch.empty_like(weight) if need_weight else None
        bias_grad = torch.empty_like(bias) if need_bias else None
        for start in range(0, vocabulary, block):
            piece = slice(start, min(start + block, vocabulary))
            logits = _logits(hidden, weight[piece], None if bias is None else bias[piece], ctx.temperature, lse.dtype)
            delta = logits.sub_(lse[:, None])
            wanted = None if entropy_grad is None else delta.exp().mul_(delta + entropy[:, None]).mul_(-entropy_grad)
            inside = (targets >= piece.start) & (targets < piece.stop)
            if grad is None:
                delta.zero_()
            else:
                delta.exp_().mul_(-grad)
                delta[rows[inside], targets[inside] - piece.start] += grad[inside, 0]
            if wanted is not None:
                delta += wanted
            if bias_grad is not None:
                bias_grad[piece] = delta.sum(0)
            delta = delta.to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad += delta @ weight[piece]
            if weight_grad is not None:
                torch.mm(delta.t(), hidden, out=weight_grad[piece])
        return None if hidden_grad is None else hidden_grad.to(hidden.dtype), weight_grad, bias_grad, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, dtype: torch.dtype) -> Tensor:
    """Logits of a piece, in a type wide enough for a softmax."""
    logits = (hidden @ weight.t()).to(dtype)
    if bias is not None:
        logits += bias
    return logits if temperature == 1.0 else logits.div_(temperature)


def chunked_logprobs(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, " N"],
    *,
    temperature: float,
    chunk: int,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probability of each target, and the entropy of each prediction, both in nats and differentiable.

    They are those of softmax((hidden weight^T + bias) / temperature), in float32 or wider; ``chunk`` tokens have
    logits at the same time. Under autocast the matrix products run in its type, as a linear layer's would. The
    temperature of the run is applied here and nowhere else.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return _ChunkedLogprobs.apply(
            hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), targets, temperature, chunk
        )
