"""`check --end-to-end` with a real stand-in of Medplum and a real receiver: right, and broken in one way at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from deploy.demo.scenery import free_port
from tests.integration.receiver_process import Receiver, started
from tests.integration.subscriptions.conftest import TOKEN, Clinic
from worker.medplum.marked import CHECK, is_marked
from worker.subscriptions import doctor
from worker.subscriptions.causes import Expected, Kind
from worker.subscriptions.doctor import Doctor, Result
from worker.subscriptions.found import ATTEMPTS, INTERACTION, SECRET
from worker.subscriptions.sample import sample

pytestmark = pytest.mark.processes


def examine(
    clinic: Clinic, resource_type: str = "Patient", *, endpoint: str = "", within_s: float = 10
) -> list[Result]:
    """Let the doctor try once; he waits as long as a loaded machine needs, unless nothing will come."""
    secrets = [one.value for one in clinic.ledger.subscription_secrets()]
    expected = Expected(resource_type, endpoint or clinic.endpoint, SecretStr(clinic.token), secrets)
    one = Doctor(
        ledger=clinic.ledger,
        admin=clinic.admin,
        expected=expected,
        within_s=within_s,
        conclude_s=0.3,
        settled_within_s=0.2,
    )
    return list(one.examine())


def cause(results: Sequence[Result]) -> Kind:
    """Give the one cause that was named."""
    [failed] = [result for result in results if not result.ok]
    assert failed.cause is not None, results
    assert failed.advice
    return failed.cause


def channel(clinic: Clinic, **members: object) -> dict[str, Any]:
    """Write the channel as it was applied, with these members."""
    return {**clinic.found().channel, **members}


def extension(clinic: Clinic, *more: dict[str, object], secret: str = "") -> list[dict[str, object]]:
    """Write the extensions as they were applied, with another secret or more of them."""
    kept = secret or clinic.found().secret
    return [{"url": SECRET, "valueString": kept}, {"url": ATTEMPTS, "valueInteger": 18}, *more]


@pytest.fixture(autouse=True)
def _nothing_is_left(well: Clinic) -> Iterator[None]:
    """Whatever was found, no test resource lives after it."""
    yield
    living = [row for name in ("Patient", "Observation", "Coverage") for row in well.stored(name) if not row["deleted"]]
    assert [row for row in living if is_marked(row["resource"], CHECK)] == []


@pytest.mark.parametrize("resource_type", ["Patient", "Observation", "Coverage"])
def test_where_all_is_well_the_way_is_shown(well: Clinic, resource_type: str) -> None:
    """The new resource and its deletion come through the Subscription that was applied, and nothing is amiss."""
    results = examine(well, resource_type)
    assert [result for result in results if not result.ok] == []
    told = [result.name for result in results]
    assert len(told) == 4
    assert all(
        f"signed and with its headers, through {well.found(resource_type).reference}" in one for one in told[1:3]
    )


def test_what_a_killed_examination_left_is_deleted(well: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old test resource goes; a fresh one may be another examination's, and a patient is none."""
    left = [f"Patient/{well.admin.create(sample('Patient'), deadline_s=10)['id']}" for _ in range(2)]
    patient = f"Patient/{well.admin.create({'resourceType': 'Patient'}, deadline_s=10)['id']}"

    def living() -> set[str]:
        return {row["reference"] for row in well.stored("Patient") if not row["deleted"]}

    examine(well)
    assert living() == {*left, patient}
    monkeypatch.setattr(doctor, "LEFT_AFTER", timedelta(0))
    examine(well)
    assert living() == {patient}


def test_a_missing_subscription_is_named(well: Clinic) -> None:
    """Nobody told Medplum to send."""
    well.admin.delete(well.found().reference, deadline_s=10)
    assert cause(examine(well)) is Kind.MISSING


@pytest.mark.parametrize("status", ["off", "error"])
def test_a_subscription_that_is_off_is_named(well: Clinic, status: str) -> None:
    """Medplum sends and queues nothing."""
    well.by_hand(status=status)
    assert cause(examine(well)) is Kind.OFF


@pytest.mark.parametrize(
    "criteria", ["Observation", "Patient?favourite-colour=red", "Patient?general-practitioner.name=Okafor", "Patienten"]
)
def test_a_criteria_that_does_not_fire_is_named(well: Clinic, criteria: str) -> None:
    """Another type, an unknown parameter, a chained one, no type at all."""
    well.by_hand(criteria=criteria)
    assert cause(examine(well)) is Kind.CRITERIA


def test_a_wrong_path_is_named(well: Clinic) -> None:
    """The receiver answers 404 there."""
    well.by_hand(channel=channel(well, endpoint=well.endpoint + "s"))
    assert cause(examine(well)) is Kind.ENDPOINT


def test_a_wrong_path_is_named_where_the_setting_says_the_same(well: Clinic) -> None:
    """The setting itself names what answers 404."""
    endpoint = well.endpoint.replace("/medplum", "/webhook")
    well.by_hand(channel=channel(well, endpoint=endpoint))
    results = examine(well, endpoint=endpoint)
    assert cause(results) is Kind.ENDPOINT
    assert "answered 404" in str(results)


def test_another_host_that_takes_everything_is_named(well: Clinic) -> None:
    """Medplum's own server answers 200 to what it is sent, and no receiver of this ledger hears of it."""
    well.by_hand(channel=channel(well, endpoint=f"{well.medplum_url}/sandbox/clear"))
    results = examine(well, within_s=2)
    assert cause(results) is Kind.ENDPOINT
    assert "REVERSE_SYNC_ENDPOINT" in str(results)


def test_a_header_that_is_cut_is_named(well: Clinic) -> None:
    """Its value ends at its second colon."""
    well.by_hand(channel=channel(well, header=["Authorization: Bearer: of these tests"]))
    results = examine(well)
    assert cause(results) is Kind.HEADER
    assert "second colon" in str(results)


def test_a_header_without_a_colon_is_named(well: Clinic) -> None:
    """Medplum sends nothing and says nothing."""
    well.by_hand(channel=channel(well, header=["Authorization Bearer"]))
    results = examine(well)
    assert cause(results) is Kind.HEADER
    assert "no colon" in str(results)


def test_a_header_with_another_value_is_named(well: Clinic) -> None:
    """The receiver answers 401."""
    well.by_hand(channel=channel(well, header=["Authorization: Bearer of others"]))
    results = examine(well)
    assert cause(results) is Kind.HEADER
    assert "Bearer" not in str(results)


def test_another_secret_is_named(well: Clinic) -> None:
    """The receiver answers 401."""
    well.by_hand(extension=extension(well, secret="another one"))
    results = examine(well)
    assert cause(results) is Kind.SECRET
    assert "another one" not in str(results)


def test_a_port_where_nobody_listens_is_named(well: Clinic) -> None:
    """The connection is refused."""
    endpoint = f"http://127.0.0.1:{free_port()}/medplum"
    well.by_hand(channel=channel(well, endpoint=endpoint))
    results = examine(well, endpoint=endpoint)
    assert cause(results) is Kind.NETWORK
    assert "refused" in str(results)


@pytest.mark.parametrize("only", ["create", "delete"])
def test_narrowed_interactions_are_named(well: Clinic, only: str) -> None:
    """Of a new resource and its deletion one is never sent."""
    well.by_hand(extension=extension(well, {"url": INTERACTION, "valueCode": only}))
    assert cause(examine(well, within_s=2)) is Kind.INTERACTIONS


def test_a_ledger_that_takes_nothing_is_named(well: Clinic) -> None:
    """The receiver is up and answers 503."""
    well.sql("CREATE TRIGGER full BEFORE INSERT ON changes BEGIN SELECT RAISE(ABORT, 'full'); END")
    try:
        assert cause(examine(well)) is Kind.LEDGER
    finally:
        well.sql("DROP TRIGGER full")


def test_a_receiver_with_another_token_is_named(well: Clinic, tmp_path: Path) -> None:
    """The Subscription and the setting say the same, the receiver was started with something else."""
    port = free_port()
    receiver: Receiver = started(
        tmp_path, well.url, PORT=str(port), WEBHOOK_SECRETS="", WEBHOOK_TOKEN=TOKEN + " of another release"
    )
    try:
        endpoint = f"http://127.0.0.1:{port}/medplum"
        well.by_hand(channel=channel(well, endpoint=endpoint))
        results = examine(well, endpoint=endpoint)
    finally:
        receiver.stop()
    assert cause(results) is Kind.HEADER
    assert "its REVERSE_SYNC_WEBHOOK_TOKEN is another one" in str(results)
