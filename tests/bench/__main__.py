"""Runs the benchmark: `python -m tests.bench [--quick] [--only PART]`. Prints figures, and writes docs/benchmarks.md.

The exit code says whether it ran, not whether the targets are met: other machines have other neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from tests.bench.patients import notified
from tests.bench.report import Figure, Report
from tests.bench.system import Stage

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "benchmarks.md"

OURS: Final = ("worker1", "worker2")
THEIRS: Final = ("tutorial1", "tutorial2")
LEGACY_DELAYS_S: Final = (0.05, 0.0)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 5
    saturation: int = 6_000
    connections: tuple[int, ...] = (100, 20)  # the first has the target; Medplum sends twenty at a time
    steady_s: float = 6.0
    path: int = 1_000
    path_rounds: int = 3
    backlogs: tuple[int, int] = (1_000, 20_000)
    drain_s: float = 120.0
    steps: int = 500


QUICK: Final = Size(
    rounds=2,
    saturation=1_500,
    connections=(100,),
    steady_s=1.5,
    path=150,
    path_rounds=1,
    backlogs=(100, 500),
    drain_s=6.0,
    steps=100,
)
STEADY_PER_S: Final = 300


class Bench:
    """One run: what it measures with, and what it has found."""

    def __init__(self, stage: Stage, size: Size) -> None:
        self.stage = stage
        self.size = size
        self.report = Report()
        self._next = count(1)

    def run(self, only: str | None = None) -> None:
        parts = {
            "steps": self.steps,
            "mapping": self.mapping,
            "receiver": self.receiver,
            "path": self.path,
            "backlog": self.backlog,
        }
        for name, part in parts.items():
            if only in {None, name}:
                part()

    def patients(self, number: int) -> int:
        """Return the first of so many patients that nothing has seen yet."""
        first = next(self._next)
        self._next = count(first + number)
        return first

    def steps(self) -> None:
        """Measure single steps of a worker, alone in a process."""
        self.stage.use("steps", 1)
        told = json.loads(self.stage.run(sys.executable, "-m", "tests.bench.inside", str(self.size.steps)))
        for step, (middle, late) in told.items():
            self.report.add(Figure(step, "ms", [middle], note=f"p99 {late:.2f} ms"))

    def mapping(self) -> None:
        """Measure what one resource costs beside `json.loads`, and the gate beside a PING."""
        self.stage.use("mapping", 0)
        rounds, calls = str(self.size.steps // 10), str(self.size.steps * 4)
        told = json.loads(self.stage.run(sys.executable, "-m", "tests.bench.mapping", rounds, calls))
        for name, (middle, late) in told.items():
            step, _, of = name.partition(", ")
            aim = 2.0 if step == "validate and map" else 0.2 if step.startswith("gate") else None
            self.report.add(Figure(name, "ms", [middle], at_most=aim, note=f"p95 {late:.2f} ms"))
            if aim is not None:
                base = "PING" if step.startswith("gate") else f"json.loads, {of}"
                self.report.add(Figure(f"{step} ÷ {base.partition(',')[0]}, {of}", "", [middle / told[base][0]]))

    def receiver(self) -> None:
        """Measure the receiver beside a bare handler, in turn."""
        self.stage.use("receiver", 2)
        urls = {"ours": self.stage.receiver("web"), "bare": self.stage.handler("bare", "tests.bench.bare:app")}
        for connections in self.size.connections:
            self._saturate(urls, connections, target=connections == self.size.connections[0])
        self._steady(urls)
        self.report.add(Figure("memory of web after it", "MB", [self.stage.megabytes("web")], at_most=90))
        self.stage.stop(["web", "bare"])

    def _saturate(self, urls: dict[str, str], connections: int, *, target: bool) -> None:
        found: dict[str, list[float]] = defaultdict(list)
        for _ in range(self.size.rounds):
            for name, url in urls.items():
                number = self.size.saturation
                told = self.stage.load(
                    url, "--first", self.patients(number), "--count", number, "--connections", connections
                )
                found[name].append(told["per_second"])
        self.report.add(Figure(f"receiver, {connections} connections", "requests/s", found["ours"]))
        self.report.add(Figure(f"bare handler, {connections} connections", "requests/s", found["bare"]))
        ratios = [ours / bare for ours, bare in zip(found["ours"], found["bare"], strict=True)]
        name = f"receiver ÷ bare handler, {connections} connections"
        self.report.add(Figure(name, "", ratios, at_least=0.5 if target else None))

    def _steady(self, urls: dict[str, str]) -> None:
        found: dict[str, list[float]] = defaultdict(list)
        number = int(self.size.steady_s * STEADY_PER_S)
        for _ in range(min(3, self.size.rounds)):
            for name, url in urls.items():
                told = self.stage.load(url, "--first", self.patients(number), "--count", number, "--rate", STEADY_PER_S)
                found[f"{name} p50"].append(told["p50_ms"])
                found[f"{name} p99"].append(told["p99_ms"])
        for name, rounds in found.items():
            aim = 25.0 if name == "ours p99" else None
            self.report.add(Figure(f"latency at {STEADY_PER_S} requests/s, {name}", "ms", rounds, at_most=aim))

    def path(self) -> None:
        """Measure the whole path beside the tutorial, in turn; both stand idle while the other works."""
        self.stage.use("path", 3)
        urls = {"ours": self.stage.receiver("web")}
        self.stage.workers(*OURS, app="worker.queue:app", queue="sync")
        self._start_dispatch()
        urls["tutorial"] = self.stage.handler("tutorial", "tests.bench.tutorial:app")
        self.stage.workers(*THEIRS, app="tests.bench.tutorial:celery", queue="tutorial")
        for url in urls.values():
            self._through(url, 100, 0.0)
        for delay_s in LEGACY_DELAYS_S:
            self._compare(urls, delay_s)
        for name in ("web", *OURS, "dispatch", "beat", "tutorial", *THEIRS):
            aim = {"web": 90.0, "worker1": 200.0, "worker2": 200.0}.get(name)
            self.report.add(Figure(f"memory of {name}", "MB", [self.stage.megabytes(name)], at_most=aim))
        self.stage.stop(["beat", "dispatch", *OURS, "web", *THEIRS, "tutorial"])

    def _compare(self, urls: dict[str, str], delay_s: float) -> None:
        found: dict[str, list[float]] = defaultdict(list)
        for _ in range(self.size.path_rounds):
            for name, url in urls.items():
                found[name].append(self._through(url, self.size.path, delay_s))
        legacy = f"legacy answers after {delay_s * 1000:.0f} ms" if delay_s else "legacy answers at once"
        self.report.add(Figure(f"whole path, {legacy}", "changes/s", found["ours"]))
        self.report.add(Figure(f"tutorial, {legacy}", "changes/s", found["tutorial"]))
        ratios = [ours / theirs for ours, theirs in zip(found["ours"], found["tutorial"], strict=True)]
        self.report.add(Figure(f"whole path ÷ tutorial, {legacy}", "", ratios, at_least=0.6 if delay_s else None))

    def _through(self, url: str, number: int, delay_s: float) -> float:
        """Send notifications and wait until each is a legacy record; return how many a second."""
        self.stage.begin(delay_s)
        told = self.stage.load(url, "--first", self.patients(number), "--count", number)
        made = self.stage.wait_for_records(number, 120.0)
        return number / (made["last_at"] - told["began_at"])

    def backlog(self) -> None:
        """Measure the time per change of a small and of a large backlog."""
        times = []
        for place, number in enumerate(self.size.backlogs):
            drained, each_ms = self._drain(f"backlog{number}", 4 + place, number)
            note = "" if drained == number else f"the first {drained:,} of them, then time was up"
            self.report.add(Figure(f"time per change, backlog of {number:,}", "ms", [each_ms], note=note))
            times.append(each_ms)
        name = "time per change, large backlog ÷ small one"
        self.report.add(Figure(name, "", [times[1] / times[0]], at_most=1.2))

    def _drain(self, ledger: str, database: int, number: int) -> tuple[int, float]:
        self.stage.use(ledger, database)
        self.stage.run(sys.executable, "-m", "tests.bench.fill", str(self.patients(number)), str(number))
        self.stage.begin(0.0)
        self.stage.workers(*OURS, app="worker.queue:app", queue="sync")
        self._start_dispatch()
        until = time.monotonic() + self.size.drain_s
        while (made := self.stage.records())["count"] < number and time.monotonic() < until:
            time.sleep(0.1)
        self.stage.stop(["beat", "dispatch", *OURS])
        return int(made["count"]), (made["last_at"] - made["first_at"]) / made["count"] * 1000

    def _start_dispatch(self) -> None:
        self.stage.workers("dispatch", app="worker.queue:app", queue="dispatch", threads=4)
        self.stage.program("beat", "celery", "-A", "worker.queue:app", "beat")


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores, system = os.cpu_count(), platform.system()
    return (
        f"{cores} cores, {memory:.0f} GB of memory, {system} {platform.machine()}, Python {platform.python_version()}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure receiver and whole path.")
    parser.add_argument("--quick", action="store_true", help="a small run within a minute; writes no page")
    parser.add_argument(
        "--only", choices=("steps", "mapping", "receiver", "path", "backlog"), help="one part; writes no page"
    )
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    load = f"{os.getloadavg()[0]:.1f} in the minute before"
    print(f"{machine()}; load {load}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench") as folder, Stage(Path(folder)) as stage:
        bench = Bench(stage, QUICK if options.quick else Size())
        bench.run(options.only)
    if not (options.quick or options.only):
        facts = {"machine": machine(), "load": load, "bytes": f"{len(notified(0)):,}"}
        PAGE.write_text(bench.report.page(facts), encoding="utf-8")
        print(f"written: {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
