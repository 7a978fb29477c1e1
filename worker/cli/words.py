"""What the ledger says of all resources, in words for a person. Pure: plain values in, lines out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from worker.ledger.recovery import OURSELVES, Mode

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_LATE_DISPATCH_S = 30.0
_NO_HEARTBEAT_S = 20.0
_LISTED = 5  # of the times that are not proven: the status stays on one screen
_LATE_CATCH_UP_S = 3600.0

NEXT_BY_REASON = {
    "refused": "mend the mapping or the resource, then replay it",
    "unmappable": "mend the mapping or the resource, then replay it",
    "invalid": "mend the resource in Medplum: its next version is tried by itself",
    "parent": "see to the resource that it points to; once that has a legacy record, this one goes on by itself",
    "absent": "see whether the resource still exists and whether this client may read it",
    "poison": "it kills the process that works on it: see that process's log before you replay it",
    "defect": "this is a defect of the service: see the worker's log at the place that it names",
    "partial read": "widen the client's access policy in Medplum, then `reverse-sync resume` its type",
    "budget": "see whether these deletes are meant; a replay lets this one pass",
    "identity": "the legacy record under our key is somebody else's: see both before you replay it",
    "second record": "two legacy records stand for one resource: remove one of them by hand",
    "gone": "the legacy system no longer has the record: see why; if it is gone for good, `reverse-sync replay REF "
    "--create-again --why …` makes a new one",
    "unproved link": "see its record in both systems: `links import` names it, a replay lets a new one be made",
    "conflict": "see both sides (`show REF --words`): a replay writes ours over what is there, and keeps that",
    "half-replaced": "mend what it names, then replay it at once: until then the legacy system has no such record",
    "moved": 'declare moved="replace" on the route and replay it; or move the record in the legacy system by hand: '
    "`reverse-sync replay REF --create-again --why …` finds it where it is then, or makes a new one where it is gone",
    "restored": "see whether the old record can be brought back there; a replay makes a new one",
    "imported": "see both sides (`show REF --words`): a replay writes ours over what was imported",
    "found": "see the records that were found: link the right one by `reverse-sync links import`, then replay it",
    "exists": "see the record that is there: link it by `reverse-sync links import`, then replay it",
    "no find": "look by hand: if the record is there, link it by `reverse-sync links import`, then replay it",
    "no body": "look by hand: if the record is there, link it by `reverse-sync links import`, then replay it",
    "key": "a key of the record cannot stand in a path: see the record and its link, then replay it",
    "owned key": "two resources would share one legacy record: see both before you replay either",
    "collection": "declare the collection again, or move the record by hand, then replay it",
    "token": "mend its credentials (REVERSE_SYNC_SITE_…) and start the workers anew: what waits goes on by itself",
}
"""What a person can do, by the reason that the ledger gives."""

_DRIFT = {
    "differs": "differ",
    "missing": "missing",
    "extra": "extra",
    "duplicate": "duplicate",
    "unreadable": "unreadable",
}
_DECIDE = "see both sides before you replay it"


def advice(state: str, reason: str | None) -> str:
    """Say what a person can do about a mirror that failed or is held."""
    return NEXT_BY_REASON.get(reason or "", _DECIDE if state == "held" else "mend what it names, then replay it")


def ago(seconds: float) -> str:
    """Say how long ago something was."""
    return f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """Say how long something lasts, in its largest unit and the next."""
    whole = max(0, round(seconds))
    for size, unit, smaller, small_unit in ((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {small_unit}"
    return f"{whole // _MINUTE} min {whole % _MINUTE} s" if whole >= _MINUTE else f"{whole} s"


def count(number: int, one: str, more: str = "") -> str:
    """Say a number of things."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def of_status(status: Mapping[str, Any]) -> Iterator[str]:
    """Tell the status in a few lines, the last of which say what to do."""
    changes = {**status["changes"], "purged": status["purged"]}
    terms = [f"{number:,} {name}" for name, number in changes.items() if number or name == "open"]
    holds = "" if status["identity_holds"] else "   DOES NOT ADD UP: keep a copy of the ledger and report this"
    yield f"accepted       {status['accepted']:,} = {' + '.join(terms)}{holds}"
    mirrors = [f"{number:,} {state}" for state, number in status["mirrors"].items() if number]
    syncing = f" ({status['syncing']:,} being synced now)" if status["syncing"] else ""
    yield f"resources      {' · '.join(mirrors) or 'none yet'}{syncing}"
    if status["unresolved_writes"]:
        yield f"unanswered     {count(status['unresolved_writes'], 'write')} whose outcome is not known yet"
    if status["left_behind"]:
        yield f"left behind    {count(status['left_behind'], 'record')} that the legacy API cannot delete"
    if status["to_identify"]:
        oldest_s = status["oldest_to_identify_seconds"] or 0
        yield f"write-back     {status['to_identify']:,} to do, oldest {span(oldest_s)}"
    if status["handed_back"]:
        types = ", ".join(f"{number:,} {name}" for name, number in sorted(status["handed_back"].items()))
        yield f"handed back    {types}, by workers whose mapping is not the active one"
    if status["bouncing"]:
        yield f"bouncing       {count(status['bouncing'], 'resource')} to which our own versions led to writes in a row"
    yield from _of_routes(status)
    oldest, dispatched = status["oldest_open_seconds"], status["last_dispatch_seconds"]
    yield f"oldest open    {'nothing is open' if oldest is None else f'since {span(oldest)}'}"
    yield f"last dispatch  {'never' if dispatched is None else ago(dispatched)}"
    yield from _of_subscriptions(status)
    if status.get("compared"):
        yield f"compared       {' · '.join(_compared(status['compared']))}"
    for mode in status.get("recovering", ()):
        yield f"recovering     {mode['restored']} restored to {mode['since'][:19]}Z, by {mode['who']}: {mode['why']}"
    for pause in status["paused"]:
        scope = "everything" if pause["scope"] == "*" else pause["scope"]
        yield f"paused         {scope}, by {pause['who']}: {pause['why']}"
    for line in _what_next(status):
        yield f"next           {line}"


def _of_routes(status: Mapping[str, Any]) -> Iterator[str]:
    """Tell of each route in one line, and of each time that is not proven in one."""
    routes = [each for each in status["routes"] if each["accepted"] or each["phase"] not in {"off", "retired"}]
    width = max((len(each["resource_type"]) for each in routes), default=0)
    for number, each in enumerate(routes):
        holds = "" if each["identity_holds"] else "   DOES NOT ADD UP"
        yield f"{'' if number else 'routes':<14} {each['resource_type']:<{width}}  {_of_route(each)}{holds}"
    yield from _of_windows("not proven", status["unproven"])
    yield from _of_windows("proven again", status["proven_lately"])


def _of_windows(what: str, windows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Tell of times that are or were in doubt, and why."""
    for number, window in enumerate(windows[:_LISTED]):
        begins, ends = window["from"][:19], window["to"][:19]
        times = f"{begins}Z" if begins == ends else f"{begins}Z to {ends}Z"
        yield f"{'' if number else what:<14} {window['resource_type']} {times}: {window['reason']}"
    if len(windows) > _LISTED:
        yield f"{'':<14} and {count(len(windows) - _LISTED, 'time')} more: --json has all"


def _of_route(each: Mapping[str, Any]) -> str:
    open_ones, failed = each["changes"]["open"], each["changes"]["failed"]
    settled = sum(each["changes"].values()) - open_ones - failed
    terms = [f"{settled:,} settled", *([f"{failed:,} failed"] if failed else []), f"{open_ones:,} open"]
    terms += [f"{each['purged']:,} purged"] if each["purged"] else []
    if each["phase"] in {"off", "retired"}:
        return f"{each['accepted']:,} = {' + '.join(terms)}; {each['phase']}"
    found = f", {each['found_by_catch_up']:,} found by catch-up" if each["found_by_catch_up"] else ""
    lag = "" if each["lag_seconds"] is None else f", lag {span(each['lag_seconds'])}"
    trouble = each["last_catch_up"].partition("; ")[2] if each["last_catch_up"] else ""
    proven = f"proven up to {ago(each['watermark_seconds'])}{f' ({trouble})' if trouble else ''}"
    return f"{each['accepted']:,} = {' + '.join(terms)}{found}{lag}; {proven}"


def _of_subscriptions(status: Mapping[str, Any]) -> Iterator[str]:
    """Tell how Medplum's Subscriptions stand, where one is in trouble: `reverse-sync subscriptions status` has all."""
    troubled, failing = status.get("subscriptions_in_trouble", 0), status.get("deliveries_failing", 0)
    if troubled:
        yield f"Subscriptions  {troubled:,} in trouble"
    if failing:
        gives_up_s = status["medplum_gives_up_seconds"] or 0
        yield f"not delivered  {count(failing, 'event')}; Medplum gives up on the first in {span(gives_up_s)}"


def _compared(types: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Say when types were last compared as a whole: those that are not as they should be, then the others together."""
    well = []
    for name, told in sorted(types.items()):
        kinds = [f"{told[kind]:,} {word}" for kind, word in _DRIFT.items() if told.get(kind)]
        if kinds:
            yield f"{name} {ago(told['seconds'])}: {', '.join(kinds)}"
        else:
            well.append(told["seconds"])
    if well:
        yield f"{count(len(well), 'type')} as they should be, within the last {span(max(well))}"


def _what_next(status: Mapping[str, Any]) -> Iterator[str]:
    mirrors = status["mirrors"]
    person = mirrors["failed"] + mirrors["held"]
    if person:
        yield f"{person:,} {'needs' if person == 1 else 'need'} a person: reverse-sync failed"
    if any(pause["scope"] == "*" and pause["who"] == OURSELVES for pause in status["paused"]):
        yield "the ledger was set back in time: reverse-sync recovered --why …"
    elif status["paused"]:
        yield "changes gather while paused: reverse-sync resume --why …"
    if status["handed_back"]:
        yield "mappings wait: reverse-sync activate --why … once all workers run the new code (see reverse-sync routes)"
    if status.get("subscriptions_in_trouble", 0):
        yield "changes may not be told of: reverse-sync subscriptions status, then check --end-to-end"
    if status["bouncing"]:
        yield "see that no mapping maps the key that is written back: the log of the workers names the resources"
    dispatched, heartbeat = status["last_dispatch_seconds"], status["worker_seconds"]
    if dispatched is None or dispatched > _LATE_DISPATCH_S:
        yield "nothing is dispatched: see that the processes dispatch, beat and broker of the Procfile run"
    late = [each for each, age_s in status["watermark_seconds"].items() if age_s > _LATE_CATCH_UP_S]
    if late and heartbeat is not None and heartbeat <= _NO_HEARTBEAT_S:
        yield f"{', '.join(late)}: nothing is proven since over an hour: reverse-sync catch-up says why"
    if heartbeat is None or heartbeat > _NO_HEARTBEAT_S:
        yield "no worker is alive: start worker and worker2 of the Procfile"
    elif mirrors["due"] and not person:
        yield f"{mirrors['due']:,} due, which the workers take by themselves"
    elif not person and not any(
        (status["changes"]["open"], status["bouncing"], status.get("subscriptions_in_trouble", 0))
    ):
        yield "nothing to do"


def of_modes(modes: Sequence[Mode]) -> list[dict[str, str | None]]:
    """Give the times after a restore that nobody has ended, as plain values."""
    return [
        {"restored": mode.kind.value, "since": mode.since.isoformat(), "who": mode.who, "why": mode.why}
        for mode in modes
    ]


def of_failed(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Tell what needs a person, one paragraph each."""
    if not rows:
        yield "nothing needs a person"
        return
    for row in rows:
        attempts = count(row["attempts"], "attempt")
        yield f"{row['reference']}  {row['state']}: {row['reason']}, since {row['since']}, {attempts}"
        yield f"    {row['detail']}"
    yield ""
    for reason, state in sorted({(row["reason"], row["state"]) for row in rows}):
        yield f"{reason}: {advice(state, reason)}"
    yield "details: reverse-sync show REF      again: reverse-sync replay REF…, or --all"
