"""Runs pgbench: one client, prepared statements, a Unix socket, all variants in turn."""

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
from benchmarks.scenarios import Scenario
from pgaudit_wf.dev.server import DevServer

_TPS = re.compile(r"^tps = ([0-9.]+) \(without initial connection time\)", re.MULTILINE)
_DONE = re.compile(r"^number of transactions actually processed: (\d+)", re.MULTILINE)
_FAILED = re.compile(r"^number of failed transactions: (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """What one run took, in microseconds a transaction."""

    elapsed: float
    """From the client's begin to the client's end."""
    cpu: float
    """What the server's process computed meanwhile; 0 where the system does not say."""


Times = dict[str, list[Sample]]
"""The runs of each variant, one a round."""


def measure(server: DevServer, scenario: Scenario, rounds: int, seconds: int) -> Times:
    """Return the times of one scenario.

    Within a round every variant runs for `seconds`, one right after the other, so that what else
    the machine does hits all alike; every other round goes backwards, so that none is always last.
    """
    database.create(server, scenario)
    times: Times = {variant.name: [] for variant in scenario.variants}
    database.settle(server, checkpoint=True)
    with _scripts(scenario) as scripts:
        for variant in scenario.variants:
            _pgbench(server, scripts[variant.name], 1)
        for number in range(rounds):
            database.settle(server)
            turn = scenario.variants if number % 2 == 0 else scenario.variants[::-1]
            for variant in turn:
                times[variant.name].append(_pgbench(server, scripts[variant.name], seconds))
    database.check(server, scenario)
    return times


def go_first(pid: int) -> None:
    """Let the process, and what it starts from now on, go before others, where root may say so."""
    with suppress(PermissionError, AttributeError):
        os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(1))


@contextmanager
def _scripts(scenario: Scenario) -> Iterator[dict[str, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        # The server's user runs pgbench and must be able to read them.
        Path(folder).chmod(0o755)
        found = {}
        for number, variant in enumerate(scenario.variants):
            found[variant.name] = Path(folder, f"{number}.sql")
            found[variant.name].write_text(scenario.script(variant))
        yield found


def _pgbench(server: DevServer, script: Path, seconds: int) -> Sample:
    postmaster = psutil.Process(server.pid)
    before, others = _spent(postmaster), set(postmaster.children())
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    process = subprocess.Popen(
        [
            server.bin("pgbench"),
            *("--no-vacuum", "--client=1", "--protocol=prepared", f"--time={seconds}"),
            *(f"--file={script}", f"--host={server.socket_dir}", f"--port={server.port}"),
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
    psutil.wait_procs(set(postmaster.children()) - others, timeout=10)
    return Sample(1e6 / float(tps[1]), 1e6 * (_spent(postmaster) - before) / int(done[1]))


def _spent(postmaster: psutil.Process) -> float:
    times = postmaster.cpu_times()
    return float(getattr(times, "children_user", 0) + getattr(times, "children_system", 0))
