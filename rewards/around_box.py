r"""What stands around a box is part of the answer: ``-\boxed{5}``, ``\boxed{12}\pi``, ``x \ne \boxed{12}``, "no, 5"."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rewards.mathematics.nodes import Unreadable

RELATED = re.compile(
    r"(?P<name>(?<![A-Za-z\\])[A-Za-z](?:_\{?\w+\}?)?)?\s*"
    r"(?P<relation>\\(?:neq?|leqslant|geqslant|leq?|geq?|lt|gt)(?![a-zA-Z])|(?<![-=])[<>]=?|[≠≤≥])\s*(?:\$|\\\(|\\\[)?\s*\Z"
)
SIGNED = re.compile(r"(?P<before>\S)?(?P<blank>[ \t]*)(?P<sign>[-−+])(?P<space>\s*)\Z")
FACTOR = re.compile(r"(?:\d|\\(?:cdot|times)|[/*])\s*\Z")
BEHIND = re.compile(
    r"(?:\\[,;:! ]|~|[ \t])*(?P<tail>_\{?\d+\}?|\^(?:\{[^{}]*\}|\\circ|\w)|!(?![=A-Za-z])"
    r"|\\(?:pi|sqrt|frac|cdot|times|pm|sin|cos|tan|ln|log|infty)"
    r"(?![a-zA-Z])|[-+*/](?!\s*\$)|[A-Za-z](?![A-Za-z])|\\(?:text|mathrm|mbox)\s*\{\s*(?:hundred|thousand|million|billion|trillion|dozen|percent)\b)"
)
ARGUMENT = re.compile(r"(?:\\[dt]?frac|\\sqrt|[\^_])\s*(?:\{[^{}]*\}\s*)?\{\s*\Z")
ADJACENT = re.compile(r"[_^/]|\s?\\(?:pi|sqrt|frac|cdot|times|text|mathrm)(?![a-zA-Z])")
NOTABLE = re.compile(r"(?:[-−+<>≠≤≥\d/*{]|\\(?:neq?|[lg]eq?(?:slant)?|lt|gt|cdot|times))[\s$(\[\\]*\Z")
PLAIN_ENDS = ("$", "", ".", "\n", ",")
"""What is seen at once to change nothing: the box ends its formula, and no sign stands before it."""
END = re.compile(
    r"\$|\\[)\]]|[\n=<>,;]|\.(?!\d)|\\(?:approx|quad|qquad|implies|Rightarrow|text\{\s*(?:and|or|so|as)\b)"
)
SCALE = re.compile(r"(?:\s|\$|\\\)|\*\*){0,9}(?P<scale>hundred|thousand|million|billion|trillion|dozen)\b")
ALTERNATIVE = re.compile(
    r"\A(?:\$|\\\)|\\\]|\*\*|[\s,.])*\b(?:or|alternatively|possibly|perhaps|maybe)\b,?\s+"
    r"(?:it (?:is|could be)\s+)?(?:maybe|perhaps|possibly|even|else)?\s*"
    r"(?:\$|\\\()?\s*(?P<claim>[-−]?[\d\\.][^\n$]{0,80})",
    re.IGNORECASE,
)
CLAIM = re.compile(
    r"(?:\banswer\b|\bresult\b)[^.\n]{0,40}?(?:\bis\b|\bbe\b|:|=)\W{0,6}?\s*(?P<claim>(?:[-−]\s*)?[\d\\.(\[{][^\n$]{0,80})",
    re.IGNORECASE,
)
CORRECTED = re.compile(
    r"\b(?:wait|no|actually|sorry|oops|correction|hmm|hold on|rather|i mean(?:t)?)\b[,.!:;\s—–-]{1,4}"
    r"(?:[^.\n]{0,40}?[\s,])??"
    r"(?:it(?:'s| is| must be| should be)|that(?:'s| is)|this is|make (?:it|that)|should be|i meant?|the answer is|=)"
    r"\s{0,9}(?:\$|\\\()?\s{0,9}"
    r"(?P<claim>(?:[-−]\s*)?[\d\\.][^\n$]{0,80})",
    re.IGNORECASE,
)
INSTEAD = re.compile(
    r"\A(?:\$|\\\)|\\\]|\*\*|[\s,.])*(?:no|wait|rather|sorry|i mean)\b[,\s]*(?:no\b[,\s]*)?(?:\$|\\\()?"
    r"(?P<claim>[-−]?\d[^\n$]{0,80})",
    re.IGNORECASE,
)
WRONG = r"(?:wrong|incorrect|not (?:right|correct|the (?:right |correct |final )?answer)|false|mistaken)"
REALLY = r"(?!\s+(?:if|unless|to|that))"
"""Not "it is wrong to say"."""
WITHDRAWN = re.compile(
    rf"\A(?:\$|\\\)|\\\]|\*\*|[\s.,!])*"
    rf"(?:(?:is|was|it's)\s+{WRONG}|(?:this|that|which|it)(?:'s| is| was) {WRONG})\b{REALLY}"
    r"|\b(?:wait|actually|no|hmm|sorry|oh|oops|hold on)\b[,.!\s—–-]{1,4}(?:[^.\n]{0,30}\b)?"
    rf"(?:that|this|it|which)(?:'s| is| was) {WRONG}\b{REALLY}"
    rf"|(?:^|[.!?\n]\s{{0,9}})(?:but\s+)?(?:that|it|my answer|the answer above)(?:'s| is| was) {WRONG}\b{REALLY}"
    r"|\bscratch that\b|\bi (?:was|am) wrong\b(?! (?:earlier|before|at first))"
    r"|\bdisregard (?:that|this|my|the (?:above|previous|boxed))\b"
    r"|\bi made an? (?:mistake|error)\b(?!\s+(?:earlier|before|above|previously|initially|at first|in my first))",
    re.IGNORECASE,
)
PLACEHOLDERS = frozenset(
    (
        "",
        "...",
        "…",
        r"\ldots",
        r"\dots",
        "answer",
        "your answer",
        "final answer",
        r"\text{answer}",
        "ANSWER",
        "content",
    )
)
MENTION = re.compile(
    r"\b(?:formats?|formatted|within|inside|in the form|notation|enclosed?|enclosing|command|style|using|used|use|put"
    r"|wrap|wrapped|box)\b|`",
    re.IGNORECASE,
)
PART = re.compile(
    r"(?:^|\n)[ \t*#>-]{0,12}(?:part\s+)?\(?(?P<part>[a-h]|[1-9]|i{1,3}|iv|v)\s*[).:]"
    r"|(?<=[\s.,;])\((?P<inline>[a-h]|i{1,3}|iv|v)\)",
    re.IGNORECASE,
)
PARTS = tuple("abcdefgh"), tuple("123456789"), ("i", "ii", "iii", "iv", "v")


def is_mention(text: str, start: int, end: int, content: str | None) -> bool:
    r"""Whether a box only names the format: "always put the answer within ``\boxed{...}``"."""
    if content is not None and content.strip() not in PLACEHOLDERS:
        return False
    if content is None and text[end - 1 : end] == "{":
        return False  # opened, and never closed
    behind = text[end : end + 40].partition("\n")[0]
    return bool(MENTION.search(text[max(0, start - 60) : start]) or MENTION.search(behind))


def completed(text: str, start: int, end: int, content: str) -> str | None:
    """The content of a box with what the formula around it adds; None where the box is a part of something larger."""
    before = text[max(0, start - 60) : start]
    if not NOTABLE.search(before) and text[end : end + 1] in PLAIN_ENDS and not SCALE.match(text, end):
        return content
    inside = _inside_formula(text, start)
    if (match := RELATED.search(before)) and (inside or match["name"]):
        return f"{match['name'] or 'x'} {match['relation']} {content}"
    if match := SIGNED.search(before):
        known = match["before"]
        bullet = not inside and (
            known is None or "\n" in before[match.start("blank") - 1 : match.start("sign")] or match["space"]
        )
        if not bullet and (inside or not match["space"]):
            if known is not None and (known.isalnum() or known in ")}]") and inside:
                return None
            if match["sign"] != "+":
                content = f"-{_grouped(content)}"
    elif (inside and FACTOR.search(before)) or ARGUMENT.search(before):
        return None
    if match := SCALE.match(text, end):
        return rf"{content}\text{{ {match['scale']}}}"
    if (inside or ADJACENT.match(text, end)) and (match := BEHIND.match(text, end)):
        rest = text[match.start("tail") : match.start("tail") + 80]
        if match["tail"].startswith(("\\text", "\\mathrm", "\\mbox")):
            return content + rest.partition("}")[0] + "}"
        cut = END.search(rest)
        tail = rest[: cut.start()] if cut else rest
        return _grouped(content) + tail if tail.strip() else content
    return content


def withdrawn(rest: str, answer: str) -> str:
    """Why what follows the last box takes its answer back, or ""."""
    if not rest.strip(" \n\t$.)]}*"):
        return ""
    if WITHDRAWN.search(rest):
        return "the last box is withdrawn by what follows it"
    if (match := ALTERNATIVE.match(rest)) and not _says(match["claim"], answer):
        return "two answers joined by 'or'"
    for pattern in (CLAIM, CORRECTED, INSTEAD):
        if any(not _says(match["claim"], answer) for match in pattern.finditer(rest)):
            return "the last box is withdrawn by what follows it"
    return ""


def parts_of(text: str, starts: list[int]) -> int:
    """How many of the last boxes, by where they start, answer parts (a), (b), ... one each; 1 where they do not."""
    labels = [(match.end(), (match["part"] or match["inline"]).lower()) for match in PART.finditer(text)]
    named = []
    for start in starts:
        before = [label for at, label in labels if at <= start]
        named.append(before[-1] if before else "")
    for names in PARTS:
        for count in range(min(len(named), len(names)), 1, -1):
            if tuple(named[-count:]) == names[:count]:
                return count
    return 1


def _inside_formula(text: str, at: int) -> bool:
    line = text[max(0, at - 400) : at].replace(r"\$", "")
    if line.rfind(r"\[") > line.rfind(r"\]") or line.rfind(r"\(") > line.rfind(r"\)"):
        return True
    return line.replace("$$", "§").count("§") % 2 == 1 or line.rpartition("\n")[2].replace("$$", "").count("$") % 2 == 1


def _grouped(content: str) -> str:
    return content if re.fullmatch(r"[\w.\\]+(?:\{[^{}]*\})*", content) else f"({content})"


def _says(claim: str, answer: str) -> bool:
    """Whether a claim in the text is the answer of the box, by its characters or by its value."""
    wanted = _skeleton(answer)
    said = _skeleton(claim)
    if said.startswith(wanted) and not said[len(wanted) : len(wanted) + 1].isdigit():
        return True
    from rewards.mathematics.compare import matches
    from rewards.mathematics.reader import read

    try:
        given = read(answer).node
        for text in _readings(claim):
            node = read(text).node
            if given is not None and node is not None and matches(given, node):
                return True
    except (Unreadable, RecursionError):
        pass
    return False


def _readings(claim: str) -> Iterator[str]:
    """What a claim may end with: all of its formula, or its sentence, or its first word."""
    for end in (r"\$|\\\)|\\\]", r"(?:\.\s|\.\Z|,\s|;|\bwhich\b|\band\b)", r"[\s,;]"):
        text = re.split(end, claim, maxsplit=1)[0].strip(" .*}")
        if text:
            yield text


def _skeleton(text: str) -> str:
    return re.sub(r"\\(?:left|right|boxed|text|d?frac|[,;! ()\[\]])|[\s{}$*,]", "", text)
