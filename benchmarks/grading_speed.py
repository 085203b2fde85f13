"""Verdicts a second on everyday answers, beside math-verify in the same process, and what a pathological answer costs.

Run `python benchmarks/grading_speed.py` on a machine with nothing else to do. The mix: integers, decimals, fractions
and short LaTeX in equal parts, half of them right, each in a sentence with a box; answers do not repeat, so that the
cache does not help.
Repeats alternate between the graders. Everything is pinned to one core, the pool's worker and its parent together.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from math_verify import parse, verify  # noqa: E402

from rewards import Outcome  # noqa: E402
from rewards.math_answers import MathVerifier  # noqa: E402
from rewards.pool import GradingPool, VerifierSpec  # noqa: E402

Item = tuple[str, str, bool]
PATHOLOGICAL = (
    (r"\frac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}", "5"),
    (r"9^{9^{9^{9}}}", "9"),
    (r"(10^9)!", "7"),
    (r"\binom{1000000000}{500000000}", "7"),
    (r"(x+1)^{5000}", "x+1"),
    (r"\int_0^1 e^{\sin(x^{x^x})} dx", r"\pi"),
    ("(" * 3000 + "1" + ")" * 3000, "1"),
    ("1," * 20_000 + "1", "1"),
    ("7" * 50_000, "7"),
)


def everyday(seed: int) -> Iterator[Item]:
    """Completion, reference and whether it is right, without end."""
    rng = random.Random(seed)
    while True:
        a, b, c = rng.randint(2, 10**6), rng.randint(2, 10**6), rng.randint(2, 99)
        kinds = (
            [(f"{a}", f"{a}", f"{a + 1}"), (f"{a}", f"{a:,}", f"-{a}")],
            [(f"{a}.{c}", f"{a}.{c}0", f"{a}.{c}1"), (f"0.{a}", f".{a}", f"0.{a}1")],
            [
                (f"{a}/{b}", rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{b + 1}}}{{{a}}}"),
                (rf"\frac{{{2 * a}}}{{{2 * b}}}", rf"\frac{{{a}}}{{{b}}}", f"{a}/{b + 1}"),
            ],
            [
                (rf"{c}\sqrt{{{a}}}", rf"\sqrt{{{a}}}\cdot {c}", rf"{c}\sqrt{{{a + 1}}}"),
                (rf"({a}, {b})", rf"\left({a},{b}\right)", f"({b}, {a})"),
                (rf"\frac{{{c}\pi}}{{{b}}}", rf"{c}\pi/{b}", rf"{c}\pi/{b + 1}"),
                (f"{c}x+{a}", f"{a}+{c}x", f"{a}x+{c}"),
            ],
        )
        reference, right, wrong = rng.choice(rng.choice(kinds))
        is_right = rng.random() < 0.5
        answer = right if is_right else wrong
        yield rf"We add both sides and find that the answer is $\boxed{{{answer}}}$.", reference, is_right or a == b


def take(source: Iterator[Item], count: int) -> list[Item]:
    """The next items."""
    return [next(source) for _ in range(count)]


def timed(grade: Callable[[list[Item]], list[bool]], items: list[Item]) -> tuple[float, float]:
    """Verdicts a second, and the share that is right."""
    start = time.perf_counter()
    verdicts = grade(items)
    seconds = time.perf_counter() - start
    agreed = sum(verdict == item[2] for verdict, item in zip(verdicts, items, strict=True))
    return len(items) / seconds, agreed / len(items)


def compare(repeats: int, count: int) -> dict[str, float]:
    """Print the table of rates; the median rate of each grader."""
    verifier = MathVerifier()
    verifier.warm_up()
    source = everyday(0)

    def direct(items: list[Item]) -> list[bool]:
        return [verifier.grade(text, reference).outcome is Outcome.CORRECT for text, reference, _ in items]

    def peer(items: list[Item]) -> list[bool]:
        return [bool(verify(parse(rf"\boxed{{{reference}}}"), parse(text))) for text, reference, _ in items]

    with GradingPool({"math": VerifierSpec("rewards.math_answers:MathVerifier")}) as pool:

        def pooled(items: list[Item]) -> list[bool]:
            verdicts = pool.grade_many(("math", text, reference) for text, reference, _ in items)
            return [verdict.outcome is Outcome.CORRECT for verdict in verdicts]

        graders = {"MathVerifier": (direct, count), "in the pool": (pooled, count), "math-verify": (peer, count // 20)}
        for grade, _ in graders.values():
            grade(take(source, 50))
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in graders}
        for _ in range(repeats):
            for name, (grade, size) in graders.items():
                runs[name].append(timed(grade, take(source, size)))
    medians = {name: statistics.median(rate for rate, _ in found) for name, found in runs.items()}
    for name, found in runs.items():
        rates = [rate for rate, _ in found]
        right = statistics.mean(share for _, share in found)
        beside = medians[name] / medians["math-verify"]
        print(f"{name:14} {medians[name]:8.0f} verdicts/s (of {repeats}: {min(rates):.0f} to {max(rates):.0f}), "
              f"{beside:6.1f} x math-verify, {right:.4f} right")  # fmt: skip
    return medians


def pathological(limit: float) -> None:
    """Print what single answers cost, and how long others wait beside one that never ends."""
    path = "grading_pool:MathOrTrouble"
    with GradingPool({"math": VerifierSpec(path)}, workers=2, timeout=limit) as pool:
        items = take(everyday(1), 200)
        pool.grade_many(("math", text, reference) for text, reference, _ in items)
        for answer, reference in PATHOLOGICAL:
            graded = pool.submit("math", rf"\boxed{{{answer}}}", reference).result()
            print(f"{answer:.40} against {reference:6} {graded.verdict.outcome:10} {graded.seconds:7.4f} s")
        for trouble in ("spin", "power", "memory"):
            time.sleep(2)  # the spare is there again
            beside(pool, trouble, items, limit)


def beside(pool: GradingPool, trouble: str, items: list[Item], limit: float) -> None:
    """Print how long one answer that ends badly takes, and how long the others that came just after it."""
    start = time.perf_counter()
    taken: list[float] = []
    bad = pool.submit("math", trouble, "1")
    futures = [pool.submit("math", text, reference) for text, reference, _ in items]
    for future in futures:
        future.add_done_callback(lambda _: taken.append(time.perf_counter() - start))
    verdict = bad.result().verdict
    own = time.perf_counter() - start
    for future in futures:
        future.result()
    print(
        f"{trouble:7} {verdict.outcome} after {own:.2f} s (limit {limit} s), the last of {len(futures)} others "
        f"after {max(taken):.2f} s"
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--limit", type=float, default=1.0)
    options = parser.parse_args()
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    print(f"one core, load average {os.getloadavg()[0]:.1f}")
    compare(options.repeats, options.count)
    os.sched_setaffinity(0, everywhere)
    pathological(options.limit)


if __name__ == "__main__":
    main()
