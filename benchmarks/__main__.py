"""`python -m benchmarks`, or `make bench ARGS=…`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks import instructions, workflow
from benchmarks.database import ROOT
from benchmarks.measure import Length, measure
from benchmarks.pgbench import go_first
from benchmarks.report import aims, as_json, markdown, summarize
from benchmarks.scenarios import SCENARIOS, Scenario
from pgaudit_wf.dev.binaries import find_binaries
from pgaudit_wf.dev.server import DevServer


def main() -> None:
    """Run the scenarios asked for and print their tables."""
    names = [*(scenario.name for scenario in SCENARIOS), workflow.NAME]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure what auditing costs, side by side with a bare trigger and "
        "django-pghistory. benchmarks/README.md says how to read the tables.",
    )
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(names))
    add(
        "--pg",
        type=int,
        metavar="MAJOR",
        default=os.environ.get("PG") or None,
        help="major version of the server (default: $PG, else the embedded one)",
    )
    add("--rounds", type=int, default=9, help="runs of each variant (default: %(default)s)")
    add("--seconds", type=int, default=1, help="length of a run (default: %(default)s)")
    add(
        "--transactions",
        type=int,
        metavar="N",
        help="end a run after so many transactions instead; too few tell nothing of times",
    )
    add(
        "--instructions",
        action="store_true",
        help="count the server's instructions by valgrind instead, which takes no rounds",
    )
    add(
        "--synchronous-commit",
        action="store_true",
        help="wait for the disk at each commit, as PostgreSQL does by default",
    )
    add("--json", type=Path, metavar="FILE", help="also write all numbers there")
    arguments = parser.parse_args()
    if unknown := set(arguments.scenarios) - set(names):
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}; there are {names}")
    if arguments.rounds < 2:
        parser.error("--rounds: a spread takes at least 2")
    if arguments.instructions:
        instructions.find_valgrind()
    _install_peers()

    settings = {
        "synchronous_commit": arguments.synchronous_commit,
        "shared_buffers": "512MB",
        # Runs are kept alike by a vacuum between them and a checkpoint before; none comes within.
        "autovacuum": False,
        "checkpoint_timeout": "1h",
        "max_wal_size": "16GB",
    }
    chosen = [item for item in SCENARIOS if item.name in (arguments.scenarios or names)]
    length = Length(arguments.rounds, arguments.seconds, arguments.transactions)
    with DevServer(find_binaries(arguments.pg), settings, durable=True) as server:
        title = f"PostgreSQL {server.binaries.major}"
        if not arguments.instructions:
            commit = "on" if arguments.synchronous_commit else "off"
            title += (
                f", synchronous_commit {commit}, {length}, {os.cpu_count()} CPUs, "
                f"load {os.getloadavg()[0]:.1f} before"
            )
        print(f"## {title}\n", flush=True)
        report: dict[str, object] = {"title": title}
        if arguments.instructions:
            report["instructions"] = _count(server, chosen)
        else:
            with_workflow = workflow.NAME in (arguments.scenarios or names)
            report |= _measure(server, chosen, length, with_workflow)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def _measure(
    server: DevServer, scenarios: list[Scenario], length: Length, with_workflow: bool
) -> dict[str, object]:
    if server.pid:
        go_first(server.pid)
    results = []
    for scenario in scenarios:
        results.append(summarize(scenario, measure(server, scenario, length)))
        print(markdown(results[-1]), flush=True)
    saves = workflow.run(server) if with_workflow else []
    if saves:
        print(workflow.markdown(saves), flush=True)
    if results:
        print(aims(results))
    return {"results": as_json(results), "workflow": [asdict(row) for row in saves]}


def _count(server: DevServer, scenarios: list[Scenario]) -> list[dict[str, object]]:
    print(instructions.HEAD, flush=True)
    counts = []
    for scenario in scenarios:
        counts.append(instructions.count(server, scenario))
        print(instructions.markdown(counts[-1]), flush=True)
    return [asdict(row) for row in counts]


def _install_peers() -> None:
    if importlib.util.find_spec("pghistory") is None:
        requirements = ROOT / "benchmarks" / "requirements.txt"
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--requirement", requirements],
            check=True,
        )


if __name__ == "__main__":
    main()
