"""`pgaudit-wf undo` and pgaudit_wf.undo(): the plan first, then all of it or nothing."""

from __future__ import annotations

import json
import re

import psycopg
import pytest

from pgaudit_wf import (
    audit_trail,
    record_event,
    request_context,
    undo,
    undo_plan,
    undone_by,
)
from pgaudit_wf.errors import (
    AccessDeniedError,
    ArgumentError,
    NothingToUndoError,
    UndoConflictError,
)
from support.command import command
from support.server import Conn


@pytest.fixture
def db(conn: Conn) -> Conn:
    conn.execute(
        "create table price (id int primary key, org_id text, amount numeric, secret text);"
        "select pgaudit_wf.attach('price', redact => '{secret}');"
        "insert into price select g, 'o_1', g, 'never-to-be-logged' from generate_series(1, 3) as g"
    )
    with request_context(conn, actor_id="u_bo", org_id="o_1", correlation_id="r_1"):
        conn.execute("update price set amount = amount * 100, secret = 'never-to-be-logged 2'")
    return conn


def amounts(conn: Conn) -> list[tuple[int, int]]:
    return conn.execute("select id, amount::int from price order by id").fetchall()


def test_from_python(db: Conn) -> None:
    with pytest.raises(UndoConflictError):
        undo(db, correlation_id="r_1")
    plan = undo_plan(db, correlation_id="r_1", tables=["price"], on_conflict={"redacted": "skip"})
    assert {row.decision for row in plan} == {"skip"}
    assert {conflict["kind"] for row in plan for conflict in row.conflicts} == {"redacted"}
    assert amounts(db) == [(1, 100), (2, 200), (3, 300)]
    with request_context(db, actor_id="u_ana", org_id="o_1", reason="wrong file"):
        done = undo(db, correlation_id="r_1", on_conflict={"redacted": "overwrite"})
    assert [(row.target, row.operation, row.decision) for row in done] == [
        ("price", "update", "undo")
    ] * 3
    assert {tuple(row.put_back or {}) for row in done} == {("amount",)}
    assert amounts(db) == [(1, 1), (2, 2), (3, 3)]
    with pytest.raises(ArgumentError):
        undo_plan(db, since=None)
    with pytest.raises(ArgumentError):
        undo_plan(db, correlation_id="r_1", on_conflict={"redacted": "hide"})  # type: ignore[dict-item]
    with pytest.raises(NothingToUndoError):
        undo(db, correlation_id="r_2")


def test_the_command(db: Conn, dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    these = ("undo", "-d", dsn, "--request", "r_1")
    stopped = command(capsys, *these, "--dry-run")
    assert stopped.code == 1
    assert "redacted secret" in stopped.out
    allowed = (*these, "--on-conflict", "redacted=overwrite")
    planned = command(capsys, *allowed, "--dry-run", "--limit", "2")
    assert (planned.code, "1 more rows" in planned.err) == (0, True)
    assert "amount" in planned.out
    document = json.loads(command(capsys, *allowed, "--dry-run", "--json").out)
    assert [row["put_back"] for row in document] == [{"amount": n} for n in (3, 2, 1)]
    assert amounts(db) == [(1, 100), (2, 200), (3, 300)]
    db.execute("update price set amount = 7 where id = 2")
    conflict = command(capsys, *allowed, "--yes")
    assert (conflict.code, conflict.err.count("1 of 3 rows have conflicts")) == (1, 1)
    assert amounts(db) == [(1, 100), (2, 7), (3, 300)]
    shown = command(capsys, *allowed, "--dry-run")
    assert "changed amount (event " in " ".join(shown.out.split())
    done = command(
        capsys, *allowed, "--on-conflict", "changed=skip", "--yes", "--as", "u_ana", "--org", "o_1",
        "--reason", "wrong file",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "2 rows put back, 1 skipped.\n")
    assert amounts(db) == [(1, 1), (2, 7), (3, 3)]
    [(actor, reason, undoes)] = db.execute(
        "select distinct actor_id, metadata ->> 'reason', metadata ? 'undoes'"
        " from pgaudit_wf.security_audit_log where action = 'price.updated' and actor_id = 'u_ana'"
    ).fetchall()
    assert (actor, reason, undoes) == ("u_ana", "wrong file", True)
    for words in ((), ("--request", "r_1", "--on-conflict", "changed"), (*these[3:], "--json")):
        assert command(capsys, "undo", "-d", dsn, *words).code == 2
    missing = command(capsys, "undo", "-d", dsn, "--request", "r_9", "--dry-run")
    assert (missing.code, missing.err) == (1, "There is nothing to undo.\n")


def test_only_the_confirmed_plan_is_run(
    db: Conn, dsn: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    these = (
        "undo", "-d", dsn, "--request", "r_1", "--on-conflict", "redacted=overwrite",
        "--on-conflict", "changed=skip", "--on-conflict", "gone=skip",
    )  # fmt: skip
    asked: list[str] = []
    meanwhile = ["update price set amount = 8 where id = 3", "delete from price where id = 3", ""]

    def confirm(question: str, **_: object) -> None:
        asked.append(question)
        db.execute(meanwhile.pop(0).encode())

    monkeypatch.setattr("typer.confirm", confirm)
    db.execute("update price set amount = 7 where id = 2")
    for left in ([(1, 100), (2, 7), (3, 8)], [(1, 100), (2, 7)]):
        changed = command(capsys, *these)
        assert (changed.code, "changed since the plan was shown" in changed.err) == (1, True)
        assert amounts(db) == left
    assert command(capsys, *these).err == "1 rows put back, 2 skipped.\n"
    assert amounts(db) == [(1, 1), (2, 7)]
    assert asked == [
        "Put 2 rows back, 1 skipped?", "Put 1 rows back, 2 skipped?", "Put 1 rows back, 2 skipped?",
    ]  # fmt: skip


def test_an_undone_event_shows_it(
    db: Conn, dsn: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with request_context(db, correlation_id="r_2", actor_id="u_bo"):
        db.execute("update price set id = 9 where id = 3")
        db.execute("insert into price values (4, 'o_1', 4)")
    with request_context(db, correlation_id="r_3", actor_id="u_ana", actor_label="Ana"):
        undo(db, correlation_id="r_2", on_conflict={"redacted": "overwrite"})
    # A claim that no trigger saw, and one about another row, say nothing.
    record_event(
        db, "price.updated", resource_type="price", resource_id="2", metadata={"undoes": [2, 5]}
    )
    entries = audit_trail(db, page_size=100).entries
    found = undone_by(db, entries)
    undone = {entry.id: entry for entry in entries if entry.correlation_id == "r_2"}
    undoing = {entry.id for entry in entries if entry.correlation_id == "r_3"}
    # The first of them by way of the key that the row had only in between.
    assert found.keys() == undone.keys()
    assert {one.id for one in found.values()} == undoing
    assert {one.actor for one in found.values()} == {"Ana"}
    assert undone_by(db, ()) == {}
    added = next(entry for entry in undone.values() if entry.resource_id == "4")
    assert undone_by(db, (added,), most=2).keys() == {added.id}
    assert undone_by(db, (added,), most=1) == {}
    for width, words in (("100", ()), ("200", ()), ("200", ("--diff",))):
        monkeypatch.setenv("COLUMNS", width)
        shown = command(capsys, "log", "-d", dsn, *words).out
        assert len(re.findall(r"undone\s+by\s+event", shown)) == 2


def test_whoever_may_not_write_undoes_nothing(db: Conn, dsn: str) -> None:
    reader = f"undo_reader_{db.info.dbname}"
    db.execute(f"create role {reader} login in role pgaudit_wf_reader".encode())
    try:
        with (
            psycopg.connect(dsn, user=reader, autocommit=True) as stranger,
            pytest.raises(AccessDeniedError),
        ):
            undo(stranger, correlation_id="r_1", on_conflict={"redacted": "overwrite"})
    finally:
        db.execute(f"drop role {reader}".encode())
    assert amounts(db) == [(1, 100), (2, 200), (3, 300)]
