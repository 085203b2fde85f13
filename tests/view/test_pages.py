"""Every page of the viewer in Chromium, on a run of the real loop whose texts are hostile."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from rlvr.runlog.glossary import find
from tests.runs import Workspace
from tests.view.conftest import HACK, HOSTILE, REASONS, STEPS, Viewer, start_viewer

pytestmark = pytest.mark.slow

Open = Callable[..., Page]
Size = tuple[int, int]
Lines = list[dict[str, Any]]


# ------------------------------------------------------------------------------------------------------------- curves


def test_curves_of_every_metric_with_meaning_and_range(
    viewer: Viewer, work: Workspace, open_page: Open, size: Size
) -> None:
    """A card for every key that was logged; its name says on hover and on focus what the glossary says."""
    page = open_page(f"{viewer.url}#curves", size)
    logged = {key for line in work.metrics() for key in line} - {"step"}
    shown = set(page.eval_on_selector_all("[data-key]", "all => all.map(one => one.dataset.key)"))
    assert logged <= shown
    find_box = page.get_by_label("find a metric")
    find_box.press_sequentially("mismatch/k")  # no Enter: the page follows what is typed
    expect(find_box).to_be_focused()
    expect(find_box).to_have_value("mismatch/k")
    expect(page.locator("[data-key]")).to_have_count(1)
    card = page.locator("[data-key='mismatch/kl']")
    expect(card.locator("canvas")).to_be_visible()
    metric = find("mismatch/kl")
    assert metric is not None
    tip = card.get_by_role("tooltip", include_hidden=True)
    expect(tip).not_to_be_visible()
    card.locator("h3").hover()
    expect(tip).to_be_visible()
    expect(tip).to_contain_text(metric.meaning)
    expect(tip).to_contain_text("healthy: at most 0.01")
    page.mouse.move(0, 0)
    expect(tip).not_to_be_visible()
    card.locator("h3").focus()
    expect(tip).to_be_visible()


def test_runs_lie_over_each_other_smoothed_over_any_axis(viewer: Viewer, open_page: Open) -> None:
    page = open_page(f"{viewer.url}#curves?find=reward/mean")
    legend = page.locator("[data-key='reward/mean'] .u-legend")
    expect(legend).to_contain_text("run")
    expect(legend).to_contain_text("other")
    page.get_by_label("smoothing").focus()
    page.keyboard.press("End")
    expect(legend).to_contain_text("run (raw)")
    assert "smooth=0.99" in page.url
    for axis in ("samples", "tokens", "hours"):
        page.get_by_label("over").select_option(axis)
        expect(legend).to_contain_text(f"{axis}--")
    page.get_by_role("checkbox", name="other").uncheck()
    expect(legend).not_to_contain_text("other")
    page.reload()  # the address holds all of it
    expect(legend).to_contain_text("hours--")
    expect(legend).to_contain_text("run (raw)")
    expect(legend).not_to_contain_text("other")


def test_reward_and_evaluations_stand_at_the_top(tmp_path: Path, open_page: Open) -> None:
    """The interval of an estimate is a band, not two more charts; the run's name stands on the page."""
    folder = tmp_path / "adder"
    folder.mkdir()
    measured = {f"eval/held_out/{key}{end}": 0.5 + shift for key in ("pass@1", "pass@8", "avg@8", "greedy", "reward")
                for end, shift in (("", 0.0), ("_low", -0.1), ("_high", 0.1))}  # fmt: skip
    steps = [{"step": step, "reward/mean": 0.1 * step, "time/step": 1.0} | measured for step in range(4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))
    alone = start_viewer(folder)
    try:
        page = open_page(f"{alone.url}#curves")
        titles = page.eval_on_selector_all("[data-key]", "all => all.map(one => one.dataset.key)")
        assert titles[:4] == ["Reward", "held_out: pass@1", "held_out: greedy", "held_out: reward"]
        assert {f"eval/held_out/{key}" for key in ("pass@1", "pass@8", "avg@8", "greedy", "reward")} <= set(titles)
        assert not [title for title in titles if title.endswith(("_low", "_high"))]
        legend = page.locator("[data-key='held_out: pass@1'] .u-legend")
        expect(legend).to_contain_text("adder (interval)")
        expect(legend.locator(".u-value").first).not_to_be_visible()
        page.locator("[data-key='held_out: pass@1'] .u-over").hover()
        expect(legend.locator(".u-value").first).to_be_visible()
        expect(page.locator("header strong")).to_have_text("rlvr view adder")
        assert page.title() == "Curves · adder · rlvr view"
    finally:
        alone.process.terminate()
        alone.process.communicate()


def test_the_name_of_the_run_stands_in_the_title(viewer: Viewer, open_page: Open) -> None:
    assert open_page(f"{viewer.url}#problems?run=other").title() == "Problems · other · rlvr view"
    assert open_page(f"{viewer.url}#curves").title() == "Curves · run, other, live · rlvr view"


def test_rollouts_open_at_a_group_that_was_trained(viewer: Viewer, lines: Lines, open_page: Open) -> None:
    """Where nothing was asked for: the first group of the step whose rewards differ, not simply the first."""
    for step in {one["step"] for one in lines}:
        rewards: dict[int, set[float]] = {}
        for one in lines:
            if one["step"] == step:
                rewards.setdefault(one["group"], set()).add(one["reward"])
        expected = next((group for group in sorted(rewards) if len(rewards[group]) > 1), 0)
        page = open_page(f"{viewer.url}#rollouts?run=run&step={step}")
        expect(page.locator(".detail h2")).to_contain_text(f"Step {step} · group {expected} ·")
    page = open_page(f"{viewer.url}#rollouts?run=run&step=2&group=3")
    expect(page.locator(".detail h2")).to_contain_text("Step 2 · group 3 ·")


def test_outcomes_and_time_are_stacked_bands(viewer: Viewer, open_page: Open) -> None:
    page = open_page(f"{viewer.url}#curves")
    outcomes = page.locator("[data-key='Outcomes of lax · run'] .u-legend")
    expect(outcomes).to_contain_text("wrong")
    expect(outcomes).to_contain_text("correct")
    expect(outcomes).not_to_contain_text("timeout")
    expect(page.locator("[data-key='Time of a step · run'] .u-legend")).to_contain_text("forward_backward")


def test_a_point_of_a_curve_leads_to_its_rollouts(viewer: Viewer, open_page: Open) -> None:
    page = open_page(f"{viewer.url}#curves?find=reward/mean&hide=other")
    chart = page.locator("[data-key='reward/mean'] .u-over")
    box = chart.bounding_box()
    assert box is not None
    chart.click(position={"x": box["width"] - 2, "y": box["height"] / 2})
    expect(page.locator(".detail h2")).to_contain_text(f"Step {STEPS}")


# ----------------------------------------------------------------------------------------------------------- rollouts


def test_step_group_sample(viewer: Viewer, lines: Lines, open_page: Open, size: Size) -> None:
    """From a step to a group to a sample; prompt, completion and verdicts stand there to the letter, hostile ones
    too."""
    page = open_page(f"{viewer.url}#rollouts?run=run&step=1", size)
    hostile = next(one for one in lines if one["step"] == 1 and one["problem_id"] == "train:2" and one["sample"] == 3)
    page.click(f"[data-spot='1/{hostile['group']}/3']")
    expect(page.locator(".detail h2")).to_have_text(f"Step 1 · group {hostile['group']} · sample 3")
    expect(page.locator(".prompt")).to_have_text(hostile["prompt"])
    assert HOSTILE in hostile["text"]
    assert page.text_content(".completion") == hostile["text"]
    assert page.locator("script:not([src])").count() == 0
    expect(page.locator(".verdicts")).to_contain_text("looked for <b>22</b>")
    expect(page.locator(".facts").first).to_contain_text("ended by length")
    url = page.url
    page.reload()
    expect(page.locator(".detail h2")).to_have_text(f"Step 1 · group {hostile['group']} · sample 3")
    assert page.url == url


def token_colours(page: Page) -> list[str]:
    """Background of each token of the completion."""
    colours: list[str] = page.eval_on_selector_all(
        ".completion .token", "all => all.map(one => one.style.backgroundColor)"
    )
    return colours


def test_tokens_are_coloured_by_each_quantity(viewer: Viewer, lines: Lines, open_page: Open) -> None:
    """The text of the tokens is the completion; what the policy did not sample is neither trained nor coloured."""
    wanted = next(one for one in lines if len(one["loss_mask"]) > 1 and one.get("trainer_logprobs"))
    spot = "&".join(f"{key}={wanted[key]}" for key in ("step", "group", "sample"))
    page = open_page(f"{viewer.url}#rollouts?run=run&{spot}&colour=mask")
    assert page.text_content(".completion") == wanted["text"]
    tokens = page.locator(".completion .token")
    expect(tokens).to_have_count(wanted["tokens"])
    (_, before), (_, foreign), _ = wanted["loss_mask"]
    expect(page.locator(".completion .masked")).to_have_count(foreign)
    found = {}
    for quantity in ("advantage", "probability", "mismatch", "version", "mask"):
        page.get_by_label("coloured by").select_option(quantity)
        expect(page).to_have_url(re.compile(f"colour={quantity}"))
        expect(page.locator(".legend")).not_to_be_empty()
        found[quantity] = token_colours(page)
    assert found["probability"][0] != found["probability"][39]  # 1 and 14 %
    assert found["advantage"][0] == found["advantage"][before - 1] != found["advantage"][before] == ""
    assert found["mismatch"][before] == ""
    assert any(found["mismatch"])
    assert len(set(found["version"])) == 1
    expect(tokens.nth(1)).to_have_attribute("title", re.compile("token 2: probability 0.951"))


def test_a_completion_without_tokens_says_so(viewer: Viewer, lines: Lines, open_page: Open) -> None:
    plain = next(one for one in lines if "ids" not in one)
    spot = "&".join(f"{key}={plain[key]}" for key in ("step", "group", "sample"))
    page = open_page(f"{viewer.url}#rollouts?run=run&{spot}&colour=probability")
    expect(page.locator(".legend")).to_contain_text("run.log_token_groups")
    assert page.text_content(".completion") == plain["text"]


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ("search=carry", lambda one: "carry" in one["text"]),
        ("search=hacked", lambda one: "hacked" in one["text"]),
        ("search=%22one+so+it%22", lambda one: "one so it" in one["text"]),
        ("search=%22so+one%22", lambda one: False),
        ("search=carr*", lambda one: "carry" in one["text"]),
        ("search=carr", lambda one: False),
        ("outcome=CORRECT", lambda one: one["verdicts"]["lax"]["outcome"] == "CORRECT"),
        ("term=strict&outcome=NO_ANSWER", lambda one: one["verdicts"]["strict"]["outcome"] == "NO_ANSWER"),
        ("reward_min=1.005", lambda one: one["reward"] >= 1.005),
        ("reward_max=0.5", lambda one: one["reward"] <= 0.5),
        ("tokens_max=30", lambda one: one["tokens"] <= 30),
        ("finish=length", lambda one: one["finish_reason"] == "length"),
        ("step_min=2&step_max=3", lambda one: 2 <= one["step"] <= 3),
        ("problem=train:3", lambda one: one["problem_id"] == "train:3"),
        ("search=carry&finish=length&step_max=2", lambda one: one["finish_reason"] == "length" and one["step"] <= 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_search_and_filters(
    viewer: Viewer, lines: Lines, open_page: Open, query: str, fits: Callable[[Any], bool]
) -> None:
    page = open_page(
        f"{viewer.url}#rollouts?run=run&{query}&step_min=1"
        if "step_min" not in query
        else f"{viewer.url}#rollouts?run=run&{query}"
    )
    expected = [one for one in lines if fits(one)]
    expect(page.locator(".count")).to_contain_text(re.compile(rf"^{len(expected)} of "))
    expect(page.locator(".rows li")).to_have_count(min(50, len(expected)))
    if expected:
        expect(page.locator(".detail h2")).to_have_text(
            "Step {step} · group {group} · sample {sample}".format(**expected[0])
        )


def test_a_search_is_typed_and_a_filter_chosen(viewer: Viewer, lines: Lines, open_page: Open, size: Size) -> None:
    page = open_page(f"{viewer.url}#rollouts?run=run", size)
    page.keyboard.press("/")
    page.keyboard.type("carry")
    page.keyboard.press("Enter")
    expect(page.locator(".rows li")).to_have_count(50)
    page.get_by_role("button", name="more").click()
    expect(page.locator(".rows li")).to_have_count(sum("carry" in one["text"] for one in lines))
    page.get_by_text("filters").click()
    page.get_by_label("ended by").select_option("length")
    expect(page.locator(".rows li")).to_have_count(
        sum(one["finish_reason"] == "length" and "carry" in one["text"] for one in lines)
    )
    page.get_by_text("back to the steps").click()
    expect(page.locator(".groups li")).to_have_count(4)
    page.fill("input[type=search]", "=== ~")
    page.get_by_role("button", name="search").click()
    expect(page.locator(".count")).to_contain_text("nothing to search for")


def test_the_keyboard_reaches_everything(viewer: Viewer, lines: Lines, open_page: Open) -> None:
    page = open_page(f"{viewer.url}#rollouts?run=run&step=2")
    title = page.locator(".detail h2")
    for key, where in (
        ("j", "Step 2 · group 0 · sample 1"), ("k", "Step 2 · group 0 · sample 0"),
        ("l", "Step 2 · group 1 · sample 0"), ("h", "Step 2 · group 0 · sample 0"),
        ("]", "Step 3 · group 0 · sample 0"), ("[", "Step 2 · group 0 · sample 0"),
    ):  # fmt: skip
        page.keyboard.press(key)
        expect(title).to_have_text(where)
    page.keyboard.press("t")
    expect(page).to_have_url(re.compile("colour=probability"))
    page.wait_for_load_state("networkidle")
    page.keyboard.press("p")
    expect(page.locator(".side-by-side")).to_be_visible()
    page.keyboard.press("j")
    expect(page.locator("select[name=sample]")).to_have_value("1")
    for number, name in enumerate(("curves", "rollouts", "problems", "suspects", "recipes"), start=1):
        page.keyboard.press(str(number))
        expect(page.locator(f".page.{name}")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Keyboard")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).not_to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement !== document.body")


def test_what_is_not_there_is_named(viewer: Viewer, open_page: Open) -> None:
    page = open_page(f"{viewer.url}#rollouts?run=run&step=77")
    expect(page.get_by_text("No rollouts of step 77 are here.")).to_be_visible()
    expect(open_page(f"{viewer.url}#nosuchpage").locator(".page.curves")).to_be_visible()


# ------------------------------------------------------------------------------------------------------------ problems


def test_problems(viewer: Viewer, open_page: Open, size: Size) -> None:
    page = open_page(f"{viewer.url}#problems?run=other", size)
    names = page.locator(".problems tbody td:first-child")
    expect(page.locator(".chart canvas").first).to_be_visible()
    expect(names).to_have_count(4)
    page.get_by_text("always solved").click()
    expect(names).to_have_text(["train:4"])
    page.get_by_text("never solved").click()
    expect(page.get_by_text("There is none.")).to_be_visible()
    page.get_by_text("by name").click()
    expect(names).to_have_text(["train:1", "train:2", "train:3", "train:4"])
    page.fill("input[type=search]", "n:2")
    page.keyboard.press("Enter")
    expect(names).to_have_text(["train:2"])


def test_one_problem_through_all_steps(viewer: Viewer, lines: Lines, open_page: Open, size: Size) -> None:
    """Four visits side by side: the first, the last and between; then any four in a row, any sample."""
    page = open_page(f"{viewer.url}#problem?run=other&problem=train:2&sample=3", size)
    expect(page.locator(".prompt")).to_contain_text(HOSTILE)
    expect(page.locator(".side-by-side .completion")).to_have_text([REASONS + HOSTILE] * 2)
    page = open_page(f"{viewer.url}#problem?run=run&problem=train:3&sample=0&from=0", size)
    completions = [one["text"] for one in lines if (one["problem_id"], one["sample"]) == ("train:3", 0)]
    assert len(completions) == STEPS
    shown = page.locator(".side-by-side .completion")
    expect(shown).to_have_text(completions[:4])
    page.keyboard.press("l")
    expect(shown).to_have_text(completions[1:5])
    page.locator(".side-by-side h4 a").first.click()
    expect(page.locator(".detail h2")).to_contain_text("Step 2 ")


# ------------------------------------------------------------------------------------------------------------ suspects


def test_suspects(viewer: Viewer, lines: Lines, open_page: Open, size: Size) -> None:
    """The hack is short, the same for four references, without reasoning, and the second verifier does not follow."""
    page = open_page(f"{viewer.url}#suspects?run=run", size)
    hacked = sum(one["text"] == HACK for one in lines)
    for rule in ("short", "repeated", "unreasoned", "disagreeing"):
        section = page.locator(f"[data-rule={rule}]")
        if rule != "unreasoned":  # the hack bears no sign of where its answer begins
            expect(section.locator(".rows").get_by_text(HACK, exact=True).first).to_be_visible()
    expect(page.locator("[data-rule=short] .badge")).to_have_text(re.compile(r"\d+"))
    assert int(page.inner_text("[data-rule=short] .badge")) >= hacked
    expect(page.locator("[data-rule=repeated]")).to_contain_text("for 4 problems with 4 references")
    expect(page.locator("[data-rule=disagreeing]")).to_contain_text("no longer follows")
    page.locator("[data-rule=short] .rows a").first.click()
    expect(page.locator(".completion")).to_have_text(HACK)


# ------------------------------------------------------------------------------------------------------------- recipe


def test_recipe_and_difference(viewer: Viewer, work: Workspace, open_page: Open, size: Size) -> None:
    page = open_page(f"{viewer.url}#recipes?run=run", size)
    assert page.text_content(".text") == (work.results() / "recipe.yaml").read_text()
    page.get_by_label("compare with").select_option("other")
    rows = page.locator(".diff tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.filter(has_text="learner.lr")).to_contain_text("0.02")


# --------------------------------------------------------------------------------------------------------------- live


def test_pages_follow_a_run_that_goes_on(viewer: Viewer, work: Workspace, open_page: Open) -> None:
    """The last step, a curve and a list grow while the run writes, without a reload."""
    rollouts = open_page(f"{viewer.url}#rollouts?run=live")
    newest = open_page(f"{viewer.url}#rollouts?run=live&step_min=2")
    curves = open_page(f"{viewer.url}#curves?find=reward/mean&hide=run|other")
    expect(newest.get_by_text("No rollout fits.")).to_be_visible()
    expect(curves.locator("[data-key='reward/mean'] canvas")).to_be_visible()
    for page in (rollouts, newest, curves):
        page.evaluate("window.stays = true")
    assert work.run("name=live", "run.steps=3") == 0
    expect(rollouts.get_by_text("of 1–3")).to_be_visible()
    expect(newest.locator(".rows li")).to_have_count(32)
    last = work.metrics("live")[-1]["reward/mean"]
    expect(curves.locator("[data-key='reward/mean'] .last")).to_contain_text(f"{last:.4g}")
    for page in (rollouts, newest, curves):
        assert page.evaluate("window.stays")
