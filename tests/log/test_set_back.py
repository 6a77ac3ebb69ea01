"""A log that was set back, by a restore or a failover that lost commits, gives ids again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.errors import LogSetBackError, SealError
from pgaudit_wf.integrity.note import SigningKey
from pgaudit_wf.integrity.seal import Sealer
from pgaudit_wf.schema.migrate import migrate
from pgaudit_wf.trail.reads import follow_trail, latest_trail, read_log
from support.copied import catch_up, copy_files, cut_off, follow, halt
from support.server import Conn
from support.tampering import unlock

KEY = SigningKey("example.com/audit", bytes(range(32)))


@dataclass
class Follower:
    """Somebody outside of the database who keeps a cursor and what was read up to it."""

    cursor: str | None
    seen: list[tuple[int, str]]

    def read(self, conn: Conn) -> None:
        while events := read_log(conn, self.cursor, 3).events:
            self.seen += [(event.id, str(event.occurred_at)) for event in events]
            self.cursor = events[-1].cursor


@pytest.fixture(scope="module")
def primary(server: DevServer) -> Iterator[DevServer]:
    with DevServer(server.binaries, {"synchronous_commit": "on"}) as running:
        yield running


@pytest.fixture(scope="module")
def installed(primary: DevServer) -> DevServer:
    migrate(primary.dsn())
    with psycopg.connect(primary.dsn(), autocommit=True) as conn:
        conn.execute("create table t (id bigint generated always as identity primary key)")
        conn.execute("select pgaudit_wf.attach('t')")
        conn.execute(
            "insert into pgaudit_wf.alert_rule (action_pattern, channel, audience, address)"
            " values ('t.*', 'log', 'address', 'stream')"
        )
    return primary


def write(conn: Conn, count: int) -> None:
    for _ in range(count):
        conn.execute("insert into t default values")


def logged(conn: Conn) -> list[tuple[int, int, str]]:
    return [
        (number, tx_id, str(at))
        for number, tx_id, at in conn.execute(
            "select id, tx_id, occurred_at from pgaudit_wf.security_audit_log order by tx_id, id"
        )
    ]


def message_keys(conn: Conn) -> set[str]:
    conn.execute("select pgaudit_wf.enqueue_alerts()")
    keys = set()
    while claimed := conn.execute(
        "select message, attempt, message_key from pgaudit_wf.claim_alert()"
    ).fetchone():
        message, attempt, key = claimed
        conn.execute("select pgaudit_wf.settle_alert(%s, %s)", [message, attempt])
        keys.add(key)
    return keys


def resume(error: LogSetBackError) -> str:
    found = re.search(r'"(.+)"', error.hint or "")
    assert found
    return found[1]


def test_ids_that_a_restored_copy_gives_again_are_told_apart(
    installed: DevServer, tmp_path: Path
) -> None:
    state = tmp_path / "checkpoint"
    behind, ahead, at_the_end = (Follower(None, []) for _ in range(3))
    with psycopg.connect(installed.dsn(), autocommit=True) as conn:
        at_the_start = latest_trail(conn, 0).cursor
        write(conn, 5)
        behind.read(conn)
        Sealer(KEY, state=state).step(conn)
        kept_keys = message_keys(conn)
    halt(installed)
    backup = installed.socket_dir / "backup"
    copy_files(installed.data_dir, backup)
    installed.start()
    with psycopg.connect(installed.dsn(), autocommit=True) as conn:
        write(conn, 4)
        ahead.read(conn)
        at_the_end.cursor = latest_trail(conn, 0).cursor
        Sealer(KEY, state=state).step(conn)
        lost_keys = message_keys(conn)
        lost = logged(conn)
        # Within one snapshot, what came later is not there yet, and nothing was set back.
        with psycopg.connect(installed.dsn()) as old:
            old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            old.execute("select")
            write(conn, 1)
            later = latest_trail(conn, 0).cursor
            assert follow_trail(old, later).entries == ()
    halt(installed)
    copy_files(backup, installed.data_dir)
    installed.start()
    with psycopg.connect(installed.dsn(), autocommit=True) as conn:
        with pytest.raises(LogSetBackError):
            read_log(conn, ahead.cursor)
        write(conn, 7)
        again = logged(conn)
        # The same numbers, other events.
        assert [row[:2] for row in again[:9]] == [row[:2] for row in lost[:9]]
        assert [row[2] for row in again[5:9]] != [row[2] for row in lost[5:9]]

        for follower in (ahead, at_the_end):
            with pytest.raises(LogSetBackError, match="is no longer in the log") as caught:
                read_log(conn, follower.cursor)
            assert caught.value.sqlstate == "PA012"
            follower.cursor, follower.seen = resume(caught.value), behind.seen[:]
        with pytest.raises(LogSetBackError):
            follow_trail(conn, later)
        all_of_it = [(number, at) for number, _, at in again]
        for follower in (behind, ahead, at_the_end):
            follower.read(conn)
            assert follower.seen == all_of_it
        # Two tell how the log was set up.
        assert len(read_log(conn, at_the_start).events) == len(again) - 2

        new_keys = message_keys(conn)
        assert (len(kept_keys), len(lost_keys), len(new_keys)) == (5, 4, 7)
        assert not new_keys & (kept_keys | lost_keys)
        with pytest.raises(
            SealError, match=r"of 11 leaves that was signed at .* restored to a time"
        ):
            Sealer(KEY, state=state).step(conn)


def test_a_failover_without_the_last_commits_is_noticed(
    installed: DevServer, server: DevServer
) -> None:
    follower = Follower(None, [])
    with DevServer(server.binaries) as standby:
        follow(standby, installed)
        with psycopg.connect(installed.dsn(), autocommit=True) as conn:
            write(conn, 3)
            catch_up(standby, installed)
            cut_off(standby)
            kept = len(logged(conn))
            write(conn, 2)
            follower.read(conn)
        with psycopg.connect(standby.dsn(), autocommit=True) as conn:
            # Behind, as any standby may be.
            assert read_log(conn, follower.cursor).events == ()
            conn.execute("select pg_promote()")
            for _ in range(2):
                with pytest.raises(LogSetBackError) as caught:
                    read_log(conn, follower.cursor)
                write(conn, 4)
            after = Follower(resume(caught.value), follower.seen[:kept])
            after.read(conn)
            assert after.seen == [(number, at) for number, _, at in logged(conn)]
            assert len(after.seen) == kept + 8
            assert not conn.execute("select from pgaudit_wf.doctor()").fetchall()


def test_a_reader_in_the_database_goes_on_where_its_event_was_removed(conn: Conn) -> None:
    """It is set back with the log; and whoever removes an event must not stop sealing by that."""
    conn.execute("select pgaudit_wf.record_event('x.first'), pgaudit_wf.record_event('x.second')")
    Sealer(KEY).step(conn)
    (cursor,) = conn.execute("select cursor from pgaudit_wf.reader").fetchone() or ("",)
    unlock(conn)
    conn.execute("delete from pgaudit_wf.security_audit_log where action = 'x.second'")
    conn.execute("select pgaudit_wf.record_event('x.third')")
    assert Sealer(KEY).step(conn).events == 1
    with pytest.raises(psycopg.Error, match="is no longer in the log"):
        conn.execute("select pgaudit_wf.read_log(%s)", [cursor])


def as_reader(conn: Conn, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run a statement as the owner of organization a, who may read its events and no others."""
    with conn.transaction():
        conn.execute("set local app.org_id = 'a'; set local app.actor_id = 'ana'")
        conn.execute("set local role pgaudit_wf_reader")
        return conn.execute(statement.encode(), parameters).fetchall()


def test_a_reader_of_one_organization_goes_on_without_a_word_of_others(conn: Conn) -> None:
    conn.execute(
        "create or replace view pgaudit_wf.org_member as"
        " select 'a'::text as org_id, 'ana'::text as actor_id, 'owner'::text as role"
    )

    def record(org: str, at: str = "clock_timestamp()", tx_id: int | None = None) -> int:
        row = conn.execute(
            "insert into pgaudit_wf.security_audit_log (org_id, action, occurred_at, tx_id)"
            f" values ('{org}', 'x', {at}, coalesce(%s::bigint, txid_current())) returning id",
            [tx_id],
        ).fetchone()
        assert row
        return int(row[0])

    def read(after: str | None) -> list[tuple[Any, ...]]:
        return as_reader(conn, "select cursor, (event).id from pgaudit_wf.read_log(%s)", after)

    kept, lost = record("a"), record("a")
    (_, _), (cursor, _) = read(None)
    record("b")
    [(end,)] = as_reader(conn, "select pgaudit_wf._log_end()")
    others = conn.execute(
        "select tx_id::text, id::text, extract(epoch from occurred_at)::text"
        " from pgaudit_wf.security_audit_log where org_id = 'b'"
    ).fetchone()
    assert others
    assert not {*others} & {*end.split("/")[2:]}
    assert read(end) == []

    unlock(conn)
    conn.execute("delete from pgaudit_wf.security_audit_log where id = %s", [lost])
    with pytest.raises(psycopg.Error) as caught:
        read(cursor)
    assert caught.value.sqlstate == "PA012"
    hint = caught.value.diag.message_hint or ""
    assert not any(re.search(rf"\b{re.escape(other)}\b", hint) for other in others)
    [went_on] = re.findall(r'"(.+)"', hint)
    assert went_on.split("/")[3] == str(kept)
    assert read(went_on) == []

    # Set back to before the end that was reached, transactions come again, at a later time.
    before = int(end.split("/")[2]) - 1
    record("b", tx_id=before)
    assert read(end) == []
    again = record("a", tx_id=before)
    assert [number for _, number in read(went_on)] == [again]
    for reader in (read, lambda after: read_log(conn, after)):
        with pytest.raises((psycopg.Error, LogSetBackError), match="is no longer in the log"):
            reader(end)

    # A clock that was set back is no such thing.
    record("a", at="clock_timestamp() + interval '1 hour'")
    [(end,)] = as_reader(conn, "select pgaudit_wf._log_end()")
    assert read(end) == []
    assert read_log(conn, end).events == ()
    new = record("a")
    assert [number for _, number in read(end)] == [new]
