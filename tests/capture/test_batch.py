"""What is recorded at the end of a statement is what row triggers would have recorded."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.server import Conn

TABLE = """
create table item (
    id int primary key, org_id text, name text, n numeric, tags text[], doc jsonb, secret text,
    seen_at timestamptz
);
insert into pgaudit_wf.action_rule (resource_type, op, condition, action, position) values
    ('item', 'insert', 'new.n > 100', 'item.big', 10),
    ('item', 'update', 'old.name is distinct from new.name', 'item.renamed', 10),
    ('item', 'update', 'new.n < old.n', 'item.shrunk', 20),
    ('item', 'delete', 'old.secret is not null', 'item.burnt', 10);
select pgaudit_wf.attach(
    'item', label_column => 'name', ignore => '{seen_at}', redact => '{secret}', max_value => 500);
"""
ROWS = """
insert into item
select g, 'org ' || g % 3, 'name ' || g, g, array['a', null], case when g % 4 = 0 then 'null'::jsonb
    when g % 4 = 1 then jsonb_build_object('k', repeat('x', g * 10)) end,
    case when g % 5 = 0 then 'hush' end, now()
from generate_series({}, {}) as g
"""
STATEMENTS: dict[str, LiteralString] = {
    "insert": ROWS.format(200, 260),
    "insert nothing": "insert into item select * from item where false",
    "insert or update": "insert into item select id, 'x', 'again', n from item where id % 2 = 0"
    " union all select 900, 'x', 'new', 1"
    " on conflict (id) do update set name = excluded.name, n = item.n - 1",
    "update one": "update item set n = n + 1 where id = 5",
    "update many": "update item set n = n - id, tags = tags || '{b}', doc = to_jsonb(name)",
    "update what is ignored": "update item set seen_at = now() + '1 s'",
    "update to the same": "update item set n = n",
    "update keys": "update item set id = 1000 - id, org_id = nullif(org_id, 'org 1')",
    "update with nulls": "update item set name = null, doc = null, secret = 'new' where id < 20",
    "merge": "merge into item using (select g from generate_series(1, 120, 7) as g) as s on id = g"
    " when matched and g % 2 = 0 then delete"
    " when matched then update set n = -n"
    " when not matched then insert (id, name) values (g, 'merged')",
    "with": "with gone as (delete from item where id < 10 returning *),"
    " more as (insert into item select id + 500, org_id, name, 200 from gone)"
    " update item set n = n + 0.50 where id > 80",
    "delete": "delete from item where id % 3 = 0",
    "delete nothing": "delete from item where false",
}
EVENTS = """
select action, resource_id, org_id, diff, metadata, captured
from pgaudit_wf.security_audit_log where action !~ '^audit[.]' and id > %s
order by action, resource_id, diff
"""


def recorded(conn: Conn, statement: LiteralString, *, by_row: bool) -> list[Any]:
    """The events of a statement that is then undone."""
    row = conn.execute(
        "select coalesce(max(id), 0) from pgaudit_wf.security_audit_log where action !~ '^audit[.]'"
    ).fetchone()
    with conn.transaction(force_rollback=True):
        conn.execute("set local session_replication_role = replica") if by_row else None
        conn.execute(statement)
        return conn.execute(EVENTS, row).fetchall()


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_a_statement_is_recorded_as_its_rows_would_be(conn: Conn, statement: LiteralString) -> None:
    conn.execute(TABLE)
    conn.execute(ROWS.format(1, 100).encode())
    conn.execute("select set_config('app.reason', 'spring cleaning', false)")
    by_row = recorded(conn, statement, by_row=True)
    assert recorded(conn, statement, by_row=False) == by_row


def test_none_of_many_rows_is_lost_or_paired_with_another(conn: Conn) -> None:
    conn.execute("create table item (id int primary key, n int, pad text)")
    conn.execute("select pgaudit_wf.attach('item')")
    conn.execute("insert into item select g, g, repeat('x', 100) from generate_series(1, 20000) g")
    # First one row, so that the session's plans are those for one.
    conn.execute("update item set n = n where id = 1")
    conn.execute("update item set n = -id, id = id + 100000, pad = repeat('y', 100)")
    assert conn.execute(
        "select count(*), count(distinct resource_id),"
        " bool_and(resource_id = '' || (diff -> 0 ->> 'value')"
        " and diff -> 0 -> 'old' = diff -> 1 -> 'old'"
        " and diff -> 1 ->> 'value' = '-' || (diff -> 0 ->> 'old')"
        " and metadata ->> 'previous_resource_id' = diff -> 0 ->> 'old')"
        " from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' and action = 'item.updated'"
    ).fetchone() == (20000, 20000, True)


VALUE = st.one_of(st.none(), st.integers(-3, 3))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.dictionaries(st.integers(0, 9), VALUE, max_size=8),
    changes=st.lists(
        st.tuples(st.sampled_from("iud"), st.integers(0, 9), VALUE, st.integers(0, 12)), max_size=5
    ),
)
def test_random_statements(
    conn: Conn, rows: dict[int, int | None], changes: list[tuple[str, int, int | None, int]]
) -> None:
    conn.execute("drop table if exists item")
    conn.execute("create table item (id int primary key, v int, w int)")
    conn.execute("select pgaudit_wf.attach('item')")
    for key, value in rows.items():
        conn.execute("insert into item values (%s, %s)", [key, value])
    row = conn.execute(
        "select max(id) from pgaudit_wf.security_audit_log where action !~ '^audit[.]'"
    ).fetchone()
    found = []
    for role in ("replica", "origin"):
        with conn.transaction(force_rollback=True):
            conn.execute("select set_config('session_replication_role', %s, true)", [role])
            for op, key, value, bound in changes:
                if op == "i":
                    conn.execute(
                        "insert into item select g, %s::int"
                        " from generate_series(%s::int, %s::int) as g on conflict do nothing",
                        [value, key, bound],
                    )  # fmt: skip
                elif op == "u":
                    conn.execute(
                        "update item set v = %s::int, w = coalesce(w, 0) + 1"
                        " where id between %s and %s",
                        [value, key, bound],
                    )
                else:
                    conn.execute("delete from item where id between %s and %s", [key, bound])
            found.append(conn.execute(EVENTS, [row[0] or 0 if row else 0]).fetchall())
    assert found[0] == found[1]


def states(conn: Conn, table: str = "item") -> dict[str, str]:
    return dict(
        conn.execute(
            "select replace(tgname, '!pgaudit_wf_', ''), tgenabled::text from pg_trigger"
            " where tgrelid = %s::regclass and starts_with(tgname, '!pgaudit_wf_')", [table],
        ).fetchall()
    )  # fmt: skip


def actions(conn: Conn) -> list[tuple[str, str]]:
    return conn.execute(
        "select action, resource_id from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' order by tx_id, id"
    ).fetchall()


def findings(conn: Conn) -> list[tuple[str, str]]:
    return conn.execute("select problem, remedy from pgaudit_wf.doctor()").fetchall()


CHANGE_AGAIN = """
create function change_again() returns trigger language plpgsql as $$
begin
    update item set n = n + 10 where id = new.id and n < 10;
    return null;
end $$;
"""


@pytest.mark.parametrize("attach_first", [True, False])
def test_what_another_trigger_changes_again_comes_second(conn: Conn, attach_first: bool) -> None:
    conn.execute("create table item (id int primary key, n int)")
    conn.execute(CHANGE_AGAIN)
    ddl: list[LiteralString] = [
        "select pgaudit_wf.attach('item')",
        "create trigger again after insert or update on item for each row"
        " execute function change_again()",
    ]
    for statement in ddl if attach_first else ddl[::-1]:
        conn.execute(statement)
    assert findings(conn) == []
    conn.execute("insert into item values (1, 1)")
    conn.execute("update item set n = 2 where id = 1")
    assert [
        (row[0], row[1])
        for row in conn.execute(
            "select coalesce(diff -> 0 -> 'value' -> 'n', diff -> 0 -> 'value')::int,"
            " (diff -> 0 -> 'old')::int from pgaudit_wf.security_audit_log"
            " where action !~ '^audit[.]' order by tx_id, id"
        ).fetchall()
    ] == [(1, None), (11, 1), (2, 11), (12, 2)]
    # What no longer needs it stays as it is until the table is attached again.
    conn.execute("drop trigger again on item")
    assert findings(conn) == []
    conn.execute("select pgaudit_wf.attach('item')")
    assert states(conn) == {
        "insert": "R", "update": "R", "delete": "R",
        "batch_insert": "O", "batch_update": "O", "batch_delete": "O",
    }  # fmt: skip


@pytest.mark.parametrize("scope", ["all", "user"])
@pytest.mark.parametrize("other_trigger", [True, False])
def test_enabling_all_triggers_records_nothing_twice(
    conn: Conn, scope: str, other_trigger: bool
) -> None:
    conn.execute("create table item (id int primary key, n int)")
    conn.execute("select pgaudit_wf.attach('item')")
    if other_trigger:
        conn.execute(CHANGE_AGAIN)
        conn.execute(
            "create trigger again after insert on item for each row execute function change_again()"
        )
    conn.execute(f"alter table item disable trigger {scope}".encode())
    conn.execute("insert into item values (1, 20)")
    assert actions(conn) == []
    conn.execute(f"alter table item enable trigger {scope}".encode())
    conn.execute("insert into item values (2, 20), (3, 20)")
    conn.execute("update item set n = 21")
    conn.execute("delete from item where id = 1")
    assert actions(conn) == [
        *[("item.created", key) for key in "23"],
        *[("item.updated", key) for key in "123"],
        ("item.deleted", "1"),
    ]
    for _, remedy in findings(conn):
        conn.execute(remedy.encode())
    assert findings(conn) == []
    conn.execute("insert into item values (4, 20)")
    assert actions(conn)[-1] == ("item.created", "4")
    assert len(actions(conn)) == 7


def test_rows_that_go_with_a_parent_come_after_it(conn: Conn) -> None:
    conn.execute("create table item (id int primary key)")
    conn.execute("select pgaudit_wf.attach('item')")
    conn.execute(
        "create table part (id int primary key, item_id int references item on delete cascade)"
    )
    conn.execute("select pgaudit_wf.attach('part')")
    assert findings(conn) == []
    conn.execute("insert into item values (1)")
    conn.execute("insert into part values (7, 1)")
    conn.execute("delete from item")
    assert actions(conn)[2:] == [("item.deleted", "1"), ("part.deleted", "7")]


def test_a_table_that_becomes_a_partition_goes_on_being_recorded(conn: Conn) -> None:
    conn.execute("create table item (id int primary key)")
    conn.execute("select pgaudit_wf.attach('item')")
    conn.execute("create table whole (id int not null) partition by range (id)")
    conn.execute("alter table whole attach partition item for values from (0) to (9)")
    assert findings(conn) == []
    conn.execute("insert into whole values (1)")
    conn.execute("insert into item values (2)")
    conn.execute("alter table whole detach partition item")
    conn.execute("insert into item values (3)")
    assert actions(conn) == [("item.created", key) for key in "123"]


def test_rows_of_a_child_are_recorded_once_and_as_its_own(conn: Conn) -> None:
    conn.execute("create table item (id int primary key)")
    conn.execute("create table child (id int primary key, more int)")
    conn.execute("select pgaudit_wf.attach('item')")
    conn.execute("select pgaudit_wf.attach('child')")
    conn.execute("insert into child values (1, 1)")
    conn.execute("alter table child inherit item")
    for _, remedy in findings(conn):
        conn.execute(remedy.encode())
    assert findings(conn) == []
    conn.execute("update item set id = 2")
    assert actions(conn) == [("child.created", "1"), ("child.updated", "2")]
    conn.execute("create table later () inherits (item)")
    for _, remedy in findings(conn):
        conn.execute(remedy.replace("attach('public.later'", "attach('later'").encode())
    assert findings(conn) == []
    conn.execute("insert into later values (5)")
    conn.execute("delete from item where id = 5")
    assert actions(conn)[2:] == [("later.created", "5"), ("later.deleted", "5")]


@pytest.mark.parametrize("attach_first", [True, False])
def test_a_rule_over_the_row_as_a_whole(conn: Conn, attach_first: bool) -> None:
    conn.execute("create table item (id int primary key, n int)")
    conn.execute(
        "create function public.is_big(item) returns boolean language sql as 'select ($1).n > 5'"
    )
    ddl: list[LiteralString] = [
        "select pgaudit_wf.attach('item')",
        "insert into pgaudit_wf.action_rule (resource_type, op, condition, action) values"
        " ('item', 'insert', 'public.is_big(new)', 'item.big_made'),"
        " ('item', 'update', 'public.is_big(new) and not public.is_big(old)', 'item.grown')",
    ]
    for statement in ddl if attach_first else ddl[::-1]:
        conn.execute(statement)
    assert states(conn) == {
        "insert": "A", "update": "A", "delete": "R",
        "batch_insert": "D", "batch_update": "D", "batch_delete": "O",
    }  # fmt: skip
    assert findings(conn) == []
    conn.execute("insert into item values (1, 9), (2, 1)")
    conn.execute("update item set n = 7")
    conn.execute("delete from item")
    assert actions(conn) == [
        ("item.big_made", "1"), ("item.created", "2"), ("item.updated", "1"), ("item.grown", "2"),
        ("item.deleted", "1"), ("item.deleted", "2"),
    ]  # fmt: skip


def test_a_rule_that_fails_costs_the_meaning_and_not_the_write(conn: Conn) -> None:
    conn.execute("create table item (id int primary key)")
    conn.execute(
        "insert into pgaudit_wf.action_rule (resource_type, op, condition, action) values"
        " ('item', 'insert', '1 / (new.id - 2) = 1', 'item.odd'),"
        " ('item', 'delete', '1 / (old.id - 2) = 1', 'item.odd')"
    )
    conn.execute("select pgaudit_wf.attach('item')")
    warned: list[str] = []
    conn.add_notice_handler(lambda d: warned.append(d.message_primary or ""))
    conn.execute("insert into item values (1), (2), (3)")
    conn.execute("delete from item where id <> 1")
    conn.execute("delete from item")
    assert actions(conn) == [
        *[("item.created", key) for key in "123"],
        *[("item.deleted", key) for key in "23"],
        ("item.deleted", "1"),
    ]
    assert len(warned) == 2
    assert "SQLSTATE 22012" in warned[0]


def test_an_error_of_the_log_refuses_the_statement(conn: Conn) -> None:
    conn.execute("create table item (id int primary key)")
    conn.execute("select pgaudit_wf.attach('item')")
    conn.execute("insert into item values (1)")
    conn.execute(
        "alter table pgaudit_wf.security_audit_log add constraint full_up check (false) not valid"
    )
    for statement in ("insert into item values (2)", "update item set id = 3", "delete from item"):
        with pytest.raises(psycopg.errors.CheckViolation):
            conn.execute(statement.encode())
    assert conn.execute("select id from item").fetchall() == [(1,)]


def test_what_is_attached_otherwise_is_recorded_by_row(app_conn: Conn) -> None:
    app_conn.execute("create table item (id int primary key)")
    for change in ("on_failure => 'warn'", "on_failure => 'abort'"):
        app_conn.execute(f"select pgaudit_wf.attach('item', {change})".encode())
        app_conn.execute("insert into item select coalesce(max(id), 0) + 1 from item")
    assert states(app_conn)["batch_insert"] == "O"
    app_conn.execute("select pgaudit_wf.attach('item', on_failure => 'warn')")
    assert states(app_conn) == {"insert": "A", "update": "A", "delete": "A"}
    assert app_conn.execute("select to_regproc('pgaudit_wf.batch_item')").fetchone() == (None,)
    app_conn.execute("insert into item values (3)")
    app_conn.execute("select pgaudit_wf.attach('item', on_failure => 'abort')")
    app_conn.execute("alter event trigger pgaudit_wf_after_ddl disable")
    app_conn.execute("select pgaudit_wf.attach('item')")
    assert states(app_conn) == {"insert": "A", "update": "A", "delete": "A"}
    app_conn.execute("insert into item values (4)")
    assert [key for action, key in actions(app_conn) if action == "item.created"] == list("1234")
    # Versions are made row by row.
    assert set(states(app_conn, "workflow").values()) == {"A"}
    app_conn.execute("select pgaudit_wf.detach('item')")
    assert states(app_conn) == {}
