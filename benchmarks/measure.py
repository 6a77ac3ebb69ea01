"""Measures times and bytes: all variants in turn, round by round."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import psycopg
from psycopg.rows import TupleRow

from benchmarks import database
from benchmarks.pgbench import Client, pgbench_client
from benchmarks.scenarios import Scenario, Variant
from pgaudit_wf.dev.server import DevServer


@dataclass(frozen=True)
class Sample:
    """What one run took, per transaction."""

    elapsed: float
    """Microseconds, from the client's begin to the client's end."""
    cpu: float
    """Microseconds that the server's process computed meanwhile; 0 if the system does not say."""
    wal: float
    """Bytes of write-ahead log."""


@dataclass(frozen=True)
class Log:
    """What one variant stored in all runs of a scenario."""

    events: int
    transactions: int
    table: int
    """Bytes of its tables, TOAST included, less those of empty ones."""
    indexes: int


@dataclass(frozen=True)
class Measured:
    """The runs of each variant, one a round, and the logs of those that record."""

    samples: dict[str, list[Sample]]
    logs: dict[str, Log]


@dataclass(frozen=True)
class Length:
    """How long to measure: so many rounds of so many seconds, or of so many transactions."""

    rounds: int
    seconds: int
    transactions: int | None = None

    @property
    def limit(self) -> str:
        """The option for pgbench."""
        if self.transactions:
            return f"--transactions={self.transactions}"
        return f"--time={self.seconds}"

    def rows(self, scenario: Scenario) -> int:
        """Return how many rows the scenario's table needs to last."""
        if not scenario.uses_up:
            return scenario.rows
        # The first run, which warms up, deletes too.
        return (self.rounds + 1) * (self.transactions or 30_000 * self.seconds) + 1

    def __str__(self) -> str:
        length = f"{self.transactions} transactions" if self.transactions else f"{self.seconds} s"
        return f"{self.rounds} rounds of {length}"


def measure(server: DevServer, scenario: Scenario, length: Length) -> Measured:
    """Measure one scenario.

    Within a round every variant runs once, one right after the other, so that what else the
    machine does hits all alike; every other round goes backwards, so that none is always last.

    Raises `RuntimeError` when a variant did not record what it should have.
    """
    database.create(server, scenario, length.rows(scenario))
    samples: dict[str, list[Sample]] = {variant.name: [] for variant in scenario.variants}
    with (
        pgbench_client(server, scenario) as client,
        psycopg.connect(server.dsn(database.DATABASE), autocommit=True) as watcher,
    ):
        empty = {
            name: (*database.log_size(watcher, name), database.count_events(watcher, name))
            for name in database.LOGS
        }
        database.settle(server, scenario)
        for variant in scenario.variants:
            client.run(variant, length.limit)
        for number in range(length.rounds):
            database.settle(server, scenario)
            turn = scenario.variants if number % 2 == 0 else scenario.variants[::-1]
            for variant in turn:
                samples[variant.name].append(_sample(server, client, watcher, variant, length))
        logs = {}
        for name, (table, indexes, attached) in empty.items():
            size = database.log_size(watcher, name)
            logs[name] = Log(
                database.count_events(watcher, name) - attached,
                client.done[name],
                size[0] - table,
                size[1] - indexes,
            )
        _check(watcher, scenario, logs)
    return Measured(samples, logs)


def _sample(
    server: DevServer,
    client: Client,
    watcher: psycopg.Connection[TupleRow],
    variant: Variant,
    length: Length,
) -> Sample:
    postmaster = psutil.Process(server.pid)
    spent, written = _spent(postmaster), database.wal_position(watcher)
    run = client.run(variant, length.limit)
    return Sample(
        run.elapsed,
        1e6 * (_spent(postmaster) - spent) / run.transactions,
        (database.wal_position(watcher) - written) / run.transactions,
    )


def _spent(postmaster: psutil.Process) -> float:
    times = postmaster.cpu_times()
    return float(getattr(times, "children_user", 0) + getattr(times, "children_system", 0))


def _check(watcher: psycopg.Connection[TupleRow], scenario: Scenario, logs: dict[str, Log]) -> None:
    for name, log in logs.items():
        due = scenario.changes * log.transactions if scenario.records(name) else 0
        # More than due is only what emptied the table between the rounds.
        if log.events < due or (log.events and not due):
            raise RuntimeError(f"{scenario.name}: {name} has {log.events} events instead of {due}")
    if scenario.uses_up and (names := database.emptied(watcher, scenario)):
        raise RuntimeError(f"{scenario.name}: {', '.join(names)} ran out of rows to delete")
