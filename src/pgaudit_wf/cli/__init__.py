"""The command `pgaudit-wf`; each module of `commands` adds the commands of one subject."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from pgaudit_wf.cli.base import Commands, help_text
from pgaudit_wf.cli.commands import (
    alerts,
    attach,
    coverage,
    demo,
    erase,
    export,
    integrity,
    keys,
    lifecycle,
    limits,
    maintain,
    migrate,
    reconcile,
    run,
    serve,
    spool,
    states,
    stream,
    trail,
    undo,
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

        pgaudit-wf demo                        see it in action, on a server of its own
        pgaudit-wf migrate postgresql://…      install it in a database
        pgaudit-wf attach public.invoice       record every change of a table from now on
        pgaudit-wf log -f                      watch the trail
        pgaudit-wf undo --request ID           put back what a request changed
        pgaudit-wf history WORKFLOW            show a workflow's versions
        pgaudit-wf alerts run                  notify people of events
        pgaudit-wf keys watch                  watch API keys
        pgaudit-wf stream                      send events to other systems
        pgaudit-wf serve --org ID --as ACTOR   browse all of this as web pages
        pgaudit-wf doctor                      check that everything is still recorded
        pgaudit-wf verify --key seal.pub       check that nothing sealed was altered
        pgaudit-wf reconcile                   compare the rows with what the log says
        pgaudit-wf maintain --dry-run          partitions, archives and retention
        pgaudit-wf run --config FILE           all jobs in one process

    The database is given by [bold]-d[/], else by the environment variable PGAUDIT_WF_DATABASE,
    else by libpq's own variables (PGHOST, PGDATABASE, PGSERVICE, …). Keep passwords off the
    command line: use ~/.pgpass or PGPASSWORD.

    Exit codes: 0 success; 1 refused, or a problem was found; 2 wrong usage; 3 database not
    reachable; 130 interrupted; 141 the reader of the output closed it.

    The manual begins with docs/index.md
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit


app.callback(invoke_without_command=True, help=help_text(main))(main)
for subject in (
    demo, migrate, attach, coverage, trail, states, workflow, versions, lifecycle, alerts, keys,
    stream, limits, spool, run, maintain, export, erase, undo, integrity, reconcile, serve,
):  # fmt: skip
    subject.register(app)
