"""F34: a worker dies when it has taken a hint out of Redis and noted it nowhere. The hint is sent again."""

import signal
from pathlib import Path

import services
from brokers import NO_POLLING, QUEUE, UNACKED, hints_heard, injected
from clients import User
from payloads import numbered

DIE_BEFORE_IT_IS_NOTED = """
    import os, signal
    from kombu.transport import redis
    redis.QoS.append = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_hint_that_went_down_with_a_worker_is_sent_again(checked: services.Stack, tmp_path: Path) -> None:
    checked.api()
    user = User(checked)
    dying = checked.worker(**injected(tmp_path / "injected", DIE_BEFORE_IT_IS_NOTED), **NO_POLLING)
    batch = user.submit(numbered(3))
    assert dying.popen.wait(60) == -signal.SIGKILL
    with checked.redis() as broker:
        assert not broker.exists(QUEUE, UNACKED), "the hint is nowhere"
    heir = checked.worker(**NO_POLLING)
    checked.reconciler()
    assert user.wait(batch.id).status == "completed"
    assert hints_heard(heir) >= 1
