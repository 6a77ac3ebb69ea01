"""Versions of workflows, typed: read, compare and restore them, and ask what a run executed.

Each function takes a `psycopg.Connection` and returns its result, or a `psycopg.AsyncConnection`
and returns an awaitable. The database does the work, with the connection's rights: as a
member of role `pgaudit_wf_reader`, read inside a block that says who asks, and restore inside one
that says who acts:

    with request_context(conn, actor_id="u_1", org_id="o_1") as conn:
        page = workflow_versions(conn, workflow_id)
        restore_workflow(conn, workflow_id, page.versions[1].version)

An id of a workflow is the text of its key, with `<resource_type>/` before it for all but the first
attached workflow table, as in `pgaudit_wf.workflow_history`.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from pgaudit_wf.exact_json import dumps
from pgaudit_wf.trail.statement import Json, Read, Statement, columns
from pgaudit_wf.workflow.model import (
    BackfillBatch,
    Problem,
    RefusedWorkflow,
    RestoredVersion,
    RunAttribution,
    Snapshot,
    Usage,
    Version,
    VersionDiff,
    VersionPage,
    WorkflowTable,
)
from pgaudit_wf.workflow.portable import as_file

__all__ = [
    "backfill_batch",
    "compare_versions",
    "copy_workflow",
    "definition_usage",
    "execution_attribution",
    "export_version",
    "label_version",
    "publish_version",
    "restore_workflow",
    "undelete_workflow",
    "validate_definition",
    "validate_version",
    "version_snapshot",
    "workflow_tables",
    "workflow_versions",
]


@Statement
def workflow_versions(
    workflow_id: str,
    *,
    node_id: str | None = None,
    connection: tuple[str, str] | None = None,
    before_version: int | None = None,
    page_size: int = 50,
) -> Read[VersionPage]:
    """Read a page of a workflow's versions, newest first; empty if it has none to show.

    A reader (role `pgaudit_wf_reader`) whose actor is neither an owner nor an admin of the
    workflow's organization sees no versions.

    Args:
        conn: The connection.
        workflow_id: The workflow; it may be deleted.
        node_id: Only versions that added, removed or changed this node.
        connection: Only versions that added or removed a connection between these two nodes,
            given as (source id, target id).
        before_version: `next_before` of the page before; None for the first page.
        page_size: Versions on a page, from 1 to 1000.

    Raises:
        ArgumentError: `page_size` is out of range.
        psycopg.Error: Any other database error.
    """
    source_id, target_id = connection or (None, None)

    def shape(rows: Sequence[DictRow]) -> VersionPage:
        versions = tuple(
            Version(**{**row, "change": VersionDiff.from_json(row["change"])}) for row in rows
        )
        full = len(versions) == page_size
        return VersionPage(versions, versions[-1].version if full else None)

    return Read(
        sql.SQL(
            "select {} from pgaudit_wf.workflow_versions(%(workflow_id)s, node_id => %(node_id)s,"
            " source_id => %(source_id)s, target_id => %(target_id)s,"
            " before_version => %(before_version)s, page_size => %(page_size)s) as v"
            " order by v.version desc"
        ).format(columns(Version, "v")),
        {
            "workflow_id": workflow_id,
            "node_id": node_id,
            "source_id": source_id,
            "target_id": target_id,
            "before_version": before_version,
            "page_size": page_size,
        },
        shape,
    )


@Statement
def version_snapshot(workflow_id: str, version: int | None = None) -> Read[Snapshot]:
    """Read a version in full, also of a workflow that is deleted.

    Without a number it is what a run executes: the published version, or else the newest.

    Args:
        conn: The connection; also an application's own (role `pgaudit_wf_app`), for workflows of
            the organization it acts for.
        workflow_id: The workflow.
        version: The number of the version; None: the one that runs are made with.

    Raises:
        VersionNotFoundError: It does not exist, or the connection may not see it.
        psycopg.Error: Any other database error.
    """
    return Read(
        sql.SQL(
            "select pgaudit_wf.version_snapshot(%(workflow_id)s, %(version)s::integer) as snapshot"
        ),
        {"workflow_id": workflow_id, "version": version},
        lambda rows: Snapshot.from_json(rows[0]["snapshot"]),
    )


@Statement
def export_version(workflow_id: str, version: int) -> Read[dict[str, Json]]:
    """Read a version as the file that its product exports and imports: React Flow, n8n, Flowise.

    Args:
        conn: As for `version_snapshot`.
        workflow_id: The workflow; it may be deleted.
        version: The number of the version.

    Raises:
        VersionNotFoundError: It does not exist, or the connection may not see it.
        VersionPrunedError: Its snapshot was pruned.
        DefinitionError: What the product had stored is not what it exports.
        psycopg.Error: Any other database error.
    """
    return Read(
        sql.SQL(
            "select pgaudit_wf.version_snapshot(%(workflow_id)s, %(version)s::integer) as snapshot"
        ),
        {"workflow_id": workflow_id, "version": version},
        lambda rows: as_file(rows[0]["snapshot"]),
    )


@Statement
def compare_versions(workflow_id: str, before: int | None, after: int) -> Read[VersionDiff]:
    """Compare any two versions of a workflow, in either direction.

    Args:
        conn: The connection.
        workflow_id: The workflow; it may be deleted.
        before: The version compared with; None for nothing, so that all of `after` reads as added.
        after: The version that is described.

    Raises:
        VersionNotFoundError: One of them does not exist, or the connection may not see it.
        psycopg.Error: Any other database error.
    """
    compare = (
        sql.SQL(
            "pgaudit_wf.version_diff(null,"
            " pgaudit_wf.version_snapshot(%(workflow_id)s, %(after)s::integer))"
        )
        if before is None
        else sql.SQL(
            "pgaudit_wf.compare_versions(%(workflow_id)s, %(before)s::integer, %(after)s::integer)"
        )
    )
    return Read(
        sql.SQL("select {} as diff").format(compare),
        {"workflow_id": workflow_id, "before": before, "after": after},
        lambda rows: VersionDiff.from_json(rows[0]["diff"]),
    )


@Statement
def definition_usage(content_hash: str) -> Read[tuple[Usage, ...]]:
    """Read which versions ever had a definition and which runs executed it, oldest first.

    Args:
        conn: The connection. It sees versions as `workflow_versions` does, and runs if it may read
            their table.
        content_hash: The definition's hash, 64 lower-case hex digits.

    Raises:
        psycopg.Error: The database could not answer.
    """
    return Read(
        sql.SQL(
            "select {} from pgaudit_wf.definition_usage(%(content_hash)s) as u"
            " order by u.occurred_at, u.kind desc, u.workflow_id, u.version, u.execution_id"
        ).format(columns(Usage, "u")),
        {"content_hash": content_hash},
        lambda rows: tuple(Usage(**row) for row in rows),
    )


@Statement
def execution_attribution(table: str, execution_id: str) -> Read[RunAttribution | None]:
    """Read the credential and definition of a run; None if there is no such run.

    Args:
        conn: The connection; it needs the right to read the table.
        table: The table of runs, as in SQL.
        execution_id: The run's primary key, as text.

    Raises:
        NotAttachedError: `attach_execution()` does not know the table.
        psycopg.Error: Any other database error, for instance that the id has another type.
    """

    def shape(rows: Sequence[DictRow]) -> RunAttribution | None:
        if not rows:
            return None
        kept = rows[0]["snapshot"]
        return RunAttribution(
            **{**rows[0], "snapshot": None if kept is None else Snapshot.from_json(kept)}
        )

    return Read(
        sql.SQL(
            "select {} from pgaudit_wf.execution_attribution("
            "%(table)s::regclass, %(execution_id)s) as r"
        ).format(columns(RunAttribution, "r")),
        {"table": table, "execution_id": execution_id},
        shape,
    )


def _problems(rows: Sequence[DictRow]) -> tuple[Problem, ...]:
    return tuple(Problem(**row) for row in rows)


@Statement
def validate_definition(nodes: Json, edges: Json) -> Read[tuple[Problem, ...]]:
    """Return the problems that keep a definition from being enabled, listed or run.

    Args:
        conn: The connection.
        nodes: The nodes as the editor has them.
        edges: The edges as the editor has them.

    Raises:
        psycopg.Error: The database could not answer.
    """
    return Read(
        sql.SQL("select {} from pgaudit_wf.validate_definition(%(nodes)s, %(edges)s) as p").format(
            columns(Problem, "p")
        ),
        {"nodes": Jsonb(nodes, dumps), "edges": Jsonb(edges, dumps)},
        _problems,
    )


@Statement
def validate_version(workflow_id: str, version: int) -> Read[tuple[Problem, ...]]:
    """Say what keeps a version from being enabled, listed or run, by the rules of today.

    Args:
        conn: The connection.
        workflow_id: The workflow; it may be deleted.
        version: The number of the version.

    Raises:
        VersionNotFoundError: It does not exist, or the connection may not see it.
        psycopg.Error: Any other database error.
    """
    return Read(
        sql.SQL(
            "select {} from pgaudit_wf.version_snapshot("
            "%(workflow_id)s, %(version)s::integer) as s,"
            " pgaudit_wf.validate_definition(s -> 'nodes', s -> 'edges') as p"
        ).format(columns(Problem, "p")),
        {"workflow_id": workflow_id, "version": version},
        _problems,
    )


@Statement
def restore_workflow(
    workflow_id: str, version: int, table: str | None = None
) -> Read[RestoredVersion]:
    """Put a version back by an ordinary update: nodes, edges, name and description.

    Visibility, the switch and the listing stay as they are. It makes a new version of source
    "restore" and an event `<resource_type>.restored`, or nothing if that is what is there.

    Args:
        conn: The connection; the update is made with its rights, and attributed to the context of
            its transaction.
        workflow_id: The workflow.
        version: The version to restore.
        table: The workflow's table, as in SQL; None: derived from the id.

    Raises:
        VersionNotFoundError: There is no such version or the workflow is gone, or the connection
            may not see it.
        NotAttachedError: No workflow table is attached, or not this one.
        psycopg.Error: Anything else the database says; what refuses an update refuses this one.
    """
    return Read(
        sql.SQL(
            "select pgaudit_wf._newest_version(%(workflow_id)s) as before,"
            " pgaudit_wf.restore_workflow("
            "%(workflow_id)s, %(version)s::integer, %(table)s::regclass) as version"
        ),
        {"workflow_id": workflow_id, "version": version, "table": table},
        lambda rows: RestoredVersion(rows[0]["version"], rows[0]["version"] != rows[0]["before"]),
    )


@Statement
def undelete_workflow(workflow_id: str, table: str | None = None) -> Read[RestoredVersion]:
    """Put a deleted workflow back: its row as the deletion recorded it, with its last graph.

    It keeps its key. It makes a version of source "restore" and an event
    `<resource_type>.undeleted`. Columns that the trail does not show get their defaults.

    Args:
        conn: The connection; the insert is made with its rights, and attributed to the context of
            its transaction.
        workflow_id: The workflow.
        table: The workflow's table, as in SQL; None: derived from the id.

    Raises:
        VersionNotFoundError: Nothing that the connection may see says that it was deleted.
        VersionPrunedError: The snapshot of its last version was pruned.
        RestoreError: It is there, or lacks a value that it must have.
        NotAttachedError: No workflow table is attached, or not this one.
        psycopg.Error: Anything else the database says; what refuses an insert refuses this one.
    """
    return Read(
        sql.SQL(
            "select pgaudit_wf.undelete_workflow(%(workflow_id)s, %(table)s::regclass) as version"
        ),
        {"workflow_id": workflow_id, "table": table},
        lambda rows: RestoredVersion(rows[0]["version"], changed=True),
    )


@Statement
def copy_workflow(
    workflow_id: str,
    version: int,
    name: str | None = None,
    id: str | None = None,  # noqa: A002 - as in SQL
    table: str | None = None,
) -> Read[str]:
    """Make another workflow of a version, switched off and not listed, and return its id.

    Args:
        conn: The connection; the insert is made with its rights, and attributed to the context of
            its transaction.
        workflow_id: The workflow; it may be deleted.
        version: The version whose graph, name and description it gets.
        name: Its name; None: that of the version.
        id: Its key as text, several columns as a JSON array; None: by the default of its column.
        table: The workflow's table, as in SQL; None: derived from the id.

    Raises:
        VersionNotFoundError: There is no such workflow or version, or the connection may not see
            it.
        VersionPrunedError: The snapshot of the version was pruned.
        RestoreError: The copy lacks a value that it must have.
        ArgumentError: It needs an `id`, or has no name.
        NotAttachedError: No workflow table is attached, or not this one.
        psycopg.Error: Anything else the database says; what refuses an insert refuses this one.
    """
    return Read(
        sql.SQL(
            "select pgaudit_wf.copy_workflow(%(workflow_id)s, %(version)s::integer, %(name)s,"
            " %(id)s, %(table)s::regclass) as id"
        ),
        {"workflow_id": workflow_id, "version": version, "name": name, "id": id, "table": table},
        lambda rows: str(rows[0]["id"]),
    )


@Statement
def label_version(
    workflow_id: str, version: int, label: str, note: str | None = None
) -> Read[None]:
    """Give a version a name and a note, instead of an earlier one; such a version is never pruned.

    Args:
        conn: The connection (role `pgaudit_wf_app`), in a context with the organization.
        workflow_id: The workflow; it may be deleted.
        version: The number of the version.
        label: The name, of 1 to 200 characters.
        note: What there is to say about it, of at most 4,000 characters.

    Raises:
        VersionNotFoundError: It does not exist in the organization of the context.
        VersionPrunedError: Its snapshot was pruned.
        ArgumentError: The label is empty, or a text too long.
        psycopg.Error: Any other database error.
    """
    return Read(
        sql.SQL(
            "select pgaudit_wf.label_version("
            "%(workflow_id)s, %(version)s::integer, %(label)s, %(note)s)"
        ),
        {"workflow_id": workflow_id, "version": version, "label": label, "note": note},
        lambda _: None,
    )


@Statement
def publish_version(workflow_id: str, version: int | None) -> Read[None]:
    """Make a version the one that runs are made with, whatever is saved later.

    Args:
        conn: The connection (role `pgaudit_wf_app`), in a context with the organization.
        workflow_id: The workflow.
        version: The number of the version; None: the newest one, from now on.

    Raises:
        VersionNotFoundError: It does not exist in the organization of the context.
        VersionPrunedError: Its snapshot was pruned.
        InvalidWorkflowError: Its definition has problems.
        psycopg.Error: Any other database error.
    """
    return Read(
        sql.SQL("select pgaudit_wf.publish_version(%(workflow_id)s, %(version)s::integer)"),
        {"workflow_id": workflow_id, "version": version},
        lambda _: None,
    )


@Statement
def workflow_tables() -> Read[tuple[WorkflowTable, ...]]:
    """Read which tables of workflows are attached, by name.

    Raises:
        psycopg.Error: The database could not answer.
    """
    return Read(
        sql.SQL(
            'select target::text as "table", shape, nodes_column, edges_column, id_prefix,'
            " workflows as rows from pgaudit_wf.workflow_table order by 1"
        ),
        {},
        lambda rows: tuple(WorkflowTable(**row) for row in rows),
    )


@Statement
def backfill_batch(
    table: str, after_id: str | None = None, batch_size: int = 100
) -> Read[BackfillBatch]:
    """Write version 1 and a creation event for workflows that were there before their table was.

    One batch, in the order of the ids. Call it with the `last_id` it returned until it examined
    nothing, each call in a transaction of its own (as on an autocommit connection): its workflows
    are locked until that ends. Workflows that have a version already are left alone, so it can be
    stopped at any time and begun again, and the application may go on writing.

    Args:
        conn: The connection, as the table's owner.
        table: The table of workflows, as in SQL.
        after_id: The last id that is done; None to begin.
        batch_size: How many workflows to look at.

    Raises:
        NotAttachedError: `attach_workflow()` does not know the table.
        ArgumentError: `batch_size` is below 1.
        psycopg.Error: Any other database error.
    """

    def shape(rows: Sequence[DictRow]) -> BackfillBatch:
        refused = tuple(RefusedWorkflow(**workflow) for workflow in rows[0]["refused"])
        return BackfillBatch(**{**rows[0], "refused": refused})

    return Read(
        sql.SQL(
            "select {} from pgaudit_wf.backfill_workflows("
            "%(table)s::regclass, %(after_id)s, %(batch_size)s::integer) as b"
        ).format(columns(BackfillBatch, "b")),
        {"table": table, "after_id": after_id, "batch_size": batch_size},
        shape,
    )
