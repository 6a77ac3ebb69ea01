"""Migrations against a real server: side by side with an application, and against each other.

Until something is released, what is migrated to is sql/ as it stands. A release is made in a
temporary folder, then, so that upgrades are tried before the first user has one.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.errors import MigrationChangedError, MigrationError, MigrationLockedError
from pgaudit_wf.schema import ledger
from pgaudit_wf.schema.files import GROUPS
from pgaudit_wf.schema.migrate import applied, migrate, pending
from support.pgbouncer import pooled

ROOT = Path(__file__).parents[2]
CORE = "pgaudit_wf.core.0001_first"
APP = "pgaudit_wf.app.0001_first"
# The version that a test releases, before the first that somebody else can have.
NEXT = "99.0.0"

FIRST = """\
create schema pgaudit_wf;
create function pgaudit_wf.greeting() returns text
language plpgsql immutable
as $body$
begin
  -- a semicolon; a 'quote, a %s and $$ survive
  return 'first; %';
end
$body$;
"""


def run(
    *command: str | Path,
    check: bool = True,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        capture_output=True,
        text=True,
        input=stdin,
        cwd=cwd,
        env=env,
    )
    assert done.returncode == 0 or not check, done.stderr
    return done


def make_migration(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, ROOT / "tools" / "make_migration.py", *arguments, check=check)


def dump(server: DevServer, dsn: str, *arguments: str) -> str:
    text = run(server.bin("pg_dump"), "--schema-only", *arguments, "--dbname", dsn).stdout
    # Newer pg_dumps fence the script with a random key.
    return re.sub(r"^\\(un)?restrict .*\n", "", text, flags=re.MULTILINE)


def roles(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as conn:
        return {row[0] for row in conn.execute("select rolname from pg_roles")}


def value(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as conn:
        row = conn.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


def execute(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


def as_url(dsn: str, scheme: str = "postgresql") -> str:
    parts = {key: quote(str(val), safe="") for key, val in conninfo_to_dict(dsn).items()}
    database, user = parts.pop("dbname"), parts.pop("user")
    query = "&".join(f"{key}={val}" for key, val in parts.items())
    return f"{scheme}://{user}@/{database}?{query}"


@pytest.fixture
def directory(tmp_path: Path) -> "Directory":
    made = Directory(tmp_path / "database")
    made.add("core", 1, FIRST)
    made.uninstall("core", "drop schema pgaudit_wf cascade;\n")
    return made


class Directory:
    """Released migrations of a test's own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, group: str, number: int, text: str, rollback: str | None = None) -> Path:
        folder = self.path / "migrations" / group
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"pgaudit_wf.{group}.{number:04}_test.sql"
        path.write_text(text)
        if rollback is not None:
            path.with_suffix(".rollback.sql").write_text(rollback)
        return path

    def source(self, name: str, text: str) -> Path:
        path = self.path / "sql" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def uninstall(self, group: str, text: str) -> Path:
        return self.source(f"uninstall/{group}.sql", text)


@pytest.fixture
def role(server: DevServer) -> Iterator[Callable[[str], str]]:
    """Make login roles without any rights.

    Ask for it before the database that they are to own, so that it is gone by the time they go.
    """
    made: list[str] = []

    def make(name: str) -> str:
        execute(
            server.dsn(), sql.SQL("create role {} login").format(sql.Identifier(name)).as_string()
        )
        made.append(name)
        return name

    yield make
    for name in made:
        quoted = sql.Identifier(name)
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute(sql.SQL("drop role {}").format(quoted))


# Next to an application


METADATA = sa.MetaData()
sa.Table("invoice", METADATA, sa.Column("id", sa.Integer, primary_key=True))


@pytest.mark.parametrize("with_app_schema", [False, True])
def test_removing_leaves_the_database_as_it_was(
    server: DevServer, empty_dsn: str, with_app_schema: bool
) -> None:
    execute(empty_dsn, "create table public.invoice (id int primary key, note text)")
    before, roles_before = dump(server, empty_dsn), roles(empty_dsn)
    migrate(empty_dsn, with_app_schema=with_app_schema)
    execute(
        empty_dsn,
        "select pgaudit_wf.attach('public.invoice')",
        "insert into public.invoice values (1, 'kept')",
    )
    assert dump(server, empty_dsn) != before

    result = migrate(empty_dsn, to=0)

    assert result.version == 0
    assert result.rolled_back[-1] == CORE
    assert dump(server, empty_dsn) == before
    assert roles(empty_dsn) - roles_before <= {
        "pgaudit_wf_owner",
        "pgaudit_wf_app",
        "pgaudit_wf_reader",
    }
    assert value(empty_dsn, "select note from public.invoice") == "kept"
    assert migrate(empty_dsn, to=0).rolled_back == ()
    assert dump(server, empty_dsn) == before


def test_roles_that_no_other_database_needs_go_too(empty_dsn: str, directory: Directory) -> None:
    # The suite's templates keep the real roles alive, so the script's text is tried with others.
    text = (ROOT / "sql" / "uninstall" / "core.sql").read_text()
    names = {"pgaudit_wf_app": f"r{uuid.uuid4().hex}", "pgaudit_wf_reader": f"r{uuid.uuid4().hex}"}
    create = FIRST
    for name, other in names.items():
        assert name in text
        text = text.replace(name, other)
        create += f"create role {other};\ngrant usage on schema pgaudit_wf to {other};\n"
    directory.add("core", 1, create)
    directory.uninstall("core", text)
    before = roles(empty_dsn)
    migrate(empty_dsn, directory=directory.path)
    assert roles(empty_dsn) == before | set(names.values())
    migrate(empty_dsn, to=0, directory=directory.path)
    assert roles(empty_dsn) == before


def test_alembic_proposes_nothing(empty_dsn: str) -> None:
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(empty_dsn))
    try:
        METADATA.create_all(engine)
        execute(
            empty_dsn, "create table public.alembic_version (version_num varchar(32) primary key)"
        )
        migrate(empty_dsn)
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, METADATA) == []
    finally:
        engine.dispose()


def test_the_applications_own_yoyo_goes_on(empty_dsn: str, tmp_path: Path) -> None:
    def yoyo(command: str, folder: Path, options: str = "") -> str:
        uri = as_url(empty_dsn, "postgresql+psycopg") + options
        arguments = ["-m", "yoyo", command, "--batch", "--no-config-file", "--database", uri]
        return run(sys.executable, *arguments, folder).stdout

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "0001.invoice.sql").write_text("create table public.invoice (id int)")
    yoyo("apply", theirs)
    released = copy_of_checkout(tmp_path / "released")
    make_migration("--root", released, "--release", NEXT)
    migrate(empty_dsn, directory=released)
    (theirs / "0002.note.sql").write_text("alter table public.invoice add note text")
    yoyo("apply", theirs)
    assert value(empty_dsn, "select count(*) from public._yoyo_migration") == 2
    assert value(empty_dsn, "select count(note) from public.invoice") == 0
    # And yoyo itself understands the books that we keep.
    listed = yoyo("list", released / "migrations" / "core", f"&schema={ledger.LEDGER_SCHEMA}")
    assert re.search(rf"A\s+{re.escape(CORE)}", listed)


def test_an_object_of_the_user_that_depends_on_ours_stops_the_removal(empty_dsn: str) -> None:
    migrate(empty_dsn)
    execute(
        empty_dsn,
        "create view public.my_trail as select * from pgaudit_wf.security_audit_log",
        "create table public.mine (kept pgaudit_wf.security_audit_log)",
        "create policy seen on public.mine using (pgaudit_wf._context_value('app.org_id') = 'o')",
        "create table public.other (ip inet default pgaudit_wf._context_ip())",
    )
    with pytest.raises(MigrationError) as caught:
        migrate(empty_dsn, to=0)
    for name in (
        "view public.my_trail",
        "table column public.mine.kept",
        "policy seen on public.mine",
        "table public.other",
    ):
        assert name in str(caught.value)
    assert [entry.id for entry in applied(empty_dsn)] == [CORE]
    execute(empty_dsn, "drop view public.my_trail", "drop table public.mine, public.other")
    assert migrate(empty_dsn, to=0).rolled_back == (CORE,)


def test_the_app_schema_comes_and_goes_alone(server: DevServer, empty_dsn: str) -> None:
    migrate(empty_dsn)
    core_only = dump(server, empty_dsn, "--exclude-schema", ledger.LEDGER_SCHEMA)
    rules = value(empty_dsn, "select count(*) from pgaudit_wf.action_rule")
    assert pending(empty_dsn) == ()
    assert pending(empty_dsn, with_app_schema=True) == (APP,)
    assert migrate(empty_dsn, with_app_schema=True).applied == (APP,)
    assert value(empty_dsn, "select count(*) from public.workflow") == 0
    assert migrate(empty_dsn).rolled_back == ()

    execute(empty_dsn, (ROOT / "sql" / "uninstall" / "app.sql").read_text())

    assert dump(server, empty_dsn, "--exclude-schema", ledger.LEDGER_SCHEMA) == core_only
    assert value(empty_dsn, "select count(*) from pgaudit_wf.action_rule") == rules
    assert value(empty_dsn, "select count(*) from pgaudit_wf.attached") == 0


def test_tables_detached_or_dropped_by_hand_do_not_stop_the_uninstall(
    server: DevServer, empty_dsn: str
) -> None:
    before = dump(server, empty_dsn)
    migrate(empty_dsn, with_app_schema=True)
    execute(
        empty_dsn,
        "select pgaudit_wf.detach('public.wallet')",
        "select pgaudit_wf.detach_execution('public.workflow_execution')",
        "drop table public.subscription",
    )
    assert migrate(empty_dsn, to=0).rolled_back == (APP, CORE)
    assert dump(server, empty_dsn) == before


# Twice, together, killed


def test_twice_is_once(server: DevServer, empty_dsn: str) -> None:
    assert pending(empty_dsn) == (CORE,)
    assert applied(empty_dsn) == ()
    assert migrate(empty_dsn).applied == (CORE,)
    once = dump(server, empty_dsn)
    again = migrate(empty_dsn)
    assert (again.applied, again.rolled_back, again.version) == ((), (), 1)
    assert dump(server, empty_dsn) == once
    assert [entry.id for entry in applied(empty_dsn)] == [CORE]
    assert pending(empty_dsn) == ()


def start_migrators(
    dsn: str, count: int, *, directory: Path | None = None, to: Sequence[int | None] = (None,)
) -> list[subprocess.Popen[str]]:
    script = textwrap.dedent("""\
        import sys
        from pathlib import Path
        from pgaudit_wf.schema.migrate import migrate
        dsn, to, directory = sys.argv[1:]
        result = migrate(
            dsn, to=to or None, directory=Path(directory) if directory else None, lock_timeout=120
        )
        print(*result.applied)
    """)
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                script,
                dsn,
                "" if to[i % len(to)] is None else str(to[i % len(to)]),
                str(directory or ""),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_many_processes_at_once(server: DevServer, empty_dsn: str, count: int) -> None:
    processes = start_migrators(empty_dsn, count)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    assert sorted(out.strip() for out, _ in outputs) == [""] * (count - 1) + [CORE]
    assert all(err == "" for _, err in outputs)


@pytest.fixture
def pooled_dsn(server: DevServer, empty_dsn: str) -> Iterator[str]:
    """`empty_dsn` behind PgBouncer in transaction mode."""
    with pooled(server, empty_dsn) as address:
        yield address


def test_behind_a_transaction_pooler(pooled_dsn: str) -> None:
    with psycopg.connect(pooled_dsn, autocommit=True) as conn:
        before = conn.execute("show search_path").fetchone()
    processes = start_migrators(pooled_dsn, 5)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 5, outputs
    assert sorted(out.strip() for out, _ in outputs) == [""] * 4 + [CORE]
    with psycopg.connect(pooled_dsn, autocommit=True) as conn:
        assert conn.execute("show search_path").fetchone() == before
        held = conn.execute("select count(*) from pg_locks where locktype = 'advisory'")
        assert held.fetchone() == (0,)
    assert migrate(pooled_dsn, to=0).rolled_back == (CORE,)


def test_up_and_down_at_once(empty_dsn: str, directory: Directory) -> None:
    processes = start_migrators(empty_dsn, 10, directory=directory.path, to=[None, 0])
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 10, outputs
    migrate(empty_dsn, directory=directory.path)
    assert value(empty_dsn, "select pgaudit_wf.greeting()") == "first; %"


def test_a_killed_migrator_leaves_neither_lock_nor_half_a_schema(
    empty_dsn: str, directory: Directory
) -> None:
    path = directory.add("core", 1, f"{FIRST}\nselect pg_sleep(300);\n")
    (process,) = start_migrators(empty_dsn, 1, directory=directory.path)
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        deadline = time.monotonic() + 30
        asleep = "select exists (select from pg_stat_activity where wait_event = 'PgSleep'"
        asleep += " and datname = current_database())"
        while conn.execute(asleep.encode()).fetchone() != (True,):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(MigrationLockedError, match=r"server process \d+.*wait for it"):
            migrate(empty_dsn, directory=directory.path, lock_timeout=0.2)
        process.kill()
        process.communicate()
        path.write_text(FIRST)
        migrate(empty_dsn, directory=directory.path, lock_timeout=20)
        assert conn.execute("select pgaudit_wf.greeting()").fetchone() == ("first; %",)


def test_waiting_does_not_hold_up_an_index_built_concurrently(
    empty_dsn: str, directory: Directory
) -> None:
    execute(empty_dsn, "create table public.invoice (id int)")
    with psycopg.connect(empty_dsn, autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(%s)", [ledger.LOCK_KEY])
        (process,) = start_migrators(empty_dsn, 1, directory=directory.path)
        with psycopg.connect(empty_dsn, autocommit=True) as conn:
            seen = "select exists (select from pg_stat_activity where datname = current_database()"
            seen += " and application_name = 'pgaudit-wf migrate')"
            while conn.execute(seen.encode()).fetchone() != (True,):
                assert process.poll() is None
                time.sleep(0.02)
            conn.execute("set statement_timeout = '20s'")
            conn.execute("create index concurrently on public.invoice (id)")
        assert process.poll() is None
    assert process.communicate(timeout=60)[0].strip() == "pgaudit_wf.core.0001_test"


# Both roads


@contextmanager
def database_by_sql(server: DevServer, root: Path, groups: Sequence[str]) -> Iterator[str]:
    """A database made by psql from a checkout's sql/, without any of our code."""
    name = f"by_sql_{uuid.uuid4().hex}"
    execute(server.dsn(), f"create database {name} template template0")
    try:
        for group in groups:
            files = sorted((root / "sql" / group).rglob("*.sql"))
            run(
                server.bin("psql"), "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1",
                "-d", server.dsn(name), "-f", "-", stdin="\n".join(p.read_text() for p in files),
            )  # fmt: skip
        yield server.dsn(name)
    finally:
        execute(server.dsn(), f"drop database {name} with (force)")


@pytest.mark.parametrize("groups", [["core"], ["core", "app"]])
def test_migrations_make_what_sql_makes(
    server: DevServer, empty_dsn: str, groups: list[str]
) -> None:
    with database_by_sql(server, ROOT, groups) as by_sql:
        migrate(empty_dsn, with_app_schema="app" in groups)
        assert schema_of(server, empty_dsn) == dump(server, by_sql)


def test_migrations_are_up_to_date_with_sql() -> None:
    checked = make_migration("--check", check=False)
    assert checked.returncode == 0, checked.stderr


# From each released version to the newest


def copy_of_checkout(path: Path) -> Path:
    for folder in ("sql", "migrations"):
        shutil.copytree(ROOT / folder, path / folder)
    return path


def released_versions(root: Path) -> dict[str, list[str]]:
    """The files that were there in each released version, oldest version first."""
    found: dict[str, list[str]] = {}
    files: list[str] = []
    for line in (root / "migrations" / "CHECKSUMS").read_text().splitlines():
        if heading := re.fullmatch(r"# (\d+\.\S+)", line):
            found[heading[1]] = files = list(files)
        elif not line.startswith("#"):
            files.append(line.split()[1])
    return found


def try_upgrade(server: DevServer, dsn: str, root: Path, version: str, scratch: Path) -> None:
    """Install a released version, use it, upgrade it to the checkout at `root`, and remove it."""
    before = dump(server, dsn)
    for file in released_versions(root)[version]:
        copy = scratch / "migrations" / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "migrations" / file, copy)

    migrate(dsn, with_app_schema=True, directory=scratch)
    assert migrate(dsn, to=0, directory=root).version == 0
    assert dump(server, dsn) == before, "the newest package removes the old version"

    migrate(dsn, with_app_schema=True, directory=scratch)
    execute(dsn, "insert into public.organization (id, name) values ('o', 'before')")
    log = (
        "select jsonb_agg(to_jsonb(l) order by id) from pgaudit_wf.security_audit_log as l"
        " where action !~ '^audit[.]'"
    )
    old = value(dsn, log)
    assert isinstance(old, list)
    migrate(dsn, directory=root)
    with database_by_sql(server, root, GROUPS) as by_sql:
        assert schema_of(server, dsn) == dump(server, by_sql)
    execute(dsn, "update public.organization set name = 'after'")
    new = value(dsn, log)
    assert isinstance(new, list)
    assert [{key: event[key] for key in was} for was, event in zip(old, new, strict=False)] == old
    assert [event["action"] for event in new] == ["org.created", "org.updated"]
    migrate(dsn, to=0, directory=root)
    assert dump(server, dsn) == before


def release_and_change(root: Path) -> Path:
    """Make a release of a copy of the checkout, then a migration from it."""
    copy_of_checkout(root)
    make_migration("--root", root, "--release", NEXT)
    core = root / "sql" / "core"
    (core / "50_new").mkdir()
    (core / "50_new" / "10_new.sql").write_text(
        "create table pgaudit_wf.new (id bigint generated always as identity primary key);\n"
        "comment on table pgaudit_wf.new is 'New.';\n"
        "create function pgaudit_wf.count_new() returns bigint\n"
        "language sql stable security definer\n"
        "set search_path = pg_catalog, pg_temp\n"
        "as $$ select count(*) from pgaudit_wf.new $$;\n"
    )
    old = "create function pgaudit_wf._schema_owner() returns name\nlanguage sql stable\n"
    (source,) = (path for path in core.rglob("*.sql") if old in path.read_text())
    source.write_text(source.read_text().replace(old, f"{old.strip()} parallel safe\n"))
    lagging = make_migration("--root", root, "--release", "99.1.0", check=False)
    assert lagging.returncode == 1
    assert "run make migration NAME=… first" in lagging.stderr
    assert make_migration("--root", root, "count_new").stderr == ""
    (made,) = (root / "migrations" / "core").glob("*_count_new.sql")
    text = made.read_text()
    assert text.count("create or replace function") == 2
    # Who may call what is computed when it is installed.
    made.write_text(
        text.replace("\nreset role;", "\nselect pgaudit_wf.grant_roles();\n\nreset role;")
    )
    return root


@pytest.mark.parametrize("version", [*released_versions(ROOT), NEXT])
def test_every_released_version_can_be_upgraded(
    server: DevServer, empty_dsn: str, tmp_path: Path, version: str
) -> None:
    root = release_and_change(tmp_path / "checkout") if version == NEXT else ROOT
    try_upgrade(server, empty_dsn, root, version, tmp_path / "installed")


def test_a_database_made_the_day_before_belongs_to_the_release(
    server: DevServer, empty_dsn: str, tmp_path: Path
) -> None:
    root = copy_of_checkout(tmp_path / "checkout")
    migrate(empty_dsn, with_app_schema=True, directory=root)
    before = dump(server, empty_dsn)
    make_migration("--root", root, "--release", NEXT)
    again = migrate(empty_dsn, directory=root)
    assert (again.applied, again.rolled_back) == ((), ())
    assert dump(server, empty_dsn) == before


# Who may, and with which connection string


def test_a_plain_owner_needs_no_superuser(
    server: DevServer, role: Callable[[str], str], empty_dsn: str
) -> None:
    owner = role(f"owner_{uuid.uuid4().hex}")
    database = str(conninfo_to_dict(empty_dsn)["dbname"])
    execute(server.dsn(), f"alter database {database} owner to {owner}")
    theirs = server.dsn(database, owner)
    before = dump(server, empty_dsn)
    migrate(theirs, with_app_schema=True)
    assert value(theirs, "select count(*) from public.workflow") == 0
    migrate(theirs, to=0)
    assert dump(server, empty_dsn) == before
    # What the superuser has installed is not the owner's to change.
    migrate(empty_dsn)
    with pytest.raises(MigrationError, match=r'belongs to role "pgaudit_wf_owner".*superuser'):
        migrate(theirs)
    with pytest.raises(MigrationError, match="may not read schema pgaudit_wf_migration"):
        applied(theirs)


def test_a_role_that_may_not_create_schemas_is_told_what_to_do(
    server: DevServer, empty_dsn: str, role: Callable[[str], str]
) -> None:
    name = role(f"guest_{uuid.uuid4().hex}")
    database = str(conninfo_to_dict(empty_dsn)["dbname"])
    with pytest.raises(MigrationError, match=f'grant create on database "{database}" to "{name}"'):
        migrate(server.dsn(database, name))


def test_an_old_server_is_refused(empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "OLDEST_SERVER", 99)
    with pytest.raises(
        MigrationError, match=r"this server is PostgreSQL \d+: .* needs 99 or newer"
    ):
        migrate(empty_dsn)
    assert value(empty_dsn, "select to_regnamespace('pgaudit_wf_migration') is null") is True


def test_a_schema_made_by_hand_is_left_alone(empty_dsn: str) -> None:
    execute(empty_dsn, "create schema pgaudit_wf")
    with pytest.raises(MigrationError, match="schema pgaudit_wf that no migration created"):
        migrate(empty_dsn)


def test_every_kind_of_connection_string(
    server: DevServer,
    directory: Directory,
    role: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "o'd d%/?&#\"ü"
    owner = role(f"x@y:z%{uuid.uuid4().hex}")
    create = sql.SQL("create database {} template template0 owner {}")
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(create.format(sql.Identifier(name), sql.Identifier(owner)))
        try:
            dsn = make_conninfo(server.dsn(), dbname=name, user=owner)
            socket = conninfo_to_dict(dsn)
            password = "p@:/%?# w'\\"
            service = tmp_path / "service.conf"
            service.write_text(f"[ours]\nhost={socket['host']}\ndbname={name}\nuser={owner}\n")
            monkeypatch.setenv("PGSERVICEFILE", str(service))
            migrate(dsn, directory=directory.path)
            for conninfo in (
                make_conninfo(dsn, password=password),
                as_url(dsn),
                as_url(dsn, "postgres"),
                as_url(dsn, "postgresql+psycopg") + f"&password={quote(password, safe='')}",
                "service=ours",
                "postgresql://?service=ours",
            ):
                assert [entry.id for entry in applied(conninfo)] == ["pgaudit_wf.core.0001_test"]
            monkeypatch.setenv("PGHOST", str(socket["host"]))
            monkeypatch.setenv("PGDATABASE", name)
            monkeypatch.setenv("PGUSER", owner)
            assert migrate("", directory=directory.path).version == 1
        finally:
            conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def test_settings_of_role_and_database_do_not_matter(empty_dsn: str) -> None:
    database = conninfo_to_dict(empty_dsn)["dbname"]
    execute(
        empty_dsn,
        "create schema elsewhere",
        *(
            f"alter database {database} set {setting}"
            for setting in (
                "search_path = elsewhere",
                # Short for an installation, long for its first statement on a busy machine.
                "statement_timeout = '100ms'",
                "idle_in_transaction_session_timeout = '500ms'",
                "default_transaction_isolation = 'serializable'",
                "datestyle = 'German'",
            )
        ),
    )
    assert migrate(empty_dsn, with_app_schema=True).applied == (CORE, APP)
    assert (
        value(
            empty_dsn,
            "select count(*) from pg_class where relnamespace = 'elsewhere'::regnamespace",
        )
        == 0
    )


# When something is wrong


def test_a_failing_migration_names_itself_and_its_line(
    server: DevServer, empty_dsn: str, directory: Directory
) -> None:
    path = directory.add("core", 2, "-- ü\ncreate table pgaudit_wf.kept ();\n\nselect nowhere;\n")
    with pytest.raises(MigrationError) as caught:
        migrate(empty_dsn, directory=directory.path)
    message = str(caught.value)
    assert path.stem in message
    assert f"{path.name}, line 4; SQLSTATE 42703" in message
    assert 'column "nowhere" does not exist' in message
    assert [entry.id for entry in applied(empty_dsn)] == ["pgaudit_wf.core.0001_test"]
    assert value(empty_dsn, "select to_regclass('pgaudit_wf.kept') is null") is True
    path.write_text("create table pgaudit_wf.kept ();\n")
    assert migrate(empty_dsn, directory=directory.path).applied == (path.stem,)


def test_a_failing_first_migration_leaves_nothing(
    server: DevServer, empty_dsn: str, directory: Directory
) -> None:
    before = dump(server, empty_dsn)
    directory.add("core", 1, f"{FIRST}\nselect 1 / 0;\n")
    with pytest.raises(MigrationError, match="division by zero"):
        migrate(empty_dsn, directory=directory.path)
    assert dump(server, empty_dsn) == before


def test_before_a_release_sql_is_the_first_migration(
    server: DevServer, empty_dsn: str, tmp_path: Path
) -> None:
    directory = Directory(tmp_path / "database")
    directory.source("core/10_first/90_schema.sql", "create schema pgaudit_wf;\n")
    directory.source("core/20_then/10_a.sql", "create table pgaudit_wf.a ();\n")
    broken = directory.source("core/20_then/20_b.sql", "-- ü\n\ncreate table pgaudit_wf.a ();\n")
    directory.source("app/010_room.sql", "create table public.room ();\n")
    directory.uninstall("core", "drop schema pgaudit_wf cascade;\n")
    directory.uninstall("app", "drop table public.room;\n")
    before = dump(server, empty_dsn)
    with pytest.raises(MigrationError) as caught:
        migrate(empty_dsn, directory=directory.path)
    assert f"{CORE} could not be applied" in str(caught.value)
    assert "(sql/core/20_then/20_b.sql; SQLSTATE 42P07)" in str(caught.value)
    broken.write_text("-- ü\n\nselect nowhere;\n")
    with pytest.raises(MigrationError) as caught:
        migrate(empty_dsn, directory=directory.path)
    assert "(sql/core/20_then/20_b.sql, line 3; SQLSTATE 42703)" in str(caught.value)
    assert dump(server, empty_dsn) == before, "one transaction, however many files"

    broken.write_text("create table pgaudit_wf.b ();\n")
    result = migrate(empty_dsn, with_app_schema=True, directory=directory.path)
    assert (result.applied, result.version) == ((CORE, APP), 1)
    assert pending(empty_dsn, directory=directory.path) == ()
    broken.write_text("create table pgaudit_wf.c ();\n")
    with pytest.raises(MigrationChangedError, match=f"{CORE} had a different text.*--to 0"):
        migrate(empty_dsn, directory=directory.path)
    assert migrate(empty_dsn, to=0, directory=directory.path).rolled_back == (APP, CORE)
    assert dump(server, empty_dsn) == before


def test_a_deferred_constraint_is_checked_within_its_migration(
    empty_dsn: str, directory: Directory
) -> None:
    path = directory.add(
        "core",
        2,
        "create table pgaudit_wf.a (id int unique deferrable initially deferred);\n"
        "insert into pgaudit_wf.a values (1), (1);\n",
    )
    with pytest.raises(MigrationError, match=f"{path.stem}.*SQLSTATE 23505"):
        migrate(empty_dsn, directory=directory.path)


def test_a_failing_removal_changes_nothing(empty_dsn: str, directory: Directory) -> None:
    directory.uninstall("core", "drop schema pgaudit_wf cascade;\nselect nowhere;")
    second = directory.add("core", 2, "create table pgaudit_wf.a ()")
    migrate(empty_dsn, directory=directory.path)
    with pytest.raises(
        MigrationError,
        match=r"schema pgaudit_wf could not be removed: .*\(sql/uninstall/core\.sql, line 2; ",
    ):
        migrate(empty_dsn, to=0, directory=directory.path)
    assert applied(empty_dsn)[-1].id == second.stem
    assert value(empty_dsn, "select to_regclass('pgaudit_wf.a') is not null") is True


def test_a_failing_rollback_changes_nothing(empty_dsn: str, directory: Directory) -> None:
    second = directory.add("core", 2, "create table pgaudit_wf.a ()", "select 1 / 0")
    third = directory.add("core", 3, "create table pgaudit_wf.b ()", "drop table pgaudit_wf.b")
    migrate(empty_dsn, directory=directory.path)
    with pytest.raises(
        MigrationError, match=f"{second.stem} could not be rolled back: division by zero"
    ):
        migrate(empty_dsn, to=1, directory=directory.path)
    assert applied(empty_dsn)[-1].id == third.stem
    assert value(empty_dsn, "select to_regclass('pgaudit_wf.b') is not null") is True


def test_without_a_way_back_a_backup_is_asked_for(empty_dsn: str, directory: Directory) -> None:
    second = directory.add("core", 2, "create table pgaudit_wf.a ()")
    third = directory.add("core", 3, "create table pgaudit_wf.b ()", "drop table pgaudit_wf.b")
    migrate(empty_dsn, directory=directory.path)
    assert migrate(empty_dsn, to=2, directory=directory.path).rolled_back == (third.stem,)
    migrate(empty_dsn, directory=directory.path)
    with pytest.raises(
        MigrationError, match=f"^{second.stem} cannot be rolled back.*restore a backup"
    ):
        migrate(empty_dsn, to=1, directory=directory.path)
    assert applied(empty_dsn)[-1].id == third.stem
    # Removal needs none of them.
    assert migrate(empty_dsn, to=0, directory=directory.path).version == 0


def test_an_edited_migration_is_noticed(empty_dsn: str, directory: Directory) -> None:
    migrate(empty_dsn, directory=directory.path)
    path = directory.add("core", 1, f"{FIRST}-- edited\n")
    with pytest.raises(MigrationChangedError, match=f"{path.stem} had a different text"):
        migrate(empty_dsn, directory=directory.path)
    assert migrate(empty_dsn, to=0, directory=directory.path).rolled_back == (path.stem,)


def test_a_newer_database_is_left_alone(empty_dsn: str, directory: Directory) -> None:
    newer = directory.add("core", 2, "create table pgaudit_wf.a ()", "drop table pgaudit_wf.a")
    migrate(empty_dsn, directory=directory.path)
    newer.unlink()
    for to in (None, 0):
        with pytest.raises(MigrationChangedError, match=f"{newer.stem}, which this version"):
            migrate(empty_dsn, to=to, directory=directory.path)


def test_warnings_are_handed_on(empty_dsn: str, directory: Directory) -> None:
    directory.add("core", 2, "do $$ begin raise warning 'no event triggers here'; end $$")
    result = migrate(empty_dsn, directory=directory.path)
    assert result.warnings == ("no event triggers here",)


def test_stopping_at_a_number(empty_dsn: str, directory: Directory) -> None:
    ids = ["pgaudit_wf.core.0001_test"]
    for number in (2, 3):
        make, drop = f"create table pgaudit_wf.t{number} ()", f"drop table pgaudit_wf.t{number}"
        ids.append(directory.add("core", number, make, drop).stem)
    app = directory.add("app", 1, f"-- depends: {ids[1]}\ncreate table public.app ()").stem
    directory.uninstall("app", "drop table public.app")

    def go(to: str | int | None, *, app: bool = False) -> tuple[list[str], list[str], int]:
        result = migrate(empty_dsn, to=to, with_app_schema=app, directory=directory.path)
        return list(result.applied), list(result.rolled_back), result.version

    assert go(2) == (ids[:2], [], 2)
    assert go(None) == (ids[2:], [], 3)
    assert go("2") == ([], ids[2:], 2)
    assert go("app.0001") == ([*ids[2:], app], [], 3)
    assert go(1) == ([], [app, ids[2], ids[1]], 1)
    assert go(3, app=True) == ([ids[1], ids[2], app], [], 3)
    for wrong, problem in (
        (4, "does not exist"),
        ("test", "is ambiguous"),
        ("x", "does not exist"),
    ):
        with pytest.raises(MigrationError, match=f"migration {wrong} {problem}: choose 0 or one"):
            go(wrong)
    assert go("0") == ([], [app, *reversed(ids)], 0)


def test_a_misnamed_or_missing_migration_is_refused(empty_dsn: str, directory: Directory) -> None:
    misnamed = directory.path / "migrations" / "core" / "0002.sql"
    misnamed.write_text("")
    with pytest.raises(MigrationError, match=r"named pgaudit_wf\.core\.NNNN_some_name\.sql"):
        pending(empty_dsn, directory=directory.path)
    misnamed.unlink()
    directory.add("app", 1, "-- depends: pgaudit_wf.core.0009_gone\nselect 1")
    with pytest.raises(MigrationError, match=r"depends on pgaudit_wf\.core\.0009_gone: no such"):
        pending(empty_dsn, directory=directory.path)
    shutil.rmtree(directory.path)
    with pytest.raises(MigrationError, match="no migrations in"):
        pending(empty_dsn, directory=directory.path)


# From a wheel


@pytest.mark.slow
def test_from_a_wheel(empty_dsn: str, tmp_path: Path) -> None:
    # By way of the source archive, from which others build theirs.
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sql").rglob("*.sql")}
    assert inside >= sources | {"migrations/CHECKSUMS", "tools/make_migration.py"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, archive)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    run(*pip, "install", "--no-deps", "--target", target, wheel)
    database = target / "pgaudit_wf" / "_database"
    assert {path.relative_to(database).as_posix() for path in database.rglob("*.sql")} >= sources
    assert (database / "migrations" / "CHECKSUMS").is_file()
    assert not list(database.rglob("__init__.py"))
    script = textwrap.dedent("""\
        import sys
        sys.path.insert(0, sys.argv[1])
        from pgaudit_wf.schema import migrate
        assert migrate.__file__.startswith(sys.argv[1]), migrate.__file__
        print(*migrate.migrate(sys.argv[2], with_app_schema=True).applied)
        print(*migrate.migrate(sys.argv[2], to=0).rolled_back)
    """)
    environment = {key: val for key, val in os.environ.items() if key != "PYTHONPATH"}
    done = run(sys.executable, "-c", script, target, empty_dsn, cwd=tmp_path, env=environment)
    assert done.stdout.split() == [CORE, APP, APP, CORE]


# The tool that writes migrations


SOURCE = """\
-- Why this schema is here.
create schema pgaudit_wf;

-- Says hello; in German for „…“.
create function pgaudit_wf.greeting(name text, loud boolean default false) returns text
language sql immutable
as $$
  select 'hello ' || name;
$$;
comment on function pgaudit_wf.greeting(text, boolean) is 'It is; a greeting.';

create table pgaudit_wf.guest (id int primary key);
create view pgaudit_wf.guest_name as select pgaudit_wf.greeting(id::text) as name
from pgaudit_wf.guest;
grant select on pgaudit_wf.guest_name to public;
create domain pgaudit_wf.short as text check (length(value) < 9);
create type pgaudit_wf.size as enum ('s', 'l');
create type pgaudit_wf.pair as (a int, b pgaudit_wf.size);
create sequence pgaudit_wf.number;
create function pgaudit_wf.size_of(integer) returns integer
language sql immutable as 'select $1';
comment on function pgaudit_wf.size_of(int) is 'Returns what it gets.';
revoke all on function pgaudit_wf.size_of(int) from public;
create function pgaudit_wf.obsolete() returns int language sql immutable as 'select 1';
comment on function pgaudit_wf.obsolete() is 'Goes.';
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout of which nothing is released."""
    root = tmp_path / "checkout"
    for group, text in (
        ("core", SOURCE),
        (
            "app",
            "create table public.room (id int primary key, guest_id int);\n"
            "create or replace view pgaudit_wf.guest_name as select 'room '::text as name;\n",
        ),
    ):
        (root / "sql" / group).mkdir(parents=True)
        (root / "sql" / group / "010_all.sql").write_text(text)
    uninstall = root / "sql" / "uninstall"
    uninstall.mkdir()
    (uninstall / "core.sql").write_text("drop schema pgaudit_wf cascade;\n")
    (uninstall / "app.sql").write_text("drop table public.room;\n")
    return root


@pytest.fixture
def released(checkout: Path) -> Path:
    """The small checkout with its first release."""
    make_migration("--root", checkout, "--release", "0.1.0")
    return checkout


def schema_of(server: DevServer, dsn: str) -> str:
    return dump(server, dsn, "--exclude-schema", ledger.LEDGER_SCHEMA)


def test_before_a_release_there_is_no_migration_to_write(checkout: Path) -> None:
    for arguments in ([], ["name"]):
        refused = make_migration("--root", checkout, *arguments, check=False)
        assert refused.returncode == 1
        assert "nothing is released" in refused.stderr
    assert make_migration("--root", checkout, "--check").returncode == 0
    assert not (checkout / "migrations").exists()


def test_a_release_freezes_sql_as_the_first_migrations(checkout: Path) -> None:
    directory = checkout / "migrations"
    for wrong in ("", "v1", "1.0"):
        refused = make_migration("--root", checkout, "--release", wrong, check=False)
        assert refused.returncode == 1
        assert "make release VERSION=1.2.3" in refused.stderr
    assert not directory.exists()
    said = make_migration("--root", checkout, "--release", "0.1.0").stdout
    assert str(directory / "core" / f"{CORE}.sql") in said
    assert "0.1.0 is frozen" in said
    assert SOURCE in (directory / "core" / f"{CORE}.sql").read_text()
    app = (directory / "app" / f"{APP}.sql").read_text()
    assert app.startswith(f"-- depends: {CORE}\n")
    run("sha256sum", "--check", "--strict", "--quiet", "CHECKSUMS", cwd=directory)
    frozen = (directory / "CHECKSUMS").read_text()
    twice = make_migration("--root", checkout, "--release", "0.1.0", check=False)
    assert (twice.returncode, twice.stderr) == (1, "0.1.0 is released already\n")
    # A release may change nothing in the database.
    make_migration("--root", checkout, "--release", "0.1.1")
    assert (directory / "CHECKSUMS").read_text() == f"{frozen}# 0.1.1\n"
    assert list(released_versions(checkout)) == ["0.1.0", "0.1.1"]
    assert len(set(map(tuple, released_versions(checkout).values()))) == 1


def test_after_a_release_changes_become_a_migration(
    server: DevServer, empty_dsn: str, released: Path
) -> None:
    checkout, directory = released, released / "migrations"
    source = checkout / "sql" / "core" / "010_all.sql"
    migrate(empty_dsn, directory=checkout)
    assert make_migration("--root", checkout, "louder").stdout == ""

    new = SOURCE.replace("'hello ' || name", "'HELLO; ' || name")
    new = new.replace("It is; a greeting.", "It is a loud greeting.")
    new = new.replace("(id int primary key)", "(id int primary key, note text)")
    new = new.replace(
        "grant select on", "create index guest_note on pgaudit_wf.guest (note);\ngrant select on"
    )
    new = new[: new.index("create function pgaudit_wf.obsolete")]
    # A new return type: create or replace will not do, and its comment and privileges are lost.
    new = new.replace("returns integer\n", "returns bigint\n")
    new += "create table pgaudit_wf.visit (id int primary key);\n"
    new += "comment on table pgaudit_wf.visit is 'New.';\n"
    source.write_text(new)

    unnamed = make_migration("--root", checkout, check=False)
    assert (unnamed.returncode, "NAME=" in unnamed.stderr) == (1, True)
    made = make_migration("--root", checkout, "louder")
    assert made.stderr.splitlines() == [
        "write by hand: table pgaudit_wf.guest",
    ]
    second = directory / "core" / "pgaudit_wf.core.0002_louder.sql"
    text = second.read_text()
    assert text.startswith(f"-- depends: {CORE}\n")
    assert "create or replace function pgaudit_wf.greeting" in text
    assert "guest_name" not in text, "only what changed"
    assert not list(directory.rglob("*.rollback.sql"))

    # By hand, above the generated part; making the migration again leaves it there.
    alter = "alter table pgaudit_wf.guest add note text;\n\n"
    start = text.index("-- generated from")
    second.write_text(text[:start] + alter + text[start:])
    written = second.read_text()
    make_migration("--root", checkout, "louder")
    assert second.read_text() == written
    assert make_migration("--root", checkout, "--check").returncode == 0

    assert migrate(empty_dsn, directory=checkout).applied == (second.stem,)
    with database_by_sql(server, checkout, ["core"]) as by_sql:
        assert schema_of(server, empty_dsn) == dump(server, by_sql)

    # Releases pile up: the third migration starts from the second, by hand or not.
    make_migration("--root", checkout, "--release", "0.2.0")
    source.write_text(new.replace("HELLO", "HI"))
    assert make_migration("--root", checkout, "shorter").stderr == ""
    third = directory / "core" / "pgaudit_wf.core.0003_shorter.sql"
    assert f"-- depends: {second.stem}" in third.read_text()
    assert third.read_text().count("create or replace") == 1
    assert [len(files) for files in released_versions(checkout).values()] == [2, 3]


def test_a_function_is_dropped_after_the_view_that_called_it(
    server: DevServer, empty_dsn: str, released: Path
) -> None:
    source = released / "sql" / "core" / "010_all.sql"
    migrate(empty_dsn, directory=released)
    # The view goes on without the function that it called.
    start = SOURCE.index("-- Says hello")
    new = SOURCE[:start] + SOURCE[SOURCE.index("create table pgaudit_wf.guest") :]
    new = new.replace("pgaudit_wf.greeting(id::text) as name", "id::text as name")
    source.write_text(new.replace("comment on function pgaudit_wf.size_of(int) is", "--"))
    made = make_migration("--root", released, "plain")
    assert made.stderr == "write by hand: undo comment on function pgaudit_wf.size_of(int) is\n"
    (path,) = (released / "migrations" / "core").glob("*_plain.sql")
    undo = "comment on function pgaudit_wf.size_of(int) is null;\n"
    path.write_text(path.read_text().replace("-- generated", f"{undo}\n-- generated", 1))
    assert make_migration("--root", released, "--check").returncode == 0
    migrate(empty_dsn, directory=released)
    with database_by_sql(server, released, ["core"]) as by_sql:
        assert schema_of(server, empty_dsn) == dump(server, by_sql)
    make_migration("--root", released, "--release", "0.2.0")
    assert make_migration("--root", released, "nothing").stdout == ""


def test_rows_that_come_with_the_schema_are_changed_by_hand(empty_dsn: str, checkout: Path) -> None:
    source = checkout / "sql" / "core" / "010_all.sql"
    rows = "insert into pgaudit_wf.alias (name, target) values ('a', null), ('b', 'x; y');\n"
    made = "create table pgaudit_wf.alias (name text primary key, target text);\n"
    source.write_text(f"{SOURCE}{made}{rows}")
    make_migration("--root", checkout, "--release", "0.1.0")
    migrate(empty_dsn, directory=checkout)
    source.write_text(f"{SOURCE}{made}{rows.replace('x; y', 'z')}")
    told = make_migration("--root", checkout, "alias").stderr.splitlines()
    assert [line.partition("… ")[0] for line in told] == [
        "write by hand: undo insert into pgaudit_wf.alias (name, target) values ('a', nul",
        "write by hand: insert into pgaudit_wf.alias (name, target) values ('a', nul",
    ]
    path = checkout / "migrations" / "core" / "pgaudit_wf.core.0002_alias.sql"
    update = "update pgaudit_wf.alias set target = 'z' where name = 'b';\n"
    path.write_text(path.read_text().replace("-- generated", f"{update}\n-- generated", 1))
    assert make_migration("--root", checkout, "--check").returncode == 0
    migrate(empty_dsn, directory=checkout)
    contents = "select string_agg(concat_ws('=', name, target), ' ' order by name)"
    assert value(empty_dsn, f"{contents} from pgaudit_wf.alias") == "a b=z"
    # Done is done: the next migration does not ask for it again.
    make_migration("--root", checkout, "--release", "0.2.0")
    assert make_migration("--root", checkout, "nothing").stdout == ""


def test_a_released_migration_is_frozen(released: Path) -> None:
    first = released / "migrations" / "core" / f"{CORE}.sql"
    first.write_text(first.read_text() + "\n")
    for arguments in (["--check"], ["name"], ["--release", "0.2.0"]):
        refused = make_migration("--root", released, *arguments, check=False)
        assert refused.returncode == 1
        assert f"migrations/core/{CORE}.sql is released and must stay" in refused.stderr


def test_the_tool_names_what_it_cannot_take(checkout: Path) -> None:
    source = checkout / "sql" / "core" / "010_all.sql"
    for text, problem in (
        ("\ncreate tabel x ();", "010_all.sql, line 2: syntax error"),
        ("create table x ();", "x is not qualified by a schema"),
        ("create index on pgaudit_wf.guest (id);", "has no name: give it one"),
    ):
        source.write_text(text)
        refused = make_migration("--root", checkout, "--release", "0.1.0", check=False)
        assert refused.returncode == 1
        assert problem in refused.stderr
        assert not (checkout / "migrations").exists()
