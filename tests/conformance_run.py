"""Runs the conformance suites against a stack of their own, once for each generation of an SDK, and writes the page.

    make conformance

Each generation has an environment of its own, made by uv from a file of pinned requirements. To renew those files:
`make conformance-requirements`. Exit status 1: a case failed.
"""

import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import conformance_clock
import conformance_page
import services
from conformance import report

from api.stack.program import promptmill
from jobs import db, quotas

ROOT = Path(__file__).resolve().parent.parent
OPENAI, ANTHROPIC = ROOT / "tests" / "conformance", ROOT / "tests" / "conformance_anthropic"
PAGE = ROOT / "docs" / "conformance.md"


@dataclass(frozen=True)
class Generation:
    """One environment, and the suite that runs in it."""

    name: str
    suite: Path
    options: tuple[str, ...] = ()

    @property
    def requirements(self) -> Path:
        return self.suite / "requirements" / f"{self.name}.txt"


# The large cases take their time and do not depend on the SDK's version: once is enough.
GENERATIONS = [
    Generation("openai-1", OPENAI),
    Generation("openai-2", OPENAI),
    Generation("openai-3", OPENAI, ("--large",)),
    # Ours is half of Anthropic's limit, unless it is set.
    Generation("anthropic", ANTHROPIC, ("--large", "--max-requests", "50000")),
]
# What every suite is told, of this stack and its scripted engine.
OPTIONS: tuple[str, ...] = (
    *("--model", "scripted"),
    *("--slow-prompt", "SLEEP 300"),
    *("--bad-body", '{"messages": [{"role": "user", "content": "REJECT"}]}'),
    *("--clock-command", f"{sys.executable} {conformance_clock.__file__}"),
)
# Within a hundred batches; and less than ten requests have.
RATE_LIMITED: dict[str, int | None] = {"calls_per_minute": 20}
TOKEN_LIMITED: dict[str, int | None] = {"max_enqueued_tokens": 100}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="promptmill-conformance-") as home, stack(Path(home)) as started:
        passed = [run(generation, started, Path(home)) for generation in GENERATIONS]
        PAGE.write_text(conformance_page.page(by_suite(Path(home))))
    return 0 if all(passed) else 1


def by_suite(home: Path) -> dict[str, list[report.Run]]:
    runs: dict[str, list[report.Run]] = {}
    for generation in GENERATIONS:
        found = report.read(results(home, generation))
        runs.setdefault(found.title, []).append(found)
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
    environment = [uv, "run", "--no-project", "--isolated", "--python", sys.executable]
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
    command: list[str | Path] = [
        *environment, "--with-requirements", generation.requirements, *suite, generation.suite, *OPTIONS,
        *generation.options, "--report", results(home, generation),
    ]  # fmt: skip
    print(f"+ {generation.name}", flush=True)
    return subprocess.run(command, check=False, env=variables(started), cwd=ROOT).returncode == 0


def variables(started: services.Stack) -> dict[str, str]:
    """Return the environment of a suite: one finds what `OPENAI_…` names, the other `ANTHROPIC_…`."""
    keys = {"API_KEY": started.key(), "OTHER_API_KEY": started.key()}
    limited = {
        "RATE_LIMITED_API_KEY": limited_key(started, RATE_LIMITED),
        "TOKEN_LIMITED_API_KEY": limited_key(started, TOKEN_LIMITED),
    }
    openai = {"BASE_URL": started.base_url, **keys, **limited}
    anthropic = {"BASE_URL": started.base_url.removesuffix("/v1"), **keys}
    return {
        **{name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"},
        **{f"OPENAI_{name}": value for name, value in openai.items()},
        **{f"ANTHROPIC_{name}": value for name, value in anthropic.items()},
        conformance_clock.URL_VARIABLE: started.database_url,
    }


def limited_key(started: services.Stack, limits: dict[str, int | None]) -> str:
    """Make a key of a project with quotas of its own."""
    project = uuid.uuid4().hex
    key = started.key(project)
    engine = started.engine()
    with db.transaction(engine) as connection:
        quotas.change(connection, project, limits)
    engine.dispose()
    return key


def results(home: Path, generation: Generation) -> Path:
    return home / f"{generation.name}.json"


if __name__ == "__main__":
    sys.exit(main())
