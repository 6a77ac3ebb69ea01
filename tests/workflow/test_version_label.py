"""Names of versions: who may give them, that the trail has them, and that pruning spares them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgaudit_wf import audit_trail, request_context
from pgaudit_wf.errors import ArgumentError, VersionNotFoundError, VersionPrunedError
from pgaudit_wf.workflow import label_version, workflow_versions
from support.asserting import fails
from support.server import Conn

ODD = "'as\n\"delivered\"' <b>É"


@pytest.fixture
def db(dsn: str) -> Iterator[Conn]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "create table flow (id text primary key, org_id text, name text, nodes json,"
            " edges json); select pgaudit_wf.attach_workflow('flow');"
            " insert into flow values ('w', 'o_1', 'v1', '[]', '[]')"
        )
        for number in range(2, 6):
            conn.execute("update flow set name = %s", [f"v{number}"])
        yield conn


def names(conn: Conn) -> list[tuple[int, str | None, str | None]]:
    page = workflow_versions(conn, "w")
    return [(found.version, found.label, found.note) for found in page.versions if found.label]


def grow_old(conn: Conn) -> None:
    conn.execute(
        "alter table pgaudit_wf.workflow_history disable trigger append_only;"
        " update pgaudit_wf.workflow_history set created_at = created_at - interval '1 year';"
        " alter table pgaudit_wf.workflow_history enable always trigger append_only;"
        " update pgaudit_wf.version_policy set keep_versions = 1, keep_days = 30"
    )


def test_a_named_version_is_shown_recorded_and_never_pruned(db: Conn) -> None:
    with request_context(db, actor_id="u_1", org_id="o_1", reason="release"):
        label_version(db, "w", 2, "first")
        label_version(db, "w", 2, f" {ODD} ", "what they signed")
        label_version(db, "w", 4, "x" * 200)
    assert names(db) == [(4, "x" * 200, None), (2, ODD, "what they signed")]
    _, renamed, first = audit_trail(db, page_size=3).entries
    assert (first.action, first.resource_id, first.org_id) == ("flow.version_labeled", "w", "o_1")
    # It is not a change of the row, to be run backwards.
    assert not first.captured
    assert first.metadata == {"version": 2, "reason": "release"}
    assert first.diff == [{"op": "add", "path": "/label", "value": "first"}]
    assert renamed.diff == [
        {"op": "replace", "path": "/label", "old": "first", "value": ODD},
        {"op": "add", "path": "/note", "value": "what they signed"},
    ]
    grow_old(db)
    assert db.execute("select pgaudit_wf.prune_history()").fetchone() == (2,)
    kept = db.execute(
        "select version from pgaudit_wf.workflow_history where snapshot is not null order by 1"
    ).fetchall()
    assert kept == [(2,), (4,), (5,)]
    with pytest.raises(VersionPrunedError):
        label_version(db, "w", 3, "too late")
    for statement in ("update pgaudit_wf.version_label set label = 'x'",
                      "delete from pgaudit_wf.version_label"):  # fmt: skip
        fails(db, "PA001", "append-only", statement)


def test_only_a_version_of_ones_own_organization_is_named(db: Conn) -> None:
    arguments: list[tuple[Any, ...]] = [("w", 2, ""), ("w", 2, None), ("w", 2, "x" * 201)]
    for wrong in (*arguments, ("w", 2, "x", "y" * 4001)):
        with pytest.raises(ArgumentError):
            label_version(db, *wrong)
    for nowhere in (("w", 9, "x"), ("w", None, "x"), ("v", 1, "x"), (None, 1, "x")):
        with pytest.raises(VersionNotFoundError):
            label_version(db, *nowhere)
    db.execute("create role labeler login in role pgaudit_wf_app")
    try:
        with psycopg.connect(db.info.dsn, user="labeler", autocommit=True) as app:
            for org in (None, "o_2", "O_1"):
                with pytest.raises(VersionNotFoundError), request_context(app, org_id=org):
                    label_version(app, "w", 2, "theirs")
            with request_context(app, org_id="o_1", actor_id="u_1"):
                label_version(app, "w", 2, "ours")
            fails(app, "42501", "denied", "select from pgaudit_wf.version_label")
            fails(app, "42501", "denied", "delete from pgaudit_wf.version_label")
    finally:
        db.execute("drop role labeler")
    assert names(db) == [(2, "ours", None)]
    with db.transaction(force_rollback=True):
        db.execute("set local role pgaudit_wf_reader")
        assert names(db) == []
        fails(db, "42501", "denied", "select pgaudit_wf.label_version('w', 1, 'x')")


def test_a_version_that_is_being_pruned_is_not_named(db: Conn) -> None:
    grow_old(db)
    result: list[object] = []

    def name() -> None:
        with psycopg.connect(db.info.dsn, autocommit=True) as other:
            try:
                label_version(other, "w", 2, "just now")
            except VersionPrunedError as error:
                result.append(error.sqlstate)

    with db.transaction():
        pruned = db.execute("select pgaudit_wf.prune_history()").fetchone()
        thread = threading.Thread(target=name)
        thread.start()
        thread.join(1)
        assert thread.is_alive()
    thread.join(30)
    assert pruned == (4,)
    assert result == ["PA344"]
