"""Pieces of completions: joined as one, kept and found again; and the order in which a gate lets requests in."""

from __future__ import annotations

import asyncio

from rewards import Outcome, Verdict
from rlvr.records import Completion, FinishReason
from rlvr.rollout.gate import Gate
from rlvr.rollout.journal import Graded, Journal, joined


class Letters:
    """A tokenizer of one character a token."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(map(chr, token_ids))


def piece(text: str, version: int, reason: FinishReason) -> Completion:
    count = len(text)
    return Completion(ids=tuple(map(ord, text)), behaviour_logprobs=tuple(-0.1 * i for i in range(count)),
                      weight_version=(version,) * count, text=text, finish_reason=reason)  # fmt: skip


def test_pieces_join_to_what_one_request_would_have_given() -> None:
    one = joined([piece("abc", 1, "abort"), piece("de", 3, "stop")], (), Letters())
    assert one == Completion(ids=tuple(map(ord, "abcde")), behaviour_logprobs=(0.0, -0.1, -0.2, 0.0, -0.1),
                             weight_version=(1, 1, 1, 3, 3), text="abcde", finish_reason="stop")  # fmt: skip


def test_a_stop_string_over_the_seam_ends_the_completion() -> None:
    """No engine saw it whole: what was sampled behind it is cut, and the reason is stop, also where the limit or an
    interruption had ended the piece."""
    for reason in ("length", "abort", "stop"):
        one = joined([piece("so </ans", 1, "length"), piece("wer> and on", 2, reason)], ("</answer>",), Letters())
        assert (one.text, one.finish_reason) == ("so </answer>", "stop")
        assert len(one.ids) == len(one.behaviour_logprobs) == len(one.weight_version) == 12


def test_without_a_stop_string_the_last_piece_decides() -> None:
    parts = [piece("so", 1, "abort"), piece(" on", 2, "length")]
    assert joined(parts, ("</answer>",), Letters()).finish_reason == "length"
    assert joined(parts[:1], ("x",), Letters()) is parts[0]


def test_a_journal_comes_back_as_it_was() -> None:
    """All numbers to the last bit, verdicts with their details."""
    verdict = Verdict(0.5, Outcome.PARTIAL, {"seen": ["1/3", None], "n": 2})
    unscored = Verdict(None, Outcome.ERROR, {"error": "made up"})
    journal = Journal({"p/0/1/0": [piece("ab", 3, "abort"), piece("", 4, "abort")]},
                      {"1": [Graded("ab", {"x": verdict, "y": unscored}, None, 0.1)]})  # fmt: skip
    assert Journal.from_state(journal.state_dict()) == journal
    assert (journal.oldest(), journal.tokens(), Journal().oldest()) == (3, 2, None)


def test_a_gate_lets_in_by_place_not_by_arrival() -> None:
    async def story() -> list[int]:
        gate, entered = Gate(), []

        async def one(order: int) -> None:
            await gate.enter((order, 0, 0), 5)
            entered.append(order)

        tasks = [asyncio.create_task(one(order)) for order in (3, 1, 2)]
        await asyncio.sleep(0)
        assert [gate.has_waiting(order) for order in range(5)] == [False, True, True, True, False]
        gate.open()
        await asyncio.gather(*tasks)
        return entered

    assert asyncio.run(story()) == [1, 2, 3]


def test_a_budget_is_a_completions_own_and_new_at_each_opening() -> None:
    async def story() -> list[int]:
        gate, place, found = Gate(), (0, 1, 0), []
        gate.open(budget=8)
        found.append(await gate.enter(place, 100))
        gate.spend(place, 5)
        found += [await gate.enter((0, 1, 1), 100), await gate.enter((0, 2, 0), 100), await gate.enter(place, 2)]
        gate.spend(place, 3)
        waits = asyncio.create_task(gate.enter(place, 100))
        await asyncio.sleep(0)
        assert gate.has_waiting(0)
        gate.open(budget=8)
        return [*found, await waits]

    assert asyncio.run(story()) == [8, 3, 8, 2, 8]
