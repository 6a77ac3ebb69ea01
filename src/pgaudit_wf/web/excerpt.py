"""What fits a page: the beginning of long texts, and a part of long lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any

from pgaudit_wf.trail.digest import describe_digest
from pgaudit_wf.trail.path import describe_path
from pgaudit_wf.web.rendering import pretty
from pgaudit_wf.workflow.model import Connected, FieldChange, NodeChange, VersionDiff

_LINES = 200
# Characters; a page has up to five bytes for each, as in `&#34;`.
_ROOM = 100_000
_TEXT = 1_000
_NESTED = 50


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Changes `first` to `last`, counted from 1, of `total`; `is_cut` says if texts are cut."""

    diff: VersionDiff
    first: int
    last: int
    total: int
    is_cut: bool


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


class _Room:
    """How many characters may still be shown."""

    def __init__(self, characters: int) -> None:
        self.left = characters
        self.is_cut = False

    def text(self, text: str) -> str:
        shown = text if len(text) <= _TEXT else f"{text[:_TEXT]}…"
        self.is_cut |= shown is not text
        self.left -= len(shown)
        return shown

    def change(self, change: Any) -> Any:  # noqa: ANN401 - any of those that a VersionDiff has
        if isinstance(change, FieldChange):
            return self.values(change)
        if isinstance(change, Connected):
            source, target = self.text(change.source), self.text(change.target)
            return replace(change, source=source, target=target)
        shown = replace(
            change, label=self.text(change.label), node_type=self.text(change.node_type)
        )  # fmt: skip
        if not isinstance(shown, NodeChange):
            return shown
        lists = {"fields": shown.fields, "configuration": shown.configuration}
        cut: dict[str, Any] = {
            name: tuple(map(self.values, self.some(items))) for name, items in lists.items()
        }
        self.is_cut |= any(len(cut[name]) < len(items) for name, items in lists.items())
        return replace(shown, **cut)

    def some(self, changes: Sequence[Any]) -> Iterator[Any]:
        for change in changes[:_NESTED]:
            if self.left < 0:
                break
            yield change

    def values(self, change: Any) -> Any:  # noqa: ANN401 - any dataclass of texts
        texts = {field.name: self.text(getattr(change, field.name)) for field in fields(change)}
        return replace(change, **texts)


def excerpt(diff: VersionDiff, skip: int = 0, lines: int = _LINES, room: int = _ROOM) -> Excerpt:
    """Return a part of the changes: at least one, then as many as have room.

    Args:
        diff: All of them.
        skip: How many precede the part; beyond the last, it is the beginning.
        lines: How many changes at most.
        room: How many characters, more or less.
    """
    names = [field.name for field in fields(diff) if field.name != "has_changes"]
    flat = [(name, change) for name in names for change in getattr(diff, name)]
    skip = skip if skip < len(flat) else 0
    left = _Room(room)
    shown: dict[str, Any] = dict.fromkeys(names, ())
    last = skip
    for name, change in flat[skip : skip + lines]:
        if last > skip and left.left <= 0:
            break
        last += 1
        shown[name] += (left.change(change),)
    return Excerpt(replace(diff, **shown), min(skip + 1, last), last, len(flat), left.is_cut)


def changed_fields(diff: Sequence[Mapping[str, Any]] | None, skip: int = 0) -> FieldPage:
    """Return a JSON Patch as rows of field, before and after; a whole row column by column.

    Args:
        diff: The patch.
        skip: How many rows precede those to return; beyond the last, it is the beginning.
    """
    total = sum(1 for _ in _fields(diff))
    skip = skip if skip < total else 0
    left = _Room(2 * _ROOM)
    rows: list[ChangedField] = []
    for operation, name, whole_row in islice(_fields(diff), skip, skip + _LINES):
        if rows and left.left <= 0:
            break
        row = _changed_field(operation, name, whole_row)
        left.left -= len(row.name) + len(row.before or "") + len(row.after or "")
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
