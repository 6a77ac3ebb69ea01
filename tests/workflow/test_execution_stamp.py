"""Runs say which credential started them and which definition ran, for good."""

from collections.abc import Iterator
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.workflow.definition import content_hash
from support.server import Conn

ID = "11111111-1111-4111-8111-111111111111"
RUN = "22222222-2222-4222-8222-222222222222"
NODES = [{"id": "a", "type": "action", "data": {"label": "A"}}]
OTHER = [{"id": "a", "type": "action", "data": {"label": "B"}}]
STAMP: LiteralString = (
    "select triggered_by_credential_type, triggered_by_credential_label, executed_workflow_hash "
    "from workflow_execution"
)
RUN_TABLE: LiteralString = (
    "create table run (id int primary key, workflow_id text, executed_workflow_hash text, "
    "triggered_by_credential_type text, triggered_by_credential_label text)"
)


@pytest.fixture
def db(app_conn: Conn) -> Conn:
    app_conn.execute("insert into organization (id, name) values ('o_1', 'One')")
    app_conn.execute(
        "insert into app_user (id, email, name) values ('u_1', 'ada@example.com', 'Ada')"
    )
    app_conn.execute(
        "insert into api_key (id, org_id, user_id, name, key_prefix, key_hash) values "
        "('k_hook', null, 'u_1', 'hook', 'wfb_51c…', 'h1'), "
        "('k_org', 'o_1', 'u_1', 'ci', 'kh_9f2…', 'h2')"
    )  # fmt: skip
    app_conn.execute(
        "insert into workflow (id, org_id, name, nodes) values (%s, 'o_1', 'W', %s)",
        [ID, Jsonb(NODES)],
    )
    return app_conn


def run(conn: Conn, **context: str) -> None:
    with conn.transaction():
        for key, value in context.items():
            conn.execute("select set_config(%s, %s, true)", [f"app.{key}", value])
        conn.execute("insert into workflow_execution (id, workflow_id) values (%s, %s)", [RUN, ID])


def hashes(conn: Conn) -> list[str | None]:
    rows = conn.execute("select executed_workflow_hash from run order by id").fetchall()
    return [value for (value,) in rows]


@pytest.mark.parametrize(
    ("context", "kind", "label"),
    [
        ({"api_key_id": "k_hook"}, "webhook_key", "wfb_51c…"),
        ({"api_key_id": "k_org", "auth_method": "api_key"}, "org_api_key", "kh_9f2…"),
        # What the key is known to be counts, not what the request says.
        ({"api_key_id": "k_hook", "auth_method": "session"}, "webhook_key", "wfb_51c…"),
        ({"api_key_id": "unknown"}, "org_api_key", "unknown"),
        ({"auth_method": "oauth", "actor_id": "u_1"}, "oauth", "ada@example.com"),
        ({"auth_method": "session", "actor_id": "u_1", "actor_label": "Ada L"}, "session", "Ada L"),
        ({"actor_id": "u_9"}, "session", "u_9"),
        ({"auth_method": "internal"}, "internal", "postgres"),
        ({}, "internal", "postgres"),
    ],
)
def test_each_kind_of_credential(db: Conn, context: dict[str, str], kind: str, label: str) -> None:
    run(db, **context)
    assert db.execute(STAMP).fetchone() == (kind, label, content_hash(NODES, []))


def test_an_application_cannot_forge_the_stamp(db: Conn) -> None:
    db.execute(
        "insert into workflow_execution (workflow_id, triggered_by_credential_type, "
        "triggered_by_credential_label, executed_workflow_hash) values (%s, 'oauth', 'forged', %s)",
        [ID, "0" * 64],
    )
    assert db.execute(STAMP).fetchone() == ("internal", "postgres", content_hash(NODES, []))


@pytest.mark.parametrize(
    "change",
    [
        "triggered_by_credential_type = 'oauth'",
        "triggered_by_credential_label = null",
        "executed_workflow_hash = null",
        "status = 'failed', triggered_by_credential_label = 'somebody else'",
    ],
)
def test_the_stamp_cannot_be_altered(db: Conn, change: LiteralString) -> None:
    run(db)
    before = db.execute(STAMP).fetchone()
    for statement in (
        f"update workflow_execution set {change}",
        f"insert into workflow_execution (id, workflow_id) values ('{RUN}', '{ID}') "
        f"on conflict (id) do update set {change}",
        f"set session_replication_role = replica; update workflow_execution set {change}",
    ):
        with pytest.raises(psycopg.Error) as caught:
            db.execute(statement.encode())
        assert caught.value.sqlstate == "PA303"
    db.execute("set session_replication_role = origin")
    assert db.execute(STAMP).fetchone() == before
    db.execute("update workflow_execution set status = 'succeeded', finished_at = now()")


def test_the_stamp_outlives_key_user_and_workflow(db: Conn) -> None:
    run(db, api_key_id="k_org", actor_id="u_1")
    db.execute("update workflow set nodes = %s", [Jsonb(OTHER)])
    for table in ("api_key", "workflow", "app_user", "organization"):
        db.execute(f"delete from {table}".encode())
    assert db.execute(
        "select credential_type, credential_label, executed_workflow_hash, version, "
        "snapshot -> 'nodes' "
        "from pgaudit_wf.execution_attribution('workflow_execution', %s)",
        [RUN],
    ).fetchone() == ("org_api_key", "kh_9f2…", content_hash(NODES, []), 1, NODES)  # fmt: skip


def test_a_run_is_of_the_version_that_was_current(db: Conn) -> None:
    with db.transaction():
        db.execute("update workflow set nodes = %s", [Jsonb(OTHER)])
        run(db)
    db.execute("update workflow set nodes = %s", [Jsonb(NODES)])
    assert db.execute(
        "select version from pgaudit_wf.execution_attribution('workflow_execution', %s)", [RUN]
    ).fetchone() == (2,)


def test_a_run_of_no_known_workflow_has_no_hash(db: Conn) -> None:
    db.execute("insert into workflow_execution (workflow_id) values (gen_random_uuid())")
    assert db.execute(STAMP).fetchone() == ("internal", "postgres", None)


def test_a_definition_names_its_versions_runs_and_people(db: Conn) -> None:
    run(db, api_key_id="k_org", actor_id="u_1")
    with db.transaction():
        db.execute("set local app.actor_id = 'u_1'")
        db.execute("update workflow set nodes = %s", [Jsonb(OTHER)])
        db.execute("update workflow set nodes = %s", [Jsonb(NODES)])
    db.execute("delete from workflow")
    used = db.execute(
        "select kind, workflow_id, version, execution_id, actor_name, credential_type, "
        "credential_label "
        "from pgaudit_wf.definition_usage(%s) order by kind, version",
        [content_hash(NODES, [])],
    ).fetchall()  # fmt: skip
    assert used == [
        ("run", ID, None, RUN, None, "org_api_key", "kh_9f2…"),
        ("version", ID, 1, None, None, None, None),
        ("version", ID, 3, None, "Ada", None, None),
    ]


def test_what_attach_execution_refuses(conn: Conn) -> None:
    def refused(query: str) -> str | None:
        with pytest.raises(psycopg.Error) as caught:
            conn.execute(query.encode())
        return caught.value.sqlstate

    conn.execute(RUN_TABLE)
    assert refused("select pgaudit_wf.attach_execution('run')") == "PA005"
    conn.execute("create table flow (id text primary key, nodes jsonb, edges jsonb)")
    conn.execute("select pgaudit_wf.attach_workflow('flow')")
    assert refused("select pgaudit_wf.attach_execution('run', hash_column => 'no')") == "PA002"
    conn.execute("select pgaudit_wf.attach_execution('run')")
    conn.execute("insert into flow values ('w', '[]', '[]')")
    conn.execute("insert into run (id, workflow_id) values (1, 'w')")
    assert conn.execute("select executed_workflow_hash from run").fetchone() == (
        content_hash([], []),
    )
    conn.execute("select pgaudit_wf.detach_execution('run')")
    conn.execute("update run set executed_workflow_hash = null")
    assert refused("select pgaudit_wf.detach_execution('run')") == "PA005"


def test_a_run_of_a_workflow_without_a_version_has_no_hash_until_backfill(conn: Conn) -> None:
    conn.execute(RUN_TABLE)
    conn.execute("create table flow (id text primary key, nodes jsonb, edges jsonb)")
    conn.execute("insert into flow values ('w', '[]', '[]')")
    conn.execute("select pgaudit_wf.attach_workflow('flow')")
    conn.execute("select pgaudit_wf.attach_execution('run')")
    conn.execute("insert into run (id, workflow_id) values (1, 'w')")
    conn.execute("select pgaudit_wf.backfill_workflows('flow')")
    conn.execute("insert into run (id, workflow_id) values (2, 'w')")
    assert hashes(conn) == [None, content_hash([], [])]


def test_a_run_of_a_deleted_workflow_names_its_last_version(db: Conn) -> None:
    db.execute("update workflow set nodes = %s", [Jsonb(OTHER)])
    db.execute("delete from workflow")
    run(db)
    assert db.execute(STAMP).fetchone() == ("internal", "postgres", content_hash(OTHER, []))


@pytest.fixture(params=["compiled", "generic"])
def attached(request: pytest.FixtureRequest) -> Iterator[Conn]:
    """A database with attached tables, by its superuser or its owner."""
    dsn: str = request.getfixturevalue("dsn" if request.param == "compiled" else "owner_dsn")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(RUN_TABLE)
        conn.execute(
            "create table flow (id text primary key, nodes jsonb, edges jsonb, enabled boolean)"
        )
        conn.execute("select pgaudit_wf.attach_workflow('flow')")
        conn.execute("select pgaudit_wf.attach_execution('run')")
        conn.execute("insert into flow values ('w', '[]', '[]')")
        yield conn


def test_stamps_follow_renamed_tables(attached: Conn) -> None:
    attached.execute("create schema elsewhere")
    for number, change in enumerate(
        (
            "alter table flow rename to graph",
            "alter table graph set schema elsewhere",
            "alter table run rename to job",
            "alter table job set schema elsewhere",
            "create table flow (id int)",
            "alter schema elsewhere rename to there",
        )
    ):
        attached.execute(change.encode())
        attached.execute("set search_path = public, elsewhere, there")
        table: LiteralString = "run" if number < 2 else "job"
        attached.execute("insert into " + table + " (id, workflow_id) values (%s, 'w')", [number])
    assert attached.execute(
        "select distinct executed_workflow_hash, triggered_by_credential_type from job"
    ).fetchall() == [(content_hash([], []), "internal")]
    assert attached.execute(
        "select version from pgaudit_wf.execution_attribution('job', '0')"
    ).fetchone() == (1,)


def test_a_table_may_have_the_name_of_one_that_was_renamed_or_dropped(attached: Conn) -> None:
    attached.execute("alter table run rename to old_run")
    attached.execute(RUN_TABLE)
    for _ in range(2):
        attached.execute("select pgaudit_wf.attach_execution('run')")
    for table in ("run", "old_run"):
        attached.execute(f"insert into {table} (id, workflow_id) values (1, 'w')".encode())
        attached.execute(f"select pgaudit_wf.detach_execution('{table}')".encode())
    assert hashes(attached) == [content_hash([], [])]
    assert attached.execute(
        "select count(*) from pg_proc where proname like 'stamp\\_%'"
    ).fetchone() == (0,)
    attached.execute("select pgaudit_wf.attach_execution('run')")
    attached.execute("drop table run")
    attached.execute(RUN_TABLE)
    attached.execute("select pgaudit_wf.attach_execution('run')")
    attached.execute("insert into run (id, workflow_id) values (1, 'w')")
    assert hashes(attached) == [content_hash([], [])]


def test_runs_in_partitions_are_stamped(attached: Conn) -> None:
    attached.execute("alter table run rename to first")
    attached.execute(RUN_TABLE + " partition by range (id)")
    attached.execute("create table run_1 partition of run for values from (1) to (2)")
    attached.execute("select pgaudit_wf.attach_execution('run')")
    attached.execute("create table run_2 partition of run for values from (2) to (3)")
    for number in (1, 2):
        attached.execute("insert into run (id, workflow_id) values (%s, 'w')", [number])
        with pytest.raises(psycopg.Error) as caught:
            attached.execute("update run set executed_workflow_hash = null")
        assert caught.value.sqlstate == "PA303"
    assert hashes(attached) == [content_hash([], [])] * 2


NAMES = [
    "t\ndeclare y text := public.injected();--",
    "t*/ declare y text := public.injected(); /*",
    "t'||public.injected()||'",
    '"$function$; select public.injected(); --',
    "t$body$; %s %1$s %I %",
    "pgaudit_wf\\.\r\n-- x",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("as_schema", [False, True], ids=["table", "schema"])
def test_a_name_is_never_code(attached: Conn, name: str, as_schema: bool) -> None:
    attached.execute(
        "create table public.called (at timestamptz default now()); "
        "create function public.injected() returns text language sql as "
        "'insert into public.called default values returning ''''::text'"
    )
    if as_schema:
        attached.execute(sql.SQL("create schema {}").format(sql.Identifier(name)))
        for table in ("run", "flow"):
            attached.execute(
                sql.SQL("alter table {} set schema {}").format(
                    sql.Identifier(table), sql.Identifier(name)
                )
            )
        runs, flows = sql.Identifier(name, "run"), sql.Identifier(name, "flow")
    else:
        runs, flows = sql.Identifier(name), sql.Identifier(f"flow {name}"[:60])
        attached.execute(sql.SQL("alter table run rename to {}").format(runs))
        attached.execute(sql.SQL("alter table flow rename to {}").format(flows))
    for again in range(2):
        attached.execute(sql.SQL("insert into {} (id, workflow_id) values ({}, 'w')").format(
            runs, again))  # fmt: skip
        attached.execute(sql.SQL("update {} set enabled = not coalesce(enabled, false)").format(
            flows))  # fmt: skip
        # Compiled anew under the new name, and for a table that had it from the beginning.
        attached.execute(
            "select pgaudit_wf.detach_execution(%s), pgaudit_wf.detach_workflow(%s)",
            [runs.as_string(attached), flows.as_string(attached)],
        )
        attached.execute("select pgaudit_wf.attach_workflow(%s)", [flows.as_string(attached)])
        attached.execute("select pgaudit_wf.attach_execution(%s)", [runs.as_string(attached)])
    attached.execute(sql.SQL("insert into {} (id, workflow_id) values (9, 'w')").format(runs))
    assert attached.execute(
        sql.SQL("select array_agg(distinct executed_workflow_hash) from {}").format(runs)
    ).fetchone() == ([content_hash([], [])],)
    assert attached.execute(
        "select count(*) from pgaudit_wf.definition_usage(%s) where kind = 'run'",
        [content_hash([], [])],
    ).fetchone() == (3,)
    assert attached.execute("select count(*) from public.called").fetchone() == (0,)


@pytest.fixture
def writer(attached: Conn, server: DevServer) -> Iterator[Conn]:
    """A login that writes runs, and owns nothing."""
    superuser = server.dsn(attached.info.dbname)
    with psycopg.connect(superuser, autocommit=True) as admin:
        admin.execute("create role writer login; grant insert on run to writer")
        try:
            with psycopg.connect(make_conninfo(superuser, user="writer"), autocommit=True) as conn:
                yield conn
        finally:
            admin.execute("drop owned by writer; drop role writer")


def test_types_of_others_run_nothing_with_our_rights(attached: Conn, writer: Conn) -> None:
    attached.execute(
        "create table called (db_user text); grant all on called to public;"
        "create function spy(text) returns boolean language plpgsql as "
        "$$begin insert into public.called values (current_user); return true; end$$;"
        "create domain spying as text check (spy(value));"
        "create type kind as enum ('w');"
        "create function spy_text(kind) returns text language plpgsql as "
        "$$begin insert into public.called values (current_user); return 'w'; end$$;"
        "create cast (kind as text) with function spy_text(kind)"
    )
    warnings: list[str | None] = []
    writer.add_notice_handler(lambda notice: warnings.append(notice.message_primary))
    for number, column in enumerate(
        (
            "executed_workflow_hash",
            "triggered_by_credential_type",
            "triggered_by_credential_label",
        )
    ):
        attached.execute("drop trigger pgaudit_wf_restamp on run")
        attached.execute(f"alter table run alter {column} type spying".encode())
        attached.execute("truncate called")
        writer.execute("insert into run (id, workflow_id) values (1, 'w')")
        assert len(warnings) == number + 1
        with pytest.raises(psycopg.Error) as caught:
            attached.execute("select pgaudit_wf.attach_execution('run')")
        assert caught.value.sqlstate == "PA002"
        attached.execute("delete from run")
        attached.execute(f"alter table run alter {column} type varchar(64)".encode())
        attached.execute("select pgaudit_wf.attach_execution('run')")
    attached.execute("alter table run alter workflow_id type kind using workflow_id::kind")
    writer.execute("insert into run (id, workflow_id) values (2, 'w')")
    assert hashes(attached) == [content_hash([], [])]
    # It is the INSERT itself that has a domain checked.
    assert attached.execute("select distinct db_user from called").fetchall() == [("writer",)]


HASH, WHO = "executed_workflow_hash", "triggered_by_credential_label"
ALTERED: list[tuple[str, tuple[bool, ...], bool]] = [
    (f"rename column {HASH} to hash", (True, True, True), False),
    (f"rename column {WHO} to who", (True, True, True), False),
    ("rename column workflow_id to workflow", (True, True, True), False),
    (f"drop column {HASH}", (True, True), True),
    ("drop column triggered_by_credential_type", (True, True), True),
    ("drop column workflow_id", (False, True, True), True),
    (f"alter column {HASH} type varchar(20) using null", (False, True, True), True),
    (f"alter column {WHO} type int using null", (True, True, False), True),
    (f"alter column {WHO} type varchar(3) using null", (True, True, True), False),
]


@pytest.mark.parametrize(("ddl", "stamp", "warned"), ALTERED)
def test_runs_go_on_when_their_columns_are_altered(
    db: Conn, ddl: str, stamp: tuple[bool, ...], warned: bool
) -> None:
    db.execute(RUN_TABLE)
    db.execute("select pgaudit_wf.attach_execution('run')")
    db.execute("insert into run (id, workflow_id) values (1, %s)", [ID])
    warnings: list[str | None] = []
    db.add_notice_handler(lambda notice: warnings.append(notice.message_primary))
    db.execute(f"alter table run {ddl}".encode())
    assert ["run" in (warning or "") for warning in warnings] == [True] * warned
    columns = [
        str(name)
        for (name,) in db.execute(
            "select attname from pg_attribute where attrelid = 'run'::regclass and attnum > 0"
            " and not attisdropped order by attnum"
        ).fetchall()
    ]
    workflow = [name for name in columns if name.startswith("workflow")]
    values = sql.SQL(", ").join([sql.Literal(2), *(sql.Literal(ID) for _ in workflow)])
    names = sql.SQL(", ").join(sql.Identifier(name) for name in ["id", *workflow])
    db.execute(sql.SQL("insert into run ({}) values ({})").format(names, values))
    stamped = [name for name in columns if name != "id" and name not in workflow]
    assert (
        db.execute(
            sql.SQL("select {} from run where id = 2").format(
                sql.SQL(", ").join(
                    sql.SQL("{} is not null").format(sql.Identifier(n)) for n in stamped
                )
            )
        ).fetchone()
        == stamp
    )
    for name, kept in zip(stamped, stamp, strict=True):
        change = sql.SQL("update run set {} = null where id = 2").format(sql.Identifier(name))
        if kept:
            with pytest.raises(psycopg.Error) as caught:
                db.execute(change)
            assert caught.value.sqlstate == "PA303"
    remedies = db.execute(
        "select remedy from pgaudit_wf.doctor() where problem like '%not stamped in full'"
    ).fetchall()
    assert len(remedies) == warned
    for (remedy,) in remedies:
        db.execute(remedy)
    assert (
        db.execute("select from pgaudit_wf.doctor() where problem like '%stamped%'").fetchall()
        == []
    )


def test_the_columns_that_a_stamp_needs_are_named_and_added_on_request(db: Conn) -> None:
    db.execute(
        'create table "Odd run" (id int primary key, workflow_id text,'
        " triggered_by_credential_label text)"
    )
    with pytest.raises(psycopg.Error, match="three text columns") as caught:
        db.execute("""select pgaudit_wf.attach_execution('"Odd run"')""")
    assert caught.value.sqlstate == "PA002"
    hint = str(caught.value.diag.message_hint)
    assert (
        'alter table public."Odd run" add column executed_workflow_hash text,'
        " add column triggered_by_credential_type text;" in hint
    )
    with pytest.raises(psycopg.Error, match='no column "flow"'):
        db.execute(
            """select pgaudit_wf.attach_execution('"Odd run"', workflow_column => 'flow',"""
            " add_columns => true)"
        )
    db.execute("""select pgaudit_wf.attach_execution('"Odd run"', add_columns => true)""")
    db.execute("""insert into "Odd run" values (1, %s)""", [ID])
    assert db.execute(
        "select executed_workflow_hash, triggered_by_credential_type,"
        """ triggered_by_credential_label from "Odd run" """
    ).fetchall() == [(content_hash(NODES, []), "internal", "postgres")]
