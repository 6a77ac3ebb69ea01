"""A time-stamp authority (RFC 3161): OpenSSL's, behind HTTP."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from support.needs import missing

CONFIG = """
[tsa]
serial = serial
crypto_device = builtin
signer_cert = tsa.pem
signer_key = tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
ess_cert_id_alg = sha256
"""


@dataclass
class TimeStamps:
    """What an authority has in a directory, and what is wrong with its answers, if anything."""

    directory: Path
    name: str
    queries: list[bytes] = field(default_factory=list)
    replay: bytes | None = None
    status: int = 200

    @property
    def root(self) -> Path:
        return self.directory / "root.pem"

    def reply(self, query: bytes) -> bytes:
        self.queries.append(query)
        if self.replay is not None:
            return self.replay
        (self.directory / "query.tsq").write_bytes(query)
        subprocess.run(
            ["openssl", "ts", "-reply", "-config", "tsa.cnf", "-section", "tsa", "-queryfile",
             "query.tsq", "-out", "reply.tsr"],
            check=True, capture_output=True, cwd=self.directory,
        )  # fmt: skip
        return (self.directory / "reply.tsr").read_bytes()


def make_authority(directory: Path, name: str = "Test TSA") -> TimeStamps:
    """Make an authority with a root and a certificate for time-stamps."""
    if shutil.which("openssl") is None:
        missing("no openssl")
    directory.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)

    def certificate(
        subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey
    ) -> x509.Certificate:
        is_root = subject == issuer
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False
            )
            .add_extension(
                x509.KeyUsage(
                    not is_root, False, False, False, False, is_root, is_root, False, False
                ),
                critical=True,
            )
        )
        if not is_root:
            builder = builder.add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True
            )
        return builder.sign(by, hashes.SHA256())

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate(f"{name} root", root_key, f"{name} root", root_key)
    own = certificate(name, key, f"{name} root", root_key)
    for file, made in (("root.pem", root), ("tsa.pem", own)):
        (directory / file).write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / "tsa.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (directory / "tsa.cnf").write_text(CONFIG)
    (directory / "serial").write_text("01\n")
    return TimeStamps(directory, f"{name} root")


@contextmanager
def serving(authority: TimeStamps) -> Iterator[str]:
    """Serve an authority; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/timestamp-query"
            self.send_response(authority.status)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write(authority.reply(query))

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()
