"""The application in memory: the order of its checks, its answers, and what reaches the ledger."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.types import ASGIApp, Message

from webhook.app import create_app
from webhook.known import Known
from worker.errors import LedgerOutdated, LedgerUnavailable, SettingsInvalid
from worker.ledger.subscribing import KeptSecret
from worker.ledger.values import Accepted, Hint, Phase, RouteRow
from worker.settings import ReceiverSettings

Headers = list[tuple[bytes, bytes]]

SECRET = "a secret"
CANARY = "ZZCANARYZZ"
PATIENT = json.dumps(
    {"resourceType": "Patient", "id": "p1", "meta": {"versionId": "v1"}, "name": [{"family": CANARY}]}
).encode()
TASK = PATIENT.replace(b"Patient", b"Task")


class Ledger:
    """Remembers hints; knows one route."""

    def __init__(self, *types: str) -> None:
        self.hints: list[Hint] = []
        self.error: Exception | None = None
        self.types = types
        self.secrets: Sequence[KeptSecret] = ()
        self.noted: list[tuple[set[str], set[str]]] = []
        self.said = ""

    def accept(self, hints: Sequence[Hint], *, ring_most: int) -> Accepted:
        if self.error:
            raise self.error
        self.hints += hints
        return Accepted(inserted=len(hints), repeated=0, woken=())

    def routes(self) -> Mapping[str, RouteRow]:
        return {name: RouteRow(name, Phase.SHADOW, "1") for name in self.types}

    def subscription_secrets(self) -> Sequence[KeptSecret]:
        return self.secrets

    def note_deliveries(self, *, types: Collection[str], secrets: Collection[str]) -> None:
        self.noted.append((set(types), set(secrets)))

    def heartbeat(self, *, instance: str, role: str, host: str, pid: int, detail: str = "") -> None:
        self.said = detail

    def depart(self, *, instance: str) -> None:
        self.said = ""


class Silence:
    """A bell without a workshop."""

    def room(self) -> int:
        return 0

    def ring(self, references: Sequence[str]) -> None:
        raise AssertionError("nothing was queued")


def settings(**given: Any) -> ReceiverSettings:
    """Make settings with one secret."""
    return ReceiverSettings(**{"webhook_secrets": {"": (SecretStr(SECRET),)}} | given)


def application(ledger: Ledger, **given: Any) -> ASGIApp:
    """Build the application over a ledger of the test's own."""
    return create_app(settings(**given), ledger=ledger, bell=Silence())


def signed(body: bytes, *more: tuple[bytes, bytes], secret: str = SECRET) -> Headers:
    """Sign a body; more headers may follow."""
    return [(b"x-signature", hmac.new(secret.encode(), body, hashlib.sha256).hexdigest().encode()), *more]


class Sender:
    """One request's sender: gives its chunks, and remembers whether it was asked for any."""

    def __init__(self, *chunks: bytes, leaves: bool = False) -> None:
        self.chunks = list(chunks)
        self.leaves = leaves
        self.asked = 0
        self.answer: list[Message] = []

    async def receive(self) -> Message:
        self.asked += 1
        if not self.chunks:
            return {"type": "http.disconnect"}
        chunk = self.chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(self.chunks) or self.leaves}

    async def send(self, message: Message) -> None:
        self.answer.append(message)

    @property
    def status(self) -> int:
        return int(self.answer[0]["status"])

    @property
    def words(self) -> str:
        return bytes(self.answer[1]["body"]).decode()


def post(app: ASGIApp, sender: Sender, headers: Headers, *, path: str = "/medplum", method: str = "POST") -> Sender:
    """Send one request to the application."""
    asyncio.run(_request(app, sender, headers, path=path, method=method))
    return sender


def test_a_signed_notification_is_accepted_with_its_body() -> None:
    """202 with nothing in it, and the ledger has the hint with the bytes as they came."""
    ledger = Ledger("Patient")
    sender = post(application(ledger), Sender(PATIENT[:10], PATIENT[10:]), signed(PATIENT))
    assert (sender.status, sender.words) == (202, "")
    assert [(hint.reference, hint.version_id, hint.body) for hint in ledger.hints] == [("Patient/p1", "v1", PATIENT)]


def test_a_type_without_a_route_goes_in_without_its_body() -> None:
    """The ledger settles it as skipped; nothing of the record is kept."""
    ledger = Ledger("Patient")
    assert post(application(ledger), Sender(TASK), signed(TASK)).status == 202
    assert [(hint.reference, hint.body) for hint in ledger.hints] == [("Task/p1", None)]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"x-signature", b"a" * 63)],
        [(b"x-signature", b"zz" * 32)],
        signed(PATIENT) * 2,
        [*signed(PATIENT), (b"x-signature", b"")],
    ],
)
def test_a_signature_that_is_none_is_refused_before_the_body_is_asked_for(headers: Headers) -> None:
    """Missing, malformed or doubled: 401, and not a byte of the body is read."""
    ledger = Ledger("Patient")
    sender = post(application(ledger), Sender(PATIENT), headers)
    assert (sender.status, sender.asked, ledger.hints) == (401, 0, [])


def test_the_shared_header_is_judged_before_the_signature_and_the_body() -> None:
    """A wrong, missing or doubled Authorization is 401 although the signature is right."""
    ledger = Ledger("Patient")
    app = application(ledger, webhook_token=SecretStr("Bearer right"))
    right, wrong = (b"authorization", b"Bearer right"), (b"authorization", b"Bearer wrong")
    for headers in ([], [wrong], [right, right], [right, wrong]):
        sender = post(app, Sender(PATIENT), signed(PATIENT, *headers))
        assert (sender.status, sender.asked) == (401, 0)
        assert "Authorization" in sender.words
    assert post(app, Sender(PATIENT), signed(PATIENT, right)).status == 202


def test_a_wrong_signature_is_refused_before_the_body_is_parsed() -> None:
    """What is not signed is 401 even where it is not JSON at all, and nothing is stored."""
    ledger = Ledger("Patient")
    for body in (PATIENT, b"\xff not JSON"):
        assert post(application(ledger), Sender(body), signed(body, secret="another")).status == 401
    assert ledger.hints == []


def test_a_body_over_the_limit_is_refused_by_its_length() -> None:
    """413 before a byte is read, whatever else is wrong."""
    sender = post(application(Ledger("Patient"), max_body_bytes=100), Sender(b"x"), [(b"content-length", b"101")])
    assert (sender.status, sender.asked) == (413, 0)
    assert (b"connection", b"close") in sender.answer[0]["headers"]


def test_a_body_over_the_limit_without_a_length_is_refused_where_it_crosses() -> None:
    """413, and the rest is not asked for."""
    sender = post(
        application(Ledger("Patient"), max_body_bytes=100), Sender(*[b"x" * 60] * 5), [(b"x-signature", b"0" * 64)]
    )
    assert (sender.status, sender.asked) == (413, 2)


def test_bodies_in_flight_share_one_budget_and_give_it_back() -> None:
    """A large body is 503 while others hold the budget, a small one is not, and afterwards there is room again."""
    ledger = Ledger("Patient")
    large = PATIENT.replace(CANARY.encode(), b"x" * 60_000)

    async def scenario() -> list[int]:
        app = application(ledger, max_bodies_bytes=50_000)
        half_sent, rest = asyncio.Event(), asyncio.Event()

        class Slow(Sender):
            async def receive(self) -> Message:
                if self.asked:
                    half_sent.set()
                    await rest.wait()
                return await super().receive()

        slow = Slow(large[:40_000], large[40_000:])
        holding = asyncio.create_task(_request(app, slow, signed(large)))
        await asyncio.wait_for(half_sent.wait(), 10)
        turned_away, small = Sender(large), Sender(PATIENT)
        await _request(app, turned_away, signed(large))
        await _request(app, small, signed(PATIENT))
        rest.set()
        await holding
        again = Sender(large)
        await _request(app, again, signed(large))
        return [slow.status, turned_away.status, small.status, again.status]

    assert asyncio.run(scenario()) == [202, 503, 202, 202]


def test_a_sender_that_leaves_gets_no_answer_and_leaves_nothing_behind() -> None:
    """A body that breaks off is neither judged nor stored, and its share of the budget is free again."""
    ledger = Ledger("Patient")
    app = application(ledger, max_bodies_bytes=30_000)
    large = PATIENT.replace(CANARY.encode(), b"x" * 40_000)
    for _ in range(3):
        assert post(app, Sender(large[:40_000], leaves=True), signed(large)).answer == []
    assert ledger.hints == []
    assert post(app, Sender(large), signed(large)).status == 202


def test_what_is_signed_and_makes_no_sense_is_400_in_words() -> None:
    """The answer names what is wrong and repeats nothing."""
    body = PATIENT.replace(b"v1", CANARY.encode() + b"/")
    sender = post(application(Ledger("Patient")), Sender(body), signed(body))
    assert (sender.status, sender.words) == (400, "meta.versionId does not have the form that FHIR gives it")


def test_a_ledger_that_cannot_be_written_is_503() -> None:
    """Medplum should try again; the same notification is accepted once the ledger is back."""
    ledger = Ledger("Patient")
    app = application(ledger)
    ledger.error = LedgerUnavailable("the ledger's database: OperationalError")
    assert post(app, Sender(PATIENT), signed(PATIENT)).status == 503
    ledger.error = None
    assert post(app, Sender(PATIENT), signed(PATIENT)).status == 202


def test_a_defect_of_ours_shows_no_value(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that nobody foresaw is 500, and neither the answer nor a log line holds what it says."""

    def broken(*_: object) -> Hint:
        raise KeyError(CANARY)

    monkeypatch.setattr("webhook.notification.read", broken)
    sender = post(application(Ledger("Patient")), Sender(PATIENT), signed(PATIENT))
    assert sender.status == 500
    output = capfd.readouterr()
    assert CANARY not in sender.words + output.out + output.err + caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/medplum", 405),
        ("PUT", "/medplum", 405),
        ("POST", "/medplum/", 404),
        ("POST", "/Medplum", 404),
        ("POST", "/", 404),
        ("GET", "/metrics", 404),
        ("GET", "/readyz", 404),
        ("GET", "/docs", 404),
        ("GET", "/livez", 200),
        ("GET", "/livez/", 404),
        ("POST", "/livez", 405),
    ],
)
def test_two_paths_are_served_and_nothing_redirects(method: str, path: str, status: int) -> None:
    """Everything else is 404 or 405; a redirect would lose the body of a notification."""
    sender = post(application(Ledger("Patient")), Sender(b""), [], method=method, path=path)
    assert sender.status == status


def test_alive_says_so() -> None:
    """/livez answers a small JSON document."""
    sender = post(application(Ledger("Patient")), Sender(b""), [], method="GET", path="/livez")
    assert json.loads(sender.words) == {"status": "ok"}


def test_it_does_not_start_without_routes_ledger_or_broker(tmp_path: Any) -> None:
    """Each refusal says what to do first, and none makes an empty ledger file."""
    with pytest.raises(LedgerOutdated, match="reverse-sync migrate"):
        create_app(settings(), ledger=Ledger(), bell=Silence())
    with pytest.raises(LedgerOutdated, match="reverse-sync migrate"):
        create_app(settings(database_url=f"sqlite:///{tmp_path}/none.db"), bell=Silence())
    with pytest.raises(SettingsInvalid, match="REVERSE_SYNC_BROKER_URL is missing"):
        create_app(settings(), ledger=Ledger("Patient"))
    assert list(tmp_path.iterdir()) == []


async def _request(
    app: ASGIApp, sender: Sender, headers: Headers, *, path: str = "/medplum", method: str = "POST"
) -> None:
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b"", "root_path": ""}
    await app(scope, sender.receive, sender.send)


# secrets of the ledger


def answer(app: ASGIApp, body: bytes, headers: Headers) -> int:
    """Send a notification and give the answer's status."""
    return post(app, Sender(body), headers).status


def kept(value: str, name: str = "s1", medplum_id: str | None = None) -> KeptSecret:
    """Make a secret as the ledger gives it."""
    moment = datetime(2026, 11, 22, tzinfo=UTC)
    return KeptSecret(name, "Patient", SecretStr(value), moment, None, None, medplum_id)


def test_secrets_of_the_ledger_are_accepted_beside_those_of_the_settings() -> None:
    """Both sign; a third does not."""
    ledger = Ledger("Patient")
    ledger.secrets = [kept("from the ledger")]
    app = application(ledger)
    assert [answer(app, PATIENT, signed(PATIENT, secret=each)) for each in (SECRET, "from the ledger", "none")] == [
        202,
        202,
        401,
    ]


def test_the_ledgers_secrets_suffice() -> None:
    """With none in the settings the receiver starts, and takes what the ledger's sign."""
    ledger = Ledger("Patient")
    ledger.secrets = [kept("from the ledger")]
    assert answer(application(ledger, webhook_secrets={}), PATIENT, signed(PATIENT, secret="from the ledger")) == 202


def test_with_no_secret_at_all_it_refuses_to_start() -> None:
    """It says both ways to give one."""
    with pytest.raises(SettingsInvalid, match=r"subscriptions apply.*REVERSE_SYNC_WEBHOOK_SECRETS"):
        application(Ledger("Patient"), webhook_secrets={})


def test_a_subscription_that_is_known_signs_with_its_own_secrets_alone() -> None:
    """One whose id nobody knows yet, as a new one at its first delivery, may sign with any."""
    ledger = Ledger("Patient")
    ledger.secrets = [kept("one", "s1", "id-1"), kept("two", "s2", "id-2")]
    app = application(ledger, webhook_secrets={})

    def status(secret: str, subscription: bytes) -> int:
        return answer(app, PATIENT, signed(PATIENT, (b"x-medplum-subscription", subscription), secret=secret))

    assert [status("one", b"id-1"), status("two", b"id-1"), status("two", b"id-3")] == [202, 401, 202]


def test_it_tells_the_ledger_what_it_knows_and_what_came() -> None:
    """That it lives with its secrets by name; the type and the secret of what came, not at every look; no value."""
    ledger = Ledger("Patient")
    ledger.secrets = [kept("one", "s1"), kept("two", "s2")]
    known = Known(ledger, settings())
    known._look(*known._worth_noting())
    assert json.loads(ledger.said) == {"secrets": ["s1", "s2"]}
    assert ledger.noted == []
    known.came("Patient", b"two")
    known.came("Unrouted", SECRET.encode())
    known._look(*known._worth_noting())
    assert ledger.noted == [({"Patient"}, {"s2"})]
    known.came("Patient", b"one")
    known._look(*known._worth_noting())
    assert ledger.noted[1:] == [(set(), {"s1"})]
    known.leave()
    assert ledger.said == ""


def test_a_new_secret_is_known_at_the_next_look() -> None:
    """And one that was retired no longer; what the settings give stays."""
    ledger = Ledger("Patient")
    known = Known(ledger, settings())

    def signs(secret: str) -> bool:
        value = hmac.new(secret.encode(), b"{}", hashlib.sha256).hexdigest().encode()
        return known.secrets.sign(b"{}", value, ())

    ledger.secrets = [kept("new")]
    assert not signs("new")
    known._look((), ())
    assert signs("new")
    ledger.secrets = []
    known._look((), ())
    assert not signs("new")
    assert signs(SECRET)


def test_a_look_that_fails_is_not_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a ledger that is away nor a defect ends the looking."""
    ledger = Ledger("Patient")
    known = Known(ledger, settings())
    errors: list[Exception] = [LedgerUnavailable("away"), RuntimeError("a defect")]
    looked = known._look

    def look(came: Collection[str], signed: Collection[str]) -> None:
        if errors:
            raise errors.pop(0)
        looked(came, signed)

    async def until_it_is_known() -> None:
        looking = asyncio.create_task(known.look_for_ever())
        async with asyncio.timeout(10):
            while not ledger.said:
                await asyncio.sleep(0)
        looking.cancel()

    monkeypatch.setattr(known, "_look", look)
    monkeypatch.setattr("webhook.known.LOOK_EVERY_S", 0.0)
    asyncio.run(until_it_is_known())
    assert errors == []
