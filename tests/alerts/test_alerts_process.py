"""The worker as a process: killed, asked to stop, watched, and several at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgaudit_wf.jobs.service import Service
from support.alert_servers import MailServer
from support.asserting import wait_until
from support.server import Conn

PROGRAM = Path(sys.executable).with_name("pgaudit-wf")


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with MailServer() as server:
        yield server


@pytest.fixture
def conn(app_conn: Conn) -> Conn:
    """A database where events `x.…` are told to their actors, with a short lease."""
    app_conn.execute("delete from pgaudit_wf.alert_rule")
    app_conn.execute(
        "insert into pgaudit_wf.alert_rule (action_pattern, audience) values ('x.*', 'actor')"
    )
    app_conn.execute("update pgaudit_wf.alert_policy set lease = '8 s', burst_messages = 100000")
    app_conn.execute(
        "insert into app_user (id, email) select 'u' || i, 'u' || i || '@x.example'"
        " from generate_series(1, 10) as i"
    )
    return app_conn


def record(conn: Conn, count: int) -> None:
    for number in range(count):
        with conn.transaction():
            conn.execute("select set_config('app.actor_id', %s, true)", [f"u{number % 10 + 1}"])
            conn.execute("select pgaudit_wf.record_event('x.happened')")


@contextmanager
def running(dsn: str, mail: MailServer, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [str(PROGRAM), "alerts", "run", "-d", dsn, "--interval", "0.1", "--send-timeout", "4"]
    env = {
        **os.environ,
        "PGAUDIT_WF_SMTP_HOST": "127.0.0.1",
        "PGAUDIT_WF_SMTP_PORT": str(mail.port),
        "PGAUDIT_WF_SMTP_TLS": "none",
        "PGAUDIT_WF_SMTP_FROM": "alerts@audit.example",
    }
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=env) as one:
        try:
            yield one
        finally:
            one.kill()


def states(conn: Conn) -> dict[str, int]:
    rows = conn.execute("select state, count(*) from pgaudit_wf.alert_delivery group by 1")
    return dict(rows.fetchall())


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def log_line(process: subprocess.Popen[str], message: str) -> dict[str, Any]:
    assert process.stderr is not None
    for line in process.stderr:
        entry: dict[str, Any] = json.loads(line)
        if entry["message"] == message:
            return entry
    raise AssertionError(f"the log ended without {message!r}")


def test_killed_while_it_sends(conn: Conn, app_dsn: str, mail: MailServer) -> None:
    mail.mode = "stall"
    record(conn, 1)
    with running(app_dsn, mail) as worker:
        wait_until(lambda: mail.attempts)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert states(conn) == {"sending": 1}
    mail.mode = "take"
    with running(app_dsn, mail):
        wait_until(lambda: states(conn) == {"sent": 1})
    assert len(mail.taken) == 1


def test_killed_after_the_mail_was_taken(conn: Conn, app_dsn: str, mail: MailServer) -> None:
    mail.mode = "stall after"
    record(conn, 1)
    with running(app_dsn, mail) as worker:
        wait_until(lambda: mail.taken)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    mail.mode = "take"
    with running(app_dsn, mail):
        wait_until(lambda: states(conn) == {"sent": 1})
    first, repeated = mail.taken
    assert first.id == repeated.id, "the receiver can tell that it is the same"


@pytest.mark.slow
def test_three_workers_of_which_some_are_killed(conn: Conn, app_dsn: str, mail: MailServer) -> None:
    """300 events: each is told once, but for those in whose middle a worker was killed."""

    def write() -> None:
        with psycopg.connect(app_dsn, autocommit=True) as own:
            record(own, 300)

    writer = threading.Thread(target=write)
    writer.start()
    kills = 0
    with running(app_dsn, mail), running(app_dsn, mail):
        while kills < 3:
            with running(app_dsn, mail) as victim:
                time.sleep(1.0)
                victim.kill()
                kills += 1
        writer.join()
        wait_until(lambda: states(conn) == {"sent": 300}, 120)
    told = Counter(one.id for one in mail.taken)
    assert len(told) == 300
    assert len(mail.taken) - 300 <= kills
    assert {len(one.recipients) for one in mail.taken} == {1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_message_at_hand_go_out(
    conn: Conn, app_dsn: str, mail: MailServer, number: signal.Signals
) -> None:
    record(conn, 200)
    with running(app_dsn, mail) as worker:
        wait_until(lambda: len(mail.taken) >= 5)
        worker.send_signal(number)
        assert log_line(worker, "stopped")["asked"] is True
        assert worker.wait(20) == 0
    left = states(conn)
    assert set(left) <= {"sent", "pending"}
    assert left["sent"] == len(mail.taken) < 200


def test_the_process_reports_its_state_and_survives_a_lost_connection(
    conn: Conn, app_dsn: str, mail: MailServer
) -> None:
    with running(app_dsn, mail, "--health-port", "0") as worker:
        port = log_line(worker, "health check")["port"]
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: get(f"{url}/readyz") == (200, "ok\n"))
        assert get(f"{url}/healthz") == (200, "ok\n")
        assert get(f"{url}/")[0] == 404
        terminated = conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'pgaudit-wf alerts' and datname = current_database()"
        ).fetchall()
        assert terminated == [(True,)]
        failed = log_line(worker, "run failed")
        # Which of them depends on whether it was just asking something.
        assert failed["error"] in ("AdminShutdown", "OperationalError")
        assert failed["level"] == "error"
        wait_until(lambda: get(f"{url}/readyz") == (200, "ok\n"))
        record(conn, 3)
        wait_until(lambda: states(conn) == {"sent": 3})
        wait_until(
            lambda: 'messages_total{channel="smtp",result="sent"} 3.0' in get(f"{url}/metrics")[1]
        )
        metrics = get(f"{url}/metrics")[1]
        assert "pgaudit_wf_alerts_events_total" in metrics
        assert 'pgaudit_wf_job_runs_total{job="alerts",result="failed"} 1.0' in metrics
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0


def test_a_database_that_is_not_there_ends_a_single_run(mail: MailServer) -> None:
    with running("host=/nowhere password=hunter2", mail, "--once") as worker:
        assert worker.wait(20) == 3
        assert worker.stderr is not None
        assert "hunter2" not in worker.stderr.read()


def test_a_service_that_hangs_is_not_healthy() -> None:
    service = Service("x", stall_seconds=0.2)
    release = threading.Event()

    def hang(_: Service) -> bool:
        release.wait(20)
        return False

    thread = threading.Thread(target=service.run, args=[hang], kwargs={"once": True})
    thread.start()
    assert service.answer("/readyz")[0] == 503, "it has not finished anything yet"
    wait_until(lambda: service.answer("/healthz") == (503, "text/plain", b"no progress\n"))
    service.alive()
    assert service.answer("/healthz")[0] == 200
    release.set()
    thread.join()
    assert service.answer("/readyz")[0] == 200


def test_a_service_goes_on_after_failures_and_a_single_run_does_not() -> None:
    outcomes: list[Exception | bool] = [OSError("secret"), psycopg.OperationalError("secret"), True]

    def job(service: Service) -> bool:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        service.stop()
        return outcome

    service = Service("x")
    service.run(job, interval=0.01)
    assert outcomes == []
    assert service.answer("/readyz") == (503, "text/plain", b"stopping\n")
    outcomes = [OSError("once")]
    with pytest.raises(OSError, match="once"):
        Service("x").run(job, once=True)
    outcomes = [ValueError("a mistake in the program")]
    with pytest.raises(ValueError, match="a mistake"):
        Service("x").run(job)
