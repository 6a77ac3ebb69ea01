"""The tree against the published vectors and against a naive reading of the RFC."""

import hashlib
from collections.abc import Sequence

import pytest

from pgaudit_wf.integrity.merkle import (
    EMPTY_ROOT,
    consistency_proof,
    inclusion_proof,
    is_consistent,
    leaf_hash,
    range_root,
    root_from_inclusion,
    subtree_root,
    tree_root,
)
from pgaudit_wf.integrity.tiles import (
    MissingTileError,
    TreeBuilder,
    nodes_from_tiles,
    tile_path,
    tile_widths,
)

# The leaves and roots that every implementation of RFC 6962 is tested with.
PUBLISHED_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
PUBLISHED_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PUBLISHED_INCLUSION = {
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
}
PUBLISHED_CONSISTENCY = {
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
SIZE = 300
LEAVES = [f"leaf {number}".encode() for number in range(SIZE)]


# RFC 6962, sections 2.1, 2.1.1 and 2.1.2, word by word.


def naive_split(size: int) -> int:
    power = 1
    while power * 2 < size:
        power *= 2
    return power


_roots: dict[tuple[int, int], bytes] = {}


def naive_root(start: int, end: int, data: Sequence[bytes] = LEAVES) -> bytes:
    if data is LEAVES and (start, end) in _roots:
        return _roots[start, end]
    if start == end:
        root = hashlib.sha256(b"").digest()
    elif end - start == 1:
        root = hashlib.sha256(b"\x00" + data[start]).digest()
    else:
        k = naive_split(end - start)
        root = hashlib.sha256(
            b"\x01" + naive_root(start, start + k, data) + naive_root(start + k, end, data)
        ).digest()
    if data is LEAVES:
        _roots[start, end] = root
    return root


def naive_path(m: int, start: int, end: int) -> list[bytes]:
    if end - start == 1:
        return []
    k = naive_split(end - start)
    if m < k:
        return [*naive_path(m, start, start + k), naive_root(start + k, end)]
    return [*naive_path(m - k, start + k, end), naive_root(start, start + k)]


def naive_subproof(m: int, start: int, end: int, whole: bool) -> list[bytes]:
    if m == end - start:
        return [] if whole else [naive_root(start, end)]
    k = naive_split(end - start)
    if m <= k:
        return [*naive_subproof(m, start, start + k, whole), naive_root(start + k, end)]
    return [*naive_subproof(m - k, start + k, end, False), naive_root(start, start + k)]


class Tiles:
    """Tiles in memory."""

    def __init__(self, leaves: Sequence[bytes] = LEAVES) -> None:
        self.tiles: dict[tuple[int, int], bytes] = {}
        builder = TreeBuilder()
        for leaf in leaves:
            builder.append(leaf_hash(leaf))
        self.keep(builder)

    def keep(self, builder: TreeBuilder) -> None:
        for level, number, hashes in builder.take_tiles():
            self.tiles[level, number] = hashes

    def read(self, level: int, number: int) -> bytes:
        return self.tiles.get((level, number), b"")


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    return Tiles()


def test_published_roots() -> None:
    hashes = [leaf_hash(leaf) for leaf in PUBLISHED_LEAVES]
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert [subtree_root(hashes[:size]).hex() for size in range(1, 9)] == PUBLISHED_ROOTS


@pytest.mark.parametrize(("index", "size"), PUBLISHED_INCLUSION)
def test_published_inclusion_proofs(index: int, size: int) -> None:
    node = nodes_from_tiles(Tiles(PUBLISHED_LEAVES).read)
    proof = inclusion_proof(index, size, node)
    assert [item.hex() for item in proof] == PUBLISHED_INCLUSION[index, size]
    root = root_from_inclusion(index, size, leaf_hash(PUBLISHED_LEAVES[index]), proof)
    assert root.hex() == PUBLISHED_ROOTS[size - 1]


@pytest.mark.parametrize(("old", "size"), PUBLISHED_CONSISTENCY)
def test_published_consistency_proofs(old: int, size: int) -> None:
    node = nodes_from_tiles(Tiles(PUBLISHED_LEAVES).read)
    proof = consistency_proof(old, size, node)
    assert [item.hex() for item in proof] == PUBLISHED_CONSISTENCY[old, size]
    old_root, root = (bytes.fromhex(PUBLISHED_ROOTS[n - 1]) for n in (old, size))
    assert is_consistent(old, size, proof, old_root, root)


def test_roots_of_all_sizes(tiles: Tiles) -> None:
    builder = TreeBuilder()
    node = nodes_from_tiles(tiles.read)
    assert builder.root() == EMPTY_ROOT == tree_root(0, node)
    for size in range(1, SIZE + 1):
        builder.append(leaf_hash(LEAVES[size - 1]))
        assert builder.root() == naive_root(0, size)
        assert tree_root(size, node) == naive_root(0, size)


def test_inclusion_proofs_of_all_leaves_in_all_sizes(tiles: Tiles) -> None:
    node = nodes_from_tiles(tiles.read)
    for size in range(1, SIZE + 1):
        root = naive_root(0, size)
        for index in range(size):
            proof = inclusion_proof(index, size, node)
            assert proof == naive_path(index, 0, size)
            assert root_from_inclusion(index, size, leaf_hash(LEAVES[index]), proof) == root


def test_consistency_proofs_of_all_pairs_of_sizes(tiles: Tiles) -> None:
    node = nodes_from_tiles(tiles.read)
    for size in range(1, SIZE + 1):
        root = naive_root(0, size)
        for old in range(1, size + 1):
            proof = consistency_proof(old, size, node)
            assert proof == naive_subproof(old, 0, size, True)
            assert is_consistent(old, size, proof, naive_root(0, old), root)


def test_proofs_do_not_hold_for_anything_else(tiles: Tiles) -> None:
    node = nodes_from_tiles(tiles.read)
    for size, index in ((1, 0), (7, 3), (256, 255), (257, 256), (300, 17)):
        root = naive_root(0, size)
        leaf = leaf_hash(LEAVES[index])
        proof = inclusion_proof(index, size, node)
        assert root_from_inclusion(index, size, leaf_hash(b"other"), proof) != root
        for wrong in ([*proof, leaf], proof[:-1] if proof else [leaf]):
            with pytest.raises(ValueError, match=r"too (long|short)"):
                root_from_inclusion(index, size, leaf, wrong)
        for other in range(size):
            if other != index:
                try:
                    assert root_from_inclusion(other, size, leaf, proof) != root
                except ValueError as error:
                    assert "too" in str(error)  # noqa: PT017 - either answer is a refusal
    for old, size in ((1, 2), (6, 8), (255, 257), (128, 300)):
        proof = consistency_proof(old, size, node)
        old_root, root = naive_root(0, old), naive_root(0, size)
        for wrong in ([*proof, root], proof[:-1], proof[::-1] if len(proof) > 1 else [root]):
            assert not is_consistent(old, size, wrong, old_root, root)
        assert not is_consistent(old, size, proof, root, root)
        assert not is_consistent(old, size, proof, old_root, old_root)
        assert not is_consistent(size, old, proof, root, old_root)
    assert not is_consistent(0, 5, [], EMPTY_ROOT, naive_root(0, 5))


# The odd ones among the vectors of transparency-dev/merkle, for verifiers: sizes and roots, whether
# they are consistent by a proof of nothing or of the empty tree's root.
NOTHING, SHORT = EMPTY_ROOT, b"don't care 1"
ODD_CONSISTENCY = [
    (0, 0, NOTHING, NOTHING, [NOTHING], False),
    (0, 0, NOTHING, b"don't care 2", [], False),
    (0, 0, SHORT, SHORT, [], False),
    (0, 0, SHORT, b"don't care 2", [], False),
    (0, 1, NOTHING, NOTHING, [NOTHING], False),
    (0, 1, NOTHING, b"don't care 2", [], False),
    (0, 1, SHORT, b"don't care 2", [], False),
    (1, 0, SHORT, b"don't care 2", [], False),
    (1, 1, NOTHING, NOTHING, [NOTHING], False),
    (1, 1, NOTHING, b"don't care 2", [], False),
    (1, 1, SHORT, SHORT, [], True),
    (1, 1, SHORT, b"don't care 2", [], False),
    (1, 2, SHORT, b"don't care 2", [], False),
    (2, 1, SHORT, b"don't care 2", [], False),
]
LEAF = leaf_hash(b"")
ODD_INCLUSION = [
    *((index, size, leaf, root, False)
      for index, size in ((0, 0), (0, 1), (1, 0), (2, 1))
      for leaf, root in ((LEAF, NOTHING), (b"", NOTHING), (LEAF, b""))),
    (0, 1, b"", b"", False),
    (0, 1, b"", leaf_hash(b"1"), False),
    (0, 1, leaf_hash(b"1"), b"", False),
    (0, 1, leaf_hash(b"1"), leaf_hash(b"1"), True),
]  # fmt: skip


@pytest.mark.parametrize(("old", "size", "old_root", "root", "proof", "holds"), ODD_CONSISTENCY)
def test_odd_consistency_proofs(
    old: int, size: int, old_root: bytes, root: bytes, proof: list[bytes], holds: bool
) -> None:
    assert is_consistent(old, size, proof, old_root, root) is holds


@pytest.mark.parametrize(("index", "size", "leaf", "root", "holds"), ODD_INCLUSION)
def test_odd_inclusion_proofs(index: int, size: int, leaf: bytes, root: bytes, holds: bool) -> None:
    try:
        found = root_from_inclusion(index, size, leaf, []) == root
    except ValueError:
        found = False
    assert found is holds


def test_hashes_of_another_length_prove_nothing(tiles: Tiles) -> None:
    node = nodes_from_tiles(tiles.read)
    proof = inclusion_proof(5, 7, node)
    cut = [proof[0] + proof[1][:4], proof[1][4:], *proof[2:]]
    with pytest.raises(ValueError, match="not 32 bytes"):
        root_from_inclusion(5, 7, leaf_hash(LEAVES[5]), cut)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3)])
def test_no_inclusion_proof_of_a_leaf_that_is_not_there(
    tiles: Tiles, index: int, size: int
) -> None:
    with pytest.raises(ValueError, match="no leaf"):
        inclusion_proof(index, size, nodes_from_tiles(tiles.read))
    with pytest.raises(ValueError, match="no leaf"):
        root_from_inclusion(index, size, EMPTY_ROOT, [])


@pytest.mark.parametrize(("old", "size"), [(0, 3), (4, 3)])
def test_no_consistency_proof_from_nothing_or_backwards(tiles: Tiles, old: int, size: int) -> None:
    with pytest.raises(ValueError, match="cannot continue"):
        consistency_proof(old, size, nodes_from_tiles(tiles.read))


def test_an_empty_range_has_no_root(tiles: Tiles) -> None:
    with pytest.raises(ValueError, match="no leaves"):
        range_root(4, 4, nodes_from_tiles(tiles.read))


@pytest.mark.parametrize("step", [1, 7, 100, 255, 256, 257])
def test_a_tree_goes_on_from_its_right_edge(step: int) -> None:
    kept = Tiles([])
    size, target = 0, 70_000 if step >= 100 else 1_500
    whole = TreeBuilder()
    while size < target:
        builder = TreeBuilder(size, kept.read)
        for number in range(size, min(size + step, target)):
            leaf = hashlib.sha256(number.to_bytes(4, "big")).digest()
            builder.append(leaf)
            whole.append(leaf)
        kept.keep(builder)
        size = builder.size
        assert builder.root() == whole.root()
    assert tree_root(size, nodes_from_tiles(kept.read)) == whole.root()
    # As the specification's example has it for 70,000.
    expected = {(level, number): width for level, number, width in tile_widths(size)}
    assert {key: len(hashes) // 32 for key, hashes in kept.tiles.items()} == expected


def test_tiles_as_the_specification_counts_them() -> None:
    widths = list(tile_widths(70_000))
    assert len([w for level, _, w in widths if level == 0 and w == 256]) == 273
    assert [w for w in widths if w[2] < 256] == [(0, 273, 112), (1, 1, 17), (2, 0, 1)]
    assert list(tile_widths(256)) == [(0, 0, 256), (1, 0, 1)]
    assert list(tile_widths(0)) == []


@pytest.mark.parametrize(
    ("level", "number", "width", "path"),
    [
        (0, 1234067, 256, "tile/0/x001/x234/067"),
        (1, 5, 17, "tile/1/005.p/17"),
        (0, 1000, 256, "tile/0/x001/000"),
    ],
)
def test_tile_paths(level: int, number: int, width: int, path: str) -> None:
    assert tile_path(level, number, width) == path


def test_a_missing_or_cut_tile_is_named(tiles: Tiles) -> None:
    cut = Tiles()
    cut.tiles[0, 0] = cut.tiles[0, 0][:-32]
    with pytest.raises(MissingTileError, match=r"tile/0/000 is missing or too short"):
        inclusion_proof(3, SIZE, nodes_from_tiles(cut.read))
    with pytest.raises(MissingTileError, match=r"tile/0/001 is missing or too short"):
        TreeBuilder(SIZE + 100, tiles.read)
