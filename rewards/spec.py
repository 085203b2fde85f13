"""Naming a verifier by `module:Class` or `module:function` and building it, with errors that say what was meant."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from rewards.functions import as_verifier
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
        module, colon, name = self.path.partition(":")
        if not (module and colon and name):
            raise VerifierSpecError(
                f"verifier path: {self.path!r} is not of the form 'module:Class', "
                "for example 'rewards.math_answers:MathVerifier'"
            )
        if self.timeout is not None and not self.timeout > 0:
            raise VerifierSpecError(f"verifier timeout: {self.timeout!r} must be a number of seconds above 0")

    def load(self) -> Verifier:
        """Import the class and build the verifier.

        Raises `VerifierSpecError` when the module, the class, or an argument does not exist, when the constructor
        refuses a value (`ValueError`), or when the class is not a verifier. Any other error inside the user's own
        module or constructor comes through with its traceback.
        """
        module_name, _, class_name = self.path.partition(":")
        module = _import(module_name, self.path)
        try:
            cls = getattr(module, class_name)
        except AttributeError:
            known = [name for name, value in vars(module).items() if callable(value)]
            raise VerifierSpecError(
                f"verifier path: {self.path!r}: module {module_name!r} has no {class_name!r}"
                f"{_nearest(class_name, known)}"
            ) from None
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
                    f"{_nearest(key, parameters)}; it takes: {', '.join(parameters) or 'none'}"
                )
        for name, parameter in parameters.items():
            optional = parameter.default is not parameter.empty or parameter.kind is parameter.VAR_POSITIONAL
            if not optional and name not in self.args:
                raise VerifierSpecError(f"verifier args: {self.path!r} needs the argument {name!r}")


def _import(module_name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not (module_name == missing or module_name.startswith(missing + ".")):
            raise  # the module exists; something that it imports does not
        raise VerifierSpecError(
            f"verifier path: {path!r}: there is no module {module_name!r}{_nearest(module_name, _modules())}; "
            "modules are searched in the current directory and in the installed packages"
        ) from None


def _modules() -> list[str]:
    """The modules that a mistyped path could have meant: those of this package and those at the top of sys.path."""
    import rewards

    own = [f"rewards.{module.name}" for module in pkgutil.iter_modules(rewards.__path__)]
    return own + [module.name for module in pkgutil.iter_modules()]


def _nearest(name: str, candidates: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
