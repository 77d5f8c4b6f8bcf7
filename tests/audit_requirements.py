"""Asks PyPI's advisories about every version in `uv.lock`: `python tests/audit_requirements.py`, in `make check`.

Exit status 1: a version has an advisory that is not excused. Where the advisories cannot be reached (a machine that sees
a mirror of packages only), it says so and ends with 0: a check that fails there would be left out there. With
`PROMPTMILL_TEST_ADVISORIES=required` it ends with 1, also when nothing could be learned about some package.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
UV = ROOT / ".tools" / "bin" / "uv"
# What runs in the two environments (docs/decisions/0010), with what tests and checks are made with.
WORLDS = (("--extra", "api", "--extra", "embedded"), ("--no-dev", "--extra", "vllm"))
TIMEOUT_SECONDS = 300
REQUIRED_VARIABLE = "PROMPTMILL_TEST_ADVISORIES"


@dataclass(frozen=True)
class Excuse:
    """Why an advisory need not be heeded, and the day from which on it has to be looked at again."""

    reason: str
    until: date


# By the id or an alias of the advisory.
EXCUSED: dict[str, Excuse] = {}


@dataclass(frozen=True)
class Verdict:
    """What came of an audit."""

    findings: Sequence[str]
    unknown: Sequence[str]
    """Packages about which nothing could be learned."""
    audited: int


def export(options: Sequence[str]) -> str:
    """Return the locked requirements of a world, without ourselves."""
    command = [str(UV), "export", "--quiet", "--frozen", "--no-emit-project", "--no-hashes", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def ask(requirements: str, *options: str) -> dict[str, Any] | None:
    """Return pip-audit's report about pinned requirements; None if the advisories cannot be reached."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requirements.txt"
        path.write_text(requirements)
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(path), "--disable-pip", "--no-deps"]
        command += ["--format", "json", "--progress-spinner", "off", *options]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            return None
    # With findings its status is 1; without a connection it is, too, and there is no report.
    report: dict[str, Any] | None = json.loads(done.stdout) if done.stdout.startswith("{") else None
    return report


def judge(report: dict[str, Any] | None, today: date, excused: dict[str, Excuse] = EXCUSED) -> Verdict:
    """Return what a report comes to on a day."""
    packages = (report or {}).get("dependencies", [])
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    findings = [
        f"{package['name']} {package['version']}: {advisory['id']}, fixed in {advisory['fix_versions'] or 'nothing yet'}"
        for package in packages
        for advisory in package.get("vulns", [])
        if not _is_excused(advisory, today, excused)
    ]
    return Verdict(findings, unknown, len(packages) - len(unknown))


def _is_excused(advisory: dict[str, Any], today: date, excused: dict[str, Excuse]) -> bool:
    names = (advisory["id"], *advisory.get("aliases", []))
    return any(name in excused and today < excused[name].until for name in names)


def words(verdict: Verdict) -> Iterator[str]:
    """Yield what is said about a verdict."""
    for finding in verdict.findings:
        yield f"ADVISORY {finding}"
    if not verdict.audited:
        yield "NOT AUDITED: the advisories at pypi.org cannot be reached from here. Run this where they can be."
        return
    if verdict.unknown:
        yield f"NOT AUDITED, pypi.org knows nothing about: {', '.join(verdict.unknown)}"
    yield f"{verdict.audited} packages audited, {len(verdict.findings)} advisories to heed."


def is_good(verdict: Verdict, *, is_required: bool) -> bool:
    """Tell whether nothing has to be heeded, and, if an audit is required, whether it was made of every package."""
    is_whole = verdict.audited > 0 and not verdict.unknown
    return not verdict.findings and (is_whole or not is_required)


def main() -> int:
    """Return the exit status: 1 when an advisory has to be heeded, or nothing is known and something has to be."""
    verdicts = [judge(ask(export(world)), datetime.now(UTC).date()) for world in WORLDS]
    sys.stdout.writelines(f"{line}\n" for verdict in verdicts for line in words(verdict))
    is_required = os.environ.get(REQUIRED_VARIABLE) == "required"
    return 0 if all(is_good(verdict, is_required=is_required) for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
