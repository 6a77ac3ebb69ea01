"""The problems `validate_definition` finds, and those it must not find."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

Problem = tuple[str | None, str | None, str, str]
Validate = Callable[[Any, Any], list[Problem]]


@pytest.fixture
def validate(conn: psycopg.Connection) -> Validate:
    def run(nodes: object, edges: object) -> list[Problem]:
        return conn.execute(
            "select * from pgaudit_wf.validate_definition(%s, %s)", [Jsonb(nodes), Jsonb(edges)]
        ).fetchall()

    return run


def node(identity: str, **config: object) -> dict[str, Any]:
    return {"id": identity, "type": "action", "data": {"label": "Step", "config": config}}


CALL = {"network": "1", "contractAddress": "0x1", "abi": "[{}]", "abiFunction": "f"}


def test_a_complete_workflow_has_no_problem(validate: Validate) -> None:
    nodes = [
        node("t", triggerType="Schedule", scheduleCron="0 * * * *"),
        node("r", actionType="web3/read-contract", args="[]", abiFunctionKey="f()", **CALL),
        node("u", actionType="something/unknown"),
    ]
    assert validate(nodes, [{"id": "e", "source": "t", "target": "r"}]) == []
    assert validate([], []) == []
    assert validate(None, None) == []


@pytest.mark.parametrize("empty", [None, "", "  ", [], {}])
def test_required_fields_by_action_type(validate: Validate, empty: object) -> None:
    nodes = [node("r", **{**CALL, "actionType": "web3/read-contract", "abi": empty})]
    assert validate(nodes, []) == [
        ("r", "abi", "missing_field", "Step (web3/read-contract) needs abi")
    ]
    del nodes[0]["data"]["config"]["abi"]
    assert [problem[:3] for problem in validate(nodes, [])] == [("r", "abi", "missing_field")]


def test_zero_and_false_are_values(conn: psycopg.Connection, validate: Validate) -> None:
    conn.execute("insert into pgaudit_wf.action_schema values ('x', '{amount,dry}')")
    assert validate([node("n", actionType="x", amount=0, dry=False)], []) == []


def test_a_required_field_may_be_there_under_a_legacy_name(
    conn: psycopg.Connection, validate: Validate
) -> None:
    conn.execute(
        "update pgaudit_wf.action_schema set required_fields = "
        "array_append(required_fields, 'functionArgs') "
        "where action_type = 'web3/write-contract'"
    )
    action = {"actionType": "web3/write-contract", **CALL}
    assert validate([node("w", args="[1]", **action)], []) == []
    assert [problem[:3] for problem in validate([node("w", **action)], [])] == [
        ("w", "functionArgs", "missing_field")
    ]


def test_ids_and_ends(validate: Validate) -> None:
    nodes = [node("a"), node("a"), {"data": {"label": "Lost"}}, {"id": ""}, 7, None]
    edges = [
        {"id": "e", "source": "a", "target": "gone"},
        {"id": "e", "target": "a"},
        {"source": None, "target": ""},
        "x",
    ]
    assert validate(nodes, edges) == [
        ("a", "id", "duplicate_id", "2 nodes have the id a"),
        (None, "id", "missing_id", "node 3 (Lost) has no id"),
        (None, "id", "missing_id", "node 4 (Node) has no id"),
        (None, None, "not_an_object", "node 5 is a JSON number, not an object"),
        (None, None, "not_an_object", "node 6 is a JSON null, not an object"),
        (None, "id", "duplicate_id", "2 edges have the id e"),
        ("gone", "target", "dangling_edge",
         "edge e has target gone, which is not a node of this workflow"),
        (None, "source", "dangling_edge", "edge e has no source"),
        (None, "source", "dangling_edge", "edge 3 has no source"),
        ("", "target", "dangling_edge", "edge 3 has no target"),
        (None, None, "not_an_object", "edge 4 is a JSON string, not an object"),
    ]  # fmt: skip


def test_what_is_no_array_is_a_problem_too(validate: Validate) -> None:
    assert validate({"id": "n"}, "x") == [
        (None, "nodes", "not_an_array", "nodes is a JSON object, not an array"),
        (None, "edges", "not_an_array", "edges is a JSON string, not an array"),
    ]


@pytest.mark.parametrize("config", [None, "x", 3, ["actionType"], {}])
def test_odd_configurations_are_no_error(validate: Validate, config: object) -> None:
    assert validate([{"id": "n", "data": {"config": config}}, {"id": "m", "data": 3}], []) == []


def test_many_nodes_in_linear_time(conn: psycopg.Connection, validate: Validate) -> None:
    conn.execute("set statement_timeout = '20s'")
    nodes = [node(f"n{i}", actionType="web3/read-contract", **CALL) for i in range(5000)]
    edges = [{"id": f"e{i}", "source": f"n{i}", "target": f"n{i + 1}"} for i in range(5000)]
    assert [problem[:3] for problem in validate(nodes, edges)] == [
        ("n5000", "target", "dangling_edge")
    ]
