import dataclasses
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import Accelerator
from rich.console import Console

from rewards import Outcome
from rlvr.config import load_recipe
from rlvr.runlog.console import Display, eval_lines, make_console, step_line
from rlvr.runlog.jsonl import JsonLines, LineWriteError, encode
from rlvr.runlog.run_log import RunLog, RunLogError, read_metrics, run_folder
from tests.builders import make_group, make_recipe, make_rollout

RIGHT, WRONG = Outcome.CORRECT, Outcome.WRONG


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: writes are cut short and then refused, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def open_log(folder: Path, accelerator: Accelerator, **run: Any) -> tuple[RunLog, Callable[[], str]]:
    """A log on a console without a terminal, and what it has printed so far."""
    out = io.StringIO()
    log = RunLog(folder, make_recipe(folder.parent, **run), accelerator, display=Display(Console(file=out, width=200)))
    return log, out.getvalue


# -------------------------------------------------------------------------------------------------------------- lines


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_torn_last_line_is_cut_off_when_a_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3, "te')
    lines = JsonLines(path)
    assert lines.torn_bytes == 15
    lines.append([{"step": 3}])
    assert steps_in(path) == [1, 2, 3]


@pytest.mark.parametrize(
    ("tail", "torn"),
    [(b"", 0), (b"\0" * 4096, 4096), (b"\0" * 10 + b"\n", 11), (b'"step"\n', 7), (b'{"step": 3}', 11), (b"{\n\n", 3)],
)
def test_only_whole_objects_survive_a_crash(tmp_path: Path, tail: bytes, torn: int) -> None:
    """A power cut leaves zeros or half a block, an interrupted write half a line."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    assert JsonLines(path).torn_bytes == torn
    assert steps_in(path) == [1, 2]


@pytest.mark.parametrize("content", [b"", b"{", b"\n", b"\0\0\0"])
def test_a_file_without_a_whole_line_becomes_empty(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    lines = JsonLines(path)
    assert path.read_bytes() == b""
    assert lines.last_step() is None
    assert lines.truncate_after(0) == (0, 0)


def test_truncation_finds_the_step_in_files_larger_than_a_block(tmp_path: Path) -> None:
    """Lines longer than the block that is read at a time, several lines a step."""
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.append([{"step": step, "text": "é" * size} for step in range(6) for size in (10, 700_000)])
    assert lines.truncate_after(3) == (4, 0)
    assert steps_in(tmp_path / "x.jsonl") == [0, 0, 1, 1, 2, 2, 3, 3]
    assert lines.last_step() == 3
    assert lines.truncate_after(3) == (0, 0)
    lines.append([{"step": 4}])
    assert lines.last_step() == 4
    assert lines.truncate_after(-1) == (9, 0)
    assert (tmp_path / "x.jsonl").read_bytes() == b""


def test_a_full_disk_leaves_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines = JsonLines(path)
    lines.append([{"step": 1, "text": "a" * 100}])
    before = path.read_bytes()
    with file_limit(200):
        with pytest.raises(LineWriteError, match="cannot be written: File too large"):
            lines.append([{"step": 2, "text": "b" * 50}, {"step": 2, "text": "b" * 500}])
        assert path.read_bytes() == before
        lines.append([{"step": 2}])
    assert steps_in(path) == [1, 2]


def test_an_interrupted_write_leaves_whole_lines_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.append([{"step": 1}])
    write = os.write

    def half_then_ctrl_c(file: int, data: memoryview) -> int:
        write(file, data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", half_then_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        lines.append([{"step": 2}])
    assert (tmp_path / "x.jsonl").read_bytes() == b'{"step": 1}\n'


def test_a_deleted_file_is_noticed_instead_of_written_into_nothing(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").unlink()
    with pytest.raises(LineWriteError, match="the file was deleted while the run was writing to it"):
        lines.append([{"step": 1}])


def test_every_record_becomes_one_line_of_valid_json() -> None:
    nan, surrogate = float("nan"), "a\ud800b"
    record = {"step": 1, "x": nan, "deep": [{"y": float("inf")}], "text": f"{surrogate}\n\u2028é", "odd": {1}}
    line = encode(record)
    assert b"\n" not in line
    found = json.loads(line.decode("utf-8"), parse_constant=pytest.fail)
    assert found == {"step": 1, "x": None, "deep": [{"y": None}], "text": f"{surrogate}\n\u2028é", "odd": "{1}"}
    assert encode({"text": "é"}) == '{"text": "é"}'.encode()


# ------------------------------------------------------------------------------------------------------------ the run


def test_a_run_leaves_its_recipe_metrics_and_rollouts(tmp_path: Path, accelerator: Accelerator) -> None:
    log, printed = open_log(tmp_path / "test", accelerator)
    group = make_group(
        make_rollout(RIGHT, versions=(3, 3, 4), answer="21"),
        make_rollout(WRONG, sample=1, finish="length", seconds=0.25),
    )
    with log:
        log.start(None)
        log.step(0, {"eval/held_out/pass@1": 0.25, "eval/held_out/pass@1_low": 0.1, "eval/held_out/pass@1_high": 0.5})
        log.rollouts(1, [group], ["What is 3*7?"], [[0.5, None]])
        log.step(1, {"reward/mean": 0.5, "time/step": 2.0})
    folder = tmp_path / "test"
    assert folder == run_folder(make_recipe(tmp_path))
    assert load_recipe(folder / "recipe.yaml") == make_recipe(tmp_path)
    assert read_metrics(folder) == [
        {"step": 0, "eval/held_out/pass@1": 0.25, "eval/held_out/pass@1_low": 0.1, "eval/held_out/pass@1_high": 0.5},
        {"step": 1, "reward/mean": 0.5, "time/step": 2.0},
    ]
    right, wrong = (json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines())
    assert right == {
        "step": 1, "group": 0, "sample": 0, "problem_id": "p", "visit": 0, "source": "train.jsonl:1", "reference": "21",
        "prompt": "What is 3*7?", "text": "text",
        "verdicts": {"answer": {"score": 1.0, "outcome": "CORRECT", "detail": {"answer": "21"}}},
        "reward": 1.0, "advantage": 0.5, "finish_reason": "stop", "tokens": 3, "versions": [[3, 2], [4, 1]],
        "loss_mask": [[1, 3]], "request_seed": 7, "grade_seconds": 0.0, "schema_version": 2,
    }  # fmt: skip
    assert (wrong["sample"], wrong["advantage"], wrong["finish_reason"]) == (1, None, "length")
    assert wrong["grade_seconds"] == 0.25
    assert "step 1/4  reward  0.500      2.0 s" in printed()
    assert "eval held_out: pass@1 0.250 [0.100, 0.500]" in printed()


def test_rollouts_with_tokens(tmp_path: Path, accelerator: Accelerator) -> None:
    """Only of the groups that were asked for; the learner's side is None where it kept nothing and where a token was
    not the policy's."""
    log, _ = open_log(tmp_path / "test", accelerator)
    spliced = dataclasses.replace(make_rollout(RIGHT, tokens=3, sample=1), loss_mask=(1, 0, 1))
    groups = [make_group(make_rollout(RIGHT)), make_group(make_rollout(RIGHT, tokens=2), spliced)]
    with log:
        log.start(None)
        log.rollouts(
            1, groups, ["q", "q"], [[None], [None, 1.0]], token_groups={1}, kept_P_G=[[None], [None, [-0.25, -1.0]]]
        )
    plain, whole, cut = (json.loads(line) for line in (tmp_path / "test/rollouts.jsonl").read_text().splitlines())
    assert not {"prompt_ids", "ids", "behaviour_logprobs", "trainer_logprobs"} & plain.keys()
    assert (whole["prompt_ids"], whole["ids"], whole["behaviour_logprobs"]) == ([5, 6], [0, 1], [-0.5, -0.5])
    assert whole["trainer_logprobs"] is None
    assert cut["trainer_logprobs"] == [-0.25, None, -1.0]


def test_rollouts_can_be_switched_off(tmp_path: Path, accelerator: Accelerator) -> None:
    log, _ = open_log(tmp_path / "test", accelerator, log_rollouts=False)
    with log:
        log.start(None)
        log.rollouts(1, [make_group(make_rollout(RIGHT))], ["q"], [[1.0]])
    assert (tmp_path / "test/rollouts.jsonl").read_bytes() == b""


def test_a_resumed_run_has_neither_gaps_nor_doubles(tmp_path: Path, accelerator: Accelerator) -> None:
    """Steps 1 to 3 are logged, the checkpoint is of step 2: step 3 is done again and stands there once."""
    log, _ = open_log(tmp_path / "test", accelerator)
    with log:
        log.start(None)
        for step in (1, 2, 3):
            log.rollouts(step, [make_group(make_rollout(RIGHT))], ["q"], [[1.0]])
            log.step(step, {"reward/mean": float(step)})
    with (tmp_path / "test/rollouts.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "gro')
    log, printed = open_log(tmp_path / "test", accelerator)
    with log:
        log.start(2)
        for step in (3, 4):
            log.rollouts(step, [make_group(make_rollout(RIGHT))], ["q"], [[1.0]])
            log.step(step, {"reward/mean": float(step)})
    assert steps_in(tmp_path / "test/metrics.jsonl") == [1, 2, 3, 4]
    assert steps_in(tmp_path / "test/rollouts.jsonl") == [1, 2, 3, 4]
    assert "rollouts.jsonl ended in a torn line (16 bytes, from a crash): cut off" in printed()
    assert "metrics.jsonl: 1 lines after step 2 removed, the run does these steps again" in printed()


def test_lines_that_are_missing_before_the_checkpoint_are_named(tmp_path: Path, accelerator: Accelerator) -> None:
    log, _ = open_log(tmp_path / "test", accelerator)
    with log:
        log.start(None)
        log.step(1, {"reward/mean": 1.0})
    log, printed = open_log(tmp_path / "test", accelerator)
    with log:
        log.start(3)
    assert "metrics.jsonl ends at step 1, but the run goes on after step 3: the lines between are lost" in printed()


def test_a_full_disk_stops_the_run_with_whole_files(tmp_path: Path, accelerator: Accelerator) -> None:
    log, _ = open_log(tmp_path / "test", accelerator)
    with log:
        log.start(None)
        log.step(1, {"reward/mean": 1.0})
        with file_limit(40), pytest.raises(RunLogError) as caught:
            log.step(2, {"reward/mean": 0.123456789, "time/step": 0.123456789})
    message = str(caught.value)
    for part in ("metrics.jsonl cannot be written: File too large", "MiB free in", "run.on_disk_full: warn"):
        assert part in message
    assert steps_in(tmp_path / "test/metrics.jsonl") == [1]


def test_a_full_disk_is_counted_and_survived_if_the_recipe_says_so(tmp_path: Path, accelerator: Accelerator) -> None:
    log, printed = open_log(tmp_path / "test", accelerator, on_disk_full="warn")
    with log:
        log.start(None)
        log.step(1, {"reward/mean": 1.0})
        with file_limit(40):
            log.step(2, {"reward/mean": 0.123456789, "time/step": 0.123456789})
            log.step(3, {"reward/mean": 0.123456789, "time/step": 0.123456789})
        log.step(4, {"reward/mean": 1.0})
    assert read_metrics(tmp_path / "test") == [
        {"step": 1, "reward/mean": 1.0},
        {"step": 4, "reward/mean": 1.0, "warnings/lost_log_lines": 2.0},
    ]
    assert printed().count("going on without") == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, accelerator: Accelerator) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunLogError, match=r"run.output: the run's folder .*file/test cannot be written"):
        open_log(tmp_path / "file" / "test", accelerator)


@pytest.mark.slow
def test_two_processes_cannot_write_to_one_run_and_a_dead_one_holds_nothing(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    program = (
        "import sys, time, pathlib; from rlvr.runlog.run_log import _take_lock\n"
        "_take_lock(pathlib.Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    (tmp_path / "test").mkdir()
    arguments = [sys.executable, "-c", program, str(tmp_path / "test/.lock")]
    holder = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ})
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(RunLogError, match=f"another run \\(process {holder.pid}\\) is writing to"):
            open_log(tmp_path / "test", accelerator)
    finally:
        holder.kill()
        holder.wait()
    log, _ = open_log(tmp_path / "test", accelerator)
    log.close()


def test_warnings_are_printed_once_counted_always_and_saved(tmp_path: Path, accelerator: Accelerator) -> None:
    log, printed = open_log(tmp_path / "test", accelerator)
    with log:
        log.start(None)
        log.warn("slow_grader", "took 3 s")
        log.warn("slow_grader", "took 4 s")
        log.step(1, {})
        state = log.state_dict()
    assert printed().count("slow_grader") == 2  # its name and its metric, in one line
    assert "took 3 s" in printed()
    assert "took 4 s" not in printed()
    assert read_metrics(tmp_path / "test")[0]["warnings/slow_grader"] == 2.0
    log, printed = open_log(tmp_path / "test", accelerator)
    with log:
        log.load_state_dict(state)
        log.start(1)
        log.warn("slow_grader", "took 5 s")
        log.step(2, {})
    assert read_metrics(tmp_path / "test")[1]["warnings/slow_grader"] == 3.0


def test_a_metric_that_is_undocumented_or_not_finite_is_warned_about(tmp_path: Path, accelerator: Accelerator) -> None:
    log, printed = open_log(tmp_path / "test", accelerator)
    with log:
        log.start(None)
        log.step(1, {"update/loss": float("nan"), "update/mystery": 1.0})
    line = (tmp_path / "test/metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["update/loss"] is None
    assert "not finite at step 1: update/loss" in printed()
    assert "the glossary does not know update/mystery" in printed()


# ------------------------------------------------------------------------------------------------------------ console


def test_one_line_says_what_a_step_did() -> None:
    metrics = {
        "reward/mean": 0.4312, "reward/se": 0.0351, "outcome/answer/correct": 0.43, "outcome/answer/wrong": 0.5,
        "outcome/answer/no_answer": 0.06, "outcome/answer/timeout": 0.001, "outcome/format/correct": 1.0,
        "groups/total": 16.0, "groups/all_correct": 8.0, "groups/none_correct": 3.0, "length/mean": 231.4,
        "length/truncated": 0.04, "tokens/per_second": 512.3, "update/grad_norm": 0.4123, "mismatch/kl": 0.0031,
        "time/step": 21.44,
    }  # fmt: skip
    whole = (
        "step 12/60  reward  0.431 +-0.035  correct  43%  groups  5/16 differ    231 tok   4% cut      512 tok/s  "
        "grad    0.412  mismatch  3.1e-03     21.4 s  (8 all right, 3 none; wrong 50%, no_answer 6%)"
    )
    assert step_line(12, 60, metrics) == step_line(12, 60, metrics, width=len(whole)) == whole
    assert step_line(12, 60, metrics, width=120) == (
        "step 12/60  reward  0.431 +-0.035  correct  43%  groups  5/16 differ    231 tok   4% cut      512 tok/s  "
        "   21.4 s"
    )
    assert step_line(12, 60, metrics, width=80) == (
        "step 12/60  reward  0.431 +-0.035  correct  43%  groups  5/16 differ     21.4 s"
    )
    assert step_line(12, 60, metrics, width=10) == "step 12/60"


def test_lines_of_steps_can_be_compared_down_the_page() -> None:
    """Numbers of other sizes stand in the same columns."""
    one = {"reward/mean": 0.4, "reward/se": 0.01, "outcome/a/correct": 1.0, "groups/total": 16.0,
           "groups/all_correct": 3.0, "groups/none_correct": 3.0, "length/mean": 9.0, "length/truncated": 0.0,
           "tokens/per_second": 90.0, "update/grad_norm": 0.5, "mismatch/kl": 1e-9, "time/step": 9.0}  # fmt: skip
    other = one | {"reward/mean": -1.5, "outcome/a/correct": 0.0, "outcome/a/wrong": 0.3, "groups/none_correct": 12.0,
                   "length/mean": 12345.0, "length/truncated": 1.0, "tokens/per_second": 123456.0,
                   "update/grad_norm": 1.23e-5, "mismatch/kl": -1e-9, "time/step": 12345.6}  # fmt: skip
    first, second = (step_line(9, 100, numbers) for numbers in (one, other))
    for word in ("reward", "correct", "groups", "differ", "tok", "cut", "tok/s", "grad", "mismatch", " s  ("):
        assert first.index(word) == second.index(word), word


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_terminal_breaks_long_lines_between_words(width: int) -> None:
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, width=width, color_system=None))
    text = "the engine follows the learner: " + "and so on, " * 30
    display.line(text.strip())
    lines = out.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert " ".join(line.strip() for line in lines) == text.strip()


def test_groups_with_partial_marks_differ_without_a_right_completion() -> None:
    metrics = {
        "groups/total": 8.0, "groups/all_correct": 0.0, "groups/none_correct": 8.0, "groups/zero_variance": 1.0,
        "groups/too_few_scored": 1.0,
    }  # fmt: skip
    assert step_line(1, 2, metrics) == "step 1/2  groups 6/8 differ  (0 all right, 8 none)"


def test_an_evaluations_line_shows_its_reward() -> None:
    numbers = {f"eval/e/{key}{end}": 0.25 for key in ("pass@1", "avg@4", "reward") for end in ("", "_low", "_high")}
    assert eval_lines(numbers) == ["eval e: pass@1 0.250 [0.250, 0.250]  reward 0.250 [0.250, 0.250]"]


def test_the_line_leaves_out_what_was_not_measured() -> None:
    assert step_line(0, 60, {}) == "step  0/60"
    assert eval_lines({"reward/mean": 1.0}) == []


def test_without_a_terminal_there_are_lines_and_no_control_codes(
    tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Display(make_console())
    display.start_screen("rlvr: test", [("model", "a[b]c " * 40), ("problems", "10")])
    log = RunLog(tmp_path / "test", make_recipe(tmp_path), accelerator, display=display)
    with log:
        log.start(None)
        log.phase("generate", 3, 8)
        log.warn("odd", "[bold]not markup[/bold]" + "x" * 300)
        log.step(1, {"reward/mean": 0.5})
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\r" not in out
    assert "rlvr: test\n" in out
    assert "[bold]not markup[/bold]" + "x" * 300 in out
    assert out.endswith("step 1/4  reward  0.500\n")


def test_a_terminal_gets_a_bar_and_the_same_lines(tmp_path: Path, accelerator: Accelerator) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system="standard")
    with RunLog(tmp_path / "test", make_recipe(tmp_path), accelerator, display=Display(console)) as log:
        log.start(None)
        log.phase("generate", 3, 8)
        log.step(1, {"reward/mean": 0.5})
        printed = out.getvalue()
        log._display._progress.refresh()
        assert "3/8" in out.getvalue()
        out.truncate(0)
        log.phase("eval held_out")
        log._display._progress.refresh()
        assert "0/?" in out.getvalue()
        assert "generate" not in out.getvalue().split("eval held_out")[-1]
    assert "step 1/4  reward  0.500" in printed


# ----------------------------------------------------------------------------------------------------------- trackers


@pytest.mark.slow
def test_tensorboard_and_wandb_offline_get_the_numbers(tmp_path: Path) -> None:
    """In a process of its own: wandb starts a service. A resumed run keeps its id; the numbers are read back."""
    program = """
import sys, json
from pathlib import Path
from accelerate import Accelerator
from tests.builders import make_recipe
from rlvr.runlog.run_log import RunLog

output = Path(sys.argv[1])
recipe = make_recipe(output, trackers=["tensorboard", "wandb"])
accelerator = Accelerator(cpu=True, log_with=recipe.run.trackers, project_dir=str(output / "test"))
with RunLog(output / "test", recipe, accelerator) as log:
    log.start(None)
    log.step(1, {"reward/mean": 0.25, "update/loss": float("nan")})
    log.step(2, {"reward/mean": 0.5})
"""
    environment = {
        **os.environ,
        "WANDB_MODE": "offline",
        "PYTHONPATH": f"{Path(__file__).parent}",
    }
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, cwd=root, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "wandb" not in done.stderr
    assert [line.partition(", in ")[0] for line in done.stdout.splitlines() if "wandb" in line] == ["wandb: offline"]
    identity = (tmp_path / "test/run_id").read_text().strip()
    assert list((tmp_path / "test/wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = {path.parent for path in (tmp_path / "test").rglob("events.out.tfevents.*")}
    curves = {}
    for folder in folders:
        events = EventAccumulator(str(folder)).Reload()
        curves |= {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert curves["reward/mean"] == [(1, 0.25), (2, 0.5)]
    assert "update/loss" not in curves


@pytest.mark.slow
def test_a_tracker_that_cannot_start_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(**_: object) -> None:
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    accelerator = Accelerator(cpu=True, log_with="wandb", project_dir=str(tmp_path))
    log, _ = open_log(tmp_path / "test", accelerator, trackers=["wandb"])
    with log, pytest.raises(RunLogError, match=r"run\.trackers: wandb could not start: No API key configured.*offline"):
        log.start(None)


def test_recipe_yaml_is_replaced_whole(tmp_path: Path, accelerator: Accelerator) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test/recipe.yaml").write_text("x" * 10_000)
    log, _ = open_log(tmp_path / "test", accelerator)
    with log:
        log.start(None)
    assert yaml.safe_load((tmp_path / "test/recipe.yaml").read_text())["name"] == "test"
    assert not list((tmp_path / "test").glob(".recipe*"))


DAMAGE = {
    "zeros": bytes(4096), "half a line": b'{"step": 4, "rew', "no text": b"\xff\xfe\x00", "a list": b"[4]",
    "a word for a step": b'{"step": "four"}', "too deep": b"[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_lines_behind_the_checkpoints_step_are_set_aside_and_the_run_goes_on(tmp_path: Path, name: str) -> None:
    """Steps 1 to 5 with a damaged line among those of step 4; the run goes on after step 3: the good lines behind it
    are removed, the damaged one is kept beside the file, and what is written next is right after step 3."""
    path = tmp_path / "metrics.jsonl"
    steps = [b'{"step": %d}' % step for step in range(1, 6)]
    path.write_bytes(b"\n".join([*steps[:4], DAMAGE[name], steps[4]]) + b"\n")
    lines = JsonLines(path)
    assert lines.torn_bytes == 0
    assert lines.truncate_after(3) == (2, 1)
    assert lines.last_step() == 3
    assert lines.damaged.read_bytes() == DAMAGE[name] + b"\n"
    lines.append([{"step": 4}])
    assert [one["step"] for one in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_damaged_line_right_behind_the_checkpoints_step_is_set_aside_too(tmp_path: Path) -> None:
    """It may have been of a later step; one before the step's last good line is left where it is, and readers leave it
    out."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\nxx\n{"step": 2}\nyy\nzz\n{"step": 3}\n')
    lines = JsonLines(path)
    assert lines.truncate_after(2) == (1, 2)
    assert lines.damaged.read_bytes() == b"yy\nzz\n"
    assert path.read_bytes() == b'{"step": 1}\nxx\n{"step": 2}\n'
    assert [one["step"] for one in read_metrics(tmp_path)] == [1, 2]


def test_a_resumed_run_says_what_it_has_set_aside(tmp_path: Path, accelerator: Accelerator) -> None:
    """A block of zeros, as a power cut leaves it, between lines that the run writes again."""
    log, _ = open_log(tmp_path / "test", accelerator)
    with log:
        log.start(None)
        for step in (1, 2):
            log.step(step, {"reward/mean": float(step)})
    path = tmp_path / "test/metrics.jsonl"
    first, second, _ = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, bytes(512), second]) + b"\n")
    log, printed = open_log(tmp_path / "test", accelerator)
    with log:
        log.start(1)
        log.step(2, {"reward/mean": 2.0})
    assert steps_in(path) == [1, 2]
    assert "metrics.jsonl: 1 damaged lines after step 1 are set aside in metrics.jsonl.damaged" in printed()


def test_lines_reach_the_disk_when_asked_and_the_file_is_closed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, synced = JsonLines(tmp_path / "x.jsonl"), []
    descriptor = lines._file
    monkeypatch.setattr(os, "fsync", synced.append)
    lines.sync()
    assert synced == [descriptor]
    lines.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    lines.close()  # another file may have its number by now


def test_a_line_without_a_step_is_older_than_any(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"step": 0}\n{"note": "x"}\n')
    lines = JsonLines(path)
    assert lines.truncate_after(-1) == (0, 0)
    path.write_bytes(b'{"note": "x"}\n{"step": 0}\n')
    assert JsonLines(path).truncate_after(-1) == (1, 0)
    assert path.read_bytes() == b'{"note": "x"}\n'


def test_what_json_does_not_have_is_written_as_null_and_the_rest_as_it_is() -> None:
    record = {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": -float("inf"), "e": "é"}, "f": (True, None)}
    assert encode(record) == '{"a": null, "b": [1.5, null], "c": {"d": null, "e": "é"}, "f": [true, null]}'.encode()
    assert encode({"text": "half \ud800"}) == b'{"text": "half \\ud800"}'
