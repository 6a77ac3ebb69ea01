"""The API's parameters and results, with examples; named like the typed reads."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_type_hints

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    create_model,
)

from pgaudit_wf.choices import Outcome
from pgaudit_wf.trail.event import TrailEntry

_CURSOR = "MTc3MjQ0Mjg0NzEyMDAwMCA0NzEx"
# Characters that a text in PostgreSQL cannot contain.
NO_NUL = r"^[^\x00]*$"
Identifier: TypeAlias = Annotated[str, Field(min_length=1, max_length=1000, pattern=NO_NUL)]
Several: TypeAlias = Annotated[list[Identifier], Field(max_length=50)]
VersionNumber: TypeAlias = Annotated[int, Field(ge=1, le=2_147_483_647)]
Cursor: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_/.-]+$", examples=[_CURSOR])
]

_MOMENT = "2026-03-02T09:14:07.120000Z"


def _no_number(value: object) -> object:
    # Pydantic would accept numbers as seconds since 1970; the schema requires a date and time.
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?[\d.]+\s*", value):
        raise ValueError("must be a date and a time with a time zone")
    return value


_BYTE, _GROUP = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])", "[0-9A-Fa-f]{1,4}"
_IPV4 = rf"({_BYTE}\.){{3}}{_BYTE}"
_IPV6 = "|".join(
    [
        f"({_GROUP}:){{7}}{_GROUP}",
        f"({_GROUP}:){{1,7}}:",
        f":(:{_GROUP}){{1,7}}|::",
        *(f"({_GROUP}:){{1,{7 - n}}}(:{_GROUP}){{1,{n}}}" for n in range(1, 7)),
        f"::[Ff]{{4}}:{_IPV4}",
    ]
)
_NETWORK = rf"^({_IPV4}(/(3[0-2]|[12]?[0-9]))?|({_IPV6})(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?)$"


Moment: TypeAlias = Annotated[AwareDatetime, BeforeValidator(_no_number)]


class Filters(BaseModel):
    """The filters of the trail."""

    model_config = ConfigDict(extra="forbid")

    org_id: Identifier | None = Field(
        None, description="Your organization; any other results in 404."
    )
    action: Several | None = Field(
        None,
        description="One of these; * matches any characters.",
        examples=[["api_key.*"]],
    )
    not_action: Several | None = Field(None, description="None of these actions.")
    resource_type: Several | None = Field(None, examples=[["workflow"]])
    not_resource_type: Several | None = None
    resource_id: Identifier | None = None
    actor_id: Several | None = None
    not_actor_id: Several | None = None
    api_key_id: Identifier | None = Field(None, description="What this API key did.")
    network: Annotated[str, Field(pattern=_NETWORK)] | None = Field(
        None, description="An address or a network.", examples=["203.0.113.0/24"]
    )
    changed: Identifier | None = Field(None, description="Updates of this column.")
    value: Identifier | None = Field(
        None, description="What a column (if given, that of changed) had before or after."
    )
    correlation_id: Identifier | None = Field(None, description="All events of one request.")
    outcome: Outcome | None = None
    since: Moment | None = Field(None, description="Inclusive.", examples=[_MOMENT])
    until: Moment | None = Field(None, description="Exclusive.")
    search: Annotated[str, Field(min_length=1, max_length=200, pattern=NO_NUL)] | None = Field(
        None, description="Text in names, labels, action, address, user agent and ids."
    )


class TrailQuery(Filters):
    """Filters, and the page."""

    after: Cursor | None = Field(None, description="next_cursor of the page before.")
    page_size: int = Field(50, ge=1, le=1000)


class FollowQuery(Filters):
    """Filters, and where to start."""

    after: Cursor | None = Field(
        None, description="cursor of the previous response; default: the newest entries."
    )
    max_events: int = Field(200, ge=1, le=1000)


class ExportQuery(Filters):
    """Filters, and the format."""

    format: Literal["csv", "ndjson", "ocsf"] = "csv"


class HistoryQuery(BaseModel):
    """The filters of versions."""

    model_config = ConfigDict(extra="forbid")

    node_id: Identifier | None = Field(None, description="Only versions that changed this node.")
    before_version: VersionNumber | None = Field(
        None, description="next_before of the page before."
    )
    page_size: int = Field(50, ge=1, le=200)


class RunsQuery(BaseModel):
    """The filters of runs."""

    model_config = ConfigDict(extra="forbid")

    workflow_id: Identifier | None = Field(None, description="Only runs of this workflow.")
    after: Annotated[str, Field(min_length=1, max_length=1100)] | None = Field(
        None, description="next_cursor of the page before."
    )
    page_size: int = Field(25, ge=1, le=200)


class _Answer(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class _Event(_Answer):
    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "id": 4711, "occurred_at": _MOMENT, "org_id": "o_acme", "org_label": "Acme",
                    "actor_id": "u_ana", "actor_name": "Ana Ferreira",
                    "actor_email": "ana@acme.example", "actor_role": "owner",
                    "actor_type": "user", "on_behalf_of": None, "on_behalf_of_name": None,
                    "client": "console 4.2",
                    "auth_method": "session", "api_key_id": None,
                    "action": "org_api_key.revoked", "resource_type": "api_key",
                    "resource_id": "k_ci", "resource_name": "kh_9f2a…", "outcome": "succeeded",
                    "captured": True, "attested": True,
                    "diff": [{"op": "replace", "path": "/revoked_at", "old": None,
                              "value": "2026-03-02T09:14:07.1191+00:00"}],
                    "metadata": {"label": "kh_9f2a…", "reason": "the vendor changed"},
                    "ip": "203.0.113.9", "country": "PT", "user_agent": "Firefox/145.0",
                    "correlation_id": "req_031", "db_user": "workflow_app",
                    "application_name": "workflow-product", "cursor": _CURSOR,
                }
            ]
        },
    )  # fmt: skip


if TYPE_CHECKING:
    Event: TypeAlias = TrailEntry
else:
    # With the columns of the typed read, so that none is missing from a response.
    Event = create_model(
        "Event",
        __base__=_Event,
        __doc__='An event of the trail; `diff` is a JSON Patch whose operations also carry "old".',
        **{name: (kind, ...) for name, kind in get_type_hints(TrailEntry).items()},
    )


class EventPage(_Answer):
    """Events, newest first; `next_cursor` is null after the last one."""

    entries: list[Event]
    next_cursor: str | None


class EventBatch(_Answer):
    """Events, oldest first, and the cursor to go on from."""

    entries: list[Event]
    cursor: str


class Diff(_Answer):
    """The changes between two versions, for people."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "settings": [{"field": "name", "before": "Intake", "after": "Invoices"}],
                    "nodes_added": [{"id": "n3", "label": "Ledger", "node_type": "action"}],
                    "nodes_removed": [],
                    "nodes_changed": [
                        {
                            "id": "n2", "label": "Fetch", "node_type": "action",
                            "action_type": "HTTP Request",
                            "deltas": [{"field": "configuration", "changes": [
                                {"key": "httpMethod", "before": "GET", "after": "POST"}]}],
                        }
                    ],
                    "connections_added": [
                        {"from": "Fetch", "to": "Ledger", "from_id": "n2", "to_id": "n3"}
                    ],
                    "connections_removed": [],
                    "has_changes": True,
                }
            ]
        }
    )  # fmt: skip

    settings: list[dict[str, Any]]
    nodes_added: list[dict[str, Any]]
    nodes_removed: list[dict[str, Any]]
    nodes_changed: list[dict[str, Any]]
    connections_added: list[dict[str, Any]]
    connections_removed: list[dict[str, Any]]
    has_changes: bool


class HistoryVersion(_Answer):
    """A version of a workflow; `change` is what it changed since the version before."""

    workflow_id: str
    version: int
    created_at: datetime
    actor_id: str | None
    actor_name: str | None
    auth_method: str | None
    api_key_id: str | None
    source: Literal["create", "update", "listing", "restore", "backfill"]
    restored_from: int | None
    summary: str = Field(examples=["renamed node Fetch to Read"])
    content_hash: str = Field(examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15"])
    change: Diff
    org_id: str | None
    correlation_id: str | None
    is_current: bool
    label: str | None = Field(examples=["as delivered"])
    note: str | None
    is_published: bool = Field(description="Whether runs are made with it.")


class History(_Answer):
    """Versions, newest first; `next_before` is null after the last one."""

    versions: list[HistoryVersion]
    next_before: int | None


class Workflow(_Answer):
    """A workflow as in its table's row, in one of its versions."""

    id: str = Field(examples=["6b1f0e52-5a3c-4f5b-9f0e-2f7d5a3c4f5b"])
    org_id: str | None = Field(examples=["o_acme"])
    name: str | None = Field(examples=["Invoice intake"])
    description: str | None
    visibility: str | None = Field(examples=["private"])
    enabled: bool | None
    nodes: list[Any] = Field(examples=[[{"id": "n1", "type": "trigger", "data": {}}]])
    edges: list[Any] = Field(examples=[[{"id": "e1", "source": "n1", "target": "n2"}]])
    version: int
    content_hash: str
    is_current: bool
    is_published: bool = Field(description="Whether runs are made with it.")


def _only_number(value: object) -> object:
    # Must be a JSON number; 3.0 is the same as 3 there.
    if isinstance(value, bool | str):
        raise ValueError("a version must be a number")
    return value


class RestoreRequest(BaseModel):
    """The version to restore."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": 3}]})

    version: Annotated[VersionNumber, BeforeValidator(_only_number)]


class Restored(_Answer):
    """The version that is current now; `changed` is false if nothing had to change."""

    version: int = Field(examples=[8])
    changed: bool


Reason: TypeAlias = Annotated[str, Field(min_length=1, max_length=1000, pattern=NO_NUL)]


class UndeleteRequest(BaseModel):
    """Why the workflow is put back, for the trail."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"reason": "deleted by mistake"}]}
    )

    reason: Reason | None = None


class CopyRequest(BaseModel):
    """The version to copy; the name and the key of the new workflow, and why, for the trail."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"version": 3, "name": "Intake 2"}]}
    )

    version: Annotated[VersionNumber, BeforeValidator(_only_number)]
    name: Annotated[str, Field(max_length=1000, pattern=NO_NUL)] | None = None
    id: Annotated[str, Field(min_length=1, max_length=1000, pattern=NO_NUL)] | None = None
    reason: Reason | None = None


class PublishRequest(BaseModel):
    """The version that runs are made with, null for the newest; and why, for the trail."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"version": 3, "reason": "tested"}]}
    )

    version: Annotated[VersionNumber, BeforeValidator(_only_number)] | None
    reason: Reason | None = None


class Published(_Answer):
    """The version that runs are made with; null for the newest."""

    version: int | None = Field(examples=[3])


class Copied(_Answer):
    """The new workflow."""

    workflow_id: str = Field(examples=["6b1f0e52-5a3c-4f5b-9f0e-2f7d5a3c4f5b"])


class ApiKey(_Answer):
    """An API key as recorded in the log, including revoked and deleted ones."""

    api_key_id: str = Field(examples=["k_ci"])
    org_id: str | None
    label: str | None = Field(examples=["kh_9f2a…"])
    status: Literal["active", "revoked", "deleted"]
    created_at: datetime | None
    created_by: str | None
    created_by_name: str | None
    revoked_at: datetime | None
    revoked_by: str | None
    revoked_by_name: str | None
    deleted_at: datetime | None
    events: int
    last_event_at: datetime


class ApiKeys(_Answer):
    """API keys, the last to change first."""

    keys: list[ApiKey]


class KeyUse(_Answer):
    """How often a key was used from a network; null: the log has no address."""

    network: str | None = Field(examples=["203.0.113.0/24"])
    uses: int
    first_at: datetime
    last_at: datetime


class KeyRan(_Answer):
    """A definition that was run with a key; `version` is null if the history does not have it."""

    workflow_id: str
    name: str | None
    version: int | None
    runs: int
    last_at: datetime | None


class ApiKeyDetails(_Answer):
    """One API key, as the log, the directory of keys and the stamps of runs know it."""

    api_key_id: str = Field(examples=["k_ci"])
    label: str | None = Field(examples=["kh_9f2a…"])
    status: Literal["active", "expired", "revoked", "deleted"]
    owner_id: str | None
    owner_name: str | None
    created_at: datetime | None
    created_by: str | None
    created_by_name: str | None
    expires_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None
    revoked_by_name: str | None
    deleted_at: datetime | None
    leaked_at: datetime | None = Field(description="When it was last reported as found in public.")
    first_used_at: datetime | None
    last_used_at: datetime | None
    uses: int = Field(description="Events, as counted by `pgaudit-wf keys watch`.")
    networks: list[KeyUse]
    ran: list[KeyRan] = Field(description="Of its last 500 runs.")
    is_known: bool = Field(description="Whether the directory of keys has it.")


class Attribution(_Answer):
    """The credential and the definition behind a run."""

    execution_id: str
    workflow_id: str
    credential_type: str | None = Field(examples=["org_api_key"])
    credential_label: str | None = Field(examples=["kh_9f2a…"])
    executed_workflow_hash: str | None
    occurred_at: datetime | None
    org_id: str | None
    version: int | None = Field(description="Null if the history has no version with that hash.")
    snapshot: dict[str, Any] | None


class Health(_Answer):
    """Whether the database answers."""

    status: Literal["ok"]


class Problem(BaseModel):
    """An error, by RFC 9457."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Not Found",
                    "status": 404,
                    "detail": "there is no version 9 of workflow w_1",
                    "code": "PA302",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    code: str | None = Field(None, description="For programs: a SQLSTATE of class PA.")
    errors: list[dict[str, Any]] | None = None
    differences: dict[str, Any] | None = Field(
        None, description="For 412: versions base and current, and the diffs theirs and yours."
    )
