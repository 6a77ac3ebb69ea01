"""DDL tried on two equal schemas, one of whose tables are attached: what must not differ, differs?

`generate()` makes the cases: every form of PostgreSQL's DDL that can touch a table, on a table of
every kind. `Matrix` runs one case, in each of the schemas, and compares the outcome, the locks and
what writes to the tables do thereafter.
"""

import contextlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from support.server import SECRET_MARKER, Conn

Write = tuple[str, str, str | int]

SCHEMA = "shop"
# The number of column secret, by which it is known under any name.
SECRET_NUMBER = 4

COLUMNS = "id int, org_id text, label text, secret text, n int default 1, spare text"
MORE = "m mood default 'ok', d positive default 1, viewed timestamptz"
PAIR = "c pair, doc jsonb, tags text[]"

WORLD = f"""
create type mood as enum ('sad', 'ok', 'happy');
create type level as enum ('low', 'high');
create domain positive as int check (value > 0);
create type pair as (x int, y text);
create type entry as (id int, org_id text, label text, secret text, n int, spare text);
create function big(int) returns boolean immutable language sql return $1 > 5;
create function touch() returns trigger language plpgsql as 'begin return new; end';
create function counted() returns event_trigger language plpgsql as 'begin end';
create sequence numbers;

create table t ({COLUMNS}, {MORE}, {PAIR}, primary key (id), constraint small check (n < 100000));
create unique index t_label on t (label);
create index t_n on t (n);
create statistics t_stat on n, d from t;
create view v as select id, n from t;
create materialized view mv as select id, n from t;
create trigger touched before update on t for each row execute function touch();
create policy everything on t using (true) with check (true);
create rule nothing as on delete to t where false do instead nothing;

create table fk ({COLUMNS}, primary key (id), parent int constraint of_t references t);
create table u ({COLUMNS}, primary key (id));
create table metered ({COLUMNS}, {MORE}, primary key (id));
create table ident ({COLUMNS}, number int generated always as identity, primary key (id));
create table loose ({COLUMNS}, {MORE});

create table p ({COLUMNS}, {PAIR}, primary key (id, n)) partition by list (n);
create table p1 partition of p for values in (1);
create table p2 partition of p for values in (2);
create table p3 partition of p for values in (3, 4) partition by list (n);
create table p3a partition of p3 for values in (3);
create trigger touched before update on p for each row execute function touch();
create table free (like p including all);
create table own (like p including all);
create table tree (like p including all) partition by list (n);
create table tree7 partition of tree for values in (7);
alter table free alter n set default 5;
alter table own alter n set default 5;
alter table tree alter n set default 7;

create table base ({COLUMNS}, primary key (id));
create table child (primary key (id)) inherits (base);
create table orphan ({COLUMNS}, primary key (id));
create table typed of entry (primary key (id));

create table flow (
    id int primary key, org_id text, name text, secret text, description text,
    enabled boolean default false, nodes jsonb default '[]', edges jsonb default '[]',
    n int default 1, spare text);
create table run (
    id int primary key, org_id text, flow_id int, secret text, executed_workflow_hash text,
    triggered_by_credential_type text, triggered_by_credential_label text,
    n int default 1, spare text);
"""
TABLES = (
    *("t", "fk", "u", "metered", "ident", "loose", "p", "free", "own", "tree"),
    *("base", "child", "orphan", "typed", "flow", "run"),
)

ATTACH = """
insert into pgaudit_wf.action_rule (resource_type, op, condition, action, position) values
    ('t', 'update', 'new.m = ''happy'' and old.m <> ''happy''', 't.pleased', 1),
    ('t', 'update', 'shop.big(new.d)', 't.grown', 2),
    ('t', 'update', 'new.label = ''high''::shop.level::text', 't.high', 3),
    ('t', 'insert', 'new.spare = ''special''', 't.special', 4);
insert into pgaudit_wf.limit_condition values ('metered', 'm <> ''sad'' and shop.big(d + 10)');
insert into pgaudit_wf.org_limit (resource_type, max_count) values ('metered', 1000);
select pgaudit_wf.attach('shop.child', redact => '{secret}', ignore => '{}');
select pgaudit_wf.attach(relation::regclass, id_columns => '{id}', redact => '{secret}',
        ignore => '{viewed}', label_column => 'label')
    from unnest('{shop.t,shop.metered,shop.loose}'::text[]) as relation;
select pgaudit_wf.attach(relation::regclass, redact => '{secret}', ignore => '{}')
    from unnest('{shop.fk,shop.ident,shop.p,shop.own,shop.tree,shop.base}'::text[]) as relation;
select pgaudit_wf.attach('shop.typed', redact => '{secret}', ignore => '{}');
select pgaudit_wf.attach_workflow('shop.flow', redact => '{secret}');
select pgaudit_wf.attach('shop.run', redact => '{secret}');
select pgaudit_wf.attach_execution('shop.run', workflow_column => 'flow_id');
"""


# What each mode of lock keeps out: documentation, table 13.2.
_MODES = (
    *("AccessShare", "RowShare", "RowExclusive", "ShareUpdateExclusive"),
    *("Share", "ShareRowExclusive", "Exclusive", "AccessExclusive"),
)
CONFLICTS = {
    "AccessShareLock": set(_MODES[7:]),
    "RowShareLock": set(_MODES[6:]),
    "RowExclusiveLock": set(_MODES[4:]),
    "ShareUpdateExclusiveLock": set(_MODES[3:]),
    "ShareLock": set(_MODES[2:]) - {"Share"},
    "ShareRowExclusiveLock": set(_MODES[2:]),
    "ExclusiveLock": set(_MODES[1:]),
    "AccessExclusiveLock": set(_MODES),
}


@dataclass(frozen=True)
class Case:
    """Statements that a role runs; the writes that follow go to `tables`."""

    ddl: str
    tables: tuple[str, ...]
    roles: tuple[str, ...] = ("ddl_owner",)
    # Not in a transaction, and so for good.
    alone: bool = False
    # What it does to the record is the author's wish: triggers that are disabled.
    unrecorded: bool = False


@dataclass
class Outcome:
    """What one schema shows of a case."""

    result: str
    reason: str = ""
    locks: dict[str, set[str]] = field(default_factory=dict)
    writes: list[Write] = field(default_factory=list)


# What the bare tables did, which is the same for either form of trigger.
BARE: dict[tuple[Case, str], Outcome] = {}


def set_up(conn: Conn, attach: bool) -> None:
    """Make the roles, where they are not there yet, and the tables, perhaps attached."""
    conn.execute(
        "do $$ begin if to_regrole('ddl_owner') is null then"
        " create role ddl_owner; create role ddl_member in role ddl_owner; create role ddl_app;"
        " create role ddl_other; grant ddl_other to ddl_owner; end if; end $$"
    )
    conn.execute(
        f"create schema {SCHEMA} authorization ddl_owner;"
        f" grant usage on schema {SCHEMA} to ddl_app;"
        f" grant usage, create on schema {SCHEMA} to ddl_other;"
        f" create schema {SCHEMA}_2 authorization ddl_owner;"
        f" set search_path = {SCHEMA}; set role ddl_owner; {WORLD}"
        " grant select, insert, update, delete on all tables in schema"
        f" {SCHEMA} to ddl_app; reset role; reset search_path".encode()
    )
    if attach:
        conn.execute(ATTACH.encode())


def tear_down(*conns: Conn) -> None:
    """Drop the tables and the roles again."""
    for conn in conns:
        conn.execute(f"drop schema {SCHEMA}, {SCHEMA}_2 cascade".encode())
        conn.execute("drop owned by ddl_owner, ddl_member, ddl_app, ddl_other cascade")
    conn.execute("drop role ddl_owner, ddl_member, ddl_app, ddl_other")


class Matrix:
    """Runs cases in two databases, in a transaction of each that is rolled back.

    Args:
        bare: Connection of a superuser to a database with the tables alone.
        seen: The same to one where they are attached.
    """

    def __init__(self, bare: Conn, seen: Conn) -> None:
        self.bare = bare
        self.seen = seen

    def differences(self, case: Case, role: str) -> list[str]:
        """Say what a case does on the attached tables that it does not on bare ones."""
        found: list[str] = []
        if (case, role) not in BARE:
            BARE[case, role] = self._try(self.bare, case, role)
        bare = BARE[case, role]
        seen = self._try(self.seen, case, role, found)
        if bare.result != seen.result:
            return [*found, f"{bare.result} became {seen.result} ({seen.reason})"]
        for relation, modes in seen.locks.items():
            if modes - bare.locks.get(relation, set()):
                found.append(f"a lock on {relation} keeps out {modes}")
        if bare.writes != seen.writes:
            pairs = itertools.zip_longest(bare.writes, seen.writes)
            found += [f"{b} became {s}" for b, s in pairs if b != s]
        return found

    def _try(self, conn: Conn, case: Case, role: str, found: list[str] | None = None) -> Outcome:
        if not case.alone:
            conn.execute("begin")
        try:
            oids: list[int] = [
                oid
                for (oid,) in conn.execute(
                    "select c.oid::bigint from unnest(%s::text[]) with ordinality as n (name, i)"
                    " join pg_class as c on c.oid = to_regclass(%s || '.' || name) order by i",
                    [list(case.tables), SCHEMA],
                ).fetchall()
            ]
            outcome = _run(conn, case, role)
            conn.execute("reset session authorization; set search_path = pg_catalog")
            if outcome.result == "ok":
                before = 0 if found is None else _events(conn)
                outcome.writes = _write(conn, oids)
                conn.execute("reset session authorization")
                if found is not None:
                    found += _judge(conn, case, oids, outcome, before)
            return outcome
        finally:
            if not case.alone:
                conn.execute("rollback")
            conn.execute("reset session authorization; reset search_path")


def _run(conn: Conn, case: Case, role: str) -> Outcome:
    conn.execute(f"set session authorization {role}; set search_path = {SCHEMA}".encode())
    ddl = case.ddl.replace("{s}", SCHEMA)
    try:
        if case.alone:
            for statement in ddl.split(";"):
                conn.execute(statement.encode())
        else:
            with conn.transaction():
                conn.execute(ddl.encode())
    except psycopg.Error as error:
        return Outcome(str(error.sqlstate), reason=str(error.diag.message_primary))
    outcome = Outcome("ok")
    for name, mode in conn.execute(
        "select distinct c.relname, l.mode from pg_locks as l join pg_class as c"
        " on c.oid = l.relation where pid = pg_backend_pid() and c.relnamespace not in"
        " (select oid from pg_namespace where nspname in"
        " ('pg_catalog', 'information_schema', 'pgaudit_wf', 'pg_toast'))"
    ).fetchall():
        outcome.locks.setdefault(name, set()).update(CONFLICTS[mode])
    return outcome


def _events(conn: Conn) -> int:
    row = conn.execute("select coalesce(max(id), 0) from pgaudit_wf.security_audit_log").fetchone()
    assert row is not None
    return int(row[0])


def _write(conn: Conn, oids: list[int]) -> list[Write]:
    """Insert, update and delete, as an application that knows the tables as they are now."""
    done: list[Write] = []
    conn.execute("set session authorization ddl_app")
    columns = conn.execute(
        "select array_position(%(oids)s, c.oid::bigint), c.oid::regclass::text, c.relname, attname,"
        " atttypid::regtype::text, attnum"
        " from pg_class as c join pg_attribute on attrelid = c.oid and attnum > 0"
        " and not attisdropped and attgenerated = '' and attidentity <> 'a'"
        " where c.oid = any (%(oids)s) and c.relkind in ('r', 'p') order by 1, attnum",
        {"oids": oids},
    ).fetchall()
    for (_, table, name), those in itertools.groupby(columns, lambda column: column[:3]):
        given = [value for column in those if (value := _value(*column[3:]))]
        statements = {
            "insert": f"insert into {table} ({', '.join(c[0] for c in given)})"
                      f" values ({', '.join(c[1] for c in given)})",
            "update": f"update {table} set "
                      + ", ".join(f"{c[0]} = {c[2]}" for c in given if c[2] is not None),
            "delete": f"delete from {table}",
        }  # fmt: skip
        # At once, unless one fails: there are thousands of them.
        with contextlib.suppress(psycopg.Error), conn.transaction():
            cursor = conn.execute("; ".join(statements.values()).encode())
            done += [
                (name, op, count.rowcount)
                for op, count in zip(statements, cursor.results(), strict=True)
            ]
            continue
        for op, statement in statements.items():
            try:
                with conn.transaction():
                    done.append((name, op, conn.execute(statement.encode()).rowcount))
            except psycopg.Error as error:
                done.append((name, op, f"{error.sqlstate} {error.diag.message_primary}"))
    return done


def _judge(conn: Conn, case: Case, oids: list[int], outcome: Outcome, before: int) -> list[str]:
    found = []
    events: dict[str, int] = dict(
        conn.execute(
            "select resource_type || ' ' || case when diff @? '$[*] ? (@.path == \"\" && @.op =="
            ' "add")\' then \'insert\' when diff @? \'$[*] ? (@.path == "" && @.op == "remove")\''
            " then 'delete' else 'update' end, count(*)"
            " from pgaudit_wf.security_audit_log where captured and id > %s group by 1",
            [before],
        ).fetchall()
    )
    expected: dict[str, int] = {}
    # The nearest: without event triggers, a partition keeps an attachment of its own.
    types: dict[str, str] = dict(
        conn.execute(
            "select distinct on (c.oid) relname, a.resource_type from pg_class as c"
            " cross join lateral (select 0 as distance, c.oid as relid union all"
            " select row_number() over (), relid from pg_partition_ancestors(c.oid)) as above"
            " join pgaudit_wf.attachment as a on a.target = above.relid"
            " where c.oid = any (%s) order by c.oid, above.distance",
            [oids],
        ).fetchall()
    )
    for name, op, result in outcome.writes:
        if isinstance(result, int) and result > 0 and name in types:
            key = f"{types[name]} {op}"
            expected[key] = expected.get(key, 0) + result
    if expected != events and not case.unrecorded:
        found.append(f"recorded {events}, not {expected}")
    shown = conn.execute(
        "select count(*) from pgaudit_wf.security_audit_log as l where id > %s and l::text like %s",
        [before, f"%{SECRET_MARKER}%"],
    ).fetchone()
    if shown != (0,):
        found.append("a secret is in the clear")
    return found


def _value(name: str, type_name: str, number: int) -> tuple[str, str, str | None] | None:
    column = sql.Identifier(name).as_string()
    # Of whatever name it is now, and whatever took its name.
    if number == SECRET_NUMBER or name.startswith("secret"):
        if type_name in ("text", "character varying"):
            return column, f"'{SECRET_MARKER}'", f"'{SECRET_MARKER} 2'"
        return None
    if name.startswith("n") and type_name in ("integer", "bigint"):
        return None
    if name.startswith(("executed", "triggered", "who", "hash")):
        return None
    if type_name in ("integer", "bigint", "numeric", "smallint"):
        return (
            column,
            "1000" if name in ("id", "key") else "3",
            None if name in ("id", "key") else "4",
        )
    if type_name in ("text", "character varying"):
        return column, "'w'", "'x'"
    if type_name in ("jsonb", "json"):
        return column, "'[]'", "'[]'"
    return None


# With {t} for the table. Columns that a setting, a rule or a limit names are among them.
ALTER_TABLE = (
    *("add column extra text", "add column extra int default 7 not null"),
    *("add column extra float default random()", "add column extra serial"),
    *("add column extra int generated always as identity", "add column extra mood default 'sad'"),
    *("add column extra int generated always as (n * 2) stored", "add column if not exists n int"),
    "add column extra json, add column other pair[], drop column spare",
    *("drop column spare", "drop column spare cascade", "drop column if exists none"),
    *("drop column id cascade", "drop column org_id cascade", "drop column label cascade"),
    *("drop column secret", "drop column secret, add column secret text", "drop column d cascade"),
    *("drop column m cascade", "drop column n cascade", "drop column n", "drop column viewed"),
    *("alter column spare type varchar(20)", "alter column n type bigint"),
    *("alter column spare type bytea using spare::bytea", "alter column secret type varchar(99)"),
    *("alter column m type text", "alter column m drop default, alter column m type text"),
    *("alter column d type bigint", "alter column label type varchar(50)"),
    *("alter column org_id type varchar(80)", "alter column id type bigint"),
    *("alter column spare set default 'x'", "alter column spare drop default"),
    *("alter column spare set not null", "alter column n drop not null"),
    *("alter column n set statistics 50", "alter column n set (n_distinct = 5)"),
    *("alter column n reset (n_distinct)", "alter column spare set storage external"),
    *("alter column spare set compression pglz", "alter column n drop expression if exists"),
    *("alter column n add generated always as identity", "alter column n drop identity if exists"),
    *("add constraint positive check (n > 0)", "add constraint positive check (n > 0) not valid"),
    "add constraint positive check (n > 0) not valid, validate constraint positive",
    *("add constraint one unique (id, n)", "add unique (spare)", "add primary key (id)"),
    *("add constraint to_u foreign key (n) references u (id)", "drop constraint if exists none"),
    "add constraint to_u foreign key (n) references u (id) not valid",
    *("drop constraint {name}_pkey cascade", "rename constraint {name}_pkey to renamed_key"),
    *("add constraint apart exclude using btree (id with =)", "disable trigger user"),
    *("disable trigger all", "enable trigger all", "enable trigger user"),
    *("disable trigger all, enable trigger all", "disable rule none", "enable rule none"),
    *("enable row level security", "disable row level security", "force row level security"),
    *("no force row level security", "cluster on {name}_pkey", "set without cluster"),
    *("set without oids", "set access method heap", "set tablespace pg_default"),
    *("set logged", "set unlogged", "set (fillfactor = 70)", "reset (fillfactor)"),
    *("set (autovacuum_enabled = off)", "replica identity full", "replica identity nothing"),
    *("replica identity default", "replica identity using index {name}_pkey"),
    *("owner to ddl_other", "owner to current_user", "owner to postgres", "set schema {s}_2"),
    *("rename to renamed", "rename column spare to more", "rename column n to number"),
    *("rename column id to key", "rename column secret to token", "rename column label to title"),
    *("rename column org_id to org", "rename column m to feeling", "rename column d to amount"),
    *("rename column viewed to looked_at", "no inherit base", "inherit base", "inherit orphan"),
    *("of entry", "not of", "alter constraint of_t deferrable", "alter column n set data type int"),
    *("rename column name to called", "drop column name", "drop column nodes", "drop column edges"),
    *("alter column nodes type json", "alter column nodes type text", "drop column description"),
    *("rename column nodes to dots", "drop column enabled", "alter column enabled type text"),
    *("rename column executed_workflow_hash to hash", "drop column executed_workflow_hash"),
    *("rename column triggered_by_credential_label to who", "drop column flow_id"),
    *("alter column executed_workflow_hash type varchar(100)", "rename column flow_id to flow"),
    *("alter column executed_workflow_hash type level using null", "rename column enabled to on_"),
    *("drop column triggered_by_credential_type", "drop column triggered_by_credential_label"),
)
# In several steps: expand and contract.
STEPS = (
    "alter table {t} add column secret_new text; alter table {t} drop column secret;"
    " alter table {t} rename column secret_new to secret",
    "alter table {t} rename column secret to secret_old; alter table {t} add column secret text",
    "alter table {t} rename column label to l; alter table {t} rename column l to label",
    "alter table {t} rename column label to spare_label; alter table {t} add column label text",
    "alter table {t} drop column org_id cascade; alter table {t} add column org_id text",
    "alter table {t} rename column id to key; alter table {t} add column id bigint;"
    " alter table {t} drop column id",
    "drop table {t} cascade",
    "drop table {t}",
    "truncate {t}",
    "truncate {t} cascade",
    "lock table {t}",
    "analyze {t}",
    "comment on table {t} is 'x'",
    "comment on column {t}.n is 'x'",
    "grant select on {t} to ddl_other",
    "grant all on {t} to public",
    "revoke insert on {t} from ddl_app",
    "grant update (n) on {t} to ddl_other",
    "revoke all on {t} from ddl_app",
    "reindex table {t}",
    "cluster {t} using {name}_pkey",
    "create index on {t} (spare)",
    "create index made on {t} (n) where n > 5; drop index made",
    "create unique index made on {t} (id, n);"
    " alter table {t} add constraint made unique using index made",
    "create unique index made on {t} (id); alter table {t} replica identity using index made",
    "create statistics made on id, n from {t}; alter statistics made set statistics 50;"
    " alter statistics made rename to done; drop statistics done",
    "create view made as select * from {t}; alter view made rename to done;"
    " alter view done rename column spare to more; alter view done alter more set default 'x';"
    " create or replace view done as select * from {t}; drop view done",
    "create view made as select id from {t}; drop table {t}",
    "create materialized view made as select * from {t}; refresh materialized view made;"
    " alter materialized view made rename to done; alter materialized view done set schema {s}_2;"
    " drop materialized view {s}_2.done",
    "create trigger made after insert on {t} for each row execute function touch();"
    " alter trigger made on {t} rename to done; alter table {t} disable trigger done",
    "create trigger made before insert on {t} for each row execute function touch();"
    " drop trigger made on {t}",
    "create constraint trigger made after insert on {t} deferrable for each row"
    " execute function touch()",
    "create policy made on {t} for select using (true); alter policy made on {t} using (false);"
    " alter policy made on {t} rename to done; drop policy done on {t}",
    "create rule made as on insert to {t} do also notify x; alter rule made on {t} rename to done;"
    " alter table {t} disable rule done; alter table {t} enable always rule done;"
    " drop rule done on {t}",
    "create table made as select * from {t}",
    "select * into made from {t}",
    "create table made (like {t} including all)",
    "create table made () inherits ({t})",
    "create table made () inherits ({t}); alter table made no inherit {t}; drop table made",
    "create temp table made (like {t}); alter table made add column x int; drop table made",
    "create table made (id int references {t}); drop table made",
    "create table made (id int); insert into made select id from {t};"
    " alter table made add foreign key (id) references {t} (id)",
    "create table made (c {t}); alter table made add x int",
    "create type made as (r {t}); drop type made",
    "create function made({t}) returns int language sql return 1; drop function made({t})",
    "create sequence made owned by {t}.n; alter sequence made owned by none;"
    " alter sequence made rename to done; drop sequence done",
    "create index made on {t} (n); alter index made rename to done;"
    " alter index done set (fillfactor = 50); alter index done reset (fillfactor);"
    " alter index done set tablespace pg_default; comment on index done is 'x'",
    "alter index {name}_pkey rename to renamed_key",
)
PARTITIONING = (
    "create table p5 partition of p for values in (5)", "create table pd partition of p default",
    "create table p5 partition of p for values in (5) partition by list (n);"
    " create table p5a partition of p5 for values in (5)",
    "create table p4 partition of p3 for values in (4)",
    "create table p5 partition of p (spare not null) for values in (5)",
    "alter table p attach partition free for values in (5)",
    "alter table p attach partition own for values in (5)",
    "alter table p attach partition own for values in (5);"
    " alter table own add column x int",
    "alter table p attach partition own for values in (5); alter table p add column extra text",
    "alter table p attach partition own for values in (5); alter table p detach partition own",
    "alter table p attach partition own for values in (5); drop table own",
    "alter table p attach partition own for values in (5); drop table p",
    "alter table p attach partition tree for values in (7)",
    "alter table p attach partition tree for values in (7); alter table p detach partition tree",
    "alter table p3 attach partition own for values in (4)",
    "alter table p attach partition own default",
    "alter table p detach partition p1", "alter table p detach partition p3",
    "alter table p detach partition p1; alter table p attach partition p1 for values in (1)",
    "alter table p detach partition p1; drop table p", "drop table p1", "drop table p3",
    "alter table p detach partition p1; drop table p1", "alter table p1 rename to p_one",
    "alter table p3 detach partition p3a", "truncate p1", "truncate p3",
    "alter table p1 add constraint c1 check (n = 1)", "alter table p1 set schema {s}_2",
    "alter table p1 alter column spare set default 'q'", "alter table p1 owner to ddl_other",
    "alter table p1 disable trigger user", "alter table only p add constraint c1 check (n > 0)",
    "alter table p1 set (fillfactor = 50)", "alter table p1 set unlogged",
    "alter table only p1 add column x int", "alter table p1 drop column spare",
    "create index made on only p (spare); create index made_1 on p1 (spare);"
    " alter index made attach partition made_1", "alter table p1 replica identity full",
    "create unique index made on p (id, n, spare); alter index made rename to done",
    "alter table p2 enable row level security", "comment on table p2 is 'x'",
    "alter table p1 no inherit p", "alter table p1 inherit base",
    "create trigger made after insert on p for each row execute function touch()",
)  # fmt: skip
INHERITING = (
    "alter table child no inherit base", "alter table orphan inherit base",
    "alter table child no inherit base; alter table child inherit base",
    "alter table base add column extra text", "alter table base rename column spare to more",
    "alter table base rename column secret to token", "alter table only base rename spare to more",
    "alter table base drop column spare", "alter table only base drop column spare",
    "alter table base alter column spare type varchar(9)", "drop table base",
    "drop table base cascade", "create table made (x int) inherits (base, u)",
    "create table made (x int) inherits (child)", "alter table child add column x int",
    "alter table child drop column id", "alter table base drop column id",
    "alter table base rename column id to key",
)  # fmt: skip
OTHERS = (
    "alter type mood rename value 'happy' to 'glad'", "alter type mood add value 'meh' before 'ok'",
    "alter type level rename value 'high' to 'top'", "alter type mood rename to feeling",
    "alter type level rename to grade", "alter type mood set schema {s}_2",
    "alter type level set schema {s}_2", "alter type mood owner to ddl_other", "drop type level",
    "drop type level cascade", "drop type mood", "drop type mood cascade",
    "drop type pair cascade", "alter type pair add attribute z int",
    "alter type pair add attribute z json", "alter type pair drop attribute x",
    "alter type pair rename attribute x to z", "alter type pair alter attribute x type bigint",
    "alter type pair rename to couple", "alter type pair set schema {s}_2",
    "alter domain positive drop constraint positive_check", "alter domain positive set default 3",
    "alter domain positive drop default", "alter domain positive set not null",
    "alter domain positive add constraint less check (value < 9999) not valid",
    "alter domain positive add constraint less check (value < 9999) not valid;"
    " alter domain positive validate constraint less;"
    " alter domain positive rename constraint less to fewer",
    "alter domain positive rename to above", "alter domain positive set schema {s}_2",
    "alter domain positive owner to ddl_other", "drop domain positive",
    "drop domain positive cascade",
    "alter type entry add attribute x text", "alter type entry add attribute x text cascade",
    "alter type entry rename attribute secret to token cascade",
    "alter type entry rename attribute label to title cascade",
    "alter type entry drop attribute label cascade", "alter type entry drop attribute id cascade",
    "alter type entry alter attribute n type bigint cascade", "drop type entry cascade",
    "create table made of entry", "alter type entry rename to row_entry",
    "alter function big(int) rename to huge", "alter function big(int) set schema {s}_2",
    "alter function big(int) owner to ddl_other", "alter function big(int) volatile",
    "alter function big(int) cost 5", "drop function big(int)", "drop function big(int) cascade",
    "create or replace function big(int) returns boolean language sql return false",
    "revoke execute on function big(int) from public", "alter function touch() rename to touched",
    "drop function touch() cascade", "alter routine big(int) rename to huge",
    "create procedure made() language sql as ''; alter procedure made() rename to done;"
    " drop procedure done()",
    "create aggregate made(int) (sfunc = int4pl, stype = int); drop aggregate made(int)",
    "create operator === (leftarg = int, rightarg = int, function = int4eq);"
    " alter operator === (int, int) owner to ddl_other; drop operator === (int, int)",
    "create collation made from \"C\"; alter collation made rename to done; drop collation done",
    "alter schema {s} rename to renamed", "alter schema {s} owner to ddl_other", "drop schema {s}",
    "drop schema {s} cascade", "create schema made", "drop schema {s}_2",
    "create schema made create table made.made (id int) create view made.w as select 1 as x",
    "grant usage on schema {s} to ddl_other", "revoke usage on schema {s} from ddl_app",
    "alter sequence numbers increment 2", "alter sequence numbers rename to figures",
    "alter sequence numbers owned by t.n", "alter sequence numbers set schema {s}_2",
    "create sequence made; alter table t alter n set default nextval('made'); drop sequence made",
    "drop sequence numbers cascade", "alter index t_n rename to t_number", "drop index t_n",
    "alter index t_n set schema {s}_2", "alter table t_n rename to t_number",
    "alter index t_n depends on extension plpgsql", "reindex index t_n",
    "alter policy everything on t using (false)", "alter policy everything on t rename to all_",
    "drop policy everything on t", "alter trigger touched on t rename to touching",
    "drop trigger touched on t", "alter table t disable trigger touched",
    "alter table t enable always trigger touched", "alter table t enable replica trigger touched",
    "alter trigger touched on t depends on extension plpgsql",
    "alter rule nothing on t rename to nought", "drop rule nothing on t",
    "alter table t disable rule nothing", "alter table t enable replica rule nothing",
    "alter statistics t_stat rename to t_stats", "alter statistics t_stat set statistics 9",
    "alter statistics t_stat set schema {s}_2", "drop statistics t_stat",
    "alter view v rename to w", "alter view v owner to ddl_other", "alter view v set schema {s}_2",
    "alter view v set (security_barrier = on)", "drop view v", "alter table v rename to w",
    "alter view v rename column n to number", "drop materialized view mv",
    "refresh materialized view mv", "alter materialized view mv rename column n to number",
    "alter materialized view mv rename to mw", "create index on mv (id)",
    "drop owned by current_user", "drop owned by current_user cascade",
    "reassign owned by current_user to ddl_other", "alter default privileges grant select on tables"
    " to ddl_other; create table made (id int)",
    "alter table all in tablespace pg_default owned by ddl_owner set tablespace pg_default",
    "create temp table scratch (id int primary key, p pair); alter table scratch add column x int;"
    " alter table scratch rename x to y; alter table scratch drop y; drop table scratch",
    "create temp table scratch (id int) partition by list (id);"
    " create temp table scratch_1 partition of scratch for values in (1);"
    " create temp table scratch_2 (id int);"
    " alter table scratch attach partition scratch_2 for values in (2);"
    " alter table scratch detach partition scratch_1",
    "create temp table scratch on commit drop as select 1 as id;"
    " create temp view seeing as select * from scratch; drop view seeing",
    "create temp table t (id int primary key); alter table t add secret text; drop table t",
    "set search_path = pg_temp; create type made as enum ('a'); alter type made add value 'b'",
    "security label on table t is 'x'", "create extension none",
    "create event trigger made on ddl_command_end execute function counted()",
    "create publication made for table t", "create access method made type table handler heap",
    "create transform for int language sql (from sql with function big(int))",
    "create cast (mood as json) with function none(mood)",
    "create function to_json(mood) returns json immutable language sql return '1'::json;"
    " create cast (mood as json) with function to_json(mood);"
    " drop cast (mood as json)",
    "create function to_json(mood) returns json immutable language sql return '1'::json;"
    " create cast (mood as json) with function to_json(mood) as implicit",
    "create text search configuration made (copy = simple);"
    " alter text search configuration made rename to done; drop text search configuration done",
    "create statistics made on (n * 2) from t; drop statistics made",
    "do $$ begin alter table t add column x int; alter table t rename x to y; end $$",
    "create function ddl() returns void language plpgsql security definer"
    " as 'begin alter table t add column x int; end'; select ddl()",
    "import foreign schema x from server none into {s}",
    "create foreign table made (id int) server none",
)  # fmt: skip
# By a superuser only.
SUPERUSER = (
    "create publication made for table t, p; alter publication made add table u;"
    " alter publication made set table u; drop publication made",
    "create foreign data wrapper made; create server made foreign data wrapper made;"
    " create foreign table made (id int not null, n int) server made;"
    " alter foreign table made add column x int; alter foreign table made rename x to y;"
    " drop foreign table made; drop foreign data wrapper made cascade",
    "create foreign data wrapper made; create server made foreign data wrapper made;"
    " create foreign table made partition of p for values in (9) server made",
    "drop owned by ddl_owner",
    "drop owned by ddl_owner cascade",
    "drop owned by ddl_app",
    "reassign owned by ddl_owner to ddl_other",
    "reassign owned by ddl_owner to postgres",
    "reassign owned by ddl_owner, ddl_member to ddl_other; drop owned by ddl_owner",
    "reassign owned by ddl_owner to ddl_other; set session authorization ddl_other;"
    " create table p5 partition of p for values in (5); alter table p add column x int;"
    " alter table p attach partition free for values in (6)",
    "alter table p owner to ddl_other; set session authorization ddl_other;"
    " create table p5 partition of p for values in (5)",
    "create extension pg_trgm; create table made (x text);"
    " create index on made using gin (x gin_trgm_ops); drop extension pg_trgm cascade",
    "create event trigger made on ddl_command_end execute function counted();"
    " alter table t add column x int; drop event trigger made",
    "alter role ddl_owner rename to owned",
    "alter system reset none",
    "set session_replication_role = replica; alter table t add column x int;"
    " reset session_replication_role",
)
# What PostgreSQL does not do in a transaction block.
ALONE = (
    "create index concurrently made on t (spare)", "drop index concurrently t_n",
    "reindex table concurrently t", "reindex index concurrently t_n", "vacuum full t",
    "vacuum t; vacuum analyze p", "cluster t using t_pkey; cluster t", "reindex table p",
    "alter table p detach partition p1 concurrently", "reindex schema {s}",
    "alter table p detach partition p3 concurrently",
    "alter type mood add value 'new'; alter table t alter m set default 'new'",
    "cluster p using p_pkey",
)  # fmt: skip


# The columns that a table does not share with `t`, or does not have.
SPECIAL = ("m", "d", "viewed", "name", "description", "enabled", "nodes", "edges", "flow_id")
LACKING = {
    "t": (*SPECIAL[3:], "executed", "triggered"),
    "p": (*SPECIAL, "executed", "triggered"),
    "flow": ("m", "d", "viewed", "label", "flow_id", "executed", "triggered"),
    "run": (*SPECIAL[:-1], "label"),
    "metered": (*SPECIAL[3:], "executed", "triggered"),
}
LACKING["loose"] = LACKING["metered"]
# What a trigger sees of a table.
SHAPE = re.compile("^(add column extra|drop|rename|alter column [a-z_]+ type|disable|owner|set s)")


def _forms() -> Iterator[Case]:
    relatives = {"t": ("t", "fk"), "p": ("p", "p1", "p2"), "p1": ("p", "p1"), "base": HEIRS}
    tables = ("t", "u", "p", "metered", "p1", "base", "child", "flow", "run", "loose")
    for turn, table in enumerate(tables):
        lacking = LACKING.get(table, LACKING["p"])
        for number, form in enumerate(ALTER_TABLE):
            special = re.search(f"column ({'|'.join(SPECIAL)}|executed|triggered)", form)
            if re.search(rf"column ({'|'.join(lacking)})(_|\b)", form) or (
                # All of it for one table, for the others in turn, as it costs a minute.
                table != "t" and not special and (not SHAPE.match(form) or (number + turn) % 3 > 0)
            ):
                continue
            yield Case(
                f"alter table {table} {form.replace('{name}', table)}",
                relatives.get(table, (table,)),
                unrecorded="able trigger" in form,
            )
        for number, steps in enumerate(STEPS):
            if table == "t" or (number + turn) % 4 == 0:
                yield Case(
                    steps.replace("{t}", table).replace("{name}", table),
                    relatives.get(table, (table,)),
                    unrecorded="do also" in steps,
                )


HEIRS = ("base", "child", "orphan")
TREE = ("p", "p1", "p2", "p3", "free", "own", "tree")
DEPENDENT = ("t", "metered", "p", "typed", "flow", "run", "u")


def generate() -> Iterator[Case]:
    """Every case."""
    yield from _forms()
    for ddl in ALTER_TABLE[::4]:
        for role in ("ddl_member", "ddl_app", "postgres"):
            yield Case(f"alter table t {ddl.replace('{name}', 't')}", ("t",), (role,),
                       unrecorded="able trigger" in ddl)  # fmt: skip
    for ddl in PARTITIONING:
        yield Case(
            ddl, TREE, ("ddl_owner", "postgres") if "attach" in ddl else ("ddl_owner",),
            unrecorded="disable" in ddl,
        )  # fmt: skip
    for ddl in INHERITING:
        yield Case(ddl, HEIRS)
    for ddl in OTHERS:
        yield Case(ddl, DEPENDENT)
    for ddl in OTHERS[::5]:
        yield Case(ddl, DEPENDENT, ("postgres", "ddl_app"))
    for ddl in SUPERUSER:
        yield Case(ddl, TABLES, ("postgres",))
    for ddl in ALONE:
        yield Case(ddl, TABLES, alone=True)
