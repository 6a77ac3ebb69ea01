"""A version of a workflow as a drawing: nodes where the editor had them, and what changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pgaudit_wf.workflow.model import Snapshot, VersionDiff

NODE_WIDTH = 210
NODE_HEIGHT = 60
# Drawn at a time.
NODES = 200
EDGES = 500
_LABEL = 80
_MARGIN = 24
_GAP_X = 50
_GAP_Y = 70
_SIGNS = {"add": "+", "change": "✎", "remove": "\N{MINUS SIGN}"}
_WORDS = {"add": "added", "change": "changed", "remove": "removed"}


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
    """A connection as the `d` of an SVG path."""

    path: str
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
    node_width: int = NODE_WIDTH
    node_height: int = NODE_HEIGHT


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
    tones = {node.id: "add" for node in change.nodes_added}
    tones |= {node.id: "change" for node in change.nodes_changed}
    removed = {node.id for node in change.nodes_removed}
    gone = {id_: node for id_, node in _by_id(before.nodes if before else ()).items()
            if id_ in removed and id_ not in present}  # fmt: skip
    edges = [(edge, "") for edge in now.edges if isinstance(edge, Mapping)]
    added = {(link.source_id, link.target_id) for link in change.connections_added}
    lost = {(link.source_id, link.target_id) for link in change.connections_removed}
    edges = [(edge, "add" if _ends(edge) in added else "") for edge, _ in edges]
    kept = {_ends(edge) for edge, _ in edges}
    if before is not None:
        edges += [
            (edge, "remove")
            for edge in before.edges
            if isinstance(edge, Mapping) and _ends(edge) in lost - kept
        ]
    every = {**present, **gone}
    total = len(every)
    skip = skip if skip < total else 0
    if total > NODES:
        first = sorted(every, key=lambda id_: id_ not in tones and id_ not in gone)
        every = {id_: every[id_] for id_ in first[skip : skip + NODES]}
    ends = [(*_ends(edge), tone) for edge, tone in edges]
    ends = [end for end in ends if end[0] in every and end[1] in every]
    between = len(ends)
    # Changed ones first; the others stay in their order.
    ends = sorted(ends, key=lambda end: not end[2])[:EDGES] if between > EDGES else ends
    places = _places(every, [(source, target) for source, target, _ in ends])
    nodes = tuple(
        _node(id_, node, places[id_], "remove" if id_ in gone else tones.get(id_, ""))
        for id_, node in every.items()
    )
    drawn = {node.id: node for node in nodes}
    lines = tuple(_edge(drawn[source], drawn[target], tone) for source, target, tone in ends)
    left = min((node.x for node in nodes), default=0) - _MARGIN
    top = min((node.y for node in nodes), default=0) - _MARGIN
    right = max((node.x for node in nodes), default=0) + NODE_WIDTH + _MARGIN
    bottom = max((node.y for node in nodes), default=0) + NODE_HEIGHT + _MARGIN
    return Canvas(
        nodes, lines, left, top, right - left, bottom - top, skip + 1, total, between - len(lines)
    )


def _by_id(nodes: Iterable[Any]) -> dict[str, Mapping[str, Any]]:
    return {str(node["id"]): node for node in nodes if isinstance(node, Mapping) and node.get("id")}


def _ends(edge: Mapping[str, Any]) -> tuple[str, str]:
    return str(edge.get("source")), str(edge.get("target"))


def _node(id_: str, node: Mapping[str, Any], place: tuple[int, int], tone: str) -> DrawnNode:
    data = node.get("data")
    data = data if isinstance(data, Mapping) else {}
    config = data.get("config")
    config = config if isinstance(config, Mapping) else {}
    kind = config.get("actionType") or config.get("triggerType") or node.get("type") or "node"
    return DrawnNode(
        id=id_,
        label=_cut(str(data.get("label") or id_)),
        kind=_cut(str(kind)),
        x=place[0],
        y=place[1],
        tone=tone,
        sign=_SIGNS.get(tone, ""),
        word=_WORDS.get(tone, ""),
    )


def _cut(text: str) -> str:
    return text if len(text) <= _LABEL else f"{text[:_LABEL]}…"


def _edge(source: DrawnNode, target: DrawnNode, tone: str) -> DrawnEdge:
    # From the bottom of one to the top of the other, or from side to side within a row.
    if target.y >= source.y + NODE_HEIGHT or target.y + NODE_HEIGHT <= source.y:
        down = target.y > source.y
        x1, x2 = source.x + NODE_WIDTH // 2, target.x + NODE_WIDTH // 2
        y1 = source.y + (NODE_HEIGHT if down else 0)
        y2 = target.y + (0 if down else NODE_HEIGHT)
        middle = (y1 + y2) // 2
        path = f"M{x1} {y1}C{x1} {middle} {x2} {middle} {x2} {y2}"
    else:
        right = target.x > source.x
        x1 = source.x + (NODE_WIDTH if right else 0)
        x2 = target.x + (0 if right else NODE_WIDTH)
        y1, y2 = source.y + NODE_HEIGHT // 2, target.y + NODE_HEIGHT // 2
        middle = (x1 + x2) // 2
        path = f"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}"
    return DrawnEdge(path, f"{source.label} → {target.label}", tone)


def _places(
    nodes: Mapping[str, Mapping[str, Any]], edges: Sequence[tuple[str, str]]
) -> dict[str, tuple[int, int]]:
    kept = {id_: _position(node) for id_, node in nodes.items()}
    known = {id_: place for id_, place in kept.items() if place is not None}
    if len(known) == len(nodes) and not _overlap(known.values()):
        return known
    # Missing or overlapping positions: fall back to a layered layout.
    rows: dict[int, list[str]] = {}
    for id_, row in _rows(list(nodes), edges).items():
        rows.setdefault(row, []).append(id_)
    return {
        id_: (column * (NODE_WIDTH + _GAP_X), row * (NODE_HEIGHT + _GAP_Y))
        for row, ids in rows.items()
        for column, id_ in enumerate(ids)
    }


def _position(node: Mapping[str, Any]) -> tuple[int, int] | None:
    position = node.get("position")
    if not isinstance(position, Mapping):
        return None
    x, y = position.get("x"), position.get("y")
    if not isinstance(x, int | float) or not isinstance(y, int | float):
        return None
    # Beyond this, browsers do not draw exactly.
    if abs(x) > 100_000 or abs(y) > 100_000:
        return None
    return round(x), round(y)


def _overlap(places: Iterable[tuple[int, int]]) -> bool:
    ordered = sorted(places)
    return any(
        abs(one[0] - other[0]) < NODE_WIDTH // 2 and abs(one[1] - other[1]) < NODE_HEIGHT // 2
        for one, other in pairwise(ordered)
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
