"""How a question becomes the prompt's token ids, and which tokens and strings end the completion.

Every prompt is tokenised in one call from its whole text, prefill included, without the tokenizer's own additions. If
the tokenizer would put a BOS before the text (Llama does, Qwen does not), plain-text templates add it, unless the text
begins with it already; a chat template writes its own. An EOS that some tokenizers append is left out, because the
completion follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlvr.config import RecipeError, Template
from rlvr.problems.rows import ProblemError
from rlvr.records import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
    "reasoning process here </think> <answer> answer here </answer>. User: {question}. Assistant:"
)
"""DeepSeek-R1, arXiv 2501.12948, table 1, word for word, the full stop after the question included."""

R1_ZERO_THINK = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>.\nUser: {question}\nAssistant: "
)
"""understand-r1-zero (arXiv 2503.20783), train_zero_math.py; ``<think>`` follows as prefill."""

QWEN_MATH = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{{}}.<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
)
"""Qwen2.5-Math's prompt, as understand-r1-zero uses it."""

TEXTS = {
    "r1_zero": (R1_ZERO, "", ("</answer>",)),
    "r1_zero_think": (R1_ZERO_THINK, "<think>", ("</answer>",)),
    "qwen_math": (QWEN_MATH, "", ()),
    "none": ("{question}", "", ()),
}
"""Text, prefill and stop strings of the templates that are plain text."""

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")
"""Tokens by which families of models end a turn or a text, whichever of them their configuration names as EOS."""

BEGUN_THOUGHT = re.compile(r"<think>(?:\s*</think>)?\s*\Z")


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt: what the model reads before its first new token.

    Example: ``Prompt(ids=(1, 523, 99), text="... Assistant: <think>", prefill="<think>", source="gsm8k.jsonl:17")``.
    """

    ids: tuple[int, ...]
    text: str
    """The ids as text, prefill included, a BOS that the tokenizer adds left out."""
    prefill: str
    """The end of `text` that begins the completion: graders read it before what the model sampled."""
    source: str
    """The problem's place, for error messages."""


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, from its folder or the hub. Raises `RecipeError` with the reason."""
    from transformers import AutoTokenizer  # slow to import: broken problems are reported before

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # its makers raise all kinds: of JSON, of Rust, of packages that are not installed
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RecipeError(
            f"model.path: {path!r} has no tokenizer that transformers can load ({reason}): put the model's tokenizer "
            "into the folder, by tokenizer.save_pretrained(folder)"
        ) from error
    return tokenizer


class Renderer:
    """Turns problems into prompts under a recipe's template.

    Raises `RecipeError` when the template does not fit the tokenizer: no chat template, no ``<|im_start|>`` for
    ``qwen_math``, a Jinja file that does not exist or parse, no token that ends a completion.
    """

    stop: tuple[str, ...]
    """Strings that end a completion."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end a completion: every EOS of the model's generation settings, the tokenizer's, and the ends of a
    turn in its vocabulary; the padding token only where it is one of the former."""

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
        self._template, self.tokenizer = template, tokenizer
        self._jinja: jinja2.Template | None = None
        self._jinja_names: set[str] = set()
        if template.path is not None:
            self._jinja, self._jinja_names = _read_jinja(template.path)
        self._text, self._prefill, own = TEXTS.get(template.type, ("", template.prefill, ()))
        self.stop = own if template.stop is None else tuple(template.stop)
        if "" in self.stop:
            raise RecipeError("template.stop: an empty string would end every completion before it begins")
        self.stop_token_ids = end_token_ids(tokenizer)
        self._before = _added_before(tokenizer)
        self._begin = ""
        if template.type == "chat" and not tokenizer.chat_template:
            raise RecipeError(
                "template.type 'chat': this tokenizer has no chat template (it belongs to a base model?); "
                "use r1_zero, qwen_math or none, or a chat template of your own by type 'jinja'",
                rule="chat_template_missing",
            )
        if template.type == "qwen_math" and not {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.get_vocab()):
            raise RecipeError(
                "template.type 'qwen_math' needs the tokens <|im_start|> and <|im_end|>: not in the tokenizer",
                rule="template_token_unknown",
            )
        if not self.stop and not self.stop_token_ids:
            raise RecipeError(
                "template.stop: nothing would end a completion: the tokenizer has no end-of-text token and the "
                "template no stop string; set tokenizer.eos_token in the model folder, or template.stop",
                rule="nothing_stops",
            )

    def render(self, problem: Problem) -> Prompt:
        """The prompt of one problem. Raises `ProblemError` naming its row when the template cannot take it."""
        source = problem.source or problem.id
        prefill = self._prefill
        if self._template.type in TEXTS:
            text = self._text.format(question=_only_question(problem, source, self._template.type))
        else:
            text = self._chat(problem, source) if self._jinja is None else self._own(problem, source)
            begun = BEGUN_THOUGHT.search(text)  # chat templates of reasoning models begin the thought themselves
            prefill = (begun.group() if begun else "") + prefill
            text = text[: begun.start()] if begun else text
        prefill += self._begin
        ids = self._tokenize(text + prefill, source)
        return Prompt(ids=ids, text=text + prefill, prefill=prefill, source=source)

    @contextmanager
    def beginning(self, text: str) -> Iterator[None]:
        """Within the block every completion begins with `text`, after the template's own prefill."""
        self._begin = text
        try:
            yield
        finally:
            self._begin = ""

    def _tokenize(self, text: str, source: str) -> tuple[int, ...]:
        bos, bos_id = self.tokenizer.bos_token, self.tokenizer.bos_token_id
        starts_itself = self._template.type == "chat" or (bos is not None and text.startswith(bos))
        before = () if starts_itself else self._before
        ids = before + tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise ProblemError(f"{source}: the prompt has no token; template {self._template.type!r} made {text!r}")
        if len(ids) > 1 and bos_id is not None and ids[0] == ids[1] == bos_id:
            raise ProblemError(
                f"{source}: the prompt begins with {bos!r} twice: the template writes it more than once; "
                f"it made {text[:60]!r}",
                rule="double_bos",
            )
        return ids

    def _chat(self, problem: Problem, source: str) -> str:
        messages = _messages(problem)
        if self._template.system is not None:
            if messages[0]["role"] == "system":
                raise ProblemError(
                    f"{source}: the row has a system message and template.system sets another: leave the latter out"
                )
            messages = [{"role": "system", "content": self._template.system}, *messages]
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except jinja2.TemplateError as error:
            raise ProblemError(f"{source}: the tokenizer's chat template refuses these messages: {error}") from None

    def _own(self, problem: Problem, source: str) -> str:
        assert self._jinja is not None
        messages = _messages(problem)
        if messages[0]["role"] == "system" and "messages" not in self._jinja_names:
            raise ProblemError(
                f"{source}: the row has a system message, and template {self._template.path!r} renders `question` "
                "only: let it render `messages`, or take the system message out of the data"
            )
        names: dict[str, Any] = {"messages": messages, "add_generation_prompt": True}
        names |= {key: value for key, value in self.tokenizer.special_tokens_map.items() if isinstance(value, str)}
        questions = [message["content"] for message in messages if message["role"] != "system"]
        if len(questions) == 1:  # of a longer conversation, `question` stays undefined, which is an error when used
            names["question"] = questions[0]
        try:
            return self._jinja.render(names)
        except jinja2.TemplateError as error:
            path = self._template.path
            raise ProblemError(f"{source}: template {path!r} cannot render this problem: {error}") from None


def check_fits(prompts: Sequence[Prompt], max_new_tokens: int, model_len: int) -> None:
    """Raise `ProblemError`, naming the row of the longest prompt, unless every prompt leaves room for its
    completion."""
    if not prompts:
        return
    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    room = model_len - max_new_tokens
    if len(longest.ids) > room:
        over = sum(len(prompt.ids) > room for prompt in prompts)
        raise ProblemError(
            f"{longest.source}: the prompt has {len(longest.ids)} tokens; max_new_tokens = {max_new_tokens} more do "
            f"not fit into the model's {model_len} ({over} of {len(prompts)} prompts do not): "
            + (f"set max_new_tokens to at most {fitting}, " if (fitting := model_len - len(longest.ids)) > 0 else "")
            + "set problems.too_long=drop to leave long problems out, or take a model with a longer context",
            rule="prompt_too_long",
        )


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a completion, in order: the model's EOS ids, the tokenizer's, and known ends of a turn.

    A base model often has an EOS in its generation settings that the tokenizer does not name, and an instruct model
    several. A known end of a turn that serves as padding and as nothing else is left out.
    """
    certain = set(_generation_eos(tokenizer.name_or_path))
    if tokenizer.eos_token_id is not None:
        certain.add(tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    likely = {vocabulary[token] for token in TURN_ENDS if token in vocabulary}
    return tuple(sorted(certain | (likely - {tokenizer.pad_token_id, tokenizer.bos_token_id})))


def _generation_eos(path: str) -> tuple[int, ...]:
    """EOS ids of a model's generation settings, or of its configuration if it has none; empty if it has neither."""
    if not path:
        return ()
    from transformers import AutoConfig, GenerationConfig  # slow to import: broken problems are reported before

    for kind in (GenerationConfig, AutoConfig):
        try:
            eos = kind.from_pretrained(path).eos_token_id
        except (OSError, ValueError):  # the file does not exist: a tokenizer may stand alone
            continue
        if eos is not None:
            return tuple(eos) if isinstance(eos, list) else (eos,)
    return ()


def _added_before(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that the tokenizer prepends to a text: BOS, or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start])
    raise RecipeError(f"model.path: the tokenizer changes a text when it adds special tokens: {plain} becomes {full}")


def _messages(problem: Problem) -> list[dict[str, str]]:
    if isinstance(problem.prompt, str):
        return [{"role": "user", "content": problem.prompt}]
    return [dict(message) for message in problem.prompt]


def _only_question(problem: Problem, source: str, template: str) -> str:
    """The question of a problem for a template that has place for one text and nothing else."""
    if isinstance(problem.prompt, str):
        return problem.prompt
    roles = [message["role"] for message in problem.prompt]
    if roles != ["user"]:
        raise ProblemError(
            f"{source}: template {template!r} takes one question, this row has messages of {', '.join(roles)}; "
            "use template type 'chat', or 'jinja' with a file that renders them"
        )
    return problem.prompt[0]["content"]


def _read_jinja(path: str) -> tuple[jinja2.Template, set[str]]:
    """A template file and the names that it asks for, read as transformers reads chat templates; an undefined name in
    it is an error."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            f"template.path: {path!r}: this file does not exist; relative paths start at {Path.cwd()} or at the "
            "recipe's folder"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"template.path: {path!r} cannot be read: {error}") from None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(text), jinja2.meta.find_undeclared_variables(environment.parse(text))
    except jinja2.TemplateSyntaxError as error:
        raise RecipeError(f"template.path: {path}:{error.lineno}: not a Jinja template: {error.message}") from None


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
