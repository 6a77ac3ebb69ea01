"""The JSON API of workflows: their versions, and what is done with them."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from typing import Annotated, Any, TypeAlias
from urllib.parse import quote

import psycopg
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from psycopg import sql

from pgaudit_wf.errors import DefinitionError
from pgaudit_wf.trail.statement import Read
from pgaudit_wf.web import models, queries
from pgaudit_wf.web.api import (
    ALWAYS,
    Data,
    Json,
    NewOrGiven,
    Who,
    WorkflowId,
    answer,
    no_version,
    problems,
)
from pgaudit_wf.web.csrf import from_elsewhere
from pgaudit_wf.web.database import Database, T
from pgaudit_wf.web.principal import Principal
from pgaudit_wf.web.problems import ProblemError
from pgaudit_wf.workflow.model import RestoredVersion, Version
from pgaudit_wf.workflow.reads import (
    compare_versions,
    copy_workflow,
    export_version,
    publish_version,
    restore_workflow,
    undelete_workflow,
    version_snapshot,
    workflow_versions,
)

router = APIRouter()
_REST_ON = sql.SQL("select set_config('app.base_version', %(base)s, true)")
IfMatch: TypeAlias = Annotated[
    str,
    Header(
        max_length=1000,
        pattern=r'^(\*|"[0-9]{1,9}"(, ?"[0-9]{1,9}")*)$',
        description="ETags of versions of which one must be the newest; default: any.",
        examples=['"7"'],
    ),
]


def _version(version: Version) -> Json:
    return {**asdict(version), "change": version.change.as_json()}


@router.get(
    "/api/workflows/{workflow_id:path}/history",
    response_model=models.History,
    responses=problems(*ALWAYS, 404),
    summary="Versions of a workflow, newest first",
    tags=["workflows"],
)
async def history(
    request: Request,
    who: Who,
    database: Data,
    workflow_id: WorkflowId,
    query: Annotated[models.HistoryQuery, Query()],
) -> Response:
    """The workflow may be deleted."""
    async with database.reading(request, who) as session:
        page = await session.run(
            workflow_versions.read(
                workflow_id,
                node_id=query.node_id,
                before_version=query.before_version,
                page_size=query.page_size,
            )
        )
        if not page.versions and await queries.find_version(session, workflow_id) is None:
            raise no_version(workflow_id)
    return answer({"versions": [*map(_version, page.versions)], "next_before": page.next_before})


@router.get(
    "/api/workflows/{workflow_id:path}/diff",
    response_model=models.Diff,
    responses=problems(*ALWAYS, 404, 410),
    summary="The changes between any two versions",
    tags=["workflows"],
)
async def diff(
    request: Request,
    who: Who,
    database: Data,
    workflow_id: WorkflowId,
    before: Annotated[models.VersionNumber, Query(alias="from")],
    after: Annotated[models.VersionNumber, Query(alias="to")],
) -> Response:
    """In either direction."""
    async with database.reading(request, who) as session:
        found = await session.run(compare_versions.read(workflow_id, before, after))
    return answer(found.as_json())


def sent_by_program_or_us(request: Request) -> None:
    """Refuse requests that another site's page can make a browser send.

    Raises:
        ProblemError: The browser says so, or the body has a type that any page may send.
    """
    if from_elsewhere(request):
        raise ProblemError(403, "The request was made by another site's page.", "cross_site")
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ProblemError(415, "Send the body as application/json.")


_WRITES = (*ALWAYS, 404, 409, 410, 415, 501)


@router.post(
    "/api/workflows/{workflow_id:path}/restore",
    dependencies=[Depends(sent_by_program_or_us)],
    response_model=models.Restored,
    responses=problems(*_WRITES, 412),
    summary="Restore a version",
    tags=["workflows"],
)
async def restore(
    request: Request,
    who: Who,
    database: Data,
    workflow_id: WorkflowId,
    body: models.RestoreRequest,
    if_match: IfMatch = "*",
) -> Response:
    """An ordinary update by the caller: validated, versioned and audited like any other.

    Nodes, edges, name and description are restored; visibility, enabled and the listing stay. With
    If-Match it is refused if the newest version is another one.
    """
    newest = tuple(map(int, re.findall("[0-9]+", if_match)))
    return answer(
        await restore_version(request, database, who, workflow_id, body.version, if_match=newest)
    )


async def restore_version(
    request: Request,
    database: Database,
    who: Principal,
    workflow_id: str,
    version: int,
    reason: str | None = None,
    if_match: tuple[int, ...] = (),
) -> RestoredVersion:
    """Restore a version that the principal may see; `reason` is recorded with it.

    Raises:
        ProblemError: There is no such version, nothing may be written, or the host's own rules
            refuse the update.
        DatabaseError: As for `restore_workflow`.
    """
    return await write(
        request, database, who, workflow_id, restore_workflow.read(workflow_id, version),
        version=version, action="workflow.restore_failed", reason=reason, if_match=if_match,
    )  # fmt: skip


@router.post(
    "/api/workflows/{workflow_id:path}/undelete",
    dependencies=[Depends(sent_by_program_or_us)],
    response_model=models.Restored,
    responses=problems(*_WRITES),
    summary="Put a deleted workflow back",
    tags=["workflows"],
)
async def undelete(
    request: Request,
    who: Who,
    database: Data,
    workflow_id: WorkflowId,
    body: models.UndeleteRequest,
) -> Response:
    """Its row as the deletion recorded it, with the graph of its last version, under its key.

    An ordinary insert by the caller. Redacted and ignored columns get their defaults.
    """
    return answer(await undelete_row(request, database, who, workflow_id, body.reason))


async def undelete_row(
    request: Request, database: Database, who: Principal, workflow_id: str, reason: str | None
) -> RestoredVersion:
    """Put a deleted workflow back; raises as `restore_version` does."""
    return await write(
        request, database, who, workflow_id, undelete_workflow.read(workflow_id),
        action="workflow.undelete_failed", reason=reason,
    )  # fmt: skip


@router.post(
    "/api/workflows/{workflow_id:path}/publish",
    dependencies=[Depends(sent_by_program_or_us)],
    response_model=models.Published,
    responses=problems(*_WRITES),
    summary="Say which version runs are made with",
    tags=["workflows"],
)
async def publish(
    request: Request,
    who: Who,
    database: Data,
    workflow_id: WorkflowId,
    body: models.PublishRequest,
) -> Response:
    """Runs are stamped with it, whatever is saved later."""
    await write(
        request, database, who, workflow_id, publish_version.read(workflow_id, body.version),
        version=body.version, action="workflow.publish_failed", reason=body.reason,
    )  # fmt: skip
    return answer({"version": body.version})


@router.post(
    "/api/workflows/{workflow_id:path}/copy",
    dependencies=[Depends(sent_by_program_or_us)],
    response_model=models.Copied,
    responses=problems(*_WRITES),
    summary="Copy a version to a new workflow",
    tags=["workflows"],
)
async def copy(
    request: Request,
    who: Who,
    database: Data,
    workflow_id: WorkflowId,
    body: models.CopyRequest,
) -> Response:
    """An ordinary insert by the caller; the copy is switched off and not listed."""
    made = await copy_version(
        request, database, who, workflow_id, body.version, body.name, body.id, body.reason
    )
    return answer({"workflow_id": made})


async def copy_version(
    request: Request,
    database: Database,
    who: Principal,
    workflow_id: str,
    version: int,
    name: str | None,
    new_id: str | None,
    reason: str | None,
) -> str:
    """Copy a version to a new workflow and return its id; raises as `restore_version` does."""
    return await write(
        request, database, who, workflow_id,
        copy_workflow.read(workflow_id, version, name, new_id),
        version=version, action="workflow.copy_failed",
        reason=reason or f"copy of version {version} of workflow {workflow_id}",
    )  # fmt: skip


async def write(
    request: Request,
    database: Database,
    who: Principal,
    workflow_id: str,
    statement: Read[T],
    *,
    action: str,
    version: int | None = None,
    reason: str | None = None,
    if_match: tuple[int, ...] = (),
) -> T:
    """Run a statement that writes a workflow whose version the principal may see.

    Args:
        request: The request.
        database: The database.
        who: The principal.
        workflow_id: The workflow.
        statement: What is done.
        action: The event that says that it failed.
        version: The version that it is about; None: any.
        reason: Why, which is recorded.
        if_match: The versions of which one must be the newest; empty: it does not matter.

    Raises:
        ProblemError: There is no such version, nothing may be written, or the host's own rules
            refuse it.
        DatabaseError: What the database refuses.
    """
    async with database.reading(request, who) as session:
        if await queries.find_version(session, workflow_id, version) is None:
            raise no_version(workflow_id, version)
        if not await queries.may_read_trail(session):
            raise ProblemError(403, "Only owners and admins of the organization may do this.")
        newest = await queries.newest_version(session, workflow_id) if if_match else None
    if not database.may_write:
        raise ProblemError(501, "These pages are read-only; nothing can be written.", "read_only")
    try:
        async with database.writing(request, who, action, reason) as session:
            if if_match:
                # What was saved since then is refused by the database, in this transaction.
                base = newest.version if newest and newest.version in if_match else max(if_match)
                await session.rows(_REST_ON, base=str(base))
            return await session.run(statement)
    except psycopg.errors.InsufficientPrivilege:
        raise ProblemError(403, "The application's login may not change this workflow.") from None
    except (psycopg.errors.IntegrityError, psycopg.errors.RaiseException) as error:
        said = error.diag.message_primary or "a rule of its table"
        raise ProblemError(409, f"The workflow cannot be written: {said}") from error


@router.get(
    "/api/workflows/{workflow_id:path}/export",
    response_model=dict[str, Any],
    responses=problems(*ALWAYS, 404, 409, 410),
    summary="A version as the product's own file",
    tags=["workflows"],
)
async def export(
    request: Request,
    who: Who,
    database: Data,
    workflow_id: WorkflowId,
    version: NewOrGiven = None,
) -> Response:
    """React Flow's, n8n's or Flowise's form, to be imported there. The workflow may be deleted."""
    async with database.reading(request, who) as session:
        found = await queries.find_version(session, workflow_id, version)
        if found is None:
            raise no_version(workflow_id, version)
        try:
            content = await session.run(export_version.read(workflow_id, found.version))
        except DefinitionError as error:
            raise ProblemError(409, str(error)) from error
    sent = answer(content)
    name = quote(f"{str(content.get('name') or workflow_id)[:100]} v{found.version}.json", safe="")
    sent.headers["Content-Disposition"] = (
        f"attachment; filename=\"workflow-v{found.version}.json\"; filename*=UTF-8''{name}"
    )
    return sent


@router.get(
    "/api/workflows/{workflow_id:path}",
    response_model=models.Workflow,
    responses=problems(*ALWAYS, 404, 410),
    summary="A workflow as it was in a version, in the shape of its row",
    tags=["workflows"],
)
async def workflow(
    request: Request,
    who: Who,
    database: Data,
    workflow_id: WorkflowId,
    version: NewOrGiven = None,
) -> Response:
    """The workflow may be deleted."""
    async with database.reading(request, who) as session:
        found = await queries.find_version(session, workflow_id, version)
        if found is None:
            raise no_version(workflow_id, version)
        snapshot = await session.run(version_snapshot.read(workflow_id, found.version))
    sent = answer(
        {
            "id": found.workflow_id,
            "org_id": found.org_id,
            **{field.name: getattr(snapshot, field.name) for field in fields(snapshot)},
            "version": found.version,
            "content_hash": found.content_hash,
            "is_current": found.is_current,
            "is_published": found.is_published,
        }
    )
    sent.headers["ETag"] = f'"{found.version}"'
    return sent
