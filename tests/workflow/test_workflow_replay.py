"""Real edit histories, saved one version after another: what the database makes of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from pgaudit_wf.workflow.definition import content_hash
from support.server import Conn

Graph = tuple[list[dict[str, Any]], list[dict[str, Any]]]

DATA = Path(__file__).parents[3] / "shared" / "data" / "workflow-histories"
FILES = sorted(DATA.glob("*.jsonl"))
ID = "11111111-1111-4111-8111-111111111111"

pytestmark = pytest.mark.skipif(not FILES, reason="../shared/data is not here")


def read(file: Path) -> list[Graph]:
    lines = [json.loads(line) for line in file.read_text().splitlines() if line]
    return [(line["nodes"], line["edges"]) for line in lines]


# Written anew, so that a mistake in pgaudit_wf.definition does not hide one in the database.
def meaning(graph: Graph) -> object:
    nodes, edges = graph
    found = []
    for node in nodes:
        kept = {key: node[key] for key in ("id", "type", "data") if key in node}
        config = kept.get("data", {}).get("config")
        if isinstance(config, dict):
            config = {key: value for key, value in config.items() if key != "abiFunctionKey"}
            if "args" in config:
                config.setdefault("functionArgs", config.pop("args"))
                config.pop("args", None)
            kept["data"] = {**kept["data"], "config": config}
        found.append(kept)
    ends = ("id", "source", "target", "sourceHandle", "targetHandle", "data")
    return found, [{key: edge[key] for key in ends if key in edge} for edge in edges]


def different(before: Graph, after: Graph) -> dict[str, set[Any]]:
    old = {node["id"]: node for node in before[0]}
    new = {node["id"]: node for node in after[0]}

    def wires(graph: Graph) -> set[tuple[Any, ...]]:
        ends = ("source", "target", "sourceHandle", "targetHandle")
        return {tuple(edge.get(end) or None for end in ends) for edge in graph[1]}

    return {
        "nodes_added": set(new) - set(old),
        "nodes_removed": set(old) - set(new),
        "nodes_changed": {
            key
            for key in set(old) & set(new)
            if meaning(([old[key]], [])) != meaning(([new[key]], []))
        },
        "connections_added": wires(after) - wires(before),
        "connections_removed": wires(before) - wires(after),
    }


def listed(change: dict[str, Any]) -> dict[str, set[Any]]:
    found: dict[str, set[Any]] = {
        key: {entry["id"] for entry in change[key]}
        for key in ("nodes_added", "nodes_removed", "nodes_changed")
    }
    for key in ("connections_added", "connections_removed"):
        found[key] = {
            (entry["from_id"], entry["to_id"], entry.get("source_handle"),
             entry.get("target_handle"))
            for entry in change[key]
        }  # fmt: skip
    assert all(len(found[key]) == len(change[key]) for key in found)
    return found


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def saves(request: pytest.FixtureRequest) -> list[Graph]:
    return read(request.param)


@pytest.fixture
def db(app_conn: Conn, saves: list[Graph]) -> Iterator[Conn]:
    """The reference application after the whole history was saved."""
    app_conn.execute("insert into organization (id, name) values ('o_1', 'One')")
    for number, (nodes, edges) in enumerate(saves):
        with app_conn.transaction():
            app_conn.execute("select set_config('app.correlation_id', %s, true)", [str(number)])
            app_conn.execute(
                "insert into workflow (id, org_id, name, nodes, edges) values (%(id)s, 'o_1', 'W',"
                " %(nodes)s, %(edges)s) on conflict (id) do update set nodes = excluded.nodes,"
                " edges = excluded.edges, updated_at = now()",
                {"id": ID, "nodes": Jsonb(nodes), "edges": Jsonb(edges)},
            )
    return app_conn  # type: ignore[return-value]


def expected(saves: list[Graph]) -> list[tuple[int, Graph]]:
    """The saves that make a version, by their number."""
    kept = [(0, saves[0])]
    for number, graph in enumerate(saves):
        if meaning(graph) != meaning(kept[-1][1]):
            kept.append((number, graph))
    return kept


def test_replay_gives_the_versions_hashes_and_diffs_expected(db: Conn, saves: list[Graph]) -> None:
    wanted = expected(saves)
    kept = db.execute(
        "select version, correlation_id, content_hash, snapshot -> 'nodes', snapshot -> 'edges', "
        "change from pgaudit_wf.workflow_history where workflow_id = %s order by version",
        [ID],
    ).fetchall()
    assert [(row[0], row[1]) for row in kept] == [
        (version, str(number)) for version, (number, _) in enumerate(wanted, 1)
    ]
    assert [row[2] for row in kept] == [content_hash(*graph) for _, graph in wanted]
    assert [(row[3], row[4]) for row in kept] == [graph for _, graph in wanted]
    before: Graph = ([], [])
    for row, (_, graph) in zip(kept, wanted, strict=True):
        assert listed(row[5]) == different(before, graph)
        assert row[5]["has_changes"] is True
        for entry in row[5]["nodes_changed"]:
            assert entry["deltas"]
        before = graph
    assert db.execute(
        "select count(*) from pgaudit_wf.security_audit_log where captured "
        "and resource_type = 'workflow'"
    ).fetchone() == (len(wanted),)


def test_any_two_versions_compare_as_if_saved_one_after_the_other(
    db: Conn, saves: list[Graph]
) -> None:
    wanted = expected(saves)
    for first in range(1, len(wanted) + 1):
        for second in range(first, len(wanted) + 1, 3):
            row = db.execute(
                "select pgaudit_wf.compare_versions(%s, %s, %s)", [ID, first, second]
            ).fetchone()
            assert row is not None
            assert listed(row[0]) == different(wanted[first - 1][1], wanted[second - 1][1])


def test_each_version_can_be_restore_version(db: Conn, saves: list[Graph]) -> None:
    wanted = expected(saves)
    current = content_hash(*wanted[-1][1])
    for version, (_, graph) in enumerate(wanted, 1):
        row = db.execute("select pgaudit_wf.restore_workflow(%s, %s)", [ID, version]).fetchone()
        present = db.execute(
            "select nodes, edges, pgaudit_wf.hash_definition(nodes, edges) from workflow"
        ).fetchone()
        assert present is not None
        assert present[2] == content_hash(*graph)
        newest = db.execute(
            "select version, content_hash, source, restored_from from pgaudit_wf.workflow_history "
            "order by version desc limit 1"
        ).fetchone()
        assert newest is not None
        assert row == (newest[0],)
        assert newest[1] == content_hash(*graph)
        if content_hash(*graph) != current:
            assert (present[0], present[1]) == graph
            assert newest[2:] == ("restore", version)
            assert db.execute(
                "select action, metadata -> 'restored_from' from pgaudit_wf.security_audit_log "
                "where captured order by id desc limit 1"
            ).fetchone() == ("workflow.restored", version)
        current = content_hash(*graph)
