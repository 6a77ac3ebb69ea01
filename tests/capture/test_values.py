"""Whatever a column holds, the write goes through, and the log has the value or says that not."""

from __future__ import annotations

import hashlib
import json
import random
import string
from typing import Any

import psycopg
import pytest

from support.server import Conn

# Literals of each type, the extremes among them; random ones are added for some.
BUILT_IN: dict[str, list[str]] = {
    "boolean": ["t", "f"],
    "smallint": ["-32768", "32767"],
    "bigint": ["-9223372036854775808", "9223372036854775807"],
    "numeric": ["NaN", "Infinity", "-Infinity", "1.00", "1e-16383", "1e131071", "-0.000"],
    "numeric(10,2)": ["12345678.90", "NaN"],
    "real": ["NaN", "-Infinity", "1e-45", "3.4028235e38", "0.1"],
    "double precision": ["NaN", "Infinity", "5e-324", "1.7976931348623157e308", "0.1"],
    "money": ["-92233720368547758.08", "12.34"],
    "text": ["", " ", '"\\/\b\f', "\u2028\U0001f600\x01", "null", "{}", "[redacted]", "é" * 5000],
    "varchar(10)": ["", "äöü"],
    "char(5)": ["a", ""],
    "name": ["n" * 63],
    '"char"': ["x", ""],
    "bytea": ["", "\\x00", "\\xff00"],
    "bit(3)": ["101"],
    "varbit": ["", "0", "1" * 1000],
    "date": ["-infinity", "4713-01-01 BC", "5874897-12-31", "0001-01-01"],
    "time": ["24:00:00", "00:00:00.000001"],
    "timetz": ["24:00:00-15:59:59", "00:00:00+15:59:59"],
    "timestamp": ["infinity", "4713-01-01 00:00:00 BC", "294276-12-31 23:59:59.999999"],
    "timestamptz": ["-infinity", "4713-11-24 00:00:00+00 BC", "2026-03-29 02:30:00+02"],
    "interval": ["-178000000 years", "1 mon -1 day 00:00:00.000001", "30 days", "1 mon"],
    "uuid": ["00000000-0000-0000-0000-000000000000"],
    "inet": ["::/0", "10.0.0.1/8", "10.0.0.1"],
    "cidr": ["::/0", "10.0.0.0/8"],
    "macaddr": ["00:00:00:00:00:00"],
    "macaddr8": ["ff:ff:ff:ff:ff:ff:ff:ff"],
    "point": ["(NaN,-0)", "(1e308,Infinity)"],
    "line": ["{1,-1,0}"],
    "lseg": ["[(0,0),(1,1)]"],
    "box": ["(1,1),(0,0)"],
    "path": ["[(0,0),(1,1)]", "((0,0),(1,1))"],
    "polygon": ["((0,0),(1,1),(1,0))"],
    "circle": ["<(0,0),0>"],
    "tsvector": ["", "'a':1A 'b''c':2,16383"],
    "tsquery": ["", "'a' & !'b' <-> 'c':*"],
    "pg_lsn": ["0/0", "FFFFFFFF/FFFFFFFF"],
    "pg_snapshot": ["10:20:10,14,15"],
    "xid8": ["18446744073709551615"],
    "tid": ["(0,1)"],
    "regclass": ["pg_class"],
    "regtype": ["integer"],
    "regprocedure": ["lower(text)"],
    "jsonpath": ['$."a"[*] ? (@ > 1)'],
    "json": [
        "null", ' {"b": 1, "a": 1, "a": 2} ', '"\\u0000"', '["\\ud800"]', "1e400", "1e999999999",
        "[" * 200 + "]" * 200, "1.10",
    ],
    "jsonb": ["null", '"null"', "{}", '{"": [1.10, null]}', "1e1000",
              '{"sha256": "0", "bytes": 1}'],
    "int4range": ["empty", "(,)", "[1,2)"],
    "numrange": ["[1.0,1.00]", "empty", "[1e131071,)"],
    "tstzrange": ["[2026-01-01 00:00+00,infinity)"],
    "int8multirange": ["{}", "{[1,2),[5,)}"],
    "datemultirange": ["{(,2026-01-01),[2026-02-01,2026-02-02)}"],
    "int2vector": ["1 2 3"],
    "oid": ["4294967295"],
}  # fmt: skip
EXTENSIONS: dict[str, dict[str, list[str]]] = {
    "citext": {"citext": ["", "Aé", "a" * 5000]},
    "hstore": {"hstore": ["", '"a"=>NULL, "b\\"c"=>"\\\\"']},
    "ltree": {"ltree": ["", "a.b_c.1"], "lquery": ["*.a|b.c*{1,2}"], "ltxtquery": ["a & !b"]},
    "cube": {"cube": ["(0)", "(1,2),(3,4)"]},
    "isn": {"ean13": ["978-0-11-000222-4"], "isbn": ["978-0-393-04002-9"]},
    "seg": {"seg": ["1.0 .. 2.00", "~5"]},
    "intarray": {"query_int": ["1&(2|!3)"]},
    "lo": {"lo": ["1"]},
    "vector": {"vector": ["[1,2.5,-3e-7]"]},
    "postgis": {
        "geometry": [
            "POINT(1 2)",
            "SRID=4326;POINT(0.12345678901234567 2)",
            "POINT EMPTY",
            "POINT(NaN 1)",
            "POINT ZM(1 2 3 4)",
            "POINT(-0 0)",
            "POINT(0 0)",
            "CIRCULARSTRING(0 0,1 1,2 0)",
            "TIN(((0 0 0,0 0 1,0 1 0,0 0 0)))",
            "GEOMETRYCOLLECTION(POINT(1 2),POINT(3 4))",
        ],
        "geography": ["POINT(1 2)", "POINT(0.12345678901234567 2)", "LINESTRING EMPTY"],
        "box3d": ["BOX3D(1 2 3,4 5 6)"],
        "box2d": ["BOX(1 2,3 4)"],
    },
}
# What the triggers pin, so that to_jsonb() here writes what it writes there.
PINNED = (
    "timezone = 'UTC'", "datestyle = 'ISO, MDY'", "intervalstyle = 'postgres'",
    "bytea_output = 'hex'", "lc_monetary = 'C'", "extra_float_digits = 1",
    "quote_all_identifiers = off",
)  # fmt: skip
# A value as the log should have it: as the server writes it in JSON, or its text where jsonb
# cannot hold that, or where a cast to json loses a part of the value.
EXPECTED = """
create function expected(value anyelement) returns jsonb language plpgsql as $$
declare
    printed constant text := format('%s', value);
begin
    if pg_typeof(value) = to_regtype('ext.geometry') then
        return to_jsonb(printed);
    elsif pg_typeof(value) = to_regtype('ext.geometry[]') then
        -- Of several dimensions, as a whole.
        return case when printed ~ '{.*{' then to_jsonb(printed)
            else to_jsonb(replace(printed, ':', ',')::text[]) end;
    end if;
    return to_jsonb(value);
exception
    when data_exception then
        return to_jsonb(to_json(value)::text);
end
$$
"""


@pytest.fixture(params=["compiled", "generic"])
def db(conn: Conn, request: pytest.FixtureRequest) -> Conn:
    if request.param == "generic":
        conn.execute("alter event trigger pgaudit_wf_after_ddl disable")
    conn.execute(EXPECTED)
    return conn


def newest(conn: Conn) -> list[dict[str, Any]]:
    row = conn.execute(
        "select diff from pgaudit_wf.security_audit_log order by id desc limit 1"
    ).fetchone()
    assert row is not None
    return list(row[0])


def pin(conn: Conn) -> None:
    for setting in PINNED:
        conn.execute(f"set {setting}".encode())


def unpin(conn: Conn) -> None:
    # What the log says does not depend on any of these.
    for setting in (
        "timezone = 'Asia/Kathmandu'", "datestyle = 'SQL, DMY'", "intervalstyle = 'iso_8601'",
        "bytea_output = 'escape'", "extra_float_digits = -5", "quote_all_identifiers = on",
    ):  # fmt: skip
        conn.execute(f"set {setting}".encode())


def check(conn: Conn, table: str, column_type: str, literals: list[str]) -> None:
    """Insert, update and delete each value, alone and in arrays, and find it in the log."""
    conn.execute(f"create table {table} (id int primary key, v {column_type})".encode())
    conn.execute("select pgaudit_wf.attach(%s::regclass, shallow => '{v}')", [table])
    unpin(conn)
    for number, literal in enumerate(literals):
        conn.execute(f"insert into {table} values ({number}, %s)".encode(), [literal])
    pin(conn)
    wrong = conn.execute(
        f"""
        select t.id, l.diff, expected(t.v) from {table} as t
        left join pgaudit_wf.security_audit_log as l
            on l.resource_type = %(table)s and l.resource_id = t.id::text
        where (l.diff -> 0 -> 'value' -> 'v')::text is distinct from
                coalesce(expected(t.v), 'null')::text
            or l.diff -> 0 ? 'digest'
            or pgaudit_wf.row_as_of(%(table)s, t.id::text)
                is distinct from jsonb_build_object('id', t.id, 'v', expected(t.v))
        """.encode(),
        {"table": table},
    ).fetchall()
    assert wrong == [], column_type
    unpin(conn)
    # Each value becomes the next one, and all of them are deleted.
    conn.execute(f"update {table} set v = o.v from {table} as o "
                 f"where o.id = ({table}.id + 1) % {len(literals)}".encode())  # fmt: skip
    conn.execute(f"delete from {table}".encode())
    wrong = conn.execute(
        """
        with event as (
            select l.*, first_value(diff -> 0 -> 'value' -> 'v') over (
                partition by resource_id order by id) as inserted
            from pgaudit_wf.security_audit_log as l where resource_type = %s
        )
        select e.diff from event as e
        join event as next on next.resource_id = ((e.resource_id::int + 1) %% %s)::text
            and next.action like '%%.created'
        where e.action like '%%.updated'
                and (e.diff -> 0 -> 'old' <> e.inserted or e.diff -> 0 -> 'value' <> next.inserted)
            or e.action like '%%.deleted'
                and e.diff -> 0 -> 'old' -> 'v' <> next.inserted
        """,
        [table, len(literals)],
    ).fetchall()
    assert wrong == [], column_type


def random_literals(column_type: str) -> list[str]:
    chance = random.Random(column_type)
    match column_type:
        case "text":
            return ["".join(chance.choices(string.printable, k=chance.randrange(3000)))
                    for _ in range(10)]  # fmt: skip
        case "numeric":
            return [f"{chance.getrandbits(300)}.{chance.getrandbits(300)}" for _ in range(5)]
        case "double precision":
            return [repr(chance.uniform(-1e10, 1e10)) for _ in range(5)]
        case "bytea":
            return ["\\x" + chance.randbytes(chance.randrange(5000)).hex() for _ in range(5)]
        case "varbit":
            return [f"{chance.getrandbits(500):b}" for _ in range(5)]
        case "timestamptz":
            return [f"{chance.randrange(1, 9999):04}-0{chance.randrange(1, 9)}-15 12:00:00+00"
                    for _ in range(5)]  # fmt: skip
        case "jsonb" | "json":
            # Long enough to be compressed, and to be stored out of line.
            return [json.dumps({str(n): chance.choice([None, n / 7, "x" * n, [n], {"a": n}])
                    for n in range(size)}) for size in (10, 100, 1000)]  # fmt: skip
    return []


def array_literals(conn: Conn, column_type: str, literals: list[str]) -> list[str]:
    """Arrays of the values: flat, with nulls, of two dimensions, with other bounds, empty."""
    row = conn.execute(
        f"""
        with given as (select array(select v::{column_type} from unnest(%s::text[]) as v) as v)
        select array[
            v::text, '{{}}', (v || null)::text, array[v, v]::text,
            array[v[1:1], array[null::{column_type}]]::text,
            array_fill(v[1], array[2, 1], array[-1, 5])::text]
        from given
        """.encode(),
        [literals],
    ).fetchone()
    assert row is not None
    return [str(literal) for literal in row[0]]


def test_types_of_postgresql(db: Conn) -> None:
    for number, (column_type, given) in enumerate(BUILT_IN.items()):
        literals = given + random_literals(column_type)
        check(db, f"plain{number}", column_type, literals)
        pin(db)
        arrays = array_literals(db, column_type, literals[:8])
        check(db, f"listed{number}", f"{column_type}[]", arrays)


def test_xml(db: Conn) -> None:
    try:
        db.execute("select '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server is built without libxml")
    check(db, "plain", "xml", ["<a/>", "text &amp; more", "<a>" + "x" * 5000 + "</a>"])


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_types_of_extensions_off_the_search_path(db: Conn, extension: str) -> None:
    if not db.execute(
        "select 1 from pg_available_extensions where name = %s", [extension]
    ).fetchone():
        pytest.skip(f"extension {extension} is not installed on this machine")
    db.execute("create schema ext")
    db.execute(f"create extension {extension} schema ext".encode())
    for name, literals in EXTENSIONS[extension].items():
        check(db, f"plain_{name}", f"ext.{name}", literals)
        pin(db)
        db.execute("set search_path = ext, public")
        listed = array_literals(db, f"ext.{name}", literals)
        db.execute("reset search_path")
        check(db, f"listed_{name}", f"ext.{name}[]", listed)


def test_a_large_value_of_a_type_with_casts(db: Conn) -> None:
    if not db.execute("select from pg_available_extensions where name = 'postgis'").fetchone():
        pytest.skip("extension postgis is not installed on this machine")
    db.execute("create schema ext; create extension postgis schema ext")
    db.execute("create table t (id int primary key, v ext.geometry)")
    db.execute("select pgaudit_wf.attach('t')")
    line = "(select array_agg(ext.st_makepoint(n, n / 7.0)) from generate_series(1, 3000) as n)"
    db.execute(f"insert into t values (1, ext.st_setsrid(ext.st_makeline({line}), 4326))".encode())
    kept = "select to_jsonb(format('%s', v)) from t"
    (before,) = db.execute(kept).fetchone() or ("",)
    assert newest(db) == [{"op": "add", "path": "", "value": {"id": 1, "v": before}}]
    db.execute("update t set v = ext.st_reverse(v)")
    (after,) = db.execute(kept).fetchone() or ("",)
    assert newest(db) == [{"op": "replace", "path": "/v", "old": before, "value": after}]
    db.execute("select pgaudit_wf.attach('t', max_value => 90000)")
    db.execute("delete from t")
    [removed] = newest(db)
    assert removed["old"]["v"] == {
        "bytes": len(after),
        "sha256": hashlib.sha256(after.encode()).hexdigest(),
    }


def test_types_of_the_users(db: Conn) -> None:
    db.execute("create schema ext")
    db.execute("create type ext.mood as enum ('', 'a''b', 'ok')")
    db.execute("create domain ext.short as varchar(3) not null check (length(value) < 3)")
    db.execute("create domain ext.shorts as ext.short[]")
    db.execute("create domain ext.doc as json")
    db.execute('create type ext.span as range (subtype = text, collation = "C")')
    db.execute("create type ext.inner as (m ext.mood, d ext.doc, t timestamptz, n numeric)")
    db.execute('create type ext.outer as (i ext.inner, l ext.inner[], "a ""b" text)')
    moods = ["", "a'b", "ok"]
    inner = ['(ok,"{""a"": 1}",infinity,1.00)', "(,,,)", '("a\'b","""\\\\u0000""",,NaN)']
    outer = [
        '("(ok,1,2026-01-01,1)","{""(ok,1,,)"",NULL}",x)',
        "(,,)",
        '("(,,,)",{},"""")',
    ]
    for number, (name, literals) in enumerate({
        "mood": moods, "short": ["", "ab"], "shorts": ["{a,b}", "{}"], "doc": ["1", '"\\u0000"'],
        "span": ["[a,b)", "empty", '["","""")'], "inner": inner,
    }.items()):  # fmt: skip
        check(db, f"plain{number}", f"ext.{name}", literals)
        pin(db)
    check(db, "nested", "ext.outer", outer)


def test_a_domain_with_not_null_in_a_column_that_was_added(db: Conn) -> None:
    db.execute("create domain filled as text not null default 'x'")
    db.execute("create table t (id int primary key)")
    db.execute("insert into t values (1)")
    db.execute("select pgaudit_wf.attach('t')")
    db.execute("insert into t values (2)")
    db.execute("alter table t add column v filled default 'y'")
    db.execute("insert into t values (3), (4)")
    db.execute("update t set v = 'z'")
    assert newest(db)[0]["old"] == "y"
    db.execute("update t set id = id + 10")
    db.execute("delete from t")
    assert newest(db)[0]["old"]["v"] == "z"


def test_tables_can_be_attached_by_a_session_that_quotes_all_identifiers(conn: Conn) -> None:
    conn.execute("create table t (id int primary key, a json, b jsonb)")
    conn.execute("create table w (id int primary key, nodes jsonb, edges json, enabled boolean)")
    conn.execute("set quote_all_identifiers = on")
    conn.execute("select pgaudit_wf.attach('t')")
    conn.execute("select pgaudit_wf.attach_workflow('w')")
    conn.execute("alter table t add column c json")
    conn.execute("insert into t values (1, 'null', null, 'null')")
    assert newest(conn)[0]["json_null"] == ["a", "c"]
