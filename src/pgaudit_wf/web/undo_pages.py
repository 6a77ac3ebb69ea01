"""Undo on the pages: the plan first, then all of it as it was shown, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Annotated, Any, Protocol

import psycopg
from fastapi import APIRouter, Path, Request, Response
from psycopg import sql
from starlette.responses import RedirectResponse

from pgaudit_wf.errors import NothingToUndoError, UndoConflictError
from pgaudit_wf.trail.changes import pretty
from pgaudit_wf.trail.event import TrailEntry
from pgaudit_wf.trail.statement import Read
from pgaudit_wf.trail.undo import UndoRow, undo, undo_plan
from pgaudit_wf.web import csrf
from pgaudit_wf.web.api import Data, Who
from pgaudit_wf.web.database import Database, Session
from pgaudit_wf.web.forms import reason_of, render_form
from pgaudit_wf.web.paths import link
from pgaudit_wf.web.problems import ProblemError
from pgaudit_wf.web.rendering import brief

router = APIRouter(include_in_schema=False)

# Rows that a plan shows, and columns and conflicts of each; all of them count.
_ROWS = 200
_PARTS = 20
_LARGEST = 9_223_372_036_854_775_807
OVERWRITABLE = frozenset({
    "changed", "exists", "redacted", "digested", "ignored", "dropped", "altered", "cascade",
})  # fmt: skip
KINDS = {
    "changed": "changed since",
    "exists": "there again",
    "gone": "deleted since",
    "redacted": "not in the log, as it is a secret",
    "digested": "only known by its digest",
    "ignored": "left out of the log",
    "dropped": "the column no longer exists",
    "altered": "the table's own rules make something else of it",
    "cascade": "rows of another table would go or change with it",
    "foreign_key": "a foreign key does not allow it",
    "unique": "a unique value is taken",
    "constraint": "a constraint does not allow it",
    "refused": "the table's own rules refuse it",
    "unversioned": "that version of the workflow is not kept",
    "other_org": "belongs to another organization",
    "truncated": "the whole table was emptied, row by row unknown",
    "rewritten": "the whole table was rewritten, row by row unknown",
    "keyless": "the event does not say which row it was",
    "detached": "no recorded table has such rows any more",
    "ambiguous": "several rows or tables could be meant",
}
_CHOICES = {"abort": "undo nothing", "skip": "skip these rows", "overwrite": "undo all the same"}
_DETAILS = ("column", "event_id", "actor_id", "table", "message")
_DONE = {"insert": "comes back", "update": "changes", "delete": "is deleted"}


class _Undo(Protocol):
    def read(
        self,
        *,
        event_id: int | None,
        correlation_id: str | None,
        on_conflict: Mapping[str, Any],
    ) -> Read[tuple[UndoRow, ...]]: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be undone, an event or a request, and what to do about kinds of conflicts."""

    event_id: int | None
    correlation_id: str | None
    on_conflict: Mapping[str, str]

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Asked:
        """Take it from a query or a form.

        Raises:
            ProblemError: It names no event and no request, or both.
        """
        event, request = given.get("event_id", ""), given.get("correlation_id", "")
        if bool(event) == bool(request):
            raise ProblemError(422, "Say what to undo: event_id or correlation_id.")
        if event and not (event.isascii() and event.isdigit() and 0 < int(event[:20]) <= _LARGEST):
            raise ProblemError(422, "event_id is the number of an event.")
        choices = {kind: given[f"on_{kind}"] for kind in KINDS if given.get(f"on_{kind}")}
        return cls(int(event) if event else None, request or None, choices)

    def fields(self) -> dict[str, str]:
        """Return it as a query or form has it."""
        choices = {f"on_{kind}": choice for kind, choice in self.on_conflict.items()}
        if self.event_id is not None:
            return {"event_id": str(self.event_id), **choices}
        return {"correlation_id": self.correlation_id or "", **choices}


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan, or what was done: its first rows, how many there are, and a digest of all.

    `decisions` and `kinds` count rows; `request` is the transaction's correlation id.
    """

    rows: tuple[UndoRow, ...]
    decisions: Mapping[str, int]
    kinds: Mapping[str, int]
    digest: str
    request: str | None

    @property
    def total(self) -> int:
        """How many rows it has."""
        return sum(self.decisions.values())


def _planned(function: _Undo, asked: Asked) -> Read[Plan]:
    read = function.read(
        event_id=asked.event_id,
        correlation_id=asked.correlation_id,
        on_conflict=asked.on_conflict,
    )

    def shape(rows: Any) -> Plan:  # noqa: ANN401 - rows of dictionaries
        names = ("decisions", "kinds", "digest", "request")
        summary = {name: rows[0][f"_{name}"] for name in names}
        # Without any row, there is one with the summary alone.
        found = [
            {name: value for name, value in row.items() if name[0] != "_"}
            for row in rows
            if row["decision"]
        ]
        return Plan(read.shape(found), **summary)

    # Digested and counted by the server, so that pages hold no more rows than they show.
    return Read(
        sql.SQL(
            "with plan as materialized ({}),"
            " counted as (select coalesce(jsonb_object_agg(decision, rows), '{{}}') as decisions"
            "   from (select decision, count(*) as rows from plan group by decision) as d),"
            " conflicting as (select coalesce(jsonb_object_agg(kind, rows), '{{}}') as kinds"
            "   from (select c ->> 'kind' as kind, count(distinct events) as rows"
            "     from plan, jsonb_array_elements(conflicts) as c group by 1) as k),"
            " digested as (select encode(sha256(coalesce(string_agg(sha256(convert_to("
            "     plan::text, 'UTF8')), '' order by events, plan::text), '')), 'hex') as digest"
            "   from plan)"
            " select shown.*, decisions as _decisions, kinds as _kinds, digest as _digest,"
            " nullif(current_setting('app.correlation_id', true), '') as _request"
            " from counted, conflicting, digested"
            " left join (select * from plan limit {}) as shown on true"
        ).format(read.statement, sql.Literal(_ROWS)),
        read.parameters,
        shape,
    )


def undoes_of(entry: TrailEntry) -> tuple[int, ...]:
    """Return the events that an event says it undoes."""
    found = entry.metadata.get("undoes")
    if not entry.captured or not isinstance(found, list):
        return ()
    return tuple(item for item in found if type(item) is int and 0 < item <= _LARGEST)


def _refuse_read_only(database: Database) -> None:
    if not database.may_undo:
        raise ProblemError(501, "These pages are configured without undo.", "read_only")


async def _run(session: Session, function: _Undo, asked: Asked) -> Plan:
    try:
        [login] = await session.rows(sql.SQL("select pgaudit_wf._is_confined() as confined"))
        if not login["confined"]:
            # undo() then takes events of any organization, as it does for a DBA.
            raise ProblemError(
                501, "The login of undo_pool is exempt from row-level security; use another."
            )
        return await session.run(_planned(function, asked))
    except psycopg.errors.InsufficientPrivilege as error:
        said = error.diag.message_primary or "permission denied"
        raise ProblemError(403, f"The login that undoes changes may not do this: {said}.") from None


def _conflict(found: Mapping[str, Any]) -> dict[str, Any]:
    at = found.get("occurred_at")
    return {
        "text": KINDS.get(found["kind"], found["kind"]),
        "at": at and datetime.fromisoformat(at),
        **{name: found.get(name) for name in _DETAILS},
    }


def _shown(row: UndoRow) -> dict[str, Any]:
    # The row's values are not for this organization, whatever the login may see of them.
    foreign = any(conflict["kind"] == "other_org" for conflict in row.conflicts)
    put_back = {} if foreign else row.put_back or {}
    return {
        "name": row.resource_type and row.resource_type.replace("_", " "),
        "id": row.resource_id,
        "done": _DONE.get(row.operation or "", ""),
        "values": [
            (brief(name), pretty(value)) for name, value in islice(put_back.items(), _PARTS)
        ],
        "more": max(len(put_back) - _PARTS, 0),
        "conflicts": [_conflict(item) for item in row.conflicts[:_PARTS]],
        "decision": row.decision,
    }


@router.get("/activity/events/{event_id}")
async def event_by_id(
    request: Request, who: Who, database: Data, event_id: Annotated[int, Path(ge=1, le=_LARGEST)]
) -> Response:
    """Show the event with an id."""
    async with database.reading(request, who) as session:
        [found] = await session.rows(
            sql.SQL("select pgaudit_wf._event_cursor(%(id)s::bigint, %(org)s) as cursor"),
            id=event_id,
            org=who.org_id,
        )
    if found["cursor"] is None:
        raise ProblemError(404, "There is no such event.")
    return RedirectResponse(link(request, f"/activity/{found['cursor']}"), 303)


@router.get("/undo")
async def plan_page(request: Request, who: Who, database: Data) -> Response:
    """What undoing an event or a request would do; it is done, and rolled back."""
    if csrf.from_elsewhere(request):
        # It locks the rows for a moment.
        raise ProblemError(403, "Open this from the page of an event or a request.", "cross_site")
    _refuse_read_only(database)
    asked = Asked.of(request.query_params)
    async with database.undoing(request, who) as session:
        plan = await _run(session, undo_plan, asked)
    return render_form(
        request,
        "undo.html",
        asked=asked,
        plan=plan,
        rows=[_shown(row) for row in plan.rows],
        choices=[
            (
                kind,
                KINDS.get(kind, kind),
                count,
                [
                    (choice, text, asked.on_conflict.get(kind, "abort") == choice)
                    for choice, text in _CHOICES.items()
                    if choice != "overwrite" or kind in OVERWRITABLE
                ],
            )
            for kind, count in sorted(plan.kinds.items())
        ],
    )


@router.post("/undo")
async def run(request: Request, who: Who, database: Data) -> Response:
    """Undo what the form's plan showed, if the form is ours and the plan still is the same."""
    sent = await csrf.check_form(request)
    _refuse_read_only(database)
    asked = Asked.of(sent)
    reason = reason_of(sent, "the changes are undone")
    try:
        async with database.undoing(request, who, reason) as session:
            done = await _run(session, undo, asked)
            if done.digest != sent.get("digest"):
                # Rolled back by leaving the transaction so.
                raise _changed()
    except (UndoConflictError, NothingToUndoError):
        raise _changed() from None
    put_back = done.decisions.get("undo", 0)
    return RedirectResponse(
        link(request, "/activity", correlation_id=done.request, put_back=put_back), 303
    )


def _changed() -> ProblemError:
    return ProblemError(
        409,
        "What would be undone has changed since the plan was shown, so nothing was undone."
        " Look at the plan again.",
        "plan_changed",
    )
