"""What is released works where it is installed: wheels in new environments, empty folders, nothing of the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.documents import ROOT

pytestmark = pytest.mark.slow

INSTALLED = Path(sysconfig.get_paths()["purelib"])
"""The heavy packages of this environment, which the new ones borrow; rlvr and rewards come from their wheels."""
SOURCES = ("rlvr", "rewards", "recipes", "launch", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of rlvr and of rewards alone, built from a copy of what they are made of."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*build, "--wheel-dir", "dist", ".", "./rewards"], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name.split("-")[0]: path for path in (copy / "dist").iterdir()}


class Environment:
    """A new virtual environment with one wheel, and an empty folder to work in."""

    def __init__(self, folder: Path, wheel: Path, borrowed: Path) -> None:
        self.bin, self.work = folder / "env/bin", folder / "work"
        self.work.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        (site,) = folder.glob("env/lib/python*/site-packages")
        install = [sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "--quiet"]
        subprocess.run([*install, "--no-deps", "--no-index", wheel], check=True)
        (site / "borrowed.pth").write_text(f"{borrowed}\n")

    def run(self, command: str, timeout: float = 120) -> str:
        """What a line of bash prints; its exit status has to be 0."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.work, capture_output=True, text=True, timeout=timeout, check=False,
            env=kept | {"PATH": f"{self.bin}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def needed(names: set[str]) -> Iterator[metadata.Distribution]:
    """Installed distributions by name, and what they require without extras, each once."""
    waiting, seen = set(names), set[str]()
    while waiting:
        distribution = metadata.distribution(waiting.pop())
        seen.add(distribution.name.lower())
        yield distribution
        rows = [Requirement(row) for row in distribution.requires or ()]
        waiting |= {row.name for row in rows if row.marker is None or row.marker.evaluate({"extra": ""})}
        waiting = {name for name in waiting if name.lower() not in seen}


def only(folder: Path, names: set[str]) -> Path:
    """A folder with nothing but some distributions and what they require."""
    for distribution in needed(names):
        parts = {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}
        for part in parts - {"__pycache__"}:
            source = Path(str(distribution.locate_file(part)))
            if not (folder / part).exists():
                (folder / part).symlink_to(source)
    return folder


def test_a_wheel_holds_what_its_commands_need_and_none_of_the_tests(wheels: dict[str, Path]) -> None:
    names = set(zipfile.ZipFile(wheels["rlvr"]).namelist())
    shipped = {
        f"rlvr/{path.relative_to(ROOT)}" for folder in ("recipes", "launch") for path in (ROOT / folder).rglob("*.*")
    }
    shipped = {name for name in shipped if name.endswith((".py", ".yaml", ".jinja", ".sbatch", ".json"))}
    assert shipped <= names
    assert len(shipped) > 15
    assert {"rlvr/py.typed", "rewards/py.typed", "rlvr/view/static/index.html"} <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rlvr", "rewards"}
    alone = {name.split("/")[0] for name in zipfile.ZipFile(wheels["rlvr_rewards"]).namelist()}
    assert {top for top in alone if not top.endswith(".dist-info")} == {"rewards"}
    for wheel in wheels.values():
        assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_the_quickstart_runs_from_the_wheel_in_an_empty_folder(wheels: dict[str, Path], tmp_path: Path) -> None:
    """List, train by name, go on under accelerate with a shipped launch file, copy a recipe and have it examined."""
    environment = Environment(tmp_path, wheels["rlvr"], INSTALLED)
    found = environment.run("python -c 'import rlvr, rewards; print(rlvr.__file__, rewards.__file__)'").split()
    assert all(Path(file).is_relative_to(tmp_path / "env") for file in found)
    assert "quickstart " in environment.run("rlvr recipes")
    environment.run("rlvr train quickstart run.steps=3", timeout=900)
    environment.run("rlvr recipes copy quickstart mine && rlvr doctor mine/quickstart.yaml --no-engine")
    environment.run(
        "python -m accelerate.commands.launch --config_file $(rlvr recipes path launch/cpu.yaml) "
        "-m rlvr train quickstart run.steps=4", timeout=600,
    )  # fmt: skip
    lines = (environment.work / "runs/quickstart/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["step"] for line in lines} == {0, 1, 2, 3, 4}


def test_rewards_alone_grade_a_file_without_torch(wheels: dict[str, Path], tmp_path: Path) -> None:
    """Only what the wheel itself requires is there to import."""
    about = zipfile.ZipFile(wheels["rlvr_rewards"])
    (name,) = (name for name in about.namelist() if name.endswith(".dist-info/METADATA"))
    rows = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", about.read(name).decode(), re.MULTILINE)
    borrowed = tmp_path / "borrowed"
    borrowed.mkdir()
    environment = Environment(tmp_path, wheels["rlvr_rewards"], only(borrowed, set(rows)))
    (environment.work / "answers.jsonl").write_text(
        '{"completion": "so \\\\boxed{0.5}", "reference": "1/2"}\n{"completion": "\\\\boxed{3}", "reference": "4"}\n'
    )
    graded = environment.run("python -m rewards grade --verifier rewards.math_answers:MathVerifier < answers.jsonl")
    assert [json.loads(line)["outcome"] for line in graded.splitlines()] == ["CORRECT", "WRONG"]
    absent = 'python -c \'import importlib.util as u; print([u.find_spec(n) for n in ("torch", "rlvr", "numpy")])\''
    assert environment.run(absent).strip() == "[None, None, None]"
