"""`rlvr replay`: go through a batch whose loss or gradient was not finite, sample by sample."""

from __future__ import annotations

import argparse

from rich.table import Table

from rlvr.run.replay import replay
from rlvr.runlog.console import make_console


def run(arguments: argparse.Namespace) -> None:
    """Say what each sample of a kept batch does, those that are not finite first."""
    reports = sorted(replay(arguments.batch, run_plugins=arguments.run_plugins), key=lambda report: report.is_finite)
    bad = sum(not report.is_finite for report in reports)
    table = Table(title=f"{bad} of {len(reports)} samples are not finite", title_justify="left")
    for name in ("rank", "micro-batch", "sample", "trained tokens", "loss", "least logprob", "gradient of micro-batch"):
        table.add_column(name, justify="right")
    for report in reports:
        numbers = (f"{report.loss:.4g}", f"{report.least_logprob:.4g}", f"{report.grad_norm:.4g}")
        table.add_row(str(report.rank), str(report.micro_batch), str(report.sample), str(report.tokens), *numbers)
    make_console().print(table)
