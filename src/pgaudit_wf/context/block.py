"""Transactions that carry a request's context, on psycopg connections, sync and async.

The transaction is psycopg's own, except that the statements which begin or end it are sent together
with those that set the context, in one message of the simple query protocol: one round trip,
nothing prepared, safe behind a transaction pooler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeAlias, TypeVar, Unpack, cast, overload
from weakref import WeakKeyDictionary

import psycopg
from psycopg import pq, sql
from psycopg.rows import tuple_row

from pgaudit_wf.context.attempt import (
    Attempt,
    behind,
    check_action,
    failed_attempt,
    record,
    record_async,
)
from pgaudit_wf.context.psycopg_transaction import AsyncContextTransaction, ContextTransaction
from pgaudit_wf.context.values import (
    EMPTY,
    FIELDS,
    READ_TRANSACTION,
    ContextFields,
    RequestContext,
    current_context,
    set_local,
    set_local_changes,
)
from pgaudit_wf.errors import (
    ConnectionUnusableError,
    ContextError,
    FailedTransactionError,
    InvalidContextError,
    TransactionEndedError,
    TransactionInProgressError,
)

Row = TypeVar("Row")
AnyConnection: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

_READ_SETTINGS = sql.SQL("select {}").format(
    sql.SQL(", ").join(
        sql.SQL("current_setting({}, true)").format(sql.Literal(f"app.{name}")) for name in FIELDS
    )
)


REQUEST_FAILED = "request.failed"
# Raised to end a block or a process, not because something failed.
_NO_FAILURE = (psycopg.Rollback, GeneratorExit, KeyboardInterrupt, SystemExit)

_logger = logging.getLogger("pgaudit_wf.request")


@dataclass(slots=True)
class _Attempts:
    """Attempts that the outermost block of a connection records when it ends, however it ends."""

    pending: list[Attempt] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)


@dataclass(slots=True)
class OpenBlock:
    """The innermost `request_context` of a connection."""

    context: RequestContext
    bound: RequestContext
    action: str
    record_failure: bool
    attempts: _Attempts
    token: str | None


open_blocks: WeakKeyDictionary[AnyConnection, OpenBlock] = WeakKeyDictionary()


def active_context(conn: AnyConnection) -> RequestContext | None:
    """Return the context of the innermost `request_context` open on a connection, if any."""
    active = open_blocks.get(conn)
    return active.context if active else None


def quoter(conn: AnyConnection) -> Callable[[str], str]:
    """Return a function that writes literals for this connection's settings and encoding.

    The function raises InvalidContextError for text that the client encoding cannot express.
    """
    encoding = conn.info.encoding
    escaping = pq.Escaping(conn.pgconn)

    def quote(text: str) -> str:
        # Most values are plain, and calling libpq for each is what costs time.
        if text.isascii() and "'" not in text and "\\" not in text:
            return f"'{text}'"
        try:
            raw = text.encode(encoding)
        except UnicodeEncodeError as error:
            raise InvalidContextError(
                f"{text!r} cannot be sent in the connection's client_encoding ({encoding}): {error}"
            ) from None
        return bytes(escaping.escape_literal(raw)).decode(encoding)

    return quote


class _Block:
    """The part of a block that is the same for sync and async connections."""

    def __init__(
        self,
        transaction: ContextTransaction | AsyncContextTransaction,
        given: RequestContext | None,
        fields: ContextFields,
        action: str | None,
        record_failure: bool | None,
    ) -> None:
        self._transaction = transaction
        self._action = None if action is None else check_action(action)
        self._record_failure = record_failure
        # Validates once, before anything is sent.
        self._own = EMPTY.merge(given, **fields)
        self._cleared: ContextFields = {}
        for name, value in fields.items():
            if not value:
                self._cleared[name] = None  # type: ignore[literal-required]
        self._outer: OpenBlock | None = None
        self._active: OpenBlock | None = None
        self._replaced: RequestContext | None = None

    @property
    def _status(self) -> int:
        return self._transaction.pgconn.transaction_status

    def _check_connection(self) -> None:
        conn = self._transaction.connection
        if conn.closed:
            raise ConnectionUnusableError(
                "the connection is closed; open a new one for this request"
            )
        if conn.pgconn.pipeline_status != pq.PipelineStatus.OFF:
            raise ConnectionUnusableError(
                "the connection is in pipeline mode, where statements have not run yet when they "
                "return; open the pipeline inside the request_context block instead"
            )
        if self._status == pq.TransactionStatus.INERROR:
            raise FailedTransactionError(
                "a statement failed earlier in the connection's transaction; roll it back first"
            )
        if self._status == pq.TransactionStatus.ACTIVE:
            raise ConnectionUnusableError(
                "the connection is busy with another statement; let it finish first"
            )
        # psycopg would make a savepoint here and never commit, breaking the block's promise.
        if self._status == pq.TransactionStatus.INTRANS and not conn._num_transactions:
            raise TransactionInProgressError(
                "the connection is already in a transaction, begun by hand or by an earlier "
                "statement on a connection without autocommit, which this block could not commit; "
                "call commit() or rollback() first, or wrap both in conn.transaction()"
            )

    @property
    def _joins_foreign_transaction(self) -> bool:
        conn = self._transaction.connection
        return self._status != pq.TransactionStatus.IDLE and conn not in open_blocks

    def _prepare(self, found: RequestContext | None) -> OpenBlock:
        """Determine the context, and the statements at the block's beginning and end.

        Args:
            found: The context of a transaction begun outside of blocks, if the block joins one.
        """
        conn = self._transaction.connection
        bound = current_context()
        self._outer = open_blocks.get(conn)
        if self._outer is None:
            base = bound
        else:
            # Values bound since the outer block began take precedence over the block's own.
            news = {
                name: getattr(bound, name)
                for name in (*FIELDS, "attest")
                if getattr(bound, name) != getattr(self._outer.bound, name)
            }
            base = self._outer.context.merge(**news)
        context = base.merge(self._own, **self._cleared)
        quote = quoter(conn)
        outer = self._outer
        token = outer.token if outer else None
        self._replaced = before = outer.context if outer else found
        if before is None:
            self._transaction.before, self._transaction.after = set_local(context, quote), []
        else:
            self._transaction.before = set_local_changes(before, context, quote, token)
            # Releasing a savepoint keeps what was set in it; rolling back to it does not.
            self._transaction.after = set_local_changes(context, before, quote, token)
        self._active = OpenBlock(
            context,
            bound,
            self._action or (outer.action if outer else REQUEST_FAILED),
            (outer.record_failure if outer else True)
            if self._record_failure is None
            else self._record_failure,
            outer.attempts if outer else _Attempts(),
            token,
        )
        return self._active

    def _attest(self, active: OpenBlock, token: str) -> str:
        """Return the statement that attests the context, now that the transaction has begun."""
        active.token = token
        quote = quoter(self._transaction.connection)
        if self._replaced is not None:
            self._transaction.after = set_local_changes(
                active.context, self._replaced, quote, token
            )
        signature = active.context.setting("attestation", token) or ""
        return f"set local app.attestation = {quote(signature)}"

    def _entered(self, active: OpenBlock) -> None:
        open_blocks[self._transaction.connection] = active

    def _note_failure(self, error: BaseException | None, stage: str) -> None:
        """Remember why the block failed, unless an inner block failed for the same reason."""
        active = self._active
        if error is None or active is None or not active.record_failure:
            return
        if isinstance(error, _NO_FAILURE):
            return
        try:
            cause: BaseException | None = error
            for _ in range(100):
                if cause is None:
                    break
                if any(cause is known for known in active.attempts.failures):
                    return
                cause = behind(cause)
            active.attempts.failures.append(error)
            active.attempts.pending.append(
                failed_attempt(error, active.context, active.action, stage)
            )
        except Exception as trouble:
            # The application gets its own exception, not ours.
            _logger.error("a failed attempt could not be described: %s", type(trouble).__name__)

    def _to_record(self) -> list[Attempt]:
        """Return the attempts to record now: none before the outermost block ends."""
        if self._outer is not None or self._active is None:
            return []
        return self._active.attempts.pending

    def _left(self) -> None:
        conn = self._transaction.connection
        if self._outer is None:
            open_blocks.pop(conn, None)
        else:
            open_blocks[conn] = self._outer

    def _check_sent(self) -> ContextError | None:
        if self._transaction.entered:
            return None
        return ContextError(
            f"psycopg {psycopg.__version__} is not supported: it opens transactions in a way that "
            "this package does not handle, so the context would not be set"
        )

    def _check_end(self) -> ContextError | None:
        status = self._status
        if status == pq.TransactionStatus.INERROR:
            return FailedTransactionError(
                "a statement failed inside the block and its error was swallowed, so nothing of "
                "the block is kept; let the error leave the block, or run what may fail in "
                "conn.transaction() inside it"
            )
        if self._transaction.connection.closed:
            return TransactionEndedError(
                "the connection was closed inside the block; nothing was committed"
            )
        if status == pq.TransactionStatus.IDLE:
            return TransactionEndedError(
                "the transaction was ended inside the block by a commit or rollback statement; "
                "changes made after it carry no context; leave ending it to the block"
            )
        return None


def _context_of(row: tuple[str | None, ...] | None) -> RequestContext:
    values: dict[str, Any] = dict(zip(FIELDS, row or (), strict=True))
    try:
        return RequestContext(**values)
    except InvalidContextError as error:
        raise InvalidContextError(
            f"the transaction that the block would join carries a context set by hand that could "
            f"not be restored afterwards: {error}"
        ) from None


class ContextBlock(_Block, Generic[Row]):
    """A transaction with a context on a `psycopg.Connection`; see `request_context`."""

    def __init__(
        self,
        conn: psycopg.Connection[Row],
        given: RequestContext | None,
        fields: ContextFields,
        action: str | None = None,
        record_failure: bool | None = None,
    ) -> None:
        self._tx = ContextTransaction(conn)
        super().__init__(self._tx, given, fields, action, record_failure)

    def __enter__(self) -> psycopg.Connection[Row]:
        self._check_connection()
        conn = self._tx.connection
        found = None
        if self._joins_foreign_transaction:
            cursor = conn.cursor(row_factory=tuple_row)
            found = _context_of(cursor.execute(_READ_SETTINGS, prepare=False).fetchone())
        active = self._prepare(found)
        try:
            self._tx.__enter__()
        except psycopg.Error as failure:
            self._note_failure(failure, "begin")
            record(self._tx.connection, self._to_record())
            raise
        if error := self._check_sent():
            self._tx.__exit__(type(error), error, None)
            raise error
        self._entered(active)
        if active.context.attest is not None and active.token is None:
            try:
                cursor = conn.cursor(row_factory=tuple_row)
                (token,) = cursor.execute(READ_TRANSACTION, prepare=False).fetchone() or ("",)
                cursor.execute(self._attest(active, token).encode(), prepare=False)
            except BaseException as failure:
                self.__exit__(type(failure), failure, failure.__traceback__)
                raise
        return cast("psycopg.Connection[Row]", conn)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        failure, stage = exc, "block"
        try:
            if exc is None and (misuse := self._check_end()):
                self._tx.__exit__(type(misuse), misuse, None)
                raise misuse
            return self._tx.__exit__(exc_type, exc, traceback)
        except BaseException as error:
            if failure is None:
                failure, stage = error, "commit"
            raise
        finally:
            self._left()
            self._note_failure(failure, stage)
            if attempts := self._to_record():
                record(self._tx.connection, attempts)


class AsyncContextBlock(_Block, Generic[Row]):
    """A transaction with a context on a `psycopg.AsyncConnection`; see `request_context`."""

    def __init__(
        self,
        conn: psycopg.AsyncConnection[Row],
        given: RequestContext | None,
        fields: ContextFields,
        action: str | None = None,
        record_failure: bool | None = None,
    ) -> None:
        self._tx = AsyncContextTransaction(conn)
        super().__init__(self._tx, given, fields, action, record_failure)

    async def __aenter__(self) -> psycopg.AsyncConnection[Row]:
        self._check_connection()
        conn = self._tx.connection
        found = None
        if self._joins_foreign_transaction:
            cursor = conn.cursor(row_factory=tuple_row)
            await cursor.execute(_READ_SETTINGS, prepare=False)
            found = _context_of(await cursor.fetchone())
        active = self._prepare(found)
        try:
            await self._tx.__aenter__()
        except psycopg.Error as failure:
            self._note_failure(failure, "begin")
            await record_async(self._tx.connection, self._to_record())
            raise
        if error := self._check_sent():
            await self._tx.__aexit__(type(error), error, None)
            raise error
        self._entered(active)
        if active.context.attest is not None and active.token is None:
            try:
                cursor = conn.cursor(row_factory=tuple_row)
                await cursor.execute(READ_TRANSACTION, prepare=False)
                (token,) = await cursor.fetchone() or ("",)
                await cursor.execute(self._attest(active, token).encode(), prepare=False)
            except BaseException as failure:
                await self.__aexit__(type(failure), failure, failure.__traceback__)
                raise
        return cast("psycopg.AsyncConnection[Row]", conn)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        failure, stage = exc, "block"
        try:
            if exc is None and (misuse := self._check_end()):
                await self._tx.__aexit__(type(misuse), misuse, None)
                raise misuse
            return await self._tx.__aexit__(exc_type, exc, traceback)
        except BaseException as error:
            if failure is None:
                failure, stage = error, "commit"
            raise
        finally:
            self._left()
            self._note_failure(failure, stage)
            if attempts := self._to_record():
                await record_async(self._tx.connection, attempts)


@overload
def request_context(
    conn: psycopg.Connection[Row],
    ctx: RequestContext | None = None,
    /,
    *,
    action: str | None = None,
    record_failure: bool | None = None,
    **fields: Unpack[ContextFields],
) -> ContextBlock[Row]: ...


@overload
def request_context(
    conn: psycopg.AsyncConnection[Row],
    ctx: RequestContext | None = None,
    /,
    *,
    action: str | None = None,
    record_failure: bool | None = None,
    **fields: Unpack[ContextFields],
) -> AsyncContextBlock[Row]: ...


def request_context(
    conn: psycopg.Connection[Row] | psycopg.AsyncConnection[Row],
    ctx: RequestContext | None = None,
    /,
    *,
    action: str | None = None,
    record_failure: bool | None = None,
    **fields: Unpack[ContextFields],
) -> ContextBlock[Row] | AsyncContextBlock[Row]:
    """Open a transaction whose changes are attributed to a request; use it in `with`.

        with request_context(conn, actor_id="u_1", org_id="o_1") as conn:
            conn.execute("update api_key set revoked_at = now() where id = %s", [key_id])

    The block commits at the end, and rolls back if an exception leaves it. The context is the one
    bound by `bind`, with `ctx` merged over it and `fields` over both, and ends with the
    transaction. Inside another block on the same connection, this one is a savepoint: it inherits
    the outer context, and the outer context applies again when it ends. The same holds inside
    `conn.transaction()`, at the cost of one more round trip to read the context to restore.

    If an exception leaves the block, or it cannot be committed, a `failed` event is recorded, with
    the context, the exception's class, and the SQLSTATE, table, column and constraint that the
    database names, never a value or a message. It is recorded when the outermost block ends, in a
    transaction of its own (see `configure_attempts` for what happens if the connection is broken),
    and only once, however many blocks the exception passes. A reached limit (PA330) becomes a
    `denied` event, `<resource_type>.limit_reached`. `psycopg.Rollback`, KeyboardInterrupt and
    SystemExit are not failures. The exception is raised unchanged; recording never raises.

    Args:
        conn: A connection outside of any transaction, or inside blocks as described. With
            autocommit or without, from a pool or not. For an AsyncConnection, use `async with`.
        ctx: The context; fields that are None are taken from the bound context.
        action: The action of the `failed` event, for example "invoice_payment.failed". Default:
            the outer block's, else "request.failed".
        record_failure: False for no `failed` event, as when the caller retries. Default: the
            outer block's, else True.
        **fields: Fields of `RequestContext`; None clears the inherited value.

    Raises:
        TypeError: A field does not exist.
        ValueError: The action is empty or has more than 255 bytes.
        InvalidContextError: A value is not valid; raised at once, before anything is sent.
        ConnectionUnusableError: On entering: the connection is closed or in pipeline mode.
        TransactionInProgressError: On entering: a transaction is open that no block began.
        FailedTransactionError: On entering or leaving: a statement had failed, and the error was
            swallowed.
        TransactionEndedError: On leaving: the transaction was ended inside the block.
    """
    if isinstance(conn, psycopg.AsyncConnection):
        return AsyncContextBlock(conn, ctx, fields, action, record_failure)
    return ContextBlock(conn, ctx, fields, action, record_failure)
