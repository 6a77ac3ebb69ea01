"""Channels for messages: SMTP, signed webhooks, lines of the log."""

from __future__ import annotations

import contextlib
import json
import re
import smtplib
import ssl
import time
from collections.abc import Mapping
from email.errors import MessageError
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pgaudit_wf.errors import AlertSettingsError
from pgaudit_wf.jobs.delivery import Deadline, DeliveryError, post, sign
from pgaudit_wf.jobs.service import LOGGER

if TYPE_CHECKING:
    from pgaudit_wf.alerts.message import Alert, Templates
    from pgaudit_wf.alerts.settings import SmtpSettings, WebhookSettings

_PLACE = "check PGAUDIT_WF_SMTP_HOST, PGAUDIT_WF_SMTP_PORT and PGAUDIT_WF_SMTP_TLS"


class Channel(Protocol):
    """A way to send messages; used by one thread at a time."""

    timeout: float
    """The longest, in seconds, that `send` may take."""

    def send(self, alert: Alert) -> None:
        """Send a message; raise `DeliveryError` unless it was accepted."""

    def close(self) -> None:
        """Close connections; `send` opens new ones."""


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
        deadline = Deadline(self.timeout)
        try:
            smtp = self._connected(deadline)
            with deadline.over(smtp):
                smtp.send_message(message, self._settings.sender, [alert.recipient])
        except (OSError, smtplib.SMTPException) as error:
            self.close()
            raise _mail_error(error, deadline.passed, alert.recipient) from error

    def _connected(self, deadline: Deadline) -> smtplib.SMTP:
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
            deadline = Deadline(2)
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
        status, retry_after = post(alert.recipient, body, headers, self.timeout, self._context)
        if not 200 <= status < 300:
            raise DeliveryError(
                f"receiver answered {status}", final=status == 410, retry_after=retry_after
            )

    def close(self) -> None:
        """Do nothing: each request has a connection of its own."""


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


class LogChannel:
    """Writes events to the worker's own log, one per line, for log collectors."""

    timeout = 1.0

    def send(self, alert: Alert) -> None:
        """Write an event."""
        fields = {"stream": alert.recipient, "alert": alert.key, **payload(alert.events[0])}
        LOGGER.warning("alert", extra={"job": "alerts", "fields": fields})

    def close(self) -> None:
        """Do nothing: the log stays open."""
