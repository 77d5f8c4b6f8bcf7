"""`promptmill doctor` on a healthy installation, and on tables of another version."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
import services
from pydantic import SecretStr
from sqlalchemy import Engine, text

from api.stack import valkey
from client import doctor
from client.doctor import Finding
from jobs.settings import Settings


def examined(tmp_path: Path, **urls: str) -> dict[str, Finding]:
    settings = Settings(data_dir=tmp_path, **{name: SecretStr(url) for name, url in urls.items()})  # type: ignore[arg-type]
    return {each.name: each for each in doctor.examine(settings, "http://127.0.0.1:1/v1", "pm_key")}


def test_a_redis_that_lets_nobody_read_its_configuration_is_healthy(tmp_path: Path) -> None:
    with services.valkey_server(tmp_path) as administrator:
        port = urlsplit(administrator).port
        assert port
        url = valkey.url(port, services.PASSWORD, "producer")
        assert examined(tmp_path, redis_url=url)["Redis"] == Finding("Redis", "ok", "answers")


@pytest.mark.parametrize(("version", "mend"), [("0001", "promptmill migrate"), ("9999", "its code is older")])
def test_tables_and_code_of_two_versions_are_told_apart(
    engine: Engine, database_url: str, tmp_path: Path, version: str, mend: str
) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    plain = database_url.replace("postgresql+psycopg://", "postgresql://")
    found = examined(tmp_path, database_url=plain)["tables"]
    assert found.state == "bad"
    assert mend in found.mend


def test_a_server_that_would_lose_what_was_accepted_is_named(servers: services.Servers, tmp_path: Path) -> None:
    # As the servers of these tests are, which nobody needs after a power cut.
    found = examined(tmp_path, database_url=servers.database_url)["durability"]
    assert found.state == "warning"
    assert "fsync is off" in found.found and found.mend
