"""The settings reference, generated from the recipe's JSON schema.

``python -m rlvr.config.reference > docs/recipe.md`` writes the page of all settings; ``rlvr schema KEY`` explains one.
"""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any

from pydantic import TypeAdapter

from rlvr.config.base import ImportPath
from rlvr.config.load import RecipeError, json_schema, nearest

Schema = dict[str, Any]

IMPORT_PATH = TypeAdapter(ImportPath).json_schema()["pattern"]


def markdown() -> str:
    """All sections of a recipe in the order of its keys, and under each those that its slots may hold."""
    schema = json_schema()
    definitions: dict[str, Schema] = schema["$defs"]
    lines = [
        "# Settings",
        "",
        "Every key of a recipe, made from its JSON schema by `python -m rlvr.config.reference > docs/recipe.md`. A key",
        "without a default must be given. On the command line a key is written with its sections, `learner.lr=1e-5`;",
        "items of lists by number, `rewards.terms.0.weight=2`. Where several sections are possible, `type` chooses.",
        "",
        "## The recipe",
        "",
        *_table(schema),
    ]
    shown: set[str] = set()
    for key, field in schema["properties"].items():
        names = [name for name in _sections(field) if name not in shown]
        if names:
            lines += ["", f"## {key}"]
        for name in names:
            lines += _section(name, key, definitions, shown)
    return "\n".join(lines) + "\n"


def explain(key: str) -> str:
    """The entry of `docs/recipe.md` for one key, as plain text: ``learner.lr``, ``rewards.terms.0.weight``, or a
    section such as ``rollout.engine``, of which it lists the keys. Raises `RecipeError` for a key that no recipe
    has."""
    schema = json_schema()
    definitions: dict[str, Schema] = schema["$defs"]
    places: list[tuple[str, Schema]] = [("", schema)]
    field: Schema = {}
    shown: list[str] = []
    for part in key.split("."):
        if part.isdigit() and _is_list(field):
            shown.append(part)
            continue
        fields = [
            (tag, section["properties"][part]) for tag, section in places if part in section.get("properties", {})
        ]
        if not fields:
            known = sorted({name for _, section in places for name in section.get("properties", {})})
            raise RecipeError(
                f"{'.'.join([*shown, part])}: unknown key{nearest(part, known)}; "
                + (f"known here: {', '.join(known)}" if known else f"{'.'.join(shown)} is no section")
            )
        shown.append(part)
        field = fields[0][1]
        entries = [(tag, inner) for tag, inner in fields if part != "type" or "const" not in inner] or fields
        places = [(_tag(definitions[name]), definitions[name]) for _, inner in fields for name in _sections(inner)]
    lines = []
    for tag, entry in entries:
        lines += [".".join(shown) + (f" (with type {tag})" if len(entries) > 1 else ""), *_explained(entry)]
    for tag, section in places:
        lines += ["", f"type: {tag}" if tag else "its keys:", *_indented(section.get("description", ""))]
        for name, inner in section.get("properties", {}).items():
            if "const" not in inner:
                lines += [f"    {name}", *("    " + line for line in _explained(inner))]
    return "\n".join(lines) + "\n"


def _explained(field: Schema) -> list[str]:
    """Values, default and meaning of a key, a line for each."""
    default = f"default: {_short(json.dumps(field['default']))}" if "default" in field else "must be given"
    values = _values(field).replace("`", "")
    return [f"    {values}; {default}", *_indented(field.get("description", ""))]


def _indented(text: str) -> list[str]:
    return textwrap.wrap(_line(text), width=112, initial_indent="    ", subsequent_indent="    ")


def _tag(section: Schema) -> str:
    """The ``type`` that chooses a section; an empty text where nothing has to be chosen."""
    return str(section.get("properties", {}).get("type", {}).get("const", ""))


def _section(name: str, path: str, definitions: dict[str, Schema], shown: set[str]) -> list[str]:
    """One section with its keys, then the sections that these may hold; each section once, where it is first met."""
    if name in shown:
        return []
    shown.add(name)
    section = definitions[name]
    if "properties" not in section:
        return []
    kind = section["properties"].get("type", {})
    tag = f", type `{kind['const']}`" if "const" in kind else ", type `module:name`" if name == "PlugIn" else ""
    lines = ["", f"### `{path}`{tag}", "", _line(section.get("description", "")), "", *_table(section)]
    for key, field in section["properties"].items():
        many = ".N" if _is_list(field) else ""
        for inner in _sections(field):
            lines += _section(inner, f"{path}.{key}{many}", definitions, shown)
    return lines


def _table(section: Schema) -> list[str]:
    required = section.get("required", [])
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key, field in section["properties"].items():
        default = "" if key in required or "default" not in field else f"`{json.dumps(field['default'])}`"
        values = _cell(_values(field))
        lines.append(
            f"| `{key}` | {values} | {_cell(_short(default))} | {_cell(_line(field.get('description', '')))} |"
        )
    return lines


def _values(field: Schema) -> str:
    """The allowed values, in words."""
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        return "section"
    choices = field.get("anyOf") or field.get("oneOf")
    if choices:
        if all("$ref" in choice for choice in choices):
            return "section by `type`"
        return " or ".join(dict.fromkeys(_values(choice) for choice in choices))
    if field.get("type") == "array":
        items = field.get("items", {})
        return f"list of {_values(items)}s" if "$ref" in items else f"list of {_values(items) or 'values'}"
    words = {"string": "text", "object": "mapping", "null": "null", "boolean": "true, false"}.get(
        field.get("type", ""), field.get("type", "any")
    )
    if field.get("type") == "string" and field.get("pattern") == IMPORT_PATH:
        return "`module:name`"
    bounds = [
        f"{sign} {field[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in field
    ]
    return f"{words} {', '.join(bounds)}".strip()


def _sections(field: Schema) -> list[str]:
    """Names of the sections allowed at this key, in its items or among its alternatives."""
    if "$ref" in field:
        return [field["$ref"].rpartition("/")[2]]
    inner = [*field.get("anyOf", []), *field.get("oneOf", [])]
    inner += [field["items"]] if isinstance(field.get("items"), dict) else []
    return [name for section in inner for name in _sections(section)]


def _is_list(field: Schema) -> bool:
    return any(choice.get("type") == "array" for choice in (field, *field.get("anyOf", [])))


def _short(text: str) -> str:
    return text if len(text) <= 60 else "a section, see there"


def _line(text: str) -> str:
    """A docstring as Markdown on one line."""
    return re.sub(r"\s+", " ", text.replace("``", "`")).strip()


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    print(markdown(), end="")
