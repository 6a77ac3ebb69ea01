"""Install, upgrade and remove the database schema.

The migrations are plain SQL files, one transaction per run; :mod:`pgaudit_wf.schema.files` finds
them. yoyo keeps the ledger in a schema of its own, so that it interferes neither with an
application's own yoyo tables nor with tools that compare schemas with models. Three of yoyo's
behaviors are replaced here, each for a reason:

* It splits a file with a general SQL parser. Files are sent to the server whole instead, so a
  function body can hold anything, and an error carries its file and line.
* It commits a migration first and records it afterwards, on another connection. A kill between the
  two leaves a database that can go neither forward nor back. Here both are one transaction.
* Its lock is a table row, which remains when the migrator is killed. Here it is an advisory
  lock that ends with the transaction. It is polled, never waited for: a waiting statement holds a
  snapshot, and ``create index concurrently`` waits for every snapshot older than itself.

Nothing is set for longer than a transaction, so it also works behind a transaction pooler.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.errors import Diagnostic

from pgaudit_wf.errors import MigrationChangedError, MigrationError
from pgaudit_wf.schema.files import (
    GROUPS,
    Script,
    SqlMigration,
    installed,
    read_migrations,
    read_uninstaller,
)
from pgaudit_wf.schema.ledger import (
    LEDGER_SCHEMA,
    SCHEMA,
    AppliedMigration,
    Backend,
    check_server,
    connect,
    create_ledger,
    locked,
    own_ledger,
    read_ledger,
    write_ledger,
)
from pgaudit_wf.schema.rights import complete

__all__ = [
    "MigrationResult",
    "applied",
    "contents",
    "migrate",
    "pending",
]

_THERE = "select from pg_namespace where nspname = %s"
# A log of many millions of events is estimated by the planner's statistics; a small one is counted.
_CONTENTS = """
select current_database(),
    case when rows.many > 100000 then rows.many
        else (select count(*) from pgaudit_wf.security_audit_log) end,
    rows.many > 100000,
    (select count(*) from pgaudit_wf.workflow_history),
    (select count(*) from pgaudit_wf.attachment),
    (select coalesce(max(size), 0) from pgaudit_wf.log_checkpoint)
from (
    select coalesce(sum(greatest(c.reltuples, c.relpages * 2)), 0)::bigint as many
    from pg_inherits as i join pg_class as c on c.oid = i.inhrelid
    where i.inhparent = 'pgaudit_wf.security_audit_log'::regclass
) as rows
"""
_NAMES = {"core": f"schema {SCHEMA}", "app": "the reference application"}

# The user's objects that "drop schema pgaudit_wf cascade" would drop too. The triggers on audited
# tables and our event triggers are ours, and are meant to be dropped.
_DEPENDENTS = """
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
        -- Parts of a table or view are reported as that relation.
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
class MigrationResult:
    """The result of a run.

    ``applied`` and ``rolled_back`` name migrations in the order of execution. ``version`` is the
    number of the newest core migration in force, 0 for none. ``warnings`` are those that the
    database raised, and what is missing because the role lacked rights, such as event triggers.
    ``added`` names what was missing so far for that reason and was made by this run.
    """

    applied: tuple[str, ...]
    rolled_back: tuple[str, ...]
    version: int
    warnings: tuple[str, ...]
    added: tuple[str, ...] = ()


def migrate(
    conninfo: str,
    *,
    to: str | int | None = None,
    with_app_schema: bool = False,
    lock_timeout: float = 60.0,
    directory: Path | None = None,
) -> MigrationResult:
    """Bring the database to the newest migration, or to a given one.

    Safe to run twice, and from many processes at once: they take turns. A run is one transaction.
    If a migration fails on the way up, those before it stay applied; if one fails on the way down,
    nothing is changed.

    Args:
        conninfo: A libpq connection string or ``postgresql://`` URL (SQLAlchemy's
            ``postgresql+psycopg://`` is accepted too). Missing parts come from the ``PG*``
            environment variables, as with psql.
        to: Where to stop: a core migration's number (``3``), the name of any migration, or an
            unambiguous part of one (``app.0002``). 0 removes everything and leaves the database
            as it was. None, the default, is the newest. Going down to any other is only possible
            if a rollback was written by hand.
        with_app_schema: Also create the reference application's tables in schema ``public``. Once
            they exist, later runs keep them up to date automatically.
        lock_timeout: Seconds to wait for other migrators before giving up.
        directory: The folder with ``sql/`` and ``migrations/``; by default the one installed with
            this package, in a checkout the checkout.

    Raises:
        MigrationLockedError: Another migrator kept the lock for ``lock_timeout`` seconds.
        MigrationChangedError: The database has a migration that is unknown here, or whose text
            was different when it was applied.
        MigrationError: Any other failure; the message names the migration, the file, its line and
            the SQL error.
        psycopg.OperationalError: The server could not be reached, refused the login, or went away;
            nothing of the run remains then.
    """
    root = directory or installed()
    available = read_migrations(root)
    warnings: list[str] = []
    with connect(conninfo) as backend:
        backend.connection.add_notice_handler(lambda notice: _keep_warning(notice, warnings))
        with locked(backend, lock_timeout):
            check_server(backend)
            present = [entry.id for entry in read_ledger(backend)]
            target = choose_target(available, present, to, with_app_schema)
            if not present and not target:
                return MigrationResult((), (), 0, ())
            check_known(backend, available, present, removing_all=not target)
            down = [m for m in reversed(available) if m.id in present and m not in target]
            up = [m for m in available if m.id not in present and m in target]
            if not present:
                create_ledger(backend)
            down_ids = _take_down(backend, root, down, {m.group for m in target})
            if not target:
                backend.execute(f"drop schema {LEDGER_SCHEMA} cascade")
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
            added: list[str] = []
            # Roles and event triggers are made by the sources, which are the newest version.
            if not failure and all(m in target for m in available if m.group == "core"):
                added, missing = complete(backend, root)
                warnings += missing
        if failure:
            raise failure
    in_force = {*present, *done} - set(down_ids)
    version = max(
        (m.number for m in available if m.group == "core" and m.id in in_force), default=0
    )
    return MigrationResult(tuple(done), tuple(down_ids), version, tuple(warnings), tuple(added))


def applied(conninfo: str) -> tuple[AppliedMigration, ...]:
    """Return the migrations in force, oldest first. Changes nothing.

    Args:
        conninfo: As for :func:`migrate`.

    Raises:
        MigrationError: The role may not read the migration tables.
        psycopg.OperationalError: The server could not be reached or refused the login.
    """
    with connect(conninfo) as backend:
        return tuple(read_ledger(backend))


def contents(conninfo: str) -> str | None:
    """Say what ``migrate(to=0)`` would remove from a database; None if there is nothing of ours.

    Args:
        conninfo: As for :func:`migrate`.

    Raises:
        psycopg.Error: The server could not be reached, or the role may not read what there is.
    """
    with connect(conninfo) as backend:
        if backend.connection.execute(_THERE, [SCHEMA]).fetchone() is None:
            return None
        name, events, estimated, versions, tables, leaves = backend.connection.execute(
            _CONTENTS
        ).fetchone()
    return (
        f'the audit trail of database "{name}": {"about " if estimated else ""}{events:,} events,'
        f" {versions:,} versions of workflows, {leaves:,} sealed leaves, and the recording of"
        f" {tables:,} attached tables"
    )


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
    target = choose_target(available, present, None, with_app_schema)
    return tuple(m.id for m in target if m.id not in present)


def check_known(
    backend: Backend, available: list[SqlMigration], present: list[str], *, removing_all: bool
) -> None:
    """Refuse a database with migrations that are unknown here, or had another text."""
    known = {m.id: m for m in available}
    unknown = [name for name in present if name not in known]
    if unknown:
        raise MigrationChangedError(
            f"this database has {', '.join(unknown)}, which this version of pgaudit-wf does not"
            f" know: use the version that applied it, or a newer one"
        )
    if not present or removing_all:
        return
    checksums: dict[str, str] = dict(
        backend.connection.execute(
            sql.SQL("select migration_id, sha256 from {}").format(
                sql.Identifier(LEDGER_SCHEMA, "checksum")
            )
        ).fetchall()
    )
    changed = [name for name in present if checksums.get(name) != known[name].checksum]
    if changed:
        raise MigrationChangedError(
            f"{', '.join(changed)} had a different text when this database was migrated: use"
            f" the version of pgaudit-wf that applied it; before release 0.1.0, remove the schema"
            f" (pgaudit-wf migrate --to 0) and migrate again"
        )


def choose_target(
    available: list[SqlMigration],
    present: Sequence[str],
    to: str | int | None,
    with_app_schema: bool,
) -> list[SqlMigration]:
    """Return the migrations to be in force afterwards, in order."""
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


def _apply(backend: Backend, migration: SqlMigration) -> None:
    _run(
        backend,
        migration.scripts,
        [migration],
        "apply",
        failed=f"{migration.id} could not be applied",
        left="The migrations before it stay applied; nothing of this one remains.",
    )


def _take_down(backend: Backend, root: Path, down: list[SqlMigration], kept: set[str]) -> list[str]:
    """Remove migrations, newest first; return their ids in that order.

    A group of which nothing is kept is removed as a whole by the package's own script, so it does
    not need a rollback for each of its migrations.
    """
    stuck = [m.id for m in down if m.group in kept and m.rollback is None]
    if stuck:
        raise MigrationError(
            f"{', '.join(stuck)} cannot be rolled back, as no rollback was written: restore a"
            f" backup made before the upgrade (or remove the schema with everything in it:"
            f" pgaudit-wf migrate --to 0). Nothing has been changed"
        )
    gone: list[str] = []
    left = "Nothing has been changed."
    for group in reversed(GROUPS):
        whole = [m for m in down if m.group == group and group not in kept]
        if whole:
            if group == "core":
                _check_dependents(backend)
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
    backend: Backend,
    scripts: Sequence[Script],
    migrations: Sequence[SqlMigration],
    direction: str,
    *,
    failed: str,
    left: str,
) -> None:
    """Run scripts and record them in the ledger, all or nothing."""
    running: Script | None = None
    try:
        with backend.transaction():
            for running in scripts:
                backend.connection.execute(running.text)
            running = None
            backend.execute("set constraints all immediate")
            with own_ledger(backend):
                for migration in migrations:
                    write_ledger(backend, migration, direction)
    except psycopg.Error as error:
        raise MigrationError(_explain(error, running, failed, left)) from error


def _check_dependents(backend: Backend) -> None:
    dependents = [row[0] for row in backend.connection.execute(_DEPENDENTS).fetchall()]
    if dependents:
        raise MigrationError(
            f"objects of yours depend on schema {SCHEMA} and would be dropped with it:"
            f" {', '.join(dependents)}; drop them or remove the dependency, then run this again."
            f" Nothing has been changed"
        )


def _explain(error: psycopg.Error, script: Script | None, failed: str, left: str) -> str:
    diag = error.diag
    location = f"{script.name}; " if script else ""
    if script and diag.statement_position:
        line = script.text.count("\n", 0, int(diag.statement_position) - 1) + 1
        location = f"{script.name}, line {line}; "
    lines = [
        f"{failed}: {diag.message_primary or error} ({location}SQLSTATE {error.sqlstate or 'none'})"
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


def _keep_warning(notice: Diagnostic, warnings: list[str]) -> None:
    if notice.severity_nonlocalized == "WARNING" and notice.message_primary:
        warnings.append(notice.message_primary)
