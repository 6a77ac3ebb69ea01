"""Presets: which tables of a product are attached, and how, in TOML files that users copy."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

__all__ = ["Preset", "preset_names", "read_preset"]

_TEXT, _LIST, _NUMBER, _TABLE = "a text", "a list of texts", "a whole number", "a table of names"
# What attach() and attach_workflow() take, by the same names.
_TABLE_KEYS = {
    "name": _TEXT, "resource_type": _TEXT, "org_column": _TEXT, "label_column": _TEXT,
    "id_columns": _LIST, "ignore": _LIST, "redact": _LIST, "shallow": _LIST, "not_secret": _LIST,
    "on_failure": _TEXT, "max_value": _NUMBER, "shape": _TEXT, "nodes_column": _TEXT,
    "edges_column": _TEXT, "name_column": _TEXT, "description_column": _TEXT,
    "enabled_column": _TEXT,
}  # fmt: skip
_KEYS: Mapping[str, tuple[Mapping[str, str], tuple[str, ...]]] = {
    "table": (_TABLE_KEYS, ("name",)),
    "rule": (
        {"resource_type": _TEXT, "op": _TEXT, "condition": _TEXT, "action": _TEXT,
         "position": _NUMBER},
        ("resource_type", "op", "action"),
    ),
    "directory": (
        {"view": _TEXT, "source": _TEXT, "columns": _TABLE, "query": _TEXT, "needs": _LIST},
        ("view",),
    ),
    "left_out": ({"table": _TEXT, "reason": _TEXT}, ("table", "reason")),
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """What is attached of a product.

    Attributes:
        text: The file.
        title: What it is for.
        schema: Where the tables are, unless the user says otherwise.
        tables: Settings of each table, by the names of the arguments of `attach_workflow`.
        rules: Rows of `action_rule`.
        directories: Arguments of `use_directory`; `needs` are the tables that a query reads, and
            {schema} in it stands for the schema.
        left_out: Tables that are not attached on purpose, and why.
    """

    text: str
    title: str
    schema: str
    tables: tuple[dict[str, Any], ...]
    rules: tuple[dict[str, Any], ...]
    directories: tuple[dict[str, Any], ...]
    left_out: tuple[dict[str, Any], ...]


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    found = files(__name__).iterdir()
    return sorted(each.name.removesuffix(".toml") for each in found if each.name.endswith(".toml"))


def read_preset(name: str) -> Preset:
    """Read a preset by its name, or by the path of a file.

    Args:
        name: One of `preset_names()`, or a path: that ends in .toml or contains a slash.

    Raises:
        PresetError: There is none, or it is wrong.
    """
    from pgaudit_wf.errors import PresetError

    if name.endswith(".toml") or "/" in name:
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PresetError(f"preset {name} cannot be read: {type(error).__name__}") from error
    elif name in preset_names():
        text = files(__name__).joinpath(f"{name}.toml").read_text("utf-8")
    else:
        raise PresetError(
            f"there is no preset {name}; there are {', '.join(preset_names())}, or pass a file:"
            " ./mine.toml"
        )
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PresetError(f"preset {name} is not valid TOML: {error}") from error
    lists = {kind: tuple(_items(given.pop(kind, []), kind, name)) for kind in _KEYS}
    title, schema = given.pop("title", name), given.pop("schema", "public")
    if given or not isinstance(title, str) or not isinstance(schema, str):
        raise PresetError(
            f"preset {name}: {min(given, default='title and schema')} is no setting or no text;"
            f" there are title, schema, and lists {', '.join(f'[[{kind}]]' for kind in _KEYS)}"
        )
    if not lists["table"]:
        raise PresetError(f"preset {name} has no [[table]]")
    return Preset(
        text, title, schema, lists["table"], lists["rule"], lists["directory"], lists["left_out"]
    )


def _items(value: object, kind: str, preset: str) -> list[dict[str, Any]]:
    from pgaudit_wf.errors import PresetError

    known, needed = _KEYS[kind]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise PresetError(f"preset {preset}: {kind} must be a list: [[{kind}]]")
    for number, item in enumerate(value, 1):
        place = f"preset {preset}, [[{kind}]] {number}"
        for key, found in item.items():
            if key not in known:
                raise PresetError(f"{place}: {key} is not a setting; there are {', '.join(known)}")
            if not _fits(found, known[key]):
                raise PresetError(f"{place}: {key} must be {known[key]}")
        if missing := [key for key in needed if not item.get(key)]:
            raise PresetError(f"{place}: {missing[0]} is missing")
        if kind == "directory" and ("source" in item) == ("query" in item):
            raise PresetError(f"{place}: give either source or query")
    return value


def _fits(value: object, wanted: str) -> bool:
    if wanted == _LIST:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if wanted == _TABLE:
        return isinstance(value, dict)
    if wanted == _NUMBER:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str)
