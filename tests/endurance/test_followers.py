"""A follower that is killed at any point deals with every event exactly once.

`EVENTS` in the environment (default 5,000) says how many events the writers record at least.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgaudit_wf.dev.server import DevServer
from support.server import Conn

EVENTS = int(os.environ.get("EVENTS", "5000"))
WRITERS = 20

# Deals with events as a job does: writes down what came, and its own place, in one transaction.
# It writes row by row, so that a kill finds it in the middle.
FOLLOWER = """
import sys, psycopg
dsn, batch = sys.argv[1], int(sys.argv[2])
with psycopg.connect(dsn) as conn:
    print("following", flush=True)
    while True:
        rows = conn.execute(
            "select cursor, (event).id from pgaudit_wf.read_as('recorder', %s)", [batch]
        ).fetchall()
        for _, event_id in rows:
            conn.execute("insert into recorded (event_id) values (%s)", [event_id])
        if rows:
            conn.execute(
                "select pgaudit_wf.advance_reader('recorder', %s, %s)", [rows[-1][0], len(rows)]
            )
        conn.commit()
        if not rows and sys.argv[3:] == ["once"]:
            break
"""


def follower(dsn: str, batch: int, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FOLLOWER, dsn, str(batch), *options],
        stdout=subprocess.PIPE,
        text=True,
    )


def prepare(conn: Conn) -> None:
    conn.execute("create table thing (id bigint generated always as identity primary key)")
    conn.execute("select pgaudit_wf.attach('thing')")
    # No unique constraint: a repeat is to be seen, not refused.
    conn.execute(
        "create table recorded (number bigint generated always as identity, event_id bigint)"
    )


def check(conn: Conn) -> int:
    """Assert that each event was recorded once; return how many there are."""
    row = conn.execute(
        """
        select (select count(*) from pgaudit_wf.security_audit_log),
            (select count(*) from recorded), (select count(distinct event_id) from recorded),
            (select count(*) from pgaudit_wf.security_audit_log as l
             where not exists (select from recorded as r where r.event_id = l.id)),
            (select events from pgaudit_wf.reader where name = 'recorder')
        """
    ).fetchone()
    assert row is not None
    logged, recorded, distinct, missing, counted = row
    assert (missing, recorded, distinct, counted) == (0, logged, logged, logged)
    return int(logged)


def write(dsn: str, seed: int, events: int) -> None:
    """Commit at least so many events, in transactions of a few, some slow, some rolled back."""
    chance = random.Random(seed)
    committed = 0
    with psycopg.connect(dsn) as conn:
        while committed < events:
            size = chance.randint(1, 8)
            for _ in range(size):
                conn.execute("insert into thing default values")
                if chance.random() < 0.1:
                    time.sleep(chance.random() * 0.02)
            if chance.random() < 0.25:
                conn.rollback()
            else:
                conn.commit()
                committed += size


def kill_again_and_again(dsn: str, done: threading.Event) -> int:
    chance = random.Random(1)
    kills = 0
    while kills < 2 or not done.is_set():
        with follower(dsn, chance.choice([1, 10, 100, 1000])) as running:
            assert running.stdout is not None
            running.stdout.readline()
            done.wait(chance.random())
            running.send_signal(signal.SIGKILL)
        kills += 1
    return kills


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_each_event_exactly_once_though_it_is_killed(conn: Conn, dsn: str) -> None:
    prepare(conn)
    done = threading.Event()
    with ThreadPoolExecutor(WRITERS + 2) as pool:
        # Two of one name take turns: whichever is killed, the other goes on from its place.
        followers = [pool.submit(kill_again_and_again, dsn, done) for _ in range(2)]
        writers = [pool.submit(write, dsn, seed, EVENTS // WRITERS) for seed in range(WRITERS)]
        try:
            for writer in writers:
                writer.result()
        finally:
            done.set()
        kills = sum(one.result() for one in followers)
    with follower(dsn, 1000, "once") as last:
        assert last.wait(600) == 0
    assert check(conn) >= EVENTS
    assert kills >= 4
    rolled_back = conn.execute("select max(id) - count(*) from thing").fetchone()
    assert rolled_back is not None
    assert rolled_back[0] > EVENTS / 20, "many transactions were rolled back"


@pytest.mark.slow
def test_the_cursor_survives_dump_and_restore_into_a_new_cluster(
    conn: Conn, dsn: str, server: DevServer
) -> None:
    prepare(conn)
    # So that the new cluster's transaction ids are far below the ones in the log.
    conn.execute(
        "do $$ begin"
        " for i in 1 .. 20000 loop perform pg_current_xact_id(); commit; end loop;"
        " end $$"
    )
    for seed in range(3):
        write(dsn, seed, 50)
    with follower(dsn, 40, "once") as first:
        assert first.wait(60) == 0
    write(dsn, 4, 100)
    name = str(conninfo_to_dict(dsn)["dbname"])
    dump = subprocess.run(
        [str(server.bin("pg_dump")), "-Fc", dsn], check=True, capture_output=True
    ).stdout
    with DevServer(server.binaries) as new:
        with psycopg.connect(new.dsn(), autocommit=True) as admin:
            for role in ("pgaudit_wf_owner", "pgaudit_wf_app", "pgaudit_wf_reader"):
                admin.execute(f"create role {role} nologin".encode())
            admin.execute(f"create database {name}".encode())
        subprocess.run(
            [str(new.bin("pg_restore")), "--exit-on-error", "-d", new.dsn(name)],
            input=dump,
            check=True,
            capture_output=True,
        )
        address = new.dsn(name)
        with psycopg.connect(address, autocommit=True) as there:
            ids = there.execute(
                "select pg_current_xact_id()::text::bigint, max(tx_id)"
                " from pgaudit_wf.security_audit_log"
            ).fetchone()
            assert ids is not None
            assert ids[0] < ids[1], "transaction ids have started over"
            write(address, 5, 100)
            with follower(address, 30, "once") as second:
                assert second.wait(60) == 0
            write(address, 6, 100)
            with follower(address, 30, "once") as third:
                assert third.wait(60) == 0
            assert check(there) >= 450


def test_a_batch_that_is_rolled_back_comes_again(conn: Conn) -> None:
    prepare(conn)
    conn.execute("insert into thing select from generate_series(1, 5)")
    with conn.transaction(force_rollback=True):
        rows = conn.execute("select cursor from pgaudit_wf.read_as('recorder', 3)").fetchall()
        conn.execute("select pgaudit_wf.advance_reader('recorder', %s, 3)", [rows[-1][0]])
    with conn.transaction():
        rows = conn.execute(
            "select cursor, (event).id from pgaudit_wf.read_as('recorder', 1000)"
        ).fetchall()
        for _, event_id in rows:
            conn.execute("insert into recorded (event_id) values (%s)", [event_id])
        conn.execute(
            "select pgaudit_wf.advance_reader('recorder', %s, %s)", [rows[-1][0], len(rows)]
        )
    # With the event of the table's attachment.
    assert check(conn) == 6
    with pytest.raises(psycopg.Error) as caught:
        conn.execute("select pgaudit_wf.advance_reader('nobody', %s, 1)", [rows[-1][0]])
    assert caught.value.sqlstate == "PA008"
