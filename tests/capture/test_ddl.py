"""Tables change shape while they are written to: no write fails, and no column is missed."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from support.server import Conn

WRITERS = 3


def last_diff(conn: Conn) -> list[dict[str, Any]]:
    row = conn.execute(
        "select diff from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' and captured order by id desc limit 1"
    ).fetchone()
    assert row is not None
    diff: list[dict[str, Any]] = row[0]
    return diff


def paths(diff: list[dict[str, Any]]) -> set[str]:
    return {op["path"] for op in diff}


DDL: list[LiteralString] = [
    "alter table thing add column extra text default 'x'",
    "alter table thing rename column extra to more",
    "alter table thing alter column more type varchar(50)",
    "alter table thing rename column secret to hidden",
    "alter table thing add column volatile float8 default random()",
    "alter table thing alter column n type bigint",
    "alter table thing add column computed bigint generated always as (n * 2) stored",
    "alter table thing drop column volatile",
    "alter table thing alter column more drop default, alter column more type json "
    "using to_json(more)",
    "alter table thing drop column computed, add column last jsonb",
    "alter table thing rename to renamed",
    "create schema apart",
    "alter table renamed set schema apart",
    "alter table apart.renamed alter column hidden type bytea using hidden::bytea",
    "alter table apart.renamed set schema public",
    "alter table renamed rename to thing",
    "alter table thing add constraint positive check (n >= 0) not valid",
    "alter table thing rename column id to key",
]


def test_a_table_is_altered_amid_concurrent_writes(
    db: Conn, secret: Callable[[], str], form: str
) -> None:
    db.execute("create table thing (id int primary key, n int default 0, secret text, org_id text)")
    db.execute("insert into thing select n, 0, 'a secret', 'o' from generate_series(1, 20) as n")
    db.execute("select pgaudit_wf.attach('thing', redact => '{secret}')")
    stop = threading.Event()
    progress = threading.Semaphore(0)
    hidden = secret()

    def write(number: int) -> int:
        changed = 0
        with psycopg.connect(db.info.dsn, autocommit=True) as own:
            while not stop.is_set():
                # Written as an application would that knows the table as it is now.
                names = [
                    name
                    for (name,) in own.execute(
                        "select attname::text from pg_attribute where attnum > 0 and "
                        "attgenerated = '' "
                        "and not attisdropped and attrelid = coalesce(to_regclass('thing'), "
                        "to_regclass('renamed'), to_regclass('apart.renamed'))"
                    ).fetchall()
                ]
                table = "thing"
                for other in ("renamed", "apart.renamed"):
                    if own.execute("select to_regclass(%s)", [other]).fetchone() != (None,):
                        table = other
                key = "key" if "key" in names else "id"
                value = "hidden" if "hidden" in names else "secret"
                try:
                    cursor = own.execute(
                        sql.SQL(
                            "update {} set n = n + 1, {} = {} where {} % {} = {} and n % 3 <> 5"
                        ).format(
                            sql.SQL(table), sql.Identifier(value),
                            sql.Literal(f"{hidden}-{changed}"), sql.Identifier(key), WRITERS,
                            number,
                        )
                    )  # fmt: skip
                except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
                    # The application's own statement came too late, whatever triggers did.
                    if "PL/pgSQL" in str(error.diag.context):
                        raise
                    continue
                changed += cursor.rowcount
                progress.release()
        return changed

    with ThreadPoolExecutor(WRITERS) as pool:
        writers = [pool.submit(write, number) for number in range(WRITERS)]
        try:
            for statement in DDL:
                for _ in range(WRITERS * 2):
                    assert progress.acquire(timeout=60), [
                        w.exception(0) for w in writers if w.done()
                    ]
                db.execute(statement)
            for _ in range(WRITERS * 2):
                assert progress.acquire(timeout=60)
        finally:
            stop.set()
        changed = sum(writer.result(60) for writer in writers)
    assert changed > 0
    assert db.execute("select sum(n) from thing").fetchone() == (changed,)
    [(events, distinct, counted, named)] = db.execute(
        "select count(*), count(distinct id), "
        "count(*) filter (where exists (select from jsonb_array_elements(diff) as op "
        "  where op ->> 'path' = '/n' and (op ->> 'value')::int = (op ->> 'old')::int + 1)), "
        'count(*) filter (where diff @> \'[{"path": "/secret", "value": "[redacted]"}]\' '
        '  or diff @> \'[{"path": "/hidden", "value": "[redacted]"}]\') '
        "from pgaudit_wf.security_audit_log"
        " where action = 'thing.updated'"
    ).fetchall()
    assert (events, distinct, counted, named) == (changed, changed, changed, changed)
    assert db.execute(
        "select count(distinct resource_id) from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]'"
        " and (resource_id is null or resource_id not in (select key::text from thing))"
    ).fetchone() == (0,)
    if form == "compiled":
        assert (
            db.execute("select from pgaudit_wf.doctor() where severity = 'error'").fetchall() == []
        )


def test_no_column_is_missed(db: Conn) -> None:
    db.execute("create table thing (id int primary key, a int)")
    db.execute("select pgaudit_wf.attach('thing')")
    db.execute("insert into thing values (1, 1)")
    steps: list[tuple[LiteralString, LiteralString, set[str]]] = [
        ("alter table thing add b text", "update thing set b = 'x'", {"/b"}),
        ("alter table thing rename b to c", "update thing set c = 'y'", {"/c"}),
        ("alter table thing rename a to b", "update thing set b = 2, c = 'z'", {"/b", "/c"}),
        ("alter table thing alter c type point using null", "update thing set c = '(1,2)'", {"/c"}),
        ("alter table thing alter c type int using 7", "update thing set c = 8", {"/c"}),
        ("alter table thing drop b", "update thing set c = 9", {"/c"}),
        ("alter table thing add b json", "update thing set b = '1'", {"/b"}),
        ("create type pair as (x int, y int)", "update thing set c = 10", {"/c"}),
        ("alter table thing add p pair", "update thing set p = row(1, 2)", {"/p"}),
        ("alter type pair add attribute z json", "update thing set p.z = '[1]'", {"/p"}),
        ("alter type pair add attribute t timestamptz", "update thing set p.t = '2026-01-01'",
         {"/p"}),
        ("alter type pair drop attribute x", "update thing set p.z = '[2]'", {"/p"}),
        ("drop type pair cascade", "update thing set c = 11", {"/c"}),
        ("alter table thing add g int generated always as (c * 2) stored",
         "update thing set c = 12", {"/c", "/g"}),
        ("alter table thing rename id to nr", "update thing set c = 13", {"/c", "/g"}),
        ("alter table thing rename to other", "update other set c = 14", {"/c", "/g"}),
        ("alter table other drop g, add h int, alter c type text", "update other set c = '', h = 1",
         {"/c", "/h"}),
        ("alter table other add v int not null default 5", "update other set v = 6", {"/v"}),
    ]  # fmt: skip
    for ddl, change, changed in steps:
        db.execute(ddl)
        db.execute(change)
        assert paths(last_diff(db)) == changed, ddl
    assert db.execute(
        "select count(*), count(distinct resource_id) from pgaudit_wf.security_audit_log"
        " where action !~ '(^audit|[.]rewritten$)'"
    ).fetchone() == (len(steps) + 1, 1)
    db.execute("delete from other")
    assert set(last_diff(db)[0]["old"]) == {"nr", "c", "b", "h", "v"}


def test_a_type_that_learns_of_time_is_written_alike_in_all_zones(db: Conn) -> None:
    db.execute("create type visit as (place text)")
    db.execute("create domain stay as visit[]")
    db.execute("create table thing (id int primary key, one visit, many stay)")
    db.execute("select pgaudit_wf.attach('thing')")
    db.execute("alter type visit add attribute at timestamptz")
    db.execute("set timezone = 'Asia/Kathmandu'")
    db.execute(
        "insert into thing values (1, row('x', '2026-01-01 00:00+00'), "
        "array[row('x', '2026-01-01 00:00+00')::visit])"
    )
    assert last_diff(db)[0]["value"]["one"]["at"] == "2026-01-01T00:00:00+00:00"
    assert last_diff(db)[0]["value"]["many"][0]["at"] == "2026-01-01T00:00:00+00:00"


def test_ddl_and_writes_of_one_transaction(db: Conn) -> None:
    db.execute("create table thing (id int primary key, a int)")
    db.execute("select pgaudit_wf.attach('thing')")
    with db.transaction():
        db.execute("insert into thing values (1, 1)")
        db.execute("alter table thing add b int")
        db.execute("update thing set b = 1")
        with db.transaction(force_rollback=True):
            db.execute("alter table thing rename b to gone")
            db.execute("update thing set gone = 2")
        db.execute("update thing set b = 3")
        db.execute("alter table thing drop a")
        db.execute("update thing set b = 4")
    diffs = db.execute(
        "select diff from pgaudit_wf.security_audit_log where action !~ '^audit[.]' order by id"
    ).fetchall()
    assert [paths(diff) for (diff,) in diffs] == [{""}, {"/b"}, {"/b"}, {"/b"}]


def test_a_redacted_column_stays_so_under_any_name(db: Conn, secret: Callable[[], str]) -> None:
    db.execute("create table login (id int primary key, note text, token text)")
    db.execute("select pgaudit_wf.attach('login', redact => '{token}')")
    db.execute("insert into login values (1, 'n', %s)", [secret()])
    for number in range(3):
        db.execute(
            sql.SQL("alter table login rename {} to {}").format(
                sql.Identifier(f"token{number or ''}"), sql.Identifier(f"token{number + 1}")
            )
        )
        db.execute(
            sql.SQL("update login set {} = %s, note = %s").format(
                sql.Identifier(f"token{number + 1}")
            ),
            [secret(), f"n{number}"],
        )
        assert {op["path"]: op["value"] for op in last_diff(db)} == {
            f"/token{number + 1}": "[redacted]", "/note": f"n{number}",
        }  # fmt: skip
    db.execute("insert into login values (2, 'm', %s)", [secret()])
    assert last_diff(db)[0]["value"] == {"id": 2, "note": "m", "token3": "[redacted]"}
    db.execute("alter table login alter token3 type bytea using token3::bytea")
    db.execute("update login set token3 = %s::bytea", [secret().encode()])
    db.execute("delete from login")
    assert last_diff(db)[0]["old"]["token3"] == "[redacted]"
    # Whatever bytes are searched for are searched for in hexadecimal too.
    assert db.execute(
        "select count(*) from pgaudit_wf.security_audit_log "
        "where diff::text like '%' || encode('never-to-be-logged', 'hex') || '%'"
    ).fetchone() == (0,)


def test_settings_and_rules_follow_renames(conn: Conn) -> None:
    conn.execute(
        'create table bill (id int primary key, org_id text, title text, "Total" int, '
        "total int, seen int)"
    )
    conn.execute(
        "insert into pgaudit_wf.action_rule (resource_type, op, condition, action, "
        "position) values "
        "('bill', 'update', 'NEW.\"Total\" > old . \"Total\"', 'bill.raised', 10), "
        "('bill', 'update', 'New.TOTAL < old.total', 'bill.lowered', 20), "
        "('bill', 'update', 'old.title <> new.title and new.title <> ''new.titles''', "
        "'bill.titled', 30)"
    )
    conn.execute("select pgaudit_wf.attach('bill', label_column => 'title', ignore => '{seen}')")
    conn.execute("insert into bill values (1, 'o', 't', 1, 1, 1)")
    for old, new in [("id", "Nr"), ("org_id", "org"), ("title", "a title"), ("Total", "gross"),
                     ("total", "net $"), ("seen", "seen_at")]:  # fmt: skip
        conn.execute(
            sql.SQL("alter table bill rename {} to {}").format(
                sql.Identifier(old), sql.Identifier(new)
            )
        )
    assert conn.execute(
        "select id_columns, org_column, label_column, ignore from pgaudit_wf.attached"
    ).fetchone() == (["Nr"], "org", "a title", ["seen_at"])
    assert conn.execute("select condition from pgaudit_wf.action_rule order by id").fetchall() == [
        ("NEW.gross > old.gross",), ('New."net $" < old."net $"',),
        ("old.\"a title\" <> new.\"a title\" and new.\"a title\" <> 'new.titles'",),
    ]  # fmt: skip
    conn.execute("update bill set gross = 2")
    conn.execute('update bill set "net $" = 0')
    conn.execute("update bill set \"a title\" = 'other'")
    conn.execute("update bill set seen_at = 5")
    assert conn.execute(
        "select action, resource_id, org_id, metadata ->> 'label' "
        "from pgaudit_wf.security_audit_log where action !~ '^audit[.]' order by id"
    ).fetchall() == [
        ("bill.created", "1", "o", "t"), ("bill.raised", "1", "o", "t"),
        ("bill.lowered", "1", "o", "t"), ("bill.titled", "1", "o", "other"),
    ]  # fmt: skip


def test_a_rule_over_a_renamed_column_does_not_fail_the_write(owner_dsn: str) -> None:
    with psycopg.connect(owner_dsn, autocommit=True) as owner:
        owner.execute("create table bill (id int primary key, total int)")
        owner.execute(
            "insert into pgaudit_wf.action_rule (resource_type, op, condition, action) "
            "values ('bill', 'update', 'new.total > old.total', 'bill.raised')"
        )
        owner.execute("select pgaudit_wf.attach('bill')")
        owner.execute("insert into bill values (1, 1)")
        owner.execute("update bill set total = 2")
        owner.execute("alter table bill rename total to gross")
        owner.execute("update bill set gross = 3")
        assert owner.execute(
            "select action from pgaudit_wf.security_audit_log"
            " where action !~ '^audit[.]' order by id"
        ).fetchall() == [("bill.created",), ("bill.raised",), ("bill.updated",)]
        assert owner.execute(
            "select subject, problem from pgaudit_wf.doctor() where severity = 'error'"
        ).fetchall() == [
            (
                "public.bill",
                "action rule 1 (update of bill is bill.raised) does not compile for public.bill:"
                " column new.total does not exist",
            ),
        ]


def remedies(conn: Conn, problem: str) -> list[str]:
    """What doctor() prescribes for a problem, and for nothing else of that severity."""
    found = conn.execute(
        "select problem, remedy from pgaudit_wf.doctor() where severity = 'error'"
    ).fetchall()
    assert all(problem in said for said, _ in found), found
    return [remedy for _, remedy in found]


@pytest.mark.parametrize(
    ("key", "ids"), [("ref", "[1]"), ("id", "[null]")], ids=["another key", "no key"]
)
def test_a_column_that_identifies_rows_is_dropped(conn: Conn, key: str, ids: str) -> None:
    conn.execute("create table thing (id int primary key, ref int, v int)")
    conn.execute("select pgaudit_wf.attach('thing', id_columns => array[%s])", [key])
    conn.execute("insert into thing values (1, 1, 1)")
    warned: list[str] = []
    conn.add_notice_handler(lambda notice: warned.append(notice.message_primary or ""))
    conn.execute(sql.SQL("alter table thing drop column {}").format(sql.Identifier(key)))
    lost = f'column "{key}", which identifies its rows, does not exist'
    assert len(warned) == 1
    assert lost in warned[0]
    assert conn.execute(
        "select detail -> 'dropped' ->> 0, detail -> 'switched_off' ->> 0 ~ 'does not exist'"
        " from pgaudit_wf.attachment_history order by id desc limit 1"
    ).fetchone() == (key, True)
    conn.execute("update thing set v = 2")
    conn.execute("delete from thing")
    assert conn.execute(
        "select jsonb_agg(distinct resource_id::int)::text, count(*)"
        " from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' and action ~ 'updated|deleted'"
    ).fetchone() == (ids, 2)
    [remedy] = remedies(conn, lost)
    conn.execute(remedy.encode())
    conn.execute("insert into thing values (2, 2)")
    assert conn.execute(
        "select resource_id is not null from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' order by id desc limit 1"
    ).fetchone() == (True,)
    assert remedies(conn, lost) == []


@pytest.mark.parametrize(
    ("column", "lost", "kept"),
    [
        ("nodes", "no versions are kept", 0),
        ("edges", "no versions are kept", 0),
        ("id", "which identifies its rows", 0),
        ("name", "versions are kept without it", 1),
        ("enabled", "versions are kept without it", 1),
    ],
)
def test_a_column_of_workflows_is_dropped(conn: Conn, column: str, lost: str, kept: int) -> None:
    conn.execute(
        "create table flow (id int primary key, org_id text, name text, enabled boolean,"
        " nodes jsonb default '[]', edges jsonb default '[]', v int)"
    )
    conn.execute("select pgaudit_wf.attach_workflow('flow')")
    warned: list[str] = []
    conn.add_notice_handler(lambda notice: warned.append(notice.message_primary or ""))
    conn.execute(sql.SQL("alter table flow drop column {}").format(sql.Identifier(column)))
    assert len(warned) == 1
    assert lost in warned[0]
    conn.execute("insert into flow (v) values (1)" if column == "id" else
                 "insert into flow (id, v) values (1, 1)")  # fmt: skip
    conn.execute("update flow set v = 2")
    assert conn.execute("select count(*) from pgaudit_wf.workflow_history").fetchone() == (kept,)
    assert conn.execute(
        "select count(*) from pgaudit_wf.security_audit_log where action !~ '^audit[.]'"
    ).fetchone() == (2,)
    for remedy in remedies(conn, lost):
        conn.execute(remedy.encode())
    assert remedies(conn, lost) == []
    conn.execute("insert into flow (id) values (2)")
    assert conn.execute("select count(*) from pgaudit_wf.workflow_history").fetchone() == (
        kept + 1,
    )


def test_a_rule_that_no_longer_compiles_costs_its_meaning_only(db: Conn, form: str) -> None:
    db.execute("create schema apart")
    db.execute("create type apart.state as enum ('draft', 'live', 'archived')")
    db.execute("create type apart.level as enum ('low', 'high')")
    db.execute(
        "create function apart.big(int) returns boolean immutable language sql return $1 > 5"
    )
    db.execute("grant usage on schema apart to public")
    db.execute("create table doc (id int primary key, s apart.state, n int, v int, w int)")
    rules: list[tuple[LiteralString, str]] = [
        ("new.s = 'archived' and old.s <> 'archived'", "doc.archived"),
        ("new.w::text::apart.level = 'high'", "doc.high"),
        ("apart.big(new.v)", "doc.big"),
        ("new.n > 5", "doc.many"),
    ]
    for position, (condition, action) in enumerate(rules):
        db.execute(
            "insert into pgaudit_wf.action_rule (resource_type, op, condition, action, position) "
            "values ('doc', 'update', %s, %s, %s)",
            [condition, action, position],
        )
    db.execute("select pgaudit_wf.attach('doc')")
    db.execute("insert into doc values (1, 'draft', 1, 1)")
    db.execute("update doc set s = 'archived'")
    changes: list[tuple[LiteralString, LiteralString]] = [
        ("alter type apart.state rename value 'archived' to 'closed'", "invalid input value"),
        ("alter type apart.level rename to grade", 'type "apart.level" does not exist'),
        ("drop function apart.big(int)", "function apart.big(integer) does not exist"),
        ("alter table doc drop column n", "column new.n does not exist"),
    ]
    warned: list[str] = []
    db.add_notice_handler(lambda notice: warned.append(notice.message_primary or ""))
    for number, (ddl, problem) in enumerate(changes):
        with db.transaction(force_rollback=True):
            warned.clear()
            db.execute(ddl)
            if form == "compiled":
                assert [problem in warning for warning in warned] == [True]
                assert db.execute(
                    "select detail -> 'switched_off' ->> 0 from pgaudit_wf.attachment_history"
                    " where detail ? 'switched_off'"
                ).fetchall() == [(warned[0],)]
            # Another session has no plan from before.
            db.execute("discard plans")
            db.execute("update doc set id = id + 10")
            db.execute("delete from doc")
            assert db.execute(
                "select action from pgaudit_wf.security_audit_log"
                " where action !~ '^audit[.]' order by id desc limit 2"
            ).fetchall() == [("doc.deleted",), ("doc.updated",)], ddl
            [(rule_id, found)] = db.execute(
                "select rule_id, problem from pgaudit_wf.broken_rules()"
            ).fetchall()
            assert problem in found
            assert number == rule_id - min(
                i for (i,) in db.execute("select id from pgaudit_wf.action_rule").fetchall()
            )
            assert db.execute(
                "select count(*) from pgaudit_wf.doctor() where severity = 'error'"
                " and subject = 'public.doc' and problem = %s",
                [found],
            ).fetchone() == (1,)


def test_a_dropped_table_is_forgotten_with_its_function(conn: Conn) -> None:
    conn.execute("create schema shop create table item (id int primary key)")
    conn.execute("select pgaudit_wf.attach('shop.item')")
    conn.execute("insert into shop.item values (1)")
    conn.execute("drop schema shop cascade")
    assert conn.execute("select from pgaudit_wf.attached").fetchall() == []
    assert conn.execute("select to_regproc('pgaudit_wf.capture_shop_item')").fetchone() == (None,)
    assert conn.execute(
        "select target, change from pgaudit_wf.attachment_history order by id desc limit 1"
    ).fetchone() == ("shop.item", "dropped")
    assert conn.execute(
        "select count(*) from pgaudit_wf.security_audit_log where action !~ '^audit[.]'"
    ).fetchone() == (1,)


def test_disabled_triggers_stay_disabled_through_ddl(conn: Conn) -> None:
    conn.execute("create table thing (id int primary key)")
    conn.execute("select pgaudit_wf.attach('thing')")
    conn.execute('alter table thing disable trigger "!pgaudit_wf_batch_insert"')
    conn.execute("alter table thing add v int")
    conn.execute("insert into thing values (1)")
    conn.execute("update thing set v = 1")
    assert conn.execute(
        "select action from pgaudit_wf.security_audit_log where action !~ '^audit[.]'"
    ).fetchall() == [("thing.updated",)]


@pytest.mark.parametrize(
    ("ddl", "problem", "recorded"),
    [
        ("disable trigger all", "is disabled", 0),
        ("disable trigger user", "is disabled", 0),
        ("disable trigger all, enable trigger all", "calls itself a replica", 1),
        ("enable trigger user", "calls itself a replica", 1),
        ("enable replica trigger {}", "fires in replicas only", 0),
    ],
)
def test_whoever_switches_triggers_is_found(
    db: Conn, form: str, ddl: str, problem: str, recorded: int
) -> None:
    ddl = ddl.format('"!pgaudit_wf_batch_insert"' if form == "compiled" else '"!pgaudit_wf_insert"')
    db.execute("create table thing (id int primary key)")
    db.execute("select pgaudit_wf.attach('thing')")
    db.execute(f"alter table thing {ddl}".encode())
    db.execute("insert into thing values (1)")
    events = "select count(*) from pgaudit_wf.security_audit_log where action !~ '^audit[.]'"
    assert db.execute(events).fetchone() == (recorded,)
    for remedy in remedies(db, problem):
        db.execute(remedy.encode())
    assert remedies(db, problem) == []
    db.execute("insert into thing values (2)")
    assert db.execute(events).fetchone() == (recorded + 1,)


def shown(conn: Conn, resource_type: str) -> str:
    row = conn.execute(
        "select coalesce(string_agg(diff::text, ' '), '') from pgaudit_wf.security_audit_log"
        " where resource_type = %s",
        [resource_type],
    ).fetchone()
    assert row is not None
    return str(row[0])


REPLACED: dict[str, list[LiteralString]] = {
    "expand and contract": [
        "alter table api add column secret_new text",
        "alter table api drop column secret",
        "alter table api rename column secret_new to secret",
        "update api set secret = 'IN-THE-CLEAR'",
    ],
    "dropped and made again": [
        "alter table api drop column secret",
        "alter table api add column secret text",
        "update api set secret = 'IN-THE-CLEAR'",
        "alter table api drop column secret, add column secret bytea",
        "update api set secret = 'IN-THE-CLEAR'",
    ],
    "renamed away": [
        "update api set secret = 'IN-THE-CLEAR'",
        "alter table api rename column secret to secret_old",
        "alter table api add column secret text",
        "update api set secret = 'IN-THE-CLEAR', title = 'u'",
        "alter table api rename column secret to third",
        "update api set third = 'IN-THE-CLEAR', title = 'v'",
        "alter table api add column secret text",
        "update api set secret = 'IN-THE-CLEAR', title = 'w'",
    ],
}


@pytest.mark.parametrize("way", REPLACED)
def test_a_column_of_a_redacted_name_is_never_in_the_clear(db: Conn, way: str) -> None:
    db.execute("create table api (id int primary key, org_id text, secret text, title text)")
    db.execute("select pgaudit_wf.attach('api', redact => '{secret}')")
    db.execute("insert into api values (1, 'o', 's', 't')")
    for statement in REPLACED[way]:
        db.execute(statement)
    db.execute("delete from api")
    assert "IN-THE-CLEAR" not in shown(db, "api")
    assert bytes("IN-THE-CLEAR", "ascii").hex() not in shown(db, "api")
    # Attached again without a word about it, it stays so.
    db.execute("select pgaudit_wf.attach('api', on_failure => 'abort')")
    db.execute("insert into api (id, secret) values (2, 'IN-THE-CLEAR')")
    assert "IN-THE-CLEAR" not in shown(db, "api")


def test_settings_hold_again_when_a_column_comes_back(db: Conn, form: str) -> None:
    db.execute("create table api (id int primary key, org_id text, seen int, title text)")
    db.execute("select pgaudit_wf.attach('api', ignore => '{seen}', label_column => 'title')")
    for column in ("org_id", "seen", "title"):
        db.execute(sql.SQL("alter table api drop column {}").format(sql.Identifier(column)))
    db.execute("insert into api values (1)")
    if form == "compiled":
        found = db.execute(
            "select problem from pgaudit_wf.doctor() where severity = 'warning' order by 1"
        ).fetchall()
        assert found == [
            ('column "org_id", named in org_column, does not exist',),
            ('column "seen", named in ignore, does not exist',),
            ('column "title", named in label_column, does not exist',),
        ]
    db.execute("alter table api add column org_id text, add column seen int, add column title text")
    db.execute("update api set org_id = 'o', seen = 1, title = 't'")
    db.execute("update api set seen = 2")
    assert db.execute(
        "select action, org_id, metadata ->> 'label' from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' order by id"
    ).fetchall() == [("api.created", None, None), ("api.updated", "o", "t")]


def test_ddl_that_changes_nothing_for_the_trigger_leaves_it_alone(conn: Conn) -> None:
    conn.execute("create table t (id int primary key, v int)")
    conn.execute("select pgaudit_wf.attach('t')")
    written = "select xmin, ctid from pg_proc where proname = 'capture_t'"
    before = conn.execute(written).fetchone()
    conn.execute("alter table t add constraint positive check (v > 0)")
    conn.execute("alter table t alter column v set not null")
    conn.execute("alter table t rename to u")
    assert conn.execute(written).fetchone() == before
    conn.execute("alter table u alter column v type bigint")
    assert conn.execute(written).fetchone() != before


def test_partitions_are_made_at_once_by_many(conn: Conn) -> None:
    conn.execute("create table p (id int primary key) partition by list (id)")
    conn.execute("select pgaudit_wf.attach('p')")

    def make(number: int) -> None:
        with psycopg.connect(conn.info.dsn, autocommit=True) as own:
            own.execute(
                sql.SQL("create table {} partition of p for values in ({})").format(
                    sql.Identifier(f"p{number}"), number
                )
            )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(24)))
    conn.execute("insert into p select n from generate_series(0, 23) as n")
    conn.execute("truncate p")
    assert conn.execute(
        "select action, count(*) from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' group by 1 order by 1"
    ).fetchall() == [("p.created", 24), ("p.truncated", 24)]


def test_an_attached_table_becomes_a_partition_of_another(db: Conn, form: str) -> None:
    columns = "(id int, k int, note text, secret text, primary key (id, k))"
    db.execute(f"create table p {columns} partition by list (k)".encode())
    db.execute("create table p1 partition of p for values in (1)")
    db.execute(f"create table own {columns}".encode())
    db.execute(f"create table tree {columns} partition by list (k)".encode())
    db.execute("create table tree3 partition of tree for values in (3)")
    db.execute("select pgaudit_wf.attach('p')")
    db.execute("select pgaudit_wf.attach(t::regclass, redact => '{secret}')"
               " from unnest('{own,tree}'::text[]) as t")  # fmt: skip
    db.execute("alter table p attach partition own for values in (2)")
    db.execute("alter table p attach partition tree for values in (3, 4)")
    db.execute("create table tree4 partition of tree for values in (4)")
    db.execute("insert into p select k, k, 'n', 'IN-THE-CLEAR' from generate_series(2, 4) as k")
    db.execute("update p set note = 'm'")
    db.execute("delete from p")
    db.execute("truncate own")
    events = (
        "select resource_type, count(*) from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' group by 1 order by 1"
    )
    folded = [("p", 10)]
    apart = [("own", 4), ("tree", 6)]
    assert db.execute(events.encode()).fetchall() == (folded if form == "compiled" else apart)
    assert "IN-THE-CLEAR" not in shown(db, "p") + shown(db, "own") + shown(db, "tree")
    if form == "generic":
        return
    assert db.execute("select target::text from pgaudit_wf.attached").fetchall() == [("p",)]
    assert remedies(db, "") == []
    db.execute("alter table p detach partition own")
    [remedy] = remedies(db, "it is not recorded")
    db.execute(remedy.encode())
    db.execute("insert into own values (5, 5, 'n', 'IN-THE-CLEAR')")
    assert db.execute(events.encode()).fetchall() == [("own", 1), *folded]
    assert "IN-THE-CLEAR" not in shown(db, "own")


def test_a_typed_table_is_followed_through_its_type(conn: Conn) -> None:
    conn.execute("create type ct as (id int, org_id text, note text, secret text)")
    conn.execute("create table ty of ct (primary key (id))")
    conn.execute("select pgaudit_wf.attach('ty', redact => '{secret}')")
    conn.execute("alter type ct add attribute extra text cascade")
    conn.execute("alter type ct rename attribute secret to hidden cascade")
    conn.execute("insert into ty values (1, 'o', 'n', 's', 'e')")
    conn.execute("alter type ct drop attribute note cascade")
    conn.execute("update ty set extra = 'f', hidden = 't'")
    assert [paths(diff) for (diff,) in conn.execute(
        "select diff from pgaudit_wf.security_audit_log where action !~ '^audit[.]' order by id"
    ).fetchall()] == [{""}, {"/extra", "/hidden"}]  # fmt: skip
    assert '"s"' not in shown(conn, "ty")


def test_the_default_of_an_added_column_can_be_anything(conn: Conn) -> None:
    conn.execute("create domain shape as box")
    conn.execute("create type mood as enum ('good')")
    conn.execute("create table t (id int primary key, token text)")
    conn.execute("select pgaudit_wf.attach('t', redact => '{token}')")
    conn.execute("insert into t values (1, 's')")
    conn.execute("alter table t drop column token")
    for ddl in (
        "add column token text default 'IN-THE-CLEAR'",
        "add column c char(5) default 'abcde'",
        "add column cs char(5)[] default '{abcde}'",
        "add column b bit(3) default B'101'",
        "add column bx box default '(1,1),(0,0)'",
        "add column s shape default '(1,1),(0,0)'",
        'add column j json default \'{"a": "\\u0000"}\'',
        "add column k json default '{\"a\": 1e999999}'",
        "add column m mood default 'good'",
        "add column n numeric default 12345678901234567.890123456789",
    ):
        conn.execute(f"alter table t {ddl}".encode())
    row = conn.execute("select pgaudit_wf.row_as_of('t', '1')::text").fetchone()
    assert row is not None
    for part in ('"c": "abcde"', '"cs": ["abcde"]', '"b": "101"', '"m": "good"',
                 '"n": 12345678901234567.890123456789', '"token": "[redacted]"'):  # fmt: skip
        assert part in row[0]
    history = conn.execute("select detail::text from pgaudit_wf.attachment_history").fetchall()
    assert "IN-THE-CLEAR" not in str(history)


def test_keys_of_fixed_length_are_found(conn: Conn) -> None:
    conn.execute("create table c (code char(8) primary key, v int)")
    conn.execute("create table b (code bit(4) primary key, v int)")
    for table, key in (("c", "abc"), ("b", "1010")):
        name = sql.Identifier(table)
        conn.execute(sql.SQL("insert into {} values ({}, 1)").format(name, sql.Literal(key)))
        conn.execute("select pgaudit_wf.attach(%s)", [table])
        conn.execute(sql.SQL("update {} set v = 2").format(name))
        assert conn.execute(
            "select pgaudit_wf.row_as_of(%s, %s) ->> 'v'", [table, key]
        ).fetchone() == ("2",)


def test_a_secret_that_takes_a_known_name_stays_one(db: Conn) -> None:
    db.execute("create table g (id int primary key, org_id text, note text, secret text)")
    db.execute("select pgaudit_wf.attach('g', redact => '{secret}', label_column => 'note')")
    db.execute("alter table g rename column note to note2")
    db.execute("alter table g rename column secret to note")
    db.execute("insert into g values (1, 'o', 'n', 'IN-THE-CLEAR')")
    db.execute("update g set note = 'IN-THE-CLEAR, too'")
    db.execute("alter table g rename column org_id to org2")
    db.execute("alter table g rename column note to org_id")
    db.execute("update g set org_id = 'IN-THE-CLEAR again'")
    db.execute("delete from g")
    found = db.execute(
        "select l::text from pgaudit_wf.security_audit_log as l"
        " where l.action !~ '^audit[.]' and l::text ~ 'IN-THE-CLEAR'"
    ).fetchall()
    assert found == []


def test_foreign_partitions_are_in_nobodys_way(conn: Conn) -> None:
    conn.execute("create foreign data wrapper nowhere")
    conn.execute("create server nowhere foreign data wrapper nowhere")
    conn.execute("create table p (id int, org_id text) partition by list (id)")
    conn.execute("create foreign table p1 partition of p for values in (1) server nowhere")
    conn.execute("create table p2 partition of p for values in (2)")
    conn.execute("select pgaudit_wf.attach('p', id_columns => '{id}')")
    conn.execute("create foreign table p3 (id int, org_id text) server nowhere")
    conn.execute("alter table p attach partition p3 for values in (3)")
    conn.execute("insert into p values (2, 'o')")
    assert conn.execute("select from pgaudit_wf.doctor() where severity = 'error'").fetchall() == []


KEYWORDS = [
    *("by", "begin", "declare", "execute", "foreach", "if", "loop", "strict", "while"),
    *("new", "old", "r", "record", "setting", "value", 'q"uote', "line\nbreak", "%I", "$1"),
]


def test_columns_may_be_called_anything(db: Conn) -> None:
    columns = [sql.Identifier(name) for name in KEYWORDS]
    db.execute(
        sql.SQL("create table odd (id int primary key, {})").format(
            sql.SQL(", ").join(sql.SQL("{} text").format(column) for column in columns)
        )
    )
    db.execute("select pgaudit_wf.attach('odd', redact => array['if'], label_column => 'by')")
    db.execute("insert into odd (id) values (1)")
    for column in columns:
        db.execute(sql.SQL("update odd set {} = 'x'").format(column))
    db.execute("delete from odd")
    assert db.execute(
        "select count(*) from pgaudit_wf.security_audit_log where action !~ '^audit[.]'"
    ).fetchone() == (len(KEYWORDS) + 2,)


def test_many_columns_take_no_minutes(conn: Conn) -> None:
    conn.execute(
        sql.SQL("create table wide (id int primary key, {})").format(
            sql.SQL(", ").join(
                sql.SQL("{} int").format(sql.Identifier(f"c{n}")) for n in range(400)
            )
        )
    )
    conn.execute("set statement_timeout = '20s'")
    conn.execute("select pgaudit_wf.attach('wide', ignore => '{c7}')")
    conn.execute("alter table wide add column late int")
    conn.execute("insert into wide (id, c1) values (1, 1)")
    conn.execute("update wide set c1 = 2, c7 = 3")
    assert paths(last_diff(conn)) == {"/c1"}
