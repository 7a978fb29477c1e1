"""Worker processes before a gate, for the tests: threads that call as often as they may until they are told to end.

    python -m tests.integration.legacy.gate_process REDIS_URL API_URL PROCESSES THREADS RATE

It begins at once and ends with its input. RATE 0 is none. What it prints at the end is, for each process, how many of
its passes were probes and whether its gate was shared.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
from typing import Any

from worker.legacy import LegacyApi, Rate
from worker.legacy.gate import Gate, Pass

FORK = multiprocessing.get_context("fork")  # of a process without threads: eight interpreters take long to start


def call(api: LegacyApi, gate: Gate, over: Any, probes: list[Pass]) -> None:
    while not over.is_set():
        entered = gate.enter(api)
        if isinstance(entered, Pass):
            gate.leave(entered, api.ping())
            probes += [entered] if entered.probe else []
        else:
            over.wait(entered.wait_s)


def process(redis_url: str, api_url: str, threads: int, rate: int, over: Any, told: Any) -> None:
    rates = [Rate(rate, "second"), Rate(100_000, "hour", fixed=True)] if rate else []
    api = LegacyApi(
        "vendor", base_url=api_url, auth=None, zone="UTC", probe="GET /ping", rates=rates, concurrency=32, deadline_s=10
    )
    gate, probes = Gate.connect(redis_url), list[Pass]()
    callers = [threading.Thread(target=call, args=(api, gate, over, probes)) for _ in range(threads)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    api.close()
    told.put((len(probes), gate.shared))


def main() -> None:
    redis_url, api_url, *numbers = sys.argv[1:]
    processes, threads, rate = map(int, numbers)
    over, told = FORK.Event(), FORK.SimpleQueue()
    workers = [
        FORK.Process(target=process, args=(redis_url, api_url, threads, rate, over, told)) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    sys.stdin.read()
    over.set()
    for _ in workers:
        print(*told.get())
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
