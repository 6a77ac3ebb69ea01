"""A draft may be as broken as it likes; enabling, listing and running it is another matter."""

import json
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.types.json import Jsonb

from support.server import Conn

ID = "11111111-1111-4111-8111-111111111111"


def http(name: str, **config: object) -> dict[str, Any]:
    return {
        "id": name,
        "type": "action",
        "data": {"label": name, "config": {"actionType": "HTTP Request", **config}},
    }


GOOD = [http("a", endpoint="https://a", httpMethod="GET")]
BAD = [http("a", endpoint=" "), http("a", endpoint="https://a", httpMethod="GET")]
DANGLING = [{"id": "e", "source": "a", "target": "gone"}]
PROBLEMS = [
    ("a", "id", "duplicate_id"),
    ("a", "endpoint", "missing_field"),
    ("a", "httpMethod", "missing_field"),
    ("gone", "target", "dangling_edge"),
]


@pytest.fixture
def db(app_conn: Conn) -> Conn:
    app_conn.execute("insert into organization (id, name) values ('o_1', 'One')")
    app_conn.execute("insert into workflow (id, org_id, name) values (%s, 'o_1', 'W')", [ID])
    return app_conn


def save(conn: Conn, nodes: object, edges: object = ()) -> None:
    conn.execute("update workflow set nodes = %s, edges = %s", [Jsonb(nodes), Jsonb(list(edges))])  # type: ignore[call-overload]


def problems(conn: Conn, query: LiteralString, *args: object) -> list[tuple[str | None, str, str]]:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(query, args)
    assert caught.value.sqlstate == "PA301"
    assert "problem" in str(caught.value.diag.message_primary)
    found = json.loads(caught.value.diag.message_detail or "")
    assert all(problem["message"] for problem in found)
    return [(problem["node_id"], problem["field"], problem["code"]) for problem in found]


SWITCHES: tuple[LiteralString, ...] = (
    "update workflow set enabled = true",
    "update workflow set listed = true, listed_slug = 'w'",
    f"insert into workflow_execution (workflow_id) values ('{ID}')",
)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_broken_draft_is_saved_but_does_not_go_live(db: Conn, switch: LiteralString) -> None:
    save(db, BAD, DANGLING)
    before = db.execute("select * from workflow").fetchall()
    assert problems(db, switch) == PROBLEMS
    assert db.execute("select * from workflow").fetchall() == before
    assert db.execute("select count(*) from workflow_execution").fetchone() == (0,)
    assert db.execute("select count(*) from pgaudit_wf.workflow_history").fetchone() == (2,)
    assert db.execute(
        "select array_agg(action order by id) from pgaudit_wf.security_audit_log "
        "where captured and resource_type = 'workflow'"
    ).fetchone() == (["workflow.created", "workflow.updated"],)
    save(db, GOOD)
    db.execute(switch)


def test_the_graph_that_counts_is_the_one_that_goes_live(db: Conn) -> None:
    save(db, BAD)
    db.execute("update workflow set enabled = true, nodes = %s", [Jsonb(GOOD)])
    db.execute("update workflow set enabled = false")
    problems(db, "update workflow set enabled = true, nodes = %s", Jsonb(BAD))


def test_a_live_workflow_stays_a_draft_that_can_be_saved(db: Conn) -> None:
    save(db, GOOD)
    db.execute("update workflow set enabled = true, listed = true")
    save(db, BAD, DANGLING)
    db.execute("update workflow set name = 'Still enabled', enabled = true")
    assert problems(db, SWITCHES[2]) == PROBLEMS
    db.execute("update workflow set enabled = false, listed = false")
    problems(db, SWITCHES[0])


@pytest.mark.parametrize("column", ["enabled", "listed"])
def test_a_broken_workflow_is_not_created_live(db: Conn, column: LiteralString) -> None:
    query: LiteralString = (
        "insert into workflow (org_id, name, nodes, " + column + ") values ('o_1', 'X', %s, true)"
    )
    assert problems(db, query, Jsonb(BAD)) == PROBLEMS[:3]
    db.execute(query, [Jsonb(GOOD)])


def test_legacy_spellings_are_no_problem_and_no_change(db: Conn) -> None:
    db.execute(
        "insert into pgaudit_wf.action_schema (action_type, required_fields) "
        "values ('call', '{functionArgs}')"
    )
    legacy = [{"id": "a", "type": "action", "data": {"config": {
        "actionType": "call", "args": "[1]", "abiFunctionKey": "f(uint256)"}}}]  # fmt: skip
    modern = [{"id": "a", "type": "action", "data": {"config": {
        "actionType": "call", "functionArgs": "[1]"}}}]  # fmt: skip
    save(db, legacy)
    for switch in SWITCHES:
        db.execute(switch)
    rows = "select count(*) from pgaudit_wf.workflow_history"
    before = db.execute(rows).fetchone()
    save(db, modern)
    assert db.execute(rows).fetchone() == before
    save(db, [{**modern[0], "data": {"config": {"actionType": "call", "args": ""}}}])
    assert problems(db, SWITCHES[2]) == [("a", "functionArgs", "missing_field")]


def test_many_problems_are_all_in_the_detail_and_five_in_the_message(db: Conn) -> None:
    save(db, [http(f"n{number}", httpMethod="GET") for number in range(12)])
    with pytest.raises(psycopg.Error) as caught:
        db.execute(SWITCHES[0])
    assert len(json.loads(caught.value.diag.message_detail or "")) == 12
    assert str(caught.value.diag.message_primary).count("needs endpoint") == 5


def test_a_graph_that_is_no_array_does_not_go_live(db: Conn) -> None:
    assert problems(
        db, "insert into workflow (org_id, name, nodes, enabled) values ('o_1', 'X', '{}', true)"
    ) == [(None, "nodes", "not_an_array")]
