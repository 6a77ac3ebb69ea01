"""The sealed log: its last checkpoint, its tiles, verification and proofs."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any, TypeVar

import psycopg
from anyio import to_thread
from psycopg_pool import ConnectionPool

from pgaudit_wf.integrity.merkle import HASH_SIZE
from pgaudit_wf.integrity.note import VerifierKey
from pgaudit_wf.integrity.proof import newest_checkpoint, prove_event
from pgaudit_wf.integrity.report import Report
from pgaudit_wf.integrity.seal import tile_reader
from pgaudit_wf.integrity.tiles import TILE_WIDTH
from pgaudit_wf.integrity.timestamp import Authority
from pgaudit_wf.integrity.verify import verify
from pgaudit_wf.integrity.vouching import verify_vouchers
from pgaudit_wf.trail.statement import one

T = TypeVar("T")
# How many bundles at once, of how many leaves, and how long each waits for the sealer.
_BUNDLES, _BUNDLE_LEAVES, _SEAL_WAIT = 2, 20_000, 10.0
_TILE = re.compile(r"(\d{1,2})/((?:x\d{3}/)*\d{3})(?:\.p/(\d{1,3}))?")


@dataclass(frozen=True, slots=True)
class Sealing:
    """How far the log is sealed, and how many events of an organization are not, up to `limit`."""

    size: int
    sealed_at: datetime | None
    note: str | None
    unsealed: int
    limit: int = 1000


class Integrity:
    """Reads the tree as the schema's owner; returns hashes and counts.

    Args:
        pool: Connections of the schema's owner.
        keys: The public keys that checkpoints must be signed by, and those of witnesses.
        authorities: Time-stamp authorities that are trusted.
    """

    def __init__(
        self,
        pool: ConnectionPool[Any],
        keys: Sequence[VerifierKey],
        authorities: Sequence[Authority],
    ) -> None:
        self._pool = pool
        self._keys = keys
        self._authorities = authorities
        self._verifying = threading.Lock()
        self._bundling = threading.Semaphore(_BUNDLES)

    @property
    def may_verify(self) -> bool:
        """Whether there is a key to verify with."""
        return bool(self._keys)

    async def _call(self, work: Callable[[psycopg.Connection[Any]], T]) -> T:
        def on_connection() -> T:
            with self._pool.connection() as conn:
                before = conn.autocommit
                conn.autocommit = True
                try:
                    return work(conn)
                finally:
                    conn.autocommit = before

        return await to_thread.run_sync(on_connection)

    async def sealing(self, org_id: str) -> Sealing:
        """Return how far the log is sealed."""

        def work(conn: psycopg.Connection[Any]) -> Sealing:
            return Sealing(
                *one(
                    conn,
                    "select size, sealed_at, note, unsealed from pgaudit_wf._sealing(%s)",
                    [org_id],
                )
            )

        return await self._call(work)

    async def checkpoint(self) -> str:
        """Return the newest signed checkpoint.

        Raises:
            ProofError: There is no such checkpoint.
        """
        return await self._call(newest_checkpoint)

    async def tile(self, path: str) -> bytes | None:
        """Return a tile of the tree by its path after `tile/`; None if it does not exist."""
        found = _TILE.fullmatch(path)
        if found is None:
            return None
        level, width = int(found[1]), int(found[3] or TILE_WIDTH)
        number = int(found[2].replace("x", "").replace("/", ""))
        if not 0 < width <= TILE_WIDTH or level > 63 or number >= 1 << 62:
            return None

        def work(conn: psycopg.Connection[Any]) -> bytes | None:
            hashes = tile_reader(conn)(level, number)[: width * HASH_SIZE]
            return hashes if len(hashes) == width * HASH_SIZE else None

        return await self._call(work)

    async def verify(self) -> Report | None:
        """Verify the whole log; None if another verification is running."""
        if not self._verifying.acquire(blocking=False):
            return None

        def work(conn: psycopg.Connection[Any]) -> Report:
            report = verify(conn, self._keys)
            verify_vouchers(conn, report, self._keys, self._authorities)
            return report

        try:
            return await self._call(work)
        finally:
            self._verifying.release()

    async def bundle(
        self,
        org_id: str,
        since: datetime | None,
        until: datetime,
        old_size: int | None,
        recorded: int,
    ) -> tuple[IO[bytes], int] | None:
        """Return a temporary file with an organization's bundle, and its leaves; None if busy.

        The caller must check that the user may see all of the organization's events.

        Args:
            org_id: The organization.
            since: The start of the period.
            until: Its end.
            old_size: The size of the checkpoint kept from last time.
            recorded: The event that says that the bundle is made, which is sealed first.

        Raises:
            ProofError: It is too large, or not what was sealed, or there is no such checkpoint.
        """
        if not self._bundling.acquire(blocking=False):
            return None

        def work(conn: psycopg.Connection[Any]) -> tuple[IO[bytes], int]:
            # Without the extra integrity, the other pages work.
            from pgaudit_wf.integrity.bundle import await_seal, mark_configuration, write_bundle

            await_seal(conn, [recorded, mark_configuration(conn)], _SEAL_WAIT)
            old = newest_checkpoint(conn, old_size) if old_size is not None else None
            with ExitStack() as stack:
                file = stack.enter_context(tempfile.TemporaryFile())
                done = write_bundle(
                    conn, file, org_id, since=since, until=until, old=old, limit=_BUNDLE_LEAVES
                )
                # Whoever sends it closes it.
                stack.pop_all()
            return file, done.leaves

        try:
            return await self._call(work)
        finally:
            self._bundling.release()

    async def proof(self, event_id: int) -> dict[str, Any]:
        """Return the proof of an event; the caller must check that the user may see it.

        Raises:
            ProofError: The event is not sealed yet.
        """
        return await self._call(lambda conn: prove_event(conn, event_id))
