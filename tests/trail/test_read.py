"""The typed reads: what they return, to whom, and that cursors neither skip nor repeat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from inspect import signature
from typing import Any, assert_type, cast

import psycopg
import pytest
from psycopg.rows import dict_row

import pgaudit_wf
from pgaudit_wf import (
    api_key_activity,
    attached,
    audit_trail,
    doctor,
    errors,
    follow_trail,
    latest_trail,
    read_log,
    record_event,
    request_context,
    row_as_of,
)
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.trail.reads import LogBatch, TrailBatch, TrailFilter, TrailPage, partitions
from support.factories import add_users

WORLD = """
insert into organization (id, name) values ('o_acme', 'Acme'), ('o_globex', 'Globex');
insert into app_user (id, email, name) values
    ('u_ana', 'ana@acme.example', 'Ana'), ('u_bo', 'bo@acme.example', 'Bo'),
    ('u_chidi', 'chidi@globex.example', 'Chidi');
insert into member (org_id, user_id, role) values
    ('o_acme', 'u_ana', 'owner'), ('o_acme', 'u_bo', 'member'), ('o_globex', 'u_chidi', 'admin');
insert into api_key (id, org_id, user_id, name, key_prefix, key_hash) values
    ('k_acme', 'o_acme', 'u_ana', 'ci', 'kh_1', 'never-to-be-logged-1'),
    ('k_globex', 'o_globex', 'u_chidi', 'ci', 'kh_2', 'never-to-be-logged-2'),
    ('k_own', null, 'u_ana', 'laptop', 'wfb_3', 'never-to-be-logged-3');
"""


@pytest.fixture
def world(app_conn: psycopg.Connection, secret: Callable[[], str]) -> psycopg.Connection:
    app_conn.execute(WORLD.encode())
    return app_conn


@pytest.fixture
def reader(server: DevServer, world: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A connection whose role may do nothing but read as owners and admins do."""
    role = f"reader_of_{world.info.dbname}"
    world.execute(f"create role {role} login in role pgaudit_wf_reader".encode())
    with psycopg.connect(server.dsn(world.info.dbname, role), autocommit=True) as conn:
        yield conn
    world.execute(f"drop role {role}".encode())


def test_pages_hold_still_while_events_come_in(app_conn: psycopg.Connection) -> None:
    add_users(app_conn, "old-", 1000)
    found: list[int] = []
    after, pages = None, 0
    while True:
        page = audit_trail(app_conn, action="account.*", after=after, page_size=90)
        found += [entry.id for entry in page.entries]
        if (after := page.next_cursor) is None:
            break
        pages += 1
        add_users(app_conn, f"new-{pages}-", 25)
    everything = app_conn.execute(
        "select id from pgaudit_wf.security_audit_log where resource_id like 'old-%'"
        " order by occurred_at desc, id desc"
    )
    assert found == [id_ for (id_,) in everything]
    assert pages == 11


def test_the_last_page_says_so(app_conn: psycopg.Connection) -> None:
    add_users(app_conn, "u", 3)
    page = audit_trail(app_conn, action="account.*", page_size=2)
    assert page.next_cursor == page.entries[-1].cursor
    last = audit_trail(app_conn, action="account.*", page_size=2, after=page.next_cursor)
    assert [entry.resource_id for entry in last.entries] == ["u1"]
    assert last.next_cursor is None


YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"org_id": "o_globex"}, {"member.joined", "org.created", "org_api_key.created"}),
        ({"action": "api_key.created"}, {"api_key.created"}),
        ({"action": "*api_key.*"}, {"api_key.created", "org_api_key.created", "api_key.revoked"}),
        ({"resource_type": "api_key", "resource_id": "k_acme"}, {"org_api_key.created"}),
        ({"actor_id": "u_ana"}, {"api_key.revoked", "export.made"}),
        ({"correlation_id": "req_7"}, {"api_key.revoked", "export.made"}),
        ({"outcome": "denied"}, {"export.made"}),
        ({"search": "203.0.113"}, {"api_key.revoked", "export.made"}),
        ({"search": "chidi@globex"}, {"account.created"}),
        ({"since": YESTERDAY, "action": "api_key.*"}, {"api_key.created", "api_key.revoked"}),
        ({"until": YESTERDAY}, set()),
        ({"action": "%", "outcome": None}, set()),
    ],
)
def test_filters(world: psycopg.Connection, filters: TrailFilter, expected: set[str]) -> None:
    start = latest_trail(world, 0)
    act(world)
    check_filters(world, start.cursor, filters, expected)


def act(world: psycopg.Connection) -> None:
    context = {"actor_id": "u_ana", "ip": "203.0.113.9", "correlation_id": "req_7"}
    context["api_key_id"] = "k_acme"
    with request_context(world, pgaudit_wf.RequestContext(**context)):  # type: ignore[arg-type]
        world.execute("update api_key set revoked_at = now() where id = 'k_own'")
        record_event(world, "export.made", outcome="denied", metadata={"rows": 3})


def check_filters(
    world: psycopg.Connection, start: str, filters: TrailFilter, expected: set[str]
) -> None:
    page = audit_trail(world, page_size=1000, **filters)
    assert {entry.action for entry in page.entries} == expected
    # The same filters mean the same to a follower.
    followed = follow_trail(world, start, **filters)
    new = expected & {"api_key.revoked", "export.made"}
    assert {entry.action for entry in followed.entries} == new
    assert follow_trail(world, followed.cursor).entries == ()


SEVERAL: list[tuple[TrailFilter, set[str]]] = [
    ({"action": ["export.*", "api_key.revoked"]}, {"api_key.revoked", "export.made"}),
    ({"action": ["org.created", "export.made"]}, {"org.created", "export.made"}),
    (
        {
            "not_action": ["org*", "account.*", "audit.*"],
            "resource_type": ["member", "api_key"],
        },
        {"member.joined", "api_key.created", "api_key.revoked"},
    ),
    (
        {"not_resource_type": ["member", "api_key"], "not_action": "audit.*"},
        {"org.created", "account.created", "export.made"},
    ),
    ({"actor_id": ["u_bo", "u_ana"], "not_action": []}, {"api_key.revoked", "export.made"}),
    ({"not_actor_id": "u_ana", "action": "api_key.*"}, {"api_key.created"}),
    (
        {"not_actor_id": ["u_ana"], "resource_type": "api_key", "resource_id": "k_own"},
        {"api_key.created"},
    ),
    ({"api_key_id": "k_acme"}, {"api_key.revoked", "export.made"}),
    ({"network": "203.0.113.0/24"}, {"api_key.revoked", "export.made"}),
    ({"network": "203.0.113.9"}, {"api_key.revoked", "export.made"}),
    ({"network": "2001:db8::/32"}, set()),
    ({"changed": "revoked_at"}, {"api_key.revoked"}),
    ({"changed": "name"}, set()),
    ({"value": "chidi@globex.example"}, {"account.created"}),
    ({"value": "laptop", "resource_type": "api_key"}, {"api_key.created"}),
    ({"resource_type": "member", "resource_id": "o_acme,u_bo"}, {"member.joined"}),
    ({"resource_id": "o_acme,u_bo"}, set()),
]


def test_filters_of_several_values_and_of_what_changed(world: psycopg.Connection) -> None:
    start = latest_trail(world, 0)
    act(world)
    for filters, expected in SEVERAL:
        check_filters(world, start.cursor, filters, expected)


CHANGES: list[tuple[str | None, str | None, set[str]]] = [
    ("settings", None, {"within", "whole"}),
    ("settings", "3", {"within"}),
    ("setting", None, set()),
    ("n", "42", {"number"}),
    ("n", "42.0", {"number"}),
    ("n", "4", set()),
    ("flag", "true", {"flag"}),
    ("a/b~c", "x", {"odd"}),
    (None, "x", {"odd"}),
    (None, "42", {"number", "start"}),
    ("v", '"); drop', {"hostile"}),
    (None, "9" * 2000, set()),
]


def test_events_are_found_by_what_changed(conn: psycopg.Connection) -> None:
    conn.execute(
        'create table t (id int primary key, settings jsonb, n numeric, flag bool, "a/b~c" text,'
        " v text)"
    )
    conn.execute("select pgaudit_wf.attach('t')")
    for reason, statement in {
        "start": 'insert into t values (1, \'{"a": {"b": 1}}\', 42, false)',
        "within": 'update t set settings = \'{"a": {"b": 3}}\'',
        "whole": "update t set settings = '[]'",
        "number": "update t set n = 7",
        "flag": "update t set flag = true",
        "odd": "update t set \"a/b~c\" = 'x'",
        "hostile": "update t set v = '\"); drop'",
    }.items():
        with request_context(conn, reason=reason):
            conn.execute(statement.encode())
    for changed, value, found in CHANGES:
        page = audit_trail(conn, changed=changed, value=value)
        assert {entry.metadata["reason"] for entry in page.entries} == found
        assert all(entry.tx_id for entry in page.entries)


def test_an_unknown_filter_is_named(app_conn: psycopg.Connection) -> None:
    with pytest.raises(TypeError, match="unknown filter: color; valid filters are org_id, action"):
        audit_trail(app_conn, color="red")  # type: ignore[call-overload]


def test_an_entry_says_all_there_is(world: psycopg.Connection) -> None:
    context = pgaudit_wf.RequestContext(
        actor_id="u_ana",
        actor_label="Ana as she was",
        org_id="o_acme",
        org_label="Acme",
        auth_method="api_key",
        api_key_id="k_acme",
        ip="2001:db8::1",
        country="PT",
        user_agent="curl/8",
        correlation_id="req_1",
        reason="tidying up",
    )
    with request_context(world, context):
        world.execute("update api_key set name = 'deploy' where id = 'k_acme'")
    world.row_factory = dict_row  # type: ignore[assignment]
    (entry,) = audit_trail(world, page_size=1, org_id="o_acme").entries
    assert entry.action == "org_api_key.renamed"
    assert (entry.actor_name, entry.actor_email) == ("Ana", "ana@acme.example")
    assert (entry.actor_role, entry.org_label) == ("owner", "Acme")
    assert (entry.resource_name, entry.captured, entry.outcome) == ("kh_1", True, "succeeded")
    assert entry.diff == [{"op": "replace", "path": "/name", "old": "ci", "value": "deploy"}]
    assert entry.metadata["reason"] == "tidying up"
    assert (entry.ip, entry.country, entry.user_agent) == ("2001:db8::1", "PT", "curl/8")
    assert (entry.auth_method, entry.api_key_id, entry.correlation_id) == (
        "api_key",
        "k_acme",
        "req_1",
    )
    (event,) = read_log(world, latest_before(world)).events
    assert (event.id, event.actor_label) == (entry.id, "Ana as she was")
    assert event.occurred_at == entry.occurred_at
    assert event.occurred_at.tzinfo is not None
    world.execute("delete from app_user where id = 'u_ana'")
    kept = audit_trail(world, action="org_api_key.renamed").entries[0]
    assert (kept.actor_name, kept.actor_email) == ("Ana as she was", None)


def latest_before(conn: psycopg.Connection) -> str:
    """Return the cursor before the last event."""
    return read_log(conn).events[-2].cursor


READS: dict[str, Callable[[Any], Any]] = {
    "audit_trail": lambda conn: audit_trail(conn, page_size=5, org_id="o_acme"),
    "read_log": lambda conn: read_log(conn, None, 7),
    "row_as_of": lambda conn: row_as_of(conn, "public.api_key", "k_acme"),
    "api_key_activity": api_key_activity,
    "attached": attached,
    "doctor": doctor,
    "partitions": partitions,
    "latest_trail": lambda conn: latest_trail(conn, 3),
}


@pytest.mark.parametrize("name", READS)
def test_sync_and_async_read_the_same(world: psycopg.Connection, app_dsn: str, name: str) -> None:
    read = READS[name]

    async def run() -> object:
        async with await psycopg.AsyncConnection.connect(app_dsn, autocommit=True) as conn:
            return await read(conn)

    sync, from_async = read(world), asyncio.run(run())
    if name == "latest_trail":
        # Its cursor moves with the server's transactions.
        sync, from_async = sync.entries, cast("TrailBatch", from_async).entries
    assert sync == from_async
    assert sync or name == "doctor"


def test_the_types_say_what_comes_back(world: psycopg.Connection, app_dsn: str) -> None:
    # mypy checks these lines, and that each of the ignored ones is an error.
    assert_type(audit_trail(world, page_size=1, action="x"), TrailPage)
    assert_type(row_as_of(world, "api_key", "k_own"), dict[str, Any] | None)
    with pytest.raises(TypeError):
        audit_trail(world, 1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="unknown filter: actoin"):
        audit_trail(world, actoin="x")  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        follow_trail(world)  # type: ignore[call-overload]

    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(app_dsn) as conn:
            assert_type(await read_log(conn, max_events=1), LogBatch)

    asyncio.run(main())


def test_a_statement_reads_as_the_function_it_is() -> None:
    assert list(signature(latest_trail).parameters) == ["conn", "limit", "filters"]
    assert (latest_trail.__doc__ or "").startswith("Read the newest entries")


def test_async_errors_and_following(world: psycopg.Connection, app_dsn: str) -> None:
    async def run() -> tuple[str, ...]:
        async with await psycopg.AsyncConnection.connect(app_dsn, autocommit=True) as conn:
            with pytest.raises(errors.CursorError):
                await audit_trail(conn, after="no cursor")
            start = (await latest_trail(conn)).cursor
            await conn.execute("update app_user set name = 'Anna' where id = 'u_ana'")
            return tuple(entry.action for entry in (await follow_trail(conn, start)).entries)

    assert asyncio.run(run()) == ("account.updated",)


def test_an_owner_reads_his_organization_only(reader: psycopg.Connection) -> None:
    with request_context(reader, actor_id="u_ana", org_id="o_acme"):
        page = audit_trail(reader, page_size=1000)
        batch = read_log(reader)
        keys = api_key_activity(reader)
        cursor = batch.events[0].cursor
        followed = follow_trail(reader, cursor)
    assert {entry.org_id for entry in page.entries} == {"o_acme"}
    assert {entry.action for entry in page.entries} == {
        "org.created",
        "member.joined",
        "org_api_key.created",
    }
    assert {event.org_id for event in batch.events} == {"o_acme"}
    assert [key.api_key_id for key in keys] == ["k_acme"]
    assert {entry.id for entry in followed.entries} == {event.id for event in batch.events[1:]}
    assert {entry.resource_name for entry in page.entries} >= {"Acme", "kh_1"}


@pytest.mark.parametrize(
    ("actor", "org"),
    [("u_bo", "o_acme"), ("u_ana", "o_globex"), (None, "o_acme"), ("u_ana", None), (None, None)],
)
def test_only_a_member_of_the_organization_reads_the_trail(
    reader: psycopg.Connection, actor: str | None, org: str | None
) -> None:
    with (
        pytest.raises(errors.AccessDeniedError) as caught,
        request_context(reader, actor_id=actor, org_id=org),
    ):
        audit_trail(reader)
    assert caught.value.sqlstate == "PA006"
    assert caught.value.hint
    assert isinstance(caught.value.__cause__, psycopg.Error)
    with request_context(reader, actor_id=actor, org_id=org):
        assert read_log(reader).events == ()
        assert api_key_activity(reader) == ()


def test_another_organization_cannot_be_asked_for(reader: psycopg.Connection) -> None:
    with (
        pytest.raises(errors.AccessDeniedError),
        request_context(reader, actor_id="u_ana", org_id="o_acme"),
    ):
        audit_trail(reader, org_id="o_globex")


def test_nothing_is_lost_between_the_latest_and_what_follows(app_dsn: str) -> None:
    with (
        psycopg.connect(app_dsn) as slow,
        psycopg.connect(app_dsn, autocommit=True) as quick,
        psycopg.connect(app_dsn, autocommit=True) as watch,
    ):
        add_users(quick, "before-", 3)
        add_users(slow, "slow-", 2)
        add_users(quick, "quick-", 2)
        start = latest_trail(watch, 5)
        shown = [entry.resource_id for entry in start.entries]
        assert shown == ["before-1", "before-2", "before-3", "quick-1", "quick-2"]
        held_back = follow_trail(watch, start.cursor)
        assert held_back.entries == ()
        slow.commit()
        add_users(quick, "after-", 1)
        batch = follow_trail(watch, held_back.cursor)
        known = {entry.id for entry in start.entries}
        came = [entry.resource_id for entry in batch.entries if entry.id not in known]
        assert came == ["slow-1", "slow-2", "after-1"]
        assert follow_trail(watch, batch.cursor).entries == ()


@pytest.mark.parametrize("limit", [1, 7, 5000])
def test_following_in_any_step_gives_each_event_once(
    app_conn: psycopg.Connection, limit: int
) -> None:
    cursor = latest_trail(app_conn, 0).cursor
    # A page of the trail is less than what comes to pass while this transaction lasts.
    with app_conn.transaction():
        add_users(app_conn, "a-", 30)
        add_users(app_conn, "b-", 1200 if limit == 5000 else 30)
    found: list[int] = []
    while (batch := follow_trail(app_conn, cursor, limit)).cursor != cursor:
        cursor = batch.cursor
        found += [entry.id for entry in batch.entries]
    logged = app_conn.execute(
        "select id from pgaudit_wf.security_audit_log where action !~ '^audit[.]'"
        " order by tx_id, id"
    )
    assert found == [id_ for (id_,) in logged]


def test_filtered_out_events_move_the_cursor(app_conn: psycopg.Connection) -> None:
    start = latest_trail(app_conn).cursor
    add_users(app_conn, "u-", 50)
    batch = follow_trail(app_conn, start, action="workflow.*")
    assert batch.entries == ()
    assert batch.cursor != start
    assert follow_trail(app_conn, batch.cursor).cursor == batch.cursor


def test_read_log_goes_on_from_its_cursor(app_conn: psycopg.Connection) -> None:
    start = read_log(app_conn)
    assert {event.action.split(".")[0] for event in start.events} == {"audit"}
    add_users(app_conn, "u-", 25)
    first = read_log(app_conn, start.cursor, max_events=10)
    second = read_log(app_conn, first.cursor)
    ids = [event.resource_id for event in first.events + second.events]
    assert ids == [f"u-{n}" for n in range(1, 26)]
    assert read_log(app_conn, second.cursor).cursor == second.cursor


def test_row_as_of(world: psycopg.Connection) -> None:
    before = world.execute("select clock_timestamp()").fetchone()
    world.execute("update api_key set name = 'deploy' where id = 'k_acme'")
    world.execute("delete from member where user_id = 'u_bo'")
    assert before is not None
    then = row_as_of(world, "api_key", "k_acme", before[0])
    now = row_as_of(world, "public.api_key", "k_acme")
    assert then is not None
    assert now is not None
    assert (then["name"], now["name"]) == ("ci", "deploy")
    assert then["key_hash"] == "[redacted]"
    member = '["o_acme", "u_bo"]'
    assert row_as_of(world, "member", member) is None
    assert (row_as_of(world, "member", member, before[0]) or {})["role"] == "member"


def test_api_keys_that_are_gone_are_listed(world: psycopg.Connection) -> None:
    with request_context(world, actor_id="u_chidi"):
        world.execute("update api_key set revoked_at = now() where id = 'k_globex'")
    world.execute("delete from api_key where id = 'k_own'")
    keys = {key.api_key_id: key for key in api_key_activity(world)}
    assert {name: key.status for name, key in keys.items()} == {
        "k_acme": "active",
        "k_globex": "revoked",
        "k_own": "deleted",
    }
    assert keys["k_globex"].revoked_by == "u_chidi"
    assert [key.api_key_id for key in api_key_activity(world, org_id="o_acme")] == ["k_acme"]


def test_attached_and_doctor(world: psycopg.Connection) -> None:
    tables = {a.table: a for a in attached(world)}
    assert tables["member"].id_columns == ("org_id", "user_id")
    assert tables["two_factor"].redact == ("secret", "backup_codes")
    assert doctor(world) == ()
    world.execute('alter table member disable trigger "!pgaudit_wf_update"')
    world.execute('drop trigger "!pgaudit_wf_delete" on session')
    findings = doctor(world)
    subjects = [(f.severity, f.subject) for f in findings]
    assert subjects == [("error", "public.member"), ("error", "public.session")]
    for finding in findings:
        world.execute(finding.remedy.encode())
    assert doctor(world) == ()


def test_partitions(app_conn: psycopg.Connection) -> None:
    found = partitions(app_conn)
    assert found[-1].name == "security_audit_log_default"
    assert (found[-1].from_time, found[-1].to_time) == (None, None)
    months = found[:-1]
    assert [m.from_time for m in months[1:]] == [m.to_time for m in months[:-1]]
    start = months[0].from_time
    assert start is not None
    assert start <= datetime.now(UTC)
    assert all(p.size > 0 for p in found)


def test_partitions_are_the_same_to_a_reader_in_another_time_zone(
    app_conn: psycopg.Connection, reader: psycopg.Connection
) -> None:
    expected = [(p.name, p.from_time, p.to_time) for p in partitions(app_conn)]
    reader.execute("set timezone = 'Asia/Kolkata'")
    assert [(p.name, p.from_time, p.to_time) for p in partitions(reader)] == expected


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda conn: audit_trail(conn, page_size=0), errors.ArgumentError),
        (lambda conn: latest_trail(conn, 1001), errors.ArgumentError),
        (lambda conn: audit_trail(conn, after="🙈"), errors.CursorError),
        (lambda conn: read_log(conn, "1/2/3/4"), errors.CursorError),
        (lambda conn: follow_trail(conn, "x"), errors.CursorError),
        (lambda conn: row_as_of(conn, "workflow_execution", "1"), errors.NotAttachedError),
    ],
)
def test_refusals_are_exceptions_of_ours(
    app_conn: psycopg.Connection, read: Callable[[Any], Any], kind: type[errors.DatabaseError]
) -> None:
    with pytest.raises(kind) as caught:
        read(app_conn)
    assert caught.value.sqlstate == kind.sqlstate
    assert isinstance(caught.value, errors.PgauditError)
    assert isinstance(caught.value.__cause__, psycopg.Error)


def test_errors_of_the_application_stay_those_of_the_driver(app_conn: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        row_as_of(app_conn, "nowhere", "1")


def test_a_sqlstate_without_a_class_is_ours_too(app_conn: psycopg.Connection) -> None:
    with pytest.raises(errors.DatabaseError) as caught, errors.translated():
        app_conn.execute("do $$ begin raise 'no' using errcode = 'PA999', hint = 'why not'; end $$")
    assert (caught.value.sqlstate, caught.value.hint) == ("PA999", "why not")
