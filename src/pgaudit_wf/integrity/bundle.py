"""What an organization's auditor gets: its events in a period, with proof that none was left out.

docs/how-to/auditor.md specifies the files of a bundle; check.py, which is one of them, checks it.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from psycopg import sql

from pgaudit_wf.errors import ProofError, translated
from pgaudit_wf.exact_json import dumps
from pgaudit_wf.integrity import check
from pgaudit_wf.integrity import leaf as leaves
from pgaudit_wf.integrity.archives import ArchivedEvents
from pgaudit_wf.integrity.merkle import inclusion_proof, leaf_hash
from pgaudit_wf.integrity.note import Checkpoint, Note
from pgaudit_wf.integrity.proof import consistency_path, newest_checkpoint, prove_consistency
from pgaudit_wf.integrity.seal import pin_format, tile_reader
from pgaudit_wf.integrity.sealed_row import Item, item_leaf, read_items, read_kept
from pgaudit_wf.integrity.tiles import MissingTileError, nodes_from_tiles
from pgaudit_wf.integrity.witness import log_part
from pgaudit_wf.trail.statement import Connection, one

BUNDLE_FORMAT: Final = "pgaudit_wf.bundle/1"
CSV_COLUMNS = (
    "org_number", "occurred_at", "action", "outcome", "actor_id", "who", "on_behalf_of", "client",
    "country", "resource_type", "resource_id", "diff", "metadata", "created_at", "workflow_id",
    "version", "source", "change", "snapshot", "content_hash", "restored_from", "actor_type",
    "auth_method", "api_key_id", "correlation_id", "captured", "attested", "db_user",
    "application_name", "org_label", "id", "tx_id",
)  # fmt: skip
# Without dates, the same content makes the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)
_README = """\
The audit trail of one organization, for its auditor.

events.ndjson, events.csv   what happened, for people and programs: one event or version a line
bundle.json                 the organization and the period
leaves.ndjson               the same events as they were sealed, with their proofs
configuration.ndjson        what the database recorded about the trail itself, likewise
releases.ndjson             the erasures that took parts of these events
configuration.json          what is recorded now, and how; only the database's own word
checkpoint                  the signed state of the log, with the signatures of witnesses
old-checkpoint              the one that the auditor kept from last time, if any
consistency.json            the proof that the log only grew since then
stamped/                    the newest checkpoint that a time-stamp authority signed, if any, its
                            answers (RFC 3161), and the proof that the log only grew since then
check.py                    checks all of it: python check.py BUNDLE.zip --key KEY

Take the key, and a copy of check.py, from somebody else than whoever made this file.
"""
# Parts of other changes of the configuration may name other organizations, or people of theirs.
_OPEN = {
    "audit.archived", "audit.attached", "audit.detached", "audit.function_replaced",
    "audit.history_pruned", "audit.pruned", "audit.recording_disabled", "audit.recording_enabled",
    "audit.restored", "audit.role_granted", "audit.role_revoked", "audit.rule_changed",
    "audit.settings_changed", "audit.upgraded",
}  # fmt: skip
_PLACES = sql.SQL("""
    select n.* from (
        select l.org_number as number, s.at >= %(until)s as late,
            coalesce(s.at < %(since)s, true) and coalesce(l.leaf_index < %(old_size)s, true)
                and num_nonnulls(%(since)s::timestamptz, %(old_size)s::bigint) > 0 as early
        from pgaudit_wf.log_leaf as l
        left join pgaudit_wf.workflow_history as h
            on h.workflow_id = l.workflow_id and h.version = l.version,
        lateral (select coalesce(l.occurred_at, h.created_at) as at) as s
        where l.chain = %(chain)s and l.leaf_index < %(size)s
    ) as n
""")
# The numbers in the period; those between them may be from another time.
_WITHIN = sql.SQL("""
    select coalesce(min(p.number) filter (where not p.early and not p.late),
            max(p.number) filter (where not p.late) + 1, 1),
        coalesce(max(p.number) filter (where not p.early and not p.late),
            max(p.number) filter (where not p.late), 0)
    from ({}) as p
""").format(_PLACES)
# So that the leaf before is from before the period, and the one after from after it.
_WIDENED = sql.SQL("""
    select coalesce(max(p.number) filter (where p.early and p.number < %(first)s), 0) + 1,
        coalesce(min(p.number) filter (where p.late and p.number > %(last)s) - 1,
            max(p.number), 0)
    from ({}) as p
""").format(_PLACES)
_UNNUMBERED = """
    select count(*) from pgaudit_wf.security_audit_log as e
    join pgaudit_wf.log_leaf as l on l.event_id = e.id and l.tx_id = e.tx_id and l.chain is null
    where e.org_id = %(org)s and e.occurred_at < %(until)s
        and (%(since)s::timestamptz is null or e.occurred_at >= %(since)s)
        and exists (select from pgaudit_wf.log_leaf as o where o.leaf_index = 0 and o.chain is null)
"""
_ARCHIVED_BY = """
    select a.event_id from pgaudit_wf.archive as a
    where a.from_time <= %(at)s and a.to_time > %(at)s and a.event_id is not null
    order by a.id desc limit 1
"""
_IN_FORCE = (
    "attachment", "workflow_attachment", "execution_attachment", "action_rule",
)  # fmt: skip
_CHAIN = sql.SQL(
    "and l.chain = %s and l.org_number between %s and %s and l.leaf_index < %s"
    " order by l.org_number"
)
_STAMPED = """
    select c.note, array_agg(t.response order by t.response_hash)
    from pgaudit_wf.log_timestamp as t join pgaudit_wf.log_checkpoint as c using (size)
    where c.note is not null and c.size <= %s group by c.size, c.note order by c.size desc limit 1
"""
_EVENT = sql.SQL("and l.event_id = %s and l.leaf_index < %s order by l.leaf_index")


@dataclass(frozen=True, slots=True)
class Bundled:
    """What a bundle contains: the numbers in the organization's chain, and how many leaves.

    `first` and `last` are None if there was nothing in the period.
    """

    first: int | None
    last: int | None
    leaves: int


def has_events(conn: Connection, org_id: str) -> bool:
    """Return whether the database has an event of an organization.

    Raises:
        psycopg.Error: The database could not answer.
    """
    with translated():
        (found,) = one(
            conn,
            "select exists (select from pgaudit_wf.security_audit_log as e where e.org_id = %s)",
            [org_id],
        )
    return bool(found)


def mark_configuration(conn: Connection) -> int:
    """Record that the configuration was looked at, and return the event's id.

    Once it is sealed, it shows that no change of the configuration before it was left out.

    Raises:
        psycopg.Error: The database refused.
    """
    with translated():
        return int(one(conn, "select pgaudit_wf._mark_configuration()")[0])


def await_seal(conn: Connection, event_ids: list[int], seconds: float) -> bool:
    """Wait until events are below a signed checkpoint; return whether they are.

    Args:
        conn: The owner's connection, in autocommit mode.
        event_ids: The events.
        seconds: How long to wait for the sealer.

    Raises:
        psycopg.Error: The database could not answer.
    """
    until = time.monotonic() + seconds
    while True:
        with translated():
            (sealed,) = one(
                conn,
                "select count(*) from pgaudit_wf.log_leaf as l where l.event_id = any (%s)"
                " and l.leaf_index < (select max(c.size) from pgaudit_wf.log_checkpoint as c"
                " where c.note is not null)",
                [event_ids],
            )
        if sealed == len(event_ids) or time.monotonic() >= until:
            return bool(sealed == len(event_ids))
        time.sleep(0.25)


def write_bundle(
    conn: Connection,
    file: IO[bytes],
    org_id: str,
    *,
    until: datetime,
    since: datetime | None = None,
    old: str | None = None,
    archives: str | None = None,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> Bundled:
    """Write a bundle of an organization's events, and of the versions of its workflows.

    Nothing is kept in memory but a page of them; a temporary file has what is written twice.

    Args:
        conn: The owner's connection, in autocommit mode.
        file: A binary file that can seek.
        org_id: The organization.
        until: The end of the period.
        since: Its start; None: where `old` ends, or the beginning.
        old: The signed checkpoint that the auditor kept from last time.
        archives: Path or URL of the archives, to include events that are no longer in the database.
        limit: The most leaves to write.
        progress: Called from time to time with the number of leaves written.

    Raises:
        ProofError: Something is not what was sealed, or exceeds the limit; nothing is signed yet;
            or the log does not continue `old`.
        NoteError: `old` is not a signed checkpoint.
        ArchiveError: An archive cannot be read.
        psycopg.Error: The database could not answer.
    """
    with ArchivedEvents(conn, archives, org_id) as archived, translated(), conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        pin_format(conn)
        # Indexes have the order of the leaves, so that nothing is sorted or kept in memory.
        for setting in ("hashjoin", "mergejoin", "sort", "seqscan", "bitmapscan", "material"):
            conn.execute(sql.SQL("set local {} = off").format(sql.Identifier(f"enable_{setting}")))
        conn.execute("set local jit = off")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            work = _Bundle(conn, archive, org_id, archived)
            try:
                return work.write(since, until, old, limit, progress)
            except MissingTileError as error:
                raise ProofError(f"{error}; run pgaudit-wf verify") from error


class _Bundle:
    def __init__(
        self, conn: Connection, archive: zipfile.ZipFile, org_id: str, archived: ArchivedEvents
    ) -> None:
        self._conn = conn
        self._archive = archive
        self._org_id = org_id
        self._archived = archived
        self._note = newest_checkpoint(conn)
        self._size = Checkpoint.parse(Note.parse(self._note).text).size
        self._node = nodes_from_tiles(tile_reader(conn))
        # Erasures that took parts of the organization's events, and those already proved.
        self._releases: set[int] = set()
        self._proved: set[int] = set()

    def write(
        self,
        since: datetime | None,
        until: datetime,
        old: str | None,
        limit: int | None,
        progress: Callable[[int], None],
    ) -> Bundled:
        old_size = Checkpoint.parse(Note.parse(old).text).size if old else None
        period = {"since": since, "until": until}
        chain = leaves.ORGANIZATION + self._org_id
        place = {**period, "chain": chain, "size": self._size, "old_size": old_size}
        first, last = one(self._conn, _WITHIN, place)
        first, last = one(self._conn, _WIDENED, {**place, "first": first, "last": last})
        if limit is not None and last - first >= limit:
            raise ProofError(
                f"the period has {last - first + 1} events and versions, more than the {limit} that"
                " fit here; choose a shorter one, or use pgaudit-wf bundle"
            )
        (unnumbered,) = one(self._conn, _UNNUMBERED, {**period, "org": self._org_id})
        self._put("README.txt", _README)
        self._put("check.py", Path(check.__file__).read_text())
        self._put("bundle.json", dumps({
            "format": BUNDLE_FORMAT, "org_id": self._org_id, "since": _utc(since),
            "until": _utc(until), "unnumbered": unnumbered,
        }))  # fmt: skip
        self._put("checkpoint", self._note)
        self._put("old-checkpoint", old or "")
        proof = consistency_path(self._conn, old, self._note) if old else []
        self._put("consistency.json", json.dumps(proof))
        self._put_stamps()
        self._put("configuration.json", dumps(self._in_force(), 2))
        with self._member("configuration.ndjson") as out:
            for item in self._items(_CHAIN, [leaves.CONFIGURATION, 1, self._size, self._size]):
                out.write(_line(self._entry(item)))
        with tempfile.TemporaryFile() as lines, tempfile.TemporaryFile() as rows:
            rows.write(f"{','.join(CSV_COLUMNS)}\r\n".encode())
            with self._member("leaves.ndjson") as out:
                for item in self._items(_CHAIN, [chain, first - 1, last + 1, self._size]):
                    assert item.link is not None  # noqa: S101
                    entry = self._entry(item)
                    if not first <= item.link.number <= last:
                        if "leaf" not in entry:
                            continue
                        entry |= {"bracket": True, "opened": {}, "erased": {}}
                    out.write(_line(entry))
                    if "leaf" in entry and "bracket" not in entry:
                        texts = {part: opened["text"] for part, opened in entry["opened"].items()}
                        line, row = check.readable(entry["leaf"], texts, list(CSV_COLUMNS))
                        lines.write(line)
                        rows.write(row)
                    if item.link.number % 500 == 0:
                        progress(item.link.number - first)
            self._copy("events.ndjson", lines)
            self._copy("events.csv", rows)
        with self._member("releases.ndjson") as out:
            for event_id in sorted(self._releases - self._proved):
                for item in self._items(_EVENT, [event_id, self._size]):
                    # Another organization's is not for this one to see.
                    if item.row is not None and item.row.org_id in (None, self._org_id):
                        out.write(_line(self._entry(item)))
        count = last - first + 1
        progress(count)
        return Bundled(first if count else None, last if count else None, count)

    def _items(self, which: sql.Composable, parameters: list[object]) -> Iterator[Item]:
        return read_items(self._conn, which, parameters)

    def _in_force(self) -> dict[str, Any]:
        return {
            table: one(
                self._conn,
                sql.SQL(
                    "select coalesce(json_agg(to_jsonb(t) order by to_jsonb(t)::text), '[]')"
                    " from pgaudit_wf.{} as t"
                ).format(sql.Identifier(table)),
            )[0]
            for table in _IN_FORCE
        }

    def _entry(self, item: Item) -> dict[str, Any]:
        """Return a line about a leaf: it, the texts of its parts and the proof, or its hash."""
        path = inclusion_proof(item.index, self._size, self._node)
        entry: dict[str, Any] = {
            "index": item.index,
            "inclusion": [base64.b64encode(node).decode() for node in path],
        }
        stored = self._node(0, item.index)
        if item.row is None and item.is_event:
            item.row = self._archived.find(*item.subject[:2])
        if item.row is None:
            if not item.is_event:
                raise ProofError(f"{item.name} is missing; run pgaudit-wf verify")
            by = self._conn.execute(_ARCHIVED_BY, {"at": item.subject[2]}).fetchone()
            assert item.link is not None  # noqa: S101
            return entry | {
                "org_number": item.link.number, "hash": stored.hex(),
                "archived": by and str(by[0]),
            }  # fmt: skip
        kept = read_kept(self._conn, item.index) if item.salt is None else None
        try:
            leaf = item_leaf(item, item.row, kept)
        except ValueError as error:
            raise ProofError(f"{item.name}: {error}; run pgaudit-wf verify") from error
        if leaf_hash(leaves.canonical(leaf)) != stored:
            raise ProofError(f"{item.name} is not what was sealed; run pgaudit-wf verify")
        parts = leaves.parts_of(item.row)
        keys: dict[str, bytes | None]
        erased: dict[str, str] = {}
        if kept is None:
            keys = {part: leaves.part_key(item.salt or b"", part) for part, _ in parts}
        else:
            keys = {part: rest.key for part, rest in kept.items()}
            erased = {p: str(r.release_id) for p, r in kept.items() if r.release_id is not None}
        opened = {
            part: {"key": key.hex(), "text": text}
            for part, text in parts
            if (key := keys.get(part)) is not None
        }
        if item.chain == leaves.CONFIGURATION:
            self._proved.add(int(item.subject[0]))
            if leaf["action"] not in _OPEN:
                opened = {}
        else:
            self._releases |= {int(release) for release in erased.values()}
        entry |= {"leaf": leaf, "opened": opened, "erased": erased}
        if sum(len(part["text"]) for part in opened.values()) > check.MAX_LINE // 8:
            entry["opened"] = {}
        return entry

    def _put_stamps(self) -> None:
        found = self._conn.execute(_STAMPED, [self._size]).fetchone()
        if found is not None:
            note, responses = found
            # Just what was stamped, as `openssl ts -verify -data` reads it.
            self._put("stamped/checkpoint", str(log_part(note)))
            self._put("stamped/consistency.json", json.dumps(
                prove_consistency(self._conn, note, self._note)
            ))  # fmt: skip
            for number, response in enumerate(responses, 1):
                self._put(f"stamped/{number}.tsr", response)

    def _put(self, name: str, text: str | bytes) -> None:
        self._archive.writestr(_info(name), text)

    @contextmanager
    def _member(self, name: str) -> Iterator[IO[bytes]]:
        # Its size is not known beforehand.
        with self._archive.open(_info(name), "w", force_zip64=True) as file:
            yield file

    def _copy(self, name: str, source: IO[bytes]) -> None:
        source.seek(0)
        with self._member(name) as file:
            shutil.copyfileobj(source, file)


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    return info


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _utc(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat() if at else None
