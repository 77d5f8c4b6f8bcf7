import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

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
    assert sorted(named) == ["database_url", "flower.password", "metrics.token", "redis_url"]
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


def test_a_secret_is_read_from_the_file_that_its_variable_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in settings.secrets():
        (tmp_path / name).write_text(f"{name.lower()}\n")
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / name))
    loaded = settings.load()
    assert loaded.flower.password
    assert [each.get_secret_value() for each in (loaded.database_url, loaded.redis_url, loaded.flower.password)] == [
        "promptmill_database_url",
        "promptmill_redis_url",
        "promptmill_flower__password",
    ]
    # Beside `promptmill up`, what is set is used and not started.
    assert {"database_url", "redis_url"} <= loaded.model_fields_set


def test_a_secret_in_its_variable_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://file")
    monkeypatch.setenv("PROMPTMILL_REDIS_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("PROMPTMILL_REDIS_URL", "redis://variable")
    assert settings.load().redis_url.get_secret_value() == "redis://variable"


def test_a_file_beside_a_section_that_variables_set_changes_only_its_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("s3cret")
    monkeypatch.setenv("PROMPTMILL_FLOWER__PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("PROMPTMILL_FLOWER__PORT", "5556")
    flower = settings.load().flower
    assert flower.port == 5556 and flower.password and flower.password.get_secret_value() == "s3cret"


@pytest.mark.parametrize(("content", "reason"), [(None, "cannot be read"), (b"\n", "is empty"), (b"\xff", "not text")])
def test_a_file_without_a_secret_stops_the_process_and_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "url").write_bytes(content)
    monkeypatch.setenv("PROMPTMILL_DATABASE_URL_FILE", str(tmp_path / "url"))
    with pytest.raises(ConfigurationError, match=f"PROMPTMILL_DATABASE_URL_FILE: .*{reason}"):
        settings.load()


def test_only_a_secret_may_stand_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_API__PORT_FILE", "/run/secrets/port")
    with pytest.raises(ConfigurationError, match="PROMPTMILL_API__PORT_FILE"):
        settings.load()


def test_figures_are_not_shown_to_other_machines_without_a_token() -> None:
    with pytest.raises(ValidationError, match=r"metrics.token"):
        settings.Settings(metrics={"host": "0.0.0.0"})
    assert settings.Settings(metrics={"host": "0.0.0.0", "token": "x"}).metrics.host == "0.0.0.0"
