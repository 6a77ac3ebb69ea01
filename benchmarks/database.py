"""Makes the database of one scenario: the same tables once for each variant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
from psycopg.rows import TupleRow

from benchmarks.scenarios import BARE, BARE_ROW, CONTEXT, NONE, OURS, PGHISTORY, Scenario
from pgaudit_wf.dev.server import DevServer

HERE = Path(__file__).parent
ROOT = HERE.parent
DATABASE = "bench"
APPLICATION = "bench_app"
"""The role that pgbench logs in as: no superuser, since those skip all checks of rights."""

COPY_LOG = """
create table bare_log (like pgaudit_wf.security_audit_log including all)
    partition by range (occurred_at);
do $$
declare
    leaf record;
begin
    for leaf in
        select row_number() over () as number, pg_get_expr(relpartbound, oid) as bound
        from pg_class join pg_inherits on inhrelid = oid
        where inhparent = 'pgaudit_wf.security_audit_log'::regclass
    loop
        execute format('create table bare_log_%s partition of bare_log %s',
            leaf.number, leaf.bound);
    end loop;
end
$$;
"""

# All that a default would work out has to be a constant instead, whatever columns the log gets.
LOG_COLUMNS = """
select attname, format_type(atttypid, null) from pg_attribute
where attrelid = 'pgaudit_wf.security_audit_log'::regclass
    and attnum > 0 and not attisdropped and attidentity = ''
order by attnum
"""
EMPTY = {"boolean": "false", "jsonb": "'{}'"}
"""Constants for columns, by type, that `BARE_ROW` does not name."""

ATTACH = """
select pgaudit_wf.attach('item_ours', resource_type => 'item', org_column => 'org_id',
    label_column => 'name', ignore => '{last_used_at,updated_at}');
select pgaudit_wf.attach('document_ours', resource_type => 'document', org_column => 'org_id',
    label_column => 'name', ignore => '{updated_at}');
"""


def create(server: DevServer, scenario: Scenario) -> None:
    """Make the database anew, so that no scenario sees what another one left behind."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"drop database if exists {DATABASE}")
        admin.execute(f"create database {DATABASE}")
        if not admin.execute("select 1 from pg_roles where rolname = %s", [APPLICATION]).fetchone():
            admin.execute(f"create role {APPLICATION} login")
    subprocess.run(
        [sys.executable, "-m", "benchmarks.django_project", server.dsn(DATABASE)],
        check=True,
        cwd=ROOT,
    )
    with psycopg.connect(server.dsn(DATABASE)) as conn:
        for file in sorted(ROOT.glob("sql/core/*.sql")):
            _run(conn, file.read_text())
        for variant in (NONE, BARE, OURS):
            _run(conn, _read("copy_table.sql", variant=variant.name))
        # Django's triggers are there already, and its log has to start empty like the others.
        _run(conn, "set local session_replication_role = replica")
        for variant in (NONE, BARE, OURS, PGHISTORY):
            _run(conn, _read("fill.sql", variant=variant.name, rows=scenario.rows))
        _run(conn, "set local session_replication_role = origin")
        _run(conn, COPY_LOG + _bare(conn, scenario) + ATTACH)
        _run(conn, f"grant all on all tables in schema public to {APPLICATION}")
        _run(conn, f"grant all on all sequences in schema public to {APPLICATION}")


def _bare(conn: psycopg.Connection[TupleRow], scenario: Scenario) -> str:
    # A row without context leaves the actor's and the request's index alone: so must the constant.
    constants = BARE_ROW | (CONTEXT if scenario.context else {})
    row = {
        name: f"'{constants[name]}'" if name in constants else EMPTY.get(type_name, "null")
        for name, type_name in conn.execute(LOG_COLUMNS)
    }
    return _read(
        "bare.sql", variant=BARE.name, columns=", ".join(row), values=", ".join(row.values())
    )


def _read(name: str, **values: object) -> str:
    return (HERE / "sql" / name).read_text().format_map(values)


def _run(conn: psycopg.Connection[TupleRow], text: str) -> None:
    conn.execute(text.encode())


def settle(server: DevServer, checkpoint: bool = False) -> None:
    """Clear the dead rows of the last round; a checkpoint comes first of all, never in between.

    After a checkpoint the first change of each page logs the whole page, which is not what a
    transaction costs but what a checkpoint does.
    """
    with psycopg.connect(server.dsn(DATABASE), autocommit=True) as conn:
        conn.execute("vacuum (analyze)")
        if checkpoint:
            conn.execute("checkpoint")
        session = psutil.Process(conn.info.backend_pid)
    # What it took would be counted as the next run's.
    psutil.wait_procs([session], timeout=10)


def check(server: DevServer, scenario: Scenario) -> None:
    """Refuse numbers of a run in which a variant did not record what it should have."""
    touched = scenario.name.startswith("touch")
    with psycopg.connect(server.dsn(DATABASE)) as conn:
        for log in ("bare_log", "pgaudit_wf.security_audit_log"):
            found = conn.execute(f"select exists (select from {log})".encode()).fetchone()
            if found != (not touched or log == "bare_log",):
                raise RuntimeError(f"{scenario.name}: {log} has events: {found}")
