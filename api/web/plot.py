"""Rates over time as the numbers of an SVG; the template draws them. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# In units of the picture, which is as wide as there is room.
WIDTH, HEIGHT = 400, 160
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 22
TICKS = 3
# Steps between lines that people count in.
_STEPS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Tick:
    """A line across, or a mark below, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A curve with its axes."""

    line: str
    area: str
    across: list[Tick]
    below: list[Tick]
    peak: float


def chart(counts: Sequence[float], seconds: float) -> Chart:
    """Return the curve of what ended in each stretch of `seconds`, as a rate a second."""
    rates = [count / seconds for count in counts]
    step = _step(max(rates))
    top = step * max(1, math.ceil(max(rates) / step))
    # Steps: a stretch has one rate from its beginning to its end.
    edges = ((place + end, rate) for place, rate in enumerate(rates) for end in (0, 1))
    points = [(_x(edge / len(rates)), _y(rate / top)) for edge, rate in edges]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    area = f"{points[0][0]:.1f},{_y(0):.1f} {line} {points[-1][0]:.1f},{_y(0):.1f}"
    across = [Tick(round(_y(step * number / top), 1), _label(step * number)) for number in range(round(top / step) + 1)]
    return Chart(line, area, across, _times(len(rates) * seconds), max(rates))


def _step(peak: float) -> float:
    rough = max(peak, 1e-3) / TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(unit * step for step in _STEPS if unit * step >= rough * (1 - 1e-9))


def _times(total: float) -> list[Tick]:
    return [Tick(round(_x(part), 1), _time(total * part)) for part in (0, 0.5, 1)]


def _time(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3_600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _label(number: float) -> str:
    return f"{number / 1_000:g}k" if number >= 10_000 else f"{number:g}"


def _x(part: float) -> float:
    return LEFT + part * (WIDTH - LEFT - RIGHT)


def _y(part: float) -> float:
    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
