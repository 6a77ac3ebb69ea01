"""Shared by all jobs: a loop or a single run, signals, JSON logs, health, metrics.

A job is a function that does a piece of work and returns whether more is waiting. `Service` runs it
under cron (once), systemd or Kubernetes (in a loop, until SIGTERM):

    service = Service("maintain")
    with json_logs():
        service.run(job, once=once, interval=60, health_port=port)

where `job(service)` checks `service.stopping` between long steps, and calls `service.alive()` to
show that it is making progress.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import IO, Any, Protocol

import psycopg
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from pgaudit_wf import manual
from pgaudit_wf.errors import DatabaseError, PgauditError

LOGGER = logging.getLogger("pgaudit_wf")

# A process that stands by for another one looks this often whether that one is gone.
_STANDBY_SECONDS = 10.0
_WITHOUT_VALUES = ("08", "25", "28", "3D", "3F", "42", "53", "55", "57", "58")
_UNREACHABLE = "check that the server runs and can be reached from here; this tries again by itself"
_HINTS: dict[tuple[str, ...], str] = {
    ("08", "57P"): _UNREACHABLE,
    ("28",): "check the job's login: its name, its password, and the server's pg_hba.conf",
    ("3D",): "check the name of the database",
    ("3F000", "42P01", "42883", "42704", "42703"): "run pgaudit-wf migrate on this database",
    ("42501",): f"grant the job's login its rights: {manual.page('how-to/run-the-jobs.md')}",
    ("25006",): "connect to the primary: target_session_attrs=read-write finds it",
    ("53",): "give the server more room: connections, memory or disk",
}


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "job": getattr(record, "job", None) or record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        # In ASCII, so that a name with control characters stays on this one line.
        return json.dumps(entry, default=str)


@contextmanager
def json_logs(stream: IO[str] | None = None, level: int = logging.INFO) -> Iterator[None]:
    """Write this package's log as JSON, one object per line, to a stream (default: stderr)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonLines())
    before = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(level)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.level, LOGGER.propagate = before


class Service:
    """A job that runs once or in a loop and reports its health.

    Args:
        name: The job's name in logs and in the label `job` of metrics.
        stall_seconds: `/healthz` fails after this long without progress.

    Attributes:
        registry: The registry for the job's own metrics.
        standing_by: Whether another process does the job, so that this one only looks on.
    """

    def __init__(self, name: str, *, stall_seconds: float = 300.0) -> None:
        self.name = name
        self.registry = CollectorRegistry()
        self.standing_by = False
        self._stall_seconds = stall_seconds
        self._stop = threading.Event()
        self._alive_at = time.monotonic()
        self._problem: str | None = "the first run has not finished"
        self._runs = Counter(
            "pgaudit_wf_job_runs", "Runs of the job.", ["job", "result"], registry=self.registry
        )
        self._seconds = Histogram(
            "pgaudit_wf_job_run_seconds",
            "How long a run took.",
            ["job"],
            buckets=(0.01, 0.1, 1, 10, 60, 600, 3600),
            registry=self.registry,
        ).labels(name)
        self._success = Gauge(
            "pgaudit_wf_job_last_success_timestamp_seconds",
            "When a run last ended well.",
            ["job"],
            registry=self.registry,
        ).labels(name)
        for result in ("succeeded", "failed"):
            self._runs.labels(name, result)

    @property
    def stopping(self) -> bool:
        """Whether the job was asked to stop, which it does after the current step."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask the job to stop after the current step."""
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Wait, at most until the job is asked to stop; return whether it was."""
        # A job that is not due makes no progress, and is healthy.
        self._alive_at = time.monotonic() + seconds
        stopped = self._stop.wait(seconds)
        self.alive()
        return stopped

    def alive(self) -> None:
        """Tell the health check that the job is making progress."""
        self._alive_at = time.monotonic()

    def log(self, message: str, *, level: int = logging.INFO, **fields: object) -> None:
        """Write a line to the log; fields must never contain values of rows or secrets."""
        LOGGER.log(level, message, extra={"job": self.name, "fields": fields})

    def run(
        self,
        job: Callable[[Service], bool],
        *,
        once: bool = False,
        interval: float = 5.0,
        health_port: int | None = None,
        health_host: str = "127.0.0.1",
        retried: tuple[type[Exception], ...] = (psycopg.Error, OSError),
    ) -> None:
        """Run a job until there is nothing more to do (`once`), or until SIGTERM or SIGINT.

        An error of the database or the network ends a single run; in a loop it is logged, and the
        job is retried after a pause of up to a minute. A second signal ends the process at once.

        Args:
            job: Does a piece of work and returns whether more is waiting. It opens its own
                connections, so that the next run replaces a broken one.
            once: Stop when nothing more is waiting.
            interval: Seconds between runs when nothing is waiting.
            health_port: Serve /healthz, /readyz and /metrics on this port; 0 picks one, None
                disables them.
            health_host: The address to serve them on.
            retried: The errors after which a loop goes on.

        Raises:
            OSError: The health check's port is not available.
            psycopg.Error: A single run failed.
        """
        with signals_to(self.stop), health_check(self, health_host, health_port):
            self.log("started", once=once)
            failures = 0
            while not self.stopping:
                try:
                    more = self._run_once(job)
                    failures = 0
                except retried as error:
                    if once:
                        raise
                    failures += 1
                    pause = min(60.0, interval * 2 ** min(failures - 1, 10))
                    self.log(
                        "run failed",
                        level=logging.ERROR,
                        retry_in_seconds=pause,
                        **describe_error(error),
                    )
                    self.wait(pause)
                    continue
                if once and not more:
                    break
                if not more:
                    self.wait(min(interval, _STANDBY_SECONDS) if self.standing_by else interval)
            self.log("stopped", asked=self.stopping)

    def _run_once(self, job: Callable[[Service], bool]) -> bool:
        self.alive()
        began = time.monotonic()
        try:
            more = job(self)
        except BaseException as error:
            self._problem = f"the last run failed: {type(error).__name__}"
            self._runs.labels(self.name, "failed").inc()
            raise
        finally:
            self._seconds.observe(time.monotonic() - began)
            self.alive()
        self._problem = None
        if not self.standing_by:
            self._runs.labels(self.name, "succeeded").inc()
            self._success.set_to_current_time()
        return more

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Answer a request to the health check: HTTP status, content type and body."""
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self.registry)
        if path not in ("/healthz", "/readyz"):
            return 404, "text/plain", b"not found; try /healthz, /readyz or /metrics\n"
        problem = self.stalled if path == "/healthz" else self.unready
        return 503 if problem else 200, "text/plain", f"{problem or 'ok'}\n".encode()

    @property
    def stalled(self) -> str | None:
        """Why the job is not healthy; None if it is."""
        silent = time.monotonic() - self._alive_at
        return "no progress" if silent > self._stall_seconds else None

    @property
    def unready(self) -> str | None:
        """Why the job is not ready; None if it is."""
        return "stopping" if self.stopping else self._problem


class _Answering(Protocol):
    def answer(self, path: str) -> tuple[int, str, bytes]: ...

    def log(self, message: str, *, level: int = ..., **fields: object) -> None: ...


@contextmanager
def signals_to(stop: Callable[[], None]) -> Iterator[None]:
    """Let SIGTERM and SIGINT call a function, once; the second one does what it did before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def ask(number: int, _frame: FrameType | None) -> None:
        stop()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def health_check(answering: _Answering, host: str, port: int | None) -> Iterator[None]:
    """Serve /healthz, /readyz and /metrics; nothing if there is no port.

    Raises:
        OSError: The port is not available.
    """
    if port is None:
        yield
        return
    with ThreadingHTTPServer((host, port), _handler(answering)) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=[0.1], daemon=True).start()
        answering.log("health check", host=host, port=server.server_port)
        try:
            yield
        finally:
            server.shutdown()


def _handler(answering: _Answering) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            status, kind, body = answering.answer(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:  # noqa: ANN401 - the base class's signature
            pass

    return Handler


def describe_error(error: BaseException) -> dict[str, str]:
    """Return the loggable part of an error: what it is, where, and what to do about it.

    A driver's message quotes rows, and a connection's message may quote a password, so only what
    contains no values is taken from them; this package's own messages are given in full.
    """
    details = {"error": type(error).__name__}
    if isinstance(error, PgauditError):
        details["problem"] = str(error)
        if isinstance(error, DatabaseError):
            details["sqlstate"] = error.sqlstate
            details |= {"hint": error.hint} if error.hint else {}
    elif isinstance(error, psycopg.Error):
        state = error.sqlstate or ""
        details |= {"sqlstate": state} if state else {}
        # Messages of these classes name roles and objects, never what a row contains.
        if state[:2] in _WITHOUT_VALUES and error.diag.message_primary:
            details["problem"] = error.diag.message_primary
        hints = [hint for kinds, hint in _HINTS.items() if state.startswith(kinds)]
        if hints or not state:
            details["hint"] = hints[0] if hints else _UNREACHABLE
    elif isinstance(error, OSError):
        details |= {"errno": str(error.errno)} if error.errno is not None else {}
        details |= {"problem": error.strerror} if error.strerror else {}
        details |= {"file": str(error.filename)} if error.filename else {}
    else:
        # A mistake in this program: the place says more than a message without its values.
        frames = traceback.extract_tb(error.__traceback__)
        details |= {"at": f"{frames[-1].filename}:{frames[-1].lineno}"} if frames else {}
        details["hint"] = "report this, with the version of pgaudit-wf"
    return details
