"""Plug-ins: found by name, arguments checked before anything is called, errors that name the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvr.plugins import PlugInError, load_plugin

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
