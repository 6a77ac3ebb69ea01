"""An organization's trail for its auditor as a file; that it was made is recorded in the trail."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from typing import IO, Annotated, Any

from fastapi import Query
from psycopg import sql
from pydantic import BeforeValidator
from starlette.requests import Request
from starlette.responses import StreamingResponse

from pgaudit_wf.errors import ProofError
from pgaudit_wf.exact_json import dumps
from pgaudit_wf.trail.reads import audit_trail
from pgaudit_wf.web.database import Database
from pgaudit_wf.web.principal import Principal
from pgaudit_wf.web.problems import ProblemError
from pgaudit_wf.web.sealed_log import Integrity

_CHUNK = 1 << 16
_RECORD = sql.SQL("select pgaudit_wf.record_export('bundle', %(filters)s, %(events)s, %(outcome)s)")

# A field of a form that was left empty.
_OrNone = BeforeValidator(lambda value: value or None)
Day = Annotated[date | None, _OrNone, Query()]
Size = Annotated[int | None, _OrNone, Query(ge=1, le=(1 << 63) - 1)]


async def bundle_response(
    request: Request,
    database: Database,
    principal: Principal,
    sealed: Integrity,
    since: date | None,
    until: date | None,
    old_size: int | None,
) -> StreamingResponse:
    """Return the response with a bundle.

    Args:
        request: The request.
        database: Records who made it, and checks that they may.
        principal: The user, and the organization.
        sealed: The sealed log.
        since: The first day, in UTC; None: from the beginning, or where the old checkpoint ends.
        until: The day after the last; None: until now.
        old_size: How many leaves the checkpoint has that the auditor kept from last time.

    Raises:
        AccessDeniedError: In the database, the actor is neither an owner nor an admin.
        ProblemError: It cannot be made: too much at once, or not what was sealed.
        psycopg.Error: The database could not answer.
    """
    began = datetime.now(UTC)
    start = datetime.combine(since, time(), UTC) if since else None
    end = min(began, datetime.combine(until, time(), UTC)) if until else began
    period = {"since": start and start.isoformat(), "until": end.isoformat()}
    record: dict[str, Any] = {"filters": dumps({k: v for k, v in period.items() if v})}
    async with database.reading(request, principal, read_only=False) as session:
        await session.run(audit_trail.read(page_size=1, org_id=principal.org_id))
        [row] = await session.rows(_RECORD, **record, events=None, outcome="succeeded")
    written, outcome = 0, "failed"
    try:
        made = await sealed.bundle(principal.org_id, start, end, old_size, row["record_export"])
        if made is None:
            raise ProblemError(503, "Other bundles are being made; try again in a minute.")
        file, written = made
        outcome = "succeeded"
    except ProofError as error:
        raise ProblemError(409, f"It cannot be made: {error}.", "not_bundled") from error
    finally:
        async with database.reading(request, principal, read_only=False) as session:
            await session.rows(_RECORD, **record, events=written, outcome=outcome)
    org = re.sub(r"[^A-Za-z0-9_-]", "_", principal.org_id)
    size = file.seek(0, 2)
    return StreamingResponse(
        _chunks(file),
        media_type="application/zip",
        headers={
            "Content-Disposition": f'attachment; filename="bundle-{org}-{end:%Y%m%d}.zip"',
            "Content-Length": str(size),
        },
    )


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while chunk := file.read(_CHUNK):
            yield chunk
