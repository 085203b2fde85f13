"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) by peft: each adapted layer computes (W + alpha/rank B A) x.

Only A and B train. The engine and the checkpoint's folder get plain weights under the base model's names, merged while
they stream; the policy itself stays unmerged, so that its weights never lose what a sum in bfloat16 would round away.

    layers.0.q_proj.base_layer.weight   ──►  layers.0.q_proj.weight = W + alpha/rank B A
    layers.0.q_proj.lora_A.default.weight ┘
    layers.0.q_proj.lora_B.default.weight ┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlvr.config.recipe import Lora
from rlvr.errors import InputError

ADAPTER = "adapter"
"""Folder inside a policy's folder that holds the adapters as peft writes them."""
_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


class LoraError(InputError, ValueError):
    """Adapters cannot be added or loaded; the message names the key and what to do."""


def add_adapters(model: PreTrainedModel, config: Lora) -> None:
    """Freeze ``model`` and put adapters into its linear layers, in place: A random by the seed, B zero, both float32 or
    wider. Raises `LoraError` for targets that the model does not have, or without peft."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise LoraError(f"model.lora needs peft ({error}); pip install 'rlvr[lora]'") from error
    targets = {name.rpartition(".")[2] for name in adapted_layers(model, config)}
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
        lora_dropout=0.0,
        target_modules=sorted(targets),
        task_type="CAUSAL_LM",
    )
    settings.base_model_name_or_path = model.config._name_or_path
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = is_adapter(name)
        if is_adapter(name):
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def adapted_layers(model: PreTrainedModel, config: Lora) -> dict[str, nn.Linear]:
    """The layers that get adapters, by name. Raises `LoraError` for targets that are not there, or that are so narrow
    that an adapter would be larger than the layer."""
    body: nn.Module = model.base_model
    linear = {name: layer for name, layer in body.named_modules() if isinstance(layer, nn.Linear)}
    known = {name.rpartition(".")[2] for name in linear}
    targets = known if config.targets == "all" else set(config.targets)
    if not known or targets - known:
        raise LoraError(
            f"model.lora.targets: {type(model).__name__} has no linear layer {sorted(targets - known)} below its head; "
            f"it has {sorted(known)}"
        )
    layers = {name: layer for name, layer in linear.items() if name.rpartition(".")[2] in targets}
    for name, layer in layers.items():
        if config.rank > (full_rank := min(layer.in_features, layer.out_features)):
            raise LoraError(
                f"model.lora.rank must be at most {full_rank}, the full rank of {name} ({layer.in_features} to "
                f"{layer.out_features}), got {config.rank}: lower it or leave that layer out of model.lora.targets"
            )
    return layers


def adapter_size(model: PreTrainedModel, config: Lora) -> int:
    """Number of adapter parameters of ``model``; raises as `adapted_layers` does."""
    return sum(
        config.rank * (layer.in_features + layer.out_features) for layer in adapted_layers(model, config).values()
    )


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an A or a B."""
    return name.endswith((_A, _B))


def merged(tensors: Iterable[tuple[str, Tensor]], config: Lora) -> Iterator[tuple[str, Tensor]]:
    """The stream of an adapted model's parameters as that of its base model: W + alpha/rank B A under W's own name.

    Sums are in float32 and rounded once; one layer is held at a time. Each layer's weight comes before its A and B.
    """
    weights: dict[str, Tensor] = {}
    downs: dict[str, Tensor] = {}
    for name, tensor in tensors:
        layer, is_base, kind = name.partition(_BASE)
        if is_base and kind == "weight":
            weights[layer] = tensor
        elif name.endswith(_A):
            downs[name.removesuffix(_A)] = tensor
        elif name.endswith(_B):
            layer = name.removesuffix(_B)
            weight, down = weights.pop(layer), downs.pop(layer)
            change = (tensor @ down).mul_(config.alpha / config.rank)
            yield f"{layer}.weight", (weight + change).to(weight.dtype)
        else:
            yield name.replace(_BASE, "."), tensor
    assert not weights, f"adapters are missing for {[*weights]}"


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The base model's own function inside the block."""
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling = dict.fromkeys(layer.scaling, 0.0)
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling


def save_adapters(model: PreTrainedModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write the given A and B, whole, as ``PeftModel.from_pretrained`` reads them."""
    from peft import get_peft_model_state_dict

    target = folder / ADAPTER
    target.mkdir()
    named = get_peft_model_state_dict(model, state_dict=dict(tensors))
    save_file({f"base_model.model.{key}": t.contiguous() for key, t in named.items()},
              target / "adapter_model.safetensors", metadata={"format": "pt"})  # fmt: skip
    model.peft_config["default"].save_pretrained(str(target))


def load_adapters(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """Load what `save_adapters` wrote, by the names of ``model``'s parameters. Raises `LoraError` if it does not
    fit."""
    path = folder / ADAPTER / "adapter_model.safetensors"
    if not path.is_file():
        raise LoraError(f"model.lora: {folder} holds no adapters; resume with the recipe that wrote it")
    saved = {}
    for key, tensor in load_file(path).items():
        saved[key.removeprefix("base_model.model.").replace(".weight", ".default.weight")] = tensor
    wanted = {name: p.shape for name, p in model.named_parameters() if is_adapter(name)}
    if wanted != {name: tensor.shape for name, tensor in saved.items()}:
        raise LoraError(
            f"model.lora: the adapters in {path} have another rank or other targets; resume with the recipe that "
            "wrote it"
        )
    return saved


def base_policy(
    model: nn.Module, wrapped: Callable[..., tuple[Tensor, Tensor]]
) -> Callable[..., tuple[Tensor, Tensor]]:
    """The policy without its adapters, which is where it started: a reference that costs no second model. ``wrapped``
    is the policy over ``model`` as its backend calls it."""

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        with without_adapters(model):
            return wrapped(*arguments)

    return forward
