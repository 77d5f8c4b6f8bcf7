"""The commands that take a table and give one back; `promptmill` finds them as entry points."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli import ApiKey, BaseUrl
from jobs import printing
from jobs.printing import Json

if TYPE_CHECKING:
    from openai import OpenAI

    from client.config import Server
    from client.presets.job import Job
    from client.presets.runs import Outcome
    from client.presets.state import State
    from client.tables import Table

Source = Annotated[
    Path,
    typer.Argument(exists=True, dir_okay=False, help="A table: .csv, .tsv, .jsonl, .parquet, or .txt, line by line."),
]
Out = Annotated[Path, typer.Option(help="The table that is written: .csv, .tsv, .jsonl or .parquet.")]
Column = Annotated[str | None, typer.Option(help="The column that has the text. The only one, if there is just one.")]
Model = Annotated[str | None, typer.Option(help="The model. The config file's, or the only one of the server.")]
Prompt = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="A Jinja template of your own instead of the prompt.")
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, tokens.")]
Window = Annotated[str | None, typer.Option(help="How long each batch may take. 24h.")]
RowsPerBatch = Annotated[int | None, typer.Option(min=1, max=50_000, help="Most requests of one batch. As many as go.")]
Encoding = Annotated[str | None, typer.Option(help="Of text. UTF-8, or UTF-16 if it begins so.")]
Delimiter = Annotated[str | None, typer.Option(help="Of CSV. A comma, or a semicolon if the header has only that.")]
Force = Annotated[bool, typer.Option("--force", help="Write over a file that is there.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Render and count the requests, show the first prompt, and submit nothing.")
]
Profile = Annotated[str | None, typer.Option(help="Of --dry-run: for the time, a profile as of `promptmill worker`.")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Run again what failed in the finished run for OUT, and write OUT anew.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Fail if there is no interrupted run to go on with.")]
Restart = Annotated[
    bool, typer.Option("--restart", help="Forget an interrupted run and cancel its batches. Else it goes on.")
]


@dataclass(frozen=True)
class Options:
    """What both commands have."""

    out: Path
    model: str | None
    window: str | None
    rows_per_batch: int | None
    dry_run: bool
    profile: str | None
    force: bool
    retry_failed: bool
    resume: bool
    restart: bool
    json: bool
    base_url: str | None
    api_key: str | None


def translate(
    source: Source,
    *,
    to: Annotated[str, typer.Option(help="Languages, like de,fr: a column is added for each.")],
    out: Out,
    column: Column = None,
    language: Annotated[
        str | None, typer.Option("--from", help="The language of the text, if all rows have one.")
    ] = None,
    model: Model = None,
    prompt: Prompt = None,
    max_tokens: MaxTokens = None,
    window: Window = None,
    rows_per_batch: RowsPerBatch = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    dry_run: DryRun = False,
    profile: Profile = None,
    force: Force = False,
    retry_failed: RetryFailed = False,
    resume: Resume = False,
    restart: Restart = False,
    json: Json = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Translate a column of a table. Interrupted, the same command goes on where it was."""
    from client import tables
    from client.presets import prompts
    from client.presets import translate as preset

    languages = list(dict.fromkeys(part.strip() for part in to.split(",") if part.strip()))
    if not languages:
        message = "--to names no language."
        raise typer.BadParameter(message)
    table = tables.open_table(source, encoding=encoding, delimiter=delimiter)
    template, text = prompts.load(prompt, prompts.TRANSLATE), _column(table, column)
    _run(
        table,
        Options(
            out=out,
            model=model,
            window=window,
            rows_per_batch=rows_per_batch,
            dry_run=dry_run,
            profile=profile,
            force=force,
            retry_failed=retry_failed,
            resume=resume,
            restart=restart,
            json=json,
            base_url=base_url,
            api_key=api_key,
        ),
        lambda model: preset.job(
            table, text, languages, model=model, source=language, prompt=template, max_tokens=max_tokens
        ),
    )


def label(
    source: Source,
    *,
    labels: Annotated[str, typer.Option(help="A YAML file, or a list like good,bad.")],
    out: Out,
    column: Column = None,
    model: Model = None,
    prompt: Prompt = None,
    max_tokens: MaxTokens = None,
    window: Window = None,
    rows_per_batch: RowsPerBatch = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    dry_run: DryRun = False,
    profile: Profile = None,
    force: Force = False,
    retry_failed: RetryFailed = False,
    resume: Resume = False,
    restart: Restart = False,
    json: Json = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Give each row of a table one of some labels, and say how sure the model was."""
    from client import tables
    from client.presets import label as preset
    from client.presets import prompts

    known = preset.load(labels)
    table = tables.open_table(source, encoding=encoding, delimiter=delimiter)
    template, text = prompts.load(prompt, prompts.LABEL), _column(table, column)
    _run(
        table,
        Options(
            out=out,
            model=model,
            window=window,
            rows_per_batch=rows_per_batch,
            dry_run=dry_run,
            profile=profile,
            force=force,
            retry_failed=retry_failed,
            resume=resume,
            restart=restart,
            json=json,
            base_url=base_url,
            api_key=api_key,
        ),
        lambda model: preset.job(table, text, known, model=model, prompt=template, max_tokens=max_tokens),
    )


def _column(table: "Table", named: str | None) -> str:
    from jobs.errors import InvalidRequest

    if named is None and len(table.columns) == 1:
        return table.columns[0]
    if named not in table.columns:
        what = "Which column? Name it with --column" if named is None else f"{table.path} has no column {named}"
        message = f"{what}; it has: {', '.join(table.columns)}."
        raise InvalidRequest(message)
    if (count := table.columns.count(named)) > 1:
        raise InvalidRequest(f"{table.path} has {count} columns named {named}.")
    return named


def _run(table: "Table", options: Options, make_job: Callable[[str], "Job"]) -> None:
    from client import config, server, writing
    from client.presets import state

    if options.restart and (options.retry_failed or options.resume):
        message = "--restart forgets the run that --retry-failed and --resume go on with."
        raise typer.BadParameter(message)
    writing.check_out(options.out, table)
    if options.dry_run:
        _rehearse(table, options, make_job)
        return
    asked = config.find(options.base_url, options.api_key)
    with server.connected(asked) as impatient:
        # Says at once that nobody answers, or that the key is wrong. Nothing that the run need not do anyway.
        impatient.batches.list(limit=1)
        sdk = impatient.with_options(max_retries=server.PATIENT_RETRIES)
        with state.locked(options.out):
            outcome = _run_alone(sdk, asked, table, options, make_job)
    _finish(outcome, json=options.json)


def _rehearse(table: "Table", options: Options, make_job: Callable[[str], "Job"]) -> None:
    from client import show
    from client.presets import rehearsal
    from jobs import settings

    model = options.model or _model(options)
    worker = settings.load(options.profile).worker if options.profile else None
    made = rehearsal.rehearse(table, make_job(model), model, worker)
    printing.as_json(made.document()) if options.json else show.rehearsal(made, options.profile)


def _model(options: Options) -> str:
    """Return the model of the user's file; without one a server is asked."""
    from client import config, server

    if named := config.load_file().model:
        return named
    asked = config.find(options.base_url, options.api_key)
    with server.connected(asked) as sdk:
        return server.default_model(sdk, asked)


def _run_alone(
    sdk: "OpenAI", asked: "Server", table: "Table", options: Options, make_job: Callable[[str], "Job"]
) -> "Outcome":
    from client import downloads, server
    from client.presets import runs, state

    if options.restart:
        downloads.require_absent(options.out, force=options.force)
        runs.restart(sdk, options.out)
    remembered = _remembered(options)
    if remembered is None:
        remembered = state.new(options.model or server.default_model(sdk, asked), options.window or state.WINDOW)
    try:
        return runs.run(sdk, table, options.out, make_job, remembered, options.rows_per_batch)
    except KeyboardInterrupt:
        _say_what_goes_on(options.out)
        raise


def _remembered(options: Options) -> "State | None":
    """Return the run to go on with; None to begin one."""
    from client import downloads
    from client.presets import state
    from jobs.errors import InvalidRequest

    remembered = state.load(options.out)
    if remembered is not None and (options.retry_failed or not remembered.finished):
        return _taken_up(options, remembered)
    if options.retry_failed:
        raise InvalidRequest(f"No run for {options.out} is remembered in which requests failed: nothing to run again.")
    if options.resume:
        raise InvalidRequest(f"There is no interrupted run for {options.out}.")
    more = ", --retry-failed runs again what failed" if remembered else ""
    downloads.require_absent(options.out, force=options.force, more=more)
    return None


def _taken_up(options: Options, remembered: "State") -> "State":
    from client import show
    from client.presets import state
    from jobs.errors import InvalidRequest

    if remembered.finished:
        show.note(f"Running again what failed for {options.out}: {remembered.failed_rows} rows.")
        # A time of its own, and a window that the server refused is not asked for again.
        remembered.window = options.window or state.WINDOW
    elif options.window in (None, remembered.window):
        show.note(f"Going on with the run for {options.out} that was interrupted.")
    else:
        # A call whose answer was lost is repeated as it was: with other words it would be refused.
        message = f"The run for {options.out} began with --window {remembered.window}. Use that, or --restart."
        raise InvalidRequest(message)
    remembered.model = options.model or remembered.model
    return remembered


def _say_what_goes_on(out: Path) -> None:
    from client import show
    from client.presets import state

    remembered = state.load(out)
    running = remembered.parts if remembered and not remembered.finished else ()
    made = [batch for part in running for batch in part.made()[-1:]]
    show.note(f"The same command goes on. On the server these go on meanwhile: {', '.join(made) or 'none'}.")


def _finish(outcome: "Outcome", *, json: bool) -> None:
    from dataclasses import asdict

    from client import show

    if json:
        printing.as_json(asdict(outcome))
    else:
        show.say(f"{outcome.out}: {outcome.rows} rows, {outcome.failed_rows} failed")
        for code, count in outcome.failures_by_code.items():
            show.say(f"  {count} x {code}")
    if outcome.retryable_requests:
        show.note(f"The same command with --retry-failed runs {outcome.retryable_requests} failed requests again.")
    if outcome.failed_rows:
        raise typer.Exit(show.EXIT_SOME_FAILED)
