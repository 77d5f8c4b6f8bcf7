"""What the running stack tells about itself: Prometheus asks each process, as an operator's would."""

import subprocess
from collections.abc import Iterator
from typing import Any

import httpx2
import invariants
import monitors
import pytest
import scrapes
import services
from clients import User
from payloads import numbered
from scrapes import Watched, scrape
from sqlalchemy import text

from api.stack.program import free_port, promptmill


@pytest.fixture(scope="module")
def watched(servers: services.Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with services.scripted_stack(servers, template, tmp_path_factory.mktemp("stack")) as stack:
        yield scrapes.watch(stack)
        engine = stack.engine()
        invariants.check(engine)
        engine.dispose()


def loads(stack: services.Stack) -> list[Any]:
    engine = stack.engine()
    with engine.connect() as connection:
        found = list(connection.execute(text("SELECT load FROM workers ORDER BY started_at")).scalars())
    engine.dispose()
    return found


def test_a_heartbeat_says_what_the_engine_is_busy_with(watched: Watched) -> None:
    user = User(watched.stack)
    batch = user.submit(numbered(3, lambda _: "SLEEP 300"))
    busy = {"running": 3, "waiting": 0, "kv_use": None, "preempted": 0, "shards": 1}
    services.wait_until(lambda: loads(watched.stack) == [busy], "a heartbeat")
    user.sdk.batches.cancel(batch.id)
    user.wait(batch.id)
    idle = {**busy, "running": 0, "shards": 0}
    services.wait_until(lambda: loads(watched.stack) == [idle], "another heartbeat")


def test_counters_add_up_to_the_rows_of_a_batch(watched: Watched) -> None:
    before = scrape(watched.worker)
    user = User(watched.stack)
    prompts = {3: "REJECT me", 5: "ERROR", 7: "REJECT me too"}
    batch = user.wait(user.submit(numbered(600, lambda number: prompts.get(number, "two words"))).id)
    shards = before.value("promptmill_shards_total", ending="done") + 3
    after = watched.until(
        watched.worker, lambda seen: seen.value("promptmill_shards_total", ending="done") == shards, "three shards"
    )

    def more(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert more("promptmill_rows_total", model="scripted") == 600
    assert more("promptmill_rows_total", outcome="completed") == 597
    assert more("promptmill_rows_total", outcome="failed", code="rejected") == 2
    assert more("promptmill_rows_total", outcome="failed", code="engine_error") == 1
    assert batch.usage
    assert more("promptmill_tokens_total", model="scripted", kind="input") == batch.usage.input_tokens == 2 * 597
    assert more("promptmill_tokens_total", model="scripted", kind="output") == batch.usage.output_tokens
    assert more("promptmill_shard_state_seconds_count", state="queued") == 3
    assert more("promptmill_shard_state_seconds_count", state="running") == 3
    assert more("promptmill_write_seconds_count") >= 1


def test_a_batch_that_runs_is_seen_everywhere(watched: Watched) -> None:
    user = User(watched.stack)
    batch = user.submit(numbered(300, lambda _: "SLEEP 300"))
    worker = watched.until(watched.worker, lambda seen: seen.value("promptmill_engine_waiting") == 44, "a full engine")
    assert worker.value("promptmill_engine_running", engine="scripted") == 256
    assert worker.value("promptmill_engine_capacity", engine="scripted") == 256
    assert worker.value("promptmill_held_shards") == 2
    assert worker.value("promptmill_worker_ready") == 1
    queue = watched.until(
        watched.reconciler, lambda seen: seen.value("promptmill_running_shards", model="scripted") == 2, "two leases"
    )
    assert queue.value("promptmill_open_batches", status="in_progress") == 1
    assert queue.value("promptmill_workers", model="scripted") == 1
    assert 0 < queue.value("promptmill_oldest_lease_seconds") < 3600
    assert queue.value("promptmill_database_up") == 1
    user.sdk.batches.cancel(batch.id)
    user.wait(batch.id)
    services.wait_until(lambda: _ended(watched, "cancelled") >= 1, "an end, by worker or reconciler")
    idle = watched.until(watched.reconciler, lambda seen: seen.value("promptmill_open_batches") == 0, "the end")
    assert idle.value("promptmill_running_shards") == 0
    watched.until(watched.worker, lambda seen: seen.value("promptmill_engine_running") == 0, "an idle engine")


def _ended(watched: Watched, status: str) -> float:
    return sum(scrape(port).value("promptmill_batches_total", status=status) for port in _enders(watched))


def _enders(watched: Watched) -> tuple[int, int]:
    return watched.reconciler, watched.worker


def test_time_in_each_state_of_a_batch_is_told_once(watched: Watched) -> None:
    def counted() -> dict[str, float]:
        seen = [scrape(port) for port in _enders(watched)]
        states = ("validating", "in_progress", "finalizing")
        return {
            each: sum(one.value("promptmill_batch_state_seconds_count", state=each) for one in seen) for each in states
        }

    before = counted()
    user = User(watched.stack)
    user.wait(user.submit(numbered(3)).id)
    services.wait_until(lambda: counted() == {state: count + 1 for state, count in before.items()}, "one of each")


def test_calls_are_counted_by_route_and_never_by_path(watched: Watched) -> None:
    user = User(watched.stack)
    before = scrape(watched.api)
    batch = user.submit(numbered(1))
    user.batch(batch.id)
    base = f"http://127.0.0.1:{watched.stack.port}"
    for path in ("/CANARY", "/v1/batches/CANARY"):
        httpx2.get(base + path, headers={"authorization": f"Bearer {user.sdk.api_key}"})
    httpx2.request("CANARY", base + "/v1/batches")
    calls, seconds = "promptmill_http_requests_total", "promptmill_http_request_seconds_count"
    # A call is counted when its answer is away. Upload and creation are two of them.
    six = before.value(calls) + 6
    after = watched.until(watched.api, lambda seen: seen.value(calls) == seen.value(seconds) == six, "six calls")

    def more(**labels: str) -> float:
        return after.value(calls, **labels) - before.value(calls, **labels)

    assert more(method="POST", route="/v1/batches", status="200") == 1
    assert more(method="GET", route="/v1/batches/{batch_id}", status="200") == 1
    assert more(method="GET", route="/v1/batches/{batch_id}", status="404") == 1
    assert more(method="GET", route="none", status="404") == 1
    assert more(method="other") == 1
    assert not any("CANARY" in str(sample) or batch.id in str(sample) for sample in after.samples)
    user.wait(batch.id)


def test_clients_find_no_figures(watched: Watched) -> None:
    key = {"authorization": f"Bearer {watched.stack.key()}"}
    assert httpx2.get(f"http://127.0.0.1:{watched.stack.port}/metrics", headers=key).status_code == 404


def test_with_a_token_only_who_says_it_sees_figures(stack: services.Stack) -> None:
    port = free_port()
    stack.api(PROMPTMILL_METRICS__API_PORT=str(port), PROMPTMILL_METRICS__TOKEN="only-for-tests")
    url = f"http://127.0.0.1:{port}/metrics"
    assert httpx2.get(url).status_code == 401
    for wrong in ("Bearer", "Bearer only-for-test", "only-for-tests", f"Bearer {stack.key()}"):
        assert httpx2.get(url, headers={"authorization": wrong}).status_code == 401
    right = {"authorization": "Bearer only-for-tests"}
    assert "promptmill_build_info" in httpx2.get(url, headers=right).text
    assert httpx2.get(url.replace("/metrics", "/"), headers=right).status_code == 404


def test_a_port_that_is_taken_stops_the_process_and_says_so(watched: Watched) -> None:
    taken = watched.stack.environment()
    ended = subprocess.run(promptmill("reconciler"), env=taken, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "PROMPTMILL_METRICS__" in ended.stderr


def test_the_stack_shows_what_the_alerts_and_the_dashboard_ask_for(watched: Watched) -> None:
    shown = set[str]().union(*(scrape(port).known for port in (watched.api, watched.reconciler, watched.worker)))
    # Prometheus' own, of each target.
    assert monitors.asked() - {"up"} - shown == set()
    assert len(monitors.asked()) > 40


def test_the_labels_that_alerts_and_the_dashboard_choose_by_are_there(watched: Watched) -> None:
    user = User(watched.stack)
    user.wait(user.submit(numbered(2, lambda number: "REJECT" if number else "two words")).id)
    watched.until(watched.worker, lambda seen: seen.value("promptmill_rows_total", outcome="failed"), "a failed row")
    seen = [scrape(port) for port in (watched.api, watched.reconciler, watched.worker)]
    there = {(name, label) for each in seen for name, labels in each.samples for label, _ in labels}
    # Prometheus' own.
    assert {(name, label) for name, label in monitors.selectors() if label != "job"} - there == set()


def test_a_killed_worker_leaves_sane_figures(watched: Watched) -> None:
    user = User(watched.stack)
    batch = user.submit(numbered(20, lambda _: "SLEEP 4"))
    watched.until(watched.reconciler, lambda seen: seen.value("promptmill_running_shards") == 1, "a lease")
    watched.stack.processes[2].kill()
    recovered = scrape(watched.reconciler).value("promptmill_recovered_leases_total", rows="aboard")
    # Its lease ends, and its rows are suspects until another worker has run them.
    watched.until(watched.reconciler, lambda seen: seen.value("promptmill_suspect_shards") == 1, "suspects")
    lost = watched.until(watched.reconciler, lambda seen: seen.value("promptmill_silent_workers") == 1, "no worker")
    assert lost.value("promptmill_workers", model="scripted") == 0
    taken = "promptmill_recovered_leases_total"
    watched.until(watched.reconciler, lambda seen: seen.value(taken, rows="aboard") == recovered + 1, "one taken back")
    left = lost.value("promptmill_queued_rows")
    assert lost.value("promptmill_running_shards") == 0
    port = free_port()
    watched.stack.worker(PROMPTMILL_METRICS__WORKER_PORT=str(port))
    user.wait(batch.id)
    watched.until(port, lambda seen: seen.value("promptmill_rows_total") == left, "the same rows once")
    over = watched.until(watched.reconciler, lambda seen: seen.value("promptmill_suspect_shards") == 0, "nobody")
    assert over.value("promptmill_queued_rows") == 0
    assert over.value("promptmill_silent_workers", model="scripted") == 0, "it was replaced"
