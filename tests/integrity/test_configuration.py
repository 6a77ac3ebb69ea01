"""Configuration is part of the trail: recorded as it changes, or found by the next seal."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from typing import Any, LiteralString

import psycopg
import pytest

from pgaudit_wf import request_context
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.errors import SealError
from pgaudit_wf.integrity.note import SigningKey
from pgaudit_wf.integrity.seal import Sealer
from pgaudit_wf.integrity.verify import verify
from pgaudit_wf.trail.reads import audit_trail
from support.server import Conn
from support.tampering import unlock

KEY = SigningKey("example.com/audit", bytes(range(32)))


def configuration(conn: Conn, after: int = 0) -> list[tuple[str, str | None, Any]]:
    """Events of the configuration: action, what it is about and the diff, oldest first."""
    return conn.execute(
        "select action, resource_id, diff from pgaudit_wf.security_audit_log"
        " where action ~ '^audit[.]' and id > %s and captured and org_id is null order by id",
        [after],
    ).fetchall()


def newest(conn: Conn) -> int:
    row = conn.execute("select coalesce(max(id), 0) from pgaudit_wf.security_audit_log").fetchone()
    assert row
    return int(row[0])


def seal(conn: Conn) -> None:
    Sealer(KEY).run(conn)


@pytest.fixture
def audited(conn: Conn) -> Conn:
    """An attached table, sealed."""
    conn.execute("create table invoice (id int primary key, org_id text, total int, paid bool)")
    conn.execute("select pgaudit_wf.attach('invoice')")
    seal(conn)
    return conn


def test_every_change_of_settings_is_an_event_with_diff_and_actor(conn: Conn) -> None:
    conn.execute("create table invoice (id int primary key, org_id text, total int)")
    with request_context(conn, actor_id="u_dba", org_id="o_1", reason="ticket 7"):
        conn.execute("select pgaudit_wf.attach('invoice')")
        conn.execute("select pgaudit_wf.attach('invoice', redact => '{total}')")
        conn.execute("select pgaudit_wf.attach('invoice')")
        conn.execute("select pgaudit_wf.detach('invoice')")
    found = conn.execute(
        "select action, resource_id, actor_id, org_id, org_label, metadata ->> 'reason'"
        " from pgaudit_wf.security_audit_log order by id"
    ).fetchall()
    about = ("public.invoice", "u_dba", None, None, "ticket 7")
    assert found == [
        ("audit.attached", *about),
        ("audit.settings_changed", *about),
        ("audit.detached", *about),
    ]
    [(_, _, added), (_, _, changed), (_, _, removed)] = configuration(conn)
    assert (added[0]["op"], added[0]["value"]["id_columns"]) == ("add", ["id"])
    assert changed == [{"op": "replace", "path": "/redact", "old": [], "value": ["total"]}]
    assert (removed[0]["op"], removed[0]["old"]["redact"]) == ("remove", ["total"])


CHANGES: list[tuple[LiteralString, str, str]] = [
    ("insert into pgaudit_wf.action_rule (resource_type, op, action) values ('x', 'delete', 'x.y')",
     "audit.rule_changed", "pgaudit_wf.action_rule"),
    ("update pgaudit_wf.alert_rule set enabled = false where action_pattern = 'api_key.revoked'",
     "audit.alert_rule_changed", "pgaudit_wf.alert_rule"),
    ("update pgaudit_wf.alert_policy set max_attempts = 7",
     "audit.alert_rule_changed", "pgaudit_wf.alert_policy"),
    ("insert into pgaudit_wf.stream_destination (name, kind, url)"
     " values ('s', 'webhook', 'https://x.example/')",
     "audit.stream_changed", "pgaudit_wf.stream_destination"),
    ("insert into pgaudit_wf.retention_policy (action_pattern, keep_days) values ('x.*', 30)",
     "audit.retention_changed", "pgaudit_wf.retention_policy"),
    ("delete from pgaudit_wf.version_policy", "audit.retention_changed",
     "pgaudit_wf.version_policy"),
    ("insert into pgaudit_wf.limit_condition values ('x', 'true')", "audit.limit_changed",
     "pgaudit_wf.limit_condition"),
    ("insert into pgaudit_wf.config_alias values ('a', 'b')", "audit.settings_changed",
     "pgaudit_wf.config_alias"),
    ("delete from pgaudit_wf.action_schema where action_type = 'Schedule'",
     "audit.settings_changed", "pgaudit_wf.action_schema"),
    ("insert into pgaudit_wf.waiver (subject, reason) values ('public.x', 'a cache')",
     "audit.settings_changed", "pgaudit_wf.waiver"),
    ("update pgaudit_wf.api_key_policy set unused_after = '30 days'",
     "audit.settings_changed", "pgaudit_wf.api_key_policy"),
    ("select pgaudit_wf.add_attestation_key('k', decode(repeat('5e', 32), 'hex'))",
     "audit.key_changed", "pgaudit_wf.attestation_key"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "action", "resource"), CHANGES)
def test_a_change_of_the_tables_is_an_event_whoever_makes_it(
    conn: Conn, change: LiteralString, action: str, resource: str
) -> None:
    seal(conn)
    before = newest(conn)
    conn.execute(change)
    assert conn.execute(
        "select action, resource_type, captured from pgaudit_wf.security_audit_log where id > %s",
        [before],
    ).fetchall() == [(action, resource, True)]
    # It was told, and so the sealer only notes what is now the configuration.
    seal(conn)
    assert [event[0] for event in configuration(conn, before)][1:] == ["audit.configuration_noted"]
    seal(conn)
    assert len(configuration(conn, before)) == 2
    assert verify(conn, [KEY.verifier]).holds


def test_no_secret_is_in_an_event(conn: Conn) -> None:
    conn.execute("select pgaudit_wf.add_attestation_key('k', decode(repeat('5e', 32), 'hex'))")
    conn.execute("select pgaudit_wf.retire_attestation_key('k')")
    hook = "https://hooks.example/T0/s3cr3t?k=s3cr3t"
    conn.execute(
        "insert into pgaudit_wf.alert_rule (action_pattern, channel, audience, address)"
        " values ('*', 'webhook', 'address', %s)",
        [hook],
    )
    conn.execute(
        "update pgaudit_wf.alert_rule set address = address || '2' where address = %s", [hook]
    )
    seal(conn)
    [(text,)] = conn.execute(
        "select string_agg(l::text, ' ') from pgaudit_wf.security_audit_log as l"
    ).fetchall()
    assert "s3cr3t" not in text
    # 5e xor 36 and 5e xor 5c.
    assert "6868686868" not in text
    assert "0202020202" not in text
    assert "https://hooks.example/[redacted]" in text
    changes = [
        diff for action, _, diff in configuration(conn) if action == "audit.alert_rule_changed"
    ]
    shown = "https://hooks.example/[redacted]"
    assert changes[1] == [{"op": "replace", "path": "/address", "old": shown, "value": shown}]


def test_what_switches_recording_off_and_on_is_an_event(audited: Conn) -> None:
    before = newest(audited)
    audited.execute("alter table invoice disable trigger all")
    audited.execute("insert into invoice values (1)")
    audited.execute("select pgaudit_wf.attach('invoice')")
    audited.execute('drop trigger "!pgaudit_wf_delete" on invoice')
    audited.execute('drop trigger "!pgaudit_wf_batch_delete" on invoice')
    found = configuration(audited, before)
    assert found[0] == (
        "audit.recording_disabled",
        "public.invoice",
        [{"op": "replace", "path": "/unrecorded", "old": [],
          "value": ["delete", "insert", "truncate", "update"]}],
    )  # fmt: skip
    assert {action for action, _, _ in found[1:-1]} == {"audit.recording_enabled"}
    assert found[-2][2][0]["value"] == []
    assert found[-1][0] == "audit.recording_disabled"
    assert found[-1][2][0]["value"] == ["delete"]


def test_the_owner_of_a_table_who_switches_it_off_and_on_is_seen(audited: Conn) -> None:
    owner = f"owner_of_{audited.info.dbname}"
    audited.execute(f"create role {owner}".encode())
    try:
        audited.execute(f"alter table invoice owner to {owner}".encode())
        before = newest(audited)
        audited.execute(f"set role {owner}".encode())
        audited.execute("alter table invoice disable trigger user")
        audited.execute("insert into invoice values (1)")
        for op in ("insert", "update", "delete"):
            audited.execute(f'alter table invoice enable trigger "!pgaudit_wf_batch_{op}"'.encode())
        audited.execute("alter table invoice enable always trigger pgaudit_wf_truncate")
        audited.execute("reset role")
        assert [event[0] for event in configuration(audited, before)] == [
            "audit.recording_disabled", *["audit.recording_enabled"] * 4,
        ]  # fmt: skip
        assert configuration(audited)[-1][2][0]["value"] == []
    finally:
        audited.execute("reset role")
        audited.execute("drop table invoice")
        audited.execute(f"drop role {owner}".encode())


def test_ddl_that_changes_nothing_of_the_recording_is_none_of_its_events(audited: Conn) -> None:
    before = newest(audited)
    audited.execute("alter table invoice add column note text, drop column paid")
    audited.execute("alter table invoice disable trigger user, enable trigger user")
    audited.execute("create table other (id int)")
    assert configuration(audited, before) == []
    seal(audited)
    # What follows the columns has changed, as it must.
    assert [event[0] for event in configuration(audited, before)] == ["audit.configuration_noted"]


UNTOLD: list[tuple[LiteralString, str, str]] = [
    ("alter table invoice disable trigger all", "audit.recording_disabled", "/unrecorded"),
    ('drop trigger "!pgaudit_wf_insert" on invoice;'
     ' drop trigger "!pgaudit_wf_batch_insert" on invoice',
     "audit.recording_disabled", "/unrecorded"),
    ("create or replace function pgaudit_wf.capture_invoice() returns trigger language plpgsql"
     " security definer set search_path = pg_catalog, pg_temp as 'begin return null; end'",
     "audit.configuration_changed", "/function/function pgaudit_wf.capture_invoice()"),
    ("create or replace function pgaudit_wf._context_value(setting text) returns text"
     " language sql stable parallel safe as $$ select 'u_innocent' $$",
     "audit.configuration_changed", "/object/function pgaudit_wf._context_value(text)"),
    ("create function pgaudit_wf.free() returns int language sql as 'select 1'",
     "audit.configuration_changed", "/object/function pgaudit_wf.free()"),
    ("alter table pgaudit_wf.action_rule disable trigger all;"
     " delete from pgaudit_wf.action_rule where resource_type = 'invoice';"
     " alter table pgaudit_wf.action_rule enable trigger all;"
     " alter table pgaudit_wf.action_rule enable always trigger record_configuration",
     "audit.configuration_changed", "/action_rule/1"),
    ("alter table pgaudit_wf.security_audit_log disable trigger append_only",
     "audit.configuration_changed",
     "/object/trigger append_only on pgaudit_wf.security_audit_log"),
    ("alter table invoice owner to pgaudit_wf_reader",
     "audit.configuration_changed", "/table/capture_invoice"),
    ("grant insert on pgaudit_wf.security_audit_log to pgaudit_wf_app",
     "audit.configuration_changed", "/right/pgaudit_wf_app"),
    ("create rule also as on insert to pgaudit_wf.security_audit_log do also select 1",
     "audit.configuration_changed", "/rule/also on pgaudit_wf.security_audit_log"),
    ("alter event trigger pgaudit_wf_after_drop disable",
     "audit.configuration_changed", "/object/event trigger pgaudit_wf_after_drop"),
    ("alter sequence pgaudit_wf.security_audit_log_id_seq restart with 2",
     "audit.configuration_changed", "/last_id"),
]  # fmt: skip


@pytest.fixture
def unseen(audited: Conn) -> Callable[[LiteralString], None]:
    """Execute something while none of the event triggers fires."""
    audited.execute(
        "insert into pgaudit_wf.action_rule (resource_type, op, action)"
        " values ('invoice', 'delete', 'invoice.torn')"
    )
    seal(audited)
    [(names,)] = audited.execute(
        "select array_agg(evtname) from pg_event_trigger where evtname ~ '^pgaudit_wf_'"
    ).fetchall()

    def execute(statements: LiteralString) -> None:
        for name in names:
            audited.execute(f"alter event trigger {name} disable".encode())
        audited.execute(statements)
        for name in names:
            if f"{name} disable" not in statements:
                audited.execute(f"alter event trigger {name} enable always".encode())

    return execute


@pytest.mark.parametrize(("act", "action", "named"), UNTOLD)
def test_what_nothing_told_is_named_by_the_next_seal(
    audited: Conn,
    unseen: Callable[[LiteralString], None],
    act: LiteralString,
    action: str,
    named: str,
) -> None:
    before = newest(audited)
    unseen(act)
    assert configuration(audited, before) == []
    seal(audited)
    found = [diff for what, _, diff in configuration(audited) if what == action]
    assert named in [op["path"] for op in found[-1]]
    # Once, and it is sealed.
    told = len(configuration(audited))
    seal(audited)
    assert len(configuration(audited)) == told


@pytest.mark.parametrize(
    "swallows",
    [
        "create rule nothing as on insert to pgaudit_wf.security_audit_log do instead nothing",
        "create function swallow() returns trigger language plpgsql as 'begin return null; end';"
        " create trigger swallow before insert on pgaudit_wf.security_audit_log"
        " for each row execute function swallow()",
    ],
)
def test_a_log_that_takes_no_events_is_not_sealed(audited: Conn, swallows: LiteralString) -> None:
    audited.execute(swallows)
    with pytest.raises(psycopg.Error):
        seal(audited)


def test_who_may_act_for_our_roles_is_an_event(audited: Conn) -> None:
    member = f"member_of_{audited.info.dbname}"
    audited.execute(f"create role {member}".encode())
    try:
        before = newest(audited)
        audited.execute(f"grant pgaudit_wf_owner to {member}".encode())
        seal(audited)
        audited.execute(f"revoke pgaudit_wf_owner from {member}".encode())
        seal(audited)
    finally:
        audited.execute(f"drop role {member}".encode())
    # Roles are shared by the databases of a server.
    found = audited.execute(
        "select action, resource_id, diff -> 0 ->> 'op', metadata ->> 'found_by'"
        " from pgaudit_wf.security_audit_log"
        " where id > %s and metadata ->> 'member' = %s order by id",
        [before, member],
    ).fetchall()
    assert found == [
        ("audit.role_granted", "pgaudit_wf_owner", "add", "seal"),
        ("audit.role_revoked", "pgaudit_wf_owner", "remove", "seal"),
    ]


def test_an_altered_note_is_named_by_verify(audited: Conn) -> None:
    unlock(audited)
    audited.execute(
        "update pgaudit_wf.security_audit_log set metadata = jsonb_set(metadata,"
        " '{configuration,alert_rule}', '{}') where action = 'audit.configuration_noted'"
    )
    assert not verify(audited, [KEY.verifier]).holds


def test_an_alert_rule_tells_of_what_the_seal_found(audited: Conn) -> None:
    audited.execute(
        "insert into pgaudit_wf.alert_rule (action_pattern, channel, audience, address)"
        " values ('audit.recording_*', 'log', 'address', 'audit')"
    )
    seal(audited)
    audited.execute("alter event trigger pgaudit_wf_note_altered disable")
    audited.execute("alter table invoice disable trigger all")
    seal(audited)
    audited.execute("select pgaudit_wf.enqueue_alerts()")
    assert audited.execute(
        "select l.action, d.recipient from pgaudit_wf.alert_delivery as d"
        " join pgaudit_wf.security_audit_log as l on l.id = d.event_id"
    ).fetchall() == [("audit.recording_disabled", "audit")]


def test_a_restored_log_says_so(audited: Conn, dsn: str, empty_dsn: str, server: DevServer) -> None:
    dump = subprocess.run(
        [str(server.bin("pg_dump")), "-Fc", dsn], check=True, capture_output=True
    ).stdout
    subprocess.run(
        [str(server.bin("pg_restore")), "--exit-on-error", "-d", empty_dsn],
        input=dump, check=True, capture_output=True,
    )  # fmt: skip
    with psycopg.connect(empty_dsn, autocommit=True) as restored:
        before = newest(restored)
        seal(restored)
        found = configuration(restored, before)
        assert [event[0] for event in found] == ["audit.restored", "audit.configuration_noted"]
        assert [op["path"] for op in found[0][2]] == ["/oid"]
        assert verify(restored, [KEY.verifier]).holds


def test_operators_read_it_and_organizations_do_not(audited: Conn) -> None:
    seen = audit_trail(audited, action="audit.*").entries
    assert [entry.action for entry in seen] == ["audit.configuration_noted", "audit.attached"]
    with request_context(audited, actor_id="u_1", org_id="o_1"):
        assert audit_trail(audited, org_id="o_1").entries == ()


def test_an_idle_log_is_noted_once(audited: Conn) -> None:
    before = newest(audited)
    for _ in range(3):
        seal(audited)
    assert newest(audited) == before


@pytest.mark.parametrize(
    "replaced",
    [
        "create or replace function pgaudit_wf._note_configuration() returns void"
        " language sql as 'select null::void'",
        "create or replace function pgaudit_wf._configuration() returns jsonb language sql stable"
        " as $$ select metadata -> 'configuration' from pgaudit_wf.security_audit_log"
        " where action = 'audit.configuration_noted' order by id desc limit 1 $$",
    ],
)
def test_what_writes_the_note_cannot_be_silenced(
    audited: Conn, unseen: Callable[[LiteralString], None], replaced: LiteralString
) -> None:
    unseen(replaced)
    with pytest.raises(SealError, match=r"silent about pgaudit_wf\._(note_)?configuration\(\)"):
        seal(audited)


def test_each_function_that_is_replaced_is_named(app_conn: Conn) -> None:
    """By one that does the same, as far as sealing needs it, so that all can be at once."""
    seal(app_conn)
    names = [
        row[0]
        for row in app_conn.execute(
            "select evtname from pg_event_trigger where evtname ~ '^pgaudit_wf_'"
        )
    ]
    for name in names:
        app_conn.execute(f"alter event trigger {name} disable".encode())
    functions = app_conn.execute(
        "select p.oid::regprocedure::text, pg_get_functiondef(p.oid), p.prosqlbody is not null,"
        " p.prorettype::regtype::text from pg_proc as p"
        " where p.pronamespace = 'pgaudit_wf'::regnamespace"
    ).fetchall()
    for _, definition, is_parsed, result in functions:
        if is_parsed:
            head = re.split(r"\n *(?:RETURN|BEGIN ATOMIC)\b", definition)[0]
            app_conn.execute(f"{head} return null::{result}".encode())
        else:
            changed = definition.replace("$function$", "$function$ ", 1)
            app_conn.execute(changed.encode())
    for name in names:
        app_conn.execute(f"alter event trigger {name} enable always".encode())
    seal(app_conn)
    [(_, _, diff)] = [
        event for event in configuration(app_conn) if event[0] == "audit.configuration_changed"
    ]
    named = {op["path"].split("/", 2)[2].removeprefix("function ") for op in diff}
    assert {name for name, *_ in functions} <= named


def test_verify_names_what_the_seal_found(
    audited: Conn, unseen: Callable[[LiteralString], None]
) -> None:
    unseen(UNTOLD[0][0] + ";" + UNTOLD[3][0])
    seal(audited)
    report = verify(audited, [KEY.verifier])
    assert report.holds, report.problems
    assert [(found.action, found.subject) for found in report.untold] == [
        ("audit.recording_disabled", "public.invoice /unrecorded"),
        ("audit.configuration_changed", "/object/function pgaudit_wf._context_value(text)"),
    ]


def test_a_note_that_somebody_else_wrote_is_named_by_verify(
    audited: Conn, unseen: Callable[[LiteralString], None]
) -> None:
    unseen(UNTOLD[3][0])
    audited.execute(
        "insert into pgaudit_wf.security_audit_log (action, captured, metadata)"
        " select action, true, metadata || jsonb_build_object('configuration',"
        " pgaudit_wf._configuration()) from pgaudit_wf.security_audit_log"
        " where action = 'audit.configuration_noted' order by id desc limit 1"
    )
    seal(audited)
    [problem] = verify(audited, [KEY.verifier]).problems
    assert "nothing tells of: object/function pgaudit_wf._context_value(text)" in problem.message


def test_verify_believes_what_was_told(audited: Conn) -> None:
    for change, *_ in CHANGES:
        audited.execute(change)
        seal(audited)
    for table in ("a", "b"):
        audited.execute(f"create table {table} (id int primary key)".encode())
        audited.execute("select pgaudit_wf.attach(%s)", [table])
        seal(audited)
    audited.execute("drop table a")
    audited.execute("alter table b rename id to number")
    audited.execute("select pgaudit_wf._write_blueprint()")
    seal(audited)
    report = verify(audited, [KEY.verifier])
    assert (report.holds, report.untold) == (True, []), report.problems
