"""Images through real processes: uploaded with the stock SDK, named by rows, sent in rows."""

from typing import Any

import pictures
import pytest
import services
from clients import User
from payloads import jsonl, request

PNG, JPEG = pictures.encoded("png", (64, 48)), pictures.encoded("jpeg", (30, 20))


@pytest.fixture
def user(running: services.Stack) -> User:
    return User(running)


def row(custom_id: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return request(custom_id, messages=pictures.user(pictures.text(f"{custom_id} "), *parts))


def of_file(file_id: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"file_id": file_id}}


def test_a_batch_of_rows_with_images(user: User, running: services.Stack) -> None:
    file_id = user.sdk.files.create(file=("a.png", PNG), purpose="vision").id
    stranger = User(running)
    theirs = stranger.sdk.files.create(file=("b.png", PNG), purpose="vision").id
    rows = [
        *(row(f"named-{number}", of_file(file_id)) for number in range(300)),
        row("sent", pictures.part(pictures.data_url(PNG)), of_file(file_id)),
        row("jpeg", pictures.part(pictures.data_url(JPEG))),
        row("broken", pictures.part(pictures.data_url(PNG[:-40]))),
        row("theirs", of_file(theirs)),
        row("remote", pictures.part("https://example.com/a.png")),
        row("text"),
    ]
    batch = user.wait(user.submit(jsonl(rows)).id)
    assert batch.status == "completed"
    assert batch.request_counts and (batch.request_counts.completed, batch.request_counts.failed) == (303, 3)
    results = user.results(batch)
    answers = {name: result["response"]["body"] for name, result in results.items()}
    assert answers["sent"]["choices"][0]["message"]["content"] == "sent [image 64x48 png][image 64x48 png]"
    assert answers["jpeg"]["choices"][0]["message"]["content"] == "jpeg [image 30x20 jpeg]"
    for number in range(300):
        content = answers[f"named-{number}"]["choices"][0]["message"]["content"]
        assert content == f"named-{number} [image 64x48 png]"
    errors = {
        name: (body["error"]["param"], body["error"]["code"]) for name, body in answers.items() if "error" in body
    }
    assert errors == {
        "broken": ("messages.0.content.1.image_url.url", "image_parse_error"),
        "theirs": ("messages.0.content.1.image_url.file_id", "image_file_not_found"),
        "remote": ("messages.0.content.1.image_url.url", "invalid_image_url"),
    }


def test_images_at_the_other_endpoints(user: User) -> None:
    file_id = user.sdk.files.create(file=("a.png", PNG), purpose="vision").id
    url = "/v1/responses"
    content = [
        {"type": "input_image", "file_id": file_id},
        {"type": "input_image", "image_url": pictures.data_url(JPEG)},
    ]
    body = {"model": "scripted", "input": [{"role": "user", "content": content}]}
    batch = user.wait(user.submit(jsonl([{**request("a"), "url": url, "body": body}]), endpoint=url).id)
    (result,) = user.rows(batch.output_file_id)
    (item,) = result["response"]["body"]["output"]
    assert item["content"][0]["text"] == "[image 64x48 png][image 30x20 jpeg]"
