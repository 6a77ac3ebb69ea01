"""How a workflow's content hash is computed: the reference for `pgaudit_wf.hash_definition`.

Nothing here talks to a database, so it also serves to prove a hash that the database recorded.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Any, cast

import rfc8785

from pgaudit_wf.errors import DefinitionError

DEFAULT_ALIASES: Mapping[str, str | None] = MappingProxyType(
    {"args": "functionArgs", "abiFunctionKey": None}
)
"""The rows that `pgaudit_wf.config_alias` comes with: alias, canonical name or None (ignored)."""

MAX_DEPTH = 200
"""How deep arrays and objects may be nested."""

_NODE_KEYS = ("id", "type", "data")
_EDGE_KEYS = ("id", "source", "target", "sourceHandle", "targetHandle", "data")
_MAX_SAFE_INTEGER = 2**53 - 1


def _doubles(value: object, depth: int) -> object:
    """Copy a value with every number that a double may not hold exactly turned into one."""
    if isinstance(value, Mapping | list | tuple) and depth > MAX_DEPTH:
        raise DefinitionError(
            f"JSON nested more than {MAX_DEPTH} levels deep has no canonical form here; "
            "keep deeply nested data as a JSON string, or flatten it"
        )
    if isinstance(value, Mapping):
        return {key: _doubles(member, depth + 1) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_doubles(element, depth + 1) for element in value]
    if isinstance(value, Decimal) or (isinstance(value, int) and abs(value) > _MAX_SAFE_INTEGER):
        try:
            double = float(value)
        except OverflowError:
            double = math.inf
        if math.isfinite(double):
            return double
        raise DefinitionError(
            "number out of range for canonical JSON: RFC 8785 numbers are IEEE 754 doubles; "
            "keep larger ones as strings"
        )
    return value


def canonical_json(value: object) -> str:
    """Write a JSON value as RFC 8785 does; its UTF-8 encoding is what gets hashed.

    Args:
        value: What `json.loads` gives, or a read of this package: with `Decimal` for fractions.
            Numbers without an exact double are rounded to the nearest one.

    Raises:
        DefinitionError: The value is not JSON, is nested more than `MAX_DEPTH` levels deep, or
            contains a number out of a double's range.
    """
    try:
        return rfc8785.dumps(cast("Any", _doubles(value, 1))).decode()
    except rfc8785.CanonicalizationError as error:
        raise DefinitionError(f"value has no canonical JSON: {error}") from error


def _keep(value: object, keys: Sequence[str]) -> object:
    if not isinstance(value, Mapping):
        return value
    return {key: value[key] for key in keys if key in value}


def _normalize_config(
    config: Mapping[str, object], aliases: Mapping[str, str | None]
) -> dict[str, object]:
    kept: dict[str, object] = {}
    for alias in sorted(aliases):
        name = aliases[alias]
        if name is not None and alias in config:
            kept.setdefault(name, config[alias])
    kept.update({key: value for key, value in config.items() if key not in aliases})
    return kept


def _normalize_node(node: object, aliases: Mapping[str, str | None]) -> object:
    kept = _keep(node, _NODE_KEYS)
    if isinstance(kept, dict) and isinstance(kept.get("data"), Mapping):
        config = kept["data"].get("config")
        if isinstance(config, Mapping):
            kept["data"] = {**kept["data"], "config": _normalize_config(config, aliases)}
    return kept


def _array(value: object, column: str) -> Sequence[object]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise DefinitionError(
            f"{column} is not an array; store the {column} of a workflow as a JSON array"
        )
    return value


def normalize_definition(
    nodes: object, edges: object, aliases: Mapping[str, str | None] = DEFAULT_ALIASES
) -> dict[str, list[object]]:
    """Reduce a workflow to what makes a version, as the SQL function of that name does.

    Args:
        nodes: The nodes as saved, in their order; None for none.
        edges: The edges as saved, in their order; None for none.
        aliases: The database's `pgaudit_wf.config_alias`, if it differs from what it comes with.

    Raises:
        DefinitionError: `nodes` or `edges` is not an array.
    """
    return {
        "edges": [_keep(edge, _EDGE_KEYS) for edge in _array(edges, "edges")],
        "nodes": [_normalize_node(node, aliases) for node in _array(nodes, "nodes")],
    }


def content_hash(
    nodes: object, edges: object, aliases: Mapping[str, str | None] = DEFAULT_ALIASES
) -> str:
    """Hash a workflow: the lower-case hex SHA-256 that its versions and runs carry.

    Args:
        nodes: The nodes as saved, in their order; None for none.
        edges: The edges as saved, in their order; None for none.
        aliases: The database's `pgaudit_wf.config_alias`, if it differs from what it comes with.

    Raises:
        DefinitionError: `nodes` or `edges` is not an array, or has no canonical form.
    """
    definition = canonical_json(normalize_definition(nodes, edges, aliases))
    return hashlib.sha256(definition.encode()).hexdigest()
