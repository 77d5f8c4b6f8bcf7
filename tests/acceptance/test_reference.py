"""The examples of docs/reference.md, as they stand there but for the ids, and the Python of two short pages."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import documented
import pytest
import services
from clients import User
from payloads import CHAT, numbered
from pictures import encoded

PAGE = "docs/reference.md"


@pytest.fixture
def user(running: services.Stack) -> Iterator[User]:
    made = User(running)
    yield made
    made.sdk.close()


def file_id(user: User) -> str:
    return user.sdk.files.create(file=("requests.jsonl", numbered(2)), purpose="batch").id


def ended_batch(user: User) -> str:
    return user.wait(user.submit(numbered(2)).id).id


def running_batch(user: User) -> str:
    return user.submit(numbered(1, lambda _: "SLEEP 60")).id


def upload_with_part(user: User) -> tuple[str, str]:
    content = numbered(2)
    upload = user.sdk.uploads.create(
        filename="requests.jsonl", purpose="batch", bytes=len(content), mime_type="application/jsonl"
    )
    return upload.id, user.sdk.uploads.parts.create(upload.id, data=content).id


def message_batch(user: User, prompt: str) -> str:
    """A batch of Anthropic's, made as the page's own example does."""
    create = next(block for block in documented.blocks(PAGE) if '/messages/batches" ' in block and " -d " in block)
    return str(json.loads(call(user, create.replace("MODEL", "scripted").replace("Hello", prompt)))["id"])


def ended_message_batch(user: User) -> str:
    made = message_batch(user, "Hello")
    user.wait(made.replace("msgbatch_", "batch_"))
    return made


def running_message_batch(user: User) -> str:
    return message_batch(user, "SLEEP 60")


def webhook(user: User) -> str:
    return user.sdk.webhooks.create(
        name="a", url="https://receiver.example.com/hook", event_types=["batch.completed"]
    ).id


def call(user: User, block: str) -> str:
    env = {**os.environ, "OPENAI_BASE_URL": str(user.sdk.base_url).rstrip("/"), "OPENAI_API_KEY": user.sdk.api_key}
    server = env["OPENAI_BASE_URL"].removesuffix("/v1")
    ended = subprocess.run(
        ["bash", "-c", block.replace("http://127.0.0.1:8000", server)],
        check=False,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, (block, ended.stdout, ended.stderr)
    return ended.stdout


def with_real_ids(block: str, user: User) -> str:
    """Put fresh objects in the place of the page's ids: a call may end what it is about."""
    makers: dict[str, Callable[[User], str]] = {
        "file-abc": file_id,
        "batch_abc": running_batch if "/cancel" in block else ended_batch,
        "msgbatch_abc": running_message_batch if "/cancel" in block else ended_message_batch,
        "we_abc": webhook,
        "MODEL": lambda _: "scripted",
    }
    if "upload_abc" in block:
        upload, part = upload_with_part(user)
        block = block.replace("upload_abc", upload).replace("part_abc", part)
    for name, make in makers.items():
        if re.search(rf"\b{name}\b", block):
            block = re.sub(rf"\b{name}\b", make(user), block)
    return block


def test_every_example_of_the_reference_is_answered(
    user: User, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requests.jsonl").write_bytes(numbered(2))
    examples = documented.blocks(PAGE)
    assert len(examples) > 20
    for block in examples:
        call(user, with_real_ids(block, user))


def test_the_python_of_the_pages_about_files_and_images_runs(
    user: User, running: services.Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", user.sdk.api_key)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requests.jsonl").write_bytes(numbered(2))
    (tmp_path / "leaf.jpg").write_bytes(encoded("jpeg"))
    did: dict[str, Any] = {"client": user.sdk, "Path": Path, "url": CHAT}
    for page in ("docs/files.md", "docs/images.md"):
        exec(compile("\n".join(documented.blocks(page, "python")), page, "exec"), did)
    did["client"].close()
    assert user.wait(did["batch"].id).status == "completed"
    assert did["image"].purpose == "vision"
