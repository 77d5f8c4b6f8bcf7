import pytest

from jobs.errors import InvalidRequest
from jobs.fleet import parse_version


@pytest.mark.parametrize(
    ("older", "newer"),
    [("0.1.0", "0.2"), ("0.9", "0.10"), ("0.2.0", "0.2.1"), ("1", "1.0.1"), ("0.2.0rc1", "0.3.0.dev1")],
)
def test_versions_are_ordered_by_their_numbers(older: str, newer: str) -> None:
    assert parse_version(older) < parse_version(newer)


def test_zeros_at_the_end_and_what_comes_before_a_release_make_no_difference() -> None:
    assert parse_version("0.2.0rc1") == parse_version("0.2") == parse_version("0.2.0.0")
    assert parse_version("0.0") == parse_version("0")


@pytest.mark.parametrize("words", ["", "newest", "v1"])
def test_what_is_no_version_is_refused(words: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_version(words)
