"""Nested settings as a flat table of dotted keys."""

from rlvr.config.dotted import flatten


def test_each_value_stands_under_its_dotted_key() -> None:
    nested = {"learner": {"lr": 0.1, "betas": [0.9, 0.99]}, "name": "x", "args": {}, "rows": [{"path": "a"}, []]}
    assert dict(flatten(nested)) == {
        "learner.lr": 0.1, "learner.betas": [0.9, 0.99], "name": "x", "args": {}, "rows": [{"path": "a"}, []],
    }  # fmt: skip
    assert dict(flatten(nested, lists=True)) == {
        "learner.lr": 0.1, "learner.betas.0": 0.9, "learner.betas.1": 0.99, "name": "x", "args": {},
        "rows.0.path": "a", "rows.1": [],
    }  # fmt: skip
