"""The exported file in Chromium, opened from the disk, without a server and without a network."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.runs import ROOT, Workspace
from tests.view.conftest import HACK, HOSTILE, STEPS

Open = Callable[..., Page]


def export(out: Path, *arguments: object) -> str:
    """`rlvr view ... --export OUT`; what it prints."""
    command = [sys.executable, "-m", "rlvr", "view", *map(str, arguments), "--export", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def exported(work: Workspace, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of one file that holds two runs as a whole."""
    out = tmp_path_factory.mktemp("export") / "runs.html"
    said = export(out, work.results(), work.results("other"))
    assert f"{STEPS * 16} of {STEPS * 16} rollouts of run, 32 of 32 rollouts of other" in said
    return out.as_uri()


def test_every_page_works_from_the_file(
    exported: str, lines: list[dict[str, Any]], open_page: Open, size: tuple[int, int]
) -> None:
    """The same pages, with nothing asked of anybody."""
    asked: list[str] = []
    page = open_page(exported, size)
    page.on("request", lambda request: asked.append(request.url))
    expect(page.locator("[data-key='Outcomes of lax · run'] canvas")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("exported: holds 96 of 96 rollouts of run")
    page.get_by_role("link", name="Rollouts").click()
    expect(page.locator(".groups li")).to_have_count(4)
    page.fill("input[type=search]", "hacked carr*")
    page.keyboard.press("Enter")
    found = [one for one in lines if "hacked" in one["text"] and "carry" in one["text"]]
    expect(page.locator(".rows li")).to_have_count(len(found))
    expect(page.locator(".completion")).to_have_text(found[0]["text"])
    assert HOSTILE in found[0]["text"]
    page.get_by_role("link", name="Problems").click()
    expect(page.locator("table.problems tbody tr")).to_have_count(4)
    page.get_by_role("link", name="train:3", exact=True).click()
    expect(page.locator(".side-by-side .completion")).to_have_count(4)
    page.get_by_role("link", name="Suspects").click()
    expect(page.locator("[data-rule=repeated]")).to_contain_text(HACK)
    page.get_by_role("link", name="Recipe").click()
    page.get_by_label("compare with").select_option("other")
    expect(page.locator(".diff tbody tr")).to_have_count(3)
    assert [url for url in asked if not url.startswith("data:")] == []


def test_a_link_leads_into_the_file(exported: str, open_page: Open) -> None:
    page = open_page(f"{exported}#rollouts?run=run&step=2&group=1&sample=2")
    expect(page.locator(".detail h2")).to_have_text("Step 2 · group 1 · sample 2")


def test_a_file_holds_no_more_than_it_may(work: Workspace, tmp_path: Path, open_page: Open) -> None:
    """At most so many rollouts, in whole steps, and what is missing is named."""
    out = tmp_path / "small.html"
    assert f"of {STEPS * 16} rollouts of run" in export(out, work.results(), "--export-rollouts", 56)
    store = out.read_text().partition('id="store">')[2].partition("</script>")[0]
    data = json.loads(store)["runs"]["run"]
    assert 16 < len(data["rollouts"]) <= 56
    assert "1" in data["step"]
    missing = next(step for step in range(1, STEPS + 1) if str(step) not in data["step"])
    page = open_page(f"{out.as_uri()}#rollouts?run=run&step={missing}")
    expect(page.get_by_role("alert")).to_contain_text(f"Step {missing} is not in this exported file")
