"""`pgaudit-wf workflow`: versions as files and copies, and deleted workflows put back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from psycopg.types.json import Jsonb

from pgaudit_wf import audit_trail, request_context
from pgaudit_wf.errors import DefinitionError
from pgaudit_wf.workflow.portable import as_file
from support.command import Result
from support.server import Conn

FLOW = "11111111-1111-4111-8111-111111111111"
NODES = [{"id": "a", "type": "trigger", "position": {"x": 1.50, "y": 0}, "data": {"label": "É"}}]


@pytest.fixture
def world(app_conn: Conn) -> Conn:
    app_conn.execute("insert into organization (id, name) values ('o_acme', 'Acme')")
    with request_context(app_conn, actor_id="u_ana", org_id="o_acme"):
        app_conn.execute(
            "insert into workflow (id, org_id, name, nodes, edges)"
            " values (%s, 'o_acme', 'Intake', %s, '[]')",
            [FLOW, Jsonb(NODES)],
        )
        app_conn.execute("update workflow set nodes = '[]'")
    return app_conn


def test_a_version_is_a_file(on: Callable[..., Result], world: Conn, tmp_path: Path) -> None:
    printed = on("workflow", "export", FLOW, "--version", 1)
    assert (printed.code, printed.err) == (0, "")
    assert json.loads(printed.out) == {"name": "Intake", "nodes": NODES, "edges": []}
    target = tmp_path / "intake.json"
    assert "Version 2 is in" in on("workflow", "export", FLOW, "-o", target).out
    assert json.loads(target.read_text())["nodes"] == []
    missing = on("workflow", "export", FLOW, "-o", tmp_path / "none" / "x.json")
    assert (missing.code, "cannot write" in missing.err) == (1, True)
    assert on("workflow", "export", FLOW, "--version", 9).code == 1


def test_a_copy_and_a_workflow_put_back(on: Callable[..., Result], world: Conn) -> None:
    acting = ("--actor-id", "u_ana", "--org-id", "o_acme")
    made = json.loads(
        on("workflow", "copy", FLOW, "--version", 1, "--name", "Two", *acting, "--json").out
    )["workflow_id"]
    row = world.execute("select name, nodes from workflow where id = %s", [made]).fetchone()
    assert row == ("Two", NODES)
    assert audit_trail(world, page_size=1).entries[0].metadata["reason"] == (
        f"copy of version 1 of workflow {FLOW}"
    )
    there = on("workflow", "undelete", FLOW, *acting)
    assert (there.code, "was not deleted" in there.err) == (1, True)
    world.execute("delete from workflow where id = %s", [FLOW])
    back = on("workflow", "undelete", FLOW, *acting, "--reason", "by mistake")
    assert (back.code, back.out.strip()) == (0, f"Workflow {FLOW} is back, as version 3.")
    event = audit_trail(world, page_size=1).entries[0]
    assert (event.action, event.actor_id, event.metadata["reason"]) == (
        "workflow.undeleted", "u_ana", "by mistake",
    )  # fmt: skip
    world.execute("delete from workflow where id = %s", [FLOW])
    assert json.loads(on("workflow", "undelete", FLOW, *acting, "--json").out)["version"] == 4


def test_files_of_other_products() -> None:
    node = {"id": "1", "name": "Get", "type": "x", "position": [0, 0], "parameters": {"a": 1}}
    connections = {"Get": {"main": [[{"node": "Get", "type": "main", "index": 0}]]}}
    stored = {"nodes": json.dumps([node]), "connections": json.dumps(connections)}
    assert as_file({"name": "n", "enabled": True, "nodes": [], "edges": [], "stored": stored}) == {
        "name": "n", "nodes": [node], "connections": connections, "active": False, "settings": {},
    }  # fmt: skip
    data = {
        "id": "llm_0", "name": "llm", "label": "LLM", "inputParams": [
            {"name": "key", "type": "password"}, {"name": "model", "type": "string"},
            {"name": "doc", "type": "file"},
        ],
        "inputs": {"key": "sk-1", "model": "m", "doc": "data:x"}, "credential": "c-1",
        "selected": True,
    }  # fmt: skip
    flow = {
        "nodes": [{"id": "llm_0", "position": {"x": 1}, "selected": True, "data": data}, 7],
        "edges": [{"source": "llm_0", "target": "x"}],
        "viewport": {"x": 0},
    }
    file = as_file({"stored": {"flowData": json.dumps(flow)}})
    assert file["edges"] == flow["edges"]
    assert "viewport" not in file
    first, odd = file["nodes"]
    assert (odd, first["position"], first["selected"]) == (7, {"x": 1}, False)
    assert first["data"]["inputs"] == {"model": "m"}
    assert "credential" not in first["data"]
    assert (first["data"]["label"], first["data"]["selected"]) == ("LLM", False)
    odd_ones: list[dict[str, str | None]] = [
        {"flowData": "no JSON"}, {"nodes": "{}", "connections": "{}"}, {"nodes": None, "x": "{}"},
    ]  # fmt: skip
    for broken in odd_ones:
        with pytest.raises(DefinitionError, match="no graph"):
            as_file({"name": "n", "stored": broken})


def test_publishing(on: Callable[..., Result], world: Conn) -> None:
    acting = ("--actor-id", "u_ana", "--org-id", "o_acme", "--reason", "tested")
    assert on("workflow", "publish", FLOW).code == 2
    assert on("workflow", "publish", FLOW, "--version", 1, "--none").code == 2
    done = on("workflow", "publish", FLOW, "--version", 2, *acting)
    assert done.out.strip() == "Runs are made with version 2 from now on."
    event = audit_trail(world, page_size=1).entries[0]
    assert (event.action, event.actor_id) == ("workflow.version_published", "u_ana")
    [listed] = json.loads(on("workflows", "--json").out)
    assert listed["published_version"] == 2
    assert "published" in on("history", FLOW).out
    assert on("workflow", "publish", FLOW, "--none", *acting).out.startswith(
        "Runs are made with the"
    )
