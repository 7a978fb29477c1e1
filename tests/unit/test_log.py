"""`worker.log`: what a line may say, whoever says it."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from worker import log
from worker.errors import LedgerUnavailable

CANARY = "Canary-O'Brien"
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Send every line of this process into a text, and put everything back at the end."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, sys.excepthook, threading.excepthook, sys.unraisablehook)
    levels = {name: logging.getLogger(name).level for name in ("httpx", "kombu", "uvicorn.access", "celery.beat")}
    stream = io.StringIO()
    with warnings.catch_warnings():
        log.configure("json", process="worker", stream=stream)
        yield stream
    root.handlers[:], root.level = before[0], before[1]
    sys.excepthook, threading.excepthook, sys.unraisablehook = before[2:]
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def lines(stream: io.StringIO) -> Lines:
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def foreign() -> ValueError:
    """Make an exception as a library does: its text holds the input, and a local variable too."""
    name = CANARY
    try:
        int(name)
    except ValueError as error:
        return error
    raise AssertionError


def test_a_line_says_who_when_and_what(lines: Lines) -> None:
    """Our own lines are one JSON object each, with process, logger, level and time."""
    log.get("worker.sync").info("applied", reference="Patient/1", writes=2)
    (line,) = lines()
    assert line.pop("at").endswith("Z")
    assert line == {
        "event": "applied",
        "level": "info",
        "logger": "worker.sync",
        "process": "worker",
        "reference": "Patient/1",
        "writes": 2,
    }


def test_a_foreign_exception_is_its_type_and_places(lines: Lines) -> None:
    """Of an exception that is not ours neither the text nor a local variable is shown, however it is handed over."""
    error = foreign()
    log.get("worker.sync").error("it failed", error=error)
    log.get("worker.sync").error("it failed", exc_info=error)
    logging.getLogger("worker.sync").error("it failed", exc_info=error)
    told = lines()
    assert CANARY not in json.dumps(told)
    assert [line["error"]["type"] for line in told] == ["ValueError"] * 3
    assert all("test_log.py" in line["error"]["at"][0] for line in told)


def test_our_own_exception_keeps_its_words_and_not_those_of_its_cause(lines: Lines) -> None:
    """The message of a ReverseSyncError is shown; of what caused it, only the type."""
    try:
        try:
            raise foreign()
        except ValueError as cause:
            raise LedgerUnavailable("the ledger's database: OperationalError") from cause
    except LedgerUnavailable:
        log.get("worker.sync").exception("again")
    (line,) = lines()
    assert line["error"]["says"] == "the ledger's database: OperationalError"
    assert line["error"]["because"] == ["ValueError"]
    assert CANARY not in json.dumps(line)


def test_text_for_a_terminal_is_as_silent(stream: io.StringIO) -> None:
    """The other format shows no more than JSON does."""
    log.configure("text", process="worker", stream=stream)
    log.get("worker.sync").error("it failed", error=foreign(), resource=object())
    log.get("worker.sync").error("it failed", exc_info=foreign())
    assert "it failed" in stream.getvalue()
    assert "ValueError" in stream.getvalue()
    assert CANARY not in stream.getvalue()


def test_an_object_in_a_line_is_its_type(lines: Lines) -> None:
    """A model or a mapping's result put into a line by mistake shows no value, nested or not."""

    class Patient:
        def __repr__(self) -> str:
            return CANARY

    log.get("worker.sync").info("applied", record=Patient(), records=[Patient()], more={"a": Patient()})
    (line,) = lines()
    assert line["record"] == "<" + Patient.__qualname__ + ">"
    assert CANARY not in json.dumps(line)


@pytest.mark.parametrize(
    ("logger", "arguments"),
    [
        ("some.library", ("cannot parse %s at %d", CANARY, 3)),
        ("some.library", ("cannot parse %(name)s", {"name": CANARY})),
        ("asyncio", (f"Task exception was never retrieved\nfuture: <Task exception=ValueError('{CANARY}')>",)),
        ("celery.app.trace", ("Task %s raised unexpected: %r", "worker.tasks.sync", ValueError(CANARY))),
        ("py.warnings", ("%s", f"a.py:3: UserWarning: input was {CANARY}\n  model_dump()")),
    ],
)
def test_foreign_lines_keep_their_template_alone(lines: Lines, logger: str, arguments: tuple[Any, ...]) -> None:
    """What a library puts into its lines may be a value: the template stays, and what cannot be one."""
    logging.getLogger(logger).error(*arguments)
    (line,) = lines()
    assert line["event"]
    assert CANARY not in json.dumps(line)


def test_urls_of_http_clients_are_not_logged(lines: Lines) -> None:
    """httpx logs each URL with its query at INFO, uvicorn each path: neither is shown."""
    logging.getLogger("httpx").info('HTTP Request: GET https://a/Patient?name=%s "200 OK"', CANARY)
    logging.getLogger("uvicorn.access").info("%s", CANARY)
    logging.getLogger("uvicorn.access").error("%s", CANARY)
    assert lines() == []


def test_warnings_and_what_nobody_caught_lose_their_text(lines: Lines) -> None:
    """Python's own printers of warnings and of uncaught exceptions are replaced."""
    warnings.simplefilter("always")
    warnings.warn(f"input was {CANARY}", UserWarning, stacklevel=1)
    error = foreign()
    sys.excepthook(type(error), error, error.__traceback__)
    thread = threading.Thread(target=lambda: int(CANARY), name="a thread")
    thread.start()
    thread.join()
    told = lines()
    assert [line["event"] for line in told] == ["a library warns", "nobody caught this", "nobody caught this"]
    assert CANARY not in json.dumps(told)


def test_repeated_warnings_are_limited_and_counted(lines: Lines) -> None:
    """A stranger who makes us warn a thousand times gets twenty lines; other warnings still go out."""
    for _ in range(1000):
        log.get("webhook.receive").warning("signature refused")
    log.get("webhook.receive").warning("head too large")
    said = [line["event"] for line in lines()]
    assert said.count("signature refused") == 20
    assert said.count("head too large") == 1


def test_what_was_held_back_is_told_afterwards() -> None:
    """After its period a kind of line goes out again and says how many were not shown."""
    now = [0.0]
    limit = log.RepeatLimit(2, 10.0, clock=lambda: now[0])
    assert [limit.allows("a") for _ in range(4)] == [(True, 0), (True, 0), (False, 0), (False, 0)]
    now[0] = 10.0
    assert limit.allows("a") == (True, 2)
    assert limit.allows("a") == (True, 0)


def test_informing_lines_are_not_limited(lines: Lines) -> None:
    """The limit is for warnings and errors: an info line for each change is wanted."""
    for _ in range(100):
        log.get("worker.sync").info("applied")
    assert len(lines()) == 100


def test_bound_fields_are_on_every_line_of_the_thread(lines: Lines) -> None:
    """Within `bound`, deeper rooms need not know the reference to have it on their lines."""
    with log.bound(reference="Patient/1"):
        log.get("worker.legacy").info("sent")
    log.get("worker.legacy").info("idle")
    first, second = lines()
    assert first["reference"] == "Patient/1"
    assert "reference" not in second
