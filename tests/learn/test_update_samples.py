"""The learner with samples as they come: any number of micro-batches, empty and cut completions, end of text as
padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rewards import Outcome
from rlvr.config.algorithm import Algorithm
from rlvr.learn.samples import make_samples
from rlvr.records import TrainingSample
from tests.builders import make_group, make_rollout
from tests.learn.conftest import random_samples, samples_of_groups
from tests.learn.test_update import AGGREGATIONS, assert_same, expected_gradient, gradients, make

Folder = Callable[..., str]
EOS = 2
PACKINGS = ("bucketed", "packed", "shared")


def of_length(positions: int, count: int) -> list[TrainingSample]:
    """Samples with so many positions each, and unlike numbers of trained tokens."""
    found = []
    for index, one in enumerate(random_samples(count, longest=1)):
        ids = tuple((7 * index + 3 * t) % 90 + 3 for t in range(positions + 1))
        mask = (0, 0, *(int(t % 5 != index % 5) for t in range(positions - 1)))
        found.append(
            replace(one, ids=ids, loss_mask=mask, behaviour_logprobs=tuple(-4.0 * m for m in mask), group=index % 4)
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=lambda a: a["type"])
def test_accumulating_over_n_micro_batches_is_one_batch(
    model_folder: Folder, tied: bool, aggregation: dict[str, Any]
) -> None:
    """Gradient of n micro-batches = gradient of one, for n = 1, 2, 3, 4, 6, 12: their denominators are the batch's, so
    that neither n nor unlike numbers of trained tokens in them have a say, as they would in a mean of means."""
    folder, samples = model_folder(tied=tied), of_length(10, 12)
    expected = expected_gradient(folder, samples, {"aggregation": aggregation}, 1.0)
    largest = max(float(value.abs().max()) for value in expected.values())
    for count in (1, 2, 3, 4, 6, 12):
        learner = make(folder, {"aggregation": aggregation}, micro_batch_tokens=120 // count, packing="bucketed")
        metrics = learner.update(samples)
        assert metrics["update/micro_batches"] == count
        assert_same(gradients(learner), expected, atol=2e-6 * max(1.0, largest))


@pytest.mark.slow
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=lambda a: a["type"])
def test_an_empty_completion_has_no_gradient_and_counts_as_a_completion(
    model_folder: Folder, aggregation: dict[str, Any], packing: str
) -> None:
    """Completions of no tokens, one in a group with others, one alone in its group: nothing of them is computed. Token
    means do not see them, means over completions divide by them too (8 completions, 2 of them empty: 6/8 of the
    gradient), and a mean over prompts by the prompt that has no other (4 prompts, 5 with it: 4/5)."""
    folder, samples = model_folder(tied=True), samples_of_groups(6)
    assert {sample.group for sample in samples} == {0, 1, 2, 3}
    prompt = samples[0].ids[: samples[0].loss_mask.index(1)]
    empty = TrainingSample(
        ids=prompt, loss_mask=(0,) * len(prompt), behaviour_logprobs=(0.0,) * len(prompt), advantage=5.0, group=0
    )
    settings = {"packing": packing, "micro_batch_tokens": 60}
    without, with_them = (make(folder, {"aggregation": aggregation}, **settings) for _ in range(2))
    one = without.update(samples)
    alone = replace(empty, ids=(9, 9), loss_mask=(0, 0), behaviour_logprobs=(0.0, 0.0), group=7)
    other = with_them.update([empty, *samples, alone])
    share = {"token_mean": 1.0, "prompt_mean": 4 / 5}.get(aggregation["type"], 6 / 8)
    assert_same(gradients(with_them), {n: share * g for n, g in gradients(without).items()}, atol=1e-5)
    for key in ("tokens/trained", "tokens/computed", "update/micro_batches", "policy/entropy"):
        assert other[key] == pytest.approx(one[key], rel=1e-6), key


@pytest.mark.slow
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_cut_completion_is_trained_to_its_last_token_and_no_further(model_folder: Folder, packing: str) -> None:
    """A completion without end of text beside one with it, by hand: each sampled token has its gradient, and no end of
    text, which was not sampled, is taught. The cut one's gradient does not depend on what stands behind it."""
    folder = model_folder(tied=False)
    whole = TrainingSample(
        ids=(5, 6, 7, 8, 9, EOS), loss_mask=(0, 0, 1, 1, 1, 1), behaviour_logprobs=(0.0, 0.0, -4.0, -4.0, -4.0, -4.0),
        advantage=0.5, group=0,
    )  # fmt: skip
    cut = TrainingSample(
        ids=(5, 6, 20, 21), loss_mask=(0, 0, 1, 1), behaviour_logprobs=(0.0, 0.0, -4.0, -4.0), advantage=-1.0, group=0
    )
    algorithm = {"aggregation": {"type": "sequence_mean"}, "surrogate": {"type": "reinforce"}}
    for samples in ([whole, cut], [cut]):
        learner = make(folder, algorithm, packing=packing)
        metrics = learner.update(samples)
        assert metrics["tokens/trained"] == sum(sample.trained_tokens for sample in samples)
        assert_same(gradients(learner), expected_gradient(folder, samples, algorithm, 1.0), atol=1e-5)


def test_cut_completions_that_are_masked_are_not_trained_but_counted(model_folder: Folder) -> None:
    """truncated: mask, from graded rollouts to the gradient: the cut completion stays in the baseline (mean reward 1/3)
    and in the number of completions (3), and its tokens teach nothing; by hand over the two others."""
    folder = model_folder(tied=True)
    algorithm = {
        "truncated": "mask", "scale": {"type": "none"}, "aggregation": {"type": "sequence_mean"},
        "surrogate": {"type": "reinforce"},
    }  # fmt: skip
    group = make_group(
        make_rollout(Outcome.CORRECT, tokens=3, sample=0), make_rollout(Outcome.WRONG, tokens=2, sample=1),
        make_rollout(Outcome.WRONG, tokens=4, sample=2, finish="length"),
    )  # fmt: skip
    samples, counts = make_samples([group], Algorithm.model_validate(algorithm), 1)
    assert counts["samples/truncated_masked"] == 1
    assert [sample.advantage for sample in samples] == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert [sample.trained_tokens for sample in samples] == [3, 2, 0]
    learner = make(folder, algorithm)
    learner.update(samples)
    assert_same(gradients(learner), expected_gradient(folder, samples, algorithm, 1.0), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("packing", PACKINGS)
def test_end_of_text_that_is_also_padding_is_a_token_like_any_other(
    model_folder: Folder, tmp_path: Path, tied: bool, packing: str
) -> None:
    """Whatever token the model's settings call padding (end of text, another one, none), the same gradient to the last
    bit, and the one by hand: end of text is trained where it was sampled, and read where a prompt of several turns has
    it. Padding never is, whatever its id: rows have different lengths."""
    samples = [
        TrainingSample(
            ids=(5, EOS, 6, *range(10, 10 + extra), EOS), loss_mask=(0, 0, 0, *[1] * extra, 1),
            behaviour_logprobs=(0.0,) * 3 + (-4.0,) * (extra + 1), advantage=1.0 - extra, group=0,
        )
        for extra in (1, 3, 8)
    ]  # fmt: skip
    found: list[dict[str, Tensor]] = []
    for padding in (EOS, 0, None):
        model = AutoModelForCausalLM.from_pretrained(model_folder(tied=tied))
        model.config.pad_token_id = padding
        model.save_pretrained(tmp_path / str(padding))
        learner = make(str(tmp_path / str(padding)), packing=packing)
        learner.update(samples)
        found.append(gradients(learner))
    assert all(torch.equal(one[name], found[0][name]) for one in found[1:] for name in found[0])
    by_hand = expected_gradient(str(tmp_path / "None"), samples, {"aggregation": {"type": "token_mean"}}, 1.0)
    assert_same(found[0], by_hand, atol=1e-5 * max(float(value.abs().max()) for value in by_hand.values()))
    row = by_hand["model.embed_tokens.weight"][EOS]
    assert float(row.abs().max()) > 1e-4
