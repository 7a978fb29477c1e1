"""Compares some resources at a time: what each should have in the legacy system, against what is there.

The ledger is asked before and after, so that a change under way is never taken for a difference. It decides nothing
about what is written, and writes nowhere.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from worker.asking import Asking as Answers
from worker.ends import OF_THE_VERSION, Again, stop_for
from worker.errors import BadResource, MedplumUnavailable, Unmappable
from worker.ledger import Ledger
from worker.ledger.reconciling import Finding, Mend, Standing, Verdict
from worker.ledger.values import Hint, Keys, LinkState, Source
from worker.legacy import Collection, Hit, Listed
from worker.links.asking import CALL_S, TRIES, Asking
from worker.mapping import Absent as MappedAbsent
from worker.mapping import Context, Mapped, Route, Routes, Skip, Unsupported
from worker.medplum import Absent, Deleted, Present, Priority, Read
from worker.medplum.marked import TEST_RULE, is_test
from worker.medplum.resource import model
from worker.plan import THERE, Step, plan, references
from worker.reconcile.judging import Compared, Seen, judged, overlaid
from worker.reconcile.looking import Eyes, first_key

FRESH_S = 30.0  # a notification takes so long at most, as long as Medplum's first tries arrive
CREATES_S, LOOK_AGAIN_S = 5.0, 0.1  # how long creates under way are waited for, before a record is called nobody's
LISTED = "listed"  # the count of records that the legacy system listed
RESOURCES = "resources"  # the count of resources that were looked at, beside those of records by verdict

Wanted = Mapped | Skip | MappedAbsent | Unsupported


@dataclass(frozen=True, slots=True)
class Untold:
    """A resource cannot be judged, and why; `passes` says that it will be by itself."""

    why: str
    passes: bool = False


@dataclass(slots=True)
class Told:
    """What came of some resources, on its way into the ledger."""

    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    marks: dict[str, tuple[object, ...]] = field(default_factory=dict)
    hints: list[Hint] = field(default_factory=list)  # what the ledger had not heard of, of what is found

    def note(self, found: Finding, standing: Standing | None = None) -> None:
        """Take one in: what is equal or kept is only counted."""
        if found.verdict in {Verdict.EQUAL, Verdict.KEPT}:
            self.count(found.resource_type, found.verdict)
            return
        self.findings.append(found)
        if standing is not None:
            self.marks[standing.reference] = standing.mark

    def count(self, resource_type: str, name: str, number: int = 1) -> None:
        self.counts.setdefault(resource_type, Counter())[str(name)] += number


@dataclass(frozen=True, slots=True)
class Work:
    """One resource on its way through a comparison."""

    reference: str
    route: Route[Any]
    read: Read
    standing: Standing
    wanted: Wanted | Untold
    steps: tuple[Step, ...] = ()


class Comparing:
    """Both systems and the ledger, as a comparison uses them."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        routes: Routes,
        asking: Asking,
        medplum_base_url: str,
        threads: int,
        fresh_s: float = FRESH_S,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._ledger, self._routes, self._asking = ledger, routes, asking
        self._base_url, self._threads, self._fresh_s, self._sleep = medplum_base_url, threads, fresh_s, sleep
        self._eyes = Eyes(asking)

    def compare(self, resource_type: str, chosen: Sequence[str]) -> Told:
        """Compare resources, each as a whole.

        Raises:
            ApiSilent, MedplumError, LedgerUnavailable: it broke off; nothing is told of them.
        """
        told, route = Told(), self._routes[resource_type]
        told.count(resource_type, RESOURCES, len(chosen))
        before = self._ledger.standings(chosen)  # first of all: what changes from here on shows
        reads = self._reads(chosen)
        with ThreadPoolExecutor(self._threads) as threads:
            wanted = threads.map(lambda each: self._wanted(route, reads[each], before[each]), chosen)
            works = [
                self._work(route, reads[each], before[each], want) for each, want in zip(chosen, wanted, strict=True)
            ]
            keys = self._keys(works)
            compared = [(work, self._step(work, step, keys)) for work in works for step in work.steps]
            seen = threads.map(lambda one: self._look(one[1], keys), compared)
            looked = [(work, replace(one, seen=saw)) for (work, one), saw in zip(compared, seen, strict=True)]
        looked = self._without_owned(looked)
        now = self._asking.medplum.server_time() or datetime.now(UTC)
        for work in works:
            self._tell_of_all(work, told)
        for work, one in looked:
            for found in judged(resource_type, work.reference, one):
                told.note(overlaid(found, work.standing, self._fresh(work, now)), work.standing)
        told.hints += [hint for work in works if work.reference in told.marks and (hint := _unheard(work))]
        return told

    def strangers(self, resource_type: str, collection: Collection, hits: Iterable[Hit], *, run: int) -> Told:
        """Tell of the records of one page of a list those that no link owns, and that were not told already."""
        told, by_key = Told(), {first_key(hit.keys): hit for hit in hits if not collection.is_gone(hit.record)}
        told.count(resource_type, LISTED, len(by_key))
        if not by_key:
            return told
        free, open_creates = self._free(collection, sorted(by_key))
        free -= self._ledger.told_keys(run, collection.name, sorted(free))
        with ThreadPoolExecutor(self._threads) as threads:
            there = threads.map(lambda key: self._eyes.is_there(collection, by_key[key].keys), sorted(free))
            free = {key for key, is_there in zip(sorted(free), there, strict=True) if is_there}
        for key in sorted(free):
            found = Finding(resource_type, Verdict.EXTRA, collection.name, key=key, mend=Mend.PERSON)
            words = "only the legacy system has it: link it by `reverse-sync links import`, or remove it by hand"
            if open_creates:
                words = "a create has no answer yet, and may have made it"
                found = replace(found, verdict=Verdict.IN_FLIGHT, mend=Mend.NOTHING)
            told.note(replace(found, detail=words))
        return told

    def under(
        self, resource_type: str, collection: Collection, name: str, parents: Sequence[Keys], *, run: int
    ) -> tuple[Told, int]:
        """Do so for all that is listed under some parents. Returns how many records those are as well."""
        with ThreadPoolExecutor(self._threads) as threads:
            listed = list(threads.map(lambda keys: self._eyes.all_under(collection, {name: keys}), parents))
        hits = [hit for some in listed if not isinstance(some, str) for hit in some]
        told = self.strangers(resource_type, collection, hits, run=run)
        for why in sorted({some for some in listed if isinstance(some, str)}):
            told.note(_unlisted(resource_type, collection, why))
        return told, len(hits)

    def page(self, collection: Collection, place: str) -> Listed | str:
        """Read one page of a list, or say why that cannot be."""
        return self._eyes.page(collection, {}, place)

    def unlisted(self, resource_type: str, collection: Collection, why: str) -> Told:
        """Tell that a list was not answered: what only the legacy system has is not known."""
        told = Told()
        told.note(_unlisted(resource_type, collection, why))
        return told

    def _reads(self, chosen: Sequence[str]) -> dict[str, Read | Untold]:
        try:
            return dict(self._asking.states(chosen))
        except BadResource:  # one of them spoils the page: each alone
            return {each: self._read(each) for each in chosen}

    def _read(self, reference: str) -> Read | Untold:
        try:
            return self._asking.states([reference])[reference]
        except BadResource as bad:
            return Untold(f"what Medplum has there is no FHIR resource: {bad}")

    def _wanted(self, route: Route[Any], read: Read | Untold, standing: Standing) -> Wanted | Untold:
        """Say what the legacy system should hold of a resource as it is, as a sync would."""
        match read:
            case Untold():
                return read
            case Deleted():
                kept = Skip("deleted in Medplum; this route keeps what it wrote")
                return kept if route.deleted == "keep" else MappedAbsent("deleted in Medplum")
            case Absent():
                return _of_expunged(route)
            case Present() if not standing.links and is_test(read.body):
                return Skip(TEST_RULE)
        return self._mapped_patiently(route, read)

    def _mapped_patiently(self, route: Route[Any], read: Present) -> Wanted | Untold:
        """Map a resource; where Medplum does not answer what the mapping asks, wait and ask again."""
        for attempt in range(1, TRIES + 1):
            try:
                return self._mapped(route, read)
            except MedplumUnavailable as away:
                self._asking.wait(away.retry_after_s, attempt, away)
            except Again as again:
                return Untold(str(again), passes=True)
            except OF_THE_VERSION as refusal:
                stop = stop_for(refusal)
                return Untold(f"{stop.reason}: {stop}")
        raise AssertionError("unreachable")

    def _mapped(self, route: Route[Any], read: Present) -> Wanted:
        answers = Answers(
            self._asking.medplum,
            note=lambda on, kind: False,
            left_s=lambda what: CALL_S,
            priority=Priority.CATCH_UP,
        )
        resource = model(read.body, route.type)
        ctx = Context.of(resource, zone=route.to.api.zoneinfo, medplum=self._base_url)
        return answers.mapped(route, resource, ctx)

    def _work(self, route: Route[Any], read: Read | Untold, standing: Standing, wanted: Wanted | Untold) -> Work:
        held = Absent(standing.reference, datetime.now(UTC)) if isinstance(read, Untold) else read
        work = Work(standing.reference, route, held, standing, wanted)
        if isinstance(wanted, Untold | Skip | Unsupported):
            return work
        steps = plan(
            wanted.records if isinstance(wanted, Mapped) else (),
            standing.links,
            (),
            now=datetime.min.replace(tzinfo=UTC),
            is_written=lambda digest, record: True,  # here nothing is written: what is there is looked at
            moved="replace",
            restored=route.restored,
        )
        slots = {step.slot for step in steps}
        buried = [Step(None, each.slot, link=each) for each in standing.links if each.slot not in slots]
        return replace(work, steps=(*steps, *(step for step in buried if _has_a_grave(step))))

    def _keys(self, works: Sequence[Work]) -> Mapping[str, Keys]:
        named, under = references([step for work in works for step in work.steps])
        return self._ledger.keys_of(sorted(named), buried=sorted(under - named)) if named | under else {}

    def _step(self, work: Work, step: Step, keys: Mapping[str, Keys]) -> Compared:
        name = step.record.collection.name if step.record else step.link.collection if step.link else ""
        collections = {each.name: each for each in work.route.collections}
        collection = step.record.collection if step.record else collections.get(name, work.route.to)
        if step.record is None:
            return Compared(step, collection, None)
        lacking = next((each for each in sorted(step.record.references()) if each not in keys), "")
        if lacking:
            return Compared(step, collection, None, lacking)
        try:
            return Compared(step, collection, step.record.resolve(keys))
        except Unmappable as refusal:
            return Compared(step, collection, None, seen=Seen(why=str(refusal)))

    def _look(self, compared: Compared, keys: Mapping[str, Keys]) -> Seen:
        step = compared.step
        if compared.seen.why:
            return compared.seen
        own = {} if step.link is None else _known(step.link.parents, keys)
        ought = {} if step.record is None else _known(step.record.parents, keys)
        return self._eyes.look(compared, ought, own)

    def _without_owned(self, looked: Sequence[tuple[Work, Compared]]) -> list[tuple[Work, Compared]]:
        """Leave out of the other records that agree those that a link owns, or that a create under way has made."""
        by_collection: dict[str, tuple[Collection, set[str]]] = {}
        for _, one in looked:
            by_collection.setdefault(one.collection.name, (one.collection, set()))[1].update(one.seen.others)
        free = {
            name: self._free(collection, sorted(keys)) if keys else (set[str](), False)
            for name, (collection, keys) in by_collection.items()
        }
        return [
            (work, replace(one, seen=_owned_left_out(one.seen, *free[one.collection.name]))) for work, one in looked
        ]

    def _free(self, collection: Collection, keys: Sequence[str]) -> tuple[set[str], bool]:
        """Tell which records no link owns, once the creates that were under way are answered; and whether they are."""
        open_creates = self._ledger.open_creates(collection.name)
        free = set(keys) - set(self._ledger.owners(collection.name, keys))
        ends_at = time.monotonic() + CREATES_S
        while free and open_creates and time.monotonic() < ends_at:
            self._sleep(LOOK_AGAIN_S)
            open_creates &= self._ledger.open_creates(collection.name)
            free -= set(self._ledger.owners(collection.name, sorted(free)))
        return free, bool(open_creates)

    def _tell_of_all(self, work: Work, told: Told) -> None:
        """Tell of a resource of which nothing is compared record by record."""
        name = work.route.type
        match work.wanted:
            case Untold(why, passes):
                verdict = Verdict.IN_FLIGHT if passes else Verdict.UNREADABLE
                mend = Mend.NOTHING if passes else Mend.PERSON
                found = Finding(name, verdict, work.route.to.name, work.reference, detail=why, mend=mend)
                told.note(overlaid(found, work.standing, ""), work.standing)
            case Skip() | Unsupported():
                told.count(name, Verdict.KEPT, max(1, len(work.standing.links)))

    def _fresh(self, work: Work, now: datetime) -> str:
        """Say that Medplum changed a moment ago, where the ledger has not settled that yet."""
        read = work.read
        if isinstance(read, Absent) or read.last_updated is None:
            return ""
        is_settled = isinstance(read, Present) and work.standing.applied_version == read.version_id
        is_fresh = self._fresh_s > 0 and now - read.last_updated < timedelta(seconds=self._fresh_s)
        return "Medplum changed it a moment ago" if is_fresh and not is_settled else ""


def _unheard(work: Work) -> Hint | None:
    """Give what was read as a hint, where the ledger has not settled it: so it tells where that was heard of."""
    match work.read:
        case Present() as read if read.version_id != work.standing.applied_version:
            return Hint(read.reference, read.version_id, read.last_updated, author=read.author, source=Source.RECONCILE)
        case Deleted() as read if work.standing.applied_version is not None:
            return Hint(read.reference, None, read.last_updated, "delete", source=Source.RECONCILE)
    return None


def _unlisted(resource_type: str, collection: Collection, why: str) -> Finding:
    words = f"what only the legacy system has cannot be told: {why}"
    return Finding(resource_type, Verdict.UNREADABLE, collection.name, detail=words, mend=Mend.PERSON)


def _of_expunged(route: Route[Any]) -> Wanted | Untold:
    match route.expunged:
        case "absent":
            return MappedAbsent("expunged in Medplum")
        case "keep":
            return Skip("expunged in Medplum; this route keeps what it wrote")
    return Untold(
        "Medplum shows neither the resource nor its deletion: was it expunged, or may this client not read it?"
    )


def _has_a_grave(step: Step) -> bool:
    link = step.link
    return link is not None and bool(link.keys) and link.state not in {*THERE, LinkState.HALF_REPLACED}


def _known(parents: Mapping[str, str], keys: Mapping[str, Keys]) -> dict[str, Keys]:
    return {name: keys[reference] for name, reference in parents.items() if reference in keys}


def _owned_left_out(seen: Seen, free: set[str], open_creates: bool) -> Seen:
    others = tuple(key for key in seen.others if key in free)
    if others and open_creates:
        return replace(seen, others=(), later="a create has no answer yet, and may have made another record")
    return replace(seen, others=others)
