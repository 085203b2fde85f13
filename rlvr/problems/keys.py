"""The canonical key of a problem: different spellings of one problem have the same key.

Two texts share a key when they differ only in case, white space, punctuation that carries no mathematics, LaTeX
spacing and sizing, or the order of the two operands of a lone sum or product. When in doubt, keys differ: a pair that
is missed here is still found by its n-grams (`rlvr.problems.overlap`), while a wrong match would cost a training
problem.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

from rlvr.records import Message

_LATEX = (  # pattern, replacement; spacing and sizing vanish, spellings of one symbol become one
    (re.compile(r"\\(?:left|right|displaystyle|textstyle|limits|quad|qquad|[bB]igg?[lr]?)(?![A-Za-z])"), " "),
    (re.compile(r"\\[,;:!> ]|~"), " "),
    (re.compile(r"\\[()\[\]]|\$"), " "),
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:cdot|times|ast)(?![A-Za-z])|[×·⋅∙]"), "*"),
    (re.compile(r"\\div(?![A-Za-z])|÷"), "/"),
    (re.compile(r"\\leq?(?![A-Za-z])"), "≤"),
    (re.compile(r"\\geq?(?![A-Za-z])"), "≥"),
    (re.compile(r"\\%"), "%"),
)
_CHARACTERS = str.maketrans({"‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "−": "-", "’": "'", "‘": "'", "`": "'"})
_TOKEN = re.compile(r"\\[a-z]+|\d+(?:\.\d+)?|[^\W\d_]+|\S")
_NUMBER = re.compile(r"\d")
_NEVER = frozenset('?;"“”„«»')
_OPERATORS = frozenset("+-*/^=%().,:!_{}[]<>≤≥|&")


def problem_key(prompt: str | tuple[Message, ...]) -> str:
    """Canonical key of a question, ``text:HASH``; of chat messages, all but the system's count."""
    return text_key(canonical_tokens(prompt_text(prompt)))


def prompt_text(prompt: str | tuple[Message, ...]) -> str:
    """The text that makes a problem what it is: of chat messages, all but the system's."""
    return prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt if m["role"] != "system")


def text_key(tokens: list[str]) -> str:
    """Canonical key of a text, given as its `canonical_tokens`."""
    return "text:" + hashlib.blake2b(" ".join(tokens).encode(), digest_size=16).hexdigest()


def arithmetic_key(a: int, operator: str, b: int) -> str:
    """Canonical key of one operation, with the operands of ``+`` and ``*`` in order: 7*3 has the key of 3*7."""
    first, second = sorted((a, b)) if operator in "+*" else (a, b)
    return f"arithmetic:{first}{operator}{second}"


def countdown_key(numbers: list[int], target: int) -> str:
    """Canonical key of a Countdown game: its numbers in order, and its target."""
    return f"countdown:{','.join(map(str, sorted(numbers)))}->{target}"


def canonical_tokens(text: str) -> list[str]:
    """The words, numbers and mathematical symbols of a text, in lower case, without what carries no meaning."""
    text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS)).translate(_CHARACTERS)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    raw = _TOKEN.findall(text.casefold())
    kept = [token for index, token in enumerate(raw) if _carries_meaning(raw, index)]
    return _in_order(kept)


def _carries_meaning(tokens: list[str], index: int) -> bool:
    """False for punctuation of prose: commas between words, full stops, quotes; 5!, f'(x), (1,2), 3:4 keep theirs."""
    token = tokens[index]
    before, after = (tokens[index - 1] if index else ""), (tokens[index + 1] if index + 1 < len(tokens) else "")
    if token in _NEVER:
        return False
    if token in (",", ":"):
        return bool(_NUMBER.match(before) and _NUMBER.match(after))
    if token == "." or (token == "\\"):
        return False
    if token == "!":
        return bool(_NUMBER.match(before)) or before == ")" or len(before) == 1
    if token == "'":
        return len(before) == 1 and before.isalpha() and not after.isalpha()
    return True


def _in_order(tokens: list[str]) -> list[str]:
    """A lone ``a * b`` or ``a + b`` of two integers gets its smaller operand first."""
    ordered = list(tokens)
    for index in range(1, len(tokens) - 1):
        a, operator, b = tokens[index - 1 : index + 2]
        around = (tokens[index - 2] if index >= 2 else "", tokens[index + 2] if index + 2 < len(tokens) else "")
        alone = not any(symbol in _OPERATORS and symbol not in "=" for symbol in around if symbol)
        if operator in ("*", "+") and a.isdecimal() and b.isdecimal() and alone and int(b) < int(a):
            ordered[index - 1], ordered[index + 1] = b, a
    return ordered
