"""One API key: who made it, how it is used, what it did; and revoking it, where the host can."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, TypeAlias

from anyio import to_thread
from fastapi import APIRouter, Path, Request, Response
from psycopg import sql
from starlette.responses import RedirectResponse

from pgaudit_wf.context.values import bind
from pgaudit_wf.trail.reads import audit_trail
from pgaudit_wf.web import csrf, models, queries
from pgaudit_wf.web.api import Data, Who, answer, problems
from pgaudit_wf.web.database import Session, context_of
from pgaudit_wf.web.forms import reason_of, render_form
from pgaudit_wf.web.paths import link, segment
from pgaudit_wf.web.principal import Principal
from pgaudit_wf.web.problems import ProblemError
from pgaudit_wf.web.rendering import brief, render

__all__ = ["RevokeKey", "api_router", "router"]

RevokeKey: TypeAlias = Callable[[Request, Principal, str, str], Awaitable[None] | None]
KeyId: TypeAlias = Annotated[
    str, Path(min_length=1, max_length=1000, pattern=models.NO_NUL, description="Id of the key.")
]

router = APIRouter(include_in_schema=False)
api_router = APIRouter()

_PAGE = 20
_LONGEST_REASON = 1000
# One row, whether or not there is such a key; the hash of a key is nowhere in it.
_STATEMENT = sql.SQL("""
select d.owner_id, coalesce(d.label, a.label) as label, coalesce(d.created_at, a.created_at) as
    created_at, a.created_by, d.expires_at,
    case when d.is_known then d.revoked_at else a.revoked_at end as revoked_at,
    case when d.is_known and d.revoked_at is null then null else a.revoked_by end as revoked_by,
    a.deleted_at, a.status, greatest(d.last_used_at, u.last_at) as last_used_at,
    u.first_at as first_used_at, u.uses, u.networks, u.leaked_at, r.ran, n.names,
    coalesce(d.is_known, false) as is_known
from (values (%(key)s, %(org)s)) as asked (key, org)
left join lateral (
    select k.*, true as is_known from pgaudit_wf._describe_api_key(asked.key, asked.org) as k
) as d on true
left join pgaudit_wf.api_key_activity as a on a.api_key_id = asked.key and a.org_id = asked.org
cross join pgaudit_wf._uses_of_key(asked.key, asked.org) as u
left join lateral (
    select coalesce(jsonb_agg(to_jsonb(f) order by f.last_at desc nulls last), '[]') as ran
    from pgaudit_wf._definitions_run(array[asked.key, coalesce(d.label, a.label)], asked.org) as f
) as r on true
left join lateral (
    select jsonb_object_agg(n.actor_id, n.name) as names
    from pgaudit_wf.describe_actors(asked.org, array[d.owner_id, a.created_by, a.revoked_by]) as n
    where n.name is not null
) as n on true
""")


@dataclass(frozen=True, slots=True)
class Use:
    """How often a key was used from a network; None: the log has no address."""

    network: str | None
    uses: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class Ran:
    """A definition that was run with a key."""

    workflow_id: str
    name: str | None
    version: int | None
    runs: int
    last_at: datetime | None


@dataclass(frozen=True, slots=True)
class KeyDetails:
    """An API key of the organization; `is_known`: the directory of keys has it."""

    api_key_id: str
    label: str | None
    status: Literal["active", "expired", "revoked", "deleted"]
    owner_id: str | None
    owner_name: str | None
    created_at: datetime | None
    created_by: str | None
    created_by_name: str | None
    expires_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None
    revoked_by_name: str | None
    deleted_at: datetime | None
    leaked_at: datetime | None
    first_used_at: datetime | None
    last_used_at: datetime | None
    uses: int
    networks: tuple[Use, ...]
    ran: tuple[Ran, ...]
    is_known: bool


async def find_key(session: Session, principal: Principal, api_key_id: str) -> KeyDetails:
    """Return a key of the organization.

    Raises:
        ProblemError: The organization has no such key.
    """
    [row] = await session.rows(_STATEMENT, key=api_key_id, org=principal.org_id)
    names, status = row.pop("names") or {}, row.pop("status")
    if not (row["is_known"] or status or row["uses"] is not None):
        raise ProblemError(404, "There is no such API key.")
    expires_at, now = row["expires_at"], datetime.now().astimezone()
    if status != "deleted" and row["revoked_at"] is not None and row["revoked_at"] <= now:
        status = "revoked"
    elif status != "deleted":
        status = "expired" if expires_at is not None and expires_at <= now else "active"
    for who, actor in (("owner", "owner_id"), ("created_by",) * 2, ("revoked_by",) * 2):
        row[f"{who}_name"] = names.get(row[actor])
    row |= {"api_key_id": api_key_id, "status": status, "uses": row["uses"] or 0}
    networks = tuple(Use(**_times(use)) for use in row.pop("networks"))
    ran = tuple(Ran(**_times(run)) for run in row.pop("ran"))
    return KeyDetails(networks=networks, ran=ran, **row)


def _times(value: dict[str, Any]) -> dict[str, Any]:
    return {
        name: datetime.fromisoformat(item) if name.endswith("_at") and item else item
        for name, item in value.items()
    }


def _root(api_key_id: str) -> str:
    return f"/api-keys/{segment(api_key_id)}"


def _may_revoke(request: Request, key: KeyDetails) -> bool:
    # Of a key that only the log knows, the host knows nothing any more.
    return bool(request.scope["pgaudit_wf.revoke_key"] and key.is_known and key.revoked_at is None)


@api_router.get(
    "/api/api-keys/{api_key_id:path}/details",
    response_model=models.ApiKeyDetails,
    responses=problems(400, 401, 403, 404, 422, 503),
    summary="One API key: who made it, from where it was used, and what it ran",
    tags=["trail"],
)
async def details(request: Request, who: Who, database: Data, api_key_id: KeyId) -> Response:
    """Never the key or its hash. What it changed: the trail with its `api_key_id`."""
    async with database.reading(request, who) as session:
        return answer(await find_key(session, who, api_key_id))


async def _key_to_revoke(
    request: Request, who: Who, database: Data, api_key_id: str
) -> tuple[KeyDetails, RevokeKey]:
    async with database.reading(request, who) as session:
        key = await find_key(session, who, api_key_id)
    revoke_key: RevokeKey | None = request.scope["pgaudit_wf.revoke_key"]
    if revoke_key is None:
        raise ProblemError(501, "API keys cannot be revoked on these pages.", "read_only")
    if not _may_revoke(request, key):
        raise ProblemError(409, "The API key is revoked, or no longer there.")
    return key, revoke_key


@router.get("/api-keys/{api_key_id:path}/revoke")
async def confirm(request: Request, who: Who, database: Data, api_key_id: KeyId) -> Response:
    """Ask for confirmation before a key is revoked."""
    key, _ = await _key_to_revoke(request, who, database, api_key_id)
    return render_form(
        request, "revoke_key.html", key=key, name=brief(key.label or key.api_key_id),
        root=_root(api_key_id),
    )  # fmt: skip


@router.post("/api-keys/{api_key_id:path}/revoke")
async def revoke(request: Request, who: Who, database: Data, api_key_id: KeyId) -> Response:
    """Let the host revoke a key, if the form is ours, and show it."""
    sent = await csrf.check_form(request)
    reason = reason_of(sent, "the key is revoked")[:_LONGEST_REASON]
    _, revoke_key = await _key_to_revoke(request, who, database, api_key_id)
    # What the host does then is recorded with who asked for it, and why.
    with bind(context_of(request, who).merge(reason=reason)):
        if inspect.iscoroutinefunction(revoke_key):
            await revoke_key(request, who, api_key_id, reason)
        else:
            done = await to_thread.run_sync(revoke_key, request, who, api_key_id, reason)
            if inspect.isawaitable(done):
                await done
    return RedirectResponse(link(request, _root(api_key_id)), 303)


@router.get("/api-keys/{api_key_id:path}")
async def key_page(request: Request, who: Who, database: Data, api_key_id: KeyId) -> Response:
    """A key, and what it changed last."""
    async with database.reading(request, who) as session:
        key = await find_key(session, who, api_key_id)
        # Not before its first use, as far as uses were counted.
        changed = await session.run(
            queries.without_diff(
                audit_trail.read(
                    org_id=who.org_id, api_key_id=api_key_id, page_size=_PAGE,
                    since=key.first_used_at,
                )
            )
        )  # fmt: skip
    return render(
        request,
        "api_key.html",
        key=key,
        name=brief(key.label or key.api_key_id),
        entries=changed.entries,
        names={},
        key_names={api_key_id: key.label},
        # The event's own page says whether it was undone.
        undone={},
        more=changed.next_cursor is not None,
        may_revoke=_may_revoke(request, key),
        soon=key.expires_at is not None
        and key.expires_at - datetime.now().astimezone() < timedelta(days=30),
        root=_root(api_key_id),
    )
