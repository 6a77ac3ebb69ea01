"""Leaves are numbered within their organization, and each has the hash of the one before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgaudit_wf.context.block import request_context
from pgaudit_wf.errors import SealError, SigningKeyError
from pgaudit_wf.integrity import leaf as leaves
from pgaudit_wf.integrity.merkle import leaf_hash
from pgaudit_wf.integrity.note import Checkpoint, CommandSigner, SigningKey, sign_checkpoint
from pgaudit_wf.integrity.proof import check, newest_checkpoint, prove_event
from pgaudit_wf.integrity.report import Problem
from pgaudit_wf.integrity.seal import _EVENTS, Sealer, pin_format, text_cursor
from pgaudit_wf.integrity.tiles import TreeBuilder
from pgaudit_wf.integrity.verify import verify
from pgaudit_wf.trail.event import EventRow
from support.tampering import LOG, unlock

KEY = SigningKey("example.com/audit", bytes(range(32)))
CHECKER = Path(__file__).parents[2] / "contrib" / "check_proof.py"

Connection = psycopg.Connection[Any]


def record(conn: Connection, org: str | None, count: int = 1) -> None:
    with request_context(conn, actor_id="u_1", actor_label="Ada", org_id=org):
        for _ in range(count):
            conn.execute("select pgaudit_wf.record_event('report.made', 'report', '1')")


def seal(conn: Connection, batch: int = 5000) -> None:
    Sealer(KEY, batch=batch).run(conn)


def problems(conn: Connection) -> list[Problem]:
    return verify(conn, [KEY.verifier]).problems


def leaf_hashes(conn: Connection) -> list[bytes]:
    return [
        bytes(row[0])
        for row in conn.execute(
            "select substr(t.hashes, (l.leaf_index % 256 * 32 + 1)::integer, 32)"
            " from pgaudit_wf.log_leaf as l join pgaudit_wf.log_tile as t"
            " on t.level = 0 and t.tile_number = l.leaf_index / 256 order by l.leaf_index"
        )
    ]


def numbers(conn: Connection) -> dict[str, list[int]]:
    """The numbers of each chain in the order of the tree; checks what each says about the last.

    That of the configuration is left out: sealing itself adds to it.
    """
    found: dict[str, list[int]] = defaultdict(list)
    last: dict[str, bytes] = {}
    rows = conn.execute(
        "select chain, org_number, org_previous from pgaudit_wf.log_leaf"
        " where chain is not null order by leaf_index"
    ).fetchall()
    hashes = leaf_hashes(conn)
    for (chain, number, previous), stored in zip(rows, hashes[-len(rows) :], strict=True):
        assert previous == last.get(chain)
        found[chain].append(number)
        last[chain] = stored
    own = found.pop("configuration", [])
    assert own == [*range(1, len(own) + 1)]
    return dict(found)


def counting(**counts: int) -> dict[str, list[int]]:
    return {
        "none" if name == "none" else f"org/{name}": [*range(1, count + 1)]
        for name, count in counts.items()
    }


@pytest.mark.parametrize("batch", [1, 3, 5000])
def test_leaves_of_an_organization_are_numbered_without_a_gap(conn: Connection, batch: int) -> None:
    for _ in range(2):
        for org in ("o_1", "o_2", "o_1", None):
            record(conn, org, 2)
        seal(conn, batch)
    assert numbers(conn) == counting(o_1=8, o_2=4, none=4)
    assert problems(conn) == []


def test_versions_of_workflows_count_with_events(app_conn: Connection) -> None:
    app_conn.execute("insert into organization (id, name) values ('o_1', 'Acme')")
    app_conn.execute("insert into app_user (id, name, email) values ('u_1', 'Ada', 'a@x.io')")
    app_conn.execute(
        "insert into workflow (org_id, user_id, name, nodes, edges)"
        " values ('o_1', 'u_1', 'Flow', '[]', '[]')"
    )
    seal(app_conn)
    kinds = app_conn.execute(
        "select event_id is null from pgaudit_wf.log_leaf where chain = 'org/o_1'"
        " order by org_number"
    ).fetchall()
    assert {kind for (kind,) in kinds} == {True, False}
    assert numbers(app_conn)["org/o_1"] == [*range(1, len(kinds) + 1)]
    assert problems(app_conn) == []


def test_what_the_database_records_of_the_trail_has_a_chain_of_its_own(conn: Connection) -> None:
    record(conn, None)
    conn.execute("select pgaudit_wf.record_event('audit.forged', 'report', '1')")
    conn.execute(
        f"insert into {LOG} (action, captured, resource_type) values ('audit.detached', true, 'x'),"
        " ('actor.pseudonymised', true, 'x'), ('auditor.hired', true, 'x'),"
        " ('audit.retention_changed', true, 'pgaudit_wf.version_policy')"
    )
    conn.execute(
        f"insert into {LOG} (action, captured, org_id) values ('audit.exported', true, 'o_1')"
    )
    seal(conn)
    assert numbers(conn) == counting(none=5, o_1=1)
    own = conn.execute(
        f"select e.action from pgaudit_wf.log_leaf as l join {LOG} as e on e.id = l.event_id"
        " where l.chain = 'configuration'"
    ).fetchall()
    assert ("audit.detached",) in own
    others = ("audit.forged", "actor.pseudonymised", "auditor.hired", "audit.retention_changed")
    assert not {(action,) for action in others} & set(own)
    assert problems(conn) == []


def test_a_transaction_that_ends_late_comes_later_in_tree_and_chain(dsn: str) -> None:
    with (
        psycopg.connect(dsn, autocommit=True) as conn,
        psycopg.connect(dsn, autocommit=True) as other,
    ):
        other.execute("begin")
        other.execute("select set_config('app.org_id', 'o_1', true)")
        other.execute("select pgaudit_wf.record_event('report.made', 'report', 'late')")
        record(conn, "o_1", 2)
        seal(conn)
        assert numbers(conn) == {}
        other.execute("commit")
        seal(conn)
        record(conn, "o_1")
        seal(conn)
        first = conn.execute(
            f"select e.resource_id from pgaudit_wf.log_leaf as l join {LOG} as e"
            " on e.id = l.event_id where l.chain = 'org/o_1' and l.org_number = 1"
        ).fetchone()
        assert first == ("late",)
        assert numbers(conn) == counting(o_1=4)
        assert problems(conn) == []


def test_concurrent_sealers_give_each_number_once(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for org in ("o_1", None, "o_2"):
            record(conn, org, 20)

        def work() -> None:
            with psycopg.connect(dsn, autocommit=True) as own:
                seal(own, 3)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seal(conn)
        assert numbers(conn) == counting(o_1=20, o_2=20, none=20)
        assert problems(conn) == []


def test_a_sealer_that_could_not_sign_gave_its_numbers(conn: Connection) -> None:
    record(conn, "o_1", 5)
    with pytest.raises(SigningKeyError):
        Sealer(CommandSigner(["false"], KEY.verifier), batch=2).run(conn)
    assert numbers(conn) == counting(o_1=2)
    seal(conn)
    assert numbers(conn) == counting(o_1=5)
    assert problems(conn) == []


def test_a_sealer_that_is_killed_gave_no_numbers(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        record(conn, "o_1", 3)
        seal(conn)
        record(conn, "o_1", 3)
        with psycopg.connect(dsn, autocommit=True) as doomed:

            class Dying(Sealer):
                def _write(self, *arguments: Any) -> None:  # noqa: ANN401
                    super()._write(*arguments)
                    conn.execute("select pg_terminate_backend(%s)", [doomed.info.backend_pid])

            with pytest.raises(psycopg.OperationalError):
                Dying(KEY).run(doomed)
        assert numbers(conn) == counting(o_1=3)
        seal(conn)
        assert numbers(conn) == counting(o_1=6)
        assert problems(conn) == []


def test_erased_and_pruned_events_keep_their_place(conn: Connection) -> None:
    record(conn, "o_1", 3)
    seal(conn)
    conn.execute("select pgaudit_wf.pseudonymise('u_1')")
    record(conn, "o_1")
    seal(conn)
    assert numbers(conn)["org/o_1"] == [1, 2, 3, 4]
    report = verify(conn, [KEY.verifier])
    assert (report.problems, report.erased) == ([], 3)


# Leaves of format /1


def seal_without_chains(conn: Connection) -> None:
    """Seal all events as it was done before leaves had numbers."""
    with conn.transaction():
        pin_format(conn)
        tree = TreeBuilder()
        rows = text_cursor(conn).execute(_EVENTS, [1000]).fetchall()
        for _, *values in rows:
            row: leaves.EventText = EventRow._make(values)
            salt = os.urandom(leaves.SALT_SIZE)
            found = leaves.commitments(leaves.event_parts(row), salt)
            conn.execute(
                "insert into pgaudit_wf.log_leaf (leaf_index, event_id, tx_id, occurred_at, salt)"
                " values (%s, %s, %s, %s, %s)",
                [tree.size, row.id, row.tx_id, row.occurred_at, salt],
            )
            tree.append(leaf_hash(leaves.canonical(leaves.leaf_of(row, found, None))))
        conn.cursor().executemany(
            "insert into pgaudit_wf.log_tile (level, tile_number, hashes) values (%s, %s, %s)",
            tree.take_tiles(),
        )
        note = sign_checkpoint(Checkpoint(KEY.name, tree.size, tree.root()), KEY)
        conn.execute(
            "insert into pgaudit_wf.log_checkpoint (size, origin, root, note)"
            " values (%s, %s, %s, %s)",
            [tree.size, KEY.name, tree.root(), str(note)],
        )
        conn.execute("select pgaudit_wf.advance_reader('seal', %s, %s)", [rows[-1][0], tree.size])


def test_leaves_without_numbers_still_verify(conn: Connection, tmp_path: Path) -> None:
    record(conn, "o_1", 3)
    seal_without_chains(conn)
    old = newest_checkpoint(conn)
    record(conn, "o_1", 2)
    seal(conn)
    assert numbers(conn) == counting(o_1=2)
    report = verify(conn, [KEY.verifier], notes={"old": old})
    assert (report.problems, report.unsealed) == ([], 0)
    formats = []
    for (event_id,) in conn.execute(
        f"select id from {LOG} where org_id is not null order by id"
    ).fetchall():
        proof = prove_event(conn, event_id)
        checked = check(proof, [KEY.verifier])
        assert checked.event["actor_label"] == "Ada"
        formats.append((proof["leaf"]["format"], proof["leaf"].get("org_number")))
        path = tmp_path / "proof.json"
        path.write_text(json.dumps(proof))
        subprocess.run([sys.executable, CHECKER, path, str(KEY.verifier)], check=True)
    assert formats == [("pgaudit_wf.event/1", None)] * 3 + [
        ("pgaudit_wf.event/2", "1"),
        ("pgaudit_wf.event/2", "2"),
    ]


def test_no_leaf_without_a_number_follows_one_with_a_number(conn: Connection) -> None:
    record(conn, "o_1", 2)
    seal(conn)
    unlock(conn)
    conn.execute(
        "update pgaudit_wf.log_leaf set chain = null, org_number = null, org_previous = null"
        " where leaf_index = 1"
    )
    assert {p.kind for p in problems(conn)} == {"altered", "chain"}


# A sealer that was misled: its leaves are in the tree, and signed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("org_number = 9", "breaks the chain of organization o_1: number 10 follows 3"),
        ("chain = 'org/o_2'", "breaks the chain of organization o_1: number 3 comes again after 3"),
    ],
)
def test_a_chain_that_was_sealed_wrong_is_told(conn: Connection, change: str, message: str) -> None:
    record(conn, "o_1", 3)
    seal(conn)
    unlock(conn)
    conn.execute(f"update pgaudit_wf.log_leaf set {change} where leaf_index = 2".encode())
    record(conn, "o_1")
    seal(conn)
    conn.execute(
        "update pgaudit_wf.log_leaf set chain = 'org/o_1', org_number = 3 where leaf_index = 2"
    )
    [problem] = problems(conn)
    assert problem.kind == "chain"
    assert message in problem.message


def test_a_leaf_sealed_after_another_than_the_last_is_told(conn: Connection) -> None:
    record(conn, "o_1", 3)
    record(conn, "o_2")
    seal(conn)
    unlock(conn)
    places = {2: ("none", 1, None), 3: ("org/o_1", 3, bytes(32))}
    for _ in range(2):
        for index, (chain, number, previous) in places.items():
            conn.execute(
                "update pgaudit_wf.log_leaf set chain = %s, org_number = %s, org_previous = %s"
                " where leaf_index = %s",
                [chain, number, previous, index],
            )
        record(conn, "o_1")
        seal(conn)
        places = {2: ("org/o_1", 3, leaf_hashes(conn)[1]), 3: ("org/o_2", 1, None)}
    [problem] = problems(conn)
    assert problem.kind == "chain"
    assert problem.message.endswith(
        "breaks the chain of organization o_1: number 4 does not have the hash of number 3 as the"
        " one before"
    )


@pytest.mark.parametrize(
    "change",
    [
        "chain = 'org/o_2'",
        "chain = 'configuration'",
        "org_number = org_number + 1",
        "org_previous = set_byte(org_previous, 3, 255 - get_byte(org_previous, 3))",
        "org_previous = null",
    ],
)
@pytest.mark.parametrize("index", [1, 3])
def test_an_altered_number_or_chain_in_the_table_is_told(
    conn: Connection, change: str, index: int
) -> None:
    record(conn, "o_1", 4)
    seal(conn)
    unlock(conn)
    conn.execute(f"update pgaudit_wf.log_leaf set {change} where leaf_index = {index}".encode())
    assert any(f"(leaf {index})" in problem.message for problem in problems(conn))


@pytest.mark.parametrize(
    "change",
    [
        "delete from pgaudit_wf.log_tile where level = 0 and tile_number = 0",
        "update pgaudit_wf.log_tile set hashes = '' where level = 0 and tile_number = 0",
        "update pgaudit_wf.log_leaf set org_number = null where leaf_index = 0",
    ],
)
def test_a_chain_whose_end_is_gone_is_not_continued(conn: Connection, change: str) -> None:
    record(conn, "o_1")
    record(conn, "o_2", 300)
    seal(conn)
    unlock(conn)
    conn.execute("alter table pgaudit_wf.log_tile drop constraint log_tile_hashes")
    conn.execute(change.encode())
    record(conn, "o_1")
    with pytest.raises(SealError, match="the last leaf of the chain of organization o_1"):
        seal(conn)
