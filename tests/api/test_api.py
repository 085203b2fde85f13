"""`import rlvr`: load a recipe, grade, train and evaluate with problems and rewards that Python holds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import rlvr
from rewards import Outcome, Verdict
from rewards.pool import GradingPool, VerifierSpec, WorkerStartError
from rlvr.api.rows import write_rows
from rlvr.api.terms import hash_of_code, make_terms
from tests.builders import recipe_data
from tests.runs import Workspace, elsewhere

ROWS = [{"problem": f"What is {a}+{a}?", "answer": "aeiou 13579"} for a in range(10, 22)]
HELD_OUT = [{"problem": f"What is {a}+{a}?", "answer": "aeiou 13579"} for a in range(30, 33)]


def even_count(completion: str, reference: str) -> bool:
    """Right if an even number of the reference's letters stands in the completion."""
    return sum(completion.count(letter) for letter in reference) % 2 == 0


def half(completion: str, reference: str, scale: float = 1.0) -> float:
    return 0.5 * scale


# -- load_recipe -----------------------------------------------------------------------------------------------------


def test_a_recipe_from_a_file_a_name_a_dict_and_a_recipe() -> None:
    by_name = rlvr.load_recipe("quickstart", {"learner.lr": 3e-4, "run.trackers": ["tensorboard"]})
    assert by_name.learner.lr == 3e-4
    assert list(by_name.run.trackers) == ["tensorboard"]
    assert rlvr.load_recipe("quickstart", ["learner.lr=3e-4", "run.trackers=[tensorboard]"]) == by_name
    assert rlvr.load_recipe(by_name) == by_name
    data = recipe_data()
    before = json.dumps(data)
    assert rlvr.load_recipe(data, {"run.steps": 7}).run.steps == 7
    assert json.dumps(data) == before, "what was given is left as it is"


@pytest.mark.parametrize(
    ("source", "overrides", "message"),
    [
        ("quickstar", (), "did you mean 'quickstart'"),
        ("quickstart", {"learner.lrr": 1}, "did you mean 'lr'"),
        ("quickstart", {"learner.lr": "fast"}, "learner.lr: .*'fast'"),
        ("quickstart", "learner.lr=1", r"write \['learner.lr=1'\]"),
        ("quickstart", {"problems.eval.9.samples": 1}, "has items 0 to"),
        ({"schema": 1}, (), "the recipe cannot be run"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(source: Any, overrides: Any, message: str) -> None:
    with pytest.raises(rlvr.RecipeError, match=message):
        rlvr.load_recipe(source, overrides)


def test_importing_rlvr_is_light_and_a_wrong_name_is_said() -> None:
    program = "import sys, rlvr; assert not {'torch', 'pydantic', 'cloudpickle'} & set(sys.modules); print(dir(rlvr))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert all(name in done.stdout for name in rlvr.__all__)
    with pytest.raises(AttributeError, match=r"it has .*load_recipe"):
        rlvr.trian  # noqa: B018


# -- grade -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_grade_by_short_name_import_path_and_function() -> None:
    assert [one.outcome for one in rlvr.grade([r"\boxed{4}", r"\boxed{5}"], ["4", "4"])] == ["CORRECT", "WRONG"]
    (verdict,) = rlvr.grade(["<answer>4</answer>"], ["4"], "math", args={"extract": "answer_tag"})
    assert verdict.score == 1.0
    assert rlvr.grade(["a", ""], ["a", "a"], even_count) == [Verdict(0.0, Outcome.WRONG), Verdict(1.0, Outcome.CORRECT)]
    assert rlvr.grade(["x"], ["y"], half, args={"scale": 0.5}) == [Verdict(0.25, Outcome.PARTIAL)]
    secret = 7
    assert rlvr.grade(["7", "8"], ["", ""], lambda completion, _: int(completion) == secret)[0].score == 1.0
    with pytest.raises(ValueError, match="as many references"):
        rlvr.grade(["a"], [])


def test_a_class_defined_here_is_built_in_the_worker() -> None:
    class Longest:
        lowest_score = -1.0

        def __init__(self, limit: int) -> None:
            self.limit = limit

        def check_reference(self, reference: Any) -> None:
            pass

        def grade(self, completion: str, reference: Any) -> Verdict:
            fits = len(completion) <= self.limit
            return Verdict(1.0 if fits else -1.0, Outcome.CORRECT if fits else Outcome.WRONG)

    assert [one.score for one in rlvr.grade(["ab", "abc"], [0, 0], Longest, args={"limit": 2})] == [1.0, -1.0]
    assert [one.score for one in rlvr.grade(["ab", "abc"], [0, 0], Longest(2))] == [1.0, -1.0]


@pytest.mark.slow
def test_a_function_that_hangs_is_killed_and_the_others_are_graded() -> None:
    def hangs(completion: str, reference: str) -> bool:
        while completion == "hang":
            pass
        return True

    start = time.monotonic()
    verdicts = rlvr.grade(["fine", "hang", "fine"], ["", "", ""], hangs, timeout=0.5)
    assert [one.outcome for one in verdicts] == ["CORRECT", "TIMEOUT", "CORRECT"]
    assert verdicts[1].score == 0.0
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    ("returns", "reason"),
    [
        (lambda: None, "returned None; a reward function returns a finite number"),
        (lambda: math.nan, "returned nan; "),
        (lambda: "1.0", "returned '1.0'; "),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: -1, "lowest_score"),
    ],
)
def test_what_is_no_reward_is_an_error_and_not_a_zero(returns: Callable[[], Any], reason: str) -> None:
    (verdict,) = rlvr.grade(["x"], ["y"], lambda completion, reference: returns())
    assert (verdict.outcome, verdict.score) == (Outcome.ERROR, None)
    assert reason in verdict.detail["reason"]


def test_a_penalty_is_allowed_once_it_is_declared() -> None:
    def penalty(completion: str, reference: str) -> float:
        return -1.0 if "!" in completion else -0.5

    penalty.lowest_score = -1.0  # type: ignore[attr-defined]
    assert rlvr.grade(["!", "."], ["", ""], penalty) == [Verdict(-1.0, Outcome.WRONG), Verdict(-0.5, Outcome.PARTIAL)]


@pytest.mark.slow
def test_a_function_of_a_module_serves_a_recipe_too() -> None:
    with GradingPool({"half": VerifierSpec(f"{half.__module__}:half", {"scale": 0.5})}) as pool:
        assert pool.grade_many([("half", "x", "y")]) == [Verdict(0.25, Outcome.PARTIAL)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verifier", "args", "message"),
    [
        (lambda completion: 1.0, {}, r"cannot be called with \(completion, reference\)"),
        (lambda prompts, completions: [1.0], {}, "TRLRewardVerifier"),
        (half, {"scael": 1.0}, "takes no argument 'scael'.*did you mean 'scale'"),
        ("rewards.math_answers:MathVerifyer", {}, "did you mean 'MathVerifier'"),
    ],
)
def test_a_function_that_does_not_fit_is_said_at_once(verifier: Any, args: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkerStartError, match=message):
        rlvr.grade(["x"], ["y"], verifier, args=args)


# -- rewards and rows as a recipe has them ---------------------------------------------------------------------------


def test_terms_by_name_where_a_worker_can_import_them_else_pickled(tmp_path: Path) -> None:
    local = eval("lambda completion, reference: True")
    given = [even_count, "math", {"verifier": local, "weight": 0.5}, {"verifier": half, "name": "style"}, even_count]
    terms = make_terms(given, tmp_path)
    assert [term["name"] for term in terms] == ["even_count", "math", "lambda", "style", "even_count_2"]
    assert terms[0]["verifier"].endswith("test_api:even_count")
    assert terms[1]["verifier"] == "rewards.math_answers:MathVerifier"
    assert terms[2]["verifier"] == "rewards.functions:PickledVerifier"
    assert terms[2]["weight"] == 0.5
    assert [path.name for path in tmp_path.iterdir()] == [f"lambda-{hash_of_code(local)}.pkl"]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([], "must be a list of functions"),
        ("math", "must be a list of functions"),
        (["maths"], "short names"),
        ([3], "neither function nor verifier"),
        ([{"weight": 1.0}], "has no key 'verifier'"),
    ],
)
def test_what_is_no_list_of_rewards_is_said(rewards: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(rlvr.RecipeError, match=message):
        make_terms(rewards, tmp_path)


def test_what_cannot_travel_is_said(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(rlvr.RecipeError, match="'lambda' refers to something"):
        make_terms([lambda completion, reference: file.write(completion)], tmp_path)


@pytest.mark.slow
def test_the_hash_follows_what_the_code_does() -> None:
    texts = ("lambda c, r: r in {'a', 'b', 'c'}", "\n\nlambda c, r: r in {'a', 'b', 'c'}  # the same")
    one, same = (hash_of_code(eval(text.strip())) for text in texts)
    assert one == same
    program = f"from rlvr.api.terms import hash_of_code; print(hash_of_code(eval({texts[0]!r})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == one, "in another process, whose sets have another order"
    assert hash_of_code(eval("lambda c, r: r in {'a', 'b', 'd'}")) != one
    assert hash_of_code(eval("lambda c, r=1: r in {'a', 'b', 'c'}")) != one


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no row"),
        (["text"], r"problems\[0\] must be a dict"),
        ([{"problem": "x", "answer": {1}}], r"problems\[0\] cannot be written as JSON"),
        ([{"problem": "x", "answer": math.nan}], r"problems\[0\] cannot be written as JSON"),
    ],
)
def test_rows_that_cannot_be_problems_are_said(rows: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(rlvr.RecipeError, match=message):
        write_rows(rows, tmp_path / "problems.jsonl", "problems")


# -- train and evaluate ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_train_go_on_and_evaluate_with_rows_and_functions(workspace: Workspace) -> None:
    """Three runs in one process: all steps, half of them, and the other half from the checkpoint: the same numbers."""

    def even(completion: str, reference: str) -> bool:
        return sum(completion.count(letter) for letter in reference) % 2 == 0

    recipe = rlvr.load_recipe(workspace.recipe)
    with elsewhere(workspace.folder):
        whole = rlvr.train(recipe, problems=ROWS, rewards=[even], eval_problems=HELD_OUT)
        assert [line["step"] for line in whole.metrics] == [0, 1, 2, 3, 4]
        assert whole.model_path.name == "step_000004"
        assert whole.evaluation.keys() >= {"eval/eval/pass@1"}
        rollouts = list(whole.rollouts)
        assert {one["step"] for one in rollouts} == {1, 2, 3, 4}
        assert len(rollouts) == 4 * 16
        assert rlvr.RunResult(whole.folder).metrics == whole.metrics

        half_way = {"name": "half", "run.steps": 2}
        given: dict[str, Any] = {"problems": ROWS, "rewards": [even], "eval_problems": {"eval": HELD_OUT}}
        rlvr.train(recipe, overrides=half_way, **given)
        with pytest.raises(rlvr.RecipeError, match="cannot go on with these"):
            rlvr.train(recipe, overrides={"name": "half"}, **given | {"problems": ROWS[1:]})
        other = {"rewards": [{"name": "even", "verifier": lambda completion, reference: 1.0}]}
        with pytest.raises(rlvr.RecipeError, match=r"rewards\.terms\.0\.args\.code"):
            rlvr.train(recipe, overrides={"name": "half"}, **given | other)
        half_run = rlvr.train(recipe, overrides={"name": "half"}, **given)
        policies = [(one.model_path / "model.safetensors").read_bytes() for one in (whole, half_run)]
        assert policies[0] == policies[1]
        assert yaml.safe_load((half_run.folder / "recipe.yaml").read_text())["problems"]["train"]["type"] == "jsonl"

        measured = rlvr.evaluate(whole, problems=ROWS, overrides={"problems.eval.0.temperature": 0.0})
        assert 0.0 <= measured["eval/eval/pass@1"] <= 1.0
        assert measured["eval/eval/problems"] == len(ROWS)
        by_model = rlvr.evaluate("model", recipe=recipe, problems={"mine": ROWS[:3]}, rewards=[even])
        assert by_model["eval/mine/problems"] == 3.0
        with pytest.raises(rlvr.RecipeError, match="names no eval set"):
            rlvr.evaluate(recipe)
        with pytest.raises(rlvr.RecipeError, match="is a model; give also recipe"):
            rlvr.evaluate("model")
