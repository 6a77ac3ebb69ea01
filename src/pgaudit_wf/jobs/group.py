"""Several jobs in one process: a thread each, with one health check, one log and one end.

Any number of such processes may run. A job that is `Elected` is done by one of them, while the
others stand by; that none does harm to another is not left to that, but to the jobs themselves.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psycopg
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from pgaudit_wf.jobs.service import Service, describe_error, health_check, signals_to
from pgaudit_wf.trail.statement import Connection, one

__all__ = ["Elected", "Group", "Member"]


class Elected:
    """A job that is done by one process at a time, of any number that could.

    The leader holds a lock of a session of its own. Where that session ends, or a run fails, any
    other process takes over.

    Args:
        service: The service that runs it.
        job: Does the work, as for `Service.run`.
        connect: Opens a connection in autocommit mode, not through a pooler that shares sessions.
    """

    def __init__(
        self, service: Service, job: Callable[[Service], bool], connect: Callable[[], Connection]
    ) -> None:
        self._job = job
        self._connect = connect
        self._conn: Connection | None = None
        self._leading: bool | None = None
        self._gauge = Gauge(
            "pgaudit_wf_job_leader",
            "1 where this process does the job, 0 where it stands by for another one.",
            ["job"],
            registry=service.registry,
        ).labels(service.name)

    def job(self, service: Service) -> bool:
        """Do the work if this process leads or can; return whether more is waiting."""
        leads = self._lead(service.name)
        if leads != self._leading:
            service.log("leading" if leads else "standing by: another process leads")
            self._leading = leads
        self._gauge.set(leads)
        service.standing_by = not leads
        if not leads:
            return False
        try:
            return self._job(service)
        except Exception:
            # Perhaps another process can.
            self.close()
            raise

    def close(self) -> None:
        """Let another process lead."""
        self._leading = None
        self._gauge.set(0)
        if self._conn is not None:
            with suppress(psycopg.Error):
                self._conn.close()
            self._conn = None

    def _lead(self, name: str) -> bool:
        if self._leading and self._conn is not None:
            try:
                self._conn.execute("select 1")
                return True
            except psycopg.Error:
                self.close()
        if self._conn is None or self._conn.closed:
            self._conn = self._connect()
        try:
            return bool(one(self._conn, "select pgaudit_wf._begin_job(%s)", [f"lead {name}"])[0])
        except BaseException:
            self.close()
            raise


@dataclass(frozen=True, slots=True)
class Member:
    """A job of a group: what runs it, what it does, the pause between runs, and how it ends."""

    service: Service
    job: Callable[[Service], bool]
    interval: float
    close: Callable[[], None]


class Group:
    """Jobs that run in one process; that one of them fails does not stop the others.

    Args:
        members: The jobs.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._own = Service("run")
        self._registry = CollectorRegistry()
        self._registry.register(_Merged([member.service for member in members]))

    def run(
        self, *, once: bool = False, health_port: int | None = None, health_host: str = "127.0.0.1"
    ) -> list[str]:
        """Run all jobs, until SIGTERM or SIGINT, or until there is nothing more to do (`once`).

        A job that fails is logged and tried again after a pause; with `once` it is not.

        Args:
            once: Stop when nothing more is waiting.
            health_port: Serve /healthz, /readyz and /metrics on this port; 0 picks one, None
                disables them.
            health_host: The address to serve them on.

        Returns:
            With `once`, the names of the jobs that failed.

        Raises:
            OSError: The health check's port is not available.
        """
        failed: list[str] = []

        def work(member: Member) -> None:
            try:
                member.service.run(
                    member.job, once=once, interval=member.interval, retried=(Exception,)
                )
            except Exception as error:
                failed.append(member.service.name)
                member.service.log("run failed", level=logging.ERROR, **describe_error(error))
            finally:
                member.close()

        # A second signal does not wait for them.
        threads = [
            threading.Thread(target=work, args=[member], name=member.service.name, daemon=True)
            for member in self._members
        ]
        with signals_to(self.stop), health_check(self, health_host, health_port):
            for thread in threads:
                thread.start()
            for thread in threads:
                # Not forever, or a signal would not be noticed on every platform.
                while thread.is_alive():
                    thread.join(1.0)
        return failed

    def stop(self) -> None:
        """Ask all jobs to stop after their current step."""
        for member in self._members:
            member.service.stop()

    def log(self, message: str, *, level: int = logging.INFO, **fields: object) -> None:
        """Write a line about the process to the log."""
        self._own.log(message, level=level, **fields)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Answer a request to the health check, for all jobs: status, content type and body."""
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path not in ("/healthz", "/readyz"):
            return self._own.answer(path)
        services = [member.service for member in self._members]
        problems = {
            service.name: service.stalled if path == "/healthz" else service.unready
            for service in services
        }
        lines = "".join(f"{name}: {problem or 'ok'}\n" for name, problem in problems.items())
        return 503 if any(problems.values()) else 200, "text/plain", lines.encode()


class _Merged(Collector):
    """The metrics of several services, each family once."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services = services

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the services have registered their names, each for itself."""
        return []

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for service in self._services:
            for family in service.registry.collect():
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples = [*known.samples, *family.samples]
        yield from families.values()
