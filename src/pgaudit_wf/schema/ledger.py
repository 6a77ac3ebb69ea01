"""The ledger of a database's migrations, and its lock."""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql
from yoyo import internalmigrations  # type: ignore[import-untyped]
from yoyo.backends.core.postgresql import (  # type: ignore[import-untyped]
    PostgresqlPsycopgBackend,
)
from yoyo.migrations import Migration, default_migration_table  # type: ignore[import-untyped]

from pgaudit_wf.conninfo import without_driver
from pgaudit_wf.errors import MigrationError, MigrationLockedError
from pgaudit_wf.schema.files import (
    SqlMigration,
)

__all__ = [
    "AppliedMigration",
]

SCHEMA = "pgaudit_wf"
LEDGER_SCHEMA = "pgaudit_wf_migration"
# Any constant will do, as long as no release ever changes it.
LOCK_KEY = 7_106_241_508_366_271_331
OLDEST_SERVER = 15
POLL_SECONDS = 0.1
SEARCH_PATH = "set local search_path = pg_catalog, pg_temp"

CREATE_LEDGER = """
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


@dataclass(frozen=True, slots=True)
class AppliedMigration:
    """A migration in force: its name, and when it was applied (an aware datetime, in UTC)."""

    id: str
    applied_at: datetime


class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """yoyo's bookkeeping on our own connection and in our own transaction."""

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
        return [row[0] for row in self.connection.execute(query, [LEDGER_SCHEMA])]

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
def connect(conninfo: str) -> Iterator[Backend]:
    with Backend(without_driver(conninfo), default_migration_table) as backend:
        yield backend


@contextmanager
def locked(backend: Backend, lock_timeout: float) -> Iterator[None]:
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
                f"another migrator (server process {holder or 'just gone'}) has been running in"
                f" this database for {lock_timeout:g} s: wait for it and run this again"
            )
        time.sleep(POLL_SECONDS)


def _settle(backend: Backend) -> None:
    """Make the transaction independent of the settings of role and database."""
    # Every name in a migration is qualified, so the user's search_path is not needed.
    backend.execute(SEARCH_PATH)
    # A timeout meant for the application's statements must not interrupt a migration.
    backend.execute("set local statement_timeout = 0")
    backend.execute("set local idle_in_transaction_session_timeout = 0")
    # Otherwise the server would first finish a killed migrator's statement, keeping the lock.
    with (
        suppress(psycopg.errors.InvalidParameterValue),  # not supported on the server's platform
        backend.transaction(),
    ):
        backend.execute("set local client_connection_check_interval = '1s'")


def check_server(backend: Backend) -> None:
    number = backend.connection.info.server_version
    if number < OLDEST_SERVER * 10_000:
        raise MigrationError(
            f"this server is PostgreSQL {number // 10_000}: pgaudit_wf needs"
            f" {OLDEST_SERVER} or newer"
        )
    encoding = backend.connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise MigrationError(
            f'database "{backend.connection.info.dbname}" is encoded in {encoding}, and pgaudit_wf'
            " needs UTF8, as an event can hold any text: dump it, and restore it into one made by"
            " create database … encoding 'UTF8' template template0"
        )
    row = backend.connection.execute(
        """
        select current_database(), current_user, pg_is_in_recovery(),
               has_database_privilege(current_database(), 'create'),
               (select pg_has_role(nspowner, 'usage') from pg_namespace where nspname = %(ours)s),
               (select rolname from pg_namespace n join pg_roles r on r.oid = n.nspowner
                 where nspname = %(ours)s),
               to_regnamespace(%(ledger)s) is not null
        """,
        {"ours": SCHEMA, "ledger": LEDGER_SCHEMA},
    ).fetchone()
    database, role, standby, may_create, owns, owner, has_ledger = row
    if standby:
        raise MigrationError("this server is a standby; migrate its primary")
    if owns is False:
        raise MigrationError(
            f'schema {SCHEMA} in database "{database}" belongs to role "{owner}", and "{role}" is'
            f" not a member of it: migrate as the role that installed it or as a superuser, or have"
            f' one run: grant "{owner}" to "{role}"'
        )
    if owns and not has_ledger:
        raise MigrationError(
            f'database "{database}" has a schema {SCHEMA} that no migration created: if it was'
            f" installed from sql/ by hand, drop it first"
        )
    if not may_create and not has_ledger:
        raise MigrationError(
            f'role "{role}" may not create schemas in database "{database}": migrate as the'
            f" database's owner, or have the owner run:"
            f' grant create on database "{database}" to "{role}"'
        )


def read_ledger(backend: Backend) -> list[AppliedMigration]:
    """Return the migrations in force, oldest first; none if the tables do not exist yet."""
    table = f"{LEDGER_SCHEMA}.{default_migration_table}"
    try:
        if _one(backend, "select to_regclass(%s)", [table]) is None:
            return []
        rows = backend.connection.execute(
            sql.SQL("select migration_id, applied_at_utc from {} order by applied_at_utc").format(
                sql.Identifier(LEDGER_SCHEMA, default_migration_table)
            )
        ).fetchall()
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            f'role "{backend.connection.info.user}" may not read schema {LEDGER_SCHEMA}: connect as'
            f" the role that migrated this database, or grant it usage and select there"
        ) from error
    return [AppliedMigration(name, at.replace(tzinfo=UTC)) for name, at in rows]


def create_ledger(backend: Backend) -> None:
    backend.execute(f"create schema if not exists {LEDGER_SCHEMA}")
    with own_ledger(backend):
        backend.ensure_internal_schema_updated()
        backend.connection.execute(CREATE_LEDGER)


def write_ledger(backend: Backend, migration: SqlMigration, direction: str) -> None:
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


@contextmanager
def own_ledger(backend: Backend) -> Iterator[None]:
    backend.execute(f"set local search_path = {LEDGER_SCHEMA}")
    yield
    backend.execute(SEARCH_PATH)


def _one(backend: Backend, query: str, parameters: Sequence[object] = ()) -> Any:  # noqa: ANN401
    row = backend.connection.execute(query, parameters).fetchone()
    return row[0]
