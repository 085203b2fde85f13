import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from rlvr.config import RunConfig
from rlvr.state.checkpoint import (
    CheckpointError,
    DamagedCheckpoint,
    load_latest,
    manifest_bytes,
    restore,
    set_aside,
    verify,
)
from rlvr.state.register import StateRegister
from rlvr.state.saver import Saver


class Owner:
    """Something stateful."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def register_of(**states: Any) -> tuple[StateRegister, dict[str, Owner]]:
    register, owners = StateRegister(), {name: Owner(state) for name, state in states.items()}
    for name, owner in owners.items():
        register.add(name, owner)
    return register, owners


def policy(value: float = 1.0, size: int = 8) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        save_file({"weight": torch.full((size,), value)}, folder / "model.safetensors")

    return write


def save(
    folder: Path, step: int, write_policy: Callable[[Path], None], register: StateRegister, accelerator: Accelerator,
    *, extra: dict[str, Any] | None = None, **settings: Any,
) -> Path:  # fmt: skip
    """One checkpoint, written and waited for."""
    saver = Saver(folder, register, accelerator, RunConfig(steps=1, **settings), lambda name, text: pytest.fail(text))
    try:
        saver.save(step, lambda copied: write_policy, extra or {})
        saver.wait()
    finally:
        saver.close()
    return folder / f"checkpoints/step_{step:06d}"


def nothing_said(message: str) -> None:
    pytest.fail(f"said: {message}")


def test_what_is_saved_comes_back(tmp_path: Path, accelerator: Accelerator) -> None:
    generator = torch.Generator().manual_seed(3)
    register, _ = register_of(
        learner={"updates": 7, "optimizer": {"state": {0: {"exp_avg": torch.arange(3.0), "step": torch.tensor(7.0)}}}},
        random={"torch": generator.get_state(), "python": random.Random(1).getstate(), "numpy": ("MT19937", [1, 2], 3)},
        sampler={"order": [3, 1, 2], "name": "é", "none": None, "flag": True, "bytes": b"\0"},
    )
    path = save(tmp_path, 10, policy(), register, accelerator, extra={"recipe": {"seed": 0}})
    assert path == tmp_path / "checkpoints/step_000010"
    assert sorted(one.name for one in path.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "state.pt",
    ]
    assert (tmp_path / "checkpoints/latest").resolve() == path.resolve()
    found = load_latest(tmp_path, nothing_said, accelerator)
    assert found is not None
    assert (found.step, found.path, found.extra) == (10, path, {"recipe": {"seed": 0}})
    fresh, owners = register_of(learner={}, random={}, sampler={})
    restore(found, fresh, accelerator)
    assert torch.equal(owners["learner"].state["optimizer"]["state"][0]["exp_avg"], torch.arange(3.0))
    assert owners["random"].state["python"] == random.Random(1).getstate()
    assert torch.equal(owners["random"].state["torch"], generator.get_state())
    assert owners["sampler"].state == {"order": [3, 1, 2], "name": "é", "none": None, "flag": True, "bytes": b"\0"}


def test_a_folder_without_checkpoints_has_none(tmp_path: Path, accelerator: Accelerator) -> None:
    assert load_latest(tmp_path, nothing_said, accelerator) is None
    register, owners = register_of(a={"x": 1})
    restore(None, register, accelerator)
    assert owners["a"].state == {"x": 1}


def test_only_the_newest_are_kept(tmp_path: Path, accelerator: Accelerator) -> None:
    register, _ = register_of(a={"x": 1})
    for step in (5, 10, 999_999, 1_000_000):
        save(tmp_path, step, policy(), register, accelerator, keep=2)
    names = sorted(one.name for one in (tmp_path / "checkpoints").iterdir())
    assert names == ["latest", "step_1000000", "step_999999"]
    found = load_latest(tmp_path, nothing_said, accelerator)
    assert found is not None
    assert found.step == 1_000_000


def test_a_step_saved_again_replaces_the_old_one(tmp_path: Path, accelerator: Accelerator) -> None:
    for value in (1, 2):
        register, _ = register_of(a={"x": value})
        save(tmp_path, 5, policy(), register, accelerator)
    found = load_latest(tmp_path, nothing_said, accelerator)
    assert found is not None
    assert found.state()["a"]["state"] == {"x": 2}
    assert sorted(one.name for one in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_000005"]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "config.json", "manifest.json"])
def test_one_flipped_bit_anywhere_is_found_named_and_passed_over(
    tmp_path: Path, accelerator: Accelerator, name: str
) -> None:
    register, _ = register_of(a={"x": 1})
    for step in (5, 10):
        save(tmp_path, step, policy(), register, accelerator)
    broken = tmp_path / "checkpoints/step_000010"
    size = (broken / name).stat().st_size
    original = (broken / name).read_bytes()
    for place in {0, size // 3, size // 2, size - 1}:
        flip(broken / name, place)
        with pytest.raises(DamagedCheckpoint, match=name.replace(".", r"\.")):
            verify(broken)
        (broken / name).write_bytes(original)
    flip(broken / name, size // 2)
    said: list[str] = []
    found = load_latest(tmp_path, said.append, accelerator)
    assert found is not None
    assert found.step == 5
    assert len(said) == 1
    assert name in said[0]
    assert "step_000010.damaged" in said[0]
    assert (tmp_path / "checkpoints/step_000010.damaged").is_dir()
    again = load_latest(tmp_path, nothing_said, accelerator)
    assert again is not None
    assert again.step == 5


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_missing_file_is_named(tmp_path: Path, accelerator: Accelerator, name: str) -> None:
    register, _ = register_of(a={"x": 1})
    path = save(tmp_path, 5, policy(), register, accelerator)
    (path / name).unlink()
    with pytest.raises(DamagedCheckpoint, match=f"{name} cannot be read"):
        verify(path)


def test_a_run_does_not_start_anew_because_all_its_checkpoints_are_damaged(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    register, _ = register_of(a={"x": 1})
    flip(save(tmp_path, 5, policy(), register, accelerator) / "state.pt", 3)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole .*state\.pt.*choose another run name"):
        load_latest(tmp_path, lambda message: None, accelerator)


def test_a_checkpoint_of_another_format_is_refused_by_name(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    register, _ = register_of(a={"x": 1})
    monkeypatch.setattr("rlvr.state.saver.FORMAT", 4)
    save(tmp_path, 5, policy(), register, accelerator)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="step_000005 has format 4, this rlvr reads 1 to 3"):
        load_latest(tmp_path, nothing_said, accelerator)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("weights", [8, 100_000])
def test_a_full_disk_leaves_the_last_good_checkpoint_whole(
    tmp_path: Path, accelerator: Accelerator, weights: int
) -> None:
    """Full while the state is written (few weights), and while the policy is."""
    good, _ = register_of(a={"x": torch.zeros(4)})
    large, _ = register_of(a={"x": torch.zeros(100_000)})
    save(tmp_path, 5, policy(), good, accelerator)
    with file_limit(20_000), pytest.raises(CheckpointError) as caught:
        save(tmp_path, 10, policy(size=weights), large, accelerator)
    message = str(caught.value)
    for part in ("the checkpoint of step 10 could not be written", "MiB free", "step_000005, untouched"):
        assert part in message
    assert sorted(one.name for one in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_000005"]
    found = load_latest(tmp_path, nothing_said, accelerator)
    assert found is not None
    assert found.step == 5


def test_a_folder_that_vanished_or_is_a_file_is_said(tmp_path: Path, accelerator: Accelerator) -> None:
    register, _ = register_of(a={"x": 1})
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match=r"could not be written to .*there is no earlier one"):
        save(tmp_path, 5, policy(), register, accelerator)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (np.zeros(2), r"state\['a'\]\['state'\]\['deep'\]\[1\] holds ndarray"),
        (np.float64(1.0), r"state\['a'\]\['state'\]\['deep'\]\[1\] holds float64"),
        ({Path("x"): 1}, r"a key of state\['a'\]\['state'\]\['deep'\]\[1\] holds PosixPath"),
    ],
)
def test_a_state_that_could_not_be_loaded_is_refused_when_it_is_saved(
    tmp_path: Path, accelerator: Accelerator, value: Any, where: str
) -> None:
    register, _ = register_of(a={"deep": [0, value]})
    with pytest.raises(TypeError, match=where):
        save(tmp_path, 5, policy(), register, accelerator)
    assert not (tmp_path / "checkpoints").exists()


def test_an_interrupted_save_leaves_a_draft_that_the_next_one_removes(tmp_path: Path, accelerator: Accelerator) -> None:
    register, _ = register_of(a={"x": 1})

    def ctrl_c(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 5, ctrl_c, register, accelerator)
    assert load_latest(tmp_path, nothing_said, accelerator) is None
    save(tmp_path, 6, policy(), register, accelerator)
    assert sorted(one.name for one in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_000006"]


def test_a_replacement_killed_between_its_renames_is_undone(tmp_path: Path, accelerator: Accelerator) -> None:
    register, _ = register_of(a={"x": 1})
    path = save(tmp_path, 5, policy(), register, accelerator)
    path.rename(path.with_name(".old_step_000005"))
    found = load_latest(tmp_path, nothing_said, accelerator)
    assert found is not None
    assert found.step == 5
    shutil.copytree(path, path.with_name(".old_step_000005"))
    load_latest(tmp_path, nothing_said, accelerator)
    assert not path.with_name(".old_step_000005").exists()


def saves_until_killed(folder: Path, deadly: int, accelerator: Accelerator) -> bool:
    """Three saves (a new one, a replacement, one that prunes) in a child that is killed before its file operation
    number `deadly`; False if it had fewer."""
    child = os.fork()
    if not child:
        calls = itertools.count()

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            on_files = event in ("open", "os.rename", "os.mkdir", "os.symlink", "os.remove", "os.rmdir")
            ours = on_files and any("checkpoints" in str(argument) for argument in arguments[:2])
            if ours and next(calls) == deadly:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        try:
            for step in (6, 6, 7):
                save(folder, step, policy(), register_of(a={"step": step})[0], accelerator, keep=1)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.slow
def test_killed_before_any_file_operation_of_a_save_a_whole_checkpoint_remains(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    """SIGKILL before each file operation in turn: each time a whole checkpoint is found, and saving goes on."""
    found_steps = []
    for deadly in itertools.count():
        folder = tmp_path / str(deadly)
        save(folder, 5, policy(), register_of(a={"step": 5})[0], accelerator, keep=1)
        if not saves_until_killed(folder, deadly, accelerator):
            break
        found = load_latest(folder, nothing_said, accelerator)
        assert found is not None
        assert found.state()["a"]["state"]["step"] == found.step
        found_steps.append(found.step)
        save(folder, 8, policy(), register_of(a={"step": 8})[0], accelerator, keep=1)
        assert sorted(one.name for one in (folder / "checkpoints").iterdir()) == ["latest", "step_000008"]
    assert found_steps == sorted(found_steps)
    assert set(found_steps) == {5, 6, 7}
    assert len(found_steps) > 60


RANKS = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from tests.state.test_checkpoint import Owner, policy, save
from rlvr.state.checkpoint import CheckpointError, load_latest, restore
from rlvr.state.register import StateRegister

folder = Path(sys.argv[1])
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
register = StateRegister()
shared, main_only = Owner({"x": 1, "large": [torch.ones(3, 2)]}), Owner({"y": 2})
register.add("learner", shared)
if rank == 0:
    register.add("sampler", main_only)
def write(target):
    if rank == 0:
        policy()(target)
def fail(target):
    if rank == 0:
        raise OSError(28, "No space left on device")
save(folder, 5, write, register, accelerator)
try:
    save(folder, 6, fail, register, accelerator)
except CheckpointError as error:
    print(f"rank {rank}: {error}")
found = load_latest(folder, print, accelerator)
shared.state = main_only.state = {}
if rank != 0:
    torch.load = None  # rank 0 alone reads the file
restore(found, register, accelerator)
(large,) = shared.state.pop("large")
assert large.shape == (3, 2) and large.is_meta == (rank != 0), (rank, large)
assert shared.state == {"x": 1} and main_only.state == ({"y": 2} if rank == 0 else {}), rank
print(f"rank {rank}: restored step {found.step}")
accelerator.wait_for_everyone()
(found.path / "state.pt").write_bytes(b"")
accelerator.wait_for_everyone()
try:
    load_latest(folder, lambda text: None, accelerator)
except CheckpointError as error:
    print(f"rank {rank}: refused")
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_ranks_save_fail_and_restore_together(tmp_path: Path) -> None:
    """A disk that is full for rank 0 raises on both; a checkpoint that rank 0 finds damaged is refused by both."""
    program = tmp_path / "program.py"
    program.write_text(RANKS)
    tests = Path(__file__).parent
    config = tests.parent.parent / "launch/cpu2.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), str(program), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tests.parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"rank {rank}: the checkpoint of step 6 could not be written" in done.stdout
        assert f"rank {rank}: restored step 5" in done.stdout
        assert f"rank {rank}: refused" in done.stdout


def test_the_manifest_lists_every_file(tmp_path: Path, accelerator: Accelerator) -> None:
    def nested(folder: Path) -> None:
        policy()(folder)
        (folder / "sub").mkdir()
        (folder / "sub/vocab.txt").write_text("x")

    path = save(tmp_path, 5, nested, register_of(a={})[0], accelerator)
    manifest = json.loads((path / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["config.json", "model.safetensors", "state.pt", "sub/vocab.txt"]
    flip(path / "sub/vocab.txt", 0)
    with pytest.raises(DamagedCheckpoint, match=r"sub/vocab\.txt is damaged"):
        verify(path)


def test_what_is_restored_is_returned_and_what_does_not_fit_names_the_checkpoint(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    register, owners = register_of(a={"x": 1})
    save(tmp_path, 5, policy(), register, accelerator)
    owners["a"].state = {"x": 7}
    found = load_latest(tmp_path, nothing_said, accelerator)
    assert restore(found, register, accelerator) == {"a": {"version": 1, "state": {"x": 1}}}
    assert owners["a"].state == {"x": 1}
    assert restore(None, register, accelerator) == {}
    other, _ = register_of(b={"x": 1})
    with pytest.raises(CheckpointError, match=r"step_000005: the checkpoint does not fit this run: it lacks \['b'\]"):
        restore(found, other, accelerator)


def test_a_damaged_newest_one_stops_a_run_that_was_told_so_and_changes_nothing(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    register, _ = register_of(a={"x": 1})
    save(tmp_path, 5, policy(), register, accelerator, keep=9)
    newest = save(tmp_path, 10, policy(), register, accelerator, keep=9)
    flip(newest / "state.pt", 3)
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged .*nothing was changed\. run\.on_damaged"):
        load_latest(tmp_path, nothing_said, accelerator, on_damaged="stop")
    assert newest.is_dir()


def test_the_oldest_format_is_still_a_model(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    register, _ = register_of(a={"x": 1})
    monkeypatch.setattr("rlvr.state.saver.FORMAT", 1)
    assert verify(save(tmp_path, 5, policy(), register, accelerator)).format == 1
    monkeypatch.setattr("rlvr.state.saver.FORMAT", 0)
    with pytest.raises(CheckpointError, match="has format 0"):
        verify(save(tmp_path, 6, policy(), register, accelerator))


def test_a_manifest_has_one_spelling() -> None:
    """Its hash is over the sorted body; numbers that JSON does not have are refused."""
    assert manifest_bytes({"step": 1, "files": {"a": "b"}}) == (
        b'{\n "files": {\n  "a": "b"\n },\n "sha256": '
        b'"4c4794244f958ec310ea33e5867823181ab92a71373db09587bd6f0c498e2c95",\n "step": 1\n}\n'
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        manifest_bytes({"x": float("nan")})


def test_what_is_set_aside_twice_for_a_reason_replaces_the_first(tmp_path: Path) -> None:
    for content in ("old", "new"):
        (tmp_path / "step_000001").mkdir()
        (tmp_path / "step_000001/file").write_text(content)
        set_aside(tmp_path / "step_000001", "abandoned")
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001.abandoned"]
    assert (tmp_path / "step_000001.abandoned/file").read_text() == "new"
