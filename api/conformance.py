"""`promptmill conformance`: runs the suite of `tests/conformance` against any server, in this environment."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.errors import ConfigurationError


def run(suite: Path, server: Mapping[str, str | None], arguments: Sequence[str]) -> bool:
    """Run the suite, which writes to this terminal, and tell whether all that ran passed.

    Args:
        suite: the folder of the suite.
        server: the variables that name the server and its keys. They go by the environment: everybody on the machine
            sees a command line.
        arguments: further ones, for pytest and the suite.

    Raises:
        ConfigurationError: the suite or pytest is not there.
    """
    _require(suite)
    pytest: list[str | Path] = [sys.executable, "-m", "pytest", "-c", suite / "pytest.ini", "--rootdir", suite]
    given = {name: value for name, value in server.items() if value}
    return subprocess.run([*pytest, suite, *arguments], env=os.environ | given, check=False).returncode == 0  # noqa: S603


def _require(suite: Path) -> None:
    if not (suite / "pytest.ini").exists():
        message = f"The suite is not in {suite}. It comes with the source, not with an installed package."
        raise ConfigurationError(message)
    if importlib.util.find_spec("pytest") is None:
        message = "The suite needs pytest, which is not installed here. `make setup` installs it."
        raise ConfigurationError(message)
