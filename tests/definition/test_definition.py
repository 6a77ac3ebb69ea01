"""Normalisation and the content hash: SQL against the Python reference and against plain rules."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from pgaudit_wf.errors import DefinitionError
from pgaudit_wf.workflow import definition

HISTORIES = sorted(
    (Path(__file__).parents[3] / "shared" / "data" / "workflow-histories").glob("*.jsonl")
)
SHARED = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

Call = Callable[..., Any]

NODE = {
    "id": "n1",
    "type": "action",
    "data": {"label": "Read", "config": {"actionType": "web3/read-contract"}},
    "position": {"x": 1, "y": 2},
}
EDGE = {"id": "e1", "source": "n1", "target": "n2", "style": {"stroke": "red"}}


@pytest.fixture
def call(conn: psycopg.Connection) -> Call:
    def run(function: str, *documents: object) -> object:
        slots = ", ".join(["%s"] * len(documents))
        row = conn.execute(
            f"select pgaudit_wf.{function}({slots})",
            [None if document is None else Jsonb(document) for document in documents],
        ).fetchone()
        assert row is not None
        return row[0]

    return run


def test_canvas_is_dropped_and_the_rest_kept_in_order(call: Call) -> None:
    nodes = [
        {**NODE, "selected": True, "width": 5, "dragging": False, "positionAbsolute": {"x": 1}},
        {"id": "a", "data": {"position": 1}, "zIndex": 3},
    ]
    edges = [
        {**EDGE, "sourceHandle": None, "type": "smooth", "animated": True},
        {**EDGE, "data": {"condition": "yes"}, "targetHandle": "in", "label": "red"},
    ]
    expected = {
        "nodes": [
            {"id": "n1", "type": "action", "data": NODE["data"]},
            {"id": "a", "data": {"position": 1}},
        ],
        "edges": [
            {"id": "e1", "source": "n1", "target": "n2", "sourceHandle": None},
            {"id": "e1", "source": "n1", "target": "n2", "targetHandle": "in",
             "data": {"condition": "yes"}},
        ],
    }  # fmt: skip
    assert call("normalize_definition", nodes, edges) == expected
    assert definition.normalize_definition(nodes, edges) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"args": "[1]"}, {"functionArgs": "[1]"}),
        ({"args": "[1]", "functionArgs": "[2]"}, {"functionArgs": "[2]"}),
        ({"args": "[1]", "functionArgs": None}, {"functionArgs": None}),
        ({"abiFunctionKey": "f(uint256)", "abiFunction": "f"}, {"abiFunction": "f"}),
        ({"abiFunctionKey": "f"}, {}),
    ],
)
def test_legacy_keys_of_the_configuration(
    call: Call, config: dict[str, Any], expected: dict[str, Any]
) -> None:
    def graph(config: object) -> list[dict[str, Any]]:
        return [{"id": "n", "type": "action", "data": {"config": config, "args": 1}}]

    normalized = {"edges": [], "nodes": graph(expected)}
    assert call("normalize_definition", graph(config), []) == normalized
    assert definition.normalize_definition(graph(config), []) == normalized
    assert call("hash_definition", graph(config), []) == call(
        "hash_definition", graph(expected), []
    )
    assert call("same_definition", graph(config), [], graph(expected), [])


def test_an_alias_is_a_row(conn: psycopg.Connection, call: Call) -> None:
    conn.execute("insert into pgaudit_wf.config_alias values ('a_url', 'url'), ('b_url', 'url')")
    nodes = [{"id": "n", "data": {"config": {"b_url": "B", "a_url": "A", "args": 1}}}]
    expected = [{"id": "n", "data": {"config": {"url": "A", "functionArgs": 1}}}]
    assert call("normalize_definition", nodes, None) == {"edges": [], "nodes": expected}
    aliases = {**definition.DEFAULT_ALIASES, "b_url": "url", "a_url": "url"}
    assert definition.content_hash(nodes, None, aliases) == call("hash_definition", nodes, None)


def test_shipped_aliases_are_the_reference_aliases(conn: psycopg.Connection) -> None:
    rows = conn.execute("select alias, canonical_name from pgaudit_wf.config_alias").fetchall()
    assert dict(rows) == dict(definition.DEFAULT_ALIASES)


def test_the_hash_is_sha256_of_the_canonical_text(call: Call) -> None:
    kept: dict[str, Any] = {
        "edges": [{"id": "e1", "source": "n1", "target": "n2"}],
        "nodes": [{"id": "n1", "type": "action", "data": NODE["data"]}],
    }
    assert (
        call("hash_definition", [NODE], [EDGE]) == hashlib.sha256(rfc8785.dumps(kept)).hexdigest()
    )


def test_known_hash_of_the_empty_workflow(call: Call) -> None:
    # printf '{"edges":[],"nodes":[]}' | sha256sum
    known = "57501e5c6808b3e14852a4ea21dc7873abf9409032a06f9b740c973e83f62cf7"
    assert call("hash_definition", [], []) == known
    assert call("hash_definition", None, None) == known
    assert definition.content_hash(None, None) == known


def test_order_null_and_data_are_part_of_the_definition(call: Call) -> None:
    second = {**NODE, "id": "n2"}
    base = call("hash_definition", [NODE, second], [EDGE])
    assert call("hash_definition", [second, NODE], [EDGE]) != base
    assert call("hash_definition", [NODE, second], [{**EDGE, "sourceHandle": None}]) != base
    assert call("hash_definition", [NODE, second], [{**EDGE, "data": {}}]) != base


@pytest.mark.parametrize("value", [{}, "[]", 3, True])
def test_what_is_no_array_is_refused(call: Call, value: object) -> None:
    for function in ("hash_definition", "normalize_definition"):
        for column, arguments in (("nodes", (value, [])), ("edges", ([], value))):
            with pytest.raises(
                psycopg.Error, match=f"{column} is a JSON .*, not an array"
            ) as error:
                call(function, *arguments)
            assert error.value.sqlstate == "PA203"
            with pytest.raises(DefinitionError, match=f"{column} is not an array"):
                definition.normalize_definition(*arguments)


MALFORMED = [
    [None],
    [1, "x", True, [1, {"id": 2}]],
    [{}],
    [{"data": None}, {"id": None, "type": None}],
    [{"id": 7, "data": {"config": None}}, {"id": {"a": 1}, "data": []}],
    [{"id": "d", "data": {"config": "text"}}, {"id": "d", "data": {"config": ["args"]}}],
    [{"id": "d", "data": "args"}, {"id": "d", "data": {"config": {"args": {"b": [], "a": 1.50}}}}],
]


@pytest.mark.parametrize("elements", MALFORMED)
def test_malformed_elements_are_kept(call: Call, elements: list[Any]) -> None:
    for nodes, edges in ((elements, elements), (elements, []), ([NODE], elements)):
        kept = definition.normalize_definition(nodes, edges)
        assert len(kept["nodes"]) == len(nodes)
        assert call("normalize_definition", nodes, edges) == kept
        assert call("hash_definition", nodes, edges) == definition.content_hash(nodes, edges)
        assert call("same_definition", nodes, edges, nodes, edges)
        assert not call("same_definition", nodes, edges, [*nodes, None], edges)


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
configs = st.dictionaries(
    st.sampled_from(["args", "functionArgs", "abiFunctionKey", "actionType", "é", "\U0001f600"])
    | texts,
    values,
    max_size=4,
)
datas = values | st.fixed_dictionaries({}, optional={"config": configs | values, "label": texts})
nodes_strategy = st.lists(
    values
    | st.fixed_dictionaries(
        {},
        optional={
            "id": texts,
            "type": values,
            "data": datas,
            "position": values,
            "parentNode": texts,
        },
    ),
    max_size=4,
)
edges_strategy = st.lists(
    values
    | st.fixed_dictionaries(
        {},
        optional={
            "id": texts, "source": texts, "target": texts, "sourceHandle": st.none() | texts,
            "targetHandle": st.none() | texts, "data": values, "style": values,
        },
    ),
    max_size=4,
)  # fmt: skip


@SHARED
@given(nodes=nodes_strategy, edges=edges_strategy)
def test_one_go_and_step_by_step_agree_with_the_reference(
    conn: psycopg.Connection, nodes: list[Any], edges: list[Any]
) -> None:
    row = conn.execute(
        "select pgaudit_wf._canonical_definition(n, e), "
        "pgaudit_wf._canonical_json(pgaudit_wf.normalize_definition(n, e)), "
        "pgaudit_wf.hash_definition(n, e) from (values (%s::jsonb, %s::jsonb)) as given (n, e)",
        [Jsonb(nodes), Jsonb(edges)],
    ).fetchone()
    kept = definition.normalize_definition(nodes, edges)
    expected = rfc8785.dumps(json.loads(json.dumps(kept), parse_int=float)).decode()
    assert row == (expected, expected, hashlib.sha256(expected.encode()).hexdigest())


@SHARED
@given(data=st.data())
def test_same_definition_is_equality_of_normalized_definitions(
    call: Call, data: st.DataObject
) -> None:
    nodes = data.draw(nodes_strategy)
    edges = data.draw(edges_strategy)
    other_nodes = copy.deepcopy(nodes) if data.draw(st.booleans()) else data.draw(nodes_strategy)
    other_edges = copy.deepcopy(edges) if data.draw(st.booleans()) else data.draw(edges_strategy)
    for node in other_nodes:
        if isinstance(node, dict) and data.draw(st.booleans()):
            node["position"] = data.draw(values)
    assert call("same_definition", nodes, edges, other_nodes, other_edges) == (
        call("normalize_definition", nodes, edges)
        == call("normalize_definition", other_nodes, other_edges)
    )


@pytest.mark.skipif(not HISTORIES, reason="../shared/data/workflow-histories is not there")
@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_real_histories(call: Call, path: Path) -> None:
    saves = [json.loads(line) for line in path.read_text().splitlines()]
    hashes = []
    for save in saves:
        kept = {
            "edges": [
                {key: edge[key] for key in
                 ("id", "source", "target", "sourceHandle", "targetHandle", "data") if key in edge}
                for edge in save["edges"]
            ],
            "nodes": [
                {key: node[key] for key in ("id", "type", "data")} for node in save["nodes"]
            ],
        }  # fmt: skip
        hashes.append(hashlib.sha256(rfc8785.dumps(kept)).hexdigest())
        assert call("hash_definition", save["nodes"], save["edges"]) == hashes[-1]
        assert definition.content_hash(save["nodes"], save["edges"]) == hashes[-1]
    for number in range(1, len(saves)):
        old, new = saves[number - 1], saves[number]
        same = call("same_definition", old["nodes"], old["edges"], new["nodes"], new["edges"])
        assert same == (hashes[number - 1] == hashes[number])


def test_a_drag_a_selection_a_resize_and_a_colour_are_no_change(call: Call) -> None:
    moved = {**NODE, "position": {"x": 9, "y": 9}, "selected": True, "width": 3, "style": {}}
    painted = {**EDGE, "style": {"stroke": "blue"}, "animated": True, "markerEnd": {}}
    assert call("same_definition", [NODE], [EDGE], [moved], [painted])
    assert call("hash_definition", [NODE], [EDGE]) == call("hash_definition", [moved], [painted])


@pytest.mark.parametrize("count", [5000])
def test_very_many_nodes(conn: psycopg.Connection, call: Call, count: int) -> None:
    conn.execute("set statement_timeout = '20s'")
    nodes = [{**NODE, "id": f"n{i}"} for i in range(count)]
    edges = [{**EDGE, "id": f"e{i}", "source": f"n{i}"} for i in range(count)]
    assert call("hash_definition", nodes, edges) == definition.content_hash(nodes, edges)
    assert call("same_definition", nodes, edges, nodes[:-1], edges) is False


def test_ten_mebibytes(conn: psycopg.Connection, call: Call) -> None:
    conn.execute("set statement_timeout = '20s'")
    nodes = [{"id": "n", "data": {"config": {"code": "é" * (5 * 2**20)}}}]
    assert call("hash_definition", nodes, []) == definition.content_hash(nodes, [])


def test_deep_nesting_is_refused_clearly(call: Call) -> None:
    deep: Any = 1
    for _ in range(definition.MAX_DEPTH):
        deep = [deep]
    for nodes in ([{"id": "n", "data": {"config": {"a": deep}}}], [deep], [{"data": {"a": deep}}]):
        with pytest.raises(psycopg.Error) as caught:
            call("hash_definition", nodes, [])
        assert caught.value.sqlstate == "PA202"
        with pytest.raises(DefinitionError, match="nested"):
            definition.content_hash(nodes, [])


@pytest.mark.parametrize("depth", [193, 194, 195, 196, 197])
def test_database_and_python_refuse_the_same_depth(conn: psycopg.Connection, depth: int) -> None:
    deep: Any = 1
    for _ in range(depth):
        deep = {"x": deep}
    for nodes in ([{"data": {"config": {"a": deep}}}], [{"data": {"a": deep}}], [{"data": deep}]):
        outcomes: set[object] = set()
        for way in (
            "_canonical_definition(%s, null)",
            "_canonical_json(pgaudit_wf.normalize_definition(%s, null))",
        ):
            try:
                outcomes.add(conn.execute(f"select pgaudit_wf.{way}", [Jsonb(nodes)]).fetchone())
            except psycopg.Error as error:
                outcomes.add(error.sqlstate)
        try:
            outcomes.add((definition.canonical_json({"edges": [], "nodes": nodes}),))
        except DefinitionError:
            outcomes.add("PA202")
        assert len(outcomes) == 1
