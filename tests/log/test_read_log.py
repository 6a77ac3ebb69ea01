"""A reader that keeps its cursor sees every event once, whatever happens around it."""

import random
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgaudit_wf.dev.server import DevServer
from support.server import Conn

WRITERS, TRANSACTIONS = 4, 40


def read(conn: Conn, cursor: str | None, batch: int = 1000) -> tuple[str | None, list[int]]:
    """Read all there is after a cursor, in batches; return the cursor and the ids of events."""
    ids: list[int] = []
    while rows := conn.execute(
        "select cursor, (event).id from pgaudit_wf.read_log(%s, %s)", [cursor, batch]
    ).fetchall():
        assert len(rows) <= batch
        ids += [event_id for _, event_id in rows]
        cursor = rows[-1][0]
        # As a reader does that means to keep its cursor.
        conn.execute("select pgaudit_wf._note_generation()")
    return cursor, ids


def all_ids(conn: Conn) -> list[int]:
    return [i for (i,) in conn.execute("select id from pgaudit_wf.security_audit_log order by id")]


def fill(conn: Conn, events: int) -> None:
    """Write events of transactions of a hundred each."""
    for _ in range(events // 100):
        conn.execute(
            "insert into pgaudit_wf.security_audit_log (action) "
            "select 'x' from generate_series(1, 100)"
        )


def test_nothing_is_skipped_or_repeated_among_concurrent_writers(conn: Conn, dsn: str) -> None:
    conn.execute("create table thing (id bigint generated always as identity primary key)")
    conn.execute("select pgaudit_wf.attach('thing')")
    done = threading.Event()

    def write(number: int) -> None:
        chance = random.Random(number)
        with psycopg.connect(dsn) as own:
            for _ in range(TRANSACTIONS):
                for _ in range(chance.randint(1, 3)):
                    own.execute("insert into thing default values")
                    # Ids are given before commit; what commits in another order is the point.
                    time.sleep(chance.random() * 0.004)
                (own.rollback if chance.random() < 0.3 else own.commit)()

    def follow(batch: int) -> list[int]:
        seen: list[int] = []
        cursor: str | None = None
        with psycopg.connect(dsn, autocommit=True) as own:
            while True:
                finished = done.is_set()
                cursor, ids = read(own, cursor, batch)
                seen += ids
                if finished:
                    return seen

    with ThreadPoolExecutor(WRITERS + 2) as pool:
        readers = [pool.submit(follow, batch) for batch in (1, 1000)]
        try:
            list(pool.map(write, range(WRITERS)))
        finally:
            done.set()
        for reader in readers:
            seen = reader.result(120)
            assert len(seen) == len(set(seen))
            assert sorted(seen) == all_ids(conn)
    assert len(all_ids(conn)) > WRITERS * TRANSACTIONS / 2


def test_an_open_transaction_holds_back_what_began_after_it(conn: Conn, dsn: str) -> None:
    with psycopg.connect(dsn) as slow:
        slow.execute("select pgaudit_wf.record_event('slow')")
        conn.execute("select pgaudit_wf.record_event('fast')")
        assert read(conn, None) == (None, [])
        slow.commit()
    cursor, _ = read(conn, None)
    assert conn.execute("select (event).action from pgaudit_wf.read_log()").fetchall() == [
        ("slow",),
        ("fast",),
    ]
    assert read(conn, cursor) == (cursor, [])


def test_a_transaction_sees_its_own_events_only_when_it_is_over(conn: Conn) -> None:
    with conn.transaction():
        conn.execute("select pgaudit_wf.record_event('x')")
        assert read(conn, None) == (None, [])
    assert len(read(conn, None)[1]) == 1


@pytest.mark.parametrize("cursor", ["", "1", "x/y/z/w", "1/1/1/1", "1/2/3/4/5", "-1/1/1/1",
                                    "99999999999999999999999/1/1/1"])  # fmt: skip
def test_a_cursor_of_another_log_is_refused(conn: Conn, cursor: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute("select from pgaudit_wf.read_log(%s)", [cursor])
    assert caught.value.sqlstate == "PA007"
    assert f'the cursor "{cursor}" does not belong to this log' in str(
        caught.value.diag.message_primary
    )


@pytest.mark.parametrize("batch", [0, -1, None])
def test_a_batch_has_at_least_one_event(conn: Conn, batch: int | None) -> None:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute("select from pgaudit_wf.read_log(null, %s)", [batch])
    assert caught.value.sqlstate == "PA008"


def test_one_giant_transaction_is_read_in_batches(conn: Conn) -> None:
    conn.execute("create table thing (id int primary key)")
    conn.execute("select pgaudit_wf.attach('thing')")
    conn.execute("insert into thing select generate_series(1, 100000)")
    cursor, ids = read(conn, None, 7000)
    assert ids == sorted(ids)
    # With that of attaching.
    assert len(ids) == 100_001
    assert read(conn, cursor) == (cursor, [])


@pytest.mark.slow
def test_a_reader_far_behind_catches_up_in_linear_time(conn: Conn) -> None:
    def seconds_to_catch_up() -> float:
        best = float("inf")
        for _ in range(2):
            start = time.perf_counter()
            read(conn, None, 5000)
            best = min(best, time.perf_counter() - start)
        return best

    fill(conn, 50_000)
    conn.execute("analyze pgaudit_wf.security_audit_log")
    small = seconds_to_catch_up()
    fill(conn, 150_000)
    large = seconds_to_catch_up()
    assert len(all_ids(conn)) == 200_000
    # Four times the events; quadratic work would take sixteen times as long.
    assert large < 8 * small, (small, large)


def test_each_batch_reads_only_its_own_part_of_the_index(conn: Conn) -> None:
    fill(conn, 20_000)
    conn.execute("vacuum analyze pgaudit_wf.security_audit_log")
    [(middle,)] = conn.execute(
        "select cursor from pgaudit_wf.read_log(null, 10000) offset 9999"
    ).fetchall()
    costs = []
    for cursor in (None, middle):
        [(plan,)] = conn.execute(
            "explain (analyze, buffers, format json) select from pgaudit_wf.read_log(%s, 100)",
            [cursor],
        ).fetchall()
        costs.append(plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"])
    assert max(costs) < 400, costs


def use_up_transaction_ids(conn: Conn) -> None:
    """Leave the cluster with ids well above those at which a young one starts to write."""
    conn.execute(
        "do $$ begin for i in 1 .. 20000 loop perform pg_current_xact_id(); commit; end "
        "loop; end $$"
    )


@pytest.fixture
def clusters(server: DevServer) -> Iterator[list[DevServer]]:
    """Two more clusters, whose transaction ids begin anew."""
    with DevServer(server.binaries) as one, DevServer(server.binaries) as two:
        yield [one, two]


def move(source: DevServer, source_dsn: str, target: DevServer) -> str:
    """Dump a database and restore it in another cluster; return its address there."""
    name = str(conninfo_to_dict(source_dsn)["dbname"])
    with psycopg.connect(target.dsn(), autocommit=True) as admin:
        for role in ("pgaudit_wf_owner", "pgaudit_wf_app", "pgaudit_wf_reader"):
            admin.execute(f"create role {role} nologin".encode())
        admin.execute(f"create database {name}".encode())
    dump = subprocess.run(
        [str(source.bin("pg_dump")), "-Fc", source_dsn], check=True, capture_output=True
    ).stdout
    subprocess.run(
        [str(target.bin("pg_restore")), "--exit-on-error", "-d", target.dsn(name)],
        input=dump, check=True, capture_output=True,
    )  # fmt: skip
    return target.dsn(name)


@pytest.mark.slow
def test_a_cursor_survives_dump_and_restore(
    conn: Conn, dsn: str, server: DevServer, clusters: list[DevServer]
) -> None:
    conn.execute("create table thing (id bigint generated always as identity primary key)")
    conn.execute("select pgaudit_wf.attach('thing')")
    cursors: dict[str, str | None] = {"new": None}
    seen: dict[str, list[int]] = {"new": []}

    def write(on: Conn, transactions: int) -> None:
        for _ in range(transactions):
            on.execute("insert into thing default values")

    def catch_up(on: Conn, *readers: str, limit: int | None = None) -> None:
        for reader in readers:
            if limit is not None:
                rows = on.execute(
                    "select cursor, (event).id from pgaudit_wf.read_log(%s, %s)",
                    [cursors[reader], limit],
                ).fetchall()
                on.execute("select pgaudit_wf._note_generation()")
                cursors[reader], ids = rows[-1][0], [event_id for _, event_id in rows]
            else:
                cursors[reader], ids = read(on, cursors[reader], 7)
            seen[reader] += ids

    for reader in ("prompt", "behind", "absent"):
        cursors[reader], seen[reader] = None, []
    use_up_transaction_ids(conn)
    write(conn, 30)
    catch_up(conn, "prompt")
    catch_up(conn, "behind", "absent", limit=10)
    write(conn, 10)

    addresses = [dsn]
    here = server
    for cluster in clusters:
        with psycopg.connect(addresses[-1]) as before:
            [(highest,)] = before.execute(
                "select max(tx_id) from pgaudit_wf.security_audit_log"
            ).fetchall()
        address = move(here, addresses[-1], cluster)
        addresses.append(address)
        here = cluster
        with psycopg.connect(address, autocommit=True) as there:
            [(now,)] = there.execute("select pg_current_xact_id()::text::bigint").fetchall()
            assert now < highest
            if cluster is not clusters[-1]:
                use_up_transaction_ids(there)
            write(there, 30)
            catch_up(there, "prompt")
            catch_up(there, "behind", limit=25)
            write(there, 10)
            catch_up(there, "prompt")
            assert seen["prompt"] == sorted(seen["prompt"]) == all_ids(there)
    with psycopg.connect(addresses[-1], autocommit=True) as there:
        catch_up(there, "behind", "absent", "new")
        for reader, ids in seen.items():
            assert ids == all_ids(there), reader
        assert len(seen["new"]) == 121
        assert (
            there.execute("select from pgaudit_wf.doctor() where severity = 'error'").fetchall()
            == []
        )
        assert there.execute("select pgaudit_wf.row_as_of('thing', '1')").fetchone() == ({"id": 1},)


@pytest.mark.slow
def test_a_cluster_in_which_nobody_read_is_not_forgotten(
    conn: Conn, dsn: str, server: DevServer, clusters: list[DevServer]
) -> None:
    conn.execute("create table thing (id bigint generated always as identity primary key)")
    conn.execute("select pgaudit_wf.attach('thing')")
    use_up_transaction_ids(conn)
    conn.execute("insert into thing default values")
    cursor, first = read(conn, None)
    address, here = dsn, server
    for cluster in clusters:
        address, here = move(here, address, cluster), cluster
        with psycopg.connect(address, autocommit=True) as there:
            # What any installation does monthly.
            there.execute("select pgaudit_wf.ensure_log_partitions()")
            for _ in range(5):
                there.execute("insert into thing default values")
    with psycopg.connect(address, autocommit=True) as there:
        _, ids = read(there, cursor)
        assert first + ids == all_ids(there)
        assert len(ids) == 10
