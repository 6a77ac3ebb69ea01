"""Partitions exist before they are needed, and a row that none fits is not lost."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql

from support.server import Conn

SEEN = (
    "select tableoid::regclass::text, action, tx_id, occurred_at::text "
    "from pgaudit_wf.security_audit_log order by id"
)


def months(conn: Conn, ahead: int) -> list[str]:
    return [
        name
        for (name,) in conn.execute(
            "select to_char(date_trunc('month', now() at time zone 'UTC') "
            '+ make_interval(months => m), \'"security_audit_log_y"YYYY"m"MM\') '
            "from generate_series(0, %s) as m order by m",
            [ahead],
        ).fetchall()
    ]


def partitions(conn: Conn) -> list[str]:
    return [
        name
        for (name,) in conn.execute(
            "select relname::text from pg_inherits join pg_class on oid = inhrelid "
            "where inhparent = 'pgaudit_wf.security_audit_log'::regclass order by relname"
        ).fetchall()
    ]


def record(conn: Conn, action: str, at: str) -> None:
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (action, occurred_at) values (%s, %s)",
        [action, at],
    )


def test_a_fresh_installation_has_them_months_ahead(conn: Conn) -> None:
    assert partitions(conn) == ["security_audit_log_default", *months(conn, 3)]
    assert (
        conn.execute("select from pgaudit_wf.doctor() where severity = 'warning'").fetchall() == []
    )


def test_attach_makes_those_that_time_has_made_necessary(conn: Conn) -> None:
    last = months(conn, 3)[-1]
    conn.execute(sql.SQL("drop table {}").format(sql.Identifier("pgaudit_wf", last)))
    conn.execute("create table thing (id int primary key)")
    conn.execute("select pgaudit_wf.attach('thing')")
    assert last in partitions(conn)


def test_months_are_those_of_utc(conn: Conn) -> None:
    conn.execute("set timezone = 'Pacific/Kiritimati'")
    assert conn.execute("select pgaudit_wf.add_log_partition('2031-01-31')").fetchone() == (
        "security_audit_log_y2031m01",
    )
    for at in ("2030-12-31 23:59:59.999999+00", "2031-01-01 00:00+00", "2031-01-31 23:59:59+00"):
        record(conn, "x", at)
    record(conn, "x", "2031-02-01 00:00+00")
    assert [table for table, *_ in conn.execute(SEEN)] == [
        f"pgaudit_wf.security_audit_log_{name}"
        for name in ("default", "y2031m01", "y2031m01", "default")
    ]


def test_a_row_that_no_partition_fits_waits_and_moves(conn: Conn) -> None:
    for action, at in [("a", "2001-01-31 23:59:59.999999+00"), ("b", "2001-02-01 00:00+00"),
                       ("c", "2001-02-28 12:00+00"), ("d", "2001-03-01 00:00+00")]:  # fmt: skip
        record(conn, action, at)
    before = conn.execute(SEEN).fetchall()
    assert {table for table, *_ in before} == {"pgaudit_wf.security_audit_log_default"}
    assert (
        conn.execute(
            "select severity from pgaudit_wf.doctor() where problem like '%default partition%'"
        ).fetchall()
        == [("warning",)] * 3
    )
    cursors = conn.execute("select cursor, (event).id from pgaudit_wf.read_log()").fetchall()

    assert conn.execute("select pgaudit_wf.add_log_partition('2001-02-14')").fetchone() == (
        "security_audit_log_y2001m02",
    )
    after = conn.execute(SEEN).fetchall()
    assert [row[1:] for row in after] == [row[1:] for row in before]
    assert [table.removeprefix("pgaudit_wf.security_audit_log_") for table, *_ in after] == [
        "default", "y2001m02", "y2001m02", "default",
    ]  # fmt: skip
    # A reader does not notice.
    assert (
        conn.execute("select cursor, (event).id from pgaudit_wf.read_log()").fetchall() == cursors
    )
    assert conn.execute(
        "select (event).action from pgaudit_wf.read_log(%s)", [cursors[0][0]]
    ).fetchall() == [("b",), ("c",), ("d",)]
    assert conn.execute("select pgaudit_wf.add_log_partition('2001-02-01')").fetchone() == (None,)
    for table in ("security_audit_log_default", "security_audit_log_y2001m02"):
        for statement in ("delete from {}", "truncate {}"):
            with pytest.raises(psycopg.Error, match="append-only"):
                conn.execute(sql.SQL(statement).format(sql.Identifier("pgaudit_wf", table)))


def test_a_partition_is_like_the_others(conn: Conn) -> None:
    name = conn.execute("select pgaudit_wf.add_log_partition('2001-01-01')").fetchone()
    current = months(conn, 0)[0]
    details = (
        "select (select array_agg(a.attname || ' ' || a.attnotnull || coalesce("
        "  (select pg_get_expr(adbin, adrelid) from pg_attrdef where adrelid = c.oid "
        "and adnum = attnum), '') "
        "  order by attnum) from pg_attribute as a where attrelid = c.oid and attnum > 0), "
        "(select array_agg(replace(indexrelid::regclass::text, c.relname, '') order by 1) "
        "  from pg_index where indrelid = c.oid) is not null, "
        "(select count(*) from pg_index where indrelid = c.oid), "
        "(select array_agg(tgname::text || tgenabled::text order by tgname) from "
        "pg_trigger where tgrelid = c.oid), "
        "relrowsecurity, relacl::text, obj_description(c.oid, 'pg_class') is not null "
        "from pg_class as c where relname = %s"
    )
    assert name == ("security_audit_log_y2001m01",)
    assert (
        conn.execute(details, [name[0]]).fetchall()
        == conn.execute(details, [current]).fetchall()
        == conn.execute(details, ["security_audit_log_default"]).fetchall()
    )


def test_many_sessions_make_them_at_once_while_others_write(conn: Conn, dsn: str) -> None:
    conn.execute("create table thing (id bigint generated always as identity primary key)")
    conn.execute("select pgaudit_wf.attach('thing')")
    wanted = months(conn, 9)
    for name in months(conn, 3)[1:]:
        conn.execute(sql.SQL("drop table {}").format(sql.Identifier("pgaudit_wf", name)))
    record(conn, "late", "now")
    stop = threading.Event()
    barrier = threading.Barrier(6)

    def make(_: int) -> list[str]:
        with psycopg.connect(dsn, autocommit=True) as own:
            barrier.wait(30)
            return [name for (name,) in own.execute("select pgaudit_wf.ensure_log_partitions(9)")]

    def write(_: int) -> int:
        written = 0
        with psycopg.connect(dsn, autocommit=True) as own:
            barrier.wait(30)
            while not stop.is_set():
                own.execute("insert into thing default values")
                written += 1
        return written

    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(write, n) for n in range(2)]
        makers = [pool.submit(make, n) for n in range(4)]
        try:
            made = [name for maker in makers for name in maker.result(60)]
        finally:
            stop.set()
        written = sum(writer.result(60) for writer in writers)
    assert sorted(made) == wanted[1:]
    assert partitions(conn) == ["security_audit_log_default", *wanted]
    assert conn.execute(
        "select count(*), count(distinct resource_id) from pgaudit_wf.security_audit_log "
        "where action = 'thing.created'"
    ).fetchone() == (written, written)


def test_two_sessions_add_the_same_month_at_once(conn: Conn, dsn: str) -> None:
    record(conn, "late", "2001-01-05")
    barrier = threading.Barrier(4)

    def add(_: int) -> str | None:
        with psycopg.connect(dsn, autocommit=True) as own:
            barrier.wait(30)
            [(name,)] = own.execute("select pgaudit_wf.add_log_partition('2001-01-01')").fetchall()
            return str(name) if name else None

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(add, range(4)))
    assert sorted(made, key=str) == [None, None, None, "security_audit_log_y2001m01"]
    [(table, action, *_)] = conn.execute(SEEN).fetchall()
    assert (table, action) == ("pgaudit_wf.security_audit_log_y2001m01", "late")


def test_a_new_partition_compresses_as_the_log_does(conn: Conn) -> None:
    conn.execute("alter table pgaudit_wf.security_audit_log alter diff set compression pglz")
    (name,) = conn.execute("select pgaudit_wf.add_log_partition('2001-01-01')").fetchone() or ("",)
    assert conn.execute(
        "select array_agg(attname::text) from pg_attribute"
        " where attrelid = format('pgaudit_wf.%%I', %s::text)::regclass and attcompression = 'p'",
        [name],
    ).fetchone() == (["diff"],)
