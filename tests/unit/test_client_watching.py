from client.watching import Pace, Sight


def sight(done: int, tokens: int = 0) -> Sight:
    return Sight("in_progress", total=100, completed=done, failed=0, output_tokens=tokens)


def test_rates_are_counted_from_the_last_look_before_the_first_row() -> None:
    pace = Pace()
    assert pace.words(0, sight(0)) == ""
    assert pace.words(100, sight(0)) == ""
    assert pace.words(110, sight(20, 500)) == "2.0 rows/s, 50 tokens/s, 0:40 left"


def test_rows_that_ended_before_we_looked_do_not_count() -> None:
    pace = Pace()
    assert pace.words(0, sight(90, 9_000)) == ""
    assert pace.words(10, sight(91, 9_100)) == "0.1 rows/s, 10 tokens/s, 1:30 left"
