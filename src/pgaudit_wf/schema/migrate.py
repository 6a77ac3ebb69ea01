"""Install, upgrade and remove the database schema.

The migrations are plain SQL files, one transaction a run; :mod:`pgaudit_wf.schema.files` knows
where they are. yoyo keeps the books, in a schema of their own, so that neither an application's
own yoyo tables nor a tool that compares its schemas with its models ever meets them. Three of
yoyo's habits are replaced here, each for a reason:

* It splits a file with a general SQL parser. Files are sent to the server whole instead, so a
  function body can hold anything, and an error carries its file and line.
* It commits a migration first and books it afterwards, on another connection. A kill between the
  two leaves a database that can go neither forward nor back. Here both are one transaction.
* Its lock is a table row, which stays behind when the migrator is killed. Here it is an advisory
  lock that ends with the transaction. It is polled, never waited for: a waiting statement holds a
  snapshot, and ``create index concurrently`` waits for every snapshot older than itself.

Nothing is set for longer than a transaction, so it also works behind a transaction pooler.
"""

from __future__ import annotations

import platform
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.errors import Diagnostic
from yoyo import internalmigrations  # type: ignore[import-untyped]
from yoyo.backends.core.postgresql import (  # type: ignore[import-untyped]
    PostgresqlPsycopgBackend,
)
from yoyo.migrations import Migration, default_migration_table  # type: ignore[import-untyped]

from pgaudit_wf.conninfo import without_driver
from pgaudit_wf.errors import MigrationChangedError, MigrationError, MigrationLockedError
from pgaudit_wf.schema.files import (
    GROUPS,
    Script,
    SqlMigration,
    installed,
    read_migrations,
    read_uninstaller,
)

__all__ = ["AppliedMigration", "MigrationResult", "applied", "migrate", "pending"]

SCHEMA = "pgaudit_wf"
BOOK_SCHEMA = "pgaudit_wf_migration"
# Any constant will do, as long as no release ever changes it.
LOCK_KEY = 7_106_241_508_366_271_331
OLDEST_SERVER = 15
POLL_SECONDS = 0.1
SEARCH_PATH = "set local search_path = pg_catalog, pg_temp"

_NAMES = {"core": f"schema {SCHEMA}", "app": "the reference application"}

_BOOKS = """
create table if not exists pgaudit_wf_migration.checksum (
    migration_id varchar(255) primary key,
    sha256 text not null
);
comment on schema pgaudit_wf_migration is
    'Which migrations of pgaudit_wf this database has; kept by yoyo, read by "pgaudit-wf migrate".';
comment on table pgaudit_wf_migration.checksum is
    'The text each migration was applied with, so that a file edited afterwards is noticed.';
comment on column pgaudit_wf_migration.checksum.migration_id is 'The name of the migration.';
comment on column pgaudit_wf_migration.checksum.sha256 is
    'SHA-256 of the migration''s text, in lower-case hex.';
comment on table pgaudit_wf_migration._yoyo_migration is 'Migrations in force.';
comment on column pgaudit_wf_migration._yoyo_migration.migration_hash is
    'SHA-256 of the migration''s name: yoyo''s key.';
comment on column pgaudit_wf_migration._yoyo_migration.migration_id is
    'The name of the migration.';
comment on column pgaudit_wf_migration._yoyo_migration.applied_at_utc is
    'When it was applied, in UTC.';
comment on table pgaudit_wf_migration._yoyo_log is
    'Every migration applied or rolled back so far.';
comment on column pgaudit_wf_migration._yoyo_log.id is 'The entry''s own UUID.';
comment on column pgaudit_wf_migration._yoyo_log.migration_hash is
    'SHA-256 of the migration''s name: yoyo''s key.';
comment on column pgaudit_wf_migration._yoyo_log.migration_id is 'The name of the migration.';
comment on column pgaudit_wf_migration._yoyo_log.operation is 'apply or rollback.';
comment on column pgaudit_wf_migration._yoyo_log.username is 'The database role that did it.';
comment on column pgaudit_wf_migration._yoyo_log.hostname is 'The machine it was done from.';
comment on column pgaudit_wf_migration._yoyo_log.comment is 'Written by yoyo''s own upgrades.';
comment on column pgaudit_wf_migration._yoyo_log.created_at_utc is 'When it was done, in UTC.';
comment on table pgaudit_wf_migration._yoyo_version is 'The layout of yoyo''s own tables.';
comment on column pgaudit_wf_migration._yoyo_version.version is 'The layout''s number.';
comment on column pgaudit_wf_migration._yoyo_version.installed_at_utc is
    'When that layout was made, in UTC.';
"""

# Objects of the user that "drop schema pgaudit_wf cascade" would take along. The triggers on
# audited tables and our event triggers are ours, and meant to go.
_STRANGERS = """
with ours as (
    select 'pg_class'::regclass as classid, oid as objid
    from pg_class where relnamespace = 'pgaudit_wf'::regnamespace
    union all
    select 'pg_proc'::regclass, oid from pg_proc where pronamespace = 'pgaudit_wf'::regnamespace
    union all
    select 'pg_type'::regclass, oid from pg_type where typnamespace = 'pgaudit_wf'::regnamespace
),
dependent as (
    select d.classid, d.objid, d.objsubid, coalesce(
        -- What belongs to a table or view stands for it.
        (select ev_class from pg_rewrite
         where d.classid = 'pg_rewrite'::regclass and oid = d.objid),
        (select adrelid from pg_attrdef
         where d.classid = 'pg_attrdef'::regclass and oid = d.objid),
        case when d.classid = 'pg_class'::regclass then d.objid end
    ) as relation
    from ours as o
    inner join pg_depend as d on o.classid = d.refclassid and o.objid = d.refobjid
    where d.deptype in ('n', 'a')
    and d.classid <> 'pg_event_trigger'::regclass
    and (d.classid, d.objid) not in (select classid, objid from ours)
    and not exists (
        select from pg_trigger as t
        inner join pg_proc as p on t.tgfoid = p.oid
        where d.classid = 'pg_trigger'::regclass and t.oid = d.objid
        and p.pronamespace = 'pgaudit_wf'::regnamespace
    )
)
select distinct format('%s %s', i.type, i.identity)
from dependent as d
cross join lateral (
    select * from pg_identify_object(d.classid, d.objid, d.objsubid) where d.relation is null
    union all
    select * from pg_identify_object(
        'pg_class'::regclass, d.relation, case when d.relation = d.objid then d.objsubid else 0 end
    )
    where d.relation is not null
) as i
-- A policy or constraint has no schema of its own; its identity ends with its table's.
where i.schema is distinct from 'pgaudit_wf' and i.identity !~ ' on pgaudit_wf[.]'
order by 1
"""


@dataclass(frozen=True, slots=True)
class AppliedMigration:
    """A migration in force: its name, and when it was applied (an aware datetime, in UTC)."""

    id: str
    applied_at: datetime


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """What a run did.

    ``applied`` and ``rolled_back`` name migrations in the order it was done. ``version`` is the
    number of the newest core migration in force, 0 for none. ``warnings`` are those the database
    raised, for example that it may not create event triggers.
    """

    applied: tuple[str, ...]
    rolled_back: tuple[str, ...]
    version: int
    warnings: tuple[str, ...]


def migrate(
    conninfo: str,
    *,
    to: str | int | None = None,
    with_app_schema: bool = False,
    lock_timeout: float = 60.0,
    directory: Path | None = None,
) -> MigrationResult:
    """Bring the database to the newest migration, or to the one asked for.

    Safe to run twice, and from many processes at once: they take turns. A run is one transaction.
    If a migration fails on the way up, those before it stay; if one fails on the way down,
    nothing has happened.

    Args:
        conninfo: A libpq connection string or ``postgresql://`` URL (SQLAlchemy's
            ``postgresql+psycopg://`` is understood too). What it leaves out comes from the
            ``PG*`` environment variables, as with psql.
        to: Where to stop: a core migration's number (``3``), the name of any migration, or a
            part of it that only one has (``app.0002``). 0 takes everything away again and leaves
            the database as it was. None, the default, is the newest. The way down to any other
            exists only where it was written by hand.
        with_app_schema: Also create the reference application's tables in schema ``public``. Once
            they are there, later runs keep them up to date without being asked.
        lock_timeout: Seconds to wait for other migrators before giving up.
        directory: The folder with ``sql/`` and ``migrations/``; by default the one installed with
            this package, in a checkout the checkout.

    Raises:
        MigrationLockedError: Another migrator kept the lock for ``lock_timeout`` seconds.
        MigrationChangedError: The database has a migration that is unknown here, or that had
            another text when it was applied.
        MigrationError: Anything else; the message names the migration, the file, its line and the
            SQL error.
        psycopg.OperationalError: The server could not be reached, refused the login, or went away;
            nothing of the run is left then.
    """
    root = directory or installed()
    available = read_migrations(root)
    warnings: list[str] = []
    with _connect(conninfo) as backend:
        backend.connection.add_notice_handler(lambda notice: _keep_warning(notice, warnings))
        with _locked(backend, lock_timeout):
            _check_server(backend)
            present = [entry.id for entry in _books(backend)]
            target = _target(available, present, to, with_app_schema)
            if not present and not target:
                return MigrationResult((), (), 0, ())
            _check_known(backend, available, present, removing_all=not target)
            down = [m for m in reversed(available) if m.id in present and m not in target]
            up = [m for m in available if m.id not in present and m in target]
            if not present:
                _open_books(backend)
            down_ids = _take_down(backend, root, down, {m.group for m in target})
            if not target:
                backend.execute(f"drop schema {BOOK_SCHEMA} cascade")
            done: list[str] = []
            failure: MigrationError | None = None
            for migration in up:
                try:
                    _apply(backend, migration)
                except MigrationError as error:
                    failure = error
                    break
                done.append(migration.id)
            if failure and not done and not present:
                raise failure
        if failure:
            raise failure
    in_force = {*present, *done} - set(down_ids)
    version = max(
        (m.number for m in available if m.group == "core" and m.id in in_force), default=0
    )
    return MigrationResult(tuple(done), tuple(down_ids), version, tuple(warnings))


def applied(conninfo: str) -> tuple[AppliedMigration, ...]:
    """Return the migrations in force, oldest first. Changes nothing.

    Args:
        conninfo: As for :func:`migrate`.

    Raises:
        MigrationError: The role may not read the migration tables.
        psycopg.OperationalError: The server could not be reached or refused the login.
    """
    with _connect(conninfo) as backend:
        return tuple(_books(backend))


def pending(
    conninfo: str, *, with_app_schema: bool = False, directory: Path | None = None
) -> tuple[str, ...]:
    """Return the names of the migrations that :func:`migrate` would apply. Changes nothing.

    Args:
        conninfo: As for :func:`migrate`.
        with_app_schema: As for :func:`migrate`.
        directory: As for :func:`migrate`.

    Raises:
        MigrationError: The role may not read the migration tables.
        psycopg.OperationalError: The server could not be reached or refused the login.
    """
    available = read_migrations(directory or installed())
    present = [entry.id for entry in applied(conninfo)]
    target = _target(available, present, None, with_app_schema)
    return tuple(m.id for m in target if m.id not in present)


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """yoyo's bookkeeping on a connection and in a transaction of ours."""

    _internal_schema_updated: bool

    def connect(self, dburi: str) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(
            dburi,
            autocommit=True,
            # A pooler hands prepared statements to the next client.
            prepare_threshold=None,
            fallback_application_name="pgaudit-wf migrate",
        )

    def list_tables(self, **kwargs: object) -> list[str]:
        query = "select relname from pg_class where relnamespace = to_regnamespace(%s)"
        return [row[0] for row in self.connection.execute(query, [BOOK_SCHEMA])]

    @contextmanager
    def lock(self, timeout: float = 0) -> Iterator[None]:
        yield

    def ensure_internal_schema_updated(self) -> None:
        if not self._internal_schema_updated and internalmigrations.needs_upgrading(self):
            internalmigrations.upgrade(self)
        self._internal_schema_updated = True

    def get_log_data(
        self, migration: Migration | None = None, operation: str = "apply"
    ) -> dict[str, object]:
        # yoyo asks the operating system for the user's name, which a container may not have, and
        # a resolver for the machine's, which may take seconds.
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": self.connection.info.user,
            "hostname": platform.node(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }


@contextmanager
def _connect(conninfo: str) -> Iterator[_Backend]:
    with _Backend(without_driver(conninfo), default_migration_table) as backend:
        yield backend


@contextmanager
def _locked(backend: _Backend, lock_timeout: float) -> Iterator[None]:
    """Open a transaction that holds the lock."""
    deadline = time.monotonic() + lock_timeout
    while True:
        with backend.transaction():
            if _one(backend, "select pg_try_advisory_xact_lock(%s)", [LOCK_KEY]):
                _settle(backend)
                yield
                return
        if time.monotonic() >= deadline:
            holder = _one(
                backend,
                "select string_agg(pid::text, ', ') from pg_locks where locktype = 'advisory' and"
                " objsubid = 1 and granted and (classid::bigint << 32 | objid::bigint) = %s"
                " and database = (select oid from pg_database where datname = current_database())",
                [LOCK_KEY],
            )
            raise MigrationLockedError(
                f"another migrator (server process {holder or 'just gone'}) has been at work in"
                f" this database for {lock_timeout:g} s: wait for it and run this again"
            )
        time.sleep(POLL_SECONDS)


def _settle(backend: _Backend) -> None:
    """Make the transaction independent of how role and database are set up."""
    # Every name in a migration is qualified, so nothing in the user's search_path counts.
    backend.execute(SEARCH_PATH)
    # A limit meant for the application's statements must not cut a migration short.
    backend.execute("set local statement_timeout = 0")
    backend.execute("set local idle_in_transaction_session_timeout = 0")
    # Else the server finishes the statement of a killed migrator first, and keeps the lock so long.
    with (
        suppress(psycopg.errors.InvalidParameterValue),  # where the server's system cannot tell
        backend.transaction(),
    ):
        backend.execute("set local client_connection_check_interval = '1s'")


def _check_server(backend: _Backend) -> None:
    number = backend.connection.info.server_version
    if number < OLDEST_SERVER * 10_000:
        raise MigrationError(
            f"this server is PostgreSQL {number // 10_000}: pgaudit_wf needs"
            f" {OLDEST_SERVER} or newer"
        )
    row = backend.connection.execute(
        """
        select current_database(), current_user, pg_is_in_recovery(),
               has_database_privilege(current_database(), 'create'),
               (select pg_has_role(nspowner, 'usage') from pg_namespace where nspname = %(ours)s),
               (select rolname from pg_namespace n join pg_roles r on r.oid = n.nspowner
                 where nspname = %(ours)s),
               to_regnamespace(%(books)s) is not null
        """,
        {"ours": SCHEMA, "books": BOOK_SCHEMA},
    ).fetchone()
    database, role, standby, may_create, owns, owner, booked = row
    if standby:
        raise MigrationError("this server is a standby: migrate its primary")
    if owns is False:
        raise MigrationError(
            f'schema {SCHEMA} in database "{database}" belongs to role "{owner}", and "{role}" is'
            f" not a member of it: migrate as the role that installed it or as a superuser, or have"
            f' one run: grant "{owner}" to "{role}"'
        )
    if owns and not booked:
        raise MigrationError(
            f'database "{database}" has a schema {SCHEMA} that no migration made: if it was made'
            f" from sql/ by hand, drop it first"
        )
    if not may_create and not booked:
        raise MigrationError(
            f'role "{role}" may not create schemas in database "{database}": migrate as the'
            f" database's owner, or have the owner run:"
            f' grant create on database "{database}" to "{role}"'
        )


def _books(backend: _Backend) -> list[AppliedMigration]:
    """Return what is in force, oldest first; nothing if the tables do not exist yet."""
    table = f"{BOOK_SCHEMA}.{default_migration_table}"
    try:
        if _one(backend, "select to_regclass(%s)", [table]) is None:
            return []
        rows = backend.connection.execute(
            sql.SQL("select migration_id, applied_at_utc from {} order by applied_at_utc").format(
                sql.Identifier(BOOK_SCHEMA, default_migration_table)
            )
        ).fetchall()
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            f'role "{backend.connection.info.user}" may not read schema {BOOK_SCHEMA}: connect as'
            f" the role that migrated this database, or grant it usage and select there"
        ) from error
    return [AppliedMigration(name, at.replace(tzinfo=UTC)) for name, at in rows]


def _open_books(backend: _Backend) -> None:
    backend.execute(f"create schema if not exists {BOOK_SCHEMA}")
    with _in_books(backend):
        backend.ensure_internal_schema_updated()
        backend.connection.execute(_BOOKS)


def _check_known(
    backend: _Backend, available: list[SqlMigration], present: list[str], *, removing_all: bool
) -> None:
    known = {m.id: m for m in available}
    strange = [name for name in present if name not in known]
    if strange:
        raise MigrationChangedError(
            f"this database has {', '.join(strange)}, which this version of pgaudit-wf does not"
            f" know: use the version that applied it, or a newer one"
        )
    if not present or removing_all:
        return
    checksums: dict[str, str] = dict(
        backend.connection.execute(
            sql.SQL("select migration_id, sha256 from {}").format(
                sql.Identifier(BOOK_SCHEMA, "checksum")
            )
        ).fetchall()
    )
    changed = [name for name in present if checksums.get(name) != known[name].checksum]
    if changed:
        raise MigrationChangedError(
            f"{', '.join(changed)} had another text when this database was migrated: use the"
            f" version of pgaudit-wf that applied it; before release 0.1.0, take the schema away"
            f" (pgaudit-wf migrate --to 0) and migrate again"
        )


def _target(
    available: list[SqlMigration],
    present: Sequence[str],
    to: str | int | None,
    with_app_schema: bool,
) -> list[SqlMigration]:
    """Return the migrations that shall be in force afterwards, in order."""
    group, number = _goal(available, to)
    app_wanted = (
        with_app_schema
        or group == "app"
        or any(m.group == "app" and m.id in present for m in available)
    )
    chosen: list[SqlMigration] = []
    for m in available:
        wanted = m.group == "core" or app_wanted
        within = number is None or m.group != group or m.number <= number
        if wanted and within and m.needs <= {c.id for c in chosen}:
            chosen.append(m)
    return [] if number == 0 else chosen


def _goal(available: list[SqlMigration], to: str | int | None) -> tuple[str, int | None]:
    if to is None:
        return "core", None
    if isinstance(to, int) or re.fullmatch(r"\d+", to):
        if int(to) == 0:
            return "core", 0
        matches = [m for m in available if m.group == "core" and m.number == int(to)]
    else:
        matches = [m for m in available if m.id == to] or [m for m in available if to in m.id]
    if len(matches) != 1:
        names = ", ".join(m.id for m in matches or available)
        problem = "is ambiguous" if matches else "does not exist"
        raise MigrationError(f"migration {to} {problem}: choose 0 or one of {names}")
    return matches[0].group, matches[0].number


def _apply(backend: _Backend, migration: SqlMigration) -> None:
    _run(
        backend,
        migration.scripts,
        [migration],
        "apply",
        failed=f"{migration.id} could not be applied",
        left="The migrations before it stay applied; nothing of this one is left.",
    )


def _take_down(
    backend: _Backend, root: Path, down: list[SqlMigration], kept: set[str]
) -> list[str]:
    """Take migrations away, newest first; return their ids in the order in which they went.

    A group of which nothing is kept goes as a whole, by the package's own script. So it takes no
    way back for each step that once was taken forward.
    """
    stuck = [m.id for m in down if m.group in kept and m.rollback is None]
    if stuck:
        raise MigrationError(
            f"{', '.join(stuck)} cannot be rolled back, since no way back was written: restore a"
            f" backup made before the upgrade (or take the schema away with all that is in it:"
            f" pgaudit-wf migrate --to 0). Nothing has been changed"
        )
    gone: list[str] = []
    left = "Nothing has been changed."
    for group in reversed(GROUPS):
        whole = [m for m in down if m.group == group and group not in kept]
        if whole:
            if group == "core":
                _check_strangers(backend)
            scripts, failed = (
                [read_uninstaller(root, group)],
                f"{_NAMES[group]} could not be removed",
            )
            _run(backend, scripts, whole, "rollback", failed=failed, left=left)
            gone += [m.id for m in whole]
    for m in down:
        if m.rollback and m.group in kept:
            failed = f"{m.id} could not be rolled back"
            _run(backend, [m.rollback], [m], "rollback", failed=failed, left=left)
            gone.append(m.id)
    return gone


def _run(
    backend: _Backend,
    scripts: Sequence[Script],
    migrations: Sequence[SqlMigration],
    direction: str,
    *,
    failed: str,
    left: str,
) -> None:
    """Run scripts and book what they did, all or nothing."""
    running: Script | None = None
    try:
        with backend.transaction():
            for running in scripts:
                backend.connection.execute(running.text)
            running = None
            backend.execute("set constraints all immediate")
            with _in_books(backend):
                for migration in migrations:
                    _book(backend, migration, direction)
    except psycopg.Error as error:
        raise MigrationError(_explain(error, running, failed, left)) from error


def _book(backend: _Backend, migration: SqlMigration, direction: str) -> None:
    backend.log_migration(migration, direction)
    if direction == "apply":
        backend.mark_one(migration, log=False)
        backend.connection.execute(
            "insert into checksum (migration_id, sha256) values (%s, %s)",
            [migration.id, migration.checksum],
        )
    else:
        backend.unmark_one(migration, log=False)
        backend.connection.execute("delete from checksum where migration_id = %s", [migration.id])


def _check_strangers(backend: _Backend) -> None:
    strangers = [row[0] for row in backend.connection.execute(_STRANGERS).fetchall()]
    if strangers:
        raise MigrationError(
            f"objects of yours use schema {SCHEMA} and would go with it: {', '.join(strangers)};"
            f" drop them or free them from it, then run this again. Nothing has been changed"
        )


def _explain(error: psycopg.Error, script: Script | None, failed: str, left: str) -> str:
    diag = error.diag
    place = f"{script.name}; " if script else ""
    if script and diag.statement_position:
        line = script.text.count("\n", 0, int(diag.statement_position) - 1) + 1
        place = f"{script.name}, line {line}; "
    lines = [
        f"{failed}: {diag.message_primary or error} ({place}SQLSTATE {error.sqlstate or 'none'})"
    ]
    lines += [
        f"{label}: {text}"
        for label, text in [
            ("detail", diag.message_detail),
            ("hint", diag.message_hint),
            ("context", diag.context),
        ]
        if text
    ]
    return "\n".join([*lines, left])


@contextmanager
def _in_books(backend: _Backend) -> Iterator[None]:
    backend.execute(f"set local search_path = {BOOK_SCHEMA}")
    yield
    backend.execute(SEARCH_PATH)


def _one(backend: _Backend, query: str, parameters: Sequence[object] = ()) -> Any:  # noqa: ANN401
    row = backend.connection.execute(query, parameters).fetchone()
    return row[0]


def _keep_warning(notice: Diagnostic, warnings: list[str]) -> None:
    if notice.severity_nonlocalized == "WARNING" and notice.message_primary:
        warnings.append(notice.message_primary)
