"""How commands print: tables for people, JSON for programs, and nothing that moves the cursor."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, tzinfo
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pgaudit_wf.exact_json import UNSAFE, dumps, key_parts
from pgaudit_wf.trail.reads import Attachment, TrailEntry

_PIPE_WIDTH = 200
# Below it, a column for each thing would be all line breaks.
_WIDE = 150
# An event may have a hundred thousand of them, which --diff and --json show.
_MOST_CHANGES = 50
_GOOD = {"created", "enrolled", "joined", "enabled", "listed", "reactivated", "reinstated"}
_BAD = {
    "deleted", "revoked", "removed", "disabled", "canceled", "deactivated", "unlisted",
    "truncated", "expired",
}  # fmt: skip


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(stderr: bool = False) -> Console:
    """Return a console for the present standard output (or error)."""
    stream = sys.stderr if stderr else sys.stdout
    # Whoever reads a pipe can cut lines by himself, but cannot put together broken ones.
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return _Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def printable(text: str) -> str:
    """Return a text whose control characters are written out, as Python would escape them."""

    def escape(match: re.Match[str]) -> str:
        char = match[0]
        named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
        code = ord(char)
        wide = f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
        return named.get(char) or (f"\\x{code:02x}" if code <= 0xFF else wide)

    return UNSAFE.sub(escape, text)


def print_json(value: object) -> None:
    """Print a value as JSON; a sequence as an array with an item a line."""
    if isinstance(value, list | tuple) and value:
        print("[\n  " + ",\n  ".join(map(dumps, value)) + "\n]")
    else:
        print(dumps(value))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], title: str | None = None
) -> None:
    """Print a table; texts may come from data, and are made safe."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    console().print(table)


def moment(at: datetime | None, zone: tzinfo | None, with_date: bool = True) -> str:
    """Return a time to the second, in a time zone (None: the local one)."""
    if at is None:
        return ""
    return at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S" if with_date else "%H:%M:%S")


def who(entry: TrailEntry) -> Text:
    """Return the actor; where nobody said who acts, the database session that did."""
    if entry.actor_id or entry.actor_name:
        return Text(printable(entry.actor_name or entry.actor_id or ""))
    program = f" in {entry.application_name}" if entry.application_name else ""
    return Text(printable(f"{entry.db_user}{program}"), style="magenta italic")


def what(entry: TrailEntry) -> Text:
    """Return the action, colored by whether it adds, takes away or fails."""
    verb = entry.action.rpartition(".")[2]
    style = "green" if verb in _GOOD else "red" if verb in _BAD else "cyan"
    text = Text(printable(entry.action), style=style)
    if entry.outcome != "succeeded":
        text.append(f" {entry.outcome}", style="bold red")
    return text


def resource(entry: TrailEntry) -> Text:
    """Return the resource's kind, and its name or else its id."""
    text = Text(printable(entry.resource_type or ""), style="dim")
    key = key_parts(entry.resource_id)
    name = entry.resource_name or (", ".join(key) if key else entry.resource_id)
    if name:
        text.append(" " if text else "", style="not dim")
        text.append(printable(shorten(name, 40)), style="not dim")
    return text


def origin(entry: TrailEntry) -> Text:
    """Return where it came from: address, country, kind of sign-in, and whether that is proved."""
    parts = [entry.ip, entry.country, entry.auth_method, "attested" if entry.attested else None]
    return Text(printable(" ".join(part for part in parts if part)), style="dim")


def shorten(text: str, length: int) -> str:
    """Return a text cut to a length."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _short(value: object) -> str:
    if value is None:
        return "empty"
    text = value if isinstance(value, str) else dumps(value)
    # A time is read at a glance without its fractions.
    text = re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?(\+00:00)?$", r"\1 \2", text)
    if re.fullmatch("[0-9a-f]{64}", text):
        return shorten(text, 9)
    return shorten(text, 36)


def _field(path: str) -> str:
    return path[1:].replace("~1", "/").replace("~0", "~")


def changes(entry: TrailEntry) -> Text:
    """Return what changed, in short: the fields of an update, else what the event says itself."""
    found = []
    for operation in entry.diff or []:
        if not operation["path"]:
            continue
        before = _short(operation["old"]) if "old" in operation else ""
        after = _short(operation["value"]) if "value" in operation else ""
        change = after if before == after else " → ".join((before or "empty", after or "empty"))
        found.append((_field(operation["path"]), change))
    found += [
        (name, _short(value))
        for name, value in entry.metadata.items()
        if name not in ("label", "reason")
    ]
    text = Text()
    for name, change in found[:_MOST_CHANGES]:
        text.append(", " if text else "")
        text.append(f"{printable(shorten(name, 60))} ", style="dim")
        text.append(printable(change))
    if len(found) > _MOST_CHANGES:
        text.append(f" and {len(found) - _MOST_CHANGES:,} more", style="dim")
    if reason := entry.metadata.get("reason"):
        told = reason if isinstance(reason, str) else dumps(reason)
        text.append(f"{' ' if text else ''}({printable(shorten(told, 60))})", style="dim")
    return text


def change_lines(entry: TrailEntry) -> Iterable[Text]:
    """Return every changed value in full, a line each: + added, - removed, ~ replaced."""
    for operation in entry.diff or []:
        values = _members(operation)
        for sign, style, path, value in values:
            line = Text(f"      {sign} ", style=style)
            line.append(printable(f"{path}: " if path else ""), style="dim")
            line.append(printable(value))
            yield line


def _members(operation: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    path, name = operation["path"], _field(operation["path"])
    if path and "old" in operation and "value" in operation:
        change = f"{dumps(operation['old'])} → {dumps(operation['value'])}"
        return [("~", "yellow", name, change)]
    found = []
    for sign, style, key in (("-", "red", "old"), ("+", "green", "value")):
        if key not in operation:
            continue
        value = operation[key]
        if not path and isinstance(value, dict):
            found += [(sign, style, column, dumps(item)) for column, item in value.items()]
        else:
            found.append((sign, style, name, dumps(value)))
    return found


def print_trail(
    entries: Sequence[TrailEntry],
    zone: tzinfo | None,
    *,
    diff: bool = False,
    with_date: bool = True,
) -> None:
    """Print entries of the trail as a table, or one by one with all that changed."""
    if diff:
        for entry in entries:
            print_line(entry, zone, diff=True)
        return
    out = console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("When", no_wrap=True, style="dim")
    table.add_column("Who", overflow="fold", min_width=_needed(map(who, entries), 22))
    if out.width >= _WIDE:
        table.add_column("What", no_wrap=True)
        table.add_column("Resource", overflow="fold", min_width=_needed(map(resource, entries), 30))
        table.add_column("What changed", overflow="fold", min_width=12)
        table.add_column("From", overflow="fold", min_width=10)
    else:
        table.add_column("What", overflow="fold")
    for entry in entries:
        when = moment(entry.occurred_at, zone, with_date)
        if out.width >= _WIDE:
            table.add_row(
                when, who(entry), what(entry), resource(entry), changes(entry), origin(entry)
            )
        else:
            table.add_row(
                when.replace(" ", "\n"),
                _lines(who(entry), origin(entry)),
                _lines(Text("  ").join((what(entry), resource(entry))), changes(entry)),
            )
    out.print(table)


def _needed(texts: Iterable[Text], most: int) -> int:
    return min(max((text.cell_len for text in texts), default=0), most)


def _lines(first: Text, second: Text) -> Text:
    return Text("\n").join((first, second)) if second else first


def print_line(entry: TrailEntry, zone: tzinfo | None, *, diff: bool = False) -> None:
    """Print an entry on a line of its own, as it comes."""
    out = console()
    line = Text(moment(entry.occurred_at, zone), style="dim")
    for text, width in ((who(entry), 20), (what(entry), 28), (resource(entry), 30)):
        line.append("  ")
        line.append_text(text)
        line.append(" " * (width - text.cell_len))
    for text in (() if diff else (changes(entry),)) + (origin(entry),):
        if text:
            line.append("  ")
            line.append_text(text)
    out.print(line, soft_wrap=True)
    if diff:
        for change in change_lines(entry):
            out.print(change, soft_wrap=True)


def progress_bar(hidden: bool) -> Progress:
    """Return bars on standard error, to be entered; nothing shows there but at a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
        disable=hidden or not sys.stderr.isatty(),
    )


def print_attachments(attachments: Sequence[Attachment], events: dict[str, int] | None) -> None:
    """Print audited tables and their settings."""
    print_table(
        ["Table", "Resource type", "Key", "Org", "Label", "Ignored", "Redacted", "Rules",
         *(["Events"] if events is not None else []), "Unrecorded"],
        [
            [
                a.table, a.resource_type, ", ".join(a.id_columns), a.org_column or "-",
                a.label_column or "-", ", ".join(a.ignore) or "-", ", ".join(a.redact) or "-",
                str(a.rules),
                *([f"{events.get(a.resource_type, 0):,}"] if events is not None else []),
                Text(str(a.failures), style="bold red") if a.failures
                else "0" if a.on_failure == "warn" else "-",
            ]
            for a in attachments
        ],
    )  # fmt: skip
