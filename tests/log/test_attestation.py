"""Contexts that the application signs, so that injected SQL cannot act in another's name."""

import asyncio
import csv
import hashlib
import hmac
import io
import json
import uuid
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

import pgaudit_wf
from pgaudit_wf import (
    AttestationKey,
    RequestContext,
    audit_trail,
    follow_trail,
    latest_trail,
    read_log,
    request_context,
)
from pgaudit_wf.alerts.channels import payload
from pgaudit_wf.alerts.message import Alert, Templates
from pgaudit_wf.archive.read import archived_trail
from pgaudit_wf.archive.write import archive_partition
from pgaudit_wf.cli import app
from pgaudit_wf.context.attempt import Attempt
from pgaudit_wf.errors import InvalidContextError
from pgaudit_wf.export.trail import export_trail
from pgaudit_wf.integrations.sqlalchemy import install
from pgaudit_wf.trail.event import EVENT_COLUMNS, LogEvent, TrailEntry

KEY = AttestationKey("web-1", bytes(range(40)))


@pytest.fixture
def signed(conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """Return a connection to a database that knows KEY and audits a table."""
    conn.execute("select pgaudit_wf.add_attestation_key('web-1', %s)", [KEY.secret])
    conn.execute("create table invoice (id int primary key, org_id text)")
    conn.execute("select pgaudit_wf.attach('invoice')")
    return conn


def events(conn: psycopg.Connection[Any]) -> list[tuple[str | None, bool]]:
    """Return who acted, and whether that is attested, oldest first."""
    return conn.execute(
        "select actor_id, attested from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' order by id"
    ).fetchall()


def test_a_signed_context_is_attested(signed: psycopg.Connection[Any]) -> None:
    with request_context(signed, actor_id="u_1", org_id="o_1", correlation_id="r", attest=KEY):
        signed.execute("insert into invoice values (1, 'o_1')")
    assert events(signed) == [("u_1", True)]


def test_the_columns_of_an_event_are_those_of_the_database(conn: psycopg.Connection[Any]) -> None:
    def of(relation: str) -> list[str]:
        found = conn.execute(
            "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0"
            " and not attisdropped order by attnum",
            [f"pgaudit_wf.{relation}"],
        )
        return [name for (name,) in found.fetchall()]

    assert sorted(EVENT_COLUMNS) == sorted(of("security_audit_log"))
    assert [field.name for field in fields(LogEvent)] == [*EVENT_COLUMNS, "cursor"]
    assert [field.name for field in fields(TrailEntry)] == of("trail_entry")


def test_what_shows_an_event_says_whether_it_is_attested(
    signed: psycopg.Connection[Any],
    dsn: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    beginning = latest_trail(signed, 0).cursor
    with request_context(signed, actor_id="u_1", correlation_id="r", attest=KEY):
        signed.execute("insert into invoice values (1)")
        signed.execute(
            "insert into pgaudit_wf.security_audit_log (occurred_at, action)"
            " values ('2021-03-05', 'old.event')"
        )
    with request_context(signed, actor_id="u_2"):
        signed.execute("insert into invoice values (2)")
    expected = {"u_1": True, "u_2": False}

    def shown(entries: Any) -> dict[str, bool]:  # noqa: ANN401 - of any kind of event
        return {e.actor_id: e.attested for e in entries if e.action == "invoice.created"}

    assert shown(audit_trail(signed).entries) == expected
    assert shown(follow_trail(signed, beginning).entries) == expected
    assert shown(read_log(signed).events) == expected
    alerts = signed.execute(
        "select pgaudit_wf._alert_event(l) from pgaudit_wf.security_audit_log as l"
        " where l.action = 'invoice.created'"
    ).fetchall()
    assert {event["actor_id"]: event["attested"] for (event,) in alerts} == expected
    messages = [Alert("smtp", "you@example.com", "0", [event], 1) for (event,) in alerts]
    for message in messages:
        email = Templates().email(message, "audit@example.com")
        assert ["(attested)" in part.get_content() for part in email.iter_parts()] == [
            message.events[0]["attested"]
        ] * 2
        assert payload(message.events[0])["data"]["attested"] is message.events[0]["attested"]
    for format_ in ("csv", "ndjson", "ocsf"):
        out = io.StringIO(newline="")
        export_trail(signed, format_, out, filters={"action": "invoice.created"})
        if format_ == "csv":
            rows = list(csv.DictReader(io.StringIO(out.getvalue())))
            assert [row["attested"] for row in rows] == ["false", "true"]
        else:
            events_ = [json.loads(line) for line in out.getvalue().splitlines()]
            where = [event["unmapped"] if format_ == "ocsf" else event for event in events_]
            assert [event["attested"] for event in where] == [False, True]
    signed.execute("select pgaudit_wf.add_log_partition('2021-03-01')")
    archive = archive_partition(signed, "security_audit_log_y2021m03", str(tmp_path))
    (archived,) = archived_trail(signed, [archive])
    assert (archived.action, archived.attested) == ("old.event", True)
    assert archived == audit_trail(signed, until=datetime(2022, 1, 1, tzinfo=UTC)).entries[0]
    for arguments in ((), ("--diff",)):
        with pytest.raises(SystemExit):
            app(["log", "--action", "invoice.created", *arguments, "-d", dsn])
        text = capsys.readouterr().out
        lines = [line for line in text.splitlines() if "u_1" in line or "u_2" in line]
        assert ["attested" in line for line in lines] == [False, True]


def test_without_a_key_nothing_is_attested(signed: psycopg.Connection[Any]) -> None:
    with request_context(signed, actor_id="u_1"):
        signed.execute("insert into invoice values (1)")
    signed.execute("insert into invoice values (2)")
    assert events(signed) == [("u_1", False), (None, False)]


@pytest.mark.parametrize(
    "injected",
    [
        "set local app.actor_id = 'u_boss'",
        "set local app.org_id = 'o_2'",
        "set local app.correlation_id = 'other'",
        "set local app.actor_id = ''",
        "set local app.attestation = 'web-1:00'",
        "set local app.attestation = 'nobody:' ",
        "set local app.attestation = 'web-1'",
        "set local app.attestation = ':'",
        # The parts are kept apart: moving a character from one to the next is another message.
        "set local app.actor_id = 'u_1o'; set local app.org_id = '_1'",
    ],
)
def test_what_is_changed_after_signing_is_not_attested(
    signed: psycopg.Connection[Any], injected: str
) -> None:
    with request_context(signed, actor_id="u_1", org_id="o_1", correlation_id="r", attest=KEY):
        signed.execute(injected.encode())
        signed.execute("insert into invoice values (1, 'o_1')")
    assert [attested for _, attested in events(signed)] == [False]


def test_a_nested_context_is_signed_anew_and_the_outer_one_again(
    signed: psycopg.Connection[Any],
) -> None:
    with request_context(signed, actor_id="u_1", attest=KEY):
        with request_context(signed, actor_id="u_2"):
            signed.execute("insert into invoice values (1)")
        signed.execute("insert into invoice values (2)")
        with request_context(signed, attest=None):
            signed.execute("insert into invoice values (3)")
    assert events(signed) == [("u_2", True), ("u_1", True), ("u_1", False)]


def test_an_inner_context_alone_is_signed(signed: psycopg.Connection[Any]) -> None:
    with request_context(signed, actor_id="u_1"):
        with request_context(signed, actor_id="u_2", attest=KEY):
            signed.execute("insert into invoice values (1)")
        signed.execute("insert into invoice values (2)")
    with signed.transaction():
        with request_context(signed, actor_id="u_3", attest=KEY):
            signed.execute("insert into invoice values (3)")
        signed.execute("insert into invoice values (4)")
    assert events(signed) == [("u_2", True), ("u_1", False), ("u_3", True), (None, False)]


def test_what_another_session_sees_of_a_context_is_of_no_use_to_it(
    signed: psycopg.Connection[Any], dsn: str
) -> None:
    seen = "select current_setting('app.attestation')"
    with (
        psycopg.connect(dsn, autocommit=True) as thief,
        request_context(signed, actor_id="u_1", org_id="o_1", attest=KEY),
    ):
        (stolen,) = signed.execute(seen.encode()).fetchone() or (None,)
        assert str(stolen).startswith("web-1:")
        with thief.transaction():
            thief.execute("set local app.actor_id = 'u_1'; set local app.org_id = 'o_1'")
            thief.execute(f"set local app.attestation = '{stolen}'")
            thief.execute("insert into invoice values (1, 'o_1')")
        signed.execute("insert into invoice values (2, 'o_1')")
    # Nor to what runs on this one later.
    with signed.transaction():
        signed.execute("set local app.actor_id = 'u_1'; set local app.org_id = 'o_1'")
        signed.execute(f"set local app.attestation = '{stolen}'")
        signed.execute("insert into invoice values (3, 'o_1')")
    assert sorted(attested for _, attested in events(signed)) == [False, False, True]


def test_no_other_transaction_is_signed_for_by_what_is_left_in_a_session(
    signed: psycopg.Connection[Any], dsn: str
) -> None:
    with psycopg.connect(dsn, autocommit=True) as thief:
        thief.execute("begin")
        (pid, began) = thief.execute("select pg_backend_pid(), now()::text").fetchone() or (0, "")
        # What injected SQL can do earlier in a session of the pool, with a schema of its own.
        signed.execute("create schema evil")
        signed.execute(
            "create function evil.pg_backend_pid() returns int language sql"
            f" as 'select {pid}'".encode()
        )
        signed.execute(
            "create function evil.now() returns timestamptz language sql"
            f" as $$ select timestamptz '{began}' $$".encode()
        )
        signed.execute("set search_path = evil, pg_catalog, public")
        with request_context(signed, actor_id="u_1", attest=KEY):
            (stolen,) = signed.execute("select current_setting('app.attestation')").fetchone() or (
                "",
            )
            signed.execute("insert into invoice values (1)")
        thief.execute("set local app.actor_id = 'u_1'")
        thief.execute(f"set local app.attestation = '{stolen}'".encode())
        thief.execute("insert into invoice values (2)")
        thief.execute("commit")
    assert events(signed) == [("u_1", True), ("u_1", False)]


def test_what_an_attestation_does_not_cover(signed: psycopg.Connection[Any]) -> None:
    # As docs/reference/context.md says.
    with request_context(signed, actor_id="u_1", actor_label="Ann", ip="192.0.2.1", attest=KEY):
        signed.execute("set local app.actor_label = 'Bob'; set local app.ip = '192.0.2.2'")
        signed.execute("insert into invoice values (1)")
    shown = signed.execute(
        "select actor_label, host(ip), attested from pgaudit_wf.security_audit_log"
        " where action = 'invoice.created'"
    ).fetchall()
    assert shown == [("Bob", "192.0.2.2", True)]


def test_an_attempt_is_attested_by_its_id(signed: psycopg.Connection[Any]) -> None:
    with suppress(ZeroDivisionError), request_context(signed, actor_id="u_1", attest=KEY):
        _ = 1 / 0
    assert events(signed) == [("u_1", True)]
    attempt = Attempt("x.tried", "failed", RequestContext(actor_id="u_1", attest=KEY))
    entry = json.loads(attempt.entry(late=True))
    for wanted, number in ((True, str(attempt.id)), (False, str(uuid.uuid4()))):
        with signed.transaction():
            signed.execute(
                "select pgaudit_wf.record_attempt(%s::jsonb)", [json.dumps({**entry, "id": number})]
            )
        assert events(signed)[-1] == ("u_1", wanted)


def test_sqlalchemy_signs_what_it_writes(signed: psycopg.Connection[Any], dsn: str) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    install(engine)
    with pgaudit_wf.bind(actor_id="u_1", attest=KEY), engine.begin() as conn:
        conn.execute(text("insert into invoice values (1)"))
        with pgaudit_wf.bind(actor_id="u_2"):
            conn.execute(text("insert into invoice values (2)"))
    engine.dispose()
    assert events(signed) == [("u_1", True), ("u_2", True)]


def test_an_asynchronous_block_signs(signed: psycopg.Connection[Any], dsn: str) -> None:
    async def act() -> None:
        async with (
            await psycopg.AsyncConnection.connect(dsn) as conn,
            request_context(conn, actor_id="u_1", attest=KEY),
        ):
            await conn.execute("insert into invoice values (1)")
            async with request_context(conn, actor_id="u_2"):
                await conn.execute("insert into invoice values (2)")

    asyncio.run(act())
    assert events(signed) == [("u_1", True), ("u_2", True)]


def test_a_bound_key_signs(signed: psycopg.Connection[Any]) -> None:
    with pgaudit_wf.bind(actor_id="u_1", attest=KEY), request_context(signed, org_id="o_1"):
        signed.execute("insert into invoice values (1)")
    assert events(signed) == [("u_1", True)]


def test_a_retired_key_attests_nothing_more(signed: psycopg.Connection[Any]) -> None:
    signed.execute("select pgaudit_wf.retire_attestation_key('web-1')")
    with request_context(signed, actor_id="u_1", attest=KEY):
        signed.execute("insert into invoice values (1)")
    assert events(signed) == [("u_1", False)]
    with pytest.raises(psycopg.Error) as caught:
        signed.execute("select pgaudit_wf.retire_attestation_key('web-1')")
    assert caught.value.sqlstate == "PA008"


def test_another_secret_of_the_same_name_does_not_pass(signed: psycopg.Connection[Any]) -> None:
    with request_context(signed, actor_id="u_1", attest=AttestationKey("web-1", b"x" * 32)):
        signed.execute("insert into invoice values (1)")
    assert events(signed) == [("u_1", False)]


def test_the_application_cannot_read_the_secret(signed: psycopg.Connection[Any]) -> None:
    signed.execute("set role pgaudit_wf_app")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        signed.execute("select * from pgaudit_wf.attestation_key")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        signed.execute("select pgaudit_wf._check_attestation('web-1:00', 'x')")


@pytest.mark.parametrize("size", [0, 31])
def test_short_secrets_are_refused(conn: psycopg.Connection[Any], size: int) -> None:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute("select pgaudit_wf.add_attestation_key('k', %s)", [b"x" * size])
    assert caught.value.sqlstate == "PA008"
    with pytest.raises(InvalidContextError):
        AttestationKey("k", b"x" * size)


def test_the_secret_does_not_show() -> None:
    assert "secret" not in repr(KEY)
    assert "attest" not in repr(RequestContext(actor_id="u_1", attest=KEY))


@pytest.mark.parametrize("bad", ["key", b"x" * 40])
def test_a_key_that_is_none_is_refused(bad: str | bytes) -> None:
    with pytest.raises(InvalidContextError):
        RequestContext(attest=bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidContextError):
        RequestContext(actor_id="u_1").merge(attest=bad)  # type: ignore[arg-type]


def test_key_ids_that_would_not_parse_are_refused() -> None:
    with pytest.raises(InvalidContextError):
        AttestationKey("web:1", b"x" * 32)


@pytest.mark.parametrize("size", [32, 63, 64, 65, 200])
def test_the_database_pads_like_rfc_2104(conn: psycopg.Connection[Any], size: int) -> None:
    secret = bytes(n % 251 for n in range(size))
    row = conn.execute(
        "select sha256(pgaudit_wf._pad_key(%(k)s, 92) || sha256(pgaudit_wf._pad_key(%(k)s, 54)"
        " || 'message'))",
        {"k": secret},
    ).fetchone()
    assert row is not None
    assert row[0] == hmac.new(secret, b"message", hashlib.sha256).digest()


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(actor=TEXT, org=st.none() | TEXT, correlation=st.none() | TEXT)
def test_python_and_the_database_sign_alike(
    signed: psycopg.Connection[Any], actor: str, org: str | None, correlation: str | None
) -> None:
    with request_context(
        signed, actor_id=actor, org_id=org, correlation_id=correlation, attest=KEY
    ):
        row = signed.execute("select pgaudit_wf._context_attested()").fetchone()
    assert row == (True,)
