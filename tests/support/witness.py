"""A witness of transparency logs, written from C2SP tlog-witness and tlog-cosignature alone.

It shares no code with the package: what both misread would look right.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)


class Refusal(Exception):  # noqa: N818 - an answer of the protocol
    def __init__(self, status: int, body: str = "", content_type: str = "text/plain") -> None:
        super().__init__(status)
        self.status, self.body, self.content_type = status, body, content_type


@dataclass(frozen=True)
class Request:
    """The body of an add-checkpoint request."""

    old_size: int
    proof: list[bytes]
    origin: str
    size: int
    root: bytes
    text: str
    signatures: list[tuple[str, bytes, bytes]]

    @classmethod
    def parse(cls, body: bytes) -> Request:
        try:
            first, _, note = body.decode().partition("\n\n")
            old, *proof = first.split("\n")
            size = re.fullmatch(r"old (0|[1-9][0-9]*)", old)
            text, _, lines = note.rpartition("\n\n")
            origin, tree_size, root, *_extensions = text.split("\n")
            if size is None or len(proof) > 63 or not lines.endswith("\n"):
                raise Refusal(400)
            if not re.fullmatch("0|[1-9][0-9]*", tree_size):
                raise Refusal(400)
            signatures = []
            for line in lines[:-1].split("\n"):
                dash, name, value = line.split(" ")
                raw = base64.b64decode(value, validate=True)
                if dash != "—" or len(raw) < 5:
                    raise Refusal(400)
                signatures.append((name, raw[:4], raw[4:]))
            return cls(
                int(size[1]), [base64.b64decode(line, validate=True) for line in proof], origin,
                int(tree_size), base64.b64decode(root, validate=True), f"{text}\n", signatures,
            )  # fmt: skip
        except (ValueError, UnicodeDecodeError) as error:
            raise Refusal(400) from error


def proven_root(
    old: int, new: int, whole: bool, old_root: bytes, proof: list[bytes], roots: list[bytes]
) -> bytes:
    """Take SUBPROOF of RFC 6962, section 2.1.2, apart: return the new root, append old ones."""
    if old == new:
        top = old_root if whole else proof.pop(0)
        roots.append(top)
        return top
    split = 1
    while split * 2 < new:
        split *= 2
    last = proof.pop()
    if old <= split:
        left = proven_root(old, split, whole, old_root, proof, roots)
        return hashlib.sha256(b"\x01" + left + last).digest()
    right = proven_root(old - split, new - split, False, old_root, proof, roots)
    roots[-1] = hashlib.sha256(b"\x01" + last + roots[-1]).digest()
    return hashlib.sha256(b"\x01" + last + right).digest()


def is_continued(old: int, new: int, old_root: bytes, root: bytes, proof: Sequence[bytes]) -> bool:
    rest = list(proof)
    roots: list[bytes] = []
    try:
        found = proven_root(old, new, True, old_root, rest, roots)
    except IndexError:
        return False
    return not rest and found == root and roots == [old_root]


@dataclass
class Witness:
    """A witness with its name, its key, and the logs that it knows: origin to (key id, key)."""

    name: str
    seed: bytes = b"w" * 32
    logs: dict[str, tuple[str, bytes, bytes]] = field(default_factory=dict)
    seen: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    clock: float | None = None
    # Lines that somebody else added to the answer.
    more: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @property
    def _id(self) -> bytes:
        public = self._private.public_key().public_bytes_raw()
        return hashlib.sha256(self.name.encode() + b"\n\x04" + public).digest()[:4]

    @property
    def vkey(self) -> str:
        material = b"\x04" + self._private.public_key().public_bytes_raw()
        return f"{self.name}+{self._id.hex()}+{base64.b64encode(material).decode()}"

    def know(self, vkey: str) -> None:
        """Configure a log by its verifier key, whose name is its origin."""
        name, number, material = vkey.split("+", 2)
        self.logs[name] = (name, bytes.fromhex(number), base64.b64decode(material)[1:])

    def add_checkpoint(self, body: bytes) -> str:
        request = Request.parse(body)
        self.requests.append(request)
        if request.origin not in self.logs:
            raise Refusal(404)
        name, number, key = self.logs[request.origin]
        trusted = [value for n, i, value in request.signatures if (n, i) == (name, number)]
        try:
            for value in trusted:
                Ed25519PublicKey.from_public_bytes(key).verify(value, request.text.encode())
        except InvalidSignature as error:
            raise Refusal(403) from error
        if not trusted:
            raise Refusal(403)
        if request.old_size > request.size:
            raise Refusal(400)
        with self.lock:
            size, root = self.seen.get(request.origin, (0, hashlib.sha256(b"").digest()))
            if request.old_size != size:
                raise Refusal(409, f"{size}\n", "text/x.tlog.size")
            if request.size == 0 and request.root != hashlib.sha256(b"").digest():
                raise Refusal(422)
            if size == 0:
                holds = not request.proof
            elif size == request.size:
                holds = request.root == root and not request.proof
            else:
                holds = is_continued(size, request.size, root, request.root, request.proof)
            if not holds:
                raise Refusal(422)
            self.seen[request.origin] = (request.size, request.root)
        at = int(time.time() if self.clock is None else self.clock)
        signed = self._private.sign(f"cosignature/v1\ntime {at}\n{request.text}".encode())
        line = base64.b64encode(self._id + at.to_bytes(8, "big") + signed).decode()
        return f"— {self.name} {line}\n{self.more}"


@contextmanager
def serving(witness: Witness) -> Iterator[str]:
    """Serve a witness; yields its submission prefix."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                if self.path != "/w/add-checkpoint":
                    raise Refusal(404)
                self.answer(200, witness.add_checkpoint(body), "text/plain; charset=utf-8")
            except Refusal as refusal:
                self.answer(refusal.status, refusal.body, refusal.content_type)

        def answer(self, status: int, body: str, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/w"
        server.shutdown()
        thread.join()
