"""What the trigger generator makes, to be read beside it and reviewed as a diff.

`make golden` writes the files anew.
"""

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

Conn = psycopg.Connection[Any]

GOLDEN = Path(__file__).parent / "capture_golden"
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
    access_code text,
    seen_at timestamptz
);
insert into pgaudit_wf.action_rule (resource_type, op, condition, action, position) values
    ('note', 'update', 'old.state = ''draft'' and new.state = ''published''', 'note.published', 10),
    ('note', 'update', 'old.title is distinct from new.title', 'note.renamed', 20),
    ('note', 'delete', null, 'note.discarded', 10);
select pgaudit_wf.attach(
    'note', label_column => 'title', ignore => '{seen_at}', redact => '{access_code}',
    on_failure => 'warn'
);
"""
# PostgreSQL 17 was the first that can compare long values by their place.
BY_PLACE = re.compile(r"\(pg_column_toast_chunk_id\(\S+ = pg_column_toast_chunk_id\(\S+ is not true")


def produced(conn: Conn, table: str, form: str) -> str:
    if form == "generic":
        conn.execute("alter event trigger pgaudit_wf_after_ddl disable")
        conn.execute("select pgaudit_wf.attach(%s::regclass)", [table])
    row = conn.execute(
        "select form, pg_get_functiondef(format('pgaudit_wf.%%I()', function_name)::regprocedure) "
        "from pgaudit_wf.attached where target = %s::regclass",
        [table],
    ).fetchone()
    assert row is not None
    assert row[0] == form
    text: str = row[1]
    # Numbers that differ from database to database, and a digest of such.
    for number, name in conn.execute("select oid::text, typname from pg_type where oid >= 16384"):
        text = re.sub(rf":{number}\b", f":<{name}>", text)
    return re.sub(r"(?<=Columns as of )[0-9a-f]{32}", "<digest>", text)


@pytest.mark.parametrize("form", ["compiled", "generic"])
@pytest.mark.parametrize("table", ["note", "api_key", "workflow"])
def test_trigger_functions_read_as_in_the_golden_files(
    app_conn: Conn, table: str, form: str, pytestconfig: pytest.Config
) -> None:
    if table == "note":
        app_conn.execute(NOTE)
    text = produced(app_conn, table, form)
    golden = GOLDEN / f"{table}.{form}.sql"
    if app_conn.info.server_version < 170000:
        assert not pytestconfig.getoption("--rewrite-golden"), "take PostgreSQL 17 or newer"
        assert text == BY_PLACE.sub("true", golden.read_text())
        return
    if pytestconfig.getoption("--rewrite-golden"):
        golden.write_text(text)
    assert text == golden.read_text(), "if that is as intended, run `make golden`"
