"""One grading of the pool: what was asked, what came of it, and the counters over all of them."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from rewards.verdict import Outcome, Verdict
from rewards.worker import encode

REQUEST_LIMIT = 2**30
"""Bytes of JSON that one grading may take on its way to a worker."""


@dataclass(slots=True)
class PoolStats:
    """What happened in a pool since its start."""

    graded: int = 0
    """Verdicts given."""
    timeouts: int = 0
    """Workers killed because a grading did not finish in time."""
    crashes: int = 0
    """Gradings that ended their worker (memory, stack, signal), counted once the verdict was CRASHED."""
    retries: int = 0
    """Gradings begun again because their worker died for a reason that may not have been theirs."""
    errors: int = 0
    """Verdicts of outcome ERROR: the verifier raised."""
    respawns: int = 0
    """Workers replaced."""
    busy_seconds: float = 0.0
    """Seconds that workers spent inside verifiers, summed."""


class Graded(NamedTuple):
    """A verdict and the seconds that the verifier took for it."""

    verdict: Verdict
    seconds: float


@dataclass(slots=True)
class Job:
    """One grading under way."""

    verifier: str
    body: bytes
    """Kind, verifier, completion and reference as JSON."""
    future: Future[Graded]
    is_running: bool = False
    """Whether a worker was given it, so that it cannot be cancelled any more."""
    deaths: int = 0
    """Workers that died while they had this job."""


def request(kind: str, verifier: str, completion: str, reference: Any) -> bytes:
    """What a worker is sent for one grading; raises `TypeError` or `ValueError` where JSON has no place for it."""
    try:
        body = encode((kind, verifier, completion, reference))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"reference: {reference!r:.200} cannot be sent to a worker as JSON: {error}") from error
    if len(body) > REQUEST_LIMIT:
        raise ValueError(f"completion and reference take {len(body)} bytes of JSON, the most is {REQUEST_LIMIT}")
    return body


def graded(answer: dict[str, Any]) -> tuple[Verdict, float]:
    """The verdict and its seconds in a worker's reply."""
    return Verdict(answer["score"], Outcome(answer["outcome"]), answer["detail"]), answer["seconds"]


def fail(job: Job, error: Exception) -> None:
    """End a job without a verdict, unless it has one."""
    if not job.future.done() and (job.is_running or job.future.set_running_or_notify_cancel()):
        job.future.set_exception(error)


def why_not(verdict: Verdict) -> str | None:
    """What a verdict on a reference says against it; None where it says nothing."""
    match verdict.outcome:
        case Outcome.CORRECT:
            return None
        case Outcome.TIMEOUT:
            return f"checking it did not finish within {verdict.detail['limit_seconds']} s"
        case Outcome.ERROR:
            return f"check_reference raised {verdict.detail['reason']}\n{verdict.detail.get('traceback', '')}"
        case _:
            return str(verdict.detail["reason"])
