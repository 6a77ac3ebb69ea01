"""Contexts of clients that share server connections through PgBouncer in transaction mode."""

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgaudit_wf import bind, request_context

CLIENTS, TRANSACTIONS, SERVER_CONNECTIONS = 8, 50, 3

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")


@pytest.fixture
def pooled_dsn(dsn: str) -> Iterator[str]:
    """The database of `dsn` behind a PgBouncer that has few server connections."""
    assert PGBOUNCER is not None
    parts = conninfo_to_dict(dsn)
    host, port, dbname, user = (parts.get(key) for key in ("host", "port", "dbname", "user"))
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        config = directory / "pgbouncer.ini"
        config.write_text(
            f"""
[databases]
pooled = host={host} port={port or 5432} dbname={dbname} user={user}
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {directory}
auth_type = any
pool_mode = transaction
default_pool_size = {SERVER_CONNECTIONS}
max_client_conn = 100
"""
        )
        # PgBouncer refuses to run as root; whoever runs the server can reach its socket.
        owner = Path(str(host)).stat()
        drop: dict[str, Any] = {}
        if os.geteuid() == 0:
            os.chown(directory, owner.st_uid, owner.st_gid)
            drop = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        with (directory / "log").open("w") as log:
            process = subprocess.Popen(
                [PGBOUNCER, str(config)], stdout=log, stderr=subprocess.STDOUT, **drop
            )
        try:
            pooled = make_conninfo(host=name, port=6432, dbname="pooled", user=user)
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(psycopg.OperationalError):
                    psycopg.connect(pooled).close()
                    break
                assert process.poll() is None, (directory / "log").read_text()
                assert time.monotonic() < deadline, (directory / "log").read_text()
                time.sleep(0.05)
            yield pooled
        finally:
            process.terminate()
            process.wait(20)


def test_contexts_of_interleaved_clients_never_mix(
    conn: psycopg.Connection[Any], pooled_dsn: str
) -> None:
    conn.execute("create table note (id text primary key, written_by text)")
    conn.execute("select pgaudit_wf.attach('note')")
    pids: set[int] = set()

    async def client(number: int) -> None:
        chance = random.Random(number)
        # PgBouncer before 1.21 knows no prepared statements.
        async with await psycopg.AsyncConnection.connect(
            pooled_dsn, autocommit=True, prepare_threshold=None
        ) as own:
            for turn in range(TRANSACTIONS):
                key = f"{number}-{turn}"
                fails = chance.random() < 0.2
                with bind(actor_id=f"u_{number}"), contextlib.suppress(ZeroDivisionError):
                    async with request_context(own, correlation_id=key):
                        cursor = await own.execute("select pg_backend_pid()")
                        row = await cursor.fetchone()
                        assert row is not None
                        pids.add(row[0])
                        await asyncio.sleep(chance.random() / 200)
                        await own.execute("insert into note values (%s, %s)", [key, f"u_{number}"])
                        if fails:
                            raise ZeroDivisionError
                # Outside of a block, whatever connection comes, nobody's context is on it.
                cursor = await own.execute(
                    "select nullif(current_setting('app.actor_id', true), ''), "
                    "nullif(current_setting('app.correlation_id', true), '')"
                )
                assert await cursor.fetchone() == (None, None)
                await asyncio.sleep(chance.random() / 500)

    async def main() -> None:
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))

    asyncio.run(main())
    assert 1 < len(pids) <= SERVER_CONNECTIONS
    notes = conn.execute("select id, written_by, written_by, id from note order by id").fetchall()
    events = conn.execute(
        "select resource_id, actor_id, diff -> 0 -> 'value' ->> 'written_by', correlation_id "
        "from pgaudit_wf.security_audit_log where resource_type = 'note' order by resource_id"
    ).fetchall()
    assert CLIENTS * TRANSACTIONS > len(notes) > CLIENTS * TRANSACTIONS / 2
    assert sorted(events) == sorted(notes)
