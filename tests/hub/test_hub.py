"""Two nodes and a hub: each event once, in an order that a follower can go by."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from typer.testing import CliRunner, Result

from pgaudit_wf.cli import app
from pgaudit_wf.dev.binaries import OLDEST_MAJOR, find_binaries
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.errors import HubError
from pgaudit_wf.hub import add_node, node_status, remove_node
from pgaudit_wf.integrity.note import SigningKey
from pgaudit_wf.integrity.seal import Sealer
from pgaudit_wf.integrity.verify import verify
from pgaudit_wf.schema.migrate import migrate

pytestmark = pytest.mark.slow

Conn = psycopg.Connection[Any]

_SETTINGS = {
    "wal_level": "logical", "synchronous_commit": "on", "wal_retrieve_retry_interval": "200ms",
}  # fmt: skip


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def connect(dsn: str) -> Conn:
    return psycopg.connect(dsn, autocommit=True)


def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@dataclass
class Field:
    """Nodes a and b in one server, the hub in another; b's database has a quote in its name."""

    nodes: DevServer
    center: DevServer
    names: dict[str, str] = field(default_factory=lambda: {"a": "node_a", "b": "b\"'x"})

    def node(self, name: str) -> str:
        return self.nodes.dsn(self.names[name])

    @property
    def hub(self) -> str:
        return self.center.dsn("hub")

    def count(self, dsn: str, name: str | None = None) -> int:
        with connect(dsn) as conn:
            (count,) = conn.execute(
                "select count(*) from pgaudit_wf.security_audit_log"
                " where %s::text is null or pgaudit_wf.event_node(id) = %s",
                [name, name],
            ).fetchone() or (0,)
        return int(count)

    def caught_up(self) -> bool:
        return all(self.count(self.hub, name) == self.count(self.node(name)) for name in self.names)


@pytest.fixture
def field_() -> Iterator[Field]:
    with (
        DevServer(find_binaries(OLDEST_MAJOR), _SETTINGS) as nodes,
        DevServer(find_binaries(), _SETTINGS) as center,
    ):
        field = Field(nodes, center)
        for server, name in (
            (center, "hub"), *((nodes, name) for name in field.names.values())
        ):  # fmt: skip
            with connect(server.dsn()) as admin:
                admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
            migrate(server.dsn(name))
        for name in field.names:
            with connect(field.node(name)) as conn:
                conn.execute(
                    "create table t (id bigint generated always as identity primary key, v int);"
                    "select pgaudit_wf.attach('t')"
                )
                # From before.
                conn.execute("insert into t (v) select generate_series(1, 5)")
        yield field


def follow(conn: Conn, count: int = 50) -> list[tuple[int, int]]:
    """Return the next events: id, and the number of the hub's transaction."""
    with conn.transaction():
        found = conn.execute(
            "select cursor, (event).id, (event).tx_id from pgaudit_wf.read_as('mine', %s)", [count]
        ).fetchall()
        if found:
            conn.execute(
                "select pgaudit_wf.advance_reader('mine', %s, %s)", [found[-1][0], len(found)]
            )
    return [(number, tx) for _, number, tx in found]


def write(dsn: str, writer: int, stop: threading.Event, most: int = 10_000) -> None:
    """Write transactions of three events each, again after the server was away."""
    for _ in range(most):
        if stop.is_set():
            return
        try:
            with connect(dsn) as conn:
                while not stop.is_set():
                    with conn.transaction():
                        for _ in range(3):
                            conn.execute("insert into t (v) values (%s)", [writer])
        except psycopg.Error:
            time.sleep(0.1)


def what_is_in_the_way_is_said(field_: Field) -> None:
    with connect(field_.hub) as hub:
        with pytest.raises(HubError, match="the node is the hub itself"):
            add_node(hub, "self", field_.hub)
        with connect(field_.node("a")) as node:
            node.execute("create table elsewhere (id int)")
            node.execute("create publication pgaudit_wf_hub for table elsewhere")
            with pytest.raises(HubError, match="it belongs to a hub"):
                add_node(hub, "a", field_.node("a"))
            node.execute("drop publication pgaudit_wf_hub")
            node.execute("create role nobody login")
        with pytest.raises(psycopg.Error):
            add_node(hub, "a", field_.nodes.dsn("node_a", "nobody"))
        assert hub.execute("select from pgaudit_wf.hub_node").fetchall() == []
    # Refused by the hub's server, with the whole address in its hands.
    with connect(field_.node("a")) as node:
        shown = invoke(
            "hub", "add", "a", f"{field_.node('a')}&password=s3cret&options=-cx%3Dy", "-d",
            field_.hub,
        )  # fmt: skip
        assert shown.exit_code != 0
        assert "s3cret" not in shown.output
        assert node.execute("select from pg_replication_slots").fetchall() == []
    assert "s3cret" not in field_.center.log_file.read_text()
    assert "s3cret" not in field_.nodes.log_file.read_text()


def each_event_of_each_node_is_read_once(field_: Field) -> None:
    with connect(field_.hub) as hub:
        assert [add_node(hub, name, field_.node(name)) for name in field_.names] == [1, 2]
    wait(field_.caught_up)
    stop = threading.Event()
    writers = [
        threading.Thread(target=write, args=[field_.node(name), writer, stop])
        for name in field_.names
        for writer in range(2)
    ]
    for writer in writers:
        writer.start()
    read: list[tuple[int, int]] = []
    try:
        read += _follow_for(field_, 0.7)
        # The nodes' server, then the hub's, die and come back.
        for server in (field_.nodes, field_.center):
            server.kill()
            server.restart()
            read += _follow_for(field_, 0.7)
        # A month that neither the hub nor, so far, the node has.
        with connect(field_.node("a")) as node:
            node.execute("select pgaudit_wf.add_log_partition('2031-09-01')")
            node.execute(
                "insert into pgaudit_wf.security_audit_log (occurred_at, action)"
                " values ('2031-09-05', 'x.month'), ('2032-09-05', 'x.month')"
            )
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    wait(field_.caught_up)
    read += _follow_for(field_, 0)
    with connect(field_.hub) as hub:
        there = hub.execute(
            "select id, pgaudit_wf.event_node(id), tx_id from pgaudit_wf.security_audit_log"
        ).fetchall()
        months = hub.execute(
            "select count(*) from pgaudit_wf.audit_trail(action => 'x.month')"
        ).fetchone()
    assert sorted(number for number, _ in read) == sorted(number for number, _, _ in there)
    assert len({number for number, _, _ in there}) == len(there)
    assert {name for _, name, _ in there} == set(field_.names)
    assert months == (2,)
    shown = invoke("log", "--action", "x.month", "--json", "-d", field_.hub)
    assert shown.exit_code == 0
    assert shown.stdout.count("x.month") == 2
    for number, name in enumerate(field_.names, 1):
        with connect(field_.node(name)) as node:
            sent = node.execute("select id, tx_id from pgaudit_wf.security_audit_log").fetchall()
        base = number << 44
        assert {i | base for i, _ in sent} == {i for i, of, _ in there if of == name}
        # Those from before came in one transaction.
        together: dict[int, set[int]] = {}
        arrived = {i: tx for i, _, tx in there}
        for i, tx in sent:
            if i >= base:
                together.setdefault(tx, set()).add(arrived[i])
        assert all(len(txs) == 1 for txs in together.values())
        assert len({tx for txs in together.values() for tx in txs}) == len(together)


def what_arrived_is_sealed(field_: Field) -> None:
    key = SigningKey.generate("example.com/hub")
    with connect(field_.node("a")) as node:
        # A node that was away.
        node.execute(
            "insert into pgaudit_wf.security_audit_log (occurred_at, action)"
            " values (now() - interval '7 days', 'x.late')"
        )
    wait(field_.caught_up)
    with connect(field_.hub) as hub:
        Sealer(key).run(hub)
        report = verify(hub, [key.verifier])
        assert report.problems == []
        assert (report.events, report.unsealed) == (field_.count(field_.hub), 0)


def _follow_for(field: Field, seconds: float) -> list[tuple[int, int]]:
    """Follow for a time; at least that, and to the end, if nobody writes."""
    read: list[tuple[int, int]] = []
    deadline = time.monotonic() + seconds
    with connect(field.hub) as conn:
        while (found := follow(conn)) or time.monotonic() < deadline:
            read += found
            if seconds and time.monotonic() > deadline:
                break
            time.sleep(0.005)
    return read


def the_hub_is_well_and_says_what_is_not(field_: Field) -> None:
    healthy: LiteralString = "select subject, problem from pgaudit_wf.doctor()"
    with connect(field_.hub) as hub:
        wait(lambda: all(status.state == "on" for status in node_status(hub)))
        assert [(status.number, status.name) for status in node_status(hub)] == [(1, "a"), (2, "b")]
        assert all(status.held_bytes for status in node_status(hub))
        problems = [row for row in hub.execute(healthy).fetchall() if "log_default" not in str(row)]
        assert problems == []
        hub.execute("alter subscription pgaudit_wf_hub_1 disable")
        shown = invoke("hub", "status", "-d", field_.hub)
        assert shown.exit_code == 1
        assert "its subscription is disabled" in shown.output
        hub.execute("alter subscription pgaudit_wf_hub_1 enable")
        hub.execute("create table mine (id int primary key)")
        with pytest.raises(psycopg.Error) as caught:
            hub.execute("select pgaudit_wf.attach('mine')")
        assert caught.value.sqlstate == "PA013"
        # As restored from a dump elsewhere.
        with hub.transaction(force_rollback=True):
            hub.execute("update pgaudit_wf.hub_node set hub_cluster = 1")
            with pytest.raises(psycopg.Error) as caught, hub.transaction():
                hub.execute("select pgaudit_wf.read_log()")
        assert caught.value.sqlstate == "PA013"
        # It is not a switch-over, and nothing here can make it one.
        with pytest.raises(psycopg.Error) as caught:
            hub.execute("select pgaudit_wf.finish_switchover()")
        assert caught.value.sqlstate == "PA011"
        with pytest.raises(psycopg.Error) as caught:
            hub.execute("delete from pgaudit_wf.security_audit_log")
        assert caught.value.sqlstate == "PA001"
        # What sets the role of a replica is not taken for a node.
        hub.execute("set session_replication_role = replica")
        (number,) = hub.execute(
            "insert into pgaudit_wf.security_audit_log (action) values ('x.own') returning id"
        ).fetchone() or (0,)
        assert number < 1 << 44


def a_node_that_is_added_again_sends_only_what_is_missing(field_: Field) -> None:
    before = field_.count(field_.hub, "b")
    with connect(field_.hub) as hub, connect(field_.node("b")) as node:
        assert remove_node(hub, "b") is None
        assert node.execute("select from pg_publication").fetchall() == []
        assert node.execute(
            "select from pg_replication_slots where database = current_database()"
        ).fetchall() == []  # fmt: skip
        node.execute("insert into t (v) select generate_series(1, 7)")
        assert add_node(hub, "b", field_.node("b")) == 2
        wait(field_.caught_up)
        assert field_.count(field_.hub, "b") == before + 7


def versions_come_and_a_workflow_of_two_nodes_is_refused(field_: Field) -> None:
    insert: LiteralString = (
        "insert into pgaudit_wf.workflow_history (workflow_id, version, source, change,"
        " content_hash) values (%s, 1, 'create', '{}', %s)"
    )
    with connect(field_.hub) as hub, connect(field_.node("a")) as a, connect(field_.node("b")) as b:
        a.execute(insert, ["w_1", "x"])
        a.execute(
            "insert into pgaudit_wf.version_label (workflow_id, version, label)"
            " values ('w_1', 1, 'first')"
        )
        b.execute(insert, ["w_2", "y"])
        wait(
            lambda: (
                hub.execute(
                    "select array_agg(workflow_id order by workflow_id)"
                    " from pgaudit_wf.workflow_history"
                ).fetchone()
                == (["w_1", "w_2"],)
            )
        )
        wait(lambda: hub.execute("select from pgaudit_wf.version_label").fetchall() != [])
        b.execute(insert, ["w_1", "other"])
        wait(lambda: any("applying fails" in str(s.problem) for s in node_status(hub)))
        assert "is here from another node" in field_.center.log_file.read_text()
        remove_node(hub, "b")
        add_node(hub, "b", field_.node("b"), versions=False)
        wait(field_.caught_up)


def a_node_that_is_gone_can_be_removed(field_: Field) -> None:
    field_.nodes.stop()
    with connect(field_.hub) as hub:
        assert {status.state for status in node_status(hub)} == {"away"}
        shown = invoke("hub", "remove", "a", "-d", field_.hub)
        assert shown.exit_code == 0
        assert "pg_drop_replication_slot('pgaudit_wf_hub_1')" in shown.output
        assert remove_node(hub, "b")
        assert node_status(hub) == []
        assert hub.execute("select from pg_subscription").fetchall() == []
        # What came stays, and is read on.
        assert field_.count(field_.hub, "a") > 0
        assert follow(hub) is not None
        with pytest.raises(HubError, match="there is no node a"):
            remove_node(hub, "a")


def test_nodes_and_a_hub(field_: Field) -> None:
    # One test, as each step goes on where the one before has left the servers.
    what_is_in_the_way_is_said(field_)
    each_event_of_each_node_is_read_once(field_)
    what_arrived_is_sealed(field_)
    the_hub_is_well_and_says_what_is_not(field_)
    a_node_that_is_added_again_sends_only_what_is_missing(field_)
    versions_come_and_a_workflow_of_two_nodes_is_refused(field_)
    a_node_that_is_gone_can_be_removed(field_)
