"""Leaves of the tree: the content of an event or a version that is sealed, and its encoding.

docs/how-to/integrity.md specifies the same for authors of checkers; change both together, and the
format's number with them.

A leaf is the RFC 8785 form of an object of strings, booleans, nulls and lists of strings. Values
that may identify a person (name, address, browser, each value of a diff, metadata) are included as
commitments only: SHA-256(key || text), with key = SHA-256(salt || name of the part), and a salt of
16 random bytes for each leaf. Erasing a value keeps its commitment and destroys salt and key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from json.encoder import encode_basestring
from typing import NamedTuple, TypeAlias

import rfc8785

from pgaudit_wf.errors import DefinitionError
from pgaudit_wf.trail.event import EventRow

SALT_SIZE = 16
# The first of each was sealed before leaves were linked to the one before of their organization.
EVENT_FORMATS = ("pgaudit_wf.event/1", "pgaudit_wf.event/2")
VERSION_FORMATS = ("pgaudit_wf.workflow_version/1", "pgaudit_wf.workflow_version/2")
# Chains of leaves without an organization. That of an organization is ORGANIZATION and its id.
CONFIGURATION, UNASSIGNED, ORGANIZATION = "configuration", "none", "org/"
VERSION_POLICY = "pgaudit_wf.version_policy"


class VersionRow(NamedTuple):
    """A row of the history as PostgreSQL prints it, in the order in which it is read."""

    workflow_id: str
    version: str
    org_id: str | None
    source: str
    content_hash: str
    previous_version: str | None
    previous_hash: str | None
    restored_from: str | None
    actor_id: str | None
    actor_label: str | None
    auth_method: str | None
    api_key_id: str | None
    correlation_id: str | None
    created_at: str
    snapshot: str | None
    change: str


EventText: TypeAlias = EventRow[str, str]
Row: TypeAlias = EventText | VersionRow
Leaf = dict[str, object]
# The parts of a leaf that are included as commitments: name of the part, its text.
Parts = list[tuple[str, str]]


class Link(NamedTuple):
    """A leaf's place in its chain: its number, from 1, and the hash of the leaf before, if any."""

    number: int
    previous: bytes | None


# Numbers are skipped as text: those of jsonb may have more digits than Python converts.
_scan = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_ADD, _REMOVE = '{"op": "add", "path": "", "value": {', '{"op": "remove", "old": {'
_ROW_ENDS = {_ADD: "}}", _REMOVE: '}, "path": ""}'}


@dataclass(frozen=True, slots=True)
class Kept:
    """The remains of a part after an erasure: its key or, if it was erased, its commitment.

    `release_id` is the id of the event that says that it was erased. `masks` is what erasures put
    in its place: the event's id and the text's SHA-256, in hex, of each.
    """

    key: bytes | None
    commitment: bytes | None
    release_id: int | None = None
    masks: tuple[tuple[int, str], ...] = ()

    def masked(self, text: str) -> bool:
        """Return whether a text is what an erasure put in place of the part."""
        found = sha256(text.encode()).hexdigest()
        return any(mask == found for _, mask in self.masks)


def chain_of(row: Row) -> str:
    """Return the chain to which an event or version belongs.

    What the database records about the trail itself has a chain of its own, so that all of it can
    be shown to any organization without showing what else belongs to none.
    """
    if row.org_id is not None:
        return ORGANIZATION + row.org_id
    if isinstance(row, EventRow) and row.captured is True and row.action.startswith("audit."):
        # The subject of a change of such a policy is an organization.
        return UNASSIGNED if row.resource_type == VERSION_POLICY else CONFIGURATION
    return UNASSIGNED


def canonical(leaf: object) -> bytes:
    """Return a leaf in its RFC 8785 form.

    Raises:
        DefinitionError: It contains a value without such a form.
    """
    text = _encode(leaf)
    if text.isascii():
        # ASCII texts and booleans need no further encoding.
        return text.encode()
    try:
        return rfc8785.dumps(leaf)  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, ValueError) as error:
        raise DefinitionError(f"the leaf has no RFC 8785 form: {error}") from error


def part_key(salt: bytes, name: str) -> bytes:
    """Return the key of a part's commitment."""
    return sha256(salt + name.encode()).digest()


def commit(key: bytes, text: str) -> bytes:
    """Return the commitment to a part's text."""
    return sha256(key + text.encode()).digest()


def _value_end(text: str, at: int) -> int:
    """Return where the JSON value that begins at a position ends."""
    try:
        return _scan(text, at)[1]
    except RecursionError:
        # jsonb nests deeper than Python's decoder.
        depth = 0
        for token in _TOKEN.finditer(text, at):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
            if depth == 0:
                return token.end()
        raise


def _members(text: str, at: int) -> tuple[list[str], int]:
    """Return the members of the object whose brace is before a position, and where it closes."""
    members = []
    while text[at] != "}":
        key_end = _scan(text, at)[1]
        end = _value_end(text, key_end + 2)
        members.append(text[at:end])
        at = end + 2 if text[end] == "," else end
    return members, at


def diff_parts(diff: str) -> list[str] | str:
    """Split a diff, as jsonb is printed, into the texts that get a commitment each.

    An operation is a part. If it adds or removes a whole row, its parts are the operation's name
    and each of the row's columns. A diff that is not a list is one part, returned as it is.
    """
    if diff[0] != "[":
        return diff
    parts, at = [], 1
    while diff[at] != "]":
        for start, end_mark in _ROW_ENDS.items():
            if diff.startswith(start, at):
                members, end = _members(diff, at + len(start))
                if diff.startswith(end_mark, end):
                    parts.append('"add"' if start is _ADD else '"remove"')
                    parts += members
                    at = end + len(end_mark)
                    break
        else:
            end = _value_end(diff, at)
            parts.append(diff[at:end])
            at = end
        if diff[at] == ",":
            at += 2
    return parts


def metadata_parts(metadata: str) -> list[str] | str:
    """Split metadata, as jsonb is printed, into its members; anything but an object is one part."""
    return _members(metadata, 1)[0] if metadata[0] == "{" else metadata


def _named(name: str, texts: list[str] | str) -> Parts:
    if isinstance(texts, str):
        return [(name, texts)]
    return [(f"{name}/{number}", text) for number, text in enumerate(texts)]


def who_text(*values: str | None) -> str:
    """Return the text of part `who`: a JSON list, as PostgreSQL prints one."""
    return f"[{', '.join('null' if v is None else encode_basestring(v) for v in values)}]"


def event_parts(row: EventText) -> Parts:
    """Return the parts of an event's leaf."""
    parts = [("who", who_text(row.actor_label, row.ip, row.user_agent))]
    if row.diff is not None:
        parts += _named("diff", diff_parts(row.diff))
    parts += _named("metadata", metadata_parts(row.metadata))
    return parts


def version_parts(row: VersionRow) -> Parts:
    """Return the parts of a version's leaf; a pruned snapshot is not among them."""
    parts = [("change", row.change), ("who", who_text(row.actor_label))]
    if row.snapshot is not None:
        parts.append(("snapshot", row.snapshot))
    return parts


def parts_of(row: Row) -> Parts:
    """Return the parts of the leaf of an event or a version."""
    return event_parts(row) if isinstance(row, EventRow) else version_parts(row)


def commitments(parts: Parts, salt: bytes) -> dict[str, str]:
    """Return the commitments to parts, in hex, by the parts' names."""
    return {
        name: sha256(sha256(salt + name.encode()).digest() + text.encode()).hexdigest()
        for name, text in parts
    }


def kept_commitments(parts: Parts, kept: Mapping[str, Kept]) -> dict[str, str]:
    """Return the commitments of a leaf from which something was erased."""
    texts = dict(parts)
    found = {}
    for name, rest in kept.items():
        if rest.commitment is not None:
            found[name] = rest.commitment.hex()
        elif rest.key is not None and name in texts:
            found[name] = commit(rest.key, texts[name]).hex()
    return found


def _listed(name: str, found: Mapping[str, str]) -> str | list[str]:
    if name in found:
        return found[name]
    listed: list[str] = []
    while (item := found.get(f"{name}/{len(listed)}")) is not None:
        listed.append(item)
    return listed


def _event_leaf(row: EventText, found: Mapping[str, str]) -> Leaf:
    return {
        "action": row.action,
        "actor_id": row.actor_id,
        "actor_type": row.actor_type,
        "api_key_id": row.api_key_id,
        "application_name": row.application_name,
        "attested": row.attested,
        "auth_method": row.auth_method,
        "captured": row.captured,
        "client": row.client,
        "correlation_id": row.correlation_id,
        "country": row.country,
        "db_user": row.db_user,
        "diff": None if row.diff is None else _listed("diff", found),
        "id": row.id,
        "metadata": _listed("metadata", found),
        "occurred_at": row.occurred_at,
        "on_behalf_of": row.on_behalf_of,
        "org_id": row.org_id,
        "org_label": row.org_label,
        "outcome": row.outcome,
        "resource_id": row.resource_id,
        "resource_type": row.resource_type,
        "tx_id": row.tx_id,
        "who": found.get("who"),
    }


def _version_leaf(row: VersionRow, found: Mapping[str, str]) -> Leaf:
    return {
        "actor_id": row.actor_id,
        "api_key_id": row.api_key_id,
        "auth_method": row.auth_method,
        "change": found.get("change"),
        "content_hash": row.content_hash,
        "correlation_id": row.correlation_id,
        "created_at": row.created_at,
        "org_id": row.org_id,
        "previous_hash": row.previous_hash,
        "previous_version": row.previous_version,
        "restored_from": row.restored_from,
        "snapshot": found.get("snapshot"),
        "source": row.source,
        "version": row.version,
        "who": found.get("who"),
        "workflow_id": row.workflow_id,
    }


def leaf_of(row: Row, found: Mapping[str, str], link: Link | None) -> Leaf:
    """Return the leaf of an event or a version.

    Args:
        row: The event or version.
        found: The commitments to its parts.
        link: Its place in its chain; None: it was sealed before there were chains.
    """
    if isinstance(row, EventRow):
        leaf, formats = _event_leaf(row, found), EVENT_FORMATS
    else:
        leaf, formats = _version_leaf(row, found), VERSION_FORMATS
    leaf["format"] = formats[0 if link is None else 1]
    if link is not None:
        leaf["org_number"] = str(link.number)
        leaf["org_previous"] = None if link.previous is None else link.previous.hex()
    return leaf
