"""What happens one transaction at a time, and that no other role can hold it up."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

Conn = psycopg.Connection[Any]

BLOCKED = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_the_second_waits_for_the_first(dsn: str, isolation: str) -> None:
    done: list[str] = []

    def second() -> None:
        with psycopg.connect(dsn) as conn:
            conn.execute(f"set transaction isolation level {isolation}")
            conn.execute("select pgaudit_wf._take_turn('x')")
            done.append("second")

    with psycopg.connect(dsn, autocommit=True) as watcher, psycopg.connect(dsn) as first:
        first.execute("select pgaudit_wf._take_turn('x')")
        first.execute("select pgaudit_wf._take_turn('x')")
        thread = threading.Thread(target=second)
        thread.start()
        while watcher.execute(BLOCKED).fetchone() == (0,):
            assert thread.is_alive()
        with psycopg.connect(dsn) as other:
            other.execute("select pgaudit_wf._take_turn('y')")
        done.append("first")
        first.commit()
        thread.join()
        assert done == ["first", "second"]
        assert watcher.execute("select count(*) from pgaudit_wf.turn").fetchone() == (0,)


def test_advisory_locks_of_others_hold_up_nothing(conn: Conn, dsn: str) -> None:
    conn.execute("create role stranger login")
    try:
        with psycopg.connect(dsn, user="stranger") as stranger:
            for key in ("pgaudit_wf.add_log_partition", "pgaudit_wf.pseudonymise"):
                stranger.execute("select pg_advisory_lock(hashtext(%s))", [key])
            stranger.execute(
                "select pg_advisory_lock(hashtext('pgaudit_wf.org_limit'), hashtext('t'))"
            )
            conn.execute("set lock_timeout = '2s'")
            conn.execute("create table t (id int primary key, org_id text)")
            conn.execute("select pgaudit_wf.attach('t')")
            conn.execute("select pgaudit_wf.set_org_limit(null, 't', 5)")
            conn.execute("alter table t add column v int")
            conn.execute("insert into t values (1, 'o')")
            conn.execute("select pgaudit_wf.add_log_partition('2031-01-01')")
            for statement in (
                "select pgaudit_wf._take_turn('x')",
                "lock table pgaudit_wf.turn",
                "insert into pgaudit_wf.turn values ('partition')",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege), stranger.transaction():
                    stranger.execute(statement.encode())
    finally:
        conn.execute("drop role stranger")
