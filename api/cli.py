"""The command `promptmill`.

Exit status: 0 done; 1 it failed, the reason is on stderr; 2 the command line is wrong; 3 some rows failed
(client/show.py); 130 interrupted.
Commands of other packages are found as entry points of the group `promptmill.commands`.
"""

import asyncio
import sys
from dataclasses import asdict
from datetime import timedelta
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr
from rich.console import Console
from sqlalchemy.exc import ProgrammingError

from api import extras
from api.healthy import Process
from jobs import printing, settings
from jobs.errors import PromptmillError, Unavailable
from jobs.events import EventType
from jobs.keys import Scope
from jobs.printing import Json, out

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
ROOT = Path(__file__).resolve().parent.parent

app = typer.Typer(
    name="promptmill",
    help="An asynchronous batch-inference job queue.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
key_commands = typer.Typer(help="API keys.", no_args_is_help=True)
app.add_typer(key_commands, name="keys")
project_commands = typer.Typer(help="Projects and their quotas.", no_args_is_help=True)
app.add_typer(project_commands, name="projects")
webhook_commands = typer.Typer(help="Receivers that are told when batches end.", no_args_is_help=True)
app.add_typer(webhook_commands, name="webhooks")
worker_commands = typer.Typer(help="Workers, and the oldest version that may work.", no_args_is_help=True)
app.add_typer(worker_commands, name="workers")
err = Console(stderr=True)


@app.command()
def up(*, quiet: Annotated[bool, typer.Option(help="Do not show the API key and Flower's password.")] = False) -> None:
    """Run everything on this machine until Ctrl-C: Postgres, Valkey, API, worker, reconciler, Flower."""
    from api.stack.up import Address, Stack

    configuration = settings.load()

    def show(address: Address) -> None:
        if quiet:
            return
        out.print(f"\n[bold]Promptmill is ready at {address.base_url}[/bold]")
        out.print(
            f"  export OPENAI_BASE_URL={address.base_url}\n  export OPENAI_API_KEY={address.api_key}", soft_wrap=True
        )
        out.print(f"  Here, in another terminal: {sys.argv[0]} --help", soft_wrap=True)
        if configuration.web.enabled:
            out.print(f"  Web page: {address.base_url.removesuffix('/v1')}/  (log in with the key)", soft_wrap=True)
        out.print(f"  Flower: {address.flower_url}  ({address.flower_user} / {address.flower_password})")
        out.print(f"  Logs:   {address.log_dir}", soft_wrap=True)
        out.print("Ctrl-C stops everything.")

    stack = Stack(configuration, lambda message: out.print(f"  {message}", highlight=False))
    asyncio.run(stack.run(show))
    out.print("Everything is stopped.")


@app.command()
def demo(
    *,
    out_dir: Annotated[
        Path | None, typer.Option(help="Where the downloaded files go; below the data directory.")
    ] = None,
) -> None:
    """Run the main job end to end: start everything, submit two files with the openai SDK, download the results."""
    from api.demo import run

    configuration = settings.load()
    run(configuration, out_dir or configuration.data_dir / "demo", ROOT / "examples", out)


@app.command()
def serve() -> None:
    """Run the HTTP service."""
    from api.app import serve as serve_app

    serve_app(settings.load())


@app.command()
def migrate(*, json: Json = False) -> None:
    """Bring the tables to the newest state. Safe to run twice, and by two at once."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(ROOT / "alembic.ini")
    command.upgrade(config, "head")
    if json:
        printing.as_json({"revision": ScriptDirectory.from_config(config).get_current_head()})


@app.command()
def secrets(
    folder: Annotated[Path, typer.Argument(help="Where the files go; it is made, for you only to enter.")],
    *,
    postgres_host: Annotated[str, typer.Option(help="Postgres, as the processes reach it.")] = "postgres",
    redis_host: Annotated[str, typer.Option(help="Valkey, as the processes reach it.")] = "valkey",
    json: Json = False,
) -> None:
    """Make the secrets of a deployment, a file for each. What is there already stays as it is."""
    from api.stack import secret_files

    made = [f"{folder}/{name}" for name in secret_files.ensure(folder, postgres_host, redis_host)]
    if json:
        printing.as_json({"made": made})
        return
    for path in made:
        out.print(path, highlight=False, soft_wrap=True, markup=False)


@app.command()
def users(
    files: Annotated[list[Path], typer.Argument(help="The URL of a process each, as `promptmill secrets` makes them.")],
    *,
    json: Json = False,
) -> None:
    """Let the processes log in to Postgres, each as its own user. After `migrate`, as a superuser; repeatable."""
    from api.stack import secret_files

    administrator = settings.load().database_url.get_secret_value()
    let_in = secret_files.let_processes_in(administrator, files)
    printing.result({"users": let_in}, "\n".join(f"{user} may log in." for user in let_in), json=json)


@app.command()
def healthy(process: Annotated[Process, typer.Argument(help="Which one runs here.")], *, json: Json = False) -> None:
    """Tell whether a process on this machine does its work: for health checks. Ends with 1 if it does not."""
    from api.healthy import is_healthy

    works = is_healthy(settings.load(), process)
    if json:
        printing.as_json({"process": process, "healthy": works})
    if not works:
        _fail(f"{process} does not do its work.")


def _configuration() -> settings.Settings:
    """Return the settings; without a database of its own, the one of the stack that runs on the data directory."""
    from jobs.local import running_stack

    configuration = settings.load()
    if "database_url" not in configuration.model_fields_set and (stack := running_stack(configuration.data_dir)):
        hooks = configuration.webhooks.model_copy(update={"key_file": Path(stack.webhook_key_file)})
        return configuration.model_copy(update={"database_url": SecretStr(stack.database_url), "webhooks": hooks})
    return configuration


@app.command()
def conformance(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="After `--`: options of pytest and of the suite, `--help` shows them.")
    ] = None,
    *,
    base_url: Annotated[str, typer.Option(envvar="OPENAI_BASE_URL", help="The server, as the SDK takes it.")],
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="A key of the server.")],
    other_api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_OTHER_API_KEY", help="A key of another tenant.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model; the first that the server lists.")] = None,
    report: Annotated[Path | None, typer.Option(help="Where the report goes, in Markdown.")] = None,
) -> None:
    """Look at any server of the Batch API with the openai SDK, case by case. Ends with 1 if a case fails."""
    from api.conformance import run

    server = {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": api_key, "OPENAI_OTHER_API_KEY": other_api_key}
    options = {"--model": model, "--report": report and str(report.absolute())}
    given = [part for name, value in options.items() if value for part in (name, value)]
    if not run(ROOT / "tests" / "conformance", server, [*given, *(arguments or [])]):
        raise typer.Exit(EXIT_FAILED)


@key_commands.command("create")
def create_key(
    *,
    project: Annotated[str, typer.Option(help="The project; it is made if it is new.")] = "default",
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    scope: Annotated[list[Scope] | None, typer.Option(help="What it may do; repeatable. All, if not given.")] = None,
    days: Annotated[float | None, typer.Option(max=36_500, help="Days until it expires. Never, if not given.")] = None,
    json: Json = False,
) -> None:
    """Make an API key and print it. It is shown this once."""
    from api import admin

    lifetime = None if days is None else timedelta(days=days)
    scopes = scope or [Scope.EVERYTHING]
    key = admin.create_key(_configuration(), project=project, name=name, scopes=scopes, lifetime=lifetime)
    printing.result({"key": key, "project": project, "name": name, "scopes": scopes}, key, json=json)


@key_commands.command("list")
def list_keys(*, json: Json = False) -> None:
    """List the API keys, without their secrets."""
    from api import admin

    keys = admin.list_keys(_configuration())
    if json:
        printing.as_json([asdict(key) for key in keys])
        return
    cells = [(key.id, key.name, key.project, key.scopes, key.created_at, key.expires_at, key.state) for key in keys]
    printing.table(["id", "name", "project", "scopes", "created", "expires", "state"], cells)


@key_commands.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The key, or its id as `keys list` shows it.")], *, json: Json = False
) -> None:
    """Make an API key useless, at once."""
    from api import admin

    admin.revoke_key(_configuration(), key_id)
    # Not which one: it may be the key itself that was named.
    printing.result({"revoked": True}, "Revoked.", json=json)


@app.command()
def audit(
    *,
    project: Annotated[str | None, typer.Option(help="Its name. All projects, if not given.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    json: Json = False,
) -> None:
    """Show who did what: keys made and revoked, what was cancelled and deleted. The newest come last."""
    from api import admin

    deeds = admin.list_deeds(_configuration(), project, limit)
    if json:
        printing.as_json([asdict(deed) for deed in deeds])
        return
    cells = [(deed.at, deed.actor, deed.action, deed.project, deed.object_id) for deed in deeds]
    printing.table(["at", "who", "what", "project", "id"], cells)


Limit = Annotated[int | None, typer.Option(min=-1, help="-1: as the setting has it.")]


@project_commands.command("limit")
def limit_project(
    project: Annotated[str, typer.Argument(help="Its name.")],
    *,
    max_files: Limit = None,
    max_bytes: Limit = None,
    max_open_batches: Limit = None,
    max_open_requests: Limit = None,
    max_enqueued_tokens: Limit = None,
    calls_per_minute: Limit = None,
    json: Json = False,
) -> None:
    """Set quotas of a project, from the next call on. What is not named stays as it is."""
    from api import admin

    asked = {
        "max_files": max_files,
        "max_bytes": max_bytes,
        "max_open_batches": max_open_batches,
        "max_open_requests": max_open_requests,
        "max_enqueued_tokens": max_enqueued_tokens,
        "calls_per_minute": calls_per_minute,
    }
    limits = {name: None if value == -1 else value for name, value in asked.items() if value is not None}
    if not limits:
        message = "No limit is named."
        raise typer.BadParameter(message)
    admin.limit_project(_configuration(), project, limits)
    printing.result({"name": project, **limits}, "Done.", json=json)


@project_commands.command("list")
def list_projects(*, json: Json = False) -> None:
    """List the projects and their own quotas."""
    from api import admin

    rows = admin.list_projects(_configuration())
    if json:
        printing.as_json(rows)
        return
    cells = [["" if value is None else str(value) for value in row.values()] for row in rows]
    printing.table(list(rows[0]) if rows else ["name"], cells)


Project = Annotated[str, typer.Option(help="Whose batches.")]
EndpointId = Annotated[str, typer.Argument(help="The endpoint's id, as `webhooks list` shows it.")]


@webhook_commands.command("create")
def create_webhook(
    url: Annotated[str, typer.Argument(help="Where the messages go.")],
    *,
    project: Project = "default",
    name: Annotated[str, typer.Option(help="What the endpoint is for.")] = "",
    event: Annotated[list[EventType] | None, typer.Option(help="What it is told; may be repeated. All.")] = None,
    json: Json = False,
) -> None:
    """Register a receiver and print its secret. It is shown this once."""
    from api import admin
    from jobs.protocol import WebhookEndpointCreate

    new = WebhookEndpointCreate(url=url, name=name, event_types=event or list(EventType))
    endpoint = admin.create_webhook(_configuration(), project, new)
    printing.result(endpoint.model_dump(mode="json"), endpoint.signing_secret, json=json)


@webhook_commands.command("list")
def list_webhooks(*, project: Project = "default", json: Json = False) -> None:
    """List the receivers of a project, without their secrets."""
    from api import admin

    listed = admin.list_webhooks(_configuration(), project)
    if json:
        printing.as_json([each.model_dump(mode="json") for each in listed])
        return
    cells = [
        (each.id, each.name, each.url, ", ".join(each.event_types), "no" if each.disabled_at else "yes")
        for each in listed
    ]
    printing.table(["id", "name", "url", "events", "works"], cells)


@webhook_commands.command("rotate")
def rotate_webhook(
    endpoint_id: EndpointId,
    *,
    project: Project = "default",
    at_once: Annotated[bool, typer.Option("--at-once", help="The old secret does not sign for another day.")] = False,
    json: Json = False,
) -> None:
    """Give a receiver a new secret and print it."""
    from api import admin

    endpoint = admin.rotate_webhook(_configuration(), project, endpoint_id, keep_old=not at_once)
    printing.result(endpoint.model_dump(mode="json"), endpoint.signing_secret, json=json)


@webhook_commands.command("new-key")
def new_webhook_key(*, json: Json = False) -> None:
    """Print a new key: a line for the end of webhooks.key_file. `seal` then seals all secrets with it."""
    from jobs import vault

    key = vault.new_key()
    printing.result({"key": key}, key, json=json)


@webhook_commands.command("seal")
def seal_webhooks(*, json: Json = False) -> None:
    """Seal the secrets of all receivers with the newest key; older keys are not needed any more."""
    from api import admin

    sealed = admin.seal_webhooks(_configuration())
    printing.result({"sealed": sealed}, f"Sealed the secrets of {sealed} receivers.", json=json)


@webhook_commands.command("delete")
def delete_webhook(endpoint_id: EndpointId, *, project: Project = "default", json: Json = False) -> None:
    """Delete a receiver: nothing is sent to it any more."""
    from api import admin

    admin.delete_webhook(_configuration(), project, endpoint_id)
    printing.result({"id": endpoint_id, "deleted": True}, "Deleted.", json=json)


@worker_commands.command("list")
def list_workers(*, json: Json = False) -> None:
    """List the workers that were seen lately, with what exactly each one runs."""
    from api import admin

    seen = admin.list_workers(_configuration())
    if json:
        printing.as_json([asdict(each) for each in seen])
        return
    printing.table(
        ["id", "host", "version", "engine", "models", "revision", "state"],
        [[each.id, each.host, each.version, each.engine, each.models, each.revision, each.state] for each in seen],
    )


@worker_commands.command("require")
def require_version(
    version: Annotated[str, typer.Argument(help="The oldest version that may work, or `none`.")],
    *,
    json: Json = False,
) -> None:
    """Have workers of older versions drain and end, and start no more of them."""
    from api import admin

    wanted = None if version == "none" else version
    admin.require_version(_configuration(), wanted)
    text = "Every version may work." if wanted is None else f"Workers must be of version {wanted}."
    printing.result({"version": wanted}, text, json=json)


def _add_other_commands() -> None:
    """Add the commands of other packages: functions with Typer's options."""
    for entry in entry_points(group="promptmill.commands"):
        app.command(entry.name)(entry.load())


def _show_version(*, wanted: bool) -> None:
    if wanted:
        out.print(version("promptmill"), highlight=False)
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=lambda wanted: _show_version(wanted=wanted))
    ] = False,
) -> None:
    """An asynchronous batch-inference job queue."""


def main() -> None:
    """Run the command line."""
    _add_other_commands()
    try:
        app()
    except Unavailable as error:
        # An operator may see what a client may not: which server, and why.
        _fail(f"{error.message} {error.__cause__ or ''}".splitlines()[0])
    except PromptmillError as error:
        _fail(error.message)
    except ProgrammingError as error:
        _fail(f"{error.orig}".splitlines()[0] + ". Has `promptmill migrate` been run?")
    except ModuleNotFoundError as error:
        if (reason := extras.missing(error)) is None:
            raise
        _fail(reason)
    except OSError as error:
        # A folder that is not there, a full disk.
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _fail(reason: str) -> None:
    err.print(f"promptmill: {reason}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(EXIT_FAILED)
