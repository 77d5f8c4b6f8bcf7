"""Labelling: a request for each row, whose answer is held to the labels by a JSON schema."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml
from jinja2 import Template

from client import writing
from client.presets import confidence, prompts
from client.presets.job import Answer, Body, Job, content
from client.results import Failure
from client.tables import Table
from jobs.errors import InvalidRequest

# Of each token the likeliest others, as many as the API has: with few of them confidences are low.
ALTERNATIVES = 20
SPARE_TOKENS = 16


@dataclass(frozen=True)
class Labels:
    """What a text may be called."""

    meanings: Mapping[str, str]
    """Each label, and what it means; empty where its name says it."""
    instructions: str = ""


def load(named: str) -> Labels:
    """Return the labels of a YAML file, or of a list like `good,bad`.

    The file is a list of labels, or has them under `labels`, as a list or each with its meaning, and may have
    `instructions`.

    Raises:
        InvalidRequest: there are fewer than two, or it says something else.
    """
    path = Path(named)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        return _checked(named.split(","), "", named)
    try:
        # Everything is text: `no` and `on` are labels like others. Nothing else than lists and maps is made.
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest(f"{named} cannot be read: {' '.join(str(error).split())}") from error
    if isinstance(document, list):
        return _checked(document, "", named)
    if not isinstance(document, dict) or not set(document) <= {"labels", "instructions"}:
        message = f"{named} must have labels, and may have instructions: nothing else."
        raise InvalidRequest(message)
    return _checked(document.get("labels"), document.get("instructions", ""), named)


def _checked(labels: Any, instructions: Any, named: str) -> Labels:  # noqa: ANN401  whatever the file has
    meanings = labels if isinstance(labels, dict) else dict.fromkeys(labels or (), "") if _is_flat(labels) else {}
    meanings = {name.strip(): meaning or "" for name, meaning in meanings.items() if name.strip()}
    texts = [*meanings.values(), instructions]
    if len(meanings) < 2 or not all(isinstance(each, str) for each in texts):
        message = f"{named}: expected at least two labels, as a list or each with its meaning."
        raise InvalidRequest(message)
    return Labels(meanings, instructions.strip())


def _is_flat(labels: object) -> bool:
    return isinstance(labels, list) and all(isinstance(each, str) for each in labels)


def job(
    table: Table, column: str, labels: Labels, *, model: str, prompt: Template, max_tokens: int | None = None
) -> Job:
    """Return the job: columns for the label, its confidence, and errors."""
    names = list(labels.meanings)
    longest = max(len(name.encode()) for name in names)

    def body(text: str, row: Mapping[str, Any], _: str) -> Body:
        values = {"text": text, "row": row, "labels": labels.meanings, "instructions": labels.instructions}
        return {
            "model": model,
            "messages": [{"role": "user", "content": prompts.render(prompt, values)}],
            "temperature": 0,
            "max_tokens": max_tokens or SPARE_TOKENS + longest,
            "response_format": _format(names),
            "logprobs": True,
            "top_logprobs": ALTERNATIVES,
        }

    label, sure, error = writing.free_names(table.columns, ("label", "label_confidence", "error"))
    added = {label: str, sure: float, error: str}
    return Job(column, [""], body, added, 2, lambda choice: read(choice, names))


def _format(names: list[str]) -> Body:
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": names}},
        "required": ["label"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": schema}}


def read(choice: Body, names: list[str]) -> Answer:
    """Return label and confidence; without probabilities no confidence."""
    text, failure = content(choice)
    if failure:
        return Answer([None, None], failure)
    try:
        label = msgspec.json.decode(text, type=dict[str, str]).get("label")
    except msgspec.MsgspecError:
        label = None
    if label not in names:
        return Answer([None, None], Failure("invalid_answer", "The answer is none of the labels."))
    tokens = (choice.get("logprobs") or {}).get("content") or []
    return Answer([label, confidence.of(label, names, tokens)])
