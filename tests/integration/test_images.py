"""Images that were uploaded: whose they are, how often they are read, what happens while Postgres is away."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pictures
import pytest
from payloads import numbered
from sqlalchemy import Engine, event

from jobs import db, files, keys
from jobs.errors import RequestRejected
from jobs.settings import Images
from workers import endpoints
from workers.engines.scripted import ScriptedEngine
from workers.images import resolver as resolving
from workers.images.resolver import Resolver

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
PNG = pictures.encoded("png", (64, 48))
UNKNOWN = "there is no file '{}' with purpose 'vision'"


class Worker:
    """A resolver of its own for each story, beside an engine that says what it is shown."""

    def __init__(self, domain: Any) -> None:
        self.domain = domain

    def tell(self, story: Callable[[Resolver], Awaitable[Any]], **settings: Any) -> Any:
        async def run() -> Any:
            made = Resolver(Images(**settings), self.domain.engine)
            try:
                return await story(made)
            finally:
                await made.close()

        return asyncio.run(run())

    async def ask(self, made: Resolver, file_id: str, tenant: str = "") -> str:
        part = {"type": "image_url", "image_url": {"file_id": file_id}}
        answer = await self.run(made, CHAT, tenant, messages=pictures.user(pictures.text("see "), part))
        return str(answer["choices"][0]["message"]["content"])

    async def run(self, made: Resolver, endpoint: str, tenant: str = "", **body: Any) -> Any:
        return await endpoints.run(
            ScriptedEngine(["scripted"], stall_seconds=60),
            endpoint,
            {"model": "scripted", **body},
            tenant=tenant or self.domain.project_id,
            images=made,
        )

    def show(self, file_id: str, tenant: str = "") -> str:
        return str(self.tell(lambda made: self.ask(made, file_id, tenant)))

    def refusal(self, file_id: str, tenant: str = "", **settings: Any) -> RequestRejected:
        with pytest.raises(RequestRejected) as caught:
            self.tell(lambda made: self.ask(made, file_id, tenant), **settings)
        assert (caught.value.status_code, caught.value.param) == (400, "messages.0.content.1.image_url.file_id")
        return caught.value

    def delete(self, file_id: str) -> None:
        with db.transaction(self.domain.engine) as connection:
            files.mark_deleted(connection, self.domain.project_id, file_id)


@pytest.fixture
def worker(domain: Any) -> Worker:
    return Worker(domain)


@pytest.fixture
def image(domain: Any) -> str:
    file_id: str = domain.upload(PNG, purpose="vision")
    return file_id


def test_an_uploaded_image_reaches_the_engine(worker: Worker, image: str) -> None:
    assert worker.show(image) == "see [image 64x48 png]"


def test_an_image_of_many_pages_is_whole(worker: Worker) -> None:
    data = PNG + b"\0" * 9_000_000
    assert worker.show(worker.domain.upload(data, purpose="vision")) == "see [image 64x48 png]"


def test_images_of_all_doors_are_looked_up(worker: Worker, image: str) -> None:
    responses = [{"role": "user", "content": [{"type": "input_image", "file_id": image}]}]
    messages = [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": image}}]}]

    async def story(made: Resolver) -> None:
        answer = await worker.run(made, RESPONSES, input=responses)
        assert answer["output"][0]["content"][0]["text"] == "[image 64x48 png]"
        answer = await worker.run(made, MESSAGES, messages=messages, max_tokens=9)
        assert answer["content"][0]["text"] == "[image 64x48 png]"

    worker.tell(story)


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        (
            RESPONSES,
            {
                "input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}],
                "instructions": "x",
            },
            "input.0.content.0.file_id",
        ),
        (
            RESPONSES,
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}
                ]
            },
            "input.0.content.0.image_url",
        ),
        (
            MESSAGES,
            {
                "max_tokens": 9,
                "system": "x",
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "file-1"}}]},
                ],
            },
            "messages.1.content.0.source.file_id",
        ),
    ],
)
def test_an_image_that_cannot_be_used_has_the_clients_name(
    worker: Worker, endpoint: str, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestRejected) as caught:
        worker.tell(lambda made: worker.run(made, endpoint, **body))
    assert caught.value.param == param
    assert f"'{param}'" in caught.value.message


def test_another_projects_image_is_like_none(worker: Worker, image: str) -> None:
    with db.transaction(worker.domain.engine) as connection:
        theirs = keys.authenticate(connection, keys.create(connection, project="theirs", name="")).project_id

    async def story(made: Resolver) -> None:
        """Not even after the worker has read it for its owner."""
        assert await worker.ask(made, image) == "see [image 64x48 png]"
        for file_id in (image, "file-missing"):
            with pytest.raises(RequestRejected) as caught:
                await worker.ask(made, file_id, theirs)
            assert UNKNOWN.format(file_id) in caught.value.message
            assert caught.value.code == "image_file_not_found"

    worker.tell(story)


def test_postgres_itself_shows_no_other_projects_image(worker: Worker, image: str) -> None:
    """With a policy that shows nothing, a project does not even see its own: the look-up goes through it."""
    worker.domain.execute("ALTER POLICY only_the_callers_project ON files USING (false)")
    assert worker.refusal(image).code == "image_file_not_found"


@pytest.mark.parametrize("purpose", ["batch", "user_data"])
def test_a_file_of_another_purpose_is_no_image(worker: Worker, purpose: str) -> None:
    file_id = worker.domain.upload(numbered(1), purpose=purpose)
    assert UNKNOWN.format(file_id) in worker.refusal(file_id).message


def test_the_output_of_a_batch_is_no_image(worker: Worker) -> None:
    batch_id = worker.domain.new_batch(1).removeprefix("batch_")
    assert worker.refusal(f"file-{batch_id}-output").code == "image_file_not_found"


@pytest.mark.parametrize("file_id", ["x", "file-\x00", "../../etc/passwd", "file-' OR 1=1 --"])
def test_an_id_is_text(worker: Worker, file_id: str) -> None:
    assert worker.refusal(file_id).code == "image_file_not_found"


def test_a_deleted_and_an_expired_image_are_like_none(worker: Worker) -> None:
    deleted = worker.domain.upload(PNG, purpose="vision")
    worker.delete(deleted)
    assert worker.refusal(deleted).code == "image_file_not_found"
    expired = worker.domain.upload(PNG, purpose="vision")
    worker.domain.execute("UPDATE files SET expires_at = app_now() + interval '1 hour' WHERE id = :id", id=expired)
    assert worker.show(expired)
    worker.domain.later("2 hours")
    assert worker.refusal(expired).code == "image_file_not_found"


def test_an_image_that_is_deleted_is_noticed_in_the_middle_of_a_batch(
    worker: Worker, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(made: Resolver) -> None:
        assert await worker.ask(made, image)
        worker.delete(image)
        assert await worker.ask(made, image), "it is remembered for a while"
        monkeypatch.setattr(resolving, "_moment", lambda: -1)
        with pytest.raises(RequestRejected):
            await worker.ask(made, image)

    worker.tell(story)


def test_a_large_file_is_not_even_read(worker: Worker, image: str, begun: list[int]) -> None:
    assert worker.refusal(image, max_bytes=len(PNG) - 1).code == "image_file_too_large"
    assert len(begun) == 1


@pytest.fixture
def begun(domain: Any) -> Iterator[list[int]]:
    """Count transactions."""
    counted: list[int] = []

    def count(_: Any) -> None:
        counted.append(1)

    event.listen(domain.engine, "begin", count)
    yield counted
    event.remove(domain.engine, "begin", count)


def test_an_image_that_many_rows_name_is_looked_up_and_read_once(worker: Worker, image: str, begun: list[int]) -> None:
    worker.show(image)
    once = len(begun)

    async def story(made: Resolver) -> None:
        for _ in range(2):
            answers = await asyncio.gather(*(worker.ask(made, image) for _ in range(100)))
            assert set(answers) == {"see [image 64x48 png]"}

    worker.tell(story)
    assert len(begun) == 2 * once


def test_equal_bytes_are_read_once_however_they_come(worker: Worker, image: str, begun: list[int]) -> None:
    worker.show(image)
    again = worker.domain.upload(PNG, purpose="vision")
    begun.clear()

    async def story(made: Resolver) -> None:
        await worker.run(made, CHAT, messages=pictures.user(pictures.part(pictures.data_url(PNG))))
        assert begun == []
        for file_id in (image, again):
            await worker.ask(made, file_id)

    worker.tell(story)
    assert len(begun) == 2, "each id was looked up, and none was read"


def test_without_room_to_keep_images_they_still_work(worker: Worker, image: str) -> None:
    async def story(made: Resolver) -> None:
        for _ in range(2):
            assert await worker.ask(made, image) == "see [image 64x48 png]"

    worker.tell(story, cache_bytes=1)


def test_a_look_up_waits_while_postgres_is_away(
    worker: Worker, image: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it no outcome could be written either."""
    monkeypatch.setattr(resolving, "UNAVAILABLE_SECONDS", 0.05)

    async def story(made: Resolver) -> None:
        await asyncio.to_thread(allow_connections, engine, "false")
        engine.dispose()
        asking = asyncio.create_task(worker.ask(made, image))
        done, _ = await asyncio.wait([asking], timeout=0.5)
        assert not done
        await asyncio.to_thread(allow_connections, engine, "true")
        assert await asking == "see [image 64x48 png]"

    worker.tell(story)


def allow_connections(engine: Engine, allow: str) -> None:
    """Open or close the database for new connections."""
    name = engine.url.database
    other = db.make_engine(engine.url.set(database="postgres").render_as_string(hide_password=False), connections=1)
    with other.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {allow}")
    other.dispose()
