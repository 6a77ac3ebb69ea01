"""The command `pgaudit-wf`; each module of `commands` has the commands of one subject."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_group

from pgaudit_wf.cli.base import Commands, help_text
from pgaudit_wf.cli.listing import COMMANDS


class LazyCommands(Commands):
    """The commands of the list, each imported when it is called or asked for its help."""

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401 - typer's signature
        super().__init__(**attributes)
        self._modules: dict[str, str] = {}
        for group, members in COMMANDS.items():
            for name, (module, summary) in members.items():
                self._modules[name] = module
                # What --help and the completion of the shell need of it.
                self.add_command(TyperCommand(name, help=summary, rich_help_panel=group))

    def load(self, wanted: str) -> None:
        """Import a command, if there is such a one and it is not yet there."""
        if module := self._modules.pop(wanted, None):
            subject = typer.Typer(rich_markup_mode=self.rich_markup_mode)
            import_module(f"pgaudit_wf.cli.commands.{module}").register(subject)
            for name, command in get_group(subject).commands.items():
                if name in self.commands:
                    self._modules.pop(name, None)
                    self.add_command(command, name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - as above
        """Return the command that the first argument names, imported."""
        self.load(args[0])
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="pgaudit-wf",
    cls=LazyCommands,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

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
        pgaudit-wf hub status                  the logs of many databases in one
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
