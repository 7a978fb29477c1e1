"""The receiver as a process over the real ledger: every recorded notification, each bad input, start and stop."""

from __future__ import annotations

import base64
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration.receiver_process import (
    SECRET,
    Receiver,
    chunked,
    environment,
    eventually,
    head,
    migrated,
    patient,
    read_answer,
    request,
    signature,
    started,
)
from worker.settings import ReceiverSettings

pytestmark = pytest.mark.processes

RECORDED = Path(__file__).parents[1] / "fixtures" / "notifications"
ALL = {path.name: json.loads(path.read_text()) for path in sorted(RECORDED.glob("0*.json"))}
SIGNED = {name: recorded for name, recorded in ALL.items() if recorded["signature_valid"]}
SECRETS = sorted({recorded["secret"] for recorded in ALL.values() if recorded["secret"]})
LIMIT = 2 * 1024 * 1024
CANARY = "ZZCANARYZZ"


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """A receiver that knows the recordings' secrets, the test's own, and takes two seconds for ten."""
    folder = tmp_path_factory.mktemp("receiver")
    running = started(folder, migrated(folder), WEBHOOK_SECRETS=json.dumps([*SECRETS, SECRET]), REQUEST_SECONDS="2")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """A receiver that knows none of those secrets."""
    folder = tmp_path_factory.mktemp("stranger")
    running = started(folder, migrated(folder), WEBHOOK_SECRETS="yet another secret")
    yield running
    running.kill()


def run(*arguments: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python until it ends."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)


def recorded_request(recorded: dict[str, Any], method: str = "POST") -> bytes:
    """Make the request as it was recorded, to our path."""
    lines = [f"{name}: {value}" for name, value in recorded["headers"] if name not in {"Host", "Connection"}]
    return head(*lines, method=method) + base64.b64decode(recorded["body_base64"])


@pytest.mark.parametrize("name", SIGNED)
def test_a_recorded_notification_is_accepted_with_its_secret_and_refused_with_another(
    receiver: Receiver, stranger: Receiver, name: str
) -> None:
    """202 and a row where its secret is known; 401 and nothing stored where it is not."""
    assert receiver.exchange(recorded_request(SIGNED[name])).status == 202
    assert stranger.exchange(recorded_request(SIGNED[name])).status == 401
    entry = next(e for e in json.loads((RECORDED / "index.json").read_text())["captures"] if e["file"] == name)
    with receiver.ledger() as ledger:
        story = ledger.show(entry["resource"])
    assert entry["versionId"] in {change["version_id"] for change in story["changes"]}
    assert stranger.status()["accepted"] == 0


def test_the_recorded_ones_that_prove_nothing_are_refused(receiver: Receiver) -> None:
    """The body that a redirect emptied does not fit its signature, and the one without a secret has none."""
    emptied, unsigned = ALL["040-redirect-302-followed-as-get.json"], ALL["036-no-secret-create.json"]
    assert receiver.exchange(recorded_request(emptied, "GET")).status == 405
    assert receiver.exchange(recorded_request(emptied)).status == 401
    assert receiver.exchange(recorded_request(unsigned)).status == 401
    assert set(ALL) - set(SIGNED) == {"040-redirect-302-followed-as-get.json", "036-no-secret-create.json"}


def test_the_same_version_again_is_accepted_and_makes_no_second_row(receiver: Receiver) -> None:
    """Medplum delivers at least once."""
    before = receiver.status()["accepted"]
    for _ in range(3):
        assert receiver.exchange(request(patient(77))).status == 202
    assert receiver.status()["accepted"] == before + 1


def test_a_type_without_a_route_is_accepted_skipped_and_not_kept(receiver: Receiver) -> None:
    """Its change is settled with the rule named, and no body of it is in the ledger."""
    body = patient(78, resourceType="Basic")
    assert receiver.exchange(request(body)).status == 202
    with receiver.ledger() as ledger:
        change = ledger.show("Basic/p-78")["changes"][0]
    assert (change["disposition"], change["rule"]) == ("skipped", "no route for this resource type")
    with closing(sqlite3.connect(receiver.url.removeprefix("sqlite:///"))) as database:
        kept = dict(database.execute("SELECT resource_type, count(body) FROM changes GROUP BY 1").fetchall())
    assert kept["Basic"] == 0
    assert kept["Patient"] > 0


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (head("Content-Length: 2") + b"{}", 401),
        (head("X-Signature: " + "0" * 64, "Content-Length: 2") + b"{}", 401),
        (request(patient(), f"X-Signature: {signature(patient())}"), 401),
        (request(b"\xff"), 400),
        (request(b"[]"), 400),
        (request(b"{}"), 400),
        (request(b"[" * 70 + b"]" * 70), 400),
        (request(b"[" * 500_000), 400),
        (request(b'{"a":' + b"9" * 5000 + b"}"), 400),
        (request(b'{"a":1e9999999}'), 400),
        (request(b'{"a":NaN}'), 400),
        (request(b'{"a":1,"a":2}'), 400),
        (request(b'{"a":"\\u0000"}'), 400),
        (request(b'{"a":"\\ud800"}'), 400),
        (request(patient(id=CANARY + "/")), 400),
        (request(patient(id="..")), 400),
        (request(patient(resourceType=None)), 400),
        (request(patient(meta={})), 400),
        (request(patient(), "X-Medplum-Deleted-Resource: Patient/another"), 400),
        (head(f"Content-Length: {LIMIT + 1}"), 413),
        (request(patient(text="x" * LIMIT)), 413),
        (chunked(patient(text="x" * LIMIT), size=60_000), 413),
        (head("X-Long: " + "x" * 17_000), 431),
        (head(*[f"X-{number}: {'x' * 100}" for number in range(200)]), 431),
        (head(path="/medplum?" + "x" * 17_000), 431),
        (b"\r\n" * 9_000, 431),
        (head("Content-Length: 2", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (head("Content-Length: 2", "Content-Length: 2") + b"{}", 400),
        (head("Content-Length: 2, 2") + b"{}", 400),
        (head("X-Signature : " + "0" * 64), 400),
        (head("Upgrade: h2c", "Connection: Upgrade"), 400),
        (head("X-Signature: " + "0" * 64, "Transfer-Encoding: chunked") + b"zz\r\nabc\r\n", 400),
        (head("X-Signature: " + "0" * 64, "Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 90_000, 400),
        (head("X-Signature: " + "0" * 64, "Transfer-Encoding: chunked") + b"0\r\nX: " + b"x" * 300_000, 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9, 400),
        (head(method="GET"), 405),
        (head(path="/medplum/", method="GET"), 404),
    ],
)
def test_bad_input_has_its_answer_and_repeats_nothing(receiver: Receiver, given: bytes, status: int) -> None:
    """Each row of bad input ends with its status, none with 500, and nothing is stored."""
    before = receiver.status()["accepted"]
    answer = receiver.exchange(given)
    assert answer.status == status
    assert CANARY.encode() not in answer.body
    assert receiver.status()["accepted"] == before
    assert answer.closed or status in {400, 401, 404, 405}


@pytest.mark.parametrize("size", [1_000, 60_000, LIMIT - 200])
def test_large_and_chunked_bodies_within_the_limit_are_read_whole(receiver: Receiver, size: int) -> None:
    """Up to 2 MiB, in one piece or many, the connection stays open for the next one."""
    body = patient(size, text="x" * size)
    assert len(body) <= LIMIT
    assert not receiver.exchange(request(body)).closed
    assert receiver.exchange(chunked(body, size=60_000)).status == 202


def test_a_sender_that_waits_to_be_asked_is_refused_before_it_sends(receiver: Receiver) -> None:
    """With Expect: 100-continue an unsigned body is never asked for, a signed one is."""
    with receiver.connect() as connection:
        connection.sendall(head("Content-Length: 2000000", "Expect: 100-continue"))
        assert read_answer(connection).status == 401
    body = patient(79)
    with receiver.connect() as connection:
        connection.sendall(request(body, "Expect: 100-continue")[: -len(body)])
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert read_answer(connection).status == 202


@pytest.mark.parametrize("sent", [b"P", b"POST /medplum HTTP/1.1\r\nX-A: b\r\n", request(patient(80))[:-1], b"\r\n"])
def test_a_request_that_does_not_arrive_in_time_is_408_and_closed(receiver: Receiver, sent: bytes) -> None:
    """The clock starts with the first byte, in the head as in the body."""
    began = time.monotonic()
    answer = receiver.exchange(sent)
    assert (answer.status, answer.closed) == (408, True)
    assert 1.5 < time.monotonic() - began < 6


@pytest.mark.parametrize("sent", [b"POST /medplum HTTP/1.1\r\n", request(patient(80, text="x" * 9000))[:400]])
def test_a_byte_now_and_then_does_not_prolong_a_request(receiver: Receiver, sent: bytes) -> None:
    """A sender that drips, in the head or in the body, is cut off at the same time."""
    with receiver.connect() as connection:
        began = time.monotonic()
        connection.sendall(sent)
        connection.settimeout(0.2)
        answer = b""
        while not answer and time.monotonic() - began < 10:
            try:
                answer = connection.recv(1000)
            except TimeoutError:
                connection.sendall(b"x")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 6


def test_a_quiet_connection_outlives_the_time_for_a_request(receiver: Receiver) -> None:
    """The limit is for what has begun: an idle connection is kept, and serves again."""
    with receiver.connect() as connection:
        for number in (81, 82):
            connection.sendall(request(patient(number)))
            assert read_answer(connection).status == 202
            with pytest.raises(TimeoutError):
                _expect_nothing(connection, seconds=3)


def _expect_nothing(connection: socket.socket, seconds: float) -> None:
    connection.settimeout(seconds)
    try:
        assert connection.recv(1) == b"anything but an end"
    finally:
        connection.settimeout(30)


def test_a_pipelined_request_is_not_taken_for_answered(receiver: Receiver) -> None:
    """The first is answered and the connection closed; what came behind was not looked at, so its sender repeats it."""
    for number, behind in enumerate([request(patient(84)), b"\x16\x03 no HTTP"]):
        before = receiver.status()["accepted"]
        answer = receiver.exchange(request(patient(300 + number)) + behind)
        assert (answer.status, answer.closed) == (202, True)
        assert receiver.status()["accepted"] == before + 1


def test_a_trailer_is_no_header(receiver: Receiver) -> None:
    """A signature behind the body does not count."""
    body = patient(85)
    framed = b"%x\r\n%b\r\n0\r\nX-Signature: %b\r\n\r\n" % (len(body), body, signature(body).encode())
    assert receiver.exchange(head("Transfer-Encoding: chunked") + framed).status == 401


def test_a_refusal_is_heard_by_a_sender_that_is_still_sending(receiver: Receiver) -> None:
    """The answer to an endless body arrives: the connection is not reset under it."""
    with receiver.connect() as connection:
        connection.sendall(head(f"Content-Length: {64 * LIMIT}"))
        for _ in range(16):
            connection.sendall(b"x" * 100_000)
        assert read_answer(connection).status == 413


def test_a_ledger_that_cannot_be_written_is_503_and_heals(tmp_path: Path) -> None:
    """While its table is away every notification is 503; afterwards the same one is accepted."""
    url = migrated(tmp_path)
    running = started(tmp_path, url)
    try:
        with closing(sqlite3.connect(tmp_path / "ledger.db", timeout=30, isolation_level=None)) as database:
            database.execute("ALTER TABLE mirrors RENAME TO away")
            assert running.exchange(request(patient())).status == 503
            database.execute("ALTER TABLE away RENAME TO mirrors")
        assert running.exchange(request(patient())).status == 202
        assert running.status()["accepted"] == 1
        assert "p-1" not in running.log.read_text()
    finally:
        running.kill()


def test_stopping_in_the_middle_of_traffic_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    """SIGTERM: whatever was answered 202 is in the ledger, whatever is there was answered, and the exit code is 0."""
    running = started(tmp_path, migrated(tmp_path))
    accepted: list[int] = []

    def send(offset: int) -> None:
        with running.connect() as connection:
            for number in range(offset, offset + 100_000):
                try:
                    connection.sendall(request(patient(number)))
                    answer = read_answer(connection)
                except (OSError, IndexError):
                    return
                assert answer.status == 202
                accepted.append(number)
                if answer.closed:
                    return

    senders = [threading.Thread(target=send, args=(number * 100_000,)) for number in range(8)]
    try:
        for sender in senders:
            sender.start()
        eventually(lambda: len(accepted) > 200)
        assert running.stop() == 0
    finally:
        running.kill()
        for sender in senders:
            sender.join(20)
    assert running.status()["accepted"] == len(accepted)
    assert running.log.read_text().count('"level": "error"') == 0


def test_a_new_route_is_noticed_while_it_runs(tmp_path: Path) -> None:
    """Within seconds after a migration bodies of the new type are kept."""
    url = migrated(tmp_path, ["Patient"])
    running = started(tmp_path, url)
    try:
        migrated(tmp_path, ["Patient", "Basic"])
        numbers = iter(range(1000))

        def kept() -> bool:
            assert running.exchange(request(patient(next(numbers), resourceType="Basic"))).status == 202
            with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
                return bool(database.execute("SELECT count(body) FROM changes").fetchone()[0])

        eventually(kept)
    finally:
        running.kill()


def test_a_refused_request_is_logged_a_few_times_and_without_its_values(tmp_path: Path) -> None:
    """A stranger cannot fill the disk, and nothing that was sent is in the log."""
    running = started(tmp_path, migrated(tmp_path))
    try:
        for _ in range(100):
            assert running.exchange(request(patient(text=CANARY), f"X-{CANARY}: {CANARY}", secret="x")).status == 401
        assert running.exchange(request(patient(id=CANARY + "/"))).status == 400
        assert running.exchange(head(path=f"/{CANARY}") + CANARY.encode()).status == 404
    finally:
        running.stop()
    log = running.log.read_text()
    assert CANARY not in log
    assert 1 <= log.count("X-Signature does not fit") <= 10
    assert "does not have the form" in log


OURS = ["-m", "webhook"]
BARE = ["-m", "uvicorn", "webhook.app:app", "--port", "0"]


@pytest.mark.parametrize(
    ("command", "given", "named"),
    [
        *((command, {"WEBHOOK_SECRETS": ""}, "run `reverse-sync subscriptions apply`") for command in (OURS, BARE)),
        *((command, {"BROKER_URL": ""}, "REVERSE_SYNC_BROKER_URL is missing") for command in (OURS, BARE)),
        *(
            (command, {"DATABASE_URL": "sqlite:////nowhere/ledger.db"}, "reverse-sync migrate")
            for command in (OURS, BARE)
        ),
        (OURS, {"WEBHOOK_SECRET": "x"}, "did you mean REVERSE_SYNC_WEBHOOK_SECRETS?"),
        (OURS, {"PORT": "http"}, "REVERSE_SYNC_PORT"),
        (OURS, {"HOST": "203.0.113.1"}, "REVERSE_SYNC_HOST"),
    ],
)
def test_it_refuses_to_start_in_one_clear_text(
    tmp_path: Path, command: list[str], given: dict[str, str], named: str
) -> None:
    """A wrong setting is named, without a traceback and without its value."""
    environ = environment(migrated(tmp_path), **given)
    ended = run(*command, environ=environ)
    assert ended.returncode not in {0, 1}
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout


def test_a_ledger_without_routes_is_refused(tmp_path: Path) -> None:
    """Without routes nothing would be kept: the command that registers them is named."""
    environ = environment(migrated(tmp_path, []))
    ended = run(*OURS, environ=environ)
    assert ended.returncode == os.EX_CONFIG
    assert ended.stderr == "refusing to start: the ledger knows no routes: run `reverse-sync migrate` first\n"


LOADED = """
import sys
from webhook import __main__
from webhook.app import create_app
from worker.settings import ReceiverSettings
create_app(ReceiverSettings.read())
print("\\n".join(sys.modules))
"""
FOREIGN = (
    "fhir",
    "celery",
    "kombu",
    "httpx",
    "alembic",
    "worker.mapping",
    "worker.mappings",
    "worker.legacy",
    "worker.medplum",
)


def test_it_loads_nothing_that_maps_or_writes(tmp_path: Path) -> None:
    """Neither FHIR's models nor mappings, neither the legacy client nor Medplum's, is in the receiver's memory."""
    environ = environment(migrated(tmp_path))
    ended = run("-c", LOADED, environ=environ)
    loaded = ended.stdout.split()
    assert "worker.ledger" in loaded
    assert [name for name in loaded if name.startswith(FOREIGN)] == []


def test_it_holds_no_credential_of_another_system() -> None:
    """With everything in its environment, its settings still know nothing of Medplum or the legacy system."""
    environ = {
        "REVERSE_SYNC_WEBHOOK_SECRETS": SECRET,
        "REVERSE_SYNC_MEDPLUM_BASE_URL": f"https://{CANARY}",
        "REVERSE_SYNC_MEDPLUM_CLIENT_ID": CANARY,
        "REVERSE_SYNC_MEDPLUM_CLIENT_SECRET": CANARY,
        "REVERSE_SYNC_SITE_LEGACY_PASSWORD": CANARY,
    }
    settings = ReceiverSettings.read(environ)
    assert not [name for name in ReceiverSettings.model_fields if "medplum" in name or "legacy" in name]
    shown = {name: getattr(value, "get_secret_value", lambda value=value: value)() for name, value in settings}
    assert CANARY not in repr(shown)


def test_its_memory_stays_small(tmp_path: Path) -> None:
    """After ordinary traffic the process holds less than 90 MB."""
    running = started(tmp_path, migrated(tmp_path))
    try:
        with running.connect() as connection:
            for number in range(1000):
                connection.sendall(request(patient(number, text="x" * 2000)))
                assert read_answer(connection).status == 202
        assert running.rss_mb() < 90, f"{running.rss_mb():.0f} MB"
    finally:
        running.kill()
