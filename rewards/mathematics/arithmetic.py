"""Arithmetic of answers, read by recursive descent: sums, products, powers, numbers, names and functions."""

from __future__ import annotations

from fractions import Fraction

from rewards.mathematics.nodes import (
    IMAGINARY,
    INFINITY,
    PI,
    E,
    Node,
    TooLarge,
    Unreadable,
    add,
    divide,
    double_factorial,
    minus_plus,
    multiply,
    neg,
    num,
    plus_minus,
    power,
)
from rewards.mathematics.tokens import FUNCTIONS, GREEK

MAX_DEPTH = 60
MAX_DIGITS = 400

BIG = frozenset(("sum", "prod", "int", "iint", "oint", "lim", "limsup", "liminf", "bigcup", "bigcap"))
NUMERALS = {name: str(base) for base, name in enumerate(("two", "three", "four", "five", "six", "seven", "eight"), 2)}
"""Bases as words."""
CALLED = frozenset("fghFGHPQRTWpq")
"""Letters that are functions where one letter in parentheses follows: f(x); f(x + 1) may be a product."""


class Arithmetic:
    """A cursor over tokens, and the reading of one value; what stands in brackets is read by `Parser`."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.in_bars = 0

    def _answer(self, stop: frozenset[str]) -> Node:
        raise NotImplementedError

    def _enclosed(self, opening: str) -> Node | None:
        """What stands in brackets, braces of a set, or a matrix environment; None where the token opens none."""
        raise NotImplementedError

    # -- tokens ----------------------------------------------------------------------------------------------------

    def _peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        if not token:
            raise Unreadable("the answer breaks off")
        self.at += 1
        return token

    def _accept(self, *tokens: str) -> bool:
        if self._peek() in tokens and self._peek():
            self.at += 1
            return True
        return False

    def _expect(self, *tokens: str) -> str:
        token = self._next()
        if token not in tokens:
            raise Unreadable(f"{token!r} stands where {' or '.join(tokens)} should")
        return token

    # -- arithmetic ------------------------------------------------------------------------------------------------

    def _sum(self) -> Node:
        terms = [self._term()]
        while True:
            token = self._peek()
            if token not in ("+", "-", r"\pm", r"\mp"):
                return add(*terms)
            self.at += 1
            term = self._term()
            terms.append({"+": lambda n: n, "-": neg, r"\pm": plus_minus, r"\mp": minus_plus}[token](term))

    def _term(self) -> Node:
        node = self._signed()
        while True:
            token = self._peek()
            if token in ("*", r"\cdot", r"\times", r"\ast"):
                self.at += 1
                node = multiply(node, self._signed())
            elif token in ("/", r"\div"):
                self.at += 1
                node = divide(node, self._signed())
            elif self._starts_factor(token):
                if token[0] in "{0123456789":
                    self._check_beside(node)
                node = multiply(node, self._power())
            else:
                return node

    def _check_beside(self, node: Node) -> None:
        """Digits beside digits are no product: neither ``3 5`` nor ``{3}{5}``, which is printed as 35."""
        before, behind = self.tokens[self.at - 1], "".join(self.tokens[self.at : self.at + 2]).lstrip("{")
        if behind[:1].isdigit() and (before[0].isdigit() or (before == "}" and node.op in ("num", "dec", "based"))):
            raise Unreadable(f"two numbers side by side: {before} {behind}")

    def _signed(self) -> Node:
        """A factor with any number of signs before it; a loop, because thousands of signs are no recursion."""
        sign, marks = 1, []
        while self._peek() in ("+", "-", r"\pm", r"\mp"):
            token = self._next()
            if token == "-":
                sign = -sign
            elif token != "+":
                marks.append(token)
        node = self._power()
        for mark in reversed(marks):
            node = plus_minus(node) if mark == r"\pm" else minus_plus(node)
        return neg(node) if sign < 0 else node

    def _starts_factor(self, token: str) -> bool:
        if not token or token[0] == "&":
            return False
        if (token[0].isalnum() and token.isascii()) or token in (
            "(",
            "[",
            "{",
            r"\{",
            r"\lfloor",
            r"\lceil",
            r"\lvert",
        ):
            return True
        if token == "|":
            return not self.in_bars
        name = token[1:]
        if token.startswith(r"\begin"):
            return True
        return token[0] == "\\" and (
            name in FUNCTIONS
            or name in GREEK
            or name in BIG
            or name in ("frac", "sqrt", "pi", "infty", "binom", "imath", "basisi", "basisj", "basisk")
        )

    def _power(self) -> Node:
        """A primary with what stands behind it: powers, factorials, degrees, percents."""
        start = self.at
        node = self._primary()
        is_integer = self.tokens[start].isdigit() and self.at == start + 1
        if is_integer and self._peek() == r"\frac":
            node = self._mixed(node)
        while True:
            token = self._peek()
            if token in ("^", "**"):
                self.at += 1
                node = power(node, self._argument())
            elif token == "!":
                self.at += 1
                if is_double := self._peek() == "!":
                    self.at += 1
                node = double_factorial(node) if is_double else Node("fn", (node,), "factorial")
            elif token == "%":
                self.at += 1
                node = Node("percent", (node,))
            elif token == r"\deg":
                self.at += 1
                node = self._degrees(node)
            elif token == "'" and node.op == "sym":
                self.at += 1
                node = Node("sym", (), node.value + "'")
            else:
                return node

    def _mixed(self, whole: Node) -> Node:
        """``3\\frac{1}{2}`` is 3.5 when both parts of the fraction are plain integers."""
        mark = self.at
        self.at += 1
        top, bottom = self._argument(split_digits=True), self._argument(split_digits=True)
        if all(part.op == "num" and part.value.denominator == 1 and part.value > 0 for part in (top, bottom)):
            return num(whole.value + top.value / bottom.value)
        self.at = mark
        return whole

    def _degrees(self, degrees: Node) -> Node:
        """``60\\deg 42' 30''`` in degrees."""
        total = degrees
        if self._peek()[:1].isdigit() and self.at + 1 < len(self.tokens) and self.tokens[self.at + 1] == "'":
            total = add(total, divide(self._primary(), num(60)))
            self._next()
            if self._peek()[:1].isdigit():
                total = add(total, divide(self._primary(), num(3600)))
                while self._accept("'", '"'):
                    pass
        return Node("deg", (total,))

    def _argument(self, split_digits: bool = False) -> Node:
        """The argument of ``\\frac``, ``^`` and the like: a group or one token (one digit, as TeX reads it)."""
        if self._accept("{"):
            node = self._answer(frozenset("}"))
            self._expect("}")
            return node
        token = self._peek()
        if split_digits and token.isdigit() and len(token) > 1:
            self.tokens[self.at] = token[1:]
            return num(int(token[0]))
        if token in ("+", "-"):
            self.at += 1
            return neg(self._argument()) if token == "-" else self._argument()
        return self._primary()

    def _argument_tokens(self) -> list[str]:
        """A group or one token, unread."""
        if not self._accept("{"):
            return [self._next()]
        taken, depth = [], 1
        while depth:
            token = self._next()
            depth += (token == "{") - (token == "}")
            taken.append(token)
        return taken[:-1]

    # -- primaries -------------------------------------------------------------------------------------------------

    def _primary(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooLarge(f"nested deeper than {MAX_DEPTH}")
        node = self._primary_of(self._next())
        self.depth -= 1
        return node

    def _primary_of(self, token: str) -> Node:
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return self._number(token)
        enclosed = self._enclosed(token)
        if enclosed is not None:
            return enclosed
        if token == "{":
            inner = self._answer(frozenset("}")) if self._peek() != "}" else Node("set")
            self._expect("}")
            return inner
        if token in ("|", r"\lvert"):
            self.in_bars += 1
            inner = self._sum()
            self._expect("|", r"\rvert")
            self.in_bars -= 1
            if inner.op == "matrix":
                return Node("fn", (inner,), "det")
            return Node("fn", (inner,), "abs")
        if token in (r"\lfloor", r"\lceil"):
            inner = self._sum()
            self._expect(r"\rfloor", r"\rceil")
            return Node("fn", (inner,), "floor" if token == r"\lfloor" else "ceil")
        if token.startswith("&"):
            raise Unreadable(f"the words {token.partition(':')[2] or token[1:]!r} are out of place")
        if token[0].isalpha() and token.isascii():
            return self._name(token)
        if token[0] == "\\":
            return self._command(token[1:])
        raise Unreadable(f"{token!r} is out of place")

    def _number(self, token: str) -> Node:
        if len(token) > MAX_DIGITS:
            token = (token.rstrip("0") + "0" if "." in token else token).lstrip("0") or "0"
        if len(token) > MAX_DIGITS:
            raise TooLarge(f"a number of more than {MAX_DIGITS} digits")
        if self._peek() == "_":
            self.at += 1
            base = raw(self._argument_tokens()).removeprefix("&unit:").removeprefix("&words:")
            base = NUMERALS.get(base, base)
            if not base.isdigit() or not token.isdigit():
                raise Unreadable(f"{base!r} is no base")
            return Node("based", (), (token, int(base)))
        if token.isdigit():
            return num(int(token))
        mantissa, _, exponent = token.lower().partition("e")
        if exponent and abs(int(exponent)) > MAX_DIGITS:
            raise TooLarge(f"an exponent beyond {MAX_DIGITS}")
        value = Fraction(mantissa) * Fraction(10) ** int(exponent or 0)
        return num(value) if exponent else Node("dec", (), (value, len(mantissa.partition(".")[2])))

    def _name(self, token: str) -> Node:
        if token in FUNCTIONS:
            return self._function(token)
        if token == "C" and (chosen := self._chosen()) is not None:
            return chosen
        if (called := self._called(token)) is not None:
            return called
        node = E if token == "e" else IMAGINARY if token == "i" else Node("sym", (), token)
        return self._subscript(node) if self._peek() == "_" else node

    def _called(self, name: str) -> Node | None:
        """f(x), f^{-1}(x) or u(x, y): a function's name with its variables; None where it may be a product."""
        rest = self.tokens[self.at : self.at + 12]
        if name in CALLED and rest[:6] == ["^", "{", "-", "1", "}", "("]:
            skipped, rest = 5, rest[5:]
            name += "^-1"
        elif name in CALLED and rest[:2] == ["'", "("]:
            skipped, rest = 1, rest[1:]
            name += "'"
        else:
            skipped = 0
        if rest[:1] != ["("] or ")" not in rest:
            return None
        inside = rest[1 : rest.index(")")]
        single = len(inside) == 1 and name[0] in CALLED
        several = len(inside) in (3, 5) and all(token == "," for token in inside[1::2])
        if not (single or several) or not all(token.isalpha() and token.isascii() for token in inside[::2]):
            return None
        self.at += skipped + len(inside) + 2
        return Node("fn", tuple(Node("sym", (), token) for token in inside[::2]), name)

    def _chosen(self) -> Node | None:
        """C(10, 3) as a binomial coefficient; None for anything else."""
        rest = self.tokens[self.at : self.at + 5]
        if (
            rest[:1] != ["("]
            or rest[2:3] != [","]
            or rest[4:5] != [")"]
            or not (rest[1].isdigit() and rest[3].isdigit())
        ):
            return None
        self.at += 5
        return Node("fn", (num(int(rest[1])), num(int(rest[3]))), "binom")

    def _subscript(self, node: Node) -> Node:
        self.at += 1
        return Node("sym", (), f"{node.value}_{raw(self._argument_tokens())}")

    def _command(self, name: str) -> Node:
        if name == "frac":
            top = self._argument(split_digits=True)
            return divide(top, self._argument(split_digits=True))
        if name == "sqrt":
            index = None
            if self._accept("["):
                index = self._sum()
                self._expect("]")
            root = divide(num(1), index) if index else num(Fraction(1, 2))
            return power(self._argument(), root)
        if name == "binom":
            top = self._argument(split_digits=True)
            return Node("fn", (top, self._argument(split_digits=True)), "binom")
        if name in BIG:
            return self._big(name)
        if name in ("basisi", "basisj", "basisk"):
            return Node("sym", (), "\\" + name)
        if name in FUNCTIONS:
            return self._function(name)
        constants = {"pi": PI, "infty": INFINITY, "emptyset": Node("set"), "R": Node("reals"), "imath": IMAGINARY}
        if name in constants:
            return constants[name]
        if name == "Gamma" and self._peek() == "(":
            return self._function("gamma")
        if name in GREEK:
            node = Node("sym", (), "\\" + name)
            return self._subscript(node) if self._peek() == "_" else node
        raise Unreadable(f"the command \\{name} is not known")

    def _big(self, name: str) -> Node:
        bounds = {"_": "", "^": ""}
        while self._peek() in ("_", "^"):
            mark = self._next()
            bounds[mark] = raw(self._argument_tokens())
        body = self._term()
        if bounds["_"].startswith("i="):  # an index, not the imaginary unit
            body = renamed(body, IMAGINARY, Node("sym", (), "i"))
        return Node("big", (body,), (name, bounds["_"], bounds["^"]))

    def _function(self, name: str) -> Node:
        base: Node | None = None
        exponent: Node | None = None
        while self._peek() in ("_", "^"):
            if self._next() == "_":
                base = self._argument()
            else:
                exponent = self._argument()
        if exponent is not None and exponent == num(-1) and name in ("sin", "cos", "tan", "cot", "sec", "csc"):
            name, exponent = "arc" + name, None
        if self._peek() in ("(", "[", "{"):
            closing = {"(": ")", "[": "]", "{": "}"}[self._next()]
            inner = self._answer(frozenset(closing))
            self._expect(closing)
            args = inner.args if inner.op == "list" else (inner,)
        else:
            args = (self._bare_argument(),)
        node = _apply(name, args, base)
        return power(node, exponent) if exponent is not None else node

    def _bare_argument(self) -> Node:
        r"""The argument of ``\sin 2x``: factors up to the next sign, bracket or function."""
        node = self._signed()
        while True:
            token = self._peek()
            if (
                not self._starts_factor(token)
                or token in ("(", "[", "{", "|", r"\{")
                or token.lstrip("\\") in FUNCTIONS
            ):
                return node
            node = multiply(node, self._power())


def _apply(name: str, args: tuple[Node, ...], base: Node | None) -> Node:
    if name == "sqrt":
        return power(args[0], num(Fraction(1, 2)))
    if name == "cbrt":
        return power(args[0], num(Fraction(1, 3)))
    if name in ("log", "lg") and (base is not None or name == "lg"):
        return divide(Node("fn", args, "ln"), Node("fn", (base or num(10),), "ln"))
    name = {"log": "ln", "asin": "arcsin", "acos": "arccos", "atan": "arctan"}.get(name, name)
    if name == "exp":
        return power(E, args[0])
    if name == "cis":
        return add(Node("fn", args, "cos"), Node("mul", (IMAGINARY, Node("fn", args, "sin"))))
    return Node("fn", args, name)


def renamed(node: Node, old: Node, new: Node) -> Node:
    """The tree with one leaf replaced."""
    if node == old:
        return new
    return Node(node.op, tuple(renamed(arg, old, new) for arg in node.args), node.value) if node.args else node


def raw(tokens: list[str]) -> str:
    """Tokens as text, braces dropped: a subscript or a bound."""
    return "".join(tokens).replace("{", "").replace("}", "")
