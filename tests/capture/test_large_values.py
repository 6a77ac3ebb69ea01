"""A value too large for the log is recorded by its digest, and never taken for another one."""

from __future__ import annotations

import hashlib
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from support.server import Conn

# Where a value ends to be recorded as it is.
JSONB_STRING = 268_435_455


@pytest.fixture(params=["compiled", "generic"])
def db(conn: Conn, request: pytest.FixtureRequest) -> Conn:
    if request.param == "generic":
        conn.execute("alter event trigger pgaudit_wf_after_ddl disable")
    return conn


def newest(conn: Conn) -> dict[str, Any]:
    row = conn.execute(
        "select diff -> 0 from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' order by id desc limit 1"
    ).fetchone()
    assert row is not None
    return dict(row[0])


def digest(value: str | bytes) -> dict[str, object]:
    data = value.encode() if isinstance(value, str) else value
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def now(conn: Conn) -> dict[str, Any]:
    row = conn.execute("select pgaudit_wf.row_as_of('t', '1')").fetchone()
    assert row is not None
    return dict(row[0])


def bounded(conn: Conn, max_value: int | None = 100) -> None:
    conn.execute(
        "create table t (id int primary key, t text, b bytea, j jsonb, d json, a text[], n numeric,"
        " v varchar(20))"
    )
    conn.execute("select pgaudit_wf.attach('t', max_value => %s)", [max_value])


LONG = {
    "t": ("é" * 51, "é" * 50),
    "b": ("\\x" + "00" * 101, "\\x" + "00" * 100),
    "j": ('{"a": "' + "x" * 92 + '"}', '{"a": "' + "x" * 91 + '"}'),
    "d": ('{"a":  "' + "x" * 91 + '"}', '{"a":  "' + "x" * 90 + '"}'),
    "a": ("{" + "x" * 99 + "}", "{" + "x" * 98 + "}"),
    "n": ("9" * 101, "9" * 100),
}


@pytest.mark.parametrize("column", LONG)
def test_max_value_bounds_what_is_recorded(db: Conn, column: str) -> None:
    bounded(db)
    above, below = LONG[column]
    expected = digest(bytes.fromhex(above[2:]) if column == "b" else above)

    db.execute(f"insert into t (id, {column}) values (1, %s)".encode(), [above])
    inserted = newest(db)
    assert inserted["digest"] == [column]
    assert inserted["value"] == dict.fromkeys("tbjdanv") | {"id": 1, column: expected}
    assert now(db) == {name: None for name in "tbjdanv" if name != column} | {"id": 1}

    db.execute(f"update t set {column} = %s".encode(), [below])
    changed = newest(db)
    assert (changed["path"], changed["digest"], changed["old"]) == (
        f"/{column}", ["old"], expected,
    )  # fmt: skip
    assert now(db)[column] == changed["value"]

    db.execute(f"update t set {column} = %s".encode(), [above])
    assert (newest(db)["digest"], newest(db)["value"]) == (["value"], expected)
    assert column not in now(db)
    db.execute("update t set v = 'x'")
    assert column not in now(db)
    db.execute("delete from t")
    deleted = newest(db)
    assert (deleted["digest"], deleted["old"][column]) == ([column], expected)

    db.execute(f"insert into t (id, {column}) values (2, %s)".encode(), [below])
    assert "digest" not in newest(db)


def test_a_value_that_looks_like_a_digest_is_a_value(db: Conn) -> None:
    bounded(db)
    looks = '{"bytes": 101, "sha256": "00"}'
    db.execute("insert into t (id, j) values (1, %s)", [looks])
    assert "digest" not in newest(db)
    assert now(db)["j"] == {"sha256": "00", "bytes": 101}
    # From a value to the very digest of it is a change.
    db.execute("update t set j = %s", [LONG["j"][0]])
    shown = newest(db)["value"]
    db.execute("select pgaudit_wf.attach('t', max_value => 1000)")
    db.execute("update t set j = %s::jsonb", [Jsonb(shown)])
    assert newest(db)["value"] == shown
    assert "value" not in newest(db).get("digest", [])


def test_a_row_is_followed_back_to_where_a_value_was_recorded_by_its_digest(db: Conn) -> None:
    db.execute("create table t (id int primary key, t text, v text)")
    db.execute("insert into t values (1, repeat('x', 200), 'a')")
    db.execute("select pgaudit_wf.attach('t', max_value => 100)")
    # What is there now is shown, whatever its size.
    assert now(db) == {"id": 1, "t": "x" * 200, "v": "a"}
    at = db.execute("select clock_timestamp()").fetchone()
    db.execute("update t set t = 'short', v = 'b'")
    assert now(db) == {"id": 1, "t": "short", "v": "b"}
    row = db.execute("select pgaudit_wf.row_as_of('t', '1', %s)", at).fetchone()
    assert row == ({"id": 1, "v": "a"},)


def test_max_value_is_a_setting_like_the_others(db: Conn) -> None:
    bounded(db, None)

    def setting() -> object:
        return db.execute("select max_value from pgaudit_wf.attached").fetchone()

    assert setting() == (None,)
    for given, expected in [(100, 100), (None, 100), (7, 7), (0, None)]:
        db.execute("select pgaudit_wf.attach('t', max_value => %s)", [given])
        assert setting() == (expected,)
    db.execute("insert into t (id, t) values (1, repeat('x', 1000))")
    assert "digest" not in newest(db)
    detail = db.execute(
        "select array_agg(detail -> 'max_value' order by id) from pgaudit_wf.attachment_history"
    ).fetchone()
    assert detail == ([None, 100, 7, None],)
    with pytest.raises(psycopg.Error, match="max_value") as refused:
        db.execute("select pgaudit_wf.attach('t', max_value => -1)")
    assert refused.value.sqlstate == "PA008"


def test_versions_are_kept_whole_whatever_the_bound(db: Conn) -> None:
    db.execute(
        "create table t (id text primary key, org_id text, name text, description text,"
        " nodes jsonb not null default '[]', edges jsonb not null default '[]', note text)"
    )
    db.execute("select pgaudit_wf.attach_workflow('t', max_value => 10)")
    nodes = '[{"id": "a", "type": "t", "data": {"text": "' + "x" * 100 + '"}}]'
    db.execute(
        "insert into t values (%s, %s, 'a long name', 'a long description', %s, '[]', %s)",
        ["i" * 50, "o" * 50, nodes, "n" * 50],
    )
    row = db.execute(
        "select h.snapshot ->> 'description', h.snapshot -> 'nodes' = %s::jsonb, h.workflow_id,"
        " h.org_id, l.resource_id, l.org_id, l.metadata ->> 'label',"
        " l.diff -> 0 -> 'value' -> 'note'"
        " from pgaudit_wf.workflow_history as h"
        " join pgaudit_wf.security_audit_log as l on l.action !~ '^audit[.]'",
        [nodes],
    ).fetchone()
    assert row is not None
    assert row[:6] == ("a long description", True, "i" * 50, "o" * 50, "i" * 50, "o" * 50)
    assert row[7] == digest("n" * 50)


def test_after_ddl_that_the_generic_form_did_not_see(conn: Conn) -> None:
    conn.execute("alter event trigger pgaudit_wf_after_ddl disable")
    conn.execute("create table t (id int primary key, t text)")
    conn.execute("select pgaudit_wf.attach('t', max_value => 100)")
    conn.execute("alter table t add column more text, add column j json")
    conn.execute("insert into t values (1, 'a', repeat('x', 101), '\"\\u0000\"')")
    inserted = newest(conn)
    assert (inserted["digest"], inserted["value"]["more"]) == (["more"], digest("x" * 101))
    assert inserted["value"]["j"] == '"\\u0000"'
    conn.execute("update t set t = repeat('y', 101), more = 'b'")
    row = conn.execute(
        "select diff from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' order by id desc limit 1"
    ).fetchone()
    assert row is not None
    assert [(op["path"], op["digest"]) for op in row[0]] == [("/more", ["old"]), ("/t", ["value"])]


def test_what_jsonb_cannot_hold(conn: Conn) -> None:
    conn.execute("create table t (id int primary key, t text, b bytea, a int[])")
    conn.execute("select pgaudit_wf.attach('t')")
    conn.execute("insert into t (id, a) values (1, array_fill(1, array[17000000]))")
    assert newest(conn)["digest"] == ["a"]
    assert "a" not in now(conn)
    conn.execute(f"insert into t (id, t) values (2, repeat('x', {JSONB_STRING + 1}))".encode())
    assert (newest(conn)["digest"], newest(conn)["value"]["t"]["bytes"]) == (["t"], 268_435_456)
