"""The alerts and the dashboard that are shipped, and what the page about them says. What they ask of a running stack:
`tests/acceptance/test_metrics.py`.
"""

import re

import monitors
import promql_parser
import pytest
from conftest import ROOT

from jobs import census, metrics
from jobs.metrics import Figure
from workers import worker_metrics

PAGE = (ROOT / "docs" / "monitoring.md").read_text()
# Each with few values, none of which a client can make up.
LABELS = {
    "code",
    "ending",
    "engine",
    "hostname",
    "kind",
    "model",
    "outcome",
    "project",
    "reason",
    "result",
    "rows",
    "state",
    "status",
    "step",
    "method",
    "route",
    "process",
    "version",
    "le",
    "generation",
}


@pytest.mark.parametrize("rule", monitors.rules(), ids=lambda rule: rule["alert"])
def test_an_alert_can_be_read_and_says_what_to_do(rule: dict[str, str]) -> None:
    promql_parser.parse(rule["expr"])
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning")  # type: ignore[index]
    assert re.fullmatch("[0-9]+m", rule["for"])
    (line,) = re.findall(rf"^\| `{rule['alert']}` \| (.+) \|$", PAGE, re.MULTILINE)
    assert len(line) > 40


def test_the_page_knows_no_other_alerts() -> None:
    named = set(re.findall(r"^\| `(Promptmill\w+)`", PAGE, re.MULTILINE))
    assert named == {rule["alert"] for rule in monitors.rules()}


def test_figures_in_the_words_of_the_page_are_in_its_table() -> None:
    words, table = (
        PAGE.split("<!-- figures -->")[0] + PAGE.split("<!-- /figures -->")[1],
        PAGE.split("<!-- figures -->")[1],
    )
    for name in set(re.findall(r"promptmill_\w+", words)):
        assert f"| `{name}` |" in table, name


def test_every_panel_can_be_read() -> None:
    assert len(monitors.panels()) > 30
    for panel in monitors.panels():
        for target in panel["targets"]:
            promql_parser.parse(target["expr"])


def test_labels_have_few_values() -> None:
    figures: tuple[Figure, ...] = (*census.FIGURES, *worker_metrics.FIGURES)
    used = {label for figure in figures for label in figure.labels}
    used |= {name for family in metrics.REGISTRY.collect() for sample in family.samples for name in sample.labels}
    used |= set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `promptmill_\w+` \| \w+ \| ([^|]*) \|", PAGE, re.MULTILINE)))
    )
    assert used <= LABELS


def _rows(count: int) -> list[dict[str, object]]:
    return [
        {"project": f"proj_{number}", "model": "m", "shards": number, "rows": 10, "age": number, "suspects": 0}
        for number in range(1, count + 1)
    ]


def _values(taken: dict[str, object], name: str, *, projects: bool) -> dict[tuple[str, str], float]:
    (family,) = [each for each in census.families(taken, projects=projects) if each.name == name]
    return {(sample.labels["project"], sample.labels["model"]): sample.value for sample in family.samples}


def _census(count: int) -> dict[str, object]:
    webhooks = {"waiting": 0, "age": None}
    return {
        "queued": _rows(count),
        "running": [],
        "batches": [],
        "workers": [],
        "breakers": [],
        "webhooks": webhooks,
        "bytes": 1,
    }


def test_the_projects_with_most_work_are_told_apart_and_the_others_added_up() -> None:
    rows = _values(_census(102), "promptmill_queued_rows", projects=True)
    assert len(rows) == 101
    assert rows["other", "m"] == 20
    assert rows["proj_102", "m"] == 10
    assert _values(_census(102), "promptmill_oldest_queued_seconds", projects=True)["other", "m"] == 2


def test_projects_are_left_out_if_the_setting_says_so() -> None:
    assert _values(_census(102), "promptmill_queued_rows", projects=False) == {("", "m"): 1020}
    assert _values(_census(102), "promptmill_oldest_queued_seconds", projects=False) == {("", "m"): 102}
