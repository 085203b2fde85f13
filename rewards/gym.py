"""Problems of the package reasoning-gym, scored by its own scorers."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from rewards.extract import check_mode, extract
from rewards.verdict import BadReference, Outcome, Verdict


class ReasoningGymVerifier:
    """Grades the extracted answer by the scorer of the data set that the reference names.

    The reference is ``{"dataset": "chain_sum", "config": {...}, "entry": "{'question': ..., ...}"}``: `entry` is the
    Python literal of the data set's entry, since scorers rely on its tuples and integer keys. ``extract`` finds the
    answer in the text (`rewards.extract`). Scores are the package's own, from 0 to 1; some of its scorers give a
    little, often 0.01, for an answer that is wrong but readable. Needs the package: ``pip install 'rlvr[gym]'``.
    """

    lowest_score = 0.0

    def __init__(self, extract: str = "answer_tag") -> None:
        check_mode(extract)
        self._mode = extract
        self._datasets: dict[str, Any] = {}

    def check_reference(self, reference: Any) -> None:
        """Raises `BadReference` unless the data set can be made and its scorer gives its own answer full marks."""
        dataset, entry = self._read(reference)
        if entry["answer"] is None:
            return  # the data set has scorers only: any of several answers may be right
        score = dataset.score_answer(str(entry["answer"]), entry)
        if score != 1.0:
            raise BadReference(f"the scorer of {reference['dataset']!r} gives its own answer {score}, not full marks")

    def grade(self, completion: str, reference: Any) -> Verdict:
        """CORRECT at full marks, PARTIAL, WRONG at 0, or NO_ANSWER."""
        dataset, entry = self._read(reference)
        extraction = extract(completion, self._mode)
        if extraction.text is None:
            return Verdict(0.0, Outcome.NO_ANSWER, {"reason": extraction.reason})
        score = float(dataset.score_answer(extraction.text, entry))
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"the scorer of {reference['dataset']!r} returned {score}, not a number between 0 and 1")
        outcome = Outcome.CORRECT if score == 1.0 else Outcome.PARTIAL if score > 0.0 else Outcome.WRONG
        return Verdict(score, outcome, {"answer": extraction.text})

    def _read(self, reference: Any) -> tuple[Any, dict[str, Any]]:
        """The data set object and the entry that a reference names."""
        if not isinstance(reference, Mapping) or not {"dataset", "config", "entry"} <= set(reference):
            raise BadReference(f"{reference!r:.200} must be an object with dataset, config and entry")
        try:
            entry = ast.literal_eval(reference["entry"])
        except (ValueError, SyntaxError, TypeError) as error:
            raise BadReference(f"entry: {reference['entry']!r:.200} is no Python literal: {error}") from None
        if not isinstance(entry, dict) or not {"question", "answer", "metadata"} <= set(entry):
            raise BadReference(f"entry: {reference['entry']!r:.200} must have question, answer and metadata")
        return self._dataset(reference["dataset"], reference["config"]), entry

    def _dataset(self, name: str, config: Mapping[str, Any]) -> Any:
        """The data set object of a name and its settings, made once: its scorer is a method of it."""
        made = f"{name} {config!r}"
        if made not in self._datasets:
            import reasoning_gym  # an extra, and slow to import
            from reasoning_gym.factory import DATASETS

            if name not in DATASETS:
                raise BadReference(f"dataset: reasoning-gym has no {name!r:.80}")
            self._datasets[made] = reasoning_gym.create_dataset(name, size=1, seed=0, **config)
        return self._datasets[made]

    def warm_up(self) -> None:
        """Import the package before the clock runs. Raises `ModuleNotFoundError` naming the extra if it is missing."""
        try:
            import reasoning_gym  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "ReasoningGymVerifier needs the package reasoning-gym: pip install 'rlvr[gym]'"
            ) from error
