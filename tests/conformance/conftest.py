"""Options, clients and the report. Run it with `promptmill conformance`, or:

    pytest -c tests/conformance/pytest.ini tests/conformance --base-url https://host/v1 --api-key KEY

Needs `openai` and `pytest`, nothing else. The name of a case is its id, its docstring what is expected.
"""

import contextlib
import datetime as dt
import json
import os
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from openai import OpenAI

pytest.register_assert_rewrite("conformance.user")

from conformance import clients, report  # noqa: E402
from conformance.target import Target  # noqa: E402
from conformance.user import User, words  # noqa: E402

NOTES = pytest.StashKey[list[str]]()
RESULTS = pytest.StashKey[list[report.Result]]()
TARGET = pytest.StashKey[Target]()
_OPTIONS = {
    "--base-url": "the server, as the SDK takes it; or $OPENAI_BASE_URL",
    "--api-key": "a key of the server; or $OPENAI_API_KEY",
    "--other-api-key": "a key of another tenant; or $OPENAI_OTHER_API_KEY",
    "--rate-limited-api-key": "a key that soon gets 429 when it creates batches",
    "--token-limited-api-key": "a key whose quota of enqueued tokens is too small for one batch",
    "--model": "the model of all requests; the first of GET /models",
    "--clock-command": "a shell command that sets the server's clock forward; it gets the number of seconds",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    for name, meaning in _OPTIONS.items():
        group.addoption(name, help=meaning)
    group.addoption(
        "--report", action="append", type=Path, default=[], help="where the report goes: Markdown, or NAME.json"
    )
    group.addoption("--large", action="store_true", help="also the cases with 50,000 requests and with 200 MB")
    group.addoption("--slow-prompt", default="Write a long story.", help="a prompt that takes a while")
    group.addoption(
        "--bad-body",
        type=json.loads,
        default={"temperature": 99},
        help="JSON: parameters with which a request is refused when it runs",
    )
    group.addoption("--patience", type=float, default=600, help="seconds that a batch may take")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the large cases with one client only: how much a server takes does not depend on it."""
    twice = [item for item in items if "large" in getattr(item, "fixturenames", ()) and _mode(item) == "async"]
    config.hook.pytest_deselected(items=twice)
    items[:] = [item for item in items if item not in twice]


def _mode(item: pytest.Item) -> str:
    return str(item.callspec.params.get("mode", "")) if isinstance(item, pytest.Function) else ""


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config) -> Target:
    def option(name: str) -> Any:
        # Keys are better not on a command line, which every user of the machine can see.
        return pytestconfig.getoption(name) or os.environ.get(f"OPENAI_{name[2:].replace('-', '_').upper()}")

    base_url, api_key = option("--base-url"), option("--api-key")
    if not base_url or not api_key:
        pytest.exit("Say which server: --base-url and --api-key.", returncode=pytest.ExitCode.USAGE_ERROR)
    target = Target(
        base_url=base_url.rstrip("/"),
        api_key=api_key,
        other_api_key=option("--other-api-key"),
        rate_limited_api_key=option("--rate-limited-api-key"),
        token_limited_api_key=option("--token-limited-api-key"),
        model=option("--model") or _first_model(base_url, api_key),
        slow_prompt=option("--slow-prompt"),
        bad_body=option("--bad-body"),
        clock_command=option("--clock-command"),
        patience_seconds=option("--patience"),
    )
    pytestconfig.stash[TARGET] = target
    return target


def _first_model(base_url: str, api_key: str) -> str:
    try:
        with OpenAI(base_url=base_url, api_key=api_key) as client:
            found = [model.id for model in client.models.list()]
    except openai.OpenAIError as error:
        pytest.exit(f"{base_url} does not tell its models: {error}", returncode=pytest.ExitCode.USAGE_ERROR)
    if not found:
        pytest.exit("The server has no model. Name one with --model.", returncode=pytest.ExitCode.USAGE_ERROR)
    return str(found[0])


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def connect(
    request: pytest.FixtureRequest, target: Target, mode: clients.Mode
) -> Iterator[Callable[[str | None, str], User]]:
    """Makes a user of a key; the case is not run if the suite was given none."""
    notes: list[str] = request.node.stash.setdefault(NOTES, [])
    with contextlib.ExitStack() as stack:

        def user(api_key: str | None, option: str) -> User:
            if api_key is None:
                pytest.skip(f"needs {option}")
            sdk = stack.enter_context(clients.connect(mode, target.base_url, api_key))
            return User(target, mode, sdk, api_key, notes)

        yield user


@pytest.fixture
def user(connect: Callable[[str | None, str], User], target: Target) -> User:
    return connect(target.api_key, "--api-key")


@pytest.fixture
def other(connect: Callable[[str | None, str], User], target: Target) -> User:
    return connect(target.other_api_key, "--other-api-key")


@pytest.fixture
def large(pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--large"):
        pytest.skip("needs --large")


@pytest.fixture
def clock(target: Target) -> Iterator[Callable[[int], None]]:
    """Sets the server's clock forward; it is right again afterwards."""
    command = target.clock_command
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
    verdict, seen = _verdict("; ".join(dict.fromkeys(_notes(item.stash))), found, call)
    target = item.config.stash.get(TARGET, None)
    return report.Result(
        section=" ".join((item.module.__doc__ or "").split("\n\n")[0].split()),
        case=item.function.__name__.removeprefix("test_"),
        expected=" ".join((item.function.__doc__ or "").split()),
        mode=_mode(item),
        verdict=verdict,
        seen=report.brief(seen, target.secrets if target else ()),
    )


def _notes(stash: pytest.Stash) -> list[str]:
    nothing: list[str] = []
    return stash.get(NOTES, nothing)


def _verdict(notes: str, found: pytest.TestReport, call: pytest.CallInfo[None]) -> tuple[str, str]:
    if found.passed:
        return report.PASS, notes or "as expected"
    if found.skipped and isinstance(found.longrepr, tuple):
        return report.NOT_RUN, found.longrepr[2].removeprefix("Skipped: ")
    assert call.excinfo
    error = call.excinfo.value
    reason = words(error) if isinstance(error, openai.APIStatusError) else call.excinfo.exconly()
    reason = reason.removeprefix("AssertionError: ")
    return report.FAIL, f"{notes}; {reason}" if notes and notes not in reason else reason


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.stash.get(TARGET, None)
    if target is None:
        return
    results: list[report.Result] = session.config.stash[RESULTS]
    run = report.Run(
        server=_without_credentials(target.base_url),
        sdk=f"openai {openai.__version__}",
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
    terminalreporter.write_line(f"openai {openai.__version__}: {report.counts(rows)}")
