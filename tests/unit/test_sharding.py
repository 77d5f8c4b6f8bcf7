from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from jobs import sharding
from jobs.sharding import Cut

Requests = list[tuple[int, int, int]]


@st.composite
def requests(draw: st.DrawFn, models: int) -> Requests:
    """Make (line number, bytes, number of the model) for some requests; blank lines lie between them."""
    gaps = draw(st.lists(st.integers(1, 3), max_size=200))
    return [
        (sum(gaps[: place + 1]), draw(st.integers(1, 50)), draw(st.integers(0, models - 1)))
        for place in range(len(gaps))
    ]


BOUNDS = {"max_requests": st.integers(1, 20), "max_bytes": st.integers(1, 200)}


def covered(cut: Cut, asked: Requests) -> Iterator[int]:
    """Yield the lines of a shard as every reader of one finds them."""
    for line_no, _, model_no in asked:
        if cut.first_line <= line_no <= cut.last_line and model_no == cut.model_no:
            yield line_no


@given(asked=requests(models=4), **BOUNDS)
def test_every_request_is_in_one_shard_and_bounds_hold(asked: Requests, max_requests: int, max_bytes: int) -> None:
    cuts = sharding.cut(asked, max_requests=max_requests, max_bytes=max_bytes)
    lines = [line_no for cut in cuts for line_no in covered(cut, asked)]
    assert sorted(lines) == [line_no for line_no, _, _ in asked]
    sizes = {line_no: size for line_no, size, _ in asked}
    for cut in cuts:
        mine = list(covered(cut, asked))
        assert (cut.first_line, cut.last_line) == (mine[0], mine[-1])
        assert (cut.total, cut.size) == (len(mine), sum(sizes[line_no] for line_no in mine))
        assert cut.total <= max_requests
        assert cut.size <= max_bytes or cut.total == 1


@given(asked=requests(models=4), **BOUNDS)
def test_shards_come_model_by_model_in_the_order_of_their_lines(
    asked: Requests, max_requests: int, max_bytes: int
) -> None:
    cuts = sharding.cut(asked, max_requests=max_requests, max_bytes=max_bytes)
    for before, after in pairwise(cuts):
        assert before.model_no <= after.model_no
        assert before.model_no < after.model_no or before.last_line < after.first_line


@given(asked=requests(models=4), **BOUNDS)
def test_each_model_is_cut_as_if_it_were_alone(asked: Requests, max_requests: int, max_bytes: int) -> None:
    cuts = sharding.cut(asked, max_requests=max_requests, max_bytes=max_bytes)
    for model_no in range(4):
        alone = [each for each in asked if each[2] == model_no]
        mine = [cut for cut in cuts if cut.model_no == model_no]
        assert mine == sharding.cut(alone, max_requests=max_requests, max_bytes=max_bytes)


def test_a_shard_is_full_before_the_next_one_of_its_model_begins() -> None:
    asked = [(line_no, 1, line_no % 2) for line_no in range(1, 11)]
    cuts = sharding.cut(asked, max_requests=3, max_bytes=100)
    assert [(cut.model_no, cut.first_line, cut.last_line, cut.total) for cut in cuts] == [
        (0, 2, 6, 3),
        (0, 8, 10, 2),
        (1, 1, 5, 3),
        (1, 7, 9, 2),
    ]
