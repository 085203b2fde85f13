"""The index holds what the file holds: while it grows, after it was cut back, whatever stands in it."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.view import index as index_module
from rlvr.view.index import Index
from rlvr.view.queries import Filter, NotThere, Rollouts, excerpt, match_expression
from tests.view.runs_by_hand import line, write


def rollouts_of(path: Path) -> Rollouts:
    """The file, indexed up to its end."""
    index = Index(path)
    index.catch_up()
    assert index.is_level
    return Rollouts(index)


def found(rollouts: Rollouts, **wanted: Any) -> list[tuple[int, int, int]]:
    """Step, group and sample of what a list shows, all of its pages."""
    rows: list[dict[str, Any]] = []
    while True:
        page = rollouts.search(Filter(**wanted), after=rows[-1]["id"] if rows else None)
        rows += page["rows"]
        if not page["more"]:
            assert page["count"] == len(rows)
            return [(row["step"], row["group"], row["sample"]) for row in rows]


def a_step(step: int, text: str = "a completion") -> list[dict[str, Any]]:
    """Two groups of two completions; the second of each is wrong."""
    return [
        line(step, group, sample, text=f"{text} {step}", reward=float(1 - sample), visit=step,
             outcomes={"answer": "WRONG" if sample else "CORRECT"})
        for group in range(2) for sample in range(2)
    ]  # fmt: skip


def everything(rollouts: Rollouts) -> Any:
    """All that the index can be asked, but for its own numbers."""
    overview = rollouts.overview()
    steps = [rollouts.step(step) for step in range(1, (overview["last"] or 0) + 1)]
    for step in steps:
        for group in step["groups"]:
            for sample in group["samples"]:
                sample.pop("id")
    return (overview, steps, found(rollouts), found(rollouts, search="answer"), found(rollouts, search="new"),
            rollouts.problems("name", "", 0), rollouts.solved(), rollouts.problem("p1"))  # fmt: skip


def test_a_file_that_grows_ends_in_the_index_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theorem: taken in as it was written, in any portions, torn lines among them, the file's index is the one made of
    it at the end; batches are smaller than a step, so that groups are split between them."""
    monkeypatch.setattr(index_module, "BATCH", 700)
    data = write(tmp_path / "all.jsonl", [one for step in range(1, 6) for one in a_step(step)]).read_bytes()
    growing, draw = Index(tmp_path / "growing.jsonl"), random.Random(0)
    assert growing.catch_up() is False
    place = 0
    while place < len(data):
        end = min(len(data), place + draw.randrange(1, 900))
        with growing.rollouts.open("ab") as file:
            file.write(data[place:end])
        growing.catch_up()
        place = end
    assert everything(Rollouts(growing)) == everything(rollouts_of(tmp_path / "all.jsonl"))
    assert growing.catch_up() is False
    assert growing.progress().place == len(data)


@pytest.mark.parametrize("kept", [0, 1, 3, 4, 9, 15])
def test_a_file_that_was_cut_back_and_written_on(tmp_path: Path, kept: int) -> None:
    """A resumed run removes lines and does their steps again, now with other texts; the index forgets the old ones."""
    lines = [one for step in range(1, 5) for one in a_step(step)]
    rollouts = rollouts_of(write(tmp_path / "rollouts.jsonl", lines))
    assert len(found(rollouts)) == 16
    anew = lines[:kept] + [one | {"text": f"new {one['text']}"} for one in lines[kept:]] + a_step(5, "new completion")
    write(tmp_path / "rollouts.jsonl", anew)
    rollouts.index.catch_up()
    other = write(tmp_path / "other.jsonl", anew)
    assert everything(rollouts) == everything(rollouts_of(other))
    assert len(found(rollouts, search="new")) == 20 - kept
    write(tmp_path / "rollouts.jsonl", anew[:kept])
    rollouts.index.catch_up()
    assert len(found(rollouts)) == kept
    assert rollouts.index.catch_up() is False


def test_two_viewers_fill_one_index(tmp_path: Path) -> None:
    path = write(tmp_path / "rollouts.jsonl", a_step(1))
    one, two = Index(path), Index(path)
    one.catch_up()
    write(path, a_step(2), mode="ab")
    two.catch_up()
    one.catch_up()
    assert len(found(Rollouts(one))) == len(found(Rollouts(two))) == 8


def test_an_index_of_another_format_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rollouts.jsonl", a_step(1))
    assert len(found(rollouts_of(path))) == 4
    monkeypatch.setattr(index_module, "FORMAT", 99)
    assert Index(path).progress().place == 0


def test_lines_that_cannot_be_read_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    """No JSON, no object, keys that are missing, a newer format; what stands between them is there."""
    path = tmp_path / "rollouts.jsonl"
    good = write(tmp_path / "good", [line(1)]).read_bytes()
    newer = write(tmp_path / "newer", [line(2) | {"schema_version": 99}]).read_bytes()
    last = write(tmp_path / "last", [line(4)]).read_bytes()
    path.write_bytes(good + b'{"step": 1, "group"\n[1]\n{"step": 3}\n' + newer + b"\n" + last)
    rollouts = rollouts_of(path)
    assert found(rollouts) == [(1, 0, 0), (4, 0, 0)]
    progress = rollouts.index.progress()
    assert progress.bad == 5
    assert progress.bad_first.startswith(f"at byte {len(good)}: JSONDecodeError")


def test_odd_texts(tmp_path: Path) -> None:
    """Half surrogates, NUL, carriage returns, other scripts, a line longer than a batch."""
    texts = ["half \ud800 pair", "nul \x00 inside", "carriage\rreturn", "größer — 你好", "long " * 100, "", "🙂" * 3]
    path = write(tmp_path / "rollouts.jsonl", [line(1, 0, n, text=text) for n, text in enumerate(texts)])
    rollouts = rollouts_of(path)
    assert [rollouts.rollout(1, 0, n)["text"] for n in range(len(texts))] == texts
    assert found(rollouts, search="pair") == [(1, 0, 0)]
    assert found(rollouts, search="carriage return") == [(1, 0, 2)]
    assert found(rollouts, search="GRÖSSER") == []
    assert found(rollouts, search="Größer") == [(1, 0, 3)]


@pytest.mark.parametrize(
    ("search", "expression"),
    [
        ("two words", '"two" AND "words"'),
        ('"a phrase" x', '"a phrase" AND "x"'),
        ("begin*", '"begin"*'),
        ('"so beg"*', '"so beg"*'),
        ("a OR b NOT c", '"a" AND "OR" AND "b" AND "NOT" AND "c"'),
        (r"\boxed{4} text:x", r'"\boxed{4}" AND "text:x"'),
        ("== *", None),
        ("nul\0inside", '"nul" AND "inside"'),
        ("", None),
    ],
)
def test_a_search_is_words_and_never_operators(search: str, expression: str | None) -> None:
    assert match_expression(search) == expression


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Rollouts:
    """One step."""
    return rollouts_of(write(tmp_path_factory.mktemp("small") / "rollouts.jsonl", a_step(1)))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30) | st.text('"*() ANDORT^:+-\\a', max_size=20))
def test_no_search_fails(small: Rollouts, search: str) -> None:
    assert small.search(Filter(search=search))["count"] <= 4
    excerpt("some text", search)


def test_what_is_not_there_is_named(small: Rollouts) -> None:
    with pytest.raises(NotThere, match="step 9 has no rollout with group 0 and sample 1"):
        small.rollout(9, 0, 1)
    with pytest.raises(NotThere, match="no rollout of this run is of problem 'x'"):
        small.problem("x")


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("never", ["p0"]),
        ("always", ["p1"]),
        ("variable", ["p3", "p2", "p0", "p1"]),
        ("name", ["p0", "p1", "p2", "p3"]),
        ("reward", ["p0", "p2", "p3", "p1"]),
    ],
)
def test_problems_by_hand(tmp_path: Path, order: str, expected: Sequence[str]) -> None:
    """p0 never; p1 always; p2 half right at both visits, so without variance between them; p3 none, then all."""
    right = {0: [(0, 0), (0, 0)], 1: [(1, 1), (1, 1)], 2: [(0, 1), (1, 0)], 3: [(0, 0), (1, 1)]}
    records = [
        line(visit + 1, group, sample, outcomes={"answer": "CORRECT" if one else "WRONG"}, reward=float(one))
        for visit in range(2) for group, visits in right.items() for sample, one in enumerate(visits[visit])
    ]  # fmt: skip
    # what was not judged counts nowhere
    records.append(line(3, 4, 0, outcomes={"answer": "ERROR"}, reward=None))
    found = rollouts_of(write(tmp_path / "rollouts.jsonl", records)).problems(order, "", 0)
    assert [row["problem"] for row in found["rows"]] == expected
    assert found["count"] == len(expected)
    for row in found["rows"]:
        if row["problem"] == "p3":
            assert (row["rate"], row["reward"], row["n"], row["through"]) == (0.5, 0.5, 4, [[1, 0.0], [2, 1.0]])


def test_problems_with_partial_marks_are_shown_by_their_reward(tmp_path: Path) -> None:
    """No completion is right: rewards tell them apart, from visit to visit and in quarters of their range."""
    marks = {0: [0.0, 0.0], 1: [0.2, 0.6], 2: [0.5, 0.5], 3: [0.8, 0.3]}
    records = [
        line(visit + 1, group, sample, outcomes={"answer": "PARTIAL"}, reward=visits[visit])
        for visit in range(2) for group, visits in marks.items() for sample in range(2)
    ]  # fmt: skip
    rollouts = rollouts_of(write(tmp_path / "rollouts.jsonl", records))
    found = rollouts.problems("reward", "", 0)
    assert [row["problem"] for row in found["rows"]] == ["p0", "p1", "p2", "p3"]
    assert (found["graded"], found["low"], found["high"]) == (True, 0.0, 0.8)
    assert found["rows"][1]["through"] == [[1, 0.2], [2, 0.6]]
    assert [row["problem"] for row in rollouts.problems("variable", "", 0)["rows"][:2]] == ["p3", "p1"]
    solved = rollouts.solved()
    assert solved["steps"] == [1, 2]
    assert solved["bounds"] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert solved["quarters"] == [[2, 1], [0, 1], [1, 2], [1, 0]]


HOSTILE_LINES = {
    "tokens": {"tokens": 10**30}, "step": {"step": "a"}, "step of a float": {"step": 1.5}, "sample": {"sample": 2**63},
    "group": {"group": None}, "visit": {"visit": [1]}, "truth": {"tokens": True}, "reward": {"reward": "high"},
    "reward of an integer": {"reward": 10**400}, "advantage": {"advantage": {}}, "text": {"text": 5},
    "finish": {"finish_reason": 7}, "problem": {"problem_id": ["p"]}, "verdicts": {"verdicts": {"answer": "CORRECT"}},
    "outcome": {"verdicts": {"answer": {"outcome": 3}}}, "new": {"schema_version": 99},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_LINES)
def test_a_line_of_the_wrong_type_is_left_out_and_counted_and_its_neighbours_are_there(
    tmp_path: Path, name: str
) -> None:
    """One such line among good ones of its own group ended the whole index before; nothing of it is kept."""
    good = [line(1, 0, 0), line(1, 0, 2), line(2, 1, 0)]
    rollouts = rollouts_of(write(tmp_path / "r.jsonl", [good[0], line(1, 0, 1) | HOSTILE_LINES[name], *good[1:]]))
    assert found(rollouts) == [(1, 0, 0), (1, 0, 2), (2, 1, 0)]
    assert rollouts.index.progress().bad == 1
    only_good = rollouts_of(write(tmp_path / "good.jsonl", good))
    assert everything(rollouts) == everything(only_good)


def test_half_a_surrogate_pair_and_deep_nesting_end_nothing(tmp_path: Path) -> None:
    half = line(1, 0, 0, finish_reason="\ud800", problem_id="p\ud800", outcomes={"answer": "\udfff"})
    path = write(tmp_path / "r.jsonl", [half])
    with path.open("ab") as file:
        file.write(b'{"schema_version": 2, "step": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")
    write(path, [line(2)], mode="ab")
    rollouts = rollouts_of(path)
    assert found(rollouts) == [(1, 0, 0), (2, 0, 0)]
    assert rollouts.index.progress().bad == 1
    assert rollouts.problem("p\ud800")["visits"][0]["step"] == 1
    assert found(rollouts, problem="p\ud800") == [(1, 0, 0)]
    assert len(rollouts.completions("p\ud800", [1], 0)) == 1


def test_where_everybody_writes_the_index_lies_in_a_folder_of_the_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither run nor cache can be written: a folder that is open to others, or a link, is not used."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(index_module.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(index_module.os, "access", lambda *_: False)
    own = tmp_path / f"rlvr-{os.getuid()}"

    def folder() -> Path:
        return index_module._place_of_index(tmp_path / "rollouts.jsonl").parent

    assert folder() == own == folder()
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    own.chmod(0o777)
    assert folder() != own
    assert stat.S_IMODE(folder().stat().st_mode) == 0o700
    own.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    own.symlink_to(tmp_path / "elsewhere")
    assert folder() != own
