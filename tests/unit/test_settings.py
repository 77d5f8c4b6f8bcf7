import pytest

from jobs import settings
from jobs.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _fresh() -> None:
    settings.load.cache_clear()


def test_a_variable_sets_its_place_in_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_WORKER__LLAMACPP__THREADS", "3")
    assert settings.load().worker.llamacpp.threads == 3


def test_an_unknown_variable_stops_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_WORKER__ENGIN", "llamacpp")
    with pytest.raises(ConfigurationError, match="PROMPTMILL_WORKER__ENGIN"):
        settings.load()


def test_a_bad_value_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_API__PORT", "eighty")
    with pytest.raises(ConfigurationError, match="PROMPTMILL_API__PORT"):
        settings.load()


def test_a_lease_outlasts_three_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_SHARDS__HEARTBEAT_SECONDS", "30")
    with pytest.raises(ConfigurationError, match=r"shards\.heartbeat_seconds"):
        settings.load()


def test_every_setting_is_described() -> None:
    assert all(settings.variables().values())


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_DATABASE_URL", "postgresql://me:secret@db/x")
    assert "secret" not in repr(settings.load())
