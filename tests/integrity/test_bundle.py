"""What an auditor is given of one organization: complete, unaltered, and nothing of another's."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pgaudit_wf.archive.write import archive_partition
from pgaudit_wf.cli import app
from pgaudit_wf.context.block import request_context
from pgaudit_wf.errors import ProofError
from pgaudit_wf.integrity import check
from pgaudit_wf.integrity.bundle import mark_configuration, write_bundle
from pgaudit_wf.integrity.note import WITNESS, Note, SigningKey, VerifierKey
from pgaudit_wf.integrity.proof import add_cosignatures, newest_checkpoint
from pgaudit_wf.integrity.seal import Sealer
from support.tampering import LOG, unlock

KEY = SigningKey("example.com/audit", bytes(range(32)))
KEYS = check.read_keys(str(KEY.verifier))

Connection = psycopg.Connection[Any]
Entry = dict[str, Any]


def record(conn: Connection, org: str | None, count: int = 1, title: str = "a") -> None:
    with request_context(conn, actor_id="u_1", actor_label="=Ada\x9b", org_id=org):
        for number in range(count):
            conn.execute(
                "select pgaudit_wf.record_event('report.made', 'report', %s, null,"
                " jsonb_build_object('title', %s::text, 'n', 1.50), '{\"b\": [null]}')",
                [str(number), title],
            )


def now() -> datetime:
    return datetime.now(UTC)


def seal(conn: Connection) -> None:
    Sealer(KEY).run(conn)


def close(conn: Connection, org: str = "o_1") -> datetime:
    """End a period, so that what follows it is sealed."""
    until = now()
    record(conn, org)
    mark_configuration(conn)
    seal(conn)
    return until


def make(conn: Connection, path: Path, **options: Any) -> dict[str, Any]:  # noqa: ANN401
    kept = options.get("old") or ""
    with path.open("wb") as file:
        write_bundle(conn, file, options.pop("org", "o_1"), **options)
    return check.check_bundle(str(path), KEYS, kept)


@pytest.fixture
def log(conn: Connection) -> Connection:
    """Events of two organizations and none, and an attached table of the first."""
    conn.execute("create table thing (id int primary key, org_id text, name text)")
    conn.execute("select pgaudit_wf.attach('thing', org_column => 'org_id')")
    for org in ("o_1", "o_2", None):
        record(conn, org, 2, title="Größe \u202e\x7f")
    conn.execute("insert into thing values (1, 'o_1', 'x')")
    conn.execute("update thing set name = 'y'")
    conn.execute("delete from thing")
    seal(conn)
    return conn


# What a bundle shows


def test_a_bundle_is_complete_and_unaltered(log: Connection, tmp_path: Path) -> None:
    report = make(log, tmp_path / "p.zip", until=close(log))
    assert (report["problems"], report["not_shown"]) == ([], [])
    assert (report["numbers"], report["exit_code"]) == ([1, 5], 0)


def test_check_py_alone_says_the_same(log: Connection, tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    report = make(log, path, until=close(log))
    with zipfile.ZipFile(path) as archive:
        archive.extract("check.py", tmp_path)
    text = (tmp_path / "check.py").read_text()
    assert len(text.splitlines()) <= 250
    program = (
        "import builtins, runpy, sys\n"
        "real = builtins.__import__\n"
        "def only(name, *rest, **named):\n"
        "    root = name.partition('.')[0]\n"
        "    known = sys.stdlib_module_names | {'', 'cryptography', '_cffi_backend'}\n"
        "    assert root in known or rest[3:] == (1,), name\n"
        "    return real(name, *rest, **named)\n"
        "builtins.__import__ = only\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, tmp_path / "check.py", path,
         "--key", str(KEY.verifier)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stderr, done.returncode) == ("", 0)
    assert json.loads(done.stdout) == report


def test_it_shows_nothing_of_another_organization(log: Connection, tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    log.execute(
        "insert into pgaudit_wf.version_policy (org_id, keep_versions) values ('o_2', 7);"
        "insert into pgaudit_wf.retention_policy (action_pattern, org_id, keep_days)"
        " values ('thing.*', 'o_2', 4000)"
    )
    make(log, path, until=close(log))
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist()) - {"check.py", "README.txt", "configuration.json"}
        assert not any(b"o_2" in archive.read(name) for name in names)


def test_events_are_readable(log: Connection, tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    make(log, path, until=close(log))
    with zipfile.ZipFile(path) as archive:
        text = archive.read("events.ndjson").decode()
        rows = list(csv.DictReader(io.StringIO(archive.read("events.csv").decode(), newline="")))
    events = [json.loads(line) for line in text.splitlines()]
    assert not any(mark in text for mark in "\u202e\x7f\x9b")
    assert events[0]["who"] == ["=Ada\x9b", None, None]
    assert {"title": "Größe \u202e\x7f"} in events[0].values()
    assert [row["action"] for row in rows] == [event["action"] for event in events]
    assert (rows[2]["diff"], rows[2]["org_number"]) == (
        '"add", {"id": 1}, {"name": "x"}, {"org_id": "o_1"}', "3",
    )  # fmt: skip


def test_the_same_state_makes_the_same_bytes(log: Connection, tmp_path: Path) -> None:
    until = close(log)
    for name in "ab":
        make(log, tmp_path / name, until=until)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_one_bundle_continues_another(log: Connection, tmp_path: Path) -> None:
    first_end = close(log)
    kept = newest_checkpoint(log)
    first = make(log, tmp_path / "1.zip", until=first_end)
    record(log, "o_1", 3)
    second = make(log, tmp_path / "2.zip", until=close(log), old=kept)
    assert (first["numbers"], second["numbers"]) == ([1, 5], [7, 9])
    assert (second["exit_code"], second["old_size"] > 0) == (0, True)
    by_time = make(log, tmp_path / "3.zip", since=first_end, until=close(log))
    assert (by_time["numbers"], by_time["exit_code"]) == ([6, 10], 0)


def test_a_period_without_events_is_shown_to_have_none(log: Connection, tmp_path: Path) -> None:
    since = now()
    until = close(log)
    report = make(log, tmp_path / "p.zip", since=since, until=until)
    assert (report["numbers"], report["exit_code"]) == ([], 0)


def test_events_that_are_not_in_the_order_of_their_times_are_all_shown(
    dsn: str, tmp_path: Path
) -> None:
    with (
        psycopg.connect(dsn, autocommit=True) as conn,
        psycopg.connect(dsn, autocommit=True) as long,
    ):
        with long.transaction():
            long.execute("select set_config('app.org_id', 'o_1', true)")
            long.execute("select pgaudit_wf.record_event('long.began', 'report', '1')")
            record(conn, "o_1")
            middle = now()
            long.execute("select pgaudit_wf.record_event('long.ended', 'report', '1')")
        end = close(conn)
        # By number: long.began, long.ended, report.made; by time, report.made is the second.
        for since, until, numbers in (
            (middle, end, [2, 3]), (None, middle, [1, 3]), (middle, middle, []),
        ):  # fmt: skip
            report = make(conn, tmp_path / "p.zip", since=since, until=until)
            assert (report["numbers"], report["problems"]) == (numbers, [])
            assert report["not_shown"] == [], (since, until)


def test_an_open_end_is_told(log: Connection, tmp_path: Path) -> None:
    report = make(log, tmp_path / "p.zip", until=now() + timedelta(days=1))
    assert report["exit_code"] == 4
    assert report["not_shown"] == [
        "what came after the last", "the configuration until the end",
    ]  # fmt: skip


def test_recording_that_was_off_is_told(log: Connection, tmp_path: Path) -> None:
    log.execute("create table other (id int primary key)")
    log.execute("select pgaudit_wf.attach('other')")
    log.execute("alter table thing disable trigger all")
    log.execute("alter table thing enable trigger all")
    log.execute("select pgaudit_wf.detach('other')")
    report = make(log, tmp_path / "p.zip", until=close(log))
    found = [(gap["table"], gap["until"] is not None) for gap in report["off"]]
    assert (found, report["exit_code"]) == (
        [("public.thing", True), ("public.other", False)], 0,
    )  # fmt: skip
    done = CliRunner().invoke(
        app, ["check", str(tmp_path / "p.zip"), "--key", str(KEY.verifier)], env={"COLUMNS": "200"}
    )
    assert re.search("^public.thing was not recorded from .* until ", done.output, re.MULTILINE)
    assert re.search(
        "^public.other was not recorded from .* not yet again", done.output, re.MULTILINE
    )


def test_what_was_erased_is_told(log: Connection, tmp_path: Path) -> None:
    log.execute("select pgaudit_wf.pseudonymise('u_1')")
    report = make(log, tmp_path / "p.zip", until=close(log))
    assert (report["gone"], report["exit_code"]) == ({"erased in part": [1, 2]}, 0)


def test_a_pruned_snapshot_is_told(app_conn: Connection, tmp_path: Path) -> None:
    app_conn.execute("insert into organization (id, name) values ('o_1', 'Acme')")
    app_conn.execute("insert into app_user (id, name, email) values ('u_1', 'Ada', 'a@x.io')")
    app_conn.execute("update pgaudit_wf.version_policy set keep_versions = 1")
    app_conn.execute(
        "insert into workflow (org_id, user_id, name, nodes, edges)"
        " values ('o_1', 'u_1', 'Flow', '[]', '[]')"
    )
    app_conn.execute("update workflow set name = 'Other'")
    app_conn.execute("alter table pgaudit_wf.workflow_history disable trigger append_only")
    app_conn.execute(
        "update pgaudit_wf.workflow_history set created_at = now() - interval '1 year'"
    )
    app_conn.execute("alter table pgaudit_wf.workflow_history enable always trigger append_only")
    seal(app_conn)
    app_conn.execute("select pgaudit_wf.prune_history(9)")
    report = make(app_conn, tmp_path / "p.zip", until=close(app_conn))
    assert (list(report["gone"]), report["exit_code"]) == (["erased in part"], 0)


def test_archived_events_are_told_or_shown(conn: Connection, tmp_path: Path) -> None:
    conn.execute(
        f"insert into {LOG} (occurred_at, action, org_id, actor_label) select '2021-03-10Z',"
        " 'thing.seen', 'o_' || g %% 2 + 1, 'Ada' from generate_series(1, 20) as g",
        [],
    )
    conn.execute("select pgaudit_wf.add_log_partition('2021-03-01')")
    seal(conn)
    month = "security_audit_log_y2021m03"
    archives = tmp_path / "archives"
    archive_partition(conn, month, str(archives))
    seal(conn)
    conn.execute("select pgaudit_wf.prune(%s)", [month])
    until = close(conn)
    report = make(conn, tmp_path / "p.zip", until=until)
    assert (report["gone"], report["not_shown"], report["exit_code"]) == (
        {"archived": [*range(1, 11)]}, ["what was archived"], 4,
    )  # fmt: skip
    report = make(conn, tmp_path / "p.zip", until=until, archives=str(archives))
    assert (report["gone"], report["exit_code"]) == ({}, 0)


def test_an_archived_configuration_is_told_or_shown(conn: Connection, tmp_path: Path) -> None:
    conn.execute(
        f"insert into {LOG} (occurred_at, action, captured)"
        " values ('2021-03-10Z', 'audit.rule_changed', true)"
    )
    conn.execute("select pgaudit_wf.add_log_partition('2021-03-01')")
    seal(conn)
    month = "security_audit_log_y2021m03"
    archives = tmp_path / "archives"
    archive_partition(conn, month, str(archives))
    seal(conn)
    conn.execute("select pgaudit_wf.prune(%s)", [month])
    until = close(conn)
    report = make(conn, tmp_path / "p.zip", until=until)
    assert (report["problems"], report["not_shown"]) == ([], ["what was archived"])
    assert list(report["gone"]) == ["archived configuration"]
    report = make(conn, tmp_path / "p.zip", until=until, archives=str(archives))
    assert (report["gone"], report["exit_code"]) == ({}, 0)


def test_witnesses_are_named(log: Connection, tmp_path: Path) -> None:
    from pgaudit_wf.integrity.note import Signature

    witness = SigningKey("witness.example", bytes(range(1, 33)))
    until = close(log)
    note = Note.parse(newest_checkpoint(log))
    public = VerifierKey(witness.name, WITNESS, witness.verifier.public_key)
    message = b"cosignature/v1\ntime 1770000000\n" + note.text.encode()
    value = (1_770_000_000).to_bytes(8, "big") + witness.sign(message)
    cosigned = Note(note.text, (*note.signatures, Signature(witness.name, public.id, value)))
    add_cosignatures(log, str(cosigned), [public])
    make(log, tmp_path / "p.zip", until=until)
    keys = [*KEYS, *check.read_keys(str(public))]
    report = check.check_bundle(str(tmp_path / "p.zip"), keys)
    assert (report["witnesses"], report["exit_code"]) == (["witness.example"], 0)


def test_what_is_not_as_it_was_sealed_is_not_bundled(log: Connection, tmp_path: Path) -> None:
    until = close(log)
    with pytest.raises(ProofError, match="more than the 3 that fit"):
        make(log, tmp_path / "p.zip", until=until, limit=3)
    unlock(log)
    log.execute(f"update {LOG} set action = 'thing.forged' where org_id = 'o_1'")
    with pytest.raises(ProofError, match="is not what was sealed"):
        make(log, tmp_path / "p.zip", until=until)


# Tampering with the file


class Files:
    """The files of a bundle, to be changed and written again."""

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            self.files = {name: archive.read(name) for name in archive.namelist()}

    def lines(self, name: str) -> list[bytes]:
        return self.files[name].splitlines(keepends=True)

    def check(self, kept: str = "") -> dict[str, Any]:
        with tempfile.NamedTemporaryFile() as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in self.files.items():
                    archive.writestr(name, data)
            file.flush()
            return check.check_bundle(file.name, KEYS, kept)

    def rewrite(self, change: Callable[[list[Entry]], list[Entry]]) -> None:
        """Change the entries, and all that is not sealed so that it fits them."""
        entries = change([json.loads(line) for line in self.lines("leaves.ndjson")])
        columns = self.lines("events.csv")[0].decode().strip().split(",")
        readable = [
            check.readable(
                entry["leaf"], {k: v["text"] for k, v in entry["opened"].items()}, columns
            )
            for entry in entries
            if "bracket" not in entry
        ]
        self.files["leaves.ndjson"] = b"".join(
            json.dumps(entry, ensure_ascii=False).encode() + b"\n" for entry in entries
        )
        self.files["events.ndjson"] = b"".join(line for line, _ in readable)
        self.files["events.csv"] = b"".join(
            [self.lines("events.csv")[0], *(row for _, row in readable)]
        )


@pytest.fixture(scope="module")
def module_dsn(server: Any) -> Iterator[str]:  # noqa: ANN401
    from pgaudit_wf.schema.migrate import migrate

    with psycopg.connect(server.dsn("postgres"), autocommit=True) as admin:
        admin.execute("create database bundled")
    migrate(server.dsn("bundled"))
    yield server.dsn("bundled")
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as admin:
        admin.execute("drop database bundled with (force)")


@pytest.fixture(scope="module")
def bundles(module_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of one log: of the middle of its time, of another organization, and an older one."""
    directory = tmp_path_factory.mktemp("bundles")
    with psycopg.connect(module_dsn, autocommit=True) as conn:
        conn.execute("create table thing (id int primary key, org_id text, name text)")
        conn.execute("select pgaudit_wf.attach('thing', org_column => 'org_id')")
        mark_configuration(conn)
        for org in ("o_1", "o_2"):
            record(conn, org, 3)
        since = now()
        for org in ("o_1", "o_2"):
            record(conn, org, 6)
        seal(conn)
        with (directory / "stale").open("wb") as file:
            write_bundle(conn, file, "o_1", since=since, until=now())
        old = newest_checkpoint(conn)
        record(conn, "o_2")
        until = close(conn)
        with (directory / "continued").open("wb") as file:
            write_bundle(conn, file, "o_1", since=since, until=until, old=old)
        for org in ("o_1", "o_2"):
            with (directory / org).open("wb") as file:
                write_bundle(conn, file, org, since=since, until=until)
        (directory / "kept").write_text(newest_checkpoint(conn))
    return {path.name: path for path in directory.iterdir()}


def without(place: int) -> Callable[[list[Entry]], list[Entry]]:
    return lambda entries: [entry for entry in entries if entry is not entries[place]]


def bracketed(place: int) -> Callable[[list[Entry]], list[Entry]]:
    """Make an event the bracket, in place of the true one."""

    def change(entries: list[Entry]) -> list[Entry]:
        del entries[0 if place == 1 else -1]
        entries[place if place < 0 else 0] |= {"bracket": True, "opened": {}}
        return entries

    return change


def swapped(entries: list[Entry]) -> list[Entry]:
    entries[2], entries[3] = entries[3], entries[2]
    return entries


def altered(entries: list[Entry]) -> list[Entry]:
    entries[3]["leaf"]["action"] = "report.forged"
    return entries


def reopened(entries: list[Entry]) -> list[Entry]:
    entries[3]["opened"]["who"]["text"] = '["Eve", null, null]'
    return entries


def closed(entries: list[Entry]) -> list[Entry]:
    del entries[3]["opened"]["who"]
    return entries


def let_go(entries: list[Entry]) -> list[Entry]:
    del entries[3]["opened"]["who"]
    entries[3]["erased"] = {"who": "1"}
    return entries


def renumbered(entries: list[Entry]) -> list[Entry]:
    entries[3]["leaf"]["org_number"] = "99"
    return entries


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(0), "what was before the first number"),
        (without(1), "number 5 leaves others out, after number 3"),
        (without(4), "number 8 leaves others out, after number 6"),
        (without(-2), "number 10 leaves others out, after number 8"),
        (without(-1), "what came after the last"),
        (bracketed(1), "what was before the first number"),
        (bracketed(-1), "what came after the last"),
        (swapped, "number 6 leaves others out, after number 4"),
        (lambda entries: [*entries[:4], *entries[3:]], "number 6 is repeated or late"),
        (altered, "number 6 is not in the log, or was altered"),
        (renumbered, "number 99 is not in the log, or was altered"),
        (reopened, "number 6 has an altered who"),
        (closed, "what is withheld"),
        (let_go, "what is withheld"),
        (lambda entries: [], "what was before the first number"),
    ],
)  # fmt: skip
def test_what_is_left_out_altered_or_repeated_is_named(
    bundles: dict[str, Path], change: Callable[[list[Entry]], list[Entry]], message: str
) -> None:
    files = Files(bundles["o_1"])
    assert files.check()["exit_code"] == 0
    files.rewrite(change)
    report = files.check()
    assert report["exit_code"] != 0
    assert any(message in told for told in (*report["problems"], *report["not_shown"]))


def test_another_organizations_event_is_named(bundles: dict[str, Path]) -> None:
    other = json.loads(Files(bundles["o_2"]).lines("leaves.ndjson")[2])
    files = Files(bundles["o_1"])
    files.rewrite(lambda entries: [*entries[:3], other, *entries[3:]])
    assert any("belongs to another organization" in told for told in files.check()["problems"])


def test_a_stale_checkpoint_is_named(bundles: dict[str, Path]) -> None:
    report = check.check_bundle(str(bundles["stale"]), KEYS, bundles["kept"].read_text())
    assert any("it is stale" in told for told in report["problems"])


def test_another_checkpoint_than_the_kept_one_is_named(bundles: dict[str, Path]) -> None:
    with zipfile.ZipFile(bundles["stale"]) as archive:
        kept = archive.read("checkpoint").decode()
    report = check.check_bundle(str(bundles["o_1"]), KEYS, kept)
    assert any("yours is not in it" in told for told in report["problems"])


@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_change_of_the_configuration_that_is_left_out_is_named(
    bundles: dict[str, Path], place: int
) -> None:
    files = Files(bundles["o_1"])
    lines = files.lines("configuration.ndjson")
    assert len(lines) >= 2
    del lines[place]
    files.files["configuration.ndjson"] = b"".join(lines)
    assert files.check()["exit_code"] in (1, 4)


@pytest.mark.parametrize("name", ["events.ndjson", "events.csv"])
@pytest.mark.parametrize("change", ["altered", "shorter", "longer"])
def test_readable_files_that_say_something_else_are_named(
    bundles: dict[str, Path], name: str, change: str
) -> None:
    files = Files(bundles["o_1"])
    lines = files.lines(name)
    changed = {
        "altered": [*lines[:2], lines[2].replace(b"report.made", b"report.lost"), *lines[3:]],
        "shorter": lines[:-1],
        "longer": [*lines, lines[-1]],
    }[change]
    files.files[name] = b"".join(changed)
    assert any("events.ndjson or events.csv" in told for told in files.check()["problems"])


@pytest.mark.parametrize(
    "name", ["bundle.json", "checkpoint", "leaves.ndjson", "configuration.ndjson", "events.csv",
             "consistency.json", "releases.ndjson", "old-checkpoint"],
)  # fmt: skip
def test_any_content_is_answered(bundles: dict[str, Path], name: str) -> None:
    original = Files(bundles["continued"])
    for data in (
        b"", b"\x00\xff\x1b[31m", b"[]", b"null\n", b"{}\n", b'{"leaf": 7}\n', b"[" * 100_000,
        b'{"leaf": {"org_number": "' + b"9" * 5000 + b'"}}\n', b'{"index": 1e999}\n',
        original.files[name][:-20],
    ):  # fmt: skip
        files = Files(bundles["continued"])
        # That there is no older checkpoint is for the auditor to notice, who kept it.
        if data == files.files[name] or (name == "old-checkpoint" and not data):
            continue
        files.files[name] = data
        report = files.check()
        assert report["exit_code"] in (1, 4)
        assert not any("\x1b" in json.dumps(told) for told in report["problems"])
    del original.files[name]
    assert original.check()["exit_code"] == 1


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_tampering_is_told(bundles: dict[str, Path], data: st.DataObject) -> None:
    """Of what is proved: lines dropped, repeated, moved or exchanged, and bytes changed."""
    files = Files(bundles["o_1"])
    name = data.draw(
        st.sampled_from(["leaves.ndjson", "configuration.ndjson", "events.ndjson", "events.csv"])
    )
    lines = files.lines(name)
    # The name of a column that is empty is nothing that was sealed.
    places = st.integers(name == "events.csv", len(lines) - 1)
    place, other = data.draw(places), data.draw(places)
    act = data.draw(st.sampled_from(["drop", "repeat", "move", "byte", "cut"]))
    if act == "drop":
        del lines[place]
    elif act == "repeat":
        lines.insert(other, lines[place])
    elif act == "move":
        lines.insert(other, lines.pop(place))
    elif act == "byte":
        line = bytearray(lines[place])
        line[data.draw(st.integers(0, len(line) - 1))] ^= data.draw(st.integers(1, 255))
        lines[place] = bytes(line)
    else:
        lines[place] = lines[place][: data.draw(st.integers(0, len(lines[place]) - 2))]
    was, files.files[name] = files.files[name], b"".join(lines)
    if files.files[name] == was or _says_the_same(was, files.files[name]):
        return
    assert files.check()["exit_code"] in (1, 4)


def _says_the_same(was: bytes, is_now: bytes) -> bool:
    """Whether lines of JSON differ in nothing but how they are written."""
    try:
        return [json.loads(x) for x in was.splitlines()] == [
            json.loads(x) for x in is_now.splitlines()
        ]
    except ValueError:
        return False


def test_no_file_makes_a_traceback(bundles: dict[str, Path], tmp_path: Path) -> None:
    whole = bundles["o_1"].read_bytes()
    for number, data in enumerate(
        [
            b"",
            b"PK",
            b"PK\x03\x04" + bytes(100),
            whole[: len(whole) // 2],
            whole[-500:],
            b"\x1b[31m",
        ]
    ):
        path = tmp_path / str(number)
        path.write_bytes(data)
        assert check.check_bundle(str(path), KEYS)["exit_code"] == 1
    assert check.check_bundle(str(tmp_path / "none"), KEYS)["exit_code"] == 1


def test_a_bomb_is_not_unpacked(bundles: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    files = Files(bundles["o_1"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.files.items():
            if name != "leaves.ndjson":
                archive.writestr(name, data)
        with archive.open("leaves.ndjson", "w", force_zip64=True) as out:
            for _ in range(1100):
                out.write(bytes(1 << 20))
    report = check.check_bundle(str(path), KEYS)
    assert (report["exit_code"], "unpacks to too much" in report["problems"][0]) == (1, True)


@pytest.mark.parametrize(
    "key", ["", "x", "example.com/audit+00000000+AAAA", str(KEY.verifier)[:-6] + "AAAA==", str(KEY)]
)
def test_a_mistyped_key_is_wrong_usage(bundles: dict[str, Path], key: str) -> None:
    done = subprocess.run(
        [sys.executable, check.__file__, bundles["o_1"], "--key", key],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


# The command line


def test_the_commands(dsn: str, tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    run = CliRunner().invoke
    with psycopg.connect(dsn, autocommit=True) as conn:
        record(conn, "o_1", 3)
        stop = threading.Event()

        def keep_sealing() -> None:
            with psycopg.connect(dsn, autocommit=True) as own:
                while not stop.wait(0.1):
                    seal(own)

        sealer = threading.Thread(target=keep_sealing)
        sealer.start()
        try:
            done = run(app, ["bundle", "--org", "o_1", "-o", str(path), "-d", dsn])
        finally:
            stop.set()
            sealer.join()
        assert done.exit_code == 0, done.output
        assert "numbers 1 to 3" in " ".join(done.output.split())
        actions = conn.execute(
            f"select action, org_id from {LOG} where action ~ 'export|shown' order by id desc"
        )
        assert actions.fetchall() == [
            ("audit.exported", "o_1"), ("audit.configuration_shown", None),
            ("audit.export_started", "o_1"),
        ]  # fmt: skip
        kept = tmp_path / "kept"
        kept.write_text(newest_checkpoint(conn))
    key = ["--key", str(KEY.verifier)]
    done = run(app, ["check", str(path), *key])
    assert (done.exit_code, done.output.splitlines()[-1]) == (
        0, "Complete from number 1 to 3, and unaltered.",
    )  # fmt: skip
    assert "Recording was on throughout." in done.output
    assert run(app, ["bundle", "--org", "o_7", "-o", str(path), "-d", dsn]).exit_code == 2
    done = run(app, ["check", str(path), *key, "--json"])
    assert json.loads(done.output)["numbers"] == [1, 3]
    arguments = ["bundle", "--org", "o_1", "-o", str(path), "-d", dsn, "--wait", "0"]
    done = run(app, [*arguments, "--since-checkpoint", str(kept)])
    said = " ".join(done.output.split())
    assert (done.exit_code, "cannot show where the period ends" in said) == (0, True)
    done = run(app, ["check", str(path), *key, "--checkpoint", str(kept)])
    assert (done.exit_code, "NOT SHOWN" in done.output) == (4, True)
    kept.write_text("no checkpoint\x1b")
    assert run(app, [*arguments, "--since-checkpoint", str(kept)]).exit_code == 1
    path.write_bytes(path.read_bytes()[:-500])
    done = run(app, ["check", str(path), *key])
    assert (done.exit_code, "WRONG" in done.output) == (1, True)
