"""Tiles as in C2SP tlog-tiles: a tree split into pieces of 256 hashes for storage.

A tile of level l holds up to 256 consecutive hashes of subtrees of 256**l leaves. One that is not
full is the beginning of the full one, so a tile is kept once and serves each of its widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

from pgaudit_wf.integrity.merkle import HASH_SIZE, Node, subtree_root

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT

# Returns a tile's concatenated hashes by level and number; b"" if it does not exist.
ReadTile = Callable[[int, int], bytes]
# Receives a new or grown tile: level, number, hashes.
WriteTile = Callable[[int, int, bytes], None]


class MissingTileError(LookupError):
    """A tile that a proof or root needs is missing or too short."""


def tile_path(level: int, number: int, width: int = TILE_WIDTH) -> str:
    """Return a tile's path under a log's URL prefix, such as tile/0/x001/234.p/5."""
    groups = [f"{number % 1000:03d}"]
    while number >= 1000:
        number //= 1000
        groups.insert(0, f"x{number % 1000:03d}")
    partial = "" if width == TILE_WIDTH else f".p/{width}"
    return f"tile/{level}/{'/'.join(groups)}{partial}"


def tile_widths(size: int) -> Iterable[tuple[int, int, int]]:
    """Yield level, number and width of every tile of a tree of size leaves."""
    level = 0
    while size:
        full, rest = divmod(size, TILE_WIDTH)
        for number in range(full):
            yield level, number, TILE_WIDTH
        if rest:
            yield level, full, rest
        level, size = level + 1, full


def split_hashes(tile: bytes) -> list[bytes]:
    """Return the hashes of a tile."""
    return [tile[i : i + HASH_SIZE] for i in range(0, len(tile), HASH_SIZE)]


def nodes_from_tiles(read_tile: ReadTile) -> Node:
    """Return a function that finds the tree's nodes in tiles.

    Raises:
        MissingTileError: (the function) A tile is missing or too short.
    """

    @lru_cache(maxsize=256)
    def cached(level: int, number: int) -> bytes:
        return read_tile(level, number)

    # Proofs use the same few nodes near the root again and again.
    @lru_cache(maxsize=4096)
    def node(height: int, index: int) -> bytes:
        level, rest = divmod(height, TILE_HEIGHT)
        first = index << rest
        tile = cached(level, first >> TILE_HEIGHT)
        start = first % TILE_WIDTH * HASH_SIZE
        part = tile[start : start + (HASH_SIZE << rest)]
        if len(part) != HASH_SIZE << rest:
            raise MissingTileError(
                f"{tile_path(level, first >> TILE_HEIGHT)} is missing or too short"
            )
        return subtree_root(split_hashes(part))

    return node


class TreeBuilder:
    """Appends leaf hashes to a tree, keeping only its right edge: one tile per level.

    Args:
        size: Number of leaves that the tree already has.
        read_tile: Reads the tiles of the right edge; not needed for an empty tree.

    Attributes:
        size: Leaves so far.

    Raises:
        MissingTileError: The right edge is missing.
    """

    def __init__(self, size: int = 0, read_tile: ReadTile | None = None) -> None:
        self.size = size
        self._edge: list[list[bytes]] = []
        self._numbers: list[int] = []
        self._changed: set[int] = set()
        self._full: list[tuple[int, int, bytes]] = []
        level = 0
        while size and read_tile:
            number, width = divmod(size, TILE_WIDTH)
            tile = read_tile(level, number)[: width * HASH_SIZE] if width else b""
            if len(tile) != width * HASH_SIZE:
                raise MissingTileError(f"{tile_path(level, number)} is missing or too short")
            self._edge.append(split_hashes(tile))
            self._numbers.append(number)
            level, size = level + 1, number

    def append(self, leaf: bytes) -> None:
        """Append the hash of a leaf."""
        self.size += 1
        level, item = 0, leaf
        while True:
            if level == len(self._edge):
                self._edge.append([])
                self._numbers.append(0)
            hashes = self._edge[level]
            hashes.append(item)
            self._changed.add(level)
            if len(hashes) < TILE_WIDTH:
                return
            self._full.append((level, self._numbers[level], b"".join(hashes)))
            item = subtree_root(hashes)
            hashes.clear()
            self._numbers[level] += 1
            level += 1

    def take_tiles(self) -> list[tuple[int, int, bytes]]:
        """Return level, number and hashes of the tiles changed since the last call."""
        tiles, self._full = self._full, []
        tiles += [
            (level, self._numbers[level], b"".join(self._edge[level]))
            for level in sorted(self._changed)
            if self._edge[level]
        ]
        self._changed.clear()
        return tiles

    def take_full(self) -> list[tuple[int, int, bytes]]:
        """Return level, number and hashes of the tiles filled since the last call."""
        tiles, self._full = self._full, []
        return tiles

    def root(self) -> bytes:
        """Return the root of the tree so far."""
        right: list[bytes] = []
        for hashes in self._edge:
            # To the right of the complete subtrees is the last, incomplete one.
            if part := [*hashes, *right]:
                right = [subtree_root(part)]
        return subtree_root(right)
