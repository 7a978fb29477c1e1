"""`worker.broker` with the real server: address, secrecy, and what a kill leaves."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import redis

from worker.broker import BrokerUnavailable, address, run

Broker = subprocess.Popen[str]
Start = Callable[..., Broker]

RUN = """
import sys
from pathlib import Path
from worker.broker import run
run(Path(sys.argv[1]), *map(int, sys.argv[2:]))
"""
WITHOUT_THE_WHEEL = "import importlib.util; importlib.util.find_spec = lambda name: None" + RUN


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the broker of this test's own `var`, and kill whatever is left of it at the end."""
    started: list[Broker] = []

    def start(*arguments: object) -> Broker:
        command = [sys.executable, "-c", RUN, str(tmp_path / "var"), *map(str, arguments)]
        broker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        started.append(broker)
        return broker

    yield start
    for broker in started:
        broker.kill()
        broker.communicate()


def eventually(fact: Callable[[], bool], within_s: float = 15) -> None:
    """Wait until the fact holds; a fact that never does fails the test."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "the fact never came to hold"
        time.sleep(0.02)


def answering(var: Path) -> str:
    """Return the URL of the broker once it answers there."""

    def answers() -> bool:
        url = address(var)
        if url is None:
            return False
        try:
            with redis.Redis.from_url(url, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    eventually(answers)
    url = address(var)
    assert url is not None
    return url


def test_it_is_at_the_address_that_it_wrote_and_wants_the_password(start: Start, tmp_path: Path) -> None:
    """The URL in the address file works, and the same URL without its password is refused."""
    start()
    url = answering(tmp_path / "var")
    without = f"redis://127.0.0.1:{urlsplit(url).port}/0"
    with redis.Redis.from_url(without) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_nobody_else_can_read_the_password(start: Start, tmp_path: Path) -> None:
    """Every file of the broker is for its user alone, and the password is not on the command line."""
    broker = start()
    url = answering(tmp_path / "var")
    directory = tmp_path / "var" / "broker"
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [directory, *directory.rglob("*")]}
    assert {path.name for path in modes} >= {"address", "valkey.conf", "appendonlydir"}
    assert all(mode & 0o077 == 0 for mode in modes.values()), modes
    assert str(urlsplit(url).password) not in " ".join(psutil.Process(broker.pid).cmdline())


def test_a_killed_broker_comes_back_with_its_data_at_the_same_address(start: Start, tmp_path: Path) -> None:
    """SIGKILL loses nothing that was answered, and clients keep their URL over the restart."""
    broker = start()
    url = answering(tmp_path / "var")
    with redis.Redis.from_url(url) as client:
        for number in range(500):
            client.rpush("doorbell", number)
    broker.kill()
    broker.wait(10)
    start()
    assert answering(tmp_path / "var") == url
    with redis.Redis.from_url(url) as client:
        assert client.llen("doorbell") == 500


def test_the_process_is_the_server_itself(start: Start, tmp_path: Path) -> None:
    """SIGTERM to what was started ends the server in good order, and no process is left."""
    broker = start()
    url = answering(tmp_path / "var")
    assert psutil.Process(broker.pid).children(recursive=True) == []
    broker.send_signal(signal.SIGTERM)
    assert broker.wait(10) == 0
    with redis.Redis.from_url(url) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_a_second_broker_over_the_same_files_is_refused(start: Start, tmp_path: Path) -> None:
    """Two servers would spoil each other's append-only files, so the second does not start and the first goes on."""
    start()
    url = answering(tmp_path / "var")
    second = start()
    _, errors = second.communicate(timeout=20)
    assert second.returncode != 0
    assert "runs already" in errors
    assert str(urlsplit(url).password) not in errors
    assert answering(tmp_path / "var") == url


def test_a_port_taken_meanwhile_is_given_up_and_the_password_kept(start: Start, tmp_path: Path) -> None:
    """A restart whose port another program took chooses a free one instead of failing."""
    broker = start()
    before = urlsplit(answering(tmp_path / "var"))
    broker.kill()
    broker.wait(10)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", before.port or 0))
        other.listen()
        start()
        eventually(lambda: urlsplit(address(tmp_path / "var") or "").port != before.port)
        after = urlsplit(answering(tmp_path / "var"))
    assert after.password == before.password


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(start: Start) -> None:
    """An operator's own port is never replaced in silence."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        broker = start(port)
        _, errors = broker.communicate(timeout=20)
    assert broker.returncode != 0
    assert f"port {port} is taken" in errors


def test_it_refuses_work_rather_than_drop_it(start: Start, tmp_path: Path) -> None:
    """Appends are kept and nothing is ever evicted, whatever a default says."""
    start()
    with redis.Redis.from_url(answering(tmp_path / "var"), decode_responses=True) as client:
        settings = client.config_get("appendonly", "appendfsync", "maxmemory-policy", "save", "bind")
    assert settings == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "bind": "127.0.0.1",
    }


def test_a_path_with_spaces_and_quotes_is_served(tmp_path: Path) -> None:
    """The configuration names the data folder whatever its name holds."""
    odd = tmp_path / 'a "quoted" folder'
    odd.mkdir()
    command = [sys.executable, "-c", RUN, str(odd)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as broker:
        try:
            answering(odd)
        finally:
            broker.kill()


def test_without_a_server_program_both_ways_out_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the wheel nor a program on PATH: the error names the extra, the programs and the setting."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerUnavailable, match=r"reverse-sync\[broker\].*valkey-server.*REVERSE_SYNC_BROKER_URL"):
        run(tmp_path / "var")


def test_a_server_on_path_serves_where_the_wheel_is_missing(tmp_path: Path) -> None:
    """Without the wheel, the process becomes redis-server from PATH, with the same configuration."""
    program = tmp_path / "redis-server"
    program.write_text('#!/bin/sh\necho "$0" "$@"\n')
    program.chmod(0o755)
    command = [sys.executable, "-c", WITHOUT_THE_WHEEL, str(tmp_path / "var")]
    became = subprocess.run(
        command, env={"PATH": f"{tmp_path}:/bin"}, capture_output=True, text=True, timeout=30, check=True
    )
    assert became.stdout.split() == [str(program), str(tmp_path / "var" / "broker" / "valkey.conf")]


def test_no_address_before_the_first_start(tmp_path: Path) -> None:
    """Where no broker ever ran there is no address."""
    assert address(tmp_path) is None
