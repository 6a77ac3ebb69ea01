# ruff: noqa: PT012 - a block under test has to have done something before it fails
"""request_context and record_event on real connections, sync and async alike."""

import asyncio
import tempfile
from collections.abc import Coroutine, Iterator
from typing import Any

import psycopg
import psycopg_pool
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from pgaudit_wf import RequestContext, bind, record_event, request_context
from pgaudit_wf.context.block import active_context
from pgaudit_wf.context.psycopg_transaction import CarriesContext
from pgaudit_wf.context.values import FIELDS
from pgaudit_wf.errors import (
    ConnectionUnusableError,
    ContextError,
    FailedTransactionError,
    InvalidContextError,
    TransactionEndedError,
    TransactionInProgressError,
)

SETTINGS = "select " + ", ".join(
    f"nullif(current_setting('app.{name}', true), '') as {name}" for name in FIELDS
)
FULL = RequestContext(
    actor_id="u_1",
    actor_label="Ada O'Hara",
    org_id="o_1",
    org_label="Ärger & Söhne",
    auth_method="api_key",
    api_key_id="k_1",
    ip="2001:db8::9",
    country="AT",
    user_agent="curl/8 100% \\o/",
    correlation_id="c-1",
    reason="because",
)


def seen(conn: psycopg.Connection[Any]) -> dict[str, str]:
    """The context as the database sees it, of what is set."""
    row = conn.cursor(row_factory=dict_row).execute(SETTINGS).fetchone()
    assert row is not None
    return {name: value for name, value in row.items() if value is not None}


async def seen_async(conn: psycopg.AsyncConnection[Any]) -> dict[str, str]:
    cursor = conn.cursor(row_factory=dict_row)
    await cursor.execute(SETTINGS)
    row = await cursor.fetchone()
    assert row is not None
    return {name: value for name, value in row.items() if value is not None}


def count(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("select count(*) from t").fetchone()
    assert row is not None
    if not conn.autocommit:
        conn.rollback()
    return int(row[0])


def idle(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    return conn.info.transaction_status == TransactionStatus.IDLE


@pytest.fixture(params=[True, False], ids=["autocommit", "transactional"])
def db(dsn: str, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    """A connection in either mode, to a database with an empty table `t`."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("create table t (id int primary key deferrable initially deferred)")
        conn.autocommit = request.param
        yield conn


@pytest.mark.parametrize("scs", ["on", "off"])
def test_every_field_arrives_as_it_is(db: psycopg.Connection[Any], scs: str) -> None:
    db.execute(f"set standard_conforming_strings = {scs}")
    db.commit()
    with request_context(db, FULL) as conn:
        assert conn is db
        assert seen(conn) == FULL.as_dict()
    assert seen(db) == {}


@pytest.mark.parametrize("scs", ["on", "off"])
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_any_text_arrives_as_it_is(conn: psycopg.Connection[Any], scs: str, text: str) -> None:
    conn.execute(f"set standard_conforming_strings = {scs}")
    for reason in (text, f"{text}\\", f"\\'{text}'; rollback; --"):
        with request_context(conn, reason=reason):
            assert seen(conn) == {"reason": reason}


def test_commits_at_the_end_and_rolls_back_on_an_exception(db: psycopg.Connection[Any]) -> None:
    with request_context(db, actor_id="u_1"):
        db.execute("insert into t values (1)")
    assert idle(db)
    with pytest.raises(ZeroDivisionError), request_context(db, actor_id="u_1"):
        db.execute("insert into t values (2)")
        raise ZeroDivisionError
    assert idle(db)
    with request_context(db, actor_id="u_1"):
        db.execute("insert into t values (3)")
        raise psycopg.Rollback
    assert idle(db)
    assert count(db) == 1
    assert seen(db) == {}


def test_settings_left_by_the_session_are_not_inherited(db: psycopg.Connection[Any]) -> None:
    db.execute("set app.actor_id = 'u_old'")
    db.execute("set app.reason = 'old'")
    db.commit()
    with request_context(db, org_id="o_1"):
        assert seen(db) == {"org_id": "o_1"}


def test_beginning_and_ending_take_one_message_each(db: psycopg.Connection[Any]) -> None:
    with tempfile.TemporaryFile("w+") as trace:
        db.pgconn.trace(trace.fileno())
        with request_context(db, FULL):
            db.execute("insert into t values (1)")
            with request_context(db, reason="inner"):
                db.execute("insert into t values (2)")
        db.pgconn.untrace()
        trace.seek(0)
        sent = [line.split("\t") for line in trace.read().splitlines()]
    queries = [line[4].strip(' "').split(" ")[0] for line in sent if line[1:2] == ["F"]]
    assert queries == ["BEGIN;", "insert", "SAVEPOINT", "insert", "RELEASE", "COMMIT"]


def test_the_connections_transaction_characteristics_hold(db: psycopg.Connection[Any]) -> None:
    db.isolation_level = IsolationLevel.SERIALIZABLE
    db.read_only = True
    with request_context(db, actor_id="u_1"):
        row = db.execute(
            "select current_setting('transaction_isolation'), "
            "current_setting('transaction_read_only')"
        ).fetchone()
        assert row == ("serializable", "on")
        assert seen(db) == {"actor_id": "u_1"}


def test_an_inner_block_lies_over_the_outer_one_and_ends(db: psycopg.Connection[Any]) -> None:
    with request_context(db, actor_id="u_1", reason="outer"):
        with request_context(db, RequestContext(org_id="o_1"), reason="inner"):
            assert seen(db) == {"actor_id": "u_1", "org_id": "o_1", "reason": "inner"}
            with request_context(db, actor_id=None):
                assert seen(db) == {"org_id": "o_1", "reason": "inner"}
            assert seen(db) == {"actor_id": "u_1", "org_id": "o_1", "reason": "inner"}
            db.execute("insert into t values (1)")
        assert seen(db) == {"actor_id": "u_1", "reason": "outer"}
        with pytest.raises(psycopg.errors.DivisionByZero), request_context(db, reason="inner"):
            db.execute("insert into t values (2)")
            db.execute("select 1/0")
        assert seen(db) == {"actor_id": "u_1", "reason": "outer"}
    assert active_context(db) is None
    assert count(db) == 1


def test_savepoints_of_psycopg_fit_inside(db: psycopg.Connection[Any]) -> None:
    with request_context(db, actor_id="u_1"):
        with pytest.raises(psycopg.errors.DivisionByZero), db.transaction():
            db.execute("insert into t values (1)")
            db.execute("select 1/0")
        with db.transaction(), request_context(db, reason="inner"):
            assert seen(db) == {"actor_id": "u_1", "reason": "inner"}
            db.execute("insert into t values (2)")
        assert seen(db) == {"actor_id": "u_1"}
    assert count(db) == 1


def test_a_context_joins_a_transaction_and_restores_what_was_set(
    db: psycopg.Connection[Any],
) -> None:
    with db.transaction():
        db.execute("set local app.actor_id = 'by hand'")
        db.execute("set local app.reason = 'by hand'")
        with request_context(db, actor_id="u_1"):
            # Set by hand is as foreign as what the session has left behind.
            assert seen(db) == {"actor_id": "u_1"}
            db.execute("insert into t values (1)")
        assert seen(db) == {"actor_id": "by hand", "reason": "by hand"}
        with pytest.raises(ZeroDivisionError), request_context(db, actor_id="u_1"):
            raise ZeroDivisionError
        assert seen(db) == {"actor_id": "by hand", "reason": "by hand"}
    assert count(db) == 1


def test_a_context_leaves_alone_what_it_could_not_restore(db: psycopg.Connection[Any]) -> None:
    with db.transaction():
        db.execute("set local app.ip = 'nowhere'")
        with (
            pytest.raises(InvalidContextError, match="could not be restored"),
            request_context(db, actor_id="u_1"),
        ):
            pass
        assert seen(db) == {"ip": "nowhere"}


def test_the_bound_context_is_the_base(db: psycopg.Connection[Any]) -> None:
    with bind(actor_id="u_1", ip="::1"):
        with request_context(db):
            assert seen(db) == {"actor_id": "u_1", "ip": "::1"}
        with request_context(db, RequestContext(ip="::2"), actor_id=None, reason="r"):
            assert seen(db) == {"ip": "::2", "reason": "r"}
            with request_context(db):
                assert seen(db) == {"ip": "::2", "reason": "r"}
            with bind(actor_id="u_2"), request_context(db):
                assert seen(db) == {"actor_id": "u_2", "ip": "::2", "reason": "r"}


def test_nothing_is_sent_when_a_value_is_wrong(db: psycopg.Connection[Any]) -> None:
    with pytest.raises(InvalidContextError):
        request_context(db, ip="nowhere")
    with pytest.raises(TypeError, match="unknown context field: actor; valid fields are"):
        request_context(db, actor="u_1")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="must be a RequestContext, not dict"):
        request_context(db, {"actor_id": "u_1"})  # type: ignore[call-overload]
    assert idle(db)


def test_text_beyond_the_client_encoding_is_refused_before_anything_is_sent(
    db: psycopg.Connection[Any],
) -> None:
    db.execute("set client_encoding = latin1")
    db.commit()
    with request_context(db, actor_label="Ärger"):
        assert seen(db) == {"actor_label": "Ärger"}
    with (
        pytest.raises(InvalidContextError, match=r"client_encoding \(iso8859-1\)"),
        request_context(db, actor_label="€"),
    ):
        pass
    assert idle(db)
    assert active_context(db) is None


def test_ending_the_transaction_by_method_is_refused(db: psycopg.Connection[Any]) -> None:
    with request_context(db, actor_id="u_1"):
        db.execute("insert into t values (1)")
        with pytest.raises(psycopg.ProgrammingError, match="Explicit commit"):
            db.commit()
        with pytest.raises(psycopg.ProgrammingError, match="Explicit rollback"):
            db.rollback()
        with pytest.raises(psycopg.ProgrammingError, match="can't change 'autocommit'"):
            db.autocommit = not db.autocommit
        assert seen(db) == {"actor_id": "u_1"}
    assert count(db) == 1


def test_ending_the_transaction_by_statement_is_noticed(db: psycopg.Connection[Any]) -> None:
    with (
        pytest.raises(TransactionEndedError, match="commit or rollback statement"),
        request_context(db, actor_id="u_1"),
    ):
        db.execute("commit")
    assert idle(db)
    with request_context(db, actor_id="u_2"):
        assert seen(db) == {"actor_id": "u_2"}


def test_a_swallowed_error_is_not_passed_off_as_a_commit(db: psycopg.Connection[Any]) -> None:
    with (
        pytest.raises(FailedTransactionError, match="nothing of the block is kept"),
        request_context(db, actor_id="u_1"),
    ):
        db.execute("insert into t values (1)")
        with pytest.raises(psycopg.errors.DivisionByZero):
            db.execute("select 1/0")
    assert idle(db)
    assert count(db) == 0


def test_a_swallowed_error_in_an_inner_block_costs_that_block_only(
    db: psycopg.Connection[Any],
) -> None:
    with request_context(db, actor_id="u_1"):
        db.execute("insert into t values (1)")
        with pytest.raises(FailedTransactionError), request_context(db, reason="inner"):
            db.execute("insert into t values (2)")
            with pytest.raises(psycopg.errors.DivisionByZero):
                db.execute("select 1/0")
        assert seen(db) == {"actor_id": "u_1"}
    assert count(db) == 1


def test_a_failing_commit_surfaces_and_leaves_the_connection_usable(
    db: psycopg.Connection[Any],
) -> None:
    with pytest.raises(psycopg.errors.UniqueViolation), request_context(db, actor_id="u_1"):
        db.execute("insert into t values (1), (1)")
    assert idle(db)
    assert active_context(db) is None
    assert count(db) == 0


def test_a_transaction_begun_by_hand_is_not_joined(db: psycopg.Connection[Any]) -> None:
    db.execute("begin" if db.autocommit else "select 1")
    with (
        pytest.raises(TransactionInProgressError, match=r"call commit\(\) or rollback\(\) first"),
        request_context(db, actor_id="u_1"),
    ):
        pass
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.execute("select 1/0")
    with pytest.raises(FailedTransactionError, match="roll it back"), request_context(db):
        pass
    db.rollback()
    with request_context(db, actor_id="u_1"):
        assert seen(db) == {"actor_id": "u_1"}


def test_a_closed_connection_is_refused(db: psycopg.Connection[Any]) -> None:
    db.close()
    with pytest.raises(ConnectionUnusableError, match="is closed"), request_context(db):
        pass


def test_closing_the_connection_inside_is_not_passed_off_as_a_commit(
    db: psycopg.Connection[Any],
) -> None:
    with pytest.raises(TransactionEndedError, match="was closed inside"), request_context(db):
        db.close()


def test_a_pipeline_around_is_refused_and_one_inside_works(db: psycopg.Connection[Any]) -> None:
    with (
        db.pipeline(),
        pytest.raises(ConnectionUnusableError, match="pipeline"),
        request_context(db),
    ):
        pass
    with request_context(db, actor_id="u_1"), db.pipeline():
        db.execute("insert into t values (1)")
        db.execute("insert into t values (2)")
        assert seen(db) == {"actor_id": "u_1"}
    assert idle(db)
    assert count(db) == 2


def test_a_block_is_entered_once(db: psycopg.Connection[Any]) -> None:
    block = request_context(db, actor_id="u_1")
    with block:
        pass
    with pytest.raises(TypeError, match="used only once"), block:
        pass
    assert idle(db)


def terminate(dsn: str, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("select pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])


def test_a_lost_connection_does_not_hide_the_exception(
    db: psycopg.Connection[Any], dsn: str
) -> None:
    with pytest.raises(ZeroDivisionError), request_context(db, actor_id="u_1"):
        terminate(dsn, db)
        raise ZeroDivisionError
    assert active_context(db) is None


def test_a_connection_lost_in_a_statement_or_at_commit_is_reported_as_such(dsn: str) -> None:
    conn = psycopg.connect(dsn)
    with (
        pytest.raises(psycopg.OperationalError, match="administrator"),
        request_context(conn, actor_id="u_1"),
    ):
        terminate(dsn, conn)
        conn.execute("select 1")
    conn = psycopg.connect(dsn)
    with pytest.raises(psycopg.OperationalError), request_context(conn, actor_id="u_1"):
        terminate(dsn, conn)
    conn = psycopg.connect(dsn)
    terminate(dsn, conn)
    with pytest.raises(psycopg.OperationalError), request_context(conn, actor_id="u_1"):
        pass
    assert conn.closed


def test_a_psycopg_that_begins_in_another_way_is_refused(
    db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_enter_gen", "_get_enter_commands"):
        monkeypatch.delattr(CarriesContext, name)
    with pytest.raises(ContextError, match="is not supported"), request_context(db):
        pass
    assert idle(db)


def test_statements_prepared_by_psycopg_see_the_context_of_their_transaction(
    db: psycopg.Connection[Any],
) -> None:
    query = "select current_setting('app.actor_id')"
    for number in range(10):
        with request_context(db, actor_id=f"u_{number}"):
            assert db.execute(query, prepare=True).fetchone() == (f"u_{number}",)


def test_the_next_user_of_a_pooled_connection_sees_nothing(dsn: str) -> None:
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, open=True) as pool:
        with pool.connection() as conn, request_context(conn, FULL):
            pid = conn.info.backend_pid
            assert seen(conn) == FULL.as_dict()
        with pool.connection() as conn:
            assert conn.info.backend_pid == pid
            assert seen(conn) == {}
        with (
            pytest.raises(ZeroDivisionError),
            pool.connection() as conn,
            request_context(conn, FULL),
        ):
            raise ZeroDivisionError
        with pool.connection() as conn:
            assert conn.info.backend_pid == pid
            assert seen(conn) == {}


def test_a_change_is_recorded_with_its_context(conn: psycopg.Connection[Any]) -> None:
    conn.execute("create table invoice (id int primary key, org_id text, total int)")
    conn.execute("select pgaudit_wf.attach('invoice')")
    with request_context(conn, FULL):
        conn.execute("insert into invoice values (1, 'o_1', 10)")
        with request_context(conn, actor_id="u_2", reason=None):
            conn.execute("update invoice set total = 11")
        conn.execute("update invoice set total = 12")
    conn.execute("update invoice set total = 13")
    rows = conn.execute(
        "select actor_id, host(ip), user_agent, correlation_id, metadata ->> 'reason' "
        "from pgaudit_wf.security_audit_log where action ~ '^invoice[.]' order by id"
    ).fetchall()
    rest = ("2001:db8::9", FULL.user_agent, "c-1")
    assert rows == [
        ("u_1", *rest, "because"),
        ("u_2", *rest, None),
        ("u_1", *rest, "because"),
        (None, None, None, None, None),
    ]


EVENT = (
    "select actor_id, action, resource_type, resource_id, outcome, diff, metadata ->> 'format' "
    "from pgaudit_wf.security_audit_log where id = %s"
)


def test_an_event_that_no_table_shows(conn: psycopg.Connection[Any]) -> None:
    with request_context(conn, actor_id="u_1"):
        plain = record_event(conn, "report.exported")
        full = record_event(
            conn,
            "plan.change_requested",
            resource_type="plan",
            resource_id="p_1",
            before={"plan": "free"},
            after={"plan": "pro"},
            metadata={"format": "csv"},
            outcome="denied",
        )
    assert conn.execute(EVENT, [plain]).fetchone() == (
        ("u_1", "report.exported", None, None, "succeeded", None, None)
    )
    row = conn.execute(EVENT, [full]).fetchone()
    assert row is not None
    assert row[:5] == ("u_1", "plan.change_requested", "plan", "p_1", "denied")
    assert row[5] == [{"op": "replace", "path": "/plan", "value": "pro", "old": "free"}]
    assert row[6] == "csv"


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


@pytest.mark.parametrize("autocommit", [True, False])
def test_async_blocks_do_the_same(dsn: str, autocommit: bool) -> None:
    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=autocommit) as conn:
            async with request_context(conn, FULL) as same:
                assert same is conn
                await conn.execute("create table t (id int)")
                async with request_context(conn, actor_id="u_2"):
                    assert await seen_async(conn) == FULL.as_dict() | {"actor_id": "u_2"}
                assert await seen_async(conn) == FULL.as_dict()
            assert idle(conn)
            with pytest.raises(ZeroDivisionError):
                async with request_context(conn, actor_id="u_1"):
                    await conn.execute("insert into t values (1)")
                    raise ZeroDivisionError
            with pytest.raises(FailedTransactionError):
                async with request_context(conn, actor_id="u_1"):
                    with pytest.raises(psycopg.errors.DivisionByZero):
                        await conn.execute("select 1/0")
            with pytest.raises(psycopg.ProgrammingError, match="Explicit commit"):
                async with request_context(conn, actor_id="u_1"):
                    await conn.commit()
            async with conn.transaction():
                await conn.execute("set local app.reason = 'by hand'")
                async with request_context(conn, actor_id="u_1"):
                    assert await seen_async(conn) == {"actor_id": "u_1"}
                assert await seen_async(conn) == {"reason": "by hand"}
            cursor = await conn.execute("select count(*) from t")
            assert await cursor.fetchone() == (0,)
            if not autocommit:
                with pytest.raises(TransactionInProgressError):
                    async with request_context(conn, actor_id="u_1"):
                        pass
                await conn.rollback()
            async with conn.pipeline():
                with pytest.raises(ConnectionUnusableError):
                    async with request_context(conn):
                        pass
            with pytest.raises(ZeroDivisionError):
                async with request_context(conn, actor_id="u_1"):
                    terminate(dsn, conn)
                    raise ZeroDivisionError
            assert conn.closed
            with pytest.raises(ConnectionUnusableError):
                async with request_context(conn):
                    pass

    run(main())


def test_async_a_cancelled_block_leaves_nothing(dsn: str) -> None:
    async def sleeping(pid: int) -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as admin:
            for _ in range(1000):
                cursor = await admin.execute(
                    "select wait_event from pg_stat_activity where pid = %s", [pid]
                )
                if await cursor.fetchone() == ("PgSleep",):
                    return
                await asyncio.sleep(0.02)
        pytest.fail("the statement to be cancelled never began")

    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute("create table t (id int)")

            async def work() -> None:
                async with request_context(conn, actor_id="u_1"):
                    await conn.execute("insert into t values (1)")
                    await conn.execute("select pg_sleep(60)")

            task = asyncio.create_task(work())
            await sleeping(conn.info.backend_pid)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert idle(conn)
            assert active_context(conn) is None
            cursor = await conn.execute("select count(*) from t")
            assert await cursor.fetchone() == (0,)
            assert await seen_async(conn) == {}

    run(main())


def test_async_tasks_with_a_bound_context_share_a_pool_and_nothing_else(dsn: str) -> None:
    async def worker(pool: psycopg_pool.AsyncConnectionPool[Any], number: int) -> None:
        with bind(actor_id=f"u_{number}"):
            for _ in range(10):
                async with pool.connection() as conn:
                    assert await seen_async(conn) == {}
                    await conn.rollback()
                    async with request_context(conn, reason="test"):
                        await asyncio.sleep(0)
                        assert await seen_async(conn) == {
                            "actor_id": f"u_{number}",
                            "reason": "test",
                        }

    async def main() -> None:
        async with psycopg_pool.AsyncConnectionPool(
            dsn, min_size=1, max_size=1, open=False
        ) as pool:
            await asyncio.gather(*(worker(pool, number) for number in range(5)))

    run(main())


def test_async_event(dsn: str) -> None:
    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            async with request_context(conn, actor_id="u_1"):
                event = await record_event(conn, "report.exported", resource_type="report")
            cursor = await conn.execute(EVENT, [event])
            assert await cursor.fetchone() == (
                ("u_1", "report.exported", "report", None, "succeeded", None, None)
            )

    run(main())
