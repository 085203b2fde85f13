"""Language consistency: the share of a text's words in the language asked for (DeepSeek-R1, section 2.3.2).

Judged by script and, between languages of one script, by their commonest words; no statistics, no model: the same
text gets the same score on every machine. Mathematics, code and tags do not count as words.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from rewards.verdict import BadReference, Outcome, Verdict

SCRIPTS = {
    "zh": ("CJK",), "ja": ("CJK", "HIRAGANA", "KATAKANA"), "ko": ("HANGUL",), "ru": ("CYRILLIC",), "uk": ("CYRILLIC",),
    "ar": ("ARABIC",), "fa": ("ARABIC",), "he": ("HEBREW",), "el": ("GREEK",), "hi": ("DEVANAGARI",), "th": ("THAI",),
    "bn": ("BENGALI",), "ta": ("TAMIL",), "te": ("TELUGU",),
    "en": ("LATIN",), "de": ("LATIN",), "fr": ("LATIN",), "es": ("LATIN",), "it": ("LATIN",), "pt": ("LATIN",),
}  # fmt: skip
COMMON_WORDS = {
    "en": "the of and to in is that it was for on are as with his they be at this have from or had by not but what all "
    "were we when your can said there use an each which she do how their if will up other about out many then them so",
    "de": "der die und das ist nicht ein eine zu den mit von auf für sich dem im des sie wir ich es auch als an werden "
    "aus er hat dass sind noch wie einer um am nur über bei oder nach dann also wenn durch kann",
    "fr": "le la les de des et est un une que qui dans en du pour pas sur au avec ce il elle nous vous ils par mais ou "
    "donc être plus son sa ses cette sont aux leur si tout comme on alors",
    "es": "el la los las de que y en un una es se no por con para su al lo como más pero sus le ya o este sí porque "
    "esta entre cuando muy sin sobre también entonces son del",
    "it": "il lo la gli le di che e è un una in per non con si da come sono del della dei ma anche più nel alla questo "
    "al quindi ha o se perché allora",
    "pt": "o a os as de que e é um uma em para não com por se do da dos das no na mais como mas ao foi ele sua ou ser "
    "quando muito então são",
}
COMMON = {language: frozenset(words.split()) for language, words in COMMON_WORDS.items()}
NO_WORDS = re.compile(
    r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\(.*?\\\)|\\\[.*?\\\]|\\[a-zA-Z]+(?:\{[^{}]*\})*|</?\w+>|https?://\S+",
    re.DOTALL,
)
WORD = re.compile(r"[^\W\d_]+", re.UNICODE)


class LanguageVerifier:
    """Scores the share of words in the reference's language, ``"en"`` or ``{"language": "en"}``.

    Args: language: for problems whose references name none; full_marks: the share from which the verdict is CORRECT;
    min_words: texts with fewer words say nothing and are NO_ANSWER, 0.
    """

    lowest_score = 0.0

    def __init__(self, language: str | None = None, full_marks: float = 0.95, min_words: int = 5) -> None:
        if language is not None and language not in SCRIPTS:
            raise ValueError(f"language: {language!r} is none of {', '.join(sorted(SCRIPTS))}")
        if not 0 < full_marks <= 1:
            raise ValueError(f"full_marks: {full_marks!r} must be above 0 and at most 1")
        self.language = language
        self.full_marks = full_marks
        self.min_words = min_words

    def check_reference(self, reference: Any) -> None:
        """Raises `BadReference` when no known language is named and the verifier has none of its own."""
        self._wanted(reference)

    def grade(self, completion: str, reference: Any) -> Verdict:
        """CORRECT from `full_marks` on (score 1), else PARTIAL with the share, WRONG at a share of 0."""
        language = self._wanted(reference)
        words = [word.lower() for word in WORD.findall(NO_WORDS.sub(" ", completion))]
        if len(words) < self.min_words:
            return Verdict(0.0, Outcome.NO_ANSWER, {"reason": f"{len(words)} words, wanted {self.min_words}"})
        share = consistency(words, language)
        detail = {"language": language, "share": round(share, 4), "words": len(words)}
        if share >= self.full_marks:
            return Verdict(1.0, Outcome.CORRECT, detail)
        return Verdict(share, Outcome.PARTIAL if share else Outcome.WRONG, detail)

    def _wanted(self, reference: Any) -> str:
        if self.language is not None:
            return self.language
        named = reference.get("language") if isinstance(reference, dict) else reference
        if not isinstance(named, str) or named not in SCRIPTS:
            raise BadReference(f"language {named!r:.100} is none of {', '.join(sorted(SCRIPTS))}")
        return named


def consistency(words: list[str], language: str) -> float:
    """The share of letters that stand in words of the language's script, times its lead among languages of that script.

    Letters, not words, because Chinese has no spaces. In Latin script the common words of the other languages count
    against it: a text whose common words are half German and half English is half English.
    """
    letters = sum(map(len, words))
    own = [word for word in words if _is_in_script(word, SCRIPTS[language])]
    share = sum(map(len, own)) / letters
    if language in COMMON:
        share *= min(_lead(own, COMMON[language], common) for other, common in COMMON.items() if other != language)
    elif language == "ja" and not any(_is_in_script(char, ("HIRAGANA", "KATAKANA")) for word in own for char in word):
        share = 0.0  # Chinese characters alone are Chinese
    elif language == "zh" and any(_is_in_script(char, ("HIRAGANA",)) for word in words for char in word):
        share *= 0.5
    return share


def _lead(words: list[str], ours: frozenset[str], theirs: frozenset[str]) -> float:
    """Of the words that only one of two languages has among its common ones, the share that is ours."""
    own = sum(word in ours and word not in theirs for word in words)
    foreign = sum(word in theirs and word not in ours for word in words)
    return own / (own + foreign) if own + foreign else 1.0


def _is_in_script(word: str, scripts: tuple[str, ...]) -> bool:
    return all(unicodedata.name(char, "").startswith(scripts) or unicodedata.combining(char) for char in word)
