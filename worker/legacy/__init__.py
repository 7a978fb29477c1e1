"""The destination: what a legacy API is, and how one kind of record in it is written, found and read.

It never knows FHIR, never runs SQL and never decides what should be written.
"""

from worker.legacy.api import LegacyApi
from worker.legacy.auth import ApiKey, Credential, Login, OAuth2
from worker.legacy.body import Body, form_body, json_api, json_body
from worker.legacy.call import Call, Find, LegacyRequest, Listing, Replace, Unsupported
from worker.legacy.collection import Collection, Current, Hit, Listed, Parents
from worker.legacy.file import File
from worker.legacy.jwt import signed_jwt
from worker.legacy.normal import Normal
from worker.legacy.outcome import ANY, Answer, Answered, Header, KeyPlaces, Means, Outcome
from worker.legacy.rate import Quota, Rate
from worker.legacy.token import NoToken, TokenRefused, TokenStore
from worker.legacy.wire import OMIT, Clear, Constant, Scalar, Wire, WireValue

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
    "Constant",
    "Credential",
    "Current",
    "File",
    "Find",
    "Header",
    "Hit",
    "KeyPlaces",
    "LegacyApi",
    "LegacyRequest",
    "Listed",
    "Listing",
    "Login",
    "Means",
    "NoToken",
    "Normal",
    "OAuth2",
    "Outcome",
    "Parents",
    "Quota",
    "Rate",
    "Replace",
    "Scalar",
    "TokenRefused",
    "TokenStore",
    "Unsupported",
    "Wire",
    "WireValue",
    "form_body",
    "json_api",
    "json_body",
    "signed_jwt",
]
