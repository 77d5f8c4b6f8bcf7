"""What Postgres knows of the whole queue, as figures."""

from typing import Any

from payloads import numbered
from sqlalchemy import text

from jobs import breakers, census, db, fleet
from jobs.census import Censuses
from jobs.settings import Settings, Worker


class Figures:
    """The figures of one census, by name and labels."""

    def __init__(self, domain: Any, *, shift: str = "0") -> None:
        with db.transaction(domain.engine) as connection:
            connection.execute(text("SELECT set_config('promptmill.clock_offset', :offset, true)"), {"offset": shift})
            taken = census.take(connection, lease_seconds=60, memory_seconds=86_400)
        self.families = {family.name: family for family in census.families(taken, projects=True)}

    def value(self, name: str, **labels: str) -> float:
        samples = self.families[f"promptmill_{name}"].samples
        found = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
        assert len(found) <= 1
        return found[0] if found else 0


def test_what_waits_and_runs_is_counted(domain: Any) -> None:
    batch_id = domain.new_batch(25)
    lease = domain.claim(domain.shards(batch_id)[0].id)
    domain.write(lease, [1, 2, 3])
    seen = Figures(domain, shift="30 seconds")
    mine = {"project": domain.project_id, "model": "scripted"}
    assert seen.value("queued_shards", **mine) == 2
    assert seen.value("queued_rows", **mine) == 15
    assert seen.value("running_shards", **mine) == 1
    assert seen.value("ended_leases", **mine) == 0
    assert 30 <= seen.value("oldest_queued_seconds", **mine) < 60
    assert 30 <= seen.value("oldest_lease_seconds", **mine) < 60
    assert seen.value("open_batches", status="in_progress") == 1
    assert Figures(domain, shift="61 seconds").value("ended_leases", **mine) == 1


def test_what_is_over_is_not(domain: Any) -> None:
    batch_id = domain.new_batch(3)
    domain.write(domain.claim(domain.shards(batch_id)[0].id), [1, 2, 3])
    domain.settle(batch_id)
    seen = Figures(domain)
    for name in ("queued_shards", "running_shards", "open_batches", "suspect_shards", "webhook_messages_waiting"):
        assert seen.value(name) == 0
    assert seen.value("database_bytes") > 1_000_000


def test_a_suspect_that_nobody_runs_while_it_is_judged_is_counted(domain: Any) -> None:
    """It has a lease and no attempt."""
    domain.new_batch(1)
    lease = domain.claim("shard_unknown")
    domain.execute("UPDATE attempts SET ended_at = app_now(), end_reason = 'lost', aboard_line = 1")
    domain.execute(
        "UPDATE shards SET suspect_since = 0, lease_token = lease_token + 1 WHERE id = :id", id=lease.shard_id
    )
    seen = Figures(domain)
    assert seen.value("suspect_shards") == 1
    assert seen.value("running_shards", model="scripted") == 1
    assert seen.value("oldest_lease_seconds", model="scripted") == 0
    domain.execute("UPDATE shards SET state = 'queued', lease_until = NULL")


def test_a_worker_lives_is_silent_or_has_said_goodbye(domain: Any) -> None:
    with db.transaction(domain.engine) as connection:
        fleet.register(connection, "leaver", engine="none", models=["left"], endpoints=[])
        fleet.note_stopped(connection, "leaver")

    def seen(shift: str) -> dict[str, tuple[float, float]]:
        figures = Figures(domain, shift=shift)
        return {
            model: (figures.value("workers", model=model), figures.value("silent_workers", model=model))
            for model in ("scripted", "left")
        }

    assert seen("0") == {"scripted": (1, 0), "left": (0, 0)}
    assert seen("2 minutes") == {"scripted": (0, 1), "left": (0, 0)}
    # Whoever has not come back by then was taken away.
    assert seen("2 hours") == {"scripted": (0, 0), "left": (0, 0)}
    with db.transaction(domain.engine) as connection:
        connection.execute(text("SELECT set_config('promptmill.clock_offset', '90 seconds', true)"))
        fleet.register(connection, "its successor", engine="none", models=["scripted"], endpoints=[])
    assert seen("2 minutes")["scripted"] == (1, 0)


def test_breakers_are_shown_open_and_closed(domain: Any) -> None:
    for _ in range(3):
        with db.transaction(domain.engine) as connection:
            breakers.note_failure(connection, "here", ["m"], Worker())
    assert Figures(domain).value("breaker_open", hostname="here", model="m") == 1
    later = Figures(domain, shift="1 minute")
    assert later.value("breaker_open", hostname="here", model="m") == 0
    assert later.value("breaker_failures", hostname="here", model="m") == 3


def test_shards_that_are_over_cost_a_census_nothing(domain: Any) -> None:
    """Of a large table only what waits and runs is read, by indexes of just that."""
    batch_id = domain.new_batch(25)
    domain.execute(
        """
        INSERT INTO shards (id, project_id, batch_id, number, first_line, last_line, model, state, total, completed)
        SELECT 'done' || n, project_id, batch_id, 1000 + n, 1, 1, model, 'done', 1, 1
        FROM shards, generate_series(1, 20000) AS n WHERE batch_id = :id AND number = 0
        """,
        id=batch_id,
    )
    domain.execute("ANALYZE shards")
    with db.reading(domain.engine) as connection:
        values = {"lease_seconds": 60, "memory_seconds": 60}
        plan = "\n".join(connection.execute(text(f"EXPLAIN {census._CENSUS.text}"), values).scalars())
    assert "queued_shards_are_claimed_in_order" in plan
    assert "leases_end" in plan
    assert "Seq Scan on shards" not in plan
    domain.execute("DELETE FROM shards WHERE id LIKE 'done%'")


def test_a_census_is_taken_when_it_is_due_and_tells_that_postgres_is_away(domain: Any, database_url: str) -> None:
    seldom = Censuses(Settings(database_url=database_url, metrics={"census_seconds": 3_600}))
    first = seldom.families()
    domain.upload(numbered(1))
    assert seldom.families() is first
    away = Censuses(Settings(database_url="postgresql://127.0.0.1:1/none"))
    (only,) = away.families()
    assert [(sample.name, sample.value) for sample in only.samples] == [("promptmill_database_up", 0)]
    seldom._database.dispose()
