"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_type_hints

import typer

from pgaudit_wf.choices import Outcome
from pgaudit_wf.cli.base import Connection, parse_time

if TYPE_CHECKING:
    from pgaudit_wf.trail.reads import TrailFilter
else:
    # Typer evaluates annotations; the import is for when the filters are used.
    TrailFilter = dict

Filters: TypeAlias = TrailFilter

DatabaseOption = Annotated[
    str,
    typer.Option(
        "--database",
        "-d",
        envvar="PGAUDIT_WF_DATABASE",
        metavar="CONNINFO",
        show_default=False,
        help="Name, URL or libpq connection string; missing parts come from PG* variables.",
    ),
]
DatabaseArgument = Annotated[
    str,
    typer.Argument(
        metavar="[CONNINFO]", show_default=False, help="The database; the same as -d CONNINFO."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
UtcOption = Annotated[
    bool, typer.Option("--utc", help="Show times in UTC instead of the local time zone.")
]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, help="Maximum number of rows.")]

OrgOption = Annotated[
    str | None, typer.Option("--org", metavar="ID", show_default=False, help="Only this org.")
]
AsOption = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="ACTOR",
        show_default=False,
        help="Read as this owner or admin of --org; needed by logins of role pgaudit_wf_reader.",
    ),
]
ArchivesOption = Annotated[
    str | None,
    typer.Option(
        "--archive",
        metavar="PATH",
        show_default=False,
        help="Include archived months: a directory or URL that maintain archives to.",
    ),
]

HealthPortOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        metavar="PORT",
        show_default=False,
        help="While running, serve /healthz, /readyz and /metrics on this port; 0 picks one.",
    ),
]
HealthHostOption = Annotated[
    str, typer.Option(metavar="ADDRESS", help="The address to serve them on.")
]

KeysOption = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        "-k",
        envvar="PGAUDIT_WF_VERIFY_KEY",
        metavar="KEY",
        show_default=False,
        help="Public key, or a file with it; repeatable, for rotated keys and for witnesses.",
    ),
]
WitnessOption = Annotated[
    list[str] | None,
    typer.Option(
        "--witness",
        metavar="KEY",
        show_default=False,
        help="Key of a witness (kind 4), or a file with it; its signatures are stored; repeatable.",
    ),
]
TsaOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tsa",
        metavar="FILE",
        show_default=False,
        help="Certificates of a trusted time-stamp authority in PEM, the root first; repeatable.",
    ),
]


ReasonOption = Annotated[
    str | None,
    typer.Option(
        "--reason", metavar="TEXT", show_default=False, help="The reason, which is recorded."
    ),
]

ActorIdOption = Annotated[
    str | None,
    typer.Option(metavar="ID", show_default=False, help="Who does it, for the trail."),
]
ActorLabelOption = Annotated[
    str | None, typer.Option(metavar="NAME", show_default=False, help="That person's name.")
]
OrgIdOption = Annotated[
    str | None,
    typer.Option(metavar="ID", show_default=False, help="The organization acted for."),
]


@contextmanager
def reading(conn: Connection, org: str | None, actor: str | None) -> Iterator[None]:
    """Read as an owner or admin of an organization, if one is named."""
    from pgaudit_wf import request_context

    if actor is None:
        yield
        return
    with request_context(conn, actor_id=actor, org_id=org, record_failure=False):
        yield


def time_option(text: str) -> Any:  # noqa: ANN401 - typer's type is private
    """Return an option that is a time, with its help text."""
    return typer.Option(parser=parse_time, metavar="TIME", show_default=False, help=text)


def watch_option(shortest: float) -> Any:  # noqa: ANN401 - typer's type is private
    """Return the option that keeps a job running, with the shortest pause allowed."""
    return typer.Option(
        "--watch",
        min=shortest,
        max=86400,
        metavar="SECONDS",
        show_default=False,
        help="Repeat with this pause until SIGTERM or Ctrl-C; logs JSON to standard error.",
    )


def _trail_filter(
    org: OrgOption = None,
    action: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            show_default=False,
            help="Only this action; * is a wildcard: 'api_key.*', '*.deleted'; repeatable.",
        ),
    ] = None,
    not_action: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", show_default=False, help="Without this action; repeatable."
        ),
    ] = None,
    resource_type: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE", show_default=False, help="Only this type; repeatable."),
    ] = None,
    not_resource_type: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE", show_default=False, help="Without this type; repeatable."),
    ] = None,
    resource_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            show_default=False,
            help="Only this resource; several columns, with --resource-type: 5,1.",
        ),
    ] = None,
    actor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", show_default=False, help="Only this actor's events; repeatable."
        ),
    ] = None,
    not_actor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", show_default=False, help="Without this actor's events; repeatable."
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="ID", show_default=False, help="Only what this API key did."),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="NETWORK",
            show_default=False,
            help="Only from this address or network: 203.0.113.0/24.",
        ),
    ] = None,
    changed: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", show_default=False, help="Only updates of this column."),
    ] = None,
    value: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            show_default=False,
            help="Only where a column (if given, that of --changed) was or became this.",
        ),
    ] = None,
    correlation_id: Annotated[
        str | None, typer.Option(metavar="ID", show_default=False, help="Only this request.")
    ] = None,
    outcome: Annotated[
        Outcome | None, typer.Option(show_default=False, help="Only this outcome.")
    ] = None,
    since: Annotated[
        datetime | None,
        time_option("From this time on: 2026-03-01, '2026-03-01 14:30', yesterday, 90m, 7d."),
    ] = None,
    until: Annotated[datetime | None, time_option("Before this time.")] = None,
    search: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            show_default=False,
            help="Only with this text in a name, label, action, address or user agent.",
        ),
    ] = None,
) -> TrailFilter:
    return {
        "org_id": org,
        "action": action or None,
        "not_action": not_action or None,
        "resource_type": resource_type or None,
        "not_resource_type": not_resource_type or None,
        "resource_id": resource_id,
        "actor_id": actor or None,
        "not_actor_id": not_actor or None,
        "api_key_id": api_key,
        "network": network,
        "changed": changed,
        "value": value,
        "correlation_id": correlation_id,
        "outcome": outcome,
        "since": since,
        "until": until,
        "search": search,
    }


def filtering(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a trail's filters; it receives them as `filters`."""
    options = _parameters(_trail_filter)
    own = [parameter for parameter in _parameters(command) if parameter.name != "filters"]

    @wraps(command)
    def run(**given: Any) -> None:  # noqa: ANN401 - what typer has read
        filters = _trail_filter(**{option.name: given.pop(option.name) for option in options})
        command(filters=filters, **given)

    # Typer reads only these.
    run.__signature__ = Signature([*options, *own])  # type: ignore[attr-defined]
    run.__annotations__ = {shown.name: shown.annotation for shown in (*options, *own)}
    return run


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    kinds = get_type_hints(function, include_extras=True)
    return [
        parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=kinds[name])
        for name, parameter in signature(function).parameters.items()
    ]
