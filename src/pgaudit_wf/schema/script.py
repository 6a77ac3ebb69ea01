"""The script of a migration for psql: for those who run no Python near production."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from yoyo.migrations import get_migration_hash  # type: ignore[import-untyped]

from pgaudit_wf.schema.files import SqlMigration, installed, read_migrations
from pgaudit_wf.schema.ledger import (
    CREATE_LEDGER,
    LEDGER_SCHEMA,
    LOCK_KEY,
    OLDEST_SERVER,
    SCHEMA,
    SEARCH_PATH,
    connect,
    read_ledger,
)
from pgaudit_wf.schema.migrate import check_known, choose_target

__all__ = ["migration_script"]

# As yoyo makes them; a test compares the two.
_LEDGER_TABLES = """
create schema pgaudit_wf_migration;
create table pgaudit_wf_migration._yoyo_log (
    id varchar(36),
    migration_hash varchar(64),
    migration_id varchar(255),
    operation varchar(10),
    username varchar(255),
    hostname varchar(255),
    comment varchar(255),
    created_at_utc timestamp,
    primary key (id)
);
create table pgaudit_wf_migration._yoyo_version (
    version int not null primary key,
    installed_at_utc timestamp
);
create table pgaudit_wf_migration._yoyo_migration (
    migration_hash varchar(64),
    migration_id varchar(255),
    applied_at_utc timestamp,
    primary key (migration_hash)
);
insert into pgaudit_wf_migration._yoyo_version (version, installed_at_utc)
values (2, clock_timestamp() at time zone 'utc');
"""
_BEGIN = r"""-- Made by "pgaudit-wf migrate --sql". It {purpose}.
-- Run it as the role that is to migrate: psql -X -f FILE (with -1, psql warns twice; no harm is done)

\set ON_ERROR_STOP on
\set QUIET on
\encoding UTF8

begin;

{search_path};
set local standard_conforming_strings = on;
set local statement_timeout = 0;
set local idle_in_transaction_session_timeout = 0;

do $check$
begin
    if not pg_try_advisory_xact_lock({lock}) then
        raise exception 'another migrator is running in this database: run this again when it is done';
    end if;
    if pg_is_in_recovery() then
        raise exception 'this server is a standby: migrate its primary';
    end if;
    if current_setting('server_version_num')::integer < {oldest}0000 then
        raise exception 'this server is PostgreSQL %: pgaudit_wf needs {oldest} or newer', current_setting('server_version');
    end if;
    if current_setting('server_encoding') <> 'UTF8' then
        raise exception 'this database is encoded in %, and pgaudit_wf needs UTF8', current_setting('server_encoding');
    end if;
{state}
end
$check$;
"""  # noqa: E501 - lines of SQL
_NOTHING_THERE = """\
    if to_regnamespace('{schema}') is not null or to_regnamespace('{ledger}') is not null then
        raise exception 'this script installs pgaudit_wf from nothing, and this database has it or parts of it'
            using hint = 'Print the script that this database needs: pgaudit-wf migrate --sql -d CONNINFO';
    end if;"""  # noqa: E501
_THESE_THERE = """\
    if array(select migration_id::text from {ledger}._yoyo_migration order by 1)
        is distinct from array(select unnest(array[{present}]::text[]) order by 1)
    then
        raise exception 'this script is for a database in another state than this one'
            using hint = 'Print it anew, from this database: pgaudit-wf migrate --sql -d CONNINFO';
    end if;"""
_RECORD = """
set constraints all immediate;
insert into {ledger}._yoyo_log
    (id, migration_hash, migration_id, operation, username, hostname, created_at_utc)
values (gen_random_uuid(), {hash}, {id}, 'apply', session_user,
    coalesce(host(inet_client_addr()), 'local'), clock_timestamp() at time zone 'utc');
insert into {ledger}._yoyo_migration (migration_hash, migration_id, applied_at_utc)
values ({hash}, {id}, clock_timestamp() at time zone 'utc');
insert into {ledger}.checksum (migration_id, sha256) values ({id}, {checksum});
"""


def migration_script(
    conninfo: str | None, *, with_app_schema: bool = False, directory: Path | None = None
) -> str | None:
    """Return a script for psql that does what :func:`migrate` would do; None if that is nothing.

    It is one transaction, and refuses a database that is in another state than it was made for.

    Args:
        conninfo: The database to upgrade, which is only read. None: one that has nothing yet.
        with_app_schema: As for :func:`migrate`.
        directory: As for :func:`migrate`.

    Raises:
        MigrationError: The database has what is not known here, or may not be read.
        psycopg.OperationalError: The server could not be reached or refused the login.
    """
    available = read_migrations(directory or installed())
    present: list[str] = []
    if conninfo is not None:
        with connect(conninfo) as backend:
            present = [entry.id for entry in read_ledger(backend)]
            check_known(backend, available, present, removing_all=False)
    target = choose_target(available, present, None, with_app_schema)
    up = [migration for migration in target if migration.id not in present]
    return _script(up, present) if up else None


def _script(up: Sequence[SqlMigration], present: Sequence[str]) -> str:
    names = ", ".join(migration.id for migration in up)
    if present:
        purpose = f"applies {names}"
        state = _THESE_THERE.format(ledger=LEDGER_SCHEMA, present=", ".join(map(_literal, present)))
    else:
        purpose = f"installs pgaudit_wf from nothing: {names}"
        state = _NOTHING_THERE.format(ledger=LEDGER_SCHEMA, schema=SCHEMA)
    parts = [
        _BEGIN.format(
            purpose=purpose,
            state=state,
            search_path=SEARCH_PATH,
            lock=LOCK_KEY,
            oldest=OLDEST_SERVER,
        )
    ]
    if not present:
        parts += [_LEDGER_TABLES, CREATE_LEDGER]
    for migration in up:
        parts += [f"-- {script.name}\n\n{script.text.strip()}\n" for script in migration.scripts]
        parts.append(
            _RECORD.format(
                ledger=LEDGER_SCHEMA,
                hash=_literal(get_migration_hash(migration.id)),
                id=_literal(migration.id),
                checksum=_literal(migration.checksum),
            )
        )
        parts.append(f"{SEARCH_PATH};\n")
    parts.append("commit;\n")
    return "\n".join(parts)


def _literal(text: str) -> str:
    if not re.fullmatch(r"[\w.]+", text):
        raise ValueError(f"{text!r} is neither a name of a migration nor a digest")
    return f"'{text}'"
