"""What is gone from the log, held against the sealed events that let it go.

Rows leave by retention, parts of them by erasure and by the pruning of snapshots. Each is an event
(`audit.archived`, `audit.history_pruned`, `actor.pseudonymised`) that names exactly what goes, by
number and digest. The tables that list the same are only pointers: nothing here trusts them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from pgaudit_wf.integrity import leaf as leaves
from pgaudit_wf.integrity.sealed_row import ERASED, Item, altered_mask
from pgaudit_wf.integrity.tiles import TILE_WIDTH
from pgaudit_wf.trail.event import EventRow
from pgaudit_wf.trail.statement import Connection

ARCHIVED = "audit.archived"
_PART_ACTIONS = {"audit.history_pruned", "actor.pseudonymised"}

# The sizes of the tree at which months may have been archived: checked against the events below.
CANDIDATES = """
    select metadata ->> 'month', (metadata ->> 'tree_size')::bigint
    from pgaudit_wf.security_audit_log
    where action = 'audit.archived' and captured and metadata ->> 'tree_size' ~ '^[0-9]{1,18}$'
    order by 2
"""

Ranges = list[tuple[int, int]]


def _month(item: Item) -> str:
    """Return the month of an event as audit.archived names it; before Christ none has a name."""
    at = item.subject[2]
    return at[:7] if at[4:5] == "-" and not at.endswith("BC") else at


class _Month:
    """The digest over a month's leaves, at each size of the tree at which it is asked for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.found: dict[int, tuple[int, str]] = {}
        self._tiles = sha256()
        self._tile = sha256()
        self._number = -1
        self._leaves = 0

    def _digest(self) -> tuple[int, str]:
        tiles = self._tiles.copy()
        if self._number >= 0:
            tiles.update(self._tile.digest())
        return self._leaves, tiles.hexdigest()

    def add(self, index: int, leaf: bytes) -> None:
        self.reach(index)
        if index // TILE_WIDTH != self._number:
            if self._number >= 0:
                self._tiles.update(self._tile.digest())
            self._tile, self._number = sha256(), index // TILE_WIDTH
        self._tile.update(leaf)
        self._leaves += 1

    def reach(self, size: int) -> None:
        while self.sizes and self.sizes[0] <= size:
            self.found[self.sizes.pop(0)] = self._digest()


@dataclass
class _Gone:
    """Leaves of a month without a row: in ranges, and the first ones by name."""

    ranges: Ranges = field(default_factory=list)
    first: list[Item] = field(default_factory=list)


@dataclass
class _Parts:
    """Parts of leaves that are gone by one event."""

    first: Item
    count: int = 0
    digest: Any = field(default_factory=sha256)


@dataclass(frozen=True)
class Doubt:
    """Something that is gone although no sealed event says so.

    `kind` is removed (the row of `item`) or altered (parts of it, and perhaps of others); `count`
    says how many rows or parts.
    """

    kind: Literal["altered", "removed"]
    item: Item
    message: str
    count: int


class Releases:
    """Collects, leaf by leaf, what is gone and what events say about it.

    Args:
        candidates: Months, and the sizes of the tree at which they may have been archived.
        limit: How many leaves of a month to keep by name.

    Attributes:
        erased_leaves: Leaves of which an erasure has removed parts.
    """

    def __init__(self, candidates: Iterable[tuple[str, int]], limit: int) -> None:
        self._months: dict[str, _Month] = defaultdict(_Month)
        for month, size in candidates:
            self._months[month].sizes.append(size)
        self._limit = limit
        self.erased_leaves = 0
        # Events that let something go, but are not below a signed checkpoint yet.
        self._heard: list[leaves.EventText] = []
        self._archived: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        self._events: dict[int, Mapping[str, Any]] = {}
        self._gone: dict[str, _Gone] = defaultdict(_Gone)
        self._parts: dict[int, _Parts] = {}
        # Pseudonyms that stand in place of something, and the first leaf of each.
        self._masks: dict[str, Item] = {}

    def see(self, item: Item, leaf: bytes) -> None:
        """Take the hash that the tree has for an event's leaf."""
        month = self._months.get(_month(item))
        if month is not None:
            month.add(item.index, leaf)

    def hear(self, row: leaves.EventText) -> None:
        """Take an event that is what its leaf says."""
        if row.captured is True and (row.action == ARCHIVED or row.action in _PART_ACTIONS):
            self._heard.append(row)

    def trust(self) -> None:
        """Take it that the leaves so far are signed: what their events let go may be gone."""
        for row in self._heard:
            try:
                said = json.loads(row.metadata)
            except (ValueError, RecursionError):
                continue
            if not isinstance(said, dict):
                continue
            if row.action == ARCHIVED:
                self._archived[str(said.get("month"))].append(said)
            else:
                self._events[int(row.id)] = said
        self._heard.clear()

    def miss(self, item: Item, kept: Mapping[str, leaves.Kept]) -> None:
        """Take an event's leaf whose row is gone, and what an erasure in its archive left."""
        self._lack(item, kept)
        gone = self._gone[_month(item)]
        if gone.ranges and gone.ranges[-1][1] == item.index:
            gone.ranges[-1] = (gone.ranges[-1][0], item.index + 1)
        else:
            gone.ranges.append((item.index, item.index + 1))
        if len(gone.first) < self._limit:
            gone.first.append(item)

    def _lack(self, item: Item, kept: Mapping[str, leaves.Kept]) -> None:
        """Take a leaf of which parts are gone."""
        for name in sorted(kept, key=str.encode):
            rest = kept[name]
            events = {event for event, _ in rest.masks}
            if rest.release_id is not None:
                events.add(rest.release_id)
            for release in events:
                parts = self._parts.setdefault(release, _Parts(item))
                parts.count += 1
                masks = "".join(f" {mask}" for event, mask in rest.masks if event == release)
                parts.digest.update(f"{item.index} {name}{masks}\n".encode())

    def doubt(
        self,
        conn: Connection,
        item: Item,
        row: leaves.Row,
        kept: Mapping[str, leaves.Kept] | None,
    ) -> str | None:
        """Return what is wrong with a row although its leaf is as it was sealed, or None.

        Args:
            conn: Where to look up whom an erasure concerned.
            item: The leaf.
            row: The row, some parts of which may be gone.
            kept: The rest of the leaf's secrets after an erasure; None: nothing was erased.
        """
        without_snapshot = not isinstance(row, EventRow) and row.snapshot is None
        if kept is None:
            if without_snapshot and item.snapshot is not None:
                return "has lost its snapshot, and no pruning of it is recorded"
            return None
        gone = {name for name, rest in kept.items() if rest.commitment is not None}
        parts = leaves.parts_of(row)
        here = {name for name, _ in parts}
        if added := sorted(here - kept.keys()):
            return f"was altered after an erasure: it was sealed without {added[0]}"
        pruned = {"snapshot"} if without_snapshot else set()
        if pruned - gone and item.snapshot is not None:
            return "has lost its snapshot, and no pruning of it is recorded"
        masked_keys = any(name.startswith("metadata/") for name in gone & here)
        for name in sorted(gone - here - pruned):
            # Two keys that were masked alike become one.
            if not (masked_keys and name.startswith("metadata/")):
                return f"was altered after an erasure: {name} is gone altogether"
        self._lack(item, kept)
        if not gone - pruned:
            return None
        return self._doubt_masks(conn, item, row, parts, kept)

    def _doubt_masks(
        self,
        conn: Connection,
        item: Item,
        row: leaves.Row,
        parts: leaves.Parts,
        kept: Mapping[str, leaves.Kept],
    ) -> str | None:
        pseudonyms = dict(conn.execute(ERASED, {"index": item.index}).fetchall())
        if not pseudonyms:
            return "is marked as partly erased, but no erasure is recorded"
        for pseudonym in pseudonyms.values():
            self._masks.setdefault(pseudonym, item)
        own = pseudonyms.get(row.actor_id)
        for name, text in parts:
            rest = kept.get(name)
            if rest is None or rest.commitment is None:
                continue
            if name == "who" and own is not None:
                masked = set(json.loads(text)) <= {None, own}
            else:
                masked = any(pseudonym in text for pseudonym in pseudonyms.values())
            if not masked:
                return f"was altered after an erasure: an erasure does not leave this {name}"
        if altered := altered_mask(row, kept):
            return f"was altered after an erasure: it left another {altered}"
        self.erased_leaves += 1
        return None

    def pruned(self, size: int) -> tuple[Ranges, list[Doubt]]:
        """Return the leaves whose rows may be gone, and those that may not.

        Args:
            size: The size of the tree.
        """
        accepted: Ranges = []
        doubts: list[Doubt] = []
        for month, gone in self._gone.items():
            below = self._archived_below(month, size)
            for start, end in gone.ranges:
                if start < below:
                    accepted.append((start, min(end, below)))
            left = sum(max(0, end - max(start, below)) for start, end in gone.ranges)
            named = [item for item in gone.first if item.index >= below]
            doubts += [Doubt("removed", item, "is missing", 1) for item in named]
            if left > len(named):
                last = named[-1] if named else gone.first[-1]
                doubts.append(
                    Doubt("removed", last, f"is missing, and so are other events of {month}",
                          left - len(named))
                )  # fmt: skip
        return sorted(accepted), doubts

    def _archived_below(self, month: str, size: int) -> int:
        known = self._months.get(month)
        if known is None:
            return 0
        known.reach(size)
        return max(
            (
                said["tree_size"]
                for said in self._archived[month]
                if isinstance(said.get("tree_size"), int)
                and known.found.get(said["tree_size"]) == (said.get("leaves"), said.get("digest"))
            ),
            default=0,
        )

    def erased(self) -> Iterator[Doubt]:
        """Yield the leaves of which parts are gone that may not be."""
        for release, parts in self._parts.items():
            said = self._events.get(release)
            if said is None:
                why = f"is erased in part, by event {release}, which is not sealed"
            elif (said.get("parts"), said.get("digest")) != (parts.count, parts.digest.hexdigest()):
                why = f"is erased in part, but event {release} let other parts go than are gone"
            else:
                continue
            yield Doubt("altered", parts.first, why, parts.count)
        sealed = {str(said.get("pseudonym")) for said in self._events.values()}
        for pseudonym, item in self._masks.items():
            if pseudonym not in sealed:
                why = f"is masked by {pseudonym}, which no sealed erasure left"
                yield Doubt("altered", item, why, 1)
