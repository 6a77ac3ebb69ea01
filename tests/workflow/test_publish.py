"""The published version: what runs are made with, who says so, and that it stays."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgaudit_wf import audit_trail, request_context
from pgaudit_wf.errors import InvalidWorkflowError, VersionNotFoundError, VersionPrunedError
from pgaudit_wf.workflow import (
    publish_version,
    undelete_workflow,
    version_snapshot,
    workflow_versions,
)
from support.asserting import fails
from support.server import Conn


def nodes(label: str) -> Jsonb:
    return Jsonb([{"id": "a", "type": "action", "data": {"label": label}}])


@pytest.fixture
def db(dsn: str) -> Iterator[Conn]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "create table flow (id text primary key, org_id text, name text, nodes jsonb,"
            " edges jsonb default '[]');"
            " create table run (id int generated always as identity primary key,"
            " workflow_id text, executed_workflow_hash text, triggered_by_credential_type text,"
            " triggered_by_credential_label text);"
            " select pgaudit_wf.attach_workflow('flow'), pgaudit_wf.attach_execution('run')"
        )
        conn.execute("insert into flow values ('w', 'o_1', 'v1', %s)", [nodes("1")])
        for number in range(2, 5):
            conn.execute("update flow set nodes = %s", [nodes(str(number))])
        yield conn


def version_run(conn: Conn) -> int:
    """Run the workflow, and say which version the run is stamped with."""
    row = conn.execute(
        "insert into run (workflow_id) values ('w') returning executed_workflow_hash"
    ).fetchone()
    assert row is not None
    [found] = [v for v in workflow_versions(conn, "w").versions if v.content_hash == row[0]]
    return found.version


def published(conn: Conn) -> list[int]:
    return [v.version for v in workflow_versions(conn, "w").versions if v.is_published]


def test_runs_are_made_with_what_is_published(db: Conn) -> None:
    assert (version_run(db), published(db)) == (4, [])
    with request_context(db, actor_id="u_1", org_id="o_1", reason="tested"):
        publish_version(db, "w", 2)
        publish_version(db, "w", 2)
    assert (version_run(db), published(db)) == (2, [2])
    assert version_snapshot(db, "w") == version_snapshot(db, "w", 2)
    db.execute("update flow set nodes = %s", [nodes("5")])
    assert version_run(db) == 2
    with request_context(db, actor_id="u_2", org_id="o_1"):
        publish_version(db, "w", 3)
        db.execute("delete from flow")
    assert version_run(db) == 3
    with request_context(db, org_id="o_1"):
        undelete_workflow(db, "w")
        assert (version_run(db), published(db)) == (3, [3])
        publish_version(db, "w", None)
    assert published(db) == []
    assert version_snapshot(db, "w") == version_snapshot(db, "w", 6)
    listed = db.execute("select published_version from pgaudit_wf.workflow_list").fetchall()
    assert listed == [(None,)]
    events = audit_trail(db, action="flow.version*", page_size=9).entries
    assert [(e.action, e.actor_id, e.metadata.get("version")) for e in events] == [
        ("flow.version_unpublished", None, 3),
        ("flow.version_published", "u_2", 3),
        ("flow.version_published", "u_1", 2),
    ]
    assert events[1].diff == [{"op": "replace", "path": "/published_version", "old": 2, "value": 3}]
    assert (events[2].metadata["reason"], events[2].captured) == ("tested", False)
    assert (events[2].org_id, events[2].resource_id) == ("o_1", "w")


def test_only_what_can_run_is_published_and_it_is_kept(db: Conn) -> None:
    db.execute("update flow set nodes = %s", [Jsonb([{"id": "a"}, {"id": "a"}])])
    with pytest.raises(InvalidWorkflowError, match="cannot be published"):
        publish_version(db, "w", 5)
    with pytest.raises(psycopg.errors.Error, match="cannot be run"):
        version_run(db)
    publish_version(db, "w", 2)
    # What is published counts, not the draft.
    assert version_run(db) == 2
    for nowhere in (("w", 9), ("v", 1), ("v", None)):
        with pytest.raises(VersionNotFoundError):
            publish_version(db, *nowhere)
    db.execute(
        "delete from run; alter table pgaudit_wf.workflow_history disable trigger append_only;"
        " update pgaudit_wf.workflow_history set created_at = created_at - interval '1 year';"
        " alter table pgaudit_wf.workflow_history enable always trigger append_only;"
        " update pgaudit_wf.version_policy set keep_versions = 1, keep_days = 30"
    )
    assert db.execute("select pgaudit_wf.prune_history()").fetchone() == (3,)
    kept = db.execute(
        "select version from pgaudit_wf.workflow_history where snapshot is not null order by 1"
    ).fetchall()
    assert kept == [(2,), (5,)]
    with pytest.raises(VersionPrunedError):
        publish_version(db, "w", 3)
    fails(db, "PA001", "append-only", "delete from pgaudit_wf.published_version")


def test_only_for_ones_own_organization(db: Conn) -> None:
    db.execute("create role publisher login in role pgaudit_wf_app")
    try:
        with psycopg.connect(db.info.dsn, user="publisher", autocommit=True) as app:
            for org in (None, "o_2"):
                with pytest.raises(VersionNotFoundError), request_context(app, org_id=org):
                    publish_version(app, "w", 2)
            with request_context(app, org_id="o_1"):
                publish_version(app, "w", 2)
                assert version_snapshot(app, "w").nodes[0]["data"]["label"] == "2"
            with pytest.raises(VersionNotFoundError), request_context(app, org_id="o_2"):
                version_snapshot(app, "w")
            fails(app, "42501", "denied", "select from pgaudit_wf.published_version")
    finally:
        db.execute("drop role publisher")
    with db.transaction(force_rollback=True):
        db.execute("set local role pgaudit_wf_reader")
        assert db.execute("select from pgaudit_wf.published_version").fetchall() == []
        fails(db, "42501", "denied", "select pgaudit_wf.publish_version('w', 1)")
