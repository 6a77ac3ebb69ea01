"""`limits`: how many rows of a kind organizations may have."""

from __future__ import annotations

from typing import Annotated

import typer

from pgaudit_wf.cli.base import Commands, Connection, Failure, add, connect, dict_rows, help_text
from pgaudit_wf.cli.options import DatabaseOption, JsonOption
from pgaudit_wf.cli.printing.output import console, print_json, print_table, printable

TypeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RESOURCE_TYPE", help="Resource type of attached tables, such as api_key."
    ),
]
OrgOption = Annotated[
    str | None,
    typer.Option(
        "--org",
        metavar="ID",
        show_default=False,
        help="The organization; default: all that have no limit of their own.",
    ),
]
_NUMBER_OR_NONE = "a number or 'none'"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(cls=Commands, help=help_text(limits), no_args_is_help=True)
    group.command("list", help=help_text(show))(show)
    group.command("set", help=help_text(put))(put)
    for command in (remove, condition, recount):
        add(group, command)
    app.add_typer(group, name="limits")


def limits() -> None:
    """Limit how many rows of a kind each organization may have.

    pgaudit-wf limits set api_key 20
    pgaudit-wf limits set api_key 100 --org o_7
    pgaudit-wf limits condition api_key 'revoked_at is null'
    pgaudit-wf limits list
    """


def show(
    org: Annotated[
        str | None,
        typer.Option("--org", metavar="ID", show_default=False, help="One organization only."),
    ] = None,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the limits, and how much of them each organization has used.

    pgaudit-wf limits list --org o_7
    """
    with connect(database) as conn:
        found = dict_rows(
            conn,
            "select org_id, resource_type, used, max_count, is_default, condition"
            " from pgaudit_wf.limit_list"
            " where %(org)s::text is null or org_id is null or org_id = %(org)s"
            " order by resource_type, org_id nulls first",
            {"org": org},
        )
    if as_json:
        print_json(found)
        return
    if not found:
        console().print("There are no limits: pgaudit-wf limits set RESOURCE_TYPE MAX_COUNT")
        return
    print_table(
        ["Resource type", "Organization", "Used", "Limit", "Counted where"],
        [
            [
                row["resource_type"],
                "all others" if row["org_id"] is None else row["org_id"],
                "" if row["used"] is None else f"{row['used']:,}",
                "none" if row["max_count"] is None
                else f"{row['max_count']:,}"
                + (" (default)" if row["is_default"] and row["org_id"] else ""),
                row["condition"] or "",
            ]
            for row in found
        ],
    )  # fmt: skip


def put(
    resource_type: TypeArgument,
    max_count: Annotated[
        str,
        typer.Argument(
            metavar="MAX_COUNT", help="The maximum; 'none' for any number, only with --org."
        ),
    ],
    org: OrgOption = None,
    database: DatabaseOption = "",
) -> None:
    """Set the limit of an organization, or of all that have none of their own.

    The first limit of a resource type counts the rows of its tables, which are locked against
    writing meanwhile. A limit below the current number only refuses new rows.

        pgaudit-wf limits set api_key 20
        pgaudit-wf limits set api_key none --org o_7
    """
    if max_count != "none" and not (max_count.isascii() and max_count.isdigit()):
        raise typer.BadParameter(f"{max_count!r} must be {_NUMBER_OR_NONE}")
    most = None if max_count == "none" else int(max_count)
    if most is None and org is None:
        raise typer.BadParameter(
            "'none' exempts one organization from the limit for all: name it (--org), or remove"
            " the limit: pgaudit-wf limits remove"
        )
    with connect(database) as conn:
        conn.execute("select pgaudit_wf.set_org_limit(%s, %s, %s)", [org, resource_type, most])
        _warn_if_unused(conn, resource_type)
    whose = "Every other organization" if org is None else f"Organization {printable(org)}"
    kind = printable(resource_type)
    what = f"any number of {kind}" if most is None else f"at most {most:,} of {kind}"
    console().print(f"{whose} may have {what}.", soft_wrap=True)


def _warn_if_unused(conn: Connection, resource_type: str) -> None:
    from pgaudit_wf.trail.statement import one

    (is_used,) = one(
        conn,
        "select exists (select from pgaudit_wf.attached where resource_type = %s)",
        [resource_type],
    )
    if not is_used:
        typer.echo(
            f"warning: no attached table is of type {printable(resource_type)} yet;"
            " pgaudit-wf status lists them",
            err=True,
        )


def remove(
    resource_type: TypeArgument, org: OrgOption = None, database: DatabaseOption = ""
) -> None:
    """Remove a limit. Without any limit, the tables of the type are no longer counted.

    pgaudit-wf limits remove api_key --org o_7
    """
    from pgaudit_wf.trail.statement import one

    with connect(database) as conn:
        (removed,) = one(conn, "select pgaudit_wf._remove_org_limit(%s, %s)", [org, resource_type])
    if not removed:
        raise Failure("there is no such limit", "pgaudit-wf limits list shows the existing ones")
    console().print("The limit is removed.")


def condition(
    resource_type: TypeArgument,
    expression: Annotated[
        str,
        typer.Argument(
            metavar="CONDITION",
            help="Boolean SQL expression over a row; '' for every row.",
        ),
    ],
    database: DatabaseOption = "",
) -> None:
    """Set which rows of a type count towards the limit. A row that no longer does frees its share.

    pgaudit-wf limits condition api_key 'revoked_at is null'
    """
    with connect(database) as conn:
        conn.execute(
            "select pgaudit_wf._set_limit_condition(%s, %s)", [resource_type, expression.strip()]
        )
    rows = f"Rows where {printable(expression.strip())}" if expression.strip() else "All rows"
    console().print(
        f"{rows} of {printable(resource_type)} count towards the limit.", soft_wrap=True
    )


def recount(resource_type: TypeArgument, database: DatabaseOption = "") -> None:
    """Recount the rows of a type, while its tables are locked against writing.

    Use it after triggers were disabled, or rows were restored without them.

        pgaudit-wf limits recount api_key
    """
    with connect(database) as conn:
        conn.execute("select pgaudit_wf.recount_usage(%s)", [resource_type])
    console().print(f"Recounted {printable(resource_type)}.", soft_wrap=True)
