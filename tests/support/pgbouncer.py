"""A PgBouncer in transaction mode before a test's database."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgaudit_wf.dev.server import DevServer
from support.needs import missing

SERVER_CONNECTIONS = 3


@contextmanager
def pooled(server: DevServer, dsn: str) -> Iterator[str]:
    """Where the database of `dsn` is to be found behind a pool of `SERVER_CONNECTIONS`."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        missing("PgBouncer is not installed (Debian: pgbouncer)")
    parts = conninfo_to_dict(dsn)
    host, port, dbname, user = (parts.get(key) for key in ("host", "port", "dbname", "user"))
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        config = directory / "pgbouncer.ini"
        config.write_text(
            f"""
[databases]
{dbname} = host={host} port={port} user={user}
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
        if server.run_as:
            os.chown(directory, server.run_as["user"], server.run_as["group"])
        with (directory / "log").open("w") as log:
            process = subprocess.Popen(
                [program, str(config)], stdout=log, stderr=subprocess.STDOUT, **server.run_as
            )
        try:
            pooled = make_conninfo(host=name, port=6432, dbname=dbname, user=user)
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


@pytest.fixture
def pooled_dsn(server: DevServer, dsn: str) -> Iterator[str]:
    """The database of `dsn` behind a PgBouncer that has `SERVER_CONNECTIONS`."""
    with pooled(server, dsn) as address:
        yield address
