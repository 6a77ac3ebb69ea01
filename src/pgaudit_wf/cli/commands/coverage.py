"""`coverage`: what is neither recorded nor waived."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from pgaudit_wf.cli.base import FAILED, add, choose_database, connect, dict_rows
from pgaudit_wf.cli.options import DatabaseArgument, DatabaseOption, JsonOption
from pgaudit_wf.cli.printing.output import console, print_json, printable


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    add(app, coverage)


def coverage(
    conninfo: DatabaseArgument = "",
    fail: Annotated[
        bool, typer.Option("--fail", help="Exit with 1 if anything is found; for CI.")
    ] = False,
    days: Annotated[
        int,
        typer.Option(min=1, max=3650, metavar="DAYS", help="How far back events are looked at."),
    ] = 7,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """List what is not recorded as it should be, unless a row of pgaudit_wf.waiver says why.

    These are tables that are not attached, recorded columns whose name is that of a secret, and
    logins whose events do not say who acted. A waiver names one of them as it is listed here, and
    the reason, as in values ('public.cache', 'rebuilt each night'); it is an event of its own.

        pgaudit-wf coverage --fail
        pgaudit-wf coverage --days 30 --json
    """
    with connect(choose_database(conninfo, database)) as conn:
        found = dict_rows(
            conn,
            "select kind, subject, detail, remedy"
            " from pgaudit_wf._coverage(make_interval(days => %(days)s))",
            {"days": days},
        )
    if as_json:
        print_json(found)
    else:
        out = console()
        for row in found:
            line = Text(f"{row['kind']:<7}", style="yellow")
            line.append(f"{printable(row['subject'])}: {printable(row['detail'])}", "default")
            out.print(line, soft_wrap=True)
            out.print(Text(f"       {printable(row['remedy'])}", style="dim"), soft_wrap=True)
        if not found:
            out.print("Everything is covered or waived.")
    if fail and found:
        raise typer.Exit(FAILED)
