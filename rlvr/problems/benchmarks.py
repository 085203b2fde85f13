"""Named benchmarks: their data set on the hub, its columns, and how references are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rlvr.config.problems import Benchmark
from rlvr.problems.files import parse_line, read_dataset, read_lines
from rlvr.problems.keys import problem_key
from rlvr.problems.rows import ProblemError, ReferenceFormat, Row, collect, problem_from_row
from rlvr.records import Problem

CODE_QUESTION = (
    "Complete this Python function. Answer with the whole function, its imports included, in one ```python block.\n\n"
    "```python\n{prompt}\n```"
)


@dataclass(frozen=True, slots=True)
class Form:
    """One way in which a benchmark's rows are written."""

    prompt: str
    reference: str
    reference_format: ReferenceFormat = "plain"


@dataclass(frozen=True, slots=True)
class Known:
    """A benchmark: its home on the hub, and the forms of its rows, the hub's own first."""

    hub: str
    subset: str | None
    split: str
    forms: tuple[Form, ...]
    make: Callable[[Row, Form], Problem] = problem_from_row


def load_benchmark(source: Benchmark) -> list[Problem]:
    """The problems of a benchmark, in its order. Raises `ProblemError` naming broken rows and the columns accepted."""
    known = KNOWN[source.name]
    items: Iterable[Any]
    if source.path is not None:
        path = Path(source.path)
        where = str(path)
        items = islice(read_lines(path), source.limit)

        def row_of(item: Any) -> Row:
            return parse_line(path, *item)
    else:
        try:
            rows = read_dataset(known.hub, known.subset, known.split)
        except ProblemError as error:
            raise ProblemError(f"{error}; without the hub, set path to a JSON-lines file of {source.name}") from error
        where = f"{known.hub}[{known.split}]"
        items = range(len(rows) if source.limit is None else min(source.limit, len(rows)))

        def row_of(item: Any) -> Row:
            return Row("", f"{where}:{item}", rows[item])

    def make(numbered: tuple[int, Any]) -> Problem:
        number, item = numbered
        row = replace(row_of(item), id=f"{source.name}/{number}")
        return known.make(row, _form(known, row))

    return collect(enumerate(items), make, where)


def _form(known: Known, row: Row) -> Form:
    """The first form all of whose columns the row has."""
    for form in known.forms:
        if form.prompt in row.data and form.reference in row.data:
            return form
    accepted = " or ".join(f"{form.prompt}, {form.reference}" for form in known.forms)
    raise ProblemError(f"{row.source}: needs the columns {accepted}; it has {', '.join(row.data)}")


def _integer(row: Row, form: Form) -> Problem:
    """A row whose answer is an integer, however it is written: 25, "025", 25.0."""
    value = row.data[form.reference]
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"[-+]?\d+(\.0+)?", text):
        raise ProblemError(f"{row.source}: column {form.reference!r} must hold an integer, got {value!r:.80}")
    return replace(problem_from_row(row, form), reference=str(int(text.partition(".")[0])))


def _humaneval(row: Row, form: Form) -> Problem:
    """A row of HumanEval as `rewards.programs` reads it: its `check`, what to check, and the code that comes before."""
    fields = ("prompt", "test", "entry_point")
    for name in fields:
        if name not in row.data:
            raise ProblemError(f"{row.source}: no column {name!r}; columns: {', '.join(row.data)}")
        if not isinstance(row.data[name], str) or not row.data[name].strip():
            raise ProblemError(f"{row.source}: column {name!r} must hold text, got {row.data[name]!r:.80}")
    prompt, test, entry_point = (row.data[name] for name in fields)
    if not entry_point.isidentifier():
        raise ProblemError(f"{row.source}: column 'entry_point' must name a function, got {entry_point!r:.80}")
    return Problem(
        id=row.id,
        prompt=CODE_QUESTION.format(prompt=prompt.strip("\n")),
        reference={"tests": test, "entry_point": entry_point, "prompt": prompt},
        key=problem_key(prompt),
        source=row.source,
        meta={name: value for name, value in row.data.items() if name not in fields},
    )


KNOWN = {
    "gsm8k": Known(
        "openai/gsm8k", "main", "test", (Form("question", "answer", "gsm8k"), Form("problem", "answer", "plain"))
    ),
    "math500": Known("HuggingFaceH4/MATH-500", None, "test", (Form("problem", "answer"),)),
    "aime24": Known(
        "HuggingFaceH4/aime_2024", None, "train", (Form("problem", "answer"), Form("Problem", "Answer")), _integer
    ),
    "amc23": Known(
        "AI-MO/aimo-validation-amc", None, "train", (Form("problem", "answer"), Form("question", "answer")), _integer
    ),
    "humaneval": Known("openai/openai_humaneval", None, "test", (Form("prompt", "test"),), _humaneval),
}
