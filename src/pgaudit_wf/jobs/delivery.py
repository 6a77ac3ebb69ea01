"""Sending something to another system: errors, deadlines, requests, signatures."""

from __future__ import annotations

import base64
import binascii
import contextlib
import email.utils
import hashlib
import hmac
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import urlsplit


class Connected(Protocol):
    """Whatever has a socket, such as an `HTTPConnection`."""

    sock: Any


class DeliveryError(Exception):
    """A message was not sent, or it is unknown whether it was.

    The text is stored and logged: it contains type and code, but nothing that a server wrote.

    Attributes:
        final: Retrying is useless.
        unreachable: The channel failed, not this message.
        retry_after: Seconds after which the receiver asked for a retry, or None.
    """

    def __init__(
        self,
        text: str,
        *,
        final: bool = False,
        unreachable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(text)
        self.final = final
        self.unreachable = unreachable
        self.retry_after = retry_after


class Deadline:
    """Closes a connection after a time, even if the other side keeps it busy."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self.passed = False

    def left(self) -> float:
        """Return the seconds that are left, at least a tenth."""
        return max(0.1, self._ends - time.monotonic())

    @contextmanager
    def over(self, connection: Connected) -> Iterator[None]:
        """Shut a connection's socket, whichever it is by then, when the time has passed."""

        def cut() -> None:
            self.passed = True
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self.left(), cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def post(
    url: str, body: bytes, headers: Mapping[str, str], timeout: float, context: ssl.SSLContext
) -> tuple[int, float | None]:
    """Post to a URL; return the status and the seconds after which the receiver wants a retry.

    Args:
        url: An https URL, or one of http.
        body: The request's body.
        headers: Its headers.
        timeout: Seconds for the whole request, from connecting to the answer's last byte.
        context: The certificates to trust.

    Raises:
        DeliveryError: No answer came.
    """
    parts = urlsplit(url)
    deadline = Deadline(timeout)
    connection: http.client.HTTPConnection
    try:
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(
                parts.netloc, timeout=deadline.left(), context=context
            )
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=deadline.left())
        with contextlib.closing(connection), deadline.over(connection):
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return response.status, _retry_after(response.getheader("Retry-After"))
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        late = deadline.passed or isinstance(error, TimeoutError)
        kind = "took too long" if late else type(error).__name__
        raise DeliveryError(f"receiver: {kind}") from error


def _retry_after(value: str | None) -> float | None:
    if value is None:
        return None
    if value.isdecimal():
        return float(value[:9])
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def signing_key(secret: str) -> bytes:
    """Return the key that a webhook's secret stands for (Standard Webhooks).

    Args:
        secret: `whsec_` and 24 to 64 bytes in base64.

    Raises:
        ValueError: It is something else; the message says how to make one.
    """
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise ValueError(
            "a webhook secret must be whsec_ and 24 to 64 random bytes in base64:"
            ' echo "whsec_$(openssl rand -base64 32)"'
        )
    return key


def sign(keys: tuple[bytes, ...], message_id: str, at: int, body: bytes) -> dict[str, str]:
    """Return the headers of a request, with a signature by each key (Standard Webhooks, v1).

    Args:
        keys: The secrets.
        message_id: The same when the request is repeated; without a full stop.
        at: Unix time of this attempt, in seconds.
        body: The request's body, byte for byte.
    """
    signed = f"{message_id}.{at}.".encode() + body
    signatures = (hmac.new(key, signed, hashlib.sha256).digest() for key in keys)
    return {
        "content-type": "application/json",
        "user-agent": "pgaudit-wf",
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(
            f"v1,{base64.b64encode(signature).decode()}" for signature in signatures
        ),
    }
