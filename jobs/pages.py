"""Listings, page by page. `after` names an object and no number, so that what is added meanwhile moves no page."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, Table, Tuple, select, tuple_

from jobs.errors import NotFound

# What tells a client that it named nothing.
Unknown = Callable[[str], NotFound]


def key(table: Table) -> Tuple:
    """Return what a listing is ordered by."""
    return tuple_(table.c.created_at, table.c.id)


def place(connection: Connection, table: Table, chosen: ColumnElement[bool], object_id: str, unknown: Unknown) -> Tuple:
    """Return the key of an object of a listing.

    One that is deleted still marks its place, if its row is kept: a client that deletes while it lists loses no page.

    Raises:
        NotFound: `unknown`, if none of the chosen objects has this id.
    """
    statement = select(table.c.created_at, table.c.id).where(chosen, table.c.id == object_id)
    if (mark := connection.execute(statement).one_or_none()) is None:
        raise unknown(object_id)
    return tuple_(*mark)


def read(
    connection: Connection, statement: Select[Any], table: Table, *, after: Tuple | None, limit: int, newest_first: bool
) -> tuple[Sequence[Row[Any]], bool]:
    """Return up to `limit` rows of the statement that follow the place `after`, and whether more follow."""
    columns = (table.c.created_at, table.c.id)
    if after is not None:
        statement = statement.where(key(table) < after if newest_first else key(table) > after)
    order = [column.desc() if newest_first else column for column in columns]
    rows = connection.execute(statement.order_by(*order).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit
