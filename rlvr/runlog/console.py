"""Console output of a run: a first screen, a progress bar on a terminal, and one line per step."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as RemainingColumn
from rich.table import Table
from rich.text import Text

_SMALL = 0.01
"""Shares of outcomes below this stay off the step's line."""


def step_line(step: int, last: int, metrics: Mapping[str, float], width: int | None = None) -> str:
    """One step as one line of plain text; metrics that were not measured are left out.

    Each field has a width of its own, so that lines can be compared down the page. On a terminal of `width` columns the
    fields that matter least are left out, as many as it takes.

    Example: ``step  12/60  reward  0.431 +-0.035  correct  43%  groups  5/16 differ    231 tok   4% cut     512 tok/s
    grad    0.412  mismatch 3.1e-03    21.4 s  (8 all right, 3 none; wrong 50%, no_answer 6%)``
    """
    fields = [(0, f"step {step:>{len(str(last))}}/{last}"), *_fields(metrics)]
    shown: list[int] = []
    room = math.inf if width is None else width
    for _, index in sorted((rank, index) for index, (rank, _) in enumerate(fields)):
        needed = len(fields[index][1]) + (2 if shown else 0)
        if needed > room:
            break
        shown.append(index)
        room -= needed
    return "  ".join(fields[index][1] for index in sorted(shown))


def _fields(metrics: Mapping[str, float]) -> Iterator[tuple[int, str]]:
    """The fields of a step's line from left to right, each with its rank: the greatest is left out first."""
    if "reward/mean" in metrics:
        error = f" +-{metrics['reward/se']:.3f}" if "reward/se" in metrics else ""
        yield 1, f"reward {metrics['reward/mean']:6.3f}{error}"
    shares = _outcomes(metrics)
    if shares:
        yield 4, f"correct {shares.pop('correct', 0.0):4.0%}"
    notes = []
    if "groups/total" in metrics:
        total, right, wrong = (int(metrics[f"groups/{key}"]) for key in ("total", "all_correct", "none_correct"))
        equal = int(metrics.get("groups/zero_variance", right + wrong) + metrics.get("groups/too_few_scored", 0))
        yield 2, f"groups {total - equal:>{len(str(total))}}/{total} differ"
        notes.append(f"{right} all right, {wrong} none")
    if "length/mean" in metrics:
        yield 5, f"{metrics['length/mean']:5.0f} tok {metrics['length/truncated']:4.0%} cut"
    for rank, key, form in (
        (6, "tokens/per_second", "{:7.0f} tok/s"),
        (7, "update/grad_norm", "grad {:8.3g}"),
        (8, "mismatch/kl", "mismatch {:8.1e}"),
        (3, "time/step", "{:7.1f} s"),
    ):
        if key in metrics:
            yield rank, form.format(metrics[key])
    often = [name for name in sorted(shares, key=lambda name: -shares[name]) if shares[name] >= _SMALL]
    notes += [", ".join(f"{name} {shares[name]:.0%}" for name in often)] if often else []
    if notes:
        yield 9, f"({'; '.join(notes)})"


def _outcomes(metrics: Mapping[str, float]) -> dict[str, float]:
    """The share of each outcome of the first reward term."""
    first = next((key.rsplit("/", 1)[0] + "/" for key in metrics if key.startswith("outcome/")), None)
    return {key.removeprefix(first): metrics[key] for key in metrics if first is not None and key.startswith(first)}


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
        """Print what will happen, as labels and values."""
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
        self.line(step_line(step, last, metrics, self.console.width if self.console.is_terminal else None))
        for line in eval_lines(metrics):
            self.line(line, style="bold")
        if self._steps is not None:
            self._progress.update(self._steps, completed=step)

    def line(self, text: str, style: str = "") -> None:
        """Print one line of text as it is; a terminal that is too narrow breaks it between words."""
        self.console.print(Text(text, style=style), soft_wrap=not self.console.is_terminal)

    def show(self, renderable: RenderableType) -> None:
        """Print a table or anything else that rich knows."""
        self.console.print(renderable)
