"""Which faults a run meets and when: drawn from its seed alone, so that the same seed plans the same run. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from tests.acceptance.times import DEADLINE_S, LANDS_WITHIN_S

Database = Literal["sqlite", "postgresql"]

SEND_WITHIN_S: Final = 1.0  # as the acceptance tests' settings have it
BOUND_S: Final = SEND_WITHIN_S + DEADLINE_S + LANDS_WITHIN_S  # after it an announced write can act no more
BUDGET_S: Final = 8.0
LEASE_S: Final = 10.0  # shorter than a deployment's, so that a frozen worker outlives it within seconds
ONE_EVERY_S: Final = 2.0  # a strike, once each kind has had its turn
CALM_S: Final = 2.0  # before the first strike
CALMER_S: Final = 10.0  # before the first process is struck: only what works can be stopped at work


class Kind(StrEnum):
    """What strikes; the words are those of the report."""

    KILL_WORKER = "worker killed"
    KILL_WEB = "web killed"
    KILL_DISPATCH = "dispatch killed"
    FREEZE_WORKER = "worker frozen beyond its lease"
    FREEZE_BEFORE_SEND = "worker frozen between announcement and send"
    KILL_BEFORE_SEND = "worker frozen between announcement and send, then killed"
    KILL_BROKER = "broker killed"
    FREEZE_BROKER = "broker stalled"
    FLUSH_BROKER = "broker flushed"
    STOP_DATABASE = "PostgreSQL stopped"
    LOCK_DATABASE = "SQLite locked by another writer"
    KILL_CLINIC = "clinic killed"
    RESET_BEFORE = "clinic: reset before saving"
    RESET_AFTER = "clinic: reset after saving"
    LATE_WITHIN = "clinic: lands late, within the promise"
    LATE_BEYOND = "clinic: lands late, beyond the promise"
    ERROR_BEFORE = "clinic: 500 before saving"
    ERROR_AFTER = "clinic: 500 after saving"
    STORM = "clinic: 429 with Retry-After"
    STORM_BARE = "clinic: 429 without Retry-After"
    AWAY = "clinic: 503"
    DRIP = "clinic: drips its answer"
    HANG = "clinic: hangs"
    REFUSE = "clinic: closes the connection"
    MEDPLUM_ERROR = "Medplum: 5xx"
    MEDPLUM_QUOTA = "Medplum: 429"
    MEDPLUM_DRIP = "Medplum: drips its answer"
    EXPIRE_TOKENS = "Medplum: tokens expire"
    DROP = "notifications dropped"
    DOUBLE = "notifications doubled"
    DELAY = "notifications delayed"
    REORDER = "notifications reordered"
    EARLY_DELETE = "deletes told before they happen"
    FORGE_DELETE = "deletes forged, of live resources"
    FORGE_UNKNOWN = "deletes forged, of unknown ids"
    FORGE_SECRET = "notifications signed by a stranger"
    CONCURRENT = "concurrent writers: equal and older times"


WRITES: Final = ("POST", "PUT", "DELETE")
WORKERS: Final = ("worker", "worker2")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a kind of strike can look like."""

    seconds: tuple[float, float] = (0.0, 0.0)
    times: tuple[int, int] = (0, 0)
    targets: tuple[str, ...] = ("",)
    weight: int = 2
    from_s: float = CALM_S
    only: Database | None = None


_FEW = Recipe(times=(3, 8), targets=WRITES, weight=3)
_GATED = Recipe(times=(5, 8))  # five failures in a row close the gate, and every probe that fails doubles its rest

RECIPES: Final[Mapping[Kind, Recipe]] = {
    Kind.KILL_WORKER: Recipe(targets=WORKERS, from_s=CALMER_S),
    Kind.KILL_WEB: Recipe(from_s=CALMER_S),
    Kind.KILL_DISPATCH: Recipe(weight=1, from_s=CALMER_S),
    Kind.FREEZE_WORKER: Recipe(seconds=(LEASE_S + 1, LEASE_S + 4), targets=WORKERS, weight=1, from_s=CALMER_S),
    Kind.FREEZE_BEFORE_SEND: Recipe(seconds=(0.5, BOUND_S + 2), weight=4, from_s=CALMER_S),
    Kind.KILL_BEFORE_SEND: Recipe(seconds=(0.2, 0.5), weight=2, from_s=CALMER_S),
    Kind.KILL_BROKER: Recipe(weight=1, from_s=CALMER_S),
    Kind.FREEZE_BROKER: Recipe(seconds=(2, 8), weight=1, from_s=CALMER_S),
    Kind.FLUSH_BROKER: Recipe(from_s=CALMER_S),
    Kind.STOP_DATABASE: Recipe(seconds=(0, 4), only="postgresql", from_s=CALMER_S),
    Kind.LOCK_DATABASE: Recipe(seconds=(2, 12), only="sqlite", from_s=CALMER_S),
    Kind.KILL_CLINIC: Recipe(weight=1, from_s=CALMER_S),
    Kind.RESET_BEFORE: _FEW,
    Kind.RESET_AFTER: _FEW,
    Kind.LATE_WITHIN: Recipe(seconds=(0.3, LANDS_WITHIN_S), times=(3, 8), targets=WRITES, weight=4),
    Kind.LATE_BEYOND: Recipe(seconds=(BOUND_S + 3, BOUND_S + 8), times=(3, 6), targets=("POST", "PUT"), weight=4),
    Kind.ERROR_BEFORE: _FEW,
    Kind.ERROR_AFTER: _FEW,
    Kind.STORM: _GATED,
    Kind.STORM_BARE: _GATED,
    Kind.AWAY: _GATED,
    Kind.DRIP: Recipe(times=(1, 4)),
    Kind.HANG: Recipe(times=(1, 4)),
    Kind.REFUSE: _FEW,
    Kind.MEDPLUM_ERROR: Recipe(times=(5, 25)),
    Kind.MEDPLUM_QUOTA: Recipe(times=(5, 25)),
    Kind.MEDPLUM_DRIP: Recipe(times=(1, 4), weight=1),
    Kind.EXPIRE_TOKENS: Recipe(),
    Kind.DROP: Recipe(seconds=(2, 6)),
    Kind.DOUBLE: Recipe(seconds=(2, 6)),
    Kind.DELAY: Recipe(seconds=(2, 6)),
    Kind.REORDER: Recipe(seconds=(2, 6)),
    Kind.EARLY_DELETE: Recipe(times=(1, 4)),
    Kind.FORGE_DELETE: Recipe(times=(3, 10)),
    Kind.FORGE_UNKNOWN: Recipe(times=(1, 3), weight=1),
    Kind.FORGE_SECRET: Recipe(times=(1, 3), weight=1),
    Kind.CONCURRENT: Recipe(seconds=(3, 8), weight=3),
}


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault: when it begins, what it is, at whom, for how long or how often."""

    at_s: float
    kind: Kind
    target: str
    seconds: float
    times: int

    def __str__(self) -> str:
        long, often = f"{self.seconds:.1f} s" if self.seconds else "", f"{self.times} times" if self.times else ""
        return f"{self.at_s:7.1f} s  {', '.join(part for part in (self.kind, self.target, long, often) if part)}"


def draw(seed: int, *, seconds: float, database: Database) -> tuple[Strike, ...]:
    """Plan the strikes of a run of so many seconds: each kind once, and then more of them by weight."""
    dice = random.Random(f"{seed} {seconds:g} {database}")
    fit = [kind for kind, recipe in RECIPES.items() if recipe.only in (None, database)]
    weights = [RECIPES[kind].weight for kind in fit]
    kinds = fit + dice.choices(fit, weights, k=max(0, int(seconds / ONE_EVERY_S) - len(fit)))
    return tuple(sorted((_strike(dice, kind, seconds) for kind in kinds), key=lambda strike: strike.at_s))


def _strike(dice: random.Random, kind: Kind, seconds: float) -> Strike:
    recipe = RECIPES[kind]
    return Strike(
        at_s=round(dice.uniform(min(recipe.from_s, seconds / 2), seconds), 1),
        kind=kind,
        target=dice.choice(recipe.targets),
        seconds=round(dice.uniform(*recipe.seconds), 1),
        times=dice.randint(*recipe.times),
    )
