"""Archived events checked against the tree, which outlives them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pgaudit_wf.archive.files import Row, list_archives, open_filesystem, read_rows
from pgaudit_wf.errors import ProofError, translated
from pgaudit_wf.integrity import leaf as leaves
from pgaudit_wf.integrity.report import Problem, Report
from pgaudit_wf.integrity.sealed_row import Item, altered_mask, item_hash, link_of, read_kept
from pgaudit_wf.trail.event import EventRow
from pgaudit_wf.trail.statement import Connection, one

_LEAVES = """
    select l.event_id, l.tx_id, l.leaf_index, l.salt, l.org_number, l.org_previous,
        substr(t.hashes, (l.leaf_index %% 256 * 32 + 1)::integer, 32),
        exists (
            select from pgaudit_wf.security_audit_log as e
            where e.id = l.event_id and e.tx_id = l.tx_id and e.occurred_at = l.occurred_at)
    from pgaudit_wf.log_leaf as l
    join pgaudit_wf.log_tile as t on t.level = 0 and t.tile_number = l.leaf_index / 256
    where l.event_id = any (%s)
"""


def _time(at: datetime) -> str:
    """Return a time as PostgreSQL prints it in UTC."""
    text = at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return text + (f".{at.microsecond:06d}".rstrip("0") if at.microsecond else "") + "+00"


def _address(conn: Connection, ip: str | None) -> str | None:
    if ip is None or ":" not in ip:
        return ip
    # Libraries abbreviate IPv6 addresses differently.
    return str(one(conn, "select json_build_array(%s::inet) ->> 0", [ip])[0])


def _row(conn: Connection, archived: Row) -> leaves.EventText:
    as_text: dict[str, Any] = {
        "id": str(archived.id),
        "tx_id": str(archived.tx_id),
        "occurred_at": _time(archived.occurred_at),
        "ip": _address(conn, archived.ip),
    }
    return EventRow(**archived._asdict() | as_text)


def archived_row(conn: Connection, url: str, event_id: int) -> leaves.EventText:
    """Return an event's row from the archives under a path or URL.

    Raises:
        ProofError: None of them contains the event.
        ArchiveError: An archive cannot be read.
    """
    for archive in list_archives(url):
        if archive.manifest["first_id"] <= event_id <= archive.manifest["last_id"]:
            for batch in read_rows(*open_filesystem(archive.url)):
                for archived in batch:
                    if archived.id == event_id:
                        return _row(conn, archived)
    raise ProofError(f"event {event_id} is not in any archive there")


class ArchivedEvents:
    """An organization's events in archives, and the configuration's, by id; a context manager.

    They are kept in a temporary file, as archives need not have them in the order of their leaves.

    Args:
        conn: A connection.
        url: Path or URL of the archives; None: there are none.
        org_id: The organization.

    Raises:
        ArchiveError: (on entry) An archive cannot be read.
    """

    def __init__(self, conn: Connection, url: str | None, org_id: str) -> None:
        self._conn = conn
        self._url = url
        self._org_id = org_id
        self._kept = sqlite3.connect("")

    def __enter__(self) -> ArchivedEvents:
        self._kept.execute("create table event (id text, tx_id text, row text)")
        for archive in list_archives(self._url) if self._url else ():
            for batch in read_rows(*open_filesystem(archive.url)):
                self._kept.executemany(
                    "insert into event values (?, ?, ?)",
                    [
                        (row.id, row.tx_id, json.dumps(row))
                        for row in (
                            _row(self._conn, row)
                            for row in batch
                            if row.org_id == self._org_id
                            or (row.org_id is None and row.action.startswith("audit."))
                        )
                    ],
                )
        self._kept.execute("create index event_id on event (id, tx_id)")
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.close()

    def find(self, event_id: str, tx_id: str) -> leaves.EventText | None:
        """Return an event's row, or None."""
        found = self._kept.execute(
            "select row from event where id = ? and tx_id = ?", [event_id, tx_id]
        ).fetchone()
        return found and EventRow._make(json.loads(found[0]))


def verify_archives(conn: Connection, url: str, report: Report) -> None:
    """Check archived events against their leaves, adding to a report of `verify`.

    Args:
        conn: The owner's connection, in autocommit mode.
        url: Path or URL of the archives.
        report: Receives the number of valid events, and the problems.

    Raises:
        ArchiveError: An archive cannot be read.
        psycopg.Error: The database could not answer.
    """
    seen = bytearray(report.leaves // 8 + 1)
    with translated():
        first, last = one(
            conn,
            "select coalesce(min(event_id), 0), coalesce(max(event_id), -1)"
            " from pgaudit_wf.log_leaf",
        )
        for archive in list_archives(url):
            for batch in read_rows(*open_filesystem(archive.url)):
                for row, known in _with_leaves(conn, batch):
                    if known is None:
                        if first < row.id < last:
                            _add(report, "inserted", f"event {row.id} in {archive.url} was"
                                 " inserted: it was never sealed", None, row.id)  # fmt: skip
                        continue
                    index, salt, number, previous, stored, is_live = known
                    subject = (str(row.id), str(row.tx_id), "")
                    item = Item(index, subject, salt, None, None, link_of(number, previous), None)
                    kept = None if salt is not None else read_kept(conn, index)
                    texts = _row(conn, row)
                    if item_hash(item, texts, kept) != stored or altered_mask(texts, kept or {}):
                        _add(report, "altered", f"event {row.id} (leaf {index}) in {archive.url}"
                             " is not what was sealed", index, row.id)  # fmt: skip
                        continue
                    report.archived += 1
                    if not is_live and index < report.leaves:
                        seen[index // 8] |= 1 << index % 8
    pruned = (index for start, end in report.pruned_leaves for index in range(start, end))
    lost = [index for index in pruned if not seen[index // 8] >> index % 8 & 1]
    if lost:
        _add(report, "removed", f"{len(lost)} events that retention pruned are not in any archive"
             f" in {url}, such as that of leaf {lost[0]}", lost[0], None)  # fmt: skip


def _add(report: Report, kind: Any, message: str, index: int | None, event: int | None) -> None:  # noqa: ANN401
    report.found += 1
    report.problems.append(Problem(kind, message, index, event))


def _with_leaves(
    conn: Connection, batch: list[Row]
) -> Iterator[tuple[Row, tuple[Any, ...] | None]]:
    known = {
        (row[0], row[1]): row[2:]
        for row in conn.execute(_LEAVES, [[archived.id for archived in batch]]).fetchall()
    }
    for archived in batch:
        yield archived, known.get((archived.id, archived.tx_id))
