"""How values are written, and when two of them say the same."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest

from worker.errors import Unmappable
from worker.legacy import Scalar, Wire
from worker.legacy.wire import as_json, same

NEW_YORK = ZoneInfo("America/New_York")


@pytest.mark.parametrize(
    ("wire", "value", "written"),
    [
        (Wire(date="%m/%d/%Y"), date(1985, 2, 28), "02/28/1985"),
        (Wire(), date(985, 2, 28), "0985-02-28"),
        (Wire(), datetime(2026, 11, 15, 3, 30, tzinfo=UTC), "2026-11-14T22:30:00"),
        (Wire(datetime="%Y-%m-%d %H:%M"), datetime(2026, 7, 1, 12, tzinfo=UTC), "2026-07-01 08:00"),
        (Wire(time="%H:%M"), time(8, 5), "08:05"),
        (Wire(), timedelta(minutes=30), 1800),
        (Wire(duration="minutes"), timedelta(minutes=30), 30),
        (Wire(), 7, 7),
        (Wire(), Decimal("1.50"), Decimal("1.50")),
        (Wire(numbers="text"), 7, "7"),
        (Wire(numbers="text"), Decimal("1.50"), "1.50"),
        (Wire(numbers="text"), Decimal("1E+3"), "1000"),
        (Wire(numbers="text", duration="minutes"), timedelta(hours=1), "60"),
        (Wire(), True, True),
        (Wire(boolean=("Y", "N")), True, "Y"),
        (Wire(boolean=(1, 0)), False, 0),
        (Wire(), "Jane", "Jane"),
        (Wire(), None, None),
    ],
)
def test_a_value_is_written_by_its_type(wire: Wire, value: Scalar, written: object) -> None:
    """The Python type chooses the format, a moment stands on the clinic's clock, and digits are kept."""
    found = wire.write(value, NEW_YORK)
    assert (found, type(found)) == (written, type(written))


@pytest.mark.parametrize(
    "value",
    [1.5, Decimal("NaN"), datetime(2026, 1, 1, 8), b"Jane", object(), {"a"}],
    ids=lambda value: str(type(value)),
)
def test_what_has_no_exact_form_is_refused(value: Scalar) -> None:
    """A float, a moment without zone and foreign types are refused, without their value."""
    with pytest.raises(Unmappable) as refused:
        Wire().write(value, NEW_YORK)
    assert "1.5" not in str(refused.value)
    assert "Jane" not in str(refused.value)


def test_part_of_a_minute_is_refused() -> None:
    """A duration that the unit cannot say is not rounded."""
    with pytest.raises(Unmappable, match="whole number of minutes"):
        Wire(duration="minutes").write(timedelta(seconds=90), NEW_YORK)


@pytest.mark.parametrize(
    ("sent", "held"),
    [
        (None, ""),
        ("", None),
        (None, "  "),
        ("Jane", "Jane "),
        (12, "12"),
        ("12.50", Decimal("12.5")),
        (Decimal("1.0"), 1),
        ([1, "a"], ("1", "a")),
        ({"a": None, "b": 1}, {"b": "1", "c": 2}),
    ],
)
def test_these_say_the_same(sent: object, held: object) -> None:
    """Nothing is nothing in each of its forms, and a number equals its text."""
    assert same(sent, held)


@pytest.mark.parametrize(
    ("sent", "held"),
    [
        ("Jane", "jane"),
        ("012", "12"),
        (0, None),
        (False, None),
        ("Jane", None),
        (12, "twelve"),
        ([1], [1, 2]),
        ({"a": 1}, {}),
        ({"a": 1}, None),
        ("02/28/1985", "28/02/1985"),
    ],
)
def test_these_do_not(sent: object, held: object) -> None:
    """Case, leading zeros, zero against nothing and lists of another length differ."""
    assert not same(sent, held)


def test_json_keeps_digits_and_orders_on_request() -> None:
    """A Decimal is written as it is, never through a float, and ordered text is equal for equal content."""
    value = {"b": [Decimal("1.50"), Decimal("12345678901234567890.10"), None, True], "a": "Zoë \u2028"}
    assert as_json(value) == '{"b":[1.50,12345678901234567890.10,null,true],"a":"Zoë \u2028"}'
    assert as_json({"b": 1, "a": 2}, ordered=True) == as_json({"a": 2, "b": 1}, ordered=True) == '{"a":2,"b":1}'
