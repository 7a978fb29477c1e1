"""Values that no patient has, in every string of a resource, and the search for them in whatever form they stand."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import quote

Json = dict[str, Any]

WORD: Final = "Zyxquuv"
NPI: Final = "8264917350"
PHONE: Final = "(917) 355-0286"
BORN: Final = "1931-07-19"
NEEDLES: Final = (WORD, NPI, PHONE, "917-355-0286", BORN, "07/19/1931")

_AROUND: Final = 60
_GROUP: Final = 3  # base64 writes three bytes as four letters: a value can begin at each of the three


def patient(fhir_id: str, practitioner: str) -> Json:
    """Make a patient whose every string is a canary, or one that the clinic takes."""
    return {
        "resourceType": "Patient",
        "id": fhir_id,
        "meta": {"tag": [{"system": "https://example.com/tags", "code": word("tag"), "display": word("tagdisplay")}]},
        "text": {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{word("div")}</div>'},
        "contained": [{"resourceType": "Organization", "id": "inside", "name": word("contained")}],
        "extension": [{"url": "https://example.com/extension", "valueString": word("extension")}],
        "identifier": [{"system": "https://example.com/mrn", "value": word("mrn"), "type": {"text": word("type")}}],
        "name": [
            {
                "use": "official",
                "text": word("text"),
                "family": word("family"),
                "given": [word("given"), word("middle")],
                "prefix": [word("prefix")],
                "suffix": [word("suffix")],
            }
        ],
        "telecom": [
            {"system": "phone", "use": "home", "value": PHONE},
            {"system": "email", "value": f"{word('email')}@example.com"},
            {"system": "other", "value": word("other")},
        ],
        "gender": "female",
        "birthDate": BORN,
        "address": [
            {
                "use": "home",
                "text": word("address"),
                "line": [word("line"), word("secondline")],
                "city": word("city"),
                "district": word("district"),
                "state": "NY",
                "postalCode": "12207",
                "country": word("country"),
            }
        ],
        "maritalStatus": _concept("http://terminology.hl7.org/CodeSystem/v3-MaritalStatus", "M", "marital"),
        "contact": [{"name": {"family": word("contact")}, "telecom": [{"system": "phone", "value": PHONE}]}],
        "communication": [{"language": {"text": word("language")}}],
        "photo": [{"title": word("photo"), "url": f"https://example.com/{word('photourl')}.png"}],
        "generalPractitioner": [{"reference": practitioner, "display": word("practitioner")}],
        "managingOrganization": {"reference": "#inside", "display": word("organization")},
    }


def practitioner(fhir_id: str, npi: str = NPI) -> Json:
    """Make a practitioner of canaries."""
    return {
        "resourceType": "Practitioner",
        "id": fhir_id,
        "identifier": [{"system": "http://hl7.org/fhir/sid/us-npi", "value": npi}],
        "name": [{"family": word("doctor"), "given": [word("doctorgiven")], "suffix": [word("title")]}],
        "telecom": [{"system": "phone", "value": PHONE}],
        "address": [{"line": [word("office")], "city": word("officecity")}],
        "qualification": [{"code": {"text": word("qualification")}}],
    }


def condition(fhir_id: str, subject: str) -> Json:
    """Make a condition of canaries."""
    return {
        "resourceType": "Condition",
        "id": fhir_id,
        "identifier": [{"system": "https://example.com/problems", "value": word("problem")}],
        "subject": {"reference": subject, "display": word("subject")},
        "code": _concept("http://hl7.org/fhir/sid/icd-10-cm", "E11.9", "code") | {"text": word("title")},
        "bodySite": [{"text": word("site")}],
        "severity": {"text": word("severity")},
        "onsetDateTime": BORN,
        "note": [{"text": word("note")}],
    }


def word(field: str) -> str:
    """Return the canary of one field."""
    return f"{WORD}{field}"


def found(surfaces: Iterable[tuple[str, bytes]], needles: Iterable[str] = NEEDLES) -> list[str]:
    """Search each surface for each needle in each form that it may stand in; say where it was found."""
    forms = [(needle, name, form) for needle in needles for name, form in _forms(needle)]
    hits = []
    for place, content in surfaces:
        lowered = content.lower()
        for needle, name, form in forms:
            searched = content if name.startswith("base64") else lowered
            if (at := searched.find(form)) >= 0:
                hits.append(f"{place}: {needle} as {name}: {content[max(0, at - _AROUND) : at + _AROUND]!r}")
    return hits


def _forms(needle: str) -> Iterator[tuple[str, bytes]]:
    """Yield the forms of a needle; all but base64 are in small letters."""
    small = needle.lower()
    yield "text", small.encode()
    if (quoted := quote(small, safe="")) != small:
        yield "a URL's part", quoted.lower().encode()
    yield "hexadecimal", needle.encode().hex().encode()
    for encoding in ("utf-16-le", "utf-16-be"):
        yield encoding, small.encode(encoding)
    for encoding in ("utf-8", "utf-16-le"):
        for offset in range(_GROUP):
            yield f"base64 of {encoding}", _in_base64(needle.encode(encoding), offset)


def _in_base64(value: bytes, offset: int) -> bytes:
    """Return the letters of base64 that depend on the value alone when it begins so many bytes into a group."""
    whole = base64.b64encode(bytes(offset) + value)
    return whole[-(-offset * 4 // _GROUP) : (offset + len(value)) * 4 // _GROUP]


def _concept(system: str, code: str, display: str) -> Json:
    return {"coding": [{"system": system, "code": code, "display": word(display)}], "text": word(f"{display}text")}
