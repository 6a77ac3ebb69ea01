"""Record events that no table shows, and attempts that were denied or failed."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, cast, overload

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from pgaudit_wf.context.attempt import (
    Attempt,
    check_action,
    failed_attempt,
    record,
    record_async,
)
from pgaudit_wf.context.block import REQUEST_FAILED, AnyConnection, OpenBlock, open_blocks
from pgaudit_wf.context.values import (
    current_context,
)
from pgaudit_wf.exact_json import dumps


@overload
def record_event(
    conn: psycopg.Connection[Any],
    action: str,
    *,
    resource_type: str | None = None,
    resource_id: str | None = None,
    before: object = None,
    after: object = None,
    metadata: Mapping[str, Any] | None = None,
    outcome: str = "succeeded",
) -> int: ...


@overload
def record_event(
    conn: psycopg.AsyncConnection[Any],
    action: str,
    *,
    resource_type: str | None = None,
    resource_id: str | None = None,
    before: object = None,
    after: object = None,
    metadata: Mapping[str, Any] | None = None,
    outcome: str = "succeeded",
) -> Awaitable[int]: ...


def record_event(
    conn: AnyConnection,
    action: str,
    *,
    resource_type: str | None = None,
    resource_id: str | None = None,
    before: object = None,
    after: object = None,
    metadata: Mapping[str, Any] | None = None,
    outcome: str = "succeeded",
) -> int | Awaitable[int]:
    """Record an event that no table shows, such as an export or a refused sign-in.

    Call it inside a `request_context` block, or the event has no actor. With an AsyncConnection,
    await the result.

    Args:
        conn: The connection.
        action: What happened, as `resource.past_participle`.
        resource_type: The type of resource it happened to.
        resource_id: The id of the resource.
        before: The state before, as any value that JSON can represent.
        after: The state after; the log keeps the difference between the two.
        metadata: Anything else worth keeping.
        outcome: "succeeded", "failed" or "denied".

    Returns:
        The id of the event.

    Raises:
        psycopg.Error: The database refused the event.
    """
    arguments = {
        "action": action,
        "resource_type": resource_type,
        "resource_id": resource_id,
        "before": None if before is None else Jsonb(before, dumps),
        "after": None if after is None else Jsonb(after, dumps),
        "metadata": None if metadata is None else Jsonb(dict(metadata), dumps),
        "outcome": outcome,
    }
    given = {name: value for name, value in arguments.items() if value is not None}
    # Omitted arguments take the SQL function's own defaults.
    query = sql.SQL("select pgaudit_wf.record_event({})").format(
        sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name))
            for name in given
        )
    )
    if isinstance(conn, psycopg.AsyncConnection):
        return _record_async(conn, query, given)
    return _event_id(conn.cursor(row_factory=tuple_row).execute(query, given).fetchone())


async def _record_async(
    conn: psycopg.AsyncConnection[Any], query: sql.Composed, given: Mapping[str, Any]
) -> int:
    cursor = conn.cursor(row_factory=tuple_row)
    await cursor.execute(query, given)
    return _event_id(await cursor.fetchone())


def _event_id(row: tuple[Any, ...] | None) -> int:
    # The function returns one row by its declaration.
    return int(cast("tuple[Any, ...]", row)[0])


@overload
def record_denied(
    conn: psycopg.Connection[Any],
    action: str,
    *,
    resource_type: str | None = None,
    resource_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    at_once: bool = False,
) -> None: ...


@overload
def record_denied(
    conn: psycopg.AsyncConnection[Any],
    action: str,
    *,
    resource_type: str | None = None,
    resource_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    at_once: bool = False,
) -> Awaitable[None]: ...


def record_denied(
    conn: AnyConnection,
    action: str,
    *,
    resource_type: str | None = None,
    resource_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    at_once: bool = False,
) -> Awaitable[None] | None:
    """Record that an attempt was refused, as a `denied` event that survives a rollback.

        if not may_export(user):
            record_denied(conn, "report.export_denied", resource_type="report", resource_id="r_1")
            raise PermissionError

    Inside a `request_context` block the event is recorded when the outermost block ends, whether
    it commits or not, in a transaction of its own; elsewhere at once, with the bound context. It
    raises no database errors: if the connection cannot record it, `configure_attempts` applies.
    With an AsyncConnection, await it.

    Args:
        conn: The connection.
        action: The refused action.
        resource_type: The type of resource it was about.
        resource_id: The id of the resource.
        metadata: Anything else worth keeping; values that JSON cannot represent become text.
        at_once: Record it before returning, on a second connection if this one is in a
            transaction; for denials that must be visible while a long block is still running.

    Raises:
        ValueError: The action is empty or has more than 255 bytes.
    """
    active = open_blocks.get(conn)
    attempt = Attempt(
        check_action(action),
        "denied",
        active.context if active else current_context(),
        resource_type,
        resource_id,
        metadata or {},
    )
    return _record_or_queue(conn, attempt, None if at_once else active)


def record_failed(
    conn: AnyConnection, error: BaseException, *, action: str = REQUEST_FAILED
) -> Awaitable[None] | None:
    """Record a failure outside of `request_context` as the block would, with the bound context.

    For code whose transactions are managed elsewhere, as by SQLAlchemy; call it after rollback.
    With an AsyncConnection, await it.

    Args:
        conn: The driver's connection; one in a transaction is left alone, see `record_denied`.
        error: The exception that was raised.
        action: The action of the event.

    Raises:
        ValueError: The action is empty or has more than 255 bytes.
    """
    active = open_blocks.get(conn)
    context = active.context if active else current_context()
    attempt = failed_attempt(error, context, check_action(action), "block")
    return _record_or_queue(conn, attempt, active)


def _record_or_queue(
    conn: AnyConnection, attempt: Attempt, active: OpenBlock | None
) -> Awaitable[None] | None:
    if active is not None:
        active.attempts.pending.append(attempt)
        return _nothing() if isinstance(conn, psycopg.AsyncConnection) else None
    if isinstance(conn, psycopg.AsyncConnection):
        return record_async(conn, [attempt])
    record(conn, [attempt])
    return None


async def _nothing() -> None:
    """Return at once; the async API awaits this when nothing is left to do."""
