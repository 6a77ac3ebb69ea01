"""Every event can be read by every reader, whatever is in it, and its digits are what they were."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import tuple_row
from pytest_postgresql.executors import NoopExecutor
from starlette.testclient import TestClient

from pgaudit_wf import (
    audit_trail,
    follow_trail,
    latest_trail,
    read_log,
    record_event,
    request_context,
    row_as_of,
    version_snapshot,
)
from pgaudit_wf.alerts.channels import LogChannel
from pgaudit_wf.alerts.message import Alert, Templates
from pgaudit_wf.alerts.worker import Worker
from pgaudit_wf.archive.files import list_archives, verify_archive
from pgaudit_wf.archive.read import whole_trail
from pgaudit_wf.archive.write import archive_partition
from pgaudit_wf.cli import app
from pgaudit_wf.cli.printing.trail import print_trail
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.exact_json import MAX_DEPTH, dumps, key_parts, loads
from pgaudit_wf.export.trail import Format, event_writer, export_trail, to_ocsf
from pgaudit_wf.integrity.archives import archived_row, verify_archives
from pgaudit_wf.integrity.note import SigningKey
from pgaudit_wf.integrity.proof import check, prove_event
from pgaudit_wf.integrity.seal import Sealer
from pgaudit_wf.integrity.verify import verify
from pgaudit_wf.jobs.service import Service
from pgaudit_wf.trail.reads import TrailPage
from pgaudit_wf.workflow.definition import content_hash
from support.server import Conn
from support.web_world import World, make_world, mounted_app

KEY = SigningKey("example.com/audit", bytes(range(32)))
CHECKER = Path(__file__).parents[2] / "contrib" / "check_proof.py"
DIGITS = (
    "12345678901234567.890123456789",
    "0.30000000000000000001",
    "9007199254740993",
    "1.00",
    "0.0000001",
    "-170141183460469231731687303715884105728",
)
NUMBERS = "[" + ", ".join(DIGITS) + "]"


def nested(depth: int, start: str = '{"a": ', end: str = "}") -> str:
    return start * depth + "1" + end * depth


# What an application's login can record: arguments of record_event(), the JSON ones as text.
HELL: dict[str, dict[str, str]] = {
    "digits": {"metadata": f'{{"n": {NUMBERS}}}', "before": f'{{"n": {NUMBERS}}}'},
    "numbers beyond floats": {"metadata": '{"n": [1e400, -1e308, 1e-400, 1e100000, 1e-16000]}'},
    "an integer of 10,000 digits": {"metadata": f'{{"n": {"9" * 10_000}}}'},
    "deep objects": {"metadata": nested(3000), "after": nested(2500)},
    "deep arrays": {"before": nested(3000, "[", "]"), "after": nested(1500, "[", "]")},
    "deep and different": {"before": nested(2000), "after": nested(1999)},
    "reserved names": {
        "metadata": '{"label": {"a": [1.0]}, "reason": {"b": 1.10}, "previous_org_id": [],'
        ' "version": "x", "previous_resource_id": 7, "attempted_at": null, "": ""}'
    },
    "a label of 1 MB": {"metadata": json.dumps({"label": "L" * 1_000_000})},
    "many members": {"metadata": json.dumps({f"k{n}": n for n in range(20_000)})},
    "empty parts": {"action": ".", "resource_type": "", "resource_id": ""},
    "control characters": {
        "action": "\x1b[2J.\x07", "resource_type": "a\nb", "resource_id": "\r\n\u2028\x85",
        "metadata": json.dumps({"label": "\x1b]0;x\x07\u202e", "\u2028": "\x9b\ufeff\U000e0041"}),
    },
    "an odd diff": {
        "action": "workflow.updated", "resource_type": "workflow",
        "before": '{"": 1, "a/b~": 2, "x": null}', "after": '{"": {}, "a/b~": [[]], "y": null}',
    },
    "a diff of a scalar": {"before": "1.10", "after": "null"},
    "a member without a key": {"action": "member.removed", "resource_id": "[oops"},
    "a member of nothing": {"action": "member.removed", "resource_id": "[]"},
    "a member of a number": {"action": "member.removed", "resource_id": "[[NaN], 1e400, 1.10]"},
    "a deep member": {"action": "member.joined", "resource_id": nested(400, "[", "]")},
    "a session of an object": {
        "action": "session.created", "after": '{"user_id": {"a": 1}, "account_id": 1e400}',
    },
    "a formula": {"action": "=1+1", "resource_id": "@SUM(A1)"},
    "longest": {"action": "a" * 128, "resource_type": "é" * 128, "resource_id": "i" * 5000},
}  # fmt: skip
# What only a superuser, or a restore, can put there.
MALFORMED = (
    ("5", "[1]"), ('{"a": 1}', '"x"'), ('[null, "x", {}, [[]], {"op": 1, "path": 2}]', "null"),
    ('[{"op": "replace", "path": "/a"}, {"op": "nonsense", "path": ""}]', "{}"), ("null", "1.10"),
)  # fmt: skip
CONTEXT = dict.fromkeys(
    ("actor_label", "org_label", "auth_method", "api_key_id", "country", "user_agent",
     "correlation_id", "reason"),
    "\u202eé\n" + "x" * 10_000,
) | {"ip": "10.0.0.0/8"}  # fmt: skip


def poison(conn: Conn, org_id: str = "o_acme", actor_id: str = "u_ana") -> set[int]:
    """Record an event of every kind, honest ones around them; return the ids."""
    found = []
    honest = {"honest": {"action": "thing.seen"}}
    for case in [*honest.values(), *HELL.values(), *honest.values()]:
        with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
            context = {"org_id": org_id, "actor_id": actor_id}
            if case.get("action") in ("a" * 128, "=1+1"):
                context |= CONTEXT
            for name, value in context.items():
                cursor.execute("select set_config(%s, %s, true)", [f"app.{name}", value])
            row = cursor.execute(
                "select pgaudit_wf.record_event(%(action)s, %(resource_type)s, %(resource_id)s,"
                " %(before)s::jsonb, %(after)s::jsonb, %(metadata)s::jsonb)",
                {
                    "action": "odd.seen", "resource_type": "odd", "resource_id": "1",
                    "before": None, "after": None, "metadata": None, **case,
                },
            ).fetchone()  # fmt: skip
            assert row
            found.append(row[0])
    for diff, metadata in MALFORMED:
        row = conn.execute(
            "insert into pgaudit_wf.security_audit_log (action, org_id, actor_id, diff, metadata)"
            " values ('odd.restored', %s, %s, %s, %s) returning id",
            [org_id, actor_id, diff, metadata],
        ).fetchone()
        assert row
        found.append(row[0])
    return set(found)


@pytest.fixture
def poisoned(conn: Conn) -> set[int]:
    return poison(conn)


@pytest.fixture
def pay(conn: Conn) -> Conn:
    """A table whose rows hold the digits, and the events of one."""
    conn.execute("create table pay (id bigint primary key, amount numeric, more jsonb)")
    conn.execute("select pgaudit_wf.attach('pay')")
    conn.execute(f"insert into pay values (9007199254740993, {DIGITS[0]}, '{NUMBERS}')".encode())
    conn.execute(f"update pay set amount = {DIGITS[1]}".encode())
    return conn


def exported(conn: Conn, format_: Any) -> str:  # noqa: ANN401
    out = io.StringIO(newline="")
    export_trail(conn, format_, out)
    return out.getvalue()


def lines(text: str) -> list[dict[str, Any]]:
    # As other programs cut them: at whatever may end a line.
    return [loads(line) for line in text.splitlines()]


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        app(list(arguments))
    told = capsys.readouterr()
    assert caught.value.code == 0, told.err
    return told.out


# JSON itself.


@pytest.mark.parametrize(
    "text",
    [*DIGITS, "[]", "{}", '{"a": [1, {"b": null}], "c": true}', "1" + "0" * 100_000,
     "9" * 10_000, "0." + "0" * 16_000 + "1"],
)  # fmt: skip
def test_what_is_read_is_written_as_it_was(text: str) -> None:
    assert dumps(loads(text)) == text
    assert dumps(loads(text.encode())) == text


def test_integers_are_int_and_fractions_decimal() -> None:
    assert [type(value) for value in loads("[1, 1.0, true, null]")] == [
        int, Decimal, bool, type(None),
    ]  # fmt: skip
    assert loads("9" * 5000) == Decimal("9" * 5000)


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 1000, 100_000])
@pytest.mark.parametrize("brackets", ['{"]": ', "["])
def test_what_is_too_deep_comes_as_its_text(depth: int, brackets: str) -> None:
    end = "]" if brackets == "[" else "}"
    text = nested(depth, brackets, end)
    value = loads(text)
    assert loads(dumps(value)) == value
    assert dumps(value, 2)
    for _ in range(MAX_DEPTH):
        value = value[0] if isinstance(value, list) else value["]"]
    rest = depth - MAX_DEPTH
    assert value == (nested(rest, brackets, end) if rest else 1)


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text()
    | st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(JSONS)
def test_any_json_stays_what_it_is_on_one_line(value: Any) -> None:  # noqa: ANN401
    text = dumps(value)
    assert len(text.splitlines()) == 1
    assert text.isprintable() or text.encode()
    assert loads(text) == loads(dumps(value, 2)) == value


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "[1", "", "{'a': 1}", "1.5.2"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(text)


@pytest.mark.parametrize("value", [Decimal("NaN"), object(), {1, 2}])
def test_what_json_has_no_place_for_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        dumps({"a": [value]})


@pytest.mark.parametrize(
    ("resource_id", "parts"),
    [('["o_1", "u_1"]', ["o_1", "u_1"]), ('[1, 1.10, "x"]', ["1", "1.10", "x"]), (None, None),
     ("x", None), ("[oops", None), ("[]", None), ("[NaN]", None)],
)  # fmt: skip
def test_key_parts(resource_id: str | None, parts: list[str] | None) -> None:
    assert key_parts(resource_id) == parts


# Digits.


def test_reads_give_every_digit(pay: Conn) -> None:
    amount, rate = (Decimal(digits) for digits in DIGITS[:2])
    was = row_as_of(pay, "pay", "9007199254740993")
    assert was == {"id": 9007199254740993, "amount": rate, "more": loads(NUMBERS)}
    updated, inserted = audit_trail(pay, resource_type="pay").entries
    assert updated.diff == [{"op": "replace", "path": "/amount", "old": amount, "value": rate}]
    assert dumps(inserted.diff).count(NUMBERS) == 1
    [event] = [e for e in read_log(pay).events if e.id == updated.id]
    assert event.diff == updated.diff
    # What was read can be recorded again.
    record_event(pay, "pay.copied", before=was, metadata={"was": was})
    assert audit_trail(pay, action="pay.copied").entries[0].metadata == {"was": was}


@pytest.mark.parametrize("format_", ["csv", "ndjson", "ocsf"])
def test_exports_give_every_digit(pay: Conn, format_: str) -> None:
    text = exported(pay, format_)
    assert text.count(NUMBERS) == 1
    # Of the insert, and old and new of the update.
    assert (text.count(DIGITS[0]), text.count(DIGITS[1])) == (3, 2)


def test_the_command_line_gives_every_digit(
    pay: Conn, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["log", "--json"], ["log", "--diff"], ["export", "--format", "csv"]):
        text = run_cli(capsys, *arguments, "-d", dsn)
        assert text.count(NUMBERS) == 1
        assert text.count(DIGITS[0]) == 3
    for arguments in (["--json"], []):
        text = run_cli(capsys, "row", "pay", "9007199254740993", "-d", dsn, *arguments)
        assert DIGITS[1] in text
        assert text.count(DIGITS[0]) == 1


def test_archives_and_proofs_give_every_digit(pay: Conn, dsn: str, tmp_path: Path) -> None:
    Sealer(KEY).step(pay)
    [updated, _] = audit_trail(pay, resource_type="pay").entries
    event = check(prove_event(pay, updated.id), [KEY.verifier]).event
    assert event["diff"] == updated.diff
    pay.execute(
        "insert into pgaudit_wf.security_audit_log (occurred_at, action, metadata)"
        " values ('2021-03-01', 'old', %s::jsonb)",
        [f'{{"n": {NUMBERS}}}'],
    )
    pay.execute("select pgaudit_wf.add_log_partition('2021-03-01')")
    Sealer(KEY).step(pay)
    archive_partition(pay, "security_audit_log_y2021m03", str(tmp_path))
    Sealer(KEY).step(pay)
    pay.execute("select pgaudit_wf.prune('security_audit_log_y2021m03')")
    [entry] = whole_trail(pay, list_archives(str(tmp_path)), action="old")
    assert dumps(entry.metadata) == f'{{"n": {NUMBERS}}}'


def test_definitions_keep_their_digits_and_their_hash(app_conn: Conn, app_dsn: str) -> None:
    nodes = f'[{{"id": "a", "type": "t", "data": {{"config": {{"n": {NUMBERS}}}}}}}]'
    app_conn.execute("insert into organization (id, name) values ('o_acme', 'Acme')")
    row = app_conn.execute(
        "insert into workflow (org_id, name, nodes) values ('o_acme', 'W', %s) returning id::text",
        [nodes],
    ).fetchone()
    assert row
    snapshot = version_snapshot(app_conn, row[0], 1)
    assert dumps(snapshot.nodes[0]["data"]["config"]) == f'{{"n": {NUMBERS}}}'
    assert app_conn.execute("select content_hash from pgaudit_wf.workflow_history").fetchone() == (
        content_hash(snapshot.nodes, snapshot.edges),
    )


# Every reader.


def test_python_reads_and_followers(conn: Conn, poisoned: set[int]) -> None:
    entries = audit_trail(conn, page_size=1000).entries
    assert {entry.id for entry in entries} == poisoned
    assert {entry.id for entry in latest_trail(conn, 1000).entries} == poisoned
    batch = read_log(conn)
    assert {event.id for event in batch.events} >= poisoned
    first = next(event.cursor for event in batch.events if event.id == min(poisoned))
    followed = follow_trail(conn, first, 1000)
    assert {entry.id for entry in followed.entries} == poisoned - {min(poisoned)}
    assert all(isinstance(entry.metadata, dict) for entry in entries)
    assert max(len(entry.resource_name or "") for entry in entries) == 255
    assert audit_trail(conn, search="oops").entries[0].resource_id == "[oops"


def test_async_reads(conn: Conn, dsn: str, poisoned: set[int]) -> None:
    async def read() -> TrailPage:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            return await audit_trail(connection, page_size=1000)

    entries = asyncio.run(read()).entries
    assert entries == audit_trail(conn, page_size=1000).entries
    assert {entry.id for entry in entries} == poisoned


@pytest.mark.parametrize("format_", ["csv", "ndjson", "ocsf"])
def test_exports(conn: Conn, poisoned: set[int], format_: str) -> None:
    text = exported(conn, format_)
    if format_ == "csv":
        csv.field_size_limit(1 << 30)
        found = {int(row["id"]) for row in csv.DictReader(io.StringIO(text, newline=""))}
    elif format_ == "ndjson":
        found = {event["id"] for event in lines(text)}
    else:
        found = {int(event["metadata"]["uid"]) for event in lines(text)}
    assert found >= poisoned


@pytest.mark.parametrize("until", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_exports_to_either_end_of_time(conn: Conn, poisoned: set[int], until: str) -> None:
    out = io.StringIO()
    written = export_trail(
        conn, "ndjson", out, filters={"until": datetime.fromisoformat(until), "action": "odd.*"}
    )
    assert bool(written) is until.startswith("9")


def test_the_command_line(
    conn: Conn, dsn: str, poisoned: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    told = loads(run_cli(capsys, "log", "--json", "-n", "1000", "-d", dsn))
    assert {event["id"] for event in told} == poisoned
    for arguments in (["-n", "1000"], ["-n", "1000", "--diff"], ["--search", "x"]):
        shown = run_cli(capsys, "log", *arguments, "-d", dsn)
        assert re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", shown) is None
    run_cli(capsys, "api-keys", "-d", dsn)


def test_a_follower_goes_on_after_them(conn: Conn, dsn: str) -> None:
    [start] = [batch.cursor for batch in [latest_trail(conn, 0)]]
    poisoned = poison(conn)
    program = Path(sys.executable).with_name("pgaudit-wf")
    arguments = ["log", "-f", "--after", start, "-d", dsn]
    for options in (["--json"], [], ["--diff"]):
        # A terminal that without Unicode is not a reason to stop either.
        with subprocess.Popen(
            [program, *arguments, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        ) as follower:  # fmt: skip
            assert follower.stdout and follower.stderr  # noqa: PT018
            seen = 0
            for line in follower.stdout:
                if options == ["--json"]:
                    assert loads(line)["id"] in poisoned
                seen += not line.startswith(b"      ")
                if seen == len(poisoned):
                    break
            assert seen == len(poisoned), follower.stderr.read()
            follower.kill()


@pytest.fixture
def world(server: DevServer, app_conn: Conn, secret: Callable[[], str]) -> Iterator[World]:
    with make_world(server, app_conn) as made:
        for resource_type in ("api_key", "workflow", "workflow_execution"):
            with request_context(made.conn, actor_id="u_ana", org_id="o_acme"):
                made.conn.execute(
                    "select pgaudit_wf.record_event(%s, %s, %s, metadata => %s::jsonb)",
                    [
                        f"{resource_type}.created",
                        resource_type,
                        "[\n",
                        HELL["deep objects"]["metadata"],
                    ],
                )
        yield made


def test_pages_and_api(world: World) -> None:
    Sealer(KEY).step(world.conn)
    application = mounted_app(world, verify_keys=(KEY.verifier,))
    with TestClient(
        application, base_url="http://testserver/audit", headers={"x-test-user": "ana"}
    ) as client:
        start = client.get("/api/security/audit/follow?max_events=1").json()["cursor"]
        poisoned = poison(world.conn)
        page = client.get("/api/security/audit?page_size=1000")
        entries = loads(page.content)["entries"]
        assert {entry["id"] for entry in entries} >= poisoned
        assert NUMBERS in page.text
        followed = client.get(f"/api/security/audit/follow?after={start}&max_events=1000")
        assert {entry["id"] for entry in loads(followed.content)["entries"]} >= poisoned
        for format_ in ("csv", "ndjson", "ocsf"):
            told = client.get(f"/api/security/audit/export?format={format_}")
            assert told.status_code == 200
            assert NUMBERS in told.text
        for path in (
            "/activity", "/activity/live", f"/activity/live?since_cursor={start}", "/workflows",
            "/api-keys", "/api/api-keys/activity", "/runs", "/integrity",
        ):  # fmt: skip
            answer = client.get(path)
            assert answer.status_code == 200, path
            assert "Decimal(" not in answer.text
        for entry in entries:
            for path in ("/activity/", "/api/security/audit/events/"):
                answer = client.get(f"{path}{entry['cursor']}")
                assert answer.status_code == 200, entry["action"]
                assert "Decimal(" not in answer.text
        sealed = [entry for entry in entries if entry["id"] not in poisoned]
        for entry in sealed:
            proof = client.get(f"/api/security/audit/events/{entry['cursor']}/proof")
            assert check(loads(proof.content), [KEY.verifier]).event["action"] == entry["action"]


def test_seal_verify_prove(
    conn: Conn, poisoned: set[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Sealer(KEY).step(conn)
    report = verify(conn, [KEY.verifier])
    assert report.holds, report.problems
    public = tmp_path / "seal.pub"
    public.write_text(f"{KEY.verifier}\n")
    for number in sorted(poisoned):
        proof = prove_event(conn, number)
        event = check(proof, [KEY.verifier]).event
        assert event["id"] == str(number)
        assert dumps(event)
        file = tmp_path / f"{number}.json"
        file.write_text(dumps(proof, 2))
        assert "PROVED" in run_cli(capsys, "check", str(file), "--key", str(public))
        told = run_cli(capsys, "check", str(file), "--key", str(public), "--json")
        assert loads(told)["event"]["id"] == str(number)
    # The implementation that shares no code with this one.
    done = subprocess.run(
        [sys.executable, CHECKER, tmp_path / f"{min(poisoned) + 2}.json", public],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_archives(conn: Conn, tmp_path: Path) -> None:
    poisoned = poison(conn)
    moved = conn.execute(
        "with event as (select * from pgaudit_wf.security_audit_log) insert into"
        " pgaudit_wf.security_audit_log (occurred_at, action, org_id, actor_id, actor_label,"
        " resource_type, resource_id, diff, metadata, ip) select '2021-03-01'::timestamptz"
        " + row_number() over (order by id) * interval '1 second', action, org_id, actor_id,"
        " actor_label, resource_type, resource_id, diff, metadata, ip from event order by id"
        " returning id"
    ).fetchall()
    conn.execute("select pgaudit_wf.add_log_partition('2021-03-01')")
    Sealer(KEY).step(conn)
    before = [
        (entry.action, entry.diff, entry.metadata, entry.resource_name, entry.ip)
        for entry in audit_trail(conn, page_size=1000).entries
        if entry.id not in poisoned
    ]
    archive_partition(conn, "security_audit_log_y2021m03", str(tmp_path))
    Sealer(KEY).step(conn)
    conn.execute("select pgaudit_wf.prune('security_audit_log_y2021m03')")
    archives = list_archives(str(tmp_path))
    verify_archive(archives[0])
    entries = [e for e in whole_trail(conn, archives) if (e.id,) in moved]
    assert [(e.action, e.diff, e.metadata, e.resource_name, e.ip) for e in entries] == before
    # A search reads into every event's metadata.
    found = [entry.resource_id for entry in whole_trail(conn, archives, search="oops")]
    assert found == ["[oops", "[oops"]
    report = verify(conn, [KEY.verifier])
    verify_archives(conn, str(tmp_path), report)
    assert report.holds, report.problems
    assert report.archived == len(moved)
    number = max(number for (number,) in moved)
    proof = prove_event(conn, number, archived_row(conn, str(tmp_path), number))
    assert check(proof, [KEY.verifier]).event["id"] == str(number)


def test_alerts_go_on_after_them(app_conn: Conn, app_dsn: str) -> None:
    conn = app_conn
    conn.execute("delete from pgaudit_wf.alert_rule")
    conn.execute(
        "insert into pgaudit_wf.alert_rule (action_pattern, channel, audience, address)"
        " values ('*', 'log', 'address', 'all')"
    )
    # A directory's names are the host's users' to choose.
    conn.execute(
        "insert into app_user (id, email, name)"
        " values ('u_ana', 'a@b.example', repeat('N', 5000000))"
    )
    sent: list[Alert] = []

    class Kept(LogChannel):
        def send(self, alert: Alert) -> None:
            sent.append(alert)
            # Over every channel, the event would be told.
            Templates().email(Alert("smtp", "a@b.example", "k", alert.events, 1), "c@d.example")
            super().send(alert)

    poisoned = poison(conn)
    service = Service("alerts")
    worker = Worker(lambda: psycopg.connect(app_dsn, autocommit=True), {"log": Kept()}, service)
    while worker.job(service):
        pass
    worker.close()
    assert {event["id"] for alert in sent for event in alert.events} >= poisoned
    for alert in sent:
        assert len(dumps(alert.events)) < 30_000
    assert conn.execute(
        "select distinct state from pgaudit_wf.alert_delivery"
    ).fetchall() == [("sent",)]  # fmt: skip


# NUL is the one character that jsonb does not take.
STORED = JSONS.map(lambda value: loads(dumps(value).replace("\\u0000", "")))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(before=STORED, after=STORED, label=STORED, text=st.text(max_size=20))
def test_what_is_recorded_is_what_is_read(
    conn: Conn,
    before: object,
    after: object,
    label: object,
    text: str,
) -> None:
    action = f"member.{text}".replace("\0", "").encode("utf-8", "ignore").decode()
    with conn.transaction(force_rollback=True):
        record_event(
            conn, action, resource_type="member", resource_id=dumps(before)[:500],
            before={"v": [before]}, after={"v": [after]}, metadata={"label": label},
        )  # fmt: skip
        [entry] = audit_trail(conn).entries
    assert (entry.action, entry.metadata) == (action, {"label": label})
    for operation in entry.diff or ():
        assert operation.get("old", [before]) == [before]
        assert operation.get("value", [after]) == [after]
    for format_ in get_args(Format):
        event_writer(format_, io.StringIO(newline=""))(entry)
    assert dumps(to_ocsf(entry))
    print_trail([entry], None)
    print_trail([entry], None, diff=True)


# What comes in is bounded.


def test_the_context_is_cut(conn: Conn) -> None:
    with conn.transaction():
        for name in ("actor_id", "org_id", *CONTEXT):
            conn.execute("select set_config(%s, repeat('é', 2000000), true)", [f"app.{name}"])
        conn.execute("select pgaudit_wf.record_event('x.seen')")
        row = conn.execute(
            "select length(actor_id), length(actor_label), length(org_id), length(org_label),"
            " length(auth_method), length(api_key_id), length(country), length(correlation_id),"
            " length(user_agent), length(metadata ->> 'reason'), ip"
            " from pgaudit_wf.security_audit_log where action = 'x.seen'"
        ).fetchone()
    assert row == (255, 255, 255, 255, 255, 255, 255, 255, 1024, 4096, None)


def test_no_label_is_longer_in_an_alert(app_conn: Conn) -> None:
    conn = app_conn
    with conn.transaction():
        conn.execute("select set_config('app.org_label', repeat('L', 2000000), true) is null")
        conn.execute(
            "select pgaudit_wf.record_event('api_key.created', 'api_key', 'k',"
            " metadata => jsonb_build_object('label', repeat('L', 1000000)))"
        )
    conn.execute("update pgaudit_wf.alert_rule set audience = 'address', address = 'a@b.example'")
    conn.execute("select pgaudit_wf.enqueue_alerts()")
    row = conn.execute("select length(events::text) from pgaudit_wf.claim_alert()").fetchone()
    assert row
    assert row[0] < 2000


def test_actions_and_types_are_at_most_128_characters(conn: Conn) -> None:
    record_event(conn, "é" * 128, resource_type="é" * 128)
    for action, resource_type in (("a" * 129, "r"), ("a", "r" * 129)):
        with pytest.raises(psycopg.Error, match="128 characters") as caught:
            record_event(conn, action, resource_type=resource_type)
        assert caught.value.sqlstate == "PA008"


@pytest.fixture
def own(server: DevServer, core_template: NoopExecutor) -> Iterator[Conn]:
    """A database that is not searched for secrets: what cannot be printed cannot be searched."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        template = core_template.template_dbname
        admin.execute(f"create database unprintable template {template}".encode())
        with psycopg.connect(server.dsn("unprintable"), autocommit=True) as conn:
            yield conn
        admin.execute("drop database unprintable with (force)")


@pytest.mark.slow
def test_what_postgresql_cannot_print_stops_nobody(own: Conn, tmp_path: Path) -> None:
    conn = own
    numbers = "select jsonb_agg(1e131071::numeric) from generate_series(1, 9000)"
    conn.execute("create table bomb (id int primary key, more jsonb)")
    conn.execute("select pgaudit_wf.attach('bomb')")
    conn.execute(f"insert into bomb select 1, ({numbers})".encode())
    conn.execute(
        "select pgaudit_wf.record_event('x', metadata => jsonb_build_object('a',"
        f" ({numbers})))".encode()
    )
    conn.execute("insert into bomb values (2, '1.10')")
    entries = audit_trail(conn).entries
    assert entries[1].metadata["bytes"] == "more than 1 GB"
    assert entries[2].diff
    [operation] = entries[2].diff
    assert operation["value"]["bytes"] == "more than 1 GB"
    assert len(read_log(conn).events) >= 3
    Sealer(KEY).step(conn)
    assert verify(conn, [KEY.verifier]).holds
    assert check(prove_event(conn, entries[2].id), [KEY.verifier]).event["diff"]
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (occurred_at, action, diff)"
        " select '2021-03-01', action, diff from pgaudit_wf.security_audit_log where id = %s",
        [entries[2].id],
    )
    conn.execute("select pgaudit_wf.add_log_partition('2021-03-01')")
    Sealer(KEY).step(conn)
    archive_partition(conn, "security_audit_log_y2021m03", str(tmp_path))
    Sealer(KEY).step(conn)
    conn.execute("select pgaudit_wf.prune('security_audit_log_y2021m03')")
    report = verify(conn, [KEY.verifier])
    verify_archives(conn, str(tmp_path), report)
    assert (report.holds, report.archived) == (True, 1)


def test_a_spooled_attempt_is_cut_where_an_event_would_be_refused(conn: Conn) -> None:
    entry = {
        "id": "00000000-0000-4000-8000-000000000001", "outcome": "denied", "action": "é" * 200,
        "resource_type": "r" * 200, "metadata": {"n": "1"}, "context": {"actor_label": "L" * 500},
    }  # fmt: skip
    conn.execute("select pgaudit_wf.record_attempt(%s::jsonb)", [dumps(entry)])
    [found] = audit_trail(conn).entries
    assert (found.action, found.resource_type) == ("é" * 128, "r" * 128)
    assert found.actor_name == "L" * 255


def test_what_is_larger_than_a_mebibyte_is_recorded_by_its_digest(conn: Conn) -> None:
    text = '{"n": "' + "x" * 2_000_000 + '"}'
    digest = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text)}
    # 8 KB where it is stored, 60 MB where it is shown.
    numbers = "[" + ", ".join(["1e100000"] * 600) + "]"
    with request_context(conn, actor_id="u", reason="why"):
        conn.execute(
            "select pgaudit_wf.record_event('x', before => %s, after => %s, metadata => %s)",
            [text, numbers, text],
        )
    [entry] = audit_trail(conn).entries
    assert entry.metadata == {"reason": "why", **digest}
    assert entry.diff
    assert [op["path"] for op in entry.diff] == ["/bytes", "/sha256"]
    assert entry.diff[0] | {"value": 0} == {
        "op": "replace", "path": "/bytes", "old": len(text), "value": 0,
    }  # fmt: skip
