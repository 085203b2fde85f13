"""Named benchmarks: real files, the forms of their rows, and references that their verifiers take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards import Outcome
from rewards.math_answers import MathVerifier
from rewards.program_tests import read_reference
from rlvr.config.problems import Benchmark
from rlvr.problems import ProblemError, load_problems

DATA = Path(__file__).resolve().parents[1] / "data"


def benchmark(name: str, path: Path | None, **keys: Any) -> Benchmark:
    return Benchmark.model_validate({"type": "benchmark", "name": name, "path": path and str(path), **keys})


def rows_of(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    ("name", "file", "size", "index", "reference"),
    [
        ("gsm8k", "gsm8k_test.jsonl", 400, 0, "18"),
        ("math500", "math500.jsonl", 500, 1, "p - q"),
        ("aime24", "aime24.jsonl", 30, 1, "25"),  # written 025 there
        ("amc23", "amc23.jsonl", 83, 0, "142"),
    ],
)
def test_mathematics_files_load_whole_and_their_references_can_be_graded_against(
    name: str, file: str, size: int, index: int, reference: str
) -> None:
    problems = load_problems(benchmark(name, DATA / file))
    assert len(problems) == size
    assert problems[index].reference == reference
    assert problems[index].id == f"{name}/{index}"
    assert problems[index].source == f"{DATA / file}:{index + 1}"
    verifier = MathVerifier()
    for problem in problems[:20]:
        verifier.check_reference(problem.reference)
        assert verifier.grade(rf"so \boxed{{{problem.reference}}}", problem.reference).outcome is Outcome.CORRECT
    assert len(load_problems(benchmark(name, DATA / file, limit=7))) == 7


def test_humaneval_references_are_those_of_the_program_verifier() -> None:
    problems = load_problems(benchmark("humaneval", DATA / "humaneval.jsonl"))
    assert len(problems) == 164
    assert problems[0].reference["entry_point"] == "has_close_elements"
    assert problems[0].reference["prompt"].startswith("from typing import List")
    assert "def has_close_elements(" in str(problems[0].prompt)
    assert "canonical_solution" in problems[0].meta
    for problem in problems:
        tests, language = read_reference(problem.reference, "python")
        assert language == "python"
        assert tests.entry_point == problem.reference["entry_point"]  # type: ignore[union-attr]  # asserts have one


@pytest.mark.parametrize(
    ("name", "row", "prompt", "reference"),
    [
        ("gsm8k", {"question": "q", "answer": "so\n#### 1,450"}, "q", "1450"),
        ("gsm8k", {"problem": "q", "answer": "7"}, "q", "7"),
        ("math500", {"problem": "q", "solution": "...", "answer": r"\pi", "level": 3, "unique_id": "x"}, "q", r"\pi"),
        ("aime24", {"id": 60, "problem": "q", "answer": "025", "url": "u"}, "q", "25"),
        ("aime24", {"ID": "2024-I-1", "Problem": "q", "Answer": 25}, "q", "25"),
        ("amc23", {"id": 0, "problem": "q", "answer": 142.0, "url": "u"}, "q", "142"),
        ("amc23", {"id": 0, "question": "q", "answer": "-1"}, "q", "-1"),
    ],
)
def test_forms_of_rows(tmp_path: Path, name: str, row: dict[str, Any], prompt: str, reference: str) -> None:
    problem = load_problems(benchmark(name, rows_of(tmp_path / "rows.jsonl", row)))[0]
    assert (problem.prompt, problem.reference) == (prompt, reference)


CODE = {"task_id": "t/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(c):\n    assert c() == 1\n"}


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("gsm8k", {"text": "q"}, "needs the columns question, answer or problem, answer; it has text"),
        ("gsm8k", {"question": "q", "answer": "7"}, "needs '#### ANSWER'"),
        ("aime24", {"problem": "q", "answer": "x^2"}, "must hold an integer, got 'x^2'"),
        ("amc23", {"problem": "q", "answer": 1.5}, "must hold an integer, got 1.5"),
        ("amc23", {"problem": "q", "answer": True}, "must hold an integer, got True"),
        ("math500", {"problem": "", "answer": "1"}, "blank"),
        ("humaneval", {"prompt": "def f():", "test": "x"}, "no column 'entry_point'"),
        ("humaneval", {**CODE, "test": ""}, "column 'test' must hold text"),
        ("humaneval", {**CODE, "entry_point": "not a name"}, "must name a function"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, name: str, row: dict[str, Any], said: str) -> None:
    path = rows_of(tmp_path / "rows.jsonl", row)
    with pytest.raises(ProblemError) as caught:
        load_problems(benchmark(name, path))
    assert f"{path}:1" in str(caught.value)
    assert said in str(caught.value)


def test_without_the_hub_the_error_offers_a_local_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ProblemError) as caught:
        load_problems(benchmark("math500", None))
    assert "HuggingFaceH4/MATH-500" in str(caught.value)
    assert "set path to a JSON-lines file of math500" in str(caught.value)
