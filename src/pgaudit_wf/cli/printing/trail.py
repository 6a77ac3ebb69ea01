"""Events as lines of a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from pgaudit_wf.cli.printing.output import console, moment, printable, short, shorten
from pgaudit_wf.exact_json import dumps, key_parts

if TYPE_CHECKING:
    from pgaudit_wf.trail.reads import TrailEntry
    from pgaudit_wf.trail.undo import Undone

# Below it, a column for each thing would be all line breaks.
_WIDE = 150
# An event may have a hundred thousand changes; --diff and --json show all of them.
_MOST_CHANGES = 50
_GOOD = {"created", "enrolled", "joined", "enabled", "listed", "reactivated", "reinstated"}
_NONE: Mapping[int, Undone] = {}
_BAD = {
    "deleted", "revoked", "removed", "disabled", "canceled", "deactivated", "unlisted",
    "truncated", "expired",
}  # fmt: skip


def who(entry: TrailEntry) -> Text:
    """Return the actor; if none is given, the database session."""
    if entry.actor_id or entry.actor_name:
        return Text(printable(entry.acted_as()))
    program = f" in {entry.application_name}" if entry.application_name else ""
    return Text(printable(f"{entry.db_user}{program}"), style="magenta italic")


def numbers(entry: TrailEntry) -> str:
    """Return the event's id, which `prove` takes, and its transaction."""
    return f"{entry.id}, {entry.tx_id}"


def what(entry: TrailEntry) -> Text:
    """Return the action, colored by whether it adds, removes or fails."""
    verb = entry.action.rpartition(".")[2]
    style = "green" if verb in _GOOD else "red" if verb in _BAD else "cyan"
    text = Text(printable(entry.action), style=style)
    if entry.outcome != "succeeded":
        text.append(f" {entry.outcome}", style="bold red")
    return text


def resource(entry: TrailEntry) -> Text:
    """Return the resource's type, and its name or id."""
    text = Text(printable(entry.resource_type or ""), style="dim")
    key = key_parts(entry.resource_id)
    name = entry.resource_name or (", ".join(key) if key else entry.resource_id)
    if name:
        text.append(" " if text else "", style="not dim")
        text.append(printable(shorten(name, 40)), style="not dim")
    return text


def origin(entry: TrailEntry) -> Text:
    """Return the origin: address, country, authentication, and whether it is attested."""
    parts = [entry.ip, entry.country, entry.auth_method, "attested" if entry.attested else None]
    return Text(printable(" ".join(part for part in parts if part)), style="dim")


def _side(operation: dict[str, Any], key: str, write: Callable[[object], str] = dumps) -> str:
    from pgaudit_wf.trail.digest import describe_digest

    return describe_digest(operation, key, operation[key]) or write(operation[key])


_COMPARED = ("configuration", "state", "snapshot", "digest")


def changes(entry: TrailEntry) -> Text:
    """Return the changes in short: the fields of an update, else the event's metadata."""
    from pgaudit_wf.trail.path import describe_path

    found = []
    for operation in entry.diff or []:
        if not operation["path"]:
            continue
        before = _side(operation, "old", short) if "old" in operation else ""
        after = _side(operation, "value", short) if "value" in operation else ""
        change = after if before == after else " → ".join((before or "empty", after or "empty"))
        found.append((describe_path(operation["path"]), change))
    found += [
        (name, short(value))
        for name, value in entry.metadata.items()
        if name not in ("label", "reason")
        # What the next seal compares with is nothing to read.
        and not (entry.action.startswith("audit.") and name in _COMPARED)
    ]
    text = Text()
    for name, change in found[:_MOST_CHANGES]:
        text.append(", " if text else "")
        text.append(f"{printable(shorten(name, 60))} ", style="dim")
        text.append(printable(change))
    if len(found) > _MOST_CHANGES:
        text.append(f" and {len(found) - _MOST_CHANGES:,} more", style="dim")
    if reason := entry.metadata.get("reason"):
        given = reason if isinstance(reason, str) else dumps(reason)
        text.append(f"{' ' if text else ''}({printable(shorten(given, 60))})", style="dim")
    return text


def undoing(entry: TrailEntry, undone: Mapping[int, Undone], zone: tzinfo | None) -> Text:
    """Return by which event this one was undone, if it was."""
    if (found := undone.get(entry.id)) is None:
        return Text()
    when = moment(found.occurred_at, zone)
    return Text(
        printable(f"undone by event {found.id} ({when}, {shorten(found.actor, 40)})"),
        style="yellow",
    )


def change_lines(entry: TrailEntry) -> Iterable[Text]:
    """Return every changed value in full, one per line: + added, - removed, ~ replaced."""
    for operation in entry.diff or []:
        values = _members(operation)
        for sign, style, path, value in values:
            line = Text(f"      {sign} ", style=style)
            line.append(printable(f"{path}: " if path else ""), style="dim")
            line.append(printable(value))
            yield line


def _members(operation: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    from pgaudit_wf.trail.digest import describe_digest
    from pgaudit_wf.trail.path import describe_path

    path, name = operation["path"], describe_path(operation["path"])
    if path and "old" in operation and "value" in operation:
        change = f"{_side(operation, 'old')} → {_side(operation, 'value')}"
        return [("~", "yellow", name, change)]
    found = []
    for sign, style, key in (("-", "red", "old"), ("+", "green", "value")):
        if key not in operation:
            continue
        value = operation[key]
        if not path and isinstance(value, dict):
            found += [
                (sign, style, column, describe_digest(operation, column, item) or dumps(item))
                for column, item in value.items()
            ]
        else:
            found.append((sign, style, name, _side(operation, key)))
    return found


def print_trail(
    entries: Sequence[TrailEntry],
    zone: tzinfo | None,
    *,
    diff: bool = False,
    with_date: bool = True,
    undone: Mapping[int, Undone] = _NONE,
) -> None:
    """Print entries of the trail as a table, or one by one with all changes."""
    if diff:
        for entry in entries:
            print_line(entry, zone, diff=True, undone=undone)
        return
    out = console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("When", no_wrap=True, style="dim")
    table.add_column("Who", overflow="fold", min_width=_needed(map(who, entries), 22))
    if out.width >= _WIDE:
        table.add_column("Event, tx", no_wrap=True, style="dim")
        table.add_column("What", no_wrap=True)
        table.add_column("Resource", overflow="fold", min_width=_needed(map(resource, entries), 30))
        table.add_column("What changed", overflow="fold", min_width=12)
        table.add_column("From", overflow="fold", min_width=10)
    else:
        table.add_column("What", overflow="fold")
    for entry in entries:
        when = moment(entry.occurred_at, zone, with_date)
        changed = _lines(changes(entry), undoing(entry, undone, zone))
        if out.width >= _WIDE:
            table.add_row(
                when,
                who(entry),
                numbers(entry),
                what(entry),
                resource(entry),
                changed,
                origin(entry),
            )
        else:
            table.add_row(
                "\n".join((when.replace(" ", "\n"), numbers(entry))),
                _lines(who(entry), origin(entry)),
                _lines(Text("  ").join((what(entry), resource(entry))), changed),
            )
    out.print(table)


def _needed(texts: Iterable[Text], most: int) -> int:
    return min(max((text.cell_len for text in texts), default=0), most)


def _lines(first: Text, second: Text) -> Text:
    return Text("\n").join(text for text in (first, second) if text)


def print_line(
    entry: TrailEntry,
    zone: tzinfo | None,
    *,
    diff: bool = False,
    undone: Mapping[int, Undone] = _NONE,
) -> None:
    """Print an entry on a line of its own."""
    out = console()
    line = Text(moment(entry.occurred_at, zone), style="dim")
    for text, width in ((who(entry), 20), (what(entry), 28), (resource(entry), 30)):
        line.append("  ")
        line.append_text(text)
        line.append(" " * (width - text.cell_len))
    rest = (origin(entry), Text(numbers(entry), "dim"), undoing(entry, undone, zone))
    for text in (() if diff else (changes(entry),)) + rest:
        if text:
            line.append("  ")
            line.append_text(text)
    out.print(line, soft_wrap=True)
    if diff:
        for change in change_lines(entry):
            out.print(change, soft_wrap=True)
