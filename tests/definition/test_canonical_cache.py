"""The texts kept for the next save: no wrong hash, whatever became of them, no needless work."""

import copy
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from pgaudit_wf.jobs.maintain import Step, maintain, plan
from pgaudit_wf.workflow.definition import content_hash
from support.factories import edge
from support.server import Conn

Node = dict[str, Any]


def node(key: str, url: object = "https://a") -> Node:
    return {
        "id": key,
        "type": "action",
        "position": {"x": 0, "y": 0},
        "data": {"label": key.upper(), "config": {"url": url, "retries": 3}},
    }


NODES = [node(key) for key in "abcdef"]
EDGES = [edge("a", "b"), edge("b", "c")]


@pytest.fixture
def db(dsn: str) -> Iterator[Conn]:
    """A database with the workflow table flow and the workflow w in it, at version 1."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "create table flow (id text primary key, name text, nodes jsonb, edges jsonb)"
        )
        connection.execute("select pgaudit_wf.attach_workflow('flow')")
        insert(connection, "w")
        yield connection


def insert(conn: Conn, key: str, nodes: object = NODES, edges: object = EDGES) -> None:
    conn.execute("insert into flow values (%s, 'W', %s, %s)", [key, Jsonb(nodes), Jsonb(edges)])


def save(conn: Conn, nodes: object, edges: object = EDGES, key: str = "w") -> None:
    conn.execute(
        "update flow set nodes = %s, edges = %s where id = %s", [Jsonb(nodes), Jsonb(edges), key]
    )


def edited(place: int, url: object, nodes: list[Node] = NODES) -> list[Node]:
    other = copy.deepcopy(nodes)
    other[place]["data"]["config"]["url"] = url
    return other


def newest(conn: Conn, key: str = "w") -> tuple[int, str]:
    row = conn.execute(
        "select version, content_hash from pgaudit_wf.workflow_history where workflow_id = %s"
        " order by version desc limit 1",
        [key],
    ).fetchone()
    assert row
    return row[0], row[1]


def written(conn: Conn) -> list[tuple[int, str]]:
    """Places of the cached nodes, and the transaction that wrote each."""
    return conn.execute(
        "select place, xmin::text from pgaudit_wf.canonical_cache_node order by place"
    ).fetchall()


def rewritten(conn: Conn, nodes: object, edges: object = EDGES) -> list[int]:
    """Save, and return the places of the nodes that were written for it."""
    before = set(written(conn))
    save(conn, nodes, edges)
    assert newest(conn)[1] == content_hash(nodes, edges)
    return [place for place, xmin in written(conn) if (place, xmin) not in before]


def test_only_what_changed_is_written(db: Conn) -> None:
    assert written(db) == []
    assert rewritten(db, edited(0, "https://b")) == [0, 1, 2, 3, 4, 5]
    assert rewritten(db, edited(2, "https://c")) == [0, 2]
    assert rewritten(db, edited(2, "https://c"), EDGES[:1]) == []
    longer = [*edited(2, "https://c"), node("g")]
    assert rewritten(db, longer) == [6]
    # What comes after a node that went moves up; nothing of it is worked out anew.
    assert rewritten(db, longer[1:]) == [0, 1, 2, 3, 4, 5]
    assert [place for place, _ in written(db)] == [0, 1, 2, 3, 4, 5]
    assert rewritten(db, []) == []
    assert written(db) == []
    assert newest(db)[0] == 7


def test_a_canvas_save_between_two_versions_leaves_the_texts_alone(db: Conn) -> None:
    save(db, edited(0, "https://b"))
    before = written(db)
    moved = copy.deepcopy(edited(0, "https://b"))
    for item in moved:
        item["position"] = {"x": 9, "y": 9}
    save(db, moved)
    assert written(db) == before
    assert rewritten(db, edited(1, "https://c", moved)) == [1]


@pytest.mark.parametrize(
    "loss",
    [
        "truncate pgaudit_wf.canonical_cache, pgaudit_wf.canonical_cache_node",
        "delete from pgaudit_wf.canonical_cache",
        "delete from pgaudit_wf.canonical_cache_node",
        "delete from pgaudit_wf.canonical_cache_node where place = 3",
        "delete from pgaudit_wf.canonical_cache_node where place = 5",
        "update pgaudit_wf.canonical_cache set version = version - 1",
    ],
)
def test_lost_texts_are_made_again(db: Conn, loss: str) -> None:
    save(db, edited(0, "https://b"))
    db.execute(loss.encode())
    assert rewritten(db, edited(1, "https://c")) == [0, 1, 2, 3, 4, 5]
    assert rewritten(db, edited(1, "https://d")) == [1]


def test_an_alias_that_came_in_between_counts_for_every_node(db: Conn) -> None:
    nodes = [node("a"), node("b")]
    for item in nodes:
        item["data"]["config"]["link"] = item["data"]["config"].pop("url")
    save(db, nodes)
    save(db, nodes, [])
    db.execute("insert into pgaudit_wf.config_alias values ('link', 'url')")
    save(db, [nodes[0], node("b", "https://c")], [])
    assert newest(db) == (4, content_hash([node("a"), node("b", "https://c")], []))


def test_what_was_changed_past_the_triggers_is_in_the_next_version(db: Conn) -> None:
    save(db, edited(0, "https://b"))
    db.execute("alter table flow disable trigger user")
    save(db, edited(4, "https://unseen"))
    db.execute("alter table flow enable trigger user")
    nodes = edited(1, "https://c", edited(4, "https://unseen"))
    save(db, nodes)
    assert newest(db) == (3, content_hash(nodes, EDGES))
    row = db.execute(
        "select after.change, pgaudit_wf.version_diff(before.snapshot, after.snapshot)"
        " from pgaudit_wf.workflow_history as after"
        " join pgaudit_wf.workflow_history as before using (workflow_id)"
        " where after.version = 3 and before.version = 2"
    ).fetchone()
    assert row
    assert row[0] == row[1]
    assert [changed["id"] for changed in row[0]["nodes_changed"]] == ["a", "b", "e"]


def test_a_save_that_is_rolled_back_leaves_the_texts_of_the_version_before(db: Conn) -> None:
    save(db, edited(0, "https://b"))
    before = written(db)
    with db.transaction(force_rollback=True):
        save(db, edited(1, "https://c"))
    assert written(db) == before
    assert rewritten(db, edited(2, "https://d", edited(0, "https://b"))) == [2]


def test_a_refused_definition_leaves_the_texts_of_the_version_before(db: Conn) -> None:
    save(db, edited(0, "https://b"))
    before = written(db)
    with pytest.raises(psycopg.Error) as caught:
        save(db, edited(1, 10**400))
    assert caught.value.sqlstate == "PA201"
    assert written(db) == before
    assert rewritten(db, edited(1, "https://c", edited(0, "https://b"))) == [1]


def test_an_application_cannot_read_or_write_the_texts(db: Conn) -> None:
    for role in ("pgaudit_wf_app", "pgaudit_wf_reader"):
        for table in ("canonical_cache", "canonical_cache_node"):
            row = db.execute(
                "select has_table_privilege(%s, 'pgaudit_wf.' || %s,"
                " 'select, insert, update, delete, truncate')",
                [role, table],
            ).fetchone()
            assert row == (False,)


def test_idle_workflows_lose_their_texts_and_only_those(db: Conn) -> None:
    insert(db, "idle")
    save(db, edited(0, "https://b"))
    save(db, edited(0, "https://b"), key="idle")
    assert not [step for step in plan(db) if step.kind == "prune_cache"]
    db.execute(
        "update pgaudit_wf.canonical_cache set written_at = now() - interval '31 days'"
        " where workflow_id = 'idle'"
    )
    expected = Step("prune_cache", "canonical_cache", 1)
    assert expected in plan(db)
    assert expected in maintain(db)
    for table in ("canonical_cache", "canonical_cache_node"):
        rows = db.execute(f"select distinct workflow_id from pgaudit_wf.{table}".encode())
        assert rows.fetchall() == [("w",)]
    save(db, edited(1, "https://c"), key="idle")
    assert newest(db, "idle") == (3, content_hash(edited(1, "https://c"), EDGES))


def test_maintenance_does_not_wait_for_a_save(db: Conn, dsn: str) -> None:
    save(db, edited(0, "https://b"))
    db.execute("update pgaudit_wf.canonical_cache set written_at = now() - interval '31 days'")
    with psycopg.connect(dsn) as other:
        save(other, edited(1, "https://c"))
        db.execute("set lock_timeout = '5s'")
        row = db.execute("select pgaudit_wf._prune_canonical_cache('30 days')").fetchone()
        assert row == (0,)
    assert rewritten(db, edited(2, "https://c")) == [1, 2]


def test_a_save_and_maintenance_at_the_same_time(db: Conn, dsn: str) -> None:
    save(db, edited(0, "https://b"))
    done = threading.Event()

    def prune() -> None:
        with psycopg.connect(dsn, autocommit=True) as other:
            while not done.is_set():
                other.execute("select pgaudit_wf._prune_canonical_cache('-1 day')")

    worker = threading.Thread(target=prune)
    worker.start()
    try:
        for number in range(60):
            nodes = edited(number % 6, f"https://{number}")[: 2 + number % 5]
            save(db, nodes)
            assert newest(db) == (number + 3, content_hash(nodes, EDGES))
    finally:
        done.set()
        worker.join()


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3)
KEYS = st.sampled_from([*"abcd", None, 7])
NODE = st.one_of(
    st.builds(
        lambda key, data, x: {"id": key, "type": "t", "data": data, "position": {"x": x}},
        KEYS,
        st.one_of(
            st.none(),
            st.dictionaries(st.sampled_from(["label", "é", "config", "args"]),
                            st.one_of(st.integers(-9, 9), st.just(1e23), TEXT)),
            st.builds(lambda config: {"config": config},
                      st.dictionaries(
                          st.sampled_from(["args", "functionArgs", "url", "\U0001f600"]),
                          st.integers(0, 2))),
        ),
        st.integers(0, 2),
    ),
    st.sampled_from([None, 1, "text", [], {}]),
)  # fmt: skip
GRAPH = st.lists(NODE, max_size=6)
CHANGE = st.sampled_from(["replace", "remove", "insert", "reverse", "rotate", "new"])


def changed(draw: st.DrawFn, nodes: list[Any]) -> list[Any]:
    other = copy.deepcopy(nodes)
    match draw(CHANGE):
        case "replace" if other:
            other[draw(st.integers(0, len(other) - 1))] = draw(NODE)
        case "remove" if other:
            del other[draw(st.integers(0, len(other) - 1))]
        case "insert":
            other.insert(draw(st.integers(0, len(other))), draw(NODE))
        case "reverse":
            other.reverse()
        case "rotate":
            other = other[1:] + other[:1]
        case _:
            other = draw(GRAPH)
    return other


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[list[Any], list[Any]]]:
    saves = [(draw(GRAPH), list(EDGES))]
    for _ in range(draw(st.integers(1, 5))):
        nodes, edges = saves[-1]
        if draw(st.booleans()):
            edges = draw(st.lists(st.sampled_from([*EDGES, edge("c", "a"), None]), max_size=3))
        saves.append((changed(draw, nodes), edges))
    return saves


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=histories())
def test_every_hash_is_that_of_the_definition_and_every_change_that_of_the_snapshots(
    db: Conn, history: list[tuple[list[Any], list[Any]]]
) -> None:
    with db.transaction(force_rollback=True):
        insert(db, "h", *history[0])
        for nodes, edges in history[1:]:
            save(db, nodes, edges, "h")
        rows = db.execute(
            "select h.content_hash, pgaudit_wf.hash_definition(h.snapshot -> 'nodes',"
            "   h.snapshot -> 'edges'), h.change,"
            "   pgaudit_wf.version_diff(lag(h.snapshot) over (order by h.version), h.snapshot),"
            "   h.previous_hash is not distinct from"
            "   lag(h.content_hash) over (order by h.version), h.content_hash <> h.previous_hash"
            " from pgaudit_wf.workflow_history as h where h.workflow_id = 'h' order by h.version"
        ).fetchall()
        for stored, hashed, change, diff, chained, different in rows:
            assert stored == hashed
            assert change == diff
            assert chained
            assert different is not False
        assert rows[-1][0] == content_hash(*history[-1])
