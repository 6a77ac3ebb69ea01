"""Exports are complete, safe to open, valid for a SIEM, and in the trail themselves."""

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema
from psycopg.rows import dict_row

from pgaudit_wf import request_context
from pgaudit_wf.archive.files import list_archives
from pgaudit_wf.archive.write import archive_partition
from pgaudit_wf.cli import app
from pgaudit_wf.errors import AccessDeniedError
from pgaudit_wf.export.trail import CSV_COLUMNS, OCSF_VERSION, csv_cell, export_trail, to_ocsf
from pgaudit_wf.trail.reads import audit_trail
from support.server import Conn

FORMULA = '=HYPERLINK("http://evil","x")'
HOSTILE = [
    FORMULA,
    "+1",
    "-1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "\nx",
    'a"b',
    "a,b",
    "a\r\nb",
    "'=x",
    "Zoë",
]


def export(conn: Conn, format_: Any, **options: Any) -> str:  # noqa: ANN401
    out = io.StringIO(newline="")
    export_trail(conn, format_, out, **options)
    return out.getvalue()


def record(conn: Conn, action: str, label: str = "x") -> None:
    conn.execute(
        "select pgaudit_wf.record_event(%s, 'thing', '1', metadata => jsonb_build_object("
        "'label', %s::text, 'n', 0.10))",
        [action, label],
    )


@pytest.fixture(autouse=True)
def spool(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a reader is refused is put aside by request_context: not in this machine's home."""
    monkeypatch.setenv("PGAUDIT_WF_SPOOL", str(tmp_path_factory.mktemp("spool") / "attempts.jsonl"))


@pytest.fixture
def hostile(conn: Conn) -> Conn:
    for text in HOSTILE:
        with request_context(conn, actor_id="u_1", actor_label=text.strip("\n\r\t") or "x"):
            record(conn, "thing.seen", text)
    return conn


def test_csv_is_read_back_whole_and_without_formulas(hostile: Conn) -> None:
    text = export(hostile, "csv")
    rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    assert text.splitlines()[0] == ",".join(CSV_COLUMNS)
    assert text.endswith("\r\n")
    names = [row["resource_name"] for row in reversed(rows)]
    assert [
        n.removeprefix("'") if n.removeprefix("'")[:1] in "=+-@\t\r\n" else n for n in names
    ] == [t if t != "'=x" else "=x" for t in HOSTILE]
    for row in rows:
        for cell in row.values():
            assert not cell or cell[0] not in "=+-@\t\r\n"


def test_rows_of_any_kind_will_do(hostile: Conn) -> None:
    expected = export(hostile, "ndjson")
    hostile.row_factory = dict_row
    exported = export(hostile, "ndjson")
    assert exported.endswith(expected)


@given(st.text())
def test_no_text_becomes_a_formula(text: str) -> None:
    cell = csv_cell(text)
    assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n")
    assert cell in (text, f"'{text}")


@pytest.mark.parametrize(
    ("value", "cell"),
    [(None, ""), (True, "true"), (7, "7"), (-7, "-7"), ({"a": "=1"}, '{"a": "=1"}'),
     (datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "2026-01-02T03:04:05.000006+00:00")],
)  # fmt: skip
def test_cells(value: object, cell: str) -> None:
    assert csv_cell(value) == cell


def test_ndjson_has_an_event_a_line_newest_first(hostile: Conn) -> None:
    entries = audit_trail(hostile, page_size=1000).entries
    text = export(hostile, "ndjson")
    assert text.count("\n") == len(HOSTILE)
    found = [json.loads(line) for line in text.splitlines()]
    assert [event["id"] for event in found] == [entry.id for entry in entries]
    assert [event["resource_name"] for event in reversed(found)] == HOSTILE
    assert set(found[0]) == set(CSV_COLUMNS)
    assert datetime.fromisoformat(found[0]["occurred_at"]) == entries[0].occurred_at


def test_the_export_is_in_the_trail(hostile: Conn) -> None:
    since = datetime.now(UTC) - timedelta(hours=1)
    export(
        hostile, "ndjson", filters={"action": "thing.*", "since": since, "org_id": None},
        reading=lambda: request_context(hostile, actor_id="u_auditor", reason="yearly"),
    )  # fmt: skip
    rows = hostile.execute(
        "select action, actor_id, outcome, metadata from pgaudit_wf.security_audit_log"
        " where action like 'audit.%' order by id"
    ).fetchall()
    told = {"format": "ndjson", "reason": "yearly",
            "filters": {"action": "thing.*", "since": since.isoformat()}}  # fmt: skip
    assert rows == [
        ("audit.export_started", "u_auditor", "succeeded", told),
        ("audit.exported", "u_auditor", "succeeded", {**told, "events": len(HOSTILE)}),
    ]


def test_a_broken_export_is_in_the_trail_too(hostile: Conn) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            if self.tell() > 500:
                raise OSError(28, "No space left on device")
            return super().write(text)

    with pytest.raises(OSError, match="No space left"):
        export_trail(hostile, "ndjson", Full())
    [(outcome, events)] = hostile.execute(
        "select outcome, (metadata ->> 'events')::int from pgaudit_wf.security_audit_log"
        " where action = 'audit.exported'"
    ).fetchall()
    assert outcome == "failed"
    assert 0 < events < len(HOSTILE)


def test_events_written_during_an_export_are_left_out(
    hostile: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgaudit_wf.export.trail._PAGE", 5)

    class Writing(io.StringIO):
        def write(self, text: str) -> int:
            record(hostile, "thing.meanwhile")
            return super().write(text)

    out = Writing()
    assert export_trail(hostile, "ndjson", out) == len(HOSTILE)
    assert "meanwhile" not in out.getvalue()


def test_a_reader_exports_his_organization_only(conn: Conn) -> None:
    conn.execute(
        "create or replace view pgaudit_wf.org_member as select 'o_1'::text as org_id,"
        " 'u_1'::text as actor_id, 'owner'::text as role"
    )
    for org in ("o_1", "o_2"):
        with request_context(conn, org_id=org):
            record(conn, f"thing.{org}")
    conn.execute("set role pgaudit_wf_reader")
    text = export(
        conn, "ndjson", reading=lambda: request_context(conn, actor_id="u_1", org_id="o_1")
    )
    assert [json.loads(line)["action"] for line in text.splitlines()] == ["thing.o_1"]
    with pytest.raises(AccessDeniedError):
        export(conn, "csv", reading=lambda: request_context(conn, actor_id="u_2", org_id="o_1"))
    conn.execute("reset role")
    assert conn.execute(
        "select outcome, metadata ->> 'events' from pgaudit_wf.security_audit_log"
        " where action = 'audit.exported' order by id"
    ).fetchall() == [("succeeded", "1"), ("failed", "0")]


def test_archives_are_exported_too(conn: Conn, tmp_path: Path) -> None:
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (action, occurred_at)"
        " values ('thing.old', '2021-03-01')"
    )
    conn.execute("select pgaudit_wf.add_log_partition('2021-03-01')")
    archive_partition(conn, "security_audit_log_y2021m03", str(tmp_path))
    conn.execute("select pgaudit_wf.prune('security_audit_log_y2021m03')")
    record(conn, "thing.new")
    text = export(conn, "ndjson", archives=list_archives(str(tmp_path)))
    assert [json.loads(line)["action"] for line in text.splitlines()] == [
        "thing.new", "audit.pruned", "audit.archived", "thing.old",
    ]  # fmt: skip


# OCSF, checked against the published schema.


@pytest.fixture(scope="module")
def check() -> Callable[[dict[str, Any]], None]:
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=OCSF_VERSION))
    validators: dict[int, Draft202012Validator] = {}

    def validate(event: dict[str, Any]) -> None:
        uid = event["class_uid"]
        if uid not in validators:
            validators[uid] = Draft202012Validator(
                schema.get_class_schema(class_name=schema.lookup_class_name_from_uid(uid))
            )
        problems = [f"{e.json_path}: {e.message[:200]}" for e in validators[uid].iter_errors(event)]
        assert problems == [], (event["metadata"]["event_code"], problems)
        assert event["type_uid"] == uid * 100 + event["activity_id"]
        assert event["category_uid"] == uid // 1000

    return validate


EXPECTED = {
    "account.created": 300101, "account.reactivated": 300102, "password.changed": 300103,
    "password.reset": 300104, "account.deactivated": 300105, "account.deleted": 300106,
    "totp.enrolled": 300110, "totp.disabled": 300111, "email.changed": 300199,
    "backup_codes.regenerated": 300199, "session.created": 300201, "session.revoked": 300202,
    "member.joined": 300603, "member.removed": 300604, "member.role_changed": 300699,
    "api_key.created": 600301, "org_api_key.revoked": 600304, "workflow.updated": 600303,
    "workflow.deleted": 600304, "workflow.listed": 600303, "audit.exported": 600302,
    "subscription.change_requested": 600399, "odd": 600399,
}  # fmt: skip


def test_ocsf_events_fit_the_schema(conn: Conn, check: Callable[[dict[str, Any]], None]) -> None:
    for action in EXPECTED:
        with request_context(
            conn, actor_id="u_1", actor_label="Ada", org_id="o_1", ip="203.0.113.9", country="AT",
            user_agent="Mozilla", api_key_id="k_1", correlation_id="r_1",
        ):  # fmt: skip
            conn.execute(
                'select pgaudit_wf.record_event(%s, %s, %s, after => \'{"user_id": "u_9"}\')',
                [action, action.partition(".")[0], "u_2"],
            )
        # With as little as there may be: nobody said who, no address, nothing changed.
        conn.execute("select pgaudit_wf.record_event(%s, outcome => 'denied')", [action])
    seen = {}
    for line in export(conn, "ocsf").splitlines():
        event = json.loads(line)
        check(event)
        seen[event["metadata"]["event_code"]] = event["type_uid"]
        if event["metadata"]["event_code"] == "session.created" and event["status_id"] == 1:
            assert event["user"]["uid"] == "u_9"
            assert event["actor"]["user"]["uid"] == "u_1"
            assert event["src_endpoint"] == {"ip": "203.0.113.9", "location": {"country": "AT"}}
    assert seen == EXPECTED


@pytest.mark.usefixtures("secret")
def test_the_reference_application_s_events_fit_the_schema(
    app_conn: Conn, check: Callable[[dict[str, Any]], None]
) -> None:
    conn = app_conn
    conn.execute("insert into organization (id, name) values ('o_1', 'Acme')")
    conn.execute("insert into app_user (id, email) values ('u_1', 'a@example.com')")
    conn.execute("insert into member (org_id, user_id, role) values ('o_1', 'u_1', 'owner')")
    conn.execute("update member set role = 'admin'")
    conn.execute("update app_user set password_hash = 'never-to-be-logged', deactivated_at = now()")
    conn.execute("delete from member")
    conn.execute("truncate app_user cascade")
    lines = export(conn, "ocsf").splitlines()
    assert len(lines) >= 7
    for line in lines:
        check(json.loads(line))


def test_time_is_exact_to_the_millisecond(conn: Conn) -> None:
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (action, occurred_at, outcome, ip)"
        " values ('x', '2026-01-02 03:04:05.678999+00', 'failed', '10.0.0.0/8')"
    )
    [entry] = audit_trail(conn).entries
    event = to_ocsf(entry)
    assert event["time"] == 1767323045678
    assert (event["status_id"], event["status_detail"], event["severity_id"]) == (2, "failed", 3)
    assert event["src_endpoint"]["ip"] == "10.0.0.0"


# The command.


def test_the_command_writes_a_file_or_standard_output(
    hostile: Conn, dsn: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "trail.csv"
    with pytest.raises(SystemExit) as caught:
        app(["export", "-o", str(target), "--action", "thing.*", "-d", dsn])
    assert caught.value.code == 0
    assert f"{len(HOSTILE)} events" in capfd.readouterr().err
    with target.open(newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == len(HOSTILE) + 1
    assert [path.name for path in tmp_path.iterdir()] == ["trail.csv"]
    with pytest.raises(SystemExit) as caught:
        app(["export", "-F", "ocsf", "--action", "thing.*", "--as", "u_7", "-d", dsn])
    assert caught.value.code == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == len(HOSTILE)
    assert hostile.execute(
        "select count(*), count(distinct correlation_id), max(actor_id)"
        " from pgaudit_wf.security_audit_log where action like 'audit.%'"
    ).fetchone() == (4, 2, "u_7")


def test_a_file_that_cannot_be_written_is_said(
    dsn: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        app(["export", "-o", str(tmp_path / "no" / "such" / "place.csv"), "-d", dsn])
    assert caught.value.code == 1
    assert "cannot be written" in capfd.readouterr().err
