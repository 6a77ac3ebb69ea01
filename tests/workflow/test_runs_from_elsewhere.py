"""Runs that were stamped elsewhere arrive in a subscriber and in a restore as they are."""

import contextlib
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgaudit_wf.dev.binaries import OLDEST_MAJOR, DevServerError, find_binaries
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.schema.migrate import migrate
from pgaudit_wf.workflow.definition import content_hash
from support.server import Conn

TABLES: LiteralString = """
create table flow (id int primary key, nodes jsonb, edges jsonb, enabled boolean);
create table run (
    id int primary key, workflow_id int, status text, executed_workflow_hash text,
    triggered_by_credential_type text, triggered_by_credential_label text
)
"""
ATTACH: LiteralString = (
    "select pgaudit_wf.attach_workflow('flow'); select pgaudit_wf.attach_execution('run')"
)
EMPTY = content_hash([], [])
RUNS: LiteralString = (
    "select id, workflow_id, executed_workflow_hash, triggered_by_credential_type, "
    "triggered_by_credential_label from run order by id"
)
# The last two ran when their workflows were valid; the first before anything was stamped.
STAMPED = [
    (0, 1, None, None, None),
    (1, 1, EMPTY, "webhook_key", "k_hook"),
    (2, 1, EMPTY, "oauth", "Ada"),
    (3, 2, EMPTY, "session", "Ada"),
]

_number = itertools.count()


@pytest.fixture(scope="module")
def publisher() -> Iterator[DevServer]:
    # The oldest, as pg_dump refuses servers that are newer than itself.
    with DevServer(find_binaries(OLDEST_MAJOR), {"wal_level": "logical"}) as running:
        yield running


@pytest.fixture
def source(publisher: DevServer) -> str:
    """A database with runs that were stamped long ago."""
    name = f"source_{next(_number)}"
    with psycopg.connect(publisher.dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    dsn = publisher.dsn(name)
    migrate(dsn)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(TABLES)
        conn.execute("insert into run values (0, 1)")
        conn.execute(ATTACH)
        conn.execute(
            "insert into flow values (1, '[]', '[]'), (2, '[]', '[]'), (3, '[{\"id\": 1}]', '[]')"
        )
        for key, flow, context in (
            (1, 1, {"api_key_id": "k_hook", "auth_method": "webhook_key"}),
            (2, 1, {"auth_method": "oauth", "actor_label": "Ada"}),
            (3, 2, {"auth_method": "session", "actor_label": "Ada"}),
        ):
            insert_run(conn, key, flow, **context)
        # Changed since, enabled, and by the rules of today invalid.
        conn.execute("alter table flow disable trigger pgaudit_wf_guard")
        conn.execute('update flow set nodes = \'[{"id": ""}]\', enabled = true where id < 3')
        conn.execute("alter table flow enable trigger pgaudit_wf_guard")
        assert conn.execute(RUNS).fetchall() == STAMPED
    return dsn


@pytest.fixture(params=["compiled", "generic"])
def target_dsn(request: pytest.FixtureRequest) -> str:
    """A database with the same tables, attached too, by its superuser or its owner."""
    dsn: str = request.getfixturevalue("dsn" if request.param == "compiled" else "owner_dsn")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(TABLES)
        conn.execute(ATTACH)
    return dsn


@pytest.fixture
def target(target_dsn: str) -> Iterator[Conn]:
    with psycopg.connect(target_dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def app(target: Conn, server: DevServer) -> Iterator[Conn]:
    """An application's login, which may write the tables and owns nothing."""
    name = f"app_{next(_number)}"
    superuser = server.dsn(target.info.dbname)
    with psycopg.connect(superuser, autocommit=True) as admin:
        admin.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
        admin.execute(sql.SQL("grant all on flow, run to {}").format(sql.Identifier(name)))
        try:
            with psycopg.connect(make_conninfo(superuser, user=name), autocommit=True) as conn:
                yield conn
        finally:
            admin.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


def insert_run(conn: Conn, key: int, flow: int, **context: str) -> None:
    with conn.transaction():
        for name, value in context.items():
            conn.execute("select set_config(%s, %s, true)", [f"app.{name}", value])
        conn.execute("insert into run (id, workflow_id) values (%s, %s)", [key, flow])


def program(server: DevServer, name: str) -> Path:
    try:
        return server.bin(name)
    except DevServerError:
        pytest.skip(f"{name} is not installed")


def tool(path: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    return subprocess.run(
        [path, *arguments], capture_output=True, text=True, check=False, env=environment
    )


def eventually(check: Callable[[], object], server: DevServer) -> None:
    deadline = time.monotonic() + 30
    while not check():
        assert time.monotonic() < deadline, server.log_file.read_text()[-2000:]
        time.sleep(0.05)


@contextlib.contextmanager
def subscription(server: DevServer, database: str, source: str) -> Iterator[None]:
    parts = conninfo_to_dict(source)
    place = {key: str(parts[key]) for key in ("host", "port", "dbname", "user")}
    with (
        psycopg.connect(source, autocommit=True) as there,
        psycopg.connect(server.dsn(database), autocommit=True) as here,
    ):
        there.execute("create publication everything for table flow, run")
        here.execute(
            sql.SQL("create subscription {} connection {} publication everything").format(
                sql.Identifier(database), sql.Literal(make_conninfo(**place))
            )
        )
        try:
            yield
        finally:
            here.execute(sql.SQL("drop subscription {}").format(sql.Identifier(database)))


def test_a_subscriber_has_the_publishers_stamps(
    server: DevServer, source: str, target: Conn
) -> None:
    with (
        subscription(server, target.info.dbname, source),
        psycopg.connect(source, autocommit=True) as there,
    ):

        def arrives() -> None:
            rows = there.execute(RUNS).fetchall()
            eventually(lambda: target.execute(RUNS).fetchall() == rows, server)

        arrives()  # by the initial copy
        insert_run(there, 4, 3, auth_method="oauth", actor_label="Bob")
        insert_run(there, 5, 9, auth_method="oauth", actor_label="Bob")
        arrives()
        # Also where somebody had every trigger fire always.
        target.execute("alter table run enable always trigger pgaudit_wf_stamp")
        target.execute("alter table flow enable always trigger pgaudit_wf_guard")
        there.execute("alter table flow disable trigger pgaudit_wf_guard")
        there.execute("insert into flow values (4, '[{}]', '[]', true)")
        there.execute("update run set status = 'done'")
        there.execute("update flow set enabled = false; update flow set nodes = '[]'")
        # What the publisher's superuser corrects must not stop the subscription.
        there.execute("alter table run disable trigger pgaudit_wf_restamp")
        there.execute("update run set triggered_by_credential_label = 'Bob B' where id = 4")
        there.execute("alter table run enable always trigger pgaudit_wf_restamp")
        insert_run(there, 6, 1, auth_method="session", actor_label="Cid")
        arrives()
        assert target.execute("select count(*) from run where status = 'done'").fetchone() == (6,)

        # What runs on the subscriber itself is stamped there, and stays so.
        insert_run(target, 7, 1, auth_method="internal")
        assert target.execute(RUNS).fetchall()[-1][:4] == (7, 1, EMPTY, "internal")
        with pytest.raises(psycopg.Error) as caught:
            target.execute("update run set executed_workflow_hash = null where id = 4")
        assert caught.value.sqlstate == "PA303"


@pytest.mark.parametrize(
    "options",
    [[], ["--inserts"], ["--column-inserts", "--enable-row-security"], ["--disable-triggers"]],
    ids=" ".join,
)
def test_a_restore_of_data_only_keeps_the_stamps(
    publisher: DevServer,
    server: DevServer,
    source: str,
    target: Conn,
    target_dsn: str,
    tmp_path: Path,
    options: list[str],
) -> None:
    file = tmp_path / "dump"
    dumped = tool(
        program(publisher, "pg_dump"), "--format=custom", "--data-only", "--table=flow",
        "--table=run", *(o for o in options if "inserts" in o), "--file", file, source,
    )  # fmt: skip
    assert dumped.returncode == 0, dumped.stderr
    # Foreign keys' triggers are the superuser's to disable.
    disabling = "--disable-triggers" in options
    restored = tool(
        program(server, "pg_restore"), "--data-only", "--exit-on-error",
        *(o for o in options if "inserts" not in o), "--dbname",
        server.dsn(target.info.dbname) if disabling else target_dsn, file,
    )  # fmt: skip
    assert restored.returncode == 0, restored.stderr
    assert target.execute(RUNS).fetchall() == STAMPED
    # Nothing is left of the mode.
    target.execute("insert into flow values (9, '[]', '[]')")
    insert_run(target, 9, 9, auth_method="oauth", actor_label="Ada")
    assert target.execute(RUNS).fetchall()[-1] == (9, 9, EMPTY, "oauth", "Ada")


@pytest.mark.parametrize("statement", ["copy", "insert"])
def test_nobody_but_the_owner_can_bring_a_stamp(
    target: Conn, app: Conn, statement: LiteralString
) -> None:
    target.execute("insert into flow values (1, '[]', '[]')")
    columns: LiteralString = (
        "run (id, workflow_id, executed_workflow_hash, triggered_by_credential_type, "
        "triggered_by_credential_label)"
    )

    def bring(conn: Conn, key: int, kind: str | None) -> tuple[Any, ...]:
        row = [key, 1, "0" * 64, kind, "forged"]
        if statement == "copy":
            with conn.cursor() as cursor, cursor.copy("copy " + columns + " from stdin") as copy:
                copy.write_row(row)
        else:
            conn.execute("insert into " + columns + " values (%s, %s, %s, %s, %s)", row)
        rows: list[tuple[Any, ...]] = target.execute(RUNS).fetchall()
        return rows[-1]

    name = app.info.user
    stamped = (EMPTY, "internal", name)
    assert bring(app, 1, "oauth") == (1, 1, *stamped)
    app.execute("set row_security = off")
    app.execute("set application_name = 'pg_restore'")
    assert bring(app, 2, "oauth") == (2, 1, *stamped)
    # Who restores without being entitled is told so, rather than left with other stamps.
    app.execute("set check_function_bodies = off")
    with pytest.raises(psycopg.Error) as caught:
        bring(app, 3, "oauth")
    assert caught.value.sqlstate == "PA303"
    assert bring(app, 3, None) == (3, 1, *stamped)
    with pytest.raises(psycopg.Error) as caught:
        app.execute("set session_replication_role = replica")
    assert caught.value.sqlstate == "42501"

    # The owner's application is stamped too; what he loads in bulk, or restores, stays.
    forged = ("0" * 64, "oauth", "forged")
    owner = (EMPTY, "internal", target.info.user)
    assert bring(target, 4, "oauth") == (4, 1, *(forged if statement == "copy" else owner))
    assert bring(target, 5, None) == (5, 1, *owner)
    target.execute("set check_function_bodies = off")
    assert bring(target, 6, "oauth") == (6, 1, *forged)
    assert bring(target, 7, None) == (7, 1, "0" * 64, None, "forged")


def test_a_member_of_the_owner_restores_too(target: Conn, app: Conn, server: DevServer) -> None:
    name = sql.Identifier(f"owner_{next(_number)}")
    with psycopg.connect(server.dsn(target.info.dbname), autocommit=True) as admin:
        admin.execute(sql.SQL("create role {}").format(name))
        admin.execute(sql.SQL("grant {} to {}").format(name, sql.Identifier(app.info.user)))
        admin.execute(sql.SQL("alter table run owner to {}").format(name))
        app.execute(sql.SQL("set role {}; set check_function_bodies = off").format(name))
        app.execute("insert into run values (1, 1, null, 'h', 'oauth', 'Ada')")
        assert admin.execute(RUNS).fetchall() == [(1, 1, "h", "oauth", "Ada")]
        app.execute("reset role")
        admin.execute(sql.SQL("reassign owned by {0} to current_user; drop role {0}").format(name))
