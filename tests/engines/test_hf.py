"""The oracle against plain transformers, and its draws against the distribution that they claim to come from."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rlvr.engines.hf import HfEngine, processed_logprobs
from rlvr.engines.protocol import EngineError
from rlvr.engines.repetition import repeats
from rlvr.records import Completion, RepetitionStop, Sampling
from rlvr.rollout.background import Background
from tests.engine_sides import Learner, Sync, request
from tests.helpers import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
PROMPTS = [[3 + (7 * i + j * j) % 96 for j in range(4 + 3 * i)] for i in range(6)]
FREE = Sampling(max_new_tokens=16)


@pytest.fixture(scope="module")
def sync(tiny_tied: Path, background: Background) -> Iterator[Sync]:
    engine = HfEngine(tiny_tied, max_batch=4)
    background.wait(engine.start())
    yield Sync(engine, background)
    background.wait(engine.close())


@pytest.fixture
def learner(sync: Sync, tied_learner: Learner) -> Learner:
    tied_learner.reset()
    sync.load_weights(tied_learner.weights(), 0)
    return tied_learner


def batch(sync: Sync, sampling: Sampling) -> list[Completion]:
    return sync.batch([request(prompt, sampling, seed) for seed, prompt in enumerate(PROMPTS)])


def test_logprobs_in_a_left_padded_batch_are_those_of_each_sequence_alone(sync: Sync, learner: Learner) -> None:
    for prompt, one in zip(PROMPTS, batch(sync, FREE), strict=True):
        truth = learner.logprobs([[*prompt, *one.ids]])[0][len(prompt) :]
        assert truth == pytest.approx(one.behaviour_logprobs, abs=1e-4)
        assert sync.logprobs([[*prompt, *one.ids]])[0][len(prompt) :] == pytest.approx(truth, abs=1e-4)


def test_greedy_is_transformers_own_greedy(sync: Sync, learner: Learner) -> None:
    for prompt, one in zip(PROMPTS, batch(sync, Sampling(max_new_tokens=16, temperature=0.0)), strict=True):
        ids = torch.tensor([prompt])
        plain = learner.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert one.ids == tuple(plain[0, len(prompt) :].tolist())


@pytest.mark.slow
def test_a_request_does_not_depend_on_its_batch(sync: Sync, learner: Learner) -> None:
    together = batch(sync, FREE)
    assert together == batch(sync, FREE)
    for seed, (prompt, one) in enumerate(zip(PROMPTS, together, strict=True)):
        alone = sync.one(prompt, FREE, seed)
        assert alone.ids == one.ids
        assert alone.behaviour_logprobs == pytest.approx(one.behaviour_logprobs, abs=1e-4)


def test_requests_of_one_batch_may_differ_in_all_settings(sync: Sync, learner: Learner) -> None:
    settings = [
        Sampling(max_new_tokens=4),
        Sampling(max_new_tokens=16, temperature=0.5, top_k=3),
        Sampling(max_new_tokens=9, temperature=0.0),
        Sampling(max_new_tokens=12, top_p=0.5, min_p=0.05),
    ]
    mixed = sync.batch([request(PROMPTS[i], sampling, i) for i, sampling in enumerate(settings)])
    assert [len(one.ids) for one in mixed] == [4, 16, 9, 12]
    assert [one.ids for one in mixed] == [sync.one(PROMPTS[i], sampling, i).ids for i, sampling in enumerate(settings)]


@pytest.mark.slow
def test_draws_have_the_distribution_that_they_claim(sync: Sync, learner: Learner) -> None:
    """Chi-square of 3000 seeds against the processed distribution: 5 standard deviations over its mean."""
    sampling = Sampling(max_new_tokens=1, temperature=1.3, top_p=0.9)
    drawn = [one.ids[0] for one in sync.batch([request(PROMPTS[2], sampling, seed) for seed in range(3000)])]
    logits = learner.next_token_logprobs(PROMPTS[2])[-1:]
    expected = processed_logprobs(torch.empty(1, 0, dtype=torch.long), logits, sampling)[0].exp() * 3000
    seen = torch.bincount(torch.tensor(drawn), minlength=128).float()
    assert seen[expected == 0].sum() == 0
    common = expected >= 5
    statistic = float(((seen - expected)[common] ** 2 / expected[common]).sum())
    assert int(common.sum()) >= 10
    assert statistic <= int(common.sum()) + 5 * (2 * int(common.sum())) ** 0.5


def test_processed_logprobs_by_hand() -> None:
    """Probabilities 0.5, 0.25, 0.125, 0.125: what each setting leaves, renormalised."""
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    none = torch.empty(1, 0, dtype=torch.long)

    def kept(**settings: float) -> list[float]:
        return processed_logprobs(none, logits, Sampling(max_new_tokens=1, **settings))[0].exp().tolist()  # type: ignore[arg-type]  # floats and ints by name

    assert kept(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert kept(top_p=0.7) == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert kept(top_p=0.4) == pytest.approx([1, 0, 0, 0])
    assert kept(min_p=0.3) == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert kept(temperature=0.5) == pytest.approx(
        [0.25 / 0.34375, 0.0625 / 0.34375, 0.015625 / 0.34375, 0.015625 / 0.34375]
    )
    assert kept(temperature=0.0) == pytest.approx([0.5, 0.25, 0.125, 0.125])


@pytest.mark.slow
def test_stop_strings_and_tokens(sync: Sync, learner: Learner) -> None:
    for seed, prompt in enumerate(PROMPTS):
        free = sync.one(prompt, Sampling(max_new_tokens=60), seed)
        third = free.ids[2]
        one = sync.one(prompt, Sampling(max_new_tokens=60, stop_token_ids=(third, 2)), seed)
        assert one.ids == free.ids[: min(free.ids.index(i) for i in (third, 2) if i in free.ids) + 1]
        assert one.finish_reason == "stop"
        text = TOKENIZER.decode(free.ids, skip_special_tokens=True)
        stops = (text[4:6], "never", text[9])
        one = sync.one(prompt, Sampling(max_new_tokens=60, stop=stops), seed)
        assert one.text == text[: min(text.find(stop) + len(stop) for stop in stops if stop in text)]
        assert one.ids == free.ids[: len(one.ids)]
        assert TOKENIZER.decode(one.ids, skip_special_tokens=True).startswith(one.text)
        assert one.text not in TOKENIZER.decode(one.ids[:-1], skip_special_tokens=True)


def test_a_new_version_has_the_new_weights(sync: Sync, learner: Learner) -> None:
    assert {v for one in batch(sync, FREE) for v in one.weight_version} == {0}
    learner.perturb(learner.parameters, amplitude=0.8)
    sync.load_weights(learner.model.state_dict().items(), 3)  # the tied head comes along by name, and is the embedding
    for prompt, one in zip(PROMPTS, batch(sync, FREE), strict=True):
        assert set(one.weight_version) == {3}
        assert learner.logprobs([[*prompt, *one.ids]])[0][len(prompt) :] == pytest.approx(
            one.behaviour_logprobs, abs=1e-4
        )
    assert sync.engine.version == 3


def test_errors_name_what_is_wrong(sync: Sync, learner: Learner) -> None:
    with pytest.raises(EngineError, match=r"prompt of 250 tokens, max_new_tokens 16.*256"):
        sync.one([5] * 250, FREE)
    with pytest.raises(EngineError, match="weights are missing"):
        sync.load_weights([], 1)


def test_interrupted_requests_give_back_what_they_have(tiny_tied: Path, background: Background) -> None:
    """The running batch ends after its next token, what waited gives back nothing; then the engine goes on."""
    engine = HfEngine(tiny_tied, max_batch=2)
    long = Sampling(max_new_tokens=100)

    async def story() -> list[Completion]:
        await engine.start()
        tasks = [asyncio.create_task(engine.generate(request(PROMPTS[seed], long, seed))) for seed in range(3)]
        while not engine._computing.locked():
            await asyncio.sleep(0)
        await engine.interrupt()
        found = [*await asyncio.gather(*tasks), await engine.generate(request(PROMPTS[0], long, 0))]
        await engine.close()
        return found

    first, second, third, whole = background.wait(story())
    assert [one.finish_reason for one in (first, second, third, whole)] == ["abort", "abort", "abort", "length"]
    assert 0 < len(first.ids) == len(second.ids) < 100
    assert (third.ids, len(whole.ids)) == ((), 100)
    assert first.ids == whole.ids[: len(first.ids)]


def test_cancelled_and_closed_requests_do_not_hang(tiny_tied: Path, background: Background) -> None:
    engine = HfEngine(tiny_tied, max_batch=2)

    async def story() -> list[object]:
        await engine.start()
        tasks = [asyncio.create_task(engine.generate(request(PROMPTS[0], FREE, seed))) for seed in range(3)]
        async with engine.hold():
            await asyncio.sleep(0)
            tasks[0].cancel()
            await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        async with engine.hold():
            held = asyncio.create_task(engine.generate(request(PROMPTS[0], FREE, 9)))
            await asyncio.sleep(0)
            await engine.close()
        return [*results, *await asyncio.gather(held, return_exceptions=True)]

    cancelled, second, third, closed = background.wait(story())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert isinstance(second, Completion)
    assert isinstance(third, Completion)
    assert isinstance(closed, EngineError)


@pytest.mark.parametrize("cut", [{"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.3}, {"top_p": 0.9, "temperature": 0.7}])
def test_what_is_left_out_scales_up_the_rest_by_the_mass_that_is_kept(
    sync: Sync, learner: Learner, cut: dict[str, float]
) -> None:
    """Why a recipe may not weigh the two sides against each other then: pi / q of each sampled token is the mass of
    pi, at the temperature, on the tokens that q keeps, which is below 1; without a filter it is 1 (to rounding)."""
    sampling = Sampling(max_new_tokens=16, **cut)  # type: ignore[arg-type]  # top_k among floats
    for prompt, one in zip(PROMPTS, batch(sync, sampling), strict=True):
        logits = learner.model(torch.tensor([[*prompt, *one.ids]])).logits[0, len(prompt) - 1 : -1]
        raw = (logits / sampling.temperature).log_softmax(-1)
        kept = processed_logprobs(torch.zeros(len(one.ids), 1, dtype=torch.long), logits, sampling).isfinite()
        mass = (raw.exp() * kept).sum(-1)
        ratio = (raw.gather(1, torch.tensor(one.ids)[:, None])[:, 0] - torch.tensor(one.behaviour_logprobs)).exp()
        assert ratio.tolist() == pytest.approx(mass.tolist(), rel=1e-3)
        assert mass.max() < 1.0


@pytest.mark.slow
def test_a_completion_that_repeats_itself_ends_where_the_detector_says(sync: Sync, learner: Learner) -> None:
    """Greedy completions of a tiny model run in circles: each ends at the first token after which its ending is 3
    copies of at most 8 tokens, has the free completion's tokens up to there, and says why; the length limit goes
    first."""
    stop = RepetitionStop(shortest=1, longest=8, count=3)
    free = batch(sync, Sampling(max_new_tokens=48, temperature=0.0))
    ended = batch(sync, Sampling(max_new_tokens=48, temperature=0.0, repetition=stop))
    lengths = [next((n for n in range(1, 48) if repeats(one.ids[:n], stop)), 48) for one in free]
    assert min(lengths) < 48
    for whole, one, length in zip(free, ended, lengths, strict=True):
        assert one.ids == whole.ids[:length]
        assert one.finish_reason == ("length" if length == 48 else "repetition")
    first = lengths.index(min(lengths))
    same = Sampling(max_new_tokens=min(lengths), temperature=0.0, repetition=stop)
    assert sync.one(PROMPTS[first], same, 0).finish_reason == "length"
