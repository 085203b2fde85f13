"""Verifiers that misbehave on request, for the tests of the pool; loaded inside its workers."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import Any

import numpy

from rewards import BadReference, Outcome, Verdict


class Naughty:
    """Does what the completion says; anything else is CORRECT."""

    lowest_score = -1.0

    def check_reference(self, reference: Any) -> None:
        if reference == "bad":
            raise BadReference("this one is bad")
        self._obey(reference)

    def grade(self, completion: str, reference: Any) -> Verdict:
        self._obey(completion)
        return Verdict(1.0, Outcome.CORRECT, {"completion": completion, "reference": reference})

    def grade_answer(self, answer: str, reference: Any) -> Verdict:
        return Verdict(0.5, Outcome.PARTIAL, {"answer": answer})

    def _obey(self, order: Any) -> None:
        match order:
            case "hang":
                time.sleep(1000)
            case "spin":
                while True:
                    pass
            case "huge power":
                pow(7, 10**9)  # inside C, where no signal handler of Python runs
            case "exit":
                os._exit(3)
            case "abort":
                os.abort()
            case "memory":
                self.hoard = [bytes(50_000_000) for _ in range(10_000)]  # calloc: fast also on a busy machine
            case "slow":
                time.sleep(0.4)
            case "burn":
                end = time.process_time() + 0.3
                while time.process_time() < end:
                    pass
            case "write anywhere":
                for descriptor in range(3, 64):  # the worker's pipes are among them
                    with suppress(OSError):
                        os.write(descriptor, b"\x05\x00\x00\x00hello")
            case "recursion":
                self._obey_again(0)
            case "raise":
                raise KeyError("a bug of the verifier")
            case "bad reference":
                raise BadReference("found late")
            case "print":
                print("x" * 100_000)
                os.write(1, b"\x00\x00\x00\x00{}")
                sys.stdout.flush()
            case "read":
                assert sys.stdin.read() == ""

    def _obey_again(self, depth: int) -> int:
        return self._obey_again(depth + 1) + 1


class Environment:
    """Tells what its process sees."""

    def check_reference(self, reference: Any) -> None:
        pass

    def grade(self, completion: str, reference: Any) -> Verdict:
        names = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR") if name in os.environ]
        modules = [name for name in ("torch", "vllm", "transformers") if name in sys.modules]
        return Verdict(1.0, Outcome.CORRECT, {"names": names, "modules": modules, "pid": os.getpid()})


class NoVerdict:
    """Returns what is no verdict, or a detail that JSON does not have."""

    def check_reference(self, reference: Any) -> None:
        pass

    def grade(self, completion: str, reference: Any) -> Any:
        match completion:
            case "numpy":
                return Verdict(numpy.float32(0.5), Outcome.PARTIAL)
            case "key":
                return Verdict(1.0, Outcome.CORRECT, {(1, 2): 3})
            case "circle":
                circle: list[Any] = []
                circle.append(circle)
                return Verdict(1.0, Outcome.CORRECT, {"circle": circle})
            case "no mapping":
                return Verdict(1.0, Outcome.CORRECT, 5)  # type: ignore[arg-type]  # the error under test
        if completion == "detail":
            return Verdict(1.0, Outcome.CORRECT, {"object": object, "big": "x" * 100_000})
        return 1.0


class Slow:
    """Needs more time than the pool gives, and says so."""

    needs_seconds = 30.0

    def check_reference(self, reference: Any) -> None:
        pass

    def grade(self, completion: str, reference: Any) -> Verdict:
        time.sleep(0.4)
        return Verdict(1.0, Outcome.CORRECT)


class Broken:
    def __init__(self) -> None:
        raise RuntimeError("no licence found")


class Refusing:
    def __init__(self, level: int) -> None:
        raise ValueError(f"level: {level} must be below 3")


class NotAVerifier:
    pass
