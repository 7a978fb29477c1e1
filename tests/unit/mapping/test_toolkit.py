"""The small functions that mappings are written with."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal

import pytest
from pydantic import SecretStr

from worker.errors import SettingsInvalid, Unmappable
from worker.legacy import LegacyApi, Unsupported
from worker.mapping import (
    US_STATES,
    Context,
    Link,
    MappedRecord,
    Phone,
    SiteSettings,
    Table,
    first,
    join,
    link,
    pick,
    prefix,
    required,
    rest,
)
from worker.mapping.r4 import (
    Address,
    CodeableConcept,
    ContactPoint,
    HumanName,
    Identifier,
    Patient,
    Practitioner,
    Reference,
)

AT = datetime(2026, 11, 22, 10, tzinfo=UTC)


def context(medplum: str = "https://api.medplum.com/") -> Context:
    patient = Patient.model_validate({"resourceType": "Patient", "id": "p1", "meta": {"lastUpdated": AT.isoformat()}})
    return Context.of(patient, zone="America/New_York", medplum=medplum)


def test_the_context_says_whose_and_when() -> None:
    """Id, reference and time of the version come from the resource."""
    assert (context().reference, context().fhir_id, context().updated) == ("Patient/p1", "p1", AT)


def test_a_version_without_its_time_is_refused_only_where_it_is_asked_for() -> None:
    """`updated` has no made-up value."""
    bare = Context.of(Patient.model_validate({"resourceType": "Patient", "id": "p1"}), zone="UTC", medplum="https://m")
    with pytest.raises(Unmappable, match="lastUpdated"):
        _ = bare.updated


@pytest.mark.parametrize(
    ("value", "partial", "day"),
    [
        (None, "refuse", None),
        (date(1985, 2, 28), "refuse", date(1985, 2, 28)),
        (datetime(2026, 11, 15, 3, 30, tzinfo=UTC), "refuse", date(2026, 11, 14)),
        (datetime(2026, 7, 15, 3, 59, tzinfo=UTC), "refuse", date(2026, 7, 14)),
        ("1980", "first", date(1980, 1, 1)),
        ("2019-05", "first", date(2019, 5, 1)),
    ],
)
def test_the_clinics_day(value: Any, partial: Literal["refuse", "first"], day: date | None) -> None:
    """A moment is taken in the clinic's zone, summer time included; a partial date only if the mapping says so."""
    assert context().date(value, partial=partial) == day


@pytest.mark.parametrize("value", ["1980", "2019-05", "soon", "2019-13", "0000", "", datetime(2026, 1, 1, 8)])
def test_what_is_no_full_date_is_refused(value: Any) -> None:
    """Without a word of the mapping no day is made up, and with one only out of real dates."""
    with pytest.raises(Unmappable):
        context().date(value)
    if value not in ("1980", "2019-05"):
        with pytest.raises(Unmappable):
            context().date(value, partial="first")


def test_the_clinics_clock() -> None:
    """A moment stands on the clinic's clock, and a day becomes its first moment only on request."""
    moment = context().datetime(datetime(2026, 11, 15, 3, 30, tzinfo=UTC))
    assert moment is not None
    assert moment.isoformat() == "2026-11-14T22:30:00-05:00"
    with pytest.raises(Unmappable, match="not a full date and time"):
        context().datetime(date(2026, 7, 1))
    day = context().datetime(date(2026, 7, 1), partial="first")
    assert day is not None
    assert day.isoformat() == "2026-07-01T00:00:00-04:00"
    assert context().datetime(None) is None


@pytest.mark.parametrize("text", ["Patient/p1", "Patient/p1/_history/3", "Patient/a.b-C9"])
def test_a_reference_becomes_a_link_without_its_version(text: str) -> None:
    """The link is to the resource, not to one version of it."""
    assert link(Reference(reference=text), "id") == Link(text.partition("/_history")[0], "id")


def test_a_missing_reference_stays_missing() -> None:
    """A default is plain Python."""
    assert link(None, "id") is None
    assert (link(None, "id") or 7) == 7


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ({"reference": "#gp"}, "contained"),
        ({"identifier": {"value": "Canary"}}, "logical"),
        ({"display": "Canary"}, "logical"),
        ({"reference": "urn:uuid:9b1f3c2a-7e11-4b8f-9d0e-6a1d4d0e0c5b"}, "not like Type/id"),
        ({"reference": "Patient?identifier=Canary"}, "not like Type/id"),
        ({"reference": "Patient/.."}, "not like Type/id"),
        ({"reference": "Patient/a/b"}, "not like Type/id"),
        ({"reference": "Patient"}, "not like Type/id"),
    ],
)
def test_a_reference_without_a_record_of_its_own_is_refused_in_words(reference: dict[str, Any], said: str) -> None:
    """Contained, logical, conditional and broken references have no legacy record, and are not repeated."""
    with pytest.raises(Unmappable, match=said) as refused:
        link(Reference.model_validate(reference))
    assert "Canary" not in str(refused.value)


def test_an_absolute_reference_is_ours_only_below_our_medplum() -> None:
    """Another server's Patient/p1 is another patient, and so is one of a server whose name begins like ours."""
    ours = link(Reference(reference="https://api.medplum.com/fhir/R4/Patient/p1/_history/2"))
    assert ours is not None
    assert context().own(ours) == Link("Patient/p1")
    for base in (
        "https://api.medplum.com.example.org/fhir/R4",
        "http://api.medplum.com/fhir/R4",
        "https://api.medplum.com",
    ):
        foreign = link(Reference(reference=f"{base}/Patient/p1"))
        assert foreign is not None
        with pytest.raises(Unmappable):
            context().own(foreign)


def test_small_functions_take_none() -> None:
    """Attributes go in as they are."""
    assert (first(None), first([]), first(["a", "b"])) == (None, None, "a")
    assert (list(rest(None)), list(rest(["a", "b"]))) == ([], ["b"])
    assert (first([None, "a", "b"]), list(rest([None, "a", None, "b"])), first([None])) == ("a", ["b"], None)
    assert (prefix("ICD10:", None), prefix("ICD10:", "E11.9"), prefix("(", "a", ")")) == (None, "ICD10:E11.9", "(a)")
    assert required(0) == 0
    for missing in (None, "", "  "):
        with pytest.raises(Unmappable, match="is missing"):
            required(missing)


def test_join() -> None:
    """What is not there leaves no gap; what is too long is refused, shortened by parts, or cut, as the mapping says."""
    assert join("a", None, ["b", None, " "], " c ", sep=", ") == "a, b, c"
    assert join(None, [], "") is None
    with pytest.raises(Unmappable, match="longer than 4"):
        join("abc", "de", max=4)
    assert join("abc", "de", max=4, overflow="drop") == "abc"
    assert join("abc", "de", max=5, overflow="cut") == "abc d"
    with pytest.raises(Unmappable):
        join("abcde", max=4, overflow="drop")


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("(555) 555-0100", "555-555-0100"), ("+1 555.555.0100", "555-555-0100"), ("15555550100", "555-555-0100"),
        (None, None), (" ", None),
    ],
)  # fmt: skip
def test_phone_numbers_that_fit(number: str | None, shown: str | None) -> None:
    """However it was typed, the ten digits stand in the shape."""
    assert Phone("###-###-####")(number) == shown


@pytest.mark.parametrize(
    "number", ["555-0100", "+1 555 0100", "+44 20 7946 0958", "+4930123456", "555-555-0100 x9", "call me"]
)
def test_phone_numbers_that_do_not(number: str) -> None:
    """No digit is dropped and no country guessed: refused, or the stated default."""
    with pytest.raises(Unmappable):
        Phone("###-###-####")(number)
    assert Phone("###-###-####", default=None)(number) is None


def test_tables() -> None:
    """A code without a row is refused without being repeated, unless a default is stated; rows may be tuples."""
    assert Table({"a": (1, "one")})("a") == (1, "one")
    assert Table({"a": 1})(None) is None
    assert Table({"a": 1}, default=None)("b") is None
    with pytest.raises(Unmappable) as refused:
        Table({"a": 1})("Canary")
    assert "Canary" not in str(refused.value)
    with pytest.raises(Unmappable):
        Table({"a": 1})("A")
    assert (US_STATES("il"), US_STATES(" New York "), US_STATES("DC")) == ("IL", "NY", "DC")


def names(*entries: dict[str, Any]) -> list[HumanName]:
    return [HumanName.model_validate(entry) for entry in entries]


def test_a_name_is_never_one_that_was_not_asked_for() -> None:
    """Official before usual before one without use; a maiden name only on request; an ended one never."""
    usual, maiden = {"use": "usual", "family": "Doe"}, {"use": "maiden", "family": "Roe"}
    ended = {"use": "official", "family": "Poe", "period": {"end": "2015-06"}}
    chosen = pick.name(names(maiden, ended, usual), at=AT)
    assert chosen is not None
    assert chosen.family == "Doe"
    asked = pick.name(names(usual, maiden), "maiden")
    assert asked is not None
    assert asked.family == "Roe"
    assert pick.name(names(maiden)) is None
    assert pick.name(None) is None


@pytest.mark.parametrize(
    ("period", "at", "there"),
    [
        ({"end": "2026"}, AT, True), ({"end": "2025"}, AT, False), ({"end": "2026-11"}, AT, True),
        ({"end": "2026-10"}, AT, False), ({"end": "2026-11-22"}, AT, True), ({"end": "2026-11-21"}, AT, False),
        ({"end": "2026-11-22T09:00:00Z"}, AT, False), ({"end": "2026-11-22T11:00:00Z"}, AT, True),
        ({"end": "2026-12"}, AT, True), ({"start": "2027"}, AT, False), ({"start": "2026-11-22T11:00:00Z"}, AT, False),
        ({"start": "2020-01"}, AT, True), ({"start": "2020-01"}, None, True), ({"end": "2099"}, None, False),
        ({"end": "9999-12-31"}, AT, True), ({"end": "9999"}, AT, True), ({}, AT, True),
    ],
)  # fmt: skip
def test_a_period_lasts_through_the_whole_of_its_end(period: dict[str, str], at: datetime | None, there: bool) -> None:
    """A day, month or year counts to its last moment; without a time to compare with, an end is over."""
    entry = Address.model_validate({"use": "home", "period": period})
    assert (pick.address([entry], at=at) is not None) is there


def test_full_names() -> None:
    """Its own text, else its parts in order."""
    (parts,) = names({"prefix": ["Dr."], "given": ["Ngozi", None], "family": "Okafor", "suffix": ["MD"],
                      "_given": [None, {"id": "g2"}]})  # fmt: skip
    assert pick.full_name(parts) == "Dr. Ngozi Okafor MD"
    assert pick.full_name(names({"text": "N. Okafor", "family": "Okafor"})[0]) == "N. Okafor"
    assert pick.full_name(None) is None


def test_contact_points_go_by_system_use_and_rank() -> None:
    """The lowest rank first, one without rank last, an old or ended one never."""
    entries = [
        {"system": "phone", "use": "old", "value": "1"},
        {"system": "phone", "use": "home", "value": "2"},
        {"system": "phone", "use": "home", "value": "3", "rank": 1},
        {"system": "phone", "use": "home", "value": "4", "rank": 1, "period": {"end": "2020"}},
        {"system": "email", "value": "5"},
    ]
    contacts = [ContactPoint.model_validate(entry) for entry in entries]
    assert pick.telecom(contacts, "phone", "home", at=AT) == "3"
    assert pick.telecom(contacts, "email") == "5"
    assert pick.telecom(contacts[:1], "phone") is None
    assert pick.telecom(None, "phone") is None


def test_identifiers_go_by_type_and_system() -> None:
    """Both have to fit where both are asked for."""
    mr = {"coding": [{"code": "MR"}]}
    entries = [
        {"system": "a", "value": "1"},
        {"system": "a", "type": mr, "value": "2"},
        {"system": "b", "type": mr, "value": "3"},
    ]
    identifiers = [Identifier.model_validate(entry) for entry in entries]
    assert pick.identifier(identifiers, system="a") == "1"
    assert pick.identifier(identifiers, type="MR") == "2"
    assert pick.identifier(identifiers, type="MR", system="b") == "3"
    assert pick.identifier(identifiers, type="SS") is None


def test_codings_go_by_system_in_the_asked_order() -> None:
    """A user's own choice comes before others of its system; words fall back to any display."""
    concept = CodeableConcept.model_validate(
        {"coding": [
            {"system": "s", "code": "1", "display": "one"},
            {"system": "t", "code": "2"},
            {"system": "t", "code": "3", "display": "three", "userSelected": True},
        ]}
    )  # fmt: skip
    assert pick.code(concept, "t", "s") == "3"
    assert pick.code(concept, "s") == "1"
    assert pick.code(concept, "none") is None
    assert pick.code(concept) == "3"
    assert pick.text(concept, "t") == "three"
    assert pick.text(concept, "none") == "one"
    assert pick.text(CodeableConcept(text="words"), "s") == "words"
    assert pick.text(None) is pick.code(None) is None
    assert pick.has_code([None, concept], "9", "2")
    assert not pick.has_code(None, "1")


def test_references_go_by_type() -> None:
    """By the reference itself, absolute or not, or by what it says of its type."""
    entries = ["Organization/o1", "https://x.example.com/fhir/R4/Practitioner/d1/_history/1", "Practitioner/d2"]
    references = [Reference(reference=entry) for entry in entries]
    assert pick.reference(references, Practitioner) is references[1]
    logical = Reference.model_validate({"type": "Practitioner", "identifier": {"value": "1"}})
    assert pick.reference([logical], Practitioner) is logical
    assert pick.reference(references[:1], Practitioner) is None
    assert pick.reference(None, Practitioner) is None


def record(**fields: object) -> MappedRecord:
    api = LegacyApi("c", base_url="https://c.example.com", auth=None, zone="UTC")
    notes = api.collection(
        "note", keys=("id",), create="POST /a", update="PUT /a/{id}", delete="DELETE /a/{id}", find=Unsupported("none")
    )
    return MappedRecord("", notes, fields, {"patient": "Patient/p1"})


def test_the_digest_is_of_content_alone() -> None:
    """Order does not count, values, slots, collections and parents do, and links count by reference."""
    one = record(a="1", b=Link("Practitioner/d1", "id"), c=Decimal("1.50"))
    same = record(c=Decimal("1.50"), b=Link("Practitioner/d1", "id"), a="1")
    assert one.canonical() == same.canonical()
    others = [
        record(a="2", b=Link("Practitioner/d1", "id"), c=Decimal("1.50")),
        record(a="1", b=Link("Practitioner/d2", "id"), c=Decimal("1.50")),
        record(a="1", b=Link("Practitioner/d1", "npi"), c=Decimal("1.50")),
        record(a="1", b=Link("Practitioner/d1", "id"), c=None),
        record(a="1", b=Link("Practitioner/d1", "id")),
    ]
    assert len({one.canonical(), *(other.canonical() for other in others)}) == 6


def test_a_new_signature_is_no_change() -> None:
    """Of a presigned URL only the path counts; another file, or another URL's query, is a change."""
    url = "https://storage.example.com/binary/b1/v1?Expires=1&Signature=abc"
    assert record(url=url).canonical() == record(url=url.replace("abc", "xyz").replace("=1&", "=2&")).canonical()
    assert record(of=[{"url": url}]).canonical() == record(of=[{"url": url.replace("abc", "x")}]).canonical()
    assert record(url=url).canonical() != record(url=url.replace("b1", "b2")).canonical()
    plain = "https://files.example.com/a?id=1"
    assert record(url=plain).canonical() != record(url=plain.replace("=1", "=2")).canonical()


class Site(SiteSettings):
    prefix = "TEST"

    url: str
    key: SecretStr
    beds: int = 4


def test_a_site_reads_its_own_variables(tmp_path: Any) -> None:
    """Plain or from a file, typed, others left alone."""
    (tmp_path / "key").write_text("secret\n")
    environ = {"REVERSE_SYNC_SITE_TEST_URL": "u", "REVERSE_SYNC_SITE_TEST_KEY_FILE": str(tmp_path / "key"),
               "REVERSE_SYNC_SITE_TEST_BEDS": "7", "REVERSE_SYNC_SITE_OTHER_X": "1"}  # fmt: skip
    site = Site.read(environ)
    assert (site.url, site.key.get_secret_value(), site.beds) == ("u", "secret", 7)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"URL": "u"}, "REVERSE_SYNC_SITE_TEST_KEY is missing"),
        ({"URL": "u", "KEY": "k", "UR": "Canary"}, "REVERSE_SYNC_SITE_TEST_UR is not a setting of this site"),
        ({"URL": "u", "KEY": "k", "KEY_FILE": "/dev/null"}, "KEY_FILE are both set: keep one"),
        ({"URL": "u", "KEY_FILE": "/no/Canary"}, "KEY_FILE names a file that cannot be read as text"),
        ({"URL": "u", "KEY": "k", "BEDS": "Canary"}, "REVERSE_SYNC_SITE_TEST_BEDS cannot be used"),
    ],
)
def test_a_site_names_what_is_wrong(environ: dict[str, str], said: str) -> None:
    """The variable is named, its value is not."""
    with pytest.raises(SettingsInvalid, match=said) as refused:
        Site.read({f"REVERSE_SYNC_SITE_TEST_{name}": value for name, value in environ.items()})
    assert "Canary" not in str(refused.value)
