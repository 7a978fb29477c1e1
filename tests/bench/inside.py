"""What single steps cost, alone in one process: the model, the mapping, the ledger's verbs, the gate.

    python -m tests.bench.inside COUNT

It reads the settings of a worker; the ledger should be one that nobody else uses. Prints one line of JSON: for each
step the milliseconds that it took, the median and the 99th percentile.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime

from tests.bench.patients import id_of, notified, version_of
from tests.bench.routes import patient
from worker.ledger import Ledger
from worker.ledger.values import (
    Announcement,
    Answer,
    Claim,
    Disposition,
    Hint,
    Operation,
    Settlement,
    WriteOutcome,
)
from worker.legacy.gate import Gate, Pass
from worker.mapping import Context, Mapped
from worker.mapping.route import apply
from worker.medplum.resource import model
from worker.settings import WorkerSettings

BATCH = 100
WRITTEN = datetime(2026, 11, 22, 10, 30, tzinfo=UTC)


class Stopwatch:
    """Milliseconds by the name of the step."""

    def __init__(self) -> None:
        self._took: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def time(self, step: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._took[step].append((time.perf_counter() - began) * 1000)

    def told(self) -> dict[str, tuple[float, float]]:
        ordered = {step: sorted(took) for step, took in self._took.items()}
        return {step: (took[len(took) // 2], took[len(took) * 99 // 100]) for step, took in ordered.items()}


def mapped(number: int, watch: Stopwatch) -> Mapped:
    """Read a patient and map it."""
    with watch.time("read into the R4 model, validate"):
        resource = model(notified(number), "Patient")
    context = Context.of(resource, zone=patient.to.api.zoneinfo, medplum="https://medplum.example/")
    with watch.time("map"):
        result = apply(patient, resource, context)
    assert isinstance(result, Mapped)
    return result


def accept(ledger: Ledger, first: int, count: int, watch: Stopwatch) -> None:
    hints = [
        Hint(f"Patient/{id_of(number)}", version_of(number), WRITTEN, "create", body=notified(number))
        for number in range(first, first + count)
    ]
    with watch.time(f"ledger: accept, {count} at a time" if count > 1 else "ledger: accept, one"):
        ledger.accept(hints)


def write(ledger: Ledger, number: int, watch: Stopwatch) -> None:
    """Take a mirror through the ledger as a create does, without any call."""
    fields = mapped(number, watch).records[0].resolve({})
    with watch.time("ledger: claim"):
        claim = ledger.claim(f"Patient/{id_of(number)}", instance="bench", lease_s=60)
    assert isinstance(claim, Claim)
    announcement = Announcement(
        slot="",
        collection="patient",
        operation=Operation.CREATE,
        fields=fields,
        parents={},
        template="POST /patients",
        version_id=version_of(number),
        mapping_version=patient.version,
        send_within_s=5,
        deadline_s=20,
        lands_within_s=60,
    )
    with watch.time("ledger: announce"):
        announced = ledger.announce(claim, announcement)
    answer = Answer(WriteOutcome.DONE, 201, keys={"number": number, "uuid": id_of(number)}, digest="bench:0")
    settlement = Settlement(Disposition.APPLIED, version_of(number), WRITTEN, claim.claimed_at)
    with watch.time("ledger: record and finish"):
        ledger.finish(claim, settlement, last=(announced.id, answer))


def gate(settings: WorkerSettings, count: int, watch: Stopwatch) -> None:
    ours = Gate.of(settings)
    for _ in range(count):
        with watch.time("gate: enter"):
            entered = ours.enter(patient.to.api)
        assert isinstance(entered, Pass)
        with watch.time("gate: leave"):
            ours.leave(entered, None)


def main() -> None:
    count, watch, settings = int(sys.argv[1]), Stopwatch(), WorkerSettings.read()
    mapped(0, Stopwatch())  # imports and the models' first use are no step
    with closing(Ledger.of(settings)) as ledger:
        for first in range(0, count, BATCH):
            accept(ledger, first, BATCH, watch)
        for number in range(count, count + BATCH):
            accept(ledger, number, 1, watch)
        for number in range(count):
            write(ledger, number, watch)
    gate(settings, count, watch)
    print(json.dumps(watch.told()))


if __name__ == "__main__":
    main()
