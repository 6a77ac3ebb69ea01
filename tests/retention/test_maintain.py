"""Maintenance does what its plan says, once, however often and wherever it is interrupted."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pgaudit_wf.archive.files import list_archives, verify_archive
from pgaudit_wf.archive.write import archive_partition
from pgaudit_wf.cli import app
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.errors import ArchiveConflictError, MaintenanceRunningError
from pgaudit_wf.jobs.maintain import Hook, Step, maintain, plan
from support.asserting import application_trail
from support.server import Conn

PROGRAM = Path(sys.executable).with_name("pgaudit-wf")
LEFT = "select count(*) from pgaudit_wf.security_audit_log where action not like 'audit.%'"
MONTHS = ("security_audit_log_y2021m02", "security_audit_log_y2021m03")


def make_due(conn: Conn) -> Conn:
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


@pytest.fixture
def due(conn: Conn) -> Conn:
    """Two expired months, events in the default partition, and a partition missing."""
    return make_due(conn)


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


def test_maintenance_does_exactly_what_its_plan_says(due: Conn, tmp_path: Path) -> None:
    before = list(application_trail(due))
    planned = plan(due, archive_url=str(tmp_path), months_ahead=4)
    assert list(planned) == everything_due()
    assert list(application_trail(due)) == before
    assert list(tmp_path.iterdir()) == [], "a plan changes nothing"
    seen: list[tuple[Step, int, int]] = []
    done = list(maintain(due, archive_url=str(tmp_path), months_ahead=4,
                         progress=lambda *told: seen.append(told)))  # fmt: skip
    assert done == list(planned)
    assert seen == [(planned[2], 28, 28), (planned[4], 31, 31)]
    assert list(application_trail(due, list_archives(str(tmp_path)))) == before
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
        ("archive", "no location for archives is given (--archive)"),
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
    monkeypatch.setattr("pgaudit_wf.jobs.maintain._LOCK_TIMEOUT", "50ms")
    monkeypatch.setattr("pgaudit_wf.jobs.maintain._ATTEMPTS", 2)
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
    before = list(application_trail(due))
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
        assert list(application_trail(due, archives)) == before
        if finished and not plan(due, archive_url=str(tmp_path), months_ahead=4):
            break
    assert stops > 5
    for archive in list_archives(str(tmp_path)):
        verify_archive(archive)
    assert due.execute(LEFT).fetchone() == (0,)


def test_two_at_once_do_no_harm(due: Conn, dsn: str, tmp_path: Path) -> None:
    before = list(application_trail(due))
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
    assert list(application_trail(due, list_archives(str(tmp_path)))) == before
    list(maintain(due, archive_url=str(tmp_path)))


def test_hooks_run_before_anything_is_archived(due: Conn, tmp_path: Path) -> None:
    def look(own: Conn, dry: bool) -> int:
        assert not dry
        assert own.execute("select from pgaudit_wf.archive").fetchall() == []
        return 61

    done = list(maintain(due, archive_url=str(tmp_path), hooks=[Hook("seal", look)]))
    assert done[0] == Step("hook", "seal", 61)


def test_maintenance_stops_between_steps_when_asked(due: Conn, tmp_path: Path) -> None:
    done: list[Step] = []
    for step in maintain(due, archive_url=str(tmp_path), stopping=lambda: len(done) >= 2):
        done.append(step)  # noqa: PERF402
    assert len(done) == 2
    assert list(maintain(due, archive_url=str(tmp_path)))


# What lies in the place for archives and does not belong to this database.


def files(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir()}


def live(conn: Conn, partition: str) -> int:
    row = conn.execute(
        "select count(*) from pgaudit_wf.security_audit_log where tableoid"
        " = to_regclass('pgaudit_wf.' || %s)",
        [partition],
    ).fetchone()
    assert row
    return int(row[0])


def stopped(conn: Conn, place: Path, kind: str, problem: str) -> None:
    """The run ends at the step of that kind; nothing has been removed and no file changed."""
    before = files(place)
    events = [live(conn, name) for name in MONTHS]
    done = list(maintain(conn, archive_url=str(place)))
    assert done[-1].kind == kind
    assert problem in (done[-1].problem or "")
    assert [step.kind for step in done[:-1] if step.kind in ("archive", "prune")] == []
    assert [live(conn, name) for name in MONTHS] == events
    assert files(place) == before


def test_two_databases_in_one_place_lose_nothing(
    due: Conn, app_conn: Conn, app_dsn: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Same months, same numbers of events, and the same ids."""
    other = make_due(app_conn)
    before = [list(application_trail(each)) for each in (due, other)]
    place = tmp_path / "one"
    list(maintain(due, archive_url=str(place)))
    first = files(place)
    stopped(other, place, "archive", "does not belong to this database")
    with pytest.raises(SystemExit) as caught:
        app(["maintain", "-d", app_dsn, "--archive", str(place)])
    assert caught.value.code == 1
    assert "use a separate location for each database" in capfd.readouterr().out
    assert files(place) == first
    list(maintain(other, archive_url=str(tmp_path / "another")))
    assert live(due, MONTHS[0]) == live(other, MONTHS[0]) == 0
    for each, where, trail in ((due, "one", before[0]), (other, "another", before[1])):
        archives = list_archives(str(tmp_path / where))
        assert list(application_trail(each, archives)) == trail
    for path in (tmp_path / "another").iterdir():
        path.rename(place / path.name)
    with pytest.raises(ArchiveConflictError, match="several logs"):
        list_archives(str(place))


@pytest.mark.parametrize("archived_before", [False, True])
def test_a_copy_of_the_database_leaves_the_originals_archives_alone(
    server: DevServer, due: Conn, dsn: str, tmp_path: Path, archived_before: bool
) -> None:
    """Same log id, same cluster, same name, some of the files recorded in both."""
    place = tmp_path / "place"
    if archived_before:
        archive_partition(due, MONTHS[0], str(place))
    name = due.info.dbname
    due.close()
    with closing(psycopg.connect(server.dsn(), autocommit=True)) as admin:
        admin.execute(f"create database {name}_copy template {name}".encode())
        try:
            with psycopg.connect(dsn, autocommit=True) as original:
                list(maintain(original, archive_url=str(place)))
                assert [live(original, month) for month in MONTHS] == [0, 0]
            with psycopg.connect(server.dsn(f"{name}_copy"), autocommit=True) as copy:
                kind = "prune" if archived_before else "archive"
                stopped(copy, place, kind, "does not belong to this database")
                assert [live(copy, month) for month in MONTHS] == [28, 31]
        finally:
            admin.execute(f"drop database {name}_copy with (force)".encode())


def forget(conn: Conn) -> None:
    """Bring the database back to before it noted an archive, as a superuser can."""
    conn.execute("alter table pgaudit_wf.archive disable trigger user")
    conn.execute("delete from pgaudit_wf.archive")
    conn.execute("alter table pgaudit_wf.archive enable always trigger append_only")


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda data, _: data.unlink(), "is missing"),
        (lambda data, _: data.write_bytes(b""), "SHA-256 differs"),
        (lambda data, _: data.write_bytes(data.read_bytes()[:-1]), "SHA-256 differs"),
        (lambda data, _: rewrite(data, lambda rows: rows[3].update(action="x")), "SHA-256"),
        (lambda data, _: rewrite(data, lambda rows: rows.pop()), "SHA-256 differs"),
        (lambda _, manifest: manifest.write_text("{}"), "is not the manifest of an archive"),
        (
            lambda _, manifest: manifest.write_text(
                json.dumps({**json.loads(manifest.read_text()), "sha256": "0" * 64})
            ),
            "does not belong to this database",
        ),
        (
            lambda _, manifest: manifest.with_name("x.manifest.json").write_text(
                json.dumps({**json.loads(manifest.read_text()), "file": "x.parquet"})
            ),
            "does not belong to this database",
        ),
    ],
)
def test_a_month_stays_if_its_archive_is_not_what_was_written(
    due: Conn, tmp_path: Path, harm: Callable[[Path, Path], object], problem: str
) -> None:
    """Archived by a run that ended before it came to removing anything."""
    due.execute("select pgaudit_wf.add_log_partition('2021-07-01')")
    archive_partition(due, MONTHS[0], str(tmp_path))
    [data], [manifest] = tmp_path.glob("*.parquet"), tmp_path.glob("*.json")
    harm(data, manifest)
    stopped(due, tmp_path, "prune", problem)


def test_an_archive_file_is_compared_with_the_log(due: Conn, tmp_path: Path) -> None:
    """A file that is what was recorded, but does not hold what the log does."""
    for change, problem in (
        (lambda rows: rows[3].update(action="x"), "has a different event"),
        (lambda rows: rows[3].update(diff="[]"), "has a different event"),
        (lambda rows: rows[27].update(id=10**6), "does not contain event"),
        (lambda rows: rows.pop(), "does not contain event"),
    ):
        archive = archive_partition(due, MONTHS[0], str(tmp_path))
        [data], [manifest] = tmp_path.glob("*.parquet"), tmp_path.glob("*.json")
        rewrite(data, change)
        told = {**archive.manifest, "sha256": hashlib.sha256(data.read_bytes()).hexdigest()}
        manifest.write_text(json.dumps(told))
        due.execute(
            "select pgaudit_wf._replace_archive(id, %s, %s) from pgaudit_wf.archive",
            [told["sha256"], json.dumps(told)],
        )
        stopped(due, tmp_path, "prune", problem)
        forget(due)
        data.unlink()
        manifest.unlink()


def test_a_lost_manifest_is_written_again_before_anything_leaves(due: Conn, tmp_path: Path) -> None:
    before = list(application_trail(due))
    archive = archive_partition(due, MONTHS[0], str(tmp_path))
    [manifest] = tmp_path.glob("*.json")
    manifest.unlink()
    list(maintain(due, archive_url=str(tmp_path)))
    assert json.loads(manifest.read_text()) == archive.manifest
    assert list(application_trail(due, list_archives(str(tmp_path)))) == before


@pytest.mark.parametrize("same", [True, False])
def test_a_file_that_nobody_recorded_is_never_overwritten(
    due: Conn, tmp_path: Path, same: bool
) -> None:
    """Left by a run that was killed, it is taken as it is if it holds the month."""
    archive_partition(due, MONTHS[0], str(tmp_path))
    forget(due)
    [data], [manifest] = tmp_path.glob("*.parquet"), tmp_path.glob("*.json")
    manifest.unlink()
    if not same:
        rewrite(data, lambda rows: rows[0].update(action="thing.lost"))
        stopped(due, tmp_path, "archive", "has a different event")
        return
    left = data.read_bytes()
    list(maintain(due, archive_url=str(tmp_path)))
    assert data.read_bytes() == left
    assert live(due, MONTHS[0]) == 0


def test_a_name_that_was_only_taken_is_used(due: Conn, tmp_path: Path) -> None:
    archive_partition(due, MONTHS[0], str(tmp_path))
    forget(due)
    [data], [manifest] = tmp_path.glob("*.parquet"), tmp_path.glob("*.json")
    manifest.unlink()
    data.write_bytes(b"")
    before = list(application_trail(due))
    list(maintain(due, archive_url=str(tmp_path)))
    assert list(application_trail(due, list_archives(str(tmp_path)))) == before
    assert live(due, MONTHS[0]) == 0


def test_an_erasure_in_between_does_not_keep_a_month(due: Conn, tmp_path: Path) -> None:
    due.execute(
        "insert into pgaudit_wf.security_audit_log (action, occurred_at, actor_id, actor_label, ip)"
        " values ('thing.seen', '2021-02-03', 'u_1', 'Ada', '192.0.2.1')"
    )
    archive_partition(due, MONTHS[0], str(tmp_path))
    due.execute("select pgaudit_wf.pseudonymise('u_1')")
    done = list(maintain(due, archive_url=str(tmp_path)))
    assert [step.problem for step in done if step.problem] == []
    assert live(due, MONTHS[0]) == 0


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
    assert "cannot archive 28 events of security_audit_log_y2021m02: no location" in text


def test_a_second_run_ends_well_at_once(
    due: Conn, run: Callable[..., tuple[int, str, str]]
) -> None:
    due.execute("select pgaudit_wf._begin_job('maintenance')")
    code, out, err = run()
    assert (code, out) == (0, "")
    assert "in progress" in err


def test_a_stranger_cannot_keep_it_from_running(
    due: Conn, run: Callable[..., tuple[int, str, str]]
) -> None:
    with due.transaction():
        due.execute("create role stranger login")
    try:
        with psycopg.connect(due.info.dsn, user="stranger", autocommit=True) as stranger:
            stranger.execute("select pg_advisory_lock(1885815925, 1)")
            code, out, _ = run()
        assert (code, "cannot archive" in out) == (1, True)
    finally:
        due.execute("drop role stranger")


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
    assert due.execute(LEFT).fetchone() == (2,)
