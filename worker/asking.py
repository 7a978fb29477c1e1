"""Answers what a mapping asks about besides its own resource, by reading Medplum, and notes what was read.

A note goes into the ledger before the read that it is about: what changes later finds it, and this resource is looked
at again. It never decides what is written, and never writes to either system.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from worker.ends import Again, Fail
from worker.errors import BadResource, InvalidResource
from worker.ledger.linking import FETCH, SEARCH
from worker.mapping import Absent as MappedAbsent
from worker.mapping import Context, Mapped, Route, Skip, Unsupported, apply
from worker.mapping.question import Fetch, History, Question, Search
from worker.mapping.surroundings import asked
from worker.medplum import Absent, Deleted, Medplum, Present
from worker.medplum.answer import QueryRefused
from worker.medplum.quota import Priority
from worker.medplum.resource import model

if TYPE_CHECKING:
    from fhir_core.fhirabstractmodel import FHIRAbstractModel

FOUND_MOST, PAGE = 1000, 100
SEARCHES_MOST = 4  # of one question: each time somebody was found who was not noted before

Models = tuple["FHIRAbstractModel", ...]
Note = Callable[[Sequence[str], str], bool]
"""Notes references that are read, by "fetch" or "search", and tells whether one of them is new."""

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Asking:
    """Answers the questions of one attempt. `left_s` gives what is left of its budget, or ends it."""

    def __init__(self, medplum: Medplum, *, note: Note, left_s: Callable[[str], float], priority: Priority) -> None:
        self._medplum, self._note, self._left_s, self._priority = medplum, note, left_s, priority

    def mapped(
        self, route: Route[Any], resource: FHIRAbstractModel, ctx: Context
    ) -> Mapped | Skip | MappedAbsent | Unsupported:
        """Map a resource, as often as its mapping asks something new.

        Raises:
            Unmappable: as `apply`.
            Fail: it asks without end, or what it asks for is not there, not for us to see, or cannot be read.
            Again: what it searches for goes on changing, or the budget is over.
            MedplumUnavailable, MedplumRefused: as for a read.
        """
        try:
            return asked(partial(apply, route, resource), ctx, self.answer)
        except RecursionError:  # the mapping's own ends as Unmappable
            pass
        raise Fail("unmappable", f"def {route.function.__name__}(…): it asks for more and more, without end")

    def answer(self, question: Question) -> Models:
        """Answer one question."""
        match question:
            case Fetch(reference):
                return self._fetched(reference)
            case Search(resource_type, parameter, reference):
                return self._found(resource_type, parameter, reference)
            case History(reference):
                return self._versions(reference)

    def _fetched(self, reference: str) -> Models:
        self._note([reference], FETCH)
        try:
            read = self._medplum.read(reference, deadline_s=self._left_s("read"), priority=self._priority)
        except BadResource as bad:
            raise Fail("invalid", f"{reference}, which the mapping fetches: {bad}") from None
        match read:
            case Deleted():
                return ()
            case Absent():
                why = "which Medplum does not show to this client: is it there, and may the client read it?"
                raise Fail("absent", f"the mapping fetches {reference}, {why}")
        return (_model(read),)

    def _found(self, resource_type: str, parameter: str, reference: str) -> Models:
        """Search, and once more where somebody was found who was not noted: he may have changed before he was."""
        what = f"{resource_type} by {parameter}"
        for _ in range(SEARCHES_MOST):
            found = self._search(resource_type, parameter, reference, what)
            if not self._note(sorted(found), SEARCH):
                return tuple(_model(found[each]) for each in sorted(found))
        raise Again("medplum", f"{what}: others come while it is searched")

    def _search(self, resource_type: str, parameter: str, reference: str, what: str) -> dict[str, Present]:
        query = {parameter: reference, "_count": str(PAGE), "_sort": "_id"}
        found: dict[str, Present] = {}
        try:
            for page in self._medplum.search(
                resource_type, query, deadline_s=self._left_s("search"), priority=self._priority
            ):
                found |= {each.reference: each for each in page.entries if isinstance(each, Present)}
                if len(found) > FOUND_MOST:
                    raise Fail("unmappable", f"the mapping searches for {what}, and finds more than {FOUND_MOST}")
                self._left_s("search")
        except QueryRefused:
            raise Fail("unmappable", f"the mapping searches for {what}, which Medplum does not take") from None
        except BadResource as bad:
            raise Fail("invalid", f"the mapping searches for {what}: {bad}") from None
        return found

    def _versions(self, reference: str) -> Models:
        try:
            told = self._medplum.history(reference, deadline_s=self._left_s("history"), priority=self._priority)
        except BadResource as bad:
            raise Fail("invalid", f"the mapping looks at the history: {bad}") from None
        versions = [_past(version_id, body) for version_id, body in told]
        return tuple(sorted(versions, key=_written, reverse=True))


def _model(read: Present) -> FHIRAbstractModel:
    try:
        return model(read.body, read.reference.partition("/")[0])
    except (BadResource, InvalidResource) as bad:
        raise Fail("invalid", f"{read.reference}, which the mapping reads: {bad}") from None


def _past(version_id: str, body: bytes) -> FHIRAbstractModel:
    try:
        return model(body)
    except (BadResource, InvalidResource) as bad:
        raise Fail("invalid", f"version {version_id} of the history, which the mapping reads: {bad}") from None


def _written(version: FHIRAbstractModel) -> datetime:
    written = getattr(getattr(version, "meta", None), "lastUpdated", None)
    return written if isinstance(written, datetime) else _LONG_AGO
