"""Maintenance does what its plan says, once, however often and wherever it is interrupted."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgaudit_wf.archive import list_archives, verify_archive
from pgaudit_wf.archive_read import whole_trail
from pgaudit_wf.cli import app
from pgaudit_wf.errors import MaintenanceRunningError
from pgaudit_wf.maintain import Hook, Step, maintain, plan

Conn = psycopg.Connection[Any]
PROGRAM = Path(sys.executable).with_name("pgaudit-wf")
MONTHS = ("security_audit_log_y2021m02", "security_audit_log_y2021m03")


@pytest.fixture
def due(conn: Conn) -> Conn:
    """Two expired months, events in the default partition, and a partition missing."""
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (action, occurred_at)"
        " select 'thing.seen', timestamptz '2021-02-01' + g * interval '1 day'"
        " from generate_series(0, 58) as g"
    )
    for month in ("2021-02-01", "2021-03-01"):
        conn.execute("select pgaudit_wf.add_log_partition(%s)", [month])
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (action, occurred_at)"
        " values ('thing.seen', '2021-07-03'), ('thing.seen', '2021-07-04')"
    )
    return conn


def coming(months: int) -> str:
    now = datetime.now(UTC)
    year, month = divmod(now.year * 12 + now.month - 1 + months, 12)
    return f"security_audit_log_y{year}m{month + 1:02}"


def everything_due(events: tuple[int, int] = (28, 31)) -> list[Step]:
    return [
        Step("add", coming(4)),
        Step("move", "security_audit_log_y2021m07", 2),
        Step("archive", MONTHS[0], events[0]),
        Step("prune", MONTHS[0], events[0]),
        Step("archive", MONTHS[1], events[1]),
        Step("prune", MONTHS[1], events[1]),
    ]


def test_it_does_exactly_what_the_plan_says(due: Conn, tmp_path: Path) -> None:
    before = list(whole_trail(due))
    planned = plan(due, archive_url=str(tmp_path), months_ahead=4)
    assert list(planned) == everything_due()
    assert list(whole_trail(due)) == before
    assert list(tmp_path.iterdir()) == [], "a plan changes nothing"
    seen: list[tuple[Step, int, int]] = []
    done = list(maintain(due, archive_url=str(tmp_path), months_ahead=4,
                         progress=lambda *told: seen.append(told)))  # fmt: skip
    assert done == list(planned)
    assert seen == [(planned[2], 28, 28), (planned[4], 31, 31)]
    assert list(whole_trail(due, list_archives(str(tmp_path)))) == before
    # What was moved is a month of its own now, and old: next time.
    month = "security_audit_log_y2021m07"
    assert list(maintain(due, archive_url=str(tmp_path), months_ahead=4)) == [
        Step("archive", month, 2), Step("prune", month, 2)
    ]  # fmt: skip
    assert list(maintain(due, archive_url=str(tmp_path), months_ahead=4)) == []
    assert (
        due.execute("select from pgaudit_wf.doctor() where severity <> 'notice'").fetchall() == []
    )


def test_without_a_place_for_archives_nothing_leaves(due: Conn) -> None:
    done = list(maintain(due, months_ahead=4))
    assert [step.kind for step in done if step.problem is None] == ["add", "move"]
    assert [(step.kind, step.problem) for step in done if step.problem] == [
        ("archive", "no place for archives is given (--archive)"),
        ("prune", "it is not archived"),
    ] * 2
    assert due.execute("select count(*) from pgaudit_wf.security_audit_log").fetchone() == (61,)


def test_a_place_that_cannot_be_written_is_a_problem_and_no_end(due: Conn, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = list(maintain(due, archive_url=str(tmp_path / "file" / "x"), months_ahead=4))
    assert [(step.kind, step.problem is None) for step in done] == [
        ("add", True), ("move", True), ("archive", False), ("prune", False), ("archive", False),
        ("prune", False),
    ]  # fmt: skip
    assert due.execute("select count(*) from pgaudit_wf.security_audit_log").fetchone() == (61,)


def test_a_busy_log_is_left_for_the_next_run(
    due: Conn, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgaudit_wf.maintain._LOCK_TIMEOUT", "50ms")
    monkeypatch.setattr("pgaudit_wf.maintain._ATTEMPTS", 2)
    with psycopg.connect(dsn) as reader:
        reader.execute("select count(*) from pgaudit_wf.security_audit_log")
        done = list(maintain(due, archive_url=str(tmp_path), months_ahead=3))
    assert {step.kind for step in done if step.problem is None} == {"archive"}
    assert {step.kind for step in done if "busy" in (step.problem or "")} == {"move", "prune"}
    done = list(maintain(due, archive_url=str(tmp_path), months_ahead=3))
    assert [step.kind for step in done] == ["move", "prune", "prune"], "archived once"
    assert not [step for step in done if step.problem]


def test_interrupted_anywhere_it_goes_on(
    due: Conn, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at every statement and every renaming in turn, then run to the end."""
    before = list(whole_trail(due))
    real = psycopg.Connection.execute
    filesystem = type(__import__("fsspec").filesystem("file"))
    move = filesystem.mv
    stops = 0
    for stop_at in range(1, 60):
        count = 0

        def tick() -> None:
            nonlocal count
            count += 1
            if count == stop_at:  # noqa: B023
                raise KeyboardInterrupt

        def execute(self: Any, *args: Any, **rest: Any) -> Any:  # noqa: ANN401
            tick()
            return real(self, *args, **rest)

        def mv(self: Any, *args: Any, **rest: Any) -> None:  # noqa: ANN401
            tick()
            move(self, *args, **rest)

        monkeypatch.setattr(psycopg.Connection, "execute", execute)
        monkeypatch.setattr(filesystem, "mv", mv)
        try:
            with psycopg.connect(dsn, autocommit=True) as own:
                for step in maintain(own, archive_url=str(tmp_path), months_ahead=4):
                    assert step.problem is None
                finished = True
        except KeyboardInterrupt:
            finished = False
            stops += 1
        finally:
            monkeypatch.undo()
        archives = list_archives(str(tmp_path)) if list(tmp_path.glob("*.json")) else []
        assert list(whole_trail(due, archives)) == before
        if finished and not plan(due, archive_url=str(tmp_path), months_ahead=4):
            break
    assert stops > 5
    for archive in list_archives(str(tmp_path)):
        verify_archive(archive)
    assert due.execute("select count(*) from pgaudit_wf.security_audit_log").fetchone() == (0,)


def test_two_at_once_do_no_harm(due: Conn, dsn: str, tmp_path: Path) -> None:
    before = list(whole_trail(due))
    entered, release = threading.Event(), threading.Event()

    def wait(_: Conn, __: bool) -> int:
        entered.set()
        assert release.wait(30)
        return 0

    def first() -> None:
        with psycopg.connect(dsn, autocommit=True) as own:
            list(maintain(own, archive_url=str(tmp_path), hooks=[Hook("seal", wait)]))

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(30)
    try:
        with pytest.raises(MaintenanceRunningError):
            list(maintain(due, archive_url=str(tmp_path)))
    finally:
        release.set()
        thread.join(30)
    assert list(whole_trail(due, list_archives(str(tmp_path)))) == before
    list(maintain(due, archive_url=str(tmp_path)))


def test_hooks_run_before_anything_is_archived(due: Conn, tmp_path: Path) -> None:
    def look(own: Conn, dry: bool) -> int:
        assert not dry
        assert own.execute("select from pgaudit_wf.archive").fetchall() == []
        return 61

    done = list(maintain(due, archive_url=str(tmp_path), hooks=[Hook("seal", look)]))
    assert done[0] == Step("hook", "seal", 61)


def test_it_stops_between_steps_when_asked(due: Conn, tmp_path: Path) -> None:
    done: list[Step] = []
    for step in maintain(due, archive_url=str(tmp_path), stopping=lambda: len(done) >= 2):
        done.append(step)  # noqa: PERF402
    assert len(done) == 2
    assert list(maintain(due, archive_url=str(tmp_path)))


# The command.


@pytest.fixture
def run(dsn: str, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run_(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            app(["maintain", "-d", dsn, *arguments])
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return run_


def test_the_command_says_what_it_would_do_and_does_it(
    due: Conn, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    where = ("--archive", str(tmp_path), "--months-ahead", "4")
    code, text, _ = run(*where, "--dry-run")
    assert code == 0
    assert text.splitlines() == [f"would {step}" for step in everything_due()]
    code, out, _ = run(*where, "--dry-run", "--json")
    assert [Step(**step) for step in json.loads(out)] == everything_due()
    code, text, _ = run(*where)
    assert code == 0
    assert text.splitlines() == [f"done: {step}" for step in everything_due()]
    run(*where)
    assert run(*where) == (0, "Nothing is due.\n", "")


def test_the_command_fails_if_something_could_not_be_done(
    due: Conn, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, text, _ = run()
    assert code == 1
    assert "cannot archive 28 events of security_audit_log_y2021m02: no place" in text


def test_a_second_run_ends_well_at_once(
    due: Conn, run: Callable[..., tuple[int, str, str]]
) -> None:
    due.execute("select pg_advisory_lock(hashtext('pgaudit_wf.maintain'))")
    code, out, err = run()
    assert (code, out) == (0, "")
    assert "at work" in err


def test_as_a_service_it_answers_and_ends_on_sigterm(due: Conn, dsn: str, tmp_path: Path) -> None:
    command = [str(PROGRAM), "maintain", "-d", dsn, "--archive", str(tmp_path), "--watch", "60",
               "--health-port", "0"]  # fmt: skip
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "80"}
    ) as service:
        assert service.stderr
        lines = []
        port = None
        while line := service.stderr.readline():
            lines.append(json.loads(line))
            port = lines[-1].get("port", port)
            if lines[-1].get("kind") == "prune" and lines[-1].get("subject") == MONTHS[1]:
                break
        assert port, lines
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                metrics = answer.read().decode()
            if 'pgaudit_wf_job_runs_total{job="maintain",result="succeeded"} 1.0' in metrics:
                break
        assert 'pgaudit_wf_maintain_events_total{kind="prune"} 59.0' in metrics
        assert 'pgaudit_wf_maintain_steps_total{kind="archive",result="done"} 2.0' in metrics
        assert "pgaudit_wf_maintain_problems 0.0" in metrics
        service.send_signal(signal.SIGTERM)
        assert service.wait(20) == 0
    assert due.execute("select count(*) from pgaudit_wf.security_audit_log").fetchone() == (2,)
