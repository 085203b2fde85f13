"""What each tensor is merged with, and what a merge's settings refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvr.config import RecipeError
from rlvr.config.merge import MergeConfig, load_merge
from rlvr.merge.coefficients import coefficients_of, evaluate, position

LAYER = "model.layers.{}.self_attn.q_proj.weight"
NAMES = ["model.embed_tokens.weight", *(LAYER.format(layer) for layer in range(3)), "model.norm.weight"]


def merge_data(method: str = "ties", **parameters: Any) -> dict[str, Any]:
    """A sound merge of two models by a method that has a base, with the given parameters."""
    own = {"weight": 0.5, "density": 0.5} if method in ("ties", "dare_linear", "dare_ties") else {"weight": 0.5}
    return {
        "merge_method": method,
        "base_model": "base",
        "models": [{"model": name, "parameters": dict(own)} for name in ("a", "b")],
        "parameters": parameters,
    }


def load(data: dict[str, Any], folder: Path, *overrides: str) -> MergeConfig:
    file = folder / "merge.yaml"
    file.write_text(yaml.safe_dump(data))
    return load_merge(file, overrides)


def test_positions() -> None:
    assert [position(name, 3) for name in NAMES] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert position("lm_head.weight", 3) == 1.0
    assert position("transformer.h.1.mlp.c_fc.weight", 5) == 0.25
    assert position(LAYER.format(0), 1) == 0.0


def test_numbers_gradients_and_filters(tmp_path: Path) -> None:
    mixed = [{"filter": "self_attn", "value": [0.0, 1.0, 0.0]}, {"value": 0.25}]
    data = merge_data("slerp", t=mixed) | {"models": [{"model": "a"}]}
    setting = load(data, tmp_path).parameters.t
    assert [evaluate(setting, name, 3) for name in NAMES] == [0.25, 0.0, 1.0, 0.0, 0.25]
    assert [evaluate((1.0, 3.0), name, 3) for name in NAMES] == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert evaluate((1.0, 3.0), LAYER.format(1), 5) == 1.5
    assert evaluate((4.0,), NAMES[2], 3) == 4.0
    assert evaluate(2, NAMES[2], 3) == 2.0


def test_own_parameters_come_before_those_of_the_merge(tmp_path: Path) -> None:
    data = merge_data("ties", density=0.25, weight=2.0)
    data["models"] = [{"model": "base"}, {"model": "a", "parameters": {"weight": 0.5}}, {"model": "b"}]
    config = load(data, tmp_path)
    planned = coefficients_of(config, NAMES, 3)
    assert [model.model for model in config.merged] == ["a", "b"]
    assert {(c.weights, c.densities) for c in planned.values()} == {((0.5, 2.0), (0.25, 0.25))}
    assert config.sources == ("base", "a", "b")


def test_normalization_by_method(tmp_path: Path) -> None:
    for method, expected in (("ties", True), ("task_arithmetic", False), ("dare_linear", False), ("dare_ties", False)):
        assert load(merge_data(method), tmp_path).normalize is expected
        assert load(merge_data(method, normalize=not expected), tmp_path).normalize is not expected


def test_overrides(tmp_path: Path) -> None:
    config = load(merge_data(), tmp_path, "parameters.lambda=0.3", "models.1.parameters.weight=1")
    assert config.parameters.lambda_ == 0.3
    assert config.coefficient("weight", 1) == 1.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("merge_method=tise", "merge_method: got 'tise', must be one of linear, slerp, task_arithmetic, ties, "
         "dare_linear, dare_ties (did you mean 'ties'?)"),
        ("parameters.t=0.5", "parameters.t: ties has no t; it takes weight, density, normalize, lambda"),
        ("parameters.rescale=l1", "parameters.rescale: ties has no rescale"),
        ("parameters.rescale=true", "parameters.rescale: got True, must be one of density, l1, none"),
        ("parameters.labmda=2", "parameters.labmda: unknown key (did you mean 'lambda'?)"),
        ("models.0.parameters.density=0", "models.0.parameters.density: must be above 0 and at most 1, got 0.0"),
        ("models.0.parameters.density=[1, 1.5]", "models.0.parameters.density: must be above 0 and at most 1, got 1.5"),
        ("models.1.parameters.weight=-1", "models.1.parameters.weight: must not be negative, got -1.0"),
        ("models.1.parameters.weight=null", "models.1.parameters.weight: this key is missing; ties needs it"),
        ("models.1.parameters.weight=half", "models.1.parameters.weight: must be a number, a list of numbers or a list "
         "of {filter, value}, got 'half'"),
        ("models.1.parameters.weight=[{filter: mlp, value: 1}]", "the last entry, and no other, must have no filter"),
        ("models.1.parameters.weight=[{filter: mlp}]", "each entry must be {filter: part of a name, value"),
        ("models.1.parameters.weight=true", "must be a number"),
        ("base_model=null", "base_model: this key is missing; ties needs the common ancestor of the models"),
        ("models=[]", "models: Tuple should have at least 1 item"),
        ("models=[{model: base}]", "models: only the base is listed"),
        ("models.0.model=base", "models.0.parameters.density: the base has no density"),
        ("tokenizer_source=c", "tokenizer_source: 'c' is none of the models: base, a, b"),
        ("dtype=int8", "dtype: got 'int8', must be one of float32, bfloat16, float16"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(change: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load(merge_data(), tmp_path, change)
    assert says in str(error.value)
    assert "merge.yaml' cannot be run" in str(error.value)


def test_settings_that_linear_and_slerp_refuse(tmp_path: Path) -> None:
    linear = merge_data("linear")
    for data, says in (
        (linear, "base_model: linear has no base, got 'base'; list it under models with a weight"),
        (
            linear | {"base_model": None, "models": linear["models"][:1]},
            "models: linear merges two models or more, got 1",
        ),
        (
            merge_data("slerp", t=0.5) | {"models": [{"model": "a"}, {"model": "b"}]},
            "exactly one other model, got 2 others",
        ),
        (merge_data("slerp") | {"models": [{"model": "a"}]}, "parameters.t: this key is missing"),
        (merge_data("slerp", t=1.5) | {"models": [{"model": "a"}]}, "parameters.t: must be from 0 to 1, got 1.5"),
    ):
        with pytest.raises(RecipeError) as error:
            load(data, tmp_path)
        assert says in str(error.value)
    with pytest.raises(RecipeError, match="does not exist"):
        load_merge(tmp_path / "merg.yaml")


def test_weights_that_sum_to_zero_in_one_layer(tmp_path: Path) -> None:
    data = merge_data("task_arithmetic", normalize=True)
    data["models"][1]["parameters"]["weight"] = [1.0, -0.5]
    with pytest.raises(RecipeError, match=r"weights \[0.5, -0.5\] of model.layers.2.*sum to 0.*normalize: false"):
        coefficients_of(load(data, tmp_path), NAMES, 3)
    assert coefficients_of(load(data, tmp_path, "parameters.normalize=false"), NAMES, 3)
    with pytest.raises(RecipeError, match="leave nothing to merge"):
        coefficients_of(
            load(merge_data("task_arithmetic"), tmp_path, *(f"models.{i}.parameters.weight=0" for i in (0, 1))),
            NAMES,
            3,
        )


def test_a_filter_that_matches_nothing(tmp_path: Path) -> None:
    config = load(merge_data(), tmp_path, "models.0.parameters.weight=[{filter: atention, value: 1}, {value: 0.5}]")
    with pytest.raises(RecipeError, match=r"weight: the filter 'atention' is part of no tensor's name"):
        coefficients_of(config, NAMES, 3)
