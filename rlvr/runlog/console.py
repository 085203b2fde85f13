"""What people see of a run: a first screen, a progress bar where there is a terminal, and one line a step anywhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as RemainingColumn
from rich.table import Table

_SMALL = 0.01
"""Shares of outcomes and truncated completions below this stay off the step's line."""


def step_line(step: int, last: int, metrics: Mapping[str, float]) -> str:
    """One step in one line of plain text; what was not measured is left out.

    Example: ``step  12/60  reward 0.431 +-0.035  correct 43% wrong 50%  groups 5/16 differ (8 all right, 3 none)
    231 tok (4% cut)  512 tok/s  grad 0.41  mismatch 3.1e-03  21.4 s``
    """
    parts = [f"step {step:>{len(str(last))}}/{last}"]
    if "reward/mean" in metrics:
        error = f" +-{metrics['reward/se']:.3f}" if "reward/se" in metrics else ""
        parts.append(f"reward {metrics['reward/mean']:.3f}{error}")
    parts += _outcomes(metrics)
    if "groups/total" in metrics:
        total, right, wrong = (int(metrics[f"groups/{key}"]) for key in ("total", "all_correct", "none_correct"))
        equal = int(metrics.get("groups/zero_variance", right + wrong) + metrics.get("groups/too_few_scored", 0))
        parts.append(f"groups {total - equal}/{total} differ ({right} all right, {wrong} none)")
    if "length/mean" in metrics:
        cut = metrics["length/truncated"]
        parts.append(f"{metrics['length/mean']:.0f} tok" + (f" ({cut:.0%} cut)" if cut >= _SMALL else ""))
    for key, form in (
        ("tokens/per_second", "{:.0f} tok/s"),
        ("update/grad_norm", "grad {:.3g}"),
        ("mismatch/kl", "mismatch {:.1e}"),
        ("time/step", "{:.1f} s"),
    ):
        if key in metrics:
            parts.append(form.format(metrics[key]))
    return "  ".join(parts)


def _outcomes(metrics: Mapping[str, float]) -> list[str]:
    """The outcomes of the first reward term that are not rare, most frequent first."""
    keys = [key for key in metrics if key.startswith("outcome/")]
    if not keys:
        return []
    first = keys[0].rsplit("/", 1)[0] + "/"
    shares = {key.removeprefix(first): metrics[key] for key in keys if key.startswith(first)}
    shown = sorted((name for name in shares if shares[name] >= _SMALL), key=lambda name: -shares[name])
    return [" ".join(f"{name} {shares[name]:.0%}" for name in shown)]


def eval_lines(metrics: Mapping[str, float]) -> list[str]:
    """One line for each evaluation among a step's metrics: pass@k, maj@k, reward and greedy with their intervals."""
    lines: dict[str, list[str]] = {}
    for key in metrics:
        if key.startswith("eval/") and f"{key}_low" in metrics and "/avg@" not in key:
            name, measure = key.removeprefix("eval/").rsplit("/", 1)
            low, high = metrics[f"{key}_low"], metrics[f"{key}_high"]
            lines.setdefault(name, []).append(f"{measure} {metrics[key]:.3f} [{low:.3f}, {high:.3f}]")
    return [f"eval {name}: " + "  ".join(parts) for name, parts in lines.items()]


def make_console() -> Console:
    """A console on standard output: control codes on a terminal, plain and unwrapped lines elsewhere."""
    is_terminal = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=not is_terminal, width=None if is_terminal else 120)


class Display:
    """The screen of a run; without a terminal it prints the same lines and no bar."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            RemainingColumn(),
            console=console,
            transient=True,
            refresh_per_second=2,  # a core that draws does not train
            disable=not console.is_terminal,
        )
        self._steps: TaskID | None = None
        self._phase: TaskID | None = None
        self._phase_name = ""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def start_screen(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """What will happen, as label and value."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for label, value in rows:
            table.add_row(escape(label), escape(value))
        self.line(title, style="bold")
        self.console.print(table)

    def begin(self, done: int, total: int) -> None:
        """Show the bar of the steps."""
        self._steps = self._progress.add_task("steps", completed=done, total=total)
        self._progress.start()

    def phase(self, name: str, done: int | None = None, total: int | None = None) -> None:
        """Say what is going on within the step, and how far it is where that is known."""
        if self._steps is None:
            return
        if self._phase is None or name != self._phase_name:  # a new bar: its clock starts, and it may have no end
            if self._phase is not None:
                self._progress.remove_task(self._phase)
            self._phase, self._phase_name = self._progress.add_task(name, total=total), name
        self._progress.update(self._phase, completed=done or 0, total=total)

    def step(self, step: int, last: int, metrics: Mapping[str, float]) -> None:
        """Print the line of a finished step, and its evaluations."""
        self.line(step_line(step, last, metrics))
        for line in eval_lines(metrics):
            self.line(line, style="bold")
        if self._steps is not None:
            self._progress.update(self._steps, completed=step)

    def line(self, text: str, style: str = "") -> None:
        """Print one line of text as it is."""
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """Print a table or anything else that rich knows."""
        self.console.print(what)
