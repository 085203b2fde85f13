"""The rules beside a loop: what they warn of, what they stop, and what a checkpoint keeps of them."""

from __future__ import annotations

import json

from rlvr.rules.watch import Watch
from tests.rules.lines import Change, changed, recipe

TRUNCATED: Change = {"length/truncated": 0.97}


def test_it_warns_by_the_rules_name_and_stops_where_the_recipe_asks() -> None:
    warnings: list[str] = []
    for stop_on, stopped in (([], None), (["clip_share"], None), (["all_truncated"], "all_truncated")):
        warnings.clear()
        watch = Watch(recipe(run={"steps": 9, "stop_on": stop_on}), lambda name, message: warnings.append(name))
        found = [watch.see(step, changed(step, TRUNCATED)) for step in range(1, 5)]
        assert warnings == ["all_truncated", "all_truncated"]  # in the third and in the fourth step
        assert [one and one.rule for one in found] == [None, None, stopped, stopped]


def test_its_state_makes_it_go_on_as_if_not_interrupted() -> None:
    """Theorem: restored from JSON at any step, it says of all later steps what it would have said."""
    said: list[tuple[str, str]] = []
    given = recipe(run={"steps": 99})
    whole = Watch(given, lambda *text: said.append(text))
    parts = Watch(given, lambda *text: None)
    for step in range(1, 31):
        metrics = changed(step, {"length/truncated": 0.97 if step > 8 else 0.1, "eval/e/pass@1": 0.1 * step})
        whole.see(step, metrics)
        parts.see(step, metrics)
        state = json.loads(json.dumps(parts.state_dict()))
        assert state == whole.state_dict()
        parts = Watch(given, lambda *text: None)
        parts.load_state_dict(state)
    assert said


def test_its_state_stays_small() -> None:
    watch = Watch(recipe(run={"steps": 999}), lambda *text: None)
    sizes = []
    for step in range(1, 201):
        watch.see(step, changed(step, {"eval/e/pass@1": 0.5}))
        sizes.append(len(json.dumps(watch.state_dict())))
    assert sizes[-1] <= sizes[99] * 1.02
