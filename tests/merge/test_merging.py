"""Merging folders of tiny models: what is written, what it computes, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlvr.__main__ import main
from rlvr.config import RecipeError
from rlvr.config.merge import MergeConfig
from rlvr.merge import merge
from rlvr.merge.coefficients import Coefficients
from rlvr.merge.merging import MergeError, merge_tensor
from rlvr.state.checkpoint import sha256
from tests.helpers import make_tiny_model, make_tiny_tokenizer

METHODS = {
    "linear": {},
    "slerp": {"parameters": {"t": 0.3}},
    "task_arithmetic": {"parameters": {"lambda": 0.7}},
    "ties": {"parameters": {"density": 0.4}},
    "dare_linear": {"parameters": {"density": 0.5}},
    "dare_ties": {"parameters": {"density": 0.5, "rescale": "l1"}},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "a", "b")):
        make_tiny_model(folder / name, seed=seed)
        make_tiny_model(folder / "untied" / name, seed=seed, tied=False, qwen=True)
    return folder


def config_of(method: str, models: Path, **changes: Any) -> MergeConfig:
    others = ["b"] if method == "slerp" else ["a", "b"]
    parameters = {} if method == "slerp" else {"weight": 0.5}
    data: dict[str, Any] = {
        "merge_method": method,
        "base_model": None if method == "linear" else str(models / "base"),
        "models": [{"model": str(models / name), "parameters": parameters} for name in others],
    }
    return MergeConfig.model_validate(data | METHODS[method] | changes)


def silent(text: str) -> None:
    del text


def expected_state(config: MergeConfig, models: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """The merged tensors, from whole state dicts."""
    states = {name: AutoModelForCausalLM.from_pretrained(name).state_dict() for name in config.sources}
    density = config.parameters.density
    coefficients = Coefficients((0.5,) * 2, (density,) * 2 if isinstance(density, float) else (1.0,) * 2, 0.3)
    return {
        name: merge_tensor(
            config,
            name,
            states[config.base_model][name] if config.base_model else None,
            [states[model.model][name] for model in config.merged],
            coefficients,
        )
        for name in names
    }


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("method", METHODS)
def test_the_folder_computes_what_the_merged_tensors_do(method: str, tied: bool, models: Path, tmp_path: Path) -> None:
    """The folder loads in transformers; its logits are those of a model given the merged state dict, bit for bit."""
    models = models if tied else models / "untied"
    config = config_of(method, models)
    out = merge(config, tmp_path / "deep" / "merged", silent)
    stored = load_file(out / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    expected = expected_state(config, models, list(stored))
    assert all(torch.equal(stored[name], expected[name]) for name in stored)
    merged, reference = (AutoModelForCausalLM.from_pretrained(folder) for folder in (out, models / "base"))
    missing = reference.load_state_dict(expected, strict=False).missing_keys
    assert missing == (["lm_head.weight"] if tied else [])
    ids = AutoTokenizer.from_pretrained(out)("1 + 2 = ", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = merged(ids).logits
        assert torch.equal(logits, reference(ids).logits)
        assert not torch.allclose(logits, AutoModelForCausalLM.from_pretrained(models / "b")(ids).logits, atol=1e-2)
    assert (out / "generation_config.json").is_file()
    assert not any((tmp_path / "deep").glob(".*"))


def test_linear_with_weights_one_and_zero_is_that_model(models: Path, tmp_path: Path) -> None:
    config = config_of("linear", models)
    data = config.model_dump(by_alias=True, exclude_unset=True)
    data["models"][0]["parameters"]["weight"], data["models"][1]["parameters"]["weight"] = 0.0, 2.0
    out = merge(MergeConfig.model_validate(data), tmp_path / "out", silent)
    merged, given = load_file(out / "model.safetensors"), load_file(models / "b" / "model.safetensors")
    assert merged.keys() == given.keys()
    assert all(torch.equal(merged[name], given[name]) for name in given)


def test_layers_have_their_own_coefficients(models: Path, tmp_path: Path) -> None:
    config = config_of("slerp", models, parameters={"t": [{"filter": "layers.", "value": [0.0, 1.0]}, {"value": 0.0}]})
    stored = load_file(merge(config, tmp_path / "out", silent) / "model.safetensors")
    base, other = (load_file(models / name / "model.safetensors") for name in ("base", "b"))
    for name, tensor in stored.items():
        assert torch.equal(tensor, (other if "layers.1." in name else base)[name]), name


@pytest.mark.parametrize("method", ["linear", "dare_ties"])
def test_shards_may_be_laid_out_differently(method: str, models: Path, tmp_path: Path) -> None:
    """The same tensors whatever files the inputs have; the output is laid out as the first model."""
    whole = load_file(merge(config_of(method, models), tmp_path / "whole", silent) / "model.safetensors")
    for name, size in (("base", "60KB"), ("a", "100KB"), ("b", "200KB")):
        AutoModelForCausalLM.from_pretrained(models / name).save_pretrained(tmp_path / name, max_shard_size=size)
        make_tiny_tokenizer().save_pretrained(tmp_path / name)
    counts = [len(list((tmp_path / name).glob("*.safetensors"))) for name in ("base", "a", "b")]
    assert counts[0] > counts[1] > counts[2] > 1
    out = merge(config_of(method, tmp_path), tmp_path / "sharded", silent)
    files = sorted(out.glob("*.safetensors"))
    assert len(files) == counts[1 if method == "linear" else 0]
    sharded = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert sharded.keys() == whole.keys()
    assert all(torch.equal(sharded[name], whole[name]) for name in whole)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    loaded = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(loaded[name], whole[name]) for name in whole)


def test_a_tied_head_that_one_folder_stores_and_another_does_not(models: Path, tmp_path: Path) -> None:
    stored = load_file(models / "a" / "model.safetensors")
    shutil.copytree(models, tmp_path / "models")
    embedding = stored["model.embed_tokens.weight"]
    save_file(stored | {"lm_head.weight": embedding.clone()}, tmp_path / "models/a/model.safetensors", {"format": "pt"})
    out = merge(config_of("linear", tmp_path / "models"), tmp_path / "out", silent)
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    assert merged.lm_head.weight.data_ptr() == merged.model.embed_tokens.weight.data_ptr()


def test_dare_depends_on_its_seed_alone(models: Path, tmp_path: Path) -> None:
    first, again, other = (
        sha256(merge(config_of("dare_linear", models, seed=seed), tmp_path / name, silent) / "model.safetensors")
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    assert first == again != other


def test_the_dtype_and_its_place_in_the_config(models: Path, tmp_path: Path) -> None:
    out = merge(config_of("linear", models, dtype="bfloat16"), tmp_path / "out", silent)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
    exact = load_file(merge(config_of("linear", models), tmp_path / "exact", silent) / "model.safetensors")
    rounded = load_file(out / "model.safetensors")
    assert all(torch.equal(rounded[name], exact[name].bfloat16()) for name in exact)  # float32 until the end


def test_the_genome(models: Path, tmp_path: Path) -> None:
    config = config_of("ties", models)
    out = merge(config, tmp_path / "out", silent)
    genome = json.loads((out / "genome.json").read_text())
    assert list(genome) == ["rlvr", "merge", "models", "config_differs", "weights"]
    again = MergeConfig.model_validate(genome["merge"])  # a merge by itself
    assert again == config.model_copy(update={"dtype": "float32"})
    for source, read in genome["models"].items():
        assert read["sha256"] == {name: sha256(Path(source) / name) for name in ("config.json", "model.safetensors")}
    assert genome["weights"]["model.safetensors"]["sha256"] == sha256(out / "model.safetensors")


def change_config(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_settings_that_differ_are_told_and_kept(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "b", tmp_path / "b")
    change_config(tmp_path / "b", max_position_embeddings=512)
    config = config_of("linear", models).model_dump(by_alias=True, exclude_unset=True)
    config["models"][1]["model"] = str(tmp_path / "b")
    said: list[str] = []
    out = merge(MergeConfig.model_validate(config), tmp_path / "out", said.append)
    assert any("max_position_embeddings is 256 as in" in line and "512" in line for line in said)
    genome = json.loads((out / "genome.json").read_text())
    assert sorted(genome["config_differs"]["max_position_embeddings"].values()) == [256, 512]


def refused(models: Path, tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(RecipeError) as error:
        merge(config_of("linear", models, **changes), tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()
    return str(error.value)


@pytest.fixture
def spoiled(models: Path, tmp_path: Path) -> Path:
    """Copies of the models, of which a test spoils the second."""
    for name in ("a", "b"):
        shutil.copytree(models / name, tmp_path / name)
    return tmp_path


def spoil(folder: Path, change: Any) -> None:
    stored = load_file(folder / "b" / "model.safetensors")
    save_file(change(stored), folder / "b" / "model.safetensors", {"format": "pt"})


def test_architectures_and_shapes_that_differ(spoiled: Path, models: Path) -> None:
    shutil.rmtree(spoiled / "b")
    shutil.copytree(models / "untied" / "b", spoiled / "b")
    assert "models.1.model: architectures of" in refused(spoiled, spoiled)
    shutil.rmtree(spoiled / "b")
    shutil.copytree(models / "b", spoiled / "b")
    change_config(spoiled / "b", num_attention_heads=4)
    assert "num_attention_heads of" in refused(spoiled, spoiled)


def test_tensors_that_differ(spoiled: Path) -> None:
    spoil(spoiled, lambda stored: {name: tensor for name, tensor in stored.items() if name != "model.norm.weight"})
    message = refused(spoiled, spoiled)
    assert (
        f"{str(spoiled / 'b')!r} lacks 1 tensors that {str(spoiled / 'a')!r} has, the first is model.norm.weight"
        in message
    )
    spoil(spoiled, lambda stored: stored | {"model.norm.weight": torch.zeros(63)})
    assert "model.norm.weight has shape [63] in" in refused(spoiled, spoiled)
    spoil(spoiled, lambda stored: stored | {"model.norm.weight": torch.zeros(64), "extra": torch.zeros(1)})
    assert "has, the first is extra" in refused(spoiled, spoiled)


def test_dtypes_that_differ(spoiled: Path) -> None:
    spoil(spoiled, lambda stored: {name: tensor.bfloat16() for name, tensor in stored.items()})
    assert "is in bfloat16" in refused(spoiled, spoiled)
    assert merge(config_of("linear", spoiled, dtype="float32"), spoiled / "out", silent).is_dir()
    shutil.rmtree(spoiled / "out")
    spoil(spoiled, lambda stored: stored | {"model.norm.weight": torch.zeros(64, dtype=torch.int8)})
    assert "model.norm.weight" in (message := refused(spoiled, spoiled))
    assert "is in I8; merging needs F32, BF16, F16" in message


def test_vocabularies_that_differ(spoiled: Path) -> None:
    swapped = [chr(code) for code in range(126, 31, -1)]
    make_tiny_tokenizer(["\n", *swapped]).save_pretrained(spoiled / "b")
    assert "have different vocabularies: " in refused(spoiled, spoiled)
    assert "have different vocabularies: " in refused(spoiled, spoiled, tokenizer_source=str(spoiled / "a"))
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    tokenizer.save_pretrained(spoiled / "b")
    assert "1 special tokens of" in (message := refused(spoiled, spoiled))
    assert f"tokenizer_source: {spoiled / 'a'}" in message
    out = merge(config_of("linear", spoiled, tokenizer_source=str(spoiled / "b")), spoiled / "out", silent)
    assert "<think>" in AutoTokenizer.from_pretrained(out).get_vocab()


def test_broken_models_and_full_disks(spoiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlvr.merge.merging.shutil.disk_usage", lambda place: shutil._ntuple_diskusage(9, 9, 9))
    assert "0.0 GiB free; choose another disk" in refused(spoiled, spoiled)
    (spoiled / "b" / "tokenizer.json").write_text("{}")
    assert "the tokenizer of" in refused(spoiled, spoiled)
    (spoiled / "b" / "config.json").write_text("{}")
    assert "models.1.model: " in refused(spoiled, spoiled)
    assert "cannot be read" in refused(spoiled, spoiled)


def test_weights_that_are_not_finite(spoiled: Path) -> None:
    spoil(spoiled, lambda stored: stored | {"model.norm.weight": torch.full((64,), torch.nan)})
    with pytest.raises(MergeError, match=r"merged model.norm.weight is not finite; so is that of .*b$"):
        merge(config_of("linear", spoiled), spoiled / "out", silent)
    spoil(spoiled, lambda stored: stored | {"model.norm.weight": torch.full((64,), 1e6)})
    with pytest.raises(MergeError, match="it does not fit float16: write dtype: float32"):
        merge(config_of("linear", spoiled, dtype="float16"), spoiled / "out", silent)
    assert not (spoiled / "out").exists()
    assert not (spoiled / ".out.draft").exists()


def test_a_name_on_the_hub(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["allow_patterns"]))
        return str(models / name.partition("/")[2])

    monkeypatch.setattr("rlvr.merge.models.snapshot_download", download)
    data = {
        "merge_method": "linear",
        "models": [{"model": f"org/{name}", "parameters": {"weight": 1}} for name in "ab"],
    }
    out = merge(MergeConfig.model_validate(data), tmp_path / "out", silent)
    assert [name for name, _ in asked] == ["org/a", "org/b"]
    assert all("*.safetensors" in patterns and "tokenizer*" in patterns for _, patterns in asked)
    assert json.loads((out / "genome.json").read_text())["models"].keys() == {"org/a", "org/b"}


def test_the_command(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = config_of("slerp", models).model_dump(mode="json", by_alias=True, exclude_unset=True)
    file, out = tmp_path / "merge.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(data))
    out.mkdir()  # an empty folder may be there
    assert main(["merge", str(file), str(out), "parameters.t=1.0"]) == 0
    assert "slerp: 20 tensors of 2 models, written in float32" in capsys.readouterr().out
    assert json.loads((out / "genome.json").read_text())["merge"]["parameters"]["t"] == 1.0
    merged, given = load_file(out / "model.safetensors"), load_file(models / "b" / "model.safetensors")
    assert all(torch.equal(merged[name], given[name]) for name in given)
    for arguments, says in (
        ([str(file), str(out)], f"output: {out} exists already and is no empty folder; choose another folder"),
        (
            [str(file), str(tmp_path / "new"), "base_model=" + str(tmp_path / "nowhere")],
            "base_model: there is no folder",
        ),
        ([str(file), str(tmp_path / "new"), "models.0.model=" + str(tmp_path)], "models.0.model: "),
        ([str(file), str(tmp_path / "new"), "parameters.t=2"], "parameters.t: must be from 0 to 1, got 2.0"),
    ):
        assert main(["merge", *arguments]) == 2
        assert says in capsys.readouterr().err
