"""What is recorded does not depend on how the session likes to see its values."""

from typing import Any, LiteralString

import psycopg
import pytest

from support.server import Conn

SETTINGS: list[dict[str, str]] = [
    {},
    {"timezone": "Asia/Kathmandu", "datestyle": "German, DMY", "intervalstyle": "iso_8601"},
    {"timezone": "America/St_Johns", "datestyle": "SQL, MDY", "intervalstyle": "sql_standard"},
    {"bytea_output": "escape", "extra_float_digits": "0", "xmloption": "document"},
    {
        "extra_float_digits": "-15",
        "datestyle": "Postgres, DMY",
        "intervalstyle": "postgres_verbose",
    },
    {"search_path": "pg_catalog, elsewhere, public", "lc_monetary": "{locale}"},
    {"search_path": '""', "standard_conforming_strings": "off", "quote_all_identifiers": "on"},
    {"lc_numeric": "{locale}", "lc_time": "{locale}", "role": "none"},
    {"default_transaction_isolation": "serializable", "jit": "off", "xmlbinary": "hex"},
]

TABLE: LiteralString = """
create schema elsewhere;
create type public.spot as (at timestamptz, lasts interval, raw bytea, precise float8);
create domain public.moment as timestamptz;
create table public.event_of_all_kinds (
    id timestamptz primary key,
    org_id interval,
    label bytea,
    ts timestamp, tz timestamptz, d date, t time, ttz timetz, i interval, raw bytea,
    f4 real, f8 double precision, cash money, n numeric, p point, poly polygon,
    r tstzrange, mr datemultirange, nr numrange, fr public.frange,
    ats timestamptz[], ai interval[], ab bytea[], af float8[],
    s public.spot, sp public.spot[], m public.moment,
    cls regclass, fn regprocedure, js json, jb jsonb, generated timestamptz
);
"""

VALUES: LiteralString = """(
    '2026-03-04 05:06:07.123456+00', '1 year 2 mons -3 days 04:05:06.7', '\\x00ff41',
    '2026-03-04 05:06:07.1', '2026-03-04 05:06:07+00', '2026-03-04', '05:06:07', '05:06:07+02',
    '1 mon -2 days 03:00:00', '\\xdeadbeef5c', 0.1::real / 3, 1.0::float8 / 3,
    1234567.89::numeric::money, 1e-20, '(0.1,0.3333333333333333)', '((0,0),(0.1,0.7),(1,0))',
    '[2026-01-01 00:00+00,2026-02-02 00:00+00)', '{[2026-01-01,2026-01-05)}', '[0.10,2]',
    '[0.1,0.33333333333333331]',
    '{2026-03-04 05:06:07+00}', '{1 day,25:00:00}', '{"\\\\x00"}', '{0.1,0.33333333333333331}',
    row('2026-03-04 05:06:07+00', '1 mon', '\\x01', 0.1::float8 / 7),
    array[row('2026-03-04 05:06:07+00', '1 mon', '\\x01', 0.1::float8 / 7)]::public.spot[],
    '2026-03-04 05:06:07+00', 'public.event_of_all_kinds', 'pgaudit_wf.detach(regclass)',
    '{"a": 1.50}', '{"b": 1.50}', '2026-03-04 05:06:07+00')"""


@pytest.mark.parametrize("label", ["label", ""])
@pytest.mark.parametrize("form", ["compiled", "generic"])
def test_the_same_change_gives_the_same_bytes(
    form: str, label: str, request: pytest.FixtureRequest
) -> None:
    dsn = request.getfixturevalue("dsn" if form == "compiled" else "owner_dsn")
    seen: dict[Any, list[int]] = {}
    with psycopg.connect(dsn, autocommit=True) as conn:
        locale = foreign_locale(conn)
        conn.execute("create type public.frange as range (subtype = float8)")
        conn.execute(TABLE)
        conn.execute(
            "select pgaudit_wf.attach('event_of_all_kinds', label_column => %s, org_column => %s)",
            [label, label and "org_id"],
        )
        if form == "generic":
            # Columns that came after the trigger was compiled.
            conn.execute("alter table event_of_all_kinds add late timestamptz, add later interval")
            conn.execute(
                "alter table event_of_all_kinds alter late set default '2026-03-04 05:06+00'"
            )
            conn.execute("alter table event_of_all_kinds alter later set default '1 mon 2 days'")
        for number, settings in enumerate(SETTINGS):
            with psycopg.connect(
                dsn, autocommit=True, application_name=f"session {number}"
            ) as session:
                session.execute("set client_min_messages = error")
                session.execute(b"insert into public.event_of_all_kinds values " + VALUES.encode())
                for name, value in settings.items():
                    session.execute(
                        "select set_config(%s, %s, false)", [name, value.format(locale=locale)]
                    )
                for change in CHANGES:
                    session.execute(change)
                # A row older than its attachment is wound back from what the table shows now.
                rebuilt = session.execute(
                    "select pgaudit_wf.row_as_of(t, id)::text,"
                    " pgaudit_wf._present_row(t, id)::text from (values"
                    " ('public.event_of_all_kinds'::regclass, '1970-01-01 00:00:00+00'))"
                    " as v (t, id)"
                ).fetchone()
                session.execute("delete from public.event_of_all_kinds")
            events = conn.execute(
                "select action, resource_id, org_id, diff::text, metadata::text "
                "from pgaudit_wf.security_audit_log where application_name = %s"
                " and action !~ '^audit[.]' order by id",
                [f"session {number}"],
            ).fetchall()
            seen.setdefault((rebuilt, *events), []).append(number)
    assert len(seen) == 1, list(seen.values())
    [(rebuilt, *events)] = seen
    assert len(events) == len(CHANGES) + 2
    assert rebuilt is not None
    assert rebuilt[0] == rebuilt[1]


CHANGES: list[LiteralString] = [
    "update public.event_of_all_kinds set ts = ts + '1 s', tz = tz + '1 s', d = d + 1, "
    "t = t + '1 s', ttz = ttz + interval '1 s', i = i * 2, raw = raw || decode('00', 'hex')",
    "update public.event_of_all_kinds set f4 = f4 / 3, f8 = f8 / 3, cash = cash * 2, n = n / 3, "
    "p = '(0.2,0.66666666666666663)', af = '{0.7,0.14285714285714285}'",
    "update public.event_of_all_kinds set r = '(,2026-02-02 00:00+00)', mr = '{}', nr = '[1,)', "
    "fr = '[0.14285714285714285,)', ats = ats || ats, ai = ai || ai, ab = ab || ab",
    "update public.event_of_all_kinds set s.at = '2026-07-04 05:06:07+00', sp = sp || sp, "
    "m = '2026-07-04 05:06:07+00', cls = 'pg_catalog.pg_class', fn = 'pgaudit_wf.doctor()'",
    "update public.event_of_all_kinds set id = '1970-01-01 00:00:00+00', label = "
    "decode('5c00', 'hex'), "
    "org_id = '2 mons'",
]


def foreign_locale(conn: Conn) -> str:
    """Return a locale that writes money in another way than C, or C where there is none."""
    for name in ("de_DE.UTF-8", "de_DE.utf8", "en_US.UTF-8", "en_US.utf8", "C.UTF-8"):
        try:
            conn.execute("select set_config('lc_monetary', %s, false)", [name])
        except psycopg.Error:
            continue
        conn.execute("reset lc_monetary")
        return name
    return "C"
