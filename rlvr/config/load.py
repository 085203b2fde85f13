"""Loads a `Recipe` from a YAML file and ``section.key=value`` overrides; errors are written for its author."""

from __future__ import annotations

import copy
import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from rlvr.config.base import Section
from rlvr.config.recipe import Recipe
from rlvr.errors import InputError
from rlvr.shipped import find_shipped, shipped_names

SectionT = TypeVar("SectionT", bound=Section)

RUN_RECIPE = "recipe.yaml"
"""The resolved recipe in a run's folder."""

OLD_KEYS = {
    "run.insist": "force",
    "rollout.patience": "stall_timeout",
    "rollout.schedule.beyond": "on_stale",
    "rollout.engine.start": "devices",
    "rollout.engine.spawn": "devices",
}
"""Keys that got another name after 0.1.0, where they stood in a recipe, and the new name there."""


class RecipeError(InputError, ValueError):
    """A recipe that cannot be run; the message names key, value, rule and the nearest right name, if there is one.

    `rule` is the name under which the doctor reports it.
    """

    def __init__(self, message: str, *, rule: str = "cannot_run") -> None:
        super().__init__(message)
        self.rule = rule


def nearest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the known name most like `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def no_such_file(path: Path) -> str:
    """Why a file that a recipe names cannot be read: it is not there, with the nearest name that is."""
    beside = (neighbour.name for neighbour in path.parent.iterdir()) if path.parent.is_dir() else ()
    return f"{str(path)!r} does not exist{nearest(path.name, beside)}; relative paths start at {Path.cwd()}"


class _Loader(yaml.SafeLoader):
    """YAML in which a key written twice is an error, not a silent choice, and 1e-6 is a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: list[Any] = []
    for key_node, _ in node.value:
        if key_node.tag != "tag:yaml.org,2002:merge":
            key = loader.construct_object(key_node, deep=True)
            if key in seen or not isinstance(key, str | int | float):
                problem = "stands here twice" if key in seen else "is not a name"
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} {problem}", key_node.start_mark)
            seen.append(key)
    return typing.cast(dict[Any, Any], loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(  # YAML 1.1 reads 1e-6 as a string; YAML 1.2 and everybody else as a number
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_recipe(
    source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Recipe:
    """Read, override and check a recipe.

    `source` is a YAML file or, where there is none of that path, the name of a recipe that comes with rlvr
    (``quickstart``); or a dict of the sections that such a file holds; or a `Recipe`. `overrides` are texts as on the
    command line, ``["learner.lr=1e-4"]``, or values by key, ``{"learner.lr": 1e-4}``. Raises `RecipeError` listing
    everything that is wrong, not only the first.
    """
    shown, data = _read(source)
    path, prepare = _model_of(data)
    if isinstance(overrides, str):
        raise RecipeError(f"overrides must be a list or a dict, got the text {overrides!r}; write [{overrides!r}]")
    if isinstance(overrides, Mapping):
        changes = [(f"{key}={value!r}", key, value) for key, value in overrides.items()]
    else:
        changes = [(override, *_parse_override(override)) for override in overrides]
    for shown_override, key, value in changes:
        _override(data, shown_override, key, value)
    if _model_of(data)[0] != path and prepare is not None and not {"model", "model.prepare"} & {c[1] for c in changes}:
        data["model"]["prepare"] = None  # it makes the model that the recipe names, unless it is named again
    return _validated(Recipe, data, shown)


def _validated(model: type[SectionT], data: Mapping[str, Any], shown: str) -> SectionT:
    """`data` as a section. Raises `RecipeError`."""
    try:
        # by way of JSON, whose strict rules are those of YAML: "4" and true are no numbers, a list is a tuple
        return model.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise RecipeError(f"{shown} cannot be run:\n" + "\n".join(_explain(error, model))) from None


def _read(source: str | Path | Mapping[str, Any] | Recipe) -> tuple[str, dict[str, Any]]:
    """The recipe's name in error messages, and its sections as plain, mutable values."""
    if isinstance(source, Recipe):
        return f"recipe {source.name!r}", source.model_dump(mode="json", by_alias=True)
    if isinstance(source, Mapping):
        return "the recipe", copy.deepcopy(dict(source))
    path = locate_recipe(source)
    data = _read_file(path, shown := f"recipe {str(path)!r}")
    _find_template(data, path.parent)
    return shown, data


def _read_file(path: Path, shown: str) -> dict[str, Any]:
    """The mapping that a YAML file holds."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{shown} cannot be read: {error}") from None
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{shown} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{shown} must be a mapping of sections, got {type(data).__name__}")
    return data


def load_section(model: type[SectionT], path: Path, overrides: Sequence[str] = ()) -> SectionT:
    """Read, override and check a YAML file that holds one section and is no recipe.

    `overrides` are texts as on the command line. Raises `RecipeError` listing everything that is wrong.
    """
    if not path.is_file():
        raise RecipeError(no_such_file(path))
    data = _read_file(path, repr(str(path)))
    for override in overrides:
        _override(data, override, *_parse_override(override))
    return _validated(model, data, repr(str(path)))


def locate_recipe(path: str | Path) -> Path:
    """The file that a command's argument RECIPE means. Raises `RecipeError` if there is none."""
    path = Path(path)
    if path.is_file():
        return path
    shipped = find_shipped(path.as_posix())
    if shipped is not None:
        return shipped
    if is_run_folder(path):
        raise RecipeError(
            f"recipe {str(path)!r} is a run's folder; the recipe of that run is {path / RUN_RECIPE}. The commands "
            "eval, generate, doctor, export and view take the folder itself"
        )
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.yaml"))
        holds = f"it holds {', '.join(files)}" if files else "it holds no YAML file"
        raise RecipeError(f"recipe {str(path)!r} is a folder; name a YAML file: {holds}")
    known = [file.name for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    near = nearest(path.name, [*known, *shipped_names()])
    raise RecipeError(f"recipe {str(path)!r} does not exist{near}; `rlvr recipes` lists those that come with rlvr")


def is_run_folder(path: Path) -> bool:
    """True for the folder of a run that has begun."""
    return (path / RUN_RECIPE).is_file() and (path / "metrics.jsonl").is_file()


def load_recipe_of_run(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a run's folder with the model that it trained: its checkpoint ``best`` where ``run.keep_best`` made
    one, else the last. `overrides` come last, so that ``model.path`` can name another checkpoint.

    Raises `RecipeError` if there is no checkpoint.
    """
    checkpoints = folder / "checkpoints"
    trained = next((checkpoints / name for name in ("best", "latest") if (checkpoints / name).is_dir()), None)
    if trained is None:
        raise RecipeError(
            f"{folder} holds no checkpoint, so there is no trained model in it: `rlvr train {folder / RUN_RECIPE}` "
            f"goes on with the run, `rlvr eval {folder / RUN_RECIPE}` measures the model that it starts from"
        )
    return load_recipe(folder / RUN_RECIPE, [f"model.path={trained}", "model.prepare=null", *overrides])


def _find_template(data: dict[str, Any], folder: Path) -> None:
    """A template that is no file of the current directory, but lies beside the recipe, is taken from there."""
    template = data.get("template")
    path = template.get("path") if isinstance(template, dict) else None
    if isinstance(path, str) and not Path(path).is_file() and (folder / path).is_file():
        typing.cast(dict[str, Any], template)["path"] = str(folder / path)


def _model_of(data: Mapping[str, Any]) -> tuple[Any, Any]:
    """``model.path`` and ``model.prepare`` as they stand, sound or not."""
    model = data.get("model")
    return (model.get("path"), model.get("prepare")) if isinstance(model, dict) else (None, None)


def _parse_override(override: str) -> tuple[str, Any]:
    """Key and value of ``section.key=value``; the value is YAML."""
    key, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"override {override!r} must look like section.key=value")
    try:
        return key, yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not YAML: {error}") from None


def _override(data: dict[str, Any], override: str, key: str, value: Any) -> None:
    """Set one key, ``section.key``, to a value; list items are named by number. Errors quote `override`."""
    *path, last = key.split(".")
    if not all([*path, last]):
        raise RecipeError(f"override {override!r} must look like section.key=value")
    place: Any = data
    for name in path:
        place = place[_item(place, name, override)] if isinstance(place, list) else place.setdefault(name, {})
        if not isinstance(place, dict | list):
            raise RecipeError(f"override {override!r}: {name!r} holds a value, not a section")
    if isinstance(place, list):
        place[_item(place, last, override)] = value
    else:
        place[last] = value


def _item(place: list[Any], name: str, override: str) -> int:
    """The number of an item that is there."""
    if not name.isdigit() or int(name) >= len(place):
        there = f"has items 0 to {len(place) - 1}" if place else "is empty"
        raise RecipeError(f"override {override!r}: the list {there}, {name!r} is none of them")
    return int(name)


def _explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line for each mistake in a `root`: key, what is wrong, value, nearest right name."""
    lines = []
    for fault in error.errors(include_url=False):
        shown, models = _place(fault["loc"], root)
        key = shown or ("recipe" if root is Recipe else "")
        lines.append(f"  {key}{': ' if key else ''}{_message(dict(fault), models, shown)}")
    return lines


def _message(fault: dict[str, Any], models: list[type[BaseModel]], shown: str) -> str:
    """What is wrong, for one of pydantic's errors; `models` may stand at its place, the key `shown`."""
    kind, given, context = fault["type"], fault["input"], fault.get("ctx", {})
    choices = [_shown(tag) for model in models for tag in _tags(model)]
    match kind:
        case "extra_forbidden" if shown in OLD_KEYS:
            return f"this key is now called {OLD_KEYS[shown]!r}; rename it"
        case "extra_forbidden":
            known = sorted({field.alias or name for model in models for name, field in model.model_fields.items()})
            return f"unknown key{nearest(str(fault['loc'][-1]), known)}; known here: {', '.join(known)}"
        case "missing":
            return "this key is missing" if isinstance(fault["loc"][-1], str) else "this item is missing"
        case "union_tag_invalid" if choices:
            tag = given["type"]
            return f"type is {tag!r}, must be one of {', '.join(choices)}{nearest(str(tag), choices)}"
        case "union_tag_not_found" | "model_attributes_type" | "dict_type" if len(models) > 1:
            return f"must be {{type: {' | '.join(choices)}, ...}}, got {given!r}"
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
            return f"got {given!r}, must be one of {', '.join(allowed)}{nearest(str(given), allowed)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a section of keys and values, got {given!r}"
        case "string_pattern_mismatch" if ":" in context["pattern"]:
            return f"must be an import path, module:name, got {given!r}"
        case "list_type" | "tuple_type":
            return f"must be a list, got {given!r}" + (f"; write {_as_list(given)}" if _is_plain(given) else "")
        case "value_error":
            return str(fault["msg"]).removeprefix("Value error, ")
        case _:
            return f"{fault['msg']}, got {given!r}"


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _as_list(value: Any) -> str:
    """A list of one value as people write it: ``[wandb]``."""
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=1000).strip()


def _place(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[str, list[type[BaseModel]]]:
    """The key at `location` in a `root` as people write it, without the tags that pydantic puts there, and the models
    that may stand there; for a key that does not exist, those of its section."""
    models: list[type[BaseModel]] = [root]
    shown: list[str] = []
    for part in location:
        tagged = [model for model in models if part in _tags(model)] if len(models) > 1 else []
        if tagged:
            models = tagged
            continue
        shown.append(str(part))
        fields = [f.annotation for m in models for n, f in m.model_fields.items() if part == (f.alias or n)]
        if fields:
            models = [model for annotation in fields for model in _models(annotation)]
    return ".".join(shown), models


def _shown(tag: str) -> str:
    """A tag as people write it: a plug-in is named by its import path."""
    return "module:name" if tag == "plugin" else tag


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
