"""Instances of the tests' own classes (a list node, a tree node) as data: a table of attributes, however deep.

``{"instances": [root, [[class name, [[attribute, form], ...]], ...]]}``; inside, ``{"instance": row}`` is a row of the
table. Both sides have a class of each name; an instance is rebuilt without its `__init__`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import codec

MOST = 200_000
"""Rows that a table may have."""


def attributes(value: Any) -> dict[str, Any]:
    """The attributes that an instance itself has, in `__dict__` or in slots."""
    found = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        names = cls.__dict__.get("__slots__", ())
        for name in [names] if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def encode(root: Any, is_shared: Callable[[Any], bool], foreign: Callable[[Any], Any]) -> dict[str, Any]:
    """The form of an instance and of all instances that it leads to. `foreign`: the form of what else is no data."""
    rows = {id(root): 0}
    waiting, table = [root], []  # type: list[Any], list[Any]

    def row(value: Any) -> Any:
        if not is_shared(value):
            return foreign(value)
        if id(value) not in rows:
            if len(rows) >= MOST:
                raise codec.Unencodable(f"more than {MOST} instances")
            rows[id(value)] = len(rows)
            waiting.append(value)
        return {"instance": rows[id(value)]}

    for value in waiting:  # it grows
        pairs = [[name, codec.encode(item, row)] for name, item in attributes(value).items()]
        table.append([type(value).__name__, pairs])
    return {"instances": [0, table]}


def decode(body: Any, class_of: Callable[[str], type], foreign: Callable[[str, Any], Any]) -> Any:
    """The instance of such a form. Raises `codec.Undecodable`; `class_of` too, for a name that it does not know."""
    try:
        root, table = body
        values: list[Any] = [object.__new__(class_of(str(name))) for name, _ in table]

        def tagged(tag: str, inner: Any) -> Any:
            return values[inner] if tag == "instance" else foreign(tag, inner)

        for value, (_, pairs) in zip(values, table, strict=True):
            for name, form in pairs:
                if not str(name).isidentifier() or str(name).startswith("__"):
                    raise codec.Undecodable(f"an attribute {str(name)[:40]!r}")
                object.__setattr__(value, name, codec.decode(form, tagged))
        return values[root]
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise codec.Undecodable(f"broken instances: {error}") from error


def take_over(value: Any, other: Any) -> None:
    """Give an instance the attributes of another one of its class."""
    if type(value) is type(other):
        for name in attributes(value).keys() - attributes(other).keys():
            object.__delattr__(value, name)
        for name, item in attributes(other).items():
            object.__setattr__(value, name, item)
