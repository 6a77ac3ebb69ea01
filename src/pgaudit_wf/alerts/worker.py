"""The worker: queues deliveries, and sends the messages that are due, one after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import psycopg
from prometheus_client import Counter, Gauge
from psycopg.rows import dict_row

from pgaudit_wf.alerts.channels import Channel
from pgaudit_wf.alerts.message import Alert
from pgaudit_wf.errors import AlertSettingsError
from pgaudit_wf.jobs.delivery import DeliveryError
from pgaudit_wf.jobs.service import Service
from pgaudit_wf.trail.statement import one

_BATCH = 1000
_HOUSEKEEPING_SECONDS = 3600.0
_GAUGE_SECONDS = 15.0
_LONGEST_PAUSE = 60.0


class Worker:
    """Follows the log and delivers; any number may run at once, on any machines.

    Args:
        connect: Opens a connection in autocommit mode, as the schema's owner or as a login that
            `pgaudit_wf.grant_alerts` was called for.
        channels: The channels it serves, by name. Others are left to other workers.
        service: The service that runs it and receives its metrics.

    Raises:
        AlertSettingsError: From `job`: a send timeout is too long for the lease of the policy.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        channels: Mapping[str, Channel],
        service: Service,
    ) -> None:
        self._connect = connect
        self._channels = channels
        self._conn: psycopg.Connection[Any] | None = None
        self._paused: dict[str, tuple[float, float]] = {}
        self._next_gauge = self._next_housekeeping = 0.0
        registry = service.registry
        self._events = Counter(
            "pgaudit_wf_alerts_events", "Events of the log processed.", registry=registry
        )
        self._messages = Counter(
            "pgaudit_wf_alerts_messages",
            "Attempts to send a message.",
            ["channel", "result"],
            registry=registry,
        )
        self._unaddressed = Counter(
            "pgaudit_wf_alerts_unaddressed", "Rules that found no recipient.", registry=registry
        )
        self._deliveries = Gauge(
            "pgaudit_wf_alerts_deliveries",
            "Deliveries that are not sent, by state.",
            ["channel", "state"],
            registry=registry,
        )
        self._lag = Gauge(
            "pgaudit_wf_alerts_lag_events",
            "Events not processed yet, up to 10,000.",
            registry=registry,
        )

    def job(self, service: Service) -> bool:
        """Do the work that is due; return whether more is (see `Service.run`)."""
        try:
            conn = self._open(service)
            events = self._enqueue(conn, service)
            sent = self._deliver(service)
            self._keep_house(self._open(service))
        except BaseException:
            # A connection that failed halfway is not used again.
            self._drop()
            raise
        finally:
            for channel in self._channels.values():
                channel.close()
        return events == _BATCH or sent

    def close(self) -> None:
        """Close the connection to the database."""
        self._drop()

    def _open(self, service: Service) -> psycopg.Connection[Any]:
        if self._conn is not None and not self._conn.closed:
            return self._conn
        self._conn = conn = self._connect()
        conn.row_factory = dict_row
        (lease,) = one(conn, "select extract(epoch from pgaudit_wf._alert_lease())::float")
        longest = max(channel.timeout for channel in self._channels.values())
        if lease is None or lease < longest * 2:
            raise AlertSettingsError(
                f"a message may take {longest:g} s, but its lease is less than"
                " twice that: lower --send-timeout, or raise alert_policy.lease"
            )
        unserved = conn.execute(
            "select distinct channel from pgaudit_wf.alert_rule_list"
            " where enabled and not channel = any (%s)",
            [list(self._channels)],
        ).fetchall()
        if unserved:
            service.log(
                "rules name channels that are not configured here",
                level=logging.WARNING,
                channels=[row["channel"] for row in unserved],
            )
        return conn

    def _drop(self) -> None:
        if self._conn is not None:
            with suppress(psycopg.Error):
                self._conn.close()
            self._conn = None

    def _enqueue(self, conn: psycopg.Connection[Any], service: Service) -> int:
        (row,) = one(conn, "select to_jsonb(e) from pgaudit_wf.enqueue_alerts(%s) as e", [_BATCH])
        service.alive()
        self._events.inc(row["events"])
        self._unaddressed.inc(row["unaddressed"])
        amiss = row["unaddressed"] or row["dead"] or row["outdated"]
        if row["deliveries"] or amiss:
            service.log("enqueued", level=logging.WARNING if amiss else logging.INFO, **row)
        return int(row["events"])

    def _deliver(self, service: Service) -> bool:
        """Send for a while; return whether something was sent, so that more may be due."""
        sent = False
        until = time.monotonic() + _GAUGE_SECONDS
        while not service.stopping and time.monotonic() < until:
            now = time.monotonic()
            ready = [name for name in self._channels if self._paused.get(name, (0.0,))[0] <= now]
            # Not the previous connection: settling may have had to open a new one.
            claim = self._open(service).execute("select * from pgaudit_wf.claim_alert(%s)", [ready])
            row = claim.fetchone()
            if row is None:
                return sent
            service.alive()
            sent |= self._send(row, service)
        return sent

    def _send(self, row: Mapping[str, Any], service: Service) -> bool:
        claimed_at = time.monotonic()
        channel = row["channel"]
        alert = Alert(
            channel, row["recipient"], row["message_key"], row["events"], row["deliveries"]
        )
        problem: DeliveryError | None = None
        try:
            if not alert.events:
                raise DeliveryError("the event is no longer in the log", final=True)
            self._channels[channel].send(alert)
            self._paused.pop(channel, None)
        except DeliveryError as error:
            problem = error
            if error.unreachable:
                self._pause(channel)
        except Exception as error:  # One event that a template or channel cannot bear, not all.
            problem = DeliveryError(f"the channel failed for this event: {type(error).__name__}")
        state = self._settle(row, problem, claimed_at)
        self._messages.labels(channel, state or "overtaken").inc()
        service.log(
            "sent" if problem is None else "not sent",
            level=logging.INFO if problem is None else logging.WARNING,
            message_id=alert.key,
            channel=channel,
            attempt=row["attempt"],
            events=alert.total,
            state=state,
            **({} if problem is None else {"problem": str(problem)}),
        )
        return problem is None

    def _pause(self, channel: str) -> None:
        """Pause a failing channel, or each message would use up an attempt."""
        _, before = self._paused.get(channel, (0.0, 0.5))
        pause = min(before * 2, _LONGEST_PAUSE)
        self._paused[channel] = (time.monotonic() + pause, pause)

    def _settle(
        self, row: Mapping[str, Any], problem: DeliveryError | None, claimed_at: float
    ) -> str | None:
        """Record the outcome, if necessary on a new connection: else it would be sent again."""
        while True:
            try:
                if self._conn is None:
                    self._conn = self._connect()
                    self._conn.row_factory = dict_row
                settled = self._conn.execute(
                    "select pgaudit_wf.settle_alert(%s, %s, %s, %s, make_interval(secs => %s))"
                    " as state",
                    [
                        row["message"],
                        row["attempt"],
                        None if problem is None else str(problem),
                        problem is not None and problem.final,
                        None if problem is None else problem.retry_after,
                    ],
                ).fetchone()
                return None if settled is None else settled["state"]
            except psycopg.OperationalError:
                self._drop()
                if time.monotonic() - claimed_at > row["lease_seconds"]:
                    raise
                time.sleep(1.0)

    def _keep_house(self, conn: psycopg.Connection[Any]) -> None:
        now = time.monotonic()
        if now >= self._next_housekeeping:
            conn.execute("select pgaudit_wf._prune_alerts()")
            self._next_housekeeping = now + _HOUSEKEEPING_SECONDS
        if now < self._next_gauge:
            return
        self._next_gauge = now + _GAUGE_SECONDS
        rows = conn.execute(
            "select channel, state, deliveries from pgaudit_wf.alert_backlog"
        ).fetchall()
        self._deliveries.clear()
        for row in rows:
            self._deliveries.labels(row["channel"], row["state"]).set(row["deliveries"])
        (lag,) = one(conn, "select pgaudit_wf.alert_lag()")
        self._lag.set(lag)
