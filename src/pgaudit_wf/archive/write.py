"""Months of the log in Parquet files: written before they leave the database, and read with it.

An archive is a file `security_audit_log_yYYYYmMM.<cluster>-<database>.parquet` with a manifest
beside it, in a directory or under any URL that fsspec understands. It is written under a temporary
name, given a name that nothing has, read back from there and compared with the log, noted in the
database and then given its manifest: whatever interrupts it, a run later goes on and nothing is
lost or half there. Only what the database has noted is its own; beside anything else nothing is
written or removed. Memory does not grow with the number of events.

Needs the extra `archive`: pip install 'pgaudit-wf[archive]'.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, Any, TypeAlias

from psycopg import sql
from psycopg.rows import tuple_row

from pgaudit_wf.errors import (
    ArchiveConflictError,
    ArchiveError,
    DatabaseError,
    MissingExtraError,
    translated,
)
from pgaudit_wf.trail.event import EVENT_COLUMNS, EventRow
from pgaudit_wf.trail.statement import Connection, Json, one

__all__ = [
    "Archive",
    "Progress",
    "archive_partition",
    "confirm_archive",
    "list_archives",
    "verify_archive",
]

SCHEMA_VERSION = 1
# Rows in a row group, and at a time in memory.
_BATCH = 2_000
# Or fewer, of so many characters: an event may have megabytes, and Arrow takes 2 GB of texts.
_BATCH_SIZE = 1 << 26
_OCCURRED_AT = EVENT_COLUMNS.index("occurred_at")
# What an erasure may change of an event.
_ERASABLE = ("actor_label", "ip", "user_agent", "diff", "metadata")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Progress = Callable[[int, int], None]
FileSystem: TypeAlias = Any
Row: TypeAlias = EventRow[int, datetime]


@dataclass(frozen=True, slots=True)
class Archive:
    """An archived month: `url` of its Parquet file, and the manifest that lies beside it."""

    url: str
    manifest: Mapping[str, Json]

    @property
    def events(self) -> int:
        """The number of events in the file."""
        return int(self.manifest["events"])


def _pyarrow() -> Any:  # noqa: ANN401 - the package has no types
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra() from error
    return pa


def missing_extra() -> MissingExtraError:
    """Return the error that says which extra is missing."""
    return MissingExtraError("archives need more packages: pip install 'pgaudit-wf[archive]'")


def open_filesystem(url: str) -> tuple[FileSystem, str]:
    """Return the filesystem that a path or URL is on, and the path there."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise missing_extra() from error
    try:
        filesystem, path = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ArchiveError(f"{_without_secrets(url)} cannot be opened: {error}") from error
    # It is shared within the process, and what others have written since must be seen.
    filesystem.invalidate_cache()
    return filesystem, path


def _without_secrets(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)


def _schema(pa: Any) -> Any:  # noqa: ANN401
    kinds = {"id": pa.int64(), "tx_id": pa.int64(), "captured": pa.bool_(), "attested": pa.bool_(),
             "occurred_at": pa.timestamp("us", "UTC")}  # fmt: skip
    return pa.schema(
        [(name, kinds.get(name, pa.string())) for name in EVENT_COLUMNS],
        metadata={"pgaudit_wf.schema_version": str(SCHEMA_VERSION)},
    )


class _Digest:
    """SHA-256 over the events themselves, whatever the file that holds them looks like."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.events = 0
        self._low: dict[str, Any] = {}
        self._high: dict[str, Any] = {}

    def add(self, row: Row) -> None:
        self.events += 1
        plain: list[object] = [*row]
        plain[_OCCURRED_AT] = row.occurred_at.astimezone(UTC).isoformat()
        self._hash.update(json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode())
        self._hash.update(b"\n")
        for name, value in (("id", row.id), ("tx_id", row.tx_id), ("occurred_at", row.occurred_at)):
            if name not in self._low or value < self._low[name]:
                self._low[name] = value
            if name not in self._high or value > self._high[name]:
                self._high[name] = value

    def summary(self) -> dict[str, Json]:
        ends = {
            f"{end}_{name}": value.astimezone(UTC).isoformat() if name == "occurred_at" else value
            for end, values in (("first", self._low), ("last", self._high))
            for name, value in values.items()
        }
        return {"events": self.events, "content_sha256": self._hash.hexdigest(), **ends}


class _HashingFile:
    """A file that is written to once, from front to back, and its SHA-256."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self._size += len(data)
        self._file.write(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def summary(self) -> dict[str, Json]:
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}


def write_rows(filesystem: FileSystem, path: str, batches: Iterable[list[Row]]) -> dict[str, Json]:
    """Write events to a Parquet file; return the counts and hashes for its manifest."""
    pa = _pyarrow()
    schema = _schema(pa)
    digest = _Digest()
    with filesystem.open(path, "wb") as file:
        sink = _HashingFile(file)
        with pa.parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
            for batch in batches:
                for row in batch:
                    digest.add(row)
                arrays = [
                    pa.array(values, field.type)
                    for values, field in zip(zip(*batch, strict=True), schema, strict=True)
                ]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        file.flush()
        if is_local(filesystem):
            os.fsync(file.fileno())
    return {**digest.summary(), **sink.summary()}


def is_local(filesystem: FileSystem) -> bool:
    """Whether files of it can be opened by their path."""
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def read_rows(filesystem: FileSystem, path: str) -> Iterator[list[Row]]:
    """Read the events of a Parquet file, as many at a time as were written at a time."""
    pa = _pyarrow()
    with filesystem.open(path, "rb") as file:
        try:
            parquet = pa.parquet.ParquetFile(file)
            if parquet.schema_arrow.names != list(EVENT_COLUMNS):
                raise ArchiveConflictError(
                    f"{path} is no archive of the log: its columns are others"
                )
            for number in range(parquet.num_row_groups):
                batch = parquet.read_row_group(number)
                # Through UTC's own object: pyarrow would want pytz for one of its zones.
                micros = batch.column(_OCCURRED_AT).cast(pa.int64())
                plain = batch.set_column(_OCCURRED_AT, "micros", micros)
                columns = [column.to_pylist() for column in plain.columns]
                columns[_OCCURRED_AT] = [
                    EPOCH + timedelta(microseconds=since) for since in columns[_OCCURRED_AT]
                ]
                yield [EventRow._make(values) for values in zip(*columns, strict=True)]
        except pa.ArrowInvalid as error:
            raise ArchiveConflictError(f"{path} cannot be read as Parquet: {error}") from error


def sha256_of(filesystem: FileSystem, path: str) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with filesystem.open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_file(filesystem: FileSystem, path: str, manifest: Mapping[str, Json]) -> None:
    """Read a file from end to end and compare it with its manifest."""
    if sha256_of(filesystem, path) != manifest["sha256"]:
        raise ArchiveError(f"{path} is not the file that its manifest describes: SHA-256 differs")
    digest = _Digest()
    for batch in read_rows(filesystem, path):
        for row in batch:
            digest.add(row)
    for name, value in digest.summary().items():
        if manifest[name] != value:
            raise ArchiveError(f"{path} has {name} {value}, and should have {manifest[name]}")


def verify_archive(archive: Archive) -> None:
    """Read an archive from end to end and compare it with its manifest.

    Raises:
        ArchiveError: The file is not what the manifest says, or cannot be read.
        OSError: There is no such file.
    """
    filesystem, path = open_filesystem(archive.url)
    check_file(filesystem, path, archive.manifest)


def _events(conn: Connection, partition: str) -> Iterator[list[Row]]:
    columns = sql.SQL(", ").join(
        sql.SQL("pgaudit_wf.readable_json({})::text").format(sql.Identifier(name))
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
            if len(batch) == _BATCH or size > _BATCH_SIZE:
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
    """Read a file from where it lies and look up every live event of a month in it.

    Returns:
        The counts and hashes for its manifest, and how many of its events are live.

    Raises:
        ArchiveConflictError: An event is not in it, or is another there.
    """
    if not filesystem.exists(path):
        raise ArchiveConflictError(f"{path} is missing")
    sha256 = sha256_of(filesystem, path)
    digest = _Digest()

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
            # Both are in the order of tx_id and id.
            found = next((row for row in archived if (row.tx_id, row.id) >= key), None)
            if found is None or (found.tx_id, found.id) != key:
                raise ArchiveConflictError(f"{path} does not hold event {live.id}, which is live")
            if found != live and not _is_erased(conn, found, live):
                raise ArchiveConflictError(f"{path} holds another event {live.id} than the log")
        live_events += len(batch)
        moved(digest.events)
    for _ in archived:
        pass
    size = filesystem.size(path)
    return {**digest.summary(), "bytes": size, "sha256": sha256}, live_events


def _is_erased(conn: Connection, archived: Row, live: Row) -> bool:
    """Whether an erasure, which need not have come to the archive yet, explains the difference."""
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


def _check_place(conn: Connection, url: str) -> None:
    """Make sure that all archives in a place are this database's own.

    Raises:
        ArchiveConflictError: A manifest there is not of a file that this database has recorded.
    """
    own = dict(
        conn.execute(
            "select a.manifest ->> 'file', a.sha256 from pgaudit_wf.archive as a"
            " where a.url is not null"
        ).fetchall()
    )
    for path, manifest in _manifests(*open_filesystem(url)):
        # An erasure that was interrupted has left a manifest that the database does not have yet.
        hashes = [manifest["sha256"], *(e["previous_sha256"] for e in manifest["erasures"])]
        if own.get(manifest["file"]) not in hashes:
            raise ArchiveConflictError(
                f"{path} is not this database's own: it was written by database"
                f" {manifest['database']} of cluster {manifest['system_identifier']},"
                " and this database has not recorded it; give each database a place of its own"
            )


def archive_partition(
    conn: Connection, partition: str, url: str, progress: Progress | None = None
) -> Archive:
    """Write a month of the log to a Parquet file, read it back, and note it in the database.

    Nothing is removed: `pgaudit_wf.prune(partition)` does that, and only what is noted so. Nothing
    is overwritten either: a file that a run has left that was interrupted is noted as it is, if it
    holds the month.

    Args:
        conn: A connection of the schema's owner, in autocommit mode.
        partition: The partition's name, without its schema.
        url: Directory for the file and its manifest: a path, or a URL as fsspec takes it.
        progress: Called with the number of events written so far and in all.

    Raises:
        ArchiveConflictError: Archives of another database lie there, or what was read back is not
            what the log holds.
        ArchiveError: The month has no events, or the file was damaged while it was written.
        DatabaseError: PA340, if it is no month of the log; PA350, if events came meanwhile.
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
                " from pgaudit_wf.month_of(%(name)s) as m,"
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
        _check_place(conn, url)
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
        # What is compared is what was written, whatever comes meanwhile.
        conn.execute("set transaction isolation level repeatable read read only")
        if is_new:
            written = write_rows(filesystem, temporary, counted())
            if sha256_of(filesystem, temporary) != written["sha256"]:
                raise ArchiveError(f"{temporary} was damaged while it was written: SHA-256 differs")
            _place(filesystem, temporary, path)
        summary, live_events = _read_back(conn, partition, filesystem, path)
    if summary["events"] != live_events:
        raise ArchiveConflictError(
            f"{path} is not this database's own: it holds events that {partition} does not"
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
        # Made by this run and recorded by none, it would be in the next one's way.
        if is_new:
            filesystem.rm(path)
        raise
    write_manifest(filesystem, path, manifest)
    return Archive(full, manifest)


def _place(filesystem: FileSystem, temporary: str, path: str) -> None:
    """Give a file a name that nothing has; an empty file there is a name that was only taken."""
    if not filesystem.exists(path):
        try:
            with filesystem.open(path, "xb"):
                pass
        except FileExistsError as error:
            raise ArchiveConflictError(f"{path} has just been written by another run") from error
        except (NotImplementedError, ValueError):
            # Not every filesystem can; no other database gives a file that name.
            pass
    filesystem.mv(temporary, path)


def confirm_archive(conn: Connection, partition: str, progress: Progress | None = None) -> None:
    """Read the archive of a month back and compare it with the log, as is due before it is pruned.

    A month without an archive is left to `pgaudit_wf.prune`, which lets go of empty ones only.

    Args:
        conn: A connection of the schema's owner, in autocommit mode.
        partition: The partition's name, without its schema.
        progress: Called with the number of events read so far and in all.

    Raises:
        ArchiveConflictError: The file is missing, is not the one that was archived, does not hold
            an event that is live, or archives of another database lie beside it.
        DatabaseError: PA340, if it is no month of the log; PA350, if an erasure came meanwhile.
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
        _check_place(conn, url.rsplit("/", 1)[0])
        if filesystem.exists(path) and sha256_of(filesystem, path) != sha256:
            raise ArchiveConflictError(f"{path} is not the file that was archived: SHA-256 differs")
        _read_back(conn, partition, filesystem, path, moved)
        if not filesystem.exists(manifest_path(path)):
            write_manifest(filesystem, path, json.loads(manifest))
        conn.execute("select pgaudit_wf.confirm_archive(%s, %s)", [number, sha256])


def _checked(conn: Connection, partition: str) -> str:
    """Return the name of a month of the log, and let the database refuse any other."""
    conn.execute("select from pgaudit_wf.month_of(%s)", [partition])
    return partition


def manifest_path(path: str) -> str:
    """Return the path of the manifest of a file."""
    return path.removesuffix(".parquet") + ".manifest.json"


def write_manifest(filesystem: FileSystem, path: str, manifest: Mapping[str, Json]) -> None:
    """Write the manifest beside its file, all of it or nothing."""
    final = manifest_path(path)
    temporary = f"{final}.tmp"
    with filesystem.open(temporary, "wb") as file:
        file.write((json.dumps(manifest, indent=2) + "\n").encode())
        file.flush()
        if is_local(filesystem):
            os.fsync(file.fileno())
    filesystem.mv(temporary, final)


def _manifests(filesystem: FileSystem, root: str) -> Iterator[tuple[str, dict[str, Json]]]:
    """Yield the manifests in a directory with their paths, oldest month first."""
    try:
        names = filesystem.ls(root, detail=False)
    except FileNotFoundError:
        return
    for path in sorted(name for name in names if name.endswith(".manifest.json")):
        with filesystem.open(path, "rb") as file:
            try:
                manifest = json.load(file)
                if manifest["schema_version"] != SCHEMA_VERSION:
                    raise ArchiveConflictError(
                        f"{path} is of version {manifest['schema_version']}, which this release"
                        " of pgaudit-wf does not read"
                    )
                for name in ("file", "sha256", "log_id", "database", "system_identifier"):
                    str(manifest[name])
                [e["previous_sha256"] for e in manifest["erasures"]]
            except (ValueError, KeyError, TypeError) as error:
                raise ArchiveConflictError(f"{path} is no manifest of an archive") from error
        yield path, manifest


def list_archives(url: str) -> list[Archive]:
    """Return the archives under a path or URL, oldest month first.

    Raises:
        ArchiveError: There is none, a manifest cannot be read, or they are of several logs.
        MissingExtraError: fsspec is not installed.
    """
    filesystem, root = open_filesystem(url)
    try:
        found = [
            Archive(filesystem.unstrip_protocol(f"{root.rstrip('/')}/{manifest['file']}"), manifest)
            for _, manifest in _manifests(filesystem, root)
        ]
    except OSError as error:
        raise ArchiveError(f"{_without_secrets(url)} cannot be read: {error}") from error
    if not found:
        raise ArchiveError(f"there is no archive in {_without_secrets(url)}")
    # Their events have the same numbers, so that some would pass for others.
    if len({archive.manifest["log_id"] for archive in found}) > 1:
        raise ArchiveConflictError(f"archives of several logs lie in {_without_secrets(url)}")
    return found
