"""From sums over tokens and the outcomes of optimiser steps to an update's metrics, each by hand."""

from __future__ import annotations

import pytest
import torch

from rlvr.learn.meter import Meter, update_metrics


def test_sums_add_and_maxima_rise() -> None:
    meter = Meter(torch.device("cpu"))
    for value in (1.0, 3.0, 2.0):
        meter.add("sum", torch.tensor(value))
        meter.maximum("most", value)
    assert meter.totals() == {"sum": 6.0, "most": 3.0}
    assert Meter(torch.device("cpu")).totals() == {}


def test_the_metrics_of_an_update_by_hand() -> None:
    """10 trained tokens, 4 of them seen by the first step; of four optimiser steps two were done, one had nothing to
    do, one was not finite and counts in no mean."""
    totals = {
        "n": 10.0, "entropy": 5.0, "ratio": 1.5, "clip_low": 1.0, "clip_high": 2.0, "ratio_limited": 4.0, "kl": 20.0,
        "positive": 4.0, "positive_nll": 2.0, "text_n": 8.0, "text_nll": 4.0,
        "mismatch_n": 4.0, "mismatch_abs": 2.0, "mismatch_k3": 1.0, "mismatch_rho": 3.0, "mismatch_sum": 6.0,
        "mismatch_squares": 12.0, "mismatch_truncated": 1.0, "mismatch_masked": 3.0, "pairs": 2.0, "dpo/margin": 5.0,
    }  # fmt: skip
    outcomes = [
        {"lr": 0.4, "loss": 1.0, "grad_norm": 3.0}, {"lr": 0.3, "loss": 2.0, "grad_norm": 1.0},
        {"lr": 0.2, "empty": 1.0}, {"lr": 0.1, "non_finite": 1.0},
    ]  # fmt: skip
    assert update_metrics(totals, outcomes) == pytest.approx({
        "update/lr": 0.1, "update/count": 2.0, "update/empty": 1.0, "update/non_finite": 1.0, "update/loss": 1.5,
        "update/grad_norm": 2.0, "update/grad_norm_max": 3.0, "policy/entropy": 0.5, "policy/ratio_max": 1.5,
        "policy/clip_fraction": 0.3, "policy/clip_low": 0.1, "policy/clip_high": 0.2, "policy/ratio_limited": 0.4,
        "policy/kl": 2.0, "policy/positive_nll": 0.5, "policy/text_nll": 0.5, "tokens/given": 8.0,
        "mismatch/abs": 0.5, "mismatch/kl": 0.25, "mismatch/ratio_max": 3.0, "mismatch/ess": 36 / 48,
        "mismatch/truncated": 0.25, "mismatch/masked": 0.75, "dpo/margin": 2.5,
    })  # fmt: skip


def test_an_update_of_nothing_divides_by_nothing() -> None:
    names = ("n", "entropy", "positive", "positive_nll", "text_n", "text_nll", "mismatch_n", "mismatch_abs",
             "mismatch_k3", "mismatch_rho", "mismatch_sum", "mismatch_squares")  # fmt: skip
    assert update_metrics(dict.fromkeys(names, 0.0), [{"lr": 0.4, "empty": 1.0}]) == {
        "update/lr": 0.4, "update/count": 0.0, "update/empty": 1.0, "update/non_finite": 0.0, "policy/entropy": 0.0,
        "policy/positive_nll": 0.0, "policy/text_nll": 0.0, "tokens/given": 0.0, "mismatch/abs": 0.0,
        "mismatch/kl": 0.0, "mismatch/ratio_max": 0.0, "mismatch/ess": 1.0,
    }  # fmt: skip
    assert set(update_metrics({}, [{"lr": 0.4, "empty": 1.0}])) == {
        "update/lr", "update/count", "update/empty", "update/non_finite",
    }  # fmt: skip
