"""Time-stamps on checkpoints (RFC 3161): an authority signs that it has seen one, and when.

What is stamped is the note with the log's own signatures, so `openssl ts -verify` checks it, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING

from pgaudit_wf.errors import MissingExtraError, NoteError, PushError, translated
from pgaudit_wf.integrity.note import Checkpoint
from pgaudit_wf.integrity.post import host_of, post
from pgaudit_wf.integrity.witness import log_part
from pgaudit_wf.trail.statement import Connection

if TYPE_CHECKING:
    from cryptography import x509


@dataclass(frozen=True)
class Authority:
    """A time-stamp authority.

    Attributes:
        name: The common name of its root.
        certificates: Its root certificate first, and such intermediate ones as its answers lack.
    """

    name: str
    certificates: tuple[x509.Certificate, ...]

    @classmethod
    def parse(cls, pem: str) -> Authority:
        """Read the certificates of an authority, in PEM, the root first.

        Raises:
            NoteError: There is none.
        """
        try:
            from cryptography import x509
        except ImportError as error:
            raise _missing() from error
        try:
            certificates = x509.load_pem_x509_certificates(pem.encode())
        except ValueError as error:
            raise NoteError(
                "not the certificates of a time-stamp authority; expected PEM, the root first"
            ) from error
        subject = certificates[0].subject
        names = subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        name = str(names[0].value) if names else subject.rfc4514_string()
        return cls(name, tuple(certificates))


def _missing() -> MissingExtraError:
    return MissingExtraError(
        "time-stamps need one more package: pip install 'pgaudit-wf[timestamp]'"
    )


def check_timestamp(
    note: str, response: bytes, authority: Authority, nonce: int | None = None
) -> datetime:
    """Return the time at which an authority stamped a checkpoint.

    Args:
        note: The checkpoint.
        response: The authority's response (RFC 3161, section 2.4.2), in DER.
        authority: The authority.
        nonce: What the request had in it.

    Raises:
        NoteError: The response is malformed, or not this authority's time-stamp on the checkpoint.
    """
    try:
        from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response
    except ImportError as error:
        raise _missing() from error
    try:
        decoded = decode_timestamp_response(response)
        VerifierBuilder(roots=list(authority.certificates), nonce=nonce).build().verify_message(
            decoded, str(log_part(note)).encode()
        )
        stamped_at: datetime = decoded.tst_info.gen_time
    except VerificationError as error:
        raise NoteError(f"the time-stamp of {authority.name} is not valid: {error}") from error
    except (ValueError, TypeError) as error:
        raise NoteError(f"not a time-stamp: {error}") from error
    return stamped_at if stamped_at.tzinfo else stamped_at.replace(tzinfo=UTC)


def stamped_by(
    note: str, response: bytes, authorities: Sequence[Authority], nonce: int | None = None
) -> tuple[Authority, datetime]:
    """Return which of several authorities stamped a checkpoint, and when.

    Args:
        note: The checkpoint.
        response: The authority's response (RFC 3161, section 2.4.2), in DER.
        authorities: The authorities.
        nonce: What the request had in it.

    Raises:
        NoteError: The response is malformed, or no valid time-stamp of any of them.
    """
    failures = []
    for authority in authorities:
        try:
            return authority, check_timestamp(note, response, authority, nonce)
        except NoteError as error:
            failures.append(str(error))
    raise NoteError("; ".join(failures))


def is_by_others(note: str, response: bytes, authorities: Sequence[Authority]) -> bool:
    """Return whether a response is about a checkpoint, by none of these authorities.

    Args:
        note: The checkpoint.
        response: The response, which may be anything.
        authorities: The authorities.
    """
    from cryptography import x509
    from rfc3161_client import decode_timestamp_response

    try:
        decoded = decode_timestamp_response(response)
        imprint = decoded.tst_info.message_imprint.message
        issuers = {
            x509.load_der_x509_certificate(certificate).issuer
            for certificate in decoded.signed_data.certificates
        }
    except (ValueError, TypeError):
        return False
    trusted = {certificate.subject for one in authorities for certificate in one.certificates}
    return imprint == sha256(str(log_part(note)).encode()).digest() and not issuers & trusted


def stamp(conn: Connection, note: str, url: str, authorities: Sequence[Authority]) -> datetime:
    """Have an authority stamp a checkpoint, store its response, and return the time in it.

    Args:
        conn: The owner's connection.
        note: The signed checkpoint, of this log.
        url: The authority's address.
        authorities: Those that are trusted; the response must be of one of them.

    Raises:
        PushError: No authority is given, or the response is not a valid time-stamp by one of them.
        NoteError: The checkpoint is malformed.
    """
    try:
        from rfc3161_client import HashAlgorithm, TimestampRequestBuilder
    except ImportError as error:
        raise _missing() from error
    if not authorities:
        raise PushError("a time-stamp is only kept if its authority is given: --tsa FILE")
    own = str(log_part(note))
    request = (
        TimestampRequestBuilder()
        .data(own.encode())
        .hash_algorithm(HashAlgorithm.SHA256)
        .nonce(nonce=True)
        .cert_request(cert_request=True)
        .build()
    )
    answer = post(url, request.as_bytes(), "application/timestamp-query")
    if answer.status != 200:
        raise PushError(f"the time-stamp authority at {host_of(url)} answered {answer.status}")
    try:
        _, stamped_at = stamped_by(own, answer.body, authorities, request.nonce)
    except NoteError as error:
        raise PushError(f"the answer of {host_of(url)} is not kept: {error}") from error
    with translated():
        conn.execute(
            "insert into pgaudit_wf.log_timestamp (size, response_hash, response)"
            " values (%(size)s, sha256(%(response)s), %(response)s) on conflict do nothing",
            {"size": Checkpoint.parse(log_part(note).text).size, "response": answer.body},
        )
    return stamped_at
