"""Write-back: puts the keys of new legacy records on their Medplum resources, a few at a time. `protocol.md` 14.

It only adds what is wanted to what is there, and only where that is not there yet. Whatever becomes of it, the sync and
its mirrors never feel it. It runs where Medplum's credentials are. It never calls a legacy API, and has no
Celery in it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from worker import log
from worker.errors import BadResource, MedplumRefused, MedplumUnavailable
from worker.ledger import Ledger
from worker.ledger.identifying import ToIdentify
from worker.ledger.values import Keys
from worker.mapping import Routes, WriteBack
from worker.medplum import Identified, Medplum, Put
from worker.metrics import WRITE_BACKS

__all__ = ["AT_MOST", "TURN_S", "WriteBacks"]

AT_MOST = 24
TURN_S = 4.0
"""One turn's time for all its calls: less than the time between turns, so that one thread at most is held by a Medplum
that takes searches and hangs at patches."""

_HOLD_S = 60.0  # much longer than a turn; a process that dies in one delays its links by no more
_LEAST_CALL_S = 0.5
_FIRST_S, _MOST_S = 5.0, 3600.0

_WORDS = {
    Put.ADDED: "the key was put on the Medplum resource",
    Put.REPLACED: "the key was put on the Medplum resource, in the place of the former one",
    Put.THERE: "the key is on the Medplum resource already",
    Put.GONE: "the Medplum resource is gone: nothing is put there",
}

_FOREIGN = "the resource names another legacy record under the route's system: there may be two records for it"

_log = log.get(__name__)


class _NoKey(Exception):
    """The record lacks the key that the route wants written back."""


@dataclass(slots=True)
class _Turn:
    """What a turn did, and whether it goes on."""

    ends_at: float
    done: int = 0
    later: int = 0
    wait_s: float | None = None  # until the rest may be tried; none: it goes on

    def stop(self, wait_s: float = 0.0) -> None:
        self.wait_s = wait_s


class WriteBacks:
    """The write-backs of one process; used by many threads."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        medplum: Medplum,
        routes: Routes,
        stopping: Callable[[], bool] = lambda: False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._medplum, self._routes = ledger, medplum, routes
        self._stopping, self._monotonic = stopping, monotonic

    def turn(self, resource_type: str) -> str:
        """Take some of a type's links, and see that each key stands on its resource. Returns what was done, in words.

        Raises:
            LedgerUnavailable: what was taken and is not noted as done is taken again in a minute.
        """
        taken = self._ledger.take_to_identify(resource_type, limit=AT_MOST, within_s=_HOLD_S)
        turn = _Turn(ends_at=self._monotonic() + TURN_S)
        for at, each in enumerate(taken):
            if turn.wait_s is None and (self._stopping() or self._left_s(turn) < _LEAST_CALL_S):
                turn.stop()
            if turn.wait_s is not None:
                self._ledger.give_back_to_identify(taken[at:], after_s=turn.wait_s)
                break
            self._put(each, turn)
        return f"write-back of {resource_type}: {turn.done} done, {turn.later} later"

    def _put(self, taken: ToIdentify, turn: _Turn) -> None:
        """Try one link, and note in the ledger what came of it."""
        route = self._routes.get(taken.reference.partition("/")[0])
        wanted = route.identifier if route is not None else None
        if wanted is None:
            self._ledger.identified(taken, key=None, version_id=None, detail="the route wants no key written back")
            return
        try:
            value = _value(wanted, taken.keys)
            put = self._medplum.put_identifier(
                taken.reference,
                system=wanted.system,
                value=value,
                former=taken.former,
                others=_others(wanted, taken.others),
                deadline_s=self._left_s(turn),
            )
        except MedplumUnavailable as away:
            self._later(taken, turn, str(away), ended="away", after_s=away.retry_after_s or 0.0)
            if away.retry_after_s is not None:
                turn.stop(away.retry_after_s)
        except MedplumRefused as refused:
            self._later(taken, turn, str(refused), ended="refused")
            turn.stop()  # the next one would be refused as well; it has its try in the next turn
        except BadResource as bad:
            self._later(taken, turn, f"what Medplum has there is no FHIR resource: {bad}", ended="invalid")
        except _NoKey:
            self._later(taken, turn, f'the record has no key "{wanted.key}", which the route names', ended="no key")
        else:
            if put.put is Put.FOREIGN:
                self._later(taken, turn, _FOREIGN, ended=put.put)
            else:
                self._done(taken, turn, put, value)

    def _done(self, taken: ToIdentify, turn: _Turn, put: Identified, value: str) -> None:
        turn.done += 1
        key = None if put.put is Put.GONE else value
        self._ledger.identified(taken, key=key, version_id=put.version_id, detail=_WORDS[put.put])
        self._count(taken, put.put)

    def _later(self, taken: ToIdentify, turn: _Turn, why: str, *, ended: str, after_s: float = 0.0) -> None:
        turn.later += 1
        self._ledger.identify_later(taken, after_s=max(after_s, _backoff_s(taken.attempts)), detail=why)
        self._count(taken, ended)
        _log.info("a key is put on its Medplum resource later", reference=taken.reference, why=why)

    def _left_s(self, turn: _Turn) -> float:
        return turn.ends_at - self._monotonic()

    @staticmethod
    def _count(taken: ToIdentify, ended: str) -> None:
        WRITE_BACKS.labels(taken.reference.partition("/")[0], ended).inc()


def _value(wanted: WriteBack, keys: Keys) -> str:
    """Give the key that goes to Medplum as text: the one that the route names, else the first."""
    key = keys.get(wanted.key) if wanted.key else next(iter(keys.values()), None)
    if key is None or key == "":
        raise _NoKey
    return str(key)


def _others(wanted: WriteBack, others: tuple[Keys, ...]) -> frozenset[str]:
    """Give the values that the resource's other records have under the same system."""
    found = (keys.get(wanted.key) if wanted.key else next(iter(keys.values()), None) for keys in others)
    return frozenset(str(key) for key in found if key is not None)


def _backoff_s(attempts: int) -> float:
    """Draw the wait before the next try: doubling up to an hour, the half of it by chance."""
    most = min(_MOST_S, _FIRST_S * 2.0 ** min(attempts, 20))
    return random.uniform(most / 2, most)  # noqa: S311  no secret
