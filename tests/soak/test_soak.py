"""F1 to F117, F94 among them, as chance has them: a short soak (`make soak` is a long one) loses nothing and doubles nothing."""

import random
from pathlib import Path

import pytest
from soak import trial

SECONDS = 180


@pytest.mark.timeout(600)
def test_nothing_is_lost_or_doubled_whatever_dies(tmp_path: Path) -> None:
    report = trial.run(random.randrange(10**6), SECONDS, tmp_path)
    print(report.page())
    assert report.is_good, report.page()
