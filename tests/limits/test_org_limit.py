"""Limits: refused and freed exactly, with many writers at once, whatever becomes of the table."""

import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import errors

from pgaudit_wf import request_context
from pgaudit_wf.errors import LimitReachedError, from_database
from support.server import Conn

CONDITION = "revoked_at is null"


@pytest.fixture
def key(conn: Conn) -> Conn:
    """An attached table `key` whose rows count until they are revoked; no limit yet."""
    conn.execute(
        "create table key (id int primary key, org_id text, revoked_at timestamptz, name text)"
    )
    conn.execute("select pgaudit_wf.attach('key')")
    conn.execute("insert into pgaudit_wf.limit_condition values ('key', %s)", [CONDITION])
    return conn


def limit(conn: Conn, most: int | None, org: str | None = None, kind: str = "key") -> None:
    conn.execute("select pgaudit_wf.set_org_limit(%s, %s, %s)", [org, kind, most])


def used(conn: Conn, kind: str = "key") -> dict[str, int]:
    """The counters, after a check that they are what a count of the table gives."""
    counters = dict(
        conn.execute(
            "select org_id, used from pgaudit_wf.org_usage where resource_type = %s and used <> 0",
            [kind],
        ).fetchall()
    )
    counted = dict(
        conn.execute(
            f"select org_id, count(*) from {kind} where {CONDITION} and org_id is not null "
            "group by 1"
        ).fetchall()
    )
    assert counters == counted
    return counters


def insert(conn: Conn, first: int, last: int, org: str | None = "o1") -> None:
    conn.execute(
        "insert into key select n, %s from generate_series(%s::int, %s) as n", [org, first, last]
    )


def triggers(conn: Conn, table: str = "key") -> list[str]:
    found = conn.execute(
        "select tgname::text from pg_trigger where tgrelid = %s::regclass "
        "and tgname like 'pgaudit\\_wf\\_limit%%' order by 1",
        [table],
    )
    return [name for (name,) in found]


def test_the_row_over_the_limit_is_refused_with_its_own_error(key: Conn) -> None:
    limit(key, 2)
    insert(key, 1, 2)
    with pytest.raises(psycopg.Error) as caught:
        insert(key, 3, 3)
    diag = caught.value.diag
    assert caught.value.sqlstate == "PA330"
    assert diag.message_primary == "organization o1 has reached its limit of 2 for key"
    assert json.loads(diag.message_detail or "") == {
        "org_id": "o1",
        "resource_type": "key",
        "max_count": 2,
    }
    assert (diag.schema_name, diag.table_name) == ("public", "key")
    assert isinstance(from_database(caught.value), LimitReachedError)
    insert(key, 3, 4, "o2")
    assert used(key) == {"o1": 2, "o2": 2}


def test_deleting_and_revoking_free_a_place_and_reinstating_takes_one(key: Conn) -> None:
    limit(key, 2)
    insert(key, 1, 2)
    key.execute("update key set revoked_at = now() where id = 1")
    insert(key, 3, 3)
    with pytest.raises(psycopg.Error, match="limit of 2"):
        key.execute("update key set revoked_at = null where id = 1")
    key.execute("delete from key where id = 1")
    with pytest.raises(psycopg.Error, match="limit of 2"):
        insert(key, 4, 4)
    key.execute("delete from key where id = 2")
    insert(key, 4, 4)
    assert used(key) == {"o1": 2}


def test_a_row_that_moves_takes_its_place_along(key: Conn) -> None:
    limit(key, 2)
    insert(key, 1, 2)
    insert(key, 3, 4, "o2")
    with pytest.raises(psycopg.Error, match="organization o2"):
        key.execute("update key set org_id = 'o2' where id = 1")
    # In one statement, only what remains counts.
    key.execute("update key set org_id = case org_id when 'o1' then 'o2' else 'o1' end")
    key.execute("update key set org_id = null where id = 1")
    key.execute("update key set org_id = 'o3' where id in (2, 3)")
    assert used(key) == {"o1": 1, "o3": 2}


def test_statements_with_many_rows_are_refused_or_kept_as_a_whole(key: Conn) -> None:
    limit(key, 3)
    with pytest.raises(psycopg.Error, match="limit of 3"):
        insert(key, 1, 4)
    key.execute("insert into key select n, 'o' || n % 4 from generate_series(1, 12) as n")
    with key.cursor().copy("copy key (id, org_id) from stdin") as copy:
        copy.write(b"20\to9\n21\to9\n")
    with (
        pytest.raises(psycopg.Error, match="organization o9"),
        key.cursor().copy("copy key (id, org_id) from stdin") as copy,
    ):
        copy.write(b"22\to9\n23\to9\n")
    key.execute(
        "insert into key values (20, 'o9'), (24, 'o8') on conflict (id) do update set org_id = 'o7'"
    )
    key.execute(
        "with gone as (delete from key where org_id = 'o1' returning id) "
        "insert into key select id + 100, 'o5' from gone"
    )
    assert used(key) == {"o0": 3, "o2": 3, "o3": 3, "o5": 3, "o7": 1, "o8": 1, "o9": 1}


def test_merge_and_cascades_are_counted(key: Conn) -> None:
    key.execute("create table org (id text primary key)")
    key.execute("insert into org values ('o1'), ('o2')")
    key.execute("alter table key add foreign key (org_id) references org on delete cascade")
    limit(key, 2)
    key.execute(
        "merge into key using (values (1, 'o1'), (2, 'o1'), (3, 'o2')) as v (id, org) "
        "on key.id = v.id when not matched then insert (id, org_id) values (v.id, v.org)"
    )
    assert used(key) == {"o1": 2, "o2": 1}
    key.execute("delete from org where id = 'o1'")
    assert used(key) == {"o2": 1}


def test_rolled_back_work_takes_no_place(key: Conn) -> None:
    limit(key, 2)
    with key.transaction():
        insert(key, 1, 1)
        with key.transaction(force_rollback=True):
            insert(key, 2, 2)
        with pytest.raises(psycopg.Error, match="limit of 2"), key.transaction():
            insert(key, 3, 4)
        insert(key, 5, 5)
    with key.transaction(force_rollback=True):
        key.execute("truncate key")
        insert(key, 6, 7)
    assert used(key) == {"o1": 2}


def test_truncate_frees_all_places(key: Conn) -> None:
    limit(key, 2)
    insert(key, 1, 2)
    key.execute("truncate key")
    assert used(key) == {}
    insert(key, 1, 2)


def test_own_limits_go_before_the_default(key: Conn) -> None:
    limit(key, 1)
    limit(key, 3, "o1")
    limit(key, None, "o2")
    limit(key, 0, "o3")
    insert(key, 1, 3)
    insert(key, 11, 30, "o2")
    for number, org in enumerate(("o1", "o3"), 31):
        with pytest.raises(psycopg.Error, match=f"organization {org}"):
            insert(key, number, number, org)
    insert(key, 41, 42, None)
    assert key.execute(
        "select org_id, used, max_count, is_default from pgaudit_wf.limit_usage order by 1"
    ).fetchall() == [("o1", 3, 3, False), ("o2", 20, None, False), ("o3", 0, 0, False)]
    key.execute("delete from pgaudit_wf.org_limit where org_id = 'o1'")
    assert key.execute("select pgaudit_wf._limit_of('o1', 'key')").fetchone() == (1,)


def test_lowering_a_limit_refuses_new_rows_only(key: Conn) -> None:
    limit(key, 5)
    insert(key, 1, 5)
    limit(key, 2)
    key.execute("update key set name = 'x'")
    key.execute("update key set revoked_at = now() where id = 1")
    with pytest.raises(psycopg.Error, match="limit of 2"):
        insert(key, 6, 6)
    key.execute("delete from key where id > 2")
    insert(key, 6, 6)
    assert used(key) == {"o1": 2}


def test_a_limit_counts_what_is_there_and_the_last_one_leaves_no_trigger(key: Conn) -> None:
    insert(key, 1, 4)
    key.execute("update key set revoked_at = now() where id = 1")
    assert triggers(key) == []
    limit(key, 3)
    assert used(key) == {"o1": 3}
    with pytest.raises(psycopg.Error, match="limit of 3"):
        insert(key, 5, 5)
    limit(key, 4, "o1")
    key.execute("delete from pgaudit_wf.org_limit where org_id is null")
    assert len(triggers(key)) == 4
    key.execute("delete from pgaudit_wf.org_limit")
    assert triggers(key) == []
    assert key.execute("select count(*) from pgaudit_wf.org_usage").fetchone() == (0,)
    insert(key, 5, 50)


def test_changes_of_limits_are_recorded(key: Conn) -> None:
    with request_context(key, actor_id="u_1"):
        limit(key, 3, "o1")
        limit(key, 5, "o1")
        limit(key, 5, "o1")
        key.execute("delete from pgaudit_wf.org_limit")
    events = key.execute(
        "select action, actor_id, org_id, resource_id, diff -> 0 ->> 'value' "
        "from pgaudit_wf.security_audit_log where resource_type = 'org_limit' order by id"
    ).fetchall()
    assert [event[:4] for event in events] == [
        ("org_limit.set", "u_1", "o1", "key"),
        ("org_limit.set", "u_1", "o1", "key"),
        ("org_limit.removed", "u_1", "o1", "key"),
    ]
    assert events[1][4] == "5"


@pytest.mark.parametrize(
    "condition",
    ["revoked_at > now()", "nosuch is null", "name", "id in (select 1)", "tr ue"],
)
def test_a_condition_that_cannot_be_counted_is_refused(key: Conn, condition: str) -> None:
    limit(key, 3)
    with pytest.raises(psycopg.Error) as caught:
        key.execute("update pgaudit_wf.limit_condition set condition = %s", [condition])
    assert caught.value.sqlstate == "PA003"
    assert condition in (caught.value.diag.message_detail or "")
    insert(key, 1, 1)
    assert used(key) == {"o1": 1}


def test_another_condition_counts_anew(key: Conn) -> None:
    limit(key, 3)
    insert(key, 1, 3)
    key.execute("update pgaudit_wf.limit_condition set condition = 'id <> 1 -- but the first'")
    insert(key, 4, 4)
    with pytest.raises(psycopg.Error, match="limit of 3"):
        insert(key, 5, 5)
    key.execute("delete from pgaudit_wf.limit_condition")
    assert key.execute("select used from pgaudit_wf.org_usage").fetchone() == (4,)


def test_a_table_without_an_org_column_cannot_have_a_limit(conn: Conn) -> None:
    conn.execute("create table thing (id int primary key)")
    conn.execute("select pgaudit_wf.attach('thing')")
    with pytest.raises(psycopg.Error) as caught:
        limit(conn, 1, kind="thing")
    assert caught.value.sqlstate == "PA002"


def test_ddl_does_not_disturb_the_count(key: Conn) -> None:
    limit(key, 3)
    insert(key, 1, 3)
    key.execute('alter table key rename revoked_at to "Gone At"')
    key.execute("alter table key rename org_id to tenant")
    key.execute(
        "alter table key add refused_org text, add maximum int, add used int, add org_id int"
    )
    key.execute('alter table key rename to "The Key"')
    key.execute('update "The Key" set "Gone At" = now() where id = 1')
    key.execute("insert into \"The Key\" (id, tenant) values (4, 'o1')")
    with pytest.raises(psycopg.Error, match="limit of 3"):
        key.execute("insert into \"The Key\" (id, tenant) values (5, 'o1')")
    # What a limit needs can be dropped: then writes go on uncounted, and doctor() says so.
    for column in ('"Gone At"', "tenant"):
        with key.transaction(force_rollback=True):
            key.execute(f'alter table "The Key" drop column {column}')
            key.execute('insert into "The Key" (id) values (5)')
            assert key.execute(
                "select count(*) from pgaudit_wf.doctor()"
                " where severity = 'error' and problem like 'its rows are not being counted%'"
            ).fetchone() == (1,)
    # Another type, under which the condition is true of other rows.
    key.execute('alter table "The Key" alter "Gone At" type int using case when id = 2 then 1 end')
    assert key.execute("select used from pgaudit_wf.org_usage").fetchone() == (3,)
    key.execute('drop table "The Key"')
    assert key.execute("select count(*) from pgaudit_wf.limit_target").fetchone() == (0,)
    assert key.execute("select count(*) from pgaudit_wf.org_usage").fetchone() == (0,)


def test_detaching_and_another_type_take_the_count_along(key: Conn) -> None:
    limit(key, 3)
    insert(key, 1, 2)
    key.execute("create table key_2 (id int primary key, org_id text, revoked_at timestamptz)")
    key.execute("insert into key_2 values (1, 'o1')")
    key.execute("select pgaudit_wf.attach('key_2', 'key')")
    with pytest.raises(psycopg.Error, match="limit of 3"):
        insert(key, 3, 3)
    key.execute("select pgaudit_wf.attach('key_2', 'other')")
    insert(key, 3, 3)
    key.execute("select pgaudit_wf.attach('key_2', 'key')")
    assert key.execute("select used from pgaudit_wf.org_usage").fetchone() == (4,)
    key.execute("select pgaudit_wf.detach('key_2')")
    assert used(key) == {"o1": 3}
    assert triggers(key, "key_2") == []


def test_partitions_are_counted_however_they_are_written_to(key: Conn) -> None:
    key.execute(
        "create table part (id int, org_id text, revoked_at timestamptz, primary key (id)) "
        "partition by range (id)"
    )
    key.execute("create table part_1 partition of part for values from (0) to (10)")
    key.execute("create table part_2 partition of part for values from (10) to (20)")
    key.execute("insert into pgaudit_wf.limit_condition values ('part', %s)", [CONDITION])
    key.execute("select pgaudit_wf.attach('part')")
    limit(key, 3, kind="part")
    key.execute("insert into part values (1, 'o1'), (11, 'o1')")
    key.execute("insert into part_1 values (2, 'o1')")
    key.execute("update part set id = 12 where id = 2")
    assert used(key, "part") == {"o1": 3}
    key.execute("create table part_3 partition of part for values from (20) to (30)")
    with pytest.raises(psycopg.Error, match="limit of 3"):
        key.execute("insert into part_3 values (21, 'o1')")
    key.execute("truncate part_1")
    key.execute("insert into part_3 values (21, 'o1')")
    assert used(key, "part") == {"o1": 3}
    key.execute("alter table part detach partition part_2")
    assert used(key, "part") == {"o1": 1}
    assert triggers(key, "part_2") == []
    key.execute("alter table part attach partition part_2 for values from (10) to (20)")
    assert used(key, "part") == {"o1": 3}
    key.execute("drop table part_2")
    assert used(key, "part") == {"o1": 1}
    key.execute("truncate part")
    assert used(key, "part") == {}


def test_a_server_without_event_triggers_survives_a_renamed_column(owner_dsn: str) -> None:
    with psycopg.connect(owner_dsn, autocommit=True) as conn:
        conn.execute(
            "create table key (id int primary key, org_id text, extra int, revoked_at timestamptz)"
        )
        conn.execute("select pgaudit_wf.attach('key')")
        conn.execute("insert into pgaudit_wf.limit_condition values ('key', %s)", [CONDITION])
        limit(conn, 2)
        insert(conn, 1, 2)
        with pytest.raises(psycopg.Error, match="limit of 2"):
            insert(conn, 3, 3)
        conn.execute("alter table key drop column extra")
        with pytest.raises(psycopg.Error, match="limit of 2"):
            insert(conn, 3, 3)
        conn.execute("alter table key rename revoked_at to gone_at")
        notices: list[str] = []
        conn.add_notice_handler(lambda diag: notices.append(diag.message_primary or ""))
        insert(conn, 3, 3)
        assert notices == ["rows of key are not being counted (SQLSTATE 42703)"]
        conn.execute("update pgaudit_wf.limit_condition set condition = 'gone_at is null'")
        with pytest.raises(psycopg.Error, match="limit of 2"):
            insert(conn, 4, 4)


def test_a_condition_that_raises_fails_no_write(key: Conn) -> None:
    def define(body: str) -> None:
        key.execute(
            "create or replace function holds(at timestamptz) returns boolean immutable"
            f" language plpgsql as $$ begin {body} end $$".encode()
        )

    def findings() -> list[tuple[str, str]]:
        return key.execute("select problem, remedy from pgaudit_wf.doctor()").fetchall()

    sound = "return at is null;"
    define(sound)
    key.execute("update pgaudit_wf.limit_condition set condition = 'public.holds(revoked_at)'")
    limit(key, 3)
    insert(key, 1, 2)
    assert used(key) == {"o1": 2}
    define("raise 'no' using errcode = 'P0001';")
    notices: list[str] = []
    key.add_notice_handler(lambda diag: notices.append(diag.message_primary or ""))
    insert(key, 3, 9)
    key.execute("update key set org_id = 'o2' where id = 9; delete from key where id = 8")
    assert notices == ["rows of key are not being counted (SQLSTATE P0001)"] * 3
    # What another try may mend is the application's to try again.
    define("raise 'again' using errcode = '40001';")
    with pytest.raises(errors.SerializationFailure):
        insert(key, 10, 10)
    # A table that is attached with on_failure => 'warn' is told apart.
    assert key.execute("select failures from pgaudit_wf.attached").fetchone() == (0,)
    [(problem, remedy)] = findings()
    assert problem.startswith("3 changes went through uncounted")
    define(sound)
    assert findings() == [(problem, remedy)]
    key.execute("select pgaudit_wf.recount_usage('key')")
    assert findings() == []
    assert used(key) == {"o1": 7, "o2": 1}
    with pytest.raises(psycopg.Error, match="limit of 3"):
        insert(key, 10, 10)


def at_once(dsn: str, writers: int, write: Callable[[Conn, int], object]) -> list[str | None]:
    """Let many connections write at the same moment; return each one's SQLSTATE."""
    ready = threading.Barrier(writers)

    def run(number: int) -> str | None:
        with psycopg.connect(dsn, autocommit=True) as own:
            ready.wait(60)
            try:
                write(own, number)
            except psycopg.Error as error:
                return error.sqlstate
            return None

    with ThreadPoolExecutor(writers) as pool:
        return list(pool.map(run, range(writers)))


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_fifty_at_once_get_exactly_as_many_places_as_there_are(
    key: Conn, dsn: str, isolation: str
) -> None:
    limit(key, 20)
    insert(key, 1001, 1005)

    def write(own: Conn, number: int) -> None:
        while True:
            try:
                with own.transaction():
                    own.execute(f"set transaction isolation level {isolation}")
                    insert(own, number, number)
                return
            except errors.SerializationFailure:
                continue

    outcomes = at_once(dsn, 50, write)
    assert sorted(map(str, outcomes)) == sorted(["None"] * 15 + ["PA330"] * 35)
    assert used(key) == {"o1": 20}


def test_the_first_limit_waits_for_those_who_write_and_misses_none(key: Conn, dsn: str) -> None:
    with psycopg.connect(dsn) as slow:
        insert(slow, 1, 1)
        with ThreadPoolExecutor(1) as pool, psycopg.connect(dsn, autocommit=True) as own:
            setting = pool.submit(limit, own, 2)
            while not key.execute(
                "select 1 from pg_stat_activity where pid = %s and wait_event_type = 'Lock'",
                [own.info.backend_pid],
            ).fetchone():
                assert not setting.done()
            insert(slow, 2, 2)
            slow.commit()
            setting.result(60)
    assert used(key) == {"o1": 2}
    with pytest.raises(psycopg.Error, match="limit of 2"):
        insert(key, 3, 3)


def test_a_transaction_older_than_the_limit_is_counted(key: Conn, dsn: str) -> None:
    with psycopg.connect(dsn) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select count(*) from key")
        limit(key, 2)
        insert(old, 1, 1)
        old.commit()
    assert used(key) == {"o1": 1}
    key.execute("begin isolation level repeatable read")
    with pytest.raises(psycopg.Error) as caught:
        key.execute("select pgaudit_wf.recount_usage('key')")
    assert caught.value.sqlstate == "PA008"
    key.execute("rollback")


def test_statements_over_many_organizations_do_not_deadlock(key: Conn, dsn: str) -> None:
    limit(key, 1_000_000)

    def write(own: Conn, number: int) -> None:
        chance = random.Random(number)
        for turn in range(20):
            orgs = chance.sample(range(8), 8)
            own.execute(
                "insert into key select %s + n, 'o' || org "
                "from unnest(%s::int[]) with ordinality as o (org, n)",
                [number * 10_000 + turn * 10, orgs],
            )

    assert at_once(dsn, 10, write) == [None] * 10
    assert used(key) == {f"o{org}": 200 for org in range(8)}


def test_random_work_by_many_writers_is_counted_exactly(key: Conn, dsn: str) -> None:
    limit(key, 30)

    def write(own: Conn, number: int) -> None:
        chance = random.Random(number)
        for _ in range(60):
            first = chance.randint(1, 200)
            org = f"o{chance.randint(1, 4)}"
            statement = chance.choice(
                [
                    "insert into key select n, %(org)s from generate_series(%(a)s::int, %(a)s + 3) "
                    "as n on conflict (id) do update set org_id = excluded.org_id",
                    "delete from key where id between %(a)s and %(a)s + 2",
                    "update key set revoked_at = case when revoked_at is null then now() end "
                    "where id between %(a)s and %(a)s + 3",
                    "update key set org_id = %(org)s where id between %(a)s and %(a)s + 3",
                ]
            )
            try:
                with own.transaction(force_rollback=chance.random() < 0.2):
                    own.execute(statement, {"a": first, "org": org})
            except errors.DeadlockDetected:
                # The rows themselves are locked in the order in which statements meet them.
                continue
            except psycopg.Error as error:
                if error.sqlstate != "PA330":
                    raise

    assert at_once(dsn, 8, write) == [None] * 8
    counted = used(key)
    assert counted
    assert max(counted.values()) <= 30


def test_counting_reads_no_table(key: Conn, dsn: str) -> None:
    key.execute("insert into key select n, 'o' || n % 100 from generate_series(1, 20000) as n")
    key.execute("analyze key")
    limit(key, 1000)
    scans = "select coalesce(sum(seq_scan), 0)::int from pg_stat_user_tables where relname = 'key'"
    # Each session keeps its own counts for a while.
    key.execute("select pg_stat_force_next_flush()")
    before = key.execute(scans).fetchone()
    with psycopg.connect(dsn, autocommit=True) as own:
        for number in range(30_000, 30_050):
            insert(own, number, number)
            own.execute("update key set revoked_at = now() where id = %s", [number - 20_000])
            own.execute("delete from key where id = %s", [number - 19_000])
        own.execute("select pg_stat_force_next_flush()")
    key.execute("select pg_stat_force_next_flush()")
    inserts = key.execute(
        "select n_tup_ins >= 20050 from pg_stat_user_tables where relname = 'key'"
    ).fetchone()
    assert inserts == (True,)
    assert key.execute(scans).fetchone() == before
    used(key)


def test_a_blocked_attempt_is_in_the_log_as_denied(app_conn: Conn) -> None:
    app_conn.execute("insert into organization (id, name) values ('o1', 'One')")
    app_conn.execute("insert into app_user (id, email) values ('u1', 'u1@example.com')")
    limit(app_conn, 1, "o1", "api_key")
    new = (
        "insert into api_key (org_id, user_id, name, key_prefix, key_hash) "
        "values ('o1', 'u1', 'n', 'kh_1', %s)"
    )
    app_conn.execute(new, ["a"])
    with (
        pytest.raises(psycopg.Error, match="limit of 1"),
        request_context(app_conn, actor_id="u1", org_id="o1", correlation_id="c1"),
    ):
        app_conn.execute(new, ["b"])
    app_conn.execute("update api_key set revoked_at = now()")
    app_conn.execute(new, ["b"])
    assert app_conn.execute(
        "select action, actor_id, org_id, correlation_id, resource_type, outcome, "
        "metadata ->> 'sqlstate', metadata -> 'max_count' "
        "from pgaudit_wf.security_audit_log where outcome <> 'succeeded'"
    ).fetchall() == [("api_key.limit_reached", "u1", "o1", "c1", "api_key", "denied", "PA330", 1)]


def test_readers_see_their_own_organization_only(app_conn: Conn) -> None:
    app_conn.execute("insert into organization (id, name) values ('o1', 'One'), ('o2', 'Two')")
    app_conn.execute("insert into app_user (id, email) values ('u1', 'u1@example.com')")
    app_conn.execute("insert into member values ('o1', 'u1', 'owner', 'active')")
    for org in ("o1", "o2"):
        limit(app_conn, 5, org, "api_key")
    limit(app_conn, 1, None, "api_key")
    with request_context(app_conn, actor_id="u1", org_id="o1"):
        app_conn.execute("set local role pgaudit_wf_reader")
        assert app_conn.execute(
            "select org_id, used, max_count from pgaudit_wf.limit_usage"
        ).fetchall() == [("o1", 0, 5)]
        with pytest.raises(errors.InsufficientPrivilege), app_conn.transaction():
            limit(app_conn, 500, "o1", "api_key")


def test_the_first_limit_takes_the_rights_of_the_tables_owner(key: Conn) -> None:
    """The triggers that count are put on a table with the rights of whoever sets the limit."""
    key.execute(
        "do $$ begin create role wf_billing; exception when duplicate_object then null; end $$"
    )
    key.execute("grant usage on schema pgaudit_wf to wf_billing")
    key.execute(
        "grant execute on function pgaudit_wf.set_org_limit(text, text, bigint),"
        " pgaudit_wf._write_org_limit(text, text, bigint) to wf_billing"
    )
    key.execute("set role wf_billing")
    with pytest.raises(psycopg.Error, match="does not own the table") as caught:
        limit(key, 1)
    assert caught.value.sqlstate == "PA331"
    key.execute("reset role")
    limit(key, 5)
    key.execute("set role wf_billing")
    limit(key, 1, org="o1")
    limit(key, 9, kind="no such type yet")
    key.execute("reset role")
    insert(key, 1, 1)
    with pytest.raises(psycopg.Error, match="limit of 1"):
        insert(key, 2, 2)
    key.execute("drop owned by wf_billing; drop role wf_billing")


def test_ddl_below_the_root_leaves_its_triggers_alone(conn: Conn) -> None:
    conn.execute("create table mk (id int, org_id text, primary key (id)) partition by range (id)")
    conn.execute("select pgaudit_wf.attach('mk')")
    conn.execute("insert into pgaudit_wf.org_limit (resource_type, max_count) values ('mk', 2)")
    # Without a partition there is nothing to count, and DDL goes on.
    conn.execute("alter table mk add column v int")
    conn.execute(
        "create table mk1 partition of mk for values from (0) to (100) partition by range (id)"
    )
    conn.execute("create table mk1a partition of mk1 for values from (0) to (50)")
    conn.execute("alter table mk1 alter column org_id set statistics 10")
    conn.execute("create table mk1b partition of mk1 for values from (50) to (100)")
    conn.execute("alter table mk1 detach partition mk1b")
    with pytest.raises(psycopg.Error, match="limit of 2"):
        conn.execute("insert into mk values (1, 'o'), (2, 'o'), (3, 'o')")
    assert conn.execute("select from pgaudit_wf.doctor() where severity = 'error'").fetchall() == []
    conn.execute("drop trigger pgaudit_wf_limit_insert on mk1a")
    assert conn.execute(
        "select subject from pgaudit_wf.doctor() where problem like '%pgaudit_wf_limit_insert%'"
    ).fetchall() == [("public.mk1a",)]
    conn.execute("drop table mk1a")
    conn.execute("drop table mk")


def test_a_limited_table_in_a_schema_of_its_own_is_counted_and_dropped(conn: Conn) -> None:
    conn.execute("create role wf_apart; create schema apart authorization wf_apart")
    conn.execute("set role wf_apart")
    conn.execute("create table apart.pa (id int primary key, org_id text) partition by list (id)")
    conn.execute("create table apart.pa1 partition of apart.pa for values in (1, 2)")
    conn.execute("create table apart.pa2 partition of apart.pa for values in (3)")
    conn.execute("reset role")
    conn.execute("select pgaudit_wf.attach('apart.pa')")
    conn.execute("insert into pgaudit_wf.org_limit (resource_type, max_count) values ('pa', 3)")
    conn.execute("set role wf_apart")
    conn.execute("insert into apart.pa values (1, 'o'), (2, 'o'), (3, 'o')")
    conn.execute("truncate apart.pa1")
    conn.execute("insert into apart.pa values (1, 'o')")
    conn.execute("alter table apart.pa detach partition apart.pa2")
    conn.execute("drop table apart.pa, apart.pa2")
    conn.execute("reset role")
    assert conn.execute("select count(*) from pgaudit_wf.limit_target").fetchone() == (0,)
    conn.execute("drop owned by wf_apart cascade; drop role wf_apart")
