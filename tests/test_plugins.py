"""Plug-ins: found by name, arguments checked before anything is called, errors that name the fix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlvr.plugins import PlugInError, check_shadows, load_plugin

SOURCE = """
from pydantic import BaseModel, ConfigDict

class Args(BaseModel):
    model_config = ConfigDict(extra="forbid")
    bonus: float = 1.0

def add_bonus(reward, *, bonus):
    return reward + bonus
"""
PLAIN = """
def add_twice(reward, *, bonus, times=2):
    return reward + bonus * times

class Adder:
    def __init__(self, bonus):
        self.bonus = bonus
    def __call__(self, reward):
        return reward + self.bonus

number = 3
"""


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plug_with_model.py").write_text(SOURCE)
    (tmp_path / "plug_plain.py").write_text(PLAIN)
    (tmp_path / "plug_broken.py").write_text("import there_is_no_such_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_function_gets_its_arguments_at_each_call() -> None:
    assert load_plugin("plug_plain:add_twice", {"bonus": 2}, positional=1)(1) == 5


def test_a_class_is_constructed_once_with_its_arguments() -> None:
    assert load_plugin("plug_plain:Adder", {"bonus": 2}, positional=1)(1) == 3


def test_the_model_checks_and_converts_arguments_and_fills_defaults() -> None:
    assert load_plugin("plug_with_model:add_bonus", {"bonus": "2.5"}, positional=1)(1) == 3.5
    assert load_plugin("plug_with_model:add_bonus", {}, positional=1)(1) == 2.0
    with pytest.raises(PlugInError, match=r"plug_with_model:add_bonus.*\n?.*bonus"):
        load_plugin("plug_with_model:add_bonus", {"bonus": "much"}, positional=1)
    with pytest.raises(PlugInError, match="bonsu"):
        load_plugin("plug_with_model:add_bonus", {"bonsu": 1.0}, positional=1)


def test_without_a_model_the_signature_checks() -> None:
    with pytest.raises(PlugInError, match=r"bonsu.*it takes 1 values from rlvr and the arguments \['bonus', 'times'\]"):
        load_plugin("plug_plain:add_twice", {"bonsu": 1}, positional=1)
    with pytest.raises(PlugInError, match="missing a required"):
        load_plugin("plug_plain:Adder", {})


def test_a_wrong_name_gets_the_nearest_right_one() -> None:
    with pytest.raises(PlugInError, match="no function or class 'add_twise'; did you mean 'add_twice'"):
        load_plugin("plug_plain:add_twise", {})
    with pytest.raises(PlugInError, match="no function or class 'number'"):
        load_plugin("plug_plain:number", {})


def test_a_missing_module_is_named_and_a_module_that_fails_to_import_shows_its_own_error() -> None:
    with pytest.raises(PlugInError, match="there is no module 'plug_absent'"):
        load_plugin("plug_absent:f", {})
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        load_plugin("plug_broken:f", {})
    with pytest.raises(PlugInError, match="'module:name'"):
        load_plugin("plug_plain", {})


@pytest.mark.parametrize(
    ("file", "name"),
    [("rewards.py", "rewards"), ("rewards/__init__.py", "rewards"), ("datasets.py", "datasets"), ("rlvr.py", "rlvr")],
)
def test_a_file_that_hides_a_package_is_named_with_the_fix(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("from rewards import Verdict\n")
    hides = tmp_path / file.removesuffix("/__init__.py")
    with pytest.raises(PlugInError) as caught:
        check_shadows(tmp_path)
    assert str(caught.value).startswith(f"{hides} hides the package '{name}', which rlvr needs: rename it")


def test_a_checkout_hides_nothing_nor_does_a_folder_of_data(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "wandb").mkdir()
    (tmp_path / "my_rewards.py").touch()
    check_shadows(tmp_path)
    check_shadows(Path(__file__).parents[1])


@pytest.mark.slow
@pytest.mark.parametrize("program", ["from rlvr.__main__ import main; sys.exit(main(['train', 'quickstart']))",
                                     "import rlvr; rlvr.train"])  # fmt: skip
def test_with_a_rewards_py_of_ones_own_commands_and_scripts_say_so(tmp_path: Path, program: str) -> None:
    (tmp_path / "rewards.py").write_text("from rewards import Verdict\n")
    (tmp_path / "script.py").write_text(f"import sys\nsys.path.append({str(Path(__file__).parents[1])!r})\n{program}\n")
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].endswith("where the recipe names something in it")
    assert "rewards.py hides the package 'rewards'" in done.stderr
    assert "partially initialized" not in done.stderr
