"""What outside parties vouch for: witnesses and time-stamp authorities, and up to when.

Nothing that a log says of time binds its owner. That a checkpoint existed at a time is only known
from somebody else, who saw and signed it then.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
from psycopg.rows import tuple_row

from pgaudit_wf.errors import NoteError, ProofError, translated
from pgaudit_wf.integrity.merkle import tree_root
from pgaudit_wf.integrity.note import WITNESS, Checkpoint, Note, VerifierKey
from pgaudit_wf.integrity.proof import check
from pgaudit_wf.integrity.report import Problem, Report, Voucher
from pgaudit_wf.integrity.seal import tile_reader
from pgaudit_wf.integrity.tiles import MissingTileError, nodes_from_tiles
from pgaudit_wf.integrity.timestamp import Authority, is_by_others, stamped_by
from pgaudit_wf.integrity.witness import cosigned_at, log_part
from pgaudit_wf.trail.statement import Connection

# Of a file in a bundle; a time-stamp has some 5 KB, a proof of consistency 3.
_MOST_BYTES = 1 << 20
_SKEW = timedelta(minutes=10)
_MOST = 1000
_COSIGNED = """
    select c.size, c.note, s.line
    from pgaudit_wf.log_cosignature as s join pgaudit_wf.log_checkpoint as c using (size)
    where c.note is not null order by c.size desc, s.line
"""
_STAMPED = """
    select c.size, c.note, t.response
    from pgaudit_wf.log_timestamp as t join pgaudit_wf.log_checkpoint as c using (size)
    where c.note is not null order by c.size desc, t.response_hash
"""


class _Vouching:
    def __init__(self, conn: Connection, report: Report) -> None:
        self.conn = conn
        self.report = report
        self.node = nodes_from_tiles(tile_reader(conn))
        self.newest: dict[str, Voucher] = {}

    def rows(self, name: str, query: LiteralString) -> Iterator[tuple[Any, ...]]:
        with psycopg.ServerCursor(self.conn, name, row_factory=tuple_row) as cursor:
            cursor.itersize = 100
            yield from cursor.execute(query)

    def is_ours(self, text: str) -> bool:
        """Return whether the log is, up to there, the one of a checkpoint."""
        try:
            checkpoint = Checkpoint.parse(text)
            return tree_root(checkpoint.size, self.node) == checkpoint.root
        except (MissingTileError, NoteError):
            return False

    def doubt(self, message: str, size: int) -> None:
        self.report.found += 1
        if len(self.report.problems) < _MOST:
            self.report.problems.append(Problem("checkpoint", message, size))

    def hear(self, by: str, text: str, at: datetime) -> None:
        size = Checkpoint.parse(text).size
        if at > datetime.now(UTC) + _SKEW:
            self.doubt(f"{by} vouches for {size} leaves at a time to come, {at}", size)
        elif self.is_ours(text):
            known = self.newest.get(by)
            if known is None or known.at < at:
                self.newest[by] = Voucher(by, at, size)

    def hear_note(self, note: str, keys: Sequence[VerifierKey], size: int, source: str) -> None:
        try:
            parsed = Note.parse(note)
            parsed.signers(keys)
        except NoteError as error:
            self.doubt(f"a co-signature {source} is not valid: {error}", size)
            return
        known = {(key.name, key.id): key for key in keys}
        for signature in parsed.signatures:
            if (signature.name, signature.key_id) in known:
                self.hear(f"witness {signature.name}", parsed.text, cosigned_at(signature))

    def hear_witnesses(self, keys: Sequence[VerifierKey]) -> None:
        # The newest of each is what counts, and a log of years has millions.
        waiting = {(key.name, key.id) for key in keys}
        for size, note, line in self.rows("vouching_witnesses", _COSIGNED):
            if not waiting:
                return
            try:
                [signature] = Note.parse(f"{Note.parse(note).text}\n{line}\n").signatures
            except NoteError as error:
                self.doubt(f"a co-signature of {size} leaves is malformed: {error}", size)
                continue
            if (signature.name, signature.key_id) in waiting:
                self.hear_note(
                    f"{Note.parse(note).text}\n{line}\n", keys, size, f"of {size} leaves"
                )
                if f"witness {signature.name}" in self.newest:
                    waiting.discard((signature.name, signature.key_id))

    def hear_authorities(self, authorities: Sequence[Authority]) -> None:
        waiting = list(authorities)
        for size, note, response in self.rows("vouching_authorities", _STAMPED):
            if not waiting:
                return
            try:
                authority, at = stamped_by(note, response, authorities)
            except NoteError as error:
                if not is_by_others(note, response, authorities):
                    self.doubt(f"a time-stamp of {size} leaves is not valid: {error}", size)
                continue
            self.hear(f"time-stamp authority {authority.name}", Note.parse(note).text, at)
            if authority in waiting:
                waiting.remove(authority)


def verify_vouchers(
    conn: Connection,
    report: Report,
    keys: Sequence[VerifierKey],
    authorities: Sequence[Authority] = (),
    notes: Mapping[str, str] | None = None,
) -> None:
    """Add to a report who vouches for the log, for how much of it, and up to when.

    Args:
        conn: The owner's connection, in autocommit mode.
        report: The report of `verify`, which has compared the tree with its checkpoints.
        keys: Keys; those of witnesses count.
        authorities: Time-stamp authorities that are trusted.
        notes: Checkpoints kept elsewhere, with the signatures of witnesses.

    Raises:
        psycopg.Error: The database could not answer.
    """
    witnesses = [key for key in keys if key.kind == WITNESS]
    with translated(), conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        work = _Vouching(conn, report)
        work.hear_witnesses(witnesses)
        if authorities:
            work.hear_authorities(authorities)
        for source, note in (notes or {}).items():
            work.hear_note(note, witnesses, 0, f"in {source}")
    report.vouched = sorted(work.newest.values(), key=lambda voucher: voucher.at, reverse=True)


def bundle_vouchers(
    path: str, keys: Sequence[VerifierKey], authorities: Sequence[Authority]
) -> list[Voucher]:
    """Return which time-stamp authorities vouch for a log up to when, by what is in a bundle.

    The bundle itself is for `check.py`, which needs no authority.

    Args:
        path: The bundle.
        keys: The keys of the log.
        authorities: Time-stamp authorities that are trusted.

    Raises:
        ProofError: The log of the bundle does not continue the checkpoint that was stamped, or no
            authority stamped that one.
        NoteError: A time-stamp is not valid, or by none of the authorities.
        OSError: The bundle cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:

            def read(name: str) -> bytes:
                with archive.open(name) as file:
                    return file.read(_MOST_BYTES)

            if "stamped/checkpoint" not in archive.namelist():
                raise ProofError("no time-stamp authority has signed a checkpoint in this bundle")
            proof = json.loads(read("stamped/consistency.json"))
            newer = check(proof, keys)
            if proof["new"] != read("checkpoint").decode():
                raise ProofError("what was stamped is compared with another checkpoint")
            stamped = proof["old"]
            if str(log_part(stamped)).encode() != read("stamped/checkpoint"):
                raise ProofError("what was stamped is not the checkpoint that is compared")
            responses = [
                read(name) for name in archive.namelist() if re.fullmatch(r"stamped/\d+\.tsr", name)
            ]
    except (NoteError, ProofError):
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError) as error:
        raise ProofError(f"the time-stamps of the bundle cannot be read: {error}") from error
    assert newer.old is not None  # noqa: S101 - a proof of consistency has one
    found = []
    for response in responses:
        try:
            authority, at = stamped_by(stamped, response, authorities)
        except NoteError as error:
            if not is_by_others(stamped, response, authorities):
                raise NoteError(f"a time-stamp in the bundle is not valid: {error}") from error
            continue
        found.append(Voucher(f"time-stamp authority {authority.name}", at, newer.old.size))
    if not found:
        raise NoteError("the time-stamps in the bundle are by other authorities")
    return sorted(found, key=lambda voucher: voucher.at, reverse=True)
