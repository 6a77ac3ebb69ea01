"""Co-signatures from witnesses, as C2SP tlog-witness has them asked for.

A witness remembers the last checkpoint of each log, and signs the next one only if a proof shows
that it continues that one: a log with witnesses cannot show different people different histories.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pgaudit_wf.errors import ProofError, PushError, WitnessError, translated
from pgaudit_wf.integrity.merkle import consistency_proof, tree_root
from pgaudit_wf.integrity.note import WITNESS, Checkpoint, Note, Signature, VerifierKey
from pgaudit_wf.integrity.post import Answer, host_of, post
from pgaudit_wf.integrity.proof import add_cosignatures
from pgaudit_wf.integrity.seal import tile_reader
from pgaudit_wf.integrity.tiles import MissingTileError, nodes_from_tiles
from pgaudit_wf.trail.statement import Connection, one

# Another pusher may be faster, and then the witness has seen more.
_ATTEMPTS = 3
# What a clock may be ahead of ours.
_SKEW = timedelta(minutes=10)
_REFUSALS = {
    400: "it cannot read the request",
    403: "it does not trust the key that signed the checkpoint",
    404: "it does not know a log of this name",
    422: "the checkpoint does not continue what it has seen of this log: keep both, as one of them"
    " is evidence",
}


def log_part(note: str) -> Note:
    """Return a signed checkpoint with the log's own signatures only.

    Raises:
        NoteError: It is malformed.
    """
    parsed = Note.parse(note)
    origin = Checkpoint.parse(parsed.text).origin
    return Note(parsed.text, tuple(s for s in parsed.signatures if s.name == origin))


def _last_seen(conn: Connection, keys: Sequence[VerifierKey], size: int) -> int:
    """Return the size at which these witnesses signed last, as far as we know."""
    with translated():
        (last,) = one(
            conn,
            "select coalesce(max(s.size), 0) from pgaudit_wf.log_cosignature as s"
            " where s.size <= %s and split_part(s.line, ' ', 2) = any (%s)",
            [size, [key.name for key in keys]],
        )
    return int(last)


def _proof(conn: Connection, old_size: int, checkpoint: Checkpoint) -> list[bytes]:
    with translated(), conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        node = nodes_from_tiles(tile_reader(conn))
        try:
            if tree_root(checkpoint.size, node) != checkpoint.root:
                raise ProofError(
                    f"the root of the tree of {checkpoint.size} leaves differs from the checkpoint;"
                    " run pgaudit-wf verify"
                )
            return consistency_proof(old_size, checkpoint.size, node) if old_size else []
        except MissingTileError as error:
            raise ProofError(f"{error}; run pgaudit-wf verify") from error


def request_body(old_size: int, proof: Sequence[bytes], note: Note) -> bytes:
    """Return the body of an `add-checkpoint` request.

    Args:
        old_size: Number of leaves that the witness has seen.
        proof: The consistency proof from there; empty if that is none.
        note: The signed checkpoint.
    """
    lines = [f"old {old_size}", *(base64.b64encode(item).decode() for item in proof), ""]
    return ("\n".join(lines) + "\n" + str(note)).encode()


def _seen_size(answer: Answer) -> int | None:
    text = answer.body.decode("ascii", "replace")
    is_size = re.fullmatch(r"(0|[1-9][0-9]{0,18})\n", text)
    return int(text) if is_size and answer.content_type == "text/x.tlog.size" else None


def cosign(conn: Connection, note: str, url: str, keys: Sequence[VerifierKey]) -> int:
    """Have a witness co-sign a checkpoint, and store its signatures; return how many were new.

    Args:
        conn: The owner's connection, in autocommit mode.
        note: The signed checkpoint.
        url: The witness's submission prefix; `/add-checkpoint` is appended.
        keys: Keys of witnesses; signatures by others are ignored.

    Raises:
        WitnessError: The witness refused, or did not answer with a valid signature by one of the
            keys.
        PushError: It could not be reached, or no key of a witness is given.
        ProofError: The tree in the database is not that of the checkpoint.
        NoteError: The checkpoint is malformed.
    """
    witnesses = [key for key in keys if key.kind == WITNESS]
    if not witnesses:
        raise PushError("a witness's answer is only kept if its key is given: --witness KEY")
    own = log_part(note)
    checkpoint = Checkpoint.parse(own.text)
    old_size = _last_seen(conn, witnesses, checkpoint.size)
    for _ in range(_ATTEMPTS):
        answer = post(
            f"{url.rstrip('/')}/add-checkpoint",
            request_body(old_size, _proof(conn, old_size, checkpoint), own),
            "text/plain; charset=utf-8",
        )
        if answer.status != 409:
            break
        seen = _seen_size(answer)
        if seen is None:
            raise WitnessError(f"the witness at {host_of(url)} does not say what it has seen", 409)
        if seen > checkpoint.size:
            raise WitnessError(
                f"the witness at {host_of(url)} has seen {seen} leaves of this log, and the"
                f" checkpoint has {checkpoint.size}: it is an old one, or the log was cut back",
                409,
            )
        old_size = seen
    if answer.status != 200:
        reason = _REFUSALS.get(answer.status, "for a reason of its own")
        raise WitnessError(
            f"the witness at {host_of(url)} refused the checkpoint of {checkpoint.size} leaves"
            f" ({answer.status}): {reason}",
            answer.status,
        )
    return _keep(conn, own, answer, witnesses, host_of(url))


def _keep(
    conn: Connection, own: Note, answer: Answer, witnesses: Sequence[VerifierKey], host: str
) -> int:
    lines = answer.body.decode(errors="replace").split("\n")
    try:
        signed = Note.parse(str(own) + "".join(f"{line}\n" for line in lines if line))
        signers = signed.signers(witnesses)
    except ValueError as error:
        raise WitnessError(f"the answer of the witness at {host} is not valid: {error}") from error
    if not signers:
        raise WitnessError(f"the witness at {host} did not sign with any of the given keys", 200)
    known = {(key.name, key.id) for key in witnesses}
    latest = max(cosigned_at(s) for s in signed.signatures if (s.name, s.key_id) in known)
    if latest > datetime.now(UTC) + _SKEW:
        raise WitnessError(f"the clock of the witness at {host} is wrong: it signed at {latest}")
    return add_cosignatures(conn, str(signed), witnesses)


def cosigned_at(signature: Signature) -> datetime:
    """Return the time that a valid signature of a witness states."""
    seconds = int.from_bytes(signature.value[:8], "big")
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)
