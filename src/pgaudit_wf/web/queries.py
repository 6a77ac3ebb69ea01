"""Queries shared by the pages and the API, for one organization."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, LiteralString

from psycopg import sql
from starlette.requests import Request

from pgaudit_wf.errors import CursorError
from pgaudit_wf.trail.reads import TrailEntry, api_key_activity, audit_trail
from pgaudit_wf.trail.sentences import member_of
from pgaudit_wf.trail.statement import Read, columns
from pgaudit_wf.web.database import Database, Session, T
from pgaudit_wf.web.principal import Principal
from pgaudit_wf.workflow.model import RunAttribution, Snapshot, Version, VersionDiff
from pgaudit_wf.workflow.reads import execution_attribution, workflow_versions

PAGE = 200


@dataclass(frozen=True, slots=True)
class Run:
    """A run and the version of its workflow that it executed, if the history has that."""

    execution_id: str
    workflow_id: str
    workflow_name: str | None
    occurred_at: datetime | None
    credential_type: str | None
    credential_label: str | None
    version: int | None


@dataclass(frozen=True, slots=True)
class RunPage:
    """Runs, newest first, and where the next page begins."""

    runs: tuple[Run, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class WorkflowRow:
    """A workflow that has versions."""

    workflow_id: str
    name: str | None
    version: int
    changed_at: datetime
    published_version: int | None


@dataclass(frozen=True, slots=True)
class WorkflowPage:
    """Workflows, the last changed first, and where the next page begins."""

    workflows: tuple[WorkflowRow, ...]
    next_cursor: str | None


def without_diff(read: Read[T], *more: LiteralString) -> Read[T]:
    """Return a read of entries for a list, which does not load what they changed.

    Args:
        read: The read.
        *more: Its columns besides those of an entry.
    """
    kept = sql.SQL(", ").join([columns(TrailEntry, "e", {"diff"}), *map(sql.SQL, more)])
    return replace(
        read,
        statement=sql.SQL("select {}, null as diff from ({}) as e").format(kept, read.statement),
    )


async def find_event(session: Session, cursor: str) -> TrailEntry | None:
    """Return the event with a cursor; None if the organization has no such event.

    Raises:
        CursorError: The cursor is not one of the trail.
    """
    [before] = await session.rows(
        # The position just above the event, so that the page after it begins with the event.
        sql.SQL(
            "select pgaudit_wf._trail_cursor(p.occurred_at, p.id + 1) as cursor"
            " from pgaudit_wf._trail_position(%(cursor)s) as p"
        ),
        cursor=cursor,
    )
    page = await session.run(audit_trail.read(after=before["cursor"], page_size=1))
    return next((entry for entry in page.entries if entry.cursor == cursor), None)


async def may_read_history(database: Database, request: Request, principal: Principal) -> bool:
    """Return whether the database lets the principal read versions of the organization."""
    async with database.reading(request, principal) as session:
        [row] = await session.rows(
            sql.SQL("select pgaudit_wf._readable_history_org() is not null as may")
        )
    return bool(row["may"])


async def may_read_trail(session: Session) -> bool:
    """Return whether the database takes the principal for an owner or admin."""
    [row] = await session.rows(sql.SQL("select pgaudit_wf._readable_org() is not null as may"))
    return bool(row["may"])


async def names_of(
    session: Session, principal: Principal, actor_ids: Iterable[str | None]
) -> dict[str, str]:
    """Return the current names of actors of the organization."""
    wanted = sorted({actor for actor in actor_ids if actor})
    if not wanted:
        return {}
    rows = await session.rows(
        sql.SQL(
            "select d.actor_id, d.name from pgaudit_wf.describe_actors(%(org)s, %(actors)s) as d"
            " where d.name is not null"
        ),
        org=principal.org_id,
        actors=wanted,
    )
    return {row["actor_id"]: row["name"] for row in rows}


async def names_shown(
    session: Session, principal: Principal, entries: Iterable[TrailEntry]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the names of the members that events are about, and of the API keys that made them."""
    shown = tuple(entries)
    members = sorted({member for entry in shown if (member := member_of(entry))})
    keys = sorted({entry.api_key_id for entry in shown if entry.api_key_id})
    if not members and not keys:
        return {}, {}
    rows = await session.rows(
        sql.SQL(
            "select false as is_key, d.actor_id as id, d.name"
            " from pgaudit_wf.describe_actors(%(org)s, %(members)s) as d where d.name is not null"
            " union all select true, r.resource_id, r.name from pgaudit_wf.resource_names("
            "array_fill('api_key'::text, array[cardinality(%(keys)s::text[])]), %(keys)s, %(org)s)"
            " as r where r.name is not null"
        ),
        org=principal.org_id,
        members=members,
        keys=keys,
    )
    named = [
        {row["id"]: row["name"] for row in rows if row["is_key"] is key} for key in (False, True)
    ]
    return named[0], named[1]


async def api_keys(session: Session, principal: Principal) -> list[dict[str, Any]]:
    """Return the organization's API keys with the names of who created and revoked them."""
    keys = await session.run(api_key_activity.read(org_id=principal.org_id))
    actors = [actor for key in keys for actor in (key.created_by, key.revoked_by)]
    names = await names_of(session, principal, actors)
    return [
        {
            **asdict(key),
            "created_by_name": names.get(key.created_by or ""),
            "revoked_by_name": names.get(key.revoked_by or ""),
        }
        for key in keys
    ]


async def find_version(
    session: Session, workflow_id: str, version: int | None = None
) -> Version | None:
    """Return a version, by default the newest; None if the organization has none."""
    before = None if version is None else min(version + 1, 2_147_483_647)
    page = await session.run(
        workflow_versions.read(workflow_id, before_version=before, page_size=1)
    )
    if not page.versions or version not in (None, page.versions[0].version):
        return None
    return page.versions[0]


@dataclass(frozen=True, slots=True)
class NewestVersion:
    """The number of a workflow's newest version, and its name then, if that is known."""

    version: int
    name: str | None
    deleted_at: datetime | None


async def newest_version(session: Session, workflow_id: str) -> NewestVersion | None:
    """Return the newest version of a workflow; None if the organization has no such workflow."""
    rows = await session.rows(
        sql.SQL(
            "select version, left(name, 256) as name,"
            " pgaudit_wf._deleted_at(workflow_id) as deleted_at from pgaudit_wf.workflow_list"
            " where workflow_id = %(workflow_id)s"
        ),
        workflow_id=workflow_id,
    )
    return NewestVersion(**rows[0]) if rows else None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two versions of a workflow in full, and what differs; None: it does not exist, or not now."""

    before: Snapshot | None
    after: Snapshot | None
    diff: VersionDiff


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """A version, the number of the newest, it next to the one before, and when it was deleted."""

    version: Version
    newest: int
    pair: Pair
    deleted_at: datetime | None


async def version_pair(session: Session, workflow_id: str, version: int) -> FoundVersion | None:
    """Return a version with the one before.

    None if the organization has no such version.
    """
    rows = await session.rows(
        sql.SQL(
            "select {}, n.newest as _newest, n.before as _before, n.after as _after,"
            " pgaudit_wf._deleted_at(v.workflow_id) as _deleted_at"
            " from pgaudit_wf.workflow_versions(%(workflow_id)s, before_version => %(before)s,"
            " page_size => 1) as v,"
            " pgaudit_wf._version_neighbors(v.workflow_id, v.version) as n"
            " where v.version = %(version)s"
        ).format(columns(Version, "v")),
        workflow_id=workflow_id,
        version=version,
        before=min(version + 1, 2_147_483_647),
    )
    if not rows:
        return None
    row = rows[0]
    newest, after, before, deleted_at = (
        row.pop(name) for name in ("_newest", "_after", "_before", "_deleted_at")
    )
    found = Version(**{**row, "change": VersionDiff.from_json(row["change"])})
    pair = Pair(_snapshot(before), _snapshot(after), found.change)
    return FoundVersion(found, newest, pair, deleted_at)


async def compared_pair(session: Session, workflow_id: str, before: int, after: int) -> Pair:
    """Return any two versions of a workflow, and what differs.

    Raises:
        VersionNotFoundError: One of them does not exist, or the organization has none such.
        VersionPrunedError: The snapshot of one was pruned.
    """
    [row] = await session.rows(
        sql.SQL(
            "with pair as materialized (select"
            " pgaudit_wf.version_snapshot(%(workflow_id)s, %(before)s) as before,"
            " pgaudit_wf.version_snapshot(%(workflow_id)s, %(after)s) as after)"
            " select before, after, pgaudit_wf.version_diff(before, after) as diff from pair"
        ),
        workflow_id=workflow_id,
        before=before,
        after=after,
    )
    diff = VersionDiff.from_json(row["diff"])
    return Pair(_snapshot(row["before"]), _snapshot(row["after"]), diff)


def _snapshot(kept: Mapping[str, Any] | None) -> Snapshot | None:
    return None if kept is None else Snapshot.from_json(kept)


async def version_of_event(session: Session, entry: TrailEntry) -> Version | None:
    """Return the version that a change of a workflow made; None for any other event."""
    number = entry.metadata.get("version")
    if not isinstance(number, int) or not 0 < number < 2_147_483_647 or not entry.captured:
        return None
    rows = await session.rows(
        sql.SQL(
            "select {} from pgaudit_wf._workflow_of_event(%(type)s, %(resource_id)s) as w,"
            " pgaudit_wf.workflow_versions(w, before_version => %(before)s, page_size => 1) as v"
            " where v.version = %(version)s"
        ).format(columns(Version, "v")),
        resource_id=entry.resource_id,
        type=entry.resource_type,
        version=number,
        before=number + 1,
    )
    for row in rows:
        return Version(**{**row, "change": VersionDiff.from_json(row["change"])})
    return None


async def workflows(
    session: Session, principal: Principal, *, after: str | None = None, page_size: int = PAGE
) -> WorkflowPage:
    """Return a page of the organization's workflows, the last changed first.

    Raises:
        CursorError: `after` was not returned by this function.
    """
    time, id_ = _position(after) if after is not None else (None, None)
    rows = await session.rows(
        sql.SQL(
            "select workflow_id, left(name, 256) as name, version, changed_at, published_version"
            " from pgaudit_wf.workflow_list"
            " where org_id = %(org)s and (%(time)s::timestamptz is null"
            " or (changed_at, workflow_id) < (%(time)s, %(id)s::text))"
            " order by changed_at desc, workflow_id desc limit %(page_size)s"
        ),
        org=principal.org_id,
        time=time,
        id=id_,
        page_size=page_size,
    )
    found = tuple(WorkflowRow(**row) for row in rows)
    full = len(found) == page_size
    return WorkflowPage(
        found, _cursor(found[-1].changed_at.isoformat(), found[-1].workflow_id) if full else None
    )


async def run_tables(session: Session) -> list[dict[str, Any]]:
    """Return the tables of runs that the reader role may read, with their columns."""
    return await session.rows(
        sql.SQL(
            "select target::text as target, schema, name, id_column, org_column, time_column,"
            " workflow_column, id_prefix from pgaudit_wf._readable_run_tables()"
        )
    )


async def find_run(
    session: Session, principal: Principal, table: Mapping[str, Any], execution_id: str
) -> RunAttribution | None:
    """Return the attribution of a run of the organization; None if it has no such run.

    Raises:
        psycopg.DataError: The id has another type than the table's.
    """
    found = await session.run(execution_attribution.read(table["target"], execution_id))
    return found if found is not None and found.org_id == principal.org_id else None


async def runs(
    session: Session,
    principal: Principal,
    table: Mapping[str, Any],
    *,
    workflow_id: str | None = None,
    after: str | None = None,
    page_size: int = 25,
) -> RunPage:
    """Return a page of the organization's runs in one table, newest first.

    Raises:
        CursorError: `after` was not returned by this function.
    """
    column = {
        name: sql.SQL("r.{}").format(sql.Identifier(table[f"{name}_column"]))
        for name in ("id", "org", "workflow")
    }
    time = (
        sql.SQL("r.{}::timestamptz").format(sql.Identifier(table["time_column"]))
        if table["time_column"]
        else sql.SQL("timestamptz 'epoch'")
    )
    where = [sql.SQL("{}::text = %(org)s").format(column["org"])]
    position: dict[str, Any] = {}
    if workflow_id is not None:
        where.append(
            sql.SQL("pgaudit_wf._workflow_id(%(prefix)s, {}::text) = %(workflow)s").format(
                column["workflow"]
            )
        )
    if after is not None:
        position = dict(zip(("time", "id"), _position(after), strict=True))
        where.append(
            sql.SQL("({}, {}::text) < (%(time)s::timestamptz, %(id)s)").format(time, column["id"])
        )
    statement = sql.SQL(
        "select a.execution_id, a.workflow_id, a.occurred_at, a.credential_type,"
        " a.credential_label, a.version, a.snapshot ->> 'name' as workflow_name,"
        " run.position"
        " from (select {id}::text as id, {time} as started,"
        "   ({time})::text as position from {table} as r"
        "   where {where} order by 2 desc, 1 desc limit %(page_size)s) as run,"
        " lateral pgaudit_wf.execution_attribution(%(target)s::regclass, run.id) as a"
        " order by run.started desc, run.id desc"
    ).format(
        id=column["id"],
        time=time,
        table=sql.Identifier(table["schema"], table["name"]),
        where=sql.SQL(" and ").join(where),
    )
    rows = await session.rows(
        statement,
        org=principal.org_id,
        prefix=table["id_prefix"],
        workflow=workflow_id,
        target=table["target"],
        page_size=page_size,
        **position,
    )
    positions = [row.pop("position") for row in rows]
    found = tuple(Run(**row) for row in rows)
    full = len(found) == page_size
    return RunPage(found, _cursor(positions[-1], found[-1].execution_id) if full else None)


def _cursor(started: str, execution_id: str) -> str:
    position = json.dumps([started, execution_id]).encode()
    return base64.urlsafe_b64encode(position).decode().rstrip("=")


def _position(cursor: str) -> tuple[datetime, str]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), "-_", validate=True)
        started, execution_id = json.loads(text)
        return datetime.fromisoformat(started), str(execution_id)
    except (ValueError, TypeError, binascii.Error):
        raise CursorError("the cursor was not made by this page", sqlstate="PA007") from None
