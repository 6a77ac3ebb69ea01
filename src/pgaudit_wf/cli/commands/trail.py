"""`log` and `api-keys`: reading the trail."""

from __future__ import annotations

import select
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, tzinfo
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from pgaudit_wf.cli.base import UNREACHABLE, USAGE, Connection, Failure, add, connect
from pgaudit_wf.cli.options import (
    ArchivesOption,
    AsOption,
    DatabaseOption,
    Filters,
    JsonOption,
    OrgOption,
    UtcOption,
    filtering,
    reading,
)
from pgaudit_wf.cli.printing.output import console, moment, print_json, print_table
from pgaudit_wf.cli.printing.trail import print_line, print_trail
from pgaudit_wf.exact_json import dumps

if TYPE_CHECKING:
    from pgaudit_wf.trail.reads import ApiKeyActivity, TrailEntry
    from pgaudit_wf.trail.undo import Undone

_PAGE = 500
_LIST_LIMIT = 50
_FOLLOW_LIMIT = 10


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    add(app, log)
    add(app, api_keys)


@filtering
def log(
    filters: Filters,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Keep printing new events, oldest first, until Ctrl-C."
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "-n",
            min=0,
            show_default=False,
            help="Number of events (50); with -f, of older ones first (10, with --json 0).",
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR",
            show_default=False,
            help="Continue after this cursor, from a list or, with -f, from -f --json.",
        ),
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show every changed value, before and after.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option(min=0.05, max=3600, metavar="SECONDS", help="With -f, how often to check."),
    ] = 1.0,
    archive: ArchivesOption = None,
    as_actor: AsOption = None,
    utc: UtcOption = False,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show who did what, newest first; all filters must match.

    --json prints an array, with -f one object per line. With the cursor of any line of -f --json,
    --after continues without skipping or repeating an event. -f shows an event once no older
    transaction is running.

        pgaudit-wf log
        pgaudit-wf log -f
        pgaudit-wf log --org o_acme --action 'api_key.*' --since 7d
        pgaudit-wf log --resource-type workflow --resource-id 42 --diff
        pgaudit-wf log --search 203.0.113.9 --outcome denied --json | jq
        pgaudit-wf log --archive /srv/audit-archive --since 2023-01-01
    """
    from pgaudit_wf.archive.files import list_archives
    from pgaudit_wf.archive.read import whole_trail
    from pgaudit_wf.trail.undo import undone_by

    org = filters["org_id"]
    zone = UTC if utc else None
    if follow and archive:
        raise Failure("-f shows new events and --archive old ones: use one of them", code=USAGE)
    archives = list_archives(archive) if archive else []
    with connect(database) as conn:
        if follow:
            first = (0 if as_json else _FOLLOW_LIMIT) if limit is None else limit
            for entry in _follow(conn, filters, first, after, interval, org, as_actor):
                if as_json:
                    print(dumps(entry))
                else:
                    print_line(entry, zone, diff=diff)
                sys.stdout.flush()
            return
        wanted = _LIST_LIMIT if limit is None else limit
        if archives:
            with reading(conn, org, as_actor):
                found = whole_trail(conn, archives, after, **filters)
                entries = list(islice(found, wanted))
            more = entries[-1].cursor if entries and len(entries) == wanted else None
        else:
            entries, more = _list(conn, filters, wanted, after, org, as_actor)
        undone: dict[int, Undone] = {}
        if entries and not as_json:
            with reading(conn, org, as_actor):
                undone = undone_by(conn, entries)
    if as_json:
        print_json(entries)
        return
    if not entries:
        console().print("No event matches." if any(filters.values()) else "The log is empty.")
        return
    print_trail(entries, zone, diff=diff, undone=undone)
    if more:
        console(stderr=True).print(Text(f"There may be more: --after {more}", style="dim"))


def _list(
    conn: Connection,
    filters: Filters,
    limit: int,
    after: str | None,
    org: str | None,
    as_actor: str | None,
) -> tuple[list[TrailEntry], str | None]:
    from pgaudit_wf.trail.reads import audit_trail

    entries: list[TrailEntry] = []
    while len(entries) < limit:
        size = min(limit - len(entries), _PAGE)
        with reading(conn, org, as_actor):
            page = audit_trail(conn, after=after, page_size=size, **filters)
        entries += page.entries
        after = page.next_cursor
        if after is None:
            break
    return entries, after


def _follow(
    conn: Connection,
    filters: Filters,
    limit: int,
    after: str | None,
    interval: float,
    org: str | None,
    as_actor: str | None,
) -> Iterator[TrailEntry]:
    import psycopg

    from pgaudit_wf.trail.reads import follow_trail, latest_trail

    seen: set[int] = set()
    if after is None:
        with reading(conn, org, as_actor):
            batch = latest_trail(conn, min(limit, 1000), **filters)
        after = batch.cursor
        seen = {entry.id for entry in batch.entries}
        for entry in batch.entries:
            # Its cursor is not a position in the order of the log.
            yield replace(entry, cursor="")
    while True:
        try:
            with reading(conn, org, as_actor):
                batch = follow_trail(conn, after, **filters)
        except psycopg.OperationalError as error:
            if not conn.closed:
                raise
            raise Failure(
                f"the connection to the database was lost: {error}",
                f"continue with pgaudit-wf log -f --after {after}",
                UNREACHABLE,
            ) from error
        for entry in batch.entries:
            if entry.id not in seen:
                yield entry
        if batch.cursor == after:
            _wait(interval)
        after = batch.cursor


def _wait(seconds: float) -> None:
    """Wait, and notice if the reader of a pipe closes it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if poll.poll(seconds * 1000):
        raise BrokenPipeError


def api_keys(
    org: OrgOption = None,
    as_actor: AsOption = None,
    utc: UtcOption = False,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show the history of each API key, including revoked and deleted ones.

    pgaudit-wf api-keys --org o_acme
    """
    from pgaudit_wf.trail.reads import api_key_activity

    with connect(database) as conn, reading(conn, org, as_actor):
        keys = api_key_activity(conn, org_id=org)
    if as_json:
        print_json(keys)
        return
    zone: tzinfo | None = UTC if utc else None
    print_api_keys(keys, zone)


def print_api_keys(keys: Sequence[ApiKeyActivity], zone: tzinfo | None) -> None:
    """Print API keys as a table."""
    styles = {"active": "green", "revoked": "yellow", "deleted": "red"}
    print_table(
        ["Key", "Id", "Org", "Status", "Created", "By", "Revoked", "By"],
        [
            [
                key.label or "",
                key.api_key_id,
                key.org_id or "(a person's own)",
                Text(key.status, style=styles[key.status]),
                moment(key.created_at, zone),
                key.created_by or "",
                moment(key.revoked_at or key.deleted_at, zone),
                key.revoked_by or "",
            ]
            for key in keys
        ],
    )
