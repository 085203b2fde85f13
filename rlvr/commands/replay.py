"""`rlvr replay`: a batch whose loss or gradient was not finite, sample by sample."""

from __future__ import annotations

import argparse

from rich.table import Table

from rlvr.run.replay import replay
from rlvr.runlog.console import make_console


def run(arguments: argparse.Namespace) -> None:
    """Say what each sample of a kept batch does, those that are not finite first."""
    found = sorted(replay(arguments.batch, run_plugins=arguments.run_plugins), key=lambda one: one.is_finite)
    bad = sum(not one.is_finite for one in found)
    table = Table(title=f"{bad} of {len(found)} samples are not finite", title_justify="left")
    for name in ("rank", "micro-batch", "sample", "trained tokens", "loss", "least logprob", "gradient of micro-batch"):
        table.add_column(name, justify="right")
    for one in found:
        numbers = (f"{one.loss:.4g}", f"{one.least_logprob:.4g}", f"{one.grad_norm:.4g}")
        table.add_row(str(one.rank), str(one.micro_batch), str(one.sample), str(one.tokens), *numbers)
    make_console().print(table)
