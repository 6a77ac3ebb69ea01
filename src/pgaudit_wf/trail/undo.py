"""Putting rows back from the log; the database plans it, checks it and does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from psycopg import sql
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from pgaudit_wf.trail.event import TrailEntry
from pgaudit_wf.trail.statement import Read, Statement, columns

Choice: TypeAlias = Literal["abort", "skip", "overwrite"]


@dataclass(frozen=True, slots=True)
class UndoRow:
    """A row of a table that undoing puts back.

    Attributes:
        target: The table; None for a constraint that fails at the end of the transaction.
        resource_type: Its resource type.
        resource_id: The row's key.
        operation: insert (it was deleted), update, or delete (it was inserted).
        put_back: The values that it gets; None for delete.
        events: The events that are undone, newest first.
        conflicts: What stands against it: kind, and column, event_id, actor_id, occurred_at,
            message where they apply; docs/how-to/undo.md lists the kinds.
        decision: undo, skip or abort.
    """

    target: str | None
    resource_type: str | None
    resource_id: str | None
    operation: str | None
    put_back: Mapping[str, Any] | None
    events: tuple[int, ...]
    conflicts: tuple[Mapping[str, Any], ...]
    decision: str


@dataclass(frozen=True, slots=True)
class Undone:
    """The last event that undid another: its id, when and who; `cursor` is its place in the trail.

    `actor` is the name kept in the event, else the id, else the login of the database session.
    """

    id: int
    occurred_at: datetime
    actor: str
    cursor: str


def _read(function: str, given: dict[str, object]) -> Read[tuple[UndoRow, ...]]:
    def shape(rows: Sequence[DictRow]) -> tuple[UndoRow, ...]:
        return tuple(
            UndoRow(**{**row, "events": (*row["events"],), "conflicts": (*row["conflicts"],)})
            for row in rows
        )

    on_conflict, tables = given["on_conflict"], given["tables"]
    given["on_conflict"] = Jsonb(on_conflict or {})
    given["tables"] = None if tables is None else list(tables)  # type: ignore[call-overload]
    casts = {"tables": "::text[]::regclass[]", "event_id": "::bigint", "tx_id": "::bigint"}
    casts |= {"since": "::timestamptz", "until": "::timestamptz"}
    arguments = sql.SQL(", ").join(
        sql.SQL("{} => {}{}").format(
            sql.Identifier(name), sql.Placeholder(name), sql.SQL(casts.get(name, ""))
        )
        for name in given
    )
    # Of a table, its name as SQL has it.
    return Read(
        sql.SQL("select u.target::text, {} from pgaudit_wf.{}({}) as u").format(
            columns(UndoRow, "u", ("target",)), sql.Identifier(function), arguments
        ),
        given,
        shape,
    )


@Statement
def undo_plan(
    *,
    event_id: int | None = None,
    correlation_id: str | None = None,
    tx_id: int | None = None,
    actor_id: str | None = None,
    api_key_id: str | None = None,
    tables: Sequence[str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    on_conflict: Mapping[str, Choice] | None = None,
) -> Read[tuple[UndoRow, ...]]:
    """Read what `undo` would do with the same arguments; it is done, and rolled back.

    Args:
        conn: The connection.
        event_id: Undo this event.
        correlation_id: Undo this request.
        tx_id: Undo this transaction.
        actor_id: Undo what this actor did.
        api_key_id: Undo what was done with this API key.
        tables: Only in these tables, by name as in SQL.
        since: Only from this time on.
        until: Only before this time.
        on_conflict: What to do about kinds of conflicts; "abort" about others.

    Raises:
        ArgumentError: None of the first five is given, or a choice is not one.
        NotAttachedError: One of the tables is not attached.
        AccessDeniedError: The actor is neither an owner nor an admin of the organization.
        psycopg.Error: Any other error, for instance that the caller may not write a table.
    """
    return _read("undo_plan", dict(locals()))


@Statement
def undo(
    *,
    event_id: int | None = None,
    correlation_id: str | None = None,
    tx_id: int | None = None,
    actor_id: str | None = None,
    api_key_id: str | None = None,
    tables: Sequence[str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    on_conflict: Mapping[str, Choice] | None = None,
) -> Read[tuple[UndoRow, ...]]:
    """Put rows back as they were before events, newest change first, with the caller's rights.

    All arguments given have to match. Every 10,000 rows, the server sends a notice.

    Args:
        conn: The connection; in a transaction, with `request_context`, to say who undoes and why.
        event_id: Undo this event.
        correlation_id: Undo this request.
        tx_id: Undo this transaction.
        actor_id: Undo what this actor did.
        api_key_id: Undo what was done with this API key.
        tables: Only in these tables, by name as in SQL.
        since: Only from this time on.
        until: Only before this time.
        on_conflict: What to do about kinds of conflicts, {"changed": "skip"}; "abort" about others.

    Raises:
        UndoConflictError: There are conflicts that abort it; nothing was changed.
        NothingToUndoError: No change matches.
        ArgumentError: None of the first five is given, or a choice is not one.
        NotAttachedError: One of the tables is not attached.
        AccessDeniedError: The actor is neither an owner nor an admin of the organization.
        psycopg.Error: Any other error, for instance that the caller may not write a table.
    """
    return _read("undo", dict(locals()))


@Statement
def undone_by(entries: Sequence[TrailEntry], most: int | None = None) -> Read[dict[int, Undone]]:
    """Find out which events were undone, and by what; by the ids of those that were.

    This is the word of whoever wrote the undoing events, each of which names at most 1,000 that it
    undoes. They are looked for among the next changes of its row, so that writes need no index.

    Args:
        conn: The connection.
        entries: The events, such as a page of `audit_trail`.
        most: How many of those to look through; by default 10,000 for one event, fewer for each
            of several, but at least 100.

    Raises:
        psycopg.Error: The database could not answer.
    """
    asked = [entry for entry in entries if entry.captured and entry.resource_id is not None]

    def shape(rows: Sequence[DictRow]) -> dict[int, Undone]:
        return {row.pop("event_id"): Undone(**row) for row in rows}

    return Read(
        sql.SQL(
            "select u.event_id, {} from pgaudit_wf._undone_by(%(ids)s::bigint[], %(types)s::text[],"
            " %(keys)s::text[], %(times)s::timestamptz[], %(most)s) as u"
        ).format(columns(Undone, "u")),
        {
            "ids": [entry.id for entry in asked],
            "types": [entry.resource_type for entry in asked],
            "keys": [entry.resource_id for entry in asked],
            "times": [entry.occurred_at for entry in asked],
            "most": most or max(100, 10_000 // max(len(asked), 1)),
        },
        shape,
    )
