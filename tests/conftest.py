"""A real server for the session, a template database of each kind, a clone of it for each test.

The server's major version comes from the environment variable PG; without it, the newest embedded
one is taken. Under `pytest -n`, each worker has a server of its own. A test that kills or restarts
a server starts one by itself, as `server` is shared.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import function_calls
from pgaudit_wf.devserver import DevServer, find_binaries
from pgaudit_wf.migrate import migrate

OWNER = "wf_owner"
SECRET_MARKER = "never-to-be-logged"

_number = itertools.count()

# A shell's background job ignores SIGINT, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        help="write tests/capture_golden/ anew from what the database makes now",
    )


@pytest.fixture(scope="session")
def server() -> Iterator[DevServer]:
    """The session's server; not to be stopped, killed or reconfigured by a test."""
    major = os.environ.get("PG")
    settings: dict[str, str | int | float | bool] = {
        "max_connections": 200,
        "max_prepared_transactions": 20,
        **function_calls.SETTINGS,
    }
    # Each test copies a database; where there is room for that, the copies need no disk.
    memory = Path("/dev/shm")
    spacious = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 8 << 30
    binaries = find_binaries(int(major) if major else None)
    with DevServer(binaries, settings, directory=str(memory) if spacious else None) as running:
        yield running


def _administer(server: DevServer, *statements: sql.Composed) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement)


def _template(server: DevServer, name: str, fill: Callable[[str], object], user: str) -> str:
    database = sql.Identifier(name)
    _administer(
        server, sql.SQL("create database {} owner {}").format(database, sql.Identifier(user))
    )
    fill(server.dsn(name, user))
    function_calls.prepare(server.dsn(name))
    # Cloning needs a database that nobody is connected to.
    _administer(
        server,
        sql.SQL("alter database {} allow_connections false").format(database),
        sql.SQL(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = {}"
        ).format(sql.Literal(name)),
    )
    return name


@pytest.fixture(scope="session")
def core_template(server: DevServer) -> str:
    """Name of the database that `dsn` is cloned from."""
    return _template(server, "core_template", migrate, "postgres")


@pytest.fixture(scope="session")
def app_template(server: DevServer) -> str:
    """Name of the database that `app_dsn` is cloned from."""
    return _template(
        server, "app_template", lambda dsn: migrate(dsn, with_app_schema=True), "postgres"
    )


@pytest.fixture(scope="session")
def owner_template(server: DevServer) -> str:
    """Name of the database that `owner_dsn` is cloned from."""
    _administer(server, sql.SQL("create role {} login").format(sql.Identifier(OWNER)))
    return _template(server, "owner_template", migrate, OWNER)


def tables_with_secrets(conn: psycopg.Connection) -> list[str]:
    tables = conn.execute(
        "select oid::regclass::text from pg_class "
        "where relnamespace = to_regnamespace('pgaudit_wf') and relkind = 'r'"
    ).fetchall()
    searches = [
        sql.SQL("select {} where exists (select from {} t where t::text like {})").format(
            sql.Literal(table), sql.SQL(table), sql.Literal(f"%{SECRET_MARKER}%")
        )
        for (table,) in tables
    ]
    if not searches:
        return []
    return [table for (table,) in conn.execute(sql.SQL(" union all ").join(searches)).fetchall()]


@contextmanager
def _clone(server: DevServer, template: str, user: str = "postgres") -> Iterator[str]:
    name = f"test_{next(_number)}"
    database = sql.Identifier(name)
    _administer(
        server,
        sql.SQL("create database {} template {} owner {}").format(
            database, sql.Identifier(template), sql.Identifier(user)
        ),
    )
    try:
        yield server.dsn(name, user)
        # A test may have set the database a statement timeout.
        with psycopg.connect(server.dsn(name), options="-c statement_timeout=0") as search:
            assert tables_with_secrets(search) == [], "a redacted value reached the audit schema"
    finally:
        function_calls.collect(server.dsn(name))
        _administer(server, sql.SQL("drop database {} with (force)").format(database))


@pytest.fixture
def dsn(server: DevServer, core_template: str) -> Iterator[str]:
    """A fresh database with the core schema, as the superuser."""
    with _clone(server, core_template) as cloned:
        yield cloned


@pytest.fixture
def app_dsn(server: DevServer, app_template: str) -> Iterator[str]:
    """A fresh database with the core schema and the reference application, attached."""
    with _clone(server, app_template) as cloned:
        yield cloned


@pytest.fixture
def owner_dsn(server: DevServer, owner_template: str) -> Iterator[str]:
    """A fresh database installed by its owner, who is no superuser: as on a managed service."""
    with _clone(server, owner_template, OWNER) as cloned:
        yield cloned


@pytest.fixture
def empty_dsn(server: DevServer) -> Iterator[str]:
    """A fresh database with nothing of ours in it, as the superuser."""
    with _clone(server, "template0") as cloned:
        yield cloned


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection]:
    """A connection to `dsn`, in autocommit mode."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def app_conn(app_dsn: str) -> Iterator[psycopg.Connection]:
    """A connection to `app_dsn`, in autocommit mode."""
    with psycopg.connect(app_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def secret() -> Callable[[], str]:
    """Make values for redacted columns; each test's database is searched for them at its end."""
    return lambda: f"{SECRET_MARKER}-{uuid.uuid4()}"


@pytest.fixture
def find_secrets() -> Callable[[psycopg.Connection], list[str]]:
    """The search itself: tables of schema pgaudit_wf with a value made by fixture `secret`."""
    return tables_with_secrets


@pytest.fixture
def pooled_dsn(dsn: str) -> Iterator[str]:
    """The database of `dsn` behind a PgBouncer that has 3 server connections."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
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
default_pool_size = 3
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
                [program, str(config)], stdout=log, stderr=subprocess.STDOUT, **drop
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Under `make coverage`, list the functions of the database that no test has called."""
    uncalled = function_calls.uncalled()
    if uncalled:
        terminalreporter.section("functions that no test calls")
        terminalreporter.write("\n".join(uncalled) + "\n")
