"""Turns a row of data into a `Problem`; an error names the file and line of the broken row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from rewards.extract import find_boxed
from rlvr.config import nearest
from rlvr.errors import InputError
from rlvr.problems.keys import problem_key
from rlvr.records import Message, Problem

T = TypeVar("T")

ROLES = ("system", "user", "assistant", "tool")
SHOWN = 5
"""Broken rows that one error lists; the others are counted."""

ReferenceFormat = Literal["plain", "gsm8k", "boxed"]


class ProblemError(InputError, ValueError):
    """Problems that cannot be used; the message names file and line, key, value, rule and, if there is one, the fix.

    `rule` is the name under which the doctor reports it.
    """

    def __init__(self, message: str, *, rule: str = "cannot_run") -> None:
        super().__init__(message)
        self.rule = rule


class Columns(Protocol):
    """Which columns of a row hold question and reference."""

    @property
    def prompt(self) -> str:
        """Column of the question."""

    @property
    def reference(self) -> str:
        """Column of the reference."""

    @property
    def reference_format(self) -> ReferenceFormat:
        """How the reference stands in its column."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data set and where it stands."""

    id: str
    source: str
    data: Mapping[str, Any]


def collect(items: Iterable[T], make: Callable[[T], Problem], where: str) -> list[Problem]:
    """`make` of each item. Raises `ProblemError` that lists the first broken rows and counts all, or if no item."""
    problems: list[Problem] = []
    broken: list[str] = []
    for item in items:
        try:
            problems.append(make(item))
        except ProblemError as error:
            broken.append(str(error))
    raise_broken(broken, f"{where}: {len(broken)} of {len(broken) + len(problems)} rows cannot be used")
    if not problems:
        raise ProblemError(f"{where} holds no problem: there is nothing to train or measure on")
    return problems


def raise_broken(broken: list[str], headline: str, rule: str = "rows_unusable") -> None:
    """Raise `ProblemError` with the first `SHOWN` of `broken`, if there is any."""
    if broken:
        more = f"\n  ... and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise ProblemError(f"{headline}:\n  " + "\n  ".join(broken[:SHOWN]) + more, rule=rule)


def problem_from_row(row: Row, columns: Columns) -> Problem:
    """The problem in a row; other columns become its `meta`. Raises `ProblemError` naming the row."""
    prompt = read_prompt(column(row, columns.prompt, "prompt"), f"{row.source}: prompt column {columns.prompt!r}")
    where = f"{row.source}: reference column {columns.reference!r}"
    reference = read_reference(column(row, columns.reference, "reference"), columns.reference_format, where)
    meta = {name: value for name, value in row.data.items() if name not in (columns.prompt, columns.reference)}
    return Problem(id=row.id, prompt=prompt, reference=reference, key=problem_key(prompt), source=row.source, meta=meta)


def column(row: Row, name: str, key: str) -> Any:
    """The value of a column. Raises `ProblemError` with the nearest name and all names if there is no such column."""
    if name not in row.data:
        raise ProblemError(
            f"{row.source}: no column {name!r} (key {key}){nearest(name, row.data)}; columns: {', '.join(row.data)}"
        )
    return row.data[name]


def read_prompt(value: Any, where: str) -> str | tuple[Message, ...]:
    """A question as text, or as chat messages that end with the user's turn. Raises `ProblemError`."""
    if isinstance(value, str):
        if not value.strip():
            raise ProblemError(f"{where} is blank, a question needs text")
        return value
    if not isinstance(value, list | tuple):
        kind = type(value).__name__
        raise ProblemError(f"{where} must hold text or a list of chat messages, got {kind} {value!r:.80}")
    if not value:
        raise ProblemError(f"{where} is an empty list of chat messages")
    messages = tuple(_message(message, f"{where}, message {number}") for number, message in enumerate(value))
    if any(message["role"] == "system" for message in messages[1:]):
        raise ProblemError(f"{where}: a system message may only stand first")
    if messages[-1]["role"] not in ("user", "tool"):
        raise ProblemError(
            f"{where}: the last message must be the user's, got role {messages[-1]['role']!r}: the model answers next "
            "(a column that also holds the answer is a conversation, not a prompt)"
        )
    return messages


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping) or not {"role", "content"} <= set(value):
        raise ProblemError(f"{where} must be an object with role and content, got {value!r:.80}")
    if value["role"] not in ROLES:
        raise ProblemError(f"{where}: role must be one of {', '.join(ROLES)}, got {value['role']!r:.80}")
    if not isinstance(value["content"], str):
        raise ProblemError(f"{where}: content must be text, got {type(value['content']).__name__}")
    foreign = [name for name, held in value.items() if name not in ("role", "content") and held is not None]
    if foreign:
        raise ProblemError(f"{where}: only role and content are known, got also {', '.join(foreign)}")
    if value["role"] == "user" and not value["content"].strip():
        raise ProblemError(f"{where}: content of a user message is blank")
    return {"role": value["role"], "content": value["content"]}


def read_reference(value: Any, form: ReferenceFormat, where: str) -> Any:
    """The reference that verifiers grade against, read from its column. Raises `ProblemError`.

    ``gsm8k``: the text after the last ``####`` without thousands separators, as the data set's own script reads it;
    ``boxed``: the content of the last balanced ``\\boxed{}``; ``plain``: the value as it is.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ProblemError(f"{where} is empty, completions need something to be graded against")
    if form == "plain":
        return _jsonable(value, where)
    if not isinstance(value, str):
        raise ProblemError(f"{where} must hold text for reference_format {form!r}, got {type(value).__name__}")
    if form == "gsm8k":
        _, mark, answer = value.rpartition("####")
        text = answer.strip().replace(",", "") if mark else ""
        rule = "'#### ANSWER' at its end"
    else:
        text, rule = _last_box(value), "a closed \\boxed{}"
    if not text.strip():
        raise ProblemError(f"{where}: reference_format {form!r} needs {rule}, got ...{value[-60:]!r}")
    return text


def _last_box(text: str) -> str:
    """Content of the last box, or nothing; ``\\boxed 2$``, which MATH has in some rows, reaches to the dollar."""
    boxes = find_boxed(text)
    if not boxes:
        return ""
    content = boxes[-1].content
    return text[boxes[-1].end :].partition("$")[0].strip() if content is None else content.strip()


def _jsonable(value: Any, where: str) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ProblemError(f"{where}: a reference travels as JSON, this one cannot: {error}") from None
    return value
