"""Subscriptions in the ledger, on both databases: states, secrets, windows, and what receivers say."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from tests.contract.ledger.story import PATIENT, START, Clock, Story
from worker.ledger import Ledger
from worker.ledger.sealing import NoKey, Sealer
from worker.ledger.subscribing import Look, SubscriptionState
from worker.ledger.tables import subscription_secrets, windows
from worker.ledger.values import Hint, Kind, Source

HOUR = timedelta(hours=1)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def spans(ledger: Ledger) -> list[tuple[datetime, datetime, str]]:
    columns = (windows.c.from_at, windows.c.to_at, windows.c.reason)
    rows = ledger.database.read(lambda tx: tx.execute(select(*columns).order_by(windows.c.id)).all())
    return [(row.from_at, row.to_at, row.reason) for row in rows]


def applied(ledger: Ledger, name: str = "Patient", medplum_id: str = "s1") -> None:
    ledger.subscribed(name, medplum_id=medplum_id, fingerprints={"endpoint": "k1:ab"})


def kept(ledger: Ledger, value: str, name: str = "Patient") -> str:
    return ledger.keep_subscription_secret(name, SecretStr(value))


def values(ledger: Ledger) -> list[str]:
    return [one.value.get_secret_value() for one in ledger.subscription_secrets()]


def test_a_state_is_new_once(ledger: Ledger, clock: Clock) -> None:
    """Only the first look that finds it says so; `since` stays, what is sure moves with good looks alone."""
    applied(ledger)
    clock.forward(60)
    off = Look(SubscriptionState.OFF, "it is off")
    assert ledger.note_look("Patient", off, sure_until=None)
    clock.forward(60)
    assert not ledger.note_look("Patient", off, sure_until=None)
    [row] = ledger.subscriptions()
    assert (row.look, row.since, row.sure_until, row.looked_at) == (off, at(1), START, at(2))
    assert ledger.note_look("Patient", Look(SubscriptionState.OK), sure_until=at(2))
    [row] = ledger.subscriptions()
    assert (row.look.reason, row.since, row.sure_until) == ("", at(2), at(2))


def test_one_that_nobody_applied_is_noted_as_missing(ledger: Ledger) -> None:
    """It has no id and no fingerprints; to apply it gives both."""
    assert not ledger.watches()
    assert ledger.note_look("Patient", Look(SubscriptionState.MISSING), sure_until=None)
    assert not ledger.note_look("Patient", Look(SubscriptionState.MISSING), sure_until=None)
    [row] = ledger.subscriptions()
    assert (row.medplum_id, row.fingerprints) == (None, {})
    applied(ledger)
    [row] = ledger.subscriptions()
    assert (row.medplum_id, row.look.state) == ("s1", SubscriptionState.OK)
    assert ledger.watches()


def test_failing_events_are_kept(ledger: Ledger) -> None:
    """How many, at which attempt, and until when."""
    look = Look(SubscriptionState.FAILING, "3 not delivered", 3, 7, at(90))
    ledger.note_look("Patient", look, sure_until=None)
    assert ledger.subscriptions()[0].look == look


# windows


def test_a_proven_window_never_grows(ledger: Ledger) -> None:
    """What was proven stays as it is, and the doubt that comes after has a window of its own."""
    ledger.doubt("Patient", at(10), at(20), "off")
    ledger.database.write(lambda tx: tx.execute(update(windows).values(proven_at=tx.now)))
    ledger.doubt("Patient", at(10), at(30), "off")
    assert spans(ledger) == [(at(10), at(20), "off"), (at(10), at(30), "off")]


def test_until_now_is_the_databases_now(ledger: Ledger, clock: Clock) -> None:
    """The end of the window is returned."""
    clock.forward(60)
    assert ledger.doubt_until_now("Patient", at(0), "off") == at(1)
    assert spans(ledger) == [(at(0), at(1), "off")]


# secrets


def test_a_secret_is_sealed_in_its_own_place(ledger: Ledger) -> None:
    """It is nowhere in the table, and opens in no other row."""
    name, other = kept(ledger, "hunter2"), kept(ledger, "hunter3", "Condition")
    sealed = ledger.database.read(lambda tx: tx.execute(select(subscription_secrets.c.secret)).scalars().all())
    assert all(b"hunter" not in bytes(value) for value in sealed)
    assert sorted(values(ledger)) == ["hunter2", "hunter3"]
    mine = select(subscription_secrets.c.secret).where(subscription_secrets.c.name == name).scalar_subquery()
    swap = update(subscription_secrets).where(subscription_secrets.c.name == other).values(secret=mine)
    ledger.database.write(lambda tx: tx.execute(swap))
    assert values(ledger) == ["hunter2"]
    assert "hunter2" not in repr(ledger.subscription_secrets())


def test_without_a_key_nothing_is_kept(ledger: Ledger) -> None:
    """It says which setting is missing; what others have kept does not open."""
    kept(ledger, "hunter2")
    poor = Ledger(ledger.database, Sealer(()))
    with pytest.raises(NoKey):
        kept(poor, "hunter3")
    assert poor.subscription_secrets() == ()


def test_a_secret_names_the_subscription_that_signs_with_it(ledger: Ledger, clock: Clock) -> None:
    """Before the Subscription is there, none; the newest of a type comes last."""
    kept(ledger, "first")
    assert ledger.subscription_secrets()[0].medplum_id is None
    applied(ledger)
    clock.forward(1)
    kept(ledger, "second")
    told = [(one.value.get_secret_value(), one.medplum_id) for one in ledger.subscription_secrets()]
    assert told == [("first", "s1"), ("second", "s1")]


def test_an_old_secret_is_retired_when_nothing_uses_it_any_more(ledger: Ledger, clock: Clock) -> None:
    """Not before the new one stands in Medplum for so long, not while it is used, not if it is to be kept."""
    old = kept(ledger, "old")
    ledger.subscription_secret_set(old)
    clock.forward(10)
    new = kept(ledger, "new")
    clock.forward(7200)
    assert ledger.retire_subscription_secrets(unused_for=HOUR) == {}  # Medplum was never given the new one
    ledger.subscription_secret_set(new)
    clock.forward(3599)
    assert ledger.retire_subscription_secrets(unused_for=HOUR) == {}
    ledger.note_deliveries(types=["Patient"], secrets=[old])
    clock.forward(3599)
    assert ledger.retire_subscription_secrets(unused_for=HOUR) == {}
    clock.forward(1)
    assert ledger.retire_subscription_secrets(unused_for=HOUR, keep=[old]) == {}
    assert ledger.retire_subscription_secrets(unused_for=HOUR) == {old: "Patient"}
    assert values(ledger) == ["new"]


def test_a_secret_is_set_once(ledger: Ledger, clock: Clock) -> None:
    """To apply again does not begin its time anew."""
    name = kept(ledger, "one")
    ledger.subscription_secret_set(name)
    clock.forward(60)
    ledger.subscription_secret_set(name)
    assert ledger.subscription_secrets()[0].set_at == START


def test_what_is_removed_takes_its_secrets_along(ledger: Ledger) -> None:
    """Those of other types stay."""
    for name in ("Patient", "Condition"):
        kept(ledger, name, name)
        applied(ledger, name, name)
    ledger.unsubscribed("Patient")
    assert values(ledger) == ["Condition"]
    assert [row.resource_type for row in ledger.subscriptions()] == ["Condition"]


# receivers and notifications


def test_deliveries_are_noted_by_type_and_secret(ledger: Ledger, clock: Clock) -> None:
    """Others are not touched."""
    applied(ledger)
    applied(ledger, "Condition", "s2")
    name, other = kept(ledger, "one"), kept(ledger, "two")
    clock.forward(60)
    ledger.note_deliveries(types=["Patient", "Task"], secrets=[name, "unknown"])
    assert {row.resource_type: row.last_delivery_at for row in ledger.subscriptions()} == {
        "Condition": None,
        "Patient": at(1),
    }
    assert {one.name: one.used_at for one in ledger.subscription_secrets()} == {name: at(1), other: None}


def test_only_receivers_that_live_are_listed(ledger: Ledger, clock: Clock) -> None:
    """A worker is none, and one whose heartbeat is stale is gone."""
    ledger.heartbeat(instance="web-old", role="web", host="h", pid=1, detail="{}")
    clock.forward(21)
    ledger.heartbeat(instance="web-1", role="web", host="h", pid=2, detail='{"secrets": ["a"]}')
    ledger.heartbeat(instance="worker-1", role="worker", host="h", pid=3)
    assert ledger.receivers() == {"web-1": '{"secrets": ["a"]}'}


def test_who_was_told_of_by_a_notification(story: Story, ledger: Ledger) -> None:
    """Notifications are listed with their Subscription; what catch-up found was not notified."""
    told = Hint(PATIENT, "v1", subscription="s1")
    ledger.accept([told, Hint("Patient/p9", "v1", source=Source.CATCH_UP)])
    ledger.accept([Hint(PATIENT, interaction="delete", subscription="s1")])
    assert [(one.kind, one.subscription) for one in ledger.notified(PATIENT)] == [
        (Kind.VERSION, "s1"),
        (Kind.DELETE, "s1"),
    ]
    assert ledger.was_notified(PATIENT, "v1")
    assert not ledger.was_notified(PATIENT, "v2")
    assert ledger.notified("Patient/p9") == ()
    assert not ledger.was_notified("Patient/p9", "v1")


def test_a_job_tells_how_its_last_turn_ended(ledger: Ledger) -> None:
    """Never ran, begun, ended."""
    assert ledger.last_job("watch") is None
    ledger.job("watch", every_s=1, instance="i")
    assert ledger.last_job("watch") is None
    ledger.job_done("watch", "all are well")
    assert ledger.last_job("watch") == "2026-11-22 12:00:00Z, all are well"


def test_the_status_has_them_in_short(ledger: Ledger) -> None:
    """How many are in trouble, how many events fail, and the seconds until Medplum gives up on the first."""
    applied(ledger)
    applied(ledger, "Condition", "s2")
    told = ledger.status()
    assert (told["subscriptions_in_trouble"], told["deliveries_failing"]) == (0, 0)
    assert told["medplum_gives_up_seconds"] is None
    ledger.note_look("Patient", Look(SubscriptionState.FAILING, "", 2, 1, at(3)), sure_until=None)
    ledger.note_look("Condition", Look(SubscriptionState.FAILING, "", 5, 4, at(1)), sure_until=None)
    told = ledger.status()
    assert (told["subscriptions_in_trouble"], told["deliveries_failing"]) == (2, 7)
    assert told["medplum_gives_up_seconds"] == 60.0
