"""The JSON API: the typed reads, for the principal's organization."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, TypeAlias

import psycopg
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from pgaudit_wf.errors import ProofError
from pgaudit_wf.exact_json import dumps
from pgaudit_wf.trail.event import TrailEntry
from pgaudit_wf.trail.reads import TrailFilter, audit_trail, follow_trail, latest_trail
from pgaudit_wf.web import models, queries
from pgaudit_wf.web.database import Database, Session
from pgaudit_wf.web.exporting import export_response
from pgaudit_wf.web.principal import Principal
from pgaudit_wf.web.problems import MEDIA_TYPE, ProblemError
from pgaudit_wf.web.sealed_log import Integrity

Json: TypeAlias = dict[str, Any]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what the OpenAPI document says about these error statuses."""
    meaning = {
        400: "A cursor or value that the database does not accept.",
        401: "Not signed in.",
        403: "Neither an owner nor an admin of the organization.",
        404: "Does not exist, or belongs to another organization.",
        409: "Refused by the workflow's own rules, or by what is there.",
        410: "The version's snapshot was pruned.",
        412: "A newer version than that of If-Match is current; `differences` says what both did.",
        415: "The body is not application/json.",
        422: "A value is not valid.",
        501: "The pages are configured without a connection that may write.",
        503: "The database is not available, or took too long.",
    }
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": meaning[status], "content": {MEDIA_TYPE: schema}}
        for status in statuses
    }


ALWAYS = (400, 401, 403, 422, 503)
router = APIRouter()


def principal_of(request: Request) -> Principal:
    """Return the principal."""
    principal: Principal = request.scope["pgaudit_wf.principal"]
    return principal


def database_of(request: Request) -> Database:
    """Return the app's database."""
    database: Database = request.scope["pgaudit_wf.database"]
    return database


Who: TypeAlias = Annotated[Principal, Depends(principal_of)]
Data: TypeAlias = Annotated[Database, Depends(database_of)]
WorkflowId: TypeAlias = Annotated[
    str,
    Path(
        description="Id as in pgaudit_wf.workflow_history.",
        min_length=1,
        max_length=1000,
        pattern=models.NO_NUL,
    ),
]
NewOrGiven: TypeAlias = Annotated[
    models.VersionNumber | None, Query(description="Default: the newest.")
]


def answer(value: object) -> Response:
    """Return a value as JSON; pydantic and `json` would round its numbers or make them strings."""
    return Response(dumps(value, moment=_moment), media_type="application/json")


def _moment(moment: datetime) -> str:
    text = moment.isoformat()
    return f"{text[:-6]}Z" if text.endswith("+00:00") else text


def filters_of(query: models.Filters, principal: Principal) -> TrailFilter:
    """Return the filters of a request.

    Raises:
        ProblemError: They name another organization.
    """
    if query.org_id not in (None, principal.org_id):
        raise ProblemError(404, "There is no such organization.")
    given = query.model_dump(include=set(models.Filters.model_fields), exclude_none=True)
    filters: TrailFilter = {**given, "org_id": principal.org_id}  # type: ignore[typeddict-item]
    return filters


def no_version(workflow_id: str, version: int | None = None) -> ProblemError:
    """Return the problem that a workflow or version does not exist or is not visible."""
    if version is None:
        return ProblemError(404, f"There is no workflow {workflow_id}.", "PA302")
    return ProblemError(404, f"There is no version {version} of workflow {workflow_id}.", "PA302")


@router.get(
    "/api/security/audit",
    response_model=models.EventPage,
    responses=problems(*ALWAYS, 404),
    summary="A page of the trail, newest first",
    tags=["trail"],
)
async def trail(
    request: Request, who: Who, database: Data, query: Annotated[models.TrailQuery, Query()]
) -> Response:
    """Pages are stable: an event recorded between two requests does not shift others."""
    filters = filters_of(query, who)
    async with database.reading(request, who) as session:
        return answer(
            await session.run(
                audit_trail.read(after=query.after, page_size=query.page_size, **filters)
            )
        )


@router.get(
    "/api/security/audit/export",
    response_class=Response,
    responses={
        200: {
            "description": "The events, newest first.",
            "content": {
                "text/csv": {"schema": {"type": "string"}},
                "application/x-ndjson": {"schema": {"type": "string"}},
            },
        },
        **problems(*ALWAYS, 404),
    },
    summary="The trail as a file: CSV, NDJSON or OCSF events",
    tags=["trail"],
)
async def export(
    request: Request, who: Who, database: Data, query: Annotated[models.ExportQuery, Query()]
) -> Response:
    """The export is recorded in the trail, with its actor, filters and outcome."""
    return await export_response(request, database, who, query.format, filters_of(query, who))


@router.get(
    "/api/security/audit/follow",
    response_model=models.EventBatch,
    responses=problems(*ALWAYS, 404),
    summary="Events after a cursor, oldest first",
    tags=["trail"],
)
async def follow(
    request: Request, who: Who, database: Data, query: Annotated[models.FollowQuery, Query()]
) -> Response:
    """No event is skipped or repeated, even with concurrent transactions."""
    filters = filters_of(query, who)
    async with database.reading(request, who) as session:
        if query.after is None:
            return answer(await session.run(latest_trail.read(query.max_events, **filters)))
        return answer(
            await session.run(follow_trail.read(query.after, query.max_events, **filters))
        )


@router.get(
    "/api/security/audit/events/{cursor}",
    response_model=models.Event,
    responses=problems(*ALWAYS, 404),
    summary="One event, by its cursor",
    tags=["trail"],
)
async def event(request: Request, who: Who, database: Data, cursor: models.Cursor) -> Response:
    """By the event's cursor in the trail."""
    async with database.reading(request, who) as session:
        return answer(await event_at(session, cursor))


async def event_at(session: Session, cursor: str) -> TrailEntry:
    """Return the event with a cursor.

    Raises:
        ProblemError: The organization has no such event.
    """
    found = await queries.find_event(session, cursor)
    if found is None:
        raise ProblemError(404, "There is no such event.")
    return found


def sealed_log_of(request: Request) -> Integrity:
    """Return the sealed log.

    Raises:
        ProblemError: The app is configured without it.
    """
    sealed: Integrity | None = request.scope["pgaudit_wf.integrity"]
    if sealed is None:
        raise ProblemError(501, "These pages are configured without the sealed log.", "no_log")
    return sealed


Sealed: TypeAlias = Annotated[Integrity, Depends(sealed_log_of)]


@contextmanager
def _only_sealed() -> Iterator[None]:
    try:
        yield
    except ProofError as error:
        raise ProblemError(404, str(error), "not_sealed") from error


@router.get(
    "/api/security/audit/events/{cursor}/proof",
    response_model=dict[str, Any],
    responses=problems(*ALWAYS, 404, 501),
    summary="Proof that the log commits to an event, for pgaudit-wf check",
    tags=["integrity"],
)
async def proof(
    request: Request, who: Who, database: Data, sealed: Sealed, cursor: models.Cursor
) -> Response:
    """Anyone with the log's public key can check it, without this database."""
    async with database.reading(request, who) as session:
        found = await event_at(session, cursor)
    with _only_sealed():
        return answer(await sealed.proof(found.id))


@router.get(
    "/checkpoint",
    response_class=Response,
    responses={
        200: {
            "description": "A signed note (C2SP tlog-checkpoint).",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **problems(401, 403, 404, 501, 503),
    },
    summary="The newest signed checkpoint",
    tags=["integrity"],
)
async def checkpoint(sealed: Sealed) -> Response:
    """As in C2SP tlog-tiles."""
    with _only_sealed():
        return Response(await sealed.checkpoint(), media_type="text/plain; charset=utf-8")


@router.get(
    "/tile/{path:path}",
    response_class=Response,
    responses={
        200: {
            "description": "Up to 256 concatenated hashes.",
            "content": {"application/octet-stream": {"schema": {"type": "string"}}},
        },
        **problems(401, 403, 404, 422, 501, 503),
    },
    summary="A tile of the tree",
    tags=["integrity"],
)
async def tile(
    sealed: Sealed, path: Annotated[str, Path(max_length=100, examples=["0/000.p/5"])]
) -> Response:
    """As in C2SP tlog-tiles: LEVEL/NUMBER, and .p/WIDTH for a partial tile."""
    hashes = await sealed.tile(path)
    if hashes is None:
        raise ProblemError(404, "There is no such tile.")
    return Response(hashes, media_type="application/octet-stream")


@router.get(
    "/api/api-keys/activity",
    response_model=models.ApiKeys,
    responses=problems(*ALWAYS),
    summary="The history of each API key, including revoked and deleted ones",
    tags=["trail"],
)
async def api_keys(request: Request, who: Who, database: Data) -> Response:
    """As recorded in the log, whether or not the keys still exist."""
    async with database.reading(request, who) as session:
        return answer({"keys": await queries.api_keys(session, who)})


@router.get(
    "/api/executions/{execution_id}/attribution",
    response_model=models.Attribution,
    responses=problems(*ALWAYS, 404, 410),
    summary="The credential and the definition behind a run",
    tags=["workflows"],
)
async def attribution(
    request: Request,
    who: Who,
    database: Data,
    execution_id: Annotated[str, Path(min_length=1, max_length=1000, pattern=models.NO_NUL)],
) -> Response:
    """Even after the key, the user and the workflow are deleted."""
    async with database.reading(request, who) as session:
        tables = await queries.run_tables(session)
    for table in tables:
        try:
            async with database.reading(request, who) as session:
                found = await queries.find_run(session, who, table, execution_id)
        except psycopg.DataError:
            # The ids of this table have another type.
            continue
        if found is not None:
            return answer(found)
    raise ProblemError(404, "There is no such run.")


@router.get(
    "/healthz",
    response_model=models.Health,
    responses=problems(401, 503),
    summary="Whether the database answers",
    tags=["operation"],
)
async def health(database: Data) -> object:
    """For load balancers."""
    await database.ping()
    return {"status": "ok"}
