"""F37: somebody who can write to Redis puts into the queue what no hint is: nothing of it is run, quoted or fatal."""

import json
import pickle

import services
from brokers import FOLLOWERS, NO_POLLING, QUEUE, body, envelope, hints_heard, rows
from clients import User
from payloads import numbered

CANARY = "CANARY"


def poison(shard_id: str) -> list[bytes]:
    """Return messages that would run the shard, or code, if they were taken for more than bytes."""
    hint = body(shard_id)
    after = {"task": "shards.run", "args": [shard_id], "kwargs": {}, "options": {}}
    by_mark = [{"__type__": "datetime", "__value__": CANARY}, {"__type__": "uuid", "__value__": {"hex": CANARY}}]
    envelopes = [
        envelope(pickle.dumps(([shard_id], {CANARY: 1}, {})), content_type="application/x-python-serialize"),
        envelope(pickle.dumps(([shard_id], {}, {})), content_encoding="binary"),
        envelope(f"!!python/object/apply:os.system ['{CANARY}']".encode(), content_type="application/x-yaml"),
        envelope(hint, {"task": f"{CANARY}.task"}),
        envelope(hint, {"task": "celery.backend_cleanup"}),
        *[envelope(body(mark)) for mark in by_mark],
        envelope(body({"__type__": "decimal", "__value__": "1.5"})),
        envelope(body({CANARY: shard_id})),
        envelope(body(f"{shard_id}\x00")),
        envelope(body(shard_id, {CANARY: 1})),
        envelope(body(shard_id, followers={**FOLLOWERS, "chain": [after]})),
        envelope(body(shard_id, followers={**FOLLOWERS, "callbacks": [after]})),
        # Valid JSON of another kind once ended the worker, and was put back for the next one.
        envelope(json.dumps(CANARY).encode()),
        envelope(b'[["' + shard_id.encode()),
        envelope(hint, {"eta": CANARY}),
        envelope(hint, {"expires": "2000-01-01T00:00:00"}),
        envelope(hint, {"compression": "application/x-gzip"}),
        envelope(hint, {"id": f"{CANARY}\n{CANARY}"}),
        envelope(hint, {"timelimit": [CANARY, 3]}),
        envelope(hint, body=f"*{CANARY}"),
        {**envelope(hint), "headers": None},
        envelope(hint, properties={CANARY: 1}),
    ]
    no_json = [
        json.dumps(envelope(hint)).encode()[:100],
        pickle.dumps(CANARY),
        json.dumps(by_mark[1]).encode(),
        json.dumps([CANARY]).encode(),
        b'{"CANARY":' + b"[" * 200_000,
        b"",
    ]
    return [json.dumps(each).encode() for each in envelopes] + no_json


def test_what_is_no_hint_is_refused_counted_and_not_quoted(checked: services.Stack) -> None:
    checked.api()
    checked.know_model("scripted")
    user = User(checked)
    batch = user.submit(numbered(3))
    (shard_id,) = rows(checked, "SELECT id FROM shards")
    messages = poison(shard_id)
    with checked.redis() as broker:
        services.wait_until(lambda: broker.llen(QUEUE) == 1, "the hint is sent")
        broker.delete(QUEUE)
        worker = checked.worker(**NO_POLLING)
        for message in messages:
            broker.lpush(QUEUE, message)
        services.wait_until(lambda: f'"refused": {len(messages)}' in worker.log.read_text(), "all are refused")
        assert rows(checked, "SELECT count(*) FROM attempts") == [0]
        assert hints_heard(worker) == 0
        # The same worker still takes a hint.
        broker.lpush(QUEUE, json.dumps(envelope(body(shard_id))))
        assert user.wait(batch.id).status == "completed"
        services.wait_until(lambda: not broker.exists(QUEUE, "promptmill:unacked"), "nothing comes back")
    assert worker.stop() == 0, worker.tail()
    assert CANARY not in worker.log.read_text()
