"""MathVerifier: is the answer in a completion the reference? Exact and cheap first, sympy last and behind guards.

Three stages, each only for what the one before could not decide:

1. strings and plain numbers (integers, decimals, fractions): no parser at all;
2. `rewards.mathematics`: its own reader, exact fractions, and comparison that is proved where it can be;
3. math-verify with sympy (`rewards.mathematics.second`), for what that reader does not know, behind guards.

The policy (what counts as equal) is in rewards/README.md. Nothing here limits time: run it in a `GradingPool`.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from fractions import Fraction
from typing import Any

from rewards.extract import candidates, check_mode, decimal_comma, extract, reference_boxes, unit_letter
from rewards.mathematics.nodes import Node, Unreadable
from rewards.mathematics.reader import (
    MAX_TEXT,
    Reading,
    choice_of_answer,
    choice_of_reference,
    content_of_choice,
    other_name,
    read,
    same_words,
    several_choices,
    words,
)
from rewards.verdict import BadReference, Outcome, Verdict

PLAIN = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?\Z|-?\.\d+\Z")
SIMPLE_FRACTION = re.compile(r"(-?)(?:\\[dt]?frac\{(\d{1,30})\}\{(\d{1,30})\}|(\d{1,30})\s*/\s*(\d{1,30}))\Z")
FORMS = ("evaluated", "any")
SIGNS = ("optional", "required")
SEVERAL = re.compile(r"[,;、]|\\text\s*\{[^{}]*\band\b|\band\b|\\q?quad|\\\\|\\pm|\\begin")
"""What a reference with several members holds."""
APPROXIMATE = re.compile(r"[\s$]*(?:\\approx|≈|\\sim|about|approximately)\s*")
BLANKS = re.compile(r"\s*\$[^$;]+\$(?:\s*[;；]\s*\$[^$;]+\$)+\s*")
"""Blanks to be filled in order: ``$5$;$10$``."""
MONEY = (
    "\\$",
    "€",
    "£",
    "¥",
    "₹",
    "euro",
    "pound",
    "dollar",
    "USD",
    "EUR",
    "GBP",
    "yen",
    "Rs",
    "INR",
    "rup",
    "RMB",
    "JPY",
)
CURRENCIES = {
    "$": re.compile(r"\\\$|\bUSD\b|\bdollars?\b|US\$|\A\$(?=\d)[^$]*\Z"),
    "€": re.compile(r"€|\\euro\b|\bEUR\b|\beuros?\b"),
    "£": re.compile(r"£|\\pounds\b|\bGBP\b"), "¥": re.compile(r"¥|\bJPY\b|\byen\b|\byuan\b|\bRMB\b"),
    "₹": re.compile(r"₹|\bRs\b|\bINR\b|\brupees?\b"),
}  # fmt: skip
CENTS = re.compile(r"\bcents?\b|\\?¢")
THOUSANDS = re.compile(r"\d,\d{3}(?!\d)")
MAX_PLAIN = 60
MIN_SENTENCE = 80
"""Characters from which a reference that cannot be read is a sentence with an answer in it."""


class MathVerifier:
    """Grades mathematical answers against a reference answer such as ``72``, ``\\frac{3}{4}`` or ``(-\\infty, 2]``.

    Args: extract: where the answer stands in the completion, one of `rewards.extract.MODES`; second_stage: whether
    math-verify and sympy are asked about what the own reader does not know; cache: how many verdicts are remembered
    by (reference, extracted answer); form: ``evaluated``, an answer must be worked out as far as the reference, or
    ``any`` (rewards/README.md; None: ``any`` with lenient extraction, else ``evaluated``); percent_sign and
    base_subscript: ``optional``, ``25\\%`` answers 25 and ``52`` answers ``52_8``, or ``required``, they do not.
    Scores: 1.0 CORRECT; 0.0 WRONG, NO_ANSWER, UNREADABLE.
    """

    lowest_score = 0.0

    def __init__(
        self,
        extract: str = "boxed",
        second_stage: bool = True,
        cache: int = 10_000,
        form: str | None = None,
        percent_sign: str = "optional",
        base_subscript: str = "optional",
    ) -> None:
        check_mode(extract)
        self.extract = extract
        self.form = form or ("any" if extract == "lenient" else "evaluated")
        if self.form not in FORMS:
            raise ValueError(f"form: {form!r} is none of {', '.join(FORMS)}")
        for name, asked in (("percent_sign", percent_sign), ("base_subscript", base_subscript)):
            if asked not in SIGNS:
                raise ValueError(f"{name}: {asked!r} is none of {', '.join(SIGNS)}")
        self.signs = percent_sign == "optional", base_subscript == "optional"
        self.second_stage = second_stage
        self.cache = cache
        self._known: OrderedDict[tuple[str, str], Verdict] = OrderedDict()

    def warm_up(self) -> None:
        """Import what is slow to import before anybody's time runs."""
        import flint  # noqa: F401

        import rewards.mathematics.compare  # noqa: F401

        if self.second_stage:
            from rewards.mathematics import second

            second.warm_up()

    def check_reference(self, reference: Any) -> None:
        """Raises `BadReference` for what is no text or number, is empty, or cannot be read."""
        text = _reference_text(reference)
        if not any(char.isalnum() for char in text) and not any(mark in text for mark in ("∞", "∅", r"\{", "{}")):
            raise BadReference(f"reference {text!r:.200} holds no answer")
        try:
            reading = read(text)
        except Unreadable as error:
            raise BadReference(f"reference {text!r:.200} cannot be read: {error}") from None
        if choice_of_reference(text) is not None:
            return
        if reading.node is None and not words(reading):
            raise BadReference(f"reference {text!r:.200} cannot be read: {reading.reason}")
        if reading.node is None and text.count("{") != text.count("}"):
            raise BadReference(f"reference {text!r:.200} cannot be read: its braces do not balance")
        if reading.node is not None:
            self._check_value(text, reading)

    def grade(self, completion: str, reference: Any) -> Verdict:
        """CORRECT or WRONG; NO_ANSWER when extraction finds none; UNREADABLE for what is no mathematics."""
        gold = _reference_text(reference)
        if self.extract == "lenient":
            return self._grade_lenient(completion, gold)
        found = extract(completion, self.extract, parts=len(gold) > 2 and SEVERAL.search(gold) is not None)
        if found.text is None:
            return Verdict(0.0, Outcome.NO_ANSWER, {"reason": found.reason})
        return self.grade_answer(unit_letter(found.text, gold) if self.extract == "hash" else found.text, gold)

    def grade_answer(self, answer: str, reference: Any) -> Verdict:
        """Judge a bare answer: no extraction."""
        gold = _reference_text(reference)
        key = (gold, answer)
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        verdict = self._judge(answer, gold)
        if self.cache:
            self._known[key] = verdict
            if len(self._known) > self.cache:
                self._known.popitem(last=False)
        return verdict

    def _grade_lenient(self, completion: str, gold: str) -> Verdict:
        """The first candidate that can be read decides; later ones are no second chance."""
        letter = choice_of_reference(gold)
        found = list(dict.fromkeys(candidates(completion, choice=letter is not None, reference=gold)))
        readable = found if letter is not None else [text for text in found if self._is_readable(text)]
        for candidate in (readable or found)[:1]:
            verdict = self.grade_answer(candidate, re.sub(r"^[\s$]*0,(?=\d+[\s$]*$)", "0.", gold))
            if verdict.score == 0 and (pointed_gold := decimal_comma(gold)) != gold and PLAIN.match(candidate):
                return self.grade_answer(candidate, pointed_gold)
            if verdict.score == 0 and (pointed := decimal_comma(candidate)) != candidate and PLAIN.match(gold):
                return self.grade_answer(pointed, gold)
            return verdict
        return Verdict(0.0, Outcome.NO_ANSWER, {"reason": "nothing that could be an answer"})

    def _is_readable(self, text: str) -> bool:
        try:
            return read(text).node is not None
        except Unreadable:
            return False

    # -- the stages --------------------------------------------------------------------------------------------------

    def _judge(self, answer: str, gold: str) -> Verdict:
        detail: dict[str, Any] = {"answer": answer[:1000]}
        if len(answer) > MAX_TEXT:
            return Verdict(0.0, Outcome.UNREADABLE, detail | {"reason": f"longer than {MAX_TEXT} characters"})
        if r"\$" in gold and CENTS.search(answer):
            return _verdict(False, detail | {"stage": "units"})
        if any(mark in gold for mark in MONEY) and (mine := _currency(gold)) and _currency(answer) not in ("", mine):
            return _verdict(False, detail | {"stage": "units"})
        if ";" in gold and BLANKS.fullmatch(gold) and ";" in answer.replace("；", ";"):
            return self._blanks(answer, gold, detail)
        quick = _plain_verdict(answer.strip(), gold.strip())
        if quick and self.form == "evaluated" and not _is_plain_form(answer.strip(), gold.strip()):
            return _verdict(False, detail | {"stage": "form", "reason": "not written as the reference is"})
        if quick is not None:
            return _verdict(quick, detail | {"stage": "plain"})
        letters = several_choices(gold)
        if letters is not None:
            return _verdict(several_choices(answer, loose=True) == letters, detail | {"stage": "choice"})
        letter = choice_of_reference(gold)
        if letter is not None:
            chosen = choice_of_answer(answer)
            content = content_of_choice(gold)
            if chosen is None and content:
                return self._judge(answer, content)
            said = content_of_choice(answer) if content and chosen == letter else ""
            if said and PLAIN.match(content) and PLAIN.match(said):
                return self._judge(said, content)
            return _verdict(chosen == letter, detail | {"stage": "choice"})
        try:
            golden = self._read_reference(gold)
        except Unreadable as error:
            raise BadReference(f"reference {gold!r:.200} cannot be read: {error}") from None
        try:
            return self._compare(golden, answer, detail)
        except Unreadable as error:
            return Verdict(0.0, Outcome.UNREADABLE, detail | {"reason": str(error)})

    def _blanks(self, answer: str, gold: str, detail: dict[str, Any]) -> Verdict:
        """Blanks separated by semicolons keep their order."""
        golds, answers = (re.split("[;；]", text) for text in (gold, answer))
        right = len(golds) == len(answers) and all(
            self._judge(mine.strip().strip("$"), theirs.strip().strip("$")).score == 1.0
            for mine, theirs in zip(answers, golds, strict=True)
        )
        return _verdict(right, detail | {"stage": "blanks"})

    def _read_reference(self, gold: str) -> Reading:
        """The reference as a tree; lenient: a sentence stands for the answer in it, and all its boxes are meant."""
        if self.extract != "lenient":
            return read(_whole_reference(gold))
        boxes = reference_boxes(gold)
        golden = read(boxes or _whole_reference(gold))
        if golden.node is None and len(gold) > MIN_SENTENCE and "$" in gold:
            said = next((text for text in candidates(gold) if self._is_readable(text)), None)
            golden = read(said) if said else golden
        return golden

    def _compare(self, golden: Reading, answer: str, detail: dict[str, Any]) -> Verdict:
        if "." in golden.text and (approximate := APPROXIMATE.match(answer)):
            answer = answer[approximate.end() :]
        given = read(answer)
        if golden.domain and given.domain and golden.domain[1] != given.domain[1]:
            return _verdict(False, detail | {"stage": "domain"})
        if "=" in golden.text and "=" in given.text and other_name(golden, given):
            return _verdict(False, detail | {"stage": "label"})
        if golden.text == given.text:
            return _verdict(True, detail | {"stage": "string"})
        if golden.node is not None and given.node is not None:
            right = self._same(golden, given)
            if not right and (THOUSANDS.search(golden.text) or THOUSANDS.search(given.text)):
                right = self._without_thousands(golden, answer)
            if right and self.form == "evaluated" and (reason := self._form_fault(golden, given)):
                return _verdict(False, detail | {"stage": "form", "reason": reason})
            return _verdict(right, detail | {"stage": "reader"})
        if golden.node is None and same_words(golden, given):
            return _verdict(True, detail | {"stage": "words"})
        if self.second_stage:
            from rewards.mathematics import second

            if second.agrees(golden.text, given.text):
                return _verdict(True, detail | {"stage": "math-verify"})
        if given.node is None and golden.node is not None:
            raise Unreadable(given.reason)
        return _verdict(False, detail | {"stage": "words"})

    def _same(self, golden: Reading, given: Reading) -> bool:
        """Whether two trees are the same answer; lenient ones also by the last side of their equations."""
        from rewards.mathematics.compare import matches
        from rewards.mathematics.families import same_family
        from rewards.mathematics.interpret import last_side, names_value
        from rewards.mathematics.scalars import SCALARS, Signs

        assert golden.node is not None
        assert given.node is not None
        gold, answer = golden.node, given.node
        signs = Signs(*self.signs)
        if same_family(gold, golden.domain, answer, given.domain):
            return True
        if (golden.domain or given.domain) and "mod" not in (golden.domain or given.domain or ()):
            answer = _with_parameter(golden, given)
        if self.extract != "lenient":
            return matches(gold, answer, signs=signs)
        if answer.op == "list" and answer.value == "or" and gold.op in SCALARS:  # 3/4, or 75 %
            return all(matches(gold, member) for member in answer.args)
        asked = last_side(gold) if names_value(gold) else gold
        ends = asked, last_side(answer, as_equation=asked.op == "rel")
        try:
            if matches(gold, answer, bare_tuples=True, signs=signs):
                return True
        except Unreadable:
            if ends[1] == answer:
                raise
        return ends != (gold, answer) and matches(*ends, bare_tuples=True, signs=signs)

    def _form_fault(self, golden: Reading, given: Reading) -> str:
        from rewards.mathematics.form import fault
        from rewards.mathematics.interpret import interpret, named_value, reference_meaning
        from rewards.mathematics.scalars import SCALARS

        assert golden.node is not None
        assert given.node is not None
        gold, answer = reference_meaning(golden.node), interpret(given.node)
        if gold.op in SCALARS and (value := named_value(answer)) is not None:
            answer = value
        return fault(gold, answer)

    def _without_thousands(self, golden: Reading, answer: str) -> bool:
        """``100,200`` may be a number or a list: the reference's other reading counts where it is a list."""
        from rewards.mathematics.compare import matches

        gold, given = read(golden.text, thousands=False), read(answer, thousands=False)
        if gold.node is None or given.node is None or gold.node.op != "list":
            return False
        return matches(gold.node, given.node)

    def _check_value(self, text: str, reading: Reading) -> None:
        from rewards.mathematics.interpret import FALSE, expand, reference_meaning
        from rewards.mathematics.scalars import check_value

        assert reading.node is not None
        meaning = reference_meaning(reading.node)
        if meaning.op == FALSE:
            raise BadReference(f"reference {text!r:.200} contradicts itself: {meaning.value}")
        try:
            for value in expand(meaning.args[0] if meaning.op == "label" else meaning):
                check_value(value)
        except Unreadable as error:
            raise BadReference(f"reference {text!r:.200} cannot be graded against: {error}") from None


def _with_parameter(golden: Reading, given: Reading) -> Node:
    """The answer with its parameter named as in the reference: k in one family may be n in the other."""
    from rewards.mathematics.evaluate import substitute, symbols
    from rewards.mathematics.families import unlabelled

    gold, answer = golden.node, given.node
    assert gold is not None
    assert answer is not None
    name = golden.domain[0] if golden.domain else given.domain[0] if given.domain else ""
    free, others = symbols(unlabelled(gold)), symbols(unlabelled(answer))
    if golden.domain and given.domain:
        theirs = given.domain[0]
    else:
        missing = (others - free) if golden.domain else (free - others)
        if len(missing) != 1:
            return answer
        theirs = next(iter(missing)) if golden.domain else name
        name = name if golden.domain else next(iter(missing))
    if theirs == name or name in others:
        return answer
    return substitute(answer, theirs, Node("sym", (), name))


def _currency(text: str) -> str:
    """The sign of the one currency that a text names, or ""."""
    if text.isdigit():
        return ""
    found = [sign for sign, pattern in CURRENCIES.items() if pattern.search(text)]
    return found[0] if len(found) == 1 else ""


def _verdict(right: bool, detail: dict[str, Any]) -> Verdict:
    return Verdict(1.0, Outcome.CORRECT, detail) if right else Verdict(0.0, Outcome.WRONG, detail)


def _reference_text(reference: Any) -> str:
    if isinstance(reference, bool) or not isinstance(reference, str | int | float | Fraction):
        raise BadReference(
            f"reference {reference!r:.200} is a {type(reference).__name__}, it must be a str or a number"
        )
    text = str(reference)
    if isinstance(reference, float) and text in ("nan", "inf", "-inf"):
        raise BadReference(f"reference {text} is not a finite number")
    if not text.strip():
        raise BadReference("the reference is empty")
    if "####" in text:  # GSM8K's worked solution stands for what it ends with
        return extract(text, "hash").text or text
    return text


def _whole_reference(text: str) -> str:
    """A reference that is a worked solution stands for what it boxes, one behind "about" for its number."""
    text = re.sub(r"^([\s$]*)(?:\\approx|≈)", r"\1", text)
    if "boxed" not in text and "fbox" not in text:
        return text
    found = extract(text, "boxed")
    return found.text if found.text is not None else text


def _plain_verdict(answer: str, gold: str) -> bool | None:
    """The verdict where both sides are the same string or plain numbers; None where they are not."""
    if answer == gold:
        return True
    a = _plain_number(answer)
    b = _plain_number(gold) if a is not None else None
    if a is None or b is None:
        return None
    if a == b:
        return True
    if "," in gold:
        return None  # it may be a list
    if ("." in gold) != ("." in answer) and ("/" in gold + answer or "f" in gold + answer):
        return None  # a fraction and a decimal: the rule for rounding decides
    return False


def _is_plain_form(answer: str, gold: str) -> bool:
    """Whether a number is written as the reference is: a fraction for a fraction only, and in lowest terms as it is."""
    if answer == gold or not (parts := SIMPLE_FRACTION.match(answer)):
        return True
    wanted = SIMPLE_FRACTION.match(gold)
    return wanted is not None and (_is_lowest(parts) or not _is_lowest(wanted))


def _is_lowest(fraction: re.Match[str]) -> bool:
    _, top, bottom, plain_top, plain_bottom = fraction.groups()
    return math.gcd(int(top or plain_top), int(bottom or plain_bottom)) == 1


def _plain_number(text: str) -> Fraction | int | None:
    if len(text) > MAX_PLAIN:
        return None
    if text.isdigit() and text.isascii():
        return int(text)
    if PLAIN.match(text):
        return Fraction(text.replace(",", ""))
    match = SIMPLE_FRACTION.match(text)
    if match is None:
        return None
    sign, top, bottom, plain_top, plain_bottom = match.groups()
    denominator = int(bottom or plain_bottom)
    if denominator == 0:
        return None
    return Fraction(int(sign + (top or plain_top)), denominator)
