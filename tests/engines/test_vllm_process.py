"""The engine's processes: they outlive Ctrl-C, not their parent; a death or a bad start is an error with a reason."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlvr.engines.protocol import EngineError
from rlvr.engines.vllm.engine import VllmEngine
from rlvr.engines.vllm.process import Scratch, child_environment, output_to, reason_in
from rlvr.engines.vllm.settings import VllmSettings
from rlvr.rollout.background import Background

ROOT = Path(__file__).parents[2]


@pytest.fixture
def story(tiny_tied: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    launcher = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.engines.vllm_story", str(tiny_tied), str(tmp_path / "vllm.log")],
        cwd=ROOT,
        env=os.environ | launcher,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    process.kill()
    process.communicate()


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_the_life_of_an_engine(story: subprocess.Popen[str], tmp_path: Path) -> None:
    """Started under a launcher's variables that would make a group of 8 ranks; told in tests/engines/vllm_story.py."""
    assert story.stdout is not None
    assert story.stderr is not None

    def told() -> dict[str, Any]:
        line = story.stdout.readline()  # type: ignore[union-attr]  # checked above
        return json.loads(line) if line else pytest.fail(story.stderr.read())  # type: ignore[union-attr]  # as above

    first = told()
    assert (first["version"], first["same_environment"]) == (-1, True)
    assert told() == {"after_interrupt": 8}
    errors = told()["errors"]
    assert len(errors) == 3
    assert all(error.startswith("EngineDied: the vLLM engine died") for error in errors)
    assert "the vLLM engine died" in told()["afterwards"]
    assert not is_alive(first["core"])
    second = told()
    assert second["after_restart"] == 8
    story.kill()
    deadline = time.monotonic() + 30
    while is_alive(second["core"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(second["core"])
    assert story.stdout.read() == ""
    assert "INFO" not in story.stderr.read()
    assert "EngineCore" in (tmp_path / "vllm.log").read_text()


@pytest.mark.slow
def test_a_start_that_fails_says_why(tiny_tied: Path, tmp_path: Path, background: Background) -> None:
    """The reason is the engine core's own, not that it failed."""
    engine = VllmEngine(
        VllmSettings(model=str(tiny_tied), kv_cache_gib=1e-6, threads=1), log_file=tmp_path / "vllm.log"
    )
    with pytest.raises(EngineError, match=r"vLLM did not start: .*(KV cache|cache blocks)"):
        background.wait(engine.start())
    with pytest.raises(EngineError, match="not running"):
        background.wait(engine.logprobs([[5, 6]]))
    background.wait(engine.close())


def test_a_setting_that_vllm_refuses_is_named(tiny_tied: Path, tmp_path: Path, background: Background) -> None:
    engine = VllmEngine(VllmSettings(model=str(tiny_tied), max_model_len=100_000), log_file=tmp_path / "vllm.log")
    with pytest.raises(EngineError, match="100000"):
        background.wait(engine.start())


def test_a_folder_without_a_model_is_named(tmp_path: Path, background: Background) -> None:
    with pytest.raises(EngineError, match=r"has no config\.json"):
        background.wait(VllmEngine(VllmSettings(model=str(tmp_path))).start())


def test_the_environment_of_children_is_theirs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = dict(os.environ)
    with child_environment({"OMP_NUM_THREADS": "2", "NEW": "x"}):
        assert "RANK" not in os.environ
        assert (os.environ["OMP_NUM_THREADS"], os.environ["NEW"]) == ("2", "x")
        os.environ["LD_PRELOAD"] = "left by vLLM"
    assert dict(os.environ) == before


def test_output_of_children_goes_to_the_log_and_ours_does_not(tmp_path: Path) -> None:
    """In a process of its own, because pytest holds this one's descriptors."""
    script = (
        "import subprocess, sys\n"
        "from pathlib import Path\n"
        "from rlvr.engines.vllm.process import output_to\n"
        "with output_to(Path(sys.argv[1])):\n"
        "    print('ours')\n"
        "    subprocess.run(['sh', '-c', 'echo theirs; echo error >&2'])\n"
        "print('after')\n"
    )
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", script, str(log)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "ours\nafter\n"
    assert done.stderr == ""
    assert log.read_text() == "theirs\nerror\n"


def test_output_is_restored_after_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(ZeroDivisionError), output_to(tmp_path / "log"):
        os.write(1, b"hidden")
        raise ZeroDivisionError
    os.write(1, b"shown")
    assert capfd.readouterr().out == "shown"


def test_the_reason_is_the_cause_and_not_its_echo(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old\nOSError: of another run\n")
    start = log.stat().st_size
    with open(log, "a") as file:
        file.write("(EngineCore pid=7) ERROR 11-22 [core.py:1] ValueError: too little memory\n")
        file.write("RuntimeError: Engine core initialization failed. See root cause above.\n")
    assert reason_in(log, start) == "ValueError: too little memory"
    assert reason_in(log, log.stat().st_size) == ""


def test_what_an_engine_leaves_in_the_temporary_folder_goes_with_it(tmp_path: Path) -> None:
    """Its processes see a private folder as the temporary one and as the place for sockets; this process does not."""
    scratch, before = Scratch(), tempfile.gettempdir()
    for _ in range(2):  # an engine that is started again begins with an empty one
        found = scratch.make()
        place = Path(found["TMPDIR"])
        assert found["VLLM_RPC_BASE_PATH"] == found["TMPDIR"]
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert list(place.iterdir()) == []
        subprocess.run(
            [sys.executable, "-c", "import tempfile; tempfile.mkstemp(prefix='vllm_dist_')"],
            env=os.environ | found, check=True, timeout=60,
        )  # fmt: skip
        assert len(list(place.glob("vllm_dist_*"))) == 1
        assert not found["TORCHINDUCTOR_CACHE_DIR"].startswith(found["TMPDIR"])  # what was compiled outlives a run
        assert tempfile.gettempdir() == before
    scratch.remove()
    scratch.remove()
    assert not place.exists()
