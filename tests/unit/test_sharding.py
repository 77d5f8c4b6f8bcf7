from hypothesis import given
from hypothesis import strategies as st

from jobs import sharding

SIZES = st.lists(st.integers(1, 50), max_size=200)


@given(sizes=SIZES, max_requests=st.integers(1, 20), max_bytes=st.integers(1, 200))
def test_every_request_is_in_one_shard_and_bounds_hold(sizes: list[int], max_requests: int, max_bytes: int) -> None:
    lines = [(2 * number + 1, size) for number, size in enumerate(sizes)]
    cuts = list(sharding.cut(lines, max_requests=max_requests, max_bytes=max_bytes))
    covered = [line_no for cut in cuts for line_no, _ in lines if cut.first_line <= line_no <= cut.last_line]
    assert covered == [line_no for line_no, _ in lines]
    assert sum(cut.total for cut in cuts) == len(lines)
    for cut in cuts:
        assert cut.total <= max_requests
        assert cut.size <= max_bytes or cut.total == 1
