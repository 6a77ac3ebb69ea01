"""What `doctor()` finds in an application's database ends when its remedy is pasted."""

from __future__ import annotations

import os
from typing import LiteralString

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo

from support.server import Conn

PREPARE = """
create table t (id int primary key, org_id text, name text, state text, updated_at timestamptz);
select pgaudit_wf.attach('t', label_column => 'name');
create table part (id int primary key, org_id text) partition by range (id);
create table part_1 partition of part for values from (0) to (10);
select pgaudit_wf.attach('part');
"""

# What happens, and a part of what doctor() then says.
FAULTS = {
    "a trigger is dropped": ('drop trigger "!pgaudit_wf_update" on t', "is missing"),
    "a trigger is disabled": ("alter table t disable trigger user", "is disabled"),
    "a partition's trigger is disabled": (
        "alter table part_1 disable trigger user",
        "is disabled",
    ),
    "DDL is not followed": (
        "alter event trigger pgaudit_wf_after_ddl disable; alter table t add column more int",
        "its columns have changed",
    ),
    "DDL cannot be followed": ("drop event trigger pgaudit_wf_after_drop", "is not being followed"),
    "the application owns a table": (
        "create role remedy_owner; alter table t owner to remedy_owner;"
        "create role remedy_app login in role remedy_owner, pgaudit_wf_app",
        "can alter the table",
    ),
    "the application writes the log": (
        "grant insert, select on pgaudit_wf.security_audit_log to pgaudit_wf_app",
        "the log directly",
    ),
    "anybody reads a secret": (
        "grant select on pgaudit_wf.attestation_key to public",
        "may read the table",
    ),
    "a superuser's rights": (
        "alter function pgaudit_wf._is_moved() owner to {superuser}",
        "a superuser",
    ),
    "the superuser's schema": (
        "alter schema pgaudit_wf owner to {superuser}",
        "belongs to",
    ),
    "a rule over a dropped column": (
        "insert into pgaudit_wf.action_rule (resource_type, position, op, condition, action)"
        " values ('t', 1, 'update', $$new.state = 'off'$$, 't.off');"
        "alter table t drop column state",
        "state",
    ),
    "a rule calls somebody's function": (
        "create role remedy_author; create function is_off(text) returns boolean language sql"
        " as $$ select $1 = 'off' $$; alter function is_off(text) owner to remedy_author;"
        "insert into pgaudit_wf.action_rule (resource_type, op, condition, action)"
        " values ('t', 'update', 'public.is_off(new.state)', 't.off')",
        "remedy_author can replace",
    ),
    "a limit calls somebody's function": (
        'create role remedy_judge; create function "Is on"(text) returns boolean immutable'
        " language sql as $$ select $1 = 'on' $$;"
        'alter function "Is on"(text) owner to remedy_judge;'
        """insert into pgaudit_wf.limit_condition values ('t', 'public . "Is on" (state)');"""
        "select pgaudit_wf.set_org_limit(null, 't', 5)",
        "remedy_judge can replace",
    ),
    "the label's column is gone": ("alter table t drop column name", 'column "name"'),
    "the organization's column is gone": ("alter table t drop column org_id", 'column "org_id"'),
    "an ignored column is gone": ("alter table t drop column updated_at", 'column "updated_at"'),
    "a limit's column is gone": (
        "insert into pgaudit_wf.limit_condition values ('t', $$state = 'on'$$);"
        "select pgaudit_wf.set_org_limit(null, 't', 5); alter table t drop column state",
        "are not being counted",
    ),
    "a limit's organization is gone": (
        "select pgaudit_wf.set_org_limit(null, 't', 5); alter table t drop column org_id",
        "are not being counted",
    ),
    "a count is stale": (
        "select pgaudit_wf.set_org_limit(null, 't', 5);"
        "update pgaudit_wf.limit_target set stale_since = now()",
        "may be wrong",
    ),
    "a limit's condition raises": (
        "create function fails(text) returns boolean immutable language sql as 'select true';"
        "insert into pgaudit_wf.limit_condition values ('part', 'public.fails(org_id)');"
        "select pgaudit_wf.set_org_limit(null, 'part', 5);"
        "create or replace function fails(text) returns boolean immutable language sql"
        " as 'select 1 / length($1) > 0';"
        "insert into part values (2, '')",
        "changes went through uncounted",
    ),
    "a guard of the log is dropped": (
        "drop trigger append_only on pgaudit_wf.security_audit_log_default",
        "append-only trigger",
    ),
    "a guard of the log is disabled": (
        "alter table pgaudit_wf.security_audit_log_default disable trigger append_only",
        "append-only trigger",
    ),
    "a month has no partition": (
        "do $$ begin execute (select format('drop table pgaudit_wf.%I', partition_name)"
        " from pgaudit_wf.log_months() order by 1 offset 1 limit 1); end $$",
        "there is no partition",
    ),
    "events are in no month's partition": (
        "insert into pgaudit_wf.security_audit_log (action, occurred_at)"
        " values ('a.b', '2019-03-04'), ('a.b', '2019-05-06')",
        "events of 2019-03 are waiting",
    ),
    "changes went unrecorded": (
        "insert into pgaudit_wf.capture_failure (target, op, sqlstate)"
        " values ('t', 'INSERT', '22000')",
        "went through unrecorded",
    ),
    "a child inherits": ("create table child (extra int) inherits (t)", "inherits from"),
    "a table is swapped": (
        "create table other (like t including all); alter table t rename to old_t;"
        "alter table other rename to t",
        "is not recorded",
    ),
    "a run is no longer stamped": (
        "create table flow (id int primary key, nodes jsonb, edges jsonb, enabled boolean);"
        "create table run (id int primary key, workflow_id int, executed_workflow_hash text,"
        " triggered_by_credential_type text, triggered_by_credential_label text);"
        "select pgaudit_wf.attach_workflow('flow'); select pgaudit_wf.attach_execution('run');"
        "drop trigger pgaudit_wf_stamp on run; drop trigger pgaudit_wf_restamp on run;"
        "drop trigger pgaudit_wf_guard on flow",
        "pgaudit_wf_stamp is missing",
    ),
    "the settings of a limit are lost": (
        "select pgaudit_wf.set_org_limit(null, 't', 5); delete from pgaudit_wf.limit_target",
        "are not being counted",
    ),
    "an attachment is lost": (
        "delete from pgaudit_wf.attachment where target = 't'::regclass",
        "were lost",
    ),
}


# Whoever pastes a remedy runs what it says, and nothing that a table's owner chose as a name.
EVIL = 't"\n; create table pasted (); --'


@pytest.mark.parametrize("column", ["nodes", "name", "id", "hash"])
def test_a_name_in_a_remedy_is_only_a_name(conn: Conn, column: str) -> None:
    names = {"t": EVIL, "r": f"{EVIL} runs", "c": f"{column}{EVIL}"}
    quoted = {name: '"' + text.replace('"', '""') + '"' for name, text in names.items()}
    literal = {name: "'" + text.replace("'", "''") + "'" for name, text in names.items()}
    columns = {name: quoted["c"] if name == column else name for name in ("nodes", "name", "id")}
    hash_column = quoted["c"] if column == "hash" else "hash"
    conn.execute(
        f"create table {quoted['t']} ({columns['id']} text primary key, {columns['name']} text,"
        f" {columns['nodes']} jsonb, edges jsonb);"
        f"create table {quoted['r']} (id int primary key, workflow_id text, {hash_column} text,"
        " type text, label text)".encode()
    )
    named = {name: literal["c"] if name == column else f"'{name}'" for name in ("nodes", "name")}
    stamped = literal["c"] if column == "hash" else "'hash'"
    conn.execute(
        "select pgaudit_wf.attach_workflow(format('%I', {t})::regclass, nodes_column => {nodes},"
        " name_column => {name}); select pgaudit_wf.attach_execution(format('%I', {r})::regclass,"
        " format('%I', {t})::regclass, hash_column => {hash}, type_column => 'type',"
        " label_column => 'label')".format(**literal, **named, hash=stamped).encode()
    )
    assert findings(conn) == []
    target = quoted["r" if column == "hash" else "t"]
    conn.execute(f"alter table {target} drop column {quoted['c']} cascade".encode())
    found = findings(conn)
    assert found
    for _, remedy in found:
        conn.execute(remedy.encode())
    assert conn.execute("select to_regclass('pasted')").fetchone() == (None,)


def findings(conn: Conn) -> list[tuple[str, str]]:
    return conn.execute("select problem, remedy from pgaudit_wf.doctor()").fetchall()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_remedy_ends_its_finding(conn: Conn, fault: str) -> None:
    statements, problem = FAULTS[fault]
    conn.execute(PREPARE)
    assert findings(conn) == []
    (superuser,) = conn.execute("select session_user").fetchone() or ("",)
    conn.execute(statements.replace("{superuser}", superuser).encode())
    found = findings(conn)
    assert [said for said, _ in found if problem in said], found
    # Once DDL is followed again, what it did meanwhile remains to be followed.
    for _ in range(3):
        for _, remedy in found:
            conn.execute(remedy.encode())
        found = findings(conn)
    assert found == []
    conn.execute("insert into t (id) values (1)")
    conn.execute("drop role if exists remedy_app, remedy_author, remedy_judge")
    assert conn.execute(
        "select count(*) from pgaudit_wf.security_audit_log where resource_type = 't'"
    ).fetchone() == (1,)


def test_a_new_owner_of_a_partitioned_table_makes_partitions_again(owner_dsn: str) -> None:
    """Where there are no event triggers, nobody notices that the table has another owner."""
    owner = f"new_owner_{os.getpid()}"
    settings: LiteralString = "select redact, on_failure, form from pgaudit_wf.attached"
    with (
        psycopg.connect(owner_dsn, autocommit=True) as conn,
        psycopg.connect(make_conninfo(owner_dsn, user="postgres"), autocommit=True) as admin,
    ):
        conn.execute(
            "create table part (id int primary key, org_id text, secret text, workflow_id int,"
            " executed_workflow_hash text, triggered_by_credential_type text,"
            " triggered_by_credential_label text) partition by range (id);"
            "create table flow (id int primary key, nodes jsonb, edges jsonb);"
            "select pgaudit_wf.attach_workflow('flow');"
            "select pgaudit_wf.attach('part', redact => '{secret}', on_failure => 'warn');"
            "select pgaudit_wf.attach_execution('part', 'flow')"
        )
        usual, before = findings(admin), conn.execute(settings).fetchall()
        admin.execute(
            f"create role {owner}; grant create, usage on schema public to {owner};"
            f"alter table part owner to {owner}; alter table flow owner to {owner}".encode()
        )
        try:
            admin.execute(f"set role {owner}".encode())
            with pytest.raises(errors.InsufficientPrivilege):
                admin.execute("create table one partition of part for values from (0) to (9)")
            admin.execute("reset role")
            named = [found for found in findings(admin) if found not in usual]
            assert "partitions of it cannot be created" in named[0][0]
            for _, remedy in named:
                admin.execute(remedy.encode())
            assert findings(admin) == usual
            assert conn.execute(settings).fetchall() == before
            admin.execute(f"set role {owner}".encode())
            admin.execute("create table one partition of part for values from (0) to (9)")
            admin.execute("insert into part (id, secret) values (1, 'hidden')")
            admin.execute("reset role")
            assert conn.execute(
                "select diff #>> '{0,value,secret}' from pgaudit_wf.security_audit_log"
                " where resource_type = 'part'"
            ).fetchall() == [("[redacted]",)]
        finally:
            admin.execute(f"reset role; drop owned by {owner}; drop role {owner}".encode())
