"""Endpoints that an engine does not serve itself, in terms of one that it does. Pure, but for images and the engine.

    /v1/responses, /v1/messages  ->  /v1/chat/completions
    /v1/score                    ->  /v1/embeddings

An engine that lists one of them serves it in its own way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import EngineError, RequestRejected
from jobs.protocol import BATCH_ENDPOINTS, CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, SCORE
from workers.endpoints import messages, responses, score
from workers.engines import parameters
from workers.engines.base import Body, Engine
from workers.engines.strict import Strict
from workers.images import references
from workers.images.resolver import Resolver


@dataclass(frozen=True)
class Translation:
    """How requests for one endpoint are put to another."""

    via: str
    """The endpoint that the engine serves."""
    request: type[Strict]
    """The parameters that the client may send."""
    to: Callable[[Any], Body]
    """Makes the engine's request from the checked one."""
    back: Callable[[Any, Body], Body]
    """Makes the client's answer from the checked request and the engine's answer."""
    names: Callable[[Any], Mapping[str, str]]
    """Maps the names of the engine's parameters to those that the client sent."""


TRANSLATIONS = {
    RESPONSES: Translation(
        CHAT, responses.ResponsesParameters, responses.to_chat, responses.from_chat, responses.names
    ),
    MESSAGES: Translation(CHAT, messages.MessagesParameters, messages.to_chat, messages.from_chat, messages.names),
    SCORE: Translation(EMBEDDINGS, score.ScoreParameters, score.to_embeddings, score.from_embeddings, score.names),
}
# What an answer is a list of.
ANSWERS = {CHAT: "choices", COMPLETIONS: "choices", EMBEDDINGS: "data"}


def served(engine: Engine) -> list[str]:
    """Return every endpoint that can be run on the engine."""
    own = engine.endpoints()
    return [name for name in BATCH_ENDPOINTS if name in own or (name in TRANSLATIONS and TRANSLATIONS[name].via in own)]


async def run(engine: Engine, endpoint: str, body: Body, *, tenant: str = "", images: Resolver | None = None) -> Body:
    """Return the response body of one request, by the engine itself or by translation.

    Images of chat bodies are looked up and checked on the way, with `images`; without it none are taken.

    Raises:
        RequestRejected: the request cannot be run; a parameter has the name that the client knows it by.
        EngineError: what the engine answered is no answer.
        EngineFatal: the engine is dead.
    """
    if endpoint in engine.endpoints():
        return await _ask(engine, endpoint, body, tenant, images)
    translation = TRANSLATIONS[endpoint]
    asked = parameters.check(translation.request, body)
    try:
        answer = await _ask(engine, translation.via, translation.to(asked), tenant, images)
    except RequestRejected as error:
        raise _renamed(error, translation.names(asked)) from None
    return translation.back(asked, answer)


async def _ask(engine: Engine, endpoint: str, body: Body, tenant: str, images: Resolver | None) -> Body:
    if endpoint == CHAT and (places := references.find(body)):
        if images is None or not engine.takes_images():
            raise RequestRejected("This model takes no images.", code="invalid_value", param=places[0].param)
        body = await images.resolve(body, places, tenant)
    return _checked(endpoint, await engine.run(endpoint, body, tenant=tenant))


def _checked(endpoint: str, answer: Body) -> Body:
    """Return an engine's answer if it is one. What it holds else is the engine's own matter."""
    if name := ANSWERS.get(endpoint):
        answers = answer.get(name) if isinstance(answer, dict) else None
        if not (isinstance(answers, list) and answers):
            raise EngineError
    return answer


def _renamed(error: RequestRejected, names: Mapping[str, str]) -> RequestRejected:
    if error.param is None:
        return error
    param = _client_name(error.param, names)
    message = error.message.replace(f"'{error.param}'", f"'{param}'")
    return RequestRejected(message, status_code=error.status_code, code=error.code, param=param)


def _client_name(param: str, names: Mapping[str, str]) -> str:
    """Return the client's name for a parameter, by the longest part of its path that has one."""
    fitting = [name for name in names if param == name or param.startswith(f"{name}.")]
    known = max(fitting, key=len, default=None)
    return param if known is None else names[known] + param.removeprefix(known)
