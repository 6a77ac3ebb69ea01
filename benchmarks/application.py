"""What a user would write instead: versions and audit of workflows in application code.

As good as such code usually gets: one transaction, the row locked, the work skipped when only the
canvas changed, the hash of the same canonical form, a diff by node and by configuration key.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from pgaudit_wf.workflow.definition import content_hash, normalize_definition

Graph = tuple[list[dict[str, Any]], list[dict[str, Any]]]

TABLES = """
create table app_workflow (like public.workflow including all);
create table app_history (
    workflow_id text not null, version integer not null, org_id text, source text not null,
    snapshot jsonb not null, change jsonb not null, content_hash text not null,
    previous_version integer, previous_hash text, actor_id text, correlation_id text,
    created_at timestamptz not null default clock_timestamp(), primary key (workflow_id, version)
);
create index on app_history (content_hash);
create index on app_history (org_id, created_at);
create table app_audit (
    id bigint generated always as identity primary key,
    occurred_at timestamptz not null default now(),
    actor_id text, org_id text, action text not null, resource_type text not null,
    resource_id text not null, diff jsonb not null, metadata jsonb not null, correlation_id text
);
create index on app_audit (org_id, occurred_at, id);
create index on app_audit (actor_id, occurred_at, id);
create index on app_audit (resource_type, resource_id, occurred_at, id);
create index on app_audit (action, occurred_at, id);
create index on app_audit (correlation_id);
"""

SELECT = (
    "select org_id, name, description, visibility, enabled, nodes, edges from app_workflow "
    "where id = %s for update"
)
UPDATE = "update app_workflow set nodes = %s, edges = %s, updated_at = now() where id = %s"
LATEST = (
    "select version, content_hash from app_history where workflow_id = %s "
    "order by version desc limit 1"
)
INSERT_VERSION = (
    "insert into app_history (workflow_id, version, org_id, source, snapshot, change, content_hash,"
    " previous_version, previous_hash, actor_id, correlation_id) "
    "values (%s, %s, %s, 'update', %s, %s, %s, %s, %s, %s, %s)"
)
INSERT_AUDIT = (
    "insert into app_audit (actor_id, org_id, action, resource_type, resource_id, diff, metadata,"
    " correlation_id) values (%s, %s, 'workflow.updated', 'workflow', %s, %s, %s, %s)"
)


def _by_id(nodes: list[Any]) -> dict[Any, Any]:
    return {node["id"]: node for node in nodes}


def _reference(node: dict[str, Any]) -> dict[str, Any]:
    data = node.get("data") or {}
    config = data.get("config") or {}
    kind = data.get("type") or node.get("type") or "node"
    label = data.get("label") or config.get("actionType") or config.get("triggerType")
    return {"id": node["id"], "label": label or kind.capitalize(), "node_type": kind}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[dict[str, Any]]:
    before, after = old.get("data") or {}, new.get("data") or {}
    deltas = [
        {"field": field, "before": before.get(key), "after": after.get(key)}
        for field, key in (("name", "label"), ("description", "description"), ("type", "type"),
                           ("enabled", "enabled"))
        if before.get(key) != after.get(key)
    ]  # fmt: skip
    old_config, new_config = before.get("config") or {}, after.get("config") or {}
    if not (old_config or new_config):
        old_config, new_config = before, after
    keys = [
        {"key": key, "before": old_config.get(key), "after": new_config.get(key)}
        for key in sorted({*old_config, *new_config})
        if old_config.get(key) != new_config.get(key)
    ]
    if keys:
        deltas.append({"field": "configuration", "changes": keys})
    return deltas


def _edge_key(edge: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(edge.get(end) for end in ("source", "target", "sourceHandle", "targetHandle"))


def diff(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> dict[str, Any]:
    """Compare two normalized definitions for people."""
    old, new = _by_id(before["nodes"]), _by_id(after["nodes"])
    old_edges = {_edge_key(edge): edge for edge in before["edges"]}
    new_edges = {_edge_key(edge): edge for edge in after["edges"]}
    changed = [
        {**_reference(new[key]), "deltas": _changes(old[key], new[key])}
        for key in new
        if key in old and old[key] != new[key]
    ]
    return {
        "settings": [],
        "nodes_added": [_reference(node) for key, node in new.items() if key not in old],
        "nodes_removed": [_reference(node) for key, node in old.items() if key not in new],
        "nodes_changed": changed,
        "connections_added": [edge for key, edge in new_edges.items() if key not in old_edges],
        "connections_removed": [edge for key, edge in old_edges.items() if key not in new_edges],
        "has_changes": True,
    }


def save(conn: psycopg.Connection[TupleRow], key: str, graph: Graph) -> None:
    """Save a workflow with a version and an event, if anything but the canvas changed."""
    with conn.transaction():
        row = conn.execute(SELECT, [key]).fetchone()
        if row is None:
            raise LookupError(key)
        org, name, description, visibility, enabled, old_nodes, old_edges = row
        before, after = normalize_definition(old_nodes, old_edges), normalize_definition(*graph)
        nodes, edges = Jsonb(graph[0]), Jsonb(graph[1])
        conn.execute(UPDATE, [nodes, edges, key])
        if before == after:
            return
        digest = content_hash(*graph)
        latest = conn.execute(LATEST, [key]).fetchone() or (0, None)
        snapshot = {
            "name": name, "description": description, "visibility": visibility,
            "enabled": enabled, "nodes": graph[0], "edges": graph[1],
        }  # fmt: skip
        conn.execute(
            INSERT_VERSION,
            [key, latest[0] + 1, org, Jsonb(snapshot), Jsonb(diff(before, after)), digest,
             latest[0] or None, latest[1], "u_1", "req"],
        )  # fmt: skip
        patch = [{"op": "replace", "path": "/content_hash", "old": latest[1], "value": digest}]
        conn.execute(
            INSERT_AUDIT,
            [
                "u_1",
                org,
                key,
                Jsonb(patch),
                Jsonb({"version": latest[0] + 1, "label": name}),
                "req",
            ],
        )
