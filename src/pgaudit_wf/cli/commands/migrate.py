"""`migrate`: install, upgrade and remove the audit schema."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from pgaudit_wf.cli.base import USAGE, Failure, add, check_conninfo, choose_database, confirm
from pgaudit_wf.cli.options import DatabaseArgument, DatabaseOption, JsonOption
from pgaudit_wf.cli.printing.output import print_json, printable


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    add(app, migrate)


def migrate(
    conninfo: DatabaseArgument = "",
    database: DatabaseOption = "",
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="N",
            show_default=False,
            help="Stop at migration N; 0 takes everything away again.",
        ),
    ] = None,
    with_app_schema: Annotated[
        bool,
        typer.Option(
            "--with-app-schema", help="Also create the reference application, in schema public."
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="With --to 0: do not ask for confirmation.")
    ] = False,
    as_sql: Annotated[
        bool,
        typer.Option(
            "--sql",
            help="Print a script for psql instead, which does the same in one transaction.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Install the audit schema in a database, or bring it to the newest version.

    Safe to run twice, from many processes at once, and along with the application's own migrations.

        pgaudit-wf migrate postgresql://owner@host/shop
        pgaudit-wf migrate -d service=shop --with-app-schema
        pgaudit-wf migrate -d service=shop --to 0       # remove it, the log included; asks first
        pgaudit-wf migrate --sql > install.sql          # for psql -f; with -d, for that database
    """
    from pgaudit_wf.schema.migrate import migrate as run_migrations

    chosen = choose_database(conninfo, database)
    if as_sql:
        if to is not None or as_json:
            raise Failure("--sql goes with neither --to nor --json", code=USAGE)
        _print_script(chosen, with_app_schema)
        return
    target = check_conninfo(chosen)
    if to is not None and re.fullmatch("0+", to) and not yes:
        _confirm(target)
    result = run_migrations(target, to=to, with_app_schema=with_app_schema)
    if as_json:
        print_json(result)
        return
    for name in result.rolled_back:
        typer.echo(f"removed  {name}")
    for name in result.applied:
        typer.echo(f"applied  {name}")
    for name in result.added:
        typer.echo(f"added    {name}")
    for warning in result.warnings:
        typer.echo(f"warning: {printable(warning)}", err=True)
    if not result.applied and not result.rolled_back and not result.added:
        typer.echo(f"Nothing to do: the audit schema is at version {result.version}.")
    elif result.version:
        typer.echo(
            f"The audit schema is at version {result.version}."
            " Next: pgaudit-wf attach public.some_table"
        )
    else:
        typer.echo("The audit schema is gone.")


def _print_script(database: str, with_app_schema: bool) -> None:
    from pgaudit_wf.schema.script import migration_script

    target = check_conninfo(database) if database else None
    text = migration_script(target, with_app_schema=with_app_schema)
    if text is None:
        raise Failure("nothing to do: this database has every migration", code=0)
    typer.echo(text, nl=False)


def _confirm(target: str) -> None:
    """Ask whether to remove everything, after saying what that is.

    Raises:
        Failure: There is nobody to ask.
    """
    from pgaudit_wf.schema.migrate import contents

    lost = contents(target)
    if lost is None:
        return
    confirm(
        f"Remove {printable(lost)}, for ever?",
        Failure(
            f"--to 0 would remove {lost}, for ever",
            "confirm it with --yes when there is no terminal",
            USAGE,
        ),
    )
