"""States of rows and tables at moments: they equal a recording that the test keeps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, cast

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import pgaudit_wf
from pgaudit_wf import changes_between, create_view_as_of, errors, row_history
from pgaudit_wf.trail.statement import one
from support.command import Result, command
from support.server import Conn

EXAMPLES = 40 if os.environ.get("PGAUDIT_WF_ENDURANCE") else 6

# Each with the number of a row, which may or may not be there.
STATEMENTS = {
    "insert": "insert into t values ({n}, {n}, 'new', '{{\"a\": {{\"b\": 1}}}}')"
    " on conflict do nothing",
    "update": "update t set n = n || 'u' where id = {n}",
    "update all": "update t set w = 'all ' || n || ' ' || {n}",
    "update within": "update t set j = jsonb_set(j, '{{a,b}}', to_jsonb({n})) where id = {n}",
    "long": "update t set w = repeat(md5('{n}'), 9) where id = {n}",
    "to null": "update t set w = null where id = {n}",
    "delete": "delete from t where id = {n}",
    "move": "update t set id = {n} + 1 where id = {n}"
    " and not exists (select from t as u where u.id = {n} + 1)",
    "rename": "alter table t rename w to w2; alter table t rename n to w;"
    " alter table t rename w2 to n; alter table t alter n drop default",
    "add": "alter table t add if not exists more int default {n}",
}
# The log cannot tell all of what was before these, and says so.
LOSSY = {
    "truncate": "truncate t",
    "drop": "alter table t drop if exists more",
    "rewrite": "alter table t add if not exists made uuid default gen_random_uuid()",
    "recompute": "alter table t alter j type jsonb using j || '{{\"x\": {n}}}'",
}


def recorded(conn: Conn) -> dict[str, Any]:
    return {str(id_): row for id_, row in conn.execute("select id, to_jsonb(t) from t").fetchall()}


def now(conn: Conn) -> datetime:
    return cast(datetime, one(conn, "select clock_timestamp()")[0])


def table_as_of(conn: Conn, at: datetime) -> tuple[dict[str, Any], dict[str, str]]:
    rows = conn.execute("select * from pgaudit_wf.table_as_of('t', %s)", [at]).fetchall()
    assert len(rows) == len({key for key, _, _ in rows})
    return (
        {key: record for key, record, _ in rows if record is not None},
        {key: unknown for key, _, unknown in rows if unknown is not None},
    )


def row_as_of(conn: Conn, key: str, at: datetime) -> object:
    try:
        with conn.transaction():
            return one(conn, "select pgaudit_wf.row_as_of('t', %s, %s)", [key, at])[0]
    except psycopg.Error as error:
        if error.sqlstate != "PA010":
            raise
        return None


def play(
    conn: Conn, moves: list[tuple[str, int]], attach_at: int
) -> Iterator[tuple[datetime, Any]]:
    """Make moves on a table that is attached after some; yield moments and what was there then."""
    conn.execute("create table t (id int primary key, n text default 'x', w text, j jsonb)")
    for number, (name, n) in enumerate(moves):
        if number == attach_at:
            conn.execute("select pgaudit_wf.attach('t')")
        statement = (STATEMENTS | LOSSY)[name].format(n=n)
        conn.execute(statement.encode())
        if number >= attach_at:
            yield now(conn), recorded(conn)


def moves(names: list[str]) -> st.SearchStrategy[list[tuple[str, int]]]:
    start = [("insert", n) for n in (1, 2, 3)]
    return st.lists(
        st.tuples(st.sampled_from(names), st.integers(1, 4)), min_size=4, max_size=14
    ).map(lambda made: start + made)


FAST = settings(
    max_examples=EXAMPLES,
    deadline=None,
    # To make an example smaller takes minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FAST
@given(moves=moves(sorted(STATEMENTS)), attach_at=st.sampled_from([0, 3, 5]))
@example(moves=[("insert", 1), ("update", 1), ("move", 1), ("insert", 1), ("update all", 1),
                ("add", 5), ("delete", 1), ("insert", 1)], attach_at=1)  # fmt: skip
def test_states_equal_a_recording(conn: Conn, moves: list[tuple[str, int]], attach_at: int) -> None:
    with conn.transaction(force_rollback=True):
        history = list(play(conn, moves, attach_at))
        for at, rows in history:
            assert table_as_of(conn, at) == (rows, {})
        (a, before), (b, after) = history[len(history) // 3], history[-1]
        changed = conn.execute(
            "select resource_id, change, before, after, unknown"
            " from pgaudit_wf.changes_between('t', %s, %s)", [a, b]
        ).fetchall()  # fmt: skip
        # DDL alone is no change of a row.
        touched = {key for key, *_ in changed}
        for key, change, old, new, unknown in changed:
            assert (old, new, unknown) == (before.get(key), after.get(key), None)
            assert change == (
                "inserted" if old is None else "deleted" if new is None else "updated"
            )
        altered = {name for name, _ in moves} & {"rename", "add"}
        if not altered:
            keys = before.keys() | after.keys()
            assert touched == {key for key in keys if before.get(key) != after.get(key)}
        for key in {*before, *after}:
            for at, record in conn.execute(
                "select occurred_at, record from pgaudit_wf.row_history('t', %s)", [key]
            ).fetchall():
                assert record == row_as_of(conn, key, at)


@FAST
@given(moves=moves(sorted(STATEMENTS | LOSSY)), attach_at=st.sampled_from([0, 3]))
@example(moves=[("insert", 1), ("long", 1), ("truncate", 1), ("insert", 1)], attach_at=1)
def test_what_is_unknown_is_so_for_a_row_and_its_table(
    conn: Conn, moves: list[tuple[str, int]], attach_at: int
) -> None:
    with conn.transaction(force_rollback=True):
        for at, rows in list(play(conn, moves, attach_at))[::-3]:
            found, unknown = table_as_of(conn, at)
            for key in map(str, range(1, 7)):
                assert found.get(key) == row_as_of(conn, key, at)
                if (
                    key in found
                    and key not in unknown
                    and not {"drop"} & {name for name, _ in moves}
                ):
                    assert found[key] == rows.get(key)
            assert json.dumps(found)


def test_what_the_log_cannot_know_is_said(conn: Conn) -> None:
    conn.execute("create table t (id int primary key, v int, secret text, x text)")
    conn.execute("insert into t values (1, 1, 's', 'x'), (2, 2, 's', 'x')")
    before = now(conn)
    conn.execute("select pgaudit_wf.attach('t', redact => '{secret}', ignore => '{x}')")
    attached = now(conn)
    conn.execute("update t set v = v + 10")
    rows, unknown = table_as_of(conn, attached)
    assert rows["1"] == {"id": 1, "v": 1, "secret": "[redacted]"}
    assert unknown == {}
    # As far as the log goes back, and no further.
    rows, unknown = table_as_of(conn, before)
    assert rows["2"]["v"] == 2
    assert unknown["2"].startswith("the log begins at 20")
    first = conn.execute(
        "select change, columns, record, unknown from pgaudit_wf.row_history('t', '1')"
    )
    assert first.fetchall() == [
        ("updated", ["v"], {"id": 1, "v": 11, "secret": "[redacted]"}, None)
    ]
    # A login without the table knows what changed, no more, and is told.
    with conn.transaction(force_rollback=True):
        conn.execute("create policy p on pgaudit_wf.security_audit_log for select using (true)")
        conn.execute("set local role pgaudit_wf_reader")
        found, unknown = table_as_of(conn, attached)
        assert found == {"1": {"v": 1}, "2": {"v": 2}}
        assert unknown["1"] == "only the columns that changed later are known"
    conn.execute("alter table t alter v type int using v * 100")
    rows, unknown = table_as_of(conn, attached)
    assert rows == {}
    assert unknown["1"].startswith("DDL rewrote the table at 20")
    changed = changes_between(conn, "t", attached, now(conn))
    assert {(c.resource_id, c.change) for c in changed} == {
        ("1", "unknown"), ("2", "unknown"), (None, "rewritten")
    }  # fmt: skip


def test_another_table_of_the_same_type_is_an_error(conn: Conn) -> None:
    conn.execute("create table t (id int primary key); create table u (id int primary key)")
    conn.execute("select pgaudit_wf.attach('t'), pgaudit_wf.attach('u', resource_type => 't')")
    with pytest.raises(errors.UnknownStateError, match="another table is recorded as"):
        pgaudit_wf.table_as_of(conn, "t", now(conn))
    with pytest.raises(errors.NotAttachedError):
        pgaudit_wf.table_as_of(conn, "pg_class", now(conn))
    with pytest.raises(errors.ArgumentError):
        changes_between(conn, "t", now(conn), datetime(2020, 1, 1, tzinfo=UTC))


def test_a_view_is_the_table_at_a_moment(db_dsn: str) -> None:
    with psycopg.connect(db_dsn, autocommit=True) as conn:
        conn.execute(
            'create schema "S p"; create domain positive as int not null check (value > 0);'
            ' create table "S p"."T ""x" (id bigint, "a\'b" positive, "%s" numeric(6, 2), j jsonb,'
            " at timestamptz, raw bytea, tags text[], pin int, seen int, host uuid, meta jsonb,"
            " primary key (id))"
        )
        conn.execute(
            """select pgaudit_wf.attach('"S p"."T ""x"', ignore => '{seen}',
                redact => '{pin,host.name,meta.token}')"""
        )
        insert = """insert into "S p"."T ""x" values
            (1, 5, 1.50, '{"a": null}', '2026-01-01 12:00+02', '\\xdead', '{a,"b c"}', 1234, 1,
            gen_random_uuid(), '{"token": "t"}')"""
        conn.execute(insert.encode())
        at = now(conn)
        was = """select id, "a'b", "%s", j, at, raw, tags, seen from"""
        (there,) = conn.execute(f"""{was} "S p"."T ""x" """.encode()).fetchall()
        conn.execute("""update "S p"."T ""x" set "a'b" = 6, j = '[]'""")
        assert create_view_as_of(conn, '"V ""1"', '"S p"."T ""x"', at) == '"S p"."V ""1"'
        assert conn.execute(f"""{was} "S p"."V ""1" """.encode()).fetchall() == [
            (*there[:-1], None)
        ]
        seen = conn.execute(
            """select pin, host, meta, pgaudit_wf_unknown from "S p"."V ""1" """
        ).fetchall()
        assert seen == [("[redacted]", "[redacted]", {"token": "[redacted]"}, None)]
        # Nobody's DDL is in the way of another's.
        conn.execute("""alter table "S p"."T ""x" drop raw, alter id type numeric""")
        conn.execute("""drop table "S p"."T ""x" """)
        conn.execute("create table plain (id int primary key); select pgaudit_wf.attach('plain')")
        for name in ("a.b.c", "", "a b", '"a', None):
            with pytest.raises(errors.ArgumentError):
                create_view_as_of(conn, cast(str, name), "plain", at)


def test_keys_of_several_columns_as_people_write_them(conn: Conn) -> None:
    conn.execute("create table t (a int, b text, v int, primary key (a, b))")
    conn.execute("select pgaudit_wf.attach('t')")
    conn.execute("insert into t values (5, 'a', 1), (6, '1', 2)")
    for text, wanted in (
        ("5,a", 5), ('[5, "a"]', 5), ('["5", "a"]', 5), ("6,1", 6), (" 5 ,a", 5)
    ):  # fmt: skip
        assert (pgaudit_wf.row_as_of(conn, "t", text) or {})["a"] == wanted
        assert [state.change for state in row_history(conn, "t", text)] == ["inserted"]
    for wrong in ("5", "5,a,b"):
        with pytest.raises(errors.ArgumentError, match="has the columns a, b"):
            row_history(conn, "t", wrong)


def test_a_reader_sees_the_states_of_its_organization(conn: Conn) -> None:
    conn.execute("create table t (id int primary key, org text, v int)")
    conn.execute("select pgaudit_wf.attach('t', org_column => 'org')")
    conn.execute(
        "create or replace view pgaudit_wf.org_member as"
        " select 'a'::text as org_id, 'ana'::text as actor_id, 'owner'::text as role"
    )
    conn.execute("insert into t values (1, 'a', 1), (2, 'b', 2); update t set v = v + 1")
    start, at = datetime(2020, 1, 1, tzinfo=UTC), now(conn)
    for actor, seen in (("ana", {"1"}), ("eve", set())):
        with conn.transaction():
            conn.execute("set local role pgaudit_wf_reader")
            with pgaudit_wf.request_context(conn, actor_id=actor, org_id="a"):
                assert set(table_as_of(conn, at)[0]) == seen
                assert {c.resource_id for c in changes_between(conn, "t", start, at)} == seen
                assert [len(row_history(conn, "t", key)) for key in "12"] == [2 * len(seen), 0]
    conn.execute("set role pgaudit_wf_app")
    for call in ("row_history('t', '1')", "table_as_of('t', now())"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(f"select * from pgaudit_wf.{call}".encode())


def test_many_rows_changed_are_as_few(conn: Conn) -> None:
    conn.execute("create table t (id int primary key, v int)")
    conn.execute("select pgaudit_wf.attach('t')")
    conn.execute("insert into t select g, 0 from generate_series(1, 21000) as g")
    at = now(conn)
    conn.execute("update t set v = 1")
    changed = changes_between(conn, "t", at, now(conn))
    assert len(changed) == 21000
    assert {(c.change, c.events) for c in changed} == {("updated", 1)}
    assert len(pgaudit_wf.table_as_of(conn, "t", at)) == 21000


def test_commands(dsn: str, conn: Conn, capsys: pytest.CaptureFixture[str]) -> None:
    def cli(*words: str) -> Result:
        return command(capsys, *words, "-d", dsn)

    conn.execute("create table t (a int, b text, v int, primary key (a, b))")
    conn.execute("select pgaudit_wf.attach('t')")
    conn.execute("insert into t values (5, 'a', 1), (6, 'b', 2)")
    at = now(conn)
    with pgaudit_wf.request_context(conn, actor_id="u_ana", reason="typo"):
        conn.execute("update t set v = 9 where a = 5")
    event, tx = one(conn, "select max(id), max(tx_id) from pgaudit_wf.security_audit_log")
    shown = cli("row-history", "t", "5,a")
    assert f"{event}" in shown.out
    assert f"{tx}" in shown.out
    assert "u_ana" in shown.out
    states = json.loads(cli("row-history", "t", "5,a", "--json").out)
    assert [state["record"]["v"] for state in states] == [1, 9]
    assert states[1]["reason"] == "typo"
    lines = cli("table", "t", "--at", at.isoformat()).out.splitlines()
    assert {json.loads(line)["record"]["v"] for line in lines} == {1, 2}
    assert "public.was" in cli("table", "t", "--at", at.isoformat(), "--view", "public.was").err
    assert conn.execute("select v from public.was order by a").fetchall() == [(1,), (2,)]
    assert "v 1 → 9" in cli("changes", "t", "--since", at.isoformat()).out
    none = cli("row-history", "t", "7,a")
    assert (none.code, none.out) == (1, "")
    assert cli("changes", "t", "--since", "now", "--until", "2d").code == 2
