"""Numbers over an optimiser step: literal covariances and quantiles, and that packing cannot change what is chosen."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvr.config.algorithm import Algorithm, TokenMean
from rlvr.learn.losses import covariant, step_statistics, top_entropy_keep
from rlvr.learn.losses.statistics import _draws
from rlvr.learn.packing import Mode, pack
from rlvr.records import MicroBatch, TrainingSample
from tests.learn.conftest import random_samples
from tests.learn.losses.rows import completions, log, micro_batch, row


def algorithm(**settings: Any) -> Algorithm:
    return Algorithm.model_validate({"updates_per_batch": 2, **settings})


def two() -> list[MicroBatch]:
    """Five trained tokens in two micro-batches: log2 p -1, -2, -3 and -4, -5; A 1, 1, 1 and -1, -2; a masked one."""
    first = micro_batch(
        row(0, 0, 0, 0), row(1, 1, 1, 1), completions(0, 0, 0, 0, mask=(1, 0, 1, 1)),
        old_logprobs=log(1 / 2, 1e-9, 1 / 4, 1 / 8), old_entropy=row(0.5, 9.0, 0.1, 0.9),
    )  # fmt: skip
    second = micro_batch(
        row(0, 0), row(-1, -2), completions(0, 1), old_logprobs=log(1 / 16, 1 / 32), old_entropy=row(0.3, 0.7)
    )
    return [first, second]


def test_positive_tokens_are_counted() -> None:
    assert step_statistics(two(), algorithm(positive_nll=0.1), 0).positive_tokens == 3.0


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.2, [[0, 0, 0, 1], [0, 0]]), (0.21, [[0, 0, 0, 1], [0, 1]]), (0.6, [[1, 0, 0, 1], [0, 1]]),
     (0.99, [[1, 0, 1, 1], [1, 1]])],
)  # fmt: skip
def test_the_highest_entropies_of_the_step_are_kept(share: float, expected: list[list[int]]) -> None:
    """ceil(share * 5) of 0.5, 0.1, 0.9, 0.3, 0.7, over both micro-batches; the masked token's 9.0 does not count."""
    batches = two()
    numbers = step_statistics(batches, algorithm(top_entropy=share), 0)
    kept = [top_entropy_keep(replace(batch, statistics=numbers))[0].tolist() for batch in batches]
    assert kept == expected


def test_covariances_by_hand() -> None:
    """mean log p = -3 log 2, mean A = 0: the covariances are log 2 times 2, 1, 0 and 1, 4. kl_cov with share 0.4 takes
    the greatest two, 4 log 2 and 2 log 2; clip_cov between 0.5 and 1 those with 1 log 2."""
    batches = two()
    numbers = step_statistics(batches, algorithm(surrogate={"type": "kl_cov", "share": 0.4}), 0)
    assert (numbers.mean_logprob, numbers.mean_advantage) == pytest.approx((-3 * math.log(2), 0.0), abs=1e-14)
    assert numbers.covariance_threshold == pytest.approx(2 * math.log(2), abs=1e-14)
    config = algorithm(surrogate={"type": "kl_cov", "share": 0.4}).surrogate
    chosen = [covariant(replace(batch, statistics=numbers), config)[0].tolist() for batch in batches]  # type: ignore[arg-type]
    assert chosen == [[1, 0, 0, 0], [0, 1]]

    clip = algorithm(surrogate={"type": "clip_cov", "share": 1.0, "cov_low": 0.5, "cov_high": 1.0})
    numbers = step_statistics(batches, clip, 7)
    chosen = [covariant(replace(batch, statistics=numbers), clip.surrogate)[0].tolist() for batch in batches]  # type: ignore[arg-type]
    assert chosen == [[0, 0, 1, 0], [1, 0]]

    none = algorithm(surrogate={"type": "clip_cov", "share": 1.0, "cov_low": 90.0, "cov_high": 91.0})
    numbers = step_statistics(batches, none, 7)
    assert not any(covariant(replace(batch, statistics=numbers), none.surrogate).any() for batch in batches)  # type: ignore[arg-type]


def with_old(batch: MicroBatch, seed: int) -> MicroBatch:
    """Made-up log-probabilities and entropies that depend on the sample and the position alone."""
    key = torch.tensor(batch.index)[batch.sequence.clamp(min=0)] * 100 + batch.positions
    noise: Tensor = torch.sin(key.double() * 12.9898 + seed) * 43758.5453 % 1.0
    return replace(batch, old_logprobs=(noise - 1) * 6 * batch.loss_mask, old_entropy=noise * batch.loss_mask)


def chosen_tokens(
    samples: list[TrainingSample], mode: Mode, limit: int, settings: dict[str, Any], update: int
) -> set[Any]:
    """(sample, position) of the tokens that are chosen."""
    config = algorithm(**settings)
    batches = [with_old(batch, 3) for batch in pack(samples, TokenMean(), limit, mode)]
    numbers = step_statistics(batches, config, update)
    found = set()
    for batch in batches:
        batch = replace(batch, statistics=numbers)
        chosen = top_entropy_keep(batch) if "top_entropy" in settings else covariant(batch, config.surrogate)  # type: ignore[arg-type]
        for b, t in chosen.nonzero().tolist():
            found.add((batch.index[int(batch.sequence[b, t])], int(batch.positions[b, t])))
    return found


@pytest.mark.parametrize(
    ("settings", "count"),
    [({"surrogate": {"type": "kl_cov", "share": 0.1}}, None), ({"top_entropy": 0.2}, None),
     ({"surrogate": {"type": "clip_cov", "share": 0.05, "cov_low": 0.2, "cov_high": 5.0}}, None)],
    ids=["kl_cov", "top_entropy", "clip_cov"],
)  # fmt: skip
def test_micro_batches_do_not_change_what_is_chosen(settings: dict[str, Any], count: int | None) -> None:
    """One micro-batch, many, packed, padded: the same tokens; and as many as the share says."""
    samples = random_samples(20)
    total = sum(sample.trained_tokens for sample in samples)
    expected = chosen_tokens(samples, "packed", 10_000, settings, 5)
    for mode, limit in (("packed", 50), ("bucketed", 10_000), ("bucketed", 1), ("shared", 60)):
        assert chosen_tokens(samples, mode, limit, settings, 5) == expected  # type: ignore[arg-type]  # a mode
    share = settings.get("top_entropy") or settings["surrogate"]["share"]
    assert len(expected) in (int(share * total), math.ceil(share * total))


def test_clip_cov_draws_anew_at_each_update() -> None:
    """Another update, another choice, from tokens that are all eligible; the same update, the same choice."""
    samples = random_samples(20)
    settings = {"surrogate": {"type": "clip_cov", "share": 0.1, "cov_low": -99.0, "cov_high": 99.0}}
    draws = [frozenset(chosen_tokens(samples, "packed", 100, settings, update)) for update in (0, 1, 2, 0)]
    assert draws[0] == draws[3]
    assert len({*draws}) == 3
    # far from one another, as independent draws of 10 % are
    assert len(draws[0] & draws[1]) < 0.5 * len(draws[0])


def test_an_empty_step_has_no_numbers() -> None:
    """No trained token anywhere, as on a step of weight zero."""
    blank = micro_batch(row(0.0), row(0.0), completions(0, mask=(0,)), old_logprobs=row(0.0), old_entropy=row(0.0))
    numbers = step_statistics([blank], algorithm(surrogate={"type": "kl_cov"}, top_entropy=0.5), 0)
    assert (numbers.positive_tokens, numbers.covariance_threshold) == (0.0, 0.0)


def test_an_advantage_of_zero_is_not_positive() -> None:
    batch = micro_batch(row(0, 0, 0), row(0, 1, -1), completions(0, 1, 2))
    assert step_statistics([batch], algorithm(positive_nll=0.1), 0).positive_tokens == 1.0


@pytest.mark.parametrize("bounds", [(1.0, 2.0), (0.5, 1.0)])
def test_covariances_at_a_bound_are_outside(bounds: tuple[float, float]) -> None:
    """log p -1 and -3, A 1 and -1: both covariances are exactly 1. None is drawn, and none is chosen by whatever
    threshold."""
    batch = micro_batch(row(0, 0), row(1, -1), completions(0, 1), old_logprobs=row(-1, -3))
    clip = algorithm(surrogate={"type": "clip_cov", "share": 1.0, "cov_low": bounds[0], "cov_high": bounds[1]})
    numbers = step_statistics([batch], clip, 0)
    assert numbers.draw_threshold == -1
    wide = replace(numbers, draw_threshold=2**31)
    assert covariant(replace(batch, statistics=wide), clip.surrogate).tolist() == [[0, 0]]  # type: ignore[arg-type]


def test_the_draws_are_the_same_numbers_in_every_version() -> None:
    """A run that goes on with a newer rlvr chooses the tokens that it would have chosen; two rounds of
    v = ((v ^ v >> 15) * f + 12345) mod 2^31 and v ^ v >> 13, by update, sample and position."""
    batch = micro_batch(row(0, 0, 0), row(1, 1, 1), completions(0, 0, 1), positions=torch.tensor([[0, 1, 0]]))
    assert _draws(batch, 3).tolist() == [[503099251, 920653191, 2036162001]]
    assert _draws(batch, 4).tolist() == [[714715060, 1507447648, 1991499463]]


def test_a_micro_batch_without_the_numbers_of_its_step_is_an_error() -> None:
    batch = two()[0]
    with pytest.raises(ValueError, match=r"algorithm\.top_entropy needs the entropies of its optimiser step"):
        top_entropy_keep(batch)
    with pytest.raises(ValueError, match=r"algorithm\.surrogate needs the covariances of its optimiser step"):
        covariant(batch, algorithm(surrogate={"type": "kl_cov"}).surrogate)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lacks what the policy said before the first update"):
        step_statistics([replace(batch, old_entropy=None)], algorithm(top_entropy=0.5), 0)
