"""The golden step: a recipe and recorded rollouts in, a policy out, against a computation by hand.

Theorem. For each aggregation and each level of the ratio, `rlvr train` for one step on recorded rollouts (rewards from
real verifiers, one completion unscored, one group without variance, one completion with foreign tokens, ratios on both
sides of both clip bounds, a temperature, a gradient that is clipped, weight decay) leaves the gradient and the weights
that follow from the papers:

    A = (r - mean) / (std + 1e-4)          over the scored completions of a group, std with Bessel's correction
    L = sum over trained tokens of -min(w A, clip(w, 0.8, 1.28) A) / denominator,      w = pi_theta / mu of the token,
        its geometric mean over the completion's trained tokens (GSPO; bounds 0.98, 1.03), or its product over them
    g = dL/d theta * min(1, max_norm / |dL/d theta|)
    theta' = theta (1 - lr decay) - lr g / (|g| + epsilon)      AdamW's first step, bias-corrected; vectors do not decay

with log-probabilities and derivatives from a Llama written in NumPy in float64 (`tests.numpy_llama`), rewards,
advantages and denominators as literal numbers, and the product in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from rlvr.config import load_recipe
from rlvr.run import loop
from rlvr.run.build import build
from tests.helpers import make_tiny_tokenizer
from tests.numpy_llama import derivatives, logprobs
from tests.recorded import piece, write_recording
from tests.runs import Workspace, elsewhere

Array = NDArray[np.float64]

LETTERS = "0123456789+=?\\{}, boxedtiswlvhnk"
SHAPE = {"heads": 2, "theta": 10000.0, "epsilon": 1e-6, "temperature": 0.8}
LR, DECAY, EPSILON, MAX_NORM = 0.01, 0.1, 1e-3, 0.5
LOW, HIGH = 0.8, 1.28

GRADER = '''
from rewards import Outcome, Verdict


class Brief:
    """Right if the completion has at most 12 characters; a completion with a question mark finds a mistake in it."""

    def check_reference(self, reference):
        pass

    def grade(self, completion, reference):
        if "?" in completion:
            raise ValueError("nobody thought of this")
        return Verdict(1.0, Outcome.CORRECT) if len(completion) <= 12 else Verdict(0.0, Outcome.WRONG)
'''


@dataclass(frozen=True)
class Recorded:
    """A recorded completion and what follows from it by hand."""

    pieces: tuple[str, ...]
    """Model and foreign text by turns."""
    reward: float | None
    """1 for the right completion, and half a point for a brief one."""
    advantage: float | None
    """With group_std; None where it is not trained."""
    centred: float | None
    """The same without scale."""
    tokens: int
    """Trained: characters of the model's own, and the end of text."""
    is_truncated: bool = False


GROUPS: dict[str, tuple[Recorded, ...]] = {
    "train:1": (  # 2+2=: mean 1, std 0.5
        Recorded(("\\boxed{4}",), 1.5, 0.5 / 0.5001, 0.5, 10),
        Recorded(("\\boxed{5}",), 0.5, -0.5 / 0.5001, -0.5, 10),
        Recorded(("it is \\boxed{4}",), 1.0, 0.0, 0.0, 16),
        Recorded(("\\boxed{4}?",), None, None, None, 0),
    ),
    "train:2": (  # 3+9=: mean 3.5 / 4 = 0.875, std sqrt((0.625^2 + 0.375^2 + 0.875^2 + 0.625^2) / 3) = 0.75
        Recorded(("\\boxed{12}",), 1.5, 0.625 / 0.7501, 0.625, 11),
        Recorded(("\\boxed{21}",), 0.5, -0.375 / 0.7501, -0.375, 11),
        Recorded(("twelve, i think",), 0.0, -0.875 / 0.7501, -0.875, 15, is_truncated=True),
        Recorded(("\\boxed{", "12", "}"), 1.5, 0.625 / 0.7501, 0.625, 9),
    ),
    "train:3": tuple(Recorded(("\\boxed{7}",), 1.5, None, None, 0) for _ in range(4)),  # 3+4=: all alike
}
PROMPTS = {"train:1": "2+2=", "train:2": "3+9=", "train:3": "3+4="}
REFERENCES = {"train:1": "4", "train:2": "12", "train:3": "7"}

TRAINED = [(name, i) for name, group in GROUPS.items() for i, one in enumerate(group) if one.advantage is not None]
"""The seven completions that the learner sees, in order."""


def completion_of(place: tuple[str, int]) -> Recorded:
    return GROUPS[place[0]][place[1]]


@dataclass(frozen=True)
class Golden:
    """The start: weights and log-probabilities of every trained completion."""

    model: Path
    weights: dict[str, Array]
    ids: NDArray[np.int64]
    """[7, T] prompt and completion of each, padded."""
    mask: Array
    """[7, T - 1] 1 where the policy sampled the token that is predicted."""
    logprobs: Array
    behaviour: Array
    slopes: dict[str, Array]
    """[*weight, 7, T - 1] derivatives of the log-probabilities."""


def parts(completion: Recorded) -> list[tuple[list[int], bool]]:
    """Token ids of each piece, and whether the model sampled it; the end of text belongs to the last."""
    tokenizer = make_tiny_tokenizer(LETTERS, len(LETTERS) + 3)
    found = [(tokenizer(text).input_ids, place % 2 == 0) for place, text in enumerate(completion.pieces)]
    if not completion.is_truncated:
        found[-1][0].append(tokenizer.eos_token_id)
    return found


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """One layer, two query heads that read one key head, a tied head; predictions far from flat."""
    torch.manual_seed(1)
    tokenizer = make_tiny_tokenizer(LETTERS, len(LETTERS) + 3)
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 3, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.5, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    folder = tmp_path_factory.mktemp("golden") / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    prompt = {name: tokenizer(text).input_ids for name, text in PROMPTS.items()}
    rows = [prompt[p[0]] + [token for ids, _ in parts(completion_of(p)) for token in ids] for p in TRAINED]
    masks = [[0] * len(prompt[p[0]]) + [int(own) for ids, own in parts(completion_of(p)) for _ in ids] for p in TRAINED]
    longest = max(map(len, rows))
    ids = np.array([row + [0] * (longest - len(row)) for row in rows])
    mask = np.array([one + [0] * (longest - len(one)) for one in masks], dtype=float)[:, 1:]
    weights = {name: p.detach().numpy().astype(np.float64) for name, p in model.named_parameters()}
    ours = logprobs(weights, ids, **SHAPE)
    offset = 0.5 * np.sin(2.0 * np.arange(ours.size).reshape(ours.shape))  # an engine far from the learner
    return Golden(folder, weights, ids, mask, ours, ours + offset, derivatives(weights, ids, **SHAPE))


@pytest.mark.slow
def test_the_recording_reaches_every_branch(golden: Golden) -> None:
    """Ratios above and below both bounds for advantages of both signs, none so near to a bound that float32 could
    fall on the other side; and the hand-counted tokens are those of the mask."""
    ratio = np.exp(golden.logprobs - golden.behaviour)
    for sign in (1, -1):
        rows = [i for i, place in enumerate(TRAINED) if sign * (completion_of(place).advantage or 0.0) > 0]
        chosen = ratio[rows][golden.mask[rows] == 1]
        assert min((chosen < LOW).sum(), (chosen > HIGH).sum(), ((chosen > LOW) & (chosen < HIGH)).sum()) > 0
    assert min(abs(ratio - LOW).min(), abs(ratio - HIGH).min()) > 1e-3
    for name, (low, high) in BOUNDS.items():
        values = [float(np.exp(log_ratio(golden, row, 0, name))) for row in range(7)]
        kinds = set()
        for row, value in enumerate(values):
            a = completion_of(TRAINED[row]).advantage or 0.0
            assert min(abs(value - low), abs(value - high)) > 1e-4, "float32 could fall on the other side"
            kinds.add(
                "none" if a == 0 else "clipped" if (a > 0 and value > high) or (a < 0 and value < low) else "free"
            )
        assert kinds == {"none", "clipped", "free"}, (name, values)
    assert golden.mask.sum(1).tolist() == [completion_of(place).tokens for place in TRAINED]


DENOMINATORS = {
    # 10 + 10 + 16 + 11 + 11 + 15 + 9 trained tokens
    "token_mean": [82] * 7,
    # two groups with 36 and 46
    "prompt_mean": [2 * 36] * 3 + [2 * 46] * 4,
    # seven completions; the cut-off one is masked, and still a completion
    "sequence_mean": [7 * 10, 7 * 10, 7 * 16, 7 * 11, 7 * 11, np.inf, 7 * 9],
    # seven completions times the constant 20; Dr. GRPO does not scale
    "sequence_sum": [7 * 20] * 7,
    # one loss for each of the seven completions, on each of its n tokens with weight 1 / (7 n)
    "ratio_sequence_mean": [7 * 10, 7 * 10, 7 * 16, 7 * 11, 7 * 11, 7 * 15, 7 * 9],
    "ratio_sequence_product": [7 * 10, 7 * 10, 7 * 16, 7 * 11, 7 * 11, 7 * 15, 7 * 9],
}
BOUNDS = {"ratio_sequence_mean": (0.98, 1.03), "ratio_sequence_product": (LOW, HIGH)}
"""Of the ratios of whole completions, which for a mean lie nearer to 1."""
SETTINGS: dict[str, dict[str, Any]] = {
    "token_mean": {"aggregation": {"type": "token_mean"}},
    "prompt_mean": {"aggregation": {"type": "prompt_mean"}},
    "sequence_mean": {"aggregation": {"type": "sequence_mean"}, "truncated": "mask"},
    "sequence_sum": {"aggregation": {"type": "sequence_sum", "length": 20}, "scale": {"type": "none"}},
    "ratio_sequence_mean": {
        "aggregation": {"type": "sequence_mean"}, "ratio": {"type": "sequence_mean", "against": "behaviour"},
        "surrogate": {"type": "clip", "low": 0.02, "high": 0.03},
    },
    "ratio_sequence_product": {
        "aggregation": {"type": "sequence_mean"}, "ratio": {"type": "sequence_product", "against": "behaviour"},
    },
}  # fmt: skip


def log_ratio(golden: Golden, row: int, t: int, name: str) -> float:
    """log w of token t of a completion."""
    each = golden.logprobs - golden.behaviour
    if name not in BOUNDS:
        return float(each[row, t])
    total = float((each[row] * golden.mask[row]).sum())
    return total / float(golden.mask[row].sum()) if name == "ratio_sequence_mean" else total


def by_hand(golden: Golden, name: str) -> tuple[float, dict[str, Array], float]:
    """Loss, gradient and share of clipped tokens for an aggregation or a level of the ratio."""
    low, high = BOUNDS.get(name, (LOW, HIGH))
    scaled = [completion_of(p).centred if name == "sequence_sum" else completion_of(p).advantage for p in TRAINED]
    loss, slope, clipped, tokens = 0.0, np.zeros_like(golden.logprobs), 0, 0
    for row, t in zip(*np.nonzero(golden.mask), strict=True):
        if np.isinf(DENOMINATORS[name][row]):
            continue
        a, w = float(scaled[row] or 0.0), float(np.exp(log_ratio(golden, row, t, name)))
        tokens += 1
        if (a > 0 and w > high) or (a < 0 and w < low):
            clipped += 1
            loss -= (high if a > 0 else low) * a / DENOMINATORS[name][row]
        else:
            loss -= w * a / DENOMINATORS[name][row]
            # d w / d log pi_t is w for the token's own ratio and for the product, w / n for the geometric mean; the
            # n terms of a completion all hold its ratio, whose derivatives they add up to n times
            times = golden.mask[row].sum() if name == "ratio_sequence_product" else 1.0
            slope[row, t] = -w * a / DENOMINATORS[name][row] * times
    return loss, {one: (d * slope).sum((-2, -1)) for one, d in golden.slopes.items()}, clipped / tokens


def make_workspace(folder: Path, golden: Golden, name: str) -> Workspace:
    """The recipe, its problems, its verifiers and the recording."""
    work = Workspace(folder, golden.model)
    work.write("grader.py", GRADER)
    work.write_problems([{"problem": PROMPTS[one], "answer": REFERENCES[one]} for one in GROUPS])
    work.recipe["run"] |= {"steps": 1}
    work.recipe["rewards"]["terms"] = [
        {"name": "answer", "verifier": "rewards.math_answers:MathVerifier"},
        {"name": "brief", "verifier": "grader:Brief", "weight": 0.5},
    ]
    work.recipe["rewards"]["timeout"] = 30.0
    work.recipe["problems"]["sampler"] = {"type": "as_given"}
    work.recipe["rollout"] |= {
        "prompts_per_step": 3, "max_new_tokens": 20, "temperature": 0.8, "workflow": "tests.recorded:replay",
    }  # fmt: skip
    work.recipe["algorithm"] = {
        "surrogate": {"type": "clip", "low": 0.2, "high": 0.28}, "ratio": {"against": "behaviour"}, **SETTINGS[name],
    }  # fmt: skip
    work.recipe["learner"] = {
        "lr": LR, "weight_decay": DECAY, "epsilon": EPSILON, "max_grad_norm": MAX_NORM, "micro_batch_tokens": 60,
    }  # fmt: skip
    recording = {}
    for group, completions in GROUPS.items():
        for index, completion in enumerate(completions):
            start = len(PROMPTS[group]) - 1
            known = golden.behaviour[TRAINED.index((group, index))] if (group, index) in TRAINED else np.full(60, -1.0)
            pieces = []
            for (ids, own), text in zip(parts(completion), completion.pieces, strict=True):
                own_logprobs = known[start : start + len(ids)].tolist() if own else None
                pieces.append(piece(text, ids, own_logprobs, "length" if completion.is_truncated else "stop"))
                start += len(ids)
            recording[f"{group}/0/{index}"] = pieces
    write_recording(work.folder, recording)
    work.save_recipe()
    return work


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_of_the_loop_is_the_step_by_hand(tmp_path: Path, golden: Golden, name: str) -> None:
    """The theorem of this file's head."""
    work = make_workspace(tmp_path / "work", golden, name)
    with elsewhere(work.folder):
        recipe = load_recipe("recipe.yaml")
        with build(recipe) as run:
            loop.train(run)
        found = {n: p.grad.numpy() for n, p in run.learner.policy.model.named_parameters() if p.grad is not None}
    loss, gradient, clip_fraction = by_hand(golden, name)
    norm = float(np.sqrt(sum((g**2).sum() for g in gradient.values())))
    assert norm > MAX_NORM, "the clipping of the gradient would not be tested"

    (metrics,) = work.metrics()
    assert metrics["update/loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["update/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert metrics["policy/clip_fraction"] == pytest.approx(clip_fraction, rel=1e-9)
    assert metrics["reward/mean"] == pytest.approx((1.5 + 0.5 + 1.0 + 1.5 + 0.5 + 0.0 + 1.5 + 4 * 1.5) / 11)
    for key, count in {"total": 3, "trained": 2, "zero_variance": 1, "too_few_scored": 0}.items():
        assert metrics[f"groups/{key}"] == count
    assert metrics["samples/unscored"] == 1
    assert metrics["tokens/generated"] == 82 + 11 + 4 * 10

    saved = {n: t.numpy() for n, t in load_file(work.results() / "checkpoints/latest/model.safetensors").items()}
    assert found.keys() == gradient.keys() == saved.keys()
    for one, g in gradient.items():
        g = g * MAX_NORM / norm
        np.testing.assert_allclose(found[one], g, rtol=1e-4, atol=1e-6, err_msg=one)
        start = golden.weights[one]
        kept = start * (1 - LR * DECAY) if start.ndim > 1 else start
        np.testing.assert_allclose(saved[one], kept - LR * g / (abs(g) + EPSILON), rtol=0, atol=5e-6, err_msg=one)

    for line in work.rollouts():
        completion = GROUPS[line["problem_id"]][line["sample"]]
        assert line["text"] == "".join(completion.pieces)
        assert line["reward"] == completion.reward
        expected = completion.centred if name == "sequence_sum" else completion.advantage
        assert line["advantage"] == (None if expected is None else pytest.approx(expected, abs=1e-12))
    assert work.rollouts()[7]["loss_mask"] == [[1, 7], [0, 2], [1, 2]]
