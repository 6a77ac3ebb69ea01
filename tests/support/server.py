"""A real server for the session, a template database of each kind, a clone of it for each test.

The server's major version comes from the environment variable PG; without it, the newest embedded
one is taken. Under `pytest -n`, each worker has a server of its own. A test that kills or restarts
a server starts one by itself, as `server` is shared. pytest-postgresql makes and drops the
databases: each template once, when the first test asks for a clone of it.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pytest_postgresql.executors import NoopExecutor
from pytest_postgresql.factories import postgresql_noproc
from pytest_postgresql.janitor import DatabaseJanitor

from pgaudit_wf.dev.binaries import find_binaries
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.schema.migrate import migrate
from support import function_calls

Conn = psycopg.Connection[Any]

OWNER = "wf_owner"
SECRET_MARKER = "never-to-be-logged"


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


class _Server(NoopExecutor):
    """The session's server as pytest-postgresql sees it: templates are made from template0."""

    template_dbname = "template0"


@pytest.fixture(scope="session")
def empty_template(server: DevServer) -> NoopExecutor:
    """What the templates are built on, and `empty_dsn` is cloned from."""
    return _Server(
        host=str(server.socket_dir), port=server.port, user="postgres", options="", dbname="empty"
    )


def _install_core(*, host: str, port: int, user: str, dbname: str, **_: object) -> None:
    dsn = make_conninfo(host=host, port=port, user=user, dbname=dbname)
    migrate(dsn)
    function_calls.prepare(dsn)


def _install_app(*, host: str, port: int, user: str, dbname: str, **_: object) -> None:
    dsn = make_conninfo(host=host, port=port, user=user, dbname=dbname)
    migrate(dsn, with_app_schema=True)
    function_calls.prepare(dsn)


def _give_away(conn: Conn) -> None:
    conn.execute(
        sql.SQL("alter database {} owner to {}").format(
            sql.Identifier(conn.info.dbname), sql.Identifier(OWNER)
        )
    )


def _install_as_owner(*, host: str, port: int, user: str, dbname: str, **_: object) -> None:
    dsn = make_conninfo(host=host, port=port, dbname=dbname)
    with psycopg.connect(dsn, user=user, autocommit=True) as admin:
        admin.execute(sql.SQL("create role {} login").format(sql.Identifier(OWNER)))
        _give_away(admin)
    migrate(make_conninfo(dsn, user=OWNER))
    function_calls.prepare(make_conninfo(dsn, user=user))


core_template = postgresql_noproc(depends_on="empty_template", dbname="core", load=[_install_core])
app_template = postgresql_noproc(depends_on="empty_template", dbname="app", load=[_install_app])
owner_template = postgresql_noproc(
    depends_on="empty_template", dbname="owner", load=[_install_as_owner]
)


class Clone(DatabaseJanitor):
    """A copy of a template for as long as the block lasts.

    Its files are copied. By default, PostgreSQL logs each page that it copies, and leaves behind
    the template's cache of the catalog, which the first session then builds anew.
    """

    def __init__(self, template: NoopExecutor, name: str | None = None) -> None:
        super().__init__(
            host=template.host,
            port=template.port,
            user=template.user,
            dbname=name or template.dbname,
            template_dbname=template.template_dbname,
        )

    def init(self) -> None:
        assert self.template_dbname is not None
        with self.cursor() as cursor:
            cursor.execute(
                sql.SQL("create database {} template {} strategy file_copy").format(
                    sql.Identifier(self.dbname), sql.Identifier(self.template_dbname)
                )
            )


def tables_with_secrets(conn: Conn) -> list[str]:
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
def _cloned(
    request: pytest.FixtureRequest, template: NoopExecutor, user: str | None = None
) -> Iterator[str]:
    server: DevServer = request.getfixturevalue("server")
    with Clone(template) as clone:
        if user is not None:
            # A clone belongs to whoever made it, not to its template's owner.
            with psycopg.connect(server.dsn(clone.dbname), autocommit=True) as admin:
                _give_away(admin)
        try:
            yield server.dsn(clone.dbname, user)
        finally:
            function_calls.collect(server.dsn(clone.dbname))
        if not {"secret", "find_secrets"} & set(request.fixturenames):
            return
        # A test may have set the database a statement timeout.
        with psycopg.connect(server.dsn(clone.dbname), options="-c statement_timeout=0") as search:
            assert tables_with_secrets(search) == [], "a redacted value reached the audit schema"


@pytest.fixture
def dsn(request: pytest.FixtureRequest, core_template: NoopExecutor) -> Iterator[str]:
    """A fresh database with the core schema, as the superuser."""
    with _cloned(request, core_template) as cloned:
        yield cloned


@pytest.fixture
def app_dsn(request: pytest.FixtureRequest, app_template: NoopExecutor) -> Iterator[str]:
    """A fresh database with the core schema and the reference application, attached."""
    with _cloned(request, app_template) as cloned:
        yield cloned


@pytest.fixture
def owner_dsn(request: pytest.FixtureRequest, owner_template: NoopExecutor) -> Iterator[str]:
    """A fresh database installed by its owner, who is not a superuser: as on a managed service."""
    with _cloned(request, owner_template, OWNER) as cloned:
        yield cloned


@pytest.fixture
def empty_dsn(request: pytest.FixtureRequest, empty_template: NoopExecutor) -> Iterator[str]:
    """A fresh database with nothing of ours in it, as the superuser."""
    with _cloned(request, empty_template) as cloned:
        yield cloned


@pytest.fixture
def conn(dsn: str) -> Iterator[Conn]:
    """A connection to `dsn`, in autocommit mode."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def app_conn(app_dsn: str) -> Iterator[Conn]:
    """A connection to `app_dsn`, in autocommit mode."""
    with psycopg.connect(app_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture(params=["compiled", "generic"])
def form(request: pytest.FixtureRequest) -> str:
    """Which triggers attach() makes: those for a superuser, or those for a mere owner."""
    return str(request.param)


@pytest.fixture
def db_dsn(form: str, request: pytest.FixtureRequest) -> str:
    """`dsn` or `owner_dsn`: a database where attach() makes triggers of the given form."""
    return str(request.getfixturevalue("dsn" if form == "compiled" else "owner_dsn"))


@pytest.fixture
def secret() -> Callable[[], str]:
    """Make values for redacted columns; the test's databases are searched for them at its end.

    A test that writes `SECRET_MARKER` by other means uses this fixture for the search only.
    """
    return lambda: f"{SECRET_MARKER}-{uuid.uuid4()}"


@pytest.fixture
def find_secrets() -> Callable[[Conn], list[str]]:
    """The search itself: tables of schema pgaudit_wf with a value made by fixture `secret`."""
    return tables_with_secrets
