"""Tampering as the database's superuser, triggers disabled: each change is found and named."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgaudit_wf.context.block import request_context
from pgaudit_wf.context.values import RequestContext
from pgaudit_wf.integrity.back_dating import Clock, most_transactions
from pgaudit_wf.integrity.note import SigningKey
from pgaudit_wf.integrity.proof import newest_checkpoint
from pgaudit_wf.integrity.report import Problem, Report
from pgaudit_wf.integrity.seal import Sealer
from pgaudit_wf.integrity.verify import verify
from pgaudit_wf.trail.event import EventRow
from support.tampering import LOG, unlock

KEY = SigningKey("example.com/audit", bytes(range(32)))
EVENTS = 30

Connection = psycopg.Connection[Any]


def seal_all(conn: Connection, key: SigningKey = KEY, batch: int = 10) -> None:
    sealer = Sealer(key, batch=batch)
    while sealer.step(conn).more:
        pass


def check(conn: Connection, notes: Mapping[str, str] | None = None, limit: int = 100) -> Report:
    return verify(conn, [KEY.verifier], notes=notes, limit=limit)


def kinds(problems: Sequence[Problem]) -> list[tuple[str, int | None]]:
    return [(problem.kind, problem.event_id) for problem in problems]


@pytest.fixture
def sealed(conn: Connection) -> Connection:
    """Thirty events in checkpoints of ten, then the superuser's hands are free."""
    conn.execute(
        "create table invoice"
        " (id int primary key, org_id text, name text, total numeric, doc jsonb)"
    )
    # Which is not one of the thirty.
    conn.execute("alter table pgaudit_wf.attachment disable trigger record_configuration")
    conn.execute("select pgaudit_wf.attach('invoice', label_column => 'name')")
    conn.execute("set application_name = 'shop'")
    context: dict[str, Any] = {
        "actor_id": "u_1", "actor_label": "Zoë Ωmega", "org_id": "o_1", "org_label": "Acme",
        "auth_method": "api_key", "api_key_id": "k_1", "actor_type": "service",
        "on_behalf_of": "u_2", "client": "runner", "ip": "2001:db8::1", "country": "DE",
        "user_agent": 'Mozilla/5.0 "x"', "correlation_id": "c_1", "reason": "why not",
    }  # fmt: skip
    for number in range(EVENTS // 3):
        with request_context(conn, RequestContext(**context)):
            conn.execute(
                "insert into invoice values (%s, 'o_1', %s, 1.50, '{\"a\": [1, 2.0, \"ü\"]}')",
                [number, f"Invoice \t{number} \U0001f600"],
            )
        conn.execute("update invoice set total = total * 2, name = name || '!' where id = %s",
                     [number])  # fmt: skip
        conn.execute("delete from invoice where id = %s", [number])
    seal_all(conn)
    unlock(conn)
    report = check(conn)
    assert (report.holds, report.events, report.leaves) == (True, EVENTS, EVENTS)
    return conn


def event_ids(conn: Connection) -> list[int]:
    return [row[0] for row in conn.execute(f"select id from {LOG} order by tx_id, id").fetchall()]


def other_value(column: str, kind: str) -> str:
    """SQL that changes as little of a column as can be changed."""
    if column == "ip":
        return "'2001:db8::2'"
    if column == "outcome":
        return "'failed'"
    return {
        "bigint": f"{column} + 1",
        "boolean": f"not {column}",
        "timestamp with time zone": f"{column} + interval '1 microsecond'",
        "jsonb": f"replace({column}::text, 'a', 'b')::jsonb",
        "text": f"overlay({column} placing 'Q' from 1 for 1)",
    }[kind]


COLUMNS = [
    "id", "occurred_at", "tx_id", "actor_id", "actor_label", "actor_type", "on_behalf_of",
    "client", "org_id", "org_label", "auth_method",
    "api_key_id", "action", "resource_type", "resource_id", "outcome", "captured", "attested",
    "diff", "metadata", "ip", "country", "user_agent", "correlation_id", "db_user",
    "application_name",
]  # fmt: skip


def test_every_column_of_the_log_is_tried(conn: Connection) -> None:
    found = conn.execute(
        "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0"
        " and not attisdropped",
        [LOG],
    ).fetchall()
    assert {name for (name,) in found} == set(COLUMNS)


@pytest.mark.parametrize("column", COLUMNS)
def test_one_byte_of_a_column(sealed: Connection, column: str) -> None:
    ids = event_ids(sealed)
    victim = ids[3]
    kind = sealed.execute(
        "select case when t.typtype = 'd' then 'text' else format_type(a.atttypid, null) end"
        " from pg_attribute as a join pg_type as t on t.oid = a.atttypid"
        " where attrelid = %s::regclass and attname = %s",
        [LOG, column],
    ).fetchone()
    assert kind is not None
    new = other_value(column, kind[0]) if column != "id" else "900001"
    changed = sealed.execute(
        f"update {LOG} set {column} = {new} where id = %s"
        f" and ({new}) is distinct from {column} returning 1",
        [victim],
    ).fetchall()
    assert len(changed) == 1
    report = check(sealed)
    first = report.problems[0]
    assert first.event_id == victim
    assert first.leaf_index == 3
    assert first.intact_at is not None
    if column == "id":
        # Who it was is gone, and somebody else is there.
        assert kinds(report.problems) == [("removed", victim), ("inserted", 900001)]
    else:
        assert kinds(report.problems) == [("altered", victim)]
    assert report.events == EVENTS - 1


@pytest.mark.parametrize("column", ["metadata", "action", "captured"])
def test_a_column_is_emptied_that_never_is_empty(sealed: Connection, column: str) -> None:
    victim = event_ids(sealed)[3]
    sealed.execute(f"alter table {LOG} alter {column} drop not null")
    sealed.execute(f"update {LOG} set {column} = null where id = %s", [victim])
    assert kinds(check(sealed).problems) == [("altered", victim)]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("actor_label", "null"),
        ("org_id", "''"),
        ("diff", "null"),
        ("diff", "'[]'"),
        ("diff", 'diff || \'[{"op": "test"}]\''),
        ("diff", "replace(diff::text, '1.50', '1.5')::jsonb"),
        ("diff", "replace(diff::text, '2.0', '\"2.0\"')::jsonb"),
        ("metadata", "'{}'"),
        ("metadata", "metadata || '{\"zzzzzzzzzzz\": null}'"),
        ("metadata", "'[1]'"),
        ("ip", "'2001:db8::1/64'"),
        ("user_agent", "actor_label"),
    ],
)
def test_changes_that_are_easily_missed(sealed: Connection, column: str, value: str) -> None:
    victim = event_ids(sealed)[0]
    done = sealed.execute(
        f"update {LOG} set {column} = {value} where id = %s"
        f" and ({value})::text is distinct from {column}::text returning 1",
        [victim],
    )
    assert done.rowcount == 1
    assert kinds(check(sealed).problems) == [("altered", victim)]


def test_two_rows_swap_their_contents(sealed: Connection) -> None:
    ids = event_ids(sealed)
    names = ", ".join(name for name in COLUMNS if name not in ("id", "tx_id", "occurred_at"))
    sealed.execute(
        f"update {LOG} as l set ({names}) = (select {names} from {LOG} as o"
        " where o.id = case l.id when %(a)s then %(b)s else %(a)s end)"
        " where l.id in (%(a)s, %(b)s)",
        {"a": ids[2], "b": ids[17]},
    )
    report = check(sealed)
    assert kinds(report.problems) == [("reordered", ids[2]), ("reordered", ids[17])]
    assert f"is that of event {ids[17]}" in report.problems[0].message


def test_two_rows_swap_their_numbers(sealed: Connection) -> None:
    ids = event_ids(sealed)
    sealed.execute(
        f"update {LOG} set id = case id when %(a)s then %(b)s else %(a)s end"
        " where id in (%(a)s, %(b)s)",
        {"a": ids[2], "b": ids[4]},
    )
    assert kinds(check(sealed).problems) == [("reordered", ids[2]), ("reordered", ids[4])]


@pytest.mark.parametrize("place", [0, EVENTS // 2, EVENTS - 1])
def test_a_row_is_deleted(sealed: Connection, place: int) -> None:
    victim = event_ids(sealed)[place]
    sealed.execute(f"delete from {LOG} where id = %s", [victim])
    report = check(sealed)
    assert kinds(report.problems) == [("removed", victim)]
    assert report.problems[0].leaf_index == place


def test_a_row_is_deleted_with_its_leaf(sealed: Connection) -> None:
    victim = event_ids(sealed)[5]
    sealed.execute(f"delete from {LOG} where id = %s", [victim])
    sealed.execute("delete from pgaudit_wf.log_leaf where leaf_index = 5")
    report = check(sealed)
    assert [(p.kind, p.leaf_index) for p in report.problems] == [("tree", 5), ("chain", 6)]


def forge(conn: Connection, like: int, **changes: str) -> None:
    columns = ", ".join(COLUMNS)
    values = ", ".join(changes.get(name, name) for name in COLUMNS)
    conn.execute(
        f"insert into {LOG} ({columns}) select {values} from {LOG} where id = %s",
        [like],
    )


@pytest.mark.parametrize("number", ["990000", "id"])
def test_a_forged_row_is_put_between_others(sealed: Connection, number: str) -> None:
    victim = event_ids(sealed)[9]
    changes = {"id": number, "action": "'invoice.approved'"}
    if number == "id":
        changes["occurred_at"] = "occurred_at + interval '1 hour'"
    forge(sealed, victim, **changes)
    report = check(sealed)
    assert kinds(report.problems) == [("inserted", victim if number == "id" else 990000)]
    assert report.events == EVENTS


def test_a_new_event_is_not_taken_for_a_forged_one(sealed: Connection) -> None:
    sealed.execute("select pgaudit_wf.record_event('report.made', 'report', 'r_1')")
    report = check(sealed)
    assert report.holds
    assert report.unsealed == 1


def test_a_row_is_sealed_anew_in_place_of_another(sealed: Connection) -> None:
    """A forged leaf row points at another event: the hash in the tree is in the way."""
    ids = event_ids(sealed)
    sealed.execute(
        "update pgaudit_wf.log_leaf as l set (event_id, tx_id, occurred_at, salt) ="
        " (select o.event_id, o.tx_id, o.occurred_at, o.salt from pgaudit_wf.log_leaf as o"
        "  where o.leaf_index = 8) where l.leaf_index = 7"
    )
    report = check(sealed)
    assert kinds(report.problems)[0] == ("altered", ids[8])
    assert report.problems[0].leaf_index == 7
    assert ("inserted", ids[7]) in kinds(report.problems)


def test_a_tile_is_replaced(sealed: Connection) -> None:
    sealed.execute(
        "update pgaudit_wf.log_tile set hashes = set_byte(hashes, 12 * 32 + 3,"
        " get_byte(hashes, 12 * 32 + 3) # 1) where level = 0"
    )
    report = check(sealed)
    assert [(p.kind, p.leaf_index) for p in report.problems] == [("tree", 12)]
    assert "tile/0/000: the stored hash" in report.problems[0].message
    assert report.problems[0].intact_at is not None


@pytest.mark.parametrize("statement", [
    "delete from pgaudit_wf.log_tile where level = 0",
    "update pgaudit_wf.log_tile set hashes = substr(hashes, 1, 20 * 32) where level = 0",
])  # fmt: skip
def test_a_tile_is_cut_or_missing(sealed: Connection, statement: str) -> None:
    sealed.execute(statement)
    report = check(sealed)
    assert {p.kind for p in report.problems} >= {"tree", "checkpoint"}
    assert any("truncated" in p.message for p in report.problems)


def test_row_and_tile_are_changed_to_fit(sealed: Connection) -> None:
    """The forger computes hashes too, but cannot sign: the first checkpoint after it fails."""
    rewrite(sealed, 13, "action = 'invoice.forgotten'")
    report = check(sealed)
    assert [(p.kind, p.leaf_index) for p in report.problems] == [("chain", 14), ("checkpoint", 10)]
    assert "between leaves 10 and 19" in report.problems[1].message


def rewrite(conn: Connection, place: int, change: str) -> None:
    """Change an event, and all that is unsigned in the database so that it fits."""
    from pgaudit_wf.integrity import leaf as leaves
    from pgaudit_wf.integrity.merkle import leaf_hash
    from pgaudit_wf.integrity.proof import _EVENT
    from pgaudit_wf.integrity.seal import pin_format, text_cursor
    from pgaudit_wf.integrity.sealed_row import link_of
    from pgaudit_wf.trail.event import EventRow

    victim = event_ids(conn)[place]
    conn.execute(f"update {LOG} set {change} where id = %s", [victim])
    with conn.transaction():
        pin_format(conn)
        found = conn.execute(
            "select event_id, tx_id, occurred_at, salt, org_number, org_previous"
            " from pgaudit_wf.log_leaf where leaf_index = %s",
            [place],
        ).fetchone()
        assert found is not None
        keyed = dict(zip(("event_id", "tx_id", "occurred_at"), found, strict=False))
        kept = text_cursor(conn).execute(_EVENT, keyed).fetchone()
        assert kept is not None
        row: leaves.EventText = EventRow._make(kept)
        parts = leaves.commitments(leaves.event_parts(row), found[3])
        forged = leaf_hash(leaves.canonical(leaves.leaf_of(row, parts, link_of(*found[4:]))))
    conn.execute(
        "update pgaudit_wf.log_tile set hashes = overlay(hashes placing %s from %s for 32)"
        " where level = 0",
        [forged, place * 32 + 1],
    )


def test_the_log_is_cut_back_to_an_older_checkpoint(sealed: Connection) -> None:
    kept = newest_checkpoint(sealed)
    cut = sealed.execute(
        "delete from pgaudit_wf.log_leaf where leaf_index >= 20 returning event_id"
    ).fetchall()
    sealed.execute(f"delete from {LOG} where id = any(%s)", [[e for (e,) in cut]])
    sealed.execute("delete from pgaudit_wf.log_checkpoint where size > 20")
    sealed.execute(
        "update pgaudit_wf.log_tile set hashes = substr(hashes, 1, 20 * 32) where level = 0"
    )
    # Inside the database nothing is left that tells; the copy elsewhere does.
    assert check(sealed).holds
    report = check(sealed, notes={"auditor.txt": kept})
    assert [p.kind for p in report.problems] == ["checkpoint"]
    assert "truncated" in report.problems[0].message
    assert "auditor.txt" in report.problems[0].message


def start_over(conn: Connection) -> None:
    for table in ("log_kept", "log_leaf", "log_cosignature", "log_checkpoint", "log_tile"):
        conn.execute(sql.SQL("delete from {}").format(sql.Identifier("pgaudit_wf", table)))
    conn.execute("update pgaudit_wf.reader set cursor = null where name = 'seal'")


def test_a_log_rewritten_under_another_key_is_found(sealed: Connection) -> None:
    kept = newest_checkpoint(sealed)
    forger = SigningKey.generate(KEY.name)
    sealed.execute(f"update {LOG} set actor_id = 'somebody else'")
    start_over(sealed)
    seal_all(sealed, forger)
    report = check(sealed, notes={"auditor.txt": kept})
    assert report.checkpoints == 0
    assert all(p.kind == "checkpoint" for p in report.problems[:3])
    assert "not by any of the given keys" in report.problems[0].message
    assert any("was rewritten" in p.message and "auditor.txt" in p.message
               for p in report.problems)  # fmt: skip


def test_a_log_rewritten_under_the_stolen_key_is_found(sealed: Connection) -> None:
    kept = newest_checkpoint(sealed)
    sealed.execute(f"update {LOG} set actor_id = 'somebody else'")
    start_over(sealed)
    seal_all(sealed)
    assert check(sealed).holds
    report = check(sealed, notes={"auditor.txt": kept})
    assert [p.kind for p in report.problems] == ["checkpoint"]
    assert "was rewritten" in report.problems[0].message


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("update pgaudit_wf.log_checkpoint set root = sha256(root) where size = 20",
         "differs from the table"),
        ("update pgaudit_wf.log_checkpoint set note = replace(note, '20', '21') where size = 20",
         "is not valid"),
        ("update pgaudit_wf.log_checkpoint set note = 'none' where size = 20", "not a signed note"),
        ("update pgaudit_wf.log_checkpoint set note = null where size = 20", "is not signed"),
        ("insert into pgaudit_wf.log_checkpoint values (35, 'example.com/audit', sha256(''))",
         "truncated"),
    ],
)  # fmt: skip
def test_a_checkpoint_is_altered(sealed: Connection, statement: str, message: str) -> None:
    sealed.execute(statement)
    report = check(sealed)
    assert [p.kind for p in report.problems] == ["checkpoint"]
    assert message in report.problems[0].message


def test_leaves_without_a_checkpoint(sealed: Connection) -> None:
    sealed.execute("delete from pgaudit_wf.log_checkpoint where size = 30")
    report = check(sealed)
    assert [(p.kind, p.leaf_index) for p in report.problems] == [("tree", 20)]


COPY = f"""
insert into {LOG} (id, tx_id, occurred_at, action, captured)
select %s, %s, %s, 'invoice.forged', true from {LOG} order by tx_id desc, id desc limit 1
"""


@pytest.mark.parametrize(
    ("number", "transaction", "at", "message"),
    [
        ("id", "tx_id", "occurred_at + interval '1 s'", "a sealed event has the same id"),
        ("id", "txid_current()", "clock_timestamp()", "a sealed event has the same id"),
        ("-7", "tx_id", "occurred_at - interval '1 hour'", "this log has given no such id"),
        ("id + 9", "tx_id + 1000000", "occurred_at", "its transaction has not begun"),
        ("id + 9", "tx_id - 1", "occurred_at", "it did not exist when the events around it"),
    ],
)
def test_an_event_is_put_in(
    sealed: Connection, number: str, transaction: str, at: str, message: str
) -> None:
    sealed.execute((COPY % (number, transaction, at)).encode())
    report = check(sealed)
    assert [p.kind for p in report.problems] == ["inserted"]
    assert message in report.problems[0].message
    assert report.unsealed == 0


def test_an_event_is_sealed_under_the_id_of_another(sealed: Connection) -> None:
    sealed.execute((COPY % ("id", "txid_current()", "clock_timestamp()")).encode())
    seal_all(sealed)
    assert kinds(check(sealed).problems) == [("inserted", max(event_ids(sealed)))]


def test_an_event_is_back_dated_and_sealed(conn: Connection) -> None:
    for _ in range(most_transactions(conn) + 2):
        conn.execute("select pgaudit_wf.record_event('report.made', 'report', '1')")
    seal_all(conn)
    for age in ("20 days", "30 minutes"):
        conn.execute(
            f"insert into {LOG} (occurred_at, action, captured) values (now() - %s::interval,"
            " 'report.forged', true)",
            [age],
        )
    seal_all(conn)
    report = check(conn)
    forged = max(event_ids(conn)) - 1
    assert kinds(report.problems) == [("inserted", forged)]
    assert report.problems[0].leaf_index == report.leaves - 2


def test_long_transactions_do_not_look_back_dated() -> None:
    """Three with lower numbers wrote later: with these, four were under way at noon."""
    clock = Clock(4)
    texts = [f"2026-03-01 {hour}:00:00{part}+00" for hour, part in ((14, ""), (16, ".5"), (15, ""))]
    noon = "2026-03-01 12:00:00+00"
    for number, text in enumerate([*texts, noon, noon]):
        assert not clock.precedes_too_many(event(number, text))
    assert not clock.precedes_too_many(event(8, "2026-03-01 14:30:00+00"))
    assert clock.precedes_too_many(event(9, noon))


@pytest.mark.parametrize("text", ["0044-03-15 12:00:00+00 BC", "-infinity"])
def test_times_beyond_those_of_python(text: str) -> None:
    clock = Clock(1)
    assert not clock.precedes_too_many(event(1, "10000-01-01 00:00:00+00"))
    assert not clock.precedes_too_many(event(2, "infinity"))
    assert clock.precedes_too_many(event(3, text))


def event(tx_id: int, occurred_at: str) -> EventRow[str, str]:
    columns: dict[str, Any] = dict.fromkeys(EventRow._fields)
    return EventRow(**columns | {"tx_id": str(tx_id), "occurred_at": occurred_at})


def test_a_tile_and_a_feigned_erasure_are_both_told(sealed: Connection) -> None:
    victim = event_ids(sealed)[13]
    sealed.execute(
        "select pgaudit_wf._keep_commitments(l, jsonb_populate_record(l, %s), 1)"
        f" from {LOG} as l where id = %s",
        ['{"actor_label": "X"}', victim],
    )
    sealed.execute(f"update {LOG} set actor_label = 'X' where id = %s", [victim])
    sealed.execute(
        "update pgaudit_wf.log_tile set hashes = set_byte(hashes, 15 * 32,"
        " 255 - get_byte(hashes, 15 * 32)) where level = 0"
    )
    told = check(sealed).problems
    assert {(p.kind, p.leaf_index) for p in told} == {("tree", 15), ("altered", 13)}
    assert any("no erasure is recorded" in p.message for p in told)


def test_events_are_sealed_twice(sealed: Connection) -> None:
    """The sealer's place is set back, and the index gone that would stop it."""
    sealed.execute("update pgaudit_wf.reader set cursor = null where name = 'seal'")
    seal_all(sealed)
    report = check(sealed)
    assert kinds(report.problems) == [("inserted", number) for number in event_ids(sealed)]
    assert "leaf 30 has the id of leaf 0" in report.problems[0].message


def test_a_leaf_too_many(sealed: Connection) -> None:
    sealed.execute(
        "insert into pgaudit_wf.log_leaf select 30, event_id, tx_id, occurred_at"
        " from pgaudit_wf.log_leaf where leaf_index = 3"
    )
    report = check(sealed)
    assert [(p.kind, p.leaf_index) for p in report.problems] == [("tree", 30), ("inserted", 30)]


def test_a_tile_too_many(sealed: Connection) -> None:
    sealed.execute("insert into pgaudit_wf.log_tile values (1, 0, sha256('')), (0, 7, sha256(''))")
    report = check(sealed)
    assert {p.kind for p in report.problems} == {"tree"}
    assert report.found == 2


def test_a_tile_of_no_level(sealed: Connection) -> None:
    sealed.execute("insert into pgaudit_wf.log_tile values (-1, 0, sha256(''))")
    assert [p.kind for p in check(sealed).problems] == ["tree"]


def test_an_erasure_is_feigned(sealed: Connection) -> None:
    """Commitments kept as by an erasure, to change a value: no erasure is recorded."""
    victim = event_ids(sealed)[3]
    sealed.execute(
        "select pgaudit_wf._keep_commitments(l, jsonb_populate_record(l, %s), 1)"
        f" from {LOG} as l where id = %s",
        ['{"actor_label": "X"}', victim],
    )
    sealed.execute(f"update {LOG} set actor_label = 'X' where id = %s", [victim])
    told, released = check(sealed).problems
    assert kinds([told, released]) == [("altered", victim)] * 2
    assert "no erasure is recorded" in told.message
    assert "by event 1, which is not sealed" in released.message


def test_a_leaf_is_of_nothing(sealed: Connection) -> None:
    sealed.execute("update pgaudit_wf.log_leaf set tx_id = null where leaf_index = 4")
    sealed.execute("update pgaudit_wf.log_leaf set occurred_at = null where leaf_index = 6")
    found = [(p.kind, p.leaf_index) for p in check(sealed).problems if p.kind == "tree"]
    assert found == [("tree", 4), ("tree", 6)]


def test_a_salt_is_lost(sealed: Connection) -> None:
    sealed.execute("update pgaudit_wf.log_leaf set salt = null where leaf_index = 4")
    assert kinds(check(sealed).problems) == [("altered", event_ids(sealed)[4])]


def test_the_number_of_problems_is_told_beyond_those_kept(sealed: Connection) -> None:
    sealed.execute(f"update {LOG} set country = 'XX'")
    report = check(sealed, limit=4)
    assert (len(report.problems), report.found) == (4, EVENTS)


@pytest.mark.parametrize("place", [255, 256, 511, 513])
def test_across_tiles(conn: Connection, place: int) -> None:
    conn.execute("create table t (id int primary key)")
    conn.execute("select pgaudit_wf.attach('t')")
    # With the event of the table's attachment.
    conn.execute("insert into t select generate_series(1, 599)")
    seal_all(conn, batch=250)
    unlock(conn)
    assert check(conn).events == 600
    victim = event_ids(conn)[place]
    conn.execute(f"update {LOG} set action = 'x' where id = %s", [victim])
    report = check(conn)
    assert [(p.kind, p.leaf_index) for p in report.problems] == [("altered", place)]
    conn.execute(
        "update pgaudit_wf.log_tile set hashes = set_byte(hashes, 40, 255 - get_byte(hashes, 40))"
        " where level = 1"
    )
    assert any("tile/1/000.p/2 was altered" in p.message for p in check(conn).problems)


VERSION_CHANGES: dict[str, str] = {
    "org_id": "'o_9'", "source": "'listing'", "snapshot": "snapshot || '{\"name\": \"N\"}'",
    "change": "change || '{\"has_changes\": 1}'", "content_hash": "repeat('0', 64)",
    "previous_hash": "repeat('0', 64)", "previous_version": "7", "restored_from": "1",
    "actor_id": "'u_9'", "actor_label": "'Mallory'", "auth_method": "'oauth'",
    "api_key_id": "'k_9'", "correlation_id": "'c_9'",
    "created_at": "created_at - interval '1 microsecond'",
}  # fmt: skip


@pytest.fixture
def versions(app_conn: Connection) -> Callable[[], str]:
    """Four versions of a workflow, sealed; returns its id."""

    def make() -> str:
        app_conn.execute("insert into organization (id, name) values ('o_1', 'Acme')")
        app_conn.execute("insert into app_user (id, name, email) values ('u_1', 'Ada', 'a@x.io')")
        row = app_conn.execute(
            "insert into workflow (org_id, user_id, name, nodes, edges)"
            " values ('o_1', 'u_1', 'Flow', '[]', '[]') returning id::text"
        ).fetchone()
        assert row is not None
        for number in itertools.islice(itertools.count(1), 3):
            with request_context(app_conn, actor_id="u_1", actor_label="Ada", org_id="o_1"):
                app_conn.execute(
                    "update workflow set nodes = jsonb_build_array(jsonb_build_object('id',"
                    " %s::text, 'type', 'action', 'data', '{}'::jsonb)) where id = %s",
                    [f"n{number}", row[0]],
                )
        seal_all(app_conn, batch=100)
        unlock(app_conn)
        report = check(app_conn)
        assert report.holds
        assert report.versions == 4
        return str(row[0])

    return make


@pytest.mark.parametrize("column", VERSION_CHANGES)
def test_a_version_is_altered(
    app_conn: Connection, versions: Callable[[], str], column: str
) -> None:
    workflow = versions()
    for (name,) in app_conn.execute(
        "select conname from pg_constraint where contype = 'c'"
        " and conrelid = 'pgaudit_wf.workflow_history'::regclass"
    ).fetchall():
        app_conn.execute(
            sql.SQL("alter table pgaudit_wf.workflow_history drop constraint {}").format(
                sql.Identifier(name)
            )
        )
    app_conn.execute(
        f"update pgaudit_wf.workflow_history set {column} = {VERSION_CHANGES[column]}"
        " where workflow_id = %s and version = 2",
        [workflow],
    )
    found = [(p.kind, p.workflow_id, p.version) for p in check(app_conn).problems]
    assert found == [("altered", workflow, 2)]


def test_a_version_is_removed_or_put_in(app_conn: Connection, versions: Callable[[], str]) -> None:
    workflow = versions()
    app_conn.execute("delete from pgaudit_wf.workflow_history where version = 4")
    app_conn.execute(
        "insert into pgaudit_wf.workflow_history (workflow_id, version, source, snapshot, change,"
        " content_hash, tx_id) select workflow_id || '0', version, source, snapshot, change,"
        " content_hash, tx_id from pgaudit_wf.workflow_history where version = 1"
    )
    found = [(p.kind, p.workflow_id, p.version) for p in check(app_conn).problems]
    assert found == [("removed", workflow, 4), ("inserted", f"{workflow}0", 1)]


@pytest.mark.parametrize("value", ["null", "sha256(snapshot)"])
def test_what_is_kept_of_a_snapshot_is_altered(
    app_conn: Connection, versions: Callable[[], str], value: str
) -> None:
    """It would come to light only once the snapshot is pruned, and look like a forged version."""
    versions()
    app_conn.execute(
        f"update pgaudit_wf.log_leaf set snapshot = {value} where version = 2".encode()
    )
    found = check(app_conn).problems
    assert [(p.kind, p.version) for p in found] == [("altered", 2)]
    assert "log_leaf was altered" in found[0].message


def test_what_a_pruning_kept_of_a_snapshot_is_altered(
    app_conn: Connection, versions: Callable[[], str]
) -> None:
    versions()
    start_over(app_conn)
    app_conn.execute("delete from pgaudit_wf.version_place")
    app_conn.execute(
        "update pgaudit_wf.workflow_history set created_at = now() - interval '1 year'"
    )
    seal_all(app_conn)
    app_conn.execute("update pgaudit_wf.version_policy set keep_versions = 1")
    app_conn.execute("select pgaudit_wf.prune_history(1)")
    seal_all(app_conn)
    assert check(app_conn).holds
    app_conn.execute(
        "update pgaudit_wf.log_kept set commitment = sha256(commitment) where part = 'snapshot'"
    )
    assert [(p.kind, p.version) for p in check(app_conn).problems] == [("altered", 1)]


def test_a_snapshot_is_destroyed(app_conn: Connection, versions: Callable[[], str]) -> None:
    workflow = versions()
    app_conn.execute(
        "update pgaudit_wf.workflow_history set snapshot = null, pruned_at = now()"
        " where version = 2"
    )
    found = check(app_conn).problems
    assert [(p.kind, p.workflow_id, p.version) for p in found] == [("altered", workflow, 2)]
    assert "lost its snapshot" in found[0].message
    app_conn.execute(
        "update pgaudit_wf.workflow_history set content_hash = repeat('0', 64) where version = 2"
    )
    assert [p.kind for p in check(app_conn).problems] == ["altered"]
