"""The file that keeps attempts while no database can be reached."""

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
        RuntimeError: None is configured, and there is no home directory.
    """
    if configured.path is not None:
        return configured.path
    if given := os.environ.get("PGAUDIT_WF_SPOOL"):
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME")
    home = Path(state) if state else Path.home() / ".local" / "state"
    return home / "pgaudit_wf" / "attempts.jsonl"


def append_lines(path: Path, lines: Sequence[bytes]) -> None:
    """Append lines to a file that other processes append to and take away at the same time.

    All of them are on the disk when this returns, and none is if it raises.

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
                # Somebody was cut off in the middle of a line.
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
    """Open and lock a file; None if it is not the one at that path any more."""
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
    """What became of the attempts in a spool file.

    Attributes:
        recorded: Attempts that are events now.
        known: Attempts that had been recorded before.
        rejected: Lines that are no attempt, or that the database will never take; they are kept in
            a file beside the spool file, whose name ends with `.rejected`.
    """

    recorded: int = 0
    known: int = 0
    rejected: int = 0


def spooled(path: Path | None = None) -> list[dict[str, Any]]:
    """Return the attempts that wait in a spool file, also those left by a reading that was cut off.

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

    May be killed at any point, run again and run by several processes at once, while others append.
    Each attempt is recorded in a transaction of its own; `occurred_at` of its event is now, and
    `metadata.attempted_at` says when it was made.

    Args:
        conn: A connection in autocommit mode of a role that may call record_attempt.
        path: The spool file; default: `spool_path()`.
        on_progress: Called after each attempt.

    Raises:
        ValueError: The connection is not in autocommit mode.
        psycopg.Error: The database cannot be reached or does not let this role record. Attempts
            not recorded yet still wait.
        DatabaseError: As above, where the audit schema says it.
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
            # Another reader has it, or had it.
            continue
    return SpoolReading(**counts)


def _claim(path: Path) -> None:
    """Move the spool file away under its lock; who waits to append makes a new one."""
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
            # Anything else may pass, or be mended, and must not cost an attempt.
            if not (getattr(error, "sqlstate", None) or "").startswith(("22", "PA008")):
                raise
        else:
            return "recorded" if row and next(iter(row)) is not None else "known"
    append_lines(path.with_name(f"{path.name}.rejected"), [line])
    return "rejected"
