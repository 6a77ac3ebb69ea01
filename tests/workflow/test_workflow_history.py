"""Versions of workflows: which saves make one, and that none is lost, doubled or rewritten."""

import copy
import itertools
import json
import random
import threading
from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import IsolationLevel, sql
from psycopg.types.json import Json, Jsonb

from pgaudit_wf.workflow.definition import content_hash
from support.asserting import events, fails
from support.factories import edge
from support.server import Conn

ID = "11111111-1111-4111-8111-111111111111"

FLOW: LiteralString = (
    "create table flow (id text primary key, org_id text, name text, description text, "
    "visibility text, enabled boolean, listed boolean, price int, updated_at timestamptz, "
    "nodes jsonb, edges jsonb)"
)


def node(name: str, **config: object) -> dict[str, Any]:
    return {
        "id": name,
        "type": "action",
        "position": {"x": 0, "y": 0},
        "data": {"label": name.upper(), "type": "action", "config": config},
    }


NODES = [node("a", url="https://a"), node("b", url="https://b")]
EDGES = [edge("a", "b")]


@pytest.fixture
def db(db_dsn: str) -> Iterator[Conn]:
    """A database with the workflow table flow, attached in the given form."""
    with psycopg.connect(db_dsn, autocommit=True) as connection:
        connection.execute(FLOW)
        connection.execute(
            "select pgaudit_wf.attach_workflow('flow', listing_columns => '{price}')"
        )
        yield connection


def insert(conn: Conn, key: str = "w", nodes: object = NODES, edges: object = EDGES) -> None:
    conn.execute(
        "insert into flow (id, org_id, name, nodes, edges) values (%s, 'o_1', 'First', %s, %s)",
        [key, Jsonb(nodes), Jsonb(edges)],
    )


def save(conn: Conn, nodes: object, edges: object = EDGES, key: str = "w") -> None:
    conn.execute(
        "update flow set nodes = %s, edges = %s, updated_at = now() where id = %s",
        [Jsonb(nodes), Jsonb(edges), key],
    )


def versions(conn: Conn, columns: LiteralString, key: str = "w") -> list[Any]:
    return conn.execute(
        sql.SQL(
            "select {} from pgaudit_wf.workflow_history where workflow_id = %s order by version"
        ).format(sql.SQL(columns)),
        [key],
    ).fetchall()


def stored(conn: Conn) -> list[Any]:
    """Rows and bytes of everything that we keep, and the transaction each row is from."""
    return conn.execute(
        "select 'history', count(*), max(xmin::text), "
        "pg_relation_size('pgaudit_wf.workflow_history'), "
        "pg_table_size('pgaudit_wf.workflow_history') from pgaudit_wf.workflow_history "
        "union all select 'log', count(*), max(xmin::text), (select sum(pg_relation_size(relid)) "
        "from pg_partition_tree('pgaudit_wf.security_audit_log')), "
        "(select sum(pg_table_size(relid)) from pg_partition_tree('pgaudit_wf.security_audit_log'))"
        " from pgaudit_wf.security_audit_log order by 1"
    ).fetchall()


def test_the_form_is_what_the_server_allows(db: Conn, form: str) -> None:
    assert db.execute("select form from pgaudit_wf.attached").fetchone() == (form,)


def test_each_meaningful_save_is_a_version_that_names_the_one_before(db: Conn) -> None:
    changed = [node("a", url="https://a"), node("b", url="https://c")]
    insert(db)
    save(db, changed)
    save(db, NODES)
    first, second = content_hash(NODES, EDGES), content_hash(changed, EDGES)
    assert versions(
        db, "version, source, content_hash, previous_version, previous_hash, org_id"
    ) == [
        (1, "create", first, None, None, "o_1"),
        (2, "update", second, 1, first, "o_1"),
        (3, "update", first, 2, second, "o_1"),
    ]
    assert [row[0] for row in versions(db, "snapshot -> 'nodes'")] == [NODES, changed, NODES]
    assert events(db, "action, metadata -> 'version'") == [
        ("flow.created", 1), ("flow.updated", 2), ("flow.updated", 3),
    ]  # fmt: skip
    created, updated, _ = (row[0] for row in events(db, "diff"))
    assert created[0]["value"]["content_hash"] == first
    assert not {"nodes", "edges"} & set(created[0]["value"])
    assert updated == [{"op": "replace", "path": "/content_hash", "old": first, "value": second}]


def moved(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    other = copy.deepcopy(nodes)
    for item in other:
        item["position"] = {"x": 400.5, "y": -3}
        item["positionAbsolute"] = {"x": 400.5, "y": -3}
    return other


COSMETIC: dict[str, tuple[object, object]] = {
    "drag": (moved(NODES), EDGES),
    "selection": ([{**item, "selected": True} for item in NODES], EDGES),
    "resize": ([{**item, "width": 300, "measured": {"width": 9}} for item in NODES], EDGES),
    "edge color": (NODES, [{**EDGES[0], "style": {"stroke": "red"}, "animated": True}]),
    "the same once more": (NODES, EDGES),
    "ignored key": (
        [NODES[0], {**NODES[1], "data": {**NODES[1]["data"], "config":
            {"url": "https://b", "abiFunctionKey": "x"}}}], EDGES),
}  # fmt: skip


@pytest.mark.parametrize("case", COSMETIC)
def test_a_cosmetic_save_stores_nothing(db: Conn, case: str) -> None:
    insert(db)
    before = stored(db)
    for _ in range(3):
        save(db, *COSMETIC[case])
    assert stored(db) == before
    assert db.execute("select nodes from flow").fetchone() == (COSMETIC[case][0],)


def test_null_and_empty_arrays_are_the_same_definition(db: Conn) -> None:
    db.execute("insert into flow (id, name) values ('w', 'Bare')")
    before = stored(db)
    save(db, [], [])
    db.execute("update flow set nodes = null, edges = 'null'")
    assert stored(db) == before
    save(db, NODES, [])
    db.execute("update flow set nodes = null")
    empty = content_hash(None, None)
    assert [row[0] for row in versions(db, "content_hash")] == [
        empty, content_hash(NODES, []), empty,
    ]  # fmt: skip


def test_settings_make_versions_and_the_listing_says_so(db: Conn) -> None:
    insert(db)
    db.execute("update flow set name = 'Second', description = 'Does things'")
    db.execute("update flow set visibility = 'public'")
    db.execute("update flow set enabled = true")
    db.execute("update flow set listed = true, price = 5")
    db.execute("update flow set price = 6, name = 'Third'")
    assert versions(db, "version, source, content_hash = previous_hash") == [
        (1, "create", None), (2, "update", True), (3, "update", True), (4, "update", True),
        (5, "listing", True), (6, "listing", True),
    ]  # fmt: skip
    assert versions(db, "change -> 'settings'")[1][0] == [
        {"field": "name", "before": "First", "after": "Second"},
        {"field": "description", "before": "empty", "after": "Does things"},
    ]
    summaries = [
        row[0]
        for row in db.execute("select summary from pgaudit_wf.workflow_timeline order by version")
    ]
    assert summaries[0] == "created with 2 nodes and 1 connection"
    assert summaries[1] == "renamed 'First' to 'Second'; description changed"
    assert summaries[5] == "listing changed; renamed 'Second' to 'Third'"


def test_who_saved_is_kept_with_the_version(db: Conn) -> None:
    with db.transaction():
        db.execute(
            "set local app.actor_id = 'u_1'; set local app.actor_label = 'Ada'; "
            "set local app.auth_method = 'api_key'; set local app.api_key_id = 'k_1'; "
            "set local app.correlation_id = 'req-1'; set local app.org_id = 'other'"
        )
        insert(db)
    db.execute("update flow set org_id = 'o_2', name = 'Moved'")
    assert versions(
        db, "org_id, actor_id, actor_label, auth_method, api_key_id, correlation_id"
    ) == [("o_1", "u_1", "Ada", "api_key", "k_1", "req-1"), ("o_2",) + (None,) * 5]


def test_history_stays_when_the_workflow_goes_and_goes_on_when_it_comes_back(db: Conn) -> None:
    insert(db)
    save(db, NODES[:1], [])
    db.execute("delete from flow")
    assert len(versions(db, "version")) == 2
    assert events(db, "diff -> 0 -> 'old' ->> 'content_hash'")[-1] == (content_hash(NODES[:1], []),)
    insert(db)
    assert versions(db, "version, source")[-1] == (3, "create")
    assert versions(db, "previous_hash")[-1] == (content_hash(NODES[:1], []),)


@pytest.mark.parametrize(
    "statement",
    [
        "update pgaudit_wf.workflow_history set actor_id = 'nobody'",
        "delete from pgaudit_wf.workflow_history",
        "truncate pgaudit_wf.workflow_history",
        "set session_replication_role = replica; delete from pgaudit_wf.workflow_history",
    ],
)
def test_nobody_rewrites_history(conn: Conn, statement: LiteralString) -> None:
    conn.execute(FLOW)
    conn.execute("select pgaudit_wf.attach_workflow('flow')")
    insert(conn)
    before = versions(conn, "*")
    fails(conn, "PA001", "append-only", statement)
    conn.execute("set session_replication_role = origin")
    assert versions(conn, "*") == before


def test_a_workflow_older_than_its_attachment_gets_its_past_as_version_1(db_dsn: str) -> None:
    with psycopg.connect(db_dsn, autocommit=True) as db:
        db.execute(FLOW)
        insert(db)
        db.execute("select pgaudit_wf.attach_workflow('flow')")
        with db.transaction():
            db.execute("set local app.actor_id = 'u_1'")
            save(db, NODES[:1], [])
        assert versions(db, "version, source, actor_id, snapshot -> 'nodes'") == [
            (1, "backfill", None, NODES), (2, "update", "u_1", NODES[:1]),
        ]  # fmt: skip
        assert versions(db, "previous_hash = lag(content_hash) over (order by version)") == [
            (None,), (True,),
        ]  # fmt: skip


def test_a_malformed_workflow_from_before_can_be_mended(db_dsn: str) -> None:
    with psycopg.connect(db_dsn, autocommit=True) as db:
        db.execute(FLOW)
        db.execute("select pgaudit_wf.attach_workflow('flow')")
        db.execute('alter table flow disable trigger "!pgaudit_wf_insert"')
        insert(db, nodes={"not": "an array"})
        db.execute('alter table flow enable always trigger "!pgaudit_wf_insert"')
        fails(db, "PA203", "nodes is a JSON object", "update flow set name = 'Renamed'")
        save(db, NODES)
        assert versions(
            db, "version, source, content_hash, change -> 'nodes_added' -> 1 ->> 'id'"
        ) == [
            (1, "update", content_hash(NODES, EDGES), "b")
        ]  # fmt: skip
        assert db.execute(
            "select count(*) from pgaudit_wf.security_audit_log where action ~ '^flow[.]'"
        ).fetchone() == (1,)


def test_restore_is_an_update_with_its_own_name(db: Conn) -> None:
    insert(db)
    save(db, NODES[:1], [])
    db.execute("update flow set name = 'Second', enabled = true")
    assert db.execute("select pgaudit_wf.restore_workflow('w', 1)").fetchone() == (4,)
    assert versions(db, "version, source, restored_from, content_hash")[-1] == (
        4, "restore", 1, content_hash(NODES, EDGES),
    )  # fmt: skip
    assert db.execute("select name, enabled, nodes, edges from flow").fetchone() == (
        "First", True, NODES, EDGES,
    )  # fmt: skip
    assert events(db, "action, metadata")[-1] == (
        "flow.restored", {"version": 4, "restored_from": 1, "label": "First"},
    )  # fmt: skip
    before = stored(db)
    assert db.execute("select pgaudit_wf.restore_workflow('w', 4)").fetchone() == (4,)
    assert stored(db) == before


def test_restore_of_a_name_alone(db: Conn) -> None:
    insert(db)
    db.execute("update flow set name = 'Second'")
    db.execute("select pgaudit_wf.restore_workflow('w', 1)")
    assert versions(db, "version, source, restored_from")[-1] == (3, "restore", 1)


def test_restore_leaves_alone_what_the_version_does_not_know(db_dsn: str) -> None:
    with psycopg.connect(db_dsn, autocommit=True) as db:
        db.execute(FLOW)
        db.execute(
            "select pgaudit_wf.attach_workflow('flow', name_column => '', description_column => '')"
        )
        insert(db)
        save(db, NODES[:1], [])
        db.execute("select pgaudit_wf.attach_workflow('flow', name_column => 'name')")
        db.execute("alter table flow alter name set not null")
        db.execute("select pgaudit_wf.restore_workflow('w', 1)")
        assert db.execute("select name, nodes from flow").fetchone() == ("First", NODES)
        assert versions(db, "version, source")[-1] == (3, "restore")


def test_a_restore_that_is_undone_leaves_nothing_behind(db: Conn) -> None:
    insert(db)
    save(db, NODES[:1], [])
    before = versions(db, "*")
    with db.transaction(force_rollback=True):
        db.execute("select pgaudit_wf.restore_workflow('w', 1)")
        assert len(versions(db, "version")) == 3
    assert versions(db, "*") == before
    db.execute("create function refuse() returns trigger language plpgsql as "
               "$$ begin raise exception 'not now'; end $$")  # fmt: skip
    db.execute("create trigger refuse before update on flow for each row execute function refuse()")
    with db.transaction():
        fails(db, "P0001", "not now", "select pgaudit_wf.restore_workflow('w', 1)")
        db.execute("drop trigger refuse on flow")
        save(db, NODES)
    assert versions(db, "source")[-1] == ("update",)


@pytest.mark.parametrize("forged", ["1", "2", "99", "nonsense", "99999999999999999999"])
def test_a_forged_setting_makes_no_restore(db: Conn, forged: str) -> None:
    insert(db)
    save(db, NODES[:1], [])
    with db.transaction():
        db.execute("select set_config('pgaudit_wf.restoring', %s, true)", [forged])
        db.execute("update flow set name = 'Sneaky'")
        save(db, [node("c", url="https://c")], [])
    assert [row[0] for row in versions(db, "source")] == ["create", "update", "update", "update"]
    assert "flow.restored" not in {row[0] for row in events(db)}


def test_restore_says_what_is_not_there(db: Conn) -> None:
    insert(db)
    fails(db, "PA302", "no version 7", "select pgaudit_wf.restore_workflow('w', 7)")
    fails(db, "PA302", "no version 1", "select pgaudit_wf.restore_workflow('x', 1)")
    db.execute("delete from flow")
    fails(db, "PA302", "does not exist", "select pgaudit_wf.restore_workflow('w', 1)")
    db.execute("select pgaudit_wf.detach('flow')")
    fails(db, "PA005", "no attached workflow", "select pgaudit_wf.restore_workflow('w', 1)")


def test_restore_stays_within_the_organization_of_the_request(db: Conn) -> None:
    insert(db)
    save(db, NODES[:1], [])
    with db.transaction():
        db.execute("set local app.org_id = 'o_2'")
        fails(db, "PA302", "no version 1", "select pgaudit_wf.restore_workflow('w', 1)")
    with db.transaction():
        db.execute("set local app.org_id = 'o_1'")
        db.execute("select pgaudit_wf.restore_workflow('w', 1)")
    assert [row[0] for row in versions(db, "source")] == ["create", "update", "restore"]


def test_an_application_restores_with_its_own_rights(app_conn: Conn) -> None:
    app_conn.execute(
        "do $$ begin create role wf_login in role pgaudit_wf_app; "
        "exception when duplicate_object then null; end $$"
    )
    app_conn.execute("grant select, insert, update on all tables in schema public to wf_login")
    app_conn.execute("insert into organization (id, name) values ('o_1', 'One'), ('o_2', 'Two')")
    app_conn.execute(
        "insert into workflow (id, org_id, name, nodes) values (%s, 'o_1', 'W', %s)",
        [ID, Jsonb(NODES)],
    )
    with app_conn.transaction():
        app_conn.execute("set local role wf_login; set local app.org_id = 'o_1'")
        app_conn.execute("update workflow set nodes = '[]'")
        assert app_conn.execute("select pgaudit_wf.restore_workflow(%s, 1)", [ID]).fetchone() == (
            3,
        )
        fails(app_conn, "42501", "workflow_history", "select * from pgaudit_wf.workflow_history")
        fails(app_conn, "42501", "add_version",
              "select pgaudit_wf._add_version('x', 'o_1', 'update', null, '{}', null, null, null, "
              "null)")  # fmt: skip
    with app_conn.transaction():
        app_conn.execute("set local role wf_login; set local app.org_id = 'o_2'")
        fails(app_conn, "PA302", "no version 1", "select pgaudit_wf.restore_workflow(%s, 1)", ID)
    app_conn.execute("revoke update on workflow from wf_login")
    with app_conn.transaction():
        app_conn.execute("set local role wf_login; set local app.org_id = 'o_1'")
        fails(app_conn, "42501", "workflow", "select pgaudit_wf.restore_workflow(%s, 2)", ID)
    assert versions(app_conn, "source", ID) == [("create",), ("update",), ("restore",)]


def test_readers_see_the_versions_of_the_organization_they_run(app_conn: Conn) -> None:
    app_conn.execute("insert into organization (id, name) values ('o_1', 'One'), ('o_2', 'Two')")
    app_conn.execute(
        "insert into app_user (id, email, name) values ('u_1', 'a@example.com', 'Ada')"
    )
    app_conn.execute("insert into member (org_id, user_id, role) values ('o_1', 'u_1', 'owner')")
    app_conn.execute("insert into member (org_id, user_id, role) values ('o_2', 'u_1', 'member')")
    for org in ("o_1", "o_2"):
        with app_conn.transaction():
            app_conn.execute("set local app.actor_id = 'u_1'; set local app.actor_label = 'Old'")
            app_conn.execute("insert into workflow (org_id, name) values (%s, 'W')", [org])
    seen = {}
    for org in ("o_1", "o_2"):
        with app_conn.transaction():
            app_conn.execute("set local role pgaudit_wf_reader; set local app.actor_id = 'u_1'")
            app_conn.execute("select set_config('app.org_id', %s, true)", [org])
            seen[org] = app_conn.execute(
                "select org_id, actor_name, is_current from pgaudit_wf.workflow_timeline"
            ).fetchall()
    assert seen == {"o_1": [("o_1", "Ada", True)], "o_2": []}


def test_a_second_workflow_table_has_ids_of_its_own(db: Conn) -> None:
    db.execute("create table template (id text primary key, graph jsonb, links jsonb)")
    db.execute("select pgaudit_wf.attach_workflow('template', 'graph', 'links')")
    insert(db)
    db.execute("insert into template values ('w', %s, '[]')", [Jsonb(NODES[:1])])
    db.execute("update template set graph = %s", [Jsonb(NODES)])
    assert versions(db, "snapshot") == [
        ({"name": "First", "description": None, "visibility": None, "enabled": None,
          "nodes": NODES, "edges": EDGES},)
    ]  # fmt: skip
    assert versions(db, "version, snapshot", "template/w")[1] == (
        2, {"nodes": NODES, "edges": []},
    )  # fmt: skip
    db.execute("select pgaudit_wf.restore_workflow('template/w', 1)")
    assert db.execute("select graph from template").fetchone() == (NODES[:1],)
    assert len(versions(db, "version")) == 1
    assert events(db, "resource_type, resource_id, action")[-1] == (
        "template", "w", "template.restored",
    )  # fmt: skip


def test_json_typed_columns(db: Conn) -> None:
    db.execute("create table raw (id int primary key, nodes json, edges json)")
    db.execute("select pgaudit_wf.attach_workflow('raw')")
    db.execute("insert into raw values (1, %s, %s)", [Json(NODES), Json(EDGES)])
    before = stored(db)
    db.execute("update raw set nodes = %s", [json.dumps(moved(NODES), indent=3)])
    assert stored(db) == before
    db.execute("update raw set nodes = '[]'")
    db.execute("select pgaudit_wf.restore_workflow('raw/1', 1)")
    assert db.execute("select nodes from raw").fetchone() == (NODES,)
    first = content_hash(NODES, EDGES)
    assert versions(db, "source, content_hash", "raw/1") == [
        ("create", first), ("update", content_hash([], EDGES)), ("restore", first),
    ]  # fmt: skip


def test_versions_follow_renamed_columns(db: Conn) -> None:
    insert(db)
    db.execute("alter table flow rename nodes to graph")
    db.execute("alter table flow rename edges to links")
    db.execute("alter table flow rename name to title")
    db.execute("update flow set graph = %s", [Jsonb(NODES[:1])])
    db.execute("update flow set links = '[]'")
    db.execute("update flow set title = 'Second'")
    assert versions(db, "content_hash") == [
        (content_hash(NODES, EDGES),), (content_hash(NODES[:1], EDGES),),
        (content_hash(NODES[:1], []),), (content_hash(NODES[:1], []),),
    ]  # fmt: skip
    assert versions(db, "snapshot ->> 'name'")[-1] == ("Second",)
    assert not any("https://" in json.dumps(row) for row in events(db, "diff"))
    db.execute("insert into flow (id, graph, links) values ('x', %s, '[]')", [Jsonb(NODES)])
    assert versions(db, "snapshot -> 'nodes'", "x") == [(NODES,)]
    before = stored(db)
    db.execute("update flow set graph = %s where id = 'x'", [Jsonb(moved(NODES))])
    assert stored(db) == before
    fails(db, "PA301", "enabled",
          "update flow set links = %s, enabled = true where id = 'x'",
          Jsonb([edge("a", "gone")]))  # fmt: skip


def test_detached_tables_make_no_more_versions(db: Conn) -> None:
    insert(db)
    db.execute("select pgaudit_wf.detach('flow')")
    save(db, NODES[:1], [])
    assert len(versions(db, "version")) == 1


def test_one_statement_many_workflows(db: Conn) -> None:
    for key in "abc":
        insert(db, key)
    db.execute("update flow set nodes = nodes - 1, edges = '[]'")
    db.execute("update flow set nodes = nodes - 0")
    for key in "abc":
        assert [row[0] for row in versions(db, "content_hash", key)] == [
            content_hash(NODES, EDGES), content_hash(NODES[:1], []), content_hash([], []),
        ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "level", [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ], ids=lambda v: v.name
)
def test_concurrent_savers_leave_no_gap_and_no_double(
    db: Conn, db_dsn: str, level: IsolationLevel
) -> None:
    insert(db)
    committed: list[str] = []
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def saver(number: int) -> None:
        dice = random.Random(number)
        try:
            with psycopg.connect(db_dsn) as conn:
                conn.isolation_level = level
                start.wait()
                turn = 0
                while turn < 12:
                    turn += 1
                    nodes = [node("a", url=f"https://{number}/{turn}"), node("b")]
                    drag, undone = dice.random() < 0.2, dice.random() < 0.3
                    try:
                        with conn.transaction():
                            if drag:
                                conn.execute("update flow set nodes = jsonb_set(nodes, "
                                             "'{0,position,x}', to_jsonb(random()))")  # fmt: skip
                            else:
                                save(conn, nodes)
                            if undone:
                                raise psycopg.Rollback
                        if not drag and not undone:
                            committed.append(content_hash(nodes, EDGES))
                    except psycopg.errors.SerializationFailure:
                        if level is IsolationLevel.READ_COMMITTED:
                            raise
                        turn -= 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=saver, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    kept = versions(db, "version, previous_version, content_hash, previous_hash")
    assert [row[0] for row in kept] == list(range(1, len(kept) + 1))
    assert sorted(row[2] for row in kept[1:]) == sorted(committed)
    for before, after in itertools.pairwise(kept):
        assert (after[1], after[3]) == (before[0], before[2])
    assert len(committed) > 20
    present = db.execute("select pgaudit_wf.hash_definition(nodes, edges) from flow").fetchone()
    assert present == (kept[-1][2],)
    assert db.execute(
        "select array_agg((metadata -> 'version')::int order by (metadata -> 'version')::int) "
        "from pgaudit_wf.security_audit_log where action ~ '^flow[.]'"
    ).fetchone() == ([row[0] for row in kept],)


def test_ids_of_two_tables_are_never_taken_for_each_other(conn: Conn) -> None:
    for table in ("flow", "job"):
        conn.execute(f"create table {table} (id text primary key, nodes jsonb, edges jsonb)")
        conn.execute("select pgaudit_wf.attach_workflow(%s)", [table])
    ids = {
        "flow": ["7", "job/7", "/job/7", "/", "a/b", "job"],
        "job": ["7", "/7", "job/7", "a/b"],
    }
    for table, keys in ids.items():
        for key in keys:
            conn.execute(f"insert into {table} values (%s, '[]', '[]')", [key])
            conn.execute(
                f"update {table} set nodes = %s where id = %s",
                [Jsonb([{"id": f"{table} {key}"}]), key],
            )
    versions = conn.execute(
        "select workflow_id, array_agg(version order by version) from pgaudit_wf.workflow_history"
        " group by workflow_id"
    ).fetchall()
    assert len(versions) == 10
    assert all(found == [1, 2] for _, found in versions)
    for workflow_id, _ in versions:
        conn.execute("select pgaudit_wf.restore_workflow(%s, 1)", [workflow_id])
    for table, keys in ids.items():
        assert conn.execute(f"select count(*) from {table} where nodes = '[]'").fetchone() == (
            len(keys),
        )
