"""Channels for messages: SMTP, signed webhooks, lines of the log."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import hmac
import http.client
import json
import re
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.errors import MessageError
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from pgaudit_wf.errors import AlertSettingsError
from pgaudit_wf.jobs.service import LOGGER

if TYPE_CHECKING:
    from pgaudit_wf.alerts.message import Alert, Templates
    from pgaudit_wf.alerts.settings import SmtpSettings, WebhookSettings

_PLACE = "check PGAUDIT_WF_SMTP_HOST, PGAUDIT_WF_SMTP_PORT and PGAUDIT_WF_SMTP_TLS"


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


class Channel(Protocol):
    """A way to send messages; used by one thread at a time."""

    timeout: float
    """The longest, in seconds, that `send` may take."""

    def send(self, alert: Alert) -> None:
        """Send a message; raise `DeliveryError` unless it was accepted."""

    def close(self) -> None:
        """Close connections; `send` opens new ones."""


class _Deadline:
    """Closes a connection after a time, even if the other side keeps it busy."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self.passed = False

    def left(self) -> float:
        return max(0.1, self._ends - time.monotonic())

    @contextmanager
    def over(self, connection: smtplib.SMTP | http.client.HTTPConnection) -> Iterator[None]:
        def cut() -> None:
            self.passed = True
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]

        timer = threading.Timer(self.left(), cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise AlertSettingsError(f"{ca_file} contains no certificates") from error


class SmtpChannel:
    """Sends mails, several over one connection."""

    def __init__(self, settings: SmtpSettings, templates: Templates) -> None:
        self.timeout = settings.timeout
        self._settings = settings
        self._templates = templates
        self._context = _tls_context(settings.ca_file)
        self._smtp: smtplib.SMTP | None = None

    def send(self, alert: Alert) -> None:
        """Send an alert; a repeat has the same Message-ID."""
        try:
            message = self._templates.email(alert, self._settings.sender)
        except AlertSettingsError as error:
            raise DeliveryError("a template failed for this event") from error
        except (ValueError, IndexError, MessageError) as error:
            raise DeliveryError("this is not a valid e-mail address", final=True) from error
        deadline = _Deadline(self.timeout)
        try:
            smtp = self._connected(deadline)
            with deadline.over(smtp):
                smtp.send_message(message, self._settings.sender, [alert.recipient])
        except (OSError, smtplib.SMTPException) as error:
            self.close()
            raise _mail_error(error, deadline.passed, alert.recipient) from error

    def _connected(self, deadline: _Deadline) -> smtplib.SMTP:
        if self._smtp is not None:
            with deadline.over(self._smtp), contextlib.suppress(OSError, smtplib.SMTPException):
                if self._smtp.noop()[0] == 250:
                    return self._smtp
            self.close()
        settings = self._settings
        context = self._context
        if settings.tls == "implicit":
            smtp: smtplib.SMTP = smtplib.SMTP_SSL(timeout=deadline.left(), context=context)
            # The constructor sets it only when it connects; the certificate is checked against it.
            smtp._host = settings.host  # type: ignore[attr-defined]
        else:
            smtp = smtplib.SMTP(timeout=deadline.left())
            smtp._host = settings.host  # type: ignore[attr-defined]
        try:
            with deadline.over(smtp):
                code, _ = smtp.connect(settings.host, settings.port)
                if code != 220:
                    raise smtplib.SMTPConnectError(code, b"")
                if settings.tls == "starttls":
                    smtp.starttls(context=context)
                if settings.user is not None and settings.password is not None:
                    smtp.login(settings.user, settings.password)
        except BaseException:
            smtp.close()
            raise
        self._smtp = smtp
        return smtp

    def close(self) -> None:
        """Close the connection to the server."""
        smtp, self._smtp = self._smtp, None
        if smtp is not None:
            deadline = _Deadline(2)
            with deadline.over(smtp), contextlib.suppress(OSError, smtplib.SMTPException):
                smtp.quit()
            smtp.close()


def _mail_error(error: Exception, too_late: bool, recipient: str) -> DeliveryError:
    kind = type(error).__name__
    if isinstance(error, smtplib.SMTPNotSupportedError) and not recipient.isascii():
        return DeliveryError("the mail server does not support international addresses")
    if too_late:
        return DeliveryError(f"the mail server took too long; {_PLACE}", unreachable=True)
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        code, text = next(iter(error.recipients.values()))
        return DeliveryError(f"recipient refused: {_reply(code, text)}", final=500 <= code < 600)
    if isinstance(error, smtplib.SMTPDataError):
        return DeliveryError(f"message refused: {_reply(error.smtp_code, error.smtp_error)}")
    if isinstance(error, smtplib.SMTPResponseException):
        return DeliveryError(
            f"{kind}: {_reply(error.smtp_code, error.smtp_error)}{_setting(error)}",
            unreachable=True,
        )
    return DeliveryError(f"mail server: {kind}{_setting(error)}", unreachable=True)


def _setting(error: Exception) -> str:
    """Return the settings to look at first, to be added to a message; "" if none is likely."""
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return "; check PGAUDIT_WF_SMTP_USER and PGAUDIT_WF_SMTP_PASSWORD"
    if isinstance(error, smtplib.SMTPSenderRefused):
        return "; check PGAUDIT_WF_SMTP_FROM"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "; check PGAUDIT_WF_SMTP_HOST and PGAUDIT_WF_SMTP_CA_FILE"
    if isinstance(error, smtplib.SMTPNotSupportedError | ssl.SSLError):
        return "; check PGAUDIT_WF_SMTP_TLS"
    if isinstance(error, OSError) and not isinstance(error, smtplib.SMTPResponseException):
        return f"; {_PLACE}"
    return ""


def _reply(code: int, text: bytes | str) -> str:
    """Return a server's reply without its text, which may quote addresses and more."""
    words = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    enhanced = re.match(r"[245]\.\d{1,3}\.\d{1,3}\b", words)
    return f"{code} {enhanced[0]}" if enhanced else str(code)


class WebhookChannel:
    """Posts events as Standard Webhooks, signed with the receiver's secrets."""

    def __init__(self, settings: WebhookSettings) -> None:
        self.timeout = settings.timeout
        self._secrets = settings.secrets
        self._context = _tls_context(settings.ca_file)

    def send(self, alert: Alert) -> None:
        """Post an event; a repeat has the same webhook-id."""
        keys = self._secrets.get(alert.recipient) or self._secrets.get("*")
        if not keys:
            raise DeliveryError("no signing secret is configured for this URL")
        body = json.dumps(payload(alert.events[0])).encode()
        headers = sign(keys, f"alert_{alert.key}", int(time.time()), body)
        status, retry_after = self._post(alert.recipient, body, headers)
        if not 200 <= status < 300:
            raise DeliveryError(
                f"receiver answered {status}", final=status == 410, retry_after=retry_after
            )

    def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, float | None]:
        parts = urlsplit(url)
        deadline = _Deadline(self.timeout)
        connection: http.client.HTTPConnection
        try:
            if parts.scheme == "https":
                connection = http.client.HTTPSConnection(
                    parts.netloc, timeout=deadline.left(), context=self._context
                )
            else:
                connection = http.client.HTTPConnection(parts.netloc, timeout=deadline.left())
            with contextlib.closing(connection), deadline.over(connection):
                path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                return response.status, _retry_after(response.getheader("Retry-After"))
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            kind = "took too long" if deadline.passed else type(error).__name__
            raise DeliveryError(f"receiver: {kind}") from error

    def close(self) -> None:
        """Do nothing: each request has a connection of its own."""


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


def payload(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event for a webhook or the log: who, what, where; never the diff."""
    return {
        "type": event["action"],
        "timestamp": event["occurred_at"],
        "data": {
            "event_id": event["id"],
            "outcome": event["outcome"],
            "actor": {
                "id": event["actor_id"],
                "name": event["actor_name"],
                "type": event["actor_type"],
            },
            "on_behalf_of": event["on_behalf_of"],
            "client": event["client"],
            "org": {"id": event["org_id"], "name": event["org_label"]},
            "resource": {
                "type": event["resource_type"],
                "id": event["resource_id"],
                "name": event["resource_label"],
            },
            "auth_method": event["auth_method"],
            "ip": event["ip"],
            "country": event["country"],
            "user_agent": event["user_agent"],
            "correlation_id": event["correlation_id"],
            "db_user": event["db_user"],
            "application_name": event["application_name"],
            "attested": event["attested"],
        },
    }


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


class LogChannel:
    """Writes events to the worker's own log, one per line, for log collectors."""

    timeout = 1.0

    def send(self, alert: Alert) -> None:
        """Write an event."""
        fields = {"stream": alert.recipient, "alert": alert.key, **payload(alert.events[0])}
        LOGGER.warning("alert", extra={"job": "alerts", "fields": fields})

    def close(self) -> None:
        """Do nothing: the log stays open."""
