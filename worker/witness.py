"""The witness: a file outside the database that knows how far the ledger had come. `protocol.md` 12.

A ledger that is behind it was set back, by a restore or a failover: it has forgotten writes, and would make their
records a second time. So everything pauses until a person runs `reverse-sync recovered`. The file is never lowered but
after such a decision, which stands in the ledger. It holds counters and a time, nothing of a patient.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Protocol, Self

from sqlalchemy import make_url

from worker import log
from worker.errors import LedgerError
from worker.ledger.recovery import Counters
from worker.settings import Settings

__all__ = ["Seen", "Witness", "WitnessUnreadable"]

KEEP_EVERY_S = 5.0

_log = log.get(__name__)


class WitnessUnreadable(LedgerError):
    """The witness is there and cannot be read."""


class _Ledger(Protocol):
    def counters(self) -> Counters: ...

    def stop_everything(self, why: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """How far the ledger had come, and when."""

    accepted: int
    writes: int
    changes: int
    at: datetime

    def ahead_of(self, now: Counters) -> bool:
        """Tell whether the ledger was set back since, and nobody has looked at that yet."""
        if now.decided_at is not None and now.decided_at >= self.at:
            return False
        return now.accepted < self.accepted or now.writes < self.writes or now.changes < self.changes


@dataclass(frozen=True, slots=True)
class Witness:
    """One file."""

    path: Path

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Name the file of a process's settings; each ledger has one of its own."""
        if settings.witness is not None:
            return cls(settings.witness)
        url = make_url(settings.database_url).set(password=None).render_as_string()
        return cls(settings.var / f"witness-{sha256(url.encode()).hexdigest()[:12]}.json")

    def look(self, ledger: _Ledger) -> bool:
        """Compare the ledger with the file; pause everything if it is behind. Returns whether it is as it should be.

        Raises:
            WitnessUnreadable: the file is there and says nothing.
            LedgerUnavailable: the ledger cannot be asked.
        """
        return self._looked(ledger) is not None

    def keep(self, ledger: _Ledger) -> bool:
        """Look, and write down how far the ledger has come by now. Returns whether it is as it should be."""
        now = self._looked(ledger)
        if now is not None:
            self._write(now)
        return now is not None

    def seen(self) -> Seen | None:
        """Read the file; None if there is none yet."""
        try:
            text = self.path.read_text(encoding="utf-8")
            held = json.loads(text)
            at = datetime.fromisoformat(held["at"])
            return Seen(int(held["accepted"]), int(held["writes"]), int(held["changes"]), at)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise WitnessUnreadable(
            f"the witness {self.path} cannot be read: if the ledger was not restored, remove the file; else "
            "`reverse-sync recovered`"
        )

    def _looked(self, ledger: _Ledger) -> Counters | None:
        seen, now = self.seen(), ledger.counters()
        if seen is None or not seen.ahead_of(now):
            return now
        why = (
            f"the ledger is behind its witness of {seen.at:%Y-%m-%d %H:%M:%S} UTC: it was set back in time and has "
            "forgotten writes; run `reverse-sync recovered`"
        )
        if ledger.stop_everything(why):
            _log.critical(
                "the ledger was set back in time: everything is paused until `reverse-sync recovered`",
                witness_at=seen.at.isoformat(),
                accepted_lost=seen.accepted - now.accepted,
                writes_lost=seen.writes - now.writes,
            )
        return None

    def _write(self, now: Counters) -> None:
        """Replace the file at once and for good: half a witness would be none."""
        content = {"accepted": now.accepted, "writes": now.writes, "changes": now.changes, "at": now.at.isoformat()}
        fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("w", encoding="utf-8") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise LedgerError(f"the witness {self.path} cannot be written: {error.strerror}") from None
