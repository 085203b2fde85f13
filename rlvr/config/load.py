"""From a YAML file and ``section.key=value`` overrides to a `Recipe`, with errors for the person who wrote them."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rlvr.config.recipe import Recipe


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names key, value, rule and, where there is one, the nearest right name."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the known name most like `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


class _Loader(yaml.SafeLoader):
    """YAML in which a key written twice is an error, not a silent choice, and 1e-6 is a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands here twice", key_node.start_mark
            )
        seen.add(key)
    return typing.cast(dict[Any, Any], loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(  # YAML 1.1 reads 1e-6 as a string; YAML 1.2 and everybody else as a number
    "tag:yaml.org,2002:float", __import__("re").compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe. Raises `RecipeError` listing everything that is wrong, not only the first."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = nearest(path.name, (one.name for one in path.parent.glob("*.yaml"))) if path.parent.is_dir() else ""
        raise RecipeError(f"recipe {str(path)!r} does not exist{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {str(path)!r} cannot be read: {error}") from None
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {str(path)!r} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {str(path)!r} must be a mapping of sections, got {type(data).__name__}")
    for override in overrides:
        _override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"recipe {str(path)!r} cannot be run:\n" + "\n".join(_explain(error, data))) from None


def _override(data: dict[str, Any], override: str) -> None:
    """Apply one ``section.key=value``; the value is YAML, list items are named by number."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r} must look like section.key=value")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not YAML: {error}") from None
    place: Any = data
    *path, last = key.split(".")
    for name in path:
        if isinstance(place, list) and name.isdigit() and int(name) < len(place):
            place = place[int(name)]
        elif isinstance(place, dict):
            place = place.setdefault(name, {})
        else:
            raise RecipeError(f"override {override!r}: {name!r} is not a section of the recipe")
        if place is None or not isinstance(place, dict | list):
            raise RecipeError(f"override {override!r}: {name!r} holds a value, not a section")
    if isinstance(place, list):
        if not last.isdigit() or int(last) >= len(place):
            raise RecipeError(f"override {override!r}: the list has items 0 to {len(place) - 1}, not {last!r}")
        place[int(last)] = value
    else:
        place[last] = value


def _explain(error: ValidationError, data: dict[str, Any]) -> list[str]:
    """One line for each mistake: key, what is wrong, value, nearest right name."""
    lines = []
    for one in error.errors(include_url=False):
        shown = ".".join(str(part) for part in one["loc"]) or "recipe"
        message = one["msg"].removeprefix("Value error, ")
        if one["type"] == "extra_forbidden":
            known = _fields_at(one["loc"][:-1])
            message = f"unknown key{nearest(str(one['loc'][-1]), known)}; known here: {', '.join(known)}"
        elif one["type"] == "missing":
            message = "this key is missing"
        elif one["type"] in ("union_tag_invalid", "literal_error"):
            allowed = [
                part.strip("' ")
                for part in str(one["ctx"].get("expected_tags", one["ctx"].get("expected")))
                .replace(" or ", ", ")
                .split(",")
            ]
            given = one["ctx"].get("tag", one["input"])
            message = f"got {given!r}, must be one of {', '.join(allowed)}{nearest(str(given), allowed)}"
        elif one["type"] != "value_error":
            message = f"{message}, got {one['input']!r}"
        lines.append(f"  {shown}: {message}")
    return lines


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Names of the keys that the section at `location` may have."""
    models: list[type[BaseModel]] = [Recipe]
    for part in location:
        if isinstance(part, int):
            continue
        inner = [_models(f.annotation) for m in models for n, f in m.model_fields.items() if part in (n, f.alias)]
        if inner:
            models = [model for group in inner for model in group]
        else:  # a tag of a union: keep the members that carry it
            models = [m for m in models if part in _tags(m)] or models
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    arguments = typing.get_args(annotation) if not isinstance(annotation, types.GenericAlias) else annotation.__args__
    return [model for inner in arguments for model in _models(inner)]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    kind = model.model_fields.get("type")
    return ("plugin",) if model.__name__ == "PlugIn" else typing.get_args(kind.annotation) if kind else ()


def json_schema() -> dict[str, Any]:
    """The recipe's JSON schema, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema(by_alias=True)}
