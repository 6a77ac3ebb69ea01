"""app.context: who is asking, in one setting."""

from __future__ import annotations

import json

import psycopg
import pytest

from pgaudit_wf.integrity.leaf import canonical, commitments, event_parts, leaf_of
from pgaudit_wf.integrity.seal import text_cursor
from pgaudit_wf.integrity.sealed_row import BY_ID
from pgaudit_wf.trail.event import EventRow
from support.server import Conn

CONTEXT = {
    "actor_id": "u_1", "actor_label": "Ada", "actor_type": "agent", "on_behalf_of": "u_2",
    "client": "runner/7", "org_id": "o_1", "org_label": "Acme", "auth_method": "session",
    "api_key_id": "k_1", "ip": "203.0.113.9", "country": "PT", "user_agent": "Firefox",
    "correlation_id": "r_1", "reason": "because",
}  # fmt: skip
COLUMNS = [name for name in CONTEXT if name != "reason"]


def use(conn: Conn, **settings: str) -> None:
    for name, value in settings.items():
        conn.execute("select set_config('app.' || %s, %s, true)", [name, value])


def asked(conn: Conn) -> dict[str, str]:
    """Who the newest event says was asking, of those values that it has."""
    row = conn.execute(
        "select to_jsonb(l) || jsonb_build_object('reason', metadata -> 'reason', 'ip', host(ip))"
        " from pgaudit_wf.security_audit_log as l order by tx_id desc, id desc limit 1"
    ).fetchone()
    assert row is not None
    return {name: row[0][name] for name in CONTEXT if row[0][name] is not None}


@pytest.fixture
def thing(conn: Conn) -> Conn:
    conn.execute("create table thing (id int primary key, n int)")
    conn.execute("select pgaudit_wf.attach('thing')")
    conn.execute("insert into thing values (1, 0)")
    return conn


CHANGE = "update thing set n = n + 1"
WRITERS = [
    CHANGE,
    "insert into thing select max(id) + 1 from thing",
    "truncate thing",
    "select pgaudit_wf.record_event('a.b')",
    "alter table thing alter n type text using concat(n, random())",
]


@pytest.mark.parametrize("writer", WRITERS)
def test_one_setting_says_what_all_of_them_say(thing: Conn, writer: str) -> None:
    for settings in (CONTEXT, {"context": json.dumps(CONTEXT)}):
        with thing.transaction(force_rollback=True):
            use(thing, **settings)
            thing.execute(writer.encode())
            expected = {**CONTEXT}
            if "alter" in writer:
                del expected["reason"]
            assert asked(thing) == expected


def test_a_setting_of_its_own_wins(thing: Conn) -> None:
    with thing.transaction():
        use(thing, context=json.dumps({"actor_id": "u_1", "country": "PT"}), actor_id="u_9")
        thing.execute(CHANGE)
        assert asked(thing) == {"actor_id": "u_9", "country": "PT"}
        use(thing, country="FR")
        thing.execute(CHANGE)
        assert asked(thing) == {"actor_id": "u_9", "country": "FR"}
    with thing.transaction():
        thing.execute(CHANGE)
        assert asked(thing) == {}


def test_a_later_context_replaces_an_earlier_one(thing: Conn) -> None:
    with thing.transaction():
        use(thing, context=json.dumps({"actor_id": "u_1", "country": "PT"}))
        thing.execute(CHANGE)
        with thing.transaction(force_rollback=True):
            use(thing, context=json.dumps({"actor_id": "u_2"}))
            thing.execute(CHANGE)
            assert asked(thing) == {"actor_id": "u_2"}
        thing.execute(CHANGE)
        assert asked(thing) == {"actor_id": "u_1", "country": "PT"}
        use(thing, context="")
        thing.execute(CHANGE)
        assert asked(thing) == {}


@pytest.mark.parametrize(
    "sent",
    [
        "no JSON", "[1]", '"u_1"', "null", "{", '{"actor_id": "\\u0000"}',
        '{"actor_id": "' + "x" * 65536 + '"}', "[" * 20000, '{"n": 1e200000}',
    ],
)  # fmt: skip
def test_what_is_no_context_costs_no_write(thing: Conn, sent: str) -> None:
    warned: list[str] = []
    thing.add_notice_handler(lambda d: warned.append(d.message_primary or ""))
    with thing.transaction():
        use(thing, context=sent)
        thing.execute(CHANGE)
        thing.execute(CHANGE)
        assert asked(thing) == {}
    assert warned == ["app.context is not a JSON object of at most 64 KiB and is not recorded"]


def test_values_are_cut_as_those_of_settings(thing: Conn) -> None:
    odd = {"actor_id": "x" * 300, "user_agent": "y" * 2000, "ip": "nowhere", "country": {"a": [1]},
           "org_label": 7, "client": "", "unknown": "z"}  # fmt: skip
    with thing.transaction():
        use(thing, context=json.dumps(odd))
        thing.execute(CHANGE)
        assert asked(thing) == {
            "actor_id": "x" * 255, "user_agent": "y" * 1024, "country": '{"a": [1]}',
            "org_label": "7",
        }  # fmt: skip


def test_the_leaf_of_an_event_does_not_tell_how_its_context_was_sent(thing: Conn) -> None:
    leaves = []
    for settings in (CONTEXT, {"context": json.dumps(CONTEXT)}):
        with thing.transaction(force_rollback=True):
            use(thing, **settings)
            thing.execute("update thing set n = 5")
            row = (
                text_cursor(thing)
                .execute(
                    BY_ID,
                    thing.execute("select max(id) from pgaudit_wf.security_audit_log").fetchone(),
                )
                .fetchone()
            )
            assert row is not None
            event = EventRow(*row)._replace(id="1", occurred_at="then", tx_id="1")
            parts = commitments(event_parts(event), b"salt")
            leaves.append(canonical(leaf_of(event, parts, None)))
    assert leaves[0] == leaves[1]
    assert b'"on_behalf_of":"u_2"' in leaves[0]


def test_readers_act_for_the_organization_that_it_names(app_conn: psycopg.Connection) -> None:
    app_conn.execute("insert into organization (id, name) values ('o_1', 'Acme')")
    app_conn.execute("insert into app_user (id, email, name) values ('u_1', 'a@acme.test', 'Ada')")
    app_conn.execute("insert into member (org_id, user_id, role) values ('o_1', 'u_1', 'owner')")
    app_conn.execute("set role pgaudit_wf_reader")
    for org, actor, readable in (
        ("o_1", "u_1", True), ("o_2", "u_1", False), ("o_1", "u_2", False),
    ):  # fmt: skip
        with app_conn.transaction():
            use(app_conn, context=json.dumps({"org_id": org, "actor_id": actor}))
            seen = app_conn.execute("select count(*) from pgaudit_wf.security_audit_log").fetchone()
            assert seen is not None
            assert (seen[0] > 0) is readable
    with app_conn.transaction():
        use(app_conn, context=json.dumps({"org_id": "o_1", "actor_id": "u_1"}), org_id="o_2")
        assert app_conn.execute(
            "select count(*) from pgaudit_wf.security_audit_log"
        ).fetchone() == (0,)
