"""Every recipe is complete, loads, and resolves to parts that exist; what needs a GPU is run as far as a CPU goes."""

import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from rewards import Outcome
from rewards.spec import VerifierSpec
from rlvr.config import Recipe, json_schema, load_recipe
from rlvr.config.problems import Arithmetic, Countdown, JsonLinesConfig
from rlvr.engines.make import make_engine
from rlvr.engines.restarting import RestartingEngine
from rlvr.engines.vllm.engine import VllmEngine
from rlvr.learn.objective import PolicyGradient
from rlvr.learn.samples import make_samples
from rlvr.problems.data import all_terms
from rlvr.problems.sources import load_problems
from rlvr.problems.templates import Renderer
from rlvr.records import Problem
from tests.builders import make_group, make_rollout
from tests.documents import ROOT, commands, commands_of_comments, faults
from tests.helpers import make_tiny_tokenizer

FOLDER = ROOT / "recipes"
DATA = ROOT / "tests/data"
PATHS = sorted(FOLDER.glob("*.yaml"))
GPU = [path for path in PATHS if "no GPU was at hand" in path.read_text()]
README = (FOLDER / "README.md").read_text(encoding="utf-8")
SECTIONS = ["schema", "name", "run", "model", "template", "problems", "rewards", "rollout", "algorithm", "learner"]
SLOTS = {"filter", "baseline", "scale", "surrogate", "aggregation", "kl"}
ALL_SLOTS = SLOTS | {"truncated", "shaping", "ratio", "correction", "updates_per_batch"}

each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
each_gpu = pytest.mark.parametrize("path", GPU, ids=lambda path: path.stem)


def plain(path: Path) -> dict[str, Any]:
    """The recipe as YAML has it."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def tokenizer() -> PreTrainedTokenizerFast:
    """Of characters, with what the recipes' templates ask for: Qwen's tokens and a chat template."""
    made = make_tiny_tokenizer()
    made.add_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"], special_tokens=True)
    made.chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
    )
    return made


def test_the_recipes_that_are_promised_are_there() -> None:
    assert {path.stem for path in PATHS} == {
        "quickstart", "r1_zero_smollm2", "gsm8k_qwen2.5_0.5b", "math_qwen2.5_math_1.5b_dr_grpo",
        "countdown_qwen2.5_3b", "dapo_qwen2.5_7b",
    }  # fmt: skip
    assert len(GPU) == 4


@each
def test_it_loads_under_its_own_name_with_every_section_written_out(path: Path) -> None:
    recipe, written = load_recipe(path), plain(path)
    assert recipe.name == path.stem
    assert list(written) == SECTIONS
    assert set(written["algorithm"]) >= SLOTS
    assert "schedule" in written["learner"]
    assert {"steps", "output", "seed", "eval_every", "save_every", "resume"} <= set(written["run"])


@each
def test_its_comments_say_how_to_start_it(path: Path) -> None:
    shown = commands_of_comments(path.read_text(encoding="utf-8"))
    assert any(f"rlvr train recipes/{path.name}" in one for one in shown)
    assert [fault for one in shown for fault in faults(one)] == []


@each
def test_editors_find_the_schema_and_it_accepts_the_recipe(path: Path) -> None:
    assert path.read_text().splitlines()[0] == "# yaml-language-server: $schema=schema.json"
    jsonschema.validate(plain(path), json.loads((FOLDER / "schema.json").read_text()))


@pytest.mark.slow
def test_the_schema_is_current_and_refuses_an_unknown_key() -> None:
    written = (FOLDER / "schema.json").read_text()
    assert written == json.dumps(json_schema(), indent=1) + "\n", "run `make schema`"
    wrong = plain(PATHS[0])
    wrong["learner"]["lrr"] = 1
    with pytest.raises(jsonschema.ValidationError, match="lrr"):
        jsonschema.validate(wrong, json.loads(written))


@each
def test_its_verifiers_exist_and_take_their_arguments(path: Path) -> None:
    for term in all_terms(load_recipe(path)):
        verifier = VerifierSpec(term.verifier, term.args).load()
        assert verifier.lowest_score <= 0.0


@each
def test_its_engine_takes_its_settings(path: Path, tmp_path: Path) -> None:
    engine = make_engine(load_recipe(path), 512, tmp_path / "engine.log", lambda name, message: None)
    assert isinstance(engine, RestartingEngine)
    assert isinstance(engine.inner, VllmEngine)


@each
def test_its_template_renders_and_completions_can_end(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any directory: a template is found beside the recipe."""
    monkeypatch.chdir(tmp_path)
    renderer = Renderer(load_recipe(path).template, tokenizer())
    prompt = renderer.render(Problem(id="p", prompt="What is 3*7?", reference="21", key="p", source="rows:1"))
    assert "What is 3*7?" in prompt.text
    assert prompt.ids
    assert renderer.stop_token_ids


@each
def test_its_objective_makes_finite_advantages(path: Path) -> None:
    """Groups of the recipe's size, half right: filter, shaping, baseline and scale as the recipe has them."""
    recipe = load_recipe(path)
    outcomes = [Outcome.CORRECT if i % 2 else Outcome.WRONG for i in range(recipe.rollout.group_size)]
    rollouts = [make_rollout(outcome, tokens=3 + i, sample=i) for i, outcome in enumerate(outcomes)]
    groups = [make_group(*rollouts, problem=name) for name in ("a", "b")]
    samples, counts = make_samples(groups, recipe.algorithm, step=1)
    assert counts["groups/trained"] == 2
    assert all(math.isfinite(one.advantage) for one in samples)
    assert all(
        (one.advantage > 0) == (outcome is Outcome.CORRECT) for one, outcome in zip(samples, outcomes * 2, strict=True)
    )
    assert PolicyGradient(recipe.algorithm, recipe.rollout.temperature).updates == recipe.algorithm.updates_per_batch


@pytest.mark.slow
@each
def test_its_generated_problems_can_be_made_and_graded(path: Path) -> None:
    """Every source that needs no download: all its problems, their references asked of the recipe's own verifiers."""
    recipe = load_recipe(path)
    for source, terms in [(recipe.problems.train, recipe.rewards.terms)] + [
        (one.source, one.terms or recipe.rewards.terms) for one in recipe.problems.eval
    ]:
        if isinstance(source, Countdown):
            source = source.model_copy(update={"size": min(source.size, 600)})
        if isinstance(source, Arithmetic | Countdown):
            problems = load_problems(source)
            verifiers = [VerifierSpec(term.verifier, term.args).load() for term in terms]
            for problem in problems:
                for verifier in verifiers:
                    verifier.check_reference(problem.reference)


# ------------------------------------------------------------------------------------------------- recipes for GPUs


@each_gpu
def test_it_says_that_it_was_not_run_how_to_launch_it_and_on_several_gpus(path: Path) -> None:
    text = path.read_text()
    assert text.splitlines()[1] == "# not yet run: no GPU was at hand"
    shown = commands_of_comments(text)
    assert any("launch/ddp.yaml" in one or "launch/fsdp2.yaml" in one for one in shown)
    assert any("launch/gpu.yaml" in one for one in shown) or "does not fit one GPU" in text
    assert set(plain(path)["algorithm"]) >= ALL_SLOTS
    assert re.search(r"arXiv|github\.com", text)


def loaded(stem: str, *overrides: str) -> Recipe:
    return load_recipe(FOLDER / f"{stem}.yaml", overrides)


def test_dr_grpo_has_no_bias_and_the_papers_batch() -> None:
    """2503.20783: no standard deviation, a constant for length, 128 samples an update, greedy evaluation."""
    recipe = loaded("math_qwen2.5_math_1.5b_dr_grpo")
    algorithm, rollout = recipe.algorithm, recipe.rollout
    assert algorithm.scale.type == "none"
    assert algorithm.aggregation.type == "sequence_sum"
    assert algorithm.aggregation.length == rollout.max_new_tokens == 3000
    assert rollout.prompts_per_step * rollout.group_size / algorithm.updates_per_batch == 128
    assert (rollout.group_size, recipe.learner.lr, recipe.template.type) == (8, 1e-6, "qwen_math")
    assert {one.name: (one.temperature, one.samples) for one in recipe.problems.eval} == dict.fromkeys(
        ("math500", "aime24", "amc23"), (0.0, 1)
    )


def test_dapo_has_the_papers_numbers() -> None:
    """2503.14476, 4.1: 512 x 16, updates on 512 samples, warm-up of 20 steps; the punishment ends where completions do,
    and is half of the distance between right and wrong."""
    recipe = loaded("dapo_qwen2.5_7b")
    algorithm, rollout = recipe.algorithm, recipe.rollout
    (overlong,) = algorithm.shaping
    assert (rollout.prompts_per_step, rollout.group_size) == (512, 16)
    assert 512 * 16 / algorithm.updates_per_batch == 512
    assert recipe.learner.schedule.warmup_steps == 20 * algorithm.updates_per_batch
    assert (algorithm.surrogate.low, algorithm.surrogate.high) == (0.2, 0.28)
    assert overlong.max_tokens == rollout.max_new_tokens
    assert overlong.weight == recipe.rewards.terms[0].weight / 2
    assert (algorithm.filter.type, algorithm.aggregation.type, algorithm.kl.type) == ("drop", "token_mean", "none")


def test_gsm8k_from_local_files_keeps_train_and_test_apart() -> None:
    """The recipe as README starts it without the hub, on 400 rows of either file: each loads and can be graded."""
    source = (
        f"problems.train={{type: jsonl, path: {DATA / 'gsm8k_train.jsonl'}, prompt: question, reference_format: gsm8k}}"
    )
    recipe = loaded("gsm8k_qwen2.5_0.5b", source, f"problems.eval.0.source.path={DATA / 'gsm8k_test.jsonl'}")
    assert isinstance(recipe.problems.train, JsonLinesConfig)
    train, test = load_problems(recipe.problems.train), load_problems(recipe.problems.eval[0].source)
    assert (len(train), len(test)) == (400, 400)
    assert not {one.key for one in train} & {one.key for one in test}
    verifier = VerifierSpec(recipe.rewards.terms[0].verifier, recipe.rewards.terms[0].args).load()
    for problem in [*train, *test]:
        verifier.check_reference(problem.reference)
    assert verifier.grade(r"so \boxed{72}", train[0].reference).outcome is Outcome.CORRECT


def test_every_reference_of_gsm8k_can_be_graded(tmp_path: Path) -> None:
    """What stands after ``####`` anywhere in its 8792 rows: 983 numbers, some negative, some with thousands commas."""
    references = (DATA / "gsm8k_references.txt").read_text(encoding="utf-8").split()
    rows = [{"question": f"q{index}", "answer": f"so\n#### {number}"} for index, number in enumerate(references)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = f"problems.train={{type: jsonl, path: {path}, prompt: question, reference_format: gsm8k}}"
    recipe = loaded("gsm8k_qwen2.5_0.5b", source)
    verifier = VerifierSpec(recipe.rewards.terms[0].verifier, recipe.rewards.terms[0].args).load()
    problems = load_problems(recipe.problems.train)
    assert len(problems) == len(references) == 983
    for problem, number in zip(problems, references, strict=True):
        verifier.check_reference(problem.reference)
        verdict = verifier.grade(rf"so \boxed{{{number}}}", problem.reference)
        assert verdict.outcome is Outcome.CORRECT, number


@pytest.mark.parametrize("name", ["math500", "aime24", "amc23"])
def test_the_benchmarks_of_the_math_recipe_can_be_graded(name: str) -> None:
    recipe = loaded("math_qwen2.5_math_1.5b_dr_grpo")
    place = [one.name for one in recipe.problems.eval].index(name)
    recipe = loaded(recipe.name, f"problems.eval.{place}.source.path={DATA / f'{name}.jsonl'}")
    verifier = VerifierSpec(recipe.rewards.terms[0].verifier, recipe.rewards.terms[0].args).load()
    problems = load_problems(recipe.problems.eval[place].source)
    assert len(problems) == {"math500": 500, "aime24": 30, "amc23": 83}[name]
    for problem in problems:
        verifier.check_reference(problem.reference)


# ------------------------------------------------------------------------------------------------- recipes/README.md


@pytest.mark.parametrize("command", commands(README))
def test_each_command_of_the_readme_works(command: str) -> None:
    assert faults(command) == []


def test_the_readme_lists_each_recipe_and_what_was_measured() -> None:
    rows = dict(re.findall(r"^\| \[([\w.]+)\]\(\1\.yaml\).*\| ([^|]+) \|$", README, re.MULTILINE))
    assert set(rows) == {path.stem for path in PATHS}
    assert {stem for stem, status in rows.items() if status == "not yet run"} == {path.stem for path in GPU}
    for path in PATHS:
        if path not in GPU:
            assert f"\n## {path.stem}\n" in README
