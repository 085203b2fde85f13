"""Losses and their derivatives once more, in NumPy, written from the papers and not from the code under test.

Derivatives are by hand, with respect to the trainer's log-probability of one token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def clip(
    logp: Array, old: Array, advantage: Array, low: float, high: float, dual: float | None = None
) -> tuple[Array, Array]:
    """Loss and derivative of PPO's clipped surrogate, case by case. d w / d logp = w."""
    loss, slope = np.empty_like(logp), np.empty_like(logp)
    for place in np.ndindex(logp.shape):
        w, a = float(np.exp(logp[place] - old[place])), float(advantage[place])
        if a >= 0 and w > 1 + high:
            loss[place], slope[place] = -(1 + high) * a, 0.0
        elif a < 0 and w < 1 - low:
            loss[place], slope[place] = -(1 - low) * a, 0.0
        elif a < 0 and dual is not None and w > dual:
            loss[place], slope[place] = -dual * a, 0.0
        else:
            loss[place], slope[place] = -w * a, -w * a
    return loss, slope


def reinforce(logp: Array, advantage: Array) -> tuple[Array, Array]:
    """-A log p."""
    return -advantage * logp, -advantage


def k3(logp: Array, ref: Array) -> tuple[Array, Array]:
    """r - log r - 1 with r = p_ref / p; d r / d logp = -r, so that the derivative is 1 - r."""
    r = np.exp(ref - logp)
    return r - np.log(r) - 1, 1 - r


def correction(
    old: Array, behaviour: Array, kind: str, *, cap: float = 2.0, low: float = 0.5, high: float = 5.0
) -> Array:
    """What multiplies the surrogate."""
    rho = np.exp(old - behaviour)
    if kind == "truncate":
        return np.minimum(rho, cap)
    if kind == "mask":
        return np.where(rho < low, 0.0, np.where(rho > high, 0.0, rho))
    return np.ones_like(rho)


def token_weights(lengths: list[int], groups: list[int], kind: str, constant: int = 1) -> list[float]:
    """Weight of one trained token of each sample."""
    n, p = len(lengths), len(set(groups))
    in_group = {g: sum(one for one, h in zip(lengths, groups, strict=True) if h == g) for g in set(groups)}
    return [
        0.0
        if length == 0
        else {
            "token_mean": 1 / max(1, sum(lengths)),
            "prompt_mean": 1 / (p * max(1, in_group[g])),
            "sequence_mean": 1 / (n * length),
            "sequence_sum": 1 / (n * constant),
        }[kind]
        for length, g in zip(lengths, groups, strict=True)
    ]


# ------------------------------------------------------------------------------------- whole completions, as in papers

LEVELS = ("token", "sequence_mean", "sequence_product")


def ratios(new: Array, old: Array, level: str) -> Array:
    """w of each token of one completion."""
    if level == "token":
        return np.exp(new - old)
    total = (new - old).sum()
    return np.full_like(new, np.exp(total / len(new) if level == "sequence_mean" else total))


def completion_loss(new: Array, old: Array, advantage: float, level: str, **settings: Any) -> tuple[float, Array]:
    """The loss of one completion and its derivatives by the n log-probabilities, differentiated numerically; what a
    paper stops the gradient of is computed from a copy that does not move."""
    step, slope = 1e-6, np.empty_like(new)
    for t in range(len(new)):
        up, down = new.copy(), new.copy()
        up[t] += step
        down[t] -= step
        slope[t] = (_completion(up, new, old, advantage, level, **settings)
                    - _completion(down, new, old, advantage, level, **settings)) / (2 * step)  # fmt: skip
    return _completion(new, new, old, advantage, level, **settings), slope


def _completion(new: Array, still: Array, old: Array, a: float, level: str, *, type: str, **s: Any) -> float:
    """Formulas of shared notation: mean over the completion's tokens where the paper has 1/|o|."""
    w = ratios(new, old, level)
    if type == "clip":
        objective = np.minimum(w * a, np.clip(w, 1 - s["low"], 1 + s["high"]) * a)
        return float(-(np.maximum(objective, s["dual"] * a) if a < 0 else objective).mean())
    if type == "sapo":
        tau = 1.0 if a > 0 else 1.05
        return float((-a * 4 / tau / (1 + np.exp(-tau * (w - 1)))).mean())
    if type == "cispo":
        return float((-np.clip(ratios(still, old, level), 1 - s["low"], 1 + s["high"]) * a * new).mean())
    if type == "gmpo":
        log = new - old
        m = np.minimum(log, np.clip(log, -s["low"], s["high"])) if a > 0 else np.maximum(
            log, np.clip(log, -s["low"], s["high"]))  # fmt: skip
        return float(-a * np.exp(m.mean()))
    if type == "vespo":
        weight = float(np.exp((still - old).sum()))
        k, lam = (2.0, 3.0) if a >= 0 else (3.0, 2.0)
        return float((-(weight**k) * np.exp(lam * (1 - weight)) * a * new).mean())
    if type == "dppo":
        moved = np.exp(still) - np.exp(old)
        inside = moved <= s["high"] if a > 0 else moved >= -s["low"]
        return float((-1.0 * inside * a * w).mean())
    assert type == "squared"
    return float((s["tau"] * (new - old).sum() - a) ** 2 / (2 * s["tau"]))
