r"""From a completion to the answer in it, by stated rules.

Strict modes, for training; what they do not find is no answer, never a search for some number in the text:

- ``boxed``: the last ``\boxed{...}`` (or ``\fbox``) after the last ``</think>``, braces balanced. Earlier boxes are
  ignored; but boxes that stand together, with nothing, a comma, a semicolon or "and" between them, are one answer: a
  list. Joined by "or" they are a hedge: no answer. An unterminated or empty last box, a box after "not", and a box
  that a later sentence withdraws ("Wait, the answer is 8") are no answer. Text in an unclosed ``<think>`` is thought.
- ``answer_tag``: the content of the last ``<answer>...</answer>`` after the last ``</think>``; where it holds a box,
  the rule for boxes applies inside it.
- ``hash``: what follows the last ``####`` on its line (GSM8K), without a percent sign or an end token.

And ``lenient``, for grading other people's outputs: see `candidates`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from rewards.around_box import completed, is_mention, parts_of, withdrawn

MODES = ("boxed", "answer_tag", "hash", "lenient")

BRACES = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*(\{)?|\\[^a-zA-Z]|[{}]")
# What may stand between boxes that are one answer: mathematics delimiters, spaces, a joining word.
FILLER = re.compile(
    r"(?<![A-Za-z])(?:\\?[A-Za-z](?:_\{?\w+\}?)?|\([a-z, ]+\))\s*="
    r"|\\[()\[\],;:! ]|\\q?quad|\\text(?:rm|bf|it)?|\\mathrm|\\mbox|[\s${}~]+|\*\*"
)
MAX_TOGETHER = 64
SPECIAL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>")
END_TAG = re.compile(r"(?<!\s)\s*+</?[A-Za-z_]+>\Z")
COUNTED = re.compile(
    r"(?<=\d)(?:\s+(?!(?:or|and|not|no|to|than|minus|plus|times|hundred|thousand|million|billion|dozen|percent|cents?)\b)"
    r"[A-Za-z]+){2,}[.\s]*\Z"
)
"""What was counted, in two words or more; one word is a unit, which the grader reads."""
UNIT_LETTER = re.compile(r"(?<=\d)\s*([mgshlL])\.?\Z")
"""``26g``: after ``####`` stands a number, so that a letter is its unit and no variable."""
REMARK = re.compile(r"(?<=\d)[\s.,]*\((?=[^()]*[A-Za-z]{2})[^()]*\)[.\s]*\Z")
"""``42 (since 6*7=42)`` behind ####."""
HEADING = re.compile(r"[A-Z][A-Za-z]+(?![\d])")
APPROXIMATE = re.compile(r"\s*(?:\\approx|≈|\\sim|~)")
PERCENT = re.compile(r"\s*(?:\$\s*)?\\?%")
JOINERS = frozenset({"", ",", ";", "and", "&", ",and", ";and"})
HEDGE = re.compile(
    r"[,;]?(?:or|or/and|and/or|/)(?:maybe|perhaps|possibly|even|else|rather|just|is\s*it)?"
    r"|[,;]?(?:maybe|perhaps|possibly|alternatively|otherwise),?"
)
LOOSE_JOINER = re.compile(r"^[^.\n]{0,40}\band\b[\s}$]*\Z")
NEGATED = re.compile(
    r"(?:\b(?:not|never|cannot)|n't)\s*(?:equal(?:\s+to)?|be|have\s+been)?\s*(?:[A-Za-z]\s*=)?\s*[\s$(\\\[]*\Z",
    re.IGNORECASE,
)
TAG_MENTION = re.compile(r"\s*(?:tags?|elements?|markers?|and\s+</answer>|</answer>\s+tags?)\b|[`'\"]", re.IGNORECASE)
"""What follows a tag that is only named."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """What was found: the answer's text, or None and the reason."""

    text: str | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    """One ``\\boxed`` in a text; content is None where its brace never closes."""

    start: int
    end: int
    content: str | None


def check_mode(mode: str) -> None:
    """Raises `ValueError`, naming the modes, for a mode that does not exist."""
    if mode not in MODES:
        close = difflib.get_close_matches(str(mode), MODES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"extract: {mode!r} is none of {', '.join(MODES)}{hint}")


def extract(text: str, mode: str, parts: bool = False) -> Extraction:
    """The answer in a completion by one of the strict modes, or the first reading of the lenient one.

    ``parts``: the reference has several members, so that boxes behind (a), (b), ... are one answer together.
    """
    if mode == "boxed":
        return _boxed(text, parts)
    if mode == "answer_tag":
        return _answer_tag(text, parts)
    if mode == "hash":
        return _hash(text)
    check_mode(mode)
    for candidate in candidates(text):
        if candidate.strip():
            return Extraction(candidate)
    return Extraction(None, "nothing that could be an answer")


def find_boxed(text: str) -> list[Box]:
    """The boxes of a text in order of their beginning, in one pass; a box inside a closed box is part of it."""
    first = min((at for at in (text.find("\\boxed"), text.find("\\fbox")) if at >= 0), default=-1)
    if first < 0:
        return []
    boxes: list[Box] = []
    opened: list[tuple[int, int] | None] = []  # (start of \boxed, start of content) for a box, None for a bare brace
    for match in BRACES.finditer(text, first):
        token = match.group()
        if token == "{":
            opened.append(None)
        elif token == "}":
            begun = opened.pop() if opened else None
            if begun is not None:
                while boxes and boxes[-1].start > begun[0]:
                    boxes.pop()
                boxes.append(Box(begun[0], match.end(), text[begun[1] : match.start()]))
        elif match.group(1):
            opened.append((match.start(), match.end()))
        elif token.startswith(("\\boxed", "\\fbox")):
            boxes.append(Box(match.start(), match.end(), None))  # \boxed without a brace
    boxes += [Box(begun[0], len(text), None) for begun in opened if begun is not None]
    return sorted(boxes, key=lambda box: box.start)


def after_thought(text: str) -> str | None:
    """What follows the last ``</think>``; None where a thought was opened and never closed."""
    said = text.rpartition("</think>")[2]
    return None if "<think>" in said else said


def _boxed(text: str, parts: bool = False) -> Extraction:
    said = after_thought(text)
    if said is None:
        return Extraction(None, "the thought is not closed")
    found = find_boxed(said)
    if not found:
        return Extraction(None, "no box")
    boxes = [box for box in found if not is_mention(said, box.start, box.end, box.content)] or found[-1:]
    while len(boxes) > 1 and APPROXIMATE.match(boxes[-1].content or ""):
        boxes.pop()  # it illustrates the exact value before it
    if boxes[-1].content is None:
        return Extraction(None, "the last box is not terminated")
    group, hedged = _together(said, boxes)
    if hedged:
        return Extraction(None, "two answers joined by 'or'")
    if len(group) == 1 and parts and all(box.content is not None for box in boxes):
        group = boxes[-parts_of(said, [box.start for box in boxes]) :]
    contents: list[str | None] = [(box.content or "").strip() for box in group]
    if not all(contents):
        return Extraction(None, "the last box is empty")
    if NEGATED.search(said[max(0, group[0].start - 40) : group[0].start]):
        return Extraction(None, "the last box is negated")
    if len(group) == 1:
        contents = [completed(said, group[0].start, group[0].end, contents[0] or "")]
        if contents[0] is None:
            return Extraction(None, "the last box is a part of a formula")
    answer = ", ".join(dict.fromkeys(content for content in contents if content))
    rest = said[boxes[-1].end :]
    if PERCENT.match(rest):
        answer += r"\%"
    if reason := withdrawn(rest, answer):
        return Extraction(None, reason)
    return Extraction(answer)


def reference_boxes(text: str) -> str | None:
    """Several boxes that stand together in a reference, as one list; None where there are fewer than two."""
    boxes = [box for box in find_boxed(text) if box.content]
    group = _together(text, boxes, loosely=True)[0] if boxes else []
    contents = list(dict.fromkeys((box.content or "").strip() for box in group))
    return ", ".join(contents) if len(contents) > 1 else None


def _together(text: str, boxes: list[Box], loosely: bool = False) -> tuple[list[Box], bool]:
    """The boxes that stand together with the last one, and whether an "or" joins some of them.

    Loosely: a few words around the "and" do no harm, as in "\\boxed{1} for part (a) and \\boxed{2}".
    """
    group = [boxes[-1]]
    hedged = False
    for box in reversed(boxes[:-1]):
        if box.content is None:
            break
        between = text[box.end : group[-1].start]
        if len(between) > 60 or len(group) > MAX_TOGETHER:
            break
        joiner = FILLER.sub("", between).lower()
        if HEDGE.fullmatch(joiner):
            hedged = True
        elif joiner not in JOINERS and not (loosely and LOOSE_JOINER.search(between)):
            break
        group.append(box)
    return group[::-1], hedged


def _answer_tag(text: str, parts: bool = False) -> Extraction:
    said = after_thought(text)
    if said is None:
        return Extraction(None, "the thought is not closed")
    opened, rest = said.rpartition("<answer>")[1:]
    while opened and TAG_MENTION.match(rest) and ("</answer>" not in rest or rest.lstrip().startswith("</answer>")):
        said = said.rpartition("<answer>")[0]
        opened, rest = said.rpartition("<answer>")[1:]
    if not opened:
        return Extraction(None, "no <answer>")
    content, closed, _ = rest.partition("</answer>")
    if not closed:
        return Extraction(None, "the last <answer> is not terminated")
    if not content.strip():
        return Extraction(None, "the last <answer> is empty")
    return _boxed(content, parts) if find_boxed(content) else Extraction(content.strip())


def _hash(text: str) -> Extraction:
    lines = [piece.lstrip(" \t") for piece in text.split("####")[1:]]
    if not lines:
        return Extraction(None, "no ####")
    rest = lines[-1]
    if len(lines) > 1 and HEADING.match(rest) and re.match(r"[-−$£€]?\s?[\d.]", lines[-2]):
        rest = lines[-2]  # "#### Check" behind the answer is a heading
    first, _, next_lines = rest.partition("\n")
    if not first.strip() and re.match(r"\s*[-−$£€]?\s?[\d.][\d,.]*\s*(?:\n|\Z)", next_lines):
        first = next_lines.strip().partition("\n")[0]
    answer = END_TAG.sub("", SPECIAL_TOKEN.sub("", first).strip())
    answer = REMARK.sub("", answer)
    answer = COUNTED.sub("", answer)
    answer = re.sub(r"(?<=\d)\s*\\?%\Z", "", answer)  # the number is what stands there; its unit is the question's
    return Extraction(answer) if answer else Extraction(None, "nothing after the last ####")


def unit_letter(answer: str, reference: str) -> str:
    """``26g`` behind ``####`` as ``26\\text{ g}``, where the reference has no such letter of its own."""
    return answer if UNIT_LETTER.search(reference) else UNIT_LETTER.sub(r"\\text{ \1}", answer)


# -- lenient -----------------------------------------------------------------------------------------------------

ANSWER_WORDS = r"answer|réponse|respuesta|antwort|risposta|resposta|ответ|答案|答|الإجابة|الجواب|उत्तर|答え"
FINAL = re.compile(
    rf"(?:final\s+(?:{ANSWER_WORDS})\s*(?:is|:)[\s*:]*)(?:the\s+final\s+answer\s+is[\s:]*)?(?P<rest>.*?)"
    r"(?=\.?\s{0,9}i hope|\.\s|\.?\n|\.?\Z)",
    re.IGNORECASE | re.DOTALL,
)
ANSWER = re.compile(rf"(?:{ANSWER_WORDS})(?P<rest>[^\n]*)", re.IGNORECASE)
LEAD = re.compile(r"\W{0,4}(?:is|est|es|ist|was|be|:|：|=|是|为|為|هو|هي)[\s:：*]*", re.IGNORECASE)
OPENING = re.compile(r"\$\$?|\\[\[(]")
CLOSING = {
    mark: re.compile(pattern)
    for mark, pattern in (("$$", r"\$\$"), ("$", r"(?<!\\)\$"), (r"\[", r"\\\]"), (r"\(", r"\\\)"))
}
NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])[-−+]?(?:\d{1,3}(?:[  ]\d{3}){1,20},\d{1,2}(?!\d)"
    r"|\d{1,3}(?:[,  ]\d{3}){1,20}(?:\.\d+)?(?!\d)|\d+(?::\d+)+"
    r"|\d+(?:[.,]\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?|\.\d+)"
    r"(?:\s*(?:\\?%|percent|pct))?"
)
DECIMAL_COMMA = re.compile(r"^(-?(?:\d+(?=,\d{1,2}\b|,\d{4,}\b)|0)),(\d+)(?=\s*(?:%|\Z))")
CHOICE = re.compile(r"(?<![A-Za-z'’])\(?([A-J])\)?(?![A-Za-z'’])")

SMALL_CHOICE = re.compile(r"\W{0,4}(?:is|:)?\W{0,4}([a-j])\W{0,4}")
SEVERAL = re.compile(r"\W{0,4}[A-J](?:\W{0,4}(?:\b(?:and|or)\b|&|/)\W{0,4}[A-J]\b)+\W{0,4}(?![A-Za-z'’])")
PICKED = re.compile(
    r"(?:\b(?:it(?:'s| is| must be| has to be| would be)|"
    r"choose|pick|select|go with|going with|opt for|option is|choice is)"
    r"|选择?)\s*(?:(?:option|choice|answer)\s*)?[*(]*([A-J])\b(?![a-z'’])"
)
FIRST = re.compile(r"\W*([A-J])\)?\s*[,;]")
NOT_BEFORE = re.compile(r"(?:\bnot|n't|不是|不)\s*(?:be|option)?\s*\(?\Z", re.IGNORECASE)
NOT_BEHIND = re.compile(r"\)?\s*(?:is|are|was)?\s*(?:not|n't|isn't|wrong|incorrect|false)\b", re.IGNORECASE)
JOINED = re.compile(r"\s*(?:[,;]|[,;]?\s*(?P<word>and|or))\s*\Z", re.IGNORECASE)
WORDY = re.compile(
    r"(?<![\\A-Za-z{])(?!(?:sqrt|cbrt|floor|ceil|binom|arc(?:sin|cos|tan)|inf(?:ty|inity)|theta|alpha|beta)\b)"
    r"(?:[A-Za-z]{4,}|[Ii]t(?:'s)?|[Ss]o|[Ww]e|[Tt]he|is|are|was|of|by|has|had|for)(?![A-Za-z])"
)
BARE_LATEX = re.compile(r"-?\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\}|-?(?:(?<!\d)\d+)?\\sqrt\s*\{[^{}]*\}")
COUNT = re.compile(r"-?\d[\d.,]*\s+[a-z]+\.?\Z")
YES_NO = re.compile(r"\W*(yes|no)\b\s*[,.;]", re.IGNORECASE)
NAMES = re.compile(r"\s*(?:[A-Za-z]|\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])+\s*\))\s*")
"""``x`` or ``(a,b)``: what is asked for or counted, no answer where other formulas stand."""
NUMBERS = re.compile(r"\b(?:are|were)\s+(-?\d[\d./]*(?:,\s*-?\d[\d./]*)*,?\s+and\s+-?\d[\d./]*)\s*\Z")
ASIDE = re.compile(
    r"\s{0,3}\((?:that is|that's|i\.\s?e\.|which|about|approximately|roughly|or|since|because|as)\b"
    r"[^()]{0,200}\)(?=[\s.]*\Z)"
    r"|(?<=\d) (?:when|since|because)\s[^.$\\\n]{0,200}(?=\.?\s*\Z)"
)
"""A remark behind the last number."""
WITH_UNIT = re.compile(r"\s*(-?[\d.,]+)\s*[mgshlL](?:[²³]|\^?[23])?[\s.]*\Z")
PLAIN_BRACKETS = re.compile(r"(?<![A-Za-z\d])[(\[]\s*-?[\d.][\d./ ]*(?:,\s*-?[\d.][\d./ ]*)+[)\]]")
HASH_LINE = re.compile(
    r"####\s*[-−]?[$£€]?\s?[-−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)\s?%?"
    r"(?:(?!st|nd|rd|th)[A-Za-z]{1,3}\b)?(?: [A-Za-z]+){0,4}\.?\Z"
)
"""The last line of a GSM8K solution; ``#### Step 2`` is a heading."""
LONGEST_HASH_LINE = 80


DENIED = re.compile(
    r"(?:\b(?:is|are|was|be)\s+(?:definitely\s+|certainly\s+)?not|\bisn't|\bcannot\s+be|\bcan't\s+be|\bnot)\s+(?:equal\s+to\s+)?\$?[-−]?\d[\d,]*(?:\.\d+)?\$?"
    r"(?=[\s.,;!]|\Z)(?:\s*,?\s*but\b)?"
)
"""A number that is said not to be the answer."""
EITHER = re.compile(r"(?<![\w.,/])(-?\d[\d,]*(?:\.\d+)? or -?\d[\d,]*(?:\.\d+)?)[\s.$]*\Z")


def candidates(text: str, choice: bool = False, reference: str = "") -> Iterator[str]:
    r"""Readings of a whole response, best first, as math-verify ranks them; the first that can be read is taken.

    A last line ``#### 18``, "final answer is ..." and ``\boxed`` (whichever stands last), then "answer: ...", then the
    last formula, then the last number. With ``choice`` (the reference is a letter) the letter is looked for instead.
    """
    said = DENIED.sub(" ", text.rpartition("</think>")[2].strip() or text)
    if not choice and (hedge := EITHER.search(said)):
        yield hedge.group(1)
        return
    last = SPECIAL_TOKEN.sub("", said.rstrip()).rpartition("\n")[2].strip()
    if len(last) <= LONGEST_HASH_LINE and HASH_LINE.match(last):
        yield unit_letter(_hash(last).text or "", reference)
    boxes = [box for box in find_boxed(said) if box.content]
    finals = list(FINAL.finditer(said))
    if boxes and not (finals and finals[-1].start() > boxes[-1].start and not find_boxed(finals[-1].group())):
        group, _ = _together(said, [box for box in boxes if box.content is not None], loosely=True)
        joined = ", ".join(dict.fromkeys((box.content or "").strip() for box in group))
        yield joined + r"\%" if PERCENT.match(said[group[-1].end :]) else joined
    phrases = [match.group("rest") for match in finals[-1:]] + [
        m.group("rest") for m in list(ANSWER.finditer(said))[-1:]
    ]
    if choice:
        yield from _letters(said, phrases)
        return
    if match := WITH_UNIT.match(said):
        yield match.group(1)
    if COUNT.match(said):
        yield said
    if not WORDY.search(_without_formulas(said, "$$")):
        yield said.strip()  # the whole text is the answer itself
    for phrase in phrases:
        yield from _pieces(phrase, last=False)
    yield from _pieces(ASIDE.sub("", said), last=True)
    if match := YES_NO.match(said):
        yield match.group(1)


def _letters(said: str, phrases: list[str]) -> Iterator[str]:
    if SEVERAL.fullmatch(said):
        yield said  # no single choice
    for phrase in phrases:
        if match := SMALL_CHOICE.fullmatch(phrase):
            yield match.group(1).upper()
        if match := CHOICE.search(phrase):
            several = SEVERAL.match(phrase, match.start())
            yield several.group() if several else match.group(1)
    if match := re.match(r"\W*([A-J])\s*[.):。：]", said):
        yield match.group(1)
    if chosen := PICKED.findall(said):
        yield chosen[-1]
    if match := FIRST.match(said):
        yield match.group(1)
    letters = [match.group(1) for match in CHOICE.finditer(said) if not _ruled_out(said, match)]
    yield from letters[-1:] or CHOICE.findall(said)[-1:]


def _ruled_out(said: str, letter: re.Match[str]) -> bool:
    return bool(
        NOT_BEFORE.search(said[max(0, letter.start() - 24) : letter.start()])
        or NOT_BEHIND.match(said[letter.end() : letter.end() + 40])
    )


def _pieces(text: str, last: bool) -> Iterator[str]:
    """The parts of a sentence that could be meant: what follows "is", its formulas, its numbers."""
    lead = LEAD.match(text)
    if not last:
        yield text[lead.end() if lead else 0 :].strip(' \n\t."').rstrip("\\")
        _, verb, rest = text.rpartition(" is ")
        if verb:
            yield rest.strip().rstrip(".")
    formulas = _formulas(text)
    numbers = [match.group() for match in NUMBER.finditer(_without_formulas(text, " "))] or NUMBER.findall(text)
    if last and formulas and NAMES.fullmatch(formulas[-1]):
        told = NUMBER.findall(text[list(spans(text))[-1][1] :])
        yield from told[-1:]  # the value of $x$ is 7
    if last and not formulas and (several := NUMBERS.search(text.rstrip(". "))):
        yield several.group(1)
    if formulas:
        told = [formula for formula in formulas if not NAMES.fullmatch(formula)] if last else []
        yield (told or formulas)[-1 if last else 0]
    if last and not formulas and (bare := BARE_LATEX.findall(text)):
        yield bare[-1]
    if last and not formulas and (brackets := PLAIN_BRACKETS.findall(text)):
        yield brackets[-1]
    if numbers:
        number = numbers[-1] if last else numbers[0]
        yield decimal_comma(number)


def _formulas(text: str) -> list[str]:
    """The formulas of a text; those joined by a comma, "and" or "or" are one."""
    found: list[str] = []
    end = -1
    for begun, ended, formula in spans(text):
        joiner = JOINED.match(text[end:begun]) if end >= 0 else None
        if joiner is not None:
            found[-1] += rf" \text{{ {joiner['word'].lower()} }} {formula}" if joiner["word"] else f", {formula}"
        else:
            found.append(formula)
        end = ended
    return found


def spans(text: str) -> Iterator[tuple[int, int, str]]:
    r"""Beginning, end and content of each formula in ``$$``, ``\[``, ``$``, ``\(``, in one pass over the text."""
    at, ends = 0, dict[str, int]()  # where each kind is closed next, found once for all openings before it
    while begun := OPENING.search(text, at):
        at = begun.start() + 1
        for mark in (begun.group(), "$") if begun.group() == "$$" else (begun.group(),):
            first = begun.start() + len(mark)
            if mark == "$" and text[begun.start() - 1 : begun.start()] == "\\":
                continue
            if ends.get(mark, -1) <= first:
                close = CLOSING[mark].search(text, first + 1)
                ends[mark] = close.start() if close else len(text) + 1
            if ends[mark] <= len(text):
                at = ends[mark] + len(mark)
                yield begun.start(), at, text[first : ends[mark]]
                break


def _without_formulas(text: str, filler: str) -> str:
    kept, end = list[str](), 0
    for begun, ended, _ in spans(text):
        kept += text[end:begun], filler
        end = ended
    return "".join((*kept, text[end:]))


def decimal_comma(text: str) -> str:
    """``2,74``, ``0,111`` and ``1 234,5`` with a point; ``1,234`` stays, its comma separates thousands."""
    if re.fullmatch(r"-?\d{1,3}(?:[ .\u00a0\u202f]\d{3})+,\d+", text.strip()):
        return re.sub(r"[ .\u00a0\u202f]", "", text.strip()).replace(",", ".")
    return DECIMAL_COMMA.sub(r"\1.\2", text)
