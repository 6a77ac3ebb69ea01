"""Months of the log in Parquet files: written before they leave the database, and read with it.

An archive is a file `security_audit_log_yYYYYmMM.<cluster>-<database>.parquet` with a manifest
next to it, in a directory or under any URL that fsspec supports. It is written under a temporary
name, renamed to an unused name, read back from there and compared with the log, recorded in the
database and then given its manifest. If it is interrupted, a later run continues and nothing is
lost or incomplete. Only recorded files belong to the database; next to any other archive nothing is
written or removed. Memory does not grow with the number of events.

Needs the extra `archive`: pip install 'pgaudit-wf[archive]'.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from psycopg import sql
from psycopg.rows import tuple_row

from pgaudit_wf.archive.files import (
    BATCH,
    BATCH_SIZE,
    SCHEMA_VERSION,
    Archive,
    Digest,
    FileSystem,
    Row,
    manifest_path,
    manifests,
    open_filesystem,
    read_rows,
    sha256_of,
    write_manifest,
    write_rows,
)
from pgaudit_wf.errors import (
    ArchiveConflictError,
    ArchiveError,
    DatabaseError,
    translated,
)
from pgaudit_wf.trail.event import EVENT_COLUMNS, EventRow
from pgaudit_wf.trail.statement import Connection, Json, one

__all__ = [
    "Progress",
    "archive_partition",
    "confirm_archive",
]
# The columns of an event that an erasure may change.
_ERASABLE = ("actor_label", "ip", "user_agent", "diff", "metadata")

Progress = Callable[[int, int], None]


def _events(conn: Connection, partition: str) -> Iterator[list[Row]]:
    columns = sql.SQL(", ").join(
        sql.SQL("pgaudit_wf._readable_json({})::text").format(sql.Identifier(name))
        if name in ("diff", "metadata")
        else sql.Identifier(name)
        for name in EVENT_COLUMNS
    )
    statement = sql.SQL("select {} from only {} order by tx_id, id").format(
        columns, sql.Identifier("pgaudit_wf", partition)
    )
    with conn.transaction(), conn.cursor("pgaudit_wf_archive", row_factory=tuple_row) as cursor:
        cursor.execute(statement)
        batch: list[Row] = []
        size = 0
        for values in cursor:
            row: Row = EventRow._make(values)
            batch.append(row._replace(ip=None if row.ip is None else str(row.ip)))
            size += len(row.diff or "") + len(row.metadata)
            if len(batch) == BATCH or size > BATCH_SIZE:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch


def _read_back(
    conn: Connection,
    partition: str,
    filesystem: FileSystem,
    path: str,
    moved: Callable[[int], None] = lambda _: None,
) -> tuple[dict[str, Json], int]:
    """Read a file back and look up every live event of a month in it.

    Returns:
        The counts and hashes for its manifest, and how many of its events are live.

    Raises:
        ArchiveConflictError: An event is missing from the file or differs there.
    """
    if not filesystem.exists(path):
        raise ArchiveConflictError(f"{path} is missing")
    sha256 = sha256_of(filesystem, path)
    digest = Digest()

    def rows() -> Iterator[Row]:
        for batch in read_rows(filesystem, path):
            for row in batch:
                digest.add(row)
                yield row

    archived = rows()
    live_events = 0
    for batch in _events(conn, partition):
        for live in batch:
            key = live.tx_id, live.id
            # Both are ordered by tx_id and id.
            found = next((row for row in archived if (row.tx_id, row.id) >= key), None)
            if found is None or (found.tx_id, found.id) != key:
                raise ArchiveConflictError(f"{path} does not contain event {live.id} of the log")
            if found != live and not _is_erased(conn, found, live):
                raise ArchiveConflictError(f"{path} has a different event {live.id} than the log")
        live_events += len(batch)
        moved(digest.events)
    for _ in archived:
        pass
    size = filesystem.size(path)
    return {**digest.summary(), "bytes": size, "sha256": sha256}, live_events


def _is_erased(conn: Connection, archived: Row, live: Row) -> bool:
    """Return whether an erasure, not yet applied to the archive, explains the difference."""
    differing = {
        name for name, old, new in zip(EVENT_COLUMNS, archived, live, strict=True) if old != new
    }  # fmt: skip
    return (
        differing.issubset(_ERASABLE)
        and conn.execute(
            "select from pgaudit_wf.erased_event where tx_id = %s and event_id = %s",
            [live.tx_id, live.id],
        ).fetchone()
        is not None
    )


def _check_location(conn: Connection, url: str) -> None:
    """Make sure that all archives at a location belong to this database.

    Raises:
        ArchiveConflictError: A manifest there is for a file that this database has not recorded.
    """
    own = dict(
        conn.execute(
            "select a.manifest ->> 'file', a.sha256 from pgaudit_wf.archive as a"
            " where a.url is not null"
        ).fetchall()
    )
    for path, manifest in manifests(*open_filesystem(url)):
        # An interrupted erasure leaves a manifest that the database does not have yet.
        hashes = [manifest["sha256"], *(e["previous_sha256"] for e in manifest["erasures"])]
        if own.get(manifest["file"]) not in hashes:
            raise ArchiveConflictError(
                f"{path} does not belong to this database: it was written by database"
                f" {manifest['database']} of cluster {manifest['system_identifier']},"
                " and this database has not recorded it, or was restored to a time before; use a"
                " separate location for each database, and a new one after such a restore"
            )


def archive_partition(
    conn: Connection, partition: str, url: str, progress: Progress | None = None
) -> Archive:
    """Write a month of the log to a Parquet file, read it back, and record it in the database.

    Nothing is removed: `pgaudit_wf.prune(partition)` does that, for recorded archives only. Nothing
    is overwritten either: a file left by an interrupted run is recorded as it is, if it contains
    the month.

    Args:
        conn: A connection of the schema's owner, in autocommit mode.
        partition: The partition's name, without its schema.
        url: Directory for the file and its manifest: a path, or a URL as fsspec takes it.
        progress: Called with the number of events written so far and in all.

    Raises:
        ArchiveConflictError: Archives of another database lie there, or what was read back is not
            what the log holds.
        ArchiveError: The month has no events, or the file was damaged while it was written.
        DatabaseError: PA340 if it is not a month of the log; PA350 if events were added meanwhile.
        MissingExtraError: pyarrow or fsspec is not installed.
        OSError: The file cannot be written.
    """
    filesystem, root = open_filesystem(url)
    with translated():
        from_time, to_time, expected, earlier, place, about = one(
            conn,
            sql.SQL(
                "select m.from_time, m.to_time, (select count(*) from only {}),"
                " (select count(*) from pgaudit_wf.archive as a"
                " where a.manifest ->> 'file' like %(name)s || '.' || i.place || '.%%'),"
                " i.place, i.about"
                " from pgaudit_wf._month_of(%(name)s) as m,"
                " (select o.system_identifier || '-' || d.oid as place, jsonb_build_object("
                "'log_id', p.log_id, 'system_identifier', o.system_identifier::text,"
                " 'database_oid', d.oid::text, 'database', d.datname) as about"
                " from pgaudit_wf.log_origin as o, pgaudit_wf.alert_policy as p, pg_database as d"
                " where d.datname = current_database()) as i"
            ).format(sql.Identifier("pgaudit_wf", _checked(conn, partition))),
            {"name": partition},
        )
        if not expected:
            raise ArchiveError(f"{partition} has no events to archive")
        _check_location(conn, url)
    name = f"{partition}.{place}{f'.{earlier + 1}' if earlier else ''}.parquet"
    path = f"{root.rstrip('/')}/{name}"
    temporary = f"{root.rstrip('/')}/.{name}.tmp"
    filesystem.makedirs(root, exist_ok=True)

    def counted() -> Iterator[list[Row]]:
        written = 0
        for batch in _events(conn, partition):
            yield batch
            written += len(batch)
            if progress:
                progress(written, expected)

    is_new = not filesystem.exists(path) or not filesystem.size(path)
    with translated(), conn.transaction():
        # One snapshot, so that the comparison sees exactly what was written.
        conn.execute("set transaction isolation level repeatable read read only")
        if is_new:
            written = write_rows(filesystem, temporary, counted())
            if sha256_of(filesystem, temporary) != written["sha256"]:
                raise ArchiveError(f"{temporary} was damaged while it was written: SHA-256 differs")
            _place(filesystem, temporary, path)
        summary, live_events = _read_back(conn, partition, filesystem, path)
    if summary["events"] != live_events:
        raise ArchiveConflictError(
            f"{path} does not belong to this database: it has events that {partition} does not"
        )
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "file": name,
        "partition": partition,
        "from_time": from_time.astimezone(UTC).isoformat(),
        "to_time": to_time.astimezone(UTC).isoformat(),
        **summary,
        **about,
        "archived_at": datetime.now(UTC).isoformat(),
        "erasures": [],
    }
    full = filesystem.unstrip_protocol(path)
    try:
        with translated():
            conn.execute(
                "select pgaudit_wf.record_archive(%s, %s, %s, %s)",
                [partition, full, manifest["sha256"], json.dumps(manifest)],
            )
    except DatabaseError:
        # Made by this run but not recorded, it would block the next one.
        if is_new:
            filesystem.rm(path)
        raise
    write_manifest(filesystem, path, manifest)
    return Archive(full, manifest)


def _place(filesystem: FileSystem, temporary: str, path: str) -> None:
    """Rename a file to an unused name; an empty file there is a reserved name."""
    if not filesystem.exists(path):
        try:
            with filesystem.open(path, "xb"):
                pass
        except FileExistsError as error:
            raise ArchiveConflictError(f"{path} has just been written by another run") from error
        except (NotImplementedError, ValueError):
            # Not every filesystem can; but no other database uses that file name.
            pass
    filesystem.mv(temporary, path)


def confirm_archive(conn: Connection, partition: str, progress: Progress | None = None) -> None:
    """Read the archive of a month back and compare it with the log, as required before pruning.

    A month without an archive is left to `pgaudit_wf.prune`, which drops empty ones only.

    Args:
        conn: A connection of the schema's owner, in autocommit mode.
        partition: The partition's name, without its schema.
        progress: Called with the number of events read so far and in all.

    Raises:
        ArchiveConflictError: The file is missing, is not the one that was archived, lacks an event
            of the log, or shares its location with archives of another database.
        DatabaseError: PA340 if it is not a month of the log; PA350 if an erasure ran meanwhile.
        MissingExtraError: pyarrow or fsspec is not installed.
        OSError: The file cannot be read.
    """
    with translated():
        row = conn.execute(
            "select a.id, a.url, a.sha256, a.events, a.manifest::text"
            " from pgaudit_wf.archive as a"
            " where a.partition_name = %s order by a.id desc limit 1",
            [_checked(conn, partition)],
        ).fetchone()
        if row is None or row[1] is None:
            return
        number, url, sha256, events, manifest = row

        def moved(done: int) -> None:
            if progress:
                progress(done, events)

        filesystem, path = open_filesystem(url)
        _check_location(conn, url.rsplit("/", 1)[0])
        if filesystem.exists(path) and sha256_of(filesystem, path) != sha256:
            raise ArchiveConflictError(f"{path} is not the file that was archived: SHA-256 differs")
        _read_back(conn, partition, filesystem, path, moved)
        if not filesystem.exists(manifest_path(path)):
            write_manifest(filesystem, path, json.loads(manifest))
        conn.execute("select pgaudit_wf._confirm_archive(%s, %s)", [number, sha256])


def _checked(conn: Connection, partition: str) -> str:
    """Return the name of a month of the log; the database refuses any other."""
    conn.execute("select from pgaudit_wf._month_of(%s)", [partition])
    return partition
