"""Structure checks: R1's tags, once and in order, and the presence of a boxed answer.

The text given to a verifier includes whatever the prompt template prefilled for the model (R1-Zero's ``<think>``),
so one rule serves templates that prefill and templates that do not.
"""

from __future__ import annotations

import re
from typing import Any

from rewards.extract import find_boxed
from rewards.verdict import Outcome, Verdict

END_TOKENS = re.compile(r"(?:\s*(?:<\|[^|<>]{1,40}\|>|</s>|<eos>|<end_of_turn>))+\s*\Z")
TAG = re.compile(r"</?(?:think|answer)>")


class R1FormatVerifier:
    """1.0 where the text is ``<think>reasoning</think> <answer>answer</answer>``, else 0.0 (DeepSeek-R1, section 2.2).

    The rule: the tags ``<think>``, ``</think>``, ``<answer>``, ``</answer>`` occur exactly once each, in this order
    and in lower case, but the tags of the answer may be named in the thought; tokens that end a turn do not count;
    nothing but white space stands before ``<think>``, between ``</think>`` and ``<answer>``, and
    after ``</answer>``; both elements hold more than white space. Options: ``require_answer=False`` asks only for
    one ``<think>...</think>`` at the start, followed by more than white space and free of answer tags;
    ``allow_surrounding_text=True`` admits text between and after the elements.
    """

    lowest_score = 0.0

    def __init__(self, require_answer: bool = True, allow_surrounding_text: bool = False) -> None:
        self.require_answer = require_answer
        self.allow_surrounding_text = allow_surrounding_text

    def check_reference(self, reference: Any) -> None:
        """Every reference will do: the structure does not depend on it."""

    def grade(self, completion: str, reference: Any) -> Verdict:
        """CORRECT with 1.0, or BAD_FORMAT with 0.0 and ``detail["reason"]``."""
        reason = self._fault(completion)
        if reason is None:
            return Verdict(1.0, Outcome.CORRECT)
        return Verdict(0.0, Outcome.BAD_FORMAT, {"reason": reason})

    def _fault(self, text: str) -> str | None:
        wanted = ["<think>", "</think>"] + (["<answer>", "</answer>"] if self.require_answer else [])
        text = END_TOKENS.sub("", text)
        thought, closed, rest = text.rpartition("</think>")
        if closed:  # the tags of the answer may be named in the thought
            text = re.sub(r"</?answer>", "", thought) + closed + rest
        found = TAG.findall(text)
        if found != wanted:
            return f"tags {' '.join(found) or 'none'}, wanted {' '.join(wanted)}"
        pieces = [piece.strip() for piece in TAG.split(text)]
        if pieces[0]:
            return "text before <think>"
        if not pieces[1]:
            return "empty <think>"
        if not self.require_answer:
            return None if pieces[2] else "nothing after </think>"
        if not pieces[3]:
            return "empty <answer>"
        if self.allow_surrounding_text:
            return None
        if pieces[2]:
            return "text between </think> and <answer>"
        return "text after </answer>" if pieces[4] else None


class BoxedFormatVerifier:
    """1.0 where the text holds exactly one ``\\boxed{...}``, terminated and not empty, after any ``</think>``."""

    lowest_score = 0.0

    def check_reference(self, reference: Any) -> None:
        """Every reference will do: the structure does not depend on it."""

    def grade(self, completion: str, reference: Any) -> Verdict:
        """CORRECT with 1.0, or BAD_FORMAT with 0.0 and ``detail["reason"]``."""
        boxes = find_boxed(completion.rpartition("</think>")[2])
        if len(boxes) != 1:
            reason = f"{len(boxes)} boxes, wanted one"
        elif boxes[0].content is None:
            reason = "the box is not terminated"
        elif not boxes[0].content.strip():
            reason = "the box is empty"
        else:
            return Verdict(1.0, Outcome.CORRECT)
        return Verdict(0.0, Outcome.BAD_FORMAT, {"reason": reason})
