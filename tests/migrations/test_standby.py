"""A hot standby: what can be read on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgaudit_wf.dev.binaries import OLDEST_MAJOR, find_binaries
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.integrity.note import SigningKey
from pgaudit_wf.integrity.seal import Sealer
from pgaudit_wf.schema.migrate import migrate
from pgaudit_wf.trail import read_log
from support.asserting import wait_until
from support.command import command
from support.server import Conn

pytestmark = pytest.mark.slow

KEY = SigningKey.generate("example.com/audit")


@pytest.fixture(scope="module")
def primary() -> Iterator[DevServer]:
    with DevServer(find_binaries(OLDEST_MAJOR)) as running:
        migrate(running.dsn(), with_app_schema=True)
        yield running


@pytest.fixture(scope="module")
def standby(primary: DevServer) -> Iterator[DevServer]:
    with DevServer(primary.binaries) as server:
        server.follow(primary)
        yield server


def replayed(conn: Conn, standby: Conn) -> None:
    (position,) = conn.execute("select pg_current_wal_insert_lsn()").fetchone() or (None,)
    wait_until(
        lambda: (
            standby.execute("select pg_last_wal_replay_lsn() >= %s", [position]).fetchone()
            == (True,)
        )
    )


def record(conn: Conn, name: str, events: int) -> None:
    for number in range(events):
        conn.execute("select pgaudit_wf.record_event('key.made', 'key', %s)", [f"{name} {number}"])


def read(conn: Conn, cursor: str | None) -> tuple[str | None, list[str | None]]:
    batch = read_log(conn, cursor)
    return batch.cursor, [event.resource_id for event in batch.events]


FLOW = "5ac64f2c-9c0b-4a5c-8f0a-6f7c1fd4a1b2"
COMMANDS = (
    ["doctor"], ["status"], ["log", "-n", "2"], ["history", "WORKFLOW"], ["show", "WORKFLOW"],
    ["validate", "WORKFLOW"], ["row", "public.workflow", "WORKFLOW"], ["api-keys"],
    ["limits", "list"], ["alerts", "list"], ["alerts", "rules"], ["checkpoint", "show"],
    ["verify", "--key", "KEY"], ["prove", "1"], ["reconcile"],
)  # fmt: skip


def test_a_standby_can_be_read(
    primary: DevServer,
    standby: DevServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGAUDIT_WF_SPOOL", str(tmp_path / "spool"))
    names = {"WORKFLOW": FLOW, "KEY": tmp_path / "key"}
    (tmp_path / "key").write_text(f"{KEY.verifier}\n")
    with (
        psycopg.connect(primary.dsn(), autocommit=True) as there,
        psycopg.connect(standby.dsn(), autocommit=True) as here,
    ):
        there.execute("insert into organization (id, name) values ('o_1', 'Acme')")
        there.execute("insert into app_user (id, email) values ('u_1', 'a@x.example')")
        there.execute(
            "insert into workflow (id, org_id, user_id, name) values (%s, 'o_1', 'u_1', 'w')",
            [FLOW],
        )
        Sealer(KEY).run(there)
        replayed(there, here)
        failed = {}
        for arguments in COMMANDS:
            given = [names.get(one, one) for one in arguments]
            done = command(capsys, *given, "--database", standby.dsn())
            if done.code:
                failed[" ".join(arguments)] = (done.code, done.err or done.out)
        assert failed == {}
        # That somebody took the trail along is an event of it.
        export = command(capsys, "export", "-o", tmp_path / "out", "--database", standby.dsn())
        assert (export.code, "run it on the primary" in export.err) == (1, True)
        for (view,) in here.execute(
            "select oid::regclass::text from pg_class"
            " where relnamespace = 'pgaudit_wf'::regnamespace and relkind = 'v'"
        ).fetchall():
            here.execute(f"select * from {view}")


def test_a_standby_that_was_promoted_says_so(primary: DevServer, standby: DevServer) -> None:
    """The last one: it is no standby any more."""
    with psycopg.connect(primary.dsn(), autocommit=True) as there:
        Sealer(KEY).run(there)
        with psycopg.connect(standby.dsn(), autocommit=True) as here:
            replayed(there, here)
            here.execute("select pg_promote()")
            Sealer(KEY).run(here)
            [(diff,)] = here.execute(
                "select diff from pgaudit_wf.security_audit_log where action = 'audit.restored'"
            ).fetchall()
    assert [(op["path"], op["value"]) for op in diff] == [("/timeline", "00000002")]
