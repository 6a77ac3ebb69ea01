"""Graphs of other products: versions of their rows as they store them, and the rows again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.server import Conn

DATA = Path(__file__).parent / "data"
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "workflows-of-other-products.md"
N8N = [json.loads(path.read_text()) for path in sorted(DATA.glob("n8n-*.json"))]
FLOWISE = [json.loads(path.read_text()) for path in sorted(DATA.glob("flowise-*.json"))]
TABLES = """
create table workflow_entity (
    id text primary key, name text not null, description text, active boolean not null,
    nodes json not null, connections json not null, settings json, "staticData" json,
    "updatedAt" timestamptz, "versionId" text, "versionCounter" int, "triggerCount" int
);
create table chat_flow (
    id uuid primary key, name text, "flowData" text, deployed boolean, "updatedDate" timestamptz
);
"""


def save(conn: Conn, table: str, key: str, **columns: object) -> None:
    assignments = ", ".join(f'"{name}" = %s' for name in columns)
    conn.execute(
        f"update {table} set {assignments} where id = %s".encode(), [*columns.values(), key]
    )


@pytest.fixture
def db(db_dsn: str) -> Iterator[Conn]:
    """The products' tables with their rows, attached and back-filled."""
    with psycopg.connect(db_dsn, autocommit=True) as conn:
        conn.execute(TABLES)
        for row in (sample["row"] for sample in N8N):
            conn.execute(
                "insert into workflow_entity values (%s, %s, %s, %s, %s, %s, %s)",
                [row["id"], row["name"], row["description"], row["active"],
                 *(json.dumps(row[name]) for name in ("nodes", "connections", "settings"))],
            )  # fmt: skip
        for row in (sample["row"] for sample in FLOWISE):
            conn.execute(
                "insert into chat_flow values (%s, %s, %s, false)",
                [row["id"], row["name"], row["flowData"]],
            )
        for statements in re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)[:2]:
            conn.execute(statements)
        yield conn


def history(conn: Conn, key: str) -> list[Any]:
    return conn.execute(
        "select version, source, pgaudit_wf.version_summary(change)"
        " from pgaudit_wf.workflow_history where workflow_id = %s order by version",
        [key],
    ).fetchall()


def count_events(conn: Conn) -> int:
    row = conn.execute("select count(*) from pgaudit_wf.security_audit_log").fetchone()
    assert row is not None
    return int(row[0])


def problems(conn: Conn) -> list[Any]:
    return conn.execute("select * from pgaudit_wf.doctor() where severity <> 'notice'").fetchall()


def latest_diff(conn: Conn) -> Any:  # noqa: ANN401
    row = conn.execute(
        "select diff from pgaudit_wf.security_audit_log order by id desc limit 1"
    ).fetchone()
    assert row is not None
    return row[0]


def stored(conn: Conn, table: str) -> list[Any]:
    return conn.execute(f"select t::text from {table} as t order by id::text".encode()).fetchall()


def test_products_rows_have_the_hashes_of_their_meaning(db: Conn) -> None:
    hashes = dict(db.execute("select workflow_id, content_hash from pgaudit_wf.workflow_history"))
    for sample in N8N:
        assert hashes[sample["row"]["id"]] == sample["pgaudit_wf_hash"]
    for sample in FLOWISE:
        assert hashes["chat_flow/" + sample["row"]["id"]] == sample["pgaudit_wf_hash"]
    assert (
        db.execute("select * from pgaudit_wf.doctor() where severity <> 'notice'").fetchall() == []
    )


def test_n8n_a_setting_makes_a_version_a_drag_none_and_restore_leads_back(
    db: Conn, form: str
) -> None:
    row = N8N[0]["row"]
    key, nodes, connections = row["id"], row["nodes"], row["connections"]
    before = stored(db, "workflow_entity")
    events = count_events(db)
    moved = [{**node, "position": [1, 2]} for node in nodes]
    save(db, "workflow_entity", key, nodes=json.dumps(moved), connections=json.dumps(connections))
    db.execute("""update workflow_entity set "staticData" = '{"lastId": 7}', "updatedAt" = now()""")
    save(db, "workflow_entity", key, nodes=json.dumps(nodes))
    assert (count_events(db), len(history(db, key))) == (events, 1)

    changed = [dict(node) for node in nodes]
    changed[1]["parameters"] = {**nodes[1]["parameters"], "url": "https://example.com/stock"}
    changed[4].pop("disabled", None)
    rewired = {**connections, nodes[0]["name"]: {"main": []}}
    save(db, "workflow_entity", key, nodes=json.dumps(changed), connections=json.dumps(rewired))
    assert count_events(db) == events + 1
    assert [op["path"] for op in latest_diff(db)] == ["/content_hash"]
    (_, (version, source, summary)) = history(db, key)
    assert (version, source) == (2, "update")
    assert "1 connection removed" in summary
    change = db.execute(
        "select change #> '{nodes_changed,0}' from pgaudit_wf.workflow_history where version = 2"
    ).fetchone()
    assert change is not None
    assert change[0]["label"] == nodes[1]["name"]
    assert change[0]["deltas"][0]["changes"] == [
        {"key": "parameters.url", "before": nodes[1]["parameters"]["url"],
         "after": "https://example.com/stock"}
    ]  # fmt: skip

    db.execute("update workflow_entity set active = true where id = %s", [key])
    assert db.execute("select pgaudit_wf.restore_workflow(%s, 1)", [key]).fetchone() == (4,)
    db.execute("""update workflow_entity set active = false, "staticData" = null""")
    db.execute('update workflow_entity set "updatedAt" = null')
    if form == "compiled":
        assert stored(db, "workflow_entity") == before
    assert db.execute(
        "select nodes::jsonb = %s::jsonb, connections::jsonb = %s::jsonb"
        " from workflow_entity where id = %s",
        [json.dumps(nodes), json.dumps(connections), key],
    ).fetchone() == (True, True)
    assert history(db, key)[3][1] == "restore"
    assert db.execute("select pgaudit_wf.restore_workflow(%s, 1)", [key]).fetchone() == (5,)


def test_n8n_connections_that_lead_nowhere_are_still_an_event(db: Conn) -> None:
    row = N8N[1]["row"]
    versions = len(history(db, row["id"]))
    odd = {**row["connections"], "Nobody": {"main": [[]]}}
    save(db, "workflow_entity", row["id"], connections=json.dumps(odd))
    assert latest_diff(db) == [
        {"op": "add", "path": "/connections/Nobody", "value": {"main": [[]]}}
    ]
    assert len(history(db, row["id"])) == versions


def test_flowise_one_text_with_all_of_it(db: Conn) -> None:
    row = FLOWISE[0]["row"]
    key = row["id"]
    before = stored(db, "chat_flow")
    events = count_events(db)
    flow = json.loads(row["flowData"])
    flow["viewport"] = {"x": 1, "y": 2, "zoom": 3}
    flow["nodes"][0] |= {"position": {"x": 5, "y": 6}, "dragging": True, "selected": True}
    flow["nodes"][0]["data"]["selected"] = True
    save(db, "chat_flow", key, flowData=json.dumps(flow))
    assert (count_events(db), len(history(db, "chat_flow/" + key))) == (events, 1)

    # Neither counted nor canvas: an event says what it is, and doctor() that it is there.
    flow["nodes"][1]["data"]["moderation"] = "strict"
    flow["nodes"][2]["pinned"] = 1
    save(db, "chat_flow", key, flowData=json.dumps(flow))
    assert latest_diff(db) == [
        {"op": "add", "path": "/flowData/nodes/1/data/moderation", "value": "strict"},
        {"op": "add", "path": "/flowData/nodes/2/pinned", "value": 1},
    ]
    flow["nodes"][0]["data"]["inputs"]["temperature"] = "0.1"
    save(db, "chat_flow", key, flowData=json.dumps(flow))
    assert [line[0] for line in history(db, "chat_flow/" + key)] == [1, 2]
    findings = db.execute(
        "select problem, remedy from pgaudit_wf.doctor() where subject = 'public.chat_flow'"
        " and severity = 'notice' and problem like 'its graphs%'"
    ).fetchall()
    assert len(findings) == 1
    assert "data.moderation, node.pinned" in findings[0][0]
    db.execute(findings[0][1].encode())
    events = count_events(db)
    flow["nodes"][2]["pinned"] = 2
    save(db, "chat_flow", key, flowData=json.dumps(flow))
    assert count_events(db) == events

    for broken in ("", "{", '"\\u0000"', None):
        save(db, "chat_flow", key, flowData=broken)
    restored = db.execute("select pgaudit_wf.restore_workflow(%s, 1)", ["chat_flow/" + key])
    assert restored.fetchone() == (4,)
    db.execute("""update chat_flow set "updatedDate" = null""")
    assert stored(db, "chat_flow") == before


def test_a_key_of_a_reactflow_node_that_nobody_knows_is_an_event(db: Conn) -> None:
    db.execute("create table flow (id int primary key, nodes jsonb, edges jsonb)")
    db.execute("select pgaudit_wf.attach_workflow('flow')")
    db.execute("""insert into flow values (1, '[{"id": "a"}]', '[{"id": "e"}]')""")
    events = count_events(db)
    db.execute("""update flow set nodes = '[{"id": "a", "position": 1, "selected": true}]'""")
    db.execute("""update flow set edges = '[{"id": "e", "animated": true}]'""")
    assert count_events(db) == events
    db.execute("""update flow set nodes = '[{"id": "a", "position": 1, "note": "x"}]'""")
    assert latest_diff(db) == [{"op": "add", "path": "/nodes/0/note", "value": "x"}]
    db.execute("""update flow set edges = '[{"id": "e", "weight": 1}]'""")
    assert latest_diff(db) == [{"op": "add", "path": "/edges/0/weight", "value": 1}]
    assert len(history(db, "flow/1")) == 1
    db.execute("select pgaudit_wf.row_as_of('flow', '1')")


OWN = """
create schema "Own";
create table "Odd" (id int primary key, steps text, seen int, name text);
create function "Own".nodes(r "Odd") returns jsonb language sql immutable as $$
    select coalesce(
        jsonb_agg(jsonb_build_object('id', step, 'type', 'step', 'data', '{}'::jsonb)), '[]')
    from string_to_table(r.steps, ',') as step $$;
create function "Own".edges(r "Odd") returns jsonb language sql immutable
as $$ select '[]'::jsonb $$;
"""
BACK = """
create function "Own".back(r "Odd", nodes jsonb, edges jsonb) returns "Odd" language plpgsql as $$
begin
    r.steps := (select string_agg(node ->> 'id', ',') from jsonb_array_elements(nodes) as node);
    return r;
end $$;
"""


def attach_own(conn: Conn, *rows: str) -> None:
    conn.execute(OWN)
    for steps in rows:
        conn.execute("""insert into "Odd" values (1, %s, 0, 'W')""", [steps])
    conn.execute("""grant usage on schema "Own" to public""")
    conn.execute(
        """select pgaudit_wf.attach_workflow('"Odd"', shape => 'Own', ignore => '{seen}')"""
    )


def test_functions_of_ones_own_make_versions_of_any_columns(db: Conn) -> None:
    attach_own(db, "a,b")
    db.execute("""select pgaudit_wf.backfill_workflows('"Odd"')""")
    key = "Odd/1"
    db.execute("""update "Odd" set steps = 'a,b,c'""")
    db.execute("""update "Odd" set seen = 1""")
    db.execute("""insert into "Odd" values (2, 'x', 0, 'V'), (3, null, 0, 'U')""")
    db.execute("""update "Odd" set steps = 'y' where id = 2""")
    # Written by a client, it is never read.
    db.execute("""select set_config('pgaudit_wf.graph', '[[], [], [], []]', false)""")
    db.execute("""update "Odd" set steps = 'z' where id = 2""")
    assert [line[2] for line in history(db, "Odd/2")][1:] == ["1 node added, 1 removed"] * 2
    assert [line[:2] for line in history(db, key)] == [(1, "backfill"), (2, "update")]
    with pytest.raises(psycopg.Error, match="cannot be restored") as caught:
        db.execute("select pgaudit_wf.restore_workflow(%s, 1)", [key])
    assert caught.value.sqlstate == "PA304"
    db.execute(BACK)
    assert db.execute("select pgaudit_wf.restore_workflow(%s, 1)", [key]).fetchone() == (3,)
    assert db.execute("""select steps, seen from "Odd" where id = 1""").fetchone() == ("a,b", 1)
    assert history(db, key)[-1][1] == "restore"
    assert (
        db.execute("select * from pgaudit_wf.doctor() where severity <> 'notice'").fetchall() == []
    )
    # What they cannot read costs the version, not the write.
    db.execute(
        'create or replace function "Own".nodes(r "Odd") returns jsonb language plpgsql'
        " as $$ begin return to_jsonb(1 / (r.id - r.id)); end $$"
    )
    db.execute("""update "Odd" set steps = 'q' where id = 1""")
    assert len(history(db, key)) == 3
    assert [op["path"] for op in latest_diff(db)] == ["/steps"]
    db.execute("""delete from "Odd" where id = 1""")
    db.execute("""select pgaudit_wf.detach('"Odd"')""")
    assert db.execute(
        "select count(*) from pg_proc where proname ~ '^(graph|capture)_Odd'"
    ).fetchone() == (0,)


def undo_latest(conn: Conn, resource_type: str) -> None:
    conn.execute(
        "select pgaudit_wf.undo(event_id => (select max(id) from pgaudit_wf.security_audit_log"
        " where resource_type = %s))",
        [resource_type],
    )


def values(conn: Conn, table: str) -> list[Any]:
    """Rows, whatever the order of keys in their JSON: events have it as jsonb does."""
    return conn.execute(f"select to_jsonb(t) from {table} as t order by id".encode()).fetchall()


def test_undo_puts_products_graphs_back_as_they_were_stored(db: Conn) -> None:
    attach_own(db, "a,b")
    n8n, flowise = N8N[0]["row"], FLOWISE[0]["row"]
    flow = json.loads(flowise["flowData"])
    flow["nodes"][0]["data"]["inputs"]["temperature"] = "0.1"
    changes = {
        "workflow_entity": (
            ("nodes", json.dumps([*n8n["nodes"], {"id": "x", "name": "X", "type": "t"}])),
            n8n["id"],
        ),
        "chat_flow": (("flowData", json.dumps(flow)), flowise["id"]),
        '"Odd"': (("steps", "a,b,c"), "1"),
    }
    for table, ((column, value), key) in changes.items():
        resource_type = table.strip('"')
        before = values(db, table)
        # The graph with another column; another column alone; all of the row.
        save(db, table, key, **{column: value, "name": "other"})
        assert values(db, table) != before
        undo_latest(db, resource_type)
        assert values(db, table) == before
        save(db, table, key, name="third")
        undo_latest(db, resource_type)
        assert values(db, table) == before
        db.execute(f"delete from {table} where id = %s".encode(), [key])
        with pytest.raises(psycopg.Error, match="ignored") as refused:
            undo_latest(db, resource_type)
        assert refused.value.sqlstate == "PA510"
        db.execute(
            """select pgaudit_wf.undo(on_conflict => '{"ignored": "overwrite"}', event_id => ("""
            "select max(id) from pgaudit_wf.security_audit_log))"
        )
        if table == '"Odd"':
            db.execute("""update "Odd" set seen = 0""")
        assert values(db, table) == before


def test_undo_says_that_it_cannot_put_back_what_only_functions_of_ones_own_read(db: Conn) -> None:
    attach_own(db, "a,b")
    db.execute(
        """select pgaudit_wf.attach_workflow('"Odd"', shape => 'Own', ignore => '{seen}',"""
        " nodes_column => 'steps')"
    )
    db.execute("""select pgaudit_wf.backfill_workflows('"Odd"')""")
    db.execute("""update "Odd" set steps = 'a,b,c', name = 'other'""")
    assert sorted(op["path"] for op in latest_diff(db)) == ["/content_hash", "/name"]
    with pytest.raises(psycopg.Error, match="unversioned"):
        undo_latest(db, "Odd")
    assert db.execute("""select steps, name from "Odd" """).fetchone() == ("a,b,c", "other")


def test_a_version_from_before_a_column_was_renamed_is_restored(db: Conn, form: str) -> None:
    row = N8N[0]["row"]
    save(db, "workflow_entity", row["id"], nodes="[]", connections="{}")
    db.execute("alter table workflow_entity rename nodes to steps")
    if form == "generic":
        db.execute(
            "select pgaudit_wf.attach_workflow('workflow_entity', shape => 'n8n',"
            " nodes_column => 'steps', edges_column => 'connections')"
        )
    assert db.execute("select pgaudit_wf.restore_workflow(%s, 1)", [row["id"]]).fetchone() == (3,)
    assert db.execute(
        "select steps::jsonb = %s::jsonb from workflow_entity where id = %s",
        [json.dumps(row["nodes"]), row["id"]],
    ).fetchone() == (True,)
    db.execute("alter table workflow_entity rename connections to links")
    with pytest.raises(psycopg.Error) as refused:
        db.execute("select pgaudit_wf.restore_workflow(%s, 2)", [row["id"]])
    assert refused.value.sqlstate == "PA304"


def test_functions_of_ones_own_run_with_the_writers_rights(conn: Conn) -> None:
    conn.execute("create role intruder login")
    try:
        conn.execute(OWN)
        conn.execute("""insert into "Odd" values (1, 'a', 0, 'W')""")
        conn.execute("""grant usage on schema "Own" to public""")
        conn.execute("""grant select, insert, update on "Odd" to intruder""")
        conn.execute("""select pgaudit_wf.attach_workflow('"Odd"', shape => 'Own')""")
        conn.execute("create table ran_as (who text)")
        conn.execute("grant insert on ran_as to public")
        conn.execute(
            """create or replace function "Own".edges(r "Odd") returns jsonb language plpgsql as $$
            begin insert into public.ran_as values (current_user); return '[]'; end $$"""
        )
        conn.execute("set role intruder")
        conn.execute("""update "Odd" set steps = 'b'""")
        conn.execute("reset role")
        assert conn.execute("select distinct who from ran_as").fetchall() == [("intruder",)]
        assert len(history(conn, "1")) == 2
        # Reading all rows is done with the rights of who asks for it: not by functions of others.
        conn.execute("""alter function "Own".edges("Odd") owner to intruder""")
        for call in (
            """attach_workflow('"Odd"', shape => 'Own')""",
            """backfill_workflows('"Odd"')""",
        ):
            with pytest.raises(psycopg.Error, match="belongs to another role") as caught:
                conn.execute(f"select pgaudit_wf.{call}".encode())
            assert caught.value.sqlstate == "PA008"
        assert conn.execute("select distinct who from ran_as").fetchall() == [("intruder",)]
    finally:
        conn.execute("reset role; drop owned by intruder; drop role intruder")


@pytest.mark.parametrize(
    ("row", "call", "sqlstate", "message"),
    [
        ("('[]', '{}')", "'flow'", "PA203", "row 7 of public.flow: edges is a JSON object"),
        ("('[1e400]', '[]')", "'flow'", "PA203", "row 7"),
        ("('[]', null)", "'flow', shape => 'nowhere'", "PA008", "neither reactflow"),
        ("('{}', null)", "'flow', edges_column => 'edges', shape => 'n8n'",
         "PA203", "not an array"),
        ("('{}', null)", "'flow', shape => 'n8n'", "PA002", '"connections" is missing'),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_when_attached(
    conn: Conn, row: str, call: str, sqlstate: str, message: str
) -> None:
    conn.execute("create table flow (id int primary key default 7, nodes jsonb, edges json)")
    conn.execute(f"insert into flow (nodes, edges) values {row}".encode())
    with pytest.raises(psycopg.Error, match=message) as caught:
        conn.execute(f"select pgaudit_wf.attach_workflow({call})".encode())
    assert caught.value.sqlstate == sqlstate
    assert conn.execute("select * from pgaudit_wf.attached").fetchall() == []


def test_what_cannot_be_read_or_restored_is_refused_when_attached(conn: Conn) -> None:
    conn.execute("""create table chat_flow (id int, "flowData" text, primary key (id))""")
    conn.execute("insert into chat_flow values (1, ''), (2, '{\"nodes\": [')")
    with pytest.raises(psycopg.Error, match=r"row 2 of .* flowData is not JSON"):
        conn.execute("select pgaudit_wf.attach_workflow('chat_flow', shape => 'flowise')")
    conn.execute(OWN + BACK)
    with pytest.raises(psycopg.Error, match="not everybody may call"):
        conn.execute("""select pgaudit_wf.attach_workflow('"Odd"', shape => 'Own')""")
    conn.execute("""grant usage on schema "Own" to public""")
    conn.execute("""insert into "Odd" values (1, '', 0, 'W')""")
    with pytest.raises(psycopg.Error, match="could not be restored") as caught:
        conn.execute("""select pgaudit_wf.attach_workflow('"Odd"', shape => 'Own')""")
    assert caught.value.sqlstate == "PA304"


def test_the_page_shows_a_shape_that_works(conn: Conn) -> None:
    own, keys = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)[2:]
    conn.execute(own)
    conn.execute(keys)
    conn.execute("insert into pipeline values (1, 'W', '{a,b}')")
    conn.execute("update pipeline set steps = '{b}'")
    assert conn.execute("select pgaudit_wf.restore_workflow('1', 1)").fetchone() == (3,)
    assert conn.execute("select steps from pipeline").fetchone() == (["a", "b"],)
