"""Subscriptions as code, against a real stand-in of Medplum and a real receiver."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.integration.receiver_process import Receiver, eventually, migrated, patient, request, started
from tests.integration.subscriptions.conftest import TOKEN, Clinic
from worker.errors import LedgerError, MedplumUnavailable
from worker.ledger.values import Phase
from worker.medplum.admin import Admin
from worker.subscriptions.found import INTERACTION
from worker.subscriptions.planning import Doing

pytestmark = pytest.mark.processes

ALL = ["Coverage", "Observation", "Patient"]


def doings(clinic: Clinic) -> dict[str, Doing]:
    return {step.resource_type: step.doing for step in clinic.desk().look().steps}


def live(clinic: Clinic) -> list[dict[str, object]]:
    return [row["resource"] for row in clinic.stored("Subscription") if not row["deleted"]]


def test_each_routed_type_gets_one_subscription(alone: Clinic) -> None:
    """Live and shadow routes and the part: each has one, with secret, header, 18 attempts, deletes, and our tag."""
    assert doings(alone) == dict.fromkeys(ALL, Doing.CREATE)
    alone.apply()
    assert sorted(str(one["criteria"]) for one in live(alone)) == ALL
    for name in ALL:
        found = alone.found(name)
        assert found.ours
        assert found.active
        assert found.attempts == 18
        assert found.interaction == ""
        assert found.endpoint == alone.endpoint
        assert found.headers == (f"Authorization: {TOKEN}",)
        assert len(found.secret) > 40
    assert len({alone.found(name).secret for name in ALL}) == 3


def test_applied_again_nothing_is_written(alone: Clinic) -> None:
    """The second time finds all as it should be, and makes no version."""
    alone.apply()
    before = {one["id"]: one["meta"] for one in live(alone)}
    assert doings(alone) == dict.fromkeys(ALL, Doing.KEEP)
    alone.apply()
    assert {one["id"]: one["meta"] for one in live(alone)} == before
    assert alone.windows() == []


def test_a_changed_one_is_mended_in_place(alone: Clinic) -> None:
    """What somebody changed is told without secrets, set right on the same resource, and what else it carries stays."""
    alone.apply()
    before = alone.found()
    foreign = {"url": "https://example.org/of-another", "valueString": "stays"}
    narrowed = {"url": INTERACTION, "valueCode": "create"}
    alone.by_hand(
        status="off",
        criteria="Patient?_tag=some",
        channel={**before.channel, "header": ["Authorization: hunter2"], "payload": "application/fhir+json"},
        extension=[foreign, narrowed],
    )
    step = next(step for step in alone.desk().look().steps if step.resource_type == "Patient")
    assert step.doing is Doing.CHANGE
    told = "\n".join(step.words)
    for word in ("status off → active", "criteria Patient?_tag=some → Patient", "interactions create → none", "secret"):
        assert word in told
    assert "hunter2" not in told
    assert TOKEN not in told
    alone.apply()
    after = alone.found()
    assert after.id == before.id
    assert after.members() == before.members()
    assert after.secret == before.secret
    assert foreign in after.resource["extension"]
    assert after.channel["payload"] == "application/fhir+json"
    assert doings(alone)["Patient"] is Doing.KEEP


def test_the_time_in_doubt_becomes_a_window(alone: Clinic) -> None:
    """What was changed by hand and is mended leaves one window of that type, and of no other."""
    alone.apply()
    alone.by_hand(status="off")
    alone.apply()
    assert alone.windows() == [("Patient", "subscription was off")]
    assert alone.state() == "ok"


def test_a_deleted_one_is_made_again(alone: Clinic) -> None:
    """It gets a new id, the same secret, and the time without it is in doubt."""
    alone.apply()
    before = alone.found("Observation")
    alone.admin.delete(before.reference, deadline_s=10)
    assert doings(alone)["Observation"] is Doing.CREATE
    alone.apply()
    after = alone.found("Observation")
    assert after.id != before.id
    assert after.secret == before.secret
    assert alone.windows() == [("Observation", "subscription was missing")]


def test_others_are_never_touched(alone: Clinic) -> None:
    """Another's Subscription of the same type to the same endpoint is named and left alone, even by `remove`."""
    stranger = alone.admin.create(
        {
            "resourceType": "Subscription",
            "status": "active",
            "reason": "another's",
            "criteria": "Patient",
            "channel": {"type": "rest-hook", "endpoint": alone.endpoint},
        },
        deadline_s=10,
    )
    seen = alone.apply()
    assert [one.id for one in seen.strangers] == [stranger["id"]]
    assert alone.found().id != stranger["id"]
    alone.desk().remove(ALL)
    assert [one["id"] for one in live(alone)] == [stranger["id"]]
    [kept] = live(alone)
    assert kept["meta"]["versionId"] == stranger["meta"]["versionId"]  # type: ignore[index]


def test_another_deployments_are_another_s(alone: Clinic) -> None:
    """With our tag and another endpoint, in no row of this ledger: named, neither taken over nor removed as extra."""
    elsewhere = alone.desk(endpoint="https://staging.example.org/medplum")
    theirs = alone.admin.create(elsewhere._wanted[0].resource(SecretStr("theirs")), deadline_s=10)
    seen = alone.apply()
    assert [one.id for one in seen.strangers] == [theirs["id"]]
    assert len(live(alone)) == 4
    alone.desk().remove(extra=True)
    [kept] = [one for one in live(alone) if one["id"] == theirs["id"]]
    assert kept["meta"]["versionId"] == theirs["meta"]["versionId"]  # type: ignore[index]


def test_a_second_one_of_ours_is_told_and_removed_by_name_alone(alone: Clinic) -> None:
    """`apply` leaves a double alone, `remove --extra` takes it and keeps the one that the ledger knows."""
    alone.apply()
    mine = alone.found()
    copy = {name: value for name, value in mine.resource.items() if name != "id"}
    double = alone.admin.create(copy, deadline_s=10)
    alone.apply()
    steps = {step.found.id: step.doing for step in alone.desk().look().steps if step.found is not None}
    assert steps[str(double["id"])] is Doing.DOUBLE
    assert steps[mine.id] is Doing.KEEP
    alone.desk().remove(extra=True)
    assert alone.found().id == mine.id
    assert str(double["id"]) not in {one["id"] for one in live(alone)}
    assert [one.resource_type for one in alone.ledger.subscription_secrets()] == ALL


def test_a_route_that_is_off_needs_none(alone: Clinic) -> None:
    """What no route needs is told and left; with no route in need, neither is its part."""
    alone.apply()
    alone.ledger.set_phase("Patient", Phase.OFF, who="test", why="test")
    assert doings(alone) == {"Coverage": Doing.KEEP, "Observation": Doing.KEEP, "Patient": Doing.EXTRA}
    alone.ledger.set_phase("Observation", Phase.PAUSED, who="test", why="test")
    assert doings(alone)["Observation"] is Doing.KEEP
    alone.ledger.set_phase("Observation", Phase.RETIRED, who="test", why="test")
    assert set(doings(alone).values()) == {Doing.EXTRA}


def test_a_create_whose_answer_was_lost_is_found(alone: Clinic) -> None:
    """Broken off after Medplum had made it, `apply` takes it up instead of making a second one."""
    lost = {"status": 500, "methods": ["POST"], "types": ["Subscription"], "times": 1, "after": True}
    alone.sandbox("faults", api=[lost])
    with pytest.raises(MedplumUnavailable):
        alone.apply()
    alone.sandbox("clear")
    alone.apply()
    assert sorted(str(one["criteria"]) for one in live(alone)) == ALL
    assert doings(alone) == dict.fromkeys(ALL, Doing.KEEP)


# rotation


def newest(clinic: Clinic, name: str = "Patient") -> str:
    kept = [one for one in clinic.ledger.subscription_secrets() if one.resource_type == name]
    return kept[-1].value.get_secret_value()


def accepted(served: tuple[Clinic, Receiver], secret: str, number: int) -> int:
    """Send a notification that is signed with this secret, as the Subscription of the type does."""
    clinic, receiver = served
    named = f"X-Medplum-Subscription: {clinic.found().id}"
    return receiver.exchange(request(patient(number), f"Authorization: {TOKEN}", named, secret=secret)).status


def test_both_secrets_are_accepted_until_the_old_one_is_retired(well: Clinic, served: tuple[Clinic, Receiver]) -> None:
    """The new one is known before Medplum has it; the old one goes once nothing was signed with it for a while."""
    well.sql("DELETE FROM subscription_secrets WHERE set_at IS NULL")
    old = well.found().secret
    assert well.desk().rotate(["Patient"]) == ["Patient"]
    new = well.found().secret
    assert new == newest(well) != old
    assert [accepted(served, old, 1), accepted(served, new, 2), accepted(served, "neither", 3)] == [202, 202, 401]
    assert well.ledger.retire_subscription_secrets(unused_for=timedelta(hours=1)) == {}
    eventually(lambda: all(one.used_at for one in well.ledger.subscription_secrets() if one.resource_type == "Patient"))
    assert well.ledger.retire_subscription_secrets(unused_for=timedelta(hours=1)) == {}
    well.sql("UPDATE subscription_secrets SET used_at = NULL, set_at = '2026-01-01 00:00:00' WHERE set_at IS NOT NULL")
    well.watch().turn()
    assert newest(well) == new
    assert len([one for one in well.ledger.subscription_secrets() if one.resource_type == "Patient"]) == 1
    eventually(lambda: accepted(served, old, 4) == 401)
    assert accepted(served, new, 5) == 202


def test_under_traffic_a_rotation_refuses_nothing(well: Clinic) -> None:
    """While front ends write, no attempt fails: the receiver knew the secret before Medplum signed with it."""
    over = threading.Event()

    def write() -> int:
        written = 0
        while not over.wait(0.02):
            well.sandbox("bulk", resources=[{"resourceType": "Patient"}])
            written += 1
        return written

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            well.desk().rotate(["Patient"])
            eventually(lambda: any(one.used_at for one in well.ledger.subscription_secrets() if one.set_at))
        finally:
            over.set()
        written = writing.result(20)
    eventually(lambda: deliveries(well)["pending"] == 0)
    assert deliveries(well).get("failed_attempts", 0) == 0
    assert deliveries(well)["delivered"] == written > 20


def deliveries(clinic: Clinic) -> dict[str, int]:
    told: dict[str, int] = clinic.admin._http.get("sandbox/state").json()["deliveries"]
    return told


STEPS = ("keep_subscription_secret", "receivers", "subscribed", "subscription_secret_set")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_broken_off_anywhere_nothing_is_refused(
    well: Clinic, served: tuple[Clinic, Receiver], monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    """A rotation that dies at a step leaves Medplum with a secret that the receiver takes; run again, it ends."""

    class Died(BaseException):
        """The process dies here."""

    def dying(verb: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            if when == "after":
                verb(*args, **kwargs)
            raise Died

        return run

    before = well.found().secret
    with monkeypatch.context() as patch:
        patch.setattr(type(well.ledger), step, dying(getattr(type(well.ledger), step)))
        with pytest.raises(Died):
            well.desk().rotate(["Patient"])
    assert accepted(served, well.found().secret, 10 + STEPS.index(step)) == 202
    kept = len([one for one in well.ledger.subscription_secrets() if one.resource_type == "Patient"])
    well.desk().rotate(["Patient"])
    after = well.found().secret
    assert after != before
    assert accepted(served, after, 20 + STEPS.index(step)) == 202
    took_up = kept == len([one for one in well.ledger.subscription_secrets() if one.resource_type == "Patient"])
    assert took_up == (
        (step, when) not in {("keep_subscription_secret", "before"), ("subscription_secret_set", "after")}
    )


def test_a_receiver_that_does_not_come_to_know_it_stops_the_rotation(alone: Clinic) -> None:
    """Medplum goes on signing with the old secret, and the receiver is named."""
    alone.apply()
    before = alone.found().secret
    alone.ledger.heartbeat(instance="web-deaf", role="web", host="h", pid=1, detail='{"secrets": []}')
    with pytest.raises(LedgerError, match="web-deaf does not know the new secret"):
        alone.desk(known_within_s=0.1).rotate()
    assert alone.found().secret == before


def test_a_rotation_of_nothing_is_refused(alone: Clinic) -> None:
    """Types without a Subscription of ours are named."""
    with pytest.raises(LedgerError, match="any type"):
        alone.desk().rotate()
    alone.apply()
    with pytest.raises(LedgerError, match="Practitioner"):
        alone.desk().rotate(["Practitioner"])


def test_somebody_who_is_faster_is_not_overwritten(alone: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change between our read and our write is kept: the write is made anew on top of it."""
    alone.apply()
    note = {"url": "https://example.org/note", "valueString": "just now"}
    change, once = Admin.change, [True]

    def late(self: Admin, *args: object, **kwargs: object) -> object:
        if once.pop() if once else False:
            mine = alone.found()
            change(
                self, mine.reference, mine.version_id, {"extension": [*mine.resource["extension"], note]}, deadline_s=9
            )
        return change(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Admin, "change", late)
    alone.apply(endpoint=alone.endpoint + "/2")
    changed = [one for one in (alone.found(name) for name in ALL) if note in one.resource["extension"]]
    assert len(changed) == 1
    assert {alone.found(name).endpoint for name in ALL} == {alone.endpoint + "/2"}


def test_the_receiver_of_a_ledger_without_secrets_refuses_to_start(tmp_path: Path) -> None:
    """With neither a secret of its own nor one in the ledger there is nothing to verify with; it says what to do."""
    with pytest.raises(AssertionError, match="subscriptions apply"):
        started(tmp_path, migrated(tmp_path), WEBHOOK_SECRETS="")
