"""Sealing: events and versions become leaves of the tree, and the tree's root is signed.

A sealer follows the log in batches, like any reader. Leaves, tiles, the checkpoint and the reader's
position are written in one transaction; the checkpoint is signed after its commit. So a crash loses
nothing, and no two trees of one size are ever signed. Concurrent sealers wait for each other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row
from psycopg.types.string import TextLoader

from pgaudit_wf.errors import NoteError, SealError, translated
from pgaudit_wf.integrity import leaf as leaves
from pgaudit_wf.integrity.chain import Heads
from pgaudit_wf.integrity.configuration import unnoted_functions
from pgaudit_wf.integrity.merkle import tree_root
from pgaudit_wf.integrity.note import Checkpoint, Signer, open_checkpoint, sign_checkpoint
from pgaudit_wf.integrity.tiles import (
    MissingTileError,
    ReadTile,
    TreeBuilder,
    nodes_from_tiles,
)
from pgaudit_wf.trail.event import EVENT_COLUMNS, EventRow
from pgaudit_wf.trail.statement import Connection, one

READER = "seal"
# Snapshots may be large, and a step holds all of its own in memory.
_VERSION_BATCH = 500
_FETCH = 100
# Seconds between two looks at the configuration, which cost some 50 ms each.
_CONFIGURATION_INTERVAL = 60.0
_ALTERED = "run pgaudit-wf verify to see what was altered, and do not sign until you know why"


# Id, tx_id and occurred_at, salt, chain and place in it, and the hash of the leaf.
_SealedEvent: TypeAlias = tuple[str, str, str, bytes, str, leaves.Link, bytes]


@dataclass(frozen=True, slots=True)
class Sealed:
    """The result of one step of sealing.

    `size` is the number of leaves in the tree now, `more` whether events may be left to seal.
    """

    events: int
    versions: int
    size: int
    more: bool


def text_cursor(conn: Connection) -> psycopg.Cursor[Any]:
    """Return a cursor that reads every value except booleans as PostgreSQL prints it."""
    cursor: psycopg.Cursor[Any] = conn.cursor(row_factory=tuple_row)
    _as_text(cursor)
    return cursor


def _as_text(cursor: psycopg.Cursor[Any] | psycopg.ServerCursor[Any]) -> None:
    for name in ("int4", "int8", "timestamptz", "jsonb", "inet"):
        cursor.adapters.register_loader(name, TextLoader)


def pin_format(conn: Connection) -> None:
    """Make the transaction print values in the format of leaves."""
    conn.execute("set local timezone = 'UTC'")
    conn.execute("set local datestyle = 'ISO, YMD'")


_PLAIN = sql.SQL("{}")
# A number takes 8 bytes at least and has 131,072 digits at most, so what is stored in 8 KB can be
# printed. Trying to costs 6 µs.
_READABLE = sql.SQL(
    "case when pg_column_compression({0}) is null and pg_column_size({0}) < 8192 then {0}"
    " else pgaudit_wf._readable_json({0}) end"
)


def column_list(names: tuple[str, ...], source: sql.Composable) -> sql.Composed:
    """Return columns of a row as SQL; JSON that PostgreSQL cannot print is made readable."""
    return sql.SQL(", ").join(
        (_READABLE if name in ("diff", "metadata") else _PLAIN).format(
            sql.SQL("{}.{}").format(source, sql.Identifier(name))
        )
        for name in names
    )


_EVENTS = sql.SQL(
    "select r.cursor, {} from pgaudit_wf.read_as({}, %s) as r",
).format(column_list(EVENT_COLUMNS, sql.SQL("(r.event)")), sql.Literal(READER))
_VERSIONS = sql.SQL(
    "select {} from pgaudit_wf.workflow_history as h where h.tx_id >= %s and not exists"
    " (select from pgaudit_wf.log_leaf as l"
    "  where l.workflow_id = h.workflow_id and l.version = h.version)"
    " order by h.tx_id, h.workflow_id, h.version limit %s"
).format(column_list(leaves.VersionRow._fields, sql.SQL("h")))


def tile_reader(conn: Connection) -> ReadTile:
    """Return a function that reads tiles from the database."""

    def read(level: int, number: int) -> bytes:
        row = conn.execute(
            "select hashes from pgaudit_wf.log_tile where level = %s and tile_number = %s",
            [level, number],
        ).fetchone()
        return bytes(row[0]) if row else b""

    return read


class Sealer:
    """Seals the log, step by step.

    Args:
        signer: Holds the key. Its name is the log's origin, and must stay the same.
        state: A file for the last signed checkpoint, out of the database owner's reach; with it, a
            tree that was truncated or rewritten is not signed.
        rotate: Continue with a new key of the same name.
        batch: Leaves per step; each step is a transaction.
        signed: Called with every signed note once it is stored.
    """

    def __init__(
        self,
        signer: Signer,
        *,
        state: Path | None = None,
        rotate: bool = False,
        batch: int = 5000,
        signed: Callable[[str], None] | None = None,
    ) -> None:
        self._signer = signer
        self._key = signer.verifier
        self._state = state
        self._rotate = rotate
        self._batch = batch
        self._signed = signed
        self._last: Checkpoint | None = None
        self._looked_at: float | None = None
        if state is not None and state.exists():
            self._last = self._open(state.read_text())

    def _open(self, note: str) -> Checkpoint:
        try:
            return open_checkpoint(note, [self._key])
        except NoteError as error:
            if self._rotate:
                return Checkpoint.parse(note.rpartition("\n\n")[0] + "\n")
            raise SealError(
                f"the last checkpoint was not signed by this key: {error}; to continue with a new"
                " key of the same name, rotate (--rotate)"
            ) from error

    def step(self, conn: Connection) -> Sealed:
        """Seal a batch, and sign it.

        Args:
            conn: The owner's connection, in autocommit mode.

        Raises:
            SealError: The tree in the database is not the one that was signed before.
            SigningKeyError: The signing command failed; the next step signs what this one sealed.
            psycopg.Error: The database refused; nothing was sealed.
        """
        with translated():
            self._sign_pending(conn)
            try:
                with conn.transaction():
                    conn.execute("set transaction isolation level read committed")
                    done = self._append(conn)
            except psycopg.errors.UniqueViolation as error:
                raise SealError(
                    'an event would be sealed a second time: reader "seal" or its events were set'
                    f" back; {_ALTERED}"
                ) from error
            self._sign_pending(conn)
        return done

    def note_configuration(self, conn: Connection) -> None:
        """Record what changed of the configuration unrecorded, to be sealed with the rest.

        What it was is in the log itself, so that nobody can change it unnoticed.

        Args:
            conn: The owner's connection, in autocommit mode.

        Raises:
            SealError: Functions changed of which the log does not say so.
            psycopg.Error: The database refused; nothing was recorded.
        """
        now = time.monotonic()
        if self._looked_at is None or now >= self._looked_at + _CONFIGURATION_INTERVAL:
            replaced: list[str] = []
            with translated():
                # Tables may be attached in between.
                for _ in range(3):
                    conn.execute("select pgaudit_wf._note_configuration()")
                    if not (replaced := unnoted_functions(conn)):
                        break
            if replaced:
                raise SealError(
                    f"the note of the configuration is silent about {', '.join(replaced[:5])}:"
                    " what writes it was replaced; pgaudit-wf doctor says how to restore it"
                )
            self._looked_at = now

    def run(self, conn: Connection, stopping: Callable[[], bool] = lambda: False) -> Sealed:
        """Seal everything, with what changed of the configuration; return the totals.

        Args:
            conn: The owner's connection, in autocommit mode.
            stopping: Called between steps; returns whether to stop.

        Raises:
            SealError: As `step` does.
            SigningKeyError: As `step` does.
            psycopg.Error: As `step` does.
        """
        self.note_configuration(conn)
        events = versions = 0
        while True:
            done = self.step(conn)
            events, versions = events + done.events, versions + done.versions
            if not done.more or stopping():
                return Sealed(events, versions, done.size, done.more)

    def _append(self, conn: Connection) -> Sealed:
        pin_format(conn)
        conn.execute(
            "select set_config('synchronous_commit', 'on', true)"
            " where current_setting('synchronous_commit') in ('off', 'local')"
        )
        # Takes the reader's lock: from here on this is the only sealer.
        heads = Heads(conn)
        events, last = self._events(conn, heads)
        position = one(
            conn,
            "select g.system_identifier, pg_snapshot_xmin(pg_current_snapshot())::text::bigint,"
            " coalesce(p.below_tx, 0) from pgaudit_wf.log_generations() as g"
            " left join pgaudit_wf.version_place as p using (system_identifier)"
            " where g.last_id is null",
        )
        found = text_cursor(conn).execute(_VERSIONS, [position[2], _VERSION_BATCH])
        versions = list(map(leaves.VersionRow._make, found))
        size = self._tree_size(conn)
        if not events and not versions:
            self._note_position(conn, position)
            return Sealed(0, 0, size, False)
        tree = self._tree(conn, size)
        self._write(conn, tree, events, versions, heads)
        if events:
            conn.execute(
                "select pgaudit_wf.advance_reader(%s, %s, %s)", [READER, last, len(events)]
            )
        if len(versions) < _VERSION_BATCH:
            self._note_position(conn, position)
        more = len(events) == self._batch or len(versions) == _VERSION_BATCH
        return Sealed(len(events), len(versions), tree.size, more)

    def _events(self, conn: Connection, heads: Heads) -> tuple[list[_SealedEvent], str | None]:
        """Return the next events as they are sealed, and the cursor after them.

        Their content may exceed memory, so it is read in small parts.
        """
        events = []
        last = None
        with psycopg.ServerCursor(conn, "pgaudit_wf_seal", row_factory=tuple_row) as cursor:
            _as_text(cursor)
            cursor.execute(_EVENTS, [self._batch])
            while fetched := cursor.fetchmany(_FETCH):
                last = fetched[-1][0]
                rows: list[leaves.EventText] = [EventRow._make(values[1:]) for values in fetched]
                heads.find(rows)
                for row in rows:
                    salt = os.urandom(leaves.SALT_SIZE)
                    found = leaves.commitments(leaves.event_parts(row), salt)
                    chain, link, leaf = heads.append(row, found)
                    events.append((row.id, row.tx_id, row.occurred_at, salt, chain, link, leaf))
        return events, last

    def _note_position(self, conn: Connection, position: tuple[int, int, int]) -> None:
        if position[1] != position[2]:
            conn.execute(
                "insert into pgaudit_wf.version_place as p (system_identifier, below_tx)"
                " values (%s, %s) on conflict (system_identifier)"
                " do update set below_tx = excluded.below_tx, noted_at = now()",
                position[:2],
            )

    def _tree_size(self, conn: Connection) -> int:
        size, sealed = one(
            conn,
            "select (select coalesce(max(leaf_index) + 1, 0) from pgaudit_wf.log_leaf),"
            " (select coalesce(max(size), 0) from pgaudit_wf.log_checkpoint)",
        )
        if size != sealed:
            raise SealError(
                f"the log has {size} leaves, but its last checkpoint has {sealed}; {_ALTERED}"
            )
        return int(size)

    def _tree(self, conn: Connection, size: int) -> TreeBuilder:
        try:
            tree = TreeBuilder(size, tile_reader(conn))
        except MissingTileError as error:
            raise SealError(f"{error}; {_ALTERED}") from error
        last = conn.execute(
            "select origin, root from pgaudit_wf.log_checkpoint where size = %s", [size]
        ).fetchone()
        if last is None:
            return tree
        if last[0] != self._key.name:
            raise SealError(
                f"this log is sealed under the name {last[0]}, but the key is named"
                f" {self._key.name}; use a key of that name"
            )
        if bytes(last[1]) != tree.root():
            raise SealError(
                f"the root of the tree of {size} leaves differs from the signed one; {_ALTERED}"
            )
        return tree

    def _write(
        self,
        conn: Connection,
        tree: TreeBuilder,
        events: list[_SealedEvent],
        versions: list[leaves.VersionRow],
        heads: Heads,
    ) -> None:
        heads.find(versions)
        with conn.cursor().copy(
            "copy pgaudit_wf.log_leaf (leaf_index, event_id, tx_id, occurred_at, workflow_id,"
            " version, salt, snapshot, chain, org_number, org_previous) from stdin"
        ) as copy:
            for *event, salt, chain, link, leaf in events:
                copy.write_row((tree.size, *event, None, None, salt, None, chain, *link))
                tree.append(leaf)
            for row in versions:
                salt = os.urandom(leaves.SALT_SIZE)
                found = leaves.commitments(leaves.version_parts(row), salt)
                snapshot = bytes.fromhex(found["snapshot"]) if "snapshot" in found else None
                chain, link, leaf = heads.append(row, found)
                subject = (None, None, None, row.workflow_id, row.version)
                copy.write_row((tree.size, *subject, salt, snapshot, chain, *link))
                tree.append(leaf)
        conn.cursor().executemany(
            "insert into pgaudit_wf.log_tile (level, tile_number, hashes) values (%s, %s, %s)"
            " on conflict (level, tile_number) do update set hashes = excluded.hashes",
            tree.take_tiles(),
        )
        conn.execute(
            "insert into pgaudit_wf.log_checkpoint (size, origin, root) values (%s, %s, %s)",
            [tree.size, self._key.name, tree.root()],
        )

    def _sign_pending(self, conn: Connection) -> None:
        pending = conn.execute(
            "select size, origin, root from pgaudit_wf.log_checkpoint"
            " where note is null order by size"
        ).fetchall()
        last = conn.execute(
            "select note from pgaudit_wf.log_checkpoint where note is not null"
            " order by size desc limit 1"
        ).fetchone()
        stored = self._open(last[0]) if last else None
        if not pending and self._last == stored:
            return
        if self._last is not None and self._last != stored:
            self._check_kept(conn, self._last)
        known = [checkpoint for checkpoint in (stored, self._last) if checkpoint is not None]
        node = nodes_from_tiles(tile_reader(conn))
        try:
            for checkpoint in known:
                if tree_root(checkpoint.size, node) != checkpoint.root:
                    raise SealError(
                        f"the root of the tree of {checkpoint.size} leaves differs from the signed"
                        f" one; {_ALTERED}"
                    )
            for size, origin, root in pending:
                checkpoint = Checkpoint(origin, size, bytes(root))
                if tree_root(size, node) != checkpoint.root:
                    raise SealError(
                        f"the checkpoint of {size} leaves does not match the tree; {_ALTERED}"
                    )
                self._sign(conn, checkpoint)
        except MissingTileError as error:
            raise SealError(f"{error}; {_ALTERED}") from error

    def _check_kept(self, conn: Connection, last: Checkpoint) -> None:
        root, size = one(
            conn,
            "select (select root from pgaudit_wf.log_checkpoint where size = %s),"
            " (select coalesce(max(size), 0) from pgaudit_wf.log_checkpoint)",
            [last.size],
        )
        if root is None or bytes(root) != last.root:
            raise SealError(
                f"the database, whose last checkpoint has {size} leaves, does not have the one of"
                f" {last.size} leaves that was signed{self._signed_at()}: it was restored to a time"
                " before that, failed over to a server without its last commits, or cut back;"
                f" {_ALTERED}"
            )

    def _signed_at(self) -> str:
        if self._state is None or not self._state.exists():
            return ""
        at = datetime.fromtimestamp(self._state.stat().st_mtime, UTC)
        return f" at {at:%Y-%m-%d %H:%M:%S} UTC"

    def _sign(self, conn: Connection, checkpoint: Checkpoint) -> None:
        note = str(sign_checkpoint(checkpoint, self._signer))
        kept = conn.execute(
            "update pgaudit_wf.log_checkpoint set note = %s where size = %s and note is null",
            [note, checkpoint.size],
        )
        self._last = checkpoint
        if self._state is not None:
            temporary = self._state.with_name(f"{self._state.name}.new")
            temporary.write_text(note)
            temporary.replace(self._state)
        if kept.rowcount and self._signed is not None:
            self._signed(note)
