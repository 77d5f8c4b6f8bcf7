"""What one claim, heartbeat, commit and row costs, and what grows with the number of shards and batches.

`python bench/costs.py` prints the constants of docs/scale.md; `--out FILE` writes them as JSON. One worker with the
scripted engine, Postgres with `pg_stat_statements`, Valkey; then tables that are filled by hand, for what only many
shards show. Times are milliseconds of Postgres' own statements (`total_exec_time`), on a machine that should do nothing
else.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import plane
import services
from conftest import migrate
from plane import SETTINGS, Plane, cpu, lines
from sqlalchemy import Connection, Engine, text

from api.stack import postgres
from api.stack.program import free_port
from jobs import claims, db, hints, leases, lifecycle, suspects
from jobs.claims import Claimant
from jobs.settings import Retention

ROWS, PROMPT, IDLE_SECONDS, IDLE_WORKERS = 20_000, 870, 60, 4
# What a statement is known by, in the order in which it is looked for.
STATEMENTS = {
    "may claim": "%FROM min_worker_version%",
    "claim": "%projects_in_turn AS MATERIALIZED%",
    "load rows": "%CROSS JOIN LATERAL%FROM lines WHERE file_id%",
    "mark": "%SET aboard_line = greatest%",
    "renew": "%SET lease_until = app_now()%FROM held%",
    "note seen": "UPDATE workers SET seen_at%",
    "lock for a write": "%JOIN unnest%AS held (id, token)%FOR UPDATE OF s",
    "copy results": "COPY results%",
    "count": "%counted AS%UPDATE shards s SET completed%",
    "settle: is it over": "%WHERE b.id = $1 AND b.status IN%",
    "sizes of result files": "%sum(octet_length(content))%FROM results%",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--only", nargs="*", choices=MEASURES, default=list(MEASURES))
    asked = parser.parse_args()
    os.chdir(plane.ROOT)
    found: dict[str, Any] = {"load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="costs-") as home, _plane(Path(home)) as made:
        for name in asked.only:
            found[name] = MEASURES[name](made)
            print(json.dumps({name: found[name]}, indent=1), flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


@contextlib.contextmanager
def _plane(home: Path) -> Iterator[Plane]:
    port = free_port()
    postgres.initialise(home / "postgres", services.PASSWORD)
    options = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_planning": "on"}
    program = postgres.program(home / "postgres", port, services.PASSWORD, options)
    with (
        services.running(program, home / "postgres.log") as database,
        services.valkey_server(home) as redis_url,
    ):
        url = postgres.url(port, services.PASSWORD, "postgres")
        migrate(url)
        made = Plane(services.Stack(home, url, redis_url, SETTINGS), database)
        with contextlib.closing(made):
            made.bare.execute("CREATE EXTENSION pg_stat_statements")
            yield made


# What a row costs.


def _rows(made: Plane) -> dict[str, Any]:
    made.stack.reconciler()
    made.stack.worker()
    file_id = made.upload(lines(ROWS, PROMPT))
    made.run(file_id)
    _reset(made)
    before, spent = _wal(made), cpu(made.database)
    messages = _redis(made)
    made.run(file_id)
    spent = cpu(made.database) - spent
    shards = _one(made, "SELECT count(*) FROM shards") / 2
    return {
        "rows": ROWS,
        "shards": shards,
        "postgres_cpu_us_a_row": 1e6 * spent / ROWS,
        "wal_bytes_a_row": (_wal(made) - before) / ROWS,
        "redis_commands_a_shard": {
            name: n / shards for name, n in _grown(messages, _redis(made)).items() if n / shards > 0.1
        },
        "statements": {name: _statement(made, pattern, shards) for name, pattern in STATEMENTS.items()},
        "statements_a_shard": _one(made, "SELECT sum(calls)::float FROM pg_stat_statements") / shards,
        "transactions_that_wrote_a_shard": _one(
            made, "SELECT sum(calls)::float FROM pg_stat_statements WHERE query = 'COMMIT'"
        )
        / shards,
        "bytes_a_row": _sizes(made, {"lines": ROWS, "requests": 2 * ROWS, "results": 2 * ROWS}),
        "bytes_a_shard": _sizes(made, {"shards": 2 * shards, "attempts": 2 * shards}),
        "updates_in_place": _updates(made),
    }


def _statement(made: Plane, pattern: str, shards: float) -> dict[str, float]:
    calls, rows, ms, plan_ms, wal = made.bare.execute(
        """
        SELECT coalesce(sum(calls), 0)::float, coalesce(sum(rows), 0)::float, coalesce(sum(total_exec_time), 0),
               coalesce(sum(total_plan_time), 0), coalesce(sum(wal_bytes), 0)::float
        FROM pg_stat_statements WHERE query LIKE %s
        """,
        [pattern],
    ).fetchone() or (0, 0, 0, 0, 0)
    calls = max(calls, 1)
    per_call = {"ms": ms / calls, "plan_ms": plan_ms / calls, "wal_bytes": wal / calls, "rows": rows / calls}
    return {"calls_a_shard": calls / shards, **per_call}


def _sizes(made: Plane, counts: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return bytes a row of tables with their TOAST, and of their indexes."""
    query = "SELECT pg_table_size(%s), pg_indexes_size(%s)"
    sizes = {table: made.bare.execute(query, [table, table]).fetchone() or (0, 0) for table in counts}
    return {table: {"table": sizes[table][0] / n, "indexes": sizes[table][1] / n} for table, n in counts.items()}


def _updates(made: Plane) -> dict[str, list[int]]:
    made.bare.execute("SELECT pg_stat_force_next_flush()")
    query = "SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE n_tup_upd > 0"
    return {name: [updates, hot] for name, updates, hot in made.bare.execute(query)}


# What workers cost that do nothing.


def _idle(made: Plane) -> dict[str, Any]:
    while sum(process.program.name == "worker" for process in made.stack.processes) < IDLE_WORKERS:
        made.stack.worker()
    time.sleep(5)
    _reset(made)
    messages, began = _redis(made), time.monotonic()
    workers = [process for process in made.stack.processes if process.program.name == "worker"]
    spent = sum(map(cpu, workers))
    time.sleep(IDLE_SECONDS)
    seconds = IDLE_WORKERS * (time.monotonic() - began)
    queries = "SELECT left(query, 60), calls FROM pg_stat_statements WHERE calls > 3 ORDER BY calls DESC LIMIT 20"
    return {
        "workers": IDLE_WORKERS,
        "cpu_share_a_worker": (sum(map(cpu, workers)) - spent) / seconds,
        "statements_a_second_and_worker": _one(made, "SELECT sum(calls)::float FROM pg_stat_statements") / seconds,
        "postgres_ms_a_second_and_worker": _one(made, "SELECT sum(total_exec_time) FROM pg_stat_statements") / seconds,
        "statements": dict(made.bare.execute(queries).fetchall()),
        "redis_commands_a_second_and_worker": {
            name: n / seconds for name, n in _grown(messages, _redis(made)).items() if n / seconds > 0.02
        },
        "postgres_connections": _one(
            made, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'promptmill'"
        ),
        "redis_clients": _redis_clients(made),
    }


# What grows.


def _many(made: Plane) -> dict[str, Any]:
    for process in [process for process in made.stack.processes if process.program.name in ("worker", "reconciler")]:
        process.stop()
        made.stack.processes.remove(process)
    found: dict[str, Any] = {}
    for batches, shards in ((100, 100), (1_000, 10), (1_000, 100), (10_000, 10)):
        _fill(made, batches, shards)
        found[f"{batches} batches of {shards} shards"] = _time_queries(made)
    return found | {"a claim reads shards by": _indexes_of_a_claim(made)}


_EMPTY = "TRUNCATE attempts, shards, turns, batches, results, requests CASCADE"
_PROJECTS = """
    INSERT INTO projects (id, name) SELECT 'proj_' || n, 'many ' || n FROM generate_series(1, 20) n
    ON CONFLICT DO NOTHING
"""
_BATCHES = """
    INSERT INTO batches (id, project_id, input_file_id, endpoint, completion_window, model, status, expires_at,
                         in_progress_at)
    SELECT 'batch_' || n, 'proj_' || (1 + n %% 20), 'file-x', '/v1/chat/completions', '24h', 'many', 'in_progress',
           now() + interval '1 day', now()
    FROM generate_series(1, %(batches)s) n
"""
_SHARDS = """
    INSERT INTO shards (id, project_id, batch_id, number, first_line, last_line, model, total, hinted_at)
    SELECT 'shard_' || n || 'x' || s, 'proj_' || (1 + n %% 20), 'batch_' || n, s, 1 + 256 * s, 256 * (s + 1), 'many',
           256, now()
    FROM generate_series(1, %(batches)s) n, generate_series(0, %(shards)s - 1) s
"""


def _fill(made: Plane, batches: int, shards: int) -> None:
    """Make open batches of shards that wait, all announced, in twenty projects."""
    counts = {"batches": batches, "shards": shards}
    for statement in (_EMPTY, _PROJECTS):
        made.bare.execute(statement)
    for statement in (_BATCHES, _SHARDS):
        made.bare.execute(statement, counts)
    made.bare.execute("VACUUM ANALYZE")


def _time_queries(made: Plane) -> dict[str, float]:
    engine = made.stack.engine()
    worker = Claimant("worker_many", ["many"], ["/v1/chat/completions"], 3_600)
    names = [f"shard_{1 + n}x1" for n in range(50)]
    work: dict[str, Callable[[Connection], object]] = {
        "claim on a hint": lambda c: claims.claim(c, names.pop(), worker),
        "look for shards without a hint": lambda c: claims.claim_unhinted(c, worker, hint_seconds=3_600),
        "sweep: hints": lambda c: hints.to_hint(c, hint_seconds=3_600),
        "sweep: batches that may be over": lifecycle.to_settle,
        "sweep: leases that ended": leases.recover,
        "sweep: leases that ended with rows": suspects.lost,
        "a worker asks whether its batch is over": lambda c: lifecycle.settle(c, "batch_1", Retention()),
    }
    found = {name: _ms(engine, ask, 10) for name, ask in work.items()}
    engine.dispose()
    return found


def _indexes_of_a_claim(made: Plane) -> list[str]:
    """Return how Postgres comes to the shards in a claim: names of indexes, or `Seq Scan`."""
    engine = made.stack.engine()
    values = {"hinted": "shard_7x1", "models": ["many"], "endpoints": ["/v1/chat/completions"], "alone": True}
    values |= {"lease_seconds": 60, "worker_id": "worker_many"}
    with db.transaction(engine) as connection:
        plan = connection.execute(text(f"EXPLAIN {claims._CLAIM_HINTED.text}"), values).scalars().all()
    engine.dispose()
    return sorted({line.strip(" ->").partition("  (")[0] for line in plan if "Scan" in line and " shards" in line})


_LEASED = "UPDATE shards SET state = 'running', lease_token = 1, lease_until = now() + interval '1 day'"
_DONE = (
    "UPDATE shards SET completed = total, state = 'done', lease_until = NULL WHERE number < %s AND state = 'running'"
)
_RESULTS = """
    INSERT INTO results (batch_id, line_no, is_error, status_code, lease_token, content)
    SELECT 'batch_1', n, false, 200, 1, convert_to(rpad('{"id": "' || n, 1300, md5(n::text)), 'UTF8')
    FROM generate_series(1, 256 * 3907) n
"""
_STATUS = text("SELECT sum(total), sum(completed), sum(failed) FROM shards WHERE batch_id = 'batch_1'")


def _end(made: Plane) -> dict[str, float]:
    """Return milliseconds of what is asked about a batch of a million rows, 3,907 shards, and of its end."""
    _fill(made, 1, 3_907)
    made.bare.execute(_LEASED)
    engine, found = made.stack.engine(), {}
    for done in (1, 1_000, 2_000, 3_906):
        made.bare.execute(_DONE, [done])
        made.bare.execute("VACUUM ANALYZE shards")
        found[f"a worker asks whether it is over, {done} shards done"] = _ms(engine, _settle, 20)
    found["its status"] = _ms(engine, lambda connection: connection.execute(_STATUS).one(), 20)
    made.bare.execute(_RESULTS)
    made.bare.execute(_DONE, [3_907])
    found["its end"] = _ms(engine, _settle, 1)
    engine.dispose()
    return found


def _settle(connection: Connection) -> object:
    return lifecycle.settle(connection, "batch_1", Retention())


def _ms(engine: Engine, ask: Callable[[Connection], object], times: int) -> float:
    """Return the median milliseconds of a transaction."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        with db.transaction(engine) as connection:
            ask(connection)
        found.append(1_000 * (time.perf_counter() - began))
    return round(statistics.median(found), 2)


# Counters of the servers.


def _one(made: Plane, query: str) -> float:
    return float((made.bare.execute(query).fetchone() or (0,))[0] or 0)


def _reset(made: Plane) -> None:
    made.bare.execute("SELECT pg_stat_statements_reset()")


def _wal(made: Plane) -> float:
    return _one(made, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")


def _redis(made: Plane) -> dict[str, float]:
    with made.stack.redis() as broker:
        found: Any = broker.info("commandstats")
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in found.items()}


def _redis_clients(made: Plane) -> float:
    with made.stack.redis() as broker:
        found: Any = broker.info("clients")
    return float(found["connected_clients"])


def _grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: count - before.get(name, 0) for name, count in after.items()}


MEASURES = {"rows": _rows, "idle": _idle, "many": _many, "end": _end}

if __name__ == "__main__":
    main()
