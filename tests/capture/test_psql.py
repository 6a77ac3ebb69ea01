"""What a user of psql sees: tables and functions that explain themselves, triggers fit to read."""

import re
import subprocess
from collections.abc import Callable

import pytest

from pgaudit_wf.dev.server import DevServer
from support.server import Conn

Psql = Callable[[str], str]


@pytest.fixture
def psql(server: DevServer, app_dsn: str) -> Psql:
    def run(command: str) -> str:
        return subprocess.run(
            [str(server.bin("psql")), "-XA", "-F", "\t", "-v", "ON_ERROR_STOP=1",
             "-c", command, app_dsn],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    return run


def test_every_relation_says_what_it_is_and_so_does_every_column(
    app_conn: Conn, psql: Psql
) -> None:
    relations = app_conn.execute(
        "select oid::regclass::text, relkind::text, relispartition from pg_class "
        "where relnamespace = 'pgaudit_wf'::regnamespace and relkind in ('r', 'p', 'v', 'm')"
    ).fetchall()
    assert len(relations) > 10
    listed = psql("\\dtvm+ pgaudit_wf.*")
    for name, _, is_partition in relations:
        [line] = [
            line for line in listed.splitlines()
            if line.split("\t")[:2] == ["pgaudit_wf", name.removeprefix("pgaudit_wf.")]
        ]  # fmt: skip
        assert len(line.split("\t")[-1]) > 20, f"{name} has no comment"
        if is_partition:
            continue  # its columns are its parent's
        lines = psql(f"\\d+ {name}").splitlines()
        heading = next(line for line in lines if line.startswith("Column\t"))
        rows = [line.split("\t") for line in lines if line.count("\t") == heading.count("\t")]
        assert rows[0][-1] == "Description"
        assert [row[0] for row in rows[1:] if not row[-1]] == [], (
            f"columns of {name} without comment"
        )


def test_every_function_says_what_it_is(app_conn: Conn, psql: Psql) -> None:
    listed = psql("\\df+ pgaudit_wf.*")
    functions = app_conn.execute(
        "select proname::text, pg_get_function_arguments(oid), obj_description(oid, 'pg_proc') "
        "from pg_proc where pronamespace = 'pgaudit_wf'::regnamespace"
    ).fetchall()
    assert len(functions) > 30
    assert [name for name, _, comment in functions if not comment or len(comment) < 20] == []
    assert [name for name, _, comment in functions if comment not in listed] == []
    # The functions that people call say what they raise.
    for name in ("attach", "detach", "record_event", "read_log", "row_as_of"):
        [comment] = [comment for found, _, comment in functions if found == name]
        assert re.search(r"[Rr]aises PA\d{3}", comment), name


def test_functions_for_people_are_few_and_the_others_begin_with_an_underscore(conn: Conn) -> None:
    listed = conn.execute(
        "select proname::text from pg_proc where pronamespace = 'pgaudit_wf'::regnamespace"
        " and proname not like '\\_%' order by 1"
    ).fetchall()
    # What people do, not what jobs and pages are made of. Each is named by an issue, as undoing,
    # publishing and copying versions are; more would no longer be a manual.
    assert len(listed) <= 73
    # What is called by PostgreSQL itself is for nobody.
    assert not conn.execute(
        "select proname from pg_proc where pronamespace = 'pgaudit_wf'::regnamespace"
        " and proname not like '\\_%'"
        " and prorettype in ('trigger'::regtype, 'event_trigger'::regtype)"
    ).fetchall()


def test_types_and_roles_and_the_schema_say_what_they_are(app_conn: Conn) -> None:
    assert (
        app_conn.execute(
            "select typname from pg_type where typnamespace = 'pgaudit_wf'::regnamespace "
            "and (typtype in ('d', 'e') or (typtype = 'c' and exists ("
            "select from pg_class where oid = typrelid and relkind = 'c'))) "
            "and obj_description(oid, 'pg_type') is null"
        ).fetchall()
        == []
    )
    assert app_conn.execute(
        "select obj_description('pgaudit_wf'::regnamespace, 'pg_namespace') is not null"
    ).fetchone() == (True,)


def test_a_compiled_trigger_is_pleasant_to_read(app_conn: Conn, psql: Psql) -> None:
    attached = app_conn.execute(
        "select function_name, target::text, resource_type from pgaudit_wf.attached"
    ).fetchall()
    assert len(attached) > 5
    for function, target, resource_type in attached:
        text = subprocess_text(psql, function)
        assert "-- Records every change of an attached table" in text
        assert f"'{resource_type}', event_id, true, event_diff" in text, target
        assert "\\n" not in text
        # A rule is as long as whoever wrote it made it, and a workflow's settings are many.
        if resource_type != "workflow":
            assert [line for line in text.splitlines() if len(line) > 180] == [], function
        body = text[text.index("$") : text.rindex("$")]
        assert "\t" not in body
        assert not re.search(r" +$", body, re.MULTILINE), f"{function} has blanks at a line's end"
        assert not re.search(r"\n\n\n", body)
        indents = [len(line) - len(line.lstrip()) for line in body.splitlines() if line.strip()]
        assert [indent for indent in indents if indent % 4] == []


def subprocess_text(psql: Psql, function: str) -> str:
    return psql(f"\\sf pgaudit_wf.{function}()")


def test_a_trigger_reads_line_by_line(psql: Psql, app_conn: Conn) -> None:
    app_conn.execute("create table note (id int primary key, org_id text, title text, code text)")
    app_conn.execute(
        "insert into pgaudit_wf.action_rule (resource_type, op, condition, action) "
        "values ('note', 'update', 'old.title <> new.title', 'note.renamed')"
    )
    app_conn.execute(
        "select pgaudit_wf.attach('note', label_column => 'title', redact => '{code}')"
    )
    lines = [line.strip() for line in subprocess_text(psql, "capture_note").splitlines()]
    for expected in (
        "if old.title is distinct from new.title then",
        "if old.code is distinct from new.code then",
        "when old.title <> new.title then 'note.renamed'",
        "else 'note.updated'",
        "event_action := 'note.created';",
        "event_id := new.id::text;",
    ):
        assert expected in lines
