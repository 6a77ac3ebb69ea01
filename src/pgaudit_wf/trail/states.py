"""States of rows and tables at moments, rebuilt from the log: typed reads, as in `reads`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg import sql
from psycopg.rows import DictRow

from pgaudit_wf.trail.statement import Json, Read, Statement, columns

__all__ = [
    "RowChange",
    "RowState",
    "TableRow",
    "changes_between",
    "create_view_as_of",
    "row_history",
    "table_as_of",
]


@dataclass(frozen=True, slots=True)
class RowState:
    """A state that a row had, and who made it.

    `record` is the row after the event, None once it is gone; `columns` are those that changed,
    None where the whole row did. `other_id` is the id that a row came from ("arrived") or went to
    ("left"). `unknown` says what the log cannot tell of it.
    """

    occurred_at: datetime
    event_id: int
    tx_id: int
    action: str
    actor_id: str | None
    actor_label: str | None
    on_behalf_of: str | None
    db_user: str
    correlation_id: str | None
    reason: str | None
    change: Literal["inserted", "updated", "deleted", "truncated", "arrived", "left"]
    columns: tuple[str, ...] | None
    other_id: str | None
    record: dict[str, Json] | None
    unknown: str | None

    def acted_as(self) -> str:
        """Name who acted, and for whom; the login of the database session if no actor was given."""
        name = self.actor_label or self.actor_id or self.db_user
        return f"{name} for {self.on_behalf_of}" if self.on_behalf_of else name


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a table at a moment; without `record`, `unknown` says why the log cannot tell it."""

    resource_id: str
    record: dict[str, Json] | None
    unknown: str | None


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row that differs between two moments; "rewritten" stands for DDL and has no row."""

    resource_id: str | None
    change: Literal["inserted", "updated", "deleted", "unknown", "rewritten"]
    before: dict[str, Json] | None
    after: dict[str, Json] | None
    events: int
    first_at: datetime | None
    last_at: datetime | None
    actor_ids: tuple[str, ...]
    unknown: str | None


@Statement
def row_history(table: str, id: str) -> Read[tuple[RowState, ...]]:  # noqa: A002 - as in SQL
    """Read every state that a row had, oldest first.

    Args:
        conn: The connection.
        table: The table's name as in SQL, such as `public.invoice`.
        id: The key as text; several columns with commas between them, or as a JSON array.

    Raises:
        NotAttachedError: The table was never attached.
        ArgumentError: `id` cannot be the key of several columns.
        psycopg.Error: Any other error, for instance that the table does not exist.
    """

    def shape(rows: Sequence[DictRow]) -> tuple[RowState, ...]:
        return tuple(
            RowState(**{**row, "columns": None if row["columns"] is None else (*row["columns"],)})
            for row in rows
        )

    return Read(
        sql.SQL("select {} from pgaudit_wf.row_history(%(table)s::regclass, %(id)s) as h").format(
            columns(RowState, "h")
        ),
        {"table": table, "id": id},
        shape,
    )


@Statement
def table_as_of(table: str, at: datetime) -> Read[tuple[TableRow, ...]]:
    """Rebuild all rows of a table as of a moment, in one pass over the log.

    The result is in memory as a whole: read a table of millions of rows from the function in SQL,
    with a server-side cursor.

    Args:
        conn: The connection.
        table: The table's name as in SQL.
        at: The moment, with a time zone.

    Raises:
        NotAttachedError: The table was never attached.
        UnknownStateError: The log does not tell the table's rows from another's.
        psycopg.Error: Any other error.
    """
    return Read(
        sql.SQL("select {} from pgaudit_wf.table_as_of(%(table)s::regclass, %(at)s) as r").format(
            columns(TableRow, "r")
        ),
        {"table": table, "at": at},
        lambda rows: tuple(TableRow(**row) for row in rows),
    )


@Statement
def changes_between(table: str, a: datetime, b: datetime) -> Read[tuple[RowChange, ...]]:
    """Read which rows of a table differ between two moments, with both states of each.

    Args:
        conn: The connection.
        table: The table's name as in SQL.
        a: The earlier moment, with a time zone.
        b: The later one.

    Raises:
        NotAttachedError: The table was never attached.
        ArgumentError: `b` is before `a`.
        UnknownStateError: The log does not tell the table's rows from another's.
        psycopg.Error: Any other error.
    """
    return Read(
        sql.SQL(
            "select {} from pgaudit_wf.changes_between(%(table)s::regclass, %(a)s, %(b)s) as c"
            " order by c.last_at, c.resource_id"
        ).format(columns(RowChange, "c")),
        {"table": table, "a": a, "b": b},
        lambda rows: tuple(
            RowChange(**{**row, "actor_ids": tuple(row["actor_ids"] or ())}) for row in rows
        ),
    )


@Statement
def create_view_as_of(name: str, table: str, at: datetime) -> Read[str]:
    """Create a view of a table as of a moment.

    Args:
        conn: The connection, whose role may create views there.
        name: The view's name as in SQL; without a schema, it is put beside the table.
        table: The table's name as in SQL.
        at: The moment, with a time zone.

    Returns:
        The view's name with its schema.

    Raises:
        NotAttachedError: The table is not attached.
        ArgumentError: `name` is not the name of a view.
        psycopg.Error: Any other error, for instance that there is something of that name.
    """
    return Read(
        sql.SQL(
            "select pgaudit_wf.create_view_as_of(%(name)s, %(table)s::regclass, %(at)s) as made"
        ),
        {"name": name, "table": table, "at": at},
        lambda rows: str(rows[0]["made"]),
    )
