"""Checkpoints beside the run: what is written is what was, what is kept is what was asked for, failures are told."""

from __future__ import annotations

import copy
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from rlvr.config import RunConfig
from rlvr.state import saver
from rlvr.state.checkpoint import CheckpointError, load_latest, verify
from rlvr.state.register import StateRegister
from rlvr.state.saver import Saver
from tests.helpers import make_tiny_model
from tests.learn.conftest import random_samples
from tests.learn.test_update import make
from tests.state.test_checkpoint import Owner, file_limit, nothing_said


class Bench:
    """A saver over one tensor of state and one weight, whose writing can be held up."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.accelerator = folder, Accelerator(cpu=True)
        self.weight, self.owner = torch.zeros(4), Owner({"x": torch.zeros(4)})
        self.register = StateRegister()
        self.register.add("owner", self.owner)
        self.may_write = threading.Event()
        self.may_write.set()
        self.warned: list[tuple[str, str]] = []
        self.saver = Saver(
            folder, self.register, self.accelerator, RunConfig(**{"steps": 1000, **settings}),
            lambda name, text: self.warned.append((name, text)),
        )  # fmt: skip

    def take_policy(self, copy: bool) -> Callable[[Path], None]:
        copied = self.weight.clone() if copy else self.weight

        def write(target: Path) -> None:
            assert self.may_write.wait(timeout=60)
            save_file({"weight": copied}, target / "model.safetensors")

        return write

    def save(self, step: int, **metrics: float) -> None:
        self.saver.save(step, self.take_policy, {"metrics": metrics})

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**settings: Any) -> Bench:
        made.append(Bench(tmp_path, **settings))
        return made[-1]

    yield make
    for one in made:
        one.may_write.set()
        one.saver.close()


def test_the_steps_that_follow_cannot_change_what_is_being_written(bench: Callable[..., Bench]) -> None:
    """State and weight are changed in place while the write is held up; the file has the values of the save."""
    one = bench()
    one.may_write.clear()
    one.save(5)
    one.weight += 1
    one.owner.state["x"] += 1
    one.owner.state["new"] = True
    assert not (one.folder / "checkpoints/step_000005").exists()
    one.may_write.set()
    one.saver.wait()
    found = verify(one.folder / "checkpoints/step_000005")
    assert list(found.state()["owner"]["state"]) == ["x"]
    assert torch.equal(found.state()["owner"]["state"]["x"], torch.zeros(4))
    assert torch.equal(load_file(found.path / "model.safetensors")["weight"], torch.zeros(4))


def test_the_next_save_waits_for_the_one_before(bench: Callable[..., Bench]) -> None:
    """Writes never overlap, and none is lost."""
    one = bench(keep=3)
    one.may_write.clear()
    one.save(1)
    threading.Timer(0.2, one.may_write.set).start()
    one.save(2)
    assert (one.folder / "checkpoints/step_000001").is_dir()
    one.save(3)
    one.saver.wait()
    assert one.names() == ["latest", "step_000001", "step_000002", "step_000003"]


@pytest.mark.parametrize("settings", [{"background_save": False}, {"steps": 5}], ids=["foreground", "last"])
def test_where_nothing_goes_on_beside_it_it_is_there_when_save_returns(
    bench: Callable[..., Bench], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the foreground, and at the run's last step: what is written are the run's own tensors, no copies of them."""
    one, written = bench(**settings), []
    write = Saver._write

    def watched(saver: Saver, step: int, write_policy: Any, state: dict[str, Any], extra: dict[str, Any]) -> str | None:
        written.append(state["owner"]["state"]["x"].data_ptr())
        return write(saver, step, write_policy, state, extra)

    monkeypatch.setattr(Saver, "_write", watched)
    one.save(4)
    one.save(5)
    assert one.names() == ["latest", "step_000004", "step_000005"]
    own = one.owner.state["x"].data_ptr()
    assert [place == own for place in written] == ([True, True] if "background_save" in settings else [False, True])


def test_a_learner_that_goes_on_cannot_change_what_is_being_written(tmp_path: Path) -> None:
    """An update while the write is held up changes weights and moments in place; the files have those of the save. The
    last step's are written from the learner's own, and are the same as a copy's."""
    folder = make_tiny_model(tmp_path / "model")
    learner = make(str(folder))
    learner.update(random_samples(6))
    register = StateRegister()
    register.add("learner", learner)
    kept = copy.deepcopy(register.state_dict())
    weights = {name: tensor.clone() for name, tensor in learner.named_weights()}
    may_write = threading.Event()

    def held_up(copied: bool) -> Callable[[Path], None]:
        write = learner.policy_writer(copied)

        def later(target: Path) -> None:
            assert not copied or may_write.wait(timeout=60)
            write(target)

        return later

    saver = Saver(tmp_path, register, learner.accelerator, RunConfig(steps=2), lambda name, text: pytest.fail(text))
    saver.save(1, held_up, {})
    learner.update(random_samples(6, seed=1))
    may_write.set()
    saver.wait()
    found = verify(tmp_path / "checkpoints/step_000001")
    same(found.state()["learner"]["state"]["optimizer"], kept["learner"]["state"]["optimizer"])
    same(load_file(found.path / "model.safetensors"), weights)
    saver.save(2, held_up, {})
    found = verify(tmp_path / "checkpoints/step_000002")
    same(found.state()["learner"]["state"]["optimizer"], learner.state_dict()["optimizer"])
    same(load_file(found.path / "model.safetensors"), dict(learner.named_weights()))
    assert not torch.equal(next(iter(weights.values())), next(iter(learner.named_weights()))[1])
    saver.close()


def same(ours: Any, theirs: Any) -> None:
    """Equal to the last bit, however deep."""
    assert type(ours) is type(theirs) or isinstance(ours, torch.Tensor)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            same(value, theirs[key])
    else:
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_the_last_the_best_and_every_so_many_th_are_kept(bench: Callable[..., Bench]) -> None:
    """Scores 1 5 2 5 3 4 at steps 1 to 6, and none at step 7: of the two best the newer; every third; the newest."""
    one = bench(keep=1, keep_best={"metric": "score"}, keep_every=3)
    for step, score in enumerate((1.0, 5.0, 2.0, 5.0, 3.0, 4.0), start=1):
        one.save(step, score=score)
    one.save(7)
    one.saver.wait()
    assert one.names() == ["best", "latest", "step_000003", "step_000004", "step_000006", "step_000007"]
    assert (one.folder / "checkpoints/best").resolve().name == "step_000004"
    assert (one.folder / "checkpoints/latest").resolve().name == "step_000007"


def test_the_best_may_be_the_least(bench: Callable[..., Bench]) -> None:
    one = bench(keep=1, keep_best={"metric": "loss", "mode": "min"})
    for step, loss in enumerate((2.0, -1.0, 3.0), start=1):
        one.save(step, loss=loss)
    one.saver.wait()
    assert one.names() == ["best", "latest", "step_000002", "step_000003"]


def test_a_full_disk_is_told_by_the_next_save_or_warned_of(bench: Callable[..., Bench]) -> None:
    """`stop`: raised where the run next has to do with checkpoints. `warn`: said, counted, and the next one works."""
    for settings in ({}, {"on_disk_full": "warn"}):
        one = bench(**settings)
        one.save(5)
        one.saver.wait()
        one.weight = torch.zeros(100_000)
        with file_limit(20_000):
            one.save(10)
            one.saver._writer.submit(lambda: None).result()
        one.weight = torch.zeros(4)
        if settings:
            one.save(15)
            one.saver.wait()
            assert [name for name, _ in one.warned] == ["checkpoint_not_written"]
            assert "step_000005, untouched; going on without" in one.warned[0][1]
            assert one.names() == ["latest", "step_000005", "step_000015"]
        else:
            with pytest.raises(CheckpointError, match=r"step 10 could not be written .*step_000005, untouched"):
                one.save(15)
            assert one.warned == []
            assert one.names() == ["latest", "step_000005"]


def test_a_run_that_ends_for_another_reason_still_says_that_the_write_failed(bench: Callable[..., Bench]) -> None:
    one = bench()
    (one.folder / "checkpoints").write_text("")
    one.save(5)
    one.saver.close()
    ((name, text),) = one.warned
    assert name == "checkpoint_not_written"
    assert "there is no earlier one" in text


def test_a_mistake_in_the_writer_is_raised_where_it_can_be_seen(bench: Callable[..., Bench]) -> None:
    one = bench()

    def broken(target: Path) -> None:
        raise KeyError("a bug")

    one.saver.save(5, lambda copied: broken, {})
    with pytest.raises(KeyError, match="a bug"):
        one.saver.wait()


def test_what_a_removal_left_half_done_is_no_checkpoint(bench: Callable[..., Bench]) -> None:
    """A run that was killed while it removed an old checkpoint: its rest is not found, and the next save removes it."""
    one = bench(keep=1)
    one.save(1)
    one.saver.wait()
    (one.folder / "checkpoints/step_000001").rename(one.folder / "checkpoints/.gone_step_000001")
    (one.folder / "checkpoints/.gone_step_000001/state.pt").unlink()
    assert load_latest(one.folder, nothing_said, one.accelerator) is None
    one.save(2)
    one.saver.wait()
    assert one.names() == ["latest", "step_000002"]


def test_extra_facts_are_json(bench: Callable[..., Bench]) -> None:
    one = bench()
    with pytest.raises(ValueError, match="JSON"):
        one.saver.save(5, one.take_policy, {"metrics": {"score": float("nan")}})


def test_every_file_is_on_the_disk_before_the_manifest_says_so_and_the_manifest_before_the_rename(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the rename must find what the manifest lists: order of synced paths, and of the rename."""
    one, events = bench(), []
    sync, rename = saver._sync, Path.rename
    monkeypatch.setattr(saver, "_sync", lambda path: (events.append(("sync", path.name)), sync(path)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (events.append(("rename", path.name)), rename(path, to))[1])
    one.save(5)
    one.saver.wait()
    assert events == [
        ("sync", "model.safetensors"),
        ("sync", "state.pt"),
        ("sync", "manifest.json"),
        ("sync", ".draft_step_000005"),
        ("rename", ".draft_step_000005"),
        ("sync", "checkpoints"),  # the checkpoint's own name
        ("sync", "checkpoints"),  # the link to it
    ]


def test_a_file_is_synced_by_its_own_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(saver.os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    (tmp_path / "file").write_text("x")
    saver._sync(tmp_path / "file")
    saver._sync(tmp_path)
    assert synced == [str(tmp_path / "file"), str(tmp_path)]


def test_a_new_saver_finishes_what_a_kill_behind_a_checkpoint_left_undone(bench: Callable[..., Bench]) -> None:
    """No link, one checkpoint too many, half a link: the next process tidies before it writes anything."""
    one = bench(keep=2)
    for step in (1, 2):
        one.save(step)
    one.saver.wait()
    assert one.saver.last == 2
    root = one.folder / "checkpoints"
    shutil.copytree(root / "step_000002", root / "step_000003")
    (root / "latest").unlink()
    (root / ".latest").symlink_to("nowhere")
    bench(keep=2)
    assert one.names() == ["latest", "step_000002", "step_000003"]
    assert (root / "latest").readlink() == Path("step_000003")


def test_a_damaged_checkpoint_is_not_the_best_and_hides_no_other(bench: Callable[..., Bench]) -> None:
    one = bench(keep=9, keep_best={"metric": "x"})
    for step, value in ((1, 5.0), (2, 9.0), (3, 2.0)):
        one.save(step, x=value)
    one.saver.wait()
    (one.folder / "checkpoints/step_000002/manifest.json").write_text("{}")
    one.save(4, x=0.0)
    one.saver.wait()
    assert (one.folder / "checkpoints/best").readlink() == Path("step_000001")
