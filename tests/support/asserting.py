"""What tests look at, and how they wait for it."""

import time
from collections.abc import Callable, Iterator
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from pgaudit_wf.archive.read import whole_trail
from pgaudit_wf.trail.event import TrailEntry
from support.server import Conn


def events(conn: Conn, columns: LiteralString = "action") -> list[Any]:
    """What the triggers of attached tables recorded, oldest first."""
    return conn.execute(
        sql.SQL(
            "select {} from pgaudit_wf.security_audit_log"
            " where captured and action not like 'audit.%' order by id"
        ).format(sql.SQL(columns))
    ).fetchall()


def application_trail(*args: Any, **options: Any) -> Iterator[TrailEntry]:  # noqa: ANN401
    """`whole_trail` without what says that a part of the trail was archived or pruned."""
    return (one for one in whole_trail(*args, **options) if not one.action.startswith("audit."))


def fails(conn: Conn, sqlstate: str, message: str, query: LiteralString, *args: object) -> str:
    """Hold that a statement is refused so; returns the error's detail."""
    with pytest.raises(psycopg.Error) as caught, conn.transaction():
        conn.execute(query, args or None)
    assert caught.value.sqlstate == sqlstate
    assert message in str(caught.value.diag.message_primary)
    return caught.value.diag.message_detail or ""


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Poll a condition; a deadline that is never met on a busy machine costs nothing."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
        time.sleep(0.02)
