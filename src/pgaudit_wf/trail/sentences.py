"""Events as sentences: who did what to which resource."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from pgaudit_wf.exact_json import key_parts
from pgaudit_wf.trail.event import TrailEntry

Tone: TypeAlias = Literal["add", "change", "remove"]

_PHRASES = {
    "account.created": "created an account",
    "account.deactivated": "deactivated an account",
    "account.deleted": "deleted an account",
    "account.reactivated": "reactivated an account",
    "account.updated": "changed an account",
    "actor.pseudonymised": "had an actor's name removed from the trail",
    "agentic_wallet.created": "created an agentic wallet",
    "agentic_wallet.deleted": "deleted an agentic wallet",
    "agentic_wallet.hmac_rotated": "rotated the HMAC secret of an agentic wallet",
    "agentic_wallet.updated": "changed an agentic wallet",
    "api_key.created": "created an API key",
    "api_key.deleted": "deleted an API key",
    "api_key.reinstated": "reinstated an API key",
    "api_key.renamed": "renamed an API key",
    "api_key.revoked": "revoked an API key",
    "api_key.rotated": "rotated an API key",
    "api_key.updated": "changed an API key",
    "audit.export_started": "began to export the audit trail",
    "audit.exported": "exported the audit trail",
    "backup_codes.regenerated": "made new backup codes",
    "backup_codes.used": "used a backup code",
    "email.changed": "changed an e-mail address",
    "member.invited": "invited a member",
    "member.joined": "joined the organization",
    "member.removed": "removed a member",
    "member.role_changed": "changed a member's role",
    "member.updated": "changed a membership",
    "org.created": "created the organization",
    "org.deactivated": "deactivated the organization",
    "org.deleted": "deleted the organization",
    "org.reactivated": "reactivated the organization",
    "org.updated": "changed the organization's settings",
    "org_api_key.created": "created an org API key",
    "org_api_key.deleted": "deleted an org API key",
    "org_api_key.reinstated": "reinstated an org API key",
    "org_api_key.renamed": "renamed an org API key",
    "org_api_key.revoked": "revoked an org API key",
    "org_api_key.rotated": "rotated an org API key",
    "org_api_key.updated": "changed an org API key",
    "org_wallet.created": "created an org wallet",
    "org_wallet.deleted": "deleted an org wallet",
    "org_wallet.updated": "changed an org wallet",
    "password.changed": "changed a password",
    "password.reset": "reset a password",
    "request.failed": "made a request",
    "session.created": "signed in",
    "session.deleted": "deleted a session",
    "session.expired": "was signed out, as the session had expired",
    "session.revoked": "signed out",
    "subscription.cancel_scheduled": "scheduled the end of the subscription",
    "subscription.cancel_withdrawn": "withdrew the cancellation of the subscription",
    "subscription.canceled": "canceled the subscription",
    "subscription.checkout_started": "began a checkout",
    "subscription.created": "began a subscription",
    "subscription.deleted": "deleted a subscription",
    "subscription.plan_changed": "changed the plan",
    "subscription.reactivated": "reactivated the subscription",
    "subscription.updated": "changed the subscription",
    "totp.disabled": "turned off two-factor sign-in",
    "totp.enrolled": "turned on two-factor sign-in",
    "totp.enrollment_canceled": "canceled setting up two-factor sign-in",
    "totp.enrollment_started": "began to set up two-factor sign-in",
    "totp.updated": "changed two-factor sign-in",
    "workflow.created": "created a workflow",
    "workflow.deleted": "deleted a workflow",
    "workflow.disabled": "disabled a workflow",
    "workflow.enabled": "enabled a workflow",
    "workflow.listed": "listed a workflow on the marketplace",
    "workflow.listing_updated": "changed the listing of a workflow",
    "workflow.restored": "restored an earlier version of a workflow",
    "workflow.undeleted": "put back a deleted workflow",
    "workflow.unlisted": "took a workflow off the marketplace",
    "workflow.updated": "edited a workflow",
    "workflow.version_labeled": "named a version of a workflow",
    "workflow.version_published": "published a version of a workflow",
    "workflow.version_unpublished": "unpublished a version of a workflow",
}
_ADDED = {
    "added", "created", "enabled", "enrolled", "invited", "joined", "listed", "reactivated",
    "reinstated", "undeleted",
}  # fmt: skip
_REMOVED = {
    "canceled", "deactivated", "deleted", "disabled", "expired", "pruned", "removed", "revoked",
    "truncated", "unlisted",
}  # fmt: skip
# Events about the actor's own account or organization need no resource name.
_NAMELESS = ("session.", "subscription.", "totp.", "backup_codes.", "audit.", "org.", "request.")


_NOT_DONE = {
    "session.created": "could not sign in",
    "request.failed": "made a request that failed",
}


def sentence(entry: TrailEntry) -> str:
    """Return the action as it follows the actor's name."""
    if entry.outcome != "succeeded" and entry.action in _NOT_DONE:
        return _NOT_DONE[entry.action]
    known = _PHRASES.get(entry.action)
    if entry.action == "member.joined" and member_of(entry) not in (None, entry.actor_id):
        known = "added a member"
    if known is None:
        thing, _, verb = entry.action.rpartition(".")
        words = f"{verb.replace('_', ' ')} {thing.replace('_', ' ').replace('.', ' ')}".strip()
        known = words or entry.action
    if entry.outcome == "denied":
        return f"was refused: {known}"
    if entry.outcome == "failed":
        return f"failed: {known}"
    return known


def member_of(entry: TrailEntry) -> str | None:
    """Return the id of the user whose membership an event is about."""
    if not entry.action.startswith("member."):
        return None
    key = key_parts(entry.resource_id)
    return key[-1] if key else entry.resource_id


def subject(entry: TrailEntry, names: Mapping[str, str]) -> str | None:
    """Return the name of the resource; None if it adds nothing.

    Args:
        entry: The event.
        names: Names of users by their ids, for events about members.
    """
    if entry.action.startswith(_NAMELESS):
        return None
    member = member_of(entry)
    if member is not None:
        return None if member == entry.actor_id else names.get(member, member)
    name = entry.resource_name or entry.resource_id
    return None if name is None or name == entry.actor_name else name


def tone(entry: TrailEntry) -> Tone:
    """Return whether something was added, changed or removed."""
    verb = entry.action.rpartition(".")[2]
    if verb in _ADDED or verb.startswith("created"):
        return "add"
    return "remove" if verb in _REMOVED else "change"
