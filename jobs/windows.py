"""Completion windows: `24h`, and by a setting anything from an hour to thirty days. Pure."""

import re

from jobs.errors import InvalidRequest

STANDARD = "24h"
_WINDOW = re.compile(r"([1-9][0-9]{0,2})([hd])")
_UNIT_SECONDS = {"h": 3_600, "d": 86_400}
MAX_SECONDS = 30 * 86_400


def seconds(window: str, *, any_window: bool) -> int:
    """Return how long a batch may take.

    Raises:
        InvalidRequest: the window is none that is accepted.
    """
    match = _WINDOW.fullmatch(window)
    length = int(match[1]) * _UNIT_SECONDS[match[2]] if match else 0
    if window == STANDARD or (any_window and 0 < length <= MAX_SECONDS):
        return length
    supported = "'1h' to '30d'" if any_window else f"'{STANDARD}'"
    message = f"Invalid value: '{window}'. Supported values for 'completion_window' are: {supported}."
    raise InvalidRequest(message, param="completion_window", code="invalid_value")
