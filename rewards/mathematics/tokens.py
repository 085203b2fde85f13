"""The tokens of a normalised answer: numbers, names, commands, and what words in it stand for."""

from __future__ import annotations

import re

TOKEN = re.compile(
    r"\s*(?:(?P<text>\\text\s*\{[^{}]*\})|(?P<env>\\(?:begin|end)\s*\{[a-zA-Z]+\*?\})|(?P<row>\\\\)"
    r"|(?P<command>\\[a-zA-Z]+|\\[^a-zA-Z])"
    r"|(?P<number>\d+\.\d+(?:[eE][-+]?\d+(?![a-zA-Z]))?|\.\d+|\d+[eE][-+]?\d+(?![a-zA-Z])|\d+)"
    r"|(?P<word>[A-Za-z]+)|(?P<symbol><=|>=|!=|==|\*\*|[^\s]))"
)
THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d])|(?<![\d.])\d{1,3}(?: \d{3})+(?!\d)")
FUNCTION_NAMES = """
sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc asin acos atan
sinh cosh tanh coth arsinh arcosh artanh ln log lg exp sqrt cbrt abs floor ceil
cis gcd lcm max min arg det deg dim ker Re Im sgn binom
"""
SYMBOL_NAMES = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho varrho sigma tau
upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar ldots Z N Q C
angle triangle overline prime star ast bullet square aleph partial nabla
"""
# One unit a line; its first name is the one we keep.
UNIT_NAMES = """
mm millimeter millimetre
cm centimeter centimetre
dm decimeter decimetre
m meter metre
km kilometer kilometre
in inch inches
ft foot feet
yd yard
mi mile
mg milligram
g gram
kg kilogram
lb lbs pound
oz ounce
ton tonne
s sec second
min mins minute
h hr hrs hour
day
week
month
year yr yrs
ml mL milliliter millilitre
l L liter litre
gal gallon
usd USD dollar bucks
cent
mph
km/h kmh kph
deg degree
rad radian
J joule
W watt
N newton
V volt
A ampere
Hz hertz
K kelvin
Pa pascal
mol mole
ha hectare
eV electronvolt
B byte bytes
C coulomb
F farad
T tesla
Wb weber
atm atmosphere
bar
cal calorie
kcal kilocalorie
ohm
euro euros EUR
yen JPY
rupee rupees
yuan RMB
acre
celsius
fahrenheit
unit
"""
SHORT_WORD_NAMES = (
    "all any odd the for one two six ten yes not are was has can may win red "
    "no on or am pm an is it up go do of to in if so me we he be by my at as us"
)
NO_UNIT_NAMES = """
or and not no maybe perhaps either nor but is are wrong incorrect false than except without unless if
am pm bc ad bce ce negative below under minus plus over point squared cubed factorial
halves thirds fourths fifths sixths sevenths eighths ninths tenths hundredths thousandths
"""
PRODUCTS = frozenset(("at", "as", "am", "an", "by", "my", "us"))
"""Words that are products where an operator stands before them: f(t) = at + b."""
FUNCTIONS = frozenset(FUNCTION_NAMES.split())
GREEK = frozenset(SYMBOL_NAMES.split())
UNITS = {name: line.split()[0] for line in UNIT_NAMES.strip().splitlines() for name in line.split()}
PREFIXES = ("p", "n", "u", "μ", "m", "c", "d", "k", "M", "G", "T")
PREFIXED = (
    "m",
    "g",
    "s",
    "A",
    "V",
    "W",
    "J",
    "N",
    "Pa",
    "Hz",
    "mol",
    "L",
    "eV",
    "B",
    "T",
    "C",
    "F",
    "bar",
    "cal",
    "Wh",
    "b",
)
"""Units that take the prefixes of the SI; a prefixed unit is a unit of its own: nothing is converted."""
WORDS_NOT_UNITS = frozenset(("pm", "nb", "mb", "cd", "cC", "dC", "MA", "TA", "cF", "dF", "mT", "dB"))
UNITS |= {
    prefix + name: ("u" if prefix == "μ" else prefix) + name
    for prefix in PREFIXES
    for name in PREFIXED
    if prefix + name not in UNITS and prefix + name not in WORDS_NOT_UNITS
}
LONG_PREFIXES = {
    "pico": "p", "nano": "n", "micro": "u", "milli": "m", "centi": "c", "deci": "d", "kilo": "k", "mega": "M",
    "giga": "G", "tera": "T",
}  # fmt: skip
LONG_NAMES = {
    "metre": "m", "meter": "m", "gram": "g", "second": "s", "ampere": "A", "amp": "A", "volt": "V", "watt": "W",
    "joule": "J", "newton": "N", "pascal": "Pa", "hertz": "Hz", "mole": "mol", "litre": "L", "liter": "L",
    "electronvolt": "eV", "byte": "B", "bit": "b", "ohm": "ohm", "calorie": "cal",
}  # fmt: skip
UNITS |= {
    long + name: UNITS.get(short + LONG_NAMES[name], short + LONG_NAMES[name])
    for long, short in LONG_PREFIXES.items()
    for name in LONG_NAMES
    if long + name not in UNITS
}
NO_UNIT = frozenset(NO_UNIT_NAMES.split())
"""Words that make a text behind a number more than the name of what was counted."""
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SHORT_WORDS = frozenset(SHORT_WORD_NAMES.split())
"""Short words that are no products of variables."""


def join_thousands(text: str) -> str:
    """``1,234`` as one number, except inside brackets, where a comma separates."""
    if "," not in text and " " not in text:
        return text
    depths, depth = [], 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        depths.append(depth)
    braces = text.count(r"\{")

    def join(match: re.Match[str]) -> str:
        if depths[match.start()] or braces:
            return match.group()
        return match.group().replace(",", "").replace(" ", "")

    return THOUSANDS.sub(join, text)


def collapse_brackets(text: str) -> str:
    """``((((5))))`` as ``(5)``, ``{{x}}`` as ``{x}``: brackets that repeat each other say nothing and cost depth."""
    squeezed = text.replace(" ", "")
    if "((" not in squeezed and "{{" not in squeezed:
        return text
    text = re.sub(r"(?<=[(){}])\s+(?=[(){}])", "", text)
    stacks: dict[str, list[int]] = {"(": [], "{": []}
    closed_by: dict[int, int] = {}
    for at, char in enumerate(text):
        if at and text[at - 1] == "\\":
            continue
        if char in stacks:
            stacks[char].append(at)
        elif char in ")}" and (stack := stacks["(" if char == ")" else "{"]):
            closed_by[stack.pop()] = at
    dropped = set()
    for opening, closing in closed_by.items():
        if closed_by.get(opening + 1) == closing - 1 and text[opening] == text[opening + 1]:
            dropped |= {opening, closing}
    return "".join(char for at, char in enumerate(text) if at not in dropped)


def tokenise(text: str) -> list[str]:
    tokens: list[str] = []
    for match in TOKEN.finditer(text):
        kind, token = match.lastgroup, match.group().strip()
        if not token:
            continue
        if kind == "text":
            tokens += _text_tokens(token[token.index("{") + 1 : -1].strip(), tokens)
        elif kind == "word":
            tokens += _word_tokens(token, tokens)
        else:
            tokens.append(token)
    return tokens


def _text_tokens(words: str, before: list[str]) -> list[str]:
    r"""What ``\text{words}`` stands for: a separator, a unit, a letter, or words."""
    plain = words.strip(" .,;").lower()
    if not words:
        return []
    if plain in ("and", "or"):
        return [f"&{plain}"]
    if words in (",", ";"):
        return [words]
    if len(words) == 1 and words.isalpha():
        follows_number = bool(before) and (before[-1][-1:].isdigit() or before[-1] == "}")
        follows_number |= before[-1:] == ["/"] and before[-2:-1] != [] and before[-2].startswith("&unit:")
        return [f"&unit:{UNITS[words]}"] if follows_number and words in UNITS else [words]
    if words.replace(".", "", 1).replace(",", "").isdigit() or re.fullmatch(r"-?\d+(?:/\d+|:\d+)?", words):
        return tokenise(words)
    if not before and (amount := re.fullmatch(r"(-?\d[\d.,]*)\s+([A-Za-z][A-Za-z .]*)", words)):
        return [*tokenise(amount[1].rstrip(".,")), *_text_tokens(amount[2], ["0"])]
    if (
        counted_and := re.fullmatch(
            r"(hours?|hrs?|h|minutes?|mins?|feet|foot|ft|pounds?|lbs?|years?|days?|weeks?)\s+and", words
        )
    ) and before:
        return [*_text_tokens(counted_and[1], before), "&and"]
    if before and (compound := compound_unit(words)):
        return [f"&unit:{compound}"]
    scale, _, counted = plain.partition(" ")
    if scale in SCALES and before and (before[-1][-1:].isdigit() or before[-1] == "}"):
        return ["*", str(SCALES[scale]), *(_text_tokens(counted, ["0"]) if counted else [])]
    unit = unit_name(words)
    if unit and before:
        return [f"&unit:{unit}"]
    if words in ("sin", "cos", "tan", "ln", "log", "lcm", "gcd"):
        return [words]
    if before and re.fullmatch(r"[A-Za-z .'/-]+", words) and not NO_UNIT & set(plain.split()):
        return [f"&unit:{words.lower()}"]
    return [f"&words:{words}"]


COMPOUND = re.compile(r"([A-Za-zΩμ]+)(?:\^?\{?(-?\d)\}?)?")


def compound_unit(words: str) -> str:
    """``m/s^2``, ``m s^{-2}`` and ``m·s^-2`` as one name, ``m*s^-2``; "" for anything else."""
    text = re.sub(r"\\cdot|\\[,; ]|[·⋅*]", " ", words.strip(" .")).replace("per ", "/").strip()
    if not re.search(r"[/ ]|\^\s*\{?-", text):
        return ""
    powers: dict[str, int] = {}
    sign = 1
    for piece in re.findall(r"/|\(|\)|[^\s/()]+", text):
        if piece in "()":
            continue
        if piece == "/":
            sign = -1
            continue
        match = COMPOUND.fullmatch(piece)
        if match is None or match[1] not in UNITS:
            return ""
        name = UNITS[match[1]]
        powers[name] = powers.get(name, 0) + sign * int(match[2] or 1)
        sign = sign if "(" in text else 1
    return "*".join(name + (f"^{power}" if power != 1 else "") for name, power in sorted(powers.items()) if power)


def unit_name(words: str) -> str:
    """The unit's usual name, or "" if it is none that we know; ``square feet`` is ``ft^2``."""
    words = words.strip(" .").replace("^", "").replace("{", "").replace("}", "")
    prefix, _, rest = words.partition(" ")
    exponent = {"square": "^2", "sq": "^2", "sq.": "^2", "cubic": "^3"}.get(prefix, "")
    if exponent:
        words = rest
    if words[-1:] in "23" and words[:-1] in UNITS:
        return UNITS[words[:-1]] + "^" + words[-1]
    for name in (words, words.lower(), words.lower().removesuffix("s"), words.lower().removesuffix("es")):
        if name in UNITS:
            return UNITS[name] + exponent
    return ""


def _word_tokens(word: str, before: list[str]) -> list[str]:
    if word in ("and", "or"):
        return [f"&{word}"]
    if len(word) == 1 or word in FUNCTIONS:
        return [word]
    if word in ("pi", "infty", "infinity", "inf", "oo"):
        return [r"\pi" if word == "pi" else r"\infty"]
    if word.lower() in GREEK:
        return ["\\" + word]
    if word in SCALES and before and before[-1][-1:].isdigit():
        return ["*", str(SCALES[word])]
    if (
        before
        and (unit := unit_name(word))
        and (before[-1][-1:].isdigit() or before[-1] in ("}", ")", "%") or before[-1][0] == "&")
    ):
        return [f"&unit:{unit}"]
    if word in PRODUCTS and before and before[-1] in ("=", "+", "-", "(", "{"):
        return list(word)
    for name in sorted(FUNCTIONS, key=len, reverse=True):
        if word.startswith(name) and len(word) <= len(name) + 1 and len(name) > 2:
            return [name, *word[len(name) :]]
    if len(word) > 3 or word.lower() in SHORT_WORDS:
        if len(word) > 3 and before and before[-1][-1:].isdigit() and word.islower() and word not in NO_UNIT:
            return [f"&unit:{word}"]
        return [f"&words:{word}"]
    return list(word)
