"""``rlvr doctor`` as people call it, and what ``rlvr train`` makes of the cheap half."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvr.config import load_recipe
from rlvr.config.problems import JsonLinesConfig
from rlvr.problems.data import load_data
from rlvr.rules.finding import Grade
from rlvr.rules.preflight import examine_cheaply, first_prompts
from rlvr.rules.preflight_settings import check_settings, pretraining_rate
from tests.documents import ROOT
from tests.runs import Workspace
from tests.test_recipes import DATA, PATHS, tokenizer

pytestmark = pytest.mark.slow

SIZES = {
    "quickstart": 0.4e6, "r1_zero_smollm2": 135e6, "gsm8k_qwen2.5_0.5b": 0.5e9, "math_qwen2.5_math_1.5b_dr_grpo": 1.5e9,
    "countdown_qwen2.5_3b": 3e9, "dapo_qwen2.5_7b": 7.6e9,
}  # fmt: skip


def test_a_report_for_people(clinic: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts, facts and findings with advice; the exit status is 1 because something stops learning."""
    assert clinic.run("learner.lr=0.01", "--no-engine", command="doctor") == 1
    said = capsys.readouterr().out
    assert "prompt 1, as the model reads it\nSay 10\n" in said
    assert "stops learning: 1\n  learning_rate_high: learner.lr = 0.01 is above the rate" in said
    assert "    -> lower learner.lr" in said
    assert said.rstrip().endswith("run: 1 stop learning, 0 slow it, 0 to know")


@pytest.mark.parametrize(
    ("target", "message"),
    [("nosuch.yaml", "'nosuch.yaml' does not exist"), (".", "is no run's folder")],
)
def test_what_is_neither_recipe_nor_run(
    target: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlvr.__main__ import main

    monkeypatch.chdir(tmp_path)
    assert main(["doctor", target]) == 2
    assert message in capsys.readouterr().err


def test_train_refuses_what_cannot_learn_and_says_how_to_insist(
    clinic: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the engine starts, with key, value, rule and fix; no metrics are written. With run.force it trains."""
    assert clinic.run("learner.lr=0.01") == 2
    said = capsys.readouterr()
    assert "learning_rate_high: learner.lr = 0.01 is above" in said.err
    assert "-> lower learner.lr" in said.err
    assert "run.force=true" in said.err
    assert "starting the engine" not in said.out
    assert clinic.run("learner.lr=0.01", "run.force=true", "run.steps=1") == 0
    assert "stops learning: learning_rate_high" in capsys.readouterr().out
    assert len(clinic.metrics()) == 1


def test_train_shows_what_slows_learning_and_goes_on(clinic: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert clinic.run("rollout.temperature=0.4", "run.steps=1") == 0
    said = capsys.readouterr().out
    assert said.index("slows learning: temperature_low") < said.index("starting the engine")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_nothing_is_wrong_with_the_settings_of_a_shipped_recipe(path: Path) -> None:
    """At the size of its model, and without knowing it."""
    recipe = load_recipe(path)
    for weights in (int(SIZES[path.stem]), None):
        assert [one for one in check_settings(recipe, weights) if one.grade is not Grade.NOTE] == []


FILES = {
    "quickstart": [], "r1_zero_smollm2": [],
    "gsm8k_qwen2.5_0.5b": [
        f"problems.train={{type: jsonl, path: {DATA / 'gsm8k_train.jsonl'}, prompt: question, reference_format: gsm8k, "
        "limit: 400}",
        f"problems.eval.0.source.path={DATA / 'gsm8k_test.jsonl'}",
    ],
    "math_qwen2.5_math_1.5b_dr_grpo": [
        f"problems.train={{type: benchmark, name: math500, path: {DATA / 'math500.jsonl'}}}", "problems.eval=[]",
    ],
    "countdown_qwen2.5_3b": ["problems.train.size=600"],
}  # fmt: skip


@pytest.mark.parametrize("stem", FILES)
def test_nothing_is_wrong_with_data_template_and_verifiers_of_a_shipped_recipe(
    stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as it can be loaded without a hub: with local files, and a tokenizer that has what the template needs."""
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(ROOT / "recipes" / f"{stem}.yaml", FILES[stem])
    assert not isinstance(recipe.problems.train, JsonLinesConfig) or Path(recipe.problems.train.path).exists()
    made = tokenizer()
    data = load_data(recipe, made, 100_000)
    try:
        seen = first_prompts(data.train, data.renderer, made)
        found = examine_cheaply(
            recipe, data.train, seen, data.pool, data.terms, weights=int(SIZES[stem]), patience=60.0
        )
    finally:
        data.pool.close()
    assert [one for one in found if one.grade is not Grade.NOTE and one.rule != "completion_does_not_fit"] == []


def test_the_rate_of_pretraining_by_hand() -> None:
    """0.003239 - 0.0001395 ln N: 0.003239 - 0.0001395 * 18.7207 for 135 million; never below 6e-5."""
    assert pretraining_rate(135_000_000) == pytest.approx(0.003239 - 0.0001395 * 18.72078, rel=1e-4)
    assert pretraining_rate(10**12) == 6e-5
    assert pretraining_rate(10**6) > pretraining_rate(10**9)
