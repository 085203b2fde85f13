"""Which devices engines get, and what is refused before anything is started: a table of launches."""

from __future__ import annotations

from typing import Any

import pytest

from rlvr.config import RecipeError, VllmEngineConfig, VllmServersConfig
from rlvr.engines.devices import Devices, Host, Place, engine_places, learner_share, place
from rlvr.engines.servers.serve import _flags
from rlvr.engines.vllm.settings import VllmSettings

CPU_PAIR = Host(ranks=2, ranks_here=2)
ONE_GPU = Host(gpus=1)
NODE = Host(ranks=8, ranks_here=8, gpus=8)
SIX_OF_EIGHT = Host(ranks=6, ranks_here=6, gpus=8)
TWO_NODES = Host(ranks=16, ranks_here=8, gpus=8)


@pytest.mark.parametrize(
    ("devices", "tensor_parallel", "host", "expected"),
    [
        ("first", 1, Host(), [((0,), True)]),
        ("each", 1, Host(), [((0,), True)]),
        ("each", 1, CPU_PAIR, [((0,), True), ((1,), True)]),
        ("each", 2, CPU_PAIR, [((0,), True), ((1,), True)]),  # tensor parallel workers of a CPU share its cores anyway
        ([0, 1, 2], 1, Host(), [((0,), True), ((1,), False), ((2,), False)]),
        ("first", 1, ONE_GPU, [((0,), True)]),
        ("first", 2, NODE, [((0, 1), True)]),
        ("first", 4, Host(gpus=8), [((0, 1, 2, 3), True)]),
        ("each", 1, NODE, [((device,), True) for device in range(8)]),
        ("each", 4, NODE, [((0, 1, 2, 3), True), ((4, 5, 6, 7), True)]),
        ("each", 1, SIX_OF_EIGHT, [((device,), True) for device in range(6)]),
        ([6, 7], 1, SIX_OF_EIGHT, [((6,), False), ((7,), False)]),
        ([6, 7], 2, SIX_OF_EIGHT, [((6, 7), False)]),
        ([5, 6], 2, SIX_OF_EIGHT, [((5, 6), True)]),
        ([7, 6], 1, SIX_OF_EIGHT, [((7,), False), ((6,), False)]),
        ("first", 1, TWO_NODES, [((0,), True)]),
    ],
)
def test_who_gets_which_devices(
    devices: Devices, tensor_parallel: int, host: Host, expected: list[tuple[tuple[int, ...], bool]]
) -> None:
    assert place(devices, tensor_parallel, host) == [Place(*one) for one in expected]


@pytest.mark.parametrize(
    ("devices", "tensor_parallel", "host", "message"),
    [
        ("each", 1, TWO_NODES, "8 of its 16 ranks on others; start an engine there by `rlvr serve`"),
        ("each", 3, NODE, r"each is 8 devices, which engines of tensor_parallel = 3 cannot share out: 8 = 2 x 3 \+ 2"),
        ([6, 7, 5], 2, NODE, r"\[6, 7, 5\] is 3 devices, .*: 3 = 1 x 2 \+ 1"),
        ([8], 1, NODE, r"\[8\] with tensor_parallel = 1 asks for GPU 8, and this node shows 8: 0 to 7"),
        ("first", 2, ONE_GPU, "first with tensor_parallel = 2 asks for GPU 1, and this node shows 1: 0 to 0"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_the_arithmetic(
    devices: Devices, tensor_parallel: int, host: Host, message: str
) -> None:
    with pytest.raises(RecipeError, match=r"rollout\.engine\.devices: .*" + message):
        place(devices, tensor_parallel, host)


def test_an_engine_alone_on_its_gpu_takes_most_of_it() -> None:
    shares: list[Any] = [one.memory_share for one in place([5, 6], 1, SIX_OF_EIGHT)]
    assert shares == [0.4, 0.9]


def host(gpus: int, processes: int = 1, **environment: str) -> Host:
    return Host(gpus=gpus, ranks=processes, ranks_here=processes, environment=environment)


def servers(**settings: Any) -> VllmServersConfig:
    return VllmServersConfig.model_validate({"type": "vllm_servers", **settings})


def engine(**settings: Any) -> VllmEngineConfig:
    return VllmEngineConfig.model_validate({"type": "vllm", **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"extra": {"data_parallel_size": 4}}, "rollout.engine.extra.data_parallel_size must be 1"),
        ({"extra": {"pipeline_parallel_size": 2}}, "rollout.engine.extra.pipeline_parallel_size must be 1"),
    ],
)
def test_an_engine_in_the_run_has_one_gpu(settings: dict[str, Any], said: str) -> None:
    engine_places(engine(**settings), host(0))
    with pytest.raises(RecipeError, match=said):
        engine_places(engine(**settings), host(8))


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_expandable_segments_are_refused_where_weights_travel_by_cuda_ipc(name: str) -> None:
    setting = {name: "max_split_size_mb:512, expandable_segments:True"}
    with pytest.raises(RecipeError, match=rf"{name} must not have expandable_segments:True.*unset it"):
        engine_places(engine(), host(1, **setting))
    engine_places(engine(), host(1, **{name: "expandable_segments:False"}))
    engine_places(engine(), host(0, **setting))
    engine_places(servers(devices=[1]), host(2, **setting))


def test_a_quantised_engine_is_refused_where_weights_travel_through_a_file() -> None:
    extra = {"quantization": "fp8"}
    for settings in (servers(devices=[1], extra=extra), servers(urls=["http://10.0.0.1:1"], extra=extra)):
        with pytest.raises(RecipeError, match=r"rollout.engine.extra.quantization must be left out.*got 'fp8'"):
            engine_places(settings, host(2))
    engine_places(servers(devices=[1], transfer="nccl", extra=extra), host(2))
    engine_places(engine(extra=extra), host(1))


def test_the_devices_of_a_server_stand_on_its_command_line() -> None:
    placed = VllmSettings(model="m", device_ids=(2, 3)).arguments(on_cpu=False, gpu_transfer="rlvr_file")
    assert _flags({"device_ids": placed["device_ids"]}) == ["--device-ids", "2,3"]
    assert VllmSettings(model="m").arguments(on_cpu=False, gpu_transfer="rlvr_file")["device_ids"] is None


def test_what_belongs_to_an_engine_in_rank_0_is_refused_for_servers() -> None:
    for key in ("sleep", "stats"):
        with pytest.raises(RecipeError, match=rf"rollout.engine.{key} must be false with .*devices: \[6\] .*got true"):
            engine_places(engine(devices=[6], **{key: True}), host(8))
        engine_places(engine(**{key: True}), host(8))


def test_prompts_come_in_chunks_on_gpus_only() -> None:
    """On a CPU a seeded request would lose its place in its noise between two chunks."""
    settings = VllmSettings(model="m")
    assert settings.arguments(on_cpu=True, gpu_transfer="x")["enable_chunked_prefill"] is False
    there = settings.arguments(on_cpu=False, gpu_transfer="x")
    assert "enable_chunked_prefill" not in there
    assert there["max_num_batched_tokens"] == 8192


@pytest.mark.parametrize(
    ("settings", "host", "rank", "share"),
    [
        ({}, ONE_GPU, 0, 0.55),  # 1 - 0.4 for the engine - 0.05 to spare
        ({"gpu_memory_share": 0.25}, NODE, 0, 0.7),
        ({"gpu_memory_share": 0.25}, NODE, 3, None),  # the engine is on the first GPU
        ({"devices": "each"}, NODE, 3, 0.55),
        ({"devices": [6, 7]}, SIX_OF_EIGHT, 5, None),
        ({"sleep": True}, ONE_GPU, 0, None),
    ],
)
def test_the_learner_leaves_an_engine_on_its_gpu_its_memory(
    settings: dict[str, Any], host: Host, rank: int, share: float | None
) -> None:
    engine = VllmEngineConfig.model_validate({"type": "vllm", **settings})
    found = learner_share(engine, engine_places(engine, host), rank)
    assert found == (None if share is None else pytest.approx(share))
