import pytest

from jobs import windows
from jobs.errors import InvalidRequest


def test_the_standard_window_is_a_day() -> None:
    assert windows.seconds("24h", any_window=False) == 86_400


@pytest.mark.parametrize(
    ("window", "seconds"), [("1h", 3_600), ("7d", 604_800), ("30d", 2_592_000), ("720h", 2_592_000)]
)
def test_other_windows_are_a_setting(window: str, seconds: int) -> None:
    assert windows.seconds(window, any_window=True) == seconds
    with pytest.raises(InvalidRequest):
        windows.seconds(window, any_window=False)


@pytest.mark.parametrize("window", ["", "0h", "31d", "999h", "24", "24H", "1w", "-1h", "1h ", "1.5h", "٣h"])
def test_no_window_is_no_window(window: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        windows.seconds(window, any_window=True)
    assert (caught.value.param, caught.value.code) == ("completion_window", "invalid_value")
