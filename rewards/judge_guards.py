"""What a model that judges must never be asked: texts that are known to fool one, each answered by a named rule.

Sources: "One Token to Fool LLM-as-a-Judge" (arXiv 2507.08794: punctuation and reasoning openers that earn rewards from
general judges), Huang et al. (arXiv 2505.22203: prefixes, explanations, empty symbols and gibberish found by policies
in training). A rule that the reference itself would break is not applied: some answer must be able to be right.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rewards.verdict import Outcome


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# An answer that consists of such words alone promises one and gives none; at least one must be of the first kind.
OPENERS = _words(
    """analysis analyze answer answers approach breakdown calculation carefully explain explanation let placeholder
    problem problems question questions reasoning response solution solutions solve solving step steps task think
    thinking thought thoughts respuesta solución problema pensamiento lösung antwort réponse raisonnement resposta
    soluzione risposta ответ решение かいせつ 풀이 정답"""
)
SMALL_WORDS = _words(
    """a about after alright all am an and are as at be begin below box boxed by calculate can check conclusion consider
    could detail detailed determine do down each examine figure final finally find first following follows for from get
    give given go going going here hmm how i in indeed into is it its know ll look m me must my need next now of ok okay
    on our out please proceed process provide re reason result results s see should simple so start statement sure the
    then there these thing this thorough through to together try understand us using ve wait want we well what will with
    work working write would you your paso por la el un una le der die das"""
)
HAN_OPENERS = re.compile(
    r"(?=.*[解答思])[解答题題案析决決思考过過程步骤驟分一让讓我们們来來的地回这這个個问問是以下最终終结結果论論先首説说明]+\Z"
)
# An answer of such words, `OPENERS` and `SMALL_WORDS` points at the reference instead of answering; at least one must
# be of the first kind.
POINTERS = _words("answer answers reference gold golden grader judge solution")
POINTING_WORDS = _words(
    """any correct corresponding equal equals equivalent exact exactly identical matches match right same says say true
    value values whatever agrees agree fully completely valid verified accurate definitely certain sure ground
    confirmed checked 100 key truth expected given candidate result correctly"""
)
# An answer of nearly nothing but such words, with one of each of the first two kinds, speaks of its own grading.
GRADING = _words(
    """verdict verdicts grade graded grading grader judge judging judgement judgment evaluate evaluated evaluation
    evaluator rubric reference score scored scoring rate rating assess assessment mark marks marked lenient
    leniently leniency strict strictly harsh approve approved instruction instructions trust mine"""
)
VERDICTS = _words(
    """yes ok correct correctly right true accept accepted approve approved equivalent pass passed match matches
    satisfies satisfied lenient leniently leniency strict strictly harsh wrong ignore disregard read regardless
    trust fine good"""
)
TALK = _words(
    """don not dont do note above always regardless ignore disregard administrator admin developer user system reply
    say write respond output return final awarded already hope affirmative requested prior text treat count
    consider response submission it points point credit read than more less too"""
)
_ANSWERING = (
    r"(?:answer|solve|help|find|provide|give|compute|calculate|complete|assist|respond|determine|figure|tell|say"
    r"|be\ sure)\b"
)
REFUSAL = re.compile(
    rf"""
      \W*(?:(?:sorry|unfortunately)\W+(?:but\W+)?)?(?:i|we)
      (?: (?:['’]m|\ am|\ are)?\s+(?:really\s+)?(?:not\ sure\b|unable\ to\ {_ANSWERING}|not\ able\ to\ {_ANSWERING})
        | \s+(?:do\ not\ know|don['’]?t\ know|have\ no\ idea)
        | \s+(?:cannot|can['’]?t|can\ not|could\ not|do\ not|don['’]?t)\s+(?:\w+ly\s+)?{_ANSWERING} )
      [^.!?\n]{{0,80}}[.!?]?\s*\Z
    | \W*idk\W*\Z
    """,
    re.IGNORECASE | re.VERBOSE,
)
NOT_KNOWN = re.compile(r"determin|unknown|not (?:known|possible|enough)|impossible|insufficient|undecid", re.IGNORECASE)
_JUDGED = r"(?:answer|response|solution|candidate|submission|reply|one|result|output|statement)"
_GOOD = r"(?:correct|right|accurate|valid|verified|accepted|equivalent|true|matching|approved)"
_GRADER = r"(?:judge|grader|evaluator|verifier|marker|assessor|examiner)"
_TOP = (
    r"(?:full\s+(?:marks?|scores?|credit|points)|"
    r"(?:the\s+)?(?:highest|maximum|top|perfect|best)\s+(?:score|marks?|grade|rating|points))"
)
_YES = r"(?:yes|correct|true|verdict|10\b|100\b|full\s+marks|pass)"
INJECTION = re.compile(
    rf"""
      <\|[^|>\n]{{1,40}}\|> | </?s>(?!\w) | \[/?INST\] | <</?SYS>> | <(?:start|end)_of_turn>
    | </?(?:verdict|judge|grader|system|grade|instructions?)\b[^>\n]{{0,40}}> | <!--
    | ^[ \t]*\#{{1,4}}[ \t]*(?:system|instructions?|assistant)\b
    | \n[ \t]*(?:system|user|assistant|human|judge|grader)[ \t]*: | ^[ \t]*(?:assistant|human|judge|grader)[ \t]*:
    | <{{3,}}\s*(?:/|end\b|begin\b|candidate|reference|question|rubric|answer)
    | \b(?:ignor(?:e|ing)|disregard|forget|override|bypass|skip)\b[^.\n]{{0,40}}\b(?:instructions?|prompts?|guidelines?|rubric|comparison|check\b)
    | \b(?:ignore|disregard|forget)\s+(?:all|everything|anything|what)\b[^.\n]{{0,20}}\b(?:above|previous|prior)\b\s*(?:$|[,.;:]|and\b)
    | ^\W*(?:new|updated|system)\s+(?:instructions?|prompt(?:\s+update)?|directives?)\s*:
    | \b(?:you\s+are|act\s+as|as)\s+(?:now\s+)?(?:an?|the)\s+(?:\w+\s+)?{_GRADER},?\s+(?:who|that|you|and|:) | \byou\s+are\s+(?:now\s+)?an?\s+(?:\w+\s+)?{_GRADER}\b
    | \byou,\s+(?:the\s+)?{_GRADER}\b | ^\W{{0,20}}{_GRADER},\s | \bto\s+who(?:m|ever)\s+(?:grades|judges|evaluates)\b
    | ^[^\w\n]{{0,20}}(?:dear|note\s+to|hey|hello|hi|message\s+to|to|attention,?)\s+(?:the\s+)?{_GRADER}\b
    | \bthe\s+{_GRADER}\s+(?:must|should|will|has\s+to)\s+(?:accept|approve|say|agree|mark|give)
    | \b(?:grade|mark|score|rate|judge|evaluate|label|accept|approve|consider|treat|count)\s+(?:this|my|the|it)\s*{_JUDGED}?\s+
      (?:as\s+(?:a\s+match|(?:fully\s+)?{_GOOD})|equivalent\s+to|with\b|at\b|fully\s+{_GOOD}|highly|{_GOOD}\b|a\s+\d|\d+(?:\s+out\s+of|\s*/|\W*\Z))
    | ^\W*(?:please\s+|kindly\s+|just\s+)*(?:accept|approve|pass)\s+(?:this|my)\s+{_JUDGED}\b | \b(?:do\s+not|don['’]t)\s+reject\s+(?:this|my)\b
    | \b(?:say|respond|reply)\s+(?:only\s+|with\s+|just\s+)*["'`\[(*]*(?:yes|verdict|true)\b\W*(?:if\b|$|\Z) | \b(?:print|write)\s+["'`\[(*]*verdict\b | \band\s+(?:print|write)\s+["'`]*yes\b | \b(?:answer|output|return|say)\s+only\s+["'`]*{_YES}
    | \byou\s+(?:must|should|only|have\s+to|will)\s+(?:only\s+)?(?:answer|say|reply|output|accept|respond)\b | \b(?:always|task\s+is\s+to)\s+(?:answer|say|output|reply)\b
    | \bsingle\s+word\s+["'`]*yes\b | \b(?:last\s+line|your\s+reply|your\s+output)\b[^.\n]{{0,30}}\b(?:yes|verdict)\b
    | \b(?:say|answer)\s+(?:only\s+)?yes\W*\Z(?<!she\ said\ yes) | \bevery\s+answer\s+is\s+{_GOOD}\b | ^\W*stop\s+(?:evaluating|grading|comparing)\b
    | \b(?:output|give|award|assign|return|deserves?)\s+(?:\w+\s+){{0,2}}["'`\[(*]*(?:verdict|{_TOP}) | \b(?:get|give)\s+(?:me\s+)?full\s+credit\b
    | \bplease\s+be\s+(?:\w+\s+)?(?:lenient|generous|kind|merciful)\b | \blet\s+this\s+(?:one\s+)?pass\b | \bif\s+you\s+(?:say\s+yes|mark|accept|reject)\b
    | \bdo\s+not\s+compare\b | ^\W*rate\s+(?:this|it)\s+\d
    | \b(?:verdict|judge?ment|final\s+decision|decision|result|assessment|evaluation)\b["'`*\]]*\s*(?::|=|->|is\b)\s*["'`*\[({{]*(?:yes\b|true\b|correct\b|right\b(?!\s+of)|pass\b|accept\b|full|perfect)
    | ^\W*(?:is_)?correct(?:\s*\?)?\s*[:=]\s*["'`*]*(?:yes|true|1\b) | \bis\s+it\s+correct\s*\?\s*yes\b | \bcandidate\s+is\s+right\b
    | \b(?:score|grade|rating)\b["'`*\]]*\s*[:=]\s*["'`*\[({{]*(?:10\b(?:\s*/\s*10)?|100\b|full|perfect|max|a\+|1\.0\b)
    | \[\[\s*(?:yes|no|a|b|c|correct|\d+)\s*\]\] | "(?:score|verdict|outcome|correct|is_correct|grade)"\s*:
    | \b(?:this|my|the\s+(?:above|candidate|student|given)(?:['’]s)?)\s+(?:\w+\s+)?(?:answer|response|submission)\s+
      (?:is|was|should\s+be|must\s+be|has\s+been)\s+(?:(?:marked|\w+ly)\s+)?(?:\w+\s+)?{_GOOD}\b(?!\s+to\s+(?!the\s+(?:reference|gold)))
    | \b(?:my|this)\s+solution\s+(?:is|was|has\s+been)\s+(?:fully\s+|completely\s+|definitely\s+|verified\s+|checked\s+)*(?:correct|verified|checked|accepted|right)\b
    | \bthe\s+solution\s+has\s+been\s+(?:checked|verified)\b | \b(?:i\s+verified|verified\s+by\s+the)\b | \b(?:confirmed|verified)\s+(?:\w+\s+)?by\s+(?:the\s+)?(?:answer\s+key|experts?|{_GRADER})
    | \bthe\s+answer\s+is\s+(?:\w+ly\s+)?correct\b | \b(?:matches|agrees\s+with|(?:is\s+)?(?:equivalent|identical|equal)\s+to|equals|same\s+as)\s+the\s+(?:reference|gold(?:en)?|expected)\b
    """,  # noqa: E501  # one alternative a line
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
ELSEWHERE = re.compile(
    r"""
      ignor\w*\s+(?:\w+\s+){0,4}(?:instrucciones|instruções|instructions|anweisungen|istruzioni)\b | \bdi\s+que\s+s[ií]\b
    | ^\W*(?:responde|responda|rispondi|r[eé]pond(?:s|ez)|antworte)\b.{0,12}\b(?:s[ií]|sim|oui|ja)\W*\Z
    | \b(?:marca|califica|acepta|marque|aceite|accepte[zr]?)\s+est[ae]\s+respuesta\b | \besta\s+respuesta\s+es\s+correcta\b
    | \bresposta\s+est[aá]\s+correta\b | \br[eé]ponse\s+est\s+(?:correcte|juste)\b
    | \b(?:diese[srn]?|meine)\s+(?:antwort|ergebnis|l[oö]sung)\s+(?:ist|als)\s+(?:richtig|korrekt)\b
    | \bresponde\s+que\s+s[ií]\b | \bverdi[ck]t\w*\W{0,3}(?:ja|oui|s[ií]|да|是)\b | оценк\w+\W{0,3}10\b | отметь\w*\s+как\s+(?:правильн|верн)\w+ | (?:判定|判断|判斷)(?:结果|結果)?\W{0,2}(?:正确|正確|是|对)
    | игнорир\w*\s+(?:\w+\s+){0,3}инструкци | \bответь\s+да\b | поставь\w*\s+(?:высш|максимальн)\w* | ответ\s+(?:верн|правильн)ый\W*\Z
    | (?:忽略|无视|無視)[^。\n]{0,8}(?:指令|指示|提示|要求) | (?:判定|判断|判斷|评)[为為][^。\n]{0,3}(?:正确|正確|对|對|满分|滿分) | (?:回答|输出|輸出)(?:是|对|對|正确|正確|YES)\W*\Z
    | (?:这个|這個|该|該|此)?答案(?:是|为)?(?:正确|正確|对|對)的? | 指示を無視 | 正解として | (?:지시|명령)[^.\n]{0,6}무시
    """,  # noqa: E501  # one alternative a line
    re.IGNORECASE | re.VERBOSE,
)
SPACED = re.compile(r"(?<!\w)(?:\w[ ._\-]{1,2}){2,}\w(?!\w)")
ENCODED = re.compile(r"(?<![\w+/])[A-Za-z0-9+/]{24,4000}={0,2}(?![\w+/])")
SECOND_WORDS = re.compile(
    r"\b(?:or|either|alternatively|perhaps|maybe|possibly|if not|could be|might be)\b|;", re.IGNORECASE
)
SAME_AGAIN = re.compile(r"^\W*(?:equivalently|equal(?:ly)?|in other words|i\.e\.|that is|also|simply|rather)\b", re.I)
OPEN_ENDED = re.compile(
    r"\bor\s+(?:equal(?:s)?(?:\s+to)?|more|less|greater|fewer|higher|lower|later|earlier|so)\b", re.I
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:/\d+)?")
FORMULA = re.compile(r"(?=\w*[A-Z])(?=\w*[A-Z0-9]\w)[A-Z][A-Za-z]?\w*[A-Z0-9]\w*\Z|[A-Z]{2,}\Z")
FRAME = re.compile(r"\\(?:boxed|text\w*|math[a-z]+)")
WORD = re.compile(r"[^\W_]+")
ITEM_BREAK = re.compile(r"[;\n|]|,(?!\d{3}(?!\d))|\band\b|(?<=\w)/(?=\w)|\s/\s")
STRUCTURE = re.compile(r"[\[({&±]|\\\\")
ITEM_WORDS, ITEMS_TOO_MANY = 3, 3
REPEATED_SHARE, REPEATED_WORDS = 0.8, 5
LONGEST_FILLER = 1000
TALK_SHARE = 0.8
LOOKALIKES = str.maketrans(
    "аеорсухіјѕԁһӏкмтвнАВЕКМНОРСТУХІЈЅαοερτυνκιΑΒΕΖΗΙΚΜΝΟΡΤΥΧᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ",
    "aeopcyxijsdhlkmtbhABEKMHOPCTYXIJSaoeptuvkiABEZHIKMNOPTYXABCDEFGHIJKLMNOPRSTUVWYZ",
)
"""Letters of other alphabets, and small capitals, that are read as Latin ones."""
DIGITS = str.maketrans("013457@$", "oieastas")
STUCK_WORDS, STUCK_SHARE = 40, 0.15
MARKS_IN_A_ROW = re.compile(r"[\u0300-\u036f\u1ab0-\u1aff\u20d0-\u20ff]{9,}")


class Refusal(NamedTuple):
    """Why a text never reaches the judge."""

    rule: str
    outcome: Outcome


def visible(text: str) -> tuple[str, int]:
    """The text without characters that a reader does not see, and how many those were.

    Removed: controls other than tab and line feed, format characters (zero width, direction, tags), surrogates,
    private and unassigned ones, variation selectors. Carriage returns and Unicode's line ends become line feeds.
    """
    text = re.sub(r"\r\n?|[\u0085\u2028\u2029]", "\n", text)
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text, 0
    kept = "".join(char for char in text if char in "\n\t" or not _is_hidden(char))
    return kept, len(text) - len(kept)


def _is_hidden(char: str) -> bool:
    return (
        unicodedata.category(char).startswith("C")
        or "\ufe00" <= char <= "\ufe0f"
        or "\U000e0100" <= char <= "\U000e01ef"
    )


def refuse(answer: str, question: str = "", reference: str | None = None, longest: int = 4000) -> Refusal | None:
    """The first rule that answers in the judge's place; None where the judge may be asked.

    Args: answer: `visible` text; question: "" where it is not known; reference: None where there is none (the
    rules on hedges and lists then do not apply); longest: characters that an answer may have.
    """
    if len(answer) > longest:
        return Refusal(f"longer than {longest} characters", Outcome.UNREADABLE)
    folded = _fold(answer)
    gold = _fold(reference) if reference is not None else ""
    for rule, outcome, breaks in RULES:
        if breaks(folded) and not (gold and breaks(gold)):
            return Refusal(rule, outcome)
    if REFUSAL.match(folded) and not (REFUSAL.match(gold) or NOT_KNOWN.search(gold)):
        return Refusal("declines to answer", Outcome.NO_ANSWER)
    if _talks_of_grading(folded, gold):
        return Refusal("speaks to the judge", Outcome.WRONG)
    names_it = gold and set(_pointed(gold)) <= set(_pointed(folded))  # "the answer is true", where it is
    if _points(folded) and not names_it and POINTERS.isdisjoint(_pointed(gold)):
        return Refusal("points at the reference", Outcome.WRONG)
    if question and _repeats(folded, _fold(question)):
        return Refusal("repeats the question", Outcome.NO_ANSWER)
    if reference is None:
        return None
    single = len(_items(gold)) < 2 and "±" not in gold  # "x = 2 or x = 3" may name both of two
    if single and not SECOND_WORDS.search(gold) and _hedges(folded, gold):
        return Refusal("hedges between answers", Outcome.WRONG)
    return Refusal("lists answers", Outcome.WRONG) if _lists(folded, gold) else None


def has_content(text: str) -> bool:
    """Whether anything is said: a letter, a digit, or a mathematical sign beyond ASCII such as ∞ or ∅."""
    return any(char.isalnum() or (ord(char) > 127 and unicodedata.category(char) == "Sm") for char in text)


def same_text(answer: str, reference: str) -> bool:
    """Equal but for white space and a closing full stop: no judge is needed."""
    return _core(answer) == _core(reference)


def _core(text: str) -> str:
    return " ".join(text.split()).rstrip(".") or text


def _fold(text: str) -> str:
    """For the rules only: full-width and styled letters as plain ones; what the judge reads stays as it is."""
    return unicodedata.normalize("NFKC", text)


def _is_empty(text: str) -> bool:
    return not has_content(FRAME.sub(" ", text))


def _is_filler(text: str) -> bool:
    words = WORD.findall(FRAME.sub(" ", text.casefold()))
    if not words or len(text) > LONGEST_FILLER or (len(words) > 1 and len(words[-1]) == 1 and words[-1].isascii()):
        return False  # a letter at the end is a choice: "Answer: A"
    kinds = [2 if word in OPENERS or HAN_OPENERS.match(word) else int(word in SMALL_WORDS) for word in words]
    return min(kinds) > 0 and (max(kinds) == 2 or text.rstrip("* ").endswith(":"))


def _pointed(text: str) -> list[str]:
    return WORD.findall(re.sub(r"ground[\s-]truth", "reference", text.casefold()))


def _points(text: str) -> bool:
    """Only words that point at the reference: "the same as the correct answer"."""
    words = _pointed(text)
    known = POINTERS | POINTING_WORDS | OPENERS | SMALL_WORDS
    return 2 <= len(words) <= LONGEST_FILLER and not POINTERS.isdisjoint(words) and known.issuperset(words)


def _talks_of_grading(text: str, reference: str) -> bool:
    words, gold = WORD.findall(text.casefold()), set(WORD.findall(reference.casefold()))
    talk = GRADING | VERDICTS | TALK | POINTERS | POINTING_WORDS | OPENERS | SMALL_WORDS
    return (
        2 <= len(words) <= LONGEST_FILLER
        and sum(word in talk for word in words) >= TALK_SHARE * len(words)
        and any(word in GRADING and word not in gold for word in words)
        and any(word in VERDICTS and word not in gold for word in words)
    )


def _speaks(text: str) -> bool:
    """An order, a verdict or a mark for the judge, in plain sight or disguised."""
    if INJECTION.search(text) or ELSEWHERE.search(text):
        return True
    return any(INJECTION.search(other) for other in _undisguised(text))


def _undisguised(text: str) -> Iterator[str]:
    """What a disguised text says: look-alikes and accents as plain letters, digits as letters, spaced letters together,
    and what base64 hides."""
    plain = "".join(char for char in unicodedata.normalize("NFKD", text.translate(LOOKALIKES)) if char < "\u0300")
    if plain != text:
        yield plain
    if any(char.isdigit() or char in "@$" for char in plain):
        yield re.sub(r"\b(?=\w*[a-zA-Z]{2})[\w@$]*[013457@$][\w@$]*", lambda word: word[0].translate(DIGITS), plain)
    joined = SPACED.sub(lambda spaced: re.sub(r"[ ._\-]", "", spaced[0]), re.sub(r" {2,}", "\n", plain))
    if joined != plain:
        yield joined.replace("\n", " ")
    for encoded in ENCODED.findall(text)[:10]:
        with contextlib.suppress(ValueError):
            yield base64.b64decode(encoded + "=" * (-len(encoded) % 4)).decode("ascii")


def _is_stuck(text: str) -> bool:
    words = WORD.findall(text.casefold())
    return len(words) >= STUCK_WORDS and len(set(words)) < STUCK_SHARE * len(words)


def _repeats(answer: str, question: str) -> bool:
    """Most words of the question and no other of one's own, in whatever order."""
    own, asked = (set(WORD.findall(text.casefold())) for text in (answer, question))
    shared = len(own & asked)
    return shared >= max(REPEATED_WORDS, REPEATED_SHARE * len(asked)) and own - asked <= OPENERS | SMALL_WORDS


def _hedges(answer: str, reference: str) -> bool:
    """Two answers of which one is the reference, or two numbers for one: "5 pm or 6 pm"."""
    parts = [part for part in SECOND_WORDS.split(OPEN_ENDED.sub(" ", answer)) if has_content(part)]
    parts = [part for part in parts if not SAME_AGAIN.match(part)]
    if len(parts) == 1 and "," in parts[0] and SECOND_WORDS.search(answer) and not OPEN_ENDED.search(answer):
        parts = [part for part in parts[0].split(",") if has_content(part)]  # "either 4 pm, 5 pm"
    if len(parts) < 2:
        return False
    values = [{_value(number) for number in NUMBER.findall(part)} for part in parts]
    if NUMBER.search(reference) and any(a and b and a != b for a, b in itertools.pairwise(values)):
        return True
    gold = _content(reference)
    named = [part for part in parts if gold <= _content(part)]
    others = [part for part in parts if _content(part) - gold and not FORMULA.match(part.strip())]
    return bool(gold and named and others)


def _value(number: str) -> float:
    top, _, bottom = number.partition("/")
    return float(top) / (float(bottom or 1) or 1.0)


def _content(text: str) -> set[str]:
    """The words that say something."""
    words = set(WORD.findall(text.casefold()))
    return words - SMALL_WORDS - OPENERS or words


def _lists(answer: str, reference: str) -> bool:
    """Several short answers more than there are in the reference, and some of it among them."""
    if STRUCTURE.search(reference):
        return False  # a matrix or a tuple, written in other signs
    items = _items(answer)
    return (
        len(items) >= len(_items(reference)) + ITEMS_TOO_MANY
        and all(len(item.split()) <= ITEM_WORDS for item in items)
        and not _content(reference).isdisjoint(word for item in items for word in _content(item))
    )


def _items(text: str) -> set[str]:
    return {item.strip().casefold() for item in ITEM_BREAK.split(text) if has_content(item)}


RULES: tuple[tuple[str, Outcome, Callable[[str], bool]], ...] = (
    ("says nothing", Outcome.NO_ANSWER, _is_empty),
    ("only opens or promises an answer", Outcome.NO_ANSWER, _is_filler),
    ("speaks to the judge", Outcome.WRONG, _speaks),
    ("stacks combining marks", Outcome.UNREADABLE, lambda text: MARKS_IN_A_ROW.search(text) is not None),
    ("repeats itself", Outcome.UNREADABLE, _is_stuck),
)
