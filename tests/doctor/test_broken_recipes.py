"""Recipes broken on purpose: the doctor names each by the right rule, and finds nothing in the sound one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlvr.doctor.rules import SECTIONS
from tests.doctor.conftest import NUMBERS, Diagnose
from tests.runs import Workspace

pytestmark = pytest.mark.usefixtures("nothing_left")

STOPS, SLOWS, NOTE = "stops learning", "slows learning", "note"


def own(work: Workspace, name: str, **settings: Any) -> None:
    """A verifier of verifiers.py as the only term."""
    work.recipe["rewards"]["terms"] = [{"name": "own", "verifier": f"verifiers:{name}", **settings}]


def jinja(work: Workspace, text: str, **settings: Any) -> None:
    work.write("template.jinja", text)
    work.recipe["template"] = {"type": "jinja", "path": "template.jinja", **settings}


def references(work: Workspace, make: Callable[[int], Any]) -> None:
    work.write_problems([{"problem": f"Say {n}", "answer": make(n)} for n in NUMBERS])


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_token(work: Workspace, old: str, new: str) -> None:
    """A token that the model has, under another name."""
    path = work.folder / "model" / "tokenizer.json"
    path.write_text(path.read_text().replace(json.dumps(old), json.dumps(new)))


# ----------------------------------------------------------------------------------------------------- what is broken


def prefill_that_the_format_forbids(work: Workspace) -> None:
    jinja(work, "{{ question }}\n", prefill="<think>")
    own(work, "NoThought")


def prefill_that_the_format_never_sees(work: Workspace) -> None:
    """The prompt begins a thought in words, so that it is no prefill; R1's format asks graders to see its tag."""
    jinja(work, "{{ question }}\n<think> Well,")


def empty_thought_as_prefill(work: Workspace) -> None:
    jinja(work, "{{ question }}\n", prefill="<think>\n\n</think>\n\n")


def sixteen_new_tokens(work: Workspace) -> None:
    work.recipe["rollout"]["max_new_tokens"] = 16


def single_completions_without_baseline(work: Workspace) -> None:
    work.recipe["rollout"]["group_size"] = 1
    work.recipe["algorithm"] = {"baseline": {"type": "none"}, "scale": {"type": "none"}, "filter": {"type": "keep"}}


def single_completions_with_a_mean(work: Workspace) -> None:
    work.recipe["rollout"]["group_size"] = 1


def references_with_units(work: Workspace) -> None:
    references(work, lambda n: f"{n} meters per second")
    work.recipe["rollout"]["max_new_tokens"] = 96


def references_with_units_to_the_letter(work: Workspace) -> None:
    own(work, "Exact")
    references(work, lambda n: f"{n} km")


def references_with_a_unit_that_is_read_past(work: Workspace) -> None:
    work.write_problems([{"problem": f"Say what follows {n - 1}", "answer": f"{n} km"} for n in NUMBERS])


def whole_solutions_as_references(work: Workspace) -> None:
    references(work, lambda n: f"One and {n - 1} more make {n} in all, so that is it.\n#### {n}")


def misspelt_stop_string(work: Workspace) -> None:
    work.recipe["template"]["stop"] = ["</anwser>"]


def stop_string_in_the_middle(work: Workspace) -> None:
    work.recipe["template"]["stop"] = ["</think>"]


def stop_string_that_is_a_special_token(work: Workspace) -> None:
    rename_token(work, "<unused120>", "<|stop|>")
    edit_json(work.folder / "model" / "tokenizer_config.json", additional_special_tokens=["<|stop|>"])
    work.recipe["template"]["stop"] = ["<|stop|>"]


def turn_end_as_padding(work: Workspace) -> None:
    """As in models whose EOS is the end of a text, while the chat template ends turns by the token used as padding."""
    rename_token(work, "<unused120>", "<|im_start|>")
    rename_token(work, "<unused121>", "<|im_end|>")
    edit_json(
        work.folder / "model" / "tokenizer_config.json", pad_token="<|im_end|>",
        chat_template="{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    )  # fmt: skip
    work.recipe["template"] = {"type": "chat"}


def padding_by_the_end_of_text(work: Workspace) -> None:
    edit_json(work.folder / "model" / "tokenizer_config.json", pad_token="<eos>")


def learning_rate_of_a_hundredth(work: Workspace) -> None:
    work.recipe["learner"]["lr"] = 1.0e-2


def weights_that_round_updates_away(work: Workspace) -> None:
    work.recipe["model"]["dtype"] = "bfloat16"
    work.recipe["learner"]["lr"] = 1.0e-6


def verifier_that_always_says_one(work: Workspace) -> None:
    own(work, "AlwaysOne")


def verifier_that_always_says_one_beside_another(work: Workspace) -> None:
    work.recipe["rewards"]["terms"].append({"name": "own", "verifier": "verifiers:AlwaysOne"})


def verifier_that_throws_a_coin(work: Workspace) -> None:
    own(work, "Coin")


def verifier_that_raises(work: Workspace) -> None:
    own(work, "Broken")


def copies_that_are_right(work: Workspace) -> None:
    work.write_problems([{"problem": f"What is {n} + 5?", "answer": str(n + 5)} for n in NUMBERS])
    work.recipe["rewards"]["terms"][0]["args"] = {"extract": "answer_tag", "form": "any"}


def two_bos(work: Workspace) -> None:
    jinja(work, "{{ bos_token }}{{ bos_token }}{{ question }}")


def two_bos_with_a_blank(work: Workspace) -> None:
    jinja(work, "{{ bos_token }}\n{{ bos_token }}{{ question }}")


def chat_with_a_base_model(work: Workspace) -> None:
    work.recipe["template"] = {"type": "chat"}


def template_of_another_model(work: Workspace) -> None:
    jinja(work, "<|im_start|>user\n{{ question }}<|im_end|>\n<|im_start|>assistant\n")


def cold_sampling(work: Workspace) -> None:
    work.recipe["rollout"]["temperature"] = 0.01


def prompt_longer_than_the_model(work: Workspace) -> None:
    work.write_problems([{"problem": "Say " + "17 " * 90, "answer": "17"}])


def weights_of_nothing(work: Workspace) -> None:
    for term in work.recipe["rewards"]["terms"]:
        term["weight"] = 0.0


def measured_on_what_is_trained(work: Workspace) -> None:
    work.recipe["problems"]["eval"] = [{"name": "e", "source": {"type": "jsonl", "path": "train.jsonl"}}]


def references_that_contradict(work: Workspace) -> None:
    work.write_problems([{"problem": f"Say {n}", "answer": str(m)} for n in NUMBERS for m in (n, n + 1)])


def one_completion_for_all(work: Workspace) -> None:
    references(work, lambda n: "42")


def warm_up_longer_than_the_run(work: Workspace) -> None:
    work.recipe["learner"]["schedule"] = {"warmup_steps": 100}


def data_without_the_column(work: Workspace) -> None:
    work.write_problems([{"question": "Say 17", "answer": "17"}])


BROKEN: list[tuple[Callable[[Workspace], None], str, str]] = [
    (prefill_that_the_format_forbids, "prefill_against_format", STOPS),
    (prefill_that_the_format_never_sees, "prefill_against_format", STOPS),
    (empty_thought_as_prefill, "prefill_against_format", STOPS),
    (sixteen_new_tokens, "completion_does_not_fit", STOPS),
    (single_completions_without_baseline, "no_baseline", SLOWS),
    (single_completions_with_a_mean, "recipe_unsound", STOPS),
    (references_with_units, "reference_units", SLOWS),
    (references_with_units_to_the_letter, "reference_units", SLOWS),
    (references_with_a_unit_that_is_read_past, "reference_units", NOTE),
    (whole_solutions_as_references, "reference_is_solution", SLOWS),
    (misspelt_stop_string, "stop_misspelt", SLOWS),
    (stop_string_in_the_middle, "stop_cuts_answer", STOPS),
    (stop_string_that_is_a_special_token, "stop_is_special_token", SLOWS),
    (turn_end_as_padding, "turn_end_does_not_stop", STOPS),
    (padding_by_the_end_of_text, "pad_is_eos", NOTE),
    (learning_rate_of_a_hundredth, "learning_rate_high", STOPS),
    (weights_that_round_updates_away, "updates_round_to_nothing", SLOWS),
    (verifier_that_always_says_one, "verifier_always_right", STOPS),
    (verifier_that_always_says_one_beside_another, "verifier_always_right", SLOWS),
    (verifier_that_throws_a_coin, "verifier_disagrees", STOPS),
    (verifier_that_raises, "verifier_raises", STOPS),
    (copies_that_are_right, "answers_copied", STOPS),
    (two_bos, "double_bos", STOPS),
    (two_bos_with_a_blank, "double_bos", STOPS),
    (chat_with_a_base_model, "chat_template_missing", STOPS),
    (template_of_another_model, "template_token_unknown", SLOWS),
    (cold_sampling, "temperature_low", STOPS),
    (prompt_longer_than_the_model, "prompt_too_long", STOPS),
    (weights_of_nothing, "reward_weights_zero", STOPS),
    (measured_on_what_is_trained, "train_eval_overlap", STOPS),
    (references_that_contradict, "contradicting_references", SLOWS),
    (one_completion_for_all, "same_reference", SLOWS),
    (warm_up_longer_than_the_run, "warmup_never_ends", SLOWS),
    (data_without_the_column, "rows_unusable", STOPS),
]


@pytest.mark.parametrize(("broken", "rule", "grade"), BROKEN, ids=[one.__name__ for one, _, _ in BROKEN])
def test_the_cheap_half_names_it(
    broken: Callable[[Workspace], None], rule: str, grade: str, clinic: Workspace, diagnose: Diagnose
) -> None:
    """The right rule, at the right grade, and no other that blames something else."""
    broken(clinic)
    found = diagnose()["rules"]
    assert found.get(rule) == grade, found
    others = {name for name, one in found.items() if name != rule and one == STOPS}
    assert not others, found


# --------------------------------------------------------------------------------------------- what an engine shows


def easy_set_in_pairs(work: Workspace) -> None:
    own(work, "AlmostAlwaysOne")
    work.recipe["rollout"]["group_size"] = 2


def references_of_other_rows(work: Workspace) -> None:
    references(work, lambda n: str(n + 1000))


def verifier_in_moods(work: Workspace) -> None:
    """Two gradings in one process agree; two processes do not."""
    own(work, "Mood")


def prompts_that_the_model_answers_by_its_end(work: Workspace) -> None:
    jinja(work, "{{ question }} <think> hm </think> <answer> 17 </answer>")
    work.recipe["rewards"]["terms"] = work.recipe["rewards"]["terms"][:1]


SAMPLED: list[tuple[Callable[[Workspace], None], str, str]] = [
    (sixteen_new_tokens, "all_truncated", STOPS),
    (easy_set_in_pairs, "group_too_small", SLOWS),
    (references_of_other_rows, "none_right", SLOWS),
    (verifier_in_moods, "verifier_disagrees", STOPS),
    (verifier_that_always_says_one, "verifier_always_right", STOPS),
    (cold_sampling, "completions_identical", STOPS),
    (misspelt_stop_string, "stop_never_appears", SLOWS),
    (prompts_that_the_model_answers_by_its_end, "completions_empty", STOPS),
    (verifier_that_raises, "completions_unscored", STOPS),
]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("bool", "grade returned bool (True), it must return a Verdict"),
        ("none", "grade returned NoneType (None), it must return a Verdict"),
        ("float", "grade returned float (1.0), it must return a Verdict"),
        ("text", "grade returned str ('1'), it must return a Verdict"),
        ("coroutine", "grade returned coroutine"),
    ],
)
def test_what_a_verifier_returned_is_said_by_train_and_doctor(
    what: str, said: str, clinic: Workspace, diagnose: Diagnose, capsys: pytest.CaptureFixture[str]
) -> None:
    """All gradings are counted, whatever number of references a text was judged against."""
    own(clinic, "Returns", args={"what": what})
    report = diagnose()
    (finding,) = [one for one in report["findings"] if one["rule"] == "verifier_raises"]
    assert finding["grade"] == STOPS
    raised, made = [int(word) for word in finding["message"].replace(":", " ").split() if word.isdigit()][:2]
    assert raised == made > 100
    assert said in finding["message"]
    assert said in finding["evidence"][0]
    clinic.recipe["run"]["force"] = False
    assert clinic.run() == 2
    assert said in capsys.readouterr().err


def test_a_verdict_that_is_no_number_is_shown_with_its_place(clinic: Workspace, diagnose: Diagnose) -> None:
    own(clinic, "NotANumber")
    (finding,) = [one for one in diagnose()["findings"] if one["rule"] == "verifier_raises"]
    assert "nan" in finding["message"]
    assert finding["evidence"][1].startswith("File ")


@pytest.mark.parametrize(("name", "said"), [("Hangs", "rewards.timeout"), ("Leaves", "its process ended")])
def test_a_verifier_that_never_answers_is_named_as_that(
    name: str, said: str, clinic: Workspace, diagnose: Diagnose
) -> None:
    own(clinic, name)
    report = diagnose()
    assert report["rules"].get("verifier_never_answers") == STOPS, report["rules"]
    assert "verifier_slow" not in report["rules"]
    (finding,) = [one for one in report["findings"] if one["rule"] == "verifier_never_answers"]
    assert said in finding["message"]


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "rule", "grade"), SAMPLED, ids=[one.__name__ for one, _, _ in SAMPLED])
def test_a_few_groups_show_it(
    broken: Callable[[Workspace], None], rule: str, grade: str, clinic: Workspace, diagnose: Diagnose
) -> None:
    broken(clinic)
    report = diagnose(engine=True)
    assert report["rules"].get(rule) == grade, report["rules"]
    (finding,) = [one for one in report["findings"] if one["rule"] == rule]
    assert finding["advice"]
    assert any(char.isdigit() for char in finding["message"]), finding["message"]


@pytest.mark.slow
def test_nothing_is_wrong_with_the_sound_recipe(clinic: Workspace, diagnose: Diagnose) -> None:
    """Neither half finds anything, and the report says what was measured; engine and learner agree in float32."""
    report = diagnose("--groups", "6", engine=True)
    assert report["findings"] == []
    assert report["status"] == 0
    facts = dict(report["facts"])
    assert facts["completions"].startswith("6 problems x 16, ")
    assert "24, every reference checked" in facts["problems"]
    assert float(facts["mismatch"].split()[0]) < 1e-4
    assert {"a step", "memory", "disk", "length", "accuracy", "format"} <= set(facts)
    assert report["prompts"] == ["Say 10", "Say 11"]


def test_every_rule_that_was_named_is_on_the_page() -> None:
    known = {rule.name for _, _, rules in SECTIONS for rule in rules}
    assert {rule for _, rule, _ in [*BROKEN, *SAMPLED]} <= known
