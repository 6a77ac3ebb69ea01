"""DDL that computes new values for rows: `row_as_of` is right, or says that it cannot know."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

import psycopg
import pytest

from pgaudit_wf.trail.statement import one

Conn = psycopg.Connection[Any]

REWRITES = {
    "a volatile default": "alter table t add column token uuid default gen_random_uuid()",
    "a clock": "alter table t add column made timestamptz default clock_timestamp()",
    "a stored expression": "alter table t add column twice int generated always as (v * 2) stored",
    "an identity": "alter table t add column n bigint generated always as identity",
    "using": "alter table t alter column v type int using v * 100",
    "another type": "alter table t alter column v type numeric(10, 2)",
}


def now(conn: Conn) -> datetime:
    (at,) = one(conn, "select clock_timestamp()")
    return cast(datetime, at)


def as_of(conn: Conn, key: str = "1", at: datetime | None = None) -> object:
    asked = "select pgaudit_wf.row_as_of('t', %s, coalesce(%s, clock_timestamp()))"
    return one(conn, asked, [key, at])[0]


def present(conn: Conn, key: int = 1) -> object:
    return one(conn, "select to_jsonb(t) from t where id = %s", [key])[0]


def make(conn: Conn, *, attached_first: bool) -> None:
    conn.execute("create table t (id int primary key, v int)")
    if attached_first:
        conn.execute("select pgaudit_wf.attach('t')")
    conn.execute("insert into t values (1, 5), (2, 6)")
    if not attached_first:
        conn.execute("select pgaudit_wf.attach('t')")


@pytest.mark.parametrize("attached_first", [True, False])
@pytest.mark.parametrize("name", REWRITES)
def test_what_a_row_is_now_is_known(conn: Conn, name: str, attached_first: bool) -> None:
    make(conn, attached_first=attached_first)
    conn.execute(REWRITES[name].encode())
    assert as_of(conn) == present(conn)
    conn.execute("update t set id = 3 where id = 1")
    conn.execute("update t set v = 9 where id = 3")
    assert as_of(conn, "3") == present(conn, 3)
    conn.execute("delete from t where id = 2")
    assert as_of(conn, "2") is None
    assert conn.execute(
        "select action from pgaudit_wf.security_audit_log where action like '%rewritten'"
    ).fetchall() == [("t.rewritten",)]


@pytest.mark.parametrize("name", REWRITES)
def test_what_a_row_was_before_comes_from_the_log(conn: Conn, name: str) -> None:
    make(conn, attached_first=True)
    before = now(conn)
    conn.execute(REWRITES[name].encode())
    assert as_of(conn, at=before) == {"id": 1, "v": 5}


@pytest.mark.parametrize("name", ["using", "another type"])
def test_a_row_that_the_log_does_not_know_is_an_error(conn: Conn, name: str) -> None:
    make(conn, attached_first=False)
    before = now(conn)
    conn.execute(REWRITES[name].encode())
    with pytest.raises(psycopg.Error, match=r"row 1 of public\.t .* is unknown") as caught:
        as_of(conn, at=before)
    assert caught.value.sqlstate == "PA010"


def test_an_added_column_does_not_hide_what_was_before(conn: Conn) -> None:
    make(conn, attached_first=False)
    before = now(conn)
    conn.execute(REWRITES["a volatile default"].encode())
    assert as_of(conn, at=before) == {"id": 1, "v": 5}


def test_a_deleted_row_is_known_from_its_deletion(conn: Conn) -> None:
    make(conn, attached_first=True)
    conn.execute(REWRITES["using"].encode())
    between = now(conn)
    conn.execute("delete from t where id = 1")
    assert as_of(conn, at=between) == {"id": 1, "v": 500}


def test_a_reader_without_the_table_is_told(conn: Conn) -> None:
    make(conn, attached_first=True)
    conn.execute(REWRITES["using"].encode())
    conn.execute("create policy all_of_it on pgaudit_wf.security_audit_log for select using (true)")
    conn.execute("set role pgaudit_wf_reader")
    with pytest.raises(psycopg.Error) as caught:
        as_of(conn)
    assert caught.value.sqlstate == "PA010"


def test_partitions_are_one_event(conn: Conn) -> None:
    conn.execute("create table t (id int primary key, v int) partition by range (id)")
    for n in range(3):
        conn.execute(f"create table t{n} partition of t for values from ({n}0) to ({n + 1}0)")
    conn.execute("select pgaudit_wf.attach('t')")
    conn.execute("insert into t values (1, 5)")
    conn.execute("alter table t alter column v type bigint")
    assert as_of(conn) == present(conn)
    assert conn.execute(
        "select count(*) from pgaudit_wf.security_audit_log where action = 't.rewritten'"
    ).fetchone() == (1,)


@pytest.mark.parametrize(
    "statement",
    [
        "alter table t alter column w type text",
        "alter table t add column d timestamptz default now()",
        "alter table t set (fillfactor = 50)",
        "alter table t set unlogged",
        "cluster t using t_pkey",
    ],
)
def test_what_changes_no_value_is_no_event(conn: Conn, statement: str) -> None:
    conn.execute("create table t (id int primary key, w varchar(9))")
    conn.execute("select pgaudit_wf.attach('t')")
    conn.execute("insert into t values (1, 'a')")
    conn.execute(statement.encode())
    assert as_of(conn) == present(conn)
    assert not conn.execute(
        "select from pgaudit_wf.security_audit_log where action like '%rewritten'"
    ).fetchall()
