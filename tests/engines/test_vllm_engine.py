"""Real vLLM against transformers: the same numbers, before and after each change of weights; versions; determinism."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from rlvr.engines.hf import processed_logprobs
from rlvr.engines.protocol import EngineError
from rlvr.engines.repetition import repeats
from rlvr.engines.token_sampler import draw, next_number
from rlvr.engines.vllm.engine import VllmEngine
from rlvr.records import Completion, RepetitionStop, Request, Sampling
from rlvr.rollout.background import Background
from rlvr.sync.freshness import distance, parameter_groups, self_test
from tests.engine_sides import Learner, Sync, request
from tests.helpers import make_tiny_tokenizer

pytestmark = pytest.mark.slow

TOKENIZER = make_tiny_tokenizer()
EOS = 2
FREE = Sampling(max_new_tokens=24)
LONG = Sampling(max_new_tokens=200)


@dataclass
class Pair:
    engine: VllmEngine
    sync: Sync
    learner: Learner


def prompts(count: int) -> list[list[int]]:
    """Prompts of different lengths and contents."""
    return [[3 + (7 * i + j * j) % 96 for j in range(4 + i)] for i in range(count)]


def requests(count: int, sampling: Sampling) -> list[Request]:
    return [request(prompt, sampling, seed) for seed, prompt in enumerate(prompts(count))]


def largest_difference(one: list[list[float]], other: list[list[float]]) -> float:
    return max(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def pair(engine: VllmEngine, background: Background, learner: Learner) -> Pair:
    learner.reset()
    sync = Sync(engine, background)
    sync.load_weights(learner.weights(), 0)
    return Pair(engine, sync, learner)


@pytest.fixture(params=["tied", "untied"])
def both(
    request: pytest.FixtureRequest, background: Background, tied_learner: Learner, untied_learner: Learner
) -> Pair:
    """Each kind of model in turn, engine and learner at the same weights of version 0."""
    learner = tied_learner if request.param == "tied" else untied_learner
    return pair(request.getfixturevalue(f"vllm_{request.param}"), background, learner)


@pytest.fixture
def tied(vllm_tied: VllmEngine, background: Background, tied_learner: Learner) -> Pair:
    return pair(vllm_tied, background, tied_learner)


def test_logprobs_agree_before_and_after_every_group_of_weights_has_moved(both: Pair) -> None:
    """Float32: sampled and scored log-probabilities are transformers' own to 1e-4, for the first weights and for those
    of syncs after which one group at a time, then all, visibly differ; a kept old copy of any group would show. Where
    the weights have become so wild that float32 errs by more than a third of that, three times its error counts."""
    groups = parameter_groups(both.learner.parameters)
    assert set(groups) - {"head"} == {"embedding", "norms", "qkv", "o", "mlp"}
    assert ("head" in groups) == ("lm_head.weight" in both.learner.parameters)
    for version, names in enumerate([[], *groups.values(), list(both.learner.parameters)], start=1):
        before = both.learner.logprobs(prompts(8))
        both.learner.perturb(names, amplitude=0.8)
        both.sync.load_weights(both.learner.weights(), version)
        completions = both.sync.batch(requests(8, FREE))
        sequences = [[*prompt, *one.ids] for prompt, one in zip(prompts(8), completions, strict=True)]
        truth, allowed = both.learner.logprobs(sequences), max(1e-4, 3 * both.learner.rounding(sequences))
        assert allowed < 2e-3
        assert largest_difference(both.sync.logprobs(sequences), truth) <= allowed
        sampled = [truth[i][len(prompts(8)[i]) :] for i in range(8)]
        assert largest_difference([list(one.behaviour_logprobs) for one in completions], sampled) <= allowed
        if names:
            assert distance(both.learner.logprobs(prompts(8)), before) >= 0.5
        assert {v for one in completions for v in one.weight_version} == {version}
        assert both.engine.version == version


def test_the_start_up_self_test_passes_on_a_right_engine(both: Pair) -> None:
    proofs = self_test(
        engine=both.sync,
        parameters=both.learner.parameters,
        weights=both.learner.weights,
        logprobs=both.learner.logprobs,
        sequences=prompts(4),
        version=5,
    )
    assert all(proof.is_visible and proof.mismatch <= 1e-3 for proof in proofs)
    assert both.engine.version == 5
    assert all(torch.equal(tensor, both.learner.start[name]) for name, tensor in both.learner.parameters.items())


def test_a_held_batch_is_the_same_to_the_last_bit(tied: Pair) -> None:
    """24 requests on 8 slots: later ones start where earlier ones ended, which depends on token counts alone."""
    batch = requests(24, Sampling(max_new_tokens=40, stop_token_ids=(EOS, 17, 99)))
    first, second = tied.sync.batch(batch), tied.sync.batch(batch)
    assert first == second
    assert len({len(one.ids) for one in first}) > 5


def test_a_long_shared_prompt_does_not_break_the_equality_of_repetitions(tied: Pair) -> None:
    """Prompts over the block size of 128 are cached; each held batch starts without that cache."""
    prompt = [3 + i % 90 for i in range(140)]
    batch = [request(prompt, FREE, seed) for seed in range(6)]
    assert tied.sync.batch(batch) == tied.sync.batch(batch)


def test_a_request_alone_gets_what_it_gets_in_a_batch(tied: Pair) -> None:
    """The tokens are a function of weights, prompt and seed."""
    batch = requests(8, FREE)
    together = tied.sync.batch(batch)
    alone = [tied.sync.one(one.prompt_ids, one.sampling, one.seed) for one in batch]
    assert [one.ids for one in together] == [one.ids for one in alone]
    logprobs = [[list(one.behaviour_logprobs) for one in many] for many in (together, alone)]
    assert largest_difference(*logprobs) <= 1e-4


def test_seeds_decide_the_draw(tied: Pair) -> None:
    drawn = {tied.sync.one(prompts(1)[0], FREE, seed).ids for seed in (1, 2, 3, 2**31 - 1, 1)}
    assert len(drawn) == 4


def test_a_token_is_the_one_that_the_requests_number_falls_on(both: Pair) -> None:
    """Theorem: token t of a request is where the t-th number of its seed falls among transformers' probabilities."""
    for seed, prompt in enumerate(prompts(6)):
        noise, ids = torch.Generator().manual_seed(seed), list(prompt)
        for _ in range(12):
            ids.append(int(draw(both.learner.next_token_logprobs(ids)[-1:], next_number(noise)[None])))
        sampled = both.sync.one(prompt, Sampling(max_new_tokens=12), seed)
        assert list(sampled.ids) == ids[len(prompt) :]


def test_the_engine_takes_the_quick_kernels(tied: Pair) -> None:
    """vLLM says in its log which of an operator's kernels it prefers."""
    assert "fused_add_rms_norm=['rlvr_cpu', 'native']" in tied.engine.log_file.read_text()


def test_in_flight_requests_carry_the_version_of_each_token(both: Pair) -> None:
    """Weights change in the middle of a completion: the engine's spans say where, and each part fits its own
    weights."""
    prompt = prompts(3)[2]

    async def interrupted() -> Completion:
        task = asyncio.create_task(both.engine.generate(request(prompt, LONG)))
        while both.engine._life.core.llm.output_processor.get_num_unfinished_requests() == 0:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        await both.engine.load_weights(changed.items(), 1)
        return await task

    old = both.learner.logprobs
    whole = both.sync.one(prompt, LONG)
    both.learner.perturb(both.learner.parameters, amplitude=1.0)
    changed = {name: tensor.clone() for name, tensor in both.learner.parameters.items()}
    both.learner.reset()
    one = both.sync.background.wait(interrupted())
    assert len(one.ids) == 200
    assert sorted(set(one.weight_version)) == [0, 1]
    assert list(one.weight_version) == sorted(one.weight_version)
    split = one.weight_version.index(1)
    assert one.ids[:split] == whole.ids[:split]
    truth = old([[*prompt, *one.ids]])[0][len(prompt) :]
    assert max(abs(a - b) for a, b in zip(truth[:split], one.behaviour_logprobs[:split], strict=True)) <= 1e-4
    apart = [abs(a - b) for a, b in zip(truth[split:], one.behaviour_logprobs[split:], strict=True)]
    assert sum(apart) / len(apart) > 0.5


def test_interrupted_completions_go_on_under_new_weights(both: Pair) -> None:
    """Each request gives back the tokens it has; continued with them as its prompt under other weights, the two pieces
    have the log-probabilities and versions of their own weights. An interrupted engine goes on as if new."""
    prompt = prompts(3)[2]

    async def interrupted() -> list[Completion]:
        tasks = [asyncio.create_task(both.engine.generate(one)) for one in requests(3, LONG)]
        while both.engine._life.core.llm.output_processor.get_num_unfinished_requests() < 3:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        await both.engine.interrupt()
        return list(await asyncio.gather(*tasks))

    whole = both.sync.one(prompt, LONG, seed=2)
    first = both.sync.background.wait(interrupted())
    assert [one.finish_reason for one in first] == ["abort"] * 3
    assert all(len(one.ids) < 200 and set(one.weight_version) <= {0} for one in first)
    part = first[2]
    assert part.ids == whole.ids[: len(part.ids)]
    truth = both.learner.logprobs([[*prompt, *part.ids]])[0][len(prompt) :]
    assert truth == pytest.approx(part.behaviour_logprobs, abs=1e-4)
    both.learner.perturb(both.learner.parameters, amplitude=1.0)
    both.sync.load_weights(both.learner.weights(), 5)
    rest = both.sync.one([*prompt, *part.ids], FREE, seed=9)
    assert set(rest.weight_version) == {5}
    truth = both.learner.logprobs([[*prompt, *part.ids, *rest.ids]])[0][len(prompt) + len(part.ids) :]
    assert truth == pytest.approx(rest.behaviour_logprobs, abs=1e-4)


def test_cached_prefixes_of_old_weights_are_not_used(both: Pair) -> None:
    """A prompt longer than a block is cached by the first request; after a sync the second must not see that cache."""
    prompt = [3 + i % 90 for i in range(150)]
    both.sync.one(prompt, FREE)
    both.learner.perturb(both.learner.parameters, amplitude=0.8)
    both.sync.load_weights(both.learner.weights(), 1)
    after = both.sync.one(prompt, FREE)
    truth = both.learner.logprobs([[*prompt, *after.ids]])[0][len(prompt) :]
    assert max(abs(a - b) for a, b in zip(truth, after.behaviour_logprobs, strict=True)) <= 1e-4


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=24, temperature=0.6),
        Sampling(max_new_tokens=24, temperature=1.7),
        Sampling(max_new_tokens=24, top_k=5),
        Sampling(max_new_tokens=24, top_p=0.7),
        Sampling(max_new_tokens=24, min_p=0.1),
        Sampling(max_new_tokens=24, temperature=0.8, top_k=20, top_p=0.9, min_p=0.02),
        Sampling(max_new_tokens=24, temperature=0.0),
    ],
)
def test_logprobs_are_those_of_the_distribution_drawn_from(tied: Pair, sampling: Sampling) -> None:
    for seed, prompt in enumerate(prompts(6)):
        one = tied.sync.one(prompt, sampling, seed)
        raw = tied.learner.next_token_logprobs([*prompt, *one.ids])[len(prompt) - 1 : -1]
        truth = processed_logprobs(torch.empty(24, 0, dtype=torch.long), raw, sampling)
        expected = truth.gather(1, torch.tensor(one.ids)[:, None])[:, 0]
        assert (expected - torch.tensor(one.behaviour_logprobs)).abs().max() <= 1e-4
        if sampling.temperature == 0:
            assert one.ids == tuple(raw.argmax(-1).tolist())


def test_draws_have_the_distribution_that_the_model_says(tied: Pair) -> None:
    """Chi-square of 2000 first tokens, one seed each, against the softmax: 5 standard deviations over its mean."""
    prompt = prompts(5)[4]
    drawn = [
        one.ids[0] for one in tied.sync.batch([request(prompt, Sampling(max_new_tokens=1), s) for s in range(2000)])
    ]
    expected = tied.learner.next_token_logprobs(prompt)[-1].exp() * 2000
    seen = torch.bincount(torch.tensor(drawn), minlength=128).float()
    common = expected >= 5
    rest_seen, rest_expected = seen[~common].sum(), expected[~common].sum()
    statistic = ((seen - expected)[common] ** 2 / expected[common]).sum() + (
        rest_seen - rest_expected
    ) ** 2 / rest_expected
    freedom = int(common.sum())
    assert freedom >= 10
    assert statistic <= freedom + 5 * (2 * freedom) ** 0.5


def test_a_stop_string_ends_the_completion_and_its_tokens_are_kept(tied: Pair) -> None:
    """Several stop strings of one and of several tokens: the answer is the unstopped one up to the first that ends."""
    stopped = 0
    free_runs = tied.sync.batch(requests(12, LONG))
    for seed, (prompt, free) in enumerate(zip(prompts(12), free_runs, strict=True)):
        letters = [i for i in range(1, 200) if all(3 < token < 99 for token in free.ids[i - 1 : i + 1])]
        if len(letters) < 4:
            continue
        two = TOKENIZER.decode(free.ids[letters[3] - 1 : letters[3] + 1])
        stops = (two, "a string that never comes", "unused99>")
        one = tied.sync.one(prompt, Sampling(max_new_tokens=200, stop=stops), seed)
        text = TOKENIZER.decode(free.ids, skip_special_tokens=True)
        end = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert one.finish_reason == "stop"
        assert one.text == text[:end]
        assert one.ids == free.ids[: len(one.ids)]
        assert one.text not in TOKENIZER.decode(one.ids[:-1], skip_special_tokens=True)
        assert len(one.behaviour_logprobs) == len(one.weight_version) == len(one.ids)
        stopped += 1
    assert stopped >= 6


def test_only_the_given_tokens_end_a_completion(tied: Pair) -> None:
    """The tokenizer's end of text is an ordinary token unless it is in the list; the one that ends is kept."""
    free = tied.sync.batch(requests(12, LONG))
    with_eos = [i for i, one in enumerate(free) if EOS in one.ids[:-1]]
    assert len(with_eos) >= 3
    assert all(len(one.ids) == 200 and one.finish_reason == "length" for one in free)
    assert all("<eos>" not in one.text for one in free)
    for i in with_eos:
        one = tied.sync.one(prompts(12)[i], Sampling(max_new_tokens=200, stop_token_ids=(EOS,)), i)
        assert one.ids == free[i].ids[: free[i].ids.index(EOS) + 1]
        assert one.finish_reason == "stop"
        other = free[i].ids[10]
        one = tied.sync.one(prompts(12)[i], Sampling(max_new_tokens=200, stop_token_ids=(other,)), i)
        assert one.ids == free[i].ids[: free[i].ids.index(other) + 1]


def test_a_stop_token_as_the_last_allowed_one_is_a_stop(tied: Pair) -> None:
    free = tied.sync.one(prompts(1)[0], FREE)
    length = next(n for n in range(5, 24) if free.ids[n - 1] not in free.ids[: n - 1])
    one = tied.sync.one(prompts(1)[0], Sampling(max_new_tokens=length, stop_token_ids=(free.ids[length - 1],)))
    assert (one.ids, one.finish_reason) == (free.ids[:length], "stop")


def test_a_completion_that_repeats_itself_ends_where_the_detector_says(tied: Pair) -> None:
    """Greedy completions of a tiny model run in circles: each ends at the first token after which our own detector,
    which the engine `hf` uses, finds 3 copies of at most 8 tokens; a stop string on the way goes first."""
    stop = RepetitionStop(shortest=1, longest=8, count=3)
    greedy = Sampling(max_new_tokens=100, temperature=0.0)
    free = tied.sync.batch(requests(12, greedy))
    lengths = [next((n for n in range(1, 100) if repeats(one.ids[:n], stop)), 100) for one in free]
    assert min(lengths) < 100
    unused = replace(greedy, repetition=stop, stop=("a string that never comes",))
    for whole, one, length in zip(free, tied.sync.batch(requests(12, unused)), lengths, strict=True):
        assert one.ids == whole.ids[:length]
        assert one.finish_reason == ("length" if length == 100 else "repetition")
        assert one.text == TOKENIZER.decode(one.ids, skip_special_tokens=True)


def test_speeds_are_measured_by_how_many_requests_run(tied: Pair) -> None:
    """12 completions of 200 tokens in an engine that runs 8 at a time: 1,600 tokens come 8 at a time, 800 come 4 at a
    time. The tokens of a size over its speed are its seconds, together no more than there were; it is told once."""
    tied.engine.measured()
    start = time.perf_counter()
    tied.sync.batch(requests(12, LONG))
    seconds = time.perf_counter() - start
    found = tied.engine.measured()
    assert found.keys() <= {f"engine/tokens_per_second/{size}" for size in (1, 2, 4, 8)}
    spent = [0.9 * tokens / found[f"engine/tokens_per_second/{size}"] for size, tokens in ((8, 1600), (4, 800))]
    assert sum(spent) <= seconds
    assert tied.engine.measured() == {}


def test_a_cancelled_request_leaves_the_engine(tied: Pair) -> None:
    async def cancelled() -> int:
        tasks = [asyncio.create_task(tied.engine.generate(one)) for one in requests(12, LONG)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        return tied.engine._life.core.llm.output_processor.get_num_unfinished_requests()

    assert tied.sync.background.wait(cancelled()) == 0
    assert len(tied.sync.batch(requests(12, FREE))) == 12


def test_a_hold_that_is_cancelled_at_its_start_does_not_stop_the_engine(tied: Pair) -> None:
    async def cancelled(steps: int) -> int:
        async def hold() -> None:
            async with tied.engine.hold():
                await asyncio.sleep(60)

        task = asyncio.create_task(hold())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return len((await asyncio.wait_for(tied.engine.generate(request([5], FREE)), timeout=60)).ids)

    for steps in (0, 1, 2, 3, 10):
        assert tied.sync.background.wait(cancelled(steps)) == 24


def test_what_cannot_fit_is_refused_with_its_lengths(tied: Pair) -> None:
    assert tied.engine.model_len == 256
    assert len(tied.sync.one([5] * 56, LONG).ids) == 200
    with pytest.raises(EngineError, match=r"57 tokens, max_new_tokens 200.*256"):
        tied.sync.one([5] * 57, LONG)
    with pytest.raises(EngineError, match=r"'r0'.*128.*vocabulary"):
        tied.sync.one([5, 128], FREE)
    with pytest.raises(EngineError, match="prompt of 0 tokens"):
        tied.sync.one([], FREE)
    with pytest.raises(EngineError, match="sequence 1 has 257 tokens; must be 1 to 256"):
        tied.sync.logprobs([[5], [5] * 257])
    whole = [3 + i % 90 for i in range(256)]
    assert (
        largest_difference(tied.sync.logprobs([whole, [5], [5, 6]]), tied.learner.logprobs([whole, [5], [5, 6]]))
        <= 1e-4
    )


def test_wrong_weights_are_refused_and_the_engine_goes_on_with_the_old(tied: Pair) -> None:
    good = dict(tied.learner.weights())
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(EngineError, match=f"1 weights are missing, the first is '{name}'"):
        tied.sync.load_weights([(n, t) for n, t in good.items() if n != name], 3)
    with pytest.raises(EngineError, match=r"has shape \(2, 2\)"):
        tied.sync.load_weights((good | {name: torch.zeros(2, 2)}).items(), 3)
    with pytest.raises(EngineError, match="'nonsense' is not in the model folder"):
        tied.sync.load_weights([*good.items(), ("nonsense", torch.zeros(1))], 3)
    with pytest.raises(EngineError, match="came twice"):
        tied.sync.load_weights([*good.items(), *good.items()], 3)
    with pytest.raises(EngineError, match=r"ties 'lm_head\.weight'"):
        tied.sync.load_weights([*good.items(), ("lm_head.weight", good["model.embed_tokens.weight"] + 1)], 3)
    assert tied.engine.version == 0
    assert largest_difference(tied.sync.logprobs(prompts(3)), tied.learner.logprobs(prompts(3))) <= 1e-4


def test_an_idle_engine_uses_no_cpu(tied: Pair) -> None:
    """Learner and engine take turns on the same cores, so that waiting must not be spinning."""
    tied.sync.batch(requests(8, FREE))
    core = tied.engine._life.core.llm.engine_core.resources.engine_manager.processes[0].pid

    def used() -> float:
        fields = Path(f"/proc/{core}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    time.sleep(0.2)
    before = used()
    time.sleep(1.0)
    assert used() - before <= 0.1
