"""`keys`: watching API keys, and taking in reports of leaked ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pgaudit_wf.cli.base import (
    USAGE,
    Failure,
    add,
    check_conninfo,
    choose_database,
    connect,
    help_text,
    opener,
)
from pgaudit_wf.cli.options import DatabaseOption, HealthHostOption, HealthPortOption

_SECRET = "PGAUDIT_WF_LEAK_SECRET"  # noqa: S105 - the variable's name


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(name="keys", rich_markup_mode="rich")
    group.callback(invoke_without_command=True, help=help_text(keys))(keys)
    for command in (watch, intake, grant):
        add(group, command)
    app.add_typer(group)


def keys(ctx: typer.Context) -> None:
    """Watch API keys: events when one expires, lies unused, appears elsewhere or was leaked.

        pgaudit-wf keys watch
        pgaudit-wf keys intake --port 8766

    Which keys there are says the view pgaudit_wf.api_key_directory, and of what there are events
    the row of pgaudit_wf.api_key_policy. The manual: docs/how-to/api-keys.md
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit


def watch(
    once: Annotated[
        bool, typer.Option("--once", help="Do what is due, then exit; for cron.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option(min=0.05, max=86400, metavar="SECONDS", help="How often to check when idle."),
    ] = 60.0,
    health_port: HealthPortOption = None,
    health_host: HealthHostOption = "127.0.0.1",
    database: DatabaseOption = "",
) -> None:
    """Make events of keys that expire, lie unused or are used from a new network; logs JSON.

    Any number of these may run at once: each event is made once, and alert rules deliver it. The
    first run learns what was before, and makes no events of that.

        pgaudit-wf keys watch -d service=shop --health-port 9187
        pgaudit-wf keys watch --once
    """
    from pgaudit_wf.jobs.keys import KeyWatch
    from pgaudit_wf.jobs.service import Service, json_logs

    service = Service("keys")
    job = KeyWatch(opener(database, "pgaudit-wf keys"), service)
    with json_logs():
        try:
            service.run(
                job.job,
                once=once,
                interval=interval,
                health_port=health_port,
                health_host=health_host,
            )
        finally:
            job.close()


def intake(
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 8766,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address.")] = "127.0.0.1",
    database: DatabaseOption = "",
) -> None:
    """Take in signed reports of leaked keys over HTTP, until Ctrl-C or SIGTERM.

    POST to /, with the headers of Standard Webhooks. The secrets (whsec_…, several separated by
    blanks) are in PGAUDIT_WF_LEAK_SECRET, or in the file that PGAUDIT_WF_LEAK_SECRET_FILE names.
    Put a proxy with TLS in front of it. Needs the package's extra "web".

        PGAUDIT_WF_LEAK_SECRET_FILE=/run/secrets/leak pgaudit-wf keys intake --port 8766
    """
    from psycopg_pool import ConnectionPool

    from pgaudit_wf.errors import MissingExtraError

    secrets = _secrets()
    try:
        import uvicorn

        from pgaudit_wf.web import create_leak_intake
    except (ImportError, MissingExtraError) as error:
        raise Failure("the intake needs more packages", 'pip install "pgaudit-wf[web]"') from error
    conninfo = check_conninfo(choose_database("", database))
    with ConnectionPool(
        conninfo, min_size=1, max_size=2, open=False, name="leaks",
        kwargs={"application_name": "pgaudit-wf keys intake", "autocommit": True},
    ) as pool:  # fmt: skip
        config = uvicorn.Config(
            create_leak_intake(pool, secrets), host=host, port=port, log_level="info", ws="none",
            access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=5,
        )  # fmt: skip
        uvicorn.Server(config).run()


def _secrets() -> tuple[str, ...]:
    from pgaudit_wf.jobs.delivery import signing_key

    path = os.environ.get(f"{_SECRET}_FILE")
    try:
        text = Path(path).read_text() if path else os.environ.get(_SECRET, "")
    except OSError as error:
        raise Failure(f"{_SECRET}_FILE cannot be read: {error.strerror}", code=USAGE) from error
    found = tuple(text.split())
    try:
        for secret in found:
            signing_key(secret)
    except ValueError as error:
        raise Failure(f"{_SECRET}: {error}", code=USAGE) from None
    if not found:
        raise Failure(
            "no secret is given to check signatures with",
            f'set {_SECRET}; make one: echo "whsec_$(openssl rand -base64 32)"',
            USAGE,
        )
    return found


def grant(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="A login.")],
    database: DatabaseOption = "",
) -> None:
    """Let a login run these commands, and nothing else: it reads neither the log nor the keys.

    pgaudit-wf keys grant audit_keys
    """
    with connect(database) as conn:
        conn.execute("select pgaudit_wf.grant_keys(quote_ident(%s)::regrole)", [role])
    typer.echo(f"{role} may run pgaudit-wf keys.")
