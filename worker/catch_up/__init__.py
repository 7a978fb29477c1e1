"""Catch-up: finds by search what no notification told of, and by reading back what no search tells of.

`protocol.md` 10. It reads Medplum and takes hints into the ledger, and nothing else: what becomes of a hint is decided
where every hint is, by a sync. It never calls a legacy API, runs no SQL, and has no Celery in it.
"""

from __future__ import annotations

from worker.catch_up.catching import CatchUp, Found, Turn
from worker.catch_up.position import Crowd, Position, instant
from worker.catch_up.reading import Reading, Step

__all__ = ["CatchUp", "Crowd", "Found", "Position", "Reading", "Step", "Turn", "instant"]
