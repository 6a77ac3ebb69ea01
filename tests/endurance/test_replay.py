"""What the log says is enough: diffs replay in both directions, rows come back as they were."""

import json
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from typing import Any

import jsonpatch
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.types.json import set_json_loads

from support.patches import backwards
from support.server import Conn

FAST = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

text = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
json_leaf = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | text
json_value = st.recursive(
    json_leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)

# SQL type, and how to make values of it that psycopg hands over as text.
KINDS: dict[str, st.SearchStrategy[str | None]] = {
    "int": st.integers(-(2**31), 2**31 - 1).map(str),
    "numeric": st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
    "float8": st.floats().map(repr),
    "text": text,
    "bool": st.booleans().map(str),
    "bytea": st.binary(max_size=8).map(lambda value: "\\x" + value.hex()),
    "jsonb": json_value.map(json.dumps),
    "json": json_value.map(json.dumps),
    "timestamptz": st.datetimes().map(lambda at: f"{at.isoformat()}+00"),
    "interval": st.sampled_from(["1 mon", "30 days", "720:00:00", "-1 day", "00:00"]),
    "int4range": st.sampled_from(["empty", "[1,5)", "(,3]", "[1,4]", "(,)"]),
    "point": st.sampled_from(["(1,2)", "(2,1)", "(0.1,1e300)"]),
    "text[]": st.sampled_from(["{}", "{a}", '{a,"b c",null}', "{{a},{b}}"]),
}

# A NUL has no place in a name, and a name has 63 bytes at most.
column_name = st.text(
    st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=15
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, str], list[dict[str, str | None]]]:
    """Columns with their types, and the values that a row takes one after another."""
    names = draw(st.lists(column_name.filter(lambda n: n != "id"), max_size=5, unique=True))
    columns = {name: draw(st.sampled_from(sorted(KINDS))) for name in names}
    row = st.fixed_dictionaries({name: st.none() | KINDS[kind] for name, kind in columns.items()})
    return columns, draw(st.lists(row, min_size=1, max_size=5))


@pytest.fixture(params=["compiled", "generic"])
def db(request: pytest.FixtureRequest) -> Iterator[Conn]:
    dsn = request.getfixturevalue("dsn" if request.param == "compiled" else "owner_dsn")
    with psycopg.connect(dsn) as connection:
        set_json_loads(partial(json.loads, parse_float=Decimal), connection)
        yield connection
        connection.rollback()


def change(conn: Conn, statement: str, columns: dict[str, str], values: dict[str, Any]) -> None:
    parts = [
        (sql.Identifier(name), sql.SQL("{}::{}").format(sql.Literal(values[name]), sql.SQL(kind)))
        for name, kind in columns.items()
    ]
    conn.execute(
        sql.SQL(statement).format(
            names=sql.SQL("").join(sql.SQL(", {}").format(name) for name, _ in parts),
            values=sql.SQL("").join(sql.SQL(", {}").format(value) for _, value in parts),
            changes=sql.SQL("").join(
                sql.SQL(", {} = {}").format(name, value) for name, value in parts
            ),
        )
    )


@FAST
@given(table=tables())
@example(
    table=({"a/b~c": "int", "~1": "text"}, [{"a/b~c": "1", "~1": "x"}, {"a/b~c": None, "~1": ""}])
)
@example(table=({"r": "interval"}, [{"r": "1 mon"}, {"r": "30 days"}]))
@example(table=({"t": "bool"}, [{"t": None}, {"t": "true"}]))
def test_diffs_replay_forwards_and_backwards(
    db: Conn, table: tuple[dict[str, str], list[dict[str, str | None]]]
) -> None:
    columns, versions = table
    with db.transaction(force_rollback=True):
        db.execute("create table t (id int primary key)")
        for name, kind in columns.items():
            db.execute(
                sql.SQL("alter table t add {} {}").format(sql.Identifier(name), sql.SQL(kind))
            )
        db.execute("select pgaudit_wf.attach('t', ignore => '{}')")
        rows: list[Any] = []
        seen: list[Any] = []
        for number, values in enumerate(versions):
            if number == 0:
                change(db, "insert into t (id{names}) values (1{values})", columns, values)
            else:
                change(db, "update t set id = id{changes}", columns, values)
            rows += db.execute("select to_jsonb(t.*) from t").fetchone() or ()
            seen.append(
                db.execute(
                    "select diff from pgaudit_wf.security_audit_log where resource_type = 't' "
                    "order by id desc limit 1"
                ).fetchone()
            )
        diffs = [
            diff
            for (diff,) in db.execute(
                "select diff from pgaudit_wf.security_audit_log where resource_type = "
                "'t' order by id"
            ).fetchall()
        ]
        story = [row for row, before in zip(rows, [None, *rows], strict=False) if row != before]
        # What looks the same as JSON may have been another value, such as json's '1' and '1 '.
        replayed: list[Any] = [jsonpatch.apply_patch(None, diffs[0])]
        for diff in diffs[1:]:
            replayed.append(jsonpatch.apply_patch(replayed[-1], diff))
            assert jsonpatch.apply_patch(replayed[-1], backwards(diff)) == replayed[-2]
            # Only within a document is anything added or removed.
            assert {op["op"] for op in diff if op["path"].count("/") == 1} <= {"replace"}
        assert [
            r for r, before in zip(replayed, [None, *replayed], strict=False) if r != before
        ] == story
        assert db.execute("select pgaudit_wf.row_as_of('t', '1')").fetchone() == (rows[-1],)
        assert disagreements(db) == []
        with db.transaction(force_rollback=True):
            db.execute(
                "create temporary table was on commit drop as select to_jsonb(t.*) as r from t"
            )
            db.execute("alter table t disable trigger user")
            change(db, "update t set id = id{changes}", columns, versions[0])
            different = db.execute(
                "select n.key from t, was, jsonb_each(to_jsonb(t.*)) as n"
                " where n.value is distinct from was.r -> n.key"
            ).fetchall()
            assert {finding[2] for finding in disagreements(db)} == {
                pointer(name) for (name,) in different
            }
        db.execute("delete from t")
        assert disagreements(db) == []
        assert db.execute(
            "select diff #- '{0,json_null}' from pgaudit_wf.security_audit_log"
            " where action = 't.deleted'"
        ).fetchone() == ([{"op": "remove", "path": "", "old": rows[-1]}],)


def pointer(name: str) -> str:
    return "/" + name.replace("~", "~0").replace("/", "~1")


def disagreements(conn: Conn) -> list[Any]:
    """Where the table and the log do not agree."""
    return [
        finding
        for phase in ("rows", "gone")
        for finding in conn.execute(
            "select * from pgaudit_wf._reconcile('t', %s) where kind <> 'slice'", [phase]
        )
    ]


operation = st.one_of(
    st.tuples(st.just("insert"), st.integers(1, 3), st.integers(0, 9)),
    st.tuples(st.just("update"), st.integers(1, 3), st.integers(0, 9)),
    st.tuples(st.just("rekey"), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.just("delete"), st.integers(1, 3), st.just(0)),
    st.tuples(st.just("rename"), st.just(0), st.just(0)),
    st.tuples(st.just("add"), st.just(0), st.integers(0, 9)),
    st.tuples(st.just("truncate"), st.just(0), st.just(0)),
    st.tuples(st.just("rollback"), st.integers(1, 3), st.integers(0, 9)),
)


def play(
    conn: Conn, operations: list[tuple[str, int, int]], attach_after: int, alters: bool
) -> None:
    """Do what is asked of a table and check, at the end, each moment since it was attached."""
    conn.execute("create table t (id int primary key, v int)")
    column, added = "v", 0
    moments: list[tuple[Any, dict[int, Any]]] = []
    for number, (what, key, value) in enumerate([*operations, ("end", 0, 0)]):
        if number == min(attach_after, len(operations)):
            conn.execute("select pgaudit_wf.attach('t')")
        name = sql.Identifier(column)
        if what == "insert":
            conn.execute(
                sql.SQL("insert into t (id, {}) values ({}, {}) on conflict do nothing").format(
                    name, key, value
                )
            )
        elif what == "update":
            conn.execute(sql.SQL("update t set {} = {} where id = {}").format(name, value, key))
        elif what == "rekey":
            conn.execute(
                sql.SQL(
                    "update t set id = {1}, {2} = coalesce({2}, 0) + 1 where id = {0} "
                    "and not exists (select from t where id = {1})"
                ).format(key, value, name)
            )
        elif what == "delete":
            conn.execute(sql.SQL("delete from t where id = {}").format(key))
        elif what == "rename" and alters:
            new = f"{column}_"
            conn.execute(sql.SQL("alter table t rename {} to {}").format(name, sql.Identifier(new)))
            column = new
        elif what == "add" and alters:
            added += 1
            conn.execute(
                sql.SQL("alter table t add {} int default {}").format(
                    sql.Identifier(f"added_{added}"), value if value < 5 else sql.SQL("null")
                )
            )
        elif what == "truncate":
            conn.execute("truncate t")
        elif what == "rollback":
            with conn.transaction(force_rollback=True):
                conn.execute(sql.SQL("update t set {} = -1 where id = {}").format(name, key))
                conn.execute("truncate t")
        if number >= attach_after or what == "end":
            at = conn.execute("select clock_timestamp()").fetchone()
            rows = dict(conn.execute("select id, to_jsonb(t) from t").fetchall())
            moments.append((at[0] if at else None, rows))
    assert disagreements(conn) == []
    truncated = any(what == "truncate" for what, *_ in operations[attach_after:])
    for at, rows in moments:
        for key in (1, 2, 3):
            if truncated and attach_after > 0:
                continue  # what was emptied before it was ever recorded is not in the log
            assert conn.execute(
                "select pgaudit_wf.row_as_of('t', %s, %s)", [str(key), at]
            ).fetchone() == (rows.get(key),), (key, at)


@FAST
@given(operations=st.lists(operation, max_size=12), attach_after=st.integers(0, 4))
@example(
    operations=[("insert", 1, 5), ("rekey", 1, 2), ("insert", 1, 6), ("rekey", 2, 3),
                ("rekey", 1, 2), ("delete", 3, 0), ("rekey", 2, 3), ("rekey", 3, 1)],
    attach_after=1,
)  # fmt: skip
@example(
    operations=[("insert", 1, 5), ("truncate", 0, 0), ("insert", 1, 6), ("add", 0, 3),
                ("update", 1, 7), ("rename", 0, 0), ("update", 1, 8), ("delete", 1, 0),
                ("insert", 1, 9)],
    attach_after=0,
)  # fmt: skip
def test_rows_are_what_they_were_at_each_moment(
    dsn: str, operations: list[tuple[str, int, int]], attach_after: int
) -> None:
    with psycopg.connect(dsn) as conn:
        play(conn, operations, attach_after, alters=True)
        conn.rollback()


@settings(FAST, max_examples=12)
@given(operations=st.lists(operation, max_size=12), attach_after=st.integers(0, 4))
def test_rows_are_what_they_were_in_the_generic_form(
    owner_dsn: str, operations: list[tuple[str, int, int]], attach_after: int
) -> None:
    # Without event triggers nothing tells the log that a column was renamed.
    with psycopg.connect(owner_dsn) as conn:
        play(conn, operations, attach_after, alters=False)
        conn.rollback()


def test_a_row_between_commits_of_many_writers(conn: Conn, dsn: str) -> None:
    conn.execute("create table t (id int primary key, v int)")
    conn.execute("select pgaudit_wf.attach('t')")
    conn.execute("insert into t values (1, 0)")
    moments = []
    with psycopg.connect(dsn) as one, psycopg.connect(dsn) as two:
        for number in range(10):
            for writer in (one, two):
                writer.execute("update t set v = v + 1")
                writer.execute("savepoint s")
                writer.execute("update t set v = -1")
                writer.execute("rollback to s")
                (writer.rollback if number % 3 == 0 else writer.commit)()
                moments.append(
                    conn.execute("select clock_timestamp(), v from t").fetchone() or (None, None)
                )
    for at, value in moments:
        assert conn.execute(
            "select pgaudit_wf.row_as_of('t', '1', %s) -> 'v'", [at]
        ).fetchone() == (value,)
