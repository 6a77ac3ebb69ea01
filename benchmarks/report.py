"""Turns times into ratios, and ratios into tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median, quantiles

from benchmarks.measure import Times
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


@dataclass(frozen=True)
class Result:
    """One scenario's lines."""

    scenario: str
    title: str
    rounds: int
    lines: list[Line]

    def line(self, variant: Variant) -> Line:
        """Return the line of a variant."""
        return next(line for line in self.lines if line.variant == variant.name)


def summarize(scenario: Scenario, times: Times) -> Result:
    """Pair each variant's rounds with those of its base."""
    elapsed = {name: [sample.elapsed for sample in samples] for name, samples in times.items()}
    cpu = {name: [sample.cpu for sample in samples] for name, samples in times.items()}
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
            )
        )
    return Result(scenario.name, scenario.title, len(times[NONE.name]), lines)


def _added(values: dict[str, list[float]], variant: Variant) -> list[float]:
    return [a - b for a, b in zip(values[variant.name], values[variant.base], strict=True)]


def _of_bare(values: dict[str, list[float]], variant: Variant) -> float | None:
    bare = median(_added(values, BARE))
    return (
        None if variant.name == variant.base or not bare else median(_added(values, variant)) / bare
    )


def markdown(result: Result) -> str:
    """Return the table of one scenario."""
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
    return head + "".join(rows)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def aims(results: list[Result]) -> str:
    """Return the project's aims beside what was reached, for the scenarios that were run."""
    rows = []
    for result in results:
        ours, peer = result.line(OURS), result.line(PGHISTORY)
        if result.scenario == "touch":
            cpu = ours.cpu.median and result.line(NONE).cpu.median / ours.cpu.median
            rows.append(
                ("touch: throughput, of the bare table", "≥ 0.90", ours.throughput.median, cpu)
            )
        if result.scenario in ("update", "update-context"):
            of_bare = (ours.added_of_bare or 0, ours.cpu_added_of_bare or 0)
            rows.append((f"{result.scenario}: added, of the bare insert's", "≤ 1.30", *of_bare))
            of_peer = (
                ours.added.median / peer.added.median,
                peer.cpu_added.median and ours.cpu_added.median / peer.cpu_added.median,
            )
            rows.append((f"{result.scenario}: added, of django-pghistory's", "≤ 1.00", *of_peer))
    if not rows:
        return ""
    head = "### Aims\n\n| aim | wanted | measured | by CPU |\n| --- | ---: | ---: | ---: |\n"
    return head + "".join(
        f"| {aim} | {wanted} | {elapsed:.2f} | {cpu:.2f} |\n" for aim, wanted, elapsed, cpu in rows
    )


def as_json(results: list[Result]) -> list[dict[str, object]]:
    """Return the results as plain data."""
    return [asdict(result) for result in results]
