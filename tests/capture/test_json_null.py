"""null as JSON has it is told from no value at all, by `json_null` in the operation of the diff."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

Conn = psycopg.Connection[Any]


@pytest.fixture(params=["compiled", "generic"])
def table(conn: Conn, request: pytest.FixtureRequest) -> Conn:
    if request.param == "generic":
        conn.execute("alter event trigger pgaudit_wf_after_ddl disable")
    conn.execute("create domain document as jsonb")
    conn.execute(
        "create table t (id int primary key, b jsonb, j json, d document, s text, r jsonb)"
    )
    conn.execute("select pgaudit_wf.attach('t', redact => '{r}')")
    assert conn.execute("select form from pgaudit_wf.attachment").fetchone() == (request.param,)
    return conn


def newest(conn: Conn) -> list[dict[str, Any]]:
    row = conn.execute(
        "select diff from pgaudit_wf.security_audit_log order by id desc limit 1"
    ).fetchone()
    return list(row[0]) if row else []


def test_rows(table: Conn) -> None:
    table.execute("insert into t values (1, 'null', ' null ', 'null', 'null', 'null')")
    [inserted] = newest(table)
    assert inserted["json_null"] == ["b", "j", "d"]
    table.execute("delete from t")
    [deleted] = newest(table)
    assert deleted["json_null"] == ["b", "j", "d"]
    table.execute("insert into t values (2)")
    [empty] = newest(table)
    assert "json_null" not in empty
    assert empty["value"].keys() == {"id", "b", "j", "d", "s", "r"}


@pytest.mark.parametrize("column", ["b", "j", "d"])
def test_changes(table: Conn, column: str) -> None:
    table.execute("insert into t values (1)")
    for assigned, expected in [
        ("'null'", ["value"]),
        ("null", ["old"]),
        ("'{\"a\": null}'", None),
        ("'null'", ["value"]),
        ("'0'", ["old"]),
        ("null", None),
    ]:
        table.execute(f"update t set {column} = {assigned}".encode())
        [operation] = newest(table)
        assert operation.get("json_null") == expected, assigned
        assert operation["path"] == f"/{column}"


def test_several_at_once(table: Conn) -> None:
    table.execute("insert into t values (1, 'null', null, '1', 'a')")
    table.execute("update t set b = null, j = 'null', d = '2', s = 'b'")
    found = {operation["path"]: operation.get("json_null") for operation in newest(table)}
    assert found == {"/b": ["old"], "/j": ["value"], "/d": None, "/s": None}


def test_hidden_columns_are_not_named_in_json_null(table: Conn) -> None:
    table.execute("insert into t (id, r) values (1, 'null')")
    assert "json_null" not in newest(table)[0]
    table.execute("update t set r = '1'")
    assert "json_null" not in newest(table)[0]
