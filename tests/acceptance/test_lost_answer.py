"""The answer to a call gets lost on the way; the stock SDK repeats it by itself, and there is still one object."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import services
from anthropic import Anthropic
from openai import OpenAI
from payloads import numbered


class Losing:
    """A proxy that takes each first answer to a POST for itself and hangs up."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.lost = 0
        self._seen = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                self._pass_on(client)

    def _pass_on(self, client: socket.socket) -> None:
        request = read_message(client)
        with socket.create_connection(("127.0.0.1", self._upstream)) as upstream:
            upstream.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            answer = b"".join(iter(lambda: upstream.recv(65_536), b""))
        self._seen += request.startswith(b"POST")
        if request.startswith(b"POST") and self._seen % 2:
            self.lost += 1
            return
        client.sendall(answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def read_message(connection: socket.socket) -> bytes:
    """Read one request with its body, whose length it tells."""
    data = receive(connection)
    while b"\r\n\r\n" not in data:
        data += receive(connection)
    head = data.split(b"\r\n\r\n")[0]
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(data) < len(head) + 4 + length:
        data += receive(connection)
    return data


def receive(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    assert data, "the client hung up"
    return data


@pytest.fixture
def losing(stack: services.Stack) -> Iterator[Losing]:
    stack.api()
    stack.know_model("scripted")
    proxy = Losing(stack.port)
    yield proxy
    proxy.close()


def test_a_lost_answer_makes_no_second_object(stack: services.Stack, losing: Losing) -> None:
    with OpenAI(base_url=f"http://127.0.0.1:{losing.port}/v1", api_key=stack.key(), max_retries=2) as sdk:
        file = sdk.files.create(file=("a.jsonl", numbered(5)), purpose="batch")
        batch = sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        assert losing.lost == 2
        assert [each.id for each in sdk.files.list()] == [file.id]
        assert [each.id for each in sdk.batches.list()] == [batch.id]


def test_a_file_in_parts_survives_every_lost_answer(stack: services.Stack, losing: Losing) -> None:
    """Also with parts that are equal: none of them is taken for another."""
    data = b"x" * 40_000
    with OpenAI(base_url=f"http://127.0.0.1:{losing.port}/v1", api_key=stack.key(), max_retries=2) as sdk:
        upload = sdk.uploads.upload_file_chunked(
            file=data, filename="a", bytes=len(data), mime_type="b", purpose="user_data", part_size=10_000
        )
        assert losing.lost == 6
        assert upload.file
        assert [each.id for each in sdk.files.list()] == [upload.file.id]
        assert sdk.files.content(upload.file.id).content == data


def test_a_lost_answer_makes_no_second_message_batch(stack: services.Stack, losing: Losing) -> None:
    params = {"model": "scripted", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}
    requests: Any = [{"custom_id": "a", "params": params}]
    with Anthropic(base_url=f"http://127.0.0.1:{losing.port}", api_key=stack.key(), max_retries=2) as sdk:
        batch = sdk.messages.batches.create(requests=requests)
        assert losing.lost == 1
        assert [each.id for each in sdk.messages.batches.list()] == [batch.id]
