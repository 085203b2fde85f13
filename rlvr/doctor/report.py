"""Prints the doctor's findings: for people, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlvr.rules.finding import Finding, Grade

STYLES = {Grade.STOPS: "bold red", Grade.SLOWS: "bold yellow", Grade.NOTE: "bold"}


@dataclass(slots=True, kw_only=True)
class Report:
    """The doctor's report on a recipe or a run."""

    subject: str
    """Name of the recipe, or the run's folder."""
    facts: list[tuple[str, str]] = field(default_factory=list)
    """Label and text of what was measured."""
    prompts: list[str] = field(default_factory=list)
    """The first prompts, special tokens visible."""
    findings: list[Finding] = field(default_factory=list)
    """Worst first."""

    @property
    def status(self) -> int:
        """The command's exit status: 1 if anything stops learning."""
        return int(any(finding.grade is Grade.STOPS for finding in self.findings))


def as_json(report: Report) -> str:
    """The whole report as one JSON object."""
    return json.dumps(asdict(report) | {"status": report.status}, ensure_ascii=False, indent=1)


def show(report: Report, console: Console) -> None:
    """Prompts, facts, then the findings by grade, the worst first."""
    for number, prompt in enumerate(report.prompts, start=1):
        _line(console, f"prompt {number}, as the model reads it", "bold")
        _line(console, prompt)
    if report.facts:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for label, text in report.facts:
            table.add_row(Text(label), Text(text))
        console.print()
        console.print(table)
    for grade in Grade:
        findings = [finding for finding in report.findings if finding.grade is grade]
        if findings:
            console.print()
            _line(console, f"{grade.value}: {len(findings)}", STYLES[grade])
            for finding in findings:
                _show(finding, console)
    console.print()
    _line(console, verdict(report), "bold")


def verdict(report: Report) -> str:
    """The last line: whether anything is in the way."""
    counts = [f"{sum(finding.grade is grade for finding in report.findings)} {text}" for grade, text in _COUNTED]
    if not any(finding.grade is not Grade.NOTE for finding in report.findings):
        return f"{report.subject}: nothing found that stops or slows learning"
    return f"{report.subject}: " + ", ".join(counts)


_COUNTED: Sequence[tuple[Grade, str]] = (
    (Grade.STOPS, "stop learning"), (Grade.SLOWS, "slow it"), (Grade.NOTE, "to know"),
)  # fmt: skip


def _show(finding: Finding, console: Console) -> None:
    text = Text(f"  {finding.rule}", style=STYLES[finding.grade])
    text.append(f": {finding.message}", style="not bold default")
    console.print(text, soft_wrap=True)
    for line in finding.evidence:
        _line(console, f"      {line}", "dim")
    _line(console, f"    -> {finding.advice}")


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
