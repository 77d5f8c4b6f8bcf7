"""Our processes on one database, and the clients that drive them."""

import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import httpx2
import psutil
import psycopg
from openai import OpenAI

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import services  # noqa: E402
import shapes  # noqa: E402
from conftest import migrate  # noqa: E402
from payloads import numbered  # noqa: E402

from api.stack import postgres  # noqa: E402
from api.stack.program import Program, free_port  # noqa: E402

# Makes lines of 4.2 KB and of 1 KB.
BIG_PROMPT, SMALL_PROMPT = 4_050, 870
CORPUS_WORDS = 200_000
SETTINGS = {"PROMPTMILL_LIMITS__MAX_FILE_BYTES": "300000000", "PROMPTMILL_WORKER__ENGINE": "scripted"}


def lines(count: int, prompt: int, first: str = "", corpus: str = "") -> bytes:
    """Return a file with prompts of `prompt` bytes, cut out of `corpus`.

    Where none is given, common words in a random order, so that it compresses like text.
    """
    draw = random.Random(shapes.SEED)
    corpus = corpus or " ".join(draw.choices(shapes.WORDS, k=CORPUS_WORDS))
    starts = [draw.randrange(len(corpus) - prompt) for _ in range(count)]
    return numbered(
        count, lambda number: f"{first}{number} {corpus[starts[number] : starts[number] + prompt]}"[:prompt]
    )


def prose() -> str:
    """Return a long text with quotes, colons and line ends, as texts have them: Python's own reference."""
    return "\n".join(topics.values())


class Plane:
    """An API on one database, and what drives it."""

    def __init__(self, stack: services.Stack, database: services.Process) -> None:
        self.stack, self.database = stack, database
        self.api = stack.api()
        self.key = stack.key()
        self.http = httpx2.Client(base_url=stack.base_url, headers={"authorization": f"Bearer {self.key}"}, timeout=300)
        self.sdk = OpenAI(base_url=stack.base_url, api_key=self.key)
        self.bare = psycopg.connect(stack.database_url, autocommit=True)

    def close(self) -> None:
        self.bare.close()
        self.http.close()
        self.sdk.close()
        self.stack.stop()

    def beside(self, **settings: str) -> "Plane":
        """Return another API, with settings of its own, on the same servers."""
        mine = self.stack
        named = {f"PROMPTMILL_{name}": value for name, value in settings.items()}
        return Plane(
            services.Stack(mine.home, mine.database_url, mine.redis_url, {**mine.settings, **named}), self.database
        )

    def upload(self, data: bytes) -> str:
        form = {"purpose": "batch"}
        reply = self.http.post("/files", data=form, files={"file": ("big.jsonl", data)})
        return str(reply.raise_for_status().json()["id"])

    def run(self, file_id: str) -> tuple[str, float]:
        """Run a file as a batch; return the batch's id, and the seconds from the call to its end by Postgres' clock.

        Looks ten times a second, so that looking costs little; Q3 has more.
        """
        began = time.time()
        batch = self.sdk.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
        while batch.status == "in_progress":
            time.sleep(0.1)
            batch = self.sdk.batches.retrieve(batch.id)
        assert batch.status == "completed", batch.status
        (ended,) = self.bare.execute(
            "SELECT extract(epoch FROM completed_at)::float FROM batches WHERE id = %s", [batch.id]
        ).fetchone() or (0.0,)
        return batch.id, ended - began


def cpu(process: services.Process) -> float:
    """Return the CPU seconds of a process and of all that it started."""
    spent = 0.0
    for each in (parent := psutil.Process(process.popen.pid), *parent.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            spent += times.user + times.system + times.children_user + times.children_system
    return spent


@contextlib.contextmanager
def script(plane: Plane, name: str, argv: Sequence[str], wait_for: str, **environment: str) -> Iterator[None]:
    """Run what we are compared with beside us, from when it says `wait_for`."""
    log = plane.stack.home / f"{name}.log"

    async def ready() -> bool:
        return log.exists() and wait_for in log.read_text(errors="replace")

    program = Program(
        name, [sys.executable, *argv], ready, environment=plane.stack.environment(**environment), grace_seconds=20
    )
    with services.running(program, log):
        yield


@contextlib.contextmanager
def running() -> Iterator[Plane]:
    """Start Postgres, Valkey and an API, all empty; fsync is on."""
    with tempfile.TemporaryDirectory(prefix="promptmill-bench-") as home:
        port = free_port()
        postgres.initialise(Path(home) / "postgres", services.PASSWORD)
        program = postgres.program(Path(home) / "postgres", port, services.PASSWORD)
        with (
            services.running(program, Path(home) / "postgres.log") as database,
            services.valkey_server(Path(home)) as redis_url,
        ):
            url = postgres.url(port, services.PASSWORD, "postgres")
            migrate(url)
            plane = Plane(services.Stack(Path(home), url, redis_url, SETTINGS), database)
            try:
                yield plane
            finally:
                plane.close()
