"""Contexts of clients that share server connections through PgBouncer in transaction mode."""

import asyncio
import contextlib
import random
from typing import Any

import psycopg

from pgaudit_wf import bind, request_context
from support.pgbouncer import SERVER_CONNECTIONS

CLIENTS, TRANSACTIONS = 8, 50


def test_contexts_of_interleaved_clients_never_mix(
    conn: psycopg.Connection[Any], pooled_dsn: str
) -> None:
    conn.execute("create table note (id text primary key, written_by text)")
    conn.execute("select pgaudit_wf.attach('note')")
    pids: set[int] = set()

    async def client(number: int) -> None:
        chance = random.Random(number)
        # PgBouncer before 1.21 knows no prepared statements.
        async with await psycopg.AsyncConnection.connect(
            pooled_dsn, autocommit=True, prepare_threshold=None
        ) as own:
            for turn in range(TRANSACTIONS):
                key = f"{number}-{turn}"
                fails = chance.random() < 0.2
                with bind(actor_id=f"u_{number}"), contextlib.suppress(ZeroDivisionError):
                    async with request_context(own, correlation_id=key):
                        cursor = await own.execute("select pg_backend_pid()")
                        row = await cursor.fetchone()
                        assert row is not None
                        pids.add(row[0])
                        await asyncio.sleep(chance.random() / 200)
                        await own.execute("insert into note values (%s, %s)", [key, f"u_{number}"])
                        if fails:
                            raise ZeroDivisionError
                # Outside of a block, whatever connection comes, nobody's context is on it.
                cursor = await own.execute(
                    "select nullif(current_setting('app.actor_id', true), ''), "
                    "nullif(current_setting('app.correlation_id', true), '')"
                )
                assert await cursor.fetchone() == (None, None)
                await asyncio.sleep(chance.random() / 500)

    async def main() -> None:
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))

    asyncio.run(main())
    assert 1 < len(pids) <= SERVER_CONNECTIONS
    notes = conn.execute("select id, written_by, written_by, id from note order by id").fetchall()
    events = conn.execute(
        "select resource_id, actor_id, diff -> 0 -> 'value' ->> 'written_by', correlation_id "
        "from pgaudit_wf.security_audit_log where resource_type = 'note' order by resource_id"
    ).fetchall()
    assert CLIENTS * TRANSACTIONS > len(notes) > CLIENTS * TRANSACTIONS / 2
    assert sorted(events) == sorted(notes)
