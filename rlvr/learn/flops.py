"""FLOPs of an update, and the peak FLOP/s of the device: the two numbers behind model FLOPs utilisation.

Utilisation counts the operations that the model needs, not those that are executed: padding, recomputed activations and
recomputed logits raise the time but not the count (Chowdhery et al. 2022, PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import time

import torch
from transformers import PreTrainedModel

_PEAK_TFLOPS = {
    "B200": 2250.0, "H200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0,
    "L40": 181.0, "L4": 121.0, "A40": 150.0, "A10G": 70.0, "A10": 125.0, "4090": 165.0, "3090": 71.0,
}  # fmt: skip
"""Peak dense bfloat16 FLOP/s by device, from NVIDIA's data sheets; the first name found in the device's name counts."""


def update_flops(model: PreTrainedModel, positions: float, trained: float) -> float | None:
    """Operations of one forward and backward pass over ``positions`` of which ``trained`` reach the head.

    2 a weight and position forward, 2 backward for the activations' gradient and 2 for the weight's own where it is
    trained; attention between positions is left out (6 N a token: Kaplan et al. 2020, arXiv 2001.08361, table 1). None
    for a mixture of experts, of which a token uses a part.
    """
    head, lookup = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    total: float = (6.0 if head.requires_grad else 4.0) * head.numel() * trained
    for name, parameter in model.named_parameters():
        if "expert" in name:
            return None
        if parameter is not head and parameter is not lookup:
            total += (6.0 if parameter.requires_grad else 4.0) * parameter.numel() * positions
    return total


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second that matrix products reach: NVIDIA's figure for a GPU of the table in bfloat16 or float16,
    else the best of five products measured now."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        for part, tflops in _PEAK_TFLOPS.items():
            if part in name:
                return tflops * 1e12
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, dtype=dtype, device=device)
    return 2.0 * size**3 / min(_seconds(a) for _ in range(6))


def _seconds(a: torch.Tensor) -> float:
    start = time.perf_counter()
    float((a @ a)[0, 0])  # waits for the device
    return time.perf_counter() - start
