"""pgbench's own TPC-B-like workload, reconciled with the log to the last cent.

PGAUDIT_WF_TPCB_SECONDS is how long it runs; 60 on a release, less in CI.
"""

import os
import subprocess
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgaudit_wf.dev.server import DevServer

SECONDS = int(os.environ.get("PGAUDIT_WF_TPCB_SECONDS", "10"))
CLIENTS = 4

# The balance that the log leads to: each event finds what the one before it left.
REBUILT = """
    with event as (
        select id, resource_id::int as key, (diff #>> '{0,old}')::int as before,
            (diff #>> '{0,value}')::int as after, jsonb_array_length(diff) as operations,
            diff #>> '{0,path}' as path
        from pgaudit_wf.security_audit_log where resource_type = %s and action like '%%.updated'
    ), story as (
        select *, lag(after, 1, 0) over w as found, lead(id) over w is null as last
        from event window w as (partition by key order by id)
    )
    select
        count(*) filter (where before <> found or operations <> 1 or path <> %s),
        coalesce(jsonb_object_agg(key, after) filter (where last), '{}'), count(*)
    from story
"""


@pytest.mark.slow
def test_pgbench_is_recorded_to_the_last_cent(server: DevServer, dsn: str) -> None:
    parts = conninfo_to_dict(dsn)
    target = ["-h", str(parts["host"]), "-U", str(parts["user"]), str(parts["dbname"])]
    pgbench = str(server.bin("pgbench"))
    subprocess.run([pgbench, "-i", "-q", *target], check=True, capture_output=True)
    with psycopg.connect(dsn, autocommit=True) as conn:
        for table in ("accounts", "tellers", "branches"):
            conn.execute("select pgaudit_wf.attach(%s::regclass)", [f"pgbench_{table}"])
        # It has no key; a row's place does not change, as the workload only inserts.
        conn.execute("alter table pgbench_history add nr bigint generated always as identity")
        conn.execute("select pgaudit_wf.attach('pgbench_history', id_columns => '{nr}')")
        done = subprocess.run(
            [pgbench, "-n", "-c", str(CLIENTS), "-j", "2", "-T", str(SECONDS), *target],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert "number of failed transactions: 0 (0.000%)" in done.stdout
        conn.execute("analyze")
        # What is within a diff has no statistics, and a guess of one row makes an endless loop.
        conn.execute("set enable_nestloop = off")
        assert_reconciled(conn)


def assert_reconciled(conn: psycopg.Connection[Any]) -> None:
    [(transactions,)] = conn.execute("select count(*) from pgbench_history").fetchall()
    assert transactions > CLIENTS * SECONDS
    # One transaction in ten thousand moves nothing: then a row of history is all that changes.
    [(moving,)] = conn.execute("select count(*) from pgbench_history where delta <> 0").fetchall()
    # Each transaction: one row of each table, all four events of it under its transaction id.
    assert conn.execute(
        "select events, count(*) from (select array_agg(action order by action) as events "
        "from pgaudit_wf.security_audit_log where action !~ '^audit[.]' group by tx_id) as t"
        " group by events order by 2 desc"
    ).fetchall() == [
        (["pgbench_accounts.updated", "pgbench_branches.updated", "pgbench_history.created",
          "pgbench_tellers.updated"], moving),
        *([(["pgbench_history.created"], transactions - moving)] if transactions > moving else []),
    ]  # fmt: skip
    # The row of history says who moved how much; the other three events of its transaction agree.
    assert conn.execute(
        """
        with event as (
            select tx_id, resource_type, resource_id,
                (diff #>> '{0,value}')::int - (diff #>> '{0,old}')::int as delta
            from pgaudit_wf.security_audit_log where action like '%.updated'
        )
        select count(*) from pgbench_history as h
        join pgaudit_wf.security_audit_log as l on l.resource_type = 'pgbench_history'
            and l.resource_id = h.nr::text and l.diff = jsonb_build_array(
                jsonb_build_object('op', 'add', 'path', '', 'value', to_jsonb(h)))
        join event as a on a.tx_id = l.tx_id and a.delta = h.delta
            and (a.resource_type, a.resource_id) = ('pgbench_accounts', h.aid::text)
        join event as t on t.tx_id = l.tx_id and t.delta = h.delta
            and (t.resource_type, t.resource_id) = ('pgbench_tellers', h.tid::text)
        join event as b on b.tx_id = l.tx_id and b.delta = h.delta
            and (b.resource_type, b.resource_id) = ('pgbench_branches', h.bid::text)
        """
    ).fetchone() == (moving,)
    for table, key, column in [("accounts", "aid", "abalance"), ("tellers", "tid", "tbalance"),
                               ("branches", "bid", "bbalance")]:  # fmt: skip
        [(torn, rebuilt, events)] = conn.execute(
            REBUILT, [f"pgbench_{table}", f"/{column}"]
        ).fetchall()
        assert (torn, events) == (0, moving)
        # Balances start at zero, so what no event names is still zero.
        assert conn.execute(
            f"select coalesce(jsonb_object_agg({key}, {column}), '{{}}') from pgbench_{table} "
            f"where {key} in (select resource_id::int from pgaudit_wf.security_audit_log "
            f"where resource_type = 'pgbench_{table}') or {column} <> 0"
        ).fetchone() == (rebuilt,)
        assert conn.execute(
            f"select count(*) from (select {key}, {column} from pgbench_{table} "
            f"order by {column} desc, {key} limit 10) as t where {column} is distinct from "
            f"(pgaudit_wf.row_as_of('pgbench_{table}', {key}::text) ->> '{column}')::int"
        ).fetchone() == (0,)
