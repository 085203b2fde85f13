"""An index of ``rollouts.jsonl`` in SQLite that follows the file: columns for lists and filters, words for full-text
search, and the position of each line. Texts are read from the file itself when they are shown.

The index is a cache and can be deleted at any time. It grows by whole lines, in transactions that first read how far
it has come, so several viewers can fill the same index. When a resumed run has truncated its file, the index goes back
to the last step whose first line is still where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.rules.suspects import words_before_answer
from rlvr.runlog.jsonl import NEWEST_ROLLOUT

FORMAT = 1
"""An index of another format is made anew."""
BATCH = 8 << 20
"""Bytes of lines that one transaction takes in."""

_TABLES = f"""
PRAGMA journal_mode = WAL;
CREATE TABLE rollout (
    id INTEGER PRIMARY KEY, step INTEGER, grp INTEGER, sample INTEGER, problem INTEGER, reward REAL, advantage REAL,
    combo INTEGER, finish TEXT, tokens INTEGER, before INTEGER, content INTEGER, place INTEGER, length INTEGER
);
CREATE INDEX rollout_step ON rollout (step, grp);
CREATE INDEX rollout_tokens ON rollout (tokens, reward);
CREATE INDEX rollout_before ON rollout (before, reward);
CREATE INDEX rollout_content ON rollout (content, reward);
CREATE TABLE step (
    step INTEGER PRIMARY KEY, first INTEGER, place INTEGER, length INTEGER, mark INTEGER
);
CREATE TABLE grp (
    step INTEGER, grp INTEGER, problem INTEGER, visit INTEGER, first INTEGER, n INTEGER DEFAULT 0,
    judged INTEGER DEFAULT 0, correct INTEGER DEFAULT 0, scored INTEGER DEFAULT 0, reward REAL DEFAULT 0,
    PRIMARY KEY (step, grp)
) WITHOUT ROWID;
CREATE INDEX grp_problem ON grp (problem, step, n, judged, correct, scored, reward);
CREATE TABLE combo (id INTEGER PRIMARY KEY, outcomes TEXT UNIQUE, first TEXT);
CREATE TABLE step_combo (step INTEGER, combo INTEGER, n INTEGER, PRIMARY KEY (step, combo)) WITHOUT ROWID;
CREATE TABLE problem (id INTEGER PRIMARY KEY, name TEXT UNIQUE, reference INTEGER);
CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), place INTEGER, mark INTEGER, tail INTEGER, next INTEGER,
    bad INTEGER, bad_place INTEGER, bad_why TEXT);
INSERT INTO meta VALUES (1, 0, 0, 0, 1, 0, NULL, NULL);
CREATE VIRTUAL TABLE words USING fts5(text, content='', detail=full, columnsize=0);
INSERT INTO words(words, rank) VALUES ('hashsize', {32 << 20});
PRAGMA user_version = {FORMAT};
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of the file is indexed."""

    place: int
    """Bytes of the file that it holds."""
    size: int
    """Bytes that the file has."""
    bad: int
    """Lines that could not be read: left out, and counted."""
    bad_first: str
    """The first of them, in words; empty without one."""


class Index:
    """The index of one ``rollouts.jsonl``. Each method opens what it needs: any thread may call any of them."""

    def __init__(self, rollouts: Path) -> None:
        """Open or make the index beside the file, or in the user's cache where the folder cannot be written."""
        self.rollouts = rollouts
        self.is_level = False
        """True once the index has held all that the file held at that moment."""
        self.path = _place_of_index(rollouts)
        with closing(sqlite3.connect(self.path)) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != FORMAT:
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            with closing(sqlite3.connect(self.path, timeout=60)) as database:
                database.executescript(_TABLES)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that only reads."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=60)) as database:
            database.row_factory = sqlite3.Row
            database.execute("PRAGMA mmap_size = 2147483648")
            yield database

    def progress(self) -> Progress:
        """How much of the file is indexed now."""
        size = self.rollouts.stat().st_size if self.rollouts.exists() else 0
        with self.reading() as database:
            meta = database.execute("SELECT * FROM meta").fetchone()
        first = f"at byte {meta['bad_place']}: {meta['bad_why']}" if meta["bad"] else ""
        return Progress(meta["place"], size, meta["bad"], first)

    def catch_up(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Take in all whole lines that the file holds by now; returns whether anything changed."""
        changed = False
        if not self.rollouts.exists():
            self.is_level = True
            return False
        with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as database:
            database.row_factory = sqlite3.Row
            database.execute("PRAGMA synchronous = OFF")  # a cache: after a power cut it may be made anew
            database.execute("PRAGMA cache_size = -200000")
            while not stop():
                database.execute("BEGIN IMMEDIATE")
                try:
                    more = self._batch(database)
                except BaseException:
                    database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
                changed |= more
                if not more:
                    self.is_level = True
                    break
        return changed

    def _batch(self, database: sqlite3.Connection) -> bool:
        with self.rollouts.open("rb") as file:
            cut = _go_back_if_cut(database, file.fileno())
            meta = database.execute("SELECT * FROM meta").fetchone()
            file.seek(meta["place"])
            data = file.read(BATCH)
            if data and b"\n" not in data:  # a line longer than a batch
                data += file.readline()
        data = data[: data.rfind(b"\n") + 1]
        if data:
            _Batch(database, meta).take(data)
        return bool(data) or cut


class _Batch:
    """Some lines on their way into the tables."""

    def __init__(self, database: sqlite3.Connection, meta: sqlite3.Row) -> None:
        self.database, self.place, self.next, self.meta = database, meta["place"], meta["next"], meta
        self.bad: list[tuple[int, str]] = []
        self.rows: list[tuple[Any, ...]] = []
        self.texts: list[tuple[int, str]] = []
        self.steps: dict[int, tuple[int, int, int, int, int]] = {}
        self.groups: dict[tuple[int, int], list[Any]] = {}
        self.counts: dict[tuple[int, int], int] = {}
        self.combos: dict[str, int] = {
            row["outcomes"]: row["id"] for row in database.execute("SELECT id, outcomes FROM combo")
        }

    def take(self, data: bytes) -> None:
        line = b""
        for line in data.splitlines(keepends=True) if b"\r" not in data else _lines(data):
            try:
                self._line(line)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
                self.bad.append((self.place, f"{type(error).__name__}: {error}"))
            self.place += len(line)
        self._write()
        bad, first = self.meta["bad"] + len(self.bad), (self.meta["bad_place"], self.meta["bad_why"])
        self.database.execute(
            "UPDATE meta SET place = ?, mark = ?, tail = ?, next = ?, bad = ?, bad_place = ?, bad_why = ?",
            (self.place, zlib.crc32(line), len(line), self.next, bad, *(self.bad[0] if first[0] is None and self.bad
                                                                        else first)),
        )  # fmt: skip

    def _line(self, line: bytes) -> None:
        record = json.loads(line)
        if record["schema_version"] > NEWEST_ROLLOUT:
            raise ValueError(f"written by a newer rlvr (schema_version {record['schema_version']})")
        _check(record)  # before anything of it is kept: what SQLite does not take would end the whole batch
        step, group, text, reward = record["step"], record["group"], record["text"], record["reward"]
        outcomes = {name: clean(verdict["outcome"]) for name, verdict in record["verdicts"].items()}
        combo = self._combo(outcomes)
        problem = self._problem(record)
        whole = clean(text)
        content = int.from_bytes(hashlib.blake2b(whole.strip().encode(), digest_size=8).digest(), "big", signed=True)
        self.rows.append((
            self.next, step, group, record["sample"], problem, reward, record["advantage"], combo,
            clean(record["finish_reason"]), record["tokens"], words_before_answer(text), content, self.place, len(line),
        ))  # fmt: skip
        self.texts.append((self.next, whole))
        if step not in self.steps:
            self.steps[step] = (step, self.next, self.place, len(line), zlib.crc32(line))
        sums = self.groups.setdefault((step, group), [problem, record["visit"], self.next, 0, 0, 0, 0, 0.0])
        outcome = next(iter(outcomes.values()), None)
        if record["sample"] >= 0:  # a greedy completion, for the baseline alone, is not one of the group's
            for place, value in enumerate((1, outcome not in (None, "BAD_REFERENCE", "ERROR"), outcome == "CORRECT",
                                           reward is not None, reward or 0.0), start=3):  # fmt: skip
                sums[place] += value
        self.counts[step, combo] = self.counts.get((step, combo), 0) + 1
        self.next += 1

    def _combo(self, outcomes: dict[str, str]) -> int:
        key = json.dumps(outcomes)
        if key not in self.combos:
            first = next(iter(outcomes.values()), "")
            cursor = self.database.execute("INSERT INTO combo (outcomes, first) VALUES (?, ?)", (key, first))
            self.combos[key] = int(cursor.lastrowid or 0)
        return self.combos[key]

    def _problem(self, record: dict[str, Any]) -> int:
        """The problem's number; looked up once for a group, which stands together."""
        known = self.groups.get((record["step"], record["group"]))
        if known is not None:
            return int(known[0])
        name = clean(record["problem_id"])
        row = self.database.execute("SELECT id FROM problem WHERE name = ?", (name,)).fetchone()
        if row:
            return int(row["id"])
        reference = zlib.crc32(json.dumps(record["reference"], sort_keys=True).encode())
        made = self.database.execute("INSERT INTO problem (name, reference) VALUES (?, ?)", (name, reference))
        return int(made.lastrowid or 0)

    def _write(self) -> None:
        add = self.database.executemany
        add(f"INSERT INTO rollout VALUES ({','.join('?' * 14)})", self.rows)
        add("INSERT INTO words (rowid, text) VALUES (?, ?)", self.texts)
        add("INSERT OR IGNORE INTO step VALUES (?, ?, ?, ?, ?)", self.steps.values())
        add(
            "INSERT INTO grp VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n, "
            "judged = judged + excluded.judged, correct = correct + excluded.correct, "
            "scored = scored + excluded.scored, reward = reward + excluded.reward",
            ((*key, *sums) for key, sums in self.groups.items()),
        )
        add(
            "INSERT INTO step_combo VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n",
            ((*key, n) for key, n in self.counts.items()),
        )


def _go_back_if_cut(database: sqlite3.Connection, file: int) -> bool:
    """Forget the steps whose lines are no longer in the file; true if there were any."""
    meta = database.execute("SELECT * FROM meta").fetchone()
    if _stands(file, meta["place"] - meta["tail"], meta["tail"], meta["mark"]):
        return False
    last = None
    for row in database.execute("SELECT * FROM step ORDER BY step DESC"):
        last = row
        if _stands(file, row["place"], row["length"], row["mark"]):
            break
    # The step itself may have been cut in its middle: it is read again.
    step, place = (last["step"], last["place"]) if last else (0, 0)
    if last and not _stands(file, last["place"], last["length"], last["mark"]):
        step, place = -1, 0
    for table in ("rollout", "grp", "step_combo", "step"):
        database.execute(f"DELETE FROM {table} WHERE step >= ?", (step,))
    # Words of forgotten rollouts stay, under numbers that are not given again and that no rollout has any more.
    database.execute("UPDATE meta SET place = ?, mark = 0, tail = 0", (place,))
    if place == 0:
        database.execute("UPDATE meta SET bad = 0, bad_place = NULL, bad_why = NULL")
    return True


def _stands(file: int, place: int, length: int, mark: int) -> bool:
    return length == 0 or zlib.crc32(os.pread(file, length, place)) == mark


def _lines(data: bytes) -> Iterable[bytes]:
    """Lines by their newlines alone; `bytes.splitlines` also splits at a carriage return."""
    return (line + b"\n" for line in data.split(b"\n")[:-1])


_FIELDS = {
    "step": int, "group": int, "sample": int, "visit": int, "tokens": int, "problem_id": str, "text": str,
    "finish_reason": str,
}  # fmt: skip


def _check(record: dict[str, Any]) -> None:
    """Raise for a line that SQLite could not store: it was not written by rlvr, or it was damaged on disk."""
    for key, kind in _FIELDS.items():
        if type(record[key]) is not kind or (kind is int and not fits(record[key])):
            raise ValueError(f"{key} is {record[key]!r:.60}, it must be {kind.__name__} of usual size")
    for key in ("reward", "advantage"):
        if record[key] is not None and not fits(record[key]):
            raise ValueError(f"{key} is {record[key]!r:.60}, it must be a number or null")


def fits(value: object) -> bool:
    """Whether a value of JSON is a number that SQLite and floating point hold."""
    return isinstance(value, float) or (type(value) is int and -(2**63) <= value < 2**63)


def clean(text: str) -> str:
    """Text that UTF-8 can hold: half a surrogate pair becomes a question mark."""
    return text.encode(errors="replace").decode()


def _private(folder: Path) -> Path:
    """A folder of this user alone: in a place where everybody writes, somebody may have made one of its name first."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        return Path(tempfile.mkdtemp(prefix="rlvr-"))
    return folder


def _place_of_index(rollouts: Path) -> Path:
    if os.access(rollouts.parent, os.W_OK):
        return rollouts.with_name(f".{rollouts.stem}.index.sqlite")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlvr"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        cache = _private(Path(tempfile.gettempdir()) / f"rlvr-{os.getuid()}")
    name = hashlib.blake2b(str(rollouts.resolve()).encode(), digest_size=8).hexdigest()
    return cache / f"{name}.index.sqlite"
