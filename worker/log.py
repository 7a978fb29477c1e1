"""Log lines on stderr: JSON, or text for a person at a terminal. They never hold a value from a patient's record.

Our own lines say what their authors wrote. Everything foreign is taken apart first: an exception that is not ours
becomes its type and the places that it came through, because its text can hold a parameter, a URL or an input; a
foreign log line keeps its template, and of its arguments only what cannot be a value. Local variables are never shown.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import structlog

from worker.errors import ReverseSyncError

__all__ = ["RepeatLimit", "bound", "configure", "described", "get"]

Event = MutableMapping[str, Any]
Frames = list[str]

# Their lines name URLs with queries, commands with arguments, or statements with parameters below this level.
_QUIET = {
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "kombu": logging.WARNING,
    "amqp": logging.WARNING,
    "redis": logging.WARNING,
    "sqlalchemy": logging.WARNING,
    "alembic": logging.WARNING,
    "asyncio": logging.WARNING,
    "tornado.access": logging.WARNING,
    "uvicorn.access": logging.CRITICAL,  # the path of a request is somebody else's text
    "celery.redirected": logging.CRITICAL,
    "celery.worker.strategy": logging.WARNING,  # two lines a task: the ledger's attempts say more
    "celery.app.trace": logging.ERROR,
    "celery.worker.request": logging.WARNING,  # a periodic task's message that expired, which it may
    "celery.beat": logging.WARNING,  # "Sending due task" every two seconds
}

# Their arguments are names of queues, hosts and tasks, and numbers. Exceptions among them are still taken apart.
_PLAIN = ("celery", "kombu", "uvicorn", "flower")
_WARNING = re.compile(r"(\S+:\d+: \w+):")
_SHOWS_MESSAGE = re.compile(r"\bbody\b|\bcontents\b|\bmessage\b.*%", re.IGNORECASE | re.DOTALL)  # Celery, of strangers'
_LONGEST_ARGUMENT = 200
_DEEPEST_TRACE = 25


def configure(
    form: str = "json", *, process: str = "", level: int = logging.INFO, stream: TextIO | None = None
) -> None:
    """Send every line of this process, ours and foreign, through this module.

    Args:
        form: json, or text.
        process: what this process is, on every line: web, worker, dispatch, beat, console.
        level: the least that is shown.
        stream: stderr unless given: stdout belongs to commands that report.
    """
    renderer: Any = structlog.processors.JSONRenderer(default=_type_name, ensure_ascii=False)
    if form == "text":
        renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=_print_nothing)
    ours = _shared(process)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *ours, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*ours],
            processors=[_clean_record, structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(_Foreign(RepeatLimit()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, least))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "celery", "flower", "tornado"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = True
    _catch_what_nobody_caught()


def get(name: str, **bound: Any) -> Any:
    """Return the logger of a module: `log.get(__name__)`."""
    return structlog.stdlib.get_logger(name, **bound)


def bound(**fields: object) -> AbstractContextManager[object]:
    """Put these fields on every line of this thread within the `with`."""
    return structlog.contextvars.bound_contextvars(**fields)


def described(error: BaseException) -> dict[str, Any]:
    """Describe an exception without anything that it may hold: type, places, and words only if they are ours."""
    description: dict[str, Any] = {
        "type": f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    }
    if isinstance(error, ReverseSyncError):
        description["says"] = str(error)
    description["at"] = _places(error.__traceback__)
    if because := [type(cause).__qualname__ for cause in _causes(error)]:
        description["because"] = because
    return description


class RepeatLimit:
    """Lets a few lines of one kind through in a period, then counts them: a stranger cannot fill the disk."""

    def __init__(self, lines: int = 20, per_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines = lines
        self._per_s = per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[object, tuple[float, int]] = {}  # kind -> (begin of its period, lines within it)

    def allows(self, kind: object) -> tuple[bool, int]:
        """Say whether one more line of this kind may go out, and how many were held back before it."""
        now = self._clock()
        with self._lock:
            begin, count = self._kinds.get(kind, (now, 0))
            held_back = 0
            if now - begin >= self._per_s:
                held_back = max(0, count - self._lines)
                begin, count = now, 0
            self._forget(now)
            self._kinds[kind] = (begin, count + 1)
            return count < self._lines, held_back

    def _forget(self, now: float) -> None:
        if len(self._kinds) > 1000:  # noqa: PLR2004 - kinds come from source code, so this is never reached by honest use
            self._kinds = {kind: seen for kind, seen in self._kinds.items() if now - seen[0] < self._per_s}


class _Foreign(logging.Filter):
    """Takes foreign records apart before anything formats them, and limits repeated warnings of all."""

    def __init__(self, limit: RepeatLimit) -> None:
        super().__init__()
        self._limit = limit

    def filter(self, record: logging.LogRecord) -> bool:
        if not isinstance(record.msg, Mapping):  # ours come as mappings
            record.msg, record.args = _template(record), ()
        if record.levelno < logging.WARNING:
            return True
        said = record.msg.get("event") if isinstance(record.msg, Mapping) else record.msg
        allowed, held_back = self._limit.allows((record.name, record.levelno, said))
        if held_back and isinstance(record.msg, MutableMapping):
            record.msg["held_back"] = held_back
        elif held_back:
            record.msg = f"{record.msg} [{held_back} more lines like it were held back]"
        return allowed


def _template(record: logging.LogRecord) -> str:
    """Format a foreign record with those of its arguments that cannot be values; of an unknown library, none."""
    text = str(record.msg)
    plain = record.name.partition(".")[0] in _PLAIN and not _SHOWS_MESSAGE.search(text)
    if (
        record.name == "py.warnings"
    ):  # somebody called logging.captureWarnings; the words of a warning can hold an input
        place = _WARNING.match(str(record.getMessage()))
        return f"a library warns: {place.group(1)}" if place else "a library warns"
    if not record.args:
        return text if plain else text.partition("\n")[0] if _ours(record.name) else _first_line(text)
    arguments: Any = record.args
    if isinstance(arguments, Mapping):
        arguments = {key: _harmless(value, plain) for key, value in arguments.items()}
    else:
        arguments = tuple(_harmless(value, plain) for value in arguments)
    try:
        return " ".join((text % arguments).split())
    except (TypeError, ValueError, KeyError):  # %d for something that we replaced
        return text


def _ours(name: str) -> bool:
    return name.partition(".")[0] in {"worker", "webhook", "deploy"}


def _first_line(text: str) -> str:
    """asyncio and others append what went wrong below their first line."""
    return text.partition("\n")[0][:_LONGEST_ARGUMENT]


def _harmless(value: object, plain: bool) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if plain and isinstance(value, str):
        return _Bare(value if len(value) <= _LONGEST_ARGUMENT else value[:_LONGEST_ARGUMENT] + "…")
    return _Bare(str(value) if isinstance(value, ReverseSyncError) else _type_name(value))


class _Bare(str):
    """A text that %r shows without quotes, because it stands for something else."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _type_name(value: object) -> str:
    return f"<{type(value).__qualname__}>"


def _shared(process: str) -> list[Any]:
    """Return what happens to every line, ours and foreign."""

    def add_process(_: Any, __: str, event: Event) -> Event:
        if process:
            event["process"] = process
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        add_process,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _take_apart,
    ]


def _take_apart(_: Any, __: str, event: Event) -> Event:
    """Replace exceptions, wherever they stand in a line, by their descriptions."""
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    error = given[1] if isinstance(given, tuple) else given
    record = event.get("_record")
    if error is None and isinstance(record, logging.LogRecord) and record.exc_info:
        error = record.exc_info[1]
    if isinstance(error, BaseException):
        event["error"] = described(error)
    for key, value in list(event.items()):
        if key != "_record":
            event[key] = _shown(value)
    return event


def _shown(value: object) -> object:
    """Show plain values as they are and everything else by its type: an object's repr can hold anything."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, BaseException):
        return described(value)
    if isinstance(value, Mapping):
        return {str(key): _shown(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_shown(entry) for entry in value]
    return str(value) if isinstance(value, (datetime, Path)) else _type_name(value)


def _clean_record(_: Any, __: str, event: Event) -> Event:
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        record.exc_info = record.exc_text = record.stack_info = None
    event.pop("stack_info", None)
    return event


def _places(trace: TracebackType | None) -> Frames:
    frames = traceback.extract_tb(trace, limit=-_DEEPEST_TRACE)
    return [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]


def _short(path: str) -> str:
    for folder in ("/site-packages/", "/worker/", "/webhook/"):
        before, found, rest = path.rpartition(folder)
        if found and before is not None:
            return rest if folder == "/site-packages/" else folder[1:] + rest
    return path.rpartition("/")[2]


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen = {id(error)}
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _print_nothing(stream: TextIO, exc_info: Any) -> None:
    """Stand in for structlog's own tracebacks, which print values: ours is in the line already."""


def _catch_what_nobody_caught() -> None:
    """Give warnings and uncaught exceptions, which Python would print with their text, the same treatment."""

    def uncaught(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        get(__name__).critical("nobody caught this", error=error)

    def in_thread(given: threading.ExceptHookArgs) -> None:
        if given.exc_value is not None and not isinstance(given.exc_value, SystemExit):
            thread = given.thread.name if given.thread else None
            get(__name__).critical("nobody caught this", thread=thread, error=given.exc_value)

    def unraisable(given: Any) -> None:
        get(__name__).error("an object failed while it was cleared away", error=given.exc_value)

    def warned(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
    ) -> None:
        get(__name__).warning("a library warns", category=category.__name__, place=f"{_short(filename)}:{lineno}")

    sys.excepthook = uncaught
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable
    warnings.showwarning = warned
