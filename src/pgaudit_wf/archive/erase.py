"""Find and erase personal data in archived months."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pgaudit_wf.archive.files import (
    Archive,
    FileSystem,
    Row,
    check_file,
    manifest_path,
    open_filesystem,
    read_rows,
    sha256_of,
    write_manifest,
    write_rows,
)
from pgaudit_wf.archive.read import apply_mask, documents, select
from pgaudit_wf.archive.write import Progress
from pgaudit_wf.errors import ArchiveConflictError, translated
from pgaudit_wf.trail.event import EventRow
from pgaudit_wf.trail.statement import Connection

__all__ = [
    "PersonalValue",
    "archives_with",
    "erase_from_archive",
    "find_archived_values",
]


@dataclass(frozen=True, slots=True)
class PersonalValue:
    """A value that identifies a person; `kind` is name, email, ip or user_agent."""

    kind: str
    value: str


def archives_with(conn: Connection, pseudonym: str) -> list[tuple[int, Archive]]:
    """Return the archives that an erasure has not processed yet, with their numbers.

    Raises:
        psycopg.Error: The connection is not the owner's.
    """
    rows = conn.execute(
        "select a.id, a.url, a.manifest from pgaudit_wf.archive as a"
        " where a.id in (select pgaudit_wf._archives_with(%s)) order by a.id",
        [pseudonym],
    ).fetchall()
    return [(number, Archive(url, manifest)) for number, url, manifest in rows]


def find_archived_values(
    conn: Connection, archives: Sequence[Archive], actor_id: str
) -> tuple[int, set[PersonalValue]]:
    """Find values in archives that identify an actor.

    Returns:
        How many events the actor performed or was the resource of, and the values found.

    Raises:
        ArchiveError: A file cannot be read.
    """
    found: set[PersonalValue] = set()
    events = 0
    if not archives:
        return 0, found
    condition = ["(actor_id = ? or resource_id = ?)"]
    for batch in select(archives, condition, [actor_id, actor_id], whole=True):
        rows = conn.execute(
            "select r.position, v.kind, v.value from unnest(%(plain)s::text[], %(diff)s::text[],"
            " %(metadata)s::text[]) with ordinality as r (plain, diff, metadata, position),"
            " lateral pgaudit_wf._event_values(jsonb_populate_record("
            "null::pgaudit_wf.security_audit_log, r.plain::jsonb || jsonb_build_object("
            "'diff', r.diff::jsonb, 'metadata', r.metadata::jsonb)), %(actor)s,"
            " pgaudit_wf._actor_resource_types()) as v",
            {**documents(batch), "actor": actor_id},
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
    """Rewrite an archive without the values that identify an actor; return how many events changed.

    The new file replaces the old one atomically; its manifest names the erasure and the previous
    SHA-256. If it is interrupted anywhere, it can be run again.

    Args:
        conn: A connection of the schema's owner, in autocommit mode.
        number: The archive's number.
        archive: The archive, with the manifest as the database has it.
        actor_id: The actor.
        pseudonym: The actor's pseudonym, as from `pgaudit_wf._begin_erasure()`.
        known: All values known to identify the actor.
        progress: Called with the number of events read so far and in all.

    Raises:
        ArchiveConflictError: The file or its manifest is not the one that was archived.
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
                apply_mask(conn, concerned, actor_id, pseudonym, pairs, permanent=True)
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
    # The manifest first: it names both files, so either is recognized if this is interrupted.
    write_manifest(filesystem, path, manifest)
    filesystem.mv(temporary, path)
    with translated():
        conn.execute(
            "select pgaudit_wf._replace_archive(%s, %s, %s)",
            [number, manifest["sha256"], json.dumps(manifest)],
        )
    return changed


def _check_untouched(filesystem: FileSystem, path: str, archive: Archive) -> None:
    known = {archive.manifest["sha256"]}
    stored = manifest_path(path)
    if filesystem.exists(stored):
        # An erasure that was interrupted has left a manifest that the database does not have yet.
        with filesystem.open(stored, "rb") as file:
            left = json.load(file)
        if known.isdisjoint({left["sha256"], *(e["previous_sha256"] for e in left["erasures"])}):
            raise ArchiveConflictError(
                f"{stored} is not the manifest of the file that was archived"
            )
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
    emails = [value.lower() for kind, value in known if kind == "email"]
    # As a key, it can also be a step of a path.
    emails += [value.replace("~", "~0").replace("/", "~1") for value in emails]
    return any(value in lower for value in emails)
