"""Nothing is missed: whatever Medplum does not deliver, the legacy copy is Medplum's in the end, and it is said how.

Each trouble comes under traffic, and in the middle of it everything of ours is killed and started again. The short run
has the troubles that catch-up alone is for; test_subscriptions has short forms of the others.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from tests.acceptance.system import OURS, System, started
from tests.acceptance.traffic import Traffic, backward_steps, flowing

pytestmark = [pytest.mark.processes, pytest.mark.timeout(400)]

SETTINGS: Final = {"CATCH_UP_EVERY_SECONDS": "1", "CATCH_UP_OVERLAP_SECONDS": "3", "WATCH_SECONDS": "1"}
ADMIN: Final = {"ADMIN_CLIENT_ID": "admin", "ADMIN_CLIENT_SECRET": "admin-secret"}
WRITES: Final = 20
WITHIN_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """One way in which changes do not come. `loses`: catch-up has to have found something after it."""

    begin: Callable[[], object]
    end: Callable[[], object]
    down: frozenset[str] = frozenset()
    lasts_s: float = 0.0
    loses: bool = True


def subscriptions(system: System) -> list[dict[str, Any]]:
    return [line["resource"] for line in system.medplum.truth("Subscription") if not line["deleted"]]


def desk(system: System) -> System:
    """Give the system as an administrator's terminal sees it."""
    admin = {**ADMIN, "ENDPOINT": f"{system.urls['web']}/medplum"}
    return replace(
        system, settings={**system.settings, **{f"REVERSE_SYNC_{name}": value for name, value in admin.items()}}
    )


def found(system: System) -> int:
    return int(system.ledger.status()["accepted_by_source"].get("catch-up", 0))


def go_on(system: System, traffic: Traffic) -> None:
    enough = traffic.writes + WRITES
    system.wait_until(lambda: traffic.writes >= enough, "the front end has written on", 30)


def comes_and_goes(system: System, traffic: Traffic, trouble: Trouble) -> None:
    """Have a trouble come, everything of ours restarted in the middle of it, and the trouble go."""
    before = found(system)
    with flowing(traffic):
        go_on(system, traffic)
        trouble.begin()
        began = time.monotonic()
        go_on(system, traffic)
        restart_everything(system, but=trouble.down)
        system.wait_until(lambda: time.monotonic() - began >= trouble.lasts_s, "it lasts", trouble.lasts_s + 1)
        go_on(system, traffic)
        trouble.end()
        go_on(system, traffic)
    proven_and_equal(system)
    assert not trouble.loses or found(system) > before


def restart_everything(system: System, *, but: Collection[str] = ()) -> None:
    ours = [name for name in ("broker", *OURS) if name not in but]
    for name in ours:
        system.kill(name)
    system.restart(*ours)


def proven_and_equal(system: System) -> None:
    """Wait until catch-up has proven all that was written so far; then both sides agree in everything."""
    written = datetime.now(UTC)
    system.wait_until(lambda: is_proven(system, written), "all of it is proven", WITHIN_S, told=lambda: times(system))
    system.settle(WITHIN_S)
    while any(each["reason"] == "budget" for each in system.ledger.failed()):  # more than twenty deletes an hour
        system.cli("replay", "--all", "--reason", "budget", "--yes", "--why", "they are meant")
        system.settle(WITHIN_S)
    assert system.disagreements() == []
    assert system.clinic.duplicates() == []
    assert backward_steps(system.clinic.history()) == []
    system.assert_accounted()


def is_proven(system: System, moment: datetime) -> bool:
    status = system.ledger.status()
    live = [route for route in status["routes"] if route["resource_type"] in system.legacy.types]
    return not status["unproven"] and all(datetime.fromisoformat(each["watermark"]) > moment for each in live)


def times(system: System) -> object:
    status = system.ledger.status()
    return status["unproven"], {each["resource_type"]: each["watermark"] for each in status["routes"]}


def steered(system: System, **faults: object) -> Callable[[], object]:
    return lambda: system.steer_medplum("faults", **faults)


def web_is_down(system: System, *, lasts_s: float) -> Trouble:
    return Trouble(lambda: system.kill("web"), lambda: system.restart("web"), down=frozenset({"web"}), lasts_s=lasts_s)


def is_switched_off(system: System, resource_type: str) -> Trouble:
    """Switch a Subscription of ours off, as Medplum does: the watch is to switch it on again by itself."""

    def off() -> None:
        [ours] = [each for each in subscriptions(system) if each["criteria"] == resource_type]
        for name in ("worker", "worker2"):  # nobody sees it at once
            system.kill(name)
        system.medplum.write([{**ours, "status": "off", "error": "too many failures"}])

    def on() -> None:
        system.wait_until(lambda: all(each["status"] == "active" for each in subscriptions(system)), "it is on", 30)

    return Trouble(off, on)


def is_rotated(system: System) -> Trouble:
    """Change every secret: nothing is refused meanwhile, so nothing has to be found."""
    return Trouble(lambda: None, lambda: desk(system).cli("subscriptions", "rotate-secret"), loses=False)


def is_changed_by_hand(system: System) -> Trouble:
    """Let somebody set a secret that nobody here knows: every notification is refused until it is applied anew."""

    def by_hand() -> None:
        ours = next(each for each in subscriptions(system) if each["criteria"] == "Patient")
        secret, *rest = ours["extension"]
        system.medplum.write([{**ours, "extension": [{**secret, "valueString": "somebody's own"}, *rest]}])

    return Trouble(by_hand, lambda: desk(system).cli("subscriptions", "apply"), loses=False)


def deletes_are_lost(system: System, traffic: Traffic) -> None:
    """Delete while Medplum sends nothing at all."""
    before = found(system)
    system.steer_medplum("faults", drop_rate=1.0)
    for _ in range(4):
        traffic.deletes()
    system.steer_medplum("faults", drop_rate=0.0)
    proven_and_equal(system)
    assert found(system) > before


def the_webhook_is_down_and_deletes_are_lost(system: System, traffic: Traffic, *, down_s: float) -> None:
    comes_and_goes(system, traffic, web_is_down(system, lasts_s=down_s))  # with Medplum's default attempts
    deletes_are_lost(system, traffic)


def test_what_medplum_gave_up_on_or_never_sent_comes_all_the_same(folder: Path) -> None:
    """The webhook is down until Medplum drops events, everything is restarted meanwhile, and deletes are lost.

    After each the legacy copy is Medplum's, and the status says how much of each type was found by catch-up.
    """
    with started(folder, settings=SETTINGS) as system:
        system.steer_medplum("faults", retry_scale=0.05)
        the_webhook_is_down_and_deletes_are_lost(system, Traffic(system.medplum, seed=7), down_s=4.0)
        told = json.loads(system.cli("status", "--json"))
        assert sum(each["found_by_catch_up"] for each in told["routes"]) == found(system)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_whatever_medplum_does_not_deliver_comes_all_the_same(
    request: pytest.FixtureRequest, folder: Path, database: str
) -> None:
    """At Medplum's own pace: the webhook down for a minute, a Subscription off, secrets rotated and unknown, a type
    silent, deletes lost. The status says what was found, and of which time."""
    with ExitStack() as stack:
        url = None
        if database == "postgresql":
            url = stack.enter_context(request.getfixturevalue("postgres").database())
        system = stack.enter_context(started(folder, settings=SETTINGS, database_url=url))
        traffic = Traffic(system.medplum, seed=7)
        the_webhook_is_down_and_deletes_are_lost(system, traffic, down_s=60.0)
        by_hand = [f"Subscription/{each['id']}" for each in subscriptions(system)]
        applied = desk(system).cli("subscriptions", "apply")
        assert "reverse-sync:" not in applied, applied
        system.medplum.write([], by_hand)
        silent = Trouble(steered(system, drop_types=["Condition"]), steered(system, drop_types=[]))
        for trouble in (is_switched_off(system, "Patient"), is_rotated(system), is_changed_by_hand(system), silent):
            comes_and_goes(system, traffic, trouble)
        told = json.loads(system.cli("status", "--json"))
        assert "subscription was off" in {each["reason"] for each in told["proven_lately"]}
