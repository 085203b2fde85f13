"""Files of problems: what is read, and that every broken row is named by place, key, value and rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from rlvr.config.problems import HubDataset, JsonLinesConfig
from rlvr.problems import ProblemError, load_problems

QUESTION = "What is 3*7?"
ROWS: list[dict[str, Any]] = [
    {"problem": QUESTION, "answer": "21", "level": "Level 1"},
    {"problem": "What is 4*5?", "answer": "20", "level": "Level 3"},
    {"problem": "What is 6*6?", "answer": "36", "level": "Level 3"},
]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]


def write(path: Path, lines: list[Any]) -> str:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return str(path)


def jsonl(path: str, **keys: Any) -> JsonLinesConfig:
    return JsonLinesConfig.model_validate({"type": "jsonl", "path": path, **keys})


def hub(path: Path | str, **keys: Any) -> HubDataset:
    return HubDataset.model_validate({"type": "datasets", "path": str(path), **keys})


def error_of(source: JsonLinesConfig | HubDataset) -> str:
    with pytest.raises(ProblemError) as caught:
        load_problems(source)
    return str(caught.value)


def test_jsonl_rows_in_order_with_place_and_other_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "sums.jsonl", [ROWS[0], "", ROWS[1]])
    problems = load_problems(jsonl(path))
    assert [(p.prompt, p.reference, p.id, p.source) for p in problems] == [
        (QUESTION, "21", "sums:1", f"{path}:1"),
        ("What is 4*5?", "20", "sums:3", f"{path}:3"),  # the blank line counts
    ]
    assert problems[0].meta == {"level": "Level 1"}
    assert problems[0].verifiers is None


def test_jsonl_limit_does_not_read_further(tmp_path: Path) -> None:
    path = write(tmp_path / "sums.jsonl", [ROWS[0], "not JSON"])
    assert len(load_problems(jsonl(path, limit=1))) == 1


def test_chat_messages_are_kept_and_have_the_key_of_their_question(tmp_path: Path) -> None:
    path = write(tmp_path / "chat.jsonl", [{"prompt": CHAT, "answer": 21}, {"prompt": QUESTION, "answer": 21}])
    chat, text = load_problems(jsonl(path, prompt="prompt"))
    assert chat.prompt == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION})
    assert chat.key == text.key
    assert chat.reference == 21


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode() + b"\r\n" + json.dumps(ROWS[1]).encode() + b"\r\n")
    assert [p.reference for p in load_problems(jsonl(str(path)))] == ["21", "20"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{'problem': 1}", ["not JSON"]),
        ("[1, 2]", ["one JSON object", "list"]),
        ({"problm": "x", "answer": "1"}, ["no column 'problem'", "did you mean 'problm'?", "columns: problm, answer"]),
        ({"problem": "x", "anser": "1"}, ["no column 'answer'", "did you mean 'anser'?"]),
        ({"problem": 7, "answer": "1"}, ["prompt column 'problem'", "must hold text", "int 7"]),
        ({"problem": None, "answer": "1"}, ["must hold text", "NoneType"]),
        ({"problem": "  ", "answer": "1"}, ["blank"]),
        ({"problem": "x", "answer": None}, ["reference column 'answer' is empty"]),
        ({"problem": "x", "answer": " "}, ["reference column 'answer' is empty"]),
        ('{"problem": "x", "answer": NaN}', ["travels as JSON"]),
        ({"problem": [], "answer": "1"}, ["empty list of chat messages"]),
        ({"problem": ["hello"], "answer": "1"}, ["message 0", "role and content", "'hello'"]),
        ({"problem": [{"from": "human", "value": "x"}], "answer": "1"}, ["message 0", "role and content"]),
        ({"problem": [{"role": "human", "content": "x"}], "answer": "1"}, ["role must be one of", "'human'"]),
        ({"problem": [{"role": "user", "content": [{"type": "image"}]}], "answer": "1"}, ["content must be text"]),
        ({"problem": [{"role": "user", "content": " "}], "answer": "1"}, ["blank"]),
        ({"problem": [{"role": "user", "content": "x", "tool_calls": [1]}], "answer": "1"}, ["tool_calls"]),
        ({"problem": [*CHAT, {"role": "assistant", "content": "21"}], "answer": "1"}, ["last message", "'assistant'"]),
        ({"problem": [CHAT[1], CHAT[0]], "answer": "1"}, ["system message may only stand first"]),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(tmp_path: Path, row: Any, said: list[str]) -> None:
    path = write(tmp_path / "rows.jsonl", [ROWS[0], row])
    message = error_of(jsonl(path))
    for part in [f"{path}:2", "1 of 2 rows", *said]:
        assert part in message


def test_not_utf8_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"problem": "x", "answer": "1"}\n{"problem": "caf\xe9", "answer": "1"}\n')
    assert f"{path}:2: not UTF-8 at byte 16" in error_of(jsonl(str(path)))


def test_many_broken_rows_are_counted_and_five_are_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"problem": "x", "answer": ""}] * 8 + [ROWS[0]])
    message = error_of(jsonl(path))
    assert "8 of 9 rows" in message
    assert message.count("is empty") == 5
    assert "and 3 more" in message


def test_missing_empty_and_unreadable_files(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    assert "did you mean 'train.jsonl'?" in error_of(jsonl(str(tmp_path / "trian.jsonl")))
    assert "does not exist" in error_of(jsonl(str(tmp_path / "no" / "such.jsonl")))
    assert "cannot be read" in error_of(jsonl(str(tmp_path)))
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert "empty.jsonl holds no problem" in error_of(jsonl(str(tmp_path / "empty.jsonl")))


@pytest.mark.parametrize(
    ("form", "given", "expected"),
    [
        ("gsm8k", "3 #### 4\nso 2,125 in all\n#### 2,125", "2125"),
        ("gsm8k", "#### -10 ", "-10"),
        ("boxed", r"so \boxed{1}, no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("boxed", r"hence $\boxed 2$.", "2"),
        ("plain", [1, 2], [1, 2]),
        ("plain", "#### 4", "#### 4"),
    ],
)
def test_reference_formats(tmp_path: Path, form: str, given: Any, expected: Any) -> None:
    path = write(tmp_path / "rows.jsonl", [{"problem": "x", "answer": given}])
    assert load_problems(jsonl(path, reference_format=form))[0].reference == expected


@pytest.mark.parametrize(
    ("form", "given", "rule"),
    [
        ("gsm8k", "the answer is 4", "needs '#### ANSWER'"),
        ("gsm8k", "4 #### ", "needs '#### ANSWER'"),
        ("gsm8k", 4, "must hold text"),
        ("boxed", "so 4", r"needs a closed \boxed{}"),
        ("boxed", r"so \boxed{4", r"needs a closed \boxed{}"),
        ("boxed", r"so \boxed{}", r"needs a closed \boxed{}"),
    ],
)
def test_a_reference_that_does_not_have_its_format_is_refused(tmp_path: Path, form: str, given: Any, rule: str) -> None:
    path = write(tmp_path / "rows.jsonl", [{"problem": "x", "answer": given}])
    message = error_of(jsonl(path, reference_format=form))
    assert f"{path}:1" in message
    assert rule in message


def test_dataset_folders_of_every_kind_give_the_same_problems(tmp_path: Path) -> None:
    """json files, parquet files, and both things that save_to_disk writes: one set of problems."""
    rows = datasets.Dataset.from_list(ROWS)
    (tmp_path / "json").mkdir()
    write(tmp_path / "json" / "train.jsonl", ROWS)
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    rows.save_to_disk(str(tmp_path / "single"))
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(str(tmp_path / "splits"))
    for kind in ("json", "parquet", "single", "splits"):
        problems = load_problems(hub(tmp_path / kind))
        assert [(p.prompt, p.reference) for p in problems] == [(row["problem"], row["answer"]) for row in ROWS]
        assert problems[1].id == f"{kind}[train]:1"
        assert problems[1].source == f"{tmp_path / kind}[train]:1"
    assert len(load_problems(hub(tmp_path / "splits", split="test"))) == 1


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.parquet", "rows.json", "rows.jsonl"])
def test_a_single_file_of_every_kind_is_a_data_set(tmp_path: Path, name: str) -> None:
    rows, path = (
        datasets.Dataset.from_list([{"problem": f"Say {i}", "answer": f"a{i}"} for i in range(3)]),
        tmp_path / name,
    )
    if path.suffix == ".parquet":
        rows.to_parquet(str(path))
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(rows), indent=2))
    elif path.suffix == ".jsonl":
        write(path, list(rows))
    else:
        rows.to_csv(str(path), sep="\t" if path.suffix == ".tsv" else ",")
    problems = load_problems(hub(path))
    assert [(one.prompt, one.reference) for one in problems] == [(f"Say {i}", f"a{i}") for i in range(3)]
    assert "is one file, which is the split 'train', got split 'test'" in error_of(hub(path, split="test"))


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("rows.csv", b"problem,answer\nx,1\n", "CSV"),
        ("rows.tsv", b"problem\tanswer\n", "CSV"),
        ("rows.parquet", b"PAR1\x15\x04", "Parquet"),
        ("data.bin", b"PAR1\x15\x04", "Parquet"),
        ("rows.json", b'\n [\n  {"problem": "x", "answer": "1"}\n]\n', "one JSON array"),
        ("rows.jsonl", b'\xef\xbb\xbf[{"problem": "x", "answer": "1"}]', "one JSON array"),
    ],
)
def test_a_file_that_is_no_json_lines_names_what_loads_it(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    said = error_of(jsonl(str(path)))
    assert f"reads one JSON object a line, and this file is {kind}; {{type: datasets, path: {path}}} loads it" in said


def test_trl_prompt_columns_of_text_and_of_messages(tmp_path: Path) -> None:
    chats = datasets.Dataset.from_list([{"prompt": CHAT, "solution": r"\boxed{21}"}])
    chats.save_to_disk(str(tmp_path / "chat"))
    source = hub(tmp_path / "chat", prompt="prompt", reference="solution", reference_format="boxed")
    problem = load_problems(source)[0]
    assert problem.prompt == tuple(CHAT)
    assert problem.reference == "21"
    assert "did you mean 'prompt'?" in error_of(hub(tmp_path / "chat", reference="solution"))


def test_where_and_limit_keep_rows_and_their_numbers(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "data"))
    problems = load_problems(hub(tmp_path / "data", where={"level": ["Level 3"]}))
    assert [p.id for p in problems] == ["data[train]:1", "data[train]:2"]
    assert [p.id for p in load_problems(hub(tmp_path / "data", where={"level": ["Level 3"]}, limit=1))] == [
        "data[train]:1"
    ]
    message = error_of(hub(tmp_path / "data", where={"levl": ["Level 3"]}))
    assert "'levl' (did you mean 'level'?)" in message
    message = error_of(hub(tmp_path / "data", where={"level": ["level 3"]}))
    assert "no row has 'level 3'" in message
    assert "did you mean" in message
    assert "keeps no row" in error_of(hub(tmp_path / "data", where={"level": ["Level 1"], "answer": ["36"]}))


def test_dataset_errors_name_path_split_and_fix(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "splits"))
    rows.save_to_disk(str(tmp_path / "single"))
    rows.select([]).save_to_disk(str(tmp_path / "empty"))
    (tmp_path / "json").mkdir()
    write(tmp_path / "json" / "train.jsonl", ROWS)
    file = write(tmp_path / "rows.txt", ROWS)
    (tmp_path / "bare").mkdir()
    assert "no split 'trian' (did you mean 'train'?); it has train" in error_of(hub(tmp_path / "splits", split="trian"))
    assert "single split 'train', got split 'test'" in error_of(hub(tmp_path / "single", split="test"))
    assert "no subsets, got subset 'main'" in error_of(hub(tmp_path / "single", subset="main"))
    assert "split 'dev': the datasets library cannot load this" in error_of(hub(tmp_path / "json", split="dev"))
    assert "holds no row" in error_of(hub(tmp_path / "empty"))
    assert "does not exist" in error_of(hub(tmp_path / "nowhere"))
    assert "is a file of unknown kind" in error_of(hub(file))
    assert "'train.csv' does not exist" in error_of(hub(Path("train.csv")))
    assert "cannot load this" in error_of(hub(tmp_path / "bare"))


def test_a_broken_row_of_a_dataset_is_named_by_its_number(tmp_path: Path) -> None:
    rows = [*ROWS, {"problem": "x", "answer": None, "level": "Level 1"}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "data"))
    assert f"{tmp_path / 'data'}[train]:3: reference column 'answer' is empty" in error_of(hub(tmp_path / "data"))


def test_an_unknown_hub_name_offline_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = error_of(hub("no-such-name/at-all"))
    assert "no-such-name/at-all" in message
    assert "asked of the hub" in message
