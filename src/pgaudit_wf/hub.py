"""The hub: the logs of other databases in one, by PostgreSQL's logical replication.

A node's log goes through a publication, a slot and a subscription of fixed names; what the hub does
with what arrives is in `sql/core/20_log/55_hub.sql`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from prometheus_client import Gauge
from psycopg import sql
from psycopg.abc import Params
from psycopg.rows import namedtuple_row

from pgaudit_wf.errors import HubError
from pgaudit_wf.jobs.service import Service
from pgaudit_wf.trail.statement import Connection, one

__all__ = ["HubWatch", "NodeStatus", "add_node", "node_status", "remove_node"]

PUBLICATION = "pgaudit_wf_hub"
# Of the node numbers, and of the slot and subscription of one.
_MOST_NODES = 511
_CONNECT_SECONDS = 10
_SLOT_SECONDS = 20.0

_RELEASE: LiteralString = (
    "select coalesce(string_agg(c.migration_id || c.sha256, ',' order by c.migration_id), '')"
    " from pgaudit_wf_migration.checksum as c where c.migration_id !~ '[.]app[.]'"
)
_IDENTITY: LiteralString = "select system_identifier, current_database() from pg_control_system()"
# The address of a node has its password: no log of the server may have the statement.
_UNLOGGED: tuple[LiteralString, ...] = (
    "set log_statement = 'none'",
    "set log_min_error_statement = 'panic'",
    "set log_min_duration_statement = -1",
    "set log_min_duration_sample = -1",
    "set log_transaction_sample_rate = 0",
    "set log_duration = off",
    "set pg_stat_statements.track = 'none'",
    "set pgaudit.log = 'none'",
    "set auto_explain.log_min_duration = -1",
    "set track_activities = off",
)


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """How a node's log comes to the hub.

    `lag_bytes` is the WAL that the hub has yet to confirm, `lag_seconds` how long the last
    confirmation took; `held_bytes` is the WAL that the node keeps for the hub, `limit_bytes` the
    most that it keeps (None: as much as the disk has). All are None where the node did not answer.
    `problem` is None where all is well.
    """

    number: int
    name: str
    state: str
    lag_bytes: int | None = None
    lag_seconds: float | None = None
    held_bytes: int | None = None
    limit_bytes: int | None = None
    errors: int = 0
    problem: str | None = None
    remedy: str | None = None


def _rows(
    conn: Connection, statement: LiteralString, parameters: Params | None = None
) -> list[Any]:
    cursor: psycopg.Cursor[Any] = conn.cursor(row_factory=namedtuple_row)
    return cursor.execute(statement, parameters).fetchall()


def _name(number: int) -> str:
    return f"{PUBLICATION}_{number}"


@contextmanager
def _node(conninfo: str) -> Iterator[Connection]:
    with psycopg.connect(
        conninfo, autocommit=True, prepare_threshold=None, application_name="pgaudit-wf hub"
    ) as conn:
        yield conn


def _check_hub(hub: Connection) -> None:
    (is_superuser, in_recovery) = one(
        hub,
        "select (select rolsuper from pg_roles where rolname = current_user), pg_is_in_recovery()",
    )
    if in_recovery:
        raise HubError("the hub is a standby", hint="Name its primary by -d.")
    if not is_superuser:
        raise HubError(
            "on the hub, only a superuser may add and remove nodes",
            hint="Name a superuser by -d: a subscription is made, without its address in any log.",
        )


def _check_room(hub: Connection) -> None:
    (attached,) = one(hub, "select min(target::text) from pgaudit_wf.attachment")
    if attached is not None:
        raise HubError(
            f"the hub records a table of its own, {attached}",
            hint="Use a database for the hub alone, or detach its tables.",
        )
    (workers, origins, used) = one(
        hub,
        "select current_setting('max_logical_replication_workers')::int, coalesce("
        " current_setting('max_active_replication_origins', true),"
        " current_setting('max_replication_slots'))::int, (select count(*) from pg_subscription)",
    )
    # One more for the first copy.
    needed = used + 2
    for setting, value in (
        ("max_logical_replication_workers", workers),
        ("max_active_replication_origins (before 18: max_replication_slots)", origins),
    ):
        if value < needed:
            raise HubError(
                f"the hub's server has {value} as {setting}, and {needed} are needed",
                hint="Raise it in postgresql.conf, with max_worker_processes, and restart.",
            )


def _check_node(node: Connection, hub: Connection) -> None:
    if one(node, _IDENTITY) == one(hub, _IDENTITY):
        raise HubError("the node is the hub itself")
    settings = dict(
        node.execute(
            "select name, setting from pg_settings where name in"
            " ('wal_level', 'max_replication_slots', 'max_wal_senders')"
        ).fetchall()
    )
    if settings["wal_level"] != "logical":
        raise HubError(
            f"the node's server has wal_level = {settings['wal_level']}",
            hint="Set wal_level = logical in its postgresql.conf, and restart it.",
        )
    (there,) = one(node, "select to_regclass('pgaudit_wf.hub_node') is not null")
    if not there or one(node, _RELEASE) != one(hub, _RELEASE):
        raise HubError(
            "the node and the hub do not have the same release of the audit schema",
            hint="Run pgaudit-wf migrate on both.",
        )
    (slots, senders, is_owner, may_replicate, may_create, is_hub, is_published) = one(
        node,
        "select (select count(*) from pg_replication_slots),"
        " (select count(*) from pg_stat_replication),"
        " pg_has_role(c.relowner, 'usage'), r.rolsuper or r.rolreplication,"
        " has_database_privilege(current_database(), 'create'),"
        " exists (select from pgaudit_wf.hub_node where removed_at is null),"
        " exists (select from pg_publication where pubname = %s)"
        " from pg_class as c, pg_roles as r"
        " where c.oid = 'pgaudit_wf.security_audit_log'::regclass and r.rolname = current_user",
        [PUBLICATION],
    )
    if is_hub:
        raise HubError("the node is a hub", hint="Add its nodes to this hub instead.")
    if is_published:
        raise HubError(
            f"the node has a publication {PUBLICATION}: it belongs to a hub",
            hint=f"Remove it there, pgaudit-wf hub remove; if that hub is gone: drop publication"
            f" {PUBLICATION}, and its slot.",
        )
    if not (is_owner and may_replicate and may_create):
        raise HubError(
            "the node's login may not publish the log",
            hint="It must have REPLICATION, be a member of the log's owner, and have CREATE on the"
            " database.",
        )
    # The first copy takes one of each for every table.
    for setting, used in (("max_replication_slots", slots), ("max_wal_senders", senders)):
        if int(settings[setting]) < used + 2:
            raise HubError(
                f"the node's server has {settings[setting]} as {setting}, and {used} are in use",
                hint="Raise it in its postgresql.conf, and restart it.",
            )


def _choose_number(node: Connection, hub: Connection, name: str) -> int:
    (number,) = one(
        node, "select (last_value >> 44)::int from pgaudit_wf.security_audit_log_id_seq"
    )
    known = {
        row.name: row
        for row in _rows(hub, "select number, name, removed_at from pgaudit_wf.hub_node")
    }
    if name in known and known[name].removed_at is None:
        raise HubError(f"there is a node {name} already", hint="See pgaudit-wf hub status.")
    holder = next((entry for entry in known.values() if entry.number == number), None)
    if holder is not None and holder.removed_at is None:
        raise HubError(
            f"the log has number {number}, as {holder.name} has: one is a copy of the other",
            hint="A copy cannot be a node beside its original: ids of their events would be the"
            " same.",
        )
    if name in known and number not in (0, known[name].number):
        raise HubError(
            f"the log has number {number}, and {name} was number {known[name].number}",
            hint="Give it another name.",
        )
    if number:
        return int(number)
    if name in known:
        # Set back to before it had its number.
        return int(known[name].number)
    free = max((entry.number for entry in known.values()), default=0) + 1
    if free > _MOST_NODES:
        raise HubError(f"a hub has {_MOST_NODES} nodes at most")
    return free


def _check_workflows(node: Connection, hub: Connection, number: int) -> None:
    """Raise HubError where the node's workflows have ids that others on the hub have.

    Versions do not say their node; only a log that was here before may have the same.
    """
    if hub.execute("select from pgaudit_wf.hub_node where number = %s", [number]).fetchone():
        return
    with node.cursor("workflows") as cursor:
        cursor.execute("select distinct workflow_id from pgaudit_wf.workflow_history")
        while ids := [row[0] for row in cursor.fetchmany(5000)]:
            (there,) = one(
                hub,
                "select min(workflow_id) from pgaudit_wf.workflow_history"
                " where workflow_id = any (%s)",
                [ids],
            )
            if there is not None:
                raise HubError(
                    f'workflow "{there}" of the node is on the hub already, from another',
                    hint="Add it without its versions: --without-versions.",
                )


def add_node(hub: Connection, name: str, conninfo: str, *, versions: bool = True) -> int:
    """Let a database's log come to the hub, what it has already included.

    Args:
        hub: A connection in autocommit mode, to the hub, as a superuser.
        name: Name of the node.
        conninfo: How to reach it, from here and from the hub's server.
        versions: Whether versions of workflows come along.

    Returns:
        The node's number.

    Raises:
        HubError: Something is in the way; nothing is left behind.
        psycopg.Error: A server did not answer, or refused.
    """
    _check_hub(hub)
    _check_room(hub)
    with _node(conninfo) as node:
        _check_node(node, hub)
        number = _choose_number(node, hub, name)
        if versions:
            with node.transaction():
                _check_workflows(node, hub, number)
        with hub.transaction():
            hub.execute("select pgaudit_wf._become_hub()")
            hub.execute(
                "insert into pgaudit_wf.hub_node as n (number, name, hub_cluster)"
                " select %s, %s, o.system_identifier from pgaudit_wf.log_origin as o"
                " on conflict (number) do update set name = excluded.name, added_at = now(),"
                " removed_at = null",
                [number, name],
            )
        try:
            _copy_months(node, hub)
            _connect(node, hub, number, conninfo, versions=versions)
        except BaseException:
            with suppress(psycopg.Error):
                _drop_on_node(node, number)
            with suppress(psycopg.Error):
                _mark_removed(hub, number)
            raise
    return number


def _copy_months(node: Connection, hub: Connection) -> None:
    hub.execute("select pgaudit_wf.ensure_log_partitions()")
    for (month,) in node.execute(
        "select (from_time at time zone 'UTC')::date from pgaudit_wf.log_months()"
    ).fetchall():
        hub.execute("select pgaudit_wf.add_log_partition(%s)", [month])


def _connect(
    node: Connection, hub: Connection, number: int, conninfo: str, *, versions: bool
) -> None:
    node.execute("select pgaudit_wf._become_node(%s)", [number])
    tables = ["security_audit_log"] + (["workflow_history", "version_label"] if versions else [])
    node.execute(
        # Only inserts: what retention and erasure do on a node, the hub does for itself.
        sql.SQL(
            "create publication {} for table {} with (publish = 'insert',"
            " publish_via_partition_root = true)"
        ).format(
            sql.Identifier(PUBLICATION),
            sql.SQL(", ").join(sql.Identifier("pgaudit_wf", table) for table in tables),
        )
    )
    # By ourselves, as a subscription to a database of the same server would wait for itself.
    node.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [_name(number)])
    with _unlogged(hub):
        hub.execute(
            # A transaction of the node is one of the hub, begun when the node's has ended; and one
            # that a reader has seen outlives a crash, as on a node.
            sql.SQL(
                "create subscription {} connection {} publication {}"
                " with (create_slot = false, slot_name = {}, streaming = off,"
                " synchronous_commit = 'on')"
            ).format(
                sql.Identifier(_name(number)),
                sql.Literal(conninfo),
                sql.Identifier(PUBLICATION),
                sql.Identifier(_name(number)),
            )
        )


@contextmanager
def _unlogged(hub: Connection) -> Iterator[None]:
    for statement in _UNLOGGED:
        hub.execute(statement)
    try:
        yield
    finally:
        for statement in _UNLOGGED:
            hub.execute(f"reset {statement.split()[1]}".encode())


def _mark_removed(hub: Connection, number: int) -> None:
    hub.execute("update pgaudit_wf.hub_node set removed_at = now() where number = %s", [number])


def _drop_on_node(node: Connection, number: int) -> None:
    deadline = time.monotonic() + _SLOT_SECONDS
    while slots := node.execute(
        "select slot_name, active_pid from pg_replication_slots where slot_name = %s",
        [_name(number)],
    ).fetchall():
        for slot, pid in slots:
            if pid is not None:
                node.execute("select pg_terminate_backend(%s)", [pid])
                continue
            with suppress(psycopg.errors.ObjectInUse):
                node.execute("select pg_drop_replication_slot(%s)", [slot])
        if time.monotonic() > deadline:
            raise HubError(
                f"slot {_name(number)} of the node is in use",
                hint="It holds WAL until it is dropped: select pg_drop_replication_slot(…).",
            )
        time.sleep(0.05)
    node.execute(sql.SQL("drop publication if exists {}").format(sql.Identifier(PUBLICATION)))


def remove_node(hub: Connection, name: str) -> str | None:
    """Let no more of a node's log come; its events stay, and so does its number.

    Returns:
        None; or, where the node could not be reached, what to do there once it is back.

    Raises:
        HubError: There is no such node.
    """
    _check_hub(hub)
    row = hub.execute(
        "select number from pgaudit_wf.hub_node where name = %s and removed_at is null", [name]
    ).fetchone()
    if row is None:
        raise HubError(f"there is no node {name}", hint="See pgaudit-wf hub status.")
    number = int(row[0])
    conninfo = _subscribed(hub, number)
    if conninfo is not None:
        named = sql.Identifier(_name(number))
        # Without the slot, which would need the node.
        hub.execute(sql.SQL("alter subscription {} disable").format(named))
        hub.execute(sql.SQL("alter subscription {} set (slot_name = none)").format(named))
        hub.execute(sql.SQL("drop subscription {}").format(named))
    _mark_removed(hub, number)
    left = (
        f"select pg_drop_replication_slot('{_name(number)}');"
        f" drop publication if exists {PUBLICATION};"
    )
    if conninfo is None:
        return left
    try:
        with _node(_timed(conninfo)) as node:
            _drop_on_node(node, number)
    except (psycopg.Error, HubError):
        return left
    return None


def _subscribed(hub: Connection, number: int) -> str | None:
    """Return a node's address, which has a password: it is shown to nobody."""
    row = hub.execute(
        "select s.subconninfo from pg_subscription as s where s.subname = %s and s.subdbid ="
        " (select oid from pg_database where datname = current_database())",
        [_name(number)],
    ).fetchone()
    return None if row is None else str(row[0])


def _timed(conninfo: str) -> str:
    given = psycopg.conninfo.conninfo_to_dict(conninfo)
    return psycopg.conninfo.make_conninfo("", **({"connect_timeout": _CONNECT_SECONDS} | given))


_ARRIVING: LiteralString = """
select s.subenabled, coalesce(t.apply_error_count + t.sync_error_count, 0) as errors,
    exists (select from pg_stat_subscription as w
        where w.subid = s.oid and w.pid is not null and w.latest_end_time is not null) as works,
    (select count(*) from pg_subscription_rel as r
        where r.srsubid = s.oid and r.srsubstate not in ('r', 's')) as copying
from pg_subscription as s left join pg_stat_subscription_stats as t on t.subid = s.oid
where s.subname = %s and s.subdbid = (select oid from pg_database
    where datname = current_database())
"""
_SENT: LiteralString = """
select s.active, s.wal_status,
    pg_wal_lsn_diff(pg_current_wal_insert_lsn(), s.confirmed_flush_lsn)::bigint as lag,
    pg_wal_lsn_diff(pg_current_wal_insert_lsn(), s.restart_lsn)::bigint as held,
    extract(epoch from r.replay_lag)::float8 as seconds,
    (select nullif(setting::bigint, -1) * 1048576 from pg_settings
        where name = 'max_slot_wal_keep_size') as bound
from pg_replication_slots as s left join pg_stat_replication as r on r.pid = s.active_pid
where s.slot_name = %s
"""


def node_status(hub: Connection) -> list[NodeStatus]:
    """Return how each node's log comes to the hub; asks every node.

    Raises:
        psycopg.Error: The hub did not answer, or the login may not read the nodes' addresses.
    """
    release = one(hub, _RELEASE)
    nodes = hub.execute(
        "select number, name from pgaudit_wf.hub_node where removed_at is null order by number"
    ).fetchall()
    return [_status(hub, number, name, release) for number, name in nodes]


def _status(hub: Connection, number: int, name: str, release: tuple[Any, ...]) -> NodeStatus:
    again = f"pgaudit-wf hub remove {name}, then hub add {name} …: only what is missing comes"
    arriving = next(iter(_rows(hub, _ARRIVING, [_name(number)])), None)
    conninfo = _subscribed(hub, number)
    if arriving is None or conninfo is None:
        return NodeStatus(number, name, "stopped", problem="its subscription is gone", remedy=again)
    try:
        with _node(_timed(conninfo)) as node:
            sent = next(iter(_rows(node, _SENT, [_name(number)])), None)
            is_same = one(node, _RELEASE) == release
    except psycopg.Error:
        # Its message may quote the address.
        return NodeStatus(
            number, name, "away", errors=arriving.errors,
            problem="it does not answer from here", remedy="start it, or the network to it:"
            " it goes on where it was",
        )  # fmt: skip
    problem = remedy = None
    if sent is None:
        problem, remedy = "its slot is gone: it was restored from a backup, or failed over", again
    elif sent.wal_status == "lost":
        problem, remedy = "it removed WAL that the hub needs (max_slot_wal_keep_size)", again
    elif not is_same:
        problem, remedy = "it has another release than the hub", "pgaudit-wf migrate on both"
    elif not arriving.subenabled:
        problem, remedy = (
            "its subscription is disabled",
            (f"alter subscription {_name(number)} enable"),
        )
    elif arriving.errors and not arriving.works:
        problem, remedy = (
            f"applying fails ({arriving.errors} errors)",
            f"the hub's server log says why (subscription {_name(number)}); it is tried again"
            " every few seconds",
        )
    elif not sent.active and not arriving.works:
        problem, remedy = (
            "the hub's server does not receive from it",
            "the hub's server log says why: it must reach the node by the address of hub add",
        )
    state = "stopped" if problem else "copying" if arriving.copying else "on"
    return NodeStatus(
        number,
        name,
        state,
        lag_bytes=sent.lag if sent else None,
        lag_seconds=sent.seconds if sent else None,
        held_bytes=sent.held if sent else None,
        limit_bytes=sent.bound if sent else None,
        errors=arriving.errors,
        problem=problem,
        remedy=remedy,
    )


class HubWatch:
    """`hub status --watch` as a job of a `Service`, with metrics and logs.

    Args:
        service: The service whose registry receives the metrics.
        connect: Opens a connection to the hub.
    """

    def __init__(self, service: Service, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._gauges = {
            name: Gauge(f"pgaudit_wf_hub_{name}", text, ["node"], registry=service.registry)
            for name, text in (
                ("up", "1 while the node's log comes to the hub."),
                ("lag_bytes", "WAL of the node that the hub has yet to confirm."),
                ("lag_seconds", "How long the hub's last confirmation took."),
                ("held_wal_bytes", "WAL that the node keeps for the hub."),
                ("held_wal_limit_bytes", "The most WAL that it keeps for the hub; +Inf: no bound."),
                ("apply_errors", "Errors in applying what the node sent."),
            )
        }

    def job(self, service: Service) -> bool:
        """Look at every node once."""
        with self._connect() as conn:
            found = node_status(conn)
        for gauge in self._gauges.values():
            # Of a node that does not answer, no figure is better than an old one.
            gauge.clear()
        for node in found:
            values = {
                "up": float(node.problem is None),
                "lag_bytes": node.lag_bytes,
                "lag_seconds": node.lag_seconds or (None if node.lag_bytes is None else 0.0),
                "held_wal_bytes": node.held_bytes,
                "held_wal_limit_bytes": float("inf")
                if node.limit_bytes is None and node.held_bytes is not None
                else node.limit_bytes,
                "apply_errors": node.errors,
            }
            for name, value in values.items():
                if value is not None:
                    self._gauges[name].labels(node.name).set(value)
            if node.problem:
                service.log(
                    "node does not come", node=node.name, problem=node.problem, remedy=node.remedy
                )
        return False
