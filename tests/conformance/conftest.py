"""Options and clients. Run it with `promptmill conformance`, or:

    pytest -c tests/conformance/pytest.ini tests/conformance --base-url https://host/v1 --api-key KEY

Needs `openai` and `pytest`, nothing else. The name of a case is its id, its docstring what is expected.
"""

import contextlib
from collections.abc import Callable, Iterator

import openai
import pytest
from openai import OpenAI

pytest.register_assert_rewrite("conformance.plugin", "conformance.user")

from conformance import clients, plugin  # noqa: E402
from conformance.blocking import Mode  # noqa: E402
from conformance.target import Target  # noqa: E402
from conformance.user import User, words  # noqa: E402

pytest_plugins = ["conformance.plugin"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--rate-limited-api-key", help="a key that soon gets 429 when it creates batches")
    group.addoption("--token-limited-api-key", help="a key whose quota of enqueued tokens is too small for one batch")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[plugin.SUITE] = plugin.Suite(
        title="The OpenAI Batch API",
        sdk=f"openai {openai.__version__}",
        variables="OPENAI",
        words=lambda error: words(error) if isinstance(error, openai.APIStatusError) else None,
    )


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config) -> Target:
    base_url, api_key = (plugin.option(pytestconfig, name) for name in ("--base-url", "--api-key"))
    if not base_url or not api_key:
        pytest.exit("Say which server: --base-url and --api-key.", returncode=pytest.ExitCode.USAGE_ERROR)
    target = Target(
        base_url=base_url.rstrip("/"),
        api_key=api_key,
        other_api_key=plugin.option(pytestconfig, "--other-api-key"),
        rate_limited_api_key=plugin.option(pytestconfig, "--rate-limited-api-key"),
        token_limited_api_key=plugin.option(pytestconfig, "--token-limited-api-key"),
        model=plugin.option(pytestconfig, "--model") or _first_model(base_url, api_key),
        slow_prompt=pytestconfig.getoption("--slow-prompt"),
        bad_body=pytestconfig.getoption("--bad-body"),
        patience_seconds=pytestconfig.getoption("--patience"),
    )
    pytestconfig.stash[plugin.SERVER] = plugin.Server(target.base_url, target.secrets)
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


@pytest.fixture
def connect(target: Target, mode: Mode, notes: list[str]) -> Iterator[Callable[[str | None, str], User]]:
    """Makes a user of a key; the case is not run if the suite was given none."""
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
