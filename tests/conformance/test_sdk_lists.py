"""SDK: lists"""

from conformance.user import User, shape

FIELDS = {"object", "data", "first_id", "last_id", "has_more"}


def test_page_fields(user: User) -> None:
    """A page has `object: "list"`, `data`, `first_id`, `last_id` and `has_more`; of batches and of files."""
    file = user.upload(user.make.data(1))
    for _ in range(2):
        user.create(file.id)
    user.upload(user.make.data(1))
    for page in (user.sdk.batches.list(limit=1), user.sdk.files.list(limit=1)):
        shown = shape(page)
        assert FIELDS - set(shown) == set()
        assert (shown["object"], shown["has_more"], len(shown["data"])) == ("list", True, 1)
        assert shown["first_id"] == shown["last_id"] == page.data[0].id


def test_101_batches_page_by_page(user: User) -> None:
    """Walking the pages, newest first, finds each of 101 batches once, though one is added on the way."""
    file = user.upload(user.make.data(1))
    made = {user.create(file.id).id for _ in range(101)}
    found: list[str] = []
    last = None
    for batch in user.sdk.batches.list(limit=20):
        assert batch.id not in found, "a batch is listed twice"
        assert last is None or batch.created_at <= last, "newest first"
        found.append(batch.id)
        last = batch.created_at
        if len(found) == 30:
            late = user.create(file.id).id
        if made <= set(found):
            break
    user.see(len(made & set(found)), "of 101")
    assert made <= set(found)
    assert late not in found


def test_20_batches_a_page(user: User) -> None:
    """A page of batches has 20 of them unless `limit` says otherwise."""
    file = user.upload(user.make.data(1))
    for _ in range(21):
        user.create(file.id)
    page = user.sdk.batches.list()
    assert (len(page.data), page.has_more) == (20, True)


def test_files_page_by_page(user: User) -> None:
    """Walking the pages of files, newest first, finds each once; so does `order="asc"`, after the first of them."""
    made = [user.upload(user.make.data(1)).id for _ in range(5)]
    newest: list[str] = []
    # Result files of other tests' batches come meanwhile.
    for file in user.sdk.files.list(limit=2, purpose="batch"):
        assert file.id not in newest, "a file is listed twice"
        newest.append(file.id)
        if len(newest) == 5:
            break
    assert set(newest) == set(made)
    later = [file.id for file in user.sdk.files.list(limit=2, order="asc", after=newest[-1], purpose="batch")]
    assert later == newest[-2::-1]
