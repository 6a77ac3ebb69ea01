"""What a dump and its restoring leave of attachments, and databases that cannot be installed in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from pgaudit_wf.dev.binaries import OLDEST_MAJOR, find_binaries
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.errors import MigrationError
from pgaudit_wf.schema.migrate import migrate
from support.copied import halt

Conn = psycopg.Connection[Any]

# Two of each kind, as settings of a kind are one COPY, which a missing table makes fail.
TABLES: LiteralString = """
create table thing (id int primary key, org text, secret text, state text default 'on');
create table other (id int primary key, org_id text);
create table flow (id int primary key, org_id text, nodes jsonb, edges jsonb);
create table flow2 (id int primary key, org text, steps jsonb, links jsonb, live boolean);
create table run (id int primary key, wf int, h text, t text, l text);
create table run2 (id int primary key, wf int, h text, t text, l text);
select pgaudit_wf.attach('thing', redact => '{secret}', org_column => 'org', on_failure => 'warn');
select pgaudit_wf.attach('other');
select pgaudit_wf.attach_workflow('flow');
select pgaudit_wf.attach_workflow('flow2', resource_type => 'pipe', org_column => 'org',
    nodes_column => 'steps', edges_column => 'links', enabled_column => 'live');
select pgaudit_wf.attach_execution(name::regclass, workflow => workflow, workflow_column => 'wf',
    hash_column => 'h', type_column => 't', label_column => 'l')
from (values ('run', 'flow'::regclass), ('run2', 'flow2')) as runs (name, workflow);
insert into pgaudit_wf.limit_condition values ('thing', $$state = 'on'$$);
select pgaudit_wf.set_org_limit(null, 'thing', 5), pgaudit_wf.set_org_limit(null, 'other', 5);
alter table thing rename org to organization;
insert into thing values (1, 'o', 's');
insert into flow values (1, 'o', '[]', '[]');
insert into flow2 values (1, 'o', '[]', '[]', true);
"""
WRITES = {
    "thing": "insert into thing values (50, 'o', 's')",
    "other": "insert into other values (50, 'o')",
    "flow": "insert into flow values (50, 'o', '[]', '[]')",
    "flow2": "insert into flow2 values (50, 'o', '[]', '[]', true)",
    "run": "insert into run (id, wf) values (50, 1)",
}
SETTINGS: LiteralString = """
select 'attachment', target::text, to_jsonb(a) - 'target' - 'columns' - 'written_for'
    - 'attached_at' - 'attached_by' from pgaudit_wf.attachment as a
union all select 'workflow', target::text, to_jsonb(w) from pgaudit_wf.workflow_attachment as w
union all select 'limit', target::text, to_jsonb(condition) from pgaudit_wf.limit_target
union all select 'runs', target::text, to_jsonb(e) from pgaudit_wf.execution_attachment as e
"""
# What the new server may be built without.
UNCOMPRESSED: LiteralString = """
do $$
declare
    compressed record;
begin
    for compressed in
        select attrelid::regclass as relation, attname from pg_attribute where attcompression = 'l'
    loop
        execute format('alter table %s alter %I set compression pglz',
            compressed.relation, compressed.attname);
    end loop;
end
$$
"""

LARGE: LiteralString = """
insert into thing select 40, 'o', 's', string_agg(md5(n::text), '') from generate_series(1, 999) n
"""
LOGGED: LiteralString = "select id, action, diff from pgaudit_wf.security_audit_log order by id"


@pytest.fixture
def empty(server: DevServer) -> Iterator[str]:
    """An empty database; removed afterwards."""
    name = f"restored_{os.getpid()}"
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            yield server.dsn(name)
        finally:
            conn.execute(sql.SQL("drop database {} (force)").format(sql.Identifier(name)))


def run(server: DevServer, program: str, *arguments: str) -> None:
    """Run a program of PostgreSQL, which may complain of what the doctor is to mend."""
    subprocess.run([str(server.bin(program)), *arguments], capture_output=True, check=False)


def dump(server: DevServer, dsn: str, file: Path, *options: str) -> None:
    # A server may be built without lz4.
    run(server, "pg_dump", "--no-toast-compression", *options, f"--file={file}", f"--dbname={dsn}")


def settings(conn: Conn) -> dict[tuple[str, str], object]:
    return {(kind, target): found for kind, target, found in conn.execute(SETTINGS).fetchall()}


def heal(conn: Conn) -> None:
    """Paste each remedy, as often as one reveals another fault; none may fail or be left."""
    for _ in range(3):
        for (remedy,) in conn.execute("select remedy from pgaudit_wf.doctor()").fetchall():
            conn.execute(remedy.encode())
    assert not conn.execute("select * from pgaudit_wf.doctor()").fetchall()


def check(conn: Conn, before: dict[tuple[str, str], object], *without: str) -> None:
    """Hold that what is left is attached as it was, and that each write is recorded once."""
    if without:
        # Without its workflows, what runs them is not stamped.
        lost = {*without, *(name.replace("flow", "run") for name in without)}
        before = {key: value for key, value in before.items() if key[1] not in lost}
    assert settings(conn) == before
    for table, statement in WRITES.items():
        if table not in without:
            conn.execute(statement.encode())
    recorded = {
        (kind, org, diff[0]["value"].get("secret"))
        for kind, org, diff in conn.execute(
            "select resource_type, org_id, diff from pgaudit_wf.security_audit_log"
            " where resource_id = '50' and captured"
        ).fetchall()
    }
    expected = {("thing", "o", "[redacted]"), ("other", "o", None), ("flow", "o", None),
                ("pipe", "o", None)}  # fmt: skip
    gone = {"flow2": "pipe"}
    assert recorded == {e for e in expected if e[0] not in {gone.get(w, w) for w in without}}
    assert conn.execute(
        "select count(*) from pgaudit_wf.security_audit_log where resource_id = '50' and captured"
    ).fetchone() == (len(recorded),)
    versions = conn.execute(
        "select workflow_id from pgaudit_wf.workflow_history where workflow_id ~ '50$' order by 1"
    ).fetchall()
    flows = {"flow": "50", "flow2": "pipe/50"}
    assert versions == [(flows[name],) for name in flows if name not in without]
    if not without:
        assert conn.execute("select h is not null, t from run where id = 50").fetchone() == (
            True,
            "internal",
        )
        for table in ("thing", "other"):
            with pytest.raises(psycopg.Error) as caught:
                conn.execute(f"insert into {table} select n, 'o' from generate_series(60, 70) as n")
            assert caught.value.sqlstate == "PA330"


@pytest.fixture
def role(server: DevServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """A role that owns what is restored."""
    name = f"restorer_{os.getpid()}"
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(f"create role {name} {request.param}".encode())
        try:
            yield name
        finally:
            conn.execute(f"drop role {name}".encode())


def prepare(conn: Conn) -> dict[tuple[str, str], object]:
    conn.execute(TABLES)
    assert not conn.execute("select * from pgaudit_wf.doctor()").fetchall()
    return settings(conn)


@pytest.mark.parametrize(
    ("dumping", "restoring"),
    [
        (["-Fd", "-j2"], [["-j2"]]),
        (["-Fc"], [["--schema-only"], ["--data-only"]]),
        (["-Fc"], [["--schema-only"], ["--data-only", "--disable-triggers"]]),
        (["-Fc", "--exclude-table=other"], [[]]),
        (["-Fc", "--exclude-table=flow"], [[]]),
        (["-Fc", "--exclude-table=flow2"], [[]]),
        (["-Fc"], [["--use-list=list"]]),
    ],
    ids=str,
)
def test_the_doctor_mends_what_a_restore_leaves(
    conn: Conn,
    dsn: str,
    server: DevServer,
    empty: str,
    tmp_path: Path,
    dumping: list[str],
    restoring: list[list[str]],
) -> None:
    before = prepare(conn)
    file, contents = tmp_path / "dump", tmp_path / "list"
    dump(server, dsn, file, *dumping)
    run(server, "pg_restore", "--list", f"--file={contents}", str(file))
    lines = contents.read_text().splitlines()
    contents.write_text("\n".join(line for line in lines if "EVENT TRIGGER" not in line))
    for options in restoring:
        given = [option.replace("=list", f"={contents}") for option in options]
        run(server, "pg_restore", *given, f"--dbname={empty}", str(file))
    with psycopg.connect(empty, autocommit=True) as restored:
        heal(restored)
        check(restored, before, *(o.split("=")[1] for o in dumping if "exclude" in o))


@pytest.mark.parametrize("role", ["nologin", "superuser"], indirect=True)
def test_a_restore_to_another_owner(
    role: str, conn: Conn, dsn: str, server: DevServer, empty: str, tmp_path: Path
) -> None:
    before = prepare(conn)
    dump(server, dsn, tmp_path / "dump", "-Fc")
    with psycopg.connect(empty, autocommit=True) as restored:
        restored.execute(
            f"grant create on database {restored.info.dbname} to {role};"
            f"grant create on schema public to {role}".encode()
        )
        run(server, "pg_restore", "--no-owner", f"--role={role}", f"--dbname={empty}",
            str(tmp_path / "dump"))  # fmt: skip
        heal(restored)
        check(restored, before)


def test_to_another_major_version_and_back(server: DevServer, empty: str, tmp_path: Path) -> None:
    with DevServer(find_binaries(OLDEST_MAJOR)) as old:
        migrate(old.dsn())
        with psycopg.connect(old.dsn(), autocommit=True) as conn:
            before = prepare(conn)
            conn.execute("create database back")
        dump(server, old.dsn(), tmp_path / "there", "-Fc")
        run(server, "pg_restore", f"--dbname={empty}", str(tmp_path / "there"))
        dump(server, empty, tmp_path / "back", "-Fc")
        run(server, "pg_restore", f"--dbname={old.dsn('back')}", str(tmp_path / "back"))
        for dsn in (empty, old.dsn("back")):
            with psycopg.connect(dsn, autocommit=True) as restored:
                heal(restored)
                check(restored, before)


@pytest.mark.slow
def test_compression_that_the_new_server_does_not_have(tmp_path: Path) -> None:
    with DevServer(find_binaries(OLDEST_MAJOR)) as old, DevServer(find_binaries()) as new:
        migrate(old.dsn())
        with psycopg.connect(old.dsn(), autocommit=True) as conn:
            before = prepare(conn)
            if not conn.execute("select from pg_attribute where attcompression = 'l'").fetchall():
                pytest.skip("the old server has no lz4 either")
            conn.execute("alter database postgres set default_toast_compression = 'lz4'")
        with psycopg.connect(old.dsn(), autocommit=True) as conn:
            conn.execute(LARGE)
            assert conn.execute(
                "select pg_column_compression(diff) from pgaudit_wf.security_audit_log"
                " where resource_id = '40'"
            ).fetchone() == ("lz4",)
            logged = conn.execute(LOGGED).fetchall()
        file = str(tmp_path / "dump")
        run(new, "pg_dump", "-Fc", "--create", f"--file={file}", f"--dbname={old.dsn()}")
        # A database's setting goes into the dump by itself: whoever can't set it has the log.
        with psycopg.connect(new.dsn(), autocommit=True) as conn:
            conn.execute("create database direct")
        run(new, "pg_restore", f"--dbname={new.dsn('direct')}", file)
        with psycopg.connect(new.dsn("direct"), autocommit=True) as restored:
            assert restored.execute(LOGGED).fetchall() == logged
        # pg_restore gives up a table whose compression fails; psql goes on after the statement.
        run(new, "pg_restore", f"--file={file}.sql", file)
        run(new, "psql", "-X", "-q", f"--file={file}.sql", f"--dbname={new.dsn()}")
        with psycopg.connect(new.dsn(), autocommit=True) as restored:
            heal(restored)
            check(restored, before)


@pytest.mark.slow
def test_an_upgrade_in_place(tmp_path: Path) -> None:
    oldest, newest = find_binaries(OLDEST_MAJOR), find_binaries()
    if oldest.major == newest.major or not (newest.bindir / "pg_upgrade").exists():
        pytest.skip("it takes two major versions, and the newer one's pg_upgrade")
    with DevServer(oldest) as old, DevServer(newest) as new:
        migrate(old.dsn())
        with psycopg.connect(old.dsn(), autocommit=True) as conn:
            before = prepare(conn)
            conn.execute(UNCOMPRESSED)
            (cursor,) = conn.execute(
                "select max(cursor) from pgaudit_wf.read_log(null, 2)"
            ).fetchone() or ("",)
            unread = conn.execute(
                "select (event).id from pgaudit_wf.read_log(%s)", [cursor]
            ).fetchall()
        halt(old)
        halt(new)
        made = new.data_dir.with_name("made")
        initdb = [str(new.bin("initdb")), "-D", str(made), "-U", "postgres", "--auth=trust",
            "--no-sync", "--encoding=UTF8", "--locale=C", "--no-data-checksums"]  # fmt: skip
        upgrade = [str(new.bin("pg_upgrade")), "-U", "postgres", "-b", str(oldest.bindir),
            "-B", str(newest.bindir), "-d", str(old.data_dir), "-D", str(made),
            "-s", str(new.socket_dir)]  # fmt: skip
        for command in (initdb, upgrade):
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=new.socket_dir,
                **new.run_as,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        new.data_dir.rename(new.data_dir.with_name("empty"))
        made.rename(new.data_dir)
        new.restart({"max_connections": 50})
        with psycopg.connect(new.dsn(), autocommit=True) as upgraded:
            heal(upgraded)
            check(upgraded, before)
            read = upgraded.execute(
                "select (event).id from pgaudit_wf.read_log(%s)", [cursor]
            ).fetchall()
            assert read[: len(unread)] == unread
            assert len(set(read)) == len(read) > len(unread)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_other_encodings_are_refused(server: DevServer, encoding: str) -> None:
    name = f"encoded_{os.getpid()}"
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(
            f"create database {name} encoding '{encoding}' locale_provider libc locale 'C'"
            " template template0"
        )
        try:
            with pytest.raises(MigrationError, match=f"encoded in {encoding}, .* needs UTF8"):
                migrate(server.dsn(name))
        finally:
            conn.execute(f"drop database {name} (force)")
