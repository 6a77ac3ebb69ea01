"""What is gone may be gone only by a sealed event; tables that say so are not believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgaudit_wf.archive.write import archive_partition
from pgaudit_wf.errors import NotSealedError
from pgaudit_wf.integrity.archives import verify_archives
from pgaudit_wf.integrity.note import SigningKey
from pgaudit_wf.integrity.report import Problem, Report
from pgaudit_wf.integrity.seal import Sealer
from pgaudit_wf.integrity.verify import verify
from pgaudit_wf.jobs.maintain import Hook, maintain
from support.tampering import unlock

KEY = SigningKey("example.com/audit", bytes(range(32)))
MONTHS = ("2021-03", "2021-04")

Connection = psycopg.Connection[Any]


def seal(conn: Connection) -> None:
    Sealer(KEY).run(conn)


def problems(conn: Connection) -> list[Problem]:
    return verify(conn, [KEY.verifier]).problems


def partition(month: str) -> str:
    return f"security_audit_log_y{month.replace('-', 'm')}"


@pytest.fixture
def log(conn: Connection, tmp_path: Path) -> Connection:
    """Two old months of three hundred events each, sealed; March is archived, sealed and pruned."""
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (occurred_at, action, actor_id, actor_label)"
        " select case g % 2 when 0 then timestamptz '2021-03-10Z' else '2021-04-10Z' end"
        " + g * interval '1 s', 'thing.seen', 'u_ada', 'Ada' from generate_series(1, 600) as g"
    )
    for month in MONTHS:
        conn.execute("select pgaudit_wf.add_log_partition(%s)", [f"{month}-01"])
    seal(conn)
    archive_partition(conn, partition(MONTHS[0]), str(tmp_path))
    seal(conn)
    conn.execute("select pgaudit_wf.prune(%s)", [partition(MONTHS[0])])
    seal(conn)
    return conn


def test_a_pruned_month_is_what_was_archived(log: Connection, tmp_path: Path) -> None:
    report = verify(log, [KEY.verifier])
    assert (report.holds, report.pruned, report.events) == (True, 300, 303), report.problems
    verify_archives(log, str(tmp_path), report)
    assert (report.holds, report.archived) == (True, 300)


def test_what_is_archived_stays_until_that_is_signed(log: Connection, tmp_path: Path) -> None:
    archive_partition(log, partition(MONTHS[1]), str(tmp_path))
    with pytest.raises(psycopg.Error, match="is not sealed yet") as caught:
        log.execute("select pgaudit_wf.prune(%s)", [partition(MONTHS[1])])
    assert caught.value.sqlstate == "PA345"
    seal(log)
    log.execute("select pgaudit_wf.prune(%s)", [partition(MONTHS[1])])
    assert verify(log, [KEY.verifier]).pruned == 600


def test_a_month_is_archived_once_all_of_it_is_sealed(log: Connection, tmp_path: Path) -> None:
    log.execute(
        "insert into pgaudit_wf.security_audit_log (occurred_at, action)"
        " values ('2021-04-30 12:00Z', 'thing.late')"
    )
    with pytest.raises(NotSealedError, match="are not sealed yet: 1 of them"):
        archive_partition(log, partition(MONTHS[1]), str(tmp_path))


def test_what_was_archived_before_sealing_began_is_archived_again(
    conn: Connection, tmp_path: Path
) -> None:
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (occurred_at, action)"
        " values ('2021-03-30 12:00Z', 'thing.seen')"
    )
    conn.execute("select pgaudit_wf.add_log_partition('2021-03-01')")
    archive_partition(conn, partition(MONTHS[0]), str(tmp_path))
    seal(conn)
    with pytest.raises(psycopg.Error, match="0 of them are archived"):
        conn.execute("select pgaudit_wf.prune(%s)", [partition(MONTHS[0])])
    archive_partition(conn, partition(MONTHS[0]), str(tmp_path))
    seal(conn)
    conn.execute("select pgaudit_wf.prune(%s)", [partition(MONTHS[0])])
    assert verify(conn, [KEY.verifier]).holds


def test_maintenance_that_seals_prunes_in_one_run(log: Connection, tmp_path: Path) -> None:
    waiting = [step for step in maintain(log, archive_url=str(tmp_path)) if step.kind == "prune"]
    assert [step.problem for step in waiting] == [
        f"that {partition(MONTHS[1])} is archived is not sealed yet"
    ]
    hook = Hook("seal", lambda conn, _: Sealer(KEY).run(conn).events)
    done = list(maintain(log, archive_url=str(tmp_path), hooks=[hook]))
    assert ("prune", 300, None) in [(step.kind, step.events, step.problem) for step in done]
    log.execute(
        "insert into pgaudit_wf.security_audit_log (occurred_at, action)"
        " values ('2021-05-30 12:00Z', 'thing.seen')"
    )
    log.execute("select pgaudit_wf.add_log_partition('2021-05-01')")
    done = list(maintain(log, archive_url=str(tmp_path), hooks=[hook]))
    assert [step.problem for step in done] == [None] * 3
    assert verify(log, [KEY.verifier]).pruned == 601


def victims(conn: Connection) -> list[int]:
    rows = conn.execute(
        "select id from pgaudit_wf.security_audit_log where occurred_at between '2021-04-01'"
        " and '2021-04-30' order by id limit 2"
    ).fetchall()
    return [row[0] for row in rows]


# What the owner of the schema may write to cover that two events of April were deleted.
COVERS = {
    "nothing": "select 1",
    "a row that says that the month was pruned": (
        "insert into pgaudit_wf.archive (partition_name, from_time, to_time, events, live_events,"
        " pruned_at) values ('security_audit_log_y2021m04', '2021-04-01Z', '2021-05-01Z', 0, 0,"
        " '2021-08-01')"
    ),
    "leaves moved to the month that was": (
        "update pgaudit_wf.log_leaf as l set occurred_at = l.occurred_at - interval '1 month'"
        " where not exists (select from pgaudit_wf.security_audit_log as e where e.id = l.event_id)"
        " and l.occurred_at > '2021-04-01'"
    ),
    "an event that the application could report": (
        "select pgaudit_wf.record_event('audit.archived', metadata => jsonb_build_object("
        "'month', '2021-04') || to_jsonb(m)) from pgaudit_wf._month_leaves("
        "'2021-04-01Z', '2021-05-01Z') as m"
    ),
    "an event of the month with wrong numbers": (
        "select pgaudit_wf._record_release(pgaudit_wf._next_event_id(), 'audit.archived', null,"
        " null, null, jsonb_build_object('month', '2021-04', 'leaves', 2, 'tree_size', 600,"
        " 'digest', repeat('0', 64)))"
    ),
}


@pytest.mark.parametrize("cover", COVERS)
@pytest.mark.parametrize("sealed_after", [False, True])
def test_events_that_were_never_archived_are_missed(
    log: Connection, cover: str, sealed_after: bool
) -> None:
    gone = victims(log)
    unlock(log)
    log.execute("delete from pgaudit_wf.security_audit_log where id = any(%s)", [gone])
    log.execute(COVERS[cover].encode())
    if sealed_after:
        seal(log)
    found = problems(log)
    assert [p.event_id for p in found if p.kind == "removed" and p.event_id in gone] == gone


def test_months_of_other_ages_are_not_that_month(conn: Connection, tmp_path: Path) -> None:
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (occurred_at, action) values"
        " ('2021-03-10Z', 'thing.seen'), ('2021-03-10Z BC', 'thing.seen')"
    )
    conn.execute("select pgaudit_wf.add_log_partition('2021-03-01')")
    seal(conn)
    archive_partition(conn, partition(MONTHS[0]), str(tmp_path))
    seal(conn)
    conn.execute("select pgaudit_wf.prune(%s)", [partition(MONTHS[0])])
    report = verify(conn, [KEY.verifier])
    assert (report.holds, report.pruned) == (True, 1), report.problems
    unlock(conn)
    conn.execute("delete from pgaudit_wf.security_audit_log where occurred_at < '0001-01-01'")
    assert [p.kind for p in problems(conn)] == ["removed"]


def test_an_event_that_is_not_signed_lets_nothing_go(log: Connection) -> None:
    """Leaf, tile and checkpoint are easily added; only the signature is not."""
    gone = victims(log)
    unlock(log)
    log.execute(
        "select pgaudit_wf._record_release(pgaudit_wf._next_event_id(), 'audit.archived', null,"
        " null, null, jsonb_build_object('month', '2021-04') || to_jsonb(m))"
        " from pgaudit_wf._month_leaves('2021-04-01Z', '2021-05-01Z') as m"
    )
    with log.transaction():
        Sealer(KEY)._append(log)
    log.execute("delete from pgaudit_wf.security_audit_log where id = any(%s)", [gone])
    assert [(p.kind, p.event_id) for p in problems(log)] == [("removed", n) for n in gone]


@pytest.mark.parametrize("action", ["audit.archived", "actor.pseudonymised"])
@pytest.mark.parametrize(
    "metadata",
    ["[]", "7", '{"pseudonym": [], "month": {}, "tree_size": "3"}', f'{{"n": 1{"0" * 5000}}}'],
)
def test_an_event_that_says_nothing_lets_nothing_go(
    conn: Connection, action: str, metadata: str
) -> None:
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (action, captured, metadata)"
        " values (%s, true, %s)",
        [action, metadata],
    )
    seal(conn)
    assert verify(conn, [KEY.verifier]).holds


def test_a_leaf_said_to_be_of_a_pruned_month_spoils_that_month(log: Connection) -> None:
    unlock(log)
    log.execute(
        "update pgaudit_wf.log_leaf set occurred_at = '2021-03-20' where event_id = %s",
        [victims(log)[0]],
    )
    assert not verify(log, [KEY.verifier]).holds


def test_the_archive_of_another_event_does_not_stand_in(log: Connection, tmp_path: Path) -> None:
    """As many events are archived as are gone, but one that is gone is not among them."""
    report = verify(log, [KEY.verifier])
    report.pruned_leaves.append((1, 2) if report.pruned_leaves[0][0] == 0 else (0, 1))
    assert report.pruned == 300
    verify_archives(log, str(tmp_path), report)
    assert [(p.kind, p.leaf_index) for p in report.problems] == [
        ("removed", report.pruned_leaves[-1][0])
    ]


FORGED_ERASURE = """
insert into pgaudit_wf.erasure (actor_id, pseudonym, last_run_at) values ('u_x', 'erased-0', now());
insert into pgaudit_wf.erased_event (actor_id, tx_id, event_id, fields)
select 'u_x', tx_id, id, '{actor_label}' from pgaudit_wf.security_audit_log where id = %(id)s;
select pgaudit_wf._keep_commitments(
    l, jsonb_populate_record(l, '{"actor_label": "erased-0"}'), %(r)s)
from pgaudit_wf.security_audit_log as l where id = %(id)s;
update pgaudit_wf.security_audit_log set actor_label = 'erased-0' where id = %(id)s;
"""


@pytest.mark.parametrize("claim", ["no event", "another erasure's event", "a reported event"])
def test_an_erasure_that_nobody_asked_for(log: Connection, claim: str) -> None:
    release: int | None = 9999
    if claim == "another erasure's event":
        log.execute("select pgaudit_wf.pseudonymise('u_ada')")
        log.execute(
            "insert into pgaudit_wf.security_audit_log (action, actor_id, actor_label)"
            " values ('thing.seen', 'u_ben', 'Ben')"
        )
        row = log.execute(
            "select max(id) from pgaudit_wf.security_audit_log where action = %s",
            ["actor.pseudonymised"],
        ).fetchone()
        release = row and row[0]
        seal(log)
        assert verify(log, [KEY.verifier]).holds
    elif claim == "a reported event":
        row = log.execute(
            "select pgaudit_wf.record_event('actor.pseudonymised',"
            ' metadata => \'{"pseudonym": "erased-0", "parts": 1}\')'
        ).fetchone()
        release = row and row[0]
        seal(log)
    row = log.execute(
        "select max(id) from pgaudit_wf.security_audit_log where action = 'thing.seen'"
    ).fetchone()
    assert row
    unlock(log)
    statement = FORGED_ERASURE.replace("%(id)s", str(row[0])).replace("%(r)s", str(release))
    log.execute(statement.encode())
    assert verify(log, [KEY.verifier]).found > 0
    seal(log)
    found: Report = verify(log, [KEY.verifier])
    assert {p.kind for p in found.problems} == {"altered"}
    assert found.found >= 2, found.problems


def test_what_says_what_left_is_never_pruned(log: Connection) -> None:
    log.execute(
        "insert into pgaudit_wf.retention_policy (action_pattern, keep_days) values ('audit.*', 30)"
    )
    for action in ("audit.archived", "audit.pruned", "audit.history_pruned", "actor.pseudonymised"):
        assert log.execute("select pgaudit_wf.retention_days(%s)", [action]).fetchone() == (None,)
    assert log.execute("select pgaudit_wf.retention_days('audit.exported')").fetchone() == (30,)
