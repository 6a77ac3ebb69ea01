"""The signed-in user, as the host application's own authentication reports it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from starlette.requests import Request

READERS = frozenset({"owner", "admin"})
"""The roles that may read an organization's trail; the database has the same rule.

Versions of workflows are for every member where the database's `pgaudit_wf.version_policy` says so.
"""


@dataclass(frozen=True, slots=True)
class Principal:
    """A signed-in user, and the organization to act for.

    Args:
        actor_id: Id of the user, as in `app.actor_id`.
        org_id: Id of the organization whose pages are shown, as in `app.org_id`.
        role: The user's role in it; only "owner" and "admin" may read and restore, and others no
            more than versions. The database checks `pgaudit_wf.org_member` itself, and that
            decides.
        actor_label: The user's name, shown on each page and recorded with a restore.
        org_label: The organization's name, likewise.
        auth_method: How the user signed in; recorded with a restore.
        api_key_id: Id of the API key used, never the key.
    """

    actor_id: str
    org_id: str
    role: str
    actor_label: str | None = None
    org_label: str | None = None
    auth_method: str | None = "session"
    api_key_id: str | None = None

    @property
    def may_read(self) -> bool:
        """Whether the role may read the organization's trail."""
        return self.role in READERS


Authenticate: TypeAlias = Callable[[Request], Principal | Awaitable[Principal | None] | None]
