"""Nobody changes what was recorded, and an application writes only what its changes write."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from pgaudit_wf.dev.server import DevServer
from support.server import Conn

CHANGES: list[LiteralString] = [
    "update {} set actor_id = 'somebody else'",
    "update {} set actor_id = 'somebody else' where false",
    "delete from {}",
    "delete from {} where false",
    "truncate {}",
    "with gone as (delete from {} returning 1) select count(*) from gone",
    "merge into {} as l using (values (1)) as v (x) on true when matched then delete",
]


@pytest.fixture
def recorded(conn: Conn) -> Conn:
    """A database with a log that has events in a monthly and in the default partition."""
    conn.execute("create table thing (id int primary key, v int)")
    conn.execute("select pgaudit_wf.attach('thing')")
    conn.execute("insert into thing values (1, 1)")
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (action, occurred_at) values ('old', "
        "'2001-01-01')"
    )
    return conn


def tables(conn: Conn) -> list[str]:
    found = conn.execute(
        "select relid::regclass::text from pg_partition_tree('pgaudit_wf.security_audit_log') "
        "union all values ('pgaudit_wf.attachment_history')"
    ).fetchall()
    assert len(found) > 3
    return [table for (table,) in found]


def contents(conn: Conn) -> tuple[Any, ...] | None:
    return conn.execute(
        "select (select array_agg(l::text order by id) from pgaudit_wf.security_audit_log as l), "
        "(select array_agg(h::text order by id) from pgaudit_wf.attachment_history as h)"
    ).fetchone()


def assert_append_only(conn: Conn) -> None:
    before = contents(conn)
    for table in tables(conn):
        for change in CHANGES:
            if table.endswith("attachment_history"):
                change = change.replace("actor_id", "db_user")
            if change.startswith("merge") and "_log" in table and not table.endswith("_log"):
                continue  # the same row trigger as for DELETE
            with pytest.raises(psycopg.Error) as caught:
                conn.execute(sql.SQL(change).format(sql.SQL(table)))
            assert caught.value.sqlstate == "PA001", (change, table)
            assert "append-only" in str(caught.value.diag.message_primary)
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(
            "insert into pgaudit_wf.security_audit_log_default as l (id, tx_id, action, "
            "occurred_at) "
            "overriding system value "
            "select id, tx_id, 'x', occurred_at from pgaudit_wf.security_audit_log_default "
            "on conflict (tx_id, id, occurred_at) do update set action = 'forged'"
        )
    assert caught.value.sqlstate == "PA001"
    assert contents(conn) == before


def test_a_superuser_changes_nothing(recorded: Conn) -> None:
    assert_append_only(recorded)


def test_a_replica_session_changes_nothing(recorded: Conn) -> None:
    recorded.execute("set session_replication_role = replica")
    assert_append_only(recorded)


def test_the_owner_changes_nothing(owner_dsn: str) -> None:
    with psycopg.connect(owner_dsn, autocommit=True) as owner:
        owner.execute("create table thing (id int primary key)")
        owner.execute("select pgaudit_wf.attach('thing')")
        owner.execute("insert into thing values (1)")
        owner.execute(
            "insert into pgaudit_wf.security_audit_log (action, occurred_at) "
            "values ('old', '2001-01-01')"
        )
        assert_append_only(owner)


def test_a_partition_made_later_is_guarded_too(recorded: Conn) -> None:
    recorded.execute("select pgaudit_wf.add_log_partition('2001-01-15')")
    assert "pgaudit_wf.security_audit_log_y2001m01" in tables(recorded)
    # Its event has moved out of the default partition, so put another one there.
    recorded.execute(
        "insert into pgaudit_wf.security_audit_log (action, occurred_at) values ('old', "
        "'2002-01-01')"
    )
    assert_append_only(recorded)


@pytest.fixture
def app(server: DevServer, recorded: Conn) -> Iterator[Conn]:
    """An application's login, which may write its table and nothing of ours."""
    # Roles are shared by all databases of the server.
    recorded.execute(
        "do $$ begin create role shop login in role pgaudit_wf_app; "
        "exception when duplicate_object then null; end $$"
    )
    recorded.execute("grant select, insert, update, delete, truncate on thing to shop")
    with psycopg.connect(server.dsn(recorded.info.dbname, "shop"), autocommit=True) as connection:
        yield connection


def test_the_application_writes_through_triggers_and_record_event_only(
    app: Conn, recorded: Conn
) -> None:
    app.execute("update thing set v = 2")
    app.execute("select pgaudit_wf.record_event('report.exported', 'report', '7')")
    app.execute("truncate thing")
    assert recorded.execute(
        "select action, captured, db_user from pgaudit_wf.security_audit_log "
        "where db_user = 'shop' order by id"
    ).fetchall() == [
        ("thing.updated", True, "shop"), ("report.exported", False, "shop"),
        ("thing.truncated", True, "shop"),
    ]  # fmt: skip


def test_the_application_can_do_nothing_else(app: Conn, recorded: Conn) -> None:
    before = contents(recorded)
    refused: list[LiteralString] = [
        "insert into pgaudit_wf.security_audit_log (action) values ('forged')",
        "insert into pgaudit_wf.security_audit_log_default (action) values ('forged')",
        "select from pgaudit_wf.security_audit_log",
        *(change.format("pgaudit_wf.security_audit_log") for change in CHANGES),
        "drop table pgaudit_wf.security_audit_log",
        "alter table thing disable trigger all",
        'alter table thing disable trigger "!pgaudit_wf_update"',
        'drop trigger "!pgaudit_wf_update" on thing',
        "alter table pgaudit_wf.security_audit_log disable trigger all",
        "create or replace function pgaudit_wf.capture_thing() returns trigger language plpgsql "
        "as 'begin return null; end'",
        "drop function pgaudit_wf.capture_thing() cascade",
        "alter function pgaudit_wf.capture_thing() set search_path = public",
        "create function pgaudit_wf.mine() returns int language sql as 'select 1'",
        "set session_replication_role = replica",
        "insert into pgaudit_wf.action_rule (resource_type, op, action) values "
        "('thing', 'update', 'x')",
        "update pgaudit_wf.attachment set ignore = '{v}'",
        "insert into pgaudit_wf.key_change values ('thing', '1', '2')",
        "alter event trigger pgaudit_wf_after_ddl disable",
        "drop event trigger pgaudit_wf_after_ddl",
        "select pgaudit_wf.attach('thing', ignore => '{v}')",
        "select pgaudit_wf.detach('thing')",
        "select pgaudit_wf.add_log_partition('2030-01-01')",
        "select pgaudit_wf.ensure_log_partitions(99)",
        "select pgaudit_wf._count_failure('thing', 'UPDATE', '00000')",
        "select setval('pgaudit_wf.security_audit_log_id_seq', 1)",
        "select nextval('pgaudit_wf.security_audit_log_id_seq')",
        "refresh materialized view pgaudit_wf.log_origin",
        "begin; lock table pgaudit_wf.security_audit_log in access exclusive mode",
    ]
    for statement in refused:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute(statement)
        app.rollback()
    assert contents(recorded) == before
    app.execute("update thing set v = 3")
    assert contents(recorded) != before


def test_no_other_function_writes_with_our_rights_for_the_application(app: Conn) -> None:
    # These report what no table shows; captured is false in what they write.
    assert app.execute(
        "select proname from pg_proc where prosecdef and provolatile = 'v' "
        "and pronamespace = (select oid from pg_namespace where nspname = 'pgaudit_wf') "
        "and has_function_privilege(oid, 'execute') order by proname"
    ).fetchall() == [
        ("label_version",), ("publish_version",), ("record_attempt",), ("record_event",)
    ]  # fmt: skip


def test_the_application_cannot_forge_the_marks_of_a_captured_event(
    app: Conn, recorded: Conn
) -> None:
    with app.transaction():
        app.execute("set local app.actor_id = 'u_1'")
        app.execute(
            "select pgaudit_wf.record_event('thing.updated', 'thing', '1', '{\"v\": 1}', "
            '\'{"v": 9}\', \'{"label": "x", "captured": true}\')'
        )
    assert recorded.execute(
        "select captured, db_user from pgaudit_wf.security_audit_log order by id desc limit 1"
    ).fetchone() == (False, "shop")
    # So a forged event does not count when a row is rebuilt.
    assert recorded.execute("select pgaudit_wf.row_as_of('thing', '1')").fetchone() == (
        {"id": 1, "v": 1},
    )


def test_temporary_objects_do_not_shadow_what_a_trigger_calls(app: Conn, recorded: Conn) -> None:
    app.execute(
        "create function pg_temp.to_jsonb(thing) returns jsonb language sql as $$ "
        "select '{}'::jsonb $$"
    )
    app.execute("create temporary table security_audit_log (action text)")
    app.execute("set search_path = pg_temp, public, pg_catalog")
    app.execute("insert into thing values (5, 5)")
    assert recorded.execute(
        "select diff from pgaudit_wf.security_audit_log order by id desc limit 1"
    ).fetchone() == ([{"op": "add", "path": "", "value": {"id": 5, "v": 5}}],)


def test_deliberate_ddl_is_noticed(recorded: Conn) -> None:
    recorded.execute("alter table pgaudit_wf.security_audit_log disable trigger append_only")
    recorded.execute('alter table thing disable trigger "!pgaudit_wf_update"')
    problems = recorded.execute(
        "select subject, problem from pgaudit_wf.doctor() where severity = 'error'"
    ).fetchall()
    assert (
        "pgaudit_wf.security_audit_log",
        "the log's append-only trigger is missing or disabled",
    ) in problems
    assert any("pgaudit_wf_update is disabled" in problem for _, problem in problems)


def test_what_a_session_makes_of_backslashes_changes_nothing(recorded: Conn) -> None:
    """It parses the bodies of functions, and so their regular expressions, by that setting."""
    part = f"pgaudit_wf.security_audit_log_y{datetime.now(UTC):%Ym%m}"
    with psycopg.connect(
        recorded.info.dsn, autocommit=True, options="-c standard_conforming_strings=off"
    ) as old_fashioned:
        with pytest.raises(psycopg.Error) as caught:
            old_fashioned.execute(f"drop table {part}".encode())
        assert caught.value.sqlstate == "PA343"
        findings = "select * from pgaudit_wf.doctor()"
        assert old_fashioned.execute(findings).fetchall() == recorded.execute(findings).fetchall()
        batch = "select cursor from pgaudit_wf.read_log(%s, 1)"
        first = old_fashioned.execute(batch, [None]).fetchone()
        assert first
        assert old_fashioned.execute(batch, first).fetchone()
        assert old_fashioned.execute(
            "select pgaudit_wf._mask_text('to sam@x.example.', '{}', '{sam@x.example}', '[gone]'),"
            " pgaudit_wf._kind_of_value('sam@x.example')"
        ).fetchone() == ("to [gone].", "email")
