"""`manage.py pgaudit_wf …`: the command pgaudit-wf, on a database of the settings."""

from __future__ import annotations

import argparse
import os

from django.core.management.base import BaseCommand, CommandParser
from django.db import DEFAULT_DB_ALIAS

from pgaudit_wf.cli import app
from pgaudit_wf.integrations.django.connection import conninfo

_VARIABLE = "PGAUDIT_WF_DATABASE"


class Command(BaseCommand):
    """Runs a command of pgaudit-wf; its exit code is this one's."""

    help = "Run a command of pgaudit-wf, such as doctor or maintain, on a database of the settings."
    # A job runs on when an unrelated check fails.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the database's alias and what follows it."""
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="Alias in DATABASES.")
        parser.add_argument(
            "arguments",
            nargs=argparse.REMAINDER,
            metavar="COMMAND",
            help="The command with its options, as after pgaudit-wf; none: a list of them.",
        )

    def handle(self, *, database: str, arguments: list[str], **_: object) -> None:
        """Run the command."""
        # Not an argument: other users of the machine could read the password there.
        before = os.environ.get(_VARIABLE)
        os.environ[_VARIABLE] = conninfo(database)
        try:
            app(arguments, prog_name="manage.py pgaudit_wf")
        except SystemExit as end:
            if end.code:
                raise
        finally:
            # Another call in the process may be for another database.
            if before is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = before
