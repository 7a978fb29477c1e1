"""The watch, against a real stand-in of Medplum and a real receiver: what it sees, what it alarms of, what it mends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from deploy.demo.scenery import free_port
from tests.integration.receiver_process import eventually
from tests.integration.subscriptions.conftest import Clinic
from worker.ledger.values import Phase
from worker.metrics import REGISTRY
from worker.subscriptions.found import ATTEMPTS, INTERACTION, SECRET
from worker.subscriptions.watching import MARGIN, Watch

pytestmark = pytest.mark.processes


def alarms(state: str, resource_type: str = "Patient") -> float:
    labels = {"resource_type": resource_type, "state": state}
    return REGISTRY.get_sample_value("reverse_sync_subscription_alarms_total", labels) or 0.0


def reason(clinic: Clinic, resource_type: str = "Patient") -> str:
    return next(row.look.reason for row in clinic.ledger.subscriptions() if row.resource_type == resource_type)


def window(clinic: Clinic) -> tuple[datetime, datetime]:
    """Give the only window that is not proven."""
    [row] = clinic.ledger.database.read(lambda tx: tx.execute(text("SELECT from_at, to_at FROM windows")).all())
    first, last = (datetime.fromisoformat(str(moment)).replace(tzinfo=UTC) for moment in row)
    return first, last


def create(clinic: Clinic, resource_type: str = "Patient") -> str:
    made = clinic.admin.create({"resourceType": resource_type}, deadline_s=10)
    return f"{resource_type}/{made['id']}"


def undelivered(clinic: Clinic) -> int:
    answer: dict[str, int] = clinic.admin._http.get("sandbox/state").json()["deliveries"]
    return answer["pending"]


def test_all_is_well(well: Clinic) -> None:
    """Nothing is alarmed, no window is opened, and the time that is sure moves on."""
    before = {row.resource_type: row.sure_until for row in well.ledger.subscriptions()}
    assert well.watch().turn() == "all 3 are well"
    after = {row.resource_type: row.sure_until for row in well.ledger.subscriptions()}
    assert well.windows() == []
    for name, moment in after.items():
        assert moment is not None
        assert moment > (before[name] or moment)


@pytest.mark.parametrize("status", ["off", "error"])
def test_one_that_was_switched_off_is_switched_on_again(well: Clinic, status: str) -> None:
    """One alarm, active again, and a window from the last good look until it was on again."""
    watch = well.watch()
    watch.turn()
    good = next(row.sure_until for row in well.ledger.subscriptions() if row.resource_type == "Patient")
    before, begin = alarms(status), datetime.now(UTC)
    well.by_hand(status=status, error="too many failures")
    watch.turn()
    assert well.found().active
    assert "error" not in well.found().resource
    assert well.state() == "ok"
    assert alarms(status) == before + 1
    assert well.windows() == [("Patient", "subscription was off")]
    first, last = window(well)
    assert good is not None
    assert first == good - MARGIN
    assert begin < last <= datetime.now(UTC)
    watch.turn()
    assert len(well.windows()) == 1


def test_where_it_may_not_write_it_says_so_and_alarms_once(well: Clinic) -> None:
    """It stays off, and is alarmed once however often it is seen; until `apply` a window grows from look to look."""
    forbidden = {"status": 403, "methods": ["PATCH"], "types": ["Subscription"], "clients": ["sync"]}
    well.sandbox("faults", api=[forbidden])
    well.by_hand(status="off")
    watch, before = well.watch(), alarms("off")
    good = next(row.sure_until for row in well.ledger.subscriptions() if row.resource_type == "Patient")
    for _ in range(3):
        begin = datetime.now(UTC)
        watch.turn()
        first, last = window(well)
        assert good is not None
        assert first == good - MARGIN
        assert begin <= last <= datetime.now(UTC)
    assert well.state() == "off"
    assert alarms("off") == before + 1
    assert any("reverse-sync subscriptions apply" in words for words in watch._said)
    well.apply()
    assert well.windows() == [("Patient", "subscription was off")]
    well.sandbox("clear")


def test_it_leaves_off_what_it_should_not_switch_on(well: Clinic) -> None:
    """With `REVERSE_SYNC_WATCH_REARMS=false` a person does it."""
    well.by_hand(status="off")
    well.watch(rearms=False).turn()
    assert not well.found().active
    assert well.state() == "off"


def test_what_was_changed_by_hand_is_named(well: Clinic) -> None:
    """The members are told, and no value; mended by `apply`, the time becomes a window."""
    channel = {**well.found().channel, "header": ["Authorization: hunter2"], "endpoint": "http://127.0.0.1:1/medplum"}
    secret = {"url": SECRET, "valueString": "hunter3"}
    well.by_hand(channel=channel, extension=[secret, {"url": INTERACTION, "valueCode": "create"}])
    before = alarms("changed")
    watch = well.watch()
    watch.turn()
    watch.turn()
    assert well.state() == "changed"
    assert alarms("changed") == before + 1
    told = reason(well)
    for word in ("endpoint", "the shared header", "interactions are narrowed", "attempts", "its secret is none"):
        assert word in told
    assert "hunter" not in told
    well.apply()
    watch.turn()
    assert well.state() == "ok"
    assert well.windows() == [("Patient", "subscription was changed by hand")]


def test_a_criteria_that_never_fires_is_named(well: Clinic) -> None:
    """Medplum takes it, and nothing is ever sent."""
    well.by_hand(criteria="Patient?_author=Practitioner/1")
    well.watch().turn()
    assert "never fires" in reason(well)


def test_a_missing_one_is_seen(well: Clinic) -> None:
    """Deleted by hand, or needed by a route that went live and nobody applied."""
    well.admin.delete(well.found().reference, deadline_s=10)
    well.sql("DELETE FROM subscriptions WHERE resource_type = 'Observation'")
    watch = well.watch()
    watch.turn()
    assert [well.state(name) for name in ("Coverage", "Observation", "Patient")] == ["ok", "missing", "missing"]
    well.apply()
    watch.turn()
    assert well.state() == "ok"
    assert sorted(well.windows()) == [
        ("Observation", "subscription was missing"),
        ("Patient", "subscription was missing"),
    ]


def test_a_route_that_is_off_is_not_watched(well: Clinic) -> None:
    """What no route needs may be gone."""
    well.ledger.set_phase("Patient", Phase.OFF, who="test", why="test")
    try:
        well.admin.delete(well.found().reference, deadline_s=10)
        well.sql("UPDATE subscriptions SET state = 'missing' WHERE resource_type = 'Patient'")  # seen a moment before
        assert well.watch().turn() == "all 2 are well"
        assert (well.state(), reason(well)) == ("ok", "no route needs it")
    finally:
        well.ledger.set_phase("Patient", Phase.LIVE, who="test", why="test")


def test_events_that_fail_are_counted_until_they_come_through(well: Clinic) -> None:
    """Two events behind a dead endpoint: how many, and when Medplum gives up; then a window from the last good look."""
    watch = well.watch()
    watch.turn()
    good = well.found().channel
    well.apply(endpoint=f"http://127.0.0.1:{free_port()}/medplum")
    watch.turn()
    for _ in range(2):
        create(well)
    eventually(lambda: len(well.stored("AuditEvent")) >= 2)
    before = alarms("failing")
    watch.turn()
    row = next(row for row in well.ledger.subscriptions() if row.resource_type == "Patient")
    assert row.look.state.value == "failing"
    assert row.look.failing == 2
    assert row.look.oldest_attempt is not None
    assert row.look.gives_up_at is not None
    left = row.look.gives_up_at - datetime.now(UTC)
    assert timedelta(days=2.9) < left < timedelta(seconds=2**18)
    assert alarms("failing") == before + 1
    assert "not delivered; the last attempt" in row.look.reason
    assert well.windows() == []
    well.apply()
    assert well.found().channel == good
    eventually(lambda: undelivered(well) == 0)
    later = well.watch(clock=lambda: datetime.now(UTC) + timedelta(minutes=1))
    later.turn()
    assert well.state() == "ok"
    assert well.windows() == [("Patient", "deliveries failed")]


def test_what_came_through_in_the_end_leaves_a_window_all_the_same(well: Clinic) -> None:
    """The ledger takes nothing for a while; retries bring the event, and what was dropped meanwhile nobody knows."""
    well.watch().turn()
    well.sql("CREATE TRIGGER full BEFORE INSERT ON changes BEGIN SELECT RAISE(ABORT, 'full'); END")
    try:
        reference = create(well)
        eventually(lambda: bool(well.stored("AuditEvent")))
        well.watch().turn()
        assert well.state() == "failing"
        assert "was answered 503" in reason(well)
    finally:
        well.sql("DROP TRIGGER full")
    eventually(lambda: bool(well.ledger.notified(reference)))
    well.watch().turn()  # at once: what was heard of fails no more, whenever its next attempt would have been
    assert well.state() == "ok"
    assert well.windows() == [("Patient", "deliveries failed")]


def test_events_that_medplum_gave_up_on_open_a_window(well: Clinic) -> None:
    """With two attempts an event is gone within a second, and no look saw it fail."""
    watch = well.watch()
    watch.turn()
    well.sandbox("faults", retry_scale=0.01)
    secret, dead = well.found().secret, {**well.found().channel, "endpoint": f"http://127.0.0.1:{free_port()}/x"}
    few = [{"url": SECRET, "valueString": secret}, {"url": ATTEMPTS, "valueInteger": 1}]
    right = dict(well.found().resource)
    well.by_hand(extension=few, channel=dead)
    create(well)
    eventually(lambda: undelivered(well) == 0)
    well.by_hand(channel=right["channel"])  # somebody mends the endpoint, the watch has seen nothing of it
    fingers = well.sql
    fingers("UPDATE subscriptions SET fingerprints = '{}' WHERE resource_type = 'Patient'")
    watch.turn()
    assert ("Patient", "Medplum gave up on deliveries") in well.windows()
    well.sandbox("clear")


def test_silence_is_told_by_what_medplum_has(well: Clinic) -> None:
    """A version that Medplum never sent is silence; where nothing happens there is none."""
    silent = timedelta(seconds=0)
    watch = Watch(ledger=well.ledger, medplum=well.reader, routes=well.routes, silent_after=silent)
    watch.turn()
    assert well.state() == "ok"
    reference = create(well)
    eventually(lambda: bool(well.ledger.notified(reference)))
    watch.turn()
    assert well.state() == "ok"
    well.sandbox("faults", drop_types=["Patient"])
    create(well)
    before = alarms("silent")
    watch.turn()
    watch.turn()
    assert well.state() == "silent"
    assert alarms("silent") == before + 1
    assert well.windows() == [("Patient", "subscription was silent")]
    well.sandbox("clear")
    reference = create(well)
    eventually(lambda: bool(well.ledger.notified(reference)))
    watch.turn()
    assert well.state() == "ok"


def test_without_the_right_to_read_it_says_so(well: Clinic) -> None:
    """Nothing is alarmed of a Subscription that is not seen, and nothing counts as well."""
    watch = well.watch()
    watch.turn()
    before = [(row.look, row.sure_until) for row in well.ledger.subscriptions()]
    well.sandbox("faults", hidden={"sync": ["Subscription"]})
    assert "cannot be read" in watch.turn()
    assert [(row.look, row.sure_until) for row in well.ledger.subscriptions()] == before
    assert any("may read and search Subscription and AuditEvent" in words for words in watch._said)
    well.sandbox("faults", hidden={"sync": ["AuditEvent"]})
    assert watch.turn() == "all 3 are well"
    well.sandbox("clear")


def test_a_medplum_that_is_away_changes_nothing(well: Clinic) -> None:
    """What could not be asked is as it was known."""
    watch = well.watch()
    watch.turn()
    before = [(row.look, row.sure_until) for row in well.ledger.subscriptions()]
    well.sandbox("faults", api=[{"status": 503, "types": ["AuditEvent"]}])
    watch.turn()
    assert [(row.look, row.sure_until) for row in well.ledger.subscriptions()] == before
    well.sandbox("clear")


def test_a_secret_that_stands_in_medplum_is_never_retired(well: Clinic) -> None:
    """Somebody has put the old one back: it is newer than nothing, and in use."""
    old = well.found().secret
    well.desk().rotate(["Patient"])
    well.by_hand(extension=[{"url": SECRET, "valueString": old}, {"url": ATTEMPTS, "valueInteger": 18}])
    well.sql("UPDATE subscription_secrets SET used_at = NULL, set_at = '2026-01-01 00:00:00' WHERE set_at IS NOT NULL")
    well.watch().turn()
    kept = [one.value.get_secret_value() for one in well.ledger.subscription_secrets()]
    assert old in kept
