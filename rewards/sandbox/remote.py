"""Calls between a referee and the candidate, who live in different sandboxes: the candidate's side.

The referee sends one request at a time and waits; while it waits the candidate may call functions that came as
arguments. Requests: ``name`` (look a global name up), ``call``, ``attr``, ``item``, ``iter``, ``next``, ``len``,
``equals``. Data travel as `codec` forms; what is no data stays where it is and is named by a number: ``{"object": [id,
kind]}`` is the candidate's, ``{"function": id}`` the referee's.
"""

from __future__ import annotations

import builtins
import itertools
import sys
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

from . import codec, frames, instances

MUTABLE = (list, dict, set, bytearray, deque)
_TEXT_KEPT = 500


def resolve(module: types.ModuleType, name: str) -> Any:
    """What tests call `name`: a global, "Class.method" or "Class().method" of a new object, a method of `Solution`."""
    first, *rest = name.replace("()", "").split(".")
    if hasattr(module, first):
        value = getattr(module, first)
    elif hasattr(module, "Solution") and hasattr(module.Solution, first):
        value = getattr(module.Solution(), first)
    else:
        raise NameError(f"name {first!r} is not defined")
    for part in rest:
        value = getattr(value() if isinstance(value, type) else value, part)
    return value


def add_names(preamble: str) -> None:
    """Run code whose names programs may use without importing them.

    They become built-in names, where Python's own go first: in the module itself, what tests ask for would be found
    although the candidate did not write it.
    """
    names: dict[str, Any] = {}
    exec(compile(preamble, "<preamble>", "exec"), names)
    for name, value in names.items():
        if not hasattr(builtins, name):
            setattr(builtins, name, value)


def _define(code: types.CodeType, module: types.ModuleType, needed: str | None) -> None:
    """Define the module. What it does besides defining what is needed may fail: a demonstration, a missing input."""
    try:
        exec(code, module.__dict__)
    except Exception:  # foreign code: raised again unless what is asked for is there
        first = (needed or "").replace("()", "").split(".")[0]
        if not hasattr(module, first):
            raise


def describe(error: BaseException) -> dict[str, Any]:
    """What the caller is told of an exception: names and text, never the object."""
    kind = "exit" if isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit) else "raised"
    names = [cls.__name__ for cls in type(error).__mro__ if cls is not object]
    try:
        text = str(error)[:_TEXT_KEPT]
    except BaseException:
        text = "(its text cannot be had)"
    return {"kind": kind, "types": names, "message": text}


def numpy_form(value: Any) -> Any:
    """The form of a numpy array or scalar; raises for everything else."""
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return codec.encode(value.tolist())
    raise codec.Unencodable(f"{type(value).__name__} is not built-in data")


def call(code: types.CodeType, module: types.ModuleType, payload: dict[str, Any]) -> dict[str, Any]:
    """Define the module, call its function with the given arguments, describe what came."""
    arguments = [codec.decode(form) for form in payload["args"]]
    keywords = {name: codec.decode(form) for name, form in payload["kwargs"].items()}
    try:
        _define(code, module, payload["fn"])
        value = resolve(module, payload["fn"])(*arguments, **keywords)
    except BaseException as error:
        return describe(error)
    try:
        answer = {"kind": "value", "value": codec.encode(value, numpy_form), "nonce": payload["nonce"]}
        if value is None and arguments:  # it may have changed what it was given
            answer["first"] = codec.encode(arguments[0], numpy_form)
        return answer
    except BaseException as error:
        return {"kind": "opaque", "message": f"the function returned no plain data: {type(error).__name__}: {error}"}


def serve(channel: int, code: types.CodeType, module: types.ModuleType, needed: str | None) -> None:
    """Define the module, then answer requests until the referee closes the channel. needed: see `_define`."""
    try:
        _define(code, module, needed)
        answer: dict[str, Any] = {"kind": "loaded"}
    except BaseException as error:
        answer = describe(error)
    sys.settrace(None)  # the module may trace its own loading, not the server of its calls
    sys.setprofile(None)
    server = _Server(channel, module)
    try:
        while True:
            try:
                frames.send(channel, answer)
            except codec.Unencodable as error:
                frames.send(channel, {"kind": "raised", "types": ["TypeError"], "message": str(error)})
            request = frames.receive(channel)
            try:
                answer = server.answer(request)
            except frames.Closed:
                raise
            except BaseException as error:
                answer = describe(error)
    except frames.Closed:
        return


class _Server:
    def __init__(self, channel: int, module: types.ModuleType) -> None:
        self._channel, self._module = channel, module
        self._objects: dict[int, Any] = {}
        self._numbers = itertools.count(1)
        self._shared: dict[str, type] = {}
        """The candidate's class of each name of the tests' own ones: their instances travel as data."""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        do = request["do"]
        if do == "name":
            return self._value(resolve(self._module, request["name"]))
        target = self._objects[request["object"]]
        if do == "call":
            return self._call(target, request)
        if do == "attr":
            return self._value(getattr(target, request["name"]))
        if do == "item":
            return self._value(target[self._decode(request["key"])])
        if do == "len":
            return self._value(len(target))
        if do == "equals":
            return self._value(target == self._decode(request["key"]))
        if do == "iter":
            return self._value(iter(target))
        try:
            return self._value(next(target))
        except StopIteration:
            return {"kind": "end"}

    def _call(self, target: Any, request: dict[str, Any]) -> dict[str, Any]:
        for name in request["classes"]:
            self._class_of(name)
        arguments = [self._decode(form) for form in request["args"]]
        keywords = {name: self._decode(form) for name, form in request["kwargs"].items()}
        answer = self._value(target(*arguments, **keywords))
        answer["changed"] = {
            index: form
            for index, (before, argument) in enumerate(zip(request["args"], arguments, strict=True))
            if (isinstance(argument, MUTABLE) or self._is_shared(argument))
            and (form := self._encode(argument)) != before
        }
        return answer

    def _value(self, value: Any) -> dict[str, Any]:
        return {"kind": "value", "value": self._encode(value)}

    def _encode(self, value: Any) -> Any:
        try:
            return codec.encode(value, self._foreign)
        except RecursionError:
            raise codec.Unencodable("the value is nested too deep") from None

    def _foreign(self, value: Any) -> Any:
        try:
            return numpy_form(value)
        except codec.Unencodable:
            number = next(self._numbers)
        if self._is_shared(value):
            return instances.encode(value, self._is_shared, self._foreign)
        self._objects[number] = value
        kind = "class" if isinstance(value, type) else "iterator" if isinstance(value, Iterator) else "object"
        return {"object": [number, kind]}

    def _decode(self, form: Any) -> Any:
        return codec.decode(form, self._tagged)

    def _tagged(self, tag: str, body: Any) -> Any:
        if tag == "object":
            return self._objects[body[0]]
        if tag == "instances":
            return instances.decode(body, self._class_of, self._tagged)
        if tag == "function":
            return lambda *arguments: self._call_back(body, arguments)
        raise codec.Undecodable(f"unknown tag {tag!r}")

    def _is_shared(self, value: Any) -> bool:
        return self._shared.get(type(value).__name__) is type(value)

    def _class_of(self, name: str) -> type:
        """The candidate's class of this name; where it has none, one without methods."""
        if name not in self._shared:
            cls = object if name == "object" else getattr(self._module, name, None)
            self._shared[name] = cls if isinstance(cls, type) else type(name, (), {})
        return self._shared[name]

    def _call_back(self, number: int, arguments: tuple[Any, ...]) -> Any:
        forms = [self._encode(argument) for argument in arguments]
        frames.send(self._channel, {"kind": "callback", "function": number, "args": forms})
        while "do" in (answer := frames.receive(self._channel)):  # the function calls us in its turn
            try:
                nested = self.answer(answer)
            except Exception as error:  # foreign code: what it raises goes back to whoever called
                nested = describe(error)
            frames.send(self._channel, nested)
        if answer["kind"] == "value":
            return self._decode(answer["value"])
        raise RuntimeError(answer["message"])
