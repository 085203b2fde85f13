"""The models of a merge: where their weights are, and whether they can be merged with one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from rlvr.config import RecipeError
from rlvr.config.merge import MergeConfig
from rlvr.dtypes import DTYPES, SAFETENSORS_NAMES
from rlvr.engines.protocol import EngineError
from rlvr.engines.weights import Manifest, read_manifest, weight_files
from rlvr.hub import may_be_hub_name

COPIED = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "*.model", "chat_template.jinja",
)  # fmt: skip
"""Files of a model's folder, beside its weights, that a merged model needs."""

STRUCTURE = (
    "architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "tie_word_embeddings",
)  # fmt: skip
"""Settings of config.json in which weights are only comparable if they are equal."""

_NAMES = {SAFETENSORS_NAMES[dtype]: name for name, dtype in DTYPES.items()}
_IRRELEVANT = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


@dataclass(frozen=True, slots=True)
class MergedModel:
    """One model: its folder, its settings, and in which file each tensor is."""

    source: str
    """As the merge names it."""
    key: str
    """Where the merge names it, for errors."""
    folder: Path
    config: dict[str, Any]
    manifest: Manifest
    files: dict[str, str]
    """File of each tensor, by name."""
    dtype: str

    @property
    def layers(self) -> int:
        """Number of transformer layers."""
        return int(self.config["num_hidden_layers"])

    def tensor(self, name: str) -> Tensor:
        """One tensor, as it is stored."""
        with safe_open(self.folder / self.files[name], framework="pt") as stored:
            tensor: Tensor = stored.get_tensor(name)
        return tensor


def open_models(config: MergeConfig) -> dict[str, MergedModel]:
    """The models of a merge by their names there, the base first, checked against one another.

    Reads headers and settings, no weights. Raises `RecipeError` for a model that cannot be read and for models whose
    architectures, tensors, dtypes or vocabularies differ.
    """
    places = {model.model: f"models.{index}.model" for index, model in reversed(list(enumerate(config.models)))}
    keys = places | ({config.base_model: "base_model"} if config.base_model is not None else {})
    models = {source: _open(source, keys[source]) for source in config.sources}
    first, *others = models.values()
    for other in others:
        _check_structure(first, other)
        _check_tensors(first, other)
        if config.dtype is None and other.dtype != first.dtype:
            raise RecipeError(
                f"{other.key}: {other.source!r} is in {other.dtype}, {first.source!r} in {first.dtype}; "
                f"say what to write: dtype: {first.dtype}"
            )
    _check_vocabularies(list(models.values()), config.tokenizer_source)
    return models


def differing_settings(models: Sequence[MergedModel]) -> dict[str, dict[str, Any]]:
    """Settings of config.json, other than `STRUCTURE`, that are not the same in all models, with each one's value."""
    names = sorted({name for model in models for name in model.config} - {*STRUCTURE, *_IRRELEVANT})
    values = {name: {model.source: model.config.get(name) for model in models} for name in names}
    return {
        name: given
        for name, given in values.items()
        if any(value != given[models[0].source] for value in given.values())
    }


def _open(source: str, key: str) -> MergedModel:
    try:
        folder = _folder(source)
        _, files = weight_files(folder)
        manifest = read_manifest(folder)
        config = AutoConfig.from_pretrained(folder).to_dict()
        where: dict[str, str] = {}
        dtypes: dict[str, str] = {}
        for file in files:
            with safe_open(folder / file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 (not a mapping)
                    if name in manifest.shapes:
                        where[name], dtypes[name] = file, stored.get_slice(name).get_dtype()
    except (EngineError, HfHubHTTPError, SafetensorError, OSError, ValueError, KeyError) as error:
        raise RecipeError(f"{key}: {source!r} cannot be read: {error}") from error
    for name, dtype in dtypes.items():
        if dtype not in _NAMES:
            raise RecipeError(
                f"{key}: {name} of {source!r} is in {dtype}; merging needs {', '.join(_NAMES)}: "
                "give the model as it was before it was quantised"
            )
    kinds = [_NAMES[dtype] for dtype in dtypes.values()]
    return MergedModel(source, key, folder, config, manifest, where, max(set(kinds), key=kinds.count))


def _folder(source: str) -> Path:
    if Path(source).is_dir() or not may_be_hub_name(source):
        return Path(source)
    return Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.safetensors.index.json", *COPIED]))


def _check_structure(first: MergedModel, other: MergedModel) -> None:
    for name in STRUCTURE:
        here, there = first.config.get(name), other.config.get(name)
        if here != there:
            raise RecipeError(
                f"{other.key}: {name} of {other.source!r} is {there!r}, of {first.source!r} {here!r}; "
                "only models of one architecture can be merged, best those trained from one ancestor"
            )


def _check_tensors(first: MergedModel, other: MergedModel) -> None:
    here, there = first.manifest.shapes, other.manifest.shapes
    for owner, lacking in ((first, other), (other, first)):
        missing = sorted(owner.manifest.shapes.keys() - lacking.manifest.shapes.keys())
        if missing:
            raise RecipeError(
                f"{other.key}: {lacking.source!r} lacks {len(missing)} tensors that {owner.source!r} has, the first is "
                f"{missing[0]}; only models with the same tensors can be merged"
            )
    for name, shape in here.items():
        if there[name] != shape:
            raise RecipeError(
                f"{other.key}: {name} has shape {list(there[name])} in {other.source!r}, {list(shape)} in "
                f"{first.source!r}; only tensors of one shape can be merged"
            )


def _check_vocabularies(models: Sequence[MergedModel], tokenizer_source: str | None) -> None:
    """Raise `RecipeError` where a row of the embedding stands for different tokens in two models."""
    tokenizers = [(model, _tokenizer(model)) for model in models if _has_tokenizer(model.folder)]
    for model, tokenizer in tokenizers[1:]:
        first, reference = tokenizers[0]
        added = reference.get_added_vocab() | tokenizer.get_added_vocab()
        there = tokenizer.get_vocab()
        differing = sorted(token for token, row in reference.get_vocab().items() if there.get(token) != row)
        differing += sorted(there.keys() - reference.get_vocab().keys())
        ordinary = [token for token in differing if token not in added]
        if ordinary:
            raise RecipeError(
                f"{model.key}: {model.source!r} and {first.source!r} have different vocabularies: {len(ordinary)} "
                f"tokens differ, one is {ordinary[0]!r}; rows of the embedding would be mixed across tokens: "
                "merge models of one vocabulary"
            )
        if differing and tokenizer_source is None:
            raise RecipeError(
                f"{model.key}: {len(differing)} special tokens of {model.source!r} differ from those of "
                f"{first.source!r}, one is {differing[0]!r}; say whose tokenizer the merged model gets: "
                f"tokenizer_source: {first.source}"
            )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def _tokenizer(model: MergedModel) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(model.folder)
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"{model.key}: the tokenizer of {model.source!r} cannot be read: {error}") from error
