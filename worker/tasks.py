"""The Celery tasks, two lines each, and what lets nothing foreign out of them. The work is elsewhere.

Exceptions and return values of tasks stand on Flower's pages, in its events and in Celery's log lines: chained
exceptions with the texts of libraries, and in these, values. A task here returns None and raises only our own words.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from celery import Task
from celery.exceptions import Retry
from celery.signals import worker_init, worker_shutdown, worker_shutting_down

from worker import log
from worker.errors import ReverseSyncError
from worker.process import Instance
from worker.publish import SYNC
from worker.queue import app
from worker.running import Running

__all__ = [
    "NeedsPerson",
    "NotReference",
    "TriedAgain",
    "WordsOnly",
    "ask_for_catch_up",
    "ask_for_watch",
    "ask_for_write_back",
    "catch_up",
    "dispatch",
    "free_leases",
    "sync",
    "watch_subscriptions",
    "witness",
    "write_back",
]

# FHIR: a type's name, and an id of letters, digits, - and ., which a path must not read as a folder.
_REFERENCE = re.compile(r"[A-Z][A-Za-z]{1,63}/(?!\.+$)[A-Za-z0-9.-]{1,64}", re.ASCII)

_log = log.get(__name__)


class TriedAgain(Retry):
    """What Flower shows in RETRY: it will be tried again without anybody's help, by dispatch. It publishes nothing."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words

    def __repr__(self) -> str:
        return f"TriedAgain({self.words!r})"

    def __reduce__(self) -> tuple[type[TriedAgain], tuple[str]]:
        return type(self), (self.words,)


class NeedsPerson(ReverseSyncError):
    """What Flower shows in FAILURE: `reverse-sync failed` lists it until a person acts."""


class NotReference(ReverseSyncError):
    """A message whose argument is not a reference: nobody of this project published it."""


class WordsOnly(Task):
    """The base of every task here: lets out None or a fresh exception of ours."""

    abstract = True
    throws = (NeedsPerson, NotReference)  # expected: Celery logs them without a traceback, below the level that we show

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        failure = self._failure(args, kwargs)
        if failure is not None:
            raise failure  # out here, where no other exception is being handled: it would become its context

    def _failure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception | None:
        try:
            self.run(*args, **kwargs)
        except (TriedAgain, NeedsPerson, NotReference) as wanted:
            return wanted.with_traceback(None)
        except ReverseSyncError as problem:
            _log.warning("a task will be tried again", task=self.name, error=problem)
            return TriedAgain(str(problem))
        except Exception as error:  # the one place that nothing foreign may pass
            _log.error("a task raised what nobody foresaw", task=self.name, error=error)
            return TriedAgain(f"{type(error).__name__}; the log of this worker has the place")
        return None


@app.task(base=WordsOnly, name="worker.tasks.sync")
def sync(reference: str) -> None:
    """Make the legacy records of one resource match it."""
    _tell(*running().sync(_checked(reference)))


@app.task(base=WordsOnly, name="worker.tasks.dispatch")
def dispatch() -> None:
    """Top the queue up from the ledger."""
    running().dispatch.top_up()


@app.task(base=WordsOnly, name="worker.tasks.free_leases")
def free_leases() -> None:
    """Free what dead processes hold."""
    running().dispatch.free_leases()


@app.task(base=WordsOnly, name="worker.tasks.witness")
def witness() -> None:
    """Write down outside the database how far the ledger has come."""
    running().keep_witness()


@app.task(base=WordsOnly, name="worker.tasks.ask_for_write_back")
def ask_for_write_back() -> None:
    """Have a worker put keys on Medplum resources, if there are any to put."""
    running().dispatch.write_back()


@app.task(base=WordsOnly, name="worker.tasks.write_back")
def write_back(resource_type: str) -> None:
    """Put the keys of some legacy records on their Medplum resources."""
    running().write_back(resource_type)


@app.task(base=WordsOnly, name="worker.tasks.ask_for_catch_up")
def ask_for_catch_up() -> None:
    """Have a worker read in Medplum what no notification told of, where it is time."""
    running().dispatch.catch_up()


@app.task(base=WordsOnly, name="worker.tasks.catch_up")
def catch_up(resource_type: str) -> None:
    """Read some of a type's time in Medplum."""
    running().catch_up(resource_type)


@app.task(base=WordsOnly, name="worker.tasks.ask_for_watch")
def ask_for_watch() -> None:
    """Have a worker look at the Subscriptions, if there are any of ours."""
    running().dispatch.watch()


@app.task(base=WordsOnly, name="worker.tasks.watch_subscriptions")
def watch_subscriptions(_: str) -> None:
    """Look at each Subscription of ours, and at the deliveries that fail."""
    running().watch_subscriptions()


_NEEDS_PERSON = frozenset({"failed", "held"})
_TRIED_AGAIN = frozenset({"again", "waiting", "suspect"})


def _tell(kind: str, words: str) -> None:
    if kind in _NEEDS_PERSON:
        raise NeedsPerson(words)
    if kind in _TRIED_AGAIN:
        raise TriedAgain(words)


def _checked(reference: object) -> str:
    if not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
        raise NotReference("the task's argument is not a reference: type/id")
    return reference


_running: list[Running] = []


def running() -> Running:
    """Return what this process holds; Celery's start-up has opened it."""
    return _running[-1]


@worker_init.connect(weak=False)
def _open(sender: Any, **_: Any) -> None:
    """Open this process before it takes its first message, or refuse to start."""
    if "thread" not in str(sender.pool_cls):
        sys.exit("refusing to start: the pool must be threads (-P threads, which is the default here)")
    writes = SYNC in sender.app.amqp.queues.consume_from
    try:
        opened = Running.worker(Instance.new("worker")) if writes else Running.dispatcher(Instance.new("dispatch"))
        _running.append(opened.__enter__())
    except ReverseSyncError as problem:
        sys.exit(f"refusing to start: {problem}")
    except Exception as error:  # Celery would log it and start a worker that holds nothing
        _log.critical("refusing to start", error=error)
        sys.exit(1)
    _log.info(
        "started",
        instance=opened.instance.id,
        threads=sender.concurrency,
        queues=sorted(sender.app.amqp.queues.consume_from),
    )


@worker_shutting_down.connect(weak=False)
def _stop(**_: Any) -> None:
    """At SIGTERM: the pool lets running calls end, however long they take; this makes them end soon."""
    for opened in _running:
        opened.stop()


@worker_shutdown.connect(weak=False)
def _close(**_: Any) -> None:
    while _running:
        _running.pop().__exit__(None, None, None)
