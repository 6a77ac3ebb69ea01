"""The results of the reads of workflows: versions, differences, problems, runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from pgaudit_wf.trail.statement import Json

__all__ = [
    "BackfillBatch",
    "ConfigurationChange",
    "Connected",
    "FieldChange",
    "NodeChange",
    "NodeRef",
    "Problem",
    "RefusedWorkflow",
    "RestoredVersion",
    "RunAttribution",
    "Snapshot",
    "Usage",
    "Version",
    "VersionDiff",
    "VersionPage",
    "WorkflowTable",
]

Source: TypeAlias = Literal["create", "update", "listing", "restore", "backfill"]


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A changed value as text for people, in full; "empty" stands for none."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class ConfigurationChange:
    """A changed key of a node's configuration; as `FieldChange`."""

    key: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class NodeRef:
    """A node by its id, its label for people, and its type; `id` is None if it has none."""

    id: str | None
    label: str
    node_type: str


@dataclass(frozen=True, slots=True)
class NodeChange(NodeRef):
    """A node that was changed: `fields` are name, description, type and enabled."""

    action_type: str | None
    fields: tuple[FieldChange, ...]
    configuration: tuple[ConfigurationChange, ...]

    def as_json(self) -> dict[str, Json]:
        """Return the node as `pgaudit_wf.version_diff()` writes it."""
        deltas: list[dict[str, Json]] = [asdict(change) for change in self.fields]
        if self.configuration:
            changes = [asdict(change) for change in self.configuration]
            deltas.append({"field": "configuration", "changes": changes})
        return {
            "id": self.id,
            "label": self.label,
            "node_type": self.node_type,
            "action_type": self.action_type,
            "deltas": deltas,
        }


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection by its nodes' labels and ids, and its handles if it has any."""

    source: str
    target: str
    source_id: str | None
    target_id: str | None
    source_handle: str | None
    target_handle: str | None

    def as_json(self) -> dict[str, Json]:
        """Return the connection as `pgaudit_wf.version_diff()` writes it."""
        handles = {"source_handle": self.source_handle, "target_handle": self.target_handle}
        return {
            "from": self.source,
            "to": self.target,
            **{name: handle for name, handle in handles.items() if handle is not None},
            "from_id": self.source_id,
            "to_id": self.target_id,
        }


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """The changes between two versions.

    `has_changes` is also True if only the order or an unlisted detail differs.
    """

    settings: tuple[FieldChange, ...]
    nodes_added: tuple[NodeRef, ...]
    nodes_removed: tuple[NodeRef, ...]
    nodes_changed: tuple[NodeChange, ...]
    connections_added: tuple[Connected, ...]
    connections_removed: tuple[Connected, ...]
    has_changes: bool

    @classmethod
    def from_json(cls, diff: Mapping[str, Json]) -> VersionDiff:
        """Read what `pgaudit_wf.version_diff()` returns."""
        return cls(
            settings=tuple(FieldChange(**change) for change in diff["settings"]),
            nodes_added=tuple(NodeRef(**node) for node in diff["nodes_added"]),
            nodes_removed=tuple(NodeRef(**node) for node in diff["nodes_removed"]),
            nodes_changed=tuple(map(node_change, diff["nodes_changed"])),
            connections_added=tuple(map(connected, diff["connections_added"])),
            connections_removed=tuple(map(connected, diff["connections_removed"])),
            has_changes=diff["has_changes"],
        )

    def as_json(self) -> dict[str, Json]:
        """Return the diff as `pgaudit_wf.version_diff()` writes it, for programs."""
        return {
            "settings": [asdict(change) for change in self.settings],
            "nodes_added": [asdict(node) for node in self.nodes_added],
            "nodes_removed": [asdict(node) for node in self.nodes_removed],
            "nodes_changed": [node.as_json() for node in self.nodes_changed],
            "connections_added": [link.as_json() for link in self.connections_added],
            "connections_removed": [link.as_json() for link in self.connections_removed],
            "has_changes": self.has_changes,
        }


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a workflow as people read it.

    `actor_name` is the current name, or the one stored with the version. `summary` describes the
    changes since the version before in one line, `change` in full. `api_key_id` is the API key
    used, if any; `restored_from` the restored version, for a restore; `label` and `note` are its
    name, by `label_version`; `is_published` says that runs are made with it.
    """

    workflow_id: str
    version: int
    created_at: datetime
    actor_id: str | None
    actor_name: str | None
    auth_method: str | None
    api_key_id: str | None
    source: Source
    restored_from: int | None
    summary: str
    content_hash: str
    change: VersionDiff
    org_id: str | None
    correlation_id: str | None
    is_current: bool
    label: str | None
    note: str | None
    is_published: bool


@dataclass(frozen=True, slots=True)
class VersionPage:
    """Versions, newest first, and where the next page begins.

    `next_before` is None after the last version; a page that ends with it may still have one.
    """

    versions: tuple[Version, ...]
    next_before: int | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version in full. Fields without a column in the workflow's table are None."""

    name: str | None
    description: str | None
    visibility: str | None
    enabled: bool | None
    nodes: list[Json]
    edges: list[Json]

    @classmethod
    def from_json(cls, snapshot: Mapping[str, Json]) -> Snapshot:
        """Read what `pgaudit_wf.version_snapshot()` returns."""
        return cls(
            name=snapshot.get("name"),
            description=snapshot.get("description"),
            visibility=snapshot.get("visibility"),
            enabled=snapshot.get("enabled"),
            nodes=snapshot.get("nodes") or [],
            edges=snapshot.get("edges") or [],
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """A version that had a definition, or a run of it.

    A version has `version` and who saved it; `credential_type` is then how the author authenticated
    and `credential_label` the id of the API key. A run has `execution_id` and its stamp.
    """

    kind: Literal["version", "run"]
    workflow_id: str
    version: int | None
    execution_id: str | None
    occurred_at: datetime | None
    org_id: str | None
    actor_id: str | None
    actor_name: str | None
    credential_type: str | None
    credential_label: str | None


@dataclass(frozen=True, slots=True)
class RunAttribution:
    """The credential and the definition behind a run.

    `credential_type` is "webhook_key", "org_api_key", "oauth", "session" or "internal";
    `credential_label` is a handle that is not a secret. `version` and `snapshot` are None if the
    history has no version with that hash.
    """

    execution_id: str
    workflow_id: str
    credential_type: str | None
    credential_label: str | None
    executed_workflow_hash: str | None
    occurred_at: datetime | None
    org_id: str | None
    version: int | None
    snapshot: Snapshot | None


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem that keeps a definition from being enabled, listed or run."""

    node_id: str | None
    field: str | None
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class RestoredVersion:
    """The version that is current after a restore; `changed` is False if nothing had to change."""

    version: int
    changed: bool


@dataclass(frozen=True, slots=True)
class WorkflowTable:
    """An attached table of workflows, written as in SQL, and about how many rows it has.

    `shape` says how its graphs are stored, in these columns, if any.

    `rows` is the planner's estimate; None if there is none yet.
    """

    table: str
    shape: str
    nodes_column: str | None
    edges_column: str | None
    id_prefix: str
    rows: int | None


@dataclass(frozen=True, slots=True)
class RefusedWorkflow:
    """A workflow that could not be given a version, and why."""

    workflow_id: str
    message: str


@dataclass(frozen=True, slots=True)
class BackfillBatch:
    """The result of a batch. The next one begins at `last_id`; the last one `examined` nothing."""

    examined: int
    written: int
    refused: tuple[RefusedWorkflow, ...]
    last_id: str | None


def connected(connection: Mapping[str, Json]) -> Connected:
    return Connected(
        source=connection["from"],
        target=connection["to"],
        source_id=connection["from_id"],
        target_id=connection["to_id"],
        source_handle=connection.get("source_handle"),
        target_handle=connection.get("target_handle"),
    )


def node_change(node: Mapping[str, Json]) -> NodeChange:
    deltas = node["deltas"]
    return NodeChange(
        id=node["id"],
        label=node["label"],
        node_type=node["node_type"],
        action_type=node["action_type"],
        fields=tuple(FieldChange(**delta) for delta in deltas if "changes" not in delta),
        configuration=tuple(
            ConfigurationChange(**change) for delta in deltas for change in delta.get("changes", ())
        ),
    )
