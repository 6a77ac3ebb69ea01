"""`doctor()` names what of the schema is not as it was installed; each remedy works when pasted."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

Conn = psycopg.Connection[Any]

QUIET = (
    "create function public.quiet() returns trigger language plpgsql as 'begin return null; end'; "
)
LOG = "pgaudit_wf.security_audit_log"
CHANGES = {
    "a rule": (
        f"create rule quiet as on insert to {LOG} do instead nothing",
        LOG,
    ),
    "a trigger on the log": (
        QUIET + f"create trigger aaa before insert on {LOG} for each row execute function quiet()",
        f"trigger aaa on {LOG}",
    ),
    "a trigger on a month": (
        QUIET + f"create trigger aaa before insert on {LOG}_default"
        " for each row execute function quiet()",
        f"{LOG}_default",
    ),
    "a trigger function of a table": (
        "create or replace function pgaudit_wf.capture_api_key() returns trigger"
        " language plpgsql as 'begin return null; end'",
        "function pgaudit_wf.capture_api_key()",
    ),
    "a function": (
        "create or replace function pgaudit_wf._context_attested() returns boolean"
        " language sql stable as 'select true'",
        "function pgaudit_wf._context_attested()",
    ),
    "settings of a function": (
        "alter function pgaudit_wf.audit_trail reset all",
        "function pgaudit_wf.audit_trail(",
    ),
    "another function": (
        "create function pgaudit_wf.mine() returns integer language sql as 'select 1'",
        "function pgaudit_wf.mine()",
    ),
    "a default of the log": (
        f"alter table {LOG} alter column actor_id set default 'u_innocent'",
        f"default of {LOG}.actor_id",
    ),
    "a default of a month": (
        f"alter table {LOG}_default alter column actor_id set default 'u_innocent'",
        f"{LOG}_default",
    ),
    "a default that is dropped": (
        f"alter table {LOG} alter column db_user drop default",
        f"default of {LOG}.db_user",
    ),
    "a default that is added": (
        f"alter table {LOG} alter column resource_id set default 'x'",
        f"default of {LOG}.resource_id",
    ),
    "a disabled guard": (
        "alter table pgaudit_wf.log_tile disable trigger append_only",
        "trigger append_only on pgaudit_wf.log_tile",
    ),
    "a dropped guard": (
        "drop trigger append_only_row on pgaudit_wf.archive",
        "trigger append_only_row on pgaudit_wf.archive",
    ),
    "row-level security": (
        f"alter table {LOG} disable row level security",
        f"row-level security of {LOG}",
    ),
    "a policy": (
        f"create policy mine on {LOG} for select using (true)",
        f"policy mine on {LOG}",
    ),
    "a dropped constraint": (
        "alter table pgaudit_wf.reader drop constraint reader_pkey",
        "constraint reader_pkey of pgaudit_wf.reader",
    ),
    "an event trigger": (
        "alter event trigger pgaudit_wf_refuse_detach disable",
        "event trigger pgaudit_wf_refuse_detach",
    ),
    "a dropped event trigger": (
        "drop event trigger pgaudit_wf_refuse_drop",
        "event trigger pgaudit_wf_refuse_drop",
    ),
}


def errors(conn: Conn) -> list[tuple[str, str]]:
    return conn.execute(
        "select subject, remedy from pgaudit_wf.doctor() where severity = 'error'"
    ).fetchall()


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_changed_is_named_and_its_remedy_works(app_conn: Conn, name: str) -> None:
    statement, subject = CHANGES[name]
    assert errors(app_conn) == []
    app_conn.execute(statement)
    found = errors(app_conn)
    assert [got for got, _ in found if got.startswith(subject)], found
    for _, remedy in found:
        app_conn.execute(remedy.encode())
    assert errors(app_conn) == []


def test_what_the_product_does_itself_is_no_finding(app_conn: Conn) -> None:
    app_conn.execute("create table t (id int primary key, org_id text, v int)")
    app_conn.execute("select pgaudit_wf.attach('t')")
    app_conn.execute("alter table t add column w int")
    app_conn.execute("select pgaudit_wf.set_org_limit(null, 't', 5)")
    app_conn.execute("select pgaudit_wf.add_log_partition('2031-01-01')")
    app_conn.execute("select pgaudit_wf.detach('api_key')")
    app_conn.execute(
        "create or replace view pgaudit_wf.actor_directory as"
        " select id as actor_id, id as name, null::text as email from (values (text 'u')) as u (id)"
    )
    assert errors(app_conn) == []


def test_findings_do_not_depend_on_how_a_session_sees_definitions(app_dsn: str) -> None:
    """Each would come with a remedy, which drops what it takes for somebody else's."""
    for setting, value in (
        ("standard_conforming_strings", "off"),
        ("quote_all_identifiers", "on"),
        ("intervalstyle", "sql_standard"),
        ("datestyle", "German"),
        ("bytea_output", "escape"),
        ("search_path", ""),
        ("search_path", "pgaudit_wf"),
    ):
        with psycopg.connect(app_dsn, options=f"-c {setting}={value}") as conn:
            found = conn.execute("select subject, problem from pgaudit_wf.doctor()").fetchall()
            assert found == [], (setting, value)
