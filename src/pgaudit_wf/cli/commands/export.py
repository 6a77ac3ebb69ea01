"""`export`: the trail for other programs."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from pgaudit_wf.choices import Format
from pgaudit_wf.cli.base import Connection, Failure, add, connect
from pgaudit_wf.cli.options import (
    ArchivesOption,
    AsOption,
    DatabaseOption,
    Filters,
    ReasonOption,
    filtering,
)
from pgaudit_wf.cli.printing.output import console


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    add(app, export)


@filtering
def export(
    filters: Filters,
    format_: Annotated[
        Format, typer.Option("--format", "-F", help="csv, ndjson, or ocsf (events for a SIEM).")
    ] = "csv",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", show_default=False, help="Default: standard output."
        ),
    ] = None,
    archive: ArchivesOption = None,
    as_actor: AsOption = None,
    reason: ReasonOption = None,
    database: DatabaseOption = "",
) -> None:
    """Write the trail to a file for a spreadsheet, a program or a SIEM, newest first.

    Memory use is constant. The export itself is recorded with its filters, format and actor (--as):
    audit.export_started, then audit.exported with the number of events.

        pgaudit-wf export --org o_acme --since 30d -o trail.csv
        pgaudit-wf export --format ndjson --action 'api_key.*' | gzip > keys.ndjson.gz
        pgaudit-wf export --format ocsf --archive s3://bucket/audit -o events.ndjson
    """
    from pgaudit_wf.archive.files import list_archives
    from pgaudit_wf.export.trail import export_trail

    archives = list_archives(archive) if archive else []
    with connect(database) as conn, _destination(output) as file:
        written = export_trail(
            conn,
            format_,
            file,
            filters=filters,
            archives=archives,
            reading=_context(conn, filters["org_id"], as_actor, reason),
        )
    if output is not None:
        console(stderr=True).print(f"{written:,} event{'' if written == 1 else 's'} in {output}")


def _context(
    conn: Connection, org: str | None, actor: str | None, reason: str | None
) -> Callable[[], AbstractContextManager[Any]]:
    from pgaudit_wf import request_context

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
    # It gets its name only when it is complete.
    temporary = output.with_name(f".{output.name}.part")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            yield file
        temporary.replace(output)
    except OSError as error:
        raise Failure(f"{output} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
