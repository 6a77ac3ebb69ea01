"""Settings of channels, from environment variables; secrets stay outside the database."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from pgaudit_wf.alerts.channels import Channel, LogChannel, SmtpChannel, WebhookChannel
from pgaudit_wf.alerts.message import Templates
from pgaudit_wf.errors import AlertSettingsError
from pgaudit_wf.jobs.delivery import signing_key

_PORTS = {"starttls": 587, "implicit": 465, "none": 25}


@dataclass(frozen=True)
class SmtpSettings:
    """How to reach the mail server.

    Attributes:
        host: Name or address of the server.
        sender: The sender's address.
        tls: "starttls" (never without it), "implicit" (TLS from the first byte) or "none".
        port: Its port; 0: 587, 465 or 25 by `tls`.
        user: User name to authenticate with; None: no authentication.
        password: The password for it.
        ca_file: Certificates to trust instead of the system's.
        timeout: Seconds for a whole message, from connecting to the server's last reply.
    """

    host: str
    sender: str
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    port: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.tls not in _PORTS:
            raise AlertSettingsError("the TLS mode must be starttls, implicit or none")
        if self.user is not None and self.password is None:
            raise AlertSettingsError("the mail server has a user name but no password")
        if self.user is not None and self.tls == "none" and not _is_loopback(self.host):
            raise AlertSettingsError("a password for the mail server requires TLS")
        if self.sender.count("@") != 1 or any(c.isspace() or c in "<>," for c in self.sender):
            raise AlertSettingsError("the sender must be a plain e-mail address")
        if not self.port:
            object.__setattr__(self, "port", _PORTS[self.tls])


@dataclass(frozen=True)
class WebhookSettings:
    """The signing secrets of webhooks, as `whsec_` and base64 (Standard Webhooks).

    Attributes:
        secrets: The secrets of each URL; "*" is for all other URLs. Each request is signed
            with all of its URL's, so that one can be replaced while both sides know both.
        timeout: Seconds for a whole request.
        ca_file: Certificates to trust instead of the system's.
    """

    secrets: Mapping[str, tuple[bytes, ...]] = field(repr=False)
    timeout: float = 20.0
    ca_file: Path | None = None


def channels_from(
    environment: Mapping[str, str], templates: Templates, timeout: float = 30.0
) -> dict[str, Channel]:
    """Return the channels configured in the environment; the log is always among them.

    Args:
        environment: Variables as docs/how-to/alerts.md lists them, such as `os.environ`.
        templates: The texts of e-mails.
        timeout: Seconds that sending a message may take.

    Raises:
        AlertSettingsError: A variable has an invalid value.
    """
    channels: dict[str, Channel] = {"log": LogChannel()}
    smtp = _smtp(environment, timeout)
    if smtp is not None:
        channels["smtp"] = SmtpChannel(smtp, templates)
    webhook = _webhook(environment, timeout)
    if webhook is not None:
        channels["webhook"] = WebhookChannel(webhook)
    return channels


def _smtp(environment: Mapping[str, str], timeout: float) -> SmtpSettings | None:
    host = environment.get("PGAUDIT_WF_SMTP_HOST")
    if not host:
        return None
    sender = environment.get("PGAUDIT_WF_SMTP_FROM")
    if not sender:
        raise AlertSettingsError("set PGAUDIT_WF_SMTP_FROM to the sender's address")
    port = environment.get("PGAUDIT_WF_SMTP_PORT", "0")
    if not port.isdecimal() or int(port) > 65535:
        raise AlertSettingsError("PGAUDIT_WF_SMTP_PORT is not a port number")
    tls = environment.get("PGAUDIT_WF_SMTP_TLS", "starttls")
    return SmtpSettings(
        host,
        sender,
        cast(Literal["starttls", "implicit", "none"], tls),
        int(port),
        environment.get("PGAUDIT_WF_SMTP_USER") or None,
        _secret(environment, "PGAUDIT_WF_SMTP_PASSWORD"),
        _path(environment, "PGAUDIT_WF_SMTP_CA_FILE"),
        timeout,
    )


def _webhook(environment: Mapping[str, str], timeout: float) -> WebhookSettings | None:
    secrets: dict[str, tuple[bytes, ...]] = {}
    one = _secret(environment, "PGAUDIT_WF_WEBHOOK_SECRET")
    if one:
        secrets["*"] = tuple(map(_key, one.split()))
    path = _path(environment, "PGAUDIT_WF_WEBHOOK_SECRETS_FILE")
    if path is not None:
        try:
            by_url = json.loads(_read(path, "PGAUDIT_WF_WEBHOOK_SECRETS_FILE"))
            secrets |= {url: tuple(map(_key, text.split())) for url, text in by_url.items()}
        except (ValueError, AttributeError):
            raise AlertSettingsError(
                "the file of PGAUDIT_WF_WEBHOOK_SECRETS_FILE must be a JSON object of URLs and"
                " their secrets"
            ) from None
    if not secrets:
        return None
    return WebhookSettings(secrets, timeout, _path(environment, "PGAUDIT_WF_WEBHOOK_CA_FILE"))


def _key(secret: str) -> bytes:
    try:
        return signing_key(secret)
    except ValueError as error:
        raise AlertSettingsError(str(error)) from None


def _secret(environment: Mapping[str, str], name: str) -> str | None:
    path = _path(environment, f"{name}_FILE")
    if path is not None:
        return _read(path, f"{name}_FILE").rstrip("\r\n")
    return environment.get(name) or None


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    return Path(environment[name]) if environment.get(name) else None


def _read(path: Path, name: str) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AlertSettingsError(
            f"the file that {name} names cannot be read: {type(error).__name__}"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
