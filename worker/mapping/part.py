"""A type that has no records of its own, but is part of what another one says. Pure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from worker.errors import Unmappable, where
from worker.mapping.context import Context
from worker.mapping.link import link

if TYPE_CHECKING:
    from fhir.resources.R4B.reference import Reference
    from fhir.resources.R4B.resource import Resource
    from fhir_core.fhirabstractmodel import FHIRAbstractModel

R = TypeVar("R", bound="Resource")

DECLARED_HERE = "__parts__"
PART_VERSION = "part"  # stands where the version of a mapping would: nothing is written by it


@dataclass(frozen=True, slots=True, eq=False)
class Part(Generic[R]):
    """What `part_of` declares."""

    model: type[R]
    owner: Callable[[R], Reference | None]
    source: str  # file and line

    @property
    def type(self) -> str:
        """The resource type."""
        return str(self.model.get_resource_type())

    def owned_by(self, resource: FHIRAbstractModel, ctx: Context) -> str | None:
        """Name the resource that this one is part of; None where it names none.

        Raises:
            Unmappable: the reference is none of ours, or the function failed; holds no value.
        """
        try:
            named = link(self.owner(resource))  # type: ignore[arg-type]  # read as this part's type
            return None if named is None else ctx.own(named).reference
        except Unmappable as refusal:
            failed = Unmappable(refusal.why, line=self._line)
        except Exception as error:
            failed = Unmappable(f"it failed with {type(error).__name__} at {where(error)}", line=self._line)
        raise failed  # outside of the handlers, so that no context holds what they caught

    @property
    def _line(self) -> str:
        return f"part_of({self.type}, …)"


Parts = Mapping[str, Part[Any]]
"""The parts by resource type."""


def part_of(model: type[R], owner: Callable[[R], Reference | None]) -> Part[R]:
    """Declare that a type has no records of its own: its changes make the resource due that `owner` names.

    It is beside the mapping that searches for it: `part_of(Coverage, lambda coverage: coverage.beneficiary)`.
    """
    caller = sys._getframe(1)
    part = Part(model, owner, f"{caller.f_code.co_filename}:{caller.f_lineno}")
    caller.f_globals.setdefault(DECLARED_HERE, []).append(part)
    return part
