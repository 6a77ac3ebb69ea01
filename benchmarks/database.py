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
from pgaudit_wf.schema.migrate import migrate

HERE = Path(__file__).parent
ROOT = HERE.parent
DATABASE = "bench"
APPLICATION = "bench_app"
"""The role that pgbench logs in as: no superuser, since those skip all checks of rights."""

LOGS = {
    BARE.name: ["bare_log"],
    OURS.name: ["pgaudit_wf.security_audit_log"],
    PGHISTORY.name: ["pghistory_app_itemevent", "pghistory_app_documentevent", "pghistory_context"],
}
"""What the variants that record write to."""

LOG_SIZE = """
select sum(pg_table_size(part)), sum(pg_indexes_size(part))
from unnest(%s::regclass[]) as log
cross join lateral (
    select relid from pg_partition_tree(log) union select log
) as parts (part)
"""

ATTACH = """
select pgaudit_wf.attach('item_ours', resource_type => 'item', org_column => 'org_id',
    label_column => 'name', ignore => '{last_used_at,updated_at}');
select pgaudit_wf.attach('document_ours', resource_type => 'document', org_column => 'org_id',
    label_column => 'name', ignore => '{updated_at}');
"""


def create(server: DevServer, scenario: Scenario, rows: int) -> None:
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
    migrate(server.dsn(DATABASE))
    with psycopg.connect(server.dsn(DATABASE), autocommit=True) as conn:
        # Before the rows are there: after a checkpoint the first change of each page logs the whole
        # page, which is not what a transaction costs but what a checkpoint does.
        conn.execute("checkpoint")
    with psycopg.connect(server.dsn(DATABASE)) as conn:
        for variant in (NONE, BARE, OURS):
            _run(conn, _read("copy_table.sql", variant=variant.name))
        # Django's triggers are there already, and its log has to start empty like the others.
        _run(conn, "set local session_replication_role = replica")
        for variant in (NONE, BARE, OURS, PGHISTORY):
            _run(conn, _read("fill.sql", variant=variant.name, rows=rows))
        _run(conn, "set local session_replication_role = origin")
        # A row without context leaves the actor's and the request's index alone, also the constant.
        row = BARE_ROW | (CONTEXT if scenario.context else {})
        columns, values = ", ".join(row), ", ".join(f"'{value}'" for value in row.values())
        _run(conn, _read("bare_log.sql"))
        _run(conn, _read("bare.sql", variant=BARE.name, columns=columns, values=values))
        _run(conn, ATTACH)
        _run(conn, f"grant all on all tables in schema public to {APPLICATION}")
        _run(conn, f"grant all on all sequences in schema public to {APPLICATION}")


def _read(name: str, **values: object) -> str:
    return (HERE / "sql" / name).read_text().format_map(values)


def _run(conn: psycopg.Connection[TupleRow], text: str) -> None:
    conn.execute(text.encode())


def settle(server: DevServer, scenario: Scenario) -> None:
    """Clear the dead rows of the last round, and the rows that a scenario only adds to."""
    with psycopg.connect(server.dsn(DATABASE), autocommit=True) as conn:
        if scenario.grows:
            for variant in (NONE, BARE, OURS, PGHISTORY):
                conn.execute(f"truncate item_{variant.name}".encode())
        conn.execute("vacuum (analyze)")
        session = psutil.Process(conn.info.backend_pid)
    # What it took would be counted as the next run's.
    psutil.wait_procs([session], timeout=10)


def wal_position(conn: psycopg.Connection[TupleRow]) -> int:
    """Return how many bytes of write-ahead log the server has written in its life."""
    row = conn.execute("select (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
    return int(row[0]) if row else 0


def log_size(conn: psycopg.Connection[TupleRow], variant: str) -> tuple[int, int]:
    """Return the bytes of a variant's tables with their TOAST, and of their indexes."""
    row = conn.execute(LOG_SIZE, [LOGS[variant]]).fetchone()
    return (int(row[0]), int(row[1])) if row else (0, 0)


def count_events(conn: psycopg.Connection[TupleRow], variant: str) -> int:
    """Return how many changes a variant has recorded."""
    logs = [log for log in LOGS[variant] if log != "pghistory_context"]
    query = " + ".join(f"(select count(*) from {log})" for log in logs)
    row = conn.execute(f"select {query}".encode()).fetchone()
    return int(row[0]) if row else 0


def emptied(conn: psycopg.Connection[TupleRow], scenario: Scenario) -> list[str]:
    """Return the variants whose table has no row left."""
    return [
        variant.name
        for variant in scenario.variants
        if conn.execute(f"select 1 from item_{variant.tables} limit 1".encode()).fetchone() is None
    ]
