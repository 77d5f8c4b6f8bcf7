"""Figures of several rounds, and how they read in the table."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

HEADER = "| scenario | load | ours | bare | ratio | must / aim |\n| --- | --- | --- | --- | --- | --- |"


def seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def spread(values: Sequence[float], unit: str = "", digits: int = 2) -> str:
    """Return the median, with the lowest and the highest."""
    shown = [f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]}{unit} ({shown[1]} to {shown[2]})"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Divide round by round: what slowed a round down slowed both sides."""
    return [one / other for one, other in zip(above, below, strict=True)]


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def row(scenario: str, load: str, ours: str = "", bare: str = "", ratio: str = "", *, wanted: str) -> str:
    return f"| {scenario} | {load} | {ours} | {bare} | {ratio} | {wanted} |"
