"""Names of torch dtypes, as recipes and safetensors files spell them."""

from __future__ import annotations

from typing import Literal

import torch

DtypeName = Literal["float32", "bfloat16", "float16"]

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""By the name in a recipe."""

SAFETENSORS_NAMES: dict[torch.dtype, str] = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def itemsize(name: str) -> int:
    """Bytes of one value of the dtype that a recipe calls ``name``."""
    return DTYPES[name].itemsize
