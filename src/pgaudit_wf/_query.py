"""One statement for sync and async connections: how typed reads are written down and sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, LiteralString, TypeAlias, TypeVar, overload

import psycopg
from psycopg import sql
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import set_json_loads

from pgaudit_wf._json import loads
from pgaudit_wf.errors import translated

Json: TypeAlias = Any
Connection: TypeAlias = psycopg.Connection[Any]
AsyncConnection: TypeAlias = psycopg.AsyncConnection[Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Read(Generic[T]):
    """A statement, its parameters, and what becomes of its rows; does no input or output itself."""

    statement: sql.Composed
    parameters: Mapping[str, object]
    shape: Callable[[Sequence[DictRow]], T]


@overload
def run(conn: Connection, read: Read[T]) -> T: ...
@overload
def run(conn: AsyncConnection, read: Read[T]) -> Awaitable[T]: ...
@overload
def run(conn: Connection | AsyncConnection, read: Read[T]) -> T | Awaitable[T]: ...


def run(conn: Connection | AsyncConnection, read: Read[T]) -> T | Awaitable[T]:
    """Send a statement; return its result, or for an AsyncConnection something to await."""
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


def columns(row_type: type, source: LiteralString, leave_out: Container[str] = ()) -> sql.Composed:
    """List the fields of a dataclass as columns of a table or alias."""
    return sql.SQL(", ").join(
        sql.SQL("{}.{}").format(sql.SQL(source), sql.Identifier(field.name))
        for field in fields(row_type)
        if field.name not in leave_out
    )
