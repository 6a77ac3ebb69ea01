"""`attach-workflow`, `attach-execution` and `backfill`: versions for tables that hold graphs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, TaskID
from rich.text import Text

from pgaudit_wf.cli.attaching import call_attach
from pgaudit_wf.cli.base import (
    FAILED,
    INTERRUPTED,
    Connection,
    Failure,
    add,
    connect,
    without_empty,
)
from pgaudit_wf.cli.commands.attach import (
    IdColumnOption,
    IgnoreOption,
    LabelColumnOption,
    MaxValueOption,
    OnFailureOption,
    OrgColumnOption,
    RedactOption,
    ResourceTypeOption,
    ShallowOption,
    TableArgument,
)
from pgaudit_wf.cli.options import DatabaseOption, JsonOption
from pgaudit_wf.cli.printing.attachments import print_attachments
from pgaudit_wf.cli.printing.output import console, print_json, print_table, printable, progress_bar
from pgaudit_wf.exact_json import dumps

if TYPE_CHECKING:
    from pgaudit_wf.workflow.model import BackfillBatch, RefusedWorkflow

# The application may lock its rows in a different order than we do.
_ATTEMPTS = 5


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (attach_workflow, attach_execution, backfill):
        add(app, command)


def _column(text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(show_default=False, help=text)
    return option


def attach_workflow(
    table: TableArgument,
    shape: Annotated[
        str | None,
        _column(
            "How the graph is stored: reactflow, n8n, flowise, or a schema with functions nodes,"
            " edges and back; default: reactflow."
        ),
    ] = None,
    nodes_column: Annotated[
        str | None, _column("Column with the nodes, a JSON array: nodes.")
    ] = None,
    edges_column: Annotated[
        str | None, _column("Column with the edges, a JSON array: edges.")
    ] = None,
    name_column: Annotated[str | None, _column("Column with its name: name, if there.")] = None,
    description_column: Annotated[
        str | None, _column("Column with its description: description, if there.")
    ] = None,
    visibility_column: Annotated[
        str | None, _column("Column that says who may see it: visibility, if there.")
    ] = None,
    enabled_column: Annotated[
        str | None, _column("Boolean column that switches it on: enabled, if there.")
    ] = None,
    listed_column: Annotated[
        str | None, _column("Boolean column that offers it on a marketplace: listed, if there.")
    ] = None,
    listing_column: Annotated[
        list[str] | None, _column("Column of its marketplace listing, repeatable.")
    ] = None,
    resource_type: ResourceTypeOption = None,
    id_column: IdColumnOption = None,
    org_column: OrgColumnOption = None,
    label_column: LabelColumnOption = None,
    ignore: IgnoreOption = None,
    redact: RedactOption = None,
    shallow: ShallowOption = None,
    max_value: MaxValueOption = None,
    on_failure: OnFailureOption = None,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Record a table that holds workflows, and keep a version of each meaningful save.

    Like attach, for a table with a graph in two JSON columns. Options that are not given take the
    default named below or, on an attached workflow table, keep their value; '' clears them.

        pgaudit-wf attach-workflow public.workflow
        pgaudit-wf attach-workflow app.flow --nodes-column graph --edges-column links
        pgaudit-wf attach-workflow workflow_entity --shape n8n --enabled-column active
        pgaudit-wf backfill public.workflow    # a first version for existing workflows
    """
    from pgaudit_wf.trail.reads import attached
    from pgaudit_wf.workflow.reads import workflow_tables

    settings = {
        "shape": shape,
        "nodes_column": nodes_column,
        "edges_column": edges_column,
        "name_column": name_column,
        "description_column": description_column,
        "visibility_column": visibility_column,
        "enabled_column": enabled_column,
        "listed_column": listed_column,
        "listing_columns": without_empty(listing_column),
        "resource_type": resource_type,
        "id_columns": without_empty(id_column),
        "org_column": org_column,
        "label_column": label_column,
        "ignore": without_empty(ignore),
        "redact": without_empty(redact),
        "shallow": without_empty(shallow),
        "max_value": max_value,
        "on_failure": on_failure,
    }
    with connect(database) as conn:
        name = call_attach(conn, "attach_workflow", table, settings)
        setting = next(a for a in attached(conn) if a.table == name)
        workflow = next(w for w in workflow_tables(conn) if w.table == name)
    if as_json:
        print_json({"attachment": setting, "workflow": workflow})
        return
    out = console()
    graph = [column for column in (workflow.nodes_column, workflow.edges_column) if column]
    out.print(
        f"Recording every change of {printable(name)}, and keeping versions of"
        f" {' and '.join(map(printable, graph)) or 'its graphs'}:"
    )
    print_attachments([setting], None)
    out.print(f"Next: pgaudit-wf backfill {printable(name)}")


def attach_execution(
    table: TableArgument,
    workflow: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE",
            show_default=False,
            help="The table of workflows; default: the first attached.",
        ),
    ] = None,
    workflow_column: Annotated[
        str | None, _column("Column with the workflow's id: workflow_id.")
    ] = None,
    hash_column: Annotated[
        str | None, _column("Column to stamp with the definition's hash: executed_workflow_hash.")
    ] = None,
    type_column: Annotated[
        str | None,
        _column("Column to stamp with the credential's type: triggered_by_credential_type."),
    ] = None,
    label_column: Annotated[
        str | None,
        _column("Column to stamp with the credential's handle: triggered_by_credential_label."),
    ] = None,
    org_column: Annotated[
        str | None, _column("Column with the organization: org_id, if there.")
    ] = None,
    time_column: Annotated[
        str | None, _column("Column with the start: started_at or created_at, if there.")
    ] = None,
    add_columns: Annotated[
        bool, typer.Option("--add-columns", help="Add the columns to stamp that are not there.")
    ] = False,
    database: DatabaseOption = "",
) -> None:
    """Stamp every run inserted into a table with its credential and definition, permanently.

    The stamp needs three columns of text, and overrides whatever the application writes into them.
    Options that are not given take the default named below.

        pgaudit-wf attach-execution public.workflow_execution
        pgaudit-wf attach-execution public.workflow_execution --add-columns
        pgaudit-wf attach-execution app.job --workflow app.flow --workflow-column flow_id
    """
    settings = {
        "workflow": workflow,
        "workflow_column": workflow_column,
        "hash_column": hash_column,
        "type_column": type_column,
        "label_column": label_column,
        "org_column": org_column,
        "time_column": time_column,
        "add_columns": add_columns,
    }
    with connect(database) as conn:
        name = call_attach(conn, "attach_execution", table, settings)
    console().print(f"Every run in {printable(name)} is stamped from now on.")


@dataclass
class _Work:
    """The progress on one table, in committed batches."""

    table: str
    examined: int = 0
    written: int = 0
    refused: list[RefusedWorkflow] = field(default_factory=list)
    finished: bool = False

    def add(self, batch: BackfillBatch) -> None:
        self.examined += batch.examined
        self.written += batch.written
        self.refused += batch.refused


def backfill(
    table: Annotated[
        str | None,
        typer.Argument(
            metavar="[TABLE]", show_default=False, help="Default: every attached workflow table."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=10_000, help="Workflows in one transaction.")
    ] = 100,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Create a first version of workflows that existed before their table was attached.

    Each gets version 1 (source backfill) with its current state, and a creation event marked as
    backfilled. Workflows that have a version are skipped, so it can be repeated, and interrupted at
    any time: committed batches stay, the current one is rolled back. The application may keep
    writing; it waits for one batch at most. Exit code 1 if some workflows are too malformed.

        pgaudit-wf backfill
        pgaudit-wf backfill public.workflow --batch-size 20
    """
    from pgaudit_wf.workflow.reads import workflow_tables

    done: list[_Work] = []
    interrupted = False
    with connect(database) as conn, _stoppable():
        try:
            tables = [table] if table else [w.table for w in workflow_tables(conn)]
            if not tables:
                raise Failure(
                    "no table of workflows is attached", "run pgaudit-wf attach-workflow TABLE"
                )
            with progress_bar(as_json) as progress:
                for name in tables:
                    done.append(_Work(name))
                    task = progress.add_task(printable(name), total=_count(conn, name))
                    _backfill(conn, done[-1], batch_size, progress, task)
        except KeyboardInterrupt:
            interrupted = True
    if as_json:
        print(dumps({"tables": done, "interrupted": interrupted}))
    else:
        _summarize(done, interrupted)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if any(work.refused for work in done):
        raise typer.Exit(FAILED)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Treat SIGTERM, which a supervisor sends, as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _count(conn: Connection, table: str) -> int:
    from psycopg import sql

    from pgaudit_wf.trail.statement import one

    row = conn.execute(
        "select nspname, relname from pg_class join pg_namespace as n on n.oid = relnamespace"
        " where pg_class.oid = %s::regclass",
        [table],
    ).fetchone()
    if row is None:
        return 0
    return int(one(conn, sql.SQL("select count(*) from {}").format(sql.Identifier(*row)))[0])


def _backfill(
    conn: Connection, work: _Work, batch_size: int, progress: Progress, task: TaskID
) -> None:
    after: str | None = None
    while True:
        batch = _batch(conn, work.table, after, batch_size)
        if batch.examined == 0:
            work.finished = True
            return
        work.add(batch)
        after = batch.last_id
        progress.advance(task, batch.examined)


def _batch(conn: Connection, table: str, after: str | None, batch_size: int) -> BackfillBatch:
    import psycopg

    from pgaudit_wf.workflow.reads import backfill_batch

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            # The connection commits each statement by itself.
            return backfill_batch(conn, table, after, batch_size)
        except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("the last attempt returned or raised")


def _summarize(done: list[_Work], interrupted: bool) -> None:
    out = console()
    if done:
        print_table(
            ["Table", "Examined", "First versions written", "Already had one", "Refused"],
            [
                [
                    work.table,
                    f"{work.examined:,}",
                    f"{work.written:,}",
                    f"{work.examined - work.written - len(work.refused):,}",
                    Text(f"{len(work.refused):,}", style="bold red" if work.refused else ""),
                ]
                for work in done
            ],
        )
    for work in done:
        for workflow in work.refused:
            line = f"refused {workflow.workflow_id}: {workflow.message}"
            out.print(Text(printable(line), style="red"), soft_wrap=True)
    if interrupted:
        out.print("Interrupted; the versions counted here are kept. Run it again for the rest.")
