"""attach() on every kind of table, in both forms of the trigger; detach(); what each refuses."""

import decimal
import json
from collections.abc import Callable
from functools import partial
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import set_json_loads

from support.asserting import events, fails
from support.server import Conn

ODD_NAMES = [
    "Order Items",
    "MiXeD",
    'say "hi"',
    "o'clock",
    "50% off; --",
    "back\\slash",
    "a/b~c",
    "línea 表 🗂️",
    "select",
    "%I $1 %%",
    "two\nlines",
]


@pytest.fixture
def db(db: Conn) -> Conn:
    set_json_loads(partial(json.loads, parse_float=decimal.Decimal), db)
    return db


def changes(diff: list[dict[str, Any]]) -> dict[str, tuple[Any, Any]]:
    assert {op["op"] for op in diff} == {"replace"}
    return {op["path"]: (op["old"], op["value"]) for op in diff}


def test_the_form_is_what_the_server_allows(db: Conn, form: str) -> None:
    db.execute("create table thing (id int primary key)")
    db.execute("select pgaudit_wf.attach('thing')")
    assert db.execute("select form from pgaudit_wf.attached").fetchone() == (form,)


def test_defaults_are_what_a_person_expects(db: Conn) -> None:
    db.execute(
        "create table invoice (id int primary key, organization_id text, total int, updated_at int)"
    )
    db.execute("select pgaudit_wf.attach('invoice')")
    assert db.execute(
        "select target::text, resource_type, id_columns, org_column, label_column, ignore, redact, "
        "on_failure, function_name, rules, failures from pgaudit_wf.attached"
    ).fetchone() == (
        "invoice", "invoice", ["id"], "organization_id", None, ["updated_at"], [],
        "abort", "capture_invoice", 0, 0,
    )  # fmt: skip
    db.execute("insert into invoice values (1, 'o_1', 5, 1)")
    db.execute("update invoice set updated_at = 2")
    db.execute("update invoice set total = 6, updated_at = 3")
    db.execute("update invoice set total = 6")
    db.execute("delete from invoice")
    assert events(db, "action, resource_type, resource_id, org_id, outcome, diff") == [
        ("invoice.created", "invoice", "1", "o_1", "succeeded",
         [{"op": "add", "path": "", "value": {"id": 1, "organization_id": "o_1", "total": 5}}]),
        ("invoice.updated", "invoice", "1", "o_1", "succeeded",
         [{"op": "replace", "path": "/total", "old": 5, "value": 6}]),
        ("invoice.deleted", "invoice", "1", "o_1", "succeeded",
         [{"op": "remove", "path": "", "old": {"id": 1, "organization_id": "o_1", "total": 6}}]),
    ]  # fmt: skip


def test_own_id_and_org_columns_and_a_label(db: Conn) -> None:
    db.execute("create table bill (nr bigint, tenant uuid, title text)")
    db.execute(
        "select pgaudit_wf.attach('bill', resource_type => 'invoice', id_columns => '{nr}', "
        "org_column => 'tenant', label_column => 'title')"
    )
    tenant = "c0ffee00-0000-4000-8000-000000000001"
    with db.transaction():
        db.execute("set local app.org_id = 'another'; set local app.reason = 'because'")
        db.execute("insert into bill values (7, %s, 'Rent')", [tenant])
    db.execute("update bill set title = 'May rent'")
    assert events(db, "action, resource_id, org_id, metadata") == [
        ("invoice.created", "7", tenant, {"label": "Rent", "reason": "because"}),
        ("invoice.updated", "7", tenant, {"label": "May rent"}),
    ]


def test_a_table_without_org_takes_that_of_the_request(db: Conn) -> None:
    db.execute("create table note (id int primary key)")
    db.execute("select pgaudit_wf.attach('note')")
    with db.transaction():
        db.execute("set local app.org_id = 'o_9'; insert into note values (1)")
    db.execute("insert into note values (2)")
    assert events(db, "resource_id, org_id") == [("1", "o_9"), ("2", None)]


def test_a_null_org_is_not_replaced_by_that_of_the_request(db: Conn) -> None:
    db.execute("create table own_key (id int primary key, org_id text)")
    db.execute("select pgaudit_wf.attach('own_key')")
    with db.transaction():
        db.execute("set local app.org_id = 'o_9'; insert into own_key values (1, null)")
    assert events(db, "org_id") == [(None,)]


def test_composite_keys_are_json_arrays_and_changes_of_keys_are_linked(db: Conn) -> None:
    db.execute("create table seat (hall text, number int, taken bool, primary key (number, hall))")
    db.execute("select pgaudit_wf.attach('seat')")
    db.execute("insert into seat values ('a \"b\"', 1, false)")
    db.execute("update seat set hall = 'c'")
    db.execute("update seat set taken = true")
    assert events(db, "action, resource_id, metadata") == [
        ("seat.created", '[1, "a \\"b\\""]', {}),
        ("seat.updated", '[1, "c"]', {"previous_resource_id": '[1, "a \\"b\\""]'}),
        ("seat.updated", '[1, "c"]', {}),
    ]
    [row] = db.execute("select pgaudit_wf.row_as_of('seat', '[1,\"c\"]')").fetchone() or [None]
    assert row == {"hall": "c", "number": 1, "taken": True}


def test_a_key_may_become_null_where_the_table_lets_it(db: Conn) -> None:
    db.execute("create table loose (ref text, note text)")
    db.execute("select pgaudit_wf.attach('loose', id_columns => '{ref}')")
    db.execute("insert into loose values ('a', 'x')")
    db.execute("update loose set ref = null")
    db.execute("update loose set ref = 'b'")
    db.execute("delete from loose")
    assert events(db, "resource_id, metadata -> 'previous_resource_id'") == [
        ("a", None), (None, "a"), ("b", None), ("b", None),
    ]  # fmt: skip


@pytest.mark.parametrize("on_failure", ["abort", "warn"])
def test_odd_names(db: Conn, on_failure: str) -> None:
    for name in ODD_NAMES:
        seen = len(events(db, "action, resource_id, diff"))
        given = {
            "table": sql.SQL("{0}.{0}").format(sql.Identifier(name)),
            "schema": sql.Identifier(name),
            "column": sql.Identifier(name),
            "key": sql.Identifier(f"{name} id"),
            "name": sql.Literal(name),
            "target": sql.SQL("to_regclass(quote_ident({0}) || '.' || quote_ident({0}))").format(
                sql.Literal(name)
            ),
            "on_failure": sql.Literal(on_failure),
        }
        for statement in (
            "create schema {schema}",
            "create table {table} ({key} text primary key, {column} text, secret text)",
            "select pgaudit_wf.attach({target}, resource_type => {name}, label_column => {name}, "
            "redact => '{{secret}}', on_failure => {on_failure})",
            "insert into {table} values ({name}, 'one', 'x')",
            "update {table} set {column} = 'two'",
            "truncate {table}",
        ):
            db.execute(sql.SQL(statement).format(**given))
        pointer = "/" + name.replace("~", "~0").replace("/", "~1")
        row = {f"{name} id": name, name: "one", "secret": "[redacted]"}
        assert events(db, "action, resource_id, metadata -> 'label', diff")[seen:] == [
            (f"{name}.created", name, "one", [{"op": "add", "path": "", "value": row}]),
            (f"{name}.updated", name, "two",
             [{"op": "replace", "path": pointer, "old": "one", "value": "two"}]),
            (f"{name}.truncated", None, None, None),
        ]  # fmt: skip
        db.execute(sql.SQL("select pgaudit_wf.detach({target})").format(**given))
        db.execute(sql.SQL("insert into {table} values ('k', 'three', 'x')").format(**given))
        assert len(events(db, "action, resource_id, diff")) == seen + 3
    assert db.execute("select count(*) from pgaudit_wf.capture_failure").fetchone() == (0,)


def test_a_name_cannot_smuggle_code_into_the_trigger(db: Conn) -> None:
    name = "x\nbegin raise exception 'smuggled'; end\n--"
    db.execute(sql.SQL("create table {} (id int primary key)").format(sql.Identifier(name)))
    db.execute(
        "select pgaudit_wf.attach(to_regclass(quote_ident(%s)), resource_type => %s)", [name, name]
    )
    db.execute(sql.SQL("insert into {} values (1)").format(sql.Identifier(name)))
    assert events(db, "action, resource_id") == [(f"{name}.created", "1")]


def test_names_alike_in_their_first_characters_do_not_share_a_trigger(db: Conn) -> None:
    names = ["é" * 30 + end for end in ("a", "b", "cc")]
    names += ["x" * 62 + "1", "x" * 62 + "2", "🗂" * 15 + "a", "🗂" * 15 + "b"]
    for name in names:
        db.execute(sql.SQL("create table {} (id int primary key)").format(sql.Identifier(name)))
        db.execute("select pgaudit_wf.attach(to_regclass(quote_ident(%s)))", [name])
    for name in names:
        db.execute(sql.SQL("insert into {} values (1)").format(sql.Identifier(name)))
    assert events(db, "action") == [(f"{name}.created",) for name in names]
    functions = db.execute(
        "select count(distinct function_name), count(distinct p.oid) from pgaudit_wf.attached "
        "left join pg_proc as p on proname = function_name and pronargs = 0"
    ).fetchone()
    assert functions == (len(names), len(names))


def test_tables_whose_joined_names_are_equal(db: Conn) -> None:
    db.execute("create schema a; create schema a_b")
    for name in ("a.b_c", "a_b.c", "public.a_b_c"):
        db.execute(f"create table {name} (id int primary key)")
        db.execute("select pgaudit_wf.attach(%s::regclass, resource_type => %s)", [name, name])
    db.execute("insert into a.b_c values (1); insert into a_b.c values (2)")
    db.execute("insert into a_b_c values (3)")
    assert events(db, "resource_type, resource_id") == [
        ("a.b_c", "1"), ("a_b.c", "2"), ("public.a_b_c", "3"),
    ]  # fmt: skip


def test_long_keys_are_hashed_and_still_found(db: Conn) -> None:
    db.execute("create table page (url text primary key, hits int)")
    db.execute("select pgaudit_wf.attach('page')")
    # A value that does not compress would not fit the table's own index; the log's takes no chance.
    db.execute("insert into page values (repeat('u', 5000), 1)")
    db.execute("update page set hits = 2")
    [(first,), (second,)] = events(db, "resource_id")
    assert first == second
    assert first.startswith("sha256:")
    assert db.execute(
        "select pgaudit_wf.row_as_of('page', repeat('u', 5000)) -> 'hits'"
    ).fetchone() == (2,)


def test_partitioned_tables(db: Conn, form: str) -> None:
    db.execute(
        "create table reading (day date, id int, value int, secret text, primary key (day, id)) "
        "partition by range (day)"
    )
    db.execute(
        "create table reading_1 partition of reading for values from ('2026-01-01') "
        "to ('2026-02-01')"
    )
    db.execute("select pgaudit_wf.attach('reading', id_columns => '{id}', redact => '{secret}')")
    # One whose columns stand in another order, made elsewhere, and one with partitions of its own.
    db.execute(
        "create table reading_2 (secret text, value int, id int not null, day date not null)"
    )
    db.execute(
        "alter table reading attach partition reading_2 for values from ('2026-02-01') "
        "to ('2026-03-01')"
    )
    db.execute(
        "create table reading_3 partition of reading for values from ('2026-03-01') "
        "to ('2026-04-01') partition by list (id)"
    )
    db.execute("create table reading_3_7 partition of reading_3 for values in (7)")
    db.execute("insert into reading values ('2026-01-05', 1, 10, 's')")
    db.execute("insert into reading_2 (day, id, value, secret) values ('2026-02-05', 2, 20, 's')")
    db.execute("insert into reading_3_7 values ('2026-03-05', 7, 30, 's')")
    db.execute("update reading set value = value + 1")
    assert events(db, "action, resource_id") == [
        ("reading.created", "1"), ("reading.created", "2"), ("reading.created", "7"),
        ("reading.updated", "1"), ("reading.updated", "2"), ("reading.updated", "7"),
    ]  # fmt: skip
    assert [changes(diff) for (diff,) in events(db, "diff")[3:]] == [
        {"/value": (10, 11)}, {"/value": (20, 21)}, {"/value": (30, 31)},
    ]  # fmt: skip
    assert not db.execute(
        "select from pgaudit_wf.security_audit_log where diff::text like '%%\"s\"%%'"
    ).fetchall()
    if form == "compiled":
        assert (
            db.execute(
                "select * from pgaudit_wf.doctor() where subject like '%reading%'"
            ).fetchall()
            == []
        )
        db.execute("truncate reading_2")
        db.execute("truncate reading_3")
        assert [m["table"] for (m,) in events(db, "metadata")[6:]] == [
            "public.reading_2", "public.reading_3_7",
        ]  # fmt: skip

    # A partition that leaves is no longer recorded, and does not stand in the way of anything.
    count = len(events(db, "action, resource_id, diff"))
    db.execute("alter table reading detach partition reading_1")
    db.execute("update reading_1 set value = 0")
    db.execute("delete from reading_1")
    if form == "compiled":
        db.execute("truncate reading_1")
    assert len(events(db, "action, resource_id, diff")) == count
    db.execute("select pgaudit_wf.detach('reading')")
    db.execute("update reading set value = 5; truncate reading, reading_1")
    assert len(events(db, "action, resource_id, diff")) == count
    assert triggers(db) == []


def test_dropping_a_partition_or_its_parent(db: Conn, form: str) -> None:
    db.execute("create table p (id int primary key) partition by range (id)")
    for lower in (0, 10, 20):
        db.execute(
            sql.SQL("create table {} partition of p for values from ({}) to ({})").format(
                sql.Identifier(f"p{lower}"), lower, lower + 10
            )
        )
    db.execute("select pgaudit_wf.attach('p')")
    db.execute("drop table p0")
    db.execute("alter table p detach partition p10")
    db.execute("insert into p values (25)")
    db.execute("drop table p")
    if form == "compiled":
        assert db.execute("select from pgaudit_wf.attached").fetchall() == []
        db.execute("truncate p10")
    assert events(db, "action") == [("p.created",)]


def test_a_row_that_moves_between_partitions_keeps_its_story(db: Conn) -> None:
    db.execute("create table p (id int, region text, value int) partition by list (region)")
    db.execute("create table p_eu partition of p for values in ('eu')")
    db.execute("create table p_us partition of p for values in ('us')")
    db.execute("select pgaudit_wf.attach('p', id_columns => '{id}')")
    db.execute("insert into p values (1, 'eu', 5)")
    db.execute("update p set region = 'us'")
    # PostgreSQL itself shows a trigger a deletion and an insertion.
    assert events(db, "action") == [("p.created",), ("p.deleted",), ("p.created",)]
    assert db.execute("select pgaudit_wf.row_as_of('p', '1')").fetchone() == (
        {"id": 1, "region": "us", "value": 5},
    )


def triggers(conn: Conn) -> list[Any]:
    return conn.execute(
        "select tgrelid::regclass::text, tgname from pg_trigger where tgname like "
        "'pgaudit\\_wf\\_%'"
    ).fetchall()


def test_inherited_tables_follow_their_parent(db: Conn, form: str) -> None:
    db.execute("create table base (id int primary key, name text)")
    db.execute("create table child (extra text) inherits (base)")
    db.execute("select pgaudit_wf.attach('child', id_columns => '{id}')")
    db.execute("insert into child values (1, 'a', 'x')")
    db.execute("alter table base add column added int")
    db.execute("update child set added = 3")
    db.execute("alter table base rename column name to title")
    db.execute("update child set title = 'b'")
    db.execute("alter table base drop column title")
    db.execute("update child set added = 4")
    assert [changes(diff) for (diff,) in events(db, "diff")[1:]] == [
        {"/added": (None, 3)}, {"/title": ("a", "b")}, {"/added": (3, 4)},
    ]  # fmt: skip


def test_generated_columns(db: Conn) -> None:
    virtual = db.info.server_version >= 180000
    db.execute(
        "create table box (id int primary key, w int, h int, "
        "area int generated always as (w * h) stored)"
    )
    if virtual:
        db.execute("alter table box add column edge int generated always as (2 * (w + h)) virtual")
    db.execute("select pgaudit_wf.attach('box')")
    db.execute("insert into box values (1, 2, 3)")
    db.execute("update box set w = 4")
    [(inserted,), (updated,)] = events(db, "diff")
    assert inserted[0]["value"] == {"id": 1, "w": 2, "h": 3, "area": 6}
    assert changes(updated) == {"/w": (2, 4), "/area": (6, 12)}
    if virtual:
        for role in ("id_columns => '{edge}'", "org_column => 'edge'", "label_column => 'edge'"):
            fails(
                db, "PA002", 'column "edge" of public.box is computed when read',
                f"select pgaudit_wf.attach('box', {role})",
            )  # fmt: skip


# Column type, then SQL for a first and a second value, then their JSON.
TYPES: dict[str, tuple[LiteralString, LiteralString, LiteralString, Any, Any]] = {
    "domain": ("positive", "1", "2", 1, 2),
    "domain over json": ("settings", "'{\"a\": 1}'", "'{\"a\": 2}'", {"a": 1}, {"a": 2}),
    "array": ("int[]", "'{1,2}'", "'{1,null}'", [1, 2], [1, None]),
    "array of two dimensions": ("text[][]", "'{{a},{b}}'", "'{}'", [["a"], ["b"]], []),
    "array of json": ("json[]", "array['1'::json]", "array['2'::json]", [1], [2]),
    "enum": ("mood", "'sad'", "'happy'", "sad", "happy"),
    "array of enum": ("mood[]", "'{sad}'", "'{sad,happy}'", ["sad"], ["sad", "happy"]),
    "bytea": ("bytea", "'\\x00ff'", "'\\x'", "\\x00ff", "\\x"),
    "range": ("int4range", "'[1,5)'", "'empty'", "[1,5)", "empty"),
    "range of numeric": ("numrange", "'[1.0,2]'", "'[1.00,2]'", "[1.0,2]", "[1.00,2]"),
    "range of timestamptz": (
        "tstzrange", "'[2026-01-01 00:00+00,)'", "'(,2026-01-01 00:00+00)'",
        '["2026-01-01 00:00:00+00",)', '(,"2026-01-01 00:00:00+00")',
    ),
    "multirange": ("int4multirange", "'{[1,2)}'", "'{[1,2),[5,6)}'", "{[1,2)}", "{[1,2),[5,6)}"),
    "jsonb": ("jsonb", "'{\"a\": [1]}'", "'[]'", {"a": [1]}, []),
    "json": ("json", "'{\"a\": 1}'", "'[true]'", {"a": 1}, [True]),
    "point": ("point", "'(1,2)'", "'(1,2.5)'", "(1,2)", "(1,2.5)"),
    "box of equal area": ("box", "'(0,0),(2,3)'", "'(0,0),(3,2)'", "(2,3),(0,0)", "(3,2),(0,0)"),
    "composite": (
        "address", "row('a', 1, '{}')", "row('a', 1, '[]')",
        {"street": "a", "number": 1, "extra": {}}, {"street": "a", "number": 1, "extra": []},
    ),
    "array of composite": (
        "address[]", "array[row('a', 1, '{}')::address]", "array[null::address]",
        [{"street": "a", "number": 1, "extra": {}}], [None],
    ),
    "interval that = calls the same": (
        "interval", "'30 days'", "'1 mon'", "30 days", "1 mon",
    ),
    "array of interval": ("interval[]", "'{1 day}'", "'{24:00:00}'", ["1 day"], ["24:00:00"]),
    "numeric": ("numeric", "1e30", "'NaN'", 10**30, "NaN"),
    "double precision": ("float8", "0.1", "'-Infinity'", decimal.Decimal("0.1"), "-Infinity"),
    "timestamptz": (
        "timestamptz", "'2026-05-01 12:00:00.5+02'", "'infinity'",
        "2026-05-01T10:00:00.5+00:00", "infinity",
    ),
    "timetz": ("timetz", "'12:00+02'", "'13:00+03'", "12:00:00+02", "13:00:00+03"),
    "date": ("date", "'2026-05-01'", "'0044-03-15 BC'", "2026-05-01", "0044-03-15 BC"),
    "money": ("money", "1234.5::numeric::money", "'-1'", "$1,234.50", "-$1.00"),
    "uuid": (
        "uuid", "'c0ffee00-0000-4000-8000-000000000001'", "null",
        "c0ffee00-0000-4000-8000-000000000001", None,
    ),
    "inet": ("inet", "'10.0.0.1/8'", "'10.0.0.1'", "10.0.0.1/8", "10.0.0.1"),
    "bit": ("varbit", "b'10'", "b'100'", "10", "100"),
    "tsvector": ("tsvector", "'a:1'", "'a:1A'", "'a':1", "'a':1A"),
    "tsquery": ("tsquery", "'a & b'", "'a | b'", "'a' & 'b'", "'a' | 'b'"),
    "jsonpath": ("jsonpath", "'$.a'", "'$.b'", '$."a"', '$."b"'),
    "regclass": ("regclass", "'pg_class'", "'public.thing'", "pg_class", "public.thing"),
    "internal char": ('"char"', "'a'", "'b'", "a", "b"),
    "text": ("text", "'line\nbreak'", "'\\ \" / ~ % 😀'", "line\nbreak", '\\ " / ~ % 😀'),
    "long text": ("text", "repeat('x', 100000)", "'short'", "x" * 100000, "short"),
}  # fmt: skip


def test_types(db: Conn) -> None:
    db.execute("create domain positive as int check (value > 0)")
    db.execute("create domain settings as json")
    db.execute("create type mood as enum ('sad', 'happy')")
    db.execute("create type address as (street text, number int, extra json)")
    db.execute("create table thing (id int primary key)")
    for kind, (column_type, first, second, first_json, second_json) in TYPES.items():
        seen = len(events(db, "id"))
        table = sql.Identifier(kind)
        for statement in (
            "create table {table} (id int primary key, other int, value {type})",
            "select pgaudit_wf.attach(quote_ident({kind})::regclass, shallow => '{{value}}')",
            "insert into {table} values (1, 0, {first})",
            "update {table} set other = 1",
            "update {table} set value = {second}",
            "update {table} set value = value",
            "update {table} set value = {first}",
            "update {table} set value = null",
            "update {table} set value = null",
        ):
            db.execute(
                sql.SQL(statement).format(
                    table=table, kind=sql.Literal(kind), type=sql.SQL(column_type),
                    first=sql.SQL(first), second=sql.SQL(second),
                )
            )  # fmt: skip
        [inserted, touched, *updated] = [diff for (diff,) in events(db, "diff")[seen:]]
        assert inserted[0]["value"] == {"id": 1, "other": 0, "value": first_json}, kind
        assert changes(touched) == {"/other": (0, 1)}, kind
        assert [changes(diff) for diff in updated] == [
            {"/value": (first_json, second_json)},
            {"/value": (second_json, first_json)},
            {"/value": (first_json, None)},
        ], kind


def test_xml(db: Conn) -> None:
    try:
        db.execute("select xmlparse(content '<a/>')")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server is built without libxml")
    db.execute("create table doc (id int primary key, body xml, bodies xml[])")
    db.execute("select pgaudit_wf.attach('doc')")
    db.execute("insert into doc values (1, '<a/>', array['<a/>'::xml])")
    db.execute("update doc set body = '<b/>'")
    db.execute("update doc set bodies = array['<b/>'::xml]")
    assert [changes(diff) for (diff,) in events(db, "diff")[1:]] == [
        {"/body": ("<a/>", "<b/>")}, {"/bodies": (["<a/>"], ["<b/>"])},
    ]  # fmt: skip


def test_text_that_a_collation_calls_equal(db: Conn) -> None:
    try:
        db.execute(
            "create collation blind (provider = icu, locale = 'und-u-ks-level2', "
            "deterministic = false)"
        )
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server is built without ICU")
    db.execute("create table person (id int primary key, email text collate blind)")
    db.execute("select pgaudit_wf.attach('person')")
    db.execute("insert into person values (1, 'Ann@example.com')")
    db.execute("update person set email = 'ann@example.com'")
    assert changes(events(db, "diff")[1][0]) == {"/email": ("Ann@example.com", "ann@example.com")}


def test_json_that_jsonb_cannot_hold_does_not_make_writes_fail(db: Conn) -> None:
    db.execute("create table raw (id int primary key, body json, n int)")
    db.execute("select pgaudit_wf.attach('raw')")
    hostile = '{"a": "\\u0000"}'
    db.execute("insert into raw values (1, %s::json, 1)", [hostile])
    db.execute("update raw set n = 2")
    db.execute("update raw set body = '1'")
    [(inserted,), (touched,), (updated,)] = events(db, "diff")
    assert inserted[0]["value"] == {"id": 1, "body": hostile, "n": 1}
    assert changes(touched) == {"/n": (1, 2)}
    assert changes(updated) == {"/body": (hostile, 1)}


def test_more_columns_than_a_function_has_arguments(db: Conn) -> None:
    names = [f"c{number}" for number in range(300)]
    db.execute(
        sql.SQL("create table wide (id int primary key, {})").format(
            sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(name)) for name in names)
        )
    )
    db.execute("select pgaudit_wf.attach('wide', redact => %s)", [names[:120]])
    db.execute("insert into wide (id, c0, c299) values (1, 'hidden', 'shown')")
    db.execute(
        sql.SQL("update wide set {}").format(
            sql.SQL(", ").join(sql.SQL("{} = 'new'").format(sql.Identifier(n)) for n in names)
        )
    )
    [(inserted,), (updated,)] = events(db, "diff")
    row = inserted[0]["value"]
    assert len(row) == 301
    assert (row["c0"], row["c1"], row["c299"]) == ("[redacted]", None, "shown")
    changed = changes(updated)
    assert len(changed) == 300
    assert changed["/c0"] == ("[redacted]", "[redacted]")
    assert changed["/c119"] == (None, "[redacted]")
    assert changed["/c299"] == ("shown", "new")


def test_ignored_and_redacted_columns(db: Conn, secret: Callable[[], str]) -> None:
    db.execute("create table login (id int primary key, token text, codes text[], seen_at date)")
    db.execute(
        "select pgaudit_wf.attach('login', ignore => '{seen_at}', redact => '{token,codes}')"
    )
    db.execute("insert into login values (1, %s, array[%s], '2026-01-01')", [secret(), secret()])
    db.execute("update login set seen_at = '2026-01-02'")
    db.execute("update login set token = %s, seen_at = '2026-01-03'", [secret()])
    db.execute("update login set codes = null")
    db.execute("delete from login")
    [(created,), (rotated,), (cleared,), (deleted,)] = events(db, "diff")
    assert created[0]["value"] == {"id": 1, "token": "[redacted]", "codes": "[redacted]"}
    assert changes(rotated) == {"/token": ("[redacted]", "[redacted]")}
    assert changes(cleared) == {"/codes": ("[redacted]", None)}
    assert deleted[0]["old"] == {"id": 1, "token": "[redacted]", "codes": None}


def test_rules_name_the_action(db: Conn) -> None:
    db.execute("create table bill (id int primary key, total int, paid_at date)")
    db.execute("select pgaudit_wf.attach('bill', resource_type => 'invoice')")
    db.execute(
        "insert into pgaudit_wf.action_rule (resource_type, op, condition, action, "
        "position) values "
        "('invoice', 'update', 'old.paid_at is null and new.paid_at is not null -- paid', "
        "'invoice.paid', 10), "
        "('invoice', 'update', e'new.total > old.total\\nand true', 'invoice.raised', 20), "
        "('invoice', 'insert', 'new.total = 0', 'invoice.drafted', 10), "
        "('invoice', 'delete', 'old.paid_at is not null', 'invoice.purged', 10)"
    )
    db.execute("insert into bill values (1, 0), (2, 5)")
    db.execute("update bill set total = 7 where id = 1")
    db.execute("update bill set total = 8, paid_at = now() where id = 1")
    db.execute("update bill set total = 1 where id = 1")
    db.execute("delete from bill where id = 1")
    db.execute("delete from bill")
    assert events(db, "action, resource_id") == [
        ("invoice.drafted", "1"), ("invoice.created", "2"), ("invoice.raised", "1"),
        ("invoice.paid", "1"), ("invoice.updated", "1"), ("invoice.purged", "1"),
        ("invoice.deleted", "2"),
    ]  # fmt: skip
    # A rule takes effect at once, changed or deleted too; the first by position wins.
    db.execute("delete from pgaudit_wf.action_rule where action = 'invoice.drafted'")
    db.execute(
        "update pgaudit_wf.action_rule set action = 'invoice.settled', condition = null "
        "where action = 'invoice.paid'"
    )
    db.execute("insert into bill values (3, 0)")
    db.execute("update bill set total = 9")
    assert events(db, "action")[7:] == [("invoice.created",), ("invoice.settled",)]


def test_a_rule_that_does_not_compile_is_refused_with_its_text(db: Conn) -> None:
    db.execute("create table bill (id int primary key, total int)")
    db.execute("select pgaudit_wf.attach('bill')")
    for op, condition in [
        ("update", "new.amount > 1"),
        ("update", "new.total"),
        ("insert", "old.total = 1"),
        ("delete", "new.total = 1"),
        ("update", "true) or (true"),
        ("update", "public.nothing(new.total)"),
    ]:
        with pytest.raises(psycopg.Error) as caught:
            db.execute(
                "insert into pgaudit_wf.action_rule (resource_type, op, condition, action) "
                "values ('bill', %s, %s, 'bill.odd')", [op, condition],
            )  # fmt: skip
        assert caught.value.sqlstate == "PA003", condition
        assert "bill.odd" in str(caught.value.diag.message_primary)
        assert condition in str(caught.value.diag.message_detail)
    assert db.execute("select count(*) from pgaudit_wf.action_rule").fetchone() == (0,)
    db.execute("insert into bill values (1, 1)")
    db.execute("update bill set total = 2")
    assert events(db, "action") == [("bill.created",), ("bill.updated",)]


def test_attach_refuses_a_rule_and_leaves_the_old_triggers(db: Conn) -> None:
    db.execute("create table bill (id int primary key, total int)")
    db.execute("select pgaudit_wf.attach('bill')")
    db.execute(
        "insert into pgaudit_wf.action_rule (resource_type, op, condition, action) "
        "values ('invoice', 'update', 'new.amount > 1', 'invoice.big')"
    )
    fails(
        db, "PA003", "does not compile for public.bill",
        "select pgaudit_wf.attach('bill', resource_type => 'invoice')",
    )  # fmt: skip
    db.execute("insert into bill values (1, 1)")
    assert events(db, "action") == [("bill.created",)]


def break_the_log(conn: Conn) -> None:
    conn.execute(
        "alter table pgaudit_wf.security_audit_log add constraint broken check (id < 0) not valid"
    )


def test_on_failure_abort_lets_no_change_go_unrecorded(db: Conn) -> None:
    db.execute("create table thing (id int primary key)")
    db.execute("select pgaudit_wf.attach('thing')")
    break_the_log(db)
    for statement in ("insert into thing values (1)", "truncate thing"):
        with pytest.raises(psycopg.errors.CheckViolation):
            db.execute(statement)
    assert db.execute("select count(*) from thing").fetchone() == (0,)


def test_on_failure_warn_lets_the_change_through_and_counts(db: Conn) -> None:
    db.execute('create table "o\'clock 100%" (id int primary key, v int)')
    db.execute("select pgaudit_wf.attach('\"o''clock 100%\"', 'thing', on_failure => 'warn')")
    db.execute('insert into "o\'clock 100%" values (1, 1)')
    assert events(db, "action") == [("thing.created",)]
    break_the_log(db)
    notices: list[str] = []
    db.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    db.execute('update "o\'clock 100%" set v = 2')
    db.execute('truncate "o\'clock 100%"')
    assert notices == [
        f'{op} of public."o\'clock 100%" went through unrecorded (SQLSTATE 23514)'
        for op in ("UPDATE", "TRUNCATE")
    ]
    assert db.execute(
        "select op, sqlstate from pgaudit_wf.capture_failure order by id"
    ).fetchall() == [("UPDATE", "23514"), ("TRUNCATE", "23514")]
    assert db.execute("select failures from pgaudit_wf.attached").fetchone() == (2,)
    [(severity, problem)] = db.execute(
        "select severity, problem from pgaudit_wf.doctor() where problem like '%unrecorded%'"
    ).fetchall()
    assert severity == "warning"
    assert problem.startswith("2 changes")


def test_attaching_again_changes_what_is_named_and_keeps_the_rest(db: Conn) -> None:
    db.execute(
        "create table thing (id int primary key, code text, org text, title text, a int, b int)"
    )
    db.execute(
        "select pgaudit_wf.attach('thing', 'gadget', '{code}', 'org', 'title', '{a}', "
        "'{b}', 'warn')"
    )
    state = (
        "select resource_type, id_columns, org_column, label_column, ignore, redact, on_failure "
    )
    state += "from pgaudit_wf.attached"
    first = ("gadget", ["code"], "org", "title", ["a"], ["b"], "warn")
    assert db.execute(state).fetchone() == first
    db.execute("select pgaudit_wf.attach('thing')")
    assert db.execute(state).fetchone() == first
    db.execute("select pgaudit_wf.attach('thing', ignore => '{}', on_failure => 'abort')")
    db.execute("select pgaudit_wf.attach('thing', org_column => '', label_column => '')")
    assert db.execute(state).fetchone() == (
        "gadget", ["code"], None, None, [], ["b"], "abort",
    )  # fmt: skip
    db.execute("insert into thing values (1, 'c', 'o', 't', 2, 3)")
    [(resource_id, org_id, metadata, diff)] = events(db, "resource_id, org_id, metadata, diff")
    assert (resource_id, org_id, metadata) == ("c", None, {})
    assert (diff[0]["value"]["a"], diff[0]["value"]["b"]) == (2, "[redacted]")
    assert db.execute(
        "select array_agg(change order by id) from pgaudit_wf.attachment_history"
    ).fetchone() == (["attached", "changed", "changed"],)


def test_attaching_again_enables_and_restores_triggers(db: Conn) -> None:
    db.execute("create table thing (id int primary key)")
    db.execute("select pgaudit_wf.attach('thing')")
    db.execute('alter table thing disable trigger "!pgaudit_wf_insert"')
    db.execute("drop trigger pgaudit_wf_truncate on thing")
    assert {row[0] for row in db.execute(
        "select problem from pgaudit_wf.doctor() where severity = 'error'"
    ).fetchall()} == {
        "the trigger !pgaudit_wf_insert is disabled", "the trigger pgaudit_wf_truncate is missing",
    }  # fmt: skip
    db.execute("select pgaudit_wf.attach('thing')")
    db.execute("insert into thing values (1)")
    db.execute("truncate thing")
    assert events(db, "action") == [("thing.created",), ("thing.truncated",)]
    assert db.execute("select from pgaudit_wf.doctor() where severity = 'error'").fetchall() == []


def test_detach_leaves_the_table_as_it_was(db: Conn) -> None:
    db.execute("create table thing (id int primary key)")
    db.execute("select pgaudit_wf.attach('thing')")
    db.execute("insert into thing values (1)")
    db.execute("select pgaudit_wf.detach('thing')")
    db.execute("insert into thing values (2)")
    db.execute("truncate thing")
    assert events(db, "resource_id") == [("1",)]
    assert triggers(db) == []
    assert db.execute("select from pgaudit_wf.attached").fetchall() == []
    assert db.execute("select to_regproc('pgaudit_wf.capture_thing')").fetchone() == (None,)
    db.execute("select pgaudit_wf.attach('thing')")
    db.execute("insert into thing values (3)")
    assert events(db, "resource_id") == [("1",), ("3",)]


def test_a_table_made_under_the_name_of_a_renamed_one(db: Conn) -> None:
    db.execute("create table thing (id int primary key)")
    db.execute("select pgaudit_wf.attach('thing')")
    db.execute("alter table thing rename to thing_old")
    db.execute("create table thing (id int primary key, extra int)")
    db.execute("select pgaudit_wf.attach('thing', 'new_thing')")
    db.execute("insert into thing_old values (1)")
    db.execute("insert into thing values (2)")
    assert events(db, "resource_type, resource_id") == [("thing", "1"), ("new_thing", "2")]


def test_writes_that_go_around_the_usual_road(db: Conn) -> None:
    db.execute("create table parent (id int primary key)")
    db.execute(
        "create table item (id int primary key, parent_id int references parent "
        "on delete cascade on update cascade, n int default 0)"
    )
    db.execute("select pgaudit_wf.attach('item')")
    db.execute("insert into parent values (1), (2)")
    with db.cursor() as cursor, cursor.copy("copy item (id, parent_id) from stdin") as copy:
        copy.write("1\t1\n2\t2\n")
    db.execute("insert into item values (1, 1) on conflict (id) do update set n = 1")
    db.execute("insert into item values (1, 1) on conflict (id) do nothing")
    db.execute(
        "merge into item using (values (1), (3)) as s (id) on item.id = s.id "
        "when matched then update set n = 2 when not matched then insert values (s.id, 1, 3)"
    )
    db.execute("update parent set id = 9 where id = 1")
    db.execute("delete from parent where id = 2")
    assert sorted(events(db, "action, resource_id")) == sorted([
        ("item.created", "1"), ("item.created", "2"), ("item.updated", "1"),
        ("item.updated", "1"), ("item.created", "3"), ("item.updated", "1"),
        ("item.updated", "3"), ("item.deleted", "2"),
    ])  # fmt: skip


def test_a_replica_session_is_recorded_too(conn: Conn) -> None:
    conn.execute("create table thing (id int primary key, v int)")
    conn.execute("select pgaudit_wf.attach('thing')")
    conn.execute("set session_replication_role = replica")
    conn.execute("insert into thing values (1, 1)")
    conn.execute("update thing set v = 2")
    conn.execute("delete from thing")
    conn.execute("truncate thing")
    assert events(conn, "action") == [
        ("thing.created",), ("thing.updated",), ("thing.deleted",), ("thing.truncated",),
    ]  # fmt: skip


REFUSALS: list[tuple[str, str, LiteralString]] = [
    ("PA004", "there is no such table", "select pgaudit_wf.attach(null)"),
    ("PA004", "there is no such table", "select pgaudit_wf.attach(0::oid::regclass)"),
    ("42P01", 'relation "nothing" does not exist', "select pgaudit_wf.attach('nothing')"),
    ("PA004", "public.a_view is not a table", "select pgaudit_wf.attach('a_view')"),
    ("PA004", "is a temporary table", "select pgaudit_wf.attach('a_temp')"),
    ("PA004", "belongs to the system", "select pgaudit_wf.attach('pgaudit_wf.action_rule')"),
    ("PA004", "belongs to the system", "select pgaudit_wf.attach('pg_class')"),
    ("PA002", "public.keyless has no primary key", "select pgaudit_wf.attach('keyless')"),
    ("PA002", 'no column "nr", named in id_columns',
     "select pgaudit_wf.attach('thing', id_columns => '{id,nr}')"),
    ("PA002", 'no column "ORG", named in org_column',
     "select pgaudit_wf.attach('thing', org_column => 'ORG')"),
    ("PA002", 'no column "nope", named in label_column',
     "select pgaudit_wf.attach('thing', label_column => 'nope')"),
    ("PA002", 'no column "seen", named in ignore',
     "select pgaudit_wf.attach('thing', ignore => '{seen}')"),
    ("PA002", 'no column "key", named in redact',
     "select pgaudit_wf.attach('thing', redact => '{key}')"),
    ("PA002", 'column "id" of public.thing is both in ignore and in id_columns',
     "select pgaudit_wf.attach('thing', ignore => '{id}')"),
    ("PA002", 'column "id" of public.thing is both in redact and in id_columns',
     "select pgaudit_wf.attach('thing', redact => '{id}')"),
    ("PA002", 'column "v" of public.thing is both in redact and in label_column',
     "select pgaudit_wf.attach('thing', redact => '{v}', label_column => 'v')"),
    ("PA008", 'on_failure is "ignore": it must be abort or warn',
     "select pgaudit_wf.attach('thing', on_failure => 'ignore')"),
    ("PA005", "public.thing is not attached", "select pgaudit_wf.detach('thing')"),
    ("PA004", "public.part_1 is already recorded through public.part",
     "select pgaudit_wf.attach('part_1')"),
    ("PA005", "public.thing was never attached", "select pgaudit_wf.row_as_of('thing', '1')"),
]  # fmt: skip


def test_attach_says_why_it_refuses(db: Conn) -> None:
    db.execute("create table thing (id int primary key, v int)")
    db.execute("create table keyless (v int)")
    db.execute("create view a_view as select 1 as id")
    db.execute("create temporary table a_temp (id int primary key)")
    db.execute("create table part (id int primary key) partition by range (id)")
    db.execute("create table part_1 partition of part for values from (1) to (2)")
    db.execute("select pgaudit_wf.attach('part')")
    for sqlstate, message, query in REFUSALS:
        fails(db, sqlstate, message, query)
    assert db.execute("select target::text from pgaudit_wf.attached").fetchall() == [("part",)]


def test_a_table_of_somebody_else_is_refused(owner_dsn: str, dsn: str) -> None:
    with psycopg.connect(owner_dsn, autocommit=True) as owner:
        database = owner.info.dbname
    with psycopg.connect(dsn, dbname=database, autocommit=True) as superuser:
        superuser.execute("create table foreign_one (id int primary key)")
    with psycopg.connect(owner_dsn, autocommit=True) as owner:
        fails(
            owner, "PA004", "wf_owner must own public.foreign_one to attach it",
            "select pgaudit_wf.attach('foreign_one')",
        )  # fmt: skip


def test_rows_written_while_attaching_are_recorded_or_come_before(db: Conn, form: str) -> None:
    db.execute("create table thing (id int primary key)")
    with psycopg.connect(db.info.dsn) as writer:
        writer.execute("insert into thing values (1)")
        with psycopg.connect(db.info.dsn, autocommit=True) as attacher:
            attacher.execute("set lock_timeout = '100ms'")
            # It waits for whoever writes, so no row of theirs escapes unseen.
            with pytest.raises(psycopg.errors.LockNotAvailable):
                attacher.execute("select pgaudit_wf.attach('thing')")
            writer.rollback()
            attacher.execute("select pgaudit_wf.attach('thing')")
        writer.execute("insert into thing values (2)")
    assert events(db, "resource_id") == [("2",)]


@pytest.mark.parametrize("hidden", ["ignore", "redact"])
def test_hidden_columns_are_not_read(db: Conn, hidden: str) -> None:
    """A file of 140 MB is too long for jsonb as text, and no reason to refuse the write."""
    db.execute("create table upload (id int primary key, name text, body bytea)")
    db.execute(f"select pgaudit_wf.attach('upload', {hidden} => '{{body}}')")
    db.execute("insert into upload select 1, 'a', decode(repeat('00ff', 70000000), 'hex')")
    db.execute("update upload set name = 'b'")
    db.execute("update upload set body = body || '\\x00'")
    db.execute("update upload set body = null")
    db.execute("delete from upload")
    recorded = events(db, "diff")
    if hidden == "ignore":
        assert [len(str(diff)) < 200 for (diff,) in recorded] == [True] * 3
        assert changes(recorded[1][0]) == {"/name": ("a", "b")}
    else:
        assert [changes(diff) for (diff,) in recorded[1:4]] == [
            {"/name": ("a", "b")},
            {"/body": ("[redacted]", "[redacted]")},
            {"/body": ("[redacted]", None)},
        ]
        assert recorded[0][0][0]["value"]["body"] == "[redacted]"
        assert recorded[4][0][0]["old"]["body"] is None


def as_it_is(db: Conn, table: LiteralString, key: str) -> tuple[Any, Any]:
    row = db.execute(
        sql.SQL(
            "select (select to_jsonb(t) from {} as t where id::text = %s),"
            " pgaudit_wf.row_as_of({}, %s)"
        ).format(sql.Identifier(table), sql.Literal(table)),
        [key, key],
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@pytest.mark.parametrize("name", ["fill_slug", "AAA", "0_first", "_a", "zzz", "#x"])
def test_a_trigger_that_changes_the_row_again_comes_second(db: Conn, name: str) -> None:
    db.execute("create table page (id int primary key, title text, slug text)")
    db.execute(
        "create function page_slug() returns trigger language plpgsql as $$ begin"
        " if tg_op = 'INSERT' or new.title is distinct from old.title then"
        " update public.page set slug = new.id || '-' || new.title where id = new.id; end if;"
        " return null; end $$"
    )
    db.execute(
        sql.SQL(
            "create trigger {} after insert or update on page"
            " for each row execute function page_slug()"
        ).format(sql.Identifier(name))
    )
    db.execute("select pgaudit_wf.attach('page')")
    db.execute("insert into page (id, title) values (1, 'hello')")
    db.execute("update page set title = 'bye'")
    assert [
        (action, [op["path"] for op in diff]) for action, diff in events(db, "action, diff")
    ] == [
        ("page.created", [""]),
        ("page.updated", ["/slug"]),
        ("page.updated", ["/title"]),
        ("page.updated", ["/slug"]),
    ]
    now, told = as_it_is(db, "page", "1")
    assert now == told == {"id": 1, "title": "bye", "slug": "1-bye"}


def test_a_trigger_that_deletes_what_it_saw_inserted_comes_second(db: Conn) -> None:
    db.execute("create table job (id int primary key, done boolean)")
    db.execute(
        "create function job_gone() returns trigger language plpgsql as $$ begin"
        " delete from public.job where id = new.id and new.done; return null; end $$"
    )
    db.execute(
        "create trigger drop_done after insert or update on job"
        " for each row execute function job_gone()"
    )
    db.execute("select pgaudit_wf.attach('job')")
    db.execute("insert into job values (1, true)")
    db.execute("insert into job values (2, false)")
    db.execute("update job set done = true")
    assert events(db, "action, resource_id") == [
        ("job.created", "1"), ("job.deleted", "1"), ("job.created", "2"),
        ("job.updated", "2"), ("job.deleted", "2"),
    ]  # fmt: skip
    for key in ("1", "2"):
        assert as_it_is(db, "job", key) == (None, None)


def test_a_cascade_to_the_same_table_comes_second(db: Conn) -> None:
    db.execute(
        "create table emp ("
        "id int primary key, boss int references emp on update cascade, name text)"
    )
    db.execute("select pgaudit_wf.attach('emp')")
    db.execute("insert into emp values (1, 1, 'founder'), (2, 1, 'second')")
    db.execute("update emp set id = 10 where id = 1")
    for key in ("10", "2"):
        now, told = as_it_is(db, "emp", key)
        assert now == told is not None


@pytest.mark.parametrize("name", ["old", "new"])
def test_a_column_may_be_named_as_the_trigger_names_a_row(db: Conn, name: str) -> None:
    """Of such a table, `to_jsonb(new)` would be the column."""
    db.execute(f"create table t (id int primary key, {name} int)".encode())
    db.execute("select pgaudit_wf.attach('t')")
    db.execute("insert into t values (1, 7)")
    db.execute(f"update t set {name} = 8".encode())
    assert db.execute("select pgaudit_wf.row_as_of('t', '1')").fetchone() == ({"id": 1, name: 8},)
    db.execute("delete from t")
    assert events(db, "diff -> 0") == [
        ({"op": "add", "path": "", "value": {"id": 1, name: 7}},),
        ({"op": "replace", "path": f"/{name}", "old": 7, "value": 8},),
        ({"op": "remove", "path": "", "old": {"id": 1, name: 8}},),
    ]
