"""Signed notes, checkpoints and co-signatures, as C2SP signed-note, tlog-checkpoint and
tlog-cosignature have them, and the Ed25519 keys that make and check them.

A key is a line of text, as the Go tools of transparency logs write it:

    PRIVATE+KEY+<name>+<key id in hex>+<base64 of 0x01 and 32 bytes>     signs; keep it secret
    <name>+<key id in hex>+<base64 of 0x01 (witness: 0x04) and 32 bytes>  checks; give it to all
"""  # noqa: D205

from __future__ import annotations

import base64
import binascii
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

from pgaudit_wf.errors import MissingExtraError, NoteError, SigningKeyError
from pgaudit_wf.integrity.merkle import HASH_SIZE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ed25519

ED25519, WITNESS = 1, 4
_PRIVATE = "PRIVATE+KEY+"
_NAME = re.compile(r"[^\s+]+")
_MAX_SIGNATURES = 100


def _missing() -> MissingExtraError:
    return MissingExtraError(
        "signatures need one more package: pip install 'pgaudit-wf[integrity]'"
    )


def _private() -> type[ed25519.Ed25519PrivateKey]:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise _missing() from error
    return ed25519.Ed25519PrivateKey


def key_id(name: str, kind: int, public_key: bytes) -> bytes:
    """Return the four bytes by which a signature identifies its key."""
    return sha256(name.encode() + b"\n" + bytes([kind]) + public_key).digest()[:4]


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise SigningKeyError(
            f"{name!r} cannot name a key: it must not contain spaces or +; write it as a host and"
            " path that are yours, such as example.com/audit"
        )
    return name


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteError(f"{text[:60]!r} is not base64") from error


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name; `kind` is 1 for a log's own key and 4 for a witness's."""

    name: str
    kind: int
    public_key: bytes

    @property
    def id(self) -> bytes:
        """The key id, four bytes."""
        return key_id(self.name, self.kind, self.public_key)

    def __str__(self) -> str:
        material = base64.b64encode(bytes([self.kind]) + self.public_key).decode()
        return f"{self.name}+{self.id.hex()}+{material}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read a key from its line of text.

        Raises:
            SigningKeyError: It is not a public key; private keys are refused, lest they spread.
        """
        text = text.strip()
        if text.startswith(_PRIVATE):
            raise SigningKeyError("this is a private key; checking needs the public key only")
        parts = text.split("+", 2)
        try:
            name, told_id, material = parts[0], parts[1], _decode(parts[2])
        except (IndexError, NoteError) as error:
            raise SigningKeyError(
                f"{text[:60]!r} is not a public key; expected <name>+<key id>+<base64>"
            ) from error
        if len(material) != 1 + HASH_SIZE or material[0] not in (ED25519, WITNESS):
            raise SigningKeyError(
                f"the key of {name!r} has an unknown type; only Ed25519 is supported"
            )
        key = cls(_check_name(name), material[0], material[1:])
        if key.id.hex() != told_id:
            raise SigningKeyError(f"the key of {name!r} is damaged: its key id is not {told_id}")
        return key

    def holds(self, message: bytes, signature: bytes) -> bool:
        """Return whether a signature, as a note has it after the key id, is this key's."""
        try:
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives.asymmetric import ed25519
        except ImportError as error:
            raise _missing() from error
        if self.kind == WITNESS:
            if len(signature) != 72:
                return False
            seconds = int.from_bytes(signature[:8], "big")
            # Without a time it would only say that the tree is consistent.
            if not 0 < seconds < 1 << 63:
                return False
            message = b"cosignature/v1\ntime %d\n" % seconds + message
            signature = signature[8:]
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer(Protocol):
    """A signer of checkpoints: a key, or a command."""

    @property
    def verifier(self) -> VerifierKey:
        """The public key that belongs to it."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature, 64 bytes."""
        ...


@dataclass(frozen=True)
class SigningKey:
    """An Ed25519 private key with its name; `seed` is its 32 bytes."""

    name: str
    seed: bytes

    def __repr__(self) -> str:
        return f"SigningKey({self.name!r})"

    @classmethod
    def generate(cls, name: str) -> SigningKey:
        """Make a new key.

        Raises:
            SigningKeyError: The name cannot name a key.
        """
        return cls(_check_name(name), _private().generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> SigningKey:
        """Read a key from its line of text.

        Raises:
            SigningKeyError: It is not a private key. The message contains nothing of the text.
        """
        parts = text.strip().removeprefix(_PRIVATE).split("+", 2)
        try:
            if not text.strip().startswith(_PRIVATE):
                raise NoteError("no private key")
            name, told_id, material = parts[0], parts[1], _decode(parts[2])
        except (IndexError, NoteError):
            raise SigningKeyError("not a private key; pgaudit-wf keygen makes one") from None
        if len(material) != 1 + HASH_SIZE or material[0] != ED25519:
            raise SigningKeyError("the private key has an unknown type; only Ed25519 is supported")
        key = cls(_check_name(name), material[1:])
        if key.verifier.id.hex() != told_id:
            raise SigningKeyError(f"the private key of {name!r} is damaged: its key id is wrong")
        return key

    def __str__(self) -> str:
        material = base64.b64encode(bytes([ED25519]) + self.seed).decode()
        return f"{_PRIVATE}{self.name}+{self.verifier.id.hex()}+{material}"

    @property
    def verifier(self) -> VerifierKey:
        """The public key that belongs to it."""
        private = _private().from_private_bytes(self.seed)
        return VerifierKey(self.name, ED25519, private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature, 64 bytes."""
        return _private().from_private_bytes(self.seed).sign(message)


@dataclass(frozen=True)
class CommandSigner:
    """A command that holds the key: it reads the note's text and prints the signature in base64.

    Attributes:
        command: The command and its arguments.
        verifier: The public key that belongs to it.
        timeout: Seconds that it may take.
    """

    command: Sequence[str]
    verifier: VerifierKey
    timeout: float = 60.0

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature, 64 bytes.

        Raises:
            SigningKeyError: The command failed, or its output is not a signature of that key.
        """
        try:
            done = subprocess.run(
                list(self.command), input=message, capture_output=True, timeout=self.timeout,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SigningKeyError(f"the signing command cannot be run: {error}") from error
        if done.returncode:
            output = done.stderr.decode(errors="replace").strip()[-500:]
            raise SigningKeyError(f"the signing command exited with {done.returncode}: {output}")
        try:
            signature = _decode(done.stdout.decode("ascii", "replace").strip())
        except NoteError as error:
            raise SigningKeyError(
                "the signing command must print base64 and nothing else"
            ) from error
        if not self.verifier.holds(message, signature):
            raise SigningKeyError(
                f"the signing command's output is not a signature of {self.verifier}"
            )
        return signature


@dataclass(frozen=True, slots=True)
class Signature:
    """A line of a note: the signer, the key, and the signature."""

    name: str
    key_id: bytes
    value: bytes

    def __str__(self) -> str:
        return f"— {self.name} {base64.b64encode(self.key_id + self.value).decode()}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A text, which ends with a newline, and its signatures."""

    text: str
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        return f"{self.text}\n{''.join(map(str, self.signatures))}"

    @classmethod
    def parse(cls, note: str) -> Note:
        """Read a note; its signatures are not checked yet.

        Raises:
            NoteError: It is malformed.
        """
        text, separator, lines = note.rpartition("\n\n")
        if not separator or not lines.endswith("\n") or re.search(r"[\x00-\x09\x0b-\x1f]", note):
            raise NoteError(
                "not a signed note: expected a text, a blank line, and lines of signatures"
            )
        signatures = []
        for line in lines[:-1].split("\n"):
            match = re.fullmatch(r"— ([^\s+]+) (\S+)", line)
            value = _decode(match[2]) if match else b""
            if match is None or len(value) < 5:
                raise NoteError(f"{line[:80]!r} is not a signature line")
            signatures.append(Signature(match[1], value[:4], value[4:]))
        if len(signatures) > _MAX_SIGNATURES:
            raise NoteError(f"a note must not have more than {_MAX_SIGNATURES} signatures")
        return cls(f"{text}\n", tuple(signatures))

    def signers(self, keys: Iterable[VerifierKey]) -> list[VerifierKey]:
        """Return the keys that signed the note; other signatures are ignored.

        Raises:
            NoteError: A signature attributed to one of the keys is not valid.
        """
        known = {(key.name, key.id): key for key in keys}
        found = []
        for signature in self.signatures:
            key = known.get((signature.name, signature.key_id))
            if key is None:
                continue
            if not key.holds(self.text.encode(), signature.value):
                raise NoteError(f"the signature of {key.name} is not valid: the text was altered")
            found.append(key)
        return found


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's commitment: its origin (a name), the number of its leaves and the root's hash."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a checkpoint from a note's text; extension lines are skipped.

        Raises:
            NoteError: It is malformed.
        """
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
            raise NoteError(
                "not a checkpoint: expected origin, number of leaves, and hash of the root"
            )
        if not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]):
            raise NoteError(f"{lines[1]!r} is not a number of leaves")
        root = _decode(lines[2])
        if len(root) != HASH_SIZE:
            raise NoteError("the root of a checkpoint must be a SHA-256 hash in base64")
        return cls(lines[0], int(lines[1]), root)


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer) -> Note:
    """Sign a checkpoint.

    Raises:
        SigningKeyError: The signing command failed.
    """
    key = signer.verifier
    signature = signer.sign(checkpoint.text.encode())
    return Note(checkpoint.text, (Signature(key.name, key.id, signature),))


def open_checkpoint(note: str, keys: Sequence[VerifierKey]) -> Checkpoint:
    """Read a signed checkpoint, and check that one of the log's keys signed it.

    Raises:
        NoteError: It is malformed, or no log key among `keys` signed it.
    """
    parsed = Note.parse(note)
    if not any(key.kind == ED25519 for key in parsed.signers(keys)):
        signers = ", ".join(f"{s.name}+{s.key_id.hex()}" for s in parsed.signatures)
        raise NoteError(f"the checkpoint is signed by {signers}, not by any of the given keys")
    return Checkpoint.parse(parsed.text)
