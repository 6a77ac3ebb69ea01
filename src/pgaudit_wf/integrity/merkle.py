"""Merkle trees as RFC 6962 and RFC 9162 define them: hashes, proofs, and how proofs are checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

HASH_SIZE = 32
EMPTY_ROOT = sha256(b"").digest()

# The hash of the complete subtree of 2**height leaves that begins at leaf index * 2**height.
Node = Callable[[int, int], bytes]


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


def subtree_root(hashes: Sequence[bytes]) -> bytes:
    """Return the root over some hashes; without any, the root of the empty tree."""
    level = list(hashes)
    if not level:
        return EMPTY_ROOT
    while len(level) > 1:
        above = [
            sha256(b"\x01" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)
        ]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return level[0]


def _split(size: int) -> int:
    """Return the largest power of two that is smaller than size."""
    return 1 << ((size - 1).bit_length() - 1)


def range_root(start: int, end: int, node: Node) -> bytes:
    """Return the root over leaves start to end (exclusive); a subtree must begin at start.

    Raises:
        ValueError: The range is empty.
    """
    if end <= start:
        raise ValueError(f"there are no leaves from {start} to {end}")
    size = end - start
    if size & (size - 1) == 0:
        height = size.bit_length() - 1
        return node(height, start >> height)
    middle = start + _split(size)
    return node_hash(range_root(start, middle, node), range_root(middle, end, node))


def tree_root(size: int, node: Node) -> bytes:
    """Return the root of the tree of the first size leaves."""
    return range_root(0, size, node) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, node: Node) -> list[bytes]:
    """Return the hashes that lead from leaf index to the root of the tree of size leaves.

    Raises:
        ValueError: The tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} in a tree of {size}")
    proof: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            proof.append(range_root(middle, end, node))
            end = middle
        else:
            proof.append(range_root(start, middle, node))
            start = middle
    return proof[::-1]


def consistency_proof(old_size: int, size: int, node: Node) -> list[bytes]:
    """Return the hashes that prove that a tree of size leaves begins with one of old_size.

    Raises:
        ValueError: The old tree is empty, or larger than the new one.
    """
    if not 0 < old_size <= size:
        raise ValueError(f"a tree of {size} leaves cannot continue one of {old_size}")
    proof: list[bytes] = []
    start, end = 0, size
    while end != old_size:
        middle = start + _split(end - start)
        if old_size <= middle:
            proof.append(range_root(middle, end, node))
            end = middle
        else:
            proof.append(range_root(start, middle, node))
            start = middle
    if start:
        # The old tree is not a complete subtree of the new one, so its last part must be included.
        proof.append(range_root(start, end, node))
    return proof[::-1]


def _are_hashes(items: Sequence[bytes]) -> bool:
    # Else the border between two of them could be moved.
    return all(len(item) == HASH_SIZE for item in items)


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to (RFC 9162, section 2.1.3.2).

    Raises:
        ValueError: The proof is too long or too short, the tree has no such leaf, or something in
            it is no hash.
    """
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} in a tree of {size}")
    if not _are_hashes([leaf, *proof]):
        raise ValueError("a hash of the inclusion proof is not 32 bytes long")
    fn, sn, root = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            raise ValueError("the inclusion proof is too long")
        if fn & 1 or fn == sn:
            root = node_hash(sibling, root)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            root = node_hash(root, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise ValueError("the inclusion proof is too short")
    return root


def is_consistent(
    old_size: int, size: int, proof: Sequence[bytes], old_root: bytes, root: bytes
) -> bool:
    """Return whether a consistency proof holds between two trees (RFC 9162, section 2.1.4.2).

    Nothing is consistent with an empty tree: everything would be.
    """
    if old_size < 1:
        return False
    if old_size == size:
        return not proof and old_root == root
    if old_size > size or not proof or not _are_hashes(proof):
        return False
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    fn, sn = old_size - 1, size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and old == old_root and new == root
