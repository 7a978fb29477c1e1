"""One run over everything: the links by their ids, the resources by their times, the legacy system's own lists.

Each resource is compared once. The position goes into the ledger with what was found before it, so a run that was
killed goes on where it was; and no more than a page is held at a time, however many records there are.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import blake2b
from typing import Any

from worker.errors import LedgerError, MedplumUnavailable, RoutesInvalid
from worker.ledger import Ledger
from worker.ledger.reconciling import Finding, Mend, Page, Run, Verdict
from worker.ledger.values import Phase
from worker.legacy import Collection
from worker.links.asking import Asking, chunks
from worker.mapping import Routes
from worker.reconcile.comparing import Comparing, Told
from worker.reconcile.looking import first_key

AT_A_TIME = 100
PAGE = 1000  # of a search: many resources can have one time, and a page has to get beyond it
KNOWN_AT_A_TIME = 5000
PARENTS_AT_A_TIME = 50
FORGET_MOST, FORGET_PART = 100, 10  # links of a type that one run gives up: so many, or each tenth if that is more
FORGOTTEN = "forgotten"  # the count of those
TOO_MANY = (
    "many records are gone: was the legacy system restored? See `reverse-sync recovered --legacy`; else run it again"
)
BEYOND_S = 60.0  # what changes later than this after it began is not looked for; Medplum tells its clock late
_COUNT = ("_count", str(PAGE))
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)

Position = Mapping[str, Any]
Progress = Callable[[str, int, int | None], object]
"""Told what is looked through, how far it has come, and how much there is if that is known."""


class Kind(StrEnum):
    """One way to come by resources or records."""

    LINKS = "links"  # every link, by its id
    RESOURCES = "resources"  # those in Medplum that no link led to, by their times
    DELETED = "deleted"  # those that were deleted since a time
    SAMPLE = "sample"  # some of those that the ledger has heard of, drawn by a hash
    LIST = "list"  # what the legacy system lists: records that no link owns


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a run is to look at. A run that was broken off goes on with the same ones."""

    types: tuple[str, ...]
    sample: int | None = None
    seed: int = 0
    since: datetime | None = None
    since_said: str = ""  # as it was asked for: "2d" is another time at each call, and the same run
    repair: bool = False

    def told(self, routes: Routes) -> dict[str, Any]:
        """Give them as the ledger keeps them; another mapping is another run."""
        return {
            "types": {name: routes[name].version for name in self.types},
            "sample": self.sample,
            "seed": self.seed if self.sample else None,
            "since": None if self.since is None else self.since_said or _iso(self.since),
            "repair": self.repair,
        }


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a run: a type by one of the ways, or one collection's list."""

    kind: Kind
    type: str
    collection: Collection | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"{self.type}, {self.kind}" if self.collection is None else f"{self.collection.name}, {self.kind}"


def beginning(ledger: Ledger, arguments: Arguments) -> Position:
    """Give the position of a run that has not begun: links that are made meanwhile are met by their resources."""
    since = None if arguments.since is None else _iso(arguments.since)
    return {"stage": 0, "upto": ledger.last_link(), "since": since, "place": {}}


def compared_types(ledger: Ledger, routes: Routes, wanted: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Choose the types to compare, and say why others are left out: nothing is written for them.

    Raises:
        LedgerError: a type that was named has no route.
    """
    if unknown := sorted(set(wanted) - set(routes)):
        raise LedgerError(f"no route for {', '.join(unknown)}: the routes are {', '.join(routes) or 'none'}")
    rows = ledger.routes()
    chosen, left = [], {}
    for name in wanted or routes:
        phase = rows[name].phase if name in rows else None
        if phase in {Phase.LIVE, Phase.PAUSED} and rows[name].mapping_version != routes[name].version:
            left[name] = "this code maps by another version than the active one: run it with the workers' code"
        elif phase in {Phase.LIVE, Phase.PAUSED}:
            chosen.append(name)
        else:
            left[name] = f"the route is {phase or 'not known to the ledger: run `reverse-sync migrate`'}"
    return tuple(dict.fromkeys(chosen)), left


class Reconciliation:
    """One run, from its position on."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        routes: Routes,
        asking: Asking,
        comparing: Comparing,
        who: str,
        why: str | None = None,
        progress: Progress = lambda what, done, of: None,
    ) -> None:
        self._ledger, self._routes, self._asking, self._comparing = ledger, routes, asking, comparing
        self._who, self._why, self._progress = who, why, progress

    def run(self, run: Run, arguments: Arguments) -> Run:
        """Look through everything from the run's position on, and keep what is found page by page.

        Raises:
            ApiSilent, MedplumError, LedgerError: it broke off; the same command goes on from there.
        """
        if run.position["since"] is not None:  # that of its beginning
            arguments = replace(arguments, since=datetime.fromisoformat(run.position["since"]))
        stages, number = self._stages(arguments), int(run.position["stage"])
        lasting = {name: run.position[name] for name in ("upto", "since")}
        place: Position = run.position["place"]
        for stage in stages[number:]:
            for told, following in self._pages(stage, place, arguments, run):
                run = self._keep(run, told, {**lasting, "stage": number, "place": following}, arguments)
            number, place = number + 1, {}
            run = self._keep(run, Told(), {**lasting, "stage": number, "place": {}}, arguments)
        return self._ledger.end_run(run)

    def _stages(self, arguments: Arguments) -> list[Stage]:
        if arguments.sample is not None:
            return [Stage(Kind.SAMPLE, name) for name in arguments.types]
        kinds = [Kind.LINKS, Kind.RESOURCES, *([Kind.DELETED] if arguments.since else [])]
        stages = [Stage(kind, name) for name in arguments.types for kind in kinds]
        if arguments.since is None:  # a list tells nothing of when a record was changed
            listed = {each.name: (name, each) for name in arguments.types for each in self._routes[name].collections}
            stages += [
                Stage(Kind.LIST, name, each) for name, each in listed.values() if each.can_list and not each.known_as
            ]
        return stages

    def _pages(self, stage: Stage, place: Position, arguments: Arguments, run: Run) -> Iterator[tuple[Told, Position]]:
        match stage.kind:
            case Kind.LINKS:
                return self._links(stage, place, arguments, run)
            case Kind.RESOURCES:
                return self._resources(stage, place, arguments, run)
            case Kind.DELETED:
                return self._deleted(stage, place, arguments, run)
            case Kind.SAMPLE:
                return self._sample(stage, place, arguments)
            case Kind.LIST:
                return self._list(stage, place, run)

    def _keep(self, run: Run, told: Told, position: Position, arguments: Arguments) -> Run:
        """Keep a page; where it is to be mended, links whose records are gone are given up before."""
        given_up = [found for found in told.findings if found.mend is Mend.FORGET] if arguments.repair else []
        findings = [found for found in told.findings if found not in given_up]
        if given_up:
            now = self._ledger.standings(sorted({found.reference for found in given_up if found.reference}))
            for found in given_up:
                if found.reference is None or now[found.reference].mark != told.marks[found.reference]:
                    findings.append(_in_flight(found))
                else:
                    findings.append(self._given_up(run, told, found))
        page = Page(position, findings, told.counts, told.marks)
        run = self._ledger.keep_page(run, page, repair=arguments.repair)
        if arguments.repair and told.hints:
            given = {found.reference for found in findings if found.mend in {Mend.DUE, Mend.RELINK}}
            self._ledger.accept([hint for hint in told.hints if hint.reference in given])
        return run

    def _given_up(self, run: Run, told: Told, found: Finding) -> Finding:
        """Give a link up whose record is gone; no more than some of them, or a legacy system that was set back or
        emptied would be filled again by one command."""
        name = found.resource_type
        so_far = run.counts.get(name, {}).get(FORGOTTEN, 0) + told.counts[name][FORGOTTEN]
        if so_far >= max(FORGET_MOST, self._ledger.known_of_type(name) // FORGET_PART):
            return replace(found, mend=Mend.PERSON, detail=TOO_MANY)
        assert found.reference is not None  # noqa: S101 - what has a link has a resource
        why = self._why or "reconcile --repair"
        try:
            self._ledger.forget_record(found.reference, found.slot, who=self._who, why=why)
        except LedgerError:
            return _in_flight(found)
        told.count(name, FORGOTTEN)
        return found

    def _links(self, stage: Stage, place: Position, arguments: Arguments, run: Run) -> Iterator[tuple[Told, Position]]:
        """Compare the resources of all links that are there when it begins, each by its first link."""
        after, done, upto = int(place.get("after", 0)), int(place.get("done", 0)), int(run.position["upto"])
        while rows := self._ledger.linked_after(
            after, upto=upto, resource_type=stage.type, since=arguments.since, limit=AT_A_TIME
        ):
            after, done = rows[-1][0], done + len(rows)
            told = self._comparing.compare(stage.type, [reference for _, reference in rows])
            yield told, {"after": after, "done": done}
            self._progress(stage.name, done, None)

    def _resources(
        self, stage: Stage, place: Position, arguments: Arguments, run: Run
    ) -> Iterator[tuple[Told, Position]]:
        """Compare the resources that no link has led to. Those that change after it began are not looked for."""
        search = _Search(self._asking, stage.type, _Place.of(place, arguments.since, self._asking))
        done = int(place.get("done", 0))
        for some in search.chunks():
            linked = self._ledger.led_to(some, upto=int(run.position["upto"]), since=arguments.since)
            left = [each for each in some if each not in linked]
            done += len(some)
            told = self._comparing.compare(stage.type, left) if left else Told()
            yield told, {**search.place.told(), "done": done}
            self._progress(stage.name, done, None)

    def _deleted(
        self, stage: Stage, place: Position, arguments: Arguments, run: Run
    ) -> Iterator[tuple[Told, Position]]:
        """Compare those that were deleted since then and have a link that has not changed since."""
        search = _Search(self._asking, stage.type, _Place.of(place, arguments.since, self._asking), deleted=True)
        done = int(place.get("done", 0))
        for some in search.chunks():
            upto = int(run.position["upto"])
            linked = self._ledger.led_to(some, upto=upto) - self._ledger.led_to(some, upto=upto, since=arguments.since)
            done += len(some)
            told = self._comparing.compare(stage.type, sorted(linked)) if linked else Told()
            yield told, {**search.place.told(), "done": done}
            self._progress(stage.name, done, None)

    def _sample(self, stage: Stage, place: Position, arguments: Arguments) -> Iterator[tuple[Told, Position]]:
        """Compare the resources whose hash under the seed is smallest: the same ones each time."""
        size, after = arguments.sample or 0, str(place.get("after", ""))
        done = int(place.get("done", 0))
        drawn = [one for one in heapq.nsmallest(size, self._hashed(stage.type, arguments.seed)) if one[0] > after]
        for some in chunks(drawn[: max(0, size - done)], AT_A_TIME):
            done += len(some)
            told = self._comparing.compare(stage.type, [reference for _, reference in some])
            yield told, {"after": some[-1][0], "done": done}
            self._progress(stage.name, done, size)

    def _hashed(self, resource_type: str, seed: int) -> Iterator[tuple[str, str]]:
        after, key = "", str(seed).encode()
        while known := self._ledger.known_after(after, resource_type=resource_type, limit=KNOWN_AT_A_TIME):
            for each in known:
                yield blake2b(each.encode(), key=key, digest_size=16).hexdigest(), each
            after = known[-1]

    def _list(self, stage: Stage, place: Position, run: Run) -> Iterator[tuple[Told, Position]]:
        """Look through what the legacy system lists, under each parent where it lists by them."""
        collection = stage.collection
        if collection is None or collection.list_by is None:
            raise RoutesInvalid(f"{stage.name}: no list is declared")
        if not collection.list_by.under:
            yield from self._listed(stage, collection, place, run)
            return
        [(name, parent_type)] = collection.list_by.under.items()
        after, done = int(place.get("after", 0)), int(place.get("done", 0))
        while links := self._ledger.parents_after(after, resource_type=parent_type, limit=PARENTS_AT_A_TIME):
            after = links[-1].id
            told, seen = self._comparing.under(stage.type, collection, name, [link.keys for link in links], run=run.id)
            done += seen
            yield told, {"after": after, "done": done}
            self._progress(stage.name, done, None)

    def _listed(
        self, stage: Stage, collection: Collection, place: Position, run: Run
    ) -> Iterator[tuple[Told, Position]]:
        at, first, done = str(place.get("at", "")), place.get("first"), int(place.get("done", 0))
        while not place.get("end"):
            listed = self._comparing.page(collection, at)
            if isinstance(listed, str):
                yield self._comparing.unlisted(stage.type, collection, listed), {"end": True}
                return
            shown = first_key(listed.hits[0].keys) if listed.hits else None
            if shown is not None and shown == first:
                return  # an API that does not know the parameter gives the same page for ever
            at, first, done = listed.following, shown, done + len(listed.hits)
            told = self._comparing.strangers(stage.type, collection, listed.hits, run=run.id)
            place = {"at": at, "first": first, "done": done, "end": not at}
            yield told, place
            self._progress(stage.name, done, None)


@dataclass(slots=True)
class _Place:
    """How far a search by time has come: up to which moment, and who of that moment was handed out already."""

    since: datetime
    until: datetime
    shown: frozenset[str] = frozenset()

    @classmethod
    def of(cls, place: Position, since: datetime | None, asking: Asking) -> _Place:
        if "since" in place:
            since = datetime.fromisoformat(place["since"])
            return cls(since, datetime.fromisoformat(place["until"]), frozenset(place["shown"]))
        now = asking.medplum.server_time() or datetime.now(UTC)
        return cls(since or _BEGINNING, now + timedelta(seconds=BEYOND_S))

    def told(self) -> dict[str, Any]:
        return {"since": _iso(self.since), "until": _iso(self.until), "shown": sorted(self.shown)}


@dataclass(slots=True)
class _Search:
    """All of a type in Medplum, or all that is deleted, by time."""

    asking: Asking
    type: str
    place: _Place
    deleted: bool = False

    def chunks(self) -> Iterator[list[str]]:
        """Yield references, some at a time; `place` is then the one after them. Waits where Medplum asks for it."""
        quiet = 0
        while True:
            try:
                for page in self.asking.search(self.type, self._query()):
                    quiet = 0
                    for some in chunks(page.entries, AT_A_TIME):
                        yield self._new(some)
            except MedplumUnavailable as away:
                quiet += 1
                if quiet > 1 and (yield from self._moment()):
                    quiet = 0
                else:
                    self.asking.wait(away.retry_after_s, quiet, away)
            else:
                return

    def _moment(self) -> Generator[list[str], None, bool]:
        """Go through one moment by ids: where it has more resources than a page, no search by time gets beyond it.

        Returns False where Medplum does not answer that either: then it is away.
        """
        try:
            first = next(self.asking.search(self.type, (*self._query()[:-1], ("_count", "1")))).entries
            if first and first[0].last_updated is not None and first[0].last_updated > self.place.since:
                self.place = _Place(first[0].last_updated, self.place.until)
            asked = (("_lastUpdated", f"eq{_iso(self.place.since)}"), *self._deleted, ("_sort", "_id"), _COUNT)
            for page in self.asking.search(self.type, asked):
                for some in chunks(page.entries, AT_A_TIME):
                    yield self._new(some)
        except MedplumUnavailable:
            return False
        self.place = _Place(self.place.since + timedelta(milliseconds=1), self.place.until)
        return True

    def _new(self, entries: Sequence[Any]) -> list[str]:
        """Move on over some entries; who was handed out already is not among those that are given."""
        new = [each.reference for each in entries if each.reference not in self.place.shown]
        last = max(filter(None, (each.last_updated for each in entries)), default=self.place.since)
        same = {each.reference for each in entries if each.last_updated == last}
        if last > self.place.since:
            self.place = _Place(last, self.place.until, frozenset(same))
        else:
            self.place = _Place(self.place.since, self.place.until, self.place.shown | same)
        return new

    def _query(self) -> tuple[tuple[str, str], ...]:
        times = (("_lastUpdated", f"ge{_iso(self.place.since)}"), ("_lastUpdated", f"le{_iso(self.place.until)}"))
        return (*times, *self._deleted, ("_sort", "_lastUpdated"), _COUNT)

    @property
    def _deleted(self) -> tuple[tuple[str, str], ...]:
        return (("_deleted", "true"),) if self.deleted else ()


def _in_flight(found: Finding) -> Finding:
    return Finding(
        found.resource_type,
        Verdict.IN_FLIGHT,
        found.collection,
        found.reference,
        found.slot,
        detail="it was synced while it was compared",
    )


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
