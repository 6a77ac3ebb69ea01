"""A standby that pg_createsubscriber makes a subscriber of, and that takes over."""

from __future__ import annotations

import subprocess

import psycopg
import pytest

from pgaudit_wf.dev.binaries import find_binaries
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.schema.migrate import migrate
from support.asserting import wait_until
from support.copied import halt

pytestmark = pytest.mark.slow

SETTINGS: dict[str, str | int | float | bool] = {
    "wal_level": "logical",
    "max_wal_senders": 10,
    "max_replication_slots": 10,
}


def read(conn: psycopg.Connection, cursor: str | None) -> list[tuple[str, int, str]]:
    return conn.execute(
        "select cursor, (event).id, (event).resource_id from pgaudit_wf.read_log(%s, 1000)",
        [cursor],
    ).fetchall()


def test_a_standby_made_a_subscriber_takes_over() -> None:
    binaries = find_binaries()
    program = binaries.bindir / "pg_createsubscriber"
    if not program.exists():
        pytest.skip("this server has no pg_createsubscriber, which is new in PostgreSQL 17")
    with DevServer(binaries, SETTINGS) as old, DevServer(binaries, SETTINGS) as new:
        migrate(old.dsn())
        with psycopg.connect(old.dsn(), autocommit=True) as conn:
            conn.execute("create table t (id int primary key, v int)")
            conn.execute("select pgaudit_wf.attach('t')")
            conn.execute("insert into t select g, g from generate_series(1, 50) as g")
            cursor = read(conn, None)[-1][0]
            new.follow(old)
            halt(new)
            publisher = f"host={old.socket_dir} port={old.port} user=postgres dbname=postgres"
            subprocess.run(
                [str(program), "-D", str(new.data_dir), "-P", publisher, "-d", "postgres",
                 "-s", str(new.socket_dir), "-p", str(new.port), "-U", "postgres",
                 "--subscription=up"],
                check=True, capture_output=True, cwd=new.socket_dir, **new.run_as,
            )  # fmt: skip
            new.start()
            conn.execute("insert into t select g, g from generate_series(51, 60) as g")
            conn.execute("update t set v = 0 where id < 5")
            events = conn.execute("select count(*) from pgaudit_wf.security_audit_log").fetchone()
        with psycopg.connect(new.dsn(), autocommit=True) as conn:
            count = "select count(*) from pgaudit_wf.security_audit_log"
            wait_until(lambda: conn.execute(count).fetchone() == events)
            with pytest.raises(psycopg.Error) as refused:
                read(conn, cursor)
            assert refused.value.sqlstate == "PA011"
            conn.execute("drop subscription up")
            conn.execute("select pgaudit_wf.finish_switchover()")
            conn.execute("insert into t values (61, 61)")
            # What the reader had not read, once each, in order; then what was written here.
            assert [key for _, _, key in read(conn, cursor)] == [
                *map(str, range(51, 61)), "1", "2", "3", "4", "61"
            ]  # fmt: skip
            ids = [id_ for _, id_, _ in read(conn, None)]
            assert len(ids) == len(set(ids)) == (events or (0,))[0] + 1
            assert conn.execute("select * from pgaudit_wf.doctor()").fetchall() == []
