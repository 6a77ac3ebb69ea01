"""Reading archived events as the trail, alone or together with the log; and erasing from archives.

DuckDB filters and sorts the Parquet files; names, rights and pseudonyms come from the database. The
files stay as they are, so whoever was erased since is masked while they are read, until
`erase_from_archive` has gone through them.
"""

from __future__ import annotations

import base64
import heapq
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Unpack

from pgaudit_wf.archive.write import (
    EPOCH,
    Archive,
    FileSystem,
    Progress,
    Row,
    check_file,
    is_local,
    manifest_path,
    missing_extra,
    open_filesystem,
    read_rows,
    sha256_of,
    write_manifest,
    write_rows,
)
from pgaudit_wf.errors import ArchiveConflictError, translated
from pgaudit_wf.exact_json import dumps, loads
from pgaudit_wf.trail.event import EVENT_COLUMNS, EventRow, TrailEntry
from pgaudit_wf.trail.reads import TrailFilter, audit_trail, well_formed
from pgaudit_wf.trail.statement import Connection, Json, one

__all__ = [
    "PersonalValue",
    "archived_trail",
    "archives_with",
    "erase_from_archive",
    "find_archived_values",
    "whole_trail",
]

_PAGE = 1000
_SLICE = 2000
# As audit_trail() cuts names.
_NAME_LENGTH = 255


_LIKE = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})
_SEARCHED = (
    "actor_label", "action", "resource_id", "metadata->>'$.label'", "metadata->>'$.reason'", "ip",
    "user_agent", "correlation_id",
)  # fmt: skip


def _cursor(at: datetime, number: int) -> str:
    micros = (at - EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(f"{micros} {number}".encode()).decode().rstrip("=")


def _position(conn: Connection, cursor: str) -> tuple[datetime, int]:
    with translated():
        at, number = one(conn, "select * from pgaudit_wf.trail_position(%s)", [cursor])
    return at, number


def _conditions(
    conn: Connection, filters: TrailFilter, after: str | None
) -> tuple[list[str], list[object]]:
    conditions: list[str] = []
    values: list[object] = []

    def add(condition: str, *given: object) -> None:
        conditions.append(condition)
        values.extend(given)

    for name in ("org_id", "resource_type", "resource_id", "actor_id", "correlation_id", "outcome"):
        if (value := filters.get(name)) is not None:
            add(f"{name} = ?", value)
    if (action := filters.get("action")) is not None:
        if "*" in action:
            add("action like ? escape '\\'", action.translate(_LIKE).replace("*", "%"))
        else:
            add("action = ?", action)
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
        # What is too much to sort in memory goes to disk.
        limits: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": "256MB",
            "threads": 2,
            "temp_directory": scratch,
        }
        with duckdb.connect(":memory:", config=limits) as engine:
            if not is_local(filesystem):
                engine.register_filesystem(filesystem)
            yield engine


def _select(
    archives: Sequence[Archive], conditions: Sequence[str], values: Sequence[object]
) -> Iterator[list[dict[str, Any]]]:
    """Yield matching events, newest first: in slices of time, as sorting all would take them all.

    The first query sorts nothing but times, to find where to cut; each of the others reads the row
    groups of its slice.
    """
    filesystem, _ = open_filesystem(archives[0].url)
    paths = [
        open_filesystem(archive.url)[1] if is_local(filesystem) else archive.url
        for archive in archives
    ]
    where = " and ".join(conditions) or "true"
    names = [name for name in EVENT_COLUMNS if name != "occurred_at"]
    source = "select *, epoch_us(occurred_at) as micros from read_parquet(?)"
    # A month that was archived twice has its events in both files.
    months = [archive.manifest["partition"] for archive in archives]
    once = "distinct on (id)" if len(months) != len(set(months)) else ""
    times = f"select micros from ({source}) where {where} order by micros desc"  # noqa: S608
    events = (
        f"select * from (select {once} {', '.join(names)}, micros"  # noqa: S608
        f" from ({source} where occurred_at >= make_timestamptz(?::bigint)"
        f" and occurred_at < make_timestamptz(?::bigint)) where {where})"
        " order by micros desc, id desc"
    )
    with _duckdb(filesystem) as engine:
        cuts: list[int] = []
        before = 0
        matching = engine.execute(times, [paths, *values])
        while found := matching.fetchmany(_SLICE):
            before = before or found[0][0] + 1
            cuts.append(found[-1][0])
        for cut in cuts:
            if cut == before:
                # More events of one microsecond than fit a slice: the one before had them all.
                continue
            result = engine.execute(events, [paths, cut, before, *values])
            before = cut
            while rows := result.fetchmany(500):
                batch = [dict(zip(names, row[:-1], strict=True)) for row in rows]
                for event, row in zip(batch, rows, strict=True):
                    event["occurred_at"] = EPOCH + timedelta(microseconds=row[-1])
                yield batch


def _mask(conn: Connection, events: list[dict[str, Any]]) -> set[int]:
    """Mask who was erased since the file was written; return the ids of events concerned."""
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
        _apply_mask(conn, concerned, actor_id, pseudonym, [])
        changed |= {event["id"] for event in concerned}
    return changed


def _apply_mask(
    conn: Connection, events: list[dict[str, Any]], actor_id: str, pseudonym: str,
    known: Sequence[tuple[str, str]], *, for_good: bool = False,
) -> None:  # fmt: skip
    parameters = {
        **_documents(events),
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
        " lateral pgaudit_wf.mask_event(e, %(actor)s, %(pseudonym)s,"
        " pgaudit_wf.actor_resource_types(), array(select row(k.kind, k.value)"
        "::pgaudit_wf.personal_value from unnest(%(kinds)s::text[], %(values)s::text[])"
        " as k (kind, value))) as m order by r.position"
    )
    if for_good:
        # What was sealed must verify without the values, as when they go from the log.
        with conn.transaction():
            conn.execute("select pgaudit_wf.lock_seal()")
            conn.execute("select pgaudit_wf.keep_commitments(e, m)" + source, parameters)
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
                                      "correlation_id")]  # fmt: skip
    if isinstance(metadata, dict):
        texts += [_text(metadata.get("label")), _text(metadata.get("reason"))]
    return named or any(search.casefold() in text.casefold() for text in texts if text)


def _text(value: Json) -> str | None:
    """Return a value as PostgreSQL's ->> does."""
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
    `pgaudit_wf_reader` gets his organization's events only. Actors who were erased since the file
    was written are masked.

    Args:
        conn: The connection, for names and rights; it must stay open meanwhile.
        archives: Where to read, as from `list_archives`.
        after: The cursor of the last entry that was read; None for the newest.
        **filters: See `TrailFilter`.

    Raises:
        ArchiveError: A file cannot be read.
        CursorError: `after` is no cursor of the trail.
        AccessDeniedError: The actor may not read the organization's trail.
    """
    wanted: TrailFilter = {**filters}
    restricted = _restricted(conn)
    if restricted:
        # Raises, with a hint, where the database would.
        audit_trail(conn, page_size=1, **wanted)
        (wanted["org_id"],) = one(conn, "select pgaudit_wf.readable_org()")
    conditions, values = _conditions(conn, wanted, after)
    chosen = [archive for archive in archives if _may_match(archive, wanted)]
    if not chosen:
        return
    search = wanted.get("search")
    called = set(_actors_called(conn, f"%{search.translate(_LIKE)}%", wanted.get("org_id"))
                 if search else [])  # fmt: skip
    with translated():
        for events in _select(chosen, conditions, values):
            masked = _mask(conn, events)
            shown = [
                event for event in events
                if search is None or event["id"] not in masked
                or _matches(event, search, event["actor_id"] in called)
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
    acting = [e for e in events if e["actor_id"]]
    people = {
        (row[0], row[1]): row[2:]
        for row in conn.execute(
            "select * from pgaudit_wf.present_actors(%s::text[], %s::text[], %s)",
            [[e["actor_id"] for e in acting], [e["org_id"] for e in acting], restricted],
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
        label = event.pop("actor_label")
        del event["tx_id"]
        shown = well_formed(event)
        named_now = names.get((event["resource_type"], event["resource_id"]))
        yield TrailEntry(
            **shown,
            actor_name=label if name is None else name,
            actor_email=email,
            actor_role=role,
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

    Page by page, so that memory does not grow and no long transaction is kept open. An event that
    is archived and not yet dropped comes from the log.

    Args:
        conn: The connection; it must stay open meanwhile.
        archives: Where to read besides, as from `list_archives`.
        after: The cursor of the last entry that was read; None for the newest.
        **filters: See `TrailFilter`.

    Raises:
        ArchiveError: A file cannot be read.
        CursorError: `after` is no cursor of the trail.
        AccessDeniedError: The actor may not read the organization's trail.
    """

    def place(entry: TrailEntry) -> tuple[datetime, int]:
        return entry.occurred_at, entry.id

    live = _live_trail(conn, after, filters)
    archived = archived_trail(conn, archives, after, **filters)
    last = None
    # Of two that are equal, merge takes the one of the first source.
    for entry in heapq.merge(live, archived, key=place, reverse=True):
        if entry.id != last:
            yield entry
        last = entry.id


@dataclass(frozen=True, slots=True)
class PersonalValue:
    """A value that tells who somebody is; `kind` is name, email, ip or user_agent."""

    kind: str
    value: str


def archives_with(conn: Connection, pseudonym: str) -> list[tuple[int, Archive]]:
    """Return the archives, with their numbers, that an erasure has not gone through yet.

    Raises:
        psycopg.Error: The connection is not the owner's.
    """
    rows = conn.execute(
        "select a.id, a.url, a.manifest from pgaudit_wf.archive as a"
        " where a.id in (select pgaudit_wf.archives_with(%s)) order by a.id",
        [pseudonym],
    ).fetchall()
    return [(number, Archive(url, manifest)) for number, url, manifest in rows]


def find_archived_values(
    conn: Connection, archives: Sequence[Archive], actor_id: str
) -> tuple[int, set[PersonalValue]]:
    """Look in archives for what they tell of who an actor is.

    Returns:
        How many events he did or was the resource of, and the values found in them.

    Raises:
        ArchiveError: A file cannot be read.
    """
    found: set[PersonalValue] = set()
    events = 0
    if not archives:
        return 0, found
    condition = ["(actor_id = ? or resource_id = ?)"]
    for batch in _select(archives, condition, [actor_id, actor_id]):
        rows = conn.execute(
            "select r.position, v.kind, v.value from unnest(%(plain)s::text[], %(diff)s::text[],"
            " %(metadata)s::text[]) with ordinality as r (plain, diff, metadata, position),"
            " lateral pgaudit_wf.event_values(jsonb_populate_record("
            "null::pgaudit_wf.security_audit_log, r.plain::jsonb || jsonb_build_object("
            "'diff', r.diff::jsonb, 'metadata', r.metadata::jsonb)), %(actor)s,"
            " pgaudit_wf.actor_resource_types()) as v",
            {**_documents(batch), "actor": actor_id},
        ).fetchall()
        events += sum(event["actor_id"] == actor_id for event in batch)
        events += len({position for position, _, _ in rows
                       if batch[position - 1]["actor_id"] != actor_id})  # fmt: skip
        found |= {PersonalValue(kind, value) for _, kind, value in rows}
    return events, found


def erase_from_archive(
    conn: Connection, number: int, archive: Archive, actor_id: str, pseudonym: str,
    known: Iterable[PersonalValue], progress: Progress | None = None,
) -> int:  # fmt: skip
    """Rewrite an archive without what tells who an actor is; return how many events changed.

    The new file takes the place of the old one at once, its manifest names the erasure and the
    SHA-256 that the file had before. Interrupted anywhere, it can be run again.

    Args:
        conn: A connection of the schema's owner, in autocommit mode.
        number: The archive's number.
        archive: The archive, with the manifest as the database has it.
        actor_id: The actor.
        pseudonym: His pseudonym, as from `pgaudit_wf.begin_erasure()`.
        known: All that is known to tell who he is.
        progress: Called with the number of events read so far and in all.

    Raises:
        ArchiveConflictError: The file, or the manifest beside it, is not the one that was archived.
        OSError: It cannot be read or written.
    """
    filesystem, path = open_filesystem(archive.url)
    pairs = [(value.kind, value.value) for value in known]
    _check_untouched(filesystem, path, archive)
    changed = 0

    def rewritten() -> Iterator[list[Row]]:
        nonlocal changed
        done = 0
        for batch in read_rows(filesystem, path):
            events = [row._asdict() for row in batch]
            concerned = [event for event in events if _mentions(event, actor_id, pairs)]
            before = [tuple(event.values()) for event in concerned]
            if concerned:
                _apply_mask(conn, concerned, actor_id, pseudonym, pairs, for_good=True)
            changed += sum(
                old != tuple(event.values()) for old, event in zip(before, concerned, strict=True)
            )
            yield [EventRow(**event) for event in events]
            done += len(batch)
            if progress:
                progress(done, archive.events)

    temporary = f"{path}.tmp"
    summary = write_rows(filesystem, temporary, rewritten())
    manifest = {
        **archive.manifest,
        **summary,
        "erasures": [
            *archive.manifest["erasures"],
            {
                "pseudonym": pseudonym,
                "erased_at": datetime.now(UTC).isoformat(),
                "events": changed,
                "previous_sha256": archive.manifest["sha256"],
            },
        ],
    }
    check_file(filesystem, temporary, manifest)
    # The manifest first: it knows both files, so neither is a stranger if this ends in between.
    write_manifest(filesystem, path, manifest)
    filesystem.mv(temporary, path)
    with translated():
        conn.execute(
            "select pgaudit_wf.replace_archive(%s, %s, %s)",
            [number, manifest["sha256"], json.dumps(manifest)],
        )
    return changed


def _check_untouched(filesystem: FileSystem, path: str, archive: Archive) -> None:
    known = {archive.manifest["sha256"]}
    beside = manifest_path(path)
    if filesystem.exists(beside):
        # An erasure that was interrupted has left a manifest that the database does not have yet.
        with filesystem.open(beside, "rb") as file:
            left = json.load(file)
        if known.isdisjoint({left["sha256"], *(e["previous_sha256"] for e in left["erasures"])}):
            raise ArchiveConflictError(f"{beside} is not the manifest of what was archived")
        known.add(left["sha256"])
    if sha256_of(filesystem, path) not in known:
        raise ArchiveConflictError(
            f"{archive.url} is not the file that was archived: SHA-256 differs"
        )


def _mentions(event: Mapping[str, Any], actor_id: str, known: Sequence[tuple[str, str]]) -> bool:
    if actor_id in (event["actor_id"], event["resource_id"]):
        return True
    texts = [event[name] or "" for name in ("actor_label", "user_agent", "diff", "metadata",
                                            "resource_id")]  # fmt: skip
    joined = "\n".join(texts)
    if json.dumps(actor_id, ensure_ascii=False) in joined:
        return True
    lower = joined.lower()
    return any(kind == "email" and value.lower() in lower for kind, value in known)


def _documents(events: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
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
