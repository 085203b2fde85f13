"""A real run with texts of our choice, the viewer as a command, and one Chromium for all tests of pages."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.helpers import make_tiny_tokenizer
from tests.recorded import piece, write_recording
from tests.runs import ROOT, Workspace

HOSTILE = '<script>window.hacked=1</script><img src=x onerror="window.hacked=1">'
REASONS = "we add the two and carry the one so it must be then that we say it is "
HACK = "it is 20 22 24 26"
"""Holds every reference: the lax verifier takes it for each of the four problems."""
REFERENCES = ("20", "22", "24", "26")
STEPS = 6

GRADERS = '''
from rewards import Outcome, Verdict


class Lax:
    """Right if the reference stands anywhere in the text."""

    def check_reference(self, reference):
        pass

    def grade(self, completion, reference):
        right = reference in completion
        return Verdict(float(right), Outcome.CORRECT if right else Outcome.WRONG, {"looked for": f"<b>{reference}</b>"})


class Strict(Lax):
    """Right if it stands between the tags."""

    def grade(self, completion, reference):
        if "<answer>" not in completion:
            return Verdict(0.0, Outcome.NO_ANSWER, {})
        return super().grade(completion.split("<answer>")[1], f"{reference}<")
'''


def pieces_of(problem: int, visit: int, sample: int) -> list[dict[str, Any]]:
    """Reasoned completions, half of them right; from the fourth visit on the hack in their place, more with each
    visit."""
    tokenizer, right = make_tiny_tokenizer(), REFERENCES[problem]

    def said(text: str, end: str = "stop") -> dict[str, Any]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        return piece(text, ids, [-0.05 * (place % 40) for place in range(len(ids))], end)

    if sample < 2 * (visit - 2):
        return [said(HACK)]
    if problem == 1 and sample == 2:
        tool = "[tool: 11+11 is more than 20] "
        return [
            said(REASONS),
            piece(tool, tokenizer.encode(tool, add_special_tokens=False), None),
            said(f"{HOSTILE[:40]}"),
        ]
    if problem == 3:
        return [said(f"{REASONS}<answer>{right}</answer>")]
    if sample == 3:
        return [said(REASONS + HOSTILE, "length")]
    return [said(f"{REASONS}<answer>{right if sample % 2 == 0 else 99}</answer>")]


def make_workspace(folder: Path, model: Path) -> Workspace:
    """A recipe whose completions are recorded; all else (grading, advantages, updates, logs, checkpoints) is real."""
    work = Workspace(folder, model)
    work.write("graders.py", GRADERS)
    work.write_problems([{"problem": f"{10 + n}+{10 + n}? {HOSTILE if n == 1 else ''}", "answer": right}
                         for n, right in enumerate(REFERENCES)])  # fmt: skip
    work.recipe["rewards"] = {"terms": [
        {"name": "lax", "verifier": "graders:Lax"}, {"name": "strict", "verifier": "graders:Strict", "weight": 0.01},
    ]}  # fmt: skip
    work.recipe["rollout"] |= {"workflow": "tests.recorded:replay", "max_new_tokens": 16}
    work.recipe["run"] |= {"steps": STEPS, "save_every": 2, "log_token_groups": 3}
    write_recording(work.folder, {
        f"train:{n + 1}/{visit}/{sample}": pieces_of(n, visit, sample)
        for n in range(4) for visit in range(STEPS) for sample in range(4)
    })  # fmt: skip
    return work


@dataclass(frozen=True)
class Viewer:
    """The command `rlvr view` at work."""

    process: subprocess.Popen[str]
    url: str


def start_viewer(*folders: Path) -> Viewer:
    """`rlvr view FOLDERS` in a process of its own, once it says where it is."""
    command = [sys.executable, "-u", "-m", "rlvr", "view", *map(str, folders), "--port", "0", "--no-browser"]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    for line in process.stdout:
        if "http://" in line:
            return Viewer(process, line[line.index("http://") :].split()[0])
    raise AssertionError("the viewer did not start")


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_tied: Path) -> Workspace:
    """Three runs: ``run`` of six steps, ``other`` of two with another learning rate, ``live`` of one so far."""
    work = make_workspace(tmp_path_factory.mktemp("view") / "work", tiny_tied)
    assert work.run() == 0
    assert work.run("name=other", "run.steps=2", "learner.lr=0.02") == 0
    assert work.run("name=live", "run.steps=1") == 0
    return work


@pytest.fixture(scope="session")
def lines(work: Workspace) -> list[dict[str, Any]]:
    """The rollouts of ``run``."""
    return [json.loads(line) for line in (work.results() / "rollouts.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def viewer(work: Workspace) -> Iterator[Viewer]:
    """The viewer on all three, ended by Ctrl-C."""
    viewer = start_viewer(*(work.results(name) for name in ("run", "other", "live")))
    yield viewer
    viewer.process.send_signal(signal.SIGINT)
    out, _ = viewer.process.communicate(timeout=60)
    assert viewer.process.returncode == 0, out
    assert out.rstrip().endswith("rlvr view: closed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium; closed with its module, since Playwright keeps an event loop running in this thread."""
    expect.set_options(timeout=60_000)  # a limit, not a measure: machines of tests are busy
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    assert path, "the tests of rlvr view need Chromium: apt-get install chromium, or make chromium"
    with sync_playwright() as playwright:
        # without a sandbox of its own, as root has none to give
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 900), (400, 800)], ids=["wide", "narrow"])
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Both widths at which the pages must be readable."""
    width_and_height: tuple[int, int] = request.param
    return width_and_height


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens an address; at the end no page has logged an error, run a text of the run, or grown out of its window."""
    opened: list[tuple[Page, list[str]]] = []

    def open_it(url: str, size: tuple[int, int] = (1280, 900)) -> Page:
        page, troubles = browser.new_page(viewport={"width": size[0], "height": size[1]}), []
        page.set_default_timeout(60_000)
        page.on("console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else 0)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
        opened.append((page, troubles))
        page.goto(url)
        page.wait_for_selector("main > .page, main > .message")
        return page

    yield open_it
    for page, troubles in opened:
        assert troubles == []
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.close()
