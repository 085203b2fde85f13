"""How findings are shown, counted and documented."""

from __future__ import annotations

import io
import json

from rich.console import Console

from rlvr.doctor.report import Report, as_json, show, verdict
from rlvr.doctor.rules import SECTIONS, markdown
from rlvr.rules.finding import Grade
from rlvr.rules.rule import Rule, rules_table
from tests.documents import ROOT

BAD = Rule("bad_thing", Grade.STOPS, "x | y", "change it")
SLOW = Rule("slow_thing", Grade.SLOWS, "z", "wait")


def shown(report: Report) -> str:
    stream = io.StringIO()
    show(report, Console(file=stream, width=120))
    return stream.getvalue()


def test_findings_stand_under_their_grade_the_worst_first() -> None:
    report = Report(
        subject="r", facts=[("length", "[bold]3[/bold] tokens")], prompts=["<|im_start|>user [x]"],
        findings=[
            BAD.finding("a [red]", evidence=["rollout 3"]), SLOW.finding("some"), BAD.finding("b", grade=Grade.NOTE),
        ],
    )  # fmt: skip
    lines = [line.strip() for line in shown(report).splitlines() if line.strip()]
    assert lines == [
        "prompt 1, as the model reads it", "<|im_start|>user [x]", "length  [bold]3[/bold] tokens",
        "stops learning: 1", "bad_thing: a [red]", "rollout 3", "-> change it",
        "slows learning: 1", "slow_thing: some", "-> wait",
        "note: 1", "bad_thing: b", "-> change it",
        "r: 1 stop learning, 1 slow it, 1 to know",
    ]  # fmt: skip
    assert report.status == 1


def test_notes_alone_are_nothing_wrong() -> None:
    report = Report(subject="r", findings=[SLOW.finding("a", grade=Grade.NOTE)])
    assert report.status == 0
    assert verdict(report) == "r: nothing found that stops or slows learning"


def test_json_holds_everything() -> None:
    report = Report(subject="r", findings=[SLOW.finding("ä", evidence=["1", "2"])])
    assert json.loads(as_json(report)) == {
        "subject": "r", "facts": [], "prompts": [], "status": 0,
        "findings": [
            {"rule": "slow_thing", "grade": "slows learning", "message": "ä", "advice": "wait", "evidence": ["1", "2"]}
        ],
    }  # fmt: skip


def test_the_table_has_the_worst_first_and_keeps_its_columns() -> None:
    assert rules_table([SLOW, BAD]).splitlines()[2:] == [
        "| `bad_thing` | stops learning | x \\| y | change it |",
        "| `slow_thing` | slows learning | z | wait |",
    ]


def test_the_page_is_current() -> None:
    written = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert written == markdown(), "run `python -m rlvr.doctor.rules > docs/doctor.md`"


def test_every_rule_has_a_name_of_its_own() -> None:
    """Before a run as over a run; what is the same before and in a run may have the same name."""
    for parts in (SECTIONS[:2], SECTIONS[2:]):
        names = [rule.name for _, _, rules in parts for rule in rules]
        assert len(set(names)) == len(names)
    assert all(rule.fires and rule.advice for _, _, rules in SECTIONS for rule in rules)
