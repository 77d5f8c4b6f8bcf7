from typing import Any

import pytest

from jobs import db, keys
from jobs.errors import AuthenticationFailed, InvalidRequest, NotFound


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


def test_what_is_no_key_opens_nothing(domain: Any) -> None:
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
