"""Proofs of an event, or of a log's growth, that are checked without the database.

A proof is JSON; docs/how-to/integrity.md specifies it for checkers in other languages.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from pgaudit_wf.errors import DefinitionError, NoteError, ProofError, translated
from pgaudit_wf.exact_json import loads
from pgaudit_wf.integrity import leaf as leaves
from pgaudit_wf.integrity.merkle import (
    HASH_SIZE,
    consistency_proof,
    inclusion_proof,
    is_consistent,
    leaf_hash,
    root_from_inclusion,
    tree_root,
)
from pgaudit_wf.integrity.note import (
    WITNESS,
    Checkpoint,
    Note,
    VerifierKey,
    open_checkpoint,
)
from pgaudit_wf.integrity.seal import column_list, pin_format, text_cursor, tile_reader
from pgaudit_wf.integrity.sealed_row import link_of
from pgaudit_wf.integrity.tiles import MissingTileError, nodes_from_tiles
from pgaudit_wf.trail.event import EVENT_COLUMNS, EventRow
from pgaudit_wf.trail.statement import Connection, Json

PROOF_FORMAT: Final = "pgaudit_wf.proof/1"
CONSISTENCY_FORMAT: Final = "pgaudit_wf.consistency/1"

_LEAF = (
    "select leaf_index, salt, snapshot, org_number, org_previous,"
    " event_id, tx_id, occurred_at, workflow_id, version"
    " from pgaudit_wf.log_leaf where "
)
_EVENT = sql.SQL(
    "select {} from pgaudit_wf.security_audit_log as e"
    " where e.id = %(event_id)s and e.tx_id = %(tx_id)s and e.occurred_at = %(occurred_at)s"
).format(column_list(EVENT_COLUMNS, sql.SQL("e")))
_VERSION = sql.SQL(
    "select {} from pgaudit_wf.workflow_history as h"
    " where h.workflow_id = %(workflow_id)s and h.version = %(version)s"
).format(column_list(leaves.VersionRow._fields, sql.SQL("h")))


@dataclass(frozen=True, slots=True)
class Checked:
    """The content of a valid proof.

    Attributes:
        checkpoint: The checkpoint that the log had committed to.
        leaf: The leaf; None for a proof of consistency.
        opened: The texts behind the leaf's commitments, by the name of the part; erased or
            withheld texts are missing.
        witnesses: The witnesses whose signatures are valid.
        old: The older checkpoint of a proof of consistency.
    """

    checkpoint: Checkpoint
    leaf: Mapping[str, Json] | None
    opened: Mapping[str, str]
    witnesses: tuple[str, ...]
    old: Checkpoint | None = None

    @property
    def event(self) -> dict[str, Json]:
        """The event or version as in its row, as far as the proof shows it."""
        return read_event(self.leaf or {}, self.opened)


def read_event(leaf: Mapping[str, Json], opened: Mapping[str, str]) -> dict[str, Json]:
    """Reassemble the event or version from a leaf and the texts behind its commitments."""
    event = dict(leaf)
    for name in ("change", "diff", "metadata", "snapshot"):
        if name in leaf and leaf[name] is not None:
            event[name] = _reassemble(name, leaf[name], opened)
    who = loads(opened["who"]) if "who" in opened else None
    del event["who"]
    names = ("actor_label", "ip", "user_agent")
    for number, name in enumerate(names if leaf["format"] in leaves.EVENT_FORMATS else names[:1]):
        event[name] = who[number] if who else None
    return event


def _reassemble(name: str, listed: Json, opened: Mapping[str, str]) -> Json:
    if isinstance(listed, str):
        return loads(opened[name]) if name in opened else None
    texts = [opened.get(f"{name}/{number}") for number in range(len(listed))]
    if name == "metadata":
        return loads("{" + ", ".join(text for text in texts if text) + "}")
    whole: list[Json] = []
    row: dict[str, Json] = {}
    for text in texts:
        if text in ('"add"', '"remove"'):
            member = "value" if text == '"add"' else "old"
            whole.append({"op": loads(text), "path": "", member: {}})
            row = whole[-1][member]
        elif text is not None:
            try:
                whole.append(loads(text))
            except ValueError:
                # A member of the preceding row, which is not JSON by itself.
                row.update(loads("{" + text + "}"))
    return whole


def newest_checkpoint(conn: Connection, size: int | None = None) -> str:
    """Return the newest signed checkpoint (or that of a given size) with its witnesses' lines.

    Raises:
        ProofError: There is no such checkpoint.
    """
    with translated():
        row = conn.execute(
            "select c.note, (select coalesce(string_agg(s.line || e'\\n', '' order by s.added_at,"
            " s.line), '') from pgaudit_wf.log_cosignature as s where s.size = c.size)"
            " from pgaudit_wf.log_checkpoint as c"
            " where c.note is not null and (%(size)s::bigint is null or c.size = %(size)s)"
            " order by c.size desc limit 1",
            {"size": size},
        ).fetchone()
    if row is None:
        raise ProofError(
            "there is no signed checkpoint; run pgaudit-wf seal"
            if size is None
            else f"there is no signed checkpoint of {size} leaves"
        )
    return str(row[0] + row[1])


def _encode(hashes: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(item).decode() for item in hashes]


def prove_event(
    conn: Connection, event_id: int, archived: leaves.Row | None = None
) -> dict[str, Json]:
    """Return a proof that an event is in the log.

    Args:
        conn: The owner's connection, in autocommit mode.
        event_id: The event.
        archived: The event's row from an archive, as from `archived_row`, if it is no longer in the
            database.

    Raises:
        ProofError: It is not sealed yet, is missing, or differs from what was sealed.
        psycopg.Error: The database could not answer.
    """
    return _prove(
        conn,
        "event_id = %(event_id)s order by leaf_index desc limit 1",
        {"event_id": event_id},
        f"event {event_id}",
        archived,
    )


def prove_version(conn: Connection, workflow_id: str, version: int) -> dict[str, Json]:
    """Return a proof that a version of a workflow is in the log.

    Raises:
        ProofError: It is not sealed yet, is missing, or differs from what was sealed.
        psycopg.Error: The database could not answer.
    """
    return _prove(
        conn,
        "workflow_id = %(workflow_id)s and version = %(version)s",
        {"workflow_id": workflow_id, "version": version},
        f"version {version} of workflow {workflow_id}",
        None,
    )


def _prove(
    conn: Connection,
    condition: str,
    subject: Mapping[str, object],
    name: str,
    archived: leaves.Row | None,
) -> dict[str, Json]:
    with translated(), conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        pin_format(conn)
        found = conn.execute(_LEAF + condition, subject).fetchone()
        if found is None:
            raise ProofError(f"{name} is not sealed; run pgaudit-wf seal, or check its id")
        index, salt, snapshot, *link = found[:5]
        keyed = dict(
            zip(
                ("event_id", "tx_id", "occurred_at", "workflow_id", "version"),
                found[5:],
                strict=True,
            )
        )
        is_event = keyed["event_id"] is not None
        row = archived
        if row is None:
            kept = text_cursor(conn).execute(_EVENT if is_event else _VERSION, keyed).fetchone()
            row = kept and (EventRow._make(kept) if is_event else leaves.VersionRow._make(kept))
        if row is None:
            raise ProofError(
                f"{name} was sealed but is missing; if it was archived, name the archive:"
                " --archive URL"
            )
        rest = conn.execute(
            "select part, key, commitment from pgaudit_wf.log_kept where leaf_index = %s", [index]
        ).fetchall()
        note = newest_checkpoint(conn)
        checkpoint = Checkpoint.parse(Note.parse(note).text)
        node = nodes_from_tiles(tile_reader(conn))
        parts = leaves.parts_of(row)
        if salt is not None:
            keys = {part: leaves.part_key(salt, part) for part, _ in parts}
            found_commitments = leaves.commitments(parts, salt)
        else:
            keys = {part: bytes(key) for part, key, _ in rest if key is not None}
            found_commitments = leaves.kept_commitments(
                parts, {part: leaves.Kept(key, commitment) for part, key, commitment in rest}
            )
        if not is_event and snapshot is not None:
            found_commitments.setdefault("snapshot", bytes(snapshot).hex())
        leaf = leaves.leaf_of(row, found_commitments, link_of(*link))
        try:
            if index >= checkpoint.size:
                raise ProofError(f"{name} is sealed but not signed yet; run pgaudit-wf seal")
            if node(0, index) != leaf_hash(leaves.canonical(leaf)):
                raise ProofError(f"{name} is not what was sealed; run pgaudit-wf verify")
            path = inclusion_proof(index, checkpoint.size, node)
        except MissingTileError as error:
            raise ProofError(f"{error}; run pgaudit-wf verify") from error
    return {
        "format": PROOF_FORMAT,
        "leaf": leaf,
        "opened": {
            part: {"key": keys[part].hex(), "text": text} for part, text in parts if part in keys
        },
        "index": index,
        "inclusion": _encode(path),
        "checkpoint": note,
    }


def prove_consistency(conn: Connection, old: str, new: str | None = None) -> dict[str, Json]:
    """Return a proof that the log of a checkpoint continues that of an older one.

    Args:
        conn: The owner's connection, in autocommit mode.
        old: The older signed checkpoint.
        new: The newer one; None for the newest.

    Raises:
        ProofError: They do not belong to the same log.
        NoteError: A checkpoint is malformed.
        psycopg.Error: The database could not answer.
    """
    with translated(), conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        new = new or newest_checkpoint(conn)
        path = consistency_path(conn, old, new)
    return {
        "format": CONSISTENCY_FORMAT,
        "old": old,
        "new": new,
        "consistency": path,
    }


def consistency_path(conn: Connection, old: str, new: str) -> list[str]:
    """Return the hashes that prove that the log of a checkpoint continues that of an older one.

    Args:
        conn: A connection in a transaction.
        old: The older signed checkpoint.
        new: The newer one.

    Raises:
        ProofError: They do not belong to the same log.
        NoteError: A checkpoint is malformed.
    """
    older, newer = (Checkpoint.parse(Note.parse(note).text) for note in (old, new))
    if older.size > newer.size:
        raise ProofError(
            f"the older checkpoint has {older.size} leaves, and the newer {newer.size}:"
            " the log was truncated, or they are in the wrong order"
        )
    node = nodes_from_tiles(tile_reader(conn))
    try:
        for checkpoint in (older, newer):
            if tree_root(checkpoint.size, node) != checkpoint.root:
                raise ProofError(
                    f"the root of the tree of {checkpoint.size} leaves differs from the"
                    " checkpoint: it belongs to another log, or this log was rewritten"
                )
        return _encode(consistency_proof(older.size, newer.size, node))
    except (MissingTileError, ValueError) as error:
        raise ProofError(str(error)) from error


def _decode(hashes: Json) -> list[bytes]:
    decoded = [base64.b64decode(item, validate=True) for item in hashes]
    if any(len(item) != HASH_SIZE for item in decoded):
        raise ProofError("a hash of the proof is not 32 bytes long")
    return decoded


def check(proof: Mapping[str, Json], keys: Sequence[VerifierKey]) -> Checked:
    """Check a proof, of an event or of consistency; needs no database.

    Args:
        proof: The proof, as `prove_event` or `prove_consistency` made it.
        keys: The keys of the log and of witnesses; the log must have signed.

    Raises:
        ProofError: It is malformed or not valid.
        NoteError: A checkpoint in it is not valid.
    """
    try:
        if proof["format"] == CONSISTENCY_FORMAT:
            return _check_consistency(proof, keys)
        if proof["format"] != PROOF_FORMAT:
            raise ProofError(f"unknown format of the proof: {proof['format']!r}")
        checkpoint = open_checkpoint(proof["checkpoint"], keys)
        leaf = proof["leaf"]
        if leaf["format"] not in leaves.EVENT_FORMATS + leaves.VERSION_FORMATS:
            raise ProofError(f"unknown format of the leaf: {leaf['format']!r}")
        root = root_from_inclusion(
            proof["index"],
            checkpoint.size,
            leaf_hash(leaves.canonical(leaf)),
            _decode(proof["inclusion"]),
        )
        if root != checkpoint.root:
            raise ProofError("the event is not in the log of the checkpoint, or was altered")
        opened = {}
        for name, part in proof["opened"].items():
            field, _, number = name.partition("/")
            commitment = leaf[field][int(number)] if number else leaf[field]
            if leaves.commit(bytes.fromhex(part["key"]), part["text"]).hex() != commitment:
                raise ProofError(f"{name} is not what was sealed")
            opened[name] = part["text"]
    except (KeyError, TypeError, IndexError, AttributeError, binascii.Error) as error:
        raise ProofError(f"not a proof: {type(error).__name__}: {error}") from error
    except (DefinitionError, NoteError, ProofError):
        raise
    except ValueError as error:
        raise ProofError(f"the proof is not valid: {error}") from error
    return Checked(checkpoint, leaf, opened, _witnesses(proof["checkpoint"], keys))


def _check_consistency(proof: Mapping[str, Json], keys: Sequence[VerifierKey]) -> Checked:
    old = open_checkpoint(proof["old"], keys)
    new = open_checkpoint(proof["new"], keys)
    if old.origin != new.origin:
        raise ProofError(f"the checkpoints belong to two logs, {old.origin} and {new.origin}")
    path = _decode(proof["consistency"])
    if not is_consistent(old.size, new.size, path, old.root, new.root):
        raise ProofError("the newer checkpoint does not continue the older one")
    return Checked(new, None, {}, _witnesses(proof["new"], keys), old)


def _witnesses(note: str, keys: Sequence[VerifierKey]) -> tuple[str, ...]:
    return tuple(key.name for key in Note.parse(note).signers(keys) if key.kind == WITNESS)


def add_cosignatures(conn: Connection, note: str, witnesses: Sequence[VerifierKey]) -> int:
    """Store the signatures of witnesses on a checkpoint of this log; return how many were new.

    Args:
        conn: The owner's connection.
        note: The checkpoint with the witnesses' lines.
        witnesses: Their keys; lines of others are ignored.

    Raises:
        ProofError: It is not a checkpoint of this log.
        NoteError: It is malformed, or a witness's signature is not valid.
        psycopg.Error: The database could not answer.
    """
    parsed = Note.parse(note)
    size = Checkpoint.parse(parsed.text).size
    if Note.parse(newest_checkpoint(conn, size)).text != parsed.text:
        raise ProofError(f"the log's own checkpoint of {size} leaves differs")
    known = {(key.name, key.id) for key in parsed.signers(witnesses) if key.kind == WITNESS}
    added = 0
    with translated():
        for signature in parsed.signatures:
            if (signature.name, signature.key_id) in known:
                added += conn.execute(
                    "insert into pgaudit_wf.log_cosignature (size, line) values (%s, %s)"
                    " on conflict (size, line) do nothing",
                    [size, str(signature).rstrip("\n")],
                ).rowcount
    return added
