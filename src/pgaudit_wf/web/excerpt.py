"""What fits a page: the beginning of long texts, and a part of long lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pgaudit_wf.trail.changes import ChangedField, FieldPage, changed_fields
from pgaudit_wf.web.text_diff import Delta, compare
from pgaudit_wf.workflow.model import (
    ConfigurationChange,
    Connected,
    FieldChange,
    NodeChange,
    VersionDiff,
)

_LINES = 200
# Characters; a page has up to five bytes for each, as in `&#34;`.
_ROOM = 100_000
_TEXT = 1_000
_NESTED = 50
# Of a page; the others show where they begin and end to differ.
_COMPARED = 20


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Changes `first` to `last`, counted from 1, of `total`; `is_cut` says if texts are cut.

    Changed values in it are of type `Delta`.
    """

    diff: VersionDiff
    first: int
    last: int
    total: int
    is_cut: bool


@dataclass(frozen=True, slots=True)
class ComparedField(ChangedField):
    """A row of the table with an event's diff; `delta` in place of two long texts."""

    delta: Delta | None = None


class _Room:
    """How many characters may still be shown."""

    def __init__(self, characters: int, compared: int) -> None:
        self.left = characters
        self.compared = compared
        self.is_cut = False

    def text(self, text: str) -> str:
        shown = text if len(text) <= _TEXT else f"{text[:_TEXT]}…"
        self.is_cut |= shown is not text
        self.left -= len(shown)
        return shown

    def change(self, change: Any) -> Any:  # noqa: ANN401 - any of those that a VersionDiff has
        if isinstance(change, FieldChange):
            return self.delta(change)
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
            name: tuple(map(self.delta, self.some(items))) for name, items in lists.items()
        }
        self.is_cut |= any(len(cut[name]) < len(items) for name, items in lists.items())
        return replace(shown, **cut)

    def some(self, changes: Sequence[Any]) -> Iterator[Any]:
        for change in changes[:_NESTED]:
            if self.left < 0:
                break
            yield change

    def delta(self, change: FieldChange | ConfigurationChange) -> Delta:
        name = change.field if isinstance(change, FieldChange) else change.key
        if isinstance(change, FieldChange) and name == "name":
            return Delta(name, self.text(change.before), self.text(change.after))
        found = compare(self.text(name), change.before, change.after, thorough=self.compared > 0)
        self.compared -= bool(found.parts)
        self.is_cut |= found.is_cut
        self.left -= found.size
        return found


def excerpt(
    diff: VersionDiff,
    skip: int = 0,
    lines: int = _LINES,
    room: int = _ROOM,
    compared: int = _COMPARED,
) -> Excerpt:
    """Return a part of the changes: at least one, then as many as have room.

    Args:
        diff: All of them.
        skip: How many precede the part; beyond the last, it is the beginning.
        lines: How many changes at most.
        room: How many characters, more or less.
        compared: How many long values are compared piece by piece.
    """
    names = [field.name for field in fields(diff) if field.name != "has_changes"]
    flat = [(name, change) for name in names for change in getattr(diff, name)]
    skip = skip if skip < len(flat) else 0
    left = _Room(room, compared)
    shown: dict[str, Any] = dict.fromkeys(names, ())
    last = skip
    for name, change in flat[skip : skip + lines]:
        if last > skip and left.left <= 0:
            break
        last += 1
        shown[name] += (left.change(change),)
    return Excerpt(replace(diff, **shown), min(skip + 1, last), last, len(flat), left.is_cut)


def compared_fields(diff: Sequence[Mapping[str, Any]] | None, skip: int = 0) -> FieldPage:
    """Return a JSON Patch as `changed_fields` does, long texts compared.

    Args:
        diff: The patch.
        skip: How many rows precede those to return; beyond the last, it is the beginning.
    """
    page = changed_fields(diff, skip)
    rows = []
    left = _COMPARED
    for row in page.rows:
        delta = None
        if row.before is not None and row.after is not None:
            found = compare(row.name, row.before, row.after, thorough=left > 0)
            if found.parts:
                left -= 1
                delta = found
        rows.append(ComparedField(row.name, row.before, row.after, row.tone, delta))
    return replace(page, rows=tuple(rows))
