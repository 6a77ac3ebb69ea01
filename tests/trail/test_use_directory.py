"""`use_directory`: names, readers and credentials from tables of any kind."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from support.server import Conn

USER = uuid.UUID("8d3f6a51-0000-4000-8000-000000000001")
TABLES = """
create type standing as enum ('owner', 'admin', 'member');
create domain mail as varchar(100);
create table "Us""er" (
    id uuid primary key, "first name" varchar(20), last char(8), address mail, password_hash text,
    label text
);
create table belongs (organization_id bigint, user_id uuid, role standing);
create table key (id int, prefix varchar(8), token text);
"""


@pytest.fixture
def db(conn: Conn) -> Conn:
    conn.execute(TABLES)
    conn.execute("""insert into "Us""er" values (%s, 'Ana', 'F.', 'ana@x.example')""", [USER])
    conn.execute("insert into belongs values (9007199254740993, %s, 'owner')", [USER])
    conn.execute("insert into key values (7, 'kh_1')")
    return conn


def use(
    conn: Conn,
    directory: str | None,
    source: str | None = None,
    columns: object = None,
    query: str | None = None,
) -> None:
    conn.execute(
        "select pgaudit_wf.use_directory(%s, %s::regclass, %s, %s)",
        [directory, source, None if columns is None else Jsonb(columns), query],
    )


def test_keys_of_any_type_become_the_ids_of_the_trail(db: Conn) -> None:
    use(db, "actor_directory", 'public."Us""er"',
        {"name": ["first name", "last"], "email": "address"})  # fmt: skip
    use(db, "org_member", "public.belongs")
    use(db, "credential_directory", "public.key")
    assert db.execute("select * from pgaudit_wf.actor_directory").fetchall() == [
        (str(USER), "Ana F.", "ana@x.example")
    ]
    assert db.execute("select * from pgaudit_wf.credential_directory").fetchall() == [
        ("7", "org_api_key", "kh_1")
    ]
    # As the owner reads it, for one who may read nothing of the tables.
    with db.transaction():
        db.execute("set local role pgaudit_wf_reader")
        db.execute(
            "select set_config('app.org_id', '9007199254740993', true),"
            " set_config('app.actor_id', %s, true)",
            [str(USER)],
        )
        assert db.execute(
            "select name, role from pgaudit_wf.describe_actors('9007199254740993')"
        ).fetchall() == [("Ana F.", "owner")]
        with pytest.raises(psycopg.errors.InsufficientPrivilege), db.transaction():
            db.execute("select from belongs")
    assert db.execute(
        "select action, resource_id, diff #> '{0,path}' from pgaudit_wf.security_audit_log"
        " order by id"
    ).fetchall() == [
        ("audit.directory_changed", name, "/definition")
        for name in ("actor_directory", "org_member", "credential_directory")
    ]
    # The same again is no change; another one is.
    use(db, "org_member", "public.belongs")
    use(db, "org_member", query="""
        select b.organization_id as org_id, b.user_id as actor_id, 'admin' as role, 1 as more
        from public.belongs as b  -- a query, as it is written
        ;
        """)  # fmt: skip
    assert db.execute("select * from pgaudit_wf.org_member").fetchall() == [
        ("9007199254740993", str(USER), "admin")
    ]
    use(db, "credential_directory", query="select 1 as credential_id, 'x' as label")
    assert db.execute("select * from pgaudit_wf.credential_directory").fetchall() == [
        ("1", "org_api_key", "x")
    ]
    counted = db.execute("select count(*) from pgaudit_wf.security_audit_log").fetchone()
    assert counted == (5,)
    assert db.execute("select * from pgaudit_wf.doctor()").fetchall() == []


def test_a_text_key_is_found_by_its_index(db: Conn) -> None:
    db.execute("create table person (id varchar primary key, name text)")
    use(db, "actor_directory", "public.person")
    db.execute("set enable_seqscan = off")
    plan = db.execute(
        "explain select name from pgaudit_wf.actor_directory where actor_id = 'u_1'"
    ).fetchall()
    assert any("Index Cond" in line for (line,) in plan)


def test_a_type_of_others_runs_no_cast_of_theirs(db: Conn) -> None:
    db.execute(
        "create function spy(standing) returns text language plpgsql as"
        " $$ begin raise exception 'the cast ran'; end $$;"
        "create cast (standing as text) with function spy(standing)"
    )
    use(db, "org_member", "public.belongs")
    assert db.execute("select role from pgaudit_wf.org_member").fetchall() == [("owner",)]
    use(db, "org_member", query="select 1 as org_id, 2 as actor_id, role from public.belongs")
    assert db.execute("select role from pgaudit_wf.org_member").fetchall() == [("owner",)]


USER_TABLE = 'public."Us""er"'


@pytest.mark.parametrize(
    ("arguments", "sqlstate", "message"),
    [
        (("people", USER_TABLE), "PA008", 'no directory "people"'),
        ((None, USER_TABLE), "PA008", "no directory"),
        (("actor_directory",), "PA008", "either a table or a query"),
        (("actor_directory", USER_TABLE, None, "select 1"), "PA008", "either a table or a query"),
        (("actor_directory", None, {}, "select 1"), "PA008", "columns goes with a table"),
        (("actor_directory", USER_TABLE, ["id"]), "PA008", "not a JSON object"),
        (("actor_directory", USER_TABLE, {"nam": "id"}), "PA008", 'no column "nam"'),
        (("actor_directory", USER_TABLE, {"name": 1}), "PA008", "names no column for name"),
        (("actor_directory", USER_TABLE, {"name": [None]}), "PA008", "names no column for name"),
        (("actor_directory", USER_TABLE, {"name": 'x"; --'}), "PA002", 'no column "x"; --"'),
        (("actor_directory", USER_TABLE, {"name": "xmin"}), "PA002", 'no column "xmin"'),
        (("actor_directory", USER_TABLE, {"name": "password_hash"}), "PA002", "name of a secret"),
        (("credential_directory", "public.key", {"label": "token"}), "PA002", "name of a secret"),
        (("org_member", USER_TABLE), "PA002", "none of the columns org_id, organization_id"),
        (("org_member", "pgaudit_wf.org_member"), "PA004", "cannot be the source"),
        (("org_member", "public.key_seq"), "PA004", "cannot be the source"),
        (("org_member", None, None, ""), "PA008", "cannot be used"),
        (("org_member", None, None, "select * from belongs"), "PA008", "does not exist"),
        (("org_member", None, None, "select 1 as org_id, 2 as actor_id"), "PA002", "no column rol"),
        (("org_member", None, None, "delete from public.key returning 1"), "PA008", "cannot be"),
        (("org_member", None, None,
          "select 1) as q; drop table public.key; select from (select 1"), "PA008", "multi-query"),
        (("org_member", None, None,
          "with k as (delete from public.key returning 1) select * from k"), "PA008", "WITH"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_nothing_is_changed(
    db: Conn, arguments: tuple[str, ...], sqlstate: str, message: str
) -> None:
    db.execute("create sequence key_seq")
    with pytest.raises(psycopg.Error, match=message) as caught:
        use(db, *arguments)
    assert caught.value.sqlstate == sqlstate
    assert caught.value.diag.message_hint
    assert db.execute("select count(*) from key").fetchone() == (1,)
    assert db.execute("select * from pgaudit_wf.org_member").fetchall() == []
    assert db.execute("select count(*) from pgaudit_wf.security_audit_log").fetchone() == (0,)


def test_it_gives_nobody_a_right_that_they_lack(db: Conn) -> None:
    other = sql.Identifier(f"other_{db.info.dbname}")
    db.execute(sql.SQL("create role {} createrole").format(other))
    try:
        with db.transaction():
            db.execute(sql.SQL("alter table belongs owner to {}").format(other))
            db.execute(sql.SQL("set local role {}").format(other))
            # Not the schema's: neither by the function nor past it.
            with pytest.raises(psycopg.errors.InsufficientPrivilege), db.transaction():
                use(db, "org_member", "public.belongs")
            db.execute("reset role")
            # Of the schema, but not of the table.
            db.execute("set local role pgaudit_wf_owner")
            with (
                pytest.raises(psycopg.errors.InsufficientPrivilege, match="belongs"),
                db.transaction(),
            ):
                use(db, "org_member", "public.belongs")
            db.execute("reset role")
            db.execute("grant select on belongs to pgaudit_wf_owner")
            db.execute("set local role pgaudit_wf_owner")
            use(db, "org_member", "public.belongs")
    finally:
        db.execute("drop table if exists belongs cascade")
        db.execute(sql.SQL("drop owned by {0}; drop role {0}").format(other))
