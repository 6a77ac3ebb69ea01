"""A PostgreSQL server for development and tests, in a directory of its own."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote, urlencode

from pgaudit_wf.dev.binaries import (
    Binaries,
    DevServerError,
    RunAs,
    find_binaries,
    on_machine,
    readable,
    unprivileged_user,
)

SUPERUSER = "postgres"
"""Name of the server's superuser, independent of the operating system user."""

_PORT = 5432  # only part of the socket's file name, as the directory is the server's own
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0

# Runs next to the server with our end of a pipe as its input. A line means that we have cleaned up
# ourselves; end of file means that our process ended in any other way.
_WATCHER = """
if read -r _; then exit 0; fi
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ]; then
    kill -QUIT "$pid" 2>/dev/null
    for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" 2>/dev/null || break; sleep 1; done
fi
rm -rf "$1"
"""


class DevServer:
    """A PostgreSQL server with a data directory of its own, gone without a trace after `stop()`.

    `settings` goes into postgresql.conf, for instance `{"max_prepared_transactions": 10}`. With
    `durable=False` (the default) the server does not wait for the disk, so a crash may lose
    commits or the cluster; `durable=True` keeps PostgreSQL's own promises. Its files are in a
    new directory below `directory`, by default /tmp.

        with DevServer() as server:
            psycopg.connect(server.dsn())
    """

    port = _PORT
    """Port number that is part of the socket's name; every server has the same one."""

    def __init__(
        self,
        binaries: Binaries | None = None,
        settings: Mapping[str, str | int | float | bool] | None = None,
        durable: bool = False,
        directory: str | None = None,
    ) -> None:
        self._directory = directory
        self.binaries = binaries or find_binaries()
        self.durable = durable
        self._settings = dict(settings or {})
        self._base: Path | None = None
        self._postmaster: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._creator: int | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @cached_property
    def run_as(self) -> RunAs:
        """Arguments for `subprocess` to run something as the server's user, the socket's owner."""
        if user := unprivileged_user():
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        return {}

    @property
    def socket_dir(self) -> Path:
        """Directory of the server's Unix socket; raises `DevServerError` before `start()`."""
        if self._base is None:
            raise DevServerError("The server has no directory before start() and after stop().")
        return self._base

    @property
    def data_dir(self) -> Path:
        """The server's data directory."""
        return self.socket_dir / "data"

    @property
    def log_file(self) -> Path:
        """The file that the server writes its messages to."""
        return self.socket_dir / "log"

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster, None while the server is down."""
        if self._postmaster is None or self._postmaster.poll() is not None:
            return None
        return self._postmaster.pid

    def dsn(self, dbname: str = "postgres", user: str | None = None) -> str:
        """Return a connection URL for a database, as the superuser or as `user`."""
        query = urlencode({"host": str(self.socket_dir), "port": self.port}, quote_via=quote)
        return f"postgresql://{quote(user or SUPERUSER, safe='')}@/{quote(dbname, safe='')}?{query}"

    def bin(self, name: str) -> Path:
        """Return the path of a client program such as `psql`, `pgbench` or `pg_dump`.

        When this server's installation lacks it, the machine's newest one is returned, which may
        be of another major version. Raises `DevServerError` when there is none at all.
        """
        on_path = shutil.which(name)
        machine = sorted(on_machine(), key=lambda found: found.major, reverse=True)
        candidates = [self.binaries.bindir / name, *(found.bindir / name for found in machine)]
        candidates += [Path(on_path)] if on_path else []
        for path in candidates:
            if path.exists():
                return path
        raise DevServerError(
            f"Neither {self.binaries.bindir} nor this machine has {name}: install PostgreSQL's "
            "client programs with the system's package manager."
        )

    def start(self) -> None:
        """Make the data directory, unless a killed server left it, and start the server."""
        if self.pid is not None:
            raise DevServerError(f"The server in {self.socket_dir} runs already.")
        try:
            if self._base is None:
                self._create()
            self._launch()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, closing its connections, and remove all its files.

        In a child that was forked off the process that started the server, this does nothing.
        """
        if self._creator not in (None, os.getpid()):
            return
        try:
            self._shut_down()
        finally:
            atexit.unregister(self.stop)
            if self._base is not None:
                shutil.rmtree(self._base, ignore_errors=True)
                self._base = None
            if self._watcher is not None:
                self._watcher.communicate(b"done\n")
                self._watcher = None

    def restart(self, settings: Mapping[str, str | int | float | bool] | None = None) -> None:
        """Start the server again on the same data, also after `kill()`; `settings` are added."""
        self.socket_dir  # noqa: B018 - raises when there is nothing to restart
        self._shut_down()
        if settings:
            self._settings |= settings
            self._write_settings()
        self.start()

    def kill(self) -> None:
        """End the server and all its backends with SIGKILL, as a crash would; keep the data."""
        if self._postmaster is None or self._postmaster.poll() is not None:
            raise DevServerError("There is no running server to kill.")
        postmaster = self._postmaster.pid
        # Backends lead process groups of their own, so killing the postmaster's is not enough;
        # stopped first, it cannot start another one while we look.
        os.kill(postmaster, signal.SIGSTOP)
        children = [pid for pid, (parent, _) in _processes().items() if parent == postmaster]
        for pid in (postmaster, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._postmaster.wait()
        deadline = time.monotonic() + _STOP_SECONDS
        while any(not _processes().get(pid, (0, "Z"))[1].startswith("Z") for pid in children):
            if time.monotonic() > deadline:
                raise DevServerError("Some backends outlived SIGKILL: is the disk hanging?")
            time.sleep(0.01)

    def follow(self, primary: DevServer) -> None:
        """Become a hot standby that streams from another server; what was here is gone."""
        self.kill()
        shutil.rmtree(self.data_dir)
        subprocess.run(
            [str(self.bin("pg_basebackup")), "-D", str(self.data_dir), "-R", "-c", "fast",
             "-d", primary.dsn()],
            check=True, cwd=self.socket_dir, **self.run_as,
        )  # fmt: skip
        self.restart({"unix_socket_directories": str(self.socket_dir)})

    def _create(self) -> None:
        # A socket's path may have some hundred bytes only, so not below a long TMPDIR.
        shared = "/tmp"  # noqa: S108 - mkdtemp makes a directory of our own in it
        root = self._directory or (shared if os.access(shared, os.W_OK) else None)
        self._base = Path(tempfile.mkdtemp(prefix="pgaudit_wf-", dir=root))
        self._creator = os.getpid()
        atexit.register(self.stop)
        self.binaries = readable(self.binaries, self.run_as)
        if self.run_as:
            os.chown(self._base, self.run_as["user"], self.run_as["group"])
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHER, "pgaudit_wf-watcher", self._base],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd="/", **self.run_as,
        )  # fmt: skip
        self._initdb()
        self._write_settings()

    def _initdb(self) -> None:
        # C.UTF-8 sorts alike everywhere and knows the case of all letters, unlike C; not every
        # system has it, but PostgreSQL 17 brings its own.
        builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        choices = [["--locale=C.UTF-8"], ["--locale=C"]]
        if self.binaries.major >= 17:
            choices = [builtin]
        command = [str(self.binaries.bindir / "initdb"), "--pgdata", str(self.data_dir)]
        command += ["--auth=trust"]
        command += ["--username", SUPERUSER, "--encoding=UTF8", "--no-sync", "--no-instructions"]
        for choice in choices:
            done = subprocess.run(
                [*command, *choice], capture_output=True, text=True, check=False,
                cwd=self.socket_dir, env=_environment(), **self.run_as,
            )  # fmt: skip
            if done.returncode == 0:
                return
        raise DevServerError(f"initdb failed in {self.socket_dir}:\n{done.stderr.strip()}")

    def _write_settings(self) -> None:
        settings: dict[str, str | int | float | bool] = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_dir),
            "port": self.port,
            "timezone": "UTC",
            "log_timezone": "UTC",
            "fsync": self.durable,
            "synchronous_commit": self.durable,
            "full_page_writes": self.durable,
        }
        lines = [
            f"{name} = {_literal(value)}" for name, value in (settings | self._settings).items()
        ]
        with (self.data_dir / "postgresql.conf").open("a") as conf:  # the last line of a name wins
            conf.write("\n" + "\n".join(lines) + "\n")

    def _launch(self) -> None:
        with self.log_file.open("ab") as log:
            self._postmaster = self._spawn(log)
        pid = str(self._postmaster.pid)
        deadline = time.monotonic() + _START_SECONDS
        # Its lock file says "ready" on the eighth line; one left by a crash has another pid.
        while True:
            with contextlib.suppress(OSError):
                lines = (self.data_dir / "postmaster.pid").read_text().split("\n")
                if lines[0] == pid and len(lines) > 7 and lines[7].strip() == "ready":
                    return
            if self._postmaster.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log_file.read_text(errors="replace").splitlines()[-20:])
                raise DevServerError(f"PostgreSQL {self.binaries.major} did not start:\n{tail}")
            time.sleep(0.01)

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [self.binaries.bindir / "postgres", "-D", self.data_dir],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            cwd=self.socket_dir, env=_environment(), umask=0o077, **self.run_as,
        )  # fmt: skip

    def _shut_down(self) -> None:
        if self._postmaster is None:
            return
        # From "close all connections and checkpoint" to "leave as you are"; then the hard way.
        for sent in (signal.SIGINT, signal.SIGQUIT):
            if self._postmaster.poll() is None:
                self._postmaster.send_signal(sent)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._postmaster.wait(_STOP_SECONDS)
        if self._postmaster.poll() is None:
            self.kill()
        self._postmaster = None


def _literal(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "'" + str(value).replace("'", "''") + "'"


def _environment() -> dict[str, str]:
    """Return our environment without what would change the server's defaults."""
    drop = ("PG", "LC_", "LANG", "TZ")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    return kept | {"LC_ALL": "C"}


def _processes() -> dict[int, tuple[int, str]]:
    """Return the parent and state of every process; a state of Z means that it has ended."""
    found = {}
    if Path("/proc/self/stat").exists():  # slim containers have no ps
        for process in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # The second field is a program's name, which may hold spaces and brackets.
                state, parent = process.read_text().rpartition(")")[2].split()[:2]
                found[int(process.parent.name)] = (int(parent), state)
        return found
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, text=True, check=True
    ).stdout
    for pid, ppid, state in (line.split() for line in listed.splitlines()):
        found[int(pid)] = (int(ppid), state)
    return found
