"""Pages of docs/reference: what the database has (sql.md) and what commands take (options.md).

    make docs

Signatures and comments come from a database that `migrate` has just made on an embedded server, so
the page shows what psql would show; options come from what `--help` prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

import psycopg
import typer.main

from pgaudit_wf import manual
from pgaudit_wf.cli import LazyCommands, app

CORE = Path(__file__).parents[1] / "sql" / "core"
HEAD = r"""# SQL reference

Everything on this page is in schema `pgaudit_wf`. `make docs` prints it from the comments in the
database; `\df+ pgaudit_wf.*` and `\d+ pgaudit_wf.*` in psql show the same for the version that you
have installed. Functions and tables that are missing here, and all functions whose names begin with
an underscore, are internal and may change in any version.
"""
OPTIONS_HEAD = """# Options of the commands

`make docs` prints this page from what `pgaudit-wf COMMAND --help` says. The commands by subject,
and what they have in common: [cli.md](cli.md).
"""
TITLES = {
    "20_log": "The log",
    "30_capture": "Attaching tables",
    "40_trail": "Reading the trail",
    "50_definition": "Workflow definitions",
    "60_workflow": "Workflow versions and runs",
    "70_alerts": "Alerts",
    "75_attempts": "Failed and denied attempts",
    "77_streams": "Streams",
    "78_keys": "API keys",
    "80_limits": "Limits",
    "85_retention": "Retention, archives and exports",
    "90_erasure": "Erasure",
    "92_undo": "Undo",
    "95_integrity": "Tamper evidence",
    "97_doctor": "Diagnosis",
    "99_install": "Rights",
}
# Tables that only functions and jobs of ours read or write.
INTERNAL = {
    "blueprint",
    "canonical_cache",
    "canonical_cache_node",
    "key_change",
    "limit_target",
    "log_kept",
    "log_leaf",
    "log_origin",
    "turn",
    "version_place",
}
WIDTH = 130

FUNCTIONS = r"""
select proname, pg_get_function_arguments(oid), pg_get_function_result(oid), obj_description(oid)
from pg_proc
where pronamespace = 'pgaudit_wf'::regnamespace and proname !~ '^_'
order by proname, oid
"""
RELATIONS = """
select c.relname,
       case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'c' then 'type'
                      else 'table' end,
       coalesce(obj_description(c.oid, 'pg_class'), obj_description(c.reltype, 'pg_type')),
       (select array_agg(array[attname::text, format_type(atttypid, atttypmod),
                               coalesce(col_description(c.oid, attnum), '')] order by attnum)
          from pg_attribute
         where attrelid = c.oid and attnum > 0 and not attisdropped)
from pg_class as c
where relnamespace = 'pgaudit_wf'::regnamespace and not relispartition
  and (relkind in ('r', 'p', 'v', 'm')
       or exists (select from pg_proc where prorettype = c.reltype and proname !~ '^_'))
order by relname
"""


def _prose(comment: str | None) -> str:
    return re.sub(r"([<*|])", r"\\\1", " ".join((comment or "").split()))


def _signature(name: str, arguments: str, result: str) -> str:
    arguments = re.sub(r" DEFAULT NULL::[\w .]+(\[\])?", " default null", arguments)
    arguments = arguments.replace(" DEFAULT ", " default ")
    result = re.sub(r"^TABLE\((.*)\)$", r"table (\1)", result).replace("SETOF ", "setof ")
    text = f"{name}({arguments}) returns {result}"
    if len(text) > WIDTH:
        # Types and defaults have commas only inside of parentheses and quotes.
        parts = re.split(r", (?=(?:OUT )?\w+ [a-z])", arguments)
        text = f"{name}(\n    " + ",\n    ".join(parts) + f"\n) returns {result}"
    return "\n".join(_wrapped(text))


def _wrapped(text: str) -> Iterator[str]:
    for line in text.splitlines():
        while len(line) > WIDTH and ", " in line[:WIDTH]:
            cut = line.rindex(", ", 0, WIDTH) + 1
            yield line[:cut]
            line = f"    {line[cut + 1 :]}"
        yield line


def reference(conn: psycopg.Connection[Any]) -> str:
    """Return the page for the database of a connection.

    Args:
        conn: A connection to a database that has the core schema and no attached table.

    Raises:
        KeyError: An object's subject has no title here, or no file of `sql/core` makes it.
    """
    made = re.compile(
        r"^create (?:or replace )?(?:unlogged )?(?:materialized )?(function|table|type|view)"
        r" pgaudit_wf\.(\w+)",
        re.MULTILINE,
    )
    subjects: dict[str, str] = {}
    for path in CORE.rglob("*.sql"):
        for kind, name in made.findall(path.read_text()):
            subjects[f"{kind} {name}"] = path.parent.name
    entries: dict[str, list[str]] = {subject: [] for subject in TITLES}
    for name, kind, comment, columns in conn.execute(RELATIONS):
        if name in INTERNAL:
            continue
        rows = [f"| `{column}` | {type_} | {_prose(text)} |" for column, type_, text in columns]
        table = "\n".join(["| column | type | |", "|---|---|---|", *rows])
        entries[subjects[f"{kind.split()[-1]} {name}"]].append(
            f"### {kind} `{name}`\n\n{_prose(comment)}\n\n{table}\n"
        )
    for name, arguments, result, comment in conn.execute(FUNCTIONS):
        code = _signature(name, arguments, result)
        entries[subjects[f"function {name}"]].append(
            f"### `{name}()`\n\n```sql\n{code}\n```\n\n{_prose(comment)}\n"
        )
    sections = [
        "\n".join([f"## {TITLES[subject]}\n", *texts])
        for subject, texts in entries.items()
        if texts
    ]
    return "\n".join([HEAD, *sections])


def _commands(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401
    yield words, command
    for name in sorted(getattr(command, "commands", {})):
        if isinstance(command, LazyCommands):
            command.load(name)
        yield from _commands((*words, name), command.commands[name])


def _option(option: Any) -> str:  # noqa: ANN401
    names = ", ".join([*option.opts, *option.secondary_opts])
    value = "" if option.is_flag else f" {option.metavar or 'VALUE'}"
    notes = []
    if option.multiple:
        notes.append("Repeatable.")
    if not option.is_flag and option.show_default and option.default not in (None, "", [], ()):
        notes.append(f"Default: `{option.default}`.")
    if option.envvar:
        notes.append(f"Else the environment variable `{option.envvar}`.")
    told = re.sub(r"\[/?(?:bold|dim|cyan)?\]", "", option.help or "")
    return f"| `{names}{value}` | {' '.join([_prose(told), *notes])} |"


def options() -> str:
    """Return the page with the options of all commands."""
    root = manual.page("")
    sections = [OPTIONS_HEAD]
    for words, command in _commands((), typer.main.get_command(app)):
        listed = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
        listed = [p for p in listed if p.name not in ("install_completion", "show_completion")]
        if not words or (not listed and getattr(command, "commands", None)):
            continue
        arguments = "".join(
            f" {p.metavar or p.name.upper()}" for p in command.params if p not in listed
        )
        told = (command.help or "").replace(root, "docs").split("\x08")[0]
        title = f"## `pgaudit-wf {' '.join(words)}{arguments}`"
        sections.append(f"{title}\n\n{fill(_prose(told), WIDTH)}\n")
        if listed:
            sections.append("\n".join(["| option | |", "|---|---|", *map(_option, listed), ""]))
    return "\n".join(sections)
