"""What comes of comparing one record: a table over what is wanted, what is linked and what was seen. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from worker.comparing import listed
from worker.ledger.reconciling import Finding, Mend, Standing, Verdict
from worker.ledger.values import Link, Operation
from worker.legacy import Collection
from worker.plan import THERE, Doubt, Step

GONE = "gone"  # the reason of a mirror that is held because its record is; to give that up is what it waits for
NO_LINK = "a record that agrees is there, and no link owns it: see `reverse-sync links`"
LIVES_AGAIN = "a record is there again that the sync had deleted"
UNWANTED = "its resource wants no record any more"
AS_DELETED = "it stands there as deleted"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the legacy system showed for one step."""

    record: Mapping[str, object] | None = field(default=None, repr=False)
    why: str = ""  # nothing can be told, and why
    others: tuple[str, ...] = field(default=(), repr=False)  # keys of records that agree, beside its own
    blind: str = ""  # why it cannot be told whether there are others
    later: str = ""  # the same, and it will be told by itself


@dataclass(frozen=True, slots=True)
class Compared:
    """One step with what is needed to judge it."""

    step: Step
    collection: Collection
    fields: Mapping[str, object] | None = field(repr=False)  # none: nothing is wanted, or a parent's key is lacking
    lacking: str = ""  # the resource whose record it needs first
    seen: Seen = field(default_factory=Seen)


def judged(resource_type: str, reference: str, compared: Compared) -> Iterator[Finding]:
    """Say what comes of one step: one finding, equal ones too, and one for each record that is too many."""
    step, seen, collection = compared.step, compared.seen, compared.collection
    first = Finding(resource_type, Verdict.EQUAL, collection.name, reference, step.slot)
    if seen.why:
        yield replace(first, verdict=Verdict.UNREADABLE, detail=seen.why, mend=Mend.PERSON)
    elif step.record is None:
        yield _unwanted(first, step, collection, seen)
    elif step.link is None or step.link.state not in THERE:
        yield _to_be_made(first, step, compared)
    else:
        yield _kept(first, step, step.link, compared)
        for key in seen.others:
            words = "another record agrees with it, and no link owns that: remove one of them by hand"
            yield replace(first, verdict=Verdict.DUPLICATE, key=key, detail=words, mend=Mend.PERSON)
    if seen.later:
        yield replace(first, verdict=Verdict.IN_FLIGHT, detail=seen.later)
    if seen.blind:
        words = f"whether there is a second record cannot be told: {seen.blind}"
        yield replace(first, verdict=Verdict.UNREADABLE, detail=words, mend=Mend.PERSON)


def overlaid(found: Finding, standing: Standing, fresh: str) -> Finding:
    """Say it in the ledger's words where the ledger knows why the two systems disagree. Equal stays equal.

    `fresh` says that Medplum changed a moment ago, and the notification may be on its way.
    """
    if found.verdict in {Verdict.EQUAL, Verdict.KEPT}:
        return found
    if standing.is_busy or fresh:
        why = standing.why if standing.is_busy else fresh
        return replace(found, verdict=Verdict.IN_FLIGHT, fields=(), detail=why, mend=Mend.NOTHING)
    if standing.needs_a_person and not (standing.reason == GONE and found.mend is Mend.FORGET):
        return replace(found, verdict=Verdict.PERSON, fields=(), detail=standing.why, mend=Mend.NOTHING)
    return found


def _unwanted(first: Finding, step: Step, collection: Collection, seen: Seen) -> Finding:
    """Nothing should be there: a record that is, is extra."""
    if not _is_there(collection, seen):
        return first
    if step.operation is not Operation.DELETE:
        if not collection.tells_deleted:  # it can be the deleted one itself
            return replace(first, verdict=Verdict.KEPT)
        return replace(first, verdict=Verdict.EXTRA, detail=LIVES_AGAIN, mend=Mend.RELINK)
    why = collection.unsupported_reason(Operation.DELETE)
    if why is not None:
        return replace(first, verdict=Verdict.KEPT, detail=f"left behind: {why}")
    return replace(first, verdict=Verdict.EXTRA, detail=UNWANTED, mend=Mend.DUE)


def _to_be_made(first: Finding, step: Step, compared: Compared) -> Finding:
    """A record is wanted and none is linked."""
    collection, seen = compared.collection, compared.seen
    if not step.undelete and (why := collection.unsupported_reason(Operation.CREATE)) is not None:
        return replace(first, verdict=Verdict.KEPT, detail=f"left behind: {why}")
    if _is_there(collection, seen) and collection.tells_deleted:
        return replace(first, verdict=Verdict.EXTRA, detail=LIVES_AGAIN, mend=Mend.RELINK)
    if compared.lacking:
        words = f"{compared.lacking}, to which it points, has no record"
        return replace(first, verdict=Verdict.MISSING, detail=words, mend=Mend.DUE)
    if seen.others:
        return replace(first, verdict=Verdict.EXTRA, key=seen.others[0], detail=NO_LINK, mend=Mend.PERSON)
    if step.doubt is Doubt.RESTORED:
        return replace(first, verdict=Verdict.MISSING, detail=str(step.doubt), mend=Mend.PERSON)
    return replace(first, verdict=Verdict.MISSING, mend=Mend.DUE)


def _kept(first: Finding, step: Step, link: Link, compared: Compared) -> Finding:
    """A record is wanted and linked."""
    collection, record = compared.collection, compared.seen.record
    if step.doubt is Doubt.OTHER_COLLECTION:
        return replace(first, verdict=Verdict.DIFFERS, detail=str(step.doubt), mend=Mend.PERSON)
    if compared.fields is None:
        words = f"{compared.lacking}, to which it points, has no record"
        return replace(first, verdict=Verdict.UNREADABLE, detail=words, mend=Mend.DUE)
    if record is None or not _is_there(collection, compared.seen):
        detail = AS_DELETED if record is not None else ""
        if collection.can_read:
            return replace(first, verdict=Verdict.MISSING, detail=detail, mend=Mend.FORGET)
        words = detail or "it was not found, and cannot be read by its key: look by hand"
        return replace(first, verdict=Verdict.MISSING, detail=words, mend=Mend.PERSON)
    parents = step.record.parents if step.record is not None else {}
    moved = [name for name in parents if parents[name] != link.parents.get(name)]
    names = (*collection.differing(compared.fields, record), *moved)
    if not names:
        return first
    mend, words = _how_to_write(collection, names)
    return replace(first, verdict=Verdict.DIFFERS, fields=tuple(sorted(names)), mend=mend, detail=words)


def _how_to_write(collection: Collection, names: tuple[str, ...]) -> tuple[Mend, str]:
    if others := [name for name in collection.identity if name in names]:
        return Mend.PERSON, f"the record under its key is somebody else's, or its {listed(others)} was edited: see both"
    if (why := collection.unsupported_reason(Operation.UPDATE)) is not None:
        return Mend.PERSON, f"the API cannot change it: {why}"
    return Mend.DUE, ""


def _is_there(collection: Collection, seen: Seen) -> bool:
    return seen.record is not None and not collection.is_gone(seen.record)
