"""Given completions beside sampled ones: which rows, what loss, over which micro-batches."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlvr.__main__ import main
from rlvr.config import Recipe
from rlvr.config.algorithm import Algorithm, TokenMean
from rlvr.config.recipe import LearnerConfig, Model
from rlvr.learn.meter import Meter
from rlvr.learn.objective import TokenBatch
from rlvr.learn.optimiser_step import NonFiniteError
from rlvr.learn.packing import pack
from rlvr.learn.texts import GivenTexts, TextLikelihood, rows_of
from rlvr.learn.update import Learner
from rlvr.records import TrainingSample
from rlvr.run.replay import keep_batch, replay
from rlvr.runlog.run_log import read_metrics
from tests.builders import recipe_data
from tests.learn.conftest import random_samples
from tests.learn.test_update import assert_same, gradients, make, weights
from tests.runs import Workspace, assert_same_weights, elsewhere

Folder = Callable[..., str]
GIVEN = {"type": "nll", "path": "unread", "coefficient": 0.25, "rows": 2}


def text(*ids: int, prompt: int = 2) -> TrainingSample:
    mask = (0,) * prompt + (1,) * (len(ids) - prompt)
    return TrainingSample(ids=ids, loss_mask=mask, behaviour_logprobs=(0.0,) * len(ids), advantage=1.0, group=0)


TEXTS = [text(5, 6, 7), text(8, 9, 10, 11, 2), text(3, 4, 50, 60, 70, 80, 2)]


def taught(folder: str, algorithm: dict[str, Any] | None = None, **settings: Any) -> Learner:
    """A learner as `tests.learn.test_update.make` makes one, with given texts."""
    return Learner(
        Model(path=folder),
        LearnerConfig.model_validate({"lr": 3e-3, "epsilon": 1e-3, "max_grad_norm": 1e9, **settings}),
        Algorithm.model_validate({"given_text": GIVEN} | (algorithm or {})),
        total_updates=10, temperature=0.7, accelerator=Accelerator(cpu=True), texts=GivenTexts(TEXTS, 2, seed=1),
    )  # fmt: skip


def mean_nll(folder: str, rows: list[TrainingSample]) -> tuple[float, dict[str, Tensor]]:
    """The mean of -log pi over the trained tokens of `rows` at temperature 1 and its gradient, by the model's own
    logits in float64, one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        logprobs = torch.log_softmax(model(input_ids=torch.tensor([row.ids])).logits[0, :-1], -1)
        for place in range(1, len(row.ids)):
            if row.loss_mask[place]:
                total, tokens = total - logprobs[place - 1, row.ids[place]], tokens + 1
    mean = total / tokens
    mean.backward()
    return float(mean), {name: p.grad.float() for name, p in model.named_parameters()}


def test_rows_by_hand() -> None:
    """5 rows, 3 a step: each epoch of 5 holds each row once, whatever is asked first; orders differ."""
    found = [rows_of(5, 3, step, seed=0) for step in range(5)]
    flat = list(itertools.chain(*found))
    assert [sorted(flat[start : start + 5]) for start in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert len({tuple(flat[start : start + 5]) for start in (0, 5, 10)}) > 1
    assert rows_of(5, 3, 3, seed=0) == found[3]
    assert rows_of(5, 3, 3, seed=1) != found[3] or rows_of(5, 3, 4, seed=1) != found[4]
    assert sorted(rows_of(2, 5, 0, seed=0)) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])  # more rows a step than there are


def test_the_loss_by_hand() -> None:
    """Tokens of probability 1/2, 1/4 and 1/8: a mean of ln(64) / 3, and 0.25 times it is the loss, in float64."""
    (batch,) = pack([text(5, 6, 7), text(5, 6, 8, 9)], TokenMean(), 100, "bucketed")
    logprobs = torch.zeros(batch.ids.shape, dtype=torch.float64)
    logprobs[batch.loss_mask.bool()] = torch.tensor([math.log(1 / 2), math.log(1 / 4), math.log(1 / 8)]).double()
    logprobs.requires_grad_()
    meter = Meter(torch.device("cpu"))
    tokens = TokenBatch(batch=batch, logprobs=logprobs, entropy=torch.zeros_like(logprobs), is_first=True)
    loss = TextLikelihood(0.25).loss(tokens, meter)
    loss.backward()
    assert loss.item() == pytest.approx(0.25 * 6 * math.log(2) / 3, abs=1e-7)
    assert logprobs.grad is not None
    assert logprobs.grad[batch.loss_mask.bool()].tolist() == pytest.approx([-0.25 / 3] * 3)
    assert meter.totals() == {"text_n": 3.0, "text_nll": pytest.approx(6 * math.log(2))}


def test_a_step_is_the_sampled_completions_step_plus_the_given_ones(model_folder: Folder, tied: bool) -> None:
    """grad = grad of the objective + 0.25 grad of the mean NLL of this step's two rows, at temperature 1 although
    rollouts are sampled at 0.7; loss and metrics likewise."""
    folder, samples = model_folder(tied=tied), random_samples(7)
    plain, both = make(folder, temperature=0.7), taught(folder)
    one, other = plain.update(samples), both.update(samples)
    rows = [TEXTS[row] for row in rows_of(3, 2, 0, seed=1)]
    mean, gradient = mean_nll(folder, rows)
    assert_same(gradients(both), {n: g + 0.25 * gradient[n] for n, g in gradients(plain).items()}, atol=5e-6)
    assert other["policy/text_nll"] == pytest.approx(mean, rel=1e-5)
    assert other["update/loss"] == pytest.approx(one["update/loss"] + 0.25 * mean, rel=1e-4)
    assert other["tokens/given"] == sum(row.trained_tokens for row in rows)
    for key in ("tokens/trained", "tokens/computed", "policy/entropy", "mismatch/abs", "policy/clip_fraction"):
        assert other[key] == pytest.approx(one[key], rel=1e-6), key
    if "update/flops" in one:
        assert other["update/flops"] > one["update/flops"]


@pytest.mark.slow
def test_each_optimiser_step_has_rows_of_its_own_and_micro_batches_do_not_matter(model_folder: Folder) -> None:
    """Two updates a batch, two epochs, in any packing: the same weights; the steps are 0 to 7 in two updates."""
    folder, samples = model_folder(tied=True), [random_samples(8, seed=step) for step in range(2)]
    ends = []
    for settings in ({}, {"packing": "bucketed", "micro_batch_tokens": 8}, {"packing": "packed"}):
        learner = taught(folder, {"updates_per_batch": 2, "epochs": 2}, **settings)
        metrics = [learner.update(one) for one in samples]
        expected = [sum(TEXTS[row].trained_tokens for u in range(4) for row in rows_of(3, 2, start + u, seed=1))
                    for start in (0, 4)]  # fmt: skip
        assert [one["tokens/given"] for one in metrics] == expected
        ends.append(weights(learner))
    for other in ends[1:]:
        assert_same(other, ends[0], atol=2e-5)


def test_without_sampled_completions_the_given_ones_are_trained_alone(model_folder: Folder) -> None:
    """No group taught anything: the step's gradient is the text's alone, and the step is not empty."""
    folder = model_folder(tied=True)
    learner = taught(folder)
    metrics = learner.update([])
    _, gradient = mean_nll(folder, [TEXTS[row] for row in rows_of(3, 2, 0, seed=1)])
    assert_same(gradients(learner), {name: 0.25 * g for name, g in gradient.items()}, atol=5e-6)
    assert (metrics["update/empty"], metrics["update/count"], metrics["tokens/trained"]) == (0.0, 1.0, 0.0)


def test_texts_go_with_the_slot(model_folder: Folder) -> None:
    folder = model_folder(tied=True)
    with pytest.raises(ValueError, match=r"texts go with algorithm\.given_text"):
        make(folder, {"given_text": GIVEN})
    with pytest.raises(ValueError, match="the file has no rows"):
        GivenTexts([], 2, seed=0)
    learner = taught(folder)
    state = learner.state_dict()
    learner.load_state_dict(state)
    with pytest.raises(ValueError, match="the rows are not those of the checkpoint"):
        learner.load_state_dict(state | {"texts": GivenTexts(TEXTS[::-1], 2, seed=1).fingerprint()})


def test_a_text_that_is_not_finite_is_named_by_replay(model_folder: Folder, tmp_path: Any) -> None:
    """A weight that only one given text reads is broken: replayed, the sampled completion and the other text are
    finite."""
    learner = taught(model_folder(tied=False), packing="bucketed", micro_batch_tokens=6)
    broken = TEXTS[rows_of(3, 2, 0, seed=1)[0]]
    with torch.no_grad():
        learner.policy.model.get_input_embeddings().weight[broken.ids[1]] = float("nan")
    with pytest.raises(NonFiniteError) as found:
        learner.update([text(20, 21, 22)])
    data = recipe_data(tmp_path)
    data["algorithm"] = {"given_text": GIVEN}
    folder = keep_batch(tmp_path, 1, found.value, learner, Recipe.model_validate(data))
    reports = list(replay(folder))
    assert [one.micro_batch for one in reports] == [0, 1, 2]
    assert reports[0].is_finite
    assert [math.isfinite(one.loss) for one in reports[1:]].count(False) == 1
    (bad,) = (one for one in reports if not math.isfinite(one.loss))
    assert bad.tokens == broken.trained_tokens


@pytest.fixture
def work(workspace: Workspace) -> Workspace:
    workspace.write_problems([{"q": f"Say {a}", "a": f"{a}!"} for a in range(5)], "texts.jsonl")
    workspace.recipe["algorithm"]["given_text"] = {
        "type": "nll", "path": "texts.jsonl", "prompt": "q", "completion": "a", "coefficient": 0.5, "rows": 2,
    }  # fmt: skip
    return workspace


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_a_run_with_given_texts_resumes_bit_by_bit(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """4 steps = 2 + 2; the completions become likelier; a changed file may not go on."""
    assert work.run("name=whole") == 0
    assert "given text 5 rows, 2 an update, their likelihood x 0.5" in " ".join(capsys.readouterr().out.split())
    assert work.run("run.steps=2") == 0
    assert work.run("run.steps=4") == 0
    assert work.metrics() == work.metrics("whole")
    assert_same_weights(work.weights(), work.weights("whole"))
    likely = [line["policy/text_nll"] for line in read_metrics(work.results())]
    assert likely[-1] < likely[0] - 0.5
    work.write_problems([{"q": f"Say {a}", "a": f"{a}?"} for a in range(5)], "texts.jsonl")
    assert work.run("run.steps=5") == 1
    assert "the rows are not those of the checkpoint" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_rows_that_cannot_be_trained_are_refused_with_their_place(
    work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """A completion that is no text, a column that is not there, and a question of an eval set."""
    rows: list[dict[str, Any]] = [{"q": "Say 1", "a": "1"}, {"q": "Say 2", "a": 2}]
    work.write_problems(rows, "texts.jsonl")
    assert work.run() == 2
    said = capsys.readouterr().err
    assert "texts.jsonl:2: algorithm.given_text.completion names a text to imitate, got 2" in said
    assert work.run("algorithm.given_text.prompt=question") == 2
    assert "question" in capsys.readouterr().err
    work.write_problems([{"problem": "Say 1", "answer": "aeiou"}], "eval.jsonl")
    work.write_problems([{"q": "Say 1", "a": "1"}, {"q": "Say 2", "a": "2"}], "texts.jsonl")
    evals = "problems.eval=" + json.dumps([{"name": "e", "source": {"type": "jsonl", "path": "eval.jsonl"}}])
    work.save_recipe()
    with elsewhere(work.folder):
        assert main(["train", "recipe.yaml", evals]) == 2
    assert "problems.overlap" in capsys.readouterr().err
    assert work.run(evals, "problems.overlap=drop", "run.steps=1") == 0
    assert "1 rows of algorithm.given_text left out" in capsys.readouterr().out
