"""JSON-lines files that only ever contain whole lines: appended to, truncated at a step, repaired after a crash."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlvr.errors import RlvrError

NEWEST_ROLLOUT = 2
"""The ``schema_version`` of a line of ``rollouts.jsonl``: 2 may hold tokens with the learner's log-probabilities."""

_BLOCK = 1 << 20
"""Bytes read at a time when a file is searched from its end."""


class LineWriteError(RlvrError, OSError):
    """A line could not be written; the file ends with the last whole line before it."""


class JsonLines:
    """One append-only file of JSON objects, one a line, each with the key ``step``, in the order of steps.

    A call of `append` reaches the operating system in full or not at all: what a full disk cut off is taken back.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file and cut off what a crash left torn; `torn_bytes` says how much that was."""
        self.path = path
        self.damaged = path.with_name(f"{path.name}.damaged")
        """Where `truncate_after` puts lines that cannot be read."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.torn_bytes = self._repair()

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write one line for each record. Raises `LineWriteError` and leaves the file as it was."""
        data = memoryview(b"".join(encode(record) + b"\n" for record in records))
        size = os.fstat(self._file).st_size
        try:
            if os.fstat(self._file).st_nlink == 0:
                raise OSError("the file was deleted while the run was writing to it")
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise LineWriteError(error.errno, f"{self.path} cannot be written: {error.strerror or error}") from error
        finally:
            if data:  # a full disk or Ctrl-C has torn a line
                os.ftruncate(self._file, size)

    def truncate_after(self, step: int) -> tuple[int, int]:
        """Remove the lines of all later steps; returns how many there were, and how many could not be read.

        What cannot be read among them, or right before them, may be a line of any step: it is set aside in `damaged`.
        Raises `OSError` if it cannot be.
        """
        removed, unreadable = 0, list[bytes]()
        size = end = os.fstat(self._file).st_size
        while end:
            start, line = self._last_line(end)
            line_step = _step_of(line)
            if line_step is None:
                unreadable.append(line)
            elif line_step > step:
                removed += 1
            else:
                break
            end = start
        if unreadable:
            with self.damaged.open("ab") as aside:
                aside.writelines(reversed(unreadable))
        if end < size:
            os.ftruncate(self._file, end)
        return removed, len(unreadable)

    def last_step(self) -> int | None:
        """The step of the last line; None if there is no line, or if it cannot be read."""
        end = os.fstat(self._file).st_size
        return _step_of(self._last_line(end)[1]) if end else None

    def sync(self) -> None:
        """Wait until everything written is on the disk itself."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _repair(self) -> int:
        """Cut the file after its last line that is whole: a newline at its end and a JSON object before it."""
        size = end = os.fstat(self._file).st_size
        while end:
            start, line = self._last_line(end)
            if line.endswith(b"\n") and _is_object(line):
                break
            end = start
        if end < size:
            os.ftruncate(self._file, end)
        return size - end

    def _last_line(self, end: int) -> tuple[int, bytes]:
        """The start of the last line before `end`, and the line."""
        start = self._start_of_last_line(end)
        return start, os.pread(self._file, end - start, start)

    def _start_of_last_line(self, end: int) -> int:
        stop = end - 1  # the newline that ends the line itself does not count
        while stop > 0:
            begin = max(0, stop - _BLOCK)
            place = os.pread(self._file, stop - begin, begin).rfind(b"\n")
            if place >= 0:
                return begin + place + 1
            stop = begin
        return 0


def encode(record: Mapping[str, Any]) -> bytes:
    """One line of valid JSON in UTF-8: a number that is not finite becomes null, an unknown object its ``repr``."""
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, default=repr)
    except ValueError:
        text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False, default=repr)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair has no UTF-8, but JSON can escape it
        return json.dumps(json.loads(text)).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def _is_object(line: bytes) -> bool:
    return read_object(line) is not None


def _step_of(line: bytes) -> int | None:
    """The step of a line, -1 where it has none; None for what is no line of ours."""
    found = read_object(line)
    step = None if found is None else found.get("step", -1)
    return step if isinstance(step, int) else None


def read_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line; None for anything else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
