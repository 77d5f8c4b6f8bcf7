"""What a command prints: progress and errors go to stderr, the result to stdout, as JSON or for people."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import typer
from openai.types import Batch
from rich.console import Console

from jobs.printing import as_json, out, table

if TYPE_CHECKING:
    from client.estimating import Estimate
    from client.presets.rehearsal import Rehearsal

# Some rows failed, or were not run: the batch was cancelled or expired.
EXIT_SOME_FAILED = 3
err = Console(stderr=True)


def say(text: str) -> None:
    """Print a line for people, whole."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Print a line beside the result."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


def pairs(values: Mapping[str, object]) -> None:
    """Print names and values, a line each; what is None is left out."""
    width = max(map(len, values))
    for name, value in values.items():
        if value is not None:
            say(f"{name:<{width}}  {value}")


def moment(seconds: int | None) -> str | None:
    """Return a Unix time as people read it, UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def batch_document(batch: Batch, codes: Mapping[str, int]) -> dict[str, Any]:
    """Return a batch as the API has it, and its failed requests by code."""
    return {**batch.model_dump(mode="json"), "failures_by_code": dict(codes)}


def batch(each: Batch, codes: Mapping[str, int]) -> None:
    """Print a batch for people."""
    counts = each.request_counts
    pairs(
        {
            "batch": each.id,
            "status": each.status,
            "rows": counts and f"{counts.completed + counts.failed} of {counts.total}, {counts.failed} failed",
            "tokens": each.usage and f"{each.usage.input_tokens} in, {each.usage.output_tokens} out",
            "model": each.model,
            "endpoint": each.endpoint,
            "created": moment(each.created_at),
            "ended": moment(each.completed_at or each.failed_at or each.expired_at or each.cancelled_at),
            "output": each.output_file_id,
            "errors": each.error_file_id,
            "metadata": ", ".join(f"{name}={value}" for name, value in (each.metadata or {}).items()) or None,
        }
    )
    for code, count in codes.items():
        say(f"  {count} x {code}")
    for problem in (each.errors and each.errors.data) or ():
        where = "" if problem.line is None else f"line {problem.line}: "
        say(f"  {where}{problem.code}: {problem.message}")


def finish(each: Batch, codes: Mapping[str, int], *, json: bool) -> None:
    """Print a batch, and end the command with the status that says how it went.

    Raises:
        typer.Exit: it did not end with an answer for each row.
    """
    if json:
        as_json(batch_document(each, codes))
    else:
        batch(each, codes)
    if each.status == "failed":
        note(f"promptmill: {each.id} failed, and nothing of it ran.")
        raise typer.Exit(1)
    if each.status in ("expired", "cancelled") or (each.request_counts and each.request_counts.failed):
        raise typer.Exit(EXIT_SOME_FAILED)


def batches(listed: Sequence[Batch]) -> None:
    """Print a list of batches."""
    rows = []
    for each in listed:
        counts = each.request_counts
        done = f"{counts.completed + counts.failed}/{counts.total}" if counts else ""
        failed = str(counts.failed) if counts else ""
        rows.append((each.id, each.status, done, failed, each.model or "", moment(each.created_at) or ""))
    table(["id", "status", "rows", "failed", "model", "created"], rows)


def estimate(made: "Estimate", profile: str | None) -> None:
    """Print an estimate."""
    pairs({"rows": f"{made.rows:,}", **_estimated(made, profile)})


def rehearsal(made: "Rehearsal", profile: str | None) -> None:
    """Print what a run would ask for."""
    counts = {"model": made.model, "rows": f"{made.rows:,}", "requests": f"{made.requests.rows:,}"}
    pairs({**counts, **_estimated(made.requests, profile)})
    if made.first_prompt is not None:
        say(f"\nThe first prompt:\n\n{made.first_prompt}")


def _estimated(made: "Estimate", profile: str | None) -> dict[str, object]:
    return {
        "tokens in": f"{made.input_tokens:,} (counted by {made.counted_by}; images are not counted)",
        "tokens out": f"{made.answer_tokens:,} {'expected' if made.answer_tokens_named else 'at most'}"
        + (f", and {made.rows_without_limit:,} rows without a limit" if made.rows_without_limit else ""),
        "rows at once": made.rows_at_once,
        "time": None if profile is None else _time(made, profile),
    }


def _time(made: "Estimate", profile: str) -> str:
    if made.rows_without_limit:
        return "not known: name the length of answers with --answer-tokens"
    if made.seconds is None:
        return f"not known: nothing was measured with {profile}"
    time = timedelta(seconds=round(made.seconds))
    return f"{time} at the rate measured for paragraphs to translate; long prompts or schemas take longer"
