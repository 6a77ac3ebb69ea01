"""No write is refused for a value of hundreds of megabytes, or for several of them in one row."""

from __future__ import annotations

import os
from typing import Any

import psycopg
import pytest

from support.server import Conn

pytestmark = pytest.mark.skipif(
    "PGAUDIT_WF_ENDURANCE" not in os.environ,
    reason="takes five minutes and 4 GB of memory: make endurance",
)

MIB = 1 << 20
TEXT = f"repeat(chr(34), {200 * MIB})"


def operation(conn: Conn) -> tuple[Any, ...]:
    row = conn.execute(
        "select diff -> 0 ->> 'op', diff -> 0 -> 'digest', pg_column_size(diff #> '{}') / 1048576"
        " from pgaudit_wf.security_audit_log order by id desc limit 1"
    ).fetchone()
    assert row is not None
    return tuple(row)


@pytest.fixture(params=["compiled", "generic"])
def db(conn: Conn, request: pytest.FixtureRequest) -> Conn:
    if request.param == "generic":
        conn.execute("alter event trigger pgaudit_wf_after_ddl disable")
    conn.execute(
        "create table t (id int primary key, a text, b text, c text, raw bytea, doc jsonb,"
        " list text[], points point[], js json)"
    )
    conn.execute("select pgaudit_wf.attach('t')")
    return conn


def test_huge_values(db: Conn, request: pytest.FixtureRequest) -> None:
    generic = "generic" in request.node.name
    # 200 MB of quotes, each of which is two characters in JSON's text.
    db.execute(f"insert into t (id, a) values (1, {TEXT})".encode())
    assert operation(db)[:2] == ("add", ["a"] if generic else None)
    if not generic:
        assert operation(db)[2] == 200
        assert db.execute(
            f"select pgaudit_wf.row_as_of('t', '1') ->> 'a' = {TEXT}".encode()
        ).fetchone() == (True,)
    # The old value and the new one do not fit together.
    db.execute("update t set a = 'x' || left(a, -1)")
    assert operation(db)[:2] == ("replace", ["old", "value"] if generic else ["old"])
    db.execute("update t set a = repeat('x', 314572800), b = a, c = a")
    assert operation(db)[0] == "replace"
    db.execute("delete from t")
    assert operation(db)[0] == "remove"


def test_undo(db: Conn) -> None:
    db.execute("insert into t (id, a, b) values (1, 'small', 'b')")
    huge = "update t set a = repeat('x', 314572800) where id = 1"
    undo = "select decision, conflicts from pgaudit_wf.undo(tx_id => %s)"
    with db.transaction():
        transaction = db.execute("select txid_current()").fetchone()
        db.execute(huge.encode())
    db.execute("update t set b = 'c'")
    assert db.execute(undo, transaction).fetchall() == [("undo", [])]
    assert db.execute("select a, b from t").fetchone() == ("small", "c")
    # What it was is not in the log.
    db.execute(huge.encode())
    with db.transaction():
        transaction = db.execute("select txid_current()").fetchone()
        db.execute("update t set a = 'later'")
    with pytest.raises(psycopg.Error, match="digested"):
        db.execute(undo, transaction)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("raw", "decode(repeat('00', 314572800), 'hex')"),
        ("doc", "to_jsonb(repeat('x', 260000000))"),
        ("list", "array_fill(null::text, array[100000000])"),
        ("points", "array_fill(point(0.1, 0.2), array[20000000])"),
        ("js", "('\"' || repeat('\\u0000', 40000000) || '\"')::json"),
    ],
)
def test_types(db: Conn, column: str, value: str) -> None:
    db.execute(f"insert into t (id, {column}) values (1, {value})".encode())
    assert operation(db)[:2] == ("add", [column])
    db.execute(f"update t set b = 'x', {column} = null".encode())
    db.execute("delete from t")
