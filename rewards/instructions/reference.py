"""From the forms in which data sets write constraints to one: a list of `Constraint`, checked."""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.instructions.constraints import CHECKS, DIVIDERS, RELATIONS, bare_word, interval
from rewards.instructions.text import LANGUAGES
from rewards.names import nearest
from rewards.verdict import BadReference

LONGEST_REFERENCE = 1_000_000  # characters of a reference that is a string; a repeated prompt is in it

# Tulu 3's function: IFEval's name, the names of its arguments there, and what the function fixes.
TULU: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "verify_keywords": ("keywords:existence", {"keyword_list": "keywords"}, {}),
    "verify_keyword_frequency": (
        "keywords:frequency",
        {"word": "keyword", "N": "frequency", "quantifier": "relation"},
        {"relation": "exactly", "whole_words": True},
    ),
    "validate_forbidden_words": ("keywords:forbidden_words", {"forbidden_words": "forbidden_words"}, {}),
    "verify_letter_frequency": (
        "keywords:letter_frequency",
        {"letter": "letter", "N": "let_frequency", "quantifier": "let_relation"},
        {"let_relation": "exactly"},
    ),
    "validate_response_language": ("language:response_language", {"language": "language"}, {}),
    "verify_paragraph_count": (
        "length_constraints:number_paragraphs",
        {"N": "num_paragraphs"},
        {"divider": "* * *"},
    ),
    "validate_word_constraint": (
        "length_constraints:number_words",
        {"N": "num_words", "quantifier": "relation"},
        {},
    ),
    "verify_sentence_constraint": (
        "length_constraints:number_sentences",
        {"N": "num_sentences", "quantifier": "relation"},
        {},
    ),
    "validate_paragraphs": (
        "length_constraints:nth_paragraph_first_word",
        {"N": "num_paragraphs", "i": "nth_paragraph", "first_word": "first_word"},
        {},
    ),
    "verify_postscript": ("detectable_content:postscript", {"postscript_marker": "postscript_marker"}, {}),
    "validate_placeholders": ("detectable_content:number_placeholders", {"N": "num_placeholders"}, {}),
    "verify_bullet_points": ("detectable_format:number_bullet_lists", {"N": "num_bullets"}, {}),
    "validate_title": ("detectable_format:title", {}, {}),
    "validate_choice": ("detectable_format:constrained_response", {"options": "options"}, {}),
    "validate_highlighted_sections": (
        "detectable_format:number_highlighted_sections",
        {"N": "num_highlights"},
        {},
    ),
    "validate_sections": (
        "detectable_format:multiple_sections",
        {"N": "num_sections", "section_splitter": "section_spliter"},
        {},
    ),
    "validate_json_format": ("detectable_format:json_format", {}, {}),
    "validate_repeat_prompt": ("combination:repeat_prompt", {"original_prompt": "prompt_to_repeat"}, {}),
    "validate_two_responses": ("combination:two_responses", {}, {}),
    "validate_uppercase": ("change_case:english_capital", {}, {}),
    "validate_lowercase": ("change_case:english_lowercase", {}, {}),
    "validate_frequency_capital_words": (
        "change_case:capital_word_frequency",
        {"N": "capital_frequency", "quantifier": "capital_relation"},
        {},
    ),
    "validate_end": ("startend:end_checker", {"end_phrase": "end_phrase"}, {}),
    "validate_quotation": ("startend:quotation", {}, {}),
    "validate_no_commas": ("punctuation:no_comma", {}, {}),
}


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint by its IFEval name, with exactly the arguments that its check takes."""

    id: str
    kwargs: dict[str, Any]


def read_reference(reference: Any) -> list[Constraint]:
    """The constraints of a reference in any of the forms that `InstructionVerifier` names.

    Raises `BadReference` naming the key, the value and the rule: no known form, an unknown constraint, an argument
    that is missing, unknown or out of range, constraints that no text can follow together.
    """
    constraints = [_constraint(name, kwargs) for name, kwargs in _entries(reference)]
    if not constraints:
        raise BadReference("the reference holds no constraint")
    _check_together(constraints)
    return constraints


# ------------------------------------------------------------------------------------------------------ forms


def _entries(reference: Any) -> list[tuple[Any, Any]]:
    """Pairs of a name and its raw arguments."""
    if isinstance(reference, str):
        reference = _literal(reference)
    if isinstance(reference, Mapping):
        return _entries_of_mapping(reference)
    if isinstance(reference, list | tuple):
        return [entry for item in reference for entry in _entries(item)]
    raise BadReference(f"reference {reference!r:.100}: must be a list of {{id, kwargs}}, or a data set's form of it")


def _entries_of_mapping(reference: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    names = [key for key in ("func_name", "instruction_id_list", "instruction_id", "id") if key in reference]
    if len(names) != 1:
        raise BadReference(
            f"constraint {dict(reference)!r:.200}: needs exactly one of id, instruction_id, instruction_id_list, "
            f"func_name; it has {' and '.join(names) or 'none'}"
        )
    key = names[0]
    if key == "func_name":
        return [(f"func_name {reference[key]}", reference)]
    identifiers, kwargs = reference[key], reference.get("kwargs")
    if isinstance(kwargs, str):
        kwargs = _literal(kwargs)
    if isinstance(identifiers, str):
        return [(identifiers, kwargs)]
    if not isinstance(identifiers, list | tuple):
        raise BadReference(f"{key}: {identifiers!r:.100} must be a name or a list of names")
    each = [None] * len(identifiers) if kwargs is None else kwargs
    if not isinstance(each, list | tuple) or len(each) != len(identifiers):
        raise BadReference(f"kwargs: {each!r:.100} must be a list as long as {key}, {len(identifiers)}")
    return list(zip(identifiers, each, strict=True))


def _literal(text: str) -> Any:
    """A JSON text, or the text of a Python literal (some data sets store that)."""
    if len(text) > LONGEST_REFERENCE:
        raise BadReference(f"reference: {len(text)} characters, more than {LONGEST_REFERENCE}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            raise BadReference(f"reference {text!r:.100}: is neither JSON nor a Python literal") from None
    if isinstance(value, str):
        raise BadReference(f"reference {text!r:.100}: must be a list or an object, not a string")
    return value


def _constraint(name: Any, kwargs: Any) -> Constraint:
    if not isinstance(name, str):
        raise BadReference(f"id: {name!r:.100} must be a string")
    if name.startswith("func_name "):
        return _tulu(name.removeprefix("func_name "), kwargs)
    if name not in CHECKS:
        raise BadReference(f"id: there is no constraint {name!r:.100}{_nearest(name, CHECKS)}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise BadReference(f"{name}: kwargs {kwargs!r:.100} must be an object")
    return Constraint(name, _read(name, dict(kwargs or {})))


def _tulu(function: str, row: Mapping[str, Any]) -> Constraint:
    if function not in TULU:
        raise BadReference(f"func_name: there is no function {function!r:.100}{_nearest(function, TULU)}")
    name, names, fixed = TULU[function]
    kwargs = dict(fixed)
    for key, value in row.items():
        if key == "func_name" or value is None:
            continue
        if key not in names:
            raise BadReference(f"{function}: takes no {key!r} (value {value!r:.100}); it takes {_list(names)}")
        kwargs[names[key]] = value
    return Constraint(name, _read(name, kwargs, {ours: theirs for theirs, ours in names.items()}))


def _read(name: str, kwargs: dict[str, Any], spelt: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The arguments of a check; None counts as absent, because tables have a column for every argument of all."""
    spelt = spelt or {}
    parameters = {key: p for key, p in inspect.signature(CHECKS[name]).parameters.items() if key != "text"}
    given = {key: value for key, value in kwargs.items() if value is not None}
    for key, value in given.items():
        if key not in parameters:
            near = _nearest(key, parameters)
            raise BadReference(f"{name}: takes no {key!r} (value {value!r:.100}){near}; it takes {_list(parameters)}")
    for key, parameter in parameters.items():
        if key not in given and parameter.default is parameter.empty:
            raise BadReference(f"{name}: needs {spelt.get(key, key)!r}; it takes {_list(parameters)}")
    read = {}
    for key, value in given.items():
        try:
            read[key] = READERS[key](value)
        except ValueError as error:
            raise BadReference(f"{name}: {spelt.get(key, key)}: {value!r:.100} {error}") from None
    _check_alone(name, read)
    return read


# ----------------------------------------------------------------------------------------- values of arguments


def _whole(value: Any) -> int:
    # Tables of a data set turn integers into floats where other rows have none.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value != int(value):
        raise ValueError("must be a whole number")
    if not 0 <= value <= 10**9:
        raise ValueError("must be from 0 to a thousand million")
    return int(value)


def _positive(value: Any) -> int:
    number = _whole(value)
    if number == 0:
        raise ValueError("must be at least 1")
    return number


def _one_of(choices: Iterable[str]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"is none of {_list(choices)}")
        return value

    return read


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text that is not blank")
    return value.strip()


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a list of texts that is not empty")
    for item in value:
        if not isinstance(item, str) or not item.strip():
            raise ValueError(f"holds {item!r:.100}: each must be a text that is not blank")
    return list(value)


def _letter(value: Any) -> str:
    if not isinstance(value, str) or len(value.strip()) != 1:
        raise ValueError("must be one character")
    return value.strip()


def _word(value: Any) -> str:
    text = _text(value)
    if len(text.split()) > 1 or not bare_word(text):
        raise ValueError("must be one word")
    return text


def _options(value: Any) -> list[str]:
    """A list, or a text: a list's literal, or options between line breaks, commas or slashes, the first that occurs."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            value = _literal(text)
        else:
            separator = next((mark for mark in ("\n", ",", "/") if mark in text), None)
            inner = text[1:-1] if text[:1] == "(" and text[-1:] == ")" else text
            value = [part.strip() for part in inner.split(separator)] if separator else [inner]
    options = _texts(value)
    if len(options) < 2:
        raise ValueError("must name two options or more")
    return options


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


READERS: dict[str, Callable[[Any], Any]] = {
    "keywords": _texts, "forbidden_words": _texts, "keyword": _text, "whole_words": _flag, "letter": _letter,
    "frequency": _whole, "let_frequency": _whole, "capital_frequency": _whole, "num_sentences": _whole,
    "num_words": _whole, "num_bullets": _whole, "num_paragraphs": _positive, "nth_paragraph": _positive,
    "num_placeholders": _positive, "num_highlights": _positive, "num_sections": _positive,
    "relation": _one_of(RELATIONS), "let_relation": _one_of(RELATIONS), "capital_relation": _one_of(RELATIONS),
    "language": _one_of(LANGUAGES), "divider": _one_of(DIVIDERS), "first_word": _word, "postscript_marker": _text,
    "section_spliter": _text, "prompt_to_repeat": _text, "end_phrase": _text, "options": _options,
}  # fmt: skip
# Constraints that compare a count: the arguments that say what is counted, how many, and the relation.
COUNTS = {
    "keywords:frequency": ("keyword", "frequency", "relation"),
    "keywords:letter_frequency": ("letter", "let_frequency", "let_relation"),
    "change_case:capital_word_frequency": (None, "capital_frequency", "capital_relation"),
    "length_constraints:number_sentences": (None, "num_sentences", "relation"),
    "length_constraints:number_words": (None, "num_words", "relation"),
    "length_constraints:number_paragraphs": ("divider", "num_paragraphs", None),
    "length_constraints:nth_paragraph_first_word": (None, "num_paragraphs", None),
    "detectable_format:number_bullet_lists": (None, "num_bullets", None),
}
ENGLISH = {"change_case:english_capital": "capital", "change_case:english_lowercase": "small"}


# ---------------------------------------------------------------------------------------------- contradictions


def _range(constraint: Constraint) -> tuple[tuple[str, str], tuple[float, float]]:
    """What a constraint counts, and the counts that it admits."""
    subject, number, relation = COUNTS[constraint.id]
    counted = str(constraint.kwargs.get(subject, "")).lower() if subject else ""
    return (constraint.id, counted), interval(
        constraint.kwargs[relation] if relation else "exactly", constraint.kwargs[number]
    )


def _check_alone(name: str, kwargs: dict[str, Any]) -> None:
    """Refuses a constraint that no text follows, or that every text does."""
    if name in COUNTS:
        _, (least, most) = _range(Constraint(name, kwargs))
        if most < 0:
            raise BadReference(f"{name}: {kwargs}: no text has less than 0")
        if least <= 0 and most == math.inf:
            raise BadReference(f"{name}: {kwargs}: every text has at least 0")
    if "nth_paragraph" in kwargs and kwargs["nth_paragraph"] > kwargs["num_paragraphs"]:
        raise BadReference(
            f"{name}: nth_paragraph {kwargs['nth_paragraph']} is beyond num_paragraphs {kwargs['num_paragraphs']}"
        )


def _check_together(constraints: list[Constraint]) -> None:
    """Refuses constraints that contradict each other: counts, languages, cases, a keyword that is forbidden."""
    ranges: dict[tuple[str, str], tuple[float, float]] = {}
    languages: dict[str, str] = {}
    cases: set[str] = set()
    wanted: set[str] = set()
    forbidden: set[str] = set()
    for constraint in constraints:
        if constraint.id in COUNTS:
            key, (least, most) = _range(constraint)
            low, high = ranges.get(key, (0, math.inf))
            ranges[key] = max(low, least), min(high, most)
            if ranges[key][0] > ranges[key][1]:
                raise BadReference(f"{constraint.id}: {constraint.kwargs}: contradicts another of the same kind")
        if constraint.id in ENGLISH:
            cases.add(ENGLISH[constraint.id])
            languages["en"] = constraint.id
        if "language" in constraint.kwargs:
            languages[constraint.kwargs["language"]] = constraint.id
        wanted.update(word.lower() for word in constraint.kwargs.get("keywords", ()))
        forbidden.update(word.lower() for word in constraint.kwargs.get("forbidden_words", ()))
    if len(cases) > 1:
        raise BadReference(f"{' and '.join(sorted(ENGLISH))} contradict each other")
    if len({language.partition("-")[0] for language in languages}) > 1:
        raise BadReference(f"{' and '.join(languages.values())} want several languages: {_list(languages)}")
    if wanted & forbidden:
        raise BadReference(f"keywords {_list(sorted(wanted & forbidden))!s:.200} are wanted and forbidden")


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _nearest(name: str, candidates: Iterable[str]) -> str:
    candidates = list(candidates)
    if near := nearest(name, candidates):
        return near
    tails = {candidate.rpartition(":")[2]: candidate for candidate in candidates}  # of a name with another group
    close = difflib.get_close_matches(name.rpartition(":")[2], list(tails), n=1)
    return f"; did you mean {tails[close[0]]!r}?" if close else ""
