"""A version of a workflow as a drawing: nodes as the editor arranged them, and what changed.

The page's script arranges them anew where the window is too narrow for names that can be read, and
lets people zoom and move; without it the drawing is scaled to the width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations
from typing import Any

from pgaudit_wf.workflow.model import Connected, Snapshot, VersionDiff

NODE_WIDTH = 200
NODE_HEIGHT = 60
GAP_X = 40
GAP_Y = 36
# Drawn at a time.
NODES = 200
EDGES = 500
_LABEL = 80
_MARGIN = 24
# What is larger would have to be scaled to less than can be read on a common screen.
_WIDE = 1500
_HIGH = 700
_SIGNS = {"add": "+", "change": "✎", "remove": "\N{MINUS SIGN}", "move": "↔"}
_WORDS = {"add": "added", "change": "changed", "remove": "removed", "move": "moved"}


@dataclass(frozen=True, slots=True)
class DrawnNode:
    """A node: `tone` is its change since the version before, "" for none."""

    id: str
    label: str
    kind: str
    x: int
    y: int
    tone: str
    sign: str
    word: str


@dataclass(frozen=True, slots=True)
class DrawnEdge:
    """A connection as the `d` of an SVG path, and the places of its nodes in the drawing."""

    path: str
    source: int
    target: int
    title: str
    tone: str


@dataclass(frozen=True, slots=True)
class Canvas:
    """The drawing, and the area that it covers.

    `first` is the number of the first node, of `total`; `edges_left_out` counts connections between
    these nodes.
    """

    nodes: tuple[DrawnNode, ...]
    edges: tuple[DrawnEdge, ...]
    left: int
    top: int
    width: int
    height: int
    first: int
    total: int
    edges_left_out: int
    across: bool
    node_width: int = NODE_WIDTH
    node_height: int = NODE_HEIGHT
    gap_x: int = GAP_X
    gap_y: int = GAP_Y

    @property
    def tones(self) -> tuple[str, ...]:
        """The kinds of change that it shows."""
        shown = {item.tone for items in (self.nodes, self.edges) for item in items}
        return tuple(tone for tone in _WORDS if tone in shown)


def draw(
    now: Snapshot, before: Snapshot | None, change: VersionDiff, skip: int = 0
) -> Canvas:  # fmt: skip
    """Draw a version, changed nodes first; removed ones are taken from the version before.

    Args:
        now: The version.
        before: The one before, if it is known.
        change: What changed between them.
        skip: How many nodes precede those to draw; beyond the last, it is the beginning.
    """
    present = _by_id(now.nodes)
    earlier = _by_id(before.nodes if before else ())
    tones = {
        id_: "move"
        for id_, node in present.items()
        if id_ in earlier and _is_elsewhere(node, earlier[id_])
    }
    tones |= {str(node.id): "add" for node in change.nodes_added}
    tones |= {str(node.id): "change" for node in change.nodes_changed}
    removed = {node.id for node in change.nodes_removed}
    gone = {id_: node for id_, node in earlier.items() if id_ in removed and id_ not in present}
    added, lost = map(_links, (change.connections_added, change.connections_removed))
    edges = [
        (edge, "add" if _link(edge) in added else "")
        for edge in now.edges
        if isinstance(edge, Mapping)
    ]
    kept = {_link(edge) for edge, _ in edges}
    edges += [
        (edge, "remove")
        for edge in (before.edges if before else ())
        if isinstance(edge, Mapping) and _link(edge) in lost - kept
    ]
    every = {**present, **gone}
    total = len(every)
    skip = skip if skip < total else 0
    if total > NODES:
        first = sorted(every, key=lambda id_: id_ not in gone and tones.get(id_, "move") == "move")
        every = {id_: every[id_] for id_ in first[skip : skip + NODES]}
    ends = [(*_ends(edge), tone) for edge, tone in edges]
    ends = [end for end in ends if end[0] in every and end[1] in every]
    between = len(ends)
    # Changed ones first; the others stay in their order.
    ends = sorted(ends, key=lambda end: not end[2])[:EDGES] if between > EDGES else ends
    pairs = [(source, target) for source, target, _ in ends]
    places = _places(every, pairs)
    across = _goes_across(places, pairs)
    nodes = tuple(
        _node(id_, node, places[id_], "remove" if id_ in gone else tones.get(id_, ""))
        for id_, node in every.items()
    )
    drawn = {node.id: place for place, node in enumerate(nodes)}
    lines = tuple(
        _edge(nodes, drawn[source], drawn[target], tone, across) for source, target, tone in ends
    )
    left = min((node.x for node in nodes), default=0) - _MARGIN
    top = min((node.y for node in nodes), default=0) - _MARGIN
    right = max((node.x for node in nodes), default=0) + NODE_WIDTH + _MARGIN
    bottom = max((node.y for node in nodes), default=0) + NODE_HEIGHT + _MARGIN
    return Canvas(
        nodes, lines, left, top, right - left, bottom - top, skip + 1, total,
        between - len(lines), across,
    )  # fmt: skip


def _by_id(nodes: Iterable[Any]) -> dict[str, Mapping[str, Any]]:
    return {str(node["id"]): node for node in nodes if isinstance(node, Mapping) and node.get("id")}


def _ends(edge: Mapping[str, Any]) -> tuple[str, str]:
    return str(edge.get("source")), str(edge.get("target"))


def _links(connections: Iterable[Connected]) -> set[tuple[str, ...]]:
    return {
        (str(link.source_id), str(link.target_id), link.source_handle or "",
         link.target_handle or "")
        for link in connections
    }  # fmt: skip


def _link(edge: Mapping[str, Any]) -> tuple[str, ...]:
    handles = (str(edge.get(name) or "") for name in ("sourceHandle", "targetHandle"))
    return (*_ends(edge), *handles)


def _is_elsewhere(node: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    here, there = (_position("", {"": one}) for one in (node, before))
    # Editors snap and round when they save.
    return (
        here is not None
        and there is not None
        and max(abs(here[0] - there[0]), abs(here[1] - there[1])) > NODE_HEIGHT // 4
    )


def _inner(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, Mapping) else {}


def _node(id_: str, node: Mapping[str, Any], place: tuple[int, int], tone: str) -> DrawnNode:
    data = _inner(node, "data")
    config = _inner(data, "config")
    kinds = (config.get("actionType"), config.get("triggerType"), data.get("type"))
    return DrawnNode(
        id=id_,
        label=_cut(str(data.get("label") or node.get("name") or id_)),
        kind=_cut(str(next(filter(None, kinds), None) or node.get("type") or "node")),
        x=place[0],
        y=place[1],
        tone=tone,
        sign=_SIGNS.get(tone, ""),
        word=_WORDS.get(tone, ""),
    )


def configuration(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a node was told to do: the part of it that its editor lets people fill in."""
    data = _inner(node, "data")
    parts = (_inner(data, "config"), _inner(data, "inputs"), _inner(node, "parameters"), data)
    return next(filter(None, parts), {})


def find_node(snapshot: Snapshot | None, id_: str) -> Mapping[str, Any] | None:
    """Return a node of a version; None if it has none of that id."""
    return _by_id(snapshot.nodes).get(id_) if snapshot else None


def _cut(text: str) -> str:
    return text if len(text) <= _LABEL else f"{text[:_LABEL]}…"


def _edge(nodes: Sequence[DrawnNode], one: int, other: int, tone: str, across: bool) -> DrawnEdge:
    # As route() in canvas.js: from side to side in a drawing that goes across, else from the bottom
    # of one to the top of the other; the other way where they overlap.
    source, target = nodes[one], nodes[other]
    beside = abs(target.x - source.x) >= NODE_WIDTH
    above = abs(target.y - source.y) >= NODE_HEIGHT
    if beside and (across or not above):
        right = target.x > source.x
        x1 = source.x + (NODE_WIDTH if right else 0)
        x2 = target.x + (0 if right else NODE_WIDTH)
        y1, y2 = source.y + NODE_HEIGHT // 2, target.y + NODE_HEIGHT // 2
        middle = (x1 + x2) // 2
        path = f"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}"
    else:
        down = target.y > source.y
        x1, x2 = source.x + NODE_WIDTH // 2, target.x + NODE_WIDTH // 2
        y1 = source.y + (NODE_HEIGHT if down else 0)
        y2 = target.y + (0 if down else NODE_HEIGHT)
        middle = (y1 + y2) // 2
        path = f"M{x1} {y1}C{x1} {middle} {x2} {middle} {x2} {y2}"
    return DrawnEdge(path, one, other, f"{source.label} → {target.label}", tone)


def _places(
    nodes: Mapping[str, Mapping[str, Any]], edges: Sequence[tuple[str, str]]
) -> dict[str, tuple[int, int]]:
    kept = {id_: _position(id_, nodes) for id_ in nodes}
    known = {id_: place for id_, place in kept.items() if place is not None}
    overlaps = _overlaps(known)
    if len(known) < len(nodes) or 4 * overlaps > len(nodes):
        # Missing or overlapping positions: fall back to a layered layout.
        rows: dict[int, list[str]] = {}
        for id_, row in _rows(list(nodes), edges).items():
            rows.setdefault(row, []).append(id_)
        return _grid([rows[row] for row in sorted(rows)], across=False)
    if not known or (not overlaps and _fits(known)):
        return known
    # The editor's nodes are larger than ours, so its layout would be mostly empty: what is kept is
    # which node is beside which.
    across = _goes_across(known, edges)
    return _grid(_lines(known, 0 if across else 1), across)


def _goes_across(places: Mapping[str, tuple[int, int]], edges: Sequence[tuple[str, str]]) -> bool:
    across = down = 0
    for one, other in edges:
        across += abs(places[one][0] - places[other][0])
        down += abs(places[one][1] - places[other][1])
    return across >= down


def _fits(places: Mapping[str, tuple[int, int]]) -> bool:
    xs, ys = ([place[axis] for place in places.values()] for axis in (0, 1))
    return max(xs) - min(xs) <= _WIDE and max(ys) - min(ys) <= _HIGH


def _lines(places: Mapping[str, tuple[int, int]], axis: int) -> list[list[str]]:
    """Columns (axis 0) or rows (axis 1) of nodes that the editor has side by side."""
    near = (NODE_WIDTH, NODE_HEIGHT)[axis] * 3 // 4
    lines: list[list[str]] = []
    begin = 0
    for id_ in sorted(places, key=lambda id_: places[id_][axis]):
        if not lines or places[id_][axis] - begin > near:
            lines.append([])
            begin = places[id_][axis]
        lines[-1].append(id_)
    return [sorted(line, key=lambda id_: places[id_][1 - axis]) for line in lines]


def _grid(lines: Sequence[Sequence[str]], across: bool) -> dict[str, tuple[int, int]]:
    longest = max(map(len, lines), default=0)
    step = (NODE_WIDTH + GAP_X, NODE_HEIGHT + GAP_Y)
    places = {}
    for number, line in enumerate(lines):
        # Shorter ones stand in the middle of the longest.
        for place, id_ in enumerate(line):
            along = (2 * place + longest - len(line)) / 2
            column, row = (number, along) if across else (along, number)
            places[id_] = (round(column * step[0]), round(row * step[1]))
    return places


def _position(id_: str, nodes: Mapping[str, Mapping[str, Any]]) -> tuple[int, int] | None:
    x = y = 0.0
    seen: set[str] = set()
    # Nodes in a group are placed relative to it.
    while id_ in nodes and id_ not in seen:
        seen.add(id_)
        node = nodes[id_]
        position = node.get("position")
        if isinstance(position, Mapping):
            position = [position.get("x"), position.get("y")]
        if not isinstance(position, list) or len(position) != 2:
            return None
        if not all(isinstance(value, int | float | Decimal) for value in position):
            return None
        try:
            x, y = x + float(position[0]), y + float(position[1])
        except OverflowError:
            return None
        id_ = str(node.get("parentNode") or node.get("parentId") or "")
    # Beyond this, browsers do not draw exactly.
    return (round(x), round(y)) if abs(x) <= 100_000 and abs(y) <= 100_000 else None


def _overlaps(places: Mapping[str, tuple[int, int]]) -> int:
    """How many nodes stand on another one."""
    return len(
        {
            pair
            for one, other in combinations(places.items(), 2)
            if abs(one[1][0] - other[1][0]) < NODE_WIDTH
            and abs(one[1][1] - other[1][1]) < NODE_HEIGHT
            for pair in (one[0], other[0])
        }
    )


def _rows(ids: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    rows = dict.fromkeys(ids, 0)
    # At most one pass per node, so cycles terminate.
    for _ in ids:
        moved = False
        for source, target in edges:
            if source in rows and target in rows and rows[target] <= rows[source] < len(ids) - 1:
                rows[target] = rows[source] + 1
                moved = True
        if not moved:
            break
    used = {row: place for place, row in enumerate(sorted(set(rows.values())))}
    return {id_: used[row] for id_, row in rows.items()}
