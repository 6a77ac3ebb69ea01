"""One random act of the schema's hostile owner after a random history: verify tells.

`PGAUDIT_WF_TAMPER=1000` tries that many acts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest

from pgaudit_wf.archive.write import archive_partition
from pgaudit_wf.context.block import request_context
from pgaudit_wf.errors import SealError
from pgaudit_wf.integrity.archives import verify_archives
from pgaudit_wf.integrity.bundle import write_bundle
from pgaudit_wf.integrity.check import check_bundle, read_keys
from pgaudit_wf.integrity.note import SigningKey
from pgaudit_wf.integrity.proof import newest_checkpoint
from pgaudit_wf.integrity.report import Report
from pgaudit_wf.integrity.seal import Sealer
from pgaudit_wf.integrity.verify import verify
from support.tampering import LOG, unlock

ACTS = int(os.environ.get("PGAUDIT_WF_TAMPER", "48"))
ACTS_PER_HISTORY = 12 if ACTS < 100 else 50
MONTHS = ("2021-03", "2021-04", "2021-05")
ACTORS = ("u_1", "u_2", "u_3")

Connection = psycopg.Connection[Any]

# What verify does not vouch for, and why. A column that is not here is tried.
INVISIBLE = {
    ("workflow_history", "tx_id"): "only says where the sealer has got to; a leaf has the rest",
    ("workflow_history", "pruned_at"): "only a note: what is gone is what the sealed event says",
    ("log_checkpoint", "sealed_at"): "the database's own word, only shown as `intact_at`",
    ("erasure", "erased_at"): "only a note: actor.pseudonymised is sealed",
    ("erasure", "last_run_at"): "only a note: actor.pseudonymised is sealed",
    ("erasure", "events"): "only a note: actor.pseudonymised is sealed",
    ("erasure", "versions"): "only a note: actor.pseudonymised is sealed",
    ("erasure", "release_id"): "null but while an erasure is in progress",
    ("erased_event", "fields"): "only a note: log_kept says which parts are gone",
    ("erased_event", "erased_at"): "only a note: actor.pseudonymised is sealed",
}
# Not tried at all: `archive` (nothing of it is believed: audit.archived is sealed). Invisible by
# nature are a false newest event or version, sealed like a true one; one dated back by less than
# Clock can tell; and what is put back in the configuration before the next seal.

# What says what is recorded and how, but `limit_condition`, which the reference application leaves
# empty. Columns that say nothing of their own follow the tables' columns.
CONFIGURATION = (
    "attachment", "workflow_attachment", "execution_attachment", "config_alias", "action_schema",
    "action_rule", "alert_rule", "alert_policy", "retention_policy", "version_policy",
    "attestation_key", "canvas_key", "stream_destination", "waiver", "api_key_policy",
)  # fmt: skip
DERIVED = {
    "columns", "usage_granted", "written_for",
    # A table's number is another after a restore; the events name it.
    "target", "workflow_target",
}  # fmt: skip

# Rows on which something sealed depends; others may come and go.
VICTIMS = {
    "log_checkpoint": "t.size = (select max(size) from pgaudit_wf.log_checkpoint)",
    "erasure": (
        "exists (select from pgaudit_wf.erased_event as x join pgaudit_wf.log_leaf as l"
        " on l.event_id = x.event_id and l.salt is null"
        f" join {LOG} as e on e.id = x.event_id where x.actor_id = t.actor_id"
        " and e.actor_label = t.pseudonym)"
    ),
    "erased_event": (
        "exists (select from pgaudit_wf.log_leaf as l join pgaudit_wf.log_kept as k"
        f" using (leaf_index) join {LOG} as e on e.id = l.event_id"
        " join pgaudit_wf.erasure as r on r.actor_id = e.actor_id and e.actor_label = r.pseudonym"
        " where l.event_id = t.event_id and k.part = 'who' and k.commitment is not null"
        " and r.actor_id = t.actor_id)"
    ),
}
TABLES = (
    "security_audit_log", "workflow_history", "log_tile", "log_leaf", "log_kept", "log_checkpoint",
    "erasure", "erased_event",
)  # fmt: skip
SAVED = (
    *TABLES,
    "log_cosignature",
    "log_timestamp",
    "archive",
    "reader",
    "version_place",
    "log_generation",
    *CONFIGURATION,
)


def one(conn: Connection, statement: str, *values: object) -> Any:  # noqa: ANN401
    row = conn.execute(statement.encode(), values or None).fetchone()
    return row and row[0]


class History:
    """A random past, and the honest sealer."""

    def __init__(self, conn: Connection, random: Random, archives: Path) -> None:
        self.conn = conn
        self.random = random
        self.archives = archives
        self.keys = [SigningKey("example.com/audit", random.randbytes(32))]
        self.workflows: list[str] = []
        self.numbers = 0

    def seal(self) -> None:
        Sealer(self.keys[-1], batch=self.random.choice((7, 40, 5000))).run(self.conn)

    def verify(self, notes: dict[str, str]) -> Report:
        report = verify(self.conn, [key.verifier for key in self.keys], notes=notes)
        if report.holds and any(self.archives.iterdir()):
            verify_archives(self.conn, str(self.archives), report)
        return report

    def bundle(self, path: Path) -> dict[str, Any]:
        with path.open("wb") as file:
            write_bundle(self.conn, file, "o_1", until=datetime.now(UTC))
        return check_bundle(
            str(path), [k for key in self.keys for k in read_keys(str(key.verifier))]
        )

    def begin(self) -> None:
        self.conn.execute(
            "insert into pgaudit_wf.security_audit_log (occurred_at, action, actor_id, actor_label,"
            " metadata) select timestamptz '2021-03-10Z' + g %% 3 * interval '1 month'"
            " + g * interval '1 s', 'thing.seen', 'u_' || g %% 3 + 1, 'Name ' || g %% 3 + 1,"
            " '{\"n\": 1.0}' from generate_series(1, %s) as g",
            [self.random.choice((6, 30, 280))],
        )
        for month in MONTHS:
            self.conn.execute("select pgaudit_wf.add_log_partition(%s)", [f"{month}-01"])
        self.conn.execute("insert into organization (id, name) values ('o_1', 'Acme')")
        self.conn.execute("update pgaudit_wf.version_policy set keep_versions = 1")
        self.conn.execute("insert into pgaudit_wf.waiver values ('public.cache', 'A cache.')")
        self.conn.execute(
            "insert into pgaudit_wf.stream_destination (name, kind, url)"
            " values ('siem', 'splunk', 'https://siem.example.com')"
        )
        for actor in ACTORS:
            self.conn.execute(
                "insert into app_user (id, name, email) values (%s, %s, %s)",
                [actor, f"Name {actor}", f"{actor}@example.com"],
            )
        for _ in range(4):
            self.write()
        # Old enough for prune_history().
        self.conn.execute("alter table pgaudit_wf.workflow_history disable trigger append_only")
        self.conn.execute(
            "update pgaudit_wf.workflow_history set created_at = now() - interval '1 year'"
        )
        self.conn.execute(
            "alter table pgaudit_wf.workflow_history enable always trigger append_only"
        )

    def write(self) -> None:
        self.numbers += 1
        actor = self.random.choice(ACTORS)
        with request_context(self.conn, actor_id=actor, actor_label=f"Name {actor}", org_id="o_1"):
            if not self.workflows or self.random.random() < 0.2:
                self.workflows.append(
                    one(
                        self.conn,
                        "insert into workflow (org_id, user_id, name, nodes, edges)"
                        " values ('o_1', %s, 'Flow', '[]', '[]') returning id::text",
                        actor,
                    )
                )
            for _ in range(self.random.randrange(1, 4)):
                self.numbers += 1
                self.conn.execute(
                    "update workflow set name = %s, nodes = jsonb_build_array(jsonb_build_object("
                    "'id', %s::text, 'type', 'action', 'data', '{}'::jsonb)) where id = %s",
                    [
                        f"Flow {self.numbers}",
                        f"n{self.numbers}",
                        self.random.choice(self.workflows),
                    ],
                )

    def archive(self) -> None:
        self.seal()
        month = one(
            self.conn,
            "select min(partition_name) from pgaudit_wf.log_months() where to_time < '2022-01-01'",
        )
        if month is not None:
            archive_partition(self.conn, month, str(self.archives))
            self.seal()
            self.conn.execute("select pgaudit_wf.prune(%s)", [month])

    def erase(self) -> None:
        self.conn.execute("select pgaudit_wf.pseudonymise(%s)", [self.random.choice(ACTORS)])

    def prune_history(self) -> None:
        self.conn.execute("select pgaudit_wf.prune_history(3)")

    def rotate(self) -> None:
        self.seal()
        self.keys.append(SigningKey("example.com/audit", self.random.randbytes(32)))
        Sealer(self.keys[-1], rotate=True).run(self.conn)
        self.write()
        Sealer(self.keys[-1], rotate=True).run(self.conn)

    def configure(self) -> None:
        self.numbers += 1
        self.conn.execute(
            "insert into pgaudit_wf.retention_policy (action_pattern, keep_days) values (%s, 4000)",
            [f"thing_{self.numbers}.*"],
        )

    def play(self) -> None:
        self.begin()
        steps = [self.write, self.seal, self.archive, self.erase, self.prune_history]
        steps += [self.rotate, self.configure, self.write]
        for step in self.random.choices(steps, k=8):
            step()
        self.seal()


def other(random: Random, column: str, kind: str) -> str:
    """SQL for another value of a column."""
    return {
        "bigint": f"{column} + {random.choice((1, -1, 1000))}",
        "integer": f"{column} + {random.choice((1, -1))}",
        "smallint": f"{column} + {random.choice((1, -1))}",
        "boolean": f"not {column}",
        "timestamp with time zone": (
            f"{column} + interval '{random.choice(('1 microsecond', '-20 days'))}'"
        ),
        "jsonb": f"{column} || '{{\"forged\": 1}}'",
        "bytea": f"set_byte({column}, 5, 255 - get_byte({column}, 5))",
        "inet": "'192.0.2.77'",
        "pgaudit_wf.event_outcome": "'denied'",
        "text[]": f"{column} || 'x'::text",
    }.get(kind, f"{random.choice(('', 'a '))!r} || overlay({column} placing 'Q' from 1 for 1)")


class Owner:
    """The owner of the schema, all triggers off."""

    def __init__(self, conn: Connection, random: Random) -> None:
        self.conn = conn
        self.random = random
        unlock(conn)
        for table, name in conn.execute(
            "select conrelid::regclass::text, conname from pg_constraint where contype = 'c'"
            " and connamespace = 'pgaudit_wf'::regnamespace and coninhcount = 0"
            " and conrelid::regclass::text = any (%s)",
            [[f"pgaudit_wf.{table}" for table in SAVED]],
        ).fetchall():
            conn.execute(f'alter table {table} drop constraint "{name}"'.encode())
        # Of each table: the columns and their types.
        self.types: dict[str, dict[str, str]] = {}
        for table, column, kind in conn.execute(
            "select c.relname, a.attname, format_type(a.atttypid, null) from pg_attribute as a"
            " join pg_class as c on c.oid = a.attrelid"
            " where c.relnamespace = 'pgaudit_wf'::regnamespace and c.relname = any (%s)"
            " and a.attnum > 0 and not a.attisdropped order by 1, a.attnum",
            [list(SAVED)],
        ):
            self.types.setdefault(table, {})[column] = kind
        # The event that the report has to name, and whether only the next seal can tell.
        self.event_id: int | None = None
        self.tells_later = False
        self.sequence = one(conn, "select last_value from pgaudit_wf.security_audit_log_id_seq")
        conn.execute("create schema saved")
        for table in SAVED:
            conn.execute(f"create table saved.{table} as table pgaudit_wf.{table}".encode())

    def undo(self) -> None:
        with self.conn.transaction():
            for table in SAVED:
                self.conn.execute(f"delete from pgaudit_wf.{table}".encode())
                self.conn.execute(
                    f"insert into pgaudit_wf.{table} overriding system value"
                    f" table saved.{table}".encode()
                )
            self.conn.execute(
                "select setval('pgaudit_wf.security_audit_log_id_seq', %s)", [self.sequence]
            )

    def victim(self, table: str) -> str | None:
        """SQL for a random row's place, which stays the same while a statement runs."""
        rows = self.conn.execute(
            f"select t.tableoid, t.ctid::text from pgaudit_wf.{table} as t"
            f" where {VICTIMS.get(table, 'true')} order by 1, t.ctid".encode()
        ).fetchall()
        if not rows:
            return None
        oid, place = self.random.choice(rows)
        found = f"tableoid = {oid} and ctid = '{place}'"
        if table == "security_audit_log":
            self.event_id = one(self.conn, f"select id from {LOG} where {found}")
        return found

    def alter(self) -> str | None:
        table = self.random.choice(TABLES)
        visible = [c for c in self.types[table] if (table, c) not in INVISIBLE]
        column = self.random.choice(visible)
        victim = self.victim(table)
        value = other(self.random, column, self.types[table][column])
        if (table, column) == ("log_leaf", "occurred_at"):
            # Within the month, nobody looks at that of a pruned event: its archive has another.
            victim = victim and (f"{victim} and event_id in (select id from {LOG})")
        return victim and (
            f"update pgaudit_wf.{table} set {column} = {value} where {victim}"
            f" and ({value}) is distinct from {column}"
        )

    def remove(self) -> str | None:
        # The note that was kept says the same as the newest checkpoint; the older ones add nothing.
        table = self.random.choice([t for t in TABLES if t != "log_checkpoint"])
        victim = self.victim(table)
        return victim and f"delete from pgaudit_wf.{table} where {victim}"

    def swap(self) -> str | None:
        table = self.random.choice(("security_audit_log", "workflow_history", "log_leaf"))
        visible = [c for c in self.types[table] if (table, c) not in INVISIBLE]
        column = self.random.choice(visible)
        first, second = self.victim(table), self.victim(table)
        if first is None or second is None or column == "occurred_at":
            return None
        source = f"select {column} from pgaudit_wf.{table} where"
        return (
            f"update pgaudit_wf.{table} set {column} ="
            f" case when {first} then ({source} {second}) else ({source} {first}) end"
            f" where (({first}) or ({second}))"
            f" and ({source} {first}) is distinct from ({source} {second})"
        )

    def insert(self) -> str | None:
        """A row like another that was sealed, but for its place: never a plausible newest one."""
        changes = self.random.choice((
            ("security_audit_log", {"id": "id", "occurred_at": "occurred_at + interval '1 s'"}),
            ("security_audit_log", {"id": "id", "tx_id": "txid_current()"}),
            ("security_audit_log", {"id": "-id"}),
            ("security_audit_log", {"id": "id + 100000", "tx_id": "tx_id - 1"}),
            ("security_audit_log", {"id": "id + 100000", "tx_id": "tx_id + 1000000"}),
            ("workflow_history", {"workflow_id": "workflow_id || 'x'"}),
            ("log_tile", {"tile_number": "tile_number + 1"}),
            ("log_tile", {"tile_number": "tile_number - 1"}),
            ("log_tile", {"level": "level - 1"}),
            ("log_leaf", {"leaf_index": "(select max(leaf_index) + 1 from pgaudit_wf.log_leaf)"}),
            ("log_leaf", {"leaf_index": "-1"}),
            ("log_checkpoint", {"size": "size + 1"}),
            ("log_checkpoint", {"size": "size - 1"}),
        ))  # fmt: skip
        table, values = changes
        if table == "workflow_history":
            # Otherwise it is a new version.
            values = {**values, "tx_id": "0"}
        victim = self.victim(table)
        names = list(self.types[table])
        return victim and (
            f"insert into pgaudit_wf.{table} ({', '.join(names)}) overriding system value"
            f" select {', '.join(values.get(c, c) for c in names)}"
            f" from pgaudit_wf.{table} where {victim}"
        )

    def cut(self) -> str:
        """Back to an older checkpoint, so that nothing in the database tells."""
        return """
            create temp table cut on commit drop as select coalesce(max(size), 0) as size
            from pgaudit_wf.log_checkpoint
            where size < (select max(size) from pgaudit_wf.log_checkpoint);
            delete from pgaudit_wf.security_audit_log as e using pgaudit_wf.log_leaf as l, cut
            where l.event_id = e.id and l.leaf_index >= cut.size;
            delete from pgaudit_wf.log_leaf as l using cut where l.leaf_index >= cut.size;
            delete from pgaudit_wf.log_tile as t using cut
            where t.level > 0 or t.tile_number * 256 >= cut.size;
            update pgaudit_wf.log_tile as t
            set hashes = substr(hashes, 1, least(256, cut.size - t.tile_number * 256)::integer * 32)
            from cut;
            delete from pgaudit_wf.log_checkpoint as c using cut where c.size > cut.size
        """

    def set_back(self) -> str:
        """What is given out or taken next; version_place is not tried, as a sealer only looks."""
        self.tells_later = True
        return self.random.choice((
            "update pgaudit_wf.reader set cursor = null where name = 'seal'",
            f"select setval('pgaudit_wf.security_audit_log_id_seq', min(id)) from {LOG}",
        ))  # fmt: skip

    def reconfigure(self) -> str | None:
        """Change what is recorded, and how; the next seal tells."""
        table = self.random.choice(CONFIGURATION)
        victim = self.victim(table)
        if victim is None:
            return None
        self.tells_later = True
        if self.random.random() < 0.2:
            return f"delete from pgaudit_wf.{table} where {victim}"
        column = self.random.choice([c for c in self.types[table] if c not in DERIVED])
        value = other(self.random, column, self.types[table][column])
        return (
            f"update pgaudit_wf.{table} set {column} = {value} where {victim}"
            f" and ({value}) is distinct from {column}"
        )

    def act(self) -> str:
        """Do something that changes something; return what."""
        acts: list[Callable[[], str | None]] = [self.alter] * 6
        acts += [self.remove, self.remove, self.swap, self.insert, self.insert]
        acts += [self.random.choice((self.cut, self.set_back)), self.reconfigure]
        while True:
            self.event_id, self.tells_later = None, False
            chosen = self.random.choice(acts)
            statement = chosen()
            if statement is None:
                continue
            if chosen not in (self.alter, self.remove):
                self.event_id = None
            try:
                with self.conn.transaction():
                    if self.conn.execute(statement.encode()).rowcount != 0:
                        return statement
            # A column may be generated.
            except (
                psycopg.errors.IntegrityError,
                psycopg.errors.DataError,
                psycopg.errors.SyntaxError,
                psycopg.errors.ProgrammingError,
            ):
                continue


@pytest.mark.parametrize("seed", range(max(1, ACTS // ACTS_PER_HISTORY)))
def test_whatever_the_owner_does_is_told(app_conn: Connection, tmp_path: Path, seed: int) -> None:
    random = Random(int(os.environ.get("PGAUDIT_WF_TAMPER_SEED", "0")) + seed)
    history = History(app_conn, random, tmp_path)
    history.play()
    notes = {"auditor.txt": newest_checkpoint(app_conn)}
    report = history.verify(notes)
    assert report.holds, report.problems
    bundle = history.bundle(tmp_path.with_suffix(".zip"))
    assert (bundle["problems"], "withheld" in bundle["gone"]) == ([], False)
    owner = Owner(app_conn, random)
    missed = []
    untold = len(report.untold)
    for _ in range(ACTS_PER_HISTORY):
        done = owner.act()
        is_sealed_after = owner.tells_later or random.random() < 0.5
        is_refused = False
        if is_sealed_after:
            app_conn.execute("select pgaudit_wf.record_event('report.made', 'report', '1')")
            try:
                history.seal()
            except SealError:
                is_refused = True
        report = history.verify(notes)
        named = {problem.event_id for problem in report.problems}
        # A checkpoint without a signature is told as such.
        is_told = not report.holds or is_refused or report.unsigned > 0
        is_told |= len(report.untold) > untold
        if not is_told or (owner.event_id is not None and owner.event_id not in named):
            missed.append((is_sealed_after, owner.event_id, done, report.problems[:3]))
        owner.undo()
    report = history.verify(notes)
    assert report.holds, report.problems
    assert not missed, "\n".join(map(str, missed))
