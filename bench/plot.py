"""Draws what `bench/gpu.py` measured: `uv run --group plots python bench/plot.py RESULTS.json SCENARIO OUT.svg`.

Rows in the engine over time, one line for each way of feeding it; of several runs the middle one.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
# The same picture gives the same file.
mpl.rcParams["svg.hashsalt"] = "promptmill"
from matplotlib import pyplot as plt  # noqa: E402


def middle(results: list[dict[str, Any]], side: str) -> dict[str, Any]:
    runs = sorted((each for each in results if each["side"] == side), key=lambda each: float(each["seconds"]))
    return runs[len(runs) // 2]


def main(source: Path, scenarios: str, out: Path) -> None:
    results = [each for each in json.loads(source.read_bytes()) if each["scenario"] in scenarios.split(",")]
    figure, axes = plt.subplots(figsize=(8, 3.6))
    for side in dict.fromkeys(each["side"] for each in results):
        run = middle(results, side)
        axes.plot([second for second, *_ in run["series"]], [row[1] for row in run["series"]], label=side)
    axes.set_xlabel("seconds")
    axes.set_ylabel("rows decoding")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
