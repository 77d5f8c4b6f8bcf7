"""What the web page shows of numbers and times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.web import plot, session, views
from jobs.errors import QuotaExceeded
from jobs.progress import Pace
from jobs.protocol import Batch, RequestCounts
from jobs.states import BatchStatus


def batch(status: BatchStatus, total: int = 10, completed: int = 0, failed: int = 0, **more: int) -> Batch:
    return Batch(
        id="batch_x",
        endpoint="/v1/chat/completions",
        input_file_id="file-x",
        completion_window="24h",
        status=status,
        created_at=0,
        request_counts=RequestCounts(total=total, completed=completed, failed=failed),
        **more,
    )


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (61, "1 min 1 s"), (7_260, "2 h 1 min"), (180_000, "2 d 2 h")],
)
def test_durations_have_two_units_at_most(seconds: float, shown: str) -> None:
    assert views.duration(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"), [(12_345.6, "12,346"), (9.96, "10.0"), (1.23, "1.2"), (0.0123, "0.012"), (0, "0")]
)
def test_rates_have_the_digits_that_say_something(number: float, shown: str) -> None:
    assert views.rate(number) == shown


@pytest.mark.parametrize(
    ("length", "shown"), [(0, "0 bytes"), (1_023, "1,023 bytes"), (1_536, "1.5 KiB"), (2**40, "1,024.0 GiB")]
)
def test_sizes_have_a_unit(length: int, shown: str) -> None:
    assert views.size(length) == shown


def test_time_left_follows_the_pace_of_lately() -> None:
    pace = Pace(0, 1.0, [9] * 20 + [1] * 10, [90.0] * 20 + [10.0] * 10)
    run = views.run(batch(BatchStatus.IN_PROGRESS, total=200, completed=150, failed=40), pace)
    assert (run.rows_rate, run.tokens_rate, run.left) == (1.0, 10.0, "10 s")
    assert (run.bar.completed, run.bar.failed, run.bar.done) == (75.0, 20.0, 190)


def test_a_batch_that_waits_has_no_pace_and_no_end_in_sight() -> None:
    run = views.run(batch(BatchStatus.IN_PROGRESS), Pace(0, 0.5, [0], [0.0]))
    assert (run.left, run.rows, run.tokens) == (None, None, None)


def test_a_batch_that_has_ended_has_the_rates_of_its_whole_run() -> None:
    ended = batch(BatchStatus.COMPLETED, completed=10, in_progress_at=100, completed_at=110)
    run = views.run(ended, Pace(100, 1.0, [10] + [0] * 9, [0.0] * 10))
    assert (run.rows_rate, run.left, run.took) == (1.0, None, "10 s")


def test_a_batch_that_never_ran_is_not_divided_by_its_requests() -> None:
    assert views.bar(batch(BatchStatus.FAILED, total=0)).completed == 0


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=60).filter(any), st.floats(0.5, 1e5))
def test_a_curve_stays_in_its_picture(counts: list[float], seconds: float) -> None:
    drawn = plot.chart(counts, seconds)
    points = [tuple(map(float, point.split(","))) for point in drawn.line.split()]
    assert len(points) == 2 * len(counts)
    assert all(plot.LEFT <= x <= plot.WIDTH - plot.RIGHT for x, _ in points)
    assert all(plot.TOP <= y <= plot.HEIGHT - plot.BOTTOM for _, y in points)
    assert 2 <= len(drawn.across) <= plot.TICKS + 2
    assert all(plot.TOP <= tick.at <= plot.HEIGHT - plot.BOTTOM for tick in drawn.across)


def test_lines_across_are_at_round_numbers() -> None:
    assert [tick.label for tick in plot.chart([7, 14], 1).across] == ["0", "5", "10", "15"]
    assert [tick.label for tick in plot.chart([7.0, 14_000.0], 0.5).across] == ["0", "10k", "20k", "30k"]
    assert [tick.label for tick in plot.chart([1.0], 7200).below] == ["0:00", "1:00:00", "2:00:00"]


def test_addresses_are_counted_apart_and_forgotten_when_there_are_too_many() -> None:
    bad = session.BadLogins()
    for _ in range(session.MAX_BAD_LOGINS):
        bad.note("a")
    with pytest.raises(QuotaExceeded):
        bad.check("a")
    bad.check("b")
    for number in range(session.MAX_ADDRESSES):
        bad.note(str(number))
    bad.check("a")
