"""Fills the ledger as the receiver would: `python -m tests.bench.fill FIRST COUNT`, with the settings of a receiver."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import UTC, datetime

from tests.bench.patients import id_of, notified, version_of
from worker.ledger import Ledger
from worker.ledger.values import Hint
from worker.settings import ReceiverSettings

BATCH = 500


def main() -> None:
    first, count = int(sys.argv[1]), int(sys.argv[2])
    written = datetime(2026, 11, 22, 10, 30, tzinfo=UTC)
    with closing(Ledger.of(ReceiverSettings.read(), connections=1)) as ledger:
        for start in range(first, first + count, BATCH):
            ledger.accept(
                [
                    Hint(f"Patient/{id_of(number)}", version_of(number), written, "create", body=notified(number))
                    for number in range(start, min(start + BATCH, first + count))
                ]
            )


if __name__ == "__main__":
    main()
