"""What fits together in the slots of the loss: each senseless combination is refused with keys, rule and fix."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rlvr.config.algorithm import Algorithm

MEAN = {"type": "sequence_mean"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"ratio": {"against": "behaviour"}, "correction": {"type": "reject"}},
            "correction 'reject' weighs pi_recomputed / pi_behaviour, but ratio.against is 'behaviour'",
        ),
        ({"surrogate": {"type": "gmpo"}, "ratio": MEAN}, "'gmpo' needs ratio.type: token, got 'sequence_mean'"),
        ({"surrogate": {"type": "dppo"}, "ratio": MEAN}, "'dppo' needs ratio.type: token"),
        ({"surrogate": {"type": "clip_cov"}, "ratio": MEAN}, "'clip_cov' needs ratio.type: token"),
        ({"surrogate": {"type": "reinforce"}, "ratio": MEAN}, "it uses no ratio"),
        ({"surrogate": {"type": "vespo"}}, "write ratio: {type: sequence_product, against: recomputed}"),
        ({"surrogate": {"type": "squared", "tau": 1.0}, "aggregation": MEAN}, "needs ratio.type: sequence_product"),
        (
            {"surrogate": {"type": "reinforce"}, "ratio": {"against": "behaviour"}},
            "ratio.against: behaviour would have no effect",
        ),
        (
            {"ratio": MEAN},
            "aggregation 'token_mean' would weigh by their lengths; use aggregation: {type: sequence_mean}",
        ),
        ({"ratio": MEAN, "aggregation": {"type": "prompt_mean"}}, "aggregation 'prompt_mean' would weigh"),
        ({"surrogate": {"type": "gmpo"}}, "surrogate 'gmpo' with ratio.type 'token' is a loss of whole completions"),
        (
            {"surrogate": {"type": "gmpo"}, "aggregation": MEAN, "correction": {"type": "truncate"}},
            "correction.level 'token' cannot weigh token by token; use level: sequence_mean",
        ),
        (
            {"surrogate": {"type": "gmpo"}, "aggregation": MEAN, "kl": {"type": "k1", "place": "reward"}},
            "kl.place 'reward' changes advantages token by token; use place: loss",
        ),
        (
            {"surrogate": {"type": "gmpo"}, "aggregation": MEAN, "top_entropy": 0.2},
            "from which top_entropy 0.2 cannot take tokens out",
        ),
        ({"surrogate": {"type": "kl_cov"}}, "raise updates_per_batch or epochs, or set ratio.against: behaviour"),
        ({"kl": {"type": "k1"}}, "k1 with place: loss needs corrected: true"),
        ({"kl": {"type": "k3", "place": "reward", "corrected": True}}, "corrected must be false with place: reward"),
        (
            {"kl": {"type": "k3", "reference": {"type": "copy", "every": 3}}, "updates_per_batch": 2, "epochs": 2},
            "kl.reference.every must be at least the 4 optimiser steps of a rollout batch",
        ),
        ({"correction": {"type": "mask", "low": 1.0}}, "bounds must lie around 1, got low 1.0, high 5.0"),
        ({"surrogate": {"type": "clip_cov", "cov_low": 5.0}}, "cov_low must be below cov_high = 5.0, got 5.0"),
        ({"entropy": {"type": "adaptive", "target": 1.0, "initial": 2.0}}, "initial must be at most maximum = 1.0"),
        ({"top_entropy": 0.0}, "greater than 0"),
        ({"surrogate": {"type": "clip", "dual": 1.0}}, "greater than 1"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        Algorithm.model_validate(settings)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": MEAN, "aggregation": MEAN, "correction": {"type": "truncate"}, "top_entropy": 0.2},
        {"ratio": MEAN, "aggregation": {"type": "sequence_sum", "length": 1}},
        {"ratio": {"type": "sequence_mean"}, "surrogate": {"type": "cispo"}},
        {"ratio": {"type": "sequence_product", "against": "behaviour"}, "surrogate": {"type": "vespo"}},
        {"ratio": {"type": "sequence_product"}, "surrogate": {"type": "squared", "tau": 0.1}, "aggregation": MEAN},
        {"surrogate": {"type": "kl_cov"}, "epochs": 2},
        {"surrogate": {"type": "kl_cov"}, "ratio": {"against": "behaviour"}},
        {"kl": {"type": "k1", "corrected": True}},
        {"kl": {"type": "k1", "place": "reward"}, "ratio": MEAN, "aggregation": MEAN},
        {"kl": {"type": "k3", "reference": {"type": "average", "every": 4}}, "updates_per_batch": 4},
        {"surrogate": {"type": "mine:loss"}, "ratio": {"type": "sequence_product"}},
    ],
)
def test_accepted(settings: dict[str, Any]) -> None:
    Algorithm.model_validate(settings)
