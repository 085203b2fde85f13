"""The program in a completion: out of its fence, without what surrounds it, and with the blocks that it rests on.

Of several blocks, that one is the program which defines what the tests ask for, or reads the input, wherever a
demonstration stands; the names that it takes from blocks before it come with it. What is repaired is only what would be
no program: a fence that a docstring holds, a fence on the last line of the code, the indentation of a list item,
no-break spaces, an end token, prose around code that has no fence.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from rewards.sandbox import test_names

LANGUAGES = {"python": ("python", "py", "python3"), "c": ("c",), "cpp": ("cpp", "c++", "cc", "cxx")}
_TAG_NAMES = {
    "python": re.compile(r"(?:python|py|pypy)[\d.]*\Z"),
    "c": re.compile(r"c(?:\d\d|lang)?\Z"),
    "cpp": re.compile(r"(?:cpp|c\+\+|cc|cxx|g\+\+)[\d]*\Z"),
}
_OPEN = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*\{?\.?([\w+#.-]*)[^`~]*\Z")
_END_TOKEN = re.compile(r"(?:<\|[^|<>\n]{1,40}\|>|<｜[^｜<>\n]{1,40}｜>|</s>|<(?:end|start)_of_turn>)\Z")
_END_TOKEN_LENGTH = 44
_INLINE = re.compile(r"```(?:python|py)?[ \t]+([^`\n]+?)[ \t]*```")
_CODE_LINE = re.compile(
    r"(?m)^\s*(def |class |import |from \w+ import|for .*:$|while .*:$|print\(|#include|int main|\w+ = )"
)
_COMMENT = re.compile(r"(?m)^[ \t]*(?:#|//).*$")
_READS_INPUT = {
    "python": re.compile(r"\binput\b|\bstdin\b|open\(0\)|os\.read\(0|fileinput"),
    "c": re.compile(r"\bmain\s*\("),
    "cpp": re.compile(r"\bmain\s*\("),
}
_MOST_FENCES, _MOST_LINES, _MOST_SPANS, _MOST_BLOCKS = 20, 400, 500, 50


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the program must have: names that it defines, or (for tests of streams) something that reads the input."""

    names: tuple[str, ...] = ()
    input: bool = False


@dataclass(frozen=True, slots=True)
class _Block:
    is_marked: bool
    """Named as the language; else without a name."""
    code: str


def extract_code(completion: str, language: str, how: str, wanted: Wanted | None = None) -> str | None:
    """The program in a completion, or None.

    Only what follows the last ``</think>`` counts (thinking that never ends holds no answer), and of it what stands in
    ``<answer>`` or ``[PYTHON]``, if anything does. ``fenced``: a block named as the language, else one without a name;
    of several the last that has what is `wanted`, else the last; a block that is never closed runs to the end.
    ``whole``: all of the text. ``auto``: fenced, and where there is no fence at all, the whole text or the code in it.
    """
    _, end, text = completion.rpartition("</think>")
    if not end and "<think>" in text:
        return None
    if how == "whole":
        return text if text.strip() else None
    end_of_text = len(text.rstrip())
    while match := _END_TOKEN.search(text, max(0, end_of_text - _END_TOKEN_LENGTH), end_of_text):
        text = text[: match.start()].rstrip()
        end_of_text = len(text)
    text = _inside(text, "<answer>", "</answer>")
    blocks, any_fence = _blocks(text, language)
    if not any_fence and "[PYTHON]" in text:
        return _plain(_inside(text, "[PYTHON]", "[/PYTHON]"), language)
    if not any_fence and how == "auto":
        inline = _INLINE.findall(text) if language == "python" else []
        return _plain(inline[-1] if inline else _without_prose(text, language), language)
    return _plain(_chosen(blocks, language, wanted or Wanted()), language)


def looks_like_code(text: str) -> bool:
    """True where a line of the text begins as code does: to tell a broken program from prose."""
    return _CODE_LINE.search(text) is not None


def with_prompt(code: str, prompt: str, entry_point: str | None) -> str:
    """The whole program: the prompt, then a completion that defines the function anew or goes on with its body."""
    if not prompt:
        return code
    name = (entry_point or "").replace("()", "").split(".")[0]
    if entry_point is None or defines(code, name):
        return f"{prompt}\n\n{code}"
    body = code.lstrip("\n")
    if body and not body[0].isspace():
        body = textwrap.indent(body, "    ")
    return f"{prompt.rstrip()}\n{body}"


def defines(code: str, name: str) -> bool:
    """Whether a line of the code defines the name: as a function (a method too), a class or a variable."""
    name = re.escape(name)
    return re.search(rf"(?m)^(?:[ \t]*(?:async[ \t]+)?def|class)[ \t]+{name}\b|^{name}[ \t]*[=:]", code) is not None


def _inside(text: str, opening: str, closing: str) -> str:
    """What the last pair of marks holds; the text itself where there is none, or nothing in it."""
    start = text.rfind(opening)
    if start < 0:
        return text
    inner = text[start + len(opening) :].partition(closing)[0]
    return inner if inner.strip() else text


def _plain(code: str | None, language: str) -> str | None:
    """Code without no-break spaces where those make it none; None for nothing."""
    if code is None or not code.strip():
        return None
    if "\u00a0" in code:
        plain = code.replace("\u00a0", " ")
        if language != "python" or (not _parses(code) and _parses(plain)):
            return plain
    return code


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


# -- fences ----------------------------------------------------------------------------------------------------------


def _blocks(text: str, language: str) -> tuple[list[_Block], bool]:
    """The blocks in this language or without a name, in their order, and whether there is any fence."""
    lines = text.split("\n")
    found: list[_Block] = []
    any_fence, index = False, 0
    while index < len(lines):
        match = _OPEN.match(lines[index])
        index += 1
        if match is None:
            continue
        any_fence = True
        indent, fence, name = len(match[1].expandtabs()), match[2], match[3].lower().rstrip(".")
        code, index = _read_block(lines, index, indent, fence, language)
        if not name or _TAG_NAMES[language].match(name):
            found.append(_Block(bool(name), code))
    return found, any_fence


def _read_block(lines: list[str], start: int, indent: int, fence: str, language: str) -> tuple[str, int]:
    """The code from a line on to the fence that closes it, and the line behind that.

    That is the first fence; for Python, where what stands before it is no program, the first that makes one.
    """
    first = None
    for end, rest, after in itertools.islice(_ends(lines, start, indent, fence), _MOST_FENCES):
        code = _dedented([*lines[start:end], *rest], indent)
        first = first or (code, after)
        if language != "python" or _parses(code) or ("\u00a0" in code and _parses(code.replace("\u00a0", " "))):
            return code, after
    return first or (_dedented(lines[start:], indent), len(lines))


def _ends(lines: list[str], start: int, indent: int, fence: str) -> Iterator[tuple[int, list[str], int]]:
    """Where a block may end: (number of the first line not in it, code before a fence on that line, next line)."""
    deep: list[tuple[int, list[str], int]] = []  # fences indented too far for Markdown: only where no other closes
    for index in range(start, len(lines)):
        bare = lines[index].strip()
        if len(bare) >= len(fence) and not bare.strip(fence[0]):
            if len(lines[index]) - len(lines[index].lstrip()) >= indent + 4:
                deep.append((index, [], index + 1))
            else:
                yield index, [], index + 1
        elif bare.endswith(fence) and bare.count(fence) == 1:
            yield index, [lines[index].rstrip()[: -len(fence)]], index + 1
    yield from deep


def _dedented(lines: list[str], indent: int) -> str:
    """A block without the indentation of the list item that it stands in."""
    if not indent:
        return "\n".join(lines)
    return "\n".join(line[min(indent, len(line) - len(line.lstrip(" \t"))) :] for line in lines)


def _without_prose(text: str, language: str) -> str:
    """A text without fences: itself, or where it is no program the lines of it that are one."""
    lines = text.split("\n")
    if language != "python" or len(lines) > _MOST_LINES or _parses(text):
        return text
    starts = [index for index, line in enumerate(lines) if _CODE_LINE.match(line) and not line[:1].isspace()]
    spans = ((start, end) for start in starts for end in range(len(lines), start, -1) if lines[end - 1].strip())
    for start, end in itertools.islice(spans, _MOST_SPANS):
        code = "\n".join(lines[start:end])
        if _parses(code):
            return code
    return text


# -- several blocks --------------------------------------------------------------------------------------------------


def _chosen(blocks: list[_Block], language: str, wanted: Wanted) -> str | None:
    """The last block that has what is wanted, with what it takes from other ones; else the last one."""
    if not blocks:
        return None
    blocks = blocks[-_MOST_BLOCKS:]
    codes = [block.code for block in blocks]
    counts = [_count(code, language, wanted) for code in codes]
    place = max(range(len(blocks)), key=lambda place: (counts[place], blocks[place].is_marked, place))
    if language != "python":
        return codes[place]
    if wanted.input and counts[place] and _only_defines(codes[place]):
        place = next((later for later in range(place + 1, len(codes)) if _uses(codes[later], codes[place])), place)
    code = _with_earlier(codes, place)
    for name in wanted.names:
        if not defines(code, name):
            code = "\n".join([*[other for other in codes if defines(other, name)][-1:], code])
    return code


def _count(code: str, language: str, wanted: Wanted) -> int:
    """How much of what is wanted a block has."""
    if wanted.names:
        return sum(defines(code, name) for name in wanted.names)
    return int(wanted.input and _READS_INPUT[language].search(_COMMENT.sub("", code)) is not None)


def _only_defines(code: str) -> bool:
    """Whether running the code would do nothing but define and import."""
    if not _parses(code):
        return False
    nothing = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign)
    return all(isinstance(node, nothing) for node in ast.parse(code).body)


def _missing(code: str) -> set[str]:
    """Names that the code uses and neither it nor Python defines."""
    tree = ast.parse(code)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return used - test_names.bound_names(tree) - set(dir(builtins))


def _uses(code: str, earlier: str) -> bool:
    return _parses(code) and bool(_missing(code) & test_names.bound_names(ast.parse(earlier)))


def _with_earlier(codes: list[str], place: int) -> str:
    """A block, after the earlier ones that define names which it uses and does not define."""
    code = codes[place]
    for earlier in reversed(codes[:place]):
        if _parses(code) and _parses(earlier) and _uses(code, earlier):
            code = f"{earlier}\n{code}"
    return code
