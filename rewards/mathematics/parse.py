"""Whole answers, read by recursive descent: lists, relations, ratios, units, brackets, sets and matrices."""

from __future__ import annotations

from rewards.mathematics.arithmetic import MAX_DEPTH, Arithmetic, raw
from rewards.mathematics.nodes import Node, TooLarge, Unreadable
from rewards.mathematics.tokens import collapse_brackets, join_thousands, tokenise

MAX_LENGTH = 8_000
CONDITION_WORDS = ("if", "for", "when", "where", "as")
ELSE_WORDS = ("otherwise", "else", "elsewhere")

RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", r"\leq": "<=", r"\geq": ">=",
    r"\neq": "!=", r"\lt": "<", r"\gt": ">", r"\in": "in", r"\approx": "~", r"\equiv": "=",
}  # fmt: skip


class Parser(Arithmetic):
    """Reads one normalised text; every error is `Unreadable`."""

    def __init__(self, text: str, thousands: bool = True) -> None:
        if len(text) > MAX_LENGTH:
            raise TooLarge(f"longer than {MAX_LENGTH} characters")
        text = collapse_brackets(text)
        super().__init__(tokenise(join_thousands(text) if thousands else text))

    def parse(self) -> Node:
        """The whole text as one answer."""
        if not self.tokens:
            raise Unreadable("an empty answer")
        node = self._answer(frozenset())
        if self.at < len(self.tokens):
            raise Unreadable(f"{self.tokens[self.at]!r} is out of place")
        return node

    # -- answers ---------------------------------------------------------------------------------------------------

    def _separator(self) -> bool:
        found = False
        while self._accept(",", ";", "&and", "&or"):
            found = True
        before = self.tokens[self.at - 1] if self.at else ""
        return found or (before.startswith("&unit:") and self._peek()[:1].isdigit())  # 2 hours 30 minutes

    def _answer(self, stop: frozenset[str]) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooLarge(f"nested deeper than {MAX_DEPTH}")
        start = self.at
        items = [self._item()]
        while self._peek() not in stop and self._separator():
            if not self._peek() and not stop:
                break
            items.append(self._item())
        self.depth -= 1
        joined = "or" if "&or" in self.tokens[start : self.at] else None
        return items[0] if len(items) == 1 else Node("list", tuple(items), joined)

    def _item(self) -> Node:
        """A relation chain, a ratio or a value, with its unit."""
        members, operators = [self._union()], []
        if self._peek() == ":":
            start = self.at
            parts = [members[0]]
            while self._accept(":"):
                parts.append(self._union())
            members[0] = Node("ratio", tuple(parts), "".join(self.tokens[max(0, start - 1) : self.at]))
        while self._peek() in RELATIONS:
            operators.append(RELATIONS[self._next()])
            member = self._union()
            if self._peek() == ":":
                start, parts = self.at, [member]
                while self._accept(":"):
                    parts.append(self._union())
                member = Node("ratio", tuple(parts), "".join(self.tokens[start - 1 : self.at]))
            members.append(member)
        return Node("rel", tuple(members), tuple(operators)) if operators else members[0]

    def _union(self) -> Node:
        parts = [self._with_unit()]
        while self._accept(r"\cup", "U") if self._peek() != "U" or _is_region(parts[-1]) else False:
            parts.append(self._with_unit())
        node = parts[0] if len(parts) == 1 else Node("union", tuple(parts))
        if self._accept(r"\setminus", r"\backslash"):
            node = Node("minus", (node, self._with_unit()))
        return node

    def _with_unit(self) -> Node:
        node = self._sum()
        names: list[str] = []
        while self._peek().startswith("&unit:") or (names and self._peek() in ("/", "^", "per")):
            token = self._next()
            if names and token.startswith("&unit:") and names[-1] != "/":
                names.append("*")
            if token == "^":
                exponent = raw(self._argument_tokens())
                if names[-1].endswith("^-1"):  # m/s, squared below the line
                    names[-1] = names[-1].removesuffix("1") + exponent
                else:
                    names.append("^" + exponent)
            else:
                names.append(token.removeprefix("&unit:"))
        return Node("unit", (node,), "".join(names)) if names else node

    # -- brackets --------------------------------------------------------------------------------------------------

    def _enclosed(self, opening: str) -> Node | None:
        if opening in ("(", "["):
            return self._bracket(opening)
        if opening == "]":  # French open interval ]a, b[
            inner = self._answer(frozenset("[]"))
            close = self._expect("[", "]")
            return _tuple(inner, "(" + (")" if close == "[" else "]"))
        if opening == r"\{":
            return self._set()
        if opening.startswith(r"\begin"):
            return self._matrix(opening)
        return None

    def _bracket(self, opening: str) -> Node:
        if self._peek() == ")":
            raise Unreadable("empty parentheses")
        inner = self._answer(frozenset(")]"))
        closing = self._expect(")", "]")
        if inner.op != "list" and opening + closing in ("()", "[]"):
            return inner
        return _tuple(inner, opening + closing)

    def _set(self) -> Node:
        if self._accept(r"\}"):
            return Node("set")
        if (colon := self._behind_name()) and self.tokens[colon : colon + 1] == [":"]:
            self.at = colon + 1  # {x : condition}, {(x, y) : condition}
        self.in_bars += 1  # a bar here is "such that", not the beginning of an absolute value
        inner = self._answer(frozenset([r"\}", "|", r"\mid"]))
        self.in_bars -= 1
        if self._accept("|", r"\mid"):
            inner = self._answer(frozenset([r"\}"]))  # {x | condition}: the condition says it all
        self._expect(r"\}")
        if inner.op == "rel" or (inner.op == "list" and inner.value == "or" and all(a.op == "rel" for a in inner.args)):
            return inner
        if inner.op == "ratio" and len(inner.args) == 2 and inner.args[0].op == "sym" and inner.args[1].op == "rel":
            return inner.args[1]
        return Node("set", inner.args if inner.op == "list" else (inner,))

    def _behind_name(self) -> int:
        """Where a name, or a point of names, that opens a set-builder ends; 0 where there is none."""
        if self._peek().isalpha():
            return self.at + 1
        if self._peek() == "(" and ")" in self.tokens[self.at :]:
            end = self.tokens.index(")", self.at)
            if all(token.isalpha() or token == "," for token in self.tokens[self.at + 1 : end]):
                return end + 1
        return 0

    def _said(self) -> str:
        """The words of the next token, or ""."""
        return (
            self._peek().partition(":")[2].strip(" ,.").lower()
            if self._peek().startswith(("&words:", "&unit:"))
            else ""
        )

    def _cases(self) -> Node:
        """A piecewise function, or a system: its rows as relations."""
        rows: list[list[Node]] = [[]]
        end = next((at for at in range(self.at, len(self.tokens)) if self.tokens[at].startswith(r"\end")), self.at)
        marks = [at for at in range(self.at, end) if self.tokens[at] == "&" and self.tokens[at + 1] in RELATIONS]
        for at in reversed(marks):
            del self.tokens[at]  # x &= 3
        while not self._peek().startswith(r"\end"):
            if self._accept(r"\\"):
                rows.append([])
            elif self._accept("&") or self._accept(",") or self._accept(";") or self._accept("."):
                continue
            elif self._said() in CONDITION_WORDS:
                self.at += 1
            elif self._said() in ELSE_WORDS:
                self.at += 1
                rows[-1].append(Node("else"))
            else:
                rows[-1].append(self._item())
        self.at += 1
        rows = [row for row in rows if row]
        if rows and all(len(row) == 1 for row in rows):
            return Node("list", tuple(row[0] for row in rows)) if len(rows) > 1 else rows[0][0]
        if not rows or any(len(row) != 2 or row[1].op not in ("rel", "else") for row in rows):
            raise Unreadable("the rows of a piecewise function are no value and condition")
        return Node("cases", tuple(cell for row in rows for cell in row))

    def _matrix(self, token: str) -> Node:
        name = token.partition("{")[2].rstrip("}*")
        if name in ("cases", "dcases", "rcases", "aligned", "align", "gathered", "split", "alignedat"):
            return self._cases()
        if name not in ("pmatrix", "bmatrix", "matrix", "vmatrix", "Bmatrix", "array", "smallmatrix"):
            raise Unreadable(f"the environment {name!r} is not known")
        if name == "array" and self._peek() == "{":
            self._argument_tokens()
        rows: list[list[Node]] = [[]]
        while not self._peek().startswith(r"\end"):
            if self._accept(r"\\"):
                rows.append([])
            elif not self._accept("&"):
                rows[-1].append(self._union())
        self.at += 1
        rows = [row for row in rows if row]
        if not rows or len({len(row) for row in rows}) > 1:
            raise Unreadable("the rows of a matrix have different lengths")
        matrix = Node("matrix", tuple(cell for row in rows for cell in row), (len(rows), len(rows[0])))
        return Node("fn", (matrix,), "det") if name == "vmatrix" else matrix


def _tuple(inner: Node, brackets: str) -> Node:
    return Node("tuple", inner.args if inner.op == "list" else (inner,), brackets)


def _is_region(node: Node) -> bool:
    return node.op in ("tuple", "set", "union", "reals")
