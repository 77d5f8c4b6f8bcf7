import hashlib
import re
import zlib
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from jobs import db, keys
from jobs.errors import AuthenticationFailed, InvalidRequest, NotFound, PermissionDenied
from jobs.keys import Scope


def test_a_key_opens_its_project_until_it_is_revoked(domain: Any) -> None:
    with db.transaction(domain.engine) as connection:
        key = keys.create(connection, project="mine", name="laptop")
        caller = keys.authenticate(connection, key)
        assert keys.authenticate(connection, keys.create(connection, project="mine", name="")).project_id == (
            caller.project_id
        )
        keys.revoke(connection, caller.key_id)
        assert not keys.is_valid(connection, key)
        with pytest.raises(NotFound):
            keys.revoke(connection, caller.key_id)


def test_a_key_expires(domain: Any) -> None:
    with db.transaction(domain.engine) as connection:
        key = keys.create(connection, project="mine", name="", lifetime=timedelta(hours=1))
        assert keys.is_valid(connection, key)
        connection.execute(text("SET LOCAL promptmill.clock_offset = '1 hour'"))
        assert not keys.is_valid(connection, key)
        assert [info.state for info in keys.list_all(connection)] == ["in use", "expired"]


def test_a_key_may_do_what_its_scopes_say(domain: Any) -> None:
    with db.transaction(domain.engine) as connection:
        scopes = [Scope.FILES_READ, Scope.BATCHES_READ]
        caller = keys.authenticate(connection, keys.create(connection, project="mine", name="", scopes=scopes))
    caller.require([Scope.FILES_READ])
    with pytest.raises(PermissionDenied, match=r"batches\.write, files\.write\."):
        caller.require([Scope.FILES_WRITE, Scope.BATCHES_WRITE, Scope.FILES_READ])


@pytest.mark.parametrize("wrong", [{"scopes": []}, {"lifetime": timedelta()}])
def test_a_key_that_would_open_nothing_is_not_made(domain: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest), db.transaction(domain.engine) as connection:
        keys.create(connection, project="mine", name="", **wrong)


def test_what_is_no_key_opens_nothing(domain: Any) -> None:
    """F108."""
    with db.transaction(domain.engine) as connection:
        key = keys.create(connection, project="mine", name="")
        for wrong in (
            "",
            "pm_",
            key[:-1],
            key + "a",
            key[:12],
            "sk" + key[2:],
            key.upper(),
            "pm_' OR 1=1--_x",
            "pm_é_x",
        ):
            with pytest.raises(AuthenticationFailed):
                keys.authenticate(connection, wrong)


@pytest.mark.parametrize(("project", "name"), [("", "x"), ("a\nb", ""), ("a", "\x1b[31m"), ("a" * 101, "")])
def test_names_are_checked(domain: Any, project: str, name: str) -> None:
    with pytest.raises(InvalidRequest), db.transaction(domain.engine) as connection:
        keys.create(connection, project=project, name=name)


def test_the_secret_is_not_stored(domain: Any) -> None:
    with db.transaction(domain.engine) as connection:
        secret = keys.create(connection, project="mine", name="").rsplit("_", 1)[1]
    assert secret not in str(domain.execute("SELECT id, name, encode(secret_hash, 'escape') FROM api_keys"))


def test_a_key_can_be_told_from_what_only_looks_like_one(domain: Any) -> None:
    with db.transaction(domain.engine) as connection:
        key = keys.create(connection, project="mine", name="")
    assert re.fullmatch("pm_[0-9a-f]{12}_[0-9a-f]{56}", key)
    assert f"{zlib.crc32(key[:-8].encode()):08x}" == key[-8:]


def test_a_key_of_an_earlier_release_opens_what_it_did(domain: Any) -> None:
    """They have no checksum."""
    secret = "ab" * 24
    domain.execute(
        "INSERT INTO api_keys (id, project_id, name, secret_hash) VALUES ('0123456789ab', :project, '', :hash)",
        project=domain.project_id,
        hash=hashlib.sha256(secret.encode()).digest(),
    )
    with db.transaction(domain.engine) as connection:
        assert keys.is_valid(connection, f"pm_0123456789ab_{secret}")
        assert not keys.is_valid(connection, f"pm_0123456789ab_{secret[:-1]}")


def test_f108_a_wrong_checksum_costs_no_look_up(domain: Any) -> None:
    with db.transaction(domain.engine) as connection:
        key = keys.create(connection, project="mine", name="")
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    with pytest.raises(AuthenticationFailed), domain.engine.connect() as connection:
        connection.execute(text("SET search_path = nowhere"))
        keys.authenticate(connection, wrong)
