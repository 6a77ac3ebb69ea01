"""What an event changed, as rows of field, before and after for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pgaudit_wf.exact_json import dumps
from pgaudit_wf.trail.digest import describe_digest
from pgaudit_wf.trail.path import describe_path

_LONGEST = 10_000
_ROWS = 200
# Characters.
_ROOM = 200_000


@dataclass(frozen=True, slots=True)
class ChangedField:
    """A row of the table with an event's diff."""

    name: str
    before: str | None
    after: str | None
    tone: str


@dataclass(frozen=True, slots=True)
class FieldPage:
    """Rows `first` to `last`, counted from 1, of `total`."""

    rows: tuple[ChangedField, ...]
    first: int
    last: int
    total: int


def pretty(value: object) -> str:
    """Return a value of the log in a readable form, a long one up to a length for people."""
    if value is None:
        return "empty"
    text = value if isinstance(value, str) else dumps(value, 2)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}… ({len(text):,} characters in all; the export has them)"


def changed_fields(diff: Sequence[Mapping[str, Any]] | None, skip: int = 0) -> FieldPage:
    """Return a JSON Patch as rows of field, before and after; a whole row column by column.

    Args:
        diff: The patch.
        skip: How many rows precede those to return; beyond the last, it is the beginning.
    """
    total = sum(1 for _ in _fields(diff))
    skip = skip if skip < total else 0
    left = _ROOM
    rows: list[ChangedField] = []
    for operation, name, whole_row in islice(_fields(diff), skip, skip + _ROWS):
        if rows and left <= 0:
            break
        row = _changed_field(operation, name, whole_row)
        left -= len(row.name) + len(row.before or "") + len(row.after or "")
        rows.append(row)
    return FieldPage(tuple(rows), min(skip + 1, total), skip + len(rows), total)


def _fields(
    diff: Sequence[Mapping[str, Any]] | None,
) -> Iterator[tuple[Mapping[str, Any], str, bool]]:
    for operation in diff or ():
        whole = _whole_row(operation)
        if whole is None:
            yield operation, describe_path(operation.get("path", "")) or "row", False
        else:
            yield from ((operation, name, True) for name in whole if whole[name] is not None)


def _tone(operation: Mapping[str, Any]) -> str:
    return {"add": "add", "remove": "remove"}.get(str(operation.get("op")), "change")


def _whole_row(operation: Mapping[str, Any]) -> Mapping[str, Any] | None:
    tone = _tone(operation)
    whole = operation.get("value" if tone == "add" else "old")
    is_row = operation.get("path", "") == "" and tone != "change" and isinstance(whole, Mapping)
    return whole if is_row else None


def _changed_field(operation: Mapping[str, Any], name: str, whole_row: bool) -> ChangedField:
    tone = _tone(operation)
    row = _whole_row(operation) if whole_row else None

    def value(member: str, unchanged: str) -> str | None:
        if tone == unchanged:
            return None
        if row is not None:
            return describe_digest(operation, name, row[name]) or pretty(row[name])
        found = operation.get(member)
        return describe_digest(operation, member, found) or pretty(found)

    return ChangedField(pretty(name), value("old", "add"), value("value", "remove"), tone)
