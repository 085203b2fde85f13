"""From what a run left behind to the judge's word, without a sandbox: each by hand."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from rewards import BadReference, Outcome
from rewards.programs import ProgramVerifier, _Judgement, _returned
from rewards.sandbox import CaseResult, Limits, codec

NONCE = "0123456789abcdef"


def returned(**message: Any) -> Any:
    return _returned(CaseResult(messages=[{"kind": "value", "nonce": NONCE} | message]), NONCE)


def test_a_value_counts_only_under_the_nonce_of_its_run() -> None:
    """A candidate can write to the channel, and does not know the nonce."""
    assert returned(value=codec.encode([1, 2])) == [1, 2]
    forged = returned(value=codec.encode([1, 2]), nonce="fedcba9876543210")
    assert isinstance(forged, _Judgement)
    assert forged.word == "RE"
    missing = _returned(CaseResult(messages=[{"kind": "value", "value": codec.encode(5)}]), NONCE)
    assert isinstance(missing, _Judgement)


@pytest.mark.parametrize(
    ("messages", "word"),
    [
        ([], "RE"),
        (["no message"], "RE"),
        ([{"kind": "too_long", "message": "x"}], "OLE"),
        ([{"kind": "opaque", "message": "x"}], "WA"),
        ([{"kind": "compile_error", "message": "x"}], "CE"),
        ([{"kind": "raised", "types": ["MemoryError", "Exception"], "message": "x"}], "MLE"),
        ([{"kind": "raised", "types": ["KeyError", "Exception"], "message": "x"}], "RE"),
        ([{"kind": "raised", "types": [], "message": "x"}], "RE"),
        ([{"kind": "value", "nonce": NONCE, "value": {"no": "codec"}}], "WA"),
    ],
)
def test_the_word_for_a_call_without_a_value(messages: list[Any], word: str) -> None:
    found = _returned(CaseResult(messages=messages), NONCE)
    assert isinstance(found, _Judgement)
    assert found.word == word


@pytest.mark.parametrize(
    ("passed", "total", "share"), [(3.0, 3, 0.75), (2.0, 3, 2 / 3), (0.0, 3, 0.0), (0.5, 1, 0.5), (1.0, 1, 0.5)]
)
def test_what_spoils_the_end_of_a_program_costs_it_full_marks(passed: float, total: int, share: float) -> None:
    """All 3 of 3 passed and then a crash: 3/4, as if one test more had failed; never 1."""
    verdict = ProgramVerifier(partial_credit=True)._verdict(_Judgement("RE", passed, total), "full")
    assert verdict.score == pytest.approx(share)
    assert verdict.outcome is (Outcome.PARTIAL if share else Outcome.WRONG)
    plain = ProgramVerifier()._verdict(_Judgement("RE", passed, total), "full")
    assert (plain.score, plain.outcome) == (0.0, Outcome.WRONG)


def test_a_weak_pass_is_named_and_can_be_refused() -> None:
    weak = _Judgement("AC", 2, 2, weak=("__eq__",))
    accepted = ProgramVerifier()._verdict(weak, "full")
    assert (accepted.score, accepted.outcome, accepted.detail["weak"]) == (1.0, Outcome.CORRECT, ["__eq__"])
    refused = ProgramVerifier(weak="refuse")._verdict(weak, "full")
    assert (refused.score, refused.outcome, refused.detail["judge"]) == (0.0, Outcome.WRONG, "WA")


@pytest.mark.parametrize(
    ("result", "word"),
    [
        ({}, None),
        ({"exit": 1}, "RE"),
        ({"exit": -signal.SIGSEGV}, "RE"),
        ({"killed": "caller"}, "RE"),
        ({"killed": "wall"}, "TLE"),
        ({"killed": "cpu"}, "TLE"),
        ({"exit": -signal.SIGXCPU}, "TLE"),
        ({"killed": "memory"}, "MLE"),
        ({"exit": -signal.SIGKILL, "memory_mb": 90.0}, "MLE"),  # 0.9 of the limit: the kernel's killer
        ({"exit": -signal.SIGKILL, "memory_mb": 60.0}, "RE"),
        ({"exit": 1, "stderr": b"Traceback\nMemoryError\n"}, "MLE"),
        ({"exit": -signal.SIGABRT, "stderr": b"what():  std::bad_alloc\n"}, "MLE"),
        ({"exit": -signal.SIGXFSZ}, "OLE"),
        ({"overflow": "stdout", "killed": "wall"}, "OLE"),
    ],
)
def test_the_keepers_report_becomes_a_word(result: dict[str, Any], word: str | None) -> None:
    found = ProgramVerifier()._broken(CaseResult(**result), Limits(1.0, 2.0, 100, 8, 1000))
    assert (found.word if found else None) == word


def findings(**changed: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "passed": 2, "total": 2, "error": None, "completed": True, "reached": True, "failed": 0, "weak": [],
        "decided_by_candidate": [],
    }  # fmt: skip
    return plain | changed


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (findings(), "AC"),
        (findings(passed=1, failed=1), "WA"),
        (findings(passed=0, total=0), "WA"),
        (findings(completed=False), "WA"),
        (findings(completed=False, error={"kind": "gone", "message": "left"}), "RE"),
        (findings(completed=False, error={"kind": "exit", "message": "left"}), "RE"),
        (findings(completed=False, error={"kind": "raised", "message": "m", "types": ["KeyError"]}), "RE"),
        (findings(completed=False, error={"kind": "raised", "message": "m", "types": ["MemoryError"]}), "MLE"),
        (findings(completed=False, error={"kind": "compile_error", "message": "m"}), "CE"),
        (findings(completed=False, error={"kind": "tests", "message": "m"}), "WA"),
    ],
)
def test_the_referees_findings_become_a_word(found: dict[str, Any], word: str) -> None:
    judgement = ProgramVerifier()._from_findings(found, CaseResult())
    assert (judgement.word, judgement.total) == (word, found["total"])


def test_tests_that_ended_without_the_candidate_are_the_references_fault() -> None:
    with pytest.raises(BadReference, match="without calling the candidate"):
        ProgramVerifier()._from_findings(findings(reached=False), CaseResult())


def test_tests_that_cannot_run_are_the_references_fault() -> None:
    with pytest.raises(BadReference, match="tests: they cannot run: no module"):
        ProgramVerifier()._from_findings(findings(error={"kind": "tests_broken", "message": "no module"}), CaseResult())


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (findings(passed=0, total=0), "not one assert was reached"),
        (findings(passed=0, decided_by_candidate=["close"]), "decided by a function that the tests do not define"),
        (findings(passed=0, failed=1), "an assert does not hold"),
        (findings(passed=1, failed=1), "an assert does not hold"),
    ],
)
def test_what_is_said_of_tests_that_did_not_pass(found: dict[str, Any], message: str) -> None:
    assert message in ProgramVerifier()._from_findings(found, CaseResult()).message


def test_the_kinds_of_a_program_that_left_are_told_by_its_keeper() -> None:
    """A candidate that is gone is what ended it: time, memory, or else a crash."""
    gone = findings(completed=False, error={"kind": "gone", "message": "left"})
    verifier = ProgramVerifier()
    assert verifier._from_findings(gone, CaseResult(killed="wall")).word == "TLE"
    assert verifier._from_findings(gone, CaseResult(killed="memory")).word == "MLE"
    assert verifier._from_findings(gone, CaseResult(exit=3)).word == "RE"
    assert verifier._from_findings(gone, CaseResult()).word == "RE"
