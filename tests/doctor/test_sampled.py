"""The arithmetic behind the rules over sampled groups, by hand."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace

import pytest

from rewards import Outcome
from rlvr.doctor.recipe import without_symptoms
from rlvr.doctor.sampled import (
    ALL_CUT,
    NO_FORMAT,
    NONE_RIGHT,
    STOP_UNSEEN,
    check_sampled,
    completions_wanted,
    expected_mixed,
    mixed_share,
    pass_rate,
)
from rlvr.problems.templates import Renderer
from rlvr.records import FinishReason
from rlvr.rules.finding import Grade
from tests.builders import make_group, make_recipe, make_rollout
from tests.helpers import make_tiny_tokenizer


def test_the_share_of_mixed_groups_by_hand() -> None:
    """Of 8 completions 6 are right. A pair differs with probability 1 - (15 + 1) / 28 = 12/28; a group of 4 unless all
    four are right: 1 - 15/70 = 55/70; all 8 always."""
    rewards = [1.0] * 6 + [0.0] * 2
    assert mixed_share(rewards, 2) == pytest.approx(12 / 28)
    assert mixed_share(rewards, 4) == pytest.approx(55 / 70)
    assert mixed_share(rewards, 8) == 1.0
    assert mixed_share(rewards, 1) == 0.0
    assert mixed_share([1.0] * 8, 4) == 0.0
    # more completions than there are: with replacement, 1 - (3/4)^16 - (1/4)^16
    assert mixed_share(rewards, 16) == pytest.approx(1 - 0.75**16 - 0.25**16)


def test_it_is_unbiased() -> None:
    """Theorem: over all 2^6 outcomes of six completions, each right with p = 0.3, its mean is 1 - p^3 - (1 - p)^3."""
    p = 0.3
    mean = sum(
        p ** sum(bits) * (1 - p) ** (6 - sum(bits)) * mixed_share([float(bit) for bit in bits], 3)
        for bits in itertools.product((0, 1), repeat=6)
    )
    assert mean == pytest.approx(1 - p**3 - (1 - p) ** 3, abs=1e-12)


def test_groups_count_alike_and_unscored_completions_not_at_all() -> None:
    right, wrong, none = (make_rollout(one) for one in (Outcome.CORRECT, Outcome.WRONG, Outcome.ERROR))
    groups = [make_group(right, wrong, none), make_group(right, right), make_group(none, none)]
    assert expected_mixed(groups, 2) == pytest.approx(statistics.fmean([1.0, 0.0]))
    assert pass_rate(groups) == pytest.approx(3 / 4)
    assert pass_rate(groups[2:]) is None


def test_small_groups_are_estimated_from_more_completions() -> None:
    assert [completions_wanted(size) for size in (1, 2, 4, 5, 8, 16, 64)] == [8, 8, 8, 10, 16, 16, 64]


def rules(*outcomes: Outcome, finish: FinishReason = "stop", size: int = 4, first: int = 10) -> dict[str, str]:
    """What is found in 8 equal groups of these outcomes; the tokens of completion i begin at `first` + i."""
    recipe = make_recipe()
    recipe = recipe.model_copy(
        update={"rollout": recipe.rollout.model_copy(update={"group_size": size, "max_new_tokens": 3})}
    )
    tokenizer = make_tiny_tokenizer()
    rollouts = [
        replace(make_rollout(one, sample=i, finish=finish, tokens=3), ids=(first + i, first + i + 1, first + i + 2))
        for i, one in enumerate(outcomes)
    ]
    groups = [make_group(*rollouts, problem=f"p{number}") for number in range(8)]
    found = check_sampled(recipe, groups, Renderer(recipe.template, tokenizer), tokenizer)
    return {one.rule: one.grade.value for one in found}


def test_each_share_has_its_rule() -> None:
    right, wrong, silent, form = Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER, Outcome.BAD_FORMAT
    dead, error = Outcome.TIMEOUT, Outcome.ERROR
    assert rules(right, wrong, wrong, right) == {}
    assert rules(right, right, right, right) == {"all_right": "stops learning"}
    assert rules(wrong, wrong, wrong, wrong) == {"none_right": "stops learning"}
    assert rules(silent, silent, form, silent)["format_never_right"] == "stops learning"
    assert rules(wrong, right, wrong, right, finish="length") == {"all_truncated": "slows learning"}
    assert rules(wrong, wrong, wrong, wrong, finish="length")["all_truncated"] == "stops learning"
    assert rules(right, wrong, dead, right) == {"grading_times_out": "slows learning"}
    assert rules(right, wrong, error, error)["completions_unscored"] == "stops learning"
    assert rules(*[right] * 9, wrong, size=2)["group_too_small"] == "slows learning"
    assert rules(*[wrong] * 35, right, size=2)["few_groups_teach"] == "slows learning"


def test_half_of_the_completions_cut_is_a_note_where_groups_still_teach() -> None:
    """Four of eight completions are cut and wrong: with a right one among them every group compares; with none,
    nothing."""

    def found(right: bool) -> dict[str, str]:
        recipe, tokenizer = make_recipe(), make_tiny_tokenizer()
        outcomes = [Outcome.CORRECT if right and i == 7 else Outcome.WRONG for i in range(8)]
        rollouts = [
            make_rollout(one, sample=i, finish="length" if i < 4 else "stop", tokens=3 + i)
            for i, one in enumerate(outcomes)
        ]
        groups = [make_group(*rollouts, problem=f"p{number}") for number in range(8)]
        all_ = check_sampled(recipe, groups, Renderer(recipe.template, tokenizer), tokenizer)
        return {one.rule: one.grade.value for one in all_}

    assert found(right=True)["often_truncated"] == "note"
    assert found(right=False)["often_truncated"] == "slows learning"


def test_an_end_of_text_that_ends_nothing() -> None:
    """Tokens 0 and 2 are padding and end of text: completions that continue after them run past the model's own end."""
    assert rules(Outcome.CORRECT, Outcome.WRONG, first=1) == {"end_token_ignored": "slows learning"}


def test_a_symptom_is_left_to_its_cause_which_names_it() -> None:
    """Completions that are all cut have no format and are not right; a note explains nothing that stops learning."""
    found = [ALL_CUT.finding("1"), NONE_RIGHT.finding("2"), NO_FORMAT.finding("3"), STOP_UNSEEN.finding("4")]
    kept = without_symptoms(found)
    assert [one.rule for one in kept] == ["all_truncated", "stop_never_appears"]
    assert kept[0].evidence == ("explains format_never_right, none_right as well",)
    milder = [ALL_CUT.finding("1", grade=Grade.SLOWS), NONE_RIGHT.finding("2")]
    assert without_symptoms(milder) == milder
