"""Which devices engines get, and what is refused before anything is started: a table of hosts."""

from __future__ import annotations

from typing import Any

import pytest

from rlvr.config import RecipeError, VllmEngineConfig, VllmServersConfig
from rlvr.engines.devices import Host, check_devices, server_devices
from rlvr.engines.servers.serve import serve_command
from rlvr.engines.vllm.settings import VllmSettings


def host(gpus: int, processes: int = 1, **environment: str) -> Host:
    return Host(gpus=gpus, processes=processes, environment=environment)


def servers(**settings: Any) -> VllmServersConfig:
    return VllmServersConfig.model_validate({"type": "vllm_servers", **settings})


def engine(**settings: Any) -> VllmEngineConfig:
    return VllmEngineConfig.model_validate({"type": "vllm", **settings})


@pytest.mark.parametrize(
    ("gpus", "processes", "spawn", "size", "devices"),
    [
        (0, 1, 2, 1, [None, None]),  # CPUs
        (2, 1, 1, 1, ["1"]),
        (8, 4, 4, 1, ["4", "5", "6", "7"]),
        (8, 4, 2, 2, ["4,5", "6,7"]),
        (8, 6, 1, 2, ["6,7"]),
        (1, 1, 0, 1, []),
    ],
)
def test_servers_get_the_devices_behind_those_of_the_learner(
    gpus: int, processes: int, spawn: int, size: int, devices: list[str | None]
) -> None:
    settings = servers(spawn=spawn, tensor_parallel=size, urls=["http://127.0.0.1:1"])
    assert server_devices(settings, host(gpus, processes)) == devices


@pytest.mark.parametrize(
    ("gpus", "processes", "spawn", "size"), [(1, 1, 1, 1), (8, 8, 1, 1), (8, 6, 3, 1), (4, 1, 2, 2)]
)
def test_too_few_devices_are_refused_with_the_arithmetic(gpus: int, processes: int, spawn: int, size: int) -> None:
    with pytest.raises(RecipeError) as refused:
        check_devices(servers(spawn=spawn, tensor_parallel=size), host(gpus, processes))
    assert f"{spawn} servers of {size} GPUs, {spawn * size} in all" in str(refused.value)
    assert f"of the {gpus} GPUs here {processes} belong" in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tensor_parallel": 2}, "rollout.engine.tensor_parallel must be 1 with type vllm on a GPU, got 2"),
        ({"extra": {"data_parallel_size": 4}}, "rollout.engine.extra.data_parallel_size must be 1"),
        ({"extra": {"pipeline_parallel_size": 2}}, "rollout.engine.extra.pipeline_parallel_size must be 1"),
    ],
)
def test_an_engine_in_the_run_has_one_gpu(settings: dict[str, Any], said: str) -> None:
    check_devices(engine(**settings), host(0))
    with pytest.raises(RecipeError, match=said):
        check_devices(engine(**settings), host(8))


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_expandable_segments_are_refused_where_weights_travel_by_cuda_ipc(name: str) -> None:
    setting = {name: "max_split_size_mb:512, expandable_segments:True"}
    with pytest.raises(RecipeError, match=rf"{name} must not have expandable_segments:True.*unset it"):
        check_devices(engine(), host(1, **setting))
    check_devices(engine(), host(1, **{name: "expandable_segments:False"}))
    check_devices(engine(), host(0, **setting))
    check_devices(servers(spawn=1), host(2, **setting))


def test_a_quantised_engine_is_refused_where_weights_travel_through_a_file() -> None:
    extra = {"quantization": "fp8"}
    for settings in (servers(spawn=1, extra=extra), servers(urls=["http://10.0.0.1:1"], extra=extra)):
        with pytest.raises(RecipeError, match=r"rollout.engine.extra.quantization must be left out.*got 'fp8'"):
            check_devices(settings, host(2))
    check_devices(servers(spawn=1, transfer="nccl", extra=extra), host(2))
    check_devices(engine(extra=extra), host(1))


def test_the_devices_of_a_server_stand_on_its_command_line() -> None:
    command = serve_command(VllmSettings(model="m"), "rlvr_file", "127.0.0.1", 1, "2,3")
    assert command[command.index("--device-ids") + 1] == "2,3"
    assert "--device-ids" not in serve_command(VllmSettings(model="m"), "rlvr_file", "127.0.0.1", 1)


def test_prompts_come_in_chunks_on_gpus_only() -> None:
    """On a CPU a seeded request would lose its place in its noise between two chunks."""
    settings = VllmSettings(model="m")
    assert settings.arguments(on_cpu=True, gpu_transfer="x")["enable_chunked_prefill"] is False
    there = settings.arguments(on_cpu=False, gpu_transfer="x")
    assert "enable_chunked_prefill" not in there
    assert there["max_num_batched_tokens"] == 8192
