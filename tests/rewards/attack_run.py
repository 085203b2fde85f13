"""Run recorded attacks in one sandbox, each followed by a program that says what it got. Prints one JSON line each.

    python attack_run.py LEVEL FILE... [--names WORD,WORD]

A process of its own, so that the attacks can be run as another user, by another interpreter, and on a kernel that seems
to have an older Landlock.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rewards.programs import ProgramVerifier
from rewards.sandbox import Job
from rewards.verdict import BadReference

CONTROL = """
import os, resource
memory = bytearray(40 << 20)
with open("file", "w") as file:
    file.write("y" * 1000)
kinds = [kind for kind in range(16) if kind != resource.RLIMIT_NPROC]  # counted by user at the lower levels
print([resource.getrlimit(kind) for kind in kinds], os.nice(0), sorted(os.sched_getaffinity(0)))
print(os.sched_getscheduler(0), os.listdir("."), sorted(os.listdir("..")), sum(map(int, input().split())))
"""


def main() -> None:
    """Print the baseline of the control, then `{"name", "judge", "then", "control", "restarts"}` for each attack."""
    parser = argparse.ArgumentParser()
    parser.add_argument("level")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--names", default="", help="those whose names hold one of these words, joined by commas")
    options = parser.parse_args()
    attacks = [json.loads(line) for path in options.files for line in path.read_text().splitlines()]
    words = options.names.split(",")
    with_limits: dict[str, Any] = {"cpu_seconds": 1.0, "wall_seconds": 8.0, "total_seconds": 60.0, "memory_mb": 256}
    verifier = ProgramVerifier(min_level=options.level, force_level=options.level, **with_limits)
    verifier.warm_up()
    sandbox: Any = verifier._sandbox

    def control() -> str:
        result = sandbox.run(Job({"mode": "script", "code": CONTROL}, b"2 3\n"))
        return str((result.stdout + result.stderr).decode())

    print(json.dumps({"control": control(), "layers": sandbox.report().layers}), flush=True)
    for attack in attacks:
        if not any(word in attack["name"] for word in words):
            continue
        line = {"name": attack["name"], "judge": judge(verifier, attack), "control": control()}
        if "then" in attack:
            line["then"] = judge(verifier, attack["then"])
        print(json.dumps(line | {"restarts": sandbox.restarts}), flush=True)
    verifier.close()


def judge(verifier: ProgramVerifier, program: dict[str, Any]) -> str:
    """The judge's word on a program of `attacks.jsonl` and its kin."""
    language = program.get("language", "python")
    reference = {"tests": program["tests"], "language": language}
    try:
        detail = verifier.grade(f"```{language}\n{program['code']}\n```", reference).detail
    except BadReference as error:
        return f"BAD_REFERENCE {error}"
    if detail["judge"] == "IE":
        return f"IE {detail['reason']}"
    return str(detail["judge"]) + (" weak" if "weak" in detail else "")


if __name__ == "__main__":
    sys.exit(main())
