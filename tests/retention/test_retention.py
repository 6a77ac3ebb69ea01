"""What is old leaves as policies say, by whole months and archived; nothing recent ever does."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pgaudit_wf import request_context
from pgaudit_wf.cli import app
from pgaudit_wf.errors import VersionPrunedError
from pgaudit_wf.workflow import reads as workflow
from support.server import Conn

SHA = "0" * 64


def months_ago(months: int) -> datetime:
    """The middle of a month that is over."""
    first = datetime.now(UTC).replace(day=15, hour=12, minute=0, second=0, microsecond=0)
    for _ in range(months):
        first = (first.replace(day=1) - timedelta(days=1)).replace(day=15)
    return first


def partition_of(at: datetime) -> str:
    return f"security_audit_log_y{at:%Y}m{at:%m}"


def record(conn: Conn, at: datetime, action: str = "thing.created", org: str | None = None) -> None:
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (action, occurred_at, org_id)"
        " values (%s, %s, %s)",
        [action, at, org],
    )


def fill(conn: Conn, months: int, *rows: tuple[str, str | None]) -> str:
    """Events in a month of its own; returns the partition's name."""
    at = months_ago(months)
    for action, org in rows or [("thing.created", None)]:
        record(conn, at, action, org)
    conn.execute("select pgaudit_wf.add_log_partition(%s)", [at.date()])
    return partition_of(at)


def note_archive(conn: Conn, partition: str) -> None:
    """Pretend that the partition lies in a file."""
    row = conn.execute(
        sql.SQL(
            "select jsonb_build_object('events', count(*), 'first_id', min(id), 'last_id', max(id))"
            " from pgaudit_wf.{}"
        ).format(sql.Identifier(partition))
    ).fetchone()
    assert row
    conn.execute(
        "select pgaudit_wf.record_archive(%s, %s, %s, %s)",
        [partition, f"/nowhere/{partition}.parquet", SHA, json.dumps(row[0])],
    )


def actions(conn: Conn, partition: str) -> list[tuple[str, str | None]]:
    return conn.execute(
        sql.SQL("select action, org_id from pgaudit_wf.{} order by id").format(
            sql.Identifier(partition)
        )
    ).fetchall()


def prune(conn: Conn, partition: str) -> int:
    row = conn.execute("select pgaudit_wf.prune(%s)", [partition]).fetchone()
    assert row
    return int(row[0])


def refused(conn: Conn, sqlstate: str, statement: str, *arguments: object) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(statement, arguments)
    assert caught.value.sqlstate == sqlstate, caught.value
    return caught.value


def exists(conn: Conn, partition: str) -> bool:
    row = conn.execute("select to_regclass('pgaudit_wf.' || %s)", [partition]).fetchone()
    return bool(row and row[0])


def test_the_most_specific_policy_wins(conn: Conn) -> None:
    conn.execute(
        "insert into pgaudit_wf.retention_policy (action_pattern, org_id, keep_days) values"
        " ('api_key.*', null, 1000), ('api_key.revoked', null, 2000), ('*.revoked', null, 50),"
        " ('*', 'o_1', 100), ('api_key.*', 'o_2', null)"
    )
    for action, org, days in [
        ("thing.created", None, 730), ("thing.created", "o_1", 100),
        ("api_key.created", None, 1000), ("api_key.revoked", None, 2000),
        ("thing.revoked", None, 50), ("api_key.created", "o_1", 100),
        ("api_key.created", "o_2", None), ("thing.created", "o_2", 730),
        ("apixkey.created", None, 730), ("100%.created", None, 730),
    ]:  # fmt: skip
        assert conn.execute(
            "select pgaudit_wf.retention_days(%s, %s)", [action, org]
        ).fetchone() == (days,), (action, org)


OWN, ORG, KEY = ("thing.created", None), ("thing.created", "o_1"), ("api_key.created", None)
DEFAULT = "action_pattern = '*' and org_id is null"
SET = f"update pgaudit_wf.retention_policy set keep_days = {{}} where {DEFAULT}"
DELETE = f"delete from pgaudit_wf.retention_policy where {DEFAULT}"
ADD = "insert into pgaudit_wf.retention_policy (action_pattern, org_id, keep_days) values ({})"
# What is changed, then how long each of the three is kept after that.
POLICIES = [
    ([], (730, 730, 730)),
    ([SET.format(30)], (30, 30, 30)),
    ([SET.format(365)], (365, 365, 365)),
    ([SET.format(3650)], (3650, 3650, 3650)),
    ([SET.format("null")], (None, None, None)),
    # Nothing goes unless a policy says so.
    ([DELETE], (None, None, None)),
    ([SET.format(30), DELETE], (None, None, None)),
    (["delete from pgaudit_wf.retention_policy"], (None, None, None)),
    ([SET.format(30), ADD.format("'*', 'o_1', null")], (30, None, 30)),
    ([SET.format(30), ADD.format("'api_key.*', null, null")], (30, 30, None)),
    ([SET.format(30), ADD.format("'api_key.*', null, 3650")], (30, 30, 3650)),
    ([SET.format("null"), ADD.format("'*', 'o_1', 30")], (None, 30, None)),
    ([SET.format(3650), ADD.format("'*.created', null, 365")], (365, 365, 365)),
    ([SET.format(3650), ADD.format("'thing.created', null, 30")], (30, 30, 3650)),
    ([SET.format(1000000)], (1000000, 1000000, 1000000)),
    ([DELETE, ADD.format("'*', 'o_1', 365")], (None, 365, None)),
    ([DELETE, ADD.format("'api_key.created', null, 30")], (None, None, 30)),
    ([DELETE, ADD.format("'**', null, 365")], (365, 365, 365)),
]


@pytest.mark.parametrize("job", ["prune", "maintain"])
@pytest.mark.parametrize(("changes", "kept"), POLICIES)
def test_what_the_policies_say_is_what_is_done(
    conn: Conn, dsn: str, tmp_path: Path, job: str, changes: list[str],
    kept: tuple[int | None, ...], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    events = (OWN, ORG, KEY)
    months = {fill(conn, age, *events): age for age in (3, 14, 40)}
    empty = partition_of(months_ago(41))
    conn.execute("select pgaudit_wf.add_log_partition(%s)", [months_ago(41).date()])
    for change in changes:
        conn.execute(change.encode())
    for event, days in zip(events, kept, strict=True):
        assert conn.execute("select pgaudit_wf.retention_days(%s, %s)", event).fetchone() == (
            days,
        ), event
    stays: dict[str, list[tuple[str, str | None]]] = {}
    for partition, age in months.items():
        end = months_ago(age - 1).replace(day=1, hour=0)
        left = [event for event, days in zip(events, kept, strict=True)
                if days is None or end + timedelta(days=days) > datetime.now(UTC)]  # fmt: skip
        stays[partition] = left
    expired = conn.execute(
        "select partition_name, expired_events from pgaudit_wf.log_retention()"
        " where expired_events > 0"
    ).fetchall()
    assert dict(expired) == {name: 3 - len(left) for name, left in stays.items() if len(left) < 3}
    default = conn.execute("select pgaudit_wf.retention_days('', null)").fetchone()
    assert default
    if job == "prune":
        for partition, left in stays.items():
            note_archive(conn, partition)
            if len(left) == 3:
                refused(conn, "PA341", "select pgaudit_wf.prune(%s)", partition)
            else:
                assert prune(conn, partition) == 3 - len(left)
        if default[0] in (30, 365, 730):
            assert prune(conn, empty) == 0
        else:
            refused(conn, "PA341", "select pgaudit_wf.prune(%s)", empty)
    else:
        with pytest.raises(SystemExit) as caught:
            app(["maintain", "-d", dsn, "--archive", str(tmp_path), "--json"])
        assert caught.value.code == 0, capsys.readouterr()
    assert {name: actions(conn, name) if exists(conn, name) else [] for name in months} == stays
    assert exists(conn, empty) == (default[0] not in (30, 365, 730))


def test_a_change_of_policy_is_in_the_log(conn: Conn) -> None:
    conn.execute("update pgaudit_wf.retention_policy set keep_days = 3650")
    conn.execute("update pgaudit_wf.version_policy set keep_versions = 7")
    assert conn.execute(
        "select action, diff from pgaudit_wf.security_audit_log order by id"
    ).fetchall() == [
        ("audit.retention_changed",
         [{"op": "replace", "path": "/keep_days", "old": 730, "value": 3650}]),
        ("audit.retention_changed",
         [{"op": "replace", "path": "/keep_versions", "old": 100, "value": 7}]),
    ]  # fmt: skip


@pytest.mark.parametrize("table", ["retention_policy", "version_policy"])
@pytest.mark.parametrize("days", [-1, 0, 29, 1000001, 2147483647])
def test_no_policy_is_shorter_than_thirty_days_or_beyond_the_calendar(
    conn: Conn, table: str, days: int
) -> None:
    refused(conn, "23514", f"update pgaudit_wf.{table} set keep_days = {days}")


def test_an_expired_and_archived_month_goes(conn: Conn) -> None:
    old = fill(conn, 40)
    kept = fill(conn, 10)
    assert conn.execute(
        "select partition_name, events, expired_events from pgaudit_wf.log_retention()"
    ).fetchall() == [(old, 1, 1)]
    refused(conn, "PA342", "select pgaudit_wf.prune(%s)", old)
    note_archive(conn, old)
    assert prune(conn, old) == 1
    assert not exists(conn, old)
    assert actions(conn, kept) == [("thing.created", None)]
    assert conn.execute(
        "select events, live_events, pruned_at is not null from pgaudit_wf.archive"
    ).fetchall() == [(1, 0, True)]
    refused(conn, "PA340", "select pgaudit_wf.prune(%s)", old)


def test_one_event_more_than_archived_keeps_the_month(conn: Conn) -> None:
    old = fill(conn, 40)
    note_archive(conn, old)
    record(conn, months_ago(40))
    error = refused(conn, "PA342", "select pgaudit_wf.prune(%s)", old)
    assert "has 2 events, and 1 of them are archived" in str(error)
    assert len(actions(conn, old)) == 2


@pytest.mark.parametrize("months", [0, 1, 10, 23])
def test_a_month_inside_the_window_stays(conn: Conn, months: int) -> None:
    partition = fill(conn, months)
    if months:
        note_archive(conn, partition)
    refused(conn, "PA341", "select pgaudit_wf.prune(%s)", partition)
    assert actions(conn, partition) == [("thing.created", None)]


@pytest.mark.parametrize("name", ["security_audit_log_default", "security_audit_log", "nope", ""])
def test_only_months_of_the_log_are_pruned(conn: Conn, name: str) -> None:
    refused(conn, "PA340", "select pgaudit_wf.prune(%s)", name)


def test_longer_policies_carry_their_events_over(conn: Conn) -> None:
    conn.execute(
        "insert into pgaudit_wf.retention_policy (action_pattern, org_id, keep_days) values"
        " ('*', 'o_kept', null), ('api_key.*', null, 1500)"
    )
    old = fill(
        conn, 40, ("thing.created", None), ("thing.created", "o_kept"), ("api_key.created", None),
        ("thing.created", "o_1"),
    )  # fmt: skip
    before = conn.execute(
        "select id, tx_id, l::text from pgaudit_wf.security_audit_log as l"
        " where org_id = 'o_kept' or action = 'api_key.created' order by id"
    ).fetchall()
    note_archive(conn, old)
    assert prune(conn, old) == 2
    assert actions(conn, old) == [("thing.created", "o_kept"), ("api_key.created", None)]
    assert (
        conn.execute(
            "select id, tx_id, l::text from pgaudit_wf.security_audit_log as l"
            " where action not like 'audit.%' order by id"
        ).fetchall()
        == before
    )
    # It is a partition like any other: append-only, readable through the log, and in no hurry.
    refused(conn, "PA001", f"delete from pgaudit_wf.{old}")
    refused(conn, "PA001", f"truncate pgaudit_wf.{old}")
    assert conn.execute(
        "select events, expired_events from pgaudit_wf.log_retention()"
    ).fetchall() == [(2, 0)]
    refused(conn, "PA341", "select pgaudit_wf.prune(%s)", old)
    # The rest goes by the archive that already has it.
    conn.execute("delete from pgaudit_wf.retention_policy where action_pattern = 'api_key.*'")
    assert prune(conn, old) == 1
    assert actions(conn, old) == [("thing.created", "o_kept")]
    conn.execute("delete from pgaudit_wf.retention_policy where org_id = 'o_kept'")
    assert prune(conn, old) == 1
    assert not exists(conn, old)
    assert conn.execute("select from pgaudit_wf.doctor() where severity = 'error'").fetchall() == []


def test_an_empty_month_goes_without_an_archive(conn: Conn) -> None:
    old = partition_of(months_ago(40))
    conn.execute("select pgaudit_wf.add_log_partition(%s)", [months_ago(40).date()])
    assert prune(conn, old) == 0
    assert not exists(conn, old)


def test_pruning_waits_for_nobody_who_only_reads(conn: Conn, dsn: str) -> None:
    old = fill(conn, 40)
    note_archive(conn, old)
    with psycopg.connect(dsn) as writer:
        writer.execute("insert into pgaudit_wf.security_audit_log (action) values ('now')")
        conn.execute("set lock_timeout = '200ms'")
        # A writer of this month keeps the log itself from being altered: nothing is half done.
        refused(conn, "55P03", "select pgaudit_wf.prune(%s)", old)
        assert exists(conn, old)
    assert prune(conn, old) == 1


DROPS = [
    "drop table pgaudit_wf.{}",
    "drop table pgaudit_wf.{} cascade",
    "alter table pgaudit_wf.security_audit_log detach partition pgaudit_wf.{}",
    "alter table pgaudit_wf.{} rename to somewhere_else",
    "alter table pgaudit_wf.{} set schema public",
    "alter table pgaudit_wf.security_audit_log set schema public",
    "alter table pgaudit_wf.workflow_history rename to somewhere_else",
    "alter table pgaudit_wf.attachment_history set schema public",
    "drop table pgaudit_wf.security_audit_log cascade",
    "drop table pgaudit_wf.workflow_history cascade",
    "drop table pgaudit_wf.archive",
    "drop table pgaudit_wf.erased_event",
    "do $$ begin perform pgaudit_wf.log_months(); drop table pgaudit_wf.{}; end $$",
]


@pytest.mark.parametrize("months", [0, 40])
def test_no_part_of_the_trail_is_dropped_or_detached(conn: Conn, months: int) -> None:
    partition = fill(conn, months)
    for statement in DROPS:
        error = refused(conn, "PA343", statement.format(partition))
        assert re.search("cannot be dropped|can be neither .* nor renamed", str(error))
    assert actions(conn, partition) == [("thing.created", None)]


def test_an_old_name_does_not_make_a_month_old(conn: Conn) -> None:
    """As superuser, with a forged note of an archive: a recent month is still not dropped."""
    recent = fill(conn, 0)
    old = partition_of(months_ago(40))
    with pytest.raises(psycopg.Error):
        conn.execute(
            "insert into pgaudit_wf.archive (partition_name, from_time, to_time, events,"
            " live_events, pruned_at) select m.partition_name, m.from_time, m.to_time, 0, 0, now()"
            " from pgaudit_wf.log_months() as m where m.partition_name = %s",
            [recent],
        )
    with conn.transaction(force_rollback=True):
        conn.execute(
            "insert into pgaudit_wf.archive (partition_name, from_time, to_time, events,"
            " live_events, pruned_at) values (%s, '2001-01-01', '2001-02-01', 0, 0, now())",
            [recent],
        )
        refused(conn, "PA343", f"drop table pgaudit_wf.{recent}")
    refused(conn, "PA343", f"alter table pgaudit_wf.{recent} rename to {old}")
    assert actions(conn, recent) == [("thing.created", None)]


def test_a_month_to_come_may_be_dropped(conn: Conn) -> None:
    row = conn.execute(
        "select partition_name from pgaudit_wf.log_months() order by from_time desc limit 1"
    ).fetchone()
    assert row
    conn.execute(sql.SQL("drop table pgaudit_wf.{}").format(sql.Identifier(row[0])))
    assert not exists(conn, row[0])


def test_the_note_of_an_archive_stays(conn: Conn) -> None:
    old = fill(conn, 40)
    note_archive(conn, old)
    for statement in (
        "delete from pgaudit_wf.archive", "truncate pgaudit_wf.archive",
        "update pgaudit_wf.archive set events = 7", "update pgaudit_wf.archive set to_time = now()",
    ):  # fmt: skip
        refused(conn, "PA001", statement)


def test_a_rewritten_archive_is_read_back_before_its_month_goes(conn: Conn) -> None:
    old = fill(conn, 40)
    note_archive(conn, old)
    conn.execute(
        "select pgaudit_wf._replace_archive(id, %s, manifest) from pgaudit_wf.archive", ["1" * 64]
    )
    error = refused(conn, "PA342", "select pgaudit_wf.prune(%s)", old)
    assert "rewritten since it was last read back" in str(error)
    confirm = "select pgaudit_wf._confirm_archive(id, %s) from pgaudit_wf.archive"
    refused(conn, "PA350", confirm, SHA)
    conn.execute(confirm, ["1" * 64])
    assert prune(conn, old) == 1


@pytest.mark.parametrize("manifest", ['{"events": 2}', "{}", '{"events": 1, "first_id": 0}'])
def test_an_archive_whose_counts_differ_is_not_noted(conn: Conn, manifest: str) -> None:
    old = fill(conn, 40)
    refused(conn, "PA350", "select pgaudit_wf.record_archive(%s, 'x', %s, %s)", old, SHA, manifest)


def test_without_event_triggers_pruning_works_too(owner_dsn: str) -> None:
    with psycopg.connect(owner_dsn, autocommit=True) as conn:
        old = fill(conn, 40)
        refused(conn, "PA342", "select pgaudit_wf.prune(%s)", old)
        note_archive(conn, old)
        assert prune(conn, old) == 1
        refused(conn, "PA341", "select pgaudit_wf.prune(%s)", fill(conn, 2))


def test_only_the_owner_can_prune(conn: Conn) -> None:
    old = fill(conn, 40)
    for role in ("pgaudit_wf_app", "pgaudit_wf_reader"):
        for statement in (
            "select pgaudit_wf.prune(%s)", "select pgaudit_wf.prune_history() where %s <> ''",
            "select pgaudit_wf.record_archive(%s, 'x', 'x', '{}')",
            "update pgaudit_wf.retention_policy set keep_days = 30 where action_pattern <> %s",
        ):  # fmt: skip
            with conn.transaction(force_rollback=True):
                conn.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
                refused(conn, "42501", statement, old)


# Versions of workflows.


def age_versions(conn: Conn) -> None:
    """Make all versions a year old, as the superuser who switches the trigger off can."""
    conn.execute("alter table pgaudit_wf.workflow_history disable trigger append_only")
    conn.execute("update pgaudit_wf.workflow_history set created_at = now() - interval '1 year'")
    conn.execute("alter table pgaudit_wf.workflow_history enable always trigger append_only")


def save_versions(conn: Conn, count: int, org: str = "o_1") -> str:
    conn.execute(
        "insert into organization (id, name) values (%s, %s) on conflict do nothing", [org, org]
    )
    conn.execute(
        "insert into app_user (id, email) values (%s, %s) on conflict do nothing",
        ["u_1", "u_1@example.com"],
    )
    node = '[{{"id": "n", "type": "action", "data": {{"label": "v{}"}}}}]'
    row = conn.execute(
        "insert into workflow (org_id, user_id, name, nodes, edges)"
        " values (%s, 'u_1', 'w', %s, '[]') returning id::text",
        [org, node.format(1)],
    ).fetchone()
    assert row
    for number in range(2, count + 1):
        conn.execute("update workflow set nodes = %s where id = %s", [node.format(number), row[0]])
    return str(row[0])


def snapshots(conn: Conn, workflow_id: str) -> list[int]:
    return [
        version
        for (version,) in conn.execute(
            "select version from pgaudit_wf.workflow_history where workflow_id = %s"
            " and snapshot is not null order by version",
            [workflow_id],
        ).fetchall()
    ]


def test_the_newest_versions_and_those_that_ran_keep_their_snapshot(app_conn: Conn) -> None:
    conn = app_conn
    workflow_id = save_versions(conn, 9)
    other = save_versions(conn, 9, "o_2")
    conn.execute("update pgaudit_wf.version_policy set keep_versions = 3")
    conn.execute(
        "insert into pgaudit_wf.version_policy (org_id, keep_versions) values ('o_2', null)"
    )
    assert conn.execute("select pgaudit_wf._prunable_versions()").fetchone() == (0,), (
        "all are young"
    )
    age_versions(conn)
    hash_of_second = conn.execute(
        "select content_hash from pgaudit_wf.workflow_history"
        " where workflow_id = %s and version = 2",
        [workflow_id],
    ).fetchone()
    # A run whose workflow was at version 2 then.
    columns = conn.execute(
        "select target::text, hash_column, workflow_column from pgaudit_wf.execution_attachment"
    ).fetchone()
    assert hash_of_second
    assert columns
    conn.execute(sql.SQL("alter table {} disable trigger user").format(sql.SQL(columns[0])))
    conn.execute(
        sql.SQL(
            "insert into workflow_execution (workflow_id, org_id, {}) values (%s, 'o_1', %s)"
        ).format(sql.Identifier(columns[1])),
        [workflow_id, hash_of_second[0]],
    )
    assert conn.execute("select pgaudit_wf._prunable_versions()").fetchone() == (5,)
    assert conn.execute("select pgaudit_wf.prune_history(2)").fetchone() == (2,)
    assert conn.execute("select pgaudit_wf.prune_history(2)").fetchone() == (2,)
    assert conn.execute("select pgaudit_wf.prune_history(2)").fetchone() == (1,)
    assert conn.execute("select pgaudit_wf.prune_history(2)").fetchone() == (0,)
    assert snapshots(conn, workflow_id) == [2, 7, 8, 9]
    assert snapshots(conn, other) == list(range(1, 10))


def test_a_pruned_version_leaves_the_chain_whole(app_conn: Conn) -> None:
    conn = app_conn
    workflow_id = save_versions(conn, 5)
    before = conn.execute(
        "select version, content_hash, previous_hash, change, created_at - created_at, actor_id"
        " from pgaudit_wf.workflow_history order by version"
    ).fetchall()
    age_versions(conn)
    conn.execute("update pgaudit_wf.version_policy set keep_versions = 1")
    conn.execute("select pgaudit_wf.prune_history()")
    assert snapshots(conn, workflow_id) == [5]
    assert (
        conn.execute(
            "select version, content_hash, previous_hash, change, created_at - created_at, actor_id"
            " from pgaudit_wf.workflow_history order by version"
        ).fetchall()
        == before
    )
    assert conn.execute(
        "select count(*) from pgaudit_wf.workflow_timeline where summary is not null"
    ).fetchone() == (5,)
    error = refused(conn, "PA344", "select pgaudit_wf.restore_workflow(%s, 2)", workflow_id)
    assert "was pruned" in str(error)
    with pytest.raises(VersionPrunedError):
        workflow.version_snapshot(conn, workflow_id, 2)
    refused(conn, "PA302", "select pgaudit_wf.version_snapshot(%s, 6)", workflow_id)
    # Saving goes on, and the table is append-only again.
    with request_context(conn, actor_id="u_1"):
        conn.execute("update workflow set name = 'again' where id = %s", [workflow_id])
    assert snapshots(conn, workflow_id) == [5, 6]
    refused(conn, "PA001", "update pgaudit_wf.workflow_history set snapshot = null")
    refused(conn, "PA008", "select pgaudit_wf.prune_history(0)")


def test_retention_is_not_judged_in_the_future(conn: Conn) -> None:
    fill(conn, 10)
    refused(conn, "PA008", "select * from pgaudit_wf.log_retention(now() + interval '10 years')")
