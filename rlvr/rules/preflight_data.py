"""Rules about problems and prompts, before any weights are read."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2

from rlvr.config import Recipe
from rlvr.problems.templates import TURN_ENDS, Prompt, Renderer
from rlvr.records import Problem
from rlvr.rules.finding import Finding, Grade
from rlvr.rules.rule import Rule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKUP = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>]{1,40}｜>|</?s>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<<?/?SYS>?>|<(?:start|end)_of_turn>"
)
"""What special tokens of chat templates look like."""
TAG = re.compile(r"</?(?:think|answer|reasoning|solution)>")
LIKE = 0.8
"""Similarity (difflib) from which a stop string is a known one, misspelt."""
ENDINGS = ("</answer>", "</think>", "</solution>", "</reasoning>", *TURN_ENDS)
"""What completions end with in common formats."""
SAME_REFERENCE = 0.8
CONTRADICTIONS = 0.01
LONG_REFERENCE = 12
"""Words from which a reference is a solution, not an answer."""
SOLUTIONS = 0.2

CANNOT_RUN = Rule(
    "cannot_run", Grade.STOPS, "recipe, model, data or plug-ins are refused; `rlvr train` says the same",
    "the message names the key and the rule",
)  # fmt: skip
RECIPE_UNSOUND = Rule(
    "recipe_unsound", Grade.STOPS, "a key of the recipe is unknown, missing, out of range or contradicts another",
    "the message names the key, its value and what is allowed",
)  # fmt: skip
ROWS_UNUSABLE = Rule(
    "rows_unusable", Grade.STOPS, "a row of the data lacks its question or reference, or holds what neither can be",
    "correct the rows that the message names, or problems.train.prompt, .reference and .reference_format",
)  # fmt: skip
REFERENCE_UNUSABLE = Rule(
    "reference_unusable", Grade.STOPS, "a verifier's `check_reference` refuses a reference",
    "correct the rows that the message names, or take another verifier or reference_format",
)  # fmt: skip
TOO_LONG = Rule(
    "prompt_too_long", Grade.STOPS, "a prompt and `max_new_tokens` do not fit into the model's context",
    "lower rollout.max_new_tokens, leave long problems out, or take a model with a longer context",
)  # fmt: skip
OVERLAP = Rule(
    "train_eval_overlap", Grade.STOPS, "an eval set holds training problems under `problems.overlap: refuse`",
    "set problems.overlap: drop to leave them out of training",
)  # fmt: skip
NO_CHAT_TEMPLATE = Rule(
    "chat_template_missing", Grade.STOPS, "`template.type` is chat and the tokenizer has no chat template",
    "use template.type r1_zero or none for a base model, or jinja with a file of your own",
)  # fmt: skip
NOTHING_STOPS = Rule(
    "nothing_stops", Grade.STOPS, "no stop string, and the tokenizer knows no end of text",
    "set template.stop, or tokenizer.eos_token in the model's folder",
)  # fmt: skip
UNKNOWN_TOKEN = Rule(
    "template_token_unknown", Grade.SLOWS,
    "the template writes what looks like a special token (`<|...|>`, `[INST]`, `<s>`, ...) which the tokenizer cuts "
    "into pieces; stops learning where `qwen_math` lacks its tokens",
    "take the template of this model: template.type chat for instruct models, r1_zero or none for base models",
)  # fmt: skip
SPLIT_TAG = Rule(
    "tags_are_split", Grade.NOTE, "tags of the template, such as `<think>`, are no tokens of this tokenizer",
    "nothing, as a rule: the model reads them as text, a few tokens each",
)  # fmt: skip
DOUBLE_BOS = Rule(
    "double_bos", Grade.STOPS, "the prompt begins with BOS twice, blanks between them or not",
    "remove bos_token from the template: it is put before a text that does not begin with it",
)  # fmt: skip
TURN_RUNS_ON = Rule(
    "turn_end_does_not_stop", Grade.STOPS,
    "the token that ends a turn in the prompt's template is none of those that end a completion (often as it serves as "
    "padding and another is EOS); slows learning where stop strings end completions",
    "in the model's folder make it an eos_token_id of generation_config.json, and pad with another token",
)  # fmt: skip
PAD_IS_EOS = Rule(
    "pad_is_eos", Grade.NOTE, "the tokenizer pads with its end of text",
    "nothing: padding is masked by its place, not by its id, and the EOS of a completion is trained",
)  # fmt: skip
STOP_SPECIAL = Rule(
    "stop_is_special_token", Grade.SLOWS,
    "a string of `template.stop` is a special token that ends no completion: engines look for stop strings in text, "
    "which has none",
    "leave it out of template.stop and make it an eos_token_id of generation_config.json in the model's folder",
)  # fmt: skip
STOP_MISSPELT = Rule(
    "stop_misspelt", Grade.SLOWS, "a string of `template.stop` is nearly, not quite, a usual end of completions",
    "correct template.stop; completions would run on until max_new_tokens",
)  # fmt: skip
CONTRADICTING = Rule(
    "contradicting_references", Grade.SLOWS,
    f"at least {CONTRADICTIONS:.0%} of the problems stand in the data with another reference as well",
    "keep one reference a problem, or leave these problems out",
)  # fmt: skip
DUPLICATES = Rule(
    "duplicate_problems", Grade.NOTE, "problems stand in the training data more than once",
    "leave repetitions out if they are not wanted: they are drawn more often",
)  # fmt: skip
FEW_PROBLEMS = Rule(
    "few_problems", Grade.NOTE, "fewer problems than `rollout.prompts_per_step`: a step draws some twice",
    "lower rollout.prompts_per_step or take more problems",
)  # fmt: skip
CONSTANT_REFERENCE = Rule(
    "same_reference", Grade.SLOWS,
    f"{SAME_REFERENCE:.0%} or more of 20 problems or more have the same text or number as reference: saying it is "
    "enough",
    "check problems.train.reference; balance the answers",
)  # fmt: skip
SOLUTION = Rule(
    "reference_is_solution", Grade.SLOWS,
    f"at least {SOLUTIONS:.0%} of the references hold `####`, a box within text or {LONG_REFERENCE} words under a "
    "verifier of mathematics",
    "set problems.train.reference_format: gsm8k (text after ####) or boxed",
)  # fmt: skip

DATA_RULES = (
    CANNOT_RUN, RECIPE_UNSOUND, ROWS_UNUSABLE, REFERENCE_UNUSABLE, TOO_LONG, OVERLAP, NO_CHAT_TEMPLATE, NOTHING_STOPS,
    UNKNOWN_TOKEN, SPLIT_TAG, DOUBLE_BOS, TURN_RUNS_ON, PAD_IS_EOS, STOP_SPECIAL, STOP_MISSPELT, CONTRADICTING,
    DUPLICATES, FEW_PROBLEMS, CONSTANT_REFERENCE, SOLUTION,
)  # fmt: skip
_BY_NAME = {rule.name: rule for rule in DATA_RULES}


def refused(error: Exception) -> Finding:
    """The finding for an error that ends a run before it starts: its own rule, if it names one."""
    rule = _BY_NAME.get(getattr(error, "rule", ""), CANNOT_RUN)
    return rule.finding(str(error), grade=Grade.STOPS)


@dataclass(frozen=True, slots=True)
class Prompts:
    """The first problems and their prompts, as the model reads them."""

    problems: Sequence[Problem]
    prompts: Sequence[Prompt]
    renderer: Renderer
    tokenizer: PreTrainedTokenizerBase

    def written(self, index: int) -> str:
        """The text that the template added to a prompt: all of it but the question."""
        text, question = self.prompts[index].text, self.problems[index].prompt
        parts = [question] if isinstance(question, str) else [message["content"] for message in question]
        for part in sorted(parts, key=len, reverse=True):
            before, _, behind = text.rpartition(part.strip()) if part.strip() else (text, "", "")
            text = before + "\n" + behind
        return text


def check_data(recipe: Recipe, problems: Sequence[Problem]) -> Iterator[Finding]:
    """Findings over all training problems."""
    if len(problems) < recipe.rollout.prompts_per_step:
        yield FEW_PROBLEMS.finding(
            f"{len(problems)} training problems, rollout.prompts_per_step = {recipe.rollout.prompts_per_step}"
        )
    yield from _repeated(problems)
    plain = [problem.reference for problem in problems if isinstance(problem.reference, str | int | float)]
    if len(plain) >= 20:
        value, count = Counter(map(str, plain)).most_common(1)[0]
        if count >= SAME_REFERENCE * len(problems):
            yield CONSTANT_REFERENCE.finding(f"{count} of {len(problems)} references are {value!r:.60}")
    if any("math" in term.verifier.lower() for term in recipe.rewards.terms):
        long = [
            problem for problem in problems if isinstance(problem.reference, str) and _is_solution(problem.reference)
        ]
        if len(long) >= SOLUTIONS * len(problems):
            yield SOLUTION.finding(
                f"{len(long)} of {len(problems)} references look like solutions, not answers",
                evidence=[f"{problem.source or problem.id}: ...{problem.reference[-60:]!r}" for problem in long[:2]],
            )


def _is_solution(text: str) -> bool:
    boxed = "\\boxed" in text and not text.strip().startswith("\\boxed")
    return "####" in text or boxed or len(text.split()) >= LONG_REFERENCE


def _repeated(problems: Sequence[Problem]) -> Iterator[Finding]:
    by_key: dict[str, list[Problem]] = {}
    for problem in problems:
        by_key.setdefault(problem.key, []).append(problem)
    repeated = [group for group in by_key.values() if len(group) > 1]
    contradicting = [group for group in repeated if len({_as_text(problem.reference) for problem in group}) > 1]
    count = sum(len(group) for group in contradicting)
    if count and count >= CONTRADICTIONS * len(problems):
        yield CONTRADICTING.finding(
            f"{count} of {len(problems)} training problems stand in the data with another reference as well",
            evidence=[
                " and ".join(f"{problem.source or problem.id}: {problem.reference!r:.40}" for problem in pair)
                for pair in map(_differing, contradicting[:2])
            ],
        )
    same_text = [group for group in repeated if len({_as_text(problem.prompt) for problem in group}) < len(group)]
    if same_text:
        more = sum(len(group) - 1 for group in same_text)
        yield DUPLICATES.finding(f"{more} of {len(problems)} training problems are repetitions of others")


def _differing(group: Sequence[Problem]) -> tuple[Problem, Problem]:
    """The first problem of a group and the first whose reference is another."""
    first = group[0]
    return first, next(other for other in group if _as_text(other.reference) != _as_text(first.reference))


def _as_text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def check_template(recipe: Recipe, seen: Prompts) -> Iterator[Finding]:
    """Findings over the first prompts, their tokenizer and what ends a completion."""
    yield from _markup(seen)
    yield from _begin(seen)
    yield from _turn_end(recipe, seen)
    yield from _stops(seen)
    tokenizer = seen.tokenizer
    if tokenizer.eos_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield PAD_IS_EOS.finding(f"the tokenizer's pad token and its end of text are both {tokenizer.eos_token!r}")


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _markup(seen: Prompts) -> Iterator[Finding]:
    texts = [seen.written(index) for index in range(len(seen.prompts))]
    marks = sorted({mark for text in texts for mark in MARKUP.findall(text)})
    unknown = [mark for mark in marks if len(_pieces(seen.tokenizer, mark)) > 1]
    if unknown:
        shown = ", ".join(f"{mark!r} is {len(_pieces(seen.tokenizer, mark))} tokens" for mark in unknown[:4])
        yield UNKNOWN_TOKEN.finding(f"the template writes special tokens that this model does not have: {shown}")
    tags = sorted({tag for text in texts for tag in TAG.findall(text)})
    split = [tag for tag in tags if len(_pieces(seen.tokenizer, tag)) > 1]
    if split:
        yield SPLIT_TAG.finding(f"tags that are several tokens each: {', '.join(split)}")


def _begin(seen: Prompts) -> Iterator[Finding]:
    bos = seen.tokenizer.bos_token_id
    for prompt in seen.prompts[:1]:
        ids = prompt.ids
        if bos is None or ids[0] != bos:
            continue
        second = next((place for place in range(1, len(ids)) if ids[place] == bos), None)
        if second is not None and not str(seen.tokenizer.decode(list(ids[1:second]))).strip():
            shown = seen.tokenizer.decode(list(ids[: second + 3]))
            yield DOUBLE_BOS.finding(f"the prompt begins with {seen.tokenizer.bos_token!r} twice: {shown!r}")


def _turn_end(recipe: Recipe, seen: Prompts) -> Iterator[Finding]:
    renderer, vocabulary = seen.renderer, seen.tokenizer.get_vocab()
    ends = {mark for index in range(len(seen.prompts)) for mark in TURN_ENDS if mark in seen.written(index)}
    if recipe.template.type == "chat":
        ends |= _end_of_assistant(seen.tokenizer)
    running = sorted(mark for mark in ends if mark in vocabulary and vocabulary[mark] not in renderer.stop_token_ids)
    # a template that separates documents by an end of text, and ends its turns by something else, is sound
    stopping = [mark for mark in ends if mark in vocabulary and vocabulary[mark] in renderer.stop_token_ids]
    if running and not stopping:
        stops = seen.tokenizer.convert_ids_to_tokens(list(renderer.stop_token_ids))
        yield TURN_RUNS_ON.finding(
            f"turns end with {' '.join(map(repr, running))}, but completions with "
            f"{' '.join(map(repr, stops)) or 'none'}"
            + (" (it is the padding token)" if seen.tokenizer.pad_token in running else ""),
            grade=Grade.SLOWS if renderer.stop else Grade.STOPS,
        )


def _end_of_assistant(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The token after a completion in a chat template, if there is one."""
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "ANSWER"}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (jinja2.TemplateError, TypeError, ValueError):  # a template that takes no such conversation
        return set()
    behind = text.rpartition("ANSWER")[2].lstrip()
    names = [*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]
    endings = [name for name in names if name and behind.startswith(name)]
    return {max(endings, key=len)} if endings else set()


def _stops(seen: Prompts) -> Iterator[Finding]:
    tokenizer, renderer = seen.tokenizer, seen.renderer
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    for stop in renderer.stop:
        if stop in special:
            if special[stop] not in renderer.stop_token_ids:
                yield STOP_SPECIAL.finding(f"template.stop holds {stop!r}, a special token, which no text contains")
            continue
        near = [end for end in ENDINGS if _is_misspelt(stop, end)]
        if near and stop not in "".join(seen.written(index) for index in range(len(seen.prompts))):
            yield STOP_MISSPELT.finding(
                f"template.stop holds {stop!r}, which is nearly {near[0]!r}",
                advice=f"write {near[0]!r} in template.stop; completions would run on until max_new_tokens",
            )


def _is_misspelt(stop: str, end: str) -> bool:
    """True for ``</anwser>`` and ``</Completion>``, false for ``</answer>`` and for ``</answer>\\n``."""
    core = stop.strip()
    return core not in ENDINGS and end not in stop and difflib.SequenceMatcher(None, core, end).ratio() >= LIKE
