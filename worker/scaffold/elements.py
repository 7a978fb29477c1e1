"""Which elements the resources of a type carry, and how many of them. Pure; takes names alone, never a value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Path = tuple[str, ...]

LEFT_OUT = frozenset({"resourceType", "id", "meta", "text", "contained", "extension", "modifierExtension"})
"""What a mapping does not begin with; a narrative repeats the rest as HTML."""


@dataclass(frozen=True, slots=True)
class Elements:
    """How many of `looked_at` resources carry an element, by its path; of a list it does not count how many."""

    looked_at: int
    carried: Mapping[Path, int]

    @property
    def leaves(self) -> tuple[Path, ...]:
        """List the elements that have none inside, the most usual first."""
        inner = {path[:-1] for path in self.carried}
        return tuple(
            sorted((path for path in self.carried if path not in inner), key=lambda path: (-self.carried[path], path))
        )

    def share(self, path: Path) -> int:
        """Tell how many of a hundred resources carry an element; at least 1."""
        return max(1, round(100 * self.carried[path] / self.looked_at))


def seen(resources: Iterable[Mapping[str, Any]]) -> Elements:
    """Look through resources."""
    carried: Counter[Path] = Counter()
    looked_at = 0
    for resource in resources:
        looked_at += 1
        carried.update(set(_paths({name: value for name, value in resource.items() if name not in LEFT_OUT})))
    return Elements(looked_at, dict(carried))


def _paths(value: object, at: Path = ()) -> Iterator[Path]:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            if name.isidentifier() and not name.startswith("_") and name not in {"extension", "id"}:
                yield (*at, name)
                yield from _paths(entry, (*at, name))
    elif isinstance(value, list):
        for entry in value:
            yield from _paths(entry, at)
