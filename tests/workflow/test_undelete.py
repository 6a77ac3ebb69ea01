"""Deleted workflows put back from their last version, and versions copied to new workflows."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgaudit_wf import audit_trail, request_context
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.errors import (
    ArgumentError,
    RestoreError,
    VersionNotFoundError,
    VersionPrunedError,
)
from pgaudit_wf.trail.statement import one
from pgaudit_wf.workflow import (
    copy_workflow,
    restore_workflow,
    undelete_workflow,
    workflow_versions,
)
from support.asserting import fails
from support.server import Conn

ODD = "'as\n\"delivered\"' <b>É"
NODES = [{"id": "a", "type": "note", "data": {"text": ODD, "big": 12345678901234567890}}]


@pytest.fixture(scope="module")
def app_role(server: DevServer) -> Iterator[str]:
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as conn:
        conn.execute("create role undeleter login in role pgaudit_wf_app")
        yield "undeleter"
        conn.execute("drop role undeleter")


def attach(conn: Conn) -> None:
    conn.execute(
        'create table "Flow" (id uuid primary key default gen_random_uuid(), org_id text,'
        " name text not null, nodes jsonb not null, edges json, enabled bool default false,"
        ' "odd "" col" bytea, price numeric, tags text[], meta jsonb, span interval,'
        " secret text, seen timestamptz not null default '2026-01-01Z', slug text unique,"
        " length int generated always as (length(name)) stored)"
    )
    conn.execute(
        "select pgaudit_wf.attach_workflow('\"Flow\"', redact => '{secret,meta.token}',"
        " ignore => '{seen}', listing_columns => '{slug}')"
    )


@pytest.fixture
def db(db_dsn: str) -> Iterator[Conn]:
    with psycopg.connect(db_dsn, autocommit=True) as conn:
        attach(conn)
        yield conn


def make(conn: Conn, **more: object) -> str:
    with request_context(conn, actor_id="u_1", org_id="o_1"):
        row = one(
            conn,
            'insert into "Flow" (org_id, name, nodes, edges, enabled, "odd "" col", price, tags,'
            " meta, span, slug, secret) values ('o_1', 'first', %s, '[]', false, '\\x00ff', 1.50,"
            " %s, %s, '1 mon 2 days', gen_random_uuid(), 'hush') returning id::text",
            [Jsonb(NODES), [ODD, None], Jsonb({"a": None, **more})],
        )
        conn.execute('update "Flow" set name = %s where id = %s', [ODD, row[0]])
    return str(row[0])


def whole(conn: Conn, key: str) -> dict[str, Any]:
    with conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        row = cursor.execute('select * from "Flow" where id = %s', [key]).fetchone()
    assert row is not None
    return dict(row)


def test_a_deleted_workflow_comes_back_as_it_was(db: Conn) -> None:
    key = make(db)
    before = whole(db, key)
    db.execute('delete from "Flow" where id = %s', [key])
    with pytest.raises(VersionNotFoundError):
        restore_workflow(db, key, 1)
    with request_context(db, actor_id="u_2", org_id="o_1", reason="by mistake"):
        db.execute("set local datestyle = 'German'; set local intervalstyle = 'iso_8601'")
        assert undelete_workflow(db, key).version == 3
    # What the trail hides comes back with its default.
    assert whole(db, key) == {**before, "secret": None}
    newest, *_ = workflow_versions(db, key).versions
    assert (newest.source, newest.restored_from, newest.actor_id) == ("restore", 2, "u_2")
    assert newest.summary == "put back as in version 2, after it was deleted"
    assert not newest.change.has_changes
    event = audit_trail(db, page_size=1).entries[0]
    assert (event.action, event.resource_id, event.captured) == ("Flow.undeleted", key, True)
    assert event.metadata["restored_from"] == 2
    assert event.metadata["reason"] == "by mistake"
    assert event.metadata["version"] == 3
    # And again, and back to the first.
    db.execute('delete from "Flow" where id = %s', [key])
    with request_context(db, org_id="o_1"):
        assert undelete_workflow(db, key).version == 4
        assert restore_workflow(db, key, 1).version == 5
    assert whole(db, key)["name"] == "first"


def test_what_cannot_come_back_is_refused(db: Conn) -> None:
    key = make(db)
    with pytest.raises(RestoreError, match="was not deleted"), request_context(db, org_id="o_1"):
        undelete_workflow(db, key)
    with pytest.raises(VersionNotFoundError):
        undelete_workflow(db, "00000000-0000-0000-0000-000000000000")
    half = make(db, token="t")
    db.execute('delete from "Flow"; alter table "Flow" alter secret set not null')
    with (
        pytest.raises(RestoreError, match='column "secret" must have a value, and it is redacted'),
        request_context(db, org_id="o_1"),
    ):
        undelete_workflow(db, key)
    db.execute("alter table \"Flow\" alter secret set default '', add later int default 7")
    with pytest.raises(VersionNotFoundError), request_context(db, org_id="o_2"):
        undelete_workflow(db, key)
    with request_context(db, org_id="o_1"):
        undelete_workflow(db, key)
        undelete_workflow(db, half)
    # A value of which a part is hidden is not put back in half.
    assert whole(db, half)["meta"] is None
    assert whole(db, key)["meta"] == {"a": None}
    assert whole(db, key)["later"] == 7


def test_as_the_application_and_with_its_rights(conn: Conn, app_role: str) -> None:
    db = conn
    attach(db)
    key = make(db)
    db.execute('delete from "Flow"')
    with psycopg.connect(db.info.dsn, user=app_role, autocommit=True) as app:
        denied = pytest.raises(psycopg.errors.InsufficientPrivilege)
        with denied, request_context(app, org_id="o_1"):
            undelete_workflow(app, key)
        db.execute(
            f'grant select, insert, update on "Flow" to {app_role};'
            ' alter table "Flow" enable row level security;'
            " create policy ours on \"Flow\" using (org_id = current_setting('app.org_id', true))"
        )
        for org in ("o_2", None):
            with pytest.raises(VersionNotFoundError), request_context(app, org_id=org):
                undelete_workflow(app, key)
            with pytest.raises(VersionNotFoundError), request_context(app, org_id=org):
                copy_workflow(app, key, 1)
        with request_context(app, org_id="o_1"):
            assert undelete_workflow(app, key).version == 3
            other = copy_workflow(app, key, 1, "a copy")
        fails(app, "42501", "denied", "select from pgaudit_wf.security_audit_log")
    assert whole(db, other)["name"] == "a copy"


def test_a_copy_is_another_workflow(db: Conn) -> None:
    key = make(db)
    db.execute("update \"Flow\" set enabled = true, nodes = '[]'")
    with request_context(db, actor_id="u_2", org_id="o_1"):
        other = copy_workflow(db, key, 1, ODD + "2")
        fixed = copy_workflow(db, key, 2, id="11111111-1111-1111-1111-111111111111")
    before, after = whole(db, key), whole(db, other)
    own = {"id", "name", "enabled", "nodes", "secret", "length", "seen", "slug"}
    assert {name: after[name] for name in after if name not in own} == {
        name: before[name] for name in before if name not in own
    }
    assert (after["name"], after["enabled"], after["nodes"]) == (ODD + "2", False, NODES)
    assert (after["secret"], after["slug"], after["price"]) == (None, None, Decimal("1.50"))
    assert (fixed, whole(db, fixed)["name"]) == ("11111111-1111-1111-1111-111111111111", ODD)
    [version] = workflow_versions(db, other).versions
    assert (version.source, version.actor_id) == ("create", "u_2")
    db.execute('delete from "Flow" where id = %s', [key])
    with request_context(db, org_id="o_1"):
        assert whole(db, copy_workflow(db, key, 1))["price"] == Decimal("1.50")
    with pytest.raises(VersionNotFoundError), request_context(db, org_id="o_1"):
        copy_workflow(db, key, 9)


def test_keys_without_default_and_of_several_columns(conn: Conn) -> None:
    conn.execute(
        "create table plain (id text primary key, nodes json, edges json);"
        " create table pair (org_id text, n int generated always as identity, nodes json,"
        " edges json, primary key (org_id, n));"
        " select pgaudit_wf.attach_workflow('plain'), pgaudit_wf.attach_workflow('pair');"
        " insert into plain values ('a/b', '[]', '[]');"
        " insert into pair (org_id, nodes, edges) values ('o', '[]', '[]')"
    )
    with pytest.raises(ArgumentError, match="needs an id"):
        copy_workflow(conn, "/a/b", 1)
    with pytest.raises(ArgumentError, match="no name"):
        copy_workflow(conn, "/a/b", 1, "a name", "c")
    assert copy_workflow(conn, "/a/b", 1, id="c/d") == "/c/d"
    pair = 'pair/["o", 1]'
    assert copy_workflow(conn, pair, 1) == 'pair/["o", 2]'
    assert copy_workflow(conn, pair, 1, id='["x", 7]') == 'pair/["x", 7]'
    for wrong in ("x", '["x"]', "[1", '{"a": 1}'):
        with pytest.raises(ArgumentError, match="JSON array"):
            copy_workflow(conn, pair, 1, id=wrong)
    conn.execute("delete from pair where n = 1; delete from plain")
    assert undelete_workflow(conn, pair).version == 2
    assert undelete_workflow(conn, "/a/b").version == 2
    found = conn.execute("select org_id, n from pair order by n").fetchall()
    assert found == [("o", 1), ("o", 2), ("x", 7)]
    conn.execute(
        "delete from plain; alter table pgaudit_wf.workflow_history disable trigger append_only;"
        " update pgaudit_wf.workflow_history set snapshot = null, pruned_at = now()"
    )
    with pytest.raises(VersionPrunedError):
        undelete_workflow(conn, "/a/b")


def test_shapes_of_other_products_come_back_as_stored(conn: Conn) -> None:
    stored = '{"nodes": [],  "edges": [], "viewport": {"x": 1.0}}'
    conn.execute(
        "create table n8n (id text primary key, name text, nodes json not null,"
        " connections json not null, active bool);"
        ' create table chat (id text primary key, name text, "flowData" text not null);'
        " create table own (id int primary key, steps text[]);"
        " create schema s; grant usage on schema s to public;"
        " create function s.nodes(r own) returns jsonb language sql as"
        " $$ select jsonb_agg(jsonb_build_object('id', s)) from unnest(r.steps) as s $$;"
        " create function s.edges(r own) returns jsonb language sql as $$ select '[]'::jsonb $$;"
        " select pgaudit_wf.attach_workflow('n8n', shape => 'n8n', enabled_column => 'active'),"
        " pgaudit_wf.attach_workflow('chat', shape => 'flowise'),"
        " pgaudit_wf.attach_workflow('own', shape => 's');"
        " insert into n8n values ('w', 'n', '[ {\"id\": \"1\", \"name\":\"x\"}]', '{}', true);"
        " insert into own values (1, '{a,b}')"
    )
    conn.execute("insert into chat values ('c', 'n', %s)", [stored])
    conn.execute(
        "delete from n8n; delete from chat; delete from own;"
        ' alter table chat rename "flowData" to flow'
    )
    assert [undelete_workflow(conn, id_).version for id_ in ("w", "chat/c", "own/1")] == [2, 2, 2]
    assert copy_workflow(conn, "w", 1, id="w2") == "w2"
    assert conn.execute("select id, nodes::text, active from n8n order by 1").fetchall() == [
        ("w", '[ {"id": "1", "name":"x"}]', True),
        ("w2", '[ {"id": "1", "name":"x"}]', False),
    ]
    assert conn.execute("select flow from chat").fetchall() == [(stored,)]
    assert conn.execute("select steps from own").fetchall() == [(["a", "b"],)]
