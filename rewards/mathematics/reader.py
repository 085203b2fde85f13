"""From an answer's text to what can be compared: a tree, or words, or a letter of multiple choice."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from rewards.mathematics.nodes import Node, TooLarge, Unreadable
from rewards.mathematics.normalise import normalise
from rewards.mathematics.parse import MAX_LENGTH, Parser

MAX_TEXT = 2 * MAX_LENGTH
"""Characters of an answer as it was written; a longer one is not even normalised."""
TEXT_COMMAND = re.compile(r"\\text\s*\{([^{}]*)\}")
CHOICE = re.compile(r"\(?([A-Za-z])\)?(?:\s*[.:)]\s*.*|\s+[^*+=^_/<>].*)?\Z", re.DOTALL)
CHOICE_WITH_CONTENT = re.compile(r"\(([A-J])\)\s*\S|([A-J])[.:)]\s+\S")
CAPTION = re.compile(r"(?:^|(?<=, ))[A-Z]?[a-z]{2,}(?: [a-z]+)*\s*:\s*")
LEAD = re.compile(
    r"^(?!.*\bnot\b)(?:\\text\s*\{[^{}]*?(?:\bis\b|:|=)\s*\}|(?:[A-Za-z]{2,}\s+)*(?:is|are)\s+(?=[\d\\(\[-]))\s*"
)
NAMED = re.compile(r"^(?:\\text\s*\{[^{}]*\}|[A-Za-z]{4,}(?: [a-z]+)*)\s*(?==)")
SET_NAME = r"(?:\\(?P<set>[ZNQRC])|(?P<letter>[ZNQR]))\s*(?:[\^_]\s*(?:\{[^{}]*\}|[-+*0-9]))*"
DOMAIN = re.compile(
    r"(?P<open>\(|\\text\s*\{\s*\(?)?\s*(?:\b(?:where|with|for|all|any)\b|\\forall|\\text\s*\{[^{}]*\})*\s*"
    rf"(?P<name>[a-z](?:_\{{?\w\}}?)?)\s*\\in\s*{SET_NAME}\s*\)?\s*\}}?\s*\Z"
)
FOR_ALL = re.compile(
    r"[,\s]*(?:\\text\s*\{\s*)?(?<![A-Za-z])(?:for|where|with)\b(?=[^=<>\d]*\b(?:constants?|integers?|reals?|numbers?|arbitrary|"
    r"any|all|some|every|each)\b)[^=<>\d]*\Z"
)
NAMED_SET = re.compile(
    r"^\s*(?:\(?\s*(?:\\complement|C)_?\s*\{?[A-Z]\}?\s*)?\(?[A-Z]\)?\s*\\(?:cap|cup|setminus)\s*\(?[A-Z]\)?\s*=(?=\s*[\\(\[])"
)
MODULUS = re.compile(r"\s*\(?\s*\\?(?:pmod|mod|bmod)\s*\{?\s*(\w+)\s*\}?\s*\)?\Z")
UNREAD_LABEL = re.compile(r"(?=\s*\\(?!text|exists|forall|begin|neg))[^=<>,;\d]{1,40}(?==(?!=)[^=<>]*\Z)")
NAME_ALONE = re.compile(
    r"(?:(?!\\(?:text|neq|leq|geq|exists|forall|begin|neg|in|pm|cup|approx)(?![a-zA-Z]))[^=<>,;?!&\n]){1,40}"
)
"""What may stand before an equals sign as a name that cannot be read otherwise: ``P(A \\mid B)``, ``(a+b)_{\\max}``."""
DERIVATIVE = re.compile(r"^\s*\\frac\s*\{\s*d\s*\w?\s*\}\s*\{\s*d\s*\w\s*\}\s*=")
EXTREME = re.compile(r"^\s*\\?(?:max|min)(?:imum)?\s*(?:\\?\{[^{}]*\}|[A-Za-z](?:\([a-z]\))?)?\s*=")
MATHEMATICAL = re.compile(r"[=<>+*/^|\\∀]|(?<![A-Za-z])-|-(?![A-Za-z])")
SKELETON = re.compile(
    r"(?<!\d)\s*,|,(?!\s*\d)|[\s{}&.;]|\b(?:if|when|for)\b|\\(?:text|left|right)(?![a-zA-Z])|\\(?=[ZNQRC](?![a-zA-Z]))"
)
SHORT_INTEGER = re.compile(r"[1-9][0-9]{0,99}\Z")
ALL_REALS = re.compile(r"(?:all |every )?(?:the )?real(?:s| numbers?)\Z", re.IGNORECASE)
PROGRAMMED = re.compile(r"0[xXbBoO][0-9A-Fa-f]+\Z")
DATE = re.compile(r"\d{4}-\d{2}-\d{2}\Z|\d{1,2}/\d{1,2}/\d{4}\Z")
"""A date is no difference and no quotient."""
NO_SOLUTION = re.compile(
    r"(?:there (?:is|are) |(?:the )?(?:equation|system|it) has )?"
    r"no (?:real |integer )?(?:solutions?|roots?)(?: exists?)?\Z",
    re.IGNORECASE,
)
FILLERS = frozenset(
    (
        "a",
        "an",
        "the",
        "all",
        "any",
        "every",
        "each",
        "it",
        "is",
        "are",
        "there",
        "integer",
        "integers",
        "number",
        "numbers",
        "player",
        "wins",
        "win",
    )
)
"""Words that a short answer leaves out."""
CONNECTIVES = frozenset(("and", "or", "but", "maybe", "unless", "if"))
SAME_WORDS = {"solutions": "solution", "roots": "root", "primes": "prime", "triangles": "triangle", "doesn't": "not"}
ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
ORDINALS = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = {
    **{word: str(value) for value, word in enumerate(f"{ONES} eighteen nineteen".split())},
    **{word: str(value) for value, word in enumerate(ORDINALS.split()) if value},
    **{ten: str(10 * tens) for tens, ten in enumerate(TENS.split(), 2)},
    **{
        f"{ten}-{one}": str(10 * tens + ones)
        for tens, ten in enumerate(TENS.split(), 2)
        for ones, one in enumerate(ONES.split()[1:10], 1)
    },
}
REMARK = re.compile(
    r"(?<=[\d})])[\s,.;]*(?:\\text\s*\{\s*)?\(\s*"
    r"(?:since|because|as|i\.e\.|that is|which|where|from|by|using)\b.*\)\s*\}?\Z",
    re.DOTALL,
)
"""What explains a value behind it: ``55 (since 1 + ... + 10 = 55)``."""
FRENCH_INTERVAL = r"[\[\]]([^\[\],;]+)[,;]([^\[\],;]+)[\[\]]"
FRENCH = re.compile(rf"(?:[A-Za-z]\s*\\in\s*)?{FRENCH_INTERVAL}(?:\s*(?:\\cup|\\cap)\s*{FRENCH_INTERVAL})*\Z")
BUILDER = re.compile(r"\\\{\s*([a-z])\s*(?:\\mid|\||:)\s*(\1\s*=.*\\in.*)\\\}\Z", re.DOTALL)
"""A family as a set: {x | x = ..., k in Z}."""
OPEN_DECIMAL = re.compile(r"(-?\d+\.\d*?)(\d)(\2{2,})?\s*(?:\\ldots|…)\s*\Z")
UNDEFINED = re.compile(
    r"(?:d\.?n\.?e\.?|(?:it |the limit )?does not exist|doesn't exist|undefined|not defined)\Z", re.IGNORECASE
)
WORDS = re.compile(r"[^\W\d_]+|\d+(?:\.\d+)?", re.UNICODE)
ARTICLES = frozenset(("a", "an", "the"))


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer as it was read."""

    text: str
    """The normalised text."""
    node: Node | None
    """The tree, or None where the answer is words."""
    reason: str = ""
    """Why there is no tree."""
    domain: tuple[str, str] | None = None
    """The parameter of a family and its set: ``("k", "Z")`` for what ends in ``k \\in \\mathbb{Z}``."""


@lru_cache(maxsize=8192)
def read(text: str, thousands: bool = True) -> Reading:
    """The answer as a tree where it is mathematics. Raises `TooLarge` for what is too long or too deep."""
    if len(text) > MAX_TEXT:
        raise TooLarge(f"longer than {MAX_TEXT} characters")
    normal = normalise(text)
    if not normal:
        raise Unreadable("an empty answer")
    normal = _rewritten(normal)
    plain = TEXT_COMMAND.sub(r"\1", normal).strip()
    if UNDEFINED.match(plain):
        return Reading(r"\text{does not exist}", None, "words")
    if (
        len(plain) > 2
        and plain.isalpha()
        and "\\" not in plain
        and plain.lower() != "none"
        and plain.lower() not in NUMBER_WORDS
    ):
        return Reading(normal, None, "words")
    if plain[:1] == "0" and PROGRAMMED.match(plain):
        raise Unreadable(f"{plain!r} is a number of a programming language")
    if DATE.match(plain):
        return Reading(normal, None, "a date")
    if (value := NUMBER_WORDS.get(plain.lower())) is not None:
        return Reading(value, Node("num", (), Fraction(value)))
    if NO_SOLUTION.match(plain) or plain.lower() == "none":
        return Reading(normal, Node("set"))
    if ALL_REALS.match(plain):
        return Reading(normal, Node("reals"))
    normal, domain = _without_domain(normal)
    trimmed = CAPTION.sub("", NAMED.sub("y ", LEAD.sub("", _unnamed(normal))))
    try:
        return Reading(normal, Parser(trimmed, thousands).parse(), domain=domain)
    except TooLarge:
        raise
    except (Unreadable, RecursionError) as error:
        if match := UNREAD_LABEL.match(trimmed):
            try:
                return Reading(normal, Parser("y " + trimmed[match.end() :], thousands).parse(), domain=domain)
            except (Unreadable, RecursionError):
                pass  # the reason above is the one to tell
        left, equals, right = trimmed.rpartition("=")
        if equals and NAME_ALONE.fullmatch(left) and re.search("[A-Za-z]", left):
            try:
                return Reading(normal, Parser("y = " + right, thousands).parse(), domain=domain)
            except (Unreadable, RecursionError):
                pass
        return Reading(normal, None, str(error))


def _rewritten(normal: str) -> str:
    """Notation for which there is another one: remarks, French intervals, sets of a family, decimals that go on."""
    if "(" in normal and (match := REMARK.search(normal)) and match.start():
        normal = normal[: match.start()]
    if ("]" in normal or "[" in normal) and FRENCH.match(normal):
        intervals = list(re.finditer(r"[\[\]]([^\[\]]+)[\[\]]", normal))
        if any(match.group()[0] == "]" or match.group()[-1] == "[" for match in intervals):
            for match in reversed(intervals):
                opening = "[" if match.group()[0] == "[" else "("
                closing = "]" if match.group()[-1] == "]" else ")"
                inside = match.group(1).replace(";", ",")
                normal = f"{normal[: match.start()]}{opening}{inside}{closing}{normal[match.end() :]}"
    if r"\in" in normal and (match := BUILDER.match(normal)):
        normal = match.group(2).strip()
    if normal.endswith((r"\ldots", "…")) and (match := OPEN_DECIMAL.match(normal)):
        lead, digit, more = match.groups()
        if more:  # 0.333...
            value = Fraction(lead + "0") + Fraction(int(digit), 9) / 10 ** len(lead.partition(".")[2])
            value = (
                value
                if not lead.startswith("-")
                else Fraction(lead + "0") - Fraction(int(digit), 9) / 10 ** len(lead.partition(".")[2])
            )
            return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
        return lead + digit
    if r"\\" in normal and r"\begin" not in normal:
        normal = re.sub(r"\s*\\\\\s*", ", ", normal)
    return normal


def _without_domain(normal: str) -> tuple[str, tuple[str, str] | None]:
    r"""A family without ``, k \in \mathbb{Z}`` or "for any constant c" behind it, and the parameter's set."""
    domain = None
    if "mod" in normal and (match := MODULUS.search(normal)) and match.start():
        residue = normal[: match.start()].rstrip(" (")
        if "bmod" in match.group() and SHORT_INTEGER.match(residue) and SHORT_INTEGER.match(match.group(1)):
            return str(int(residue) % int(match.group(1))), None
        return residue, ("mod", match.group(1))
    if r"\in" in normal and (match := DOMAIN.search(normal)) and (rest := normal[: match.start()].rstrip(" ,;(")):
        normal, domain = rest, (match.group("name"), match.group("set") or match.group("letter"))
    if ("for" in normal or "w" in normal) and (match := FOR_ALL.search(normal)) and match.start():
        normal = normal[: match.start()].rstrip(" ,;(")
    return normal, domain


def _unnamed(normal: str) -> str:
    r"""``A \cap B = \{1\}`` as ``\{1\}``: what names a set or an extreme is no part of its value."""
    if "=" not in normal:
        return normal
    return DERIVATIVE.sub("", EXTREME.sub("", NAMED_SET.sub("", normal)))


def other_name(gold: Reading, answer: Reading) -> bool:
    r"""Whether what `_unnamed` takes off names different things: ``A \cap B`` and ``A \cup B``, max and min."""
    for pattern in (NAMED_SET, EXTREME, DERIVATIVE):
        names = [match.group() if (match := pattern.match(reading.text)) else "" for reading in (gold, answer)]
        if all(names):
            said, theirs = (sorted(re.findall(r"\\?[A-Za-z]+", name)) for name in names)
            return said != theirs if pattern is not EXTREME else ("min" in names[0]) != ("min" in names[1])
    return False


def same_words(gold: Reading, answer: Reading) -> bool:
    """Whether two texts say the same: prose by its words, unread notation by its characters."""
    plain, other = (TEXT_COMMAND.sub(r" \1 ", reading.text) for reading in (gold, answer))
    if MATHEMATICAL.search(plain) or MATHEMATICAL.search(other):
        skeletons = [SKELETON.sub("", text) for text in (plain, other)]
        return bool(skeletons[0]) and skeletons[0] == skeletons[1]
    said, theirs = words(gold), words(answer)
    if not said or not theirs:
        return False
    if "no" in (said[0], theirs[0]) and ["none"] in (said, theirs) and min(len(said), len(theirs)) == 1:
        return True
    if said[0] == theirs[0] == "infinitely":
        said, theirs = ([word for word in side if not word.startswith("solution")] for side in (said, theirs))
    if said[0] in ("yes", "no") and said[0] == theirs[0] and 1 in (len(said), len(theirs)):
        if CONNECTIVES & {*said, *theirs}:
            return False
        return said[0] == "yes" or (said + theirs)[-1] in ("impossible", "no") or "not" in (*said, *theirs)
    return said == theirs or _content(said) == _content(theirs) != []


def _content(said: list[str]) -> list[str]:
    kept = [SAME_WORDS.get(word, word) for word in said if word not in FILLERS]
    if len(kept) > 1 and kept[-1] in ("triangle", "line", "lines"):
        kept.pop()  # isosceles
    return [word for word in kept if word not in ("n", "k", "m", "p")] or kept


def words(reading: Reading) -> list[str]:
    """The words of an answer for comparing text: lower case, no articles, no punctuation."""
    plain = TEXT_COMMAND.sub(r" \1 ", reading.text).strip()
    found = WORDS.findall(plain)
    # the letter A, as in "Player A", is no article
    return [
        word if word == "A" and at else word.lower()
        for at, word in enumerate(found)
        if word.lower() not in ARTICLES or (word == "A" and at)
    ]


def choice_of_reference(text: str) -> str | None:
    """The letter of a reference such as ``B``, ``(D)``, ``(D) Alina`` or ``\\text{(C)}``, or None."""
    plain = TEXT_COMMAND.sub(r"\1", normalise(text)).strip()
    if re.fullmatch(r"\(?[A-J]\)?", plain):
        return plain.strip("()")
    match = CHOICE_WITH_CONTENT.match(plain)
    return (match.group(1) or match.group(2)) if match else None


def content_of_choice(text: str) -> str:
    """What a reference of multiple choice says beside its letter: ``Alina`` of ``(D) Alina``, or ""."""
    plain = TEXT_COMMAND.sub(r"\1", normalise(text)).strip()
    match = re.match(r"(?:\([A-J]\)|[A-J][.:)])\s*(\S.*)", plain, re.DOTALL)
    return match.group(1) if match else ""


OTHER_CHOICE = re.compile(
    r"\b(?:or|and)\s+(?:option\s+|choice\s+)?(?:\([A-J]\)|[A-J](?![A-Za-z']))|(?<![A-Za-z\d])\([A-J]\)(?!\s*[=<>])"
)
DENIED = re.compile(r"(?:is|are|was)(?:\s+not|n't)\b|(?:is|are|was)\s+(?:wrong|incorrect|false)\b|not\b|isn't\b")
CHOICES_BEGIN = re.compile(r"[\s$(\[{]*(?:\\\w+\s*\{\s*\(?)?[A-H](?![a-z])")
SEVERAL_CHOICES = re.compile(r"\(?[A-H]\)?(?:\s*(?:[,;、&]|\band\b|\s)?\s*\(?[A-H]\)?)+")


def several_choices(text: str, loose: bool = False) -> frozenset[str] | None:
    """The letters of a multiple choice with several right ones: ``ACD``, ``A, C``, ``A and C``; else None.

    A reference lists them in order; an answer (``loose``) in any.
    """
    if not text or text[0] not in "ABCDEFGH($\\[{" or not CHOICES_BEGIN.match(text):
        return None
    plain = TEXT_COMMAND.sub(r"\1", normalise(text)).strip(" {}[]")
    if not SEVERAL_CHOICES.fullmatch(plain):
        return None
    letters = re.findall(r"[A-H]", plain)
    if len(letters) < 2 or len(set(letters)) < len(letters) or (not loose and letters != sorted(letters)):
        return None
    return frozenset(letters)


def choice_of_answer(text: str) -> str | None:
    """The letter that an answer chooses: ``b``, ``(B)``, ``B. 12``; None where it is no single choice."""
    plain = re.sub(r"^(?:option|choice|answer)\s+", "", TEXT_COMMAND.sub(r"\1", normalise(text)).strip(), flags=re.I)
    if re.fullmatch(r"[\[{]\s*\(?[A-Ja-j]\)?\s*[\]}]", plain):
        plain = plain[1:-1].strip()
    match = CHOICE.match(plain)
    if match is None:
        return None
    if match.group(1).islower() and re.match(r"\s+\w", plain[match.end(1) :]):
        return None  # "a man" is no choice of A
    rest = plain[match.end(1) :].lstrip(") .:")
    if (
        re.match(r"(?:(?:,|and|or|&)\s*)?\(?[A-J]\)?(?![A-Za-z])", rest)
        or OTHER_CHOICE.search(rest)
        or (plain[match.end(1) :][:1] not in (".", ":", ")") and DENIED.match(rest))
    ):
        return None  # two letters are no choice, nor is one that is denied
    return match.group(1).upper()
