"""Problems from files: JSON lines, and anything the `datasets` library loads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rlvr.config import nearest, no_such_file
from rlvr.config.problems import HubDataset, JsonLinesConfig
from rlvr.hub import may_be_hub_name
from rlvr.problems.rows import ProblemError, Row, collect, problem_from_row
from rlvr.records import Problem

FILE_TYPES = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json"}
"""The reader of the `datasets` library for a single file, by the end of its name."""


def load_jsonl(source: JsonLinesConfig) -> list[Problem]:
    """The problems of a JSON-lines file, in its order. Raises `ProblemError` naming broken lines."""
    path = Path(source.path)
    _check_is_jsonl(path)
    lines = islice(read_lines(path), source.limit)
    return collect(lines, lambda line: problem_from_row(parse_line(path, *line), source), str(path))


def _check_is_jsonl(path: Path) -> None:
    """Raise `ProblemError` for a file of another kind, with what loads it."""
    kind = {".csv": "CSV", ".tsv": "CSV", ".parquet": "Parquet", ".arrow": "Arrow"}.get(path.suffix)
    if kind is None and path.is_file():
        with path.open("rb") as file:
            start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        kind = "Parquet" if start.startswith(b"PAR1") else "one JSON array" if start.startswith(b"[") else None
    if kind is not None and path.exists():
        raise ProblemError(
            f"path {str(path)!r}: type 'jsonl' reads one JSON object a line, and this file is {kind}; "
            f"{{type: datasets, path: {path}}} loads it"
        )


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of each line that is not blank. Raises `ProblemError` if the file cannot be read."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise ProblemError(f"path: {no_such_file(path)}") from None
    except OSError as error:
        raise ProblemError(f"path {str(path)!r}: this file cannot be read: {error.strerror}") from None


def parse_line(path: Path, number: int, line: bytes) -> Row:
    """One line of a JSON-lines file as a row. Raises `ProblemError` if it is not an object in UTF-8."""
    where = f"{path}:{number}"
    try:
        data = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ProblemError(f"{where}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ProblemError(f"{where}: not JSON: {error.msg} at column {error.colno}: {line[:60]!r}") from None
    if not isinstance(data, dict):
        raise ProblemError(f"{where}: a line must hold one JSON object, got {type(data).__name__}")
    return Row(f"{path.stem}:{number}", where, data)


def load_hub_dataset(source: HubDataset) -> list[Problem]:
    """The problems of a data set from the hub or a local folder, in its order. Raises `ProblemError`."""
    rows = read_dataset(source.path, source.subset, source.split)
    where = f"{source.path}[{source.split}]"
    if not len(rows):
        raise ProblemError(f"{where} holds no row")
    wanted = _filter(rows, source.where, where)
    indices = wanted if source.limit is None else wanted[: source.limit]
    name = Path(source.path).name
    items = (Row(f"{name}[{source.split}]:{index}", f"{where}:{index}", rows[index]) for index in indices)
    return collect(items, lambda row: problem_from_row(row, source), where)


def read_dataset(path: str, subset: str | None, split: str) -> Any:
    """A `datasets.Dataset`: a data file, a folder that `save_to_disk` wrote, a folder of data files, or a name on the
    hub."""
    import datasets  # slow to import, and not needed for generated problems

    folder = Path(path)
    reader = FILE_TYPES.get(folder.suffix)
    if reader is not None and not folder.exists():
        raise ProblemError(f"path: {no_such_file(folder)}")
    if folder.is_file() and reader is None:
        raise ProblemError(
            f"path {path!r} is a file of unknown kind; type 'datasets' takes {', '.join(FILE_TYPES)} files, "
            "folders and names on the hub"
        )
    if not folder.exists() and not may_be_hub_name(path, with_owner=False):
        raise ProblemError(f"path {path!r}: this folder does not exist; relative paths start at {Path.cwd()}")
    saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    try:
        if folder.is_file():
            if split != "train" or subset is not None:
                raise ProblemError(
                    f"path {path!r} is one file, which is the split 'train', got split {split!r}, subset {subset!r}; "
                    "leave both out, or name a folder of files"
                )
            options = {"delimiter": "\t"} if folder.suffix == ".tsv" else {}
            return datasets.load_dataset(str(reader), data_files=path, split="train", **options)
        if saved:
            return _split_of(datasets.load_from_disk(path), path, subset, split)
        return datasets.load_dataset(path, name=subset, split=split)
    except ProblemError:
        raise
    except IndexError as error:  # what load_from_disk says to a data set without rows
        if not saved:
            raise
        raise ProblemError(f"path {path!r}, split {split!r} holds no row that can be loaded: {error}") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        here = "" if folder.exists() else f" (no such folder in {Path.cwd()}, so asked of the hub)"
        shown = f"path {path!r}{here}, subset {subset!r}, split {split!r}"
        raise ProblemError(f"{shown}: the datasets library cannot load this: {_first_line(error)}") from error


def _split_of(loaded: Any, path: str, subset: str | None, split: str) -> Any:
    """The split of what `load_from_disk` returned: a mapping of splits, or a single data set."""
    import datasets

    if subset is not None:
        raise ProblemError(f"path {path!r} was written by save_to_disk and has no subsets, got subset {subset!r}")
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            near = nearest(split, loaded)
            raise ProblemError(f"path {path!r} has no split {split!r}{near}; it has {', '.join(loaded)}")
        return loaded[split]
    known = str(loaded.split) if loaded.split is not None else "train"
    if split != known:
        raise ProblemError(f"path {path!r} holds the single split {known!r}, got split {split!r}")
    return loaded


def _filter(rows: Any, where: dict[str, list[Any]], shown: str) -> range | list[int]:
    """Indices of the rows that `where` keeps. A column or value that does not occur is a mistake, not an empty set."""
    kept: range | list[int] = range(len(rows))
    for column, wanted in where.items():
        if column not in rows.column_names:
            raise ProblemError(
                f"{shown}: where names no column of this data set: {column!r}{nearest(column, rows.column_names)}; "
                f"columns: {', '.join(rows.column_names)}"
            )
        values = rows[column][:]
        counts = Counter(map(repr, values))
        for value in wanted:
            if repr(value) not in counts:
                near, first = nearest(repr(value), counts), ", ".join(list(counts)[:10])
                raise ProblemError(f"{shown}: where.{column}: no row has {value!r}{near}; there are {first}")
        accepted = set(map(repr, wanted))
        kept = [index for index in kept if repr(values[index]) in accepted]
    if not len(kept):
        raise ProblemError(f"{shown}: where keeps no row: {where}")
    return kept


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
