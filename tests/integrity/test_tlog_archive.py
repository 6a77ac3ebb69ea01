"""Archived events against the tree, which outlives them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pgaudit_wf.archive.erase import archives_with, erase_from_archive, find_archived_values
from pgaudit_wf.archive.files import list_archives
from pgaudit_wf.archive.write import archive_partition
from pgaudit_wf.errors import ProofError
from pgaudit_wf.integrity.archives import archived_row, verify_archives
from pgaudit_wf.integrity.note import SigningKey
from pgaudit_wf.integrity.proof import check, prove_event
from pgaudit_wf.integrity.report import Report
from pgaudit_wf.integrity.seal import Sealer
from pgaudit_wf.integrity.verify import verify

KEY = SigningKey("example.com/audit", bytes(range(32)))
PARTITION = "security_audit_log_y2021m03"

Connection = psycopg.Connection[Any]


@pytest.fixture
def old(conn: Connection, tmp_path: Path) -> Connection:
    """Four events of 2021, sealed, archived and pruned, and one of today."""
    for label, ip, diff in (
        ("Ada", "198.51.100.1", None),
        (
            "Zoë \t😀",
            "2001:db8::1",
            '[{"op": "add", "path": "", "value": {"n": 0.10, "é": [1e30]}}]',
        ),
        (None, "::ffff:192.0.2.1", "[]"),
        ("Bob", "10.0.0.0/8", '[{"op": "replace", "path": "/to", "old": "ada@x.io", "value": 1}]'),
    ):
        conn.execute(
            "insert into pgaudit_wf.security_audit_log (occurred_at, actor_id, actor_label, ip,"
            " action, diff, attested) values ('2021-03-01 12:00:00.120', %s, %s, %s, 'thing.seen',"
            " %s, %s)",
            [f"u_{(label or 'none')[:3].lower()}", label, ip, diff, label == "Ada"],
        )
    conn.execute("select pgaudit_wf.add_log_partition('2021-03-01')")
    conn.execute("select pgaudit_wf.record_event('report.made', 'report', '1')")
    Sealer(KEY).step(conn)
    archive_partition(conn, PARTITION, str(tmp_path))
    # That it is archived has to be sealed before anything may go.
    with pytest.raises(psycopg.Error, match="is not sealed yet"):
        conn.execute("select pgaudit_wf.prune(%s)", [PARTITION])
    Sealer(KEY).step(conn)
    conn.execute("select pgaudit_wf.prune(%s)", [PARTITION])
    return conn


def verified(conn: Connection, place: Path) -> Report:
    report = verify(conn, [KEY.verifier])
    assert report.holds, report.problems
    verify_archives(conn, str(place), report)
    return report


def ids(conn: Connection) -> list[int]:
    return [
        row[0]
        for row in conn.execute("select event_id from pgaudit_wf.log_leaf order by leaf_index")
    ]


def test_pruned_events_are_checked_in_their_archive(old: Connection, tmp_path: Path) -> None:
    report = verified(old, tmp_path)
    assert (report.holds, report.events, report.pruned, report.archived) == (True, 2, 4, 4)


def test_a_pruned_event_is_proved(old: Connection, tmp_path: Path) -> None:
    for number, label in zip(ids(old)[:4], ("Ada", "Zoë \t😀", None, "Bob"), strict=True):
        with pytest.raises(ProofError, match="name the archive"):
            prove_event(old, number)
        proof = prove_event(old, number, archived_row(old, str(tmp_path), number))
        assert check(proof, [KEY.verifier]).event["actor_label"] == label
    with pytest.raises(ProofError, match="not in any archive"):
        archived_row(old, str(tmp_path), 999)


def rewrite(place: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    [path] = place.glob("*.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


@pytest.mark.parametrize(
    ("change", "kind", "place"),
    [
        (lambda rows: rows[1].update(action="thing.lost"), "altered", 1),
        (lambda rows: rows[1].update(diff=rows[1]["diff"].replace("0.10", "0.1")), "altered", 1),
        (lambda rows: rows[2].update(ip="192.0.2.2"), "altered", 2),
        (lambda rows: rows.pop(1), "removed", None),
    ],
)
def test_tampering_with_an_archive_is_named(
    old: Connection,
    tmp_path: Path,
    change: Callable[[list[dict[str, Any]]], object],
    kind: str,
    place: int | None,
) -> None:
    rewrite(tmp_path, change)
    problems = verified(old, tmp_path).problems
    assert (kind, None if place is None else ids(old)[place]) in [
        (problem.kind, problem.event_id) for problem in problems
    ]


def test_an_event_put_into_an_archive_is_named(old: Connection, tmp_path: Path) -> None:
    sealed = ids(old)
    old.execute("alter sequence pgaudit_wf.security_audit_log_id_seq restart 100")
    old.execute("select pgaudit_wf.record_event('report.made', 'report', '2')")
    Sealer(KEY).step(old)
    rewrite(tmp_path, lambda rows: rows.append({**rows[0], "id": 50}))
    problems = verified(old, tmp_path).problems
    assert [(problem.kind, problem.event_id) for problem in problems] == [("inserted", 50)]
    assert 50 not in sealed


def test_an_erasure_in_an_archive_still_verifies(old: Connection, tmp_path: Path) -> None:
    number = ids(old)[0]
    before = prove_event(old, number, archived_row(old, str(tmp_path), number))
    row = old.execute("select pgaudit_wf._begin_erasure('u_ada', true)").fetchone()
    assert row is not None
    [(archive_id, archive)] = archives_with(old, row[0])
    _, values = find_archived_values(old, [archive], "u_ada")
    erase_from_archive(old, archive_id, archive, "u_ada", row[0], values)
    old.execute("select pgaudit_wf.pseudonymise('u_ada')")
    Sealer(KEY).step(old)
    report = verified(old, tmp_path)
    assert (report.holds, report.archived) == (True, 4)
    after = prove_event(old, number, archived_row(old, str(tmp_path), number))
    assert after["leaf"] == before["leaf"]
    assert "who" not in after["opened"]
    found = old.execute(
        "select count(salt) from pgaudit_wf.log_leaf where event_id = %s", [number]
    ).fetchone()
    assert found == (0,)
    assert len(list_archives(str(tmp_path))) == 1
