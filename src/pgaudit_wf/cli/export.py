"""`export`: the trail for other programs."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import typer

from pgaudit_wf import request_context
from pgaudit_wf.archive import list_archives
from pgaudit_wf.cli._base import Connection, DatabaseOption, Failure, add, connect, parse_time
from pgaudit_wf.cli._output import console
from pgaudit_wf.export import Format, export_trail
from pgaudit_wf.read import TrailFilter


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    add(app, export)


def export(
    format_: Annotated[
        Format, typer.Option("--format", "-F", help="csv, ndjson, or ocsf: a SIEM's events.")
    ] = "csv",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", show_default=False, help="Default: standard output."
        ),
    ] = None,
    org: Annotated[
        str | None, typer.Option(metavar="ID", show_default=False, help="Only this org.")
    ] = None,
    action: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", show_default=False, help="Only this action: 'api_key.*'."),
    ] = None,
    resource_type: Annotated[
        str | None, typer.Option(metavar="TYPE", show_default=False, help="Only this kind.")
    ] = None,
    resource_id: Annotated[
        str | None, typer.Option(metavar="ID", show_default=False, help="Only this resource.")
    ] = None,
    actor: Annotated[
        str | None, typer.Option(metavar="ID", show_default=False, help="Only what this actor did.")
    ] = None,
    correlation_id: Annotated[
        str | None, typer.Option(metavar="ID", show_default=False, help="Only this request.")
    ] = None,
    outcome: Annotated[
        Literal["succeeded", "failed", "denied"] | None,
        typer.Option(show_default=False, help="Only with this outcome."),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_time, metavar="TIME", show_default=False, help="From this time on."
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_time, metavar="TIME", show_default=False, help="Before this time."
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(metavar="TEXT", show_default=False, help="Only with this text in it."),
    ] = None,
    archive: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", show_default=False, help="Archived months here too, as one trail."
        ),
    ] = None,
    as_actor: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="ACTOR",
            show_default=False,
            help="Who exports; logins of role pgaudit_wf_reader must be an owner or admin.",
        ),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", show_default=False, help="Why, for the record.")
    ] = None,
    database: DatabaseOption = "",
) -> None:
    """Write the trail to a file for a spreadsheet, a program or a SIEM, newest first.

    Constant memory, whatever there is. What was exported, in which format and by whom is itself
    recorded: audit.export_started, then audit.exported with the number of events.

        pgaudit-wf export --org o_acme --since 30d -o trail.csv
        pgaudit-wf export --format ndjson --action 'api_key.*' | gzip > keys.ndjson.gz
        pgaudit-wf export --format ocsf --archive s3://bucket/audit -o events.ndjson
    """
    filters: TrailFilter = {
        "org_id": org,
        "action": action,
        "resource_type": resource_type,
        "resource_id": resource_id,
        "actor_id": actor,
        "correlation_id": correlation_id,
        "outcome": outcome,
        "since": since,
        "until": until,
        "search": search,
    }
    archives = list_archives(archive) if archive else []
    with connect(database) as conn, _destination(output) as file:
        written = export_trail(
            conn,
            format_,
            file,
            filters=filters,
            archives=archives,
            reading=_context(conn, org, as_actor, reason),
        )
    if output is not None:
        console(stderr=True).print(f"{written:,} event{'' if written == 1 else 's'} in {output}")


def _context(
    conn: Connection, org: str | None, actor: str | None, reason: str | None
) -> Callable[[], AbstractContextManager[Any]]:
    correlation_id = f"export-{uuid.uuid4()}"

    def open_() -> AbstractContextManager[Any]:
        return request_context(
            conn, actor_id=actor, org_id=org, reason=reason, correlation_id=correlation_id
        )

    return open_


@contextmanager
def _destination(output: Path | None) -> Iterator[IO[str]]:
    if output is None:
        yield sys.stdout
        return
    # Under its name only when it is whole.
    temporary = output.with_name(f".{output.name}.part")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            yield file
        temporary.replace(output)
    except OSError as error:
        raise Failure(f"{output} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
