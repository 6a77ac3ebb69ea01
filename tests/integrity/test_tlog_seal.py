"""Sealing, proving, erasing and pushing on a real server."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pgaudit_wf.cli import app
from pgaudit_wf.context.block import request_context
from pgaudit_wf.context.values import RequestContext
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.errors import (
    AppendOnlyError,
    DatabaseError,
    NoteError,
    ProofError,
    PushError,
    SealError,
    SigningKeyError,
    from_database,
)
from pgaudit_wf.integrity import leaf as leaves
from pgaudit_wf.integrity.merkle import leaf_hash
from pgaudit_wf.integrity.note import (
    WITNESS,
    Checkpoint,
    Note,
    Signature,
    SigningKey,
    VerifierKey,
)
from pgaudit_wf.integrity.proof import (
    add_cosignatures,
    check,
    newest_checkpoint,
    prove_consistency,
    prove_event,
    prove_version,
)
from pgaudit_wf.integrity.push import export_tiles, push
from pgaudit_wf.integrity.report import Problem
from pgaudit_wf.integrity.seal import Sealer
from pgaudit_wf.integrity.verify import verify
from pgaudit_wf.trail.event import EVENT_COLUMNS, EventRow

KEY = SigningKey("example.com/audit", bytes(range(32)))
CHECKER = Path(__file__).parents[2] / "contrib" / "check_proof.py"

Connection = psycopg.Connection[Any]


def seal_all(conn: Connection, sealer: Sealer | None = None) -> int:
    sealer = sealer or Sealer(KEY)
    while (done := sealer.step(conn)).more:
        pass
    return done.size


def record(conn: Connection, /, count: int = 1, **context: Any) -> list[int]:  # noqa: ANN401
    """Record events of an actor; returns their ids."""
    first = scalar(conn, "select coalesce(max(id), 0) from pgaudit_wf.security_audit_log")
    with request_context(conn, RequestContext(**context)):
        for number in range(count):
            conn.execute(
                "select pgaudit_wf.record_event('report.made', 'report', %s, null,"
                " jsonb_build_object('title', 'Größe 📏', 'number', 1.50, 'mail', 'ada@x.io'),"
                " '{\"pages\": 3}')",
                [f"r_{number}"],
            )
    return [
        row[0]
        for row in conn.execute(
            "select id from pgaudit_wf.security_audit_log where id > %s order by id", [first]
        )
    ]


def scalar(conn: Connection, query: str, *parameters: object) -> Any:  # noqa: ANN401
    row = conn.execute(query, parameters).fetchone()
    return row[0] if row else None


ADA: dict[str, str] = {
    "actor_id": "u_ada", "actor_label": "Ada Lovelace", "ip": "192.0.2.7",
    "user_agent": "Analytical Engine/1.0",
}  # fmt: skip


# What a leaf is

json_value = st.recursive(
    st.none() | st.booleans() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_value)
def test_the_form_of_a_leaf_is_that_of_rfc_8785(value: object) -> None:
    try:
        expected = rfc8785.dumps(value)  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, UnicodeError):
        return
    assert leaves.canonical(value) == expected


ROWS = [
    '[{"op": "add", "path": "", "value": {"a": 1.50, "b,}": "x\\"}", "c": {"d": [1, {}]}}}]',
    '[{"op": "remove", "old": {}, "path": ""}]',
    '[{"op": "remove", "old": {"z": null}, "path": "/a"}]',
    '[{"op": "add", "path": "", "value": [1]}]',
    '[{"op": "add", "path": "", "value": {"a": 1}, "zzzzzz": 1}]',
    '[{"op": "replace", "old": 1e400, "path": "/a~1b", "value": 12345678901234567890.10}, 7, "x"]',
    "[]", "{}", '"text"', "17", "null", '{"op": "add", "path": "", "value": {"a": 1}}',
    '{"é": "\\u0001\\u007f", "": [], "\\"": {"a": 1}}',
    "[" * 1500 + "]" * 1500,
    '[{"op": "add", "path": "", "value": {"deep": ' + "[" * 1500 + "]" * 1500 + "}}]",
]  # fmt: skip


@pytest.mark.parametrize("document", ROWS)
def test_the_database_cuts_a_diff_into_the_same_parts(conn: Connection, document: str) -> None:
    record(conn, 1, **ADA)
    of_database = conn.execute(
        "select p.part, p.content from pgaudit_wf.security_audit_log as l, lateral"
        " pgaudit_wf._event_parts(jsonb_populate_record(l,"
        " jsonb_build_object('diff', %(doc)s::jsonb, 'metadata', %(doc)s::jsonb))) as p",
        {"doc": document},
    ).fetchall()
    nothing: dict[str, Any] = dict.fromkeys(EVENT_COLUMNS)
    text = scalar(conn, "select %s::jsonb::text", document)
    # SQL's null and JSON's differ: populating a record makes one of the other.
    documents = (None, "{}") if document == "null" else (text, text)
    known = dict(zip(("diff", "metadata"), documents, strict=True))
    row: leaves.EventText = EventRow(
        **nothing | known | {name: ADA[name] for name in ("actor_label", "ip", "user_agent")}
    )
    expected = dict(leaves.event_parts(row))
    if document != "null":
        assert expected == dict(of_database)
    joined = "".join(content for part, content in expected.items() if part.startswith("diff"))
    assert len(joined) <= len(text)


def test_who_is_printed_as_the_database_does(conn: Connection) -> None:
    for label in ("Ada", 'A "B" \\ \t\x01\x7f\u2028 é 😀', None, ""):
        of_database = scalar(
            conn, "select json_build_array(%s::text, '2001:db8::1'::inet, null)::text", label
        )
        assert leaves.who_text(label, "2001:db8::1", None) == of_database


# Sealing


def test_sealing_nothing_signs_nothing(conn: Connection) -> None:
    assert seal_all(conn) == 0
    with pytest.raises(ProofError, match="no signed checkpoint"):
        newest_checkpoint(conn)


def test_each_event_is_sealed_once(conn: Connection) -> None:
    record(conn, 7, **ADA)
    sealer = Sealer(KEY, batch=3)
    assert [sealer.step(conn).size for _ in range(4)] == [3, 6, 7, 7]
    record(conn, 2)
    assert seal_all(conn, sealer) == 9
    report = verify(conn, [KEY.verifier])
    assert (report.holds, report.events, report.checkpoints) == (True, 9, 4)
    assert scalar(conn, "select count(distinct event_id) from pgaudit_wf.log_leaf") == 9


def test_sealers_at_once_take_turns(dsn: str, conn: Connection) -> None:
    record(conn, 200)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as own:
                seal_all(own, Sealer(KEY, batch=7))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    record(conn, 50)
    for thread in threads:
        thread.join()
    assert errors == []
    assert seal_all(conn) == 250
    report = verify(conn, [KEY.verifier])
    assert (report.holds, report.events) == (True, 250)


class Dying:
    """Signs nothing, as if the process ended between the commit and the signature."""

    verifier = KEY.verifier

    def sign(self, message: bytes) -> bytes:
        raise SigningKeyError("the card was pulled out")


def test_a_seal_that_a_crash_left_unsigned_is_signed_next_time(conn: Connection) -> None:
    record(conn, 5)
    with pytest.raises(SigningKeyError):
        Sealer(Dying()).step(conn)
    root = scalar(conn, "select root from pgaudit_wf.log_checkpoint where note is null")
    report = verify(conn, [KEY.verifier])
    assert (report.holds, report.unsigned) == (True, 1)
    record(conn, 1)
    assert seal_all(conn) == 6
    notes = [
        Checkpoint.parse(Note.parse(note).text)
        for (note,) in conn.execute("select note from pgaudit_wf.log_checkpoint order by size")
    ]
    assert (notes[0].size, notes[0].root) == (5, root)
    assert [c.size for c in notes] == [5, 6]


def unlock(conn: Connection, *tables: str) -> None:
    for table in tables:
        conn.execute(f"alter table pgaudit_wf.{table} disable trigger all")


def test_an_altered_tree_is_not_signed(conn: Connection, tmp_path: Path) -> None:
    state = tmp_path / "state"
    record(conn, 5)
    seal_all(conn, Sealer(KEY, state=state))
    unlock(conn, "log_tile", "log_checkpoint", "log_leaf", "log_kept")
    conn.execute(
        "update pgaudit_wf.log_tile set hashes = set_byte(hashes, 7, 255 - get_byte(hashes, 7))"
    )
    record(conn, 1)
    with pytest.raises(SealError, match="differs from the signed"):
        Sealer(KEY).step(conn)
    # Made to fit, unsigned: the signed one before it is in the way.
    conn.execute("delete from pgaudit_wf.log_checkpoint")
    with pytest.raises(SealError, match="has 5 leaves, but its last checkpoint has 0"):
        Sealer(KEY).step(conn)
    # Cut back to nothing: only the sealer's own state tells.
    conn.execute("delete from pgaudit_wf.log_leaf")
    conn.execute("delete from pgaudit_wf.log_tile")
    with pytest.raises(
        SealError, match=r"does not have the one of 5 leaves that was signed at .* cut back"
    ):
        Sealer(KEY, state=state).step(conn)
    assert scalar(conn, "select count(*) from pgaudit_wf.log_checkpoint") == 0


def test_a_checkpoint_put_in_is_not_signed(conn: Connection) -> None:
    record(conn, 5)
    seal_all(conn)
    conn.execute(
        "insert into pgaudit_wf.log_checkpoint (size, origin, root)"
        " values (4, 'example.com/audit', sha256('forged'))"
    )
    with pytest.raises(SealError, match="does not match the tree"):
        Sealer(KEY).step(conn)


def test_a_reader_set_back_seals_nothing_twice(conn: Connection) -> None:
    record(conn, 3)
    seal_all(conn)
    conn.execute("update pgaudit_wf.reader set cursor = null where name = 'seal'")
    with pytest.raises(SealError, match="a second time"):
        Sealer(KEY).step(conn)
    assert verify(conn, [KEY.verifier]).leaves == 3


def test_another_key_seals_only_when_told(conn: Connection) -> None:
    record(conn, 2)
    seal_all(conn)
    record(conn, 2)
    new = SigningKey.generate(KEY.name)
    with pytest.raises(SealError, match="rotate"):
        Sealer(new).step(conn)
    with pytest.raises(SealError, match=r"under the name example\.com/audit"):
        Sealer(SigningKey.generate("example.com/other"), rotate=True).step(conn)
    seal_all(conn, Sealer(new, rotate=True))
    assert verify(conn, [KEY.verifier, new.verifier]).holds
    assert not verify(conn, [new.verifier]).holds


def test_what_was_sealed_cannot_be_changed(conn: Connection) -> None:
    record(conn, 2)
    seal_all(conn)
    for statement in (
        "update pgaudit_wf.log_tile set hashes = sha256(hashes)",
        "update pgaudit_wf.log_leaf set event_id = event_id + 1",
        "update pgaudit_wf.log_checkpoint set note = 'x'",
    ):
        with pytest.raises(psycopg.Error) as caught:
            conn.execute(statement)
        error = from_database(caught.value)
        assert isinstance(error, DatabaseError)
        assert error.sqlstate == "PA501"
    for table in ("log_tile", "log_leaf", "log_checkpoint", "log_kept", "log_cosignature"):
        with pytest.raises(psycopg.Error) as caught:
            conn.execute(f"truncate pgaudit_wf.{table} cascade")
        assert isinstance(from_database(caught.value), AppendOnlyError)


def test_a_transaction_under_way_is_sealed_once_it_ends(dsn: str, conn: Connection) -> None:
    with psycopg.connect(dsn) as slow:
        slow.execute("select pgaudit_wf.record_event('slow.one', 'x', '1')")
        record(conn, 3)
        assert seal_all(conn) == 0
        slow.commit()
    assert seal_all(conn) == 4
    assert verify(conn, [KEY.verifier]).holds


@pytest.mark.slow
def test_the_tree_goes_on_after_dump_and_restore_into_a_new_cluster(
    app_conn: Connection, app_dsn: str, server: DevServer
) -> None:
    app_conn.execute("insert into organization (id, name) values ('o_1', 'Acme')")
    app_conn.execute("insert into app_user (id, name, email) values ('u_1', 'Ada', 'a@x.io')")
    app_conn.execute(
        "do $$ begin for i in 1 .. 20000 loop perform pg_current_xact_id(); commit;"
        " end loop; end $$"
    )

    def work(conn: Connection) -> None:
        record(conn, 2, **ADA)
        conn.execute(
            "insert into workflow (org_id, user_id, name, nodes, edges)"
            " values ('o_1', 'u_1', 'Flow', '[]', '[]')"
        )

    work(app_conn)
    seal_all(app_conn)
    kept = newest_checkpoint(app_conn)
    work(app_conn)
    dump = subprocess.run(
        [str(server.bin("pg_dump")), "-Fc", app_dsn], check=True, capture_output=True
    ).stdout
    with DevServer(server.binaries) as other:
        with psycopg.connect(other.dsn(), autocommit=True) as admin:
            admin.execute("create role pgaudit_wf_owner nologin")
            admin.execute("create role pgaudit_wf_app nologin")
            admin.execute("create role pgaudit_wf_reader nologin")
            admin.execute("create database moved")
        subprocess.run(
            [str(other.bin("pg_restore")), "--exit-on-error", "-d", other.dsn("moved")],
            input=dump, check=True, capture_output=True,
        )  # fmt: skip
        with psycopg.connect(other.dsn("moved"), autocommit=True) as moved:
            before = verify(moved, [KEY.verifier], notes={"kept": kept})
            assert (before.holds, before.versions) == (True, 1)
            work(moved)
            seal_all(moved)
            report = verify(moved, [KEY.verifier], notes={"kept": kept})
            assert report.holds, report.problems
            assert (report.versions, report.unsealed, report.unsealed_versions) == (3, 0, 0)
            assert report.events == scalar(
                moved, "select count(*) from pgaudit_wf.security_audit_log"
            )


# Proofs


def independent(
    proof: dict[str, Any], tmp_path: Path, key: str
) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "proof.json"
    path.write_text(json.dumps(proof))
    return subprocess.run(
        [sys.executable, str(CHECKER), str(path), key], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_each_event_is_proved_to_both_checkers(
    conn: Connection, tmp_path: Path, count: int
) -> None:
    ids = record(conn, count, **ADA)
    seal_all(conn)
    for number in ids:
        proof = json.loads(json.dumps(prove_event(conn, number)))
        checked = check(proof, [KEY.verifier])
        assert checked.event["actor_label"] == "Ada Lovelace"
        assert checked.event["diff"][0]["value"]["title"] == "Größe 📏"
        assert checked.event["metadata"] == {"pages": 3}
        assert checked.event["id"] == str(number)
    done = independent(proof, tmp_path, str(KEY.verifier))
    assert done.returncode == 0, done.stderr
    assert "Ada Lovelace" in done.stdout


def test_the_checker_is_short_and_stands_alone() -> None:
    source = CHECKER.read_text()
    assert len(source.splitlines()) <= 170
    assert "import pgaudit_wf" not in source
    assert "from pgaudit_wf" not in source


Change = Callable[[dict[str, Any]], object]
CHANGES: dict[str, Change] = {
    "action": lambda p: p["leaf"].update(action="report.burnt"),
    "captured": lambda p: p["leaf"].update(captured=not p["leaf"]["captured"]),
    "new field": lambda p: p["leaf"].update(extra="x"),
    "text": lambda p: p["opened"]["who"].update(text='["Eve", null, null]'),
    "key": lambda p: p["opened"]["who"].update(key="00" * 32),
    "part": lambda p: p["opened"].update({"diff/9": p["opened"]["who"]}),
    "index": lambda p: p.update(index=p["index"] ^ 1),
    "path": lambda p: p["inclusion"].pop(),
    "longer path": lambda p: p["inclusion"].append(p["inclusion"][0]),
    "size": lambda p: p.update(checkpoint=p["checkpoint"].replace("\n7\n", "\n8\n")),
    "format": lambda p: p.update(format="other"),
    "no leaf": lambda p: p.pop("leaf"),
    "no signature": lambda p: p.update(checkpoint=p["checkpoint"].split("—")[0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_proof_convinces_nobody(conn: Connection, tmp_path: Path, change: str) -> None:
    ids = record(conn, 7, **ADA)
    seal_all(conn)
    proof = json.loads(json.dumps(prove_event(conn, ids[2])))
    CHANGES[change](proof)
    with pytest.raises((ProofError, NoteError)):
        check(proof, [KEY.verifier])
    done = independent(proof, tmp_path, str(KEY.verifier))
    assert done.returncode == 1
    assert done.stderr.startswith("NOT PROVED")


def test_another_key_convinces_nobody(conn: Connection, tmp_path: Path) -> None:
    ids = record(conn, 2)
    seal_all(conn)
    proof = prove_event(conn, ids[0])
    other = SigningKey.generate(KEY.name).verifier
    with pytest.raises(NoteError, match="not by any of the given keys"):
        check(proof, [other])
    assert independent(proof, tmp_path, str(other)).returncode == 1


def test_growth_is_proved_to_both_checkers(conn: Connection, tmp_path: Path) -> None:
    notes = []
    for count in (1, 2, 5, 8, 1, 3):
        record(conn, count)
        seal_all(conn)
        notes.append(newest_checkpoint(conn))
    for place, old in enumerate(notes):
        for new in notes[place:]:
            proof = prove_consistency(conn, old, new)
            checked = check(proof, [KEY.verifier])
            assert checked.old == Checkpoint.parse(Note.parse(old).text)
            done = independent(proof, tmp_path, str(KEY.verifier))
            assert done.returncode == 0, done.stderr
            if proof["consistency"]:
                damaged = {**proof, "consistency": [*proof["consistency"][::-1], " "]}
                with pytest.raises(ProofError):
                    check(damaged, [KEY.verifier])
                assert independent(damaged, tmp_path, str(KEY.verifier)).returncode == 1
    with pytest.raises(ProofError, match="truncated"):
        prove_consistency(conn, notes[3], notes[0])


def test_what_is_not_sealed_or_altered_is_not_proved(conn: Connection) -> None:
    ids = record(conn, 2)
    with pytest.raises(ProofError, match="not sealed"):
        prove_event(conn, ids[0])
    seal_all(conn)
    late = record(conn, 1)
    with pytest.raises(ProofError, match="not sealed"):
        prove_event(conn, late[0])
    part = scalar(
        conn, "select tableoid::regclass::text from pgaudit_wf.security_audit_log limit 1"
    )
    conn.execute(f"alter table {part} disable trigger all")
    conn.execute(f"update {part} set action = 'x' where id = %s", [ids[0]])
    with pytest.raises(ProofError, match="not what was sealed"):
        prove_event(conn, ids[0])
    conn.execute(f"delete from {part} where id = %s", [ids[1]])
    with pytest.raises(ProofError, match="but is missing"):
        prove_event(conn, ids[1])


def adas_workflow(app_conn: Connection) -> str:
    app_conn.execute("insert into organization (id, name) values ('o_1', 'Acme')")
    app_conn.execute("insert into app_user (id, name, email) values ('u_1', 'Ada', 'a@x.io')")
    with request_context(app_conn, actor_id="u_1", actor_label="Ada", org_id="o_1"):
        workflow = scalar(
            app_conn,
            "insert into workflow (org_id, user_id, name, nodes, edges)"
            " values ('o_1', 'u_1', 'Flow', '[]', '[]') returning id::text",
        )
    return str(workflow)


def test_versions_are_proved(app_conn: Connection) -> None:
    workflow = adas_workflow(app_conn)
    seal_all(app_conn)
    checked = check(prove_version(app_conn, workflow, 1), [KEY.verifier])
    assert checked.event["actor_label"] == "Ada"
    assert checked.event["snapshot"]["name"] == "Flow"
    with pytest.raises(ProofError, match="version 9 of workflow"):
        prove_version(app_conn, workflow, 9)


# Erasure


def test_an_erasure_leaves_nothing_to_guess_from_and_still_verifies(
    conn: Connection, tmp_path: Path
) -> None:
    own = record(conn, 3, **ADA)
    others = record(conn, 2, actor_id="u_bob", actor_label="Bob")
    unsealed_later = seal_all(conn)
    late = record(conn, 1, **ADA)
    before = prove_event(conn, own[0])
    assert verify(conn, [KEY.verifier]).holds
    salts = scalar(conn, "select count(salt) from pgaudit_wf.log_leaf")
    assert salts == unsealed_later

    conn.execute("select * from pgaudit_wf.pseudonymise('u_ada', '{ada@x.io}')")
    # Until that is sealed, it could be anybody's doing.
    report = verify(conn, [KEY.verifier])
    assert [(p.kind, p.event_id) for p in report.problems] == [("altered", own[0])] * 2
    assert "which is not sealed" in report.problems[0].message
    seal_all(conn)
    report = verify(conn, [KEY.verifier])
    assert (report.holds, report.events, report.erased) == (True, 7, 5)

    # The commitment is what it was; its key, and the salt it came from, are nowhere.
    after = prove_event(conn, own[0])
    assert after["leaf"] == before["leaf"]
    assert "who" not in after["opened"]
    assert "metadata/0" in after["opened"]
    gone = bytes.fromhex(before["opened"]["who"]["key"])
    assert scalar(conn, "select count(*) from pgaudit_wf.log_kept where key = %s", gone) == 0
    assert (
        scalar(conn, "select count(salt) from pgaudit_wf.log_leaf where event_id = any(%s)", own)
        == 0
    )
    dump = scalar(
        conn,
        "select string_agg(l::text, '') from pgaudit_wf.log_leaf as l where event_id = any(%s)",
        own,
    ) + scalar(conn, "select string_agg(k::text, '') from pgaudit_wf.log_kept as k")
    assert gone.hex() not in dump
    assert "Ada" not in json.dumps(after)
    assert check(after, [KEY.verifier]).event["actor_label"] is None
    assert independent(after, tmp_path, str(KEY.verifier)).returncode == 0
    # The old proof, where somebody kept it, still holds.
    assert check(before, [KEY.verifier]).event["actor_label"] == "Ada Lovelace"
    assert others
    assert late


@pytest.mark.parametrize("kept_part", ["snapshot", "who"])
def test_a_version_without_author_or_snapshot_still_verifies(
    app_conn: Connection, kept_part: str
) -> None:
    workflow = adas_workflow(app_conn)
    with request_context(app_conn, actor_id="u_2", org_id="o_1"):
        app_conn.execute("update workflow set name = 'Other'")
    app_conn.execute("alter table pgaudit_wf.workflow_history disable trigger append_only")
    app_conn.execute(
        "update pgaudit_wf.workflow_history set created_at = now() - interval '1 year'"
    )
    app_conn.execute("alter table pgaudit_wf.workflow_history enable always trigger append_only")
    seal_all(app_conn)
    before = prove_version(app_conn, workflow, 1)
    if kept_part == "snapshot":
        gone = "who"
        assert scalar(app_conn, "select versions from pgaudit_wf.pseudonymise('u_1')") == 1
    else:
        gone = "snapshot"
        app_conn.execute("update pgaudit_wf.version_policy set keep_versions = 1")
        assert scalar(app_conn, "select pgaudit_wf.prune_history(10)") == 1
    assert not verify(app_conn, [KEY.verifier]).holds
    seal_all(app_conn)
    report = verify(app_conn, [KEY.verifier])
    assert (report.holds, report.versions) == (True, 2), report.problems
    after = prove_version(app_conn, workflow, 1)
    assert after["leaf"] == before["leaf"]
    assert gone not in after["opened"]
    assert after["opened"][kept_part] == before["opened"][kept_part]
    key = bytes.fromhex(before["opened"][gone]["key"])
    assert scalar(app_conn, "select count(*) from pgaudit_wf.log_kept where key = %s", key) == 0
    check(after, [KEY.verifier])


def test_the_rest_of_an_erased_event_is_still_guarded(conn: Connection) -> None:
    ids = record(conn, 1, **ADA)
    seal_all(conn)
    conn.execute("select * from pgaudit_wf.pseudonymise('u_ada')")
    seal_all(conn)
    part = scalar(
        conn, "select tableoid::regclass::text from pgaudit_wf.security_audit_log limit 1"
    )
    conn.execute(f"alter table {part} disable trigger all")
    for change in (
        "metadata = '{\"pages\": 4}'",
        "diff = jsonb_set(diff, '{0,value,number}', '9')",
        "action = 'report.burnt'",
        "actor_label = 'Eve'",
        "diff = diff || '[{}]'",
        "diff = '[]'",
        "metadata = metadata || '{\"zzz\": 1}'",
    ):
        with conn.transaction(force_rollback=True):
            conn.execute(f"update {part} set {change} where id = %s", [ids[0]])
            problems = verify_inside(conn)
            assert [(p.kind, p.event_id) for p in problems] == [("altered", ids[0])], change


def verify_inside(conn: Connection) -> list[Problem]:
    """Verify inside a transaction that is rolled back, which `verify` itself does not allow."""
    from pgaudit_wf.integrity.seal import pin_format
    from pgaudit_wf.integrity.verify import _Verification

    pin_format(conn)
    work = _Verification(conn, [KEY.verifier], {}, 100)
    work.run(lambda _done, _total: None)
    return work.report.problems


KEYS = [KEY.verifier]


@pytest.mark.parametrize("again", [False, True])
def test_what_an_erasure_left_is_not_replaced(conn: Connection, again: bool) -> None:
    """By another text with the same pseudonym in it, as the erasure could have left it."""
    record(conn, 1, **ADA)
    ids = record(conn, 1, actor_id="u_bob", actor_label="bob@x.io",
                 reason="bob@x.io pays 5 to ada.l@x.io")  # fmt: skip
    seal_all(conn)
    (pseudonym,) = conn.execute(
        "select pseudonym from pgaudit_wf.pseudonymise('u_ada', '{ada.l@x.io}')"
    ).fetchone() or ("",)
    if again:
        conn.execute("select pgaudit_wf.pseudonymise('u_bob', '{bob@x.io}')")
    seal_all(conn)
    assert verify(conn, [KEY.verifier]).holds
    assert scalar(conn, f"select metadata ->> 'reason' ~ 'pays 5 to {pseudonym}'"
                  " from pgaudit_wf.security_audit_log where id = %s", ids[0])  # fmt: skip
    unlock(conn, "security_audit_log", "log_kept")
    conn.execute(
        "update pgaudit_wf.security_audit_log set metadata = jsonb_set(metadata, '{reason}',"
        " to_jsonb(replace(metadata ->> 'reason', 'pays 5', 'pays 9'))) where id = %s", [ids[0]],
    )  # fmt: skip
    [problem] = verify(conn, [KEY.verifier]).problems
    assert (problem.kind, problem.event_id) == ("altered", ids[0])
    assert "it left another metadata/" in problem.message
    # Nor does it help to say that it was so: the event names what it left.
    conn.execute(
        "update pgaudit_wf.log_kept as k set masks = jsonb_set(k.masks, '{-1,1}',"
        " to_jsonb(encode(sha256(convert_to(p.content, 'UTF8')), 'hex')))"
        " from pgaudit_wf.security_audit_log as l, lateral pgaudit_wf._event_parts(l) as p"
        " where l.id = %s and k.part = p.part and k.part like 'metadata/%%' and k.masks <> '[]'",
        [ids[0]],
    )
    problems = verify(conn, [KEY.verifier]).problems
    assert problems
    assert all("let other parts go than are gone" in p.message for p in problems)
    for malformed in ("null", "{}", "[1]", "[[1]]", '[["1", "2"]]', "[[1, null]]"):
        conn.execute("update pgaudit_wf.log_kept set masks = %s", [malformed])
        assert any("is erased in part" in p.message for p in verify(conn, KEYS).problems)


def test_a_second_erasure_of_an_event(conn: Connection) -> None:
    record(conn, 1, **ADA)
    ids = record(conn, 1, actor_id="u_bob", actor_label="bob@x.io", reason="asked by ada.l@x.io")
    seal_all(conn)
    conn.execute("select * from pgaudit_wf.pseudonymise('u_ada', '{ada.l@x.io}')")
    seal_all(conn)
    assert verify(conn, [KEY.verifier]).holds
    conn.execute("select * from pgaudit_wf.pseudonymise('u_bob')")
    seal_all(conn)
    report = verify(conn, [KEY.verifier])
    assert report.holds, report.problems
    opened = prove_event(conn, ids[0])["opened"]
    assert "who" not in opened
    assert any(part["text"].startswith('"pages"') for part in opened.values())
    assert not any("reason" in part["text"] for part in opened.values())


# Witnesses and copies


def witness_of(note: str) -> tuple[VerifierKey, str]:
    private = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
    key = VerifierKey("witness.example.com/w1", WITNESS, private.public_key().public_bytes_raw())
    text = Note.parse(note).text
    value = (1700000000).to_bytes(8, "big") + private.sign(
        f"cosignature/v1\ntime 1700000000\n{text}".encode()
    )
    return key, str(Signature(key.name, key.id, value))


def test_signatures_of_witnesses_are_kept(conn: Connection) -> None:
    ids = record(conn, 2)
    seal_all(conn)
    note = newest_checkpoint(conn)
    witness, line = witness_of(note)
    assert add_cosignatures(conn, note + line, [witness]) == 1
    assert add_cosignatures(conn, note + line, [witness]) == 0
    assert newest_checkpoint(conn) == note + line
    assert verify(conn, [KEY.verifier, witness]).holds
    checked = check(prove_event(conn, ids[0]), [KEY.verifier, witness])
    assert checked.witnesses == ("witness.example.com/w1",)
    record(conn, 1)
    seal_all(conn)
    with pytest.raises(NoteError):
        add_cosignatures(conn, newest_checkpoint(conn) + line, [witness])


class Answering(BaseHTTPRequestHandler):
    """Takes a checkpoint and answers with a witness's line."""

    received: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        note = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.received.append(note)
        if self.path == "/refuse":
            self.send_error(409)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(witness_of(note)[1].encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def http_url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_checkpoints_are_put_elsewhere(
    conn: Connection, tmp_path: Path, http_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record(conn, 3)
    seal_all(conn)
    first = newest_checkpoint(conn)
    push(conn, first, "-")
    assert capsys.readouterr().out == first
    assert push(conn, first, http_url) == witness_of(first)[1]
    assert Answering.received[-1] == first
    with pytest.raises(PushError, match=r"could not be sent to 127\.0\.0\.1"):
        push(conn, first, f"{http_url}/refuse")

    push(conn, first, str(tmp_path))
    assert (tmp_path / "checkpoint").read_text() == first
    record(conn, 1)
    seal_all(conn)
    second = newest_checkpoint(conn)
    push(conn, second, str(tmp_path / "checkpoint"))
    assert (tmp_path / "checkpoint").read_text() == second
    # Never back, and never over another log's.
    with pytest.raises(PushError, match="not overwritten"):
        push(conn, first, str(tmp_path))
    stranger = tmp_path / "stranger"
    stranger.write_text(second.replace("example.com/audit\n4", "example.com/audit\n3"))
    with pytest.raises(PushError, match="not overwritten"):
        push(conn, second, str(stranger))

    repository = tmp_path / "copies"
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    for name, value in (("user.name", "Test"), ("user.email", "test@example.com")):
        subprocess.run(["git", "-C", str(repository), "config", name, value], check=True)
    for note in (second, second):
        push(conn, note, f"git+{repository}")
    log = subprocess.run(
        ["git", "-C", str(repository), "log", "--format=%s"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert log.stdout == "Checkpoint of 4 leaves\n"
    with pytest.raises(PushError, match="no such repository"):
        push(conn, second, f"git+{tmp_path / 'nowhere'}")
    with pytest.raises(PushError, match="no such directory"):
        push(conn, second, f"{tmp_path}/nowhere/")
    assert not (tmp_path / "nowhere").exists()


def test_the_tree_is_written_as_static_files(conn: Connection, tmp_path: Path) -> None:
    conn.execute("create table t (id int primary key)")
    conn.execute("select pgaudit_wf.attach('t')")
    # With the event of the table's attachment.
    conn.execute("insert into t select generate_series(1, 599)")
    seal_all(conn)
    assert export_tiles(conn, tmp_path, newest_checkpoint(conn)) == 4
    files = {str(p.relative_to(tmp_path)): p.stat().st_size for p in tmp_path.rglob("*")
             if p.is_file() and p.name != "checkpoint"}  # fmt: skip
    assert files == {
        "tile/0/000": 8192, "tile/0/001": 8192, "tile/0/002.p/88": 88 * 32,
        "tile/1/000.p/2": 64,
    }  # fmt: skip
    assert (tmp_path / "checkpoint").read_text() == newest_checkpoint(conn)
    assert export_tiles(conn, tmp_path, newest_checkpoint(conn)) == 0
    conn.execute("insert into t values (0)")
    seal_all(conn)
    assert export_tiles(conn, tmp_path, newest_checkpoint(conn)) == 1


@pytest.mark.parametrize("checkpoint", [True, False])
def test_another_logs_tree_is_not_overwritten(
    conn: Connection, app_dsn: str, tmp_path: Path, checkpoint: bool
) -> None:
    with psycopg.connect(app_dsn, autocommit=True) as other:
        record(other)
        size = seal_all(other)
    record(conn, size)
    assert seal_all(conn) == size, "so that tiles have the same names"
    export_tiles(conn, tmp_path, newest_checkpoint(conn))
    if not checkpoint:
        (tmp_path / "checkpoint").unlink()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with (
        psycopg.connect(app_dsn, autocommit=True) as other,
        pytest.raises(PushError, match="not overwritten"),
    ):
        export_tiles(other, tmp_path, newest_checkpoint(other))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


# Commands


def test_from_key_to_proof_on_the_command_line(dsn: str, tmp_path: Path) -> None:
    runner = CliRunner()

    def run(*arguments: str, code: int = 0) -> str:
        result = runner.invoke(app, list(arguments))
        assert result.exit_code == code, result.output
        return result.stdout

    private, public = tmp_path / "seal.key", tmp_path / "seal.pub"
    public.write_text(run("keygen", "example.com/audit", "--out", str(private)))
    assert private.stat().st_mode & 0o777 == 0o600
    run("keygen", "example.com/audit", "--out", str(private), code=1)
    with psycopg.connect(dsn, autocommit=True) as conn:
        ids = record(conn, 4, **ADA)
        copy = tmp_path / "checkpoint"
        out = run("seal", "--key", str(private), "-d", dsn, "--push", str(copy), "--json")
        # The fifth says what the configuration is.
        assert json.loads(out) == {"events": 5, "versions": 0, "size": 5}
        old = tmp_path / "old"
        old.write_text(copy.read_text())
        record(conn, 1)
        run("seal", "--key", str(private), "-d", dsn)
        assert run("checkpoint", "show", "5", "-d", dsn) == copy.read_text()
        run("checkpoint", "push", str(copy), "-d", dsn)
        report = json.loads(run("verify", "-k", str(public), "-c", str(copy), "-c", str(old),
                                "-d", dsn, "--json"))  # fmt: skip
        assert (report["holds"], report["events"], report["checkpoints"]) == (True, 6, 4)
        assert "Nothing was altered" in run("verify", "-k", str(public), "-d", dsn)
        proof = tmp_path / "proof.json"
        proof.write_text(run("prove", str(ids[1]), "-d", dsn))
        assert "Ada Lovelace" in run("check", str(proof), "-k", str(public))
        grown = tmp_path / "grown.json"
        grown.write_text(run("consistency", str(old), "-d", dsn))
        assert "continues that of 5" in run("check", str(grown), "-k", str(public))
        proof.write_text(proof.read_text().replace("Ada", "Eve"))
        run("check", str(proof), "-k", str(public), code=1)
        run("verify", "-d", dsn, code=2)
        part = scalar(
            conn, "select tableoid::regclass::text from pgaudit_wf.security_audit_log limit 1"
        )
        conn.execute(f"alter table {part} disable trigger all")
        conn.execute(f"update {part} set actor_id = 'x' where id = %s", [ids[2]])
        shown = run("verify", "-k", str(public), "-d", dsn, code=1)
        assert f"ALTERED: event {ids[2]}" in shown


def test_maintenance_seals(dsn: str, tmp_path: Path) -> None:
    key = tmp_path / "seal.key"
    key.write_text(f"{KEY}\n")
    with psycopg.connect(dsn, autocommit=True) as conn:
        record(conn, 3)
        arguments = ["maintain", "-d", dsn, "--seal-key", str(key), "--json"]
        planned = json.loads(CliRunner().invoke(app, [*arguments, "--dry-run"]).stdout)
        assert [step["events"] for step in planned if step["subject"] == "seal"] == [3]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        steps = json.loads(result.stdout)
        # The fourth says what the configuration is.
        assert [(s["kind"], s["events"]) for s in steps if s["subject"] == "seal"] == [("hook", 4)]
        assert verify(conn, [KEY.verifier]).events == 4


def test_watching_seals_until_told_to_stop(dsn: str, tmp_path: Path) -> None:
    key = tmp_path / "seal.key"
    key.write_text(f"{KEY}\n")
    with psycopg.connect(dsn, autocommit=True) as conn, subprocess.Popen(
        [sys.executable, "-c", "from pgaudit_wf.cli import app; app()", "seal", "-d", dsn,
         "--key", str(key), "--watch", "0.1", "--push", str(tmp_path / "checkpoint")],
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for count in (2, 3):
            record(conn, count)
            for line in process.stderr:
                if json.loads(line)["message"] == "sealed":
                    break
        process.terminate()
        process.communicate(timeout=30)
        assert process.returncode == 0
        assert (tmp_path / "checkpoint").read_text() == newest_checkpoint(conn)
        assert verify(conn, [KEY.verifier]).events == 6


def test_a_leaf_hash_is_that_of_its_canonical_form(conn: Connection) -> None:
    ids = record(conn, 1, **ADA)
    seal_all(conn)
    proof = prove_event(conn, ids[0])
    stored = scalar(conn, "select hashes from pgaudit_wf.log_tile where level = 0")
    assert leaf_hash(rfc8785.dumps(proof["leaf"])) == stored
