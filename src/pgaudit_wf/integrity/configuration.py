"""What the log says of its own configuration: whether all that changed in it was told."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pgaudit_wf.trail.event import EventRow
from pgaudit_wf.trail.statement import Connection

NOTED = "audit.configuration_noted"
CHANGED = "audit.configuration_changed"

# Of what is compared, that of which either an event tells, or the note that has it anew.
_NAMED = (
    "object", "owner", "right", "role", "rule", "partition", "attachment", "workflow_attachment",
    "execution_attachment", "config_alias", "canvas_key", "action_schema", "action_rule",
    "alert_rule", "alert_policy", "retention_policy", "version_policy", "limit_condition",
    "attestation_key", "stream_destination", "waiver", "api_key_policy",
)  # fmt: skip

# As pgaudit_wf._function_digest() has it; but that could have been replaced, too.
_FUNCTIONS = """
select 'function ' || p.oid::pg_catalog.regprocedure, pg_catalog.left(pg_catalog.encode(
    pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.concat_ws('|', p.prosrc, l.lanname,
        p.prosecdef, p.provolatile, p.proisstrict, p.proconfig,
        pg_catalog.pg_get_function_arguments(p.oid), pg_catalog.pg_get_function_result(p.oid),
        pg_catalog.pg_get_function_sqlbody(p.oid)), 'UTF8')), 'hex'), 32)
from pg_catalog.pg_proc as p join pg_catalog.pg_language as l on l.oid = p.prolang
where p.pronamespace = 'pgaudit_wf'::pg_catalog.regnamespace
"""
_NEWEST_NOTE = """
select noted.configuration from pg_catalog.unnest(array[%s, %s]) as kind,
lateral (
    select l.occurred_at, l.id, l.metadata -> 'configuration' as configuration
    from pgaudit_wf.security_audit_log as l where l.action = kind and l.captured
    order by l.occurred_at desc, l.id desc limit 1
) as noted
order by noted.occurred_at desc, noted.id desc limit 1
"""


def unnoted_functions(conn: Connection) -> list[str]:
    """Return the functions of the schema that are not as the newest note in the log has them.

    Whoever replaces what writes the note could have it say nothing of that.

    Args:
        conn: The owner's connection, in autocommit mode.

    Raises:
        psycopg.Error: The database could not answer.
    """
    with conn.transaction():
        conn.execute(
            "set local search_path = pg_catalog, pg_temp;"
            " set local standard_conforming_strings = on; set local quote_all_identifiers = off"
        )
        row = conn.execute(_NEWEST_NOTE, [NOTED, CHANGED]).fetchone()
        found = dict(conn.execute(_FUNCTIONS).fetchall())
    noted: Mapping[str, Any] = row[0] if row else {}
    known = {
        name: digest
        for group in ("object", "function")
        for name, digest in noted.get(group, {}).items()
        if name.startswith("function ")
    }
    return sorted(
        name.removeprefix("function ")
        for name in known.keys() | found.keys()
        if known.get(name) != found.get(name)
    )


class Untold(NamedTuple):
    """An event by which a sealer recorded what nothing had told at the time."""

    event_id: int
    occurred_at: str
    action: str
    subject: str


class History:
    """The notes of the configuration in a log, one after the other.

    Attributes:
        untold: What sealers found.
    """

    def __init__(self, limit: int) -> None:
        self.untold: list[Untold] = []
        self._limit = limit
        self._last: Mapping[str, Any] | None = None
        # A transaction may have been under way at a note, so that it is the next one that has it.
        self._told: dict[str, set[str | None]] = defaultdict(set)

    def hear(self, row: EventRow[str, str]) -> str | None:
        """Take an event that is what was sealed; return what is wrong with it as a note.

        Args:
            row: The event, as text.
        """
        if not (row.captured and row.action.startswith("audit.")):
            return None
        try:
            metadata = json.loads(row.metadata)
            diff = json.loads(row.diff or "[]")
            if metadata.get("found_by") == "seal" and row.action != NOTED:
                self._find(row, diff)
            if row.action in (NOTED, CHANGED):
                return self._compare(
                    metadata["configuration"], {_unescaped(op["path"][1:]) for op in diff}
                )
            if row.action == "audit.upgraded":
                for op in diff:
                    self._told["object/" + _unescaped(op["path"][1:])].add(op.get("value"))
            elif "configuration" in metadata:
                state = metadata.get("state")
                self._told[metadata["configuration"]].add(state and state[:32])
        except (AttributeError, KeyError, TypeError, ValueError):
            # What was erased of it, or nobody of ours has written.
            return None
        return None

    def _find(self, row: EventRow[str, str], diff: list[dict[str, Any]]) -> None:
        if len(self.untold) < self._limit:
            paths = ", ".join(op["path"] for op in diff if len(op["path"]) > 1)
            subject = " ".join(part for part in (row.resource_id, paths) if part)
            self.untold.append(Untold(int(row.id), row.occurred_at, row.action, subject))

    def _compare(self, configuration: Mapping[str, Any], named: set[str]) -> str | None:
        last, self._last = self._last, configuration
        if last is None:
            return None
        silent = [
            part
            for part, state in _changes(last, configuration)
            if part not in named and state not in self._told.get(part, ())
        ]
        if not silent:
            return None
        return f"says that all was told, but nothing tells of: {', '.join(sorted(silent)[:5])}"


def _changes(
    last: Mapping[str, Any], configuration: Mapping[str, Any]
) -> Iterator[tuple[str, str | None]]:
    other_version = _version(last) != _version(configuration)
    for group in _NAMED:
        before, after = last.get(group, {}), configuration.get(group, {})
        for key in before.keys() | after.keys():
            # Each version of PostgreSQL prints expressions in its own way.
            if group == "object" and other_version and not key.startswith("function "):
                continue
            if before.get(key) != after.get(key):
                yield f"{group}/{key}", after.get(key)


def _unescaped(pointer: str) -> str:
    return pointer.replace("~1", "/").replace("~0", "~")


def _version(configuration: Mapping[str, Any]) -> str | None:
    version: str | None = configuration.get("database", {}).get("server_version")
    return version
