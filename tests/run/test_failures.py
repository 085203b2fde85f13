"""What goes wrong outside of rlvr ends in a clear message, the right exit status and whole files; nothing is left.

Signals are in `test_loop`, several processes in `test_two_processes`.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from rlvr.runlog.run_log import read_metrics
from rlvr.state import checkpoint
from tests.runs import Workspace, assert_same_weights

VERIFIER = '''
import time

from rewards import BadReference, Outcome, Verdict


class Trouble:
    """Does what the reference says."""

    lowest_score = -1.0

    def check_reference(self, reference):
        if reference == "wrong":
            raise BadReference("this one is wrong")

    def grade(self, completion, reference):
        if reference == "hang":
            time.sleep(1000)
        if reference == "memory":
            self.hoard = [bytearray(50_000_000) for _ in range(10_000)]
        if reference == "raise":
            raise KeyError("nobody thought of this")
        return Verdict(1.0, Outcome.CORRECT)
'''
WORKFLOWS = '''
from rlvr.rollout.collector import completions_to_one_prompt


async def too_long(session):
    """Asks for more than the model takes, in the second step."""
    if session.engine.version == 1:
        await session.sample(session.prompt.ids * 100, 0)
    return await completions_to_one_prompt(session)


async def mistaken(session):
    """Has a mistake of its own, in the second step."""
    if session.engine.version == 1:
        raise KeyError("a bug of the user's")
    return await completions_to_one_prompt(session)
'''


pytestmark = pytest.mark.usefixtures("nothing_left")
"""However a run of this file ends, its graders and threads have ended with it."""


@pytest.fixture
def work(workspace: Workspace) -> Workspace:
    workspace.write("trouble.py", VERIFIER)
    workspace.write("plug_ins.py", WORKFLOWS)
    workspace.recipe["rollout"] |= {"group_size": 2, "prompts_per_step": 2, "max_new_tokens": 4}
    return workspace


def trouble(work: Workspace, *references: str) -> None:
    """One problem for each reference, judged by `Trouble`."""
    work.write_problems([{"problem": f"Say {i}", "answer": one} for i, one in enumerate(references)])
    work.recipe["rewards"] = {
        "terms": [{"name": "trouble", "verifier": "trouble:Trouble"}], "timeout": 0.5, "memory_mb": 200,
    }  # fmt: skip
    work.recipe["problems"]["sampler"] = {"type": "as_given"}


def assert_whole(work: Workspace, *steps: int) -> None:
    """The files hold whole lines of these steps and no others, and the last checkpoint is that of the last."""
    assert [line["step"] for line in read_metrics(work.results())] == list(steps)
    assert {line["step"] for line in work.rollouts()} == set(steps)
    if steps:
        assert checkpoint.verify(work.results() / "checkpoints/latest").step == steps[-1]


# ---------------------------------------------------------------------------------------------- before anything loads


def bad_key(work: Workspace) -> None:
    work.recipe["rollout"]["groupsize"] = 4


def small_group(work: Workspace) -> None:
    work.recipe["rollout"]["group_size"] = 1


def no_model(work: Workspace) -> None:
    work.recipe["model"]["path"] = "./modle"


def no_data(work: Workspace) -> None:
    work.recipe["problems"]["train"]["path"] = "trian.jsonl"


def empty_data(work: Workspace) -> None:
    work.write("train.jsonl", "\n\n")


def wrong_reference(work: Workspace) -> None:
    trouble(work, "fine", "fine", "wrong")


def long_prompt(work: Workspace) -> None:
    work.write_problems([{"problem": "x" * 10, "answer": "a"}, {"problem": "x" * 253, "answer": "a"}])


def no_verifier(work: Workspace) -> None:
    work.recipe["rewards"]["terms"][0]["verifier"] = "grader:EvenCuont"


def no_workflow(work: Workspace) -> None:
    work.recipe["rollout"]["workflow"] = "plug_ins:tool_ong"


CASES: dict[str, tuple[Any, list[str]]] = {
    "unknown key": (bad_key, ["rollout.groupsize: unknown key", "did you mean 'group_size'?"]),
    "group too small": (small_group, ["rollout.group_size must be at least 2, got 1", "'group_std'"]),
    "no model": (no_model, ["model.path", "'modle'", "holds", "model"]),
    "no data": (no_data, ["'trian.jsonl'", "does not exist", "did you mean 'train.jsonl'?"]),
    "empty data": (empty_data, ["train.jsonl holds no problem"]),
    "wrong reference": (wrong_reference, ["train.jsonl:3: trouble: this one is wrong", "1 of 3 references"]),
    "long prompt": (long_prompt, ["train.jsonl:2", "253", "256"]),
    "no verifier": (no_verifier, ["grader:EvenCuont", "EvenCount"]),
    "no workflow": (no_workflow, ["plug_ins:tool_ong", "did you mean 'too_long'?"]),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_run_is_refused_by_name(work: Workspace, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and one message with key or row, value and rule, before a step is done, and no trace of Python's."""
    spoil, parts = CASES[name]
    spoil(work)
    assert work.run() == 2
    said = capsys.readouterr().err
    for part in ["rlvr: ", *parts]:
        assert part in said
    assert "Traceback" not in said
    assert not work.results().exists(), "a refused start leaves no folder"


def test_a_tracker_that_refuses_stops_the_run_before_the_engine_starts(
    work: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("No API key configured.")

    monkeypatch.setattr(Accelerator, "init_trackers", refuse)
    assert work.run("run.trackers=[tensorboard]") == 1
    said = capsys.readouterr()
    assert "run.trackers: tensorboard could not start: No API key configured. For wandb" in said.err
    assert "starting the engine" not in said.out


PREPARE = """
from pathlib import Path
from rlvr.recipes.base_models import building


def fail(recipe):
    with building(Path(recipe.model.path)) as folder:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise ValueError("no weights today")


def make(recipe):
    with building(Path(recipe.model.path)) as folder:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
"""


def test_a_model_that_could_not_be_made_leaves_nothing(
    work: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a draft beside it nor half a model in its place; one that is made is there as a whole."""
    work.write("makers.py", PREPARE)
    work.recipe["model"] = {"path": "made/new", "prepare": "makers:fail"}
    with pytest.raises(ValueError, match="no weights today"):
        work.run()
    assert not list((work.folder / "made").iterdir())
    work.recipe["model"]["prepare"] = "makers:make"
    assert work.run() == 2
    assert [file.name for file in (work.folder / "made").iterdir()] == ["new"]
    assert "model.path: 'made/new' holds a config.json and no weights" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_that_another_run_writes_to_is_refused(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Its lock is another process's, which the message names; that one's files stay as they are."""
    assert work.run("run.steps=1") == 0
    code = f"import fcntl,sys; f=open({str(work.results() / '.lock')!r},'r+'); fcntl.lockf(f,fcntl.LOCK_EX); print(1,flush=True); sys.stdin.read()"  # noqa: E501
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        holder.stdout.readline()
        assert work.run() == 1
    finally:
        holder.communicate()
    assert "another run" in capsys.readouterr().err
    assert_whole(work, 1)


# ------------------------------------------------------------------------------------------------------- in the middle


@pytest.mark.slow
def test_a_verifier_that_hangs_or_eats_memory_costs_time_and_a_worker_never_the_run(work: Workspace) -> None:
    """Both are the model's doing: the declared lowest score, an outcome of its own, and the run goes on to its end."""
    trouble(work, "hang", "memory")
    assert work.run("run.steps=1") == 0
    (line,) = read_metrics(work.results())
    assert line["outcome/trouble/timeout"] == 0.5
    assert line["outcome/trouble/crashed"] == 0.5
    assert line["reward/mean"] == -1.0
    assert_whole(work, 1)


@pytest.mark.slow
def test_a_verifier_that_raises_stops_the_run_with_its_error(
    work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the second step; the first is kept. No reward of 0 is invented."""
    trouble(work, "fine", "fine", "raise", "raise")
    assert work.run("run.save_every=1") == 1
    said = capsys.readouterr().err
    for part in ("TooManyUnscored: 4 of 4", "rewards.max_unscored", "train:3", "'trouble'", "nobody thought of this"):
        assert part in said
    assert_whole(work, 1)


@pytest.mark.slow
def test_an_engine_that_refuses_stops_the_run_with_its_reason(
    work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    work.recipe["rollout"]["workflow"] = "plug_ins:too_long"
    assert work.run("run.save_every=1") == 1
    assert "rlvr: EngineError: request" in capsys.readouterr().err
    assert_whole(work, 1)


def test_a_mistake_in_a_plug_in_shows_its_trace_and_leaves_whole_files(work: Workspace) -> None:
    """Who has to mend it needs the trace; the processes have ended and the files are whole all the same."""
    work.recipe["rollout"]["workflow"] = "plug_ins:mistaken"
    with pytest.raises(KeyError, match="a bug of the user's"):
        work.run("run.save_every=1")
    assert_whole(work, 1)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond some bytes: writing more fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_room_lets_it_go_on_as_if_nothing_had_been(
    work: Workspace, tmp_path: Path, tiny_tied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log line of step 2 does not fit: whole lines, the checkpoint of step 1 whole; with room again, the same command
    ends in the weights and lines of a run that always had it."""
    assert work.run("run.save_every=1", "run.steps=1") == 0
    used = (work.results() / "rollouts.jsonl").stat().st_size
    with full_disk(used + 100):
        assert work.run() == 1
    said = capsys.readouterr().err
    for part in ("RunLogError", "a log line could not be written", "MiB free", "start the same command again"):
        assert part in said
    assert_whole(work, 1)
    assert work.run() == 0

    other = Workspace(tmp_path / "other", tiny_tied)
    other.recipe = work.recipe
    assert other.run() == 0
    assert work.metrics() == other.metrics()
    assert work.rollouts() == other.rollouts()
    assert_same_weights(work.weights(), other.weights())


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_checkpoint_keeps_the_one_before(
    work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Room for lines, not for weights: the error says so and names the last good checkpoint."""
    assert work.run("run.steps=1") == 0
    with full_disk(100_000):
        assert work.run("run.steps=2") == 1
    assert "CheckpointError: the checkpoint of step 2 could not be written" in capsys.readouterr().err
    assert checkpoint.verify(work.results() / "checkpoints/latest").step == 1
    assert [line["step"] for line in read_metrics(work.results())] == [1, 2]
    assert work.run("run.steps=2") == 0
    assert_whole(work, 1, 2)
