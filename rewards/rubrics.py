"""What people have written for Prime Intellect's `verifiers`, as verifiers: rubrics, environments, tasks with rewards.

The package had rubrics up to 0.3 (`verifiers.Rubric`: functions with weights that take what they name); since 0.4 the
rewards are methods of a `verifiers.v1.Task`. Both run here as they are, one completion at a time, by the package's own
scoring. One thing differs on purpose: the package's rubrics log a function that raises, or that returns no number, and
count it as 0.0; here it is an error, because "not scored" is not 0. The package itself is only imported by its users'
modules.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from rewards.names import NameNotFound, load_named
from rewards.verdict import BadReference, Outcome, Verdict

OFFERED = ("prompt", "completion", "answer", "state", "info", "task", "parser")


class RubricVerifier:
    """Runs a `verifiers` rubric on one completion at a time.

    The reference is an object with the data's columns, ``{"answer": "42", "info": {...}}``, and ``prompt`` if a
    function looks at that; anything else is the answer itself. Of a task (`verifiers` 0.4), the columns are the fields
    of its data.

    Args: rubric: ``module:name`` of a rubric, of an environment (its rubric is used), of a class or function that makes
    one of them (``my_env:load_environment``), or of a `Task` class; args: for the class or function (of a task: the
    fields of its config); conversational: prompts and completions are chat messages; full_marks: the reward that counts
    as CORRECT, by default the sum of the positive weights; lowest_score: the reward at worst; key: the column that a
    bare reference is. Raises `ValueError` for what needs more than one completion (group rewards) or more than its text
    (a task's runtime).
    """

    def __init__(
        self,
        rubric: str,
        args: Mapping[str, Any] | None = None,
        conversational: bool = True,
        full_marks: float | None = None,
        lowest_score: float = 0.0,
        key: str = "answer",
    ) -> None:
        self._scorer = _scorer(_find(rubric), rubric, dict(args or {}), conversational)
        self.full_marks = self._scorer.full_marks if full_marks is None else full_marks
        self.lowest_score = lowest_score
        self.key = key
        if not lowest_score < self.full_marks:
            raise ValueError(f"lowest_score: {lowest_score!r} must be below full_marks {self.full_marks!r}")
        self._runner: asyncio.Runner | None = None

    def check_reference(self, reference: Any) -> None:
        """Raises `BadReference` when a column that a reward function asks for is missing or has the wrong form."""
        self._scorer.check(self._columns(reference))

    def grade(self, completion: str, reference: Any) -> Verdict:
        """The weighted reward; CORRECT at full marks, WRONG at the lowest score or below, else PARTIAL."""
        columns = self._columns(reference)
        if self._runner is None:  # one loop for all gradings: clients that a rubric holds belong to a loop
            self._runner = asyncio.Runner()
        reward, parts = self._runner.run(self._scorer.score(completion, columns))
        if not math.isfinite(reward):
            raise ValueError(f"the rubric's reward is {reward}, a reward is a finite number; its parts: {parts}")
        outcome = Outcome.PARTIAL
        if reward >= self.full_marks or math.isclose(reward, self.full_marks, rel_tol=1e-9):
            outcome = Outcome.CORRECT
        elif reward <= self.lowest_score:
            outcome = Outcome.WRONG
        return Verdict(reward, outcome, {"parts": parts})

    def _columns(self, reference: Any) -> dict[str, Any]:
        return dict(reference) if isinstance(reference, Mapping) else {self.key: reference}


class _Scorer(Protocol):
    full_marks: float

    def check(self, columns: dict[str, Any]) -> None:
        """Raise `BadReference` if these columns cannot be graded against."""

    async def score(self, completion: str, columns: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        """The reward, and what each function gave."""


def _find(path: str) -> Any:
    try:
        found, _ = load_named(path)
    except NameNotFound as error:
        fix = "; pip install verifiers" if path.startswith("verifiers.") and _is_missing("verifiers") else ""
        raise ValueError(f"rubric: {error}{fix}") from None
    except ModuleNotFoundError as error:
        if error.name != "verifiers":
            raise
        raise ValueError(f"rubric: {path!r} needs verifiers; pip install verifiers") from error
    return found


def _is_missing(package: str) -> bool:
    return importlib.util.find_spec(package) is None


def _scorer(found: Any, path: str, args: dict[str, Any], conversational: bool) -> _Scorer:
    if inspect.isclass(found) and _is_task(found):
        return _TaskScorer(found, path, args, conversational)
    if inspect.isclass(found) or (callable(found) and not _is_rubric(found)):
        try:
            inspect.signature(found).bind(**args)
        except TypeError as error:
            raise ValueError(f"args: {path!r} cannot be called with {args!r}: {error}") from error
        found = found(**args)
    elif args:
        raise ValueError(f"args: {path!r} is a {type(found).__name__} already, it takes none; got {args!r}")
    if not _is_rubric(found):
        found = getattr(found, "rubric", found)
    if not _is_rubric(found):
        raise ValueError(
            f"rubric: {path!r} gives a {type(found).__name__}; it must give a rubric (with 'funcs' and 'weights'), an "
            "environment that has one, or be a Task class of verifiers 0.4"
        )
    return _RubricScorer(found, path, conversational)


def _is_rubric(found: Any) -> bool:
    return callable(getattr(found, "score_rollout", None)) or (
        isinstance(getattr(found, "funcs", None), list) and isinstance(getattr(found, "weights", None), list)
    )


def _is_task(cls: type) -> bool:
    return any(base.__module__ == "verifiers.v1.task" and base.__name__ == "Task" for base in cls.__mro__)


class _Message(dict[str, Any]):
    """A chat message whose fields are keys and attributes, as the package's own messages are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _messages(content: Any, role: str, conversational: bool) -> Any:
    if isinstance(content, list):
        return [_Message(message) if isinstance(message, Mapping) else message for message in content]
    return [_Message(role=role, content=content)] if conversational else content


# -- rubrics: verifiers 0.1 to 0.3 -------------------------------------------------------------------------------------


class _RubricScorer:
    def __init__(self, rubric: Any, path: str, conversational: bool) -> None:
        self._rubric, self._conversational = rubric, conversational
        self._failures: list[Exception] = []
        self.full_marks = 0.0
        self._needed: dict[str, list[str]] = {}
        count = 0
        for part in _parts(rubric):
            self._note(part, path)
            count += len(part.funcs)
            part.funcs = [self._watched(function) for function in part.funcs]
        if not count and not callable(getattr(rubric, "score_rollout", None)):
            raise ValueError(f"rubric: {path!r} has no reward functions")
        self.full_marks = self.full_marks or 1.0

    def _note(self, part: Any, path: str) -> None:
        """What its functions must be given, and the most that they give if each gives 1 at most."""
        open_ended = bool(getattr(part, "score_object_providers", None))
        for function, weight in zip(part.funcs, part.weights, strict=True):
            self.full_marks += max(0.0, weight)
            name = _name(function)
            parameters = inspect.signature(function).parameters.values()
            plural = {"states", "prompts", "completions", "answers", "tasks", "infos"}
            if plural & {parameter.name for parameter in parameters}:
                raise ValueError(
                    f"rubric: {path!r}: the function {name!r} scores a whole group; only rewards of single completions "
                    "run here (a comparison within a group is a shaping)"
                )
            known = {*OFFERED, *getattr(part, "class_objects", {})} - {"answer"}
            needed = [
                parameter.name
                for parameter in parameters
                if parameter.default is parameter.empty
                and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
                and parameter.name not in known
            ]
            if needed and not open_ended:
                self._needed[name] = needed

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, but that failures are kept, because the package turns them into 0.0."""

        @functools.wraps(function)
        async def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                value = function(*args, **kwargs)
                value = await value if inspect.isawaitable(value) else value
                if not math.isfinite(float(value)):
                    raise ValueError(f"it returned {value}, a reward is a finite number")
            except Exception as error:  # foreign code; raised again, with its name
                error.add_note(f"raised by the reward function {_name(function)!r}")
                self._failures.append(error)
                raise
            return value

        watched.__name__ = _name(function)
        return watched

    def check(self, columns: dict[str, Any]) -> None:
        for name, needed in self._needed.items():
            missing = [column for column in needed if column not in columns]
            if missing:
                raise BadReference(
                    f"the reward function {name!r} asks for {', '.join(missing)}; "
                    f"the reference has {', '.join(columns) or 'none'}"
                )
        self._row(columns)

    def _row(self, columns: dict[str, Any]) -> dict[str, Any]:
        info = columns.get("info", {})
        if isinstance(info, str):  # how data sets keep it
            try:
                info = json.loads(info)
            except ValueError as error:
                raise BadReference(f"info: {info!r:.100} is neither an object nor its JSON: {error}") from error
        prompt = _messages(columns.get("prompt", ""), "user", self._conversational)
        row = {"prompt": prompt, "answer": columns.get("answer", ""), "info": info, "example_id": 0}
        return row | {name: value for name, value in columns.items() if name not in ("prompt", "answer", "info")}

    async def score(self, completion: str, columns: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        row = self._row(columns)
        said = _messages(completion, "assistant", self._conversational)
        step = {"prompt": row["prompt"], "completion": said, "response": None, "tokens": None, "reward": None}
        step |= {"advantage": None, "is_truncated": False, "extras": {}}
        state: dict[str, Any] = {**row, "input": row, "completion": said, "trajectory": [step], "is_completed": True}
        state |= {"task": row.get("task", "default"), "is_truncated": False, "stop_condition": None, "error": None}
        self._failures.clear()
        score_rollout = getattr(self._rubric, "score_rollout", None)
        if score_rollout is None:
            reward, parts = await self._score_plainly(state, row)
        else:
            said_by_name = {name: state[name] for name in ("prompt", "completion", "answer", "task", "info")}
            result = _call(score_rollout, {**row, **said_by_name, "state": state})
            result = await result if inspect.isawaitable(result) else result
            given = state if result is None else result
            reward, parts = float(_field(given, "reward")), dict(_field(given, "metrics"))
        if self._failures:
            raise self._failures[0]
        return reward, parts

    async def _score_plainly(self, state: dict[str, Any], row: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        """For objects with functions and weights that do not score by themselves."""
        reward, parts = 0.0, {}
        for part in _parts(self._rubric):
            objects = {**row, "completion": state["completion"], "state": state, "task": state["task"]}
            objects |= {"parser": getattr(part, "parser", None), **getattr(part, "class_objects", {})}
            for function, weight in zip(part.funcs, part.weights, strict=True):
                value = _call(function, objects)
                value = await value if inspect.isawaitable(value) else value
                parts[_name(function)] = float(value)
                reward += weight * float(value)
        return reward, parts


def _parts(rubric: Any) -> Iterator[Any]:
    """The rubric, and those inside it if it is a group of them."""
    if isinstance(getattr(rubric, "funcs", None), list):
        yield rubric
    for inner in getattr(rubric, "rubrics", ()):
        yield from _parts(inner)


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _call(function: Callable[..., Any], objects: Mapping[str, Any]) -> Any:
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return function(**objects)
    return function(**{name: value for name, value in objects.items() if name in parameters})


def _field(given: Any, name: str) -> Any:
    return given[name] if isinstance(given, Mapping) else getattr(given, name)


# -- tasks: verifiers 0.4 ----------------------------------------------------------------------------------------------


class _TaskScorer:
    def __init__(self, task: Any, path: str, args: dict[str, Any], conversational: bool) -> None:
        self._task, self._conversational = task, conversational
        self._package = importlib.import_module("verifiers.v1")
        self._config = task.config_type()(**args)
        probe = task(task.data_type().model_construct(), self._config)
        rewards = probe.hooks("reward")
        if not rewards and not self._config.judges:
            raise ValueError(f"rubric: the task {path!r} has no rewards")
        for function in rewards:
            runtime = inspect.signature(function).parameters.get("runtime")
            if runtime is not None and runtime.default is runtime.empty:
                raise ValueError(
                    f"rubric: the reward {function.__name__!r} of {path!r} needs the runtime that the agent worked in; "
                    "only rewards of a text run here"
                )
        weights = [float(getattr(function, "_vf_weight", 1.0)) for function in rewards]
        weights += [float(judge.weight) for judge in self._config.judges]
        self.full_marks = sum(weight for weight in weights if weight > 0) or 1.0

    def _made(self, columns: dict[str, Any]) -> Any:
        try:
            return self._task(self._task.data_type().model_validate(columns), self._config)
        except ValueError as error:  # pydantic's own says which field
            raise BadReference(f"no data of {self._task.__name__}: {error}") from error

    def check(self, columns: dict[str, Any]) -> None:
        self._made(columns)

    async def score(self, completion: str, columns: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        task, package = self._made(columns), self._package
        prompt = _messages(task.data.prompt or "", "user", True)
        nodes = [
            package.MessageNode(parent=index - 1 if index else None, message=message)
            for index, message in enumerate(prompt)
        ]
        answer = package.AssistantMessage(content=completion)
        nodes.append(package.MessageNode(parent=len(nodes) - 1, message=answer, sampled=True))
        record = package.TraceTask(type=type(task).__name__, data=task.data)
        agent = package.AgentInfo.model_construct(name="agent", trainable=True)
        trace = package.Trace.model_construct(task=record, agent=agent, nodes=nodes, is_completed=True, ok=True)
        await task.score(trace)
        parts = {name: None if given is None else given.value for name, given in trace.rewards.items()}
        if None in parts.values():
            raise RuntimeError(f"not every reward of the task was given: {parts}")
        return float(trace.reward), {**parts, **trace.metrics}
