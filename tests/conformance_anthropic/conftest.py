"""Options and clients. Run it with:

    pytest -c tests/conformance_anthropic/pytest.ini tests/conformance_anthropic --base-url https://host --api-key KEY

Needs `anthropic` and `pytest`, nothing else. The name of a case is its id, its docstring what is expected.
"""

import contextlib
from collections.abc import Callable, Iterator

import anthropic
import pytest

pytest.register_assert_rewrite("conformance.plugin", "conformance_anthropic.user")

from conformance import plugin  # noqa: E402
from conformance.blocking import Mode  # noqa: E402
from conformance_anthropic import clients  # noqa: E402
from conformance_anthropic.user import Target, User, words  # noqa: E402

pytest_plugins = ["conformance.plugin"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--max-requests", type=int, default=100_000, help="how many requests a batch may have")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[plugin.SUITE] = plugin.Suite(
        title="Anthropic's Message Batches",
        sdk=f"anthropic {anthropic.__version__}",
        variables="ANTHROPIC",
        words=lambda error: words(error) if isinstance(error, anthropic.APIStatusError) else None,
    )


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config) -> Target:
    base_url, api_key, model = (plugin.option(pytestconfig, name) for name in ("--base-url", "--api-key", "--model"))
    if not base_url or not api_key or not model:
        pytest.exit("Say which server: --base-url, --api-key and --model.", returncode=pytest.ExitCode.USAGE_ERROR)
    target = Target(
        base_url=base_url.rstrip("/"),
        api_key=api_key,
        other_api_key=plugin.option(pytestconfig, "--other-api-key"),
        model=model,
        max_requests=pytestconfig.getoption("--max-requests"),
        slow_prompt=pytestconfig.getoption("--slow-prompt"),
        bad_body=pytestconfig.getoption("--bad-body"),
        patience_seconds=pytestconfig.getoption("--patience"),
    )
    secrets = [key for key in (target.api_key, target.other_api_key) if key]
    pytestconfig.stash[plugin.SERVER] = plugin.Server(target.base_url, secrets)
    return target


@pytest.fixture
def connect(target: Target, mode: Mode, notes: list[str]) -> Iterator[Callable[[str], User]]:
    """Makes a user of a key."""
    with contextlib.ExitStack() as stack:

        def user(api_key: str) -> User:
            sdk = stack.enter_context(clients.connect(mode, target.base_url, api_key))
            return User(target, mode, sdk, api_key, notes)

        yield user


@pytest.fixture
def user(connect: Callable[[str], User], target: Target) -> User:
    return connect(target.api_key)


@pytest.fixture
def other(connect: Callable[[str], User], target: Target) -> User:
    if target.other_api_key is None:
        pytest.skip("needs --other-api-key")
    return connect(target.other_api_key)
