"""Language consistency: by script, and by common words within the Latin script."""

from __future__ import annotations

import pytest

from rewards import BadReference, Outcome
from rewards.language import LanguageVerifier

TEXTS = {
    "en": "So we have to find the number of apples that are left in the basket, and it is five.",
    "de": "Also müssen wir die Zahl der Äpfel finden, die noch in dem Korb sind, und das ist fünf.",
    "fr": "Donc nous devons trouver le nombre de pommes qui sont dans le panier, et il est cinq.",
    "es": "Entonces tenemos que encontrar el número de manzanas que están en la cesta, y es cinco.",
    "zh": "因此我们需要找到篮子里剩下的 苹果 数量，答案 是 五 个。 很 好",
    "ja": "したがって、かご に 残っている りんご の 数 を 見つける 必要が あります。",
    "ru": "Итак, нам нужно найти число яблок, которые остались в корзине, и это пять.",
    "ko": "따라서 우리는 바구니에 남은 사과의 수를 찾아야 합니다. 답은 다섯 입니다.",
}


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_is_consistent_with_its_own_language_alone(language: str) -> None:
    scores = {other: LanguageVerifier().grade(text, language).score for other, text in TEXTS.items()}
    assert scores[language] is not None
    assert scores[language] >= 0.8
    assert all(score is not None and score <= 0.5 for other, score in scores.items() if other != language), scores


def test_mathematics_and_code_are_no_words() -> None:
    text = (
        "Пусть $x = y + z$ и \\(a\\). Тогда число равно \\boxed{five apples}. ```print(hello)``` <answer>Ответ</answer>"
    )
    verdict = LanguageVerifier("ru").grade(text, None)
    assert (verdict.score, verdict.outcome) == (1.0, Outcome.CORRECT)


def test_a_mixture_gets_its_share() -> None:
    verdict = LanguageVerifier("ru").grade("Итак нам нужно найти число " + "which is the number here", None)
    assert verdict.outcome is Outcome.PARTIAL
    assert verdict.score == pytest.approx(22 / 42)  # letters: Итак нам нужно найти число = 22, the rest 20


def test_silence_earns_nothing() -> None:
    assert LanguageVerifier("en").grade("", None).outcome is Outcome.NO_ANSWER
    assert LanguageVerifier("en").grade("$x$ 42", None).score == 0.0


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="language: 'english' is none of"):
        LanguageVerifier("english")
    with pytest.raises(BadReference, match="language None"):
        LanguageVerifier().check_reference({})
    LanguageVerifier().check_reference({"language": "en"})
