"""The other commands of `rlvr`: eval, generate, sft, dpo, schema, and what all of them refuse."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlvr.__main__ import main
from rlvr.config import json_schema
from tests.runs import Workspace, elsewhere

pytestmark = pytest.mark.usefixtures("nothing_left")
"""A command ends its graders and threads."""


@pytest.fixture
def work(workspace: Workspace) -> Workspace:
    workspace.write_problems([{"problem": f"Say {i}", "answer": "aeiou 13579"} for i in range(6)], "eval.jsonl")
    workspace.recipe["problems"]["eval"] = [
        {"name": "held_out", "source": {"type": "jsonl", "path": "eval.jsonl"}, "samples": 4, "k": [1, 4]}
    ]
    return workspace


def lines(work: Workspace, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (work.folder / name).read_text().splitlines()]


@pytest.mark.slow
def test_eval_measures_the_model_and_writes_its_completions(
    work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """pass@k, maj@k and avg@k with intervals in a table; 6 x 4 rollouts in the file, the same in a repetition; the
    training problems are not even read."""
    (work.folder / "train.jsonl").unlink()
    assert work.run("--output", "completions/one.jsonl", command="eval") == 0
    table = capsys.readouterr().out
    for key in ("held_out/pass@1", "held_out/pass@4", "held_out/maj@4", "held_out/avg@4"):
        assert key in table
    assert work.run("--output", "two.jsonl", command="eval") == 0
    one, two = lines(work, "completions/one.jsonl"), lines(work, "two.jsonl")
    assert len(one) == 24
    assert [{**line, "grade_seconds": 0} for line in one] == [{**line, "grade_seconds": 0} for line in two]
    rewards = [float(str(line["reward"])) for line in one]
    assert f"{sum(rewards) / 24:.3f} [" in table


def test_generate_samples_and_says_what_can_be_learned(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The first five problems, four completions each; every problem is in one row of the table."""
    assert work.run("--problems", "5", "--output", "out.jsonl", command="generate") == 0
    said = capsys.readouterr().out
    assert "the first prompt\nWhat is 10+10?" in said
    assert "Pass rate of the policy" in said
    assert len(lines(work, "out.jsonl")) == 20
    counts = [int(row.split("│")[2]) for row in said.splitlines() if row.startswith("│")]
    assert sum(counts) == 5


def test_generate_prints_text_as_it_stands(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets of a prompt, or of what the model wrote, are no markup."""
    work.write_problems([{"problem": "[INST] Say [bold]a[/bold] [x] [/INST]", "answer": "aeiou 13579"}])
    assert work.run(command="generate") == 0
    assert "the first prompt\n[INST] Say [bold]a[/bold] [x] [/INST]" in capsys.readouterr().out


@pytest.mark.slow
def test_sft_imitates_its_rows(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The negative log-likelihood of the rows falls by half; the result is a Hugging Face folder with its tokenizer
    that generates, and is what `rlvr eval` measures."""
    work.write_problems([{"prompt": f"Say {c}", "completion": c * 3} for c in "abcd"], "sft.jsonl")
    work.recipe["sft"] = {"path": "sft.jsonl", "steps": 30, "batch_size": 4}
    assert work.run(command="sft") == 0
    said = capsys.readouterr().out
    losses = [float(line.split("loss ")[1].split()[0]) for line in said.splitlines() if line.startswith("step ")]
    assert losses[-1] < losses[0] / 2
    folder = work.results() / "policy"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("Say b").input_ids])
    completion = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=2, pad_token_id=0)
    assert tokenizer.decode(completion[0, ids.shape[1] :]) == "bbb<eos>"
    assert work.run("model.path=runs/run/policy", command="eval") == 0


@pytest.mark.slow
def test_sft_twice_is_the_same_to_the_last_bit(work: Workspace) -> None:
    work.write_problems([{"prompt": f"Say {c}", "completion": c * 3} for c in "abcdefg"], "sft.jsonl")
    work.recipe["sft"] = {"path": "sft.jsonl", "steps": 5, "batch_size": 3}
    assert work.run("name=one", command="sft") == work.run("name=two", command="sft") == 0
    one, two = (work.results(name) / "policy" / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def preferences(work: Workspace, **dpo: object) -> None:
    """Pairs as text and as messages: letters are to be doubled, not reversed."""
    rows = [{"prompt": f"Say {c}", "chosen": c * 2, "rejected": "x" + c} for c in "abc"]
    rows += [{"prompt": [{"role": "user", "content": f"Say {c}"}],
              "chosen": [{"role": "assistant", "content": c * 2}],
              "rejected": [{"role": "assistant", "content": "x" + c}]} for c in "de"]  # fmt: skip
    work.write_problems(rows, "pairs.jsonl")
    work.recipe["dpo"] = {"path": "pairs.jsonl", "steps": 20, "batch_size": 5, "beta": 0.5, **dpo}


@pytest.mark.slow
def test_dpo_prefers_the_chosen_completions(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """From log 2 down, margins of all pairs above 0; the policy finds each chosen completion likelier than before,
    relative to the rejected one, and is a Hugging Face folder; the same again is the same to the last bit."""
    preferences(work)
    assert work.run("name=one", command="dpo") == work.run("name=two", command="dpo") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    first, last = (
        dict(zip(line.split()[2::2], map(float, line.split()[3::2]), strict=True)) for line in (said[0], said[19])
    )
    assert (first["loss"], first["margin"]) == (pytest.approx(0.6931, abs=1e-3), pytest.approx(0.0, abs=1e-3))
    assert last["loss"] < first["loss"] / 2
    assert last["accuracy"] == 1.0
    folders = [work.results(name) / "policy" for name in ("one", "two")]
    one, two = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == two
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    gains = []
    for folder in (work.folder / "model", folders[0]):
        model = AutoModelForCausalLM.from_pretrained(folder)
        values = []
        for completion in ("aa", "xa"):
            ids = torch.tensor([tokenizer("Say a" + completion).input_ids])
            logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            values.append(float(logprobs[-2:].sum()))
        gains.append(values[0] - values[1])
    assert gains[1] > gains[0] + 1.0


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (
            {"rejected": None},
            "dpo.rejected must name a completion: text, or a list of one assistant message with text; got None",
        ),
        ({"rejected": "  "}, "dpo.rejected must name a completion"),
        ({"rejected": "aa"}, "the chosen and the rejected completion are the same: 'aa'"),
        ({"chosen": [{"role": "user", "content": "aa"}]}, "dpo.chosen must name a completion"),
        ({"chosen": [{"role": "assistant", "content": "a"}] * 2}, "dpo.chosen must name a completion"),
        ({"chosen": [{"role": "assistant"}]}, "dpo.chosen must name a completion"),
        ({"chosen": "a" * 5000}, "the model takes"),
        ({"rejected": "a" * 5000}, "the model takes"),
    ],
)
def test_a_pair_that_is_none_is_refused_with_its_row(
    work: Workspace, row: dict[str, object], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"prompt": "Say a", "chosen": "aa", "rejected": "xa"}
    work.write_problems([good, good | row], "pairs.jsonl")
    work.recipe["dpo"] = {"path": "pairs.jsonl", "steps": 1}
    assert work.run(command="dpo") == 2
    said = capsys.readouterr().err
    assert part in said
    assert "pairs.jsonl:2" in said


def test_schema_is_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json_schema()
    assert set(printed["required"]) >= {"schema", "name", "run", "model", "rollout", "learner"}


@pytest.mark.parametrize(
    ("command", "overrides", "part"),
    [
        ("eval", ["problems.eval=[]"], "problems.eval: the recipe names no eval set"),
        ("eval", ["--output", "train.jsonl"], "--output: train.jsonl exists already"),
        ("generate", ["--output", "train.jsonl"], "--output: train.jsonl exists already"),
        ("generate", ["--output", "train.jsonl/x"], "--output: train.jsonl/x cannot be written"),
        ("generate", ["rollout.workflow=grader:nothing"], "has no function or class 'nothing'"),
        ("sft", [], "sft: the recipe has no such section"),
        ("sft", ["sft={path: none.jsonl, steps: 1}"], "none.jsonl"),
        ("sft", ["sft={path: train.jsonl, steps: 1}"], "no column 'prompt'"),
        ("dpo", [], "dpo: the recipe has no such section"),
        ("dpo", ["dpo={path: none.jsonl, steps: 1}"], "none.jsonl"),
        ("dpo", ["dpo={path: train.jsonl, steps: 1, prompt: problem, chosen: answer}"], "no column 'rejected'"),
        ("dpo", ["dpo={path: x, steps: 1, label_smoothing: 0.5}"], "dpo.label_smoothing"),
        ("train", ["run.steps=none"], "run.steps"),
        ("train", ["run.steps"], "must look like section.key=value"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    work: Workspace, command: str, overrides: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2 and the reason, no trace."""
    assert work.run(*overrides, command=command) == 2
    said = capsys.readouterr().err
    assert part in said
    assert "Traceback" not in said


def test_a_result_that_exists_is_not_overwritten(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    work.write_problems([{"prompt": "Say a", "completion": "a"}], "sft.jsonl")
    work.recipe["sft"] = {"path": "sft.jsonl", "steps": 1, "batch_size": 1}
    assert work.run(command="sft") == 0
    assert work.run(command="sft") == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_generate_takes_whole_numbers_of_problems(
    work: Workspace, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        work.run(f"--problems={number}", command="generate")
    assert stop.value.code == 2
    assert f"--problems: must be a whole number of 1 or more, got '{number}'" in capsys.readouterr().err


def test_a_recipe_that_does_not_exist_is_said_with_the_nearest(
    work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    work.save_recipe()
    with elsewhere(work.folder):
        assert main(["train", "recipee.yaml"]) == 2
    assert "did you mean 'recipe.yaml'?" in capsys.readouterr().err
