"""Leaves of the tree: what of an event or a version is sealed, and how it is written.

docs/integrity.md describes the same for whoever writes a checker; change both, and the format's
number with them.

A leaf is the RFC 8785 form of an object of strings, booleans, nulls and lists of strings. What may
tell who somebody is (name, address, browser, each value of a diff, metadata) is in it as a
commitment only: SHA-256(key || text), with key = SHA-256(salt || name of the part), and a salt of
16 random bytes for each leaf. Erasing a value keeps its commitment and destroys salt and key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from json.encoder import encode_basestring
from typing import Final

import rfc8785

from pgaudit_wf.errors import DefinitionError

SALT_SIZE = 16
EVENT_FORMAT = "pgaudit_wf.event/1"
VERSION_FORMAT = "pgaudit_wf.workflow_version/1"

# In the order in which rows come from the database: all as text, but captured and attested.
EVENT_COLUMNS: Final = (
    "id", "occurred_at", "tx_id", "actor_id", "actor_label", "org_id", "org_label", "auth_method",
    "api_key_id", "action", "resource_type", "resource_id", "outcome", "captured", "diff",
    "metadata", "ip", "country", "user_agent", "correlation_id", "db_user", "application_name",
    "attested",
)  # fmt: skip
VERSION_COLUMNS: Final = (
    "workflow_id", "version", "org_id", "source", "content_hash", "previous_version",
    "previous_hash", "restored_from", "actor_id", "actor_label", "auth_method", "api_key_id",
    "correlation_id", "created_at", "snapshot", "change",
)  # fmt: skip

Row = Sequence[str | bool | None]
Leaf = dict[str, object]
# The parts of a leaf that are in it as commitments: name of the part, its text.
Parts = list[tuple[str, str]]

# Numbers are skipped over as text: jsonb's may have more digits than Python reads.
_scan = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_ADD, _REMOVE = '{"op": "add", "path": "", "value": {', '{"op": "remove", "old": {'
_ROW_ENDS = {_ADD: "}}", _REMOVE: '}, "path": ""}'}


@dataclass(frozen=True, slots=True)
class Kept:
    """What is left of a part after an erasure: its key, or where it was erased its commitment."""

    key: bytes | None
    commitment: bytes | None


def canonical(leaf: object) -> bytes:
    """Return a leaf in its RFC 8785 form.

    Raises:
        DefinitionError: It holds what has no such form.
    """
    text = _encode(leaf)
    if text.isascii():
        # Nothing is left to do for texts and truth values in ASCII.
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
    """Cut a diff, as jsonb is printed, into the texts that are committed to one by one.

    An operation is a part. Of one that adds or removes a whole row, the operation's name is a part
    and each of the row's columns. A diff that is no list is one part: it is returned as it is.
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
    """Cut metadata, as jsonb is printed, into its members; what is no object is one part."""
    return _members(metadata, 1)[0] if metadata[0] == "{" else metadata


def _named(name: str, texts: list[str] | str | None) -> Parts:
    if texts is None:
        return []
    if isinstance(texts, str):
        return [(name, texts)]
    return [(f"{name}/{number}", text) for number, text in enumerate(texts)]


def who_text(*values: str | None) -> str:
    """Return the text of part `who`: a JSON list, as PostgreSQL prints one."""
    return f"[{', '.join('null' if v is None else encode_basestring(v) for v in values)}]"


def event_parts(row: Row) -> Parts:
    """Return the parts of an event's leaf."""
    diff, metadata = row[14], row[15]
    parts = [("who", who_text(row[4], row[16], row[18]))]  # type: ignore[arg-type]
    if diff is not None:
        parts += _named("diff", diff_parts(diff))  # type: ignore[arg-type]
    parts += _named("metadata", metadata_parts(metadata))  # type: ignore[arg-type]
    return parts


def version_parts(row: Row) -> Parts:
    """Return the parts of a version's leaf; a snapshot that was let go is none."""
    parts = [("change", str(row[15])), ("who", who_text(row[9]))]  # type: ignore[arg-type]
    if row[14] is not None:
        parts.append(("snapshot", str(row[14])))
    return parts


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


def event_leaf(row: Row, found: Mapping[str, str]) -> Leaf:
    """Return an event's leaf, given the commitments to its parts."""
    return {
        "action": row[9],
        "actor_id": row[3],
        "api_key_id": row[8],
        "application_name": row[21],
        "attested": row[22],
        "auth_method": row[7],
        "captured": row[13],
        "correlation_id": row[19],
        "country": row[17],
        "db_user": row[20],
        "diff": None if row[14] is None else _listed("diff", found),
        "format": EVENT_FORMAT,
        "id": row[0],
        "metadata": _listed("metadata", found),
        "occurred_at": row[1],
        "org_id": row[5],
        "org_label": row[6],
        "outcome": row[12],
        "resource_id": row[11],
        "resource_type": row[10],
        "tx_id": row[2],
        "who": found.get("who"),
    }


def version_leaf(row: Row, found: Mapping[str, str]) -> Leaf:
    """Return a version's leaf, given the commitments to its parts."""
    return {
        "actor_id": row[8],
        "api_key_id": row[11],
        "auth_method": row[10],
        "change": found.get("change"),
        "content_hash": row[4],
        "correlation_id": row[12],
        "created_at": row[13],
        "format": VERSION_FORMAT,
        "org_id": row[2],
        "previous_hash": row[6],
        "previous_version": row[5],
        "restored_from": row[7],
        "snapshot": found.get("snapshot"),
        "source": row[3],
        "version": row[1],
        "who": found.get("who"),
        "workflow_id": row[0],
    }
