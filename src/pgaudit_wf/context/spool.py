"""The file that keeps attempts while the database cannot be reached."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from pgaudit_wf.errors import translated

__all__ = [
    "SpoolReading",
    "read_spool",
    "spool_path",
    "spooled",
]


@dataclass
class _Configured:
    path: Path | None = None


configured = _Configured()


def spool_path() -> Path:
    """Return the spool file that is in use, whether it exists or not.

    Raises:
        RuntimeError: No file is configured, and there is no home directory.
    """
    if configured.path is not None:
        return configured.path
    if given := os.environ.get("PGAUDIT_WF_SPOOL"):
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME")
    home = Path(state) if state else Path.home() / ".local" / "state"
    return home / "pgaudit_wf" / "attempts.jsonl"


def append_lines(path: Path, lines: Sequence[bytes]) -> None:
    """Append lines to a file that other processes append to and remove at the same time.

    When this returns, all lines are on disk; if it raises, none are.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        with _locked(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as fd:
            if fd is None:
                continue
            size = os.fstat(fd).st_size
            data = b"".join(line + b"\n" for line in lines)
            if size and os.pread(fd, 1, size - 1) != b"\n":
                # Another process was interrupted in the middle of a line.
                data = b"\n" + data
            try:
                while data:
                    data = data[os.write(fd, data) :]
                os.fsync(fd)
            except BaseException:
                os.ftruncate(fd, size)
                raise
            if not size:
                _sync_directory(path.parent)
            return


@contextmanager
def _locked(path: Path, flags: int, *, wait: bool = True) -> Iterator[int | None]:
    """Open and lock a file; None if the path refers to another file by now."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        opened = os.fstat(fd)
        try:
            there = path.stat(follow_symlinks=False)
        except FileNotFoundError:
            yield None
        else:
            same = (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)
            yield fd if same else None
    finally:
        os.close(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class SpoolReading:
    """How many attempts of a spool file were recorded.

    Attributes:
        recorded: Attempts that were recorded as events.
        known: Attempts that had already been recorded.
        rejected: Lines that are not attempts, or that the database will never accept; they are
            kept in a file next to the spool file, whose name ends with `.rejected`.
    """

    recorded: int = 0
    known: int = 0
    rejected: int = 0


def spooled(path: Path | None = None) -> list[dict[str, Any]]:
    """Return the attempts that wait in a spool file, including any left by an interrupted reading.

    Args:
        path: The spool file; default: `spool_path()`.
    """
    path = path or spool_path()
    files = [*_claimed(path), *([path] if path.exists() else [])]
    lines = [line for file in files for line in file.read_bytes().splitlines() if line.strip()]
    return [parsed for parsed in map(_parsed, lines) if parsed is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _claimed(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.*.reading"))


def read_spool(
    conn: psycopg.Connection[Any],
    path: Path | None = None,
    on_progress: Callable[[], object] | None = None,
) -> SpoolReading:
    """Record the attempts that wait in a spool file, each exactly once, and empty it.

    It may be killed at any point, repeated, and run by several processes at once while others
    append. Each attempt is recorded in a transaction of its own; its event's `occurred_at` is the
    time of recording, and `metadata.attempted_at` the time of the attempt.

    Args:
        conn: A connection in autocommit mode of a role that may call record_attempt.
        path: The spool file; default: `spool_path()`.
        on_progress: Called after each attempt.

    Raises:
        ValueError: The connection is not in autocommit mode.
        psycopg.Error: The database cannot be reached, or this role may not record. Attempts that
            were not recorded stay in the file.
        DatabaseError: As above, if the audit schema raised the error.
        OSError: A file cannot be read, moved or removed.
    """
    if not conn.autocommit:
        raise ValueError("read_spool needs a connection in autocommit mode")
    path = path or spool_path()
    _claim(path)
    counts = dict.fromkeys(("recorded", "known", "rejected"), 0)
    for file in _claimed(path):
        try:
            with _locked(file, os.O_RDONLY, wait=False) as fd:
                if fd is None:
                    continue
                for line in file.read_bytes().splitlines():
                    if line.strip():
                        counts[_read_line(conn, line, path)] += 1
                        if on_progress:
                            on_progress()
                file.unlink()
        except (BlockingIOError, FileNotFoundError):
            # Another reader has claimed it, or has finished it.
            continue
    return SpoolReading(**counts)


def _claim(path: Path) -> None:
    """Move the spool file away under its lock; processes waiting to append create a new one."""
    try:
        with _locked(path, os.O_RDONLY) as fd:
            if fd is not None:
                path.rename(path.with_name(f"{path.name}.{uuid.uuid4().hex}.reading"))
    except FileNotFoundError:
        return


def _read_line(conn: psycopg.Connection[Any], line: bytes, path: Path) -> str:
    parsed = _parsed(line)
    if parsed is not None:
        try:
            with translated():
                row = conn.execute(
                    "select pgaudit_wf.record_attempt(%s::jsonb)", [json.dumps(parsed)]
                ).fetchone()
        except Exception as error:
            # Any other error may be temporary or be fixed, and must not lose the attempt.
            if not (getattr(error, "sqlstate", None) or "").startswith(("22", "PA008")):
                raise
        else:
            return "recorded" if row and next(iter(row)) is not None else "known"
    append_lines(path.with_name(f"{path.name}.rejected"), [line])
    return "rejected"
