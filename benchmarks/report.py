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
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}–{self.high:.{digits}f}]"


@dataclass(frozen=True)
class Line:
    """What one variant did in one scenario; pairs are taken within a round."""

    variant: str
    microseconds: Spread
    added: Spread
    """Microseconds more than without a trigger."""
    throughput: Spread
    """Transactions a second as a share of those without a trigger."""
    times_bare: float | None
    """Median of `added` over the bare trigger's."""


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


def summarise(scenario: Scenario, times: Times) -> Result:
    """Pair each variant's rounds with those of its base."""
    bare = median(_added(times, BARE))
    lines = []
    for variant in scenario.variants:
        pairs = list(zip(times[variant.name], times[variant.base], strict=True))
        added = _added(times, variant)
        lines.append(
            Line(
                variant.name,
                Spread.of(times[variant.name]),
                Spread.of(added),
                Spread.of([base / own for own, base in pairs]),
                None if variant.name == variant.base else median(added) / bare,
            )
        )
    return Result(scenario.name, scenario.title, len(times[NONE.name]), lines)


def _added(times: Times, variant: Variant) -> list[float]:
    return [a - b for a, b in zip(times[variant.name], times[variant.base], strict=True)]


def markdown(result: Result) -> str:
    """Return the table of one scenario."""
    head = (
        f"### {result.scenario}: {result.title}\n\n"
        "| variant | µs a transaction | µs added | throughput, of none | added, of bare |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
    )
    rows = (
        f"| {line.variant} | {line.microseconds.show(1)} | {line.added.show(1)} "
        f"| {line.throughput.show(2)} | "
        + ("–" if line.times_bare is None else f"{line.times_bare:.2f}")
        + " |\n"
        for line in result.lines
    )
    return head + "".join(rows)


def aims(results: list[Result]) -> str:
    """Return the project's aims beside what was reached, for the scenarios that were run."""
    rows = []
    for result in results:
        ours = result.line(OURS)
        if result.scenario == "touch":
            reached = ours.throughput.median
            rows.append(("touch: throughput of the bare table", "≥ 0.90", f"{reached:.2f}",
                         reached >= 0.9))  # fmt: skip
        if result.scenario in ("update", "update-context"):
            reached = ours.times_bare or 0.0
            rows.append((f"{result.scenario}: added cost, of the bare insert's", "≤ 1.30",
                         f"{reached:.2f}", reached <= 1.3))  # fmt: skip
            reached = ours.added.median / result.line(PGHISTORY).added.median
            rows.append((f"{result.scenario}: added cost, of django-pghistory's", "≤ 1.00",
                         f"{reached:.2f}", reached <= 1.0))  # fmt: skip
    if not rows:
        return ""
    head = "### Aims\n\n| aim | wanted | measured | |\n| --- | ---: | ---: | --- |\n"
    return head + "".join(
        f"| {aim} | {wanted} | {got} | {'reached' if ok else '**missed**'} |\n"
        for aim, wanted, got, ok in rows
    )


def as_json(results: list[Result]) -> list[dict[str, object]]:
    """Return the results as plain data."""
    return [asdict(result) for result in results]
