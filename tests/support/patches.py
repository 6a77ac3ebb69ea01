"""JSON Patches as the log records them."""

from __future__ import annotations

from typing import Any


def backwards(diff: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The patch that undoes a recorded one, by its "old"."""
    undo: list[dict[str, Any]] = []
    for op in reversed(diff):
        if op["op"] == "add":
            undo.append({"op": "remove", "path": op["path"]})
        else:
            kind = "add" if op["op"] == "remove" else "replace"
            undo.append({"op": kind, "path": op["path"], "value": op["old"]})
    return undo
