"""Output of versions of workflows: timelines, differences, definitions."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import tzinfo
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.text import Text

from pgaudit_wf.cli.printing.output import console, moment, printable
from pgaudit_wf.exact_json import dumps

if TYPE_CHECKING:
    from pgaudit_wf.workflow.model import (
        Connected,
        NodeRef,
        Problem,
        Snapshot,
        Version,
        VersionDiff,
    )

_ADDED, _REMOVED, _CHANGED = ("+", "green"), ("-", "red"), ("~", "yellow")
_SOURCES = {"create": "green", "update": "cyan", "listing": "cyan", "restore": "yellow",
            "backfill": "magenta"}  # fmt: skip


def put(line: str | Text, indent: int = 0, style: str = "") -> None:
    """Print a line; on a terminal, long lines wrap with a hanging indent."""
    text = line if isinstance(line, Text) else Text(line, style=style)
    out = console()
    if sys.stdout.isatty():
        text.overflow = "fold"
        out.print(Padding(text, (0, 0, 0, indent)))
    else:
        out.print(Text(" " * indent) + text, soft_wrap=True)


def heading(text: str) -> None:
    """Print a heading."""
    put(text, style="bold")


def saved_by(version: Version) -> Text:
    """Return who saved a version, and with which credential."""
    name = version.actor_name or version.actor_id
    text = Text(printable(name)) if name else Text("unknown actor", style="dim italic")
    credential = " ".join(part for part in (version.auth_method, version.api_key_id) if part)
    if credential:
        text.append(f"  {printable(credential)}", style="dim")
    return text


def print_versions(versions: Iterable[Version], zone: tzinfo | None) -> None:
    """Print versions, three lines each: who and when, what changed, and the hash."""
    for version in versions:
        line = Text.assemble((f"{version.version:>4}  ", "bold"))
        line.append(moment(version.created_at, zone), style="dim")
        line.append("  ")
        line.append_text(saved_by(version))
        line.append(f"  {version.source}", style=_SOURCES[version.source])
        if version.is_current:
            line.append("  current", style="bold green")
        if version.is_published:
            line.append("  published", style="bold green")
        put(line)
        put(printable(version.summary), 6)
        put(version.content_hash, 6, "dim")


def print_diff(diff: VersionDiff) -> None:
    """Print what changed, with every value in full."""
    if not diff.has_changes:
        put("No changes.")
        return
    if diff.settings:
        heading("Settings")
    for setting in diff.settings:
        _put_change(setting.field, setting.before, setting.after, 2)
    if diff.nodes_added or diff.nodes_removed or diff.nodes_changed:
        heading("Nodes")
    for node in diff.nodes_added:
        put(_signed(_ADDED, _node(node)), 2)
    for node in diff.nodes_removed:
        put(_signed(_REMOVED, _node(node)), 2)
    for node in diff.nodes_changed:
        put(_signed(_CHANGED, _node(node)), 2)
        for field in node.fields:
            _put_change(field.field, field.before, field.after, 6)
        if node.configuration:
            put("configuration", 6, "dim")
        for change in node.configuration:
            _put_change(change.key, change.before, change.after, 8)
    if diff.connections_added or diff.connections_removed:
        heading("Connections")
    for connection in diff.connections_added:
        put(_signed(_ADDED, _connection(connection)), 2)
    for connection in diff.connections_removed:
        put(_signed(_REMOVED, _connection(connection)), 2)
    if not (diff.settings or diff.nodes_added or diff.nodes_removed or diff.nodes_changed
            or diff.connections_added or diff.connections_removed):  # fmt: skip
        put("The order of nodes or connections changed, or a detail such as a connection's id.")


def print_snapshot(snapshot: Snapshot, contents: VersionDiff) -> None:
    """Print a definition.

    Args:
        snapshot: The version.
        contents: The version compared with nothing, for the names that people know.
    """
    for name in ("description", "visibility", "enabled"):
        value = getattr(snapshot, name)
        if value is not None:
            _put_value(name, value, 2)
    heading("Nodes" if snapshot.nodes else "No nodes")
    for node, ref in zip(snapshot.nodes, contents.nodes_added, strict=False):
        put(_node(ref), 2)
        data = node.get("data") if isinstance(node, dict) else node
        if not isinstance(data, dict):
            if data is not None:
                _put_value("data", data, 6)
            continue
        for key, value in data.items():
            if key == "config" and isinstance(value, dict):
                for name, item in value.items():
                    _put_value(name, item, 6)
            elif key not in ("label", "type"):
                _put_value(key, value, 6)
    heading("Connections" if snapshot.edges else "No connections")
    for connection in contents.connections_added:
        put(_connection(connection), 2)


def print_problems(problems: Sequence[Problem]) -> None:
    """Print the problems of a definition, one per line."""
    for problem in problems:
        line = Text(problem.code, style="red")
        line.append(f"  {printable(problem.message)}", style="default")
        put(line, 2)


def _signed(kind: tuple[str, str], text: Text) -> Text:
    sign, style = kind
    return Text(f"{sign} ", style=style).append_text(text)


def _node(node: NodeRef) -> Text:
    text = Text(printable(node.label), style="default")
    text.append(f" ({printable(node.node_type)})", style="dim")
    if node.id not in (None, node.label):
        text.append(f"  {printable(str(node.id))}", style="dim")
    return text


def _connection(connection: Connected) -> Text:
    text = Text(style="default")
    for name, handle in (
        (connection.source, connection.source_handle),
        (connection.target, connection.target_handle),
    ):
        text.append(" → " if text else "")
        text.append(printable(name))
        if handle:
            text.append(f" ({printable(handle)})", style="dim")
    if (connection.source_id, connection.target_id) != (connection.source, connection.target):
        ids = f"{connection.source_id or '?'} → {connection.target_id or '?'}"
        text.append(f"  {printable(ids)}", style="dim")
    return text


def _put_change(name: str, before: str, after: str, indent: int) -> None:
    line = _signed(_CHANGED, Text(f"{printable(name)}:", style="default"))
    short = Text.assemble(line, " ", _value(before), " → ", _value(after))
    if "\n" not in before + after and short.cell_len + indent <= console().width:
        put(short, indent)
        return
    put(line, indent)
    old, new = before.split("\n"), after.split("\n")
    # Show the unchanged lines of a long text once only.
    for _, i1, i2, j1, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if old[i1:i2] == new[j1:j2]:
            for text in old[i1:i2]:
                put(f"  {printable(text)}", indent + 4)
            continue
        for text in old[i1:i2]:
            put(f"- {printable(text)}", indent + 4, "red")
        for text in new[j1:j2]:
            put(f"+ {printable(text)}", indent + 4, "green")


def _value(value: str) -> Text:
    return Text(printable(value), style="dim italic" if value == "empty" else "default")


def _put_value(name: str, value: Any, indent: int) -> None:  # noqa: ANN401 - any JSON
    text = value if isinstance(value, str) else dumps(value)
    label = Text(f"{printable(name)}:", style="dim")
    if "\n" not in text:
        put(Text.assemble(label, " ", _value(text or "empty")), indent)
        return
    put(label, indent)
    for line in text.split("\n"):
        put(printable(line), indent + 2)


def counted(number: int, noun: str) -> str:
    """Return "1 run", "2 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
