"""`reconcile`: the log against the rows as they are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgaudit_wf.cli.base import FAILED, USAGE, Failure, add, connect
from pgaudit_wf.cli.options import DatabaseOption, JsonOption
from pgaudit_wf.cli.printing.output import (
    console,
    print_json,
    print_table,
    printable,
    progress_bar,
    short,
)

if TYPE_CHECKING:
    from pgaudit_wf.integrity.reconcile import Compared, Finding

_NOTES = (
    (
        "unrecorded",
        "rows without any event",
        "they are older than the table's attachment or than what the log still has, or were put in"
        " past the triggers",
    ),
    ("partial", "rows without the event of their insertion", "what was written since was compared"),
    (
        "incomparable",
        "values that the log cannot tell",
        "redacted, masked by an erasure, given by DDL, or recorded by digest in another form",
    ),
    (
        "truncated",
        "keys of rows that are gone",
        "they were older than the truncation of a partition, which may have held them",
    ),
    ("keyless", "rows without a key", "no event can name them"),
    ("failures", "changes that went through unrecorded", "on_failure is 'warn'"),
)


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    add(app, reconcile)


def reconcile(
    table: Annotated[
        str | None,
        typer.Argument(
            metavar="[TABLE]", show_default=False, help="An attached table; default: all of them."
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            show_default=False,
            help="Only about N rows of each table, and N keys of the log, drawn by chance.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="KEY",
            show_default=False,
            help="Begin with the row of this primary key; several columns as a JSON array.",
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="File for the place reached: an interrupted run is continued from there.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of findings to show.")] = 100,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Compare the rows of attached tables with what the log says of them.

    Names rows that were changed past the triggers, column by column, those that are missing, and
    those that no event explains. Reads only, in short transactions, on a standby too; the role must
    read the tables and the whole log. Exit code 0: all agree; 1: something was found, or a table
    cannot be compared.

        pgaudit-wf reconcile public.invoice
        pgaudit-wf reconcile --sample 1000
        pgaudit-wf reconcile --state /var/tmp/reconcile.json
    """
    from pgaudit_wf.integrity.reconcile import reconcile as reconcile_tables

    if start is not None and table is None:
        raise Failure("--from needs a table", "see pgaudit-wf reconcile --help", USAGE)
    if sample is not None and (start is not None or state is not None):
        raise Failure(
            "--sample draws rows by chance, so there is no place to go on from",
            "leave out --from and --state",
            USAGE,
        )
    shown, out = 0, console()

    def show(finding: Finding) -> None:
        nonlocal shown
        shown += 1
        if not as_json and shown <= limit:
            # At a terminal, the bar has to make room for it.
            at_terminal = sys.stdout.isatty() and not bar.disable
            (bar.console if at_terminal else out).print(
                printable(_describe(finding)), style="red", soft_wrap=True
            )

    with connect(database) as conn, progress_bar(as_json) as bar:
        task = bar.add_task("Comparing", total=None)

        def update(current: Compared, done: int) -> None:
            bar.update(
                task,
                description=printable(current.table),
                completed=done,
                total=max(2 * current.estimate, done) or None,
            )

        tables, findings = reconcile_tables(
            conn, table, sample=sample, start=start, state=state, found=show, progress=update
        )
    agree = all(one.agrees for one in tables)
    if as_json:
        print_json(
            {"agree": agree, "found": sum(one.found for one in tables), "tables": tables,
             "findings": findings[:limit]}
        )  # fmt: skip
    else:
        _print_summary(tables, max(0, shown - limit), agree)
    if not agree:
        raise typer.Exit(FAILED)


def _describe(finding: Finding) -> str:
    row = f"{finding.table} {finding.resource_id}"
    when = f"{finding.occurred_at:%Y-%m-%d %H:%M:%S %z}" if finding.occurred_at else ""
    before, after = short(finding.before), short(finding.after)
    within = "" if finding.path.count("/") < 2 else f" at {finding.path}"
    column = f"{row}, column {finding.column}{within}"
    if finding.kind == "changed":
        text = f"{column}: {before} in the log, {after} in the row, last event {finding.event_id}"
    elif finding.kind == "overwritten":
        text = f"{column}: {before} in the log, {after} when event {finding.event_id} changed it"
    elif finding.kind == "missing":
        text = f"{row}: its last event is {finding.event_id}, and the row is gone"
    elif finding.event_id is None:
        text = f"{row}: no event says how the row came to be there"
    else:
        text = f"{row}: the row is there, though it was deleted, last event {finding.event_id}"
    return f"{finding.kind.upper()}: {text}{f', {when}' if when else ''}"


def _print_summary(tables: list[Compared], more: int, agree: bool) -> None:
    out = console()
    if more:
        out.print(f"… and {more} more.", style="red")
    print_table(
        ["table", "rows", "keys", "changed", "overwritten", "missing", "unknown"],
        [
            [one.table, f"not compared: {one.obstacle}", *[""] * 5]
            if one.obstacle
            else [one.table, *(str(getattr(one, name)) for name in (
                "rows", "ids", "changed", "overwritten", "missing", "unknown"))]
            for one in tables
        ],
    )  # fmt: skip
    for one in tables:
        notes = [
            f"{what}: {getattr(one, name)}; {why}."
            for name, what, why in _NOTES
            if getattr(one, name)
        ]
        if one.pruned_until:
            notes.append(
                f"events before {one.pruned_until} were pruned; what only they say is not compared."
            )
        notes += [f"it was not attached from {start} to {end}." for start, end in one.off]
        for note in notes:
            out.print(printable(f"{one.table}: {note}"), soft_wrap=True)
    if agree:
        out.print("Every row that was compared is as the log says.", style="green")
    else:
        out.print("The tables and the log do NOT agree.", style="bold red")
