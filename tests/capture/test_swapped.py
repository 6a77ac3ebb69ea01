"""Tables that take the name of an attached one, and errors that the application should see."""

from __future__ import annotations

import psycopg
import pytest

from support.server import Conn


def findings(conn: Conn) -> list[tuple[str, str]]:
    return conn.execute(
        "select subject, remedy from pgaudit_wf.doctor() where severity = 'error'"
    ).fetchall()


def test_a_table_swapped_in_by_rename_is_named(conn: Conn) -> None:
    conn.execute("create table s (id int primary key, v int)")
    conn.execute("select pgaudit_wf.attach('s')")
    conn.execute("create table s_new (like s including all)")
    with conn.transaction():
        conn.execute("alter table s rename to s_old")
        conn.execute("alter table s_new rename to s")
    assert [subject for subject, _ in findings(conn)] == ["public.s"]
    conn.execute("drop table s_old")
    [(subject, remedy)] = findings(conn)
    assert subject == "public.s"
    conn.execute(remedy)
    assert findings(conn) == []
    conn.execute("insert into s values (1, 1)")
    assert conn.execute(
        "select action from pgaudit_wf.security_audit_log where action !~ '^audit[.]'"
    ).fetchall() == [("s.created",)]


def test_a_table_that_is_dropped_and_created_again_is_named(conn: Conn) -> None:
    for _ in range(2):
        conn.execute("drop table if exists s")
        conn.execute("create table s (id int primary key)")
        conn.execute("select pgaudit_wf.attach('s')")
    conn.execute("drop table s")
    assert findings(conn) == []
    conn.execute("create table s (id int primary key)")
    assert [subject for subject, _ in findings(conn)] == ["public.s"]


def test_a_table_that_was_detached_is_not_named(conn: Conn) -> None:
    conn.execute("create table s (id int primary key)")
    conn.execute("select pgaudit_wf.attach('s')")
    conn.execute("select pgaudit_wf.detach('s')")
    assert findings(conn) == []


def test_a_table_created_again_is_attached_with_all_its_settings(conn: Conn) -> None:
    make = "create table s (id int, k int, org text, label text, hidden text, more text)"
    settings = "select to_jsonb(a) - 'attached_at' - 'target' from pgaudit_wf.attached as a"
    conn.execute(make)
    conn.execute(
        "select pgaudit_wf.attach('s', 'kind', '{k,id}', 'org', 'label', '{more}', '{hidden}',"
        " 'warn', 2000)"
    )
    before = conn.execute(settings).fetchall()
    conn.execute("drop table s")
    conn.execute(make)
    [(_, remedy)] = findings(conn)
    conn.execute(remedy)
    assert conn.execute(settings).fetchall() == before


@pytest.mark.parametrize("code", ["40001", "40P01", "55P03", "53100", "57P01"])
def test_warn_leaves_to_the_application_what_it_can_try_again(conn: Conn, code: str) -> None:
    conn.execute("create table w (id int primary key)")
    conn.execute("select pgaudit_wf.attach('w', on_failure => 'warn')")
    conn.execute(
        "create function fail() returns trigger language plpgsql as"
        " 'begin raise exception using errcode = tg_argv[0]; end'"
    )
    conn.execute(
        "create trigger fail before insert on pgaudit_wf.security_audit_log"
        f" for each row execute function fail('{code}')"
    )
    with pytest.raises(psycopg.Error) as caught:
        conn.execute("insert into w values (1)")
    assert caught.value.sqlstate == code
    assert not conn.execute("select from pgaudit_wf.capture_failure").fetchall()


@pytest.mark.parametrize("code", ["XX000", "22003", "42P01"])
def test_warn_lets_the_write_go_on_after_other_errors(conn: Conn, code: str) -> None:
    conn.execute("create table w (id int primary key)")
    conn.execute("select pgaudit_wf.attach('w', on_failure => 'warn')")
    conn.execute(
        "create function fail() returns trigger language plpgsql as"
        " 'begin raise exception using errcode = tg_argv[0]; end'"
    )
    conn.execute(
        "create trigger fail before insert on pgaudit_wf.security_audit_log"
        f" for each row execute function fail('{code}')"
    )
    conn.execute("insert into w values (1)")
    assert conn.execute("select sqlstate from pgaudit_wf.capture_failure").fetchall() == [(code,)]
