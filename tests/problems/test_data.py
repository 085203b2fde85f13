"""What a run makes of all its sources together: what fits is kept, what does not is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rlvr.config import load_recipe
from rlvr.problems.data import Data, load_data
from rlvr.problems.rows import ProblemError
from rlvr.problems.templates import load_tokenizer
from tests.runs import Workspace, elsewhere

pytestmark = pytest.mark.usefixtures("nothing_left")

LENGTHS = (20, 60, 88, 89, 200)
"""Of the prompts, in characters, which are tokens here: 88 and 12 new ones are the 100 that the model takes."""
Load = Callable[..., Data]


@pytest.fixture
def load(workspace: Workspace) -> Load:
    """Loads five problems to train on and the same lengths in an eval set, for a model of 100 tokens."""
    for name, letter in (("train.jsonl", "x"), ("eval.jsonl", "y")):
        workspace.write_problems([{"problem": letter * n, "answer": "aeiou"} for n in LENGTHS], name)
    source = {"type": "jsonl", "path": "eval.jsonl"}
    workspace.recipe["problems"]["eval"] = [{"name": "few", "source": source}]

    def load(**problems: Any) -> Data:
        workspace.recipe["problems"] |= problems
        workspace.save_recipe()
        with elsewhere(workspace.folder):
            data = load_data(load_recipe("recipe.yaml"), load_tokenizer("model"), 100)
            data.pool.close()
        return data

    return load


def test_too_long_problems_are_left_out_and_counted(load: Load) -> None:
    """Exactly those whose prompt leaves less room than max_new_tokens, in training and in eval sets."""
    data = load(too_long="drop")
    assert [len(one.prompt) for one in data.train] == [20, 60, 88]
    assert [len(one.prompt) for one in data.eval_sets[0][1]] == [20, 60, 88]
    assert data.longest_prompt == 88
    assert data.notes == [
        "2 of 5 training problems left out (problems.too_long: drop): their prompts have more than 88 tokens",
        "2 of 5 problems of eval set 'few' left out (problems.too_long: drop): their prompts have more than 88 tokens",
    ]


def test_too_long_problems_are_refused_by_default(load: Load) -> None:
    with pytest.raises(ProblemError, match=r"train.jsonl:5: the prompt has 200 tokens.*2 of 5 prompts do not"):
        load()


def test_where_every_problem_is_too_long_nothing_is_dropped(load: Load, workspace: Workspace) -> None:
    workspace.write_problems([{"problem": "x" * n, "answer": "aeiou"} for n in (89, 200)])
    with pytest.raises(ProblemError, match="2 of 2 prompts do not"):
        load(too_long="drop")
