import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
from payloads import CHAT, jsonl, request

from jobs.errors import EngineFatal, RequestRejected
from jobs.leases import Lease, Row
from jobs.outcomes import Outcome
from workers.engines.base import Body, Load
from workers.window import Ending, ShardRun, Window


class GatedEngine:
    """Runs each request until the test lets it go, by its prompt."""

    name = "gated"

    def __init__(self) -> None:
        self.running: dict[str, asyncio.Future[None]] = {}
        self.aborted: list[str] = []

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def models(self) -> Sequence[str]:
        return ["gated"]

    def endpoints(self) -> Sequence[str]:
        return [CHAT]

    def capacity(self) -> int:
        return 2

    def healthy(self) -> bool:
        return True

    def load(self) -> Load:
        return Load(running=len(self.running))

    def takes_images(self) -> bool:
        return False

    async def run(self, endpoint: str, body: Body, *, tenant: str = "") -> Body:
        prompt = body["messages"][0]["content"]
        future = self.running[prompt] = asyncio.get_running_loop().create_future()
        try:
            await future
        except asyncio.CancelledError:
            self.aborted.append(prompt)
            raise
        finally:
            del self.running[prompt]
        return {"choices": [{}], "echo": prompt}


class Bench:
    """A window on a loop of its own, and what came out of it."""

    def __init__(
        self, size: int = 2, timeout: float = 60, max_unwritten: int = 100, max_unwritten_bytes: int = 1_000_000
    ) -> None:
        self.engine = GatedEngine()
        self.loop = asyncio.new_event_loop()
        self.outcomes: list[tuple[ShardRun, Outcome, bool]] = []
        self.fatal = threading.Event()
        self.unmarked = threading.Event()
        self.window = Window(
            self.engine,
            self.loop,
            size=size,
            max_unwritten=max_unwritten,
            max_unwritten_bytes=max_unwritten_bytes,
            request_timeout_seconds=timeout,
            max_answer_bytes=1_000_000,
            sink=lambda *item: self.outcomes.append(item),
            on_fatal=self.fatal.set,
            on_unmarked=self.unmarked.set,
        )

    def turn(self) -> None:
        """Let everything happen that can happen now."""
        for _ in range(10):
            self.loop.run_until_complete(asyncio.sleep(0))

    def run(
        self,
        *prompts: str,
        lease: float = 60,
        expires: float = 60,
        batch: str = "batch_1",
        project: str = "proj_1",
        priority: int = 0,
        model_no: int = 0,
        first_line: int = 1,
        marked: int = 1_000,
    ) -> ShardRun:
        lines = jsonl(request(prompt, prompt) for prompt in prompts).splitlines(keepends=True)
        run = ShardRun(
            lease=Lease(
                "shard_1", 1, project, batch, priority, "file-1", model_no, first_line, len(lines), len(lines), CHAT, 60
            ),
            rows=deque(
                Row(number, prompt, line) for number, (prompt, line) in enumerate(zip(prompts, lines, strict=True), 1)
            ),
            lease_deadline=time.monotonic() + lease,
            start_deadline=time.monotonic() + expires,
            marked_line=marked,
        )
        self.window.add(run)
        self.turn()
        return run

    def finish(self, prompt: str) -> None:
        self.engine.running[prompt].set_result(None)
        self.turn()

    def fail(self, prompt: str, error: Exception) -> None:
        self.engine.running[prompt].set_exception(error)
        self.turn()

    def write_all(self) -> None:
        for run, outcome, _ in self.outcomes:
            self.window.written(run, [outcome])
        self.turn()

    def close(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.turn()
        self.loop.close()

    def custom_ids(self) -> list[tuple[str, int]]:

        return [(json.loads(outcome.content)["custom_id"], outcome.status_code) for _, outcome, _ in self.outcomes]


@pytest.fixture
def bench() -> Any:
    made = Bench()
    yield made
    made.close()


def test_no_more_rows_run_than_the_window_holds(bench: Bench) -> None:
    bench.run("a", "b", "c")
    assert set(bench.engine.running) == {"a", "b"}
    bench.finish("a")
    assert set(bench.engine.running) == {"b", "c"}


def test_the_next_shard_starts_beside_the_last_rows_of_this_one(bench: Bench) -> None:
    first = bench.run("a", "b")
    bench.run("c", "d")
    bench.finish("a")
    assert not first.ended.is_set()
    assert set(bench.engine.running) == {"b", "c"}


def test_batches_take_turns_and_shards_of_one_batch_do_not(bench: Bench) -> None:
    bench.run("a1", "a2", "a3")
    bench.run("a4")
    bench.run("b1", "b2", batch="batch_2")
    order = ["a1", "a2"]
    for prompt in ("a1", "a2", "b1", "a3", "b2"):
        bench.finish(prompt)
        order += sorted(set(bench.engine.running) - set(order))
    assert order == ["a1", "a2", "b1", "a3", "b2", "a4"]


def test_shards_of_one_batch_go_model_by_model(bench: Bench) -> None:
    bench.run("a1", "a2")
    bench.run("b1", "b2", model_no=1, first_line=2)
    bench.run("a3", "a4", first_line=7)
    assert started_in_order(bench, "a1", "a2") == ["a1", "a2", "a3", "a4", "b1", "b2"]


def test_projects_take_turns_however_many_batches_they_have(bench: Bench) -> None:
    bench.run("a1", "a2")
    bench.run("b1", "b2", batch="batch_2")
    bench.run("c1", "c2", batch="batch_3", project="proj_2")
    assert started_in_order(bench, "a1", "a2") == ["a1", "a2", "c1", "b1", "c2", "b2"]


def test_within_a_project_the_higher_priority_goes_first(bench: Bench) -> None:
    bench.run("a1", "a2", "a3")
    bench.run("b1", "b2", batch="batch_2", priority=1)
    assert started_in_order(bench, "a1", "a2") == ["a1", "a2", "b1", "b2", "a3"]


def started_in_order(bench: Bench, *running: str) -> list[str]:
    """Finish one row after the other, and return all in the order in which they started."""
    order = list(running)
    for prompt in order:
        bench.finish(prompt)
        order += sorted(set(bench.engine.running) - set(order))
    return order


def test_a_shard_is_over_when_its_last_outcome_is_written(bench: Bench) -> None:
    run = bench.run("a")
    bench.finish("a")
    assert not run.ended.is_set()
    bench.write_all()
    assert run.ended.is_set()
    assert run.ending is Ending.DONE


def test_the_last_outcome_of_a_shard_says_so(bench: Bench) -> None:
    bench.run("a", "b")
    bench.finish("b")
    bench.finish("a")
    assert [last for _, _, last in bench.outcomes] == [False, True]


@pytest.mark.parametrize(
    ("error", "status"), [(RequestRejected("no", status_code=422), 422), (RuntimeError("boom"), 500)]
)
def test_a_row_that_fails_fails_alone(bench: Bench, error: Exception, status: int) -> None:
    bench.run("a", "b")
    bench.fail("a", error)
    bench.finish("b")
    assert bench.custom_ids() == [("a", status), ("b", 200)]
    assert b"boom" not in bench.outcomes[0][1].content


def test_a_row_that_takes_too_long_fails_alone() -> None:
    bench = Bench(timeout=0.05)
    bench.run("a")
    bench.loop.run_until_complete(asyncio.sleep(0.2))
    assert bench.custom_ids() == [("a", 504)]
    assert bench.engine.aborted == ["a"]
    bench.close()


def test_letting_go_waits_for_running_rows(bench: Bench) -> None:
    run = bench.run("a", "b", "c")
    bench.window.end(run, Ending.LET_GO, abort=False)
    bench.turn()
    assert not run.ended.is_set()
    bench.finish("a")
    bench.finish("b")
    bench.write_all()
    assert run.ended.is_set()
    assert run.ending is Ending.LET_GO
    assert len(bench.outcomes) == 2


def test_aborting_ends_running_rows_in_the_engine(bench: Bench) -> None:
    run = bench.run("a", "b", "c")
    bench.window.end(run, Ending.LOST, abort=True)
    bench.turn()
    assert sorted(bench.engine.aborted) == ["a", "b"]
    assert run.ended.is_set()
    assert run.ending is Ending.LOST


@pytest.mark.parametrize(("clock", "ending"), [({"lease": 0}, Ending.LOST), ({"expires": 0}, Ending.LET_GO)])
def test_nothing_starts_after_the_deadline(bench: Bench, clock: dict[str, Any], ending: Ending) -> None:
    run = bench.run("a", **clock)
    assert not bench.engine.running
    assert run.ended.is_set()
    assert run.ending is ending


def test_a_dead_engine_is_reported_and_its_row_is_not_done(bench: Bench) -> None:
    run = bench.run("a", "b")
    bench.fail("a", EngineFatal())
    bench.finish("b")
    bench.write_all()
    assert bench.fatal.is_set()
    assert run.ending is Ending.LET_GO
    assert bench.custom_ids() == [("b", 200)]


def test_a_body_that_cannot_be_read_keeps_its_custom_id(bench: Bench) -> None:
    run = bench.run("a")
    bench.finish("a")
    line = jsonl([request("big")]).replace(b'"hello"}]', b'"hello"}], "x": 1e999')
    other = ShardRun(run.lease, deque([Row(1, "big", line)]), run.lease_deadline, run.start_deadline, 1)
    bench.window.add(other)
    bench.turn()
    assert bench.custom_ids()[1] == ("big", 400)


@pytest.mark.parametrize("most", [{"max_unwritten": 1}, {"max_unwritten_bytes": 10}], ids=str)
def test_outcomes_that_wait_for_postgres_hold_back_new_rows(most: dict[str, int]) -> None:
    bench = Bench(size=1, **most)
    bench.run("a", "b")
    bench.finish("a")
    assert not bench.engine.running
    bench.write_all()
    assert set(bench.engine.running) == {"b"}
    bench.finish("b")
    bench.close()


def test_rows_that_were_never_started_do_not_count_as_written(bench: Bench) -> None:
    run = bench.run("a", "b", "c")
    bench.finish("a")
    bench.window.end(run, Ending.LET_GO, abort=True)
    bench.write_all()
    assert run.ended.is_set()
    assert run.written == 1


def test_what_a_lost_shard_could_not_write_does_not_count_as_written(bench: Bench) -> None:
    run = bench.run("a", "b")
    bench.finish("a")
    bench.window.end(run, Ending.LOST, abort=True)
    bench.write_all()
    assert run.written == 0


def test_a_row_is_started_only_when_its_mark_is_set(bench: Bench) -> None:
    run = bench.run("a", "b", marked=0)
    assert bench.unmarked.is_set()
    assert not bench.engine.running
    bench.window.marked(run, 1)
    bench.turn()
    assert set(bench.engine.running) == {"a"}
    assert run.started_line == 1
    bench.window.marked(run, 2)
    bench.turn()
    assert set(bench.engine.running) == {"a", "b"}


def test_a_shard_whose_mark_is_late_holds_up_no_other(bench: Bench) -> None:
    bench.run("a", marked=0)
    bench.run("b", batch="batch_2")
    assert set(bench.engine.running) == {"b"}


def due(bench: Bench) -> dict[str, int]:
    """Return how far marks should reach, by batch."""
    found = bench.loop.run_until_complete(bench.window.unmarked())
    return {run.lease.batch_id: line for run, line in found.items()}


def test_marks_cover_free_places_and_a_little_more(bench: Bench) -> None:
    run = bench.run(*"abcdefgh", marked=0)
    assert due(bench) == {"batch_1": 3}
    bench.window.marked(run, 3)
    bench.turn()
    due(bench)
    assert due(bench) == {}, "c is covered, and waits"


def test_a_fast_engine_gets_marks_further_ahead(bench: Bench) -> None:
    bench.run(*"abcdefgh", marked=2)
    assert due(bench) == {"batch_1": 8}, "two were started since the last look"
    assert due(bench) == {"batch_1": 3}


def test_marks_go_on_into_the_next_shard_of_a_batch(bench: Bench) -> None:
    bench.run("a", "b")
    bench.run("c", "d", first_line=5, marked=0)
    assert due(bench) == {"batch_1": 2}


def test_each_batch_has_marks_ahead(bench: Bench) -> None:
    bench.run("a", "b", marked=0)
    bench.run("c", "d", batch="batch_2", project="proj_2", marked=0)
    assert due(bench) == {"batch_1": 2, "batch_2": 2}
