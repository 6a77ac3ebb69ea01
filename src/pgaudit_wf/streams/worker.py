"""The worker: for each destination, claims a batch of events, sends it, and moves its reader on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
from prometheus_client import Counter, Gauge
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb, set_json_loads

from pgaudit_wf.errors import StreamSettingsError
from pgaudit_wf.exact_json import loads
from pgaudit_wf.jobs.delivery import DeliveryError
from pgaudit_wf.jobs.service import Service
from pgaudit_wf.streams.formats import Item, sample, to_text
from pgaudit_wf.streams.targets import Destination, Target, target_for
from pgaudit_wf.trail.event import TrailEntry
from pgaudit_wf.trail.reads import well_formed
from pgaudit_wf.trail.statement import Connection, columns

_BATCH = 500
_GAUGE_SECONDS = 15.0
# How long one destination may keep a run from looking at what was added or resumed.
_RUN_SECONDS = 15.0
_AT_ONCE = 8

_CLAIM = sql.SQL(
    "select {}, c.claim, c.cursor as reached, c.uid"
    " from pgaudit_wf._claim_stream(%s, %s, make_interval(secs => %s)) as c"
).format(columns(TrailEntry, "(c.entry)"))


class StreamWorker:
    """Sends the log to the destinations; any number may run at once, on any machines.

    A destination that is slow or down holds up itself only.

    Args:
        connect: Opens a connection in autocommit mode, as the schema's owner or as a login that
            `pgaudit_wf._grant_streams` was called for.
        environment: Secrets and limits: see docs/how-to/stream.md.
        service: The service that runs it and receives its metrics.
        only: Serve only these destinations; None: all.
        timeout: Seconds that a request or a connection may take.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        environment: Mapping[str, str],
        service: Service,
        *,
        only: Sequence[str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._connect = connect
        self._environment = environment
        self._only = only
        self._timeout = timeout
        # Each request extends it.
        self._lease = timeout * 3
        self._connections: dict[str, Connection] = {}
        self._next_gauge = 0.0
        registry = service.registry
        self._events = Counter(
            "pgaudit_wf_stream_events",
            "Events that a destination has accepted or refused.",
            ["destination", "result"],
            registry=registry,
        )
        self._failures = Counter(
            "pgaudit_wf_stream_failures",
            "Attempts that failed and are repeated.",
            ["destination"],
            registry=registry,
        )
        self._gauges = {
            name: Gauge(f"pgaudit_wf_stream_{name}", text, ["destination"], registry=registry)
            for name, text in (
                ("lag_events", "Events of the log not looked at yet, up to 10,000."),
                ("lag_seconds", "Age of the oldest of them."),
                ("dead_letters", "Events that it refused."),
                ("attempts", "Failures in a row; 0: it works."),
                ("paused", "Whether it is paused."),
            )
        }

    def job(self, service: Service) -> bool:
        """Send what is due; return whether more is (see `Service.run`)."""
        try:
            conn = self._open("")
            rows = conn.execute(
                "select l.*, not l.paused and l.due_at <= clock_timestamp()"
                " and coalesce(l.lease_until < clock_timestamp(), true) as is_due"
                " from pgaudit_wf.stream_list as l"
                " where %(only)s::text[] is null or l.name = any (%(only)s) order by l.name",
                {"only": None if self._only is None else list(self._only)},
            ).fetchall()
            for name in self._connections.keys() - {row["name"] for row in rows} - {""}:
                self._drop(name)
            due = [row for row in rows if row["is_due"]]
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                more = list(pool.map(lambda row: self._serve(row, service), due))
            self._measure(conn, rows)
        except BaseException:
            self.close()
            raise
        return any(more)

    def close(self) -> None:
        """Close the connections to the database."""
        for name in list(self._connections):
            self._drop(name)

    def _open(self, name: str) -> Connection:
        conn = self._connections.get(name)
        if conn is None or conn.closed:
            conn = self._connections[name] = self._connect()
            conn.row_factory = dict_row
            # Values are sent as stored: 0.10 stays 0.10, and nothing is rounded.
            set_json_loads(loads, conn)
        return conn

    def _drop(self, name: str) -> None:
        if (conn := self._connections.pop(name, None)) is not None:
            with suppress(psycopg.Error):
                conn.close()

    def _serve(self, row: Mapping[str, Any], service: Service) -> bool:
        """Serve a destination for a while; return whether it may have more to do."""
        name = row["name"]
        problem: str
        try:
            target = target_for(destination(row), self._environment, self._timeout)
            until = time.monotonic() + _RUN_SECONDS
            while not service.stopping and time.monotonic() < until:
                service.alive()
                batch = self._open(name).execute(_CLAIM, [name, _BATCH, self._lease]).fetchall()
                if not batch:
                    return False
                claim = _Claim(self, name, batch[0]["claim"], service)
                if not claim.send(row["format"], target, batch):
                    return False
            return not service.stopping
        except StreamSettingsError as error:
            problem = str(error)
        except psycopg.OperationalError:
            # Of the connection, which all destinations share.
            self._drop(name)
            raise
        except psycopg.Error as error:
            # Of this reader: say, the log was set back to before its place.
            problem = f"database: SQLSTATE {error.sqlstate}"
            self._drop(name)
        self.settle(name, None, None, 0, problem=problem)
        self.failed(name, problem, service)
        return False

    def settle(
        self,
        name: str,
        claim: int | None,
        cursor: str | None,
        events: int,
        *,
        goes_on: bool = False,
        dead: Sequence[Mapping[str, Any]] = (),
        problem: str | None = None,
        pause: float | None = None,
    ) -> bool:
        """Report on a claim; return False if it was overtaken."""
        settled = (
            self._open(name)
            .execute(
                "select pgaudit_wf._settle_stream(%s, %s, %s, %s, make_interval(secs => %s), %s,"
                " %s, make_interval(secs => %s)) as settled",
                [
                    name,
                    claim,
                    cursor,
                    events,
                    self._lease if goes_on else None,
                    Jsonb(list(dead)),
                    problem,
                    min(pause or 0.0, 86400.0),
                ],
            )
            .fetchone()
        )
        if settled is not None and settled["settled"]:
            self._events.labels(name, "sent").inc(events)
            self._events.labels(name, "refused").inc(len(dead))
            return True
        return False

    def failed(self, name: str, problem: str, service: Service) -> None:
        """Count and log an attempt that failed."""
        self._failures.labels(name).inc()
        service.log("not sent", level=logging.WARNING, destination=name, problem=problem)

    def _measure(self, conn: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        if time.monotonic() < self._next_gauge:
            return
        self._next_gauge = time.monotonic() + _GAUGE_SECONDS
        for gauge in self._gauges.values():
            gauge.clear()
        for row in rows:
            name = row["name"]
            for column in ("attempts", "dead_letters", "paused"):
                self._gauges[column].labels(name).set(row[column])
            # Where its place in the log cannot be found, its attempts say so.
            with suppress(psycopg.errors.RaiseException, psycopg.ProgrammingError):
                lag = conn.execute("select * from pgaudit_wf._stream_lag(%s)", [name]).fetchone()
                if lag is not None:
                    self._gauges["lag_events"].labels(name).set(lag["events"])
                    self._gauges["lag_seconds"].labels(name).set(lag["seconds"])


class _Claim:
    """A batch that nobody else has, on its way to a destination."""

    def __init__(self, worker: StreamWorker, name: str, number: int, service: Service) -> None:
        self._worker = worker
        self._name = name
        self._number = number
        self._service = service
        self._accepts = False

    def send(self, format_: str, target: Target, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Send it; return whether to go on with the next."""
        items, dead = _items(rows, format_)
        if dead and not self._settle(None, 0, dead=dead, goes_on=True):
            return False
        try:
            for chunk in target.chunks(items):
                refused = self._send(target, chunk, format_)
                sent = len(chunk) - len(refused)
                if not self._settle(chunk[-1].cursor, sent, dead=refused, goes_on=True):
                    return False
                if self._service.stopping:
                    self._settle(None, 0)
                    return False
        except _OvertakenError:
            return False
        except DeliveryError as error:
            self._settle(None, 0, problem=str(error), pause=error.retry_after)
            self._worker.failed(self._name, str(error), self._service)
            return False
        self._service.log("sent", destination=self._name, events=len(items), refused=len(dead))
        # A file of a few events each would be many.
        is_idle = len(rows) < _BATCH
        self._settle(rows[-1]["reached"], 0, pause=target.pause if is_idle else 0.0)
        return not (is_idle and target.pause)

    def _settle(self, cursor: str | None, events: int, **more: Any) -> bool:  # noqa: ANN401
        return self._worker.settle(self._name, self._number, cursor, events, **more)

    def _send(self, target: Target, chunk: Sequence[Item], format_: str) -> list[dict[str, Any]]:
        """Send events; return those that the destination refused for themselves."""
        try:
            _try_to_send(target, chunk)
            self._accepts = True
            return []
        except DeliveryError as error:
            if not error.final:
                raise
            problem = str(error)
        self._service.alive()
        if not self._settle(None, 0, goes_on=True):
            raise _OvertakenError
        if len(chunk) > 1:
            middle = len(chunk) // 2
            return [
                refused
                for half in (chunk[:middle], chunk[middle:])
                for refused in self._send(target, half, format_)
            ]
        if not self._accepts:
            # Refuses it everything? Then it is not this event that is at fault.
            try:
                _try_to_send(target, [probe(self._name, format_)])
            except DeliveryError as error:
                raise DeliveryError(problem, retry_after=error.retry_after) from error
            self._accepts = True
        self._service.log(
            "refused", level=logging.WARNING, destination=self._name, event_id=chunk[0].entry.id,
            problem=problem,
        )  # fmt: skip
        return [_letter(chunk[0].entry, problem)]


def _try_to_send(target: Target, items: Sequence[Item]) -> None:
    try:
        target.send(items)
    except DeliveryError:
        raise
    except Exception as error:  # A mistake in one target must not end the others.
        raise DeliveryError(f"not sent: {type(error).__name__}") from error


class _OvertakenError(Exception):
    """Another worker has the destination, or it was sent back to an earlier place."""


def destination(row: Mapping[str, Any]) -> Destination:
    """Return the destination that a row of `stream_list` describes."""
    return Destination(
        row["name"], row["kind"], row["url"], row["format"], row["secret"], row["settings"]
    )


def probe(name: str, format_: str) -> Item:
    """Return the event with which a destination is tried."""
    item = sample(f"test-{name}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    return replace(item, text=to_text(item.entry, item.uid, format_))


def _items(
    rows: Sequence[Mapping[str, Any]], format_: str
) -> tuple[list[Item], list[dict[str, Any]]]:
    items, dead = [], []
    names = TrailEntry.__dataclass_fields__
    for row in rows:
        if row["uid"] is None:
            continue
        entry = TrailEntry(**well_formed({name: row[name] for name in names}))
        try:
            text = to_text(entry, row["uid"], format_)
        except Exception as error:  # One event that cannot be written, not all.
            dead.append(_letter(entry, f"not written: {type(error).__name__}"))
            continue
        items.append(Item(row["uid"], entry, text, row["reached"]))
    return items, dead


def _letter(entry: TrailEntry, problem: str) -> dict[str, Any]:
    return {
        "tx_id": entry.tx_id,
        "id": entry.id,
        "occurred_at": entry.occurred_at.isoformat(),
        "action": entry.action,
        "problem": problem,
    }
