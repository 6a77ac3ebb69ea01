"""Periodic maintenance of the log, as a plan that can be reviewed before it is run.

`plan` looks and changes nothing; `maintain` does what it says, a step at a time. Each step is a
transaction of its own and can be repeated, so a run may be interrupted anywhere and started again.
Only one run at a time works on a database; a second one reports this and ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, LiteralString, TypeAlias, get_args

import psycopg
from prometheus_client import Counter, Gauge
from psycopg.rows import tuple_row

from pgaudit_wf.archive.write import archive_partition, confirm_archive
from pgaudit_wf.errors import (
    ArchiveConflictError,
    ArchiveError,
    DatabaseError,
    MaintenanceRunningError,
    MissingExtraError,
    NotSealedError,
    translated,
)
from pgaudit_wf.jobs.service import Service
from pgaudit_wf.trail.statement import Connection, one

__all__ = ["Hook", "Maintenance", "Step", "maintain", "plan"]

Kind: TypeAlias = Literal[
    "add", "move", "archive", "prune", "prune_versions", "prune_cache", "hook"
]
Progress: TypeAlias = Callable[["Step", int, int], None]

_KINDS: tuple[Kind, ...] = get_args(Kind)
# Waiting for a lock on the log blocks everyone who asks for one later: better to retry.
_LOCK_TIMEOUT = "200ms"
_ATTEMPTS = 6
_NO_ARCHIVE = "no location for archives is given (--archive)"
_NOT_ARCHIVED = "it is not archived"
_VERSIONS_AT_A_TIME = 500
# Cached texts speed up a workflow's next save; they are kept while one is likely.
_CACHE_KEPT = "30 days"


@dataclass(frozen=True, slots=True)
class Step:
    """A step of maintenance, to do or done.

    `kind` is add (a future partition), move (events from the default partition to that month),
    archive, prune (a month's expired events), prune_versions, prune_cache (canonical texts of idle
    workflows), or hook. `subject` is the table, or the hook's name. `events` is the number of
    events, versions or workflows concerned. `problem` says why it cannot be done now; None if it
    can.
    """

    kind: Kind
    subject: str
    events: int = 0
    problem: str | None = None

    def __str__(self) -> str:
        """Describe it to people, as a step to do."""
        of = f"{self.events:,} event{'' if self.events == 1 else 's'}"
        return {
            "add": f"create partition {self.subject}",
            "move": f"move {of} from the default partition to {self.subject}",
            "archive": f"archive {of} of {self.subject}",
            "prune": f"remove {of} of {self.subject}",
            "prune_versions": f"prune {self.events:,} snapshots of workflow versions",
            "prune_cache": f"prune canonical texts of {self.events:,} idle workflows",
            "hook": f"{self.subject}: {of}",
        }[self.kind]


@dataclass(frozen=True, slots=True)
class Hook:
    """A job of another module that runs as part of maintenance, before anything is archived.

    It runs again where a month cannot be pruned because that it is archived is not sealed yet.

    `run` takes the connection and whether this is a dry run, and returns how many events it
    processed, or would process.
    """

    name: str
    run: Callable[[Connection, bool], int]


def plan(
    conn: Connection,
    *,
    archive_url: str | None = None,
    months_ahead: int = 3,
    hooks: Sequence[Hook] = (),
) -> tuple[Step, ...]:
    """Return the steps that `maintain` would take now, in order; changes nothing.

    Args:
        conn: A connection of the schema's owner, in autocommit mode.
        archive_url: Where archives go; without one, months that are not archived cannot be pruned.
        months_ahead: How many months after the current one get partitions.
        hooks: As for `maintain`.

    Raises:
        psycopg.Error: The database could not answer.
    """
    with translated():
        hooked = [Step("hook", hook.name, hook.run(conn, True)) for hook in hooks]
        return (*hooked, *_plan(conn, archive_url, months_ahead))


def _plan(conn: Connection, archive_url: str | None, months_ahead: int) -> Iterator[Step]:
    steps = conn.cursor(row_factory=tuple_row).execute(
        "select * from pgaudit_wf._maintenance_plan(%s, %s::interval)", [months_ahead, _CACHE_KEPT]
    )
    for kind, subject, events, is_archived in steps.fetchall():
        problem = None
        if is_archived is False and not archive_url:
            problem = _NO_ARCHIVE if kind == "archive" else _NOT_ARCHIVED
        yield Step(kind, subject, events, problem)


def maintain(
    conn: Connection,
    *,
    archive_url: str | None = None,
    months_ahead: int = 3,
    hooks: Sequence[Hook] = (),
    progress: Progress | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Take the steps that are due, and yield each one when it is done or has failed.

    It only takes steps that `plan` would have returned at the start. A step with a `problem` is
    left for the next run. No month is pruned before its archive was read back in this run and
    compared with the log; an archive that is missing or belongs to another database ends the run.

    Args:
        conn: A connection of the schema's owner, in autocommit mode. Not through a pooler that
            shares sessions, as it holds a lock of its session.
        archive_url: Where archives go: a directory, or a URL as fsspec takes it.
        months_ahead: How many months after the current one get partitions.
        hooks: Additional jobs, run before anything is archived.
        progress: Called with the current step, the amount done and the total.
        stopping: Called between steps; returns whether to stop.

    Raises:
        MaintenanceRunningError: Another run is in progress.
        psycopg.Error: The database refused a step in a way that another run cannot fix.
    """
    with _alone(conn):
        steps = plan(conn, archive_url=archive_url, months_ahead=months_ahead)
        for hook in hooks:
            if stopping():
                return
            yield Step("hook", hook.name, hook.run(conn, False))
        archived: set[str] = set()
        unarchived: set[str] = set()
        for step in steps:
            if stopping():
                return
            if step.problem is None and step.kind == "prune" and step.subject in unarchived:
                step = replace(step, problem=_NOT_ARCHIVED)
            try:
                if step.problem is None:
                    step = _do(conn, step, archive_url, archived, hooks, progress)
            except ArchiveConflictError as error:
                # A person must find out whose files those are before anything is removed.
                yield replace(step, problem=str(error))
                return
            if step.kind == "archive":
                (archived if step.problem is None else unarchived).add(step.subject)
            yield step


@contextmanager
def _alone(conn: Connection) -> Iterator[None]:
    (is_ours,) = one(conn, "select pgaudit_wf._begin_job('maintenance')")
    if not is_ours:
        raise MaintenanceRunningError("another maintenance run is in progress on this database")
    try:
        yield
    finally:
        if not conn.closed:
            conn.execute("select pgaudit_wf._end_maintenance()")


def _do(
    conn: Connection,
    step: Step,
    archive_url: str | None,
    archived: set[str],
    hooks: Sequence[Hook],
    progress: Progress | None,
) -> Step:
    def report(done: int, total: int) -> None:
        if progress:
            progress(step, done, total)

    try:
        if step.kind == "archive":
            assert archive_url is not None  # noqa: S101 - or the step would have a problem
            archive = archive_partition(conn, step.subject, archive_url, report)
            return replace(step, events=archive.events)
        if step.kind == "prune_versions":
            return replace(step, events=_prune_versions(conn, step.events, report))
        if step.kind == "prune_cache":
            statement: LiteralString = "select pgaudit_wf._prune_canonical_cache(%s::interval)"
            return replace(step, events=_locking(conn, statement, _CACHE_KEPT))
        if step.kind == "prune":
            if step.subject not in archived:
                confirm_archive(conn, step.subject, report)
            return replace(step, events=_prune(conn, step.subject, hooks))
        # The same for a missing month and for one whose events wait in the default partition.
        month = step.subject.removeprefix("security_audit_log_y").replace("m", "-") + "-01"
        _locking(conn, "select pgaudit_wf.add_log_partition(%s)", month)
        return step
    except ArchiveConflictError:
        raise
    except (ArchiveError, MissingExtraError, DatabaseError, OSError) as error:
        return replace(step, problem=str(error))
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        return replace(step, problem="the log was too busy to lock; the next run tries again")


def _prune(conn: Connection, partition: str, hooks: Sequence[Hook]) -> int:
    try:
        return _locking(conn, "select pgaudit_wf.prune(%s)", partition)
    except NotSealedError:
        if not hooks:
            raise
    # That the month is archived is an event of this run, which a hook may be there to seal.
    for hook in hooks:
        hook.run(conn, False)
    return _locking(conn, "select pgaudit_wf.prune(%s)", partition)


def _locking(conn: Connection, statement: LiteralString, argument: str) -> int:
    for attempt in range(_ATTEMPTS):
        try:
            with translated(), conn.transaction():
                cursor = conn.cursor(row_factory=tuple_row)
                cursor.execute("select set_config('lock_timeout', %s, true)", [_LOCK_TIMEOUT])
                row = cursor.execute(statement, [argument]).fetchone()
                return row[0] if row and isinstance(row[0], int) else 0
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.5 * 2**attempt)
    raise AssertionError("unreachable")


def _prune_versions(conn: Connection, expected: int, report: Callable[[int, int], None]) -> int:
    pruned = 0
    while True:
        with translated():
            last = int(one(conn, "select pgaudit_wf.prune_history(%s)", [_VERSIONS_AT_A_TIME])[0])
        pruned += last
        report(pruned, max(expected, pruned))
        if last < _VERSIONS_AT_A_TIME:
            return pruned


class Maintenance:
    """`maintain` as a job of a `Service`, with metrics and logs.

    Args:
        service: The service whose registry receives the metrics.
        connect: Opens a connection; a new one for each run.
        archive_url: As for `maintain`.
        months_ahead: As for `maintain`.
        hooks: As for `maintain`.
        progress: As for `maintain`.

    Attributes:
        steps: The steps of the last run.
        busy: Whether the last run found another one in progress.
    """

    def __init__(
        self,
        service: Service,
        connect: Callable[[], AbstractContextManager[Connection]],
        *,
        archive_url: str | None = None,
        months_ahead: int = 3,
        hooks: Sequence[Hook] = (),
        progress: Progress | None = None,
    ) -> None:
        self._service = service
        self._connect = connect
        self._archive_url = archive_url
        self._months_ahead = months_ahead
        self._hooks = hooks
        self._progress = progress
        self.steps: list[Step] = []
        self.busy = False
        registry = service.registry
        self._done = Counter(
            "pgaudit_wf_maintain_steps",
            "Steps of maintenance.",
            ["kind", "result"],
            registry=registry,
        )
        self._events = Counter(
            "pgaudit_wf_maintain_events",
            "Events (or versions) processed by steps of maintenance.",
            ["kind"],
            registry=registry,
        )
        self._left = Gauge(
            "pgaudit_wf_maintain_problems",
            "Steps that failed in the last run.",
            registry=registry,
        )
        for kind in _KINDS:
            self._events.labels(kind)
            for result in ("done", "failed"):
                self._done.labels(kind, result)

    def job(self, service: Service) -> bool:
        """Do a run; there is never more work left for an immediate second one."""

        def moved(step: Step, done: int, total: int) -> None:
            service.alive()
            if self._progress:
                self._progress(step, done, total)

        self.steps = []
        self.busy = False
        with self._connect() as conn:
            try:
                for step in maintain(
                    conn,
                    archive_url=self._archive_url,
                    months_ahead=self._months_ahead,
                    hooks=self._hooks,
                    progress=moved,
                    stopping=lambda: service.stopping,
                ):
                    service.alive()
                    self.steps.append(step)
                    self._count(step)
            except MaintenanceRunningError as error:
                self.busy = True
                service.log(str(error))
        self._left.set(sum(step.problem is not None for step in self.steps))
        return False

    def _count(self, step: Step) -> None:
        self._done.labels(step.kind, "failed" if step.problem else "done").inc()
        if step.problem is None:
            self._events.labels(step.kind).inc(step.events)
        self._service.log(
            "step failed" if step.problem else "step done",
            level=logging.WARNING if step.problem else logging.INFO,
            kind=step.kind,
            subject=step.subject,
            events=step.events,
            **({"problem": step.problem} if step.problem else {}),
        )
