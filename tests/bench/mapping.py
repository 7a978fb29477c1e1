"""What one resource and one call cost inside a worker: bytes → R4 model → mapping → digest, and the gate.

    python -m tests.bench.mapping ROUNDS CALLS

Resources are those of the example's fixture pairs that map to records; what they ask for is known beforehand, so no
reads are in it. Beside each figure its baseline, in turn: `json.loads` of the same bytes, and a PING to the same
Valkey. It reads the settings of a worker. Prints one line of JSON: by figure the median and the 95th percentile, in ms.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import redis

from worker.errors import BadResource, InvalidResource, Unmappable
from worker.ledger import Sealer
from worker.legacy import Answered, Outcome, Rate
from worker.legacy.gate import Gate, Pass
from worker.mapping import Context, Mapped, Route, apply, load_routes
from worker.mapping.question import Answers
from worker.mapping.surroundings import Surroundings, as_bytes, asked
from worker.medplum.resource import model
from worker.settings import WorkerSettings

FIXTURES: Final = Path(__file__).parents[1] / "fixtures" / "mappings"
MEDPLUM: Final = "https://medplum.example/"
WIDE: Final = (Rate(1_000_000, "second"), Rate(1_000_000_000, "hour", fixed=True))  # looked at, and never full
ANSWERED: Final = Answered(Outcome.DONE, "", 201)
ALL: Final = "all types"

Took = dict[str, list[float]]
"""Milliseconds by figure."""


@dataclass(frozen=True, slots=True)
class Api:
    """What the gate looks at of a legacy API."""

    name: str
    rates: tuple[Rate, ...] = ()
    concurrency: int = 24
    deadline_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Case:
    """One resource, the route of its type, and the answers to what its mapping asks."""

    route: Route[Any]
    body: bytes
    answers: Answers

    @property
    def type(self) -> str:
        return self.route.type

    def mapped(self, sealer: Sealer, resource: Any) -> None:
        """Map it and digest its records, as a sync does to learn whether there is something to write."""
        context = Context.of(resource, zone=self.route.to.api.zoneinfo, medplum=MEDPLUM, answers=self.answers)
        result = apply(self.route, resource, context)
        assert isinstance(result, Mapped)
        for record in result.records:
            sealer.digest(record.canonical())


def cases() -> Iterator[Case]:
    """List the fixtures that map to records."""
    routes = load_routes("worker.mappings")
    for file in sorted(FIXTURES.glob("*/*.fhir.json")):
        around = Surroundings.read(file.read_bytes())
        route = routes[around.resource["resourceType"]]
        try:
            resource = around.model()
            context = Context.of(resource, zone=route.to.api.zoneinfo, medplum=MEDPLUM)
            result, context = asked(_mapping(route, resource), context, around.answer)
        except (BadResource, InvalidResource, Unmappable):
            continue
        if isinstance(result, Mapped):
            yield Case(route, as_bytes(around.resource), context.answers)


def _mapping(route: Route[Any], resource: Any) -> Callable[[Context], tuple[object, Context]]:
    return lambda context: (apply(route, resource, context), context)


def resources(sealer: Sealer, rounds: int, took: Took) -> None:
    """Take each resource through, all of them in each round; the first round is not counted."""
    fixtures = list(cases())
    for number in range(rounds + 1):
        for case in fixtures:
            at = [time.perf_counter()]
            json.loads(case.body)
            at.append(time.perf_counter())
            began = time.thread_time()
            resource = model(case.body, case.type)
            at.append(time.perf_counter())
            case.mapped(sealer, resource)
            at.append(time.perf_counter())
            processor_ms = (time.thread_time() - began) * 1000
            if number:
                took[f"processor time of both, {ALL}"].append(processor_ms)  # what neighbours take is not in it
                loaded, validated, mapped = spans_ms(at)
                for name in (ALL, case.type):
                    took[f"json.loads, {name}"].append(loaded)
                    took[f"validate, {name}"].append(validated)
                    took[f"map, {name}"].append(mapped)
                    took[f"validate and map, {name}"].append(validated + mapped)


def gates(url: str, calls: int, took: Took) -> None:
    """Go through the gate of an API without rates and of one with two, and ask the same Valkey for nothing between."""
    gate = Gate.connect(url)
    with redis.Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5, retry=None) as client:
        for number in range(-calls // 10, calls):  # those below zero are not counted
            for api, name in ((Api("bench"), "no rates"), (Api("bench-rates", WIDE), "two rates")):
                at = [time.perf_counter()]
                client.ping()
                at.append(time.perf_counter())
                entered = gate.enter(api)
                at.append(time.perf_counter())
                assert isinstance(entered, Pass)
                gate.leave(entered, ANSWERED)
                at.append(time.perf_counter())
                assert gate.shared, "the broker went away: that was a gate of one process"
                if number >= 0:
                    pinged, went_in, went_out = spans_ms(at)
                    took["PING"].append(pinged)
                    took[f"gate: enter, {name}"].append(went_in)
                    took[f"gate: leave, {name}"].append(went_out)


def spans_ms(at: Sequence[float]) -> list[float]:
    return [(after - before) * 1000 for before, after in pairwise(at)]


def told(took: Took) -> dict[str, tuple[float, float]]:
    ordered = {name: sorted(values) for name, values in took.items()}
    return {name: (values[len(values) // 2], values[len(values) * 95 // 100]) for name, values in ordered.items()}


def main() -> None:
    rounds, calls = map(int, sys.argv[1:])
    settings, took = WorkerSettings.read(), defaultdict[str, list[float]](list)
    assert settings.broker_url is not None
    resources(Sealer(settings.payload_key), rounds, took)
    gates(settings.broker_url.get_secret_value(), calls, took)
    print(json.dumps(told(took)))


if __name__ == "__main__":
    main()
