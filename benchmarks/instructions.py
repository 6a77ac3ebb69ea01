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
from benchmarks.scenarios import BARE, NONE, OURS, PGHISTORY, Scenario, Variant
from pgaudit_wf.dev.binaries import Binaries
from pgaudit_wf.dev.server import DevServer

WARM, COUNTED = 6, 100
"""Transactions of the short run, and how many more the long one has.

The first five of a session are planned each for its own values.
"""
WARM_BULK, COUNTED_BULK = 1, 2
"""The same of a thousand rows, where planning is nothing beside them."""

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
    bulk = scenario.changes >= 1_000
    warm, counted = (WARM_BULK, COUNTED_BULK) if bulk else (WARM, COUNTED)
    database.create(server, scenario, scenario.rows)
    database.settle(server, scenario)
    total = {}
    with _valgrind(server) as reports, pgbench_client(server, scenario) as client:
        for variant in scenario.variants:
            # The server's first session fills caches on disk. From then on what begins and ends a
            # session is always alike, and cancels out.
            _run(client, reports, variant, 1)
            short = _run(client, reports, variant, warm)
            long = _run(client, reports, variant, warm + counted)
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


HEAD = (
    "### Instructions that a transaction adds, in thousands\n\n"
    "| scenario | none has | bare | ours | pghistory | ours / pghistory |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: |"
)


def markdown(row: Count) -> str:
    """Return the scenario's line of the table that `HEAD` begins."""
    ours, peer = row.added[OURS.name], row.added[PGHISTORY.name]
    return (
        f"| {row.scenario} | {row.total[NONE.name]:.1f} | {row.added[BARE.name]:.1f} "
        f"| {ours:.1f} | {peer:.1f} | {ours / peer:.2f} |"
    )
