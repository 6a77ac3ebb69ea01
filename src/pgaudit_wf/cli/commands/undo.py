"""`undo`: put rows back as they were before an event, a request, a transaction or more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from pgaudit_wf.cli.base import FAILED, USAGE, Failure, add, connect
from pgaudit_wf.cli.options import (
    AsOption,
    DatabaseOption,
    JsonOption,
    LimitOption,
    OrgOption,
    ReasonOption,
    time_option,
)
from pgaudit_wf.cli.printing.output import console, print_json, print_table, printable, short

if TYPE_CHECKING:
    import psycopg

    from pgaudit_wf.trail.undo import UndoRow


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    add(app, undo)


def undo(
    event: Annotated[
        int | None, typer.Option(metavar="ID", show_default=False, help="Undo this event.")
    ] = None,
    request: Annotated[
        str | None,
        typer.Option(
            metavar="ID", show_default=False, help="Undo this request, by its correlation id."
        ),
    ] = None,
    transaction: Annotated[
        int | None, typer.Option(metavar="ID", show_default=False, help="Undo this transaction.")
    ] = None,
    actor: Annotated[
        str | None, typer.Option(metavar="ID", show_default=False, help="Undo what this actor did.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="ID", show_default=False, help="Undo what this API key did."),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(metavar="TABLE", show_default=False, help="Only in this table; repeatable."),
    ] = None,
    since: Annotated[datetime | None, time_option("Only from this time on.")] = None,
    until: Annotated[datetime | None, time_option("Only before this time.")] = None,
    on_conflict: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=CHOICE",
            show_default=False,
            help="What to do about a kind of conflict: changed=skip, redacted=overwrite; repeat.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be done.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    limit: LimitOption = 50,
    org: OrgOption = None,
    as_actor: AsOption = None,
    reason: ReasonOption = None,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Put rows back as they were before an event, a request, a transaction, or all that one did.

    Shows each row first, what it gets, and what stands against it; then asks. Everything happens in
    one transaction, with the rights of the login, whose triggers and policies apply. On a conflict
    nothing is done, unless --on-conflict says what to do about that kind. The changes are recorded
    like any other, so an undo can be undone. Exit code 1: there are conflicts, or nothing to undo.

        pgaudit-wf undo --request req_7f3a --dry-run
        pgaudit-wf undo --request req_7f3a --reason 'wrong price file'
        pgaudit-wf undo --actor u_bo --since 2h --table invoice --on-conflict changed=skip --yes

    The kinds of conflicts: docs/how-to/undo.md
    """
    from pgaudit_wf import request_context
    from pgaudit_wf.trail.undo import undo as undo_rows
    from pgaudit_wf.trail.undo import undo_plan

    chosen: dict[str, Any] = {
        "event_id": event, "correlation_id": request, "tx_id": transaction, "actor_id": actor,
        "api_key_id": api_key,
    }  # fmt: skip
    if all(value is None for value in chosen.values()):
        raise Failure(
            "nothing says what to undo",
            "give --event, --request, --transaction, --actor or --api-key",
            USAGE,
        )
    if as_json and not (dry_run or yes):
        raise Failure("--json does not ask", "add --dry-run or --yes", USAGE)
    chosen |= {"tables": table, "since": since, "until": until}
    chosen["on_conflict"] = _choices(on_conflict or [])
    confirmed: dict[tuple[int, ...], UndoRow] | None = None
    with connect(database) as conn:
        if dry_run or not yes:
            # What triggers and policies find out about the caller is what they find in the run.
            with request_context(conn, actor_id=as_actor, org_id=org, record_failure=False):
                plan = undo_plan(conn, **chosen)
            if not as_json:
                _print(plan, limit)
            stopped = sum(row.decision == "abort" for row in plan)
            if dry_run or stopped or not plan:
                if as_json:
                    print_json(plan)
                elif not plan:
                    console(stderr=True).print("There is nothing to undo.")
                raise typer.Exit(FAILED if stopped or not plan else 0)
            counts = Counter(row.decision for row in plan)
            typer.confirm(
                f"Put {counts['undo']:,} rows back{_skipped(counts)}?", abort=True, err=True
            )
            confirmed = _by_events(plan)
        conn.add_notice_handler(_progress)
        with request_context(conn, actor_id=as_actor, org_id=org, reason=reason):
            done = undo_rows(conn, **chosen)
            if confirmed is not None and _by_events(done) != confirmed:
                raise Failure(
                    "the rows have changed since the plan was shown, so nothing was put back",
                    "run the command again, to see the plan as it is now",
                )
    if as_json:
        print_json(done)
    else:
        counts = Counter(row.decision for row in done)
        console(stderr=True).print(f"{counts['undo']:,} rows put back{_skipped(counts)}.")


def _by_events(rows: tuple[UndoRow, ...]) -> dict[tuple[int, ...], UndoRow]:
    return {row.events: row for row in rows}


def _skipped(counts: Counter[str]) -> str:
    return f", {counts['skip']:,} skipped" if counts["skip"] else ""


def _choices(given: Iterable[str]) -> dict[str, Any]:
    choices = {}
    for text in given:
        kind, equals, choice = text.partition("=")
        if not (kind and equals and choice):
            raise Failure(
                f"--on-conflict {printable(text)} is not KIND=CHOICE", "such as changed=skip", USAGE
            )
        choices[kind] = choice
    return choices


def _progress(notice: psycopg.errors.Diagnostic) -> None:
    if (message := notice.message_primary or "").startswith("undo: "):
        console(stderr=True).print(printable(message))


def _print(plan: tuple[UndoRow, ...], limit: int) -> None:
    if not plan:
        return
    print_table(
        ["Table", "Id", "Operation", "Puts back", "Conflicts", "Decision"],
        [
            [
                row.target or "",
                row.resource_id or "",
                row.operation or "",
                _lines(f"{name} {short(value)}" for name, value in (row.put_back or {}).items()),
                _lines(map(_conflict, row.conflicts)),
                row.decision,
            ]
            for row in plan[:limit]
        ],
    )
    if len(plan) > limit:
        console(stderr=True).print(f"… and {len(plan) - limit:,} more rows (--limit).")


def _lines(texts: Iterable[str]) -> Text:
    return Text("\n".join(map(printable, texts)))


def _conflict(found: Mapping[str, Any]) -> str:
    words = [str(found["kind"])]
    if "column" in found:
        words.append(str(found["column"]))
    if found.get("event_id") is not None:
        by = f" by {found['actor_id']}" if found.get("actor_id") else ""
        words.append(f"(event {found['event_id']}{by}, {found.get('occurred_at')})")
    if "message" in found:
        words.append(f"({found['message']})")
    return " ".join(words)
