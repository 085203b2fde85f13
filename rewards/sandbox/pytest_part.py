"""The part of pytest that tests of single functions use: `raises`, `approx`, `mark.parametrize`, `fixture`, `param`.

Tests are run without pytest, and nothing of it is on the machine's path for programs.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

NAMES = ("raises", "approx", "mark", "fixture", "param")
MARKS = ("parametrize", "timeout", "slow", "asyncio")
_CASES, _FIXTURE = "__rewards_cases__", "__rewards_fixture__"


def module() -> types.ModuleType:
    """A module to be imported as pytest."""
    made = types.ModuleType("pytest")
    made.__dict__.update(raises=Raises, approx=Approx, mark=_Mark(), fixture=fixture, param=lambda *values, **_: values)
    return made


class Raises:
    """`with pytest.raises(ValueError, match="...") as info`."""

    def __init__(self, expected: Any, *, match: str | None = None) -> None:
        self._expected, self._match = expected, match
        self.value: BaseException | None = None

    def __enter__(self) -> Raises:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: object) -> bool:
        if error is None:
            raise AssertionError(f"did not raise {self._expected}")
        if not isinstance(error, self._expected) or not isinstance(error, Exception):
            return False
        if self._match is not None and not re.search(self._match, str(error)):
            raise AssertionError(f"the message {str(error)!r:.200} does not match {self._match!r:.200}")
        self.value = error
        return True

    @property
    def type(self) -> Any:
        """The class of what was raised."""
        return type(self.value)


class Approx:
    """Equals numbers within a tolerance, and sequences and mappings of them."""

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None) -> None:
        self._expected = expected
        self._rel = rel if rel is not None else 0.0 if abs is not None else 1e-6
        self._abs = abs if abs is not None else 1e-12

    def __eq__(self, actual: object) -> bool:
        return self._agrees(actual, self._expected)

    def _agrees(self, actual: Any, expected: Any) -> bool:
        if isinstance(expected, dict):
            return (
                isinstance(actual, dict)
                and actual.keys() == expected.keys()
                and all(self._agrees(actual[key], value) for key, value in expected.items())
            )
        if isinstance(expected, list | tuple):
            return (
                type(actual) is type(expected)
                and len(actual) == len(expected)
                and all(itertools.starmap(self._agrees, zip(actual, expected, strict=True)))
            )
        if isinstance(expected, int | float) and not isinstance(expected, bool):
            return isinstance(actual, int | float) and math.isclose(
                actual, expected, rel_tol=self._rel, abs_tol=self._abs
            )
        return bool(actual == expected)


class _Mark:
    def __getattr__(self, name: str) -> Any:
        if name == "parametrize":
            return _parametrize
        return lambda *arguments, **_: (
            arguments[0] if len(arguments) == 1 and callable(arguments[0]) else (lambda function: function)
        )


def _parametrize(names: str | list[str], values: Any, **_: Any) -> Callable[[Any], Any]:
    wanted = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    cases = [dict(zip(wanted, value if len(wanted) > 1 else _only(value), strict=True)) for value in values]

    def decorate(function: Any) -> Any:
        setattr(function, _CASES, [*getattr(function, _CASES, []), cases])
        return function

    return decorate


def _only(value: Any) -> tuple[Any]:
    """One parameter's value, which `param` may have wrapped."""
    return value if isinstance(value, tuple) and len(value) == 1 else (value,)


def fixture(function: Any = None, **_: Any) -> Any:
    """A function whose result tests get by its name."""
    if function is None:
        return fixture
    setattr(function, _FIXTURE, True)
    return function


def collect(scope: dict[str, Any], names: list[str]) -> Iterator[Callable[[], None]]:
    """The tests that pytest would run of the functions and classes named, in their order, each as a call."""
    for name in names:
        item = scope[name]
        if isinstance(item, type):
            for method in [key for key in vars(item) if key.startswith("test")]:
                yield from _calls(scope, item, method)
        else:
            yield from _calls(scope, None, name)


def _calls(scope: dict[str, Any], cls: type | None, name: str) -> Iterator[Callable[[], None]]:
    function = scope[name] if cls is None else getattr(cls, name)
    for cases in itertools.product(*getattr(function, _CASES, [])):
        given = {key: value for case in cases for key, value in case.items()}
        yield partial(_call, scope, cls, name, given)


def _call(scope: dict[str, Any], cls: type | None, name: str, given: dict[str, Any]) -> None:
    target = cls() if cls is not None else None
    if target is not None and hasattr(target, "setup_method"):
        target.setup_method()
    function = scope[name] if target is None else getattr(target, name)
    open_fixtures: list[Iterator[Any]] = []
    function(**_arguments(scope, target, function, given, open_fixtures))
    for generator in reversed(open_fixtures):
        next(generator, None)


def _arguments(
    scope: dict[str, Any], target: Any, function: Any, given: dict[str, Any], open_fixtures: list[Iterator[Any]]
) -> dict[str, Any]:
    """What a test or fixture is called with: parameters first, then fixtures by name."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        maker: Any = getattr(target, name, None) or dict.get(scope, name)
        if name in given:
            found[name] = given[name]
        elif getattr(maker, _FIXTURE, False):
            value = maker(**_arguments(scope, target, maker, given, open_fixtures))
            if inspect.isgenerator(value):
                open_fixtures.append(value)
                value = next(value)
            found[name] = value
        elif parameter.default is inspect.Parameter.empty:
            raise ImportError(f"the tests want the fixture {name!r}, which is not among them")
    return found
