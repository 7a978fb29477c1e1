"""Tokens of legacy APIs in the ledger: one leases, all read, and nothing of them is readable in the database."""

from __future__ import annotations

from sqlalchemy import select

from tests.contract.ledger.story import Clock
from worker.ledger import Ledger
from worker.ledger.tables import secrets
from worker.ledger.values import KeptToken

CONTENT = {"source": "s", "token": "CanaryToken", "refresh": "CanaryRefresh"}


def kept(ledger: Ledger, name: str = "clinic") -> KeptToken:
    found = ledger.token(name)
    assert found is not None
    return found


def test_what_one_keeps_all_read(ledger: Ledger, clock: Clock) -> None:
    """The content comes back with the seconds that are left of it, by the database's clock."""
    assert ledger.token("clinic") is None
    assert ledger.lease_token("clinic", owner="one", lease_s=40)
    assert ledger.keep_token("clinic", CONTENT, owner="one", left_s=100)
    clock.forward(30)
    assert kept(ledger) == KeptToken(CONTENT, 70.0, unended=False, rests=False)
    assert ledger.token("other") is None


def test_one_renews_at_a_time(ledger: Ledger, clock: Clock) -> None:
    """A lease is another's only when it has run out, and what comes too late changes nothing."""
    assert ledger.lease_token("clinic", owner="one", lease_s=40)
    assert not ledger.lease_token("clinic", owner="two", lease_s=40)
    clock.forward(41)
    assert kept(ledger).unended
    assert ledger.lease_token("clinic", owner="two", lease_s=40)
    assert not kept(ledger).unended
    assert not ledger.keep_token("clinic", {"token": "late"}, owner="one", left_s=None)
    assert ledger.keep_token("clinic", CONTENT, owner="two", left_s=None)
    assert kept(ledger) == KeptToken(CONTENT, None, unended=False, rests=False)


def test_a_refusal_rests_and_is_listed_as_failed(ledger: Ledger, clock: Clock) -> None:
    """For a while nobody tries again, and a person sees why; the next success clears both."""
    ledger.lease_token("clinic", owner="one", lease_s=40)
    ledger.rest_token("clinic", CONTENT | {"trouble": "/token answered 400"}, owner="one", rest_s=60)
    assert kept(ledger).rests
    (row,) = ledger.failed_tokens()
    assert (row["reference"], row["reason"], row["detail"]) == ("legacy:clinic", "token", "/token answered 400")
    clock.forward(61)
    assert not kept(ledger).rests
    ledger.lease_token("clinic", owner="two", lease_s=40)
    ledger.keep_token("clinic", CONTENT, owner="two", left_s=None)
    assert ledger.failed_tokens() == []


def test_who_comes_late_is_heard_where_another_was_refused(ledger: Ledger, clock: Clock) -> None:
    """A worker that was stopped beyond its lease has the successor of the token that the other one was refused."""
    ledger.lease_token("clinic", owner="one", lease_s=40)
    clock.forward(41)
    ledger.lease_token("clinic", owner="two", lease_s=40)
    assert not ledger.keep_token("clinic", CONTENT, owner="one", left_s=None)
    ledger.rest_token("clinic", {"trouble": "/token answered 400"}, owner="two", rest_s=60)
    assert ledger.keep_token("clinic", CONTENT, owner="one", left_s=None)
    assert kept(ledger) == KeptToken(CONTENT, None, unended=False, rests=False)
    assert not ledger.keep_token("clinic", {"token": "later"}, owner="three", left_s=None)


def test_a_token_is_sealed(ledger: Ledger) -> None:
    """No byte of it is readable in its row."""
    ledger.lease_token("clinic", owner="one", lease_s=40)
    ledger.keep_token("clinic", CONTENT, owner="one", left_s=100)
    row = ledger.database.read(lambda tx: tx.execute(select(secrets)).one())
    assert b"Canary" not in b"".join(str(value).encode() if value is not row.value else value for value in row)
    assert "Canary" not in repr(kept(ledger))
