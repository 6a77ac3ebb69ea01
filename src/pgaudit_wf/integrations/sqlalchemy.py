"""SQLAlchemy 2: transactions of an engine carry the context that is bound.

Each statement is preceded by `set local` if the context of its transaction is not the one bound: at
the first statement of a transaction, and when something else has been bound since.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.orm import sessionmaker

from pgaudit_wf.context.block import AnyConnection, quoter
from pgaudit_wf.context.values import (
    EMPTY,
    READ_TRANSACTION,
    SETTINGS,
    RequestContext,
    current_context,
    set_local,
)
from pgaudit_wf.errors import AutocommitError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

Target: TypeAlias = "Engine | AsyncEngine | sessionmaker[Any] | async_sessionmaker[Any]"

_KEY = "pgaudit_wf.context"

# For drivers other than psycopg: they prepare statements, so there can only be one.
_SET_CONFIG = text(
    "select " + ", ".join(f"set_config('app.{name}', :{name}, true)" for name in SETTINGS)
)


def install(target: Target) -> None:
    """Make the transactions of an engine carry the context bound with `bind`.

    Do it once, where the engine is made; a second time changes nothing. Statements that bypass
    SQLAlchemy, on a connection from `raw_connection()`, are not seen.

    Args:
        target: An engine or a session factory bound to one, sync or async.

    Raises:
        TypeError: The target is none of these, or a factory without an engine.
        ValueError: The engine is not for PostgreSQL.
    """
    engine = _engine_of(target)
    if engine.dialect.name != "postgresql":
        raise ValueError(f"the engine must be for PostgreSQL, not {engine.dialect.name}")
    for name, listener in _LISTENERS.items():
        if not event.contains(engine, name, listener):
            event.listen(engine, name, listener)


def _engine_of(target: object) -> Engine:
    # By attribute, as the async classes cannot be imported without greenlet.
    if hasattr(target, "kw"):
        target = target.kw.get("bind")
    target = getattr(target, "sync_engine", target)
    if not isinstance(target, Engine):
        raise TypeError(
            "install() takes an Engine or AsyncEngine, or a sessionmaker that is bound to one"
        )
    return target


def _on_begin(conn: Connection, *_: object) -> None:
    conn.info[_KEY] = EMPTY


def _on_rollback_savepoint(conn: Connection, *_: object) -> None:
    # The settings return to the values that they had at the savepoint.
    conn.info[_KEY] = None


def _on_execute(
    conn: Connection, _cursor: object, statement: str, _parameters: object, *_: object
) -> None:
    # In a failed transaction, or after a prepared one, a setting would be an error.
    if statement[:16].lower().startswith(("rollback", "commit prepared")):
        return
    context = current_context()
    if conn.info.get(_KEY) == context:
        return
    if getattr(conn.connection.dbapi_connection, "autocommit", False):
        raise AutocommitError(
            "a context is bound, but the connection is in AUTOCOMMIT mode, where it could not be "
            "attached to a statement; use another isolation level, or an engine without install()"
        )
    # Set first: what follows comes back to this function.
    conn.info[_KEY] = context
    try:
        _set(conn, context)
    except BaseException:
        conn.info[_KEY] = None
        raise


def _set(conn: Connection, context: RequestContext) -> None:
    token = None
    if context.attest is not None:
        token = conn.exec_driver_sql(READ_TRANSACTION).scalar_one()
    if conn.dialect.driver in ("psycopg", "psycopg_async"):
        quote = quoter(cast("AnyConnection", conn.connection.driver_connection))
        conn.exec_driver_sql(
            "; ".join(set_local(context, quote, token)), execution_options={"no_parameters": True}
        )
    else:
        conn.execute(_SET_CONFIG, {name: context.setting(name, token) or "" for name in SETTINGS})


_LISTENERS: dict[str, Callable[..., None]] = {
    "begin": _on_begin,
    "begin_twophase": _on_begin,
    "rollback_savepoint": _on_rollback_savepoint,
    "before_cursor_execute": _on_execute,
}
