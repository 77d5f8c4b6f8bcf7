"""What is shipped for Prometheus and Grafana."""

import json
from typing import Any

import promql_parser
import yaml
from conftest import ROOT
from promql_parser import Expr, VectorSelector


def rules() -> list[dict[str, Any]]:
    """Return the alerts."""
    read = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    return [rule for group in read["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard that show something."""
    read = json.loads((ROOT / "deploy" / "grafana" / "promptmill.json").read_text())
    return [panel for panel in read["panels"] if panel["type"] != "row"]


def asked() -> set[str]:
    """Return the names of all figures that alerts and dashboard ask for."""
    return {part.name or "" for part in _parts()}


def selectors() -> set[tuple[str, str]]:
    """Return the figures and labels by which alerts and dashboard choose, like `("promptmill_rows_total", "outcome")`."""
    return {(part.name or "", matcher.name) for part in _parts() for matcher in part.matchers.matchers}


def _parts() -> list[VectorSelector]:
    expressions = [rule["expr"] for rule in rules()]
    expressions += [target["expr"] for panel in panels() for target in panel["targets"]]
    found: list[VectorSelector] = []

    def visit(part: Expr) -> None:
        if isinstance(part, VectorSelector) and part.name:
            found.append(part)

    for each in expressions:
        promql_parser.walk(promql_parser.parse(each), visit)
    return found
