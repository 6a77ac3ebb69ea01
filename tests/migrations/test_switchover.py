"""From one cluster to another by logical replication: nothing stops, is doubled or skipped."""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from pgaudit_wf.dev.binaries import OLDEST_MAJOR, find_binaries
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.integrity.note import SigningKey
from pgaudit_wf.integrity.seal import Sealer
from pgaudit_wf.integrity.verify import verify
from pgaudit_wf.schema.migrate import migrate
from support.copied import copy_files, halt

pytestmark = pytest.mark.slow

Conn = psycopg.Connection[Any]

FINISH: LiteralString = "select pgaudit_wf.finish_switchover()"
EVENTS: LiteralString = "select id, tx_id, action from pgaudit_wf.security_audit_log order by id"
CAUGHT_UP: LiteralString = (
    "select confirmed_flush_lsn >= %s from pg_replication_slots where slot_name = %s"
)

KEY = SigningKey.generate("example.com/audit")

_number = itertools.count()


@pytest.fixture(scope="module")
def blue() -> Iterator[DevServer]:
    with DevServer(find_binaries(OLDEST_MAJOR), {"wal_level": "logical"}) as running:
        yield running


@pytest.fixture(scope="module")
def green() -> Iterator[DevServer]:
    settings = {"wal_level": "logical", "wal_retrieve_retry_interval": "300ms"}
    with DevServer(find_binaries(), settings) as running:
        yield running


@dataclass
class Pair:
    """A database on the old server, and one on the new that subscribes to it."""

    old: Conn
    new: Conn
    subscription: str

    def catch_up(self) -> None:
        (position,) = self.old.execute("select pg_current_wal_insert_lsn()").fetchone() or (None,)
        wait(
            lambda: self.old.execute(CAUGHT_UP, [position, self.subscription]).fetchone() == (True,)
        )


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def copy_schema(old: DevServer, new: DevServer, name: str) -> None:
    for program, arguments, target in (
        ("pg_dumpall", ["--roles-only", "-d", old.dsn()], new.dsn()),
        ("pg_dump", ["--schema-only", "-d", old.dsn(name)], new.dsn(name)),
    ):
        source = new if program == "pg_dump" else old
        dumped = subprocess.run(
            [str(source.bin(program)), *arguments], check=True, capture_output=True, text=True
        )
        # Roles that are there already, and compression that the server is built without.
        subprocess.run(
            [str(new.bin("psql")), "-X", "-q", "-d", target],
            input=dumped.stdout, capture_output=True, text=True, check=True,
        )  # fmt: skip


@pytest.fixture
def pair(blue: DevServer, green: DevServer, request: pytest.FixtureRequest) -> Iterator[Pair]:
    name = f"moved_{next(_number)}"
    for server in (blue, green):
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    migrate(blue.dsn(name))
    with (
        psycopg.connect(blue.dsn(name), autocommit=True) as old,
        psycopg.connect(green.dsn(name), autocommit=True) as new,
    ):
        old.execute("create table t (id bigint generated always as identity primary key, v int)")
        old.execute("select pgaudit_wf.attach('t')")
        copy_schema(blue, green, name)
        tables = getattr(request, "param", "for all tables")
        old.execute(f"create publication up {tables} with (publish_via_partition_root = true)")
        for value in range(40):
            old.execute("insert into t (v) values (%s)", [value])
        new.execute(f"create subscription {name} connection '{blue.dsn(name)}' publication up")
        wait(
            lambda: (
                not new.execute(
                    "select from pg_subscription_rel where srsubstate <> 'r'"
                ).fetchall()
            )
        )
        yield Pair(old, new, name)
        if new.execute("select from pg_subscription").fetchall():
            new.execute(f"drop subscription {name}")


def advance(conn: Conn, count: int) -> list[int]:
    with conn.transaction():
        found = conn.execute(
            "select cursor, (event).id from pgaudit_wf.read_as('mine', %s)", [count]
        ).fetchall()
        if found:
            conn.execute(
                "select pgaudit_wf.advance_reader('mine', %s, %s)", [found[-1][0], len(found)]
            )
    return [number for _, number in found]


def live(pair: Pair) -> None:
    """What happens to a log besides inserts, and in months that the subscriber does not have."""
    for statement in (
        "update t set v = v + 1 where id < 5",
        "delete from t where id = 6",
        "select pgaudit_wf.add_log_partition('2031-09-01')",
        "insert into pgaudit_wf.security_audit_log (occurred_at, action)"
        " values ('2031-09-05', 'x')",
        "insert into pgaudit_wf.version_policy (keep_days) values (99)"
        " on conflict (org_id) do update set keep_days = 99",
        "update pgaudit_wf.version_policy set keep_days = 98",
        "delete from pgaudit_wf.version_policy where org_id = 'nobody'",
        "insert into pgaudit_wf.security_audit_log (action, actor_id, actor_label)"
        " values ('x.done', 'u_1', 'Una')",
        "select pgaudit_wf.pseudonymise('u_1')",
        "truncate t",
        "insert into t (v) values (1)",
    ):
        pair.old.execute(statement.encode())
    pair.catch_up()


@pytest.mark.parametrize("late", [False, True])
def test_readers_go_on_where_they_were(pair: Pair, late: bool) -> None:
    read = advance(pair.old, 15)
    live(pair)
    before = pair.old.execute(EVENTS).fetchall()
    assert pair.new.execute(EVENTS).fetchall() == before
    written = 0
    for statement in (
        "select * from pgaudit_wf.read_log()",
        "select pgaudit_wf._note_configuration()",
        FINISH,
    ):
        with pytest.raises(psycopg.Error) as caught:
            pair.new.execute(statement.encode())
        assert caught.value.sqlstate == "PA011"
    pair.new.execute(f"drop subscription {pair.subscription}")
    if late:
        for value in range(12):
            pair.new.execute(
                "insert into t (id, v) overriding system value values (%s, %s)",
                [900 + value, value],
            )
        written = 12
    findings = pair.new.execute("select severity, remedy from pgaudit_wf.doctor()").fetchall()
    assert ("error", "select pgaudit_wf.finish_switchover();") in findings
    with pytest.raises(psycopg.Error) as caught:
        advance(pair.new, 100)
    assert caught.value.sqlstate == "PA011"
    assert pair.new.execute(FINISH.encode()).fetchone() == (written,)
    assert pair.new.execute(FINISH.encode()).fetchone() == (0,)
    for value in range(5):
        pair.new.execute("insert into t (v) values (%s)", [value])
    after = [number for number, _, _ in pair.new.execute(EVENTS).fetchall()]
    assert len(after) == len(set(after)) == len(before) + written + 5
    while found := advance(pair.new, 7):
        read += found
    assert sorted(read) == after
    assert not pair.new.execute(
        "select from pgaudit_wf.doctor() where severity = 'error'"
    ).fetchall()
    with pytest.raises(psycopg.Error) as caught:
        pair.new.execute("delete from pgaudit_wf.security_audit_log")
    assert caught.value.sqlstate == "PA001"


def record(conn: Conn, number: int, name: str) -> None:
    """Record events of a transaction, of its savepoints, and of a handler that catches errors."""
    with conn.transaction():
        conn.execute("select pgaudit_wf.record_event(%s)", [f"x.{name}"])
        with conn.transaction():
            conn.execute("select pgaudit_wf.record_event(%s)", [f"x.{name}_savepoint"])
    with conn.transaction():
        for _ in range(3):
            with conn.transaction(force_rollback=True):
                conn.execute("select pgaudit_wf.record_event('x.undone')")
        with conn.transaction(), conn.transaction():
            conn.execute("select pgaudit_wf.record_event(%s)", [f"x.{name}_only"])
    conn.execute("insert into warned values (%s)", [number])


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("young", [False, True])
def test_events_of_savepoints_are_told_from_those_that_came_along(
    pair: Pair, count: int, young: bool
) -> None:
    if young:
        # Transaction ids of the new server are far above those of the old one.
        for _ in range(3000):
            pair.new.execute("select pg_current_xact_id()")
    for side in (pair.old, pair.new):
        side.execute("create table warned (id int primary key)")
    pair.old.execute("select pgaudit_wf.attach('warned', on_failure => 'warn')")
    for number in range(5):
        record(pair.old, number, "old")
    read = advance(pair.old, 15)
    # Too early, before the old server's last events.
    with pair.new.transaction(), pair.new.transaction():
        pair.new.execute("select pgaudit_wf.record_event('x.early')")
    for number in range(5, 10):
        record(pair.old, number, "old")
    pair.catch_up()
    before = pair.old.execute(EVENTS).fetchall()
    pair.new.execute(f"drop subscription {pair.subscription}")
    pair.new.execute("select pgaudit_wf.attach('warned', on_failure => 'warn')")
    for number in range(count):
        record(pair.new, 100 + number, "late")
    written = len(pair.new.execute(EVENTS).fetchall()) - len(before)
    assert written > count * 4
    with pytest.raises(psycopg.Error) as caught:
        advance(pair.new, 100)
    assert caught.value.sqlstate == "PA011"
    finished = pair.new.execute(FINISH).fetchone()
    after = pair.new.execute(EVENTS).fetchall()
    assert set(before) <= set(after)
    assert len({number for number, _, _ in after}) == len(after)
    mine = [event for event in after if event not in set(before)]
    assert finished == (len(mine),)
    assert min(number for number, _, _ in mine) > max(number for number, _, _ in before)
    assert {action for _, _, action in mine if action.startswith("x.")} == {
        "x.early", "x.late", "x.late_savepoint", "x.late_only",
    }  # fmt: skip
    assert len(mine) == written
    record(pair.new, 900, "new")
    while found := advance(pair.new, 7):
        read += found
    assert sorted(read) == [number for number, _, _ in pair.new.execute(EVENTS).fetchall()]
    assert not pair.new.execute(
        "select from pgaudit_wf.doctor() where severity = 'error'"
    ).fetchall()


@pytest.mark.parametrize("pair", ["for table t"], indirect=True)
def test_a_subscriber_that_audits_for_itself_records_each_change_once(pair: Pair) -> None:
    pair.new.execute("select pgaudit_wf.attach('t')")
    pair.new.execute("refresh materialized view pgaudit_wf.log_origin")
    pair.old.execute("update t set v = v + 1 where id = 5")
    pair.old.execute("delete from t where id = 5")
    pair.catch_up()
    recorded = pair.new.execute(
        "select action from pgaudit_wf.security_audit_log where resource_id = '5' order by id desc"
    ).fetchall()
    assert recorded[:2] == [("t.deleted",), ("t.updated",)]
    assert [action for (action,) in recorded].count("t.deleted") == 1


def test_a_subscription_that_stands_still_is_named(pair: Pair) -> None:
    def findings() -> list[tuple[str, str]]:
        return pair.new.execute(
            "select problem, remedy from pgaudit_wf.doctor() where subject ~ 'subscription'"
        ).fetchall()

    assert findings() == []
    pair.new.execute(f"alter subscription {pair.subscription} disable")
    [(problem, remedy)] = findings()
    assert problem == "it is disabled, and nothing arrives"
    pair.new.execute(remedy.encode())
    wait(lambda: not findings())
    # In the way of what is to come.
    pair.new.execute("alter table t disable trigger all")
    pair.new.execute("insert into t (id, v) overriding system value values (41, 0)")
    pair.old.execute("insert into t (v) values (0)")
    wait(lambda: any("is failing" in problem for problem, _ in findings()))
    pair.new.execute("delete from t where id = 41")
    pair.catch_up()
    wait(lambda: not findings())


@pytest.fixture
def copied() -> Iterator[Pair]:
    """A copy of the old server's files subscribes to it, as hosted blue/green deployments do."""
    settings = {"wal_level": "logical", "wal_retrieve_retry_interval": "300ms"}
    with (
        DevServer(find_binaries(OLDEST_MAJOR), settings) as blue,
        DevServer(find_binaries(OLDEST_MAJOR), settings) as green,
    ):
        migrate(blue.dsn(), with_app_schema=True)
        with psycopg.connect(blue.dsn(), autocommit=True) as old:
            old.execute("insert into organization (id, name) values ('o_1', 'One')")
            old.execute("create table t (id bigint generated always as identity primary key,"
                        " v int); select pgaudit_wf.attach('t')")  # fmt: skip
            for value in range(40):
                old.execute("insert into t (v) values (%s)", [value])
            old.execute("create publication up for all tables"
                        " with (publish_via_partition_root = true)")  # fmt: skip
            old.execute("select pg_create_logical_replication_slot('up', 'pgoutput')")
        halt(blue)
        halt(green)
        copy_files(blue.data_dir, green.data_dir)
        blue.start()
        green.restart({"port": green.port})
        with (
            psycopg.connect(blue.dsn(), autocommit=True) as old,
            psycopg.connect(green.dsn(), autocommit=True) as new,
        ):
            new.execute("select pg_drop_replication_slot('up'); drop publication up")
            new.execute(
                f"create subscription up connection '{blue.dsn()}' publication up"
                " with (create_slot = false, copy_data = false)"
            )
            yield Pair(old, new, "up")
            if new.execute("select from pg_subscription").fetchall():
                new.execute("drop subscription up")


def save_workflow(conn: Conn, name: str) -> None:
    conn.execute(
        "insert into workflow (id, org_id, name, nodes, edges)"
        " values (gen_random_uuid(), 'o_1', %s, '[]', '[]')",
        [name],
    )


@pytest.mark.parametrize(("late", "ahead"), [(0, "old"), (3, "new"), (30, "old")])
def test_a_copy_of_the_files_is_recognized(copied: Pair, late: int, ahead: str) -> None:
    pair = copied
    read = advance(pair.old, 15)
    save_workflow(pair.old, "before")
    Sealer(KEY).run(pair.old)
    # Transaction ids, which the copy shares up to here.
    for _ in range(200):
        (pair.old if ahead == "old" else pair.new).execute("select pg_current_xact_id()")
    live(pair)
    before = pair.old.execute(EVENTS).fetchall()
    assert pair.new.execute(EVENTS).fetchall() == before
    pair.new.execute(f"drop subscription {pair.subscription}")
    for value in range(late):
        pair.new.execute(
            "insert into t (id, v) overriding system value values (%s, %s)", [900 + value, value]
        )
    findings = pair.new.execute("select severity, remedy from pgaudit_wf.doctor()").fetchall()
    assert ("error", FINISH + ";") in findings
    with pytest.raises(psycopg.Error) as caught:
        advance(pair.new, 100)
    assert caught.value.sqlstate == "PA011"
    assert pair.new.execute(FINISH.encode()).fetchone() == (late,)
    assert pair.new.execute(FINISH.encode()).fetchone() == (0,)
    for value in range(5):
        pair.new.execute("insert into t (v) values (%s)", [value])
    save_workflow(pair.new, "after")
    after = pair.new.execute(EVENTS).fetchall()
    assert set(before) <= set(after)
    assert len({number for number, _, _ in after}) == len(after) == len(before) + late + 6
    while found := advance(pair.new, 7):
        read += found
    assert sorted(read) == [number for number, _, _ in after]
    Sealer(KEY).run(pair.new)
    report = verify(pair.new, [KEY.verifier])
    assert report.problems == []
    sealed = len(pair.new.execute(EVENTS).fetchall())
    assert (report.events, report.versions, report.unsealed) == (sealed, 2, 0)
    assert not pair.new.execute(
        "select from pgaudit_wf.doctor() where severity = 'error'"
    ).fetchall()


def test_setting_the_replication_role_switches_nothing_off(conn: Conn) -> None:
    conn.execute("create table t (id int primary key)")
    conn.execute("select pgaudit_wf.attach('t')")
    conn.execute("set session_replication_role = replica")
    conn.execute("insert into t values (1)")
    assert conn.execute(
        "select action from pgaudit_wf.security_audit_log where resource_id = '1'"
    ).fetchall() == [("t.created",)]
    with pytest.raises(psycopg.Error) as caught:
        conn.execute("delete from pgaudit_wf.security_audit_log")
    assert caught.value.sqlstate == "PA001"
