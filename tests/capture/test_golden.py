"""What the trigger generator makes, to be read beside it and reviewed as a diff.

`make golden` writes the files anew.
"""

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

Conn = psycopg.Connection[Any]

GOLDEN = Path(__file__).parent / "golden"
NOTE = """
create type note_state as enum ('draft', 'published');
create table note (
    id bigint primary key,
    org_id uuid not null,
    title text,
    state note_state not null,
    published_at timestamptz,
    reading_time interval,
    tags text[],
    settings jsonb,
    draft json,
    access_code text,
    seen_at timestamptz
);
insert into pgaudit_wf.action_rule (resource_type, op, condition, action, position) values
    ('note', 'update', 'old.state = ''draft'' and new.state = ''published''', 'note.published', 10),
    ('note', 'update', 'old.title is distinct from new.title', 'note.renamed', 20),
    ('note', 'delete', null, 'note.discarded', 10);
select pgaudit_wf.attach(
    'note', label_column => 'title', ignore => '{seen_at}', redact => '{access_code}',
    shallow => '{draft}', on_failure => 'warn'
);
"""
# PostgreSQL 17 was the first that can compare long values by their place.
PLACE = r"pg_column_toast_chunk_id\(\S+\)"
BY_PLACE = re.compile(rf"\({PLACE} = {PLACE}\) is not true")
IF_BY_PLACE = re.compile(rf"(?<=if )\({BY_PLACE.pattern} and (.*)\)(?= then)")


def produced(conn: Conn, table: str, form: str) -> str:
    if form == "generic":
        conn.execute("alter event trigger pgaudit_wf_after_ddl disable")
        conn.execute("select pgaudit_wf.attach(%s::regclass)", [table])
    row = conn.execute(
        "select form, pg_get_functiondef(format('pgaudit_wf.%%I()', case %s when 'batch' then"
        " pgaudit_wf._batch_function_name(a) else function_name end)::regprocedure)"
        " from pgaudit_wf.attachment as a where target = %s::regclass",
        [form, table],
    ).fetchone()
    assert row is not None
    assert row[0] == ("generic" if form == "generic" else "compiled")
    text: str = row[1]
    # Numbers that differ from database to database, and a digest of such.
    for number, name in conn.execute("select oid::text, typname from pg_type where oid >= 16384"):
        text = re.sub(rf":{number}\b", f":<{name}>", text)
    return re.sub(r"(?<=Columns as of )[0-9a-f]{32}", "<digest>", text)


@pytest.mark.parametrize(
    ("table", "form"),
    [(t, f) for t in ("note", "api_key", "workflow") for f in ("compiled", "generic")]
    # Neither workflows nor tables with on_failure => 'warn' have one.
    + [("api_key", "batch")],
)
def test_trigger_functions_read_as_in_the_golden_files(
    app_conn: Conn, table: str, form: str, pytestconfig: pytest.Config
) -> None:
    if table == "note":
        app_conn.execute(NOTE)
    text = produced(app_conn, table, form)
    golden = GOLDEN / f"{table}.{form}.sql"
    if app_conn.info.server_version < 170000:
        assert not pytestconfig.getoption("--rewrite-golden"), "take PostgreSQL 17 or newer"
        assert text == BY_PLACE.sub("true", IF_BY_PLACE.sub(r"\1", golden.read_text()))
        return
    if pytestconfig.getoption("--rewrite-golden"):
        golden.write_text(text)
    assert text == golden.read_text(), "if that is as intended, run `make golden`"


def fill(conn: Conn, template: str, **pieces: str | list[str]) -> str:
    row = conn.execute(
        "select array_to_string(pgaudit_wf._fill(%s, %s), e'\\n')", [template, Jsonb(pieces)]
    ).fetchone()
    assert row is not None
    text: str = row[0]
    return text


def test_text_that_fills_a_slot_is_not_searched_for_slots(conn: Conn) -> None:
    assert (
        fill(conn, "{{a}}, {{b}}", a="{{b}} }} {{ %s", b="\\1 {{a}}") == "{{b}} }} {{ %s, \\1 {{a}}"
    )
    assert fill(conn, "  {{a}}", a=["{{b}}"]) == "  {{b}}"


def test_lines_are_indented_as_their_slot_and_what_they_quote_is_not(conn: Conn) -> None:
    inner = fill(conn, "if {{a}} then\n    {{b}}\nend if;", a="x = 'two\nlines'", b=["y;", "z;"])
    assert inner == "if x = 'two\nlines' then\n    y;\n    z;\nend if;"
    nested = conn.execute(
        "select array_to_string(pgaudit_wf._fill(e'begin\n    {{inner}}\nend', jsonb_build_object("
        "'inner', pgaudit_wf._fill(e'if {{a}} then\n    y;\nend if;', %s))), e'\n')",
        [Jsonb({"a": "x = 'two\nlines'"})],
    ).fetchone()
    assert nested == ("begin\n    if x = 'two\nlines' then\n        y;\n    end if;\nend",)


def test_an_empty_piece_takes_its_line_along(conn: Conn) -> None:
    assert fill(conn, "a\n    {{none}}\n\nb{{none}}\n", none="") == "a\n\nb\n"
    assert fill(conn, "a\n    {{none}}\nb", none=[]) == "a\nb"


def test_a_slot_without_a_piece_is_an_error(conn: Conn) -> None:
    with pytest.raises(psycopg.errors.InternalError_, match='"b"'):
        fill(conn, "{{a}}\n{{b}}", a="")


def test_either_form_has_a_piece_for_each_slot_and_no_other(app_conn: Conn) -> None:
    assert app_conn.execute(
        "select distinct s.slots @> p.pieces, p.pieces @> s.slots, c.common && p.own"
        " from pgaudit_wf.attachment as a,"
        " lateral (select array(select (regexp_matches(pgaudit_wf._trigger_template(),"
        "   '\\{\\{(.+?)\\}\\}', 'g'))[1]) as slots) as s,"
        " lateral (select array(select jsonb_object_keys(pgaudit_wf._common_pieces(a)))"
        "   as common) as c,"
        " lateral (values (pgaudit_wf._compiled_pieces(a)), (pgaudit_wf._generic_pieces(a)))"
        "   as form (made),"
        " lateral (select own, c.common || own as pieces"
        "   from (select array(select jsonb_object_keys(form.made)) as own) as o) as p"
    ).fetchall() == [(True, True, False)]
