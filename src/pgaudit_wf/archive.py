"""Months of the log in Parquet files: written before they leave the database, and read with it.

An archive is a file `security_audit_log_yYYYYmMM.parquet` with a manifest beside it, in a directory
or under any URL that fsspec understands. It is written under a temporary name, read back, renamed,
given its manifest, and only then noted in the database: whatever interrupts it, a run later starts
over and nothing is lost or half there. Memory does not grow with the number of events.

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

from pgaudit_wf._query import Connection, Json
from pgaudit_wf.errors import ArchiveError, MissingExtraError, translated

__all__ = ["Archive", "Progress", "archive_partition", "list_archives", "verify_archive"]

SCHEMA_VERSION = 1
# Rows in a row group, and at a time in memory.
_BATCH = 2_000
COLUMNS = (
    "id", "occurred_at", "tx_id", "actor_id", "actor_label", "org_id", "org_label", "auth_method",
    "api_key_id", "action", "resource_type", "resource_id", "outcome", "captured", "diff",
    "metadata", "ip", "country", "user_agent", "correlation_id", "db_user", "application_name",
    "attested",
)  # fmt: skip
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Progress = Callable[[int, int], None]
FileSystem: TypeAlias = Any
Row = tuple[Any, ...]


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
    return filesystem, path


def _without_secrets(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)


def _schema(pa: Any) -> Any:  # noqa: ANN401
    kinds = {"id": pa.int64(), "tx_id": pa.int64(), "captured": pa.bool_(), "attested": pa.bool_(),
             "occurred_at": pa.timestamp("us", "UTC")}  # fmt: skip
    return pa.schema(
        [(name, kinds.get(name, pa.string())) for name in COLUMNS],
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
        at: datetime = row[1]
        plain = [row[0], at.astimezone(UTC).isoformat(), *row[2:]]
        self._hash.update(json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode())
        self._hash.update(b"\n")
        for name, value in (("id", row[0]), ("tx_id", row[2]), ("occurred_at", at)):
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
            if parquet.schema_arrow.names != list(COLUMNS):
                raise ArchiveError(f"{path} is no archive of the log: its columns are others")
            for batch in parquet.iter_batches(batch_size=_BATCH):
                # Through UTC's own object: pyarrow would want pytz for one of its zones.
                plain = batch.set_column(1, "at", batch.column(1).cast(pa.int64()))
                yield [
                    (row[0], EPOCH + timedelta(microseconds=row[1]), *row[2:])
                    for row in zip(*(column.to_pylist() for column in plain), strict=True)
                ]
        except pa.ArrowInvalid as error:
            raise ArchiveError(f"{path} cannot be read as Parquet: {error}") from error


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
        sql.SQL("{}::text").format(sql.Identifier(name))
        if name in ("diff", "metadata")
        else sql.Identifier(name)
        for name in COLUMNS
    )
    statement = sql.SQL("select {} from only {} order by tx_id, id").format(
        columns, sql.Identifier("pgaudit_wf", partition)
    )
    place = COLUMNS.index("ip")
    with conn.transaction(), conn.cursor("pgaudit_wf_archive", row_factory=tuple_row) as cursor:
        cursor.execute(statement)
        while rows := cursor.fetchmany(_BATCH):
            yield [
                (*row[:place], None if row[place] is None else str(row[place]), *row[place + 1 :])
                for row in rows
            ]


def archive_partition(
    conn: Connection, partition: str, url: str, progress: Progress | None = None
) -> Archive:
    """Write a month of the log to a Parquet file, read it back, and note it in the database.

    Nothing is removed: `pgaudit_wf.prune(partition)` does that, and only what is noted so.

    Args:
        conn: A connection of the schema's owner, in autocommit mode.
        partition: The partition's name, without its schema.
        url: Directory for the file and its manifest: a path, or a URL as fsspec takes it.
        progress: Called with the number of events written so far and in all.

    Raises:
        ArchiveError: What was read back is not what was written.
        DatabaseError: PA340, if it is no month of the log; PA350, if events came meanwhile.
        MissingExtraError: pyarrow or fsspec is not installed.
        OSError: The file cannot be written.
    """
    filesystem, root = open_filesystem(url)
    with translated():
        row = conn.execute(
            sql.SQL(
                "select m.from_time, m.to_time,"
                " (select count(*) from only {}), (select count(*) from pgaudit_wf.archive as a"
                " where a.partition_name = %(name)s and a.url is not null),"
                " (select o.system_identifier from pgaudit_wf.log_origin as o), current_database()"
                " from pgaudit_wf.month_of(%(name)s) as m"
            ).format(sql.Identifier("pgaudit_wf", _checked(conn, partition))),
            {"name": partition},
        ).fetchone()
    assert row is not None  # noqa: S101 - month_of raises instead
    from_time, to_time, expected, earlier, system_identifier, database = row
    name = f"{partition}.parquet" if not earlier else f"{partition}.{earlier + 1}.parquet"
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

    with translated():
        summary = write_rows(filesystem, temporary, counted())
    if not summary["events"]:
        filesystem.rm(temporary)
        raise ArchiveError(f"{partition} has no events to archive")
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "file": name,
        "partition": partition,
        "from_time": from_time.astimezone(UTC).isoformat(),
        "to_time": to_time.astimezone(UTC).isoformat(),
        **summary,
        "database": database,
        "system_identifier": str(system_identifier),
        "archived_at": datetime.now(UTC).isoformat(),
        "erasures": [],
    }
    check_file(filesystem, temporary, manifest)
    filesystem.mv(temporary, path)
    write_manifest(filesystem, path, manifest)
    full = filesystem.unstrip_protocol(path)
    with translated():
        conn.execute(
            "select pgaudit_wf.record_archive(%s, %s, %s, %s)",
            [partition, full, manifest["sha256"], json.dumps(manifest)],
        )
    return Archive(full, manifest)


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


def list_archives(url: str) -> list[Archive]:
    """Return the archives under a path or URL, oldest month first.

    Raises:
        ArchiveError: There is none, or a manifest cannot be read.
        MissingExtraError: fsspec is not installed.
    """
    filesystem, root = open_filesystem(url)
    try:
        paths = sorted(filesystem.glob(f"{root.rstrip('/')}/*.manifest.json"))
    except OSError as error:
        raise ArchiveError(f"{_without_secrets(url)} cannot be read: {error}") from error
    found = []
    for path in paths:
        with filesystem.open(path, "rb") as file:
            try:
                manifest = json.load(file)
                if manifest["schema_version"] != SCHEMA_VERSION:
                    raise ArchiveError(
                        f"{path} is of version {manifest['schema_version']}, which this release"
                        " of pgaudit-wf does not read"
                    )
                data = filesystem.unstrip_protocol(f"{root.rstrip('/')}/{manifest['file']}")
            except (ValueError, KeyError, TypeError) as error:
                raise ArchiveError(f"{path} is no manifest of an archive") from error
        found.append(Archive(data, manifest))
    if not found:
        raise ArchiveError(f"there is no archive in {_without_secrets(url)}")
    return found
