"""Counts what a transaction computes: instructions of the server's process, by valgrind.

Times vary with what else the machine does; the number of instructions hardly does. The kernel's
are not counted, and not all take equally long.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import database
from benchmarks.pgbench import Client, pgbench_client
from benchmarks.scenarios import Scenario, Variant
from pgaudit_wf.dev.binaries import Binaries
from pgaudit_wf.dev.server import DevServer

WARM = 20
"""Transactions after which plans are cached and pages are in memory."""
COUNTED = 100
COUNTED_BULK = 10

_SUMMARY = re.compile(r"^summary: (\d+)", re.MULTILINE)
_WRAPPER = """#!/bin/sh
exec {valgrind} --quiet --tool=callgrind --callgrind-out-file={folder}/%p.out {postgres} "$@"
"""


@dataclass(frozen=True)
class Count:
    """One scenario's numbers: thousands of instructions a transaction, by variant."""

    scenario: str
    total: dict[str, float]
    added: dict[str, float]
    """Of these, more than without a trigger."""


def find_valgrind() -> str:
    """Return the path of valgrind.

    Raises `SystemExit` where there is none.
    """
    if found := shutil.which("valgrind"):
        return found
    raise SystemExit(
        "--instructions counts with valgrind, which this machine does not have: install it with "
        "the system's package manager."
    )


def count(server: DevServer, scenario: Scenario) -> Count:
    """Count one scenario's instructions; the server is restarted twice for it.

    Raises `RuntimeError` when valgrind did not report.
    """
    # Enough for all that is deleted: the first run, the short one and the long one.
    counted = COUNTED if scenario.changes == 1 else COUNTED_BULK
    rows = 3 * WARM + counted + 1 if scenario.uses_up else scenario.rows
    database.create(server, scenario, rows)
    database.settle(server, scenario)
    total = {}
    with _valgrind(server) as reports, pgbench_client(server, scenario) as client:
        for variant in scenario.variants:
            # Each run is a session of its own: what begins and ends it cancels out.
            _run(client, reports, variant, WARM)
            short = _run(client, reports, variant, WARM)
            long = _run(client, reports, variant, WARM + counted)
            total[variant.name] = (long - short) / counted / 1000
    added = {
        variant.name: total[variant.name] - total[variant.base]
        for variant in scenario.variants
        if variant.name != variant.base
    }
    return Count(scenario.name, total, added)


@contextmanager
def _valgrind(server: DevServer) -> Iterator[Path]:
    native = server.binaries
    with tempfile.TemporaryDirectory() as folder:
        # Sessions write their reports there as the server's user.
        Path(folder).chmod(0o777)
        wrapper = Path(folder, "postgres")
        wrapper.write_text(
            _WRAPPER.format(
                valgrind=find_valgrind(), folder=folder, postgres=native.bindir / "postgres"
            )
        )
        wrapper.chmod(0o755)
        server.binaries = Binaries(Path(folder), native.major)
        try:
            server.restart()
            yield Path(folder)
        finally:
            server.binaries = native
            server.restart()


def _run(client: Client, reports: Path, variant: Variant, transactions: int) -> int:
    for report in reports.glob("*.out"):
        report.unlink()
    client.run(variant, f"--transactions={transactions}")
    # pgbench has two sessions: one looks around first, and does that always alike.
    found = [_SUMMARY.search(report.read_text()) for report in reports.glob("*.out")]
    if len(found) != 2 or None in found:
        raise RuntimeError(f"valgrind reported on {len(found)} sessions of pgbench instead of 2")
    return sum(int(summary[1]) for summary in found if summary)


def markdown(counts: list[Count]) -> str:
    """Return the table."""
    names = [name for name in counts[0].added if name != "none (pghistory)"]
    lines = [
        "### Instructions that a transaction adds, in thousands\n",
        f"| scenario | none has | {' | '.join(names)} | ours / pghistory |",
        f"| --- | ---: |{' ---: |' * len(names)} ---: |",
    ]
    for row in counts:
        values = " | ".join(f"{row.added[name]:.1f}" for name in names)
        ratio = row.added["ours"] / row.added["pghistory"] if row.added["pghistory"] else 0.0
        lines.append(f"| {row.scenario} | {row.total['none']:.1f} | {values} | {ratio:.2f} |")
    return "\n".join(lines) + "\n"
