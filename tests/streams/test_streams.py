"""Streams against real receivers, which refuse, stall and break off: nothing is lost or skipped."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet
import pytest
import standardwebhooks
import trustme
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgaudit_wf import request_context
from pgaudit_wf.jobs.service import Service
from pgaudit_wf.streams import StreamWorker
from support.asserting import fails, wait_until
from support.command import command
from support.server import Conn
from support.stream_servers import Collector, Posted, SyslogServer

PROGRAM = Path(sys.executable).with_name("pgaudit-wf")
TOKEN = {"PGAUDIT_WF_STREAM_SECRET_TOKEN": "hunter2"}
SIGNING = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        yield server


def stream(conn: Conn, name: str, kind: str, url: str, **columns: object) -> None:
    given = {
        "name": name, "kind": kind, "url": url, "format": "ndjson",
        # Or the first event would be that it was added.
        "action_patterns": ["x.*", "y.*"], **columns,
    }  # fmt: skip
    conn.execute(
        sql.SQL("insert into pgaudit_wf.stream_destination ({}) values ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, given)),
            sql.SQL(", ").join(map(sql.Placeholder, given)),
        ),
        given,
    )


def record(conn: Conn, *actions: str, **context: Any) -> None:  # noqa: ANN401
    with request_context(conn, **context):
        for action in actions:
            conn.execute("select pgaudit_wf.record_event(%s, 'x', 'x_1')", [action])


def work(dsn: str, environment: Mapping[str, str] = {}, timeout: float = 5.0) -> Service:
    """Send what is due, as `stream --once` does."""
    service = Service("stream")
    worker = StreamWorker(
        lambda: psycopg.connect(dsn, autocommit=True), environment, service, timeout=timeout
    )
    try:
        service.run(worker.job, once=True)
    finally:
        worker.close()
    return service


def again(conn: Conn) -> None:
    """Make the next attempt due now."""
    conn.execute("update pgaudit_wf.stream_state set due_at = now()")


def state(conn: Conn, name: str = "s") -> dict[str, Any]:
    cursor = conn.cursor(row_factory=psycopg.rows.dict_row)
    row = cursor.execute("select * from pgaudit_wf.stream_list where name = %s", [name]).fetchone()
    assert row is not None
    return row


def lines(posts: list[Posted]) -> list[dict[str, Any]]:
    return [json.loads(line) for post in posts for line in post.body.splitlines()]


def actions(posts: list[Posted]) -> list[str]:
    return [line["action"] for line in lines(posts)]


def test_shapes_of_collectors(conn: Conn, dsn: str, collector: Collector) -> None:
    url = collector.url
    stream(conn, "splunk", "splunk", url, secret="token", format="ocsf", settings='{"index": "a"}')
    stream(conn, "datadog", "datadog", url, secret="token", format="cef")
    stream(conn, "hook", "webhook", f"{url}/hook?x=1", secret="signing")
    odd = "Ünï=|\\\n\u2028" + "x" * 20
    record(conn, "x.happened", actor_id="u_1", actor_label=odd, org_id="o_1")
    environment = {**TOKEN, "PGAUDIT_WF_STREAM_SECRET_SIGNING": SIGNING}
    work(dsn, environment)
    paths = {post.path: post for post in collector.taken}
    assert len(collector.taken) == len(paths) == 3

    splunk = paths["/services/collector/event"]
    assert splunk.headers["authorization"] == "Splunk hunter2"
    [event] = lines([splunk])
    uid = event["fields"]["event_uid"]
    assert len(uid) == 32
    assert (event["index"], event["sourcetype"]) == ("a", "pgaudit_wf:ocsf")
    assert event["event"]["metadata"]["uid"] == uid
    assert event["event"]["metadata"]["event_code"] == "x.happened"

    datadog = paths["/api/v2/logs"]
    assert datadog.headers["dd-api-key"] == "hunter2"
    [log] = json.loads(datadog.body)
    assert log["event_uid"] == uid
    assert log["message"].startswith("CEF:0|pgaudit_wf|pgaudit_wf|")
    assert "\n" not in log["message"]
    assert r"|x.happened|x.happened by Ünï=\|\\\n\\u2028xx" in log["message"]
    assert f" externalId={uid} suid=u_1 suser=Ünï\\=|" in log["message"]

    hook = paths["/hook?x=1"]
    standardwebhooks.Webhook(SIGNING).verify(hook.body.decode(), hook.headers)
    [plain] = lines([hook])
    assert (plain["event_uid"], plain["actor_name"]) == (uid, odd)
    assert conn.execute("select sum(sent) from pgaudit_wf.stream_list").fetchone() == (3,)
    again(conn)
    work(dsn, environment)
    assert len(collector.taken) == 3, "nothing is sent twice"


def test_filters_and_one_organization(conn: Conn, dsn: str, collector: Collector) -> None:
    conn.execute(
        "create or replace view pgaudit_wf.actor_directory as"
        " select 'u_' || i as actor_id, 'Name ' || i as name, 'e' || i as email"
        " from generate_series(1, 2) as i"
    )
    conn.execute(
        "create or replace view pgaudit_wf.org_member as"
        " select 'o_1' as org_id, 'u_1' as actor_id, 'owner' as role"
    )
    record(conn, "x.before", org_id="o_1")
    stream(conn, "s", "webhook", collector.url, org_id="o_1", action_patterns=["x.*", "y.z_"])
    record(conn, "x.a", "y.z_", "y.zz", "z.x.a", actor_id="u_1", org_id="o_1")
    record(conn, "x.b", actor_id="u_2", org_id="o_1")
    record(conn, "x.a", actor_id="u_1", org_id="o_2")
    record(conn, "x.a", actor_id="u_1")
    work(dsn)
    found = lines(collector.taken)
    assert [(line["action"], line["org_id"]) for line in found] == [
        ("x.a", "o_1"), ("y.z_", "o_1"), ("x.b", "o_1"),
    ]  # fmt: skip
    assert [line["actor_email"] for line in found] == ["e1", "e1", None], "no outsider is named"
    assert conn.execute("select * from pgaudit_wf._stream_lag('s')").fetchone() == (0, 0)
    # The application's view fails for an event: it goes out with the name it was recorded with.
    conn.execute(
        "create or replace view pgaudit_wf.actor_directory as"
        " select 'u_1' as actor_id, (1 / (random() * 0)::int)::text as name, null as email"
    )
    record(conn, "x.c", actor_id="u_1", actor_label="Ana", org_id="o_1")
    again(conn)
    work(dsn)
    assert lines(collector.taken)[-1]["actor_name"] == "Ana"


def test_values_are_bounded_and_numbers_keep_their_digits(
    conn: Conn, dsn: str, collector: Collector
) -> None:
    stream(conn, "s", "splunk", collector.url, secret="token", max_value=100)
    number = "12345678901234567.890123456789"
    with conn.transaction():
        for value in (f'"{"ä" * 99}"', number):
            conn.execute(
                "select pgaudit_wf.record_event("
                "'x.a', after => jsonb_build_object('v', %s::jsonb))",
                [value],
            )
    work(dsn, TOKEN)
    large, small = (post for post in collector.taken[0].body.decode().splitlines())
    assert set(json.loads(large)["event"]["diff"][0]["value"]) == {"sha256", "bytes"}
    assert number in small


def test_an_event_that_is_refused_for_itself_holds_nothing_up(
    conn: Conn, dsn: str, collector: Collector
) -> None:
    collector.answer = lambda posted: 400 if b"x.bad" in posted.body else 200
    stream(conn, "s", "webhook", collector.url)
    record(conn, *["x.good"] * 5, "x.bad", *["x.good"] * 9, "x.bad")
    service = work(dsn)
    assert actions(collector.taken) == ["x.good"] * 14
    assert (state(conn)["dead_letters"], state(conn)["attempts"], state(conn)["sent"]) == (2, 0, 14)
    metrics = service.answer("/metrics")[2].decode()
    assert 'pgaudit_wf_stream_events_total{destination="s",result="refused"} 2.0' in metrics
    [(subject, problem, remedy)] = conn.execute(
        "select subject, problem, remedy from pgaudit_wf.doctor() where subject like 'stream%'"
    ).fetchall()
    assert subject == "stream s"
    assert "refused 2 events" in problem
    assert "receiver answered 400" in problem
    # Alone, it is refused only if the destination takes anything at all.
    record(conn, "x.bad")
    again(conn)
    work(dsn)
    assert state(conn)["dead_letters"] == 3
    assert actions(collector.taken)[-1] == "audit.stream_tested"
    collector.answer = lambda _: 200
    conn.execute(sql.SQL(remedy))
    work(dsn)
    assert state(conn)["dead_letters"] == 0
    assert actions(collector.taken).count("x.bad") == 3


@pytest.mark.parametrize("status", [400, 429])
def test_a_destination_that_refuses_everything_loses_nothing(
    conn: Conn, dsn: str, collector: Collector, status: int
) -> None:
    collector.answer = lambda _: status
    collector.headers = {"Retry-After": "3000"} if status == 429 else {}
    stream(conn, "s", "webhook", collector.url)
    record(conn, "x.a", "x.b")
    for _ in range(5):
        work(dsn)
        again(conn)
    assert (state(conn)["dead_letters"], state(conn)["attempts"]) == (0, 5)
    assert state(conn)["last_error"] == f"receiver answered {status}"
    assert conn.execute(
        "select problem from pgaudit_wf.doctor() where subject = 'stream s'"
    ).fetchall() == [(f"it failed 5 times in a row (receiver answered {status})",)]
    work(dsn)
    [(pause,)] = conn.execute(
        "select extract(epoch from due_at - now())::float from pgaudit_wf.stream_state"
    ).fetchall()
    assert pause > (2990 if status == 429 else 50)
    requests = len(collector.seen)
    work(dsn)
    assert len(collector.seen) == requests, "it is left alone until then"
    collector.answer = lambda _: 200
    conn.execute("select pgaudit_wf._pause_stream('s', false)")
    work(dsn)
    assert actions(collector.taken) == ["x.a", "x.b"]
    assert (state(conn)["attempts"], state(conn)["last_error"]) == (0, None)


def test_one_that_stalls_or_breaks_off_holds_up_itself_only(
    conn: Conn, dsn: str, collector: Collector
) -> None:
    with Collector() as other:
        stream(conn, "other", "webhook", other.url)
        stream(conn, "s", "webhook", collector.url)
        stream(conn, "unreadable", "webhook", "https://[x/")
        record(conn, "x.a")
        for answer, problem in ((-1, "receiver: took too long"),
                                (0, "receiver: RemoteDisconnected")):  # fmt: skip
            collector.answer = lambda _, answer=answer: answer  # type: ignore[misc]
            again(conn)
            work(dsn, timeout=1.0)
            assert state(conn)["last_error"] == problem
        assert actions(other.taken) == ["x.a"]
        assert state(conn, "unreadable")["last_error"] == "the URL of unreadable cannot be read"
        collector.answer = lambda _: 200
        again(conn)
        work(dsn)
    first, second, third = (lines([post])[0] for post in collector.seen)
    assert first == second == third, "a repeat has the same id"


def test_syslog_over_tls(conn: Conn, dsn: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    environment = {"PGAUDIT_WF_STREAM_CA_FILE": str(tmp_path / "ca.pem")}
    with SyslogServer(authority) as server:
        stream(
            conn, "s", "syslog", f"tls://localhost:{server.port}",
            settings='{"hostname": "db 1"}', format="cef",
        )  # fmt: skip
        record(conn, "x.a", "y." + "ü" * 60, actor_label="Zoë\nx")
        for mode, timeout in (("break", 5.0), ("stall", 1.0)):
            server.mode = mode
            again(conn)
            work(dsn, environment, timeout)
            assert state(conn)["last_error"].startswith("receiver: ")
            assert state(conn)["sent"] == 0
        # A receiver that does not say that it has read everything may not have.
        server.mode, server.answers = "take", False
        again(conn)
        work(dsn, environment)
        assert state(conn)["sent"] == 0
        server.answers = True
        server.messages.clear()
        again(conn)
        work(dsn, environment)
        first, second = server.messages
        assert first.startswith(b"<110>1 20")
        assert b"Z db-1 pgaudit_wf - x.a - \xef\xbb\xbfCEF:0|" in first
        assert b" pgaudit_wf - y." + b"?" * 30 + b" - " in second
        assert b"\n" not in first
        # One may be told that its receiver never does.
        server.answers = False
        conn.execute(
            "update pgaudit_wf.stream_destination set settings = '{\"close_notify\": false}'"
        )
        record(conn, "x.c")
        work(dsn, environment)
        assert (state(conn)["sent"], state(conn)["last_error"]) == (3, None)
        # Without the authority, the certificate is not believed.
        record(conn, "x.d")
        work(dsn)
        assert state(conn)["last_error"] == f"receiver: {ssl.SSLCertVerificationError.__name__}"


def test_files_by_the_hour(conn: Conn, dsn: str, tmp_path: Path) -> None:
    environment = {"PGAUDIT_WF_STREAM_DIRECTORY": str(tmp_path / "allowed")}
    allowed = f"file://{tmp_path}/allowed/a%20b"
    stream(conn, "s", "files", allowed)
    stream(conn, "p", "files", allowed, format="parquet")
    for name, url in (
        ("elsewhere", f"file://{tmp_path}/other"), ("dots", f"file://{tmp_path}/allowed/../x"),
        ("proxied", "github://a/b"), ("host", f"file://tmp{tmp_path}/allowed"),
    ):  # fmt: skip
        stream(conn, name, "files", url)
    record(conn, "x.a", "x.b")
    work(dsn, environment)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["allowed"]
    for name in ("elsewhere", "dots", "proxied", "host"):
        assert state(conn, name)["last_error"].startswith(f"destination {name} is ")
    found = sorted((tmp_path / "allowed").rglob("*.*"))
    plain, table = (next(p for p in found if p.suffix == s) for s in (".ndjson", ".parquet"))
    assert len(found) == 2
    date, hour, name = plain.parts[-3:]
    assert (date[:5], hour[:5], name[:2]) == ("date=", "hour=", "s-")
    events = [json.loads(line) for line in plain.read_text().splitlines()]
    assert [event["action"] for event in events] == ["x.a", "x.b"]
    with table.open("rb") as file:
        rows = pyarrow.parquet.read_table(file).drop_columns(["occurred_at"]).to_pylist()
    assert [row["event_uid"] for row in rows] == [event["event_uid"] for event in events]
    # The slice is not over.
    record(conn, "x.c")
    work(dsn, environment)
    assert len(sorted((tmp_path / "allowed").rglob("*.ndjson"))) == 1
    # A worker that was killed before it could say so writes the same file again, with what came.
    conn.execute("select pgaudit_wf._backfill_stream('s', %s)", [events[0]["occurred_at"]])
    work(dsn, environment)
    assert len(plain.read_text().splitlines()) == 3


def test_a_killed_process_goes_on_without_loss(
    conn: Conn, dsn: str, collector: Collector, tmp_path: Path
) -> None:
    conn.execute("create role streamer login")
    conn.execute("select pgaudit_wf._grant_streams('streamer')")
    stream(conn, "s", "webhook", collector.url, secret="token")
    command_line = [
        str(PROGRAM), "stream", "-d", make_conninfo(dsn, user="streamer"), "--interval", "0.05",
        "--send-timeout", "1", "--health-port", "0",
    ]  # fmt: skip
    total = 1500
    done = threading.Event()

    def write() -> None:
        with psycopg.connect(dsn, autocommit=True) as own:
            for number in range(total):
                own.execute("select pgaudit_wf.record_event('x.a', 'x', %s)", [str(number)])
        done.set()

    collector.answer = lambda _: time.sleep(0.02) or 200  # type: ignore[func-returns-value]
    writer = threading.Thread(target=write)
    writer.start()
    environment = {**os.environ, **TOKEN}
    kills = 0
    while True:
        with (tmp_path / "log").open("a") as log, subprocess.Popen(
            command_line, stderr=log, env=environment
        ) as process:  # fmt: skip
            try:
                before = len(collector.taken)
                if kills < 3:
                    wait_until(lambda: len(collector.taken) > before)  # noqa: B023
                    process.kill()
                    kills += 1
                    continue
                wait_until(
                    lambda: (
                        done.is_set()
                        and len({line["resource_id"] for line in lines(collector.taken)}) == total
                    )
                )
                wait_until(lambda: (tmp_path / "log").read_text().count('"started"') == 4)
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
                break
            finally:
                process.kill()
    writer.join()
    by_uid = {line["event_uid"]: line["resource_id"] for line in lines(collector.taken)}
    assert sorted(by_uid.values(), key=int) == [str(number) for number in range(total)]
    assert "hunter2" not in (tmp_path / "log").read_text()
    with psycopg.connect(dsn, user="streamer", autocommit=True) as worker:
        for refused in (
            "select * from pgaudit_wf.security_audit_log", "select * from pgaudit_wf.reader",
            "select pgaudit_wf._backfill_stream('s', null)",
            "update pgaudit_wf.stream_destination set url = 'https://elsewhere.example/'",
        ):  # fmt: skip
            fails(worker, "42501", "permission denied", refused)


def test_two_workers_at_once_and_a_backfill_meanwhile(
    conn: Conn, dsn: str, collector: Collector
) -> None:
    stream(conn, "s", "webhook", collector.url)
    record(conn, *[f"x.e{number}" for number in range(700)])
    workers = [threading.Thread(target=work, args=[dsn]) for _ in range(3)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert actions(collector.taken) == [f"x.e{number}" for number in range(700)]

    # What is under way when it is sent back does not move it on.
    rewound = threading.Event()

    def rewind(_: Posted) -> int:
        if not rewound.is_set():
            rewound.set()
            with psycopg.connect(dsn, autocommit=True) as own:
                own.execute("select pgaudit_wf._backfill_stream('s', null)")
        return 200

    collector.answer = rewind
    collector.taken.clear()
    record(conn, "x.last")
    work(dsn)
    again(conn)
    work(dsn)
    assert actions(collector.taken) == [
        "x.last", *[f"x.e{number}" for number in range(700)], "x.last",
    ]  # fmt: skip


def test_backfill_waits_for_what_is_still_running(
    conn: Conn, dsn: str, collector: Collector
) -> None:
    record(conn, "x.old")
    [(since,)] = conn.execute("select clock_timestamp()").fetchall()
    with psycopg.connect(dsn) as slow:
        slow.execute("select pgaudit_wf.record_event('x.slow')")
        record(conn, "x.new")
        stream(conn, "s", "webhook", collector.url)
        conn.execute("select pgaudit_wf._backfill_stream('s', %s)", [since])
        work(dsn)
        assert collector.taken == []
        slow.commit()
    work(dsn)
    assert sorted(actions(collector.taken)) == ["x.new", "x.slow"]
    conn.execute("select pgaudit_wf._backfill_stream('s', %s)", [since + timedelta(days=1)])
    collector.taken.clear()
    work(dsn)
    assert collector.taken == []
    # A reader that has lost its place says so, and can be sent somewhere else.
    conn.execute(
        "update pgaudit_wf.reader set cursor = regexp_replace(cursor, '^[0-9]+', '7')"
        " where name = 'stream.s'"
    )
    again(conn)
    work(dsn)
    assert state(conn)["last_error"] == "database: SQLSTATE PA007"
    conn.execute("select pgaudit_wf._backfill_stream('s', null)")
    work(dsn)
    assert "x.old" in actions(collector.taken)


def test_the_commands(
    conn: Conn, dsn: str, collector: Collector, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PGAUDIT_WF_DATABASE", dsn)

    def run(*arguments: object) -> str:
        result = command(capsys, "stream", *arguments)
        assert result.code == 0, result.err
        return result.out

    record(conn, "x.a")
    assert "No destinations" in run("list")
    path = f"{collector.url}/services/secret-path"
    run("add", "s", "webhook", path, "--secret", "token", "--action", "x.*", "--since", "1h",
        "--format", "ndjson")  # fmt: skip
    # Its configuration is an event, without what may be secret in the URL.
    events = conn.execute(
        "select action, resource_id, diff::text from pgaudit_wf.security_audit_log"
        " where action = 'audit.stream_changed'"
    ).fetchall()
    assert [event[:2] for event in events] == [("audit.stream_changed", "s")]
    assert "secret-path" not in events[0][2]
    assert collector.url in events[0][2]

    missing = command(capsys, "stream", "test", "s")
    assert missing.code == 1
    assert "PGAUDIT_WF_STREAM_SECRET_TOKEN" in missing.err
    monkeypatch.setenv("PGAUDIT_WF_STREAM_SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("PGAUDIT_WF_STREAM_HOSTS", "elsewhere.example")
    assert "does not list the host" in command(capsys, "stream", "test", "s").err
    monkeypatch.setenv("PGAUDIT_WF_STREAM_HOSTS", "elsewhere.example 127.0.0.1")
    run("test", "s")
    assert collector.taken[0].headers["authorization"] == "Bearer hunter2"
    assert actions(collector.taken) == ["audit.stream_tested"]
    run("pause", "s")
    run("--once")
    assert len(collector.taken) == 1
    run("resume", "s")
    run("--once", "--only", "s")
    assert actions(collector.taken) == ["audit.stream_tested", "x.a"]
    run("backfill", "s")
    run("--once")
    assert actions(collector.taken) == ["audit.stream_tested", "x.a", "x.a"]
    [row] = json.loads(run("list", "--json"))
    assert (row["name"], row["sent"], row["paused"]) == ("s", 2, False)
    monkeypatch.setenv("COLUMNS", "400")
    assert path in run("list")
    run("remove", "s")
    assert conn.execute("select count(*) from pgaudit_wf.reader").fetchone() == (0,)
    for arguments in (
        ("add", "S", "webhook", path), ("add", "s", "webhook", "http://elsewhere.example/"),
        ("add", "s", "webhook", "https://me:pw@elsewhere.example/"),
        ("add", "s", "syslog", "tls://h"), ("add", "s", "files", "simplecache::s3://x"),
        ("add", "s", "webhook", path, "--format", "parquet"),
        ("add", "s", "webhook", path, "--secret", "0" * 30),
        ("add", "s", "webhook", path, "--secret", "a" * 32),
        ("pause", "nobody"), ("backfill", "nobody"), ("remove", "nobody"), ("test", "nobody"),
    ):  # fmt: skip
        assert command(capsys, "stream", *arguments).code == 1, arguments
    assert command(capsys, "stream", "add", "s", "webhook", path, "--set", "x").code == 2
    fails(conn, "PA008", "no destination", "select pgaudit_wf._remove_stream(null)")
