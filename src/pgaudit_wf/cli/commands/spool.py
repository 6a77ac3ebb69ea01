"""`spool`: attempts that could not reach the database when they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgaudit_wf.cli.base import FAILED, Commands, Failure, add, choose_database, connect, help_text
from pgaudit_wf.cli.options import DatabaseArgument, DatabaseOption, JsonOption
from pgaudit_wf.cli.printing.output import console, print_json, print_table, printable

FileOption = Annotated[
    Path | None,
    typer.Option(
        "--file",
        metavar="PATH",
        show_default=False,
        help="The spool file; else PGAUDIT_WF_SPOOL or ~/.local/state/pgaudit_wf/attempts.jsonl.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(cls=Commands, help=help_text(spool), no_args_is_help=True)
    add(group, read)
    add(group, show)
    app.add_typer(group, name="spool")


def spool() -> None:
    """Record failed and denied attempts that could not reach the database when they were made.

    An application that cannot reach the database keeps them in a spool file on its machine.

    pgaudit-wf spool show
    pgaudit-wf spool read -d service=shop
    """


def _path(given: Path | None) -> Path:
    from pgaudit_wf.context.spool import spool_path

    try:
        return given or spool_path()
    except RuntimeError as error:
        raise Failure(str(error), "give the spool file: --file PATH") from None


def read(
    conninfo: DatabaseArgument = "",
    database: DatabaseOption = "",
    file: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record the spooled attempts, each exactly once, and empty the file.

    It is safe to kill and to repeat, from cron, and while the application keeps spooling. Exit code
    1 if a line was not an attempt; such lines are kept in PATH.rejected.

        pgaudit-wf spool read -d service=shop
        pgaudit-wf spool read --file /var/spool/shop/attempts.jsonl
    """
    from pgaudit_wf.context.spool import read_spool

    path = _path(file)
    with connect(choose_database(conninfo, database)) as conn:
        try:
            done = read_spool(conn, path)
        except OSError as error:
            raise Failure(f"{error.strerror}: {error.filename}") from error
    if as_json:
        print_json(done)
    else:
        out = console()
        out.print(
            f"{done.recorded:,} attempts recorded, {done.known:,} already known.", soft_wrap=True
        )
        if done.rejected:
            out.print(
                f"{done.rejected:,} lines rejected by the database or malformed: "
                f"{printable(str(path))}.rejected",
                soft_wrap=True,
            )
    if done.rejected:
        raise typer.Exit(FAILED)


def show(file: FileOption = None, as_json: JsonOption = False) -> None:
    """List the attempts that wait in the spool file.

    pgaudit-wf spool show --json | jq length
    """
    from pgaudit_wf.context.spool import spooled

    path = _path(file)
    try:
        waiting = spooled(path)
    except OSError as error:
        raise Failure(f"{error.strerror}: {error.filename}") from error
    if as_json:
        print_json(waiting)
        return
    if not waiting:
        console().print(f"Nothing waits in {printable(str(path))}.", soft_wrap=True)
        return
    print_table(
        ["When (UTC)", "Who", "Organization", "What", "Outcome", "Exception", "Correlation id"],
        [
            [
                str(entry.get("attempted_at", ""))[:19].replace("T", " "),
                str(context.get("actor_label") or context.get("actor_id") or ""),
                str(context.get("org_id") or ""),
                str(entry.get("action", "")),
                str(entry.get("outcome", "")),
                str((entry.get("metadata") or {}).get("exception", "")),
                str(context.get("correlation_id") or ""),
            ]
            for entry in waiting
            for context in [entry.get("context") or {}]
        ],
    )
