"""Naming a verifier by `module:Class` or `module:function` and building it, with errors that say what was meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rewards.functions import as_verifier
from rewards.names import NameNotFound, load_named, nearest, split_name
from rewards.verdict import Verifier


class VerifierSpecError(ValueError):
    """A verifier cannot be built from its path and arguments; the message names the key, the value and the rule."""


@dataclass(frozen=True, slots=True)
class VerifierSpec:
    """Which verifier to build, in a form that can be pickled and sent to a worker.

    Example: ``VerifierSpec("rewards.math_answers:MathVerifier", {"extract": "boxed"})``.
    """

    path: str
    """Where the class lives, ``module:Class``, or a function of completion and reference (`FunctionVerifier`)."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of its constructor, or of each call of the function; JSON-able, because they travel to the
    worker."""
    timeout: float | None = None
    """Seconds of wall clock for one item; None: the pool's."""

    def __post_init__(self) -> None:
        try:
            split_name(self.path)
        except NameNotFound as error:
            raise VerifierSpecError(
                f"verifier path: {error}, for example 'rewards.math_answers:MathVerifier'"
            ) from None
        if self.timeout is not None and not self.timeout > 0:
            raise VerifierSpecError(f"verifier timeout: {self.timeout!r} must be a number of seconds above 0")

    def load(self) -> Verifier:
        """Import the class and build the verifier.

        Raises `VerifierSpecError` when the module, the class, or an argument does not exist, when the constructor
        refuses a value (`ValueError`), or when the class is not a verifier. Any other error inside the user's own
        module or constructor comes through with its traceback.
        """
        try:
            cls, _ = load_named(self.path)
        except NameNotFound as error:
            raise VerifierSpecError(f"verifier path: {error}") from None
        if not inspect.isclass(cls) and not inspect.isroutine(cls):
            raise VerifierSpecError(
                f"verifier path: {self.path!r} is a {type(cls).__name__}, it must be a class or a function"
            )
        self._check_args(cls)
        try:
            verifier = as_verifier(cls, dict(self.args))
        except ValueError as error:  # how constructors refuse a value; other errors come through as they are
            raise VerifierSpecError(f"verifier args: {self.path!r}: {error}") from error
        for method in ("check_reference", "grade"):
            if not callable(getattr(verifier, method, None)):
                raise VerifierSpecError(
                    f"verifier path: {self.path!r} has no method {method!r}; a verifier has "
                    "check_reference(reference) and grade(completion, reference)"
                )
        return verifier

    def _check_args(self, cls: Callable[..., Any]) -> None:
        parameters = dict(inspect.signature(cls).parameters)
        if not inspect.isclass(cls):  # a function gets these two from the pool
            for name in list(parameters)[:2]:
                del parameters[name]
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return
        for key, value in self.args.items():
            if key not in parameters:
                raise VerifierSpecError(
                    f"verifier args: {self.path!r} takes no argument {key!r} (value {value!r})"
                    f"{nearest(key, parameters)}; it takes: {', '.join(parameters) or 'none'}"
                )
        for name, parameter in parameters.items():
            optional = parameter.default is not parameter.empty or parameter.kind is parameter.VAR_POSITIONAL
            if not optional and name not in self.args:
                raise VerifierSpecError(f"verifier args: {self.path!r} needs the argument {name!r}")
