"""The command `pgaudit-wf`; each module of `commands` adds the commands of one subject."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from pgaudit_wf.cli.base import Commands, help_text
from pgaudit_wf.cli.commands import (
    alerts,
    attach,
    demo,
    erase,
    export,
    integrity,
    limits,
    maintain,
    migrate,
    serve,
    spool,
    trail,
    versions,
    workflow,
)

app = typer.Typer(
    name="pgaudit-wf",
    cls=Commands,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pgaudit-wf {metadata.version('pgaudit-wf')}")
        raise typer.Exit


def main(
    ctx: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Audit trail inside PostgreSQL: attach a table, and every change to it is recorded.

        pgaudit-wf demo                        see it at work, on a server of its own
        pgaudit-wf migrate postgresql://…      install it in a database
        pgaudit-wf attach public.invoice       record every change of a table from now on
        pgaudit-wf log -f                      watch the trail
        pgaudit-wf history WORKFLOW            what became of a workflow, version by version
        pgaudit-wf alerts run                  tell people of what concerns them
        pgaudit-wf serve --org ID --as ACTOR   the same as pages in a browser
        pgaudit-wf doctor                      check that all is still recorded
        pgaudit-wf verify --key seal.pub       check that nothing sealed was altered
        pgaudit-wf maintain --dry-run          partitions, archives and retention

    The database is named by [bold]-d[/], else by the environment variable PGAUDIT_WF_DATABASE,
    else by libpq's own (PGHOST, PGDATABASE, PGSERVICE, …). A password is best kept out of the
    command line: in ~/.pgpass or in PGPASSWORD.

    Exit codes: 0 all right; 1 refused, or something was found; 2 wrong usage; 3 database not
    reachable; 130 interrupted; 141 whoever read the output has gone.

    The manual begins with docs/cli.md
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit


app.callback(invoke_without_command=True, help=help_text(main))(main)
for subject in (
    demo, migrate, attach, trail, workflow, versions, alerts, limits, spool, maintain, export,
    erase, integrity, serve,
):  # fmt: skip
    subject.register(app)
