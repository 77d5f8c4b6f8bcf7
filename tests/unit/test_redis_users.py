import re

import pytest
from conftest import ROOT

from api.stack import redis_users
from api.stack.redis_users import ROLES, Role


@pytest.mark.parametrize("role", ROLES)
def test_the_page_on_operations_has_the_rules_that_the_stack_uses(role: Role) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert f"user {redis_users.name(role)} on >PASSWORD {redis_users.RULES[role]}\n" in page


@pytest.mark.parametrize("role", ROLES)
def test_a_user_has_single_commands_and_our_keys_only(role: Role) -> None:
    rules = redis_users.line(role, "secret").split()
    assert "secret" not in rules
    assert "-@all" in rules
    assert not [rule for rule in rules if re.match(r"\+@|allkeys|allcommands|allchannels|nopass|&\*|~\*", rule)]
    assert all("promptmill:" in rule for rule in rules if rule[0] in "~&%")


def test_no_role_can_work_out_the_password_of_another() -> None:
    passwords = {redis_users.password("secret", role) for role in ROLES}
    assert len(passwords) == 3
    assert not any("secret" in password for password in passwords)
