"""Ways to merge tensors of one shape into one: pure functions, in the dtype of what they are given.

Notation: W_k is the tensor of model k of K, B that of the base, d_k = W_k - B the difference (the "task vector"), a_k
the weight of model k. All tensors of one call have the same shape, dtype and device.

| method            | merged tensor                                                      | source                  |
|-------------------|--------------------------------------------------------------------|-------------------------|
| `linear`          | sum_k a_k W_k / sum_k a_k                                          | model soups, 2203.05482 |
| `slerp`           | the point at t on the arc from W_1 to W_2                          | Shoemake, SIGGRAPH 1985 |
| `task_arithmetic` | B + lambda sum_k a_k d_k                                           | 2212.04089              |
| `ties`            | B + lambda mean of the largest d_k that agree on the sign          | 2306.01708, section 3.2 |
| DARE              | one of the last two on d_k without randomly dropped parts (`drop`) | 2311.03099, equation 3  |

Where the papers leave a choice, it is mergekit's (0.1.5): see the functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

COLINEAR = 0.9995
"""Cosine from which on `slerp` goes straight: the arc's formula divides by the sine of the angle."""

SMALLEST_SUM = 1e-8
"""Weights whose sum is closer to 0 are not divided by."""


def linear(tensors: Sequence[Tensor], weights: Sequence[float], *, normalize: bool = True) -> Tensor:
    """sum_k a_k W_k, divided by sum_k a_k if `normalize`.

    A tensor of weight 0 is left out, so that weights 1 and 0 give the first tensor bit for bit. Raises `ValueError` if
    the weights sum to 0 and are to be divided by it.
    """
    total = torch.zeros_like(tensors[0])
    shares = _shares(weights, normalize)
    counted = [(tensor, share) for tensor, share in zip(tensors, shares, strict=True) if share != 0.0]
    for index, (tensor, share) in enumerate(counted):
        total = tensor * share if index == 0 else total + tensor * share
    return total


def slerp(start: Tensor, end: Tensor, t: float) -> Tensor:
    """Spherical interpolation: with theta the angle between the two tensors as vectors,

        sin((1 - t) theta) / sin(theta) start + sin(t theta) / sin(theta) end

    Where they are nearly colinear (|cos theta| > `COLINEAR`), or one of them is all 0, the straight line
    (1 - t) start + t end. t = 0 and t = 1 give the ends bit for bit.
    """
    if t in (0.0, 1.0):
        return (start if t == 0.0 else end).clone()
    norms = start.norm() * end.norm()
    cosine = float((start * end).sum() / norms) if norms > 0.0 else 1.0
    if abs(cosine) > COLINEAR:
        return start * (1.0 - t) + end * t
    theta = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    shares = torch.sin((1.0 - t) * theta) / torch.sin(theta), torch.sin(t * theta) / torch.sin(theta)
    return start * float(shares[0]) + end * float(shares[1])


def task_arithmetic(
    base: Tensor,
    differences: Sequence[Tensor],
    weights: Sequence[float],
    *,
    scale: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    """B + lambda sum_k a_k d_k; lambda is `scale`. With `normalize` the sum is divided by sum_k a_k.

    Raises `ValueError` if the weights sum to 0 and are to be divided by it.
    """
    return base + linear(differences, weights, normalize=normalize) * scale


def trim(difference: Tensor, density: float) -> Tensor:
    """The first step of TIES: the int(density n) entries of largest magnitude, one at least; the others become 0.

    Of entries of equal magnitude at the limit those that come first stay.
    """
    count = difference.numel()
    if density >= 1.0 or count == 0:
        return difference
    kept = max(1, int(density * count))
    magnitude = difference.abs().flatten()
    limit = magnitude.kthvalue(count - kept + 1).values
    mask = magnitude > limit
    at_limit = (magnitude == limit).nonzero().flatten()
    mask[at_limit[: kept - int(mask.sum())]] = True
    return difference * mask.view_as(difference)


def drop(
    difference: Tensor, density: float, generator: torch.Generator, rescale: Literal["density", "l1", "none"]
) -> Tensor:
    """DARE's step: each entry stays with probability `density`, the others become 0; what stays is scaled.

    `density`: d / density, so that the expectation is d (2311.03099, equation 3). `l1`: so that the sum of magnitudes
    is what it was (mergekit), unless one of the two sums is below 1e-7. `none`: not at all.
    """
    if density >= 1.0:
        return difference
    kept = difference * (torch.rand(difference.shape, generator=generator) < density)
    if rescale == "density":
        return kept / density
    if rescale == "l1":
        before, after = difference.abs().sum(), kept.abs().sum()
        return kept if min(before, after) < 1e-7 else kept * (before / after)
    return kept


def consensus(differences: Sequence[Tensor], weights: Sequence[float], *, normalize: bool = True) -> Tensor:
    """The second and third step of TIES: elect a sign for each entry, and average the differences that have it.

    The sign is that of sum_k a_k d_k, where 0 counts as positive. Summed are the a_k d_k of that sign, an entry of 0
    has none; with `normalize` each entry is divided by the weights that were summed, where these do not sum to 0.
    """
    weighted = [difference * weight for difference, weight in zip(differences, weights, strict=True)]
    positive = torch.stack(weighted).sum(dim=0) >= 0.0
    total, divisor = torch.zeros_like(weighted[0]), torch.zeros_like(weighted[0])
    for part, weight in zip(weighted, weights, strict=True):
        agrees = torch.where(positive, part > 0.0, part < 0.0)
        total += part * agrees
        divisor += agrees.to(part.dtype) * weight
    return total / divisor.masked_fill(divisor == 0.0, 1.0) if normalize else total


def ties(
    base: Tensor,
    differences: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    *,
    scale: float = 1.0,
    normalize: bool = True,
) -> Tensor:
    """B + lambda times the `consensus` of the differences after `trim`; lambda is `scale`."""
    trimmed = [trim(difference, density) for difference, density in zip(differences, densities, strict=True)]
    return base + consensus(trimmed, weights, normalize=normalize) * scale


def _shares(weights: Sequence[float], normalize: bool) -> list[float]:
    total = sum(weights)
    if normalize and abs(total) < SMALLEST_SUM:
        raise ValueError(f"weights {list(weights)} sum to 0 and cannot be divided by their sum")
    return [weight / total if normalize else weight for weight in weights]
