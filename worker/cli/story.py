"""One resource's story in words: where it stands and why, what happened in order, what comes next and when. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import Any

from worker.cli.words import advice, count, span
from worker.ledger.identifying import BOUNCES_ALARM, WRITE_BACK

Row = Mapping[str, Any]
Moment = tuple[datetime, int, str]

_BECAUSE = {
    "legacy": "the legacy system did not take it",
    "medplum": "Medplum could not be asked",
    "medplum refused": "Medplum refuses this client",
    "unknown outcome": "a write had no answer and may still act",
    "gate": "the legacy system is given a rest",
    "budget": "the attempt ran out of time",
    "paused": "it is paused",
    "absent": "Medplum shows neither the resource nor its deletion",
    "stopping": "the worker was stopping",
    "lease lost": "another attempt took over",
    "other version": "a worker with another mapping than the active one handed it back",
    "withdrawn": "a write was announced too late to be sent",
    "found": "a record that a create without an answer had made was found",
}


def of(told: Mapping[str, Any], *, paused: Sequence[str] = ()) -> Iterator[str]:
    """Tell what `Ledger.show` says of one resource; `paused` are the scopes that stand still."""
    now = _time(told["at"])
    mirror = told["mirror"]
    yield f"{told['reference']} is {_state(mirror)}. Times are UTC; it is {now:%Y-%m-%d %H:%M:%S}."
    yield from _indented("why", _why(told, now))
    yield from _indented("next", _next(told, now, paused))
    if mirror and mirror["bounces"] >= BOUNCES_ALARM:
        yield from _indented("alarm", _bouncing(mirror["bounces"]))
    yield from _indented("restored", _recovering(told.get("recovering", ())))
    yield from _indented("records", _records(told))
    yield from _indented("opened", (f"{name}: {_printable(text)}" for name, text in told.get("sides", {}).items()))
    moments = sorted(_moments(told), key=lambda moment: moment[:2])
    day = ""
    for at, _, words in moments:
        if (today := f"{at:%Y-%m-%d}") != day:
            yield f"\n{today}"
            day = today
        yield f"  {at:%H:%M:%S}.{at.microsecond // 1000:03d}  {words}"


def _bouncing(bounces: int) -> Iterator[str]:
    yield f"{bounces} versions in a row that we wrote ourselves led to writes"
    yield "to do: see that the mapping of this type does not map the key that is written back"


def _indented(title: str, lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"{'' if number else title:9}{line}"


def _state(mirror: Row) -> str:
    if not mirror:
        return "not synced"
    return "being synced now" if mirror["syncing"] else str(mirror["state"])


def _why(told: Mapping[str, Any], now: datetime) -> Iterator[str]:
    mirror = told["mirror"]
    if not mirror:
        rules = {change["rule"] for change in told["changes"]} - {None}
        yield "; ".join(sorted(rules)) or "nothing was asked of it"
        return
    match mirror["state"]:
        case "current" if mirror["applied_version"]:
            version = _short(mirror["applied_version"])
            yield f"version {version} was read and settled {_since(mirror['applied_at'], now)}"
        case "current":
            yield f"what Medplum has was settled {_since(mirror['applied_at'] or mirror['since'], now)}"
        case "waiting":
            yield f"{mirror['waiting_for']}, to which it points, has no record yet ({_since(mirror['since'], now)})"
        case "failed" | "held":
            yield f"{mirror['reason']}: {mirror['detail']}"
        case "due" if mirror["attempts"]:
            tries = count(mirror["attempts"], "try", "tries")
            yield f"{_BECAUSE.get(mirror['reason'], mirror['reason'])}: {mirror['detail']} ({tries} so far)"
        case "due" if mirror["reason"] in _BECAUSE and mirror["not_before"]:
            yield f"{_BECAUSE[mirror['reason']]}: {mirror['detail']}"
        case "due":
            yield f"somebody asked for it {_since(mirror['due_at'], now)}"


def _next(told: Mapping[str, Any], now: datetime, paused: Sequence[str]) -> Iterator[str]:
    mirror = told["mirror"]
    if not mirror:
        yield "nothing: it has no route"
        return
    if mirror["state"] in {"failed", "held"}:
        yield f"nothing by itself{'' if mirror['state'] == 'held' else ', unless Medplum has a newer version'}"
        yield f"to do: {advice(mirror['state'], mirror['reason'])}"
        yield f"again: reverse-sync replay {told['reference']}"
        return
    standing = [scope for scope in paused if scope in {"*", told["reference"].partition("/")[0]}]
    if standing and mirror["state"] != "current":
        yield f"nothing while {'everything' if '*' in standing else standing[0]} is paused: reverse-sync resume --why …"
    elif mirror["syncing"]:
        yield f"the attempt that runs ends by {_time(mirror['lease_until']):%H:%M:%S}, or is taken over"
    elif mirror["state"] == "waiting":
        yield f"once {mirror['waiting_for']} has its legacy record; see reverse-sync show {mirror['waiting_for']}"
        yield f"looked at again all the same {_at(mirror['look_at'], mirror, now)}"
    elif mirror["state"] == "due":
        yield f"an attempt {_at(mirror['due_at'], mirror, now)}"
    elif mirror["look_at"]:
        yield f"looked at again {_at(mirror['look_at'], mirror, now)}: {_reason_to_look(told)}"
    else:
        yield "nothing until Medplum has a newer version"


def _recovering(modes: Sequence[Row]) -> Iterator[str]:
    for mode in modes:
        also = ": every create is looked up first" if mode["restored"] == "ledger" else ""
        yield f"the recovered mode is on, {mode['restored']} restored to {mode['since'][:19]}Z{also}"


def _reason_to_look(told: Mapping[str, Any]) -> str:
    hinted = any(change["kind"] == "delete" and change["disposition"] is None for change in told["changes"])
    if not hinted and told.get("recovering"):
        return "a system was restored"
    return "a delete was announced and the resource lives" if hinted else "a create was repeated and may have left two"


def _at(asked: str | None, mirror: Row, now: datetime) -> str:
    times = [_time(text) for text in (asked, mirror["not_before"]) if text]
    when = max(times, default=now)
    return f"at {when:%H:%M:%S}, in {span((when - now).total_seconds())}" if when > now else "within seconds"


def _since(text: str | None, now: datetime) -> str:
    return "" if text is None else f"{span((now - _time(text)).total_seconds())} ago"


def _records(told: Mapping[str, Any]) -> Iterator[str]:
    tries = [attempt for attempt in told["attempts"] if attempt["outcome"] == WRITE_BACK]
    for link in told["links"]:
        slot = f" ({link['slot']})" if link["slot"] else ""
        keys = ", ".join(f"{name} {key}" for name, key in link["keys"].items())
        under = "".join(f", under {parent}" for parent in link["parents"].values())
        why = f": {link['reason']}" if link["reason"] else ""
        yield f"{link['collection']}{slot} {keys}{under} — {link['state']}{why}"
        if written_back := _written_back(link, tries):
            yield f"  {written_back}"


def _written_back(link: Row, tries: Sequence[Row]) -> str:
    """Tell whether the record's key is on the Medplum resource, where the route wants it there."""
    if link["identify_at"] is None:
        return "the key is on the Medplum resource" if link["identified_key"] else ""
    if not link["identify_attempts"] or not tries:
        return "the key is still to be put on the Medplum resource"
    tried = count(link["identify_attempts"], "time")
    return f"the key is still to be put on the Medplum resource (tried {tried}: {tries[-1]['detail']})"


def _moments(told: Mapping[str, Any]) -> Iterator[Moment]:
    """Give everything that happened its time and its place among what has the same time."""
    numbers = {change["id"]: change["version_id"] for change in told["changes"]}
    details = {attempt["detail"] for attempt in told["attempts"]}
    for change in told["changes"]:
        yield from _of_change(change, numbers, details)
    for attempt in told["attempts"]:
        if attempt["outcome"] == WRITE_BACK:
            yield _time(attempt["ended_at"]), 5, f"write-back: {attempt['detail']}"
            continue
        if attempt["started_at"]:
            yield _time(attempt["started_at"]), 1, f"attempt {attempt['token']} begins"
        detail = f": {attempt['detail']}" if attempt["detail"] else ""
        yield _time(attempt["ended_at"]), 5, f"attempt {attempt['token']} ends: {attempt['outcome']}{detail}"
    for write in told["writes"]:
        yield _time(write["announced_at"]), 2, f"  {write['operation']} announced: {write['template']}"
        if write["answered_at"] or write["outcome"]:
            yield _time(write["answered_at"] or write["bound_at"]), 3, f"  {_answer(write)}"
        if said := told.get("words", {}).get(write["id"]):
            yield _time(write["answered_at"]), 3, f"    in its own words: {_printable(said)}"


def _answer(write: Row) -> str:
    late = ", late" if write["late"] else ""
    match write["outcome"]:
        case None:
            told = f"no answer: it may act until {_time(write['bound_at']):%H:%M:%S}"
        case "lapsed":
            told = "no answer: its time is over, and it can act no more"
        case "found":
            told = "no answer, but its record was found"
        case "withdrawn":
            told = "not sent"
        case outcome:
            told = f"answered{late}: {outcome}"
    key = f", key {write['key']}" if write["key"] else ""
    return f"{told}{key}{_paren(write['detail'])}"


def _of_change(change: Row, versions: Mapping[int, str | None], told: Set[str]) -> Iterator[Moment]:
    what = f"version {_short(change['version_id'])}" if change["version_id"] else "delete hint"
    more = f", {change['receipts']} times" if change["receipts"] > 1 else ""
    came = "found by reading" if change["source"] == "read" else f"{change['interaction']} by {change['source']}"
    yield _time(change["accepted_at"]), 0, f"{what} accepted: {came}{more}"
    if change["settled_at"]:
        by = versions.get(change["superseded_by"] or 0)
        rule = change["rule"] or (f"by version {_short(by)}" if by else "")
        more = "" if rule in told else _paren(rule)
        yield _time(change["settled_at"]), 4, f"{what} {change['disposition']}{more}"


def _printable(words: str) -> str:
    """Take out of a stranger's words whatever a terminal would obey."""
    return "".join(sign if sign.isprintable() else " " for sign in words)


def _short(version_id: str) -> str:
    return version_id[:8]  # enough to tell a UUID from its neighbours; --json has the whole


def _paren(words: str | None) -> str:
    return f" ({words})" if words else ""


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
