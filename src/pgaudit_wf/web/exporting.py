"""Exporting the trail as a file, streamed page by page; the export is recorded in the trail."""

from __future__ import annotations

import io
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from psycopg import sql
from starlette.requests import Request
from starlette.responses import StreamingResponse

from pgaudit_wf.choices import Format
from pgaudit_wf.exact_json import dumps
from pgaudit_wf.export.trail import event_writer, plain
from pgaudit_wf.trail.reads import TrailFilter, TrailPage, audit_trail
from pgaudit_wf.web.database import Database
from pgaudit_wf.web.principal import Principal

_PAGE = 250
_MEDIA = {
    "csv": ("text/csv; charset=utf-8", "csv"),
    "ndjson": ("application/x-ndjson", "ndjson"),
    "ocsf": ("application/x-ndjson", "ocsf.ndjson"),
}
_RECORD = sql.SQL(
    "select pgaudit_wf.record_export(%(format)s, %(filters)s, %(events)s, %(outcome)s),"
    " now() as began"
)


async def export_response(
    request: Request,
    database: Database,
    principal: Principal,
    format_: Format,
    filters: TrailFilter,
) -> StreamingResponse:
    """Return the response that streams the organization's trail.

    Raises:
        AccessDeniedError: In the database, the actor is neither an owner nor an admin.
        psycopg.Error: The database could not answer; later errors end the stream early.
    """
    recorded = dumps({name: plain(value) for name, value in filters.items() if value is not None})
    record: dict[str, Any] = {"format": format_, "filters": recorded}
    async with database.reading(request, principal, read_only=False) as session:
        [row] = await session.rows(_RECORD, **record, events=None, outcome="succeeded")
        until = filters.get("until")
        # Excludes its own record and events added meanwhile.
        began: datetime = row["began"]
        wanted: TrailFilter = {**filters, "until": began if until is None else min(until, began)}
        first = await session.run(audit_trail.read(page_size=_PAGE, **wanted))

    async def body() -> AsyncIterator[str]:
        page: TrailPage = first
        written, outcome = 0, "failed"
        try:
            out = io.StringIO(newline="")
            write = event_writer(format_, out)
            while True:
                for entry in page.entries:
                    write(entry)
                yield _taken(out)
                written += len(page.entries)
                if page.next_cursor is None:
                    break
                async with database.reading(request, principal) as session:
                    page = await session.run(
                        audit_trail.read(after=page.next_cursor, page_size=_PAGE, **wanted)
                    )
            outcome = "succeeded"
        finally:
            # Record partial exports too: that data has left the database.
            async with database.reading(request, principal, read_only=False) as session:
                await session.rows(_RECORD, **record, events=written, outcome=outcome)

    media_type, suffix = _MEDIA[format_]
    org = re.sub(r"[^A-Za-z0-9_-]", "_", principal.org_id)
    name = f"audit-trail-{org}-{began.astimezone(UTC):%Y%m%dT%H%M%SZ}.{suffix}"
    return StreamingResponse(
        body(),
        media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _taken(out: io.StringIO) -> str:
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    return text
