"""Database access of the pages and the API: through the reader role, for one organization."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar

import psycopg
from anyio import CancelScope, to_thread
from psycopg import sql
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from starlette.requests import Request

from pgaudit_wf.context.block import request_context
from pgaudit_wf.context.values import RequestContext, current_context
from pgaudit_wf.integrations.http import correlation_id, header_text, parse_address
from pgaudit_wf.trail.statement import AsyncConnection, Connection, Read, run
from pgaudit_wf.web.principal import Principal

T = TypeVar("T")
Pool: TypeAlias = AsyncConnectionPool[Any] | ConnectionPool[Any]


class Session:
    """A read transaction; the same for sync and async pools."""

    def __init__(self, conn: Connection | AsyncConnection) -> None:
        self._conn = conn

    async def run(self, read: Read[T]) -> T:
        """Send a statement, such as `audit_trail.read()`, and return its result."""
        if isinstance(self._conn, psycopg.AsyncConnection):
            return await run(self._conn, read)
        return await to_thread.run_sync(run, self._conn, read)

    async def rows(
        self, statement: sql.SQL | sql.Composed, **parameters: object
    ) -> list[dict[str, Any]]:
        """Run a statement and return its rows as dictionaries."""
        return await self.run(Read(statement, parameters, list))


class Database:
    """Opens transactions for a principal.

    Args:
        pool: For reading; its login is a member of the reader role.
        write_pool: For restoring versions, with a login that may update workflows; None: the pages
            are read-only.
        undo_pool: For undoing, with a login that may read the log and change the tables; None: that
            is not offered.
        reader_role: The role for reads, subject to row-level security.
        timeout: Seconds after which a read is canceled.
    """

    def __init__(
        self,
        pool: Pool,
        write_pool: Pool | None,
        undo_pool: Pool | None,
        reader_role: str,
        timeout: float,
    ) -> None:
        self._pool = pool
        self._write_pool = write_pool
        self._undo_pool = undo_pool
        # One message: reads use neither the login's other rights nor writes.
        self._as_reader = sql.SQL(
            "set local role {}; set local transaction_read_only = {};"
            " set local statement_timeout = {}"
        )
        self._role = sql.Identifier(reader_role)
        self._timeout = sql.Literal(f"{int(timeout * 1000)}ms")

    @property
    def may_write(self) -> bool:
        """Whether there is a pool to restore versions with."""
        return self._write_pool is not None

    @property
    def may_undo(self) -> bool:
        """Whether there is a pool to undo changes with."""
        return self._undo_pool is not None

    @asynccontextmanager
    async def reading(
        self, request: Request, principal: Principal, *, read_only: bool = True
    ) -> AsyncIterator[Session]:
        """Open a transaction of the reader role; read-only, except to record an export."""
        setup = self._as_reader.format(
            self._role, sql.SQL("on" if read_only else "off"), self._timeout
        )
        context = context_of(request, principal)
        async with connection(self._pool) as conn:
            if isinstance(conn, psycopg.AsyncConnection):
                async with request_context(conn, context, record_failure=False):
                    await conn.execute(setup)
                    yield Session(conn)
                return
            block = request_context(conn, context, record_failure=False)
            async with _in_thread(block):
                await to_thread.run_sync(conn.execute, setup)
                yield Session(conn)

    @asynccontextmanager
    async def writing(
        self, request: Request, principal: Principal, action: str, reason: str | None = None
    ) -> AsyncIterator[Session]:
        """Open a transaction of the host's own login; a failure is recorded under `action`."""
        assert self._write_pool is not None, "ask may_write first"  # noqa: S101
        context = context_of(request, principal)
        if reason is not None:
            context = context.merge(reason=reason)
        async with connection(self._write_pool) as conn:
            if isinstance(conn, psycopg.AsyncConnection):
                async with request_context(conn, context, action=action):
                    yield Session(conn)
                return
            async with _in_thread(request_context(conn, context, action=action)):
                yield Session(conn)

    @asynccontextmanager
    async def undoing(
        self, request: Request, principal: Principal, reason: str | None = None
    ) -> AsyncIterator[Session]:
        """Open a transaction of the login that undoes changes."""
        assert self._undo_pool is not None, "ask may_undo first"  # noqa: S101
        context = context_of(request, principal)
        if reason is not None:
            context = context.merge(reason=reason)
        limit = sql.SQL("set local statement_timeout = {}").format(self._timeout)
        async with connection(self._undo_pool) as conn:
            # Its login need not be one that may record an attempt.
            if isinstance(conn, psycopg.AsyncConnection):
                async with request_context(conn, context, record_failure=False):
                    await conn.execute(limit)
                    yield Session(conn)
                return
            async with _in_thread(request_context(conn, context, record_failure=False)):
                await to_thread.run_sync(conn.execute, limit)
                yield Session(conn)

    async def ping(self) -> None:
        """Check that the database answers.

        Raises:
            psycopg.Error: It does not.
        """
        async with connection(self._pool) as conn:
            await Session(conn).rows(sql.SQL("select 1"))


@asynccontextmanager
async def connection(pool: Pool) -> AsyncIterator[Connection | AsyncConnection]:
    """Take a connection from a pool of either kind."""
    if isinstance(pool, AsyncConnectionPool):
        async with pool.connection() as conn:
            yield conn
        return
    async with _in_thread(pool.connection()) as sync_conn:
        yield sync_conn


@asynccontextmanager
async def _in_thread(block: Any) -> AsyncIterator[Any]:  # noqa: ANN401 - any context manager
    entered = await to_thread.run_sync(block.__enter__)
    try:
        yield entered
    except BaseException as error:
        # Shielded, or a canceled request would leave its transaction open.
        with CancelScope(shield=True):
            await to_thread.run_sync(block.__exit__, type(error), error, error.__traceback__)
        raise
    await to_thread.run_sync(block.__exit__, None, None, None)


def context_of(request: Request, principal: Principal) -> RequestContext:
    """Return the context of a request: the host's bound context, else values from the request."""
    found = current_context()
    if found.ip is None and found.correlation_id is None:
        headers = request.headers
        found = RequestContext(
            # Only the host knows the client behind a proxy, and can bind it in a context.
            ip=parse_address(request.client.host) if request.client else None,
            user_agent=header_text(headers.get("user-agent")),
            correlation_id=correlation_id(headers.get("x-request-id"), headers.get("traceparent")),
        )
    return found.merge(
        actor_id=principal.actor_id,
        actor_label=principal.actor_label,
        org_id=principal.org_id,
        org_label=principal.org_label,
        auth_method=principal.auth_method,
        api_key_id=principal.api_key_id,
    )
