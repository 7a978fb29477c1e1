"""What a run found: figures with their targets, as lines for a terminal and as the page `docs/benchmarks.md`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

PAGE = """\
# Benchmarks

Written by `make bench`; `make bench ARGS=--quick` writes nothing. A figure with a target is a ratio within one run:
both sides ran in turn, under the same load, on the machine below, which also ran the load, the broker and the stub. Of
several rounds the median counts; the smallest and the largest stand beside it.

Machine: {machine}. Its load average was {load}.

## Against the targets

{targets}
## What was measured

- **Mapping**: bytes → R4 model (validate), mapping → wire form → digest (map), for those resources of the example's
  fixture pairs that map to records, beside `json.loads` of the same bytes; the gate's enter and leave beside a PING to
  the same Valkey. One process, in turn, median and 95th percentile of single calls.
- **Receiver**: `python -m webhook` on SQLite beside a bare Starlette handler that reads the body and answers 202, on
  the same uvicorn settings. The load is a process of its own: raw sockets that are kept alive, signed notifications of
  distinct patients ({bytes} bytes each), made beforehand.
- **Whole path**: notification → receiver → ledger → two Celery workers of 16 threads → read → mapping → legacy write,
  beside *the tutorial*: a handler that verifies and calls `task.delay(body)`, and a task that parses, runs the same
  mapping and posts with one shared httpx client; two workers of 16 threads on the same broker, no ledger, no read.
  Counted are records per second at the legacy stub, from the first notification to the last record.
- Medplum and the legacy system are a stub that answers from memory, in one process, not the sandbox, which would take
  the processors from what is measured; the legacy half answers after 50 ms, or at once. The example clinic declares
  24 calls at a time; here it is 64, because the tutorial knows no limit.
- **Backlog**: the ledger is filled, workers are started, then dispatch; from the first record to the last, divided by
  their number.
- Memory is the largest resident set that the process had so far.

## All figures

{figures}"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured: a value for each round, and what it should be."""

    name: str
    unit: str
    rounds: Sequence[float]
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def value(self) -> float:
        return median(self.rounds)

    @property
    def holds(self) -> bool:
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f"≥ {_number(self.at_least)}"
        return f"≤ {_number(self.at_most)}" if self.at_most is not None else ""

    @property
    def has_target(self) -> bool:
        return bool(self.target)

    def cells(self) -> tuple[str, str, str]:
        """Return the median with its unit, the range, and the target with whether it is met."""
        several = len(self.rounds) > 1
        spread = f"{_number(min(self.rounds))} – {_number(max(self.rounds))}" if several else ""
        verdict = f"{self.target} {'met' if self.holds else '**missed**'}" if self.has_target else ""
        return f"{_number(self.value)} {self.unit}".strip(), spread, verdict


@dataclass(slots=True)
class Report:
    """The figures of one run, in the order in which they were found."""

    figures: list[Figure] = field(default_factory=list)

    def add(self, figure: Figure) -> None:
        """Take a figure in, and print it."""
        self.figures.append(figure)
        value, spread, verdict = figure.cells()
        print(
            f"{figure.name:<58} {value:>16}  {spread:<20} {verdict.replace('*', '')} {figure.note}".rstrip(), flush=True
        )

    def page(self, facts: Mapping[str, str]) -> str:
        """Write the page."""
        aimed = [figure for figure in self.figures if figure.has_target]
        return PAGE.format(targets=_table(aimed, target=True), figures=_table(self.figures, target=False), **facts)


def _table(figures: Sequence[Figure], *, target: bool) -> str:
    head = ("figure", "median", "rounds", "target" if target else "note")
    rows = [(figure.name, *figure.cells()[:2], figure.cells()[2] if target else figure.note) for figure in figures]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
