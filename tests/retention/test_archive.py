"""Archives hold exactly what the log held, and are read with it as one trail."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import psycopg
import pyarrow.parquet as pq
import pytest
from psycopg import sql

from pgaudit_wf import request_context
from pgaudit_wf.archive.files import list_archives, verify_archive
from pgaudit_wf.archive.read import archived_trail
from pgaudit_wf.archive.write import archive_partition
from pgaudit_wf.errors import AccessDeniedError, ArchiveError, CursorError, DatabaseError
from pgaudit_wf.trail.reads import TrailEntry, audit_trail
from support.asserting import application_trail
from support.server import Conn

HARD = ("Zoë \u202e'\"\\ \n\t\x7f", "=cmd()", "", "😀", "100%_\\")
OLD, OLDER = datetime(2021, 3, 15, tzinfo=UTC), datetime(2021, 2, 15, tzinfo=UTC)
PARTITIONS = ("security_audit_log_y2021m02", "security_audit_log_y2021m03")


@pytest.fixture(autouse=True)
def spool(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a reader is refused is put aside by request_context: not in this machine's home."""
    monkeypatch.setenv("PGAUDIT_WF_SPOOL", str(tmp_path_factory.mktemp("spool") / "attempts.jsonl"))


@pytest.fixture
def old(conn: Conn) -> Conn:
    """Two old months with events of all kinds, and some of today."""
    write = random.Random(7)
    for number in range(300):
        at = [OLDER, OLD, datetime.now(UTC)][number % 3] + timedelta(microseconds=number // 6)
        conn.execute(
            "insert into pgaudit_wf.security_audit_log (occurred_at, actor_id, actor_label, org_id,"
            " org_label, auth_method, api_key_id, action, resource_type, resource_id, outcome,"
            " captured, diff, metadata, ip, country, user_agent, correlation_id)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                at, write.choice(["u_1", "u_2", None]), write.choice([*HARD, None]),
                write.choice(["o_1", "o_2", None]), write.choice([*HARD, None]),
                write.choice(["session", None]), write.choice(["k_1", None]),
                write.choice(["thing.created", "api_key.created", "apixkey.created"]),
                write.choice(["thing", None]), write.choice(["1", '["a", "b"]', None]),
                write.choice(["succeeded", "failed", "denied"]), write.choice([True, False]),
                write.choice([
                    None, '[]', '[{"op": "replace", "path": "/n", "old": 0.10, "value": 1e300}]',
                    json.dumps([{"op": "add", "path": "", "value": {"t": HARD[0]}}]),
                ]),
                json.dumps({"label": write.choice(HARD), "reason": write.choice(HARD)}),
                write.choice(["203.0.113.9", "2001:db8::1", "10.0.0.0/8", None]),
                write.choice(["AT", None]), write.choice(["Mozilla/5.0 (%s)", None]),
                f"r_{number}",
            ],
        )  # fmt: skip
    for name in PARTITIONS:
        month = f"{name[-7:-3]}-{name[-2:]}-01"
        row = conn.execute("select pgaudit_wf.add_log_partition(%s)", [month]).fetchone()
        assert row == (name,)
    return conn


@pytest.fixture(params=["path", "file://", "memory://"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Somewhere to archive to."""
    if request.param == "memory://":
        yield "memory://audit/log"
        fsspec.filesystem("memory").rm("/audit", recursive=True)
    else:
        yield f"{request.param if '/' in request.param else ''}{tmp_path}/audit log"


def prune(conn: Conn, partition: str) -> int:
    row = conn.execute("select pgaudit_wf.prune(%s)", [partition]).fetchone()
    assert row
    return int(row[0])


def test_a_month_is_archived_with_a_manifest_that_tells_the_truth(
    old: Conn, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    archive = archive_partition(
        old, PARTITIONS[1], str(tmp_path), lambda done, total: seen.append((done, total))
    )
    where = old.execute(
        "select system_identifier::text, oid::text, datname, log_id::text"
        " from pg_control_system(), pg_database, pgaudit_wf.alert_policy"
        " where datname = current_database()"
    ).fetchone()
    assert where
    name = f"{PARTITIONS[1]}.{where[0]}-{where[1]}"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.manifest.json", f"{name}.parquet"
    ]  # fmt: skip
    manifest = json.loads((tmp_path / f"{name}.manifest.json").read_text())
    told = ("system_identifier", "database_oid", "database", "log_id")
    assert tuple(manifest[key] for key in told) == where
    data = (tmp_path / f"{name}.parquet").read_bytes()
    assert manifest == archive.manifest
    assert manifest["sha256"] == hashlib.sha256(data).hexdigest()
    assert manifest["bytes"] == len(data)
    assert seen == [(100, 100)]
    counted = old.execute(
        "select count(*), min(id), max(id), min(tx_id), max(tx_id), min(occurred_at),"
        " max(occurred_at) from pgaudit_wf.security_audit_log_y2021m03"
    ).fetchone()
    assert counted
    names = ("events", "first_id", "last_id", "first_tx_id", "last_tx_id")
    assert tuple(manifest[name] for name in names) == counted[:5]
    assert datetime.fromisoformat(manifest["first_occurred_at"]) == counted[5]
    assert datetime.fromisoformat(manifest["last_occurred_at"]) == counted[6]
    assert old.execute(
        "select partition_name, events, live_events, first_id, last_id, url, sha256, manifest"
        " from pgaudit_wf.archive"
    ).fetchall() == [
        (PARTITIONS[1], 100, 100, counted[1], counted[2], archive.url, manifest["sha256"], manifest)
    ]
    # Any Parquet reader gives back what the log holds.
    rows = pq.read_table(tmp_path / f"{name}.parquet").to_pylist()
    columns = list(rows[0])
    live = old.execute(
        sql.SQL("select {} from pgaudit_wf.security_audit_log_y2021m03 order by tx_id, id").format(
            sql.SQL(", ").join(
                sql.SQL("{}::text").format(sql.Identifier(name))
                if name in ("diff", "metadata")
                else sql.Identifier(name)
                for name in columns
            )
        )
    ).fetchall()
    place = columns.index("ip")
    assert [tuple(row.values()) for row in rows] == [
        (*row[:place], row[place] and str(row[place]), *row[place + 1 :]) for row in live
    ]


def test_live_and_archived_are_one_trail(old: Conn, place: str) -> None:
    before = list(application_trail(old))
    assert len(before) == 300
    for partition in PARTITIONS:
        archive_partition(old, partition, place)
    archives = list_archives(place)
    assert [archive.manifest["partition"] for archive in archives] == list(PARTITIONS)
    # Archived and not dropped yet, then half of it, then all.
    assert list(application_trail(old, archives)) == before
    assert prune(old, PARTITIONS[0]) == 100
    assert list(application_trail(old, archives)) == before
    assert prune(old, PARTITIONS[1]) == 100
    assert len(list(application_trail(old))) == 100
    assert list(application_trail(old, archives)) == before
    for archive in archives:
        verify_archive(archive)


FILTERS: list[dict[str, Any]] = [
    {"org_id": "o_1"}, {"actor_id": "u_2"}, {"action": "api_key.*"}, {"action": "api_key.created"},
    {"action": "*.created"}, {"resource_type": "thing"}, {"resource_id": '["a", "b"]'},
    {"outcome": "denied"}, {"correlation_id": "r_7"}, {"since": OLD}, {"until": OLD},
    {"since": OLDER + timedelta(microseconds=10), "until": OLD + timedelta(microseconds=10)},
    {"search": "ZOË"}, {"search": "%_\\"}, {"search": "203.0.113"}, {"search": "mozilla"},
    {"search": "=cmd", "org_id": "o_2", "outcome": "failed"}, {"search": "no such text"},
    {"search": "Ada"}, {"action": ["api_key.*", "x_y"]}, {"not_action": ["api_key.*"]},
    {"actor_id": ["u_1", "u_2"]}, {"not_actor_id": "u_2"}, {"not_actor_id": ["u_1", "u_2"]},
    {"not_resource_type": ["thing"]}, {"network": "203.0.113.0/24"}, {"network": "10.0.0.0/7"},
    {"network": "2001:db8::/32"}, {"value": HARD[0]},
]  # fmt: skip


def test_filters_and_cursors_hold_in_archives_as_in_the_log(old: Conn, tmp_path: Path) -> None:
    old.execute(
        "create or replace view pgaudit_wf.actor_directory as"
        " select 'u_1'::text as actor_id, 'Ada'::text as name, 'ada@example.com'::text as email"
    )
    expected = [list(application_trail(old, **filters)) for filters in FILTERS]
    whole = list(application_trail(old))
    for partition in PARTITIONS:
        archive_partition(old, partition, str(tmp_path))
        prune(old, partition)
    archives = list_archives(str(tmp_path))
    for filters, entries in zip(FILTERS, expected, strict=True):
        assert list(application_trail(old, archives, **filters)) == entries, filters
    assert sum(map(bool, expected)) == len(FILTERS) - 1
    # The cursor of any entry goes on after it, wherever that lies.
    for cut in (0, 50, 99, 100, 150, 199, 200, 298, 299):
        rest = list(application_trail(old, archives, whole[cut].cursor))
        assert rest == whole[cut + 1 :]
    with pytest.raises(CursorError):
        list(archived_trail(old, archives, "nonsense"))


def test_readers_see_their_organization_only(old: Conn, tmp_path: Path) -> None:
    old.execute(
        "create or replace view pgaudit_wf.org_member as select 'o_1'::text as org_id,"
        " 'u_1'::text as actor_id, 'owner'::text as role"
    )
    mine = {entry.id for entry in application_trail(old, org_id="o_1")}
    for partition in PARTITIONS:
        archive_partition(old, partition, str(tmp_path))
        prune(old, partition)
    archives = list_archives(str(tmp_path))
    old.execute("set role pgaudit_wf_reader")
    with request_context(old, actor_id="u_1", org_id="o_1"):
        assert {entry.id for entry in application_trail(old, archives)} == mine
    with pytest.raises(AccessDeniedError), request_context(old, actor_id="u_2", org_id="o_1"):
        list(archived_trail(old, archives))
    with pytest.raises(AccessDeniedError), request_context(old, actor_id="u_1", org_id="o_1"):
        list(archived_trail(old, archives, org_id="o_2"))


def test_a_late_event_is_archived_in_a_second_file(old: Conn, tmp_path: Path) -> None:
    first = archive_partition(old, PARTITIONS[0], str(tmp_path))
    old.execute(
        "insert into pgaudit_wf.security_audit_log (action, occurred_at) values ('late', %s)",
        [OLDER],
    )
    with pytest.raises(psycopg.Error, match="101 events, and 100 of them are archived"):
        prune(old, PARTITIONS[0])
    before = list(application_trail(old))
    second = archive_partition(old, PARTITIONS[0], str(tmp_path))
    assert second.manifest["file"] == first.manifest["file"].replace(".parquet", ".2.parquet")
    assert prune(old, PARTITIONS[0]) == 101
    assert list(application_trail(old, list_archives(str(tmp_path)))) == before


def damage(path: Path, change: bytes) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(change)] = change
    path.write_bytes(bytes(data))


def test_damage_is_found(old: Conn, tmp_path: Path) -> None:
    archive = archive_partition(old, PARTITIONS[0], str(tmp_path))
    [path] = tmp_path.glob("*.parquet")
    good = path.read_bytes()
    verify_archive(archive)
    damage(path, b"x")
    with pytest.raises(ArchiveError, match="SHA-256"):
        verify_archive(archive)
    path.write_bytes(good)
    for name, value in [("events", 99), ("first_id", 0), ("content_sha256", "0" * 64)]:
        with pytest.raises(ArchiveError, match=name):
            verify_archive(type(archive)(archive.url, {**archive.manifest, name: value}))
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        verify_archive(archive)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no archives found"):
        list_archives(str(tmp_path))
    with pytest.raises(ArchiveError, match="no archives found"):
        list_archives(str(tmp_path / "nowhere"))
    (tmp_path / "a.manifest.json").write_text("[]")
    with pytest.raises(ArchiveError, match="not the manifest"):
        list_archives(str(tmp_path))
    (tmp_path / "a.manifest.json").write_text('{"schema_version": 2}')
    with pytest.raises(ArchiveError, match="version 2"):
        list_archives(str(tmp_path))
    with pytest.raises(ArchiveError, match=r"//\*\*\*@h"):
        list_archives("nosuch://user:secret@h/x")


def test_only_months_with_events_are_archived(conn: Conn, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError) as caught:
        archive_partition(conn, "security_audit_log_default", str(tmp_path))
    assert caught.value.sqlstate == "PA340"
    conn.execute("select pgaudit_wf.add_log_partition('2021-03-01')")
    with pytest.raises(ArchiveError, match="no events"):
        archive_partition(conn, PARTITIONS[1], str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_back_is_not_noted(
    old: Conn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses what was written: the file changes between writing and reading back."""
    real = os.fsync

    def lose(descriptor: int) -> None:
        real(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.suffix == ".tmp":
            damage(path, b"lost")

    monkeypatch.setattr(os, "fsync", lose)
    with pytest.raises(ArchiveError, match="SHA-256"):
        archive_partition(old, PARTITIONS[0], str(tmp_path))
    monkeypatch.undo()
    assert old.execute("select from pgaudit_wf.archive").fetchall() == []
    assert not list(tmp_path.glob("*.parquet"))
    archive_partition(old, PARTITIONS[0], str(tmp_path))
    assert not list(tmp_path.glob(".*"))


def test_an_event_that_commits_meanwhile_is_noticed(old: Conn, dsn: str, tmp_path: Path) -> None:
    def commit_one(done: int, total: int) -> None:
        with psycopg.connect(dsn) as other:
            other.execute(
                "insert into pgaudit_wf.security_audit_log (action, occurred_at) values ('x', %s)",
                [OLDER],
            )

    with pytest.raises(DatabaseError) as caught:
        archive_partition(old, PARTITIONS[0], str(tmp_path), commit_one)
    assert caught.value.sqlstate == "PA350"
    archive_partition(old, PARTITIONS[0], str(tmp_path))
    assert prune(old, PARTITIONS[0]) == 101


CONSTANT = """
import sys
import psycopg
from pgaudit_wf.archive.write import archive_partition
from pgaudit_wf.archive.files import list_archives
from pgaudit_wf.archive.read import whole_trail
from pgaudit_wf.export.trail import export_trail
with psycopg.connect(sys.argv[1], autocommit=True) as conn:
    if sys.argv[3] == "archive":
        archive_partition(conn, "security_audit_log_y2021m03", sys.argv[2])
    elif sys.argv[3] == "read":
        archives = list_archives(sys.argv[2])
        assert sum(1 for _ in whole_trail(conn, archives, action="x")) == 30000
    else:
        with open("/dev/null", "w") as file:
            assert export_trail(conn, sys.argv[3], file) == 30001
# Not ru_maxrss: a child inherits that of whoever started it.
status = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(status["VmHWM"].split()[0]) // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_events(
    conn: Conn, dsn: str, tmp_path: Path
) -> None:
    """30,000 events of 8 kB: many times 240 MB if they were held as objects."""
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (action, occurred_at, metadata)"
        " select 'x', timestamptz '2021-03-01' + g * interval '1 second',"
        " jsonb_build_object('label', repeat(md5(g::text), 250))"
        " from generate_series(1, 30000) as g"
    )
    conn.execute("select pgaudit_wf.add_log_partition('2021-03-01')")
    used = {}
    for what in ("archive", "ndjson", "read"):
        if what == "read":
            prune(conn, PARTITIONS[1])
        run = subprocess.run(
            [sys.executable, "-c", CONSTANT, dsn, str(tmp_path), what],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        used[what] = int(run.stdout)
    assert max(used.values()) < 350, used


def test_a_document_that_the_trail_gives_by_its_digest_is_not_loaded_from_an_archive(
    conn: Conn, tmp_path: Path
) -> None:
    conn.execute(
        "insert into pgaudit_wf.security_audit_log"
        " (occurred_at, action, actor_id, actor_label, diff, metadata)"
        " values ('2021-02-15', 'x', 'u_1', 'Una', jsonb_build_array(jsonb_build_object("
        "  'op', 'add', 'path', '/a', 'value', repeat('é', 8388608))), '{\"label\": \"Una\"}'),"
        " ('2021-02-15', 'x', 'u_1', 'Una', '[]', jsonb_build_object('n', repeat('x', 16777216)))"
    )
    conn.execute("select pgaudit_wf.add_log_partition('2021-02-01')")
    live = audit_trail(conn, page_size=2, until=OLD).entries
    assert [len(str(entry)) < 2_000 for entry in live] == [True, True]
    archive_partition(conn, PARTITIONS[0], str(tmp_path))
    archives = list_archives(str(tmp_path))
    assert tuple(archived_trail(conn, archives)) == live
    conn.execute("select pgaudit_wf.pseudonymise('u_1')")
    masked = list(archived_trail(conn, archives))
    assert [entry.diff for entry in masked] == [entry.diff for entry in live]
    assert "Una" not in str(masked)


def test_entries_are_what_the_trail_gives(old: Conn, tmp_path: Path) -> None:
    page = audit_trail(old, until=OLD, page_size=1).entries
    archive_partition(old, PARTITIONS[0], str(tmp_path))
    [entry] = list(archived_trail(old, list_archives(str(tmp_path)), until=OLD))[:1]
    assert isinstance(entry, TrailEntry)
    assert (entry,) == page
