"""Copying checkpoints out of the database owner's reach: files, git, HTTP, witnesses.

A copy kept elsewhere is what exposes a log that was rewritten or truncated.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pgaudit_wf.errors import NoteError, ProofError, PushError, translated
from pgaudit_wf.integrity.merkle import HASH_SIZE
from pgaudit_wf.integrity.note import Checkpoint, Note, VerifierKey
from pgaudit_wf.integrity.post import host_of, post
from pgaudit_wf.integrity.proof import prove_consistency
from pgaudit_wf.integrity.tiles import TILE_WIDTH, tile_path
from pgaudit_wf.integrity.timestamp import Authority, stamp
from pgaudit_wf.integrity.witness import cosign
from pgaudit_wf.trail.statement import Connection

_TIMEOUT = 30


def write_file(path: Path, text: str | bytes) -> None:
    """Write a file atomically.

    Raises:
        PushError: The file cannot be written.
    """
    data = text.encode() if isinstance(text, str) else text
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PushError(f"{path} cannot be written: {error.strerror or error}") from error


def _check_continues(conn: Connection, path: Path, note: str) -> None:
    if path.exists():
        try:
            old = path.read_text()
            older, newer = (Checkpoint.parse(Note.parse(n).text) for n in (old, note))
            if older != newer:
                prove_consistency(conn, old, note)
        except (NoteError, ProofError, UnicodeDecodeError) as error:
            # The existing file may be the only evidence left.
            raise PushError(f"{path} is not overwritten: {error}") from error


def _continue_file(conn: Connection, path: Path, note: str) -> None:
    _check_continues(conn, path, note)
    write_file(path, note)


def _git(repository: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *arguments], capture_output=True, text=True,
            timeout=_TIMEOUT, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PushError(f"git cannot be run: {error}") from error
    if done.returncode:
        raise PushError(f"git {arguments[0]} failed in {repository}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _push_git(conn: Connection, repository: Path, note: str) -> None:
    if not repository.is_dir():
        raise PushError(f"no such repository: {repository}")
    top = Path(_git(repository, "rev-parse", "--show-toplevel").strip())
    _continue_file(conn, repository / "checkpoint", note)
    _git(repository, "add", "--", "checkpoint")
    if _git(repository, "status", "--porcelain", "--", "checkpoint").strip():
        size = Checkpoint.parse(Note.parse(note).text).size
        _git(repository, "commit", "--quiet", "-m", f"Checkpoint of {size} leaves", "--",
             "checkpoint")  # fmt: skip
    if _git(top, "remote").strip():
        _git(top, "push", "--quiet")


def _push_http(url: str, note: str) -> str:
    answer = post(url, note.encode(), "text/plain; charset=utf-8")
    if not 200 <= answer.status < 300:
        raise PushError(
            f"the checkpoint could not be sent to {host_of(url)}: it answered {answer.status}"
        )
    return answer.body.decode(errors="replace")


def push(
    conn: Connection,
    note: str,
    target: str,
    witnesses: Sequence[VerifierKey] = (),
    authorities: Sequence[Authority] = (),
) -> str:
    """Copy a signed checkpoint to a target; return the lines that a server answered with, or "".

    Args:
        conn: The owner's connection, in autocommit mode.
        note: The checkpoint.
        target: `witness+URL` for a witness (C2SP tlog-witness; URL is its submission prefix; a URL
            that ends with `/add-checkpoint` is one, too) and `tsa+URL` for a time-stamp authority
            (RFC 3161), whose signatures are stored; `-` for standard output; `http://…` or
            `https://…` for a POST of the note, whose response may contain signature lines;
            `git+PATH` for a commit of the file `checkpoint` in a clone, pushed if it has a remote;
            otherwise the path of a file, or of a directory for a file called `checkpoint`.
        witnesses: The keys of witnesses.
        authorities: Time-stamp authorities that are trusted.

    Raises:
        PushError: It could not be stored, or the target has a newer checkpoint or another log's,
            or refused (`WitnessError`).
        ProofError: The tree in the database is not that of the checkpoint.
    """
    if target.startswith("witness+") or target.endswith("/add-checkpoint"):
        prefix = target.removeprefix("witness+").removesuffix("/add-checkpoint")
        cosign(conn, note, prefix, witnesses)
        return ""
    if target.startswith("tsa+"):
        stamp(conn, note, target.removeprefix("tsa+"), authorities)
        return ""
    if target == "-":
        sys.stdout.write(note)
        return ""
    if target.startswith(("http://", "https://")):
        return "".join(
            f"{line}\n" for line in _push_http(target, note).split("\n") if line.startswith("— ")
        )
    if target.startswith("git+"):
        _push_git(conn, Path(target.removeprefix("git+")), note)
        return ""
    path = Path(target)
    if target.endswith(os.sep) and not path.is_dir():
        raise PushError(f"no such directory: {target}; create it first")
    _continue_file(conn, path / "checkpoint" if path.is_dir() else path, note)
    return ""


def export_tiles(conn: Connection, directory: Path, note: str) -> int:
    """Write the tree as static files, as C2SP tlog-tiles serves it; return how many were written.

    Existing tiles are not written again.

    Args:
        conn: The owner's connection, in autocommit mode.
        directory: The directory to write to; the checkpoint is written last.
        note: The signed checkpoint up to which tiles are written.

    Raises:
        PushError: A file cannot be written, or the directory belongs to another log.
    """
    size = Checkpoint.parse(Note.parse(note).text).size
    written = 0
    checkpoint = directory / "checkpoint"
    _check_continues(conn, checkpoint, note)
    with translated(), conn.transaction():
        levels = range(-(-size.bit_length() // 8))
        for level in levels:
            hashes = size >> (8 * level)
            with conn.cursor("pgaudit_wf_tiles") as cursor:
                cursor.execute(
                    "select tile_number, hashes from pgaudit_wf.log_tile"
                    " where level = %s and tile_number < %s order by tile_number",
                    [level, -(-hashes // TILE_WIDTH)],
                )
                for number, tile in cursor:
                    width = min(TILE_WIDTH, hashes - number * TILE_WIDTH)
                    path = directory / tile_path(level, number, width)
                    hashes_there = bytes(tile[: width * HASH_SIZE])
                    if not path.exists():
                        write_file(path, hashes_there)
                        written += 1
                    elif path.read_bytes() != hashes_there:
                        raise PushError(f"{path} is not overwritten: it belongs to another log")
    _continue_file(conn, checkpoint, note)
    return written
