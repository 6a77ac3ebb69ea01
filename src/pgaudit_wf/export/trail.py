"""The trail for other programs: CSV for spreadsheets, NDJSON, and OCSF events for a SIEM.

    with open("trail.csv", "w", newline="") as file:
        export_trail(conn, "csv", file, filters={"org_id": "o_1"})

Events are streamed, newest first, so memory does not grow with their number. The export itself is
recorded in the trail: `audit.export_started` before the first event, `audit.exported` with their
number after the last.
"""

from __future__ import annotations

import csv
import dataclasses
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from typing import IO, Any, TypeAlias

import psycopg

from pgaudit_wf.archive.files import Archive
from pgaudit_wf.archive.read import whole_trail
from pgaudit_wf.choices import Format
from pgaudit_wf.errors import translated
from pgaudit_wf.exact_json import dumps, key_parts
from pgaudit_wf.trail.event import TrailEntry
from pgaudit_wf.trail.reads import TrailFilter, audit_trail
from pgaudit_wf.trail.statement import Connection, Json, one

__all__ = [
    "CSV_COLUMNS",
    "OCSF_VERSION",
    "Format",
    "csv_cell",
    "event_writer",
    "export_trail",
    "to_ocsf",
]

Context: TypeAlias = Callable[[], AbstractContextManager[object]]

_PAGE = 250
OCSF_VERSION = "1.6.0"
# The cursor is only useful for reading on.
CSV_COLUMNS = tuple(f.name for f in dataclasses.fields(TrailEntry) if f.name != "cursor")
# Spreadsheets take text that starts like this for a formula; some treat full-width signs alike.
_FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def export_trail(
    conn: Connection,
    format: Format,  # noqa: A002 - as the option is called
    file: IO[str],
    *,
    filters: TrailFilter | None = None,
    archives: Sequence[Archive] = (),
    reading: Context = nullcontext,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write the trail to a file; return the number of events.

    It contains the events that existed when it began. Its start and its outcome are recorded with
    the context of the transactions that `reading` opens.

    Args:
        conn: A connection in autocommit mode.
        format: csv, ndjson, or ocsf (one OCSF event a line).
        file: The file to write to; for csv opened with `newline=""`.
        filters: See `TrailFilter`.
        archives: Archives to read in addition to the log, as from `list_archives`.
        reading: Provides the context of each transaction, such as a `request_context`.
        progress: Called from time to time with the number of events written so far.

    Raises:
        AccessDeniedError: The actor may not read the organization's trail.
        ArchiveError: An archive cannot be read.
        OSError: The file cannot be written.
        psycopg.Error: The database could not answer.
    """
    wanted: TrailFilter = {**(filters or {})}
    recorded = {name: plain(value) for name, value in wanted.items() if value is not None}
    began: datetime
    with translated(), reading():
        _, began = one(
            conn, "select pgaudit_wf.record_export(%s, %s), now()", [format, dumps(recorded)]
        )
    until = wanted.get("until")
    # Without this bound, its own record and new events would keep adding to the export.
    wanted["until"] = began if until is None else min(until, began)
    written = 0
    ended = "failed"
    try:
        write = event_writer(format, file)
        for entry in _pages(conn, archives, wanted, reading):
            write(entry)
            written += 1
            if progress and written % 500 == 0:
                progress(written)
        file.flush()
        ended = "succeeded"
    finally:
        # Record partial exports too: that data has left the database.
        if not conn.closed:
            _record_end(conn, format, recorded, written, ended, reading)
    if progress:
        progress(written)
    return written


def _record_end(
    conn: Connection, format_: str, recorded: Mapping[str, Json], written: int, ended: str,
    reading: Context,
) -> None:  # fmt: skip
    try:
        with translated(), reading():
            conn.execute(
                "select pgaudit_wf.record_export(%s, %s, %s, %s)",
                [format_, dumps(recorded), written, ended],
            )
    except psycopg.Error:
        # If the export failed, its own error is more useful.
        if ended == "succeeded":
            raise


def _pages(
    conn: Connection, archives: Sequence[Archive], filters: TrailFilter, reading: Context
) -> Iterator[TrailEntry]:
    if archives:
        with reading():
            yield from whole_trail(conn, archives, **filters)
        return
    after = None
    while True:
        # One transaction per page: a single long one would hold back vacuum.
        with reading():
            page = audit_trail(conn, after=after, page_size=_PAGE, **filters)
        yield from page.entries
        after = page.next_cursor
        if after is None:
            return


def event_writer(format_: Format, file: IO[str]) -> Callable[[TrailEntry], object]:
    """Return a function that writes an entry to a file; a csv header is written at once.

    Args:
        format_: csv, ndjson, or ocsf.
        file: The file to write to; for csv opened with `newline=""`.

    Raises:
        ValueError: The format is unknown.
    """
    if format_ == "csv":
        rows = csv.writer(file, lineterminator="\r\n")
        rows.writerow(CSV_COLUMNS)
        return lambda entry: rows.writerow(
            [csv_cell(getattr(entry, name)) for name in CSV_COLUMNS]
        )  # fmt: skip
    if format_ == "ndjson":
        return lambda entry: file.write(dumps(_as_object(entry)) + "\n")
    if format_ == "ocsf":
        return lambda entry: file.write(dumps(to_ocsf(entry)) + "\n")
    raise ValueError(f"unknown format: {format_!r}; valid formats are csv, ndjson, ocsf")


def csv_cell(value: object) -> str:
    """Return a value as the text of a CSV cell that spreadsheets do not take for a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    text = dumps(value) if isinstance(value, dict | list) else str(value)
    # Our numbers are ids; text that starts like a formula gets a leading apostrophe.
    return f"'{text}" if isinstance(value, str) and _FORMULA.match(text) else text


def plain(value: Any) -> Any:  # noqa: ANN401
    """Return a datetime as text in UTC, and any other value unchanged."""
    if not isinstance(value, datetime):
        return value
    try:
        return value.astimezone(UTC).isoformat()
    except OverflowError:
        # Near the limits of datetime, UTC may be out of range.
        return value.isoformat()


def _as_object(entry: TrailEntry) -> dict[str, Json]:
    return {name: plain(getattr(entry, name)) for name in CSV_COLUMNS}


# OCSF: a class for accounts, one for sessions, one for groups and their members, and API Activity
# for everything else.

_ACCOUNT_CHANGE, _AUTHENTICATION, _GROUP_MANAGEMENT, _API_ACTIVITY = 3001, 3002, 3006, 6003
_OTHER = 99
_ACCOUNTS = {
    "account.created": 1,
    "account.reactivated": 2,
    "password.changed": 3,
    "password.reset": 4,
    "account.deactivated": 5,
    "account.deleted": 6,
    "totp.enrolled": 10,
    "totp.disabled": 11,
}
_SESSIONS = {"session.created": 1, "session.revoked": 2, "session.deleted": 2}
_MEMBERS = {"member.invited": 3, "member.joined": 3, "member.removed": 4, "member.created": 3,
            "member.deleted": 4}  # fmt: skip
_ACCOUNT_PREFIXES = ("account.", "password.", "email.", "totp.", "backup_codes.", "actor.")
_VERBS = {
    "created": (1, "Create"), "added": (1, "Create"), "enrolled": (1, "Create"),
    "updated": (3, "Update"), "changed": (3, "Update"), "enabled": (3, "Update"),
    "disabled": (3, "Update"), "listed": (3, "Update"), "unlisted": (3, "Update"),
    "listing_updated": (3, "Update"), "restored": (3, "Update"), "rotated": (3, "Update"),
    "plan_changed": (3, "Update"), "renamed": (3, "Update"), "deactivated": (3, "Update"),
    "reactivated": (3, "Update"), "pseudonymised": (3, "Update"),
    "undeleted": (1, "Create"),
    "deleted": (4, "Delete"), "revoked": (4, "Delete"), "removed": (4, "Delete"),
    "truncated": (4, "Delete"),
    "exported": (2, "Read"), "export_started": (2, "Read"), "viewed": (2, "Read"),
    "read": (2, "Read"),
}  # fmt: skip
_CLASSES = {
    _ACCOUNT_CHANGE: ("Account Change", 3, "Identity & Access Management"),
    _AUTHENTICATION: ("Authentication", 3, "Identity & Access Management"),
    _GROUP_MANAGEMENT: ("Group Management", 3, "Identity & Access Management"),
    _API_ACTIVITY: ("API Activity", 6, "Application Activity"),
}
_NAMES = {
    (_ACCOUNT_CHANGE, 1): "Create", (_ACCOUNT_CHANGE, 2): "Enable",
    (_ACCOUNT_CHANGE, 3): "Password Change", (_ACCOUNT_CHANGE, 4): "Password Reset",
    (_ACCOUNT_CHANGE, 5): "Disable", (_ACCOUNT_CHANGE, 6): "Delete",
    (_ACCOUNT_CHANGE, 10): "MFA Factor Enable", (_ACCOUNT_CHANGE, 11): "MFA Factor Disable",
    (_AUTHENTICATION, 1): "Logon", (_AUTHENTICATION, 2): "Logoff",
    (_GROUP_MANAGEMENT, 3): "Add User", (_GROUP_MANAGEMENT, 4): "Remove User",
}  # fmt: skip


def to_ocsf(entry: TrailEntry) -> dict[str, Json]:
    """Return an entry as an OCSF event, version `OCSF_VERSION`.

    Accounts become Account Change (3001), sessions Authentication (3002), members of an
    organization Group Management (3006), the rest API Activity (6003). Values without an OCSF
    attribute are under `unmapped`: the diff, the metadata, the database session.
    """
    class_uid, activity, activity_name = _classify(entry)
    class_name, category, category_name = _CLASSES[class_uid]
    succeeded = entry.outcome == "succeeded"
    event: dict[str, Json] = {
        "activity_id": activity,
        "activity_name": activity_name,
        "category_uid": category,
        "category_name": category_name,
        "class_uid": class_uid,
        "class_name": class_name,
        "type_uid": class_uid * 100 + activity,
        "type_name": f"{class_name}: {activity_name}",
        # Exactly, as a float would not be.
        "time": int(entry.occurred_at.timestamp()) * 1000 + entry.occurred_at.microsecond // 1000,
        "severity_id": 1 if succeeded else 3,
        "severity": "Informational" if succeeded else "Medium",
        "status_id": 1 if succeeded else 2,
        "status": "Success" if succeeded else "Failure",
        **({} if succeeded else {"status_detail": entry.outcome}),
        "message": _message(entry),
        "actor": _actor(entry),
        "src_endpoint": _endpoint(entry),
        "metadata": _without_none(
            {
                "version": OCSF_VERSION,
                "product": {
                    "name": "pgaudit_wf",
                    "vendor_name": "pgaudit_wf",
                    "version": version("pgaudit-wf"),
                },
                "uid": str(entry.id),
                "event_code": entry.action,
                "log_name": "security_audit_log",
                "correlation_uid": entry.correlation_id,
                "tenant_uid": entry.org_id,
                "original_time": entry.occurred_at.astimezone(UTC).isoformat(),
            }
        ),
        "unmapped": _without_none(
            {
                "diff": entry.diff,
                "metadata": entry.metadata or None,
                "captured": entry.captured,
                "attested": entry.attested,
                "resource_type": entry.resource_type,
                "auth_method": entry.auth_method,
                "actor_type": entry.actor_type,
                # OCSF has a delegated user in newer versions only, and not in each of the classes.
                "on_behalf_of": _without_none(
                    {"uid": entry.on_behalf_of, "name": entry.on_behalf_of_name}
                )
                or None,
                "db_user": entry.db_user,
                "application_name": entry.application_name,
            }
        ),
    }
    if entry.user_agent:
        event["http_request"] = {"user_agent": entry.user_agent}
    if class_uid == _API_ACTIVITY:
        event["api"] = {"operation": entry.action}
        if named := _resource(entry):
            event["resources"] = [named]
    elif class_uid == _GROUP_MANAGEMENT:
        # This class lacks these attributes, and unknown attributes make an event invalid.
        for name in ("src_endpoint", "http_request"):
            if (value := event.pop(name, None)) is not None:
                event["unmapped"][name] = value
        event["group"] = _without_none({"uid": entry.org_id or "?", "name": entry.org_label})
        event["user"] = _target(entry)
    else:
        event["user"] = _target(entry)
        if class_uid == _AUTHENTICATION:
            event["service"] = {"name": entry.application_name or "pgaudit_wf"}
    return event


def _classify(entry: TrailEntry) -> tuple[int, int, str]:
    action = entry.action
    for class_uid, activities in (
        (_ACCOUNT_CHANGE, _ACCOUNTS),
        (_AUTHENTICATION, _SESSIONS),
        (_GROUP_MANAGEMENT, _MEMBERS),
    ):
        if action in activities:
            return class_uid, activities[action], _NAMES[class_uid, activities[action]]
    if action.startswith(_ACCOUNT_PREFIXES):
        return _ACCOUNT_CHANGE, _OTHER, action
    if action.startswith("session."):
        return _AUTHENTICATION, _OTHER, action
    if action.startswith("member."):
        return _GROUP_MANAGEMENT, _OTHER, action
    activity, name = _VERBS.get(action.rpartition(".")[2], (_OTHER, action))
    return _API_ACTIVITY, activity, name


def _message(entry: TrailEntry) -> str:
    of = entry.resource_name or entry.resource_id
    resource = f"{entry.resource_type or 'event'}{f' {of}' if of else ''}"
    return f"{entry.action}: {resource} by {entry.acted_as()}"


def _user(uid: str | None, name: str | None, email: str | None = None) -> dict[str, Json]:
    return _without_none(
        {"uid": uid, "name": name, "email_addr": email, "type_id": 0 if uid else 3}
    )


def _actor(entry: TrailEntry) -> dict[str, Json]:
    if entry.actor_id or entry.actor_name:
        user = _user(entry.actor_id, entry.actor_name, entry.actor_email)
    else:
        # No actor given: attribute it to the login of the database session.
        user = _user(None, entry.db_user)
    if entry.api_key_id:
        user["credential_uid"] = entry.api_key_id
    if entry.org_id:
        user["org"] = _without_none({"uid": entry.org_id, "name": entry.org_label})
    return _without_none({"user": user, "app_name": entry.client or entry.application_name})


def _target(entry: TrailEntry) -> dict[str, Json]:
    """Return the owner of the account, session or membership, if the event identifies one."""
    row = _row(entry)
    for name in ("user_id", "account_id", "actor_id"):
        if isinstance(row.get(name), str | int):
            return _user(str(row[name]), None)
    if entry.action.startswith(("session.", "member.", "totp.", "backup_codes.")):
        if entry.action.startswith("member.") and (key := key_parts(entry.resource_id)):
            return _user(key[-1], entry.resource_name)
        return _user(entry.actor_id or entry.resource_id or "?", None)
    return _user(entry.resource_id or "?", entry.resource_name)


def _row(entry: TrailEntry) -> Mapping[str, Json]:
    for operation in entry.diff or ():
        if operation.get("path") == "":
            row = operation.get("value", operation.get("old"))
            return row if isinstance(row, dict) else {}
    return {}


def _endpoint(entry: TrailEntry) -> dict[str, Json]:
    endpoint: dict[str, Json] = {}
    if entry.ip:
        # The schema cannot represent a network.
        endpoint["ip"] = str(ipaddress.ip_interface(entry.ip).ip)
    elif entry.application_name:
        endpoint["svc_name"] = entry.application_name
    else:
        endpoint["svc_name"] = "postgresql"
    if entry.country:
        endpoint["location"] = {"country": entry.country}
    return endpoint


def _resource(entry: TrailEntry) -> dict[str, Json] | None:
    named = _without_none(
        {"uid": entry.resource_id, "name": entry.resource_name, "type": entry.resource_type}
    )
    return named if "uid" in named or "name" in named else None


def _without_none(values: Mapping[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in values.items() if value is not None}
