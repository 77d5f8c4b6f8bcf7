"""Which server a command talks to."""

import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from client import config
from jobs import local, settings
from jobs.errors import ConfigurationError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("PROMPTMILL_DATA_DIR", str(tmp_path / "data"))
    settings.load.cache_clear()
    (tmp_path / "promptmill").mkdir()
    yield tmp_path
    settings.load.cache_clear()


@pytest.fixture
def stack(home: Path) -> Iterator[None]:
    """A stack that runs on the data directory, as far as its files say."""
    (home / "data").mkdir()
    address = local.Address("http://stack/v1", "pm_stack", "", "", "", "", "", "", "")
    local.address_file(home / "data").write_text(json.dumps(asdict(address)))
    with (home / "data" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_look_at_a_stack_is_none_for_another_one(home: Path, stack: None) -> None:
    lock = home / "data" / "lock"
    assert local.running_stack(home / "data")
    lock.unlink()
    assert local.running_stack(home / "data") is None
    assert not lock.exists(), "looking makes nothing"
    lock.touch(0o400)
    with lock.open() as other_look:
        fcntl.flock(other_look, fcntl.LOCK_SH)
        assert local.running_stack(home / "data") is None


def write(home: Path, text: str) -> None:
    (home / "promptmill" / "config.toml").write_text(text)


def found(base_url: str | None = None, api_key: str | None = None) -> tuple[str, str]:
    server = config.find(base_url, api_key)
    return server.base_url, server.api_key


def test_flags_win_over_the_file_and_the_file_over_the_stack(home: Path, stack: None) -> None:
    assert found() == ("http://stack/v1", "pm_stack")
    write(home, 'base_url = "http://file/v1"\napi_key = "sk"\nmodel = "m"\n')
    assert found() == ("http://file/v1", "sk")
    assert config.find(None, None).model == "m"
    assert found("http://flag/v1", "k") == ("http://flag/v1", "k")


def test_a_key_goes_to_its_own_server_only(home: Path, stack: None) -> None:
    assert found(None, "sk-of-somebody-else") == ("http://stack/v1", "pm_stack")
    assert found(None, "pm_mine") == ("http://stack/v1", "pm_mine")
    write(home, 'base_url = "http://file/v1"\napi_key = "sk"\n')
    assert found(None, "sk-of-somebody-else") == ("http://file/v1", "sk")
    assert found("http://file/v1") == ("http://file/v1", "sk")
    with pytest.raises(ConfigurationError, match="Which key"):
        found("http://flag/v1")


def test_without_a_server_all_places_are_named(home: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--base-url, OPENAI_BASE_URL or .*config\.toml; none runs on .*data"):
        found()


@pytest.mark.parametrize("text", ["base_url = 3", "nonsense", 'base-url = "x"'])
def test_a_file_that_is_not_valid_is_named(home: Path, text: str) -> None:
    write(home, text)
    with pytest.raises(ConfigurationError, match=r"config\.toml is not valid"):
        found()
