"""Registering receivers: with the stock SDK's `client.webhooks`, and on the command line."""

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import services
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import SecretStr
from starlette.testclient import TestClient

from api.app import create_app
from api.stack.program import promptmill
from jobs import db, keys
from jobs.events import EventType
from jobs.settings import Settings

URL = "https://receiver.example.com/hook"


@pytest.fixture
def http(domain: Any, database_url: str, servers: services.Servers) -> Iterator[TestClient]:
    app = create_app(Settings(database_url=SecretStr(database_url), redis_url=SecretStr(servers.redis_url)))
    with TestClient(app) as client:
        yield client
    app.state.context.database.dispose()


def user(domain: Any, http: Any, project: str) -> OpenAI:
    with db.transaction(domain.engine) as connection:
        key = keys.create(connection, project=project, name="")
    return OpenAI(base_url="http://testserver/v1", api_key=key, http_client=http, max_retries=0)


@pytest.fixture
def sdk(domain: Any, http: TestClient) -> OpenAI:
    return user(domain, http, "mine")


def create(sdk: OpenAI, **changes: Any) -> Any:
    return sdk.webhooks.create(**{"url": URL, "name": "mine", "event_types": ["batch.completed"], **changes})


def test_an_endpoint_is_made_read_changed_and_deleted(sdk: OpenAI) -> None:
    made = create(sdk)
    assert made.id.startswith("wh_")
    assert made.signing_secret.startswith("whsec_")
    assert (made.object, made.name, made.url, made.event_types) == (
        "webhook_endpoint",
        "mine",
        URL,
        ["batch.completed"],
    )
    found = sdk.webhooks.retrieve(made.id)
    assert found.model_dump() == made.model_dump(exclude={"signing_secret"})
    assert made.signing_secret not in found.model_dump_json()
    changed = sdk.webhooks.update(made.id, name="new", event_types=["batch.failed", "batch.expired"])
    assert (changed.name, changed.url, changed.event_types) == ("new", URL, ["batch.expired", "batch.failed"])
    assert sdk.webhooks.delete(made.id).deleted
    with pytest.raises(NotFoundError):
        sdk.webhooks.retrieve(made.id)
    with pytest.raises(NotFoundError):
        sdk.webhooks.delete(made.id)


def test_endpoints_are_listed_newest_first_and_page_by_page(sdk: OpenAI, domain: Any, http: TestClient) -> None:
    ids = [create(sdk).id for _ in range(3)]
    create(user(domain, http, "other"))
    assert [each.id for each in sdk.webhooks.list(limit=2)] == ids[::-1]
    with pytest.raises(NotFoundError) as error:
        sdk.webhooks.list(after="wh_unknown")
    assert error.value.param == "after"


def test_the_secret_is_shown_when_it_is_new_and_not_again(sdk: OpenAI) -> None:
    made = create(sdk)
    rotated = sdk.webhooks.rotate_secret(made.id)
    assert rotated.signing_secret != made.signing_secret
    assert rotated.signing_secret_hint != made.signing_secret_hint
    kept = sdk.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert kept.signing_secret != rotated.signing_secret
    assert "signing_secret" not in sdk.webhooks.list().data[0].model_dump()


def test_what_the_sdk_repeats_is_done_once(sdk: OpenAI) -> None:
    """Its retries say so in a header; the first answer got lost."""
    retry = {"x-stainless-retry-count": "1"}
    made = create(sdk)
    assert create(sdk, extra_headers=retry).signing_secret == made.signing_secret
    rotated = sdk.webhooks.rotate_secret(made.id)
    assert sdk.webhooks.rotate_secret(made.id, extra_headers=retry).signing_secret == rotated.signing_secret
    assert len(sdk.webhooks.list().data) == 1


def test_another_project_sees_nothing_of_it(sdk: OpenAI, domain: Any, http: TestClient) -> None:
    made, other = create(sdk), user(domain, http, "other")
    for call in (other.webhooks.retrieve, other.webhooks.update, other.webhooks.delete, other.webhooks.rotate_secret):
        with pytest.raises(NotFoundError):
            call(made.id)
    assert other.webhooks.list().data == []
    assert sdk.webhooks.retrieve(made.id).updated_at == made.updated_at


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"url": "http://receiver.example.com"}, "url"),
        ({"url": "https://169.254.169.254/latest"}, "url"),
        ({"url": "https://ok@evil.example.com"}, "url"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a" * 101}, "name"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["batch.started"]}, "event_types.0"),
    ],
)
def test_what_is_wrong_is_named(sdk: OpenAI, changes: Any, param: str) -> None:
    made = create(sdk)
    for call in (lambda: create(sdk, **changes), lambda: sdk.webhooks.update(made.id, **changes)):
        with pytest.raises(BadRequestError) as error:
            call()
        assert (error.value.param, error.value.code) == (param, "invalid_value")
    assert sdk.webhooks.retrieve(made.id).model_dump() == made.model_dump(exclude={"signing_secret"})


@pytest.mark.parametrize("param", ["name", "url"])
def test_half_a_surrogate_pair_is_refused(sdk: OpenAI, param: str) -> None:
    content = json.dumps({"url": URL, param: "https://\ud800.example.com"}).encode()
    headers = {"content-type": "application/json"}
    with pytest.raises(BadRequestError) as error:
        sdk.post("/webhook_endpoints", cast_to=object, content=content, options={"headers": headers})
    assert error.value.param == param


def test_without_a_choice_everything_is_told(sdk: OpenAI) -> None:
    answer = sdk.post("/webhook_endpoints", cast_to=object, body={"url": URL})
    assert set(answer["event_types"]) == set(EventType)  # type: ignore[index]
    assert set(sdk.webhooks.event_types.list().data) == set(EventType)


def test_messages_are_listed_with_what_became_of_them(sdk: OpenAI) -> None:
    made = create(sdk, event_types=["batch.failed"])
    ended = [
        sdk.batches.create(input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h").id
        for _ in range(2)
    ]
    page: Any = sdk.get(f"/webhook_endpoints/{made.id}/deliveries?limit=1", cast_to=object)
    assert page["has_more"]
    (message,) = page["data"]
    assert message["id"].startswith("evt_")
    assert (message["type"], message["batch_id"]) == ("batch.failed", ended[1])
    assert (message["status"], message["attempts"], message["last_status_code"]) == ("waiting", 0, None)
    rest: Any = sdk.get(f"/webhook_endpoints/{made.id}/deliveries?after={page['last_id']}", cast_to=object)
    assert [each["batch_id"] for each in rest["data"]] == ended[:1]


def test_the_command_line_makes_lists_rotates_and_deletes(sdk: OpenAI, database_url: str) -> None:
    environment = {**os.environ, "PROMPTMILL_DATABASE_URL": database_url, "COLUMNS": "250"}

    def run(*arguments: str, project: str = "mine") -> str:
        command = promptmill("webhooks", *arguments, "--project", project)
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    secret = run("create", URL, "--name", "[/x]", "--event", "batch.failed")
    (made,) = sdk.webhooks.list().data
    assert (made.name, made.event_types) == ("[/x]", ["batch.failed"])
    assert made.signing_secret_hint == f"whsec_...{secret[-5:]}"
    listed = run("list")
    assert made.id in listed
    assert URL in listed
    assert secret not in listed
    assert run("rotate", made.id) != secret
    for wrong in (("create", "https://127.0.0.1/"), ("delete", "wh_unknown")):
        with pytest.raises(subprocess.CalledProcessError):
            run(*wrong)
    with pytest.raises(subprocess.CalledProcessError):
        run("list", project="unknown")
    run("delete", made.id)
    assert sdk.webhooks.list().data == []
