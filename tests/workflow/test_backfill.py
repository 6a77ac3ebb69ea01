"""Workflows that were there before: a first version for each, once, whatever happens meanwhile."""

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgaudit_wf.workflow.definition import content_hash
from support.server import Conn

COUNT = 25


def graph(number: int) -> list[dict[str, Any]]:
    return [{"id": "a", "type": "action", "data": {"label": f"Step {number}"}}]


@pytest.fixture
def db(db_dsn: str) -> Iterator[Conn]:
    """A table with workflows that is attached only then."""
    with psycopg.connect(db_dsn, autocommit=True) as conn:
        conn.execute(
            "create table flow "
            "(id int primary key, org_id text, name text, nodes jsonb, edges jsonb)"
        )
        for number in range(1, COUNT + 1):
            conn.execute(
                "insert into flow values (%s, 'o_1', 'W', %s, '[]')", [number, Jsonb(graph(number))]
            )
        conn.execute("select pgaudit_wf.attach_workflow('flow')")
        yield conn


def batch(conn: Conn, after: str | None = None, size: int = 10) -> tuple[int, int, str | None]:
    row = conn.execute(
        "select examined, written, last_id from pgaudit_wf.backfill_workflows('flow', %s, %s)",
        [after, size],
    ).fetchone()
    assert row is not None
    return row  # type: ignore[no-any-return]


def backfill(conn: Conn, size: int = 10) -> list[tuple[int, int]]:
    counts: list[tuple[int, int]] = []
    after = None
    while True:
        examined, written, after = batch(conn, after, size)
        if not examined:
            return counts
        counts.append((examined, written))


def history(conn: Conn) -> list[Any]:
    return conn.execute(
        "select workflow_id::int, version, source, content_hash, actor_id "
        "from pgaudit_wf.workflow_history order by workflow_id::int, version"
    ).fetchall()


FIRST = [
    (number, 1, "backfill", content_hash(graph(number), []), None) for number in range(1, COUNT + 1)
]


def test_batches_in_the_order_of_ids_and_once_only(db: Conn) -> None:
    assert backfill(db) == [(10, 10), (10, 10), (5, 5)]
    assert history(db) == FIRST
    events = db.execute(
        "select resource_id::int, action, metadata, diff -> 0 -> 'value' ->> 'content_hash' "
        "from pgaudit_wf.security_audit_log where action = 'flow.created' order by id"
    ).fetchall()
    assert events == [
        (number, "flow.created", {"backfilled": True, "version": 1, "label": "W"}, digest)
        for number, _, _, digest, _ in FIRST
    ]
    assert backfill(db) == [(10, 0), (10, 0), (5, 0)]
    assert history(db) == FIRST


def test_versions_that_the_application_saved_first_are_kept(db: Conn) -> None:
    db.execute("update flow set nodes = '[]' where id = 3")
    db.execute("insert into flow values (26, 'o_1', 'New', '[]', '[]')")
    db.execute("delete from flow where id = 4")
    assert sum(written for _, written in backfill(db)) == COUNT - 2
    sources = [(row[0], row[1], row[2]) for row in history(db)]
    assert sources == [
        (number, 1, "backfill") if number != 26 else (26, 1, "create")
        for number in [*range(1, 4)]
    ] + [(3, 2, "update")] + [(number, 1, "backfill") for number in range(5, 26)] + [
        (26, 1, "create")
    ]  # fmt: skip


def test_an_interrupted_batch_leaves_nothing_and_is_done_again(db: Conn, db_dsn: str) -> None:
    batch(db)
    with psycopg.connect(db_dsn) as interrupted:
        assert batch(interrupted, "10") == (10, 10, "20")
        pid = interrupted.info.backend_pid
        db.execute("select pg_terminate_backend(%s, 5000)", [pid])
        with pytest.raises(psycopg.OperationalError):
            interrupted.execute("select 1")
    assert history(db) == FIRST[:10]
    assert backfill(db) == [(10, 0), (10, 10), (5, 5)]
    assert history(db) == FIRST


def test_two_at_once_write_each_version_once(db: Conn, db_dsn: str) -> None:
    counts: list[int] = []
    start = threading.Barrier(4)

    def work() -> None:
        with psycopg.connect(db_dsn, autocommit=True) as conn:
            start.wait()
            counts.append(sum(written for _, written in backfill(conn, 3)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == 4
    assert sum(counts) == COUNT
    assert history(db) == FIRST


def test_an_application_that_saves_meanwhile_is_neither_lost_nor_doubled(
    db: Conn, db_dsn: str
) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(3)

    def application(seed: int) -> None:
        try:
            with psycopg.connect(db_dsn, autocommit=True) as conn:
                start.wait()
                for number in range(1, COUNT + 1):
                    conn.execute(
                        "update flow set nodes = %s where id = %s",
                        [Jsonb(graph(1000 * seed + number)), number],
                    )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=application, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    start.wait()
    backfill(db, 2)
    for thread in threads:
        thread.join()
    assert failures == []
    kept = history(db)
    for number in range(1, COUNT + 1):
        mine = [row for row in kept if row[0] == number]
        assert [(row[1], row[2]) for row in mine] == [
            (1, "backfill"), (2, "update"), (3, "update"),
        ]  # fmt: skip
        assert {row[3] for row in mine} == {
            content_hash(graph(seed * 1000 + number), []) for seed in (0, 1, 2)
        }


def test_a_save_in_flight_is_waited_for(db: Conn, db_dsn: str) -> None:
    with psycopg.connect(db_dsn) as saving:
        saving.execute("update flow set nodes = '[]' where id = 1")
        done: list[Any] = []
        thread = threading.Thread(target=lambda: done.append(batch(db, None, 1)))
        thread.start()
        with psycopg.connect(db_dsn, autocommit=True) as watch:
            for _ in range(2000):
                if watch.execute(
                    "select exists (select from pg_stat_activity "
                    "where datname = current_database() and wait_event_type = 'Lock')"
                ).fetchone() == (True,):
                    break
            else:
                pytest.fail("the backfill does not wait")
        saving.commit()
        thread.join()
    assert done == [(1, 0, "1")]
    assert [(row[1], row[2]) for row in history(db)] == [(1, "backfill"), (2, "update")]


def test_malformed_ones_are_named_and_hold_up_nobody(db: Conn) -> None:
    db.execute('alter table flow disable trigger "!pgaudit_wf_update"')
    db.execute("update flow set nodes = '{}' where id = 2")
    db.execute('alter table flow enable always trigger "!pgaudit_wf_update"')
    assert db.execute(
        "select examined, written, refused from pgaudit_wf.backfill_workflows('flow', null, 3)"
    ).fetchone() == (
        3, 2, [{"workflow_id": "2", "message": "nodes is a JSON object, not an array"}],
    )  # fmt: skip
    assert [row[0] for row in history(db)] == [1, 3]


def test_composite_and_text_keys(db: Conn) -> None:
    db.execute("create table pair (a text, b int, nodes jsonb, edges jsonb, primary key (b, a))")
    db.execute(
        "insert into pair select chr(97 + n % 3) || 'Z', n, '[]', '[]' from generate_series(1, 9) n"
    )
    db.execute("select pgaudit_wf.attach_workflow('pair')")
    after, total = None, 0
    while True:
        row = db.execute(
            "select examined, written, last_id "
            "from pgaudit_wf.backfill_workflows('pair', %s, 2)",
            [after],
        ).fetchone()  # fmt: skip
        assert row is not None
        if not row[0]:
            break
        after, total = row[2], total + row[1]
    assert total == 9
    assert db.execute(
        "select count(*) from pgaudit_wf.workflow_history where workflow_id like 'pair/[%'"
    ).fetchone() == (9,)


@pytest.mark.parametrize(
    ("call", "sqlstate"),
    [("'pg_class'", "PA005"), ("'flow', null, 0", "PA008"), ("'flow', null, null", "PA008")],
)
def test_backfill_refuses_bad_arguments(db: Conn, call: str, sqlstate: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        db.execute(f"select pgaudit_wf.backfill_workflows({call})".encode())
    assert caught.value.sqlstate == sqlstate
