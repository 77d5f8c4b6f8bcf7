import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

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


def test_what_may_hold_a_secret_does_not_show() -> None:
    kinds = dict(_fields(settings.Settings))
    named = [name for name in kinds if re.search("url|password|secret|token$|_key$", name)]
    assert sorted(named) == ["database_url", "flower.password", "redis_url"]
    assert all("SecretStr" in str(kinds[name]) for name in named)


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field.annotation


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_DATABASE_URL", "postgresql://me:secret@db/x")
    assert "secret" not in repr(settings.load())


a

b
