"""Runs pgbench: one client, prepared statements, a Unix socket."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import database
from benchmarks.scenarios import Scenario, Variant
from pgaudit_wf.dev.server import DevServer

_TPS = re.compile(r"^tps = ([0-9.]+) \(without initial connection time\)", re.MULTILINE)
_DONE = re.compile(r"^number of transactions actually processed: (\d+)", re.MULTILINE)
_FAILED = re.compile(r"^number of failed transactions: (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """What pgbench reported."""

    transactions: int
    elapsed: float
    """Microseconds a transaction, from the client's begin to the client's end."""


class Client:
    """Sends one scenario's transactions; `pgbench_client()` makes it.

    It remembers which rows are gone, so that each run of a scenario that deletes goes on with rows
    that are there.
    """

    def __init__(self, server: DevServer, scenario: Scenario, scripts: Path) -> None:
        self.done = {variant.name: 0 for variant in scenario.variants}
        """Transactions so far, by variant."""
        self._server, self._scenario, self._folder = server, scenario, scripts

    def run(self, variant: Variant, limit: str) -> Run:
        """Run the variant's transactions for as long as `limit`, an option of pgbench, says.

        Raises `RuntimeError` when a transaction failed.
        """
        server, script = self._server, self._folder / f"{variant.name}.sql"
        script.write_text(self._scenario.script(variant))
        postmaster = psutil.Process(server.pid)
        others = set(postmaster.children())
        gone = self.done[variant.name] * self._scenario.deletes
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        process = subprocess.Popen(
            [
                server.bin("pgbench"),
                *("--no-vacuum", "--client=1", "--protocol=prepared", limit),
                *(f"--file={script}", f"--define=gone={gone}"),
                *(f"--host={server.socket_dir}", f"--port={server.port}"),
                *(f"--username={database.APPLICATION}", database.DATABASE),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", env=environment,
            **server.run_as,
        )  # fmt: skip
        go_first(process.pid)
        out, error = process.communicate()
        tps, done, failed = _TPS.search(out), _DONE.search(out), _FAILED.search(out)
        if process.returncode or not (tps and done and failed) or failed[1] != "0":
            raise RuntimeError(f"pgbench failed on\n{script.read_text()}\n{out}{error}")
        # Only when the postmaster has seen the session's process end does it know what that took.
        psutil.wait_procs(set(postmaster.children()) - others, timeout=60)
        self.done[variant.name] += int(done[1])
        return Run(int(done[1]), 1e6 / float(tps[1]))


@contextmanager
def pgbench_client(server: DevServer, scenario: Scenario) -> Iterator[Client]:
    """Give a client, whose scripts are removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        # The server's user runs pgbench and must be able to read them.
        Path(folder).chmod(0o755)
        yield Client(server, scenario, Path(folder))


def go_first(pid: int) -> None:
    """Let the process, and what it starts from now on, go before others, where root may say so."""
    with suppress(PermissionError, AttributeError):
        os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(1))
