"""House rules for the database, read off its sources and off a migrated database's catalog."""

import re
from collections.abc import Iterator
from pathlib import Path

import pglast
import psycopg
import pytest
from pglast import ast
from pglast.parser import scan

from pgaudit_wf.dev.server import DevServer
from support.needs import missing

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "sql").rglob("*.sql"))
MIGRATIONS = sorted((ROOT / "migrations").rglob("*.sql"))
SQLSTATE = re.compile(r"\bPA\d{3}\b")


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def bodies(source: str) -> Iterator[str]:
    """The source itself, then each function body in it, which parsers take for a string."""
    yield source
    for raw in pglast.parse_sql(source):
        statement = raw.stmt
        if isinstance(statement, ast.CreateFunctionStmt | ast.DoStmt):
            options = (statement.options if isinstance(statement, ast.CreateFunctionStmt)
                       else statement.args)  # fmt: skip
            for option in options or ():
                if option.defname == "as":
                    texts = option.arg if isinstance(option.arg, tuple) else (option.arg,)
                    yield from (text.sval for text in texts)


@pytest.mark.lint
@pytest.mark.parametrize("path", SOURCES + MIGRATIONS, ids=label)
def test_file_parses(path: Path) -> None:
    assert pglast.parse_sql(path.read_text()) is not None


@pytest.mark.lint
@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_keywords_are_lower_case_in_function_bodies_too(path: Path) -> None:
    shouted = []
    for text in bodies(path.read_text()):
        for token in scan(text):
            word = text[token.start : token.end + 1]
            if token.kind != "NO_KEYWORD" and word != word.lower():
                shouted.append(word)
    assert shouted == []


def plain_backslashes(text: str) -> Iterator[str]:
    """Literals '…' with a backslash, also those in a dollar-quoted text that is run as SQL."""
    for token in scan(text):
        if token.name == "SCONST":
            literal = text[token.start : token.end + 1]
            if literal.startswith("'") and "\\" in literal:
                yield literal
            elif tag := re.match(r"\$[^$]*\$", literal):
                yield from plain_backslashes(literal[len(tag[0]) : -len(tag[0])])


@pytest.mark.lint
@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_literals_mean_the_same_whatever_the_session_makes_of_backslashes(path: Path) -> None:
    """A session with standard_conforming_strings = off parses the bodies of functions by that."""
    found = [literal for text in bodies(path.read_text()) for literal in plain_backslashes(text)]
    assert found == []


@pytest.mark.lint
@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_no_line_is_longer_than_140_characters(path: Path) -> None:
    lines = enumerate(path.read_text().splitlines(), 1)
    assert [number for number, line in lines if len(line) > 140] == []


@pytest.mark.lint
@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_no_format_has_more_than_four_numbered_arguments(path: Path) -> None:
    # "%7$s" makes the reader count; _fill() has named slots.
    assert re.findall(r"%(?:[5-9]|\d\d+)\$[sIL]", path.read_text()) == []


def rows(conn: psycopg.Connection, query: str) -> list[str]:
    return [row[0] for row in conn.execute(query).fetchall()]


def test_security_definer_functions_pin_their_search_path(app_conn: psycopg.Connection) -> None:
    definers = app_conn.execute(
        """
        select p.oid::regprocedure::text,
               (select regexp_replace(setting, '^search_path=', '')
                  from unnest(p.proconfig) as c (setting)
                 where setting like 'search_path=%')
          from pg_proc p
         where p.pronamespace = 'pgaudit_wf'::regnamespace and p.prosecdef
        """
    ).fetchall()
    assert definers
    assert [name for name, path in definers if path != "pg_catalog, pg_temp"] == []


def test_every_relation_and_column_has_a_comment(app_conn: psycopg.Connection) -> None:
    # A partition's columns are its parent's, whose comments PostgreSQL does not hand down.
    assert (
        rows(
            app_conn,
            """
            select c.oid::regclass || coalesce('.' || a.attname, '')
              from pg_class c
              left join (select attrelid, attnum, attname
                           from pg_attribute
                          where attnum > 0 and not attisdropped
                          union all
                         select oid, 0, null from pg_class) a on a.attrelid = c.oid
             where c.relnamespace in ('pgaudit_wf'::regnamespace, 'public'::regnamespace)
               and c.relkind in ('r', 'p', 'v', 'm', 'f')
               and not c.relispartition
               and col_description(c.oid, a.attnum) is null
               and (a.attnum > 0 or obj_description(c.oid, 'pg_class') is null)
             order by 1
            """,
        )
        == []
    )


def test_every_public_function_has_a_comment(app_conn: psycopg.Connection) -> None:
    assert (
        rows(
            app_conn,
            """
            select p.oid::regprocedure::text
              from pg_proc p
             where p.pronamespace = 'pgaudit_wf'::regnamespace
               and p.proname not like '\\_%'
               and obj_description(p.oid, 'pg_proc') is null
             order by 1
            """,
        )
        == []
    )


def test_schema_and_event_triggers_have_a_comment(app_conn: psycopg.Connection) -> None:
    assert (
        rows(
            app_conn,
            """
            select 'pgaudit_wf'
             where obj_description('pgaudit_wf'::regnamespace, 'pg_namespace') is null
             union all
            select evtname
              from pg_event_trigger
             where obj_description(oid, 'pg_event_trigger') is null
            """,
        )
        == []
    )


def test_no_function_of_ours_has_the_name_of_one_written_for_a_table(
    conn: psycopg.Connection,
) -> None:
    # Named after the table; attach() would replace ours, and detach() would drop it.
    assert (
        rows(
            conn,
            """
            select p.oid::regprocedure::text
              from pg_proc p
             where p.pronamespace = 'pgaudit_wf'::regnamespace
               and p.pronargs = 0 and p.proname ~ '^(capture|guard|limit|stamp)_'
            """,
        )
        == []
    )


def test_plpgsql_check_finds_nothing(server: DevServer, app_conn: psycopg.Connection) -> None:
    available = app_conn.execute(
        "select 1 from pg_available_extensions where name = 'plpgsql_check'"
    ).fetchone()
    if not available:
        missing(
            "this server has no plpgsql_check (Debian: postgresql-15-plpgsql-check)",
            required=server.binaries.bindir == Path("/usr/lib/postgresql/15/bin"),
        )
    app_conn.execute("create extension plpgsql_check with schema public")
    found = app_conn.execute(
        """
        select distinct p.oid::regprocedure::text, r.lineno, r.level, r.message, r.query
          from pg_proc p
          join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
          left join pg_trigger t on t.tgfoid = p.oid and t.tgparentid = 0
          -- One function can be that of several triggers, each with the tables that it has.
         cross join lateral (
                   select max(o.tgoldtable::text) as old, max(o.tgnewtable::text) as new
                     from pg_trigger o where o.tgfoid = p.oid and o.tgrelid = t.tgrelid) transition
         cross join lateral public.plpgsql_check_function_tb(
                   p.oid, coalesce(t.tgrelid, 0),
                   oldtable => transition.old, newtable => transition.new,
                   fatal_errors => false, other_warnings => false) r
         where p.pronamespace = 'pgaudit_wf'::regnamespace
           and (p.prorettype <> 'trigger'::regtype or t.oid is not null)
           -- It does not see through "return query execute".
           and r.message not like 'OUT variable % is maybe unmodified'
         order by 1, 2
        """
    ).fetchall()
    assert found == [], "\n".join(map(str, found))


def codes(*paths: Path) -> set[str]:
    return {code for path in paths for code in SQLSTATE.findall(path.read_text())}


@pytest.mark.lint
def test_every_sqlstate_is_explained_and_raised_by_a_test() -> None:
    raised = codes(*SOURCES)
    assert codes(ROOT / "docs" / "reference" / "errors.md") == raised
    assert raised - codes(*(ROOT / "tests").rglob("test_*.py")) == set()


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_following_ddl_is_never_compiled(path: Path) -> None:
    """Where the planner overestimates, JIT compilation takes a thousand times what is compiled."""
    functions = re.findall(r"returns event_trigger\n(.*?)\nas \$", path.read_text(), re.DOTALL)
    assert [settings for settings in functions if "set jit = off" not in settings] == []
