"""`rlvr recipes`, and recipes that come with rlvr by name: from an empty folder, as after an installation."""

from pathlib import Path

import pytest

from rlvr.__main__ import main
from rlvr.config import RecipeError, load_recipe
from rlvr.shipped import find_shipped, shipped_files, shipped_names


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["recipes", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) == 2
    return capsys.readouterr().err


def test_each_shipped_file_is_listed_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys)
    assert [line.split()[0] for line in lines] == shipped_names()
    assert {"quickstart", "launch/cpu.yaml", "launch/slurm.sbatch"} <= set(shipped_names())
    assert all(len(line.split(maxsplit=1)[1]) >= 20 for line in lines)
    (dapo,) = (line for line in lines if line.startswith("dapo"))
    assert dapo.endswith("from the base model Qwen2.5-7B on DAPO-Math-17k (not yet run)")


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "recipes/quickstart", "recipes/quickstart.yaml"])
def test_a_path_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = said(capsys, "path", name)
    assert Path(line).is_file()
    assert Path(line) == find_shipped("quickstart") == shipped_files()["recipes/quickstart.yaml"]


@pytest.mark.parametrize("name", shipped_names())
def test_a_copy_can_be_run_where_it_lies(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that a copied recipe names lies beside it; it is the shipped recipe."""
    written = said(capsys, "copy", name, "mine")
    assert all(Path(line).is_file() for line in written)
    if name.startswith("launch/"):
        assert written[0] == f"mine/{name}"
        return
    copy, shipped = load_recipe(f"mine/{name}.yaml"), load_recipe(name)
    assert copy.template.path is None or Path(copy.template.path).is_relative_to("mine")
    assert copy.model_copy(update={"template": shipped.template}) == shipped
    assert "exists already" in refused(capsys, "recipes", "copy", name, "mine")


def test_a_script_is_copied_with_the_launch_file_that_it_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "copy", "launch/slurm.sbatch") == ["launch/slurm.sbatch", "launch/multi_node.yaml"]


def test_two_copies_share_what_both_need_but_no_other_file_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "copy", "quickstart")
    said(capsys, "copy", "r1_zero_smollm2")
    Path("quickstart.yaml").unlink()
    Path("schema.json").write_text("{}")
    assert "schema.json exists already" in refused(capsys, "recipes", "copy", "quickstart")
    assert not Path("quickstart.yaml").exists()


def test_a_file_wins_over_a_shipped_recipe_of_its_name() -> None:
    Path("quickstart").write_text("schema: 1\n")
    with pytest.raises(RecipeError, match="recipe 'quickstart' cannot be run"):
        load_recipe("quickstart")


def test_a_template_of_the_current_directory_wins_over_the_recipes_own() -> None:
    Path("templates").mkdir()
    Path("templates/user_assistant.jinja").write_text("{{ question }}")
    assert load_recipe("quickstart").template.path == "templates/user_assistant.jinja"


@pytest.mark.parametrize("command", ["train", "eval", "doctor", "generate", "serve", "sft", "dpo"])
def test_each_command_takes_a_name_and_helps_with_a_wrong_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "recipe 'quickstrt' does not exist (did you mean 'quickstart'?)" in refused(capsys, command, "quickstrt")
    assert "did you mean 'lr'" in _all_of(capsys, command, "quickstart", "learner.lrr=1")


def _all_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) != 0
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_an_unknown_name_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'launch/cpu.yaml'?" in refused(capsys, "recipes", "path", "launch/cpuu.yaml")
