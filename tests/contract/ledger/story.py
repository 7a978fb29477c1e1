"""What the contract tests tell their stories with: a clock that they turn, and one line for each step of an attempt."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import SecretStr
from sqlalchemy import text

from worker.ledger import Ledger
from worker.ledger.values import (
    Accepted,
    Announced,
    Announcement,
    Answer,
    Claim,
    Disposition,
    Hint,
    Keys,
    NotClaimed,
    Operation,
    Phase,
    Refusal,
    Settlement,
    Source,
    WriteOutcome,
)

PATIENT = "Patient/p1"
OTHER = "Patient/p2"
CONDITION = "Condition/c1"
START = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
KEYS = (("k1", SecretStr(base64.b64encode(b"k" * 32).decode())),)
ROUTES = dict.fromkeys(("Condition", "Patient", "Practitioner"), (Phase.LIVE, "m1"))

WITHIN_S, DEADLINE_S, LANDS_S = 5.0, 20.0, 60.0
BOUND_S = WITHIN_S + DEADLINE_S + LANDS_S
LEASE_S = 60.0


class Clock:
    """The database's clock, which stands still until a test turns it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Story:
    """One ledger, told step by step; after every step the accounting identity must hold."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self.ledger = ledger
        self.clock = clock

    def hears(self, *versions: str | None, of: str = PATIENT, source: Source = Source.NOTIFICATION) -> Accepted:
        """Accept one hint for each version, in one transaction; None is a delete hint."""
        accepted = self.ledger.accept([Hint(of, version, source=source) for version in versions])
        self.adds_up()
        return accepted

    def claims(self, of: str = PATIENT, *, by: str = "one", lease_s: float = LEASE_S, alone: bool = False) -> Claim:
        claim = self.ledger.claim(of, instance=by, lease_s=lease_s, alone=alone)
        assert isinstance(claim, Claim), claim
        return claim

    def refused(self, of: str = PATIENT, *, by: str = "two", alone: bool = False) -> Refusal:
        refused = self.ledger.claim(of, instance=by, lease_s=LEASE_S, alone=alone)
        assert isinstance(refused, NotClaimed), refused
        return refused.why

    def announces(
        self,
        claim: Claim,
        operation: Operation = Operation.CREATE,
        *,
        slot: str = "",
        fields: Mapping[str, object] | None = None,
        parents: Mapping[str, str] | None = None,
        uses: Mapping[str, Keys] | None = None,
        version: str = "v1",
        **more: Any,
    ) -> Announced:
        return self.ledger.announce(
            claim,
            Announcement(
                slot=slot,
                collection="patients",
                operation=operation,
                fields={"name": "x"} if fields is None else fields,
                parents=parents or {},
                template="/patients",
                version_id=version,
                mapping_version="m1",
                send_within_s=WITHIN_S,
                deadline_s=DEADLINE_S,
                lands_within_s=LANDS_S,
                uses=uses or {},
                **more,
            ),
        )

    def settles(
        self,
        claim: Claim,
        version: str | None,
        disposition: Disposition = Disposition.UNCHANGED,
        *,
        last: tuple[Announced, Answer] | None = None,
        read_at: datetime | None = None,
        deleted: bool = False,
    ) -> bool:
        ended = self.ledger.finish(
            claim,
            read(version, disposition, at=read_at or self.clock.now, deleted=deleted),
            last=None if last is None else (last[0].id, last[1]),
        )
        self.adds_up()
        return ended

    def applies(self, version: str, *, key: int = 17, digest: str = "k1:d", of: str = PATIENT) -> None:
        """Go the whole way of a version that nobody disturbs."""
        self.clock.forward(60)
        self.hears(version, of=of)
        claim = self.claims(of)
        operation = Operation.UPDATE if claim.links else Operation.CREATE
        write = self.announces(claim, operation, version=version)
        assert self.settles(claim, version, Disposition.APPLIED, last=(write, done(key, digest)))

    def mirror(self, of: str = PATIENT) -> dict[str, Any]:
        mirror: dict[str, Any] = self.shown(of)["mirror"]
        return mirror

    def changes(self, of: str = PATIENT) -> dict[str | None, str | None]:
        """Tell version → disposition; delete hints stand under None, the latest one."""
        return {change["version_id"]: change["disposition"] for change in self.shown(of)["changes"]}

    def outcomes(self, of: str = PATIENT) -> list[str | None]:
        return [write["outcome"] for write in self.shown(of)["writes"]]

    def shown(self, of: str = PATIENT) -> dict[str, Any]:
        shown = self.ledger.show(of)
        assert shown is not None, f"the ledger does not know {of}"
        return shown

    def sql(self, statement: str, **parameters: object) -> list[Any]:
        """Ask or change the tables behind the ledger's back."""
        with self.ledger.database.engine.begin() as connection:
            result = connection.execute(text(statement), parameters)
            return list(result) if result.returns_rows else []

    def adds_up(self) -> None:
        """Check accepted = rows by disposition + purged, by the status and by counting in other ways."""
        status = self.ledger.status()
        assert status["identity_holds"]
        assert status["accepted"] == sum(status["changes"].values()) + status["purged"]
        [(rows,)] = self.sql("SELECT count(*) FROM changes")
        [(counted,)] = self.sql("SELECT coalesce(sum(value), 0) FROM counters WHERE name = 'accepted'")
        assert status["accepted"] == counted == rows + status["purged"]


def read(
    version: str | None, disposition: Disposition, *, at: datetime, deleted: bool = False, rule: str | None = None
) -> Settlement:
    return Settlement(
        disposition=disposition, version_id=version, last_updated=at, read_at=at, deleted=deleted, rule=rule
    )


def done(key: int | None = 17, digest: str | None = "k1:d") -> Answer:
    keys: Keys | None = None if key is None else {"number": key, "uuid": f"u{key}"}
    return Answer(outcome=WriteOutcome.DONE, status=200, keys=keys, digest=digest)


def found(key: int) -> Answer:
    return Answer(outcome=WriteOutcome.FOUND, keys={"number": key, "uuid": f"u{key}"})


def unknown() -> Answer:
    return Answer(outcome=None, detail="timeout after the request had left")


def outcome(what: WriteOutcome) -> Answer:
    return Answer(outcome=what, status=400)
