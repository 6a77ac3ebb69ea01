"""Typed reads of the audit schema: the same functions for sync and async connections.

Each read's statement and the shape of its result are written once, without I/O; `run`
sends it on the connection given. The reading itself, with its rights and its rules, is done by
the functions and views of schema `pgaudit_wf`.

JSON keeps its digits: integers are `int` (or `Decimal`, of more than 4,300 digits), fractions
`Decimal`, never `float`. Anything nested deeper than 250 levels is a `str` with its JSON.

Each function takes a `psycopg.Connection` and returns its result, or a `psycopg.AsyncConnection`
and returns an awaitable. The reads of organizations' owners and admins, as a member of role
`pgaudit_wf_reader`, need the actor and organization in the transaction:

    with request_context(conn, actor_id="u_1", org_id="o_1") as conn:
        page = audit_trail(conn, action="api_key.*")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Literal, TypedDict, Unpack

from psycopg import sql
from psycopg.rows import DictRow

from pgaudit_wf.trail.event import LogEvent, TrailEntry
from pgaudit_wf.trail.statement import Json, Read, Statement, columns

__all__ = [
    "ApiKeyActivity",
    "Attachment",
    "Finding",
    "LogBatch",
    "LogEvent",
    "Partition",
    "TrailBatch",
    "TrailEntry",
    "TrailFilter",
    "TrailPage",
    "api_key_activity",
    "attached",
    "audit_trail",
    "doctor",
    "follow_trail",
    "latest_trail",
    "partitions",
    "read_log",
    "row_as_of",
]


@dataclass(frozen=True, slots=True)
class TrailPage:
    """Entries of the trail, newest first, and where the next page begins.

    `next_cursor` is None after the last entry; a page that ends with it may still have one.
    """

    entries: tuple[TrailEntry, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class TrailBatch:
    """Entries of the trail, oldest first, and the cursor to follow it from."""

    entries: tuple[TrailEntry, ...]
    cursor: str


@dataclass(frozen=True, slots=True)
class LogBatch:
    """Events in the order of the log, and the cursor to go on from; None: still at the start."""

    events: tuple[LogEvent, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class ApiKeyActivity:
    """An API key as recorded in the log; `status` is "active", "revoked" or "deleted"."""

    api_key_id: str
    org_id: str | None
    label: str | None
    status: Literal["active", "revoked", "deleted"]
    created_at: datetime | None
    created_by: str | None
    revoked_at: datetime | None
    revoked_by: str | None
    deleted_at: datetime | None
    events: int
    last_event_at: datetime


@dataclass(frozen=True, slots=True)
class Attachment:
    """An audited table and its settings; `table` is as the session must write its name."""

    table: str
    resource_type: str
    id_columns: tuple[str, ...]
    org_column: str | None
    label_column: str | None
    ignore: tuple[str, ...]
    redact: tuple[str, ...]
    shallow: tuple[str, ...]
    max_value: int | None
    on_failure: Literal["abort", "warn"]
    form: Literal["compiled", "generic"]
    function_name: str
    rules: int
    failures: int
    attached_at: datetime
    attached_by: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem with the auditing, and its remedy."""

    severity: Literal["error", "warning", "notice"]
    subject: str
    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of the log. `events` is the planner's estimate, None where it has none yet.

    `from_time` (inclusive) and `to_time` (exclusive) are None for the default partition; `size` is
    in bytes, with indexes.
    """

    name: str
    from_time: datetime | None
    to_time: datetime | None
    events: int | None
    size: int


class TrailFilter(TypedDict, total=False):
    """Filters of a trail; None, empty and absent mean the same.

    `action`, `resource_type` and `actor_id` take a text or several, of which one must match; their
    counterparts with `not_` leave events out. An action may hold `*` for any characters
    (`api_key.*`); `since` is inclusive, `until` is not; `search` looks for text in names, labels,
    action, address, user agent and ids. `network` is an address, or a network such as
    `203.0.113.0/24`; `changed` is a column that was updated, and `value` what a column (that one,
    if both are given) had before or after.
    """

    org_id: str | None
    action: str | Sequence[str] | None
    not_action: str | Sequence[str] | None
    resource_type: str | Sequence[str] | None
    not_resource_type: str | Sequence[str] | None
    resource_id: str | None
    actor_id: str | Sequence[str] | None
    not_actor_id: str | Sequence[str] | None
    api_key_id: str | None
    network: str | None
    correlation_id: str | None
    outcome: str | None
    since: datetime | None
    until: datetime | None
    changed: str | None
    value: str | None
    search: str | None


_FILTERS = tuple(TrailFilter.__annotations__)
SEVERAL = {
    "action": "actions",
    "not_action": "not_actions",
    "resource_type": "resource_types",
    "not_resource_type": "not_resource_types",
    "actor_id": "actor_ids",
    "not_actor_id": "not_actor_ids",
}
"""Filters that take several values, and the arguments of the SQL function that do."""


def values_of(given: str | Sequence[str] | None) -> list[str]:
    """Return the values of a filter that takes a text or several."""
    if given is None:
        return []
    return [given] if isinstance(given, str) else list(given)


def _trail_arguments(filters: TrailFilter) -> tuple[sql.Composed, dict[str, object]]:
    unknown = sorted(filters.keys() - set(_FILTERS))
    if unknown:
        raise TypeError(
            f"unknown filter: {', '.join(unknown)}; valid filters are {', '.join(_FILTERS)}"
        )
    given: dict[str, object] = {
        SEVERAL.get(name, name): values_of(value) if name in SEVERAL else value  # type: ignore[arg-type]
        for name, value in filters.items()
        if value is not None
    }
    # Omitted arguments take the SQL function's own defaults.
    return sql.SQL("").join(
        sql.SQL(", {} => {}{}").format(
            sql.Identifier(name),
            sql.Placeholder(name),
            sql.SQL("::inet" if name == "network" else ""),
        )
        for name in given
    ), given


def well_formed(row: Mapping[str, Json]) -> dict[str, Json]:
    """Return a row of the log with address, diff and metadata of the types that an entry has.

    Rows that a restore or a superuser wrote may have others; they are shown all the same.
    """
    ip, diff, metadata = row["ip"], row["diff"], row["metadata"]
    if diff is not None:
        diff = [_operation(item) for item in (diff if isinstance(diff, list) else [diff])]
    return {
        **row,
        "ip": None if ip is None else str(ip),
        "diff": diff,
        "metadata": metadata if isinstance(metadata, dict) else {"metadata": metadata},
    }


def _operation(item: Json) -> dict[str, Json]:
    if isinstance(item, dict) and isinstance(item.get("op"), str):
        return item if isinstance(item.get("path"), str) else {**item, "path": ""}
    return {"op": "replace", "path": "", "value": item}


def _entry(row: DictRow) -> TrailEntry:
    return TrailEntry(**well_formed(row))


@Statement
def audit_trail(
    *, after: str | None = None, page_size: int = 50, **filters: Unpack[TrailFilter]
) -> Read[TrailPage]:
    """Read a page of the trail, newest first.

    Pages are stable: an event recorded between two calls never shifts another.

    Args:
        conn: The connection.
        after: `next_cursor` of the page before; None for the first page.
        page_size: Entries on a page, from 1 to 1000.
        **filters: See `TrailFilter`.

    Raises:
        AccessDeniedError: The connection is a reader's, and its actor is neither an owner nor an
            admin.
        CursorError: `after` is not a cursor of the trail.
        ArgumentError: `page_size` is out of range.
        psycopg.Error: Any other database error.
    """

    def shape(rows: Sequence[DictRow]) -> TrailPage:
        entries = tuple(map(_entry, rows[:page_size]))
        return TrailPage(entries, entries[-1].cursor if len(rows) == page_size else None)

    arguments, given = _trail_arguments(filters)
    return Read(
        sql.SQL(
            "select * from pgaudit_wf.audit_trail(after => %(after)s, page_size => %(page_size)s{})"
        ).format(arguments),
        {**given, "after": after, "page_size": page_size},
        shape,
    )


@Statement
def latest_trail(limit: int = 10, **filters: Unpack[TrailFilter]) -> Read[TrailBatch]:
    """Read the newest entries, and the cursor from which `follow_trail` goes on.

    Nothing is lost between the two. An entry whose transaction overlapped with one still running is
    returned again by `follow_trail`: drop entries there whose id was in this batch.

    Args:
        conn: The connection.
        limit: How many entries, from 0 to 1000.
        **filters: See `TrailFilter`.

    Raises:
        AccessDeniedError: As for `audit_trail`.
        ArgumentError: `limit` is out of range.
        psycopg.Error: Any other database error.
    """

    def shape(rows: Sequence[DictRow]) -> TrailBatch:
        end = rows[0]["_log_end"]
        found = [{k: v for k, v in row.items() if k != "_log_end"} for row in rows if row["id"]]
        return TrailBatch(tuple(_entry(row) for row in reversed(found[:limit])), end)

    arguments, given = _trail_arguments(filters)
    return Read(
        # One statement, thus one snapshot: what it does not show comes after the cursor.
        sql.SQL(
            "select _log_end, t.* from pgaudit_wf._log_end()"
            " left join pgaudit_wf.audit_trail(page_size => %(page_size)s{}) as t on true"
            " order by t.occurred_at desc, t.id desc"
        ).format(arguments),
        {**given, "page_size": max(limit, 1)},
        shape,
    )


@Statement
def follow_trail(
    after: str, max_events: int = 200, **filters: Unpack[TrailFilter]
) -> Read[TrailBatch]:
    """Read the entries after a cursor, in an order in which no event is skipped or repeated.

    An event appears once no older transaction is running, so a long transaction holds back events
    committed after it began. Call it outside of a transaction, or in a new one each time: within a
    single snapshot nothing new would ever appear.

    Args:
        conn: The connection.
        after: The cursor of `latest_trail`, of the batch before, or of any entry of one.
        max_events: How many events to examine, including those that the filters exclude.
        **filters: See `TrailFilter`.

    Raises:
        CursorError: `after` is not a cursor of this database's log.
        LogSetBackError: The log was set back to before `after`, by a restore or failover.
        ArgumentError: `max_events` is below 1.
        psycopg.Error: Any other database error.
    """

    def shape(rows: Sequence[DictRow]) -> TrailBatch:
        entries = tuple(_entry(row) for row in rows if row["id"] is not None)
        return TrailBatch(entries, rows[-1]["cursor"] if rows else after)

    arguments, given = _trail_arguments(filters)
    return Read(
        sql.SQL(
            "select {}, f.cursor from pgaudit_wf.follow_trail("
            "after => %(after)s, max_events => %(max_events)s{}) as f"
        ).format(columns(TrailEntry, "(f.entry)", {"cursor"}), arguments),
        {**given, "after": after, "max_events": max_events},
        shape,
    )


@Statement
def read_log(after: str | None = None, max_events: int = 1000) -> Read[LogBatch]:
    """Read the log from a cursor on, for jobs that must see every event exactly once.

    Args:
        conn: The connection.
        after: The cursor of the batch before, which the job stores with its state; None for the
            beginning of the log. It survives a dump and restore of the database.
        max_events: How many events at most.

    Raises:
        CursorError: `after` is not a cursor of this database's log.
        LogSetBackError: The log was set back to before `after`, by a restore or failover.
        ArgumentError: `max_events` is below 1.
        psycopg.Error: Any other database error.
    """

    def shape(rows: Sequence[DictRow]) -> LogBatch:
        events = tuple(LogEvent(**well_formed(row)) for row in rows)
        return LogBatch(events, events[-1].cursor if events else after)

    return Read(
        sql.SQL(
            "select {}, pgaudit_wf._readable_json((r.event).diff, 16777216) as diff,"
            " pgaudit_wf._readable_json((r.event).metadata, 16777216) as metadata, r.cursor"
            " from pgaudit_wf.read_log(%(after)s, %(max_events)s) as r"
        ).format(columns(LogEvent, "(r.event)", {"cursor", "diff", "metadata"})),
        {"after": after, "max_events": max_events},
        shape,
    )


@Statement
def row_as_of(
    table: str,
    id: str,  # noqa: A002 - as the function in SQL has it
    at: datetime | None = None,
) -> Read[dict[str, Json] | None]:
    """Rebuild a row from the log as of a moment; None if it did not exist then.

    Args:
        conn: The connection.
        table: The table's name as in SQL, such as `public.invoice`.
        id: The key as text; several columns with commas between them, or as a JSON array.
        at: The moment, with a time zone; None for now.

    Raises:
        NotAttachedError: The table was never attached.
        psycopg.Error: Any other error, for instance that the table does not exist.
    """
    return Read(
        sql.SQL("select pgaudit_wf.row_as_of(%(table)s::regclass, %(id)s{}) as was").format(
            sql.SQL("" if at is None else ", %(at)s")
        ),
        {"table": table, "id": id, "at": at},
        lambda rows: rows[0]["was"],
    )


@Statement
def api_key_activity(*, org_id: str | None = None) -> Read[tuple[ApiKeyActivity, ...]]:
    """Read the history of each API key in the log, the last to change first.

    Args:
        conn: The connection.
        org_id: Only this organization's keys; None for all that the connection may see.

    Raises:
        psycopg.Error: The database could not answer.
    """
    return Read(
        sql.SQL(
            "select {} from pgaudit_wf.api_key_activity as a"
            " where %(org_id)s::text is null or a.org_id = %(org_id)s"
            " order by a.last_event_at desc, a.api_key_id"
        ).format(columns(ApiKeyActivity, "a")),
        {"org_id": org_id},
        lambda rows: tuple(ApiKeyActivity(**row) for row in rows),
    )


@Statement
def attached() -> Read[tuple[Attachment, ...]]:
    """Read which tables are audited and how, by name.

    Raises:
        psycopg.Error: The database could not answer.
    """

    def shape(rows: Sequence[DictRow]) -> tuple[Attachment, ...]:
        lists = ("id_columns", "ignore", "redact", "shallow")
        return tuple(
            Attachment(**{**row, **{name: tuple(row[name]) for name in lists}}) for row in rows
        )

    names = [field.name for field in fields(Attachment) if field.name != "table"]
    return Read(
        sql.SQL(
            'select a.target::text as "table", {} from pgaudit_wf.attached as a order by 1'
        ).format(sql.SQL(", ").join(map(sql.Identifier, names))),
        {},
        shape,
    )


@Statement
def doctor() -> Read[tuple[Finding, ...]]:
    """Read the problems with auditing, the worst first; empty if there are none.

    Raises:
        psycopg.Error: The database could not answer.
    """
    return Read(
        sql.SQL(
            "select severity, subject, problem, remedy from pgaudit_wf.doctor()"
            " order by array_position(array['error', 'warning', 'notice'], severity), 2, 3"
        ),
        {},
        lambda rows: tuple(Finding(**row) for row in rows),
    )


@Statement
def partitions() -> Read[tuple[Partition, ...]]:
    """Read the partitions of the log, oldest first, the default one at the end.

    Raises:
        psycopg.Error: The database could not answer.
    """
    return Read(
        sql.SQL(
            "select name, from_time, to_time, events, size from pgaudit_wf.log_partition"
            " order by from_time nulls last, name"
        ),
        {},
        lambda rows: tuple(Partition(**row) for row in rows),
    )
