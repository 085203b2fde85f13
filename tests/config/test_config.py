import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rlvr.config import Recipe, RecipeError, json_schema, load_recipe, nearest
from tests.builders import recipe_data

DELETE = object()


def with_values(**changes: Any) -> dict[str, Any]:
    """The smallest recipe with other values: ``with_values(run__steps=3)``; DELETE takes a key out."""
    data = copy.deepcopy(recipe_data())
    for key, value in changes.items():
        *path, last = key.split("__")
        place: Any = data
        for name in path:
            place = place[int(name) if name.isdigit() else name]
        if value is DELETE:
            del place[last]
        else:
            place[last] = value
    return data


def load(folder: Path, content: dict[str, Any] | str, overrides: Sequence[str] = ()) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return load_recipe(path, overrides)


def refusal(folder: Path, content: dict[str, Any] | str, overrides: Sequence[str] = ()) -> str:
    """What the refusal says, without its first line where there are several."""
    with pytest.raises(RecipeError) as caught:
        load(folder, content, overrides)
    message = str(caught.value)
    assert "recipe" in message or "override" in message
    return message.partition("cannot be run:\n")[2].strip() or message


def test_the_smallest_recipe(tmp_path: Path) -> None:
    assert load(tmp_path, recipe_data()) == Recipe.model_validate(recipe_data())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rollot": {}},
            "rollot: unknown key (did you mean 'rollout'?); known here: algorithm, dpo, learner, model, name, ",
        ),
        (
            {"learner__lrr": 1},
            "learner.lrr: unknown key (did you mean 'lr'?); known here: betas, epsilon, head_chunk, ",
        ),
        ({"run__insist": True}, "run.insist: this key is now called 'force'; rename it"),
        ({"rollout__patience": 60.0}, "rollout.patience: this key is now called 'stall_timeout'; rename it"),
        (
            {"rollout__schedule": {"type": "partial", "beyond": "drop"}},
            "rollout.schedule.beyond: this key is now called 'on_stale'; rename it",
        ),
        (
            {"rollout__engine": {"type": "vllm_servers", "start": 2}},
            "rollout.engine.start: this key is now called 'devices'; rename it",
        ),
        (
            {"model__autocast": "float16"},
            "model.autocast: must be none or bfloat16, got 'float16': gradients would need loss scaling; use bfloat16",
        ),
        ({"schema_version": 1}, "schema_version: unknown key (did you mean 'schema'?)"),
        ({"rollout__zzz": 1}, "rollout.zzz: unknown key; known here: engine, group_size, "),
        (
            {"rollout__engine": {"type": "hf", "max_batchh": 1}},
            "rollout.engine.max_batchh: unknown key (did you mean 'max_batch'?); known here: dtype, max_batch, type",
        ),
        (
            {"algorithm": {"surrogate": {"type": "clip", "lo": 0.1}}},
            "algorithm.surrogate.lo: unknown key (did you mean 'low'?); known here: dual, high, low, type",
        ),
        (
            {"algorithm": {"surrogate": {"type": "reinforce", "low": 0.1}}},
            "algorithm.surrogate.low: unknown key; known here: type",
        ),
        (
            {"algorithm": {"shaping": [{"type": "soft_overlong", "max_tokens": 16, "buffer": 3, "wait": 1}]}},
            "algorithm.shaping.0.wait: unknown key (did you mean 'weight'?); known here: buffer, max_tokens",
        ),
        (
            {"algorithm": {"baseline": {"type": "mine:f", "arg": {}}}},
            "algorithm.baseline.arg: unknown key (did you mean 'args'?); known here: args, type",
        ),
        ({"rewards__terms__0__wight": 1}, "rewards.terms.0.wight: unknown key (did you mean 'weight'?)"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(tmp_path, with_values(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run__steps": "many"}, "run.steps: Input should be a valid integer, got 'many'"),
        ({"run__steps": "4"}, "run.steps: Input should be a valid integer, got '4'"),
        ({"run__steps": True}, "run.steps: Input should be a valid integer, got True"),
        ({"run__steps": 1.5}, "run.steps: Input should be a valid integer, got 1.5"),
        ({"run__steps": 0}, "run.steps: Input should be greater than 0, got 0"),
        ({"run__log_rollouts": 1}, "run.log_rollouts: Input should be a valid boolean, got 1"),
        ({"run__trackers": "wandb"}, "run.trackers: must be a list, got 'wandb'; write [wandb]"),
        ({"template__stop": "</answer>"}, "template.stop: must be a list, got '</answer>'; write [</answer>]"),
        ({"rewards__terms": {}}, "rewards.terms: must be a list, got {}"),
        (
            {"run__trackers": ["wandbb"]},
            "run.trackers.0: got 'wandbb', must be one of wandb, tensorboard (did you mean ",
        ),
        ({"run": None}, "run: must be a section of keys and values, got None"),
        ({"run": [1]}, "run: must be a section of keys and values, got [1]"),
        ({"name": 7}, "name: Input should be a valid string, got 7"),
        ({"name": "a/b"}, "name: String should match pattern"),
        (
            {"model__dtype": "float23"},
            "model.dtype: got 'float23', must be one of float32, bfloat16 (did you mean 'float32'?)",
        ),
        ({"learner__lr": float("inf")}, "learner.lr: Input should be a finite number, got inf"),
        ({"learner__lr": float("nan")}, "learner.lr: Input should be a finite number, got nan"),
        ({"learner__betas": [0.9]}, "learner.betas.1: this item is missing"),
        ({"learner__betas": [0.9, 1.0]}, "learner.betas.1: Input should be less than 1, got 1.0"),
        ({"schema": 2}, "schema: got 2, must be one of 1"),
        ({"model": DELETE}, "model: this key is missing"),
        ({"rewards__terms": []}, "rewards.terms: List should have at least 1 item after validation, not 0, got []"),
        (
            {"rewards__terms__0__verifier": "rewards.math"},
            "rewards.terms.0.verifier: must be an import path, module:name",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_rule(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    assert message in refusal(tmp_path, with_values(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rollout__engine": {"type": "vlm"}},
            "rollout.engine: type is 'vlm', must be one of vllm, vllm_servers, hf (did you mean 'vllm'?)",
        ),
        ({"rollout__engine": {"type": 3}}, "rollout.engine: type is 3, must be one of vllm, vllm_servers, hf"),
        (
            {"rollout__engine": {"max_batch": 1}},
            "rollout.engine: must be {type: vllm | vllm_servers | hf, ...}, got {'max_batch': 1}",
        ),
        ({"rollout__engine": "hf"}, "rollout.engine: must be {type: vllm | vllm_servers | hf, ...}, got 'hf'"),
        (
            {"algorithm": {"surrogate": {"type": "clipp"}}},
            "algorithm.surrogate: type is 'clipp', must be one of clip, reinforce, cispo, sapo, gmpo, vespo, dppo, "
            "clip_cov, kl_cov, squared, module:name (did you mean 'clip'?)",
        ),
        (
            {"algorithm": {"surrogate": "clip"}},
            "algorithm.surrogate: must be {type: clip | reinforce | cispo | sapo | gmpo | vespo | dppo | clip_cov | "
            "kl_cov | squared | module:name, ...}, got 'clip'",
        ),
        (
            {"algorithm": {"surrogate": None}},
            "algorithm.surrogate: must be {type: clip | reinforce | cispo | ",
        ),
        (
            {"algorithm": {"surrogate": {"type": "a:b c"}}},
            "algorithm.surrogate.type: must be an import path, module:name, got 'a:b c'",
        ),
        (
            {"algorithm": {"kl": {"type": "k4"}}},
            "algorithm.kl: type is 'k4', must be one of none, k1, k2, k3",
        ),
        (
            {"algorithm": {"surrogate": {"type": "clip", "low": "x"}}},
            "algorithm.surrogate.low: Input should be a valid number",
        ),
    ],
)
def test_a_wrong_slot_is_refused_with_the_types_it_takes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(tmp_path, with_values(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rollout__group_size": 1},
            "rollout.group_size must be at least 2, got 1: baseline 'mean' with scale 'group_std'",
        ),
        (
            {"rollout__group_size": 1, "algorithm": {"baseline": {"type": "none"}}},
            "rollout.group_size must be at least 2, got 1: baseline 'none' with scale 'group_std'",
        ),
        (
            {"rollout__group_size": 1, "algorithm": {"baseline": {"type": "leave_one_out"}, "scale": {"type": "none"}}},
            "rollout.group_size must be at least 2, got 1: baseline 'leave_one_out' with scale 'none'",
        ),
        ({"algorithm": {"updates_per_batch": 3}}, "updates_per_batch must divide rollout.prompts_per_step = 4, got 3"),
        (
            {"algorithm": {"ratio": {"against": "behaviour"}, "correction": {"type": "truncate"}}},
            "use ratio.against: recomputed or correction: none",
        ),
        (
            {"algorithm": {"shaping": [{"type": "soft_overlong", "max_tokens": 17, "buffer": 3}]}},
            "soft_overlong.max_tokens must be at most rollout.max_new_tokens = 16",
        ),
        (
            {"algorithm": {"shaping": [{"type": "soft_overlong", "max_tokens": 8, "buffer": 8}]}},
            "algorithm.shaping.0: buffer must be below max_tokens = 8, got 8",
        ),
        (
            {"algorithm": {"correction": {"type": "mask", "low": 2.0}}},
            "bounds must lie around 1, got low 2.0, high 5.0",
        ),
        ({"template": {"type": "jinja"}}, "template: path belongs to type 'jinja' and only to it"),
        (
            {"rewards__terms__0__gate": "answer"},
            "gate of term 'answer' must name another term of ['answer'], got 'answer'",
        ),
    ],
)
def test_settings_that_cannot_work_together_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(tmp_path, with_values(**changes))


def test_the_best_checkpoint_is_chosen_by_an_eval_set_that_exists(tmp_path: Path) -> None:
    best = with_values(run__keep_best={"metric": "eval/nope/pass@1"})
    said = "run.keep_best.metric must name an eval set, eval/NAME/..., got 'eval/nope/pass@1'; problems.eval has none"
    assert said in refusal(tmp_path, best)
    best["problems"]["eval"] = [{"name": "nope", "source": {"type": "jsonl", "path": "e.jsonl"}}]
    assert load(tmp_path, best).run.keep_best is not None


def test_what_makes_the_files_model_makes_no_other(tmp_path: Path) -> None:
    """An override of the path alone leaves nothing that would make SmolLM2 in a folder called Qwen."""
    made = with_values(model={"path": "models/a", "prepare": "module:make_a"})
    assert load(tmp_path, made).model.prepare == "module:make_a"
    assert load(tmp_path, made, ["model.path=models/a"]).model.prepare == "module:make_a"
    assert load(tmp_path, made, ["model.path=Qwen/Qwen2.5-0.5B"]).model.prepare is None
    both = ["model.path=models/b", "model.prepare=module:make_b"]
    assert load(tmp_path, made, both).model.prepare == "module:make_b"
    named_again = ["model.path=models/b", "model.prepare=module:make_a"]
    assert load(tmp_path, made, named_again).model.prepare == "module:make_a"


def test_a_group_of_one_is_enough_where_nothing_is_compared(tmp_path: Path) -> None:
    algorithm = {"baseline": {"type": "none"}, "scale": {"type": "none"}}
    assert load(tmp_path, with_values(rollout__group_size=1, algorithm=algorithm)).rollout.group_size == 1


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, with_values(run__steps=0, model__dtype="int8", learner__lr=-1, odd=1))
    assert len(message.splitlines()) == 4


def test_a_plug_in_takes_any_arguments(tmp_path: Path) -> None:
    slot = {"type": "my.module:my_loss", "args": {"x": 1.5, "deep": {"y": [1, None]}}}
    recipe = load(tmp_path, with_values(algorithm={"surrogate": slot, "baseline": slot, "shaping": [slot]}))
    assert recipe.algorithm.surrogate.model_dump() == slot
    assert recipe.algorithm.shaping[0].model_dump() == slot


# --------------------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2", "is not YAML: while parsing a flow sequence"),
        ("run:\n\tsteps: 1", "is not YAML: while scanning for the next token"),
        ("a: 1\na: 2", "the key 'a' stands here twice\n  in \"<unicode string>\", line 2, column 1"),
        ("schema: 1\nrun:\n  steps: 1\n  steps: 2", "the key 'steps' stands here twice"),
        ("list:\n- {a: 1, a: 2}", "the key 'a' stands here twice"),
        ("? [1, 2]\n: 3", "the key [1, 2] is not a name"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: \x00", "special characters are not allowed"),
        ("- 1\n- 2", "must be a mapping of sections, got list"),
        ("", "must be a mapping of sections, got NoneType"),
        ("text", "must be a mapping of sections, got str"),
    ],
)
def test_what_is_not_a_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    found = refusal(tmp_path, text)
    assert message in found
    assert "recipe.yaml" in found


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-6", 1e-6), ("1E-6", 1e-6), ("+2e3", 2000.0), ("1.5e-6", 1.5e-6), (".5", 0.5), ("1", 1.0), ("1_0e-3", 0.01)],
)
def test_numbers_are_read_as_everybody_writes_them(tmp_path: Path, text: str, value: float) -> None:
    """YAML 1.1, which PyYAML reads, takes 1e-6 for a string."""
    content = yaml.safe_dump(recipe_data()).replace("lr: 1.0e-05", f"lr: {text}")
    assert load(tmp_path, content).learner.lr == value
    assert load(tmp_path, recipe_data(), [f"learner.lr={text}"]).learner.lr == value


@pytest.mark.parametrize("text", ["e5", "1e", "1e5x", "0x1e-6"])
def test_what_only_looks_like_a_number_stays_a_string(tmp_path: Path, text: str) -> None:
    assert f"Input should be a valid number, got '{text}'" in refusal(tmp_path, with_values(learner__lr=text))


def test_anchors_and_merge_keys_are_yaml_too(tmp_path: Path) -> None:
    """A key beside ``<<`` overrides the merged one; that is not a doubled key."""
    data = with_values(rewards=DELETE)
    text = yaml.safe_dump(data) + (
        "rewards:\n  terms:\n  - &first {name: answer, verifier: 'm:C', weight: 2.0}\n  - {<<: *first, name: other}\n"
    )
    recipe = load(tmp_path, text)
    assert [(term.name, term.weight) for term in recipe.rewards.terms] == [("answer", 2.0), ("other", 2.0)]


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    load(tmp_path, recipe_data())
    with pytest.raises(RecipeError, match=r"recipe '.*recipes\.yaml' does not exist \(did you mean 'recipe\.yaml'\?\)"):
        load_recipe(tmp_path / "recipes.yaml")
    with pytest.raises(RecipeError, match=r"does not exist; `rlvr recipes` lists"):
        load_recipe(tmp_path / "nowhere/recipe.yaml")
    with pytest.raises(RecipeError, match=r"is a folder; name a YAML file: it holds recipe\.yaml"):
        load_recipe(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(RecipeError, match=r"is a run's folder; the recipe of that run is .*recipe\.yaml\."):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(RecipeError, match="cannot be read: 'utf-8' codec"):
        load_recipe(tmp_path / "latin.yaml")


# ---------------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("run.steps=7", ("run", "steps"), 7),
        ("run.output=a=b", ("run", "output"), "a=b"),
        ("run.eval_every=null", ("run", "eval_every"), None),
        ("run.trackers=[wandb, tensorboard]", ("run", "trackers"), ["wandb", "tensorboard"]),
        ("rewards.terms.0.weight=0.5", ("rewards", "terms", 0, "weight"), 0.5),
        ("rewards.terms.0={name: x, verifier: 'a:b'}", ("rewards", "terms", 0, "name"), "x"),
        ("model={path: other}", ("model", "path"), "other"),
        ("algorithm.kl.type=k3", ("algorithm", "kl", "type"), "k3"),
        ("algorithm.surrogate.type=my_module:loss", ("algorithm", "surrogate", "type"), "my_module:loss"),
        ("sft={path: x, steps: 3}", ("sft", "steps"), 3),
    ],
)
def test_overrides(tmp_path: Path, override: str, path: tuple[str | int, ...], value: Any) -> None:
    place: Any = load(tmp_path, recipe_data(), [override]).model_dump()
    for name in path:
        place = place[name]
    assert place == value


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert load(tmp_path, recipe_data(), ["run.steps=1", "run.steps=2"]).run.steps == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.steps", "override 'run.steps' must look like section.key=value"),
        ("=3", "must look like section.key=value"),
        ("run..steps=3", "must look like section.key=value"),
        (".run=3", "must look like section.key=value"),
        ("run.=3", "must look like section.key=value"),
        ("run.steps=[1", "the value is not YAML"),
        ("run.steps.x=3", "'steps' holds a value, not a section"),
        ("rewards.terms.1.weight=2", "the list has items 0 to 0, '1' is none of them"),
        ("rewards.terms.-1=2", "the list has items 0 to 0, '-1' is none of them"),
        ("rewards.terms.x.weight=1", "the list has items 0 to 0, 'x' is none of them"),
        ("run.step=3", "run.step: unknown key (did you mean 'steps'?)"),
        ("runs.steps=3", "runs: unknown key (did you mean 'run'?)"),
        ("run.project=", "run.project: Input should be a valid string, got None"),
        ("run.steps=many", "run.steps: Input should be a valid integer, got 'many'"),
        ("rollout.group_size=1", "rollout.group_size must be at least 2, got 1"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    assert message in refusal(tmp_path, recipe_data(), [override])


def test_overriding_a_section_that_is_not_there_makes_it(tmp_path: Path) -> None:
    assert load(tmp_path, with_values(algorithm=DELETE), ["algorithm.epochs=2"]).algorithm.epochs == 2


# ------------------------------------------------------------------------------------------------------------- schema


def test_nearest() -> None:
    assert nearest("lrr", ["lr", "betas"]) == " (did you mean 'lr'?)"
    assert nearest("zzz", ["lr", "betas"]) == ""


def test_the_schema_knows_every_section_and_its_comments() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert set(schema["required"]) >= {"schema", "run", "model"}
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["RunConfig"]["properties"]["keep"]["description"] == "Newest checkpoints kept."


def test_a_recipe_cannot_be_changed_once_it_is_read(tmp_path: Path) -> None:
    recipe = load(tmp_path, recipe_data())
    with pytest.raises(ValueError, match="frozen"):
        recipe.run.steps = 3  # type: ignore[misc]  # that it is refused is the point


@pytest.mark.parametrize("cut", [{"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}])
@pytest.mark.parametrize(
    ("algorithm", "named"),
    [
        ({"ratio": {"against": "behaviour"}}, "algorithm.ratio.against: 'behaviour'"),
        ({"correction": {"type": "truncate"}}, "algorithm.correction: 'truncate'"),
        ({"correction": {"type": "reject"}}, "algorithm.correction: 'reject'"),
        ({"off_policy_mask": 0.1}, "algorithm.off_policy_mask: 0.1"),
        ({"squared_log_ratio": 0.001}, "algorithm.squared_log_ratio: 0.001"),
        ({"surrogate": {"type": "my:surrogate"}}, "algorithm.surrogate: 'my:surrogate'"),
    ],
)
def test_filtered_sampling_is_refused_where_both_sides_probabilities_meet(
    cut: dict[str, float], algorithm: dict[str, object], named: str
) -> None:
    """Key, value, rule and fix; the same objective without the filter, and the filter with ratios of the learner's
    alone, are fine."""
    data = recipe_data() | {"algorithm": algorithm}
    Recipe.model_validate(data)
    data["rollout"] |= cut
    ((name, value),) = cut.items()
    off = 1 if name == "top_p" else 0
    with pytest.raises(ValidationError, match=rf"rollout.{name} must be {off} with {named}, got {value:g}.*recomputed"):
        Recipe.model_validate(data)
    Recipe.model_validate(data | {"algorithm": {"updates_per_batch": 2}})


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"temperature": 0.0}, r"(?s)rollout.temperature.*greater than 0"),
        ({"top_k": 1}, "top_k must be 0 .all tokens. or at least 2, got 1"),
        ({"top_k": -1}, r"(?s)rollout.top_k.*greater than or equal to 0"),
        ({"top_p": 0.0}, r"(?s)rollout.top_p.*greater than 0"),
        ({"min_p": 1.0}, r"(?s)rollout.min_p.*less than 1"),
    ],
)
def test_sampling_that_always_gives_the_same_completion_is_refused(setting: dict[str, float], said: str) -> None:
    data = recipe_data()
    data["rollout"] |= setting
    with pytest.raises(ValidationError, match=said):
        Recipe.model_validate(data)
