"""Nobody's code runs with more rights than they have; nobody needs rights of ours to go on."""

import contextlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql

from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.errors import MigrationError, RuleError, translated
from pgaudit_wf.schema.migrate import migrate
from support.server import Conn

_number = itertools.count()


@contextmanager
def a_role(server: DevServer, database: str) -> Iterator[str]:
    """A role without any right, with a schema of its own of the same name."""
    name = f"wf_stranger_{next(_number)}"
    identifier = sql.Identifier(name)
    with psycopg.connect(server.dsn(database), autocommit=True) as admin:
        admin.execute(sql.SQL("create role {} login").format(identifier))
        admin.execute(sql.SQL("create schema {0} authorization {0}").format(identifier))
        yield name
        admin.execute("reset role")
        for (target,) in admin.execute(
            "select target::oid from pgaudit_wf.attachment as a join pg_class as c on c.oid ="
            " a.target where c.relowner = %s::regrole",
            [name],
        ).fetchall():
            admin.execute("select pgaudit_wf.detach(%s)", [target])
        admin.execute(sql.SQL("drop owned by {} cascade").format(identifier))
        admin.execute(sql.SQL("drop role {}").format(identifier))


@pytest.fixture
def stranger(db: Conn, server: DevServer, form: str) -> Iterator[str]:
    with a_role(server, db.info.dbname) as name:
        if form == "generic":
            # Who attaches somebody's table there must be a member of its owner.
            with psycopg.connect(server.dsn(), autocommit=True) as admin:
                admin.execute(
                    sql.SQL("grant {} to {}").format(
                        sql.Identifier(name), sql.Identifier(db.info.user)
                    )
                )
        yield name


@contextmanager
def acting_as(db: Conn, name: str) -> Iterator[None]:
    db.execute(sql.SQL("set role {}").format(sql.Identifier(name)))
    db.execute(sql.SQL("set search_path = {}, public").format(sql.Identifier(name)))
    yield
    db.execute("reset search_path")
    db.execute("reset role")


def lay_traps(db: Conn, name: str) -> None:
    """Define, as the stranger, code of every kind that a careless trigger or hook would run."""
    schema = sql.Identifier(name)
    for statement in (
        "create table seen (who text)",
        "grant all on seen to public",
        "grant usage on schema {0} to public",
        "create function spy() returns text language plpgsql as $$ begin"
        " insert into {0}.seen values (current_user); return 'x'; end $$",
        "create function approve(text) returns boolean language plpgsql as $$ begin"
        " perform {0}.spy(); return true; end $$",
        "create domain careful as text check ({0}.approve(value))",
        "create type mood as enum ('good', 'bad')",
        "create type pair as (a int, m mood)",
        "create function mood_json(mood) returns json language sql as"
        " $$ select to_json({0}.spy()) $$",
        "create function mood_text(mood) returns text language sql as $$ select {0}.spy() $$",
        "create function moods_text(mood[]) returns text language sql as $$ select {0}.spy() $$",
        "create function pair_text(pair) returns text language sql as $$ select {0}.spy() $$",
        "create function pair_json(pair) returns json language sql as"
        " $$ select to_json({0}.spy()) $$",
        "create function to_mood(text) returns mood language plpgsql as $$ begin"
        " perform {0}.spy(); return enum_first(null::{0}.mood); end $$",
    ):
        db.execute(sql.SQL(statement).format(schema))


CASTS: list[LiteralString] = [
    "create cast (mood as json) with function mood_json(mood)",
    "create cast (mood as text) with function mood_text(mood) as implicit",
    "create cast (mood[] as text) with function moods_text(mood[]) as implicit",
    "create cast (pair as text) with function pair_text(pair) as implicit",
    "create cast (pair as json) with function pair_json(pair)",
    "create cast (text as mood) with function to_mood(text) as implicit",
]


def who_ran(db: Conn, name: str) -> set[str]:
    found = db.execute(
        sql.SQL("select distinct who from {}").format(sql.Identifier(name, "seen"))
    ).fetchall()
    return {who for (who,) in found}


@pytest.mark.parametrize("traps_first", [True, False], ids=["before", "after"])
def test_types_defaults_and_casts_run_as_nobody_else(
    db: Conn, stranger: str, form: str, traps_first: bool
) -> None:
    with acting_as(db, stranger):
        lay_traps(db, stranger)
        if traps_first:
            for cast in CASTS:
                db.execute(cast)
        db.execute(
            "create table doc (id mood primary key, org_id mood, label mood, m mood, ms mood[],"
            " p pair, c careful, secret mood, unread mood, plain int)"
        )
    db.execute(
        "select pgaudit_wf.attach(%s::regclass, label_column => 'label', redact => '{secret}',"
        " ignore => '{unread}')",
        [f"{stranger}.doc"],
    )
    db.execute(
        "insert into pgaudit_wf.action_rule (resource_type, op, condition, action)"
        " values ('doc', 'update', 'new.plain > 5', 'doc.big')"
    )
    with acting_as(db, stranger):
        if not traps_first:
            for cast in CASTS:
                db.execute(cast)
        db.execute("alter table doc add column late careful default 'x'")
        db.execute("alter table doc add column later mood default 'bad'")
        db.execute("alter table doc alter column later set default to_mood('x')")
        db.execute(
            "insert into doc (id, org_id, label, m, ms, p, secret, unread, plain) values"
            " ('good', 'good', 'good', 'good', '{good}', row(1, 'good'), 'bad', 'bad', 1)"
        )
        db.execute(
            "update doc set m = 'bad', ms = '{bad}', p = row(1, 'bad'), label = 'bad', plain = 6,"
            " secret = 'good', unread = 'good', org_id = 'bad'"
        )
        db.execute("update doc set id = 'bad'")
        db.execute("delete from doc")
        db.execute("truncate doc")
    assert who_ran(db, stranger) <= {stranger}
    events = db.execute(
        "select action, resource_id, org_id, metadata ->> 'label', diff"
        " from pgaudit_wf.security_audit_log where action !~ '^audit[.]' and resource_type = 'doc'"
        " and action <> 'doc.rewritten' order by id"
    ).fetchall()
    actions = [(action, resource_id, org, label) for action, resource_id, org, label, _ in events]
    assert actions == [
        ("doc.created", "good", "good", "good"),
        ("doc.big", "good", "bad", "bad"),
        ("doc.big", "bad", "bad", "bad"),
        ("doc.deleted", "bad", "bad", "bad"),
        ("doc.truncated", None, None, None),
    ]
    inserted = events[0][4][0]["value"]
    assert inserted["m"] == "good"
    assert inserted["ms"] == ["good"]
    assert inserted["p"] == {"a": 1, "m": "good"}
    assert inserted["secret"] == "[redacted]"
    assert "unread" not in inserted
    assert {op["path"]: (op["old"], op["value"]) for op in events[1][4]} == {
        "/org_id": ("good", "bad"),
        "/label": ("good", "bad"),
        "/m": ("good", "bad"),
        "/ms": (["good"], ["bad"]),
        "/p": ({"a": 1, "m": "good"}, {"a": 1, "m": "bad"}),
        "/secret": ("[redacted]", "[redacted]"),
        "/plain": (1, 6),
    }
    # Reading it back runs nothing either, whoever reads.
    db.execute("select pgaudit_wf.row_as_of(%s::regclass, 'good')", [f"{stranger}.doc"])
    db.execute("select * from pgaudit_wf.audit_trail()")
    db.execute("select * from pgaudit_wf.doctor()")
    assert who_ran(db, stranger) <= {stranger}


NAMES = ['q"uote', "line\nbreak", "x\ndeclare y text := spy();--", "do $$ x $$", "a' || spy() || '"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_names(db: Conn, stranger: str, name: str) -> None:
    """Nothing that a table or column is called becomes code in what is written for it."""
    workflow, run = sql.Identifier(f"w {name}"), sql.Identifier(f"r {name}")
    column = sql.Identifier(f"c {name}")
    with acting_as(db, stranger):
        lay_traps(db, stranger)
        db.execute(
            sql.SQL(
                "create table {} (id int primary key, org_id text, name text, enabled boolean,"
                " nodes jsonb, edges jsonb, {} text)"
            ).format(workflow, column)
        )
        db.execute(
            sql.SQL(
                "create table {} (id int primary key, workflow_id int, org_id text,"
                " executed_workflow_hash text, triggered_by_credential_type text,"
                " triggered_by_credential_label text)"
            ).format(run)
        )
    relation = "select oid from pg_class where relname = %s and relkind = 'r'"
    [(target,)] = db.execute(relation, [f"w {name}"]).fetchall()
    [(run_target,)] = db.execute(relation, [f"r {name}"]).fetchall()
    db.execute(
        "insert into pgaudit_wf.org_limit (resource_type, max_count) values (%s, 3)",
        [f"t {name}"],
    )
    db.execute(
        "select pgaudit_wf.attach_workflow(%s, resource_type => %s, redact => array[%s])",
        [target, f"t {name}", f"c {name}"],
    )
    db.execute("select pgaudit_wf.attach_execution(%s, %s)", [run_target, target])
    renamed = sql.Identifier(f"n {name}")
    with acting_as(db, stranger):
        db.execute(sql.SQL("alter table {} rename to {}").format(workflow, renamed))
        db.execute(
            sql.SQL("insert into {} values (1, 'o', 'n', true, '[]', '[]', 's')").format(renamed)
        )
        db.execute(sql.SQL("update {} set {} = 't', name = 'm'").format(renamed, column))
        db.execute(sql.SQL("insert into {} (id, workflow_id) values (1, 1)").format(run))
        db.execute(sql.SQL("delete from {}").format(renamed))
    assert who_ran(db, stranger) == set()
    assert db.execute(
        "select action from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' and resource_type = %s order by id",
        [f"t {name}"],
    ).fetchall() == [(f"t {name}.created",), (f"t {name}.updated",), (f"t {name}.deleted",)]
    db.execute("select pgaudit_wf.detach_execution(%s)", [run_target])
    db.execute("delete from pgaudit_wf.org_limit")


SWITCHES = ["pgaudit_wf.compiling", "pgaudit_wf.restoring"]


@pytest.mark.parametrize("switch", SWITCHES)
def test_no_setting_switches_following_off(conn: Conn, switch: str) -> None:
    conn.execute("create table doc (id int primary key, v text)")
    conn.execute("select pgaudit_wf.attach('doc', redact => '{v}')")
    conn.execute("select set_config(%s, 'on', false)", [switch])
    conn.execute("alter table doc rename v to w")
    conn.execute("insert into doc values (1, 'secret')")
    assert conn.execute(
        "select diff -> 0 -> 'value' ->> 'w' from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]'"
    ).fetchone() == ("[redacted]",)


def test_everything_belongs_to_a_role_that_can_do_nothing_else(conn: Conn) -> None:
    assert (
        conn.execute(
            "select rolsuper, rolcanlogin, rolcreaterole, rolcreatedb, rolreplication,"
            " rolbypassrls, exists (select from pg_auth_members where member = r.oid)"
            " from pg_roles as r where rolname = 'pgaudit_wf_owner'"
        ).fetchone()
        == (False,) * 7
    )
    conn.execute("create table doc (id int primary key, org_id text)")
    conn.execute("insert into pgaudit_wf.org_limit (resource_type, max_count) values ('doc', 9)")
    conn.execute("select pgaudit_wf.attach('doc')")
    assert (
        conn.execute(
            """
            select 'relation', oid::regclass::text, relowner::regrole::text from pg_class
            where relnamespace = 'pgaudit_wf'::regnamespace
                and relowner <> 'pgaudit_wf_owner'::regrole
            union all
            select 'function', oid::regprocedure::text, proowner::regrole::text from pg_proc
            where pronamespace = 'pgaudit_wf'::regnamespace
                and proowner <> 'pgaudit_wf_owner'::regrole
            union all
            select 'type', oid::regtype::text, typowner::regrole::text from pg_type
            where typnamespace = 'pgaudit_wf'::regnamespace
                and typowner <> 'pgaudit_wf_owner'::regrole
            union all
            select 'schema', nspname, nspowner::regrole::text from pg_namespace
            where nspname = 'pgaudit_wf' and nspowner <> 'pgaudit_wf_owner'::regrole
            """
        ).fetchall()
        == []
    )


def test_doctor_names_functions_that_a_superuser_owns(conn: Conn) -> None:
    conn.execute("alter function pgaudit_wf._note_generation() owner to postgres")
    [(problem, remedy)] = conn.execute(
        "select problem, remedy from pgaudit_wf.doctor()"
        " where severity = 'error' and subject = 'pgaudit_wf._note_generation()'"
    ).fetchall()
    assert problem == "it runs with the rights of postgres, a superuser"
    conn.execute(remedy)
    assert conn.execute("select from pgaudit_wf.doctor() where severity = 'error'").fetchall() == []


def test_an_owner_with_too_many_rights_is_refused(server: DevServer, empty_dsn: str) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        if admin.execute("select to_regrole('pgaudit_wf_owner')").fetchone() == (None,):
            admin.execute("create role pgaudit_wf_owner")
        admin.execute("alter role pgaudit_wf_owner createdb")
        try:
            with pytest.raises(
                MigrationError, match="more rights than it may have: createdb"
            ) as caught:
                migrate(empty_dsn)
            assert "PA009" in str(caught.value)
        finally:
            admin.execute("alter role pgaudit_wf_owner nocreatedb")


ORDINARY: list[LiteralString] = [
    "create table t (id int primary key)",
    "alter table t add column x int",
    "alter table t rename column x to y",
    "alter table t alter column y type bigint",
    "alter table t rename to u",
    "alter table u drop column y",
    "create type mood as enum ('a')",
    "alter type mood add value 'b'",
    "alter type mood rename value 'a' to 'c'",
    "alter type mood rename to feeling",
    "create type pair as (a int)",
    "create table holder (p pair)",
    "alter type pair add attribute b int cascade",
    "create domain d as int check (value > 0)",
    "create function f(feeling) returns json language sql as 'select null::json'",
    "create cast (feeling as json) with function f(feeling)",
    "create temp table scratch (i int)",
    "alter table scratch add column j int",
    "create view v as select * from u",
    "create materialized view m as select * from u",
    "create table part (id int) partition by list (id)",
    "create table part_1 partition of part for values in (1)",
    "create table part_2 (id int)",
    "alter table part attach partition part_2 for values in (2)",
    "alter table part detach partition part_2",
    "truncate part, u",
    "drop table scratch",
    "drop view v",
    "drop materialized view m",
    "drop table u, part, part_2, holder",
    "drop type feeling cascade",
]


def test_ddl_of_an_ordinary_role_goes_on_as_before(
    db: Conn, stranger: str, server: DevServer
) -> None:
    with psycopg.connect(server.dsn(db.info.dbname, stranger), autocommit=True) as own:
        own.execute(sql.SQL("set search_path = {}").format(sql.Identifier(stranger)))
        for statement in ORDINARY:
            own.execute(statement)


def test_the_owner_of_an_attached_table_alters_it(db: Conn, stranger: str, form: str) -> None:
    with acting_as(db, stranger):
        db.execute(
            "create table job (id int, q int, v int, primary key (id, q)) partition by list (q)"
        )
        db.execute("create table j1 partition of job for values in (1)")
    db.execute("select pgaudit_wf.attach(%s::regclass)", [f"{stranger}.job"])
    with acting_as(db, stranger):
        db.execute("alter table job add column w int")
        db.execute("create table j2 partition of job for values in (2)")
        db.execute("create table j3 (like job including all)")
        db.execute("alter table job attach partition j3 for values in (3)")
        db.execute("insert into job values (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)")
        if form == "compiled":
            db.execute("truncate j3")
        db.execute("alter table job detach partition j2")
        db.execute("update j2 set w = 7")
        db.execute("truncate j2")
    expected = [("job.created", f"[{n}, {n}]") for n in (1, 2, 3)]
    assert db.execute(
        "select action, resource_id from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' order by id"
    ).fetchall() == [*expected, *([("job.truncated", None)] if form == "compiled" else [])]
    if form == "compiled":
        assert db.execute("select * from pgaudit_wf.doctor()").fetchall() == []


def test_a_new_owner_makes_partitions_and_the_old_one_lets_go(
    conn: Conn, server: DevServer
) -> None:
    with a_role(server, conn.info.dbname) as first, a_role(server, conn.info.dbname) as second:
        with acting_as(conn, first):
            conn.execute("create table job (id int primary key) partition by list (id)")
        conn.execute("select pgaudit_wf.attach(%s::regclass)", [f"{first}.job"])
        conn.execute(
            sql.SQL("alter table {} owner to {}").format(
                sql.Identifier(first, "job"), sql.Identifier(second)
            )
        )
        conn.execute(
            sql.SQL("grant all on schema {} to {}").format(
                sql.Identifier(first), sql.Identifier(second)
            )
        )
        with acting_as(conn, second):
            conn.execute(
                sql.SQL("create table j1 partition of {} for values in (1)").format(
                    sql.Identifier(first, "job")
                )
            )
        assert conn.execute(
            "select count(*) from pg_proc as p, aclexplode(proacl) as acl"
            " where proname like 'capture%%job' and acl.grantee = %s::regrole",
            [first],
        ).fetchone() == (0,)
        conn.execute("select pgaudit_wf.detach(%s::regclass)", [f"{first}.job"])
        conn.execute(sql.SQL("drop table {}").format(sql.Identifier(first, "job")))


DEFAULTS: list[LiteralString] = [
    "alter default privileges {role} grant all on tables to {grantee}",
    "alter default privileges {role} grant all on sequences to {grantee}",
    "alter default privileges {role} grant execute on functions to {grantee}",
]


@pytest.mark.parametrize("for_owner", [False, True], ids=["installer's", "owner's"])
def test_default_privileges_open_nothing(
    server: DevServer, empty_dsn: str, for_owner: bool
) -> None:
    name = f"wf_given_{next(_number)}"
    with psycopg.connect(empty_dsn, autocommit=True) as db:
        db.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
        db.execute(
            "do $$ begin create role pgaudit_wf_owner;"
            " exception when duplicate_object then null; end $$"
        )
        role = sql.SQL("for role pgaudit_wf_owner" if for_owner else "")
        for statement in DEFAULTS:
            db.execute(sql.SQL(statement).format(role=role, grantee=sql.Identifier(name)))
        migrate(empty_dsn)
        db.execute("create table t (id int primary key, org_id text, v text)")
        db.execute("select pgaudit_wf.attach('t')")
        db.execute("select pgaudit_wf.add_log_partition('2031-01-01')")
        held = db.execute(
            """
            select oid::regclass::text from pg_class
            where relnamespace = 'pgaudit_wf'::regnamespace and relkind in ('r', 'p', 'v', 'm')
                and has_table_privilege(%(name)s, oid, 'select, insert, update, delete, truncate')
            union all
            select oid::regprocedure::text from pg_proc
            where pronamespace = 'pgaudit_wf'::regnamespace
                and has_function_privilege(%(name)s, oid, 'execute')
            union all
            select oid::regclass::text from pg_class
            where relnamespace = 'pgaudit_wf'::regnamespace and relkind = 'S'
                and case relkind when 'S'
                    then has_sequence_privilege(%(name)s, oid, 'usage, select, update') end
            """,
            {"name": name},
        ).fetchall()
        assert held == []
        # What somebody grants afterwards is seen.
        for relation in ("security_audit_log_default", "attestation_key"):
            db.execute(
                sql.SQL("grant select on {} to {}").format(
                    sql.Identifier("pgaudit_wf", relation), sql.Identifier(name)
                )
            )
        found = db.execute(
            "select subject, remedy from pgaudit_wf.doctor()"
            " where severity = 'error' and problem like 'role % may read %' order by 1"
        ).fetchall()
        assert [subject for subject, _ in found] == [
            "pgaudit_wf.attestation_key",
            "pgaudit_wf.security_audit_log_default",
        ]
        for _, remedy in found:
            db.execute(remedy)
        for statement in DEFAULTS:
            undo = statement.replace("} grant", "} revoke").replace(" to ", " from ")
            db.execute(sql.SQL(undo).format(role=role, grantee=sql.Identifier(name)))
        db.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


def test_a_row_type_of_ours_keeps_nothing_from_being_pruned(conn: Conn, server: DevServer) -> None:
    with a_role(server, conn.info.dbname) as name:
        conn.execute("select pgaudit_wf.add_log_partition('2020-01-01')")
        conn.execute(sql.SQL("grant usage on schema pgaudit_wf to {}").format(sql.Identifier(name)))
        with acting_as(conn, name), pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("create table blk (c pgaudit_wf.security_audit_log_y2020m01)")


def test_trigger_functions_work_on_their_own_table_only(db: Conn, stranger: str) -> None:
    """The owner of a partitioned table may call them, as he makes partitions."""
    with acting_as(db, stranger):
        lay_traps(db, stranger)
        for cast in CASTS:
            db.execute(cast)
        db.execute("create table p (id int, org_id text, primary key (id)) partition by range (id)")
        db.execute("create table p1 partition of p for values from (0) to (9)")
    db.execute("select pgaudit_wf.attach(%s::regclass, 'p')", [f"{stranger}.p"])
    db.execute("insert into pgaudit_wf.org_limit (resource_type, max_count) values ('p', 9)")
    functions = db.execute(
        "select proname from pg_proc where pronamespace = 'pgaudit_wf'::regnamespace"
        " and proname ~ '^(capture|limit)_' and has_function_privilege(%s, oid, 'execute')",
        [stranger],
    ).fetchall()
    assert len(functions) == 2
    with acting_as(db, stranger):
        db.execute("create table fake (id pair, org_id mood)")
        for (function,) in functions:
            for level in ("row", "statement"):
                referencing = "referencing new table as new_rows " if level == "statement" else ""
                db.execute(
                    sql.SQL(
                        f"create or replace trigger x after insert on fake {referencing}"
                        f"for each {level} execute function {{}}()"
                    ).format(sql.Identifier("pgaudit_wf", function))
                )
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="not for table"):
                    db.execute("insert into fake values (row(1, 'good'), 'good')")
        db.execute("drop table fake")
        db.execute("insert into p values (1, 'o'), (2, 'o')")
    assert who_ran(db, stranger) == set()
    assert db.execute("select used from pgaudit_wf.org_usage").fetchone() == (2,)
    # Also where the numbers of the tables are others, as after a restore.
    db.execute(
        "select pgaudit_wf._replace_function(function_name,"
        " replace(prosrc, pg_partition_root(target)::oid::text, '1'), array["
        "   'timezone = ''UTC'''], target, 'x')"
        " from pgaudit_wf.attachment join pg_proc on proname = function_name"
    )
    with acting_as(db, stranger):
        db.execute("insert into p values (3, 'o')")
    assert db.execute(
        "select count(*) from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' and resource_type = 'p'"
    ).fetchone() == (3,)
    db.execute("delete from pgaudit_wf.org_limit")


def test_conditions_over_a_retyped_column_run_nothing(db: Conn, stranger: str, form: str) -> None:
    with acting_as(db, stranger):
        lay_traps(db, stranger)
        db.execute("create table t (id int primary key, org_id text, status text, n int)")
    db.execute("select pgaudit_wf.attach(%s::regclass, 't')", [f"{stranger}.t"])
    db.execute("insert into pgaudit_wf.limit_condition values ('t', 'status = ''good''')")
    db.execute("insert into pgaudit_wf.org_limit (resource_type, max_count) values ('t', 9)")
    db.execute(
        "insert into pgaudit_wf.action_rule (resource_type, op, condition, action) values"
        " ('t', 'insert', 'new.status like ''g%''', 't.good'),"
        " ('t', 'insert', 'new.n > 5', 't.many')"
    )
    with acting_as(db, stranger):
        db.execute("insert into t values (1, 'o', 'good', 1)")
        db.execute("alter table t alter column status type mood using enum_first(null::mood)")
        for cast in CASTS:
            db.execute(cast)
    # Another session has no plan from before.
    with psycopg.connect(db.info.dsn, autocommit=True) as other, acting_as(other, stranger):
        other.execute("insert into t values (2, 'o', 'good', 1), (3, 'o', 'bad', 9)")
    for statement in (
        "select pgaudit_wf.recount_usage('t')",
        f"select pgaudit_wf.attach('{stranger}.t', on_failure => 'abort')",
        "select * from pgaudit_wf.doctor()",
    ):
        with contextlib.suppress(RuleError), translated():
            db.execute(statement.encode())
    assert who_ran(db, stranger) <= {stranger}
    assert db.execute(
        "select action from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' and resource_type = 't'"
        " and action <> 't.rewritten' order by id"
    ).fetchall() == [
        ("t.good",),
        ("t.created",),
        # The generic form does not look at rules one by one.
        ("t.many" if form == "compiled" else "t.created",),
    ]
    if form == "compiled":
        assert db.execute(
            "select count(*) from pgaudit_wf.doctor() where problem like 'rule % is not applied%'"
        ).fetchone() == (1,)
    db.execute("delete from pgaudit_wf.limit_condition")
    db.execute("delete from pgaudit_wf.org_limit")


def test_policies_behind_the_directory_run_as_nobody_else(conn: Conn, server: DevServer) -> None:
    with a_role(server, conn.info.dbname) as name:
        with acting_as(conn, name):
            lay_traps(conn, name)
            conn.execute("create table person (id text, name text, email text)")
            conn.execute("create table belongs (org_id text, actor_id text, role text)")
            conn.execute("insert into person values ('u', 'U', 'u@x.example')")
            conn.execute("insert into belongs values ('o', 'u', 'owner')")
        for view, source in (
            ("actor_directory", "select id as actor_id, name, email from {}.person"),
            ("org_member", "select org_id, actor_id, role from {}.belongs"),
        ):
            conn.execute(
                sql.SQL("create or replace view {} as ").format(sql.Identifier("pgaudit_wf", view))
                + sql.SQL(source).format(sql.Identifier(name))
            )
        conn.execute("insert into pgaudit_wf.alert_rule (action_pattern) values ('x.*')")
        conn.execute("set app.org_id = 'o'; set app.actor_id = 'u'")
        conn.execute("select pgaudit_wf.record_event('x.y', 'x', '1')")
        assert conn.execute("select pgaudit_wf._readable_org()").fetchone() == ("o",)
        assert conn.execute("select actor_name from pgaudit_wf.audit_trail()").fetchone() == ("U",)
        with acting_as(conn, name):
            for table in ("person", "belongs"):
                conn.execute(
                    sql.SQL(
                        "alter table {0} enable row level security;"
                        "create policy p on {0} using (spy() is not null)"
                    ).format(sql.Identifier(table))
                )
        for statement in (
            "select pgaudit_wf._readable_org()",
            "select * from pgaudit_wf.audit_trail(page_size => 300, search => 'U')",
            "select * from pgaudit_wf.describe_actors('o')",
            "select * from pgaudit_wf.enqueue_alerts()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
                conn.execute(statement.encode())
        conn.execute("select pgaudit_wf._current_credential()")
        assert who_ran(conn, name) == set()
        # What doctor() says to do mends it: the tables' owner reads them as before.
        remedies = conn.execute(
            "select remedy from pgaudit_wf.doctor() where problem like '%row-level security%'"
        ).fetchall()
        assert len(remedies) == 2
        for (remedy,) in remedies:
            conn.execute(remedy)
        assert conn.execute("select pgaudit_wf._readable_org()").fetchone() == ("o",)
        assert conn.execute("select actor_name from pgaudit_wf.audit_trail()").fetchone() == ("U",)
        for view in ("actor_directory", "org_member"):
            conn.execute(
                sql.SQL("alter view {} owner to pgaudit_wf_owner").format(
                    sql.Identifier("pgaudit_wf", view)
                )
            )


def test_a_retyped_stamp_runs_nothing_when_versions_are_pruned(
    conn: Conn, server: DevServer
) -> None:
    with a_role(server, conn.info.dbname) as name:
        with acting_as(conn, name):
            lay_traps(conn, name)
            conn.execute(
                "create table wf (id int primary key, org_id text, nodes jsonb, edges jsonb)"
            )
            conn.execute(
                "create table run (id int primary key, workflow_id int,"
                " executed_workflow_hash text, triggered_by_credential_type text,"
                " triggered_by_credential_label text)"
            )
        conn.execute("select pgaudit_wf.attach_workflow(%s::regclass)", [f"{name}.wf"])
        conn.execute("select pgaudit_wf.attach_execution(%s::regclass)", [f"{name}.run"])
        with acting_as(conn, name):
            conn.execute("insert into wf values (1, 'o', '[]', '[]')")
            conn.execute("insert into run (id, workflow_id) values (1, 1)")
            for cast in CASTS:
                conn.execute(cast)
            conn.execute("drop trigger pgaudit_wf_restamp on run")
            conn.execute(
                "alter table run alter column executed_workflow_hash type pair"
                " using row(1, 'good')::pair"
            )
            conn.execute("insert into run (id, workflow_id) values (2, 1)")
        conn.execute("select pgaudit_wf._prunable_versions()")
        conn.execute("select pgaudit_wf.prune_history()")
        assert who_ran(conn, name) <= {name}
        conn.execute("select pgaudit_wf.detach_execution(%s::regclass)", [f"{name}.run"])


def test_a_table_that_became_a_view_is_not_read(conn: Conn, server: DevServer) -> None:
    if conn.info.server_version >= 160000:
        pytest.skip("a table cannot become a view since PostgreSQL 16")
    with a_role(server, conn.info.dbname) as name:
        with acting_as(conn, name):
            lay_traps(conn, name)
            conn.execute("create table t (id int primary key, v text)")
        conn.execute("select pgaudit_wf.attach(%s::regclass)", [f"{name}.t"])
        with acting_as(conn, name):
            for (trigger,) in conn.execute(
                "select tgname from pg_trigger where tgrelid = 't'::regclass"
            ).fetchall():
                conn.execute(sql.SQL("drop trigger {} on t").format(sql.Identifier(trigger)))
            conn.execute("alter table t drop constraint t_pkey")
            conn.execute("alter table t alter column id drop not null")
            conn.execute("vacuum t")
            conn.execute(
                'create rule "_RETURN" as on select to t do instead select 1 as id, spy() as v'
            )
        assert conn.execute(
            "select pgaudit_wf.row_as_of(%s::regclass, '1')", [f"{name}.t"]
        ).fetchone() == (None,)
        assert who_ran(conn, name) == set()
