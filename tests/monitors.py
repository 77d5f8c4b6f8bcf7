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
    expressions = [rule["expr"] for rule in rules()]
    expressions += [target["expr"] for panel in panels() for target in panel["targets"]]
    return {name for each in expressions for name in _names(promql_parser.parse(each))}


def _names(expression: Expr) -> set[str]:
    names: set[str] = set()

    def visit(part: Expr) -> None:
        if isinstance(part, VectorSelector) and part.name:
            names.add(part.name)

    promql_parser.walk(expression, visit)
    return names
