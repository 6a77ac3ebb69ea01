"""The pages: the API's data for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, TypeAlias
from urllib.parse import parse_qsl

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.responses import RedirectResponse

from pgaudit_wf.integrity.report import Report
from pgaudit_wf.trail.reads import (
    SEVERAL,
    TrailEntry,
    TrailFilter,
    audit_trail,
    follow_trail,
    latest_trail,
)
from pgaudit_wf.trail.undo import undone_by
from pgaudit_wf.web import csrf, models, queries
from pgaudit_wf.web.api import Data, Who, event_at, filters_of
from pgaudit_wf.web.bundling import Day, Size, bundle_response
from pgaudit_wf.web.excerpt import compared_fields, excerpt
from pgaudit_wf.web.forms import render_form
from pgaudit_wf.web.paths import link
from pgaudit_wf.web.problems import ProblemError
from pgaudit_wf.web.rendering import render
from pgaudit_wf.web.sealed_log import Integrity
from pgaudit_wf.web.undo_pages import undoes_of

router = APIRouter(include_in_schema=False)

_PAGE = 50
Shown: TypeAlias = dict[str, str | list[str]]
Skip = Annotated[int, Query(ge=0, le=1_000_000_000)]
_CHIPS: Sequence[tuple[str, Shown]] = (
    ("All", {}),
    ("API keys", {"resource_type": ["api_key"]}),
    ("Workflows", {"resource_type": ["workflow"]}),
    ("Members", {"resource_type": ["member"]}),
    ("Sign-ins", {"resource_type": ["session"]}),
    ("Billing", {"resource_type": ["subscription"]}),
    ("Failed", {"outcome": "failed"}),
    ("Denied", {"outcome": "denied"}),
)
_CHIP_NAMES = ("action", "resource_type", "outcome")
_NARROWED = {
    "actor_id": "by",
    "resource_id": "about",
    "correlation_id": "of request",
    "action": "with action",
    "not_action": "without action",
    "not_resource_type": "not about",
    "not_actor_id": "not by",
    "api_key_id": "with API key",
    "network": "from",
    "changed": "that changed",
    "value": "from or to",
}


@router.get("/")
async def start(request: Request, who: Who) -> Response:
    """Begin with the activity, or with what there is to see."""
    return RedirectResponse(link(request, "/activity" if who.may_read else "/workflows"), 307)


def _shown(request: Request) -> Shown:
    """Return the filters in the query; an empty form field is no filter."""
    shown: Shown = {}
    for name, value in parse_qsl(request.url.query):
        if name in SEVERAL:
            # A form's field has several with blanks between them.
            given = value.split() if name in ("action", "not_action") else [value]
            shown[name] = [*shown.get(name, ()), *given]
        elif name in ("since", "until") and len(value) == len("2026-01-01"):
            shown[name] = f"{value}T00:00:00Z"
        elif name in models.Filters.model_fields:
            shown[name] = value
    return shown


def _filters(shown: Shown, who: Who) -> TrailFilter:
    try:
        return filters_of(models.Filters.model_validate(shown), who)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _cursor(request: Request, name: str) -> str | None:
    return request.query_params.get(name) or None


@router.get("/activity")
async def activity(
    request: Request, who: Who, database: Data, put_back: Skip | None = None
) -> Response:
    """The trail as sentences, newest first."""
    shown = _shown(request)
    filters = _filters(shown, who)
    after = _cursor(request, "after")
    live = None
    async with database.reading(request, who) as session:
        if after is None:
            batch = await session.run(
                queries.without_diff(latest_trail.read(_PAGE, **filters), "_log_end")
            )
            entries, live = batch.entries[::-1], batch.cursor
            next_cursor = entries[-1].cursor if len(entries) == _PAGE else None
        else:
            page = await session.run(
                queries.without_diff(audit_trail.read(after=after, page_size=_PAGE, **filters))
            )
            entries, next_cursor = page.entries, page.next_cursor
        names, key_names = await queries.names_shown(session, who, entries)
        undone = await session.run(undone_by.read(entries))
    return render(
        request,
        "activity.html",
        put_back=put_back,
        undone=undone,
        may_undo=database.may_undo,
        names=names,
        key_names=key_names,
        entries=entries,
        shown=shown,
        chips=_chips(request, shown),
        narrowed=[
            (label, value if isinstance(value, str) else " or ".join(value))
            for name, label in _NARROWED.items()
            if (value := shown.get(name))
        ],
        next=next_cursor and link(request, "/activity", **shown, after=next_cursor),
        live=live and link(request, "/activity/live", **shown, since_cursor=live),
    )


def _chips(request: Request, shown: Shown) -> list[dict[str, object]]:
    kept = {name: value for name, value in shown.items() if name not in _CHIP_NAMES}
    chosen = {name: value for name, value in shown.items() if name in _CHIP_NAMES}
    return [
        {"name": name, "href": link(request, "/activity", **kept, **chip), "active": chip == chosen}
        for name, chip in _CHIPS
    ]


@router.get("/activity/live")
async def live(request: Request, who: Who, database: Data) -> Response:
    """Events since a cursor, newest first, as rows for the list, and where to continue."""
    shown = _shown(request)
    filters = _filters(shown, who)
    since = _cursor(request, "since_cursor")
    async with database.reading(request, who) as session:
        if since is None:
            batch = await session.run(latest_trail.read(1, **filters))
        else:
            batch = await session.run(follow_trail.read(since, **filters))
        names, key_names = await queries.names_shown(session, who, batch.entries)
    answer = render(
        request,
        "events.html",
        entries=batch.entries[::-1],
        names=names,
        key_names=key_names,
        # What arrives now is hardly undone already.
        undone={},
    )
    answer.headers["X-Live"] = link(request, "/activity/live", **shown, since_cursor=batch.cursor)
    return answer


@router.get("/activity/{cursor}")
async def event(
    request: Request, who: Who, database: Data, cursor: models.Cursor, skip: Skip = 0
) -> Response:
    """One event in full, and the other events of its request."""
    async with database.reading(request, who) as session:
        entry = await event_at(session, cursor)
        related: tuple[TrailEntry, ...] = ()
        if entry.correlation_id:
            page = await session.run(
                queries.without_diff(
                    audit_trail.read(
                        correlation_id=entry.correlation_id, org_id=who.org_id, page_size=_PAGE
                    )
                )
            )
            related = tuple(other for other in page.entries if other.id != entry.id)
        names, key_names = await queries.names_shown(session, who, (entry, *related))
        version = await queries.version_of_event(session, entry)
        undone = await session.run(undone_by.read((entry,)))
        undone |= await session.run(undone_by.read(related)) if related else {}
    return render(
        request,
        "event.html",
        entry=entry,
        version=version,
        changed=version and excerpt(version.change),
        related=related,
        names=names,
        key_names=key_names,
        page=compared_fields(entry.diff, skip),
        metadata=[*islice(entry.metadata.items(), _PAGE)],
        undone=undone,
        undoes=undoes_of(entry),
        may_undo=database.may_undo,
        provable=_sealed_log(request) is not None,
    )


@router.get("/api-keys")
async def api_keys(request: Request, who: Who, database: Data, skip: Skip = 0) -> Response:
    """The history of each API key."""
    async with database.reading(request, who) as session:
        keys = await queries.api_keys(session, who)
    rest = skip + queries.PAGE
    return render(
        request,
        "api_keys.html",
        keys=keys[skip:rest],
        next=link(request, "/api-keys", skip=rest) if len(keys) > rest else None,
    )


@router.get("/runs")
async def runs(request: Request, who: Who, database: Data, after: str | None = None) -> Response:
    """The runs, with credential and definition."""
    async with database.reading(request, who) as session:
        tables = await queries.run_tables(session)
        page = queries.RunPage((), None)
        if tables:
            page = await queries.runs(session, who, tables[0], after=after or None)
    return render(
        request,
        "runs.html",
        readable=bool(tables),
        runs=page.runs,
        next=page.next_cursor and link(request, "/runs", after=page.next_cursor),
    )


@router.get("/integrity")
async def integrity(request: Request, who: Who) -> Response:
    """How far the log is sealed."""
    return await _integrity(request, who)


@router.post("/integrity")
async def verify(request: Request, who: Who) -> Response:
    """Check the whole log now."""
    await csrf.check_form(request)
    sealed = _sealed_log(request)
    if sealed is None or not sealed.may_verify:
        raise ProblemError(501, "These pages are configured without a key to verify with.")
    report = await sealed.verify()
    return await _integrity(request, who, report, busy=report is None)


@router.get("/integrity/bundle")
async def bundle(
    request: Request,
    who: Who,
    database: Data,
    since: Day = None,
    until: Day = None,
    old_size: Size = None,
) -> Response:
    """The organization's trail for its auditor."""
    sealed = _sealed_log(request)
    if sealed is None:
        raise ProblemError(501, "These pages are configured without the sealed log.")
    return await bundle_response(request, database, who, sealed, since, until, old_size)


def _sealed_log(request: Request) -> Integrity | None:
    sealed: Integrity | None = request.scope["pgaudit_wf.integrity"]
    return sealed


async def _integrity(
    request: Request, who: Who, report: Report | None = None, *, busy: bool = False
) -> Response:
    sealed = _sealed_log(request)
    return render_form(
        request,
        "integrity.html",
        sealing=await sealed.sealing(who.org_id) if sealed else None,
        may_verify=sealed is not None and sealed.may_verify,
        report=report,
        # The rows may belong to another organization.
        kinds=sorted(Counter(problem.kind for problem in report.problems).items())
        if report
        else [],
        busy=busy,
    )
