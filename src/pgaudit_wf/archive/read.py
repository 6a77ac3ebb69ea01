"""Reading archived events as the trail, alone or together with the log; and erasing from archives.

DuckDB filters and sorts the Parquet files; names, rights and pseudonyms come from the database. The
files do not change, so actors who were erased later are masked on reading, until
`erase_from_archive` has rewritten the files.
"""

from __future__ import annotations

import base64
import heapq
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from ipaddress import ip_interface, ip_network
from typing import Any, Unpack

from pgaudit_wf.archive.files import (
    EPOCH,
    Archive,
    FileSystem,
    is_local,
    missing_extra,
    open_filesystem,
)
from pgaudit_wf.errors import translated
from pgaudit_wf.exact_json import dumps, loads
from pgaudit_wf.trail.event import EVENT_COLUMNS, TrailEntry
from pgaudit_wf.trail.path import column_of
from pgaudit_wf.trail.reads import TrailFilter, audit_trail, values_of, well_formed
from pgaudit_wf.trail.statement import Connection, Json, one

__all__ = [
    "archived_trail",
    "whole_trail",
]

_PAGE = 1000
_SLICE = 2000
# As audit_trail() cuts names, and documents.
_NAME_LENGTH = 255
_LONGEST = 16_777_216
# As _readable_json() has it.
_BOUNDED = (
    f"case when strlen({{0}}) <= {_LONGEST} then {{0}} else"
    """ '{{"bytes": ' || strlen({0}) || ', "sha256": "' || sha256({0}) || '"}}' end as {0}"""
)
_LIKE = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})
# As _change_variables() has it.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,99})(\.[0-9]{1,99})?")
_SEARCHED = (
    "actor_label", "action", "resource_id", "metadata->>'$.label'", "metadata->>'$.reason'", "ip",
    "user_agent", "correlation_id", "on_behalf_of", "client",
)  # fmt: skip


def _cursor(at: datetime, number: int) -> str:
    micros = (at - EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(f"{micros} {number}".encode()).decode().rstrip("=")


def _position(conn: Connection, cursor: str) -> tuple[datetime, int]:
    with translated():
        at, number = one(conn, "select * from pgaudit_wf._trail_position(%s)", [cursor])
    return at, number


def _conditions(
    conn: Connection, filters: TrailFilter, after: str | None
) -> tuple[list[str], list[object]]:
    conditions: list[str] = []
    values: list[object] = []

    def add(condition: str, *given: object) -> None:
        conditions.append(condition)
        values.extend(given)

    if (id_ := filters.get("resource_id")) is not None:
        (id_,) = one(
            conn,
            "select pgaudit_wf._typed_key(%s::text[], %s)",
            [values_of(filters.get("resource_type")), id_],
        )
        add("resource_id = ?", id_)
    for name in ("org_id", "api_key_id", "correlation_id", "outcome"):
        if (value := filters.get(name)) is not None:
            add(f"{name} = ?", value)
    for name, wanted, unwanted in (
        ("resource_type", filters.get("resource_type"), filters.get("not_resource_type")),
        ("actor_id", filters.get("actor_id"), filters.get("not_actor_id")),
    ):
        if several := values_of(wanted):
            add(f"list_contains(?, {name})", several)
        if several := values_of(unwanted):
            add(f"coalesce(not list_contains(?, {name}), true)", several)
    for negation, given in (("", filters.get("action")), ("not ", filters.get("not_action"))):
        if actions := values_of(given):
            patterns = [name.translate(_LIKE).replace("*", "%") for name in actions]
            add(
                f"{negation}({' or '.join(['action like ? escape chr(92)'] * len(patterns))})",
                *patterns,
            )
    if (since := filters.get("since")) is not None:
        add("micros >= ?", _micros(since))
    if (until := filters.get("until")) is not None:
        add("micros < ?", _micros(until))
    if after is not None:
        at, number = _position(conn, after)
        add("(micros < ? or (micros = ? and id < ?))", _micros(at), _micros(at), number)
    if (search := filters.get("search")) is not None:
        pattern = f"%{search.translate(_LIKE)}%"
        known = _actors_called(conn, pattern, filters.get("org_id"))
        texts = " or ".join(f"({column}) ilike ? escape '\\'" for column in _SEARCHED)
        add(f"({texts} or list_contains(?, actor_id))", *[pattern] * len(_SEARCHED), known)
    return conditions, values


def _micros(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def _actors_called(conn: Connection, pattern: str, org_id: str | None) -> list[str]:
    if _restricted(conn):
        statement = "select d.actor_id from pgaudit_wf.describe_actors(%s, pattern => %s) as d"
        rows = conn.execute(statement, [org_id, pattern])
    else:
        rows = conn.execute(
            "select d.actor_id from pgaudit_wf.actor_directory as d"
            " where d.name ilike %(p)s or d.email ilike %(p)s",
            {"p": pattern},
        )
    return [row[0] for row in rows.fetchall()]


def _restricted(conn: Connection) -> bool:
    return bool(one(conn, "select row_security_active('pgaudit_wf.security_audit_log')")[0])


@contextmanager
def _duckdb(filesystem: FileSystem) -> Iterator[Any]:
    try:
        import duckdb
    except ImportError as error:
        raise missing_extra() from error
    with tempfile.TemporaryDirectory(prefix="pgaudit-wf-") as scratch:
        # Sorts that exceed memory spill to disk.
        limits: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": "256MB",
            "threads": 2,
            "temp_directory": scratch,
        }
        with duckdb.connect(":memory:", config=limits) as engine:
            if not is_local(filesystem):
                engine.register_filesystem(filesystem)
            yield engine


def select(
    archives: Sequence[Archive], conditions: Sequence[str], values: Sequence[object],
    *, whole: bool = False,
) -> Iterator[list[dict[str, Any]]]:  # fmt: skip
    """Yield matching events, newest first, in slices of time, as a full sort would read them all.

    The first query sorts the times only, to find the slices; each of the others reads the row
    groups of its slice.

    Args:
        archives: Where to look.
        conditions: All of them must hold.
        values: Of their parameters.
        whole: Load a diff or metadata of any size; else a long one by its digest.
    """
    filesystem, _ = open_filesystem(archives[0].url)
    paths = [
        open_filesystem(archive.url)[1] if is_local(filesystem) else archive.url
        for archive in archives
    ]
    where = " and ".join(conditions) or "true"
    names = [name for name in EVENT_COLUMNS if name != "occurred_at"]
    loaded = [
        _BOUNDED.format(name) if name in ("diff", "metadata") and not whole else name
        for name in names
    ]
    source = "select *, epoch_us(occurred_at) as micros from read_parquet(?)"
    # A month that was archived twice has its events in both files.
    months = [archive.manifest["partition"] for archive in archives]
    once = "distinct on (id)" if len(months) != len(set(months)) else ""
    times = f"select micros from ({source}) where {where} order by micros desc"  # noqa: S608
    events = (
        f"select * from (select {once} {', '.join(loaded)}, micros"  # noqa: S608
        f" from ({source} where occurred_at >= make_timestamptz(?::bigint)"
        f" and occurred_at < make_timestamptz(?::bigint)) where {where})"
        " order by micros desc, id desc"
    )
    with _duckdb(filesystem) as engine:
        # Beyond the memory to sort in, room for the largest value and what is made of it.
        (largest,) = engine.execute(
            "select max(total_uncompressed_size) from parquet_metadata(?)", [paths]
        ).fetchone()
        engine.execute(f"set memory_limit = '{256 + 4 * largest // 1_000_000}MB'")
        cuts: list[int] = []
        before = 0
        matching = engine.execute(times, [paths, *values])
        while found := matching.fetchmany(_SLICE):
            before = before or found[0][0] + 1
            cuts.append(found[-1][0])
        for cut in cuts:
            if cut == before:
                # More events in one microsecond than fit a slice: the previous slice had them all.
                continue
            result = engine.execute(events, [paths, cut, before, *values])
            before = cut
            while rows := result.fetchmany(500):
                batch = [dict(zip(names, row[:-1], strict=True)) for row in rows]
                for event, row in zip(batch, rows, strict=True):
                    event["occurred_at"] = EPOCH + timedelta(microseconds=row[-1])
                yield batch


def _mask(conn: Connection, events: list[dict[str, Any]]) -> set[int]:
    """Mask actors erased after the file was written; return the ids of the events affected."""
    people = sorted(
        {event[name] for event in events for name in ("actor_id", "resource_id") if event[name]}
    )
    erased = dict(
        conn.execute("select * from pgaudit_wf.pseudonyms(%s)", [people]).fetchall()
    )  # fmt: skip
    changed: set[int] = set()
    for actor_id, pseudonym in erased.items():
        concerned = [
            event
            for event in events
            if actor_id in (event["actor_id"], event["resource_id"])
        ]  # fmt: skip
        apply_mask(conn, concerned, actor_id, pseudonym, [])
        changed |= {event["id"] for event in concerned}
    return changed


def apply_mask(
    conn: Connection, events: list[dict[str, Any]], actor_id: str, pseudonym: str,
    known: Sequence[tuple[str, str]], *, permanent: bool = False,
) -> None:  # fmt: skip
    parameters = {
        **documents(events),
        "actor": actor_id,
        "pseudonym": pseudonym,
        "kinds": [kind for kind, _ in known],
        "values": [value for _, value in known],
    }
    source = (
        " from unnest(%(plain)s::text[], %(diff)s::text[], %(metadata)s::text[])"
        " with ordinality as r (plain, diff, metadata, position),"
        " lateral jsonb_populate_record("
        "null::pgaudit_wf.security_audit_log, r.plain::jsonb || jsonb_build_object("
        "'diff', r.diff::jsonb, 'metadata', r.metadata::jsonb)) as e,"
        " lateral pgaudit_wf._mask_event(e, %(actor)s, %(pseudonym)s,"
        " pgaudit_wf._actor_resource_types(), array(select row(k.kind, k.value)"
        "::pgaudit_wf.personal_value from unnest(%(kinds)s::text[], %(values)s::text[])"
        " as k (kind, value))) as m order by r.position"
    )
    if permanent:
        # As for the log: sealed events must still verify without the erased values.
        with conn.transaction():
            conn.execute("select pgaudit_wf._lock_seal()")
            (release,) = one(
                conn, "select release_id from pgaudit_wf.erasure where actor_id = %s", [actor_id]
            )
            conn.execute(
                "select pgaudit_wf._keep_commitments(e, m, %(release)s)" + source,
                parameters | {"release": release},
            )
    rows = conn.execute(
        "select (m).actor_label, (m).ip, (m).user_agent, (m).diff::text, (m).metadata::text"
        + source,
        parameters,
    ).fetchall()
    for event, (label, ip, agent, diff, metadata) in zip(events, rows, strict=True):
        event.update(actor_label=label, ip=None if ip is None else str(ip), user_agent=agent,
                     diff=diff, metadata=metadata)  # fmt: skip


def _matches(event: Mapping[str, Any], search: str, named: bool) -> bool:
    metadata = loads(event["metadata"])
    texts = [event[name] for name in ("actor_label", "action", "resource_id", "ip", "user_agent",
                                      "correlation_id", "on_behalf_of", "client")]  # fmt: skip
    if isinstance(metadata, dict):
        texts += [_text(metadata.get("label")), _text(metadata.get("reason"))]
    return named or any(search.casefold() in text.casefold() for text in texts if text)


def _narrowed(event: Mapping[str, Any], filters: TrailFilter) -> bool:
    """Tell whether an event passes the filters that DuckDB does not know."""
    network, changed = filters.get("network"), filters.get("changed")
    value = filters.get("value")
    if network is not None:
        at = event["ip"] and ip_interface(event["ip"])
        within = ip_network(network, strict=False)
        if not at or at.version != within.version or not at.network.subnet_of(within):  # type: ignore[arg-type]
            return False
    if changed is None and value is None:
        return True
    diff = loads(event["diff"] or "[]")
    operations = diff if isinstance(diff, list) else [diff]
    return any(_operates(op, changed, value) for op in operations if isinstance(op, dict))


def _operates(operation: Mapping[str, Json], changed: str | None, value: str | None) -> bool:
    path = operation.get("path")
    if changed is not None and (not path or column_of(path) != changed):
        return False
    sides = [operation[side] for side in ("old", "value") if side in operation]
    if changed is None and not path:
        sides += [inner for side in sides if isinstance(side, dict) for inner in side.values()]
    return value is None or any(_reads(side, value) for side in sides)


def _reads(side: Json, value: str) -> bool:
    if isinstance(side, int | Decimal) and not isinstance(side, bool) and _NUMBER.fullmatch(value):
        return side == Decimal(value)
    return isinstance(side, str | bool) and _text(side) == value


def _text(value: Json) -> str | None:
    """Return a value as PostgreSQL's ->> would."""
    return value if value is None or isinstance(value, str) else dumps(value)


def _cut(name: str | None) -> str | None:
    return name and name[:_NAME_LENGTH]


def archived_trail(
    conn: Connection,
    archives: Sequence[Archive],
    after: str | None = None,
    **filters: Unpack[TrailFilter],
) -> Iterator[TrailEntry]:
    """Read archived events as entries of the trail, newest first.

    Filters, rights, names and cursors are those of `audit_trail`: a reader of role
    `pgaudit_wf_reader` gets events of its actor's organization only. Actors who were erased after
    the file was written are masked.

    Args:
        conn: The connection, for names and rights; it must stay open.
        archives: The archives to read, as from `list_archives`.
        after: The cursor of the last entry that was read; None for the newest.
        **filters: See `TrailFilter`.

    Raises:
        ArchiveError: A file cannot be read.
        CursorError: `after` is not a cursor of the trail.
        AccessDeniedError: The actor may not read the organization's trail.
    """
    wanted: TrailFilter = {**filters}
    restricted = _restricted(conn)
    if restricted:
        # Raises the database's own error, with its hint.
        audit_trail(conn, page_size=1, **wanted)
        (wanted["org_id"],) = one(conn, "select pgaudit_wf._readable_org()")
    conditions, values = _conditions(conn, wanted, after)
    chosen = [archive for archive in archives if _may_match(archive, wanted)]
    if not chosen:
        return
    search = wanted.get("search")
    called = set(_actors_called(conn, f"%{search.translate(_LIKE)}%", wanted.get("org_id"))
                 if search else [])  # fmt: skip
    with translated():
        for events in select(chosen, conditions, values):
            masked = _mask(conn, events)
            shown = [
                event for event in events
                if (search is None or event["id"] not in masked
                    or _matches(event, search, event["actor_id"] in called))
                and _narrowed(event, wanted)
            ]  # fmt: skip
            yield from _entries(conn, shown, wanted.get("org_id"), restricted)


def _may_match(archive: Archive, filters: TrailFilter) -> bool:
    first = datetime.fromisoformat(archive.manifest["first_occurred_at"])
    last = datetime.fromisoformat(archive.manifest["last_occurred_at"])
    since, until = filters.get("since"), filters.get("until")
    return not ((since is not None and last < since) or (until is not None and first >= until))


def _entries(
    conn: Connection, events: Sequence[dict[str, Any]], org_id: str | None, restricted: bool
) -> Iterator[TrailEntry]:
    named_in = [
        (e[name], e["org_id"]) for e in events for name in ("actor_id", "on_behalf_of") if e[name]
    ]
    people = {
        (row[0], row[1]): row[2:]
        for row in conn.execute(
            "select * from pgaudit_wf._present_actors(%s::text[], %s::text[], %s)",
            [[actor for actor, _ in named_in], [org for _, org in named_in], restricted],
        ).fetchall()
    }
    named = [e for e in events if e["resource_type"] and e["resource_id"]]
    names = {
        (row[0], row[1]): row[2]
        for row in conn.execute(
            "select * from pgaudit_wf.resource_names(%s::text[], %s::text[], %s)",
            [[e["resource_type"] for e in named], [e["resource_id"] for e in named], org_id],
        ).fetchall()
    }
    for event in events:
        event.update(
            diff=None if event["diff"] is None else loads(event["diff"]),
            metadata=loads(event["metadata"]),
        )
        name, email, role = map(_cut, people.get((event["actor_id"], event["org_id"]), (None,) * 3))
        principal = people.get((event["on_behalf_of"], event["org_id"]), (None, None))
        label = event.pop("actor_label")
        shown = well_formed(event)
        named_now = names.get((event["resource_type"], event["resource_id"]))
        yield TrailEntry(
            **shown,
            actor_name=label if name is None else name,
            actor_email=email,
            actor_role=role,
            on_behalf_of_name=_cut(principal[0] or principal[1]),
            resource_name=_cut(
                _text(shown["metadata"].get("label")) if named_now is None else named_now
            ),
            cursor=_cursor(event["occurred_at"], event["id"]),
        )


def _live_trail(
    conn: Connection, after: str | None, filters: TrailFilter
) -> Iterator[TrailEntry]:  # fmt: skip
    while True:
        page = audit_trail(conn, after=after, page_size=_PAGE, **filters)
        yield from page.entries
        after = page.next_cursor
        if after is None:
            return


def whole_trail(
    conn: Connection,
    archives: Sequence[Archive] = (),
    after: str | None = None,
    **filters: Unpack[TrailFilter],
) -> Iterator[TrailEntry]:
    """Read the log and archives as one trail, newest first, each event once.

    It reads page by page, so that memory does not grow and no long transaction stays open. An event
    that is archived but still in the log is read from the log.

    Args:
        conn: The connection; it must stay open.
        archives: The archives to read in addition, as from `list_archives`.
        after: The cursor of the last entry that was read; None for the newest.
        **filters: See `TrailFilter`.

    Raises:
        ArchiveError: A file cannot be read.
        CursorError: `after` is not a cursor of the trail.
        AccessDeniedError: The actor may not read the organization's trail.
    """

    def position(entry: TrailEntry) -> tuple[datetime, int]:
        return entry.occurred_at, entry.id

    live = _live_trail(conn, after, filters)
    archived = archived_trail(conn, archives, after, **filters)
    last = None
    # Of two equal entries, merge takes the one of the first source.
    for entry in heapq.merge(live, archived, key=position, reverse=True):
        if entry.id != last:
            yield entry
        last = entry.id


def documents(events: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    plain = (
        "id",
        "tx_id",
        "actor_id",
        "actor_label",
        "ip",
        "user_agent",
        "resource_type",
        "resource_id",
    )
    return {
        "plain": [json.dumps({name: event[name] for name in plain}) for event in events],
        "diff": [event["diff"] for event in events],
        "metadata": [event["metadata"] for event in events],
    }
