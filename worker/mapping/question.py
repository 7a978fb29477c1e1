"""What a mapping asks about besides its own resource: another resource, those that point here, its own history.

A mapping stays pure all the same: it does not read, it asks. What is not known yet is raised as `Asked`; whoever runs
the mapping finds the answer and runs it again. Nothing here reads anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fhir_core.fhirabstractmodel import FHIRAbstractModel


@dataclass(frozen=True, slots=True)
class Fetch:
    """The current state of one resource. Answered by one, or by none where it is deleted."""

    reference: str


@dataclass(frozen=True, slots=True)
class Search:
    """All resources of a type that point to a reference by a search parameter, in the order of their ids."""

    resource_type: str
    parameter: str
    reference: str


@dataclass(frozen=True, slots=True)
class History:
    """All versions of one resource that were not deletions, the newest first."""

    reference: str


Question = Fetch | Search | History

Answers = Mapping[Question, "tuple[FHIRAbstractModel, ...]"]
"""What is known so far."""


class Asked(BaseException):
    """A mapping asked what is not known yet. No error: a mapping that catches every Exception must not swallow it."""

    def __init__(self, question: Question) -> None:
        super().__init__(type(question).__name__)
        self.question = question
