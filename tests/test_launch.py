"""The files of launch/ as accelerate itself reads them: nothing here repeats its rules."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

LAUNCH = Path(__file__).parents[1] / "launch"
CONFIGS = sorted(LAUNCH.glob("*.yaml"))
NAMES = {"cpu", "cpu2", "gpu", "ddp", "fsdp2", "multi_node"}


def launched(name: str, *extra: str) -> Namespace:
    """What `accelerate launch` makes of a file and further arguments, without starting anything."""
    command = ["--config_file", str(LAUNCH / f"{name}.yaml"), *extra, "-m", "rlvr", "train", "RECIPE", "run.steps=2"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    return arguments


def test_every_launcher_has_a_file() -> None:
    assert {path.stem for path in CONFIGS} == NAMES


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key(path: Path) -> None:
    """Its loader refuses unknown keys on the first level; those within sections become arguments of its launcher,
    which would take a wrong name without a word."""
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.mixed_precision == "no"
    known = {action.dest for action in launch_command_parser()._actions}
    sections = {key: value for key, value in yaml.safe_load(path.read_text()).items() if isinstance(value, dict)}
    assert not {key for section in sections.values() for key in section} - known
    assert path.read_text().startswith("# ")


def test_sharded_configs_reach_the_processes_as_fsdp_version_2() -> None:
    for name in ("fsdp2", "multi_node"):
        arguments = launched(name)
        assert arguments.use_fsdp
        environment = prepare_multi_gpu_env(arguments)
        assert environment["FSDP_VERSION"] == "2"
        assert environment["FSDP_RESHARD_AFTER_FORWARD"] == "true"
        assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
        assert environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
        assert environment["ACCELERATE_MIXED_PRECISION"] == "no"


def test_the_recipe_and_its_overrides_arrive() -> None:
    arguments = launched("ddp", "--num_processes", "4")
    assert (arguments.module, arguments.training_script) == (True, "rlvr")
    assert arguments.training_script_args == ["train", "RECIPE", "run.steps=2"]
    assert (arguments.num_processes, arguments.multi_gpu) == (4, True)


def test_one_process_sees_the_devices_that_its_caller_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler gave this process GPU 5: the launch file does not send it to GPU 0."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    for name in NAMES - {"multi_node"}:
        arguments = launched(name)
        _, environment = prepare_simple_launcher_cmd_env(arguments)
        assert environment["CUDA_VISIBLE_DEVICES"] == "5", name


def test_several_nodes_take_rank_and_address_from_the_command_line() -> None:
    arguments = launched("multi_node", "--num_machines", "4", "--num_processes", "32", "--machine_rank", "3",
                         "--main_process_ip", "node0")  # fmt: skip
    prepare_multi_gpu_env(arguments)
    assert (arguments.nnodes, arguments.node_rank, arguments.nproc_per_node) == ("4", 3, "8")
    assert (arguments.rdzv_backend, arguments.rdzv_endpoint) == ("static", "node0:29500")


@pytest.mark.slow
def test_two_processes_start_on_a_cpu_and_talk(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import torch; from accelerate import Accelerator\n"
        "a = Accelerator(cpu=True); total = a.reduce(torch.ones(1))\n"
        "print(f'rank {a.process_index} of {a.num_processes} on {a.device.type}: {int(total)}', flush=True)\n"
        "a.end_training()"
    )
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / "cpu2.yaml"), str(program)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"rank {rank} of 2 on cpu: 2" in done.stdout


def test_the_slurm_script_passes_its_arguments_on(tmp_path: Path) -> None:
    """Run by bash with stand-ins for Slurm's commands and accelerate: node, rank and arguments arrive unchanged."""
    stand_ins = {
        "scontrol": "echo node7; echo node8",
        "srun": 'shift; export SLURM_NODEID=1; exec "$@"',
        "accelerate": 'printf "<%s>\\n" "$@" "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT"',
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2",
                   "SLURM_GPUS_PER_NODE": "h100:8", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "4012345",
                   "RLVR_VENV": "none"}  # fmt: skip
    done = subprocess.run(
        ["bash", str(LAUNCH / "slurm.sbatch"), "recipes/x.yaml", "template.system=You are a helper"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [line[1:-1] for line in done.stdout.splitlines()]
    assert found == [
        "launch", "--config_file", "launch/multi_node.yaml", "--num_machines", "2", "--num_processes", "16",
        "--machine_rank", "1", "--main_process_ip", "node7", "--main_process_port", "22345",
        "-m", "rlvr", "train", "recipes/x.yaml", "template.system=You are a helper",
        "900",
    ]  # fmt: skip
    launch_command_parser().parse_args(found[1:])
    assert "#SBATCH --signal=TERM@900" in (LAUNCH / "slurm.sbatch").read_text().splitlines()
