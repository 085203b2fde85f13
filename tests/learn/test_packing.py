"""Packing: what a micro-batch holds, limits, denominators, and that nothing is lost or counted twice."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch
from pydantic import TypeAdapter

from rlvr.config.algorithm import Aggregation, TokenMean
from rlvr.learn.packing import empty_micro_batch, pack, pack_for_ranks, token_weights
from rlvr.records import MicroBatch, TrainingSample
from tests.learn import oracle
from tests.learn.conftest import random_samples, samples_of_groups

MODES: tuple[Literal["bucketed", "packed"], ...] = ("bucketed", "packed")
KINDS = ("token_mean", "prompt_mean", "sequence_mean", "sequence_sum")


def sample(ids: tuple[int, ...], mask: tuple[int, ...], *, advantage: float = 1.0, group: int = 0) -> TrainingSample:
    behaviour = tuple(-0.1 * token * m for token, m in zip(ids, mask, strict=True))
    return TrainingSample(ids=ids, loss_mask=mask, behaviour_logprobs=behaviour, advantage=advantage, group=group)


def aggregation(kind: str) -> Aggregation:
    settings = {"type": kind, "length": 7} if kind == "sequence_sum" else {"type": kind}
    return TypeAdapter(Aggregation).validate_python(settings)


FIRST = sample((3, 4, 5), (0, 1, 1), advantage=2.0)
SECOND = sample((6, 7), (0, 1), advantage=-1.0, group=1)


def test_packed_rows_word_for_word() -> None:
    """Two samples of 3 and 2 tokens: 2 + 1 positions, aligned to the predicted token; token mean over 3 tokens."""
    (batch,) = pack([SECOND, FIRST], TokenMean(), 100, "packed")
    assert batch.ids.tolist() == [[3, 4, 6]]
    assert batch.targets.tolist() == [[4, 5, 7]]
    assert batch.positions.tolist() == [[0, 1, 0]]
    assert batch.sequence.tolist() == [[0, 0, 1]]
    assert batch.index == (1, 0)
    assert batch.loss_mask.tolist() == [[1.0, 1.0, 1.0]]
    assert batch.advantages.tolist() == [[2.0, 2.0, -1.0]]
    torch.testing.assert_close(batch.behaviour_logprobs, torch.tensor([[-0.4, -0.5, -0.7]]))
    torch.testing.assert_close(batch.token_weight, torch.full((1, 3), 1 / 3))
    assert batch.tokens == 3


def test_bucketed_rows_word_for_word() -> None:
    """The shorter row is padded on the right, with positions that count on and weight 0."""
    (batch,) = pack([SECOND, FIRST], TokenMean(), 100, "bucketed")
    assert batch.ids.tolist() == [[3, 4], [6, 0]]
    assert batch.targets.tolist() == [[4, 5], [7, 0]]
    assert batch.positions.tolist() == [[0, 1], [0, 1]]
    assert batch.sequence.tolist() == [[0, 0], [1, -1]]
    assert batch.loss_mask.tolist() == [[1.0, 1.0], [1.0, 0.0]]
    assert batch.token_weight[1, 1] == 0.0
    assert batch.advantages.tolist() == [[2.0, 2.0], [-1.0, 0.0]]
    assert batch.index == (1, 0)


def test_shared_rows_word_for_word() -> None:
    """Two completions to the prompt (3 4 5): positions 0 and 1 once; the prompt's last token stands before each
    completion, because it predicts another token each time. A third sample shares nothing."""
    one, two = (
        sample((3, 4, 5, 6, 7), (0, 0, 0, 1, 1), advantage=2.0),
        sample((3, 4, 5, 8), (0, 0, 0, 1), advantage=4.0),
    )
    (batch,) = pack([two, SECOND, one], TokenMean(), 100, "shared")
    assert batch.ids.tolist() == [[3, 4, 5, 6, 5, 6]]
    assert batch.targets.tolist() == [[0, 0, 6, 7, 8, 7]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 2, 0]]
    assert batch.sequence.tolist() == [[0, 0, 0, 0, 1, 2]]
    assert batch.loss_mask.tolist() == [[0.0, 0.0, 1.0, 1.0, 1.0, 1.0]]
    assert batch.advantages.tolist() == [[0.0, 0.0, 2.0, 2.0, 4.0, -1.0]]
    assert batch.index == (2, 0, 1)
    assert batch.layout is not None
    assert batch.layout.rows.tolist() == [[0, 1, 2, 3], [0, 1, 4, 0], [5, 0, 0, 0], [0, 1, 0, 0]]
    assert batch.layout.owners.tolist() == [12, 13, 2, 3, 6, 8]
    assert batch.layout.blocks.tolist() == [[0, 2, 0, 2, 4], [2, 3, 5, 0, 1], [3, 4, 0, 0, 2]]


def test_a_group_that_goes_on_in_the_next_micro_batch_takes_its_prompt_along() -> None:
    """Limit 5: two shared and two own positions leave 1, too little for two more own ones."""
    three = [sample((3, 4, 5, 6 + k, 7), (0, 0, 0, 1, 1)) for k in range(3)]
    batches = pack(three, TokenMean(), 5, "shared")
    assert [batch.ids.tolist() for batch in batches] == [[[3, 4, 5, 6 + k]] for k in range(3)]
    batches = pack(three, TokenMean(), 6, "shared")
    assert [batch.ids.tolist() for batch in batches] == [[[3, 4, 5, 6, 5, 7]], [[3, 4, 5, 8]]]


def lone(positions: int, group: int) -> TrainingSample:
    """A sample of so many positions, the last of them trained."""
    return sample(tuple(range(2, positions + 3)), (*[0] * positions, 1), group=group)


def test_micro_batches_are_levelled() -> None:
    """Four samples of 6, 3, 3 and 2 positions under a limit of 10. As many as fit make 9 and 5 positions (packed: 6 + 3
    and 3 + 2) and 6 and 9 (bucketed: 1 row of 6, 3 rows of 3); two micro-batches need no more than 8 (6 + 2 and 3 + 3)
    and 9. At 7 packed takes three, and three need no more than 5 but for the sample that is longer: 6, 3 + 2 and 3."""
    samples = [lone(positions, group) for group, positions in enumerate((3, 6, 2, 3))]
    assert [batch.tokens for batch in pack(samples, TokenMean(), 10, "packed")] == [8, 6]
    assert [batch.ids.numel() for batch in pack(samples, TokenMean(), 10, "bucketed")] == [6, 9]
    assert [batch.tokens for batch in pack(samples, TokenMean(), 7, "packed")] == [6, 5, 3]


def test_micro_batches_of_shared_prompts_are_levelled() -> None:
    """Six completions of 2 own positions after 4 common ones: 12 at once are 4 + 4 x 2 and then 4 + 2 x 2 = 8; the
    limit of 10 makes two as well, of 3 completions each; that of 9 has room for 2 completions only and makes three."""
    completions = [sample((3, 4, 5, 6, 7, 8 + k, 9), (0, 0, 0, 0, 0, 1, 1)) for k in range(6)]
    assert [batch.tokens for batch in pack(completions, TokenMean(), 12, "shared")] == [10, 10]
    assert [batch.tokens for batch in pack(completions, TokenMean(), 9, "shared")] == [8, 8, 8]


@pytest.mark.parametrize("mode", ["bucketed", "packed", "shared"])
@pytest.mark.parametrize("seed", range(5))
def test_levelling_takes_no_more_micro_batches(mode: Literal["bucketed", "packed", "shared"], seed: int) -> None:
    """As many as without it, the largest no larger; and at its size the same limit would have been enough."""
    samples = samples_of_groups(9, seed=seed)
    for limit in (30, 64, 120):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("rlvr.learn.packing._levelled", lambda fill, limit: fill(limit))
            plain = pack(samples, TokenMean(), limit, mode)
        levelled = pack(samples, TokenMean(), limit, mode)
        largest = max(batch.ids.numel() for batch in levelled)
        assert len(levelled) <= len(plain)
        assert largest <= max(batch.ids.numel() for batch in plain)
        assert len(pack(samples, TokenMean(), largest, mode)) == len(levelled)


@pytest.mark.parametrize("limit", [1, 24, 60, 10_000])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_with_shared_prompts_every_sample_is_whole_and_trained_once(limit: int, ranks: int) -> None:
    """Each sample's row of the layout reads its own tokens at positions 0, 1, 2 ...; its trained tokens, their weights
    and log-probabilities are there once; a group is on one rank; over the limit only if alone."""
    samples = samples_of_groups(17, seed=2)
    shares = pack_for_ranks(samples, TokenMean(), limit, "shared", ranks=ranks)
    assert len({len(share) for share in shares}) == 1
    homes: dict[int, set[int]] = {}
    seen: list[int] = []
    for rank, share in enumerate(shares):
        for batch in share:
            assert batch.tokens <= limit or len(batch.index) <= 1
            for place, index in enumerate(batch.index):
                assert batch.layout is not None
                one = samples[index]
                own = batch.layout.rows[place, : len(one.ids) - 1]
                assert tuple(batch.ids[0, own].tolist()) == one.ids[:-1]
                assert batch.positions[0, own].tolist() == list(range(len(own)))
                assert tuple(batch.loss_mask[0, own].tolist()) == one.loss_mask[1:]
                assert batch.behaviour_logprobs[0, own].tolist() == pytest.approx(one.behaviour_logprobs[1:], abs=1e-6)
                seen.append(index)
                homes.setdefault(one.group, set()).add(rank)
    assert sorted(seen) == [i for i, one in enumerate(samples) if one.trained_tokens]
    assert all(len(ranks) == 1 for ranks in homes.values())
    batches = [batch for share in shares for batch in share]
    assert sum(int(batch.loss_mask.sum()) for batch in batches) == sum(one.trained_tokens for one in samples)
    assert sum(float(batch.token_weight.sum()) for batch in batches) == pytest.approx(1.0, abs=1e-6)


def test_holes_in_the_mask_are_neither_trained_nor_targets() -> None:
    """What a workflow put into a completion has mask 0: read by the model, not predicted."""
    (batch,) = pack([sample((3, 4, 5, 6), (0, 1, 0, 1))], TokenMean(), 100, "packed")
    assert batch.ids.tolist() == [[3, 4, 5]]
    assert batch.targets.tolist() == [[4, 0, 6]]
    assert batch.loss_mask.tolist() == [[1.0, 0.0, 1.0]]
    assert batch.token_weight.tolist() == [[0.5, 0.0, 0.5]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("token_mean", [1 / 9, 1 / 9, 1 / 9, 0.0]),
        ("prompt_mean", [1 / (2 * 6), 1 / (2 * 6), 1 / (2 * 3), 0.0]),
        ("sequence_mean", [1 / (4 * 2), 1 / (4 * 4), 1 / (4 * 3), 0.0]),
        ("sequence_sum", [1 / 28, 1 / 28, 1 / 28, 0.0]),
    ],
)
def test_denominators_by_hand(kind: str, expected: list[float]) -> None:
    """Trained tokens 2 and 4 in group 0, 3 and 0 in group 1: 9 tokens, 2 groups, 4 completions, the constant 7."""
    samples = [
        sample((1,) * 5, (0,) * (5 - n) + (1,) * n, group=group) for n, group in ((2, 0), (4, 0), (3, 1), (0, 1))
    ]
    assert token_weights(samples, aggregation(kind)) == pytest.approx(expected, abs=1e-16)


@pytest.mark.parametrize("kind", KINDS)
def test_denominators_equal_the_oracle(kind: str) -> None:
    samples = random_samples(12, seed=4)
    expected = oracle.token_weights([s.trained_tokens for s in samples], [s.group for s in samples], kind, 7)
    assert token_weights(samples, aggregation(kind)) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("kind", ["token_mean", "prompt_mean", "sequence_mean"])
def test_the_weights_of_a_mean_add_up_to_one(kind: str) -> None:
    """Over all micro-batches of all ranks: the mean of a constant loss is that constant."""
    for mode, ranks in itertools.product(MODES, (1, 2, 3)):
        shares = pack_for_ranks(random_samples(11), aggregation(kind), 40, mode, ranks=ranks)
        total = sum(batch.token_weight.sum().item() for share in shares for batch in share)
        assert total == pytest.approx(1.0, abs=1e-6)


def rebuilt(batches: list[MicroBatch]) -> dict[int, tuple[list[int], list[int], list[float]]]:
    """By sample: ids without the last, targets, behaviour log-probabilities, as they lie in the micro-batches."""
    found = {}
    for batch in batches:
        for place, index in enumerate(batch.index):
            here = batch.sequence == place
            assert index not in found, "a sample is in two places"
            assert batch.positions[here].tolist() == list(range(int(here.sum())))
            found[index] = (
                batch.ids[here].tolist(),
                batch.targets[here].tolist(),
                batch.behaviour_logprobs[here].tolist(),
            )
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("limit", [1, 24, 60, 10_000])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_sample_is_in_exactly_one_micro_batch_under_the_limit(
    mode: Literal["bucketed", "packed"], limit: int, ranks: int
) -> None:
    """Random samples, any limit and number of ranks: whole, in one piece, once; over the limit only if alone."""
    samples = random_samples(17, seed=2)
    shares = pack_for_ranks(samples, TokenMean(), limit, mode, ranks=ranks)
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    found = rebuilt(batches)
    assert sorted(found) == [i for i, one in enumerate(samples) if one.trained_tokens]
    for index, (ids, targets, behaviour) in found.items():
        one = samples[index]
        assert tuple(ids) == one.ids[:-1]
        assert targets == [token * m for token, m in zip(one.ids[1:], one.loss_mask[1:], strict=True)]
        assert behaviour == pytest.approx(one.behaviour_logprobs[1:], abs=1e-6)
    for batch in batches:
        assert batch.tokens <= limit or len(batch.index) <= 1
    assert sum(int(batch.loss_mask.sum()) for batch in batches) == sum(one.trained_tokens for one in samples)


def test_bucketed_rows_have_like_lengths() -> None:
    """On 64 lengths between 5 and 100 a ninth is padding, where rows in order of arrival have over a third."""
    samples = [sample((1,) * n, (0,) + (1,) * (n - 1)) for n in [5 + (37 * i) % 96 for i in range(64)]]
    batches = pack(samples, TokenMean(), 512, "bucketed")
    padding = sum(int((batch.sequence < 0).sum()) for batch in batches)
    assert padding / sum(batch.tokens for batch in batches) < 1 / 8


def test_the_same_samples_always_make_the_same_micro_batches() -> None:
    first, again = (pack(random_samples(20), TokenMean(), 50, "packed") for _ in range(2))
    assert [batch.index for batch in first] == [batch.index for batch in again]


def test_samples_without_trained_tokens_are_not_computed_but_counted() -> None:
    """An empty completion and a masked one: nothing to compute, yet the mean over completions knows them."""
    empty, masked = sample((3, 4), (0, 0)), sample((3, 4, 5), (0, 0, 0))
    (batch,) = pack([empty, masked, FIRST], aggregation("sequence_mean"), 100, "bucketed")
    assert batch.index == (2,)
    assert batch.token_weight.tolist()[0] == pytest.approx([1 / 6, 1 / 6])
    assert pack([empty, masked], TokenMean(), 100, "bucketed") == []
    assert pack([], TokenMean(), 100, "packed") == []


def test_ranks_share_the_work_evenly_and_the_short_one_gets_weight_zero() -> None:
    samples = [sample((1,) * n, (0,) + (1,) * (n - 1)) for n in (9, 9, 9, 9, 9, 9)]
    left, right = pack_for_ranks(samples, TokenMean(), 1000, "packed", ranks=2)
    assert [batch.tokens for batch in (*left, *right)] == [24, 24]
    (_, second) = pack_for_ranks([FIRST], TokenMean(), 1000, "packed", ranks=2)
    assert second[0].loss_mask.sum() == second[0].token_weight.sum() == 0.0
    assert second[0].index == ()
    assert empty_micro_batch().tokens == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(value: float) -> None:
    with pytest.raises(ValueError, match=r"sample 1 \(group 3\): advantage is (nan|inf)"):
        pack([FIRST, sample((1, 2), (0, 1), advantage=value, group=3)], TokenMean(), 100, "packed")
    broken = TrainingSample(ids=(1, 2), loss_mask=(0, 1), behaviour_logprobs=(0.0, -value), advantage=0.0, group=3)
    with pytest.raises(ValueError, match=r"sample 0 \(group 3\): behaviour log-probability of token 1 is"):
        pack([broken], TokenMean(), 100, "packed")


@pytest.mark.parametrize("mode", ["bucketed", "packed", "shared"])
def test_what_is_not_trained_has_neither_advantage_nor_behaviour_nor_weight(
    mode: Literal["bucketed", "packed", "shared"],
) -> None:
    """A token between two trained ones that the environment wrote: whatever log-probability stands there, 0 comes out,
    or differences to the learner's would count it."""
    one = TrainingSample(
        ids=(3, 4, 5, 6), loss_mask=(0, 1, 0, 1), behaviour_logprobs=(-9.0, -1.0, -7.0, -2.0), advantage=3.0, group=0
    )
    (batch,) = pack([one], TokenMean(), 100, mode)
    assert batch.behaviour_logprobs.tolist() == [[-1.0, 0.0, -2.0]]
    assert batch.advantages.tolist() == [[3.0, 0.0, 3.0]]
    assert batch.token_weight.tolist() == [[0.5, 0.0, 0.5]]


def test_shared_prompts_of_several_groups_and_lone_samples_word_for_word() -> None:
    """Groups of prompts (3 4 5) and (9 10), then two samples alone: rows of each sample, then of each prompt; the owner
    of a position is its place among the rows; samples alone stand in one block as long as the longest."""
    groups = [
        sample((3, 4, 5, 6, 7), (0, 0, 0, 1, 1)), sample((3, 4, 5, 8), (0, 0, 0, 1)),
        sample((9, 10, 11, 12), (0, 0, 1, 1), group=1), sample((9, 10, 13), (0, 0, 1), group=1),
        sample((20, 21, 22, 23), (0, 1, 1, 1), group=2), sample((30, 31, 32), (0, 1, 1), group=3),
    ]  # fmt: skip
    (batch,) = pack(groups, TokenMean(), 100, "shared")
    assert batch.ids.tolist() == [[3, 4, 5, 6, 5, 9, 10, 11, 10, 20, 21, 22, 30, 31]]
    assert batch.layout is not None
    assert batch.layout.rows.tolist() == [
        [0, 1, 2, 3], [0, 1, 4, 0], [5, 6, 7, 0], [5, 8, 0, 0], [9, 10, 11, 0], [12, 13, 0, 0],
        [0, 1, 0, 0], [5, 0, 0, 0],
    ]  # fmt: skip
    assert batch.layout.owners.tolist() == [24, 25, 2, 3, 6, 28, 9, 10, 13, 16, 17, 18, 20, 21]
    assert batch.layout.blocks[:2].tolist() == [[0, 2, 0, 2, 4], [2, 4, 5, 1, 3]]
    assert batch.layout.blocks[2:, [0, 1, 3, 4]].tolist() == [[4, 6, 0, 3], [6, 8, 0, 2]]


def test_an_empty_micro_batch_trains_nothing() -> None:
    batch = empty_micro_batch()
    for values in (batch.loss_mask, batch.advantages, batch.behaviour_logprobs, batch.token_weight):
        assert values.tolist() == [[0.0]]
    assert (batch.ids.tolist(), batch.positions.tolist(), batch.sequence.tolist()) == ([[0]], [[0]], [[0]])
    assert batch.index == ()
