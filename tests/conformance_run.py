"""Runs the conformance suite against a stack of its own, once for each generation of the SDK, and writes the page.

    make conformance

Each generation has an environment of its own, made by uv from a file of pinned requirements. To renew those files:
`make conformance-requirements`. Exit status 1: a case failed.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import conformance_clock
import conformance_page
import services
from conformance import report

from api.stack.program import promptmill

ROOT = Path(__file__).resolve().parent.parent
SUITE = ROOT / "tests" / "conformance"
PAGE = ROOT / "docs" / "conformance.md"


@dataclass(frozen=True)
class Generation:
    """One environment, and the suite that runs in it."""

    title: str
    name: str
    suite: Path
    options: tuple[str, ...] = ()

    @property
    def requirements(self) -> Path:
        return self.suite / "requirements" / f"{self.name}.txt"


OPENAI = "The OpenAI Batch API"
# The large cases take their time and do not depend on the SDK's version: once is enough.
GENERATIONS = [
    Generation(OPENAI, "openai-1", SUITE),
    Generation(OPENAI, "openai-2", SUITE),
    Generation(OPENAI, "openai-3", SUITE, ("--large",)),
]
SCRIPTED = ["--slow-prompt", "SLEEP 300", "--bad-body", '{"messages": [{"role": "user", "content": "REJECT"}]}']


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="promptmill-conformance-") as home, stack(Path(home)) as started:
        passed = [run(generation, started, Path(home)) for generation in GENERATIONS]
        PAGE.write_text(conformance_page.page(by_suite(Path(home))))
    return 0 if all(passed) else 1


def by_suite(home: Path) -> dict[str, list[report.Run]]:
    runs: dict[str, list[report.Run]] = {}
    for generation in GENERATIONS:
        runs.setdefault(generation.title, []).append(report.read(results(home, generation)))
    return runs


@contextmanager
def stack(home: Path) -> Iterator[services.Stack]:
    """Start API, worker and reconciler on a database of their own."""
    with services.servers(home) as servers, services.scripted_stack(servers, "template1", home) as made:
        subprocess.run(promptmill("migrate"), env=made.environment(), cwd=ROOT, check=True)
        made.api()
        made.reconciler()
        made.worker()
        yield made


def run(generation: Generation, started: services.Stack, home: Path) -> bool:
    """Run the suite in the generation's environment, write its results, and tell whether all is well."""
    uv = os.environ.get("UV", ROOT / ".tools" / "bin" / "uv")
    environment: list[str | Path] = [uv, "run", "--no-project", "--isolated", "--python", sys.executable]
    suite: list[str | Path] = [
        "python",
        "-m",
        "pytest",
        "-q",
        "-c",
        generation.suite / "pytest.ini",
        "--rootdir",
        generation.suite,
    ]
    clock = f"{sys.executable} {conformance_clock.__file__}"
    options: list[str | Path] = [
        "--model",
        "scripted",
        *SCRIPTED,
        "--clock-command",
        clock,
        "--report",
        results(home, generation),
    ]
    command = [
        *environment, "--with-requirements", generation.requirements, *suite, generation.suite, *options,
        *generation.options,
    ]  # fmt: skip
    print(f"+ {generation.name}", flush=True)
    return subprocess.run(command, check=False, env=variables(started), cwd=ROOT).returncode == 0


def variables(started: services.Stack) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"},
        "OPENAI_BASE_URL": started.base_url,
        "OPENAI_API_KEY": started.key(),
        "OPENAI_OTHER_API_KEY": started.key(),
        conformance_clock.URL_VARIABLE: started.database_url,
    }


def results(home: Path, generation: Generation) -> Path:
    return home / f"{generation.name}.json"


if __name__ == "__main__":
    sys.exit(main())
