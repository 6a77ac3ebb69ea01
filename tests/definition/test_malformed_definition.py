"""Definitions that no editor should make: recorded as they are, or refused whole and clearly."""

import json
import time
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgaudit_wf.workflow.definition import content_hash
from support.server import Conn

GOOD = [{"id": "a", "type": "action", "data": {"label": "A"}}]


@pytest.fixture
def db(conn: Conn) -> Conn:
    conn.execute("create table flow (id text primary key, name text, nodes jsonb, edges jsonb)")
    conn.execute("select pgaudit_wf.attach_workflow('flow')")
    conn.execute("insert into flow values ('w', 'W', %s, '[]')", [Jsonb(GOOD)])
    return conn


def kept(conn: Conn) -> list[Any]:
    return conn.execute(
        "select version, snapshot -> 'nodes', snapshot -> 'edges', content_hash "
        "from pgaudit_wf.workflow_history order by version"
    ).fetchall()


def everything(conn: Conn) -> list[Any]:
    return [
        conn.execute(f"select * from {table} order by 1, 2".encode()).fetchall()
        for table in ("flow", "pgaudit_wf.workflow_history", "pgaudit_wf.security_audit_log")
    ]


ODD: dict[str, tuple[list[Any], list[Any]]] = {
    "no id": ([{"type": "action"}, {"type": "action", "data": {"label": "B"}}], []),
    "duplicate ids": ([*GOOD, {"id": "a", "data": {"label": "Other"}}, *GOOD], []),
    "nulls": ([None, {"id": None, "type": None, "data": None}], [None, {"source": None}]),
    "scalars": ([1, "two", True, [], [[]], {}], ["x", 1.5, {}]),
    "numbers for ids": ([{"id": 1, "data": {}}, {"id": 1.5}], [{"source": 1, "target": 1.5}]),
    "data is no object": ([{"id": "a", "data": [1]}, {"id": "b", "data": "x"}], []),
    "config is no object": ([{"id": "a", "data": {"config": [{"args": 1}]}}], []),
    "dangling and doubled edges": (GOOD, [{"source": "a", "target": "z"}] * 3),
    "odd texts": (
        [{"id": 'q"\\\n\u2028\U0001f600',
          "data": {"label": "\x7f\x1f", "\U0001f600": 1, "\ue000": 2}}],
        [],
    ),
    "odd numbers": ([{"id": "a", "data": {"n": [1e-320, 1e22, -0.0, 2**53 + 1, 0.1]}}], []),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_odd_definitions_are_kept_as_they_are(db: Conn, case: str) -> None:
    nodes, edges = ODD[case]
    db.execute("update flow set nodes = %s, edges = %s", [Jsonb(nodes), Jsonb(edges)])
    db.execute("update flow set nodes = %s, edges = '[]'", [Jsonb(GOOD)])
    db.execute("update flow set nodes = %s, edges = %s", [Jsonb(nodes), Jsonb(edges)])
    hashes = [content_hash(GOOD, []), content_hash(nodes, edges)] * 2
    rows = kept(db)
    assert [row[0] for row in rows] == [1, 2, 3, 4]
    assert [row[3] for row in rows] == hashes
    assert (rows[1][1], rows[1][2]) == (rows[3][1], rows[3][2]) == (nodes, edges)
    assert db.execute(
        "select bool_and((change -> 'has_changes')::boolean) from pgaudit_wf.workflow_history"
    ).fetchone() == (True,)
    assert db.execute("select pgaudit_wf.restore_workflow('w', 1)").fetchone() == (5,)
    assert db.execute("select pgaudit_wf.restore_workflow('w', 2)").fetchone() == (6,)
    assert kept(db)[-1] == (6, nodes, edges, hashes[1])
    db.execute("select * from pgaudit_wf.workflow_versions('w')")
    db.execute("select pgaudit_wf.validate_definition(nodes, edges) from flow")


def nested(depth: int) -> str:
    return '[{"id": "a", "data": ' + "[" * depth + "]" * depth + "}]"


REFUSED = {
    "an object": ('{"a": 1}', "PA203", "nodes is a JSON object, not an array"),
    "a text": ('"[]"', "PA203", "nodes is a JSON string, not an array"),
    "a number": ("1", "PA203", "nodes is a JSON number, not an array"),
    "too deep": (nested(300), "PA202", "more than 200 levels"),
    "too deep by far": (nested(4000), "PA202", "more than 200 levels"),
    "a number too large": ('[{"id": "a", "data": {"n": 1e309}}]', "PA201", "out of range"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_hash_is_refused_whole(db: Conn, case: str) -> None:
    text, sqlstate, message = REFUSED[case]
    before = everything(db)
    for statement in (
        "update flow set name = 'Also renamed', nodes = %s::jsonb",
        "insert into flow (id, nodes) values ('x', %s::jsonb)",
    ):
        with pytest.raises(psycopg.Error) as caught:
            db.execute(statement.encode(), [text])
        assert caught.value.sqlstate == sqlstate
        assert message in str(caught.value.diag.message_primary)
        assert caught.value.diag.message_hint
    assert everything(db) == before


def test_malformed_edges_are_named(db: Conn) -> None:
    before = everything(db)
    with pytest.raises(psycopg.Error, match="edges is a JSON object") as caught:
        db.execute("update flow set edges = '{}'")
    assert caught.value.sqlstate == "PA203"
    assert everything(db) == before


def test_nesting_at_the_limit_is_kept(db: Conn) -> None:
    nodes = json.loads(nested(195))
    db.execute("update flow set nodes = %s::jsonb", [nested(195)])
    assert kept(db)[-1][3] == content_hash(nodes, [])
    db.execute("update flow set nodes = %s::jsonb", [nested(194)])
    assert kept(db)[-1][0] == 3


def test_best_effort_lets_a_malformed_save_through_with_no_half_of_it(db: Conn) -> None:
    db.execute("select pgaudit_wf.attach_workflow('flow', on_failure => 'warn')")
    before = everything(db)[1:]
    db.execute("update flow set name = 'Renamed', nodes = '{}'")
    assert everything(db)[1:] == before
    assert db.execute("select target, op, sqlstate from pgaudit_wf.capture_failure").fetchall() == [
        ("public.flow", "UPDATE", "PA203")
    ]
    db.execute("update flow set nodes = %s", [Jsonb(GOOD * 2)])
    assert [row[0] for row in kept(db)] == [1, 2]
    assert kept(db)[-1][3] == content_hash(GOOD * 2, [])


@pytest.mark.slow
def test_ten_megabytes_in_one_node(db: Conn) -> None:
    nodes = [{"id": "a", "data": {"label": "A", "config": {"text": "line äö\n" * 1_200_000}}}]
    db.execute("update flow set nodes = %s", [Jsonb(nodes)])
    assert kept(db)[-1][3] == content_hash(nodes, [])
    before = len(kept(db))
    db.execute("update flow set nodes = jsonb_set(nodes, '{0,position}', '{}')")
    assert len(kept(db)) == before


def many(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"n{n}", "type": "action", "position": {"x": n},
         "data": {"label": f"N {n}", "config": {"actionType": "HTTP Request", "url": f"https://{n}"}}}
        for n in range(count)
    ]  # fmt: skip


def wires(count: int) -> list[dict[str, Any]]:
    return [{"id": f"e{n}", "source": f"n{n}", "target": f"n{n + 1}"} for n in range(count - 1)]


@pytest.mark.slow
def test_five_thousand_nodes_take_time_in_proportion(db: Conn) -> None:
    spent = {}
    for count in (500, 5000):
        nodes, edges = many(count), wires(count)
        started = time.perf_counter()
        db.execute("update flow set nodes = %s, edges = %s", [Jsonb(nodes), Jsonb(edges)])
        assert kept(db)[-1][3] == content_hash(nodes, edges)
        # Each node at another place, and each one changed.
        for changed in (nodes[1:], [{**n, "data": {"label": "X"}} for n in nodes[1:]]):
            db.execute("update flow set nodes = %s", [Jsonb(changed)])
            assert kept(db)[-1][3] == content_hash(changed, edges)
        spent[count] = time.perf_counter() - started
    change = db.execute(
        "select jsonb_array_length(change -> 'nodes_changed'), change -> 'nodes_removed' "
        "from pgaudit_wf.workflow_history order by version desc limit 1"
    ).fetchone()
    assert change == (4999, [])
    # Ten times the nodes; quadratic work would take a hundred times as long.
    assert spent[5000] < 40 * spent[500]
