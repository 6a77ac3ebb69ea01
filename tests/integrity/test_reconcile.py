"""The log against the rows as they are: what no trigger saw is named, and nothing else."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pgaudit_wf.errors import NotAttachedError, ReconcileError
from pgaudit_wf.integrity.reconcile import Compared, Finding, reconcile
from pgaudit_wf.trail.statement import one
from support.command import command, printed_on
from support.server import Conn

OLD = "create table t (id bigint primary key, name text, v int, doc jsonb, secret text, seen int)"
FIRST = (
    "insert into t select g, 'n' || g, g, jsonb_build_object("
    "   'a', jsonb_build_object('x', g, 'y', 1), 'list', array[1, 2, g]), 'hush' || g, g"
    " from generate_series({}, {}) as g"
)


@pytest.fixture
def db(db_dsn: str) -> Iterator[Conn]:
    """A database of either form of triggers."""
    with psycopg.connect(db_dsn, autocommit=True) as conn:
        yield conn


def make(conn: Conn, before: int = 0, after: int = 10) -> None:
    """Rows that were there before the table was attached, and rows that came after."""
    conn.execute(OLD)
    conn.execute(FIRST.format(1, before))
    conn.execute("select pgaudit_wf.attach('t', ignore => '{seen}', redact => '{secret}')")
    conn.execute(FIRST.format(before + 1, before + after))


def unseen(conn: Conn, *statements: str, table: str = "t") -> None:
    """Do something that no trigger sees."""
    name = sql.SQL(table)
    triggers = conn.execute(
        "select distinct tgname from pg_trigger where tgrelid = %s::regclass and not tgisinternal"
        " and tgname like '%%pgaudit_wf%%'", [table],
    ).fetchall()  # fmt: skip
    for state in ("disable", "enable always"):
        for (trigger,) in triggers:
            conn.execute(
                sql.SQL("alter table {} {} trigger {}").format(
                    name, sql.SQL(state), sql.Identifier(trigger)
                )
            )
        if state == "disable":
            for statement in statements:
                conn.execute(statement.encode())


def compare(
    conn: Conn,
    table: str | None = "t",
    *,
    size: int = 5000,
    start: str | None = None,
) -> tuple[Compared, list[Finding]]:
    found: list[Finding] = []
    [compared], kept = reconcile(conn, table, found=found.append, size=size, start=start)
    assert compared.found == len(kept)
    return compared, found


def names(found: list[Finding]) -> set[tuple[object, ...]]:
    return {(f.kind, f.resource_id, f.path, str(f.before), str(f.after)) for f in found}


ORDINARY = {
    "updates": ["update t set v = v + 1", "update t set name = null where id = 2"],
    "within a column": [
        "update t set doc = jsonb_set(doc, '{a,x}', '7')",
        "update t set doc = doc #- '{list,0}' where id % 2 = 0",
        "update t set doc = jsonb_set(doc, '{list,9}', '1')",
    ],
    "hidden": ["update t set secret = 'x', seen = 9", "update t set secret = null where id = 3"],
    "a key that moves": [
        "update t set id = id + 100 where id < 8",
        "update t set v = 5 where id > 100",
        "insert into t (id, name) values (1, 'again')",
        "update t set id = 200 where id = 101",
        "update t set id = 101 where id = 1",
    ],
    "rows that come and go": [
        "delete from t where id > 5",
        "insert into t (id, v) values (6, 6)",
        "delete from t where id = 6",
    ],
    "truncate": ["truncate t", "insert into t (id, v) values (6, 6), (7, 7)"],
    "renamed": ["alter table t rename column v to w", "update t set w = 3 where id % 2 = 1"],
    "renamed, with what is pending": [
        "update t set doc = jsonb_set(doc, '{a,x}', '8')",
        "alter table t rename column doc to content",
        "update t set content = jsonb_set(content, '{a,y}', '8') where id % 2 = 1",
    ],
    "added": ["alter table t add column n int default 5", "update t set n = 6 where id % 2 = 0"],
    "dropped": ["alter table t drop column v", "alter table t add column v text default 'a'"],
    "a volatile default": ["alter table t add column token uuid default gen_random_uuid()"],
    "using": [
        "alter table t alter column v type int using v * 100", "update t set v = 1 where id = 2",
    ],
    "digits": [
        "alter table t add column n numeric", "update t set n = 1.0", "update t set n = 1.00",
    ],
}  # fmt: skip


@pytest.mark.parametrize("before", [0, 4])
def test_what_the_triggers_saw_agrees(db: Conn, before: int, form: str) -> None:
    for name, statements in ORDINARY.items():
        make(db, before, 10 - before)
        for statement in statements:
            db.execute(statement.encode())
            if form == "generic" and statement.startswith("alter"):
                # It does not follow DDL until it is told.
                db.execute("select pgaudit_wf.attach('t')")
        compared, found = compare(db)
        # The generic form does not notice that DDL gave rows other values.
        assert found == [] or (form == "generic" and name in ("using", "dropped")), name
        assert compared.rows == one(db, "select count(*) from t")[0]
        db.execute("drop table t")


ATTACKS = {
    "a value": (["update t set v = 99 where id = 7"], {("changed", "7", "/v", "7", "99")}),
    "to null": (
        ["update t set name = null where id = 7"], {("changed", "7", "/name", "n7", "None")},
    ),
    "from and to nothing": (
        ["update t set secret = null where id = 7"],
        {("changed", "7", "/secret", "[redacted]", "None")},
    ),
    "a row": (["delete from t where id = 7"], {("missing", "7", "", "", "None")}),
    "another row": (["insert into t (id) values (50)"], {("unknown", "50", "", "None", "")}),
    "a deleted row": (["insert into t (id) values (9)"], {("unknown", "9", "", "None", "")}),
    "a row that moved": (
        ["update t set v = 1 where id = 60"], {("changed", "60", "/v", "10", "1")},
    ),
    "a key": (
        ["update t set id = 70 where id = 7"],
        {("missing", "7", "", "", "None"), ("unknown", "70", "", "None", "")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("before", [0, 4])
def test_what_no_trigger_saw_is_named(db: Conn, before: int) -> None:
    whole = {"missing": 3, "unknown": 4}
    for name, (statements, expected) in ATTACKS.items():
        make(db, before, 10 - before)
        db.execute("delete from t where id = 9")
        db.execute("update t set id = 60 where id = 10")
        unseen(db, *statements)
        _, found = compare(db)
        assert {
            tuple("" if n == whole.get(str(f[0])) else value for n, value in enumerate(f))
            for f in names(found)
        } == expected, name
        db.execute("drop table t")


def test_of_a_row_older_than_the_attachment_what_was_written_since_is_known(db: Conn) -> None:
    make(db, 3, 0)
    db.execute("update t set v = 10, doc = jsonb_set(doc, '{a,x}', '5') where id = 1")
    db.execute("update t set doc = jsonb_set(doc, '{list,5}', '8') where id = 1")
    unseen(
        db,
        "update t set name = 'nobody knows' where id < 3",
        "update t set v = 11, doc = jsonb_set(doc, '{a,x}', '6') where id = 1",
        "delete from t where id = 3",
    )
    compared, found = compare(db)
    assert names(found) == {
        ("changed", "1", "/v", "10", "11"), ("changed", "1", "/doc/a/x", "5", "6"),
    }  # fmt: skip
    assert [f.column for f in found] == ["v", "doc"]
    assert (compared.rows, compared.unrecorded, compared.partial) == (2, 1, 1)


def test_a_key_that_is_no_number_is_unknown_only_where_the_table_was_empty(conn: Conn) -> None:
    conn.execute("create table t (id text primary key)")
    conn.execute("select pgaudit_wf.attach('t')")
    unseen(conn, "insert into t values ('a')")
    assert [f.kind for f in compare(conn)[1]] == ["unknown"]
    conn.execute("select pgaudit_wf.detach('t')")
    conn.execute("select pgaudit_wf.attach('t')")
    unseen(conn, "insert into t values ('b')")
    compared, found = compare(conn)
    assert (found, compared.unrecorded) == ([], 2)
    assert len(compared.off) == 1
    conn.execute("truncate t")
    unseen(conn, "insert into t values ('c')")
    assert [(f.kind, f.resource_id) for f in compare(conn)[1]] == [("unknown", "c")]


def test_what_was_overwritten_since_is_named(db: Conn) -> None:
    make(db)
    unseen(db, "update t set v = 99, doc = jsonb_set(doc, '{a,x}', '99') where id = 7")
    db.execute("update t set v = 7, doc = jsonb_set(doc, '{a,x}', '7') where id = 7")
    unseen(db, "update t set v = 98 where id = 8")
    db.execute("delete from t where id = 8")
    _, found = compare(db)
    assert names(found) == {
        ("overwritten", "7", "/v", "7", "99"), ("overwritten", "7", "/doc/a/x", "7", "99"),
        ("overwritten", "8", "/v", "8", "98"),
    }  # fmt: skip
    actions = [
        one(db, "select action from pgaudit_wf.security_audit_log where id = %s", [f.event_id])[0]
        for f in found
    ]
    assert sorted(actions) == ["t.deleted", "t.updated", "t.updated"]


def test_keys_of_several_columns_and_partitions(db: Conn) -> None:
    db.execute(
        "create table t (region text, n int, v numeric, primary key (region, n))"
        " partition by list (region)"
    )
    for region in ("north", "south"):
        db.execute(f"create table t_{region} partition of t for values in ('{region}')".encode())
    db.execute("select pgaudit_wf.attach('t')")
    db.execute(
        "insert into t select r, g, g / 2.0 from unnest(array['north', 'south']) as r,"
        " generate_series(1, 20) as g"
    )
    db.execute("update t set region = 'south', n = 100 where region = 'north' and n = 1")
    assert compare(db, size=7)[1] == []
    unseen(
        db,
        "update t set v = 0 where n = 100",
        "delete from t where region = 'north' and n = 5",
        "insert into t values ('north', 77, 1)",
    )
    compared, found = compare(db, size=7)
    assert {(f.kind, f.resource_id, f.column) for f in found} == {
        ("changed", '["south", 100]', "v"), ("missing", '["north", 5]', None),
        ("unknown", '["north", 77]', None),
    }  # fmt: skip
    assert (compared.rows, compared.ids) == (40, 41)
    compared, found = compare(db, start='["south", 1]')
    assert (compared.rows, len(found)) == (21, 2)


def test_rows_of_a_truncated_partition_are_gone_by_an_event(conn: Conn) -> None:
    conn.execute("create table t (id int primary key, v int) partition by range (id)")
    conn.execute("create table t_1 partition of t for values from (0) to (10)")
    conn.execute("create table t_2 partition of t for values from (10) to (20)")
    conn.execute("select pgaudit_wf.attach('t')")
    conn.execute("insert into t select g, g from generate_series(1, 19) as g")
    conn.execute("truncate t_1")
    compared, found = compare(conn)
    assert (found, compared.rows, compared.truncated) == ([], 10, 9)


def test_values_recorded_by_digest(db: Conn) -> None:
    db.execute("create table t (id int primary key, a text, b bytea, c jsonb, d int[])")
    db.execute("select pgaudit_wf.attach('t', max_value => 100, shallow => '{c}')")
    db.execute(
        "insert into t select g, repeat('é', 200), decode(repeat('00ff', 100), 'hex'),"
        " to_jsonb(array_fill(g, array[100])), array_fill(g, array[200])"
        " from generate_series(1, 8) as g"
    )
    assert compare(db)[1] == []
    unseen(
        db,
        "update t set a = repeat('è', 200) where id = 1",
        "update t set a = 'short' where id = 2",
        "update t set b = decode(repeat('01ff', 100), 'hex') where id = 3",
        "update t set c = to_jsonb(array_fill(0, array[100])) where id = 4",
        "update t set d = array_fill(0, array[200]) where id = 5",
    )
    expected = {("1", "a"), ("2", "a"), ("3", "b"), ("4", "c"), ("5", "d")}
    compared, found = compare(db)
    assert {(f.resource_id, f.column) for f in found} == expected
    # As they are too large no longer, they read in another way.
    db.execute("select pgaudit_wf.attach('t', max_value => 0)")
    compared, found = compare(db)
    assert {(f.resource_id, f.column) for f in found} == expected - {("5", "d")}
    assert compared.incomparable == 8
    # And the other way round.
    db.execute("update t set a = repeat('é', 300), d = array_fill(id, array[300]) where id > 6")
    db.execute("select pgaudit_wf.attach('t', max_value => 100)")
    unseen(db, "update t set a = repeat('è', 300) where id = 8")
    assert {(f.resource_id, f.column) for f in compare(db)[1]} == expected | {("8", "a")}


def test_what_an_erasure_masked_is_not_compared(db: Conn) -> None:
    db.execute("create table t (id int primary key, note text, v int)")
    db.execute("select pgaudit_wf.attach('t')")
    db.execute("select set_config('app.actor_id', 'ann', false)")
    db.execute("select set_config('app.actor_label', 'ann@example.com', false)")
    db.execute("insert into t values (1, 'by ann@example.com', 1), (2, 'by ann@example.com', 2)")
    db.execute("select pgaudit_wf.pseudonymise('ann')")
    unseen(db, "update t set note = 'by bob@example.com, with more' where id = 1")
    compared, found = compare(db)
    assert (found, compared.incomparable) == ([], 2)
    unseen(db, "update t set note = 'for ann@example.com', v = 5 where id = 1")
    assert {f.column for f in compare(db)[1]} == {"note", "v"}


def test_a_workflow_whose_graph_was_changed(app_conn: Conn) -> None:
    app_conn.execute(
        "insert into organization (id, name) values ('o', 'O');"
        "insert into workflow (id, org_id, name, nodes, edges)"
        " select gen_random_uuid(), 'o', g::text,"
        '   \'[{"id": "a", "type": "x", "data": {}}]\', \'[]\''
        " from generate_series(1, 3) as g"
    )
    assert compare(app_conn, "workflow")[1] == []
    # The canvas means nothing.
    app_conn.execute("update workflow set nodes = jsonb_set(nodes, '{0,position}', '{\"x\": 5}')")
    assert compare(app_conn, "workflow")[1] == []
    unseen(
        app_conn,
        "update workflow set nodes = jsonb_set(nodes, '{0,data,amount}', '5') where name = '2'",
        table="workflow",
    )
    [finding] = compare(app_conn, "workflow")[1]
    assert (finding.kind, finding.column) == ("changed", "content_hash")


def test_pruned_events_are_not_missed(conn: Conn) -> None:
    make(conn, 0, 3)
    conn.execute("update t set v = 20 where id = 2")
    conn.execute(
        "insert into pgaudit_wf.archive (partition_name, from_time, to_time, events, live_events,"
        " url, sha256, manifest, pruned_at)"
        " select 'old', '2000-01-01', max(occurred_at), 5, 0, 'u', repeat('0', 64), '{}',"
        "   now() + interval '9 years'"
        " from pgaudit_wf.security_audit_log where action = 't.created'"
    )
    unseen(
        conn,
        "update t set v = 5 where id < 3", "delete from t where id = 3",
        "insert into t (id) values (4)",
    )  # fmt: skip
    compared, found = compare(conn)
    assert names(found) == {("changed", "2", "/v", "20", "5")}
    assert compared.pruned_until is not None
    assert (compared.unrecorded, compared.partial) == (2, 1)


def test_tables_that_cannot_be_compared_say_why(conn: Conn, dsn: str) -> None:
    conn.execute("create table a (id int primary key); create table b (id int primary key)")
    conn.execute("create table c (id int)")
    conn.execute("select pgaudit_wf.attach('a', 'same'), pgaudit_wf.attach('b', 'same')")
    conn.execute("select pgaudit_wf.attach('c', id_columns => '{id}')")
    tables, _ = reconcile(conn)
    assert [table.table for table in tables] == ["public.a", "public.b", "public.c"]
    assert ['as "same"' in str(table.obstacle) for table in tables] == [True, True, False]
    assert "unique" in str(tables[2].obstacle)
    assert not any(table.agrees for table in tables)
    with pytest.raises(ReconcileError, match=r"public\.c cannot be compared"):
        reconcile(conn, "c")
    conn.execute("create table d (id int primary key)")
    with pytest.raises(NotAttachedError):
        reconcile(conn, "d")
    conn.execute("create role auditor login; grant pgaudit_wf_reader to auditor")
    with (
        psycopg.connect(dsn, user="auditor", autocommit=True) as reader,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        reconcile(reader, "a")


def test_an_interrupted_run_is_continued(conn: Conn, tmp_path: Path) -> None:
    make(conn, 0, 30)
    unseen(conn, "update t set v = 0 where id in (3, 27)", "delete from t where id = 5")
    state = tmp_path / "state"

    class InterruptedRunError(Exception):
        pass

    def interrupt(_: Compared, done: int) -> None:
        if done >= 20:
            raise InterruptedRunError

    found: list[Finding] = []
    with pytest.raises(InterruptedRunError):
        reconcile(conn, "t", state=state, found=found.append, progress=interrupt, size=10)
    assert [f.resource_id for f in found] == ["3"]
    with pytest.raises(ReconcileError, match="state of a run for t"):
        reconcile(conn, "x", state=state)
    with pytest.raises(InterruptedRunError):
        reconcile(conn, "t", state=state, found=found.append, progress=interrupt, size=10)
    [compared], kept = reconcile(conn, "t", state=state, found=found.append, size=10)
    assert [f.resource_id for f in found] == ["3", "27", "5"]
    assert [finding["resource_id"] for finding in kept] == ["3", "27", "5"]
    assert (compared.rows, compared.ids, compared.found) == (29, 30, 3)
    assert not state.exists()
    for text in ("{}", "\x00", "[1]", '{"format": "pgaudit-wf reconcile/1"}'):
        state.write_text(text)
        with pytest.raises(ReconcileError, match="is not the state of a run"):
            reconcile(conn, "t", state=state)


def test_the_command(conn: Conn, dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(conn)
    agreed = command(capsys, "reconcile", "-d", dsn)
    assert (agreed.code, agreed.err) == (0, "")
    assert "Every row that was compared is as the log says." in agreed.out
    unseen(
        conn, r"update t set name = E'\x1b[2J\nx' where id = 1", "update t set v = 0 where id > 8"
    )
    told = command(capsys, "reconcile", "t", "-d", dsn, "--limit", 2)
    assert told.code == 1
    assert r"CHANGED: public.t 1, column name: n1 in the log, \x1b[2J\nx in the row" in told.out
    assert "… and 1 more." in told.out
    assert "do NOT agree" in told.out
    result = command(capsys, "reconcile", "t", "-d", dsn, "--json")
    document = json.loads(result.out)
    assert (result.code, document["agree"], document["found"]) == (1, False, 3)
    assert document["findings"][1]["before"] == 9
    assert command(capsys, "reconcile", "t", "-d", dsn, "--from", 2, "--limit", 1).code == 1
    sampled = json.loads(command(capsys, "reconcile", "-d", dsn, "--sample", 4, "--json").out)
    assert (sampled["tables"][0]["rows"], sampled["tables"][0]["ids"]) == (4, 4)
    for wrong in (["--from", "1"], ["t", "--sample", "3", "--from", "1"], ["--sample", "0"]):
        assert command(capsys, "reconcile", "-d", dsn, *wrong).code == 2
    for wrong in (["t", "--from", "x"], ["t", "--from", "[1, 2]"], ["nothing"]):
        refused = command(capsys, "reconcile", "-d", dsn, *wrong)
        assert (refused.code, refused.err.count("\n")) == (1, 1)


def test_a_terminal_sees_the_progress(conn: Conn, dsn: str) -> None:
    make(conn)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from pgaudit_wf.cli import app; app()", "reconcile", "-d", dsn],
        stderr=theirs, stdout=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    printed = printed_on(ours)
    os.close(ours)
    assert process.wait() == 0
    assert b"public.t" in printed
