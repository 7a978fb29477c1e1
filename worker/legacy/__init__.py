"""The destination: what a legacy API is, and how one kind of record in it is written, found and read.

It never knows FHIR, never runs SQL and never decides what should be written.
"""

from worker.legacy.api import LegacyApi
from worker.legacy.auth import ApiKey
from worker.legacy.call import Body, Call, Find, LegacyRequest, Replace, Unsupported, json_body
from worker.legacy.collection import Collection, Hit, Parents
from worker.legacy.outcome import ANY, Answer, Answered, Means, Outcome
from worker.legacy.wire import OMIT, Clear, Scalar, Wire, WireValue

__all__ = [
    "ANY",
    "OMIT",
    "Answer",
    "Answered",
    "ApiKey",
    "Body",
    "Call",
    "Clear",
    "Collection",
    "Find",
    "Hit",
    "LegacyApi",
    "LegacyRequest",
    "Means",
    "Outcome",
    "Parents",
    "Replace",
    "Scalar",
    "Unsupported",
    "Wire",
    "WireValue",
    "json_body",
]
