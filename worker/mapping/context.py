"""What a mapping knows besides its resource: whose it is, when it was written, the clinic's day and clock, and others.

Pure: `fetch`, `search` and `since` ask, and are answered by whoever runs the mapping.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar
from zoneinfo import ZoneInfo

from worker.errors import Unmappable
from worker.legacy.file import File
from worker.mapping.link import Link, link, relative
from worker.mapping.question import Answers, Asked, Fetch, History, Question, Search

if TYPE_CHECKING:
    from fhir.resources.R4B.reference import Reference
    from fhir.resources.R4B.resource import Resource
    from fhir_core.fhirabstractmodel import FHIRAbstractModel

R = TypeVar("R", bound="Resource")

Partial = Literal["refuse", "first"]

_YEAR_OR_MONTH = re.compile(r"(\d{4})(?:-(\d{2}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Context:
    """The surroundings of one mapping. `medplum` is the server's base URL, `zone` the legacy system's."""

    reference: str
    written: dt.datetime | None = field(repr=False)
    zone: ZoneInfo
    medplum: str
    resource: FHIRAbstractModel | None = field(default=None, repr=False)
    answers: Answers = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, resource: FHIRAbstractModel, *, zone: ZoneInfo | str, medplum: str, answers: Answers | None = None
    ) -> Context:
        """Make the context of one resource. `answers` is what is known of the questions that its mapping asks."""
        zone = ZoneInfo(zone) if isinstance(zone, str) else zone
        reference = f"{resource.get_resource_type()}/{getattr(resource, 'id', None)}"
        return cls(reference, _written(resource), zone, medplum.rstrip("/") + "/", resource, answers or {})

    def told(self, question: Question, answer: tuple[FHIRAbstractModel, ...]) -> Context:
        """Return the context in which a question is answered as well."""
        return replace(self, answers={**self.answers, question: answer})

    @property
    def fhir_id(self) -> str:
        """The resource's id."""
        return self.reference.partition("/")[2]

    @property
    def updated(self) -> dt.datetime:
        """When this version was written (`meta.lastUpdated`), aware. Raises Unmappable if it does not say."""
        if self.written is None:
            raise Unmappable("meta.lastUpdated is missing")
        return self.written

    def date(self, value: dt.date | str | None, *, partial: Partial = "refuse") -> dt.date | None:
        """Return the clinic's day: a moment is taken in the clinic's zone, a date is the day that it names.

        FHIR dates may be a year or a year and month (https://hl7.org/fhir/R4/datatypes.html#date), which arrive as text
        whatever the model's annotation says; `partial="first"` makes them the first day of that time.

        Raises:
            Unmappable: not a full date, and `partial` refuses.
        """
        match value:
            case None:
                return None
            case dt.datetime():
                return self._local(value).date()
            case dt.date():
                return value
            case _:
                return _first_day(value, partial)

    def datetime(self, value: dt.date | str | None, *, partial: Partial = "refuse") -> dt.datetime | None:
        """Return the moment on the clinic's clock, aware. `partial="first"` makes a day its first moment there.

        Raises:
            Unmappable: a date without a time, and `partial` refuses.
        """
        if value is None:
            return None
        if isinstance(value, dt.datetime):
            return self._local(value)
        day = value if isinstance(value, dt.date) else _first_day(value, partial)
        if partial == "refuse":
            raise Unmappable("not a full date and time")
        return dt.datetime.combine(day, dt.time(), self.zone)

    def fetch(self, reference: Reference | None, kind: type[R]) -> R | None:
        """Return the resource that a reference names, contained or from Medplum; None where it is deleted.

        A change to it makes this resource due, as long as its type has a route or is `part_of` one: a type that has
        neither brings no notification.

        Raises:
            Unmappable: the reference is logical, of another server, or names another type.
        """
        if reference is None:
            return None
        text = reference.reference or ""
        found = self._contained(text[1:]) if text.startswith("#") else self._fetched(reference)
        if found is not None and found.get_resource_type() != kind.get_resource_type():
            raise Unmappable("a reference to another type than is fetched")
        return found  # type: ignore[return-value]  # its type was compared just now

    def search(self, kind: type[R], by: str) -> list[R]:
        """Return all resources of a type that point here by a search parameter, in the order of their ids.

        Declare `part_of(kind, …)` beside the mapping: their changes make this resource due then.
        """
        return list(self._answer(Search(str(kind.get_resource_type()), by, self.reference)))  # type: ignore[arg-type]

    def since(self, test: Callable[[R], bool]) -> dt.datetime:
        """Return since when a test holds without a break, from the history; it does not drift as `updated` does.

        Raises:
            Unmappable: it does not hold for this version.
        """
        if self.resource is None or not test(self.resource):  # type: ignore[arg-type]
            raise Unmappable("what is looked for in the history does not hold for this version")
        since = self.updated
        for version in self._answer(History(self.reference)):
            written = _written(version)
            if written is None or written > since:
                continue  # of the same moment, or superseded by this version though it says a later one
            if not test(version):  # type: ignore[arg-type]
                break
            since = written
        return since

    def own(self, link: Link) -> Link:
        """Return the link by "Type/id": an absolute reference is one of ours only below our Medplum's base URL.

        Raises:
            Unmappable: the reference is of another server.
        """
        if not link.reference.startswith(("http://", "https://")):
            return link
        base = self.medplum + "fhir/R4/"
        if not link.reference.startswith(base):
            raise Unmappable("an absolute reference to another server has no legacy record")
        return Link(relative(link.reference.removeprefix(base)), link.key)

    def own_file(self, file: File) -> File:
        """Return the file without the server that it names, which has to be our Medplum.

        Raises:
            Unmappable: it is another one's; a Binary of the same id here is another file.
        """
        if file.base not in {"", self.medplum + "fhir/R4/"}:
            raise Unmappable("an attachment of another server")
        return replace(file, base="")

    def _contained(self, fragment: str) -> FHIRAbstractModel | None:
        inside = getattr(self.resource, "contained", None) or []
        found = next((each for each in inside if each.id == fragment), None)
        if found is None:
            raise Unmappable("a reference to a contained resource that is not there")
        return found  # type: ignore[no-any-return]

    def _fetched(self, reference: Reference) -> FHIRAbstractModel | None:
        named = link(reference)
        answer = self._answer(Fetch(self.own(named).reference)) if named is not None else ()
        return answer[0] if answer else None

    def _answer(self, question: Question) -> tuple[FHIRAbstractModel, ...]:
        if question not in self.answers:
            raise Asked(question)
        return self.answers[question]

    def _local(self, value: dt.datetime) -> dt.datetime:
        if value.utcoffset() is None:
            raise Unmappable("a time without its zone")
        return value.astimezone(self.zone)


def _written(resource: FHIRAbstractModel) -> dt.datetime | None:
    return getattr(getattr(resource, "meta", None), "lastUpdated", None)


def _first_day(text: str, partial: Partial) -> dt.date:
    parts = _YEAR_OR_MONTH.fullmatch(text)
    if parts is None or partial == "refuse":
        raise Unmappable("not a full date")
    try:
        return dt.date(int(parts[1]), int(parts[2] or 1), 1)
    except ValueError:
        pass
    raise Unmappable("not a date")
