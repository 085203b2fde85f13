"""`rlvr replay` of a folder that somebody else may have made: nothing that it names is imported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlvr.config import RecipeError
from rlvr.run.replay import replay
from tests.builders import recipe_data


@pytest.mark.parametrize(
    "algorithm",
    [
        {"surrogate": {"type": "told_to_run:surrogate", "args": {"args": ["touch", "/tmp/x"]}}},
        {"baseline": {"type": "told_to_run:baseline"}},
        {"shaping": [{"type": "told_to_run:shaping"}]},
    ],
    ids=["surrogate", "baseline", "shaping"],
)
def test_nothing_that_the_recipe_names_is_imported_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "told_to_run.py").write_text("open('it ran', 'w')")
    torch.save([], tmp_path / "batch.pt")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_data() | {"algorithm": algorithm}))
    with pytest.raises(RecipeError, match=r"names told_to_run:\w+, which replay would import.*--run-plugins"):
        list(replay(tmp_path))
    assert not (tmp_path / "it ran").exists()
    assert "told_to_run" not in sys.modules
