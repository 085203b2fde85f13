"""README.md and the pages of docs/ keep their word: commands run, links lead somewhere, examples work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rewards import BadReference, Outcome, Verdict
from rlvr.config import load_recipe
from rlvr.config.merge import MergeConfig
from rlvr.config.reference import markdown
from tests.documents import ROOT, commands, faults, fenced

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "recipes/README.md", ROOT / "rewards/README.md", *DOCS]
OVERRIDES = ("run.steps=1", "rollout.prompts_per_step=4", "learner.schedule.warmup_steps=0", "problems.eval=[]")
"""What is appended to a command that trains: one small step."""


def page_commands(page: Path) -> list[str]:
    return commands(page.read_text(encoding="utf-8"))


def in_shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line as it stands, typed into bash in `folder`, where the environment can be activated as README says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIRTUAL_ENV")}
    environment["PYTHONPATH"] = str(ROOT)
    line = f"source .venv/bin/activate\n{line}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip


def checkout(folder: Path) -> Path:
    """A folder like a checkout after `make setup`: recipes, launch files and ``.venv`` stand where commands look."""
    for name in ("recipes", "launch"):
        shutil.copytree(ROOT / name, folder / name, symlinks=False)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def example(page: str, name: str) -> str:
    """The page's Python block that defines the class `name`."""
    (block,) = [block for block in fenced(page, "python") if f"class {name}:" in block]
    return block


# ------------------------------------------------------------------------------------------------------ every command


@pytest.mark.parametrize(
    "command", sorted({command for page in PAGES for command in page_commands(page)}), ids=lambda command: command[:60]
)
def test_each_command_exists(command: str) -> None:
    """Parsed by the real parsers, with recipes loaded under the overrides that stand in it. What only names a command
    in a sentence, such as ``rlvr generate --difficulty``, is one that a recipe and a file complete."""
    start, *options = command.split()
    named = [command, " ".join([start, *options[:1], "RECIPE", *options[1:]])]
    named += [f"{one} FILE" for one in named] if start == "rlvr" and options[-1].startswith("--") else []
    assert [] in map(faults, named), faults(command)


def test_readme_shows_every_way_in() -> None:
    """The two make targets, the environment, training alone and under accelerate, a look before it, graders alone."""
    shown = commands(README)
    for start in (
        "make demo", "make test", "source .venv/bin/activate", "rlvr train", "accelerate launch", "rlvr doctor",
        "python -m rewards check", "rlvr eval",
    ):  # fmt: skip
        assert any(start in one for one in shown), start


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("make nothing", "no target 'nothing'"),
        ("rlvr trian RECIPE", "does not take"),
        ("rlvr train recipes/quickstart.yaml learner.lrr=1", "did you mean 'lr'"),
        ("rlvr train recipes/nosuch.yaml", "does not exist"),
        ("rlvr eval RECIPE --nosuch 3", "does not take"),
        ("accelerate launch --config_file launch/nosuch.yaml -m rlvr train RECIPE", "no launch file"),
        ("accelerate launch --config_file launch/cpu.yaml -m rlvr train recipes/nosuch.yaml", "does not exist"),
        ("accelerate launch --nosuch 1 --config_file launch/cpu.yaml -m rlvr train RECIPE", "does not know"),
        ("python -m nosuch grade", "no module 'nosuch'"),
        ("source .venv/bin/acitvate", "no such file in an environment"),
        ("pip install rlvr", "unknown command"),
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str, fault: str) -> None:
    assert any(fault in one for one in faults(command)), faults(command)


# ---------------------------------------------------------------------------------------------------------- run as is


def test_the_walk_from_a_verifier_to_its_check(tmp_path: Path) -> None:
    """README's verifier, saved under the name that README gives it, in the environment that README activates."""
    (check,) = [one for one in commands(README) if "python -m rewards check" in one]
    assert "`digits.py`" in README
    (checkout(tmp_path) / "digits.py").write_text(example(README, "Digits"))
    done = in_shell(f"{check}\nwhich python", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 findings" in done.stdout
    assert done.stdout.splitlines()[-1] == str(Path(sys.prefix) / "bin/python")


@pytest.mark.slow
def test_the_commands_of_the_page_on_verifiers(tmp_path: Path) -> None:
    text = (ROOT / "docs/verifiers.md").read_text(encoding="utf-8")
    (checkout(tmp_path) / "palindrome.py").write_text(example(text, "Palindrome"))
    check, grade = [line for line in commands(text) if line.startswith("echo")]
    done = in_shell(check, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 findings" in done.stdout
    done = in_shell(grade, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["outcome"] == "CORRECT"


PRINTING = {
    command for page in DOCS for command in page_commands(page) if re.match("rlvr schema|python -m rlvr", command)
}


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(PRINTING))
def test_commands_that_only_print(command: str, tmp_path: Path) -> None:
    """The generators of pages write the pages as they are; the schema is printed."""
    (checkout(tmp_path) / "docs").mkdir()
    done = in_shell(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout or [path for path in (tmp_path / "docs").iterdir() if path.stat().st_size]


@pytest.mark.slow
def test_readme_trains_as_printed(tmp_path: Path) -> None:
    """Every command of README's bash blocks, in order, but for the two that this test is itself a part of; a step is
    enough to see that the verifier and the data are taken."""
    (checkout(tmp_path) / "digits.py").write_text(example(README, "Digits"))
    for line in "".join(fenced(README, "bash")).splitlines():
        if not line or line.startswith("make "):
            continue
        if line.startswith("rlvr train"):
            line = f"{line} {' '.join(map(repr, OVERRIDES))}"
        done = in_shell(line, tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    for name in ("digits", "mine"):
        metrics = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        assert max(json.loads(line)["step"] for line in metrics) == 1, name
    rollouts = [json.loads(line) for line in (tmp_path / "runs/digits/rollouts.jsonl").read_text().splitlines()]
    assert rollouts
    assert "digits" in json.dumps(rollouts[0])


# ----------------------------------------------------------------------------------------------------------- examples


def test_the_verifier_is_short_and_works() -> None:
    assert len(example(README, "Digits").splitlines()) <= 25
    space: dict[str, type] = {}
    exec(example(README, "Digits"), space)
    digits = space["Digits"]()
    with pytest.raises(BadReference):
        digits.check_reference("two")
    digits.check_reference("85")

    def grade(answer: str) -> Verdict:
        return digits.grade(f"<think> </think> <answer> {answer} </answer>", "85")

    assert grade("85") == Verdict(1.0, Outcome.CORRECT, {"answer": "85"})
    assert grade("75") == Verdict(0.25, Outcome.PARTIAL, {"answer": "75"})
    assert grade("185") == Verdict(0.5 * 2 / 3, Outcome.PARTIAL, {"answer": "185"})
    assert grade("11") == Verdict(0.0, Outcome.WRONG, {"answer": "11"})
    assert digits.grade("85", "85").outcome is Outcome.NO_ANSWER


def fragments() -> list[tuple[str, str]]:
    return [(page.name, block) for page in DOCS for block in fenced(page.read_text(encoding="utf-8"), "yaml")]


@pytest.mark.parametrize(("page", "block"), fragments(), ids=lambda part: part.split("\n")[0][:40])
def test_fragments_of_recipes_load(page: str, block: str, tmp_path: Path) -> None:
    """A YAML block of a page is a whole merge, or part of a recipe: the quickstart with it is one that can be read."""
    if "merge_method" in yaml.safe_load(block):
        MergeConfig.model_validate(yaml.safe_load(block))
        return
    recipe = yaml.safe_load((ROOT / "recipes/quickstart.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(merged(recipe, yaml.safe_load(block))))
    load_recipe(path)


def merged(old: object, new: object) -> object:
    """`new` laid over `old`; a section with another `type` takes the place of the old one."""
    if not isinstance(old, dict) or not isinstance(new, dict) or ("type" in new and new["type"] != old.get("type")):
        return new
    return old | {key: merged(old.get(key), value) for key, value in new.items()}


# ---------------------------------------------------------------------------------------------------------- the pages


def test_readme_takes_five_minutes() -> None:
    assert len(README.splitlines()) <= 150


def test_the_page_of_settings_is_current() -> None:
    page = ROOT / "docs/recipe.md"
    assert page.read_text(encoding="utf-8") == markdown(), "run: python -m rlvr.config.reference > docs/recipe.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_site() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = {path for entry in site["nav"] for path in leaves(entry)}
    assert {page.name for page in DOCS} <= named
    assert [name for name in named if not (ROOT / "docs" / name).exists() and not (ROOT / name).exists()] == []


def leaves(entry: object) -> list[str]:
    """The files under an entry of the site's navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [leaf for part in parts for leaf in leaves(part)]
