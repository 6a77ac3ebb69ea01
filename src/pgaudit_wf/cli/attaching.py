"""Attaching tables: one by its settings, or many by a preset or by what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from pgaudit_wf.cli.base import FAILED, USAGE, Connection, Failure, confirm, dict_rows
from pgaudit_wf.cli.printing.output import console, print_json, print_table, printable

if TYPE_CHECKING:
    import psycopg

    from pgaudit_wf.presets import Preset

# Those who write the table wait behind us for as long as we wait for it.
_LOCK_TIMEOUT = "10s"


def call_attach(conn: Connection, function: str, table: str, settings: Mapping[str, object]) -> str:
    """Call one of the database's attach functions with the settings that are not None.

    Returns:
        The table's name as the session must write it.
    """
    from psycopg import sql

    from pgaudit_wf.trail.statement import one

    given = {name: value for name, value in settings.items() if value is not None}
    arguments = [
        sql.SQL(", {} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in given
    ]
    (name,) = one(
        conn,
        sql.SQL("select %(table)s::regclass::text from {}(%(table)s::regclass{})").format(
            sql.Identifier("pgaudit_wf", function), sql.SQL("").join(arguments)
        ),
        {"table": table, **given},
    )
    return str(name)


@dataclass
class Step:
    """One thing that a plan does, or leaves out.

    Attributes:
        kind: "table", "workflow", "rule", "directory" or "waiver".
        name: The table, action or view.
        settings: What is passed on.
        notes: What people should know of it.
        left_out: Why it is not done; "": it is.
    """

    kind: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: str = ""


def attach_many(
    conn: Connection,
    preset: Preset | None,
    schema: str | None,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Show what a preset, or attaching all tables, would do; ask; and do it, table by table.

    Raises:
        Failure: There is nothing to do, nobody to ask, or something could not be done.
    """
    from psycopg import sql

    steps = list(_preset_plan(conn, preset, schema) if preset else _whole_plan(conn, schema))
    todo = [step for step in steps if not step.left_out]
    if as_json and dry_run:
        print_json([asdict(step) for step in steps])
        return
    if not as_json:
        _print_plan(steps)
    if not any(step.kind in ("table", "workflow") for step in todo):
        if preset:
            raise Failure(
                f"none of the tables of {preset.title} is there",
                "say where they are: --schema NAME",
            )
        console().print("Nothing is left to attach.")
        return
    if dry_run:
        return
    if not yes:
        confirm(
            f"Do these {len(todo)} things?",
            Failure(
                "nothing was changed, as nobody is there to ask",
                "follow the plan with --yes, or look at it with --dry-run",
                USAGE,
            ),
        )
    conn.execute(sql.SQL("set lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT)))
    warned: list[str] = []

    def hear(said: psycopg.errors.Diagnostic) -> None:
        if said.severity_nonlocalized == "WARNING":
            warned.append(_sentence(said))

    conn.add_notice_handler(hear)
    failed = [(step, why) for step in todo if (why := _follow(conn, step))]
    if as_json:
        print_json(
            {"steps": [asdict(step) for step in steps],
             "failed": [{"name": step.name, "problem": why} for step, why in failed],
             "warnings": warned}
        )  # fmt: skip
    else:
        _print_result(todo, failed, warned)
    if failed:
        raise typer.Exit(FAILED)


def _whole_plan(conn: Connection, schema: str | None) -> Iterator[Step]:
    if schema is not None:
        _check_schema(conn, schema)
    for row in dict_rows(
        conn,
        "select p.name, p.redact, coalesce(p.left_out, '') as left_out"
        " from pgaudit_wf._attach_plan() as p"
        " where %(schema)s::text is null"
        " or starts_with(p.name, quote_ident(%(schema)s) || '.')",
        {"schema": schema},
    ):
        settings = {"redact": row["redact"]} if row["redact"] else {}
        yield Step("table", row["name"], settings, left_out=row["left_out"])


def _preset_plan(conn: Connection, preset: Preset, schema: str | None) -> Iterator[Step]:
    from psycopg.types.json import Jsonb

    from pgaudit_wf.trail.statement import one

    place = schema or preset.schema
    _check_schema(conn, place)
    there: set[str] = set()
    types: set[str] = set()
    for table in preset.tables:
        name = _table_name(conn, place, table["name"])
        if name is None:
            yield Step("table", table["name"], left_out=f"there is no such table in {place}")
            continue
        given = {key: value for key, value in table.items() if key != "name"}
        (settings,) = one(
            conn, "select pgaudit_wf._preset_table(%s::regclass, %s)", [name, Jsonb(given)]
        )
        absent = settings.pop("absent")
        notes = [f"has no column {', '.join(absent)}"] if absent else []
        if settings.pop("is_attached"):
            notes.append("is attached already, and gets these settings")
        there.add(table["name"])
        types.add(settings.get("resource_type", table["name"]))
        yield Step("workflow" if "shape" in settings else "table", name, settings, notes)
    for rule in preset.rules:
        left_out = "" if rule["resource_type"] in types else "its table is not there"
        yield Step("rule", rule["action"], dict(rule), left_out=left_out)
    (unset,) = one(conn, "select pgaudit_wf._unset_directories()")
    for directory in preset.directories:
        needs = {*directory.get("needs", []), *([directory.get("source")] if "source" in directory
                                                else [])}  # fmt: skip
        yield _directory_step(conn, place, directory, sorted(needs - _there(conn, place, needs)),
                              unset)  # fmt: skip
    for left in preset.left_out:
        name = _table_name(conn, place, left["table"])
        if name is not None and left["table"] not in there:
            yield Step("waiver", name, {"reason": left["reason"]})


def _there(conn: Connection, schema: str, names: set[str]) -> set[str]:
    return {name for name in names if _table_name(conn, schema, name) is not None}


def _directory_step(
    conn: Connection, schema: str, given: dict[str, Any], missing: list[str], unset: list[str]
) -> Step:
    from psycopg import sql

    view = given["view"]
    settings: dict[str, Any] = {"directory": view}
    if "source" in given:
        settings["source"] = _table_name(conn, schema, given["source"])
        if "columns" in given:
            settings["columns"] = given["columns"]
    else:
        quoted = sql.Identifier(schema).as_string(conn)
        settings["query"] = given["query"].replace("{schema}", quoted)
    left_out = f"there is no table {', '.join(missing)}" if missing else ""
    if view not in unset and not left_out:
        left_out = "it is in use already, and stays as it is"
    return Step("directory", view, settings, left_out=left_out)


def _table_name(conn: Connection, schema: str, table: str) -> str | None:
    row = conn.execute(
        "select format('%%I.%%I', n.nspname, c.relname) from pg_catalog.pg_class as c"
        " join pg_catalog.pg_namespace as n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relname = %s and c.relkind in ('r', 'p')",
        [schema, table],
    ).fetchone()
    return None if row is None else str(row[0])


def _check_schema(conn: Connection, schema: str) -> None:
    from pgaudit_wf.trail.statement import one

    (found,) = one(
        conn, "select exists (select from pg_catalog.pg_namespace where nspname = %s)", [schema]
    )
    if not found:
        raise Failure(f"there is no schema {schema}", "say where the tables are: --schema NAME")


def _print_plan(steps: Sequence[Step]) -> None:
    out = console()
    tables = [step for step in steps if step.kind in ("table", "workflow")]
    if tables:
        print_table(
            ["Table", "Recorded as", "Ignored", "Redacted", ""],
            [
                [
                    printable(step.name),
                    "-" if step.left_out else printable(_recorded_as(step)),
                    printable(", ".join(step.settings.get("ignore", []))) or "-",
                    printable(", ".join(step.settings.get("redact", []))) or "-",
                    Text(printable("left out: " + step.left_out), style="yellow")
                    if step.left_out else printable("; ".join(step.notes)),
                ]
                for step in tables
            ],
        )  # fmt: skip
    for kind, what in (("rule", "Names of changes"), ("directory", "Directories"),
                       ("waiver", "Not recorded on purpose")):  # fmt: skip
        named = [step for step in steps if step.kind == kind]
        if named:
            said = [
                step.name + (f" (left out: {step.left_out})" if step.left_out else "")
                for step in named
            ]
            out.print(f"{what}: {printable(', '.join(dict.fromkeys(said)))}", soft_wrap=True)


def _recorded_as(step: Step) -> str:
    name = str(step.settings.get("resource_type", "its name"))
    return f"{name}, with versions" if step.kind == "workflow" else name


def _follow(conn: Connection, step: Step) -> str:
    """Do one step in a transaction of its own; return what went wrong, or ""."""
    import psycopg
    from psycopg.types.json import Jsonb

    rows: Mapping[str, Callable[[], object]] = {
        "table": partial(call_attach, conn, "attach", step.name, step.settings),
        "workflow": partial(call_attach, conn, "attach_workflow", step.name, step.settings),
        "rule": partial(
            conn.execute, "select pgaudit_wf._add_rule(%s)", [Jsonb(step.settings)]
        ),
        "waiver": partial(
            conn.execute, "select pgaudit_wf._add_waiver(%s, %s)",
            [step.name, step.settings.get("reason")],
        ),
        "directory": partial(
            conn.execute,
            "select pgaudit_wf.use_directory(%(directory)s, %(source)s::regclass, %(columns)s,"
            " %(query)s)",
            {
                "directory": step.name,
                "source": step.settings.get("source"),
                "columns": Jsonb(step.settings["columns"]) if "columns" in step.settings else None,
                "query": step.settings.get("query"),
            },
        ),
    }  # fmt: skip
    try:
        rows[step.kind]()
    except psycopg.errors.LockNotAvailable:
        return f"it is in use for more than {_LOCK_TIMEOUT}: run the command again"
    except psycopg.Error as error:
        if conn.closed:
            raise
        return _sentence(error.diag) or type(error).__name__
    return ""


def _sentence(said: psycopg.errors.Diagnostic) -> str:
    return (said.message_primary or "") + (f" ({said.message_hint})" if said.message_hint else "")


def _print_result(
    todo: Sequence[Step], failed: Sequence[tuple[Step, str]], warned: Sequence[str]
) -> None:
    out = console()
    for warning in dict.fromkeys(warned):
        line = Text("warning: ", style="yellow")
        out.print(line.append(printable(warning), "default"), soft_wrap=True)
    for step, why in failed:
        line = Text(f"{step.kind} {printable(step.name)} failed: ", style="bold red")
        out.print(line.append(printable(why), "default"), soft_wrap=True)
    broken = [step for step, _ in failed]
    done = [step for step in todo if step not in broken]
    tables = [step for step in done if step.kind in ("table", "workflow")]
    recorded = "1 table is" if len(tables) == 1 else f"{len(tables)} tables are"
    out.print(f"{recorded} recorded from now on.")
    for step in done:
        if step.kind == "workflow":
            out.print(f"Next: pgaudit-wf backfill {printable(step.name)}")
