"""What happened left exactly one event; what did not happen left none."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.schema.migrate import migrate
from support.server import Conn

WRITERS, TRANSACTIONS, ROWS = 4, 60, 30


@pytest.fixture
def account(conn: Conn) -> Conn:
    conn.execute("create table account (id int primary key, balance int check (balance >= 0))")
    conn.execute("select pgaudit_wf.attach('account')")
    return conn


def actions(conn: Conn) -> list[Any]:
    return conn.execute(
        "select action, resource_id from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' order by id"
    ).fetchall()


def test_a_failed_statement_leaves_no_trace(account: Conn) -> None:
    account.execute("insert into account values (1, 5)")
    for statement in (
        "insert into account values (2, 5), (3, -1)",
        "update account set balance = balance - 10",
        "insert into account select n, 1 / (3 - n) from generate_series(2, 3) as n",
        "do $$ begin insert into account values (2, 5); raise exception 'no'; end $$",
    ):
        with pytest.raises(psycopg.Error):
            account.execute(statement)
    assert actions(account) == [("account.created", "1")]


def test_a_rolled_back_transaction_leaves_no_trace(account: Conn) -> None:
    with account.transaction(force_rollback=True):
        account.execute("insert into account values (1, 5)")
        account.execute("select pgaudit_wf.record_event('report.exported')")
        account.execute("truncate account")
        assert len(actions(account)) == 3
    assert actions(account) == []


def test_a_savepoint_rolled_back_leaves_no_trace_and_the_rest_stays(account: Conn) -> None:
    with account.transaction():
        account.execute("insert into account values (1, 5)")
        with account.transaction(force_rollback=True):
            account.execute("update account set balance = 6")
            account.execute("update account set id = 9")
            with account.transaction():
                account.execute("delete from account")
        account.execute("update account set balance = 7")
        account.execute(
            "do $$ begin update account set balance = 8; raise 'no'; "
            "exception when others then null; end $$"
        )
    assert actions(account) == [("account.created", "1"), ("account.updated", "1")]
    assert account.execute("select count(*) from pgaudit_wf.key_change").fetchone() == (0,)


def test_a_connection_lost_before_commit_leaves_no_trace(account: Conn, dsn: str) -> None:
    with psycopg.connect(dsn) as own:
        own.execute("insert into account values (1, 5)")
        account.execute("select pg_terminate_backend(%s, 10000)", [own.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            own.commit()
    assert actions(account) == []


def test_prepared_transactions_leave_their_events_when_they_commit(account: Conn) -> None:
    for name, end in (("kept", "commit"), ("dropped", "rollback")):
        with account.transaction():
            account.execute("insert into account select coalesce(max(id), 0) + 1, 0 from account")
            account.execute(f"prepare transaction '{name}_{account.info.dbname}'".encode())
        assert actions(account) == ([] if name == "kept" else [("account.created", "1")])
        account.execute(f"{end} prepared '{name}_{account.info.dbname}'".encode())
    assert actions(account) == [("account.created", "1")]


def write_at_random(dsn: str, number: int, commit: Callable[[Conn, int], None]) -> int:
    """Change rows in transactions, some of which fail; return how many changes were committed."""
    chance = random.Random(number)
    committed = 0
    with psycopg.connect(dsn) as own:
        for _ in range(TRANSACTIONS):
            done = 0
            # Opens the transaction, so that each transaction() in it is a savepoint.
            own.execute("select")
            try:
                for _ in range(chance.randint(1, 4)):
                    done += change_at_random(own, chance)
                if chance.random() < 0.3:
                    own.rollback()
                else:
                    commit(own, done)
                    committed += done
            except psycopg.errors.DeadlockDetected:
                own.rollback()
    return committed


def change_at_random(conn: Conn, chance: random.Random) -> int:
    """Do one statement, perhaps undone by a savepoint; return how many rows it changed."""
    first = chance.randint(1, ROWS)
    last = min(first + chance.randint(0, 3), ROWS)
    changes = [
        "insert into account select n, 0 from generate_series(%s::int, %s) as n "
        "on conflict (id) do nothing returning id",
        "update account set balance = balance + 1 where id between %s and %s returning id",
        "delete from account where id between %s and %s returning id",
        "update account set balance = balance - 2 where id between %s and %s returning id",
    ]
    undone = chance.random() < 0.2
    try:
        with conn.transaction(force_rollback=undone):
            changed = conn.execute(
                b"with changed as (%b) select count(*) from changed"
                % chance.choice(changes).encode(),
                [first, last],
            ).fetchone()
    except psycopg.errors.CheckViolation:
        return 0
    assert changed is not None
    return 0 if undone else int(changed[0])


def assert_reconciled(conn: Conn, changes: int) -> None:
    """Every committed change has its event, and the events lead to what the table holds."""
    assert conn.execute(
        "select count(*), count(distinct id) from pgaudit_wf.security_audit_log "
        "where resource_type = 'account'"
    ).fetchone() == (changes, changes)
    # A row's events follow each other without a gap: what one leaves is what the next one finds.
    assert conn.execute(
        """
        with event as (
            select
                id, resource_id,
                case when action = 'account.created' then (diff #>> '{0,value,balance}')::int
                    when action = 'account.updated' then (diff #>> '{0,value}')::int end as after,
                case when action = 'account.deleted' then (diff #>> '{0,old,balance}')::int
                    when action = 'account.updated' then (diff #>> '{0,old}')::int end as before
            from pgaudit_wf.security_audit_log where resource_type = 'account'
        ), chained as (
            select *, lag(after) over story as left_behind, lead(id) over story is null as is_last
            from event window story as (partition by resource_id order by id)
        )
        select
            (select count(*) from chained where before is distinct from left_behind),
            (select count(*) from (
                select resource_id::int, after from chained where is_last and after is not null
                except select id, balance from account) as a),
            (select count(*) from (
                select id, balance from account
                except select resource_id::int, after from chained where is_last) as b)
        """
    ).fetchone() == (0, 0, 0)


def test_concurrent_writers_with_random_rollbacks(account: Conn, dsn: str) -> None:
    with ThreadPoolExecutor(WRITERS) as pool:
        committed = sum(
            pool.map(
                lambda number: write_at_random(dsn, number, lambda own, _: own.commit()),
                range(WRITERS),
            )
        )
    assert committed > WRITERS * TRANSACTIONS / 2
    assert_reconciled(account, committed)


def test_a_killed_server_keeps_exactly_what_was_committed(server: DevServer) -> None:
    with DevServer(server.binaries, {"max_connections": 30}, durable=True) as own_server:
        dsn = own_server.dsn()
        migrate(dsn)
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(
                "create table account (id int primary key, balance int check (balance >= 0))"
            )
            conn.execute("create table ledger (writer int, turn int, changes int)")
            conn.execute("select pgaudit_wf.attach('account')")
        enough = threading.Semaphore(0)
        acknowledged: dict[int, int] = {}

        def write(number: int) -> None:
            acknowledged[number] = 0

            def commit(own: Conn, done: int) -> None:
                turn = acknowledged[number] + 1
                own.execute("insert into ledger values (%s, %s, %s)", [number, turn, done])
                own.commit()
                acknowledged[number] = turn
                enough.release()

            def write_forever() -> None:
                while True:
                    write_at_random(dsn, number + 100 * acknowledged[number], commit)

            with pytest.raises(psycopg.OperationalError):
                write_forever()

        threads = [threading.Thread(target=write, args=[number]) for number in range(WRITERS)]
        for thread in threads:
            thread.start()
        for _ in range(WRITERS * 20):
            assert enough.acquire(timeout=120)
        own_server.kill()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        own_server.restart()
        with psycopg.connect(dsn, autocommit=True) as conn:
            # A commit that was never acknowledged may have made it; one that was must have.
            for number, turn in acknowledged.items():
                [(last,)] = conn.execute(
                    "select coalesce(max(turn), 0) from ledger where writer = %s", [number]
                ).fetchall()
                assert last in (turn, turn + 1)
            [(changes,)] = conn.execute("select sum(changes) from ledger").fetchall()
            assert changes > 0
            assert_reconciled(conn, changes)
            conn.execute("update account set balance = balance + 1")
            assert (
                conn.execute("select from pgaudit_wf.doctor() where severity = 'error'").fetchall()
                == []
            )
