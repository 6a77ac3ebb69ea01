"""Turns times into ratios, and ratios into tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median, quantiles

from benchmarks.measure import Measured
from benchmarks.scenarios import BARE, NONE, OURS, PGHISTORY, Scenario, Variant


@dataclass(frozen=True)
class Spread:
    """The rounds of one number: their median, the middle half of them, and the extremes."""

    median: float
    low: float
    high: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarise the rounds."""
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high, min(values), max(values))

    def show(self, digits: int) -> str:
        """Return `median [middle half]`."""
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}..{self.high:.{digits}f}]"


@dataclass(frozen=True)
class Recorded:
    """What an event takes, in bytes."""

    events: int
    wal: float
    """Write-ahead log, more than without a trigger."""
    table: float
    """Stored in the log's tables, TOAST included."""
    indexes: float


@dataclass(frozen=True)
class Line:
    """What one variant did in one scenario; pairs are taken within a round."""

    variant: str
    elapsed: Spread
    """Microseconds a transaction, as the client sees it."""
    added: Spread
    """Of these, more than without a trigger."""
    throughput: Spread
    """Transactions a second as a share of those without a trigger."""
    added_of_bare: float | None
    """Median of `added` over the bare trigger's."""
    cpu: Spread
    """Microseconds a transaction that the server's process computed."""
    cpu_added: Spread
    cpu_added_of_bare: float | None
    recorded: Recorded | None
    """None if it records nothing."""


@dataclass(frozen=True)
class Result:
    """One scenario's lines."""

    scenario: str
    title: str
    rounds: int
    most: float | None
    """What ours may add at most, as a multiple of what django-pghistory adds."""
    lines: list[Line]

    def line(self, variant: Variant) -> Line:
        """Return the line of a variant."""
        return next(line for line in self.lines if line.variant == variant.name)


def summarize(scenario: Scenario, measured: Measured) -> Result:
    """Pair each variant's rounds with those of its base."""
    samples = measured.samples
    elapsed = {name: [sample.elapsed for sample in runs] for name, runs in samples.items()}
    cpu = {name: [sample.cpu for sample in runs] for name, runs in samples.items()}
    lines = []
    for variant in scenario.variants:
        pairs = zip(elapsed[variant.name], elapsed[variant.base], strict=True)
        lines.append(
            Line(
                variant.name,
                Spread.of(elapsed[variant.name]),
                Spread.of(_added(elapsed, variant)),
                Spread.of([base / own for own, base in pairs]),
                _of_bare(elapsed, variant),
                Spread.of(cpu[variant.name]),
                Spread.of(_added(cpu, variant)),
                _of_bare(cpu, variant),
                _recorded(measured, variant),
            )
        )
    rounds = len(samples[NONE.name])
    return Result(scenario.name, scenario.title, rounds, scenario.most, lines)


def _recorded(measured: Measured, variant: Variant) -> Recorded | None:
    log = measured.logs.get(variant.name)
    if log is None or not log.events:
        return None
    wal = {name: [sample.wal for sample in runs] for name, runs in measured.samples.items()}
    return Recorded(
        log.events,
        median(_added(wal, variant)) * log.transactions / log.events,
        log.table / log.events,
        log.indexes / log.events,
    )


def _added(values: dict[str, list[float]], variant: Variant) -> list[float]:
    return [a - b for a, b in zip(values[variant.name], values[variant.base], strict=True)]


def _of_bare(values: dict[str, list[float]], variant: Variant) -> float | None:
    if variant.name == variant.base:
        return None
    return _quotient(median(_added(values, variant)), median(_added(values, BARE)))


def markdown(result: Result) -> str:
    """Return the tables of one scenario: times, then bytes."""
    head = (
        f"### {result.scenario}: {result.title}\n\n"
        "| variant | µs | µs added | of bare's | throughput | CPU µs | CPU µs added | of bare's |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    rows = (
        f"| {line.variant} | {line.elapsed.show(1)} | {line.added.show(1)} "
        f"| {_ratio(line.added_of_bare)} | {line.throughput.show(2)} | {line.cpu.show(1)} "
        f"| {line.cpu_added.show(1)} | {_ratio(line.cpu_added_of_bare)} |\n"
        for line in result.lines
    )
    return head + "".join(rows) + _bytes(result)


def _bytes(result: Result) -> str:
    head = (
        "\n| bytes an event | events | WAL added | table | indexes |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
    )
    rows = (
        f"| {line.variant} | {line.recorded.events:,} | {line.recorded.wal:.0f} "
        f"| {line.recorded.table:.0f} | {line.recorded.indexes:.0f} |\n"
        for line in result.lines
        if line.recorded
    )
    return head + "".join(rows)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def aims(results: list[Result]) -> str:
    """Return what ours adds as a multiple of what django-pghistory adds, beside what is wanted."""
    lines = [
        "### Added, as a multiple of what django-pghistory adds\n",
        "| scenario | elapsed | CPU | wanted by CPU | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for result in results:
        ours, peer = result.line(OURS), result.line(PGHISTORY)
        elapsed = _quotient(ours.added.median, peer.added.median)
        cpu = _quotient(ours.cpu_added.median, peer.cpu_added.median)
        wanted = verdict = ""
        if result.most is not None:
            wanted = f"≤ {result.most:.2f}"
            verdict = (
                "not measured" if cpu is None else "met" if cpu <= result.most else "**missed**"
            )
        lines.append(
            f"| {result.scenario} | {_ratio(elapsed)} | {_ratio(cpu)} | {wanted} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def _quotient(ours: float, peer: float) -> float | None:
    # Where a run is too short to tell, what somebody adds may come out as nothing, or less.
    return ours / peer if peer > 0.01 else None


def as_json(results: list[Result]) -> list[dict[str, object]]:
    """Return the results as plain data."""
    return [asdict(result) for result in results]
