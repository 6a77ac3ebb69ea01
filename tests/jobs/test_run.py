"""All jobs in one process, and several of these processes: `pgaudit-wf run`."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.conninfo import make_conninfo

from pgaudit_wf.errors import JobSettingsError
from pgaudit_wf.integrity.note import SigningKey
from pgaudit_wf.jobs.service import Service, describe_error
from pgaudit_wf.jobs.settings import (
    JOBS,
    AlertsSettings,
    KeysSettings,
    MaintainSettings,
    RunSettings,
    SealSettings,
    StreamSettings,
    read,
)
from support.asserting import wait_until
from support.command import command
from support.server import Conn

PROGRAM = Path(sys.executable).with_name("pgaudit-wf")
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "contrib" / "deploy"


class Process:
    """A running process: its log, and what its health check answers."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        wait_until(lambda: self.lines("health check"))
        self._url = f"http://127.0.0.1:{self.lines('health check')[0]['port']}"

    def lines(self, message: str, job: str | None = None) -> list[dict[str, Any]]:
        """What it logged with this message, of a job or of all."""
        whole = self._log.read_text().rpartition("\n")[0]
        entries = [json.loads(line) for line in whole.splitlines()]
        return [e for e in entries if e["message"] == message and job in (None, e["job"])]

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"{self._url}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, sample: str) -> float | None:
        found = re.search(rf"^{re.escape(sample)} (.*)$", self.get("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else None

    def leads(self) -> list[str]:
        return [
            job
            for job in ("seal", "maintain")
            if self.metric(f'pgaudit_wf_job_leader{{job="{job}"}}') == 1
        ]


@contextmanager
def started(log: Path, *words: str, **variables: str) -> Iterator[Process]:
    """A process, by the command line that follows the program's name."""
    env = {**os.environ, **variables}
    with (
        log.open("w") as to,
        subprocess.Popen([str(PROGRAM), *words], stderr=to, text=True, env=env) as process,
    ):
        try:
            yield Process(process, log)
        finally:
            process.kill()


@pytest.fixture
def logins(app_conn: Conn) -> Iterator[dict[str, str]]:
    """The rights that docs/how-to/run-the-jobs.md gives each job's login, and no other."""
    page = (ROOT / "docs" / "how-to" / "run-the-jobs.md").read_text()
    (grants,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    suffix = app_conn.info.dbname
    names = {name: f"audit_{name}_{suffix}" for name in ("alerts", "keys", "jobs")}
    for name, own in names.items():
        grants = grants.replace(f"audit_{name}", own)
    app_conn.execute(grants.encode())
    try:
        yield names
    finally:
        for name in names.values():
            app_conn.execute(f"drop owned by {name}; drop role {name}".encode())


def test_two_replicas_with_logins_of_their_own(
    app_conn: Conn, app_dsn: str, logins: dict[str, str], tmp_path: Path
) -> None:
    conn = app_conn
    conn.execute("delete from pgaudit_wf.alert_rule")
    conn.execute(
        "insert into pgaudit_wf.alert_rule (action_pattern, channel, audience, address)"
        " values ('x.*', 'log', 'address', 'stream')"
    )
    (tmp_path / "seal.key").write_text(str(SigningKey.generate("example.com/x")))
    config = tmp_path / "run.toml"
    config.write_text(f"""
        database = "{make_conninfo(app_dsn, user=logins["jobs"])}"
        health_port = 0
        [alerts]
        database = "{make_conninfo(app_dsn, user=logins["alerts"])}"
        interval = 0.2
        channels = ["log"]
        [seal]
        key_file = "{tmp_path}/seal.key"
        interval = 0.2
        push = ["{tmp_path}/checkpoint"]
        [maintain]
        interval = 0.5
        archive = "{tmp_path}/archive"
        [keys]
        database = "{make_conninfo(app_dsn, user=logins["keys"])}"
        interval = 0.2
        """)

    def recorded(count: int) -> None:
        for _ in range(count):
            conn.execute("select pgaudit_wf.record_event('x.happened')")

    def state() -> tuple[int, int]:
        row = conn.execute(
            "select (select count(*) from pgaudit_wf.alert_delivery where state = 'sent'),"
            " (select count(*) from pgaudit_wf.log_leaf as l"
            "  join pgaudit_wf.security_audit_log as e on e.id = l.event_id"
            "  where e.action = 'x.happened')"
        ).fetchone()
        assert row
        return row[0], row[1]

    words = ("run", "--config", str(config))
    recorded(3)
    with started(tmp_path / "a", *words) as first:
        wait_until(
            lambda: first.get("/readyz") == (200, "alerts: ok\nseal: ok\nmaintain: ok\nkeys: ok\n")
        )
        wait_until(lambda: state() == (3, 3))
        assert first.leads() == ["seal", "maintain"]
        with started(tmp_path / "b", *words) as second:
            standing_by = "standing by: another process leads"
            wait_until(lambda: len(second.lines(standing_by)) == 2)
            wait_until(lambda: second.get("/readyz")[0] == 200)
            assert second.leads() == []
            # It has not done anything, which a monitor of the last success would take it for.
            assert second.metric('pgaudit_wf_job_runs_total{job="seal",result="succeeded"}') == 0

            first.process.kill()
            wait_until(lambda: second.leads() == ["seal", "maintain"])
            recorded(3)
            wait_until(lambda: state() == (6, 6))

            terminated = conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name like 'pgaudit-wf %' and datname = current_database()"
            ).fetchall()
            assert len(terminated) >= 3
            recorded(1)
            wait_until(lambda: state() == (7, 7))

            # One job fails; the others go on.
            conn.execute(f"revoke usage on schema pgaudit_wf from {logins['alerts']}".encode())
            ready = (
                "alerts: the last run failed: InsufficientPrivilege\n"
                "seal: ok\nmaintain: ok\nkeys: ok\n"
            )
            wait_until(lambda: second.get("/readyz") == (503, ready))

            def refused() -> list[dict[str, Any]]:
                lines = second.lines("run failed", "alerts")
                return [line for line in lines if line.get("sqlstate") == "42501"]

            wait_until(refused)
            assert refused()[0]["problem"] == "permission denied for schema pgaudit_wf"
            assert "run-the-jobs.md" in refused()[0]["hint"]
            assert second.get("/healthz") == (200, "alerts: ok\nseal: ok\nmaintain: ok\nkeys: ok\n")
            recorded(1)
            wait_until(lambda: state() == (7, 8))
            conn.execute(f"grant usage on schema pgaudit_wf to {logins['alerts']}".encode())

            second.process.send_signal(signal.SIGTERM)
            assert second.process.wait(20) == 0
            stopped = {line["job"] for line in second.lines("stopped")}
            assert stopped == {"alerts", "seal", "maintain", "keys"}
    # New months belong to the schema's owner, whoever makes them.
    owners = conn.execute(
        "select distinct pg_get_userbyid(relowner) from pg_class"
        " where relnamespace = 'pgaudit_wf'::regnamespace"
    ).fetchall()
    assert owners == [("pgaudit_wf_owner",)]


def test_once_does_what_is_due_and_says_what_failed(
    app_conn: Conn, app_dsn: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(capfd, "run", "-d", app_dsn, "--once", "--job", "maintain").code == 0
    # Another process leads: nothing is to do. The server notices only now that the first has ended.
    begin = "select pgaudit_wf._begin_job('lead maintain')"
    wait_until(lambda: app_conn.execute(begin).fetchone() == (True,))
    done = command(capfd, "run", "-d", app_dsn, "--once", "--job", "maintain")
    assert (done.code, "standing by" in done.err) == (0, True)
    app_conn.execute("alter function pgaudit_wf._begin_job rename to gone")
    failed = command(capfd, "run", "-d", app_dsn, "--once", "--job", "maintain")
    (line,) = [line for line in failed.err.splitlines() if "run failed" in line]
    assert (failed.code, json.loads(line)["hint"]) == (1, "run pgaudit-wf migrate on this database")
    app_conn.execute("alter function pgaudit_wf.gone rename to _begin_job")
    for job in ("seal", None):
        with pytest.raises(psycopg.Error, match="that only one process"):
            app_conn.execute("select pgaudit_wf._begin_job(%s)", [job])
    missing = command(capfd, "run", "-d", app_dsn, "--job", "seal")
    assert (missing.code, "seal.key_file" in missing.err) == (2, True)


def test_streams_run_where_they_are_asked_for(
    app_conn: Conn, app_dsn: str, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PGAUDIT_WF_STREAM_DIRECTORY", str(tmp_path))
    added = command(
        capfd, "stream", "add", "lake", "files", f"file://{tmp_path}/lake", "-d", app_dsn,
        "--set", "slice_seconds=1",
    )  # fmt: skip
    assert added.code == 0, added.err
    app_conn.execute("select pgaudit_wf.record_event('report.made', 'report', '1')")

    def arrived() -> bool:
        done = command(capfd, "run", "-d", app_dsn, "--once", "--job", "stream")
        assert done.code == 0, done.err
        return any((tmp_path / "lake").rglob("date=*/hour=*/*"))

    wait_until(arrived)


def test_a_stranger_cannot_keep_it_from_leading(app_conn: Conn, app_dsn: str) -> None:
    app_conn.execute("create role passer_by login")
    try:
        with psycopg.connect(app_dsn, user="passer_by", autocommit=True) as stranger:
            stranger.execute("select pg_advisory_lock(1885815925, 2)")
            leads = app_conn.execute("select pgaudit_wf._begin_job('lead seal')").fetchone()
        assert leads == (True,)
    finally:
        app_conn.execute("drop role passer_by")


SETTINGS = """
database = "service=a"
health_port = 1
jobs = ["seal"]
[smtp]
host = "mail"
port = 26
[seal]
interval = 3
key_file = "/k"
push = ["x", "y z"]
[maintain]
months_ahead = 5
"""


def test_settings_come_from_the_file_and_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(SETTINGS)
    found = read(path, {})
    assert (found.database, found.health_port, found.jobs) == ("service=a", 1, ("seal",))
    assert (found.seal.key_file, found.seal.push, found.seal.interval) == (
        Path("/k"), ("x", "y z"), 3,
    )  # fmt: skip
    assert found.variables == {"PGAUDIT_WF_SMTP_HOST": "mail", "PGAUDIT_WF_SMTP_PORT": "26"}
    above = {
        "PGAUDIT_WF_JOBS": "alerts maintain",
        "PGAUDIT_WF_SEAL_INTERVAL": "0.5",
        "PGAUDIT_WF_ARCHIVE": "s3://x",
        "PGAUDIT_WF_SMTP_HOST": "other",
    }
    found = read(path, above)
    assert (found.jobs, found.seal.interval) == (("alerts", "maintain"), 0.5)
    assert (found.maintain.archive, found.maintain.months_ahead) == ("s3://x", 5)
    assert found.variables["PGAUDIT_WF_SMTP_HOST"] == "other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[seal]\nkey = 'x'", "seal.key is not a setting; there are database, interval, key_file"),
        ("[seals]", "seals is not a setting"),
        ("seal = 1", "seal must be a table"),
        ("health_port = '1'", "health_port must be a number"),
        ("health_port = 99999", "health_port must be between 0 and 65535"),
        ("[alerts]\ninterval = nan", "alerts.interval must be between"),
        ("[alerts]\ninterval = true", "must not be true or false"),
        ("[alerts]\nchannels = 'log'", "must be a list of texts"),
        ("jobs = ['mow']", "mow given, but there are alerts, seal, maintain"),
        ("jobs = []", "none given"),
        ("database = 3", "database must be a text"),
        ("[smtp]\nhots = 'x'", "smtp.hots is not a setting"),
        ("database = 'hunter2", "is not valid TOML"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(JobSettingsError, match=message) as caught:
        read(path, {})
    assert "hunter2" not in str(caught.value)


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobSettingsError, match=r"^PGAUDIT_WF_SEAL_INTERVAL must be a number$"):
        read(None, {"PGAUDIT_WF_SEAL_INTERVAL": "hunter2"})
    with pytest.raises(JobSettingsError, match="cannot be read"):
        read(tmp_path / "none", {})


def test_a_job_that_waits_is_healthy() -> None:
    service = Service("x", stall_seconds=0.05)

    def job(_: Service) -> bool:
        return False

    thread = threading.Thread(target=service.run, args=[job], kwargs={"interval": 60})
    thread.start()
    wait_until(lambda: service.unready is None)
    with pytest.raises(AssertionError):
        wait_until(lambda: service.stalled, 0.3)
    service.stop()
    thread.join()


def test_errors_are_logged_without_values() -> None:
    described = describe_error(psycopg.OperationalError("password=hunter2"))
    assert "can be reached" in described["hint"]
    try:
        raise ValueError("hunter2")
    except ValueError as error:
        mistake = describe_error(error)
    assert __file__ in mistake["at"]
    assert "hunter2" not in f"{described}{mistake}"


# How it is started


def test_the_example_of_settings_is_valid() -> None:
    found = read(DEPLOY / "run.toml", {})
    assert (found.alerts.database, found.seal.interval) == ("service=audit_alerts", 5)


def test_every_setting_is_in_the_manual() -> None:
    page = (ROOT / "docs" / "how-to" / "run-the-jobs.md").read_text()
    for settings in (
        RunSettings,
        AlertsSettings,
        SealSettings,
        MaintainSettings,
        KeysSettings,
        StreamSettings,
    ):
        prefix = settings.__name__.removesuffix("Settings").lower()
        for each in fields(settings):
            name = each.name if settings is RunSettings else f"{prefix}.{each.name}"
            if name not in ("variables", *JOBS):
                assert f"`{name}`" in page, name


def test_the_container_starts_as_it_stands(app_conn: Conn, app_dsn: str, tmp_path: Path) -> None:
    """With what image and manifest set, but for the port; no image can be built here."""
    image = (DEPLOY / "Dockerfile").read_text()
    words = [
        word
        for instruction in ("ENTRYPOINT", "CMD")
        for word in json.loads(re.findall(rf"^{instruction} (.*)$", image, re.MULTILINE)[0])
    ]
    (text,) = re.findall(r"^ENV (.*)$", image, re.MULTILINE)
    variables = dict(word.split("=", 1) for word in shlex.split(text))
    deployment, budget = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert [*words[:1], *container["args"]] == words == ["pgaudit-wf", "run"]
    assert container["ports"][0]["containerPort"] == int(variables["PGAUDIT_WF_HEALTH_PORT"])
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]
    (tmp_path / "seal.key").write_text(str(SigningKey.generate("example.com/x")))
    given = {
        "PGAUDIT_WF_DATABASE": app_dsn,
        "PGAUDIT_WF_ALERTS_DATABASE": app_dsn,
        "PGAUDIT_WF_KEYS_DATABASE": app_dsn,
        "PGAUDIT_WF_SEAL_KEY_FILE": str(tmp_path / "seal.key"),
        "PGAUDIT_WF_ARCHIVE": str(tmp_path),
    }
    assert given.keys() == {variable["name"] for variable in container["env"]}
    port = {"PGAUDIT_WF_HEALTH_PORT": "0"}
    with started(tmp_path / "log", *words[1:], **{**variables, **given, **port}) as process:
        paths = [
            container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("liveness", "readiness")
        ]
        wait_until(lambda: [process.get(path)[0] for path in paths] == [200, 200])
        process.process.terminate()
        assert process.process.wait(20) == 0


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_the_unit_is_valid(tmp_path: Path) -> None:
    unit = tmp_path / "pgaudit-wf.service"
    text = (DEPLOY / "pgaudit-wf.service").read_text()
    unit.write_text(text.replace("/usr/local/bin/pgaudit-wf", str(PROGRAM)))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
