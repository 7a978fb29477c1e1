"""A file as a value: what an attachment holds, named until it is sent. Pure: fetching it is the engine's.

A mapping names the file; comparing, the ledger and previews know it by that name alone, and its content is read from
Medplum when a write carries it. No content is compared: whether it is another one is told by the name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

_MARK: Final = "→ file"


@dataclass(frozen=True, slots=True)
class File:
    """The content of an attachment, in the body as base64."""

    binary: str = ""  # the id of the Binary that holds it
    version: str = ""  # of that Binary, where it was told: another content is another version
    data: str = field(default="", repr=False)  # as base64, where it stands in the resource itself
    base: str = field(
        default="", repr=False
    )  # of the server that an absolute reference names, until it is known to be ours

    def __str__(self) -> str:
        return f"→ Binary/{self.binary}" if self.binary else "→ file"

    @property
    def name(self) -> dict[str, str]:
        """Return what tells one content from another."""
        return {"binary": self.binary, "version": self.version, "data": self.data}


def marked(value: object) -> object:
    """Return a value as the ledger keeps it: each file by its name."""
    return _each(value, lambda file: {_MARK: file.name})


def unmarked(value: object) -> object:
    """Return a value as it was before `marked`."""
    if isinstance(value, Mapping):
        name = value.get(_MARK)
        if isinstance(name, Mapping):
            return File(**{part: str(said) for part, said in name.items()})
        return {member: unmarked(entry) for member, entry in value.items()}
    return [unmarked(entry) for entry in value] if isinstance(value, list) else value


def is_file(value: object) -> bool:
    """Tell whether a value is a file, or the mark of one."""
    return isinstance(value, File) or (isinstance(value, Mapping) and isinstance(value.get(_MARK), Mapping))


def filled(value: object, content: Callable[[File], str]) -> object:
    """Return a value with the content of each file in its place, as base64."""
    return _each(value, content)


def _each(value: object, of_file: Callable[[File], object]) -> object:
    if isinstance(value, File):
        return of_file(value)
    if isinstance(value, Mapping):
        return {name: _each(entry, of_file) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_each(entry, of_file) for entry in value]
    return value
