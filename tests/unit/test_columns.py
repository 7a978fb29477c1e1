"""Every column of the ledger says what it may hold of a person, and what is a record's content is sealed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import Column, DateTime, Integer, LargeBinary, MetaData, Table, Text, create_engine, select

from worker.ledger import tables
from worker.ledger.tables import Holds, Utc, metadata

CONTENT = {
    "changes.body",
    "writes.body",
    "writes.answer",
    "links.baseline",
    "links.before_image",
    "shadows.body",
    "secrets.value",
    "subscription_secrets.secret",
}


def undeclared(columns: Iterable[Column[object]]) -> list[str]:
    """Name the columns that do not say what they hold, in the words of `Holds`."""
    return [str(column) for column in columns if not isinstance(column.info.get("holds"), Holds)]


def mistyped(columns: Iterable[Column[object]]) -> list[str]:
    """Name the columns where sealed and binary are not the same."""
    return [
        str(column)
        for column in columns
        if (column.info.get("holds") is Holds.SEALED) != isinstance(column.type, LargeBinary)
    ]


def all_columns() -> list[Column[object]]:
    return [column for table in metadata.tables.values() for column in table.columns]


def test_every_column_says_what_it_holds() -> None:
    """No column is without a declaration."""
    assert len(all_columns()) > 100
    assert undeclared(all_columns()) == []


def test_sealed_columns_are_binary_and_no_others() -> None:
    """Ciphertext has a binary column, and nothing that is not sealed has one."""
    assert mistyped(all_columns()) == []


def test_all_content_is_sealed() -> None:
    """The columns that hold content of records, or secrets, are exactly the sealed ones."""
    assert {str(column) for column in all_columns() if column.info["holds"] is Holds.SEALED} == CONTENT


@pytest.mark.parametrize("info", [{}, {"holds": "sealed"}, {"holds": None}])
def test_a_column_without_a_declaration_is_found(info: dict[str, object]) -> None:
    """A column that says nothing, or says it in other words, is named."""
    table = Table("odd", MetaData(), tables.plain("id", Integer, primary_key=True), Column("name", Text, info=info))
    assert undeclared(table.columns) == ["odd.name"]


def test_a_sealed_column_of_text_is_found() -> None:
    """Sealed text and open bytes are both named."""
    table = Table(
        "odd",
        MetaData(),
        Column("sealed", Text, info={"holds": Holds.SEALED}),
        Column("open", LargeBinary, info={"holds": Holds.OPEN}),
        tables.sealed("right"),
    )
    assert mistyped(table.columns) == ["odd.sealed", "odd.open"]


def test_what_points_at_a_person_is_not_open() -> None:
    """References, versions, keys, slots, parents and digests are declared pseudonymous wherever they stand."""
    pointing = {
        "reference",
        "version_id",
        "key",
        "record_keys",
        "slot",
        "parents",
        "digest",
        "depends_on",
        "waiting_for",
    }
    columns = [column for column in all_columns() if column.name in pointing]
    assert {column.name for column in columns} == pointing
    assert [str(column) for column in columns if column.info["holds"] is Holds.OPEN] == []


def test_every_time_is_utc() -> None:
    """No column keeps a time otherwise than as `Utc`, which gives aware times back on both databases."""
    times = [column for column in all_columns() if isinstance(column.type, DateTime | Utc)]
    assert len(times) > 30
    assert [str(column) for column in times if not isinstance(column.type, Utc)] == []


def test_times_come_back_aware_and_sort_as_they_passed() -> None:
    """SQLite's text times are UTC to the microsecond, whatever zone they were given in, and sort in order of time."""
    moments = Table("moments", MetaData(), Column("at", Utc))
    noon = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
    given = [
        noon + timedelta(microseconds=1),
        (noon + timedelta(seconds=1)).astimezone(timezone(timedelta(hours=-5))),
        noon,
        noon + timedelta(microseconds=500_000),
    ]
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        moments.create(connection)
        connection.execute(moments.insert(), [{"at": moment} for moment in given])
        found = list(connection.scalars(select(moments.c.at).order_by(moments.c.at)))
    engine.dispose()
    assert found == sorted(given)
    assert {moment.tzinfo for moment in found} == {UTC}


def test_no_column_hides_a_row_method() -> None:
    """No column has the name of a method of SQLAlchemy's rows or tables, which would win over it."""
    from sqlalchemy.engine import Row

    assert [str(column) for column in all_columns() if hasattr(Row, column.name)] == []
