"""The command line on a real server: what it prints, its exit codes, what it never shows."""

from __future__ import annotations

import ast
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer

from pgaudit_wf import request_context
from pgaudit_wf.cli.base import hide_passwords, parse_time
from pgaudit_wf.cli.printing.output import printable
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.exact_json import dumps
from support.asserting import wait_until
from support.command import Result
from support.factories import add_users

PROGRAM = Path(sys.executable).with_name("pgaudit-wf")
PASSWORD = "hunter2"
HOSTILE = "a\x1b[31mred\x9b2J\u202etxt\r\nb\u2028c"


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    # Without a buffer, Python takes it for done when a pipe breaks in the middle of one write.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def watchers(conn: psycopg.Connection) -> int:
    row = conn.execute(
        "select count(*) from pg_stat_activity where application_name = 'pgaudit-wf'"
        " and datname = current_database() and query like '%follow_trail%'"
    ).fetchone()
    return int(row[0]) if row else 0


# migrate


def test_migrate_up_twice_and_away(empty_dsn: str, cli: Callable[..., Result]) -> None:
    up = cli("migrate", empty_dsn)
    assert (up.code, up.err) == (0, "")
    assert "applied  pgaudit_wf.core.0001" in up.out
    again = cli("migrate", empty_dsn)
    assert again.code == 0
    assert again.out.startswith("Nothing to do: the audit schema is at version ")
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("create table item (id int primary key)")
        conn.execute("select pgaudit_wf.attach('item')")
        conn.execute("insert into item values (1), (2)")
    for zero in ("0", "00"):
        asked = cli("migrate", empty_dsn, "--to", zero)
        assert asked.code == 2
        # What was attached is an event too.
        assert "3 events, 0 versions of workflows, 0 sealed leaves" in asked.err
        assert "1 attached tables" in asked.err
        assert "--yes" in asked.err
    away = cli("migrate", empty_dsn, "--to", "0", "--yes", "--json")
    assert away.code == 0
    assert json.loads(away.out)["rolled_back"][-1].startswith("pgaudit_wf.core.0001")
    unknown = cli("migrate", empty_dsn, "--to", "77")
    assert unknown.code == 1
    assert unknown.err.startswith("pgaudit-wf: migration 77 does not exist")


def test_a_database_is_named_as_in_psql(
    dsn: str, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = psycopg.conninfo.conninfo_to_dict(dsn)
    monkeypatch.setenv("PGHOST", str(given["host"]))
    monkeypatch.setenv("PGPORT", str(given["port"]))
    monkeypatch.setenv("PGUSER", str(given["user"]))
    assert cli("status", "-d", given["dbname"]).code == 0
    assert cli("status", str(given["dbname"])).code == 0
    assert 'database "not there"' in cli("status", "-d", "dbname='not there'").err
    assert 'database "nowhere"' in cli("status", "-d", "nowhere").err


def test_migrate_with_app_schema_and_sqlalchemys_url(
    empty_dsn: str, cli: Callable[..., Result]
) -> None:
    url = empty_dsn.replace("postgresql://", "postgresql+psycopg://")
    assert cli("migrate", "-d", url, "--with-app-schema").code == 0
    assert "No problems found: 9 tables" in cli("doctor", url).out


# attach, detach, status, doctor


def test_attach_change_and_detach(on: Callable[..., Result], app_conn: psycopg.Connection) -> None:
    app_conn.execute(
        'create table public."My Invoice" (no int primary key, total numeric, pin text)'
    )
    table = 'public."My Invoice"'
    done = on(
        "attach", table, "--resource-type", "invoice", "--redact", "pin", "--on-failure", "warn",
        "--label-column", "no", "--json",
    )  # fmt: skip
    assert done.code == 0
    setting = json.loads(done.out)
    assert setting["table"] == '"My Invoice"'
    assert (setting["resource_type"], setting["redact"]) == ("invoice", ["pin"])
    assert (setting["id_columns"], setting["on_failure"]) == (["no"], "warn")
    app_conn.execute("insert into \"My Invoice\" values (7, 12345678901234567.890, 'secret')")

    changed = on("attach", table, "--label-column", "", "--redact", "", "--ignore", "pin")
    assert changed.code == 0
    assert "Recording every change of" in changed.out
    listed = json.loads(on("status", "--json").out)
    (setting,) = [a for a in listed["attached"] if a["resource_type"] == "invoice"]
    assert (setting["redact"], setting["ignore"], setting["label_column"]) == ([], ["pin"], None)
    assert listed["events"]["invoice"] == 1

    # Every digit comes out as it was stored.
    assert "12345678901234567.890" in on("log", "--json", "--resource-type", "invoice").out
    assert "12345678901234567.890" in on("row", table, "7").out
    assert '"total": 12345678901234567.890' in on("row", table, "7", "--json").out

    assert on("detach", table).code == 0
    gone = on("detach", table)
    assert gone.code == 1
    assert "is not attached" in gone.err
    assert "invoice 1" in on("status").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attach", "nowhere"], 'relation "nowhere" does not exist'),
        (["attach", "workflow", "--org-column", "o"], 'no column "o", named in org_column'),
        (["log", "--after", "x"], 'the cursor "x" was not made by audit_trail()'),
        (["log", "-f", "--after", "x"], 'the cursor "x" does not belong to this log'),
        (["row", "workflow_execution", "1"], "was never attached"),
        (["row", "app_user", "nobody"], "app_user has no row nobody now"),
    ],
)
def test_refusals_are_one_line(
    on: Callable[..., Result], arguments: list[str], message: str
) -> None:
    refused = on(*arguments)
    assert (refused.code, refused.out) == (1, "")
    assert message in refused.err
    assert refused.err.count("\n") == 1
    assert "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["log", "--colour"], "No such option: --colour"),
        (["log", "--since", "never"], "invalid time 'never'; expected 2026-03-01"),
        (["attach"], "what is to be attached?"),
        (["attach", "t", "--on-failure", "shrug"], "'shrug' is not one of"),
        (["log", "-n", "-1"], "greater than or equal to 0"),
    ],
)
def test_wrong_usage(cli: Callable[..., Result], arguments: list[str], message: str) -> None:
    wrong = cli(*arguments)
    assert (wrong.code, wrong.out) == (2, "")
    assert message in wrong.err
    assert wrong.err.count("\n") == 1


def test_a_row_with_a_huge_value_is_shown_cut(
    on: Callable[..., Result], app_conn: psycopg.Connection
) -> None:
    app_conn.execute("create table doc (id int primary key, body text)")
    app_conn.execute("select pgaudit_wf.attach('doc')")
    app_conn.execute("insert into doc values (1, repeat('x', 5000000))")
    shown = on("row", "doc", "1").out
    assert "xx…" in shown
    assert len(shown) < 50_000
    assert json.loads(on("row", "doc", "1", "--json").out)["body"] == "x" * 5_000_000


def test_status_for_people(on: Callable[..., Result], app_conn: psycopg.Connection) -> None:
    add_users(app_conn, "u", 3)
    out = on("status").out
    assert re.search(r"app_user +user +id .* password_hash +\d+ +3 ", out)
    # With those of the rules and attachments of the reference application.
    assert "83 events in all, pgaudit_wf.action_rule 68" in out
    assert "security_audit_log_default" in out
    quick = on("status", "--no-counts")
    assert quick.code == 0
    assert "events in all" not in quick.out


def test_doctor_says_what_is_wrong(on: Callable[..., Result], app_conn: psycopg.Connection) -> None:
    healthy = on("doctor")
    assert (healthy.code, healthy.out) == (0, "No problems found: 9 tables are recorded.\n")
    app_conn.execute("drop table pgaudit_wf.security_audit_log_y" + next_month())
    warned = on("doctor")
    assert warned.code == 0
    assert warned.out.startswith("warning  pgaudit_wf.security_audit_log: there is no partition")
    app_conn.execute('alter table api_key disable trigger "!pgaudit_wf_update"')
    sick = on("doctor")
    assert sick.code == 1
    assert "the trigger !pgaudit_wf_update is disabled" in sick.out
    assert "select pgaudit_wf.attach('public.api_key');" in sick.out
    findings = json.loads(on("doctor", "--json").out)
    assert [f["severity"] for f in findings] == ["error", "warning"]


def next_month() -> str:
    return (datetime.now(UTC).replace(day=1) + timedelta(days=32)).strftime("%Ym%m")


# log, row, api-keys


def test_log_lists_filters_and_pages(
    on: Callable[..., Result], app_conn: psycopg.Connection
) -> None:
    add_users(app_conn, "u", 60)
    with request_context(app_conn, actor_id="u1", actor_label="Zoë", ip="203.0.113.9"):
        app_conn.execute("update app_user set email = 'new@example.com' where id = 'u7'")
    table = on("log", "-n", "2", "--utc")
    assert table.code == 0
    first = table.out.splitlines()[3]
    assert re.search(
        r"Zoë +\d+, \d+ +email.changed +user new@example.com +email u7@example.com → new@", first
    )
    assert "203.0.113.9" in first
    assert "There may be more: --after " in table.err
    # Nobody said who added the users; the session still tells.
    assert re.search(r"postgres +\d+, \d+ +account.created", table.out)

    accounts = ("log", "--json", "--resource-type", "user")
    entries = json.loads(on(*accounts).out)
    assert len(entries) == 50
    rest = json.loads(on(*accounts, "-n", "600", "--after", entries[-1]["cursor"]).out)
    assert len(rest) == 11
    ids = [entry["id"] for entry in entries + rest]
    assert ids == sorted(ids, reverse=True)
    assert on("log", "--action", "nothing.*").out == "No event matches.\n"
    assert json.loads(on("log", "--action", "nothing.*", "--json").out) == []
    assert len(json.loads(on("log", "--json", "--actor", "u1", "--since", "1h").out)) == 1
    assert json.loads(on("log", "--json", "--until", "1d").out) == []
    narrow = ("--changed", "email", "--value", "new@example.com", "--network", "203.0.113.0/24")
    (entry,) = json.loads(on("log", "--json", *narrow, "--not-actor", "u2").out)
    assert f"{entry['id']}, {entry['tx_id']}" in first
    chosen = ("--action", "email.*", "--action", "no.such", "--not-resource-type", "thing")
    assert json.loads(on("log", "--json", *chosen).out) == [entry]
    assert on("log", "--network", "nowhere").code == 1


def test_log_diff_shows_every_value(
    on: Callable[..., Result], app_conn: psycopg.Connection, secret: Callable[[], str]
) -> None:
    app_conn.execute(
        "insert into app_user (id, email, password_hash) values ('u1', 'a@example.com', %s)",
        [secret()],
    )
    app_conn.execute("update app_user set name = 'Ana' where id = 'u1'")
    app_conn.execute("delete from app_user where id = 'u1'")
    out = on("log", "--diff").out
    assert '      ~ name: null → "Ana"\n' in out
    assert '      + email: "a@example.com"\n' in out
    assert '      - name: "Ana"\n' in out
    assert '      + password_hash: "[redacted]"\n' in out


@pytest.mark.parametrize("columns", ["80", "120", "200"])
def test_log_fits_any_terminal(
    on: Callable[..., Result],
    app_conn: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    app_conn.execute("insert into organization (id, name) values ('o', 'Acme')")
    with request_context(app_conn, actor_id="u", actor_label="Ana Ferreira", ip="2001:db8::1"):
        app_conn.execute("update organization set name = 'Acme Holdings'")
    out = on("log").out
    assert all(len(line) <= int(columns) for line in out.splitlines())
    for expected in ("Ana Ferreira", "org.updated", "Acme Holdings", "2001:db8::1"):
        assert expected in out


def test_log_as_an_owner(
    on: Callable[..., Result], server: DevServer, app_conn: psycopg.Connection
) -> None:
    role = f"cli_reader_{app_conn.info.dbname}"
    app_conn.execute(f"create role {role} login in role pgaudit_wf_reader".encode())
    app_conn.execute(
        "insert into organization (id, name) values ('o_1', 'One'), ('o_2', 'Two');"
        "insert into app_user (id, email) values ('u_1', 'a@example.com');"
        "insert into member (org_id, user_id, role) values ('o_1', 'u_1', 'owner')"
    )
    as_reader = ["-d", server.dsn(app_conn.info.dbname, role)]
    try:
        entries = on("log", "--org", "o_1", "--as", "u_1", "--json", *as_reader)
        assert {entry["org_id"] for entry in json.loads(entries.out)} == {"o_1"}
        refused = on("log", "--org", "o_2", "--as", "u_1", *as_reader)
        assert refused.code == 1
        assert "only owners and admins" in refused.err
        assert "--org ID --as ACTOR" in refused.err
        assert on("log", *as_reader).code == 1
        assert on("api-keys", "--org", "o_1", "--as", "u_1", *as_reader).code == 0
        denied = on("attach", "app_user", *as_reader)
        assert denied.code == 1
        assert "permission denied" in denied.err or "must own" in denied.err
    finally:
        app_conn.execute(f"drop role {role}".encode())


def test_row_at_a_time(on: Callable[..., Result], app_conn: psycopg.Connection) -> None:
    add_users(app_conn, "u", 1)
    row = app_conn.execute("select clock_timestamp()").fetchone()
    assert row is not None
    app_conn.execute("update app_user set name = 'Ana'")
    then = on("row", "app_user", "u1", "--at", row[0].isoformat(), "--json")
    assert json.loads(then.out)["name"] is None
    assert re.search(r"name +Ana", on("row", "app_user", "u1").out)
    never = on("row", "app_user", "u1", "--at", "2d", "--json")
    assert (never.code, never.out) == (1, "null\n")


@pytest.mark.usefixtures("secret")
def test_api_keys(on: Callable[..., Result], app_conn: psycopg.Connection) -> None:
    add_users(app_conn, "u", 1)
    app_conn.execute(
        "insert into api_key (id, user_id, name, key_prefix, key_hash)"
        " values ('k', 'u1', 'laptop', 'wfb_1', 'never-to-be-logged')"
    )
    app_conn.execute("delete from api_key")
    assert re.search(r"wfb_1 +k +\(a person's own\) +deleted", on("api-keys").out)
    (key,) = json.loads(on("api-keys", "--json").out)
    assert (key["label"], key["status"]) == ("wfb_1", "deleted")


# following


def read_lines(running: subprocess.Popen[str], into: list[dict[str, Any]]) -> threading.Thread:
    def read() -> None:
        assert running.stdout is not None
        into.extend(map(json.loads, running.stdout))

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def write_at_random(dsn: str, name: str, transactions: int) -> None:
    choose = random.Random(name)
    with psycopg.connect(dsn) as conn:
        for number in range(transactions):
            add_users(conn, f"{name}-{number}-", choose.randint(1, 4))
            time.sleep(choose.random() / 200)
            if choose.random() < 0.3:
                conn.rollback()
            else:
                conn.commit()


def test_follow_neither_skips_nor_repeats(app_dsn: str, app_conn: psycopg.Connection) -> None:
    """Eight writers with rollbacks; the follower is interrupted and goes on from its cursor."""
    add_users(app_conn, "old-", 20)
    before = {
        id_
        for (id_,) in app_conn.execute(
            "select id from pgaudit_wf.security_audit_log where action !~ '^audit[.]'"
        )
    }
    follow = ["log", "-f", "--json", "--interval", "0.05", "-d", app_dsn]
    lines: list[dict[str, Any]] = []
    writers = [
        threading.Thread(target=write_at_random, args=(app_dsn, f"w{n}", 40)) for n in range(8)
    ]
    # However fast the others were, these leave something to read after the interruption.
    late = writers[6:]
    with process(*follow) as running:
        wait_until(lambda: watchers(app_conn) == 1)
        reading = read_lines(running, lines)
        for writer in writers[:6]:
            writer.start()
        wait_until(lambda: len(lines) > 100)
        running.send_signal(signal.SIGINT)
        reading.join()
        assert running.wait() == 130
        assert running.stderr is not None
        assert running.stderr.read() == ""
    interrupted_at = len(lines)
    with process(*follow, "--after", lines[-1]["cursor"]) as running:
        reading = read_lines(running, lines)
        for writer in late:
            writer.start()
        for writer in writers:
            writer.join()
        logged = {
            id_
            for (id_,) in app_conn.execute(
                "select id from pgaudit_wf.security_audit_log where action !~ '^audit[.]'"
            )
        }
        wait_until(lambda: len(lines) >= len(logged - before))
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        reading.join()
    assert sorted(line["id"] for line in lines) == sorted(logged - before)
    assert 100 < interrupted_at < len(lines)


def test_follow_begins_with_the_latest(app_dsn: str, app_conn: psycopg.Connection) -> None:
    add_users(app_conn, "u", 12)
    with process("log", "-f", "-n", "2", "--action", "account.*", "-d", app_dsn) as running:
        assert running.stdout is not None
        assert "user u11@example.com" in running.stdout.readline()
        assert "user u12@example.com" in running.stdout.readline()
        app_conn.execute("insert into organization (name) values ('filtered out')")
        app_conn.execute("update app_user set name = 'Ana' where id = 'u3'")
        assert re.search(
            r"account.updated +user u3@example.com +name empty → Ana", running.stdout.readline()
        )


def test_follow_says_how_to_go_on_when_the_server_goes(
    app_dsn: str, app_conn: psycopg.Connection
) -> None:
    with process("log", "-f", "--interval", "0.05", "-d", app_dsn) as running:
        wait_until(lambda: watchers(app_conn) == 1)
        app_conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'pgaudit-wf' and datname = current_database()"
        )
        assert running.wait(30) == 3
        assert running.stderr is not None
        message = running.stderr.read()
    assert message.count("\n") == 1
    cursor = re.search(r"pgaudit-wf log -f --after (\d+/\d+/\d+/\d+)", message)
    assert cursor


def test_whoever_reads_may_stop(app_dsn: str, app_conn: psycopg.Connection) -> None:
    add_users(app_conn, "u", 2000)
    for arguments in (["log", "-n", "2000"], ["log", "-n", "2000", "--json"], ["log", "-f"]):
        with process(*arguments, "-d", app_dsn) as running:
            assert running.stdout is not None
            assert running.stdout.readline()
            running.stdout.close()
            assert running.wait(30) == 141
            assert running.stderr is not None
            assert running.stderr.read() == ""


# what is never shown


def test_control_characters_cannot_reach_the_terminal(
    on: Callable[..., Result], app_conn: psycopg.Connection
) -> None:
    app_conn.execute("insert into organization (id, name) values ('o', %s)", [HOSTILE])
    with request_context(app_conn, actor_id="u", actor_label=HOSTILE, reason=HOSTILE):
        app_conn.execute("update organization set slug = 'x', name = name || '!'")
    for arguments in (["log"], ["log", "--diff"], ["row", "organization", "o"], ["log", "--json"]):
        out = on(*arguments).out
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", out), arguments
        assert "\\x1b[31m" in out or "\\u001b[31m" in out
    entry = json.loads(on("log", "--json").out)[0]
    assert entry["actor_name"] == HOSTILE
    assert entry["resource_name"] == HOSTILE + "!"


def test_texts_are_printed_as_they_are_but_for_control_characters() -> None:
    assert printable("Zoë 🙂 日本 [bold]") == "Zoë 🙂 日本 [bold]"
    assert printable("a\tb\x7f\u200e") == "a\\tb\\x7f\\u200e"
    value = {"a": ["\x9b", "\x7f", "\U000e0041", 'q"'], "t": datetime(2026, 1, 2, tzinfo=UTC)}
    assert json.loads(dumps(value)) == {**value, "t": "2026-01-02T00:00:00+00:00"}
    assert printable(dumps(value)) == dumps(value)


@pytest.mark.parametrize("command", ["log", "migrate", "doctor"])
@pytest.mark.parametrize(
    ("conninfo", "code"),
    [
        (f"postgresql://u:{PASSWORD}@127.0.0.1:1/x", 3),
        (f"host=/nowhere user=u password={PASSWORD}", 3),
        (f"host=/nowhere user=u password='{PASSWORD} and more'", 3),
        (f"host=/nowhere password=x {PASSWORD}", 2),
        (f"host=/nowhere password='{PASSWORD}", 2),
        (f"postgresql://u:{PASSWORD}%zz@h/x", 2),
        (f"postgresql://u:p@{PASSWORD}@h/x", 2),
        (f"postgresql://u:/{PASSWORD}@h/x", 2),
        (f"postgresql://u:p#{PASSWORD}@h/x", 2),
        (f"postgresql://u@h/x?password={PASSWORD}&{PASSWORD}", 2),
    ],
)
def test_no_password_is_ever_printed(
    cli: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    conninfo: str,
    code: int,
) -> None:
    monkeypatch.setenv("PGAUDIT_WF_DATABASE", conninfo)
    for result in (
        cli(command),
        cli(command, "-d", conninfo),
        cli(command, conninfo, "too", "many"),
    ):
        assert result.err.startswith("pgaudit-wf: ")
        assert PASSWORD not in result.out + result.err
    assert cli(command).code == code
    assert PASSWORD not in cli(command, "--help").out


def test_a_wrong_password_is_a_connection_that_failed(
    server: DevServer, cli: Callable[..., Result]
) -> None:
    nobody = server.dsn(user="nobody_here").replace("nobody_here@", f"nobody_here:{PASSWORD}@")
    refused = cli("log", "-d", nobody)
    assert refused.code == 3
    assert 'role "nobody_here" does not exist' in refused.err
    assert PASSWORD not in refused.err


def test_passwords_are_cut_out_of_any_text() -> None:
    for text in (
        f"postgres://u:{PASSWORD}@h/x",
        f"x postgresql+psycopg://u:{PASSWORD}@h failed",
        f"password={PASSWORD} host=h",
        f"PASSWORD = '{PASSWORD} \\' {PASSWORD}' host=h",
        f"?user=u&password={PASSWORD}&host=h",
    ):
        assert PASSWORD not in hide_passwords(text)
        assert "***" in hide_passwords(text)
    assert hide_passwords("postgresql://u@h/x is down") == "postgresql://u@h/x is down"


def test_a_database_without_the_schema(empty_dsn: str, cli: Callable[..., Result]) -> None:
    for command in (["log"], ["status"], ["doctor"], ["attach", "pg_class"], ["log", "-f"]):
        result = cli(*command, "-d", empty_dsn)
        assert result.code == 1
        assert result.err.endswith("run pgaudit-wf migrate\n")


# help and the environment


def test_help_teaches(cli: Callable[..., Result]) -> None:
    overview = cli()
    assert overview.code == 0
    commands = ["demo", "migrate", "attach", "detach", "status", "doctor", "log", "row", "api-keys"]
    for command in commands:
        assert f" {command} " in overview.out
        shown = cli(command, "--help")
        assert shown.code == 0
        assert f"\n pgaudit-wf {command}" in shown.out, "an example"
    assert "3 database not" in " ".join(overview.out.split())
    assert re.fullmatch(r"pgaudit-wf \d+\.\d+\S*\n", cli("--version").out)


def test_libpqs_own_variables_name_the_database(
    server: DevServer,
    app_conn: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    cli: Callable[..., Result],
) -> None:
    monkeypatch.delenv("PGAUDIT_WF_DATABASE", raising=False)
    monkeypatch.setenv("PGHOST", str(server.socket_dir))
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setenv("PGDATABASE", app_conn.info.dbname)
    assert cli("doctor").code == 0


def test_a_poor_locale_prints_what_it_can(app_dsn: str, app_conn: psycopg.Connection) -> None:
    app_conn.execute("insert into organization (id, name) values ('o', 'Zoë & 日本')")
    done = subprocess.run(
        [PROGRAM, "log", "--resource-type", "organization", "-d", app_dsn],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Zo\xeb & \\u65e5\\u672c" in done.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-01T14:30:00Z", datetime(2026, 3, 1, 14, 30, tzinfo=UTC)),
        ("2026-03-01 14:30+02:00", datetime(2026, 3, 1, 12, 30, tzinfo=UTC)),
        ("2026-03-01", datetime(2026, 3, 1).astimezone()),
    ],
)
def test_times(text: str, expected: datetime) -> None:
    assert parse_time(text) == expected


def test_ages_and_days() -> None:
    now = datetime.now(UTC)
    assert abs(parse_time("90m") - (now - timedelta(minutes=90))) < timedelta(seconds=5)
    assert parse_time("today") - parse_time("yesterday") == timedelta(days=1)
    for wrong in ("", "-3d", "3 parsecs", "2026-13-01"):
        with pytest.raises(typer.BadParameter):
            parse_time(wrong)


@pytest.mark.lint
def test_no_option_is_written_twice() -> None:
    written: dict[str, list[str]] = {}
    for path in sorted((Path(__file__).parents[2] / "src/pgaudit_wf/cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Annotated":
                written.setdefault(ast.unparse(node), []).append(f"{path.name}:{node.lineno}")
    assert {text: places for text, places in written.items() if len(places) > 1} == {}


def test_log_and_export_filter_alike(cli: Callable[..., Result]) -> None:
    def options(command: str) -> list[str]:
        return re.findall(r"│ (--[a-z-]+) .*?(?=│)", cli(command, "--help").out)

    shared = [
        "--org", "--action", "--not-action", "--resource-type", "--not-resource-type",
        "--resource-id", "--actor", "--not-actor", "--api-key", "--network", "--changed", "--value",
        "--correlation-id", "--outcome", "--since", "--until", "--search",
    ]  # fmt: skip
    assert options("log")[:17] == options("export")[:17] == shared


@pytest.mark.parametrize(
    "command",
    [
        "log",
        "alerts run --once",
        "maintain",
        "migrate",
        "serve --org o --as a",
    ],
)
def test_a_connection_string_says_how_long_to_wait(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server that accepts and never answers; without its word it would be ten seconds."""
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        target = f"host=127.0.0.1 port={port} sslmode=disable gssencmode=disable connect_timeout=2"
        began = time.monotonic()
        with process(*command.split(), "-d", target) as running:
            _, err = running.communicate(timeout=60)
        waited = time.monotonic() - began
    assert running.returncode == 3
    assert "timeout expired" in err
    assert 2 <= waited < 9.5
