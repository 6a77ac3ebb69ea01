"""`workflow`: what becomes of a version: a file, another workflow, a deleted one put back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgaudit_wf.cli.base import USAGE, Commands, Failure, add, connect, help_text
from pgaudit_wf.cli.commands.versions import (
    VersionOption,
    WorkflowArgument,
    WorkflowTableOption,
    acting,
    find_version,
)
from pgaudit_wf.cli.options import (
    ActorIdOption,
    ActorLabelOption,
    AsOption,
    DatabaseOption,
    JsonOption,
    OrgIdOption,
    OrgOption,
    ReasonOption,
    reading,
)
from pgaudit_wf.cli.printing.output import print_json, printable
from pgaudit_wf.cli.printing.versions import put
from pgaudit_wf.exact_json import dumps

ExactVersionOption = Annotated[int, typer.Option("--version", min=1, metavar="N", help="Which.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(cls=Commands, help=help_text(workflow), no_args_is_help=True)
    for command in (publish, export, copy, undelete):
        add(group, command)
    app.add_typer(group, name="workflow")


def workflow() -> None:
    """Publish, export or copy a version, or put a deleted workflow back.

    pgaudit-wf workflow publish 7d0c… --version 3 --reason tested
    pgaudit-wf workflow export 7d0c… --version 3 -o intake.json
    pgaudit-wf workflow copy 7d0c… --version 3 --name 'Intake 2'
    pgaudit-wf workflow undelete 7d0c… --reason 'deleted by mistake'
    """


def publish(
    workflow: WorkflowArgument,
    version: Annotated[
        int | None, typer.Option("--version", min=1, metavar="N", show_default=False, help="Which.")
    ] = None,
    none: Annotated[
        bool, typer.Option("--none", help="No version any more: runs are made with the newest.")
    ] = False,
    actor_id: ActorIdOption = None,
    actor_label: ActorLabelOption = None,
    org_id: OrgIdOption = None,
    reason: ReasonOption = None,
    database: DatabaseOption = "",
) -> None:
    """Say which version runs are made with, whatever is saved later.

    Runs are stamped with it, the trail says who published it, and it is never pruned.

        pgaudit-wf workflow publish 7d0c… --version 3 --actor-id u_ana --org-id o_acme
        pgaudit-wf workflow publish 7d0c… --none
    """
    from pgaudit_wf.workflow.reads import publish_version

    if none == (version is not None):
        raise Failure("nothing says which version", "give --version N or --none", USAGE)
    with acting(database, actor_id, actor_label, org_id, reason) as conn:
        publish_version(conn, workflow, version)
    if version is None:
        put("Runs are made with the newest version from now on.")
    else:
        put(f"Runs are made with version {version} from now on.")


def export(
    workflow: WorkflowArgument,
    version: VersionOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", show_default=False, help="Default: standard output."
        ),
    ] = None,
    org: OrgOption = None,
    as_actor: AsOption = None,
    database: DatabaseOption = "",
) -> None:
    """Write a version as the product's own JSON file, even of a deleted workflow.

    React Flow: name, nodes and edges. n8n: what its editor downloads and imports, switched off.
    Flowise: what its canvas exports and loads, without credentials, passwords and files.

        pgaudit-wf workflow export 7d0c… --version 3 -o intake.json
    """
    from pgaudit_wf.errors import DefinitionError
    from pgaudit_wf.workflow.reads import export_version

    with connect(database) as conn, reading(conn, org, as_actor):
        found = find_version(conn, workflow, version)
        try:
            content = export_version(conn, workflow, found.version)
        except DefinitionError as error:
            raise Failure(str(error)) from error
    text = dumps(content) + "\n"
    if output is None:
        print(text, end="")
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(f"cannot write {output}: {error.strerror}") from error
    put(f"Version {found.version} is in {printable(str(output))}.")


def copy(
    workflow: WorkflowArgument,
    version: ExactVersionOption,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="Default: that of the version."),
    ] = None,
    new_id: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="ID",
            show_default=False,
            help="Its key, several columns as a JSON array; default: by the column's default.",
        ),
    ] = None,
    table: WorkflowTableOption = None,
    actor_id: ActorIdOption = None,
    actor_label: ActorLabelOption = None,
    org_id: OrgIdOption = None,
    reason: ReasonOption = None,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a new workflow of a version, switched off; everything else is as in the old one's row.

    An ordinary insert with this login's rights. Without --reason the trail says of which version.

        pgaudit-wf workflow copy 7d0c… --version 3 --name 'Intake 2' --actor-id u_ana
    """
    from pgaudit_wf.workflow.reads import copy_workflow

    why = reason or f"copy of version {version} of workflow {workflow}"
    with acting(database, actor_id, actor_label, org_id, why) as conn:
        made = copy_workflow(conn, workflow, version, name, new_id, table)
    if as_json:
        print_json({"workflow_id": made})
    else:
        put(f"Version {version} is workflow {printable(made)} now, too.")


def undelete(
    workflow: WorkflowArgument,
    table: WorkflowTableOption = None,
    actor_id: ActorIdOption = None,
    actor_label: ActorLabelOption = None,
    org_id: OrgIdOption = None,
    reason: ReasonOption = None,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Put a deleted workflow back as it was, under its key, with the graph of its last version.

    An ordinary insert with this login's rights: it makes a new version and an event. Columns that
    the trail does not show (redacted, ignored) get their defaults.

        pgaudit-wf workflow undelete 7d0c… --actor-id u_ana --reason 'deleted by mistake'
    """
    from pgaudit_wf.workflow.reads import undelete_workflow

    with acting(database, actor_id, actor_label, org_id, reason) as conn:
        restored = undelete_workflow(conn, workflow, table)
    if as_json:
        print_json(restored)
    else:
        put(f"Workflow {printable(workflow)} is back, as version {restored.version}.")
