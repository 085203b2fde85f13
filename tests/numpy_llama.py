"""A Llama once more, in NumPy and float64, written from the papers: what the learner's numbers are checked against.

RMSNorm (1910.07467), rotary positions in the half-split layout (2104.09864), grouped-query attention (2305.13245),
SwiGLU (2002.05202), a tied head. Everything is analytic, so that derivatives come by the complex step: with
f(x + ih) = f(x) + ih f'(x) + O(h^2), the imaginary part at h = 1e-30 is exact to the last bit of a float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = Mapping[str, NDArray[Any]]
STEP = 1e-30


def rms_norm(x: NDArray[Any], gain: NDArray[Any], epsilon: float) -> NDArray[Any]:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * gain


def rotate(x: NDArray[Any], theta: float) -> NDArray[Any]:
    """[B, T, heads, d]: the pair (i, i + d/2) of position t turns by t * theta^(-2i/d)."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None, None] * theta ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], -1
    )


def softmax(x: NDArray[Any]) -> NDArray[Any]:
    e = np.exp(x - x.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logprobs(
    w: Weights, ids: NDArray[np.int64], *, heads: int, theta: float, epsilon: float, temperature: float
) -> NDArray[Any]:
    """[B, T - 1] log-probability of each token but the first given those before it, of a model with one layer."""
    embedding, (rows, length) = w["model.embed_tokens.weight"], ids.shape
    layer = {n.removeprefix("model.layers.0."): v for n, v in w.items()}
    x = embedding[ids]
    h = rms_norm(x, layer["input_layernorm.weight"], epsilon)
    size = layer["self_attn.q_proj.weight"].shape[0] // heads
    q, k, v = ((h @ layer[f"self_attn.{n}_proj.weight"].T).reshape(rows, length, -1, size) for n in "qkv")
    share = heads // k.shape[2]  # query heads that read one key head
    q, k, v = rotate(q, theta), np.repeat(rotate(k, theta), share, axis=2), np.repeat(v, share, axis=2)
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(size)
    scores = np.where(np.tril(np.ones((length, length), bool)), scores, -1e9)
    mixed = np.einsum("bhts,bshd->bthd", softmax(scores), v).reshape(rows, length, -1)
    x = x + mixed @ layer["self_attn.o_proj.weight"].T
    h = rms_norm(x, layer["post_attention_layernorm.weight"], epsilon)
    gate = h @ layer["mlp.gate_proj.weight"].T
    x = x + (gate / (1 + np.exp(-gate)) * (h @ layer["mlp.up_proj.weight"].T)) @ layer["mlp.down_proj.weight"].T
    chances = softmax(rms_norm(x, w["model.norm.weight"], epsilon) @ embedding.T / temperature)
    return np.log(np.take_along_axis(chances[:, :-1], ids[:, 1:, None], -1)[..., 0])


def derivatives(w: Weights, ids: NDArray[np.int64], **shape: Any) -> dict[str, NDArray[np.float64]]:
    """For each weight the [*weight, B, T - 1] derivatives of all log-probabilities."""
    moved = {name: value.astype(complex) for name, value in w.items()}
    result = {}
    for name, value in moved.items():
        result[name] = np.empty((*value.shape, ids.shape[0], ids.shape[1] - 1))
        for place in np.ndindex(value.shape):
            value[place] += STEP * 1j
            result[name][place] = logprobs(moved, ids, **shape).imag / STEP
            value[place] -= STEP * 1j
    return result
