"""F22: everything is killed at once, Postgres and Redis too, as by a power cut. After the start all goes on."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import invariants
import psutil
import pytest
import services
from clients import User, done
from conftest import migrate
from payloads import gated, numbered

from api.stack import postgres, valkey
from api.stack.program import free_port


@dataclass
class Machine:
    """Servers of its own, Postgres with fsync, and a stack on them."""

    stack: services.Stack
    servers: list[services.Process]

    def power_off(self) -> None:
        """Kill all of it in one moment."""
        programs = (*self.servers, *self.stack.processes)
        roots = [psutil.Process(each.popen.pid) for each in programs]
        everything = roots + [child for root in roots for child in root.children(recursive=True)]
        for each in everything:
            # A child may go by itself when its parent has gone.
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        for process in programs:
            process.popen.wait()
        psutil.wait_procs(everything)

    def power_on(self) -> None:
        self.servers = [services.Process.start(each.program, each.log) for each in self.servers]
        self.start()

    def start(self) -> None:
        self.stack.api()
        self.stack.reconciler()
        self.stack.worker()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="promptmill-test-") as name:
        home, ports = Path(name), (free_port(), free_port())
        postgres.initialise(home / "postgres", services.PASSWORD)
        programs = [
            postgres.program(home / "postgres", ports[0], services.PASSWORD),
            valkey.program(home / "valkey", ports[1], services.PASSWORD),
        ]
        servers = [services.Process.start(program, tmp_path / f"{program.name}.log") for program in programs]
        urls = postgres.url(ports[0], services.PASSWORD, "postgres"), valkey.url(ports[1], services.PASSWORD)
        migrate(urls[0])
        settings = {**services.SHORT_LEASES, "PROMPTMILL_WORKER__ENGINE": "scripted"}
        made = Machine(services.Stack(tmp_path, *urls, settings), servers)
        try:
            yield made
        finally:
            made.stack.stop()
            for server in made.servers:
                server.stop()


def test_all_goes_on_after_the_machine_was_off(machine: Machine) -> None:
    machine.start()
    user = User(machine.stack)
    gate = machine.stack.home / "gate"
    batch = user.submit(numbered(600, gated(gate, 300)))
    user.wait_for(batch.id, lambda batch: done(batch) >= 100)
    engine = machine.stack.engine()
    seen = invariants.snapshot(engine)
    engine.dispose()
    machine.power_off()
    machine.power_on()
    assert done(user.batch(batch.id)) < 600, "it was in the middle"
    gate.touch()
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(600)}
    invariants.check_stack(machine.stack, seen=seen)
    user.sdk.close()
