"""`hub`: the logs of many databases in one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from pgaudit_wf.cli.base import (
    FAILED,
    USAGE,
    Failure,
    add,
    check_conninfo,
    connect,
    help_text,
    opener,
)
from pgaudit_wf.cli.options import (
    DatabaseOption,
    HealthHostOption,
    HealthPortOption,
    JsonOption,
    watch_option,
)
from pgaudit_wf.cli.printing.output import console, print_json, print_table

if TYPE_CHECKING:
    from pgaudit_wf.hub import NodeStatus

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the node.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(name="hub", rich_markup_mode="rich")
    group.callback(help=help_text(hub))(hub)
    for command in (add_, remove, status):
        add(group, command)
    app.add_typer(group)


def hub() -> None:
    """Bring the logs of many databases (nodes) into one: the hub, which -d names.

    The trail, alerts, streams and exports of all nodes are on the hub then. PostgreSQL's logical
    replication carries them. The manual: docs/how-to/hub.md
    """


def add_(
    name: NameArgument,
    node: Annotated[
        str,
        typer.Argument(
            metavar="DSN",
            envvar="PGAUDIT_WF_NODE",
            help="The node's database, as the hub's server and this command reach it.",
        ),
    ],
    without_versions: Annotated[
        bool, typer.Option("--without-versions", help="Do not bring versions of workflows.")
    ] = False,
    database: DatabaseOption = "",
) -> None:
    """Let a node's log come to the hub: what it has already, then each new event.

    Needs wal_level = logical on the node, the same release on both, and a superuser on the hub.
    Keep a password off the command line: put the DSN into PGAUDIT_WF_NODE. The hub keeps it where
    only superusers read it, and no log has it.

        pgaudit-wf hub add eu postgresql://replicator@eu.example.com/shop -d postgresql:///hub
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,39}", name):
        raise Failure(
            "that is no name for a node", "a-z, 0-9, _ and -, beginning with a letter", USAGE
        )
    from pgaudit_wf.hub import add_node

    with connect(database) as conn:
        number = add_node(conn, name, check_conninfo(node), versions=not without_versions)
    typer.echo(f"Added {name}, node {number}. See pgaudit-wf hub status.")


def remove(name: NameArgument, database: DatabaseOption = "") -> None:
    """Let no more of a node's log come; what came stays on the hub. Works when the node is gone.

    pgaudit-wf hub remove eu
    """
    from pgaudit_wf.hub import remove_node

    with connect(database) as conn:
        left = remove_node(conn, name)
    typer.echo(f"Removed {name}.")
    if left:
        console(stderr=True).print(
            f"The node did not answer. If it comes back, it keeps WAL until you run there: {left}",
            soft_wrap=True,
        )


def status(
    watch: Annotated[float | None, watch_option(1)] = None,
    health_port: HealthPortOption = None,
    health_host: HealthHostOption = "127.0.0.1",
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show how far behind each node is, what WAL it keeps, and what stopped, with the remedy.

    Exit code 1: a node's log does not come. With --watch: as metrics, until SIGTERM or Ctrl-C.

        pgaudit-wf hub status
        pgaudit-wf hub status --watch 30 --health-port 9189
    """
    from pgaudit_wf.hub import HubWatch, node_status

    if watch is not None:
        from pgaudit_wf.jobs.service import Service, json_logs

        service = Service("hub")
        job = HubWatch(service, opener(database, "pgaudit-wf hub"))
        with json_logs():
            service.run(job.job, interval=watch, health_port=health_port, health_host=health_host)
        return
    with connect(database) as conn:
        found = node_status(conn)
    if as_json:
        print_json(found)
    elif not found:
        console().print("No nodes yet.")
    else:
        _print(found)
    if any(node.problem for node in found):
        raise typer.Exit(FAILED)


def _size(count: int | None) -> str:
    return "" if count is None else f"{count / 1024 / 1024:,.1f} MiB"


def _print(found: list[NodeStatus]) -> None:
    print_table(
        ["Node", "Name", "State", "Behind", "WAL held", "At most"],
        [
            [
                str(node.number),
                node.name,
                node.state,
                _size(node.lag_bytes),
                _size(node.held_bytes),
                "" if node.held_bytes is None else _size(node.limit_bytes) or "no bound",
            ]
            for node in found
        ],
    )
    for node in found:
        if node.problem:
            console().print(f"{node.name}: {node.problem} — {node.remedy}", soft_wrap=True)


# A name that would shadow a function of this module.
add_.__name__ = "add"
