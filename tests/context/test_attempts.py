# ruff: noqa: PT012 - a block under test has to have done something before it fails
"""Failed and denied attempts: recorded once, without values, whatever becomes of the connection."""

import asyncio
import contextlib
import json
import multiprocessing
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from pgaudit_wf import (
    bind,
    configure_attempts,
    record_denied,
    record_failed,
    request_context,
)
from pgaudit_wf.cli import app
from pgaudit_wf.context.attempt import Attempt
from pgaudit_wf.context.spool import append_lines, read_spool, spooled
from pgaudit_wf.context.values import RequestContext
from pgaudit_wf.errors import FailedTransactionError
from support.server import Conn

Event = dict[str, Any]

WHO = RequestContext(
    actor_id="u_1", org_id="o_1", correlation_id="c-1", ip="203.0.113.9", user_agent="it's \\"
)
NOWHERE = "host=/nonexistent dbname=none"


@pytest.fixture(autouse=True)
def spool(tmp_path: Path) -> Iterator[Path]:
    """A spool file of the test's own, in a directory that is not there yet."""
    path = tmp_path / "state" / "attempts.jsonl"
    configure_attempts(spool=path)
    yield path
    configure_attempts()


@pytest.fixture(params=[True, False], ids=["autocommit", "transactional"])
def db(dsn: str, request: pytest.FixtureRequest) -> Iterator[Conn]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "create table t (id int constraint t_id primary key, n int constraint n_positive "
            "check (n > 0), d int constraint d_unique unique deferrable initially deferred)"
        )
        conn.autocommit = request.param
        yield conn


def events(dsn: str) -> list[Event]:
    with psycopg.connect(dsn, row_factory=dict_row) as conn:
        return conn.execute(
            "select action, outcome, actor_id, org_id, correlation_id, host(ip) as ip, user_agent, "
            "resource_type, resource_id, metadata, tx_id, captured "
            "from pgaudit_wf.security_audit_log where outcome <> 'succeeded' order by id"
        ).fetchall()


def the_event(dsn: str) -> Event:
    found = events(dsn)
    assert len(found) == 1
    return found[0]


def kill(dsn: str, conn: Conn | psycopg.AsyncConnection[Any]) -> None:
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s, 10000)", [conn.info.backend_pid])


def test_a_failure_is_recorded_with_its_context_and_no_values(db: Conn, dsn: str) -> None:
    with pytest.raises(errors.CheckViolation) as caught, request_context(db, WHO):
        db.execute("insert into t values (1, 1)")
        db.execute("insert into t values (4711, -4711)")
    assert caught.value.__context__ is None
    assert db.info.transaction_status == TransactionStatus.IDLE
    event = the_event(dsn)
    assert event["metadata"] == {
        "exception": "psycopg.errors.CheckViolation",
        "stage": "block",
        "sqlstate": "23514",
        "schema": "public",
        "table": "t",
        "constraint": "n_positive",
    }
    assert (event["action"], event["outcome"]) == ("request.failed", "failed")
    assert [event[name] for name in ("actor_id", "org_id", "correlation_id", "ip")] == [
        "u_1",
        "o_1",
        "c-1",
        "203.0.113.9",
    ]
    assert event["user_agent"] == WHO.user_agent
    assert event["captured"] is False
    assert "4711" not in json.dumps(event["metadata"])
    assert db.execute("select count(*) from t").fetchone() == (0,)


def test_other_exceptions_and_a_custom_action_are_recorded(db: Conn, dsn: str) -> None:
    with pytest.raises(ZeroDivisionError), request_context(db, WHO, action="payment.failed"):
        raise ZeroDivisionError("secret")
    event = the_event(dsn)
    assert event["action"] == "payment.failed"
    assert event["metadata"] == {"exception": "ZeroDivisionError", "stage": "block"}


@pytest.mark.parametrize("raised", [psycopg.Rollback, KeyboardInterrupt, SystemExit, None], ids=str)
def test_exceptions_that_are_no_failure_are_not_recorded(
    db: Conn, dsn: str, raised: type[BaseException] | None
) -> None:
    with contextlib.suppress(KeyboardInterrupt, SystemExit), request_context(db, WHO):
        if raised:
            raise raised
    with (
        pytest.raises(ValueError, match="x"),
        request_context(db, WHO, record_failure=False),
        request_context(db),
    ):
        raise ValueError("x")
    assert events(dsn) == []


def test_a_failure_at_commit_is_one(db: Conn, dsn: str) -> None:
    with pytest.raises(errors.UniqueViolation), request_context(db, WHO):
        db.execute("insert into t (id, d) values (1, 1), (2, 1)")
    metadata = the_event(dsn)["metadata"]
    assert (metadata["stage"], metadata["constraint"]) == ("commit", "d_unique")


def test_a_swallowed_error_is_one(db: Conn, dsn: str) -> None:
    with (
        pytest.raises(FailedTransactionError),
        request_context(db, WHO),
        contextlib.suppress(errors.UndefinedTable),
    ):
        db.execute("select from nowhere")
    assert the_event(dsn)["metadata"]["exception"].endswith("FailedTransactionError")


def test_the_database_error_behind_an_exception_is_named(db: Conn, dsn: str) -> None:
    with pytest.raises(RuntimeError), request_context(db, WHO):
        try:
            db.execute("select from nowhere")
        except psycopg.Error as error:
            raise RuntimeError("sorry") from error
    with pytest.raises(LookupError), request_context(db, WHO):
        try:
            db.execute("select 1/0")
        except psycopg.Error:
            raise LookupError from None
    first, second = (event["metadata"] for event in events(dsn))
    assert (first["exception"], first["sqlstate"]) == ("RuntimeError", "42P01")
    assert "sqlstate" not in second


def test_nested_blocks_record_a_failure_once(db: Conn, dsn: str) -> None:
    with (
        pytest.raises(RuntimeError),
        request_context(db, WHO, action="outer.failed"),
    ):
        try:
            with request_context(db, actor_id="u_2", action="inner.failed"), request_context(db):
                db.execute("insert into t values (1, -1)")
        except psycopg.Error as error:
            raise RuntimeError from error
    event = the_event(dsn)
    assert (event["action"], event["actor_id"]) == ("inner.failed", "u_2")


def test_an_inner_failure_that_the_outer_block_survives_is_recorded(db: Conn, dsn: str) -> None:
    with request_context(db, WHO):
        for number in (1, 2):
            with contextlib.suppress(errors.CheckViolation), request_context(db):
                db.execute("insert into t values (%s, -1)", [number])
        db.execute("insert into t values (3, 3)")
        assert events(dsn) == []
    assert [event["metadata"]["constraint"] for event in events(dsn)] == ["n_positive"] * 2
    assert db.execute("select id from t").fetchall() == [(3,)]


def test_a_denial_survives_the_rollback(db: Conn, dsn: str) -> None:
    with (
        pytest.raises(PermissionError),
        request_context(db, WHO, record_failure=False),
    ):
        db.execute("insert into t values (1, 1)")
        record_denied(
            db, "report.export_denied", resource_type="report", resource_id="r_1",
            metadata={"nul\0": ["\ud800", float("inf"), object, {"a": 1.5}]},
        )  # fmt: skip
        raise PermissionError
    event = the_event(dsn)
    assert (event["action"], event["outcome"]) == ("report.export_denied", "denied")
    assert (event["resource_type"], event["resource_id"]) == ("report", "r_1")
    assert (event["actor_id"], event["correlation_id"]) == ("u_1", "c-1")
    assert event["metadata"] == {"nul\ufffd": ["?", "inf", "<class 'object'>", {"a": 1.5}]}


def test_a_denial_in_a_block_that_commits_and_one_outside_of_any(db: Conn, dsn: str) -> None:
    with request_context(db, WHO):
        record_denied(db, "a.denied")
        db.execute("insert into t values (1, 1)")
    with bind(actor_id="u_9"):
        record_denied(db, "b.denied")
    assert [(e["action"], e["actor_id"]) for e in events(dsn)] == [
        ("a.denied", "u_1"),
        ("b.denied", "u_9"),
    ]


def test_a_denial_at_once_is_there_while_the_block_runs(db: Conn, dsn: str) -> None:
    with request_context(db, WHO):
        record_denied(db, "a.denied", at_once=True)
        assert the_event(dsn)["actor_id"] == "u_1"
        db.execute("insert into t values (1, 1)")


def test_somebody_elses_transaction_is_left_alone(db: Conn, dsn: str) -> None:
    with pytest.raises(errors.CheckViolation), db.transaction():
        db.execute("insert into t values (1, 1)")
        try:
            with request_context(db, WHO):
                db.execute("insert into t values (2, -1)")
        finally:
            assert the_event(dsn)["actor_id"] == "u_1"
            assert db.execute("select id from t").fetchall() == [(1,)]


def test_failures_outside_of_blocks_can_be_recorded(db: Conn, dsn: str) -> None:
    with bind(WHO):
        try:
            with db.transaction():
                db.execute("insert into t values (2, -1)")
        except psycopg.Error as error:
            record_failed(db, error, action="import.failed")
    assert the_event(dsn)["metadata"]["constraint"] == "n_positive"


@pytest.mark.parametrize("action", ["", "x" * 256, "a\0b"])
def test_an_action_that_cannot_be_recorded_is_refused_at_once(db: Conn, action: str) -> None:
    with pytest.raises(ValueError, match="action"):
        record_denied(db, action)
    with pytest.raises(ValueError, match="action"):
        request_context(db, action=action)


def test_a_broken_connection_is_recorded_over_a_second_one(db: Conn, dsn: str) -> None:
    with pytest.raises(psycopg.OperationalError), request_context(db, WHO):
        kill(dsn, db)
        db.execute("select 1")
    event = the_event(dsn)
    assert (event["actor_id"], event["metadata"]["sqlstate"]) == ("u_1", "57P01")


def test_a_connection_lost_between_requests_is_recorded_too(db: Conn, dsn: str) -> None:
    kill(dsn, db)
    with pytest.raises(psycopg.OperationalError), request_context(db, WHO):
        raise AssertionError
    assert the_event(dsn)["metadata"]["stage"] == "begin"


def test_the_fallback_may_be_a_pool_or_another_address(db: Conn, dsn: str, spool: Path) -> None:
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=True) as pool:
        for fallback in (pool, make_conninfo(dsn, application_name="fallback")):
            configure_attempts(fallback=fallback, spool=spool)
            with (
                pytest.raises(ZeroDivisionError),
                psycopg.connect(dsn) as own,
                request_context(own, WHO),
            ):
                own.close()
                raise ZeroDivisionError
    assert len(events(dsn)) == 2
    assert not spool.exists()


def fail_unreachably(db: Conn, spool: Path, action: str = "lost.failed") -> None:
    configure_attempts(fallback=NOWHERE, spool=spool)
    with pytest.raises(ZeroDivisionError), request_context(db, WHO, action=action):
        db.close()
        raise ZeroDivisionError


def test_without_any_connection_the_spool_file_keeps_it(
    db: Conn, dsn: str, conn: Conn, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fail_unreachably(db, spool)
    assert stat.S_IMODE(spool.stat().st_mode) == 0o600
    assert stat.S_IMODE(spool.parent.stat().st_mode) == 0o700
    (entry,) = spooled(spool)
    assert entry["action"] == "lost.failed"
    assert str(spool) in caplog.text
    assert "u_1" not in caplog.text
    assert events(dsn) == []

    assert read_spool(conn, spool).recorded == 1
    event = the_event(dsn)
    assert (event["actor_id"], event["correlation_id"]) == ("u_1", "c-1")
    assert event["metadata"]["attempted_at"] == entry["attempted_at"]
    assert list(spool.parent.iterdir()) == []
    assert read_spool(conn, spool).recorded == 0
    # What it set does not stay on the connection.
    assert conn.execute("select current_setting('app.actor_id', true)").fetchone() in [
        ("",),
        (None,),
    ]


def test_reading_again_what_was_recorded_makes_no_second_event(
    conn: Conn, dsn: str, spool: Path
) -> None:
    lines = [Attempt("a.failed", "failed", WHO).entry(late=True).encode() for _ in range(3)]
    append_lines(spool, lines)
    assert read_spool(conn, spool).recorded == 3
    append_lines(spool, [*lines, Attempt("a.failed", "failed", WHO).entry(late=True).encode()])
    again = read_spool(conn, spool)
    assert (again.recorded, again.known) == (1, 3)
    assert len(events(dsn)) == 4


def test_malformed_attempts_are_set_aside(conn: Conn, dsn: str, spool: Path) -> None:
    good = Attempt("a.failed", "failed", WHO).entry(late=True)
    bad = [
        "no json",
        "[]",
        good.replace('"failed"', '"lucky"'),
        good.replace('"id": "', '"id": "x'),
    ]
    spool.parent.mkdir()
    # As if the last writer had been cut off in the middle.
    spool.write_text("\n".join([*bad, good[:40]]))
    append_lines(spool, [good.encode()])
    done = read_spool(conn, spool)
    assert (done.recorded, done.rejected) == (1, 5)
    kept = spool.with_name(spool.name + ".rejected").read_text().splitlines()
    assert kept == [*bad, good[:40]]
    assert len(events(dsn)) == 1


def test_a_database_that_refuses_keeps_the_spool(owner_dsn: str, spool: Path) -> None:
    with psycopg.connect(owner_dsn, autocommit=True) as conn:
        append_lines(spool, [Attempt("a.failed", "failed", WHO).entry(late=True).encode()])
        conn.execute("revoke insert on pgaudit_wf.attempt from current_user")
        with pytest.raises(errors.InsufficientPrivilege):
            read_spool(conn, spool)
        assert len(spooled(spool)) == 1
        conn.execute("grant insert on pgaudit_wf.attempt to current_user")
        assert read_spool(conn, spool).recorded == 1
    with psycopg.connect(owner_dsn) as conn, pytest.raises(ValueError, match="autocommit"):
        read_spool(conn, spool)


def test_without_any_place_it_is_in_the_log_of_the_process(
    db: Conn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    fail_unreachably(db, tmp_path / "file" / "attempts.jsonl")
    line = next(r.getMessage() for r in caplog.records if "spooled" in r.getMessage())
    assert json.loads(line[line.index("{") :])["context"]["actor_id"] == "u_1"


def test_a_role_that_may_only_call_our_functions_can_record(dsn: str, conn: Conn) -> None:
    role = f"app_{conn.info.dbname}"
    conn.execute(f"create role {role} login in role pgaudit_wf_app")
    with psycopg.connect(make_conninfo(dsn, user=role)) as own:
        with pytest.raises(errors.InsufficientPrivilege), request_context(own, WHO):
            own.execute("delete from pgaudit_wf.security_audit_log")
        record_denied(own, "a.denied")
        with request_context(own, WHO):
            own.execute("select pgaudit_wf.record_denied('b.denied', 'r', '1', '{\"a\": 1}')")
    assert [(e["action"], e["outcome"]) for e in events(dsn)] == [
        ("request.failed", "failed"),
        ("a.denied", "denied"),
        ("b.denied", "denied"),
    ]
    conn.execute(f"drop role {role}")


def test_a_role_that_may_not_record_still_gets_its_own_exception(
    dsn: str, conn: Conn, spool: Path
) -> None:
    role = f"stranger_{conn.info.dbname}"
    conn.execute(f"create role {role} login")
    with psycopg.connect(make_conninfo(dsn, user=role)) as own:
        with pytest.raises(ZeroDivisionError), request_context(own, WHO):
            raise ZeroDivisionError
        assert own.info.transaction_status == TransactionStatus.IDLE
        assert own.execute("select 1").fetchone() == (1,)
    conn.execute(f"drop role {role}")
    assert read_spool(conn, spool).recorded == 1


def test_read_only_connections_record_as_well(db: Conn, dsn: str) -> None:
    db.read_only = True
    with pytest.raises(errors.ReadOnlySqlTransaction), request_context(db, WHO):
        db.execute("insert into t values (1, 1)")
    assert the_event(dsn)["metadata"]["sqlstate"] == "25006"


@pytest.mark.parametrize("scs", ["on", "off"])
def test_any_string_syntax_and_encoding_will_do(db: Conn, dsn: str, scs: str) -> None:
    db.execute(f"set standard_conforming_strings = {scs}")
    db.execute("set client_encoding = latin1")
    db.commit()
    with pytest.raises(ZeroDivisionError), request_context(db, WHO):
        record_denied(db, "a.denied", metadata={"€": "\\'; drop table t --", "\n": '"'})
        raise ZeroDivisionError
    first = events(dsn)[0]
    assert first["metadata"] == {"€": "\\'; drop table t --", "\n": '"'}
    assert first["user_agent"] == WHO.user_agent


def test_async_blocks_do_the_same(dsn: str, conn: Conn, spool: Path) -> None:
    conn.execute("create table t (id int, n int constraint n_positive check (n > 0))")

    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as own:
            with pytest.raises(errors.CheckViolation):
                async with request_context(own, WHO), request_context(own, action="x.failed"):
                    await record_denied(own, "a.denied")
                    await own.execute("insert into t values (1, -1)")
            await record_denied(own, "b.denied")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3), request_context(own, WHO, action="slow.failed"):
                    await own.execute("select pg_sleep(60)")
            with pytest.raises(psycopg.OperationalError):
                async with request_context(own, WHO, action="killed.failed"):
                    kill(dsn, own)
                    await own.execute("select 1")
        async with (
            psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False) as pool,
            await psycopg.AsyncConnection.connect(dsn) as own,
        ):
            configure_attempts(fallback=pool, spool=spool)
            await own.close()
            await record_denied(own, "pooled.denied")
            configure_attempts(fallback=NOWHERE, spool=spool)
            await record_denied(own, "spooled.denied")

    asyncio.run(main())
    assert [event["action"] for event in events(dsn)] == [
        "a.denied",
        "x.failed",
        "b.denied",
        "slow.failed",
        "killed.failed",
        "pooled.denied",
    ]
    assert [entry["action"] for entry in spooled(spool)] == ["spooled.denied"]


def test_behind_pgbouncer(conn: Conn, dsn: str, pooled_dsn: str) -> None:
    conn.execute("create table t (id int primary key)")

    def client(number: int) -> None:
        with psycopg.connect(pooled_dsn, autocommit=True, prepare_threshold=None) as own:
            for turn in range(10):
                with (
                    contextlib.suppress(errors.UniqueViolation),
                    request_context(own, actor_id=f"u_{number}", correlation_id=f"{turn}"),
                ):
                    own.execute("insert into t values (1), (1)")

    threads = [threading.Thread(target=client, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((e["actor_id"], e["correlation_id"]) for e in events(dsn)) == sorted(
        (f"u_{number}", f"{turn}") for number in range(6) for turn in range(10)
    )


def test_an_unreachable_database_is_not_tried_for_every_request(db: Conn, spool: Path) -> None:
    tried = []

    def hang_up(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                tried.append(peer)
                peer.close()

    db.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hang_up, args=[listener])
        thread.start()
        port = listener.getsockname()[1]
        configure_attempts(
            fallback=f"host=127.0.0.1 port={port} sslmode=disable gssencmode=disable", spool=spool
        )
        for _ in range(5):
            record_denied(db, "a.denied")
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    assert len(tried) == 1
    assert len(spooled(spool)) == 5


def test_a_fallback_says_itself_how_long_to_wait(db: Conn, spool: Path) -> None:
    db.close()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"host=127.0.0.1 port={silent.getsockname()[1]} sslmode=disable gssencmode=disable"
        waits = []
        for fallback in (target, f"{target} connect_timeout=4"):
            configure_attempts(fallback=fallback, spool=spool)
            began = time.monotonic()
            record_denied(db, "a.denied")
            waits.append(round(time.monotonic() - began))
    assert waits[0] < waits[1] >= 4


def spool_many(path: str, number: int) -> None:
    for turn in range(100):
        line = Attempt(f"p{number}.t{turn}", "failed", WHO, metadata={"x": "y" * 5000})
        append_lines(Path(path), [line.entry(late=True).encode()])


def test_processes_spool_while_readers_read_and_are_killed(dsn: str, spool: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=spool_many, args=[str(spool), n]) for n in range(4)]
    for writer in writers:
        writer.start()
    command = [sys.executable, "-c", (
        "import sys, pathlib, psycopg; from pgaudit_wf.context.spool import read_spool\n"
        "with psycopg.connect(sys.argv[1], autocommit=True) as conn:\n"
        "    read_spool(conn, pathlib.Path(sys.argv[2]))"
    ), dsn, str(spool)]  # fmt: skip
    killed = 0
    while any(writer.is_alive() for writer in writers):
        readers = [subprocess.Popen(command) for _ in range(2)]
        time.sleep(0.6)
        for reader in readers:
            killed += reader.poll() is None
            reader.send_signal(signal.SIGKILL)
            reader.wait()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    subprocess.run(command, check=True)
    assert sorted(event["action"] for event in events(dsn)) == sorted(
        f"p{number}.t{turn}" for number in range(4) for turn in range(100)
    )
    assert list(spool.parent.iterdir()) == []


def test_the_command_line_reads_the_spool_in(
    dsn: str, spool: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGAUDIT_WF_DATABASE", dsn)
    configure_attempts()
    monkeypatch.setenv("PGAUDIT_WF_SPOOL", str(spool))

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            app(list(arguments))
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().out

    assert run("spool", "show")[1] == f"Nothing waits in {spool}.\n"
    append_lines(spool, [Attempt("a.failed", "failed", WHO).entry(late=True).encode()])
    assert "a.failed" in run("spool", "show")[1]
    assert json.loads(run("spool", "show", "--json")[1])[0]["context"]["actor_id"] == "u_1"
    assert run("spool", "read") == (0, "1 attempts recorded, 0 already known.\n")
    append_lines(spool, [b"rubbish"])
    code, out = run("spool", "read", "--file", str(spool), "--json")
    assert (code, json.loads(out)["rejected"]) == (1, 1)
    assert len(events(dsn)) == 1


def test_the_command_line_sets_limits(
    app_dsn: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGAUDIT_WF_DATABASE", app_dsn)

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            app(["limits", *arguments])
        assert isinstance(caught.value.code, int)
        captured = capsys.readouterr()
        return caught.value.code, captured.out + captured.err

    assert "no limits" in run("list")[1]
    assert run("set", "api_key", "20") == (
        0,
        "Every other organization may have at most 20 of api_key.\n",
    )
    assert "any number" in run("set", "api_key", "none", "--org", "o_7")[1]
    assert "no attached table" in run("set", "nothing", "1")[1]
    assert run("set", "api_key", "none")[0] == 2
    assert run("set", "api_key", "-1")[0] == 2
    listed = json.loads(run("list", "--json")[1])
    assert {(row["org_id"], row["max_count"], row["condition"]) for row in listed} == {
        (None, 20, "revoked_at is null"),
        ("o_7", None, "revoked_at is null"),
        (None, 1, None),
    }
    assert "all others" in run("list")[1]
    assert run("condition", "api_key", "nosuch")[0] == 1
    assert run("condition", "api_key", "")[1] == "All rows of api_key count towards the limit.\n"
    assert run("recount", "api_key")[0] == 0
    assert run("remove", "api_key", "--org", "o_7")[0] == 0
    assert run("remove", "api_key", "--org", "o_7")[0] == 1


def test_the_sql_twins_refuse_wrong_arguments(conn: Conn) -> None:
    for statement in (
        "select pgaudit_wf.record_denied('')",
        'select pgaudit_wf.record_attempt(\'{"outcome": "succeeded"}\')',
        'select pgaudit_wf.record_attempt(\'{"outcome": "failed", "action": "a"}\')',
    ):
        with pytest.raises(psycopg.Error) as caught:
            conn.execute(statement)
        assert caught.value.sqlstate == "PA008"
