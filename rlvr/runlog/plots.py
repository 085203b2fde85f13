"""Plots of logged metrics: a PNG for documents, block characters for the console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from rlvr.runlog.run_log import read_metrics


def points(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one key, from the lines that have it."""
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def draw_curve(runs: Mapping[str, Path], keys: Sequence[str], out: Path, *, title: str = "") -> Path:
    """Draw `keys` over steps for each run folder, with the band of its confidence interval where one is logged.

    Raises `ValueError` if no run has any of the keys.
    """
    import matplotlib  # half a second to import, so only where it is used

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    drawn = 0
    for name, folder in runs.items():
        lines = read_metrics(folder)
        for key in keys:
            steps, values = points(lines, key)
            if not steps:
                continue
            drawn += 1
            label = " ".join(part for part in (name if len(runs) > 1 else "", key if len(keys) > 1 else "") if part)
            (curve,) = axes.plot(steps, values, marker="o" if len(steps) <= 30 else "", markersize=3.5, label=label)
            (band, low), (_, high) = points(lines, f"{key}_low"), points(lines, f"{key}_high")
            if band:
                axes.fill_between(band, low, high, color=curve.get_color(), alpha=0.15, linewidth=0)
    if not drawn:
        raise ValueError(f"none of {', '.join(keys)} is in the metrics of {', '.join(map(str, runs.values()))}")
    axes.set_xlabel("step")
    axes.set_ylabel(keys[0] if len(keys) == 1 else "")
    axes.set_title(title or ", ".join(runs))
    axes.grid(alpha=0.3)
    if all(_is_share(key) for key in keys):
        axes.set_ylim(0.0, 1.0)
    if drawn > 1:
        axes.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out


def _is_share(key: str) -> bool:
    """True for what an evaluation estimates: it is drawn from 0 to 1."""
    return "@" in key or key.endswith("/greedy")


def console_curve(lines: Sequence[Mapping[str, Any]], keys: Sequence[str], *, height: int = 8) -> RenderableType:
    """The same curves in characters, for rich to print: one chart a key, a column or more for each point."""
    return _ConsoleCurve(lines, keys, height)


@dataclass(frozen=True, slots=True)
class _ConsoleCurve:
    """Prints itself through rich, within the width and the character set of the console at hand."""

    lines: Sequence[Mapping[str, Any]]
    keys: Sequence[str]
    height: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        blocks = " ##" if options.ascii_only else " ▁▂▃▄▅▆▇█"
        for key in self.keys:
            steps, values = points(self.lines, key)
            if steps:
                width = min(60, options.max_width - 12)
                yield Text(_chart(key, steps, values, width, self.height, blocks), no_wrap=True)


def _chart(key: str, steps: Sequence[int], values: Sequence[float], width: int, height: int, blocks: str) -> str:
    bottom, top = min(0.0, *values), 1.0 if _is_share(key) else max(values)
    parts = len(blocks) - 1
    heights = [round((value - bottom) / ((top - bottom) or 1.0) * height * parts) for value in _columns(values, width)]
    rows = []
    for row in reversed(range(height)):
        cells = "".join(blocks[min(parts, max(0, filled - row * parts))] for filled in heights)
        label = f"{top:.3g}" if row == height - 1 else f"{bottom:.3g}" if row == 0 else ""
        rows.append(f"{label:>8} |{cells}")
    first, last = f"step {steps[0]}", f"step {steps[-1]}"
    title = f"{key}: {values[0]:.3f} at {first}, {values[-1]:.3f} at {last}"
    return "\n".join([title, *rows, " " * 10 + first + last.rjust(max(len(heights) - len(first), len(last) + 1))])


def _columns(values: Sequence[float], width: int) -> list[float]:
    """Values stretched to fill at most `width` columns, or the means of equal shares where there are more values."""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    width_each = min(4, width // len(values))
    return [value for value in values for _ in range(width_each)]
