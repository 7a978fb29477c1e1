"""An API's own words as they are sealed: flattened, without what we sent."""

from __future__ import annotations

import json
import time
from decimal import Decimal

import pytest

from worker.legacy.said import values, words

REFUSAL = {"error": {"code": "invalid", "fields": {"zip": ["too short", "not of MA"]}}, "trace": None}


def said(body: object, *errors: str, sent: object = None) -> str:
    return (words(json.dumps(body).encode(), body, errors, values(sent)) or b"").decode()


def test_the_declared_paths_if_they_hit() -> None:
    """Only what stands there, each with its path."""
    assert said(REFUSAL, "error.code", "none", "error.fields") == (
        "error.code: invalid\nerror.fields.zip.0: too short\nerror.fields.zip.1: not of MA"
    )


def test_the_whole_where_none_hits() -> None:
    """Flattened with its keys."""
    assert said(REFUSAL, "none").splitlines() == [
        "error.code: invalid",
        "error.fields.zip.0: too short",
        "error.fields.zip.1: not of MA",
        "trace: null",
    ]
    assert said(True) == "true"


def test_what_is_not_json_is_kept_as_it_came() -> None:
    """A proxy's page, and nothing where nothing was said; never more than 16 KiB."""
    assert words(b"<h1>Bad \xff Gateway", None, ()) == "<h1>Bad \ufffd Gateway".encode()
    assert words(b"", None, ()) is None
    assert len(words(b"x" * 99_999, None, ()) or b"") == 16 * 1024


def test_what_we_sent_is_struck_out_and_another_patients_name_is_not() -> None:
    """This patient's values are not read for the reason of a refusal; what is left is sealed for the other one's."""
    body = {"message": "DOE, Jane Ann (02/28/1985, 62701) is a duplicate of Roe, John"}
    sent = {"last": "Doe", "first": "Jane Ann", "born": "02/28/1985", "home": {"zip": "62701"}, "active": True}
    assert said(body, sent=sent) == "message: [sent], [sent] ([sent], [sent]) is a duplicate of Roe, John"


def test_a_value_within_a_word_is_left() -> None:
    """An F for the sex does not eat the F of a word, and a 1 not the 1 of 17."""
    assert said({"message": "Failed: F is not for 17"}, sent=["F", 1]) == "message: Failed: [sent] is not for 17"


def test_a_longer_value_goes_before_one_within_it() -> None:
    """Of Ann and Ann Marie both are struck out whole, and signs mean themselves."""
    assert said({"m": "Ann Marie, Ann, a.b, axb"}, sent=["Ann", "Ann Marie", "a.b"]) == "m: [sent], [sent], [sent], axb"


@pytest.mark.parametrize("sent", [None, {}, {"a": None, "b": "", "c": " ", "d": [True, False]}])
def test_nothing_sent_strikes_out_nothing(sent: object) -> None:
    """Nothing and yes or no are no values."""
    assert values(sent) == frozenset()
    assert said({"m": "a true  word"}, sent=sent) == "m: a true  word"


def test_numbers_are_struck_out_as_they_were_written() -> None:
    """With all their digits."""
    assert values({"dose": Decimal("1.50"), "count": 3, "in": [{"of": 7}]}) == {"1.50", "3", "7"}


def test_a_page_of_megabytes_is_looked_through_no_further_than_it_is_kept() -> None:
    """Sixteen megabytes of an answer with sixty values that we sent cost no seconds."""
    sent = frozenset(f"value {number} of ours" for number in range(60))
    began = time.process_time()
    kept = words(b"value 7 of ours, " * 1_000_000, None, (), sent)
    assert kept is not None
    assert kept.startswith(b"[sent], [sent], ")
    assert len(kept) == 16 * 1024
    assert time.process_time() - began < 2
