"""`reverse-sync recovered`: what has to happen after a restore before writes may go on. `protocol.md` 12.

Each step is small and may be repeated: broken off, everything stays paused and the command is run again. It writes to
neither system.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from worker.errors import LedgerError
from worker.ledger import Ledger
from worker.ledger.recovery import LOOKS_A_SECOND, Remaining, Restored

if TYPE_CHECKING:
    from worker.mapping import Routes

__all__ = ["Recovering", "StillInDoubt", "blind_collections"]

LINKS_AT_A_TIME, LOOKS_AT_A_TIME = 1000, 200
QUIET_WITHIN_S = 90.0


class StillInDoubt(LedgerError):
    """Something of the lost time is not yet known: the mode stays on."""


@dataclass(frozen=True, slots=True)
class Recovering:
    """One person's decision after a restore, and the steps that follow from it."""

    ledger: Ledger
    who: str
    why: str
    tell: Callable[[str], object] = lambda line: None
    sleep: Callable[[float], object] = field(default=time.sleep)

    def since_when(self, given: datetime | None) -> datetime:
        """Say where the lost time begins: as a person says, else with the last attempt that the ledger knows.

        Raises:
            LedgerError: nobody says, and the ledger was not found to be set back.
        """
        if given is not None:
            return given
        if any(mode.kind is Restored.LEDGER for mode in self.ledger.modes()) or self.ledger.paused_as_set_back():
            known = self.ledger.last_known()
            if known is not None:
                return known
        raise LedgerError("say since when the ledger has forgotten: --since, with the time of the backup")

    def ledger_set_back(self, since: datetime, rebuild: Callable[[], object]) -> int:
        """Begin the time after a restore of the ledger, with everything paused until its links are rebuilt.

        Returns how many windows are not proven now.

        Raises:
            ReverseSyncError: it broke off; everything is still paused, and to run it again goes on.
        """
        self.ledger.stop_everything("the ledger was set back: `reverse-sync recovered` is under way, or was broken off")
        windows = self.ledger.begin_recovery(Restored.LEDGER, since, who=self.who, why=self.why)
        self._until_quiet()
        rebuild()
        self.tell(f"{self._void():,} links: nothing is believed of what their records say")
        self.ledger.end_own_pause(who=self.who, why=self.why)
        return windows

    def legacy_restored(self, since: datetime) -> int:
        """Have every record written again, at a low rate, that was written since then. Returns how many resources."""
        self.ledger.begin_recovery(Restored.LEGACY, since, who=self.who, why=self.why)
        self.tell(f"{self._void():,} links: nothing is believed of what their records say")
        return self._look_again(since, forget_versions=False)

    def medplum_restored(self, since: datetime) -> int:
        """Have every resource read again, at a low rate, that was settled since then. Returns how many.

        The time since then is caught up with, and a sweep reads back whatever else has a legacy record.
        """
        self.ledger.begin_recovery(Restored.MEDPLUM, since, who=self.who, why=self.why)
        self.ledger.begin_sweep(self.ledger.types_caught_up())
        return self._look_again(since, forget_versions=True)

    def done(self, *, anyway: bool) -> Remaining:
        """End the time after a restore. Returns what was left in doubt, which only `anyway` allows.

        Raises:
            StillInDoubt: names how much of what is not yet known.
        """
        if not self.ledger.modes():
            raise LedgerError("no recovery is under way")
        if self.ledger.paused_as_set_back():
            raise LedgerError("the ledger was set back and everything is paused: `reverse-sync recovered` comes first")
        left = self.ledger.remaining()
        if left and not anyway:
            raise StillInDoubt(f"still in doubt: {', '.join(in_words(left))}; --accept ends it all the same")
        self.ledger.end_recovery(who=self.who, why=self.why)
        return left

    def _until_quiet(self) -> None:
        """Wait for the attempts that run: they announce nothing any more, and end."""
        ends_at = time.monotonic() + QUIET_WITHIN_S
        while syncing := self.ledger.status()["syncing"]:
            if time.monotonic() > ends_at:
                raise LedgerError(f"{syncing} attempts have not ended: everything is paused, run it again in a minute")
            self.sleep(0.5)

    def _void(self) -> int:
        voided, after = 0, 0
        while True:
            number, last = self.ledger.void_digests(after=after, limit=LINKS_AT_A_TIME)
            voided += number
            if last is None:
                return voided
            after = last

    def _look_again(self, since: datetime, *, forget_versions: bool) -> int:
        chosen, after = 0, ""
        while True:
            number, last = self.ledger.look_again(
                since,
                after=after,
                limit=LOOKS_AT_A_TIME,
                in_s=chosen / LOOKS_A_SECOND,
                forget_versions=forget_versions,
            )
            chosen += number
            if last is None:
                return chosen
            after = last


def in_words(left: Remaining) -> list[str]:
    """Name what is in doubt."""
    named = (
        (left.creates, "creates without an answer"),
        (left.windows, "windows of time that catch-up has not proven yet (reverse-sync status)"),
        (left.looks, "resources that are still to be looked at again"),
        (left.unproved, "resources held because their record could not be told: reverse-sync failed"),
    )
    return [f"{number:,} {what}" for number, what in named if number]


def blind_collections(routes: Routes) -> list[str]:
    """Name the collections whose records cannot be told to be ours before they are written: no identity is declared."""
    collections = {collection for route in routes.values() for collection in route.collections}
    return sorted(each.name for each in collections if not each.identity)
