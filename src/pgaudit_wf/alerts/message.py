"""Messages: their events, sanitized, and their templates."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import localtime
from pathlib import Path
from typing import Any

import jinja2

from pgaudit_wf.errors import AlertSettingsError

SHOWN = 50
"""How many events a digest lists; the others are only counted."""

_TEMPLATES = ("subject.txt", "body.txt", "body.html")
# Control characters, line separators, and characters that reverse or hide text.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]+"
)
_LONGEST = 200
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def harmless(value: object, longest: int = _LONGEST) -> str:
    """Return a value as text on one line that is inert in mail programs.

    Users choose names, so they may contain line breaks, reversed text, or links: anything but plain
    text is removed, links are defused, and text that mail programs would decode is kept from being
    decoded.
    """
    text = _UNSAFE.sub(" ", str(value)).strip()
    text = text.replace("://", "[:]//").replace("=?", "= ?")
    return text if len(text) <= longest else text[: longest - 1] + "…"


@dataclass(frozen=True)
class Alert:
    """A message to send: one event, or a digest of several, for one recipient.

    Attributes:
        channel: "smtp", "webhook" or "log".
        recipient: E-mail address, URL or name of a log stream.
        key: An id made from the events and the recipient; a repeat has the same.
        events: The events as `pgaudit_wf._alert_event` returns them.
        total: How many events it represents; `events` may contain fewer.
    """

    channel: str
    recipient: str
    key: str
    events: Sequence[Mapping[str, Any]]
    total: int

    @property
    def is_digest(self) -> bool:
        """Whether it represents several events."""
        return self.total > 1


class Templates:
    """The texts of e-mails: `alert` for an event and `digest` for several.

    For each there are NAME.subject.txt, NAME.body.txt and NAME.body.html, in Jinja2. They get
    `events` (a list), `event` (its first), `total`, `more` (how many are not listed) and
    `recipient`; values are plain text on one line already, and escaped in HTML.

    Args:
        directory: Your own templates; missing ones are taken from this package.
        pages: The address under which the pages are mounted, for links to events; "": no links.

    Raises:
        AlertSettingsError: A template cannot be read or fails for a sample event.
    """

    def __init__(self, directory: Path | None = None, pages: str = "") -> None:
        if pages and not re.match(r"https?://[^/\s]+[^\s?#]*$", pages):
            raise AlertSettingsError(
                "the address of the pages must be a URL such as https://audit.example.com/security"
            )
        self._pages = pages
        own = [] if directory is None else [jinja2.FileSystemLoader(directory)]
        if directory is not None and not directory.is_dir():
            raise AlertSettingsError(f"the directory of templates {directory} is not a directory")
        self._environment = jinja2.Environment(
            loader=jinja2.ChoiceLoader([*own, jinja2.PackageLoader("pgaudit_wf.alerts")]),
            autoescape=jinja2.select_autoescape(["html"]),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        for total in (1, SHOWN + 1):
            self._render(Alert("smtp", "you@example.com", "0", [SAMPLE], total))

    def _render(self, alert: Alert) -> tuple[str, ...]:
        events = [_shown(event, self._pages) for event in alert.events[:SHOWN]]
        values = {
            "events": events,
            "event": events[0],
            "total": alert.total,
            "more": alert.total - len(events),
            "recipient": alert.recipient,
        }
        kind = "digest" if alert.is_digest else "alert"
        try:
            return tuple(
                self._environment.get_template(f"{kind}.{name}").render(values)
                for name in _TEMPLATES
            )
        except (jinja2.TemplateError, UnicodeDecodeError, TypeError) as error:
            raise AlertSettingsError(f"a template for {kind} failed: {error}") from error

    def email(self, alert: Alert, sender: str) -> EmailMessage:
        """Return an alert as an e-mail.

        Args:
            alert: The alert.
            sender: The address it comes from; its domain is part of the Message-ID.
        """
        subject, text, html = self._render(alert)
        domain = sender.rpartition("@")[2]
        message = EmailMessage(SMTP)
        message["Message-ID"] = f"<{alert.key}@{domain}>"
        message["From"] = Address("Security alerts", addr_spec=sender)
        message["To"] = Address(addr_spec=alert.recipient)
        message["Subject"] = harmless(subject)
        message["Date"] = localtime()
        # Prevents out-of-office replies (RFC 3834).
        message["Auto-Submitted"] = "auto-generated"
        message["X-Pgaudit-Wf-Events"] = str(alert.total)
        message.set_content(text, cte="quoted-printable")
        message.add_alternative(html, subtype="html", cte="quoted-printable")
        return message


def event_link(event: Mapping[str, Any], pages: str) -> str:
    """Return the address of an event's page; "" without pages, or for a sample."""
    if not pages or not event["id"]:
        return ""
    at = datetime.fromisoformat(str(event["occurred_at"]))
    # As pgaudit_wf._trail_cursor() makes it.
    position = f"{(at - _EPOCH) // timedelta(microseconds=1)} {event['id']}"
    cursor = base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")
    return f"{pages.rstrip('/')}/activity/{cursor}"


def _shown(event: Mapping[str, Any], pages: str) -> dict[str, str]:
    """Return an event for templates: each value as a harmless text, "" for None."""
    shown = {name: "" if value is None else harmless(value) for name, value in event.items()}
    shown["link"] = event_link(event, pages)
    at = datetime.fromisoformat(str(event["occurred_at"]))
    shown["time"] = f"{at:%Y-%m-%d %H:%M:%S} UTC"
    name, email = shown["actor_name"] or shown["actor_id"], shown["actor_email"]
    if name and email and name != email:
        shown["actor"] = f"{name} ({email})"
    else:
        shown["actor"] = name or email or f"database login {shown['db_user']}"
    if shown["on_behalf_of"]:
        shown["actor"] += f" for {shown['on_behalf_of']}"
    shown["attested"] = "attested" if event["attested"] else ""
    shown["org"] = shown["org_label"] or shown["org_id"]
    shown["resource"] = " ".join(
        filter(None, [shown["resource_type"], shown["resource_label"] or shown["resource_id"]])
    )
    thing, _, verb = shown["action"].rpartition(".")
    shown["summary"] = f"{thing.replace('_', ' ')} {verb.replace('_', ' ')}".strip()
    shown["test"] = "test" if event is SAMPLE else ""
    if shown["test"]:
        shown["summary"] = "this is a test, nothing happened"
    if shown["outcome"] != "succeeded":
        shown["summary"] += f" ({shown['outcome']})"
    return shown


SAMPLE: Mapping[str, Any] = {
    "id": 0,
    "occurred_at": "2026-01-01T00:00:00.000000Z",
    "action": "alert.test",
    "outcome": "succeeded",
    "actor_id": "u_1",
    "actor_name": "Ana Ferreira",
    "actor_email": "ana@example.com",
    "actor_type": "user",
    "on_behalf_of": None,
    "client": None,
    "db_user": "app",
    "application_name": None,
    "org_id": "o_1",
    "org_label": "Acme",
    "resource_type": "api_key",
    "resource_id": "k_1",
    "resource_label": "kh_1a2b",
    "auth_method": "session",
    "ip": "203.0.113.9",
    "country": "PT",
    "user_agent": "Mozilla/5.0",
    "correlation_id": None,
    "attested": True,
}
"""A sample event, to test a channel or a template with."""
