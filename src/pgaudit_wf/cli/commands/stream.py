"""`stream`: the worker that sends the log to other systems, and its destinations."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer

from pgaudit_wf.cli.base import USAGE, Failure, add, connect, dict_rows, help_text, opener
from pgaudit_wf.cli.options import (
    DatabaseOption,
    HealthHostOption,
    HealthPortOption,
    JsonOption,
    OrgOption,
    UtcOption,
    time_option,
)
from pgaudit_wf.cli.printing.output import console, moment, print_json, print_table

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the destination.")]
TimeoutOption = Annotated[
    float,
    typer.Option("--send-timeout", min=1, max=600, metavar="SECONDS", help="For each request."),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(name="stream", rich_markup_mode="rich")
    group.callback(invoke_without_command=True, help=help_text(stream))(stream)
    for command in (add_, list_, pause, resume, remove, send_test, backfill, grant):
        add(group, command)
    app.add_typer(group)


def stream(
    ctx: typer.Context,
    once: Annotated[
        bool, typer.Option("--once", help="Send what is due, then exit; for cron.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option(min=0.05, max=3600, metavar="SECONDS", help="How often to check when idle."),
    ] = 2.0,
    health_port: HealthPortOption = None,
    health_host: HealthHostOption = "127.0.0.1",
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", show_default=False, help="Only this destination; repeat for several."
        ),
    ] = None,
    send_timeout: TimeoutOption = 30.0,
    database: DatabaseOption = "",
) -> None:
    """Send the log to other systems while it happens, until SIGTERM or Ctrl-C.

    Logs JSON to standard error. Any number of workers may run at once. Secrets come from the
    environment. The manual: docs/how-to/stream.md

        pgaudit-wf stream add siem splunk https://splunk.example.com:8088 --secret siem
        pgaudit-wf stream test siem
        pgaudit-wf stream -d service=shop --health-port 9188
    """
    from pgaudit_wf.jobs.service import Service, json_logs
    from pgaudit_wf.streams import StreamWorker

    if ctx.invoked_subcommand is not None:
        return
    service = Service("stream")
    worker = StreamWorker(
        opener(database, "pgaudit-wf stream"),
        os.environ,
        service,
        only=only or None,
        timeout=send_timeout,
    )
    with json_logs():
        try:
            service.run(
                worker.job,
                once=once,
                interval=interval,
                health_port=health_port,
                health_host=health_host,
            )
        finally:
            worker.close()


def add_(
    name: NameArgument,
    kind: Annotated[
        Literal["splunk", "datadog", "webhook", "syslog", "files"],
        typer.Argument(help="splunk, datadog, webhook, syslog or files."),
    ],
    url: Annotated[str, typer.Argument(metavar="URL", help="https://…, tls://host:port, s3://….")],
    org: OrgOption = None,
    action: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            show_default=False,
            help="Only these actions; * matches any characters; repeatable.",
        ),
    ] = None,
    format_: Annotated[
        Literal["ocsf", "ndjson", "cef", "parquet"],
        typer.Option("--format", "-F", help="ocsf, ndjson, cef or, for files, parquet."),
    ] = "ocsf",
    secret: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Name of its secret, which is in PGAUDIT_WF_STREAM_SECRET_<NAME>.",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            show_default=False,
            help="What the kind takes besides, such as index=audit; repeatable.",
        ),
    ] = None,
    max_value: Annotated[
        int,
        typer.Option(
            metavar="BYTES", help="Send a larger diff or metadata as its SHA-256 and length."
        ),
    ] = 262144,
    since: Annotated[
        datetime | None, time_option("Also what was recorded from then on; default: new events.")
    ] = None,
    database: DatabaseOption = "",
) -> None:
    """Add a destination; it gets what is recorded from now on, or from --since.

    pgaudit-wf stream add siem splunk https://splunk.example.com:8088 --secret siem
    pgaudit-wf stream add lake files s3://bucket/audit --format parquet --since 30d
    pgaudit-wf stream add soc syslog tls://soc.example.com:6514 --org o_1 --action 'session.*'
    """
    from psycopg.types.json import Jsonb

    with connect(database) as conn:
        conn.execute(
            "select pgaudit_wf._add_stream(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                name, kind, url, org, action, format_, secret,
                Jsonb(dict(map(_setting, setting or []))), max_value, since,
            ],
        )  # fmt: skip
    typer.echo(f"Added {name}.")


def _setting(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise Failure(f"{text} is not NAME=VALUE", "for instance --set index=audit", USAGE)
    try:
        parsed = json.loads(value)
    except ValueError:
        return name, value
    return name, parsed if isinstance(parsed, bool | int) else value


def list_(
    database: DatabaseOption = "", utc: UtcOption = False, as_json: JsonOption = False
) -> None:
    """Show the destinations, and how they are doing.

    pgaudit-wf stream list
    """
    with connect(database) as conn:
        rows = dict_rows(conn, "select * from pgaudit_wf.stream_list order by name")
    if as_json:
        print_json(rows)
        return
    if not rows:
        console().print("No destinations yet.")
        return
    zone = UTC if utc else None
    print_table(
        ["Name", "Kind", "URL", "Org", "Actions", "State", "Sent", "Refused", "Last", "Problem"],
        [
            [
                row["name"],
                f"{row['kind']}, {row['format']}",
                row["url"],
                row["org_id"] or "all",
                ", ".join(row["action_patterns"]),
                "paused" if row["paused"] else "failing" if row["attempts"] else "on",
                str(row["sent"]),
                str(row["dead_letters"]),
                moment(row["last_sent_at"], zone),
                row["last_error"] or "",
            ]
            for row in rows
        ],
    )


def pause(name: NameArgument, database: DatabaseOption = "") -> None:
    """Stop a destination; its place in the log is kept.

    pgaudit-wf stream pause siem
    """
    with connect(database) as conn:
        conn.execute("select pgaudit_wf._pause_stream(%s, true)", [name])
    typer.echo(f"Paused {name}.")


def resume(name: NameArgument, database: DatabaseOption = "") -> None:
    """Let a destination go on where it was; one that fails is tried again at once.

    pgaudit-wf stream resume siem
    """
    with connect(database) as conn:
        conn.execute("select pgaudit_wf._pause_stream(%s, false)", [name])
    typer.echo(f"Resumed {name}.")


def remove(name: NameArgument, database: DatabaseOption = "") -> None:
    """Remove a destination with its place in the log; pause keeps that.

    pgaudit-wf stream remove siem
    """
    with connect(database) as conn:
        conn.execute("select pgaudit_wf._remove_stream(%s)", [name])
    typer.echo(f"Removed {name}.")


def send_test(
    name: NameArgument, send_timeout: TimeoutOption = 30.0, database: DatabaseOption = ""
) -> None:
    """Send a destination an event audit.stream_tested, to check it and this environment.

    pgaudit-wf stream test siem
    """
    from pgaudit_wf.jobs.delivery import DeliveryError
    from pgaudit_wf.streams import target_for
    from pgaudit_wf.streams.worker import destination, probe

    with connect(database) as conn:
        rows = dict_rows(
            conn, "select * from pgaudit_wf.stream_list where name = %(name)s", {"name": name}
        )
    if not rows:
        raise Failure(f"there is no destination {name}", "see pgaudit-wf stream list")
    target = target_for(destination(rows[0]), os.environ, send_timeout)
    try:
        target.send([probe(name, rows[0]["format"])])
    except DeliveryError as error:
        raise Failure(f"not sent: {error}") from error
    typer.echo(f"Sent to {name}.")


def backfill(
    name: NameArgument,
    since: Annotated[
        datetime | None, time_option("From this time on; default: from the log's beginning.")
    ] = None,
    database: DatabaseOption = "",
) -> None:
    """Send a destination again what was recorded from a time on, what it refused included.

    pgaudit-wf stream backfill siem --since 2026-03-01
    """
    with connect(database) as conn:
        conn.execute("select pgaudit_wf._backfill_stream(%s, %s)", [name, since])
    typer.echo(f"{name} goes on from {'the beginning' if since is None else since.isoformat()}.")


def grant(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="A login.")],
    database: DatabaseOption = "",
) -> None:
    """Let a login run pgaudit-wf stream, and read no more than what destinations get.

    pgaudit-wf stream grant audit_stream
    """
    with connect(database) as conn:
        conn.execute("select pgaudit_wf._grant_streams(quote_ident(%s)::regrole)", [role])
    typer.echo(f"{role} may run pgaudit-wf stream.")


# Names that would shadow a builtin or a type, or that pytest would take for a test's.
add_.__name__, list_.__name__, send_test.__name__ = "add", "list", "test"
