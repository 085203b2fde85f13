"""Does rlvr work on this machine's GPUs? For `make gpu-check`; written without one at hand, never run on one.

    python benchmarks/gpu_check.py              # exits 0 if all is well, 1 if a check failed, 2 without a GPU
    python benchmarks/gpu_check.py --rehearse   # the same checks on CPUs, through launch/cpu.yaml and cpu2.yaml

| check          | launched through            | what has to hold                                           |
|----------------|-----------------------------|------------------------------------------------------------|
| run, tied      | launch/gpu.yaml             | five steps of `rlvr train`, a sixth from its checkpoint:   |
| run, untied    |                             | weights by CUDA IPC, each group of parameters proved to    |
|                |                             | arrive; engine and learner close at each sync              |
| learner, one   | launch/gpu.yaml             | five updates: the figures that the others have to give     |
| learner, ddp   | launch/ddp.yaml             | the same losses, gradient norms and weights                |
| learner, fsdp2 | launch/fsdp2.yaml           | the same                                                   |
| run, fsdp2     | launch/fsdp2.yaml           | as the first, the weights gathered from their shards       |

Models are tiny and random. Sharded checks take two GPUs, or one where there is no second, which the table says. vLLM's
sleep mode is not checked, because rlvr does not use it. What could not be checked is named, never counted as passed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards import Outcome, Verdict

ROOT = Path(__file__).parents[1]
STEPS = 5
CLOSE = 0.25
"""Nats by which engine (bfloat16) and learner (float32) may differ on average; 0.03 is usual."""
TOLERANCE = 1e-3
"""Relative difference between one process and several: float32 sums in another order, five updates long."""
SECONDS = 1800
PROBLEMS = [{"problem": f"What is {a}+{a}?", "answer": str(2 * a)} for a in range(10, 42)]


class Even:
    """Right if the completion has an even number of vowels: about half of what a random model writes."""

    def check_reference(self, reference: Any) -> None:
        """Any will do."""

    def grade(self, completion: str, reference: Any) -> Verdict:
        """CORRECT or WRONG."""
        right = sum(map(completion.count, "aeiou")) % 2 == 0
        return Verdict(float(right), Outcome.CORRECT if right else Outcome.WRONG)


class NotChecked(Exception):
    """A check that this machine cannot make; the message says why."""


class CheckFailed(Exception):
    """What did not hold."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the checks run on."""

    folder: Path
    ranks: int
    rehearsal: bool

    def launch(self, config: str, arguments: Sequence[str]) -> None:
        """Run one command under `accelerate launch`; raises `CheckFailed` with the end of its output."""
        processes = [] if config == "gpu" else ["--num_processes", str(self.ranks)]
        if self.rehearsal:
            config, processes = ("cpu" if config == "gpu" else "cpu2"), []
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", f"launch/{config}.yaml", *processes, *arguments]
        log = self.folder / "output.log"
        with log.open("ab") as file:
            start = file.tell()
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=SECONDS, check=False
            )
        if done.returncode:
            end = log.read_bytes()[start:].decode(errors="replace").splitlines()[-25:]
            raise CheckFailed("\n      ".join([f"exit status {done.returncode} of {' '.join(command)}", *end]))


def make_model(folder: Path, *, tied: bool) -> None:
    """A random two-layer Llama of printable characters, with heads of a size that vLLM's GPU kernels have."""
    import torch
    from tokenizers import Tokenizer, decoders, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = ["<pad>", "<eos>", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.2, tie_word_embeddings=tied,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)


def write_recipe(folder: Path, model: Path, name: str, steps: int) -> Path:
    """A complete recipe for a run of a few seconds."""
    (folder / "problems.jsonl").write_text("".join(json.dumps(one) + "\n" for one in PROBLEMS))
    engine = {"type": "vllm", "dtype": "bfloat16", "max_num_seqs": 32, "kv_cache_gib": 0.1, "gpu_memory_share": 0.2}
    recipe = {
        "schema": 1,
        "name": name,
        "run": {"steps": steps, "output": str(folder / "runs"), "save_every": STEPS, "resume": "auto"},
        "model": {"path": str(model), "autocast": "bfloat16"},
        "template": {"type": "none"},
        "problems": {"train": {"type": "jsonl", "path": str(folder / "problems.jsonl")}},
        "rewards": {"terms": [{"name": "even", "verifier": "benchmarks.gpu_check:Even"}]},
        "rollout": {"engine": engine, "prompts_per_step": 8, "group_size": 8, "max_new_tokens": 24, "self_test": True},
        "algorithm": {"updates_per_batch": 2, "correction": {"type": "truncate"}, "kl": {"type": "k3"}},
        "learner": {"lr": 1.0e-4, "micro_batch_tokens": 512},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def check_run(machine: Machine, config: str, *, tied: bool) -> str:
    """A whole run: weight sync with its proof, updates, checkpoint, going on."""
    name = f"{config}_{'tied' if tied else 'untied'}"
    model = machine.folder / name
    make_model(model, tied=tied)
    for steps in (STEPS, STEPS + 1):
        recipe = write_recipe(machine.folder, model, name, steps)
        machine.launch(config, ["-m", "rlvr", "train", str(recipe)])
    lines = [json.loads(line) for line in (machine.folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    found = [line["step"] for line in lines]
    if found != list(range(1, STEPS + 2)):
        raise CheckFailed(f"metrics.jsonl has the steps {found}, expected 1 to {STEPS + 1}, each once")
    for line in lines:
        if not line["update/count"] >= 1 or not math.isfinite(line["update/loss"]):
            raise CheckFailed(f"step {line['step']}: {line['update/count']} updates, loss {line.get('update/loss')}")
        if not line["sync/mismatch"] <= CLOSE:
            raise CheckFailed(
                f"step {line['step']}: engine and learner are {line['sync/mismatch']:.3f} nats apart, more than {CLOSE}"
            )
    worst = max(line["sync/mismatch"] for line in lines)
    return f"{len(lines)} steps, engine and learner within {worst:.3f} nats at each sync"


def check_learner(machine: Machine, config: str, name: str) -> str:
    """Five updates; on anything but one process they have to give what one process gave."""
    model = machine.folder / "learner"
    if not model.exists():
        make_model(model, tied=True)
    out = machine.folder / f"{name}.json"
    machine.launch(config, ["benchmarks/gpu_check.py", "--learner", str(model), str(out)])
    found = json.loads(out.read_text())
    shown = f"loss {found['loss'][0]:.5f} to {found['loss'][-1]:.5f} on {found['backend']}, {found['ranks']} ranks"
    one = machine.folder / "one.json"
    if name == "one":
        return shown
    if not one.exists():
        raise NotChecked("there are no figures of one process to compare with: that check failed")
    expected, worst = json.loads(one.read_text()), 0.0
    for key in ("loss", "grad_norm", "weights"):
        for ours, theirs in zip(found[key], expected[key], strict=True):
            apart = abs(ours - theirs) / max(abs(theirs), 1e-2)
            if not apart <= TOLERANCE:
                raise CheckFailed(f"{key}: {found[key]}, one process had {expected[key]}")
            worst = max(worst, apart)
    return f"{shown}, within {worst:.0e} of one process"


def samples(step: int) -> list[Any]:
    """Random completions with random advantages, the same on every machine."""
    from rlvr.records import TrainingSample

    draw = random.Random(step)
    made = []
    for index in range(16):
        prompt, completion = draw.randint(3, 8), draw.randint(4, 40)
        made.append(
            TrainingSample(
                ids=tuple(draw.randrange(2, 97) for _ in range(prompt + completion)),
                loss_mask=(0,) * prompt + (1,) * completion,
                behaviour_logprobs=(0.0,) * prompt + tuple(-draw.uniform(1, 6) for _ in range(completion)),
                advantage=draw.uniform(-1, 1),
                group=index // 4,
            )
        )
    return made


def train_learner(model: str, out: str) -> None:
    """What each rank of a learner check does; rank 0 writes the figures."""
    import torch
    from accelerate import Accelerator

    from rlvr.config import Algorithm, LearnerConfig, Model
    from rlvr.learn import update

    torch.backends.cuda.matmul.allow_tf32 = False
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    algorithm = Algorithm.model_validate({"updates_per_batch": 2, "kl": {"type": "k3", "coefficient": 0.05}})
    config = LearnerConfig.model_validate({"lr": 1e-4, "epsilon": 1e-3, "micro_batch_tokens": 128})
    learner = update.Learner(
        Model(path=model), config, algorithm, total_updates=2 * STEPS, temperature=1.0, accelerator=accelerator
    )
    figures: dict[str, Any] = {"backend": accelerator.distributed_type.value, "ranks": accelerator.num_processes}
    figures |= {"loss": [], "grad_norm": []}
    for step in range(STEPS):
        metrics = learner.update(samples(step) if accelerator.is_main_process else None)
        figures["loss"].append(metrics["update/loss"])
        figures["grad_norm"].append(metrics["update/grad_norm"])
    figures["weights"] = [float(tensor.double().norm()) for _, tensor in learner.named_weights()]
    if accelerator.is_main_process:
        Path(out).write_text(json.dumps(figures))
    accelerator.end_training()


def check_all(machine: Machine, only: str) -> int:
    """Make every check whose name holds `only`, whatever became of those before it; the number that failed."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("run, tied", lambda: check_run(machine, "gpu", tied=True)),
        ("run, untied", lambda: check_run(machine, "gpu", tied=False)),
        ("learner, one", lambda: check_learner(machine, "gpu", "one")),
        ("learner, ddp", lambda: check_learner(machine, "ddp", "ddp")),
        ("learner, fsdp2", lambda: check_learner(machine, "fsdp2", "fsdp2")),
        ("run, fsdp2", lambda: check_run(machine, "fsdp2", tied=True)),
    ]
    failed = 0
    for name, check in checks:
        if only not in name:
            continue
        try:
            result, text = "ok", check()
        except NotChecked as reason:
            result, text = "NOT CHECKED", str(reason)
        except (CheckFailed, subprocess.TimeoutExpired) as error:
            result, text, failed = "FAILED", str(error), failed + 1
        print(f"{name:16}{result:13}{text}", flush=True)
    return failed


def main() -> int:
    """Exit status 0, 1 or 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on CPUs: tries the checks themselves")
    parser.add_argument("--only", default="", metavar="TEXT", help="only checks with this in their name, e.g. learner")
    parser.add_argument("--learner", nargs=2, metavar=("MODEL", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.learner:
        train_learner(*arguments.learner)
        return 0
    import torch

    gpus = torch.cuda.device_count()
    if not gpus and not arguments.rehearse:
        print("gpu-check: torch sees no GPU here, nothing was checked (--rehearse tries the checks on CPUs)")
        return 2
    ranks = 2 if arguments.rehearse else min(2, gpus)
    where = "CPUs" if arguments.rehearse else f"{gpus} x {torch.cuda.get_device_name()}"
    print(f"gpu-check on {where}; several processes means {ranks}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="rlvr-gpu-check-"))
    failed = check_all(Machine(folder, ranks, arguments.rehearse), arguments.only)
    print(f"{'everything checked held' if not failed else f'{failed} checks failed'}; output in {folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
