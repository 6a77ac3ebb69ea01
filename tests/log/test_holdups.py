"""Who waits for whom: attaching behind a reader of the log, and readers behind a transaction."""

from __future__ import annotations

import psycopg

from support.server import Conn


def test_attaching_does_not_wait_for_a_reader_of_the_log(conn: Conn, dsn: str) -> None:
    conn.execute("create table t (id int primary key)")
    (newest,) = conn.execute(
        "select max(partition_name) from pgaudit_wf.log_months()"
    ).fetchone() or (None,)
    conn.execute(f"drop table pgaudit_wf.{newest}")
    notices: list[str] = []
    conn.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    with psycopg.connect(dsn) as dump:
        dump.execute("select count(*) from pgaudit_wf.security_audit_log")
        conn.execute("set statement_timeout = '2s'")
        conn.execute("select pgaudit_wf.attach('t')")
        conn.execute("insert into t values (1)")
        assert any("was not made" in text or "were not made" in text for text in notices)
    assert conn.execute("select pgaudit_wf.ensure_log_partitions()").fetchall() == [(newest,)]


def test_transactions_that_hold_up_readers_are_named(conn: Conn, dsn: str) -> None:
    found = "select subject, remedy from pgaudit_wf._holdups('0')"
    writing = psycopg.connect(dsn)
    with psycopg.connect(dsn) as reading:
        reading.execute("select 1")
        writing.execute("select pg_current_xact_id()")
        pid = writing.info.backend_pid
        assert conn.execute(found).fetchall() == [
            (f"process {pid}", f"select pg_terminate_backend({pid});")
        ]
        assert not conn.execute("select from pgaudit_wf.doctor()").fetchall()
        conn.execute(f"select pg_terminate_backend({pid})")
    writing.close()


def test_prepared_transactions_that_hold_up_readers_are_named(conn: Conn) -> None:
    if conn.execute("show max_prepared_transactions").fetchone() == ("0",):
        return
    conn.execute("begin")
    conn.execute("select pg_current_xact_id()")
    conn.execute("prepare transaction 'it''s'")
    [(subject, remedy)] = conn.execute(
        "select subject, remedy from pgaudit_wf._holdups('0')"
    ).fetchall()
    assert subject == "prepared transaction 'it''s'"
    conn.execute(remedy)
    assert not conn.execute("select from pgaudit_wf._holdups('0')").fetchall()
