"""`links rebuild`: the crosswalk again, from the legacy keys that the resources in Medplum carry as identifiers.

An identifier can be edited by whoever may write in Medplum, so it is only where to look: the record is read back, and
linked if what the mapping calls its identity is this resource's. What cannot be told for certain is not linked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from worker.asking import Asking as Answers
from worker.ends import OF_THE_VERSION
from worker.errors import BadKey
from worker.ledger import Ledger
from worker.ledger.crosswalk import OWNED, Judged, LinkRow, NewLink, Verdict
from worker.ledger.values import Keys, Origin
from worker.legacy import Collection, Find
from worker.legacy.outcome import Header, keys_of
from worker.links.asking import CALL_S, Asking, chunks, identifiers_of
from worker.links.report import Report
from worker.mapping import Context, Mapped, MappedRecord, Route, Routes
from worker.medplum import Medplum, Present, Priority
from worker.medplum.resource import model, parse

AT_A_TIME = 50

Place = tuple[str, str]
"""A resource and a slot."""


class NotLinked(Exception):
    """Why a resource that carries a key is not linked. `holds`: a create for it would make a second record."""

    def __init__(self, why: str, *, holds: bool = True) -> None:
        super().__init__(why)
        self.why, self.holds = why, holds


class Lacking(Exception):
    """The record stands under another one that is not linked, or not yet."""


@dataclass(frozen=True, slots=True)
class Named:
    """One record that the mapping of a resource wants, and the keys that the resource carries: one of them is its."""

    reference: str
    key_name: str
    keys: frozenset[str] = field(repr=False)
    record: MappedRecord = field(repr=False)
    alone: bool  # the only record of its resource, so the one key is its

    @property
    def place(self) -> Place:
        return self.reference, self.record.slot

    @property
    def looked_at(self) -> MappedRecord:
        """The record with no more fields than it takes to find it and to tell that it is this resource's."""
        collection = self.record.collection
        names = set(collection.identity)
        if isinstance(collection.find_by, Find):
            names |= {*collection.find_by.match, *collection.find_by.names}
        fields = {name: value for name, value in self.record.fields.items() if name in names}
        return replace(self.record, fields=fields)


class Rebuilding:
    """One `links rebuild`."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        routes: Routes,
        asking: Asking,
        medplum_base_url: str,
        tell: Callable[[str], object] = lambda line: None,
    ) -> None:
        self._ledger, self._routes, self._asking, self._tell = ledger, routes, asking, tell
        self._medplum_base_url = medplum_base_url
        self._would: dict[str, Keys] = {}  # of those that would be linked, where nothing is written
        self.report = Report(tell)

    def run(self, types: Iterable[str], *, action: int | None = None) -> Report:
        """Judge every resource that carries a key; with an `action` begun in the ledger, link what is certain.

        Children come after their parents: what lacks one is looked at again as long as that brings anything.

        Raises:
            MedplumError, LegacyUnavailable, LedgerUnavailable: it broke off; what was linked stays, and is known.
        """
        lacking: dict[str, str] = {}
        for type_ in types:
            self._tell(f"looking through {type_}")
            for some in chunks(self._asking.everything(type_), AT_A_TIME):
                lacking |= self._take(some, action)
        before = -1
        while lacking and len(lacking) != before:
            before, left = len(lacking), dict[str, str]()
            for some in chunks(self._asking.present(lacking), AT_A_TIME):
                left |= self._take(some, action)
            lacking = left
        for reference, why in sorted(lacking.items()):
            self.report.note(reference, Judged(Verdict.REFUSED, why))
        return self.report

    def _take(self, some: Sequence[Present], action: int | None) -> dict[str, str]:
        """Take a few resources. Returns those that lack a parent, with the words: nothing of them is taken yet."""
        refused: dict[Place, NotLinked] = {}
        named = {present.reference: self._named(present, refused) for present in some}
        known = self._linked(named)
        keys = self._keys(each for records in named.values() for each in records)
        lacking: dict[str, str] = {}
        new: list[NewLink] = []
        for reference, records in named.items():
            try:
                new += self._links([each for each in records if each.place not in known], keys, refused)
            except Lacking as lack:
                lacking[reference] = str(lack)
                continue
            for each in records:
                if each.place in known:
                    self._note(each.place, _agrees(each, known[each.place]))
        self._judge(new, refused, action)
        for place, refusal in refused.items():
            self._note(place, Judged(Verdict.REFUSED, refusal.why))
        if action is not None:
            self._ledger.hold_unproved({place: refusal.why for place, refusal in refused.items() if refusal.holds})
        return lacking

    def _links(
        self, records: Sequence[Named], keys: Mapping[str, Keys], refused: dict[Place, NotLinked]
    ) -> list[NewLink]:
        made = []
        for each in records:
            try:
                made.append(self._link(each, keys))
            except NotLinked as refusal:
                refused[each.place] = refusal
        return made

    def _judge(self, new: Sequence[NewLink], refused: dict[Place, NotLinked], action: int | None) -> None:
        if not new:
            return
        if action is None:
            judged = self._ledger.judge(new)
            self._would |= {each.reference: each.keys for each in new}
        else:
            judged = self._ledger.link(new, origin=Origin.REBUILT, action=action)
        for each, said in zip(new, judged, strict=True):
            if said.verdict is Verdict.REFUSED:
                owned = said.why.startswith(OWNED)
                refused[each.reference, each.slot] = NotLinked(said.why, holds=owned)
            else:
                self._note((each.reference, each.slot), said)

    def _note(self, place: Place, judged: Judged) -> None:
        reference, slot = place
        self.report.note(f"{reference} ({slot})" if slot else reference, judged)

    def _named(self, present: Present, refused: dict[Place, NotLinked]) -> list[Named]:
        """Map a resource that carries keys; nothing where it carries none."""
        route = self._routes[present.reference.partition("/")[0]]
        try:
            return _mapped(present, route, self._medplum_base_url, self._asking.medplum)
        except NotLinked as why:
            refused[present.reference, ""] = why
        except OF_THE_VERSION as trouble:
            refused[present.reference, ""] = NotLinked(f"it cannot be mapped: {trouble}", holds=False)
        return []

    def _linked(self, named: Mapping[str, Sequence[Named]]) -> dict[Place, LinkRow]:
        rows = self._ledger.linked([reference for reference, records in named.items() if records])
        return {(row.reference, row.slot): row for row in rows}

    def _keys(self, named: Iterable[Named]) -> Mapping[str, Keys]:
        wanted = sorted({reference for each in named for reference in each.looked_at.references()})
        found = self._ledger.keys_of(wanted) if wanted else {}
        return {each: self._would[each] for each in wanted if each in self._would} | found

    def _link(self, named: Named, keys: Mapping[str, Keys]) -> NewLink:
        """Find the record that a resource names, and see that it is its own."""
        looked_at, collection = named.looked_at, named.record.collection
        if missing := sorted(looked_at.references() - set(keys)):
            raise Lacking(f"{missing[0]}, to which it points, is not linked")
        fields = looked_at.resolve(keys)
        record, found = self._record(named, collection, fields, looked_at.resolve_parents(keys))
        others = collection.differing(fields, record, collection.identity)
        if others:
            raise NotLinked(f"the record under its key is not its own: {', '.join(others)} differ")
        ordered = {name: found[name] for name in collection.keys}
        return NewLink(
            *named.place,
            collection.name,
            ordered,
            named.record.parents,
            identified_key=str(found[named.key_name]),
        )

    def _record(
        self,
        named: Named,
        collection: Collection,
        fields: Mapping[str, object],
        parents: Mapping[str, Keys],
    ) -> tuple[Mapping[str, object], Keys]:
        """Read the record under the key, or find it where the key alone does not tell or does not read it."""
        if collection.can_read and named.alone:
            try:
                return self._read(named, collection, parents)
            except BadKey:  # its path wants another key than the one that is known
                pass
        if not collection.can_find:
            raise NotLinked(f"{collection.name} can neither be read by this key nor found: use links import")
        hits = self._asking.legacy(collection, lambda left_s: collection.find(fields, parents, deadline_s=left_s))
        mine = [hit for hit in hits if str(hit.keys.get(named.key_name)) in named.keys]
        if len(mine) != 1:
            raise NotLinked(f"the legacy system finds {len(mine) or 'no'} record of it under its key")
        return mine[0].record, mine[0].keys

    def _read(
        self, named: Named, collection: Collection, parents: Mapping[str, Keys]
    ) -> tuple[Mapping[str, object], Keys]:
        [key] = named.keys
        by_key = {named.key_name: key}
        record = self._asking.legacy(collection, lambda left_s: collection.read(by_key, parents, deadline_s=left_s))
        if record is None:
            raise NotLinked("the legacy system has no record under its key")
        places = {name: name if isinstance(place, Header) else place for name, place in collection.key_places.items()}
        found = keys_of(record, places)
        if found is None:
            raise NotLinked("the record under its key does not tell all its keys: use links import")
        if str(found[named.key_name]) != key:
            raise NotLinked("the legacy system answered with a record of another key")
        return record, found


def _agrees(named: Named, link: LinkRow) -> Judged:
    """Compare a link that is there with what the resource carries. It stays as it is."""
    same = link.collection == named.record.collection.name and str(link.keys.get(named.key_name)) in named.keys
    return Judged(Verdict.KNOWN) if same else _OTHERWISE


_OTHERWISE = Judged(Verdict.REFUSED, "its link says another record than its identifier: see both")


def _mapped(present: Present, route: Route[Any], base_url: str, medplum: Medplum) -> list[Named]:
    identifier = route.identifier
    assert identifier is not None  # noqa: S101 - only routes that write a key back are asked for
    carried = frozenset(identifiers_of(parse(present.body)).get(identifier.system, ()))
    if not carried:
        return []
    resource = model(present.body, route.type)
    answers = Answers(medplum, note=lambda on, kind: False, left_s=lambda what: CALL_S, priority=Priority.CATCH_UP)
    mapped = answers.mapped(route, resource, Context.of(resource, zone=route.to.api.zoneinfo, medplum=base_url))
    if not isinstance(mapped, Mapped):
        raise NotLinked("it carries a key, and its mapping wants no record of it", holds=False)
    alone = len(mapped.records) == 1
    if alone and len(carried) > 1:
        raise NotLinked("it carries several keys of this system")
    return [_record(present.reference, record, identifier.key, carried, alone=alone) for record in mapped.records]


def _record(reference: str, record: MappedRecord, key: str, carried: frozenset[str], *, alone: bool) -> Named:
    key_name = key or record.collection.keys[0]
    if key_name not in record.collection.keys:
        raise NotLinked(f"{record.collection.name} has no key {key_name}", holds=False)
    return Named(reference, key_name, carried, record, alone)
