"""The columns of an event, as the log keeps them and as reads return them.

Everything that lists them (archives, leaves of the tree, exports, the API) takes the list from
here; a test compares it with the database's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, NamedTuple, TypeVar

from pgaudit_wf.choices import Outcome
from pgaudit_wf.trail.statement import Json

Number = TypeVar("Number")
Moment = TypeVar("Moment")


class EventRow(NamedTuple, Generic[Number, Moment]):
    """A row of the log, in the order in which archives and their digests have it.

    Documents and addresses are text. `EventRow[int, datetime]` is what an archive holds;
    `EventRow[str, str]`, with all but truth values as PostgreSQL prints them, makes a leaf.
    """

    id: Number
    occurred_at: Moment
    tx_id: Number
    actor_id: str | None
    actor_label: str | None
    actor_type: str | None
    on_behalf_of: str | None
    client: str | None
    org_id: str | None
    org_label: str | None
    auth_method: str | None
    api_key_id: str | None
    action: str
    resource_type: str | None
    resource_id: str | None
    outcome: str
    captured: bool
    diff: str | None
    metadata: str
    ip: str | None
    country: str | None
    user_agent: str | None
    correlation_id: str | None
    db_user: str
    application_name: str | None
    attested: bool


EVENT_COLUMNS = EventRow._fields


@dataclass(frozen=True, slots=True)
class TrailEntry:
    """An event of the trail as people read it.

    `actor_name` and `resource_name` are the present names, or the ones kept in the event where
    there are none (any more). The actor is who really acted, `on_behalf_of` in whose name, if in
    another's, and `client` by which program or agent. `captured` is True for what a trigger saw
    and False for what the application reported by `record_event`; `attested` is True if the
    application proved by a signature who acted. `diff` is a JSON Patch with "old" values, and
    `cursor` where to go on.
    """

    id: int
    tx_id: int
    occurred_at: datetime
    org_id: str | None
    org_label: str | None
    actor_id: str | None
    actor_name: str | None
    actor_email: str | None
    actor_role: str | None
    actor_type: str | None
    on_behalf_of: str | None
    on_behalf_of_name: str | None
    client: str | None
    auth_method: str | None
    api_key_id: str | None
    action: str
    resource_type: str | None
    resource_id: str | None
    resource_name: str | None
    outcome: Outcome
    captured: bool
    attested: bool
    diff: list[dict[str, Json]] | None
    metadata: dict[str, Json]
    ip: str | None
    country: str | None
    user_agent: str | None
    correlation_id: str | None
    db_user: str
    application_name: str | None
    cursor: str

    def acted_as(self) -> str:
        """Name who acted, and for whom; the login of the database session if no actor was given."""
        name = self.actor_name or self.actor_id or self.db_user
        if self.on_behalf_of:
            return f"{name} for {self.on_behalf_of_name or self.on_behalf_of}"
        return name


@dataclass(frozen=True, slots=True)
class LogEvent:
    """An event as the log holds it, with the cursor that follows it."""

    id: int
    occurred_at: datetime
    tx_id: int
    actor_id: str | None
    actor_label: str | None
    actor_type: str | None
    on_behalf_of: str | None
    client: str | None
    org_id: str | None
    org_label: str | None
    auth_method: str | None
    api_key_id: str | None
    action: str
    resource_type: str | None
    resource_id: str | None
    outcome: Outcome
    captured: bool
    diff: list[dict[str, Json]] | None
    metadata: dict[str, Json]
    ip: str | None
    country: str | None
    user_agent: str | None
    correlation_id: str | None
    db_user: str
    application_name: str | None
    attested: bool
    cursor: str
