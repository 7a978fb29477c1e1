"""What a mapping knows besides its resource: whose it is, when it was written, and the clinic's day and clock. Pure."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo

from worker.errors import Unmappable
from worker.mapping.link import Link, relative

if TYPE_CHECKING:
    from fhir_core.fhirabstractmodel import FHIRAbstractModel

Partial = Literal["refuse", "first"]

_YEAR_OR_MONTH = re.compile(r"(\d{4})(?:-(\d{2}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Context:
    """The surroundings of one mapping. `medplum` is the server's base URL, `zone` the legacy system's."""

    reference: str
    written: dt.datetime | None = field(repr=False)
    zone: ZoneInfo
    medplum: str

    @classmethod
    def of(cls, resource: FHIRAbstractModel, *, zone: ZoneInfo | str, medplum: str) -> Context:
        """Make the context of one resource."""
        written = getattr(getattr(resource, "meta", None), "lastUpdated", None)
        fhir_id = getattr(resource, "id", None)
        zone = ZoneInfo(zone) if isinstance(zone, str) else zone
        return cls(f"{resource.get_resource_type()}/{fhir_id}", written, zone, medplum.rstrip("/") + "/")

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

    def _local(self, value: dt.datetime) -> dt.datetime:
        if value.utcoffset() is None:
            raise Unmappable("a time without its zone")
        return value.astimezone(self.zone)


def _first_day(text: str, partial: Partial) -> dt.date:
    parts = _YEAR_OR_MONTH.fullmatch(text)
    if parts is None or partial == "refuse":
        raise Unmappable("not a full date")
    try:
        return dt.date(int(parts[1]), int(parts[2] or 1), 1)
    except ValueError:
        pass
    raise Unmappable("not a date")
