"""What a legacy record says that we did not write: edits by others, and what an imported record said. `protocol.md` 11.

Pure. It names fields and never says a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from worker.legacy import Collection, Find
from worker.legacy.outcome import at

Fields = Mapping[str, object]


def edited(
    collection: Collection, names: Iterable[str], baseline: Fields, record: Fields, sent: Iterable[Fields]
) -> tuple[str, ...]:
    """Name the fields in which a record is not what the API last answered or gave back.

    Args:
        collection: whose way of writing values decides what says the same.
        names: the mapped fields; what we do not map is nobody's conflict.
        baseline: the record as it was known.
        record: the record as it is.
        sent: the fields of writes without an answer: a record that agrees with one of them is what that write made.
    """
    if any(not collection.differing(fields, record) for fields in sent):
        return ()
    known = {name: at(baseline, _own_name(collection, name)) for name in names}
    return tuple(
        name for name in collection.differing(known, record) if known[name] != at(record, _own_name(collection, name))
    )


def carries(collection: Collection, fields: Fields, record: Fields) -> bool:
    """Tell whether an answer holds the whole record, and not just its keys."""
    said = [name for name, value in fields.items() if value not in (None, "", [], {})]
    return all(at(record, _own_name(collection, name)) is not None for name in said)


def says(collection: Collection, name: str, record: Fields) -> bool:
    """Tell whether a record holds a value of a mapped field."""
    return at(record, _own_name(collection, name)) not in (None, "")


def listed(names: Iterable[str]) -> str:
    """Name fields in words."""
    return ", ".join(sorted(names))


def _own_name(collection: Collection, name: str) -> str:
    return collection.find_by.record_name(name) if isinstance(collection.find_by, Find) else name
