"""A tiny model that has seen one-digit sums worked out with mistakes, and a workspace in which it trains in seconds:
healthy as it stands, sick by one change."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.helpers import make_tiny_model
from tests.runs import Workspace

SFT_STEPS, SFT_BATCH = 500, 64
ERRORS = 0.5
"""Share of the sums that the texts get wrong."""

GRADERS = '''
import re
import time

from rewards import Outcome, Verdict


class Sum:
    """Right if the last number of the text is the reference."""

    def check_reference(self, reference):
        pass

    def grade(self, completion, reference):
        found = re.findall(r"\\d+", completion)
        if not found:
            return Verdict(0.0, Outcome.NO_ANSWER, {})
        right = int(found[-1]) == int(reference)
        return Verdict(float(right), Outcome.CORRECT if right else Outcome.WRONG, {"answer": found[-1]})


class AlwaysRight(Sum):
    def grade(self, completion, reference):
        return Verdict(1.0, Outcome.CORRECT, {})


class Hangs(Sum):
    """Never comes back from a text with an even number of characters."""

    def grade(self, completion, reference):
        if len(completion) % 2 == 0:
            time.sleep(3600)
        return super().grade(completion, reference)


class Raises(Sum):
    """Cannot grade the sums of 7 and more."""

    def grade(self, completion, reference):
        if int(reference) >= 7:
            raise RuntimeError("no such table")
        return super().grade(completion, reference)


class Longer(Sum):
    """Pays for characters, whatever they say."""

    def grade(self, completion, reference):
        score = min(1.0, len(completion) / 60)
        return Verdict(score, Outcome.CORRECT if score == 1.0 else Outcome.PARTIAL, {})


class Shorter(Sum):
    """Pays for every character that is not there."""

    def grade(self, completion, reference):
        score = max(0.0, 1.0 - len(completion) / 20)
        return Verdict(score, Outcome.CORRECT if score == 1.0 else Outcome.PARTIAL, {})


class Near(Sum):
    """Right within two: the model manages that nearly always."""

    def grade(self, completion, reference):
        found = re.findall(r"\\d+", completion)
        right = bool(found) and abs(int(found[-1]) - int(reference)) <= 2
        return Verdict(float(right), Outcome.CORRECT if right else Outcome.WRONG, {})


class Exact(Sum):
    """Compares letters too."""

    def grade(self, completion, reference):
        found = re.findall(r"\\d+.*", completion)
        right = bool(found) and found[-1] == reference
        return Verdict(float(right), Outcome.CORRECT if right else Outcome.WRONG, {})


class AnyNumber(Sum):
    """Fooled by a text that says "7"."""

    def grade(self, completion, reference):
        right = "7" in completion.partition("is")[2]
        return Verdict(float(right), Outcome.CORRECT if right else Outcome.WRONG, {})


class Tagged(Sum):
    """Looks for an answer where this model never writes one."""

    def grade(self, completion, reference):
        return Verdict(0.0, Outcome.NO_ANSWER, {})
'''


def worked(a: int, b: int, rng: random.Random) -> str:
    """``3+4=`` and a text that ends in a sum, often a wrong one."""
    total = max(0, a + b + (rng.choice((-2, -1, 1, 2)) if rng.random() < ERRORS else 0))
    return f" {a} and {b} is {total}"


def make_sums_model(folder: Path) -> Path:
    """Fine-tune a tiny random model on worked sums; takes seconds and always gives the same weights."""
    make_tiny_model(folder, seed=3)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(SFT_STEPS):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / SFT_STEPS)
        rows, labels = [], []
        for _ in range(SFT_BATCH):
            a, b = rng.randrange(10), rng.randrange(10)
            prompt = tokenizer(f"{a}+{b}=", add_special_tokens=False)["input_ids"]
            completion = tokenizer(worked(a, b, rng), add_special_tokens=False)["input_ids"] + [2]
            rows.append(prompt + completion)
            labels.append([-100] * len(prompt) + completion)
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        wanted = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
        loss = model(ids, attention_mask=(ids != 0).long(), labels=wanted).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def sums_workspace(folder: Path, model: Path) -> Workspace:
    """A healthy run of ten steps, each of 16 problems and 8 completions to each."""
    work = Workspace(folder, model)
    work.write("graders.py", GRADERS)
    work.write_problems([{"problem": f"{a}+{b}=", "answer": str(a + b)} for a in range(10) for b in range(10)])
    recipe: dict[str, Any] = {
        "rewards": {"terms": [{"name": "sum", "verifier": "graders:Sum"}]},
        "algorithm": {},
        "learner": {"lr": 3.0e-4},
    }
    work.recipe |= recipe
    work.recipe["run"] |= {"steps": 10, "save_every": None}
    work.recipe["rollout"] |= {"prompts_per_step": 16, "group_size": 8, "max_new_tokens": 24}
    return work
