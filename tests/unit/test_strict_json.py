"""`worker.strict_json`: what is let in, what is refused, and that no refusal says what it refused."""

from __future__ import annotations

import json
import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import BadResource
from worker.strict_json import MAX_DEPTH, MAX_DIGITS, MAX_EXPONENT, loads

DIGITS = "9" * MAX_DIGITS
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=30,
)


def nested(levels: int, opening: str = "[", closing: str = "]") -> bytes:
    """Return so many levels of brackets."""
    return (opening * levels + closing * levels).encode()


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"value":1.50}', {"value": Decimal("1.50")}),
        (b'{"value":-0.000}', {"value": Decimal("-0.000")}),
        (b"1e3", Decimal("1e3")),
        (DIGITS.encode(), int(DIGITS)),
        (b"1.7976931348623157e308", Decimal("1.7976931348623157e308")),
        (f"1e{MAX_EXPONENT}".encode(), Decimal(f"1e{MAX_EXPONENT}")),
        (b' \n{"a" : [1, true, null]}\t', {"a": [1, True, None]}),
        ('"ä😀"'.encode(), "ä😀"),
        (b'"\\ud83d\\ude00"', "😀"),
        (b'"\\\\u0000 and \\\\ud800"', "\\u0000 and \\ud800"),
        (b'"\\\\\\"[[["', '\\"[[['),
        (nested(MAX_DEPTH), json.loads(nested(MAX_DEPTH))),
        (b'["' + b"[{" * 500 + b'"]', ["[{" * 500]),
        (b'["' + b'\\"[' * 500 + b'"]', ['"[' * 500]),
        (b'{"a":{"b":1},"c":{"b":1}}', {"a": {"b": 1}, "c": {"b": 1}}),
    ],
)
def test_what_is_json_is_read_digit_for_digit(data: bytes, value: object) -> None:
    """Numbers keep their digits, and brackets or escapes within strings are only text."""
    assert repr(loads(data)) == repr(value)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff", "not UTF-8: wrong at byte 0"),
        (b'"\xed\xa0\x80"', "not UTF-8: wrong at byte 1"),  # half a pair, in the bytes themselves
        (b"\xef\xbb\xbf{}", "not JSON: wrong at character 0"),
        ("{}".encode("utf-16-le"), "not JSON: wrong at character 1"),
        (b"", "not JSON: wrong at character 0"),
        (b"{}{}", "not JSON: wrong at character 2"),
        (b'{"a":1,}', "not JSON: wrong at character"),
        (b'"a\nb"', "not JSON: wrong at character 2"),
        (b'"\x00"', "not JSON: wrong at character 1"),
        (b"NaN", "NaN or Infinity"),
        (b"[-Infinity]", "NaN or Infinity"),
        (b'{"a":1,"a":1}', "same key twice"),
        (b'[{"b":{"a":1,"\\u0061":2}}]', "same key twice"),
        (b'"\\u0000"', r"U\+0000"),
        (b'{"\\\\\\u0000":1}', r"U\+0000"),
        (b'"\\ud800"', "surrogate"),
        (b'"\\udc00\\ud800"', "surrogate"),
        (b'"\\ud83d\\\\\\ude00"', "surrogate"),
        (b'"\\ud83d \\ude00"', "surrogate"),
        (DIGITS.encode() + b"9", "more than 40 digits"),
        (b"0." + DIGITS.encode() + b"9", "more than 40 digits"),
        (b"-" + DIGITS.encode() + b"9e5", "more than 40 digits"),
        (b"1" * 5000, "more than 40 digits"),
        (b"1e401", "exponent"),
        (b"1e-401", "exponent"),
        (b"1e9999999", "exponent"),
        (b"1e99999999999999999999999", "exponent"),
        (nested(MAX_DEPTH + 1), "deeper than 64"),
        (nested(100_000), "deeper than 64"),
        (nested(MAX_DEPTH + 1, '{"a":', "}").replace(b":}", b":1}"), "deeper than 64"),
        (b'["]",' * 200 + b"1" + b',"["]' * 200, "deeper than 64"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
    ],
)
def test_what_would_not_survive_is_refused_by_name(data: bytes, why: str) -> None:
    """Each kind of input that another reader forgives ends as one named problem, and never as another exception."""
    with pytest.raises(BadResource, match=why):
        loads(data)


def test_a_refusal_repeats_nothing_of_the_input() -> None:
    """Neither the words of a problem nor what it holds show the value that caused it."""
    for data in (
        b'{"SECRET":1,"SECRET":2}',
        b'{"a":SECRET}',
        b'"SECRET\xff"',
        b'"SECRET \\ud800"',
        b'["SECRET", 1' + b"1" * 90,
    ):
        with pytest.raises(BadResource) as refusal:
            loads(data)
        assert "SECRET" not in str(refusal.value)
        assert refusal.value.__cause__ is None
        assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@given(JSON_VALUES)
def test_what_python_writes_is_read_back_the_same(value: object) -> None:
    """Ordinary values pass unchanged whether their text is escaped or not; only U+0000 is refused."""
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        if "\\u0000" in text.replace("\\\\", ""):
            with pytest.raises(BadResource):
                loads(text.encode())
        else:
            assert loads(text.encode()) == value


@given(st.integers(1, 130), st.sampled_from(["[", '{"a":', '["]",', '["[",', '{"\\"}":']))
def test_the_depth_is_counted_exactly(levels: int, opening: str) -> None:
    """Whatever the strings in between hold, 64 levels pass and 65 do not."""
    closing = "}" if opening.startswith("{") else "]"
    text = opening * levels + "1" + closing * levels
    if levels <= MAX_DEPTH:
        assert loads(text.encode()) == json.loads(text)
    else:
        with pytest.raises(BadResource, match="deeper"):
            loads(text.encode())


def test_two_mebibytes_of_any_shape_take_no_time_to_speak_of() -> None:
    """No input of the largest size that is received occupies the event loop for seconds."""
    size = 2 * 1024 * 1024
    for unit in (b"[", b"[]", b'"', b"\\", b'{"a":', b'["]",', b"1", b'\\"'):
        began = time.process_time()
        with pytest.raises(BadResource):
            loads(unit * (size // len(unit)))
        assert time.process_time() - began < 2
