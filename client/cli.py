"""The commands for batches; `promptmill` finds them as entry points. docs/cli.md has their exit statuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import printing
from jobs.printing import Json

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

BaseUrl = Annotated[
    str | None, typer.Option(envvar="OPENAI_BASE_URL", help="The server. Else the config file's, or the running stack.")
]
ApiKey = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="A key of the server.")]
BatchId = Annotated[str, typer.Argument(help="The batch's id, batch_...")]
Wait = Annotated[bool, typer.Option("--wait", help="Watch it until it has ended.")]
Requests = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A file of requests, JSONL.")]
Endpoint = Annotated[str | None, typer.Option(help="What the batch is for, like /v1/embeddings. The first line's url.")]


@contextmanager
def _connected(base_url: str | None, api_key: str | None) -> Iterator["OpenAI"]:
    from client import config, server

    with server.connected(config.find(base_url, api_key)) as sdk:
        yield sdk


def _finish(sdk: "OpenAI", batch: "Batch", *, wait: bool, json: bool) -> None:
    """Show a batch that was made just now, or what became of it."""
    from collections import Counter

    from client import show, watching

    codes: Counter[str] = Counter()
    if wait:
        (batch,), codes = watching.watch(sdk, [batch], show.err)
    show.finish(batch, codes, json=json)


def submit(
    file: Requests,
    *,
    endpoint: Endpoint = None,
    metadata: Annotated[list[str] | None, typer.Option(help="A pair NAME=VALUE; repeatable.")] = None,
    window: Annotated[str, typer.Option(help="How long the batch may take.")] = "24h",
    wait: Wait = False,
    json: Json = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Upload a file of requests and make a batch of it."""
    from client import batches

    pairs = dict(_pair(text) for text in metadata or ())
    with _connected(base_url, api_key) as sdk:
        batch = batches.submit(sdk, file, endpoint or batches.endpoint_of(file), window=window, metadata=pairs or None)
        _finish(sdk, batch, wait=wait, json=json)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        message = f"{text} is no pair: say it like team=search."
        raise typer.BadParameter(message)
    return name, value


def status(
    batch_id: Annotated[str | None, typer.Argument(help="One batch; the newest ones, if not given.")] = None,
    *,
    limit: Annotated[int, typer.Option(min=1, help="Most batches of the list.")] = 20,
    json: Json = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Show a batch with its failures by code, or list batches, newest first."""
    from client import batches, results, show

    with _connected(base_url, api_key) as sdk:
        if batch_id is not None:
            batch = sdk.batches.retrieve(batch_id)
            codes = results.failure_codes(sdk, batch)
            printing.as_json(show.batch_document(batch, codes)) if json else show.batch(batch, codes)
            return
        listed = batches.newest(sdk, limit)
    if json:
        printing.as_json([batch.model_dump(mode="json") for batch in listed])
    else:
        show.batches(listed)


def watch(
    batch_id: BatchId,
    *,
    json: Annotated[bool, typer.Option("--json", help="At the end print the batch as JSON.")] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Watch a batch until it has ended: a bar, rows and tokens a second, time left, failures by code."""
    with _connected(base_url, api_key) as sdk:
        _finish(sdk, sdk.batches.retrieve(batch_id), wait=True, json=json)


def download(
    batch_id: BatchId,
    *,
    out: Annotated[
        Path | None, typer.Option(help="Where results go: .jsonl, or with --join .csv, .tsv, .jsonl, .parquet.")
    ] = None,
    errors: Annotated[Path | None, typer.Option(help="Where the error file goes. Beside OUT.")] = None,
    join: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The table that the requests came from.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Of --join: the column that has the custom_id.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of --join: of text. UTF-8, or UTF-16 if it begins so.")] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Of --join: of CSV. A comma, or a semicolon if the header has only that.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Take what there is, before the batch has ended.")] = False,
    json: Json = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Download the results of a batch. A download that broke off goes on where it was, with the same command."""
    from client import batches, downloads, show

    if (join is None) != (key is None):
        message = "--join and --key go together."
        raise typer.BadParameter(message)
    target = out or Path(f"{batch_id}.{'csv' if join else 'jsonl'}")
    if join is None:
        # One that is named after its batch is ours.
        for named in filter(None, (out, errors)):
            downloads.require_absent(named, force=force)
    table = None
    if join is not None:
        from client import joining, tables

        table = tables.open_table(join, encoding=encoding, delimiter=delimiter)
    with _connected(base_url, api_key) as sdk:
        batch = sdk.batches.retrieve(batch_id)
        if table is not None and key is not None:
            got = joining.download_joined(sdk, batch, table, key, target, force=force, partial=partial)
        else:
            got = batches.download(sdk, batch, target, errors, partial=partial)
    if json:
        printing.as_json(got)
    else:
        show.pairs(got)


def cancel(batch_id: BatchId, *, json: Json = False, base_url: BaseUrl = None, api_key: ApiKey = None) -> None:
    """Cancel a batch. What is answered is kept."""
    from client import show

    with _connected(base_url, api_key) as sdk:
        batch = sdk.batches.cancel(batch_id)
    if json:
        printing.as_json(show.batch_document(batch, {}))
    else:
        show.say(f"{batch.id} is {batch.status}.")


def retry(
    batch_id: BatchId, *, wait: Wait = False, json: Json = False, base_url: BaseUrl = None, api_key: ApiKey = None
) -> None:
    """Run the failed requests of a batch that has ended again, as a new batch."""
    from client import batches

    with _connected(base_url, api_key) as sdk:
        _finish(sdk, batches.retry(sdk, sdk.batches.retrieve(batch_id)), wait=wait, json=json)


def validate(file: Requests, *, endpoint: Endpoint = None, json: Json = False) -> None:
    """Find everything that keeps a file of requests from running, without a server. Ends with 1 if there is any."""
    from client import checking, show
    from jobs import settings

    report = checking.check(file, endpoint, settings.load().limits)
    problems = [problem.model_dump() for problem in report.problems]
    if json:
        printing.as_json(
            {"endpoint": report.endpoint, "requests": report.requests, "models": report.models, "problems": problems}
        )
    else:
        for problem in report.problems:
            show.say(f"{file}:{problem.line or ''}: {problem.code}: {problem.message}")
        if len(report.models) > 1:
            show.note("It names several models: it runs if one worker serves all of them.")
        show.say(f"{report.requests} requests, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


def estimate(
    file: Requests,
    *,
    profile: Annotated[str | None, typer.Option(help="For the time: a profile, as of `promptmill worker`.")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(exists=True, help="A tokenizer.json, or its folder. Else the profile's, if it is here."),
    ] = None,
    answer_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Expected tokens of an answer. Else the most that each request allows."),
    ] = None,
    json: Json = False,
) -> None:
    """Estimate rows, tokens, and the time with a profile, without a server."""
    from dataclasses import asdict

    from client import estimating, show
    from jobs import settings

    worker = settings.load(profile).worker if profile else None
    count, counted_by = estimating.counter(tokenizer, worker)
    made = estimating.make(estimating.bodies(file), count, counted_by, answer_tokens, worker)
    printing.as_json(asdict(made)) if json else show.estimate(made, profile)


def doctor(*, json: Json = False, base_url: BaseUrl = None, api_key: ApiKey = None) -> None:
    """Look at API, Postgres, Redis, engine, GPU and disk, and say how to mend what is wrong. Ends with 1 if one is."""
    from dataclasses import asdict

    from client import doctor as doctors
    from jobs import settings

    found = list(doctors.examine(settings.load(), base_url, api_key))
    if json:
        printing.as_json([asdict(each) for each in found])
    else:
        printing.table(
            ["part", "state", "found", "how to mend it"], [(f.name, f.state, f.found, f.mend) for f in found]
        )
    if any(each.state == "bad" for each in found):
        raise typer.Exit(1)
