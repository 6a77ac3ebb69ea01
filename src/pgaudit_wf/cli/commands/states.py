"""`row`, `row-history`, `table` and `changes`: what rows were, rebuilt from the log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from pgaudit_wf.cli.base import USAGE, Connection, Failure, add, connect
from pgaudit_wf.cli.options import (
    AsOption,
    DatabaseOption,
    JsonOption,
    OrgOption,
    UtcOption,
    reading,
    time_option,
)
from pgaudit_wf.cli.printing.output import (
    console,
    moment,
    print_json,
    print_table,
    printable,
    short,
    shorten,
)
from pgaudit_wf.exact_json import dumps, loads

if TYPE_CHECKING:
    from pgaudit_wf.trail.states import RowChange, RowState

# Laying out 60 MB as a table took minutes; --json has all of it.
_LONGEST_VALUE = 10_000
_MOST_COLUMNS = 12

TableArgument = Annotated[
    str, typer.Argument(metavar="TABLE", help="The table as in SQL: public.invoice.")
]
KeyArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID", help='The row\'s key; several columns: 5,1 or \'["o_1", "u_1"]\'.'
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    add(app, row)
    add(app, row_history)
    add(app, table)
    add(app, changes)


def row(
    table: TableArgument,
    key: KeyArgument,
    at: Annotated[
        datetime | None,
        time_option("When: 2026-03-01, '2026-03-01 14:30', yesterday, 90m (ago). Default: now."),
    ] = None,
    org: OrgOption = None,
    as_actor: AsOption = None,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a row as of a moment, rebuilt from the log; exit code 1 if it did not exist.

    This includes deleted rows. Redacted columns show "[redacted]", ignored ones are absent.

        pgaudit-wf row public.invoice 4711 --at '2026-03-01 09:00'
        pgaudit-wf row member o_1,u_1 --at 2d --json
    """
    from pgaudit_wf.trail.reads import row_as_of

    with connect(database) as conn, reading(conn, org, as_actor):
        found = row_as_of(conn, table, key, at)
    if as_json:
        print_json(found)
    elif found is not None:
        print_table(
            ["Column", "Value"],
            [
                [name, shorten(value if isinstance(value, str) else dumps(value), _LONGEST_VALUE)]
                for name, value in found.items()
            ],
        )
    if found is None:
        when = f"at {moment(at, None)}" if at else "now"
        raise Failure(f"{table} has no row {key} {when}", "the log may not reach back that far")


def row_history(
    table: TableArgument,
    key: KeyArgument,
    org: OrgOption = None,
    as_actor: AsOption = None,
    utc: UtcOption = False,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show every state that a row had, oldest first, with who made it and in which event.

    --json has each state in full.

        pgaudit-wf row-history public.invoice 4711
        pgaudit-wf row-history public.member o_1,u_1 --json
    """
    from pgaudit_wf.trail.states import row_history as read_row_history

    with connect(database) as conn, reading(conn, org, as_actor):
        states = read_row_history(conn, table, key)
    if as_json:
        print_json(states)
        return
    if not states:
        raise Failure(f"no event is about row {key} of {table}", "row shows it as it is now")
    print_table(
        ["When", "Who", "Event", "Transaction", "Change", "Values after it"],
        [
            [
                moment(state.occurred_at, UTC if utc else None),
                state.acted_as(),
                str(state.event_id),
                str(state.tx_id),
                state.change if state.other_id is None else f"{state.change} ({state.other_id})",
                _values(state),
            ]
            for state in states
        ],
    )


def _values(state: RowState) -> str:
    record = state.record or {}
    names = [name for name in state.columns or record if name in record]
    shown = ", ".join(f"{name} {short(record[name])}" for name in names[:_MOST_COLUMNS])
    more = f" and {len(names) - _MOST_COLUMNS} more" if len(names) > _MOST_COLUMNS else ""
    doubt = f" ({state.unknown})" if state.unknown else ""
    return f"{shown}{more}{doubt}".strip()


def table(
    table: TableArgument,
    at: Annotated[
        datetime, time_option("When: 2026-03-01, '2026-03-01 14:30', yesterday, 90m (ago).")
    ],
    view: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Create a view of this name with it, instead of printing it.",
        ),
    ] = None,
    org: OrgOption = None,
    as_actor: AsOption = None,
    database: DatabaseOption = "",
) -> None:
    """Print a whole table as of a moment, rebuilt from the log: one JSON object per line.

    Each has the row's id, the row (record), and, where the log cannot tell it or all of it,
    why (unknown). The server sorts on its disk, so that memory use is constant.

        pgaudit-wf table public.invoice --at '2026-03-01 09:00' | jq .record
        pgaudit-wf table public.invoice --at 2d --view audit.invoice_before
    """
    from pgaudit_wf.trail.states import create_view_as_of

    with connect(database) as conn, reading(conn, org, as_actor):
        if view is not None:
            console(stderr=True).print(
                printable(f"view {create_view_as_of(conn, view, table, at)}")
            )
            return
        _print_table(conn, table, at)


def _print_table(conn: Connection, table: str, at: datetime) -> None:
    from psycopg.rows import dict_row
    from psycopg.types.json import set_json_loads

    from pgaudit_wf.errors import translated

    # A cursor of the server's, as the rows of a table need not fit into memory.
    with translated(), conn.transaction(), conn.cursor("rows", row_factory=dict_row) as cursor:
        set_json_loads(loads, cursor)
        cursor.execute("select * from pgaudit_wf.table_as_of(%s::regclass, %s)", [table, at])
        for found in cursor:
            print(dumps(found))


def changes(
    table: TableArgument,
    since: Annotated[datetime, time_option("The earlier moment, as in row --at.")],
    until: Annotated[datetime | None, time_option("The later one. Default: now.")] = None,
    org: OrgOption = None,
    as_actor: AsOption = None,
    utc: UtcOption = False,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show which rows of a table differ between two moments, and how.

    A row that is as it was is not listed, however often it changed in between. --json has both
    states of each row in full.

        pgaudit-wf changes public.invoice --since yesterday
        pgaudit-wf changes public.invoice --since 2026-03-01 --until 2026-03-02 --json
    """
    from pgaudit_wf.trail.states import changes_between

    end = until or datetime.now(UTC)
    if end < since:
        raise Failure("--until is before --since", code=USAGE)
    with connect(database) as conn, reading(conn, org, as_actor):
        found = changes_between(conn, table, since, end)
    if as_json:
        print_json(found)
        return
    zone = UTC if utc else None
    print_table(
        ["Row", "Change", "Events", "Last", "By", "What"],
        [
            [
                change.resource_id or "",
                change.change,
                str(change.events),
                moment(change.last_at, zone),
                ", ".join(change.actor_ids),
                _difference(change),
            ]
            for change in found
        ],
    )


def _difference(change: RowChange) -> str:
    if change.unknown is not None and (change.before is None or change.after is None):
        return change.unknown
    before, after = change.before or {}, change.after or {}
    if change.change == "updated":
        shown = [
            f"{name} {short(before.get(name))} → {short(after.get(name))}"
            for name in {**before, **after}
            if before.get(name) != after.get(name)
        ]
    else:
        shown = [f"{name} {short(value)}" for name, value in (after or before).items()]
    more = f" and {len(shown) - _MOST_COLUMNS} more" if len(shown) > _MOST_COLUMNS else ""
    doubt = f" ({change.unknown})" if change.unknown else ""
    return ", ".join(shown[:_MOST_COLUMNS]) + more + doubt
