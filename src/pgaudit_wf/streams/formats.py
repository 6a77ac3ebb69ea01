"""Events as other systems read them: as in an export, with an id that a repeat shares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from pgaudit_wf.exact_json import UNSAFE, dumps
from pgaudit_wf.export.trail import CSV_COLUMNS, plain, to_ocsf
from pgaudit_wf.trail.event import TrailEntry

_CEF_EXTENSIONS = {
    "suid": "actor_id",
    "suser": "actor_name",
    "src": "ip",
    "act": "action",
    "outcome": "outcome",
    "requestClientApplication": "user_agent",
    "sproc": "application_name",
    "duser": "db_user",
}
_CEF_STRINGS = ("org_id", "resource_type", "resource_id", "resource_name", "correlation_id")


@dataclass(frozen=True, slots=True)
class Item:
    """An event on its way.

    `uid` stands for this event and no other, in this log or another; a repeat has the same. `text`
    is the event in the destination's format, and `cursor` where the reader stands after it.
    """

    uid: str
    entry: TrailEntry
    text: str
    cursor: str


def to_text(entry: TrailEntry, uid: str, format_: str) -> str:
    """Return an event as one line.

    Args:
        entry: The event.
        uid: Its id for receivers.
        format_: ocsf, ndjson, cef, or parquet, whose columns are those of ndjson.
    """
    if format_ == "cef":
        return _to_cef(entry, uid)
    if format_ == "ocsf":
        event = to_ocsf(entry)
        event["metadata"]["uid"] = uid
        event["unmapped"]["event_id"] = entry.id
        return dumps(event)
    return dumps({"event_uid": uid, **{name: plain(getattr(entry, name)) for name in CSV_COLUMNS}})


def _to_cef(entry: TrailEntry, uid: str) -> str:
    header = (
        "pgaudit_wf",
        "pgaudit_wf",
        version("pgaudit-wf"),
        entry.action,
        f"{entry.action} by {entry.acted_as()}",
        "3" if entry.outcome == "succeeded" else "6",
    )
    extension = {
        "rt": str(int(entry.occurred_at.timestamp() * 1000)),
        "externalId": uid,
        **{
            name: str(value)
            for name, column in _CEF_EXTENSIONS.items()
            if (value := getattr(entry, column)) is not None
        },
    }
    for number, column in enumerate(_CEF_STRINGS, 1):
        if (value := getattr(entry, column)) is not None:
            extension |= {f"cs{number}Label": column, f"cs{number}": value}
    extension["msg"] = dumps({"diff": entry.diff, "metadata": entry.metadata})
    pairs = (f"{name}={_escaped(value, '=')}" for name, value in extension.items())
    return f"CEF:0|{'|'.join(_escaped(part, '|') for part in header)}|{' '.join(pairs)}"


def _escaped(text: str, separator: str) -> str:
    text = text.replace("\\", "\\\\").replace(separator, f"\\{separator}")
    text = text.replace("\r", "\\r").replace("\n", "\\n")
    return UNSAFE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", text)


def syslog_message(item: Item, host: str) -> bytes:
    """Return an event as a message of RFC 5424, facility 13 (log audit)."""
    severity = 6 if item.entry.outcome == "succeeded" else 4
    action = re.sub(r"[^!-~]", "?", item.entry.action)[:32] or "-"
    at = item.entry.occurred_at.astimezone(UTC).isoformat(timespec="microseconds")
    header = f"<{13 * 8 + severity}>1 {at.replace('+00:00', 'Z')} {host} pgaudit_wf - {action} - "
    # Without the mark, a receiver may take it for any encoding.
    mark = b"" if item.text.isascii() else b"\xef\xbb\xbf"
    return header.encode() + mark + item.text.encode("utf-8", "replace")


def sample(uid: str) -> Item:
    """Return an event that tells of no change, to try a destination with; not of the log."""
    return Item(
        uid,
        TrailEntry(
            **dict.fromkeys(TrailEntry.__dataclass_fields__, None)
            | {
                "id": 0,
                "tx_id": 0,
                "occurred_at": datetime.now(UTC),
                "actor_type": "system",
                "action": "audit.stream_tested",
                "resource_type": "stream",
                "outcome": "succeeded",
                "captured": False,
                "attested": False,
                "metadata": {},
                "db_user": "pgaudit_wf",
                "application_name": "pgaudit-wf stream",
                "cursor": "",
            }  # type: ignore[arg-type]
        ),
        "",
        "",
    )
