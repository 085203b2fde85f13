"""The script of docs/from_trl.md: printed there as it stands, and it trains the quickstart's model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT, fenced

SCRIPT = ROOT / "examples/train_from_python.py"


def test_the_page_shows_the_script_of_at_most_twenty_lines() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 20
    (shown,) = fenced((ROOT / "docs/from_trl.md").read_text(encoding="utf-8"), "python")
    assert shown.strip() == text.strip()


@pytest.mark.slow
def test_the_script_trains_with_its_own_reward_function(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True,
        text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the model lies in runs/from-python/checkpoints/step_000003" in done.stdout
