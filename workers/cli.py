"""The commands that live beside the engine; `promptmill` finds them as entry points."""

import os
import sys
from typing import Annotated

import typer

from jobs import settings
from jobs.errors import ConfigurationError


def worker(
    *,
    profile: Annotated[
        str | None,
        typer.Option(help="A shipped profile, or a file that ends in .toml. As PROMPTMILL_PROFILE."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the engine's arguments and what fits into the GPU, and end.")
    ] = False,
    gpu_memory: Annotated[
        str | None, typer.Option(help="Of a dry run: memory of one GPU, like 80GB. As the profile or nvidia-smi says.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Of a dry run: tokens of prompt and answer, like 110/32,1024/512.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Of a dry run: print JSON.")] = False,
) -> None:
    """Run a worker: one engine, fed from the queue. SIGTERM drains it."""
    configuration = settings.load(profile)
    if dry_run:
        _show_dry_run(configuration.worker, gpu_memory, lengths, as_json=json)
        return
    from jobs import telemetry, tracing
    from workers import service

    telemetry.configure(configuration.log_level, "worker", configuration.log_format)
    tracing.configure(configuration.tracing, "worker")
    sys.exit(service.run(configuration))


def _show_dry_run(worker: settings.Worker, gpu_memory: str | None, lengths: str | None, *, as_json: bool) -> None:
    from rich.console import Console

    from workers import dry_run, estimate

    made = estimate.report(worker, gpu_memory=gpu_memory, lengths=lengths or estimate.LENGTHS)
    if as_json:
        sys.stdout.write(dry_run.as_json(made) + "\n")
    else:
        dry_run.show(made, Console())


def reconciler() -> None:
    """Run the reconciler: takes back the work of dead workers, ends batches, calls webhooks."""
    from jobs import dispatch, metrics, metrics_port, telemetry, tracing
    from jobs.census import Censuses
    from workers.courier import Courier
    from workers.reconciler import Reconciler

    configuration = settings.load()
    telemetry.configure(configuration.log_level, "reconciler", configuration.log_format)
    tracing.configure(configuration.tracing, "reconciler")
    dispatch.require_noeviction(configuration)
    figures = configuration.metrics
    if figures.reconciler_port is not None:
        metrics.REGISTRY.register(metrics.Reading(Censuses(configuration).families))
    metrics_port.serve("reconciler", figures, figures.reconciler_port)
    with Courier(configuration):
        Reconciler(configuration).run()


def flower() -> None:
    """Run Flower, the queue's web page: read-only, on loopback if not told otherwise, with a password."""
    configuration = settings.load().flower
    if configuration.password is None:
        message = "PROMPTMILL_FLOWER__PASSWORD is not set: without a password Flower's page is open to everybody."
        raise ConfigurationError(message)
    # In the environment, not in the arguments: those can be read by every user of the machine.
    os.environ["FLOWER_BASIC_AUTH"] = f"{configuration.user}:{configuration.password.get_secret_value()}"
    options = [f"--address={configuration.host}", f"--port={configuration.port}", "--read_only=true", "--logging=error"]
    options.append("--tasks_columns=name,args,state,result,received,started,runtime,worker,uuid")
    command = [sys.executable, "-m", "celery", "-A", "workers.celery_app", "flower", *options]
    os.execv(sys.executable, command)  # noqa: S606  our own interpreter
