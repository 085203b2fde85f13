"""docs/algorithms.md keeps its word: every fragment is a recipe, and no slot is without a paper."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from rlvr.config import Recipe, load_recipe
from rlvr.config.algorithm import Aggregation, Algorithm
from rlvr.config.groups import Baseline, GroupFilter, Scale, Shaping
from rlvr.config.losses import Correction, Surrogate
from tests.builders import recipe_data
from tests.documents import ROOT, fenced

PAGE = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
FRAGMENTS = fenced(PAGE, "yaml")


def overlaid(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """The fragment's values over the recipe's, section by section."""
    both = {key: overlaid(base[key], value) for key, value in over.items() if isinstance(base.get(key), dict)}
    return base | over | both


def loaded(folder: Path, fragment: str) -> Recipe:
    recipe = overlaid(recipe_data() | {"rollout": ROLLOUT}, yaml.safe_load(fragment))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return load_recipe(folder / "recipe.yaml")


ROLLOUT = {"engine": {"type": "hf"}, "prompts_per_step": 32, "group_size": 16, "max_new_tokens": 20480}


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=range(len(FRAGMENTS)))
def test_each_fragment_is_read_as_it_stands(fragment: str, tmp_path: Path) -> None:
    """Every value that it gives is in the recipe that it makes."""
    written = yaml.safe_load(fragment)
    recipe = loaded(tmp_path, fragment).model_dump(mode="json", by_alias=True)

    def holds(found: Any, wanted: Any) -> bool:
        if isinstance(wanted, dict):
            return all(holds(found[key], value) for key, value in wanted.items())
        if isinstance(wanted, list):
            return len(found) == len(wanted) and all(map(holds, found, wanted))
        return bool(found == wanted)

    assert holds(recipe, written)


def types(union: Any) -> set[str]:
    """The names of a slot's types, the plug-in aside."""
    names: set[str] = set()
    for member in get_args(get_args(union)[0]):
        model = get_args(member)[0] if get_args(member) else member
        names |= set(get_args(model.model_fields["type"].annotation))
    return names


def test_each_type_of_each_slot_stands_in_a_fragment(tmp_path: Path) -> None:
    """A slot that no paper uses would not be worth its lines; defaults count where they are at work."""
    found = [loaded(tmp_path, fragment).algorithm for fragment in FRAGMENTS]
    for name, union in (
        ("filter", GroupFilter), ("baseline", Baseline), ("scale", Scale), ("surrogate", Surrogate),
        ("aggregation", Aggregation), ("correction", Correction),
    ):  # fmt: skip
        missing = types(union) - {getattr(one, name).type for one in found}
        assert missing <= {"reject"} if name == "correction" else not missing, f"{name}: {missing}"
    assert {"kimi_length", "soft_overlong", "cosine_length", "repetition", "repetition_stop"} == types(Shaping)
    assert types(Shaping) == {one.type for algorithm in found for one in algorithm.shaping}


def test_the_defaults_are_what_the_page_says() -> None:
    default = Algorithm()
    assert (default.filter.type, default.baseline.type, default.scale.type) == ("drop", "mean", "group_std")
    assert (default.ratio.type, default.ratio.against, default.surrogate.type) == ("token", "recomputed", "clip")
    assert (default.correction.type, default.aggregation.type, default.kl.type) == ("none", "token_mean", "none")
    assert (default.updates_per_batch, default.epochs) == (1, 1)


@pytest.mark.parametrize(
    "name",
    [
        "R1-Zero", "R1", "Kimi k1.5", "Tulu 3", "DAPO", "Dr. GRPO", "GSPO", "CISPO", "ScaleRL", "RLOO", "REINFORCE++",
        "OAPL", "VAPO", "Lite PPO", "MaxRL", "GDPO", "OPO", "ReMax", "GMPO", "SAPO", "VESPO", "Kimi K2.5", "DPPO",
    ],
)  # fmt: skip
def test_the_page_has_the_papers(name: str) -> None:
    assert re.search(rf"\*\*[^\n]*{re.escape(name)}", PAGE)
