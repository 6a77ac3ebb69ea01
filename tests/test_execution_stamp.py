"""Runs say which credential started them and which definition ran, for good."""

from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgaudit_wf.definition import content_hash

Conn = psycopg.Connection[Any]

ID = "11111111-1111-4111-8111-111111111111"
RUN = "22222222-2222-4222-8222-222222222222"
NODES = [{"id": "a", "type": "action", "data": {"label": "A"}}]
OTHER = [{"id": "a", "type": "action", "data": {"label": "B"}}]
STAMP: LiteralString = (
    "select triggered_by_credential_type, triggered_by_credential_label, executed_workflow_hash "
    "from workflow_execution"
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

    conn.execute(
        "create table run (id int primary key, workflow_id text, executed_workflow_hash text, "
        "triggered_by_credential_type text, triggered_by_credential_label text)"
    )
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
