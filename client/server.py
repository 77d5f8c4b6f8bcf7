"""The SDK, and what it raises in our words."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from openai import APIConnectionError, APIError, APIStatusError, OpenAI

from client.config import Server
from jobs.errors import InvalidRequest, PromptmillError, Unavailable

# A command that one waits for says soon that nobody answers. A run of many calls is more patient: the SDK waits 0.5 to
# 8 s between them, and a server that is started anew is back by then.
RETRIES, PATIENT_RETRIES = 2, 6


@contextmanager
def connected(server: Server, *, retries: int = RETRIES) -> Iterator[OpenAI]:
    """Yield the SDK for a server.

    Raises:
        Unavailable: nobody answers.
        InvalidRequest: the server refuses the call; the message is its own.
    """
    with OpenAI(base_url=server.base_url, api_key=server.api_key, max_retries=retries) as sdk:
        try:
            yield sdk
        except APIError as error:
            raise in_our_words(error, server.base_url) from None
        except httpx2.TransportError as error:
            message = f"The connection to {server.base_url} broke: {error}"
            raise Unavailable(message) from None


def in_our_words(error: APIError, base_url: str) -> PromptmillError:
    """Return our error for one of the SDK's: one line, with the cause."""
    if isinstance(error, APIConnectionError):
        return Unavailable(f"{base_url} does not answer: {error.__cause__ or error}")
    body = error.body
    message = str(body["message"]) if isinstance(body, dict) and "message" in body else error.message
    if isinstance(error, APIStatusError):
        message = f"{message} (status {error.status_code} of {base_url})"
    return InvalidRequest(message, code=error.code)


def default_model(sdk: OpenAI, server: Server) -> str:
    """Return the model of the user's file, or the only one that the server has.

    Raises:
        InvalidRequest: it has none or several.
    """
    if server.model:
        return server.model
    names = [model.id for model in sdk.models.list()]
    if len(names) == 1:
        return names[0]
    message = f"Which model? Name it with --model; the server has: {', '.join(names) or 'none, start a worker'}."
    raise InvalidRequest(message)
