"""What an API said in its own words, for sealing: flattened, without the values that we sent. Pure.

What is left can name another patient, and so it is sealed. What we sent stands in the ledger once already, and whoever
looks for the reason of a refusal need not read this patient's values for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from worker.legacy.outcome import at
from worker.legacy.wire import as_json

__all__ = ["values", "words"]

_MOST = 16 * 1024
_LOOKED_THROUGH = 8 * _MOST  # of a longer answer nobody reads the rest, and to look through it takes seconds
_LONGEST = 200  # what is longer is no value that an API repeats in its words, but a note or a file
_STRUCK_OUT = "[sent]"


def words(payload: bytes, body: object, errors: Sequence[str], sent: frozenset[str] = frozenset()) -> bytes | None:
    """Return the API's own words, a line for each: what stands at the declared paths, else the whole; at most 16 KiB.

    Args:
        payload: the answer as it came.
        body: the same, parsed; None if it is not JSON.
        errors: paths to words.
        sent: values that we sent, each of which is struck out wherever it stands as a word.
    """
    said = {path: found for path in errors if (found := at(body, path)) is not None}
    lines = _lines("", body) if not said else (line for path, found in said.items() for line in _lines(path, found))
    text = "\n".join(lines) if body is not None else payload.decode(errors="replace")
    return _struck_out(text[:_LOOKED_THROUGH], sent).encode(errors="replace")[:_MOST] or None


def values(sent: object) -> frozenset[str]:
    """List the texts and numbers in what is sent, however deep they stand."""
    return frozenset(filter(None, _values(sent)))


def _lines(path: str, value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _lines(f"{path}.{name}" if path else str(name), entry)
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _lines(f"{path}.{number}" if path else str(number), entry)
    else:
        text = value if isinstance(value, str) else as_json(value)
        yield f"{path}: {text}" if path else text


def _values(sent: object) -> Iterator[str]:
    if isinstance(sent, Mapping):
        for entry in sent.values():
            yield from _values(entry)
    elif isinstance(sent, list | tuple):
        for entry in sent:
            yield from _values(entry)
    elif isinstance(sent, str):
        yield sent.strip() if len(sent) <= _LONGEST else ""
    elif sent is not None and not isinstance(sent, bool):
        yield as_json(sent)


def _struck_out(text: str, sent: frozenset[str]) -> str:
    if not sent:
        return text
    longest_first = sorted(sent, key=lambda value: (-len(value), value))
    anywhere = "|".join(map(re.escape, longest_first))
    return re.sub(rf"(?<!\w)(?:{anywhere})(?!\w)", _STRUCK_OUT, text, flags=re.IGNORECASE)
