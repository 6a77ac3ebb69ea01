"""The log against the rows as they are now: what changed them without a trigger seeing it.

Each slice of a table is compared in a snapshot of its own, so a run of hours keeps no dead rows
alive, holds a slice at a time, and works on a standby. It can be interrupted at any point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb, set_json_loads

from pgaudit_wf.errors import ReconcileError, translated
from pgaudit_wf.exact_json import dumps, loads
from pgaudit_wf.integrity.push import write_file
from pgaudit_wf.trail.path import column_of
from pgaudit_wf.trail.statement import Connection, one

Kind = Literal["changed", "overwritten", "missing", "unknown"]

_SLICE = 5000
_FORMAT = "pgaudit-wf reconcile/1"
_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that is not as the log says.

    Attributes:
        table: The table.
        kind: `changed`: the row has another value than the log says. `overwritten`: it had, when
            the event `event_id` changed it. `missing`: the log knows the row, and the table does
            not have it. `unknown`: no event says how the row came to be there.
        resource_id: Its key, as events have it.
        column: The column, for `changed` and `overwritten`.
        path: JSON pointer to what differs, which may be within the column's value.
        before: What the log says; of a missing row all that it knows.
        after: What is there instead; of an unknown row all of it.
        event_id: Its last event, or the one that found another value; None without one.
        occurred_at: The time of that event.
    """

    table: str
    kind: Kind
    resource_id: str
    column: str | None
    path: str
    before: Any
    after: Any
    event_id: int | None
    occurred_at: datetime | None


@dataclass(slots=True)
class Compared:
    """What was found out about a table.

    Attributes:
        table: The table.
        obstacle: Why it cannot be compared; None if it can.
        estimate: About how many rows it has.
        rows: Rows compared with the log.
        ids: Keys of the log that were looked for in the table.
        changed: Findings of this kind; likewise `overwritten`, `missing`, `unknown`.
        unrecorded: Rows without any event: they may be older than the attachment, or what the log
            still has.
        partial: Rows without the event of their insertion: what was written since was compared.
        keyless: Rows without a key, which no event can name.
        incomparable: Values of which the log cannot tell: hidden, masked by an erasure, or given
            by DDL.
        truncated: Keys without a row that a partition may have held when it was truncated.
        since: From when on the log tells.
        pruned_until: Up to when events were pruned.
        off: When the table was not attached, as pairs of times.
        failures: Changes that `on_failure => 'warn'` let through unrecorded.
    """

    table: str
    obstacle: str | None = None
    estimate: int = 0
    rows: int = 0
    ids: int = 0
    changed: int = 0
    overwritten: int = 0
    missing: int = 0
    unknown: int = 0
    unrecorded: int = 0
    partial: int = 0
    keyless: int = 0
    incomparable: int = 0
    truncated: int = 0
    since: str | None = None
    pruned_until: str | None = None
    off: list[list[str]] = field(default_factory=list)
    failures: int = 0

    @property
    def found(self) -> int:
        """The number of findings."""
        return self.changed + self.overwritten + self.missing + self.unknown

    @property
    def agrees(self) -> bool:
        """Whether the table was compared, and nothing was found."""
        return self.obstacle is None and not self.found


@dataclass(slots=True)
class _Place:
    """How far a run has come."""

    wanted: str | None
    done: list[Compared] = field(default_factory=list)
    current: Compared | None = None
    phase: str = "rows"
    place: list[str] | None = None
    findings: list[dict[str, Any]] = field(default_factory=list)


def _compared(values: dict[str, Any]) -> Compared:
    return Compared(**{name.name: values[name.name] for name in fields(Compared)})


def _read_place(path: Path, wanted: str | None) -> _Place:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return _Place(wanted)
    except (OSError, UnicodeDecodeError) as error:
        raise ReconcileError(f"{path} cannot be read: {error}") from error
    try:
        kept = loads(text)
        if kept["format"] != _FORMAT:
            raise ValueError(kept["format"])
        place = _Place(
            kept["wanted"],
            [_compared(values) for values in kept["done"]],
            _compared(kept["current"]) if kept["current"] else None,
            str(kept["phase"]),
            [str(part) for part in kept["place"]] if kept["place"] else None,
            list(kept["findings"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ReconcileError(
            f"{path} is not the state of a run; remove it to start anew"
        ) from error
    if place.wanted != wanted:
        raise ReconcileError(
            f"{path} is the state of a run for {place.wanted or 'all tables'}; finish that one, or"
            " remove the file"
        )
    return place


def _write_place(path: Path | None, place: _Place) -> None:
    if path is not None:
        write_file(path, dumps({"format": _FORMAT, **asdict(place)}) + "\n")


@contextmanager
def _snapshot(conn: Connection) -> Iterator[None]:
    with translated(), conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        yield


def _tables(conn: Connection, wanted: str | None) -> list[Compared]:
    with _snapshot(conn):
        rows = conn.cursor(row_factory=dict_row).execute(
            "select target as table, coalesce(estimate, 0) as estimate, obstacle,"
            " nullif(since, '-infinity')::text as since, pruned_until::text as pruned_until,"
            " coalesce(off, '[]') as off, unrecorded as failures"
            " from pgaudit_wf._reconcile_tables(%s::regclass)",
            [wanted],
        )
        return [Compared(**row) for row in rows]


def reconcile(
    conn: Connection,
    table: str | None = None,
    *,
    sample: int | None = None,
    start: str | None = None,
    state: Path | None = None,
    found: Callable[[Finding], None] = lambda _: None,
    progress: Callable[[Compared, int], None] = lambda *_: None,
    size: int = _SLICE,
) -> tuple[list[Compared], list[dict[str, Any]]]:
    """Compare attached tables with the log, row by row and column by column.

    Reads only, as a standby allows; the role must see the whole log and read the tables.

    Args:
        conn: The connection, in autocommit mode.
        table: The table, as in SQL; None for all that are attached.
        sample: Compare about as many rows and keys of each table, drawn by chance.
        start: Begin with the row of this primary key; several columns as a JSON array.
        state: A file with the place reached, so that an interrupted run is continued; removed at
            the end.
        found: Called with each finding.
        progress: Called with the current table and how many rows and keys were compared.
        size: Rows of a slice.

    Returns:
        What was found out about each table, and the first findings, also those of the run that is
        continued.

    Raises:
        NotAttachedError: The table is not attached.
        ReconcileError: The table cannot be compared, `start` is not a key of it, or the file is not
            the state of this run.
    """
    place = _read_place(state, table) if state else _Place(table)
    tables = _tables(conn, table)
    if table is not None and tables[0].obstacle:
        raise ReconcileError(
            f"{tables[0].table} cannot be compared with the log: {tables[0].obstacle}"
        )
    finished = {done.table for done in place.done}
    for fresh in tables:
        if fresh.table in finished:
            continue
        if place.current is None or place.current.table != fresh.table:
            place.current, place.phase, place.place = fresh, "rows", None
        if fresh.obstacle is None:
            run = _Run(conn, place, place.current, sample, start, found)
            while run.step(size):
                _write_place(state, place)
                progress(place.current, place.current.rows + place.current.ids)
        place.done.append(place.current)
        place.current = None
        _write_place(state, place)
    if state is not None:
        state.unlink(missing_ok=True)
    return place.done, place.findings


@dataclass
class _Run:
    conn: Connection
    place: _Place
    table: Compared
    sample: int | None
    start: str | None
    found: Callable[[Finding], None]

    def step(self, size: int) -> bool:
        """Compare a slice; return whether there is more to compare."""
        comparison = ">"
        at = self.place.place
        if at is None and self.start is not None and self.place.phase == "rows":
            at, comparison = _key(self.start), ">="
        percent = None
        with _snapshot(self.conn):
            if self.sample is not None:
                size, percent = self.sample, self.percent(self.sample)
            cursor = self.conn.cursor(row_factory=dict_row)
            set_json_loads(loads, cursor)
            *rows, last = cursor.execute(
                "select * from pgaudit_wf._reconcile(%s::regclass, %s, %s, %s, %s, %s)",
                [self.table.table, self.place.phase, at and Jsonb(at), size, comparison, percent],
            ).fetchall()
        for row in rows:
            self.add(row)
        self.count(last["before"])
        self.place.place = last["after"]
        if last["after"] is None:
            if self.place.phase == "gone":
                return False
            self.place.phase = "gone"
        return True

    def percent(self, sample: int) -> float:
        (events,) = one(
            self.conn,
            "select coalesce(sum(greatest(reltuples, 0)), 0) from pg_class where oid in (select"
            " relid from pg_partition_tree('pgaudit_wf.security_audit_log') where isleaf)",
        )
        total = self.table.estimate if self.place.phase == "rows" else float(events)
        # Some more than asked for, as each row is drawn by chance.
        return min(100.0, 100.0 * (2 * sample + 100) / total) if total else 100.0

    def add(self, row: dict[str, Any]) -> None:
        kind: Kind = row["kind"]
        finding = Finding(
            table=self.table.table,
            column=column_of(row["path"]) if row["path"] else None,
            **row,
        )
        setattr(self.table, kind, getattr(self.table, kind) + 1)
        if len(self.place.findings) < _KEPT:
            self.place.findings.append(asdict(finding))
        self.found(finding)

    def count(self, counts: dict[str, int]) -> None:
        looked = counts.pop("looked")
        if self.place.phase == "rows":
            self.table.rows += looked
        else:
            self.table.ids += looked
        for name, count in counts.items():
            setattr(self.table, name, getattr(self.table, name) + count)


def _key(text: str) -> list[str]:
    if text.startswith("["):
        try:
            parts = loads(text)
        except ValueError as error:
            raise ReconcileError(f"{text!r} is not a JSON array of key columns") from error
        if isinstance(parts, list):
            return [part if isinstance(part, str) else dumps(part) for part in parts]
    return [text]
