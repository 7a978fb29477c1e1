"""A preview in words, for the terminal of one person: it shows values. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator

from worker.preview import Planned, Previewed
from worker.previewing import Told


def of(told: Told) -> Iterator[str]:
    """Tell what would be sent for each record, what would be waited for, and what the legacy system holds."""
    yield told.reference
    for line in told.said:
        yield f"  {line}"
    for record in told.records:
        yield f"  {record.collection}{f' ({record.slot})' if record.slot else ''}"
        for line in _record(record):
            yield f"    {line}"


def _record(record: Previewed) -> Iterator[str]:
    yield from record.said
    for parent in record.waits_for:
        yield f"waits for {parent}"
    for request in record.requests:
        yield from _request(request)
    if record.differences is None:
        return
    yield "the legacy system holds otherwise:" if record.differences else "the legacy system holds the same"
    for difference in record.differences:
        yield f"  {difference.name}: {_value(difference.held)} → {_value(difference.ours)}"


def _request(request: Planned) -> Iterator[str]:
    yield f"{request.method} {request.path}"
    if isinstance(request.body, dict):
        for name, value in request.body.items():
            yield f"  {name}: {_value(value)}"
    elif request.body is not None:
        yield f"  {_value(request.body)}"


def _value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
