"""Chains: the leaves of one organization, numbered, each with the hash of the one before.

A tree shows that a leaf is in it, not that it shows all leaves of an organization. Numbers without
gaps do, and each leaf commits to all before it, so the leaves of others need not be shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pgaudit_wf.errors import SealError
from pgaudit_wf.integrity import leaf as leaves
from pgaudit_wf.integrity.merkle import HASH_SIZE, leaf_hash
from pgaudit_wf.trail.statement import Connection


def name_chain(chain: str) -> str:
    """Return what a chain is called in messages."""
    if chain.startswith(leaves.ORGANIZATION):
        return f"organization {chain.removeprefix(leaves.ORGANIZATION)}"
    return "the configuration" if chain == leaves.CONFIGURATION else "no organization"


class Heads:
    """The ends of chains, to which a sealer appends; it must be the only one meanwhile.

    Args:
        conn: The sealer's connection.
    """

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._next: dict[str, leaves.Link] = {}

    def find(self, rows: Iterable[leaves.Row]) -> None:
        """Look up where the chains of some rows end.

        Raises:
            SealError: The last leaf of one has no number, or no hash in the tree.
        """
        new = {leaves.chain_of(row) for row in rows} - self._next.keys()
        if new:
            self._next |= dict.fromkeys(new, leaves.Link(1, None))
            heads = self._conn.execute(
                "select chain, org_number, leaf from pgaudit_wf._chain_heads(%s)", [list(new)]
            )
            for chain, number, leaf in heads.fetchall():
                if number is None or leaf is None or len(leaf) != HASH_SIZE:
                    raise SealError(
                        f"the last leaf of the chain of {name_chain(chain)} was altered, or is"
                        " missing from the tree; run pgaudit-wf verify, and do not sign until you"
                        " know why"
                    )
                self._next[chain] = leaves.Link(number + 1, bytes(leaf))

    def append(self, row: leaves.Row, found: Mapping[str, str]) -> tuple[str, leaves.Link, bytes]:
        """Append a row to its chain; return the chain, its place in it, and its leaf's hash.

        Args:
            row: An event or a version, whose chain was looked up.
            found: The commitments to its parts.
        """
        chain = leaves.chain_of(row)
        link = self._next[chain]
        leaf = leaf_hash(leaves.canonical(leaves.leaf_of(row, found, link)))
        self._next[chain] = leaves.Link(link.number + 1, leaf)
        return chain, link, leaf


class Chains:
    """Follows all chains through the tree, and finds where one breaks.

    Keeps the last leaf of each chain, so memory grows with the organizations, not with the leaves.
    """

    def __init__(self) -> None:
        # Of each chain: its last number, and the hashes that its last leaf may have.
        self._last: dict[str, tuple[int, set[bytes | None]]] = {}

    def follow(
        self,
        listed: str | None,
        link: leaves.Link | None,
        row: leaves.Row | None,
        stored: bytes,
        found: bytes | None,
    ) -> str | None:
        """Take the next leaf of the tree; return what is wrong with its place, or None.

        Args:
            listed: Its chain, as log_leaf has it.
            link: Its place in it.
            row: Its row, if that is still there.
            stored: Its hash in the tree.
            found: The hash of its row.
        """
        if link is None or listed is None:
            return "has no number in a chain, though leaves before it have" if self._last else None
        chain = listed if row is None or found != stored else leaves.chain_of(row)
        wrong = None if chain == listed else f"is listed in log_leaf under {name_chain(listed)}"
        number, hashes = self._last.get(chain, (0, {None}))
        if link.number != number + 1:
            what = "comes again after" if link.number <= number else "follows"
            wrong = f"breaks the chain of {name_chain(chain)}: number {link.number} {what} {number}"
        elif link.previous not in hashes:
            wrong = (
                f"breaks the chain of {name_chain(chain)}: number {link.number} does not have the"
                f" hash of number {number} as the one before"
            )
        # Which of the two is right, if they differ, only a checkpoint tells.
        self._last[chain] = (link.number, {stored, found or stored})
        return wrong
