"""What a preset is: how a row becomes requests, and how answers become columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from client import results
from client.results import Failure

CHAT = "/v1/chat/completions"
CUT_OFF = "cut_off"
Body = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What one request came to, in columns."""

    values: list[Any]
    failure: Failure | None = None


@dataclass(frozen=True)
class Job:
    """One preset with its options. Each row is asked about once for each variant."""

    column: str
    """The column that is read."""
    variants: Sequence[str]
    """Languages, say; one that is empty where a row is asked about once."""
    body: Callable[[str, Mapping[str, Any], str], Body]
    """Makes the request of a text, its row and a variant."""
    added: Mapping[str, type]
    """Columns that are added, those of each variant in turn; the last one is for what went wrong."""
    width: int
    """Columns of one variant."""
    read: Callable[[Body], Answer]
    """Reads the first choice of an answer."""


def custom_id(row: int, variant: str) -> str:
    """Return the name of a request: the number of its row, from 1, and the variant."""
    return f"row-{row}" + (f"-{variant}" if variant else "")


def answer(job: Job, line: dict[str, Any] | None) -> Answer:
    """Return what a line of a result file says."""
    problem = results.failure(line)
    if problem is not None or line is None:
        return Answer([None] * job.width, problem)
    return job.read(line["response"]["body"]["choices"][0])


def content(choice: Body) -> tuple[str, Failure | None]:
    """Return the text of a choice, and that it is not whole."""
    text = str(choice["message"]["content"] or "").strip()
    if choice.get("finish_reason") == "length":
        return text, Failure(CUT_OFF, "The answer reached the limit of tokens (--max-tokens).")
    return text, None
