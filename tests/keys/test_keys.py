"""`pgaudit-wf keys`: events about API keys, each made once, and reports of leaked ones."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg_pool import ConnectionPool
from starlette.testclient import TestClient

from pgaudit_wf import request_context
from pgaudit_wf.jobs.delivery import sign, signing_key
from pgaudit_wf.jobs.keys import KeyWatch
from pgaudit_wf.jobs.service import Service
from pgaudit_wf.web import create_leak_intake
from support.asserting import wait_until
from support.command import command
from support.server import Conn

PROGRAM = Path(sys.executable).with_name("pgaudit-wf")
SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".ljust(44, "A")


@pytest.fixture
def conn(app_conn: Conn, secret: Callable[[], str]) -> Conn:
    """An organization with people; the database is searched for secrets at the end."""
    app_conn.execute("""
        insert into organization (id, name) values ('o', 'O'), ('other', 'Other');
        insert into app_user (id, email, name, password_hash) values
            ('u', 'u@o.example', 'U', 'never-to-be-logged-1'),
            ('w', 'w@other.example', 'W', 'never-to-be-logged-2');
        insert into member (org_id, user_id, role) values
            ('o', 'u', 'owner'), ('other', 'w', 'owner');
    """)
    return app_conn


def add_key(conn: Conn, key: str, org: str | None = "o", **columns: object) -> None:
    """A key, by default one of a year, made 200 days ago and used now."""
    now = datetime.now(UTC)
    row: dict[str, object] = {
        "id": key, "org_id": org, "user_id": "u", "name": key,
        "key_prefix": f"{'kh' if org else 'wfb'}_{key}"[:16],
        "key_hash": f"never-to-be-logged-{key}", "created_at": now - timedelta(days=200),
        "last_used_at": now,
    } | columns  # fmt: skip
    conn.execute(
        "insert into api_key select * from jsonb_populate_record("
        " null::api_key, %s::jsonb || '{\"scopes\": []}')",
        [json.dumps(row, default=str)],
    )


def watched_for(conn: Conn, days: int) -> None:
    """As if the first run had been that long ago."""
    check(conn)
    conn.execute(
        "update pgaudit_wf.api_key_watch set since = now() - make_interval(days => %s)", [days]
    )


def check(conn: Conn) -> None:
    while conn.execute("select * from pgaudit_wf._follow_api_keys(1000)").fetchone() != (0, 0):
        pass
    conn.execute("select pgaudit_wf._check_api_keys()")


def events(conn: Conn, action: str = "api_key.%") -> list[tuple[Any, ...]]:
    return conn.execute(
        "select resource_id, substr(action, 9), org_id, metadata from pgaudit_wf.security_audit_log"
        " where client = 'pgaudit-wf keys' and action like %s order by id",
        [action],
    ).fetchall()


def found(conn: Conn) -> set[tuple[str, str]]:
    listed = [(key, action) for key, action, _, _ in events(conn)]
    assert len(set(listed)) == len(listed)
    return set(listed)


def use(conn: Conn, key: str, ip: str | None, org: str = "o") -> None:
    with request_context(conn, actor_id="u", org_id=org, api_key_id=key, ip=ip, country="PT"):
        conn.execute("select pgaudit_wf.record_event('report.made', 'report', '1')")


def ago(**time: float) -> datetime:
    return datetime.now(UTC) - timedelta(**time)


def test_a_first_run_makes_no_events_of_what_was_before(conn: Conn) -> None:
    for number in range(30):
        add_key(conn, f"gone{number}", expires_at=ago(days=number + 1))
        add_key(conn, f"idle{number}", last_used_at=ago(days=100 + number))
        for ip in ("192.0.2.1", "198.51.100.7", "2001:db8::1"):
            use(conn, f"idle{number}", ip)
    add_key(conn, "soon", expires_at=ago(days=-3))
    check(conn)
    check(conn)
    # What is still to come is told, once for a key.
    assert found(conn) == {("soon", "expiring")}
    uses = conn.execute(
        "select host(network), uses from pgaudit_wf.api_key_use"
        " where api_key_id = 'idle0' order by 1"
    ).fetchall()
    assert uses == [("192.0.2.0", 1), ("198.51.100.0", 1), ("2001:db8::", 1)]
    use(conn, "idle0", "192.0.2.99")
    use(conn, "idle1", "203.0.113.5")
    check(conn)
    assert found(conn) == {("soon", "expiring"), ("idle1", "new_network")}


def test_each_event_is_made_at_its_time_and_once(conn: Conn) -> None:
    watched_for(conn, 100)
    add_key(conn, "month", expires_at=ago(days=-29))
    add_key(conn, "week", expires_at=ago(days=-6))
    add_key(conn, "day", expires_at=ago(hours=-20))
    add_key(conn, "later", expires_at=ago(days=-31))
    add_key(conn, "never", expires_at="infinity")
    # A token of ten days is not about to expire when it is made.
    add_key(conn, "token", expires_at=ago(days=-9), created_at=ago(days=1))
    add_key(conn, "expired", expires_at=ago(hours=1))
    add_key(conn, "long ago", expires_at=ago(days=101))
    add_key(conn, "idle", last_used_at=ago(days=91))
    add_key(conn, "not used", last_used_at=None)
    add_key(conn, "young", last_used_at=None, created_at=ago(days=1))
    add_key(conn, "revoked", expires_at=ago(days=-1), last_used_at=None, revoked_at=ago(days=1))
    # It is in use, as far as the log knows.
    add_key(conn, "logged", last_used_at=None)
    use(conn, "logged", None)
    conn.execute("update pgaudit_wf.api_key_watch set since = now() - interval '300 days'")
    conn.execute("delete from api_key where id = 'long ago'")
    check(conn)
    days = {key: meta["days"] for key, _, _, meta in events(conn, "api_key.expiring")}
    assert days == {"month": 30, "week": 7, "day": 1}
    first = {
        ("month", "expiring"), ("week", "expiring"), ("day", "expiring"), ("expired", "expired"),
        ("idle", "unused"), ("not used", "unused"),
    }  # fmt: skip
    assert found(conn) == first
    check(conn)
    assert found(conn) == first
    [row] = conn.execute(
        "select actor_id, actor_type, captured, attested, resource_type, org_id,"
        " metadata ->> 'label' from pgaudit_wf.security_audit_log where action = 'api_key.expired'"
    ).fetchall()
    assert row == (None, "system", False, False, "api_key", "o", "kh_expired")

    # The next threshold, and a new expiry, are news.
    conn.execute("update api_key set expires_at = now() + interval '5 days' where id = 'month'")
    conn.execute("update pgaudit_wf.api_key_policy set expiring_days = '{60,30,7,2}'")
    check(conn)
    days_of = [(key, meta["days"]) for key, _, _, meta in events(conn, "api_key.expiring")]
    # Not "week" and "day" again by the higher thresholds.
    assert sorted(days_of) == [("day", 1), ("later", 60), ("month", 7), ("month", 30), ("week", 7)]


def test_a_run_counts_as_a_use(conn: Conn) -> None:
    watched_for(conn, 300)
    add_key(conn, "runner", last_used_at=None)
    add_key(conn, "stopped", last_used_at=ago(days=150))
    for key, days in (("runner", 1), ("stopped", 120)):
        with request_context(conn, org_id="o", api_key_id=key, auth_method="api_key"):
            conn.execute(
                "insert into workflow_execution (workflow_id, org_id, started_at)"
                " values (gen_random_uuid(), 'o', %s)",
                [ago(days=days)],
            )
    conn.execute("grant select on workflow_execution to pgaudit_wf_owner")
    check(conn)
    assert found(conn) == set()
    check(conn)
    # Since its last run, not since the time in its row.
    assert [(key, action) for key, action, _, _ in events(conn)] == [("stopped", "unused")]
    assert events(conn)[0][3]["unused_since"].startswith(f"{ago(days=120):%Y-%m-%d}")


def test_networks(conn: Conn) -> None:
    watched_for(conn, 1)
    add_key(conn, "k")
    add_key(conn, "mine", None)
    for ip in (None, "192.0.2.1", "192.0.2.200", "::ffff:192.0.2.7", None):
        use(conn, "k", ip)
    check(conn)
    assert events(conn) == []
    use(conn, "k", "192.0.3.1")
    use(conn, "k", "192.0.3.2")
    use(conn, "k", "2001:db8:1::1")
    use(conn, "k", "2001:db8:1:ffff::1", org="other")
    use(conn, "k", "2001:db8:2::1", org="other")
    check(conn)
    use(conn, "k", "192.0.3.3")
    check(conn)
    networks = [(org, meta["network"]) for _, _, org, meta in events(conn)]
    assert networks == [
        ("o", "192.0.3.0/24"), ("o", "2001:db8:1::/48"), ("o", "2001:db8:2::/48"),
    ]  # fmt: skip
    [row] = conn.execute(
        "select host(ip), country, api_key_id from pgaudit_wf.security_audit_log"
        " where action = 'api_key.new_network' order by id limit 1"
    ).fetchall()
    # It says from where, and is no use of the key itself.
    assert row == ("192.0.3.1", "PT", None)

    # Wider or narrower networks are not new for that alone.
    conn.execute("update pgaudit_wf.api_key_policy set ipv4_prefix = 28, ipv6_prefix = 32")
    use(conn, "k", "192.0.3.77")
    use(conn, "k", "2001:db8:9::1")
    check(conn)
    assert len(events(conn)) == 3
    # What was forgotten is.
    conn.execute("update pgaudit_wf.api_key_use set last_at = now() - interval '2 years'")
    use(conn, "k", "10.0.0.1")
    check(conn)
    use(conn, "k", "192.0.2.1")
    check(conn)
    assert len(events(conn)) == 5


def test_two_processes_make_each_event_once(conn: Conn, app_dsn: str) -> None:
    watched_for(conn, 100)
    for number in range(40):
        add_key(conn, f"k{number}", expires_at=ago(hours=1))
        use(conn, f"k{number}", "192.0.2.1")
        use(conn, f"k{number}", "198.51.100.1")
    failures: list[BaseException] = []

    def work() -> None:
        service = Service("keys")
        job = KeyWatch(lambda: psycopg.connect(app_dsn, autocommit=True), service)
        try:
            service.run(job.job, once=True)
        except BaseException as error:
            failures.append(error)
        finally:
            job.close()

    # One is killed in the middle of its work: nothing of it stays.
    with closing(psycopg.connect(app_dsn)) as killed:
        killed.execute("select pgaudit_wf._follow_api_keys(1000)")
        killed.execute("select pgaudit_wf._check_api_keys()")
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        conn.execute("select pg_terminate_backend(%s)", [killed.info.backend_pid])
        for thread in threads:
            thread.join()
    assert failures == []
    check(conn)
    assert len(found(conn)) == 80


def test_the_settings_are_checked_and_their_changes_are_events(conn: Conn) -> None:
    wrong: list[LiteralString] = [
        "expiring_days = '{0}'", "expiring_days = '{null}'", "unused_after = '-1 day'",
        "ipv4_prefix = 33", "forget_after = 'infinity'", "expiring_days = null",
    ]  # fmt: skip
    for setting in wrong:
        with pytest.raises(psycopg.Error):
            conn.execute(f"update pgaudit_wf.api_key_policy set {setting}")
    conn.execute("update pgaudit_wf.api_key_policy set expiring_days = '{}', unused_after = null")
    row = conn.execute(
        "select resource_id from pgaudit_wf.security_audit_log"
        " where action = 'audit.settings_changed' and resource_type = 'pgaudit_wf.api_key_policy'"
    ).fetchone()
    assert row is not None
    watched_for(conn, 300)
    add_key(conn, "k", expires_at=ago(days=-1), last_used_at=ago(days=100))
    check(conn)
    assert events(conn) == []


def test_alert_rules_deliver_them(conn: Conn) -> None:
    watched_for(conn, 100)
    add_key(conn, "org", expires_at=ago(hours=1))
    add_key(conn, "mine", None, expires_at=ago(hours=1))
    add_key(conn, "theirs", "other", user_id="w", expires_at=ago(hours=1))
    conn.execute("delete from pgaudit_wf.alert_rule where action_pattern not like 'api_key.e%'")
    check(conn)
    conn.execute("select pgaudit_wf.enqueue_alerts()")
    sent = conn.execute(
        "select l.resource_id, d.recipient from pgaudit_wf.alert_delivery as d"
        " join pgaudit_wf.security_audit_log as l on l.id = d.event_id order by 1"
    ).fetchall()
    assert sent == [
        ("mine", "u@o.example"), ("org", "u@o.example"), ("theirs", "w@other.example"),
    ]  # fmt: skip


@pytest.fixture
def login(conn: Conn, app_dsn: str, capfd: pytest.CaptureFixture[str]) -> Iterator[str]:
    """A login that may run these jobs, and nothing else."""
    name = f"audit_keys_{conn.info.dbname}"
    conn.execute(f"create role {name} login".encode())
    assert command(capfd, "keys", "grant", name, "-d", app_dsn).code == 0
    yield psycopg.conninfo.make_conninfo(app_dsn, user=name)
    conn.execute(f"drop owned by {name}; drop role {name}".encode())


def test_a_login_may_watch_and_read_nothing(
    conn: Conn, login: str, capfd: pytest.CaptureFixture[str]
) -> None:
    watched_for(conn, 100)
    add_key(conn, "k", expires_at=ago(hours=1))
    done = command(capfd, "keys", "watch", "--once", "-d", login)
    assert (done.code, json.loads(done.err.splitlines()[1])["events"]) == (0, 1)
    assert found(conn) == {("k", "expired")}
    with psycopg.connect(login, autocommit=True) as limited:
        for name in ("security_audit_log", "api_key_directory", "api_key_use", "api_key_notice"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                limited.execute(f"select from pgaudit_wf.{name}".encode())
    conn.execute("create role nobody_at_all login")
    try:
        stranger = psycopg.conninfo.make_conninfo(login, user="nobody_at_all")
        assert command(capfd, "keys", "watch", "--once", "-d", stranger).code == 1
    finally:
        conn.execute("drop role nobody_at_all")


@contextmanager
def intake(login: str) -> Iterator[Callable[..., Any]]:
    """The endpoint, and a function that posts to it, signed unless something else is said."""
    with ConnectionPool(login, min_size=1, max_size=2, kwargs={"autocommit": True}) as pool:
        client = TestClient(create_leak_intake(pool, [SECRET, SECRET.replace("M", "N")]))

        def post(
            body: object, *, at: float | None = None, secret: str = SECRET, **headers: str
        ) -> Any:  # noqa: ANN401 - a response
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            signed = sign((signing_key(secret),), "msg_1", int(at or time.time()), content)
            sent = {name.encode(): value.encode() for name, value in (signed | headers).items()}
            return client.post("/", content=content, headers=sent)

        yield post


def test_a_leak_is_recorded_once_with_what_the_key_did_since(
    conn: Conn, login: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    digest = hashlib.sha256(b"the key").hexdigest()
    add_key(conn, "k", key_hash=digest)
    add_key(conn, "p")
    use(conn, "k", "192.0.2.1")
    use(conn, "k", "192.0.2.2")
    report = {
        "source": "scanner",
        "url": "https://bot:pw@git.example/repo/blob/a.env?token=xyz#L3",
        "found_at": ago(days=1).isoformat(),
        "key_hash": digest,
    }
    with intake(login) as post:
        answer = post([report, {"source": "scanner", "prefix": "kh_p"}])
        assert (answer.status_code, answer.json()) == (200, {"results": ["recorded", "recorded"]})
        assert post(report).json() == {"results": ["known"]}
        assert post({**report, "url": "https://elsewhere.example/"}).json()["results"] == [
            "recorded"
        ]
        # By a second reporter's secret.
        other = post({"source": "x", "key_hash": "none"}, secret=SECRET.replace("M", "N"))
        assert other.json() == {"results": ["unknown"]}
    (_, _, org, meta), (by_prefix, *_), _ = events(conn, "api_key.leaked")
    assert (org, by_prefix, meta["source"]) == ("o", "p", "scanner")
    assert meta["place"] == "https://git.example/repo/blob/a.env"
    activity = meta["activity"]
    assert (activity["events"], activity["actions"]) == (2, {"report.made": 2})
    assert (activity["networks"], activity["runs"]) == (["192.0.2.0/24"], 0)
    whole = conn.execute(
        "select string_agg(l::text, '') from pgaudit_wf.security_audit_log as l"
    ).fetchone()
    assert whole is not None
    for secret in (digest, "xyz", "bot:pw"):
        assert secret not in whole[0] + caplog.text


def test_what_is_not_signed_or_not_a_report_is_refused(conn: Conn, login: str) -> None:
    add_key(conn, "k")
    good = {"source": "s", "prefix": "kh_k"}
    with intake(login) as post:
        for answer in (
            post(good, secret=SECRET.replace("M", "O")),
            post(good, at=time.time() - 301),
            post(good, at=time.time() + 301),
            post(good, **{"webhook-id": "msg_2"}),
            post(good, **{"webhook-timestamp": str(int(time.time()) + 1)}),
            post(good, **{"webhook-timestamp": "²"}),
            post(good, **{"webhook-signature": ""}),
            post(good, **{"webhook-signature": "v1,é"}),
        ):
            assert answer.status_code == 401
        assert post(b"x" * 70_000).status_code == 413
        bad: list[object] = [
            b"{", b"\xff", b"[" * 5000, [], [good] * 101, 3, None, {}, {**good, "key": "kh_secret"},
            {**good, "key_hash": "x"}, {"source": "s"}, {**good, "prefix": ""}, {**good, "url": 3},
            {**good, "source": "\n"}, {**good, "url": "\0"}, {**good, "prefix": "\ud800"},
            {**good, "found_at": "2026-01-01"}, {**good, "found_at": "soon"}, {"prefix": "kh_k"},
            {**good, "url": "x" * 2049},
        ]  # fmt: skip
        for body in bad:
            answer = post(body)
            assert answer.status_code == 422, body
            assert "kh_secret" not in answer.text
        assert events(conn) == []
        assert post(good).json() == {"results": ["recorded"]}
        conn.execute("alter function pgaudit_wf._report_leaked_key rename to gone")
        answer = post(good)
        assert (answer.status_code, "kh_k" in answer.text) == (503, False)
    with pytest.raises(ValueError, match="at least one secret"):
        create_leak_intake(ConnectionPool(login, open=False), [])


def test_the_intake_by_itself(
    conn: Conn, login: str, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    add_key(conn, "k")
    monkeypatch.delenv("PGAUDIT_WF_LEAK_SECRET", raising=False)
    missing = command(capfd, "keys", "intake", "-d", login)
    assert (missing.code, "PGAUDIT_WF_LEAK_SECRET" in missing.err) == (2, True)
    monkeypatch.setenv("PGAUDIT_WF_LEAK_SECRET", "whsec_hunter2")
    wrong = command(capfd, "keys", "intake", "-d", login)
    assert (wrong.code, "hunter2" in wrong.err) == (2, False)
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv("PGAUDIT_WF_LEAK_SECRET_FILE", str(tmp_path / "secret"))
    words = [str(PROGRAM), "keys", "intake", "--port", "0", "-d", login]
    log = tmp_path / "log"
    with log.open("w") as to, subprocess.Popen(words, stderr=to) as process:
        try:
            wait_until(lambda: "running on http" in log.read_text())
            address = re.findall(r"http://[\d.:]+", log.read_text())[0]
            body = json.dumps({"source": "s", "prefix": "kh_k"}).encode()
            headers = sign((signing_key(SECRET),), "msg", int(time.time()), body)
            request = urllib.request.Request(f"{address}/", body, headers)
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert json.load(answer) == {"results": ["recorded"]}
        finally:
            process.terminate()
    assert found(conn) == {("k", "leaked")}
