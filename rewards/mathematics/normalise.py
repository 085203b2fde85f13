"""One spelling for what LaTeX, Unicode and plain text write in many; the meaning of an answer is not touched."""

from __future__ import annotations

import re
import unicodedata

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
SYMBOLS = {
    "π": r"\pi ",
    "∞": r"\infty ",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "÷": "/",
    "−": "-",
    "–": "-",
    "—": "-",
    "≤": r"\leq ",
    "≥": r"\geq ",
    "⩽": r"\leq ",
    "⩾": r"\geq ",
    "≠": r"\neq ",
    "≈": r"\approx ",
    "°": r"\degree ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∅": r"\emptyset ",
    "ℝ": r"\R ",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "λ": r"\lambda ",
    "ω": r"\omega ",
    "φ": r"\phi ",
    "。": ".",
    "，": ",",
    "√": r"\sqrt ",
    "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "∀": r"\forall ",
}
# Escapes that JSON or Python has eaten: "\text" read as tab + "ext", "\frac" as form feed + "rac".
EATEN = [
    (re.compile("\t(?=ext|an|imes|heta|frac|o\\b)"), r"\\t"),
    (re.compile("\x0c(?=rac)"), r"\\f"),
    (re.compile("\x08(?=oxed|egin|inom|eta)"), r"\\b"),
    (re.compile("\r(?=ight|angle|ceil|floor)"), r"\\r"),
    (re.compile("\x0b(?=ec|matrix)"), r"\\v"),
]
DOUBLED = re.compile(r"\\\\(?=[a-zA-Z(){}\[\],;!%$])")
RULES = [
    (re.compile(r"<sup>(.*?)</sup>"), r"^{\1}"),
    (re.compile(r"<sub>(.*?)</sub>"), r"_{\1}"),
    (re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)\s*\.(?!\d)|\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it|large|Large|tiny)(?![a-zA-Z])"), ""),
    (re.compile(r"\\!|\\phantom\s*\{[^{}]*\}|\\(?:label|tag)\s*\{[^{}]*\}"), ""),
    (re.compile(r"\{\s*,\s*\}"), ","),
    (re.compile(r"(?<=\d)(?:\\[,; ]|~)(?=\d{3}(?!\d))"), ","),
    (re.compile(r"\\[,;:> ]|~|\\q?quad(?![a-zA-Z])|\\hspace\s*\{[^{}]*\}| |\\enspace"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![a-zA-Z])"), r"\\binom"),
    (re.compile(r"\\(?:mbox|text(?:bf|rm|it|sf|tt|normal)|math(?:rm|bf|it|sf|tt|normal)|emph)(?![a-zA-Z])"), r"\\text"),
    (re.compile(r"\\mathbb\s*\{?\s*([A-Z])\s*\}?"), r"\\\1 "),
    (re.compile(r"\\(?:mathcal|mathscr|mathfrak|boldsymbol|vec|overrightarrow|hat|bar|overline)\s*\{([A-Za-z])\}"), r"\1"),
    (re.compile(r"\\(?:operatorname|mathop)\s*\*?\s*\{\s*\\?(?:text\s*\{)?([A-Za-z]+)\}?\s*\}"), r"\\\1 "),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|textcirc|degree)(?![a-zA-Z])\s*\}?|\\textdegree|\\degree|\\text\s*\{\s*degrees?\s*\}"),
     r"\\deg "),
    (re.compile(r"(?<=[\d}])\s*degrees?\b"), r"\\deg "),
    (re.compile(r"\\%|(?<=[\d}\s])(?:percentage|percent|pct)\b|\\text\s*\{\s*(?:\\?%|percent(?:age)?|pct)\s*\}"), "%"),
    (re.compile(r"\\(?:\$|pounds|euro)|[$£€¥]"), ""),
    (re.compile(r"\\(?:\(|\)|\[(?!\d+(?:\.\d+)?(?:pt|em|ex)\])|\])"), " "),
    (re.compile(r"\\(?:leqslant|leqq|le)(?![a-zA-Z])"), r"\\leq"),
    (re.compile(r"\\(?:geqslant|geqq|ge)(?![a-zA-Z])"), r"\\geq"),
    (re.compile(r"\\ne(?![a-zA-Z])"), r"\\neq"),
    (re.compile(r"\\(?:simeq|cong|thickapprox)(?![a-zA-Z])"), r"\\approx"),
    (re.compile(r"\\(?:varnothing|empty)(?![a-zA-Z])"), r"\\emptyset"),
    (re.compile(r"\\(?:dots|cdots|dotsb|dotsc|dotsm|vdots|hdots)(?![a-zA-Z])|(?<!\.)\.\.\.(?!\.)"), r"\\ldots "),
    (re.compile(r"\\(?:land|wedge)(?![a-zA-Z])"), r"\\text{and}"),
    (re.compile(r"\\(?:lor|vee)(?![a-zA-Z])"), r"\\text{or}"),
]
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
EDGES = " \t\r\n.,;:"


def normalise(text: str) -> str:
    r"""The text with one spelling for fractions, spaces, relations, degrees, percents, and without delimiters.

    Example: ``normalise(r"$\left( \dfrac12, 3^{\circ}\right)$.") == r"( \frac12, 3\deg )"``.
    """
    if text.isalnum() and text.isascii():
        return text
    for pattern, repaired in EATEN:
        text = pattern.sub(repaired, text)
    if not text.isascii():
        text = SUPERSCRIPT_RUN.sub(lambda match: "^{" + match.group().translate(SUPERSCRIPTS) + "}", text)
        for symbol, command in SYMBOLS.items():
            text = text.replace(symbol, command)
        text = unicodedata.normalize("NFKC", text)
    if "\\" in text or not text.isalnum():
        if "\\begin" not in text:
            text = DOUBLED.sub(r"\\", text)
        text = BOX.sub("", text)
        for pattern, replacement in RULES:
            text = pattern.sub(replacement, text)
    text = text.strip(EDGES)
    if text.startswith("**") and text.endswith("**"):
        text = text.strip("*").strip(EDGES)
    while text.endswith("\\"):
        text = text[:-1].rstrip(EDGES)
    return text
