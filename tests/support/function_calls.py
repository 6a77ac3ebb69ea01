"""Which functions of schema pgaudit_wf no test calls; at work under `make coverage` only.

PostgreSQL counts calls for each database. They are collected when a test's database goes, and
what was never called is listed at the end of the run.
"""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
from psycopg import sql

DIRECTORY = Path(os.environ.get("PGAUDIT_WF_FUNCTION_CALLS", os.devnull))
SETTINGS = {"track_functions": "all"} if DIRECTORY.is_dir() else {}

_FUNCTIONS = """
select p.oid::regprocedure::text, l.lanname = 'sql' and p.proconfig is null and not p.prosecdef
from pg_proc as p
join pg_language as l on l.oid = p.prolang
where p.pronamespace = 'pgaudit_wf'::regnamespace
"""


def _write(name: str, lines: list[str]) -> None:
    with (DIRECTORY / f"{name}.{os.getpid()}").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def prepare(dsn: str) -> None:
    """Note which functions a template has, and let all of them be counted."""
    if not SETTINGS:
        return
    with psycopg.connect(dsn) as conn:
        functions = conn.execute(_FUNCTIONS).fetchall()
        for function, inlined in functions:
            if inlined:
                # What is inlined is not counted, and what has a setting is not inlined.
                conn.execute(
                    sql.SQL("alter function {} set pgaudit_wf.counted = on").format(
                        sql.SQL(function)
                    )
                )
        attached = conn.execute("select 1 from pgaudit_wf.attachment").fetchone()
    if not attached:  # or triggers that were written for the application's tables are among them
        _write("there", [function for function, _ in functions])


def collect(dsn: str) -> None:
    """Note which functions were called in a test's database."""
    if not SETTINGS:
        return
    with psycopg.connect(dsn, autocommit=True, options="-c statement_timeout=0") as conn:
        # A session that is still open may not have handed in its counts.
        conn.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        called = conn.execute(
            "select funcid::regprocedure::text from pg_stat_user_functions"
            " where schemaname = 'pgaudit_wf'"
        ).fetchall()
    _write("called", [function for (function,) in called])


def uncalled() -> list[str]:
    """Return the functions that no test has called."""
    if not SETTINGS:
        return []
    noted = {
        kind: {
            line for path in DIRECTORY.glob(f"{kind}.*") for line in path.read_text().splitlines()
        }
        for kind in ("there", "called")
    }
    return sorted(noted["there"] - noted["called"])
