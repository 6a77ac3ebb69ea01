"""Putting rows back from the log; the database plans it, checks it and does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from psycopg import sql
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

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
