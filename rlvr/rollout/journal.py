"""The journal of a group: the sampled segments and verdicts it has received so far, stored by name.

A workflow is a function of the completions that it receives. So the journal is its whole state between two steps, and
in a checkpoint: when the workflow is started again, it finds here what it received before and continues from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from rewards import Outcome, Verdict
from rlvr.engines.stop_strings import Decoder, completion_text
from rlvr.records import Completion


@dataclass(frozen=True, slots=True)
class Graded:
    """The graders' result for one text."""

    text: str
    verdicts: Mapping[str, Verdict]
    reward: float | None
    seconds: float


@dataclass(slots=True)
class Journal:
    """The pieces of each request of a group by its name, and the verdicts of each completion."""

    pieces: dict[str, list[Completion]] = field(default_factory=dict)
    graded: dict[str, list[Graded]] = field(default_factory=dict)

    def oldest(self) -> int | None:
        """The least weight version of all tokens; None if there are none. An engine's versions only rise, so a piece
        begins with its oldest: this is asked at each end of a completion, and must not read every token."""
        parts = (part for parts in self.pieces.values() for part in parts)
        return min((part.weight_version[0] for part in parts if part.weight_version), default=None)

    def tokens(self) -> int:
        """Tokens sampled so far."""
        return sum(len(part.ids) for parts in self.pieces.values() for part in parts)

    def state_dict(self) -> dict[str, Any]:
        """JSON values and tensors."""
        return {
            "pieces": {name: [_packed(part) for part in parts] for name, parts in self.pieces.items()},
            "graded": json.dumps(
                {name: [asdict(graded) for graded in gradings] for name, gradings in self.graded.items()}
            ),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Journal:
        """The journal that `state_dict` was made from."""
        return cls(
            {name: [_unpacked(part) for part in parts] for name, parts in state["pieces"].items()},
            {name: [_graded(graded) for graded in gradings] for name, gradings in json.loads(state["graded"]).items()},
        )


def joined(parts: Sequence[Completion], stops: Sequence[str], tokenizer: Decoder) -> Completion:
    """One completion of several that continue each other.

    A stop string that begins in one piece and ends in the next is seen by no engine: what follows it is cut here, as if
    sampling had ended with the token that completes it.
    """
    if len(parts) == 1:
        return parts[0]
    ids = tuple(token for part in parts for token in part.ids)
    length, reason = len(ids), parts[-1].finish_reason
    seam = len(ids) - len(parts[-1].ids)
    if stops and _stopped(tokenizer, ids, stops):
        length = next(n for n in range(seam + 1, len(ids) + 1) if _stopped(tokenizer, ids[:n], stops))
        reason = "stop"
    return Completion(
        ids=ids[:length],
        behaviour_logprobs=tuple(value for part in parts for value in part.behaviour_logprobs)[:length],
        weight_version=tuple(value for part in parts for value in part.weight_version)[:length],
        text=completion_text(tokenizer, ids[:length], stops if reason == "stop" else ()),
        finish_reason=reason,
    )


def _stopped(tokenizer: Decoder, ids: Sequence[int], stops: Sequence[str]) -> bool:
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    return any(stop in text for stop in stops)


def _packed(completion: Completion) -> dict[str, Any]:
    return {
        "ids": torch.tensor(completion.ids, dtype=torch.int32),
        "behaviour_logprobs": torch.tensor(completion.behaviour_logprobs, dtype=torch.float64),
        "weight_version": torch.tensor(completion.weight_version, dtype=torch.int32),
        "text": completion.text,
        "finish_reason": completion.finish_reason,
    }


def _unpacked(state: dict[str, Any]) -> Completion:
    values: dict[str, Any] = {
        key: tuple(value.tolist()) if torch.is_tensor(value) else value for key, value in state.items()
    }
    return Completion(**values)


def _graded(state: dict[str, Any]) -> Graded:
    verdicts = {
        name: Verdict(verdict["score"], Outcome(verdict["outcome"]), verdict["detail"])
        for name, verdict in state["verdicts"].items()
    }
    return Graded(state["text"], verdicts, state["reward"], state["seconds"])
