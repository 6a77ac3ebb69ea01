"""`alerts`: the worker that notifies people of events, and its deliveries."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pgaudit_wf import manual
from pgaudit_wf.cli.base import USAGE, Failure, add, connect, dict_rows, help_text, opener
from pgaudit_wf.cli.options import (
    DatabaseOption,
    HealthHostOption,
    HealthPortOption,
    JsonOption,
    LimitOption,
    UtcOption,
)
from pgaudit_wf.cli.printing.output import console, moment, print_json, print_table

if TYPE_CHECKING:
    from pgaudit_wf.alerts import Channel

TemplatesOption = Annotated[
    Path | None,
    typer.Option(
        "--templates",
        envvar="PGAUDIT_WF_ALERT_TEMPLATES",
        metavar="DIR",
        show_default=False,
        help="Your own e-mail templates; missing ones are taken from the package.",
    ),
]
PagesUrlOption = Annotated[
    str,
    typer.Option(
        "--pages-url",
        envvar="PGAUDIT_WF_PAGES_URL",
        metavar="URL",
        show_default=False,
        help="Where the pages are mounted: e-mails link to the event there.",
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--send-timeout",
        min=1,
        max=600,
        metavar="SECONDS",
        help="The longest time to send one message.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(name="alerts", rich_markup_mode="rich")
    group.callback(invoke_without_command=True, help=help_text(alerts))(alerts)
    for command in (run, list_, requeue, rules, send_test):
        add(group, command)
    app.add_typer(group)


def alerts(ctx: typer.Context) -> None:
    """Notify people and programs of events: the worker, its rules, and its deliveries.

        pgaudit-wf alerts rules
        pgaudit-wf alerts test smtp you@example.com
        pgaudit-wf alerts run
        pgaudit-wf alerts list --state dead

    The mail server and webhooks are configured by PGAUDIT_WF_SMTP_* and PGAUDIT_WF_WEBHOOK_* in
    the environment. The manual: docs/how-to/alerts.md
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit


def _variables() -> str:
    return f"for the variables of smtp and webhook see {manual.page('how-to/alerts.md')}"


def chosen_channels(
    variables: Mapping[str, str],
    templates: Path | None,
    pages: str,
    timeout: float,
    chosen: Sequence[str],
) -> dict[str, Channel]:
    """Return the channels that are set up, or those of them that are chosen.

    Raises:
        Failure: A package is missing, or a chosen channel is not set up.
        AlertSettingsError: A variable has an invalid value.
    """
    found = _channels(variables, templates, pages, timeout)
    if missing := set(chosen) - set(found):
        raise Failure(f"channel {', '.join(sorted(missing))} is not set up", _variables(), USAGE)
    return {name: found[name] for name in chosen or found}


def _channels(
    variables: Mapping[str, str], templates: Path | None, pages: str, timeout: float
) -> dict[str, Channel]:
    try:
        # Jinja2 comes with an extra, and the other commands do without.
        from pgaudit_wf.alerts import Templates, channels_from
    except ImportError as error:
        raise Failure(
            f"alerts need a package that is not installed: {error.name}",
            "pip install 'pgaudit-wf[alerts]'",
        ) from error
    return channels_from(variables, Templates(templates, pages), timeout)


def run(
    once: Annotated[
        bool, typer.Option("--once", help="Deliver the messages that are due, then exit; for cron.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option(min=0.05, max=3600, metavar="SECONDS", help="How often to check when idle."),
    ] = 5.0,
    health_port: HealthPortOption = None,
    health_host: HealthHostOption = "127.0.0.1",
    channel: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Serve only this channel (smtp, webhook, log); repeat for several.",
        ),
    ] = None,
    templates: TemplatesOption = None,
    pages_url: PagesUrlOption = "",
    send_timeout: TimeoutOption = 30.0,
    database: DatabaseOption = "",
) -> None:
    """Follow the log and deliver alerts, until SIGTERM or Ctrl-C; logs JSON to standard error.

    Any number of workers may run at once. After a signal, the current message is still sent; after
    a second one it is not. Failed messages are retried at increasing intervals, by any worker.

        pgaudit-wf alerts run -d service=shop --health-port 9187
        pgaudit-wf alerts run --once
    """
    from pgaudit_wf.jobs.service import Service, json_logs

    found = chosen_channels(os.environ, templates, pages_url, send_timeout, channel or ())
    from pgaudit_wf.alerts import Worker

    service = Service("alerts")
    worker = Worker(opener(database, "pgaudit-wf alerts"), found, service)
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


def list_(
    state: Annotated[
        Literal["pending", "sending", "sent", "dead", "unaddressed"] | None,
        typer.Option(show_default=False, help="Only in this state."),
    ] = None,
    recipient: Annotated[
        str | None, typer.Option(metavar="TEXT", show_default=False, help="Only to this recipient.")
    ] = None,
    limit: LimitOption = 50,
    utc: UtcOption = False,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show deliveries, the newest first: pending, sending, sent, dead (given up) or unaddressed.

    Unaddressed: the rule found no recipient with an e-mail address, so nobody was notified.

        pgaudit-wf alerts list
        pgaudit-wf alerts list --state dead --json
    """
    with connect(database) as conn:
        rows = dict_rows(
            conn,
            "select id, state, channel, recipient, action, event_id, attempts, created_at,"
            " due_at, settled_at, message, last_error from pgaudit_wf.alert_delivery_list"
            " where (%(state)s::text is null or state = %(state)s)"
            " and (%(recipient)s::text is null or recipient = %(recipient)s)"
            " order by id desc limit %(limit)s",
            {"state": state, "recipient": recipient, "limit": limit},
        )
    if as_json:
        print_json(rows)
        return
    if not rows:
        console().print("No delivery matches." if state or recipient else "No deliveries yet.")
        return
    zone = UTC if utc else None
    print_table(
        ["Id", "State", "Channel", "Recipient", "Action", "Event", "Attempts", "When", "Problem"],
        [
            [
                str(row["id"]),
                row["state"],
                row["channel"],
                row["recipient"] or "(no recipient)",
                row["action"],
                str(row["event_id"]),
                str(row["attempts"]),
                moment(row["settled_at"] or row["due_at"], zone),
                row["last_error"] or "",
            ]
            for row in rows
        ],
    )


def requeue(
    delivery: Annotated[
        int | None,
        typer.Argument(metavar="[ID]", show_default=False, help="The id, as in alerts list."),
    ] = None,
    all_dead: Annotated[
        bool, typer.Option("--all-dead", help="All that are dead or unaddressed.")
    ] = False,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Deliver dead or unaddressed messages again; several are sent as a digest.

    pgaudit-wf alerts requeue 42
    pgaudit-wf alerts requeue --all-dead
    """
    from pgaudit_wf.trail.statement import one

    if (delivery is None) != all_dead:
        raise Failure("give either one delivery id or --all-dead", "see alerts list", USAGE)
    with connect(database) as conn:
        (requeued,) = one(conn, "select pgaudit_wf.requeue_alert(%s)", [delivery])
    if as_json:
        print_json({"requeued": requeued})
    else:
        typer.echo(f"Queued again: {requeued}.")


def rules(database: DatabaseOption = "", as_json: JsonOption = False) -> None:
    """Show the rules: who is notified of what. Change them as rows of pgaudit_wf.alert_rule.

    pgaudit-wf alerts rules
    """
    with connect(database) as conn:
        rows = dict_rows(
            conn,
            "select id, action_pattern, outcome, org_id, channel, audience, address, enabled,"
            " created_at from pgaudit_wf.alert_rule_list order by id",
        )
    if as_json:
        print_json(rows)
        return
    print_table(
        ["Id", "Action", "Outcome", "Org", "Channel", "Audience", "Enabled"],
        [
            [
                str(row["id"]),
                row["action_pattern"],
                row["outcome"] or "any",
                row["org_id"] or "all",
                row["channel"],
                row["address"] or row["audience"],
                "yes" if row["enabled"] else "no",
            ]
            for row in rows
        ],
    )


def send_test(
    channel: Annotated[
        Literal["smtp", "webhook", "log"], typer.Argument(help="smtp, webhook or log.")
    ],
    recipient: Annotated[
        str, typer.Argument(metavar="RECIPIENT", help="E-mail address, URL or name of a stream.")
    ],
    templates: TemplatesOption = None,
    pages_url: PagesUrlOption = "",
    send_timeout: TimeoutOption = 30.0,
) -> None:
    """Send a sample alert now, to test the settings; the database is not needed.

    pgaudit-wf alerts test smtp you@example.com
    pgaudit-wf alerts test webhook https://hooks.example.com/audit
    """
    from pgaudit_wf.jobs.service import json_logs

    found = _channels(os.environ, templates, pages_url, send_timeout)
    from pgaudit_wf.alerts import Alert, DeliveryError
    from pgaudit_wf.alerts.message import SAMPLE

    if channel not in found:
        raise Failure(f"channel {channel} is not set up", _variables(), USAGE)
    with json_logs():
        try:
            found[channel].send(Alert(channel, recipient, os.urandom(16).hex(), [SAMPLE], 1))
        except DeliveryError as error:
            raise Failure(f"not sent: {error}") from error
        finally:
            found[channel].close()
    typer.echo(f"Sent to {recipient}.")


# Names that would shadow a type, or that pytest would take for a test's.
list_.__name__, send_test.__name__ = "list", "test"
