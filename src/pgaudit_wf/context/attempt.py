"""Attempts that were denied or failed, recorded whether or not their transaction commits."""

from __future__ import annotations

import json
import logging
import math
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import psycopg
from psycopg import errors, generators, pq
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo

from pgaudit_wf.conninfo import with_timeout
from pgaudit_wf.context.values import ATTESTED, RequestContext

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool, ConnectionPool
from pgaudit_wf.context.spool import append_lines, configured, spool_path

__all__ = [
    "Attempt",
    "configure_attempts",
]

ACTION_LENGTH = 128
"""Longest action, in characters."""

LIMIT_REACHED = "PA330"

_logger = logging.getLogger("pgaudit_wf.attempt")

AnyConnection: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]
Fallback: TypeAlias = "str | ConnectionPool[Any] | AsyncConnectionPool[Any]"


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt: the action, who made it, and how it ended.

    Args:
        action: The event's action.
        outcome: "failed" or "denied".
        context: Who attempted it.
        resource_type: The type of resource it was about.
        resource_id: The id of the resource.
        metadata: Anything else; values that JSON cannot represent become text.
        id: Ensures that it is recorded only once.
        attempted_at: When, in UTC.
    """

    action: str
    outcome: Literal["failed", "denied"]
    context: RequestContext
    resource_type: str | None = None
    resource_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    id: uuid.UUID = field(default_factory=uuid.uuid4)
    attempted_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def entry(self, late: bool) -> str:
        """Return the attempt as `pgaudit_wf.record_attempt` takes it: JSON, one line of ASCII.

        Args:
            late: Whether it is recorded later than it was made, so that its time is included.
        """
        return json.dumps(
            {
                "id": str(self.id),
                "action": _plain(self.action),
                "outcome": self.outcome,
                "resource_type": _plain(self.resource_type),
                "resource_id": None if self.resource_id is None else _plain(str(self.resource_id)),
                "metadata": _plain_metadata(self.metadata),
                "context": _settings_of(self.context, f"attempt {self.id}"),
                **({"attempted_at": self.attempted_at.isoformat()} if late else {}),
            }
        )


def _settings_of(context: RequestContext, bound_to: str) -> dict[str, str]:
    settings = context.as_dict()
    if context.attest is not None:
        # The signature, never the key, as this may go into a file.
        settings["attestation"] = context.attest.sign(
            (getattr(context, name) for name in ATTESTED), bound_to
        )
    return settings


def _plain_metadata(metadata: Mapping[str, Any]) -> object:
    try:
        plain = _plain(metadata)
        # Python cannot write an integer of more than 4,300 digits.
        json.dumps(plain)
        return plain
    except Exception as error:
        return {"metadata_lost": type(error).__name__}


def _plain(value: object) -> object:
    # jsonb accepts neither NUL nor lone surrogates, and JSON has no infinite numbers.
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(_plain(str(key))): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value).replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def check_action(action: str) -> str:
    """Return an action that the database will accept.

    Raises:
        ValueError: It is empty, too long, or not text.
    """
    if not isinstance(action, str) or not action:
        raise ValueError("an action must be a text such as 'invoice.paid'")
    if len(action) > ACTION_LENGTH or _plain(action) != action:
        raise ValueError(f"an action must be valid text of at most {ACTION_LENGTH} characters")
    return action


def failed_attempt(
    error: BaseException, context: RequestContext, action: str, stage: str
) -> Attempt:
    """Describe a failure by its kind and the objects that the database names, without values.

    A reached limit (PA330) is a denial: its action is `<resource_type>.limit_reached`, and it
    belongs to the organization whose limit it is.

    Args:
        error: The exception that was raised.
        context: Who attempted it.
        action: The action of any other failure.
        stage: The part of the block in which it was raised.
    """
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    metadata: dict[str, Any] = {"exception": f"{module}{kind.__qualname__}", "stage": stage}
    cause = _database_error(error, set())
    if cause is not None:
        named = {
            "sqlstate": cause.sqlstate,
            "schema": cause.diag.schema_name,
            "table": cause.diag.table_name,
            "column": cause.diag.column_name,
            "constraint": cause.diag.constraint_name,
        }
        metadata.update({name: value for name, value in named.items() if value})
        if cause.sqlstate == LIMIT_REACHED and cause.diag.message_detail:
            detail = json.loads(cause.diag.message_detail)
            if detail["org_id"] != context.org_id:
                context = context.merge(org_id=detail["org_id"], org_label=None)
            metadata["max_count"] = detail["max_count"]
            return Attempt(
                f"{detail['resource_type']}.limit_reached",
                "denied",
                context,
                detail["resource_type"],
                metadata=metadata,
            )
    return Attempt(action, "failed", context, metadata=metadata)


def _database_error(error: BaseException | None, seen: set[int]) -> psycopg.Error | None:
    """Return the driver's error in an exception: itself, a cause, or one of a group."""
    if error is None or id(error) in seen:
        return None
    seen.add(id(error))
    if isinstance(error, psycopg.Error) and error.sqlstate:
        return error
    inner = list(error.exceptions) if isinstance(error, BaseExceptionGroup) else []
    found = (_database_error(each, seen) for each in [*inner, behind(error)])
    return next((each for each in found if each is not None), None)


def behind(error: BaseException) -> BaseException | None:
    """Return the exception that led to this one, as a traceback would show it."""
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@dataclass
class _Settings:
    fallback: Fallback | None = None
    connect_timeout: int = 2
    # No second connection is tried before this time (monotonic seconds), as the last one failed.
    wait_until: float = 0.0


_settings = _Settings()
_PAUSE = 5.0


def configure_attempts(
    *,
    fallback: Fallback | None = None,
    spool: str | os.PathLike[str] | None = None,
    connect_timeout: int = 2,
) -> None:
    """Say, once in a process, where attempts go that the request's connection cannot take.

    Args:
        fallback: A connection string or pool to use when the request's connection is broken. A
            ConnectionPool serves sync blocks, an AsyncConnectionPool async ones. Without one, a
            new connection is opened with the parameters of the request's.
        spool: The file for attempts that cannot reach the database. Default: the environment
            variable PGAUDIT_WF_SPOOL, else pgaudit_wf/attempts.jsonl in $XDG_STATE_HOME or
            ~/.local/state.
        connect_timeout: Seconds that a new connection may take; libpq treats 1 as 2. A timeout in
            the fallback's connection string takes precedence.

    Raises:
        ValueError: The timeout is not positive.
    """
    if connect_timeout <= 0:
        raise ValueError("connect_timeout must be a positive number of seconds")
    _settings.fallback = fallback
    configured.path = None if spool is None else Path(spool)
    _settings.connect_timeout = connect_timeout
    _settings.wait_until = 0.0


def record(conn: psycopg.Connection[Any], attempts: Sequence[Attempt]) -> None:
    """Record or spool attempts; raises nothing but interrupts of the process."""
    for number, attempt in enumerate(attempts):
        try:
            done = _deliver(conn, attempt)
        except BaseException:
            _keep(attempts[number:])
            raise
        if not done:
            _keep([attempt])


async def record_async(conn: psycopg.AsyncConnection[Any], attempts: Sequence[Attempt]) -> None:
    """Record or spool attempts; raises nothing but cancellation and interrupts."""
    for number, attempt in enumerate(attempts):
        try:
            done = await _deliver_async(conn, attempt)
        except BaseException:
            _keep(attempts[number:])
            raise
        if not done:
            _keep([attempt])


def _deliver(conn: psycopg.Connection[Any], attempt: Attempt) -> bool:
    try:
        refused = None
        if _usable(conn):
            try:
                _record_on(conn, attempt)
                return True
            except psycopg.Error as error:
                refused = error
        second = _second(conn, refused)
        if isinstance(second, str):
            with psycopg.connect(second, autocommit=True) as own:
                _record_on(own, attempt)
            return True
        if second is not None:
            with second.connection(_settings.connect_timeout) as pooled:
                _record_on(pooled, attempt)
            return True
    except Exception as error:
        _second_failed(error)
    return False


def _record_on(conn: psycopg.Connection[Any], attempt: Attempt) -> None:
    with conn.lock:
        conn.wait(_record_gen(conn.pgconn, attempt))


async def _deliver_async(conn: psycopg.AsyncConnection[Any], attempt: Attempt) -> bool:
    try:
        refused = None
        if _usable(conn):
            try:
                await _record_on_async(conn, attempt)
                return True
            except psycopg.Error as error:
                refused = error
        second = _second(conn, refused)
        if isinstance(second, str):
            async with await psycopg.AsyncConnection.connect(second, autocommit=True) as own:
                await _record_on_async(own, attempt)
            return True
        if second is not None:
            async with second.connection(_settings.connect_timeout) as pooled:
                await _record_on_async(pooled, attempt)
            return True
    except Exception as error:
        _second_failed(error)
    return False


async def _record_on_async(conn: psycopg.AsyncConnection[Any], attempt: Attempt) -> None:
    async with conn.lock:
        await conn.wait(_record_gen(conn.pgconn, attempt))


def _usable(conn: AnyConnection) -> bool:
    return (
        not conn.closed
        and conn.pgconn.pipeline_status == pq.PipelineStatus.OFF
        and conn.pgconn.transaction_status == pq.TransactionStatus.IDLE
    )


def _record_gen(pgconn: pq.abc.PGconn, attempt: Attempt) -> PQGen[None]:
    # One message of the simple query protocol, as for the context: safe behind a pooler. The entry
    # is ASCII, and escaped like this it does not depend on standard_conforming_strings.
    literal = attempt.entry(late=False).replace("\\", "\\\\").replace("'", "''")
    pgconn.send_query(
        "begin isolation level read committed read write; set local lock_timeout = '5s';"
        f" select pgaudit_wf.record_attempt(E'{literal}'); commit".encode()
    )
    for result in (yield from generators.execute(pgconn)):
        if result.status == pq.ExecStatus.FATAL_ERROR:
            if pgconn.transaction_status == pq.TransactionStatus.INERROR:
                pgconn.send_query(b"rollback")
                yield from generators.execute(pgconn)
            raise errors.error_from_result(result)


@overload
def _second(
    conn: psycopg.Connection[Any], refused: psycopg.Error | None
) -> str | ConnectionPool[Any] | None: ...
@overload
def _second(
    conn: psycopg.AsyncConnection[Any], refused: psycopg.Error | None
) -> str | AsyncConnectionPool[Any] | None: ...


def _second(
    conn: AnyConnection, refused: psycopg.Error | None
) -> str | ConnectionPool[Any] | AsyncConnectionPool[Any] | None:
    """Return another way to reach the database when the request's connection failed, if any."""
    if refused is not None:
        _logger.warning("a connection did not record an attempt: %s", _name(refused))
    if time.monotonic() < _settings.wait_until:
        return None
    timeout = _settings.connect_timeout
    fallback = _settings.fallback
    if isinstance(fallback, str):
        return with_timeout(fallback, timeout)
    if fallback is not None:
        # A caller that passes a pool has imported psycopg_pool; others may not have it.
        from psycopg_pool import AsyncConnectionPool, ConnectionPool

        is_async = isinstance(conn, psycopg.AsyncConnection)
        if isinstance(fallback, AsyncConnectionPool if is_async else ConnectionPool):
            return fallback
    # If the server refused it on one connection, it will on the next.
    if refused is not None and not is_passing(refused):
        return None
    parameters = conn.info.get_parameters()
    if password := conn.info.password:
        parameters["password"] = password
    return make_conninfo("", **{**parameters, "connect_timeout": str(timeout)})


def _second_failed(error: Exception) -> None:
    _settings.wait_until = time.monotonic() + _PAUSE
    _logger.warning("a second connection did not record an attempt: %s", _name(error))


def _name(error: BaseException) -> str:
    # Messages quote values.
    state = getattr(error, "sqlstate", None)
    return f"{type(error).__name__} {state}" if state else type(error).__name__


def is_passing(error: psycopg.Error) -> bool:
    """Return whether an error is due to the connection or the server, not the statement."""
    state = error.sqlstate or ""
    return not state or state.startswith(("08", "40", "53", "55", "57", "58"))


def _keep(attempts: Sequence[Attempt]) -> None:
    """Put attempts into the spool file; if that fails, write them to the log."""
    try:
        path = spool_path()
        append_lines(path, [attempt.entry(late=True).encode() for attempt in attempts])
        _logger.warning(
            "%d attempt(s) could not reach the database and wait in %s for pgaudit-wf spool read",
            len(attempts),
            path,
        )
    except Exception as error:
        for attempt in attempts:
            _logger.error(
                "an attempt could neither be recorded nor spooled (%s): %s",
                _name(error),
                attempt.entry(late=True),
            )
