"""What changed within a json or jsonb column is recorded, in a diff that leads both ways."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from typing import Any

import jsonpatch
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb, set_json_loads

from support.patches import backwards
from support.server import Conn

loads = partial(json.loads, parse_float=Decimal)


def dumps(doc: object) -> str:
    """JSON with each number as it is written."""
    if isinstance(doc, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {dumps(v)}" for k, v in doc.items()) + "}"
    if isinstance(doc, list):
        return "[" + ", ".join(map(dumps, doc)) + "]"
    return str(doc) if isinstance(doc, Decimal) else json.dumps(doc)


def both_forms(conn: Conn, columns: str, **attach: object) -> None:
    """Attach t in the compiled form and g, which is like it, in the generic form."""
    conn.execute(f"create table t (id int primary key, {columns})".encode())
    conn.execute("create table g (like t including all)")
    given_ = "".join(f", {name} => %({name})s" for name in attach)
    conn.execute(f"select pgaudit_wf.attach('t'{given_})".encode(), attach)
    conn.execute("alter event trigger pgaudit_wf_after_ddl disable")
    conn.execute(f"select pgaudit_wf.attach('g'{given_})".encode(), attach)
    conn.execute("alter event trigger pgaudit_wf_after_ddl enable")
    assert conn.execute("select form from pgaudit_wf.attached order by 1").fetchall() == [
        ("compiled",), ("generic",),
    ]  # fmt: skip


def run(conn: Conn, statement: str, values: dict[str, Any]) -> None:
    for table in ("t", "g"):
        conn.execute(statement.format(table=table).encode(), values)


def diffs(conn: Conn, key: object = 1) -> list[list[dict[str, Any]]]:
    """The diffs of the updates of a row, which both forms have recorded alike."""
    found: dict[str, list[list[dict[str, Any]]]] = {"t": [], "g": []}
    for table, recorded in found.items():
        for (diff,) in conn.execute(
            "select diff from pgaudit_wf.security_audit_log"
            " where resource_type = %s and resource_id = %s and action like '%%.updated'"
            " order by id",
            [table, str(key)],
        ):
            # Only the compiled form notices json that is written differently.
            told = [op for op in diff if "json_null" in op or not says_nothing(op)]
            recorded += [told] if told else []
    assert dumps(found["t"]) == dumps(found["g"])
    return found["t"]


def says_nothing(op: dict[str, Any]) -> bool:
    return op["op"] == "replace" and dumps(op["old"]) == dumps(op["value"])


def change(conn: Conn, before: str, after: str) -> list[dict[str, Any]]:
    """The diff from one document to another."""
    run(conn, "delete from {table}", {})
    run(conn, "insert into {table} (id, c) values (1, %(c)s)", {"c": before})
    run(conn, "update {table} set c = %(c)s", {"c": after})
    return diffs(conn)[-1]


def equal(conn: Conn, doc: object, text: str) -> bool:
    row = conn.execute("select %s::jsonb::text", [dumps(doc)]).fetchone()
    return row == (text,)


@pytest.fixture
def documents(conn: Conn) -> Conn:
    both_forms(conn, "c jsonb")
    return conn


PAD = "x" * 100
number = st.sampled_from(["0", "1", "1.0", "1.00", "-1.50", "1E+2", "100", "12345678901234567890"])
leaf = st.none() | st.booleans() | number.map(Decimal) | st.text("ab/~0é\n\"'", max_size=4)
key = st.text("ab/~01", max_size=3)
document = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(key, inner, max_size=4),
    max_leaves=15,
)


@st.composite
def edited(draw: st.DrawFn, doc: object) -> object:
    """The document with something changed somewhere in it."""
    if isinstance(doc, dict) and doc:
        name = draw(st.sampled_from(sorted(doc)))
        kind = draw(st.sampled_from(["within", "within", "remove", "add"]))
        if kind == "within":
            return doc | {name: draw(edited(doc[name]))}
        if kind == "add":
            return doc | {draw(key): draw(document)}
        return {k: v for k, v in doc.items() if k != name}
    if isinstance(doc, list) and doc:
        at = draw(st.integers(0, len(doc) - 1))
        kind = draw(st.sampled_from(["within", "within", "cut", "append", "insert"]))
        if kind == "within":
            return [*doc[:at], draw(edited(doc[at])), *doc[at + 1 :]]
        if kind == "append":
            return doc + draw(st.lists(document, min_size=1, max_size=3))
        return doc[:at] if kind == "cut" else [*doc[:at], draw(leaf), *doc[at:]]
    return draw(document)


@st.composite
def stories(draw: st.DrawFn) -> list[Any]:
    """The values that a column takes one after another, of which most are long enough to matter."""
    wrap = draw(st.sampled_from(["object", "array", "nothing"]))
    doc: object = draw(document)
    if wrap != "nothing":
        doc = {"pad": PAD, "doc": doc} if wrap == "object" else [PAD, doc]
    story = [doc]
    for _ in range(draw(st.integers(1, 5))):
        doc = draw(edited(doc) | document) if draw(st.integers(0, 9)) == 0 else draw(edited(doc))
        story.append(doc)
    return story


@pytest.fixture
def both(dsn: str) -> Iterator[Conn]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        set_json_loads(loads, conn)
        both_forms(conn, "c jsonb, j json")
        yield conn


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(story=stories())
@example(story=[{"p": PAD, "n": {"a": Decimal("1.0")}}, {"p": PAD, "n": {"a": Decimal("1.00")}}])
@example(story=[[PAD, 1, 2, 3, 4], [PAD, 1], [PAD, 1, 5, 6], [PAD, 1, 5, 6, [], {}]])
@example(story=[{"p": PAD, "": {"/": {"~": 1}}}, {"p": PAD, "": {"/": {"~": 2, "~1": 3}}}])
@example(story=[{"p": PAD, "a": []}, {"p": PAD, "a": {}}, {"p": PAD, "a": None}, {"p": PAD}])
@example(story=[{"p": PAD, "a": None}, {"p": PAD, "a": 1}, [PAD, "p"], PAD, None])
def test_diffs_lead_both_ways(both: Conn, story: list[Any]) -> None:
    row = both.execute("select coalesce(max(id), 0) + 1 from t").fetchone()
    row_id = row[0] if row else 0
    rows: list[str] = []
    moments: list[tuple[Any, str]] = []
    for number_, doc in enumerate(story):
        statement = "update {table} set c = %(v)s::json, j = %(v)s::json where id = %(id)s"
        if number_ == 0:
            statement = "insert into {table} values (%(id)s, %(v)s::json, %(v)s::json)"
        run(both, statement, {"id": row_id, "v": dumps(doc)})
        [(at, text)] = both.execute(
            "select clock_timestamp(), to_jsonb(r)::text from ("
            " select id, c, pgaudit_wf._json_value(j) as j from t where id = %s) as r",
            [row_id],
        ).fetchall()
        moments.append((at, text))
        if rows[-1:] != [text]:
            rows.append(text)

    recorded = diffs(both, row_id)
    assert len(recorded) == len(rows) - 1
    for diff, before, after in zip(recorded, rows, rows[1:], strict=False):
        # By anybody's implementation of RFC 6902, digit by digit.
        assert equal(both, jsonpatch.apply_patch(loads(before), diff), after)
        assert equal(both, jsonpatch.apply_patch(loads(after), backwards(diff)), before)
        [(forwards, back, size, whole)] = both.execute(
            "select pgaudit_wf._apply_diff(before, diff)::text,"
            " pgaudit_wf._revert_diff(after, diff)::text, pg_column_size(diff), pg_column_size(("
            "  select jsonb_agg(jsonb_build_object('op', 'replace', 'path', '/' || key,"
            "   'old', before -> key, 'value', after -> key))"
            "  from jsonb_object_keys(after) as key where before -> key is distinct from after ->"
            "   key or (before -> key)::text <> (after -> key)::text))"
            " from (select %s::jsonb as before, %s::jsonb as after, %s::jsonb as diff) as x",
            [before, after, dumps(diff)],
        ).fetchall()
        assert (forwards, back) == (after, before)
        assert size <= whole or any("json_null" in op for op in diff)
    for at, text in moments:
        for table in ("t", "g"):
            assert both.execute(
                "select pgaudit_wf.row_as_of(%s::text::regclass, %s, %s)::text",
                [table, str(row_id), at],
            ).fetchone() == (text,)


def test_what_the_operations_look_like(documents: Conn) -> None:
    settings_ = {"pad": PAD, "limits": {"max": 10, "list": [1, 2, 3]}, "a/b": {"~": 1, "": {}}}

    def to(**changes: object) -> list[dict[str, Any]]:
        return change(documents, json.dumps(settings_), json.dumps(settings_ | changes))

    assert to(limits={"max": 20, "list": [1, 2, 3]}) == [
        {"op": "replace", "path": "/c/limits/max", "old": 10, "value": 20}
    ]
    assert to(limits={"max": 10, "list": [1]}) == [
        {"op": "replace", "path": "/c/limits/list", "old": [1, 2, 3], "value": [1]}
    ]
    assert to(**{"a/b": {"~": 1, "": {"": None}}}) == [
        {"op": "add", "path": "/c/a~1b//", "value": None}
    ]
    long = [f"{n:030}" for n in range(10)]
    assert change(documents, json.dumps(long), json.dumps([*long[:7], "new"])) == [
        {"op": "replace", "path": "/c/7", "old": long[7], "value": "new"},
        {"op": "remove", "path": "/c/9", "old": long[9]},
        {"op": "remove", "path": "/c/8", "old": long[8]},
    ]
    assert change(documents, json.dumps(long), json.dumps([*long, 1, [2]])) == [
        {"op": "add", "path": "/c/10", "value": 1},
        {"op": "add", "path": "/c/11", "value": [2]},
    ]
    assert to(limits=[]) == [
        {"op": "replace", "path": "/c/limits", "old": settings_["limits"], "value": []}
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"a": PAD}, None),
        (None, {"a": PAD}),
        ({"a": PAD}, [PAD]),
        (list(range(100)), list(range(1, 101))),
    ],
)
def test_a_value_is_replaced_where_that_is_shorter(
    documents: Conn, before: object, after: object
) -> None:
    [op] = change(documents, json.dumps(before), json.dumps(after))
    kinds = [side for side, v in (("old", before), ("value", after)) if v is None]
    assert op == {"op": "replace", "path": "/c", "old": before, "value": after} | (
        {"json_null": kinds} if kinds else {}
    )


def test_sql_null_on_one_side_is_a_replacement(documents: Conn) -> None:
    run(documents, "insert into {table} values (1)", {})
    run(documents, "update {table} set c = %(c)s", {"c": Jsonb({"a": PAD})})
    run(documents, "update {table} set c = null", {})
    assert diffs(documents) == [
        [{"op": "replace", "path": "/c", "old": None, "value": {"a": PAD}}],
        [{"op": "replace", "path": "/c", "old": {"a": PAD}, "value": None}],
    ]


def test_a_document_of_10_kib_with_one_changed_key_takes_less_than_400_bytes(
    documents: Conn,
) -> None:
    doc = {
        f"key_{i}": {"id": f"{i:032x}", "limits": {"max": i, "tags": ["a", "b"]}}
        for i in range(110)
    }
    assert 10_000 < len(json.dumps(doc)) < 12_000
    run(documents, "insert into {table} values (1, %(c)s)", {"c": Jsonb(doc)})
    doc["key_7"]["limits"] = {"max": 77, "tags": ["a", "b"]}
    run(documents, "update {table} set c = %(c)s", {"c": Jsonb(doc)})
    assert documents.execute(
        "select max(pg_column_size(l.*)) < 400, max(pg_column_size(diff)) < 150"
        " from pgaudit_wf.security_audit_log as l where action like '%.updated'"
    ).fetchone() == (True, True)


def test_json_that_is_only_written_differently_is_replaced_as_a_whole(conn: Conn) -> None:
    conn.execute("create table t (id int primary key, j json)")
    conn.execute("select pgaudit_wf.attach('t')")
    text = f'{{"a": 1, "b": "{PAD}"}}'
    doc = json.loads(text)
    conn.execute("insert into t values (1, %s)", [text])
    for other in (f'{{"b": "{PAD}", "a": 1}}', f'{{ "a": 9, "b": "{PAD}", "a": 1}}'):
        conn.execute("update t set j = %s", [other])
        assert newest(conn) == [{"op": "replace", "path": "/j", "old": doc, "value": doc}]
    conn.execute("update t set j = %s", [f'{{"a": 2,  "b": "{PAD}"}}'])
    assert newest(conn) == [{"op": "replace", "path": "/j/a", "old": 1, "value": 2}]
    # What jsonb cannot hold.
    conn.execute("update t set j = %s", [f'{{"a": "\\u0000", "b": "{PAD}"}}'])
    assert [op["path"] for op in newest(conn)] == ["/j"]


def newest(conn: Conn) -> list[dict[str, Any]]:
    row = conn.execute(
        "select diff from pgaudit_wf.security_audit_log order by id desc limit 1"
    ).fetchone()
    return list(row[0]) if row else []


def test_bounds(documents: Conn) -> None:
    def paths(before: object, after: object) -> list[str]:
        return [op["path"] for op in change(documents, json.dumps(before), json.dumps(after))]

    # Members that differ.
    many = {f"key {i}": ["x" * 50, 0] for i in range(1001)}
    most = dict(list(many.items())[:499])
    assert len(paths(most, {k: ["x" * 50, 1] for k in most})) == 499
    assert paths(many, {k: ["x" * 50, 1] for k in many}) == ["/c"]
    # Levels.
    before, after = [PAD, 1], [PAD, 2]
    for _ in range(40):
        before, after = [before], [after]
    assert paths(before, after) == ["/c" + "/0" * 32]
    # Bytes.
    assert paths({"a": "x" * 1_048_000, "b": 1}, {"a": "x" * 1_048_000, "b": 2}) == ["/c/b"]
    assert paths({"a": "x" * 1_049_000, "b": 1}, {"a": "x" * 1_049_000, "b": 2}) == ["/c"]
    # The same, though compressed to less by the table.
    run(documents, "update {table} set c = jsonb_build_object('a', repeat('x', 2000000))", {})
    run(documents, "update {table} set c = c || '{{\"b\": 1}}'", {})
    assert [op["path"] for op in diffs(documents)[-1]] == ["/c"]


def test_time_is_bounded(documents: Conn) -> None:
    # Whatever is in them, two documents of a megabyte are compared in well under a second.
    chain = "[" * 40 + "0" + "]" * 40
    begun = time.monotonic()
    for doc in (f"[{','.join([chain] * 2000)}]", f"[{','.join('0' * 80000)}]"):
        [op] = change(documents, doc, doc.replace("0", "1"))
        assert op["path"] == "/c"
    assert time.monotonic() - begun < 20


def test_shallow_columns_are_replaced_as_a_whole(conn: Conn) -> None:
    both_forms(conn, "c jsonb, d json", shallow=["c"])
    old, new = {"a": 1, "b": PAD}, {"a": 2, "b": PAD}
    values = {"old": json.dumps(old), "new": json.dumps(new)}
    run(conn, "insert into {table} values (1, %(old)s::json, %(old)s::json)", values)
    run(conn, "update {table} set c = %(new)s::json, d = %(new)s::json", values)
    assert diffs(conn) == [
        [
            {"op": "replace", "path": "/c", "old": old, "value": new},
            {"op": "replace", "path": "/d/a", "old": 1, "value": 2},
        ]
    ]
    assert conn.execute(
        "select array_agg(distinct shallow::text) from pgaudit_wf.attached"
    ).fetchone() == (["{c}"],)
    # It follows a rename, and is a setting like the others.
    conn.execute("alter table t rename c to e")
    conn.execute("select pgaudit_wf.attach('t', label_column => 'id')")
    conn.execute("update t set e = %(old)s::json, d = %(old)s::json", values)
    assert [op["path"] for op in newest(conn)] == ["/e", "/d/a"]
    conn.execute("select pgaudit_wf.attach('t', shallow => '{}')")
    conn.execute("update t set e = %(new)s", values)
    assert [op["path"] for op in newest(conn)] == ["/e/a"]
    with pytest.raises(psycopg.Error, match='no column "nope", named in shallow') as refused:
        conn.execute("select pgaudit_wf.attach('t', shallow => '{nope}')")
    assert refused.value.sqlstate == "PA002"


def test_a_secret_stays_one(conn: Conn) -> None:
    both_forms(conn, "c jsonb", redact=["c"])
    run(conn, "insert into {table} values (1, %(c)s)", {"c": Jsonb({"a": 1, "b": PAD})})
    run(conn, "update {table} set c = %(c)s", {"c": Jsonb({"a": 2, "b": PAD})})
    told = [{"op": "replace", "path": "/c", "old": "[redacted]", "value": "[redacted]"}]
    assert conn.execute(
        "select array_agg(diff) from pgaudit_wf.security_audit_log where action like '%.updated'"
    ).fetchone() == ([told, told],)


def test_what_max_value_keeps_out_stays_out(conn: Conn) -> None:
    both_forms(conn, "c jsonb", max_value=1000)
    run(conn, "insert into {table} values (1, %(c)s)", {"c": Jsonb({"a": 1, "b": "x" * 900})})
    run(conn, "update {table} set c = %(c)s", {"c": Jsonb({"a": 2, "b": "x" * 900})})
    run(conn, "update {table} set c = %(c)s", {"c": Jsonb({"a": 2, "b": "x" * 990})})
    within, [beyond] = diffs(conn)
    assert within == [{"op": "replace", "path": "/c/a", "old": 1, "value": 2}]
    assert (beyond["path"], beyond["digest"]) == ("/c", ["value"])


@pytest.mark.parametrize("setting", ["ignore", "redact", "max_value"])
def test_a_row_whose_column_was_hidden_when_it_was_inserted(conn: Conn, setting: str) -> None:
    both_forms(conn, "c jsonb, n int", **{setting: 50 if setting == "max_value" else ["c"]})
    old, new = {"a": 1, "b": PAD}, {"a": 2, "b": PAD}
    run(conn, "insert into {table} values (1, %(c)s, 0)", {"c": Jsonb(old)})
    for table in ("t", "g"):
        cleared = "0" if setting == "max_value" else "'{}'"
        conn.execute(f"select pgaudit_wf.attach('{table}', {setting} => {cleared})".encode())
    run(conn, "update {table} set c = %(c)s", {"c": Jsonb(new)})
    for table in ("t", "g"):
        assert conn.execute(
            "select pgaudit_wf.row_as_of(%s::text::regclass, '1')", [table]
        ).fetchone() == ({"id": 1, "c": new, "n": 0},)
    # Without a row that is there now, nothing says what the operations started from.
    conn.execute("set local session_replication_role = replica")
    conn.execute("alter table t disable trigger all; delete from t")
    assert conn.execute("select pgaudit_wf.row_as_of('t', '1')").fetchone() == ({"id": 1, "n": 0},)


@pytest.mark.parametrize("attached", ["before the insert", "after the insert"])
def test_a_row_is_followed_through_renames(conn: Conn, attached: str) -> None:
    conn.execute("create table t (id int primary key, c jsonb)")
    if attached == "before the insert":
        conn.execute("select pgaudit_wf.attach('t')")
    conn.execute(
        "insert into t values (1, %s)", [Jsonb({"pad": PAD, "list": [1, 2, 3], "a": {"b": 1.0}})]
    )
    if attached == "after the insert":
        conn.execute("select pgaudit_wf.attach('t')")
    told = []
    for statement in (
        "update t set c = c",
        """update t set c = jsonb_set(c, '{a,b}', '1.00')""",
        """update t set c = jsonb_set(c, '{list}', '[1, 2]')""",
        "alter table t rename c to d",
        """update t set d = jsonb_set(d, '{list,2}', '[{}]') - 'a'""",
        """update t set id = 2, d = jsonb_set(d, '{list,2,0}', '{"x": null}')""",
        "delete from t",
    ):
        conn.execute(statement.encode())
        told += conn.execute(
            "select clock_timestamp(), (select coalesce(min(id), 2) from t)::text,"
            " (select to_jsonb(t)::text from t)"
        ).fetchall()
    assert conn.execute(
        "select array_agg(op ->> 'path') from pgaudit_wf.security_audit_log,"
        " jsonb_array_elements(diff) as op where action = 't.updated'"
    ).fetchone() == (
        ["/c/a/b", "/c/list/2", "/d/a", "/d/list/2", "/id", "/d/list/2/0/x"],
    )  # fmt: skip
    for at, row_id, text in told:
        assert conn.execute(
            "select pgaudit_wf.row_as_of('t', %s, %s)::text", [row_id, at]
        ).fetchone() == (text,)
