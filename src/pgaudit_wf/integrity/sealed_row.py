"""The rows behind leaves, as a verification reads them."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row
from psycopg.types.string import TextLoader

from pgaudit_wf.integrity import leaf as leaves
from pgaudit_wf.integrity.merkle import leaf_hash
from pgaudit_wf.integrity.seal import column_list
from pgaudit_wf.trail.event import EVENT_COLUMNS, EventRow
from pgaudit_wf.trail.statement import Connection

_ITEM_SIZE = 100


@dataclass(slots=True)
class Item:
    """A leaf as in log_leaf, and its row.

    `subject` is an event's id, tx_id and occurred_at, or a version's workflow_id and number.
    """

    index: int
    subject: tuple[str, ...]
    salt: bytes | None
    snapshot: bytes | None
    chain: str | None
    link: leaves.Link | None
    row: leaves.Row | None

    @property
    def is_event(self) -> bool:
        """Whether it is an event's leaf."""
        return len(self.subject) == 3

    @property
    def name(self) -> str:
        """Its row's name, for people."""
        if self.is_event:
            return f"event {self.subject[0]}"
        return f"version {self.subject[1]} of workflow {self.subject[0]}"


_EVENT_LEAVES = sql.SQL(
    "select l.leaf_index, l.event_id, l.tx_id, l.occurred_at, l.salt,"
    " l.chain, l.org_number, l.org_previous, {} from pgaudit_wf.log_leaf"
    " as l left join pgaudit_wf.security_audit_log as e"
    " on e.tx_id = l.tx_id and e.id = l.event_id and e.occurred_at = l.occurred_at"
    " where num_nonnulls(l.event_id, l.tx_id, l.occurred_at) = 3 "
).format(column_list(EVENT_COLUMNS, sql.SQL("e")))
_VERSION_LEAVES = sql.SQL(
    "select l.leaf_index, l.workflow_id, l.version, l.salt, l.snapshot,"
    " l.chain, l.org_number, l.org_previous, {} from pgaudit_wf.log_leaf"
    " as l left join pgaudit_wf.workflow_history as h"
    " on h.workflow_id = l.workflow_id and h.version = l.version"
    " where num_nonnulls(l.workflow_id, l.version) = 2 "
).format(column_list(leaves.VersionRow._fields, sql.SQL("h")))
# Which leaves, and in which order.
ALL_LEAVES = sql.SQL("order by l.leaf_index")
BY_ID = sql.SQL("select {} from pgaudit_wf.security_audit_log as e where e.id = %s").format(
    column_list(EVENT_COLUMNS, sql.SQL("e"))
)
# Leaves that an erasure may have changed, and the pseudonyms that it left.
ERASED = """
    select r.actor_id, r.pseudonym
    from pgaudit_wf.erased_event as x
    join pgaudit_wf.erasure as r using (actor_id)
    join pgaudit_wf.log_leaf as l on l.event_id = x.event_id and l.tx_id = x.tx_id
    where l.leaf_index = %(index)s
    union all
    select r.actor_id, r.pseudonym
    from pgaudit_wf.log_leaf as l
    join pgaudit_wf.workflow_history as h on h.workflow_id = l.workflow_id and h.version = l.version
    join pgaudit_wf.erasure as r on r.actor_id = h.actor_id
    where l.leaf_index = %(index)s
"""
# An event without a leaf is new if it comes after the last sealed one and may yet be sealed;
# otherwise it was inserted.
WITHOUT_LEAF = """
    with generation as (
        select g.first_id, coalesce(g.last_id, 9223372036854775807) as last_id
        from pgaudit_wf.log_generations() as g),
    last as (
        select l.event_id, l.tx_id, g.first_id
        from pgaudit_wf.log_leaf as l
        join generation as g on l.event_id between g.first_id and g.last_id
        where l.event_id is not null order by l.leaf_index desc limit 1)
    select e.id, e.occurred_at, e.action, case
            when g.first_id is null then 'this log has given no such id'
            when (g.first_id, e.tx_id, e.id) < (last.first_id, last.tx_id, last.event_id)
                then 'it did not exist when the events around it were sealed'
            when g.last_id = 9223372036854775807
                    and e.tx_id >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint
                then 'its transaction has not begun'
            when exists (select from pgaudit_wf.log_leaf as l where l.event_id = e.id)
                then 'a sealed event has the same id'
        end as inserted
    from pgaudit_wf.security_audit_log as e
    left join generation as g on e.id between g.first_id and g.last_id
    left join last on true
    where not exists (
        select from pgaudit_wf.log_leaf as l
        where l.event_id = e.id and l.tx_id = e.tx_id and l.occurred_at = e.occurred_at)
"""

SEALED_TWICE = """
    select l.event_id, min(l.leaf_index), max(l.leaf_index) from pgaudit_wf.log_leaf as l
    where l.event_id is not null group by 1 having count(*) > 1 order by 1
"""


# What cannot be read is by no event that there is.
_NO_MASKS = ((0, ""),)


def _cursor(conn: Connection, name: str) -> psycopg.ServerCursor[Any]:
    cursor = psycopg.ServerCursor(conn, name, row_factory=tuple_row)
    for kind in ("int4", "int8", "timestamptz", "jsonb", "inet"):
        cursor.adapters.register_loader(kind, TextLoader)
    cursor.itersize = _ITEM_SIZE
    return cursor


def read_items(
    conn: Connection, which: sql.Composable = ALL_LEAVES, parameters: Sequence[object] = ()
) -> Iterator[Item]:
    """Yield leaves with their rows, in the order of the tree, with constant memory.

    Args:
        conn: A connection in a transaction whose values print as in leaves.
        which: Which of them: an end of the statement's condition on log_leaf as l, and an order
            that is the tree's.
        parameters: Values for it.
    """
    return heapq.merge(
        _event_items(conn, which, parameters),
        _version_items(conn, which, parameters),
        key=lambda item: item.index,
    )


def _event_items(
    conn: Connection, which: sql.Composable, parameters: Sequence[object]
) -> Iterator[Item]:
    with _cursor(conn, "event_leaves") as cursor:
        for row in cursor.execute(_EVENT_LEAVES + which, parameters):
            index, number, tx_id, at, salt, chain, place, previous, *values = row
            event: leaves.EventText | None = None
            if values[0] is not None:
                event = EventRow._make(values)
            link = link_of(place, previous)
            yield Item(int(index), (number, tx_id, at), salt, None, chain, link, event)


def _version_items(
    conn: Connection, which: sql.Composable, parameters: Sequence[object]
) -> Iterator[Item]:
    with _cursor(conn, "version_leaves") as cursor:
        for row in cursor.execute(_VERSION_LEAVES + which, parameters):
            version = leaves.VersionRow._make(row[8:]) if row[8] is not None else None
            link = link_of(row[6], row[7])
            yield Item(int(row[0]), (row[1], row[2]), row[3], row[4], row[5], link, version)


def item_hash(item: Item, row: leaves.Row, kept: Mapping[str, leaves.Kept] | None) -> bytes:
    """Return the hash of the leaf made from a row and a leaf's secrets.

    Raises:
        ValueError: What is kept for when the snapshot is pruned is not the commitment to it.
    """
    return leaf_hash(leaves.canonical(item_leaf(item, row, kept)))


def item_leaf(item: Item, row: leaves.Row, kept: Mapping[str, leaves.Kept] | None) -> leaves.Leaf:
    """Return the leaf made from a row and a leaf's secrets.

    Raises:
        ValueError: What is kept for when the snapshot is pruned is not the commitment to it.
    """
    parts = leaves.parts_of(row)
    if kept is not None:
        found = leaves.kept_commitments(parts, kept)
    else:
        found = leaves.commitments(parts, item.salt or b"")
    if not isinstance(row, EventRow):
        snapshot = item.snapshot.hex() if item.snapshot is not None else None
        if row.snapshot is None and snapshot is not None:
            found.setdefault("snapshot", snapshot)
        if found.get("snapshot") != snapshot:
            raise ValueError("the commitment to its snapshot in log_leaf was altered")
    return leaves.leaf_of(row, found, item.link)


def link_of(number: str | int | None, previous: bytes | None) -> leaves.Link | None:
    """Return a leaf's place in its chain from the columns of log_leaf."""
    return None if number is None else leaves.Link(int(number), previous)


def read_kept(conn: Connection, index: int) -> dict[str, leaves.Kept]:
    """Return the remaining secrets of a leaf after an erasure."""
    rows = conn.execute(
        "select part, key, commitment, release_id, masks::text from pgaudit_wf.log_kept"
        " where leaf_index = %s",
        [index],
    ).fetchall()
    return {
        part: leaves.Kept(key, commitment, release, _masks(masks))
        for part, key, commitment, release, masks in rows
    }


def _masks(text: str) -> tuple[tuple[int, str], ...]:
    try:
        masks = tuple((event, mask) for event, mask in json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return _NO_MASKS
    is_read = all(isinstance(event, int) and isinstance(mask, str) for event, mask in masks)
    return masks if is_read else _NO_MASKS


def altered_mask(row: leaves.Row, kept: Mapping[str, leaves.Kept]) -> str | None:
    """Return the name of an erased part in whose place is not what an erasure put there, or None.

    Args:
        row: The row.
        kept: The rest of its leaf's secrets.
    """
    for name, text in leaves.parts_of(row):
        rest = kept.get(name)
        if rest is not None and rest.commitment is not None and not rest.masked(text):
            return name
    return None
