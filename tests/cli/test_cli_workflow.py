"""The command line for versions of workflows, on a real server, killed half-way too."""

from __future__ import annotations

import copy
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgaudit_wf import request_context
from pgaudit_wf.workflow.reads import compare_versions, workflow_versions
from support.command import Result, printed_on
from support.server import Conn

PROGRAM = Path(sys.executable).with_name("pgaudit-wf")
FLOW = "11111111-1111-4111-8111-111111111111"
HOSTILE = "OCR\x1b[31m\u202e"
PROSE = " ".join(f"word{number}" for number in range(60))
GRAPH_COMMANDS = (
    "attach-workflow", "attach-execution", "backfill", "history", "diff", "show", "validate",
    "restore", "usage", "execution",
)  # fmt: skip

NODES: list[dict[str, Any]] = [
    {"id": "mail", "type": "trigger", "data": {"label": "Mail", "config": {"triggerType": "x"}}},
    {
        "id": "ocr",
        "type": "action",
        "data": {
            "label": HOSTILE,
            "config": {
                "actionType": "HTTP Request",
                "endpoint": "https://a.example",
                "httpMethod": "GET",
                "prompt": "be kind\nbe quick\nbe right",
                "prose": "short",
            },
        },
    },
]
EDGES: list[dict[str, Any]] = [{"id": "e1", "source": "mail", "target": "ocr"}]


@pytest.fixture
def world(app_conn: Conn) -> Conn:
    """A workflow with two versions, and a run of the second."""
    app_conn.execute(
        """
        insert into organization (id, name) values ('o_acme', 'Acme'), ('o_globex', 'Globex');
        insert into app_user (id, email, name) values
            ('u_ana', 'ana@acme.example', 'Ana'), ('u_bo', 'bo@acme.example', 'Bo');
        insert into member (org_id, user_id, role) values ('o_acme', 'u_ana', 'owner');
        """
    )
    nodes = copy.deepcopy(NODES)
    nodes[1]["data"]["config"].update(
        endpoint="https://b.example", prompt="be kind\nbe slow\nbe right", prose=PROSE
    )
    nodes.append({"id": "file", "data": {"type": "action", "label": "File"}})
    edges = [{"id": "e2", "source": "mail", "target": "file", "sourceHandle": "true"}]
    with request_context(app_conn, actor_id="u_ana", org_id="o_acme", auth_method="session"):
        app_conn.execute(
            "insert into workflow (id, org_id, name, nodes, edges)"
            " values (%s, 'o_acme', 'Intake', %s, %s)",
            [FLOW, Jsonb(NODES), Jsonb(EDGES)],
        )
    with request_context(app_conn, actor_id="ci", actor_label="CI", api_key_id="k_ci"):
        app_conn.execute(
            "update workflow set nodes = %s, edges = %s, name = 'Invoices'",
            [Jsonb(nodes), Jsonb(edges)],
        )
        app_conn.execute(
            "insert into workflow_execution (id, workflow_id, org_id) values (%s, %s, 'o_acme')",
            [FLOW, FLOW],
        )
    return app_conn


def newest_hash(conn: Conn) -> str:
    return workflow_versions(conn, FLOW).versions[0].content_hash


def on_a_terminal(width: int, *arguments: str) -> tuple[int, str]:
    """Run a command on a pseudo-terminal; its colors are taken out of what it prints."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [PROGRAM, *arguments],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": str(width), "TERM": "xterm"},
    ) as running:
        os.close(theirs)
        printed = printed_on(ours)
    os.close(ours)
    return running.returncode, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed.decode())


# history


def test_history_tells_who_what_and_with_what(on: Callable[..., Result], world: Conn) -> None:
    shown = on("history", FLOW, "--utc")
    assert (shown.code, shown.err) == (0, "")
    listed = on("workflows")
    assert FLOW in listed.out
    assert "Invoices" in listed.out
    assert [row["workflow_id"] for row in json.loads(on("workflows", "--json").out)] == [FLOW]
    assert FLOW not in on("workflows", "--org", "nobody").out
    lines = shown.out.splitlines()
    assert re.fullmatch(r"   2  \d{4}-\d\d-\d\d [\d:]{8}  CI  k_ci  update  current", lines[0])
    assert lines[1].strip() == (
        "1 node added, 1 changed, 1 connection added, 1 removed; renamed 'Intake' to 'Invoices'"
    )
    assert lines[2].strip() == newest_hash(world)
    assert "  Ana  session  create" in lines[3]
    assert len(lines) == 6

    listed = json.loads(on("history", FLOW, "--json").out)
    assert [version["version"] for version in listed] == [2, 1]
    assert listed[0]["change"] == compare_versions(world, FLOW, 1, 2).as_json()


def test_history_narrows_and_pages(on: Callable[..., Result], world: Conn) -> None:
    def numbers(*arguments: object) -> list[int]:
        result = on("history", FLOW, "--json", *arguments)
        assert result.code == 0
        return [version["version"] for version in json.loads(result.out)]

    assert numbers("--node", "file") == [2]
    assert numbers("--node", "mail") == [1]
    assert numbers("--connection", "mail:ocr") == [2, 1]
    assert numbers("--connection", "mail:file") == [2]
    assert numbers("--before", 2) == [1]
    assert numbers("--before", 1) == []
    first = on("history", FLOW, "-n", 1)
    assert first.err == "There may be more: --before 2\n"
    assert on("history", FLOW, "--node", "nothing").out == "No version matches.\n"
    wrong = on("history", FLOW, "--connection", "mail")
    assert wrong.code == 2
    assert "SOURCE:TARGET" in wrong.err


def test_history_of_nodes_with_colons_in_their_ids(on: Callable[..., Result], world: Conn) -> None:
    nodes = [{"id": "a:1"}, {"id": "b"}]
    world.execute(
        "update workflow set nodes = %s, edges = %s",
        [Jsonb(nodes), Jsonb([{"id": "e", "source": "a:1", "target": "b"}])],
    )
    found = json.loads(on("history", FLOW, "--connection", "a::1:b", "--json").out)
    assert [version["version"] for version in found] == [3]


def test_more_versions_than_a_page(on: Callable[..., Result], world: Conn) -> None:
    world.execute(
        "do $$ begin for i in 1..600 loop update workflow set name = 'n' || i; end loop; end $$"
    )
    found = json.loads(on("history", FLOW, "-n", 1000, "--json").out)
    assert [version["version"] for version in found] == list(range(602, 0, -1))


def test_no_such_workflow(on: Callable[..., Result], world: Conn) -> None:
    for command in (
        ["history", "nothing"],
        ["show", "nothing"],
        ["validate", "nothing"],
        ["diff", "nothing", "1"],
        ["diff", FLOW, "1", "7"],
        ["show", FLOW, "--version", "7"],
        ["restore", FLOW, "--version", "7"],
    ):
        result = on(*command)
        assert result.code == 1, command
        assert "version" in result.err
        assert " — " in result.err, "says what to do"
    assert on("history", "nothing", "--json").out == "[]\n"
    assert "its newest is 2" in on("show", FLOW, "--version", 7).err
    assert world.execute("select count(*) from pgaudit_wf.workflow_history").fetchone() == (2,)


def test_readers_name_themselves(on: Callable[..., Result], world: Conn) -> None:
    role = f"reader_of_{world.info.dbname}"
    world.execute(f"create role {role} login in role pgaudit_wf_reader".encode())
    reader = os.environ["PGAUDIT_WF_DATABASE"].replace("postgres@", f"{role}@")
    assert role in reader
    try:
        assert on("history", FLOW, "-d", reader).code == 1
        for command in (["history"], ["show"], ["diff", 1], ["validate"]):
            arguments = [command[0], FLOW, *command[1:], "-d", reader, "--org", "o_acme"]
            assert on(*arguments, "--as", "u_ana").code == 0
            assert on(*arguments, "--as", "u_bo").code == 1
    finally:
        world.execute(f"drop role {role}".encode())


# diff


def test_diff_shows_every_value_in_full(on: Callable[..., Result], world: Conn) -> None:
    shown = on("diff", FLOW, 1, 2)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines() == [
        f"Workflow {FLOW}, version 1 → 2",
        "Settings",
        "  ~ name: Intake → Invoices",
        "Nodes",
        "  + File (action)  file",
        "  ~ OCR\\x1b[31m\\u202e (action)  ocr",
        "      configuration",
        "        ~ endpoint: https://a.example → https://b.example",
        "        ~ prompt:",
        "              be kind",
        "            - be quick",
        "            + be slow",
        "              be right",
        "        ~ prose:",
        "            - short",
        f"            + {PROSE}",
        "Connections",
        "  + Mail (true) → File  mail → file",
        "  - Mail → OCR\\x1b[31m\\u202e  mail → ocr",
    ]
    assert on("diff", FLOW, 1).out == shown.out, "the newest is the default"
    assert "  ~ name: Invoices → Intake" in on("diff", FLOW, 2, 1).out
    assert on("diff", FLOW, 2, 2).out.splitlines()[1:] == ["No changes."]
    assert json.loads(on("diff", FLOW, 1, 2, "--json").out) == (
        compare_versions(world, FLOW, 1, 2).as_json()
    )


def test_diff_of_what_has_no_entry(on: Callable[..., Result], world: Conn) -> None:
    world.execute("update workflow set edges = jsonb_set(edges, '{0,id}', '\"other\"')")
    assert "connection's id" in on("diff", FLOW, 2, 3).out


def test_a_terminal_wraps_long_values_and_loses_none(
    on: Callable[..., Result], world: Conn
) -> None:
    assert on("diff", FLOW, 1, 2).code == 0
    code, printed = on_a_terminal(50, "diff", FLOW, "1", "2")
    assert code == 0
    lines = [line.rstrip() for line in printed.splitlines()]
    assert max(map(len, lines)) <= 50
    start = next(i for i, line in enumerate(lines) if line.startswith("            + word0"))
    end = lines.index("Connections")
    assert all(line.startswith(" " * 12) for line in lines[start:end])
    assert " ".join(" ".join(lines[start:end]).split()) == f"+ {PROSE}"


# show and validate


def test_show_a_version_in_full(on: Callable[..., Result], world: Conn) -> None:
    world.execute("delete from workflow")
    shown = on("show", FLOW, "--version", 1)
    assert (shown.code, shown.err) == (0, "")
    for line in (
        "Intake  version 1",
        "  Mail (trigger)  mail",
        "      endpoint: https://a.example",
        "      prompt:",
        "        be quick",
        "  Mail → OCR\\x1b[31m\\u202e  mail → ocr",
    ):
        assert line in shown.out.splitlines()
    assert re.search(r"  create  .*  Ana  session", shown.out)
    found = json.loads(on("show", FLOW, "--json").out)
    assert (found["version"], found["snapshot"]["name"]) == (2, "Invoices")
    assert PROSE in on("show", FLOW).out


def test_show_what_is_no_proper_graph(on: Callable[..., Result], world: Conn) -> None:
    world.execute(
        "update workflow set nodes = %s, edges = '[null, 7]'",
        [Jsonb([None, 3, {"id": "a", "data": "text"}, {"id": "a"}, {}])],
    )
    shown = on("show", FLOW)
    assert (shown.code, shown.err) == (0, "")
    assert "      data: text" in shown.out
    checked = on("validate", FLOW)
    assert checked.code == 1
    assert checked.out.startswith("Version 3 has ")
    assert "duplicate_id" in checked.out


def test_validate(on: Callable[..., Result], world: Conn) -> None:
    fine = on("validate", FLOW)
    assert (fine.code, fine.out.startswith("Version 2 has no problem")) == (0, True)
    world.execute("update workflow set nodes = nodes #- '{1,data,config,endpoint}'")
    broken = on("validate", FLOW, "--json")
    assert broken.code == 1
    (problem,) = json.loads(broken.out)
    assert (problem["node_id"], problem["code"]) == ("ocr", "missing_field")
    assert on("validate", FLOW, "--version", 1, "--json").out == "[]\n"


# restore


def test_restore_is_attributed(on: Callable[..., Result], world: Conn) -> None:
    done = on(
        "restore", FLOW, "--version", 1, "--actor-id", "u_bo", "--actor-label", "Bo the first",
        "--org-id", "o_acme", "--reason", "it was wrong",
    )  # fmt: skip
    assert (done.code, done.out) == (0, "Version 1 is back, as version 3.\n")
    event = world.execute(
        "select action, actor_id, actor_label, org_id, metadata ->> 'reason'"
        " from pgaudit_wf.security_audit_log order by id desc limit 1"
    ).fetchone()
    assert event == ("workflow.restored", "u_bo", "Bo the first", "o_acme", "it was wrong")
    assert "Bo  restore  current" in on("history", FLOW, "-n", 1).out
    again = on("restore", FLOW, "--version", 1)
    assert (again.code, again.out[:14]) == (0, "Nothing to do:")
    assert json.loads(on("restore", FLOW, "--version", 2, "--json").out) == {
        "version": 4,
        "changed": True,
    }
    assert on("restore", FLOW).code == 2
    assert on("restore", FLOW, "--version", 1, "--table", "nothing").code == 1


# runs and usage


def test_run_and_usage(on: Callable[..., Result], world: Conn) -> None:
    digest = newest_hash(world)
    world.execute("delete from workflow")
    shown = on("execution", "workflow_execution", FLOW)
    assert (shown.code, shown.err) == (0, "")
    assert "started with org_api_key k_ci" in shown.out
    assert f"{digest}, version 2" in shown.out
    assert f"pgaudit-wf show {FLOW} --version 2" in shown.out
    found = json.loads(on("execution", "workflow_execution", FLOW, "--json").out)
    assert found["snapshot"]["name"] == "Invoices"
    missing = on("execution", "workflow_execution", FLOW.replace("1", "2"), "--json")
    assert (missing.code, missing.out) == (1, "null\n")
    assert on("execution", "workflow", FLOW).code == 1

    used = on("usage", digest.upper())
    assert (used.code, used.err) == (0, "")
    assert "run" in used.out
    assert "1 version of 1 workflow, 1 run; saved by CI." in used.out
    uses = json.loads(on("usage", digest, "--json").out)
    assert sorted(use["kind"] for use in uses) == ["run", "version"]
    assert [use["execution_id"] for use in uses if use["kind"] == "run"] == [FLOW]
    assert on("usage", "0" * 64).code == 1
    assert on("usage", digest[:12]).code == 2


def test_attach_ones_own_tables(on: Callable[..., Result], world: Conn) -> None:
    world.execute(
        """
        create schema shop;
        create table shop.flow (id int primary key, title text, graph json, links json, live bool);
        create table shop.job (id int primary key, flow_id int, hash text, kind text, key text);
        """
    )
    done = on(
        "attach-workflow", "shop.flow", "--nodes-column", "graph", "--edges-column", "links",
        "--name-column", "title", "--enabled-column", "live", "--json",
    )  # fmt: skip
    assert done.code == 0
    setting = json.loads(done.out)
    assert setting["attachment"]["label_column"] == "title"
    assert setting["workflow"]["id_prefix"] == "flow/"
    again = on("attach-workflow", "shop.flow", "--ignore", "live")
    assert again.code == 0
    assert "keeping versions of graph and links" in again.out
    assert "pgaudit-wf backfill shop.flow" in again.out
    wrong = on("attach-workflow", "shop.flow", "--nodes-column", "title")
    assert wrong.code == 1
    assert "json" in wrong.err

    runs = on(
        "attach-execution", "shop.job", "--workflow", "shop.flow", "--workflow-column", "flow_id",
        "--hash-column", "hash", "--type-column", "kind", "--label-column", "key",
    )  # fmt: skip
    assert runs.code == 0
    world.execute("insert into shop.flow values (1, 'One', '[]', '[]', true)")
    world.execute("insert into shop.job values (1, 1)")
    assert "flow/1 --version 1" in on("execution", "shop.job", 1).out
    assert on("attach-execution", "shop.flow").code == 1


# backfill


def fill(conn: Conn, rows: int) -> None:
    conn.execute("create table flow (id int primary key, name text, nodes jsonb, edges jsonb)")
    conn.execute(
        "insert into flow select i, 'n' || i, '[{\"id\": \"a\"}]', '[]'"
        " from generate_series(1, %s) as i",
        [rows],
    )
    conn.execute("select pgaudit_wf.attach_workflow('flow')")


def versions_of_flows(conn: Conn) -> int:
    row = conn.execute(
        "select count(*) from pgaudit_wf.workflow_history where workflow_id like 'flow/%'"
    ).fetchone()
    return int(row[0]) if row else 0


def test_backfill_once_and_again(on: Callable[..., Result], world: Conn) -> None:
    fill(world, 250)
    done = on("backfill", "flow")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"flow +250 +250 +0 +0", done.out)
    again = json.loads(on("backfill", "--batch-size", 7, "--json").out)
    assert again["interrupted"] is False
    assert [(t["table"], t["examined"], t["written"]) for t in again["tables"]] == [
        ("flow", 250, 0),
        ("workflow", 1, 0),
    ]
    assert all(table["finished"] for table in again["tables"])
    assert on("history", "flow/250").out.count("backfill") == 1
    assert on("backfill", "pg_class").code == 1


def test_backfill_leaves_out_and_names_what_is_malformed(
    on: Callable[..., Result], world: Conn
) -> None:
    world.execute("create table flow (id int primary key, nodes jsonb, edges jsonb)")
    world.execute("insert into flow values (1, '[]', '[]'), (3, '[]', '[]')")
    world.execute("select pgaudit_wf.attach_workflow('flow')")
    world.execute('alter table flow disable trigger "!pgaudit_wf_insert"')
    world.execute("insert into flow values (2, '7', '[]')")
    world.execute('alter table flow enable always trigger "!pgaudit_wf_insert"')
    done = on("backfill", "flow")
    assert done.code == 1
    assert re.search(r"flow +3 +2 +0 +1", done.out)
    assert "refused flow/2: nodes" in done.out
    assert versions_of_flows(world) == 2


def test_backfill_without_a_table(dsn: str, on: Callable[..., Result]) -> None:
    nothing = on("backfill", "-d", dsn)
    assert nothing.code == 1
    assert "attach-workflow" in nothing.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_backfill_interrupted_in_a_batch(
    on: Callable[..., Result], world: Conn, app_dsn: str, number: signal.Signals
) -> None:
    fill(world, 60)
    with psycopg.connect(app_dsn) as application:
        application.execute("update flow set name = 'held' where id = 25")
        with subprocess.Popen(
            [PROGRAM, "backfill", "flow", "--batch-size", "10", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            wait_for_lock(world)
            running.send_signal(number)
            out, err = running.communicate(timeout=30)
    assert (running.returncode, err) == (130, "")
    said = json.loads(out)
    assert said["interrupted"] is True
    assert (said["tables"][0]["examined"], said["tables"][0]["finished"]) == (20, False)
    # The application's save has made two versions of its own.
    assert versions_of_flows(world) == 20 + 2
    events = "select count(*) from pgaudit_wf.security_audit_log where action = 'flow.created'"
    assert world.execute(events).fetchone() == (20,)

    assert on("backfill", "flow").code == 0
    assert versions_of_flows(world) == 60 + 1
    assert world.execute(events).fetchone() == (59,)


def wait_for_lock(conn: Conn) -> None:
    deadline = time.monotonic() + 30
    while True:
        row = conn.execute(
            "select count(*) from pg_stat_activity where application_name = 'pgaudit-wf'"
            " and datname = current_database() and wait_event_type = 'Lock'"
        ).fetchone()
        if row and row[0]:
            return
        assert time.monotonic() < deadline, "it never came to the locked row"
        time.sleep(0.02)


def test_backfill_while_the_application_writes(
    on: Callable[..., Result], world: Conn, app_dsn: str
) -> None:
    fill(world, 200)
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with psycopg.connect(app_dsn, autocommit=True) as conn:
                while not stop.is_set():
                    # Backwards, several a transaction: the order in which locks can cross.
                    conn.execute(
                        "update flow set name = name || '+' where id in"
                        " (select (random() * 200)::int from generate_series(1, 3))"
                    )
        except psycopg.errors.DeadlockDetected:
            write()
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        done = on("backfill", "flow", "--batch-size", 20)
    finally:
        stop.set()
        writer.join()
    assert failures == []
    assert done.code == 0
    row = world.execute(
        "select count(distinct workflow_id), count(*) filter (where version = 1),"
        " count(*) filter (where version = 1 and source <> 'backfill'),"
        " bool_and(previous_version is not distinct from nullif(version - 1, 0))"
        " from pgaudit_wf.workflow_history where workflow_id like 'flow/%'"
    ).fetchone()
    assert row == (200, 200, 0, True)


def test_backfill_shows_progress_on_a_terminal(
    on: Callable[..., Result], world: Conn, app_dsn: str
) -> None:
    fill(world, 30)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [PROGRAM, "backfill", "flow", "-d", app_dsn],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env={**os.environ, "COLUMNS": "80", "TERM": "xterm"},
    ) as running:
        os.close(theirs)
        bar = printed_on(ours)
        assert running.stdout
        out = running.stdout.read()
    os.close(ours)
    assert running.returncode == 0
    assert "30/30" in bar.decode()
    assert "30/30" not in out
    assert on("backfill", "flow", "--json").err == ""


def test_help_teaches(on: Callable[..., Result]) -> None:
    overview = on()
    for command in GRAPH_COMMANDS:
        assert f" {command} " in overview.out
        shown = on(command, "--help")
        assert shown.code == 0
        assert f"pgaudit-wf {command}" in shown.out, "an example"
