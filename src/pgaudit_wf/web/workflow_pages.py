"""The pages of workflows: their versions, drawn and compared, and what is done with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.responses import RedirectResponse

from pgaudit_wf.trail.changes import pretty
from pgaudit_wf.web import csrf, models, queries
from pgaudit_wf.web.api import Data, Who, WorkflowId, no_version
from pgaudit_wf.web.canvas import Canvas, configuration, draw, find_node
from pgaudit_wf.web.database import Database, Session
from pgaudit_wf.web.excerpt import excerpt
from pgaudit_wf.web.forms import reason_of, render_form
from pgaudit_wf.web.paths import link, segment
from pgaudit_wf.web.principal import Principal
from pgaudit_wf.web.problems import ProblemError
from pgaudit_wf.web.rendering import brief, render
from pgaudit_wf.web.workflow_api import copy_version, restore_version, undelete_row, write
from pgaudit_wf.workflow.model import NodeChange, Snapshot, VersionDiff
from pgaudit_wf.workflow.reads import (
    label_version,
    publish_version,
    version_snapshot,
    workflow_versions,
)

router = APIRouter(include_in_schema=False)

_PAGE = 50
# Of each version in a list of them.
_LINES_OF_MANY = 20
_ROOM_OF_MANY = 2_000
_KEYS = 100
_ROOM = 100_000
_NOTHING = VersionDiff((), (), (), (), (), (), False)
Skip = Annotated[int, Query(ge=0, le=1_000_000_000)]
VersionInPath = Annotated[int, Path(ge=1, le=2_147_483_647)]


@dataclass(frozen=True, slots=True)
class OpenedNode:
    """A node of a drawing with its configuration, and what changed in it, if anything did."""

    id: str
    label: str
    kind: str
    word: str
    change: NodeChange | None
    configuration: tuple[tuple[str, str], ...]
    left_out: int


def _open(canvas: Canvas, pair: queries.Pair, id_: str | None) -> OpenedNode | None:
    drawn = next((node for node in canvas.nodes if node.id == id_), None)
    if drawn is None or id_ is None:
        return None
    node = find_node(pair.before if drawn.tone == "remove" else pair.after, id_)
    given = configuration(node or {})
    shown: list[tuple[str, str]] = []
    left = _ROOM
    for name, value in islice(given.items(), _KEYS):
        if left <= 0:
            break
        shown.append((brief(name), pretty(value)))
        left -= len(shown[-1][1])
    changed = [change for change in pair.diff.nodes_changed if change.id == id_]
    parts = excerpt(replace(_NOTHING, nodes_changed=tuple(changed[:1]))).diff.nodes_changed
    return OpenedNode(
        id=drawn.id, label=drawn.label, kind=drawn.kind, word=drawn.word,
        change=parts[0] if parts else None,
        configuration=tuple(shown), left_out=len(given) - len(shown),
    )  # fmt: skip


def _root(workflow_id: str) -> str:
    return f"/workflows/{segment(workflow_id)}"


def _query(**values: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever a link has
    return {name: value for name, value in values.items() if value}


@router.get("/workflows")
async def workflows(
    request: Request, who: Who, database: Data, after: str | None = None
) -> Response:
    """The workflows that have versions."""
    async with database.reading(request, who) as session:
        page = await queries.workflows(session, who, after=after or None)
    return render(
        request,
        "workflows.html",
        workflows=page.workflows,
        next=page.next_cursor and link(request, "/workflows", after=page.next_cursor),
    )


@router.get("/workflows/{workflow_id:path}/versions/{version}")
async def version_page(
    request: Request,
    who: Who,
    database: Data,
    workflow_id: WorkflowId,
    version: VersionInPath,
    skip: Skip = 0,
    skip_nodes: Skip = 0,
    node_id: models.Identifier | None = None,
) -> Response:
    """A version on the canvas."""
    async with database.reading(request, who) as session:
        found = await queries.version_pair(session, workflow_id, version)
        if found is None:
            raise no_version(workflow_id, version)
        shown, pair = found.version, found.pair
        # Without a snapshot it was pruned, which this read says.
        now: Snapshot | None = pair.after
        if now is None:
            now = await session.run(version_snapshot.read(workflow_id, version))
    if version == 1:
        pair = replace(pair, diff=_NOTHING)
    canvas = draw(now, pair.before, pair.diff, skip_nodes)
    root = _root(workflow_id)
    return render_form(
        request,
        "version.html",
        version=shown,
        newest=found.newest,
        deleted_at=found.deleted_at,
        name=brief(now.name or workflow_id),
        canvas=canvas,
        opened=_open(canvas, pair, node_id),
        changed=excerpt(shown.change, skip),
        root=root,
        page=f"{root}/versions/{version}",
        query=_query(skip_nodes=skip_nodes),
        may_write=_may_write(who, database),
    )


@router.get("/workflows/{workflow_id:path}/compare")
async def compare(
    request: Request,
    who: Who,
    database: Data,
    workflow_id: WorkflowId,
    before: Annotated[models.VersionNumber, Query(alias="from")],
    after: Annotated[models.VersionNumber, Query(alias="to")],
    skip: Skip = 0,
    skip_nodes: Skip = 0,
    node_id: models.Identifier | None = None,
) -> Response:
    """Any two versions compared, both on one canvas."""
    async with database.reading(request, who) as session:
        pair = await queries.compared_pair(session, workflow_id, before, after)
    assert pair.after is not None  # noqa: S101 - the query raises otherwise
    canvas = draw(pair.after, pair.before, pair.diff, skip_nodes)
    root = _root(workflow_id)
    return render(
        request,
        "compare.html",
        changed=excerpt(pair.diff, skip),
        before=before,
        after=after,
        name=brief(pair.after.name or workflow_id),
        canvas=canvas,
        opened=_open(canvas, pair, node_id),
        root=root,
        page=f"{root}/compare",
        query=_query(**{"from": before, "to": after}, skip_nodes=skip_nodes),
    )


async def _newest(session: Session, workflow_id: str) -> queries.NewestVersion:
    newest = await queries.newest_version(session, workflow_id)
    if newest is None:
        raise no_version(workflow_id)
    return newest


@router.get("/workflows/{workflow_id:path}/restore/{version}")
async def confirm(
    request: Request, who: Who, database: Data, workflow_id: WorkflowId, version: VersionInPath
) -> Response:
    """Ask for confirmation before a version is restored."""
    _writable(who, database)
    async with database.reading(request, who) as session:
        newest = await _newest(session, workflow_id)
        if newest.deleted_at is not None:
            raise ProblemError(409, "The workflow was deleted; put it back first.", "deleted")
        pair = await queries.compared_pair(session, workflow_id, newest.version, version)
    return render_form(
        request, "restore.html", changed=excerpt(pair.diff), newest=newest.version,
        version=version, name=brief(newest.name or workflow_id), root=_root(workflow_id),
    )  # fmt: skip


def _may_write(who: Principal, database: Database) -> bool:
    return who.may_read and database.may_write


def _writable(who: Principal, database: Database) -> None:
    if not who.may_read:
        raise ProblemError(403, "Only owners and admins of the organization may do this.")
    if not database.may_write:
        raise ProblemError(501, "These pages are read-only.", "read_only")


@router.post("/workflows/{workflow_id:path}/restore/{version}")
async def restore(
    request: Request, who: Who, database: Data, workflow_id: WorkflowId, version: VersionInPath
) -> Response:
    """Restore a version, if the form is ours, and show the history."""
    sent = await csrf.check_form(request)
    reason = reason_of(sent, "the version is restored")
    restored = await restore_version(request, database, who, workflow_id, version, reason)
    return RedirectResponse(link(request, _root(workflow_id), restored=restored.version), 303)


@router.post("/workflows/{workflow_id:path}/label/{version}")
async def label(
    request: Request, who: Who, database: Data, workflow_id: WorkflowId, version: VersionInPath
) -> Response:
    """Name a version, if the form is ours, and show it."""
    sent = await csrf.check_form(request)
    await write(
        request, database, who, workflow_id,
        label_version.read(workflow_id, version, sent.get("label", ""), sent.get("note")),
        version=version, action="workflow.label_failed",
    )  # fmt: skip
    return RedirectResponse(link(request, f"{_root(workflow_id)}/versions/{version}"), 303)


@router.get("/workflows/{workflow_id:path}/undelete")
async def confirm_undelete(
    request: Request, who: Who, database: Data, workflow_id: WorkflowId
) -> Response:
    """Ask for confirmation before a deleted workflow is put back."""
    _writable(who, database)
    async with database.reading(request, who) as session:
        newest = await _newest(session, workflow_id)
    if newest.deleted_at is None:
        raise ProblemError(409, "The workflow was not deleted.", "not_deleted")
    return render_form(
        request, "undelete.html", newest=newest.version, deleted_at=newest.deleted_at,
        name=brief(newest.name or workflow_id), root=_root(workflow_id),
    )  # fmt: skip


@router.post("/workflows/{workflow_id:path}/undelete")
async def undelete(request: Request, who: Who, database: Data, workflow_id: WorkflowId) -> Response:
    """Put a deleted workflow back, if the form is ours, and show the history."""
    sent = await csrf.check_form(request)
    reason = reason_of(sent, "the workflow is put back")
    restored = await undelete_row(request, database, who, workflow_id, reason)
    return RedirectResponse(link(request, _root(workflow_id), restored=restored.version), 303)


@router.get("/workflows/{workflow_id:path}/publish/{version}")
async def confirm_publish(
    request: Request, who: Who, database: Data, workflow_id: WorkflowId, version: VersionInPath
) -> Response:
    """Ask for confirmation before a version is published or unpublished."""
    _writable(who, database)
    async with database.reading(request, who) as session:
        newest = await _newest(session, workflow_id)
        found = await queries.find_version(session, workflow_id, version)
    if found is None:
        raise no_version(workflow_id, version)
    return render_form(
        request, "publish.html", version=version, is_published=found.is_published,
        name=brief(newest.name or workflow_id), root=_root(workflow_id),
    )  # fmt: skip


@router.post("/workflows/{workflow_id:path}/publish/{version}")
async def publish(
    request: Request, who: Who, database: Data, workflow_id: WorkflowId, version: VersionInPath
) -> Response:
    """Publish or unpublish a version, if the form is ours, and show it."""
    sent = await csrf.check_form(request)
    reason = reason_of(sent, "what runs are made with changes")
    published = None if sent.get("take_back") else version
    await write(
        request, database, who, workflow_id, publish_version.read(workflow_id, published),
        version=version, action="workflow.publish_failed", reason=reason,
    )  # fmt: skip
    return RedirectResponse(link(request, f"{_root(workflow_id)}/versions/{version}"), 303)


@router.get("/workflows/{workflow_id:path}/copy/{version}")
async def confirm_copy(
    request: Request, who: Who, database: Data, workflow_id: WorkflowId, version: VersionInPath
) -> Response:
    """Ask for the name of the new workflow."""
    _writable(who, database)
    async with database.reading(request, who) as session:
        kept = await session.run(version_snapshot.read(workflow_id, version))
    return render_form(
        request, "copy.html", version=version, named=kept.name is not None,
        name=brief(kept.name or workflow_id), root=_root(workflow_id),
    )  # fmt: skip


@router.post("/workflows/{workflow_id:path}/copy/{version}")
async def copy(
    request: Request, who: Who, database: Data, workflow_id: WorkflowId, version: VersionInPath
) -> Response:
    """Copy a version to a new workflow, if the form is ours, and show that one."""
    sent = await csrf.check_form(request)
    name, new_id, reason = (
        sent.get(field, "").strip() or None for field in ("name", "id", "reason")
    )
    made = await copy_version(request, database, who, workflow_id, version, name, new_id, reason)
    return RedirectResponse(link(request, _root(made)), 303)


@router.get("/workflows/{workflow_id:path}")
async def history(
    request: Request,
    who: Who,
    database: Data,
    workflow_id: WorkflowId,
    node_id: models.Identifier | None = None,
    before_version: models.VersionNumber | None = None,
    restored: models.VersionNumber | None = None,
) -> Response:
    """The versions of a workflow, newest first."""
    async with database.reading(request, who) as session:
        newest = await _newest(session, workflow_id)
        page = await session.run(
            workflow_versions.read(
                workflow_id,
                node_id=node_id,
                before_version=before_version,
                page_size=_PAGE,
            )
        )
    root = _root(workflow_id)
    return render(
        request,
        "history.html",
        name=brief(newest.name or workflow_id),
        versions=[
            (
                version,
                excerpt(version.change, lines=_LINES_OF_MANY, room=_ROOM_OF_MANY, compared=0),
            )
            for version in page.versions
        ],
        newest=newest.version,
        deleted_at=newest.deleted_at,
        node=node_id,
        restored=restored,
        root=root,
        may_write=_may_write(who, database),
        next=page.next_before
        and link(request, root, node_id=node_id, before_version=page.next_before),
    )
