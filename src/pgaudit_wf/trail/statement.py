"""One statement for sync and async connections: how typed reads are written and sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import update_wrapper
from inspect import Parameter, Signature, signature
from typing import Any, Generic, LiteralString, ParamSpec, TypeAlias, TypeVar, overload

import psycopg
from psycopg import sql
from psycopg.abc import Params
from psycopg.rows import DictRow, dict_row, tuple_row
from psycopg.types.json import set_json_loads

from pgaudit_wf.errors import translated
from pgaudit_wf.exact_json import loads

Json: TypeAlias = Any
Connection: TypeAlias = psycopg.Connection[Any]
AsyncConnection: TypeAlias = psycopg.AsyncConnection[Any]
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
P = ParamSpec("P")


@dataclass(frozen=True)
class Read(Generic[T_co]):
    """A statement, its parameters, and how to shape its rows; does no I/O itself."""

    statement: sql.SQL | sql.Composed
    parameters: Mapping[str, object]
    shape: Callable[[Sequence[DictRow]], T_co]


@overload
def run(conn: Connection, read: Read[T]) -> T: ...
@overload
def run(conn: AsyncConnection, read: Read[T]) -> Awaitable[T]: ...
@overload
def run(conn: Connection | AsyncConnection, read: Read[T]) -> T | Awaitable[T]: ...


def run(conn: Connection | AsyncConnection, read: Read[T]) -> T | Awaitable[T]:
    """Send a statement; return its result, or an awaitable for an AsyncConnection."""
    if isinstance(conn, psycopg.AsyncConnection):
        return _run_async(conn, read)
    with translated():
        cursor = conn.cursor(row_factory=dict_row)
        set_json_loads(loads, cursor)
        return read.shape(cursor.execute(read.statement, read.parameters).fetchall())


async def _run_async(conn: AsyncConnection, read: Read[T]) -> T:
    with translated():
        cursor = conn.cursor(row_factory=dict_row)
        set_json_loads(loads, cursor)
        await cursor.execute(read.statement, read.parameters)
        return read.shape(await cursor.fetchall())


def one(
    conn: Connection,
    statement: LiteralString | sql.SQL | sql.Composed,
    parameters: Params | None = None,
) -> tuple[Any, ...]:
    """Return the row of a statement that always has one, whatever the row factory.

    Raises:
        psycopg.ProgrammingError: It has none.
    """
    row = conn.cursor(row_factory=tuple_row).execute(statement, parameters).fetchone()
    if row is None:
        raise psycopg.ProgrammingError("the statement returned no row")
    return row


class Statement(Generic[P, T]):
    """A function of a connection, made from one that returns a `Read`.

    `audit_trail(conn, action="x")` sends it: it returns the result, or for an AsyncConnection
    something to await. `audit_trail.read(action="x")` only says what would be sent.
    """

    def __init__(self, build: Callable[P, Read[T]]) -> None:
        self.read = build
        update_wrapper(self, build)

    @overload
    def __call__(self, conn: Connection, /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def __call__(
        self, conn: AsyncConnection, /, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[T]: ...

    def __call__(
        self, conn: Connection | AsyncConnection, /, *args: P.args, **kwargs: P.kwargs
    ) -> T | Awaitable[T]:
        """Run the statement on a connection; await the result on an asynchronous one."""
        return run(conn, self.read(*args, **kwargs))

    @property
    def __signature__(self) -> Signature:
        """The signature that `inspect` shows: the connection and the statement's parameters."""
        taken = signature(self.read).parameters.values()
        return Signature([Parameter("conn", Parameter.POSITIONAL_ONLY), *taken])


def columns(row_type: type, source: LiteralString, leave_out: Container[str] = ()) -> sql.Composed:
    """List the fields of a dataclass as columns of a table or alias."""
    return sql.SQL(", ").join(
        sql.SQL("{}.{}").format(sql.SQL(source), sql.Identifier(field.name))
        for field in fields(row_type)
        if field.name not in leave_out
    )
