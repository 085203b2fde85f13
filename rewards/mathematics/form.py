r"""Whether an answer is worked out as far as the reference is: the policy ``form: evaluated``.

Equality says that ``513^2-487^2`` is 26000; this module says that it is not yet the answer. What is left to be done in
an expression (a sum of numbers, a root that can be simplified, like terms, a product to be multiplied out) has a name;
an answer may leave undone only what the reference leaves undone too. A reference that is factored asks for factors,
one that is a decimal asks for a decimal, and a label ``x=...`` asks for an equation solved for something.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

from rewards.mathematics.evaluate import contains, symbols
from rewards.mathematics.nodes import IMAGINARY, MINUS_ONE, Node

CONTAINERS = frozenset(("list", "set", "tuple", "union", "minus", "matrix", "or"))
FUNCTION_GROUPS = {
    name: group
    for group, names in {
        "a trigonometric function": "sin cos tan cot sec csc",
        "an inverse trigonometric function": "arcsin arccos arctan arccot arcsec arccsc",
        "a hyperbolic function": "sinh cosh tanh coth arsinh arcosh artanh",
        "a logarithm": "ln",
        "a factorial or binomial": "factorial binom gamma doublefactorial",
        "an absolute value": "abs",
        "a floor or ceiling": "floor ceil",
        "a greatest or least one": "gcd lcm max min",
        "a determinant": "det",
        "a part of a complex number": "Re Im arg",
    }.items()
    for name in names.split()
}
TEN = Node("num", (), Fraction(10))
MAX_ROOT = 10**12
"""The largest radicand whose square factors are looked for."""


def fault(gold: Node, answer: Node) -> str:
    """What the answer leaves undone that the reference does not, or "" where its form is the reference's."""
    if gold == answer:
        return ""
    if not _is_open_relation(gold) and _is_open_relation(answer):
        return "a relation that is not solved for its unknown"
    if gold.op == answer.op == "label" and gold.args[1].op == answer.args[1].op == "sym" and gold.value != answer.value:
        return (
            "an equation that is solved for something else"
            if symbols(gold.args[0]) and not _only_index(gold, answer)
            else ""
        )
    if _is_open_relation(gold) and not _is_open_relation(answer):
        return ""  # it is solved, where the reference is not
    golds, answers = ([_plain(value) for value in _values(side)] for side in (gold, answer))
    allowed = Counter[str]()
    for value in golds:
        allowed |= _undone(value)
    for value in answers:
        for name, count in _undone(value).items():
            if count > allowed[name] + (SLACK.get(name.partition(" of ")[0], 0) if allowed[name] else 0):
                return name
    decimal = any(map(_is_decimal, golds)) and not any(map(_is_fraction, golds))
    if decimal and any(_is_fraction(value) and _terminates(value) for value in answers):
        return "a fraction where a decimal is asked for"
    if len(golds) == len(answers) == 1:
        return _other_form(golds[0], answers[0])
    return ""


SLACK = {"a trigonometric function": 1, "an inverse trigonometric function": 1, "a factorial or binomial": 99}
"""How many functions more than the reference an answer may hold, where the reference has some: ``\\cos x/\\sin x`` for
``\\cot x``, ``n!/(k!(n-k)!)`` for a binomial."""


def _is_open_relation(node: Node) -> bool:
    """Whether some relation in the tree is solved for nothing: neither side is a name that the other side lacks."""
    if node.op == "rel":
        return not any(
            _is_name(member)
            and not any(symbols(member) & symbols(other) for at, other in enumerate(node.args) if at != here)
            for here, member in enumerate(node.args)
        )
    if node.op == "label":
        return False
    return node.op in CONTAINERS and any(_is_open_relation(arg) for arg in node.args)


def _only_index(gold: Node, answer: Node) -> bool:
    return bool(gold.value.partition("_")[0] == answer.value.partition("_")[0])


def _plain(node: Node) -> Node:
    """The tree with exponents that are fractions written as one number: the third root as the power 1/3."""
    if not node.args:
        return node
    args = tuple(_plain(arg) for arg in node.args)
    if node.op == "pow" and args[1].op == "mul" and (exponent := _fraction_of(args[1])) is not None:
        args = args[0], Node("num", (), exponent)
    return Node(node.op, args, node.value)


def _is_name(node: Node) -> bool:
    if node.op == "fn":
        return node.value not in FUNCTION_GROUPS and all(arg.op == "sym" for arg in node.args)
    return node.op in ("sym", "tuple") and all(_is_name(arg) for arg in node.args)


def _values(node: Node) -> Iterator[Node]:
    """The single values of an answer: members of its lists, sides of its relations, without labels, units, marks."""
    match node.op:
        case "label":
            yield from _values(node.args[0])
        case "unit" | "deg" | "pm":
            yield from _values(node.args[0])
        case "percent":
            yield from (
                Node("num", (), value.value[0]) if value.op == "dec" else value for value in _values(node.args[0])
            )
        case "ratio":
            yield node
            for arg in node.args:
                yield from _values(arg)
        case "rel":
            for arg in node.args:
                yield from _values(arg)
        case op if op in CONTAINERS:
            for arg in node.args:
                yield from _values(arg)
        case _:
            yield node


def _undone(node: Node) -> Counter[str]:
    """What is left to be done in an expression, by name, and how often (different functions are counted)."""
    found = Counter[str]()
    functions: set[Node] = set()
    _look(node, found, functions)
    for function in functions:
        group = FUNCTION_GROUPS[function.value]
        found[f"{group} of a symbol" if symbols(function) else f"{group} of numbers"] += 1
    if degree := max((_degree_below(term) for term in _terms(node)), default=0):
        found["a quotient by a symbol"] = degree
    return found


def _look(node: Node, found: Counter[str], functions: set[Node]) -> None:
    match node.op:
        case "add":
            _look_at_sum(node, found)
        case "mul":
            _look_at_product(node, found)
        case "pow":
            _look_at_power(node, found)
        case "fn" if node.value in FUNCTION_GROUPS:
            functions.add(node)
        case "big":
            found[f"{node.value[0]} left standing"] = 1
            return
        case "based" if node.value[1] != 10:
            found["digits in a base"] = 1
        case "ratio":
            members = [arg.value for arg in node.args if arg.op == "num" and arg.value.denominator == 1]
            if len(members) == len(node.args) and math.gcd(*(int(member) for member in members)) > 1:
                found["a ratio that is not in lowest terms"] = 1
            return
    for arg in node.args:
        _look(arg, found, functions)


# -- sums --------------------------------------------------------------------------------------------------------


def _look_at_sum(node: Node, found: Counter[str]) -> None:
    terms = [_split(term) for term in _terms(node)]
    rests = Counter(rest for coefficient, rest in terms)
    if rests.pop((), 0) > 1:
        found["a sum of numbers"] = 1
    if any(count > 1 for count in rests.values()):
        found["like terms"] = 1
    if any(factor.op == "add" for _, rest in terms for factor in rest):
        found["a sum within a sum"] = 1
    if (quotients := sum(_degree_below(term) > 0 for term in _terms(node))) > 1:
        found["a sum of quotients"] = quotients


def _terms(node: Node) -> Iterator[Node]:
    """The terms of a sum, and of sums within it; of anything else itself."""
    if node.op != "add":
        yield node
        return
    for arg in node.args:
        yield from _terms(arg)


def _degree_below(term: Node) -> int:
    """The degree of what a term is divided by: 3 for ``1/(x(x^2+1))``."""
    below = (
        f.args[0] if f.args[1] == MINUS_ONE else f for f in _factors(term) if f.op == "pow" and _negative(f.args[1])
    )
    return sum(max(1, _degree(factor)) for factor in below if symbols(factor) and _is_divisor(factor))


def _is_divisor(factor: Node) -> bool:
    """Functions below the line (sines, factorials) and powers of numbers make no quotient of polynomials."""
    return factor.op != "fn" and not (factor.op == "pow" and not symbols(factor.args[0]))


def _degree(node: Node) -> int:
    """The degree of a polynomial in all its symbols together; 1 for what is none."""
    match node.op:
        case "add":
            return max(_degree(arg) for arg in node.args)
        case "mul":
            return sum(_degree(arg) for arg in node.args)
        case "pow" if node.args[1].op == "num":
            power: Fraction = node.args[1].value
            return math.ceil(_degree(node.args[0]) * abs(power))
    return 1 if symbols(node) else 0


def _split(term: Node) -> tuple[Fraction, tuple[Node, ...]]:
    """A term's rational coefficient and its other factors, in an order that does not depend on how it is written."""
    coefficient, rest = Fraction(1), []
    for factor in _factors(term):
        number = _rational(factor)
        if number is None:
            rest.append(factor)
        else:
            coefficient *= number
    return coefficient, tuple(sorted(rest, key=repr))


def _factors(node: Node) -> Iterator[Node]:
    """The factors of a product, and of products within it; ``(ab)^{-1}`` as ``a^{-1}`` and ``b^{-1}``."""
    if node.op == "mul":
        for arg in node.args:
            yield from _factors(arg)
    elif node.op == "pow" and node.args[1] == MINUS_ONE and node.args[0].op == "mul":
        for factor in _factors(node.args[0]):
            yield Node("pow", (factor, MINUS_ONE))
    else:
        yield node


def _rational(node: Node) -> Fraction | None:
    """The value of a literal number, or of one over it."""
    if node.op == "num":
        value: Fraction = node.value
        return value
    if node.op == "dec":
        return Fraction(node.value[0])
    if node.op == "pow" and node.args[1] == MINUS_ONE and node.args[0].op in ("num", "dec"):
        below = _rational(node.args[0])
        return 1 / below if below else None
    return None


# -- products ----------------------------------------------------------------------------------------------------


def _look_at_product(node: Node, found: Counter[str]) -> None:
    factors = list(_factors(node))
    above = [f for f in factors if f.op in ("num", "dec") and abs(_rational(f) or 0) != 1]
    below = [f.args[0] for f in factors if f.op == "pow" and f.args[1] == MINUS_ONE and f.args[0].op in ("num", "dec")]
    literal = [_fraction_of(arg) is not None for arg in node.args]
    split = any(arg.op == "mul" and known for arg, known in zip(node.args, literal, strict=True)) and sum(literal) > 1
    if (
        not is_scientific(factors)
        and not _is_counted(factors)
        and (len(above) > 1 or len(below) > 1 or MINUS_ONE in factors[1:] or (split and node.args[0] != MINUS_ONE))
    ):
        found["a product of numbers"] = 1
    if any(
        f.op == "pow" and f.args[1] == MINUS_ONE and f.args[0].op == "pow" and _negative(f.args[0].args[1])
        for f in factors
    ):
        found["a quotient of quotients"] = 1
    if below and not all(f.op == "num" and f.value.denominator == 1 for f in (*above, *below)):
        found["a quotient of decimals"] = 1
    elif below:
        bottom = math.prod(int(f.value) for f in below)
        tops = [int(f.value) for f in above] or [1]
        sums_above = [f for f in factors if f.op == "add"]
        if math.gcd(math.prod(tops), bottom) > 1 or any(math.gcd(_content(f), bottom) > 1 for f in sums_above):
            found["a fraction that is not in lowest terms"] = 1
    if any(
        _content(f.args[0]) > 1 for f in factors if f.op == "pow" and f.args[1] == MINUS_ONE and f.args[0].op == "add"
    ):
        tops = [abs(int(f.value)) for f in above if f.op == "num" and f.value.denominator == 1]
        tops += [_content(f) for f in factors if f.op == "add"]
        contents = [_content(f.args[0]) for f in factors if f.op == "pow" and f.args[0].op == "add"]
        if math.gcd(math.prod(tops), math.prod(contents)) > 1:
            found["a fraction that is not in lowest terms"] = 1
    _look_at_roots(factors, found)
    bases = Counter(f.args[0] if f.op == "pow" else f for f in factors)
    if any(count > 1 for base, count in bases.items() if base.op in ("sym", "const")) or any(
        sum(f.op == "pow" and f.args[0] == base and f.args[1] != MINUS_ONE for f in factors) > 1
        for base in bases
        if base.op == "num"
    ):
        found["like factors"] = 1
    sums = sum(_multiplicity(f) for f in factors)
    others = [f for f in factors if _multiplicity(f) == 0 and _rational(f) is None]
    if sums > 1 or (sums == 1 and any(f.op == "pow" and _multiplicity(f) for f in factors)):
        found["a product of sums"] = 1
    elif sums and (others if symbols(node) else any(map(_holds_root, others))):
        found["a product with a sum"] = 1
    elif sums and symbols(node) and above:
        found["a number times a sum"] = 1


def is_scientific(factors: list[Node]) -> bool:
    """Whether factors are a mantissa from 1 to 10 and a power of ten."""
    numbers = [abs(_rational(f) or Fraction(0)) for f in factors if f.op in ("num", "dec")]
    powers = [f for f in factors if f.op == "pow" and f.args[0] == TEN and f.args[1].op == "num"]
    mantissas = [number for number in numbers if number != 1] or [Fraction(1)]
    return len(powers) == 1 and len(mantissas) == 1 and len(factors) - len(numbers) == 1 and 1 <= mantissas[0] < 10


def _is_counted(factors: list[Node]) -> bool:
    """Whether factors are a number and one of the words thousand, million, billion, trillion, which are read so."""
    values = [_rational(f) for f in factors]
    return len(values) == 2 and values[1] in (10**3, 10**6, 10**9, 10**12)


def _negative(node: Node) -> bool:
    return node.op == "num" and bool(node.value < 0)


def _content(node: Node) -> int:
    """The greatest common divisor of a sum's coefficients, 1 where they are no integers."""
    coefficients = [_split(term)[0] for term in _terms(node)]
    if any(value.denominator != 1 for value in coefficients):
        return 1
    return math.gcd(*(int(value) for value in coefficients))


def _multiplicity(factor: Node) -> int:
    """How many sums a factor multiplies: 1 for ``(x+1)``, 2 for its square; what is below the line does not count."""
    if factor.op == "add":
        return 1
    if factor.op == "pow" and factor.args[0].op == "add" and factor.args[1].op == "num":
        power: Fraction = factor.args[1].value
        return max(0, math.floor(power))
    return 0


def _look_at_roots(factors: list[Node], found: Counter[str]) -> None:
    above = [f for f in factors if _is_root(f) and f.args[1].value > 0]
    below = [f for f in factors if _is_root(f) and f.args[1].value < 0]
    below += [f.args[0] for f in factors if f.op == "pow" and f.args[1] == MINUS_ONE and _is_root(f.args[0])]
    if len(above) > 1 or (above and below) or len(below) > 1:
        found["a product of roots"] = 1
    elif len(below) == 1 and below[0].args[0].op == "num":
        tops = [int(f.value) for f in factors if f.op == "num" and f.value.denominator == 1]
        radicand = below[0].args[0].value
        if radicand.denominator != 1 or math.gcd(math.prod(tops), int(radicand)) > 1:
            found["a root that can be simplified"] = 1
    for f in factors:
        if (
            f.op == "pow"
            and f.args[1] == MINUS_ONE
            and (f.args[0] == IMAGINARY or (f.args[0].op == "add" and _holds_root(f.args[0])))
        ):
            found["a root in the denominator"] = 1


def _is_root(node: Node) -> bool:
    return node.op == "pow" and node.args[1].op == "num" and node.args[1].value.denominator > 1


def _holds_root(node: Node) -> bool:
    return (_is_root(node) and not symbols(node)) or node == IMAGINARY or any(_holds_root(arg) for arg in node.args)


# -- powers ------------------------------------------------------------------------------------------------------


def _look_at_power(node: Node, found: Counter[str]) -> None:
    base, exponent = node.args
    if contains(exponent, "const", "i"):
        found["an exponential of an imaginary number"] = 1
    if exponent.op != "num":
        return
    power = exponent.value
    if power.denominator == 1:
        if base == IMAGINARY:
            found["a power of i"] = 1
        if power == -1:
            return
        if base.op in ("num", "dec"):
            if base != TEN:
                found["a power of a number"] = 1
        elif base.op == "add":
            found["a product of sums"] = 1
        elif base.op in ("pow", "mul"):
            found["a power of a product"] = 1
        return
    if base.op == "pow":
        found["a root of a power"] = 1
    elif base.op == "num":
        if base.value.denominator != 1 or _has_power_factor(
            abs(int(base.value)) ** abs(power.numerator), power.denominator
        ):
            found["a root that can be simplified"] = 1
    elif base.op == "dec":
        found["a root that can be simplified"] = 1
    elif base.op == "mul":
        coefficient = _split(base)[0]
        if coefficient.denominator != 1 or _has_power_factor(abs(int(coefficient)), power.denominator):
            found["a root that can be simplified"] = 1
        if any(_degree(f) >= power.denominator for f in _factors(base) if f.op == "pow" and f.args[0].op == "sym"):
            found["a root that can be simplified"] = 1
        degrees = [_degree(f) for f in _factors(base) if symbols(f)]
        if degrees and math.gcd(power.denominator, *degrees) > 1 and abs(coefficient) != 1:
            found["a root that can be simplified"] = 1
        if not symbols(base) and any(_is_root(factor) for factor in _factors(base)):
            found["a root of a root"] = 1
    elif base.op == "add" and not symbols(base):
        found["a root of a sum"] = 1


def _fraction_of(node: Node) -> Fraction | None:
    coefficient, rest = _split(node)
    return None if rest else coefficient


def _has_power_factor(number: int, degree: int) -> bool:
    """Whether a number above 1 to this power divides the number."""
    if number == 0 or number > MAX_ROOT:
        return False
    if number == 1:
        return True
    factor = 2
    while factor**degree <= number:
        if number % factor**degree == 0:
            return True
        while number % factor == 0:
            number //= factor
        factor += 1
    return False


# -- forms that a reference asks for -------------------------------------------------------------------------------


def _other_form(gold: Node, answer: Node) -> str:
    """What a reference that is itself a product or a sum of quotients asks for, where the answer is none."""
    if symbols(gold):
        if _is_factored(gold) and _sums(answer) < _sums(gold):
            return "not factored as the reference is"
        parts = sum(_degree_below(term) > 0 for term in _terms(gold))
        if gold.op == "add" and parts > 1 and answer.op != "add":
            return "one quotient where a sum of them is asked for"
    elif _is_factorisation(gold) and answer.op in ("num", "dec"):
        return "not factored as the reference is"
    return ""


def _sums(node: Node) -> int:
    """Factors that are sums, with their multiplicity; a product of one sum and symbols counts like two."""
    factors = list(_factors(node))
    count = sum(_multiplicity(f) for f in factors)
    return count + (count == 1 and any(symbols(f) and not _multiplicity(f) for f in factors))


def _is_factored(node: Node) -> bool:
    """Whether an expression is written as factors, as an exercise in factoring asks: without a quotient."""
    factors = list(_factors(node))
    return not any(f.op == "pow" and _negative(f.args[1]) for f in factors) and _sums(node) > 1


def _is_factorisation(node: Node) -> bool:
    """Whether a number is written as a product of powers of different primes."""
    factors = list(_factors(node))
    bases = [f.args[0] if f.op == "pow" and f.args[1].op == "num" and f.args[1].value >= 1 else f for f in factors]
    return (
        len(factors) > 1
        and len(set(bases)) == len(bases)
        and all(b.op == "num" and b.value.denominator == 1 and _is_prime(int(b.value)) for b in bases)
    )


def _is_prime(number: int) -> bool:
    return 1 < number < 10**6 and all(number % factor for factor in range(2, math.isqrt(number) + 1))


def _is_decimal(node: Node) -> bool:
    return node.op == "dec" and bool(node.value[0].denominator != 1)


def _is_fraction(node: Node) -> bool:
    value = _fraction_of(node)
    return node.op in ("num", "mul") and value is not None and value.denominator != 1


def _terminates(node: Node) -> bool:
    rest = (_fraction_of(node) or Fraction(0)).denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
