"""The sealed log: its last checkpoint, its tiles, verification and proofs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import psycopg
from anyio import to_thread
from psycopg_pool import ConnectionPool

from pgaudit_wf.integrity.merkle import HASH_SIZE
from pgaudit_wf.integrity.note import VerifierKey
from pgaudit_wf.integrity.proof import newest_checkpoint, prove_event
from pgaudit_wf.integrity.report import Report
from pgaudit_wf.integrity.seal import tile_reader
from pgaudit_wf.integrity.tiles import TILE_WIDTH
from pgaudit_wf.integrity.verify import verify
from pgaudit_wf.trail.statement import one

T = TypeVar("T")
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
        keys: The public keys that checkpoints must be signed by.
    """

    def __init__(self, pool: ConnectionPool[Any], keys: Sequence[VerifierKey]) -> None:
        self._pool = pool
        self._keys = keys
        self._verifying = threading.Lock()

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
        try:
            return await self._call(lambda conn: verify(conn, self._keys))
        finally:
            self._verifying.release()

    async def proof(self, event_id: int) -> dict[str, Any]:
        """Return the proof of an event; the caller must check that the user may see it.

        Raises:
            ProofError: The event is not sealed yet.
        """
        return await self._call(lambda conn: prove_event(conn, event_id))
