"""What the suites of all SDKs share: options, the clock, and the report. Nothing of it depends on an SDK.

A suite says in `config.stash[SUITE]` what it is, and in `config.stash[SERVER]` what it looks at.
"""

import datetime as dt
import json
import os
import subprocess
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conformance import report

_OPTIONS = {
    "--base-url": "the server, as the SDK takes it",
    "--api-key": "a key of the server",
    "--other-api-key": "a key of another tenant",
    "--model": "the model of all requests",
    "--clock-command": "a shell command that sets the server's clock forward; it gets the number of seconds",
}


@dataclass(frozen=True)
class Suite:
    """One suite."""

    title: str
    sdk: str
    variables: str
    """What the names of its variables begin with: `OPENAI_BASE_URL` stands for `--base-url`."""
    words: Callable[[BaseException], str | None]
    """An error that the server answered, in one line; None for any other."""


@dataclass(frozen=True)
class Server:
    """The server that is looked at."""

    base_url: str
    secrets: list[str] = field(repr=False)


SUITE = pytest.StashKey[Suite]()
SERVER = pytest.StashKey[Server]()
NOTES = pytest.StashKey[list[str]]()
RESULTS = pytest.StashKey[list[report.Result]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    for name, meaning in _OPTIONS.items():
        group.addoption(name, help=meaning)
    group.addoption(
        "--report", action="append", type=Path, default=[], help="where the report goes: Markdown, or NAME.json"
    )
    group.addoption("--large", action="store_true", help="also the cases with as much as a server has to take")
    group.addoption("--slow-prompt", default="Write a long story.", help="a prompt that takes a while")
    group.addoption(
        "--bad-body",
        type=json.loads,
        default={"temperature": 99},
        help="JSON: parameters with which a request is refused when it runs",
    )
    group.addoption("--patience", type=float, default=600, help="seconds that a batch may take")


def option(config: pytest.Config, name: str) -> Any:
    """Return an option, or what its variable says: keys are better not on a command line, which everybody can see."""
    return config.getoption(name) or os.environ.get(
        f"{config.stash[SUITE].variables}_{name[2:].replace('-', '_').upper()}"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the large cases with one client only: how much a server takes does not depend on it."""
    twice = [item for item in items if "large" in getattr(item, "fixturenames", ()) and _mode(item) == "async"]
    config.hook.pytest_deselected(items=twice)
    items[:] = [item for item in items if item not in twice]


def _mode(item: pytest.Item) -> str:
    return str(item.callspec.params.get("mode", "")) if isinstance(item, pytest.Function) else ""


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def notes(request: pytest.FixtureRequest) -> list[str]:
    """What the case saw, for the report."""
    found: list[str] = request.node.stash.setdefault(NOTES, [])
    return found


@pytest.fixture
def large(pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--large"):
        pytest.skip("needs --large")


@pytest.fixture
def clock(pytestconfig: pytest.Config) -> Iterator[Callable[[int], None]]:
    """Sets the server's clock forward; it is right again afterwards."""
    command = pytestconfig.getoption("--clock-command")
    if command is None:
        pytest.skip("needs --clock-command")

    def shift(seconds: int) -> None:
        subprocess.run(f"{command} {seconds}", shell=True, check=True)

    yield shift
    shift(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    found = yield
    if found.when == "call" or not found.passed:
        item.config.stash[RESULTS].append(_result(item, found, call))
    return found


def _result(item: pytest.Item, found: pytest.TestReport, call: pytest.CallInfo[None]) -> report.Result:
    assert isinstance(item, pytest.Function)
    verdict, seen = _verdict(item, found, call)
    server = item.config.stash.get(SERVER, None)
    return report.Result(
        section=" ".join((item.module.__doc__ or "").split("\n\n")[0].split()),
        case=item.function.__name__.removeprefix("test_"),
        expected=" ".join((item.function.__doc__ or "").split()),
        mode=_mode(item),
        verdict=verdict,
        seen=report.brief(seen, server.secrets if server else ()),
    )


def _notes(stash: pytest.Stash) -> list[str]:
    nothing: list[str] = []
    return stash.get(NOTES, nothing)


def _verdict(item: pytest.Item, found: pytest.TestReport, call: pytest.CallInfo[None]) -> tuple[str, str]:
    seen = "; ".join(dict.fromkeys(_notes(item.stash)))
    if found.passed:
        return report.PASS, seen or "as expected"
    if found.skipped and isinstance(found.longrepr, tuple):
        return report.NOT_RUN, found.longrepr[2].removeprefix("Skipped: ")
    assert call.excinfo
    reason = item.config.stash[SUITE].words(call.excinfo.value) or call.excinfo.exconly()
    reason = reason.removeprefix("AssertionError: ")
    return report.FAIL, f"{seen}; {reason}" if seen and seen not in reason else reason


def pytest_sessionfinish(session: pytest.Session) -> None:
    suite, server = session.config.stash[SUITE], session.config.stash.get(SERVER, None)
    results: list[report.Result] = session.config.stash[RESULTS]
    if server is None:
        return
    run = report.Run(
        title=suite.title,
        server=_without_credentials(server.base_url),
        sdk=suite.sdk,
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        results=results,
    )
    for path in session.config.getoption("--report"):
        report.write(run, path)


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results: list[report.Result] = config.stash[RESULTS]
    rows = report.fold(results)
    for row in rows:
        if row.verdict == report.FAIL:
            terminalreporter.write_line(f"FAIL {row.case}: expected {row.expected} Seen: {row.seen}")
    terminalreporter.write_line(f"{config.stash[SUITE].sdk}: {report.counts(rows)}")
