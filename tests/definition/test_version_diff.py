"""What people read between two versions."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from support.factories import edge

HISTORIES = sorted(
    (Path(__file__).parents[3] / "shared" / "data" / "workflow-histories").glob("*.jsonl")
)
KEYS = {
    "settings", "nodes_added", "nodes_removed", "nodes_changed",
    "connections_added", "connections_removed", "has_changes",
}  # fmt: skip

Diff = Callable[[Any, Any], dict[str, Any]]
ABI = [
    {"type": "event", "name": "transfer", "inputs": [{"name": "no", "type": "address"}]},
    {"type": "function", "name": "transfer", "inputs": [
        {"name": "to", "type": "address"}, {"name": "amount", "type": "uint256"}]},
    {"type": "function", "name": "transfer", "inputs": [
        {"name": "order", "type": "tuple[]", "components": [
            {"name": "maker", "type": "address"}, {"name": "size", "type": "uint8"}]},
        {"name": "deadline", "type": "uint256"}]},
    {"type": "function", "name": "burn", "inputs": [{"name": "", "type": "uint256"}]},
]  # fmt: skip


@pytest.fixture
def diff(conn: psycopg.Connection) -> Diff:
    def run(before: object, after: object) -> dict[str, Any]:
        row = conn.execute(
            "select pgaudit_wf.version_diff(%s, %s)",
            [None if side is None else Jsonb(side) for side in (before, after)],
        ).fetchone()
        assert row is not None
        assert set(row[0]) == KEYS
        return dict(row[0])

    return run


@pytest.fixture
def summary(conn: psycopg.Connection, diff: Diff) -> Callable[[Any, Any], str]:
    def run(before: object, after: object) -> str:
        row = conn.execute(
            "select pgaudit_wf.version_summary(%s)", [Jsonb(diff(before, after))]
        ).fetchone()
        assert row is not None
        return str(row[0])

    return run


def node(identity: str, label: str | None = None, **data: object) -> dict[str, Any]:
    return {
        "id": identity,
        "type": "action",
        "position": {"x": 0, "y": 0},
        "data": data if label is None else {"label": label, **data},
    }


def graph(nodes: list[Any], edges: list[Any] | None = None, **settings: object) -> dict[str, Any]:
    return {"name": "A", "nodes": nodes, "edges": edges or [], **settings}


def config_change(diff: Diff, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The one changed key of a node whose configuration goes from `before` to `after`."""
    found = diff(graph([node("n", "N", config=before)]), graph([node("n", "N", config=after)]))[
        "nodes_changed"
    ]
    assert [(change["id"], [d["field"] for d in change["deltas"]]) for change in found] == [
        ("n", ["configuration"])
    ]
    (change,) = found[0]["deltas"][0]["changes"]
    return dict(change)


def test_equal_definitions_have_no_difference(
    diff: Diff, summary: Callable[[Any, Any], str]
) -> None:
    version = graph([node("a", "A")], [edge("a", "a")], description=None)
    moved = graph(
        [{**node("a", "A"), "position": {"x": 9}, "selected": True}],
        [edge("a", "a", style={"stroke": "red"})],
        description="",
    )
    expected: dict[str, object] = {key: [] for key in KEYS}
    expected["has_changes"] = False
    assert diff(version, version) == expected
    assert diff(version, moved) == expected
    assert summary(version, moved) == "no changes"


def test_settings(diff: Diff, summary: Callable[[Any, Any], str]) -> None:
    before = graph([], name="A", visibility="private", enabled=False, description=None)
    after = graph([], name="B", visibility="public", enabled=True, description="why")
    found = diff(before, after)
    assert found["settings"] == [
        {"field": "name", "before": "A", "after": "B"},
        {"field": "description", "before": "empty", "after": "why"},
        {"field": "visibility", "before": "private", "after": "public"},
        {"field": "enabled", "before": "false", "after": "true"},
    ]
    assert found["has_changes"] is True
    assert summary(before, after) == (
        "renamed 'A' to 'B'; description changed; "
        "visibility changed from private to public; enabled"
    )


def test_nodes_and_connections(diff: Diff, summary: Callable[[Any, Any], str]) -> None:
    before = graph(
        [node("a", "First"), node("b", "Second"), node("c", "Third")],
        [edge("a", "b"), edge("b", "c", sourceHandle="true")],
    )
    after = graph(
        [node("d", "Fourth"), node("a", "Renamed"), node("c", "Third"), node("e", "Fifth")],
        [edge("a", "c"), edge("a", "d", sourceHandle="false", targetHandle="in")],
        name="B",
    )
    found = diff(before, after)
    assert found["nodes_added"] == [
        {"id": "d", "label": "Fourth", "node_type": "action"},
        {"id": "e", "label": "Fifth", "node_type": "action"},
    ]
    assert found["nodes_removed"] == [{"id": "b", "label": "Second", "node_type": "action"}]
    assert found["nodes_changed"] == [
        {
            "id": "a", "label": "Renamed", "node_type": "action", "action_type": None,
            "deltas": [{"field": "name", "before": "First", "after": "Renamed"}],
        }
    ]  # fmt: skip
    assert found["connections_added"] == [
        {"from": "Renamed", "to": "Third", "from_id": "a", "to_id": "c"},
        {"from": "Renamed", "to": "Fourth", "from_id": "a", "to_id": "d",
         "source_handle": "false", "target_handle": "in"},
    ]  # fmt: skip
    assert found["connections_removed"] == [
        {"from": "Renamed", "to": "Second", "from_id": "a", "to_id": "b"},
        {"from": "Second", "to": "Third", "from_id": "b", "to_id": "c", "source_handle": "true"},
    ]
    assert summary(before, after) == (
        "2 nodes added, 1 removed, 1 changed, 2 connections added, 2 removed; renamed 'A' to 'B'"
    )
    assert summary(after, {**after, "nodes": after["nodes"][:-1]}) == "1 node removed"


def test_creation_and_removal(diff: Diff, summary: Callable[[Any, Any], str]) -> None:
    version = graph([node("a", "A"), node("b", "B")], [edge("a", "b")], enabled=True)
    created = diff(None, version)
    assert [entry["id"] for entry in created["nodes_added"]] == ["a", "b"]
    assert len(created["connections_added"]) == 1
    assert created["settings"][0] == {"field": "name", "before": "empty", "after": "A"}
    assert summary(None, version) == "2 nodes added, 1 connection added; named 'A'; enabled"
    removed = diff(version, None)
    assert [entry["id"] for entry in removed["nodes_removed"]] == ["a", "b"]
    assert diff(None, None)["has_changes"] is False


@pytest.mark.parametrize(
    ("added", "label"),
    [
        (node("n", " Mine ", config={"actionType": "x"}), "Mine"),
        (node("n", "  ", config={"actionType": "web3/read-contract"}), "web3/read-contract"),
        (node("n", config={"triggerType": "Schedule"}), "Schedule"),
        (node("n", type="trigger"), "Trigger"),
        (node("n"), "Action"),
        ({"id": "n"}, "Node"),
        ({"id": "n", "data": None}, "Node"),
        (3, "Node"),
    ],
)
def test_labels(diff: Diff, added: object, label: str) -> None:
    assert [entry["label"] for entry in diff(None, graph([added]))["nodes_added"]] == [label]


def test_deltas_of_a_node(diff: Diff) -> None:
    before = node("n", "N", description="old", type="action")
    after = node("n", "N", type="trigger", enabled=False, config={"triggerType": "Manual"})
    (change,) = diff(graph([before]), graph([after]))["nodes_changed"]
    assert change["deltas"] == [
        {"field": "description", "before": "old", "after": "empty"},
        {"field": "type", "before": "action", "after": "trigger"},
        {"field": "enabled", "before": "true", "after": "false"},
        {"field": "configuration", "changes": [
            {"key": "triggerType", "before": "empty", "after": "Manual"}]},
    ]  # fmt: skip


def test_enabled_is_what_an_absent_switch_means(diff: Diff) -> None:
    found = diff(graph([node("n", "N")]), graph([node("n", "N", enabled=True)]))
    assert found["nodes_changed"] == []
    # Nothing for people to read, and yet another hash.
    assert found["has_changes"] is True


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("a", "b", ("a", "b")),
        (None, "", ("empty", "empty")),
        ("x" * 100_000, 0, ("x" * 100_000, "0")),
        ({"b": [1, None]}, True, ('{"b": [1, null]}', "true")),
        ("{{@n1:Get price.value}} and {{@n2:X.y}}", "{{plain}}",
         ("{{Get price.value}} and {{X.y}}", "{{plain}}")),
        ({"u": "{{@n1:A.b}}"}, ["{{@n1:A.c}}"], ('{"u": "{{A.b}}"}', '["{{A.c}}"]')),
    ],
)  # fmt: skip
def test_configuration_values_in_full(
    diff: Diff, before: object, after: object, expected: tuple[str, str]
) -> None:
    change = config_change(diff, {"key": before, "same": 1}, {"key": after, "same": 1})
    assert change == {"key": "key", "before": expected[0], "after": expected[1]}


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        ("transfer", '["0xab","{{@t:Trigger.amount}}"]',
         {"to": "0xab", "amount": "{{Trigger.amount}}"}),
        ("transfer", ["0xab", 5, "", ""], {"to": "0xab", "amount": 5}),
        ("transfer(address,uint256)", ["0xab"], {"to": "0xab"}),
        ("transfer((address,uint8)[],uint256)", [[["0x1", 2]], 9],
         {"order": [["0x1", 2]], "deadline": 9}),
        ("transfer", ["a", "b", "kept"], {"to": "a", "amount": "b", "arg2": "kept"}),
        ("burn", ["1"], {"arg0": "1"}),
        ("unknown", ["1", "2"], {"arg0": "1", "arg1": "2"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("abi", [ABI, json.dumps(ABI)], ids=["array", "text"])
def test_contract_arguments_by_name(
    diff: Diff, abi: object, function: str, arguments: object, expected: dict[str, Any]
) -> None:
    same = {"abi": abi, "abiFunction": function}
    change = config_change(diff, {**same}, {**same, "args": arguments})
    assert change["key"] == "functionArgs"
    assert change["before"] == "empty"
    assert json.loads(change["after"]) == expected
    assert list(json.loads(change["after"])) == list(expected)


@pytest.mark.parametrize(
    ("abi", "arguments", "text"),
    [
        ("not json", '["a"]', '{\n  "arg0": "a"\n}'),
        (None, "not json {{@a:B.c}}", "not json {{B.c}}"),
        (ABI, '{"no": "array"}', '{"no": "array"}'),
        (ABI, [], "[]"),
        ([3, None, {"name": "transfer"}], ["a"], '{\n  "arg0": "a"\n}'),
    ],
)
def test_arguments_that_cannot_be_named(
    diff: Diff, abi: object, arguments: object, text: str
) -> None:
    same = {"abi": abi, "abiFunction": "transfer"}
    assert config_change(diff, {**same}, {**same, "functionArgs": arguments})["after"] == text


GROUP = {
    "logic": "AND",
    "rules": [
        {"leftOperand": "{{@n:Price.value}}", "operator": ">", "rightOperand": "100"},
        {"logic": "OR", "rules": [
            {"leftOperand": "a", "operator": "isEmpty", "rightOperand": ""},
            {"leftOperand": "", "operator": "==", "rightOperand": "b"}]},
        {"leftOperand": "c", "operator": "exists"},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "tree", [{"group": GROUP}, GROUP, json.dumps({"group": GROUP})], ids=["tree", "bare", "text"]
)
def test_condition_tree_as_a_rule_list(diff: Diff, tree: object) -> None:
    change = config_change(diff, {}, {"conditionConfig": tree})
    assert change["before"] == "empty"
    assert change["after"].splitlines() == [
        "1. {{Price.value}} > 100",
        "AND",
        "2. group",
        "  1. a isEmpty",
        "  OR",
        '  2. "" == b',
        "AND",
        "3. c exists",
    ]


@pytest.mark.parametrize("tree", ['{"rules" broken', {"rules": 3}, {"group": {"rules": []}}])
def test_condition_that_is_no_tree(diff: Diff, tree: object) -> None:
    text = config_change(diff, {}, {"conditionConfig": tree})["after"]
    expected = {'{"rules": 3}': '{"rules": 3}'}.get(json.dumps(tree), "empty")
    if isinstance(tree, str):
        expected = tree
    assert text == expected


def test_legacy_spelling_is_no_change(diff: Diff) -> None:
    before = node("n", "N", config={"args": "[1]", "abiFunctionKey": "f()"})
    after = node("n", "N", config={"functionArgs": "[1]"})
    assert diff(graph([before]), graph([after]))["has_changes"] is False


def test_data_beside_the_configuration_changes_by_its_members(diff: Diff) -> None:
    before = node("n", "N", inputs={"model": "a", "temperature": 0.5}, tags=["x"], version=1)
    after = node("n", "N", inputs={"model": "b", "temperature": 0.5}, tags=["x", "y"], version=1)
    (change,) = diff(graph([before]), graph([after]))["nodes_changed"]
    assert change["deltas"] == [
        {"field": "configuration", "changes": [
            {"key": "inputs.model", "before": "a", "after": "b"},
            {"key": "tags", "before": '["x"]', "after": '["x", "y"]'}]},
    ]  # fmt: skip


def test_duplicate_and_missing_ids_are_matched_in_order(diff: Diff) -> None:
    before = graph([node("d", "1"), node("d", "2"), {"data": {"label": "x"}}, 5])
    after = graph([node("d", "1"), node("d", "3"), node("d", "4"), {"data": {"label": "y"}}, 5])
    found = diff(before, after)
    assert [entry["label"] for entry in found["nodes_added"]] == ["4"]
    assert found["nodes_removed"] == []
    assert [(entry["id"], entry["label"]) for entry in found["nodes_changed"]] == [
        ("d", "3"),
        (None, "y"),
    ]
    twice = graph([node("d", "1")], [edge("d", "d"), edge("d", "d")])
    once = graph([node("d", "1")], [edge("d", "d")])
    assert len(diff(twice, once)["connections_removed"]) == 1


@pytest.mark.parametrize("data", [None, 3, "x", [1]])
def test_malformed_data_is_shown(diff: Diff, data: object) -> None:
    after = {"id": "n", "type": "action", "data": data}
    (change,) = diff(graph([node("n", "N")]), graph([after]))["nodes_changed"]
    assert change["deltas"][-1]["field"] == "configuration"
    assert change["deltas"][-1]["changes"][-1]["key"] == "data"


def test_unlisted_changes_are_changes(diff: Diff, summary: Callable[[Any, Any], str]) -> None:
    before = graph([node("a", "A"), node("b", "B")], [edge("a", "b")])
    for after in (
        graph([node("b", "B"), node("a", "A")], [edge("a", "b")]),
        graph(before["nodes"], [edge("a", "b", data={"label": "yes"})]),
        graph(before["nodes"], [{**edge("a", "b"), "id": "other"}]),
    ):
        found = diff(before, after)
        assert found["has_changes"] is True
        assert all(found[key] == [] for key in KEYS - {"has_changes"})
        assert summary(before, after) == "order or connection details changed"
    assert (
        diff(before, graph(before["nodes"], [edge("a", "b", sourceHandle="")]))["connections_added"]
        == []
    )


@pytest.mark.skipif(not HISTORIES, reason="../shared/data/workflow-histories is not there")
@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_real_histories(conn: psycopg.Connection, diff: Diff, path: Path) -> None:
    saves = [json.loads(line) for line in path.read_text().splitlines()]
    for old, new in itertools.pairwise(saves):
        old_nodes = {n["id"]: (n["type"], n["data"]) for n in old["nodes"]}
        new_nodes = {n["id"]: (n["type"], n["data"]) for n in new["nodes"]}
        ends = ("source", "target", "sourceHandle", "targetHandle")
        old_edges = {tuple(e[end] for end in ends) for e in old["edges"]}
        new_edges = {tuple(e[end] for end in ends) for e in new["edges"]}
        found = diff(old, new)
        assert {n["id"] for n in found["nodes_added"]} == new_nodes.keys() - old_nodes.keys()
        assert {n["id"] for n in found["nodes_removed"]} == old_nodes.keys() - new_nodes.keys()
        assert {n["id"] for n in found["nodes_changed"]} == {
            identity
            for identity in new_nodes.keys() & old_nodes.keys()
            if new_nodes[identity] != old_nodes[identity]
        }
        for name, expected in (
            ("connections_added", new_edges - old_edges),
            ("connections_removed", old_edges - new_edges),
        ):
            assert {
                (c["from_id"], c["to_id"], c["source_handle"], c["target_handle"])
                for c in found[name]
            } == expected
        row = conn.execute(
            "select pgaudit_wf.hash_definition(%s, %s) <> pgaudit_wf.hash_definition(%s, %s)",
            [Jsonb(save[part]) for save in (old, new) for part in ("nodes", "edges")],
        ).fetchone()
        settings = old.get("description") != new.get("description")
        assert row is not None
        assert found["has_changes"] == (row[0] or settings)


def test_many_nodes_in_linear_time(conn: psycopg.Connection, diff: Diff) -> None:
    conn.execute("set statement_timeout = '20s'")
    nodes = [node(f"n{i}", f"N{i}") for i in range(5000)]
    edges = [edge(f"n{i}", f"n{i + 1}") for i in range(4999)]
    found = diff(graph(nodes, edges), graph([*nodes[1:], node("new", "New")], edges[1:]))
    assert [n["id"] for n in found["nodes_added"]] == ["new"]
    assert [n["id"] for n in found["nodes_removed"]] == ["n0"]
    assert [(c["from"], c["to"]) for c in found["connections_removed"]] == [("N0", "N1")]
    rewired = [edge(f"n{i + 1}", f"n{i}") for i in range(4999)]
    assert len(diff(graph(nodes, edges), graph(nodes, rewired))["connections_added"]) == 4999
