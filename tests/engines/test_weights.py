"""The file that carries weights, read back by safetensors itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlvr.engines.protocol import EngineError
from rlvr.engines.weights import checked, read_manifest, staged


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())


@pytest.mark.parametrize("kind", ["tiny_tied", "tiny_untied"])
def test_the_manifest_is_the_models_parameters(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    manifest = read_manifest(folder)
    assert manifest.shapes == {name: tuple(tensor.shape) for name, tensor in weights_of(folder).items()}
    assert manifest.tied == (kind == "tiny_tied")


def test_the_manifest_of_a_sharded_folder_is_the_same(tiny_untied: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_untied).save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert read_manifest(tmp_path) == read_manifest(tiny_untied)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_file_has_each_tensor_in_the_engines_dtype(tiny_tied: Path, dtype: torch.dtype) -> None:
    """The stream comes in reverse order and not contiguous: place and layout in the file do not depend on it."""
    weights = weights_of(tiny_tied)
    stream = [(n, t.T.contiguous().T if t.dim() == 2 else t) for n, t in reversed(weights.items())]
    with staged(read_manifest(tiny_tied), stream, dtype) as path:
        stored = load_file(path)
        assert Path(path).exists()
    assert not Path(path).exists()
    assert stored.keys() == weights.keys()
    assert all(torch.equal(stored[name], tensor.detach().to(dtype)) for name, tensor in weights.items())


def test_nothing_stays_open_when_the_stream_is_wrong(tiny_tied: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(EngineError, match="are missing"), staged(read_manifest(tiny_tied), [], torch.float32):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_tied_head_may_come_along_if_it_is_the_embedding(tiny_tied: Path) -> None:
    manifest, weights = read_manifest(tiny_tied), weights_of(tiny_tied)
    embedding = weights[manifest.embedding]
    assert [name for name, _ in checked(manifest, [("lm_head.weight", embedding), *weights.items()])] == list(weights)
    with pytest.raises(EngineError, match="tie_word_embeddings"):
        list(checked(manifest, [*weights.items(), ("lm_head.weight", embedding * 1.01)]))


def test_a_folder_without_safetensors_is_named(tiny_tied: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_tied / "config.json").read_bytes())
    with pytest.raises(EngineError, match=r"has no model\.safetensors"):
        read_manifest(tmp_path)
