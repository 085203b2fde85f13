"""From where a run goes on, with which settings, and what it says about both."""

from __future__ import annotations

import json
import os
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from rlvr.__main__ import main
from rlvr.config import load_recipe
from rlvr.runlog.run_log import read_metrics
from rlvr.state import checkpoint
from rlvr.state.checkpoint import manifest_bytes
from rlvr.state.resume import ABSENT, FIXED, MAY_CHANGE, differences
from tests.runs import Workspace, assert_same_weights, elsewhere

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def work(workspace: Workspace) -> Workspace:
    workspace.recipe["rollout"] |= {"prompts_per_step": 2, "group_size": 2, "max_new_tokens": 4}
    workspace.recipe["run"] |= {"steps": 2, "save_every": 1, "keep": 9}
    return workspace


def recipe_of(work: Workspace, *overrides: str) -> Any:
    with elsewhere(work.folder):
        work.save_recipe()
        return load_recipe("recipe.yaml", list(overrides))


def steps(work: Workspace, name: str = "run") -> list[int]:
    return [line["step"] for line in read_metrics(work.results(name))]


def test_differences_are_named_by_key_with_both_values(work: Workspace) -> None:
    saved = recipe_of(work).model_dump(mode="json", by_alias=True)
    assert differences(saved, recipe_of(work)) == {}
    changed = recipe_of(
        work, "learner.lr=0.5", "rollout.group_size=8", "algorithm.kl={type: k3}", "learner.betas=[0.9, 0.99]"
    )
    assert differences(saved, changed) == {
        "learner.lr": (0.01, 0.5),
        "rollout.group_size": (2, 8),
        "algorithm.kl.type": ("none", "k3"),
        "algorithm.kl.coefficient": (ABSENT, 0.001),
        "algorithm.kl.place": (ABSENT, "loss"),
        "algorithm.kl.corrected": (ABSENT, False),
        "algorithm.kl.reference.type": (ABSENT, "fixed"),
        "learner.betas.1": (0.95, 0.99),
    }


def test_a_key_that_is_younger_than_the_checkpoint_has_its_default_there(work: Workspace) -> None:
    saved = recipe_of(work).model_dump(mode="json", by_alias=True)
    del saved["run"]["keep_every"], saved["rollout"]["engine"]["max_batch"]
    assert differences(saved, recipe_of(work)) == {}
    saved["run"]["gone"] = 3  # and one that only an older rlvr knew is shown
    assert differences(saved, recipe_of(work))["run.gone"] == (3, ABSENT)


def test_each_pattern_of_what_may_change_fits_a_key_of_the_recipe(work: Workspace) -> None:
    """A key that was renamed must not stay free under its old name."""
    full = recipe_of(
        work, "problems.eval=[{name: e, source: {type: jsonl, path: x}}]", "run.trackers=[wandb]",
        "run.keep_best={metric: x}", "sft={path: x, steps: 1}",
        "rewards.terms.0.args={pickle_file: x}",
    )  # fmt: skip
    keys = set(differences({}, full))
    unused = [pattern for pattern in MAY_CHANGE if not any(fnmatchcase(key, pattern) for key in keys)]
    assert unused == []
    fixed = {key for key in keys if key in FIXED or not any(fnmatchcase(key, pattern) for pattern in MAY_CHANGE)}
    assert {key for key in keys if key.startswith("algorithm.")} <= fixed
    assert sorted(key for key in fixed if not key.startswith("algorithm.")) == DECIDES_WHAT_IS_TRAINED


DECIDES_WHAT_IS_TRAINED = [
    "learner.optimizer", "model.autocast", "model.dtype", "model.head_dtype", "model.lora", "model.path",
    "model.prepare", "problems.difficulty", "problems.keep", "problems.overlap", "problems.sampler.memory",
    "problems.sampler.rest", "problems.sampler.retire_at", "problems.sampler.success", "problems.sampler.type",
    "problems.too_long", "rewards.terms.0.gate", "rewards.terms.0.name", "rewards.terms.0.verifier",
    "rewards.terms.0.weight", "rollout.group_size", "rollout.min_p", "rollout.probe", "rollout.prompts_per_step",
    "rollout.repetition", "rollout.schedule.type", "rollout.stall_timeout", "rollout.temperature", "rollout.top_k",
    "rollout.top_p", "rollout.workflow", "run.seed", "schema", "template.prefill", "template.stop", "template.system",
    "template.type",
]  # fmt: skip
"""Keys that a run may not change on its way, besides all of ``algorithm``: a new key has to be put here or in
`MAY_CHANGE`, and one that a wider pattern would set free is missed here."""


@pytest.mark.slow
def test_what_may_change_is_applied_and_said_and_what_may_not_stops_the_run(
    work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert work.run("run.steps=1") == 0
    capsys.readouterr()
    assert work.run("run.seed=3", "rollout.group_size=4", "learner.lr=0.5") == 2
    said = capsys.readouterr().err
    for part in ("what a run may not change", "  rollout.group_size: 2 -> 4", "  run.seed: 0 -> 3", "set them back"):
        assert part in said
    assert "learner.lr" not in said
    assert work.run("learner.optimizer=adamw_8bit") == 2
    assert "  learner.optimizer: 'adamw' -> 'adamw_8bit'" in capsys.readouterr().err
    assert steps(work) == [1]

    assert work.run("run.steps=2", "learner.lr=0.5") == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("checkpoint: learner.lr: 0.01 -> 0.5", "checkpoint: run.steps: 1 -> 2", "goes on after step 1, from",
                 "restored: policy", "run: done 1", "learner: updates 2, optimizer, random",
                 "sampler: epoch 0, position 2"):  # fmt: skip
        assert part in said
    assert [line["update/lr"] for line in read_metrics(work.results())] == [0.01, 0.5]


@pytest.mark.slow
def test_back_to_an_earlier_checkpoint_of_the_same_run(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """What came behind it is kept under another name; the lines are removed, the steps done again, the same ones."""
    assert work.run("run.steps=3") == 0
    before, weights = work.metrics(), work.weights()
    assert work.run("run.steps=3", "run.resume=runs/run/checkpoints/step_000001") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "run.resume: back to step 1; step_000003 is kept as step_000003.abandoned" in said
    assert work.metrics() == before
    assert_same_weights(work.weights(), weights)
    assert (work.results() / "checkpoints/step_000002.abandoned").is_dir()


@pytest.mark.slow
def test_a_run_that_starts_from_another_run_goes_on_by_itself(
    work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder of the other stays as it is; a second start goes on from the new run's own checkpoint."""
    assert work.run() == 0
    other = (work.results() / "metrics.jsonl").read_bytes()
    assert work.run("name=new", "run.steps=3", "run.resume=runs/run") == 0
    assert steps(work, "new") == [3]
    assert work.run("name=new", "run.steps=4", "run.resume=runs/run") == 0
    assert "this run has checkpoints of its own" in capsys.readouterr().out
    assert steps(work, "new") == [3, 4]
    assert (work.results() / "metrics.jsonl").read_bytes() == other
    assert work.run("run.steps=4") == 0
    assert_same_weights(work.weights("new"), work.weights())


@pytest.mark.parametrize(
    ("wanted", "parts"),
    [
        ("atuo", ["'atuo' is neither a checkpoint", "did you mean 'auto'?"]),
        ("runs/run/checkpoints", ["is neither a checkpoint"]),
        ("runs/empty", ["runs/empty holds no checkpoint"]),
    ],
)
def test_a_place_that_holds_nothing_is_refused(
    work: Workspace, wanted: str, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (work.folder / "runs/empty/checkpoints").mkdir(parents=True)
    assert work.run(f"run.resume={wanted}") == 2
    said = capsys.readouterr().err
    for part in ["run.resume: ", *parts]:
        assert part in said


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_or_stops_the_run(
    work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """`stop` changes nothing; `previous` goes on from the one before and ends in the same weights."""
    assert work.run("run.steps=3") == 0
    weights = {name: value.clone() for name, value in work.weights().items()}  # the file is mapped into memory
    path = work.results() / "checkpoints/step_000003/model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert work.run("run.steps=3", "run.on_damaged=stop") == 1
    said = capsys.readouterr().err
    for part in ("step_000003", "model.safetensors is damaged", "run.on_damaged: previous"):
        assert part in said
    assert path.read_bytes() == data
    assert work.run("run.steps=3") == 0
    assert "it is set aside as step_000003.damaged" in " ".join(capsys.readouterr().out.split())
    assert_same_weights(work.weights(), weights)
    assert steps(work) == [1, 2, 3]


@pytest.mark.slow
def test_a_kill_between_a_checkpoint_and_its_links_leaves_nothing_wrong(work: Workspace) -> None:
    """The same command, which finds nothing left to do, sets the links and removes what is not kept any more."""
    work.recipe["run"] |= {"keep": 1, "keep_best": {"metric": "reward/mean"}}
    assert work.run() == 0
    root = work.results() / "checkpoints"
    names = {link: os.readlink(root / link) for link in ("latest", "best")}
    last = root / names["latest"]
    shutil.copytree(last, root / "step_000001", dirs_exist_ok=True)  # one that was to be removed
    manifest = json.loads((root / "step_000001/manifest.json").read_bytes())
    del manifest["sha256"]
    manifest |= {"step": 1, "extra": manifest["extra"] | {"metrics": {}}}
    (root / "step_000001/manifest.json").write_bytes(manifest_bytes(manifest))
    for link in names:
        (root / link).unlink()
        (root / link).symlink_to("step_000001")
    assert work.run() == 0
    assert {link: os.readlink(root / link) for link in names} == names
    assert not (root / "step_000001").exists()


def to_format_2(path: Path) -> None:
    """A checkpoint as rlvr wrote it before a run kept the groups on their way."""
    state = torch.load(path / "state.pt", weights_only=True)
    del state["rollouts"], state["watch"]
    torch.save(state, path / "state.pt")
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["sha256"]
    manifest |= {"format": 2}
    manifest["files"]["state.pt"] = checkpoint.sha256(path / "state.pt")
    (path / "manifest.json").write_bytes(manifest_bytes(manifest))


@pytest.mark.slow
def test_a_checkpoint_of_an_older_format_is_refused_by_name_and_still_a_model(
    work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is changed; the message says how its weights are of use, and they are."""
    assert work.run("run.steps=1") == 0
    path = work.results() / "checkpoints/step_000001"
    to_format_2(path)
    capsys.readouterr()
    assert work.run() == 1
    said = " ".join(capsys.readouterr().err.split())
    for part in ("step_000001 has format 2", "go on from format 3", "name=... model.path="):
        assert part in said
    with elsewhere(work.folder):
        assert main(["export", "runs/run", "out"]) == 0
    assert work.run("name=anew", "run.steps=1", "model.path=runs/run/checkpoints/step_000001") == 0


@pytest.mark.slow
def test_the_problems_themselves_may_not_change(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe is the same, the file is not."""
    assert work.run("run.steps=1") == 0
    work.write_problems([{"problem": f"What is {a}?", "answer": "aeiou"} for a in range(12)])
    assert work.run() == 1
    assert "the checkpoint was drawing from other problems" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_is_a_model_and_is_exported_as_one(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """`rlvr eval` reads its folder as it is; `rlvr export` leaves the state out, checks every file, converts if asked;
    a damaged one is refused."""
    assert work.run() == 0
    work.write_problems([{"problem": "Say 1", "answer": "aeiou"}], "eval.jsonl")
    work.recipe["problems"]["eval"] = [
        {"name": "held_out", "source": {"type": "jsonl", "path": "eval.jsonl"}, "samples": 2, "k": [1]}
    ]
    assert work.run("model.path=runs/run/checkpoints/latest", command="eval") == 0
    with elsewhere(work.folder):
        assert main(["export", "runs/run", "out/one"]) == 0
        assert main(["export", "runs/run/checkpoints/step_000001", "out/two", "--dtype", "bfloat16"]) == 0
        assert main(["export", "runs/run", "out/one"]) == 2
        assert main(["export", "grader.py", "out/three"]) == 2
    names = {path.name for path in (work.folder / "out/one").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not {"state.pt", "manifest.json"} & names
    weights = work.weights()
    exported = dict(AutoModelForCausalLM.from_pretrained(work.folder / "out/one").named_parameters())
    for name, value in exported.items():
        assert torch.equal(value, weights[name]), name
    halves = AutoModelForCausalLM.from_pretrained(work.folder / "out/two", dtype="auto")
    assert {value.dtype for value in halves.parameters()} == {torch.bfloat16}
    for name, value in halves.named_parameters():
        assert torch.equal(value, work.weights(step="step_000001")[name].bfloat16()), name
    (work.results() / "checkpoints/latest/config.json").write_text("{}")
    capsys.readouterr()
    with elsewhere(work.folder):
        assert main(["export", "runs/run", "out/four"]) == 1
    assert "config.json is damaged" in capsys.readouterr().err


SURROGATE = '''
def surrogate(tokens):
    """Infinite for the second sample of a micro-batch."""
    loss = -tokens.trainer_logprobs * tokens.advantages
    return loss + (tokens.completions.sequence == 1) * loss.detach().exp() * float("inf")
'''


@pytest.mark.slow
def test_a_batch_that_is_not_finite_is_kept_and_replayed(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The run stops and names the command; replayed, the sample that did it is named, with its micro-batch's gradient;
    what is kept is the policy as it was: that of the start."""
    work.write("plug_ins.py", SURROGATE)
    work.recipe["algorithm"] |= {"surrogate": {"type": "plug_ins:surrogate"}, "filter": {"type": "keep"}}
    assert work.run() == 1
    said = capsys.readouterr().err
    for part in (
        "NonFiniteError: optimiser step 1: loss is",
        "The batch is kept: rlvr replay runs/run/non_finite/step_000001",
    ):
        assert part in said
    kept = work.results() / "non_finite/step_000001"
    assert yaml.safe_load((kept / "recipe.yaml").read_text())["name"] == "run"
    with elsewhere(work.folder):
        assert main(["replay", "runs/run/non_finite/step_000001"]) == 2
        assert "names plug_ins:surrogate, which replay would import and run" in capsys.readouterr().err
        assert main(["replay", "runs/run/non_finite/step_000001", "--run-plugins"]) == 0
        table = capsys.readouterr().out
        assert main(["replay", "runs/run"]) == 2
    assert "samples are not finite" in table
    rows = [row for row in table.splitlines() if row.startswith("│")]
    assert any("inf" in row or "nan" in row for row in rows)
    with elsewhere(work.folder):
        assert work.run("learner.non_finite=skip", "name=skipped") == 0
    assert [line["update/non_finite"] for line in read_metrics(work.results("skipped"))] == [2.0, 2.0]
