"""`workflows`, `history`, `diff`, `show` and so on: versions of workflows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from pgaudit_wf.cli.base import FAILED, USAGE, Connection, Failure, add, connect, dict_rows
from pgaudit_wf.cli.options import (
    ActorIdOption,
    ActorLabelOption,
    AsOption,
    DatabaseOption,
    JsonOption,
    LimitOption,
    OrgIdOption,
    OrgOption,
    ReasonOption,
    UtcOption,
    reading,
)
from pgaudit_wf.cli.printing.output import console, moment, print_json, print_table, printable
from pgaudit_wf.cli.printing.versions import (
    counted,
    heading,
    print_diff,
    print_problems,
    print_snapshot,
    print_versions,
    put,
    saved_by,
)

if TYPE_CHECKING:
    from pgaudit_wf.workflow.model import Version

_PAGE = 500

WorkflowArgument = Annotated[
    str, typer.Argument(metavar="WORKFLOW", help="The workflow's id; it may be deleted.")
]
WorkflowTableOption = Annotated[
    str | None,
    typer.Option(
        "--table",
        metavar="TABLE",
        show_default=False,
        help="The workflow's table, if there are several; default: derived from the id.",
    ),
]
VersionOption = Annotated[
    int | None,
    typer.Option("--version", min=1, metavar="N", show_default=False, help="Default: the newest."),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (workflows, history, diff, show, validate, restore, usage, execution):
        add(app, command)


def _as_json(version: Version) -> dict[str, object]:
    return {**asdict(version), "change": version.change.as_json()}


def _no_version(workflow: str) -> Failure:
    return Failure(
        f"workflow {workflow} has no version that this login may see",
        "check the id; workflows older than their table's attachment get a version by"
        " pgaudit-wf backfill, and readers need --org and --as",
    )


def find_version(conn: Connection, workflow: str, number: int | None) -> Version:
    """Return a version, by default the newest.

    Raises:
        Failure: There is none that the login may see.
    """
    from pgaudit_wf.workflow.reads import workflow_versions

    before = None if number is None else number + 1
    found = workflow_versions(conn, workflow, before_version=before, page_size=1).versions
    if not found:
        raise _no_version(workflow)
    if number not in (None, found[0].version):
        raise Failure(
            f"workflow {workflow} has no version {number}; its newest is {found[0].version}",
            f"see pgaudit-wf history {workflow}",
        )
    return found[0]


def history(
    workflow: WorkflowArgument,
    node: Annotated[
        str | None,
        typer.Option(
            metavar="ID", show_default=False, help="Only versions that changed this node."
        ),
    ] = None,
    connection: Annotated[
        str | None,
        typer.Option(
            metavar="SRC:DST",
            show_default=False,
            help="Only versions that added or removed a connection between these two nodes (ids).",
        ),
    ] = None,
    before: Annotated[
        int | None,
        typer.Option(metavar="N", show_default=False, help="Only versions older than this one."),
    ] = None,
    limit: LimitOption = 50,
    org: OrgOption = None,
    as_actor: AsOption = None,
    utc: UtcOption = False,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a workflow's versions, newest first: who saved each, with what, and what changed.

    pgaudit-wf history 7d0c…
    pgaudit-wf history 7d0c… --node fetch --limit 10
    pgaudit-wf history 7d0c… --connection fetch:notify
    pgaudit-wf history 7d0c… --json | jq '.[] | [.version, .actor_name, .summary]'
    """
    from pgaudit_wf.workflow.reads import workflow_versions

    ends = _connection(connection)
    found: list[Version] = []
    after = before
    with connect(database) as conn:
        while len(found) < limit:
            with reading(conn, org, as_actor):
                page = workflow_versions(
                    conn,
                    workflow,
                    node_id=node,
                    connection=ends,
                    before_version=after,
                    page_size=min(limit - len(found), _PAGE),
                )
            found += page.versions
            after = page.next_before
            if after is None:
                break
    if as_json:
        print_json([_as_json(version) for version in found])
    if not found and node is None and ends is None and before is None:
        raise _no_version(workflow)
    if as_json:
        return
    if not found:
        console().print("No version matches.")
        return
    print_versions(found, UTC if utc else None)
    if after:
        console(stderr=True).print(Text(f"There may be more: --before {after}", style="dim"))


def _connection(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    # A colon inside an id is written as '::'.
    ends = [part.replace("\0", ":") for part in text.replace("::", "\0").split(":")]
    if len(ends) != 2 or not all(ends):
        raise Failure(
            f"--connection {text} does not name two nodes",
            "write SOURCE:TARGET, with :: for a colon inside an id",
            USAGE,
        )
    return ends[0], ends[1]


def workflows(
    limit: LimitOption = 50,
    org: OrgOption = None,
    as_actor: AsOption = None,
    utc: UtcOption = False,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the workflows that have versions, the last changed first, with their ids.

    pgaudit-wf workflows --org o_acme
    """
    with connect(database) as conn, reading(conn, org, as_actor):
        found = dict_rows(
            conn,
            "select * from pgaudit_wf.workflow_list as w"
            " where %(org)s::text is null or w.org_id = %(org)s"
            " order by w.changed_at desc, w.workflow_id limit %(limit)s",
            {"org": org, "limit": limit},
        )
    if as_json:
        print_json(found)
        return
    print_table(
        ["Workflow", "Name", "Org", "Version", "Published", "Changed"],
        [
            [
                row["workflow_id"],
                row["name"] or "",
                row["org_id"] or "",
                str(row["version"]),
                str(row["published_version"] or ""),
                moment(row["changed_at"], UTC if utc else None),
            ]
            for row in found
        ],
    )


def diff(
    workflow: WorkflowArgument,
    before: Annotated[int, typer.Argument(metavar="BEFORE", help="The version compared with.")],
    after: Annotated[
        int | None,
        typer.Argument(metavar="[AFTER]", show_default=False, help="Default: the newest."),
    ] = None,
    org: OrgOption = None,
    as_actor: AsOption = None,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show what changed between two versions: + added, - removed, ~ changed, every value in full.

    pgaudit-wf diff 7d0c… 3 7
    pgaudit-wf diff 7d0c… 7 3           # what a restore of 3 would change
    pgaudit-wf diff 7d0c… 3 7 --json | jq '.nodes_changed[].deltas'
    """
    from pgaudit_wf.workflow.reads import compare_versions

    with connect(database) as conn, reading(conn, org, as_actor):
        if after is None:
            after = find_version(conn, workflow, None).version
        found = compare_versions(conn, workflow, before, after)
    if as_json:
        print_json(found.as_json())
        return
    heading(f"Workflow {printable(workflow)}, version {before} → {after}")
    print_diff(found)


def show(
    workflow: WorkflowArgument,
    version: VersionOption = None,
    org: OrgOption = None,
    as_actor: AsOption = None,
    utc: UtcOption = False,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a version in full, even of a deleted workflow.

    pgaudit-wf show 7d0c… --version 3
    pgaudit-wf show 7d0c… --json | jq '.snapshot.nodes'
    """
    from pgaudit_wf.workflow.reads import compare_versions, version_snapshot

    with connect(database) as conn, reading(conn, org, as_actor):
        found = find_version(conn, workflow, version)
        snapshot = version_snapshot(conn, workflow, found.version)
        contents = compare_versions(conn, workflow, None, found.version)
    if as_json:
        print_json({**_as_json(found), "snapshot": snapshot})
        return
    title = Text(printable(snapshot.name or f"Workflow {workflow}"), style="bold")
    title.append(f"  version {found.version}", style="bold")
    title.append("  current" if found.is_current else "", style="bold green")
    title.append("  published" if found.is_published else "", style="bold green")
    put(title)
    saved = Text(f"{found.source}  {moment(found.created_at, UTC if utc else None)}  ", "dim")
    put(saved.append_text(saved_by(found)), 2)
    put(found.content_hash, 2, "dim")
    print_snapshot(snapshot, contents)


def validate(
    workflow: WorkflowArgument,
    version: VersionOption = None,
    org: OrgOption = None,
    as_actor: AsOption = None,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Say what keeps a version from being enabled, listed or run; exit code 1 if anything does.

    pgaudit-wf validate 7d0c…
    pgaudit-wf validate 7d0c… --version 3 --json
    """
    from pgaudit_wf.workflow.reads import validate_version

    with connect(database) as conn, reading(conn, org, as_actor):
        found = find_version(conn, workflow, version)
        problems = validate_version(conn, workflow, found.version)
    if as_json:
        print_json(problems)
    elif problems:
        heading(f"Version {found.version} has {counted(len(problems), 'problem')}")
        print_problems(problems)
    else:
        put(f"Version {found.version} has no problem: it may be enabled, listed and run.")
    if problems:
        raise typer.Exit(FAILED)


@contextmanager
def acting(
    database: str,
    actor_id: str | None,
    actor_label: str | None,
    org_id: str | None,
    reason: str | None,
) -> Iterator[Connection]:
    """Connect, and act in a transaction as the options of a command say."""
    from pgaudit_wf import request_context

    with (
        connect(database) as conn,
        request_context(
            conn, actor_id=actor_id, actor_label=actor_label, org_id=org_id, reason=reason or None
        ),
    ):
        yield conn


def restore(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="The workflow's id.")],
    version: Annotated[
        int, typer.Option("--version", min=1, metavar="N", help="The version to restore.")
    ],
    table: WorkflowTableOption = None,
    actor_id: ActorIdOption = None,
    actor_label: ActorLabelOption = None,
    org_id: OrgIdOption = None,
    reason: ReasonOption = None,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Restore a version: nodes, connections, name and description; everything else stays.

    An ordinary update with this login's rights: it makes a new version and an event, and can be
    undone by another restore. Restoring what is there changes nothing.

        pgaudit-wf diff 7d0c… 7 3
        pgaudit-wf restore 7d0c… --version 3 --actor-id u_ana --reason 'broken since Monday'
    """
    from pgaudit_wf.workflow.reads import restore_workflow

    with acting(database, actor_id, actor_label, org_id, reason) as conn:
        restored = restore_workflow(conn, workflow, version, table)
    if as_json:
        print_json(restored)
    elif restored.changed:
        put(f"Version {version} is back, as version {restored.version}.")
    else:
        put(f"Nothing to do: version {version} is what is there, as version {restored.version}.")


def usage(
    content_hash: Annotated[
        str, typer.Argument(metavar="HASH", help="A definition's hash: 64 hex digits.")
    ],
    org: OrgOption = None,
    as_actor: AsOption = None,
    utc: UtcOption = False,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show which versions had a definition, which runs executed it, and who was responsible.

    pgaudit-wf usage "$(pgaudit-wf history 7d0c… --json | jq -r '.[0].content_hash')"
    """
    from pgaudit_wf.workflow.reads import definition_usage

    wanted = content_hash.strip().lower()
    if not re.fullmatch("[0-9a-f]{64}", wanted):
        raise Failure(
            f"{content_hash} is not the hash of a definition",
            "give all 64 hex digits, as pgaudit-wf history prints them",
            USAGE,
        )
    with connect(database) as conn, reading(conn, org, as_actor):
        found = definition_usage(conn, wanted)
    if as_json:
        print_json(found)
    if not found:
        raise Failure("no version and no run that this login may see had this definition")
    if as_json:
        return
    zone = UTC if utc else None
    print_table(
        ["When", "What", "Workflow", "Org", "Who", "With"],
        [
            [
                moment(use.occurred_at, zone),
                f"version {use.version}" if use.kind == "version" else f"run {use.execution_id}",
                use.workflow_id,
                use.org_id or "",
                use.actor_name or use.actor_id or "",
                " ".join(part for part in (use.credential_type, use.credential_label) if part),
            ]
            for use in found
        ],
    )
    versions = [use for use in found if use.kind == "version"]
    people = {use.actor_id: use.actor_name or use.actor_id for use in versions if use.actor_id}
    put(
        f"{counted(len(versions), 'version')} of"
        f" {counted(len({use.workflow_id for use in versions}), 'workflow')},"
        f" {counted(len(found) - len(versions), 'run')}; saved by "
        + (", ".join(printable(name or "") for name in people.values()) or "unknown actors")
        + "."
    )


def execution(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="The table of runs: public.workflow_execution.")
    ],
    run: Annotated[str, typer.Argument(metavar="ID", help="The run's id.")],
    org: OrgOption = None,
    as_actor: AsOption = None,
    utc: UtcOption = False,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show which credential started a run and which definition it executed.

    This works even after the key, the person and the workflow are deleted. --json includes the
    definition in full.

        pgaudit-wf execution public.workflow_execution 1b4e…
        pgaudit-wf execution public.workflow_execution 1b4e… --json | jq '.snapshot.nodes'
    """
    from pgaudit_wf.workflow.reads import execution_attribution

    with connect(database) as conn, reading(conn, org, as_actor):
        found = execution_attribution(conn, table, run)
    if as_json:
        print_json(found)
    if found is None:
        raise Failure(f"{table} has no run {run} that this login may see")
    if as_json:
        return
    credential = " ".join(part for part in (found.credential_type, found.credential_label) if part)
    name = found.snapshot.name if found.snapshot else None
    number = f"version {found.version}" if found.version else "no version that this login may see"
    heading(f"Run {printable(found.execution_id)}")
    for what, value in (
        ("when", moment(found.occurred_at, UTC if utc else None)),
        ("org", found.org_id),
        ("started with", credential or "unknown: the run is older than the stamp"),
        ("workflow", " ".join(part for part in (name, found.workflow_id) if part)),
        ("definition", f"{found.executed_workflow_hash or 'none'}, {number}"),
    ):
        if value:
            line = Text(f"{what:<13}", style="dim")
            put(line.append(printable(value), style="not dim"), 2)
    if found.version:
        hint = f"pgaudit-wf show {found.workflow_id} --version {found.version}"
        put(printable(hint), 2, "dim")
