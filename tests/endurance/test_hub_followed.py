"""Three nodes with eight writers each, and a hub whose follower is killed again and again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import psycopg
import pytest
from psycopg import sql

from pgaudit_wf.dev.binaries import find_binaries
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.hub import add_node, node_status
from pgaudit_wf.integrity.note import SigningKey
from pgaudit_wf.integrity.seal import Sealer
from pgaudit_wf.integrity.verify import verify
from pgaudit_wf.schema.migrate import migrate

pytestmark = pytest.mark.skipif(
    "PGAUDIT_WF_ENDURANCE" not in os.environ,
    reason="takes minutes and every processor: make endurance",
)

NODES, WRITERS, KILLS = 3, 8, 10
SECONDS = float(os.environ.get("HUB_SECONDS", "20"))

# What it has read is in a table, in the transaction that moves it on.
_FOLLOWER = """
import sys, time, psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as conn:
    while True:
        with conn.transaction():
            found = conn.execute("select cursor, (event).id from pgaudit_wf.read_as('mine', 500)")
            rows = found.fetchall()
            if rows:
                with conn.cursor().copy("copy seen (id) from stdin") as copy:
                    for _, number in rows:
                        copy.write_row([number])
                conn.execute("select pgaudit_wf.advance_reader('mine', %s, %s)",
                             [rows[-1][0], len(rows)])
        time.sleep(0 if rows else 0.01)
"""


def write(dsn: str, stop: threading.Event) -> None:
    """Write transactions of three events each, again after the server was away."""
    while not stop.is_set():
        try:
            with psycopg.connect(dsn, autocommit=True) as conn:
                while not stop.is_set():
                    with conn.transaction():
                        for _ in range(3):
                            conn.execute("insert into t (v) values (1)")
        except psycopg.Error:
            time.sleep(0.1)


def test_each_event_is_followed_once_whatever_is_killed() -> None:
    settings: dict[str, str | int] = {
        "wal_level": "logical", "synchronous_commit": "on", "max_logical_replication_workers": 10,
        "max_worker_processes": 20, "wal_retrieve_retry_interval": "200ms",
    }  # fmt: skip
    with ExitStack() as stack:
        center = stack.enter_context(DevServer(find_binaries(), settings))
        nodes = [stack.enter_context(DevServer(find_binaries(), settings)) for _ in range(NODES)]
        with psycopg.connect(center.dsn(), autocommit=True) as admin:
            admin.execute(sql.SQL("create database hub"))
        hub_dsn = center.dsn("hub")
        migrate(hub_dsn)
        for node in nodes:
            migrate(node.dsn())
            with psycopg.connect(node.dsn(), autocommit=True) as conn:
                conn.execute(
                    "create table t (id bigint generated always as identity primary key, v int);"
                    "select pgaudit_wf.attach('t')"
                )
        with psycopg.connect(hub_dsn, autocommit=True) as hub:
            hub.execute("create table seen (number bigint generated always as identity, id bigint)")
            for number, node in enumerate(nodes, 1):
                assert add_node(hub, f"n{number}", node.dsn()) == number
        stop = threading.Event()
        writers = [
            threading.Thread(target=write, args=[node.dsn(), stop])
            for node in nodes
            for _ in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        followers = [subprocess.Popen([sys.executable, "-c", _FOLLOWER, hub_dsn])]
        lags: list[float] = []
        behind: list[int] = []
        for round_ in range(KILLS):
            time.sleep(SECONDS / KILLS)
            followers[-1].send_signal(signal.SIGKILL)
            followers[-1].wait()
            if round_ == 3:
                nodes[0].kill()
                nodes[0].restart()
            if round_ == 6:
                center.kill()
                center.restart()
            followers.append(subprocess.Popen([sys.executable, "-c", _FOLLOWER, hub_dsn]))
            with psycopg.connect(hub_dsn, autocommit=True) as hub:
                for status in node_status(hub):
                    behind.append(status.lag_bytes or 0)
                    lags.append(status.lag_seconds or 0)
        stop.set()
        for writer in writers:
            writer.join()
        stopped = time.monotonic()
        sent: dict[int, list[tuple[int, int]]] = {}
        for number, node in enumerate(nodes, 1):
            with psycopg.connect(node.dsn(), autocommit=True) as conn:
                sent[number] = conn.execute(
                    "select id, tx_id from pgaudit_wf.security_audit_log order by id"
                ).fetchall()
        total = sum(map(len, sent.values()))
        with psycopg.connect(hub_dsn, autocommit=True) as hub:
            seen: list[tuple[int]] = []
            caught_up = 0.0
            while len(seen) < total and time.monotonic() < stopped + 300:
                arrived = hub.execute(
                    "select count(*) from pgaudit_wf.security_audit_log"
                ).fetchone()
                if arrived == (total,) and not caught_up:
                    caught_up = time.monotonic() - stopped
                time.sleep(0.1)
                seen = hub.execute("select id from seen order by number").fetchall()
            time.sleep(1)
            seen = hub.execute("select id from seen order by number").fetchall()
            followers[-1].kill()
            followers[-1].wait()
            read = [row[0] for row in seen]
            assert len(read) == len(set(read)) == total
            transaction: dict[int, tuple[int, int]] = {}
            for number, events in sent.items():
                base = number << 44
                assert {i | base for i, _ in events} <= set(read)
                transaction |= {i: (number, tx) for i, tx in events if i >= base}
            # Each transaction's events in one run.
            runs = [transaction[i] for i in read if i in transaction]
            began = [tx for last, tx in zip([None, *runs], runs, strict=False) if tx != last]
            assert len(began) == len(set(began))
            key = SigningKey.generate("example.com/hub")
            Sealer(key).run(hub)
            assert verify(hub, [key.verifier]).problems == []
        print(
            f"{total} events in {SECONDS:.0f} s, {KILLS} kills; caught up after {caught_up:.1f} s;"
            f" lag {min(lags):.2f} to {max(lags):.2f} s, up to {max(behind) / 1048576:.1f} MiB"
        )
