"""A run folder as the viewer sees it: growing metrics, the recipe, a tokenizer, the index of rollouts."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer

from rlvr.config.dotted import flatten
from rlvr.errors import InputError
from rlvr.runlog.glossary import SECTIONS, find, section_of
from rlvr.view.index import Index, Progress, fits
from rlvr.view.queries import Rollouts
from rlvr.view.tokens import pieces

POINTS = 600
"""Points of a curve that are sent; more are averaged in equal shares."""
X_AXES = {"step": None, "samples": "rollouts/count", "tokens": "tokens/generated", "hours": "time/step"}
"""What a curve can be drawn over, and the metric whose running sum it is."""


_PLACES = {metric.key: place for place, metric in enumerate(chain.from_iterable(rows for _, rows in SECTIONS))}


class RunError(InputError, ValueError):
    """The given folder is no run; the message says what is missing."""


class Run:
    """One run folder. `follow` reads what is new; everything else answers from what was read."""

    def __init__(self, folder: Path, label: str) -> None:
        """Raises `RunError` if the folder holds nothing to show."""
        if not folder.is_dir():
            raise RunError(f"{folder}: there is no such folder; give a run's, such as runs/quickstart")
        if not any((folder / name).exists() for name in ("metrics.jsonl", "rollouts.jsonl")):
            inside = sorted(log.parent for log in folder.glob("*/metrics.jsonl"))
            raise RunError(
                f"{folder}: holds neither metrics.jsonl nor rollouts.jsonl"
                + (f"; did you mean {' '.join(map(str, inside[:5]))}?" if inside else "")
            )
        self.folder, self.label = folder, label
        self.metrics = Metrics(folder / "metrics.jsonl")
        self.index = Index(folder / "rollouts.jsonl")
        self.rollouts = Rollouts(self.index)
        self._tokenizer: Tokenizer | None = None
        self._lock = threading.Lock()

    def state(self) -> dict[str, Any]:
        """The state that the page polls every other second."""
        progress: Progress = self.index.progress()
        return {
            "label": self.label, "folder": str(self.folder), "metrics": self.metrics.revision,
            "place": progress.place, "size": progress.size, "level": self.index.is_level, "bad": progress.bad,
            "bad_first": progress.bad_first, "bad_metrics": self.metrics.bad,
        }  # fmt: skip

    def recipe(self) -> dict[str, Any]:
        """The recipe as text and as dotted keys; empty where the folder has none."""
        path = self.folder / "recipe.yaml"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        try:
            values = yaml.safe_load(text) or {}
        except yaml.YAMLError:
            values = {}
        settings = flatten(values) if isinstance(values, Mapping) else ()
        return {"text": text, "values": {key: _shown(value) for key, value in settings}}

    def rollout(self, step: int, group: int, sample: int) -> dict[str, Any]:
        """One rollout with its tokens in pieces of text, where they were written and a tokenizer is at hand."""
        record = self.rollouts.rollout(step, group, sample)
        if "ids" in record:
            tokenizer = self._find_tokenizer()
            ids = record.pop("ids")
            record["pieces"] = pieces(tokenizer, ids) if tokenizer else [f"⟨{token}⟩" for token in ids]
            record["has_tokenizer"] = tokenizer is not None
            prompt = record.pop("prompt_ids")
            record["prompt_tokens"] = len(prompt)
        return record

    def _find_tokenizer(self) -> Tokenizer | None:
        """The tokenizer beside the last checkpoint, or that of the model which the run began from."""
        with self._lock:
            if self._tokenizer is None:
                model = str(self.recipe()["values"].get("model.path", ""))
                places = sorted((self.folder / "checkpoints").glob("*/tokenizer.json"), reverse=True)
                parents = (Path.cwd(), *self.folder.resolve().parents) if model else ()
                places += [parent / model / "tokenizer.json" for parent in parents]
                place = next((path for path in places if path.is_file()), None)
                self._tokenizer = Tokenizer.from_file(str(place)) if place else None
            return self._tokenizer


class Metrics:
    """``metrics.jsonl`` as it grows, in columns: value by key and line."""

    def __init__(self, path: Path) -> None:
        self.path, self.revision, self.bad = path, 0, 0
        self._place, self._tail = 0, b""
        self._lines: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def follow(self) -> bool:
        """Read the whole lines that are new; all of them where the file was cut back. True if anything changed."""
        if not self.path.exists():
            return False
        with self._lock, self.path.open("rb") as file:
            file.seek(max(0, self._place - len(self._tail)))
            is_cut = file.read(len(self._tail)) != self._tail
            if is_cut:
                file.seek(0)
            data = file.read()
            data = data[: data.rfind(b"\n") + 1]
            if not data and not is_cut:
                return False
            if is_cut:
                self._place, self._lines, self.bad = 0, [], 0
            for line in data.split(b"\n")[:-1]:
                try:
                    record = json.loads(line)
                    if type(record["step"]) is not int or not all(
                        value is None or fits(value) for value in record.values()
                    ):
                        raise ValueError("a line holds a step and numbers")
                    self._lines.append(record)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    self.bad += 1
            self._place += len(data)
            self._tail = data[-256:]
            self.revision += 1
        return True

    def keys(self) -> dict[str, dict[str, Any]]:
        """Every key that was logged, with its glossary entry."""
        seen = dict.fromkeys(key for line in self._lines for key in line if key != "step")
        known = {key: metric for key in seen if (metric := find(key)) is not None}
        return {
            key: {
                "section": section_of(metric), "place": _PLACES[metric.key], "unit": metric.unit,
                "formula": metric.formula, "meaning": metric.meaning,
                "healthy": list(metric.healthy) if metric.healthy else None,
            }
            for key, metric in known.items()
        } | {key: {"section": "Others", "place": len(_PLACES), "unit": "", "formula": "", "healthy": None,
                   "meaning": "The glossary does not know this one."} for key in seen if key not in known}  # fmt: skip

    def series(self, keys: Sequence[str], x: str) -> dict[str, Any]:
        """``{"x": [...], KEY: [...]}`` over the lines that have any of the keys, at most `POINTS` of them.

        ``step`` in the response names the step of each point, whatever `x` is.
        """
        lines, source = self._lines, X_AXES[x]
        places: list[float] = [line["step"] for line in lines]
        if source is not None:
            places = list(accumulate(float(line.get(source) or 0.0) for line in lines))
            places = [place / 3600 for place in places] if x == "hours" else places
        chosen = [place for place, line in enumerate(lines) if any(line.get(key) is not None for key in keys)]
        edges = _edges(len(chosen))
        shares = [chosen[low:high] for low, high in edges]
        result: dict[str, Any] = {
            "x": [places[share[-1]] for share in shares],
            "step": [lines[share[-1]]["step"] for share in shares],
        }
        for key in keys:
            result[key] = [_mean([lines[place].get(key) for place in share]) for share in shares]
        return result


@dataclass(frozen=True, slots=True)
class Folder:
    """A run folder and what to call it."""

    path: Path
    label: str


def name_runs(paths: Sequence[Path]) -> list[Folder]:
    """Labels that tell the folders apart: the last part of each path, and more of it where that is not enough."""
    paths = list(dict.fromkeys(path.resolve() for path in paths))
    deepest = max(len(path.parts) for path in paths)
    for depth in range(1, deepest + 1):
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(labels):
            break
    return [Folder(path, label) for path, label in zip(paths, labels, strict=True)]


def _edges(count: int) -> list[tuple[int, int]]:
    shares = min(count, POINTS)
    return [(place * count // shares, (place + 1) * count // shares) for place in range(shares)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _shown(value: Any) -> Any:
    """A setting as the page shows it: lists as JSON."""
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value, default=str)
