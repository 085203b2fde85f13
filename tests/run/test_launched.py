"""GPUs that were asked for and are not there; what the first screen says of launcher and devices."""

from __future__ import annotations

import pytest

from rlvr.learn.backend import LaunchError
from rlvr.run.launch import check_gpus, describe, shutdown_seconds


@pytest.mark.parametrize(
    ("environment", "driver", "said"),
    [
        ({}, False, None),
        ({"ACCELERATE_USE_CPU": "True"}, True, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, True, None),
        ({"ACCELERATE_USE_CPU": "False"}, False, "accelerate was launched for GPUs"),
        ({"ACCELERATE_USE_FSDP": "true"}, False, "accelerate was launched for GPUs"),
        ({}, True, "this machine has an NVIDIA driver"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, True, "this machine has an NVIDIA driver"),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_no_silent_cpu(
    environment: dict[str, str], driver: bool, said: str | None
) -> None:
    check_gpus(environment, cuda=True, driver=driver)
    if said is None:
        check_gpus(environment, cuda=False, driver=driver)
    else:
        with pytest.raises(LaunchError, match=rf"{said}.*torch sees no.*was built for.*580.*launch/cpu.yaml"):
            check_gpus(environment, cuda=False, driver=driver)


def test_the_first_screen_says_which_gpus_are_idle_and_how_long_the_launcher_waits() -> None:
    assert describe(1, "cpu", 0, {}) == "1 on cpu"
    assert describe(1, "cuda", 8, {}).startswith("1 on cuda, 1 of the 8 GPUs here (launch/ddp.yaml")
    launched = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "8"}
    assert describe(16, "cuda", 8, launched) == "16 on cuda; killed 30 s after SIGTERM (TORCH_ELASTIC_SHUTDOWN_TIMEOUT)"
    assert shutdown_seconds(launched | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "900"}) == 900.0
    assert shutdown_seconds({}) is None
