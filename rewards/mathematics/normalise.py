"""One spelling for what LaTeX, Unicode and plain text write in many; the meaning of an answer is not touched."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉ₙₖₐₓ", "0123456789nkax")
SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉ₙₖₐₓ]+")
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
    "、": ",",
    "；": ";",
    "或": r"\text{ or }",
    "且": r"\text{ and }",
    "和": r"\text{ and }",
    "∃": r"\exists ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "₹": "",
    "√": r"\sqrt ",
    "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "∀": r"\forall ",
    "º": r"\degree ",
    "˚": r"\degree ",
    "∶": ":",
    "：": ":",
    "⁄": "/",
    "∛": r"\sqrt[3] ",
    "∜": r"\sqrt[4] ",
    "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}",
    "⅕": r"\frac{1}{5}",
    "⅖": r"\frac{2}{5}",
    "⅗": r"\frac{3}{5}",
    "⅘": r"\frac{4}{5}",
    "⅙": r"\frac{1}{6}",
    "⅚": r"\frac{5}{6}",
    "⅛": r"\frac{1}{8}",
    "⅜": r"\frac{3}{8}",
    "⅝": r"\frac{5}{8}",
    "⅞": r"\frac{7}{8}",
    "′": "'",
    "″": "''",
    "∖": r"\setminus ",
    "∧": r"\land ",
    "∨": r"\lor ",
    "≡": r"\equiv ",
    "∉": r"\notin ",
    "ℤ": r"\Z ",
    "ℕ": r"\N ",
    "ℚ": r"\Q ",
    "ℂ": r"\C ",
    "γ": r"\gamma ",
    "δ": r"\delta ",
    "μ": r"\mu ",
    "σ": r"\sigma ",
}
# Escapes that JSON or Python has eaten: "\text" read as tab + "ext", "\frac" as form feed + "rac".
EATEN = [
    (re.compile("\\\\?\t(?=ext|an|imes|heta|frac|o\\b)"), r"\\t"),
    (re.compile("\\\\?\x0c(?=rac)"), r"\\f"),
    (re.compile("\\\\?\x08(?=oxed|egin|inom|eta)"), r"\\b"),
    (re.compile("\\\\?\r(?=ight|angle|ceil|floor)"), r"\\r"),
    (re.compile("\\\\?\x0b(?=ec|matrix)"), r"\\v"),
]
CIRCLED = re.compile(r"(?:\\text\{\s*)?[①-⑳](?:\s*(?:[,，、]\s*)?[①-⑳])*\}?")
HIDDEN = re.compile("[\u200b-\u200d\u2060\ufeff\u00ad]")
"""Characters without width; those that change the direction of writing are none of them."""
SPACES = re.compile(r"\s{2,}")
"""Long runs would cost a rule with several optional spaces the square or the cube of their length."""
NEW_LINE = re.compile(r"(?<=[\w}\])])[ \t]*\n\s*(?=\\?[A-Za-z][\w{}()]{0,20}\s*=)")
"""Between two equations, each on its line."""
CONTROL = re.compile("[\t\r\x08\x0b\x0c]")
DOUBLED = re.compile(r"\\\\(?=[a-zA-Z(){}\[\],;!%$])")


def _repeating(match: re.Match[str]) -> str:
    """``0.1\\overline{6}`` as the fraction that it is."""
    whole, lead, period = match.group(1), match.group(2), next(group for group in match.groups()[2:] if group)
    top = int(whole + lead + period) - int(whole + lead or "0")
    value = Fraction(top, (10 ** len(period) - 1) * 10 ** len(lead))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


# (what the text must hold for the rule to apply, the rule): most answers meet two or three of them.
RULES: list[tuple[tuple[str, ...], re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (
        ("overline", "\\dot", "("),
        re.compile(
            r"(\d{1,20})\.(\d{0,20})(?:\\overline\s*\{(\d{1,20})\}|\\dot\s*\{?(\d)\}?(?!\d|\\dot)|\((\d{1,20})\)(?!\d))"
        ),
        _repeating,
    ),
    (("/",), re.compile(r"(?<![\d.,/)}^_])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.,/]|\s*[\d/])"), r"\1\\frac{\2}{\3}"),
    (
        ("st", "nd", "rd", "th"),
        re.compile(r"(?<=\d)\s*\^?\s*\{?\s*(?:\\(?:text|mathrm|mbox)\s*\{)?(?:st|nd|rd|th)\b\}?\}?"),
        "",
    ),
    (
        ("\\overline",),
        re.compile(r"\\overline\s*\{\s*([a-z]{2,4}|[a-z]*\d[a-z\d]*[a-z][a-z\d]*)\s*\}"),
        r"\\overline_{\1} ",
    ),
    (("Rs", "USD", "EUR", "GBP"), re.compile(r"\b(?:Rs|USD|EUR|GBP)\.?\s*(?=\d)"), ""),
    (("infinity",), re.compile(r"\\text\s*\{\s*infinity\s*\}|(?<![\\A-Za-z])infinity\b"), r"\\infty"),
    (("m.",), re.compile(r"\b([ap])\.\s?m\.", re.IGNORECASE), r"\1m"),
    (("!=",), re.compile(r"(?<=[\d)])!="), "! ="),
    (("old",), re.compile(r"(?<=years)\s+old\b|(?<=year)\s+old\b"), ""),
    (
        ("\\overline", "\\overrightarrow", "\\widehat", "\\vec", "\\overset", "\\wide"),
        re.compile(r"\\(?:overline|overrightarrow|vec|widehat|widetilde)\s*\{\s*([A-Z]{2,3})\s*\}"),
        r"\1",
    ),
    (
        ("\\angle", "\\triangle", "\\measuredangle"),
        re.compile(r"(?:m\s*)?\\(?:measured)?(angle|triangle)\s*\{?\s*([A-Z]{1,4}(?:_\{?\d\}?)?|\d)\s*\}?"),
        r"\\\1_{\2} ",
    ),
    (("<sup>",), re.compile(r"<sup>([^<]*)</sup>"), r"^{\1}"),
    (("<sub>",), re.compile(r"<sub>([^<]*)</sub>"), r"_{\1}"),
    (
        ("\\left", "\\right", "\\big", "\\Big"),
        re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)\s*\.(?!\d)|\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])"),
        "",
    ),
    (
        ("style", "limits", "\\rm", "\\bf", "\\it", "\\large", "\\Large", "\\tiny"),
        re.compile(r"\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it|large|Large|tiny)(?![a-zA-Z])"),
        "",
    ),
    (
        ("\\underline", "color", "\\ensuremath"),
        re.compile(r"\\(?:underline|ensuremath)(?![a-zA-Z])|\\(?:text)?color\s*\{[^{}]*\}"),
        "",
    ),
    (("\\langle",), re.compile(r"\\langle(?![a-zA-Z])"), "("),
    (("\\rangle",), re.compile(r"\\rangle(?![a-zA-Z])"), ")"),
    (
        ("/",),
        re.compile(r"(?<=[\d}])\s*\b(km|m|cm|ft|mi|miles|meters|feet)\s*/\s*(s|sec|second|h|hr|hour|min)\b"),
        r"\\text{\1/\2}",
    ),
    (
        ("\\text", "\\math"),
        re.compile(r"(\\(?:text|mathrm|mbox|rm)\s*\{[^{}$]*)\^\s*\{\s*(-?\d)\s*\}((?:[^{}$]|\^\{-?\d\})*\})"),
        lambda match: re.sub(r"\^\{(-?\d)\}", r"^\1", re.sub(r"\\[,; ]", " ", f"{match[1]}^{match[2]}{match[3]}")),
    ),
    (("\\!",), re.compile(r",\s*\\!\s*(?=\d{3})"), ","),
    (
        ("\\!", "\\phantom", "\\label", "\\tag"),
        re.compile(r"(?<!\\)\\!|\\phantom\s*\{[^{}]*\}|\\(?:label|tag)\s*\{[^{}]*\}"),
        "",
    ),
    (("{,}",), re.compile(r"(?<!\d)(0|\d+(?=\{,\}(?:\d{1,2}|\d{4,})(?!\d)))\{,\}(?=\d)"), r"\1."),
    ((",", ":"), re.compile(r"(?<!\\text)(?<!\\mbox)\{\s*([,:])\s*\}"), r"\1"),
    ((")_",), re.compile(r"\((\d+)\)(?=_)"), r"\1"),
    (
        ("C_", "C}_"),
        re.compile(
            r"(?<![A-Za-z\\])(?:C|\\(?:mathrm|text)\{\s*C\s*\})_(?:\{([^{}]+)\}|(\w))\s*\^\s*(?:\{([^{}]+)\}|(\w))"
        ),
        lambda match: rf"\binom{{{match[1] or match[2]}}}{{{match[3] or match[4]}}}",
    ),
    (("quad",), re.compile(r"(?<=[\d}])\s*\\q?quad\s*(?=-?\d|-?\\(?:frac|sqrt))"), ", "),
    (
        ("quad",),
        re.compile(r"(?<==)((?:(?!quad)[^=,;])+?)\s*\\q?quad(?![a-zA-Z])(?=\s*\\?[A-Za-z][\w{}()]*\s*=)"),
        r"\1, ",
    ),
    (("\\,", "\\;", "\\ ", "~"), re.compile(r"(?<=\d)(?:\\[,; ]|~)(?=\d{3}(?!\d))"), ","),
    (
        ("\\,", "\\;", "\\:", "\\>", "\\ ", "~", "quad", "\\hspace", "\\enspace"),
        re.compile(r"(?<!\\)\\[,;:> ]|~|\\q?quad|\\hspace\s*\{[^{}]*\}|\\enspace"),
        " ",
    ),
    (
        ("\\over", "choose", "\\root"),
        re.compile(
            r"\{\s*((?:[^{}]|\{[^{}]*\}){0,120}?)\s*\\(over|choose)(?![a-zA-Z])\s*((?:[^{}]|\{[^{}]*\}){0,120}?)\s*\}"
            r"|\\root\s*(\{[^{}]*\}|\w)\s*\\of\s*(\{[^{}]*\}|\w)"
        ),
        lambda match: (
            rf"\sqrt[{match[4].strip('{}')}]{{{match[5].strip('{}')}}}"
            if match[4]
            else rf"\{'frac' if match[2] == 'over' else 'binom'}{{{match[1]}}}{{{match[3]}}}"
        ),
    ),
    (("\\lbrace",), re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (("\\rbrace",), re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (
        ("\\mathbf", "\\hat", "\\vec", "\\boldsymbol", "\\bm"),
        re.compile(r"\\(?:mathbf|hat|vec|boldsymbol|bm)\s*(?:\{\s*\\?([ijk])(?:math)?\s*\}|\s([ijk])(?![a-zA-Z]))"),
        lambda match: rf"\basis{match[1] or match[2]} ",
    ),
    (("\\\\[",), re.compile(r"\\\\\[-?[\d.]+\s*(?:pt|mm|cm|em|ex)\]"), r"\\\\"),
    (("\\bigcup",), re.compile(r"\\bigcup(?=\s*[\[(\]])"), r"\\cup"),
    (
        ("\\text", "\\math"),
        re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{\s*(-\s*\d[\d.,]*|\d+\s*:\s*\d+)\s*\}"),
        r"\1",
    ),
    (("to",), re.compile(r"(?<=\d)\s*\\text\s*\{\s*to\s*\}\s*(?=\d)"), ":"),
    (("frac",), re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (("binom",), re.compile(r"\\[dt]binom(?![a-zA-Z])"), r"\\binom"),
    (
        ("\\mbox", "\\text", "\\math", "\\emph"),
        re.compile(r"\\(?:mbox|text(?:bf|rm|it|sf|tt|normal)|math(?:rm|bf|it|sf|tt|normal)|emph)(?![a-zA-Z])"),
        r"\\text",
    ),
    (("\\mathbb",), re.compile(r"\\mathbb\s*\{?\s*([A-Z])\s*\}?"), r"\\\1 "),
    (
        ("\\math", "\\bold", "\\bm", "\\vec", "\\over", "\\hat", "\\bar"),
        re.compile(
            r"\\(?:mathcal|mathscr|mathfrak|boldsymbol|bm|vec|overrightarrow|hat|bar|overline)\s*\{([A-Za-z]|-?\d[\d.]*)\}"
        ),
        r"\1",
    ),
    (
        ("\\operatorname", "\\mathop"),
        re.compile(r"\\(?:operatorname|mathop)\s*\*?\s*\{\s*\\?(?:text\s*\{)?([A-Za-z]+)\}?\s*\}"),
        lambda match: match[1] if len(match[1]) == 1 else rf"\{match[1]} ",
    ),
    (
        ("tg",),
        re.compile(r"\\(arc)?(c?)tg(?![a-zA-Z])"),
        lambda match: rf"\{match[1] or ''}{'cot' if match[2] else 'tan'} ",
    ),
    (
        ("circ", "degree"),
        re.compile(
            r"\^\s*(?:\{\s*\\(?:circ|textcirc|degree)\s*\}|\\(?:circ|textcirc|degree)(?![a-zA-Z]))|\\textdegree|\\degree"
            r"|\\text\s*\{\s*degrees?\s*\}|(?<=[\d}])\s*degrees?\b"
        ),
        r"\\deg ",
    ),
    (
        ("\\deg",),
        re.compile(r"\\deg\s*(?:\\text\s*\{\s*([CF])\s*\}|([CF])\b)"),
        lambda match: rf"\text{{{'celsius' if 'C' in match.groups() else 'fahrenheit'}}}",
    ),
    (
        ("\\%", "percent", "pct", "\\text"),
        re.compile(r"\\%|(?<=[\d}\s])(?:percentage|percent|pct)\b|\\text\s*\{\s*(?:\\?%|percent(?:age)?|pct)\s*\}"),
        "%",
    ),
    (("$", "£", "€", "¥", "\\pounds", "\\euro"), re.compile(r"\\(?:\$|pounds|euro)|[$£€¥]"), ""),
    (
        ("\\(", "\\)", "\\[", "\\]"),
        re.compile(r"(?<!\\)\\(?:\(|\)|\[|\])"),
        " ",
    ),
    (("\\le",), re.compile(r"\\(?:leqslant|leqq|le)(?![a-zA-Z])"), r"\\leq"),
    (("\\ge",), re.compile(r"\\(?:geqslant|geqq|ge)(?![a-zA-Z])"), r"\\geq"),
    (("\\ne",), re.compile(r"\\ne(?![a-zA-Z])"), r"\\neq"),
    (
        ("\\simeq", "\\cong", "\\thick"),
        re.compile(r"\\(?:simeq|cong|thickapprox)(?![a-zA-Z])"),
        r"\\approx",
    ),
    (("\\varnothing", "\\empty"), re.compile(r"\\(?:varnothing|empty)(?![a-zA-Z])"), r"\\emptyset"),
    (
        ("dots", "..."),
        re.compile(r"\\(?:dots|cdots|dotsb|dotsc|dotsm|vdots|hdots)(?![a-zA-Z])|(?<!\.)\.\.\.(?!\.)"),
        r"\\ldots ",
    ),
    (
        ("\\land", "\\wedge"),
        re.compile(r"\\(?:land|wedge)(?![a-zA-Z])(?=.*[=<>]|.*\\(?:leq|geq|neq|in)(?![a-zA-Z]))"),
        r"\\text{and}",
    ),
    (
        ("\\lor", "\\vee"),
        re.compile(r"\\(?:lor|vee)(?![a-zA-Z])(?=.*[=<>]|.*\\(?:leq|geq|neq|in)(?![a-zA-Z]))"),
        r"\\text{or}",
    ),
]
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
EDGES = " \t\r\n.,;:"


@lru_cache(maxsize=256)  # one grading asks several times for each of its two texts
def normalise(text: str) -> str:
    r"""The text with one spelling for fractions, spaces, relations, degrees, percents, and without delimiters.

    Example: ``normalise(r"$\left( \dfrac12, 3^{\circ}\right)$.") == r"( \frac12, 3\deg )"``.
    """
    if text.isascii() and (text.isdigit() or text.isalpha()):
        return text
    if CONTROL.search(text):
        for pattern, repaired in EATEN:
            text = pattern.sub(repaired, text)
    if "\n" in text:
        text = NEW_LINE.sub(", ", text)
    text = SPACES.sub(" ", text)
    if not text.isascii():
        text = HIDDEN.sub("", text)
        text = CIRCLED.sub(lambda match: ", ".join(f"({ord(c) - 0x245F})" for c in match.group() if c >= "①"), text)
        text = SUPERSCRIPT_RUN.sub(lambda match: "^{" + match.group().translate(SUPERSCRIPTS) + "}", text)
        text = SUBSCRIPT_RUN.sub(lambda match: "_{" + match.group().translate(SUBSCRIPTS) + "}", text)
        for symbol, command in SYMBOLS.items():
            text = text.replace(symbol, command)
        text = unicodedata.normalize("NFKC", text)
    if "\\\\" in text and "\\begin" not in text:
        text = DOUBLED.sub(r"\\", text)
    if "box" in text:
        text = BOX.sub("", text)
    for needed, rule, replacement in RULES:
        for part in needed:
            if part in text:
                text = rule.sub(replacement, text)
                break
    text = SPACES.sub(" ", _strip(text))
    if text.startswith("**") and text.endswith("**"):
        text = _strip(text.strip("*"))
    while text.endswith("\\"):
        text = text[:-1].rstrip(EDGES)
    return text


def _strip(text: str) -> str:
    """The text without punctuation at its edges; the point of ``.125`` stays."""
    stripped = text.strip(EDGES)
    lead = text[: len(text) - len(text.lstrip(EDGES))]
    return "." + stripped if lead.endswith(".") and stripped[:1].isdigit() else stripped
