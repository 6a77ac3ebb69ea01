"""The files of an archive: Parquet with events, each with a manifest."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, Any, TypeAlias

from pgaudit_wf.errors import (
    ArchiveConflictError,
    ArchiveError,
    MissingExtraError,
)
from pgaudit_wf.trail.event import EVENT_COLUMNS, EventRow
from pgaudit_wf.trail.statement import Json

__all__ = [
    "Archive",
    "list_archives",
    "verify_archive",
]

SCHEMA_VERSION = 1
# Rows in a row group, and at a time in memory.
BATCH = 2_000
# At most this many characters: an event may have megabytes, and Arrow takes 2 GB of text.
BATCH_SIZE = 1 << 26
_OCCURRED_AT = EVENT_COLUMNS.index("occurred_at")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FileSystem: TypeAlias = Any
Row: TypeAlias = EventRow[int, datetime]


@dataclass(frozen=True, slots=True)
class Archive:
    """An archived month: `url` of its Parquet file, and the manifest stored with it."""

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
    # It is shared within the process, and files written by others in the meantime must be seen.
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


class Digest:
    """SHA-256 over the events themselves, independent of the file's encoding."""

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
    """A file that is written once, sequentially, and its SHA-256."""

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
    digest = Digest()
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
    """Return whether its files can be opened by their path."""
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def read_rows(filesystem: FileSystem, path: str) -> Iterator[list[Row]]:
    """Read the events of a Parquet file in the batches in which they were written."""
    pa = _pyarrow()
    with filesystem.open(path, "rb") as file:
        try:
            parquet = pa.parquet.ParquetFile(file)
            if parquet.schema_arrow.names != list(EVENT_COLUMNS):
                raise ArchiveConflictError(
                    f"{path} is not an archive of this log: unexpected columns"
                )
            for number in range(parquet.num_row_groups):
                batch = parquet.read_row_group(number)
                # Avoids pyarrow's own time zones, which need pytz.
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
    digest = Digest()
    for batch in read_rows(filesystem, path):
        for row in batch:
            digest.add(row)
    for name, value in digest.summary().items():
        if manifest[name] != value:
            raise ArchiveError(f"{path} has {name} {value}, but should have {manifest[name]}")


def verify_archive(archive: Archive) -> None:
    """Read an archive from end to end and compare it with its manifest.

    Raises:
        ArchiveError: The file is not what the manifest says, or cannot be read.
        OSError: The file does not exist.
    """
    filesystem, path = open_filesystem(archive.url)
    check_file(filesystem, path, archive.manifest)


def manifest_path(path: str) -> str:
    """Return the path of the manifest of a file."""
    return path.removesuffix(".parquet") + ".manifest.json"


def write_manifest(filesystem: FileSystem, path: str, manifest: Mapping[str, Json]) -> None:
    """Write the manifest next to its file, atomically."""
    final = manifest_path(path)
    temporary = f"{final}.tmp"
    with filesystem.open(temporary, "wb") as file:
        file.write((json.dumps(manifest, indent=2) + "\n").encode())
        file.flush()
        if is_local(filesystem):
            os.fsync(file.fileno())
    filesystem.mv(temporary, final)


def manifests(filesystem: FileSystem, root: str) -> Iterator[tuple[str, dict[str, Json]]]:
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
                        f"{path} has version {manifest['schema_version']}, which this release"
                        " of pgaudit-wf cannot read"
                    )
                for name in ("file", "sha256", "log_id", "database", "system_identifier"):
                    str(manifest[name])
                [e["previous_sha256"] for e in manifest["erasures"]]
            except (ValueError, KeyError, TypeError) as error:
                raise ArchiveConflictError(f"{path} is not the manifest of an archive") from error
        yield path, manifest


def list_archives(url: str) -> list[Archive]:
    """Return the archives under a path or URL, oldest month first.

    Raises:
        ArchiveError: There are none, a manifest cannot be read, or they belong to several logs.
        MissingExtraError: fsspec is not installed.
    """
    filesystem, root = open_filesystem(url)
    try:
        found = [
            Archive(filesystem.unstrip_protocol(f"{root.rstrip('/')}/{manifest['file']}"), manifest)
            for _, manifest in manifests(filesystem, root)
        ]
    except OSError as error:
        raise ArchiveError(f"{_without_secrets(url)} cannot be read: {error}") from error
    if not found:
        raise ArchiveError(f"no archives found in {_without_secrets(url)}")
    # Their events have overlapping ids, so some would be mistaken for others.
    if len({archive.manifest["log_id"] for archive in found}) > 1:
        raise ArchiveConflictError(f"{_without_secrets(url)} contains archives of several logs")
    return found
