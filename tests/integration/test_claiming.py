"""What the threads of a worker do with what a claim says."""

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

import pytest
from payloads import CHAT

from jobs import db, leases, suspects
from jobs.errors import Unavailable
from jobs.leases import Lease
from workers.claiming import Claiming

Taken = tuple[Lease, float] | None


class Idle:
    """Engine and window of a worker, as far as a claim looks at them."""

    size = 10

    def models(self) -> Sequence[str]:
        return ["scripted"]

    def endpoints(self) -> Sequence[str]:
        return [CHAT]

    def takes_images(self) -> bool:
        return False

    def healthy(self) -> bool:
        return True

    def runs(self) -> tuple[()]:
        return ()


def worker(domain: Any, worker_id: str, draining: threading.Event | None = None) -> Claiming:
    idle: Any = Idle()
    return Claiming(
        domain.settings,
        domain.engine,
        idle,
        idle,
        worker_id=worker_id,
        draining=draining or threading.Event(),
        on_too_old=lambda: None,
    )


def suspect(domain: Any) -> str:
    """Have an engine die with all requests of a shard aboard; return its id."""
    lease = domain.claim("shard_unknown")
    with db.transaction(domain.engine) as connection:
        leases.mark(connection, {lease.held: lease.last_line})
        suspects.died(connection, lease.held, lease.last_line, most_deaths=2)
    return str(lease.shard_id)


def test_of_three_busy_workers_one_waits_for_a_suspect_and_two_go_on(domain: Any) -> None:
    domain.new_batch(60)
    over = threading.Event()
    workers = [worker(domain, f"worker_{number}", over) for number in range(3)]
    held = [each.take_hinted("shard_unknown") for each in workers]
    suspect_id = suspect(domain)
    with ThreadPoolExecutor(3) as pool, ExitStack() as end:
        end.callback(over.set)
        taking: list[Future[Taken]] = [pool.submit(each.take_hinted, suspect_id) for each in workers]
        went_on: set[Future[Taken]] = set()
        while len(went_on) < 2:
            done, waiting = wait(set(taking) - went_on, 30, FIRST_COMPLETED)
            assert done, "two go on while one waits"
            went_on |= done
        (last,) = waiting
        number = taking.index(last)
        assert not last.done()
        # The waiting one ends what it holds.
        mine = held[number]
        assert mine
        domain.write(mine[0], domain.rows(mine[0]))
        workers[number].free(mine[0])
        taken = last.result(30)
    assert taken
    assert (taken[0].shard_id, taken[0].is_suspect) == (suspect_id, True)
    others = [each.result() for each in went_on]
    assert [other and other[0].is_suspect for other in others] == [False, False]


def test_nothing_is_claimed_during_a_pause(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.claiming.PAUSE_SECONDS", 0.5)
    domain.new_batch(1)
    claiming = worker(domain, "worker_1")
    claiming.pause(Unavailable())
    assert not claiming.may_take(coming=0)
    taken = claiming.take_hinted("shard_unknown")
    assert taken, "it waits for the end of the pause; a hint is not used up"
    assert claiming.may_take(coming=0)
