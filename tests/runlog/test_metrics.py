import math
from dataclasses import replace

import pytest

from rewards import Outcome
from rlvr.records import Rollout, TrainingSample
from rlvr.runlog.clock import PHASES, StepClock
from rlvr.runlog.metrics import (
    clustered_standard_error,
    memory_metrics,
    refill_metrics,
    rollout_metrics,
    sample_metrics,
    throughput_metrics,
)
from tests.builders import make_group, make_rollout

RIGHT, WRONG, ERROR = Outcome.CORRECT, Outcome.WRONG, Outcome.ERROR


class Clock:
    """A clock that tests move by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_rewards_leave_unscored_rollouts_out_instead_of_counting_them_as_zero() -> None:
    groups = [
        make_group(make_rollout(RIGHT), make_rollout(ERROR)),
        make_group(make_rollout(WRONG), make_rollout(RIGHT)),
    ]
    metrics = rollout_metrics(groups)
    assert metrics["reward/mean"] == pytest.approx(2 / 3)
    assert metrics["reward/answer"] == pytest.approx(2 / 3)
    assert metrics["reward/std"] == pytest.approx(math.sqrt(2 / 9))
    assert metrics["rollouts/unscored"] == 0.25
    assert metrics["outcome/answer/error"] == 0.25


def test_undefined_quantities_have_no_key() -> None:
    metrics = rollout_metrics([make_group(make_rollout(ERROR))])
    assert not {"reward/mean", "reward/std", "reward/se", "reward/answer", "length/mean_correct"} & set(metrics)
    assert rollout_metrics([]) == {"rollouts/count": 0.0, "tokens/generated": 0.0}


def test_standard_error_by_hand() -> None:
    """Groups (1, 1), (0, 0), (1, 0): mean 1/2, group sums of deviations 1, -1, 0; sqrt(2 * 3/2) / 6."""
    assert clustered_standard_error([[1, 1], [0, 0], [1, 0]]) == pytest.approx(math.sqrt(3.0) / 6)
    assert clustered_standard_error([[1, 0]]) is None
    assert clustered_standard_error([[1, 0], []]) is None


def test_standard_error_of_groups_of_one_is_the_textbook_one() -> None:
    """With one member a group, the clustered estimate is s / sqrt(n) with Bessel's s."""
    values = [0.0, 1.0, 1.0, 0.5]
    mean = sum(values) / 4
    expected = math.sqrt(sum((value - mean) ** 2 for value in values) / 3 / 4)
    assert clustered_standard_error([[value] for value in values]) == pytest.approx(expected)


def test_equal_completions_in_a_group_do_not_shrink_the_standard_error() -> None:
    """Copying every completion of every group adds no information."""
    once, eightfold = [[1.0], [0.0], [1.0]], [[1.0] * 8, [0.0] * 8, [1.0] * 8]
    assert clustered_standard_error(once) == pytest.approx(clustered_standard_error(eightfold))


def test_outcome_shares_cover_every_outcome_and_add_up_to_one() -> None:
    groups = [make_group(*(make_rollout(outcome) for outcome in Outcome))]
    shares = {key: value for key, value in rollout_metrics(groups).items() if key.startswith("outcome/answer/")}
    assert shares == {f"outcome/answer/{outcome.value.lower()}": 0.1 for outcome in Outcome}


def test_a_group_is_all_correct_or_none_correct_by_its_judged_completions() -> None:
    groups = [
        make_group(make_rollout(RIGHT), make_rollout(ERROR)),
        make_group(make_rollout(WRONG), make_rollout(WRONG)),
        make_group(make_rollout(WRONG), make_rollout(RIGHT)),
        make_group(make_rollout(ERROR), make_rollout(ERROR)),
    ]
    metrics = rollout_metrics(groups)
    assert (metrics["groups/all_correct"], metrics["groups/none_correct"]) == (1.0, 1.0)


def test_the_first_term_decides_whether_a_completion_is_right() -> None:
    first = make_rollout(WRONG).verdicts["answer"]
    second = make_rollout(RIGHT).verdicts["answer"]
    base = make_rollout(WRONG)
    both = {name: getattr(base, name) for name in base.__dataclass_fields__} | {
        "verdicts": {"answer": first, "format": second}
    }
    assert Rollout(**both).is_correct is False
    assert Rollout(**both | {"verdicts": {"format": second, "answer": first}}).is_correct is True
    assert Rollout(**both | {"verdicts": {}}).is_correct is None
    assert make_rollout(ERROR).is_correct is None
    assert make_rollout(Outcome.PARTIAL).is_correct is False


def test_lengths_and_ends() -> None:
    groups = [
        make_group(
            make_rollout(RIGHT, tokens=2),
            make_rollout(WRONG, tokens=6, finish="length"),
            make_rollout(WRONG, tokens=4, finish="repetition", seconds=0.75),
            make_rollout(WRONG, tokens=0, finish="abort"),
        )
    ]
    metrics = rollout_metrics(groups)
    assert (metrics["length/mean"], metrics["length/max"], metrics["length/truncated"]) == (3.0, 6.0, 0.25)
    assert (metrics["length/mean_correct"], metrics["length/mean_wrong"]) == (2.0, pytest.approx(10 / 3))
    assert [metrics[f"finish/{end}"] for end in ("stop", "abort", "repetition")] == [0.25, 0.25, 0.25]
    assert (metrics["tokens/generated"], metrics["tokens/prompt"]) == (12.0, 8.0)
    assert metrics["time/grade_max"] == 0.75


def test_tokens_of_a_workflow_are_not_generated_ones() -> None:
    base = make_rollout(RIGHT, tokens=3)
    fields = {name: getattr(base, name) for name in base.__dataclass_fields__} | {"loss_mask": (1, 0, 1)}
    assert rollout_metrics([make_group(Rollout(**fields))])["tokens/generated"] == 2.0


def test_samples() -> None:
    def sample(mask: tuple[int, ...], advantage: float) -> TrainingSample:
        zeros = (0.0,) * len(mask)
        return TrainingSample(ids=mask, loss_mask=mask, behaviour_logprobs=zeros, advantage=advantage, group=0)

    assert sample_metrics([sample((0, 1, 1), -2.0), sample((0, 0, 1), 1.0)]) == {"advantage/abs_max": 2.0}
    assert sample_metrics([]) == {"advantage/abs_max": 0.0}


def test_the_parts_of_a_step_add_up_to_its_wall_clock() -> None:
    """Phases, nested ones included, and idle time partition the interval; work beside them is not part of it."""
    now = Clock()
    clock = StepClock(now)
    now.time += 1  # idle
    with clock.phase("generate"):
        now.time += 5
        with clock.phase("sync"):
            now.time += 2
        now.time += 3
        clock.overlap("grade", 11.0)
    now.time += 4  # idle
    times = clock.lap()
    assert times["time/step"] == 15.0
    assert (times["time/generate"], times["time/sync"], times["time/idle"]) == (8.0, 2.0, 5.0)
    assert times["time/beside/grade"] == 11.0
    parts = [times[f"time/{name}"] for name in (*PHASES, "idle")]
    assert math.fsum(parts) == pytest.approx(times["time/step"])
    now.time += 7
    with clock.phase("log"):
        now.time += 1
    after = clock.lap()
    assert (after["time/step"], after["time/idle"], after["time/log"], after["time/generate"]) == (8.0, 7.0, 1.0, 0.0)
    assert after["time/beside/grade"] == 0.0


def test_a_phase_that_raises_is_still_counted_and_left() -> None:
    now = Clock()
    clock = StepClock(now)

    def fail() -> None:
        now.time += 2
        raise KeyError

    with pytest.raises(KeyError), clock.phase("eval"):
        fail()
    now.time += 1
    times = clock.lap()
    assert (times["time/eval"], times["time/idle"]) == (2.0, 1.0)


def test_a_lap_within_a_phase_divides_it() -> None:
    now = Clock()
    clock = StepClock(now)
    with clock.phase("log"):
        now.time += 2
        first = clock.lap()
        now.time += 3
    second = clock.lap()
    assert (first["time/log"], second["time/log"], second["time/idle"]) == (2.0, 3.0, 0.0)


def test_unknown_phases_are_refused() -> None:
    clock = StepClock(Clock())
    with pytest.raises(ValueError, match="phase 'generation' is not one of generate"), clock.phase("generation"):
        pass
    with pytest.raises(ValueError, match="overlap 'generate' is not one of grade"):
        clock.overlap("generate", 1.0)


def test_utilisation_is_the_time_that_arithmetic_at_the_peak_would_take() -> None:
    """6e12 operations at 2e12 a second need 3 s: half of a forward and backward pass of 6 s, a tenth of the step."""
    times = {"tokens/generated": 0.0, "time/beside/sampling": 0.0, "time/forward_backward": 6.0, "time/step": 30.0}
    rates = throughput_metrics(times | {"update/flops": 6e12}, peak_flops=2e12)
    assert (rates["mfu/update"], rates["mfu/step"]) == (0.5, 0.1)


def test_throughput_and_memory() -> None:
    rates = throughput_metrics({"tokens/generated": 100.0, "time/step": 10.0, "time/beside/sampling": 4.0}, 1e12)
    assert rates == {"tokens/per_second": 10.0, "tokens/generated_per_second": 25.0}
    assert throughput_metrics({"tokens/generated": 0.0, "time/step": 1.0, "time/beside/sampling": 0.0}, 1e12) == {
        "tokens/per_second": 0.0
    }
    assert 0.05 < memory_metrics()["memory/peak"] < 1000  # a Python process with torch holds more than 50 MiB


def test_rules_and_judge_of_a_hybrid_term() -> None:
    """Four completions: the rules took one (seen by nobody else), refused three; of two votes one agreed, one repaired;
    the third was kept from the judge. agreement = 1/2, repaired = 1/4. Other terms have neither key."""
    judged = {"rules": "WRONG", "decided_by": "judge", "judge": {"outcome": "WRONG"}}
    group = make_group(
        make_rollout(Outcome.CORRECT, rules="CORRECT", decided_by="rules"),
        make_rollout(Outcome.WRONG, **judged, agree=True),
        make_rollout(Outcome.CORRECT, **judged, agree=False),
        make_rollout(Outcome.WRONG, **judged),
    )
    metrics = rollout_metrics([group])
    assert metrics["judge/answer/agreement"] == 0.5
    assert metrics["judge/answer/repaired"] == 0.25
    assert not [key for key in rollout_metrics([make_group(make_rollout())]) if key.startswith("judge/")]


def test_versions_greedy_completions_and_refill_by_hand() -> None:
    """Of three completions one has tokens of two versions. The greedy ones' mean reward leaves the unscored one out.
    10 groups were sampled for 8 that were wanted, 6 are trained."""
    several = make_group(make_rollout(versions=(0, 0, 0)), make_rollout(versions=(0, 1, 1)), make_rollout(tokens=0))
    assert rollout_metrics([several])["rollouts/several_versions"] == pytest.approx(1 / 3)
    assert "greedy/reward" not in rollout_metrics([several])
    beside = [replace(make_group(make_rollout()), greedy=make_rollout(one, sample=-1)) for one in (RIGHT, WRONG, ERROR)]
    metrics = rollout_metrics(beside)
    assert metrics["greedy/reward"] == 0.5
    assert metrics["tokens/generated"] == 18.0
    assert refill_metrics({"groups/total": 10.0, "groups/trained": 6.0}, 8) == {
        "groups/extra": 2.0,
        "groups/missing": 2.0,
    }


def test_two_groups_are_enough_for_a_standard_error() -> None:
    """Deviations 1/2 and -1/2: sqrt(2/1 * 1/2) / 2."""
    assert clustered_standard_error([[1], [0]]) == pytest.approx(0.5)


@pytest.mark.parametrize(("trained", "rate"), [(40.0, 2.5), (1.0, 100.0), (0.0, None)])
def test_tokens_generated_for_each_that_is_trained(trained: float, rate: float | None) -> None:
    times = {"tokens/generated": 100.0, "time/step": 0.0, "time/beside/sampling": 0.0, "tokens/trained": trained}
    assert throughput_metrics(times, 1e12) == ({} if rate is None else {"tokens/generated_per_trained": rate})
