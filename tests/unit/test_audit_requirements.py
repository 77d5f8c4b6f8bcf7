"""The audit of `make check` finds what pip-audit finds, and does not take silence for a clean bill."""

import json
import threading
import tomllib
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import audit_requirements
import pytest
from audit_requirements import ROOT, Excuse, Verdict, judge, words

from api.stack.program import free_port

TODAY = date(2026, 11, 24)
ADVISORY = {"id": "PYSEC-1", "aliases": ["CVE-2026-1"], "affected": []}


class Advisories(BaseHTTPRequestHandler):
    """A service like OSV's: it knows of one bad package, and nothing bad of the others."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body = json.dumps({"vulns": [ADVISORY]} if asked["package"]["name"] == "bad" else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[tuple[str, ...]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield "--vulnerability-service", "osv", "--osv-url", f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_an_advisory_is_found(service: tuple[str, ...]) -> None:
    verdict = judge(audit_requirements.ask("bad==1.0\ngood==2.0\n", *service), TODAY)
    assert verdict.audited == 2
    assert [finding.split(":")[0] for finding in verdict.findings] == ["bad 1.0"]


def test_a_service_that_cannot_be_reached_is_said_and_fails_nothing() -> None:
    nobody = ("--vulnerability-service", "osv", "--osv-url", f"http://127.0.0.1:{free_port()}/", "--timeout", "2")
    verdict = judge(audit_requirements.ask("bad==1.0\n", *nobody), TODAY)
    assert (verdict.audited, verdict.findings) == (0, [])
    assert "NOT AUDITED" in "".join(words(verdict))


def test_a_service_that_knows_no_package_is_no_clean_bill() -> None:
    """A mirror of packages answers 404 for all advisories, and pip-audit then says that there are none."""
    report = {"dependencies": [{"name": "a", "skip_reason": "not found"}, {"name": "b", "skip_reason": "not found"}]}
    assert "NOT AUDITED" in "".join(words(judge(report, TODAY)))


@pytest.mark.parametrize(
    ("verdict", "is_required", "is_good"),
    [
        (Verdict([], [], 3), True, True),
        (Verdict(["bad"], [], 3), False, False),
        (Verdict([], ["a"], 2), False, True),
        (Verdict([], ["a"], 2), True, False),
        (Verdict([], [], 0), False, True),
        (Verdict([], [], 0), True, False),
    ],
)
def test_silence_is_enough_only_where_no_audit_is_required(verdict: Verdict, is_required: bool, is_good: bool) -> None:
    assert audit_requirements.is_good(verdict, is_required=is_required) == is_good


@pytest.mark.parametrize("value", ["", "required"])
def test_the_variable_requires_an_audit(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(audit_requirements.REQUIRED_VARIABLE, value)
    monkeypatch.setattr(audit_requirements, "export", lambda _: "")
    monkeypatch.setattr(audit_requirements, "ask", lambda _: None)
    assert audit_requirements.main() == (value == "required")


@pytest.mark.parametrize(("name", "until", "is_found"), [("CVE-2026-1", 25, False), ("PYSEC-1", 24, True)])
def test_an_excuse_holds_until_its_day(name: str, until: int, is_found: bool) -> None:
    report = {"dependencies": [{"name": "a", "version": "1", "vulns": [{**ADVISORY, "fix_versions": ["2"]}]}]}
    excused = {name: Excuse("not reached", date(2026, 11, until))}
    assert bool(judge(report, TODAY, excused).findings) == is_found


def test_every_locked_package_has_a_hash() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    foreign = [package for package in packages if "registry" in package["source"]]
    assert len(foreign) > 100
    assert len(packages) - len(foreign) == 1, "ourselves"
    for package in foreign:
        for file in [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]:
            assert file["hash"].startswith("sha256:"), package["name"]
