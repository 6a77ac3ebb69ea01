"""Typed reads of versions and runs, restore and backfill from Python, sync and async alike."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgaudit_wf import errors, request_context
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.errors import from_database
from pgaudit_wf.workflow.definition import content_hash
from pgaudit_wf.workflow.model import RestoredVersion
from pgaudit_wf.workflow.reads import (
    backfill_batch,
    compare_versions,
    definition_usage,
    execution_attribution,
    restore_workflow,
    validate_definition,
    validate_version,
    version_snapshot,
    workflow_tables,
    workflow_versions,
)
from support.server import Conn

Graph = tuple[list[dict[str, Any]], list[dict[str, Any]]]

FLOW = "11111111-1111-4111-8111-111111111111"
RUNS = "public.workflow_execution"

NODES: list[dict[str, Any]] = [
    {
        "id": "mail",
        "type": "trigger",
        "position": {"x": 1, "y": 2},
        "data": {"label": "Mail", "config": {"triggerType": "Manual"}},
    },
    {
        "id": "ocr",
        "type": "action",
        "data": {
            "label": "OCR",
            "config": {"actionType": "HTTP Request", "endpoint": "https://a", "httpMethod": "GET"},
        },
    },
]
EDGES: list[dict[str, Any]] = [{"id": "e1", "source": "mail", "target": "ocr"}]


def edited() -> Graph:
    nodes = copy.deepcopy(NODES)
    nodes[1]["type"] = "task"
    nodes[1]["data"].update(label="Reader", description="reads", enabled=False)
    nodes[1]["data"]["config"].update(endpoint="https://b", note="1\n2")
    nodes.append({"id": "file", "data": {"type": "action", "label": "File"}})
    return nodes, [{"id": "e2", "source": "mail", "target": "file", "sourceHandle": "true"}]


def save(conn: Conn, nodes: object, edges: object, **changes: object) -> None:
    conn.execute(
        "update workflow set nodes = %s, edges = %s, name = coalesce(%s, name) where id = %s",
        [Jsonb(nodes), Jsonb(edges), changes.get("name"), FLOW],
    )


def start(conn: Conn, workflow: str = FLOW) -> str:
    row = conn.execute(
        "insert into workflow_execution (workflow_id, org_id) values (%s, 'o_acme')"
        " returning id::text",
        [workflow],
    ).fetchone()
    assert row
    return str(row[0])


@pytest.fixture
def world(app_conn: Conn, secret: Callable[[], str]) -> Conn:
    """A workflow with three versions: made by Ana, edited by a key, renamed by Bo."""
    app_conn.execute(
        """
        insert into organization (id, name) values ('o_acme', 'Acme'), ('o_globex', 'Globex');
        insert into app_user (id, email, name) values
            ('u_ana', 'ana@acme.example', 'Ana'), ('u_bo', 'bo@acme.example', 'Bo');
        insert into member (org_id, user_id, role) values
            ('o_acme', 'u_ana', 'owner'), ('o_acme', 'u_bo', 'member');
        insert into api_key (id, org_id, user_id, name, key_prefix, key_hash) values
            ('k_ci', 'o_acme', 'u_ana', 'ci', 'kh_9f2', 'never-to-be-logged-1');
        """
    )
    with request_context(app_conn, actor_id="u_ana", org_id="o_acme", auth_method="session"):
        app_conn.execute(
            "insert into workflow (id, org_id, name, nodes, edges)"
            " values (%s, 'o_acme', 'Intake', %s, %s)",
            [FLOW, Jsonb(NODES), Jsonb(EDGES)],
        )
    with request_context(
        app_conn,
        actor_id="ci",
        actor_label="CI",
        org_id="o_acme",
        auth_method="api_key",
        api_key_id="k_ci",
    ):
        save(app_conn, *edited())
    with request_context(app_conn, actor_id="u_bo", org_id="o_acme", correlation_id="r_3"):
        save(app_conn, *edited(), name="Invoices")
    return app_conn


@pytest.fixture
def reader(server: DevServer, world: Conn) -> Iterator[Conn]:
    """A login that may do nothing but read as owners and admins do."""
    yield from _login(server, world, "pgaudit_wf_reader", "")


@pytest.fixture
def application(server: DevServer, world: Conn) -> Iterator[Conn]:
    """The application's login: its own tables, and what pgaudit_wf_app may."""
    yield from _login(server, world, "pgaudit_wf_app", "select, update on workflow")


def _login(server: DevServer, world: Conn, member_of: str, rights: str) -> Iterator[Conn]:
    role = f"{member_of}_{world.info.dbname}"
    world.execute(f"create role {role} login in role {member_of}".encode())
    if rights:
        world.execute(f"grant {rights} to {role}".encode())
    with psycopg.connect(server.dsn(world.info.dbname, role), autocommit=True) as conn:
        yield conn
    world.execute(f"drop owned by {role}".encode())
    world.execute(f"drop role {role}".encode())


# reading


def test_versions_say_who_with_what_and_what_changed(world: Conn) -> None:
    page = workflow_versions(world, FLOW)
    assert [v.version for v in page.versions] == [3, 2, 1]
    assert page.next_before is None
    renamed, changed, made = page.versions
    assert (made.actor_name, made.auth_method, made.source) == ("Ana", "session", "create")
    assert made.summary == "created with 2 nodes and 1 connection"
    assert (changed.actor_id, changed.actor_name) == ("ci", "CI")
    assert (changed.auth_method, changed.api_key_id) == ("api_key", "k_ci")
    assert renamed.summary == "renamed 'Intake' to 'Invoices'"
    assert (renamed.correlation_id, renamed.org_id) == ("r_3", "o_acme")
    assert renamed.content_hash == changed.content_hash != made.content_hash
    assert [v.is_current for v in page.versions] == [True, False, False]
    assert made.created_at < changed.created_at < renamed.created_at
    assert workflow_versions(world, "nothing").versions == ()


def test_pages_and_what_touched_a_node_or_connection(world: Conn) -> None:
    found: list[int] = []
    before = None
    while True:
        page = workflow_versions(world, FLOW, before_version=before, page_size=1)
        found += [v.version for v in page.versions]
        if (before := page.next_before) is None:
            break
    assert found == [3, 2, 1]

    def numbers(**only: Any) -> list[int]:  # noqa: ANN401
        return [v.version for v in workflow_versions(world, FLOW, **only).versions]

    assert numbers(node_id="file") == [2]
    assert numbers(node_id="mail") == [1]
    assert numbers(node_id="ocr") == [2, 1]
    assert numbers(connection=("mail", "ocr")) == [2, 1]
    assert numbers(connection=("mail", "file")) == [2]
    assert numbers(connection=("file", "mail")) == []
    with pytest.raises(errors.ArgumentError):
        workflow_versions(world, FLOW, page_size=0)


def test_a_snapshot_is_what_was_saved(world: Conn) -> None:
    first = version_snapshot(world, FLOW, 1)
    assert (first.name, first.description, first.enabled) == ("Intake", None, False)
    assert (first.nodes, first.edges) == (NODES, EDGES)
    assert version_snapshot(world, FLOW, 3).name == "Invoices"
    world.execute("delete from workflow")
    assert version_snapshot(world, FLOW, 1) == first
    with pytest.raises(errors.VersionNotFoundError) as refused:
        version_snapshot(world, FLOW, 4)
    assert refused.value.sqlstate == "PA302"
    assert refused.value.hint


def test_a_diff_names_all_that_changed(world: Conn) -> None:
    diff = compare_versions(world, FLOW, 1, 3)
    assert diff.has_changes
    assert [(s.field, s.before, s.after) for s in diff.settings] == [("name", "Intake", "Invoices")]
    assert [(n.id, n.label, n.node_type) for n in diff.nodes_added] == [("file", "File", "action")]
    (node,) = diff.nodes_changed
    assert [(f.field, f.before, f.after) for f in node.fields] == [
        ("name", "OCR", "Reader"),
        ("description", "empty", "reads"),
        ("type", "action", "task"),
        ("enabled", "true", "false"),
    ]
    assert [(c.key, c.before, c.after) for c in node.configuration] == [
        ("endpoint", "https://a", "https://b"),
        ("note", "empty", "1\n2"),
    ]
    (link,) = diff.connections_added
    assert (link.source, link.target, link.source_handle) == ("Mail", "File", "true")
    assert [(c.source_id, c.target_id) for c in diff.connections_removed] == [("mail", "ocr")]

    back = compare_versions(world, FLOW, 3, 1)
    assert back.nodes_removed == diff.nodes_added
    assert [(c.source_id, c.target_id) for c in back.connections_added] == [("mail", "ocr")]
    assert not compare_versions(world, FLOW, 2, 2).has_changes
    everything = compare_versions(world, FLOW, None, 1)
    assert [n.id for n in everything.nodes_added] == ["mail", "ocr"]


def test_a_diff_for_programs_is_the_databases_own(world: Conn) -> None:
    for before, after in ((1, 3), (3, 1), (2, 2)):
        row = world.execute(
            "select pgaudit_wf.compare_versions(%s, %s, %s)", [FLOW, before, after]
        ).fetchone()
        assert row
        assert compare_versions(world, FLOW, before, after).as_json() == row[0]


def test_async_reads_are_the_same(world: Conn, app_dsn: str) -> None:
    run = start(world)
    digest = workflow_versions(world, FLOW).versions[0].content_hash

    async def read() -> tuple[object, ...]:
        async with await psycopg.AsyncConnection.connect(app_dsn, autocommit=True) as conn:
            return (
                await workflow_versions(conn, FLOW, node_id="ocr"),
                await version_snapshot(conn, FLOW, 2),
                await compare_versions(conn, FLOW, 1, 2),
                await definition_usage(conn, digest),
                await execution_attribution(conn, RUNS, run),
                await validate_definition(conn, NODES, [{"source": "x", "target": "y"}]),
                await validate_version(conn, FLOW, 1),
                await workflow_tables(conn),
                await backfill_batch(conn, "public.workflow"),
                await restore_workflow(conn, FLOW, 3),
            )

    assert asyncio.run(read()) == (
        workflow_versions(world, FLOW, node_id="ocr"),
        version_snapshot(world, FLOW, 2),
        compare_versions(world, FLOW, 1, 2),
        definition_usage(world, digest),
        execution_attribution(world, RUNS, run),
        validate_definition(world, NODES, [{"source": "x", "target": "y"}]),
        validate_version(world, FLOW, 1),
        workflow_tables(world),
        backfill_batch(world, "public.workflow"),
        restore_workflow(world, FLOW, 3),
    )


def test_readers_see_their_organization_only(reader: Conn) -> None:
    digest = content_hash(NODES, EDGES)
    with request_context(reader, actor_id="u_ana", org_id="o_acme"):
        assert len(workflow_versions(reader, FLOW).versions) == 3
        assert version_snapshot(reader, FLOW, 1).name == "Intake"
        assert compare_versions(reader, FLOW, 1, 2).has_changes
        assert [use.version for use in definition_usage(reader, digest)] == [1]
    for actor, org in (("u_bo", "o_acme"), ("u_ana", "o_globex"), (None, None)):
        with request_context(reader, actor_id=actor, org_id=org):
            assert workflow_versions(reader, FLOW).versions == ()
            assert definition_usage(reader, digest) == ()
        with (
            pytest.raises(errors.VersionNotFoundError),
            request_context(reader, actor_id=actor, org_id=org),
        ):
            version_snapshot(reader, FLOW, 1)


# validation


def test_problems_of_a_definition(world: Conn) -> None:
    assert validate_version(world, FLOW, 1) == ()
    broken = copy.deepcopy(NODES)
    del broken[1]["data"]["config"]["endpoint"]
    (problem,) = validate_definition(world, broken, EDGES)
    assert (problem.node_id, problem.field, problem.code) == ("ocr", "endpoint", "missing_field")
    save(world, broken, EDGES)
    assert validate_version(world, FLOW, 4) == (problem,)

    with pytest.raises(psycopg.Error) as refused:
        world.execute("update workflow set enabled = true")
    error = from_database(refused.value)
    assert isinstance(error, errors.InvalidWorkflowError)
    assert [p["code"] for p in error.problems] == ["missing_field"]
    assert problem.message in str(error)


# runs


def test_a_run_names_credential_and_definition_for_good(world: Conn) -> None:
    with request_context(world, actor_id="ci", auth_method="api_key", api_key_id="k_ci"):
        run = start(world)
    save(world, NODES, EDGES)
    world.execute("delete from workflow")
    world.execute("delete from api_key")
    found = execution_attribution(world, RUNS, run)
    assert found
    assert (found.credential_type, found.credential_label) == ("org_api_key", "kh_9f2")
    assert (found.workflow_id, found.org_id, found.version) == (FLOW, "o_acme", 3)
    assert found.snapshot == version_snapshot(world, FLOW, 3)
    assert execution_attribution(world, RUNS, FLOW) is None
    with pytest.raises(errors.NotAttachedError):
        execution_attribution(world, "public.workflow", FLOW)

    with pytest.raises(psycopg.Error) as refused:
        world.execute("update workflow_execution set triggered_by_credential_label = 'me'")
    assert isinstance(from_database(refused.value), errors.StampError)


def test_a_run_in_the_transaction_that_saved_its_definition(world: Conn) -> None:
    nodes = copy.deepcopy(NODES)
    nodes[0]["data"]["label"] = "Post"
    with world.transaction():
        save(world, nodes, EDGES)
        run = start(world)
    found = execution_attribution(world, RUNS, run)
    assert found
    assert found.occurred_at
    assert found.occurred_at < workflow_versions(world, FLOW).versions[0].created_at
    assert found.version == 4


def test_a_run_of_a_definition_that_came_back_later(world: Conn) -> None:
    run = start(world)
    save(world, NODES, EDGES)
    save(world, *edited())
    found = execution_attribution(world, RUNS, run)
    assert found
    assert found.version == 3
    assert workflow_versions(world, FLOW).versions[0].content_hash == found.executed_workflow_hash


def test_definition_usage_lists_everyone_who_used_it(world: Conn) -> None:
    run = start(world)
    digest = workflow_versions(world, FLOW).versions[0].content_hash
    found = definition_usage(world, digest)
    assert [(u.kind, u.version, u.execution_id) for u in found] == [
        ("version", 2, None),
        ("version", 3, None),
        ("run", None, run),
    ]
    assert {u.workflow_id for u in found} == {FLOW}
    assert [u.actor_name for u in found] == ["CI", "Bo", None]
    assert definition_usage(world, "0" * 64) == ()


def test_runs_of_a_second_table_are_named_as_its_history_is(world: Conn) -> None:
    world.execute(
        """
        create table flow (id int primary key, graph jsonb, links jsonb);
        create table job (id int primary key, flow_id int, executed_workflow_hash text,
            triggered_by_credential_type text, triggered_by_credential_label text);
        select pgaudit_wf.attach_workflow('flow', 'graph', 'links');
        select pgaudit_wf.attach_execution('job', 'flow', 'flow_id');
        insert into flow values (7, '[]', '[]');
        insert into job values (1, 7);
        """
    )
    found = execution_attribution(world, "job", "1")
    assert found
    assert (found.workflow_id, found.version) == ("flow/7", 1)
    assert found.executed_workflow_hash
    used = definition_usage(world, found.executed_workflow_hash)
    assert [(u.kind, u.workflow_id) for u in used] == [("version", "flow/7"), ("run", "flow/7")]
    assert [v.version for v in workflow_versions(world, "flow/7").versions] == [1]
    # What is not said again stays, and a label that was chosen too.
    world.execute("select pgaudit_wf.attach_workflow('flow', label_column => 'id')")
    world.execute("select pgaudit_wf.attach_workflow('flow')")
    assert [(w.table, w.nodes_column, w.edges_column) for w in workflow_tables(world)] == [
        ("flow", "graph", "links"),
        ("workflow", "nodes", "edges"),
    ]
    row = world.execute("select label_column from pgaudit_wf.attached where resource_type = 'flow'")
    assert row.fetchone() == ("id",)


# restoring


def test_restore_is_an_attributed_update(world: Conn) -> None:
    with request_context(world, actor_id="u_ana", org_id="o_acme", reason="mistake"):
        assert restore_workflow(world, FLOW, 1) == RestoredVersion(4, changed=True)
    newest = workflow_versions(world, FLOW).versions[0]
    assert (newest.source, newest.restored_from, newest.actor_name) == ("restore", 1, "Ana")
    assert newest.content_hash == workflow_versions(world, FLOW).versions[-1].content_hash
    event = world.execute(
        "select action, actor_id, metadata ->> 'reason' from pgaudit_wf.security_audit_log"
        " order by id desc limit 1"
    ).fetchone()
    assert event == ("workflow.restored", "u_ana", "mistake")
    assert restore_workflow(world, FLOW, 1) == RestoredVersion(4, changed=False)
    with pytest.raises(errors.VersionNotFoundError):
        restore_workflow(world, FLOW, 9)
    with pytest.raises(errors.NotAttachedError):
        restore_workflow(world, FLOW, 1, "public.member")


def test_an_application_restores_what_is_its_organizations(application: Conn) -> None:
    with request_context(application, actor_id="u_bo", org_id="o_acme"):
        assert restore_workflow(application, FLOW, 1).changed
        assert version_snapshot(application, FLOW, 1).name == "Intake"
        assert validate_definition(application, NODES, EDGES) == ()
    for org in ("o_globex", None):
        with (
            pytest.raises(errors.VersionNotFoundError),
            request_context(application, actor_id="u_bo", org_id=org),
        ):
            restore_workflow(application, FLOW, 2)


# backfill


def test_backfill_in_batches_and_again(conn: Conn) -> None:
    conn.execute(
        """
        create table flow (id int primary key, nodes jsonb, edges jsonb);
        insert into flow select i, '[]', '[]' from generate_series(1, 25) as i;
        select pgaudit_wf.attach_workflow('flow');
        alter table flow disable trigger "!pgaudit_wf_update";
        update flow set nodes = '{"no": "array"}' where id = 9;
        alter table flow enable always trigger "!pgaudit_wf_update";
        insert into flow values (26, '[]', '[]');
        update flow set nodes = '[{"id": "x"}]' where id = 5;
        """
    )
    batches = []
    after: str | None = None
    while (batch := backfill_batch(conn, "flow", after, batch_size=10)).examined:
        batches.append((batch.examined, batch.written, batch.last_id))
        for refused in batch.refused:
            assert (refused.workflow_id, batch.last_id) == ("9", "10")
            assert "nodes" in refused.message
        after = batch.last_id
    # 5 and 26 had got their versions when they were saved; 9 is not a graph.
    assert batches == [(10, 8, "10"), (10, 10, "20"), (6, 5, "26")]
    again = backfill_batch(conn, "flow", batch_size=100)
    assert (again.examined, again.written, len(again.refused)) == (26, 0, 1)
    sources = conn.execute(
        "select version, source, count(*) from pgaudit_wf.workflow_history"
        " group by 1, 2 order by 1, 2"
    ).fetchall()
    assert sources == [(1, "backfill", 24), (1, "create", 1), (2, "update", 1)]
    events = conn.execute(
        "select count(*) from pgaudit_wf.security_audit_log"
        " where action = 'flow.created' and metadata @> '{\"backfilled\": true}'"
    ).fetchone()
    assert events == (23,)
    with pytest.raises(errors.ArgumentError):
        backfill_batch(conn, "flow", batch_size=0)
    with pytest.raises(errors.NotAttachedError):
        backfill_batch(conn, "pg_class")


def test_a_malformed_definition_in_the_database_is_a_definition_error(conn: Conn) -> None:
    for graph, state in (
        ('{"a": 1}', "PA203"),
        ("[1e400]", "PA201"),
        ("[" * 250 + "]" * 250, "PA202"),
    ):
        with pytest.raises(psycopg.Error) as refused:
            conn.execute("select pgaudit_wf.hash_definition(%s::jsonb, '[]')", [graph])
        error = from_database(refused.value)
        assert isinstance(error, errors.StoredDefinitionError)
        assert isinstance(error, errors.DefinitionError)
        assert error.sqlstate == state


def test_a_version_is_as_old_as_it_says(world: Conn) -> None:
    row = world.execute("select clock_timestamp()").fetchone()
    assert row
    (first,) = [v for v in workflow_versions(world, FLOW).versions if v.version == 1]
    assert timedelta(0) < row[0] - first.created_at < timedelta(minutes=5)
    assert json.dumps(first.change.as_json())
