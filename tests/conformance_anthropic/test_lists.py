"""Lists"""

from conformance_anthropic.user import User, shape

FIELDS = {"data", "has_more", "first_id", "last_id"}


def made(user: User, count: int) -> list[str]:
    """Return the ids of new batches, newest first."""
    return [user.create(user.requests(1)).id for _ in range(count)][::-1]


def test_page_fields(user: User) -> None:
    """A page has `data`, `has_more`, `first_id` and `last_id`, newest first."""
    ids = made(user, 3)
    page = shape(user.batches.list(limit=2))
    assert FIELDS - set(page) == set()
    assert [batch["id"] for batch in page["data"]] == ids[:2]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[0], ids[1], True)


def test_20_batches_a_page(user: User) -> None:
    """A page has 20 batches unless `limit` says otherwise."""
    made(user, 21)
    page = user.batches.list()
    assert (len(page.data), page.has_more) == (20, True)


def test_after_id(user: User) -> None:
    """`after_id` gives the older ones that follow, the next one first."""
    ids = made(user, 5)
    assert [batch.id for batch in user.batches.list(limit=2, after_id=ids[1]).data] == ids[2:4]


def test_before_id(user: User) -> None:
    """`before_id` gives the newer ones that come right before, newest first; `has_more` tells of still newer ones."""
    ids = made(user, 5)
    page = user.batches.list(limit=2, before_id=ids[4])
    assert [batch.id for batch in page.data] == ids[2:4]
    assert page.has_more
    assert not user.batches.list(limit=4, before_id=ids[4]).has_more


def test_page_by_page(user: User) -> None:
    """The SDK walks the pages by itself and finds each of 25 batches once, though one is added on the way."""
    ids = made(user, 25)
    found: list[str] = []
    for batch in user.batches.list(limit=4):
        found.append(batch.id)
        if len(found) == 10:
            late = user.create(user.requests(1)).id
        if len(found) == len(ids):
            break
    user.see(len(set(ids) & set(found)), "of", len(ids))
    assert found == ids
    assert late not in found


def test_page_by_page_backwards(user: User) -> None:
    """From a `before_id` on, the SDK walks to the newest one."""
    ids = made(user, 7)
    pages = user.batches.list(limit=2, before_id=ids[-1]).iter_pages()
    assert [[batch.id for batch in page.data] for page in pages] == [ids[4:6], ids[2:4], ids[0:2]]


def test_limit_out_of_range(user: User) -> None:
    """400 that names `limit`, for 0 and 1,001."""
    for limit in (0, 1_001):
        assert "limit" in user.refused(400, lambda limit=limit: user.batches.list(limit=limit).data).message  # type: ignore[misc]


def test_after_id_unknown(user: User) -> None:
    """400 or 404 for an id that marks no place."""
    user.refused((400, 404), lambda: user.batches.list(after_id="msgbatch_00000000000000000000000000000000").data)
