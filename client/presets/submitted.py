"""Parts of a table and the batches that were made of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openai import NotFoundError, OpenAI
from openai.types import Batch

from client import batches
from client.presets.parts import Part
from jobs.errors import InvalidRequest

MAX_SHOWN_PROBLEMS = 3
# Asked again the same way, the server says the same. A key or a quota may be another by then.
REFUSALS = (400, 404, 413, 422)


@dataclass(frozen=True)
class Submitted:
    """A part and its batches: the first one, and then each of the requests that failed in the one before."""

    part: Part
    batches: list[Batch]

    @property
    def newest(self) -> Batch:
        return self.batches[-1]

    @property
    def retryable(self) -> int:
        """How many requests failed and are in an error file, from which they can be run again."""
        counts = self.newest.request_counts
        return counts.failed if counts and self.newest.error_file_id else 0

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield a name for each result file, and its id: all answers, later ones last, and what failed to the end."""
        for place, batch in enumerate(self.batches):
            for kind, file_id in batches.result_files(batch, partial=False).items():
                if kind == "output" or batch is self.newest:
                    yield f"{kind}-{self.part.number}-{place}.jsonl", file_id


def retrieve(sdk: OpenAI, batch_id: str, out: Path) -> Batch:
    """Return a batch of the run for an output.

    Raises:
        InvalidRequest: the server does not know it.
    """
    try:
        return sdk.batches.retrieve(batch_id)
    except NotFoundError:
        raise gone(batch_id, out) from None


def gone(what: str, out: Path) -> InvalidRequest:
    """Return the error for what the run for an output needs, and the server does not have."""
    message = (
        f"{what}, of the run for {out}, is not on the server: it was deleted, or this is another server or project. "
        f"{anew(out)} begins anew."
    )
    return InvalidRequest(message)


def changed(out: Path) -> InvalidRequest:
    """Return the error for a run that goes on with something else than it began with."""
    message = (
        f"The run for {out} had another input or other options when it began. Use those, or {anew(out)}: its batches "
        "are cancelled, and a new run begins."
    )
    return InvalidRequest(message)


def refused(batch: Batch) -> InvalidRequest:
    """Return the error for a batch of which nothing runs."""
    problems = (batch.errors and batch.errors.data) or []
    # One cause often has a problem in each line.
    causes = dict.fromkeys(f"{each.code}: {each.message}" for each in problems)
    shown = "; ".join(list(causes)[:MAX_SHOWN_PROBLEMS])
    return InvalidRequest(f"The server refused {batch.id}, {len(problems)} problems: {shown}")


def anew(out: Path) -> str:
    """Return the options with which a new run begins, whatever is there."""
    return "--restart --force" if out.exists() else "--restart"
