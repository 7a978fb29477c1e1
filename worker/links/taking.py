"""`links import`: records that the legacy system already had are linked to their resources, not created again.

The file is read twice: first for lines that contradict each other, all of which are refused, because to link whichever
comes first could put one patient's record under another's name. Nothing is written to Medplum or the legacy system.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

from worker.ledger import Ledger
from worker.ledger.crosswalk import Judged, NewLink, Verdict
from worker.ledger.values import Origin
from worker.legacy import Collection
from worker.links.asking import Asking, chunks
from worker.links.report import Report
from worker.links.sheet import Line, Sheet
from worker.mapping import Routes

LINES_AT_A_TIME = 200


@dataclass(frozen=True, slots=True)
class Target:
    """Where a line's record is."""

    type: str
    collection: Collection


class Taking:
    """One `links import`."""

    def __init__(
        self, *, ledger: Ledger, routes: Routes, asking: Asking, tell: Callable[[str], object] = lambda line: None
    ) -> None:
        self._ledger, self._asking, self._tell = ledger, asking, tell
        self._names = {  # type → name → collection; a route works them out of its source each time
            name: {collection.name: collection for collection in route.collections} for name, route in routes.items()
        }
        self._parents = {name: held.parents for names in self._names.values() for name, held in names.items()}

    def run(self, sheet: Sheet, *, action: int | None = None) -> Report:
        """Judge every line; with an `action` begun in the ledger, link what is good, chunk by chunk.

        Raises:
            SheetInvalid: the file is not what it should be; nothing was linked.
            MedplumError, LedgerUnavailable: it broke off; the chunks before are linked, and known the next time.
        """
        twice = self._contradictions(sheet)
        report = Report(self._tell)
        for lines in chunks(sheet.lines(), LINES_AT_A_TIME):
            self._take(lines, twice, report, action)
        return report

    def _take(self, lines: Sequence[Line], twice: frozenset[int], report: Report, action: int | None) -> None:
        said: dict[int, Judged] = {}
        targets: dict[int, Target] = {}
        for line in lines:
            target = self._target(line)
            if isinstance(target, str):
                said[line.number] = Judged(Verdict.REFUSED, target)
            elif twice & set(_marks(line, target)):
                said[line.number] = Judged(
                    Verdict.REFUSED, "another line names the same resource and slot, or the same record"
                )
            else:
                targets[line.number] = target
        left = [line for line in lines if line.number in targets]
        references = self._references(left, targets, said)
        new = {
            line.number: _new(line, reference, targets[line.number].collection)
            for line in left
            if (reference := references.get(line.number))
        }
        said |= zip(new, self._judged(list(new.values()), action), strict=True)
        for line in lines:
            report.note(f"line {line.number}", said[line.number])

    def _judged(self, new: Sequence[NewLink], action: int | None) -> tuple[Judged, ...]:
        if not new:
            return ()
        if action is None:
            return self._ledger.judge(new)
        return self._ledger.link(new, origin=Origin.IMPORTED, action=action)

    def _contradictions(self, sheet: Sheet) -> frozenset[int]:
        """Find what stands in more than one line: eight bytes a mark, so that a million lines fit."""
        marks = array("Q")
        for line in sheet.lines():
            target = self._target(line)
            if not isinstance(target, str):
                marks.extend(_marks(line, target))
        ordered = sorted(marks)
        return frozenset(one for one, other in pairwise(ordered) if one == other)

    def _target(self, line: Line) -> Target | str:
        """Say where a line's record is, or why the line says nothing that can be."""
        if line.trouble:
            return line.trouble
        found = self._collection(line)
        if isinstance(found, str):
            return found
        collection = found.collection
        for kind, given, needed in (
            ("key", line.keys.keys(), set(collection.keys)),
            ("parent", line.parents.keys(), self._parents[collection.name]),
        ):
            if missing := sorted(needed - given):
                return f"{kind}.{missing[0]} is missing, which {collection.name} needs"
            if given - needed:
                return f"it gives a {kind} that {collection.name} does not have: {', '.join(sorted(needed)) or 'none'}"
        return found

    def _collection(self, line: Line) -> Target | str:
        types = [line.type] if line.type else [name for name, held in self._names.items() if line.collection in held]
        if not line.type and len(types) != 1:
            return "its type is not told: a column type, or a collection that one route alone writes to"
        type_, names = types[0], self._names.get(types[0])
        if names is None:
            return "its type has no route"
        if line.collection and line.collection not in names:
            return f"{type_} has no such collection: {', '.join(names)}"
        if not line.collection and len(names) > 1:
            return f"{type_} writes to several collections, name one: {', '.join(names)}"
        return Target(type_, names[line.collection] if line.collection else next(iter(names.values())))

    def _references(
        self, lines: Sequence[Line], targets: Mapping[int, Target], said: dict[int, Judged]
    ) -> dict[int, str]:
        """Find each line's resource in Medplum; those without one are refused."""
        named = [line for line in lines if line.reference]
        living = self._asking.living(line.reference for line in named)
        found = {line.number: line.reference for line in named if line.reference in living}
        said.update(
            (line.number, Judged(Verdict.REFUSED, "Medplum has no such resource, or does not show it to this client"))
            for line in named
            if line.reference not in living
        )
        by_type: dict[str, list[Line]] = {}
        for line in lines:
            if not line.reference:
                by_type.setdefault(targets[line.number].type, []).append(line)
        for type_, some in by_type.items():
            found |= self._by_identifier(type_, some, said)
        return found

    def _by_identifier(self, type_: str, lines: Sequence[Line], said: dict[int, Judged]) -> dict[int, str]:
        carrying = self._asking.carrying(type_, (line.identifier for line in lines))
        found: dict[int, str] = {}
        for line in lines:
            carriers = carrying[line.identifier]
            why = _ambiguous(carriers)
            if why:
                said[line.number] = Judged(Verdict.REFUSED, why)
            else:
                [found[line.number]] = carriers
        return found


def _ambiguous(carriers: Mapping[str, Sequence[str]]) -> str:
    if not carriers:
        return "no resource in Medplum carries this identifier"
    if len(carriers) > 1:
        return f"{len(carriers)} resources carry this identifier: {', '.join(sorted(carriers)[:3])}"
    [(reference, values)] = carriers.items()
    return f"{reference} carries several identifiers of this system: name it by reference" if len(values) > 1 else ""


def _new(line: Line, reference: str, collection: Collection) -> NewLink:
    keys = {name: line.keys[name] for name in collection.keys}
    return NewLink(reference, line.slot, collection.name, keys, line.parents)


def _marks(line: Line, target: Target) -> Iterable[int]:
    """Give two numbers that stand for the line's resource with its slot, and for its record."""
    whose = ("resource", target.type, line.reference or line.identifier, line.slot)
    which = ("record", target.collection.name, str(line.keys[target.collection.keys[0]]))
    return [int.from_bytes(blake2b(repr(each).encode(), digest_size=8).digest()) for each in (whose, which)]
