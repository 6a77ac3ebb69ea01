"""Installable files: the sources in ``sql/`` and the released files in ``migrations/``.

Until a group (``core``, ``app``) is released, its sources are its first migration as they are.
After that its migrations are the frozen files, and ``sql/`` is the state that they lead to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from yoyo.migrations import (  # type: ignore[import-untyped]
    Migration,
    parse_metadata_from_sql_comments,
    topological_sort,
)

from pgaudit_wf.errors import MigrationError

__all__ = [
    "GROUPS",
    "Script",
    "SqlMigration",
    "first_id",
    "first_text",
    "installed",
    "migration_paths",
    "read_migrations",
    "read_sources",
    "read_uninstaller",
]

GROUPS = ("core", "app")

_ROLLBACK = ".rollback.sql"
_ID = re.compile(r"pgaudit_wf\.(?P<group>core|app)\.(?P<number>\d{4})_\w+")


@dataclass(frozen=True, slots=True)
class Script:
    """SQL that goes to the server as a whole, and where it was read from."""

    name: str
    text: str


class SqlMigration(Migration):  # type: ignore[misc]
    """A migration: scripts that run in order, and the way back if one was written.

    ``needs`` are the ids of the migrations that come before it, ``checksum`` the SHA-256 of its
    text in lower-case hex. It is the same for ``sql/`` and for the first migration that a release
    makes of it, so a database made the day before belongs to that release.
    """

    def __init__(
        self, id_: str, scripts: Iterable[Script], text: str, rollback: Script | None = None
    ) -> None:
        super().__init__(id_, "", "")
        name = _ID.fullmatch(id_)
        if name is None:
            raise ValueError(f"{id_} is not the id of a migration")
        self.group = name["group"]
        self.number = int(name["number"])
        self.scripts = tuple(scripts)
        self.rollback = rollback
        self.checksum = hashlib.sha256(text.encode()).hexdigest()
        directives, _, _ = parse_metadata_from_sql_comments(text)
        self.needs: set[str] = set(directives.get("depends", "").split())

    def load(self) -> None:
        """Do nothing: yoyo would read the files once more, and split them."""


def installed() -> Path:
    """Return the folder with ``sql/`` and ``migrations/``: the wheel's own, or the checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "_database"
    return packaged if packaged.is_dir() else package.parents[1]


def first_id(group: str) -> str:
    """Return the id of a group's first migration."""
    return f"pgaudit_wf.{group}.0001_first"


def read_sources(root: Path, group: str) -> list[Script]:
    """Return the files of ``sql/<group>``, folders included, in the order in which they run."""
    return [_script(path, root) for path in sorted((root / "sql" / group).rglob("*.sql"))]


def first_text(sources: Iterable[Script], depends: str | None) -> str:
    """Return the text of the first migration that a release makes of these sources.

    Args:
        sources: What :func:`read_sources` returns.
        depends: The id of the migration that comes before it, if any.
    """
    head = [f"-- depends: {depends}"] if depends else []
    parts = [f"-- {source.name}\n\n{source.text.strip()}" for source in sources]
    return "\n\n".join([*head, *parts]) + "\n"


def migration_paths(root: Path, group: str) -> list[Path]:
    """Return the files of ``migrations/<group>`` in order, without the rollbacks.

    Raises:
        MigrationError: A file there is not named like a migration.
    """
    found = []
    for path in sorted((root / "migrations" / group).glob("*.sql")):
        if path.name.endswith(_ROLLBACK):
            continue
        name = _ID.fullmatch(path.stem)
        if name is None or name["group"] != group:
            raise MigrationError(
                f"{path}: a migration must be named pgaudit_wf.{group}.NNNN_some_name.sql"
            )
        found.append(path)
    return found


def read_migrations(root: Path) -> list[SqlMigration]:
    """Return all installable migrations, each after those that it needs.

    Args:
        root: The folder that holds ``sql/`` and ``migrations/``.

    Raises:
        MigrationError: There are none, or they are inconsistent.
    """
    found: list[SqlMigration] = []
    for group in GROUPS:
        paths = migration_paths(root, group)
        found += [_released(path, root) for path in paths]
        sources = read_sources(root, group)
        if sources and not paths:
            text = first_text(sources, found[-1].id if found else None)
            found.append(SqlMigration(first_id(group), sources, text))
    if not found:
        raise MigrationError(f"no migrations in {root}: reinstall pgaudit-wf")
    by_id = {migration.id: migration for migration in found}
    for migration in found:
        missing = migration.needs - by_id.keys()
        if missing:
            raise MigrationError(f"{migration.id} depends on {', '.join(sorted(missing))}: no such")
        migration._depends = {by_id[need] for need in migration.needs}
    return list(topological_sort(found))


def read_uninstaller(root: Path, group: str) -> Script:
    """Return what takes all of a group away, whichever of its migrations are in force.

    Raises:
        MigrationError: The package lacks it.
    """
    path = root / "sql" / "uninstall" / f"{group}.sql"
    if not path.is_file():
        raise MigrationError(f"{path} is missing: reinstall pgaudit-wf")
    return _script(path, root)


def _released(path: Path, root: Path) -> SqlMigration:
    script = _script(path, root)
    back = path.with_suffix(_ROLLBACK)
    rollback = _script(back, root) if back.is_file() else None
    return SqlMigration(path.stem, [script], script.text, rollback)


def _script(path: Path, root: Path) -> Script:
    return Script(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
