"""`attach`, `detach`, `status` and `doctor`: which tables are recorded, and whether it works."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated, Literal

import typer
from rich.text import Text

from pgaudit_wf.cli.attaching import attach_many, call_attach
from pgaudit_wf.cli.base import (
    FAILED,
    USAGE,
    Failure,
    add,
    choose_database,
    connect,
    without_empty,
)
from pgaudit_wf.cli.options import DatabaseArgument, DatabaseOption, JsonOption
from pgaudit_wf.cli.printing.attachments import print_attachments
from pgaudit_wf.cli.printing.output import console, moment, print_json, print_table, printable
from pgaudit_wf.presets import preset_names

TableArgument = Annotated[
    str,
    typer.Argument(metavar="TABLE", help="The table as in SQL: public.invoice, 'sales.\"Order\"'."),
]

ResourceTypeOption = Annotated[
    str | None,
    typer.Option(
        show_default=False, help="The name of a row's type in the log; default: the table's name."
    ),
]
IdColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        show_default=False,
        help="Column that identifies a row, repeatable; default: the primary key.",
    ),
]
OrgColumnOption = Annotated[
    str | None,
    typer.Option(
        show_default=False,
        help="Column with the organization; default: org_id or organization_id, if it exists.",
    ),
]
LabelColumnOption = Annotated[
    str | None,
    typer.Option(show_default=False, help="Column whose value names a row for people."),
]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option(
        show_default=False, help="Column to leave out of the log, repeatable; default: updated_at."
    ),
]
RedactOption = Annotated[
    list[str] | None,
    typer.Option(
        show_default=False,
        help="Column with a secret, or path within JSON (options.headers.*), repeatable: the log"
        " shows that it changed, never its value.",
    ),
]
ShallowOption = Annotated[
    list[str] | None,
    typer.Option(
        show_default=False,
        help="json or jsonb column to record as a whole when it changes, repeatable.",
    ),
]
MaxValueOption = Annotated[
    int | None,
    typer.Option(
        show_default=False,
        metavar="BYTES",
        help="Record longer values by SHA-256 and length only; 0: as they are, if jsonb allows.",
    ),
]
OnFailureOption = Annotated[
    Literal["abort", "warn"] | None,
    typer.Option(
        show_default=False,
        help="abort: refuse changes that cannot be recorded. warn: allow and count them.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (attach, detach, status, doctor):
        add(app, command)


def attach(
    table: Annotated[
        str,
        typer.Argument(
            metavar="[TABLE]",
            show_default=False,
            help="The table as in SQL: public.invoice, 'sales.\"Order\"'.",
        ),
    ] = "",
    resource_type: ResourceTypeOption = None,
    id_column: IdColumnOption = None,
    org_column: OrgColumnOption = None,
    label_column: LabelColumnOption = None,
    ignore: IgnoreOption = None,
    redact: RedactOption = None,
    shallow: ShallowOption = None,
    max_value: MaxValueOption = None,
    on_failure: OnFailureOption = None,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            metavar="NAME|FILE",
            show_default=False,
            help="Attach the tables of a product, as a TOML file says: "
            + ", ".join(preset_names()),
        ),
    ] = "",
    show: Annotated[
        bool, typer.Option("--show", help="Print the file of --preset, to copy.")
    ] = False,
    all_tables: Annotated[
        bool, typer.Option("--all", help="Attach every table that is neither attached nor waived.")
    ] = False,
    schema: Annotated[
        str | None,
        typer.Option(
            "--schema", show_default=False, help="Where the tables are; for --all: only this one."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan of --preset or --all, and stop.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Follow the plan without asking.")
    ] = False,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Record every change of a table from now on; for an attached table, change its settings.

    Options that are not given take the default named below or, on an attached table, keep their
    value; '' clears them. Only the table's owner may do this. --preset and --all attach many: the
    plan is shown first, and what looks like a secret is redacted, in JSON too.

        pgaudit-wf attach public.invoice --label-column number
        pgaudit-wf attach app.user --resource-type account --redact password_hash
        pgaudit-wf attach app.user --ignore last_seen_at --ignore updated_at
        pgaudit-wf attach app.user --label-column ''
        pgaudit-wf attach --preset n8n --dry-run
        pgaudit-wf attach --preset ./mine.toml
        pgaudit-wf attach --all --schema app

    The manual: docs/how-to/presets.md
    """
    from pgaudit_wf.presets import read_preset
    from pgaudit_wf.trail.reads import attached

    settings = {
        "resource_type": resource_type,
        "id_columns": without_empty(id_column),
        "org_column": org_column,
        "label_column": label_column,
        "ignore": without_empty(ignore),
        "redact": without_empty(redact),
        "shallow": without_empty(shallow),
        "max_value": max_value,
        "on_failure": on_failure,
    }
    if preset or all_tables or show or not table:
        if any(value is not None for value in settings.values()) or bool(table):
            raise Failure(
                "a table and its settings go without --preset, --all and --show",
                "copy the preset (--show) and change it there, or attach that table afterwards",
                USAGE,
            )
        if not preset and (show or not all_tables):
            raise Failure(
                "what is to be attached?",
                "name a table, or pass --all, or --preset with a file or one of "
                + ", ".join(preset_names()),
                USAGE,
            )
        if preset and all_tables:
            raise Failure("--preset and --all go one after the other", code=USAGE)
        chosen = read_preset(preset) if preset else None
        if chosen and show:
            print(chosen.text, end="")
            return
        with connect(database) as conn:
            attach_many(conn, chosen, schema, dry_run=dry_run, yes=yes, as_json=as_json)
        return
    with connect(database) as conn:
        name = call_attach(conn, "attach", table, settings)
        found = [a for a in attached(conn) if a.table == name]
    if as_json:
        print_json(found[0])
        return
    console().print(f"Recording every change of {printable(found[0].table)}:")
    print_attachments(found, None)


def detach(table: TableArgument, database: DatabaseOption = "") -> None:
    """Stop recording a table. Its events stay in the log.

    pgaudit-wf detach public.invoice
    """
    with connect(database) as conn:
        conn.execute("select pgaudit_wf.detach(%s::regclass)", [table])
    console().print(f"{printable(table)} is no longer recorded; its events stay in the log.")


def status(
    conninfo: DatabaseArgument = "",
    database: DatabaseOption = "",
    counts: Annotated[
        bool,
        typer.Option(
            "--counts/--no-counts",
            help="Count the events of each resource type, which reads the whole log.",
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Show the attached tables, the number of events, the log's partitions and its readers.

    pgaudit-wf status
    pgaudit-wf status --no-counts          # fast, on a log of many millions
    pgaudit-wf status --json | jq '.attached[].table'
    """
    from pgaudit_wf.trail.reads import attached, partitions

    with connect(choose_database(conninfo, database)) as conn:
        tables = attached(conn)
        parts = partitions(conn)
        readers = [name for (name,) in conn.execute("select pgaudit_wf._reader_logins()")]
        events: dict[str, int] | None = None
        if counts:
            events = {
                kind or "": count
                for kind, count in conn.execute(
                    "select resource_type, events from pgaudit_wf.event_count"
                )
            }
    if as_json:
        print_json({"attached": tables, "events": events, "partitions": parts, "readers": readers})
        return
    out = console()
    if tables:
        print_attachments(tables, events)
    else:
        out.print("No table is attached; attach one: pgaudit-wf attach public.some_table\n")
    if events is not None:
        other = set(events) - {a.resource_type for a in tables}
        named = "".join(
            f", {printable(kind) or 'without a type'} {events[kind]:,}" for kind in sorted(other)
        )
        out.print(f"{sum(events.values()):,} events in all{named}.\n")
    print_table(
        ["Partition", "From (UTC)", "To", "Events, about", "Size"],
        [
            [
                p.name,
                moment(p.from_time, UTC)[:10],
                moment(p.to_time, UTC)[:10] or "anything else",
                "" if p.events is None else f"{p.events:,}",
                f"{p.size / 1024 / 1024:,.1f} MiB",
            ]
            for p in parts
        ],
    )
    out.print(
        "Logins with the reader role (pgaudit_wf_reader): "
        + (", ".join(map(printable, readers)) or "none")
        + "."
    )


def doctor(
    conninfo: DatabaseArgument = "", database: DatabaseOption = "", as_json: JsonOption = False
) -> None:
    """Check that everything is still recorded; exit code 1 if there is an error.

    It finds missing or disabled triggers, columns that were added or dropped unnoticed, roles with
    too many rights and missing partitions, and says what to do about them.

        pgaudit-wf doctor || echo 'the audit trail needs attention'
    """
    from pgaudit_wf.trail.reads import attached
    from pgaudit_wf.trail.reads import doctor as read_findings

    with connect(choose_database(conninfo, database)) as conn:
        findings = read_findings(conn)
        tables = attached(conn)
    if as_json:
        print_json(findings)
    else:
        styles = {"error": "bold red", "warning": "yellow", "notice": "cyan"}
        out = console()
        for finding in findings:
            line = Text(finding.severity, style=styles[finding.severity])
            line.append(f"  {printable(finding.subject)}: {printable(finding.problem)}", "default")
            out.print(line, soft_wrap=True)
            out.print(Text(f"         {printable(finding.remedy)}", style="dim"), soft_wrap=True)
        if not findings:
            out.print(f"No problems found: {len(tables)} tables are recorded.")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(FAILED)
