"""A version as the file that the product itself exports, and imports again."""

from __future__ import annotations

from collections.abc import Mapping

from pgaudit_wf.errors import DefinitionError
from pgaudit_wf.exact_json import loads
from pgaudit_wf.trail.statement import Json

__all__ = ["as_file"]

_FLOWISE_DATA = (
    "id", "label", "version", "name", "type", "color", "hideOutput", "hideInput", "baseClasses",
    "tags", "category", "description", "inputParams", "inputAnchors", "outputAnchors", "outputs",
)  # fmt: skip
# Inputs that Flowise leaves out of a file.
_FLOWISE_HIDDEN = ("password", "file", "folder")


def as_file(snapshot: Mapping[str, Json]) -> dict[str, Json]:
    """Return a version in the product's own form, as its snapshot tells which product that is.

    React Flow: name, description, nodes and edges. n8n: what its editor downloads, switched off.
    Flowise: what its canvas exports, without credentials, passwords and files.

    Args:
        snapshot: As `pgaudit_wf.version_snapshot()` returns it.

    Raises:
        DefinitionError: The product's columns do not hold what it exports.
    """
    stored = snapshot.get("stored")
    if stored is None:
        about = {name: snapshot[name] for name in ("name", "description") if snapshot.get(name)}
        nodes, edges = snapshot.get("nodes"), snapshot.get("edges")
        return {**about, "nodes": nodes or [], "edges": edges or []}
    parts = [_parsed(text) for text in stored.values()]
    if len(parts) == 1 and isinstance(parts[0], Mapping):
        return _flowise(parts[0])
    nodes = next((part for part in parts if isinstance(part, list)), None)
    connections = next((part for part in parts if isinstance(part, Mapping)), None)
    if nodes is None or connections is None:
        raise DefinitionError(
            "the version has no graph that its product could export; pgaudit-wf show --json"
            " prints what it has"
        )
    return {
        "name": snapshot.get("name"),
        "nodes": nodes,
        "connections": connections,
        "active": False,
        "settings": {},
    }


def _parsed(text: str | None) -> Json:
    try:
        return None if text is None else loads(text)
    except ValueError:
        return None


def _flowise(flow: Mapping[str, Json]) -> dict[str, Json]:
    nodes, edges = flow.get("nodes"), flow.get("edges")
    return {"nodes": [*map(_flowise_node, nodes or [])], "edges": edges or []}


def _flowise_node(node: Json) -> Json:
    data = node.get("data") if isinstance(node, Mapping) else None
    if not isinstance(data, Mapping):
        return node
    kept = {name: data[name] for name in _FLOWISE_DATA if name in data}
    parameters = data.get("inputParams")
    hidden = {
        parameter.get("name")
        for parameter in (parameters if isinstance(parameters, list) else [])
        if isinstance(parameter, Mapping) and parameter.get("type") in _FLOWISE_HIDDEN
    }
    given = data.get("inputs")
    inputs = given if isinstance(given, Mapping) else {}
    kept["inputs"] = {name: value for name, value in inputs.items() if name not in hidden}
    return {**node, "data": {**kept, "selected": False}, "selected": False}
