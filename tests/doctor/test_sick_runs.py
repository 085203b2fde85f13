"""Runs made sick on purpose, by real training of a tiny model: the doctor names each one's cause, and nothing else.

The model has seen sums worked out with mistakes (`tests.sums`); each run differs from a healthy one by one change. What
the doctor reads is what the run wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlvr.doctor.run import examine
from rlvr.engines.hf import HfEngine
from rlvr.learn.samples import StaleTokens
from rlvr.rules.finding import Finding, Grade
from rlvr.runlog.run_log import END, read_metrics
from rlvr.sync.weight_sync import WeightSync
from tests.runs import Workspace
from tests.sums import make_sums_model, sums_workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def sums_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sums_model(tmp_path_factory.mktemp("sums") / "model")


@pytest.fixture
def work(tmp_path: Path, sums_model: Path) -> Workspace:
    return sums_workspace(tmp_path / "work", sums_model)


def graded_by(work: Workspace, name: str) -> Workspace:
    work.recipe["rewards"]["terms"][0]["verifier"] = f"graders:{name}"
    return work


def serious(found: list[Finding]) -> list[str]:
    return [one.rule for one in found if one.grade is not Grade.NOTE]


def diagnosis(work: Workspace, *overrides: str, status: int = 0) -> list[str]:
    """Train, and say what stops or slows learning by the doctor's word."""
    assert work.run(*overrides) == status
    return serious(examine(work.results()))


def test_a_healthy_run_has_no_finding(work: Workspace) -> None:
    assert diagnosis(work) == []


def test_completions_cut_off_before_they_end(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Four new tokens are half a completion; the loop warned of it by the rule's name, once on the console."""
    assert diagnosis(work, "rollout.max_new_tokens=4", "run.steps=4") == ["all_truncated"]
    assert capsys.readouterr().out.count("warning (all_truncated)") == 1
    assert read_metrics(work.results())[-1]["warnings/all_truncated"] == 2


def test_a_verifier_that_says_right_to_everything(work: Workspace) -> None:
    assert diagnosis(graded_by(work, "AlwaysRight"), "run.steps=4") == ["always_right"]


def test_a_verifier_that_finds_no_answer(work: Workspace) -> None:
    assert diagnosis(graded_by(work, "Tagged"), "run.steps=4") == ["no_answer"]


@pytest.mark.parametrize("lr", ["1e-2", "1e-1"])
@pytest.mark.parametrize("updates", [1, 4])
def test_a_learning_rate_that_wrecks_the_policy(work: Workspace, lr: str, updates: int) -> None:
    """The collapse ends in other symptoms at each of them, and has one cause."""
    found = diagnosis(work, f"learner.lr={lr}", f"algorithm.updates_per_batch={updates}")
    assert found == ["learning_rate_too_large"]


def test_a_learning_rate_that_does_nothing(work: Workspace) -> None:
    assert diagnosis(work, "learner.lr=1e-30", "run.steps=4") == ["policy_not_moving"]


def test_a_verifier_that_hangs(work: Workspace) -> None:
    """On every second text or so, until it is killed."""
    work.recipe["rollout"]["prompts_per_step"] = 4
    assert diagnosis(graded_by(work, "Hangs"), "rewards.timeout=0.05", "run.steps=3") == ["verifier_timeouts"]
    found = examine(work.results())
    assert any(text.startswith("rollout 3/") for text in found[0].evidence), found


def test_a_verifier_that_raises_ends_the_run(work: Workspace) -> None:
    assert diagnosis(graded_by(work, "Raises"), status=1) == ["unscored"]


def test_a_verifier_that_raises_where_the_recipe_allows_it(work: Workspace) -> None:
    assert diagnosis(graded_by(work, "Raises"), "rewards.max_unscored=0.95", "run.steps=4") == ["unscored"]
    assert any("no such table" in text for text in examine(work.results())[0].evidence)


def test_completions_that_grow_because_length_is_paid_for(work: Workspace) -> None:
    """What fills the limit is one text for all, which is said too."""
    found = diagnosis(graded_by(work, "Longer"), "rollout.max_new_tokens=60", "learner.lr=2e-3", "run.steps=12")
    assert found[0] == "length_exploding"
    assert set(found) <= {"length_exploding", "repeated_completion"}


def test_groups_of_two_on_easy_problems(work: Workspace) -> None:
    """Three steps: in six the model solves nearly all, and then it is no fault that groups agree."""
    found = diagnosis(graded_by(work, "Near"), "rollout.group_size=2", "rollout.prompts_per_step=16", "run.steps=3")
    assert found == ["no_variance"]


def test_a_hack_in_which_one_text_is_right_for_all(work: Workspace) -> None:
    """The reward rises as it should; only the texts tell, and in time their length."""
    found = diagnosis(graded_by(work, "AnyNumber"), "learner.lr=2e-3", "run.steps=12")
    assert "repeated_completion" in found
    assert set(found) <= {"length_exploding", "repeated_completion"}


def test_references_that_hold_more_than_the_number(work: Workspace) -> None:
    work.write_problems([{"problem": f"{a}+{b}=", "answer": f"{a + b} km"} for a in range(10) for b in range(10)])
    assert diagnosis(graded_by(work, "Exact"), "run.steps=4") == ["reference_format"]


@pytest.fixture
def engine_that_keeps_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that says that it has each new version, and samples from the first."""
    load = HfEngine.load_weights

    async def keep(self: HfEngine, tensors: Any, version: int) -> None:
        if version == 0:
            await load(self, tensors, version)
        self._version = version

    monkeypatch.setattr(HfEngine, "load_weights", keep)


def test_a_stale_engine_that_the_probe_stops(work: Workspace, engine_that_keeps_its_weights: None) -> None:
    """The run ended before its first line of metrics, and its folder still says why."""
    assert diagnosis(work, status=1) == ["stale_engine"]
    assert read_metrics(work.results()) == []


def test_a_stale_engine_that_was_sent_nothing(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows its version, so the second step's tokens are too old for the schedule: the run ends, and says why."""
    send = WeightSync.send
    monkeypatch.setattr(WeightSync, "send", lambda self, version: send(self, version) if version == 0 else {})
    with pytest.raises(StaleTokens):
        work.run()
    assert serious(examine(work.results())) == ["stale_engine"]


def test_a_stale_engine_that_no_probe_sees(
    work: Workspace, monkeypatch: pytest.MonkeyPatch, engine_that_keeps_its_weights: None
) -> None:
    """It claims the newest version, and nothing is compared: the mismatch on its own completions tells."""
    send = WeightSync.send

    def unseen(self: WeightSync, version: int) -> dict[str, float]:
        self._sequences = []
        return send(self, version)

    monkeypatch.setattr(WeightSync, "send", unseen)
    assert diagnosis(work, "learner.lr=1e-3", "run.steps=6") == ["stale_engine"]


@pytest.mark.parametrize("error", [0.1, 0.5])
def test_an_engine_in_other_numerics(work: Workspace, monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    """The engine samples at another temperature than it says; small or large, float32 does not explain it."""
    sampled = HfEngine.generate

    async def other(self: HfEngine, request: Any) -> Any:
        import dataclasses

        colder = dataclasses.replace(request.sampling, temperature=1.0 - error)
        return await sampled(self, dataclasses.replace(request, sampling=colder))

    monkeypatch.setattr(HfEngine, "generate", other)
    assert diagnosis(work, "run.steps=4") == ["engine_mismatch"]


def test_a_stop_rule_ends_the_run_with_a_checkpoint_and_its_own_status(
    work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 3 after the step on which the rule fired; once it is mended, the same command goes on. A name that no rule
    has is refused with the nearest."""
    sick = ("rollout.max_new_tokens=4", "run.steps=6")
    assert work.run(*sick, "run.stop_on=[all_truncatd]") == 2
    assert "did you mean 'all_truncated'?" in capsys.readouterr().err
    assert work.run(*sick, "run.stop_on=[clip_share, all_truncated]") == 3
    err = capsys.readouterr().err
    assert "rlvr: stopped by rule all_truncated (100% of the completions are cut off" in err
    assert "after step 3, which is saved: the same command goes on" in err
    assert [line["step"] for line in read_metrics(work.results())] == [1, 2, 3]
    assert (work.results() / "checkpoints/step_000003").is_dir()
    # a clock decides about grading: on a busy machine it may be slow besides
    assert [rule for rule in serious(examine(work.results())) if rule != "slow_grading"] == ["all_truncated"]
    assert (work.results() / END).is_file()
    assert work.run("rollout.max_new_tokens=24", "run.steps=6") == 0
    assert [line["step"] for line in read_metrics(work.results())] == [1, 2, 3, 4, 5, 6]
    assert serious(examine(work.results())) == []
