"""Servers made of another one's files: a copy of a stopped cluster, a standby."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from pgaudit_wf.dev.server import DevServer


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def halt(server: DevServer) -> None:
    """Shut a server down cleanly, and keep its files: `start()` goes on."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGINT)
    wait(lambda: server.pid is None)


def copy_files(source: Path, target: Path) -> None:
    """Copy the files of a server that is down in place of another's, with their owner."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def follow(standby: DevServer, primary: DevServer) -> None:
    """Make of a running server a hot standby that streams from another."""
    halt(standby)
    halt(primary)
    copy_files(primary.data_dir, standby.data_dir)
    (standby.data_dir / "standby.signal").touch()
    primary.start()
    standby.restart(
        {"primary_conninfo": f"host={primary.socket_dir} port={primary.port} user=postgres"}
    )


def catch_up(standby: DevServer, primary: DevServer) -> None:
    """Wait until a standby has replayed all that its primary has written."""
    with psycopg.connect(primary.dsn(), autocommit=True) as conn:
        (position,) = conn.execute("select pg_current_wal_insert_lsn()").fetchone() or (None,)
    with psycopg.connect(standby.dsn(), autocommit=True) as conn:
        wait(
            lambda: conn.execute(
                "select pg_last_wal_replay_lsn() >= %s", [position]
            ).fetchone() == (True,)
        )  # fmt: skip


def cut_off(standby: DevServer) -> None:
    """End a standby's streaming, so that it lacks what its primary commits from now on."""
    with psycopg.connect(standby.dsn(), autocommit=True) as conn:
        conn.execute("alter system set primary_conninfo = ''")
        conn.execute("select pg_reload_conf()")
        wait(lambda: not conn.execute("select from pg_stat_wal_receiver").fetchall())
