"""Verification: every sealed event and version against the tree, the tree against its checkpoints.

Everything is read once, in the order of the leaves, in one snapshot and with constant memory. The
database's own data is trusted only if it matches the checkpoints, and a checkpoint only if one of
the caller's keys signed it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row
from psycopg.types.string import TextLoader

from pgaudit_wf.errors import NoteError, translated
from pgaudit_wf.integrity import leaf as leaves
from pgaudit_wf.integrity.back_dating import Clock, most_transactions
from pgaudit_wf.integrity.chain import Chains
from pgaudit_wf.integrity.configuration import History
from pgaudit_wf.integrity.merkle import HASH_SIZE
from pgaudit_wf.integrity.note import Checkpoint, Note, VerifierKey, open_checkpoint
from pgaudit_wf.integrity.release import CANDIDATES, Releases
from pgaudit_wf.integrity.report import Kind, Problem, Report
from pgaudit_wf.integrity.seal import pin_format, tile_reader
from pgaudit_wf.integrity.sealed_row import (
    BY_ID,
    SEALED_TWICE,
    WITHOUT_LEAF,
    Item,
    item_hash,
    read_items,
    read_kept,
)
from pgaudit_wf.integrity.tiles import TILE_WIDTH, TreeBuilder, split_hashes, tile_path
from pgaudit_wf.trail.event import EventRow
from pgaudit_wf.trail.statement import Connection, one

_MAX_SPAN = 100_000
_ITEM_SIZE = 100


@dataclass(slots=True)
class _Mark:
    """A checkpoint to reach, and when it was sealed, if the database knows."""

    checkpoint: Checkpoint
    sealed_at: datetime | None
    source: str
    is_signed: bool


class _Verification:
    def __init__(
        self, conn: Connection, keys: Sequence[VerifierKey], notes: Mapping[str, str], limit: int
    ) -> None:
        self.conn = conn
        self.keys = keys
        self.notes = notes
        self.limit = limit
        self.report = Report()
        # Of the leaves since the last checkpoint that held: the tile's hash, the row's, the leaf.
        self.span: list[tuple[bytes, bytes | None]] = []
        self.suspects: list[tuple[Item, Kind, str, leaves.Row | None, bytes]] = []
        self.swappable: list[tuple[Item, leaves.Row, bytes, int]] = []
        self.moved: set[str] = set()
        self.releases = Releases((), limit)
        self.chains = Chains()
        self.clock = Clock(most_transactions(conn))
        # On a hub, events come in the order in which nodes end transactions, and whenever they do.
        self.nodes = {row[0] for row in conn.execute("select number from pgaudit_wf.hub_node")}
        self.history = History(limit)
        self.report.untold = self.history.untold
        # Checkpoints that held: the size, and when it was sealed.
        self.held: list[tuple[int, datetime | None]] = []
        self.broken = False
        self.intact_size = 0
        self.tree = TreeBuilder()
        self.base = TreeBuilder()

    def add(self, problem: Problem) -> None:
        self.report.found += 1
        if len(self.report.problems) < self.limit:
            self.report.problems.append(problem)

    # Streams

    def hashes(self) -> Iterator[bytes]:
        expected = 0
        with psycopg.ServerCursor(self.conn, "verify_tiles", row_factory=tuple_row) as cursor:
            cursor.itersize = _ITEM_SIZE
            cursor.execute(
                "select tile_number, hashes from pgaudit_wf.log_tile where level = 0 order by 1"
            )
            for number, hashes in cursor:
                if number != expected:
                    self.add(Problem("tree", f"{tile_path(0, expected)} is missing"))
                    return
                yield from split_hashes(bytes(hashes))
                if len(hashes) != TILE_WIDTH * HASH_SIZE:
                    return
                expected += 1

    def marks(self) -> Iterator[_Mark]:
        return heapq.merge(
            self.stored_marks(), self.given_marks(), key=lambda mark: mark.checkpoint.size
        )

    def stored_marks(self) -> Iterator[_Mark]:
        waiting = False
        with psycopg.ServerCursor(self.conn, "verify_checkpoints", row_factory=tuple_row) as cursor:
            cursor.itersize = _ITEM_SIZE
            cursor.execute(
                "select size, origin, root, sealed_at, note"
                " from pgaudit_wf.log_checkpoint order by size"
            )
            for size, origin, root, sealed_at, note in cursor:
                stored = Checkpoint(origin, size, bytes(root))
                if note is None:
                    self.report.unsigned += 1
                    waiting = True
                elif waiting:
                    self.add(
                        Problem(
                            "checkpoint", f"a checkpoint before that of {size} leaves is not signed"
                        )
                    )
                    waiting = False
                if note is None or self.signed(note, stored, f"the checkpoint of {size} leaves"):
                    yield _Mark(stored, sealed_at, "", note is not None)

    def signed(self, note: str, stored: Checkpoint | None, name: str) -> Checkpoint | None:
        try:
            checkpoint = open_checkpoint(note, self.keys)
            if stored is not None and stored.text != Note.parse(note).text:
                raise NoteError("the signed text differs from the table")
            if checkpoint.origin not in {key.name for key in self.keys}:
                raise NoteError(f"it belongs to another log, {checkpoint.origin}")
        except NoteError as error:
            self.add(Problem("checkpoint", f"{name} is not valid: {error}"))
            return None
        return checkpoint

    def given_marks(self) -> Iterable[_Mark]:
        found = []
        for source, note in self.notes.items():
            checkpoint = self.signed(note, None, f"the checkpoint in {source}")
            if checkpoint is not None:
                found.append(_Mark(checkpoint, None, source, True))
        return sorted(found, key=lambda mark: mark.checkpoint.size)

    # Leaf by leaf

    def run(self, progress: Callable[[int, int], None]) -> None:
        (total,) = one(self.conn, "select count(*) from pgaudit_wf.log_leaf")
        self.releases = Releases(self.conn.execute(CANDIDATES).fetchall(), self.limit)
        marks = self.marks()
        mark = next(marks, None)
        items, hashes = read_items(self.conn), self.hashes()
        item = self.following(items, -1)
        size = 0
        for stored in hashes:
            found: bytes | None = None
            if item is None or item.index > size:
                self.add(Problem("tree", f"leaf {size} is missing from log_leaf", size))
            else:
                found = self.check(item, stored)
                if broken := self.chains.follow(item.chain, item.link, item.row, stored, found):
                    self.add(self.problem(item, "chain", broken, None))
                if item.is_event:
                    self.releases.see(item, stored)
                item = self.following(items, size)
            self.tree.append(stored)
            self.span.append((stored, found))
            size += 1
            while mark is not None and mark.checkpoint.size <= size:
                self.reach(mark)
                mark = next(marks, None)
            if size % 1000 == 0:
                self.check_upper_tiles(self.tree.take_full())
                progress(size, total)
                if len(self.span) > _MAX_SPAN:
                    self.span.clear()
        self.report.leaves = size
        progress(size, total)
        self.check_upper_tiles(self.tree.take_tiles())
        self.check_tile_count(size)
        while item is not None:
            self.add(
                Problem("tree", f"{item.name} claims leaf {item.index}, but the tree has only"
                        f" {size} leaves", item.index)
            )  # fmt: skip
            item = next(items, None)
        while mark is not None:
            self.add(
                Problem(
                    "checkpoint",
                    f"the log was truncated: it has {size} leaves, but the checkpoint"
                    f"{f' in {mark.source}' if mark.source else ''} has {mark.checkpoint.size}",
                    size,
                    intact_at=mark.sealed_at,
                )
            )
            mark = next(marks, None)
        if self.suspects or (self.span and not self.broken):
            if self.span and not self.broken and self.report.leaves > self.intact_size:
                self.add(
                    Problem(
                        "tree",
                        f"no signed checkpoint covers leaves {self.intact_size} to {size - 1}",
                        self.intact_size,
                    )
                )
            self.blame(None)
        self.check_releases(size)
        self.name_swaps()

    def following(self, items: Iterator[Item], size: int) -> Item | None:
        for item in items:
            if item.index > size:
                return item
            self.add(Problem("tree", f"log_leaf contains leaf {item.index} twice", item.index))
        return None

    def check(self, item: Item, stored: bytes) -> bytes | None:
        row = item.row
        if row is None:
            self.missing(item, stored)
            return None
        kept = None if item.salt is not None else read_kept(self.conn, item.index)
        try:
            found = item_hash(item, row, kept)
        except (ValueError, IndexError, TypeError, AttributeError) as error:
            self.suspects.append(
                (item, "altered", f"cannot be read as sealed: {error}", row, stored)
            )
            return None
        if found != stored:
            self.suspects.append((item, "altered", "is not what was sealed", row, stored))
        elif doubt := self.releases.doubt(self.conn, item, row, kept):
            self.suspects.append((item, "altered", doubt, None, stored))
        elif isinstance(row, EventRow):
            if int(row.id) >> 44 not in self.nodes and self.clock.precedes_too_many(row):
                doubt = (
                    f"was inserted, or the clock was wrong: at {row.occurred_at}, which it says,"
                    " more transactions of earlier leaves were yet to write than can be under way"
                )
                self.suspects.append((item, "inserted", doubt, None, stored))
                return found
            self.report.events += 1
            self.releases.hear(row)
            if doubt := self.history.hear(row):
                self.add(self.problem(item, "inserted", doubt, None))
        else:
            self.report.versions += 1
        return found

    def missing(self, item: Item, stored: bytes) -> None:
        if not item.is_event:
            self.suspects.append((item, "removed", "is missing", None, stored))
            return
        with self.conn.cursor(row_factory=tuple_row) as cursor:
            for kind in ("int4", "int8", "timestamptz", "jsonb", "inet"):
                cursor.adapters.register_loader(kind, TextLoader)
            moved = cursor.execute(BY_ID, [item.subject[0]]).fetchone()
        if moved is not None:
            self.moved.add(item.subject[0])
            found: leaves.EventText = EventRow._make(moved)
            self.suspects.append((item, "altered", "is not what was sealed", found, stored))
            return
        self.releases.miss(item, read_kept(self.conn, item.index) if item.salt is None else {})

    def check_releases(self, size: int) -> None:
        """Report what is gone although no sealed event says so."""
        accepted, doubts = self.releases.pruned(size)
        self.report.erased = self.releases.erased_leaves
        self.report.pruned_leaves = accepted
        self.report.pruned = sum(end - start for start, end in accepted)
        for doubt in (*doubts, *self.releases.erased()):
            self.add(
                self.problem(doubt.item, doubt.kind, doubt.message, self.sealed_at(doubt.item))
            )
            self.report.found += doubt.count - 1

    def sealed_at(self, item: Item) -> datetime | None:
        """Return when the first checkpoint that covers a leaf, and held, was sealed."""
        place = bisect_right(self.held, item.index, key=lambda held: held[0])
        return self.held[place][1] if place < len(self.held) else None

    # Checkpoints

    def reach(self, mark: _Mark) -> None:
        if self.broken:
            return
        name = f"the checkpoint of {mark.checkpoint.size} leaves"
        if mark.source:
            name += f" in {mark.source}"
        if mark.checkpoint.size < self.tree.size:
            # Only a given checkpoint can have a size at which the log was not sealed again.
            return
        if self.tree.root() == mark.checkpoint.root:
            self.blame(mark.sealed_at)
            self.hold(mark)
            return
        repaired = self.tree_of_rows()
        if repaired is not None and repaired.root() == mark.checkpoint.root:
            first = self.base.size
            for offset, (stored, found) in enumerate(self.span):
                if found is not None and stored != found:
                    index = first + offset
                    self.add(
                        Problem(
                            "tree",
                            f"{tile_path(0, index // TILE_WIDTH)}: the stored hash of leaf {index}"
                            " was altered; the row itself is intact",
                            index,
                            intact_at=mark.sealed_at,
                        )
                    )
            # Those whose tile is wrong, not their row, are told above.
            self.suspects = [
                (item, kind, message, row, stored)
                for item, kind, message, row, stored in self.suspects
                if self.span[item.index - first][1] in (None, stored)
            ]
            self.tree = repaired
            self.blame(mark.sealed_at)
            self.hold(mark)
            return
        self.broken = True
        self.add(
            Problem(
                "checkpoint",
                f"the log was rewritten: the tree's root differs from {name}; the difference is"
                f" between leaves {self.intact_size} and {mark.checkpoint.size - 1}",
                self.intact_size,
                intact_at=mark.sealed_at,
            )
        )
        self.blame(mark.sealed_at)

    def hold(self, mark: _Mark) -> None:
        self.report.checkpoints += 1
        if mark.is_signed:
            self.releases.trust()
        if not self.held or self.held[-1][0] < mark.checkpoint.size:
            self.held.append((mark.checkpoint.size, mark.sealed_at))
        if mark.checkpoint.size != self.intact_size:
            self.intact_size = mark.checkpoint.size
            self.base = deepcopy(self.tree)
            self.span.clear()

    def tree_of_rows(self) -> TreeBuilder | None:
        if self.base.size + len(self.span) != self.tree.size:
            return None
        tree = deepcopy(self.base)
        for stored, found in self.span:
            tree.append(found or stored)
        return tree

    def blame(self, intact_at: datetime | None) -> None:
        """Report the leaves that do not match, now that their tile is known to be right."""
        for item, kind, message, row, stored in self.suspects:
            if row is not None and len(self.swappable) < self.limit:
                self.swappable.append((item, row, stored, len(self.report.problems)))
            self.add(self.problem(item, kind, message, intact_at))
        self.suspects.clear()

    def problem(self, item: Item, kind: Kind, message: str, intact_at: datetime | None) -> Problem:
        text = f"{item.name} (leaf {item.index}) {message}"
        if item.is_event:
            return Problem(kind, text, item.index, int(item.subject[0]), intact_at=intact_at)
        return Problem(
            kind, text, item.index, None, item.subject[0], int(item.subject[1]), intact_at
        )

    def name_swaps(self) -> None:
        """Distinguish rows that were swapped from rows that were altered."""
        for item, _, stored, number in self.swappable:
            if not item.is_event or item.salt is None or number >= len(self.report.problems):
                continue
            for other, row, _, _ in self.swappable:
                if isinstance(row, EventRow) and other is not item:
                    event_id, tx_id, at = item.subject
                    moved = row._replace(id=event_id, tx_id=tx_id, occurred_at=at)
                    if item_hash(item, moved, None) == stored:
                        intact_at = self.report.problems[number].intact_at
                        message = f"was reordered: its content is that of {other.name}"
                        self.report.problems[number] = self.problem(
                            item, "reordered", message, intact_at
                        )
                        break

    # Upper-level tiles, repeated ids and unsealed rows

    def check_upper_tiles(self, tiles: Sequence[tuple[int, int, bytes]]) -> None:
        read_tile = tile_reader(self.conn)
        for level, number, hashes in tiles:
            if level == 0:
                continue
            stored = read_tile(level, number)
            if stored != hashes:
                path = tile_path(level, number, len(hashes) // HASH_SIZE)
                state = "was altered" if stored else "is missing"
                self.add(Problem("tree", f"{path} {state}"))

    def check_tile_count(self, size: int) -> None:
        rows = self.conn.execute(
            "select level, count(*) from pgaudit_wf.log_tile group by 1 order by 1"
        ).fetchall()
        for level, count in rows:
            expected = -(-(size >> (8 * level)) // TILE_WIDTH) if level >= 0 else 0
            if count > expected:
                self.add(Problem("tree", f"there are {count - expected} tiles of level {level}"
                                 f" beyond the tree of {size} leaves"))  # fmt: skip

    def check_repeated(self) -> None:
        # The index has the ids in order: nothing is kept in memory.
        self.conn.execute("set local enable_hashagg = off")
        with psycopg.ServerCursor(self.conn, "verify_ids", row_factory=tuple_row) as cursor:
            for event_id, first, last in cursor.execute(SEALED_TWICE):
                self.add(
                    Problem(
                        "inserted",
                        f"event {event_id} was inserted: leaf {last} has the id of leaf {first}",
                        last,
                        event_id,
                    )
                )

    def check_unsealed(self) -> None:
        self.conn.execute("set local enable_hashjoin = on")
        self.conn.execute("set local enable_seqscan = on")
        with psycopg.ServerCursor(self.conn, "verify_new", row_factory=tuple_row) as cursor:
            for event_id, occurred_at, action, inserted in cursor.execute(WITHOUT_LEAF):
                if str(event_id) in self.moved:
                    continue
                if inserted:
                    self.add(
                        Problem(
                            "inserted",
                            f"event {event_id} ({action}, {occurred_at}) was inserted: {inserted}",
                            event_id=event_id,
                        )
                    )
                else:
                    self.report.unsealed += 1
        rows = self.conn.execute(
            "select h.workflow_id, h.version, h.tx_id < coalesce((select p.below_tx"
            " from pgaudit_wf.version_place as p join pgaudit_wf.log_generations() as g"
            " using (system_identifier) where g.last_id is null), 0)"
            " from pgaudit_wf.workflow_history as h where not exists (select from"
            " pgaudit_wf.log_leaf as l"
            " where l.workflow_id = h.workflow_id and l.version = h.version)"
            " order by h.tx_id, 1, 2"
        )
        for workflow_id, version, inserted in rows:
            if inserted:
                self.add(
                    Problem(
                        "inserted",
                        f"version {version} of workflow {workflow_id} was inserted: it did not"
                        " exist when later ones were sealed",
                        workflow_id=workflow_id,
                        version=version,
                    )
                )
            else:
                self.report.unsealed_versions += 1


def verify(
    conn: Connection,
    keys: Sequence[VerifierKey],
    *,
    notes: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    limit: int = 100,
) -> Report:
    """Check every sealed event and version, the tree, and the checkpoints.

    Args:
        conn: The owner's connection, in autocommit mode.
        keys: The keys that checkpoints must be signed by; several after a rotation.
        notes: Signed checkpoints kept elsewhere, by the name of their source; the log must continue
            each of them.
        progress: Called from time to time with the number of leaves done and in all.
        limit: How many problems to keep.

    Raises:
        psycopg.Error: The database could not answer.
    """
    with translated(), conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        pin_format(conn)
        # An index provides the order of the leaves, so that nothing is sorted or kept in memory.
        for setting in ("hashjoin", "mergejoin", "sort", "seqscan", "bitmapscan", "material"):
            conn.execute(sql.SQL("set local {} = off").format(sql.Identifier(f"enable_{setting}")))
        conn.execute("set local jit = off")
        work = _Verification(conn, keys, notes or {}, limit)
        work.run(progress)
        work.check_repeated()
        work.check_unsealed()
        return work.report
