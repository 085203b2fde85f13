"""Prompts: word for word, tokenised once, one BOS at most, and every way in which a completion may end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlvr.config import RecipeError, Template
from rlvr.problems import ProblemError, Prompt, Renderer, check_fits
from rlvr.records import Message, Problem

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]

QUESTION = "What is 3*7? {x} \\boxed{21} 🙂"

R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>. "
    "User: " + QUESTION + ". Assistant:"
)
R1_ZERO_THINK = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. "
    "The Assistant first thinks about the reasoning process in the mind and then provides the User with the answer. "
    "The reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, "
    "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>.\n"
    "User: " + QUESTION + "\nAssistant: <think>"
)
QWEN_MATH = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>user\n" + QUESTION + "<|im_end|>\n<|im_start|>assistant\n"
)
CHAT_ML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>")


def problem(prompt: str | tuple[Message, ...] = QUESTION) -> Problem:
    return Problem(id="p", prompt=prompt, reference="21", key="k", source="rows.jsonl:7")


def template(type: str, **keys: Any) -> Template:
    return Template.model_validate({"type": type, **keys})


def user(text: str = QUESTION) -> Message:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("type", "text", "prefill", "stop"),
    [
        ("r1_zero", R1_ZERO, "", ("</answer>",)),
        ("r1_zero_think", R1_ZERO_THINK, "<think>", ("</answer>",)),
        ("qwen_math", QWEN_MATH, "", ()),
        ("none", QUESTION, "", ()),
    ],
)
def test_texts_are_word_for_word_and_the_ids_are_theirs(
    make_tokenizer: MakeTokenizer, type: str, text: str, prefill: str, stop: tuple[str, ...]
) -> None:
    tokenizer = make_tokenizer(extra=IM)
    renderer = Renderer(template(type), tokenizer)
    prompt = renderer.render(problem())
    assert prompt.text == text
    assert prompt.prefill == prefill
    assert tokenizer.decode(prompt.ids) == text
    assert prompt.source == "rows.jsonl:7"
    assert renderer.stop == stop
    assert renderer.render(problem((user(),))).ids == prompt.ids  # one user message is a question


def test_the_recipe_sets_stop_strings(make_tokenizer: MakeTokenizer) -> None:
    assert Renderer(template("r1_zero", stop=[]), make_tokenizer()).stop == ()
    assert Renderer(template("none", stop=["\n\n"]), make_tokenizer()).stop == ("\n\n",)
    with pytest.raises(RecipeError, match="empty string"):
        Renderer(template("none", stop=[""]), make_tokenizer())


def test_plain_text_gets_the_bos_that_the_tokenizer_adds_and_no_eos(make_tokenizer: MakeTokenizer) -> None:
    """The ids are those of `tokenizer(text)`, less an EOS that it would put after the prompt."""
    plain, bos = make_tokenizer(), make_tokenizer(adds_bos=True)
    both = make_tokenizer(adds_bos=True, adds_eos=True)
    text = Renderer(template("r1_zero"), plain).render(problem()).text
    assert Renderer(template("r1_zero"), plain).render(problem()).ids == tuple(plain(text)["input_ids"])
    assert Renderer(template("r1_zero"), bos).render(problem()).ids == tuple(bos(text)["input_ids"])
    assert (*Renderer(template("r1_zero"), both).render(problem()).ids, both.eos_token_id) == tuple(
        both(text)["input_ids"]
    )


def test_no_template_begins_with_two_bos(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    """A chat template that writes BOS, a file that does, and a question that does: one BOS each, though the tokenizer
    would add another."""
    tokenizer = make_tokenizer(adds_bos=True)
    tokenizer.chat_template = "{{ bos_token }}" + "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    (tmp_path / "own.jinja").write_text("{{ bos_token }}[{{ question }}]")
    bos = tokenizer.bos_token_id
    expected = (bos, *tokenizer("[hi]", add_special_tokens=False)["input_ids"])
    assert Renderer(template("chat"), tokenizer).render(problem("hi")).ids == expected
    assert (
        Renderer(template("jinja", path=str(tmp_path / "own.jinja")), tokenizer).render(problem("hi")).ids == expected
    )
    assert Renderer(template("none"), tokenizer).render(problem("<s>[hi]")).ids == expected
    (tmp_path / "plain.jinja").write_text("[{{ question }}]")
    assert (
        Renderer(template("jinja", path=str(tmp_path / "plain.jinja")), tokenizer).render(problem("hi")).ids == expected
    )


def test_a_template_that_writes_bos_twice_is_refused(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}"
    with pytest.raises(ProblemError, match=r"rows.jsonl:7: the prompt begins with '<s>' twice"):
        Renderer(template("chat"), tokenizer).render(problem())


def test_chat_with_system_and_prefill(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(extra=IM)
    tokenizer.chat_template = CHAT_ML
    prompt = Renderer(template("chat", system="Be brief.", prefill="<think>\n"), tokenizer).render(problem("hi"))
    assert prompt.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    assert prompt.prefill == "<think>\n"
    assert tokenizer.decode(prompt.ids) == prompt.text
    assert prompt.ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    turns = (user("hi"), {"role": "assistant", "content": "yes?"}, user("3*7"))
    assert Renderer(template("chat"), tokenizer).render(problem(turns)).text.count("<|im_start|>") == 4
    with pytest.raises(ProblemError, match=r"rows.jsonl:7: the row has a system message"):
        Renderer(template("chat", system="S"), tokenizer).render(problem(({"role": "system", "content": "T"}, user())))


@pytest.mark.parametrize("begun", ["<think>", "<think>\n", "<think>\n\n</think>\n\n"])
def test_a_thought_that_the_chat_template_begins_is_shown_to_graders(make_tokenizer: MakeTokenizer, begun: str) -> None:
    tokenizer = make_tokenizer(extra=IM)
    tokenizer.chat_template = CHAT_ML + begun.replace("\n", "{{ '\\n' }}")
    prompt = Renderer(template("chat"), tokenizer).render(problem("hi"))
    assert prompt.prefill == begun
    assert prompt.text.endswith("<|im_start|>assistant\n" + begun)
    prompt = Renderer(template("chat", prefill="So"), tokenizer).render(problem("hi"))
    assert prompt.prefill == begun + "So"


def test_templates_that_do_not_fit_the_tokenizer_are_refused(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(RecipeError, match=r"template\.type 'chat': this tokenizer has no chat template"):
        Renderer(template("chat"), make_tokenizer())
    with pytest.raises(RecipeError, match=r"'qwen_math' needs the tokens <\|im_start\|>"):
        Renderer(template("qwen_math"), make_tokenizer())


def test_what_a_chat_template_refuses_is_named_by_row(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system role here') }}"
    with pytest.raises(ProblemError, match=r"rows.jsonl:7: .* no system role here"):
        Renderer(template("chat"), tokenizer).render(problem())


@pytest.mark.parametrize(
    "messages",
    [
        ({"role": "system", "content": "Be brief."}, user()),
        (user(), {"role": "assistant", "content": "Hm?"}, user()),
    ],
)
def test_a_conversation_under_a_template_for_one_question_is_refused(
    make_tokenizer: MakeTokenizer, messages: tuple[Message, ...]
) -> None:
    with pytest.raises(ProblemError, match=r"rows.jsonl:7: template 'r1_zero' takes one question.*'chat'"):
        Renderer(template("r1_zero"), make_tokenizer()).render(problem(messages))


def test_a_jinja_file_sees_question_messages_and_special_tokens(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("Q: {{ question }} ({{ messages|length }} message){{ eos_token }}\nA:\n")
    prompt = Renderer(template("jinja", path=str(path), prefill=" <think>"), make_tokenizer()).render(problem())
    assert prompt.text == f"Q: {QUESTION} (1 message)</s>\nA: <think>"
    assert prompt.prefill == " <think>"
    with pytest.raises(ProblemError, match=r"rows.jsonl:7: .*'question' is undefined"):
        Renderer(template("jinja", path=str(path)), make_tokenizer()).render(
            problem((user(), {"role": "assistant", "content": "x"}, user()))
        )


def test_a_jinja_file_that_would_drop_a_system_message_is_refused(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "question.jinja").write_text("User: {{ question }}")
    (tmp_path / "messages.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    row = problem(({"role": "system", "content": "Be brief."}, user("hi")))
    with pytest.raises(ProblemError, match=r"rows.jsonl:7: the row has a system message, .* renders `question` only"):
        Renderer(template("jinja", path=str(tmp_path / "question.jinja")), make_tokenizer()).render(row)
    renderer = Renderer(template("jinja", path=str(tmp_path / "messages.jinja")), make_tokenizer())
    assert renderer.render(row).text == "system: Be brief.\nuser: hi\n"


@pytest.mark.parametrize(
    ("text", "said"), [("{{ question", ":1: not a Jinja template"), (None, "this file does not exist; relative")]
)
def test_a_jinja_file_that_cannot_be_used_is_named(
    make_tokenizer: MakeTokenizer, tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "own.jinja"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        Renderer(template("jinja", path=str(path)), make_tokenizer())
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_misspelt_name_in_a_jinja_file_is_an_error(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ qestion }}")
    with pytest.raises(ProblemError, match="'qestion' is undefined"):
        Renderer(template("jinja", path=str(tmp_path / "own.jinja")), make_tokenizer()).render(problem())


def test_an_empty_prompt_is_refused(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    (tmp_path / "empty.jinja").write_text("")
    with pytest.raises(ProblemError, match=r"rows.jsonl:7: the prompt has no token"):
        Renderer(template("jinja", path=str(tmp_path / "empty.jinja")), make_tokenizer()).render(problem())


def test_a_completion_ends_at_every_eos_of_the_model(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    """Generation settings (a list), the tokenizer's EOS and an end of turn in the vocabulary; not padding, not BOS."""
    tokenizer = make_tokenizer(extra=("<stop>", "<|im_end|>", "<|endoftext|>"), pad_token="<|endoftext|>")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("</s>", "<stop>", "<|im_end|>", "<|endoftext|>")}
    assert Renderer(template("none"), tokenizer).stop_token_ids == (ids["</s>"], ids["<|im_end|>"])
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": ids["<stop>"]}))
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert Renderer(template("none"), loaded).stop_token_ids == (ids["</s>"], ids["<stop>"], ids["<|im_end|>"])
    generation = {"eos_token_id": [ids["<stop>"], ids["<|endoftext|>"]]}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert Renderer(template("none"), loaded).stop_token_ids == tuple(sorted(ids.values()))  # pad is an EOS there


def test_without_any_end_the_recipe_is_refused(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(RecipeError, match="nothing would end a completion"):
        Renderer(template("none"), tokenizer)
    assert Renderer(template("none", stop=["\n"]), tokenizer).stop_token_ids == ()


def test_check_fits_names_the_longest_row_and_what_would_fit() -> None:
    prompts = [Prompt(ids=(1,) * n, text="", prefill="", source=f"rows.jsonl:{n}") for n in (5, 40, 30)]
    check_fits(prompts, max_new_tokens=60, model_len=100)
    with pytest.raises(ProblemError) as caught:
        check_fits(prompts, max_new_tokens=75, model_len=100)
    for part in ("rows.jsonl:40", "40 tokens", "max_new_tokens = 75", "100", "2 of 3", "at most 60"):
        assert part in str(caught.value)
    assert "problems.too_long=drop" in str(caught.value)
    with pytest.raises(ProblemError) as caught:
        check_fits(prompts, max_new_tokens=75, model_len=20)
    assert "at most" not in str(caught.value)
